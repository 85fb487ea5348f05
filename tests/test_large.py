"""Large images are predicted in strips, in the memory of a row of windows."""

import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from test_inference import MEAN, STD, convolution, layers

from tool.demo import show_picture
from util import inference
from util.inference import predict, predict_probability, probability_strips
from util.log import build_logger
from util.memory import Memory
from util.visual import overlay


def settings(rng, **changes):
    """Random settings; every window is smaller than most images."""
    how = {"classes": 5, "base_size": None, "crop_h": rng.integers(9, 40), "crop_w": rng.integers(9, 60), "scales": (1.0,),
           "mean": MEAN, "std": STD, "flip": bool(rng.integers(2)), "stride_rate": rng.choice([1 / 3, 2 / 3, 1.0]),
           "test_batch": int(rng.integers(1, 9)), "average": str(rng.choice(["prob", "logit"])),
           "align_corners": bool(rng.integers(2))}  # fmt: skip
    return how | changes


def photograph(rng, h, w):
    return rng.integers(0, 256, (h, w, 3)).astype(np.uint8)


@pytest.fixture
def strips(monkeypatch):
    """Every image is large, and strips have few rows."""
    monkeypatch.setattr(inference, "WHOLE", 0)
    monkeypatch.setattr(inference, "STRIP", 7)


