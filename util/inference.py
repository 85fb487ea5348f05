"""The one inference engine: test, demo and validation all predict through it.

Every scale of the image goes through the network, in overlapping windows or in one piece, and so do their mirror images;
the class probabilities are averaged over mirror images, overlapping windows and scales: all on the model's device, in
float32, without waiting for it. Whoever wants the network in half precision calls in an autocast context.
"""
from math import ceil

import numpy as np
import torch
import torch.nn.functional as F


@torch.inference_mode()
def predict_probability(model, image, *, classes, base_size, crop_h, crop_w, scales, mean, std, flip=True,
                        stride_rate=2 / 3, test_batch=1, mode="slide", device=None):
    """Class probabilities (K, H, W) float32 of one image, on the model's device; they sum to 1 over K.

    model: network in eval mode, or any function, (N, 3, crop_h, crop_w) float32 normalised -> logits (N, K, h, w);
        logits of another size are brought to the window's bilinearly (align_corners=True). In mode "whole" it must take
        any height and width.
    image: (H, W, 3) RGB array, uint8 or float, 0..255; of any size from one pixel on.
    classes: K, checked against the logits.
    base_size: pixels of the long side at scale 1; None = the image's own.
    crop_h, crop_w: window. Images below it are padded with the mean, centred, the odd pixel at the bottom and right.
    scales: factors of base_size; the result is the mean over them.
    mean, std: three numbers each, RGB, of 0..255.
    flip: average each window with its mirror image.
    stride_rate: windows start every ceil(crop * stride_rate) pixels, the last one ends at the border.
    test_batch: windows, and as many mirror images, in one call of the model.
    mode: "slide", or "whole": each scaled image is one window, whatever its size; crop, stride and batch mean nothing then.
    device: where to compute; None = where the model's weights are.

    Memory, on the device: one (K, H, W) float32 tensor of the scale at work, with several scales two more of the image's
    size; while the model works also its own for 2 * test_batch windows, and their logits twice.
    """
    if getattr(model, "training", False):
        raise ValueError("the model is in training mode, and dropout and batch statistics would spoil its predictions: "
                         "call model.eval() first")
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"expected an image of shape (H, W, 3), not {tuple(image.shape)}")
    if not len(scales):
        raise ValueError("scales: at least one is needed")
    if mode not in ("slide", "whole"):
        raise ValueError(f"mode: {mode!r} is unknown; choose slide or whole")
    device = device or _device(model)
    x = torch.from_numpy(np.require(image, requirements=["C", "W"])).to(device).permute(2, 0, 1)[None].float()
    # Normalising is linear, so once before resizing does for all windows, and padding with the mean becomes zeros.
    x = (x - x.new_tensor(mean).view(3, 1, 1)) / x.new_tensor(std).view(3, 1, 1)
    size = x.shape[2:]
    total = None
    for scale in scales:
        scaled = _resize(x, scaled_size(*size, scale, base_size or max(size)))
        if mode == "whole":
            prob = _window_probability(model, scaled, classes, flip)[0]
        else:
            prob = _slide(model, scaled, classes, crop_h, crop_w, flip, stride_rate, test_batch)
        prob = _resize(prob[None], size)[0]
        total = prob if total is None else total.add_(prob)
    return total.div_(len(scales)) if len(scales) > 1 else total


def predict(model, image, **settings):
    """The likeliest class of every pixel, (H, W) uint8 array (uint16 from 257 classes on); see predict_probability."""
    best = predict_probability(model, image, **settings).argmax(0)
    if settings["classes"] <= 256:
        return best.to(torch.uint8).cpu().numpy()
    return best.to(torch.int32).cpu().numpy().astype(np.uint16)


def scaled_size(h, w, scale, base_size):
    """(h, w) with the long side at round(scale * base_size), by Python's round (half to even), and no side below 1."""
    long = max(1, round(scale * base_size))
    if h > w:
        return long, max(1, round(long / h * w))
    return max(1, round(long / w * h)), long


def window_starts(side, crop, stride_rate):
    """First pixels of the windows that cover `side` >= crop pixels."""
    stride = ceil(crop * stride_rate)
    return [min(i * stride, side - crop) for i in range(ceil((side - crop) / stride) + 1)]


def _slide(model, x, classes, crop_h, crop_w, flip, stride_rate, test_batch):
    """Probabilities (K, h, w) of one scaled, normalised image (1, 3, h, w)."""
    h, w = x.shape[2:]
    pad_h, pad_w = max(crop_h - h, 0), max(crop_w - w, 0)
    top, left = pad_h // 2, pad_w // 2
    x = F.pad(x, (left, pad_w - left, top, pad_h - top))
    rows, cols = window_starts(h + pad_h, crop_h, stride_rate), window_starts(w + pad_w, crop_w, stride_rate)
    corners = [(i, j) for i in rows for j in cols]
    total = x.new_zeros(classes, *x.shape[2:])
    for first in range(0, len(corners), test_batch):
        batch = corners[first:first + test_batch]
        windows = torch.cat([x[:, :, i:i + crop_h, j:j + crop_w] for i, j in batch])
        for (i, j), prob in zip(batch, _window_probability(model, windows, classes, flip)):
            total[:, i:i + crop_h, j:j + crop_w] += prob
    total /= _cover(rows, crop_h, total.shape[1], x)[:, None] * _cover(cols, crop_w, total.shape[2], x)
    return total[:, top:top + h, left:left + w]


def _window_probability(model, windows, classes, flip):
    """(N, K, crop_h, crop_w) float32 of windows (N, 3, crop_h, crop_w)."""
    y = model(torch.cat([windows, windows.flip(3)]) if flip else windows).float()
    if y.shape[1] != classes:
        raise ValueError(f"the model speaks of {y.shape[1]} classes, but `classes` is {classes}")
    if y.shape[2:] != windows.shape[2:]:
        y = F.interpolate(y, windows.shape[2:], mode="bilinear", align_corners=True)
    y = y.softmax(1)
    if flip:
        y, mirrored = y.chunk(2)
        y = mirrored.flip(3).add_(y).div_(2)
    return y


def _cover(starts, crop, side, like):
    """(side,) how many windows cover each pixel of one axis; the windows form a grid, so the two axes multiply."""
    count = like.new_zeros(side)
    for start in starts:
        count[start:start + crop] += 1
    return count


def _resize(x, size):
    """Bilinear with half-pixel centres and no smoothing: cv2.resize's INTER_LINEAR for any number of channels."""
    return x if x.shape[2:] == tuple(size) else F.interpolate(x, tuple(size), mode="bilinear", align_corners=False)


def _device(model):
    parameters = getattr(model, "parameters", tuple)  # a plain function has none
    return next((p.device for p in parameters()), torch.device("cpu"))
