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
        try:
            damaged = zipfile.ZipFile(path).testzip()
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            damaged = error
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


def load_weights(model: torch.nn.Module, path) -> dict:
    """Load a whole network strictly; returns the checkpoint for its `epoch` and the like.

    Raises ValueError that lists what is missing, unexpected or of another shape.
    """
    content = load_checkpoint(path)
    state = content.get("state_dict", content)
    own = model.state_dict()
    problems = [f"missing {key}" for key in own if key not in state]
    problems += [f"unexpected {key}" for key in state if key not in own]
    for key in own.keys() & state.keys():
        found, expected = tuple(getattr(state[key], "shape", ())), tuple(own[key].shape)
        if found != expected:
            problems.append(f"{key} has shape {found}, expected {expected}")
    if problems:
        listing = "\n  ".join(sorted(problems)[:20]) + (f"\n  ... {len(problems)} in all" if len(problems) > 20 else "")
        raise ValueError(f"{path}: weights of another network (check arch, layers and classes):\n  {listing}")
    model.load_state_dict(state)
    return content


def newest_checkpoint(folder, warn):
    """The newest sound checkpoint of a run, or None if there is none; `warn(message)` hears of each damaged one."""
    for path in sorted(Path(folder).glob("train_epoch_*.pth"), key=position_of, reverse=True):
        try:
            return load_checkpoint(path)
        except ValueError as error:
            warn(f"{error}; trying the one before")
    return None


def prune_checkpoints(folder, keep: int) -> None:
    """Keep the `keep` newest train_epoch_N.pth; those inside an epoch go once a newer file stands."""
    paths = sorted(Path(folder).glob("train_epoch_*.pth"), key=position_of)
    whole = [path for path in paths if position_of(path)[1] == 0]
    for path in paths[:-1]:
        if path not in whole[-keep:]:
            path.unlink()


def position_of(path) -> tuple[int, int]:
    """(finished epochs, finished iterations of the next) that the name of a checkpoint states."""
    epoch, iteration = re.fullmatch(r"train_epoch_(\d+)(?:_iter_(\d+))?", Path(path).stem).groups()
    return int(epoch), int(iteration or 0)


def _sync_folder(folder) -> None:
    """A rename is safe only after the folder that holds the names is on the disk too."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _first_line(error) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
