import gc
import itertools
import json
import logging
import math
import os
import re
import signal
import subprocess
import sys
import weakref
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
import yaml
from processes import noted, same_tensors, small_training
from tensorboardX.proto import event_pb2
from torch import nn

from model.loss import CrossEntropy
from model.pspnet import PSPNet
from model.weights import to_mmseg
from tool import test, train
from util import distributed, optim, precision
from util.checkpoint import load_checkpoint
from util.config import ROOT, load_config
from util.dataset import SemData
from util.precision import Precision
from util.progress import clock
from util.run import Run, State
from util.visual import save_png

pytestmark = pytest.mark.usefixtures("narrow")
CONFIG = str(ROOT / "config/toy/toy_pspnet18.yaml")


def run(options, *more):
    """Status of training in this process."""
    return train.main(["--config", CONFIG, *options, *map(str, more)])


def folder(options):
    return Path(options[options.index("save_path") + 1])


def tensorboard_tags(path):
    """Tags of every event file in a folder: records of length (8 bytes), its checksum (4), an Event, its checksum (4)."""
    tags = set()
    for file in path.glob("events.out.tfevents.*"):
        data = file.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")
            event = event_pb2.Event.FromString(data[12 : 12 + length])
            tags |= {value.tag for value in event.summary.value}
            data = data[16 + length :]
    return tags


@pytest.fixture(scope="module")
def finished(narrow, toy, tmp_path_factory):
    """Options of one uninterrupted run of two epochs, with its screen and files."""
    options = small_training(toy, print_freq=2, save_path=tmp_path_factory.mktemp("finished") / "model")
    assert run(options) == 0
    return options


def test_the_seed_that_is_drawn_stands_in_the_config_beside_the_run(toy_options, tmp_path):
    options = dict(zip(toy_options[::2], toy_options[1::2])) | {"manual_seed": "null", "epochs": "1"}
    assert run([str(word) for pair in options.items() for word in pair]) == 0
    path = Path(options["save_path"])
    written = yaml.safe_load((path / "config.yaml").read_text())["TRAIN"]["manual_seed"]
    assert written == load_checkpoint(path / "train_epoch_1.pth")["state"]["seed"] is not None


def test_a_run_leaves_checkpoints_config_log_metrics_and_events(finished):
    path = folder(finished)
    names = {p.name for p in path.iterdir()}
    assert {"train_epoch_1.pth", "train_epoch_2.pth", "model_best.pth", "config.yaml", "metrics.jsonl"} <= names
    assert not [name for name in names if name.endswith(".tmp")]
    saved = load_checkpoint(path / "train_epoch_2.pth")
    assert saved["epoch"] == 2 and {"state_dict", "optimizer", "state", "config"} <= saved.keys()
    assert "layer0.0.weight" in saved["state_dict"] and "ppm.features.0.1.weight" in saved["state_dict"]
    assert yaml.safe_load((path / "config.yaml").read_text())["TRAIN"]["manual_seed"] == 7


def test_log_has_the_lines_of_the_original(finished):
    (log,) = folder(finished).glob("train-*.log")
    text = log.read_text()
    number = r"\d+\.\d{4}"
    assert re.search(
        r"Epoch: \[1/2\]\[2/3\] Data \d+\.\d{3} \(\d+\.\d{3}\) Batch \d+\.\d{3} \(\d+\.\d{3}\) Remain \d\d:\d\d:\d\d "
        rf"MainLoss {number} AuxLoss {number} Loss {number} Accuracy {number}\.",
        text,
    )
    assert re.search(rf"Train result at epoch \[2/2\]: mIoU/mAcc/allAcc {number}/{number}/{number}\.", text)
    assert re.search(rf"Val result: mIoU/mAcc/allAcc {number}/{number}/{number}\.", text)
    protocol = r"scales \[1.0\], flip False, mode slide, average prob, crop \[.*\], .* precision .*, images \d+"
    assert re.search(f"Protocol: {protocol}", text)
    assert re.search(rf"Class_0 Result: iou/accuracy {number}/{number}\. road", text)
    assert "torch " + torch.__version__ in text and "seed 7" in text and "git " in text
    assert "\r" not in text


