# ruff: noqa: F811  (`root` is a fixture)
import json
import multiprocessing
import os
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from test_dataset import AUGMENT, picture, root, save  # noqa: F401

from tool import prepare, train
from util import cache as C
from util import transform as T
from util.checkpoint import load_checkpoint
from util.common import Mistake
from util.config import ROOT
from util.dataset import SemData, read_list, worker_init
from util.image import read_image, read_label

LAZY = T.Compose(AUGMENT.ops, lazy=True)


def decode_of(pairs, seen):
    def decode(index):
        seen.append(index)
        image, label = pairs[index]
        return read_image(image), read_label(label)

    return decode


def build(root, directory, seen=None, said=None):
    pairs = read_list(root / "train.txt", root, "train")
    say = (lambda text: None) if said is None else said.append
    return C.build_cache(directory, pairs, decode_of(pairs, [] if seen is None else seen), say)


def entries(directory):
    return sorted(Path(directory).glob("*.raw"))


@pytest.mark.parametrize("transform", [None, AUGMENT, LAZY])
def test_cached_samples_are_the_decoded_ones(root, tmp_path, transform):
    save(root / "label/1.png", picture(1)[1].astype(np.uint16) + 300)  # one of 16 bits
    plain = SemData("train", root, root / "train.txt", transform, classes=400)
    cached = SemData("train", root, root / "train.txt", transform, classes=400, cache=tmp_path / "cache")
    for index in range(6):
        for epoch in range(3):
            for expected, got in zip(plain[epoch, index], cached[epoch, index]):
                assert expected.dtype == got.dtype
                np.testing.assert_array_equal(np.asarray(expected), np.asarray(got))


def test_images_of_odd_size_and_lists_without_labels_are_cached(root, tmp_path):
    image, label = picture(0, 23, 31)
    save(root / "image/0.png", image)
    save(root / "label/0.png", label.astype(np.uint16) + 999)
    data = SemData("train", root, root / "train.txt", cache=tmp_path / "cache")
    np.testing.assert_array_equal(data[0][0], image)
    np.testing.assert_array_equal(data[0][1], label.astype(np.uint16) + 999)
    test = SemData("test", root, root / "train.txt", cache=tmp_path / "cache")
    np.testing.assert_array_equal(test[0][0], image)
    assert not test[0][1].any() and test[0][1].shape == (23, 31)
    assert len(entries(tmp_path / "cache")) == 12  # the same images with and without label


def test_a_cached_read_is_a_read_only_map_of_the_file(root, tmp_path):
    image, label, ids = C.read_cached(build(root, tmp_path / "cache")[0])
    assert not image.flags.owndata and not image.flags.writeable and not label.flags.writeable
    assert ids == np.unique(picture(0)[1]).tolist()


def test_a_second_dataset_decodes_nothing(root, tmp_path):
    seen, said = [], []
    first = build(root, tmp_path / "cache", seen, said)
    assert sorted(seen) == [0, 1, 2, 3, 4, 5]
    assert "decoding 6 of 6 images, 0.00 GB (" in said[0] and said[-1].endswith("6/6")
    seen, said = [], []
    assert build(root, tmp_path / "cache", seen, said) == first
    assert not seen and not said


@pytest.mark.parametrize("name", ["image/3.png", "label/3.png"])
def test_a_changed_source_is_decoded_again(root, tmp_path, name):
    build(root, tmp_path / "cache")
    path = root / name
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    seen = []
    build(root, tmp_path / "cache", seen)
    assert seen == [3] and len(entries(tmp_path / "cache")) == 6


@pytest.mark.parametrize("kept", [0, 10, 500, -1])
def test_a_file_that_was_cut_off_is_made_again(root, tmp_path, kept):
    file = Path(build(root, tmp_path / "cache")[2])
    whole = file.read_bytes()
    file.write_bytes(whole[:kept])
    seen = []
    build(root, tmp_path / "cache", seen)
    assert seen == [2] and file.read_bytes() == whole


@pytest.mark.parametrize("change", [{"format": 1}, {"format": None}, {"source": None}, {"h": 1}])
def test_a_file_of_another_format_is_made_again(root, tmp_path, change):
    file = Path(build(root, tmp_path / "cache")[2])
    whole = file.read_bytes()
    head, _, rest = whole.partition(b"\n")
    changed = json.loads(head) | change
    text = json.dumps({key: value for key, value in changed.items() if value is not None})
    file.write_bytes(text.ljust(len(head)).encode() + b"\n" + rest)
    seen = []
    build(root, tmp_path / "cache", seen)
    assert seen == [2] and file.read_bytes() == whole


@pytest.mark.parametrize("head", [b"[]", b"null", b"7", b'"x"', b"{}"])
def test_a_file_whose_header_is_something_else_is_made_again(root, tmp_path, head):
    file = Path(build(root, tmp_path / "cache")[2])
    file.write_bytes(head + b"\n")
    seen = []
    build(root, tmp_path / "cache", seen)
    assert seen == [2]


def test_a_pair_that_is_listed_twice_is_decoded_once(root, tmp_path):
    (root / "train.txt").write_text("image/0.png label/0.png\n" * 20)
    seen = []
    assert len(build(root, tmp_path / "cache", seen)) == 20 and seen == [19]


