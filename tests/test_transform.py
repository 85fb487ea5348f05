import random
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from golden_rules import golden_image

from util import transform as T

MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
pytestmark = pytest.mark.usefixtures("two_threads")
GOLDEN = np.load(Path(__file__).parent / "golden" / "semseg_transform.npz")
TRAIN_PIPELINE = [
    T.RandScale([0.5, 2]),
    T.RandRotate([-10, 10], padding=MEAN, ignore_label=255),
    T.RandomGaussianBlur(),
    T.RandomHorizontalFlip(),
    T.Crop([65, 65], crop_type="rand", padding=MEAN, ignore_label=255),
    T.ToTensor(),
    T.Normalize(MEAN, STD),
]
OPS = {
    "scale": T.RandScale([0.5, 2]),
    "scale_aspect": T.RandScale([0.5, 2], [0.9, 1.1]),
    "rotate": T.RandRotate([-10, 10], padding=MEAN, ignore_label=255, p=1),
    "blur": T.RandomGaussianBlur(),
    "hflip": T.RandomHorizontalFlip(),
    "vflip": T.RandomVerticalFlip(),
    "crop_rand": T.Crop([65, 65], crop_type="rand", padding=MEAN, ignore_label=255),
    "crop_center_pad": T.Crop([99, 112], crop_type="center", padding=MEAN, ignore_label=255),
    "resize": T.Resize([65, 72]),
    "normalize": T.Compose([T.ToTensor(), T.Normalize(MEAN, STD)]),
    "normalize_mean_only": T.Compose([T.ToTensor(), T.Normalize(MEAN)]),
    "train_pipeline": T.Compose(TRAIN_PIPELINE),
}
ROTATED = {"transform/rotate/seed0", "transform/rotate/seed1", "transform/train_pipeline/seed4"}
CASES = sorted(key.removesuffix("/image") for key in GOLDEN if key.endswith("/image"))


def picture(h, w, classes=5):
    image, label = golden_image("transform", h, w, classes)
    return image.astype(np.float32), label


@pytest.mark.parametrize("case", CASES)
def test_every_transform_gives_the_golden_numbers(case):
    if case in ROTATED and not T.warp_is_exact():
        pytest.skip("the numbers are OpenCV 5's; this version rotates in steps of 1/32 pixel")
    _, name, seed = case.split("/")
    image, label = OPS[name](*picture(90, 120), random.Random(int(seed.removeprefix("seed"))))
    np.testing.assert_array_equal(label, GOLDEN[case + "/label"])
    np.testing.assert_allclose(image, GOLDEN[case + "/image"], rtol=0, atol=1e-3)


def test_opencv_5_warps_exactly():
    """Tests of the lazy form are left out where it does not: they would be too if that form was wrong."""
    assert T.warp_is_exact() or cv2.getVersionMajor() < 5


def test_every_golden_case_is_tested():
    assert {case.split("/")[1] for case in CASES} == set(OPS)


def test_default_random_numbers_are_pythons():
    random.seed(0)
    image, _ = T.RandScale([0.5, 2])(*picture(90, 120))
    np.testing.assert_array_equal(image, GOLDEN["transform/scale/seed0/image"])


@pytest.mark.parametrize("name", OPS)
def test_uint8_images_are_as_good_as_float32_and_inputs_stay_untouched(name):
    image, label = golden_image("transform", 90, 120, 5)
    image_before, label_before = image.copy(), label.copy()
    as_float = OPS[name](image.astype(np.float32), label, random.Random(3))
    as_uint8 = OPS[name](image, label, random.Random(3))
    assert as_uint8[0].dtype in (np.float32, torch.float32)
    np.testing.assert_array_equal(as_float[0], as_uint8[0])
    np.testing.assert_array_equal(image, image_before)
    np.testing.assert_array_equal(label, label_before)


