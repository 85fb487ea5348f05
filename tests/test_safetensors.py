"""Weights in safetensors files: the same bytes as in a checkpoint, with what describes them; read wherever weights are."""

import json
import sys

import pytest
import torch
import yaml
from golden_rules import fill_
from processes import CONFIG, small_training

from model.psanet import PSANet
from model.pspnet import PSPNet
from model.resnet import ResNet
from model.weights import load_backbone, load_network_weights
from tool import convert, test, train
from util.checkpoint import load_checkpoint, save_checkpoint, save_safetensors
from util.common import Mistake
from util.inference import Predictor

safetensors = pytest.importorskip("safetensors.torch", reason="pip install safetensors")
pytestmark = pytest.mark.usefixtures("eighth")

MMSEG = {"stem": "deep32", "contract_dilation": True, "align_corners": False, "size_rule": "input"}
NAMES, PALETTE = [*"abcdefgh", "Stra\u00dfe"], [[i, 0, 255 - i] for i in range(9)]
CONFIG_TEXT = yaml.safe_dump({"DATA": {"classes": 9}, "TRAIN": {"train_h": 33}, "TEST": {"base_size": 64, "names_path": None}})


def run(*args):
    return convert.main([str(arg) for arg in args])


def tensors(path):
    return [(key, t.dtype, t.shape, t.contiguous().numpy().tobytes()) for key, t in load_checkpoint(path)["state_dict"].items()]


def refusal(function, *args, **more):
    with pytest.raises(Mistake) as caught:
        function(*args, **more)
    return str(caught.value)


@pytest.fixture(scope="module")
def checkpoint(eighth, tmp_path_factory):
    """A checkpoint as a run writes it, and the same weights in a safetensors file."""
    folder = tmp_path_factory.mktemp("checkpoint")
    content = {"epoch": 3, "state_dict": fill_(PSPNet(18, classes=9)).state_dict(), "config": CONFIG_TEXT}
    save_checkpoint(content | {"names": NAMES, "palette": PALETTE, "optimizer": {"state": {}}}, folder / "a.pth")
    assert run(folder / "a.pth", folder / "a.safetensors") == 0
    return folder / "a.safetensors"


# ---- there and back ----


@pytest.mark.parametrize("shape", [{}, MMSEG, {"stem": "plain"}], ids=["semseg", "mmseg", "plain"])
@pytest.mark.parametrize("names", ["semseg", "mmseg"])
def test_there_and_back_gives_the_same_bytes_in_the_same_order(tmp_path, shape, names, capsys):
    a, b, c = tmp_path / "a.pth", tmp_path / "b.safetensors", tmp_path / "c.pth"
    state = fill_(PSPNet(18, classes=4, **shape)).state_dict()
    state["layer0.1.num_batches_tracked"] += 2**40 + 1  # no float32 has it
    save_checkpoint({"epoch": 3, "state_dict": state}, a)
    assert run(a, b, "--to", names) == 0 and run(b, c) == 0
    assert tensors(a) == tensors(c) and len(tensors(a)) == len(state)
    assert sorted(safetensors.load_file(b)) == sorted(load_checkpoint(b)["state_dict"])
    assert any(key.startswith("decode_head.") for key in load_checkpoint(b)["state_dict"]) == (names == "mmseg")
    assert f"written: {b}, {len(state)} tensors in {names} names" in capsys.readouterr().out


def test_what_describes_the_weights_comes_back_and_the_optimizer_stays_behind(checkpoint, tmp_path):
    content = load_checkpoint(checkpoint)
    assert content.keys() == {"epoch", "names", "palette", "config", "state_dict"}
    assert (content["epoch"], content["names"], content["palette"]) == (3, NAMES, PALETTE)
    config = yaml.safe_load(content["config"])
    assert config["TEST"] == {"base_size": 64, "names_path": None} and config["DATA"] == {"classes": 9}
    assert config["TRAIN"].items() >= {"train_h": 33, "layers": 18, "stem": "deep", "align_corners": True}.items()
    assert run(checkpoint, tmp_path / "b.pth") == 0
    again = load_checkpoint(tmp_path / "b.pth")
    assert again.keys() == content.keys()
    assert all(again[key] == content[key] for key in ("epoch", "names", "palette", "config"))


def test_the_metadata_are_texts_under_the_keys_that_the_readme_names(checkpoint):
    with sys.modules["safetensors"].safe_open(checkpoint, "pt") as file:
        metadata = file.metadata()
    assert sorted(metadata) == ["config", "crc32", "epoch", "format", "names", "order", "palette"]
    assert metadata["format"] == "pt" and json.loads(metadata["palette"]) == PALETTE


