"""The augmentations that a config can name, and MMSegmentation's transforms against plain computations."""

import random
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from test_lazy import assert_lazy_is_plain, noise
from test_transform import MEAN, STD, picture

from util import transform as T
from util.augmentation import build_augmentation
from util.config import ROOT, load_config
from util.dataset import SemData


class Script:
    """Random numbers written down beforehand; `randint` notes the bounds it was given."""

    def __init__(self, floats=(), integers=()):
        self.floats, self.integers, self.bounds = list(floats), list(integers), []

    def random(self):
        return self.floats.pop(0)

    def randint(self, a, b):
        self.bounds.append((a, b))
        return self.integers.pop(0)

    @property
    def empty(self):
        return not self.floats and not self.integers


# ---- RandomResize ----


@pytest.mark.parametrize("seed", range(40))
def test_sides_follow_the_formula_and_pixels_are_those_of_a_resize_to_that_size(seed):
    draw = random.Random(seed)
    h, w = draw.randint(20, 90), draw.randint(20, 90)
    long, short = draw.choice([(128, 64), (64, 64), (200, 60), (77, 51)])
    low, u = draw.uniform(0.5, 1), draw.random()
    image, label = noise(seed, h, w)
    r = low + (2 - low) * u
    f = min(long * r / max(h, w), short * r / min(h, w))
    new_h, new_w = int(h * f + 0.5), int(w * f + 0.5)
    for box in ((long, short), (short, long)):
        out, ids = T.RandomResize(box, (low, 2))(image, label, Script([u]))
        assert out.shape == (new_h, new_w, 3)
        np.testing.assert_array_equal(out, cv2.resize(np.float32(image), (new_w, new_h), interpolation=cv2.INTER_LINEAR))
        np.testing.assert_array_equal(ids, cv2.resize(label, (new_w, new_h), interpolation=cv2.INTER_NEAREST))


@pytest.mark.parametrize(
    ("h", "w", "box", "scale", "u", "size"),
    [
        (1024, 2048, (2048, 1024), (0.5, 2.0), 0.0, (512, 1024)),
        (1024, 2048, (2048, 1024), (0.5, 2.0), 1 / 3, (1024, 2048)),
        (512, 683, (2048, 512), (0.5, 2.0), 0.0, (256, 342)),  # an image of ADE20K: the short side decides; 341.5 goes up
        (500, 334, (2048, 512), (1.0, 1.0), 0.5, (766, 512)),  # portrait
        (300, 1000, (100, 90), (1.0, 1.0), 0.0, (30, 100)),  # the long side decides
        (33, 49, None, (2.0, 2.0), 0.0, (66, 98)),
        (33, 49, None, (0.5, 0.5), 0.0, (17, 25)),  # 16.5 and 24.5 go up
        (33, 49, None, (1.0, 1.0), 0.7, (33, 49)),
        (2, 3, (2048, 1024), (0.0001, 0.0001), 0.0, (1, 1)),  # a pixel remains
    ],
)
def test_sizes_of_known_cases(h, w, box, scale, u, size):
    op = T.RandomResize(box, scale)
    assert op.size(h, w, op.draw(Script([u]), h, w)) == size


@pytest.mark.parametrize("op", [T.RandScale([0.05, 0.2], [0.2, 5]), T.RandomResize(None, (0.05, 0.2))])
@pytest.mark.parametrize("h, w", [(1, 1), (1, 9), (3, 2), (11, 4)])
def test_a_pixel_remains_of_the_smallest_image(op, h, w):
    image, label = picture(h, w)
    for seed in range(9):
        assert_lazy_is_plain([op, T.Crop([5, 5], "rand", MEAN, 255)], image, label, seed)


def test_size_that_stays_leaves_the_pixels_as_they_are():
    image, label = picture(33, 49)
    out = T.RandomResize(None, (1, 1))(image, label)
    np.testing.assert_array_equal(out[0], image)
    np.testing.assert_array_equal(out[1], label)


