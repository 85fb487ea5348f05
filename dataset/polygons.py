"""Annotation files of labelme, COCO and YOLO as a `Plan` whose labels are drawn from polygons.

A pixel belongs to a polygon if its centre does. Coordinates count from the picture's upper left corner, so the centre of the
first pixel is (0.5, 0.5), and polygons with a common edge leave no gap and share no pixel. Where objects overlap, the later one
is on top in labelme's files, and the smaller one in those of COCO and YOLO, which have no order.
"""

import base64
import binascii
import json
import os
import re
import unicodedata
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from dataset.layout import IMAGE_TYPES, VOID, Sample, is_dir
from dataset.own import SPLITS, by_key, files_below, keep_splits, own_files, own_plan
from util.common import Mistake, did_you_mean, first_few
from util.image import read_lines, read_text
from util.values import parse_yaml, shown
from util.visual import default_palette

IGNORED = ("void", "__ignore__")  # labels of what counts nowhere
BACKGROUND = "_background_"  # labelme's word for what no polygon covers


@dataclass(frozen=True)
class InFile:
    """The annotations of one image in a file of many images."""

    where: str
    size: tuple  # height and width as the file states them
    objects: list  # [(where, name, draw)]

    def __str__(self):
        return self.where


def polygons(paths, images=None, names=None, background="background", draw=(0.2, 0)):
    """The plan for images and `paths`: a folder of labelme's JSON files, JSON files of COCO, YOLO's data.yaml or text files.

    images: a folder; None: that of the annotations; data.yaml names its own. names: the classes in their order; None: those
    that the files name. What no polygon covers is the class `background`, the first unless `names` has it elsewhere; it is
    ignored if that is `void`. draw: share of val and seed, see `dataset.own.stay`.
    """
    yaml, texts, jsons = _annotation_files(paths)
    root = images or (paths[0] if is_dir(paths[0]) else paths[0].parent)
    if yaml and images:
        raise Mistake(f"--images {images} does not go with {yaml}, which says where its images are: leave it out, or give the "
                      "folder of the text files, without data.yaml in it, and --names FILE")  # fmt: skip
    if yaml:
        sources, samples, found, objects_of, notes = _yolo_data(yaml)
    elif texts:
        samples, found, objects_of, notes = _yolo_texts(paths[0], texts, root, names, background)
    elif re.search(r'"annotations"\s*:', read_text(jsons[0])):
        samples, found, objects_of, notes = _coco(jsons, root)
    else:
        samples, found, objects_of, notes = _labelme(jsons, root)

    names = names or [background, *found]
    names = [*dict.fromkeys(name for name in names if name not in (*IGNORED, BACKGROUND))]
    if background in IGNORED:
        outside = VOID
    else:
        names = names if background in names else [background, *names]
        outside = names.index(background)
    if len(names) < 2:
        faults = [sample.fault for sample in samples if sample.fault]
        raise Mistake(f"{paths[0]}: one class, {', '.join(names) or 'void'}, is none to tell from others"
                      + " (leave out --background void)" * (outside == VOID)
                      + "".join(f"; the first of {len(faults)} faults: {fault}" for fault in faults[:1]))  # fmt: skip
    ids = {name: k for k, name in enumerate(names)} | dict.fromkeys(IGNORED, VOID) | {BACKGROUND: outside}

    def read(label, size):
        stated, objects = objects_of(label)
        if stated not in (None, size):
            return np.broadcast_to(np.uint8(0), stated)  # the builder compares the sizes, and knows of EXIF
        drawn = []
        for where, name, draw_object in objects:
            if name not in ids:
                raise Mistake(f"{where}: {name!r} is no class{did_you_mean(name, names)}; there are {first_few(names, 20)}; "
                              "what is named void is ignored")  # fmt: skip
            try:
                drawn.append((ids[name], *draw_object(*size)))
            except Mistake as mistake:
                raise Mistake(f"{where}: {mistake}") from None
        if objects_of is not _labelme_objects:
            drawn.sort(key=lambda item: -item[-1].sum())
        ids_of_pixels = np.full(size, outside, np.uint8)
        for value, rows, columns, mask in drawn:
            ids_of_pixels[rows, columns][mask] = value
        return ids_of_pixels

    sources = sources if yaml else {root, *filter(is_dir, paths)}
    return own_plan(sources, samples, names, read, draw, default_palette(len(names)), notes)


