"""Checkpoint files: written atomically, verified when read, loaded with weights_only=True so that they cannot run code.

A checkpoint is a dict of tensors and plain values written by `torch.save`: a zip archive, whose CRC-32 sums are the
checksum. `epoch`, `state_dict` and `optimizer` have the original's names and meaning. A file `*.safetensors` holds the
weights and what describes them, without the optimizer.
"""

import io
import json
import pickle
import re
import shutil
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path

import torch

from util.common import EXPORT_FORMATS, Mistake, first_few, first_line, write_aside

NAME = re.compile(r"train_(?:epoch_(\d+)(?:_iter_(\d+))?|iter_(\d+))\.pth")
RUN_FILES = "model_best.pth metrics.jsonl metrics.stray events.out.tfevents.* config.yaml".split()  # beside those and the logs
DESCRIPTION = "epoch names palette meta".split()  # of a checkpoint; in the metadata of a safetensors file as JSON


class Damaged(Mistake):
    """The content of a file is not that of a checkpoint, or not what was written."""


def save_checkpoint(content: dict, path) -> None:
    """Write a checkpoint so that `path` is always the old file or the whole new one, also when the power fails."""
    data = io.BytesIO()  # not the file itself: where that is closed by an error, the writer's end would kill the process
    torch.save(content, data)
    with write_aside(path, sync=True) as aside:
        aside.write_bytes(data.getbuffer())


def save_safetensors(content: dict, path) -> None:
    """Write the weights of a checkpoint, with a copy of its own for each of tied tensors.

    The format's metadata are texts: `config` is the checkpoint's (YAML); `epoch`, `names`, `palette` and `meta` are JSON, where
    the checkpoint has them; `order` lists the tensors' names, which the format sorts; `crc32` is the checksum of all this and
    of the tensors. Raises Mistake for content that the format does not take.
    """
    tensors = _safetensors(path)
    state = {name: t.detach().clone(memory_format=torch.contiguous_format) for name, t in content["state_dict"].items()}
    try:
        metadata = {key: json.dumps(content[key]) for key in DESCRIPTION if key in content}
        metadata |= {"format": "pt", "config": content["config"], "order": json.dumps(list(state))}
        data = tensors.save(state, metadata | {"crc32": _crc32(state, metadata)})
    except (KeyError, TypeError, ValueError, NotImplementedError) as error:
        raise Mistake(f"{path}: a safetensors file cannot hold this ({first_line(error)}); write a .pth file") from error
    with write_aside(path, sync=True) as aside:
        aside.write_bytes(data)


def load_checkpoint(path) -> dict:
    """Read a checkpoint or a safetensors file to the CPU after checking every byte of it against its checksums; a safetensors
    file of another program has none.

    Only tensors and plain values are accepted (`weights_only=True`); `module.` prefixes of DataParallel are removed.
    Raises Mistake if the file cannot be read, Damaged if its content is damaged, of another kind, or would run code.
    """
    if Path(path).suffix in EXPORT_FORMATS:
        raise Mistake(f"{path}: a file of tool/export.py, which can only predict; give the checkpoint it was made from")
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise Mistake(f"{path}: no such checkpoint") from None
    except (OSError, MemoryError) as error:
        raise Mistake(f"{path}: cannot be read ({str(error) or 'not enough memory'})") from error
    content = _decode_safetensors(path, data) if Path(path).suffix == ".safetensors" else _decode(path, data)
    if not isinstance(content, dict):
        raise Damaged(f"{path}: expected a dict with `state_dict`, found {type(content).__name__}")
    weights = content.get("state_dict")
    if isinstance(weights, dict):
        content["state_dict"] = {str(key).removeprefix("module."): value for key, value in weights.items()}
    return content


def newest_checkpoint(folder, data_iters, warn):
    """(path, content) of the newest sound checkpoint of a run, or None if there is none.

    data_iters: see `position_of`. Damaged ones are passed over, and `warn(message)` is called for each; if no other is left,
    it is model_best.pth. Raises Mistake if one cannot be read, or if all of them are damaged.
    """
    damaged, best = [], Path(folder) / "model_best.pth"
    for path in (*reversed(list_checkpoints(folder, data_iters)), *([best] if best.exists() else [])):
        try:
            return path, load_checkpoint(path)
        except Damaged as error:
            damaged.append(str(error))
            warn(f"{error}; trying the one before")
    if damaged:
        raise Mistake(
            f"{folder}: every checkpoint is damaged; to start anew, set `resume` to nothing:\n" + first_few(damaged, 5, "\n")
        )
    return None


