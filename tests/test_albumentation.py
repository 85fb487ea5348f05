"""Pipelines of Albumentations: one that mimics the standard augmentation, against it, in numbers read off the crops."""

import os
import random
import sys
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
import yaml

from util import transform as T
from util.albumentation import Albumentations
from util.augmentation import build_augmentation
from util.common import Mistake
from util.config import find_config, load_config
from util.dataset import SemData, sample_rng

# The standard augmentation (config: augmentation: semseg, scale 0.5..2, rotate -10..10) in the package's words.
STANDARD = """
- RandomScale: {scale_limit: [-0.5, 1.0], p: 1}  # times 0.5..2
- Rotate: {limit: [-10, 10], border_mode: 0, fill: [123.675, 116.28, 103.53], fill_mask: 255, p: 0.5}
- GaussianBlur: {blur_limit: [5, 5], sigma_limit: [1.1, 1.1], p: 0.5}  # about what OpenCV takes for a 5x5 kernel
- HorizontalFlip: {p: 0.5}
- RandomCrop: {height: 713, width: 713, pad_if_needed: True, border_mode: 0,
               fill: [123.675, 116.28, 103.53], fill_mask: 255, p: 1}
"""
# The list of the Catalyst port. Its ShiftScaleRotate (shift 0.01, scale -0.5..1, rotate 10) is an Affine today, which keeps the
# ratio only if told to.
CATALYST = """
- Affine: {scale: [0.5, 2.0], keep_ratio: True, translate_percent: [-0.01, 0.01], rotate: [-10, 10], border_mode: 0,
           fill: [123.675, 116.28, 103.53], fill_mask: 255, p: 0.5}
- SmallestMaxSize: {max_size: 713, p: 1}
- Blur: {blur_limit: 5, p: 0.5}  # 3x3 or 5x5
- HorizontalFlip: {p: 0.5}
- RandomCrop: {height: 713, width: 713, p: 1}
"""
H, W, CROP, IGNORE = 48, 64, 40, 65535
NOISE = np.random.default_rng(0).integers(0, 256, (H, W, 3), np.uint8)
PLACES = np.arange(H * W, dtype=np.uint16).reshape(H, W)  # a label map that says where each pixel comes from
DRAWS = 2000


def config(augmentation, crop=CROP, ignore_label=IGNORE):
    if isinstance(augmentation, str) and augmentation.startswith("\n"):
        augmentation = augmentation.replace("713", str(crop)).replace("fill_mask: 255", f"fill_mask: {ignore_label}")
        augmentation = tuple(yaml.safe_load(augmentation))
    scale = {"scale_min": 0.5, "scale_max": 2.0, "rotate_min": -10.0, "rotate_max": 10.0}
    return SimpleNamespace(
        path="config/c.yaml", train_h=crop, train_w=crop, ignore_label=ignore_label, classes=H * W,
        augmentation=augmentation, **scale
    )


def build(augmentation, **how):
    return build_augmentation(config(augmentation, **how))


# ---- the statistics ----


