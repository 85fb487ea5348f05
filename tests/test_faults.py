"""What happens to a training that is killed, stopped, or let down by its disk, its data or its workers."""

import copy
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from processes import CONFIG, children, finish, free_port, noted, said, same_tensors, scalars, small_training, start, wait_for

from tool import train
from util import distributed
from util.checkpoint import load_checkpoint
from util.config import ROOT

REPORTED = 300  # seconds within which a fault must have ended the program, on a slow and busy machine


@pytest.fixture(scope="module")
def options(toy):
    return small_training(toy, save_iters=1)


@pytest.fixture(scope="module")
def uninterrupted(options, tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    assert finish(start(options, "save_path", folder, log=folder / "log")) == [0], said(folder / "log")
    return folder


def ended_alike(folder, other):
    assert noted(folder) == noted(other) and len(noted(folder)) == 6
    assert (folder / "metrics.jsonl").read_text() == (other / "metrics.jsonl").read_text()
    assert same_tensors(folder / "train_epoch_2.pth", other / "train_epoch_2.pth")
    assert load_checkpoint(folder / "train_epoch_2.pth")["state"] == load_checkpoint(other / "train_epoch_2.pth")["state"]
    return True


def test_run_killed_at_five_moments_ends_as_one_that_was_not(options, tmp_path):
    options = [*options, "epochs", "6"]
    whole, log = tmp_path / "whole", tmp_path / "log"
    assert finish(start(options, "save_path", whole, log=log)) == [0], said(log)

    def first_iteration():
        return "Epoch: [" in said(log)

    def saving():
        return list(folder.glob(".*.tmp"))

    def validation():
        return "Start Evaluation" in said(log)

    rng, folder = random.Random(0), tmp_path / "model"
    log.with_name("log.0").unlink()
    for moment, most in ((first_iteration, 0.5), (saving, 0.1), (first_iteration, 0.5), (saving, 0), (validation, 0.3)):
        (process,) = start(options, "save_path", folder, "workers", 1, "resume", "auto", log=log, pause=0.1)
        wait_for(lambda now=moment: log.with_name("log.0").exists() and now())
        time.sleep(rng.uniform(0, most))
        process.kill()
        assert finish([process]) == [-signal.SIGKILL], said(log)
        log.with_name("log.0").unlink()
    assert finish(start(options, "save_path", folder, "resume", "auto", log=log)) == [0], said(log)
    assert "resumed at iteration" in said(log)  # a run that begins anew ends alike too
    assert same_tensors(folder / "train_epoch_6.pth", whole / "train_epoch_6.pth")
    assert (folder / "metrics.jsonl").read_text() == (whole / "metrics.jsonl").read_text()
    assert scalars(folder) == scalars(whole) and len(scalars(whole)) > 100
    assert all(len(values) == 1 for values in scalars(folder).values())  # every point once
    assert not list(folder.glob(".*.tmp"))


@pytest.mark.parametrize("number, moment", [
    (signal.SIGTERM, "[1/2][2/3]"), (signal.SIGINT, "[1/2][1/3]"), (signal.SIGHUP, "[1/2][2/3]"),
    (signal.SIGUSR1, "Start Evaluation")], ids=str)  # fmt: skip
def test_run_stopped_by_a_signal_saves_and_goes_on_later(number, moment, options, uninterrupted, tmp_path):
    """The signal reaches the loader workers too, as that of a scheduler or a Ctrl-C does."""
    folder, log = tmp_path / "model", tmp_path / "log"
    (process,) = start(options, "save_path", folder, "workers", 2, "save_iters", 0, log=log, pause=0.5)
    wait_for(lambda: log.with_name("log.0").exists() and moment in said(log))
    for pid in (process.pid, *children(process.pid)):
        os.kill(pid, number)
    assert finish([process]) == [train.REQUEUE], said(log)
    assert f"Stopped by {number.name}; everything is saved, start again with `resume auto`" in said(log)
    assert list(folder.glob("train_epoch_*.pth"))
    assert finish(start(options, "save_path", folder, "resume", "auto", log=log)) == [0], said(log)
    assert "resumed at iteration" in said(log) and ended_alike(folder, uninterrupted)


@pytest.mark.parametrize("damage", ["one bit", "cut off"])
def test_damaged_newest_checkpoint_is_passed_over_with_a_warning(damage, options, uninterrupted, tmp_path):
    folder = shutil.copytree(uninterrupted, tmp_path / "model")
    newest = folder / "train_epoch_2.pth"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content if damage == "one bit" else content[:-1000])
    assert finish(start(options, "save_path", folder, "resume", "auto", log=tmp_path / "log")) == [0]
    text = said(tmp_path / "log")
    assert f"{newest}: " in text and "trying the one before" in text
    assert " WARNING " in max(folder.glob("train-*.log"), key=lambda file: file.stat().st_mtime).read_text()
    assert "resumed at iteration 3 (epoch 1)" in text and (folder / "earlier-1/train_epoch_2.pth").is_file()
    assert ended_alike(folder, uninterrupted)