@pytest.mark.parametrize("seed", range(12))
@torch.inference_mode()
def test_at_the_images_own_size_strips_hold_the_bits_of_the_whole(strips, seed):
    rng = np.random.default_rng(seed)
    image = photograph(rng, rng.integers(1, 140), rng.integers(1, 180))
    how, model = settings(rng, average="prob"), (layers(), lambda x: convolution(x, moving=True))[seed % 2]
    whole = predict_probability(model, image, **how)
    parts = list(probability_strips(model, image, **how, limit=0))
    assert len(parts) == -(-len(image) // 7)
    assert torch.equal(torch.cat(parts, 1), whole)
    assert np.array_equal(predict(model, image, **how), whole.argmax(0))


@pytest.mark.parametrize("seed", range(12))
@torch.inference_mode()
def test_resized_scales_and_averages_of_logits_differ_by_rounding_and_their_classes_by_ties(strips, seed):
    rng = np.random.default_rng(seed)
    h, w = rng.integers(30, 140, 2)
    sizes = {0: None, 1: int(rng.integers(20, 160)), 2: tuple(rng.integers(20, 160, 2).tolist())}
    how = settings(rng, base_size=sizes[seed % 3], scales=rng.choice([0.3, 0.5, 0.75, 1.0, 1.25, 1.75], 3).tolist())
    image = photograph(rng, h, w)
    whole = predict_probability(layers(), image, **how)
    parts = torch.cat(list(probability_strips(layers(), image, **how, limit=0)), 1)
    torch.testing.assert_close(parts, whole, rtol=0, atol=2e-6)
    first, second = whole.topk(2, 0).values
    other = torch.from_numpy(predict(layers(), image, **how)) != whole.argmax(0)
    assert (first - second)[other].lt(4e-6).all()  # twice the difference above


@pytest.mark.parametrize("limit, strips", [(4 * 5 * 60 * 70, 1), (4 * 5 * 60 * 70 - 1, 2)])
def test_images_up_to_a_limit_are_one_strip(limit, strips):
    rng = np.random.default_rng(0)
    parts = list(probability_strips(convolution, photograph(rng, 60, 70), **settings(rng, average="prob"), limit=limit))
    assert len(parts) == strips


def test_windows_come_in_the_same_batches(strips):
    """What a network computes may depend on the batch that an image is in."""
    rng = np.random.default_rng(0)
    image, how = photograph(rng, 90, 110), settings(rng, crop_h=33, crop_w=41, test_batch=5, stride_rate=0.4)
    seen = []

    def model(x):
        seen.append(x.clone())
        return convolution(x)

    predict_probability(model, image, **how)
    whole = seen.copy()
    seen.clear()
    predict(model, image, **how)
    assert len(seen) == len(whole) > 2 and all(torch.equal(a, b) for a, b in zip(seen, whole))


@pytest.mark.parametrize("row", [3, 77])
@pytest.mark.parametrize("average", ["prob", "logit"])
def test_a_value_that_is_not_finite_is_found_in_any_strip(strips, row, average):
    rng = np.random.default_rng(0)
    image = photograph(rng, 80, 60) // 2
    image[row, 5] = 255

    def model(x):
        return convolution(x).masked_fill((x > 2.2).all(1, keepdim=True), float("nan"))

    with pytest.raises(FloatingPointError, match="NaN or infinite"):
        predict(model, image, **settings(rng, average=average))


def test_whole_images_in_one_window_stay_whole(strips):
    rng = np.random.default_rng(0)
    image, how = photograph(rng, 50, 60), settings(rng, mode="whole", scales=(0.5, 1.0))
    assert np.array_equal(predict(layers(), image, **how), predict_probability(layers(), image, **how).argmax(0))


@pytest.mark.parametrize("limit, least, most", [(0, 0.05, 0.15), (2**31, 1, 1.6)])
def test_strips_take_a_fraction_of_the_memory(monkeypatch, limit, least, most):
    """The most bytes that tensors have at one time, as a share of those of all probabilities."""
    monkeypatch.setattr(inference, "WHOLE", limit)
    monkeypatch.setattr(inference, "STRIP", 8)
    image = photograph(np.random.default_rng(0), 1500, 200)
    how = settings(np.random.default_rng(0), classes=19, crop_h=65, crop_w=65, average="prob", test_batch=1, stride_rate=2 / 3)
    with Memory() as memory:
        predict(lambda x: x.repeat(1, 7, 1, 1)[:, :19], image, **how)
    assert least < memory.peak / (4 * 19 * 1500 * 200) < most


def test_several_models_are_averaged_in_strips_and_as_a_whole(monkeypatch):
    rng = np.random.default_rng(0)
    image, how, models = photograph(rng, 90, 80), settings(rng, scales=(1.0, 0.7)), [layers(), convolution]
    expected = sum(predict_probability(model, image, **how) for model in models).argmax(0)
    assert np.array_equal(predict(models, image, **how), expected)
    monkeypatch.setattr(inference, "WHOLE", 0)
    assert (predict(models, image, **how) == expected.numpy()).mean() > 0.999
    assert not np.array_equal(predict(models[0], image, **how), expected)


@pytest.mark.parametrize("classes, dtype", [(19, np.uint8), (300, np.uint16)])
def test_colours_over_a_large_picture_are_those_over_its_rows(classes, dtype):
    rng = np.random.default_rng(0)
    image, ids = photograph(rng, 700, 3), rng.integers(0, classes + 2, (700, 3)).astype(dtype)
    palette = rng.integers(0, 256, (classes, 3)).astype(np.uint8)
    tracemalloc.start()
    rows = [overlay(image[i : i + 1], ids[i : i + 1], palette) for i in range(700)]
    assert np.array_equal(overlay(image, ids, palette), np.concatenate(rows))
    row, i = rows[9], 9
    expected = [np.rint((a + (palette[c] if c < classes else 0)) / 2) for a, c in zip(image[i].astype(float), ids[i])]
    assert np.array_equal(row[0], np.uint8(expected))
    image, ids = np.repeat(image, 500, 1), np.repeat(ids, 500, 1)
    tracemalloc.reset_peak()
    before, _ = tracemalloc.get_traced_memory()
    picture = overlay(image, ids, palette)
    assert picture.nbytes < tracemalloc.get_traced_memory()[1] - before < 8 * picture.nbytes
    tracemalloc.stop()
    assert overlay(image, ids, palette, out=image) is image and np.array_equal(image, picture)


class Predicted:
    """In the place of a Predictor: what it has predicted."""

    def __init__(self, ids, palette):
        self.ids, self.palette, self.names = ids, palette, [f"name {k}" for k in range(len(palette))]

    def __call__(self, image):
        return self.ids


@pytest.mark.parametrize("side_by_side", [False, True])
def test_the_demo_makes_no_second_large_picture(tmp_path, monkeypatch, side_by_side):
    """Overlay and legend are written in strips; Pillow, which copies what it writes in colours, gets ids alone."""
    rng = np.random.default_rng(0)
    image, ids = photograph(rng, 6000, 250), np.kron(rng.integers(0, 3, (60, 5)), np.ones((100, 50), int)).astype(np.uint8)
    predictor, shapes, fromarray = Predicted(ids, rng.integers(0, 256, (3, 3)).astype(np.uint8)), [], Image.fromarray
    mixed = overlay(image, ids, predictor.palette)
    expected = np.hstack([image, mixed]) if side_by_side else mixed
    args, log = SimpleNamespace(legend=True, side_by_side=side_by_side), build_logger(silent=True)
    monkeypatch.setattr(Image, "fromarray", lambda array, *more: shapes.append(array.shape) or fromarray(array, *more))
    tracemalloc.start()
    show_picture(predictor, image, tmp_path / "a", args, log)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.9 * image.nbytes and shapes == [(6000, 250)] * 2
    written = np.asarray(Image.open(tmp_path / "a_overlay.png"))
    assert np.array_equal(written[:6000, : expected.shape[1]], expected) and len(written) > 6000
