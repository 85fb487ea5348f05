"""Class names, colours, and label maps as pictures: palettes, overlays, panels, image files and their names."""

import colorsys
import math
import os
import re
import struct
import zlib
from collections import Counter
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from util.common import Mistake, write_aside
from util.image import read_lines
from util.png import SIGNATURE, chunk

PANEL = 512  # pixels, the longest side of a picture in a panel
NAME = 40  # letters of a name in a legend, the longest
FONTS = ("DejaVuSans.ttf", "Arial Unicode.ttf", "NotoSansCJK-Regular.ttc")  # for what Pillow's own font lacks: all but ASCII


def class_names(cfg):
    """The names that the checkpoint carries or those in the file names_path, else `class 0`, `class 1`, ..."""
    if cfg.names:
        return list(cfg.names)
    return _load(cfg, "names_path", load_names) if cfg.names_path else [f"class {k}" for k in range(cfg.classes)]


def changed_names(before, names):
    """["class 1 was car and is bus"] of the ids whose class has another name; one that only counts (`class 1`) says nothing."""
    pairs = enumerate(zip(before, names))
    return [f"class {k} was {old} and is {new}" for k, (old, new) in pairs if old not in (new, f"class {k}", f"class{k}")]


def palette_of(cfg):
    """The colours that the checkpoint carries or those in the file colors_path, else the default ones: (K, 3) uint8."""
    if cfg.palette:
        return np.array(cfg.palette, np.uint8)
    return _load(cfg, "colors_path", load_colors) if cfg.colors_path else default_palette(cfg.classes)


def _load(cfg, key, load):
    try:
        return load(getattr(cfg, key), cfg.classes)
    except Mistake as error:
        raise Mistake(f"{cfg.path}: TEST.{key}: {error}") from None


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

    Its mode is P: the pixels are the ids, the palette is stored with them. It is RGB if palette or ids exceed 8 bits. A palette
    may also be one row of 3K numbers.
    """
    palette = np.reshape(palette, (-1, 3))
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
    for rows in row_strips(gray):
        picture[rows] = colors[np.where(gray[rows] < len(palette), gray[rows], np.uint16(len(palette)))]
    return picture


def overlay(image, gray, palette, alpha=0.5, out=None):
    """Image (H, W, 3), 0..255, mixed with the colours of gray (H, W): (H, W, 3) uint8. alpha: weight of the colours.

    out: the array for it, which may be the image itself if that is uint8 and no longer needed.
    """
    picture = np.empty((*gray.shape, 3), np.uint8) if out is None else out
    for rows in row_strips(gray):
        mixed = (1 - alpha) * np.float32(image[rows]) + alpha * np.float32(paint(gray[rows], palette))
        picture[rows] = np.uint8(np.rint(mixed))
    return picture


def row_strips(picture):
    """Slices of its rows: what is computed for a few of them takes little memory, however large the picture is."""
    return (slice(first, first + 256) for first in range(0, len(picture), 256))


def legend(names, colors, shape, max_rows=None):
    """A strip of names (strings) beside patches of their colours (K, 3), to stand below a picture: (H, W, 3) uint8 RGB.

    shape: (h, w) of the picture, which the letters scale with. The strip is as wide, or as one entry if that is wider.
    max_rows: what would need more is counted in the last entry.
    """
    h, w = shape
    size = max(12, round(math.sqrt(h * w) / 45))
    line, patch = round(1.5 * size), size
    own = ImageFont.load_default(size)
    entries = [(*_lettering(name, own), tuple(map(int, color))) for name, color in zip(names, colors)]
    cell = line + patch + max((math.ceil(font.getlength(text)) for text, font, _ in entries), default=0)
    columns = max(w // cell, 1)
    if max_rows and len(entries) > max_rows * columns:
        shown = max_rows * columns - 1
        entries = [*entries[:shown], (f"and {len(entries) - shown} more", own, None)]
    rows = math.ceil(len(entries) / columns)
    strip = Image.new("RGB", (max(w, cell), rows * line + line // 2), "white")
    draw = ImageDraw.Draw(strip)
    for i, (text, font, color) in enumerate(entries):
        x, y = i % columns * cell + line // 4, i // columns * line + line // 4 + (line - patch) // 2
        if color:
            draw.rectangle((x, y, x + patch - 1, y + patch - 1), fill=color, outline="gray")
        draw.text((x + patch + line // 4, y + patch / 2), text, "black", font, anchor="lm")
    return np.array(strip)


def row_names(names, height):
    """Names (K strings) below each other, flush right, in rows `height` pixels high: (K * height, W, 3) uint8 RGB."""
    own, gap = ImageFont.load_default(min(height, 18)), 8
    entries = [_lettering(name, own) for name in names]
    width = max(math.ceil(font.getlength(text)) for text, font in entries) + 2 * gap
    strip = Image.new("RGB", (width, len(entries) * height), "white")
    draw = ImageDraw.Draw(strip)
    for i, (text, font) in enumerate(entries):
        draw.text((width - gap, (i + 0.5) * height), text, "black", font, anchor="rm")
    return np.array(strip)


def below(picture, strip):
    """A strip below a picture, (H, W, 3) uint8 both, white beside the narrower one."""
    h, w = len(picture), max(picture.shape[1], strip.shape[1])
    both = np.full((h + len(strip), w, 3), 255, np.uint8)
    both[:h, : picture.shape[1]], both[h:, : strip.shape[1]] = picture, strip
    return both


def _lettering(name, own):
    """A name as one line of text, and a font that has all its letters; where none has, escapes and `own`, Pillow's font."""
    text = " ".join(name.split())
    text = text if len(text) <= NAME else f"{text[: NAME - 3]}..."
    if text.isascii():
        return text, own
    for file in FONTS:
        with suppress(OSError, UnicodeError):  # the machine has no such font; half a character, which no font has
            font = ImageFont.truetype(file, own.size)
            if not any(bytes(font.getmask(letter)) == bytes(font.getmask("\uffff")) for letter in text):
                return text, font
    return text.encode("ascii", "backslashreplace").decode(), own


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
        raise Mistake(f"{twice}: is in the list twice, and results are named after it; remove one, or where it is a label, set "
                      "name_by: image")  # fmt: skip
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