def list_checkpoints(folder, data_iters) -> list[Path]:
    """The numbered checkpoints of a run, oldest first."""
    found = (path for path in Path(folder).glob("*.pth") if NAME.fullmatch(path.name))
    numbers = lambda path: [int(number or 0) for number in NAME.fullmatch(path.name).groups()]  # where files tell no position
    return sorted(found, key=lambda path: (position_of(path, data_iters), numbers(path)))


def position_of(path, data_iters) -> tuple[int, bool]:
    """(finished iterations, whether the interval that ends there was finished).

    data_iters: iterations of an epoch in a run that counts epochs, None in one that counts iterations. The file's name tells
    the position, but the file itself where it is of the other kind of run, whose iterations may have been of another size: a
    damaged train_iter_N.pth is taken to be at iteration N, a damaged train_epoch_N.pth at 0.
    """
    epoch, inside, iteration = NAME.fullmatch(Path(path).name).groups()
    if iteration:
        return data_iters and _iteration_in(path, data_iters) or int(iteration), True
    if data_iters is None:
        return _iteration_in(path), inside is None
    return int(epoch) * data_iters + min(int(inside or 0), data_iters), inside is None


def prune_checkpoints(folder, keep: int, data_iters: int | None) -> None:
    """Keep the `keep` newest train_epoch_N.pth and train_iter_N.pth, and the `keep` newest inside the current epoch.

    Nothing is deleted unless one of those that stay is whole, so the only good one is never deleted.
    """
    paths = list_checkpoints(folder, data_iters)
    position = {path: position_of(path, data_iters) for path in paths}
    finished = [path for path in paths if position[path][1]]
    inside = [path for path in paths if not finished or position[path] > position[finished[-1]]]
    stay = finished[-keep:] + inside[-keep:]
    delete = set(paths) - set(stay)
    if delete and any(_is_whole(path) for path in reversed(stay)):
        for path in delete:
            with suppress(OSError):
                path.unlink()


def set_aside(folder, new_log, position=None, data_iters=1, recounted=False, rejudged=False) -> Path | None:
    """Move what an earlier run left in `folder` into folder/earlier-N, and return that; None if there is nothing to move.

    position: (iteration, finished) where a run resumes: only the checkpoints beyond it are moved, with a copy of
    metrics.jsonl; None moves all. data_iters: see `position_of`. recounted: the iterations of the earlier run were of another
    size; its metrics and events are moved too. rejudged: the best is chosen anew; model_best.pth is copied. new_log: the log
    file of the run that starts, which stays. Files of a run left half-written by a kill are deleted. Raises Mistake if
    something cannot be moved.
    """
    try:
        return _set_aside(Path(folder), new_log, position, data_iters, recounted, rejudged)
    except OSError as error:
        raise Mistake(f"{folder}: what an earlier run left here could not be moved aside ({error})") from error


def _set_aside(folder, new_log, position, data_iters, recounted, rejudged):
    for pattern in ("train_*.pth", *RUN_FILES):
        for path in folder.glob(f".{pattern}.*.tmp"):
            path.unlink()
    files, best = [], folder / "model_best.pth"
    if position is None:
        files = list_checkpoints(folder, data_iters) + [path for pattern in RUN_FILES for path in folder.glob(pattern)]
        files += [path for path in folder.glob("train-*.log") if files and path != new_log]
    else:
        iteration, finished = position
        for path in list_checkpoints(folder, data_iters):  # train_iter_N is the name before and after a validation
            done = finished or path.name.startswith("train_iter")
            files += [path] if position_of(path, data_iters) > (iteration, done) else []
        files += [best] if best.exists() and _iteration_in(best, data_iters) > iteration else []
        files += [path for pattern in RUN_FILES[1:4] for path in folder.glob(pattern) if recounted]
    rejudged = rejudged and best.exists() and best not in files
    if not files and not rejudged:
        return None
    number = 1 + max((int(path.name[8:]) for path in folder.glob("earlier-*") if path.name[8:].isdecimal()), default=0)
    target = folder / f"earlier-{number}"
    target.mkdir()
    metrics = folder / "metrics.jsonl"
    if position is not None and metrics.exists() and metrics not in files:
        (target / metrics.name).write_bytes(metrics.read_bytes())
    if rejudged:  # until another takes its place: `resume best` may need it again
        shutil.copy2(best, target)
    for path in files:
        path.rename(target / path.name)
    return target


