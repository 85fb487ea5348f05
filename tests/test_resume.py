"""Resuming at moments and in ways that are easily overlooked: nothing may be lost, and no number may stand twice."""

import resource
import shutil

import pytest
import torch
from processes import CONFIG, finish, noted, said, same_tensors, small_training, start, wait_for

from tool import convert, demo, test, train
from util.checkpoint import load_checkpoint
from util.config import load_config
from util.log import lock_folder

pytestmark = pytest.mark.usefixtures("narrow")


@pytest.fixture
def run(toy, tmp_path):
    """`run(KEY, VALUE, ...)`: status of a training into tmp_path/model, 3 iterations an epoch, two epochs."""
    options = small_training(toy, save_path=tmp_path / "model", eval_freq=1)
    return lambda *more: train.main(["--config", CONFIG, *options, *map(str, more)])


def iterations(*what):
    return [i for i, _ in noted(*what)]


def interrupted(*_, **__):
    raise KeyboardInterrupt


def test_a_run_stopped_in_two_validations_goes_on_from_the_iteration_before_them(run, tmp_path, monkeypatch):
    """Under max_iter the checkpoint before a validation has the name of the one after it."""
    stopped = ["max_iter", 6, "iter_interval", 3, "resume", "auto"]
    with monkeypatch.context() as patch:
        patch.setattr(train, "predict_probability", interrupted)
        for _ in range(2):
            assert run(*stopped) == 130
            assert [path.name for path in (tmp_path / "model").glob("*.pth")] == ["train_iter_3.pth"]
            assert not list((tmp_path / "model").glob("earlier-*"))
    assert run(*stopped) == 0
    assert iterations(tmp_path / "model") == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("now", [["epochs", 1], ["max_iter", 3]], ids=str)
def test_a_run_stopped_inside_an_interval_that_is_beyond_the_new_end_has_ended(now, run, tmp_path, capsys):
    longer = ["max_iter", 6, "iter_interval", 3, "keep_checkpoints", 9, "evaluate", False]
    assert run(*longer, "save_iters", 1) == 0
    for start_at in (4, 5):
        assert run("resume", tmp_path / f"model/train_iter_{start_at}.pth", *now) == 0
        assert "reached its end" in capsys.readouterr().out


