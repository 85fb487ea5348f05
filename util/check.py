"""Look at every file that a config's lists name, before a training does."""

import hashlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from util.dataset import check_ids, read_list
from util.image import read_image, read_label
from util.log import ProgressBar
from util.prepare import frequency_table
from util.visual import load_colors, load_names


def check(cfg):
    """Decode every image and label of the lists, compare sizes, ids and splits, and count the classes.

    Returns the report, a text, and the faults, a list of texts: files that are missing, cannot be decoded, differ in size
    or hold ids out of range; images that are listed twice, or in the training list and in another one.
    """
    faults, names = [], None
    try:
        names = cfg.names_path and load_names(cfg.names_path, cfg.classes)
        if cfg.colors_path:
            load_colors(cfg.colors_path, cfg.classes)
    except (ValueError, OSError) as error:
        faults.append(str(error))
    names = names or [f"class{k}" for k in range(cfg.classes)]

    pairs, path_of = {}, {}
    lists = ("train", cfg.train_list, "train"), ("val", cfg.val_list, "val"), ("test", cfg.test_list, cfg.split)
    for name, path, split in lists:
        if path is None or path in path_of.values():
            continue
        path_of[name] = path
        try:
            pairs[name] = read_list(path, cfg.data_root, split)
        except (ValueError, OSError) as error:
            faults.append(str(error))

    looks = {name: _look_at(name, pairs[name], cfg) for name in pairs}
    faults += [fault for found in looks.values() for _, _, fault in found if fault]
    for name in pairs:
        count = Counter(image for image, _ in pairs[name])
        faults += [f"{path_of[name]}: {image} is listed {n} times" for image, n in count.items() if n > 1]
    if "train" in pairs:
        of_hash = {digest: image for (image, _), (digest, _, _) in zip(pairs["train"], looks["train"]) if digest}
        for name in pairs.keys() - {"train"}:
            for (image, _), (digest, _, _) in zip(pairs[name], looks[name]):
                if digest in of_hash:
                    same = "" if of_hash[digest] == image else f", there as {of_hash[digest]}"
                    faults.append(f"{path_of[name]}: {image} is in the training list too{same}")

    counts, weights = {}, ()
    for name, found in looks.items():
        pixels = [pixels for _, pixels, _ in found if pixels is not None]
        counts[name] = len(found), sum(pixels)
        if name == "train" and pixels:
            weights = [("weight", *(f"{w:.3f}" if np.isfinite(w) else "-" for w in class_weights(pixels)))]
    report = [frequency_table(names, counts, weights)] if counts else []
    if weights:
        report.append("weight: median frequency balancing of the training list (Eigen & Fergus 2015)")
    for name, (_, total) in counts.items():
        absent = [names[k] for k in range(cfg.classes) if np.ndim(total) and total[k] == 0]
        if absent:
            report.append(f"{name} has no pixel of: {', '.join(absent)}")
    return "\n".join(report), faults


def class_weights(pixels):
    """Median frequency balancing, (K,) float64; nan for a class without a pixel (Eigen & Fergus 2015).

    weight = median of all frequencies / frequency of the class; its frequency is its share of the images it is in.
    pixels: for each image the pixels of each class and, last, of void, (K + 1,).
    """
    pixels = np.stack(pixels)
    inside = (pixels.sum(1, keepdims=True) * (pixels > 0)).sum(0)[:-1]
    frequency = np.divide(pixels.sum(0)[:-1], inside, out=np.full(len(inside), np.nan), where=inside > 0)
    return np.nanmedian(frequency) / frequency if inside.any() else frequency


def automatic_class_weights(pairs, classes):
    """Median frequency balancing, (K,) list of floats, of the labels of [(image path, label path)]; 1 for absent classes."""
    with ThreadPoolExecutor() as pool:
        weights = class_weights(list(pool.map(lambda pair: _pixels_of(read_label(pair[1]), classes), pairs)))
    return np.nan_to_num(weights, nan=1.0).tolist()


def _pixels_of(ids, classes):
    """Pixels of each class and, last, of everything else (K + 1,)."""
    count = np.bincount(ids.ravel(), minlength=classes)[:classes]
    return np.append(count, ids.size - count.sum())


def _look_at(name, pairs, cfg):
    """For each pair (hash of the image file, pixels of the K classes and void (K + 1,) or None, fault or "")."""

    def look(pair):
        image, label = pair
        try:
            digest = hashlib.blake2b(Path(image).read_bytes()).digest()
            size = read_image(image).shape[:2]
            if label is None:
                return digest, None, ""
            ids = read_label(label)
            if ids.shape != size:
                return digest, None, "{}: {} x {}, but its image {} is {} x {}".format(
                    label, *ids.shape[::-1], image, *size[::-1])  # fmt: skip
            check_ids(ids, cfg.classes, cfg.ignore_label, label)
        except (ValueError, OSError) as error:
            return None, None, str(error)
        return digest, _pixels_of(ids, cfg.classes), ""

    bar, found = ProgressBar(name, len(pairs)), []
    with ThreadPoolExecutor() as pool:
        try:
            for result in pool.map(look, pairs):
                found.append(result)
                bar.show(len(found))
        finally:
            bar.clear()
            pool.shutdown(cancel_futures=True)
    return found
