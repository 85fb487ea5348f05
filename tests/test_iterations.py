"""Runs that are so many iterations long, wherever the data begin anew."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
import yaml
from processes import noted, same_tensors, small_training

from model.base import SceneParser
from tool import train
from util.checkpoint import load_checkpoint
from util.config import ROOT
from util.dataset import EpochSampler
from util.run import Plan, open_output, state_of

pytestmark = pytest.mark.usefixtures("narrow")
CONFIG = str(ROOT / "config/toy/toy_pspnet18.yaml")


def run(toy_options, save_path, *more):
    """Status of training on 13 images, 3 iterations once through them, into save_path."""
    common = ["save_path", save_path, "max_iter", 8, "iter_interval", 5, "evaluate", "False", "keep_checkpoints", 9]
    return train.main(["--config", CONFIG, *toy_options, *map(str, [*common, *more])])


@pytest.fixture(scope="module")
def whole(narrow, toy, tmp_path_factory):
    """The folder of a run of eight iterations that nobody stopped."""
    folder = tmp_path_factory.mktemp("whole")
    assert run(small_training(toy, print_freq=2), folder) == 0
    return folder


def weights(path):
    return load_checkpoint(path)["state_dict"]


def test_checkpoints_and_validations_come_by_iteration(toy_options, tmp_path, capsys):
    assert run(toy_options, tmp_path, "evaluate", "True", "eval_freq", 1) == 0
    assert {p.name for p in tmp_path.glob("*.pth")} == {"train_iter_5.pth", "train_iter_8.pth", "model_best.pth"}
    assert [i for i, _ in noted(tmp_path, "mIoU_val")] == [5, 8]
    assert [i for i, _ in noted(tmp_path)] == list(range(1, 9))
    screen = capsys.readouterr().out
    assert "Iter: [6/8]" in screen and "Train result at iteration [8/8]" in screen
    saved = load_checkpoint(tmp_path / "train_iter_8.pth")
    assert saved["iteration"] == 8 and saved["epoch"] == 2  # twice through the data, and two batches


def test_the_schedule_ends_with_the_last_iteration(toy_options, tmp_path):
    assert run(toy_options, tmp_path, "min_lr", 0.001, "base_lr", 0.01) == 0
    rates = [lr for _, lr in noted(tmp_path, "lr")]
    assert rates == pytest.approx([0.009 * (1 - i / 8) ** 0.9 + 0.001 for i in range(8)])


def test_iterations_see_the_samples_of_epochs(toy_options, tmp_path):
    """Without a schedule and with the same seeds, nine iterations are three epochs."""
    flat = ["schedule", "step", "step_factor", 1]
    assert run(toy_options, tmp_path / "a", *flat, "max_iter", 9) == 0
    assert run(toy_options, tmp_path / "b", *flat, "max_iter", "null", "epochs", 3) == 0
    assert same_tensors(tmp_path / "a/train_iter_9.pth", tmp_path / "b/train_epoch_3.pth")


@pytest.mark.parametrize("iteration", [4, 5, 7])  # inside the first interval, at its end, inside the second
def test_run_resumed_at_any_iteration_ends_as_the_uninterrupted_one(whole, toy_options, tmp_path, iteration):
    assert run(toy_options, tmp_path / "b", "save_iters", 1 if iteration == 7 else 2) == 0
    source = tmp_path / "b" / f"train_iter_{iteration}.pth"
    assert run(toy_options, tmp_path / "c", "resume", source) == 0
    assert same_tensors(whole / "train_iter_8.pth", tmp_path / "c/train_iter_8.pth")
    assert noted(whole)[iteration:] == noted(tmp_path / "c")


def test_a_finished_run_can_be_made_longer(toy_options, tmp_path):
    assert run(toy_options, tmp_path, "max_iter", 5) == 0
    assert run(toy_options, tmp_path, "resume", "auto") == 0
    assert [i for i, _ in noted(tmp_path)] == list(range(1, 9))


@pytest.mark.parametrize(
    "change, files",
    [
        (["iter_interval", 3], {"train_iter_6.pth", "train_iter_8.pth"}),
        (["max_iter", 4], set()),  # it is longer already
        (["max_iter", "null", "epochs", 3], {"train_epoch_2.pth", "train_epoch_3.pth"}),  # an epoch is 3 iterations
    ],
    ids=["other interval", "shorter", "epochs"],
)
def test_a_run_goes_on_at_its_iteration_however_it_counts_now(whole, toy_options, tmp_path, change, files):
    assert run(toy_options, tmp_path / "b", "resume", whole / "train_iter_5.pth", *change) == 0
    assert {p.name for p in (tmp_path / "b").glob("*.pth")} == files
    if files:
        assert [i for i, _ in noted(tmp_path / "b")] == list(range(6, 9 + ("null" in change)))
    if change == ["iter_interval", 3]:
        assert same_tensors(whole / "train_iter_8.pth", tmp_path / "b/train_iter_8.pth")


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
    assert run(toy_options, tmp_path, *more, "main_metric", metric) == 0
    scored = {value: i for i, value in reversed(noted(tmp_path, f"{metric}_val"))}
    assert load_checkpoint(tmp_path / "model_best.pth")["iteration"] == scored[best(scored)]
    state = load_checkpoint(tmp_path / "model_best.pth")["state"]
    assert state["best_score"] == best(scored) and state["best_at"] == scored[best(scored)]


def test_a_run_of_epochs_goes_on_by_iterations_of_fewer_images(toy_options, tmp_path):
    assert run(toy_options, tmp_path, "max_iter", "null", "epochs", 2) == 0
    assert run(toy_options, tmp_path, "batch_size", 2, "iter_interval", 8, "resume", "auto") == 0
    assert {path.name for path in tmp_path.glob("*.pth")} == {"train_epoch_1.pth", "train_epoch_2.pth", "train_iter_8.pth"}
    assert not list(tmp_path.glob("earlier-*")) and [i for i, _ in noted(tmp_path)] == list(range(1, 9))


def test_a_file_of_class_names_that_goes_away_does_not_end_the_run(toy_options, tmp_path, monkeypatch):
    names = tmp_path / "names.txt"
    shutil.copy(ROOT / "dataset/toy/toy_names.txt", names)
    monkeypatch.setattr(train, "open_output", lambda run: names.unlink() or open_output(run))
    assert run(toy_options, tmp_path / "a", "evaluate", "True", "names_path", names, "max_iter", 2) == 0
    assert noted(tmp_path / "a", "mIoU_val") and not names.exists()


def test_another_score_begins_anew_and_the_seed_stays(toy_options, tmp_path, capsys):
    validating = ["evaluate", "True", "eval_freq", 1]
    assert run(toy_options, tmp_path, *validating, "max_iter", 5, "manual_seed", 7, "main_metric", "allAcc") == 0
    rules = "[{name: 'layer[13].*', weight_decay: 0}]"
    swapped = (ROOT / "dataset/toy/toy_names.txt").read_text().splitlines()
    swapped[:2] = swapped[1::-1]
    (tmp_path / "names.txt").write_text("\n".join(swapped))
    more = ["names_path", tmp_path / "names.txt", "param_rules", rules]
    assert run(toy_options, tmp_path, *validating, "manual_seed", 99, "resume", "auto", *more) == 0
    screen = capsys.readouterr().out
    assert "manual_seed: 99 has no effect: a run that resumes keeps its seed, 7" in screen
    assert "main_metric changed: the best is chosen among the validations to come" in screen
    assert f"names_path: class 0 was {swapped[1]} and is {swapped[0]}, class 1 was {swapped[0]} and is {swapped[1]};" in screen
    assert load_checkpoint(tmp_path / "earlier-1/model_best.pth")["iteration"] == 5
    best = load_checkpoint(tmp_path / "model_best.pth")
    assert [(best["iteration"], best["state"]["best_score"])] == noted(tmp_path, "mIoU_val")[1:]
    assert best["state"]["seed"] == yaml.safe_load((tmp_path / "config.yaml").read_text())["TRAIN"]["manual_seed"] == 7


def test_loss_from_outside_the_network_trains_the_same_weights(toy_options, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:  # the loss of all logits at once, as it is computed outside
        patch.setattr(SceneParser, "fused_loss", property(lambda _: False, lambda *_: None), raising=False)
        assert run(toy_options, tmp_path / "a", "max_iter", 3) == 0
    assert run(toy_options, tmp_path / "b", "max_iter", 3, "criterion_outside", "True") == 0
    a, b = (weights(tmp_path / name / "train_iter_3.pth") for name in "ab")
    for key, value in a.items():
        torch.testing.assert_close(b[key], value, rtol=0, atol=1e-6)


def test_sampler_goes_on_into_the_next_epochs():
    def batches(*position, **more):
        sampler.set_epoch(*position, **more)
        assert len(found := list(sampler)) == len(sampler)
        return found

    sampler = EpochSampler(13, 4, seed=3)
    expected = [*batches(1)[2:], *batches(2), *batches(3)[:2]]
    assert batches(1, start_batch=2, batches=6) == expected and len(expected) == 6


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
    assert [i for i, _ in noted(tmp_path, "mIoU_val")] == [1, 2, 3, 4, 5, 8]


def test_a_checkpoint_from_before_intervals_goes_on(toy_options, tmp_path):
    epochs = ["max_iter", "null", "epochs", 3]
    assert run(toy_options, tmp_path / "a", *epochs, "save_iters", 2) == 0
    content = load_checkpoint(tmp_path / "a/train_epoch_2.pth")
    del content["iteration"]
    content["state"] = {"epoch": 2, "seed": 7, "step": 0, "loss_sum": 0.0, "areas": [], "best_mIoU": 0.25, "best_epoch": 1}
    config = yaml.safe_load(content["config"])
    for key in ("max_iter", "iter_interval", "main_metric"):
        del config["TRAIN"][key]
    torch.save(content | {"config": yaml.safe_dump(config)}, tmp_path / "old.pth")
    (tmp_path / "b").mkdir()
    shutil.copy(tmp_path / "old.pth", tmp_path / "b/train_epoch_2.pth")
    torch.save({"epoch": 1}, tmp_path / "b/model_best.pth")  # without it the best would be chosen anew
    assert run(toy_options, tmp_path / "b", *epochs, "resume", "auto") == 0
    assert same_tensors(tmp_path / "a/train_epoch_3.pth", tmp_path / "b/train_epoch_3.pth")
    state = load_checkpoint(tmp_path / "b/train_epoch_3.pth")["state"]
    assert state["best_score"] == 0.25 and state["best_at"] == 3
    assert run(toy_options, tmp_path / "c", "resume", tmp_path / "old.pth") == 0  # 6 of 8 iterations
    assert [i for i, _ in noted(tmp_path / "c")] == [7, 8]


# ---- one clock: a run goes on at its iteration ----

LENGTHS = {
    "iterations": ["max_iter", 9, "iter_interval", 5],
    "shorter intervals": ["max_iter", 9, "iter_interval", 2],
    "longer intervals": ["max_iter", 9, "iter_interval", 7],
    "epochs": ["max_iter", "null", "epochs", 3],
}
ENDS = {"iterations": [5, 9], "shorter intervals": [2, 4, 6, 8, 9], "longer intervals": [7, 9], "epochs": [3, 6, 9]}


@pytest.fixture(scope="module")
def stopped(narrow, toy, tmp_path_factory):
    """Options, and for each length the folder of a run that keeps the checkpoint of every iteration."""
    options = small_training(toy, print_freq=2, base_lr=0.01)
    folders = {}
    for name in ("iterations", "epochs"):
        folders[name] = tmp_path_factory.mktemp(name)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("util.run.prune_checkpoints", lambda *_: None)
            assert run(options, folders[name], *LENGTHS[name], "save_iters", 1, "evaluate", "True", "eval_freq", 1) == 0
    return options, folders


@pytest.mark.parametrize("after", LENGTHS)
@pytest.mark.parametrize("before, iteration", [("iterations", 4), ("iterations", 5), ("epochs", 4), ("epochs", 6)])
def test_a_run_goes_on_under_another_length_at_any_moment(stopped, tmp_path, before, iteration, after):
    options, folders = stopped
    for path in folders[before].iterdir():
        if path.suffix == ".pth" and load_checkpoint_iteration(path) <= iteration or path.name == "metrics.jsonl":
            shutil.copy(path, tmp_path)
    more = [*LENGTHS[after], "evaluate", "True", "eval_freq", 1, "save_iters", 1]
    assert run(options, tmp_path, *more, "resume", "auto") == 0
    assert [i for i, _ in noted(tmp_path)] == list(range(1, 10))
    expected = sorted({i for i in ENDS[before] if i <= iteration} | {i for i in ENDS[after] if i >= iteration})
    assert [i for i, _ in noted(tmp_path, "mIoU_val")] == [i for i, _ in noted(tmp_path, "mIoU_train")] == expected
    last = {"epochs": "train_epoch_3.pth"}.get(after, "train_iter_9.pth")
    assert same_tensors(tmp_path / last, folders["iterations"] / "train_iter_9.pth")
    assert load_checkpoint(tmp_path / last)["state"]["counted"] == 0


def load_checkpoint_iteration(path):
    return torch.load(path, mmap=True, weights_only=True)["iteration"]


def test_an_interval_that_changes_in_the_middle_of_another_goes_on(toy_options, tmp_path):
    """Iteration 13 of max_iter 40 under iter_interval 20, then iter_interval 10."""
    small = ["train_h", 17, "train_w", 17, "print_freq", 50]
    assert run(toy_options, tmp_path, *small, "max_iter", 13, "iter_interval", 20) == 0
    (tmp_path / "train_iter_13.pth").rename(tmp_path / "there.pth")
    content = load_checkpoint(tmp_path / "there.pth")
    content["state"] |= {"counted": 13, "loss_sum": 13.0, "areas": [[1] * 9] * 3}  # as if it had been stopped there
    torch.save(content, tmp_path / "train_iter_13.pth")
    assert run(toy_options, tmp_path, *small, "max_iter", 22, "iter_interval", 10, "resume", "auto") == 0
    assert [i for i, _ in noted(tmp_path, "loss_train")] == [20, 22]


# ---- checkpoints of earlier versions ----

EARLIER = json.loads((ROOT / "tests/golden/earlier_checkpoints.json").read_text())  # all of them but the tensors


KINDS = {
    "epochs": ["max_iter", 9, "iter_interval", 3, "eval_freq", 2],
    "iterations": ["max_iter", 8, "iter_interval", 5, "eval_freq", 1],
}


@pytest.fixture(scope="module")
def new(narrow, toy, tmp_path_factory):
    """For each kind of them the folder of the same run by this version, with the checkpoint of every iteration."""
    folders = {kind: tmp_path_factory.mktemp(kind) for kind in KINDS}
    for kind, folder in folders.items():
        more = ["evaluate", "True", "keep_checkpoints", 9, "save_iters", 1]
        assert run(small_training(toy, print_freq=2), folder, *KINDS[kind], *more) == 0
    return folders


@pytest.mark.parametrize("length, name", [(length, name) for length in EARLIER for name in EARLIER[length]])
def test_a_checkpoint_of_the_version_that_counted_epochs_and_steps_goes_on(new, toy_options, tmp_path, length, name):
    old = EARLIER[length][name]
    tensors = load_checkpoint(new[length] / f"train_iter_{old['iteration']}.pth")
    content = {**old, "state_dict": tensors["state_dict"]}
    groups = zip(old["optimizer"]["param_groups"], tensors["optimizer"]["param_groups"])  # of a network of two blocks a stage
    content["optimizer"] = tensors["optimizer"] | {"param_groups": [a | {"params": b["params"]} for a, b in groups]}
    (tmp_path / "old").mkdir()
    torch.save(content, tmp_path / "old" / name)
    how = [*KINDS[length], *(["max_iter", "null", "epochs", 3] if length == "epochs" else [])]
    assert run(toy_options, tmp_path / "old", *how, "evaluate", "True", "keep_checkpoints", 9, "resume", "auto") == 0
    last = "train_epoch_3.pth" if length == "epochs" else "train_iter_8.pth"
    ours, theirs = new[length] / f"train_iter_{KINDS[length][1]}.pth", tmp_path / "old" / last
    assert same_tensors(ours, theirs) and load_checkpoint(theirs)["state"]["counted"] == 0
    plan = Plan(3, 9, 3, counts_epochs=True) if length == "epochs" else Plan(3, 8, 5, counts_epochs=False)
    state = state_of(SimpleNamespace(path="a.yaml", resume=name, classes=9), plan, old)
    best = old["state"]["best_at"]  # "epoch 2" or "iteration 5"
    assert state.best_at == (int(best.split()[1]) * (3 if "epoch" in best else 1) if best else None)
    assert (state.best_score, state.counted) == (old["state"]["best_score"], old["state"]["counted"])
    first = old["iteration"] + 1
    assert [i for i, _ in noted(tmp_path / "old")] == list(range(first, load_checkpoint(ours)["iteration"] + 1))
