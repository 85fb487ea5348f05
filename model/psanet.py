"""PSANet (Zhao et al., Point-wise Spatial Attention Network, ECCV 2018)."""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import nn

from model.base import SceneParser
from model.resnet import feature_channels
from util.common import Mistake

COLLECT, DISTRIBUTE, BOTH = 0, 1, 2


def _mask_index(psa_type, h, w, mask_h, mask_w, channels_last, device):
    """Index into one image's flat map of each element of the (h*w, h, w) result; mask of those outside the map, or None."""
    dtype = torch.int32 if mask_h * mask_w * h * w < 2**31 else torch.int64
    i = torch.arange(h, dtype=dtype, device=device).view(h, 1, 1, 1)
    j = torch.arange(w, dtype=dtype, device=device).view(1, w, 1, 1)
    p, q = i.view(1, 1, h, 1), j.view(1, 1, 1, w)
    a, b = p - i + (mask_h - 1) // 2, q - j + (mask_w - 1) // 2
    cell, place = a.clamp(0, mask_h - 1) * mask_w + b.clamp(0, mask_w - 1), i * w + j
    index = place * mask_h * mask_w + cell if channels_last else cell * h * w + place
    outside = (a < 0) | (a >= mask_h) | (b < 0) | (b >= mask_w)
    if psa_type == COLLECT:  # (i, j, p, q) -> (p, q, i, j)
        index, outside = index.permute(2, 3, 0, 1), outside.permute(2, 3, 0, 1)
    covers_all = mask_h >= 2 * h - 1 and mask_w >= 2 * w - 1
    return index.flatten(), None if covers_all else outside.reshape(h * w, h, w)


# An index built under inference_mode could not serve training afterwards.
_cached_mask_index = lru_cache(maxsize=4)(torch.inference_mode(False)(_mask_index))


def psa_mask(x, psa_type, mask_h=None, mask_w=None):
    """Attention between all positions from maps centred on each position.

    x (N, mask_h * mask_w, h, w), any floating dtype: cell (a, b) at (i, j) refers to the position
    (p, q) = (i + a - (mask_h-1)/2, j + b - (mask_w-1)/2). Returns (N, h*w, h, w), 0 where no cell refers to:
        psa_type 0, collect:    out[n, p*w + q, i, j] = x[n, a*mask_w + b, i, j]
        psa_type 1, distribute: out[n, i*w + j, p, q] = x[n, a*mask_w + b, i, j]
    mask_h and mask_w are odd; None is the size that covers everything, 2h-1 and 2w-1.
    """
    n, channels, h, w = x.shape
    mask_h, mask_w = mask_h or 2 * h - 1, mask_w or 2 * w - 1
    if psa_type not in (COLLECT, DISTRIBUTE):
        raise Mistake(f"psa_type: {psa_type!r} is unknown; choose 0 (collect) or 1 (distribute)")
    _check_mask(mask_h, mask_w)
    if channels != mask_h * mask_w:
        raise ValueError(f"mask_h x mask_w = {mask_h} x {mask_w}: needs {mask_h * mask_w} channels, not {channels}")
    # Fake tensors (torch.compile, torch.export, FakeTensorMode) must not enter the cache.
    build = _mask_index if torch.compiler.is_compiling() or type(x) is not torch.Tensor else _cached_mask_index
    # Indexing in the order of memory saves a copy of x, which is up to four times as large as the result.
    channels_last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    index, outside = build(psa_type, h, w, mask_h, mask_w, channels_last, x.device)
    flat = x.permute(0, 2, 3, 1).flatten(1) if channels_last else x.flatten(1)
    out = flat.index_select(1, index).view(n, h * w, h, w)
    return out if outside is None else out.masked_fill(outside, 0)


def _check_mask(mask_h, mask_w):
    for name, side in (("mask_h", mask_h), ("mask_w", mask_w)):
        if side is None or side < 1 or side % 2 == 0:
            raise Mistake(f"{name}: {side} must be odd and positive")


