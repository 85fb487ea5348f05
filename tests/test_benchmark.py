"""`tool/benchmark.py speed`: its table is complete, and its times and memory are those of the work it measures."""

import importlib.util
import shutil
import sys
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from model.pspnet import PSPNet
from tool import benchmark
from util.common import Mistake
from util.config import ROOT
from util.inference import predict_probability
from util.transform import MEAN, STD

pytestmark = pytest.mark.usefixtures("narrow")


def test_without_a_command_it_prints_the_table_of_speed(monkeypatch, capsys):
    real = benchmark.program

    def program(words, until, since=None, **variables):  # one of the two of each row
        is_ours = until.startswith("Epoch") or since and not variables
        return real(words, until, since) if is_ours else benchmark.Measured(1.0, 2.0**20)

    monkeypatch.setattr(benchmark, "program", program)
    monkeypatch.setattr(torch, "compile", lambda network: network)
    assert benchmark.main(["--quick"]) == 0
    out = capsys.readouterr().out
    lines = [line for line in out.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in lines} == {10} and len(lines) == 2 + 15
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]]
    assert all(float(row[7]) > 0 and row[8] == "1" for row in rows)
    for name in ("op by op", "lazy, cached", "decode alone", "bf16, channels_last", "fused", "numpy histograms", "import torch",
                 "memory returned", "memory kept", "eager", "compiled, in 0 s"):  # fmt: skip
        assert f" {name} |" in out
    assert f"torch {torch.__version__}" in out and "CPU threads" in out and "100.000% of the pixels the same class" in out


def test_growth_prints_a_table_for_each_question(capsys):
    spec = importlib.util.spec_from_file_location("growth", ROOT / "docs/growth.py")
    growth = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(growth)
    assert growth.main(["--quick"]) == 0
    tables = [table.splitlines() for table in capsys.readouterr().out.split("\n\n")[:-1]]
    columns = [[line.split("|")[1].strip() for i, line in enumerate(table) if i != 1] for table in tables]
    assert columns == [["images of a list", "10", "20", "30"], ["classes", "2", "19", "150"], ["scales", "1", "3", "6"],
                       ["processes", "2"]]  # fmt: skip


def test_bf16_is_left_out_where_it_is_emulated(monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "native_precision", lambda device: "fp32")
    monkeypatch.setattr(benchmark, "Setup", partial(benchmark.Setup, **benchmark.QUICK))
    for name in ("scoring", "loss", "start", "allocator", "compiled", "loader"):
        monkeypatch.setattr(benchmark, name, lambda *_: ())
    assert benchmark.main([]) == 0
    out = capsys.readouterr().out
    assert out.count("| fp32 |") == 3 and "| bf16" not in out and "bf16 was not measured" in out


ORIGINAL = """from torch import nn

from model.ours import PSPNet as Ours
from util.util import HELLO


class PSPNet(Ours):
    def __init__(self, layers=50, bins=(1, 2, 3, 6), dropout=0.1, classes=2, zoom_factor=8, use_ppm=True,
                 criterion=nn.CrossEntropyLoss(ignore_index=255), pretrained=True):
        assert layers in (50, 101, 152) and not pretrained
        super().__init__(layers, bins, dropout, classes, zoom_factor, use_ppm, criterion)
        print(HELLO)
"""


def test_code_of_the_original_is_the_plain_network_and_its_packages_stay_apart_from_ours(tmp_path, monkeypatch, capsys):
    """A copy of this network behind the original's arguments, in folders `model` and `util` without an __init__.py: where ours
    can be found too, Python prefers those."""
    shutil.copytree(ROOT / "model", tmp_path / "model")
    (tmp_path / "model/resnet.py").write_text((ROOT / "model/resnet.py").read_text().replace("\nWIDTH = 64 ", "\nWIDTH = 8 "))
    (tmp_path / "model/pspnet.py").rename(tmp_path / "model/ours.py")
    (tmp_path / "model/pspnet.py").write_text(ORIGINAL)
    (tmp_path / "model/__init__.py").unlink()
    (tmp_path / "util").mkdir()
    (tmp_path / "util/util.py").write_text("HELLO = 'here is the original'")
    shutil.copy(ROOT / "util/common.py", tmp_path / "util")
    for name in ("scoring", "loss", "start", "allocator", "compiled", "loader"):
        monkeypatch.setattr(benchmark, name, lambda *_: ())
    before, path = dict(sys.modules), list(sys.path)
    assert benchmark.main(["--quick", "--against", str(tmp_path)]) == 0
    assert path == sys.path and before == {name: sys.modules[name] for name in before}
    out = capsys.readouterr().out
    assert out.count("here is the original") == 3 and "100.000% of the pixels the same class" in out
    assert out.count("| training step, PSPNet50, 2 x 65x65, 21 classes | the original's fp32 |") == 2
    assert benchmark.original(tmp_path).__mro__[1] is not PSPNet
    with pytest.raises(Mistake, match="there is no model/pspnet.py; give the folder"):
        benchmark.original(tmp_path / "model")


