import errno
import os
import random
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps, TiffImagePlugin, features
from PIL.PngImagePlugin import PngInfo

from util import transform as T
from util.common import Mistake
from util.dataset import EpochSampler, SemData, read_list, sample_rng, worker_init
from util.image import image_header, read_image, read_label, rgb_of
from util.loader import check_data
from util.visual import save_png


def picture(seed=0, h=24, w=32, classes=5):
    draw = np.random.default_rng(seed)
    return draw.integers(0, 256, (h, w, 3), np.uint8), draw.integers(0, classes, (h, w)).astype(np.uint8)


def save(path, array):
    save_png(path, array)
    return path


@pytest.fixture
def root(tmp_path):
    """A data_root of six images with labels and its list."""
    lines = []
    for i in range(6):
        image, label = picture(i)
        save(tmp_path / f"image/{i}.png", image)
        save(tmp_path / f"label/{i}.png", label)
        lines.append(f"image/{i}.png label/{i}.png")
    (tmp_path / "train.txt").write_text("\n".join(lines) + "\n")
    return tmp_path


def list_of(root, *lines):
    (root / "list.txt").write_text("\n".join(lines), encoding="utf-8")
    return root / "list.txt"


# ---------------------------------------------------------------- lists


def test_a_list_gives_paths_under_data_root(root):
    pairs = read_list(root / "train.txt", root, "train")
    assert len(pairs) == 6
    assert pairs[1] == (str(root / "image/1.png"), str(root / "label/1.png"))


def test_blank_lines_comments_windows_line_ends_and_a_byte_order_mark_are_skipped(root):
    path = list_of(
        root, "\ufeff# a comment", "", "   ", "image/0.png   label/0.png  \r", "  # another", "image/1.png label/1.png"
    )
    assert len(read_list(path, root, "val")) == 2


@pytest.mark.parametrize("gap", [" ", "\t", "  ", " \t "])
def test_paths_with_spaces_are_split_where_the_files_are(root, gap):
    image, label = picture()
    save(root / "my images/a b.png", image)
    save(root / "my labels/a b .png", label)
    path = list_of(root, f"my images/a b.png{gap}my labels/a b .png")
    assert read_list(path, root, "train") == [(str(root / "my images/a b.png"), str(root / "my labels/a b .png"))]
    assert read_list(path, root, "test") == [(str(root / "my images/a b.png"), None)]


def test_the_test_split_needs_no_label_and_ignores_one(root):
    save(root / "my images/a b.png", picture()[0])
    path = list_of(root, "image/0.png", "image/1.png label/none.png", "my images/a b.png", "image/2.png\tlabel/none.png")
    names = ["image/0.png", "image/1.png", "my images/a b.png", "image/2.png"]
    assert read_list(path, root, "test") == [(str(root / name), None) for name in names]


def test_a_missing_list_is_named(root):
    with pytest.raises(Mistake, match=r"none.txt: no such list file \(split train\)"):
        read_list(root / "none.txt", root, "train")
    with pytest.raises(Mistake, match=r"None: no such list file"):
        SemData("train", str(root), None)


def test_an_empty_list_is_an_error(root):
    with pytest.raises(Mistake, match=r"list.txt: the list is empty \(split val\)"):
        read_list(list_of(root, "# nothing", ""), root, "val")


def test_missing_files_are_counted_and_the_first_are_shown_with_their_lines(root):
    path = list_of(root, "image/0.png label/0.png", *(f"image/{i}.png label/{i}.png" for i in range(4, 14)))
    with pytest.raises(Mistake) as error:
        read_list(path, root, "train")
    text = str(error.value)
    assert f"{path}: 16 of the files it names do not exist under data_root = {root}" in text
    assert f"line 4: {root / 'image/6.png'}" in text and "image/9.png" not in text


def test_a_line_without_label_is_an_error_in_train_and_val(root):
    path = list_of(root, "image/0.png label/0.png", "image/1.png")
    for split in ("train", "val"):
        with pytest.raises(ValueError, match=rf"list.txt: 1 lines have no label, split {split} .*\n  line 2: image/1.png"):
            read_list(path, root, split)


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_list_that_is_not_utf_8_is_named(root, split):
    (root / "list.txt").write_bytes("image/0.png label/é.png".encode("latin-1"))
    with pytest.raises(Mistake, match=r"list.txt: not UTF-8 text \(byte 18: "):
        read_list(root / "list.txt", root, split)


