"""Folder layouts of data sets as they are distributed: each function reads one and returns the `Plan` of a prepared folder.

Nothing is written here, and no pixel is read. A file without partner or of an unfit kind stays in the plan as a sample with a
fault, so that `build` reports it.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from util.common import Mistake
from util.image import file_errors, pixel_counts, read_label, read_lines, read_text

VOID = 255
IMAGE_TYPES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")

# Of Cityscapes' 34 label ids those that are evaluated, id -> class, and the names of the others, which are void.
CITYSCAPES_IDS = {7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13,
                  27: 14, 28: 15, 31: 16, 32: 17, 33: 18}  # fmt: skip
CITYSCAPES_VOID = ("unlabeled", "ego vehicle", "rectification border", "out of roi", "static", "dynamic", "ground", "parking",
                   "rail track", "guard rail", "bridge", "tunnel", "polegroup", "caravan", "trailer")  # fmt: skip


@dataclass(frozen=True)
class Sample:
    """One image and its label; `*_to` are the files to make, relative to the output folder."""

    split: str  # "": not drawn yet
    image: Path
    image_to: str
    label: Any = None  # what `Plan.read` takes, its text names it in messages: mostly a path; None: a test image
    label_to: str | None = None
    fault: str = ""  # why it cannot be used


@dataclass(frozen=True)
class Plan:
    sources: tuple[Path, ...]  # folders that are never written to
    samples: list[Sample]
    lists: dict[str, tuple[str, ...]]  # file of a list, relative to the output folder: the splits in it
    names: tuple[str, ...]  # of the classes
    read: Callable  # (label, (H, W) of its image) -> (H, W) uint8 of classes and 255
    draw: tuple[float, int] | None = None  # share of the images without a split that become val, and the seed
    colors: np.ndarray | None = None  # (K, 3); set if names and colours are to be written too
    notes: tuple[str, ...] = ()


def camvid(source, names):
    """CamVid as the SegNet tutorial distributes it: train.txt, train/, trainannot/ and so on; 11 is void."""
    splits = ("train", "val", "test") if (source / "test.txt").exists() else ("train", "val")
    _need(source, "the SegNet layout of CamVid", *(f"{s}{end}" for s in splits for end in (".txt", "/", "annot/")))
    samples = []
    for split in splits:
        for number, line in enumerate(read_lines(source / f"{split}.txt"), 1):
            if len(line.split()) != 2:
                raise Mistake(f"{source / split}.txt: entry {number} is {line!r}, expected `image label`")
            # The lists hold absolute paths of another machine: only folder and name are used.
            image, label = (source.joinpath(*Path(entry).parts[-2:]) for entry in line.split())
            samples.append(Sample(split, image, f"image/{split}/{image.name}", label, f"label/{split}/{label.name}"))
    return Plan((source,), samples, list_each(splits), names, by_id({**numbered(range(len(names))), 11: VOID}))


def cityscapes(source, names):
    """Cityscapes: leftImg8bit/SPLIT/CITY/*_leftImg8bit.png and gtFine/SPLIT/CITY/*_gtFine_*.

    The label is the first that exists of labelIds.png, polygons.json, labelTrainIds.png. Test images get a list without labels.
    """
    _need(source, "Cityscapes, leftImg8bit and gtFine in one folder", "leftImg8bit/train/", "leftImg8bit/val/",
          "gtFine/train/", "gtFine/val/")  # fmt: skip
    endings = {
        "labelTrainIds.png": by_id({**numbered(range(len(names))), VOID: VOID}),
        "polygons.json": lambda path, _: _cityscapes_polygons(path, names),
        "labelIds.png": by_id({**dict.fromkeys((*range(34), VOID), VOID), **CITYSCAPES_IDS}),
    }

    def read(path, size):
        return endings[path.name.rsplit("_", 1)[-1]](path, size)

    samples = []
    for split in ("train", "val", "test"):
        images = {f"{path.parent.name}/{path.name.removesuffix('_leftImg8bit.png')}": path
                  for path in (source / "leftImg8bit" / split).glob("*/*_leftImg8bit.png")}  # fmt: skip
        labels = {}
        for ending in endings:  # the last one found stays
            for path in (source / "gtFine" / split).glob(f"*/*_gtFine_{ending}"):
                labels[f"{path.parent.name}/{path.name.removesuffix(f'_gtFine_{ending}')}"] = path
        image_to, label_to = f"leftImg8bit/{split}/{{}}_leftImg8bit.png", f"gtFine/{split}/{{}}_gtFine_labelTrainIds.png"
        samples += _pair(split, images, None if split == "test" else labels, image_to, label_to)
    lists = {"list/fine_train.txt": ("train",), "list/fine_val.txt": ("val",), "list/fine_trainval.txt": ("train", "val"),
             "list/fine_test.txt": ("test",), "fine_train.txt": ("train",), "fine_val.txt": ("val",)}  # fmt: skip
    return Plan((source,), samples, lists, names, read)


