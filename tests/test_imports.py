"""Imports between the project's files: tool -> dataset -> util, model; model -> util.common; nothing else, but for one edge."""

import ast
import subprocess
import sys

import pytest
import torch
from processes import small_training

from util.config import ROOT

# Predictor belongs to the engine, and imports the networks where it makes one. Scripts of other people need one class for all.
LAZY = {("util.inference", "model")}
FOLDERS = ("dataset", "model", "util", "tool")
# Inside util: who may import whom, `common` apart. What is not listed may import all of util.
GROUND = {
    "config": {"values", "fetch"},
    "fetch": set(),
    "values": set(),
    "distributed": set(),
    "image": {"png"},
    "png": set(),
    "transform": set(),
    "albumentation": {"transform"},
    "augmentation": {"transform", "albumentation"},
    "metric": set(),
    "inference": {"transform", "checkpoint", "config", "fetch", "image", "precision", "visual"},
    "schedule": {"config"},
    "optim": {"schedule", "config", "values"},
    "common": set(),
    "cache": {"image"},
    "lists": {"image"},
    "checkpoint": set(),
    "dataset": {"image", "lists", "cache", "transform"},
    "visual": {"image", "png"},
    "video": {"image"},
    "log": {"config", "distributed"},
}


def imports():
    """(importing module, imported module) of every import of this project's own files, `util.config` like."""
    for folder in FOLDERS:
        for path in sorted({*(ROOT / folder).glob("*.py"), *(ROOT / folder).glob("*/scene.py")}):
            here = f"{folder}.{path.stem}"
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    names = [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom):
                    assert node.level == 0, f"{here}: write out where an import comes from"
                    names = [f"{node.module}.{alias.name}" for alias in node.names]
                else:
                    continue
                for name in names:
                    if name.split(".")[0] in FOLDERS:
                        yield here, ".".join(name.split(".")[:2])


def test_imports_are_found():
    found = set(imports())
    assert {("tool.train", "util.config"), ("model.pspnet", "model.base"), ("tool.prepare", "dataset.check")} <= found
    assert ("dataset.scene", "util.visual") in found


def test_imports_run_one_way():
    allowed = {"tool": {*FOLDERS}, "dataset": {"dataset", "model", "util"}, "model": {"model"}, "util": {"util"}}
    wrong = [(a, b) for a, b in imports() if b.split(".")[0] not in allowed[a.split(".")[0]]]
    wrong = [(a, b) for a, b in wrong if not (a.startswith("model.") and b == "util.common")]
    assert {(a, b.split(".")[0]) for a, b in wrong} == LAZY
    inference = ast.parse((ROOT / "util/inference.py").read_text(encoding="utf-8"))
    assert not [node for node in inference.body if isinstance(node, ast.ImportFrom) and node.module.startswith("model")]


# Each takes from a tenth of a second to two seconds; torch's compiler, with sympy, more than all else after torch itself.
SLOW = {"torch._dynamo", "torch._inductor", "sympy", "torch.distributed.run", "torchvision", "matplotlib", "scipy", "onnx",
        "safetensors", "tensorboard"}  # fmt: skip
OLD_TORCH = tuple(map(int, torch.__version__.split(".")[:2])) < (2, 14)


@pytest.mark.skipif(OLD_TORCH, reason="torch 2.8 imports sympy itself; versions between were not tried")
def test_training_and_validation_load_no_compiler_no_report_and_nothing_of_dataset(toy, tmp_path):
    code = "import sys; from tool import train; assert train.main(sys.argv[1:]) == 0; print('LOADED', *sys.modules)"
    words = ["--config", "toy_pspnet18", *small_training(toy, epochs=1), "save_path", str(tmp_path)]
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = done.stdout.rpartition("LOADED ")[2].split()
    assert "util.run" in loaded and not SLOW & {*loaded}
    assert not [name for name in loaded if name.split(".")[0] == "dataset" or name == "util.report"]


def test_an_installed_package_called_dataset_does_not_get_in_the_way(tmp_path):
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset/__init__.py").write_text("raise SystemExit('the wrong one')")
    code = f"import sys; sys.path.append({str(tmp_path)!r}); import dataset.toy.scene"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_ground_floor_of_util_imports_nothing_above_it():
    wrong = []
    for a, b in imports():
        folder, name = a.split(".")
        below, target = b.split(".")
        if folder == "util" and name in GROUND and target not in GROUND[name] | {"common"} and (a, below) not in LAZY:
            wrong.append((a, b))
    assert not wrong, "these may import no more than GROUND lists"


def test_no_circles():
    edges = {}
    for a, b in imports():
        edges.setdefault(a, set()).add(b)

    def walk(node, path):
        assert node not in path, f"circle: {' -> '.join([*path, node])}"
        for after in edges.get(node, ()):
            walk(after, [*path, node])

    for start in list(edges):
        walk(start, [])
