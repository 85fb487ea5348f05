"""Log lines on screen and in a file, scalars in metrics.jsonl and TensorBoard, a progress bar in a terminal."""

import contextlib
import fcntl
import io
import json
import logging
import math
import os
import platform
import re
import resource
import socket
import subprocess
import sys
import time
import traceback
from importlib.metadata import version
from pathlib import Path

import cv2
import numpy as np
import torch

from util.common import Mistake, write_aside
from util.config import ROOT


def build_logger(log_file=None, silent=False) -> logging.Logger:
    """Logger with short lines on the screen, and the original's, debug too, in `log_file`; silent: errors only."""
    logger = logging.getLogger("semseg")
    logger.setLevel(logging.ERROR if silent else logging.DEBUG)
    logger.propagate = False
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        with contextlib.suppress(OSError):  # lines of an earlier run that a full disk has not taken
            handler.close()
    screen = ScreenHandler(sys.stdout)
    screen.setLevel(logging.INFO)
    screen.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger.addHandler(screen)
    if log_file is not None:
        with _disk_errors(log_file):
            file = LogFile(log_file, encoding="utf-8", errors="backslashreplace")
        file.setFormatter(logging.Formatter("[%(asctime)s %(levelname)s %(filename)s line %(lineno)d %(process)d] %(message)s"))
        logger.addHandler(file)
    return logger


class ScreenHandler(logging.StreamHandler):
    """Log lines on the screen. Errors of the screen (closed, full, encoding) are ignored; after one it stays silent."""

    def __init__(self, stream):
        super().__init__(stream or io.StringIO())  # None: started without a screen
        with contextlib.suppress(AttributeError, ValueError):  # a stream of another kind, as in tests
            self.stream.reconfigure(errors="backslashreplace")

    def handleError(self, record):
        if not isinstance(sys.exc_info()[1], OSError | ValueError):
            raise  # a bug in a log call
        with contextlib.suppress(OSError, ValueError):  # what is in its buffer must not fail at the end either
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.stream.fileno())
            os.close(null)


class LogFile(logging.FileHandler):
    """The log file; a line that a full disk does not take is lost, and the run goes on."""

    def handleError(self, record):
        pass


# What is in messages of torch, which arrive as RuntimeError, and what the user can do.
REMEDIES = {
    "DataLoader worker (pid": "A worker that was killed mostly means that memory ran out: lower `workers`",
    "DataLoader timed out": "Reading hangs: look at the disk or the network behind data_root, or raise `loader_timeout`",
    "out of memory": "Lower batch_size, test_batch or the crop, or see accumulate_steps, precision and checkpoint_layers",
    "unable to find an engine to execute": "Mostly a GPU whose memory is full: lower batch_size, test_batch or the crop, "
    "or see accumulate_steps, precision and checkpoint_layers",
    "can't allocate memory": "Not enough memory: lower batch_size, test_batch, the crop or `workers`",
}


def report_errors(program) -> int:
    """Run `program()` and return its status. A mistake of the user ends with one message and status 1, its traceback goes to
    the log file; every other exception is logged too and raised again."""
    _open_standard_streams()
    with contextlib.suppress(AttributeError, ValueError):  # a path that the screen's encoding lacks is shown with escapes
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        return program() or 0
    except KeyboardInterrupt:
        _say("interrupted")
        return 130
    except Exception as error:
        for handler in logging.getLogger("semseg").handlers:
            if isinstance(handler, LogFile):
                with contextlib.suppress(OSError):
                    handler.stream.write(traceback.format_exc())
                    handler.flush()
        message = _message_for_the_user(error)
        if message is None:
            raise
        _say(f"error: {message}")
        return 1


