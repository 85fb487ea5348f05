"""tool/export.py and what runs its files: each network and format, the comparison, the programs, bad input."""

import json
import os
import pickle
import re
import resource
import shutil
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.metadata import version

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from model.exported import KEYS, Exported, Window, write_exported
from model.fold import fold_batchnorm
from model.psanet import PSANet
from model.pspnet import PSPNet
from model.smp import SMPPSPNet
from tool import benchmark, demo, export, test
from util.checkpoint import load_checkpoint, save_checkpoint
from util.common import Mistake
from util.config import ROOT, dump_config, load_config
from util.inference import Predictor, _window_logits
from util.log import git_revision
from util.transform import MEAN, STD

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")
pytestmark = pytest.mark.usefixtures("narrow")
NAMES = ["road", "sky", "traffic light"]
COLORS = [[128, 64, 128], [0, 0, 255], [255, 255, 0]]
META = {"config": "é: 1\n", "names": NAMES, "palette": COLORS, "mean": [*MEAN], "std": [*STD], "epoch": None, "revision": "abc"}


def trained(build):
    """What `build` makes, with BatchNorms that do something and logits that differ, in eval mode; always the same network:
    of random weights some make larger logits than a difference of 1e-4 can be held for."""
    torch.manual_seed(1)
    network, generator = build(), torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor, low in ((module.running_mean, -0.2), (module.running_var, 0.3), (module.weight.data, 0.5)):
                tensor.copy_(low + torch.rand(tensor.shape, generator=generator))
    last = network.eval().classifiers()[0]
    with torch.no_grad():
        last.weight.mul_(20)
        last.bias.sub_(network(torch.randn(2, 3, *SIZE, generator=generator)).mean((0, 2, 3)))
    return network


SIZE = (50, 66)  # features of 8 x 10 or, for PSANet, 9 x 11, which cells of 3 and 6 do not divide; of 7 x 9 without padding
MMSEG = {"align_corners": False, "size_rule": "input", "contract_dilation": True}
NETWORKS = {
    "pyramid, mmseg's": lambda: PSPNet(18, classes=3, stem="deep32", **MMSEG),
    "pyramid, plain stem, logits of half the size": lambda: PSPNet(18, classes=3, stem="plain", zoom_factor=4),
    "collected, logits of a quarter": lambda: PSANet(18, classes=3, psa_type=0, mask_h=9, mask_w=11, zoom_factor=2),
    "distributed, small masks, logits of an eighth": lambda: PSANet(
        18, classes=3, psa_type=1, mask_h=3, mask_w=5, psa_softmax=False, normalization_factor=None, zoom_factor=1
    ),
    "both, mmseg's": lambda: PSANet(18, classes=3, mask_h=7, mask_w=9, **MMSEG),
    "compact": lambda: PSANet(18, classes=3, compact=True, mask_h=5, mask_w=6),
    "segmentation_models_pytorch": lambda: SMPPSPNet(18, 0.1, 3),
}


class Several(torch.nn.Module):
    """Logits of several networks, one after the other: exported as one graph, they take less time."""

    def __init__(self, networks):
        super().__init__()
        self.networks = torch.nn.ModuleList(map(Window, networks))

    def forward(self, image):
        return torch.cat([network(image) for network in self.networks], 1)


def largest_difference(network, found, size):
    """Of the logits of one, two (an image and its mirror image) and three windows, from two functions."""
    generator, differences = torch.Generator().manual_seed(1), []
    one, three = (torch.randn(n, 3, *size, generator=generator) for n in (1, 3))
    for windows in (one, torch.cat([one, one.flip(3)]), three):
        with torch.no_grad():
            expected = _window_logits(network, 3, windows)
        logits = found(windows)
        assert logits.dtype == torch.float32 and logits.shape == expected.shape and expected.std() > 0.05
        differences.append((logits - expected).abs().max().item())
    return max(differences)


