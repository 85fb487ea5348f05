"""Reading image, label and text files. Faults of a file are a Mistake that names it; paths may hold any character."""

import io
import math
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps, TiffImagePlugin

from util.common import Mistake, first_few
from util.png import SIGNATURE, cut_png, png_layout

getattr(cv2.utils, "logging", cv2).setLogLevel(0)  # a damaged file is one message of this program; before 5 it is in cv2
Image.MAX_IMAGE_PIXELS = 2**30  # as OpenCV; Pillow's own limit guards servers from strangers, and a large mosaic is beyond it
PNG_GRAY, PNG_PALETTE = 0, 3  # colour types
TIFF_STARTS, ORIENTATION = (b"II", b"MM"), 274
NO_EXIF = ("xmp", "XML:com.adobe.xmp", "Raw profile type exif")  # where Pillow looks for an orientation, and OpenCV does not
FLIPS = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}  # of cv2.flip; EXIF orientations over 4 are transposed first


def read_image(path, lossless=False):
    """The image as (H, W, 3) uint8 RGB, turned by its EXIF orientation; without transparency and the low byte of 16 bits.

    lossless: refuse files of a lossy format, for masks with colours.
    """
    data = read_bytes(path)
    if lossless:
        _refuse_lossy(path, data)
    return _decode_rgb(path, data)


def open_image(path):
    """`read_image`, for a reader that needs a window only: of ordinary PNGs a `PngImage`, of other files the array."""
    data = read_bytes(path)
    layout = png_layout(data)
    return PngImage(path, data, layout) if layout else _decode_rgb(path, data)


class PngImage:
    """A PNG that is decoded when it is sliced: `image[y0:y1, x0:x1]` costs the rows up to y1 and the columns up to x1.

    shape (H, W, 3), uint8 RGB; `np.asarray` decodes all of it. Mistake where what a window needs is damaged.
    """

    ndim, dtype = 3, np.dtype(np.uint8)

    def __init__(self, path, data, layout):
        self.path, self.data, self.layout, self.shape = path, data, layout, (*layout[:2], 3)

    def __getitem__(self, window):
        rows, columns = (range(side)[part] for side, part in zip(self.shape, window, strict=False))
        cut = cut_png(self.data, self.layout, rows.stop, columns.stop)  # None: the decoder says what is wrong
        return _decode_rgb(self.path, cut or self.data)[rows.start : rows.stop, columns.start : columns.stop]

    def __array__(self, dtype=None, copy=None):
        return _decode_rgb(self.path, self.data).astype(dtype or self.dtype, copy=False)


def rgb_of(image):
    """(H, W, 3) RGB array of a picture in any form: a path, a Pillow image (as `read_image` reads its file), or such an array.

    An array is uint8 or float, 0..255. Mistake for any other, since a picture of 0..1 would be taken for a black one.
    """
    if isinstance(image, str | Path):
        return read_image(image)
    if isinstance(image, Image.Image):
        if 0 in image.size:
            raise Mistake(f"image: a Pillow image without pixels, {image.width} x {image.height}")
        return _rgb_of_pillow(image)
    found = f"{type(image).__name__} {getattr(image, 'dtype', '')} {list(getattr(image, 'shape', []))}"
    if not isinstance(image, np.ndarray) or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise Mistake(f"image: expected a path, a Pillow image or an RGB array (H, W, 3), found {found}")
    if image.dtype == np.uint8:
        return image
    low, high = (float(image.min()), float(image.max())) if image.dtype.kind in "fiub" else (math.nan, math.nan)
    if image.dtype.kind != "f" or not (low >= 0 and (1 < high <= 255 or high == 0)):
        raise Mistake(f"image: expected uint8, or float of 0..255, found {found} of {low:g}..{high:g}")
    return image.astype(np.float32, copy=False)  # torch takes neither other byte orders nor 80 bits


def _upright(image):
    """Turned by its EXIF tag, and not by XMP, where OpenCV, which turns the other files, knows no orientation."""
    image.load()  # a PNG may have it behind the pixels
    info = image.info
    try:
        image.info = {key: value for key, value in info.items() if key not in NO_EXIF}
        return ImageOps.exif_transpose(image)
    finally:
        image.info = info


def _rgb_of_pillow(image):
    name = getattr(image, "filename", None) or "image"
    with _decoding(name):  # Pillow reads the file now
        image = _upright(image)
        low, high = image.getextrema() if image.mode in ("I", "F") else (0, 0)
    # Mode I: 16 bits in 32, as older versions of Pillow read such PNGs. Those of a picture of 0..255 would all become black.
    if image.mode == "F" or image.mode == "I" and not (low >= 0 and (255 < high < 65536 or high == 0)):
        raise Mistake(
            f"{name}: a Pillow image of mode {image.mode} has no certain range of values, found {low:g}..{high:g}; "
            "give an RGB array (H, W, 3) of 0..255"
        )
    if image.mode.startswith("I"):  # Pillow's own conversion cuts 16 bits off at 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    with _decoding(name):
        return np.asarray(image.convert("RGB"))


