"""Initial weights as in MMSegmentation (`init: mmseg`); `init: semseg` keeps what the modules were made with."""

from torch import nn


def init_as_mmseg(network):
    """Convolutions Kaiming-normal by fan-out, BatchNorms 1 and 0, classifiers N(0, 0.01) with bias 0, in place.

    The last BatchNorm of each residual block starts with weight 0, which makes the block the identity (Goyal et al., Accurate,
    Large Minibatch SGD, 2017, section 5.1); weights of a backbone loaded later replace these.
    """
    if next(network.parameters()).is_meta:
        return  # as in model/resnet.py
    for m in network.modules():
        if isinstance(m, nn.Conv2d):
            nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(m, nn.BatchNorm2d):
            nn.init.ones_(m.weight)
        if isinstance(m, nn.Conv2d | nn.BatchNorm2d) and m.bias is not None:
            nn.init.zeros_(m.bias)
    for m in network.modules():
        if hasattr(m, "downsample"):  # a residual block
            nn.init.zeros_((m.bn3 if hasattr(m, "bn3") else m.bn2).weight)
    for classifier in network.classifiers():
        nn.init.normal_(classifier.weight, std=0.01)
