"""Joint transforms of an image and its label map, and the lazy `Compose` that computes only what the crop keeps.

Every transform is called as `t(image, label, rng=random)` with
  image  (H, W, 3) float32, 0..255, RGB (uint8 is converted),
  label  (H, W) integer ids; 8-bit, 16-bit and int32 maps keep their dtype, others become int32,
  rng    anything with `random()` and `randint(a, b)`, b included, as Python's `random` has them,
and works in two steps: `draw(rng, h, w)` takes the random numbers, `apply(image, label, params)` computes. One that needs
the label to draw overrides `choose(rng, h, w, look)`; look(window) returns the label's pixels in a window. Inputs are never
modified. Wrong constructor arguments raise ValueError with the argument and its value.

The transforms that may stand before a crop also have a lazy form. A window is (y0, y1, x0, x1), the stops excluded:
  size(h, w, params)            -> (h, w) of the result for an input of h x w; the same unless overridden
  source(window, h, w, params)  -> the window of the input that a window of the result depends on, inside the image
  apply_window(image, label, params, h, w, source, window) -> the window of the result, from the source window's pixels
"""

import math
import random
from collections.abc import Sequence
from functools import lru_cache
from numbers import Real

import cv2
import numpy as np
import torch
from torch.nn.functional import pad

MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)  # of ImageNet, RGB: subtracted by Normalize, and the colour of padding
STD = (0.229 * 255, 0.224 * 255, 0.225 * 255)


class Transform:
    """A transform of (image, label); it is random only if it overrides `draw`."""

    def draw(self, rng, h, w):
        """The random numbers for an image of h x w: the `params` of `apply`."""

    def choose(self, rng, h, w, look):
        """`draw` with access to the label."""
        return self.draw(rng, h, w)

    def size(self, h, w, params):
        return h, w

    def __call__(self, image, label, rng=random):
        image, label = check_arrays(image, label)
        params = self.choose(rng, *label.shape, lambda window: _cut(label, window))
        return self.apply(image.astype(np.float32, copy=False), label, params)


class RandScale(Transform):
    """Scale by a factor from `scale` = (low, high); `aspect_ratio` = (low, high) also stretches x against y."""

    def __init__(self, scale, aspect_ratio=None):
        for name, value in (("scale", scale), ("aspect_ratio", (1, 1) if aspect_ratio is None else aspect_ratio)):
            _require(self, _is_range(value) and value[0] > 0, name, value, "two numbers 0 < low <= high")
        self.scale, self.aspect_ratio = scale, aspect_ratio

    def draw(self, rng, h, w):
        scale = _between(self.scale, rng)
        stretch = math.sqrt(_between(self.aspect_ratio, rng)) if self.aspect_ratio else 1.0
        factors = max(scale / stretch, 1 / h), max(scale * stretch, 1 / w)  # a pixel remains
        return factors if self.size(h, w, factors) != (h, w) else (1.0, 1.0)  # where cv2.resize copies

    def apply(self, image, label, params):
        fy, fx = params
        image = cv2.resize(image, None, fx=fx, fy=fy, interpolation=cv2.INTER_LINEAR)
        label = cv2.resize(label, None, fx=fx, fy=fy, interpolation=cv2.INTER_NEAREST)
        return image, label

    # The lazy form. cv2.resize with factors samples scaled pixel x at (x + 0.5) / fx - 0.5 (image, linear) and at
    # floor(x / fx) (label), both clamped to the image: the exact factor counts, not the ratio of the rounded sizes.

    def size(self, h, w, params):
        return round(h * params[0]), round(w * params[1])

    def source(self, window, h, w, params):
        y0, y1, x0, x1 = window
        spans = []
        for start, stop, factor in ((y0, y1, params[0]), (x0, x1, params[1])):
            spans.append(min(math.floor((start + 0.5) / factor - 0.5), math.floor(start * (1 / factor))))
            spans.append(math.floor((stop - 0.5) / factor - 0.5) + 2)
        return _inside(spans, h, w)

    def apply_window(self, image, label, params, h, w, source, window):
        (fy, fx), (top, _, left, _), (y0, y1, x0, x1) = params, source, window
        matrix = np.array([[1 / fx, 0, (x0 + 0.5) / fx - 0.5 - left], [0, 1 / fy, (y0 + 0.5) / fy - 0.5 - top]])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        image = cv2.warpAffine(image, matrix, (x1 - x0, y1 - y0), flags=flags, borderMode=cv2.BORDER_REPLICATE)
        rows = np.minimum((np.arange(y0, y1) * (1 / fy)).astype(np.intp), h - 1) - top
        cols = np.minimum((np.arange(x0, x1) * (1 / fx)).astype(np.intp), w - 1) - left
        return image, label.take(rows, axis=0).take(cols, axis=1)