@pytest.mark.parametrize("argv", [[], ["--quick"], ["--quick", "speed"]])
def test_speed_is_the_default(argv):
    args = benchmark.parse_args(argv)
    assert args.command is benchmark.speed and args.quick == ("--quick" in argv)


def test_model_takes_keys_of_the_config_anywhere(capsys):
    for argv in (["a.yaml", "--fit", "4", "layers", "18"], ["--fit", "4", "a.yaml", "layers", "18"],
                 ["a.yaml", "layers", "18", "--fit", "4"]):  # fmt: skip
        args = benchmark.parse_args(["model", *argv])
        assert (args.config, args.opts, args.fit) == ("a.yaml", ["layers", "18"], 4)
    for argv, words in ((["model"], "which experiment? Give CONFIG"), (["model", "a.yaml", "--ft"], "arguments: --ft"),
                        (["speed", "x"], "arguments: x"), (["--quick", "x"], "unknown command x")):  # fmt: skip
        with pytest.raises(SystemExit):
            benchmark.parse_args(argv)
        assert words in capsys.readouterr().err


def test_forms_alternate_until_time_is_up(monkeypatch):
    order, clock = [], [0.0]
    monkeypatch.setattr(benchmark.gc, "collect", lambda: None)  # which takes a quarter of a second here
    monkeypatch.setattr(benchmark, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    forms = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    results = benchmark.compare(forms, 60, 3)
    assert "".join(order) == "abbaab" and {r.runs for r in results.values()} == {3}
    slow = {"a": lambda: clock.append(clock.pop() + 0.25)}
    assert benchmark.compare(slow, 0, 9)["a"].runs == 1
    assert benchmark.compare(slow, 2, 999)["a"].runs == 8


def test_times_are_of_one_piece_of_work(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(benchmark, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    assert benchmark.compare({"ten": lambda: clock.append(clock.pop() + 5)}, 1, 1, 10)["ten"].seconds == 0.5


def test_memory_is_what_the_form_adds_at_its_peak():
    kept = []

    def form():
        for _ in range(3):
            np.ones(2**25)

    small, peak = (benchmark.observe(work).memory for work in (lambda: kept.append(np.ones(10)), form))
    assert small < 2**24 and 0.99 * 2**28 <= peak < 1.3 * 2**28  # the system counts resident pages in lots


def test_plain_test_finds_what_the_engine_finds():
    torch.manual_seed(0)
    network = PSPNet(18, classes=7).eval()
    image = np.random.default_rng(0).integers(0, 256, (70, 120, 3), np.uint8)
    probability = predict_probability(network, image, classes=7, base_size=None, crop_h=57, crop_w=57, scales=(1.0,),
                                      mean=MEAN, std=STD)  # fmt: skip
    assert (benchmark.plain_predict(network, image, 7, 57, "cpu") == probability.argmax(0).numpy()).mean() > 0.999


def test_time_of_a_program_is_that_between_two_of_its_lines(monkeypatch):
    clock = iter([1.0, 6.0, 1.0, 4.0, 6.0])
    monkeypatch.setattr(benchmark, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    code = "import time; print('begin'); print('its end'); time.sleep(600)"
    whole, part = (benchmark.program(["-uc", code], "end", *since) for since in ((), ("begin",)))
    assert (whole.seconds, part.seconds) == (5, 2) and 2**20 < part.memory < 2**27


def test_a_program_that_ends_too_early_is_named():
    with pytest.raises(RuntimeError, match="no such thing"):
        benchmark.program(["-c", "raise SystemExit('no such thing')"], "Epoch")
