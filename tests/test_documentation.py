"""Every command of README.md and the other pages, as the shell understands it: run on the toy dataset, or parsed where PARSED
says why. A command that is new, or has changed, is run: it fails here until it works or has a reason."""

import importlib.util
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys

import cv2
import pytest
import yaml
from PIL import Image
from processes import copy_project
from torch.distributed import launch as torch_launch
from torch.distributed import run as torchrun

from model import check_config
from tool import benchmark, demo, export, prepare
from util.command import parse_test, parse_train
from util.config import ROOT, load_config

PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
PAGES += [ROOT / f"{folder}/README.md" for folder in ("dataset", "initmodel", "exp")]
PROGRAMS = "python python3 torchrun srun mpirun sbatch pip tensorboard".split()
CITYSCAPES, CAMVID, GPUS, SLURM = "needs Cityscapes", "needs CamVid", "needs GPUs", "needs SLURM"
INSTALLS, SUITE = "installs packages", "is this suite"
PARSED = {  # without comments and quotes
    "sh tool/train.sh cityscapes pspnet50": CITYSCAPES,
    "sh tool/train.sh cityscapes pspnet50_onecycle": CITYSCAPES,
    "sh tool/train.sh cityscapes smp_pspnet50": CITYSCAPES,
    "sh tool/train.sh pspnet_r50-d8_512x1024_40k_cityscapes --work-dir exp/first --seed 0 --cfg-options optimizer.lr=0.02":
        CITYSCAPES,
    "sh tool/train_dist.sh pspnet_r50-d8_512x1024_40k_cityscapes 8 --work-dir exp/first": CITYSCAPES,
    "sh tool/train_dist.sh pspnet_r50-d8_512x1024_40k_cityscapes 8 --auto-resume": CITYSCAPES,
    "python tool/train.py --config config/cityscapes/cityscapes_pspnet50.yaml base_lr 0.02 TRAIN.epochs 100": CITYSCAPES,
    "python tool/train.py --config cityscapes_pspnet101 train_gpu [0] precision bf16 channels_last True"
    " checkpoint_layers [layer1, layer2, layer3, layer4]": CITYSCAPES,
    "torchrun --nproc_per_node 8 tool/train.py --config config/cityscapes/cityscapes_pspnet50.yaml": CITYSCAPES,
    "torchrun --nproc_per_node 8 tool/test.py --config config/cityscapes/cityscapes_pspnet50.yaml": CITYSCAPES,
    "sh tool/test.sh cityscapes pspnet50": CITYSCAPES,
    "sh tool/test.sh cityscapes pspnet50 --format cityscapes": CITYSCAPES,
    "sh tool/test.sh cityscapes pspnet50 scales [0.5, 0.75, 1.0, 1.25, 1.5, 1.75]"
    " save_folder exp/cityscapes/pspnet50/result/ms": CITYSCAPES,
    "sh tool/test.sh cityscapes pspnet_r50-d8_512x1024_40k scales [0.5, 0.75, 1.0, 1.25, 1.5, 1.75] flip True": CITYSCAPES,
    "python tool/prepare.py cityscapes --source /data/cityscapes": CITYSCAPES,
    "python tool/prepare.py camvid --source DIR": CAMVID,
    "sh tool/train.sh camvid pspnet18": CAMVID,
    "sh tool/train.sh camvid pspnet18_full": CAMVID,
    "sh tool/train.sh camvid pspnet18 manual_seed 2 save_path exp/camvid/seed2/model": CAMVID,
    "sh tool/train.sh camvid pspnet18_full manual_seed 2 save_path exp/camvid/seed2_full/model"
    " weight exp/camvid/seed2/model/train_epoch_26.pth": CAMVID,
    "sh tool/train.sh camvid pspnet18_full epochs 20 eval_freq 10 save_path exp/camvid/long1/model": CAMVID,
    "python tool/train.py --config camvid_pspnet18_full epochs 2 eval_freq 2 loss ce base_lr 0.0003"
    " save_path exp/camvid/finish1/model weight exp/camvid/long1/model/train_epoch_20.pth": CAMVID,
    "python tool/train.py --config camvid_pspnet18_full epochs 2 eval_freq 2 loss ce base_lr 0.0003"
    " save_path exp/camvid/finish13/model weight exp/camvid/pspnet18_full/model/train_epoch_13.pth": CAMVID,
    "python tool/train.py --config camvid_pspnet18 save_path exp/camvid/streets/model epochs 32 eval_freq 16 loss ce"
    " class_weights sqrt train_h 193 train_w 257 scale_min 0.75 scale_max 1.5 base_size 480 test_h 193 test_w 257"
    " weight exp/toy/pspnet18/model/model_best.pth skip_head True": CAMVID,
    "python tool/train.py --config camvid_pspnet18_full save_path exp/camvid/large/model epochs 18 eval_freq 18 test_h 225"
    " test_w 289 weight exp/camvid/streets/model/train_epoch_32.pth": CAMVID,
    "sh tool/test.sh camvid pspnet18_full save_path exp/camvid/large/model epochs 18 test_h 225 test_w 289": CAMVID,
    "sh tool/test.sh camvid pspnet18_full save_path exp/camvid/large/model epochs 18 test_h 225 test_w 289"
    " test_list dataset/camvid/list/test.txt save_folder exp/camvid/large/test": CAMVID,
    "sh tool/test.sh camvid pspnet18_full test_list dataset/camvid/list/test.txt"
    " save_folder exp/camvid/pspnet18_full/result/test": CAMVID,
    "python tool/train.py --config camvid_pspnet18 save_path exp/camvid/half/model eval_freq 26 test_h 113 test_w 145"
    " weight exp/toy/pspnet18/model/model_best.pth skip_head True": CAMVID,
    "python tool/train.py --config camvid_pspnet18_full save_path exp/camvid/full/model eval_freq 13 test_h 225 test_w 289"
    " weight exp/camvid/half/model/train_epoch_26.pth": CAMVID,
    "python tool/train.py --config camvid_pspnet18_full save_path exp/camvid/once/model epochs 18 eval_freq 18 test_h 225"
    " test_w 289 base_lr 0.003 weight exp/toy/pspnet18/model/model_best.pth skip_head True": CAMVID,
    "python tool/train.py --config camvid_pspnet18 save_path exp/camvid/smp/model arch smp_pspnet epochs 32 eval_freq 16"
    " loss ce class_weights sqrt channels_last False train_h 193 train_w 257 scale_min 0.75 scale_max 1.5 base_size 480"
    " test_h 361 test_w 481": CAMVID,
    "python tool/train.py --config camvid_pspnet18 save_path exp/camvid/small1/model epochs 6 eval_freq 6 train_h 97"
    " train_w 129 scale_min 0.375 scale_max 0.75 base_size 240 test_h 185 test_w 241 loss ce class_weights sqrt"
    " channels_last False": CAMVID,
    "torchrun --nproc_per_node 8 tool/test.py --config F": GPUS,
    "python tool/train.py --config F train_gpu [0]": GPUS,
    "torchrun --nproc_per_node 8 tool/train.py --config F": GPUS,
    "torchrun --nproc_per_node 8 --max-restarts 3 tool/train.py --config F resume auto save_iters 500": GPUS,
    "torchrun --nnodes 2 --nproc_per_node 8 --rdzv-backend c10d --rdzv-id RUN --rdzv-endpoint HOST0:29400 tool/train.py"
    " --config F": GPUS,
    "python -m torch.distributed.launch --nproc_per_node 8 tool/train.py --config F": GPUS,
    "srun --ntasks 8 python tool/train.py --config F": GPUS,
    "mpirun -n 8 python tool/train.py --config F": GPUS,
    "sh tool/train_dist.sh F 8": GPUS,
    "NNODES=2 NODE_RANK=0 MASTER_ADDR=HOST0 PORT=29500 sh tool/train_dist.sh F 8": GPUS,
    "python tool/train.py --config F world_size 2 rank 0 dist_url tcp://HOST0:6789": "waits for another machine",
    "sbatch tool/slurm.sh DATASET EXP [KEY VALUE ...]": SLURM,
    "sbatch --nodes 2 --ntasks-per-node 4 --gpus-per-node 4 tool/slurm.sh DATASET EXP": SLURM,
    "python tool/demo.py --model exp/toy/pspnet18/model/model_best.pth --image 0 --no-legend": "needs a camera",
    "python tool/benchmark.py --minutes 15": "takes 15 minutes; tests/test_benchmark.py runs it with --quick",
    "python tool/benchmark.py --against DIR --minutes 15": "needs the original's code; tests/test_benchmark.py, likewise",
    "python tool/benchmark.py exported": "takes minutes; tests/test_export.py runs it with --quick",
    "python tool/benchmark.py model cityscapes_pspnet50": "tests/test_summary.py runs it with another config",
    "python tool/benchmark.py model cityscapes_pspnet50 --fit 24 train_gpu [0]": "tests/test_summary.py, likewise",
    "python tool/export.py --model exp/toy/pspnet18/model/model_best.pth --format onnx --out toy.onnx": "as in docs/export.md",
    "python docs/curve.py docs/camvid.png exp/camvid/small1/model exp/camvid/small2/model exp/camvid/small3/model": CAMVID,
    "python docs/curve.py docs/camvid_seeds.png exp/camvid/pspnet18/model exp/camvid/seed2/model exp/camvid/seed3/model"
    " exp/camvid/pspnet18_full/model exp/camvid/seed2_full/model exp/camvid/seed3_full/model": CAMVID,
    "python docs/growth.py": "takes minutes; tests/test_benchmark.py runs it with --quick",
    "python docs/why_0739.py --seeds 3 --parallel 2": "trains 24 networks",
    "sh tool/check.sh": SUITE,
    "sh tool/check.sh --gpu": SUITE,
    "sh tool/check.sh tests/test_pspnet.py::test_logits_equal_the_original": SUITE,
    "TEST_DEVICE=cpu python -m pytest tests/test_gpu.py": SUITE,
    "sh tool/matrix.sh": "installs four environments; tests/test_scripts.py pretends them",
    "pip install tensorboard && tensorboard --logdir exp": f"{INSTALLS}, and a server",
    "tensorboard --logdir exp": "a server",
    "pip install tensorboard": INSTALLS,
    "pip install onnx onnxscript onnxruntime": INSTALLS,
    "pip install albumentations>=2.0.8": INSTALLS,
    "pip install segmentation-models-pytorch>=0.5": INSTALLS,
    "pip install isal": INSTALLS,
    "pip install safetensors": INSTALLS,
}  # fmt: skip
NO_COMMANDS = {  # what else looks like one
    "python tool/prepare.py COMMAND", "python tool/prepare.py ...",
    "python tool/test.py ... flip False test_list dataset/toy_small/list/val.txt", "torchrun --max-restarts 3 ... resume auto",
}  # fmt: skip
STANDS_FOR = {  # words of the pages
    "[KEY VALUE ...]": "", "[flags]": "", "DATASET": "toy", "EXP": "pspnet18", "CONFIG": "toy_pspnet18", "F": "toy_pspnet18",
    "CHECKPOINT": "exp/toy/pspnet18/model/train_epoch_1.pth",
    "FILE": "A.pth", "OUT": "B.safetensors", "S": "1", "DIR": "exp/a", "ROW": "criterion_outside True",
}  # fmt: skip
TINY = "train_h 33 train_w 33 test_h 33 test_w 33 base_size 64 batch_size 4 epochs 1 eval_freq 1 workers 0".split()


