"""ResNet with output stride 8 (dilation instead of stride in the last two stages)."""

from contextlib import contextmanager, nullcontext

from torch import nn
from torch.utils.checkpoint import checkpoint

from model.weights import load_backbone as load_backbone  # imported from here with the network
from util.common import Mistake


def conv3x3(inplanes, planes, stride=1, dilation=1):
    return nn.Conv2d(inplanes, planes, 3, stride, padding=dilation, dilation=dilation, bias=False)


class BasicBlock(nn.Module):
    expansion = 1

    def __init__(self, inplanes, planes, stride, dilation, downsample, contract_dilation=False):
        super().__init__()
        self.conv1 = conv3x3(inplanes, planes, stride, dilation)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = conv3x3(planes, planes, 1, 1 if contract_dilation else dilation)
        self.bn2 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x):
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, inplanes, planes, stride, dilation, downsample, contract_dilation=False):
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
WIDTH = 64  # channels of the 3x3 convolutions of layer1; 2, 4 and 8 times as many in the next stages
# The 3x3 convolutions of the stem, or None for the single 7x7 one.
STEMS = {"deep": (64, 64, 128), "deep32": (32, 32, 64), "plain": None}


def block_of(layers):
    """(block class, number of blocks in each of the four stages) of ResNet-`layers`."""
    if layers not in BLOCKS:
        raise Mistake(f"layers: {layers!r} is not a ResNet depth; choose one of {', '.join(map(str, BLOCKS))}")
    return BLOCKS[layers]


def feature_channels(layers):
    """Channels of layer4: 512 for ResNet-18/34, else 2048."""
    return 8 * WIDTH * block_of(layers)[0].expansion


def make_stem(stem):
    """(N, 3, H, W) -> (N, 64 or 128, ceil(H/4), ceil(W/4))."""
    if stem not in STEMS:
        raise Mistake(f"stem: {stem!r} is unknown; choose one of {', '.join(STEMS)}")
    pool = nn.MaxPool2d(3, stride=2, padding=1)
    if STEMS[stem] is None:
        return nn.Sequential(nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True), pool)
    modules, inplanes, stride = [], 3, 2
    for planes in STEMS[stem]:
        modules += [conv3x3(inplanes, planes, stride), nn.BatchNorm2d(planes), nn.ReLU(inplace=True)]
        inplanes, stride = planes, 1
    return nn.Sequential(*modules, pool)


def make_stage(block, inplanes, planes, blocks, stride=1, dilation=1, contract_dilation=False):
    """One of layer1..4; only the first block has the stride, and half the dilation if contract_dilation."""
    outplanes = planes * block.expansion
    downsample = None
    if stride != 1 or inplanes != outplanes:
        downsample = nn.Sequential(nn.Conv2d(inplanes, outplanes, 1, stride, bias=False), nn.BatchNorm2d(outplanes))
    first_dilation = dilation // 2 if contract_dilation and dilation > 1 else dilation
    stage = [block(inplanes, planes, stride, first_dilation, downsample, contract_dilation)]
    stage += [block(outplanes, planes, 1, dilation, None, contract_dilation) for _ in range(blocks - 1)]
    return nn.Sequential(*stage)


def recomputed(block, x):
    """block(x), of which autograd keeps x alone; the backward pass computes the rest again.

    Chen et al., Training Deep Nets with Sublinear Memory Cost, 2016.
    """
    return checkpoint(
        block, x, use_reentrant=False, preserve_rng_state=False, context_fn=lambda: (nullcontext(), _without_statistics(block))
    )


@contextmanager
def _without_statistics(block):
    """Keep BatchNorm's running statistics as they are: they were updated with this batch in the first forward pass."""
    buffers = [(m, name, buffer) for m in block.modules() for name, buffer in m.named_buffers(recurse=False)]
    for m, name, buffer in buffers:
        setattr(m, name, buffer.clone())
    try:
        yield
    finally:
        for m, name, buffer in buffers:
            setattr(m, name, buffer)


class ResNet(nn.Module):
    """Stages layer0 (the stem) to layer4; layer2 to layer4 at 1/8 of the input's resolution, rounded up.

    stem: "deep" (three 3x3, 64-64-128 channels), "deep32" (32-32-64) or "plain" (7x7, torchvision's).
    contract_dilation: the first block of layer3 and layer4 has the dilation of the stage before (1 and 2), as in MMSegmentation
    and torchvision, and the second convolution of a BasicBlock dilation 1, as in MMSegmentation; otherwise, as in semseg, every
    3x3 convolution of layer3 has dilation 2 and of layer4 has 4.
    """

    def __init__(self, layers=50, stem="deep", contract_dilation=False):
        super().__init__()
        block, blocks = block_of(layers)
        self.layer0 = make_stem(stem)
        inplanes = (STEMS[stem] or (64,))[-1]
        wide = block.expansion
        p1, p2, p3, p4 = (WIDTH * factor for factor in (1, 2, 4, 8))
        self.layer1 = make_stage(block, inplanes, p1, blocks[0])
        self.layer2 = make_stage(block, p1 * wide, p2, blocks[1], stride=2)
        self.layer3 = make_stage(block, p2 * wide, p3, blocks[2], dilation=2, contract_dilation=contract_dilation)
        self.layer4 = make_stage(block, p3 * wide, p4, blocks[3], dilation=4, contract_dilation=contract_dilation)
        for m in self.modules():
            if isinstance(m, nn.Conv2d) and not m.weight.is_meta:  # drawing there imports torch's compiler: two seconds
                nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x):
        """(N, 3, H, W) -> features of layer3 (for the auxiliary head) and layer4: (N, C, ceil(H/8), ceil(W/8))."""
        third = self.layer3(self.layer2(self.layer1(self.layer0(x))))
        return third, self.layer4(third)