@pytest.mark.parametrize("split", ["train", "val", "test"])
@pytest.mark.parametrize("entry, reason", [
    ("ima\0ge.png", "a NUL character in the path"), ("image", "a folder"), ("loop.png", "too many levels of symbolic links"),
    ("x" * 300 + ".png", "file name too long"), ("image/0.png/x", "not a directory"), (".", "a folder"),
    ("/dev/zero", "not a regular file"), ("pipe", "not a regular file"),
])  # fmt: skip
def test_an_entry_that_is_no_file_is_named_with_the_reason(root, split, entry, reason):
    (root / "loop.png").symlink_to(root / "loop.png")
    os.mkfifo(root / "pipe")
    for line in [entry] if split == "test" else [f"{entry} label/0.png", f"{entry}\tlabel/0.png"]:
        with pytest.raises(Mistake, match=rf"list.txt: . of the files .* do not exist(.|\n)*\({reason}"):
            read_list(list_of(root, line), root, split)


def test_a_link_to_a_file_that_is_gone_is_named_with_its_target(root):
    (root / "image/0.png").rename(root / "image/old.png")
    (root / "image/0.png").symlink_to(root / "image/moved.png")
    with pytest.raises(Mistake, match=rf"image/0.png \(a link to {root}/image/moved.png, which is gone: prepare"):
        read_list(list_of(root, "image/0.png label/0.png"), root, "train")


def test_names_with_rare_line_breaks_are_one_path(root):
    name = "a\u2028b\x0bc\x85d.png"
    save(root / name, picture()[0])
    assert read_list(list_of(root, f"{name} label/0.png"), root, "train") == [(str(root / name), str(root / "label/0.png"))]


def test_a_tab_without_a_label_behind_it_is_a_line_without_label(root):
    with pytest.raises(Mistake, match="1 lines have no label"):
        read_list(list_of(root, "image/0.png\t#", "image/1.png\t ".replace("\t ", " \t")), root, "train")


def test_an_unknown_split_is_an_error(root):
    with pytest.raises(ValueError, match=r"split = 'training': expected 'train', 'val' or 'test'"):
        read_list(root / "train.txt", root, "training")


# ---------------------------------------------------------------- images and labels


def gray_png(path, ids, depth):
    """A gray PNG of 1, 2, 4 or 8 bits a pixel, by hand."""
    h, w = ids.shape
    bits = (ids[..., None] >> np.arange(depth)[::-1] & 1).reshape(h, -1).astype(np.uint8)
    rows = b"".join(b"\0" + row.tobytes() for row in np.packbits(bits, axis=1))
    chunks = (b"IHDR", struct.pack(">IIBBBBB", w, h, depth, 0, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")
    data = b"".join(struct.pack(">I", len(x)) + t + x + struct.pack(">I", zlib.crc32(t + x)) for t, x in chunks)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)


def test_images_are_read_as_rgb_whatever_the_path_is_called(tmp_path):
    image, _ = picture()
    path = tmp_path / "Straße 東京.png"
    Image.fromarray(image).save(path)
    np.testing.assert_array_equal(read_image(path), image)


def with_orientation(path, array, number, **options):
    """Write pixels as they are, with the EXIF tag that a viewer turns them by."""
    exif = Image.Exif()
    exif[0x112] = number
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    image.save(path, exif=exif, **options)
    return path


@pytest.mark.parametrize("number", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])
def test_images_and_labels_are_turned_by_their_exif_orientation(tmp_path, suffix, number):
    image, label = picture()
    options = {"lossless": True} if suffix == ".webp" else {}
    upright = ImageOps.exif_transpose(Image.open(with_orientation(tmp_path / f"a{suffix}", image, number, **options)))
    np.testing.assert_array_equal(read_image(tmp_path / f"a{suffix}"), upright)
    gray = with_orientation(tmp_path / f"b{suffix}", np.repeat(label[..., None], 3, 2), number, **options)
    if suffix == ".tif" and number > 1:
        with pytest.raises(Mistake, match="b.tif: a TIFF with an orientation tag.*save labels as PNG"):
            read_label(gray)
        return
    np.testing.assert_array_equal(read_label(gray), np.asarray(ImageOps.exif_transpose(Image.open(gray)))[..., 0])
    for array in (label, Image.fromarray(label).convert("P")) if suffix == ".png" else ():
        path = with_orientation(tmp_path / f"c{suffix}", array, number)
        np.testing.assert_array_equal(read_label(path), ImageOps.exif_transpose(Image.open(path)))


