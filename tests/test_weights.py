"""Files of weights from five families: recognised, renamed and loaded, or refused with what is wrong."""

import functools
import http.client
import json
from pathlib import Path

import pytest
import torch
import torchvision
import yaml
from golden_rules import fill_, golden_input, golden_label
from torch import nn

from model import weights
from model.psanet import PSANet
from model.pspnet import PSPNet
from model.resnet import ResNet
from model.weights import describe, fetch_torchvision, recognise, to_mmseg, to_semseg
from util.checkpoint import load_checkpoint
from util.common import Mistake

load_backbone = functools.partial(weights.load_backbone, read=load_checkpoint)
load_network_weights = functools.partial(weights.load_network_weights, read=load_checkpoint)
MAPPING = json.loads((Path(__file__).parent / "golden" / "key_mapping.json").read_text())
MMSEG = {"stem": "deep32", "contract_dilation": True, "align_corners": False, "size_rule": "input"}
K = 5
pytestmark = pytest.mark.usefixtures("eighth")


def meta(shape=(1,)):
    return torch.empty(shape, device="meta")


def semseg_names_to_file_names(name):
    """layer0.0.weight -> conv1.weight and so on, as in the original's ImageNet files."""
    head, index, *tail = name.split(".")
    if head != "layer0":
        return name
    return ".".join([f"{('conv', 'bn')[int(index) % 3]}{int(index) // 3 + 1}", *tail])


@pytest.fixture(scope="module")
def semseg_state(eighth):
    return fill_(PSPNet(18, classes=K)).state_dict()


@pytest.fixture(scope="module")
def mmseg_state(eighth):
    return fill_(PSPNet(18, classes=K, **MMSEG)).state_dict()


@pytest.fixture
def saved(tmp_path):
    def save(content, name="weights.pth", **options):
        torch.save(content, tmp_path / name, **options)
        return tmp_path / name

    return save


def empty(layers=18, classes=K, **switches):
    """A network without initial values, which loading must overwrite all."""
    with torch.device("meta"):
        net = PSPNet(layers, classes=classes, **switches)
    net.to_empty(device="cpu")
    for tensor in net.state_dict().values():
        tensor.fill_(-1)
    return net


def assert_state(net, expected, prefix=""):
    state = {key: tensor for key, tensor in net.state_dict().items() if key.startswith(prefix)}
    assert state and all(torch.equal(tensor, expected[key]) for key, tensor in state.items())


def refusal(load, *args, **options):
    with pytest.raises(Mistake) as error:
        load(*args, **options)
    return str(error.value)


# ---- names ----


def test_the_names_of_mmsegmentation_map_both_ways():
    names = MAPPING["mmseg_to_semseg"]
    theirs = {name: meta(shape) for name, shape in MAPPING["mmseg_shapes"].items()}
    ours, report = to_semseg({"state_dict": theirs, "meta": {"CLASSES": ["road"]}})
    assert report.format == recognise(theirs) == "mmseg"
    assert list(ours) == [names[name] for name in theirs] and report.renamed == names and not report.dropped
    assert {name: tensor.shape for name, tensor in to_mmseg(ours).items()} == {n: t.shape for n, t in theirs.items()}
    assert report.switches == {"arch": "psp", "layers": 50, "classes": 19, **MMSEG}
    assert report.stated == {"arch", "layers", "stem", "classes", "contract_dilation"}


def test_the_names_of_the_original_imagenet_files_map():
    names = MAPPING["semseg_initmodel_to_semseg_pspnet"]
    with torch.device("meta"):
        own = ResNet(50).state_dict()
    state = {name: own[ours] if ours else meta() for name, ours in names.items()}
    ours, report = to_semseg(state)
    assert report.format == "semseg backbone"
    assert report.renamed == {name: ours for name, ours in names.items() if ours}
    assert report.dropped == [name for name, ours in names.items() if not ours]
    assert report.switches == {"layers": 50, "stem": "deep", "contract_dilation": False}