class RandomResize(RandScale):
    """Resize, keeping the ratio, to fit into `box` = (long, short) times a factor from `scale` (MMSegmentation).

    box None: the image's own sides. The scaled box is not rounded: only the image's sides are, to int(side * f + 0.5) with
    the largest f that fits, so that the size is as near to the drawn one as whole pixels allow.
    """

    def __init__(self, box=None, scale=(1.0, 1.0)):
        super().__init__(scale)
        ok = box is None or _is_numbers(box, 2) and min(box) > 0
        _require(self, ok, "box", box, "None or two positive numbers (long, short)")
        self.box = box

    def draw(self, rng, h, w):
        """Exact ratios of the rounded sides: with these factors cv2.resize samples as it does when given the size."""
        r, box = _between(self.scale, rng), self.box or (h, w)
        f = min(max(box) * r / max(h, w), min(box) * r / min(h, w))
        return max(int(h * f + 0.5), 1) / h, max(int(w * f + 0.5), 1) / w


class Resize(RandScale):
    """Resize to `size` (h, w); the aspect ratio may change."""

    def __init__(self, size):
        _require(self, _is_size(size), "size", size, "two positive integers (h, w)")
        self.h, self.w = size

    def draw(self, rng, h, w):
        return self.h / h, self.w / w


class RandRotate(Transform):
    """Rotate about the centre, with probability p, by degrees from `rotate` = (low, high); corners get `padding`."""

    def __init__(self, rotate, padding, ignore_label=255, p=0.5):
        _require(self, _is_range(rotate), "rotate", rotate, "two numbers low <= high")
        _require(self, _is_numbers(padding, 3), "padding", padding, "three numbers, the colour of the corners")
        _require(self, _is_id(ignore_label), "ignore_label", ignore_label, "an integer")
        _require(self, _is_probability(p), "p", p, "a probability 0..1")
        self.rotate, self.padding, self.ignore_label, self.p = rotate, padding, ignore_label, p

    def draw(self, rng, h, w):
        if rng.random() < self.p:
            return cv2.getRotationMatrix2D((w / 2, h / 2), _between(self.rotate, rng), 1)
        return None

    def apply(self, image, label, params):
        if params is None:
            return image, label
        size = label.shape[::-1]
        image = cv2.warpAffine(image, params, size, flags=cv2.INTER_LINEAR, borderValue=self.padding)
        return image, self._warp_label(label, params, size)

    def _warp_label(self, label, matrix, size):
        label = wide_enough(label, self.ignore_label)
        return cv2.warpAffine(label, matrix, size, flags=cv2.INTER_NEAREST, borderValue=self.ignore_label)

    # The lazy form: the same inverse map, moved to the window's and the source's corners.

    def source(self, window, h, w, params):
        if params is None:
            return window
        y0, y1, x0, x1 = window
        corners = np.array([[x, y, 1] for x in (x0, x1 - 1) for y in (y0, y1 - 1)])
        xy = cv2.invertAffineTransform(params) @ corners.T
        (left, top), (right, bottom) = np.floor(xy.min(1)).astype(int) - 1, np.floor(xy.max(1)).astype(int) + 3
        return _inside((top, bottom, left, right), h, w)

    def apply_window(self, image, label, params, h, w, source, window):
        if params is None:
            return image, label
        (top, _, left, _), (y0, y1, x0, x1) = source, window
        inverse = cv2.invertAffineTransform(params)
        matrix = inverse.copy()
        matrix[:, 2] += inverse[:, :2] @ (x0, y0) - (left, top)
        # OpenCV 5 takes 3 to 5 times as long where the source's y rises along x: turn both sides upside down then.
        upside_down = matrix[1, 0] > 0.02
        if upside_down:
            image = cv2.flip(image, 0)
            matrix[:, 2] += matrix[:, 1] * (y1 - y0 - 1)
            matrix[:, 1] *= -1
            matrix[1] = (0, 0, len(image) - 1) - matrix[1]
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        image = cv2.warpAffine(image, matrix, (x1 - x0, y1 - y0), flags=flags, borderValue=self.padding)
        image = cv2.flip(image, 0) if upside_down else image
        # How OpenCV rounds to the nearest label depends on its version, the dtype and the pixel's place in the output, so
        # equal labels need the full-size call. It is cheap for labels, and pixels outside the source window may be blank.
        canvas = np.zeros((h, w), label.dtype)
        canvas[source[0] : source[1], source[2] : source[3]] = label
        label = self._warp_label(canvas, params, (w, y1))[y0:, x0:x1]
        return image, label


