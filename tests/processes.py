"""Start the training program in processes of its own, for tests that count, signal or kill them.

They fork from a server that has imported the program already, which saves seconds for each.
"""

import importlib
import json
import multiprocessing
import os
import socket
import sys
import zlib
from pathlib import Path

import torch

from tool import train
from util.config import ROOT

CONFIG = str(ROOT / "config/toy/toy_pspnet18.yaml")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def start(options, *more, log, world=1, program="tool.train", dtype=torch.float32, variables=()):
    """`world` processes of the program as a launcher would start them, one thread each. What each says goes to log.RANK, and
    the checksums of the samples it trained on to log.RANK.json. Their exit status is the program's."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tool.train", "tool.test"])
    argv = ["--config", CONFIG, *options, *map(str, more)]
    variables = dict(variables)
    if world > 1:
        variables |= {"WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    processes = []
    for rank in range(world):
        own = {**variables, **({"RANK": rank, "LOCAL_RANK": rank} if world > 1 else {})}
        processes.append(context.Process(target=_run, args=(program, argv, f"{log}.{rank}", own, dtype)))
        processes[-1].start()
    return processes


def finish(processes, seconds=120):
    """Exit statuses; whoever takes longer is killed, and has a negative one."""
    for process in processes:
        process.join(seconds)
        if process.is_alive():
            process.kill()
            process.join()
    return [process.exitcode for process in processes]


def said(log, rank=0) -> str:
    return Path(f"{log}.{rank}").read_text()


def seen(log, rank=0) -> list:
    """[[checksum of each sample] of each update]"""
    return json.loads(Path(f"{log}.{rank}.json").read_text())


def _run(program, argv, log, variables, dtype):
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.update({name: str(value) for name, value in variables.items()})
    torch.set_num_threads(1)
    checksums, update, build_model = [], train.update, train.build_model

    def update_and_note(cfg, net, network, optimizer, precision, image, label):
        checksums.append([zlib.crc32(a.numpy().tobytes() + b.numpy().tobytes()) for a, b in zip(image, label)])
        return update(cfg, net, network, optimizer, precision, image.to(dtype), label)

    train.update = update_and_note
    train.build_model = lambda *args, **more: build_model(*args, **more).to(dtype)
    status = importlib.import_module(program).main(argv)
    Path(f"{log}.json").write_text(json.dumps(checksums))
    sys.exit(status)