def test_full_disk_stops_the_run_and_leaves_the_previous_checkpoint(options, tmp_path):
    folder, log = tmp_path / "model", tmp_path / "log"
    (process,) = start(options, "save_path", folder, log=log, pause=0.5)
    wait_for(lambda: list(folder.glob("train_epoch_*.pth")))
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (2**20, 2**20))
    assert finish([process], REPORTED) == [1]
    assert "could not be written" in said(log) and "what was there is untouched" in said(log)
    assert "Traceback" not in said(log)
    left = [path for path in folder.iterdir() if path.suffix in (".pth", ".tmp")]
    assert left and all(load_checkpoint(path)["state"]["iteration"] > 0 for path in left)


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_image_in_the_middle_of_an_epoch_is_named(workers, toy, options, tmp_path):
    lines = (toy / "list/train.txt").read_text().splitlines()
    (tmp_path / "broken.png").write_bytes((toy / lines[0].split()[0]).read_bytes()[:200])
    (tmp_path / "list.txt").write_text("\n".join([*lines, f"{tmp_path}/broken.png {lines[0].split()[1]}"]))
    more = ["train_list", tmp_path / "list.txt", "save_path", tmp_path, "check_data", False, "batch_size", 7]
    assert finish(start(options, *more, "workers", workers, log=tmp_path / "log"), REPORTED) == [1]
    assert f"error: {tmp_path}/broken.png: cannot be decoded" in said(tmp_path / "log")
    assert "Traceback" not in said(tmp_path / "log")


def under_way(log):
    wait_for(lambda: log.with_name("log.0").exists() and "Epoch: [" in said(log))


def test_killed_loader_worker_is_reported(options, tmp_path):
    log = tmp_path / "log"
    (process,) = start(options, "save_path", tmp_path, "workers", 1, log=log, pause=0.5)
    under_way(log)
    (worker,) = children(process.pid)
    os.kill(worker, signal.SIGKILL)
    assert finish([process], REPORTED) == [1]
    error = said(log).partition("error: ")[2]  # torch words it in two ways, or a batch was cut off
    dead = f"DataLoader worker (pid {worker})", f"DataLoader worker (pid(s) {worker})", "another process of this run has ended"
    assert error.startswith(dead)
    assert "lower `workers`" in error and "Traceback" not in said(log)


def test_loader_worker_that_hangs_is_reported_after_the_time_out(toy, options, tmp_path):
    data, log = shutil.copytree(toy, tmp_path / "toy"), tmp_path / "log"
    more = ["data_root", data, "save_path", tmp_path, "workers", 1, "loader_timeout", 5, "epochs", 99]
    (process,) = start(options, *more, log=log)
    under_way(log)
    for image in (data / "image").rglob("*.png"):
        image.unlink()
        os.mkfifo(image)  # as a file on a disk that does not answer: reading it never ends
    assert finish([process], REPORTED) == [1]
    assert "error: DataLoader timed out after 5 seconds." in said(log) and "raise `loader_timeout`" in said(log)


def test_second_start_into_the_same_folder_is_refused_by_all_processes_with_one_message(options, tmp_path):
    (first,) = start(options, "save_path", tmp_path / "model", log=tmp_path / "first")
    wait_for(lambda: list((tmp_path / "model").glob("train-*.log")))
    os.kill(first.pid, signal.SIGSTOP)
    try:
        log = tmp_path / "second"
        assert finish(start(options, "save_path", tmp_path / "model", world=2, log=log), REPORTED) == [1, 1]
        assert f"another run writes here (process {first.pid} on " in said(log) and "error" not in said(log, 1)
    finally:
        first.kill()
        first.join()


