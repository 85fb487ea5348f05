"""From the `Plan` of `dataset.layout` to a folder for `data_root`: images linked or copied, 8-bit labels, lists, a summary.

The source is never written to. Files appear whole, and labels once all are known to be good, so a run that was interrupted is
completed by the next one, one that fails leaves an earlier data set as it was, and one that is repeated gives the same files.
"""

import filecmp
import os
import re
import shutil
import tempfile
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from dataset.toy import scene
from util.common import Mistake, first_few, text_table, write_aside
from util.image import check_sizes, file_errors, read_image, read_label, read_lines
from util.log import ProgressBar
from util.metric import scores
from util.visual import changed_names, save_png

DARK = 64  # of 255: no photograph, by night either, is darker everywhere


@dataclass(frozen=True)
class Built:
    summary: str
    train: int  # number of images to train on
    sizes: list[tuple[int, int]]  # (H, W) of every image
    example: str  # an image for the demo, relative to the folder


def build(plan, out, copy=False, skip_bad=False):
    """Make the folder `out` of a plan.

    Labels are written as 8-bit PNGs of class ids, 255 for void; images are linked, or copied. Files that cannot be used raise
    one Mistake that lists them; with `skip_bad` they are listed in skipped.txt instead and left out of the lists, before the
    validation images are drawn.
    """
    out = Path(out).absolute()
    targets = (to for sample in plan.samples for to in (sample.image_to, sample.label_to) if to)
    read = (file for sample in plan.samples if not sample.fault for file in (sample.image, sample.label))
    folders = {file.parent for file in read if isinstance(file, Path)}
    keep_sources((*folders, *plan.sources), [out / file for file in (*plan.lists, *targets)])
    _keep_originals(plan.samples, out)
    samples = _without_doubles(plan.samples)
    bar = ProgressBar(out.name, len(samples))
    done = []
    with file_errors(f"{out}: could not be written"):
        out.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(prefix=".labels-", dir=out)
    with folder as new, ThreadPoolExecutor() as pool:
        try:
            for result in pool.map(lambda sample: _build_one(sample, plan.read, out, Path(new)), samples):
                done.append(result)
                bar.show(len(done))
        finally:
            bar.clear()
        faults = [fault for *_, fault in done if fault]
        if faults and not skip_bad:
            listed = first_few(faults, 20, "\n  ")
            raise Mistake(f"{len(faults)} of {len(done)} samples cannot be used:\n  {listed}\n"
                          "repair them, or leave them out with --skip-bad")  # fmt: skip
        good = [(sample, *found) for sample, (*found, fault) in zip(samples, done) if not fault]
        if plan.draw:
            good = _drawn(good, *plan.draw, hint=f"; left out: {first_few(faults, 1)}" if faults else "")
        splits = {split: [] for split in (*(("train", "val") if plan.draw else ()), *(s.split for s in samples if s.split))}
        for sample, count, *_ in good:
            splits[sample.split].append((sample, count))
        if empty := [split for split in splits if not splits[split]]:
            raise Mistake(f"{out}: nothing is left of {', '.join(empty)}; left out: {first_few(faults, 3)}")
        for _ in pool.map(lambda sample: _put(sample, Path(new), out, copy), (sample for sample, *_ in good)):
            pass
    skipped = out / "skipped.txt"
    with file_errors(f"{skipped}: cannot be removed"):
        skipped.unlink(missing_ok=True)
    if faults:
        write_text(skipped, "".join(f"{fault}\n" for fault in faults))

    notes = [*plan.notes, *_dark([brightest for *_, brightest in good]), *_renamed(plan, out)]
    lists = {name: parts for name, parts in plan.lists.items() if not splits.keys().isdisjoint(parts)}
    notes += _moved_into_val(out / "list/train.txt", splits)
    for name, parts in lists.items():
        write_text(out / name, "".join(_line(sample) for split in parts for sample, _ in splits.get(split, ())))
    for path, text in names_and_colors(plan, out).items():
        write_text(path, text)
    counts = {split: (len(found), sum(count for _, count in found if count is not None)) for split, found in splits.items()}
    notes += [*([f"{len(faults)} left out: see {skipped}"] if faults else []), f"lists: {', '.join(lists)}"]
    text = "\n".join([f"{out}", frequency_table(plan.names, counts), *notes])
    example = splits.get("val", good)[0][0].image_to
    return Built(text, len(splits.get("train", ())), [size for _, _, size, _ in good], example)


def names_and_colors(plan, out):
    """{file: text} of the class names and colours that the folder `out` of a plan gets; none where the project has them."""
    if plan.colors is None:
        return {}
    return {out / f"{out.name}_names.txt": "".join(f"{name}\n" for name in plan.names),
            out / f"{out.name}_colors.txt": "".join("{} {} {}\n".format(*colour) for colour in plan.colors)}  # fmt: skip


