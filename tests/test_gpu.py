"""On a GPU what the suite holds on the CPU: `sh tool/check.sh --gpu`. TEST_DEVICE=cpu runs the same bodies without one.

Ends with a table for docs/speed.md: what held, the worst difference, images per second and memory.
"""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_rules import fill_, golden_input, golden_label
from processes import free_port, noted, same_tensors, small_training, wait_for

from model import build_criterion, build_model
from model.fold import for_test
from model.psanet import PSANet
from model.pspnet import PSPNet
from tool import train
from tool.benchmark import measured_step
from util.config import ROOT, load_config
from util.inference import predict, predict_probability
from util.log import environment
from util.memory import step_memory
from util.metric import confusion_matrix
from util.optim import build_optimizer
from util.precision import Precision
from util.run import Run
from util.transform import MEAN, STD

if "TEST_DEVICE" not in os.environ:
    pytest.skip("for a machine with a GPU: sh tool/check.sh --gpu", allow_module_level=True)
pytestmark = pytest.mark.gpu
DEVICE = torch.device(os.environ["TEST_DEVICE"])
ON_GPU = DEVICE.type == "cuda"
GOLDEN = np.load(Path(__file__).parent / "golden/semseg.npz")
TOY = ROOT / "config/toy/toy_pspnet18.yaml"


@pytest.fixture(scope="module")
def table(request):
    """`table(what, value)` adds a row; all are printed at the end."""
    rows = []
    yield lambda what, value: rows.append(f"| {what} | {value} |")
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if ON_GPU else ["CPU"]
    lines = ["", f"{time.strftime('%Y-%m-%d')}, {', '.join(names)}, {environment(DEVICE)}", "", "| what | value |", "|---|---|"]
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print("\n".join(lines + rows))


@contextmanager
def tf32_products(flag):
    """Convolutions and matrix products of float32 in TF32 or not; torch's default is TF32 in convolutions alone."""
    backends = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = flag
    yield flag
    for backend, old in zip(backends, before):
        backend.allow_tf32 = old


@pytest.fixture(params=[False, True], ids=["fp32", "tf32"])
def tf32(request):
    with tf32_products(request.param) as flag:
        yield flag


@pytest.fixture
def exact():
    with tf32_products(False):
        yield


def config(**changes):
    options = {"train_h": 33, "train_w": 33, "dropout": 0} | changes
    return load_config(TOY, [str(word) for option in options.items() for word in option])


def run_of(cfg, device, network=None):
    network = (network or fill_(build_model(cfg))).to(device, memory_format=torch.channels_last if cfg.channels_last else
                                                      torch.preserve_format).train()  # fmt: skip
    net = torch.compile(network, **({} if ON_GPU else {"backend": "aot_eager"})) if cfg.compile else network
    optimizer = build_optimizer(network, base_lr=0.01, precision=cfg.precision)
    return Run(cfg, device, None, network=network, net=net, optimizer=optimizer, precision=Precision(cfg.precision, device))


def batch(cfg, device, n=4):
    image = golden_input("gpu", n, cfg.train_h, cfg.train_w)
    return image.to(device), golden_label("gpu", n, cfg.train_h, cfg.train_w, cfg.classes).to(device)


def worst(a, b):
    """The largest difference relative to the largest value."""
    a, b = a.detach().double().cpu(), b.detach().double().cpu()
    return float((a - b).abs().max() / b.abs().max())


# ---- arithmetic ----


@pytest.mark.parametrize("case, make", [("pspnet50", PSPNet), ("psanet50", PSANet)])
def test_golden_logits_within_1e_4_and_with_tf32_2e_2(case, make, tf32, table):
    own = {"mask_h": 17, "mask_w": 25} if make is PSANet else {}
    network = fill_(make(50, classes=5, dropout=0, **own)).eval()
    image = golden_input(case, 1, 65, 97)
    with torch.inference_mode():
        expected = network(image)
        found = network.to(DEVICE)(image.to(DEVICE))
    difference = worst(found, expected)
    if make is PSPNet:
        difference = max(difference, worst(found[:, :, ::4, ::4], torch.from_numpy(GOLDEN["pspnet50/logits_s4"])))
    table(
        f"logits of {case}, {'TF32' if tf32 else 'fp32'}: worst difference from the CPU and the golden ones",
        f"{difference:.1e}",
    )
    assert difference < (2e-2 if tf32 else 1e-4)


def test_golden_losses_and_gradients_in_float64(table):
    network = fill_(PSPNet(50, classes=5, dropout=0)).double().to(DEVICE).train()
    image, label = golden_input("pspnet50_train", 2, 65, 97).double(), golden_label("pspnet50_train", 2, 65, 97, 5)
    _, main_loss, aux_loss = network(image.to(DEVICE), label.to(DEVICE))
    (main_loss + 0.4 * aux_loss).backward()
    found = {"main_loss": main_loss, "aux_loss": aux_loss}
    found |= {f"gradnorm64/{name}": p.grad.norm() for name, p in network.named_parameters()}
    difference = max(abs(value.item() / GOLDEN[f"pspnet50/{name}"] - 1) for name, value in found.items())
    table("losses and gradient norms of pspnet50, float64: worst relative difference from the golden ones", f"{difference:.1e}")
    assert difference < 1e-6