@pytest.fixture(scope="module")
def several(narrow, tmp_path_factory):
    """Each network, and the one ONNX file of all."""
    pytest.importorskip("segmentation_models_pytorch")
    networks = {name: trained(build) for name, build in NETWORKS.items()}
    path = tmp_path_factory.mktemp("several") / "a.onnx"
    write_exported(path, Several(map(fold_batchnorm, networks.values())), {**META, "size": SIZE})
    return networks, path


@pytest.mark.parametrize("name", NETWORKS)
def test_onnx_gives_the_logits_of_the_network(several, name):
    networks, path = several
    first, exported = 3 * list(NETWORKS).index(name), Exported(path)
    assert largest_difference(networks[name], lambda x: exported(x)[:, first : first + 3], SIZE) < 1e-4


def test_graph_has_no_batchnorm(several):
    graph = onnx.load(several[1])
    assert graph.opset_import[0].version >= 17 and "BatchNormalization" not in {node.op_type for node in graph.graph.node}


@pytest.mark.parametrize("suffix", [".pt2", ".xml"])
def test_other_formats_give_the_logits_of_the_network_and_what_belongs_to_it(suffix, tmp_path):
    if suffix == ".xml":
        pytest.importorskip("openvino")
    network, size = trained(lambda: PSANet(18, classes=3, mask_h=5, mask_w=5)), [49, 57]
    write_exported(tmp_path / f"a{suffix}", fold_batchnorm(network), {**META, "size": size})
    exported = Exported(tmp_path / f"a{suffix}")
    assert largest_difference(network, exported, size) < 1e-4
    assert {key: getattr(exported, key) for key in KEYS} == {**META, "size": size, "version": "1"}
    windows = [torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(seed)) for seed in range(12)]
    alone = [exported(window) for window in windows]
    assert torch.equal(pickle.loads(pickle.dumps(exported))(windows[0]), alone[0])
    with ThreadPoolExecutor(4) as pool:
        assert all(map(torch.equal, pool.map(exported, windows), alone))
    if suffix == ".xml":
        (tmp_path / "a.bin").write_bytes((tmp_path / "a.bin").read_bytes()[:1000])
        assert_refused(tmp_path / "a.xml", r"damaged, or not a file of this format \(Incorrect weights in bin file!\)")
        (tmp_path / "a.bin").unlink()
        assert_refused(tmp_path / "a.xml", "its weights are missing, .*a.bin; copy both files")
    else:
        whole = (tmp_path / "a.pt2").read_bytes()
        for damaged in (whole[:3000], whole[:40000] + b"12345678" + whole[40008:], b"no zip"):
            (tmp_path / "a.pt2").write_bytes(damaged)
            assert_refused(tmp_path / "a.pt2", "damaged")


def files(folder):
    return [path.name for path in folder.iterdir()]


def assert_refused(path, message):
    with pytest.raises(Mistake, match=f"^{re.escape(str(path))}: {message}"):
        Exported(path)


# ---- the programs ----


@pytest.fixture(scope="module")
def project(narrow, tmp_path_factory):
    """Three little images with labels, and the checkpoint of a run, which carries its config."""
    root = tmp_path_factory.mktemp("project")
    rng = np.random.default_rng(0)
    for name in "123":
        Image.fromarray(rng.integers(0, 256, (40, 57, 3), np.uint8)).save(root / f"{name}.png")
        Image.fromarray(rng.choice(np.uint8([0, 1, 2, 255]), (40, 57))).save(root / f"{name}_label.png")
    (root / "val.txt").write_text("".join(f"{name}.png {name}_label.png\n" for name in "123"))
    config = {
        "DATA": {"data_root": str(root), "classes": 3, "val_list": str(root / "val.txt")},
        "TRAIN": {"layers": 18, "initmodel": None, "train_h": 41, "train_w": 49, "save_path": str(root), "precision": "bf16"},
        "TEST": {"test_list": str(root / "val.txt"), "scales": [0.8, 1.25], "test_h": 33, "test_w": 41},
    }
    (root / "config.yaml").write_text(yaml.safe_dump(config))
    state = trained(lambda: PSPNet(18, classes=3)).state_dict()
    content = {"epoch": 7, "state_dict": state, "config": dump_config(load_config(root / "config.yaml"))}
    save_checkpoint({**content, "names": NAMES, "palette": COLORS}, root / "a.pth")
    return root


