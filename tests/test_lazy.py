"""Compose(ops, lazy=True) against Compose(ops): labels equal, images within 0.05 grey levels."""

import random

import cv2
import numpy as np
import pytest
from test_transform import GOLDEN, MEAN, STD, TRAIN_PIPELINE, picture

from util import transform as T

pytestmark = pytest.mark.skipif(not T.warp_is_exact(), reason="this OpenCV's warp is too coarse: lazy runs op by op")


def noise(seed, h, w, dtype=np.uint8):
    draw = np.random.default_rng(seed)
    return draw.integers(0, 256, (h, w, 3), np.uint8), draw.integers(0, 120, (h, w)).astype(dtype)


def assert_lazy_is_plain(ops, image, label, seed):
    plain_rng, lazy_rng = random.Random(seed), random.Random(seed)
    expected = T.Compose(ops)(image.astype(np.float32), label, plain_rng)
    got = T.Compose(ops, lazy=True)(image, label, lazy_rng)
    assert got[0].shape == expected[0].shape and got[0].dtype == expected[0].dtype
    assert got[1].dtype == expected[1].dtype
    np.testing.assert_allclose(got[0], expected[0], rtol=0, atol=0.05)
    np.testing.assert_array_equal(got[1], expected[1])
    assert lazy_rng.getstate() == plain_rng.getstate()


@pytest.mark.parametrize("seed", range(6))
def test_the_golden_pipeline_comes_out_lazily(seed):
    image, label = picture(90, 120)
    image, label = T.Compose(TRAIN_PIPELINE, lazy=True)(image, label, random.Random(seed))
    error = np.abs(image.numpy() - GOLDEN[f"transform/train_pipeline/seed{seed}/image"]) * np.reshape(STD, (3, 1, 1))
    assert error.max() < 0.05
    np.testing.assert_array_equal(label, GOLDEN[f"transform/train_pipeline/seed{seed}/label"])


@pytest.mark.parametrize("seed", range(300))
def test_lazy_is_plain_for_any_size_order_and_seed(seed):
    draw = random.Random(seed)
    scale = draw.choice([[0.5, 2], [0.5, 2], [0.2, 4], [0.5, 0.5], [2, 2], [0.99, 1.01]])
    ops = [
        T.RandScale(scale, draw.choice([None, [0.8, 1.25]])),
        T.RandRotate(draw.choice([[-10, 10], [-180, 180]]), MEAN, p=0.7),
        T.RandomGaussianBlur(draw.choice([3, 5, 9])),
        T.RandomHorizontalFlip(),
        T.RandomVerticalFlip(),
    ]
    if seed % 2:
        draw.shuffle(ops)
    size = [draw.randint(1, 150), draw.randint(1, 150)]
    ops.insert(draw.choice([5, 5, 4]), T.Crop(size, draw.choice(["rand", "rand", "center"]), MEAN))
    dtype = draw.choice([np.uint8, np.uint16, np.int16, np.int32])
    assert_lazy_is_plain(ops, *noise(seed, draw.randint(5, 250), draw.randint(5, 300), dtype), seed)


@pytest.mark.parametrize("seed", range(4))
def test_lazy_is_plain_on_large_frames_of_noise(seed):
    """The worst case for the arithmetic: coordinates in the thousands and neighbours that differ by 255."""
    assert_lazy_is_plain([*TRAIN_PIPELINE[:4], T.Crop(321, "rand", MEAN)], *noise(seed, 512, 1536), seed)


def test_a_crop_that_shows_only_corners_of_a_rotated_image_is_padding():
    image, label = noise(0, 60, 200)
    assert_lazy_is_plain([T.RandRotate([90, 90], MEAN, p=1), T.RandomHorizontalFlip(p=1), T.Crop([9, 9])], image, label, 0)
    for seed in range(8):
        assert_lazy_is_plain([T.RandRotate([90, 90], MEAN, p=1), T.Crop([9, 9], "rand")], image, label, seed)


def test_transforms_that_know_no_windows_run_one_by_one():
    def invert(image, label, rng):
        return 255 - image + rng.random(), label

    ops = [T.RandScale([0.5, 2]), invert, T.RandRotate([-10, 10], MEAN), T.Crop(50, "rand", MEAN), T.Resize([20, 30])]
    assert_lazy_is_plain(ops, *noise(1, 90, 120), 1)
    assert_lazy_is_plain([T.RandScale([0.5, 2]), T.RandomHorizontalFlip()], *noise(1, 90, 120), 1)
    assert_lazy_is_plain([T.Crop(50, "rand", MEAN), T.RandScale([0.5, 2]), T.Crop(70, "rand", MEAN)], *noise(1, 90, 120), 1)
    assert_lazy_is_plain([T.Crop(200, "center", MEAN), T.Crop(20, "rand", MEAN)], *noise(1, 90, 120), 1)
    assert_lazy_is_plain([], *noise(1, 90, 120), 1)


def test_nothing_but_the_window_of_the_crop_is_computed(monkeypatch):
    largest = []

    def watched(image, *args, warp=cv2.warpAffine, **kwargs):
        out = warp(image, *args, **kwargs)
        if out.ndim == 3:
            largest.append(max(*image.shape[:2], *out.shape[:2]))
        return out

    monkeypatch.setattr(cv2, "warpAffine", watched)
    ops = [T.RandScale([1.5, 2]), T.RandRotate([-10, 10], MEAN, p=1), T.RandomGaussianBlur(), T.Crop(65, "rand", MEAN)]
    T.Compose(ops, lazy=True)(*noise(0, 400, 500), random.Random(0))
    assert len(largest) == 2 and max(largest) < 90


def test_a_memory_map_is_read_and_not_changed(tmp_path):
    image, label = noise(0, 90, 120)
    image.tofile(tmp_path / "image")
    label.tofile(tmp_path / "label")
    image_map = np.memmap(tmp_path / "image", np.uint8, "r", shape=image.shape)
    label_map = np.memmap(tmp_path / "label", np.uint8, "r", shape=label.shape)
    for seed in range(4):
        assert_lazy_is_plain(TRAIN_PIPELINE, image_map, label_map, seed)


def test_an_inexact_warp_falls_back_to_the_plain_order(monkeypatch):
    monkeypatch.setattr(T, "warp_is_exact", lambda: False)
    image, label = noise(0, 90, 120)
    expected = T.Compose(TRAIN_PIPELINE)(image, label, random.Random(0))
    got = T.Compose(TRAIN_PIPELINE, lazy=True)(image, label, random.Random(0))
    np.testing.assert_array_equal(got[0], expected[0])


def test_a_coarse_warp_is_noticed(monkeypatch):
    def coarse(image, matrix, *args, warp=cv2.warpAffine, **kwargs):
        return warp(image, np.round(matrix * 32) / 32, *args, **kwargs)

    T.warp_is_exact.cache_clear()
    monkeypatch.setattr(cv2, "warpAffine", coarse)
    assert not T.warp_is_exact()
    T.warp_is_exact.cache_clear()