def test_places_where_no_cache_can_lie_are_named(root, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Mistake, match="file/cache/.*raw: not a directory"):
        build(root, tmp_path / "file/cache")
    with pytest.raises(Mistake, match="cache /proc/cache: the folder cannot be made"):
        build(root, "/proc/cache")
    file = Path(build(root, tmp_path / "cache")[1])
    file.unlink()
    file.mkdir()
    with pytest.raises(Mistake, match=f"{file}: is a directory"):
        build(root, tmp_path / "cache")


def test_a_cached_file_that_vanishes_is_named(root, tmp_path):
    data = SemData("train", root, root / "train.txt", cache=tmp_path / "cache")
    Path(data.cached[1]).unlink()
    with pytest.raises(Mistake, match=f"{data.cached[1]}: no such file"):
        data[1]


def test_a_build_that_was_stopped_goes_on_where_it_was(root, tmp_path, monkeypatch):
    pairs = read_list(root / "train.txt", root, "train")
    monkeypatch.setattr(os, "cpu_count", lambda: 1)

    def stopped(index):
        if index == 3:
            raise KeyboardInterrupt
        return decode_of(pairs, [])(index)

    with pytest.raises(KeyboardInterrupt):
        C.build_cache(tmp_path / "cache", pairs, stopped, say=lambda text: None)
    done = len(entries(tmp_path / "cache"))
    assert 3 <= done < 6
    seen = []
    build(root, tmp_path / "cache", seen)
    assert 3 in seen and len(seen) == 6 - done


def test_a_bad_label_stops_the_build_with_its_name(root, tmp_path):
    label = picture(4)[1]
    label[0, 0] = 9
    save(root / "label/4.png", label)
    with pytest.raises(ValueError, match=r"label/4.png: label ids outside 0..4 .*: 9 \(1 pixels\)"):
        SemData("train", root, root / "train.txt", classes=5, cache=tmp_path / "cache")


def test_ids_are_checked_on_every_read_against_the_classes_of_this_run(root, tmp_path):
    SemData("train", root, root / "train.txt", classes=5, cache=tmp_path / "cache")
    with pytest.raises(ValueError, match=r"label/0.png: label ids outside 0..2 that are not ignore_label = 3: 4 \("):
        SemData("train", root, root / "train.txt", classes=3, ignore_label=3, cache=tmp_path / "cache")[0]


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(root, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(C.shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 1000, 1000))
    seen = []
    with pytest.raises(ValueError, match=r"cache .*cache: 6 decoded images need 0.00 GB, 0.00 GB are free: choose a directory"):
        build(root, tmp_path / "cache", seen)
    assert not seen and not entries(tmp_path / "cache")


def test_the_announced_size_is_that_of_the_files(root, tmp_path):
    save(root / "label/1.png", picture(1)[1].astype(np.uint16) + 300)
    pairs = read_list(root / "train.txt", root, "train")
    sizes = [Path(file).stat().st_size for file in build(root, tmp_path / "cache")]
    for pair, size in zip(pairs, sizes):
        assert abs(C._bytes_of(*pair) - size) <= 192  # the header


def test_an_unreadable_image_is_named(root, tmp_path):
    (root / "image/2.png").write_text("no image")
    with pytest.raises(ValueError, match=r"image/2.png: cannot be decoded"):
        build(root, tmp_path / "cache")


def test_workers_share_the_cache(root, tmp_path):
    data = SemData("train", root, root / "train.txt", LAZY, cache=tmp_path / "cache")
    loaders = [torch.utils.data.DataLoader(data, batch_size=2, num_workers=n, worker_init_fn=worker_init) for n in (0, 2)]
    for alone, shared in zip(*loaders):
        assert torch.equal(alone[0], shared[0]) and torch.equal(alone[1], shared[1])


def test_prepare_builds_the_cache_that_training_then_reads(toy_options, tmp_path, capsys, monkeypatch):
    config, options = str(ROOT / "config/toy/toy_pspnet18.yaml"), [*toy_options, "epochs", "1", "evaluate", "True"]
    assert train.main(["--config", config, *options]) == 0
    plain = load_checkpoint(tmp_path / "exp/model/train_epoch_1.pth")["state_dict"]
    options += ["cache", str(tmp_path / "cache"), "save_path", str(tmp_path / "cached")]
    prepare.main(["cache", "--config", config, *options])
    assert len(entries(tmp_path / "cache")) == 18 and "train.txt and" in capsys.readouterr().out
    monkeypatch.setattr(SemData, "_decode", None)  # nothing is left to decode
    assert train.main(["--config", config, *options]) == 0
    cached = load_checkpoint(tmp_path / "cached/train_epoch_1.pth")["state_dict"]
    assert all(torch.equal(cached[name], plain[name]) for name in plain)


def test_prepare_says_where_to_set_the_folder_of_the_cache(toy_options):
    with pytest.raises(ValueError, match="DATA.cache: no folder is set"):
        prepare.main(["cache", "--config", str(ROOT / "config/toy/toy_pspnet18.yaml"), *toy_options])


def test_of_two_processes_one_builds_and_the_other_waits(root, tmp_path):
    pairs = read_list(root / "train.txt", root, "train")
    log = tmp_path / "log"

    def work():
        def decode(index):
            with log.open("a") as stream:
                stream.write(f"{index}\n")
            return read_image(pairs[index][0]), read_label(pairs[index][1])

        assert len(C.build_cache(tmp_path / "cache", pairs, decode, say=lambda text: None)) == 6

    processes = [multiprocessing.get_context("fork").Process(target=work) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert sorted(log.read_text().split()) == ["0", "1", "2", "3", "4", "5"]