@pytest.fixture(scope="module")
def written(project):
    """The ONNX file of that checkpoint."""
    assert run(project, "--out", project / "out/a.onnx") == 0
    return project / "out/a.onnx"


def run(project, *options):
    return export.main(["--model", str(project / "a.pth"), *map(str, options)])


def test_file_holds_what_is_needed_to_predict_with_it(written, project):
    assert files(written.parent) == ["a.onnx"]
    session = __import__("onnxruntime").InferenceSession(written)
    assert [(i.name, i.shape, i.type) for i in session.get_inputs()] == [("image", ["batch", 3, 33, 41], "tensor(float)")]
    assert [(o.name, o.shape) for o in session.get_outputs()] == [("logits", ["batch", 3, 33, 41])]
    exported = Exported(written)
    assert (exported.names, exported.palette, exported.size, exported.epoch) == (NAMES, COLORS, [33, 41], 7)
    assert (exported.mean, exported.std, exported.revision) == ([*MEAN], [*STD], git_revision())
    config = yaml.safe_load(exported.config)
    assert config["TEST"]["scales"] == [0.8, 1.25] and config["TRAIN"]["precision"] == "fp32"


def test_export_reports_logits_pixels_and_scores(written, project, monkeypatch, capsys):
    monkeypatch.setattr(export, "write_exported", lambda path, *_: shutil.copy(written, path))
    assert run(project, "--out", project / "again/a.onnx") == 0
    said = capsys.readouterr().out
    assert re.search(r"random windows, 1, 2 and 3 at once: logits of up to \d[\d.]* differ by at most \d\.\de-0[5-9]\n", said)
    assert f"3 of the 3 images in {project}/val.txt: logits of each one's first windows differ by at most" in said
    ours, theirs = re.search(r"mIoU: (0\.\d+) of the network, (0\.\d+) of the file\n", said).groups()
    assert ours == theirs and "100.0000% of the pixels are equal" in said
    assert said.endswith(f"written: {project}/again/a.onnx, onnx, windows of 33 x 41, 3 classes\n")

    result = project / "scores"
    assert test.main([str(project / "a.pth"), "precision", "fp32", "save_folder", str(result)]) == 0
    assert f"{json.loads((result / 'result.json').read_text())['mIoU']:.6f}" == ours
    assert run(project, "--out", project / "again/a.onnx", "--images", 2, "flip", False) == 0
    assert "2 of the 3 images in" in capsys.readouterr().out


def test_programs_predict_with_the_file_as_with_the_network(written, project, tmp_path):
    common = ["test_list", str(project / "val.txt"), "precision", "fp32"]
    assert test.main([str(project / "a.pth"), *common, "save_folder", str(tmp_path / "network")]) == 0
    assert test.main([str(written), *common, "save_folder", str(tmp_path / "file")]) == 0
    config = ["--config", str(project / "config.yaml"), "--model", str(written)]
    assert test.main([*config, *common, "save_folder", str(tmp_path / "config")]) == 0
    assert demo.main(["--model", str(written), "--image", str(project / "1.png"), "--out", str(tmp_path / "demo")]) == 0
    predictor = Predictor(written)
    for name in "123":
        network = np.asarray(Image.open(tmp_path / f"network/gray/{name}.png"))
        assert len(np.unique(network)) > 1
        assert np.array_equal(Image.open(tmp_path / f"file/gray/{name}.png"), network)
        assert np.array_equal(Image.open(tmp_path / f"config/gray/{name}.png"), network)
        assert np.array_equal(predictor(project / f"{name}.png"), network)
    assert np.array_equal(Image.open(tmp_path / "demo/1_gray.png"), Image.open(tmp_path / "network/gray/1.png"))
    scores = [json.loads((tmp_path / f"{kind}/result.json").read_text()) for kind in ("network", "file")]
    assert scores[0]["mIoU"] == scores[1]["mIoU"] and scores[1]["classes"][2]["name"] == "traffic light"
    assert scores[1]["protocol"]["checkpoint"].endswith("a.onnx") and scores[1]["protocol"]["epoch"] == 7