@pytest.mark.parametrize("number", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".avif"])
def test_a_photograph_on_its_side_is_read_upright(tmp_path, suffix, number):
    if suffix == ".avif" and not features.check("avif"):
        pytest.skip("this Pillow writes no AVIF")
    image = np.zeros((24, 40, 3), np.uint8)
    image[:8, :16] = 255  # one corner
    path = with_orientation(tmp_path / f"a{suffix}", image, number, quality=95)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(path)))
    assert read_image(path).shape == upright.shape and ((read_image(path) > 127) == (upright > 127)).all()


@pytest.mark.parametrize("cache", [None, "cache"])
def test_a_label_that_fits_only_the_stored_pixels_is_refused_with_the_reason(root, cache):
    image, label = picture(0)
    with_orientation(root / "image/0.png", image, 6)
    save(root / "label/0.png", label.T)  # upright, as a viewer shows the image
    folder = cache and root / cache
    np.testing.assert_array_equal(SemData("train", root, root / "train.txt", cache=folder)[0][0], np.rot90(image, -1))
    save(root / "label/0.png", label)
    with pytest.raises(Mistake, match=r"label/0.png: 32 x 24, but its image .*0.png is 24 x 32; the label fits .* EXIF"):
        SemData("train", root, root / "train.txt", cache=folder)[0]


KINDS = {
    "gray.png": {}, "palette.png": {}, "rgb.png": {}, "rgb.jpg": {}, "gray.tif": {}, "palette.tif": {"compression": "tiff_lzw"},
    "rgb.webp": {"lossless": True}, "palette.bmp": {}, "palette.gif": {}, "gray.ppm": {},
}  # fmt: skip


XMP = b'<x xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/>'


@pytest.mark.parametrize("kind", ["XMP", "raw profile"])
def test_a_palette_mask_is_turned_by_what_turns_the_other_kinds(tmp_path, kind):
    """OpenCV, which reads these, knows the EXIF tag alone; Pillow knows XMP and ImageMagick's profiles too."""
    ids, info, exif = np.arange(6, dtype=np.uint8).reshape(2, 3), PngInfo(), Image.Exif()
    exif[0x112] = 6
    if kind == "XMP":
        info.add(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP, after_idat=True)
    else:
        info.add_text("Raw profile type exif", f"\nexif\n{len(exif.tobytes()):8}\n{exif.tobytes().hex()}\n")
    for mode in "PL":
        mask = Image.fromarray(ids)
        if mode == "P":
            mask.putpalette([*range(18)])
        mask.save(tmp_path / f"{mode}.png", pnginfo=info)
        assert Image.open(tmp_path / f"{mode}.png").getexif()[0x112] == 6
        assert np.array_equal(read_label(tmp_path / f"{mode}.png"), ids)
        by_image = rgb_of(Image.open(tmp_path / f"{mode}.png"))
        assert by_image.shape == (2, 3, 3) and np.array_equal(by_image, read_image(tmp_path / f"{mode}.png"))


def test_a_webp_is_not_turned_by_its_xmp(tmp_path):
    Image.fromarray(picture()[0]).save(tmp_path / "a.webp", lossless=True, xmp=XMP)
    for turned in read_image(tmp_path / "a.webp"), rgb_of(Image.open(tmp_path / "a.webp")):
        np.testing.assert_array_equal(turned, picture()[0])


def test_numbers_as_text_and_floats_of_netpbm_are_refused(tmp_path):
    """OpenCV makes 14 of a 1 where 18 is the largest number."""
    for name, data in ("a.pgm", b"P2\n3 1\n18\n0 1 18\n"), ("a.pfm", b"Pf\n1 1\n-1.0\n\0\0\0?"):
        (tmp_path / name).write_bytes(data)
        for read in read_image, read_label:
            with pytest.raises(Mistake, match=f"{name}: .*save it as PNG"):
                read(tmp_path / name)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore")  # of Pillow, about the damage