class RandomGaussianBlur(Transform):
    """Blur the image, with probability 0.5, by a radius x radius Gaussian (5: 1 4 6 4 1; sigma follows from radius)."""

    def __init__(self, radius=5):
        odd = _is_id(radius) and radius > 0 and radius % 2 == 1
        _require(self, odd, "radius", radius, "a positive odd integer")
        self.radius = radius

    def draw(self, rng, h, w):
        return rng.random() < 0.5

    def apply(self, image, label, params):
        return (cv2.GaussianBlur(image, (self.radius, self.radius), 0) if params else image), label

    def source(self, window, h, w, params):
        halo = self.radius // 2 if params else 0
        y0, y1, x0, x1 = window
        return _inside((y0 - halo, y1 + halo, x0 - halo, x1 + halo), h, w)

    def apply_window(self, image, label, params, h, w, source, window):
        image, label = self.apply(image, label, params)
        inner = _moved(window, -source[0], -source[2])
        return _cut(image, inner), _cut(label, inner)


class _RandomFlip(Transform):
    axis = None

    def __init__(self, p=0.5):
        _require(self, _is_probability(p), "p", p, "a probability 0..1")
        self.p = p

    def draw(self, rng, h, w):
        return rng.random() < self.p

    def apply(self, image, label, params):
        return (cv2.flip(image, self.axis), cv2.flip(label, self.axis)) if params else (image, label)

    def source(self, window, h, w, params):
        y0, y1, x0, x1 = window
        if not params:
            return window
        return (y0, y1, w - x1, w - x0) if self.axis else (h - y1, h - y0, x0, x1)

    def apply_window(self, image, label, params, h, w, source, window):
        return self.apply(image, label, params)


class RandomHorizontalFlip(_RandomFlip):
    """Mirror left and right with probability p."""

    axis = 1


class RandomVerticalFlip(_RandomFlip):
    """Mirror top and bottom with probability p."""

    axis = 0