def test_code_of_the_documentation_runs(written, project, tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/export.md").read_text(), re.DOTALL)
    shutil.copy(written, tmp_path / "street.onnx")
    Image.open(project / "1.png").resize((41, 33)).save(tmp_path / "street.png")
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(code, names)
    expected = Predictor(written, flip=False, scales=(1.0,))(tmp_path / "street.png")
    assert np.array_equal(names["ids"], expected) and names["names"] == NAMES


# ---- what must not pass ----


def tamper(path):
    """Change one number of the last layer, as a faulty exporter might."""
    model = onnx.load(path)
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == "network.cls.4.bias")
    bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + np.float32([0, 0.5, 0]), bias.name))
    onnx.save(model, path)


@pytest.mark.parametrize("sound, message", [
    (1, "not written, since its logits are not those of the network: nan"),
    (3, "1.png: the network's output is NaN or infinite"),
])  # fmt: skip
def test_a_file_that_makes_nan_of_some_windows_is_not_written(written, project, tmp_path, sound, message, monkeypatch, capsys):
    calls = []

    def run_file(exported, windows):
        calls.append(1)
        return call(exported, windows) * (1 if len(calls) <= sound else torch.nan)

    call = Exported.__call__
    monkeypatch.setattr(Exported, "__call__", run_file)
    monkeypatch.setattr(export, "write_exported", lambda path, *_: shutil.copy(written, path))
    assert run(project, "--out", tmp_path / "a.onnx") == 1
    assert message in capsys.readouterr().err and files(tmp_path) == []


@pytest.mark.parametrize("tolerance, message", [(1e-4, "its logits are not those of the network"), (9, "its mIoU differs")])
def test_a_file_that_is_not_the_network_is_not_written(written, project, tmp_path, tolerance, message, monkeypatch, capsys):
    def write_another(path, *_):
        shutil.copy(written, path)
        tamper(path)

    monkeypatch.setattr(export, "write_exported", write_another)
    monkeypatch.setattr(export, "LOGITS", tolerance)
    out = tmp_path / "a.onnx"
    out.write_text("earlier")
    assert run(project, "--out", out) == 1
    assert f"error: {out}: not written, since {message}" in capsys.readouterr().err
    assert files(tmp_path) == ["a.onnx"] and out.read_text() == "earlier"


def test_a_failed_export_leaves_nothing(project, tmp_path, monkeypatch):
    def fail(path, *_):
        path.write_text("half")
        raise RuntimeError("of the exporter")

    monkeypatch.setattr(export, "write_exported", fail)
    with pytest.raises(RuntimeError, match="of the exporter"):
        run(project, "--out", tmp_path / "a.onnx")
    assert not files(tmp_path)


def test_an_export_that_is_ended_by_sigterm_leaves_nothing(project, tmp_path, monkeypatch, capsys):
    def end(path, *_):
        path.write_text("half")
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(export, "write_exported", end)
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert run(project, "--out", tmp_path / "a.onnx") == 130
    finally:
        signal.signal(signal.SIGTERM, before)
    assert "interrupted" in capsys.readouterr().err and not files(tmp_path)