def test_damaged_files_are_read_or_refused_with_their_name(tmp_path, kind):
    image, label = picture()
    pictures = {"gray": Image.fromarray(label), "rgb": Image.fromarray(image), "palette": Image.fromarray(image).quantize(16)}
    path = with_orientation(tmp_path / kind, pictures[kind.split(".")[0]], 6, **KINDS[kind])
    sound, draw, outcomes = path.read_bytes(), random.Random(kind), {True: 0, False: 0}
    for _ in range(150):
        data = bytearray(sound)
        place = int(len(data) * draw.random() ** draw.choice((1, 3)))  # often in the header
        if draw.random() < 0.7:
            data[place] = draw.choice((0, 255, draw.randrange(256), data[place] ^ 1 << draw.randrange(8)))
        else:
            del data[place : place + draw.choice((1, 4, len(data)))]
        path.write_bytes(data)
        for read in (read_image, read_label, image_header):
            try:
                read(path)
                outcomes[True] += 1
            except Mistake as mistake:
                assert str(mistake).startswith(f"{path}: ")
                outcomes[False] += 1
    assert all(outcomes.values())


def declare_size(path, width, height):
    """Let the header of a PNG declare another size."""
    data = path.read_bytes()
    header = struct.pack(">II", width, height) + data[24:29]
    path.write_bytes(data[:16] + header + struct.pack(">I", zlib.crc32(b"IHDR" + header)) + data[33:])


@pytest.mark.parametrize("read", [read_image, read_label])
@pytest.mark.parametrize("mode", ["L", "P", "RGB", "I;16"])
@pytest.mark.parametrize("side", [60000, 9000, 0])
def test_a_png_that_declares_an_absurd_size_is_refused(tmp_path, read, mode, side):
    array = picture()[0] if mode == "RGB" else picture()[1].astype(np.uint16 if mode == "I;16" else np.uint8)
    image = Image.fromarray(array)
    (image.convert("P") if mode == "P" else image).save(tmp_path / "a.png")
    declare_size(tmp_path / "a.png", side, side)
    with pytest.raises(Mistake, match=r"a.png: cannot be decoded"):
        read(tmp_path / "a.png")
    if side != 9000:  # a picture may have so many pixels, but this one does not
        with pytest.raises(Mistake, match=r"a.png: cannot be decoded"):
            image_header(tmp_path / "a.png")


LOSSY = {
    "JPEG": {"format": "JPEG", "quality": 100},
    "lossy WebP": {"format": "WEBP"},
    "JPEG 2000": {"format": "JPEG2000"},
    "AVIF": {"format": "AVIF"},
    r"TIFF \(jpeg\)": {"format": "TIFF", "compression": "jpeg"},
}


