import functools
import json
from pathlib import Path

import pytest
import torch
import torchvision
from golden_rules import draw, fill_, golden_input
from torch import nn

from model import resnet
from model.resnet import BLOCKS, BasicBlock, ResNet, feature_channels
from util.checkpoint import load_checkpoint
from util.common import Mistake

load_backbone = functools.partial(resnet.load_backbone, read=load_checkpoint)

MAPPING = json.loads((Path(__file__).parent / "golden" / "key_mapping.json").read_text())


def original_file(path, skip=(), **changes):
    """A file of ResNet-50 weights as initmodel/resnet50_v2.pth has them, every tensor drawn under its name there."""
    shapes = ResNet(50).state_dict()
    state = {}
    for key, ours in MAPPING["semseg_initmodel_to_semseg_pspnet"].items():
        if not key.endswith(skip or "nothing"):
            state[key] = draw(key, shapes[ours].shape if ours else (3,))
    torch.save(state | changes, path)
    return path


def dilations(net, stage):
    convs = [m for m in getattr(net, stage).modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    return [m.dilation[0] for m in convs]


def test_plain_stem_with_contracted_dilation_equals_torchvision(tmp_path):
    theirs = torchvision.models.resnet50(weights=None, replace_stride_with_dilation=[False, True, True])
    fill_(theirs).eval()
    torch.save(theirs.state_dict(), tmp_path / "resnet50.pth")
    ours = ResNet(50, stem="plain", contract_dilation=True).eval()
    load_backbone(ours, tmp_path / "resnet50.pth")
    x = golden_input("torchvision", 1, 65, 97)
    with torch.no_grad():
        third, fourth = ours(x)
        y = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(x))))
        their_third = theirs.layer3(theirs.layer2(theirs.layer1(y)))
        their_fourth = theirs.layer4(their_third)
    torch.testing.assert_close(third, their_third, rtol=0, atol=1e-5)
    torch.testing.assert_close(fourth, their_fourth, rtol=0, atol=1e-5)


@pytest.mark.parametrize("stem", ["deep", "deep32", "plain"])
@pytest.mark.parametrize("contract", [False, True])
def test_output_stride_is_8_rounded_up(stem, contract):
    net = ResNet(18, stem, contract).eval()
    with torch.no_grad():
        for h, w in ((33, 41), (32, 47), (1, 8)):
            third, fourth = net(torch.randn(1, 3, h, w))
            assert third.shape == (1, 256, -(-h // 8), -(-w // 8))
            assert fourth.shape == (1, 512, -(-h // 8), -(-w // 8))


def test_channels_and_blocks_of_every_depth():
    with torch.device("meta"):
        for layers, (block, blocks) in BLOCKS.items():
            net = ResNet(layers)
            assert tuple(len(getattr(net, f"layer{i}")) for i in (1, 2, 3, 4)) == blocks
            third, fourth = net(torch.empty(1, 3, 9, 9))
            assert (third.shape[1], fourth.shape[1]) == (feature_channels(layers) // 2, feature_channels(layers))
            assert feature_channels(layers) == (512 if block is BasicBlock else 2048)


def test_every_block_of_the_last_stages_is_dilated_or_the_first_one_contracted():
    semseg, mmseg = ResNet(50), ResNet(50, contract_dilation=True)
    assert dilations(semseg, "layer3") == [2] * 6 and dilations(semseg, "layer4") == [4] * 3
    assert dilations(mmseg, "layer3") == [1, 2, 2, 2, 2, 2] and dilations(mmseg, "layer4") == [2, 4, 4]
    for net in (semseg, mmseg):
        assert dilations(net, "layer1") == [1] * 3 and dilations(net, "layer2") == [1] * 4


def test_basic_blocks_dilate_both_convolutions_or_contracted_the_first_one_alone():
    semseg, mmseg = ResNet(18), ResNet(18, contract_dilation=True)
    assert dilations(semseg, "layer3") == [2] * 4 and dilations(semseg, "layer4") == [4] * 4
    assert dilations(mmseg, "layer3") == [1, 1, 2, 1] and dilations(mmseg, "layer4") == [2, 1, 4, 1]


def test_convolutions_start_kaiming_normal_by_fan_out_and_batch_norms_at_one_and_zero():
    torch.manual_seed(0)
    for m in ResNet(18).modules():
        if isinstance(m, nn.Conv2d):
            expected = (2 / (m.out_channels * m.kernel_size[0] ** 2)) ** 0.5
            assert m.weight.std().item() == pytest.approx(expected, rel=0.06)
        elif isinstance(m, nn.BatchNorm2d):
            assert (m.weight == 1).all() and (m.bias == 0).all()


def test_unknown_depth_and_stem_are_named_with_the_choices():
    with pytest.raises(ValueError, match="layers: 51 .*18, 34, 50, 101, 152"):
        ResNet(51)
    with pytest.raises(ValueError, match="stem: 'wide' .*deep, deep32, plain"):
        ResNet(18, stem="wide")


@pytest.mark.parametrize("skip", ["", "num_batches_tracked"])
def test_every_tensor_of_an_original_file_is_loaded_under_its_mapped_name(tmp_path, skip):
    net = ResNet(50)
    load_backbone(net, original_file(tmp_path / "resnet50_v2.pth", skip))
    state = net.state_dict()
    mapped = {k: ours for k, ours in MAPPING["semseg_initmodel_to_semseg_pspnet"].items() if ours}
    assert set(mapped.values()) == set(state)
    for theirs, ours in mapped.items():
        assert torch.equal(state[ours], draw(theirs, state[ours].shape)), ours


def test_what_is_outside_the_backbone_is_left_out_and_named(tmp_path):
    report = load_backbone(ResNet(50), original_file(tmp_path / "more.pth", own_head=torch.ones(1)))
    assert report.dropped == ["fc.weight", "fc.bias", "own_head"] and "own_head" in str(report)


def test_a_network_without_a_backbone_is_not_left_at_random_weights(tmp_path):
    with pytest.raises(Mistake, match="there is nothing to fill: a backbone's weights are named layer0..4"):
        load_backbone(nn.Sequential(ResNet(50)), original_file(tmp_path / "resnet50_v2.pth"))


def test_wrong_weights_are_all_listed_in_one_error_with_the_path(tmp_path):
    changes = {"layer1.0.surprise": torch.ones(1), "bn1.bias": torch.ones(7)}
    path = original_file(tmp_path / "odd.pth", "layer2.1.conv2.weight", **changes)
    net = ResNet(50)
    before = net.layer1[0].conv1.weight.clone()
    with pytest.raises(Mistake) as e:
        load_backbone(net, path)
    text = str(e.value)
    assert str(path) in text and "missing: layer2.1.conv2.weight" in text and "unexpected: layer1.0.surprise" in text
    assert "layer0.1.bias is (7,), the network has (64,)" in text
    assert torch.equal(before, net.layer1[0].conv1.weight)
