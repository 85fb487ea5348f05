"""Every command of README.md and the other pages, as the shell understands it: run on the toy dataset, or parsed where PARSED
says why. A command that is new or has changed is run, so it fails here until it works or has a reason."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest
import yaml
from PIL import Image
from processes import copy_project
from torch.distributed import launch as torch_launch
from torch.distributed import run as torchrun

from model import check_config
from tool import benchmark, prepare, train
from tool import test as test_program
from util.command import parse_test, parse_train
from util.config import ROOT, load_config

PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *(ROOT / name / "README.md" for name in ("dataset", "initmodel", "exp"))]
PAGES.remove(ROOT / "CHANGELOG.md")
PROGRAMS = "python python3 torchrun srun mpirun sbatch pip tensorboard".split()  # in whose place the shell finds a stub
CITYSCAPES, CAMVID, GPUS = "Cityscapes is not here", "CamVid is not here", "as many GPUs, or processes of several minutes"
INSTALLS, VIEWER = "installs packages", "serves pages until it is ended"
PARSED = {  # every other command is run
    "sh tool/train.sh cityscapes pspnet50": CITYSCAPES,
    "python tool/train.py --config config/cityscapes/cityscapes_pspnet50.yaml base_lr 0.02 TRAIN.epochs 100": CITYSCAPES,
    "torchrun --nproc_per_node 8 tool/train.py --config config/cityscapes/cityscapes_pspnet50.yaml": CITYSCAPES,
    "sh tool/train_dist.sh pspnet_r50-d8_512x1024_40k_cityscapes 8 --work-dir exp/mine": CITYSCAPES,
    "sh tool/test.sh cityscapes pspnet50": CITYSCAPES,
    "sh tool/test.sh cityscapes pspnet50 scales [0.5, 0.75, 1.0, 1.25, 1.5, 1.75]": CITYSCAPES,
    "torchrun --nproc_per_node 8 tool/test.py --config config/cityscapes/cityscapes_pspnet50.yaml": CITYSCAPES,
    "sh tool/test.sh cityscapes pspnet50 --format cityscapes": CITYSCAPES,
    "python tool/prepare.py cityscapes --source /data/cityscapes": CITYSCAPES,
    "sh tool/train.sh pspnet_r50-d8_512x1024_40k_cityscapes --work-dir exp/mine --seed 0 --cfg-options optimizer.lr=0.02":
        CITYSCAPES,
    "sh tool/train_dist.sh pspnet_r50-d8_512x1024_40k_cityscapes 8 --auto-resume": CITYSCAPES,
    "sh tool/test.sh cityscapes pspnet_r50-d8_512x1024_40k scales [0.5, 0.75, 1.0, 1.25, 1.5, 1.75] flip True": CITYSCAPES,
    "sh tool/train.sh cityscapes pspnet50_onecycle": CITYSCAPES,
    "sh tool/train.sh cityscapes smp_pspnet50": CITYSCAPES,
    "python tool/train.py --config cityscapes_pspnet101 train_gpu [0] precision bf16 channels_last True "
    "checkpoint_layers [layer1, layer2, layer3, layer4]": CITYSCAPES,
    "python tool/prepare.py camvid --source DIR": CAMVID,
    "sh tool/train.sh camvid pspnet18": CAMVID,
    "sh tool/train.sh camvid pspnet18 precision bf16 channels_last True": CAMVID,
    "torchrun --nproc_per_node 8 tool/train.py --config F": GPUS,
    "python -m torch.distributed.launch --nproc_per_node 8 tool/train.py --config F": GPUS,
    "srun --ntasks 8 python tool/train.py --config F": GPUS,
    "mpirun -n 8 python tool/train.py --config F": GPUS,
    "sh tool/train_dist.sh F 8": GPUS,
    "torchrun --nnodes 2 --nproc_per_node 8 --rdzv-backend c10d --rdzv-id RUN --rdzv-endpoint HOST0:29400 tool/train.py --config F":
        GPUS,
    "NNODES=2 NODE_RANK=0 MASTER_ADDR=HOST0 PORT=29500 sh tool/train_dist.sh F 8": GPUS,
    "torchrun --nproc_per_node 8 --max-restarts 3 tool/train.py --config F resume auto save_iters 500": GPUS,
    "python tool/train.py --config F world_size 2 rank 0 dist_url tcp://HOST0:6789": "waits for the other machine",
    "sbatch tool/slurm.sh DATASET EXP [KEY VALUE ...]": "there is no SLURM here; tests/test_launch.py pretends one",
    "sbatch --nodes 2 --ntasks-per-node 4 --gpus-per-node 4 tool/slurm.sh DATASET EXP": "there is no SLURM here",
    "python tool/demo.py --model exp/toy/pspnet18/model/model_best.pth --image 0 --no-legend": "a camera: tests/test_demo.py",
    "python tool/benchmark.py --minutes 15": "15 minutes; tests/test_benchmark.py runs its --quick",
    "python tool/benchmark.py exported": "minutes; tests/test_export.py runs its --quick",
    "python tool/benchmark.py model cityscapes_pspnet50 --fit 24 train_gpu [0]": "half a minute; tests/test_summary.py",
    "sh tool/check.sh": "this suite",
    "sh tool/check.sh tests/test_pspnet.py::test_logits_equal_the_original": "of this suite",
    "sh tool/check.sh --gpu": "this suite on a GPU",
    "sh tool/matrix.sh": "installs five environments; tests/test_scripts.py pretends them",
    "python docs/why_0739.py --seeds 3 --parallel 2": "trains 24 networks",
    "pip install tensorboard && tensorboard --logdir exp": f"{INSTALLS}; {VIEWER}",
    "pip install onnx onnxscript onnxruntime": INSTALLS,
    "pip install albumentations>=2.0.8": INSTALLS,
    "pip install segmentation-models-pytorch>=0.5": INSTALLS,
    "pip install tensorboard": INSTALLS,
    "pip install safetensors": INSTALLS,
    "tensorboard --logdir exp": VIEWER,
}  # fmt: skip
NO_COMMANDS = (  # text that names programs, or stands for words
    "python tool/prepare.py COMMAND", "python tool/prepare.py ...", "python tool/prepare.py folder", "python tool/test.py ... flip False",
    "torchrun --max-restarts 3 ... resume auto",
)  # fmt: skip
STANDS_FOR = {
    "[KEY VALUE ...]": "", "[flags]": "", "DATASET": "toy", "EXP": "pspnet18", "CONFIG": "toy_pspnet18", "F": "toy_pspnet18",
    "CHECKPOINT": "A.pth", "FILE": "A.pth", "OUT": "b.pth", "S": "1", "DIR": "exp/other", "ROW": "criterion_outside True",
}  # fmt: skip
TINY = "train_h 33 train_w 33 test_h 33 test_w 33 base_size 64 batch_size 4 epochs 1 eval_freq 1 workers 0 ema_decay 0".split()


def commands_of(page):
    """The commands of a page: those of its sh blocks, without comments; indented ones; and those in `code` of its text."""
    text = page.read_text(encoding="utf-8")
    for block in re.findall(r"^```sh\n(.*?)^```", text, re.S | re.M):
        command = ""
        for line in block.splitlines():
            command += f"{line.removesuffix(chr(92))}\n" if not line.endswith("\\") else line[:-1]
            try:
                words = shlex.split(command, comments=True)
            except ValueError:  # a quoted text goes on
                continue
            if not line.endswith("\\"):
                yield command
                command = ""
                assert words
    rest = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
    code = re.findall(r"`([^`]+)`", rest) + re.findall(r"^    (\S.*)$", rest, re.M)
    yield from (c for c in code if re.match(rf"([A-Z_]+=\S+ )*(sh|{'|'.join(PROGRAMS)})\s", c))


def key_of(command):
    return " ".join(shlex.split(command, comments=True))


COMMANDS = {key_of(command): command for page in PAGES for command in commands_of(page)}
COMMANDS = {key: command for key, command in COMMANDS.items() if key not in NO_COMMANDS}


def filled(command):
    return re.sub(rf"(?<![\w/.-])({'|'.join(map(re.escape, STANDS_FOR))})(?![\w/.=-])", lambda m: STANDS_FOR[m[1]], command)


@pytest.fixture(scope="module")
def calls(tmp_path_factory):
    """A function: the programs that a command of the shell starts, each with its words, in a copy of the project (`.root`)."""
    root, stubs = copy_project(tmp_path_factory.mktemp("copy") / "project"), tmp_path_factory.mktemp("bin")
    for page in ROOT.glob("docs/*.py"):
        (root / "docs").mkdir(exist_ok=True)
        shutil.copy(page, root / "docs")
    (root / "tests").mkdir()
    (root / ".venv/bin").mkdir(parents=True)
    (root / ".venv/bin/activate").touch()
    for name in PROGRAMS:
        (stubs / name).write_text('#!/bin/sh\nprintf "%s\\0" "${0##*/}" "$@" "\n" >> "$CALLS"\n')
        (stubs / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{stubs}:{os.environ['PATH']}", "CALLS": str(stubs / "calls"), "VIRTUAL_ENV": ""}

    def start(command):
        (stubs / "calls").write_text("")
        done = subprocess.run(["sh", "-euc", filled(command)], cwd=root, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found = [call.split("\0")[:-1] for call in (stubs / "calls").read_text().split("\n\0")[:-1]]
        found = [[word for word in call] for call in found if call[1:2] != ["tool/requirements.py"]]
        return [call for call in found if call[1:2] != ["-c"]]

    start.root = root
    return start


# ---- run


RUNNER = """
import contextlib, io, json, os, runpy, sys, traceback
for words, screen in json.load(sys.stdin):
    sys.argv, status = words, 0
    with open(screen, "w") as out, contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            runpy.run_path(words[0], run_name="__main__")
        except SystemExit as end:
            status = end.code
        except BaseException:
            traceback.print_exc()
            status = "traceback"
    print(json.dumps(status), flush=True)
