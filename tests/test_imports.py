"""The arrows between the project's files: tool -> model, util; nothing else."""

import ast

from util.config import ROOT

FOLDERS = ("model", "util", "tool")
# Inside util: who may import whom. What is not listed may import all of util but the programs.
GROUND = {
    "config": set(),
    "distributed": set(),
    "image": set(),
    "transform": set(),
    "albumentation": {"transform"},
    "augmentation": {"transform", "albumentation"},
    "metric": set(),
    "inference": {"transform"},
    "schedule": set(),
    "optim": {"schedule"},
    "toy": {"visual"},
    "cache": set(),
    "checkpoint": set(),
    "dataset": {"image", "cache", "transform"},
    "visual": {"image"},
    "log": {"config", "distributed"},
}


def imports():
    """(importing module, imported module) of every import of this project's own files, `util.config` like."""
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).glob("*.py")):
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
    assert ("tool.train", "util.config") in set(imports()) and ("model.pspnet", "model.base") in set(imports())


def test_model_and_util_do_not_import_each_other_nor_a_program():
    allowed = {"tool": {"tool", "model", "util"}, "model": {"model"}, "util": {"util"}}
    wrong = [(a, b) for a, b in imports() if b.split(".")[0] not in allowed[a.split(".")[0]]]
    assert not wrong


def test_ground_floor_of_util_imports_nothing_above_it():
    wrong = []
    for a, b in imports():
        folder, name = a.split(".")
        if folder == "util" and name in GROUND and b.split(".")[1] not in GROUND[name] | {"common"}:
            wrong.append((a, b))
    assert not wrong


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
