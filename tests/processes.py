"""Start the programs in processes of their own, for tests that count, signal or kill them.

They fork from a server that has imported the programs already, which saves seconds for each.
"""

import atexit
import contextlib
import importlib
import json
import multiprocessing
import os
import random
import shutil
import socket
import sys
import time
import zlib
from pathlib import Path

import torch

from model import resnet
from model.base import SceneParser
from tool import train
from util.checkpoint import load_checkpoint
from util.config import ROOT

CONFIG = str(ROOT / "config/toy/toy_pspnet18.yaml")
ONE_BLOCK = (resnet.BasicBlock, (1, 1, 1, 1))  # of a ResNet-18 that is as small as one can be
PLAIN = {"init": "semseg", "class_weights": "null", "ema_decay": 0, "optimizer": "sgd", "base_lr": 0.05, "head_lr_factor": 2,
         "weight_decay": 1e-4, "scale_min": 0.75, "scale_max": 1.5, "rotate_min": -5, "rotate_max": 5}  # fmt: skip


def small_training(toy, **changes) -> list[str]:
    """Options of two epochs of three iterations, four images each."""
    options = {"data_root": toy, "train_list": toy / "list/train.txt", "val_list": toy / "list/val.txt"}
    options |= {"test_list": toy / "list/val.txt", "train_h": 33, "train_w": 33, "test_h": 33, "test_w": 33, "base_size": 64}
    options |= PLAIN | {"batch_size": 4, "epochs": 2, "print_freq": 1, "eval_freq": 2, "workers": 0, "manual_seed": 7} | changes
    return [str(word) for pair in options.items() for word in pair]


def copy_project(root, blocks=1):
    """The project's code and configs in another place, for tests that start the programs as a user does; the networks are
    those of the fixture `narrow`, or `eighth` with two blocks."""
    for name in ("model", "util", "tool", "config"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in [*ROOT.glob("requirements*.txt"), *ROOT.glob("dataset/*/*_*.txt"), *ROOT.glob("dataset/**/*.py")]:
        (root / path.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, root / path.relative_to(ROOT))
    code = (root / "model/resnet.py").read_text()
    changes = {"\nWIDTH = 64 ": "\nWIDTH = 8 ", "18: (BasicBlock, (2, 2, 2, 2))": f"18: (BasicBlock, {(blocks,) * 4})"}
    for before, after in changes.items():
        assert code.count(before) == 1
        code = code.replace(before, after)
    (root / "model/resnet.py").write_text(code)
    return root


def free_port() -> int:
    """None of those that the system gives to connections, which may take it before it is used; each of pytest's processes has
    a thousand of its own."""
    first = 10000 + 1000 * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])
    while True:
        with socket.socket() as tried, contextlib.suppress(OSError):
            port = first + random.SystemRandom().randrange(1000)
            tried.bind(("127.0.0.1", port))
            return port


def start(options, *more, log, world=1, program="tool.train", dtype=torch.float32, variables=(), pause=0):
    """`world` processes of the program as a launcher would start them, one thread each. Their screens go to log.RANK, and
    the checksums of the samples they trained on to log.RANK.json. Their exit status is the program's. pause: seconds that each
    batch takes longer, to leave time for what a test does to them. The networks are those of the fixture `narrow`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tool.train", "tool.test", "torch._dynamo"])  # the last: by DistributedDataParallel
    argv = ["--config", CONFIG, *options, *map(str, more)]
    variables = dict(variables)
    if world > 1:
        variables |= {"WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    processes = []
    for rank in range(world):
        own = {**variables, **({"RANK": rank, "LOCAL_RANK": rank} if world > 1 else {})}
        processes.append(context.Process(target=_run, args=(program, argv, f"{log}.{rank}", own, dtype, pause)))
        processes[-1].start()
    return processes


def finish(processes, seconds=600):
    """Exit statuses; whoever takes longer, on a busy machine too, hangs: it is killed, and has a negative one."""
    for process in processes:
        process.join(seconds)
        if process.is_alive():
            process.kill()
            process.join()
    return [process.exitcode for process in processes]


def wait_for(condition, seconds=600):
    """The first true value of `condition()`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.003)  # what is waited for may last some milliseconds only
    raise TimeoutError(f"not within {seconds} seconds: {condition}")


def children(pid) -> list[int]:
    """The processes that `pid` has started."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it may just have ended
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(stat.parent.name))
    return found


def noted(folder, key="loss_train_batch") -> list:
    """[(iteration, value)] of the lines of metrics.jsonl that hold the key."""
    lines = map(json.loads, (Path(folder) / "metrics.jsonl").read_text().splitlines())
    return [(line["iteration"], line[key]) for line in lines if key in line]


def scalars(folder) -> dict:
    """{(tag, iteration): values} of TensorBoard, but for times."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # which few tests need

    events, points = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload(), {}
    for tag in events.Tags()["scalars"]:
        for point in events.Scalars(tag) if tag != "images_per_second" else []:
            points.setdefault((tag, point.step), []).append(point.value)
    return points


def said(log, rank=0) -> str:
    """What a process wrote, without the lines of torch 2.8 about its connections."""
    lines = Path(f"{log}.{rank}").read_text().splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith("[Gloo] "))


def seen(log, rank=0) -> list:
    """[[checksum of each sample] of each update]"""
    return json.loads(Path(f"{log}.{rank}.json").read_text())


def same_tensors(a, b) -> bool:
    """Are all tensors of two checkpoints, momenta included, the same bytes?"""
    a, b = load_checkpoint(a), load_checkpoint(b)
    momenta = [[value for state in c["optimizer"]["state"].values() for value in state.values()] for c in (a, b)]
    named = a["state_dict"].keys() == b["state_dict"].keys()
    pairs = [*zip(a["state_dict"].values(), b["state_dict"].values()), *zip(*momenta)]
    return named and len(momenta[0]) == len(momenta[1]) and all(torch.equal(x, y) for x, y in pairs)


def _run(program, argv, log, variables, dtype, pause):
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.update({name: str(value) for name, value in variables.items()})
    torch.set_num_threads(1)
    resnet.WIDTH, resnet.BLOCKS[18] = 8, ONE_BLOCK
    checksums, build_model = [], train.build_model

    def note_and_convert(module, inputs):
        if not isinstance(module, SceneParser) or inputs[0].is_meta:  # asked by check_config
            return inputs
        image, *label = inputs
        time.sleep(pause)
        if module.training:
            checksums.append([zlib.crc32(a.numpy().tobytes() + b.numpy().tobytes()) for a, b in zip(image, *label)])
        return image.to(dtype), *label

    torch.nn.modules.module.register_module_forward_pre_hook(note_and_convert)
    train.build_model = lambda *args, **more: build_model(*args, **more).to(dtype)
    status = importlib.import_module(program).main(argv)
    Path(f"{log}.json").write_text(json.dumps(checksums))
    atexit._run_exitfuncs()  # as at the end of a program; multiprocessing leaves them out
    sys.exit(status)
