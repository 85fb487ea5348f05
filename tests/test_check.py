"""`tool/prepare.py check`: faults of a data set and the table of classes."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from dataset.check import _unfit_sizes, check
from tool import prepare
from util.config import ROOT, load_config
from util.dataset import read_list
from util.image import read_label
from util.loader import automatic_class_weights, class_sums, class_weights
from util.log import report_errors
from util.visual import save_png

SIZE = 12, 16


@pytest.fixture
def data(tmp_path):
    """Four training and two validation samples of three classes, and their config."""
    rng = np.random.default_rng(0)
    (tmp_path / "list").mkdir()
    for split, n in (("train", 4), ("val", 2)):
        for kind in ("image", "label"):
            (tmp_path / kind / split).mkdir(parents=True)
        for i in range(n):
            save_png(tmp_path / "image" / split / f"{i}.png", rng.integers(0, 256, (*SIZE, 3), np.uint8))
            label = rng.integers(0, 3, SIZE, np.uint8)
            label[0] = 255
            save_png(tmp_path / "label" / split / f"{i}.png", label)
        rows = (f"image/{split}/{i}.png label/{split}/{i}.png\n" for i in range(n))
        (tmp_path / "list" / f"{split}.txt").write_text("".join(rows))
    (tmp_path / "names.txt").write_text("sea\nsand\nsky\n")
    (tmp_path / "config.yaml").write_text(f"""
DATA:
  data_root: {tmp_path}
  train_list: {tmp_path}/list/train.txt
  val_list: {tmp_path}/list/val.txt
  classes: 3
TRAIN:
  train_h: 17
  train_w: 17
  save_path: {tmp_path}/model
TEST:
  test_list: {tmp_path}/list/val.txt
  names_path: {tmp_path}/names.txt