@pytest.mark.parametrize("name", LOSSY)
@pytest.mark.parametrize("colours", [False, True])
def test_a_label_of_a_lossy_format_is_refused_whatever_its_suffix(tmp_path, name, colours):
    if LOSSY[name]["format"] == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow writes no AVIF")
    image, label = picture()
    Image.fromarray(image if colours else label).save(tmp_path / "a.png", **LOSSY[name])
    with pytest.raises(Mistake, match=rf"a.png: a {name}.*: lossy formats change the ids; save labels as PNG"):
        read_label(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").shape == (24, 32, 3)


def test_a_lossy_webp_with_transparency_is_refused_and_a_lossless_one_is_read(tmp_path):
    label = picture()[1]
    rgba = Image.fromarray(np.dstack([label] * 3 + [label * 50]), "RGBA")
    rgba.save(tmp_path / "a.webp")
    with pytest.raises(Mistake, match="a lossy WebP file"):
        read_label(tmp_path / "a.webp")
    rgba.save(tmp_path / "a.webp", lossless=True, exact=True)
    np.testing.assert_array_equal(read_label(tmp_path / "a.webp"), label)


@pytest.mark.parametrize("read", [read_image, read_label, image_header])
def test_what_the_system_says_of_a_file_is_said_with_its_name(tmp_path, read):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    for name, words in (("folder.png", "is a directory"), ("none.png", "no such file"), ("loop.png", "too many levels")):
        with pytest.raises(Mistake, match=f"{tmp_path / name}: {words}"):
            read(tmp_path / name)


@pytest.mark.parametrize("number, words", [(errno.EMFILE, "too many open files"), (errno.EIO, "input/output error")])
def test_an_error_of_reading_names_the_file(root, tmp_path, monkeypatch, number, words):
    data = SemData("train", root, root / "train.txt", cache=tmp_path / "cache")
    plain = SemData("train", root, root / "train.txt")

    def fail(path, *args, **kwargs):
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(Path, "open", fail)
    monkeypatch.setattr(Path, "read_bytes", fail)
    monkeypatch.setattr(Path, "read_text", fail)
    for what, act in ((data.cached.files[0], lambda: data[2]), ("image/2.png", lambda: plain[2]),
                      ("train.txt", lambda: read_list(root / "train.txt", root, "train"))):  # fmt: skip
        with pytest.raises(Mistake, match=f"{what}: {words}"):
            act()


def test_gray_transparent_and_16_bit_images_become_8_bit_rgb(tmp_path):
    image, gray = picture()
    Image.fromarray(gray).save(tmp_path / "gray.png")
    np.testing.assert_array_equal(read_image(tmp_path / "gray.png"), np.repeat(gray[..., None], 3, 2))
    Image.fromarray(np.dstack([image, gray])).save(tmp_path / "alpha.png")
    np.testing.assert_array_equal(read_image(tmp_path / "alpha.png"), image)
    cv2.imwrite(str(tmp_path / "deep.png"), image[..., ::-1].astype(np.uint16) * 256 + 77)
    np.testing.assert_array_equal(read_image(tmp_path / "deep.png"), image)


def test_palette_and_cmyk_images_are_read_as_pillow_shows_them(tmp_path):
    palette = Image.fromarray(picture()[0]).quantize(16)
    palette.save(tmp_path / "palette.png")
    np.testing.assert_array_equal(read_image(tmp_path / "palette.png"), palette.convert("RGB"))
    Image.new("CMYK", (32, 24), (0, 255, 255, 0)).save(tmp_path / "cmyk.jpg")  # red
    assert np.abs(read_image(tmp_path / "cmyk.jpg").astype(int) - [255, 0, 0]).max() < 5


def test_8_and_16_bit_labels_keep_their_ids(tmp_path):
    for dtype, top in ((np.uint8, 256), (np.uint16, 65536)):
        ids = np.random.default_rng(0).integers(0, top, (20, 30)).astype(dtype)
        save_png(tmp_path / "a.png", ids)
        np.testing.assert_array_equal(read_label(tmp_path / "a.png"), ids)
        assert read_label(tmp_path / "a.png").dtype == dtype


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_low_bit_depths_keep_their_ids(tmp_path, depth):
    ids = np.arange(15 * 16).reshape(15, 16) % 2**depth
    gray_png(tmp_path / "gray.png", ids, depth)
    np.testing.assert_array_equal(read_label(tmp_path / "gray.png"), ids)


def test_a_picture_may_have_more_pixels_than_pillow_allows_strangers(tmp_path):
    gray_png(tmp_path / "a.png", np.zeros((1, 1), int), 1)
    declare_size(tmp_path / "a.png", 20000, 20000)
    assert image_header(tmp_path / "a.png") == (20000, 20000, "1")


@pytest.mark.parametrize("name, how", [("a.tif", {}), ("a.tif", {"compression": "group4"}), ("a.bmp", {}), ("a.png", {})])
def test_files_of_one_bit_hold_0_and_1(tmp_path, name, how):
    ids = np.arange(15 * 16).reshape(15, 16) % 3 == 1
    Image.fromarray(ids).save(tmp_path / name, **how)
    np.testing.assert_array_equal(read_label(tmp_path / name), ids)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif"])
@pytest.mark.parametrize("depth", [2, 8])
def test_palette_labels_are_read_as_indices(tmp_path, suffix, depth):
    ids = (np.arange(15 * 16).reshape(15, 16) % 2**depth).astype(np.uint8)
    palette = Image.fromarray(ids).convert("P")
    palette.putdata(ids.ravel().tolist())
    palette.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
    palette.save(tmp_path / f"a{suffix}", **({"bits": depth} if suffix == ".png" else {}))
    np.testing.assert_array_equal(read_label(tmp_path / f"a{suffix}"), ids)


def test_a_colour_mask_is_read_if_its_channels_are_equal_and_refused_otherwise(tmp_path):
    image, label = picture()
    Image.fromarray(np.repeat(label[..., None], 3, 2)).save(tmp_path / "equal.png")
    np.testing.assert_array_equal(read_label(tmp_path / "equal.png"), label)
    Image.fromarray(image).save(tmp_path / "colour.png")
    with pytest.raises(Mistake, match=r"colour.png: a colour mask of shape \(24, 32, 3\).*convert the colours to ids"):
        read_label(tmp_path / "colour.png")


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("how", [{}, {"compression": "tiff_lzw"}])
def test_alpha_of_a_tiff_changes_neither_ids_nor_colours(tmp_path, how, orientation):
    image, label = picture()
    alpha = np.random.default_rng(1).integers(0, 256, label.shape, np.uint8)
    Image.fromarray(np.dstack([label, label, label, alpha])).save(tmp_path / "label.tif", **how)
    np.testing.assert_array_equal(read_label(tmp_path / "label.tif"), label)
    Image.fromarray(np.dstack([image, alpha])).save(tmp_path / "image.tif", tiffinfo={274: orientation}, **how)
    upright = image if orientation == 1 else np.rot90(image, -1)
    np.testing.assert_array_equal(read_image(tmp_path / "image.tif"), upright)


def tiff(pixels, photometric, extra=None):
    """A TIFF without compression, in one strip, with tags that Pillow and OpenCV do not write. pixels: (H, W, bands)."""
    h, w, bands = pixels.shape
    tags = {256: w, 257: h, 258: [8 * pixels.itemsize] * bands, 259: 1, 262: photometric, 273: 0, 277: bands, 278: h,
            279: pixels.nbytes, 339: [2 if pixels.dtype.kind == "i" else 1] * bands}  # fmt: skip
    tags |= {} if extra is None else {338: extra}
    out = TiffImagePlugin.ImageFileDirectory_v2(b"II*\0\0\0\0\0")
    for tag, value in sorted(tags.items()):
        out[tag] = value
    return b"II*\0\x08\0\0\0" + out.tobytes(8) + pixels.tobytes()  # which puts the place of the pixels into the tag 273


def test_tiffs_of_numbers_below_0_and_of_bands_without_colours_are_refused(tmp_path):
    path = tmp_path / "a.tif"
    path.write_bytes(tiff(np.int16([[[0], [512], [32767]]]), photometric=1))
    np.testing.assert_array_equal(read_image(path)[0, :, 0], [0, 2, 127])
    path.write_bytes(tiff(np.int16([[[-1], [0], [3000]]]), photometric=1))
    with pytest.raises(Mistake, match=r"a.tif: a TIFF of numbers below 0"):
        read_image(path)
    path.write_bytes(tiff(np.full((4, 4, 3), 9000, np.uint16), photometric=1, extra=[0, 0]))
    with pytest.raises(Mistake, match=r"a.tif: a TIFF of 3 bands that are not said to be red, green and blue"):
        read_image(path)
    path.write_bytes(tiff(np.uint16([[[40000, 30000, 20000, 9000]]]), photometric=2, extra=2))
    np.testing.assert_array_equal(read_image(path), [[[156, 117, 78]]])  # alpha is dropped


def test_a_float_label_is_refused(tmp_path):
    cv2.imwrite(str(tmp_path / "a.tif"), np.ones((4, 4), np.float32))
    with pytest.raises(Mistake, match=r"a.tif: pixels are float32, expected 8-bit or 16-bit class ids"):
        read_label(tmp_path / "a.tif")


@pytest.mark.parametrize("read", [read_image, read_label])
@pytest.mark.parametrize("kept", [0, 20, 30, 300])
def test_files_that_cannot_be_decoded_are_named(tmp_path, read, kept):
    path = save(tmp_path / "a.png", picture()[0])
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(Mistake, match=r"a.png: the file is empty" if kept == 0 else r"a.png: cannot be decoded"):
        read(path)
    path.write_text("this is no image, but a text that goes on for a while")
    with pytest.raises(Mistake, match=r"a.png: cannot be decoded"):
        read(path)


def test_a_cut_off_palette_label_is_named(tmp_path):
    ids = Image.fromarray(picture()[1]).convert("P")
    ids.save(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:-100])
    with pytest.raises(Mistake, match=r"a.png: cannot be decoded"):
        read_label(tmp_path / "a.png")


