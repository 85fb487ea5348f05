"""A complete config for one's own data: CamVid's with the paths of the data, sizes that fit its images, and cross entropy."""

import math
import re

import numpy as np
import yaml

from model import check_config
from util.common import Mistake, write_aside
from util.config import ROOT, load_config

CONFIGS = ROOT / "config"
TEMPLATE = CONFIGS / "camvid/camvid_pspnet18.yaml"
LONGEST = 1024  # pixels: the long side that larger photographs are reduced to
CROP = 321  # pixels: the longest side of a crop
UPDATES = 400  # of the weights, that a run has at least
SCALES = {"scale_min": 0.75, "scale_max": 1.5}  # of base_size


def config_path(name):
    """Where the config of a data set NAME is; Mistake if no folder can have that name."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise Mistake(f"--config {name}: expected a name of letters, digits, - and _, which becomes config/NAME")
    return CONFIGS / name / f"{name}_pspnet18.yaml"


def write_config(name, folder, files, command, classes, train, sizes):
    """Write the config and return what it says of sizes, a text.

    folder: of the prepared data. files: beginning of the names of its lists of names and colours. command: that prepared it.
    train: number of training images. sizes: (H, W) of all images.
    """
    if train < 2:
        raise Mistake(f"--config {name}: {train} training image, and BatchNorm needs 2 in a batch: add images")
    values, text = _values(train, sizes)
    values |= {
        "data_root": folder,
        "train_list": f"{folder}/list/train.txt",
        "val_list": f"{folder}/list/val.txt",
        "test_list": f"{folder}/list/val.txt",
        "classes": classes,
        "save_path": f"exp/{name}/pspnet18/model",
        "names_path": f"{folder}/{files}_names.txt",
        "colors_path": f"{folder}/{files}_colors.txt",
    }
    head = (
        f"# PSPNet18 on {name}, from random weights, on a CPU. {text}\n#\n#   {command}\n#   sh tool/train.sh {name} pspnet18\n"
    )
    body = TEMPLATE.read_text(encoding="utf-8")
    body = body[body.index("DATA:") :]
    for key, value in values.items():
        value, comment = value if isinstance(value, tuple) else (value, None)
        old = re.search(rf"^  {key}:[^#\n]*(#[^\n]*)?$", body, re.M)
        scalar = yaml.safe_dump([value], default_flow_style=True, width=10**6, allow_unicode=True)[1:-2]
        comment = f"# {comment}" if comment else old[1]
        line = f"  {key}: {scalar}".ljust(30) + f" {comment}" if comment else f"  {key}: {scalar}"
        body = body[: old.start()] + line + body[old.end() :]
    with write_aside(config_path(name)) as aside:
        aside.write_text(f"{head}\n{body}", encoding="utf-8")
        load_config(aside, check=check_config)  # braces in a path, for example
    return text


def _values(train, sizes):
    """({key: value, or (value, comment)}, what is said of it) for that many training images and these (H, W)."""
    sizes = np.array(sizes)
    long, short = (float(np.median(side)) for side in (sizes.max(1), sizes.min(1)))
    portrait = np.mean(sizes[:, 0] > sizes[:, 1]) > 0.5
    base = min(round(long), LONGEST)
    ratio = base / long
    share = min(8 / 15, CROP / base)  # of a side that is in a crop
    sides = [base, short * ratio] if portrait else [short * ratio, base]
    crop = [min(_grid(max(side * share, 193), round), max(_grid(side, math.floor), 9)) for side in sides]
    window = [_grid(side, math.ceil) for side in sides]
    batch = min(8, train)
    epochs = max(8, math.ceil(UPDATES / (train // batch)))
    often = max(1, epochs // 10)
    values = {
        "train_h": crop[0],
        "train_w": crop[1],
        "test_h": (window[0], "window: the median image in one piece"),
        "test_w": window[1],
        "loss": ("ce", "cross entropy; dice: the overlap of each class"),
        "class_weights": ("sqrt", "rare classes count more: by the root of what would make all equal"),
        "batch_size": batch,
        "epochs": epochs,
        "save_freq": often,
        "eval_freq": often,
    }
    median = f"{short:g} x {long:g}" if portrait else f"{long:g} x {short:g}"
    if ratio == 1:
        values["base_size"] = base, "long side of the image at scale 1: that of the median image"
        values |= SCALES
        return values, f"The median image has {median} pixels."
    values["base_size"] = base, f"long side of the image at scale 1; the median image has {long:g}"
    for key, share in SCALES.items():
        values[key] = float(f"{share * ratio:.3g}"), f"random scale: {share:g} of base_size, as a share of the {long:g} pixels"
    return values, f"The median image, {median} pixels, is seen at {base} ({100 * ratio:.3g} %)."


def _grid(side, to_whole):
    """The size of the form 8n+1 next to a side: math.floor the one below it, math.ceil above it, round the nearest."""
    return 8 * to_whole((side - 1) / 8) + 1
