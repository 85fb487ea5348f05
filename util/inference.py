"""The one inference engine: test, demo and validation all predict through it.

Every scale of the image goes through the network, in overlapping windows or in one piece, and so do their mirror images;
the class probabilities are averaged over mirror images, overlapping windows and scales: all on the model's device, in
float32, without waiting for it but where an image goes there. For a network in half precision, call in an autocast context.

`predict` goes through a large image from top to bottom, in every scale at once: the sums of the windows are kept only for
the rows that a later window still adds to, and classes are chosen in strips of finished rows.

`Predictor` is the engine with a trained network, as a checkpoint holds it.
"""

import os
from dataclasses import replace
from functools import lru_cache, partial
from math import ceil, inf
from pathlib import PurePosixPath
from types import NoneType
from urllib.parse import urlsplit

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from util.checkpoint import load_checkpoint
from util.common import EXPORT_FORMATS, MODEL_SUFFIXES, Mistake, did_you_mean, first_few, first_line
from util.config import ROOT, Config, carries_config, is_colour, is_each, is_name, key_value_pairs, load_config, value_of
from util.fetch import is_url, local_file
from util.image import rgb_of
from util.precision import DTYPES, Precision
from util.transform import MEAN, STD
from util.visual import class_names, palette_of

WHOLE = 2**31  # bytes; `predict` works in strips where the class probabilities of an image or a scale of it would take more
STRIP = 32  # rows that are averaged over the scales and decided at a time, then
NOT_FINITE = (
    "the network's output is NaN or infinite: its weights are damaged, or its values exceed the range of `precision`: "
    "fp16 ends at 65504; fp32 and bf16 go further"
)
# The keys of the config that say how to predict and may be different for each Predictor.
PROTOCOL = ("base_size", "test_h", "test_w", "test_mode", "scales", "flip", "average", "test_batch", "channels_last", "compile")