def test_tensorboard_has_the_tags_of_the_original_and_pictures(finished):
    tags = tensorboard_tags(folder(finished))
    for kind in ("train_batch", "train", "val"):
        assert {f"{name}_{kind}" for name in ("loss", "mIoU", "mAcc", "allAcc")} <= tags
    assert {"lr", "val/0_input_label_prediction"} <= tags


def test_metrics_file_holds_every_iteration_once_with_the_poly_rate(finished):
    lines = [json.loads(line) for line in (folder(finished) / "metrics.jsonl").read_text().splitlines()]
    batches = [line for line in lines if "lr" in line]
    assert [line["iteration"] for line in batches] == [1, 2, 3, 4, 5, 6]
    base_lr = yaml.safe_load((folder(finished) / "config.yaml").read_text())["TRAIN"]["base_lr"]
    assert [line["lr"] for line in batches] == pytest.approx([base_lr * (1 - i / 6) ** 0.9 for i in range(6)])
    assert all(np.isfinite(line["loss_train_batch"]) for line in batches)


def test_same_seed_gives_the_same_bytes(finished, toy_options):
    assert run(toy_options, "workers", 2) == 0
    assert same_tensors(folder(finished) / "train_epoch_2.pth", folder(toy_options) / "train_epoch_2.pth")
    assert noted(folder(finished)) == noted(folder(toy_options))


def test_run_resumed_inside_an_epoch_ends_as_the_uninterrupted_one(finished, toy_options):
    count = itertools.count(1)

    def stop(module, inputs):  # asks the run to stop while its fifth iteration is under way
        if isinstance(module, PSPNet) and inputs[0].is_cpu and module.training and next(count) == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    hook = torch.nn.modules.module.register_module_forward_pre_hook(stop)
    try:
        assert run(toy_options) == train.REQUEUE
    finally:
        hook.remove()
    assert (folder(toy_options) / "train_epoch_1_iter_2.pth").is_file()
    assert [i for i, _ in noted(folder(toy_options))] == [1, 2, 3, 4, 5]
    assert run(toy_options, "resume", "auto") == 0
    assert same_tensors(folder(finished) / "train_epoch_2.pth", folder(toy_options) / "train_epoch_2.pth")
    assert noted(folder(finished)) == noted(folder(toy_options))
    results = [load_checkpoint(folder(o) / "train_epoch_2.pth")["state"] for o in (finished, toy_options)]
    assert results[0] == results[1]


def test_resume_auto_without_a_checkpoint_starts_anew(finished, toy_options):
    assert run(toy_options, "resume", "auto", "evaluate", "False") == 0
    assert noted(folder(toy_options)) == noted(folder(finished))


def test_a_start_without_resume_moves_the_earlier_run_aside_as_a_whole(toy_options, capsys):
    shorter = ["epochs", 1, "eval_freq", 1]
    assert run(toy_options, *shorter) == 0
    files = [path for path in folder(toy_options).iterdir() if path.suffix not in ("", ".log")]
    earlier = {path.name: path.read_bytes() for path in files}
    (folder(toy_options) / "mine.pth").write_bytes(b"of the user")
    assert run(toy_options, *shorter, "base_lr", -1) == 1  # a start that fails leaves everything where it is
    assert run(toy_options, *shorter, "batch_size", 14) == 1
    assert not (folder(toy_options) / "earlier-1").exists()
    assert run(toy_options, *shorter, "manual_seed", 8) == 0
    assert "held an earlier run: moved into" in capsys.readouterr().out
    moved = {path.name: path.read_bytes() for path in (folder(toy_options) / "earlier-1").iterdir()}
    assert earlier.items() <= moved.items()
    assert {"train_epoch_1.pth", "model_best.pth", "metrics.jsonl", "config.yaml"} <= moved.keys()
    assert [i for i, _ in noted(folder(toy_options))] == [1, 2, 3] and (folder(toy_options) / "mine.pth").exists()
    assert run(toy_options, *shorter) == 0
    assert (folder(toy_options) / "earlier-2/train_epoch_1.pth").is_file()