def test_the_names_of_torchvision_map_with_and_without_the_prefix_of_mmsegmentation():
    table = MAPPING["torchvision_resnet50"]
    state = {name: meta(entry["shape"]) for name, entry in table.items()}
    ours, report = to_semseg(state)
    assert report.format == "torchvision" and set(report.dropped) == {"fc.weight", "fc.bias"}
    assert report.renamed == {name: entry["semseg_plain_stem"] for name, entry in table.items() if entry["semseg_plain_stem"]}
    assert report.switches == {"layers": 50, "stem": "plain", "contract_dilation": True}
    prefixed = {f"backbone.{name}": tensor for name, tensor in state.items()}
    assert recognise(prefixed) == "mmseg backbone" and list(to_semseg(prefixed)[0]) == list(ours)


@pytest.mark.parametrize("layers", [18, 34, 50, 101, 152])
@pytest.mark.parametrize("stem", ["deep", "deep32", "plain"])
def test_depth_stem_and_classes_follow_from_names_and_shapes(layers, stem):
    with torch.device("meta"):
        net = PSPNet(layers, classes=7, stem=stem)
    assert describe(net.state_dict()) == {"arch": "psp", "layers": layers, "stem": stem, "classes": 7}
    there = to_mmseg(net.state_dict())
    assert recognise(there) == "mmseg" and all(name.startswith(("backbone.", "decode_head.", "auxil")) for name in there)
    assert list(to_semseg(there)[0]) == list(net.state_dict())


def test_psanet_has_the_names_of_the_original_and_none_of_mmsegmentation():
    with torch.device("meta"):
        state = PSANet(18, classes=3, mask_h=5, mask_w=5).state_dict()
    ours, report = to_semseg({f"module.{name}": tensor for name, tensor in state.items()})
    assert list(ours) == list(state) and report.switches["arch"] == "psa" and report.format == "semseg"
    assert "only PSPNets" in refusal(to_mmseg, state)


def test_what_is_no_known_network_is_refused_with_its_names():
    assert "classifier, features" in refusal(recognise, {"features.0.weight": meta(), "classifier.0.weight": meta()})
    twice = {key: meta() for key in ("layer0.0.weight", "layer1.0.conv1.weight", "module.layer1.0.conv1.weight")}
    assert "holds two networks" in refusal(to_semseg, twice)


# ---- whole networks ----


def test_checkpoints_of_semseg_load_with_and_without_module(saved, semseg_state):
    parallel = {f"module.{key}": tensor for key, tensor in semseg_state.items()}
    for content in (semseg_state, {"epoch": 7, "state_dict": parallel, "optimizer": {}}):
        net = empty()
        report = load_network_weights(net, saved(content))
        assert_state(net, semseg_state)
        assert report.format == "semseg" and report.epoch == content.get("epoch") and not report.dropped


def test_checkpoints_of_mmsegmentation_load_into_its_network(saved, mmseg_state):
    theirs = {"meta": {"CLASSES": ("a", "b"), "PALETTE": [[1, 2, 3]]}, "state_dict": to_mmseg(mmseg_state)}
    net = empty(**MMSEG)
    report = load_network_weights(net, saved(theirs))
    assert_state(net, mmseg_state)
    assert report.format == "mmseg" and "decode_head.bottleneck.conv.* -> cls.0.*: 1 tensors" in str(report)
    assert "align_corners: False (usual for this format; not stated in the file)" in str(report)


def test_heads_that_have_no_place_here_are_dropped_and_then_missed(saved, mmseg_state):
    theirs = {key: tensor for key, tensor in to_mmseg(mmseg_state).items() if key.startswith("backbone.")}
    theirs |= {"decode_head.convs.0.conv.weight": torch.ones(1), "decode_head.conv_seg.bias": torch.ones(K)}
    _, report = to_semseg(theirs)
    assert report.dropped == ["decode_head.convs.0.conv.weight"]
    assert "missing: ppm.features.0.1.weight" in refusal(load_network_weights, empty(**MMSEG), saved(theirs))