class Predictor:
    """A trained network, and all that it needs to predict pictures.

        predictor = Predictor("exp/toy/pspnet18/model/model_best.pth")
        ids = predictor("street.jpg")

    checkpoint: a file, the content of one, or a list of these, whose probabilities are averaged.
    device: None = a GPU if there is one.
    precision: fp32, bf16, fp16 or a Precision; None = auto, bf16 if the device has instructions for it, and fp32 with a file
        of tool/export.py.
    config: a YAML file or a Config, for checkpoints that carry none.
    read: in place of `read_model`, for who has read a file already.
    protocol: keys of PROTOCOL, in place of the config's.
    Raises Mistake for what does not fit together.
    """

    def __init__(self, checkpoint, device=None, precision=None, config=None, read=None, **protocol):
        from model import check_config  # util knows the networks in this file alone, and only where one is loaded

        protocol = {key: _without_numpy(value) for key, value in protocol.items()}
        for key in protocol:
            if key not in PROTOCOL:
                raise Mistake(f"Predictor: {key}: unknown{did_you_mean(key, PROTOCOL)}; settings are {', '.join(PROTOCOL)}")
        files = [*checkpoint] if isinstance(checkpoint, list | tuple) else [checkpoint]
        if not files:
            raise Mistake("Predictor: the list of checkpoints is empty; name at least one")
        if wrong := [type(file).__name__ for file in files if not isinstance(file, str | os.PathLike | dict)]:
            raise Mistake(f"Predictor: expected the path of a checkpoint, or its content as a dict, found {wrong[0]}")
        self.device = _device_named(device)
        if not isinstance(precision, Precision | NoneType) and precision not in (*DTYPES, "auto"):
            raise Mistake(f"Predictor: precision: {precision!r} is unknown; choose one of {', '.join(DTYPES)}, auto")
        self.cfg = None
        if isinstance(config, Config):
            self.cfg = replace(config, **{key: _protocol_value(key, value) for key, value in protocol.items()})
        self.networks, self.weights = [], []  # with the report of what was loaded into each
        self.align_corners = []  # of each network: how its logits are resized
        known = None  # who said first what the classes are, and their names
        self.carried = None, None  # class names and colours that a checkpoint carries, None each if there are none
        for file in files:
            path, content = ("checkpoint", file) if isinstance(file, dict) else (file, (read or read_model)(file))
            if self.cfg is None:
                overrides = [word for pair in protocol.items() for word in pair]
                carried = content if config is None else None
                self.cfg = load_config(config or path, overrides, check=check_config, checkpoint=carried)
            cfg = self.cfg
            if len(files) > 1 and cfg.names:  # names_path may give the classes new names
                known = known or (cfg.path, class_names(cfg))
            if self.networks and carries_config(content):  # an ensemble may have networks of different kinds, one protocol
                shared = {key: getattr(cfg, key) for key in PROTOCOL}
                shared["test_h"], shared["test_w"] = cfg.window
                overrides = [word for pair in shared.items() for word in pair]
                cfg = load_config(path, overrides, check=check_config, checkpoint=content)
                if cfg.classes != self.cfg.classes:
                    numbers = f"{cfg.path}: {cfg.classes} classes, but {self.cfg.path} has {self.cfg.classes}"
                    raise Mistake(f"{numbers}; only the same can be averaged")
            network, weights = load_predicting_network(path, content, cfg, self.device)
            self.networks.append(network)
            self.weights.append(weights)
            self.align_corners.append(cfg.align_corners)
            names, palette = carried_classes(content, cfg)
            self.carried = self.carried[0] or names, self.carried[1] or palette
            if names:
                known = known or (path, names)
                _check_same_names(path, names, *known)
        self.cfg = with_carried(self.cfg, known and known[1], self.carried[1])
        self.names, self.palette = class_names(self.cfg), palette_of(self.cfg)
        if not isinstance(precision, Precision):
            exported = any(not isinstance(network, nn.Module) for network in self.networks)
            if exported and precision in ("bf16", "fp16"):
                raise Mistake(f"Predictor: precision: {precision}, but files of tool/export.py compute in fp32; set it to fp32")
            precision = Precision(precision or "auto", self.device, native="fp32" if exported else None)
        self.precision = precision

    def __call__(self, image):
        """The most probable class of every pixel, (H, W) uint8 array (uint16 from 257 classes on).

        image: a path, a Pillow image, or an RGB array (H, W, 3), uint8 or float, 0..255.
        Raises Mistake for an image that cannot be read, FloatingPointError if the network's output is not finite.
        """
        with self.precision.autocast():
            settings = prediction_settings(self.cfg) | {"align_corners": self.align_corners}
            return predict(self.networks, rgb_of(image), **settings)

    @torch.no_grad()  # not inference_mode, whose tensors autograd refuses
    def probability(self, image):
        """Class probabilities (K, H, W) float32 on the device, which sum to 1 over K: the mean over the networks."""
        image, total = rgb_of(image), None
        for network, align_corners in zip(self.networks, self.align_corners):
            settings = prediction_settings(self.cfg) | {"align_corners": align_corners}
            with self.precision.autocast():
                prob = predict_probability(network, image, **settings)
            total = prob.to(self.device) if total is None else total.add_(prob.to(self.device))
        return total.div_(len(self.networks)) if len(self.networks) > 1 else total


def load_model_config(path, overrides=(), must_exist=(), check=None, read=None):
    """`load_config` of a YAML file, or of the config that a trained network's file carries; read: in place of `read_model`."""
    if not is_model(path):
        return load_config(path, overrides, must_exist, check)
    path = find_model(path)
    return load_config(path, overrides, must_exist, check, (read or read_model)(path))


def find_model(path) -> str:
    """The absolute path of a file of the command line, from here or, like all paths of a config, from the project's root; an
    address stays one."""
    if is_url(path):
        return path
    here = os.path.abspath(path)  # noqa: PTH100, of an existing file; Path.exists raises where the name is too long
    return here if os.path.exists(here) else str(ROOT / path)  # noqa: PTH110, likewise