def test_the_config_is_in_the_log_file_and_not_on_the_screen(finished, capsys):
    assert run(finished, "resume", "auto") == 0
    log = max(folder(finished).glob("train-*.log"), key=lambda path: path.stat().st_mtime)
    assert f"Config {CONFIG}:\nDATA:\n" in log.read_text() and "base_lr:" in log.read_text()
    screen = capsys.readouterr().out
    assert f"{CONFIG}: 13 training images" in screen and "base_lr:" not in screen


def test_a_run_that_has_ended_is_left_alone(finished, toy_options, capsys):
    before = {path.name: path.stat().st_mtime_ns for path in folder(finished).iterdir() if path.suffix in (".pth", ".jsonl")}
    assert run(finished, "resume", "auto", "epochs", 1) == 0
    screen = capsys.readouterr().out
    assert "reached its end (3 iterations) already: there is nothing to do" in screen and "model_best" not in screen
    assert before == {name: (folder(finished) / name).stat().st_mtime_ns for name in before}


def test_the_weights_of_the_checkpoint_that_is_resumed_are_not_kept(finished, toy_options, monkeypatch):
    loaded, find_start, open_output = [], train.find_start, train.open_output

    def remember(run):
        checkpoint = find_start(run)
        loaded.extend(weakref.ref(tensor) for tensor in checkpoint["state_dict"].values())
        return checkpoint

    def look(run):
        gc.collect()
        assert loaded and not any(tensor() is not None for tensor in loaded)
        return open_output(run)

    monkeypatch.setattr(train, "find_start", remember)
    monkeypatch.setattr(train, "open_output", look)
    assert run(toy_options, "resume", folder(finished) / "train_epoch_1.pth", "evaluate", "False") == 0