def test_processes_that_see_different_checkpoints_do_not_train_together(options, uninterrupted, tmp_path):
    (tmp_path / "empty").mkdir()
    variables = {"WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    processes = []
    for rank, folder in enumerate((shutil.copytree(uninterrupted, tmp_path / "model"), tmp_path / "empty")):
        own = {**variables, "RANK": rank, "LOCAL_RANK": rank}
        processes += start(options, "save_path", folder, "resume", "auto", variables=own, log=tmp_path / f"log{rank}")
    assert finish(processes, REPORTED)[1] == 1
    assert "not the checkpoint that the main process found; all machines must see the same files" in said(tmp_path / "log1")


def test_checkpoint_that_would_run_code_is_refused(options, tmp_path, capsys):
    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"state_dict": Attack()}, tmp_path / "train_epoch_1.pth")
    for key in ("resume", "weight"):
        more = [key, tmp_path / "train_epoch_1.pth", "save_path", tmp_path / "model"]
        assert train.main(["--config", CONFIG, *options, *map(str, more)]) == 1
        assert "train_epoch_1.pth: refused, since it holds more than tensors" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()


def test_weights_that_are_not_finite_are_never_saved(narrow, options, tmp_path, monkeypatch, capsys):
    def update(run, image, label):
        result = step(run, image, label)
        run.network.get_buffer("layer1.0.bn1.running_var")[1] = torch.inf
        return result

    step = train.update
    monkeypatch.setattr(train, "update", update)
    assert train.main(["--config", CONFIG, *options, "save_path", str(tmp_path)]) == 1
    assert "layer1.0.bn1.running_var became infinite or nan in epoch 1, iteration 1" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.pth"))


# ---- checkpoints that a run cannot go on from ----


@pytest.fixture(scope="module")
def checkpoint(uninterrupted):
    return load_checkpoint(uninterrupted / "train_epoch_1.pth")


