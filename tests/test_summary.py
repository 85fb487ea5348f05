"""`tool/benchmark.py model`: its numbers against counting by hand and against what a real step keeps."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from model import build_model
from model.pspnet import PSPNet
from tool import train
from tool.benchmark import main, measured_step
from util.config import ROOT, load_config
from util.memory import REST, measure, step_memory
from util.precision import Precision

TOY = ROOT / "config/toy/toy_pspnet18.yaml"


class Tiny(nn.Module):
    """A part that is called, one whose leaf is called, and a matrix product between them."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.second = nn.Sequential(nn.Conv2d(8, 4, 1), nn.Sigmoid())

    def forward(self, x):
        x = self.first(x)
        x = x @ x.new_ones(x.shape[-1], x.shape[-1])
        return self.second[1](self.second[0](x))


def test_multiply_adds_and_saved_bytes_are_those_counted_by_hand():
    with torch.device("meta"):
        net = Tiny()
    n, h, w = 2, 10, 12
    macs, kept = measure(net, n, h, w)
    assert macs == {"first": n * h * w * 27 * 8, "second": n * h * w * 8 * 4, REST: n * h * w * 8 * w}
    # first: image, convolution, its batch mean and 1/std, output of ReLU in place of BatchNorm; second: input, sigmoid.
    # The product keeps its right side only, since the left one's memory is kept already and ones need no gradient.
    assert kept["first"] == 4 * (n * h * w * (3 + 8 + 8) + 2 * 8)
    assert kept["second"] == 4 * n * h * w * (8 + 4)
    assert kept[REST] == 4 * w * w


def test_evaluation_keeps_nothing_and_hooks_are_gone_afterwards():
    with torch.device("meta"):
        net = Tiny().eval()
    _, kept = measure(net, 1, 8, 8)
    assert sum(kept.values()) == 0
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_multiply_adds_of_the_stem_and_the_classifiers_of_pspnet():
    with torch.device("meta"):
        net = PSPNet(18, classes=7).eval()
    macs, _ = measure(net, 1, 65, 97)
    assert macs["layer0"] == 33 * 49 * 9 * (3 * 64 + 64 * 64 + 64 * 128)
    assert macs["aux"] == 0 and sum(macs.values()) > 10 * macs["layer1"] > 0


SMALL = "train_h 33 train_w 41 test_h 33 test_w 41 batch_size 2".split()


@pytest.mark.parametrize("options, size", [((), "129x129"), (SMALL, "33x41")])
def test_the_table_adds_up(capsys, options, size):
    assert main(["model", str(TOY), *options]) == 0
    out = capsys.readouterr().out
    header, _, *lines = [line for line in out.partition("\n\n")[0].splitlines() if line.startswith("|")]
    assert f"train {size}" in header and f"test {size}" in header
    rows = {cells[1]: [float(x) for x in cells[2:-1]] for cells in ([c.strip() for c in line.split("|")] for line in lines)}
    total = rows.pop("**all**")
    assert list(rows)[:8] == ["layer0", "layer1", "layer2", "layer3", "layer4", "ppm", "cls", "aux"]
    for i, tolerance in enumerate((0.05, 0.5, 0.5, 5)):  # half a digit for every row
        assert sum(row[i] for row in rows.values()) == pytest.approx(total[i], abs=tolerance)
    assert total[0] == pytest.approx(12.92, abs=0.01)


STAGES = "[layer1, layer2, layer3, layer4]"


def config(*options):
    return load_config(TOY, ["ema_decay", "0", "optimizer", "sgd", "train_h", "65", "train_w", "65", *map(str, options)])


def numbers(line):
    """The cells of a row of the table of a step that are numbers: steps, images, then GiB."""
    return [float(cell) for cell in line.split("|")[3:10]]


