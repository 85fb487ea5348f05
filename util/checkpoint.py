"""Checkpoints: written whole or not at all, verified when read, and never able to run code.

A checkpoint is a dict of tensors and plain values written by `torch.save`: a zip archive, whose CRC-32 sums are the
checksum. `epoch`, `state_dict` and `optimizer` have the original's names and meaning.
"""

import os
import pickle
import re
import zipfile
from pathlib import Path

import torch

NAME = re.compile(r"train_(?:epoch_(\d+)(?:_iter_(\d+))?|iter_(\d+))\.pth")


def save_checkpoint(state: dict, path) -> None:
    """Write `state` so that `path` is always the old file or the whole new one, also when the power or the disk goes."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        temporary.unlink(missing_ok=True)
        raise OSError(f"{path}: could not be written ({error}); earlier checkpoints are untouched") from error
    _sync_folder(path.parent)


def load_checkpoint(path) -> dict:
    """Read a checkpoint to the CPU after checking every byte of it against its checksums.

    Only tensors and plain values are accepted (`weights_only=True`); `module.` prefixes of DataParallel are removed.
    Raises ValueError with the reason when the file is missing, damaged, or would run code.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such checkpoint")
    if zipfile.is_zipfile(path):  # files of torch < 1.6 are not, and have no checksums
        damaged = _damage(path)
        if damaged is not None:
            raise ValueError(f"{path}: damaged file ({damaged} does not match its checksum); use an earlier checkpoint")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path}: refused, since it holds more than tensors and plain values and could run code ({_first_line(error)})"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise ValueError(f"{path}: not a readable checkpoint ({_first_line(error)})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a dict with `state_dict`, found {type(content).__name__}")
    if "state_dict" in content:
        content["state_dict"] = {key.removeprefix("module."): value for key, value in content["state_dict"].items()}
    return content


def newest_checkpoint(folder, warn):
    """The newest sound checkpoint of a run, or None if there is none; `warn(message)` hears of each damaged one."""
    for path in reversed(_checkpoints(folder)):
        try:
            return load_checkpoint(path)
        except ValueError as error:
            warn(f"{error}; trying the one before")
    return None


def prune_checkpoints(folder, keep: int) -> None:
    """Keep the `keep` newest train_epoch_N.pth, or train_iter_N.pth, and the `keep` newest inside the epoch that runs.

    Nothing goes unless one of those that stay is whole, so the only good one is never removed.
    """
    paths = _checkpoints(folder)
    ended = [path for path in paths if position_of(path)[1] == 0]
    inside = [path for path in paths if not ended or position_of(path) > position_of(ended[-1])]
    stay = ended[-keep:] + inside[-keep:]
    if any(_damage(path) is None for path in reversed(stay)):
        for path in set(paths) - set(stay):
            path.unlink()


def set_aside_checkpoints(folder, position, warn) -> None:
    """Before a run that starts at `position`: remove what a killed one left half-written, and set aside, as NAME.old, the
    checkpoints of an earlier run beyond it, which would pass for newer ones of this run."""
    for path in Path(folder).glob(".*.pth.*.tmp"):
        path.unlink()
    for path in _checkpoints(folder):
        if position_of(path) > position:
            path.rename(f"{path}.old")
            warn(f"{path} is of an earlier run, or damaged; it is {path.name}.old now")


def position_of(path) -> tuple[int, int]:
    """(finished epochs, finished iterations of the next) that the name of a checkpoint states; (finished iterations, 0) in a
    run that counts nothing else."""
    epoch, inside, iteration = NAME.fullmatch(Path(path).name).groups()
    return int(epoch or iteration), int(inside or 0)


def _checkpoints(folder) -> list[Path]:
    """Those of a run, oldest first; names that people gave are not among them."""
    return sorted((path for path in Path(folder).glob("*.pth") if NAME.fullmatch(path.name)), key=position_of)


def _damage(path):
    """The first thing in the file that does not match its checksum, or why it cannot be looked for; None if all is well."""
    try:
        with zipfile.ZipFile(path) as file:
            return file.testzip()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        return error


def _sync_folder(folder) -> None:
    """A rename is safe only after the folder that holds the names is on the disk too."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _first_line(error) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