class Crop(Transform):
    """Cut out `size` (h, w), at random or in the centre; a smaller image is first padded on all sides.

    `padding` is the padding's colour (None: a smaller image is an error) and `ignore_label` its label; an odd pixel of
    padding goes to the bottom and right.
    """

    def __init__(self, size, crop_type="center", padding=None, ignore_label=255):
        size = (size, size) if _is_id(size) else size
        _require(self, _is_size(size), "size", size, "a positive integer or two (h, w)")
        _require(self, crop_type in ("center", "rand"), "crop_type", crop_type, "'center' or 'rand'")
        _require(self, padding is None or _is_numbers(padding, 3), "padding", padding, "None or three numbers")
        _require(self, _is_id(ignore_label), "ignore_label", ignore_label, "an integer")
        self.crop_h, self.crop_w = size
        self.crop_type, self.padding, self.ignore_label = crop_type, padding, ignore_label

    def draw(self, rng, h, w):
        """Where the crop begins, (y, x), in the image's own pixels: negative where padding comes first."""
        begins = []
        for side, crop in zip((h, w), self.size(h, w, None)):
            room, padding = max(side - crop, 0), max(crop - side, 0)
            begins.append((rng.randint(0, room) if self.crop_type == "rand" else room // 2) - padding // 2)
        return begins

    def apply(self, image, label, params):
        (h, w), (crop_h, crop_w) = label.shape, self.size(*label.shape, params)
        return self.apply_window(image, label, params, h, w, (0, h, 0, w), (0, crop_h, 0, crop_w))

    def size(self, h, w, params):
        return self.crop_h, self.crop_w

    def source(self, window, h, w, params):
        return _inside(_moved(window, *params), h, w)

    def apply_window(self, image, label, params, h, w, source, window):
        crop_h, crop_w = self.size(h, w, params)
        if self.padding is None and (h < crop_h or w < crop_w):
            raise ValueError(f"Crop: the image is {h} x {w}, smaller than the crop {crop_h} x {crop_w}: "
                             "give Crop a padding colour or a smaller size")  # fmt: skip
        inner = _moved(window, params[0] - source[0], params[1] - source[2])
        return _cut(image, inner, self.padding), _cut(label, inner, self.ignore_label)


class RandomCrop(Crop):
    """Cut out `size` (h, w) at random; a side on which the image is smaller is kept whole (MMSegmentation).

    With cat_max_ratio < 1 a crop must show more than one class, none of them on that share of the labelled pixels or more;
    after ten crops that do not, the next one is used without this test.
    """

    TRIES = 10

    def __init__(self, size, cat_max_ratio=1.0, ignore_label=255):
        super().__init__(size, "rand", ignore_label=ignore_label)
        ok = isinstance(cat_max_ratio, Real) and 0 < cat_max_ratio <= 1
        _require(self, ok, "cat_max_ratio", cat_max_ratio, "a share in (0, 1]")
        self.cat_max_ratio = cat_max_ratio

    def choose(self, rng, h, w, look):
        height, width = self.size(h, w, None)
        for _ in range(self.TRIES if self.cat_max_ratio < 1 else 0):
            y, x = self.draw(rng, h, w)
            label = look((y, y + height, x, x + width))
            pixels = np.bincount(label[label != self.ignore_label])
            if np.count_nonzero(pixels) > 1 and pixels.max() / pixels.sum() < self.cat_max_ratio:
                return y, x
        return self.draw(rng, h, w)

    def size(self, h, w, params):
        return min(self.crop_h, h), min(self.crop_w, w)


class PhotometricDistortion(Transform):
    """Change brightness, contrast, saturation and hue, each with probability 0.5, on whole grey levels (MMSegmentation).

    Brightness adds up to +-`brightness`; contrast and saturation multiply with a factor from (low, high); hue adds an
    integer from [-hue, hue - 1] in units of 2 degrees. Contrast comes second or last, with probability 0.5 each. The image is
    first rounded to uint8, as a resized uint8 image would be, and each step truncates to uint8.
    """

    def __init__(self, brightness=32, contrast=(0.5, 1.5), saturation=(0.5, 1.5), hue=18):
        ok = isinstance(brightness, Real) and brightness >= 0
        _require(self, ok, "brightness", brightness, "a number of grey levels, not negative")
        for name, factors in (("contrast", contrast), ("saturation", saturation)):
            _require(self, _is_range(factors) and factors[0] >= 0, name, factors, "two numbers 0 <= low <= high")
        _require(self, _is_id(hue) and 0 < hue <= 90, "hue", hue, "an integer 1..90, in units of 2 degrees")
        self.brightness, self.contrast, self.saturation, self.hue = (-brightness, brightness), contrast, saturation, hue

    def draw(self, rng, h, w):
        """The chosen steps in their order, as (function, number)."""

        def toss(step, bounds):
            return [(step, _between(bounds, rng))] if rng.random() < 0.5 else []

        steps = toss(_add, self.brightness)
        contrast_early = rng.random() < 0.5
        if contrast_early:
            steps += toss(_multiply, self.contrast)
        steps += toss(_saturate, self.saturation)
        if rng.random() < 0.5:
            steps.append((_turn_hue, rng.randint(-self.hue, self.hue - 1)))
        if not contrast_early:
            steps += toss(_multiply, self.contrast)
        return steps

    def apply(self, image, label, params):
        image = to_uint8(image)
        for step, value in params:
            image = step(image, value)
        return image.astype(np.float32), label


def _add(image, levels):
    return cv2.LUT(image, _table(1, levels))


def _multiply(image, factor):
    return cv2.LUT(image, _table(factor, 0))


def _saturate(image, factor):
    return _change_hsv(image, 1, _table(factor, 0))


def _turn_hue(image, steps):
    return _change_hsv(image, 0, ((np.arange(256) + steps) % 180).astype(np.uint8))


def _table(factor, offset):
    """level * factor + offset for each uint8 level, in float32, clipped and truncated: (256,) uint8."""
    levels = np.arange(256, dtype=np.float32) * np.float32(factor) + np.float32(offset)
    return np.clip(levels, 0, 255).astype(np.uint8)


def _change_hsv(image, channel, table):
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)  # hue 0..179
    hsv[..., channel] = table[hsv[..., channel]]
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


class RGB2BGR(Transform):
    """Reverse the order of the channels."""

    def apply(self, image, label, params):
        return cv2.cvtColor(image, cv2.COLOR_RGB2BGR), label


BGR2RGB = RGB2BGR


class ToTensor(Transform):
    """Image to a (3, H, W) float32 tensor, still 0..255; label to an (H, W) int64 tensor."""

    def apply(self, image, label, params):
        image = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)
        return image.contiguous(), torch.from_numpy(label.astype(np.int64))