""")
    return tmp_path


def faults_of(data, *overrides):
    return check(load_config(data / "config.yaml", overrides))[1]


def run(data, *overrides):
    return report_errors(lambda: prepare.main(["check", "--config", str(data / "config.yaml"), *overrides]))


def test_sound_data_have_no_faults(data, capsys):
    assert run(data) == 0
    out = capsys.readouterr().out
    rows = [line.split() for line in out.splitlines()]
    assert ["id", "class", "train", "val", "auto", "sqrt"] in rows and ["images", "4", "2"] in rows
    assert out.endswith("no faults\n")
    assert ["void", "8.33", "%", "8.33", "%"] in rows


def test_the_table_counts_every_pixel(data):
    report, _ = check(load_config(data / "config.yaml"))
    labels = np.stack([read_label(data / "label/train" / f"{i}.png") for i in range(4)])
    share = 100 * (labels == 1).sum() / (labels < 3).sum()
    assert f" 1  sand    {share:.2f} %" in report


def test_a_class_without_pixels_is_mentioned(data):
    report, faults = check(load_config(data / "config.yaml", ["classes", "4", "names_path", "null"]))
    assert "train has no pixel of: class 3" in report and faults == []


VOID_IDS = np.full(SIZE, 255, np.uint8)
COLOURS = np.random.default_rng(1).integers(0, 256, (*SIZE, 3), np.uint8)


def spoil(data, path, content):
    """Write an image or bytes in the place of a file; None: remove it; a function: what it makes of the bytes."""
    if callable(content):
        content = content((data / path).read_bytes())
    if content is None:
        (data / path).unlink()
    elif isinstance(content, bytes):
        (data / path).write_bytes(content)
    else:
        save_png(data / path, content)


RANGE, SIZES = ("label/val/1.png", np.full(SIZE, 3, np.uint8)), ("label/train/1.png", np.zeros((12, 15), np.uint8))
NAMES, COLOUR = ("names.txt", b"sea\nsand\n"), ("label/train/3.png", COLOURS)
FAULTS = {
    "label/val/1.png: label ids outside 0..2 that are not ignore_label = 255: 3 (192 pixels)": [RANGE],
    "1000 (192 pixels)": [("label/val/1.png", np.full(SIZE, 1000, np.uint16))],
    "label/train/1.png: 15 x 12, but its image": [SIZES],
    "image/train/1.png: the file is empty": [("image/train/1.png", b"")],
    "image/train/1.png: cannot be decoded": [("image/train/1.png", lambda data: data[:-60])],
    "label/train/3.png": [("label/train/3.png", None)],
    "label/train/3.png: a colour mask": [COLOUR],
    "names.txt: expected 3 names": [NAMES],
    "list/val.txt: no such list file": [("list/val.txt", None)],
    "image/train/2.png is in the training list too": [("list/val.txt", b"image/train/2.png label/train/2.png\n")],
    "list/train.txt: is the val list and the training list": [
        ("config.yaml", lambda text: text.replace(b"list/val.txt", b"list/train.txt", 1))],
    "image/val/1.png is in the training list too, there as": [
        ("image/train/2.png", COLOURS), ("image/val/1.png", COLOURS)],
    "list/val.txt: every pixel of the 2 labels is ignore_label = 255": [
        (f"label/val/{i}.png", VOID_IDS) for i in range(2)],
    "list/val.txt: not UTF-8 text (byte 6: ": [("list/val.txt", b"image/\xff.png label/0.png\n")],
    "names.txt: not UTF-8 text (byte 18: ": [("names.txt", b"sea\nsand\nciel bleu\xe9\n")],
    "image/train/2.png is listed 3 times": [("list/train.txt", b"image/train/2.png label/train/2.png\n" * 3)],
}  # fmt: skip


@pytest.mark.parametrize("message", FAULTS)
def test_a_fault_is_named_and_the_status_is_one(data, capsys, message):
    for change in FAULTS[message]:
        spoil(data, *change)
    assert run(data) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: 1 fault:") and message in error


def test_all_faults_are_reported_together(data):
    for change in (RANGE, SIZES, NAMES, COLOUR):
        spoil(data, *change)
    (data / "colors.txt").write_text("1 2 3\n")
    assert len(faults_of(data, "colors_path", str(data / "colors.txt"))) == 5


def test_a_test_list_may_have_no_labels(data):
    (data / "list/test.txt").write_text("image/val/0.png\n")
    assert faults_of(data, "test_list", str(data / "list/test.txt"), "split", "test", "val_list", "null") == []


def test_overrides_reach_the_check(data):
    assert any("outside 0..1" in fault for fault in faults_of(data, "classes", "2", "names_path", "null"))


def test_class_weights_are_the_median_frequency_over_the_frequency():
    pixels = [np.array([60, 20, 0, 20]), np.array([20, 80, 0, 0]), np.array([100, 0, 0, 0])]
    frequency = np.array([180 / 300, 100 / 200])  # of the pixels of the images that hold the class
    weights = class_weights(sum(map(class_sums, pixels)))
    assert np.allclose(weights[:2], np.median(frequency) / frequency) and np.isnan(weights[2])


def test_automatic_weights_are_one_where_there_is_nothing_to_count(data):
    pairs = read_list(data / "list/train.txt", data, "train")
    weights = automatic_class_weights("auto", pairs, 4)
    assert weights[3] == 1 and min(weights) > 0
    assert automatic_class_weights("sqrt", pairs, 4) == [math.sqrt(weight) for weight in weights]
    for _, label in pairs:
        save_png(label, np.full(SIZE, 255, np.uint8))
    assert automatic_class_weights("auto", pairs, 4) == automatic_class_weights("sqrt", pairs, 4) == [1.0] * 4


def test_an_ignored_class_is_left_out_of_the_automatic_weights(data):
    pairs = read_list(data / "list/train.txt", data, "train")
    weights = automatic_class_weights("auto", pairs, 3, ignore_label=0)
    assert weights[0] == 1 and automatic_class_weights("auto", pairs, 3) != weights
    frequency = np.mean([[(read_label(label) == k).mean() for k in (1, 2)] for _, label in pairs], 0)
    assert np.allclose(weights[1:], np.median(frequency) / frequency)


# ---- sizes


def warnings_of(data, *overrides):
    report, faults = check(load_config(data / "config.yaml", overrides))
    assert not faults
    return [line for line in report.splitlines() if line.startswith("warning: ")]


def test_a_config_that_fits_the_images_gives_no_warning(data):
    assert warnings_of(data) == [] == warnings_of(data, "base_size", "16", "scales", "[0.5, 4.0]")


def test_a_base_size_far_from_the_images_is_warned_of(data):
    (warning,) = warnings_of(data, "base_size", "100")
    assert "the median image of val, 16 x 12 pixels, is scaled by 6.25, and in training by 0.5 to 2" in warning
    assert warnings_of(data, "base_size", "100", "scale_min", "3", "scale_max", "12") == []
    (warning,) = warnings_of(data, "base_size", "[2, 8]")
    assert "is scaled by 0.167" in warning  # of the two sides the one that is reached first


def test_crops_that_do_not_go_with_the_images_are_warned_of(data):
    (warning,) = warnings_of(data, "train_h", "33", "train_w", "41")
    assert "train_h, train_w: 33 x 41 is larger than the median image of" in warning and "scaled by 0.5 to 2" in warning
    more = ["scale_min", "10", "scale_max", "20", "base_size", "200"]
    (warning,) = warnings_of(data, *more)
    assert "train_h, train_w: 17 x 17 shows little of the median image" in warning
    assert warnings_of(data, *more, "augmentation", "mmseg", "resize_box", "[16, 1]") != []


def test_a_config_may_stand_alone_or_behind_a_flag(data, capsys):
    for words in ([str(data / "config.yaml"), "base_size", "16"], ["--config", str(data / "config.yaml"), "base_size", "16"]):
        assert report_errors(lambda words=words: prepare.main(["check", *words])) == 0
    with pytest.raises(SystemExit):
        prepare.main(["check"])
    assert "which config? Give CONFIG" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        prepare.main(["check", str(data / "config.yaml"), "--bogus"])
    assert "unrecognized arguments: --bogus" in capsys.readouterr().err


MEDIAN = {"toy": (256, 192), "camvid": (480, 360), "cityscapes": (2048, 1024), "ade20k": (683, 512), "voc2012": (500, 375)}


SHIPPED = [path for name in MEDIAN for path in sorted(ROOT.glob(f"config/{name}/*.yaml"))]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_no_shipped_config_is_warned_of_the_images_that_it_is_for(path, monkeypatch):
    monkeypatch.setattr("dataset.check._sides", lambda image: MEDIAN[path.parent.name])
    lists = {name: SimpleNamespace(data_list=[("image", "label")]) for name in ("train", "val")}
    assert [*_unfit_sizes(load_config(path), lists)] == []