def ade20k(source, names):
    """ADE20K as in ADEChallengeData2016: images/SPLIT/*.jpg and annotations/SPLIT/*.png, 0 void, 1 the first class."""
    source = _inside(source, "images", "ADEChallengeData2016")
    splits = ("training", "validation")
    _need(source, "ADEChallengeData2016", *(f"{kind}/{split}/" for kind in ("images", "annotations") for split in splits))
    samples = []
    for split in splits:
        images, labels = (_files(source / kind / split) for kind in ("images", "annotations"))
        samples += _pair(split, images, labels, f"images/{split}/{{}}", f"annotations/{split}/{{}}.png")
    return Plan((source,), samples, list_each(splits), names, by_id({0: VOID, **numbered(range(1, len(names) + 1))}))


def voc2012(source, names):
    """PASCAL VOC 2012 as in VOCdevkit/VOC2012, with SegmentationClassAug beside SegmentationClass if it exists.

    train_aug is train, with the official labels, and what SegmentationClassAug has beyond train and val.
    """
    source = _inside(source, "JPEGImages", "VOC2012", "VOCdevkit/VOC2012")
    sets = "ImageSets/Segmentation"
    _need(source, "VOC2012", "JPEGImages/", "SegmentationClass/", f"{sets}/train.txt", f"{sets}/val.txt")
    stems = {split: read_lines(source / sets / f"{split}.txt") for split in ("train", "val")}
    official = {*stems["train"], *stems["val"]}
    stems["aug"] = sorted(path.stem for path in (source / "SegmentationClassAug").glob("*.png") if path.stem not in official)
    if (source / sets / "test.txt").exists():
        stems["test"] = read_lines(source / sets / "test.txt")
    samples = []
    for split, names_of_split in stems.items():
        for stem in names_of_split:
            image = f"JPEGImages/{stem}.jpg"
            label = None if split == "test" else f"SegmentationClass{'Aug' * (split == 'aug')}/{stem}.png"
            samples.append(Sample(split, source / image, image, label and source / label, label))
    lists, notes = list_each([split for split in stems if split != "aug"]), ()
    if stems["aug"]:
        lists["list/train_aug.txt"] = ("train", "aug")
    else:
        notes = (f"no train_aug.txt: there is no {source / 'SegmentationClassAug'} with labels beyond train and val",)
    return Plan((source,), samples, lists, names, by_id({**numbered(range(len(names))), VOID: VOID}), notes=notes)


def bdd(source, names):
    """BDD100K: images/10k/SPLIT/*.jpg with labels/sem_seg/masks/SPLIT/*.png, or seg/images with seg/labels/*_train_id.png."""
    for root in (source, source / "bdd100k"):
        for images, labels, ending in (("images/10k", "labels/sem_seg/masks", ""), ("images/10k", "seg/labels", "_train_id"),
                                       ("seg/images", "seg/labels", "_train_id")):  # fmt: skip
            if is_dir(root / images) and is_dir(root / labels):
                _need(root, "BDD100K", *(f"{kind}/{split}/" for kind in (images, labels) for split in ("train", "val")))
                samples, splits = [], ("train", "val", "test")
                for split in splits:
                    masks = {path.stem.removesuffix(ending): path for path in (root / labels / split).glob(f"*{ending}.png")}
                    pictures = _files(root / images / split, ending=".jpg")
                    samples += _pair(split, pictures, None if split == "test" else masks,
                                     f"image/{split}/{{}}", f"label/{split}/{{}}.png")  # fmt: skip
                return Plan((source,), samples, list_each(splits), names, by_id({**numbered(range(len(names))), VOID: VOID}))
    raise Mistake(f"{source}: not BDD100K's semantic segmentation: expected images/10k/ with labels/sem_seg/masks/, or "
                  "seg/images/ with seg/labels/ (*_train_id.png), here or in bdd100k/")  # fmt: skip


