"""Networks for inference: BatchNorm, a factor and a shift per channel in eval mode, folded into the convolution before it."""

import copy

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def for_test(network, device, *, channels_last=False, compile=False):
    """A copy for inference on `device`: eval mode, BatchNorms folded, compiled if asked for. Sets the original to eval mode."""
    network = fold_batchnorm(network.eval())
    network.to(device, memory_format=torch.channels_last if channels_last else torch.preserve_format)
    return torch.compile(network).eval() if compile else network


def fold_batchnorm(network):
    """A copy of a network in eval mode with each BatchNorm folded into the convolution before it: logits equal up to rounding,
    other state_dict names.

    Folded are pairs of a Conv2d and a BatchNorm2d registered one after the other in the same module, which must be applied so
    too, as in all networks here: a block that normalises before it convolves registers its BatchNorm first.
    """
    if network.training:
        raise ValueError("a network in training mode needs its BatchNorms: call network.eval() first")
    network = copy.deepcopy(network)
    for module in network.modules():
        children = list(module.named_children())
        for (conv_name, conv), (norm_name, norm) in zip(children, children[1:]):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(module, conv_name, fuse_conv_bn_eval(conv, norm))
                setattr(module, norm_name, nn.Identity())
    return network
