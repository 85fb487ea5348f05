"""arch: smp_pspnet: the package's PSPNet keeps this project's contract of a network."""

import functools
import sys

import pytest
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
import torchvision
from golden_rules import fill_, golden_input, golden_label
from torch import nn

import model
from model import build_model, weights
from model import smp as smp_module
from model.fold import fold_batchnorm, for_test
from model.pspnet import PSPNet
from model.resnet import ResNet
from model.smp import SMPPSPNet
from model.weights import describe, recognise, to_mmseg
from util.checkpoint import load_checkpoint
from util.config import Config
from util.inference import predict_probability
from util.transform import MEAN, STD

K = 5
load_backbone = functools.partial(weights.load_backbone, read=load_checkpoint)
load_network_weights = functools.partial(weights.load_network_weights, read=load_checkpoint)


def make(layers=18, classes=K, **options):
    return fill_(SMPPSPNet(layers, 0.0, classes, **options))


def build(**changes):
    keys = {"arch": "smp_pspnet", "layers": 18, "classes": K, "dropout": 0.3}
    torch.manual_seed(0)
    return build_model(Config(**{"data_root": "", "save_path": "", "path": "x.yaml"} | keys | changes))


def batch(h=33, w=46):
    return golden_input("smp", 2, h, w), golden_label("smp", 2, h, w, K)


def theirs(layers=18):
    return smp.PSPNet(f"resnet{layers}", encoder_weights=None, classes=K)


@pytest.fixture
def saved(tmp_path):
    def save(content, name="weights.pth"):
        torch.save(content, tmp_path / name)
        return tmp_path / name

    return save


def refusal(function, *args, **options):
    with pytest.raises(ValueError) as error:
        function(*args, **options)
    return str(error.value)


# ---- the contract ----


@pytest.mark.parametrize("h, w", [(33, 46), (40, 48), (25, 8)])
def test_three_forms_of_a_network_at_any_size(h, w):
    network, (image, label) = make(), batch(h, w)
    pred, main_loss, aux_loss = network(image, label)
    assert pred.shape == (2, h, w) and pred.dtype == torch.int64
    assert main_loss.shape == aux_loss.shape == () and main_loss.requires_grad and aux_loss == 0
    logits, aux_logits = network(image)
    assert logits.shape == (2, K, h, w) and aux_logits is None and torch.equal(pred, logits.argmax(1))
    assert network.eval()(image).shape == (2, K, h, w)
    assert torch.equal(network.label_of_logits(label), label) and network.valid_pixels(label) == (label != 255).sum()
    assert (network.classes, network.ignore_label) == (K, 255)


@pytest.mark.parametrize("layers", [18, 50])
def test_logits_are_the_package_s_own_and_another_size_is_padded_with_zeros(layers):
    network, original = make(layers).eval(), fill_(theirs(layers)).eval()
    with torch.inference_mode():
        for h, w in ((48, 64), (41, 50), (1, 7)):
            image = golden_input("sizes", 2, h, w)
            expected = original(F.pad(image, (0, -w % 8, 0, -h % 8)))[..., :h, :w]
            torch.testing.assert_close(network(image), expected, rtol=0, atol=1e-5)
    assert network.state_dict().keys() == {name for name in original.state_dict() if not name.startswith(
        ("encoder.layer3.", "encoder.layer4."))}  # fmt: skip


def test_loss_inside_equals_loss_outside_and_its_gradients_reach_all_parameters():
    network, (image, label) = make().double(), batch()
    image = image.double()
    _, main_loss, aux_loss = network(image, label)
    (main_loss + 0.4 * aux_loss).backward()
    inside = [p.grad.clone() for p in network.parameters()]
    assert all(gradient.isfinite().all() and gradient.any() for gradient in inside)
    network.zero_grad()
    loss = F.cross_entropy(network(image)[0], label, ignore_index=255)
    loss.backward()
    torch.testing.assert_close(main_loss, loss)
    torch.testing.assert_close(inside, [p.grad for p in network.parameters()])