def read_label(path):
    """The label map as (H, W) uint8, or uint16 from a 16-bit file, turned by its EXIF orientation.

    Palette files give their indices, PNGs of 1, 2 or 4 bits a pixel the numbers stored, other files of 1 bit 0 for black and 1
    for white; three equal channels are one.
    Refused are lossy formats, whatever the file's suffix, masks with colours, and pixels that are not 8- or 16-bit integers.
    """
    data = read_bytes(path)
    _refuse_lossy(path, data)
    if data[:2] in TIFF_STARTS and _header(data, "tag_v2", {}).get(ORIENTATION, 1) != 1:
        raise Mistake(f"{path}: a TIFF with an orientation tag, which decoders apply differently; save labels as PNG")
    depth, colour = data[24:26] if data.startswith(SIGNATURE) and len(data) > 25 else (None, None)
    mode = _header(data, "mode") if colour is None else None
    if colour == PNG_PALETTE or mode == "P":
        with _decoding(path):
            return np.array(_upright(Image.open(io.BytesIO(data))))
    label = _decode(path, data, cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH)
    if label.ndim == 3:
        if (label != label[..., :1]).any():
            raise Mistake(f"{path}: a colour mask of shape {label.shape}, expected one class id a pixel: "
                          "convert the colours to ids first and save them as a one-channel PNG")  # fmt: skip
        label = np.ascontiguousarray(label[..., 0])
    if label.dtype not in (np.uint8, np.uint16):
        raise Mistake(f"{path}: pixels are {label.dtype}, expected 8-bit or 16-bit class ids: save it as a PNG of ids")
    if mode == "1":  # TIFF, BMP: black or white
        depth, colour = 1, PNG_GRAY
    if colour == PNG_GRAY and depth < 8:
        label //= 255 // (2**depth - 1)  # decoders stretch 1, 2 and 4 bits to 0..255
    return label


def _refuse_lossy(path, data):
    """Raise Mistake if the content of a label file is of a lossy format, whatever its suffix."""
    starts = {b"\xff\xd8\xff": "JPEG", b"\0\0\0\x0cjP  ": "JPEG 2000", b"\xff\x4f\xff\x51": "JPEG 2000", b"\xff\x0a": "JPEG XL"}
    lossy = next((name for start, name in starts.items() if data.startswith(start)), None)
    if data[4:8] == b"ftyp":
        lossy = "AVIF or HEIF"
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP" and b"VP8 " in _chunks(data):
        lossy = "lossy WebP"
    elif data[:2] in TIFF_STARTS:
        compression = _header(data, "info", {}).get("compression", "")
        lossy = f"TIFF ({compression})" if "jpeg" in compression or compression == "webp" else None
    if lossy:
        raise Mistake(f"{path}: a {lossy} file: lossy formats change the ids; save labels as PNG")


