"""From a data set as it is downloaded to a folder for `data_root`: images in place, 8-bit labels, lists, a summary.

A reader of one layout (`camvid`, `cityscapes`, ...) turns the source into a `Plan`; `build` carries any plan out. The source
is never written to. Every file appears under its name only when it is whole, so a run that was cut off is simply started
again, and a run that is repeated ends with the same files.
"""

import os
import shutil
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from util import toy as toy_street
from util.image import read_image, read_label
from util.log import ProgressBar
from util.metric import scores
from util.visual import save_png

VOID = 255


@dataclass(frozen=True)
class Sample:
    """One image and its label; the second path of each pair is the file to make, relative to the output folder."""

    split: str
    image: Path
    image_to: str
    label: Path | None = None  # None: a test image, or a fault
    label_to: str | None = None
    fault: str = ""  # why it cannot be used, found while the layout was read


@dataclass(frozen=True)
class Plan:
    source: Path
    samples: list[Sample]
    lists: dict[str, tuple[str, ...]]  # file of a list, relative to the output folder: the splits in it
    names: tuple[str, ...]  # of the classes
    ids: dict[int, int] | None = None  # id in the source's labels: class or 255; None: already 0..K-1 and 255
    read: object = read_label  # path -> (H, W) array of the source's ids
    notes: tuple[str, ...] = ()


# ---- the layouts


def camvid(source, names):
    """CamVid as the SegNet tutorial distributes it: train.txt, train/, trainannot/ and so on; 11 is void."""
    source = Path(source)
    splits = ("train", "val", "test") if (source / "test.txt").exists() else ("train", "val")
    wanted = [part for split in splits for part in (f"{split}.txt", f"{split}/", f"{split}annot/")]
    _need(source, "the SegNet layout of CamVid", wanted)
    samples = []
    for split in splits:
        for line in (source / f"{split}.txt").read_text().splitlines():
            if not line.strip():
                continue
            # The lists carry the absolute paths of their author's machine: only folder and name mean something.
            image, label = (source.joinpath(*Path(entry).parts[-2:]) for entry in line.split())
            samples.append(Sample(split, image, f"image/{split}/{image.name}", label, f"label/{split}/{label.name}"))
    ids = {**{k: k for k in range(len(names))}, 11: VOID}
    return Plan(source, samples, {f"list/{split}.txt": (split,) for split in splits}, names, ids)


# ---- carrying a plan out


def build(plan, out, copy=False, skip_bad=False):
    """Make the folder `out` of a plan and return the summary, a text.

    Labels are written as 8-bit PNGs of class ids, 255 for void; images are linked, or copied. Raises ValueError that tells
    of every file that cannot be used; with `skip_bad` their names go to skipped.txt instead and the lists do without them.
    """
    out = Path(out)
    _keep_source(plan, out)
    lookup = _lookup(plan)
    bar = ProgressBar(out.name, len(plan.samples))
    done = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        futures = [pool.submit(_build_one, sample, plan.read, lookup, out, copy) for sample in plan.samples]
        try:
            for i, future in enumerate(futures):
                done.append(future.result())
                bar.show(i + 1)
        finally:
            bar.clear()
            pool.shutdown(cancel_futures=True)
    faults = [f"{fault}" for _, fault in done if fault]
    skipped = out / "skipped.txt"
    skipped.unlink(missing_ok=True)
    if faults and not skip_bad:
        raise ValueError(_tell(faults, len(done)) + "\nmend them, or leave them out with --skip-bad")
    if faults:
        write_text(skipped, "".join(f"{fault}\n" for fault in faults))

    good = [(sample, count) for sample, (count, fault) in zip(plan.samples, done) if not fault]
    for name, splits in plan.lists.items():
        write_text(out / name, "".join(_line(sample) for part in splits for sample, _ in good if sample.split == part))
    counts = {}
    for split in dict.fromkeys(sample.split for sample in plan.samples):
        found = [count for sample, count in good if sample.split == split]
        counts[split] = len(found), sum(count for count in found if count is not None)
    left_out = [f"{len(faults)} left out: see {skipped}"] if faults else []
    lines = [f"{out}", frequency_table(plan.names, counts), *plan.notes, *left_out, f"lists: {', '.join(plan.lists)}"]
    return "\n".join(lines)


def _build_one(sample, read, lookup, out, copy):
    """(pixels of each id (256,) int64 or None, fault or "")"""
    if sample.fault:
        return None, sample.fault
    try:
        label = _read_one(sample, read, lookup)
    except OSError as error:
        return None, f"{error.filename or sample.image}: {(error.strerror or str(error)).lower()}"
    except ValueError as error:
        return None, str(error)
    _place(sample.image, out / sample.image_to, copy)
    if label is None:
        return None, ""
    save_png(out / sample.label_to, label)
    return np.bincount(label.ravel(), minlength=256), ""