@pytest.mark.parametrize("options", [
    (), ("precision", "bf16"), ("precision", "fp16", "checkpoint_layers", "[layer3]"), ("checkpoint_layers", STAGES),
    ("arch", "psa", "loss", "ohem"), ("arch", "psa", "precision", "bf16", "checkpoint_layers", STAGES),
    ("loss", "dice", "zoom_factor", 2), ("arch", "smp_pspnet"), ("layers", 50), ("criterion_outside", True),
])  # fmt: skip
def test_predicted_memory_is_that_which_a_real_step_keeps(options, one_block):
    cfg, n = config(*options), 2
    network, kept = build_model(cfg).train(), {}
    weights = {tensor.untyped_storage().data_ptr() for tensor in (*network.parameters(), *network.buffers())}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor), Precision(cfg.precision, "cpu").autocast():
        image, label = torch.randn(n, 3, cfg.train_h, cfg.train_w), torch.zeros(n, cfg.train_h, cfg.train_w, dtype=torch.int64)
        losses = train.forward(SimpleNamespace(cfg=cfg, net=network, network=network), image, label)[1:]
    del losses
    needs = step_memory(build_model, cfg, n, cfg.train_h, cfg.train_w)
    assert needs["kept"] == pytest.approx(sum(storage.nbytes() for storage in kept.values()), rel=0.1)
    assert needs["weights"] == pytest.approx(sum(tensor.nbytes for tensor in network.state_dict().values()), rel=0.001)
    assert needs["momenta"] == sum(p.nbytes for p in network.parameters())
    assert needs["peak"] == sum(needs.values()) - needs["peak"]


def test_peak_of_a_step_counted_by_hand():
    class Square(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.empty(1000))

        def forward(self, image, label):
            loss = (self.weight * self.weight).sum()
            return None, loss, loss.detach()

    cfg = config("batch_size", 2)
    needs = step_memory(lambda _: Square(), cfg, 1, 8, 8)
    batch = 3 * 64 * 4 + 64 * 8
    assert needs["weights"] == needs["momenta"] == 4000
    assert needs["kept"] == batch + 4  # the loss; the squares are not kept
    assert 4000 + batch + 2 * 4000 <= needs["peak"] - 4000 <= 4000 + batch + 4 * 4000
    assert step_memory(lambda _: Square(), cfg, 1, 8, 8, processes=2)["momenta"] == 8000
    averaged = step_memory(lambda _: Square(), config("ema_decay", 0.9), 1, 8, 8)
    assert averaged["weights"] == 8000 and averaged["peak"] == needs["peak"] + 4000
    assert step_memory(lambda _: Square(), config("optimizer", "adamw"), 1, 8, 8)["momenta"] == 8000