def _annotation_files(paths):
    """(data.yaml or None, text files, JSON files): one of the three."""
    yaml, texts, jsons = None, [], []
    for path in paths:
        if is_dir(path):
            files = files_below(path)
            yaml = yaml or next((file for file in files if file.name == "data.yaml"), None)
        elif path.is_file():
            files = [path]
            yaml = yaml or (path if path.suffix in (".yaml", ".yml") else None)
        else:
            raise Mistake(f"{path}: no such file or folder")
        texts += [file for file in files if file.suffix.lower() == ".txt"]
        jsons += [file for file in files if file.suffix.lower() == ".json"]
    if not (yaml or texts or jsons):
        raise Mistake(f"{paths[0]}: no annotations: expected *.json of labelme or COCO, or data.yaml or *.txt of YOLO")
    if any(text.name == "classes.txt" for text in texts) and {file.name for file in jsons} == {"notes.json"}:
        jsons = []  # Label Studio puts it beside YOLO's texts
    return yaml, [] if jsons else texts, jsons


# ---- labelme: a JSON file for each image


def _labelme(files, images):
    pictures, find, by_name = _pictures(images, {file.parent for file in files}, mirrored=True)
    notes, samples, labels, ignored, with_json = [], [], Counter(), Counter(), set()
    with ThreadPoolExecutor() as pool:
        looked_at = [*zip(files, pool.map(_look_at_labelme, files))]
    for path, (image_path, found, left_out, fault) in looked_at:
        labels += found
        ignored += left_out
        stated = re.sub(r"[^/\\]*$", "", image_path or "")  # the folder
        same_name = (stated + path.with_suffix(end).name for kind in IMAGE_TYPES for end in (kind, kind.upper()))
        beside = (find(path.parent, name) for name in same_name)
        image = image_path and find(path.parent, image_path) or next(filter(None, beside), None)
        if image is None:
            name = image_path or path.with_suffix(".jpg").name
            fault = fault or f"{path}: its image {name} is not in {images}; say where it is with --images DIR"
            samples.append(Sample("", path, "", fault=fault))
        else:
            with_json.add(image)
            samples.append(_sample(images, image, path, fault))
    if len(with_json) < len(pictures):
        notes.append(f"{len(pictures) - len(with_json)} images without a JSON file are left out")
    notes += _by_name_notes(by_name)
    if ignored:
        notes.append(f"left out: {', '.join(f'{n} of shape {kind}' for kind, n in ignored.items())}, which have no area")
    samples, more_notes = _with_splits(samples)
    return samples, sorted(labels), _labelme_objects, notes + more_notes


def _look_at_labelme(path):
    """(imagePath or None, number of each label, number of shapes of each kind without an area, fault)"""
    try:
        content = _labelme_file(path)
        labels = Counter(name for _, name, _ in _labelme_objects(path, content)[1])
    except Mistake as error:
        return None, Counter(), Counter(), str(error)
    image_path = content.get("imagePath")
    kinds = Counter(kind for kind in map(_kind, content["shapes"]) if kind in WITHOUT_AREA)
    return image_path if isinstance(image_path, str) else None, labels, kinds, ""


def _labelme_file(path):
    content = _read_json(path)
    shapes = content.get("shapes")
    if not isinstance(shapes, list):
        raise Mistake(f"{path}: not a file of labelme (no list `shapes`), nor of COCO (no list `annotations`)")
    for number, shape in enumerate(shapes):
        if not isinstance(shape, dict) or shape.get("label") in (None, ""):
            raise Mistake(f"{path}: shapes[{number}] has no label")
    return content


WITHOUT_AREA = ("line", "linestrip", "point", "points")


def _kind(shape):
    return str(shape.get("shape_type") or "polygon")