@pytest.mark.skipif(not T.warp_is_exact(), reason="this OpenCV's warp is too coarse: lazy runs op by op")
@pytest.mark.parametrize("seed", range(60))
def test_resize_and_crop_come_out_lazily_for_any_size_and_seed(seed):
    draw = random.Random(seed)
    h, w = draw.randint(10, 120), draw.randint(10, 160)
    size = [draw.randint(1, 90), draw.randint(1, 90)]
    ops = [
        T.RandomResize(draw.choice([None, (160, 80)]), draw.choice([(0.5, 2.0), (0.5, 0.5), (2, 2), (0.99, 1.01)])),
        T.RandomCrop(size, draw.choice([1.0, 0.75, 0.02])),
        T.RandomHorizontalFlip(),
    ]
    assert_lazy_is_plain(ops, *noise(seed, h, w, draw.choice([np.uint8, np.uint16, np.int32])), seed)


# ---- RandomCrop ----


def crop(label, size, ratio, integers, ignore_label=255):
    """The crop's label and the numbers as they were left."""
    rng = Script(integers=integers)
    image = np.repeat(np.float32(label)[..., None], 3, 2)
    out, ids = T.RandomCrop(size, ratio, ignore_label)(image, label, rng)
    np.testing.assert_array_equal(out[..., 0], ids)  # image and label stay together
    return ids, rng


# Columns 0..3 are class 0, the others one class each: a 2x4 crop at x shows max(4 - x, 1) columns of its largest class.
STEPS = np.uint8([[0, 0, 0, 0, 1, 2, 3, 4]] * 6)


def test_offsets_are_drawn_y_first_over_all_positions():
    ids, rng = crop(STEPS, [2, 4], 1.0, [3, 2])
    assert rng.bounds == [(0, 4), (0, 4)] and rng.empty
    np.testing.assert_array_equal(ids, STEPS[3:5, 2:6])


def test_a_smaller_image_is_cropped_to_what_it_has():
    ids, rng = crop(STEPS, [10, 3], 1.0, [0, 5])
    assert rng.bounds == [(0, 0), (0, 5)]
    np.testing.assert_array_equal(ids, STEPS[:, 5:8])
    ids, rng = crop(STEPS, [10, 20], 0.75, [0, 0])
    np.testing.assert_array_equal(ids, STEPS)


def test_a_mixed_crop_is_accepted_at_the_first_try():
    ids, rng = crop(STEPS, [2, 4], 0.75, [0, 2])  # two of four columns are class 0
    assert rng.empty and ids.tolist() == [[0, 0, 1, 2]] * 2


def test_a_share_at_the_bound_is_drawn_again():
    ids, rng = crop(STEPS, [2, 4], 0.75, [0, 1, 0, 2])  # 3/4 is not below 0.75
    assert rng.empty and ids.tolist() == [[0, 0, 1, 2]] * 2
    ids, rng = crop(STEPS, [2, 4], 0.7501, [0, 1])
    assert rng.empty and ids.tolist() == [[0, 0, 0, 1]] * 2


def test_a_crop_of_one_class_is_drawn_again_until_it_is_mixed():
    ids, rng = crop(STEPS, [2, 4], 0.75, [0, 0] * 9 + [1, 4])  # the tenth try
    assert rng.empty and ids.tolist() == [[1, 2, 3, 4]] * 2


@pytest.mark.parametrize("value", [0, 255], ids=["one class", "all ignored"])
def test_after_ten_tries_the_eleventh_is_taken_unchecked(value):
    ids, rng = crop(np.full((6, 8), value, np.uint8), [2, 4], 0.75, [0, 0] * 10 + [4, 3])
    assert rng.empty and ids.shape == (2, 4)


def test_the_eleventh_crop_is_the_one_that_is_returned():
    label = np.zeros((6, 8), np.uint8)
    label[5] = 1  # only here, and then the crop is mixed half and half: below 0.5 nothing is accepted
    ids, rng = crop(label, [2, 4], 0.5, [4, 0] * 10 + [0, 1])
    assert rng.empty and not ids.any()