@pytest.mark.parametrize("deterministic", [False, True])
def test_cudnn_chooses_its_kernels_by_trying_them_unless_they_must_repeat(deterministic, toy_options, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", deterministic)
    monkeypatch.setattr(train, "read_lists", interrupted)
    try:
        assert run(toy_options, "deterministic", deterministic) == 130
        assert torch.backends.cudnn.benchmark is not deterministic
    finally:
        torch.use_deterministic_algorithms(False)


def interrupted(_):
    raise KeyboardInterrupt


def test_labels_for_automatic_class_weights_are_read_by_the_main_process_alone(toy_options, monkeypatch):
    read, used = [], []
    monkeypatch.setattr(train, "automatic_class_weights", lambda *_: read.append(distributed.rank()) or [0.5] * 9)
    monkeypatch.setattr(train, "build_model", lambda *_, class_weights, **__: used.append(class_weights) or sys.exit(3))
    run_parts = train.open_run(train.read_config(["--config", CONFIG, *toy_options, "class_weights", "auto"])[0])
    train.read_lists(run_parts)
    train.find_start(run_parts)

    def received(value):  # by the second process: that the main one has succeeded, then its weights
        return used[0] if value is None else True

    for rank, from_main in ((0, lambda value: value), (1, received)):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(distributed, "from_main", from_main)
        with pytest.raises(SystemExit):
            train.build_training(run_parts, None)
    assert read == [0] and used == [[0.5] * 9] * 2


def test_weight_starts_a_new_schedule_from_a_whole_network(finished, toy_options):
    weight = folder(finished) / "train_epoch_2.pth"
    assert run(toy_options, "weight", weight, "base_lr", 0, "evaluate", "False", "epochs", 1) == 0
    a, b = (load_checkpoint(p)["state_dict"] for p in (weight, folder(toy_options) / "train_epoch_1.pth"))
    assert torch.equal(a["cls.4.weight"], b["cls.4.weight"]) and torch.equal(a["layer0.0.weight"], b["layer0.0.weight"])


def test_save_iters_writes_inside_the_epoch_and_pruning_removes_it_later(toy_options, capsys):
    assert run(toy_options, "save_iters", 2, "evaluate", "False", "keep_checkpoints", 1) == 0
    assert "train_epoch_1_iter_1.pth" in capsys.readouterr().out  # the fourth iteration
    assert [p.name for p in folder(toy_options).glob("*.pth")] == ["train_epoch_2.pth"]


def test_another_batch_size_goes_on_at_the_end_of_an_epoch_and_is_refused_inside(toy_options, tmp_path, capsys):
    iterations = ["max_iter", 3, "iter_interval", 1, "keep_checkpoints", 9, "evaluate", "False"]
    assert run(toy_options, *iterations, "save_path", tmp_path / "a") == 0
    capsys.readouterr()
    larger = ["batch_size", 6, "evaluate", "False", "max_iter", "null"]  # 2 iterations an epoch instead of 3
    assert run(toy_options, *larger, "resume", tmp_path / "a/train_iter_2.pth") == 1
    error = capsys.readouterr().err
    assert "TRAIN.resume" in error and "inside an epoch of 3 iterations, and an epoch has 2 now; set batch_size" in error
    assert run(toy_options, *larger, "resume", tmp_path / "a/train_iter_3.pth") == 0
    assert "changed batch_size: 4 -> 6" in capsys.readouterr().out
    last = load_checkpoint(folder(toy_options) / "train_epoch_2.pth")
    assert (last["iteration"], last["epoch"]) == (4, 2) and [i for i, _ in noted(folder(toy_options))] == [3, 4]


@pytest.mark.parametrize("loss, weights", [("ce", "auto"), ("ce", "sqrt"), ("ohem", "auto"), ("dice", "auto")])
def test_every_loss_trains_with_automatic_class_weights(finished, toy_options, loss, weights):
    more = ["loss", loss, "class_weights", weights, "ohem_min_kept", 100, "epochs", 1, "evaluate", "False"]
    assert run(toy_options, *more) == 0
    first = noted(folder(toy_options))[0][1]
    assert 0 < first != noted(folder(finished))[0][1]
    assert loss != "dice" or first < 1.4  # main + 0.4 aux, each below 1


@pytest.mark.parametrize("native", ["bf16", "fp32"])
def test_auto_is_what_it_stands_for_and_log_and_result_say_which(native, toy_options, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(precision, "native_precision", lambda _: native)
    short, weights = ["epochs", 1, "save_path"], []
    for name in ("auto", native):
        assert run(toy_options, "precision", name, *short, tmp_path / name) == 0
        weights.append(load_checkpoint(tmp_path / name / "train_epoch_1.pth")["state_dict"])
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())
    assert f"1 process(es) on cpu in {native} (auto), " in capsys.readouterr().out
    more = ["precision", "auto", "model_path", tmp_path / "auto/train_epoch_1.pth", "save_folder", tmp_path / "result"]
    assert test.main(["--config", CONFIG, *toy_options, *map(str, more)]) in (0, None)
    assert json.loads((tmp_path / "result/result.json").read_text())["protocol"]["precision"] == f"{native} (auto)"
    assert f"Precision: {native} (auto)" in capsys.readouterr().out


def test_loss_that_is_not_finite_stops_the_run_and_names_the_place(toy_options, capsys):
    assert run(toy_options, "base_lr", 1000, "epochs", 9, "evaluate", "False", "save_freq", 9, "print_freq", 1) == 1
    error = capsys.readouterr().err
    assert re.search(r"error: the loss became (nan|inf) in epoch \d, iteration \d", error) and "learning rate" in error
    assert not list(folder(toy_options).glob("*.pth"))


def test_single_image_at_a_time_is_refused_with_the_remedy(toy_options, capsys):
    assert run(toy_options, "batch_size", 1) == 1
    error = capsys.readouterr().err
    assert "TRAIN.batch_size: 1" in error and "BatchNorm" in error and "raise batch_size" in error


def test_dataset_smaller_than_a_batch_is_refused(toy_options, capsys):
    assert run(toy_options, "batch_size", 14) == 1
    assert "TRAIN.batch_size: 14 is more than the 13 samples of train_list" in capsys.readouterr().err


def test_every_faulty_sample_is_named_before_the_first_step(toy, toy_options, tmp_path, capsys):
    label = cv2.imread(str(next((toy / "label").rglob("*.png"))), cv2.IMREAD_UNCHANGED)
    label[0, :3] = 77
    cv2.imwrite(str(tmp_path / "id.png"), label)
    cv2.imwrite(str(tmp_path / "size.png"), label[:-1])
    (tmp_path / "cut.png").write_bytes((tmp_path / "id.png").read_bytes()[:100])
    image = next((toy / "image").rglob("*.png"))
    lines = [f"{image} {tmp_path / name}" for name in ("id.png", "size.png", "cut.png")] + [f"{tmp_path / 'cut.png'} {image}"]
    (tmp_path / "bad.txt").write_text("\n".join(lines))
    assert run(toy_options, "train_list", tmp_path / "bad.txt", "data_root", "/", "evaluate", "False") == 1
    error = capsys.readouterr().err
    assert "4 of " in error
    assert re.search(r"id\.png: label ids outside 0\.\.8 .*77 \(3 pixels\)", error)
    assert f"size.png: 64 x 47, but its image {image} is 64 x 48" in error
    assert len(re.findall(r"cut\.png: cannot be decoded", error)) == 2
    assert not list(folder(toy_options).glob("*.pth"))


def test_second_run_into_the_same_folder_is_refused(toy_options, capsys):
    hold = "import sys; from util.log import lock_folder; lock = lock_folder(sys.argv[1]); print('held', flush=True); input()"
    command = [sys.executable, "-c", hold, folder(toy_options)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        assert run(toy_options) == 1
        other.stdin.close()
    error = capsys.readouterr().err
    assert f"another run writes here (process {other.pid} on " in error and "save_path" in error


def test_missing_initmodel_is_refused_with_the_remedy(toy_options, capsys):
    assert run(toy_options, "initmodel", "/nowhere/resnet18.pth") == 1
    assert "TRAIN.initmodel: /nowhere/resnet18.pth does not exist; initmodel/README.md" in capsys.readouterr().err


def test_weights_of_torchvision_and_of_mmsegmentation_start_a_run(toy_options, full_size, tmp_path, monkeypatch):
    path = tmp_path / "resnet18.pth"
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), path)
    monkeypatch.setattr(train, "fetch_torchvision", lambda layers, where: path)
    shorter = ["epochs", 1, "evaluate", "False", "contract_dilation", "True"]
    assert run(toy_options, "initmodel", "torchvision", "stem", "plain", *shorter) == 0
    (log,) = folder(toy_options).glob("train-*.log")
    assert "format: torchvision" in log.read_text() and "dropped: fc.weight, fc.bias" in log.read_text()

    with torch.device("meta"):
        state = PSPNet(18, classes=4, stem="deep32").state_dict()
    torch.save({"state_dict": to_mmseg({key: torch.ones_like(t, device="cpu") for key, t in state.items()})}, path)
    options = ["weight", path, "stem", "deep32", "save_path", tmp_path / "second", *shorter]
    assert run(toy_options, *options) == 1
    assert run(toy_options, *options, "skip_head", "True") == 0
    logs = "".join(log.read_text() for log in (tmp_path / "second").glob("train-*.log"))
    assert "skipped: cls.4.weight, cls.4.bias, aux.4.weight, aux.4.bias" in logs


