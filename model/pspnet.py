"""PSPNet (Zhao et al., Pyramid Scene Parsing Network, CVPR 2017)."""

import torch
import torch.nn.functional as F
from torch import nn

from model.base import SceneParser
from model.resnet import feature_channels


class Cells(nn.AdaptiveAvgPool2d):
    """Averages over cells. CUDA adds the gradient of cells that overlap in any order; `deterministic`: matrix products."""

    def forward(self, x):
        if x.is_cuda and torch.are_deterministic_algorithms_enabled():
            return self.products(x)
        return super().forward(x)

    def products(self, x):
        with torch.autocast(x.device.type, enabled=False):
            y = x.to(torch.promote_types(x.dtype, torch.float32))
            shares = (torch.eye(side, dtype=y.dtype, device=y.device) for side in x.shape[-2:])  # of pixels in cells
            rows, columns = (F.adaptive_avg_pool1d(share[None], self.output_size)[0] for share in shares)
            return torch.einsum("nchw,hi,wj->ncij", y, rows, columns).to(x.dtype)


class PPM(nn.Module):
    """Pyramid pooling (section 3.2): (N, C, h, w) -> (N, C + planes * len(bins), h, w), the input concatenated with
    its averages over b x b cells, each convolved and resized."""

    stride = 1

    def __init__(self, inplanes, planes, bins, align_corners=True):
        super().__init__()
        self.out_channels = inplanes + planes * len(bins)
        self.align_corners = align_corners
        self.features = nn.ModuleList(
            nn.Sequential(
                Cells(b),
                nn.Conv2d(inplanes, planes, 1, bias=False),
                nn.BatchNorm2d(planes),
                nn.ReLU(inplace=True),
            )
            for b in bins
        )

    def forward(self, x):
        return torch.cat([x, *(self._resize(f(x), x.shape[-2:]) for f in self.features)], 1)

    def convolved(self, x, weight, bias=None):
        """F.conv2d(self(x), weight, bias, padding=1) for a weight (O, out_channels, 3, 3), at half the cost.

        A level is u[p] = sum_c f[c, p] B[c], with f its pooled cells c and B[c] the resized map that is 1 in cell c and 0 in
        the others. So the convolution of u is sum_c,t (sum_p weight[o, p, t] f[c, p]) B[c, t]: first over the planes p, for
        the 9 taps t of each cell, then over cells and taps, with B[c, t] the map B[c] shifted by t, 0 at the border.
        """
        n, channels, h, w = x.shape
        of_features, of_levels = weight.split([channels, self.out_channels - channels], 1)
        taps, images = [], []
        for level, level_weight in zip(self.features, of_levels.chunk(len(self.features), 1)):
            cells = level(x)
            alone = torch.eye(cells.shape[2] * cells.shape[3], dtype=x.dtype, device=x.device).view(1, -1, *cells.shape[-2:])
            images.append(F.unfold(self._resize(alone, (h, w)), 3, padding=1)[0])
            taps.append(torch.einsum("npc,opt->noct", cells.flatten(2), level_weight.flatten(2)).flatten(2))
        pyramid = torch.cat(taps, 2) @ torch.cat(images)
        return F.conv2d(x, of_features, bias, padding=1) + pyramid.view(n, -1, h, w)

    def _resize(self, x, size):
        return F.interpolate(x, size, mode="bilinear", align_corners=self.align_corners)


class PSPNet(SceneParser):
    """ResNet + PPM. The keyword arguments in `frame` and the three forms of forward are SceneParser's.

    fast_head: `PPM.convolved` in place of `ppm` and then `cls[0]`: equal up to rounding. Neither is called, nor `cls` as a
        whole, so no hook on the three is either, and of `cls[0]` weight and bias alone count. False for a changed `ppm` or
        `cls[0]`.
    """

    def __init__(
        self,
        layers=50,
        bins=(1, 2, 3, 6),
        dropout=0.1,
        classes=2,
        zoom_factor=8,
        use_ppm=True,
        criterion=None,
        pretrained=None,
        *,
        align_corners=True,
        fast_head=True,
        **frame,
    ):
        context = {}
        if use_ppm:
            channels = feature_channels(layers)
            context["ppm"] = PPM(channels, channels // len(bins), bins, align_corners)
        super().__init__(
            layers, dropout, classes, zoom_factor, criterion, pretrained, context=context, align_corners=align_corners, **frame
        )
        self.fast_head = fast_head and use_ppm

    def head(self, features):
        if not self.fast_head:
            return super().head(features)
        return self.cls[1:](self.ppm.convolved(features, self.cls[0].weight, self.cls[0].bias))
