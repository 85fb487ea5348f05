"""Shared helpers: an error class for mistakes of the user, files that are written atomically, threads, text for messages."""

import difflib
import os
import signal
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

EXPORT_FORMATS = {".onnx": "onnx", ".pt2": "pt2", ".xml": "openvino"}  # of tool/export.py, by the suffix of the file
MODEL_SUFFIXES = (".pth", ".pt", ".pth.tar", ".safetensors", *EXPORT_FORMATS)  # what tells a trained network from a YAML file
STOPPING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)  # a training saves and ends; see StopSignal


class Mistake(ValueError):
    """What the user can put right. The message names file, key and value and says what to do; the programs print it without a
    traceback and end with status 1. Every other exception is a bug and keeps its traceback."""


@contextmanager
def write_aside(path, sync=False):
    """Yield a path beside `path`; the file (or link) that the block makes there takes the name `path` when the block ends.

    So `path` is always the old file or the whole new one. Missing folders are made. sync: also survive a power failure.
    Raises Mistake if the disk does not take the file.
    """
    path = Path(path)
    name = os.fsencode(path.name)[:235].decode(errors="ignore")  # with what is added not longer than a name may be, 255 bytes
    temporary = path.with_name(f".{name}.{os.urandom(4).hex()}.tmp")  # not the process: two machines have the same numbers
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if sync:
            _sync(temporary)
        temporary.replace(path)
        if sync:
            _sync(path.parent)  # a rename is safe only when the folder that holds the names is on the disk too
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise Mistake(f"{path}: could not be written ({error}); what was there is untouched") from error
        raise


def ahead(function, items, threads=2, depth=4):
    """Yield function(item) for every item in order, computed by threads up to `depth` items before they are needed."""
    with ThreadPoolExecutor(threads) as pool:
        pending = deque()
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > depth:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def did_you_mean(name, known, count=1, cutoff=0.6) -> str:
    """` (did you mean base_lr?)` with the nearest of the known names, or nothing if none is near."""
    by_lower = {str(key).lower(): str(key) for key in known}
    near = [by_lower[key] for key in difflib.get_close_matches(str(name).lower(), by_lower, count, cutoff)]
    return f" (did you mean {' or '.join(near)}?)" if near else ""


def first_few(items, count=5, separator=", ") -> str:
    """The first `count` of a list as text, and how many more there are."""
    more = f"{separator}and {len(items) - count} more" if len(items) > count else ""
    return separator.join(map(str, items[:count])) + more


def first_line(error) -> str:
    """Of the message of an exception; its class, if it has none."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def text_table(rows) -> str:
    """Rows of cells as text; the second column, the names, is flush left, the others flush right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    flush = [str.rjust, str.ljust] + [str.rjust] * len(widths)
    return "\n".join("  ".join(f(cell, width) for f, cell, width in zip(flush, row, widths)).rstrip() for row in rows)


def _sync(path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
