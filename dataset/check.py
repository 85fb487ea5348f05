"""The check of every file that a config's lists name."""

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np

from dataset.build import frequency_table
from util.common import Mistake, ahead
from util.dataset import SemData
from util.image import image_header
from util.loader import class_sums, class_weights, look_at, nothing_labelled
from util.visual import class_names, palette_of

THREADS = 8  # that read files, which is waiting for a disk
MUCH = 6  # times longer than a crop is an image of which it shows little


def check(cfg):
    """Decode every image and label of the lists, compare sizes, ids and splits, and count the pixels of the classes.

    Returns the report, a text, and the faults, a list of texts: unfit names or colours; files that are missing, cannot be
    decoded, differ in size or hold ids out of range; lists without a labelled pixel; images that are listed twice, or in the
    training list and in another one. The report warns of crops and of a base_size that do not go with the sizes of the images.
    """
    faults, data = [], {}

    def read(function, *args, **options):
        try:
            return function(*args, **options)
        except Mistake as error:
            faults.append(str(error))

    names = read(class_names, cfg) or [f"class {k}" for k in range(cfg.classes)]
    read(palette_of, cfg)
    lists = ("train", cfg.train_list, "train"), ("val", cfg.val_list, "val"), ("test", cfg.test_list, cfg.split)
    for i, (name, path, split) in enumerate(lists):
        if path is None or path in [earlier for _, earlier, _ in lists[:i]]:
            faults += [f"{path}: is the {name} list and the training list"] if path and path == cfg.train_list else []
            continue
        samples = read(SemData, split, cfg.data_root, path, classes=cfg.classes, ignore_label=cfg.ignore_label)
        if samples is not None:
            data[name] = samples

    counts, weights = {}, []
    for name, samples in data.items():
        sums = 0
        for _, pixels, fault in look_at(((samples, index) for index in range(len(samples))), len(samples), name):
            faults += [fault] if fault else []
            sums += 0 if pixels is None else class_sums(pixels)
        is_counted = np.ndim(sums) > 0
        counts[name] = len(samples), sums[0] if is_counted else 0
        if is_counted and not sums[0, :-1].any():
            faults.append(nothing_labelled(samples))
        if is_counted and name == "train":
            auto = class_weights(sums)
            for title, column in (("auto", auto), ("sqrt", np.sqrt(auto))):
                weights.append((title, *(f"{w:.3f}" if np.isfinite(w) else "-" for w in column)))
    faults += _repeated(data)

    report = [frequency_table(names, counts, weights)] if counts else []
    report += [f"warning: {text}" for text in _unfit_sizes(cfg, data)]
    if weights:
        report.append("auto: class_weights by median frequency (Eigen & Fergus 2015) of the training list; sqrt: their roots")
    for name, (_, total) in counts.items():
        absent = [names[k] for k in range(cfg.classes) if np.ndim(total) and total[k] == 0]
        if absent:
            report.append(f"{name} has no pixel of: {', '.join(absent)}")
    return "\n".join(report), faults


def _unfit_sizes(cfg, data):
    """What to warn of: crops and sizes of testing that do not go with the median image of the lists."""
    median = {}
    for name, samples in data.items():
        sizes = [size for size in ahead(_sides, (image for image, _ in samples.data_list), THREADS, 4 * THREADS) if size]
        if sizes:
            median[name] = np.median(sizes, 0)
    if "train" not in median or not isinstance(cfg.augmentation, str):  # of a pipeline of Albumentations we know nothing
        return
    long, short = median.pop("train")
    unit = _fit(cfg.resize_box, long, short) if cfg.augmentation == "mmseg" else 1
    low, high = cfg.scale_min * unit, cfg.scale_max * unit  # of the image's own size
    scaled = f"the median image of {cfg.train_list}, {long:g} x {short:g} pixels, which is scaled by {low:.3g} to {high:.3g}"
    crop = sorted((cfg.train_h, cfg.train_w))
    if crop[1] * MUCH < np.sqrt(low * high) * long:
        yield (f"train_h, train_w: {cfg.train_h} x {cfg.train_w} shows little of {scaled}: take a larger crop, or lower "
               "scale_min and scale_max")  # fmt: skip
    if crop[0] > high * short and crop[1] > high * long:
        yield f"train_h, train_w: {cfg.train_h} x {cfg.train_w} is larger than {scaled}: take a smaller crop"
    for name, (long, short) in median.items():
        unit = _fit(cfg.base_size, long, short)
        seen = unit * min(cfg.scales), unit * max(cfg.scales)
        if seen[0] > high or seen[1] < low:
            scales = " to ".join(f"{scale:.3g}" for scale in dict.fromkeys(seen))
            yield (f"base_size: at {cfg.base_size} the median image of {name}, {long:g} x {short:g} pixels, is scaled by "
                   f"{scales}, and in training by {low:.3g} to {high:.3g}: set base_size near {long:g}, or multiply scale_min "
                   f"and scale_max by {unit:.3g}")  # fmt: skip


def _fit(box, long, short):
    """The scale at which an image fits into a box: a side, or (long, short), or None for the image's own size."""
    sides = np.atleast_1d(box or long)
    return max(sides) / long if len(sides) == 1 else min(max(sides) / long, min(sides) / short)


def _sides(path):
    """(long, short) in pixels, or None for a file that the decoding has reported."""
    try:
        return sorted(image_header(path)[:2], reverse=True)
    except Mistake:
        return None


def _repeated(data):
    """Faults: images that a list names twice, and images with the content of one in the training list."""
    images = {name: [image for image, _ in samples.data_list] for name, samples in data.items()}
    faults = []
    for name, paths in images.items():
        count = Counter(paths)
        faults += [f"{data[name].list_path}: {image} is listed {n} times" for image, n in count.items() if n > 1]
    digests = {name: list(ahead(_digest, paths, THREADS, 4 * THREADS)) for name, paths in images.items()}
    of_digest = dict(zip(digests.pop("train", ()), images.get("train", ())))
    for name, found in digests.items():
        for image, digest in zip(images[name], found):
            if digest in of_digest and digest is not None:
                same = "" if of_digest[digest] == image else f", there as {of_digest[digest]}"
                faults.append(f"{data[name].list_path}: {image} is in the training list too{same}")
    return faults


def _digest(path):
    """A hash of the file's content; None if it is empty or cannot be read, which the decoding reports."""
    try:
        content = Path(path).read_bytes()
    except OSError:
        return None
    return hashlib.blake2b(content).digest() if content else None
