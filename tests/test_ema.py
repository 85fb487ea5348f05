"""The moving average of the weights: its formula, what it is used for, and that a resumed run has the same."""

import itertools
from types import SimpleNamespace

import pytest
import torch
from processes import CONFIG, finish, noted, said, same_tensors, small_training, start, wait_for
from torch import nn

from model import build_model
from model.weights import load_network_weights
from tool import train
from util.checkpoint import load_checkpoint, save_checkpoint
from util.config import load_config
from util.ema import Average
from util.precision import Precision

pytestmark = pytest.mark.usefixtures("narrow")
DECAY = 0.3  # reached in the fourth iteration: (1 + 3) / (10 + 3) = 0.31


def decay(n):
    return min(DECAY, (1 + n) / (10 + n))


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def follows(average, before, weights, n):
    """Is `average` the one `before` after an iteration that made these weights, bit for bit?"""
    step = {key: torch.lerp(before[key], w, 1 - decay(n)) if w.is_floating_point() else w for key, w in weights.items()}
    return equal(average, step)


@pytest.fixture(scope="module")
def options(toy):
    """Six iterations, each saved, with a validation after three."""
    return small_training(toy, max_iter=6, iter_interval=3, save_iters=1, keep_checkpoints=9, eval_freq=1, ema_decay=DECAY)


def run(options, folder, *more):
    return train.main(["--config", CONFIG, *options, "save_path", str(folder), *map(str, more)])


@pytest.fixture(scope="module")
def whole(narrow, options, tmp_path_factory):
    """An uninterrupted run: its folder, its checkpoints by iteration, and the weights that each validation used."""
    folder, validated, predict = tmp_path_factory.mktemp("whole"), [], train.predict_probability

    def noting(network, image, **how):
        validated.append({key: value.clone() for key, value in network.state_dict().items()})
        return predict(network, image, **how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "predict_probability", noting)
        assert run(options, folder) == 0
    checkpoints = {i: load_checkpoint(folder / f"train_iter_{i}.pth") for i in range(1, 7)}
    return SimpleNamespace(folder=folder, checkpoints=checkpoints, validated=validated)


@pytest.fixture(scope="module")
def without(narrow, options, tmp_path_factory):
    """The folder of the same run without an average."""
    folder = tmp_path_factory.mktemp("without")
    assert run(options, folder, "ema_decay", 0) == 0
    return folder


# ---- the average ----


def test_the_average_of_k_steps_is_the_sum_over_the_weights_of_all_of_them():
    network = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3)).double()
    average, states = Average(network, DECAY), [{key: value.clone() for key, value in network.state_dict().items()}]
    for n in range(20):
        network(torch.randn(4, 2, 3, 3, dtype=torch.float64))  # moves the statistics
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.copy_(torch.randn_like(parameter))
        states.append({key: value.clone() for key, value in network.state_dict().items()})
        average.update(n)
    share = [1.0]
    for n in range(20):
        share = [s * decay(n) for s in share] + [1 - decay(n)]
    found = average.network.state_dict()
    assert sum(share) == pytest.approx(1) and found["1.num_batches_tracked"] == 20
    for key in ("0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var"):
        expected = sum(s * state[key] for s, state in zip(share, states))
        torch.testing.assert_close(found[key], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("arch", ["psp", "psa", "smp_pspnet"])
def test_every_network_has_an_average_of_its_own_memory_and_format(arch, options):
    more = f"arch {arch} ohem_min_kept 9 save_path x initmodel null size_rule input mask_h 5 mask_w 5".split()
    network = build_model(load_config(CONFIG, [*options, *more])).to(memory_format=torch.channels_last)
    average = Average(network, DECAY)
    assert equal(average.network.state_dict(), network.state_dict())
    for ours, theirs in zip(average.network.parameters(), network.parameters()):
        assert ours.data_ptr() != theirs.data_ptr() and ours.stride() == theirs.stride()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1)
    average.update(0)
    assert follows(average.network.state_dict(), before, network.state_dict(), 0)


# ---- in a run ----


def test_each_checkpoint_holds_the_average_and_the_weights_under_training(whole):
    for n in range(1, 6):
        before, after = whole.checkpoints[n], whole.checkpoints[n + 1]
        assert follows(after["state_dict"], before["state_dict"], after["trained_state_dict"], n)
        assert not equal(after["state_dict"], after["trained_state_dict"])


def test_validation_the_best_checkpoint_and_whoever_loads_it_have_the_average(whole, options):
    states = {i: content["state_dict"] for i, content in whole.checkpoints.items()}
    assert len(whole.validated) == 10 and equal(whole.validated[0], states[3]) and equal(whole.validated[-1], states[6])
    best = load_checkpoint(whole.folder / "model_best.pth")
    assert equal(best["state_dict"], states[best["state"]["best_at"]])
    network = build_model(load_config(CONFIG, [*options, "save_path", "x"]))
    load_network_weights(network, whole.folder / "model_best.pth", read=load_checkpoint)
    assert equal(network.state_dict(), best["state_dict"])


def test_the_training_itself_is_the_same_without_an_average(whole, without):
    for i, content in whole.checkpoints.items():
        plain = load_checkpoint(without / f"train_iter_{i}.pth")
        assert equal(plain["state_dict"], content["trained_state_dict"])
        assert [*plain] == [key for key in content if key != "trained_state_dict"]