# ---------------------------------------------------------------- the dataset


def test_without_transform_a_sample_is_the_float_image_and_its_label(root):
    data = SemData("train", str(root), str(root / "train.txt"))
    image, label = data[2]
    assert len(data) == 6 and image.dtype == np.float32 and label.dtype == np.uint8
    np.testing.assert_array_equal(image, picture(2)[0])
    np.testing.assert_array_equal(label, picture(2)[1])


def test_the_test_split_has_zeros_for_labels(root):
    image, label = SemData("test", root, root / "train.txt")[0]
    assert label.shape == image.shape[:2] and label.dtype == np.uint8 and not label.any()


def test_different_sizes_of_image_and_label_are_an_error_with_both_paths(root):
    save(root / "label/0.png", picture(0, 23, 32)[1])
    with pytest.raises(ValueError) as error:
        SemData("train", root, root / "train.txt")[0]
    assert str(error.value) == f"{root / 'label/0.png'}: 32 x 23, but its image {root / 'image/0.png'} is 32 x 24"


@pytest.mark.parametrize("wrong", [7, 300])
def test_ids_out_of_range_are_named_with_their_count(root, wrong):
    label = picture(0)[1].astype(np.uint16)
    label[:2, :3] = wrong
    label[5, 5] = 255
    save(root / "label/0.png", label)
    data = SemData("train", root, root / "train.txt", classes=5)
    message = rf"label/0.png: label ids outside 0..4 that are not ignore_label = 255: {wrong} \(6 pixels\)"
    with pytest.raises(ValueError, match=message):
        data[0]
    data[1]
    SemData("train", root, root / "train.txt", classes=5, ignore_label=wrong)[1]
    SemData("train", root, root / "train.txt")[0]


