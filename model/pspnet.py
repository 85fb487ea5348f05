"""PSPNet (Zhao et al., Pyramid Scene Parsing Network, CVPR 2017)."""

import torch
import torch.nn.functional as F
from torch import nn

from model.base import SceneParser
from model.resnet import feature_channels


class PooledBatchNorm(nn.BatchNorm2d):
    """BatchNorm2d that uses its running statistics where a batch of one image leaves one value per channel."""

    def forward(self, x):
        if self.training and x.numel() == x.shape[1]:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(x)


class PPM(nn.Module):
    """Pyramid pooling (section 3.2): (N, C, h, w) -> (N, C + planes * len(bins), h, w), features and their averages."""

    stride = 1

    def __init__(self, inplanes, planes, bins, align_corners=True):
        super().__init__()
        self.out_channels = inplanes + planes * len(bins)
        self.align_corners = align_corners
        self.features = nn.ModuleList(
            nn.Sequential(
                nn.AdaptiveAvgPool2d(b),
                nn.Conv2d(inplanes, planes, 1, bias=False),
                PooledBatchNorm(planes),
                nn.ReLU(inplace=True),
            )
            for b in bins
        )

    def forward(self, x):
        size = x.shape[-2:]
        levels = [F.interpolate(f(x), size, mode="bilinear", align_corners=self.align_corners) for f in self.features]
        return torch.cat([x, *levels], 1)


class PSPNet(SceneParser):
    """ResNet + PPM. The keyword arguments in `frame` and the three forms of forward are SceneParser's."""

    def __init__(self, layers=50, bins=(1, 2, 3, 6), dropout=0.1, classes=2, zoom_factor=8, use_ppm=True,
                 criterion=None, pretrained=None, *, align_corners=True, **frame):
        context = {}
        if use_ppm:
            channels = feature_channels(layers)
            context["ppm"] = PPM(channels, channels // len(bins), bins, align_corners)
        super().__init__(layers, dropout, classes, zoom_factor, criterion, pretrained,
                         context=context, align_corners=align_corners, **frame)
