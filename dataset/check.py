"""The check of every file that a config's lists name."""

import hashlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from dataset.build import frequency_table
from util.common import Mistake
from util.dataset import SemData
from util.loader import class_weights, look_at, nothing_labelled
from util.visual import class_names, palette_of


def check(cfg):
    """Decode every image and label of the lists, compare sizes, ids and splits, and count the pixels of the classes.

    Returns the report, a text, and the faults, a list of texts: unfit names or colours; files that are missing, cannot be
    decoded, differ in size or hold ids out of range; lists without a labelled pixel; images that are listed twice, or in the
    training list and in another one.
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
            continue
        samples = read(SemData, split, cfg.data_root, path, classes=cfg.classes, ignore_label=cfg.ignore_label)
        if samples is not None:
            data[name] = samples

    counts, weights = {}, []
    for name, samples in data.items():
        found = look_at([(samples, index) for index in range(len(samples))], name)
        faults += [fault for _, fault in found if fault]
        pixels = [pixels for pixels, _ in found if pixels is not None]
        counts[name] = len(found), sum(pixels)
        if pixels and not np.any(sum(pixels)[:-1]):
            faults.append(nothing_labelled(samples))
        if pixels and name == "train":
            auto = class_weights(pixels)
            for title, column in (("auto", auto), ("sqrt", np.sqrt(auto))):
                weights.append((title, *(f"{w:.3f}" if np.isfinite(w) else "-" for w in column)))
    faults += _repeated(data)

    report = [frequency_table(names, counts, weights)] if counts else []
    if weights:
        report.append("auto: class_weights by median frequency (Eigen & Fergus 2015) of the training list; sqrt: their roots")
    for name, (_, total) in counts.items():
        absent = [names[k] for k in range(cfg.classes) if np.ndim(total) and total[k] == 0]
        if absent:
            report.append(f"{name} has no pixel of: {', '.join(absent)}")
    return "\n".join(report), faults


def _repeated(data):
    """Faults: images that a list names twice, and images with the content of one in the training list."""
    images = {name: [image for image, _ in samples.data_list] for name, samples in data.items()}
    faults = []
    for name, paths in images.items():
        count = Counter(paths)
        faults += [f"{data[name].list_path}: {image} is listed {n} times" for image, n in count.items() if n > 1]
    with ThreadPoolExecutor() as pool:
        digests = {name: list(pool.map(_digest, paths)) for name, paths in images.items()}
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
