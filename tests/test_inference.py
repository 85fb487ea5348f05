from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden_rules import draw, fill_, golden_image

from model.exported import Window
from model.psanet import PSANet
from model.pspnet import PSPNet
from model.smp import SMPPSPNet
from util import transform
from util.config import ROOT, load_config
from util.inference import (
    _window_logits,
    most_probable,
    predict,
    predict_probability,
    prediction_settings,
    scaled_size,
    window_starts,
)

pytestmark = pytest.mark.usefixtures("two_threads")
GOLDEN = np.load(Path(__file__).parent / "golden/semseg.npz")
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def convolution(x, classes=5, moving=False):
    """The golden numbers' network; `moving` adds a pattern that depends on the position inside the window."""
    weight, bias = draw("fake.weight", (classes, 3, 3, 3)), draw("fake.bias", (classes,))
    logits = F.conv2d(x, weight, bias, padding=1)
    if moving:
        k = torch.arange(1.0, classes + 1).view(classes, 1, 1)
        y, x = torch.arange(logits.shape[2]).view(-1, 1), torch.arange(logits.shape[3])
        logits = logits + torch.sin(0.13 * k * y) + torch.cos(0.07 * k * x)
    return logits


def run(model, image, function=predict_probability, **changes):
    settings = {"classes": 5, "base_size": None, "crop_h": 33, "crop_w": 41, "scales": (1.0,), "mean": MEAN, "std": STD}
    return function(model, image, **(settings | changes))


@pytest.mark.parametrize("test_batch", [1, 4])
@pytest.mark.parametrize("name", ["ss", "ms", "tall_pad", "pos_ms", "pos_pad"])
def test_sliding_windows_give_the_golden_numbers(name, test_batch):
    h, w, base_size, crop_h, crop_w = GOLDEN[f"slide/{name}/spec"].tolist()
    image, _ = golden_image(f"slide_{name}", h, w, 5)
    prob = run(
        lambda x: convolution(x, moving=name.startswith("pos")),
        image,
        base_size=base_size,
        crop_h=crop_h,
        crop_w=crop_w,
        scales=GOLDEN[f"slide/{name}/scales"].tolist(),
        test_batch=test_batch,
    )
    assert prob.shape == (5, h, w) and prob.dtype == torch.float32
    assert np.abs(prob.permute(1, 2, 0)[::3, ::3].numpy() - GOLDEN[f"slide/{name}/prob_s3"]).max() < 1e-5
    assert np.array_equal(prob.argmax(0).numpy(), GOLDEN[f"slide/{name}/pred"])


@pytest.mark.parametrize("shape", [(1, 1), (1, 90), (90, 1), (7, 5), (33, 41), (34, 120), (100, 42)])
def test_every_shape_of_image_works_and_probabilities_sum_to_one(shape):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8)
    prob = run(convolution, image, scales=(0.25, 1.0, 1.3), test_batch=3)
    assert prob.shape == (5, *shape) and torch.allclose(prob.sum(0), torch.ones(shape), atol=1e-5)


def test_batches_of_windows_give_what_single_windows_give():
    image, _ = golden_image("batch", 95, 130, 5)
    one, many = (run(convolution, image, test_batch=n, scales=(0.8, 1.0)) for n in (1, 100))
    assert torch.allclose(one, many, atol=1e-6)


def test_images_of_bytes_and_floats_are_the_same_and_stay_as_they_are():
    image, _ = golden_image("bytes", 40, 50, 5)
    before = image.copy()
    floats = image.astype(np.float32)
    frozen = image[:, ::-1][:, ::-1]
    frozen.flags.writeable = False
    assert torch.equal(run(convolution, image), run(convolution, floats))
    assert torch.equal(run(convolution, image), run(convolution, frozen))
    assert np.array_equal(image, before) and np.array_equal(floats, before)


