# ruff: noqa: F811  (`root` is a fixture)
"""Windows of PNG files: equal to the whole file's pixels, read no further than they need, and damage is not overlooked."""

import random
import struct
import subprocess
import sys
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image
from test_dataset import AUGMENT, picture, root, save, with_orientation  # noqa: F401

from util import image as I
from util import png
from util import transform as T
from util.common import Mistake
from util.config import ROOT
from util.dataset import SemData
from util.image import PngImage, open_image, read_image

INFLATERS = {"zlib": (zlib.decompressobj, zlib.error)}
try:
    from isal import isal_zlib

    INFLATERS["isal"] = isal_zlib.decompressobj, isal_zlib.error
except ImportError:
    pass


def photograph(h=60, w=81):
    """Noise on a slope: every kind of row that encoders write."""
    slope = np.add.outer(np.arange(h) * 2, np.arange(w))[..., None] + [0, 40, 90]
    return ((slope + np.random.default_rng(0).integers(0, 9, (h, w, 3))) % 256).astype(np.uint8)


KINDS = {
    "rgb": lambda image: image,
    "gray": lambda image: image[..., 0],
    "alpha": lambda image: np.dstack([image, image[..., 1]]),
    "deep": lambda image: image.astype(np.uint16) * 257 + 77,
    "deep gray": lambda image: image[..., 0].astype(np.uint16) * 257 + 77,
}


@pytest.mark.parametrize("inflater", INFLATERS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strategy", [cv2.IMWRITE_PNG_STRATEGY_DEFAULT, cv2.IMWRITE_PNG_STRATEGY_FIXED])
def test_any_window_is_that_of_the_whole_image(tmp_path, monkeypatch, inflater, kind, strategy):
    monkeypatch.setattr(png, "decompressobj", INFLATERS[inflater][0])
    monkeypatch.setattr(png, "error", INFLATERS[inflater][1])
    monkeypatch.setattr(png, "PIECE", 97)
    cv2.imwrite(str(tmp_path / "a.png"), KINDS[kind](photograph()), [cv2.IMWRITE_PNG_STRATEGY, strategy])
    whole, image, draw = read_image(tmp_path / "a.png"), open_image(tmp_path / "a.png"), random.Random(0)
    assert isinstance(image, PngImage) and image.shape == whole.shape and image.dtype == whole.dtype
    np.testing.assert_array_equal(np.asarray(image), whole)
    np.testing.assert_array_equal(image[:, :], whole)
    for _ in range(20):
        y, x = draw.randrange(60), draw.randrange(81)
        window = slice(y, draw.randint(y + 1, 60)), slice(x, draw.randint(x + 1, 81))
        np.testing.assert_array_equal(image[window], whole[window])


@pytest.mark.parametrize("write", [
    lambda path, image: Image.fromarray(image).quantize(16).save(path),
    lambda path, image: with_orientation(path, image, 6),
    lambda path, image: Image.fromarray(image).save(path, transparency=tuple(image[0, 0].tolist())),
    lambda path, image: Image.fromarray(image).save(path, save_all=True, append_images=[Image.fromarray(255 - image)]),
    lambda path, image: Image.fromarray(image[..., 0] > 90).save(path),
    lambda path, image: Image.fromarray(image).save(path, "JPEG"),
    lambda path, image: Image.fromarray(image).save(path, "WEBP", lossless=True),
])  # fmt: skip
def test_files_of_other_kinds_are_decoded_whole(tmp_path, write):
    write(tmp_path / "a.png", photograph())
    image = open_image(tmp_path / "a.png")
    assert isinstance(image, np.ndarray)
    np.testing.assert_array_equal(image, read_image(tmp_path / "a.png"))


@pytest.mark.parametrize("interlaced", [0, 1])
def test_an_interlaced_file_is_decoded_whole(interlaced):
    header = png.chunk(b"IHDR", struct.pack(">IIBBBBB", 7, 7, 8, 2, 0, 0, interlaced))
    assert (png.png_layout(png.SIGNATURE + b"".join(header)) is None) == interlaced


def test_no_more_is_inflated_than_the_window_needs(tmp_path, monkeypatch):
    save(tmp_path / "a.png", picture(0, 400, 500)[0])
    read, decoded, inflated, decode = [], [], png._inflated, I._decode

    def watched(view, spans):
        for piece in inflated(view, spans):
            read.append(len(piece))
            yield piece

    def watch(path, data, flags):
        decoded.append(decode(path, data, flags))
        return decoded[-1]

    monkeypatch.setattr(png, "_inflated", watched)
    monkeypatch.setattr(I, "_decode", watch)
    assert open_image(tmp_path / "a.png")[30:100, 50:90].shape == (70, 40, 3)
    assert 100 * 1501 <= sum(read) < 100 * 1501 + 3 * png.PIECE and decoded[0].shape == (100, 90, 3)


@pytest.mark.parametrize("inflater", INFLATERS)
def test_a_wrong_byte_is_refused_or_lies_where_the_window_does_not_need_it(tmp_path, monkeypatch, inflater):
    monkeypatch.setattr(png, "decompressobj", INFLATERS[inflater][0])
    monkeypatch.setattr(png, "error", INFLATERS[inflater][1])
    path, image, draw, outcomes = tmp_path / "a.png", photograph(), random.Random(0), {True: 0, False: 0}
    cv2.imwrite(str(path), image[..., ::-1])
    sound = path.read_bytes()
    for _ in range(300):
        data = bytearray(sound)
        place = draw.randrange(len(data))
        if draw.random() < 0.7:
            data[place] ^= 1 << draw.randrange(8)
        else:
            del data[place : place + draw.choice((1, 4, len(data)))]
        path.write_bytes(data)
        try:
            np.testing.assert_array_equal(open_image(path)[10:30, 20:40], image[10:30, 20:40])
            outcomes[True] += 1
        except Mistake as mistake:
            assert str(mistake).startswith(f"{path}: ")
            outcomes[False] += 1
    assert all(outcomes.values())


@pytest.mark.parametrize("seed", range(20))
def test_samples_are_those_of_the_decoded_image(root, monkeypatch, seed):
    image, label = picture(0, 90, 120)
    save(root / "image/0.png", image)
    save(root / "label/0.png", label)
    data = SemData("train", root, root / "train.txt", T.Compose(AUGMENT.ops, lazy=True), classes=5)
    opened = data[seed, 0]
    monkeypatch.setattr("util.dataset.open_image", read_image)
    for got, expected in zip(opened, data[seed, 0]):
        np.testing.assert_array_equal(got, expected)


def test_transforms_that_need_the_whole_image_get_it(root):
    def invert(image, label, rng):
        return 255 - image, label

    ops = [T.RandScale([0.5, 2]), invert, T.RandRotate([-10, 10], T.MEAN), T.Crop(20, "rand", T.MEAN)]
    data = SemData("train", root, root / "train.txt", T.Compose(ops, lazy=True))
    expected = T.Compose(ops, lazy=True)(*picture(3), random.Random("0,5,3"))
    np.testing.assert_array_equal(data[5, 3][0], expected[0])


def test_the_optional_package_may_be_missing():
    code = "import sys; sys.modules['isal'] = None; from util import png; import zlib; assert png.error is zlib.error"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
