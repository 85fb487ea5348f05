import os
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from PIL import Image, ImageFont

from util.common import Mistake
from util.config import ROOT
from util.visual import (
    NAME,
    below,
    changed_names,
    class_names,
    colorize,
    default_palette,
    legend,
    load_colors,
    load_names,
    output_names,
    overlay,
    paint,
    palette_of,
    panel,
    save_png,
    save_png_strips,
)

PALETTE = np.uint8([[128, 64, 128], [244, 35, 232], [70, 70, 70]])


def test_colorize_keeps_the_ids_and_shows_the_colours():
    gray = np.uint8([[0, 1, 2], [2, 255, 7]])
    image = colorize(gray, PALETTE)
    assert image.mode == "P" and np.array_equal(image, gray)
    rgb = np.asarray(image.convert("RGB"))
    assert np.array_equal(rgb[0], PALETTE) and not rgb[1, 1:].any()
    assert np.array_equal(rgb, paint(gray, PALETTE))
    assert np.array_equal(colorize(gray, PALETTE.ravel().tolist()).convert("RGB"), rgb)


def test_colorized_image_survives_a_file(tmp_path):
    gray = np.random.default_rng(0).integers(0, 3, (20, 30)).astype(np.uint8)
    save_png(tmp_path / "color.png", colorize(gray, PALETTE))
    saved = Image.open(tmp_path / "color.png")
    assert np.array_equal(saved, gray) and np.array_equal(saved.convert("RGB"), PALETTE[gray])


def test_more_than_256_classes_become_rgb():
    palette = default_palette(300)
    gray = np.uint16([[0, 299, 65535]])
    image = colorize(gray, palette)
    assert image.mode == "RGB" and np.array_equal(np.asarray(image)[0], [palette[0], palette[299], [0, 0, 0]])
    assert colorize(np.uint16([[2]]), PALETTE).mode == "P" and colorize(np.uint16([[256]]), PALETTE).mode == "RGB"


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int64])
@pytest.mark.parametrize("classes", [2, 255, 256, 257])
def test_ids_of_any_type_are_painted_with_any_number_of_classes(classes, dtype):
    palette, gray = default_palette(classes), np.array([[1, 254]], dtype)
    second = palette[254] if classes > 254 else [0, 0, 0]
    assert np.array_equal(paint(gray, palette), [[palette[1], second]])
    assert np.array_equal(np.asarray(colorize(gray, palette).convert("RGB")), paint(gray, palette))
    assert panel(np.zeros((1, 2, 3), np.uint8), gray, gray, palette).shape == (1, 6, 3)


def test_class_255_of_a_full_palette_has_its_colour():
    palette = default_palette(256)
    assert np.array_equal(np.asarray(colorize(np.uint8([[255]]), palette).convert("RGB"))[0, 0], palette[255])


def test_default_palette_gives_every_class_its_own_colour():
    assert len(np.unique(default_palette(150), axis=0)) == 150 and default_palette(19).dtype == np.uint8


def test_overlay_mixes_image_and_colours():
    image = np.full((1, 3, 3), 100, np.uint8)
    mixed = overlay(image, np.uint8([[0, 1, 255]]), PALETTE)
    assert mixed.dtype == np.uint8 and mixed[0].tolist() == [[114, 82, 114], [172, 68, 166], [50, 50, 50]]
    assert np.array_equal(overlay(image, np.uint8([[0, 1, 2]]), PALETTE, alpha=0), image)
    assert np.array_equal(overlay(image, np.uint8([[0, 1, 2]]), PALETTE, alpha=1)[0], PALETTE)


def test_panel_blackens_ignored_pixels_in_label_and_prediction():
    image = np.full((1, 2, 3), 300.0, np.float32)
    shown = panel(image, np.uint8([[1, 255]]), np.uint8([[2, 2]]), PALETTE, 255)
    assert shown.shape == (1, 6, 3) and shown.dtype == np.uint8
    assert shown[0].tolist() == [[255] * 3] * 2 + [PALETTE[1].tolist(), [0] * 3, PALETTE[2].tolist(), [0] * 3]