def _labelme_objects(path, content=None):
    """(size or None, [(where, name, draw)]) of a file, in its order."""
    content = content or _labelme_file(path)
    objects = []
    for number, shape in enumerate(content["shapes"]):
        kind, name = _kind(shape), _one_line(shape["label"])
        if kind in WITHOUT_AREA:
            continue
        where = f"{path}: shapes[{number}] ({name})"
        if kind not in LABELME_SHAPES:
            raise Mistake(f"{where}: shape_type {shown(kind)}; expected one of {', '.join((*LABELME_SHAPES, *WITHOUT_AREA))}")
        objects.append((where, name, partial(LABELME_SHAPES[kind], shape)))
    return _stated_size(path, content.get("imageHeight"), content.get("imageWidth")), objects


def _labelme_polygon(shape, h, w):
    return fill(_points(shape.get("points"), h, w, at_least=3), h, w)


def _labelme_rectangle(shape, h, w):
    points = _points(shape.get("points"), h, w, at_least=2)
    if len(points) == 2:
        (x0, y0), (x1, y1) = points
        points = np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])
    return fill(points, h, w)


def _labelme_circle(shape, h, w):
    centre, rim = _points(shape.get("points"), h, w, at_least=2)[:2]
    angle = np.linspace(0, 2 * np.pi, 720, endpoint=False)
    return fill(centre + np.hypot(*(rim - centre)) * np.stack([np.cos(angle), np.sin(angle)], 1), h, w)


def _labelme_mask(shape, h, w):
    """A PNG in base64, and the corners of its place."""
    x, y = np.floor(_points(shape.get("points"), h, w, at_least=1)[0]).astype(int)
    try:
        data = np.frombuffer(base64.b64decode(shape["mask"], validate=True), np.uint8)
        mask = cv2.imdecode(data, cv2.IMREAD_GRAYSCALE) > 0
    except (KeyError, TypeError, ValueError, binascii.Error, cv2.error):
        raise Mistake("its `mask` is not a PNG in base64") from None
    if x < 0 or y < 0 or y + mask.shape[0] > h or x + mask.shape[1] > w:
        raise Mistake("its `mask` reaches out of the picture")
    return slice(y, y + mask.shape[0]), slice(x, x + mask.shape[1]), mask


LABELME_SHAPES = {
    "polygon": _labelme_polygon,
    "rectangle": _labelme_rectangle,
    "oriented_rectangle": _labelme_polygon,
    "circle": _labelme_circle,
    "mask": _labelme_mask,
}


# ---- COCO: a JSON file for all images


COCO_KEYS = {"images": ("id", "file_name"), "categories": ("id", "name"), "annotations": ("image_id", "category_id")}


def _coco(files, images):
    pictures, find, by_name = _pictures(images, {file.parent for file in files})
    notes, samples, names, listed, strays, shown_by_some = [], [], {}, set(), [], False
    for path in files:
        content = _read_json(path)
        for key, needed in COCO_KEYS.items():
            entries = content.get(key)
            sound = lambda entry, needed=needed: isinstance(entry, dict) and _has(entry, needed)
            wrong = [entry for entry in entries if not sound(entry)] if isinstance(entries, list) else [entries]
            if wrong:
                raise Mistake(f"{path}: not a file of COCO: expected `{key}`, a list with {' and '.join(needed)} in each entry"
                              f", found {shown(wrong[0])}")  # fmt: skip
            twice = [i for i, n in Counter(entry["id"] for entry in entries if "id" in needed).items() if n > 1]
            if twice:
                raise Mistake(f"{path}: {key}: the id {twice[0]} stands twice")
        category = {entry["id"]: _one_line(entry["name"]) for entry in sorted(content["categories"], key=_number_first)}
        names |= dict.fromkeys(category.values())
        objects, placed = {entry["id"]: [] for entry in content["images"]}, 0
        for number, entry in enumerate(content["annotations"]):
            where = f"{path}: annotation {entry.get('id', f'at place {number}')}"
            name = category.get(entry["category_id"], f"category {entry['category_id']}")
            if entry["image_id"] in objects:
                objects[entry["image_id"]].append((where, name, partial(_coco_object, entry.get("segmentation"))))
                placed += 1
            else:
                strays.append(where)
        unplaced = len(content["annotations"]) - placed
        if objects and unplaced and not placed:
            raise Mistake(f"{path}: none of the {unplaced} annotations has the `image_id` of an image of its file")
        one_of_many = len(objects) == 1 < len(files)  # a file an image: this one may show nothing
        if objects and not placed and not one_of_many:
            raise Mistake(f"{path}: no annotations in it, so every pixel would be background; give the file that has them")
        shown_by_some = shown_by_some or placed > 0
        words = re.split("[^a-z]+", f"{path.parent.name} {path.stem}".lower())
        split = next((SPLITS[word] for word in reversed(words) if word in SPLITS), "")
        for entry in content["images"]:
            where = f"{path}: image {entry['id']}"
            image = find(path.parent, entry["file_name"])
            if image is None:
                fault = f"{where}: {entry['file_name']} is not in {images}"
                samples.append(Sample(split, Path(str(entry["file_name"])), "", fault=fault))
                continue
            listed.add(image)
            size, fault = None, ""
            try:
                size = _stated_size(where, entry.get("height"), entry.get("width"))
            except Mistake as mistake:
                fault = str(mistake)
            samples.append(_sample(images, image, InFile(where, size, objects[entry["id"]]), fault, split))
    if samples and not shown_by_some:
        raise Mistake(f"{files[0]}: no annotations in it and {len(files) - 1} more, so every pixel would be background")
    if samples and not listed:
        raise Mistake(f"{files[0]}: none of its {len(samples)} images is in {images}, such as {samples[0].image}; say where "
                      "they are with --images DIR")  # fmt: skip
    notes += _by_name_notes(by_name)
    if strays:
        notes.append(f"{len(strays)} annotations belong to no image of their file: {first_few(strays, 1)}")
    if len(listed) < len(pictures):
        notes.append(f"{len(pictures) - len(listed)} images that no file lists are left out")
    samples, more_notes = _with_splits(samples)
    return samples, [*names], lambda label: (label.size, label.objects), notes + more_notes