class PSA(nn.Module):
    """Point-wise spatial attention (section 3): (N, C, h, w) -> (N, 2C, h, w), the input and the attended context."""

    def __init__(
        self,
        inplanes,
        planes,
        psa_type=BOTH,
        compact=False,
        shrink_factor=2,
        mask_h=59,
        mask_w=59,
        normalization_factor=1.0,
        psa_softmax=True,
        align_corners=True,
    ):
        super().__init__()
        if psa_type not in (COLLECT, DISTRIBUTE, BOTH):
            raise Mistake(f"psa_type: {psa_type!r} is unknown; choose 0 (collect), 1 (distribute) or 2 (both)")
        if shrink_factor < 1:
            raise Mistake(f"shrink_factor: {shrink_factor} must be at least 1")
        if not compact:  # a compact map has one cell for each position, and no centre
            _check_mask(mask_h, mask_w)
        self.psa_type, self.compact, self.psa_softmax = psa_type, compact, psa_softmax
        self.shrink_factor, self.mask_h, self.mask_w = shrink_factor, mask_h, mask_w
        self.normalization_factor = normalization_factor or mask_h * mask_w
        self.scale, self.stride = 1 / self.normalization_factor, shrink_factor
        self.align_corners = align_corners
        self.out_channels = 2 * inplanes
        self.reduce, self.attention = self._branch(inplanes, planes)
        if psa_type == BOTH:
            self.reduce_p, self.attention_p = self._branch(inplanes, planes)
        self.proj = nn.Sequential(
            nn.Conv2d(planes * (2 if psa_type == BOTH else 1), inplanes, 1, bias=False),
            nn.BatchNorm2d(inplanes),
            nn.ReLU(inplace=True),
        )

    def _branch(self, inplanes, planes):
        reduce = nn.Sequential(nn.Conv2d(inplanes, planes, 1, bias=False), nn.BatchNorm2d(planes), nn.ReLU(inplace=True))
        attention = nn.Sequential(
            nn.Conv2d(planes, planes, 1, bias=False),
            nn.BatchNorm2d(planes),
            nn.ReLU(inplace=True),
            nn.Conv2d(planes, self.mask_h * self.mask_w, 1, bias=False),
        )
        return reduce, attention

    def forward(self, x):
        if self.psa_type == BOTH:
            collected = self._attend(x, self.reduce, self.attention, COLLECT)
            out = torch.cat([collected, self._attend(x, self.reduce_p, self.attention_p, DISTRIBUTE)], 1)
        else:
            out = self._attend(x, self.reduce, self.attention, self.psa_type)
        return torch.cat([x, self._resize(self.proj(out), x.shape[-2:])], 1)

    def _attend(self, x, reduce, attention, psa_type):
        x = reduce(x)
        x = self._resize(x, [(side - 1) // self.stride + 1 for side in x.shape[-2:]])
        n, c, h, w = x.shape
        y = attention(x)
        if not self.compact:
            y = psa_mask(y, psa_type, self.mask_h, self.mask_w)
        elif y.shape[1] != h * w:
            raise Mistake(
                f"compact: needs mask_h x mask_w = {h} x {w}, the size of the features here, not {self.mask_h} x "
                f"{self.mask_w}; a compact PSANet works at one image size only"
            )
        y = y.flatten(2)
        if self.compact and psa_type == DISTRIBUTE:
            y = y.transpose(1, 2)
        if self.psa_softmax:
            y = y.softmax(1)
        return (torch.bmm(x.flatten(2), y) * self.scale).view(n, c, h, w)

    def _resize(self, x, size):
        if x.shape[-2:] == tuple(size):
            return x
        return F.interpolate(x, tuple(size), mode="bilinear", align_corners=self.align_corners)


class PSANet(SceneParser):
    """ResNet + PSA. The keyword arguments in `frame` and the three forms of forward are SceneParser's.

    With shrink_factor s the sides of training images are 8*s*n+1; masks of 2n+1 or more cover the whole image.
    """

    def __init__(
        self,
        layers=50,
        dropout=0.1,
        classes=2,
        zoom_factor=8,
        use_psa=True,
        psa_type=2,
        compact=False,
        shrink_factor=2,
        mask_h=59,
        mask_w=59,
        normalization_factor=1.0,
        psa_softmax=True,
        criterion=None,
        pretrained=None,
        *,
        align_corners=True,
        **frame,
    ):
        context = {}
        if use_psa:
            channels = feature_channels(layers)
            attention = psa_type, compact, shrink_factor, mask_h, mask_w, normalization_factor, psa_softmax
            context["psa"] = PSA(channels, channels // 4, *attention, align_corners)
        super().__init__(
            layers, dropout, classes, zoom_factor, criterion, pretrained, context=context, align_corners=align_corners, **frame
        )