def test_a_run_does_not_go_on_from_the_weights_of_another_program(toy_options, tmp_path, capsys):
    torch.save({"epoch": 3, "state_dict": {"module.a": torch.ones(1)}, "optimizer": {}}, tmp_path / "a.pth")
    assert run(toy_options, "resume", tmp_path / "a.pth") == 1
    assert "a.pth: not a checkpoint of this program (it has no state and no config)" in capsys.readouterr().err


@pytest.mark.parametrize("classes, ignore_label, labelled", [(9, 255, 5), (200, 300, 44), (256, 65535, 255)])
def test_the_loss_of_a_validation_is_over_all_pixels_but_the_ignored(classes, ignore_label, labelled, tmp_path, caplog):
    """A byte compared with 300 would be compared with 300 - 256."""
    label = np.full((33, 33), labelled, np.uint8)
    if ignore_label == 255:
        label[:10] = 255
    save_png(tmp_path / "image.png", np.zeros((33, 33, 3), np.uint8))
    save_png(tmp_path / "label.png", label)
    (tmp_path / "val.txt").write_text("image.png label.png")
    keys = f"classes {classes} ignore_label {ignore_label} test_h 33 test_w 33 base_size 33 class_weights null workers 0"
    cfg = load_config(CONFIG, keys.split())
    data = SemData("val", tmp_path, tmp_path / "val.txt", classes=classes, ignore_label=ignore_label)
    quiet = SimpleNamespace(received=0, requested=lambda: False)
    out = SimpleNamespace(writer=None, scalars=lambda *_, **__: None)
    run = Run(cfg, torch.device("cpu"), logging.getLogger("quiet"), [str(k) for k in range(classes)], stop=quiet, val_data=data,
              state=State(1, 0), precision=Precision("fp32", torch.device("cpu")), network=nn.Module(), out=out)  # fmt: skip
    logits = torch.zeros(classes).index_fill(0, torch.tensor(labelled), 1)
    run.network.forward = lambda x: logits.view(1, -1, 1, 1).expand(len(x), -1, *x.shape[2:])
    assert train.validate(run)["loss"] == pytest.approx(-logits.log_softmax(0)[labelled].item(), rel=1e-5)
    logits[labelled] = torch.nan  # max takes it for the largest, so every pixel would be right
    values = train.validate(run)
    assert all(math.isnan(values[name]) for name in ("loss", "mIoU", "mAcc", "allAcc"))
    assert "the network's output is NaN or infinite" in caplog.text and "This validation has no scores" in caplog.text


