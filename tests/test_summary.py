"""`tool/benchmark.py model`: its numbers against counting by hand."""

import pytest
import torch
from torch import nn

from model.pspnet import PSPNet
from tool.benchmark import REST, main, measure
from util.config import ROOT


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


@pytest.mark.parametrize("options, size", [((), "129x129"), (("--h", "33", "--w", "41", "--batch", "2", "--step"), "33x41")])
def test_the_table_adds_up(capsys, options, size):
    assert main(["model", "--config", str(ROOT / "config/toy/toy_pspnet18.yaml"), *options]) == 0
    out = capsys.readouterr().out
    header, _, *lines = [line for line in out.splitlines() if line.startswith("|")]
    assert f"train {size}" in header and f"test {size}" in header
    rows = {cells[1]: [float(x) for x in cells[2:-1]] for cells in ([c.strip() for c in line.split("|")] for line in lines)}
    total = rows.pop("**all**")
    assert list(rows)[:8] == ["layer0", "layer1", "layer2", "layer3", "layer4", "ppm", "cls", "aux"]
    for i, tolerance in enumerate((0.05, 0.5, 0.5, 5)):  # half a digit for every row
        assert sum(row[i] for row in rows.values()) == pytest.approx(total[i], abs=tolerance)
    assert total[0] == pytest.approx(12.92, abs=0.01)
    assert ("One float32 training step of 2 image(s) on cpu: peak" in out) == bool(options)
