"""Measure; every command prints Markdown tables.

    python tool/benchmark.py
    python tool/benchmark.py --against DIR
    python tool/benchmark.py exported
    python tool/benchmark.py model cityscapes_pspnet50 --fit 24 train_gpu "[0]"

speed (the default): every optimised part against the plain form of the same work, which is how the original does it, in
turns, on the GPU if there is one. With --against the plain network is that of a checkout of the original's code.
exported: a window and its mirror image through the network, compiled, and in the files of tool/export.py; on the CPU.
model: parameters, multiply-adds and memory of each part of a network, the memory that a training step needs on one device,
and the keys with which it fits into --fit GiB. Computed from shapes; where `train_gpu` names one GPU and it is there, its
steps are run and measured too.
"""

import argparse
import copy
import ctypes
import gc
import importlib
import io
import math
import os
import platform
import re
import subprocess
import sys
import time
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import util.start  # noqa: F401  # isort: skip, before the packages
import cv2
import numpy as np
import torch

from dataset.build import toy
from dataset.toy.scene import write_scene
from model import build_model, images_needed
from model.exported import Exported, write_exported
from model.fold import for_test
from model.loss import CrossEntropy, upsampled_loss
from model.pspnet import PSPNet
from tool import train
from util import transform
from util.common import Mistake
from util.config import ROOT, config_error, find_config, load_config
from util.dataset import SemData
from util.ema import Average
from util.inference import predict, window_starts
from util.log import environment, report_errors
from util.memory import costs, fitting, step_memory
from util.metric import confusion_matrix
from util.optim import build_optimizer
from util.precision import Precision, native_precision
from util.run import Run
from util.transform import MEAN, STD

RESERVE = 2  # GiB left for what is not predicted: CUDA's context, cuDNN's workspaces, gaps between the blocks


def main(argv=None) -> int:
    args = parse_args(sys.argv[1:] if argv is None else argv)
    return report_errors(lambda: args.command(args))