def test_ignored_pixels_do_not_count():
    label = np.uint8([[255] * 6 + [0, 1]])
    ids, rng = crop(label, [1, 8], 0.6, [0, 0])  # one half each of what is labelled
    assert rng.empty
    label = np.uint8([[255] * 4 + [0, 0, 0, 1]])  # three quarters of what is labelled, less than half of the pixels
    _, rng = crop(label, [1, 8], 0.6, [0, 0] * 11)
    assert rng.empty
    label = np.uint8([[255] * 6 + [0, 0]])  # 255 is no second class
    _, rng = crop(label, [1, 8], 0.9, [0, 0] * 11)
    assert rng.empty
    _, rng = crop(np.int32([[-1] * 6 + [0, 1]]), [1, 8], 0.6, [0, 0], ignore_label=-1)
    assert rng.empty


def test_without_a_ratio_nothing_is_checked():
    _, rng = crop(np.zeros((6, 8), np.uint8), [2, 4], 1.0, [0, 0])
    assert rng.empty


# ---- PhotometricDistortion ----

YES, NO = 0.0, 0.9


def distort(image, floats, integers=(), **how):
    rng = Script(floats, integers)
    image = np.asarray(image)
    out, _ = T.PhotometricDistortion(**how)(image, np.zeros(image.shape[:2], np.uint8), rng)
    assert rng.empty and out.dtype == np.float32
    return out


def grey(*levels):
    return np.repeat(np.float32([levels])[..., None], 3, 2)


def test_without_any_coin_the_image_stays():
    image = noise(0, 9, 9)[0]
    np.testing.assert_array_equal(distort(image, [NO] * 5), image)


def test_brightness_is_added_clipped_and_truncated():
    def brightness(u, *levels):
        return distort(grey(*levels), [YES, u, NO, NO, NO, NO])[0, :, 0].tolist()

    assert brightness(0.0, 0, 31, 32, 255) == [0, 0, 0, 223]  # - 32
    assert brightness(63 / 64, 0, 224, 225, 255) == [31, 255, 255, 255]  # + 31
    assert brightness(0.5 + 0.9 / 64, 3, 255) == [3, 255]  # + 0.9
    assert brightness(0.5 - 0.9 / 64, 3, 0) == [2, 0]  # - 0.9
    assert (distort(grey(7), [YES, 0.0, NO, NO, NO, NO], brightness=0) == 7).all()


@pytest.mark.parametrize("early", [True, False])
def test_contrast_multiplies_clips_and_truncates(early):
    def contrast(u, *levels):
        floats = [NO, YES, YES, u, NO, NO] if early else [NO, NO, NO, NO, YES, u]
        return distort(grey(*levels), floats)[0, :, 0].tolist()

    assert contrast(0.0, 0, 1, 3, 255) == [0, 0, 1, 127]  # 0.5
    assert contrast(0.75, 0, 10, 200, 205, 255) == [0, 12, 250, 255, 255]  # 1.25


def test_saturation_scales_the_distance_to_the_largest_channel():
    def saturation(u, **how):
        return distort([[[200, 100, 50], [80, 80, 80]]], [NO, NO, YES, u, NO, NO], **how)[0].tolist()

    # 200 * (1 - S/255): S = 191 of (200, 100, 50) becomes 95 (95.5 truncated), and 255 (clipped)
    assert saturation(0.0) == [[200, 150, 125], [80, 80, 80]]
    assert saturation(1.0) == [[200, 67, 0], [80, 80, 80]]
    assert saturation(0.0, saturation=(0, 1)) == [[200, 200, 200], [80, 80, 80]]


