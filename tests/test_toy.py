"""The toy street: same pixels for the same seed, every class, little void, and a low baseline."""

import numpy as np
import pytest

from dataset.build import row_baseline
from dataset.toy.scene import CLASSES, VOID, render_scene
from util.config import ROOT


@pytest.fixture(scope="module")
def scenes():
    return [render_scene(np.random.default_rng([0, i]), 96, 128) for i in range(36)]


def test_same_seed_gives_the_same_pixels(scenes):
    image, label = render_scene(np.random.default_rng([0, 7]), 96, 128)
    assert image.tobytes() == scenes[7][0].tobytes() and label.tobytes() == scenes[7][1].tobytes()
    assert image.tobytes() != scenes[8][0].tobytes()


@pytest.mark.parametrize("height, width", [(192, 256), (96, 128), (33, 57), (16, 16)])
def test_scene_has_the_size_and_types_asked_for(height, width):
    image, label = render_scene(np.random.default_rng(3), height, width)
    assert image.shape == (height, width, 3) and image.dtype == np.uint8
    assert label.shape == (height, width) and label.dtype == np.uint8


def test_labels_are_the_nine_classes_and_void(scenes):
    assert set(np.unique([label for _, label in scenes])) == {*range(len(CLASSES)), VOID}


def test_every_class_is_in_most_scenes(scenes):
    for k, name in enumerate(CLASSES):
        assert np.mean([(label == k).any() for _, label in scenes]) > 0.6, name


def test_void_share_is_small(scenes):
    assert 0.005 < np.mean([label == VOID for _, label in scenes]) < 0.1


def test_baseline_of_rows_is_low(scenes):
    rows = np.array([[np.bincount(row, minlength=256) for row in label] for _, label in scenes])
    assert 0.05 < row_baseline(rows[:26].sum(0), rows[26:].sum(0), len(CLASSES)) < 0.2


def test_row_baseline_is_one_where_the_row_decides_the_class():
    rows = np.eye(9, 256, dtype=np.int64).repeat(4, 0) * 50
    rows[:, VOID] = 3
    assert row_baseline(rows, rows, 9) == 1.0


def test_no_two_classes_share_a_plain_colour(scenes):
    """Road, pavement, building and sky overlap in brightness: a threshold cannot part them."""
    grey = {k: np.concatenate([image.mean(2)[label == k] for image, label in scenes]) for k in range(4)}
    spans = [np.quantile(values, (0.1, 0.9)) for values in grey.values()]
    assert max(low for low, _ in spans) < min(high for _, high in spans)


def test_names_and_colours_on_disk_are_those_of_the_renderer():
    assert tuple((ROOT / "dataset/toy/toy_names.txt").read_text().splitlines()) == CLASSES
    assert np.loadtxt(ROOT / "dataset/toy/toy_colors.txt").shape == (len(CLASSES), 3)


@pytest.mark.parametrize("name, classes", [("ade20k", 150), ("cityscapes", 19), ("voc2012", 21), ("camvid", 11), ("bdd", 19)])
def test_names_and_colours_have_one_line_a_class(name, classes):
    folder = ROOT / "dataset" / name
    names = (folder / f"{name}_names.txt").read_text().splitlines()
    colors = np.loadtxt(folder / f"{name}_colors.txt")
    assert len(names) == len(set(names)) == classes
    assert colors.shape == (classes, 3) and colors.min() >= 0 and colors.max() <= 255