class Normalize:
    """(image - mean) / std for each channel of a (3, H, W) tensor, in units of 0..255; without std no division."""

    def __init__(self, mean, std=None):
        _require(self, _is_numbers(mean, 3), "mean", mean, "three numbers")
        _require(self, std is None or _is_numbers(std, 3) and min(std) > 0, "std", std, "None or three positive numbers")
        self.mean, self.std = mean, std

    def __call__(self, image, label, rng=random):
        image = image - torch.tensor(self.mean).view(3, 1, 1)
        if self.std is not None:
            image /= torch.tensor(self.std).view(3, 1, 1)
        return image, label


class PadTo:
    """Pad normalised tensors at the bottom and right to `size` (h, w): the image with 0, the mean, the label to ignore."""

    def __init__(self, size, ignore_label=255):
        _require(self, _is_size(size), "size", size, "two positive integers (h, w)")
        _require(self, _is_id(ignore_label), "ignore_label", ignore_label, "an integer")
        (self.h, self.w), self.ignore_label = size, ignore_label

    def __call__(self, image, label, rng=random):
        h, w = label.shape
        if h > self.h or w > self.w:
            raise ValueError(f"PadTo: the image is {h} x {w}, larger than {self.h} x {self.w}: crop it first")
        border = (0, self.w - w, 0, self.h - h)  # left, right, top, bottom
        return pad(image, border), pad(label, border, value=self.ignore_label)


class Compose:
    """Run `ops` in order. `lazy=True` computes only the pixels that the crop keeps.

    Lazy: the transforms that lead up to the last Crop draw their random numbers first, in the same order. The crop's
    window is then followed back through them to the source pixels it depends on, and each computes its window only.
    Labels are equal to those of the plain order, the crop's image is within 0.05 grey levels of it (where PhotometricDistortion
    follows, a few pixels in a thousand round to the other grey level). The image may then be a uint8 memory map or a `PngImage`
    (util/image.py): only the source window is read and converted. A transform without a lazy form (`apply_window`) and all
    before it run one by one, as do those after the crop, and all of them where OpenCV's warp is too coarse (see
    `warp_is_exact`). Who changes `apply` of one that has a lazy form changes `apply_window` as well.
    """

    def __init__(self, ops, lazy=False):
        self.ops, self.lazy = list(ops), lazy
        stop = max((i + 1 for i, op in enumerate(self.ops) if isinstance(op, Crop)), default=0)
        start = max(stop - 1, 0)
        while start and hasattr(self.ops[start - 1], "apply_window") and not isinstance(self.ops[start - 1], Crop):
            start -= 1
        self._fused = slice(start, stop)

    def __call__(self, image, label, rng=random):
        if not (self.lazy and warp_is_exact()):
            return self._run(self.ops, image, label, rng)
        image, label = self._run(self.ops[: self._fused.start], image, label, rng)
        image, label = apply_lazily(self.ops[self._fused], image, label, rng)
        return self._run(self.ops[self._fused.stop :], image, label, rng)

    @staticmethod
    def _run(ops, image, label, rng):
        if ops and not isinstance(image, torch.Tensor):
            image = np.asarray(image).astype(np.float32, copy=False)
        for op in ops:
            image, label = op(image, label, rng)
        return image, label


def apply_lazily(ops, image, label, rng=random):
    """The result of `Compose(ops)`, computing only the pixels that are kept; ops have a lazy form, the last may be a Crop."""
    image, label = check_arrays(image, label)
    h, w = label.shape
    steps = []

    def look(window):  # the label in place of the image, which is not needed here: a third of the channels
        return _window_after(steps, label, label, window)[1]

    for op in ops:
        params = op.choose(rng, h, w, look)
        steps.append((op, params, h, w))
        h, w = op.size(h, w, params)
    return _window_after(steps, image, label, (0, h, 0, w))