def test_ids_above_255_reach_the_tensor(root):
    label = picture(0)[1].astype(np.uint16) + 300
    save(root / "label/0.png", label)
    transform = T.Compose([T.RandScale([1, 1]), T.RandRotate([0, 0], [0, 0, 0], p=1), T.ToTensor()])
    _, out = SemData("train", root, root / "train.txt", transform, classes=400)[0]
    np.testing.assert_array_equal(out, label)


# ---------------------------------------------------------------- random numbers and order

AUGMENT = T.Compose(
    [
        T.RandScale([0.5, 2]),
        T.RandRotate([-10, 10], [1, 2, 3]),
        T.RandomGaussianBlur(),
        T.RandomHorizontalFlip(),
        T.Crop([17, 17], "rand", [1, 2, 3]),
        T.ToTensor(),
        T.Normalize([1, 2, 3], [4, 5, 6]),
    ]
)


def batches(root, epoch, rank=0, world_size=1, num_workers=0, seed=7):
    data = SemData("train", root, root / "train.txt", AUGMENT, seed=seed)
    sampler = EpochSampler(len(data), 3, seed=seed, rank=rank, world_size=world_size)
    sampler.set_epoch(epoch)
    loader = torch.utils.data.DataLoader(
        data,
        batch_sampler=sampler,
        num_workers=num_workers,
        worker_init_fn=worker_init,
        multiprocessing_context="fork" if num_workers else None,
    )
    return list(loader)


def joined(ranks):
    """Global batches from those of the ranks."""
    return [[torch.cat([part[k] for part in parts]) for k in (0, 1)] for parts in zip(*ranks)]


def test_any_number_of_workers_and_ranks_sees_the_same_samples(root):
    expected = batches(root, epoch=4)
    assert len(expected) == 2 and expected[0][0].shape == (3, 3, 17, 17)
    others = [batches(root, 4, num_workers=2)]
    others += [joined([batches(root, 4, rank, size) for rank in range(size)]) for size in (2, 3)]
    for other in others:
        for (image, label), (other_image, other_label) in zip(expected, other, strict=True):
            assert torch.equal(image, other_image) and torch.equal(label, other_label)


def test_epochs_and_seeds_differ(root):
    image = batches(root, epoch=4)[0][0]
    assert not torch.equal(image, batches(root, epoch=5)[0][0])
    assert not torch.equal(image, batches(root, epoch=4, seed=8)[0][0])
    data, other = (SemData("train", root, root / "train.txt", AUGMENT, seed=seed) for seed in (7, 8))  # not by the order alone
    assert not torch.equal(data[4, 0][0], data[5, 0][0]) and not torch.equal(data[4, 0][0], other[4, 0][0])


def test_samples_do_not_depend_on_the_global_random_state(root):
    data = SemData("train", root, root / "train.txt", AUGMENT)
    random.seed(0)
    first = data[0, 0][0]
    random.seed(1)
    assert torch.equal(first, data[0, 0][0])


def test_sample_random_numbers_are_the_same_in_every_process_and_version():
    assert [round(sample_rng(1, 2, 3).random(), 12), sample_rng(12, 3, 4).random() == sample_rng(1, 23, 4).random()] == [
        0.121957867126,
        False,
    ]


def parts(world_size, seed=1, epoch=2, start_batch=0):
    samplers = [EpochSampler(50, 16, seed=seed, rank=r, world_size=world_size) for r in range(world_size)]
    for sampler in samplers:
        sampler.set_epoch(epoch, start_batch)
        assert len(list(sampler)) == len(sampler)
    return [list(sampler) for sampler in samplers]


