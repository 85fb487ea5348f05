"""Measure how time and memory grow with images, classes, scales and processes, on the CPU.

    python docs/growth.py
    python docs/growth.py --quick    # tiny, as a check that it works

Prints the numbers of docs/running.md as Markdown tables. The longest list names two million files, which are made in the
temporary folder and take minutes.
"""

import argparse
import io
import os
import subprocess
import sys
import time
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import util.start  # noqa: F401  # isort: skip, before the packages
import numpy as np
import torch

from model.fold import for_test
from model.pspnet import PSPNet
from tool.benchmark import compare, heading, processor, step_of
from tool.prepare import main as prepare
from util.config import ROOT
from util.dataset import EpochSampler
from util.inference import predict
from util.lists import read_list
from util.log import environment, report_errors
from util.transform import MEAN, STD

PER_FOLDER = 1000  # images, as datasets of this size have them


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(
        "python docs/growth.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes, one run")
    args = parser.parse_args(argv)
    return report_errors(lambda: tables(args.quick))


def tables(quick) -> None:
    torch.manual_seed(0)
    sizes = (10, 20, 30) if quick else (10_000, 100_000, 1_000_000)
    rows("images of a list", "until the first batch is known", sizes, images, quick)
    rows("classes", f"a training step, PSPNet18, {2 if quick else 4} images", (2, 19, 150), classes, quick)
    rows("scales", "test of a picture with its mirror image, PSPNet18, 19 classes", (1, 3, 6), scales, quick)
    sizes = (2,) if quick else (1, 2, 4)
    rows("processes", "an epoch of toy, 8 images an iteration, one thread each", sizes, processes, quick)
    print(f"{time.strftime('%Y-%m-%d')}, {processor()}, {environment(torch.device('cpu'))}. Medians; memory: the peak above "
          "what was in use before, of processes all that the largest took.")  # fmt: skip


def rows(name, work, sizes, measure, quick) -> None:
    heading(name, f"{work}: time", "memory", text=())
    for size in sizes:
        with TemporaryDirectory() as folder:
            print(f"| {size:,} | {measure(size, Path(folder), quick)} |", flush=True)
    print()


def images(count, folder, quick):
    """Read a list of `count` pairs of files, which are looked for, and draw the order of an epoch."""
    lines = []
    for i in range(count):
        name = f"{i // PER_FOLDER:04d}/{i:08d}"
        image, label = f"image/{name}.jpg", f"label/{name}.png"
        for name in (image, label):
            if i % PER_FOLDER == 0:
                (folder / name).parent.mkdir(parents=True)
            os.close(os.open(folder / name, os.O_CREAT))  # half of pathlib's time
        lines.append(f"{image} {label}\n")
    (folder / "list.txt").write_text("".join(lines))

    def work():
        pairs = read_list(folder / "list.txt", folder, "train")
        next(iter(EpochSampler(len(pairs), 8, seed=0)))

    return compare({"": work}, 60, 1 if quick else 3)[""]


def classes(count, folder, quick):
    n, size = (2, 33) if quick else (4, 129)
    step = step_of(PSPNet(18, classes=count), "fp32", n, size, count)
    step()
    return compare({"": step}, 60, 1 if quick else 5)[""]


def scales(count, folder, quick):
    h, w, crop = (40, 60, 33) if quick else (256, 512, 257)
    network, image = for_test(PSPNet(18, classes=19), torch.device("cpu")), np.zeros((h, w, 3), np.uint8)
    chosen = {1: (1.0,), 3: (0.75, 1.0, 1.25), 6: (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)}[count]
    how = {"classes": 19, "base_size": None, "scales": chosen, "mean": MEAN, "std": STD, "crop_h": crop, "crop_w": crop}
    predict(network, image, **how)
    return compare({"": partial(predict, network, image, **how)}, 60, 1 if quick else 5)[""]


def processes(count, folder, quick):
    """Wall time of the epoch, and the peak of the largest process."""
    n, h, w = (8, 48, 64) if quick else (64, 192, 256)
    crop = 33 if quick else 129
    with redirect_stdout(io.StringIO()):
        prepare(["toy", "--out", str(folder / "toy"), "--train", str(n), "--val", "1", "--size", f"{h}x{w}"])
    options = {"data_root": folder / "toy", "train_list": folder / "toy/list/train.txt", "save_path": folder / "run",
               "train_h": crop, "train_w": crop, "batch_size": 8, "epochs": 1, "print_freq": 1, "evaluate": False, "workers": 0,
               "check_data": False}  # fmt: skip
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", count] if count > 1 else []
    words = [sys.executable, *launcher, ROOT / "tool/train.py", "--config", ROOT / "config/toy/toy_pspnet18.yaml"]
    command = [str(word) for word in [*words, *sum(options.items(), ())]]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    times = [time.perf_counter() for line in run.stdout if "Epoch: [1/1][" in line]  # of the end of each iteration
    _, status, usage = os.wait4(run.pid, 0)
    if status or len(times) < 2 - quick:
        raise RuntimeError(f"{' '.join(command)} ended with status {status}")
    seconds = (times[-1] - times[0]) * len(times) / max(len(times) - 1, 1)  # without the start
    return f"{seconds:.1f} s | {usage.ru_maxrss // 1024} MiB"


if __name__ == "__main__":
    sys.exit(main())