def _coco_object(segmentation, h, w):
    if isinstance(segmentation, dict):
        mask = _run_lengths(segmentation, h, w)
        inside = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
        rows, columns = (slice(found[0], found[-1] + 1) if len(found) else slice(0, 0) for found in inside)
        return rows, columns, mask[rows, columns].copy()  # not all of the picture for each object
    if not segmentation or not isinstance(segmentation, list):
        raise Mistake("no segmentation, only a box" if not segmentation else f"segmentation {shown(segmentation)}")
    parts = []
    for numbers in segmentation:
        flat = isinstance(numbers, list) and len(numbers) % 2 == 0
        if not flat:
            raise Mistake("each part of a segmentation must be a list x, y, x, y, ...")
        parts.append(fill(_points([*zip(numbers[::2], numbers[1::2])], h, w, at_least=3), h, w))
    rows = slice(min(part[0].start for part in parts), max(part[0].stop for part in parts))
    columns = slice(min(part[1].start for part in parts), max(part[1].stop for part in parts))
    whole = np.zeros((rows.stop - rows.start, columns.stop - columns.start), bool)
    for r, c, mask in parts:
        whole[r.start - rows.start : r.stop - rows.start, c.start - columns.start : c.stop - columns.start] |= mask
    return rows, columns, whole


def _run_lengths(rle, h, w):
    """The mask, (h, w) bool, of runs of 0 and 1 in turn, column by column; as numbers, or as pycocotools writes them."""
    counts = rle.get("counts")
    if rle.get("size") != [h, w]:
        raise Mistake(f"run lengths of size {shown(rle.get('size'))}, but the image is [{h}, {w}]")
    try:
        counts = np.array(_uncompressed(counts) if isinstance(counts, str) else counts, np.int64)
        if counts.ndim == 1 and counts.min(initial=0) >= 0 and sum(counts.tolist()) == h * w:  # NumPy's sum overflows
            return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(w, h).T
    except (TypeError, ValueError, OverflowError):
        pass
    raise Mistake(f"the run lengths are not {h * w} pixels")


def _uncompressed(text):
    """The numbers of a text: 5 bits a character, lowest first, 32 for "goes on", signed; from the fourth number on only the
    difference to the second before it is written."""
    counts, value, shift = [], 0, 0
    for code in text.encode("ascii"):
        code -= 48
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:
            value -= 1 << shift if code & 16 else 0
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    return counts


# ---- YOLO: a text file for each image, `class x y x y ...` a line, shares of width and height