def is_model(path) -> bool:
    """Is this the file of a trained network, and not a YAML file?"""
    return is_url(path) or str(path).endswith(MODEL_SUFFIXES)


def is_exported(path) -> bool:
    """Is this a file of tool/export.py, by its suffix?"""
    return PurePosixPath(urlsplit(path).path if is_url(path) else path).suffix in EXPORT_FORMATS


def with_model(overrides, path) -> list[str]:
    """`overrides` of a config and this file as model_path; Mistake if they name another one."""
    pairs = [*key_value_pairs(overrides)]
    for key, value in pairs:
        if key.rpartition(".")[2] == "model_path" and find_model(value) != path:
            raise Mistake(f"command line: --model {path} and {key} {value} are two networks; give one")
    return [*overrides, "model_path", path]


def read_model(path) -> dict:
    """What the file of a trained network holds: `state_dict`, and `config`, `names`, `palette` if it carries them. Of a file of
    tool/export.py: `exported`, the network as a function, in place of `state_dict`."""
    path = local_file(path, ROOT / "initmodel")
    if not is_exported(path):
        return load_checkpoint(path)
    from model.exported import Exported

    exported = Exported(path)
    return {"exported": exported, "config": exported.config, "names": exported.names, "palette": exported.palette}


def load_predicting_network(path, content, cfg, device):
    """(network ready to predict on `device`, report of its weights) of the content of `path`; exported ones are on the CPU."""
    if "exported" in content:
        exported = content["exported"]
        exported.check_config(cfg)
        return exported, exported
    from model import build_model
    from model.fold import for_test
    from model.weights import load_network_weights

    network = build_model(cfg).float()  # whatever torch.set_default_dtype says
    weights = load_network_weights(network, path, read=lambda _: content)
    return for_test(network, device, channels_last=cfg.channels_last, compile=cfg.compile), weights


def _device_named(device):
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        found = None
    if found is None or found.type == "meta":
        raise Mistake(f"Predictor: device: {device!r} is unknown; it is cpu, cuda, or cuda:1 for the second GPU")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise Mistake(f"Predictor: device: {device!s}, but torch sees {torch.cuda.device_count()} GPUs here")
    try:
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise Mistake(f"Predictor: device: {device!s} cannot be used here ({first_line(error)})") from None
    return found


def _without_numpy(value):
    """A value whose numbers and arrays of NumPy are Python's."""
    if isinstance(value, list | tuple):
        return [_without_numpy(part) for part in value]
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def _protocol_value(key, value):
    try:
        value = value_of(key, value)
    except Mistake as mistake:
        raise Mistake(f"Predictor: {key}: {mistake}") from None
    if key == "scales" and not value:
        raise Mistake("Predictor: scales: the list is empty; [1.0] is the image's own size")
    return value


def carried_classes(content, cfg):
    """(class names, colours) in the content of a checkpoint, each None unless it has one for each class."""
    kinds = ("names", is_name), ("palette", is_colour)
    return tuple(content[key] if is_each(content.get(key), cfg.classes, sound) else None for key, sound in kinds)


def with_carried(cfg, names, palette):
    """The config with these names and colours of a checkpoint, or None, where it states none itself."""
    if names and not cfg.names and not cfg.names_path:
        cfg = replace(cfg, names=tuple(names))
    if palette and not cfg.palette and not cfg.colors_path:
        cfg = replace(cfg, palette=tuple(map(tuple, palette)))
    return cfg


def _check_same_names(path, names, first, firsts):
    """Raise Mistake unless the probabilities of checkpoints with these class names can be averaged."""
    other = [f"{k} is {a!r} and {b!r}" for k, (a, b) in enumerate(zip(names, firsts)) if a != b]
    if other:
        raise Mistake(f"{path}: other classes than {first} ({first_few(other)}); only the same can be averaged")


