"""Reading images and label maps from files as they are, and writing PNGs. Paths may hold any character."""

import io
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_GRAY, PNG_PALETTE = 0, 3  # colour types


def read_image(path):
    """The image as (H, W, 3) uint8 RGB; 16-bit files lose their low byte.

    The EXIF orientation is ignored: the label map was drawn on the pixels as they are stored. A file that cannot be decoded
    is a ValueError.
    """
    image = _decode(path, _read_bytes(path), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def read_label(path):
    """The label map as (H, W) uint8, or uint16 from a 16-bit file.

    Palette files give their indices, files of 1, 2 or 4 bits a pixel the numbers stored. Three equal channels are one; a
    mask that has colours, or is not made of integers, is a ValueError, and so is a file that cannot be decoded.
    """
    data = _read_bytes(path)
    depth, colour = data[24:26] if data.startswith(PNG_SIGNATURE) and len(data) > 25 else (None, None)
    if colour == PNG_PALETTE or colour is None and _pil_mode(data) == "P":
        try:
            return np.array(Image.open(io.BytesIO(data)))
        except (OSError, SyntaxError) as error:
            raise ValueError(f"{path}: cannot be decoded ({error})") from error
    label = _decode(path, data, cv2.IMREAD_UNCHANGED)
    if label.ndim == 3:
        if (label[..., 0] == label[..., 1]).all() and (label[..., 0] == label[..., 2]).all():
            label = np.ascontiguousarray(label[..., 0])
        else:
            raise ValueError(
                f"{path}: a colour mask of shape {label.shape}, expected one class id a pixel: "
                f"convert the colours to ids first and save them as a one-channel PNG"
            )
    if label.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"{path}: pixels are {label.dtype}, expected 8-bit or 16-bit class ids: save it as a PNG of ids")
    if colour == PNG_GRAY and depth < 8:
        label //= 255 // (2**depth - 1)  # decoders stretch 1, 2 and 4 bits to 0..255
    return label


def write_png(path, array):
    """Write (H, W, 3) RGB uint8, or (H, W) integer ids: as an 8-bit gray PNG if all fit, else as a 16-bit one."""
    if array.ndim == 3:
        array = cv2.cvtColor(array, cv2.COLOR_RGB2BGR)
    elif array.min() < 0 or array.max() > 65535:
        raise ValueError(f"{path}: ids {array.min()}..{array.max()} do not fit into a PNG (0..65535)")
    else:
        array = array.astype(np.uint8 if array.max() < 256 else np.uint16)
    Path(path).write_bytes(cv2.imencode(".png", array)[1])


def _read_bytes(path):
    data = Path(path).read_bytes()
    if not data:
        raise ValueError(f"{path}: the file is empty (0 bytes): copy or download it again")
    return data


def _decode(path, data, flags):
    try:
        array = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise ValueError(f"{path}: cannot be decoded ({error.err})") from error
    if array is None:
        raise ValueError(f"{path}: cannot be decoded: not an image, cut short, or of a kind that OpenCV does not read")
    return array


def _pil_mode(data):
    try:
        return Image.open(io.BytesIO(data)).mode  # reads the header only
    except OSError:
        return None