@pytest.mark.parametrize("array", [np.uint8([[0, 255]]), np.uint16([[3, 300]]), np.uint8([[[1, 2, 3]]])])
def test_pngs_hold_8_and_16_bit_ids_and_rgb_and_folders_are_made(tmp_path, array):
    path = tmp_path / "new folder/é/x.png"
    save_png(path, array)
    assert np.array_equal(Image.open(path), array)
    assert [p.name for p in path.parent.iterdir()] == ["x.png"]  # no temporary file stays


def test_a_failed_write_leaves_the_old_file(tmp_path):
    save_png(tmp_path / "x.png", np.uint8([[1]]))
    with pytest.raises((TypeError, ValueError)):
        save_png(tmp_path / "x.png", np.zeros((2, 2, 7), np.uint8))
    assert np.asarray(Image.open(tmp_path / "x.png")).tolist() == [[1]]


def test_names_and_colours_are_read_and_blank_lines_skipped(tmp_path):
    (tmp_path / "names.txt").write_text("road\n\n traffic light \n", encoding="utf-8")
    (tmp_path / "colors.txt").write_text("0 1 2\n255 255\t255\n\n")
    assert load_names(tmp_path / "names.txt", 2) == ["road", "traffic light"]
    assert load_colors(tmp_path / "colors.txt", 2).tolist() == [[0, 1, 2], [255, 255, 255]]
    assert load_colors(tmp_path / "colors.txt", 2).dtype == np.uint8


def test_wrong_lists_are_named_with_what_was_expected(tmp_path):
    (tmp_path / "list.txt").write_text("0 1 2\n3 4 256\n")
    with pytest.raises(Mistake, match=r"list.txt: expected 3 names, one a line, found 2"):
        load_names(tmp_path / "list.txt", 3)
    with pytest.raises(Mistake, match=r"list.txt: expected 1 colours, `R G B` a line, found 2"):
        load_colors(tmp_path / "list.txt", 1)
    with pytest.raises(Mistake, match=r"colour 1 is '3 4 256', expected three numbers 0..255"):
        load_colors(tmp_path / "list.txt", 2)
    with pytest.raises(Mistake, match="none.txt: no such file"):
        load_names(tmp_path / "none.txt", 3)


def config(**keys):
    empty = {"names_path": None, "colors_path": None, "names": None, "palette": None}
    return SimpleNamespace(**{"path": "a.yaml", "classes": 2, **empty, **keys})


def test_classes_have_names_and_colours_with_and_without_files(tmp_path):
    assert class_names(config()) == ["class 0", "class 1"] and np.array_equal(palette_of(config()), default_palette(2))
    (tmp_path / "names.txt").write_text("\ufeffStraße\nWeg\n", encoding="utf-8")
    (tmp_path / "colors.txt").write_text("0 1 2\n3 4 5\n")
    files = config(names_path=tmp_path / "names.txt", colors_path=tmp_path / "colors.txt")
    assert class_names(files) == ["Straße", "Weg"] and palette_of(files).tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize("content, message", [
    (b"a\n", "expected 2 .*, found 1"), (b"\xff\n\xfe", r"not UTF-8 text \(byte 0: "), (None, "no such file"),
])  # fmt: skip
def test_unfit_files_of_names_and_colours_are_a_mistake_with_the_key_and_the_file(tmp_path, content, message):
    path = tmp_path / "list.txt"
    if content is not None:
        path.write_bytes(content)
    for load, key in ((class_names, "names_path"), (palette_of, "colors_path")):
        with pytest.raises(Mistake, match=f"^a.yaml: TEST.{key}: {path}: {message}"):
            load(config(**{key: path}))
        with pytest.raises(Mistake, match=f"{tmp_path}: is a directory"):
            load(config(**{key: tmp_path}))


