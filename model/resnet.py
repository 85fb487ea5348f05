"""ResNet with output stride 8 (dilation instead of stride in the last two stages), and its ImageNet weights."""

import pickle
from pathlib import Path

import torch
from torch import nn


def conv3x3(inplanes, planes, stride=1, dilation=1):
    return nn.Conv2d(inplanes, planes, 3, stride, padding=dilation, dilation=dilation, bias=False)


class BasicBlock(nn.Module):
    expansion = 1

    def __init__(self, inplanes, planes, stride, dilation, downsample):
        super().__init__()
        self.conv1 = conv3x3(inplanes, planes, stride, dilation)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = conv3x3(planes, planes, 1, dilation)
        self.bn2 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x):
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, inplanes, planes, stride, dilation, downsample):
        super().__init__()
        self.conv1 = nn.Conv2d(inplanes, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = conv3x3(planes, planes, stride, dilation)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, planes * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(planes * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x):
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


BLOCKS = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
}
# The 3x3 convolutions of the stem, or None for the single 7x7 one.
STEMS = {"deep": (64, 64, 128), "deep32": (32, 32, 64), "plain": None}


def block_of(layers):
    """(block class, blocks of the four stages) of a ResNet with so many layers."""
    if layers not in BLOCKS:
        raise ValueError(f"layers: {layers!r} is not a ResNet depth; choose one of {', '.join(map(str, BLOCKS))}")
    return BLOCKS[layers]


def feature_channels(layers):
    """Channels behind the last stage: 512 for ResNet-18/34, else 2048."""
    return 512 * block_of(layers)[0].expansion


def make_stem(stem):
    """Stride 4, 3 channels in; the last convolution's channels out."""
    if stem not in STEMS:
        raise ValueError(f"stem: {stem!r} is unknown; choose one of {', '.join(STEMS)}")
    pool = nn.MaxPool2d(3, stride=2, padding=1)
    if STEMS[stem] is None:
        return nn.Sequential(nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True), pool)
    modules, inplanes, stride = [], 3, 2
    for planes in STEMS[stem]:
        modules += [conv3x3(inplanes, planes, stride), nn.BatchNorm2d(planes), nn.ReLU(inplace=True)]
        inplanes, stride = planes, 1
    return nn.Sequential(*modules, pool)


def make_stage(block, inplanes, planes, blocks, stride=1, dilation=1, first_dilation=None):
    """One of layer1..4; only the first block has the stride, and its own dilation where first_dilation is given."""
    outplanes = planes * block.expansion
    downsample = None
    if stride != 1 or inplanes != outplanes:
        downsample = nn.Sequential(nn.Conv2d(inplanes, outplanes, 1, stride, bias=False), nn.BatchNorm2d(outplanes))
    stage = [block(inplanes, planes, stride, first_dilation or dilation, downsample)]
    stage += [block(outplanes, planes, 1, dilation, None) for _ in range(blocks - 1)]
    return nn.Sequential(*stage)


class ResNet(nn.Module):
    """Stages layer0 (the stem) to layer4; layer2 and later at 1/8 of the input's resolution, rounded up.

    stem: "deep" (three 3x3, 64-64-128 channels), "deep32" (32-32-64) or "plain" (7x7, torchvision's).
    contract_dilation: the first block of layer3 and layer4 has the dilation of the stage before (1 and 2), as in
    MMSegmentation and torchvision; otherwise every block of layer3 has 2 and of layer4 has 4, as in semseg.
    """

    def __init__(self, layers=50, stem="deep", contract_dilation=False):
        super().__init__()
        block, blocks = block_of(layers)
        self.layer0 = make_stem(stem)
        inplanes = (STEMS[stem] or (64,))[-1]
        wide = block.expansion
        first3, first4 = (1, 2) if contract_dilation else (2, 4)
        self.layer1 = make_stage(block, inplanes, 64, blocks[0])
        self.layer2 = make_stage(block, 64 * wide, 128, blocks[1], stride=2)
        self.layer3 = make_stage(block, 128 * wide, 256, blocks[2], dilation=2, first_dilation=first3)
        self.layer4 = make_stage(block, 256 * wide, 512, blocks[3], dilation=4, first_dilation=first4)
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x):
        """(N, 3, H, W) -> features of layer3 (for the auxiliary head) and layer4: (N, C, ceil(H/8), ceil(W/8))."""
        third = self.layer3(self.layer2(self.layer1(self.layer0(x))))
        return third, self.layer4(third)


def load_backbone(backbone, path):
    """Fill a ResNet from a file of ImageNet weights: conv1, bn1, conv2, ... of the stem, layerN.*; fc.* is dropped.

    Raises FileNotFoundError, or one ValueError that lists every missing, unexpected and wrong-shaped key.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file; initmodel/README.md says where ImageNet weights come from")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as e:
        raise ValueError(f"{path}: cannot be read as a file of weights: {e}") from e
    # layer0 is a Sequential of (conv, bn, relu) triples, so convI and bnI sit at 3*(I-1) and 3*(I-1)+1.
    stem = {f"{kind}{i + 1}": f"layer0.{3 * i + j}" for i in range(3) for j, kind in enumerate(("conv", "bn"))}
    given = {}
    for key, tensor in state.get("state_dict", state).items():
        head, _, tail = key.partition(".")
        if head != "fc":
            given[f"{stem.get(head, head)}.{tail}"] = tensor
    wanted = backbone.state_dict()
    # num_batches_tracked counts steps of a training that is over, and older files lack it.
    missing = [k for k in wanted if k not in given and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in given if k not in wanted]
    shapes = [f"{k} is {tuple(given[k].shape)}, the network has {tuple(wanted[k].shape)}"
              for k in wanted if k in given and given[k].shape != wanted[k].shape]
    lists = {"missing": missing, "unexpected": unexpected, "wrong shape": shapes}
    if any(lists.values()):
        text = "; ".join(f"{what}: {', '.join(keys)}" for what, keys in lists.items() if keys)
        raise ValueError(f"{path}: not the weights of this backbone (check layers and stem): {text}")
    backbone.load_state_dict(given, strict=False)