def test_an_iteration_whose_update_is_left_out_counts_all_the_same(options, tmp_path, monkeypatch):
    """fp16 leaves out updates whose gradients overflow."""
    count, step = itertools.count(1), Precision.step
    monkeypatch.setattr(Precision, "step", lambda self, optimizer: None if next(count) == 2 else step(self, optimizer))
    assert run(options, tmp_path, "max_iter", 3, "evaluate", False) == 0
    first, second, third = (load_checkpoint(tmp_path / f"train_iter_{i}.pth") for i in (1, 2, 3))
    assert torch.equal(first["trained_state_dict"]["layer0.0.weight"], second["trained_state_dict"]["layer0.0.weight"])
    assert follows(second["state_dict"], first["state_dict"], second["trained_state_dict"], 1)
    assert follows(third["state_dict"], second["state_dict"], third["trained_state_dict"], 2)


def test_an_average_that_is_not_finite_is_not_saved(options, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Average, "update", lambda self, n: self.floats[0][0].fill_(torch.nan))
    assert run(options, tmp_path) == 1
    assert "layer0.0.weight became infinite or nan in iteration 1" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.pth"))


# ---- resumed ----


def ended_alike(folder, other):
    paths = folder / "train_iter_6.pth", other / "train_iter_6.pth"
    a, b = map(load_checkpoint, paths)
    return same_tensors(*paths) and equal(a["trained_state_dict"], b["trained_state_dict"]) and a["state"] == b["state"]


@pytest.mark.parametrize("iteration", [2, 3])
def test_a_run_resumed_inside_an_interval_or_at_its_end_ends_with_the_same_bytes(iteration, whole, options, tmp_path):
    assert run(options, tmp_path, "resume", whole.folder / f"train_iter_{iteration}.pth") == 0
    assert noted(tmp_path)[0][0] == iteration + 1 and ended_alike(tmp_path, whole.folder)


def test_a_killed_run_ends_as_one_that_was_not(options, tmp_path):
    folder, log = tmp_path / "model", tmp_path / "log"
    assert finish(start(options, "save_path", tmp_path / "other", log=log)) == [0], said(log)  # with as many threads
    (process,) = start(options, "save_path", folder, log=log, pause=0.2)
    wait_for(lambda: (folder / "train_iter_2.pth").exists())
    process.kill()
    assert finish([process]) == [-9]
    assert finish(start(options, "save_path", folder, "resume", "auto", log=log)) == [0], said(log)
    assert "resumed at iteration" in said(log) and ended_alike(folder, tmp_path / "other")


def test_a_run_without_an_average_goes_on_with_one_that_starts_from_its_weights(without, options, tmp_path, capsys):
    assert run(options, tmp_path, "resume", without / "train_iter_3.pth", "evaluate", False) == 0
    assert "it has no average of the weights; that of this run starts from its weights" in capsys.readouterr().out
    start_at, first = load_checkpoint(without / "train_iter_3.pth"), load_checkpoint(tmp_path / "train_iter_4.pth")
    assert follows(first["state_dict"], start_at["state_dict"], first["trained_state_dict"], 3)


def test_a_run_with_an_average_goes_on_without_it_from_the_weights_under_training(whole, options, tmp_path, capsys):
    more = ["ema_decay", 0, "evaluate", False, "resume", whole.folder / "train_iter_3.pth"]
    assert run(options, tmp_path, *more) == 0
    assert "goes on from the weights under training, not from their average" in capsys.readouterr().out
    last = load_checkpoint(tmp_path / "train_iter_6.pth")
    assert equal(last["state_dict"], whole.checkpoints[6]["trained_state_dict"]) and "trained_state_dict" not in last


@pytest.mark.parametrize("spoil, message", [
    (lambda state: 5, "it has no trained_state_dict"),
    (lambda state: {key: value for key, value in state.items() if key != "cls.0.weight"}, "another network: 1 weights"),
    (lambda state: state | {"cls.0.weight": torch.full_like(state["cls.0.weight"], torch.nan)}, "infinite values in cls.0"),
])  # fmt: skip
def test_unfit_weights_under_training_are_one_message(spoil, message, whole, options, tmp_path, capsys):
    content = dict(whole.checkpoints[3])
    save_checkpoint(content | {"trained_state_dict": spoil(content["trained_state_dict"])}, tmp_path / "spoilt.pth")
    assert run(options, tmp_path / "model", "resume", tmp_path / "spoilt.pth") == 1
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ")


# ---- several processes ----


def test_two_processes_average_like_one(options, tmp_path):
    """In double precision, as in test_distributed.py."""
    contents = []
    for world in (1, 2):
        folder, log = tmp_path / str(world), tmp_path / f"log{world}"
        more = ["save_path", folder, "dropout", 0, "base_lr", 1e-3, "evaluate", False]
        assert finish(start(options, *more, log=log, world=world, dtype=torch.float64)) == [0] * world, said(log)
        contents.append(load_checkpoint(folder / "train_iter_6.pth"))
    for key in ("state_dict", "trained_state_dict"):
        torch.testing.assert_close(contents[0][key], contents[1][key], rtol=0, atol=1e-4)


def test_without_sync_bn_two_processes_resume_to_the_same_bytes(options, tmp_path):
    """Each has statistics of its own, and so an average of them; the main one's are saved."""
    more = ["sync_bn", False, "save_iters", 0]
    for folder, again in (("a", []), ("b", ["resume", tmp_path / "a/train_iter_3.pth"])):
        log = tmp_path / f"log{folder}"
        statuses = finish(start(options, *more, *again, "save_path", tmp_path / folder, log=log, world=2))
        assert statuses == [0, 0], said(log) + said(log, 1)
    assert ended_alike(tmp_path / "a", tmp_path / "b")