@pytest.mark.parametrize("more", [[], ["optimizer", "adamw", "schedule", "onecycle", "momentum_low", 0.8]])
def test_a_run_that_has_only_its_last_validation_to_do_ends_with_the_same_optimizer(more, run, tmp_path, monkeypatch, capsys):
    assert run(*more, "eval_freq", 2) == 0
    whole = (tmp_path / "model").rename(tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(train, "predict_probability", interrupted)
        assert run(*more, "eval_freq", 2) == 130
    assert run(*more, "eval_freq", 2, "resume", "auto") == 0
    assert "resumed at iteration 6" in capsys.readouterr().out
    a, b = (load_checkpoint(folder / "train_epoch_2.pth")["optimizer"] for folder in (whole, tmp_path / "model"))
    assert a["param_groups"] == b["param_groups"] and a["param_groups"][0]["lr"] < 0.05
    assert same_tensors(whole / "train_epoch_2.pth", tmp_path / "model/train_epoch_2.pth")


def test_adamw_resumes_to_the_same_bytes(run, tmp_path):
    more = ["optimizer", "adamw", "base_lr", 1e-3, "schedule", "onecycle", "momentum_low", 0.8]
    assert run(*more) == 0
    assert run(*more, "save_path", tmp_path / "again", "resume", tmp_path / "model/train_epoch_1.pth") == 0
    assert iterations(tmp_path / "again") == [4, 5, 6]
    assert same_tensors(tmp_path / "model/train_epoch_2.pth", tmp_path / "again/train_epoch_2.pth")


def test_a_run_with_no_other_checkpoint_than_the_best_resumes_from_it(run, tmp_path, monkeypatch, capsys):
    assert run("epochs", 3) == 0
    whole = (tmp_path / "model").rename(tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(train, "log_iteration", lambda run, *_: run.state.iteration < 5 or interrupted())
        assert run("epochs", 3, "save_freq", 3, "print_freq", 1) == 130
    (tmp_path / "model/train_epoch_0_iter_3.pth").unlink()  # of before the validation
    assert {path.name for path in (tmp_path / "model").glob("*.pth")} == {"model_best.pth"}
    assert run("epochs", 3, "save_freq", 3, "resume", "auto") == 0
    assert f"resume: {tmp_path / 'model/model_best.pth'}" in capsys.readouterr().out
    assert same_tensors(whole / "train_epoch_3.pth", tmp_path / "model/train_epoch_3.pth")


def test_another_batch_size_keeps_the_best_checkpoint_and_the_metrics(run, tmp_path, capsys):
    folder = tmp_path / "model"
    assert run() == 0
    epoch = load_checkpoint(folder / "model_best.pth")["epoch"]
    assert run("resume", "auto", "batch_size", 8, "epochs", 3, "evaluate", False) == 0
    assert (folder / "model_best.pth").exists()
    assert load_checkpoint(folder / "train_epoch_3.pth")["state"]["best_at"] == epoch  # an epoch is one iteration now
    screen = capsys.readouterr().out
    assert f"epoch {epoch}: {folder / 'model_best.pth'}" in screen
    assert f"what does not go on from iteration 2 is kept in {folder / 'earlier-1'}: events.out.tfevents" in screen
    assert iterations(folder / "earlier-1") == [1, 2, 3, 4, 5, 6]
    assert iterations(folder) == [3]


def test_the_best_on_other_images_is_not_the_best_on_these(run, toy, tmp_path, capsys):
    """The list is written anew under its name; a run without validations in between does not forget what judged the best."""
    images, best = tmp_path / "val.txt", tmp_path / "model/model_best.pth"
    shutil.copy(toy / "list/val.txt", images)
    assert run("val_list", images, "epochs", 1) == 0
    moved = shutil.copy(images, tmp_path / "moved.txt")
    images.write_text(images.read_text().split("\n")[0])
    assert run("val_list", images, "evaluate", False, "epochs", 2, "resume", "auto") == 0
    with_first = shutil.copytree(tmp_path / "model", tmp_path / "other")
    capsys.readouterr()
    assert run("val_list", images, "epochs", 3, "resume", "auto") == 0
    assert "val_list changed: the best is chosen among the validations to come" in capsys.readouterr().out
    assert load_checkpoint(best)["epoch"] == 3 and load_checkpoint(tmp_path / "model/earlier-1/model_best.pth")["epoch"] == 1
    assert run("val_list", moved, "epochs", 3, "resume", "auto", "save_path", with_first) == 0  # the same images
    assert "the best is chosen" not in capsys.readouterr().out


def test_two_validations_are_compared_only_if_they_predict_alike(toy, tmp_path):
    options = small_training(toy, save_path=tmp_path)
    judge = lambda *more: train.judge_of(load_config(CONFIG, [*options, *map(str, more)]))
    for key, value in {"base_size": 40, "test_h": 41, "test_mode": "whole", "average": "logit", "main_metric": "mAcc"}.items():
        assert judge(key, value) != judge(), key
    for key, value in {"flip": False, "scales": "[0.5]", "test_batch": 3, "precision": "bf16", "base_lr": 1}.items():
        assert judge(key, value) == judge(), key
    assert judge("test_h", "null", "train_h", 41) == judge("test_h", 41)


@pytest.mark.parametrize("now, anew", [([], False), (["main_metric", "mAcc"], True)], ids=str)
def test_the_best_of_an_earlier_version_is_kept_unless_the_score_changes(now, anew, run, tmp_path, capsys):
    assert run("epochs", 1) == 0
    path = tmp_path / "model/train_epoch_1.pth"
    content = load_checkpoint(path)
    del content["judge"]
    torch.save(content, path)
    assert run("epochs", 1, "resume", "auto", *now) == 0
    assert ("the best is chosen among the validations to come" in capsys.readouterr().out) == anew


def test_no_best_checkpoint_is_named_that_is_not_there(run, tmp_path, capsys):
    assert run() == 0
    assert run("resume", tmp_path / "model/train_epoch_1.pth", "save_path", tmp_path / "other", "evaluate", False) == 0
    assert not (tmp_path / "other/model_best.pth").exists()
    assert "other/model_best.pth" not in capsys.readouterr().out


def test_a_start_epoch_where_nothing_is_resumed_keeps_nothing_of_an_earlier_run(run, tmp_path, capsys):
    assert run() == 0
    for path in (tmp_path / "model").glob("*.pth"):
        path.unlink()
    assert run("resume", "auto", "start_epoch", 1) == 0
    assert iterations(tmp_path / "model") == [4, 5, 6]
    assert "resumed at" not in capsys.readouterr().out


def test_a_run_that_started_from_weights_of_its_own_folder_goes_on_without_them(run, tmp_path):
    weight = ["weight", tmp_path / "model/train_epoch_2.pth"]  # moved aside with the run that made it
    assert run() == 0
    assert run(*weight, "epochs", 1) == 0 and not weight[1].exists()
    assert run(*weight, "resume", "auto") == 0 and weight[1].exists()


@pytest.mark.parametrize("size", [500, 2000, 20000])
def test_a_disk_that_is_full_at_any_moment_ends_the_run_with_one_message(size, toy, tmp_path):
    folder, log = tmp_path / "model", tmp_path / "log"
    (process,) = start([*small_training(toy, save_path=folder, epochs=9)], log=log, pause=0.2)
    wait_for(lambda: log.with_name("log.0").exists() and "Epoch: [1/9][1/3]" in said(log))
    largest = max(path.stat().st_size for path in folder.iterdir() if path.suffix not in (".pth", ".tmp"))
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (largest + size, largest + size))
    assert finish([process]) == [1]
    assert said(log).count("error: ") == 1 and "Traceback" not in said(log) and "could not be written" in said(log)


@pytest.mark.parametrize("name", ["metrics.jsonl", "config.yaml", "metrics.stray", "model_best.pth"])
def test_a_folder_in_the_place_of_a_file_is_named(name, run, tmp_path, capsys):
    assert run() == 0
    path = tmp_path / "model" / name
    path.rename(tmp_path / name) if path.exists() else None
    path.mkdir()
    if name == "metrics.stray":
        (tmp_path / "model/metrics.jsonl").write_text("stray\n")
    assert run("resume", "auto", "epochs", 3) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and name in error


@pytest.mark.parametrize("key", ["test_list", "save_path", "cache", "resume"])
def test_a_name_longer_than_file_systems_take_is_a_mistake_or_not_used(key, run, tmp_path, capsys):
    assert run(key, f"{tmp_path}/{'a' * 300}") in (0, 1)
    assert "Traceback" not in capsys.readouterr().err


def test_no_program_overwrites_what_it_reads(run, toy, tmp_path, capsys):
    assert run("epochs", 1) == 0
    weights, options = tmp_path / "model/train_epoch_1.pth", small_training(toy, save_path=tmp_path)
    assert convert.main([str(weights), str(weights)]) == 1
    assert "is the file to read" in capsys.readouterr().err
    shutil.copy(next(toy.rglob("*.png")), tmp_path / "a.png")
    shutil.copy(tmp_path / "a.png", tmp_path / "a_gray.png")
    command = ["--config", CONFIG, "--image", str(tmp_path), "--out", str(tmp_path), "--model_path", str(weights)]
    assert demo.main([*command, *options]) == 1
    assert "a_gray.png is one of the inputs and would be overwritten" in capsys.readouterr().err
    (tmp_path / "data/gray").mkdir(parents=True)
    for name in ("gray/a.png", "a.png"):
        shutil.copy(tmp_path / "a.png", tmp_path / "data" / name)
    (tmp_path / "list.txt").write_text("a.png gray/a.png\n")
    more = ["data_root", tmp_path / "data", "test_list", tmp_path / "list.txt", "save_folder", tmp_path / "data"]
    assert test.main(["--config", CONFIG, *options, *map(str, [*more, "model_path", weights])]) == 1
    assert "data/gray/a.png is in test_list and would be overwritten" in capsys.readouterr().err


@pytest.mark.parametrize("program", [convert, demo], ids=lambda program: program.__name__)
def test_a_name_too_long_for_a_file_is_one_message(program, run, tmp_path, capsys):
    long = str(tmp_path / ("a" * 300))
    argv = {convert: [long, long + "b"], demo: ["--config", CONFIG, "--image", long, "--model_path", CONFIG]}[program]
    assert program.main(argv) == 1
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize("device", ["/dev/null", "/dev/full"])
def test_a_lock_that_takes_no_text_is_one_all_the_same(device, tmp_path):
    (tmp_path / ".lock").symlink_to(device)
    assert lock_folder(tmp_path) is not None


def test_two_processes_move_an_earlier_run_aside_once_and_go_on_after_a_stop_in_a_validation(toy, tmp_path):
    folder, log = tmp_path / "model", tmp_path / "log"
    options = small_training(toy, save_path=folder, max_iter=4, iter_interval=2, eval_freq=1)
    assert finish(start(options, world=2, log=log)) == [0, 0], said(log) + said(log, 1)
    log.with_name("log.0").unlink()
    processes = start(options, world=2, log=log, pause=0.3)
    wait_for(lambda: log.with_name("log.0").exists() and "Start Evaluation" in said(log))
    processes[1].terminate()  # one of them alone gets the signal
    assert finish(processes) == [75, 75], said(log) + said(log, 1)
    assert [path.name for path in folder.glob("earlier-*")] == ["earlier-1"]
    assert iterations(folder / "earlier-1") == [1, 2, 3, 4]
    assert finish(start(options, "resume", "auto", world=2, log=log)) == [0, 0], said(log) + said(log, 1)
    assert iterations(folder) == [1, 2, 3, 4] and iterations(folder, "loss_val") == [2, 4]
    assert [path.name for path in folder.glob("earlier-*")] == ["earlier-1"]


def test_missing_model_path_beside_links_that_lead_nowhere_or_in_a_folder_that_cannot_be_is_one_message(toy, tmp_path, capsys):
    (tmp_path / "latest.pth").symlink_to("latest.pth")
    options = small_training(toy, save_path=tmp_path, save_folder=tmp_path / "result")
    for model in (tmp_path / "model.pth", tmp_path / ("a" * 300) / "model.pth"):
        assert test.main(["--config", CONFIG, *options, "model_path", str(model)]) == 1
        error = capsys.readouterr().err
        assert error.startswith("error: ") and "model.pth does not exist" in error