def test_parts_of_a_batch_and_recomputed_stages_need_less(capsys, one_block):
    one, two = (step_memory(build_model, config("accumulate_steps", n), 4 // n, 129, 129) for n in (1, 2))
    assert two["kept"] == pytest.approx(one["kept"] / 2, rel=0.05) and two["peak"] < one["peak"]
    limit = (one["peak"] - 1 + 2 * 2**30) / 2**30  # a byte too little
    assert main(["model", str(TOY), "--fit", str(limit), "ema_decay", "0", "optimizer", "sgd"]) == 0
    table = capsys.readouterr().out.splitlines()[-5:]
    assert numbers(table[0])[:2] == [1, 4]
    assert {line.split("|")[1].strip() for line in table} == {"fp32", "bf16, channels_last"}
    assert any(" layer4 " in line for line in table)
    assert all(numbers(line)[-1] <= limit - 2 + 0.01 for line in table[1:]) and not any("does not" in line for line in table)
    assert main(["model", "--config", str(TOY), "--fit", "2.001", "batch_size", "2"]) == 0
    assert capsys.readouterr().out.count("does not fit") == 4
    for limit in ("0", "nan"):
        with pytest.raises(SystemExit):
            main(["model", str(TOY), "--fit", limit])
        assert f"--fit {limit}: expected more than the 2 GiB" in capsys.readouterr().err


def test_steps_on_a_gpu_are_measured_beside_what_is_predicted(capsys, one_block, monkeypatch):
    """The columns, with a GPU that is not there; tests/test_gpu.py holds the numbers on one."""
    steps, found = [], iter([(3 * 2**30, 12.5), None])

    def measured_step(cfg, device, n, h, w):
        steps.append((cfg.accumulate_steps, device, n, h, w))
        return next(found)

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("tool.benchmark.measured_step", measured_step)
    for ending in ("| 3.00 | 12.5 |", "| out of memory | - |"):
        assert main(["model", str(TOY), "train_gpu", "[1]", "accumulate_steps", "2", "precision", "fp32"]) == 0
        head, _, line = capsys.readouterr().out.splitlines()[-3:]
        assert head.endswith("| peak | measured peak | images/s |") and line.endswith(ending)
    assert steps == [(2, torch.device("cuda", 1), 2, 129, 129)] * 2
    for gpus in ("[0, 1]", "[2]"):
        assert main(["model", str(TOY), "train_gpu", gpus, "precision", "fp32"]) == 0
        assert "measured" not in capsys.readouterr().out


@pytest.mark.parametrize("options", [(), ("accumulate_steps", 2, "ema_decay", 0, "optimizer", "sgd")])
def test_a_measured_step_is_one_of_the_training(options, narrow, monkeypatch):
    cfg, sizes, real = config("train_h", 33, "train_w", 33, *options), [], train.update

    def update(run, image, label):
        sizes.append((image.shape, label.shape, (run.average is None) == (cfg.ema_decay == 0)))
        return real(run, image, label)

    monkeypatch.setattr(train, "update", update)
    peak, rate = measured_step(cfg, torch.device("cpu"), 2, 33, 33)
    images = 2 * cfg.accumulate_steps
    assert sizes == [((images, 3, 33, 33), (images, 33, 33), True)] * 4 and peak > 0 and rate > 0


@pytest.mark.parametrize(
    "options", [("precision", "bf16", "checkpoint_layers", STAGES), ("arch", "psa", "accumulate_steps", 2)]
)
def test_predicted_peak_is_that_of_the_same_step_with_real_tensors(options, one_block, monkeypatch):
    cfg = config(*options)
    what = build_model, cfg, 2, cfg.train_h, cfg.train_w
    predicted = step_memory(*what)
    monkeypatch.setattr("util.memory.FakeTensorMode", nullcontext)
    assert step_memory(*what) == pytest.approx(predicted, rel=0.01)


def test_one_image_a_device_is_measured_with_sync_bn_and_refused_without(narrow, capsys):
    words = ["model", str(TOY), "train_h", "33", "train_w", "33"]
    assert main([*words, "batch_size", "4", "train_gpu", "[0,1]", "sync_bn", "True", "--fit", "2.001"]) == 0
    assert "| fp32 | - | 2 | 1 |" in capsys.readouterr().out
    assert main([*words, "batch_size", "4", "train_gpu", "[0,1,2,3]", "sync_bn", "True"]) == 0
    assert main([*words, "batch_size", "5", "train_gpu", "[0,1]", "sync_bn", "True"]) == 0
    assert "| fp32 | - | 1 | 3 |" in capsys.readouterr().out  # the images are 3 + 2
    assert main([*words, "batch_size", "5", "train_gpu", "[0,1]", "sync_bn", "True", "--fit", "2.001"]) == 0
    assert "| 3 | 1 |" not in capsys.readouterr().out  # the second device has no third part
    assert main([*words, "batch_size", "8", "train_gpu", "[0,1]", "world_size", "2", "sync_bn", "True"]) == 0
    assert "| fp32 | - | 1 | 2 |" in capsys.readouterr().out
    assert main([*words, "batch_size", "1"]) == 1
    assert "TRAIN.batch_size: leaves one image at a time, and 2 are needed" in capsys.readouterr().err