def prediction_settings(cfg):
    """The keyword arguments of `predict` that the config states."""
    return {
        "classes": cfg.classes,
        "base_size": cfg.base_size,
        "crop_h": cfg.window[0],
        "crop_w": cfg.window[1],
        "scales": cfg.scales,
        "mean": MEAN,
        "std": STD,
        "flip": cfg.flip,
        "test_batch": cfg.test_batch,
        "mode": cfg.test_mode,
        "average": cfg.average,
        "align_corners": cfg.align_corners,
    }


def prediction_protocol(cfg, precision):
    """How predictions are made, for people who compare numbers, as plain values. precision: what computes them, as text."""
    return {
        "scales": list(cfg.scales),
        "flip": cfg.flip,
        "mode": cfg.test_mode,
        "average": cfg.average,
        **({"crop": [*cfg.window], "stride": "2/3"} if cfg.test_mode == "slide" else {}),
        "base_size": list(cfg.base_size) if isinstance(cfg.base_size, tuple) else cfg.base_size or "the image's own long side",
        "precision": precision,
    }


@torch.no_grad()  # not inference_mode, whose tensors autograd refuses
def predict_probability(model, image, **settings):
    """Class probabilities (K, H, W) float32 of one image, on the model's device; they sum to 1 over K.

    settings: as of `probability_strips`.
    Memory, on the device: one (K, H, W) float32 tensor of the current scale, with several scales two more of the image's
    size; while the model runs also its activations for 2 * test_batch windows, and their logits twice. With average "logit"
    and flip the current scale has two tensors, and after the model's run there are up to four of the image's size.
    """
    (probability,) = probability_strips(model, image, **settings)
    return probability


@torch.inference_mode()
def predict(model, image, *, align_corners=False, **settings):
    """The most probable class of every pixel, (H, W) uint8 array (uint16 from 257 classes on); see predict_probability.

    Where one tensor of probabilities would take more than WHOLE bytes, the memory is, for each scale, that of crop_h rows of
    it, 4 * K * crop_h * width bytes, with mode "slide" (twice that with average "logit" and flip). The classes are the same;
    where a scale is resized, or with average "logit", only but for probabilities that are equal within rounding.
    model: as of `probability_strips`, or a list of them, whose probabilities are averaged; align_corners can be a list too.
    Raises FloatingPointError if a probability is not finite.
    """
    models = model if isinstance(model, list | tuple) else [model]
    corners = align_corners if isinstance(align_corners, list | tuple) else [align_corners] * len(models)
    run = lambda model, corners: probability_strips(model, image, **settings, align_corners=corners, limit=WHOLE)
    ids, row = np.empty(image.shape[:2], np.uint8 if settings["classes"] <= 256 else np.uint16), 0
    for strip, *others in zip(*map(run, models, corners)):
        for other in others:
            strip.add_(other.to(strip.device))  # exported networks are on the CPU
        rows = slice(row, row := row + strip.shape[1])
        ids[rows] = most_probable(strip.div_(len(models)) if others else strip)
    return ids


def most_probable(probability):
    """The class of every pixel, as `predict` returns it, of probabilities (K, H, W).

    Raises FloatingPointError if one is not finite: max takes NaN for the largest.
    """
    largest, best = probability.max(0)  # which finds the place three times as fast as argmax on a CPU
    if not largest.sum().isfinite():
        raise FloatingPointError(NOT_FINITE)
    if len(probability) <= 256:
        return best.to(torch.uint8).cpu().numpy()
    return best.to(torch.int32).cpu().numpy().astype(np.uint16)


