"""Predictions for the eye, and their files: palettes, overlays, PNGs, and the lists of class names and colours."""

import colorsys
import io
import os
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image


def load_names(path, classes):
    """The class names of a text file, one a line; blank lines do not count. ValueError unless there are `classes`."""
    names = _lines(path)
    if len(names) != classes:
        raise ValueError(f"{path}: expected {classes} names, one a line, found {len(names)}")
    return names


def load_colors(path, classes):
    """The palette of a text file, `R G B` a line, as (K, 3) uint8. ValueError unless there are `classes`."""
    lines = _lines(path)
    if len(lines) != classes:
        raise ValueError(f"{path}: expected {classes} colours, `R G B` a line, found {len(lines)}")
    for i, line in enumerate(lines):
        numbers = line.split()
        if len(numbers) != 3 or not all(n.isdecimal() and int(n) <= 255 for n in numbers):
            raise ValueError(f"{path}: colour {i} is {line!r}, expected three numbers 0..255")
    return np.array([line.split() for line in lines], np.uint8)


def class_names(cfg):
    return load_names(cfg.names_path, cfg.classes) if cfg.names_path else [f"class {i}" for i in range(cfg.classes)]


def palette_of(cfg):
    return load_colors(cfg.colors_path, cfg.classes) if cfg.colors_path else default_palette(cfg.classes)


def default_palette(classes):
    """(K, 3) uint8 colours, neighbours in hue far apart, for data sets that come without."""
    golden_ratio = 0.618034  # spreads any number of hues evenly
    hsv = ((i * golden_ratio % 1, 0.75, (1.0, 0.8, 0.6)[i % 3]) for i in range(classes))
    return np.array([[round(255 * c) for c in colorsys.hsv_to_rgb(*color)] for color in hsv], np.uint8)


def colorize(gray, palette):
    """An image of class ids (H, W) in the colours (K, 3) uint8 of a palette; ids without one, such as 255, are black.

    Returns a Pillow image with the ids in it and the palette beside them (mode P), so reading its pixels gives ids; or
    in RGB where palette or ids do not fit into 8 bits.
    """
    if len(palette) > 256 or gray.max(initial=0) > 255:
        return Image.fromarray(paint(gray, palette))
    image = Image.fromarray(np.ascontiguousarray(gray, np.uint8))
    colors = np.zeros((256, 3), np.uint8)
    colors[: len(palette)] = palette
    image.putpalette(colors.tobytes())
    return image


def paint(gray, palette):
    """The same as an RGB array, (H, W, 3) uint8."""
    return np.vstack([palette, np.zeros((1, 3), np.uint8)])[np.minimum(gray, len(palette))]


def overlay(image, gray, palette, alpha=0.5):
    """The image (H, W, 3), 0..255, under the colours of gray (H, W): (H, W, 3) uint8. alpha: weight of the colours."""
    return np.uint8(np.rint((1 - alpha) * np.float32(image) + alpha * np.float32(paint(gray, palette))))


def panel(image, label, pred, palette, ignore_label=255):
    """Image, label and prediction side by side, (H, 3W, 3) uint8 RGB; ignored pixels are black in both.

    image: (H, W, 3) RGB, 0..255. label, pred: (H, W) class ids.
    """
    ignored = label == ignore_label
    columns = [np.clip(np.rint(image), 0, 255).astype(np.uint8), paint(label, palette), paint(pred, palette)]
    for column in columns[1:]:
        column[ignored] = 0
    return np.hstack(columns)


def output_names(paths):
    """A name without suffix for the results of each image (or label): its file name if that tells all of them apart, else
    its path below their common folder, else that with the suffix. ValueError if a path stands twice in the list."""
    paths = [Path(p).absolute() for p in paths]
    if len(set(paths)) < len(paths):
        twice = next(p for p, n in Counter(paths).items() if n > 1)
        raise ValueError(f"{twice}: this image stands in the list twice; remove one")
    names = [p.stem for p in paths]
    if len(set(names)) < len(names):
        below = os.path.commonpath([p.parent for p in paths])
        paths = [p.relative_to(below) for p in paths]
        names = [p.with_suffix("").as_posix() for p in paths]
    return names if len(set(names)) == len(names) else [p.as_posix() for p in paths]


def save_png(path, image):
    """Write a PNG whole or not at all, with the folders it needs.

    image: Pillow image, or array: (H, W) uint8 or uint16 (a 16-bit gray PNG), or (H, W, 3) uint8 RGB.
    """
    _save(path, image, "PNG", compress_level=3)  # a third of the default 6's time, for a tenth to a fifth more bytes


def save_jpeg(path, image):
    """The same for (H, W, 3) uint8 RGB as a JPEG."""
    _save(path, image, "JPEG", quality=90)


def _save(path, image, form, **options):
    path = Path(path)
    image = image if isinstance(image, Image.Image) else Image.fromarray(np.ascontiguousarray(image))
    content = io.BytesIO()
    image.save(content, form, **options)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(content.getvalue())
    temporary.replace(path)


def _lines(path):
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file")
    return [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