"""


def inputs(root):
    """The files of a user that commands name."""
    scenes = root / "scenes"
    prepare.main(["toy", "--out", str(scenes), "--train", "6", "--val", "2", "--size", "48x64"])
    for folder, kind in (("my/photos", "image"), ("my/masks", "label"), ("my/yolo/images", "image"), ("holiday", "image")):
        shutil.copytree(scenes / kind / "train", root / folder)
    pictures = sorted((root / "my/photos").iterdir())
    square = [[5, 5], [30, 5], [30, 30], [5, 30]]
    (root / "my/yolo/labels").mkdir()
    coco = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "car"}]}
    for i, path in enumerate(pictures):
        shape = {"label": "car", "points": square, "shape_type": "polygon"}
        path.with_suffix(".json").write_text(json.dumps({"imagePath": path.name, "shapes": [shape]}))
        coco["images"].append({"id": i, "file_name": path.name, "height": 48, "width": 64})
        coco["annotations"].append({"id": i, "image_id": i, "category_id": 1, "segmentation": [np.ravel(square).tolist()]})
        (root / f"my/yolo/labels/{path.stem}.txt").write_text("0 0.1 0.1 0.5 0.1 0.5 0.6\n")
    (root / "my/annotations.json").write_text(json.dumps(coco))
    (root / "my/yolo/data.yaml").write_text("names: [car]\ntrain: images\nval: images\n")
    (root / "more").mkdir()
    for name in ("picture.jpg", "holiday/a.jpg", "more/b.jpg", "street.png"):
        Image.open(pictures[0]).save(root / name)
    video = cv2.VideoWriter(str(root / "drive.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 5, (64, 48))
    for path in pictures[:3]:
        video.write(cv2.imread(str(path)))
    video.release()


def run_words(call):
    """The words of a program, with those that make it small."""
    program, *words = call[1:]
    small = []
    if program in ("tool/train.py", "tool/test.py") and "--help" not in words:
        small = [] if any(word.endswith((".pth", ".onnx")) for word in words) else TINY
    elif program == "tool/demo.py" and "--model" not in words:
        small = TINY
    elif words[:1] == ["toy"]:
        small = ["--train", "8", "--val", "2", *([] if "--size" in words else ["--size", "48x64"])]
    return [program, *words, *small]


def test_commands_run(calls, tmp_path):
    root, trained = calls.root, calls.root / "exp/toy/pspnet18/model/model_best.pth"
    inputs(root)
    copies = [root / name for name in ("A.pth", "B.pth", "weights.pth", "train_epoch_100.pth", "exp/camvid/pspnet18/model/model_best.pth")]
    code = "import os, shutil, sys\n" + "".join(
        f"os.makedirs(os.path.dirname({str(path)!r}), exist_ok=True); shutil.copy({str(trained)!r}, {str(path)!r})\n" for path in copies
    )
    (root / "copies.py").write_text(code)
    todo, keys = [], []
    for key, command in COMMANDS.items():
        if key in PARSED:
            continue
        started = calls(command)
        assert started or key.startswith((".", "LIST=")), f"{key}: starts nothing"
        for call in started:
            assert call[0] == "python", f"{key}: {call[0]} cannot run here: give the reason in PARSED"
            keys.append(key)
            todo.append((run_words(call), str(tmp_path / f"{len(todo)}.txt")))
        if key == "sh tool/quickstart.sh":
            keys.append("copies")
            todo.append((["copies.py"], str(tmp_path / f"{len(todo)}.txt")))
    # The alternatives of one's own data all make dataset/mine.
    done = subprocess.run(
        [sys.executable, "-c", RUNNER], cwd=root, input=json.dumps(todo), env={**os.environ, "PYTHONPATH": ""}, capture_output=True, text=True
    )
    statuses = [json.loads(line) for line in done.stdout.splitlines()]
    failed = [
        f"{key}: {status}\n{open(screen).read()[-1500:]}"
        for key, (_, screen), status in zip(keys, todo, statuses)
        if status not in (0, None)
    ]
    assert not failed, "\n\n".join(failed)
    assert len(statuses) == len(todo), done.stderr