def probability_strips(
    model,
    image,
    *,
    classes,
    base_size,
    crop_h,
    crop_w,
    scales,
    mean,
    std,
    flip=True,
    stride_rate=2 / 3,
    test_batch=1,
    mode="slide",
    average="prob",
    align_corners=False,
    limit=inf,
):
    """Yield the class probabilities of one image as (K, n, W) float32 tensors of n rows, from top to bottom.

    model: network in eval mode, or any function, (N, 3, crop_h, crop_w) float32 normalised -> logits (N, K, h, w);
        logits of another size are brought to the window's bilinearly (align_corners=True). In mode "whole" it must take
        any height and width.
    image: (H, W, 3) RGB array, uint8 or float, 0..255; of any size from one pixel on.
    classes: K, checked against the logits.
    base_size: pixels of the long side at scale 1, or a pair, the box that the image fits into (see `scaled_size`); None =
        the image's own long side.
    crop_h, crop_w: window. Images below it are padded with the mean, centred, the odd pixel at the bottom and right.
    scales: factors of base_size; the result is the mean over them.
    mean, std: three numbers each, RGB, of 0..255.
    flip: average each window with its mirror image.
    stride_rate: windows start every ceil(crop * stride_rate) pixels, the last one ends at the border; in (0, 1].
    test_batch: windows, and as many mirror images, in one call of the model.
    mode: "slide", or "whole": each scaled image is one window, whatever its size; crop, stride and batch are not used then.
    average: "prob", the mean of the windows' probabilities, resized to the image's size; or "logit", as MMSegmentation does:
        the mean of the windows' logits, resized, then softmax. Mirror images are averaged after it, so the whole image is
        mirrored, not each window; and an image below the window is not padded, but a smaller window.
    align_corners: of that resizing of logits.
    limit: bytes; all rows are one strip unless the probabilities of the image or one of its scales would take more.
    """
    if getattr(model, "training", False):
        raise ValueError(
            "the model is in training mode, where dropout and batch statistics change its predictions: call model.eval() first"
        )
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"expected an image of shape (H, W, 3), not {tuple(image.shape)}")
    if not len(scales):
        raise ValueError("scales: at least one is needed")
    if not 0 < stride_rate <= 1:
        raise ValueError(f"stride_rate: {stride_rate} is not in (0, 1]: the share of a window that the next one is away")
    if mode not in ("slide", "whole"):
        raise ValueError(f"mode: {mode!r} is unknown; choose slide or whole")
    if average not in ("prob", "logit"):
        raise ValueError(f"average: {average!r} is unknown; choose prob or logit")
    size = image.shape[:2]
    sizes = [scaled_size(*size, scale, base_size or max(size)) for scale in scales]
    logits_first = average == "logit"
    passes = 2 if logits_first and flip else 1
    whole = mode == "whole" or 4 * passes * classes * max(h * w for h, w in (size, *sizes)) <= limit
    step = max(h for h, _ in (size, *sizes)) if whole else STRIP
    window = partial(_window_logits, model, classes) if logits_first else partial(_window_probability, model, classes, flip)
    normalised = partial(_normalised, image, mean, std, _device(model))
    normalised = lru_cache(1)(normalised) if whole else normalised  # for all scales

    def source(scaled, a, b):
        x = _resized(normalised, size, scaled, a, b)
        return torch.cat([x, x.flip(3)]) if passes == 2 else x

    def scaled_rows(scaled):
        read = partial(source, scaled)
        if mode == "whole":
            return _rows_of(iter([window(read(0, scaled[0]))]))
        crop = (min(crop_h, scaled[0]), min(crop_w, scaled[1])) if logits_first else (crop_h, crop_w)
        return _rows_of(_slide(window, read, scaled, classes, *crop, stride_rate, test_batch, step))

    maps = ((scaled_rows(scaled), scaled) for scaled in sizes)
    maps = maps if whole else list(maps)  # one after the other is enough for a single strip
    for a in range(0, size[0], step):
        b = min(a + step, size[0])
        total = None
        for rows, scaled in maps:
            resize = scaled, size, a, b
            prob = _probability_of(rows, passes, *resize, align_corners) if logits_first else _resized(rows, *resize)[0]
            total = prob if total is None else total.add_(prob)
        yield total.div_(len(scales)) if len(scales) > 1 else total


