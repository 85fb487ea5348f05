"""Plant faults by the hundred and count how the programs end: values of the config, files of every kind, kills and signals.

    python tests/campaign.py --seconds 900 --seed 0
    python tests/campaign.py --seed 0 --fault 217                        # one of them again, with its output and files

Everything is imported once; each fault runs in a forked process, on networks of an eighth of the width and the small toy set,
with bounds on time, memory and file size. A fault has ended well with
  status 0, and results that are complete and finite;
  status 1, and exactly one message `error: ...` that names the key or a file, without a traceback;
  status 75, after a signal, and the run goes on with `resume auto`.
Everything else is listed with the command that repeats it, and makes the exit status 1.

Relative paths among the values begin at the project's root: run it in a clone, which it may write to.

Values that the config accepts and that only cost memory or time (an image side of a million) are not run; they are counted.
"""

import argparse
import atexit
import contextlib
import copy
import importlib
import json
import logging
import math
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Literal, get_args, get_origin

os.environ.update(CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS="1", OMP_WAIT_POLICY="passive")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))
import cv2
import torch
import yaml
from processes import CONFIG, free_port, scalars, small_training

from model import resnet
from tool import convert, demo, prepare, test, train  # noqa: F401, imported before the forks
from util.config import FIELDS, SECTION_OF, load_config

SECONDS = 90  # for one process
GIGABYTES = 8
KINDS = ("value", "file") * 14 + ("value", "kill")  # fault n is of kind n % 30

# Numbers above these are accepted by the config and only cost time or memory.
HEAVY = {
    **dict.fromkeys(("train_h", "train_w", "test_h", "test_w", "base_size", "resize_box"), 300),
    **dict.fromkeys(("scales", "scale_min", "scale_max"), 8),
    **dict.fromkeys(("epochs", "max_iter", "start_epoch"), 20),
    **dict.fromkeys(("classes", "mask_h", "mask_w", "workers"), 100),
    **{"loader_timeout": 10**6, "world_size": 1},  # several machines wait for each other
}
NOT_RUN = {"compile": (True, "True", 1, "1")}  # minutes of compiling
DEATHS = {-signal.SIGTERM, -signal.SIGINT, -signal.SIGUSR1, 130}  # before the training listens


class Bad(Exception):
    """A fault that did not end well."""


# ---- processes ----


def fork(program, argv, log, environment=(), file_size=2**28):
    """Process id of `program.main(argv)`; its screen goes to the file `log`."""
    pid = os.fork()
    if pid:
        return pid
    status = 70
    try:
        os.setpgid(0, 0)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        for stream in (1, 2):
            os.dup2(output, stream)
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # as the training does first
        os.environ.update({name: str(value) for name, value in dict(environment).items()})
        resource.setrlimit(resource.RLIMIT_AS, (GIGABYTES * 2**30,) * 2)
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size,) * 2)
        try:
            status = importlib.import_module(program).main(list(map(str, argv))) or 0
        except SystemExit as end:
            status = end.code or 0
        except BaseException:
            traceback.print_exc()
            status = 1
        atexit._run_exitfuncs()
        sys.stdout.flush(), sys.stderr.flush()
    finally:
        os._exit(status if isinstance(status, int) else 1)