def _drawn(good, share, seed, hint):
    """Those without a split get one, a share of them val. good: tuples that begin with a sample. The order is drawn from the
    names, so that one more image leaves nearly all others where they are. hint: why they may be too few, for the message."""
    order = [i for i, (sample, *_) in enumerate(good) if not sample.split]
    if len(order) < 2:
        raise Mistake(f"images with a label: {len(order)}; at least 2 are needed, one to train on and one for val{hint}")
    order.sort(key=lambda i: sha256(f"{seed} {good[i][0].image_to}".encode()).digest())
    val = {*order[: min(max(round(len(order) * share), 1), len(order) - 1)]}
    drawn = {i: "val" if i in val else "train" for i in order}
    return [(replace(sample, split=drawn.get(i, sample.split)), *more) for i, (sample, *more) in enumerate(good)]


def _moved_into_val(train_list, splits):
    """A note, if images of val stand in the training list that is replaced."""
    earlier = set()
    with suppress(Mistake):  # there is none, or none that can be read: it is written anew
        earlier.update(read_lines(train_list))
    moved = [sample.image_to for sample, _ in splits.get("val", ()) if _line(sample).rstrip("\n") in earlier]
    return [f"{len(moved)} images of val were in train before: a run that resumes, or starts from weights that it has learned "
            f"there, is validated on images that it has seen: {first_few(moved)}"] if moved else []  # fmt: skip


def _dark(brightest):
    """A note, if half of the images are dark: a 12-bit camera fills a sixteenth of the values of 16 bits."""
    median = np.median(brightest) if brightest else DARK
    return [f"warning: half of the images have no pixel above {median:.0f} of 255. Of 16 bits the upper 8 are read: multiply "
            "the values of a 12-bit camera by 16 first"] if median < DARK else []  # fmt: skip


def _renamed(plan, out):
    """A note, if ids stand for classes of other names than those in the folder: labelme's are in alphabetical order."""
    before = []
    with suppress(Mistake):  # there are none, or none that can be read
        before = [name for path in [*names_and_colors(plan, out)][:1] for name in read_lines(path)]
    changed = changed_names(before, plan.names)
    return [f"{first_few(changed)}; a network that was trained before goes by the earlier ids"] if changed else []


def _without_doubles(samples):
    """The samples, with a fault where another one before it goes to the same files."""
    earlier, result = {}, []
    for sample in samples:
        other = next((earlier[to] for to in (sample.image_to, sample.label_to) if to in earlier), None)
        if other and not sample.fault:
            by = [*dict.fromkeys(map(str, filter(None, (other.label, sample.label))))]
            twice = "is listed twice" + f", by {' and '.join(by)}" * (len(by) > 1)
            reason = twice if other.image == sample.image else f"would be written to the file of {other.image}"
            sample = replace(sample, fault=f"{sample.image}: {reason}")
        elif not sample.fault:
            earlier |= dict.fromkeys({sample.image_to, sample.label_to} - {None}, sample)
        result.append(sample)
    return result


def _unlistable(sample):
    """The fault of a name that a list cannot hold, or ""."""
    names = f"{sample.image_to}{sample.label_to}"
    if re.search(r"[\t\r\n]", names):
        return f"{sample.image}: its name holds a TAB or a line break, which separate the entries of a list; rename it"
    if names.encode(errors="replace").decode() != names:
        return f"{sample.image}: its name is not UTF-8, as lists are; rename it"
    return ""


def _build_one(sample, read, out, new):
    """(pixels of each id (256,) int64 or None, (H, W) of the image or None, its brightest value or None, fault or "")

    Where `out` holds another label, or none, it is written into the folder `new`: it takes its place once all are known to be
    good, so that a command that fails leaves an earlier data set as it was.
    """
    fault = sample.fault or _unlistable(sample)
    if fault:
        return None, None, None, fault
    try:
        image = read_image(sample.image)  # also where it is only linked: a broken one is a fault
        label = None if sample.label is None else read(sample.label, image.shape[:2])
        if label is not None:
            check_sizes(sample.image, image, sample.label, label)
    except Mistake as error:
        return None, None, None, str(error)
    if label is None:
        return None, image.shape[:2], image.max(), ""
    if not _holds(out / sample.label_to, label):
        save_png(new / sample.label_to, label)
    return np.bincount(label.ravel(), minlength=256), image.shape[:2], image.max(), ""


def _put(sample, new, out, copy):
    """Image and label into their places."""
    _place(sample.image, out / sample.image_to, copy)
    if sample.label_to and (new / sample.label_to).exists():
        with write_aside(out / sample.label_to) as aside:  # the folder may lie on another disk
            shutil.move(new / sample.label_to, aside)