def scaled_size(h, w, scale, base_size):
    """(h, w) of an image of h x w at this scale, no side below 1.

    base_size a number: the long side is round(scale * base_size), by Python's round (half to even). Two numbers, the long
    and the short side of a box: the largest of the image's shape in the box of int(scale * side), rounded half up.
    """
    if isinstance(base_size, tuple | list):
        box_long, box_short = (int(side * scale) for side in (max(base_size), min(base_size)))
        factor = min(box_long / max(h, w), box_short / min(h, w))
        return max(1, int(h * factor + 0.5)), max(1, int(w * factor + 0.5))
    long = max(1, round(scale * base_size))
    if h > w:
        return long, max(1, round(long / h * w))
    return max(1, round(long / w * h)), long


def window_starts(side, crop, stride_rate):
    """First pixels of the windows that cover `side` >= crop pixels."""
    stride = ceil(crop * stride_rate)
    return [min(i * stride, side - crop) for i in range(ceil((side - crop) / stride) + 1)]


def _normalised(image, mean, std, device, a, b):
    """Rows a to b of an image (H, W, 3) as (1, 3, b - a, W)."""
    x = torch.from_numpy(np.require(image[a:b], requirements=["C", "W"])).to(device).permute(2, 0, 1)[None]
    x = x.to(torch.float32, copy=True)  # the image stays as it is
    # Normalising is linear, so once before resizing does for all windows, and padding with the mean becomes zeros.
    return x.sub_(x.new_tensor(mean).view(3, 1, 1)).div_(x.new_tensor(std).view(3, 1, 1))


def _slide(window, read, size, classes, crop_h, crop_w, stride_rate, test_batch, step):
    """Yield the mean over the windows, (P, K, n, w) with n <= step, of P images of `size`, from top to bottom.

    window: (N, 3, crop_h, crop_w) -> (N, K, crop_h, crop_w). read: a, b -> rows a to b of the images, (P, 3, b - a, w).
    """
    h, w = size
    pad_h, pad_w = max(crop_h - h, 0), max(crop_w - w, 0)
    top, left = pad_h // 2, pad_w // 2
    rows, cols = window_starts(h + pad_h, crop_h, stride_rate), window_starts(w + pad_w, crop_w, stride_rate)
    corners = [(i, j) for i in rows for j in cols]
    block = h + pad_h if step >= h else crop_h  # rows kept at a time: all, or those of one row of windows

    images = {}  # the rows of the windows that are cut out at present, by the first

    def cut(i, j):
        first = 0 if step >= h else i
        if first not in images:
            images.clear()
            x = read(first, min(first + block, h))
            images[first] = F.pad(x, (left, pad_w - left, top, pad_h - top)) if pad_h or pad_w else x
        return images[first][:, :, i - first : i - first + crop_h, j : j + crop_w]

    def finished(a, b):
        for first in range(a, b, step):
            last = min(first + step, b)
            strip = total[:, :, first - start : last - start]
            strip /= cover_h[first:last, None] * cover_w
            yield strip[..., left : left + w]

    total, start = None, 0  # the sums of the rows from `start` on
    for first in range(0, len(corners), test_batch):
        batch = corners[first : first + test_batch]
        windows = torch.cat([cut(i, j) for i, j in batch])
        passes = len(windows) // len(batch)
        if total is None:
            total = windows.new_zeros(passes, classes, block, w + pad_w)
            cover_h, cover_w = _cover(rows, crop_h, h + pad_h, total), _cover(cols, crop_w, w + pad_w, total)
        for (i, j), y in zip(batch, window(windows).split(passes)):
            if i + crop_h > start + block:  # the first window of a row: no later one adds to the rows above it
                yield from (strip.clone() for strip in finished(start, i))
                done, start = i - start, i
                for row in range(0, block - done, done):  # in pieces that do not overlap
                    piece = total[:, :, row + done : row + 2 * done]
                    total[:, :, row : row + piece.shape[2]] = piece
                total[:, :, -done:] = 0
            total[:, :, i - start : i - start + crop_h, j : j + crop_w] += y
    yield from finished(max(start, top), top + h)