def test_the_criterion_is_that_of_the_config():
    network, (image, label) = build(loss_mean="all", ignore_label=7, dropout=0.0), batch()
    label = label.where(label != 255, 7)
    _, loss, _ = network(image, label)
    expected = F.cross_entropy(network(image)[0], label, ignore_index=7, reduction="sum") / label.numel()
    torch.testing.assert_close(loss, expected)
    assert network.valid_pixels(label) == label.numel() and build().decoder.dropout.p == 0.3


def test_the_two_parameter_groups_are_the_whole_network():
    network = make()
    groups = [p for m in network.backbone_modules() + network.head_modules() for p in m.parameters()]
    assert [id(p) for p in groups] == [id(p) for p in network.parameters()]
    assert network.backbone_modules() == [network.encoder]


def test_logits_and_losses_are_float32_under_bfloat16_autocast():
    network, seen = make(), []
    network.segmentation_head[0].register_forward_hook(lambda module, x, y: seen.append(y.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        _, main_loss, aux_loss = network(*batch())
        assert network.eval()(batch()[0]).dtype == main_loss.dtype == aux_loss.dtype == torch.float32
    assert seen == [torch.bfloat16] * 2


@pytest.mark.parametrize("layers", [18, 50])
def test_folded_network_gives_the_same_logits(layers):
    network = make(layers).eval()
    folded = fold_batchnorm(network)
    with torch.inference_mode():
        image = batch()[0]
        assert (folded(image) - network(image)).abs().max() < 1e-5
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())


def test_whole_images_are_predicted_as_by_any_network():
    network = for_test(make(), torch.device("cpu"))
    image = (golden_input("picture", 1, 37, 52)[0].permute(1, 2, 0) * 50 + 128).clamp(0, 255).byte().numpy()
    prob = predict_probability(
        network, image, classes=K, base_size=None, crop_h=33, crop_w=33, scales=(0.7, 1.0), mean=MEAN, std=STD, mode="whole"
    )
    assert prob.shape == (K, 37, 52) and torch.allclose(prob.sum(0), torch.ones(37, 52), atol=1e-5)


def test_initial_values_of_mmsegmentation_are_for_it_too():
    network = build(init="mmseg")
    (classifier,) = network.classifiers()
    assert classifier.out_channels == K and 0.009 < classifier.weight.std() < 0.011 and not classifier.bias.any()
    assert not network.encoder.layer2[1].bn2.weight.any() and (network.encoder.layer2[1].bn1.weight == 1).all()


# ---- what cannot be ----


def test_without_the_package_the_error_names_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    assert 'pip install "segmentation-models-pytorch>=0.5"' in refusal(build)
    assert isinstance(build(arch="psp"), PSPNet)  # which needs it not


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"zoom_factor": 4}, "zoom_factor: 4 does not go with arch: smp_pspnet"),
        ({"align_corners": False}, "align_corners: False does not go with arch: smp_pspnet"),
        ({"stem": "deep32"}, "stem: deep32 does not go with arch: smp_pspnet"),
        ({"checkpoint_layers": ("layer1",)}, "checkpoint_layers: ('layer1',) does not go with arch: smp_pspnet"),
    ],
)
def test_what_it_does_not_have_is_refused(changes, message):
    assert message in refusal(build, **changes)


# ---- weights ----


def test_its_checkpoints_load_and_nothing_else(saved):
    source, network = make(), SMPPSPNet(18, 0.0, K)
    content = {"epoch": 3, "state_dict": {f"module.{name}": tensor for name, tensor in source.state_dict().items()}}
    report = load_network_weights(network, saved(content))
    assert report.format == "smp" and report.epoch == 3 and not report.dropped
    assert all(torch.equal(tensor, source.state_dict()[name]) for name, tensor in network.state_dict().items())
    state = source.state_dict()
    del state["decoder.conv.1.running_var"]
    text = refusal(load_network_weights, network, saved({**state, "surprise": torch.ones(1)}))
    assert "missing: decoder.conv.1.running_var" in text and "unexpected: surprise" in text
    text = refusal(load_network_weights, SMPPSPNet(34, 0.0, 4), saved(source.state_dict()))
    assert "classes: the file has 5, the network 4; set `classes: 5`" in text
    assert "the file fits arch: smp_pspnet, layers: 18" in text and "missing: encoder.layer1.2." in text