def _decode(path, data):
    """What torch.save wrote. Since nothing is read from a disk here, every error means that the content is wrong."""
    file = io.BytesIO(data)
    try:
        if zipfile.is_zipfile(file):  # torch < 1.6 wrote pickles without checksums
            damaged = _first_damaged(zipfile.ZipFile(file))
            if damaged is not None:
                raise Damaged(f"{path}: damaged file ({damaged} does not match its checksum); use an earlier checkpoint")
        elif not data.startswith(b"\x80"):
            raise Damaged(f"{path}: not a readable checkpoint (torch.save does not write files that begin with {data[:8]!r})")
        file.seek(0)
        return torch.load(file, map_location="cpu", weights_only=True)
    except (Mistake, MemoryError):
        raise
    except pickle.UnpicklingError as error:
        what = re.search(r"GLOBAL \S+", str(error))
        if not what:
            raise Damaged(f"{path}: damaged, not a readable checkpoint") from None
        raise Damaged(
            f"{path}: refused, since it holds more than tensors and plain values and could run code ({what[0]})"
        ) from None
    except Exception as error:
        raise Damaged(f"{path}: damaged, not a readable checkpoint ({first_line(error)})") from None


def _decode_safetensors(path, data):
    """What `save_safetensors` wrote; of a file of another program the weights alone."""
    tensors = _safetensors(path)
    try:
        state = tensors.load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        metadata = header.get("__metadata__", {})
        if not metadata.keys() & {"crc32", "order"}:
            return {"state_dict": state}
        if metadata.pop("crc32", None) != _crc32(state, metadata):
            raise Damaged(f"{path}: damaged file (it does not match its checksum)")
        content = {key: json.loads(metadata[key]) for key in DESCRIPTION if key in metadata}
        state = {name: state[name] for name in json.loads(metadata["order"])}
        return content | {"config": metadata["config"], "state_dict": state}
    except (Mistake, MemoryError):
        raise
    except Exception as error:  # as in _decode
        raise Damaged(f"{path}: damaged, not a readable safetensors file ({first_line(error)})") from None


def _safetensors(path):
    try:
        import safetensors.torch
    except ImportError as error:
        raise Mistake(f"{path}: needs the package safetensors: pip install safetensors ({error})") from None
    return safetensors.torch


def _crc32(state, metadata) -> str:
    """Checksum of the texts and of every tensor with its name, type and shape."""
    crc = zlib.crc32(json.dumps(metadata, sort_keys=True).encode())
    for name, tensor in sorted(state.items()):
        crc = zlib.crc32(json.dumps([name, str(tensor.dtype), *tensor.shape]).encode(), crc)
        crc = zlib.crc32(tensor.flatten().view(torch.uint8).numpy(), crc)
    return f"{crc:08x}"


def _first_damaged(archive):
    """Name of the first entry that is not what was written, or None. torch reads nothing of an entry marked as a folder."""
    folders = (entry.filename for entry in archive.infolist() if entry.external_attr & 0x10)
    return next(folders, None) or archive.testzip()


def _is_whole(path) -> bool:
    try:
        with zipfile.ZipFile(path) as file:
            return _first_damaged(file) is None
    except Exception:  # see _decode
        return False


def _iteration_in(path, data_iters=None) -> int:
    """The iteration that a checkpoint states, 0 if it has none; only this number is read. data_iters: converted to a run with
    so many iterations an epoch."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        iteration = content["iteration"]
        if data_iters is not None:
            iteration = iteration * data_iters // content.get("data_iters", data_iters)  # earlier versions had none
        return iteration if isinstance(iteration, int) else 0
    except Exception:  # see _decode
        return 0