@pytest.mark.parametrize(
    "options, message",
    [
        (["--out", "a.xml"], "--out a.xml: the name of a file of --format onnx ends with .onnx"),
        (["--out", "a.onnx", "--model", "https://h/a.onnx"], "--model https://h/a.onnx: expected a checkpoint"),
        (["--out", "a.onnx", "--model", "a.onnx"], "--model a.onnx: expected a checkpoint, such as"),
        (["--out", "a.onnx", "--model", "https://127.0.0.1/a.pth"], "https://127.0.0.1/a.pth: the checksum is missing"),
        (["--out", "a.onnx", "--model", "exp/no.pth"], f"{ROOT}/exp/no.pth: no such checkpoint"),
        (["--out", "a.onnx", "val_list", "/no.txt"], "DATA.val_list: /no.txt does not exist, and the mIoU of the exported file "
         "cannot be compared without it; give `val_list PATH`, or --images 0 to compare logits of random windows alone"),
        (["--out", "a.onnx", "val_list", "/" + 300 * "n"], "does not exist, and the mIoU of the exported file"),
        (["--out", 300 * "n" + ".onnx"], "the name is longer than the 255 bytes that a file's may have"),
        (["--out", "a.onnx", "test_mode", "whole", "average", "logit"], "a.onnx: takes windows of 33 x 41, not 32 x 46: "),
        (["--out", "a.onnx", "arch", "psa"], "TRAIN.train_h: 41 is not of the form 16n+1"),
    ],
)  # fmt: skip
def test_mistakes_are_found_before_the_export(project, tmp_path, options, message, monkeypatch, capsys):
    monkeypatch.setattr(export, "write_exported", None)
    monkeypatch.chdir(tmp_path)
    assert run(project, *options) == 1
    assert message in capsys.readouterr().err and not files(tmp_path)


