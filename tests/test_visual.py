import numpy as np
import pytest
from PIL import Image

from util.visual import colorize, default_palette, load_colors, load_names, output_names, overlay, paint, panel, save_png

PALETTE = np.uint8([[128, 64, 128], [244, 35, 232], [70, 70, 70]])


def test_colorize_keeps_the_ids_and_shows_the_colours():
    gray = np.uint8([[0, 1, 2], [2, 255, 7]])
    image = colorize(gray, PALETTE)
    assert image.mode == "P" and np.array_equal(image, gray)
    rgb = np.asarray(image.convert("RGB"))
    assert np.array_equal(rgb[0], PALETTE) and not rgb[1, 1:].any()
    assert np.array_equal(rgb, paint(gray, PALETTE))


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
    with pytest.raises(ValueError, match=r"list.txt: expected 3 names, one a line, found 2"):
        load_names(tmp_path / "list.txt", 3)
    with pytest.raises(ValueError, match=r"list.txt: expected 1 colours, `R G B` a line, found 2"):
        load_colors(tmp_path / "list.txt", 1)
    with pytest.raises(ValueError, match=r"colour 1 is '3 4 256', expected three numbers 0..255"):
        load_colors(tmp_path / "list.txt", 2)
    with pytest.raises(FileNotFoundError, match="none.txt: no such file"):
        load_names(tmp_path / "none.txt", 3)


def test_results_are_named_apart_however_the_images_are():
    assert output_names(["a/x.jpg", "b/y.png"]) == ["x", "y"]
    assert output_names(["d/a/x.jpg", "d/b/x.jpg", "d/b/y.jpg"]) == ["a/x", "b/x", "b/y"]
    assert output_names(["d/x.jpg", "d/x.png"]) == ["x.jpg", "x.png"]
    assert output_names(["d/x.v1.jpg"]) == ["x.v1"]
    with pytest.raises(ValueError, match="d/x.jpg: this image stands in the list twice"):
        output_names(["d/x.jpg", "./d/x.jpg"])
