"""What a run tells: log lines on screen and in a file, scalars in metrics.jsonl and TensorBoard, a bar in a terminal."""

import fcntl
import json
import logging
import os
import platform
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

from util.config import ROOT


def build_logger(log_file=None, silent=False) -> logging.Logger:
    """Logger with the original's line format, to the screen and to `log_file`; `silent` lets only errors through."""
    logger = logging.getLogger("semseg")
    logger.setLevel(logging.ERROR if silent else logging.INFO)
    logger.propagate = False
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    handlers = [logging.StreamHandler(sys.stdout)]
    if log_file is not None:
        handlers.append(logging.FileHandler(log_file, encoding="utf-8"))
    line = logging.Formatter("[%(asctime)s %(levelname)s %(filename)s line %(lineno)d %(process)d] %(message)s")
    for handler in handlers:
        handler.setFormatter(line)
        logger.addHandler(handler)
    return logger


def report_errors(program) -> int:
    """Run `program()`; a mistake of the user ends with one message and status 1, its traceback goes to the log file."""
    try:
        return program() or 0
    except (ValueError, OSError, FloatingPointError, RuntimeError) as error:
        message = str(error)
        if isinstance(error, RuntimeError):
            if not message.startswith("DataLoader"):
                raise
            message = message.rstrip(". ") + (
                ". A worker that was killed mostly means that memory ran out: lower `workers`. A time-out means that reading "
                "hangs: look at the disk or the network behind data_root, or raise `loader_timeout`"
            )
        elif "DataLoader worker" in message:  # arrives as text, traceback first; what it says stands behind the last type
            message = message.rsplit("Error: ", 1)[-1]
        print(f"error: {message.strip()}", file=sys.stderr)
        for handler in logging.getLogger("semseg").handlers:
            if isinstance(handler, logging.FileHandler):
                handler.stream.write(traceback.format_exc())
                handler.flush()
        return 1


def lock_folder(folder):
    """Make the folder, or refuse it if another running program writes to it. The lock is the returned open file and ends with
    it, also when the process is killed, and whatever its children do (that is why it is not `flock`, which they inherit)."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    file = (Path(folder) / ".lock").open("a+", encoding="utf-8")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.seek(0)
        raise ValueError(
            f"{folder}: another run writes here ({file.read().strip()}); wait for it, end it, or set another save_path"
        ) from None
    except OSError:
        return file  # some file systems of clusters cannot lock
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    return file


def environment(device: torch.device) -> str:
    """One line for the log: what this result was made with."""
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    return (  # torchvision is not imported for its version alone: that takes a second
        f"Python {platform.python_version()}, torch {torch.__version__}, torchvision {version('torchvision')}, "
        f"OpenCV {cv2.__version__}, NumPy {np.__version__}, {platform.platform()}, {hardware}, git {git_revision()}"
    )


def git_revision() -> str:
    """Short commit id of the code, with `+changes` if the tree is not clean; `unknown` outside a git checkout."""
    try:
        run = lambda *words: subprocess.run(["git", "-C", ROOT, *words], capture_output=True, text=True, check=True).stdout
        return run("rev-parse", "--short", "HEAD").strip() + ("+changes" if run("status", "--porcelain") else "")
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
        self.visible = sys.stderr.isatty()

    def show(self, done: int) -> None:
        if self.visible:
            filled = 30 * done // self.total
            rate = done / max(time.time() - self.start, 1e-9)
            bar = "#" * filled + "." * (30 - filled)
            print(f"\r{self.title} [{bar}] {done}/{self.total} {rate:.2f}/s", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Wipe the bar, so that a log line can take its place."""
        if self.visible:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


class MetricsFile:
    """metrics.jsonl: one JSON object a line, for plots and scripts.

    A run that resumes drops the lines beyond the iteration and the finished epochs of its checkpoint first, so that
    everything stands there once.
    """

    def __init__(self, path, iteration: int = 0, epoch: int = 0):
        path = Path(path)
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(line + "\n" for line in lines if _stands(line, iteration, epoch)), encoding="utf-8")
        temporary.replace(path)
        self.file = path.open("a", encoding="utf-8")

    def write(self, **values) -> None:
        self.file.write(json.dumps(values) + "\n")

    def flush(self) -> None:
        self.file.flush()


def _stands(line: str, iteration: int, epoch: int) -> bool:
    try:
        values = json.loads(line)
        return values["iteration"] <= iteration and values.get("epoch", 0) <= epoch
    except (ValueError, KeyError, TypeError, AttributeError):
        return False  # a line that a crash cut off