def test_files_of_the_package_load_without_the_stages_that_it_never_calls(saved):
    original, network = fill_(theirs()), SMPPSPNet(18, 0.0, K)
    report = load_network_weights(network, saved(original.state_dict()))
    assert report.dropped and all(name.startswith(("encoder.layer3.", "encoder.layer4.")) for name in report.dropped)
    assert all(torch.equal(tensor, original.state_dict()[name]) for name, tensor in network.state_dict().items())


def test_another_number_of_classes_is_fine_tuned_without_the_classifier(saved):
    network, path = make(classes=3), saved(SMPPSPNet(18, 0.0, K).state_dict())
    own = network.segmentation_head[0].weight.detach().clone()
    report = load_network_weights(network, path, skip_head=True)
    assert report.skipped == ["segmentation_head.0.weight", "segmentation_head.0.bias"]
    assert torch.equal(network.segmentation_head[0].weight, own)


def test_another_arch_is_named_either_way(saved):
    ours, path = PSPNet(18, classes=K), saved(make().state_dict())
    assert "arch: the file has smp_pspnet, the network psp; set `arch: smp_pspnet`" in refusal(load_network_weights, ours, path)
    path = saved(ours.state_dict())
    assert "arch: the file has psp, the network smp_pspnet; set `arch: psp`" in refusal(load_network_weights, make(), path)
    assert "only PSPNets" in refusal(to_mmseg, make().state_dict())


def test_the_depth_follows_from_layer1_and_layer2():
    with torch.device("meta"):
        for layers, told in ((18, 18), (34, 34), (50, 50), (101, 50), (152, 152)):
            state = SMPPSPNet(layers, 0.0, K).state_dict()
            assert describe(state) == {"arch": "smp_pspnet", "layers": told, "stem": "plain", "classes": K}
            assert recognise(state) == "smp"


def test_the_encoder_loads_torchvision_s_weights(saved):
    source, network = fill_(torchvision.models.resnet18(weights=None)).state_dict(), SMPPSPNet(18, 0.0, K)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    report = load_backbone(network, saved(source))
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, source[name.removeprefix("encoder.")] if name.startswith("encoder.") else before[name]), name
    assert {name.split(".")[0] for name in report.dropped} == {"layer3", "layer4", "fc"}
    assert "* -> encoder.*: 60 tensors\nfits: layers: 18, stem: plain\ndropped: " in str(report)


def test_the_encoder_loads_from_other_networks_of_its_stem_and_depth_only(saved):
    plain = fill_(PSPNet(18, classes=3, stem="plain"))
    network = SMPPSPNet(18, 0.0, K)
    report = load_backbone(network, saved(plain.state_dict()))
    assert torch.equal(network.encoder.layer2[1].conv2.weight, plain.layer2[1].conv2.weight)
    assert torch.equal(network.encoder.bn1.running_var, plain.layer0[1].running_var)
    assert {name.split(".")[0] for name in report.dropped} == {"layer3", "layer4", "ppm", "cls", "aux"}
    other = make(classes=2)
    assert len(load_backbone(network, saved(other.state_dict())).dropped) == len(
        [name for name in other.state_dict() if not name.startswith("encoder.")])  # fmt: skip
    assert torch.equal(network.encoder.conv1.weight, other.encoder.conv1.weight)

    assert "set `initmodel: torchvision`" in refusal(load_backbone, network, saved(ResNet(18).state_dict()))
    text = refusal(load_backbone, network, saved(torchvision.models.resnet34(weights=None).state_dict()))
    assert "layers: the file has 34, the network 18; set `layers: 34`" in text


def test_the_config_check_imports_the_package_outside_the_meta_device(monkeypatch):
    """torch 2.8 cannot load its compiler there, which the package does."""
    devices, real = [], smp_module.import_package
    for module in (model, smp_module):
        monkeypatch.setattr(module, "import_package", lambda: devices.append(torch.empty(0).device.type) or real())
    cfg = Config(data_root="", save_path="", path="x.yaml", classes=K, arch="smp_pspnet", layers=18, train_h=32, train_w=32)
    assert not list(model.check_config(cfg))
    assert devices == ["cpu", "meta"]
