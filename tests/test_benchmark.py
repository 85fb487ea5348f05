"""`tool/benchmark.py speed`: its table is complete, and its times and memory are those of the work it measures."""

import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from model.pspnet import PSPNet
from tool import benchmark
from util.inference import predict_probability
from util.transform import MEAN, STD

CPU = torch.device("cpu")


def test_without_a_subcommand_it_prints_the_table_of_speed(capsys):
    assert benchmark.main(["--quick"]) == 0
    out = capsys.readouterr().out
    table = [line for line in out.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in table} == {10} and len(table) == 2 + 12
    ratios = [line.split("|")[8].strip() for line in table[2:]]
    assert all(float(ratio.removesuffix(" s")) > 0 for ratio in ratios) and ratios[-1].startswith("+")
    names = ("op by op", "lazy, cached", "decode alone", "bf16, channels_last", "fused", "numpy histograms", "import torch")
    assert all(f" {name} |" in out for name in names)
    assert f"torch {torch.__version__}" in out and "CPU threads" in out and "100.000% of the pixels the same class" in out


@pytest.mark.parametrize("argv, command, quick", [([], "speed", False), (["all", "--quick"], "speed", True),
                                                  (["--quick"], "speed", True), (["speed"], "speed", False)])  # fmt: skip
def test_speed_is_the_default(argv, command, quick):
    args = benchmark.parse_args(argv)
    assert args.command.__name__ == command and args.quick == quick


def test_model_takes_the_config_as_a_word_or_a_flag_and_keys_anywhere(capsys):
    for argv in (["a.yaml", "--fit", "4", "layers", "18"], ["--fit", "4", "--config", "a.yaml", "layers", "18"],
                 ["a.yaml", "layers", "18", "--fit", "4"]):  # fmt: skip
        args = benchmark.parse_args(["model", *argv])
        assert (args.config, args.opts, args.fit) == ("a.yaml", ["layers", "18"], 4)
    for argv, words in ((["model"], "which experiment? Give CONFIG"), (["model", "a.yaml", "--ft"], "arguments: --ft"),
                        (["--quick", "x"], "arguments: x")):  # fmt: skip
        with pytest.raises(SystemExit):
            benchmark.parse_args(argv)
        assert words in capsys.readouterr().err


def test_forms_alternate_until_time_is_up(monkeypatch):
    order, clock = [], [0.0]
    monkeypatch.setattr(benchmark, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    forms = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    results = benchmark.compare(forms, 60, 3, CPU)
    assert "".join(order) == "abbaab" and {r.runs for r in results.values()} == {3}
    slow = {"a": lambda: clock.append(clock.pop() + 0.25)}
    assert benchmark.compare(slow, 0, 9, CPU)["a"].runs == 1
    assert benchmark.compare(slow, 2, 999, CPU)["a"].runs == 8


def test_times_are_of_one_piece_of_work():
    result = benchmark.compare({"ten": lambda: time.sleep(0.1)}, 1, 1, CPU, per=10)["ten"]
    assert 0.01 <= result.seconds < 0.1


def test_memory_is_what_the_form_adds_at_its_peak():
    kept = []

    def form():
        for _ in range(3):
            block = np.ones(2**25)
            time.sleep(0.05)
            del block

    _, small = benchmark.observe(lambda: kept.append(np.ones(10)), CPU)
    _, peak = benchmark.observe(form, CPU)
    assert small < 2**24 and 0.99 * 2**28 <= peak < 1.3 * 2**28  # the system counts resident pages in lots


def test_plain_test_finds_what_the_engine_finds():
    torch.manual_seed(0)
    network = PSPNet(18, classes=7).eval()
    image = np.random.default_rng(0).integers(0, 256, (70, 120, 3), np.uint8)
    probability = predict_probability(network, image, classes=7, base_size=None, crop_h=57, crop_w=57, scales=(1.0,),
                                      mean=MEAN, std=STD)  # fmt: skip
    assert (benchmark.plain_predict(network, image, 7, 57, CPU) == probability.argmax(0).numpy()).mean() > 0.999


def test_a_program_that_ends_too_early_is_named():
    with pytest.raises(RuntimeError, match="no such thing"):
        benchmark.time_until([benchmark.sys.executable, "-c", "raise SystemExit('no such thing')"], "Epoch")