def wait(pid, seconds=SECONDS):
    """Exit status, negative after a signal; None if it had to be killed after `seconds`. Its children end with it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def judge(status, log, names, signalled=False):
    """How a program ended: 0, 1 or 75; Bad if not well. names: one of these words must be in the message."""
    text = log.read_text(errors="replace")
    errors = [line for line in text.split("\n") if line.startswith("error: ")]
    if status is None:
        raise Bad(f"a hang of {SECONDS} seconds:\n{text[-600:]}")
    if "Traceback (most recent call last)" in text:
        raise Bad(f"status {status} and a traceback:\n{text[-1500:]}")
    if status == 1:
        message = text[text.find("error: ") :]
        if len(errors) != 1:
            raise Bad(f"{len(errors)} messages:\n{text[-1500:]}")
        if len(message) < 15 or not any(str(name) in message for name in names):
            raise Bad(f"a message without a name ({', '.join(map(str, names))}):\n{message[:600]}")
    elif status not in ((0, 75) if signalled else (0,)):
        raise Bad(f"status {status}:\n{text[-1500:]}")
    return status


def check_training(folder, argv):
    """After status 0: the last checkpoint is whole and finite, and every number of the metrics file too."""
    cfg = load_config(CONFIG if argv[1] == CONFIG else argv[1], list(map(str, argv[2:])))
    names = sorted(folder.glob("train_*.pth"), key=lambda path: path.stat().st_mtime)
    content = torch.load(names[-1], weights_only=True)
    if not all(tensor.isfinite().all() for tensor in content["state_dict"].values()):
        raise Bad(f"{names[-1]} has weights that are not finite")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    if not lines or not all(math.isfinite(value) for line in lines for value in line.values()):
        raise Bad("metrics.jsonl is empty or has numbers that are not finite")
    batches = [line["iteration"] for line in lines if "lr" in line]
    if batches != list(range(batches[0], batches[-1] + 1)):
        raise Bad(f"metrics.jsonl has iterations {batches}")
    if cfg.evaluate and not any("loss_val" in line for line in lines):
        raise Bad("no validation in metrics.jsonl")


def check_test(folder):
    found = json.loads((folder / "result.json").read_text())
    for key in ("mIoU", "mAcc", "allAcc"):
        if found[key] is not None and not 0 <= found[key] <= 1:
            raise Bad(f"{key} {found[key]}")
    if not (folder / "report.html").stat().st_size:
        raise Bad("an empty report")


# ---- the data, a finished run and its test: made once ----


class Base:
    def __init__(self, folder):
        self.folder = folder
        self.toy, self.model, self.result = folder / "toy", folder / "model", folder / "result"

    def make(self):
        words = ["toy", "--out", self.toy, "--train", "13", "--val", "5", "--size", "48x64"]
        self.run("tool.prepare", words)
        self.run("tool.train", ["--config", CONFIG, *self.training(self.model, eval_freq=1, cache=self.folder / "cache")])
        self.run("tool.test", ["--config", CONFIG, *self.testing(self.model / "train_epoch_2.pth", self.result)])

    def run(self, program, argv):
        status = wait(fork(program, argv, self.folder / "log"), 300)
        if status:
            raise SystemExit((self.folder / "log").read_text())

    def training(self, folder, toy=None, **changes):
        options = {"save_path": folder, "test_gpu": None, "train_gpu": None, "batch_size_val": 4, "eval_freq": 1} | changes
        return [w if w != "None" else "null" for w in small_training(toy or self.toy, **options)]

    def testing(self, model, folder, toy=None, **changes):
        return self.training(folder / "unused", toy, model_path=model, save_folder=folder, **changes)


# ---- values of the config ----

GENERAL = """ "" abc [] [1] [[]] {} {a:\u00a0b} null ~ .nan .inf -.inf -1 0 1 2 3 0.5 -0.5 1e-30 1e30 1e400 2147483647
    2147483648 9223372036854775808 1e-2 0x10 True False yes [null] [.nan] [1,2,3] [a,b]
    [-1] [0.5,1.0] 2024-13-45 a:\u00a0b:\u00a0c
    /nonexistent/file / /dev/null /proc/1/mem {save_path} {path} {epochs} {{ ~nobody/x .. . auto best torchvision é \ud800
    *x &x !!python/object:os.system | - ' " % @ `""".split()


def value_fault(base, rng, number, place):
    key = sorted(FIELDS)[number % len(FIELDS)]
    choices = [str(choice) for choice in _choices(FIELDS[key].type)]
    files = [base.toy, base.toy / "list/train.txt", base.model / "train_epoch_2.pth", place, "a" * 300, f"/tmp/{'b' * 5000}"]
    value = str(rng.choice([*GENERAL, *GENERAL, *files, *choices, *choices])).replace("\u00a0", " ")
    value = value.encode("utf-8", "surrogateescape" if value != "\ud800" else "replace").decode()
    program = "tool.train" if key not in _keys_of("TEST") or rng.random() < 0.2 else "tool.test"
    if program == "tool.test":
        argv = base.testing(base.model / "train_epoch_2.pth", place / "result", index_step=2)
    else:
        argv = base.training(place / "model", epochs=1)
    if rng.random() < 0.5:
        argv = ["--config", CONFIG, *argv, key, value]
    else:
        argv = ["--config", _file_with(place, argv, key, value)]
    heavy = _is_heavy(argv, key)
    if heavy:
        return f"{key}: {heavy} is accepted", None, None, (), None
    names = [key, *FIELDS, "command line", "line ", *([value] if len(value) > 3 else [])]
    check = (lambda: check_test(place / "result")) if program == "tool.test" else None
    if program == "tool.train" and key not in ("save_path",):
        check = lambda: check_training(place / "model", argv)  # noqa: E731
    if key in ("save_folder", "split"):
        check = None
    return f"{program} {key} {value!r:.60}", program, argv, names, check


def _keys_of(section):
    return [key for key in FIELDS if SECTION_OF[key] == section]


def _choices(kind):
    if get_origin(kind) is Literal:
        return list(get_args(kind))
    return [choice for part in get_args(kind) if not isinstance(part, str) for choice in _choices(part)]


def _file_with(place, options, key, value):
    """A config file with these options, and `key: value` as YAML, or as text where that is none."""
    content = yaml.safe_load(Path(CONFIG).read_text())
    for name, word in zip(options[::2], options[1::2]):
        content.setdefault(SECTION_OF[name], {})[name] = yaml.safe_load(word) if name not in ("save_path",) else word
    content.setdefault(SECTION_OF[key], {"dist_backend": "gloo"}).pop(key, None)
    text = yaml.safe_dump(content).replace(f"{SECTION_OF[key]}:\n", f"{SECTION_OF[key]}:\n  {key}: {value}\n", 1)
    path = place / "config.yaml"
    path.write_text(text, errors="surrogateescape")
    return str(path)


def _is_heavy(argv, key):
    """The value as the config has it, if it is accepted and not to be run."""
    try:
        value = getattr(load_config(argv[1], argv[2:]), key)
    except (ValueError, OSError):
        return None
    if key in NOT_RUN and value in NOT_RUN[key]:
        return value
    numbers = value if isinstance(value, tuple) else [value]
    bound = HEAVY.get(key)
    heavy = bound is not None and any(isinstance(n, int | float) and (n > bound or 0 < n < 1 / 8) for n in numbers)
    return value if heavy else None


# ---- files ----


def _flip(content, rng):
    content = bytearray(content or b"\0")
    for _ in range(rng.choice([1, 1, 3])):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return bytes(content)


def _replace(path, rng, base):
    """Put something else in the place of a file or folder; returns what."""
    kind = rng.choice("missing empty folder random flipped cut text latin nul huge link loop null other other swap".split())
    old = path.read_bytes() if path.is_file() else b""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    others = [base.toy / "list/val.txt", next(iter(base.toy.rglob("*.png"))), base.model / "train_epoch_2.pth", Path(CONFIG)]
    others += [base.result / "result.json", base.model / "metrics.jsonl"]
    if kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to("/nonexistent/file")
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "null":
        path.symlink_to("/dev/null")
    elif kind == "other":
        other = rng.choice(others)
        path.write_bytes(other.read_bytes())
        kind = f"content of {other.name}"
    elif kind == "swap":
        lines = old.split(b"\n")
        rng.shuffle(lines)
        path.write_bytes(b"\n".join(lines[: len(lines) // 2 + 1]))
    elif kind != "missing":
        contents = {
            "empty": b"",
            "random": rng.randbytes(rng.choice([1, 8, 1000])),
            "flipped": _flip(old, rng),
            "cut": old[: rng.randrange(len(old) + 1)],
            "text": b"some words\nand more\n",
            "latin": "gr\u00fcn \u00df\n".encode("latin-1") * 3,
            "nul": b"\0" * rng.choice([1, 100]),
            "huge": b"9" * 10**6,
        }
        path.write_bytes(contents[kind])
    return kind


def _edit_checkpoint(path, rng):
    """Change one entry of a checkpoint; returns what."""
    content = torch.load(path, weights_only=True)
    parts, node, where = [], content, []
    while isinstance(node, dict) and node and (not parts or rng.random() < 0.75):
        parts.append(node)
        where.append(rng.choice(sorted(node, key=str)))
        node = node[where[-1]]
    if isinstance(node, list) and node and rng.random() < 0.5:
        parts.append(node)
        where.append(rng.randrange(len(node)))
    new = rng.choice([None, -1, 0, 3, 2.5, 10**30, math.nan, True, "text", [], [1], {}, {"a": 1}, torch.ones(2, 2),
                      torch.tensor(math.nan), torch.ones(3, 9), "removed", "TRAIN: 3", {1: {}}])  # fmt: skip
    if isinstance(new, str) and new == "removed":
        del parts[-1][where[-1]]
    else:
        parts[-1][where[-1]] = copy.deepcopy(new)
    torch.save(content, path)
    return f"{'.'.join(map(str, where))} = {str(new)[:30]!r}"


def file_fault(base, rng, number, place):
    toy, model, result = place / "toy", place / "model", place / "result"
    shutil.copytree(base.toy, toy)
    shutil.copytree(base.model, model)
    image, label = (toy / rng.choice((toy / "list/train.txt").read_text().splitlines()).split()[i] for i in (0, 1))
    val_image, val_label = (toy / rng.choice((toy / "list/val.txt").read_text().splitlines()).split()[i] for i in (0, 1))
    names, colours = place / "names.txt", place / "colors.txt"
    for path in (names, colours):
        shutil.copy(Path(CONFIG).parents[2] / f"dataset/toy/toy_{path.name}", path)
    weights, config, picture = model / "train_epoch_2.pth", place / "config.yaml", place / "picture.jpg"
    common = {"names_path": names, "colors_path": colours}
    training = lambda **more: ("tool.train", base.training(model, toy, epochs=3, **common, **more))  # noqa: E731
    testing = lambda **more: ("tool.test", base.testing(weights, result, toy, index_step=2, **common, **more))  # noqa: E731
    fresh = {"save_path": place / "fresh"}
    roles = {
        "weight": (weights, training(**fresh, weight=weights)),
        "initmodel": (weights, training(**fresh, initmodel=weights)),
        "resume": (weights, training(resume=weights)),
        "resume outside": (weights, training(**fresh, resume=weights)),
        "resume auto": (weights, training(resume="auto")),
        "resume best": (model / "model_best.pth", training(resume="best")),
        "older checkpoint": (model / "train_epoch_1.pth", training(resume="auto")),
        "best": (model / "model_best.pth", training(resume="auto")),
        "train_list": (toy / "list/train.txt", training(**fresh)),
        "val_list": (toy / "list/val.txt", training(**fresh)),
        "image": (image, training(**fresh)),
        "label": (label, training(**fresh)),
        "image, unchecked": (image, training(**fresh, check_data=False)),
        "label, unchecked": (label, training(**fresh, check_data=False, workers=rng.choice([0, 1]))),
        "validation image": (val_image, training(**fresh, check_data=rng.choice([True, False]))),
        "names": (names, training(**fresh)),
        "colours": (colours, training(**fresh)),
        "metrics": (model / "metrics.jsonl", training(resume="auto")),
        "stray metrics": (model / "metrics.stray", training(resume="auto")),
        "config.yaml of the run": (model / "config.yaml", training(resume="auto")),
        "events": (next(model.glob("events*")), training(resume="auto")),
        "lock": (model / ".lock", training(resume="auto")),
        "log": (next(model.glob("*.log")), training()),
        "earlier run": (model / "earlier-1", training(resume=rng.choice(["auto", "null"]))),
        "save_path": (model, training(resume="auto")),
        "data_root": (toy, training(**fresh)),
        "config": (config, training(**fresh)),
        "cache file": (None, training(**fresh, cache=place / "cache")),
        "cache": (place / "cache", training(**fresh, cache=place / "cache")),
        "cache lock": (place / "cache/lock", training(**fresh, cache=place / "cache")),
        "model_path": (weights, testing()),
        "test_list": (toy / "list/val.txt", testing()),
        "test image": (val_image, testing()),
        "test label": (val_label, testing()),
        "test names": (names, testing()),
        "test colours": (colours, testing()),
        "save_folder": (result, testing()),
        "gray": (result / "gray", testing()),
        "overlay": (result / "overlay", testing()),
        "report": (result / "report.html", testing()),
        "result.json": (result / "result.json", testing(has_prediction=True)),
        "prediction": (None, testing(has_prediction=True)),
        "demo model": (weights, ("tool.demo", [])),
        "demo picture": (picture, ("tool.demo", [])),
        "demo out": (place / "out", ("tool.demo", [])),
        "demo out file": (place / "out/picture_gray.png", ("tool.demo", [])),
        "convert": (weights, ("tool.convert", [weights, place / "converted.pth"])),
        "convert output": (place / "converted.pth", ("tool.convert", [weights, place / "converted.pth"])),
        "convert to mmseg": (weights, ("tool.convert", [weights, place / "converted.pth", "--to", "mmseg"])),
    }
    role = list(roles)[number % len(roles)]
    path, (program, argv) = roles[role]
    if "cache" in role:
        shutil.copytree(base.folder / "cache", place / "cache")
        base_times(base.toy, toy)
    if program == "tool.test" and "has_prediction" in argv:
        shutil.copytree(base.result, result)
    path = path or rng.choice(sorted([*(place / "cache").glob("*.cache"), *(result / "gray").glob("*.png")]))
    shutil.copy(image, picture)
    if program == "tool.demo":
        argv = ["--config", CONFIG, "--image", picture, "--out", place / "out", "--model_path", weights]
        argv += ["test_h", 33, "test_w", 33, "base_size", 64]
    elif role == "config":
        _file_with(place, argv, "print_freq", 1)
        argv = ["--config", config]
    elif program != "tool.convert":
        argv = ["--config", CONFIG, *argv]
    edited = path.suffix == ".pth" and path.exists() and rng.random() < 0.6
    what = _edit_checkpoint(path, rng) if edited else _replace(path, rng, base)
    check = {
        "tool.test": lambda: check_test(result),
        "tool.train": lambda: check_training(place / "fresh" if "fresh" in str(argv) else model, list(map(str, argv))),
    }.get(program)
    if role in ("resume", "resume auto", "resume best", "resume outside", "metrics", "save_path", "config"):
        check = None  # a resumed run may have other metrics, or have been over
    # A message names the file, its folder, its key, or where a checkpoint does not fit.
    words = {path, path.parent, path.name, "TRAIN.resume", "config of the checkpoint", "label ids"}
    return f"{program} {role}: {what}", program, argv, words, check


def base_times(old, new):
    """A copy with the times of the original, so that a cache is still of these files."""
    for path in old.rglob("*"):
        stat = path.stat()
        os.utime(new / path.relative_to(old), ns=(stat.st_atime_ns, stat.st_mtime_ns))


# ---- kills and signals ----

LENGTHS = {"epochs": {"epochs": 4}, "iterations": {"max_iter": 12, "iter_interval": 3}}


def kill_fault(base, rng, place):
    """A run that is killed and stopped at random moments until it is over, compared with one that is not."""
    world = 2 if rng.random() < 0.2 else 1
    kept = {"save_iters": rng.choice([0, 1, 2]), "eval_freq": rng.choice([1, 2, 9]), "save_freq": rng.choice([1, 2])}
    kept |= {"keep_checkpoints": rng.choice([1, 2]), "workers": rng.choice([0, 0, 1])} | LENGTHS[rng.choice(list(LENGTHS))]
    changing = rng.random() < 0.4
    folder, log = place / "model", place / "log"
    start = time.monotonic()
    run_ranks(base, folder, log, kept, world)
    duration = time.monotonic() - start
    whole = folder.rename(place / "whole")
    killed, said = 0, []
    while True:
        options = dict(kept)
        if changing and said:
            options |= {"eval_freq": rng.choice([1, 2, 9]), "save_iters": rng.choice([0, 1, 2])}
            options = {k: v for k, v in options.items() if k not in ("epochs", "max_iter", "iter_interval")}
            options |= rng.choice([{"epochs": 4}, {"max_iter": 12, "iter_interval": rng.choice([2, 3, 5])}])
        if len(said) >= 6:
            options = dict(kept)
        number = rng.choice([signal.SIGKILL] * 2 + [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
        after = rng.uniform(0, 1.1 * duration) if len(said) < 6 else None
        said.append(f"{number.name} after {after:.2f} s" if after else "to the end")
        try:
            statuses = run_ranks(base, folder, log, options, world, number, after, rng)
        except Bad as bad:
            raise Bad(f"{options}, {world} process(es), {'; '.join(said)}: {bad}") from None
        killed += after is not None
        if statuses == [0] * world:
            break
    try:
        compare(whole, folder, changing)
    except Bad as bad:
        raise Bad(f"{kept}, {world} process(es), {'; '.join(said)}: {bad}") from None
    return killed


def run_ranks(base, folder, log, options, world, number=None, after=None, rng=None):
    """Statuses of a training in `world` processes; `number` is sent to one or all of them `after` seconds."""
    argv = ["--config", CONFIG, *base.training(folder, **options), "resume", "auto"]
    common = {"WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    own = lambda rank: {**common, "RANK": rank, "LOCAL_RANK": rank} if world > 1 else {}  # noqa: E731
    logs = [log.with_name(f"log.{rank}") for rank in range(world)]
    before = len(list(folder.glob("*.log")))
    pids = [fork("tool.train", argv, path, own(rank)) for rank, path in enumerate(logs)]
    if after is not None:
        time.sleep(after)
        met = len(list(folder.glob("*.log"))) > before  # till then a process waits for the others, which a launcher would end
        for pid in [rng.choice(pids)] if met and rng.random() < 0.5 else pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
    statuses = [wait(pid) for pid in pids]
    deaf = len(list(folder.glob("*.log"))) == before  # the handlers were not set yet
    for status, path in zip(statuses, logs):
        if after is not None and (status == -signal.SIGKILL and number == signal.SIGKILL or deaf and status in DEATHS):
            continue
        if world > 1 and after is not None and status == 1:
            text = path.read_text(errors="replace")
            if "Traceback" not in text and text.count("error: ") <= 1:
                continue  # another process was killed
        judge(status, path, ["another process"], signalled=after is not None)
    return statuses


def compare(whole, folder, changed):
    """The run that was interrupted ended as the other. changed: only the network and the lines of each iteration."""
    last = lambda place: max(place.glob("train_*.pth"), key=lambda path: path.stat().st_mtime)  # noqa: E731
    ours, theirs = last(folder), last(whole)
    if not changed and (ours.name != theirs.name or ours.read_bytes() != theirs.read_bytes()):
        a, b = (torch.load(path, weights_only=True) for path in (ours, theirs))
        differ = [key for key in a if str(a[key]) != str(b[key])]
        if ours.name != theirs.name or differ or not _equal(a, b):
            raise Bad(f"{ours.name} and {theirs.name} differ: {differ}")
        raise Bad(f"{ours.name}: equal content in other bytes")
    a, b = (torch.load(path, weights_only=True) for path in (ours, theirs))
    if not _equal([a["state_dict"], a["optimizer"]], [b["state_dict"], b["optimizer"]]):
        raise Bad("the last checkpoints have other weights")
    lines = [(place / "metrics.jsonl").read_text().splitlines() for place in (folder, whole)]
    points = [scalars(place) for place in (folder, whole)]
    if changed:
        lines = [[line for line in part if '"lr"' in line] for part in lines]
        points = [{k: v for k, v in part.items() if "train_batch" in k[0] or k[0] == "lr"} for part in points]
    if lines[0] != lines[1]:
        raise Bad(f"metrics.jsonl differs: {sorted(set(lines[0]) ^ set(lines[1]))[:4]}")
    twice = [key for key, values in scalars(folder).items() if len(values) != 1]
    if twice:
        raise Bad(f"TensorBoard has points twice: {twice[:4]}")
    if points[0] != points[1]:
        missing = sorted(points[1].keys() - points[0].keys())
        raise Bad(f"TensorBoard differs: {missing[:4]} are missing, {sorted(points[0].keys() - points[1].keys())[:4]} are new")
    if list(folder.glob(".*.tmp")):
        raise Bad("half-written files are left")


def _equal(a, b):
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_equal, a, b))
    return a == b


# ---- the campaign ----


def plant(base, number, seed, place):
    """Plant one fault; returns (outcome, what it was). Raises Bad."""
    rng, kind = random.Random(f"{seed},{number}"), KINDS[number % len(KINDS)]
    if kind == "kill":
        return "kill", f"{kill_fault(base, rng, place)}"
    make = value_fault if kind == "value" else file_fault
    what, program, argv, names, check = make(base, rng, number // 2, place)
    if program is None:
        return "accepted, not run", what
    try:
        status = judge(wait(fork(program, argv, place / "log")), place / "log", names)
        if status == 0 and check and "reached its end" not in (place / "log").read_text(errors="replace"):
            check()
    except Bad as bad:
        raise Bad(f"{what}: {bad}") from None
    except Exception as error:
        raise Bad(f"{what}: status 0, but the results are not sound ({error!r})") from error
    return f"{kind}, status {status}", what


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=900)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fault", type=int, action="append", help="plant only this one, print its output and keep its files")
    parser.add_argument("--first", type=int, default=0, help="number of the first fault")
    args = parser.parse_args(argv)
    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    resnet.WIDTH = 8
    work, end = Path(tempfile.mkdtemp(prefix="campaign-")), time.monotonic() + args.seconds
    base, outcomes, kills, failures, accepted = Base(work), Counter(), 0, [], set()
    base.make()
    numbers = iter(args.fault) if args.fault else iter(range(args.first, sys.maxsize))
    for number in numbers:
        if time.monotonic() > end:
            break
        place = work / str(number)
        place.mkdir()
        try:
            outcome, what = plant(base, number, args.seed, place)
            kills += int(what) if outcome == "kill" else 0
            accepted |= {what} if outcome.startswith("accepted") else set()
            good = True
        except Bad as bad:
            outcome, what, good = "FAILED", str(bad), False
            failures.append((number, what))
        outcomes[outcome] += 1
        if not good:
            print(f"\n{number} {outcome}: {what}\n  python tests/campaign.py --seed {args.seed} --fault {number}", flush=True)
        if args.fault:
            print(f"{outcome}: {what}\n{place}")
            print(*(path.read_text(errors="replace") for path in sorted(place.glob("log*"))), sep="\n")
        elif good:
            shutil.rmtree(place)
    print(f"\nseed {args.seed}: {outcomes.total()} faults, {kills} kills and signals, {len(failures)} failures")
    print(*(f"  {count:5} {outcome}" for outcome, count in sorted(outcomes.items())), sep="\n")
    print("Accepted by the config, not run:", *sorted(accepted), sep="\n  ")
    if not args.fault and not failures:
        shutil.rmtree(work)
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
