"""The names that scripts written for the original repository import from here; they live in the files named below."""

import socket
from pathlib import Path

from util.metric import AverageMeter, intersectionAndUnion, intersectionAndUnionGPU
from util.optim import poly_learning_rate
from util.visual import colorize

__all__ = [
    "AverageMeter", "check_makedirs", "check_mkdir", "colorize", "find_free_port", "intersectionAndUnion",
    "intersectionAndUnionGPU", "poly_learning_rate",
]  # fmt: skip


def check_mkdir(dir_name) -> None:
    """Make one folder unless it is there."""
    Path(dir_name).mkdir(exist_ok=True)


def check_makedirs(dir_name) -> None:
    """Make a folder and those above it unless they are there."""
    Path(dir_name).mkdir(parents=True, exist_ok=True)


def find_free_port() -> int:
    """A TCP port of this machine that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("", 0))
        return sock.getsockname()[1]