def commands_of(text):
    """Of a page: those of its sh blocks, of indented lines, and those that its text holds."""
    for block in re.findall(r"^```sh\n(.*?)^```", text, re.S | re.M):
        command = ""
        for line in block.splitlines():
            command += line
            if not line.endswith("\\") and is_whole(command):
                yield command
                command = ""
            else:
                command = command[:-1] if line.endswith("\\") else f"{command}\n"
        assert not command, f"quotes in {block}"
    text = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
    yield from re.findall(r"^    (python .*)$", text, re.M)
    codes = (" ".join(code.split()) for code in re.findall(r"`([^`]+)`", text))
    yield from (code for code in codes if re.match(rf"([A-Z_]+=\S+ )*(sh|{'|'.join(PROGRAMS)}) ", code))


def is_whole(command):
    try:
        return bool(shlex.split(command, comments=True))
    except ValueError:  # a quote is open
        return False


def plain(command):
    return " ".join(shlex.split(command, comments=True))


COMMANDS = {plain(command): command for page in PAGES for command in commands_of(page.read_text(encoding="utf-8"))}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of the project with narrow networks, and what a user has beside it."""
    root = copy_project(tmp_path_factory.mktemp("documentation") / "project", blocks=2)  # which tool/convert.py counts
    shutil.copytree(ROOT / "docs", root / "docs", ignore=shutil.ignore_patterns("*.md", "*.png", "__pycache__"))
    for folder in (".venv/bin", "config/mine", "more", "my/yolo/labels"):
        (root / folder).mkdir(parents=True)
    (root / ".venv/bin/activate").touch()
    prepare.main(["toy", "--out", str(root / "scenes"), "--train", "5", "--val", "2", "--size", "48x64"])
    for folder, kind in (("my/photos", "image"), ("my/masks", "label"), ("my/yolo/images", "image"), ("holiday", "image")):
        shutil.copytree(root / f"scenes/{kind}/train", root / folder)
    pictures = sorted((root / "my/photos").iterdir())
    coco = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "car"}]}
    for i, path in enumerate(pictures):
        shape = {"label": "car", "points": [[5, 5], [30, 5], [30, 30]], "shape_type": "polygon"}
        path.with_suffix(".json").write_text(json.dumps({"imagePath": path.name, "shapes": [shape]}))
        coco["images"].append({"id": i, "file_name": path.name, "height": 48, "width": 64})
        coco["annotations"].append({"id": i, "image_id": i, "category_id": 1, "segmentation": [[5, 5, 30, 5, 30, 30]]})
        (root / f"my/yolo/labels/{path.stem}.txt").write_text("0 0.1 0.1 0.5 0.1 0.5 0.6\n")
    (root / "my/annotations.json").write_text(json.dumps(coco))
    (root / "my/yolo/data.yaml").write_text("names: [car]\ntrain: images\nval: images\n")
    for name in ("picture.jpg", "holiday/a.jpg", "more/b.jpg", "street.png"):
        Image.open(pictures[0]).save(root / name)
    video = cv2.VideoWriter(str(root / "drive.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 5, (64, 48))
    for path in pictures[:3]:
        video.write(cv2.imread(str(path)))
    video.release()
    return root


STUB = """#!/bin/sh
printf '%s\\0' "${0##*/}" "$@" "" "" >> "$CALLS"
if [ "${2:-}" = venv ]; then mkdir -p "$3/bin" && cp "$0" "$3/bin/python"; fi
"""


@pytest.fixture(scope="module")
def start(project, tmp_path_factory):
    """A function: the programs that a command starts, [[name, word, ...], ...]. The shell finds stubs in their place."""
    stubs = tmp_path_factory.mktemp("bin")
    for name in PROGRAMS:
        (stubs / name).write_text(STUB)
        (stubs / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{stubs}:{os.environ['PATH']}", "CALLS": str(stubs / "calls"), "VIRTUAL_ENV": ""}
    environment |= {"PYTHONS": "3", "SLURM_SUBMIT_DIR": str(project)}  # of matrix.sh; of slurm.sh
    words = sorted(map(re.escape, STANDS_FOR), key=len, reverse=True)

    def start(command):
        (stubs / "calls").write_text("")
        command = re.sub(rf"(?<![\w/.-])({'|'.join(words)})(?![\w/.=-])", lambda match: STANDS_FOR[match[1]], command)
        done = subprocess.run(["sh", "-euc", command], cwd=project, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        calls = [call.split("\0") for call in (stubs / "calls").read_text().split("\0\0\0")[:-1]]
        return [call for call in calls if call[1] not in ("tool/requirements.py", "-c")]  # of the scripts' own questions

    return start


def test_reasons_are_of_commands_that_are_there():
    assert len(COMMANDS) > 80 and not [key for key in (*PARSED, *NO_COMMANDS) if key not in COMMANDS]


# ---- run

# The words of many programs, one after the other in one process: each as `python WORDS` would run it.
RUNNER = """
import contextlib, json, runpy, sys, traceback
for words, screen in json.load(sys.stdin):
    sys.argv, status = words, 0
    with open(screen, "w") as out, contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            runpy.run_path(words[0], run_name="__main__")
        except SystemExit as end:
            status = end.code or 0
        except BaseException:
            traceback.print_exc()
            status = "a traceback"
    print(json.dumps(status), flush=True)
