"""From a data set as it is downloaded to a folder for `data_root`: images in place, 8-bit labels, lists, a summary.

`util.layout` turns a source into a `Plan`; `build` carries any plan out. The source is never written to. Every file appears
under its name only when it is whole, so a run that was cut off is simply started again, and a run that is repeated ends
with the same files.
"""

import os
import shutil
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from util import toy as toy_street
from util.image import read_image
from util.log import ProgressBar
from util.metric import scores
from util.visual import save_png


def build(plan, out, copy=False, skip_bad=False):
    """Make the folder `out` of a plan and return the summary, a text.

    Labels are written as 8-bit PNGs of class ids, 255 for void; images are linked, or copied. Raises ValueError that tells
    of every file that cannot be used; with `skip_bad` their names go to skipped.txt instead and the lists do without them.
    """
    out = Path(out).absolute()
    _keep_sources(plan, out)
    bar = ProgressBar(out.name, len(plan.samples))
    done = []
    with ThreadPoolExecutor() as pool:
        futures = [pool.submit(_build_one, sample, plan.read, out, copy) for sample in plan.samples]
        try:
            for i, future in enumerate(futures):
                done.append(future.result())
                bar.show(i + 1)
        finally:
            bar.clear()
            pool.shutdown(cancel_futures=True)
    faults = [fault for _, fault in done if fault]
    if faults and not skip_bad:
        raise ValueError(f"{len(faults)} of {len(done)} samples cannot be used:{shorten(faults)}\n"
                         "mend them, or leave them out with --skip-bad")  # fmt: skip
    skipped = out / "skipped.txt"
    skipped.unlink(missing_ok=True)
    if faults:
        write_text(skipped, "".join(f"{fault}\n" for fault in faults))

    good = {split: [] for split in dict.fromkeys(sample.split for sample in plan.samples)}
    for sample, (count, fault) in zip(plan.samples, done):
        if not fault:
            good[sample.split].append((sample, count))
    if not all(good.values()):
        raise ValueError(f"{out}: nothing is left of {', '.join(split for split in good if not good[split])}, see {skipped}")
    lists = {name: splits for name, splits in plan.lists.items() if not good.keys().isdisjoint(splits)}
    for name, splits in lists.items():
        write_text(out / name, "".join(_line(sample) for split in splits for sample, _ in good.get(split, ())))
    if plan.colors is not None:
        write_text(out / f"{out.name}_names.txt", "".join(f"{name}\n" for name in plan.names))
        write_text(out / f"{out.name}_colors.txt", "".join("{} {} {}\n".format(*colour) for colour in plan.colors))
    counts = {split: (len(found), sum(count for _, count in found if count is not None)) for split, found in good.items()}
    notes = [*plan.notes, *([f"{len(faults)} left out: see {skipped}"] if faults else []), f"lists: {', '.join(lists)}"]
    return "\n".join([f"{out}", frequency_table(plan.names, counts), *notes])


def _build_one(sample, read, out, copy):
    """(pixels of each id (256,) int64 or None, fault or "")"""
    if sample.fault:
        return None, sample.fault
    try:
        label = _read_one(sample, read)
    except OSError as error:
        return None, f"{error.filename or sample.image}: {(error.strerror or str(error)).lower()}"
    except ValueError as error:
        return None, str(error)
    _place(sample.image, out / sample.image_to, copy)
    if label is None:
        return None, ""
    save_png(out / sample.label_to, label)
    return np.bincount(label.ravel(), minlength=256), ""


def _read_one(sample, read):
    """The classes of one sample, (H, W) uint8, or None for a test image. Reads the image too: a broken one is a fault."""
    size = read_image(sample.image).shape[:2]
    if sample.label is None:
        return None
    label = read(sample.label)
    if label.shape != size:
        raise ValueError(f"{sample.label}: {_size(label.shape)}, but its image {sample.image.name} is {_size(size)}")
    return label


def _line(sample):
    """Of a list. A TAB where a space would not tell the two paths apart."""
    parts = [part for part in (sample.image_to, sample.label_to) if part]
    return ("\t" if " " in "".join(parts) else " ").join(parts) + "\n"


def _place(source, target, copy):
    """Link or copy a file, unless that has been done already."""
    source = source.resolve()
    if copy:
        if target.is_file() and not target.is_symlink() and _stamp(target) == _stamp(source):
            return
    elif target.is_symlink() and target.readlink() == source:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    if copy:
        shutil.copy2(source, temporary)
    else:
        try:
            temporary.symlink_to(source)
        except OSError as error:
            raise OSError(f"{target}: cannot be linked ({error.strerror}); try --copy") from error
    temporary.replace(target)