@pytest.mark.parametrize("loss", ["ce", "ohem", "dice"])
def test_losses_are_those_of_the_cpu(loss, table):
    criterion = build_criterion(config(loss=loss, ohem_min_kept=100), [1.0 + i for i in range(9)])
    logits, label, found = golden_input("loss", 2 * 3, 33, 33).view(2, 9, 33, 33), golden_label("loss", 2, 33, 33, 9), []
    for device in ("cpu", DEVICE):
        x = logits.to(device, copy=True).requires_grad_()
        value = criterion.to(device)(x, label.to(device))
        value.backward()
        found.append(torch.cat([value.view(1), x.grad.flatten()]))
    table(f"loss {loss} and its gradient: worst difference from the CPU", f"{worst(*found):.1e}")
    assert worst(*found) < 1e-5


def test_scores_and_predictions_are_those_of_the_cpu(exact):
    pred, label = torch.randint(0, 9, (65, 97)), golden_label("scores", 1, 65, 97, 9)[0]
    assert torch.equal(confusion_matrix(pred.to(DEVICE), label.to(DEVICE), 9).cpu(), confusion_matrix(pred, label, 9))
    network, image = fill_(PSPNet(18, classes=9, dropout=0)), np.random.default_rng(0).integers(0, 256, (70, 120, 3), np.uint8)
    how = {"classes": 9, "base_size": None, "crop_h": 57, "crop_w": 57, "mean": MEAN, "std": STD, "scales": (0.75, 1.0)}
    for mode, average in itertools.product(("slide", "whole"), ("prob", "logit")):
        here, there = (
            predict_probability(for_test(network, d), image, **how, mode=mode, average=average) for d in ("cpu", DEVICE)
        )
        assert worst(there, here) < 1e-4


# ---- steps ----


def test_one_step_is_that_of_the_cpu(exact, narrow, table):
    cfg, runs = config(accumulate_steps=2), []
    for device in (torch.device("cpu"), DEVICE):
        runs.append(run_of(cfg, device))
        train.update(runs[-1], *batch(cfg, device))
    here, there = (torch.cat([p.grad.flatten().cpu() for p in run.network.parameters()]) for run in runs)
    similarity = torch.cosine_similarity(here.double(), there.double(), 0)
    table("gradients of one step: 1 - cosine with the CPU's", f"{1 - similarity:.1e}")
    assert similarity > 0.9999
    assert max(worst(b, a) for a, b in zip(*(run.network.parameters() for run in runs))) < 1e-2


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_20_steps_in_half_precision_are_finite_and_fall_after_an_overflow_in_the_first(precision, narrow, table):
    cfg = config(precision=precision, channels_last=True)
    run, found, (image, label) = run_of(cfg, DEVICE, build_model(cfg)), [], batch(cfg, DEVICE)
    label = torch.arange(4, device=DEVICE)[:, None, None].expand_as(label)  # one class an image, so that it is soon learnt
    if precision == "fp16":
        run.precision.backward(torch.zeros((), device=DEVICE, requires_grad=True))  # makes its factor a tensor
        run.precision.scaler.load_state_dict(run.precision.scaler.state_dict() | {"scale": 2.0**40})
        before = [p.detach().clone() for p in run.network.parameters()]
        train.update(run, image, label)
        assert all(torch.equal(p, old) for p, old in zip(run.network.parameters(), before))
        run.precision.scaler.load_state_dict(run.precision.scaler.state_dict() | {"scale": 2.0**12})
    for _ in range(20):
        found.append(train.update(run, image, label)[0][2].item())
    assert np.isfinite(found).all() and found[-1] < 0.8 * found[0]
    assert all(
        p.isfinite().all() and run.optimizer.state[p]["momentum_buffer"].isfinite().all() for p in run.network.parameters()
    )
    table(f"{precision}: loss of the first and the last of 20 steps on one batch", f"{found[0]:.3f}, {found[-1]:.3f}")


@pytest.mark.parametrize("switch", [{"compile": True}, {"channels_last": True}, {"checkpoint_layers": "[layer1, layer3]"}])
def test_switches_of_speed_give_the_same_losses(switch, exact, narrow, table):
    found = []
    for changes in ({}, switch):
        cfg = config(**changes)
        run = run_of(cfg, DEVICE)
        found.append(torch.stack([train.update(run, *batch(cfg, DEVICE))[0] for _ in range(3)]))
    table(f"{switch}: worst difference of three losses", f"{worst(*found):.1e}")
    assert worst(*found) < 1e-3


# ---- programs ----