# ---- reading labels


def numbered(ids):
    return {value: k for k, value in enumerate(ids)}


def by_id(ids):
    """A reader of id masks for `Plan.read`. ids: value in the file -> class or 255; other values raise Mistake."""
    lookup = np.full(65536, -1, np.int16)
    lookup[list(ids)] = list(ids.values())

    def read(path, _):
        label = read_label(path)
        classes = lookup[label]
        if (classes < 0).any():
            found = pixel_counts(label[classes < 0])
            raise Mistake(f"{path}: ids out of range: {found}; expected {_ranges(sorted(ids))}")
        return classes.astype(np.uint8)

    return read


def _cityscapes_polygons(path, names):
    """Draw the polygons in their order, as the data set's own tools do; a group counts as its members' class."""
    text = read_text(path)
    try:
        content = json.loads(text)
        size = content["imgWidth"], content["imgHeight"]
        objects = [(str(thing["label"]), np.array(thing["polygon"], float).reshape(-1, 2))
                   for thing in content["objects"] if not thing.get("deleted")]  # fmt: skip
    except (RecursionError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise Mistake(f"{path}: not a polygon file of Cityscapes ({error!r})") from error
    if not all(isinstance(side, int) and 0 < side < 2**15 for side in size):
        raise Mistake(f"{path}: imgWidth and imgHeight are {size[0]} and {size[1]}, expected a size in pixels")
    if not all((np.abs(polygon) < 2**20).all() for _, polygon in objects):
        raise Mistake(f"{path}: a polygon with coordinates far outside the image")
    label = Image.new("L", size, VOID)
    draw = ImageDraw.Draw(label)
    ids = dict.fromkeys(CITYSCAPES_VOID, VOID) | numbered(names) | {"license plate": None}  # the car stays
    for name, polygon in objects:
        name = name if name in ids else name.removesuffix("group")
        if name not in ids:
            raise Mistake(f"{path}: {name!r} is no class of Cityscapes")
        if len(polygon) > 1 and ids[name] is not None:
            draw.polygon(polygon.ravel().tolist(), fill=ids[name])
    return np.array(label)


# ---- reading folders


def list_each(splits):
    """A list of each split, and one of the first two together, those to train and to validate on."""
    return {**{f"list/{split}.txt": (split,) for split in splits}, "list/trainval.txt": tuple(splits[:2])}


def _need(source, what, *parts):
    """Every part (a folder if it ends in /) must be there; the error names all that are not."""
    if not is_dir(source):
        raise Mistake(f"{source}: no such folder; expected {what}: {' '.join(parts)}")
    missing = [part for part in parts if not (Path.is_dir if part.endswith("/") else Path.is_file)(source / part)]
    if missing:
        raise Mistake(f"{source}: not {what}: {', '.join(missing)} missing; expected {' '.join(parts)}")


def is_dir(path):
    with file_errors(path):
        return path.is_dir()


def _inside(source, mark, *below):
    """The source itself if it holds the folder `mark`, else the first folder below it that does."""
    return next((root for root in (source, *(source / part for part in below)) if is_dir(root / mark)), source)


def _files(root, ending=""):
    """stem -> path of the images in a folder. Names that begin with a dot are the system's."""
    return {path.stem: path for path in sorted(root.glob(f"*{ending}"))
            if path.suffix.lower() in IMAGE_TYPES and not path.name.startswith(".")}  # fmt: skip


def _pair(split, images, labels, image_to, label_to):
    """Samples from key -> path of images and of labels (None: a test split); what has no partner is a fault.

    image_to, label_to: file names with {} for the key; the image keeps its suffix.
    """
    samples = []
    for key in sorted({*images, *(labels or {})}):
        image, label = images.get(key), labels.get(key) if labels else None
        if image is None:
            samples.append(Sample(split, label, "", fault=f"{label}: a label without an image (nothing named {key})"))
            continue
        target = image_to.format(key).removesuffix(image.suffix) + image.suffix
        fault = f"{image}: an image without a label (nothing named {key})" if label is None and labels is not None else ""
        samples.append(Sample(split, image, target, label, label and label_to.format(key), fault))
    return samples


def _ranges(values):
    """[0, 1, 2, 255] -> '0..2, 255'"""
    runs = np.split(values, np.flatnonzero(np.diff(values) > 1) + 1)
    return ", ".join(f"{run[0]}..{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