def _stamp(path):
    return path.stat().st_size, path.stat().st_mtime_ns


def _keep_sources(plan, out):
    """Refuse to write where a source lies, be it through a link."""
    files = [*plan.lists, *(to for sample in plan.samples for to in (sample.image_to, sample.label_to) if to)]
    for part in sorted({(out / file).parent for file in files}):
        for source in plan.sources:
            if part.resolve().is_relative_to(source.resolve()):
                raise ValueError(f"{part} lies in the source {source}, which must stay as it is: "
                                 "remove the link, or give another folder with --out")  # fmt: skip


def _size(shape):
    return "{1} x {0}".format(*shape)  # width first, as programs for pictures show it


def shorten(lines, count=20):
    """Lines for an error message, each on its own line, not more than `count`."""
    more = [f"and {len(lines) - count} more"] if len(lines) > count else []
    return "".join(f"\n  {line}" for line in [*lines[:count], *more])


def write_text(path, text):
    """Write a text file whole or not at all, with the folders it needs."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def frequency_table(names, counts, extra=()):
    """Share of each class in the labelled pixels of each split, as text.

    counts: split -> number of images, and pixels of each class and, last, of void (K + 1 or 256 numbers), or 0 where there
    are no labels. extra: further columns, each a title and a cell a class.
    """
    totals = [total for _, total in counts.values()]
    rows = [["id", "class", *counts]]
    rows += [[f"{k}", name, *(_share(total, k, len(names)) for total in totals)] for k, name in enumerate(names)]
    rows += [["", "void", *(_share(total, -1, len(names)) for total in totals)]]
    rows += [["", "images", *(f"{n}" for n, _ in counts.values())]]
    for column in extra:
        for row, cell in zip(rows, [*column, "", ""]):
            row.append(cell)
    return columns(rows)


def _share(total, k, classes):
    """Of class k in the labelled pixels, or of void (-1) in all."""
    base = np.sum(total if k == -1 else total[:classes]) if np.ndim(total) else 0
    return f"{100 * total[k] / base:.2f} %" if base else "-"


def columns(rows):
    """Rows of cells as text; the second column, the names, is flush left, the others flush right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    flush = [str.rjust, str.ljust] + [str.rjust] * len(rows[0])
    return "\n".join("  ".join(f(cell, w) for f, cell, w in zip(flush, row, widths)).rstrip() for row in rows)


def toy(out, train=160, val=40, height=192, width=256, seed=0):
    """Render street scenes into `out` and return the summary, a text. Each scene depends on (seed, split, index) alone."""
    out = Path(out)
    numbers = {"train": train, "val": val}
    jobs = [((seed, s, i), height, width, f"{out}", f"{split}/{split}_{i:04d}.png")
            for s, split in enumerate(numbers) for i in range(numbers[split])]  # fmt: skip
    bar = ProgressBar(out.name, len(jobs))
    rows = {split: np.zeros((height, 256), np.int64) for split in numbers}
    with ExitStack() as stack:
        run = map
        if len(jobs) >= 64:  # worth the start of processes; spawned, because OpenCV's threads do not survive a fork
            run = stack.enter_context(ProcessPoolExecutor(os.cpu_count(), get_context("spawn"))).map
        for n, (job, count) in enumerate(zip(jobs, run(toy_street.write_scene, jobs))):
            rows[job[-1].split("/")[0]] += count
            bar.show(n + 1)
    bar.clear()
    for split in numbers:
        names = [job[-1] for job in jobs if job[-1].startswith(f"{split}/")]
        write_text(out / "list" / f"{split}.txt", "".join(f"image/{name} label/{name}\n" for name in names))
    table = frequency_table(toy_street.CLASSES, {split: (n, rows[split].sum(0)) for split, n in numbers.items()})
    baseline = row_baseline(rows["train"], rows["val"], len(toy_street.CLASSES))
    return "\n".join([f"{out}", table, "lists: list/train.txt, list/val.txt",
                      f"The commonest class of each row, without a look at the picture, has mIoU {baseline:.4f}."])  # fmt: skip


def row_baseline(train, val, classes):
    """mIoU on `val` of a predictor that gives each row the class that is commonest there in `train`.

    train, val: (H, 256) pixels of each id in each row, summed over images. What a network scores above this it has seen.
    """
    commonest = train[:, :classes].argmax(1)
    confusion = np.zeros((classes, classes), np.int64)
    np.add.at(confusion.T, commonest, val[:, :classes])
    return scores(confusion).mIoU
