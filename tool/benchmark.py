"""Measure; every subcommand prints Markdown tables.

    python tool/benchmark.py
    python tool/benchmark.py model cityscapes_pspnet50 --fit 24 train_gpu "[0]"
    python tool/benchmark.py exported

speed (the default): loader, training step, loss, test of a frame, scores and start, each against the plain form of the same
work, which is how the original does it, alternating in the same process; on the GPU if there is one.
model: parameters, multiply-adds and memory of each part of a network, the memory that a training step needs on one device,
and the keys with which it fits into --fit GiB. Computed from shapes alone.
exported: a window and its mirror image through the network, compiled, and in the files of tool/export.py; on the CPU.
"""

import argparse
import copy
import ctypes
import gc
import io
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

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
from util import transform
from util.config import ROOT, find_config, load_config
from util.dataset import SemData
from util.inference import predict, window_starts
from util.log import environment, report_errors
from util.memory import REST, measure, step_memory
from util.metric import confusion_matrix
from util.optim import build_optimizer
from util.precision import Precision
from util.transform import MEAN, STD

STAGES = ("layer1", "layer2", "layer3", "layer4")
RESERVE = 2 * 2**30  # bytes left for what is not predicted: CUDA's context, cuDNN's workspaces, gaps between the blocks


def main(argv=None) -> int:
    args = parse_args(sys.argv[1:] if argv is None else argv)
    return report_errors(lambda: args.command(args))