def test_padding_is_the_mean_and_centred_with_the_odd_pixel_after():
    seen = []

    def model(x):
        seen.append(x.clone())
        return x.new_zeros(len(x), 5, *x.shape[2:])

    run(model, np.full((30, 40, 3), 255, np.uint8), flip=False)
    inside = (seen[0][0] != 0).all(0)
    assert len(seen) == 1 and seen[0].shape == (1, 3, 33, 41)
    assert inside[1:31, :40].all() and inside.sum() == 30 * 40  # 3 rows: 1 above, 2 below; 1 column: to the right
    assert torch.allclose(seen[0][0, :, 5, 5], (255 - torch.tensor(MEAN)) / torch.tensor(STD))


def test_mirroring_averages_the_image_and_its_mirror():
    image, _ = golden_image("mirror", 33, 41, 5)
    moving = lambda x: convolution(x, moving=True)
    plain, mirrored = run(moving, image, flip=False), run(moving, image[:, ::-1], flip=False).flip(2)
    assert torch.allclose(run(moving, image), (plain + mirrored) / 2, atol=1e-6)
    assert not torch.allclose(plain, mirrored, atol=1e-2)


def test_windows_cover_the_side_and_the_last_ends_at_the_border():
    assert window_starts(33, 33, 2 / 3) == [0]
    assert window_starts(34, 33, 2 / 3) == [0, 1]
    assert window_starts(2048, 713, 2 / 3) == [0, 476, 952, 1335]
    for side in range(33, 200):
        starts = window_starts(side, 33, 2 / 3)
        assert starts[-1] + 33 == side and all(0 < b - a <= 22 for a, b in zip(starts, starts[1:]))


def test_scaled_sizes_round_half_to_even_and_never_vanish():
    assert scaled_size(100, 140, 0.75, 150) == (80, 112)  # 112.5 -> 112
    assert scaled_size(140, 100, 0.75, 150) == (112, 80)
    assert scaled_size(1, 1000, 0.25, 1000) == (1, 250)


@pytest.mark.parametrize(
    "shape, scale, box, expected",
    [
        ((1024, 2048), 1.75, (2048, 1024), (1792, 3584)),
        ((375, 500), 1.0, (2048, 512), (512, 683)),  # 500 * 512/375 = 682.67
        ((500, 375), 1.0, (2048, 512), (683, 512)),
        ((500, 375), 1.0, [512, 2048], (683, 512)),
        ((400, 1000), 0.5, (901, 501), (180, 450)),  # the long side decides: 450/1000
        ((100, 100), 0.5, (303, 101), (50, 50)),  # 50.5 is cut off before the ratio
        ((2, 4), 1.0, (9, 5), (5, 9)),  # 2 * 9/4 = 4.5 goes up
        ((1, 1000), 0.1, (100, 10), (1, 10)),
    ],
)
def test_images_fit_into_a_box_and_keep_their_ratio(shape, scale, box, expected):
    h, w = shape
    long, short = int(max(box) * scale), int(min(box) * scale)
    factor = min(long / max(h, w), short / min(h, w))
    assert scaled_size(h, w, scale, box) == expected == tuple(max(1, int(side * factor + 0.5)) for side in shape)
    assert scaled_size(w, h, scale, box) == expected[::-1]


def test_resizing_equals_opencv():
    image, _ = golden_image("resize", 61, 87, 5)
    for scale in (0.37, 1.9):
        seen = []
        run(
            lambda x, seen=seen: seen.append(x.clone()) or x,
            image,
            classes=3,
            flip=False,
            scales=(scale,),
            crop_h=200,
            crop_w=200,
        )
        h, w = scaled_size(61, 87, scale, 87)
        top, left = (200 - h) // 2, (200 - w) // 2
        expected = (cv2.resize(image.astype(np.float32), (w, h)) - np.float32(MEAN)) / np.float32(STD)
        ours = seen[0][0, :, top : top + h, left : left + w].permute(1, 2, 0).numpy()
        assert np.abs(ours - expected).max() < 1e-5