def program(toy, folder, *more, tool="train", processes=1):
    """The program in its own process, or in several by torchrun; on one GPU two processes share it, over gloo."""
    gpus = list(range(processes)) if torch.cuda.device_count() >= processes else [0] * processes
    device = ["train_gpu", gpus, "test_gpu", gpus] if ON_GPU else []
    if ON_GPU and len(set(gpus)) < processes:
        device += ["dist_backend", "gloo"]
    start = [sys.executable]
    if processes > 1:
        start += ["-m", "torch.distributed.run", f"--nproc-per-node={processes}", f"--master-port={free_port()}"]
    command = [*start, ROOT / f"tool/{tool}.py", "--config", TOY, *small_training(toy, save_path=folder), *device, *more]
    with Path(f"{folder}.log").open("a") as log:
        exact = os.environ | {"NVIDIA_TF32_OVERRIDE": "0"}  # one process and two must not take kernels of other precision
        return subprocess.Popen([str(word) for word in command], stdout=log, stderr=log, env=exact)


def finished(*args, **more):
    process = program(*args, **more)
    assert process.wait(600) == 0, Path(f"{args[1]}.log").read_text()[-3000:]


@pytest.fixture(scope="module")
def whole(toy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "model"
    finished(toy, folder, "deterministic", True)
    return folder


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_or_killed_run_resumes_to_the_same_bytes(number, toy, whole, tmp_path, table):
    folder, options = tmp_path / "model", ["deterministic", True, "save_iters", 1, "resume", "auto"]
    process = program(toy, folder, *options)
    wait_for((folder / "train_epoch_0_iter_1.pth").exists)
    process.send_signal(number)
    process.wait()
    finished(toy, folder, *options)
    same = same_tensors(whole / "train_epoch_2.pth", folder / "train_epoch_2.pth")
    table(f"{number.name} and resume auto with deterministic: True", "the same bytes" if same else "OTHER BYTES")
    assert same and noted(folder) == noted(whole)


def test_processes_with_sync_bn_train_like_one_and_share_a_test(toy, tmp_path, table):
    processes = 2 if torch.cuda.device_count() < 4 else 4
    once, first, scores = ["epochs", 1, "dropout", 0], [], []
    for n in (1, processes):
        finished(toy, tmp_path / f"model{n}", *once, processes=n)
        found = [loss for _, loss in noted(tmp_path / f"model{n}")]
        assert len(found) == 3 and np.isfinite(found).all()
        first.append(found[0])
    for n in (1, processes):
        result = tmp_path / f"result{n}"
        finished(toy, tmp_path / "model1", *once, "save_folder", result, tool="test", processes=n)
        scores.append(json.loads((result / "result.json").read_text())["mIoU"])
    table(f"{processes} processes: first loss, by one and by all", f"{first[0]:.6f}, {first[1]:.6f}")
    table(f"{processes} processes: mIoU of the test, by one and by all", f"{scores[0]:.6f}, {scores[1]:.6f}")
    assert first[1] == pytest.approx(first[0], rel=1e-4) and scores[1] == pytest.approx(scores[0], abs=1e-4)


# ---- speed and memory ----


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_images_per_second_and_predicted_memory(precision, full_size, table):
    layers, size, n = (50, 473, 8) if ON_GPU else (18, 33, 2)
    cfg = config(layers=layers, train_h=size, train_w=size, precision=precision, channels_last=precision == "bf16")
    measured, rate = measured_step(cfg, DEVICE, n, size, size)
    what = f"PSPNet{layers}, {n} x {size}x{size}, {precision}"
    table(f"{what}, training", f"{rate:.1f} images/s")
    predicted = step_memory(build_model, cfg, n, size, size)["peak"]
    if ON_GPU:
        table(f"{what}: peak of a step, measured and predicted", f"{measured / 2**30:.2f} GiB, {predicted / 2**30:.2f} GiB")
        assert predicted == pytest.approx(measured, rel=0.15)
    network = for_test(build_model(cfg), DEVICE, channels_last=cfg.channels_last)
    frame = np.zeros((2 * size, 4 * size, 3), np.uint8)
    how = {"classes": 9, "base_size": None, "crop_h": size, "crop_w": size, "mean": MEAN, "std": STD, "scales": (1.0,)}
    with Precision(precision, DEVICE).autocast():
        predict(network, frame, **how)
        begin = time.perf_counter()
        predict(network, frame, **how)
    table(f"{what}, test of a {2 * size}x{4 * size} frame, flip", f"{1 / (time.perf_counter() - begin):.2f} images/s")


def test_a_network_on_the_gpu_and_one_on_the_cpu_are_averaged():
    """As those of Predictor, where one is an exported file."""
    settings = {"classes": 3, "base_size": None, "crop_h": 9, "crop_w": 9, "scales": [1.0], "mean": MEAN, "std": STD}
    first = torch.nn.Conv2d(3, 3, 1).to(DEVICE).eval()
    second = torch.nn.Conv2d(3, 3, 1).eval()
    image = np.random.default_rng(0).integers(0, 256, (12, 15, 3), np.uint8)
    mean = predict_probability(first, image, **settings).cpu() + predict_probability(second, image, **settings)
    for networks in ([first, second], [second, first]):
        assert (predict(networks, image, **settings) == mean.argmax(0).numpy()).mean() > 0.99  # rounding: ties