def parse_args(argv):
    parser = argparse.ArgumentParser(
        "python tool/benchmark.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    sub = commands.add_parser("speed", aliases=["all"], help="every optimised part against its plain form (default)")
    sub.set_defaults(command=speed)
    sub.add_argument("--minutes", type=float, default=8.0, help="approximate duration (default: %(default)s)")
    sub.add_argument("--quick", action="store_true", help="tiny sizes, one run each, as a check that it works")
    sub = commands.add_parser("model", help="parameters, multiply-adds and memory of a network and of its training step")
    sub.set_defaults(command=model)
    sub.add_argument("--config", metavar="FILE", help="the same as CONFIG")
    for name, what in (
        ("h", "height (default: train_h, test_h)"),
        ("w", "width"),
        ("batch", "images at a time (default: a GPU's)"),
    ):
        sub.add_argument(f"--{name}", type=int, help=what)
    sub.add_argument("--fit", type=float, metavar="GIB", help="find the keys with which a step fits into this much memory")
    about = "the experiment, its YAML file or the name of a shipped one, and keys of it to override"
    sub.add_argument("words", nargs="*", metavar="CONFIG KEY VALUE", help=about)
    sub = commands.add_parser("exported", help="the forward pass in PyTorch, ONNX Runtime and OpenVINO")
    sub.set_defaults(command=exported)
    sub.add_argument("--rounds", type=int, default=5, help="how often each is measured (default: %(default)s)")
    sub.add_argument("--quick", action="store_true", help="a tiny size, one round, as a check that it works")
    options_only = not argv or argv[0].startswith("-") and argv[0] not in ("-h", "--help")
    args, more = parser.parse_known_args(["speed", *argv] if options_only else argv)  # argparse takes words at one place only
    if args.command is model and not (args.words or args.config):
        parser.error("model: which experiment? Give CONFIG, or --config FILE")
    if more and (args.command is not model or any(word.startswith("--") for word in more)):
        parser.error(f"unrecognized arguments: {' '.join(more)}")
    if args.command is model:
        args.opts = [*args.words, *more]
        args.config = args.config or args.opts.pop(0)
    return args


# ---- speed ----


@dataclass(frozen=True)
class Setup:
    """Settings of all rows of the speed table."""

    device: torch.device
    repeats: int = 9  # at most
    layers: int = 50
    train: int = 473  # crop of a training step
    frame: tuple = (1024, 2048)  # of the images that are loaded and tested
    crop: int = 713  # window of the test, crop of the loader


@dataclass
class Result:
    seconds: float  # median
    memory: float | None  # median of the peaks above what was there before, in bytes
    runs: int


def speed(args) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    setup = Setup(device, 1, 18, 65, (80, 160), 65) if args.quick else Setup(device)
    torch.manual_seed(0)
    heading("work", "plain form", "time", "memory", "here", "time", "memory", "ratio", "runs", text=(0, 1, 4))
    notes = []
    # (rows, share of the time): a slow machine repeats less often, but measures everything once
    parts = [(loader, 0.1), (partial(training, 21), 0.25), (partial(training, 150), 0.25), (loss, 0.03), (sliding, 0.3),
             (scoring, 0.02), (start, 0.05)]  # fmt: skip
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        for rows, share in parts:
            for line in rows(setup, Path(folder), 60 * args.minutes * share, notes):
                print(line, flush=True)
            gc.collect()
    how = "torch.cuda.max_memory_allocated" if device.type == "cuda" else "resident memory"
    print(f"\n{time.strftime('%Y-%m-%d')}, {processor()}, {environment(device)}. Times: median of the runs, which alternate. "
          f"Memory: median of the peaks above what was in use before, {how}.", *notes, sep="\n")  # fmt: skip


def loader(setup, folder, seconds, notes):
    """One core: read, augment and crop samples, from rendered PNGs and from the cache."""
    images, samples = (1, 2) if setup.repeats == 1 else (3, 9)
    for i in range(images):
        write_scene((i, *setup.frame, str(folder), f"{i}.png"))
    (folder / "list.txt").write_text("".join(f"image/{i}.png label/{i}.png\n" for i in range(images)))
    ops = [transform.RandScale([0.5, 2.0]), transform.RandRotate([-10, 10], padding=MEAN), transform.RandomGaussianBlur(),
           transform.RandomHorizontalFlip(), transform.Crop([setup.crop, setup.crop], "rand", padding=MEAN),
           transform.ToTensor(), transform.Normalize(MEAN, STD)]  # fmt: skip
    with redirect_stdout(io.StringIO()):
        data = {name: SemData("train", folder, folder / "list.txt", transform.Compose(ops, lazy=name != "op by op"),
                              cache=folder if "cached" in name else None)
                for name in ("op by op", "lazy", "lazy, cached")}  # fmt: skip
    keys = [(i // images, i % images) for i in range(samples)]
    forms = {"decode alone": lambda: [data["lazy"].read(i) for _, i in keys]}
    forms |= {name: lambda which=which: [which[key] for key in keys] for name, which in data.items()}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    result = compare(forms, seconds, setup.repeats, torch.device("cpu"), samples)
    torch.set_num_threads(threads)
    work = f"a training sample, {setup.frame[0]}x{setup.frame[1]} PNGs, crop {setup.crop}, one core"
    for plain, ours in (("op by op", "lazy"), ("op by op", "lazy, cached"), ("decode alone", "lazy")):
        yield row(work, plain, ours, result)


def training(classes, setup, folder, seconds, notes):
    """Forward, backward and update."""
    device, size = setup.device, setup.train
    plain = PSPNet(setup.layers, classes=classes, fast_head=False, fused_loss=False)
    fast = PSPNet(setup.layers, classes=classes)
    last = copy.deepcopy(fast).to(memory_format=torch.channels_last)
    networks = {"plain fp32": (plain, "fp32"), "fp32": (fast, "fp32"), "bf16, channels_last": (last, "bf16")}
    forms = {name: step_of(network.to(device), precision, size) for name, (network, precision) in networks.items()}
    for form in forms.values():
        form(65 if device.type == "cpu" else size)  # loads the libraries, allocates the momenta
    result = compare(forms, seconds, setup.repeats, device)
    for name in list(forms)[1:]:
        yield row(f"training step, PSPNet{setup.layers}, 2 x {size}x{size}, {classes} classes", "plain fp32", name, result)


def step_of(network, precision, size):
    """A function that does one training step of two random images."""
    device = next(network.parameters()).device
    precision = Precision(precision, device)
    optimizer = build_optimizer(network.train(), base_lr=1e-4)

    def step(size=size):
        image = torch.randn(2, 3, size, size, device=device)
        label = torch.randint(0, network.classes, (2, size, size), device=device)
        with precision.autocast():
            _, main_loss, aux_loss = network(image, label)
        precision.backward(main_loss + 0.4 * aux_loss)
        precision.step(optimizer)
        optimizer.zero_grad(set_to_none=True)

    return step


def loss(setup, folder, seconds, notes):
    """From small logits to the loss and its gradient: the part of the training step that grows with the classes."""
    size, classes = setup.train, 150
    side = (size - 1) // 8 + 1
    logits = torch.randn(2, classes, side, side, device=setup.device, requires_grad=True)
    label = torch.randint(0, classes, (2, size, size), device=setup.device)

    def run(fused):
        loss, _ = upsampled_loss(logits, (size, size), label, CrossEntropy(), True, fused=fused)
        torch.autograd.grad(loss, logits)

    forms = {"upsample, then compare": partial(run, False), "fused": partial(run, True)}
    result = compare(forms, seconds, setup.repeats, setup.device)
    yield row(f"the loss alone and its gradient, {classes} classes", *result, result)


def sliding(setup, folder, seconds, notes):
    """One frame, windows and their mirror images."""
    classes, device, crop, (h, w) = 19, setup.device, setup.crop, setup.frame
    plain = PSPNet(setup.layers, classes=classes, fast_head=False).to(device).eval()
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

    forms = {"window by window, sums on the host": run_plain, "fp32": partial(run, "fp32", for_test(fast, device)),
             "bf16, channels_last": partial(run, "bf16", for_test(fast, device, channels_last=True))}  # fmt: skip
    for form in forms.values():
        form(image=image[:crop, :crop])  # loads the libraries
    result = compare(forms, seconds, setup.repeats, device)
    work = f"test of a {h}x{w} frame, PSPNet{setup.layers}, windows of {crop}, flip, {classes} classes"
    for name in list(forms)[1:]:
        yield row(work, next(iter(forms)), name, result)
    same = (pred["plain"] == pred["fp32"]).mean()
    notes.append(f"The two fp32 tests (of random weights) give {same:.3%} of the pixels the same class.")


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


def scoring(setup, folder, seconds, notes):
    """Count the pixels of one frame by class."""
    classes, (h, w), times = 19, setup.frame, 5
    rng = np.random.default_rng(0)
    label = rng.integers(0, classes, (h // 8, w // 8), np.uint8).repeat(8, 0).repeat(8, 1)
    pred = np.where(rng.random((h, w)) < 0.2, rng.integers(0, classes, (h, w), np.uint8), label).astype(np.uint8)
    label[:: h // 8] = 255

    def histograms():
        """Intersection, union and target as the original counts them."""
        output = pred.copy()
        output[label == 255] = 255
        same = output[output == label]
        intersection, area, target = (np.histogram(ids, bins=np.arange(classes + 1))[0] for ids in (same, output, label))
        return intersection, area + target - intersection, target

    forms = {"numpy histograms": histograms, "one histogram of pairs": lambda: confusion_matrix(pred, label, classes)}
    repeated = {name: lambda form=form: [form() for _ in range(times)] for name, form in forms.items()}
    for form in repeated.values():
        form()
    result = compare(repeated, seconds, 3 * setup.repeats, torch.device("cpu"), times)
    yield row(f"scores of a {h}x{w} frame, {classes} classes", *forms, result)


def start(setup, folder, seconds, notes):
    """From the start of the process until the first iteration is done, toy data, on the CPU."""
    with redirect_stdout(io.StringIO()):
        toy(folder / "toy", 16, 1, 96, 128, 0)
    program = [sys.executable, str(ROOT / "tool/train.py"), "--config", str(ROOT / "config/toy/toy_pspnet18.yaml")]
    options = {"data_root": folder / "toy", "train_list": folder / "toy/list/train.txt", "save_path": folder / "run",
               "epochs": 1, "print_freq": 1, "evaluate": False}  # fmt: skip
    program += [str(word) for option in options.items() for word in option]
    baseline, first = [], []
    begin = time.perf_counter()
    while not first or len(first) < setup.repeats and time.perf_counter() - begin < seconds:
        baseline.append(time_until([sys.executable, "-c", "import torch; print(1)"], "1"))
        first.append(time_until(program, "Epoch: [1/1][1/"))
    a, b = statistics.median(baseline), statistics.median(first)
    yield (f"| from process start to the first iteration | import torch | {a:.2f} s | - | tool/train.py on toy | {b:.2f} s | - "
           f"| +{b - a:.2f} s | {len(first)} |")  # fmt: skip


def time_until(program, text):
    """Seconds until a program prints a line with `text`; it is terminated then."""
    begin = time.perf_counter()
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if text in line:
                seconds = time.perf_counter() - begin
                process.terminate()
                process.communicate()
                return seconds
        raise RuntimeError(f"{' '.join(program)} ended without printing {text!r}:\n{process.stderr.read()}")


def compare(forms, seconds, repeats, device, per=1):
    """{name: Result} of functions {name: form}, each of which does the work `per` times.

    They alternate: each round runs all of them, in the reverse order of the round before, until `seconds` are over; at least
    one round, at most `repeats`.
    """
    taken, order = {name: [] for name in forms}, list(forms)
    begin = time.perf_counter()
    for done in range(repeats):
        if done and (time.perf_counter() - begin) * (done + 1) / done > seconds:
            break
        for name in order:
            taken[name].append(observe(forms[name], device))
        order.reverse()

    def result(runs):
        times, peaks = zip(*runs)
        return Result(statistics.median(times) / per, None if None in peaks else statistics.median(peaks), len(runs))

    return {name: result(runs) for name, runs in taken.items()}


def observe(form, device):
    """(seconds, peak of the memory above what was in use before, in bytes or None) of form()."""
    gc.collect()
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    elif hasattr(ctypes.CDLL(None), "malloc_trim"):
        ctypes.CDLL(None).malloc_trim(0)  # memory that earlier runs freed must not be reused unseen by this one
    before = torch.cuda.memory_allocated() if cuda else resident("VmRSS", reset=True)
    begin = time.perf_counter()
    form()
    if cuda:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - begin
    peak = torch.cuda.max_memory_allocated() if cuda else resident("VmHWM")
    return seconds, None if before is None else peak - before


def resident(name, reset=False):
    """This process's resident memory, VmRSS, or its peak, VmHWM, in bytes; None where the system does not state it."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")  # the peak is that since now
        return 1024 * int(re.search(rf"{name}:\s*(\d+)", Path("/proc/self/status").read_text())[1])
    except (OSError, TypeError):
        return None


def row(work, plain, ours, results):
    """A line of the table, from two of the results."""
    a, b = results[plain], results[ours]
    cells = [work]
    for name, result in ((plain, a), (ours, b)):
        memory = "-" if result.memory is None else f"{result.memory / 2**20:.0f} MiB"
        cells += [name, f"{1000 * result.seconds:.3g} ms" if result.seconds < 1 else f"{result.seconds:.2f} s", memory]
    return f"| {' | '.join([*cells, f'{a.seconds / b.seconds:.2f}', str(b.runs)])} |"


def heading(*names, text=(0,)):
    print(f"| {' | '.join(names)} |")
    print(f"|{'|'.join('---' if i in text else '--:' for i in range(len(names)))}|", flush=True)


def processor():
    """Name and number of the processors, and the memory, where the system reports them."""
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
        name = found[1] if found else name
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return f"{os.cpu_count()} x {name}, {memory:.0f} GiB"


# ---- exported ----


def exported(args) -> None:
    layers, side, rounds = (18, 65, 1) if args.quick else (50, 473, args.rounds)
    network = for_test(PSPNet(layers, classes=21), torch.device("cpu"))
    meta = {"names": [str(k) for k in range(21)], "palette": [[0, 0, 0]] * 21, "mean": MEAN, "std": STD, "size": [side, side],
            "config": "{}", "epoch": None, "revision": "unknown"}  # fmt: skip
    forms = {"PyTorch": network, "torch.compile": torch.compile(network)}
    with tempfile.TemporaryDirectory() as folder:
        for name, file in (("ONNX Runtime", "a.onnx"), ("OpenVINO", "a.xml")):
            write_exported(Path(folder) / file, network, meta)
            forms[name] = Exported(Path(folder) / file)
        window = torch.randn(1, 3, side, side)
        both = torch.cat([window, window.flip(3)])
        with torch.inference_mode():
            for form in forms.values():
                form(both)  # compiles, loads the libraries
            result = compare({name: partial(form, both) for name, form in forms.items()}, 1e9, rounds, torch.device("cpu"))
    heading(f"PSPNet{layers}, 2 x {side}x{side}, 21 classes, fp32", "time", "ratio")
    for name, of_form in result.items():
        print(f"| {name} | {of_form.seconds:.2f} s | {result['PyTorch'].seconds / of_form.seconds:.2f} |")
    versions = ", ".join(f"{name} {version(name)}" for name in ("onnxruntime", "openvino"))
    print(f"\n{time.strftime('%Y-%m-%d')}, {processor()}, {environment(torch.device('cpu'))}, {versions}. Median of {rounds}.")


# ---- model ----


def model(args) -> None:
    cfg = load_config(find_config(args.config), args.opts)
    device = "cuda" if cfg.train_gpu and torch.cuda.is_available() else "cpu"
    cfg = replace(cfg, precision=Precision(cfg.precision, device).name)  # what `auto` is here
    gpus = max(len(cfg.train_gpu or ()), 1)
    train_size = args.h or cfg.train_h, args.w or cfg.train_w
    test_size = args.h or cfg.test_h or cfg.train_h, args.w or cfg.test_w or cfg.train_w
    batch = args.batch or max(cfg.batch_size // gpus // cfg.accumulate_steps, 1)
    with torch.device("meta"):  # shapes without numbers: no memory, no time
        network = build_model(cfg)
    train_macs, kept = measure(network.train(), batch, *train_size)
    test_macs, _ = measure(network.eval(), 1, *test_size)
    parameters = Counter({name: sum(p.numel() for p in part.parameters()) for name, part in network.named_children()})

    train, test = ("x".join(map(str, size)) for size in (train_size, test_size))
    heading("part", "parameters (M)", f"multiply-adds, train {train} (G)", f"test {test} (G)", "kept for backward (MiB)")
    parts = [name for name in (*parameters, REST) if parameters[name] or train_macs[name] or kept[name]]
    for name in (*parts, "**all**"):
        p, a, b, m = (sum(c.values()) if name == "**all**" else c[name] for c in (parameters, train_macs, test_macs, kept))
        print(f"| {name} | {p / 1e6:.2f} | {a / batch / 1e9:.1f} | {b / 1e9:.1f} | {m / 2**20:.0f} |")
    print(
        "\nMultiply-adds: of one image, forward; convolutions and matrix products as torch.utils.flop_counter counts them, "
        "which counts two operations each. Backward takes about twice as many.\n"
        f"Kept for backward: what autograd saves of a float32 forward pass, {batch} image(s), by saved_tensors_hooks; "
        "without the weights and the loss.\n"
    )
    print(
        f"A training step on one of {gpus} device(s), in GiB, without the {RESERVE / 2**30:.0f} that are left for the rest:\n"
    )
    heading("precision", "checkpoint_layers", "accumulate_steps", "images at a time", "weights", "momenta and buckets",
            "kept for backward", "gradients and temporaries", "peak", text=(0, 1))  # fmt: skip
    print(needs_row(cfg, batch, step_memory(build_model, cfg, batch, *train_size, gpus)))
    if args.fit:
        for row in fitting(cfg, batch * cfg.accumulate_steps, *train_size, gpus, args.fit * 2**30 - RESERVE):
            print(row, flush=True)


def fitting(cfg, share, h, w, gpus, limit):
    """Rows of the table: each precision, with stages kept and recomputed, at the fewest accumulate_steps whose peak is within
    `limit` bytes. share: images of one device in an update."""
    least = 1 if cfg.sync_bn and gpus > 1 else images_needed(cfg)[0]
    recomputed = {(), STAGES} if cfg.arch != "smp_pspnet" and not cfg.compile else {()}
    for precision in dict.fromkeys((cfg.precision, "bf16")):
        for stages in sorted(recomputed | {tuple(cfg.checkpoint_layers)}, key=len):
            tried = replace(cfg, precision=precision, checkpoint_layers=stages)
            steps = [n for n in range(1, share + 1) if share % n == 0 and share // n >= least] if cfg.loss == "ce" else [1]
            for n in steps or [1]:
                tried = replace(tried, accumulate_steps=n)
                needs = step_memory(build_model, tried, share // n, h, w, gpus)
                if needs["peak"] <= limit:
                    break
            yield needs_row(tried, share // n, needs) + ("" if needs["peak"] <= limit else " does not fit |")


def needs_row(cfg, batch, needs):
    cells = cfg.precision, " ".join(cfg.checkpoint_layers) or "-", cfg.accumulate_steps, batch
    return f"| {' | '.join([*map(str, cells), *(f'{n / 2**30:.2f}' for n in needs.values())])} |"


if __name__ == "__main__":
    sys.exit(main())
