"""BatchNorm at test time is a factor and a shift for each channel, which the convolution before it can do as well."""

import copy

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def for_test(network, device, *, channels_last=False, compile=False):
    """The network as it is fastest where nothing is learned any more: on `device`, in eval mode, BatchNorms folded."""
    network = fold_batchnorm(network.eval())
    network.to(device, memory_format=torch.channels_last if channels_last else torch.preserve_format)
    return torch.compile(network).eval() if compile else network


def fold_batchnorm(network):
    """A copy of a network in eval mode whose BatchNorms are part of the convolutions before them: same logits but for
    rounding. It is for inference alone: its state_dict has other names.

    A BatchNorm belongs to the convolution that is registered right before it in the same module; so it is in all networks
    here.
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