def test_files_of_something_else_are_not_replaced_by_the_weights_of_openvino(project, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(export, "write_exported", None)
    words = "--format", "openvino", "--out", tmp_path / "a.xml", "--images", 0
    (tmp_path / "a.bin").write_text("precious")
    assert run(project, *words) == 1
    assert f"would replace {tmp_path}/a.bin, which belongs to no a.xml" in capsys.readouterr().err
    assert (tmp_path / "a.bin").read_text() == "precious"
    (tmp_path / "a.bin").unlink()
    (tmp_path / "a.bin").mkdir()
    assert run(project, *words) == 1
    assert f"--out {tmp_path}/a.bin: is a folder" in capsys.readouterr().err


def test_a_name_that_is_taken_while_the_export_runs_is_named(written, project, tmp_path, monkeypatch, capsys):
    def write_and_take(path, *_):
        shutil.copy(written, path)
        (tmp_path / "a.onnx/b").mkdir(parents=True)

    monkeypatch.setattr(export, "write_exported", write_and_take)
    assert run(project, "--out", tmp_path / "a.onnx", "--images", 0) == 1
    assert f"error: --out {tmp_path}/a.onnx: a.onnx cannot be written" in capsys.readouterr().err


def test_a_size_that_the_network_refuses_is_found_before_the_export(project, tmp_path, monkeypatch, capsys):
    sizes = {"arch": "psa", "compact": True, "mask_h": 3, "mask_w": 4, "train_h": 33, "train_w": 49}
    config = yaml.safe_load((project / "config.yaml").read_text()) | {"TEST": {}}
    config["TRAIN"] |= sizes
    (tmp_path / "psa.yaml").write_text(yaml.safe_dump(config))
    network = PSANet(18, classes=3, compact=True, mask_h=3, mask_w=4)
    save_checkpoint({"state_dict": network.state_dict()}, tmp_path / "psa.pth")
    monkeypatch.setattr(export, "write_exported", None)
    options = ["--model", str(tmp_path / "psa.pth"), "--config", str(tmp_path / "psa.yaml"), "--out", str(tmp_path / "a.onnx")]
    assert export.main([*options, "--size", "65x65"]) == 1
    assert "error: compact: needs mask_h x mask_w = 5 x 5" in capsys.readouterr().err and not (tmp_path / "a.onnx").exists()


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named(written, project, tmp_path, package, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, package, None)
    if package == "onnxruntime":
        assert test.main([str(written), "save_folder", str(tmp_path / "scores")]) == 1
    else:
        assert run(project, "--out", tmp_path / "a.onnx", "--images", 0) == 1
    assert f": needs a package that cannot be imported (import of {package} halted" in (said := capsys.readouterr().err)
    assert said.endswith(f"pip install {package}\n") and not files(tmp_path)


def test_files_that_are_cut_or_foreign_are_named(written, tmp_path, capsys):
    whole = written.read_bytes()
    path = tmp_path / "a.onnx"
    for cut in (0, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        assert_refused(path, "")
    foreign = onnx.load(written)
    del foreign.metadata_props[:]
    onnx.save(foreign, path)
    assert_refused(path, "was not written by tool/export.py: it has no version, config, names")
    onnx.helper.set_model_props(foreign, dict.fromkeys(KEYS, "2"))
    onnx.save(foreign, path)
    assert_refused(path, "version 2 of the format, and this program reads 1; export it again")
    assert_refused(tmp_path / "b.onnx", "no such file")
    path.write_text("no graph")
    assert test.main([str(path)]) == 1 and f"error: {path}: damaged, or not" in capsys.readouterr().err


@pytest.mark.parametrize("key, value", [("names", "{"), ("names", "3"), ("size", "[0, 41]"), ("size", "[33]"), ("size", "33")])
def test_a_file_that_says_nonsense_about_itself_is_refused(written, tmp_path, key, value):
    model = onnx.load(written)
    next(entry for entry in model.metadata_props if entry.key == key).value = value
    onnx.save(model, tmp_path / "a.onnx")
    assert_refused(tmp_path / "a.onnx", "what it says about itself is damaged; export it again")


@pytest.mark.parametrize("form", ["onnx", "pt2", "openvino"])
def test_a_disk_that_is_full_ends_an_export_with_a_message(project, tmp_path, form, monkeypatch, capsys):
    if form == "openvino":
        pytest.importorskip("openvino")
    network = torch.nn.Conv2d(3, 3, 9).eval()  # of 3 kB of weights
    suffix = {"onnx": ".onnx", "pt2": ".pt2", "openvino": ".xml"}[form]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def write_on_a_full_disk(path, _, meta):
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # then a write fails
        try:
            write_exported(path, network, meta)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    monkeypatch.setattr(export, "write_exported", write_on_a_full_disk)
    assert run(project, "--format", form, "--out", tmp_path / f"a{suffix}", "--images", 0) == 1
    assert re.search(rf"^error: .*/a{suffix}: could not be written \(.*\); is the disk full\?$", capsys.readouterr().err, re.M)
    assert not files(tmp_path)


def test_a_config_that_does_not_fit_the_file_is_refused(written, project, tmp_path):
    exported, cfg = Exported(written), replace(load_config(project / "config.yaml"), precision="fp32")
    exported.check_config(cfg)
    with pytest.raises(Mistake, match=r"test_h, TEST.test_w: 33 x 49, but .* takes windows of 33 x 41; set them to 33 and 41"):
        exported.check_config(replace(cfg, test_w=None))
    with pytest.raises(Mistake, match=r"DATA.classes: 4, but .*a.onnx has 3"):
        exported.check_config(replace(cfg, classes=4))
    with pytest.raises(Mistake, match=r"TRAIN.precision: bf16, but .*a.onnx computes in fp32"):
        exported.check_config(replace(cfg, precision="bf16"))


def test_an_ensemble_has_one_protocol_which_must_fit_each_network(written, project):
    image = project / "1.png"
    both = Predictor([project / "a.pth", written], precision="fp32")
    assert np.array_equal(both(image), Predictor(project / "a.pth", precision="fp32")(image))
    with pytest.raises(Mistake, match=r"test_h, TEST.test_w: 41 x 41, but .* takes windows of 33 x 41"):
        Predictor([project / "a.pth", written], test_h=41)
    content = load_checkpoint(project / "a.pth")
    content["config"] = content["config"].replace("test_h: 33", "test_h: null")  # then train_h, 41
    with pytest.raises(Mistake, match=r"test_h, TEST.test_w: 41 x 41, but .* takes windows of 33 x 41"):
        Predictor([content, written])


def test_whole_images_must_have_the_size_of_the_file(written, project):
    image = np.zeros((33, 41, 3), np.uint8)
    whole = Predictor(written, test_mode="whole", scales=(1.0,))
    assert np.array_equal(whole(image), Predictor(written, scales=(1.0,))(image))
    with pytest.raises(Mistake, match="takes windows of 33 x 41, not 40 x 57: test_mode whole"):
        whole(project / "1.png")


def test_window_resizes_logits_as_the_engine_does():
    coarse = lambda x: x[:, :, ::4, ::4]
    x = torch.randn(1, 3, 33, 41)
    expected = torch.nn.functional.interpolate(x[:, :, ::4, ::4], (33, 41), mode="bilinear", align_corners=True)
    assert torch.equal(Window(coarse)(x), expected) and torch.equal(Window(lambda x: x)(x), x)


def test_benchmark_times_each_runtime(monkeypatch, capsys):
    monkeypatch.setattr(torch, "compile", lambda network: network)
    monkeypatch.setattr(benchmark, "write_exported", lambda *_: None)
    monkeypatch.setattr(benchmark, "Exported", lambda path: lambda image: image)
    assert benchmark.main(["exported", "--quick"]) == 0
    said = capsys.readouterr().out
    for name in ("torch.compile", f"ONNX Runtime {version('onnxruntime')}", f"OpenVINO {version('openvino')}"):
        assert re.search(rf"\n\| PSPNet18, .* \| PyTorch \| [^|]+ \| [^|]+ \| {re.escape(name)} \|", said)


def test_auto_precision_is_that_of_the_file(written, project, tmp_path, monkeypatch):
    monkeypatch.setattr("util.precision.native_precision", lambda device: "bf16")
    exported, cfg = Exported(written), replace(load_config(project / "config.yaml"), precision="auto")
    exported.check_config(cfg)
    assert Predictor(written).precision.label == "fp32 (auto)" and Predictor(project / "a.pth").precision.label == "bf16 (auto)"
    assert Predictor([project / "a.pth", written]).precision.name == "fp32"
    words = ["--config", str(project / "config.yaml"), "--model", str(written), "precision", "auto"]
    assert test.main([*words, "save_folder", str(tmp_path / "out")]) == 0
    assert json.loads((tmp_path / "out/result.json").read_text())["protocol"]["precision"] == "fp32"


def test_images_without_a_labelled_pixel_do_not_prevent_the_file(written, project, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "write_exported", lambda path, *_: shutil.copy(written, path))
    Image.fromarray(np.full((40, 57), 255, np.uint8)).save(tmp_path / "label.png")
    (tmp_path / "val.txt").write_text(f"{project}/1.png {tmp_path}/label.png\n")
    assert run(project, "--out", tmp_path / "a.onnx", "val_list", tmp_path / "val.txt") == 0


def test_a_network_without_finite_logits_is_named_before_the_export(project, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(export, "write_exported", None)
    content = load_checkpoint(project / "a.pth")
    content["state_dict"]["cls.1.weight"].fill_(3e38)
    content["state_dict"]["cls.4.weight"].fill_(3e38)
    save_checkpoint(content, tmp_path / "b.pth")
    assert export.main(["--model", str(tmp_path / "b.pth"), "--out", str(tmp_path / "a.onnx"), "--images", "0"]) == 1
    assert "its logits are NaN or infinite" in capsys.readouterr().err