def test_small_logits_are_brought_to_the_window():
    image, _ = golden_image("small", 33, 41, 5)
    small = lambda x: convolution(x)[:, :, ::8, ::8]
    normal = torch.from_numpy((image - np.float32(MEAN)) / np.float32(STD)).permute(2, 0, 1)[None]
    expected = F.interpolate(small(normal), (33, 41), mode="bilinear", align_corners=True).softmax(1)[0]
    assert torch.allclose(run(small, image, flip=False), expected, atol=1e-6)


@pytest.mark.parametrize("classes, dtype", [(2, np.uint8), (256, np.uint8), (257, np.uint16), (300, np.uint16)])
def test_any_number_of_classes_is_predicted(classes, dtype):
    image, _ = golden_image("many", 20, 24, 5)

    def last(x):  # the last class always wins
        logits = x.new_zeros(len(x), classes, *x.shape[2:])
        logits[:, -1] = 1
        return logits

    pred = run(last, image, predict, classes=classes, scales=(0.5, 1.0))
    assert pred.dtype == dtype and pred.shape == (20, 24) and (pred == classes - 1).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("average", ["prob", "logit"])
def test_a_prediction_that_is_not_finite_is_refused(value, average):
    """max alone would take NaN for the largest, and everything would be that class."""
    image, _ = golden_image("finite", 40, 50, 5)

    def model(x):  # one value at one pixel
        logits = convolution(x)
        logits[0, 2, 3, 4] = value
        return logits

    with pytest.raises(FloatingPointError, match="NaN or infinite"):
        run(model, image, predict, average=average)
    run(lambda x: convolution(x).index_fill(1, torch.tensor(1), -float("inf")), image, predict)  # a class that is impossible


def test_of_equally_probable_classes_the_first_counts():
    probability = torch.from_numpy(np.random.default_rng(0).integers(0, 4, (7, 60, 50)).astype(np.float32))
    assert np.array_equal(most_probable(probability), probability.numpy().argmax(0))


def test_whole_images_go_through_in_one_piece_at_every_scale():
    image, _ = golden_image("whole", 52, 70, 5)
    seen = []

    def model(x):
        seen.append(tuple(x.shape))
        return convolution(x)

    prob = run(model, image, mode="whole", scales=(0.5, 1.0))
    assert seen == [(2, 3, 26, 35), (2, 3, 52, 70)] and prob.shape == (5, 52, 70)
    one_window = run(convolution, image, crop_h=52, crop_w=70)
    assert torch.equal(run(convolution, image, mode="whole"), one_window)


# ---- softmax last ----


def layers(classes=5):
    """Three layers whose zero padding makes windows differ where they overlap."""
    modules = [torch.nn.Conv2d(3, 8, 5, padding=2), torch.nn.ReLU(), torch.nn.Conv2d(8, classes, 5, padding=2)]
    return fill_(torch.nn.Sequential(*modules)).eval()