def _yolo_data(path):
    """What data.yaml describes: its folders, or lists of images, with `images` in the path, and the texts with `labels`."""
    content = parse_yaml(read_text(path), path)
    if not isinstance(content, dict) or not content.get("names") or not content.get("train"):
        raise Mistake(f"{path}: not YOLO's data.yaml: expected `train`, `val` and `names`")
    found = content["names"]
    if isinstance(found, dict):
        found = [found.get(str(k)) for k in range(len(found))]
    if not isinstance(found, list) or None in found:
        raise Mistake(f"{path}: names: expected a list, or numbers 0, 1, ... with a name each")
    if any(isinstance(name, bool) for name in found):
        raise Mistake(f"{path}: names: YAML takes one of them for true or false; write yes, no, on and off in quotes")
    found = [*map(_one_line, found)]
    sources = {path.parent}
    images = {split: _yolo_images(path, content, split, sources) for split in ("train", "val", "test") if content.get(split)}
    for split, same in (("test", "val"), ("test", "train"), ("val", "train")):  # of a set that nobody has split
        if split in images and images[split] == images.get(same):
            del images[split]
    root = Path(os.path.commonpath([image.parent for files in images.values() for image in files]))
    samples, without = [], 0
    for split, files in images.items():
        texts = [*map(_yolo_text_of, files)]
        labelled = split != "test" or any(text.is_file() for text in texts)
        for image, text in zip(files, texts):
            without += labelled and not text.is_file()
            samples.append(_sample(root, image, text if labelled else None, split=split))
            sources |= {image.parent, text.parent}
    notes = _yolo_notes(without, samples)
    return sources, _with_splits(samples)[0], found, partial(_yolo_objects, found), notes


def _yolo_text_of(image):
    parts = list(image.parts)
    if "images" in parts:
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
    text = Path(*parts).with_suffix(".txt")
    forms = (text.with_name(unicodedata.normalize(form, text.name)) for form in ("NFC", "NFD"))  # see `by_key`
    return next((path for path in (text, *forms) if os.path.isfile(path)), text)  # noqa: PTH113, the longer may be too long


def _yolo_images(path, content, split, sources):
    """The images of a split; `sources` receives the folders that they and their lists are in."""
    entries = content[split] if isinstance(content[split], list) else [content[split]]
    base = path.parent / str(content.get("path") or "")
    found = []
    for entry in map(str, entries):
        places = [base / entry, path.parent / entry, path.parent / re.sub(r"^(\.\./)+", "", entry)]  # some write ../ too many
        place = next((place for place in places if os.path.exists(place)), None)  # noqa: PTH110, Path.exists raises for long names
        if place is None:
            raise Mistake(f"{path}: {split}: there is no {base / entry}; correct the line, or take it out")
        sources.add(place.parent if place.is_file() else place)
        if place.is_file():
            found += [place.parent / line for line in read_lines(place)]
        else:
            found += own_files(place)[0]
    if not found:
        raise Mistake(f"{path}: {split}: no images in {', '.join(map(str, entries))}")
    return [Path(os.path.abspath(image)) for image in found]  # noqa: PTH100, resolve() would follow links


def _yolo_texts(root, texts, images, names, background):
    lists = [text for text in texts if text.name == "classes.txt"]
    if not is_dir(root) or not all(text.is_relative_to(root) for text in texts if text not in lists):
        raise Mistake(f"{root}: YOLO's text files are found by their path in one folder: give only the folder that all are in")
    if names is None and not lists:
        raise Mistake(f"{root}: the text files have numbers of classes: give their names, in order, with --names FILE, or give "
                      "data.yaml")  # fmt: skip
    if not lists and background in names and background not in IGNORED:
        raise Mistake(f"--names: its lines are the classes 0, 1, ... of the text files: has {background} a number there? If so,"
                      f" put the same lines into {root / 'classes.txt'}; if not, take it out")  # fmt: skip
    names = read_lines(lists[0]) if lists else names
    files, _ = own_files(images)
    if not files:
        raise Mistake(f"{images}: no images ({' '.join(IMAGE_TYPES)}) in it; say where they are with --images DIR")
    pictures, texts = by_key(images, files), by_key(root, [text for text in texts if text not in lists])
    samples = [_sample(images, image, texts.get(key, root / f"{key}.txt")) for key, image in pictures.items()]
    for key in texts.keys() - pictures.keys():
        samples.append(Sample("", texts[key], "", fault=f"{texts[key]}: there is no image {images / key}.*"))
    notes = _yolo_notes(len(pictures.keys() - texts.keys()), samples)
    samples, more_notes = _with_splits(samples)
    return samples, [*names], partial(_yolo_objects, names), notes + more_notes