"""
COPIES = """
import pathlib, shutil
for name in "A.pth", "B.pth", "weights.pth", "train_epoch_100.pth", "exp/camvid/smp/model/model_best.pth":
    pathlib.Path(name).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy("exp/toy/pspnet18/model/model_best.pth", name)
"""


def made_small(program, *words):
    if program == "tool/prepare.py" and words[0] == "toy":
        return [program, *words, "--train", "6", "--val", "2", "--size", "48x64"]
    carried = program != "tool/train.py" and any(word.endswith((".pth", ".onnx")) for word in words)  # with its config
    experiment = program in ("tool/train.py", "tool/test.py", "tool/demo.py") and not carried and words != ("--help",)
    return [program, *words, *(TINY if experiment else [])]


def test_commands_run(project, start, tmp_path):
    (project / "copies.py").write_text(COPIES)
    todo = []
    for key in (key for key in COMMANDS if key not in PARSED and key not in NO_COMMANDS):
        calls = start(COMMANDS[key])
        assert calls or key.startswith((". ", "LIST=")), f"{key}: starts nothing"
        assert {call[0] for call in calls} <= {"python"}, f"{key}: cannot run here; give the reason in PARSED"
        todo += [(key, made_small(*call[1:])) for call in calls]
        todo += [("", ["copies.py"])] if key == "sh tool/quickstart.sh" else []
    screens = [tmp_path / f"{i}.txt" for i in range(len(todo))]
    work = json.dumps([(words, str(screen)) for (_, words), screen in zip(todo, screens)])
    done = subprocess.run([sys.executable, "-c", RUNNER], cwd=project, input=work, capture_output=True, text=True)
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(results) == len(todo), done.stderr
    failed = [(key, screen.read_text()[-2000:]) for (key, _), screen, status in zip(todo, screens, results) if status]
    assert not failed, "\n".join(f"{key}\n{text}" for key, text in failed)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_pages_name_tests_and_places_that_are_there(page):
    text, tests = page.read_text(encoding="utf-8"), {p.name: p.read_text("utf-8") for p in (ROOT / "tests").glob("test_*.py")}
    for file, name in re.findall(r"(test_\w+\.py)(?:::(\w+))?", text):
        assert file in tests and (not name or f"def {name}(" in tests[file]), f"{file}::{name}"
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)#?([^)\s]*)\)", text):
        place = page.parent / target if target else page
        assert place.exists(), target
        heads = re.findall("^#+ (.*)$", place.read_text("utf-8"), re.M) if anchor else ()
        assert not anchor or anchor in [re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads], anchor


def test_curve_of_a_killed_run_is_drawn_and_one_without_a_validation_is_named(tmp_path, monkeypatch, capsys):
    (tmp_path / "metrics.jsonl").write_text('{"iteration": 1, "mIoU_val": 0.5}\n{"iteration": 2, "mIoU_v')
    monkeypatch.setattr(sys, "argv", ["docs/curve.py", str(tmp_path / "a.png"), str(tmp_path)])
    runpy.run_path(str(ROOT / "docs/curve.py"))
    assert Image.open(tmp_path / "a.png").width == 600
    sys.argv[-1] = str(tmp_path / "none")
    with pytest.raises(SystemExit):
        runpy.run_path(str(ROOT / "docs/curve.py"))
    assert f"{tmp_path / 'none/metrics.jsonl'}: there is no validation in it" in capsys.readouterr().err
    sys.argv[1] = str(tmp_path / "metrics.jsonl")
    with pytest.raises(SystemExit):
        runpy.run_path(str(ROOT / "docs/curve.py"))
    assert "metrics.jsonl: expected the name of a PNG to write" in capsys.readouterr().err


# ---- parsed


@pytest.mark.parametrize("key", PARSED)
def test_a_command_that_cannot_run_here_is_understood(start, monkeypatch, key):
    calls = start(COMMANDS[key])
    assert calls
    for call in calls:
        understand(monkeypatch, *call)


def understand(monkeypatch, name, *words):
    """Raise for words that the program does not take, and for files, programs, packages and configs that are not there."""
    if name in ("torchrun", "srun", "mpirun", "sbatch") or words[:1] == ("-m",):
        understand_launch(monkeypatch, name, *words)
    elif name == "pip":
        listed = re.findall(r"^[\w-]+", "\n".join(path.read_text() for path in ROOT.glob("requirements*.txt")), re.M)
        assert words[0] == "install" and {re.match(r"[\w-]+", word)[0] for word in words[1:]} <= {*listed}
    elif name == "tensorboard":
        assert words == ("--logdir", "exp")
    elif words[0].endswith("benchmark.py"):
        args = benchmark.parse_args(words[1:])
        assert args.command is not benchmark.model or load_config(args.config, args.opts, check=check_config)
    elif words[0] == "docs/growth.py":
        assert len(words) == 1
    elif words[0] == "docs/curve.py":
        assert words[1].endswith(".png") and len(words) > 2
    elif words[0] == "docs/why_0739.py":
        understand_why(monkeypatch, words[1:])
    else:
        CHECKS[words[0]]([*words[1:]])


def check_train(words):
    path, overrides, _ = parse_train(words, "doc")
    load_config(path, overrides, check=check_config)


def check_test(words):
    path, overrides, _ = parse_test(words, "doc")
    load_config(path, overrides, check=check_config)


CHECKS = {"tool/train.py": check_train, "tool/test.py": check_test, "tool/demo.py": demo.parse_args,
          "tool/prepare.py": prepare.parse, "tool/export.py": export.parse_args}  # fmt: skip


def understand_launch(monkeypatch, name, *words):
    if words[:2] == ("-m", "pytest"):
        paths = [word.partition("::") for word in words[2:] if word.startswith("tests/")]
        assert all(f"def {test}(" in (ROOT / path).read_text() if test else (ROOT / path).is_file() for path, _, test in paths)
        return
    if words[:1] == ("-m",) and words[1] in ("ruff", "venv", "pip"):
        return
    if name in ("srun", "mpirun"):
        understand(monkeypatch, *words[words.index("python") :])
        return
    if name == "sbatch":
        script, dataset, experiment = words[words.index("tool/slurm.sh") :]
        assert (ROOT / script).is_file() and load_config(f"{dataset}_{experiment}")
        return
    module = torch_launch if words[1:2] == ("torch.distributed.launch",) else torchrun
    args = module.parse_args([*(words if name == "torchrun" else words[2:])])
    with monkeypatch.context() as patch:
        for variable in ("RANK", "LOCAL_RANK"):
            patch.setenv(variable, "0")
        for variable in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
            patch.setenv(variable, args.nproc_per_node)
        understand(monkeypatch, "python", args.training_script, *args.training_script_args)


def understand_why(monkeypatch, words):
    spec = importlib.util.spec_from_file_location("why_0739", ROOT / "docs/why_0739.py")
    why, trained = importlib.util.module_from_spec(spec), []
    spec.loader.exec_module(why)
    why.train, why.print_training, why.print_metric = (lambda row, seed, threads: trained.append((row, seed))), len, len
    monkeypatch.setattr(sys, "argv", ["why_0739.py", *words])
    why.main()
    assert sorted(trained) == [(row, seed) for row in range(8) for seed in (1, 2, 3)]
    for row in range(8):
        check_train(why.command("train", row, 1)[2:])
    check_test([*why.command("test", 0, 1)[2:], "flip", "False"])
    page = next(command for key, command in COMMANDS.items() if key.startswith("LIST="))
    assert yaml.safe_load(shlex.split(page)[0].removeprefix("LIST=")) == yaml.safe_load(why.AUGMENTATION)