def test_hue_turns_by_two_degrees_a_step_and_wraps_around():
    def hue(step, pixel):
        return distort([[pixel]], [NO, NO, NO, YES, NO], [step], hue=90)[0, 0].tolist()

    assert hue(60, [255, 0, 0]) == [0, 255, 0]  # 120 degrees
    assert hue(60, [0, 255, 0]) == [0, 0, 255]
    assert hue(60, [0, 0, 255]) == [255, 0, 0]  # beyond 360
    assert hue(-60, [255, 0, 0]) == [0, 0, 255]  # below 0
    assert hue(30, [255, 0, 0]) == [255, 255, 0]
    assert hue(17, [7, 7, 7]) == [7, 7, 7]


def test_the_hues_bounds_are_minus_18_and_17():
    rng = Script([NO, NO, NO, YES, NO], [0])
    T.PhotometricDistortion().draw(rng, 1, 1)
    assert rng.bounds == [(-18, 17)]


def plainly(bgr, rng):
    """The recipe as it is written, on BGR: float32, clip, truncate after each step."""

    def coin():
        return rng.random() < 0.5

    def convert(values, alpha=1.0, beta=0.0):
        return np.clip(values.astype(np.float32) * np.float32(alpha) + np.float32(beta), 0, 255).astype(np.uint8)

    def contrast(bgr):
        return convert(bgr, alpha=0.5 + rng.random()) if coin() else bgr

    if coin():
        bgr = convert(bgr, beta=-32 + 64 * rng.random())
    first = coin()
    if first:
        bgr = contrast(bgr)
    if coin():
        hsv = cv2.cvtColor(bgr, cv2.COLOR_BGR2HSV)
        hsv[..., 1] = convert(hsv[..., 1], alpha=0.5 + rng.random())
        bgr = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)
    if coin():
        hsv = cv2.cvtColor(bgr, cv2.COLOR_BGR2HSV)
        hsv[..., 0] = (hsv[..., 0].astype(int) + rng.randint(-18, 17)) % 180
        bgr = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)
    return bgr if first else contrast(bgr)


@pytest.mark.parametrize("seed", range(64))
def test_distortion_is_the_recipe_carried_out_plainly_on_bgr(seed):
    image, label = noise(seed, 13, 17)
    image[0] = np.resize([0, 255], (17, 3))  # the ends of the range
    ours, plain = random.Random(seed), random.Random(seed)
    out, ids = T.PhotometricDistortion()(image, label, ours)
    np.testing.assert_array_equal(out, plainly(image[..., ::-1], plain)[..., ::-1])
    assert ours.getstate() == plain.getstate() and ids is label


def test_each_step_comes_in_half_of_the_draws_over_its_whole_range():
    n, op, rng = 4000, T.PhotometricDistortion(), random.Random(0)
    draws = [op.draw(rng, 1, 1) for _ in range(n)]
    ranges = {T._add: (-32, 32), T._multiply: (0.5, 1.5), T._saturate: (0.5, 1.5), T._turn_hue: (-18, 17)}
    for step, (low, high) in ranges.items():
        values = [value for draw in draws for name, value in draw if name is step]
        assert abs(len(values) - n / 2) < 4 * np.sqrt(n / 4)
        assert low <= min(values) < low + 0.01 * (high - low) and high - 0.01 * (high - low) < max(values) <= high
        assert abs(np.mean(values) - (low + high) / 2) < 4 * np.std(values) / np.sqrt(len(values))
    both = [[name for name, _ in draw if name in (T._multiply, T._turn_hue)] for draw in draws]
    both = [names for names in both if len(names) == 2]
    first = sum(names[0] is T._multiply for names in both)
    assert abs(first - len(both) / 2) < 4 * np.sqrt(len(both) / 4)


def test_rounding_to_whole_levels_is_nearer_to_resizing_the_uint8_image_than_truncating():
    image, label = noise(0, 60, 80)
    ops = [T.RandomResize(None, (1.37, 1.37)), T.PhotometricDistortion()]
    out, _ = T.Compose(ops)(image, label, Script([0.5] + [NO] * 5))
    theirs = cv2.resize(image, (110, 82), interpolation=cv2.INTER_LINEAR)  # OpenCV's whole-number arithmetic
    truncated = np.floor(cv2.resize(image.astype(np.float32), (110, 82), interpolation=cv2.INTER_LINEAR))
    assert np.abs(out - theirs).max() <= 1
    assert np.abs(out - theirs).mean() < 0.5 * np.abs(truncated - theirs).mean()