def test_tensors_have_the_documented_shape_and_type():
    image, label = T.Compose(TRAIN_PIPELINE)(*picture(90, 120), random.Random(0))
    assert image.shape == (3, 65, 65) and image.dtype == torch.float32 and image.is_contiguous()
    assert label.shape == (65, 65) and label.dtype == torch.int64


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.int32, np.int64, np.uint32, np.uint64])
def test_label_ids_survive_every_transform(dtype):
    image, _ = picture(90, 120)
    top = 250 if dtype == np.uint8 else 30000
    label = (np.arange(90 * 120).reshape(90, 120) % 7 * (top // 7)).astype(dtype)
    ops = [op for op in TRAIN_PIPELINE if not isinstance(op, T.RandomGaussianBlur)] + [T.RandomVerticalFlip()]
    for op in (*ops[:4], OPS["rotate"], OPS["resize"], OPS["crop_center_pad"], T.ToTensor()):
        _, out = op(image, label, random.Random(1))
        assert set(np.unique(out)) <= set(np.unique(label)) | {255}
        assert label.max() in np.unique(out)
        kept = dtype if dtype in (np.uint8, np.uint16, np.int16) else np.int32
        assert torch.is_tensor(out) or out.dtype == kept


def test_an_ignore_label_that_the_dtype_cannot_hold_is_not_clipped_to_a_class():
    image, label = picture(40, 40)
    for op in (T.Crop(50, padding=MEAN, ignore_label=-1), T.RandRotate([8, 8], MEAN, ignore_label=-1, p=1)):
        assert op(image, label)[1][0, 0] == -1


def test_rotation_by_zero_and_crop_of_the_full_size_change_nothing():
    image, label = picture(40, 60)
    for op in (T.RandRotate([0, 0], MEAN, p=1), T.Crop([40, 60]), T.Compose([T.RGB2BGR(), T.BGR2RGB()])):
        out = op(image, label)
        np.testing.assert_array_equal(out[0], image)
        np.testing.assert_array_equal(out[1], label)


def test_rgb2bgr_reverses_the_channels():
    image, label = picture(4, 5)
    np.testing.assert_array_equal(T.RGB2BGR()(image, label)[0], image[..., ::-1])


def test_padding_is_centred_with_the_odd_pixel_at_the_bottom_and_right():
    image, label = np.full((4, 4, 3), 7, np.float32), np.ones((4, 4), np.uint8)
    for crop_type in ("center", "rand"):
        image_out, label_out = T.Crop([7, 5], crop_type, padding=MEAN, ignore_label=255)(image, label)
        expected = np.full((7, 5), 255, np.uint8)
        expected[1:5, 0:4] = 1
        np.testing.assert_array_equal(label_out, expected)
        np.testing.assert_array_equal(image_out[0, 0], np.float32(MEAN))
        np.testing.assert_array_equal(image_out[4, 3], 7)


def test_a_probability_of_zero_or_one_is_kept():
    image, label = picture(8, 8)
    for seed in range(10):
        assert (T.RandomHorizontalFlip(p=0)(image, label, random.Random(seed))[0] == image).all()
        assert (T.RandomVerticalFlip(p=1)(image, label, random.Random(seed))[0] == image[::-1]).all()


def test_crop_without_padding_refuses_a_smaller_image():
    with pytest.raises(ValueError, match=r"the image is 40 x 60, smaller than the crop 65 x 50: give Crop a padding"):
        T.Crop([65, 50])(*picture(40, 60))


def test_arrays_of_different_size_are_refused():
    with pytest.raises(ValueError, match=r"image \(8, 8, 3\) and label \(8, 9\)"):
        T.RandomHorizontalFlip()(np.zeros((8, 8, 3), np.float32), np.zeros((8, 9), np.uint8))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: T.RandScale([2, 0.5]), r"RandScale: scale = \[2, 0.5\]"),
        (lambda: T.RandScale(0.5), r"RandScale: scale = 0.5"),
        (lambda: T.RandScale([0, 2]), r"RandScale: scale = \[0, 2\]"),
        (lambda: T.RandScale([0.5, 2], [1, 0.9]), r"RandScale: aspect_ratio = \[1, 0.9\]"),
        (lambda: T.RandRotate([10, -10], MEAN), r"RandRotate: rotate = \[10, -10\]"),
        (lambda: T.RandRotate([-10, 10], [1, 2]), r"RandRotate: padding = \[1, 2\]"),
        (lambda: T.RandRotate([-10, 10], MEAN, ignore_label=25.5), r"RandRotate: ignore_label = 25.5"),
        (lambda: T.RandRotate([-10, 10], MEAN, p=2), r"RandRotate: p = 2"),
        (lambda: T.RandomGaussianBlur(4), r"RandomGaussianBlur: radius = 4: expected a positive odd integer"),
        (lambda: T.RandomHorizontalFlip("0.5"), r"RandomHorizontalFlip: p = '0.5'"),
        (lambda: T.RandomVerticalFlip(-1), r"RandomVerticalFlip: p = -1"),
        (lambda: T.Crop([65]), r"Crop: size = \[65\]"),
        (lambda: T.Crop(True), r"Crop: size = True"),
        (lambda: T.Crop(0), r"Crop: size = \(0, 0\)"),
        (lambda: T.Crop(65, "random"), r"Crop: crop_type = 'random': expected 'center' or 'rand'"),
        (lambda: T.Crop(65, padding=0), r"Crop: padding = 0"),
        (lambda: T.Crop(65, ignore_label=None), r"Crop: ignore_label = None"),
        (lambda: T.Resize([65, 0.5]), r"Resize: size = \[65, 0.5\]"),
        (lambda: T.Normalize([1, 2]), r"Normalize: mean = \[1, 2\]"),
        (lambda: T.Normalize(MEAN, [1, 0, 1]), r"Normalize: std = \[1, 0, 1\]"),
    ],
)
def test_wrong_arguments_are_named_with_their_value(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_normalising_leaves_its_input_as_it_was():
    image, label = torch.ones(3, 2, 2), torch.zeros(2, 2, dtype=torch.int64)
    assert not torch.equal(T.Normalize(MEAN, STD)(image, label)[0], image) and (image == 1).all()


def test_scaling_follows_the_exact_factor():
    """A ramp shows where each pixel was sampled: at (x + 0.5) / factor - 0.5, not by the ratio of the rounded sizes."""
    factor, w = 1.37, 50
    image = np.repeat(np.arange(w, dtype=np.float32)[None, :, None], 3, 2).repeat(4, 0)
    out, _ = T.RandScale([factor, factor])(image, np.zeros((4, w), np.uint8))
    x = np.clip((np.arange(round(w * factor)) + 0.5) / factor - 0.5, 0, w - 1)
    np.testing.assert_allclose(out[0, :, 0], x, atol=1e-4)


def test_blur_is_a_5x5_gaussian():
    image, label = picture(20, 20)
    out, _ = T.RandomGaussianBlur()(image, label, random.Random(1))  # the first number of seed 1 is below 0.5
    np.testing.assert_array_equal(out, cv2.GaussianBlur(image, (5, 5), 0))
