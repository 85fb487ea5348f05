"""Long lists: what they are as a sequence, which files they name, and what they cost in memory and in the workers."""

import os
import pickle
import re
import sys
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from util import lists, loader
from util.common import Mistake
from util.config import load_config
from util.dataset import EpochSampler, SemData, read_list
from util.lists import Pairs, Texts
from util.loader import check_data

MANY = lists.FEW + 8  # files for which their folder is read


@pytest.fixture
def root(tmp_path):
    """A folder with MANY images and labels of 2x2 pixels, and their list."""
    (tmp_path / "image").mkdir()
    (tmp_path / "label").mkdir()
    picture = cv2.imencode(".png", np.ones((2, 2), np.uint8))[1].tobytes()
    for i in range(MANY):
        (tmp_path / f"image/{i}.png").write_bytes(picture)
        (tmp_path / f"label/{i}.png").write_bytes(picture)
    write(tmp_path, *(f"image/{i}.png label/{i}.png" for i in range(MANY)))
    return tmp_path


def write(root, *lines):
    (root / "list.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root / "list.txt"


def long_list(length):
    """Pairs of a list of so many lines, without its files."""
    names = Texts(f"{i:08d}.{suffix}" for i in range(length) for suffix in ("jpg", "png"))
    folders = Texts(f"/data/{kind}/train/{i:04d}/" for i in range(length // 1000 + 1) for kind in ("images", "labels"))
    return Pairs(folders, lists.array("I", (i // 2 // 1000 * 2 + i % 2 for i in range(2 * length))), names, True)


# ---------------------------------------------------------------- a sequence of tuples


def test_a_list_behaves_as_a_list_of_tuples(root):
    pairs, expected = read_list(root / "list.txt", root, "train"), []
    for i in range(MANY):
        expected.append((str(root / f"image/{i}.png"), str(root / f"label/{i}.png")))
    assert pairs == expected and expected == pairs and pairs != expected[:-1] and pairs != expected[::-1]
    assert len(pairs) == MANY and list(pairs) == expected and list(reversed(pairs)) == expected[::-1]
    assert pairs[0] == pairs[-MANY] == pairs[np.int64(0)] == expected[0] and pairs[-1] == expected[-1]
    assert pairs[3:9:2] == expected[3:9:2] and pairs[:-3] == expected[:-3]
    assert expected[5] in pairs and pairs.index(expected[5]) == 5 and ("a", "b") not in pairs
    for index in (MANY, -MANY - 1):
        with pytest.raises(IndexError):
            pairs[index]
    assert pickle.loads(pickle.dumps(pairs)) == expected


def test_without_labels_the_second_is_none(root):
    pairs = read_list(write(root, "image/1.png", "image/0.png"), root, "test")
    assert [*pairs] == [(str(root / "image/1.png"), None), (str(root / "image/0.png"), None)]


@pytest.mark.parametrize("name", ["image/1.png", "./image//1.png", "image/../image/1.png", "{root}/image/1.png"])
@pytest.mark.parametrize("data_root", ["{root}", "", ".", None, "/", "{root}//image/.."])
def test_a_path_is_that_of_pathlib(root, monkeypatch, name, data_root):
    name, data_root = name.format(root=root), data_root and data_root.format(root=root)
    monkeypatch.chdir(root)
    if data_root == "/":
        name = f"{str(root)[1:]}/image/1.png"
    pairs = read_list(write(root, *[f"{name} {name}"] * MANY), data_root, "val")
    assert pairs[MANY - 1] == (str(Path(data_root or "") / name),) * 2


def test_a_list_is_read_block_by_block_to_its_end(root):
    entries = (root / "list.txt").read_text().splitlines() * (2 * 4096 // MANY + 1)
    pairs = read_list(write(root, *entries), root, "train")
    assert len(pairs) == len(entries) > 2 * 4096 and pairs[-1] == pairs[MANY - 1] != pairs[0]


def test_names_of_other_scripts_are_kept(root):
    (root / "bilder").mkdir()
    names = ["bilder/größe_東京.png", "bilder/😀.png"]
    for name in names:
        (root / name).write_bytes(b"1")
    assert [image for image, _ in read_list(write(root, *names * MANY), root, "test")][:2] == [str(root / n) for n in names]


# ---------------------------------------------------------------- files


def test_what_is_missing_in_a_large_folder_is_named_with_line_and_reason(root):
    lines = (root / "list.txt").read_text().splitlines()
    (root / "image/5.png").unlink()
    (root / "label/7.png").unlink()
    (root / "label/7.png").mkdir()
    (root / "image/9.png").unlink()
    (root / "image/9.png").symlink_to("nowhere")
    (root / "label/11.png").unlink()
    (root / "label/11.png").symlink_to("3.png")  # a file
    with pytest.raises(Mistake) as error:
        read_list(write(root, "# a comment", *lines), root, "train")
    said = str(error.value).split("\n  ")
    assert said[0].endswith(f"3 of the files it names do not exist under data_root = {root}:")
    expected = [f"line 7: {root}/image/5.png", f"line 9: {root}/label/7.png (a folder)"]
    expected.append(f"line 11: {root}/image/9.png (a link to nowhere, which is gone: prepare the data again)")
    assert said[1:] == expected


def test_of_a_folder_with_far_more_files_than_the_list_a_part_is_read(root, monkeypatch):
    seen, scandir = [], os.scandir

    @contextmanager
    def counted(path):
        with scandir(path) as entries:
            yield (seen.append(entry) or entry for entry in entries)

    monkeypatch.setattr(lists, "MANY", 1)
    monkeypatch.setattr(lists.os, "scandir", counted)
    for i in range(MANY, 10 * MANY):
        (root / f"image/{i}.png").touch()
    assert len(read_list(root / "list.txt", root, "train")) == MANY and len(seen) == 2 * MANY
    (root / "image/3.png").unlink()
    with pytest.raises(Mistake, match=r"1 of the files it names do not exist .*\n  line 4: .*image/3.png$"):
        read_list(root / "list.txt", root, "train")


def test_more_folders_than_tasks_are_all_looked_into(root):
    for k in range(lists.TASKS + 1):
        (root / f"{k}").mkdir()
        (root / f"{k}/{k}.png").touch()
    (root / f"{k}/{k}.png").unlink()
    with pytest.raises(Mistake, match=rf"1 of the files it names .*\n  line {k + 1}: {root}/{k}/{k}.png$"):
        read_list(write(root, *(f"{i}/{i}.png" for i in range(k + 1))), root, "test")


def test_a_wrong_root_names_all_files(root):
    with pytest.raises(
        Mistake, match=rf"{2 * MANY} of the files it names do not exist under data_root = {root}/none:\n  line 1: "
    ):
        read_list(root / "list.txt", root / "none", "train")


# ---------------------------------------------------------------- memory


def test_a_line_of_a_long_list_takes_less_than_60_bytes():
    pairs = long_list(20_000)
    assert pairs[12_345] == ("/data/images/train/0012/00012345.jpg", "/data/labels/train/0012/00012345.png")
    assert len(pickle.dumps(pairs)) < 60 * len(pairs) < 20 * len(pickle.dumps([*pairs]))


class Dirty(torch.utils.data.Dataset):
    """Reads the paths of a sample, and tells which memory of the worker is its own: bytes."""

    def __init__(self, data_list):
        self.data_list = data_list

    def __getitem__(self, indices):
        count = sum(len(path) for i in indices for path in self.data_list[i])
        own = re.search(r"Private_Dirty: +(\d+) kB", Path("/proc/self/smaps_rollup").read_text())[1]
        return torch.utils.data.get_worker_info().id, count, int(own) * 1024


def growth(data_list):
    """Bytes that each of two workers copies in an epoch after its first batch."""
    sampler = EpochSampler(len(data_list), 500, seed=0)
    batches = [[index for _, index in batch] for batch in sampler]
    first, last = {}, {}
    for worker, count, dirty in torch.utils.data.DataLoader(
        Dirty(data_list), None, sampler=batches, num_workers=2, multiprocessing_context="fork"
    ):
        assert count == 500 * 2 * 36
        first.setdefault(worker, dirty)
        last[worker] = dirty
    assert len(last) == 2
    return [last[worker] - first[worker] for worker in first]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_an_epoch_copies_no_memory_of_the_list_into_the_workers():
    pairs = long_list(70_000)
    arrays, tuples = max(growth(pairs)), min(growth([*pairs]))
    assert tuples > 10 * 2**20  # what the test is there to see
    assert arrays < tuples / 4  # a worker copies a mebibyte or two of other things, the more the older its process is


def test_the_order_of_an_epoch_is_that_of_earlier_versions():
    sampler = EpochSampler(10, 3, seed=5)
    sampler.set_epoch(2, 1, 4)
    assert [*sampler] == [  # as torch's permutation, taken as a list, gave them in earlier versions
        [(2, 8), (2, 7), (2, 5)],
        [(2, 1), (2, 6), (2, 2)],
        [(3, 6), (3, 2), (3, 8)],
        [(3, 1), (3, 9), (3, 5)],
    ]
    assert all(type(index) is int for batch in sampler for _, index in batch)


# ---------------------------------------------------------------- the check before the first step


def test_a_number_of_images_is_read_evenly_and_named(root, monkeypatch):
    data = SemData("train", root, root / "list.txt", classes=5)
    said, seen = [], []
    monkeypatch.setattr(SemData, "look", lambda self, index: seen.append(index) or (np.array([1, 1, 1, 1, 1, 0]), ""))
    check_data(data, None, count=4, say=said.append)
    assert sorted(seen) == [0, 10, 20, 30] and said == [f"{root}/list.txt: checked 4 of {MANY} images"]
    seen.clear(), said.clear()
    check_data(data, data, count=1000, say=said.append)
    assert sorted(seen) == sorted([*range(MANY)] * 2) and said == []


def test_a_sample_finds_faults_but_does_not_judge_the_list(root):
    (root / "label/10.png").write_bytes(b"no image")
    data = SemData("train", root, root / "list.txt", classes=5)
    check_data(data, count=3)  # 0, 13, 26
    with pytest.raises(Mistake, match=r"1 of 4 samples are faulty:\n.*label/10.png: cannot be decoded"):
        check_data(data, count=4)
    void = SemData("train", root, root / "list.txt", classes=5, ignore_label=1)
    check_data(void, count=3)
    (root / "label/10.png").write_bytes((root / "label/9.png").read_bytes())
    with pytest.raises(Mistake, match=f"every pixel of the {MANY} labels is ignore_label = 1"):
        check_data(void, count=MANY)


def test_a_long_check_says_how_long_it_takes(root, monkeypatch):
    data, said = SemData("train", root, root / "list.txt", classes=5), []
    absent = f"{root}/list.txt: no pixel of class 0, 2, 3, 4 (ignore_label is 255)"
    check_data(data, say=said.append)
    assert said == [absent]
    said.clear()
    monkeypatch.setattr(loader, "FIRST", 10)
    monkeypatch.setattr(loader, "SLOW_S", 0)
    check_data(data, say=said.append)
    assert said[0] == f"Checking the data: about 0 minutes for {MANY} images (`check_data 1000`: so many of each list)"
    assert said[1:] == [*(f"Checking the data: {MANY * i // 10}/{MANY}" for i in range(3, 11)), absent]


@pytest.mark.parametrize("value, expected", [("True", True), ("1", True), ("0", False), ("False", False), ("1000", 1000)])
def test_check_data_is_a_switch_or_a_number(value, expected):
    read = load_config("toy_pspnet18", ["check_data", value]).check_data
    assert read == expected and type(read) is type(expected)
    for wrong in ("-5", "some"):
        with pytest.raises(Mistake, match="TRAIN.check_data: "):
            load_config("toy_pspnet18", ["check_data", wrong])