def average_of_logits(model, image, size, scales, flip, mode, align_corners, crop=(33, 41), stride=(22, 28)):
    """The same window by window. size: scale -> (h, w)."""
    x = torch.from_numpy((image - np.float32(MEAN)) / np.float32(STD)).permute(2, 0, 1)[None]
    passes = []
    for scale in scales:
        h, w = size(scale)
        scaled = F.interpolate(x, (h, w), mode="bilinear", align_corners=False)
        for mirrored in (False, True)[: 1 + flip]:
            seen = scaled.flip(3) if mirrored else scaled
            if mode == "whole":
                logits = model(seen)
            else:
                total, count = torch.zeros(1, 5, h, w), torch.zeros(h, w)
                for row in range(max(h - crop[0] + stride[0] - 1, 0) // stride[0] + 1):
                    for col in range(max(w - crop[1] + stride[1] - 1, 0) // stride[1] + 1):
                        bottom, right = min(row * stride[0] + crop[0], h), min(col * stride[1] + crop[1], w)
                        window = np.s_[max(bottom - crop[0], 0) : bottom, max(right - crop[1], 0) : right]
                        total[(..., *window)] += model(seen[(..., *window)])
                        count[window] += 1
                logits = total / count
            logits = F.interpolate(logits, image.shape[:2], mode="bilinear", align_corners=align_corners)
            prob = logits.softmax(1)
            passes.append(prob.flip(3) if mirrored else prob)
    return torch.cat(passes).mean(0)


@pytest.mark.parametrize("mode", ["slide", "whole"])
@pytest.mark.parametrize(
    "flip, scales, align_corners",
    [(False, (1.0,), False), (True, (1.0,), False), (True, (0.5, 1.25, 1.75), False), (True, (0.5, 1.25), True)],
)
@torch.inference_mode()
def test_logits_are_averaged_resized_and_only_then_made_probabilities(mode, flip, scales, align_corners):
    image, _ = golden_image("logits", 52, 90, 5)  # at 0.5 one side is below the window
    how = {"base_size": (80, 70), "flip": flip, "scales": scales, "mode": mode}
    expected = average_of_logits(
        layers(), image, lambda scale: scaled_size(52, 90, scale, (80, 70)), scales, flip, mode, align_corners
    )
    for test_batch in (1, 4):
        prob = run(layers(), image, average="logit", align_corners=align_corners, test_batch=test_batch, **how)
        assert prob.shape == (5, 52, 90) and prob.dtype == torch.float32
        torch.testing.assert_close(prob, expected, rtol=0, atol=2e-6)
    other = run(layers(), image, average="logit", align_corners=not align_corners, **how)
    assert (other - prob).abs().max() > 1e-3  # the switch has an effect
    assert (run(layers(), image, **how) - prob).abs().max() > 1e-3  # and so has the place of the softmax


def test_one_scale_in_one_window_is_the_same_with_both_averages():
    image, _ = golden_image("either", 33, 41, 5)
    prob, logit = (run(layers(), image, average=average, flip=False) for average in ("prob", "logit"))
    assert torch.equal(prob, logit)
    assert torch.equal(prob, run(layers(), image, align_corners=True, flip=False))  # which is about resized logits alone


@pytest.mark.parametrize("make, changes, shape", [(PSPNet, {}, (42, 61)), (PSPNet, {"zoom_factor": 1}, (41, 50)),
                                                  (PSPNet, {"size_rule": "input"}, (30, 35)),
                                                  (PSANet, {"mask_h": 3, "mask_w": 3}, (42, 61))])  # fmt: skip
def test_networks_take_whole_images_of_any_size(make, changes, shape, narrow):
    image, _ = golden_image("whole network", *shape, 5)
    prob = run(make(18, classes=5, **changes).eval(), image, mode="whole", scales=(0.7, 1.0, 1.3))
    assert prob.shape == (5, *shape) and torch.allclose(prob.sum(0), torch.ones(shape), atol=1e-5)


@pytest.mark.parametrize("form", [lambda network: partial(_window_logits, network, 3), Window], ids=["engine", "exported"])
@pytest.mark.parametrize("zoom", [1, 2, 4, 8])
@pytest.mark.parametrize("size", [(41, 57), (40, 48), (34, 43), (42, 64)])
def test_logits_of_windows_of_any_size_stay_at_their_pixels(size, zoom, form):
    """Of a network whose logits are the pixels' coordinates, at every (8 / zoom)-th pixel as those of PSPNet are."""
    h, w = size
    network = PSPNet(18, classes=3, zoom_factor=zoom).eval()
    network._stage = lambda name, x: x
    network.head = lambda x: x[..., ::8, ::8]
    rows, columns = torch.arange(1.0, h + 1)[:, None].expand(h, w), torch.arange(1.0, w + 1).expand(h, w)
    coordinates = torch.stack([rows, columns, torch.ones(h, w)])[None]
    with torch.no_grad():
        difference = form(network)(coordinates) - coordinates
    last = [(side - 1) // 8 * 8 + 1 for side in size]  # beyond it lies what the padding holds
    assert difference.shape == (1, 3, h, w) and difference[..., : last[0], : last[1]].abs().max() < 1e-4


@pytest.mark.parametrize("make, scales", [(PSPNet, (0.7, 1.0)), (SMPPSPNet, (0.7,))])
def test_compiled_networks_take_whole_images_of_any_size(make, scales, narrow):
    image, _ = golden_image("compiled", 42, 61, 5)
    network = make(18, dropout=0.1, classes=5)
    compiled = torch.compile(network.eval(), backend="aot_eager").eval()  # the tracing without g++
    prob, expected = (run(model, image, mode="whole", scales=scales, average="logit") for model in (compiled, network))
    torch.testing.assert_close(prob, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("average", ["prob", "logit"])
@pytest.mark.parametrize("mode", ["slide", "whole"])
def test_the_host_never_waits_for_the_device(mode, average):
    """A tensor on the meta device has no values: whatever asks for one raises."""
    network = PSPNet(18, classes=5).eval().to("meta")
    prob = run(network, np.zeros((50, 70, 3), np.uint8), mode=mode, scales=(0.75, 1.0), test_batch=2, average=average)
    assert prob.device.type == "meta" and prob.shape == (5, 50, 70)
    with pytest.raises(RuntimeError):
        prob.max().item()


def test_mistakes_are_refused_with_a_reason():
    image = np.zeros((20, 20, 3), np.uint8)
    with pytest.raises(ValueError, match="call model.eval"):
        run(torch.nn.Conv2d(3, 5, 1), image)
    with pytest.raises(ValueError, match="model has 5 classes, but `classes` is 19"):
        run(convolution, image, classes=19)
    with pytest.raises(ValueError, match=r"shape \(H, W, 3\), not \(20, 20\)"):
        run(convolution, image[..., 0])
    with pytest.raises(ValueError, match="mode: 'tiles' is unknown; choose slide or whole"):
        run(convolution, image, mode="tiles")
    with pytest.raises(ValueError, match="average: 'softmax' is unknown; choose prob or logit"):
        run(convolution, image, average="softmax")
    with pytest.raises(ValueError, match="scales"):
        run(convolution, image, scales=())
    for stride_rate in (1.5, 0, -1, float("nan")):
        with pytest.raises(ValueError, match="stride_rate"):
            run(convolution, image, stride_rate=stride_rate)


def test_prediction_needs_no_gradients_and_leaves_the_mode_alone():
    model = torch.nn.Conv2d(3, 5, 1).eval()
    assert not run(model, np.zeros((20, 20, 3), np.uint8)).requires_grad
    assert not model.training


def test_the_config_states_the_settings():
    options = ["test_h", "41", "test_w", "null", "base_size", "[90, 50]", "scales", "[0.5, 1]", "test_batch", "3"]
    options += ["flip", "False", "average", "logit", "test_mode", "whole"]
    cfg = load_config(ROOT / "config/toy/toy_pspnet18.yaml", options)
    settings = prediction_settings(cfg)
    assert settings == {
        **{"classes": cfg.classes, "base_size": (90, 50), "crop_h": 41, "crop_w": cfg.train_w, "scales": (0.5, 1.0)},
        **{"mean": transform.MEAN, "std": transform.STD, "flip": False, "test_batch": 3, "mode": "whole"},
        **{"average": "logit", "align_corners": cfg.align_corners},
    }
    pred = predict(layers(cfg.classes), np.zeros((20, 30, 3), np.uint8), **settings)
    assert pred.shape == (20, 30)