def test_gpus_without_cuda_mean_the_cpu_with_one_warning(toy_options):
    with pytest.warns(UserWarning, match=r"GPUs \[0, 1\] are configured but CUDA is not available") as warnings:
        assert run(toy_options, "train_gpu", "[0, 1]", "epochs", 1, "evaluate", "False") == 0
    assert len([w for w in warnings if "CUDA is not available" in str(w.message)]) == 1


def test_traceback_of_a_mistake_goes_to_the_log_file_and_not_to_the_screen(toy_options, capsys):
    assert run(toy_options, "batch_size", 14) == 1
    (log,) = folder(toy_options).glob("train-*.log")
    assert "Traceback (most recent call last)" in log.read_text()
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err + captured.out


@pytest.mark.parametrize("bug", [ValueError, OSError, KeyError])
def test_traceback_of_a_bug_goes_to_the_screen_too(toy_options, monkeypatch, bug):
    def fail(*_):
        raise bug("of a library")

    monkeypatch.setattr(optim.SGD, "step", fail)
    with pytest.raises(bug, match="of a library"):
        run(toy_options)
    (log,) = folder(toy_options).glob("train-*.log")
    assert "Traceback (most recent call last)" in log.read_text() and "of a library" in log.read_text()


class TinyNet(nn.Module):
    """Two classifiers of single pixels: no BatchNorm, so that cutting a batch into parts changes nothing."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.main, self.aux, self.criterion = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), CrossEntropy(255)

    def forward(self, image, label):
        logits, aux_logits = self.main(image), self.aux(image)
        return logits.argmax(1), self.criterion(logits, label), self.criterion(aux_logits, label)

    def valid_pixels(self, label):
        return self.criterion.normaliser(label)

    def label_of_logits(self, label):
        return label


def tiny_run(net, optimizer, parts=1):
    cfg = SimpleNamespace(criterion_outside=False, accumulate_steps=parts, aux_weight=0.4, classes=4, ignore_label=255)
    cpu = torch.device("cpu")
    return Run(cfg, cpu, None, net=net, network=net, optimizer=optimizer, precision=Precision("fp32", cpu))


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_update_is_that_of_the_mean_over_the_valid_pixels_of_the_whole_batch(parts):
    g = torch.Generator().manual_seed(1)
    image, label = torch.randn(5, 3, 8, 8, generator=g), torch.randint(0, 4, (5, 8, 8), generator=g)
    label[0], label[1, :3] = 255, 255  # very unequal numbers of valid pixels, one image with none
    net, reference = TinyNet(), TinyNet()
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    loss, areas = train.update(tiny_run(net, optimizer, parts), image, label)

    main = F.cross_entropy(reference.main(image), label, ignore_index=255)
    aux = F.cross_entropy(reference.aux(image), label, ignore_index=255)
    (main + 0.4 * aux).backward()
    torch.testing.assert_close(loss, torch.stack([main, aux, main + 0.4 * aux]).detach())
    for ours, theirs in zip(net.parameters(), reference.parameters()):
        torch.testing.assert_close(ours, theirs - theirs.grad)
    assert areas[2].sum() == (label != 255).sum()


def test_processes_exchange_gradients_with_the_last_part_alone(monkeypatch):
    net, events = TinyNet(), []

    @contextmanager
    def no_sync():
        events.append("alone")
        yield

    net.no_sync = no_sync
    net.register_forward_pre_hook(lambda *_: events.append("part"))
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "all_reduce_sum", lambda tensor: tensor)
    image, label = torch.randn(3, 3, 8, 8), torch.randint(0, 4, (3, 8, 8))
    train.update(tiny_run(net, torch.optim.SGD(net.parameters(), lr=1.0), 3), image, label)
    assert events == ["alone", "part", "alone", "part", "part"]


def test_each_machine_fetches_the_weights_of_torchvision(monkeypatch):
    """This process stands for the first one of the second machine, whose folder the main process does not see."""
    monkeypatch.setattr(distributed, "rank", lambda: 8)
    monkeypatch.setattr(train, "fetch_torchvision", lambda layers, where: where / f"resnet{layers}.pth")
    monkeypatch.setattr(train, "load_backbone", lambda network, path, read: loaded.append(path))
    loaded, cfg = [], SimpleNamespace(weight=None, initmodel="torchvision", layers=18)
    train.load_weights(SimpleNamespace(cfg=cfg, network=None, log=SimpleNamespace(info=str)))
    assert loaded == [ROOT / "initmodel/resnet18.pth"]


def test_batch_without_a_valid_pixel_changes_nothing_but_momentum():
    net = TinyNet()
    before = net.main.weight.clone()
    label = torch.full((2, 4, 4), 255)
    optimizer, image = torch.optim.SGD(net.parameters(), lr=1.0), torch.randn(2, 3, 4, 4)
    loss, areas = train.update(tiny_run(net, optimizer), image, label)
    assert loss.tolist() == [0, 0, 0] and areas.sum() == 0
    assert torch.equal(net.main.weight, before)


@pytest.mark.parametrize("seconds, text", [(0, "00:00:00"), (61, "00:01:01"), (360000, "100:00:00")])
def test_clock_counts_hours_beyond_a_day(seconds, text):
    assert clock(seconds) == text


def test_help_says_what_is_written_and_how_it_ends():
    done = subprocess.run([sys.executable, ROOT / "tool/train.py", "--help"], capture_output=True, text=True, check=True)
    assert "train_epoch_N.pth" in done.stdout and "75" in done.stdout


def test_the_network_goes_before_the_process_group(monkeypatch):
    run, seen = SimpleNamespace(net=torch.nn.Linear(1, 1)), []
    net = weakref.ref(run.net)
    monkeypatch.setattr(train.distributed, "close", lambda: seen.append(net()))
    train.leave(run)
    assert seen == [None]
