"""Runs that are so many iterations long, wherever the data begin anew."""

import json

import pytest
import torch
import yaml

from tool import train
from util.checkpoint import load_checkpoint
from util.config import ROOT
from util.dataset import EpochSampler

CONFIG = str(ROOT / "config/toy/toy_pspnet18.yaml")


def run(toy_options, save_path, *more):
    """Status of training on 13 images, 3 iterations once through them, into save_path."""
    common = ["save_path", save_path, "max_iter", 8, "iter_interval", 5, "evaluate", "False", "keep_checkpoints", 9]
    return train.main(["--config", CONFIG, *toy_options, *map(str, [*common, *more])])


def lines(save_path, key):
    found = map(json.loads, (save_path / "metrics.jsonl").read_text().splitlines())
    return [(line["iteration"], line[key]) for line in found if key in line]


def weights(path):
    return load_checkpoint(path)["state_dict"]


def same(a, b):
    a, b = weights(a), weights(b)
    return all(torch.equal(a[key], b[key]) for key in a)


def test_checkpoints_and_validations_come_by_iteration(toy_options, tmp_path, capsys):
    assert run(toy_options, tmp_path, "evaluate", "True", "eval_freq", 1) == 0
    assert {p.name for p in tmp_path.glob("*.pth")} == {"train_iter_5.pth", "train_iter_8.pth", "model_best.pth"}
    assert [i for i, _ in lines(tmp_path, "mIoU_val")] == [5, 8]
    assert [i for i, _ in lines(tmp_path, "loss_train_batch")] == list(range(1, 9))
    screen = capsys.readouterr().out
    assert "Iter: [6/8]" in screen and "Train result at iteration [8/8]" in screen
    saved = load_checkpoint(tmp_path / "train_iter_8.pth")
    assert saved["iteration"] == 8 and saved["epoch"] == 2  # twice through the data, and two batches


def test_the_schedule_ends_with_the_last_iteration(toy_options, tmp_path):
    assert run(toy_options, tmp_path, "min_lr", 0.001, "base_lr", 0.01) == 0
    rates = [lr for _, lr in lines(tmp_path, "lr")]
    assert rates == pytest.approx([0.009 * (1 - i / 8) ** 0.9 + 0.001 for i in range(8)])


def test_iterations_see_the_samples_of_epochs(toy_options, tmp_path):
    """Without a schedule and with the same seeds, nine iterations are three epochs."""
    flat = ["schedule", "step", "step_factor", 1]
    assert run(toy_options, tmp_path / "a", *flat, "max_iter", 9) == 0
    assert run(toy_options, tmp_path / "b", *flat, "max_iter", "null", "epochs", 3) == 0
    assert same(tmp_path / "a/train_iter_9.pth", tmp_path / "b/train_epoch_3.pth")


@pytest.mark.parametrize("iteration", [4, 5, 7])  # inside the first interval, at its end, inside the second
def test_run_resumed_at_any_iteration_ends_as_the_uninterrupted_one(toy_options, tmp_path, iteration):
    assert run(toy_options, tmp_path / "a") == 0
    assert run(toy_options, tmp_path / "b", "save_iters", 1 if iteration == 7 else 2) == 0
    source = tmp_path / "b" / f"train_iter_{iteration}.pth"
    assert run(toy_options, tmp_path / "c", "resume", source) == 0
    assert same(tmp_path / "a/train_iter_8.pth", tmp_path / "c/train_iter_8.pth")
    assert lines(tmp_path / "a", "loss_train_batch")[iteration:] == lines(tmp_path / "c", "loss_train_batch")


def test_a_finished_run_can_be_made_longer(toy_options, tmp_path):
    assert run(toy_options, tmp_path, "max_iter", 5) == 0
    assert run(toy_options, tmp_path, "resume", "auto") == 0
    assert [i for i, _ in lines(tmp_path, "loss_train_batch")] == list(range(1, 9))


@pytest.mark.parametrize(
    "change, files",
    [
        (["iter_interval", 3], {"train_iter_6.pth", "train_iter_8.pth"}),
        (["max_iter", 4], set()),  # it is longer already
        (["max_iter", "null", "epochs", 3], {"train_epoch_2.pth", "train_epoch_3.pth"}),  # an epoch is 3 iterations
    ],
    ids=["other interval", "shorter", "epochs"],
)
def test_a_run_goes_on_at_its_iteration_however_it_counts_now(toy_options, tmp_path, change, files):
    assert run(toy_options, tmp_path / "a") == 0
    assert run(toy_options, tmp_path / "b", "resume", tmp_path / "a/train_iter_5.pth", *change) == 0
    assert {p.name for p in (tmp_path / "b").glob("*.pth")} == files
    iterations = [i for i, _ in lines(tmp_path / "b", "loss_train_batch")]
    assert iterations == list(range(6, {2: 9, 0: 0}[len(files)] + ("null" in change)))
    if change == ["iter_interval", 3]:
        assert same(tmp_path / "a/train_iter_8.pth", tmp_path / "b/train_iter_8.pth")