def _window_after(steps, image, label, window):
    """A window of the result of steps, (op, params, h, w of its input), computed from the pixels that it depends on."""
    windows = [window]
    for op, params, h, w in reversed(steps):
        windows.append(op.source(windows[-1], h, w, params))
    source = windows.pop()
    image, label = np.asarray(_cut(image, source), np.float32), np.asarray(_cut(label, source))
    for op, params, h, w in steps:
        window = windows.pop()
        image, label = op.apply_window(image, label, params, h, w, source, window)
        source = window
    return image, label


@lru_cache(maxsize=1)
def warp_is_exact():
    """Whether this OpenCV warps as exactly as it resizes (5 does, 4 rounds to 1/32 pixel), measured once."""
    ops = [RandScale([1.37, 1.37]), RandRotate([8, 8], [1, 2, 3], p=1), Crop([61, 67], "rand")]
    noise = np.random.default_rng(0)
    image, label = noise.integers(0, 256, (90, 110, 3), np.uint8), noise.integers(0, 256, (90, 110), np.uint8)
    lazy, plain = (run(ops, image, label, random.Random(0)) for run in (apply_lazily, Compose._run))
    return bool(np.abs(lazy[0] - plain[0]).max() < 0.01 and (lazy[1] == plain[1]).all())


def _cut(array, window, fill=0):
    """Rows y0..y1 and columns x0..x1 of an array, `fill` where they lie outside it; a view where nothing does."""
    y0, y1, x0, x1 = window
    h, w = array.shape[:2]
    top, bottom, left, right = max(-y0, 0), max(y1 - h, 0), max(-x0, 0), max(x1 - w, 0)
    part = array[max(y0, 0) : min(y1, h), max(x0, 0) : min(x1, w)]
    if not (top or bottom or left or right):
        return part
    if array.ndim == 2:
        part = wide_enough(part, fill)
    return cv2.copyMakeBorder(part, top, bottom, left, right, cv2.BORDER_CONSTANT, value=fill)


def _inside(window, h, w):
    """The window's part inside an h x w image; the nearest pixel if there is none."""
    y0, y1, x0, x1 = window
    y0, x0 = min(max(y0, 0), h - 1), min(max(x0, 0), w - 1)
    return y0, max(min(y1, h), y0 + 1), x0, max(min(x1, w), x0 + 1)


def _moved(window, y, x):
    return window[0] + y, window[1] + y, window[2] + x, window[3] + x


def check_arrays(image, label):
    """Image and label, or ValueError if they do not go together; the label in a dtype that OpenCV supports."""
    if image.ndim != 3 or image.shape[2] != 3 or label.shape != image.shape[:2]:
        raise ValueError(f"image {image.shape} and label {label.shape}: expected (H, W, 3) and (H, W) of one size")
    if label.dtype.kind not in "biu":
        raise ValueError(f"label of {label.dtype}: expected integer ids")
    if label.dtype not in (np.uint8, np.int8, np.uint16, np.int16, np.int32):  # what OpenCV 4 and 5 can warp
        label = label.astype(np.uint8 if label.dtype == bool else np.int32)
    return image, label


def to_uint8(image):
    """A float image rounded to whole grey levels; a uint8 image as it is."""
    return image if image.dtype == np.uint8 else np.clip(np.rint(image), 0, 255).astype(np.uint8)


def wide_enough(label, value):
    """The label in a dtype that can hold `value`: OpenCV would clip -1 to class 0 in an 8-bit map."""
    limits = np.iinfo(label.dtype)
    return label if limits.min <= value <= limits.max else label.astype(np.int32)


def _between(bounds, rng):
    return bounds[0] + (bounds[1] - bounds[0]) * rng.random()


def _require(transform, ok, name, value, expected):
    if not ok:
        raise ValueError(f"{type(transform).__name__}: {name} = {value!r}: expected {expected}")


def _is_numbers(value, length):
    return isinstance(value, Sequence) and len(value) == length and all(isinstance(v, Real) for v in value)


def _is_range(value):
    return _is_numbers(value, 2) and value[0] <= value[1]


def _is_size(value):
    return _is_numbers(value, 2) and all(_is_id(n) and n > 0 for n in value)


def _is_id(value):
    return isinstance(value, int) and not isinstance(value, bool)


def _is_probability(value):
    return isinstance(value, Real) and 0 <= value <= 1