def _yolo_notes(without, samples):
    labelled = [sample for sample in samples if sample.label]
    if without == len(labelled):
        image = labelled[0].image
        if not os.path.exists(image):  # noqa: PTH110, Path.exists raises for long names
            raise Mistake(f"no image has a text file, and there is no {image}: correct the list that names it")
        raise Mistake(f"no image has a text file: that of {image} would be {labelled[0].label}")
    return [f"{without} images without a text file have no objects"] if without else []


def _yolo_objects(names, path):
    objects = []
    if path.is_file():
        for number, line in enumerate(read_text(path).split("\n"), 1):
            if words := line.split():
                known = re.fullmatch("[0-9]{1,9}", words[0]) and int(words[0]) < len(names)
                name = names[int(words[0])] if known else f"class {words[0][:80]}"
                objects.append((f"{path}: line {number}", name, partial(_yolo_polygon, words[1:])))
    return None, objects


def _yolo_polygon(words, h, w):
    if len(words) == 4:
        raise Mistake("a box (centre, width, height), not a polygon")
    if len(words) % 2:
        raise Mistake(f"{len(words)} numbers after the class, expected pairs x y")
    try:
        shares = np.array(words, float).reshape(-1, 2)
    except ValueError:
        raise Mistake("expected `class x y x y ...`, all numbers") from None
    if np.abs(shares).max(initial=0) > 2:
        raise Mistake(f"coordinates of {shares.min():g} to {shares.max():g}: they are shares of width and height, 0 to 1")
    return fill(_points(shares * (w, h), h, w, at_least=3), h, w)


# ---- drawing


def fill(points, h, w):
    """(rows, columns, mask): the pixels of a picture of h x w whose centres lie in a polygon, by the even-odd rule.

    points: (N, 2) float64, x and y from the upper left corner. rows, columns: slices, mask: bool of their size.
    """
    x, y = points.T - 0.5  # so that centres are whole numbers
    (x0, x1), (y0, y1) = (np.clip(np.ceil([v.min(), v.max()]), 0, n).astype(int) for v, n in ((x, w), (y, h)))
    x_next, y_next = np.roll(x, -1), np.roll(y, -1)
    first, last = (np.clip(np.ceil(v), y0, y1).astype(int) for v in (np.minimum(y, y_next), np.maximum(y, y_next)))
    edge = np.repeat(np.arange(len(x)), last - first)  # one entry for each edge and row that it crosses
    row = np.arange(len(edge)) - np.repeat(np.cumsum(last - first) - last, last - first)
    crossing = x[edge] + (row - y[edge]) * (x_next - x)[edge] / (y_next - y)[edge]
    column = np.clip(np.ceil(crossing), x0, x1).astype(int)
    crossings = np.zeros((y1 - y0, x1 - x0 + 1), np.uint8)
    np.bitwise_xor.at(crossings, (row - y0, column - x0), 1)
    return slice(y0, y1), slice(x0, x1), np.bitwise_xor.accumulate(crossings, 1)[:, :-1].astype(bool)


def _points(values, h, w, at_least):
    """(N, 2) float64 of a list of pairs, checked."""
    try:
        points = np.array(values, float)
        if points.ndim != 2 or points.shape[1] != 2:
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise Mistake(f"its points are {shown(values)}, expected pairs of numbers") from None
    if len(points) < at_least:
        raise Mistake(f"{len(points)} points, expected {at_least} or more")
    if not np.isfinite(points).all():
        raise Mistake("a coordinate is not a finite number")
    size = np.array([w, h])
    low, high = points.min(0), points.max(0)
    if (low >= size).any() or (high <= 0).any() or (low < -size).any() or (high > 2 * size).any():
        box = " x ".join(f"{a:g}..{b:g}" for a, b in zip(low, high))
        raise Mistake(f"its points ({box}) lie outside the picture ({w} x {h} pixels)")
    return points