@pytest.mark.parametrize("changes, line", [
    ({"classes": 4}, "classes: the file has 5, the network 4; set `classes: 5`, or leave the classifiers out with"),
    ({"layers": 34}, "layers: the file has 18, the network 34; set `layers: 18`"),
    ({"stem": "deep"}, "stem: the file has deep32, the network deep; set `stem: deep32`"),
    ({"contract_dilation": False}, "contract_dilation: the file has True, the network False; set `contract_dilation: True`"),
])  # fmt: skip
def test_another_network_is_refused_with_the_keys_to_set_and_left_as_it_was(saved, mmseg_state, changes, line):
    net, path = empty(**{**MMSEG, **changes}), saved(to_mmseg(mmseg_state))
    text = refusal(load_network_weights, net, path)
    assert text.startswith(f"{path}: ") and line in text
    assert "arch: psp, layers: 18, stem: deep32, classes: 5, contract_dilation: True, align_corners: False" in text
    assert all((p == -1).all() for p in net.parameters())


def test_another_arch_is_refused(saved, semseg_state):
    net = PSANet(18, classes=K, mask_h=5, mask_w=5)
    text = refusal(load_network_weights, net, saved(semseg_state))
    assert "arch: the file has psp, the network psa; set `arch: psp`" in text


def test_a_config_stated_in_the_file_must_agree_with_the_network(saved, semseg_state, mmseg_state):
    own = saved({"state_dict": semseg_state, "config": "TRAIN:\n  align_corners: false\n  layers: 18\n"}, "own.pth")
    assert "set `align_corners: False`" in refusal(load_network_weights, empty(), own)
    text = "model = dict(decode_head=dict(align_corners=True), auxiliary_head=dict(align_corners=True))"
    square = saved({"state_dict": to_mmseg(mmseg_state), "meta": {"config": text}}, "769.pth")
    assert "set `align_corners: True`" in refusal(load_network_weights, empty(**MMSEG), square)
    load_network_weights(empty(**{**MMSEG, "align_corners": True}), square)


def test_what_the_file_states_and_no_shape_shows_must_agree(one_block):
    """A network that computes something else with the same weights is refused with the key to set."""
    attention = {"psa_type": 1, "compact": False, "shrink_factor": 2, "mask_h": 3, "mask_w": 5, "normalization_factor": None,
                 "psa_softmax": False}  # fmt: skip
    others = {"psa_type": 0, "compact": True, "shrink_factor": 1, "mask_h": 5, "normalization_factor": 1.0, "psa_softmax": True,
              "size_rule": "input"}  # fmt: skip
    sizes = {"arch": "psa", "size_rule": "grid", "train_h": 17, "train_w": 33}  # of which these masks are the smallest
    network = PSANet(18, classes=K, **attention)
    with torch.device("meta"):  # which builds them in no time
        refused = {key: PSANet(18, classes=K, **{**attention, key: other, **({"mask_w": 3} if key == "mask_h" else {})})
                   for key, other in others.items()}  # fmt: skip

    def load(network, config):
        content = {"state_dict": state, "config": yaml.safe_dump({"TRAIN": config})}
        return weights.load_network_weights(network, "x.pth", read=lambda path: content)

    state = network.state_dict()
    for config in (attention | sizes, attention | sizes | {"mask_h": None, "mask_w": None}):
        for key, other in refused.items():
            stated = (attention | sizes | {"normalization_factor": 15})[key]
            text = refusal(load, other, config)
            assert f"{key}: the file has {stated}, the network {others[key]}; set `{key}: {stated}`" in text
            assert "wrong shape" not in text
        assert attention | {"normalization_factor": 15} == {key: load(network, config).switches[key] for key in attention}
    assert "psa_type" not in load(network, {"mask_h": None, "normalization_factor": None}).switches  # which say nothing