def test_best_resumes_from_the_best_and_starts_anew_where_there_is_none(toy_options, tmp_path, capsys):
    validating = ["evaluate", "True", "eval_freq", 1, "resume", "best"]
    assert run(toy_options, tmp_path, *validating) == 0
    assert "resume: best: there is no checkpoint" in capsys.readouterr().out
    best = load_checkpoint(tmp_path / "model_best.pth")
    assert run(toy_options, tmp_path, *validating, "max_iter", 9) == 0
    assert f"resumed at iteration {best['iteration']}" in capsys.readouterr().out


@pytest.mark.parametrize("metric, best", [("loss", min), ("mDice", max), ("allAcc", max)])
def test_main_metric_chooses_the_best_checkpoint(toy_options, tmp_path, metric, best):
    more = ["evaluate", "True", "eval_freq", 1, "max_iter", 6, "iter_interval", 1, "base_lr", 0.3]
    assert run(toy_options, tmp_path, *more, "main_metric", metric, "minimize_metric", str(metric == "loss")) == 0
    scored = {value: i for i, value in reversed(lines(tmp_path, f"{metric}_val"))}
    assert load_checkpoint(tmp_path / "model_best.pth")["iteration"] == scored[best(scored)]
    state = load_checkpoint(tmp_path / "model_best.pth")["state"]
    assert state["best_score"] == best(scored) and state["best_at"] == f"iteration {scored[best(scored)]}"


def test_loss_from_outside_the_network_trains_the_same_weights(toy_options, tmp_path):
    assert run(toy_options, tmp_path / "a", "max_iter", 3, "fused_loss", "False") == 0
    assert run(toy_options, tmp_path / "b", "max_iter", 3, "criterion_outside", "True") == 0
    a, b = (weights(tmp_path / name / "train_iter_3.pth") for name in "ab")
    for key, value in a.items():
        torch.testing.assert_close(b[key], value, rtol=0, atol=1e-6)


def test_sampler_goes_on_into_the_next_epochs():
    def sampler(epoch=0):
        return EpochSampler(13, 4, seed=3, epoch=epoch)

    endless = sampler()
    endless.set_epoch(1, start_batch=2, batches=6)
    assert len(endless) == 6
    expected = [*list(sampler(1))[2:], *sampler(2), *list(sampler(3))[:2]]
    assert list(endless) == expected and len(expected) == 6


def test_keys_that_will_do_nothing_are_noted(toy_options, tmp_path, capsys):
    assert run(toy_options, tmp_path, "max_iter", "null", "epochs", 1, "test_list", tmp_path / "none.txt") == 0
    screen = capsys.readouterr().out
    assert "iter_interval: 5 is for runs of max_iter iterations" in screen and "none.txt does not exist" in screen
    assert run(toy_options, tmp_path, "max_iter", 1) == 0
    assert " is for runs of max_iter" not in capsys.readouterr().out


def test_validations_stay_in_the_metrics_file_when_intervals_grow(toy_options, tmp_path):
    validating = ["evaluate", "True", "eval_freq", 1]
    assert run(toy_options, tmp_path, *validating, "max_iter", 4, "iter_interval", 1) == 0
    assert run(toy_options, tmp_path, *validating, "resume", "auto") == 0
    assert [i for i, _ in lines(tmp_path, "mIoU_val")] == [1, 2, 3, 4, 5, 8]


def test_a_checkpoint_from_before_intervals_goes_on(toy_options, tmp_path):
    epochs = ["max_iter", "null", "epochs", 3]
    assert run(toy_options, tmp_path / "a", *epochs, "save_iters", 2) == 0
    content = load_checkpoint(tmp_path / "a/train_epoch_2.pth")
    del content["iteration"]
    state = content["state"]
    for key in ("best_score", "best_at", "counted"):
        del state[key]
    state |= {"best_mIoU": 0.25, "best_epoch": 1}
    config = yaml.safe_load(content["config"])
    for key in ("max_iter", "iter_interval", "main_metric"):
        del config["TRAIN"][key]
    torch.save(content | {"config": yaml.safe_dump(config)}, tmp_path / "old.pth")
    assert run(toy_options, tmp_path / "b", *epochs, "resume", tmp_path / "old.pth") == 0
    assert same(tmp_path / "a/train_epoch_3.pth", tmp_path / "b/train_epoch_3.pth")
    state = load_checkpoint(tmp_path / "b/train_epoch_3.pth")["state"]
    assert state["best_score"] == 0.25 and state["best_at"] == "epoch 1"
    assert run(toy_options, tmp_path / "c", "resume", tmp_path / "old.pth") == 0  # 6 of 8 iterations
    assert [i for i, _ in lines(tmp_path / "c", "loss_train_batch")] == [7, 8]
