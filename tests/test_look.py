"""`tool/prepare.py look`: contact sheets show what training sees."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from dataset import look as sheets
from tool import prepare
from util.config import load_config
from util.dataset import EpochSampler
from util.image import read_image
from util.loader import build_data
from util.transform import MEAN, STD
from util.visual import overlay, palette_of

CROP = 33
CONFIG = "toy_pspnet18"
PIPELINE = "[{HorizontalFlip: {p: 0.5}}, {RandomCrop: {height: 33, width: 33}}]"


@pytest.mark.parametrize("augmentation", ["semseg", "mmseg", PIPELINE])
def test_sheets_show_the_first_samples_of_a_training(toy_options, tmp_path, capsys, augmentation):
    if augmentation == PIPELINE:
        pytest.importorskip("albumentations")
    options = [*toy_options, "augmentation", augmentation]
    prepare.main(["look", "--out", str(tmp_path / "seen"), "--count", "6", CONFIG, *options])
    assert "6 of the 13 samples of epoch 0, seed 7, crop 33 x 33" in capsys.readouterr().out
    sheet = read_image(tmp_path / "seen/look_1.png")

    cfg = load_config("config/toy/toy_pspnet18.yaml", options)
    data, _ = build_data(cfg)
    data.seed = 7
    first_batches = [key for batch in list(EpochSampler(len(data), cfg.batch_size, seed=7))[:2] for key in batch]
    for i, key in enumerate(first_batches[:6]):
        image, label = data[key]
        image = np.clip(np.rint(image.permute(1, 2, 0).numpy() * np.float32(STD) + np.float32(MEAN)), 0, 255).astype(np.uint8)
        pair = np.hstack([image, overlay(image, label.numpy(), palette_of(cfg))])
        y = i // sheets.COLUMNS * (CROP + sheets.CAPTION + sheets.GAP) + sheets.CAPTION
        x = i % sheets.COLUMNS * (2 * CROP + sheets.GAP)
        assert (sheet[y : y + CROP, x : x + 2 * CROP] == pair).all()


def test_more_samples_than_a_sheet_holds_go_on_the_next(toy_options, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sheets, "ROWS", 2)
    prepare.main(["look", CONFIG, "--out", str(tmp_path), "--count", "100", *toy_options])
    assert "13 of the 13 samples" in (out := capsys.readouterr().out) and "look_1.png to look_2.png" in out
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["look_1.png", "look_2.png"]


def test_an_image_that_is_listed_twice_is_shown_twice(toy_options, tmp_path, capsys):
    cfg = load_config("config/toy/toy_pspnet18.yaml", toy_options)
    first = Path(cfg.train_list).read_text().splitlines()[0]
    (tmp_path / "twice.txt").write_text(f"{first}\n{first}\n")
    prepare.main(["look", CONFIG, "--out", str(tmp_path), *toy_options, "train_list", str(tmp_path / "twice.txt")])
    assert "2 of the 2 samples" in capsys.readouterr().out


def test_large_crops_are_reduced(toy_options, tmp_path):
    prepare.main(["look", CONFIG, "--out", str(tmp_path), "--count", "1", *toy_options, "train_h", "513", "train_w", "1025"])
    assert cv2.imread(str(tmp_path / "look_1.png")).shape[1] == 2 * sheets.SIDE + sheets.GAP