# ---- files


def _read_json(path):
    """The mapping in a JSON file."""
    try:
        content = json.loads(read_text(path))
    except (RecursionError, ValueError) as error:
        raise error if isinstance(error, Mistake) else Mistake(f"{path}: cannot be read as JSON ({error})") from None
    if not isinstance(content, dict):
        raise Mistake(f"{path}: not an annotation file: expected a mapping with `shapes` (labelme) or `annotations` (COCO)")
    return content


def _pictures(root, folders, mirrored=False):
    """(images below root, find(folder, name) -> image or None, the images found by name although another folder is stated).

    A name may hold a path from `folder`, that of its annotations, or from root. Data move, so the end of the path will do, or
    an image in `folder` or another folder called so. Where the name alone fits, the image may be another one: it must lie in
    root itself, or the path be absolute, as of another machine. A name without a path may mean an image anywhere, unless images
    lie beside annotations, in one of `folders`. mirrored: the annotations of an image lie in a folder called like its own.
    """
    files, _ = own_files(root)
    places = {os.path.realpath(file.parent) for file in files}
    beside_theirs = folders if any(os.path.realpath(folder) in places for folder in folders) else ()
    nfc = partial(unicodedata.normalize, "NFC")  # see `by_key`
    known, ends, by_name = {nfc(os.path.normpath(file)): file for file in files}, {}, set()
    for file in files:
        parts = (root.resolve().name, *file.relative_to(root).parts)
        for k in range(len(parts)):
            ends.setdefault(nfc("/".join(parts[k:])), []).append(file)

    def at(path):
        return known.get(nfc(os.path.normpath(path)))

    def by_end(parts):
        ending_so = (ends.get(nfc("/".join(parts[k:])), ()) for k in range(len(parts) - 1))
        return next((found[0] for found in ending_so if len(found) == 1), None)

    def find(folder, name):
        name = nfc(str(name).replace("\\", "/"))
        last = name.split("/")[-1]
        beside = folder / last
        same_folder = by_end(beside.parts) if mirrored and "/" not in name else None  # before one of this name in root itself
        if image := at(folder / name) or same_folder or at(root / name):
            return image
        if image := by_end(name.split("/")) or at(beside) or by_end(beside.parts):
            return image
        found = ends.get(last, ())
        elsewhere = "/" in name or folder in beside_theirs
        if len(found) != 1 or elsewhere and found[0].parent != root and not re.match("/|[A-Za-z]:", name):
            return None
        if elsewhere:
            by_name.add(found[0])
        return found[0]

    return files, find, by_name


def _by_name_notes(by_name):
    return [f"{len(by_name)} images found by their name alone; their files state another folder"] if by_name else []


def _sample(root, image, label, fault="", split=""):
    """split: that of the annotations' file; else the folder's."""
    key = image.relative_to(root).with_suffix("").as_posix()
    split = split or ("/" in key and SPLITS.get(key.split("/")[0].lower())) or ""
    return Sample(split, image, f"image/{key}{image.suffix}", label, label and f"label/{key}.png", fault)


def _with_splits(samples):
    """(the samples with those of their splits that are kept, notes)"""
    there = [sample for sample in samples if sample.image_to or sample.split]  # a COCO file may name an image that is missing
    splits, notes = keep_splits([sample.image for sample in there], [sample.split for sample in there])
    kept = iter(splits)
    return [replace(sample, split=next(kept) if sample.image_to or sample.split else "") for sample in samples], notes


def _stated_size(where, h, w):
    if h is None or w is None:
        return None
    if not all(type(side) is int and 0 < side < 2**31 for side in (h, w)):
        raise Mistake(f"{where}: height {shown(h)} and width {shown(w)}, expected pixels")
    return h, w


def _has(entry, keys):
    return all(isinstance(entry.get(key), int | str) for key in keys)


def _number_first(entry):
    """The key that sorts entries by their id, a number or a text."""
    return isinstance(entry["id"], str), entry["id"]


def _one_line(name):
    return " ".join(str(name).split()) or "unnamed"
