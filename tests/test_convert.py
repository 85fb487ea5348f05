import pytest
import torch
import yaml
from golden_rules import fill_

from model.psanet import PSANet
from model.pspnet import PSPNet
from model.weights import load_network_weights
from tool import convert
from util.checkpoint import load_checkpoint, save_checkpoint
from util.common import Mistake

MMSEG = {"stem": "deep32", "contract_dilation": True, "align_corners": False, "size_rule": "input"}


@pytest.fixture(scope="module")
def networks():
    return {"semseg": fill_(PSPNet(18, classes=4)), "mmseg": fill_(PSPNet(18, classes=4, **MMSEG)),
            "plain": fill_(PSPNet(18, classes=4, stem="plain"))}  # fmt: skip


def run(*args):
    return convert.main([str(arg) for arg in args])


def content_bytes(path):
    return [(key, tensor.dtype, tensor.numpy().tobytes()) for key, tensor in load_checkpoint(path)["state_dict"].items()]


@pytest.mark.parametrize("name", ["semseg", "mmseg", "plain"])
def test_there_and_back_gives_the_same_bytes_in_the_same_order(tmp_path, networks, name, capsys):
    a, b, c = (tmp_path / f"{x}.pth" for x in "abc")
    save_checkpoint({"epoch": 3, "state_dict": networks[name].state_dict(), "optimizer": {}}, a)
    assert run(a, b, "--to", "mmseg") == 0 and run(b, c) == 0
    assert content_bytes(a) == content_bytes(c)
    assert {key.split(".")[0] for key, *_ in content_bytes(b)} == {"backbone", "decode_head", "auxiliary_head"}
    assert load_checkpoint(c)["epoch"] == 3 and "optimizer" not in load_checkpoint(c)
    out = capsys.readouterr().out
    assert "layers: 18" in out and f"written: {c}, {len(content_bytes(a))} tensors in semseg names" in out


def test_a_converted_file_states_the_config_of_its_weights(tmp_path, networks, capsys):
    theirs, ours = tmp_path / "mmseg.pth", tmp_path / "new/folder/ours.pth"
    own_words = yaml.safe_dump({"TRAIN": MMSEG})
    save_checkpoint({"state_dict": networks["mmseg"].state_dict(), "config": own_words}, tmp_path / "a.pth")
    assert run(tmp_path / "a.pth", theirs, "--to", "mmseg") == 0
    assert "ResNetV1c, depth=18, contract_dilation=True; heads: align_corners=False" in capsys.readouterr().out
    assert run(theirs, ours) == 0
    config = yaml.safe_load(load_checkpoint(ours)["config"])
    assert config == {"DATA": {"classes": 4}, "TRAIN": {"arch": "psp", "layers": 18, **MMSEG}}
    load_network_weights(PSPNet(18, classes=4, **MMSEG), ours, read=load_checkpoint)
    with pytest.raises(Mistake, match="set `align_corners: False`"):
        load_network_weights(PSPNet(18, classes=4, **{**MMSEG, "align_corners": True}), ours, read=load_checkpoint)


def test_meta_is_kept(tmp_path, networks):
    save_checkpoint({"state_dict": networks["mmseg"].state_dict(), "meta": {"CLASSES": ["a", "b"]}}, tmp_path / "a.pth")
    assert run(tmp_path / "a.pth", tmp_path / "b.pth", "--to", "mmseg") == 0
    assert load_checkpoint(tmp_path / "b.pth")["meta"] == {"CLASSES": ["a", "b"]}


def test_a_backbone_goes_to_both_names_without_its_classifier(tmp_path, networks, capsys):
    state = {key: t for key, t in networks["mmseg"].state_dict().items() if key.startswith("layer")}
    torch.save({**state, "fc.bias": torch.ones(2)}, tmp_path / "a.pth")
    assert run(tmp_path / "a.pth", tmp_path / "b.pth", "--to", "mmseg") == 0
    assert "dropped: fc.bias" in capsys.readouterr().out
    names = [key for key, *_ in content_bytes(tmp_path / "b.pth")]
    assert names == [key.replace("layer0", "stem") for key in state]
    assert run(tmp_path / "b.pth", tmp_path / "c.pth") == 0
    assert [key for key, *_ in content_bytes(tmp_path / "c.pth")] == list(state)


def test_what_a_file_lacks_is_listed(tmp_path, networks, capsys):
    state = networks["semseg"].state_dict()
    del state["layer2.0.bn1.weight"], state["aux.4.bias"]
    torch.save(state, tmp_path / "a.pth")
    assert run(tmp_path / "a.pth", tmp_path / "b.pth") == 0
    assert "missing: layer2.0.bn1.weight, aux.4.bias" in capsys.readouterr().out


def test_what_cannot_be_converted_is_refused_and_nothing_is_written(tmp_path, capsys):
    torch.save(PSANet(18, mask_h=5, mask_w=5).state_dict(), tmp_path / "psa.pth")
    torch.save({"other.weight": torch.ones(1)}, tmp_path / "other.pth")
    torch.save({"layer1.0.conv1.weight": torch.ones(1), "layer0.x": torch.ones(1)}, tmp_path / "part.pth")
    torch.save({"state_dict": {"layer1": [1]}}, tmp_path / "list.pth")
    (tmp_path / "page.pth").write_text("key: value")
    (tmp_path / "empty.pth").touch()
    cases = {"psa": "only PSPNets", "other": "not the weights of a ResNet", "gone": "no such checkpoint"}
    cases |= {"part": "not the weights of a whole ResNet", "list": "holds no weights", "page": "", "empty": ""}
    for name, words in cases.items():
        assert run(tmp_path / f"{name}.pth", tmp_path / "out.pth", "--to", "mmseg") == 1
        error = capsys.readouterr().err
        assert f"{name}.pth: " in error and words in error
    assert not (tmp_path / "out.pth").exists()


def test_an_output_that_cannot_be_a_file_is_refused(tmp_path, networks, capsys):
    torch.save(networks["plain"].state_dict(), tmp_path / "a.pth")
    cases = {tmp_path: "is a folder", tmp_path / "a.pth/b/c.pth": "could not be written"}
    cases |= {tmp_path / f"a{suffix}": f"{suffix} is a file that other programs run" for suffix in (".onnx", ".pt2", ".xml")}
    for output, words in cases.items():
        assert run(tmp_path / "a.pth", output) == 1
        assert f"error: {output}: {words}" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]


def test_the_depth_that_shapes_do_not_tell_stays_what_the_file_states(eighth, tmp_path):
    pytest.importorskip("segmentation_models_pytorch")
    from model.smp import SMPPSPNet

    config = yaml.safe_dump({"TRAIN": {"arch": "smp_pspnet", "layers": 101}})
    save_checkpoint({"state_dict": SMPPSPNet(101, 0.1, 3).state_dict(), "config": config}, tmp_path / "a.pth")
    assert run(tmp_path / "a.pth", tmp_path / "b.pth") == 0
    assert yaml.safe_load(load_checkpoint(tmp_path / "b.pth")["config"])["TRAIN"]["layers"] == 101