def _rows_of(strips):
    """A function rows(a, b) -> (P, K, b - a, w) of a map whose strips come from top to bottom; a and b never decrease."""
    held, first = next(strips), 0

    def rows(a, b):
        nonlocal held, first
        while first + held.shape[2] < b:
            over = min(a - first, held.shape[2])
            held, first = torch.cat([held[:, :, over:], next(strips)], 2), first + over
        return held[:, :, a - first : b - first]

    return rows


def _window_logits(model, classes, windows):
    """(N, K, crop_h, crop_w) float32 of windows (N, 3, crop_h, crop_w)."""
    h, w = windows.shape[2:]
    if getattr(model, "zoom_factor", 8) < 8:  # its first and last logits belong to the corners of sides of 8n+1
        windows = F.pad(windows, (0, (1 - w) % 8, 0, (1 - h) % 8))
    y = model(windows).float()
    if y.shape[1] != classes:
        raise ValueError(f"the model has {y.shape[1]} classes, but `classes` is {classes}")
    if y.shape[2:] != windows.shape[2:]:
        y = F.interpolate(y, windows.shape[2:], mode="bilinear", align_corners=True)
    return y[..., :h, :w]


def _window_probability(model, classes, flip, windows):
    """Their softmax, with flip the mean with that of the windows' mirror images."""
    y = _window_logits(model, classes, torch.cat([windows, windows.flip(3)]) if flip else windows).softmax(1)
    if flip:
        y, mirrored = y.chunk(2)
        y = mirrored.flip(3).add_(y).div_(2)
    return y


def _probability_of(rows, passes, *resize):
    """(K, h, w) of the logits of an image and, with two passes, of its mirror image; rows and resize: as of `_resized`."""
    total = None
    for i in range(passes):
        y = _resized(lambda a, b, i=i: rows(a, b)[i : i + 1], *resize).softmax(1)
        total = y if total is None else total.add_(y.flip(3)).div_(2)
    return total[0]


def _cover(starts, crop, side, like):
    """(side,) how many windows cover each pixel of one axis; the windows form a grid, so the two axes multiply."""
    count = like.new_zeros(side)
    for start in starts:
        count[start : start + crop] += 1
    return count


def _resized(rows, size, new, a, b, align_corners=False):
    """Rows a to b of a map of `size` resized to the size `new`; rows: a, b -> (N, C, b - a, w), rows of that map.

    Bilinear without smoothing, with half-pixel centres cv2.resize's INTER_LINEAR for any number of channels. A part of the
    rows is weighted by the formula of F.interpolate, in its precision.
    """
    if size == new:
        return rows(a, b)
    if b - a == new[0]:
        return F.interpolate(rows(0, size[0]), new, mode="bilinear", align_corners=align_corners)
    y = np.arange(a, b)
    if align_corners:
        y = y * np.float64(np.float32((size[0] - 1) / (new[0] - 1)))
    else:
        y = (y + 0.5) * np.float64(np.float32(size[0] / new[0])) - 0.5
    y = np.clip(y, 0, size[0] - 1).astype(np.float32)
    above = y.astype(int)
    below = np.minimum(above + 1, size[0] - 1)
    x = rows(above[0], below[-1] + 1)
    x = F.interpolate(x, (x.shape[2], new[1]), mode="bilinear", align_corners=align_corners)
    weight = x.new_tensor(y - above)[:, None]
    return torch.addcmul(x[:, :, below - above[0]] * weight, x[:, :, above - above[0]], 1 - weight)


def _device(model):
    parameters = getattr(model, "parameters", tuple)  # a plain function has none
    return next((p.device for p in parameters()), torch.device("cpu"))