def save_png_strips(path, h, w, strips):
    """Write a PNG as `save_png` does, in the memory of a strip: Pillow copies the picture, to four bytes a pixel.

    strips: (n, w, 3) uint8 RGB from top to bottom, h rows in all; beside a narrower one it is white.
    """
    packed = zlib.compressobj(3)
    with write_aside(path) as aside, aside.open("wb") as file:
        file.write(SIGNATURE)
        file.writelines(chunk(b"IHDR", struct.pack(">IIBBBBB", w, h, 8, 2, 0, 0, 0)))  # 8 bits, RGB
        for strip in strips:
            strip = np.pad(strip, ((0, 0), (1, w - strip.shape[1]), (0, 0)), constant_values=255)
            strip[:, 0] = 0
            values = strip.reshape(len(strip), -1)
            lines = np.ones((len(strip), 1 + 3 * w), np.uint8)  # 1: what follows is the difference from the pixel to the left
            np.subtract(values[:, 3:], values[:, :-3], out=lines[:, 1:])
            file.writelines(chunk(b"IDAT", packed.compress(lines)))
        file.writelines(chunk(b"IDAT", packed.flush()) + chunk(b"IEND"))


def save_jpeg(path, image):
    """Write (H, W, 3) uint8 RGB as a JPEG, whole or not at all, with the folders it needs."""
    _save(path, image, "JPEG", quality=90)


def _save(path, image, form, **options):
    image = image if isinstance(image, Image.Image) else Image.fromarray(np.ascontiguousarray(image))
    with write_aside(path) as aside:
        image.save(aside, form, **options)