@pytest.mark.parametrize("number", ["²", "٣", "9" * 5000, "-1", "1.0"])
def test_a_colour_that_is_no_number_is_a_mistake(tmp_path, number):
    (tmp_path / "colors.txt").write_text(f"0 1 2\n3 4 {number}\n", encoding="utf-8")
    with pytest.raises(Mistake, match="colour 1 is .*, expected three numbers 0..255"):
        palette_of(config(colors_path=tmp_path / "colors.txt"))


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_panel_of_a_full_frame_has_512_pixels_a_picture(dtype):
    image = np.zeros((1024, 6144, 3), np.uint8)
    image[:, 1::2] = 200
    label = np.tile((np.arange(6144) // 2048), (1024, 1)).astype(dtype)
    shown = panel(image, label, label, PALETTE, 255)
    assert shown.shape == (85, 3 * 512, 3)
    assert np.abs(shown[:, :512].astype(int) - 100).max() <= 1  # by area: the mean of the stripes
    assert {tuple(colour) for colour in shown[0, 512:]} == {tuple(colour) for colour in PALETTE}  # no mixed colours
    assert np.array_equal(shown[:, 512:1024], shown[:, 1024:])
    small = np.zeros((300, 512, 3), np.uint8)
    assert panel(small, label[:300, :512], label[:300, :512], PALETTE).shape == (300, 1536, 3)
    assert panel(np.zeros((5000, 2, 3)), np.zeros((5000, 2), dtype), np.zeros((5000, 2), dtype), PALETTE).shape == (512, 3, 3)


@pytest.mark.parametrize("paths", [
    ["../x/a.png", "b/a.png"], ["a/../../gray/x.png", "color/x.png"], ["/x/../a.png", "/b/a.png"],
    ["d/..png", "e/..png"], ["d/...png", "e/...png"], ["d/.png", "e/.png"],
])  # fmt: skip
def test_results_stay_inside_their_folder(paths, tmp_path):
    names = output_names(paths)
    files = {Path(os.path.normpath(tmp_path / f"{kind}/{name}.png")) for name in names for kind in ("gray", "color")}
    assert len(files) == 4
    assert sum(file.is_relative_to(tmp_path / "gray") for file in files) == 2
    assert sum(file.is_relative_to(tmp_path / "color") for file in files) == 2


def test_one_image_by_two_paths_is_refused():
    with pytest.raises(Mistake, match="d/x.jpg: is in the list twice, and results are named after it"):
        output_names(["d/x.jpg", "d/e/../x.jpg"])


def test_results_have_different_names_whatever_the_images_are_called():
    assert output_names(["a/x.jpg", "b/y.png"]) == ["x", "y"]
    assert output_names(["d/a/x.jpg", "d/b/x.jpg", "d/b/y.jpg"]) == ["a/x", "b/x", "b/y"]
    assert output_names(["d/x.jpg", "d/x.png"]) == ["x.jpg", "x.png"]
    assert output_names(["d/x.v1.jpg"]) == ["x.v1"]


@pytest.mark.parametrize("h, w, heights", [(1, 1, [1]), (7, 3, [3, 4]), (600, 5, [256, 256, 88])])
def test_a_png_in_strips_is_that_of_the_whole(tmp_path, h, w, heights):
    picture = np.random.default_rng(0).integers(0, 256, (h, w, 3)).astype(np.uint8)
    strips = np.split(picture, np.cumsum(heights)[:-1])
    save_png_strips(tmp_path / "new/a.png", h, w, strips)
    assert np.array_equal(Image.open(tmp_path / "new/a.png"), picture)
    assert np.array_equal(cv2.imread(str(tmp_path / "new/a.png"))[..., ::-1], picture)
    save_png_strips(tmp_path / "a.png", h, w + 2, strips)
    assert np.array_equal(Image.open(tmp_path / "a.png"), np.pad(picture, ((0, 0), (0, 2), (0, 0)), constant_values=255))


def test_a_png_in_strips_appears_whole_or_not_at_all(tmp_path):
    def strips():
        yield np.zeros((1, 9, 3), np.uint8)
        raise ValueError

    with pytest.raises(ValueError):
        save_png_strips(tmp_path / "a.png", 2, 9, strips())
    assert not list(tmp_path.iterdir())


# ---- legends


def colours_of(strip, palette):
    """Which colours of the palette have a patch in it."""
    number = lambda colors: np.int64(colors) @ [65536, 256, 1]
    return np.isin(number(palette), number(strip)).tolist()


@pytest.mark.parametrize("dataset, classes", [("toy", 9), ("camvid", 11), ("cityscapes", 19), ("ade20k", 150)])
@pytest.mark.parametrize("shape", [(1, 1), (40, 57), (360, 480), (100, 3000)])
def test_a_legend_holds_every_class_of_every_dataset(dataset, classes, shape):
    names = (ROOT / f"dataset/{dataset}/{dataset}_names.txt").read_text().splitlines()
    palette = np.loadtxt(ROOT / f"dataset/{dataset}/{dataset}_colors.txt", dtype=np.uint8)
    strip = legend(names, palette, shape)
    assert len(names) == classes and all(colours_of(strip, palette)) and strip.shape[1] >= shape[1]
    picture = np.full((*shape, 3), 7, np.uint8)
    assert np.array_equal(below(picture, strip)[: shape[0], : shape[1]], picture)


def letters(strip):
    """Height of the text of a legend with one entry, right of its patch."""
    dark = (strip[:, strip.shape[0] :].max(2) < 128).any(1).nonzero()[0]
    return dark[-1] - dark[0] + 1


def test_letters_grow_with_the_picture_and_are_never_too_small_to_read():
    height = {side: letters(legend(["Hg"], default_palette(1), (side, side))) for side in (1, 500, 1000, 4000)}
    assert 8 <= height[1] == height[500] < height[1000] / 1.5 < height[4000] / 4


def test_a_legend_of_few_rows_counts_the_rest():
    palette = default_palette(150)
    names = [f"name {i}" for i in range(150)]
    strip = legend(names, palette, (360, 480), max_rows=10)
    shown = colours_of(strip, palette)
    count = sum(shown)
    assert strip.shape[0] == 10 * 18 + 9 and count % 10 == 9 and shown == [True] * count + [False] * (150 - count)
    assert np.array_equal(legend(names[:20], palette, (360, 480), 10), legend(names[:20], palette, (360, 480)))


def test_a_long_name_is_shortened_and_stays_one_line():
    palette = default_palette(1)
    strip = legend(["x" * 500], palette, (10, 10))
    assert np.array_equal(strip, legend(["x" * (NAME - 3) + "..."], palette, (10, 10)))
    assert np.array_equal(legend(["two\n  lines"], palette, (10, 10)), legend(["two lines"], palette, (10, 10)))


def test_letters_that_no_font_has_are_written_as_escapes(monkeypatch):
    strip = lambda name: legend([name], default_palette(1), (9, 9))
    monkeypatch.setattr("util.visual.FONTS", ("no such font.ttf",))
    assert np.array_equal(strip("道路"), strip(r"\u9053\u8def"))
    # A font of the machine that has the letters is used. Here Pillow's own stands for it, which has ASCII alone, and then ö.
    own, truetype = ImageFont.load_default(12), ImageFont.truetype
    load = lambda file, *more, **how: own if file == "no such font.ttf" else truetype(file, *more, **how)
    monkeypatch.setattr(ImageFont, "truetype", load)
    assert np.array_equal(strip("Größe"), strip(r"Gr\xf6\xdfe"))
    getmask = own.getmask
    monkeypatch.setattr(own, "getmask", lambda text: getmask({"ö": "o"}.get(text, text)))
    assert np.array_equal(strip("Größe"), strip(r"Gr\xf6\xdfe")) and not np.array_equal(strip("Hö"), strip(r"H\xf6"))


def test_names_that_only_count_are_no_change():
    assert changed_names(["class 0", "class1", "car", "sky"], ["road", "tree", "bus", "sky"]) == ["class 2 was car and is bus"]