def test_odd_tensors_are_all_listed(saved, semseg_state):
    state = {**semseg_state, "surprise": torch.ones(1), "cls.1.bias": torch.ones(3)}
    del state["layer3.1.bn2.running_var"]
    text = refusal(load_network_weights, empty(), saved(state))
    assert "missing: layer3.1.bn2.running_var\n" in text and "unexpected: surprise\n" in text
    assert text.endswith("wrong shape: cls.1.bias is (3,), the network has (16,)")


def test_counters_of_steps_may_be_missing(saved, semseg_state):
    state = {key: tensor for key, tensor in semseg_state.items() if not key.endswith("num_batches_tracked")}
    report = load_network_weights(empty(), saved(state))
    assert len(report.missing) == len(semseg_state) - len(state) and "missing: layer0.1.num_batches_tracked" in str(report)


def test_other_classes_are_fine_tuned_without_the_classifiers(saved, semseg_state):
    torch.manual_seed(0)
    net = PSPNet(18, classes=3)
    own = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    report = load_network_weights(net, saved(semseg_state), skip_head=True)
    assert report.skipped == ["cls.4.weight", "cls.4.bias", "aux.4.weight", "aux.4.bias"]
    for key, tensor in net.state_dict().items():
        assert torch.equal(tensor, own[key] if key in report.skipped else semseg_state[key]), key
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    _, main_loss, aux_loss = net(golden_input("skip", 2, 33, 33), golden_label("skip", 2, 33, 33, 3))
    (main_loss + 0.4 * aux_loss).backward()
    optimizer.step()
    assert main_loss.isfinite() and not torch.equal(net.cls[4].weight, own["cls.4.weight"])


def test_the_classifiers_are_loaded_where_the_classes_agree(saved, semseg_state):
    net = empty()
    assert load_network_weights(net, saved(semseg_state), skip_head=True).skipped == []
    assert_state(net, semseg_state)


def test_a_backbone_is_not_a_whole_network(saved, semseg_state):
    path = saved({key: tensor for key, tensor in semseg_state.items() if key.startswith("layer")})
    assert "it holds a backbone only: name it under `initmodel`" in refusal(load_network_weights, empty(), path)


# ---- backbones ----


@pytest.mark.parametrize("legacy", [False, True])
def test_backbones_of_the_original_load(saved, semseg_state, legacy):
    state = {semseg_names_to_file_names(k): t for k, t in semseg_state.items() if k.startswith("layer")}
    path = saved({**state, "fc.weight": torch.ones(9, 64)}, _use_new_zipfile_serialization=not legacy)
    net = empty()
    report = load_backbone(net, path)
    assert_state(net, semseg_state, "layer")
    assert report.format == "semseg backbone" and report.dropped == ["fc.weight"] and (net.cls[4].weight == -1).all()


@pytest.mark.parametrize("prefix, classifier", [("", "fc.bias"), ("backbone.", "head.fc.bias")])
def test_backbones_of_mmsegmentation_load(saved, mmseg_state, prefix, classifier):
    state = {key.replace("layer0", "stem"): t for key, t in mmseg_state.items() if key.startswith("layer")}
    path = saved({"state_dict": {**{prefix + key: t for key, t in state.items()}, classifier: torch.ones(9)}, "meta": {}})
    net = empty(**MMSEG)
    report = load_backbone(net, path)
    assert_state(net, mmseg_state, "layer")
    assert report.format == "mmseg backbone" and report.dropped == [classifier]


def test_backbones_of_torchvision_load(saved, monkeypatch):
    monkeypatch.setattr("model.resnet.WIDTH", 64)  # theirs
    theirs = fill_(torchvision.models.resnet18(weights=None))
    net = ResNet(18, stem="plain", contract_dilation=True)
    report = load_backbone(net, saved(theirs.state_dict()))
    assert report.format == "torchvision" and set(report.dropped) == {"fc.weight", "fc.bias"}
    assert torch.equal(net.layer0[0].weight, theirs.conv1.weight) and torch.equal(net.layer0[1].bias, theirs.bn1.bias)
    assert torch.equal(net.layer4[1].conv2.weight, theirs.layer4[1].conv2.weight)