def test_tied_transposed_expanded_and_half_tensors_keep_their_values(tmp_path):
    tied = torch.arange(6.0).reshape(2, 3)
    last = torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last)
    state = {"b": tied, "a": tied, "part": tied[1], "t": tied.t(), "last": last}
    state |= {"same": torch.ones(1).expand(5), "half": tied.bfloat16(), "fp16": tied.half(), "none": torch.ones(0, 3)}
    state |= {"count": torch.tensor(2**62 + 1), "grad": torch.nn.Parameter(tied * 2)}
    save_safetensors({"state_dict": state, "config": ""}, tmp_path / "a.safetensors")
    back = load_checkpoint(tmp_path / "a.safetensors")["state_dict"]
    assert list(back) == list(state)
    assert all(torch.equal(back[key], t) and back[key].dtype == t.dtype for key, t in state.items())


def test_a_psanet_keeps_its_config(tmp_path):
    config = yaml.safe_dump({"TRAIN": {"arch": "psa", "mask_h": 5, "mask_w": 5}})
    net = fill_(PSANet(18, classes=4, mask_h=5, mask_w=5))
    save_checkpoint({"state_dict": net.state_dict(), "config": config}, tmp_path / "a.pth")
    assert run(tmp_path / "a.pth", tmp_path / "b.safetensors") == 0
    assert yaml.safe_load(load_checkpoint(tmp_path / "b.safetensors")["config"])["TRAIN"]["mask_h"] == 5
    load_network_weights(PSANet(18, classes=4, mask_h=5, mask_w=5), tmp_path / "b.safetensors", read=load_checkpoint)


def test_a_file_of_another_program_gives_its_weights(tmp_path):
    theirs = fill_(ResNet(18, stem="plain")).state_dict()
    state = {"conv1.weight": theirs.pop("layer0.0.weight")}
    state |= {key.replace("layer0.1.", "bn1."): t for key, t in theirs.items()}
    safetensors.save_file(state, tmp_path / "timm.safetensors", {"config": "{", "names": "not JSON"})
    assert load_checkpoint(tmp_path / "timm.safetensors").keys() == {"state_dict"}
    net = ResNet(18, stem="plain", contract_dilation=True)
    assert load_backbone(net, tmp_path / "timm.safetensors", read=load_checkpoint).format == "torchvision"
    assert torch.equal(net.layer0[0].weight, state["conv1.weight"])


# ---- the programs ----


def test_training_starts_from_it_and_does_not_resume_from_it(checkpoint, toy, tmp_path, capsys):
    options = [*small_training(toy, max_iter=1, check_data=False), "save_path", str(tmp_path)]
    assert train.main(["--config", CONFIG, *options, "weight", str(checkpoint), "evaluate", "False"]) == 0
    assert f"Weights {checkpoint}:\nformat: semseg" in capsys.readouterr().out
    assert train.main(["--config", CONFIG, *options, "initmodel", str(checkpoint), "evaluate", "False"]) == 0
    assert f"Backbone {checkpoint}:\nformat: semseg" in capsys.readouterr().out
    assert train.main(["--config", CONFIG, *options, "resume", str(checkpoint)]) == 1
    assert "(it has no state and no optimizer), so no run can resume from it; give the file as" in capsys.readouterr().err


def test_the_test_and_the_predictor_give_with_it_what_they_give_with_the_checkpoint(checkpoint, toy, tmp_path):
    image, pictures, ids = next((toy / "image/val").glob("*")), [], []
    for model in (checkpoint, checkpoint.with_suffix(".pth")):
        out = tmp_path / model.suffix
        options = [*small_training(toy), "model_path", str(model), "save_folder", str(out), "index_step", "1"]
        assert test.main(["--config", CONFIG, *options]) == 0
        pictures.append([path.read_bytes() for path in sorted(out.rglob("*.png"))])
        ids.append(Predictor(model, config=CONFIG, test_h=33, test_w=33, base_size=64)(image))
    assert len(pictures[0]) == 2 and pictures[0] == pictures[1] and (ids[0] == ids[1]).all()