def _message_for_the_user(error):
    """One message, or None for what is not the user's to put right."""
    text = str(error).strip()
    if isinstance(error, Mistake):
        # That of a loader worker arrives as text with a traceback before it.
        return text.rsplit("Mistake: ", 1)[-1] if "DataLoader worker" in text else text
    if isinstance(error, RuntimeError | MemoryError | ConnectionResetError | ConnectionRefusedError):
        if re.search("Connection (closed by peer|reset by peer|refused)", text):
            return (
                "another process of this run has ended: look for its message, or for the kernel's if it was killed (where "
                "memory ran out: lower `workers`)"
            )
        for words, remedy in REMEDIES.items():
            if words in text:
                return f"{text.splitlines()[0].rstrip('. ')}. {remedy}"
    return "not enough memory. Lower batch_size, the crop or `workers`" if isinstance(error, MemoryError) else None


def _say(message):
    with contextlib.suppress(OSError, ValueError):  # the screen may be closed or full
        print(message, file=sys.stderr, flush=True)


def _open_standard_streams():
    """Where a program is started with closed streams (`>&- 2>&-`), the next file opened would become its screen."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def lock_folder(folder):
    """Make the folder, or raise Mistake if another running program writes to it or it cannot be written to.

    The lock is the returned open file and ends with it, also when the process is killed, and whatever its children do (that is
    why it is not `flock`, which they inherit).
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        file = (Path(folder) / ".lock").open("a+", encoding="utf-8")
    except OSError as error:
        raise Mistake(f"{folder}: no run can be written here ({error}); set another save_path") from error
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.seek(0)
        raise Mistake(
            f"{folder}: another run writes here ({file.read().strip()}); wait for it, end it, or set another save_path"
        ) from None
    except OSError:
        return file  # some file systems of clusters cannot lock
    with contextlib.suppress(OSError):  # only for the message above; a full disk is reported where more is lost
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
    return file


def environment(device: torch.device) -> str:
    """One line for the log: versions, machine, device and git revision."""
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    return (  # torchvision is not imported for its version alone: that takes a second
        f"Python {platform.python_version()}, torch {torch.__version__}, torchvision {version('torchvision')}, "
        f"OpenCV {cv2.__version__}, NumPy {np.__version__}, {platform.platform()}, {hardware}, git {git_revision()}"
    )


CODE = ("model", "util", "tool", "dataset/*.py")  # what a run computes with; pictures, results and configs are no change of it