DAMAGES = {
    "no state": lambda c: c.pop("state"),
    "no config": lambda c: c.pop("config"),
    "config of another kind": lambda c: c.update(config="[1, 2]"),
    "config with sections of another kind": lambda c: c.update(config="TRAIN: 3"),
    "unknown key in the state": lambda c: c["state"].update(another=1),
    "missing key in the state": lambda c: c["state"].pop("seed"),
    "text in the state": lambda c: c["state"].update(iteration="three"),
    "fraction of an iteration": lambda c: c["state"].update(iteration=2.5),
    "seed of another kind": lambda c: c["state"].update(seed={}),
    "huge seed": lambda c: c["state"].update(seed=10**30),
    "score of another kind": lambda c: c["state"].update(best_score="high"),
    "best at nowhere": lambda c: c["state"].update(best_at="epoch 2"),
    "areas of another kind": lambda c: c["state"].update(areas=[1], counted=1),
    "areas of other classes": lambda c: c["state"].update(areas=[[1, 2]] * 3, counted=1),
    "loss that is no number": lambda c: c["state"].update(loss_sum=float("nan")),
    "iterations of no size": lambda c: c.update(data_iters="many"),
    "config that is no YAML": lambda c: c.update(config="{"),
    "weight that is not finite": lambda c: c["state_dict"].update({"cls.4.bias": torch.full((9,), float("nan"))}),
    "momentum that is text": lambda c: c["optimizer"]["state"][0].update(momentum_buffer="text"),
    "momentum of no dimension": lambda c: c["optimizer"]["state"][0].update(momentum_buffer=torch.tensor(1.0)),
    "negative iteration": lambda c: c["state"].update(iteration=-1),
    "empty optimizer": lambda c: c.update(optimizer={}),
    "optimizer of another kind": lambda c: c.update(optimizer=[1]),
    "optimizer without groups": lambda c: c["optimizer"].update(param_groups=[]),
    "momentum of another shape": lambda c: c["optimizer"]["state"][0].update(momentum_buffer=torch.ones(2, 2)),
    "number for names": lambda c: c.update(names=3),
    "number for what judged": lambda c: c.update(judge=3),
    "list of weights": lambda c: c.update(state_dict=list(c["state_dict"].values())),
    "sparse weight": lambda c: c["state_dict"].update({"cls.4.weight": c["state_dict"]["cls.4.weight"].to_sparse()}),
    "missing weight": lambda c: c["state_dict"].pop("cls.4.weight"),
    "unknown weight": lambda c: c["state_dict"].update(another=torch.ones(1)),
    "weight of another shape": lambda c: c["state_dict"].update({"cls.4.bias": torch.ones(3)}),
    "integer weight": lambda c: c["state_dict"].update({"cls.4.bias": torch.ones(9, dtype=torch.int64)}),
    "number for a weight": lambda c: c["state_dict"].update({"cls.4.bias": 3.0}),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_resuming_from_an_unfit_checkpoint_is_refused_in_one_message(damage, narrow, options, checkpoint, tmp_path, capsys):
    content = copy.deepcopy(checkpoint)
    DAMAGES[damage](content)
    torch.save(content, tmp_path / "train_epoch_1.pth")
    assert train.main(["--config", CONFIG, *options, "save_path", str(tmp_path), "resume", "auto"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and ("TRAIN.resume" in error or "config of the checkpoint" in error)
    assert {path.name for path in tmp_path.iterdir() if path.suffix not in ("", ".log")} == {"train_epoch_1.pth"}


CHANGES = [("layers", 34), ("arch", "psa"), ("stem", "plain"), ("optimizer", "adamw")]


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_resuming_another_network_is_refused_with_the_remedy(change, narrow, options, uninterrupted, tmp_path, capsys):
    more = [*change, "save_path", tmp_path, "resume", uninterrupted / "train_epoch_1.pth"]
    assert train.main(["--config", CONFIG, *options, *map(str, more)]) == 1
    error = capsys.readouterr().err
    what = "other parameter groups" if change[0] == "optimizer" else "that of another network"
    assert what in error and "`weight`" in error and "Traceback" not in error


def test_other_groups_are_refused_where_a_file_does_not_name_the_parameters(narrow, options, checkpoint, tmp_path, capsys):
    more = ["--config", CONFIG, *options, "save_path", str(tmp_path), "resume", "auto", "bias_decay", "False"]
    torch.save({key: value for key, value in checkpoint.items() if key != "optimizer_names"}, tmp_path / "train_epoch_1.pth")
    assert train.main(more) == 1
    assert "set optimizer, param_rules, bias_decay and norm_decay back" in capsys.readouterr().err
    torch.save(checkpoint, tmp_path / "train_epoch_1.pth")
    assert train.main(more) == 0


# ---- signals at odd moments ----


@pytest.mark.parametrize("number, seconds", [(signal.SIGINT, 0.2), (signal.SIGINT, 1.0), (signal.SIGTERM, 0.5)], ids=str)
def test_a_signal_in_the_first_seconds_leaves_no_traceback(number, seconds, options, tmp_path):
    command = [sys.executable, ROOT / "tool/train.py", "--config", CONFIG, *options, "save_path", tmp_path, "epochs", "99"]
    with subprocess.Popen([*map(str, command)], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        wait_for(lambda: "libtorch" in Path(f"/proc/{process.pid}/maps").read_text())  # Python's own start is Python's
        time.sleep(seconds)
        process.send_signal(number)
        _, error = process.communicate(timeout=REPORTED)
    assert process.returncode in (-number, train.REQUEUE, 130) and "Traceback" not in error


@pytest.mark.parametrize("number, cached", [(signal.SIGTERM, False), (signal.SIGINT, True)])
def test_a_signal_while_the_data_is_looked_at_or_cached_ends_the_run_at_once(number, cached, toy, options, tmp_path):
    image, label = (toy / "list/train.txt").read_text().splitlines()[0].split()
    folder, log = tmp_path / "model", tmp_path / "log"
    for i in range(60):  # names of one image: the cache has each once
        os.link(toy / image, tmp_path / f"{i}.png")
    lines = [f"{tmp_path}/{i % 60}.png {label}\n" for i in range(60 if cached else 20_000)]
    (tmp_path / "list.txt").write_text("".join(lines))
    more = ["train_list", tmp_path / "list.txt", *(["cache", tmp_path / "cache"] if cached else [])]
    (process,) = start(options, "save_path", folder, *more, log=log)
    wait_for(lambda: list((tmp_path / "cache").glob("*.cache") if cached else folder.glob("train-*.log")))
    time.sleep(0 if cached else 1)  # until the list is read
    os.kill(process.pid, number)
    assert finish([process], REPORTED) == [train.REQUEUE]
    (file,) = folder.glob("train-*.log")
    assert f"Stopped by {number.name} before the first iteration: start again" in file.read_text()
    assert said(log).count("\n") <= 1 + 11 * cached and "Traceback" not in said(log)
    assert not list(folder.glob("*.pth"))


def test_a_signal_that_arrives_while_the_processes_agree_is_not_lost(monkeypatch):
    handlers = {number: signal.getsignal(number) for number in distributed.STOPPING}
    stop = distributed.StopSignal()
    try:
        monkeypatch.setattr(distributed, "world_size", lambda: 2)
        monkeypatch.setattr(torch.distributed, "new_group", lambda backend, timeout: {distributed.ALONE: backend}[timeout])
        monkeypatch.setattr(torch.distributed, "all_reduce", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
        assert not stop.requested()  # asked before it came
        monkeypatch.setattr(torch.distributed, "all_reduce", lambda *_, **__: None)
        assert stop.requested() and stop.name() == "SIGTERM"
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def test_a_killed_process_ends_the_others_with_one_line(options, tmp_path):
    log = tmp_path / "log"
    first, second = start(options, "save_path", tmp_path / "model", world=2, log=log, pause=0.5)
    under_way(log)
    second.kill()
    assert finish([first], REPORTED) == [1]
    assert "error: another process of this run has ended: look for its message" in said(log) and "Traceback" not in said(log)


def test_a_network_that_predicts_nan_is_reported_by_one_of_several_processes(options, uninterrupted, tmp_path):
    content = load_checkpoint(uninterrupted / "train_epoch_2.pth")
    for name in ("cls.4.weight", "cls.4.bias"):
        content["state_dict"][name].fill_(3e38)  # finite, but not their sum
    torch.save(content, tmp_path / "large.pth")
    more = ["model_path", tmp_path / "large.pth", "save_folder", tmp_path / "result"]
    assert finish(start(options, *more, world=2, log=tmp_path / "log", program="tool.test"), REPORTED) == [1, 1]
    both = said(tmp_path / "log") + said(tmp_path / "log", 1)
    assert both.count("NaN or infinite") == both.count("error: ") == 1 and "Traceback" not in both


def test_weights_that_cannot_be_fetched_end_all_processes_with_one_message(options, tmp_path):
    nobody = {"https_proxy": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9"}
    more = ["save_path", tmp_path / "model", "initmodel", "torchvision", "layers", 34, "stem", "plain"]
    assert finish(start(options, *more, world=2, log=tmp_path / "log", variables=nobody), REPORTED) == [1, 1]
    both = said(tmp_path / "log") + said(tmp_path / "log", 1)
    assert both.count("initmodel: torchvision: ") == both.count("error: ") == 1 and "could not be downloaded" in both
    assert "Traceback" not in both


# ---- labels without a class ----


def test_labels_that_are_all_ignored_end_the_run_also_without_a_look_at_the_data(narrow, toy, options, tmp_path, capsys):
    Image.fromarray(np.full((48, 64), 255, np.uint8)).save(tmp_path / "void.png")
    images = [line.split()[0] for line in (toy / "list/train.txt").read_text().splitlines()]
    (tmp_path / "void.txt").write_text("".join(f"{toy}/{image} {tmp_path}/void.png\n" for image in images))
    more = ["save_path", tmp_path / "model", "data_root", "/", "evaluate", False, "train_list", tmp_path / "void.txt"]
    for check in (True, False):
        assert train.main(["--config", CONFIG, *options, *map(str, more), "check_data", str(check)]) == 1
        assert "void.txt" in capsys.readouterr().err