def test_distortion_changes_no_input():
    image, label = noise(0, 9, 9)
    for given in (image, image.astype(np.float32)):
        before = given.copy()
        for seed in range(16):
            T.PhotometricDistortion()(given, label, random.Random(seed))
        np.testing.assert_array_equal(given, before)


# ---- PadTo ----


def test_padding_goes_to_the_bottom_and_right():
    image, label = torch.arange(18.0).view(3, 2, 3), torch.arange(6).view(2, 3)
    out, ids = T.PadTo([4, 5])(image, label)
    assert out.shape == (3, 4, 5) and out.dtype == torch.float32 and ids.dtype == torch.int64
    assert torch.equal(out[:, :2, :3], image) and torch.equal(ids[:2, :3], label)
    assert out.sum() == image.sum() and (ids == 255).sum() == 20 - 6
    out, ids = T.PadTo([2, 4], ignore_label=7)(image, label)
    assert (out[:, :, 3] == 0).all() and ids[:, 3].tolist() == [7, 7]
    assert all(a is b or torch.equal(a, b) for a, b in zip(T.PadTo([2, 3])(image, label), (image, label)))


def test_padding_refuses_a_larger_image():
    with pytest.raises(ValueError, match="PadTo: the image is 2 x 3, larger than 4 x 2: crop it first"):
        T.PadTo([4, 2])(torch.zeros(3, 2, 3), torch.zeros(2, 3, dtype=torch.int64))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: T.RandomResize((0, 5)), r"RandomResize: box = \(0, 5\): expected None or two positive numbers"),
        (lambda: T.RandomResize(2048), r"RandomResize: box = 2048"),
        (lambda: T.RandomResize(None, (2, 1)), r"RandomResize: scale = \(2, 1\)"),
        (lambda: T.RandomCrop(0), r"RandomCrop: size = \(0, 0\)"),
        (lambda: T.RandomCrop([5, 5], 0), r"RandomCrop: cat_max_ratio = 0: expected a share in \(0, 1\]"),
        (lambda: T.RandomCrop([5, 5], 1.5), r"RandomCrop: cat_max_ratio = 1.5"),
        (lambda: T.RandomCrop([5, 5], ignore_label=None), r"RandomCrop: ignore_label = None"),
        (lambda: T.PhotometricDistortion(-1), r"PhotometricDistortion: brightness = -1"),
        (lambda: T.PhotometricDistortion(contrast=(1.5, 0.5)), r"PhotometricDistortion: contrast = \(1.5, 0.5\)"),
        (lambda: T.PhotometricDistortion(saturation=1), r"PhotometricDistortion: saturation = 1"),
        (lambda: T.PhotometricDistortion(hue=0.5), r"PhotometricDistortion: hue = 0.5"),
        (lambda: T.PadTo(65), r"PadTo: size = 65"),
        (lambda: T.PadTo([65, 65], 2.5), r"PadTo: ignore_label = 2.5"),
    ],
)
def test_wrong_arguments_are_named_with_their_value(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# ---- build_augmentation ----


def config(augmentation, **keys):
    keys = {"train_h": 65, "train_w": 97, "scale_min": 0.5, "scale_max": 2.0, "rotate_min": -10, "rotate_max": 10} | keys
    keys = {"ignore_label": 255, "resize_box": None, "cat_max_ratio": 1.0} | keys
    return SimpleNamespace(path="config/c.yaml", augmentation=augmentation, **keys)


def test_semseg_is_the_originals_pipeline():
    ops = [
        T.RandScale([0.5, 2.0]),
        T.RandRotate([-10, 10], padding=T.MEAN, ignore_label=255),
        T.RandomGaussianBlur(),
        T.RandomHorizontalFlip(),
        T.Crop([65, 97], "rand", padding=T.MEAN, ignore_label=255),
        T.ToTensor(),
        T.Normalize(T.MEAN, T.STD),
    ]
    augment, (image, label) = build_augmentation(config("semseg")), noise(0, 90, 120)
    assert augment.lazy
    for seed in range(8):
        expected = T.Compose(ops, lazy=True)(image, label, random.Random(seed))
        for got, want in zip(augment(image, label, random.Random(seed)), expected):
            assert torch.equal(got, want)


@pytest.mark.parametrize("seed", range(12))
def test_mmseg_is_the_recipe_carried_out_plainly(seed):
    image, label = noise(seed, 90, 120)
    label //= 40
    cfg = config("mmseg", resize_box=(128, 64), cat_max_ratio=0.45)
    augment = build_augmentation(cfg)
    lazily, plainly_run = (run(image, label, random.Random(seed)) for run in (augment, T.Compose(augment.ops)))

    rng = random.Random(seed)
    r = 0.5 + 1.5 * rng.random()
    f = min(128 * r / 120, 64 * r / 90)
    size = int(120 * f + 0.5), int(90 * f + 0.5)
    image = cv2.resize(np.float32(image), size, interpolation=cv2.INTER_LINEAR)
    label = cv2.resize(label, size, interpolation=cv2.INTER_NEAREST)
    h, w = label.shape
    for attempt in range(11):
        y, x = rng.randint(0, max(h - 65, 0)), rng.randint(0, max(w - 97, 0))
        part = label[y : y + 65, x : x + 97]
        counts = np.unique(part, return_counts=True)[1]
        if attempt < 10 and len(counts) > 1 and counts.max() / counts.sum() < 0.45:
            break
    image = image[y : y + 65, x : x + 97]
    if rng.random() < 0.5:
        image, part = image[:, ::-1], part[:, ::-1]
    image = np.float32(plainly(np.uint8(np.rint(image))[..., ::-1], rng)[..., ::-1])
    image = (image - np.float32(MEAN)) / np.float32(STD)
    expected, expected_ids = np.zeros((65, 97, 3), np.float32), np.full((65, 97), 255)
    expected[: part.shape[0], : part.shape[1]], expected_ids[: part.shape[0], : part.shape[1]] = image, part

    for (got, ids), most in ((plainly_run, 0), (lazily, 0.01)):  # lazily a few pixels round to the other grey level
        assert got.shape == (3, 65, 97) and got.dtype == torch.float32 and got.is_contiguous() and ids.dtype == torch.int64
        np.testing.assert_array_equal(ids, expected_ids)
        assert (np.abs(got.numpy().transpose(1, 2, 0) - expected) > 1e-5).mean() <= most


def test_mmseg_pads_an_image_that_is_smaller_than_the_crop():
    image, label = noise(0, 30, 40)
    out, ids = build_augmentation(config("mmseg", scale_max=0.5))(image, label, random.Random(0))
    assert out.shape == (3, 65, 97) and not out[:, 15:].any() and not out[:, :, 20:].any()
    assert (ids[15:] == 255).all() and (ids[:, 20:] == 255).all() and (ids[:15, :20] != 255).all()


@pytest.mark.parametrize("augmentation", ["semseg", "mmseg"])
def test_a_config_file_names_its_augmentation(augmentation, toy):
    options = ["augmentation", augmentation, "resize_box", "[128, 64]", "cat_max_ratio", "0.75"]
    cfg = load_config(ROOT / "config/toy/toy_pspnet18.yaml", options)
    data = SemData("train", toy, toy / "list/train.txt", build_augmentation(cfg), classes=9, seed=1)
    for index in range(4):
        image, label = data[(3, index)]
        assert image.shape == (3, 129, 129) and label.shape == (129, 129)
        assert set(label.unique().tolist()) <= {*range(9), 255}
        again = data[(3, index)]
        assert torch.equal(image, again[0]) and torch.equal(label, again[1])