def check_sizes(image_path, image, label_path, label):
    """Raise Mistake unless image (H, W, 3) and label (H, W) have one size."""
    if image.shape[:2] == label.shape:
        return
    stored = _decode(image_path, read_bytes(image_path), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    reason = ""
    if stored.shape[:2] == label.shape:
        reason = ("; the label fits the pixels as they are stored, but the image's EXIF orientation turns them: remove the tag "
                  "from the image, or turn the label")  # fmt: skip
    raise Mistake(f"{label_path}: {size_text(label)}, but its image {image_path} is {size_text(image)}{reason}")


def size_text(array):
    """`WIDTH x HEIGHT`, in the order in which image viewers show it."""
    return f"{array.shape[1]} x {array.shape[0]}"


def image_header(path):
    """(width, height, mode of Pillow) of an image file; no pixel is decoded."""
    with _decoding(path), Image.open(path) as image:
        return *image.size, image.mode


def read_bytes(path):
    """The content of a file that must not be empty."""
    with file_errors(path):
        data = Path(path).read_bytes()
    if not data:
        raise Mistake(f"{path}: the file is empty (0 bytes): copy or download it again")
    return data


def read_text(path):
    """The content of a UTF-8 text file, with or without byte order mark."""
    try:
        with file_errors(path):
            return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise Mistake(f"{path}: not UTF-8 text (byte {error.start}: {error.reason}); save it as UTF-8") from error


def read_lines(path):
    """The lines of a text file without the white space around them; blank lines are left out."""
    return [line.strip() for line in read_text(path).split("\n") if line.strip()]  # splitlines() splits within names too


def pixel_counts(values, show=str):
    """`7 (3 pixels), 9 (1 pixels)`: the distinct values of an array as text, the first five of them."""
    return first_few([f"{show(value)} ({count} pixels)" for value, count in zip(*np.unique(values, return_counts=True))])


def system_words(error):
    """What the operating system calls an OSError, in lower case."""
    return "no such file" if isinstance(error, FileNotFoundError) else (error.strerror or str(error)).lower()


@contextmanager
def file_errors(path, hint=""):
    """An OSError of the block becomes the Mistake `path: reason` and the hint."""
    try:
        yield
    except OSError as error:
        raise Mistake(f"{path}: {system_words(error)}{hint}") from error


@contextmanager
def _decoding(path):
    """Whatever a decoder raises in the block becomes a Mistake: Pillow has a dozen kinds of exceptions for damaged files."""
    try:
        yield
    except Exception as error:
        if getattr(error, "errno", None):
            raise Mistake(f"{path}: {system_words(error)}") from error
        raise Mistake(f"{path}: cannot be decoded ({getattr(error, 'err', error)})") from error  # err: the text of cv2.error


def _header(data, name, default=None):
    """An attribute of the Pillow image of a file's content, or the default if Pillow does not know it."""
    try:
        return getattr(Image.open(io.BytesIO(data)), name)
    except Exception:  # as in _decoding, which reports what is wrong
        return default


def _decode_rgb(path, data):
    return cv2.cvtColor(_decode(path, data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def _decode(path, data, flags):
    orientation = 1
    tags = _tiff_tags(data) if data[:2] in TIFF_STARTS else {}
    bands = tags.get(277, 1) - sum(kind in (1, 2) for kind in tags.get(338, ()))  # but for alpha
    if bands > 1 and tags.get(262) in (0, 1):  # OpenCV reads the first alone
        raise Mistake(f"{path}: a TIFF of {bands} bands that are not said to be red, green and blue; save three of them as RGB")
    eight = {8} if flags & cv2.IMREAD_ANYDEPTH else {8, 16}  # Pillow gives the upper 8 bits, which are not those of ids
    straight = tags.get(338) == (2,) and {*tags.get(258, ())} <= eight and _header(data, "mode") == "RGBA"
    if straight:  # OpenCV would multiply the other channels by it
        with _decoding(path):
            return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))[..., 2::-1].copy()
    if (data[:4] == b"RIFF" or data[4:8] == b"ftyp") and not flags & cv2.IMREAD_IGNORE_ORIENTATION:
        flags |= cv2.IMREAD_IGNORE_ORIENTATION  # OpenCV does not turn AVIF, and before 4.13 not WebP
        orientation = _orientation(data)
    if data[:2] in (b"P2", b"P3", b"PF", b"Pf"):  # OpenCV stretches numbers to 0..255, and leaves floats, which may be of 0..1
        raise Mistake(f"{path}: PGM or PPM with numbers as text, or PFM, whose range is not certain; save it as PNG")
    with _decoding(path):
        array = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if array is None:
        raise Mistake(f"{path}: cannot be decoded (not an image, cut short, or of a kind that OpenCV does not read)")
    if 2 in np.atleast_1d(tags.get(339, 1)) and array.dtype == np.uint8 and array.max() > 127:  # -1 became 255
        raise Mistake(f"{path}: a TIFF of numbers below 0, whose range is not certain; save it as PNG, or as TIFF of 0..65535")
    array = cv2.transpose(array) if orientation in (5, 6, 7, 8) else array
    return cv2.flip(array, FLIPS[orientation]) if orientation in FLIPS else array


def _tiff_tags(data):
    """The tags of a TIFF, also of one that Pillow does not open; {} if they cannot be read."""
    try:
        tags = TiffImagePlugin.ImageFileDirectory_v2(data[: 16 if 43 in data[2:4] else 8])
        file = io.BytesIO(data)
        file.seek(tags.next)
        tags.load(file)
        return dict(tags)
    except Exception:  # as in _header
        return {}


def _orientation(data):
    try:
        image = Image.open(io.BytesIO(data))
        image.info = {key: value for key, value in image.info.items() if key not in NO_EXIF}
        return image.getexif().get(ORIENTATION, 1)
    except Exception:  # as in image_header
        return 1


def _chunks(data):
    """The names of the chunks of a WebP file: name, size, content padded to an even number of bytes."""
    names, place = [], 12
    while place + 8 <= len(data):
        names.append(data[place : place + 4])
        place += 8 + (int.from_bytes(data[place + 4 : place + 8], "little") + 1) // 2 * 2
    return names