def test_a_whole_network_serves_as_a_backbone_and_its_heads_are_listed(saved, semseg_state):
    net = empty(classes=2)
    report = load_backbone(net, saved({"epoch": 3, "state_dict": semseg_state}))
    assert_state(net, semseg_state, "layer")
    assert {name.split(".")[0] for name in report.dropped} == {"ppm", "cls", "aux"}


def test_a_backbone_of_another_stem_or_depth_is_refused_with_the_keys_to_set(saved):
    path = saved(torchvision.models.resnet18(weights=None).state_dict())
    text = refusal(load_backbone, ResNet(34), path)
    assert "layers: the file has 18, the network 34; set `layers: 18`" in text
    assert "stem: the file has plain, the network deep; set `stem: plain`" in text


# ---- torchvision's files ----


def test_weights_of_torchvision_are_downloaded_once_and_get_their_name_when_they_are_whole(tmp_path):
    calls, path = [], tmp_path / "initmodel" / "resnet50-0676ba61.pth"

    def download(url, temporary, hash_prefix, progress):
        calls.append((url, hash_prefix))
        Path(temporary).write_bytes(b"weights")
        assert not path.exists()

    assert [fetch_torchvision(50, path.parent, download) for _ in range(2)] == [path] * 2
    assert calls == [("https://download.pytorch.org/models/resnet50-0676ba61.pth", "0676ba61")]
    assert [file.name for file in path.parent.iterdir()] == [path.name] and path.read_bytes() == b"weights"


@pytest.mark.parametrize(
    "error", [OSError("no route to host"), RuntimeError("invalid hash value"), http.client.IncompleteRead(b"")]
)
def test_a_download_that_fails_names_the_url_and_the_path_and_leaves_no_file(tmp_path, error):
    def download(url, temporary, **options):
        Path(temporary).write_bytes(b"half")
        raise error

    text = refusal(fetch_torchvision, 18, tmp_path, download)
    url = "https://download.pytorch.org/models/resnet18-f37072fd.pth"
    assert f"{url} could not be downloaded ({error})" in text
    assert f"put it at {tmp_path / 'resnet18-f37072fd.pth'}, and start again" in text
    assert not list(tmp_path.iterdir())


# ---- content that no network can use ----


@pytest.mark.parametrize("content, found", [
    ([torch.ones(1)], "found list"),
    ({"state_dict": [torch.ones(1)]}, "found list"),
    ({"state_dict": {}}, "found nothing"),
    ({"epoch": 3, "model": {}}, "found 'epoch': int, 'model': dict"),
    ({"state_dict": {0: torch.ones(1)}}, "found 0: tensor"),
    ({"state_dict": {"layer1.0.conv1.weight": {"weight": torch.ones(1)}}}, "found 'layer1.0.conv1.weight': dict"),
    ({"state_dict": {f"layer{i}": "text" for i in range(9)}}, "'layer2': str, and 6 more"),
    ({"layer0.0.weight": torch.eye(2).to_sparse(), "layer1.0.conv1.weight": torch.ones(1)},
     "found 'layer0.0.weight': torch.sparse_coo tensor"),
    (torch.ones(1), "found Tensor"),
])  # fmt: skip
def test_content_other_than_named_tensors_is_refused_with_what_was_found(content, found):
    for load in (weights.load_network_weights, weights.load_backbone):
        text = refusal(load, ResNet(18), "x.pth", read=lambda path: content)
        assert text.startswith("x.pth: holds no weights") and found in text