def parse_args(argv):
    parser = argparse.ArgumentParser(
        "python tool/benchmark.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("words", nargs="*", metavar="COMMAND", help="speed, exported, or model CONFIG KEY VALUE ...")
    parser.add_argument("--minutes", type=float, default=8, help="speed, exported: approximate duration (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="speed, exported: tiny sizes, one run, as a check that it works")
    parser.add_argument("--against", metavar="DIR", help="speed: the original's code, which has a folder model/")
    parser.add_argument("--config", metavar="FILE", help="model: the same as CONFIG")
    parser.add_argument("--fit", type=float, metavar="GIB", help="model: find the keys with which a step fits into this memory")
    args = parser.parse_intermixed_args(argv)
    name, *words = args.words or ["speed"]
    args.command = {"speed": speed, "exported": exported, "model": model}.get(name)
    if args.command is None:
        parser.error(f"unknown command {name}; choose speed, exported or model")
    if (words or args.config) and args.command is not model:
        parser.error(f"unrecognized arguments: {' '.join([args.config or '', *words]).strip()}")
    args.config, *args.opts = [args.config, *words] if args.config else words or [None]
    if args.fit is not None and not args.fit > RESERVE:
        parser.error(f"--fit {args.fit:g}: expected more than the {RESERVE} GiB that are left for what is not predicted")
    if args.command is model and not args.config:
        parser.error("model: which experiment? Give CONFIG, its YAML file or the name of a shipped one")
    return args


# ---- what is timed: each function yields (work, {name: what does it}, how often it does it); the first form is the plain one


@dataclass(frozen=True)
class Setup:
    device: torch.device
    repeats: int = 9  # at most
    bf16: bool = True  # measured too: minutes a step where it is emulated
    layers: int = 50
    train: int = 473  # crop of a training step
    frame: tuple = (1024, 2048)  # of the images that are loaded and tested
    crop: int = 713  # window of the test, crop of the loader
    small: tuple = (4, 129)  # images and crop of the steps of a small network
    plain: str = "plain"  # network: its name,
    network: Any = partial(PSPNet, fast_head=False, fused_loss=False)  # and what makes it


QUICK = {"repeats": 1, "layers": 18, "train": 65, "frame": (80, 160), "crop": 65, "small": (2, 33)}


def speed(args) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    setup = Setup(device, **(QUICK if args.quick else {"bf16": native_precision(device) == "bf16"}))
    if args.against:
        network = partial(original(Path(args.against)), pretrained=False)
        setup = replace(setup, plain="the original's", network=network, layers=50)  # it has no 18
    parts = [scoring, loss, start, allocator, compiled, loader, partial(training, 21), partial(training, 150), sliding]
    table(parts, setup, args.minutes)


def exported(args) -> None:
    table([runtimes], Setup(torch.device("cpu"), **(QUICK if args.quick else {})), args.minutes)


def table(parts, setup, minutes):
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True  # as in a training
    heading("work", "plain form", "time", "memory", "here", "time", "memory", "ratio", "runs", text=(0, 1, 4))
    end = time.monotonic() + 60 * minutes
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        for i, part in enumerate(parts):  # a slow machine repeats less often, but measures everything once
            for work, forms, times in part(setup, Path(folder)):
                results = compare(forms, (end - time.monotonic()) / (len(parts) - i), setup.repeats, times)
                (plain, a), *others = results.items()
                for name, b in others:
                    print(f"| {work} | {plain} | {a} | {name} | {b} | {a.seconds / b.seconds:.2f} | {b.runs} |", flush=True)
    print(f"\n{time.strftime('%Y-%m-%d')}, {processor()}, {environment(setup.device)}. Times: median of the runs, which "
          "alternate. Memory: median of the peaks above what was in use before, of the GPU if it was used, else resident; of a "
          "program, all of it.")  # fmt: skip


def original(folder):
    """Class PSPNet of the original's code in `folder`, whose packages have the names of ours."""
    if not os.path.isfile(folder / "model/pspnet.py"):  # noqa: PTH113, Path.is_file raises where the name is too long
        raise Mistake(f"--against {folder}: there is no model/pspnet.py; give the folder that holds the original's model/")
    others = [entry for entry in sys.path if Path(entry).resolve() != ROOT]
    with patch.dict(sys.modules), patch.object(sys, "path", [str(folder), *others]):
        for name in [name for name in sys.modules if name.split(".")[0] in ("model", "util", "lib")]:
            del sys.modules[name]
        return importlib.import_module("model.pspnet").PSPNet


def scoring(setup, folder):
    """Count the pixels of one frame by class; the original uses histograms of numpy."""
    classes, (h, w), times = 19, setup.frame, 5
    rng = np.random.default_rng(0)
    label = rng.integers(0, classes, (h // 8, w // 8), np.uint8).repeat(8, 0).repeat(8, 1)
    pred = np.where(rng.random((h, w)) < 0.2, rng.integers(0, classes, (h, w), np.uint8), label).astype(np.uint8)
    label[:: h // 8] = 255

    def histograms():
        output = np.where(label == 255, 255, pred)
        areas = [np.histogram(ids, np.arange(classes + 1))[0] for ids in (output[output == label], output, label)]
        return areas[0], areas[1] + areas[2] - areas[0], areas[2]

    forms = {"numpy histograms": lambda: [histograms() for _ in range(times)],
             "one histogram of pairs": lambda: [confusion_matrix(pred, label, classes) for _ in range(times)]}  # fmt: skip
    for form in forms.values():
        form()
    yield f"scores of a {h}x{w} frame, {classes} classes", forms, times


def loss(setup, folder):
    """From small logits to the loss and its gradient: the part of the training step that grows with the classes."""
    size, classes = setup.train, 150
    side = (size - 1) // 8 + 1
    logits = torch.randn(2, classes, side, side, device=setup.device, requires_grad=True)
    label = torch.randint(0, classes, (2, size, size), device=setup.device)

    def run(fused):
        loss, _ = upsampled_loss(logits, (size, size), label, CrossEntropy(), True, fused=fused)
        torch.autograd.grad(loss, logits)

    forms = {"upsample, then compare": partial(run, False), "fused": partial(run, True)}
    yield f"the loss alone and its gradient, {classes} classes", forms, 1


def start(setup, folder):
    """From the start of the process until the first iteration is done, toy data, on the CPU."""
    with redirect_stdout(io.StringIO()):
        toy(folder / "toy", 16, 1, 96, 128, 0)
    options = {"data_root": folder / "toy", "train_list": folder / "toy/list/train.txt", "save_path": folder / "run",
               "epochs": 1, "print_freq": 1, "evaluate": False}  # fmt: skip
    train = [ROOT / "tool/train.py", "--config", ROOT / "config/toy/toy_pspnet18.yaml", *sum(options.items(), ())]
    forms = {"import torch": partial(program, ["-c", "import torch; print('done')"], "done"),
             "tool/train.py on toy": partial(program, train, "Epoch: [1/1][1/")}  # fmt: skip
    yield "from process start to the first iteration", forms, 1


def allocator(setup, folder):
    """Ten training steps in a process of its own, on the CPU, where glibc keeps the memory that is freed and where not."""
    (n, size), steps = setup.small, 10 if setup.repeats > 1 else 1
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from tool.benchmark import *; "
        f"step = step_of(PSPNet(18, classes=21), 'fp32', {n}, {size}); step(); print('first'); "
        f"[step() for _ in range({steps})]; print('last')"
    )
    run = partial(program, ["-uc", code], "last", "first")
    forms = {"memory returned": partial(run, MALLOC_PERTURB_="0"), "memory kept": run}  # the variable is glibc's own value
    yield f"training step, PSPNet18, {n} x {size}x{size}, fp32, CPU", forms, steps


def compiled(setup, folder):
    """`compile: True`, training and test of a small network; the first call compiles."""
    n, size = setup.small
    eager = PSPNet(18, classes=21).to(setup.device)
    tested, image = for_test(eager, setup.device), torch.randn(n, 3, size, size, device=setup.device)
    net, net_tested = torch.compile(copy.deepcopy(eager)), torch.compile(tested)
    steps = [step_of(network, "fp32", n, size) for network in (eager, net)]
    tests = [torch.inference_mode()(partial(network, image)) for network in (tested, net_tested)]
    for work, (plain, fast) in (("training step", steps), ("forward pass of a test", tests)):
        plain()
        begin = time.perf_counter()
        with patch.dict(os.environ, TORCHINDUCTOR_CACHE_DIR=str(folder)):  # not what an earlier run has compiled
            fast()
        name = f"compiled, in {time.perf_counter() - begin:.0f} s"
        yield f"{work}, PSPNet18, {n} x {size}x{size}, fp32", {"eager": plain, name: fast}, 1


def loader(setup, folder):
    """One core: read, augment and crop samples, from rendered PNGs and from the cache."""
    images, samples = (1, 2) if setup.repeats == 1 else (3, 9)
    for i in range(images):
        write_scene((i, *setup.frame, str(folder), f"{i}.png"))
    (folder / "list.txt").write_text("".join(f"image/{i}.png label/{i}.png\n" for i in range(images)))
    ops = [transform.RandScale([0.5, 2.0]), transform.RandRotate([-10, 10], padding=MEAN), transform.RandomGaussianBlur(),
           transform.RandomHorizontalFlip(), transform.Crop([setup.crop, setup.crop], "rand", padding=MEAN),
           transform.ToTensor(), transform.Normalize(MEAN, STD)]  # fmt: skip

    def form(lazy, cache=None):
        with redirect_stdout(io.StringIO()):
            data = SemData("train", folder, folder / "list.txt", transform.Compose(ops, lazy=lazy), cache=cache)
        return lambda: [data[i // images, i % images] for i in range(samples)]

    decode = SemData("train", folder, folder / "list.txt").read
    plain, lazy, cached = form(False), form(True), form(True, folder)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    work = f"a training sample, {setup.frame[0]}x{setup.frame[1]} PNGs, crop {setup.crop}, one core"
    yield work, {"op by op": plain, "lazy": lazy, "lazy, cached": cached}, samples
    yield work, {"decode alone": lambda: [decode(i % images) for i in range(samples)], "lazy": lazy}, samples
    torch.set_num_threads(threads)


def training(classes, setup, folder):
    """Forward, backward and update."""
    device, size = setup.device, setup.train
    plain, fast = setup.network(layers=setup.layers, classes=classes), PSPNet(setup.layers, classes=classes)
    forms = {f"{setup.plain} fp32": step_of(plain.to(device), "fp32", 2, size, classes),
             "fp32": step_of(fast.to(device), "fp32", 2, size, classes)}  # fmt: skip
    if setup.bf16:
        last = copy.deepcopy(fast).to(memory_format=torch.channels_last)
        forms["bf16, channels_last"] = step_of(last, "bf16", 2, size, classes)
    for form in forms.values():
        form(65 if device.type == "cpu" else size)  # loads the libraries, allocates the momenta
    yield f"training step, PSPNet{setup.layers}, 2 x {size}x{size}, {classes} classes", forms, 1


def step_of(network, precision, n, size, classes=21):
    """A function that does one training step of n random images."""
    device = next(network.parameters()).device
    precision = Precision(precision, device)
    optimizer = torch.optim.SGD(network.train().parameters(), lr=1e-4, momentum=0.9, weight_decay=1e-4)

    def step(size=size):
        network.train()
        image = torch.randn(n, 3, size, size, device=device)
        label = torch.randint(0, classes, (n, size, size), device=device)
        with precision.autocast():
            _, main_loss, aux_loss = network(image, label)
        precision.backward(main_loss + 0.4 * aux_loss)
        precision.step(optimizer)
        optimizer.zero_grad(set_to_none=True)

    return step


def sliding(setup, folder):
    """One frame, windows and their mirror images. The last row: it prints a line below the table."""
    classes, device, crop, (h, w) = 19, setup.device, setup.crop, setup.frame
    plain = setup.network(layers=setup.layers, classes=classes).to(device).eval()
    fast = PSPNet(setup.layers, classes=classes)
    fast.load_state_dict(plain.state_dict())
    image = np.random.default_rng(0).integers(0, 256, (h, w, 3), np.uint8)
    how = {"classes": classes, "base_size": None, "scales": (1.0,), "mean": MEAN, "std": STD, "crop_h": crop, "crop_w": crop}
    pred = {}

    def run_plain(image=image):
        pred["plain"] = plain_predict(plain, image, classes, crop, device)

    def run(precision, network, image=image):
        with Precision(precision, device).autocast():
            pred[precision] = predict(network, image, **how)

    forms = {"window by window, sums on the host": run_plain, "fp32": partial(run, "fp32", for_test(fast, device))}
    if setup.bf16:
        forms["bf16, channels_last"] = partial(run, "bf16", for_test(fast, device, channels_last=True))
    for form in forms.values():
        form(image=image[:crop, :crop])  # loads the libraries
    yield f"test of a {h}x{w} frame, PSPNet{setup.layers}, windows of {crop}, flip, {classes} classes", forms, 1
    if not setup.bf16:
        print(f"\nbf16 was not measured: {processor()} computes it without instructions for it.")
    same = (pred["plain"] == pred["fp32"]).mean()
    print(f"\nThe two fp32 tests (of random weights) give {same:.3%} of the pixels the same class.")


@torch.inference_mode()
def plain_predict(network, image, classes, crop, device):
    """The class of every pixel as the original computes it: one window at a time, normalised on the host and averaged with
    its mirror image, probabilities summed on the host in float64."""
    h, w = image.shape[:2]
    total, count = np.zeros((h, w, classes)), np.zeros((h, w, 1))
    for i in window_starts(h, crop, 2 / 3):
        for j in window_starts(w, crop, 2 / 3):
            window = torch.from_numpy(image[i : i + crop, j : j + crop].transpose(2, 0, 1).astype(np.float32))
            for channel, mean, std in zip(window, MEAN, STD):
                channel.sub_(mean).div_(std)
            x = window[None].to(device)
            prob = network(torch.cat([x, x.flip(3)])).softmax(1)
            prob = (prob[0] + prob[1].flip(2)) / 2
            total[i : i + crop, j : j + crop] += prob.cpu().numpy().transpose(1, 2, 0)
            count[i : i + crop, j : j + crop] += 1
    return (total / count).argmax(2)


def runtimes(setup, folder):
    """The forward pass of a window and its mirror image, in fp32, in PyTorch and in the files of tool/export.py."""
    side, layers = setup.train, setup.layers
    network = for_test(PSPNet(layers, classes=21), setup.device)
    meta = {"names": [str(k) for k in range(21)], "palette": [[0, 0, 0]] * 21, "mean": MEAN, "std": STD, "size": [side, side],
            "config": "{}", "epoch": None, "revision": "unknown"}  # fmt: skip
    forms = {"PyTorch": network, "torch.compile": torch.compile(network)}
    for name, package, file in (("ONNX Runtime", "onnxruntime", "a.onnx"), ("OpenVINO", "openvino", "a.xml")):
        write_exported(folder / file, network, meta)
        exported = Exported(folder / file)  # which imports the package; onnxruntime has several distributions
        forms[f"{name} {importlib.import_module(package).__version__.partition('-')[0]}"] = exported
    window = torch.randn(1, 3, side, side)
    both = torch.cat([window, window.flip(3)])
    with torch.inference_mode():
        for form in forms.values():
            form(both)  # compiles, loads the libraries
        forms = {name: partial(form, both) for name, form in forms.items()}
        yield f"PSPNet{layers}, 2 x {side}x{side}, 21 classes, fp32", forms, 1


# ---- measuring ----


class Measured(NamedTuple):
    seconds: float
    memory: float | None  # bytes
    runs: int = 1

    def __str__(self):
        seconds = f"{1000 * self.seconds:.3g} ms" if self.seconds < 1 else f"{self.seconds:.2f} s"
        return f"{seconds} | {'-' if self.memory is None else f'{self.memory / 2**20:.0f} MiB'}"


def compare(forms, seconds, repeats, times=1):
    """{name: Measured, the medians} of functions {name: form}, each of which does the work `times` times.

    They alternate: each round runs all of them, in the reverse order of the round before, until `seconds` are over; at least
    one round, at most `repeats`.
    """
    gc.collect()
    taken, order = {name: [] for name in forms}, list(forms)
    begin = time.perf_counter()
    for done in range(repeats):
        if done and (time.perf_counter() - begin) * (done + 1) / done > seconds:
            break
        for name in order:
            taken[name].append(observe(forms[name]))
        order.reverse()

    def medians(runs):
        memory = None if runs[0].memory is None else median(run.memory for run in runs)
        return Measured(median(run.seconds for run in runs) / times, memory, len(runs))

    return {name: medians(runs) for name, runs in taken.items()}


def observe(form) -> Measured:
    """Time and peak of the memory above what was in use before; a program in `form` measures itself."""
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        gpu_before = torch.cuda.memory_allocated()
    if hasattr(ctypes.CDLL(None), "malloc_trim"):
        ctypes.CDLL(None).malloc_trim(0)  # memory that earlier runs freed must not be reused unseen by this one
    before = resident("VmRSS", reset=True)
    begin = time.perf_counter()
    measured = form()
    if isinstance(measured, Measured):
        return measured
    if cuda:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - begin
    on_gpu = torch.cuda.max_memory_allocated() - gpu_before if cuda else 0
    return Measured(seconds, on_gpu or before and resident("VmHWM") - before)


def program(words, until, since=None, **variables) -> Measured:
    """Of `python words` from its start, or its line with `since`, to that with `until`; it is terminated then."""
    command, begin, pipe = [sys.executable, *map(str, words)], time.perf_counter(), subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=os.environ | variables) as run:
        for line in run.stdout:
            if since and since in line:
                begin = time.perf_counter()
            elif until in line:
                measured = Measured(time.perf_counter() - begin, resident("VmHWM", run.pid))
                run.terminate()
                run.communicate()
                return measured
        raise RuntimeError(f"{' '.join(command)} ended without printing {until!r}:\n{run.stderr.read()}")


def resident(name, process="self", reset=False):
    """The resident memory of a process, VmRSS, or its peak, VmHWM, in bytes; None where the system does not state it."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")  # the peak is that since now
        return 1024 * int(re.search(rf"{name}:\s*(\d+)", Path(f"/proc/{process}/status").read_text())[1])
    except (OSError, TypeError):
        return None


def heading(*names, text=(0,)):
    print(f"| {' | '.join(names)} |")
    print(f"|{'|'.join('---' if i in text else '--:' for i in range(len(names)))}|", flush=True)


def processor():
    """Name and number of the processors, and the memory, where the system reports them."""
    file = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.+)", file.read_text()) if file.exists() else None
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return f"{os.cpu_count()} x {found[1] if found else platform.machine()}, {memory:.0f} GiB"


# ---- model ----


def model(args) -> None:
    cfg = load_config(find_config(args.config), args.opts)
    device = "cuda" if cfg.train_gpu and torch.cuda.is_available() else "cpu"
    cfg = replace(cfg, precision=Precision(cfg.precision, device).name)  # what `auto` is here
    gpus = max(len(cfg.train_gpu or ()), 1) * cfg.world_size
    share = math.ceil(cfg.batch_size / gpus)  # of the device that has most images
    batch, fewest = math.ceil(share / cfg.accumulate_steps), cfg.batch_size // gpus
    alone = not (cfg.sync_bn and gpus > 1)
    needed, reason = images_needed(cfg) if alone else (1, "")
    if max(fewest // cfg.accumulate_steps, 1) < needed:
        raise Mistake(config_error(cfg, "batch_size", f"leaves one image at a time, and {needed} are needed ({reason})"))
    size, test_size = (cfg.train_h, cfg.train_w), cfg.window
    with torch.device("meta"):  # shapes without numbers: no memory, no time
        network = build_model(cfg)
    names = (f"multiply-adds, {name} {h}x{w} (G)" for name, (h, w) in (("train", size), ("test", test_size)))
    heading("part", "parameters (M)", *names, "kept for backward (MiB)")
    for part, weights, macs, test_macs, kept in costs(network, batch, size, test_size):
        print(f"| {part} | {weights / 1e6:.2f} | {macs / 1e9:.1f} | {test_macs / 1e9:.1f} | {kept / 2**20:.0f} |")
    print(f"""
Multiply-adds: of one image, forward; convolutions and matrix products as torch.utils.flop_counter counts them, which counts
two operations each. Backward takes about twice as many.
Kept for backward: what autograd saves of a float32 forward pass, {batch} image(s), by saved_tensors_hooks; without the weights
and the loss.

A training step on one of {gpus} device(s), in GiB, without the {RESERVE} that are left for the rest:
""")
    measured = device == "cuda" and gpus == 1 and cfg.train_gpu[0] < torch.cuda.device_count()
    heading("precision", "checkpoint_layers", "accumulate_steps", "images at a time", "weights", "momenta and buckets",
            "kept for backward", "gradients and temporaries", "peak", *["measured peak", "images/s"] * measured,
            text=(0, 1))  # fmt: skip
    limit = (args.fit - RESERVE) * 2**30 if args.fit else 0
    steps = fitting(build_model, cfg, share, fewest, needed, *size, gpus, limit) if args.fit else ()
    for i, (tried, n, needs) in enumerate(chain([(cfg, batch, step_memory(build_model, cfg, batch, *size, gpus))], steps)):
        form = tried.precision + ", channels_last" * tried.channels_last
        line = [form, " ".join(tried.checkpoint_layers) or "-", str(tried.accumulate_steps), str(n)]
        line += [f"{needed / 2**30:.2f}" for needed in needs.values()]
        if measured:
            step = measured_step(tried, torch.device(device, cfg.train_gpu[0]), n, *size)
            line += [f"{step[0] / 2**30:.2f}", f"{step[1]:.1f}"] if step else ["out of memory", "-"]
        print("|", " | ".join(line), "| does not fit |" if i and needs["peak"] > limit else "|", flush=True)


def measured_step(cfg, device, n, h, w):
    """(bytes of CUDA's tensors at the peak, images a second) of steps of `accumulate_steps` * n random images; None where its
    memory is not enough."""
    if device.type == "cuda":
        torch.cuda.set_device(device)  # the one that `observe` asks
        torch.cuda.empty_cache()
    torch.backends.cudnn.benchmark = True  # as in a training
    try:
        network = build_model(cfg).to(device, memory_format=torch.channels_last if cfg.channels_last else torch.preserve_format)
        run = Run(cfg, device, None, network=network.train(), net=torch.compile(network) if cfg.compile else network,
                  average=Average(network, cfg.ema_decay) if cfg.ema_decay else None,
                  optimizer=build_optimizer(network, kind=cfg.optimizer, base_lr=cfg.base_lr, precision=cfg.precision),
                  precision=Precision(cfg.precision, device))  # fmt: skip
        images = n * cfg.accumulate_steps
        image = torch.randn(images, 3, h, w, device=device)
        label = torch.randint(0, cfg.classes, (images, h, w), device=device)
        train.update(run, image, label)  # makes the momenta; cuDNN chooses its kernels
        before = torch.cuda.memory_allocated()
        step = compare({"step": partial(train.update, run, image, label)}, 60, 3)["step"]
    except RuntimeError as error:  # cuDNN has words of its own
        if not isinstance(error, torch.OutOfMemoryError) and "unable to find an engine" not in str(error):
            raise
        return None
    return before + step.memory, images / step.seconds


if __name__ == "__main__":
    sys.exit(main())