def _read_one(sample, read, lookup):
    """The classes of one sample, (H, W) uint8, or None for a test image. Reads the image too: a broken one is a fault."""
    size = read_image(sample.image).shape[:2]
    if sample.label is None:
        return None
    label = read(sample.label)
    if label.shape != size:
        raise ValueError(f"{sample.label}: {_size(label.shape)}, but its image {sample.image.name} is {_size(size)}")
    classes = lookup[label]
    if (classes < 0).any():
        values, counts = np.unique(label[classes < 0], return_counts=True)
        found = ", ".join(f"{value} ({count} pixels)" for value, count in zip(values[:5], counts))
        raise ValueError(f"{sample.label}: ids out of range: {found}; expected {_ranges(np.flatnonzero(lookup >= 0))}")
    return classes.astype(np.uint8)


def _line(sample):
    """Of a list. A TAB where a space would not tell the two paths apart."""
    parts = [part for part in (sample.image_to, sample.label_to) if part]
    return ("\t" if " " in "".join(parts) else " ").join(parts) + "\n"


def _lookup(plan):
    """(65536,) int16: id in the source's labels -> class, 255, or -1 where there is none."""
    lookup = np.full(65536, -1, np.int16)
    ids = plan.ids if plan.ids is not None else {**{k: k for k in range(len(plan.names))}, VOID: VOID}
    lookup[list(ids)] = list(ids.values())
    return lookup


def _ranges(values):
    """[0, 1, 2, 255] -> '0..2, 255'"""
    runs = np.split(values, np.flatnonzero(np.diff(values) > 1) + 1)
    return ", ".join(f"{run[0]}..{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


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
        temporary.symlink_to(source)
    temporary.replace(target)


def _stamp(path):
    return path.stat().st_size, path.stat().st_mtime_ns


def _keep_source(plan, out):
    """Refuse to write where the source lies, be it through a link."""
    source = plan.source.resolve()
    files = [*plan.lists, *(to for sample in plan.samples for to in (sample.image_to, sample.label_to) if to)]
    for part in sorted({Path(file).parent for file in files}):
        if (out / part).resolve().is_relative_to(source):
            raise ValueError(f"{out / part} lies in the source {plan.source}, which must stay as it is: "
                             "remove the link, or give another folder with --out")  # fmt: skip


def _need(source, what, parts):
    """Every part (a folder if it ends in /) must be there; the error names all that are not."""
    there = {part: (source / part).is_dir() if part.endswith("/") else (source / part).is_file() for part in parts}
    missing = [part for part in parts if not there[part]]
    if not source.is_dir():
        raise FileNotFoundError(f"{source}: no such folder; expected {what} with {' '.join(parts)}")
    if missing:
        raise FileNotFoundError(f"{source}: not {what}: {', '.join(missing)} missing; expected {' '.join(parts)}")


def _size(shape):
    return "{1} x {0}".format(*shape)  # width first, as programs for pictures show it


def _tell(faults, total):
    shown = "\n".join(f"  {fault}" for fault in faults[:20])
    more = f"\n  and {len(faults) - 20} more" if len(faults) > 20 else ""
    return f"{len(faults)} of {total} samples cannot be used:\n{shown}{more}"


def write_text(path, text):
    """Write a text file whole or not at all, with the folders it needs."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def frequency_table(names, counts):
    """Share of each class in the labelled pixels of each split, as text.

    counts: split -> number of images, and pixels of each id (256,) or 0 where there are no labels.
    """
    totals = [total for _, total in counts.values()]
    rows = [["id", "class", *counts]]
    rows += [[f"{k}", name, *(_share(total, k, len(names)) for total in totals)] for k, name in enumerate(names)]
    rows += [["", "void", *(_share(total, VOID, len(names)) for total in totals)]]
    rows += [["", "images", *(f"{n}" for n, _ in counts.values())]]
    return columns(rows)


def _share(total, k, classes):
    if np.ndim(total) == 0:
        return "-"
    base = total.sum() if k == VOID else total[:classes].sum()
    return f"{100 * total[k] / base:.2f} %" if base else "-"


def columns(rows):
    """Rows of cells as text; the second column, the names, is flush left, the others flush right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    flush = [str.rjust, str.ljust] + [str.rjust] * len(rows[0])
    return "\n".join("  ".join(f(cell, w) for f, cell, w in zip(flush, row, widths)).rstrip() for row in rows)


# ---- the toy street


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