def read_off(image, label):
    """What was done to NOISE and PLACES, from the result alone: the affine map that fits the places, and the roughness."""
    label = label.numpy()
    red = image[0].numpy() * T.STD[0] + T.MEAN[0]
    valid = label != IGNORE
    y, x = np.nonzero(valid)
    source = np.stack(np.divmod(label[valid], W)[::-1], 1)
    matrix = np.linalg.lstsq(np.stack([x, y, np.ones(len(x))], 1), source, rcond=None)[0].T
    linear, flipped = matrix[:, :2], np.linalg.det(matrix[:, :2]) < 0
    scale = abs(np.linalg.det(linear)) ** -0.5
    turn = linear * ([-1, 1] if flipped else [1, 1])
    angle = np.degrees(np.arctan2(turn[1, 0] - turn[0, 1], turn[0, 0] + turn[1, 1]))
    # A blur takes away nine tenths of the noise's roughness, resampling less.
    sharp = cv2.warpAffine(np.float32(NOISE[..., 0]), matrix, red.shape, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    inner = cv2.erode(np.uint8(valid), np.ones((5, 5)), borderType=cv2.BORDER_CONSTANT, borderValue=1) > 0
    both = inner[:, 1:] & inner[:, :-1]
    roughness, expected = (np.square(np.diff(each)[both]).mean() for each in (red, sharp))
    blurred = roughness < expected * 0.1 * max(scale, 1) ** 2
    cells = np.bincount(source[:, 1] // 16 * 4 + source[:, 0] // 16, minlength=12) / label.size
    return {
        **{"scale": scale, "scale < 0.75": scale < 0.75, "scale < 1": scale < 1, "scale < 1.5": scale < 1.5},
        **{"angle": angle, "|angle|": abs(angle), "rotated": abs(angle) > 1, "|angle| > 5": abs(angle) > 5},
        **{"flipped": flipped, "blurred": blurred, "flipped and blurred": flipped and blurred},
        **{"rotated and flipped": abs(angle) > 1 and flipped, "rotated and blurred": abs(angle) > 1 and blurred},
        **{"small and flipped": scale < 1 and flipped, "small and blurred": scale < 1 and blurred},
        **{"padding": 1 - valid.mean(), "padded": not valid.all()},
        **{f"label {cell}": share for cell, share in enumerate(cells)},
    }


def statistics(augment, draws=DRAWS, seed=0):
    rows = [read_off(*augment(NOISE, PLACES, sample_rng(seed, 0, i))) for i in range(draws)]
    return {name: np.array([row[name] for row in rows], float) for name in rows[0]}


def disagreements(a, b):
    """Names of the means that lie further apart than four standard errors of their difference."""
    return {name for name in a if abs(a[name].mean() - b[name].mean()) > 4 * np.sqrt(a[name].var() / len(a[name])
            + b[name].var() / len(b[name])) + 1e-12}  # fmt: skip


@pytest.fixture(scope="module")
def ours():
    return statistics(build("semseg"))


def test_what_is_read_off_the_crops_is_what_was_done():
    drawn, augment = [], build("semseg")
    for op in augment.ops[:4]:
        op.draw = lambda *args, draw=op.draw: drawn.append(draw(*args)) or drawn[-1]
    for i in range(100):
        drawn.clear()
        found = read_off(*augment(NOISE, PLACES, sample_rng(1, 0, i)))
        (scale, _), matrix, blurred, flipped = drawn
        angle = 0 if matrix is None else np.degrees(np.arctan2(matrix[0, 1], matrix[0, 0]))
        assert (found["flipped"], found["blurred"]) == (flipped, blurred)
        assert abs(found["scale"] / scale - 1) < 0.03 and abs(found["angle"] - angle) < 1.5


def test_our_statistics_are_those_of_the_config(ours):
    expected = {"scale": 1.25, "scale < 1": 1 / 3, "angle": 0, "|angle| > 5": 1 / 4, "flipped": 1 / 2, "blurred": 1 / 2}
    for name, value in expected.items():
        error = ours[name].std() / np.sqrt(DRAWS)
        slack = 0.015 if "scale" in name else 0  # sides of 24 pixels and more are rounded
        assert abs(ours[name].mean() - value) < 4 * error + slack, name


def test_the_mimicking_pipeline_agrees_in_every_statistic(ours):
    theirs = statistics(build(STANDARD), seed=1)
    assert disagreements(ours, theirs) == set()


@pytest.mark.parametrize(
    ("right", "wrong", "seen"),
    [
        ("HorizontalFlip: {p: 0.5", "HorizontalFlip: {p: 0.3", {"flipped"}),
        ("scale_limit: [-0.5, 1.0]", "scale_limit: [-0.5, 0.5]", {"scale", "scale < 1", "padding"}),
        ("limit: [-10, 10]", "limit: [-15, 5]", {"angle"}),
        ("sigma_limit: [1.1, 1.1], p: 0.5", "sigma_limit: [1.1, 1.1], p: 0.3", {"blurred"}),
    ],
)
def test_a_pipeline_that_differs_is_found_out(ours, right, wrong, seen):
    assert right in STANDARD
    assert seen <= disagreements(ours, statistics(build(STANDARD.replace(right, wrong)), draws=DRAWS // 2, seed=1))


def test_transforms_do_not_share_their_random_numbers(ours):
    """With the package's way of seeding, a generator with the same seed for each, a flipped image would always be blurred."""
    augment = build(STANDARD)
    augment.pipeline.set_random_state = lambda generator, rng: augment.pipeline.set_random_seed(rng.randint(0, 2**31))
    assert "flipped and blurred" in disagreements(ours, statistics(augment, draws=DRAWS // 2, seed=1))


# ---- random numbers ----


def test_a_sample_depends_on_its_own_random_numbers_alone():
    augment, other = build(STANDARD), build(STANDARD)
    expected = [augment(NOISE, PLACES, sample_rng(0, 0, i)) for i in range(20)]
    np.random.seed(3)
    random.seed(3)
    cv2.setRNGSeed(3)
    for i in reversed(range(20)):
        for got, want in zip(other(NOISE, PLACES, sample_rng(0, 0, i)), expected[i]):
            assert torch.equal(got, want)
    assert len({float(image.sum()) for image, _ in expected}) == 20


def test_worker_processes_make_the_same_samples(toy):
    augment = build(STANDARD, ignore_label=255)
    data = SemData("train", toy, toy / "list/train.txt", augment, classes=9, seed=5)
    keys = [(1, i) for i in range(len(data))]
    expected = [data[key] for key in keys]
    order = keys[::-1]
    loader = torch.utils.data.DataLoader(data, None, sampler=order, num_workers=2, multiprocessing_context="fork")
    for key, (image, label) in zip(order, loader):
        assert torch.equal(image, expected[key[1]][0]) and torch.equal(label, expected[key[1]][1])


def test_one_number_is_drawn_from_the_samples_generator():
    class Once:
        def __init__(self):
            self.calls = 0

        def randint(self, a, b):
            self.calls += 1
            return 7

    rng = Once()
    build(STANDARD)(NOISE, PLACES, rng)
    assert rng.calls == 1


# ---- images and labels ----


@pytest.mark.parametrize("pipeline", [STANDARD, CATALYST])
@pytest.mark.parametrize("crop", [713, 129])
def test_the_shipped_pipelines_make_tensors_of_the_crops_size(pipeline, crop):
    image = cv2.resize(NOISE, (1024, 512))
    label = cv2.resize(np.uint8(PLACES % 19), (1024, 512), interpolation=cv2.INTER_NEAREST)
    augment = build(pipeline, crop=crop, ignore_label=255)
    for seed in range(3):
        out, ids = augment(image, label, random.Random(seed))
        assert out.shape == (3, crop, crop) and out.dtype == torch.float32 and out.is_contiguous()
        assert ids.shape == (crop, crop) and ids.dtype == torch.int64
        assert set(ids.unique().tolist()) <= set(range(19)) | {255}
        assert -2.2 < out.min() < -1 and 1 < out.max() < 2.7  # normalised


def test_the_ports_shift_scale_rotate_is_the_affine_of_the_shipped_list_but_stretches():
    ports = "\n- ShiftScaleRotate: {shift_limit: 0.01, scale_limit: [-0.5, 1.0], rotate_limit: 10, border_mode: 0,"
    ports += "fill: [123.675, 116.28, 103.53], fill_mask: 255, p: 0.5}\n"
    rest = CATALYST[CATALYST.index("- SmallestMaxSize") :]
    with pytest.warns(UserWarning, match="entry 1: ShiftScaleRotate: .* Please use Affine"):
        ports = build(ports + rest)
    shipped = build(CATALYST.replace("keep_ratio: True, ", ""))
    for seed in range(10):
        for got, want in zip(shipped(NOISE, PLACES, random.Random(seed)), ports(NOISE, PLACES, random.Random(seed))):
            assert torch.equal(got, want)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.int32, np.int64])
def test_label_ids_survive_and_padding_is_ignored(dtype):
    top = 250 if dtype == np.uint8 else 30000
    label = (np.arange(H * W).reshape(H, W) % 7 * (top // 7)).astype(dtype)
    text = STANDARD.replace(", fill_mask: 255", "")  # not the package's 0
    for ignore_label in (255, 65535):
        augment, found = build(text, ignore_label=ignore_label), set()
        for seed in range(20):
            found |= set(augment(NOISE, label, random.Random(seed))[1].unique().tolist())
        assert found == set(np.unique(label).tolist()) | {ignore_label}


@pytest.mark.parametrize("name", ["TimeMasking", "FrequencyMasking"])
def test_what_hides_a_stripe_ignores_it(name):
    _, label = Albumentations([{name: {"p": 1}}], [H, W], IGNORE)(NOISE, PLACES + 1, random.Random(0))
    assert (label == IGNORE).any() and (label != 0).all()


def test_a_transform_that_leaves_labels_alone_still_does():
    entry = {"CoarseDropout": {"p": 1, "num_holes_range": [5, 5]}}
    image, label = Albumentations([entry], [H, W], IGNORE)(NOISE, PLACES, random.Random(0))
    assert (label.numpy() == PLACES).all()
    assert (image.numpy() != build_plain(NOISE)).any()
    _, label = Albumentations([{"CoarseDropout": {**entry["CoarseDropout"], "fill_mask": 7}}], [H, W], IGNORE)(
        NOISE, PLACES, random.Random(0)
    )
    assert (label.numpy() == 7).sum() > 10


def build_plain(image):
    return T.Compose([T.ToTensor(), T.Normalize(T.MEAN, T.STD)])(image, PLACES)[0].numpy()


def test_pixels_that_nothing_touches_stay_as_they_are_and_inputs_are_not_modified(tmp_path):
    augment = Albumentations([{"HorizontalFlip": {"p": 1}}], [H, W], IGNORE)
    NOISE.tofile(tmp_path / "image")
    mapped = np.memmap(tmp_path / "image", np.uint8, "r", shape=NOISE.shape)
    before = NOISE.copy(), PLACES.copy()
    for image in (NOISE, NOISE.astype(np.float32), NOISE + np.float32(0.4), mapped):
        out, label = augment(image, PLACES, random.Random(0))
        np.testing.assert_array_equal(out.numpy()[..., ::-1], build_plain(NOISE))
        np.testing.assert_array_equal(label.numpy()[:, ::-1], PLACES)
    np.testing.assert_array_equal(NOISE, before[0])
    np.testing.assert_array_equal(PLACES, before[1])


def test_the_dataset_hands_over_uint8():
    assert build(STANDARD).lazy and build("semseg").lazy


def test_compositions_hold_entries_of_the_same_form():
    inner = [{"HorizontalFlip": {"p": 1}}, {"Sequential": {"transforms": [{"VerticalFlip": {"p": 1}}], "p": 1}}]
    augment = Albumentations([{"OneOf": {"transforms": inner, "p": 1}}], [H, W], IGNORE)
    outcomes = {augment(NOISE, PLACES, random.Random(seed))[1].numpy().tobytes() for seed in range(30)}
    assert outcomes == {np.int64(flipped).tobytes() for flipped in (PLACES[:, ::-1], PLACES[::-1])}


# ---- mistakes ----


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("HorizontalFlp: {p: 0.5}", "HorizontalFlp: albumentations .* has no such transform (did you mean HorizontalFlip?)"),
        ("Blur: {blur_limt: 3}", "Blur: unknown argument blur_limt (did you mean blur_limit?)"),
        ("OneOf: {transforms: [{Blur: }], q: 1}", "OneOf: unknown argument q"),
        ("Blur: {blur_limit: 4}", "Blur: blur_limit: Non-zero kernel sizes must be odd"),
        ("Blur: {p: 2}", "Blur: p: Input should be less than or equal to 1"),
        ("RandomCrop: {height: 9}", "RandomCrop: width: Field required"),
        ("Normalize:", "Normalize: leave it out: after the pipeline images are normalised"),
        ("FromFloat: {p: 1}", "FromFloat: leave it out: after the pipeline images are normalised"),
        ("RandomScale: {area_for_downscale: image_mask}", "RandomScale: area_for_downscale = image_mask: ids cannot be"),
        ("GridElasticDeform: {num_grid_xy: [4, 4], magnitude: 9}", "GridElasticDeform: it fills labels with class 0"),
        ("OneOf: {transforms: [{HorizontalFlip: }, {Bluur: }]}", "OneOf: entry 2: Bluur: albumentations .* no such"),
        ("OneOf: {p: 0.5}", "OneOf: entry: expected a list of transforms, found None"),
        ("OneOf: {transforms: [{Blur: {p: 0}}]}", "OneOf: float division by zero"),
        ("Rotate: {mask_interpolation: 1}", "Rotate: mask_interpolation = 1: ids cannot be interpolated"),
        ("{Blur: {}, HorizontalFlip: {}}", "expected one `Class: {argument: value}`, found {'Blur': {}, 'HorizontalFlip': {}}"),
        ("Blur: 3", "expected one `Class: {argument: value}`, found {'Blur': 3}"),
    ],
)
def test_a_mistake_names_the_key_the_entry_and_what_is_wrong(entry, message):
    with pytest.raises(ValueError) as error:
        build(f"\n- HorizontalFlip:\n- {entry}")
    parts = [f"config/c.yaml: TRAIN.augmentation: entry 2: {message}".split(" .* "), str(error.value)]
    assert all(part in parts[1] for part in parts[0]) and len(parts[1].splitlines()) == 1


def test_a_label_is_filled_with_a_class_or_ignored():
    message = "entry 1: Rotate: fill_mask = 255 is neither a class nor the ignore_label 65535: leave it out"
    rotate = lambda fill: [{"Rotate": {"limit": [-10, 10], "border_mode": 0, "fill_mask": fill}}]
    with pytest.raises(Mistake, match=message):
        Albumentations(rotate(255), [H, W], 65535, 19)
    for fill in ([255], 1.5, -1):
        with pytest.raises(Mistake, match="is neither a class nor the ignore_label"):
            Albumentations(rotate(fill), [H, W], 65535, 19)
    with pytest.raises(Mistake, match="PixelDropout: mask_drop_value = 200 is neither a class nor the ignore_label 255"):
        Albumentations([{"PixelDropout": {"mask_drop_value": 200}}], [H, W], 255, 19)
    Albumentations(rotate(255), [H, W], 65535, 256)
    Albumentations(rotate(255), [H, W], 255, 19)


@pytest.mark.parametrize("name", ["cityscapes_pspnet50_albumentations", "cityscapes_pspnet50_onecycle"])
def test_the_shipped_pipelines_ignore_their_corners_with_any_ignore_label(name):
    augment, found = build_augmentation(load_config(find_config(name), ["ignore_label", "65535"])), set()
    image, label = np.zeros((800, 800, 3), np.uint8), np.ones((800, 800), np.uint8)
    for seed in range(30):
        found |= set(augment(image, label, random.Random(seed))[1].unique().tolist())
    assert found == {1, 65535}


def test_all_mistakes_are_reported_at_once():
    with pytest.raises(ValueError) as error:
        build("\n- Bluur: {p: 1}\n- HorizontalFlip: {p: 7}\n- OneOf: {transforms: [{A: }, {B: }]}")
    assert [line.split(": ")[2] for line in str(error.value).splitlines()] == ["entry 1", "entry 2", "entry 3", "entry 3"]


def test_a_result_of_another_size_says_what_to_do():
    message = r"made an image of shape \(48, 64, 3\), and train_h, train_w ask for \(40, 40, 3\): let it end with RandomCrop: "
    with pytest.raises(ValueError, match=message + "{height: 40, width: 40}"):
        build("\n- HorizontalFlip:")(NOISE, PLACES, random.Random(0))


def test_an_image_too_small_for_the_pipeline_says_so():
    with pytest.raises(ValueError, match=r"TRAIN.augmentation, on an image of shape \(48, 64, 3\): Crop size"):
        build("\n- RandomCrop: {height: 50, width: 40}", crop=50)(NOISE, PLACES, random.Random(0))


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "albumentations", None)
    with pytest.raises(ValueError, match=r"config/c.yaml: TRAIN.augmentation: .* pip install albumentations"):
        build(STANDARD)


def test_a_package_that_is_too_old_is_named(monkeypatch):
    old = SimpleNamespace(Compose=object, __version__="1.3.1")
    monkeypatch.setitem(sys.modules, "albumentations", old)
    with pytest.raises(ValueError, match=r"albumentations 1.3.1 is too old: pip install 'albumentations>=2.0.8'"):
        build(STANDARD)


def test_the_package_does_not_ask_the_network_for_a_newer_version(monkeypatch):
    monkeypatch.delenv("NO_ALBUMENTATIONS_UPDATE", raising=False)
    build(STANDARD)
    assert os.environ["NO_ALBUMENTATIONS_UPDATE"] == "1"


def test_the_other_augmentations_do_not_need_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "albumentations", None)
    build("semseg")(NOISE, PLACES, random.Random(0))