def test_16_over_3_ranks_is_6_5_5():
    assert [[len(batch) for batch in rank] for rank in parts(3)] == [[6, 6, 6], [5, 5, 5], [5, 5, 5]]


@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 16])
def test_every_world_size_gets_the_same_global_batches(world_size):
    ranks, alone = parts(world_size), parts(1)[0]
    for i, batch in enumerate(alone):
        assert batch == [key for rank in ranks for key in rank[i]]
    indices = [index for batch in alone for _, index in batch]
    assert len(set(indices)) == len(indices) == 48
    assert all(epoch == 2 for batch in alone for epoch, _ in batch)


def test_the_order_depends_on_seed_and_epoch_only():
    first = parts(1)[0]
    assert first == parts(1)[0]
    orders = {tuple(index for batch in parts(1, seed=s, epoch=e)[0] for _, index in batch) for s, e in ((1, 2), (2, 1), (1, 3))}
    assert len(orders) == 3
    assert list(EpochSampler(50, 16, seed=1)) == parts(1, epoch=0)[0]


def test_an_epoch_can_begin_at_a_later_batch():
    assert parts(2, start_batch=1) == [rank[1:] for rank in parts(2)]
    assert parts(1, start_batch=3) == [[]]
    sampler = EpochSampler(50, 16, seed=1)
    sampler.set_epoch(2, start_batch=2)
    sampler.set_epoch(2)
    assert list(sampler) == parts(1)[0]


def test_a_dataset_smaller_than_a_batch_is_an_error():
    with pytest.raises(
        ValueError, match=r"the dataset has 5 samples, less than one batch of batch_size = 16: lower batch_size"
    ):
        EpochSampler(5, 16, seed=0)


def test_a_batch_smaller_than_the_world_is_an_error():
    with pytest.raises(ValueError, match=r"batch_size = 2 is less than the 3 processes"):
        EpochSampler(50, 2, seed=0, world_size=3)


class Threads(torch.utils.data.Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        return cv2.getNumThreads(), torch.get_num_threads()


def test_workers_run_one_thread():
    loader = torch.utils.data.DataLoader(Threads(), batch_size=None, num_workers=1, worker_init_fn=worker_init)
    assert list(next(iter(loader))) == [1, 1]


@pytest.mark.parametrize("cache", [None, "cache"])
@pytest.mark.parametrize("ignore", [255, 4])
def test_labels_without_a_labelled_pixel_are_refused_before_training(root, cache, ignore):
    def data(name):
        return SemData(name, root, root / f"{name}.txt", classes=5, ignore_label=ignore, cache=cache and root / cache)

    (root / "val.txt").write_text("image/0.png label/void.png\n")
    label = np.full((24, 32), ignore, np.uint8)
    save(root / "label/void.png", label)
    check_data(data("train"), None)
    with pytest.raises(Mistake, match=rf"val.txt: every pixel of the 1 labels is ignore_label = {ignore}"):
        check_data(data("train"), data("val"))
    label[3, 4] = 1
    save(root / "label/void.png", label)
    said = []
    check_data(data("train"), data("val"), say=said.append)
    absent = ", ".join(str(k) for k in range(5) if k != 1)
    assert f"{root}/val.txt: no pixel of class {absent} (ignore_label is {ignore})" in said


def test_all_faulty_samples_are_counted_and_the_first_ten_listed(root):
    lines = [f"image/0.png label/{i}.png" for i in range(100, 112)]
    for i in range(100, 112):
        save(root / f"label/{i}.png", np.full((24, 32), 77, np.uint8))
    data = SemData("train", root, list_of(root, *lines), classes=5)
    with pytest.raises(Mistake, match=r"12 of 12 samples are faulty:") as caught:
        check_data(data)
    assert str(caught.value).count("label ids outside") == 10 and str(caught.value).endswith("and 2 more")


def test_a_sampler_of_torch_gets_another_augmentation_in_every_epoch(root):
    data = SemData("train", root, root / "train.txt", AUGMENT)
    loader = torch.utils.data.DataLoader(data, batch_size=1)
    random.seed(0)
    first, second = ([image for image, _ in loader] for _ in range(2))
    assert not any(map(torch.equal, first, second))
    random.seed(0)
    assert all(map(torch.equal, first, [image for image, _ in loader]))
