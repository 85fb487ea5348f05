"""Initial values as MMSegmentation's: each layer against the formula."""

import math

import pytest
import torch
from golden_rules import golden_input, golden_label
from torch import nn

from model import build_model
from model.resnet import BasicBlock, Bottleneck, ResNet, load_backbone
from util.config import Config

K = 5


def build(**changes):
    keys = {"layers": 18, "classes": K, "dropout": 0.0, "train_h": 33, "train_w": 33, "init": "mmseg"}
    torch.manual_seed(0)
    return build_model(Config(**{"data_root": "", "save_path": "", "path": ""} | keys | changes))


def blocks(network):
    return [m for m in network.modules() if isinstance(m, BasicBlock | Bottleneck)]


every_network = pytest.mark.parametrize("changes", [{}, {"layers": 50, "stem": "deep32"}, {"arch": "psa", "stem": "plain"}],
                                        ids=["psp18", "psp50", "psa18"])  # fmt: skip


@every_network
def test_every_convolution_is_normal_with_the_deviation_of_its_kind(changes):
    network = build(**changes)
    classifiers = network.classifiers()
    assert [layer.out_channels for layer in classifiers] == [K, K]
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert all(m in convolutions for m in classifiers)
    for m in convolutions:
        formula = 0.01 if m in classifiers else math.sqrt(2 / (m.out_channels * m.kernel_size[0] * m.kernel_size[1]))
        n = m.weight.numel()
        assert m.weight.std().item() == pytest.approx(formula, rel=4 / math.sqrt(2 * n))
        assert abs(m.weight.mean().item()) < 4.5 * formula / math.sqrt(n)
        assert m.bias is None or not m.bias.any()


@every_network
def test_the_last_batchnorm_of_a_block_is_0_and_all_others_are_1(changes):
    network = build(**changes)
    last = [block.bn3 if isinstance(block, Bottleneck) else block.bn2 for block in blocks(network)]
    assert len(last) == {18: 8, 50: 16}[changes.get("layers", 18)]
    for m in network.modules():
        if isinstance(m, nn.BatchNorm2d):
            assert (m.weight == (0 if m in last else 1)).all() and not m.bias.any()


@pytest.mark.parametrize("layers", [18, 50])
def test_a_block_is_the_identity_at_the_start(layers):
    for block in blocks(build(layers=layers).train()):
        x = torch.rand(2, block.conv1.in_channels, 5, 6)
        shortcut = x if block.downsample is None else block.downsample(x).relu()
        assert torch.equal(block(x), shortcut)


@every_network
def test_a_training_step_starts_from_even_chances_and_wakes_the_blocks(changes):
    network = build(**changes).train()
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    _, main_loss, aux_loss = network(golden_input("init", 2, 33, 33), golden_label("init", 2, 33, 33, K))
    assert main_loss.item() == pytest.approx(math.log(K), abs=0.3) == aux_loss.item()  # nearly uniform probabilities
    (main_loss + 0.4 * aux_loss).backward()
    torch.optim.SGD(network.parameters(), lr=0.1).step()
    for block in blocks(network):
        norm = "bn3" if isinstance(block, Bottleneck) else "bn2"
        assert getattr(block, norm).weight.abs().max() > 0
    for name in ("cls.4.weight", "aux.4.weight", "cls.0.weight", "layer0.0.weight"):
        assert not torch.equal(network.get_parameter(name), before[name])
    assert all(p.isfinite().all() for p in network.parameters())


def test_weights_of_a_backbone_that_are_loaded_replace_them():
    torch.manual_seed(1)
    given = ResNet(18).state_dict()
    network, plain = build(), build().state_dict()
    load_backbone(network, "resnet18.pth", read=lambda path: given)
    state = network.state_dict()
    for name, tensor in state.items():
        assert torch.equal(tensor, given.get(name, plain[name])), name
    assert (state["layer1.0.bn2.weight"] == 1).all() and (plain["layer1.0.bn2.weight"] == 0).all()


def test_without_the_key_the_modules_start_as_they_did():
    state = build(init="semseg").state_dict()
    assert all((state[name] == 1).all() for name in state if name.endswith("bn2.weight"))
    bound = 1 / math.sqrt(128)  # PyTorch's own: uniform within 1/sqrt(fan_in)
    assert 0.9 * bound < state["cls.4.weight"].abs().max() <= bound and state["cls.4.bias"].any()