def git_revision() -> str:
    """Short commit id of the code, with `+changes` if a file of it was changed; `unknown` outside a git checkout."""
    try:
        run = lambda *words: subprocess.run(["git", "-C", ROOT, *words], capture_output=True, text=True, check=True).stdout
        return run("rev-parse", "--short", "HEAD").strip() + ("+changes" if run("status", "--porcelain", "--", *CODE) else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def peak_memory_mb(device: torch.device) -> float:
    """Peak memory of this process so far, in MiB: of the GPU if it has one, else resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


class ProgressBar:
    """A bar on the last line of a terminal; silent where the output is a file or a pipe."""

    def __init__(self, title: str, total: int):
        self.title, self.total, self.start = title, max(total, 1), time.time()
        main = os.environ.get("RANK", "0") == "0"
        self.visible = main and sys.stderr is not None and sys.stderr.isatty()

    def show(self, done: int) -> None:
        if self.visible:
            filled = 30 * done // self.total
            rate = done / max(time.time() - self.start, 1e-9)
            bar = "#" * filled + "." * (30 - filled)
            self._write(f"\r{self.title} [{bar}] {done}/{self.total} {rate:.2f}/s")

    def clear(self) -> None:
        """Erase the bar, so that a log line can take its place."""
        if self.visible:
            self._write("\r\033[K")

    def _write(self, text):
        try:
            print(text, end="", file=sys.stderr, flush=True)
        except OSError:  # the terminal is gone; the work is not
            self.visible = False


class MetricsFile:
    """metrics.jsonl: one JSON object a line, with its `iteration`.

    A resumed run first drops the lines that it will write again: those beyond `iteration` and, unless the interval that ends
    there is `finished`, those of the interval (they have no `lr`). Lines that are no such object are moved to metrics.stray.
    `last`: the lines of `iteration` that stay.
    """

    def __init__(self, path, iteration=0, finished=True):
        self.path = path = Path(path)
        try:
            lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []  # what a crash cut off is dropped
        except OSError as error:
            raise Mistake(f"{path}: cannot be read ({error}); move it away") from error
        kept, stray, self.last = [], [], []
        for line in lines:
            try:
                values = json.loads(line)
                at = values["iteration"]
                stays = at < iteration or at == iteration and (finished or "lr" in values)
            except (ValueError, KeyError, TypeError, RecursionError):
                stray.append(line)
                continue
            kept += [line] if stays else []
            self.last += [values] if stays and at == iteration else []
        if stray:
            with _disk_errors(path.with_suffix(".stray")), path.with_suffix(".stray").open("ab") as file:
                file.writelines(line + b"\n" for line in stray)
        with write_aside(path) as aside:
            aside.write_bytes(b"".join(line + b"\n" for line in kept))
        with _disk_errors(path):
            self.file = path.open("a", encoding="utf-8")

    def write(self, **values) -> None:
        with _disk_errors(self.path):
            self.file.write(json.dumps(values) + "\n")

    def flush(self) -> None:
        with _disk_errors(self.path):
            self.file.flush()
            os.fsync(self.file.fileno())


class EventFile:
    """TensorBoard's file, in the place of tensorboardX's, which writes by a queue and a thread: its flush leaves out what is
    still in the queue, and once the disk is full nobody empties the queue, so that the training waits for ever."""

    def __init__(self, events):
        events._worker.stop()  # after it has written what is in the queue
        self.folder, self.events = events.get_logdir(), events._ev_writer

    def add_event(self, event) -> None:
        with _disk_errors(f"{self.folder}: TensorBoard"):
            self.events.write_event(event)

    def flush(self) -> None:
        with _disk_errors(f"{self.folder}: TensorBoard"):
            self.events.flush()

    def close(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # also called when the program ends, where it may be closed already
            self.events.close()


@contextlib.contextmanager
def _disk_errors(path):
    try:
        yield
    except OSError as error:
        raise Mistake(f"{path}: could not be written ({error})") from error


class Output:
    """Metrics file and TensorBoard of a run; silent on ranks > 0."""

    def __init__(self, folder=None, iteration=0, finished=True):
        """folder: save_path, or None on ranks > 0. iteration, finished: where the run resumes, see MetricsFile."""
        self.writer = self.metrics = None
        if folder is None:
            return
        from tensorboardX import SummaryWriter  # a test needs none

        self.metrics = MetricsFile(Path(folder) / "metrics.jsonl", iteration, finished)
        # TensorBoard drops what it has from this step on, and is given the lines of the step that stay again.
        purge = iteration + finished if iteration else None
        with _disk_errors(f"{folder}: TensorBoard"):
            self.writer = SummaryWriter(str(folder), purge_step=purge, filename_suffix=f".{time.time_ns()}")
        self.writer.file_writer.event_writer = EventFile(self.writer.file_writer.event_writer)
        for values in [] if finished else self.metrics.last:
            self._add(**values)

    def scalars(self, iteration: int, **values) -> None:
        """TensorBoard tags and one line of metrics.jsonl; nan (no class present) is left out."""
        if self.writer is not None:
            values = {tag: value for tag, value in values.items() if not math.isnan(value)}
            self.metrics.write(iteration=iteration, **values)
            self._add(iteration, **values)

    def _add(self, iteration, **values):
        for tag, value in values.items():
            self.writer.add_scalar(tag, value, iteration)

    def flush(self) -> None:
        if self.writer is not None:
            self.metrics.flush()
            self.writer.flush()

    def close(self) -> None:
        if self.writer is not None:
            self.flush()
            self.metrics.file.close()
            self.writer.close()