def test_it_is_enough_for_a_prediction_if_the_checkpoint_was(tmp_path):
    config = {"DATA": {"data_root": "d", "classes": 9}, "TRAIN": {"layers": 18, "save_path": "s", "train_h": 33, "train_w": 33}}
    content = {"state_dict": fill_(PSPNet(18, classes=9)).state_dict(), "config": yaml.safe_dump(config)}
    save_checkpoint(content | {"names": NAMES, "palette": PALETTE}, tmp_path / "a.pth")
    assert run(tmp_path / "a.pth", tmp_path / "a.safetensors") == 0
    predictor = Predictor(tmp_path / "a.safetensors")
    assert list(predictor.names) == NAMES and predictor.palette.tolist() == PALETTE
    image = (torch.arange(40 * 50 * 3) % 251).byte().reshape(40, 50, 3).numpy()
    assert (predictor(image) == Predictor(tmp_path / "a.pth")(image)).all()


# ---- what is refused ----


def test_weights_with_nan_are_refused(tmp_path):
    state = PSPNet(18, classes=4).state_dict()
    state["cls.4.bias"][1] = torch.nan
    save_safetensors({"state_dict": state, "config": ""}, tmp_path / "a.safetensors")
    text = refusal(load_network_weights, PSPNet(18, classes=4), tmp_path / "a.safetensors", read=load_checkpoint)
    assert f"{tmp_path / 'a.safetensors'}: unusable weights: cls.4.bias has nan" in text


def small_file(path):
    save_safetensors({"epoch": 3, "state_dict": {"b": torch.arange(6.0), "a": torch.tensor(3)}, "config": "TRAIN: {}"}, path)
    return path.read_bytes()


def test_a_cut_file_is_refused_wherever_it_was_cut(tmp_path):
    path = tmp_path / "a.safetensors"
    data = small_file(path)
    for length in range(len(data)):
        path.write_bytes(data[:length])
        assert refusal(load_checkpoint, path).startswith(f"{path}: damaged, not a readable safetensors file (")


def test_a_changed_byte_anywhere_is_noticed(tmp_path):
    path = tmp_path / "a.safetensors"
    data = small_file(path)
    header = data[: 8 + int.from_bytes(data[:8], "little")].rstrip()  # spaces fill it up
    for place in [*range(len(header)), *range(len(data) - 32, len(data))]:
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        assert str(path) in refusal(load_checkpoint, path), place


@pytest.mark.parametrize("header", [
    {"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]}},
    {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 2**63]}},
    {"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}},
    {"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}},
    {"a": {"dtype": "X", "shape": [1], "data_offsets": [0, 4]}},
    {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "__metadata__": {"crc32": "0"}},
    {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "__metadata__": {"crc32": 0}},
    {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "b": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}},
    [], "text", None,
])  # fmt: skip
def test_a_header_that_lies_is_refused(header, tmp_path):
    text = json.dumps(header).encode()
    (tmp_path / "a.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
    assert f"{tmp_path / 'a.safetensors'}: damaged" in refusal(load_checkpoint, tmp_path / "a.safetensors")


@pytest.mark.parametrize("content", [b"", b"x", b"\xff" * 99, (2**62).to_bytes(8, "little") + b"{}", b"PK\x03\x04" + bytes(99)])
def test_another_kind_of_file_is_refused(content, tmp_path, capsys):
    (tmp_path / "a.safetensors").write_bytes(content)
    assert run(tmp_path / "a.safetensors", tmp_path / "b.pth") == 1
    assert f"error: {tmp_path / 'a.safetensors'}: damaged, not a readable safetensors file" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize("content", [
    {"state_dict": {"a": torch.ones(1, dtype=torch.complex128)}},
    {"state_dict": {"a": torch.ones(1, device="meta")}},
    {"state_dict": {"\ud800": torch.ones(1)}},
    {"state_dict": {}, "meta": {"a": torch.ones(1)}},
    {"state_dict": {}, "meta": {(1, 2): 3}},
])  # fmt: skip
def test_what_the_format_cannot_hold_is_refused_and_nothing_is_written(content, tmp_path):
    path = tmp_path / "a.safetensors"
    assert f"{path}: a safetensors file cannot hold this (" in refusal(save_safetensors, content | {"config": ""}, path)
    assert not list(tmp_path.iterdir())


def test_without_the_package_the_remedy_is_named(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    assert "a.safetensors: needs the package safetensors: pip install safetensors" in refusal(load_checkpoint, checkpoint)
    with pytest.raises(Mistake, match="pip install safetensors"):
        save_safetensors({"state_dict": {}, "config": ""}, tmp_path / "b.safetensors")
    assert not list(tmp_path.iterdir())