BAD_VALUES = [
    ("layer1.0.conv1.weight", lambda t: t.index_fill(0, torch.tensor([3]), torch.nan), "has nan or infinite values"),
    ("layer1.0.bn1.bias", lambda t: t / 0, "has nan or infinite values"),
    ("layer1.0.conv1.weight", lambda t: t.double() * 1e300, "has nan or infinite values"),  # infinite as float32
    ("layer4.1.bn2.running_var", lambda t: -t, "has negative values"),
    ("layer4.1.bn2.running_mean", lambda t: t.to(torch.int8), "is torch.int8, not torch.float32"),
    ("layer2.0.conv1.weight", lambda t: t.to(torch.complex64), "is torch.complex64, not torch.float32"),
    ("layer2.0.conv1.weight", lambda t: t > 0, "is torch.bool, not torch.float32"),
    ("layer1.0.bn1.num_batches_tracked", lambda t: torch.tensor(torch.nan), "has nan or infinite values"),
    ("layer2.0.conv1.weight", lambda t: t.to("meta"), "has no values"),
    ("layer2.0.conv1.weight", lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8), "is torch.qint8, not torch.float32"),
]


@pytest.mark.filterwarnings("ignore:.*quantize")
@pytest.mark.parametrize("key, spoil, message", BAD_VALUES)
@pytest.mark.parametrize("load", [weights.load_network_weights, weights.load_backbone])
def test_values_that_no_network_can_use_are_refused_with_the_tensor(semseg_state, load, key, spoil, message):
    net, state = empty(), semseg_state | {key: spoil(semseg_state[key])}
    assert refusal(load, net, "x.pth", read=lambda path: state) == f"x.pth: unusable weights: {key} {message}"
    assert all((p == -1).all() for p in net.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_load(semseg_state, dtype):
    state, net = {key: tensor.to(dtype) for key, tensor in semseg_state.items()}, empty()
    weights.load_network_weights(net, "x.pth", read=lambda path: state)  # counters that were averaged with the weights too
    assert_state(net, {key: tensor.to(semseg_state[key].dtype) for key, tensor in state.items()})


@pytest.mark.parametrize("shape", [(), (0,), (6,), (2, 3), (4, 0, 3, 3)], ids=str)
@pytest.mark.parametrize("key", ["layer0.0.weight", "cls.4.weight", "layer1.0.conv1.weight", "cls.4.bias"])
def test_tensors_of_any_other_shape_are_named_and_never_skipped(semseg_state, key, shape):
    state = semseg_state | {key: torch.zeros(shape)}
    for skip_head in (False, True):
        text = refusal(weights.load_network_weights, empty(), "x.pth", read=lambda path: state, skip_head=skip_head)
        assert f"{key} is {shape}, the network has" in text


def test_a_config_in_the_file_that_cannot_be_read_is_passed_over(semseg_state):
    for extra in ({"config": "[" * 3000}, {"config": "TRAIN: 3"}, {"meta": {"config": torch.ones(3)}}, {"meta": 3}):
        assert to_semseg({"state_dict": semseg_state, **extra})[1].switches["align_corners"]


@pytest.mark.parametrize("epoch", [torch.tensor(3), "three", None])
def test_an_epoch_that_is_no_whole_number_is_left_out(semseg_state, epoch):
    """It would not fit into the protocol of a test, which is JSON."""
    assert to_semseg({"epoch": epoch, "state_dict": semseg_state})[1].epoch is None
    assert to_semseg({"epoch": 3, "state_dict": semseg_state})[1].epoch == 3


def test_a_linear_layer_is_no_backbone(saved):
    assert "not the weights of a ResNet" in refusal(load_backbone, ResNet(18), saved(nn.Linear(2, 2).state_dict()))


def test_a_network_of_ones_own_loads_its_own_file(saved):
    theirs, net = nn.Sequential(nn.Conv2d(3, 4, 3)), nn.Sequential(nn.Conv2d(3, 4, 3))
    assert load_network_weights(net, saved({f"module.{key}": t for key, t in theirs.state_dict().items()})).format == "own"
    assert torch.equal(net[0].weight, theirs[0].weight)
    said = refusal(load_network_weights, nn.Sequential(nn.Conv2d(3, 5, 3)), saved(theirs.state_dict()))
    assert "0.weight is (4, 3, 3, 3), the network has (5, 3, 3, 3)" in said