def _holds(path, label):
    """Does the file hold this label already? Written anew it would be a changed one to the cache."""
    with suppress(Mistake, OSError):
        there = read_label(path) if path.is_file() and not path.is_symlink() else None
        return there is not None and there.dtype == label.dtype and np.array_equal(there, label)
    return False


def _line(sample):
    """The line of a list, with a TAB between the paths if they hold spaces."""
    parts = [part for part in (sample.image_to, sample.label_to) if part]
    return ("\t" if re.search(r"\s", "".join(parts)) else " ").join(parts) + "\n"


def _place(source, target, copy):
    """Link or copy a file, unless that is done already."""
    source = source.resolve()
    if copy:
        if target.is_file() and not target.is_symlink() and filecmp.cmp(source, target):
            return
    elif target.is_symlink() and target.readlink() == source:
        return
    with write_aside(target) as aside:
        if copy:
            shutil.copy2(source, aside)
        else:
            with file_errors(f"{target}: cannot be linked", "; try --copy"):
                aside.symlink_to(source)


def keep_sources(sources, files):
    """Refuse to write these files into one of the folders `sources`, also through a link."""
    source_at = {Path(os.path.realpath(source)): source for source in sources}
    for part in sorted({file.parent for file in files}):
        try:
            place = part.resolve()
        except (OSError, RuntimeError) as error:  # a loop of links is one or the other, by the version of Python
            raise Mistake(f"{part}: not a folder that can be written to ({error})") from error
        inside = next((source_at[folder] for folder in (place, *place.parents) if folder in source_at), None)
        if inside:
            raise Mistake(f"{part} lies in the source {inside}, which must stay as it is: "
                          "remove the link, or give another folder with --out")  # fmt: skip


def _keep_originals(samples, out):
    """Refuse to put the link to an image, or a label, in the place of the very file that it is made from. Folders alone do not
    show this: a source may hold a link to a file anywhere."""
    for sample in samples:
        for source, to in ((sample.image, sample.image_to), (sample.label, sample.label_to)):
            target = out / (to or "")
            if not target.is_file() or target.is_symlink() or not isinstance(source, Path):  # a link may be replaced
                continue
            if os.path.realpath(source) == os.path.realpath(target):
                raise Mistake(f"{source}: the output {target} is this very file, which must stay as it is: "
                              "give another folder with --out")  # fmt: skip


def write_text(path, text):
    """Write a UTF-8 text file whole or not at all, with the folders it needs."""
    with write_aside(path) as aside:
        aside.write_text(text, encoding="utf-8", errors="backslashreplace")  # file names may be any bytes


def frequency_table(names, counts, extra=()):
    """Table of the share of each class in the labelled pixels of each split, as text.

    counts: split -> (number of images, pixels of each class and, last, of void (K + 1 or 256 numbers), or 0 without labels).
    extra: further columns, each a title and a cell a class.
    """
    columns = [["id", *(f"{k}" for k in range(len(names))), "", ""], ["class", *names, "void", "images"]]
    for title, (images, total) in counts.items():
        shares = [_share(total, k, len(names)) for k in (*range(len(names)), -1)]
        columns.append([title, *shares, f"{images}"])
    columns += [[*column, "", ""] for column in extra]
    return text_table([*zip(*columns)])


def _share(total, k, classes):
    """Share of class k in the labelled pixels, or of void (-1) in all pixels, as text."""
    base = np.sum(total if k == -1 else total[:classes]) if np.ndim(total) else 0
    return f"{100 * total[k] / base:.2f} %" if base else "-"


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
        for n, (job, count) in enumerate(zip(jobs, run(scene.write_scene, jobs))):
            rows[job[-1].split("/")[0]] += count
            bar.show(n + 1)
    bar.clear()
    for name, parts in {"train": ["train"], "val": ["val"], "trainval": ["train", "val"]}.items():
        names = [job[-1] for job in jobs if job[-1].split("/")[0] in parts]
        write_text(out / "list" / f"{name}.txt", "".join(f"image/{name} label/{name}\n" for name in names))
    table = frequency_table(scene.CLASSES, {split: (n, rows[split].sum(0)) for split, n in numbers.items()})
    baseline = row_baseline(rows["train"], rows["val"], len(scene.CLASSES))
    return "\n".join([f"{out}", table, "lists: list/train.txt, list/val.txt, list/trainval.txt",
                      f"Baseline, the most frequent class of each row: mIoU {baseline:.4f}"])  # fmt: skip


def row_baseline(train, val, classes):
    """Baseline: mIoU on `val` of the most frequent class of each row in `train`.

    train, val: (H, 256) pixels of each id in each row, summed over images.
    """
    commonest = train[:, :classes].argmax(1)
    confusion = np.zeros((classes, classes), np.int64)
    np.add.at(confusion.T, commonest, val[:, :classes])
    return scores(confusion).mIoU
