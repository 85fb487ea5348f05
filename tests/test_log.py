import contextlib
import io
import json
import os
import re
import subprocess
import sys

import pytest
from tensorboard.backend.event_processing import event_accumulator

from util import log
from util.common import Mistake
from util.config import ROOT
from util.log import MetricsFile, Output, ProgressBar, build_logger, report_errors


def program(error):
    def run():
        raise error

    return run


def test_a_mistake_is_one_message_and_status_1(capsys):
    assert report_errors(program(Mistake("a.yaml: TRAIN.base_lr: wrong"))) == 1
    assert capsys.readouterr().err == "error: a.yaml: TRAIN.base_lr: wrong\n"


def test_a_revision_has_changes_where_code_was_changed_and_not_for_results_or_configs(tmp_path, monkeypatch):
    git = lambda *words: subprocess.run(["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a", *words], check=True)
    for name in ("config/toy/a.yaml", "dataset/toy/scene.py", "tool/train.py"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    git("init", "-q")
    git("add", "-A")
    git("commit", "-qm", "a")
    monkeypatch.setattr(log, "ROOT", tmp_path)
    (tmp_path / "seen.png").touch()
    (tmp_path / "config/toy/a.yaml").write_text("a")
    clean = log.git_revision()
    assert re.fullmatch("[0-9a-f]{4,}", clean)
    for name in ("dataset/toy/scene.py", "tool/new.py"):
        (tmp_path / name).write_text("a")
        assert log.git_revision() == f"{clean}+changes"
        git("clean", "-qfd")
        git("checkout", "-q", ".")


def test_a_mistake_of_a_loader_worker_is_its_own_words(capsys):
    traceback = "Traceback (most recent call last):\n  ...\nutil.common.Mistake: a.png: cut"
    text = f"Caught Mistake in DataLoader worker process 0.\n{traceback}"
    assert report_errors(program(Mistake(text))) == 1
    assert capsys.readouterr().err == "error: a.png: cut\n"


@pytest.mark.parametrize(
    "error, words",
    [
        (
            RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "),
            "(pid 7) is killed by signal: Killed. A worker",
        ),
        (RuntimeError("[gloo/pair.cc:561] Connection closed by peer [127.0.0.1]:3"), "another process of this run has ended"),
        (ConnectionResetError(104, "Connection reset by peer"), "another process of this run has ended"),
        (ConnectionRefusedError(111, "Connection refused"), "another process of this run has ended"),
        (RuntimeError("FIND was unable to find an engine to execute this computation"), "Mostly a GPU whose"),
        (RuntimeError("CUDA out of memory. Tried to allocate 20 GiB\nmore"), "Tried to allocate 20 GiB. Lower batch_size"),
        (MemoryError(), "not enough memory. Lower batch_size"),
        (KeyboardInterrupt(), "interrupted"),
    ],
)
def test_what_a_user_can_put_right_is_one_line(capsys, error, words):
    assert report_errors(program(error)) == (130 if isinstance(error, KeyboardInterrupt) else 1)
    screen = capsys.readouterr().err
    assert words in screen and screen.count("\n") == 1


@pytest.mark.parametrize("error", [ValueError("x"), OSError("x"), RuntimeError("x"), FloatingPointError("x"), KeyError("x")])
def test_every_other_error_is_raised_and_in_the_log(tmp_path, error):
    build_logger(tmp_path / "a.log")
    with pytest.raises(type(error)):
        report_errors(program(error))
    assert "Traceback (most recent call last)" in (tmp_path / "a.log").read_text()
    build_logger()


def test_the_screen_has_time_and_message_and_the_file_has_everything(tmp_path, capsys):
    log = build_logger(tmp_path / "a.log")
    log.info("Epoch 1")
    log.debug("The config")
    assert re.fullmatch(r"\d\d:\d\d:\d\d Epoch 1\n", capsys.readouterr().out)
    line = r"\[\d{4}-\d\d-\d\d [\d:,]+ (INFO|DEBUG) test_log\.py line \d+ " + str(os.getpid()) + r"\] (Epoch 1|The config)\n"
    assert re.fullmatch(f"({line}){{2}}", (tmp_path / "a.log").read_text())
    build_logger()


# ---- screens ----

SPEAK = """
import sys
from util.log import ProgressBar, build_logger, report_errors
from util.common import Mistake
def program():
    log = build_logger(sys.argv[1])
    ProgressBar("bar", 2).show(1)
    for i in range(500):
        log.info(f"line {i} na\\u00efve \\u65e5\\u672c")
    if len(sys.argv) > 2:
        raise Mistake("\\u65e5\\u672c")
sys.exit(report_errors(program))
"""


@pytest.mark.parametrize("screen, mistake", [
    (">&- 2>&-", ""), (">&- 2>&-", "yes"), ("> /dev/full 2> /dev/full", "yes"), ("| head -1 > /dev/null", ""),
    ("> /dev/null", "yes"),
])  # fmt: skip
def test_a_screen_that_takes_nothing_does_not_end_a_program(tmp_path, screen, mistake):
    log = tmp_path / "a.log"
    command = f'{{ {sys.executable} -c "$SPEAK" {log} {mistake}; echo $? >&3; }} 3> {tmp_path}/status {screen}'
    env = os.environ | {"SPEAK": SPEAK, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run(["sh", "-c", command], cwd=ROOT, env=env, check=True, timeout=600)
    assert (tmp_path / "status").read_text() == ("1\n" if mistake else "0\n")
    lines = log.read_text(encoding="utf-8").splitlines()
    assert lines[499].endswith("line 499 naïve 日本")


def test_a_terminal_that_is_gone_does_not_end_the_work_behind_a_bar_of_the_main_process(monkeypatch):
    ours, theirs = os.openpty()
    with io.TextIOWrapper(os.fdopen(theirs, "wb", 0), write_through=True) as screen:  # no buffer, as sys.stderr
        monkeypatch.setattr(sys, "stderr", screen)
        bar = ProgressBar("bar", 3)
        bar.show(1)
        os.close(ours)
        bar.show(2)
        bar.clear()
        assert not bar.visible
        monkeypatch.setattr(screen, "isatty", lambda: True)
        assert ProgressBar("bar", 3).visible
        monkeypatch.setenv("RANK", "1")
        assert not ProgressBar("bar", 3).visible


def test_what_the_encoding_of_the_screen_lacks_is_printed_with_escapes(monkeypatch):
    screen = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(screen, encoding="latin-1"))
    assert report_errors(lambda: print("漢 \udce9", flush=True)) == 0
    assert screen.getvalue() == b"\\u6f22 \\udce9\n"


def test_a_log_file_that_is_full_does_not_hide_the_mistake(tmp_path, capsys):
    (tmp_path / "a.log").symlink_to("/dev/full")
    build_logger(tmp_path / "a.log").info("lost")
    assert report_errors(program(Mistake("a.yaml: wrong"))) == 1
    captured = capsys.readouterr()
    assert captured.err == "error: a.yaml: wrong\n" and "lost" in captured.out
    with contextlib.suppress(OSError):
        build_logger()


# ---- metrics and TensorBoard ----


def test_lines_that_are_no_metrics_are_kept_aside(tmp_path):
    path = tmp_path / "metrics.jsonl"
    stray = [b"\xff\xfe\n", b"[]\n", b'{"a": 1}\n', b"\n", b"nonsense\n"]
    path.write_bytes(b'{"iteration": 1, "lr": 1}\n' + b"".join(stray) + b'{"iteration": 2, "lr": 1}\n{"iteration": 3, "l')
    metrics = MetricsFile(path, iteration=2)
    metrics.write(iteration=3, loss=1.5)
    metrics.flush()
    assert [json.loads(line)["iteration"] for line in path.read_text().splitlines()] == [1, 2, 3]
    assert (tmp_path / "metrics.stray").read_bytes() == b"".join(stray)


def test_a_resumed_run_has_every_point_once_in_both_files(tmp_path):
    first = Output(tmp_path)
    for i in (1, 2, 3):
        first.scalars(i, loss_train_batch=0.5 * i, lr=0.1)
    first.scalars(2, epoch=1, loss_train=7.0)  # as if the interval had ended
    first.flush()
    first.writer.close()
    second = Output(tmp_path, iteration=2, finished=False)  # its checkpoint is from before that
    second.scalars(2, epoch=1, loss_train=8.0)
    second.scalars(3, loss_train_batch=9.0, lr=0.1)
    second.flush()
    second.writer.close()
    events = event_accumulator.EventAccumulator(str(tmp_path))
    events.Reload()
    points = {tag: [(p.step, p.value) for p in events.Scalars(tag)] for tag in ("loss_train_batch", "loss_train", "epoch")}
    assert points == {"loss_train_batch": [(1, 0.5), (2, 1.0), (3, 9.0)], "loss_train": [(2, 8.0)], "epoch": [(2, 1.0)]}
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["iteration"], line.get("loss_train_batch"), line.get("loss_train")) for line in lines] == [
        (1, 0.5, None), (2, 1.0, None), (2, None, 8.0), (3, 9.0, None)]  # fmt: skip


def test_output_of_another_process_is_silent(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = Output()
    out.scalars(1, loss=1.0)
    out.flush()
    assert not list(tmp_path.iterdir())
