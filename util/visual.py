"""Class names, colours, and label maps as pictures: palettes, overlays, panels, image files and their names."""

import colorsys
import os
import re
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from util.common import Mistake, write_aside
from util.image import read_lines

PANEL = 512  # pixels, the longest side of a picture in a panel


def class_names(cfg):
    """The names in the file names_path, or `class 0`, `class 1`, ... without one."""
    return load_names(cfg.names_path, cfg.classes) if cfg.names_path else [f"class {k}" for k in range(cfg.classes)]


def palette_of(cfg):
    """The colours in the file colors_path, or the default ones without one: (K, 3) uint8."""
    return load_colors(cfg.colors_path, cfg.classes) if cfg.colors_path else default_palette(cfg.classes)


def load_names(path, classes):
    """The class names of a text file, one a line; blank lines do not count. Mistake unless there are `classes`."""
    names = read_lines(path)
    if len(names) != classes:
        raise Mistake(f"{path}: expected {classes} names, one a line, found {len(names)}")
    return names


def load_colors(path, classes):
    """The palette of a text file, `R G B` a line, as (K, 3) uint8. Mistake unless there are `classes`."""
    lines = read_lines(path)
    if len(lines) != classes:
        raise Mistake(f"{path}: expected {classes} colours, `R G B` a line, found {len(lines)}")
    colors = [line_colour(line.split()) for line in lines]
    if None in colors:
        i = colors.index(None)
        raise Mistake(f"{path}: colour {i} is {lines[i][:80]!r}, expected three numbers 0..255")
    return np.array(colors, np.uint8)


def line_colour(words):
    """The words R G B as three numbers 0..255, or None if they are something else."""
    ok = len(words) == 3 and all(re.fullmatch("[0-9]{1,3}", word) and int(word) <= 255 for word in words)
    return tuple(int(word) for word in words) if ok else None


def default_palette(classes):
    """(K, 3) uint8 colours for data sets without a colour file; consecutive classes differ in hue."""
    golden_ratio = 0.618034  # spreads any number of hues evenly
    hsv = ((i * golden_ratio % 1, 0.75, (1.0, 0.8, 0.6)[i % 3]) for i in range(classes))
    return np.array([[round(255 * c) for c in colorsys.hsv_to_rgb(*color)] for color in hsv], np.uint8)


def colorize(gray, palette):
    """A Pillow image of class ids (H, W) in the colours (K, 3) uint8 of a palette; ids without one, such as 255, are black.

    Its mode is P: the pixels are the ids, the palette is stored with them. It is RGB if palette or ids exceed 8 bits.
    """
    if len(palette) > 256 or gray.max(initial=0) > 255:
        return Image.fromarray(paint(gray, palette))
    image = Image.fromarray(np.ascontiguousarray(gray, np.uint8))
    colors = np.zeros((256, 3), np.uint8)
    colors[: len(palette)] = palette
    image.putpalette(colors.tobytes())
    return image


def paint(gray, palette):
    """Class ids (H, W) in the colours (K, 3) of a palette as an RGB array, (H, W, 3) uint8."""
    colors = np.vstack([palette, np.zeros((1, 3), np.uint8)])
    picture = np.empty((*gray.shape, 3), np.uint8)
    for rows in _strips(gray):
        picture[rows] = colors[np.where(gray[rows] < len(palette), gray[rows], np.uint16(len(palette)))]
    return picture


def overlay(image, gray, palette, alpha=0.5, out=None):
    """Image (H, W, 3), 0..255, mixed with the colours of gray (H, W): (H, W, 3) uint8. alpha: weight of the colours.

    out: the array for it, which may be the image itself if that is uint8 and no longer needed.
    """
    picture = np.empty((*gray.shape, 3), np.uint8) if out is None else out
    for rows in _strips(gray):
        mixed = (1 - alpha) * np.float32(image[rows]) + alpha * np.float32(paint(gray[rows], palette))
        picture[rows] = np.uint8(np.rint(mixed))
    return picture


def _strips(picture):
    """Slices of its rows: what is computed for a few of them takes little memory, however large the picture is."""
    return (slice(first, first + 256) for first in range(0, len(picture), 256))


def panel(image, label, pred, palette, ignore_label=255):
    """Image, label and prediction side by side, (H', 3W', 3) uint8 RGB; ignored pixels are black in both.

    image: (H, W, 3) RGB, 0..255. label, pred: (H, W) class ids. Pictures with a side over PANEL pixels are reduced to it,
    the image by area, ids by the nearest pixel.
    """
    h, w = label.shape
    scale = min(PANEL / max(h, w), 1)
    rows, columns = (np.minimum((np.arange(max(round(n * scale), 1)) + 0.5) / scale, n - 1).astype(int) for n in (h, w))
    label, pred = (ids[rows][:, columns] for ids in (label, pred))
    image = cv2.resize(np.asarray(image, np.float32), label.shape[::-1], interpolation=cv2.INTER_AREA)
    pictures = [np.clip(np.rint(image), 0, 255).astype(np.uint8), paint(label, palette), paint(pred, palette)]
    for picture in pictures[1:]:
        picture[label == ignore_label] = 0
    return np.hstack(pictures)


def output_names(paths):
    """A name without suffix for the results of each image (or label), relative, unique and without `..`.

    It is the file name if that is different for all, else the path below their common folder, else that with the suffix.
    Raises Mistake if a path is listed twice.
    """
    paths = [Path(os.path.normpath(Path(path).absolute())) for path in paths]
    if len(set(paths)) < len(paths):
        twice = next(path for path, count in Counter(paths).items() if count > 1)
        raise Mistake(f"{twice}: this image is in the list twice; remove one")
    below = os.path.commonpath([path.parent for path in paths])
    relative = [path.relative_to(below) for path in paths]
    stems = [path.stem for path in paths]
    if len(set(stems)) < len(stems):
        stems = [path.as_posix().removesuffix(path.suffix) for path in relative]
    return stems if len(set(stems)) == len(stems) else [path.as_posix() for path in relative]


def save_png(path, image):
    """Write a PNG whole or not at all, with the folders it needs.

    image: Pillow image, or array: (H, W) uint8 or uint16 (a 16-bit gray PNG), or (H, W, 3) uint8 RGB.
    """
    _save(path, image, "PNG", compress_level=3)  # a third of the default 6's time, for a tenth to a fifth more bytes


def save_jpeg(path, image):
    """Write (H, W, 3) uint8 RGB as a JPEG, whole or not at all, with the folders it needs."""
    _save(path, image, "JPEG", quality=90)


def _save(path, image, form, **options):
    image = image if isinstance(image, Image.Image) else Image.fromarray(np.ascontiguousarray(image))
    with write_aside(path) as aside:
        image.save(aside, form, **options)
