# ruff: noqa: F811  (`root` is a fixture)
import errno
import multiprocessing
import os
import signal
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import wait_for
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
    return sorted(Path(directory).glob("*.cache"))


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
    assert len(entries(tmp_path / "cache")) == 2  # the same images with and without label


def test_a_cached_read_is_a_read_only_map_of_the_file(root, tmp_path):
    image, label, ids = build(root, tmp_path / "cache")[0]
    assert not image.flags.owndata and not image.flags.writeable and not label.flags.writeable
    assert ids.tolist() == np.unique(picture(0)[1]).tolist()


def assert_whole(cache):
    """The cache holds what the fixture `root` has written."""
    for index in range(6):
        for got, expected in zip(cache[index], picture(index)):
            np.testing.assert_array_equal(got, expected)


def test_a_second_dataset_decodes_nothing_and_adds_no_file(root, tmp_path):
    seen, said = [], []
    assert_whole(build(root, tmp_path / "cache", seen, said))
    assert sorted(seen) == [0, 1, 2, 3, 4, 5] and len(entries(tmp_path / "cache")) == 1
    assert "decoding 6 of 6 images, 0.00 GB (" in said[0] and said[-1].endswith("6/6")
    seen, said = [], []
    assert_whole(build(root, tmp_path / "cache", seen, said))
    assert not seen and not said and len(entries(tmp_path / "cache")) == 1


def test_a_list_that_shares_images_with_another_adds_what_is_new(root, tmp_path):
    (root / "part.txt").write_text("image/4.png label/4.png\nimage/1.png label/1.png\n")
    pairs, seen = read_list(root / "part.txt", root, "train"), []
    C.build_cache(tmp_path / "cache", pairs, decode_of(pairs, []), lambda text: None)
    assert_whole(build(root, tmp_path / "cache", seen))
    assert sorted(seen) == [0, 2, 3, 5]


@pytest.mark.parametrize("name", ["image/3.png", "label/3.png"])
def test_a_changed_source_is_decoded_again(root, tmp_path, name):
    build(root, tmp_path / "cache")
    path = root / name
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    seen = []
    assert_whole(build(root, tmp_path / "cache", seen))
    assert seen == [3] and len(entries(tmp_path / "cache")) == 2


def damaged(root, directory, change):
    """What is decoded again after `change` was made to the bytes of the cache's file."""
    seen = []
    build(root, directory)
    (file,) = entries(directory)
    file.write_bytes(change(bytearray(file.read_bytes())))
    assert_whole(build(root, directory, seen))
    return seen


@pytest.mark.parametrize("kept", [0, 3, 10, 16, 50, 16 + 6 * C.SLOT.itemsize - 1])
def test_a_file_that_was_cut_off_in_its_slots_is_made_again(root, tmp_path, kept):
    assert len(damaged(root, tmp_path / "cache", lambda data: data[:kept])) == 6


def test_of_a_file_that_was_cut_off_the_pixels_it_still_has_are_used(root, tmp_path):
    size = 16 + 24 * 32 * 4 + 5
    assert len(damaged(root, tmp_path / "cache", lambda data: data[: -size - 300])) == 2
    assert len(damaged(root, tmp_path / "more", lambda data: data[:-1])) == 1


@pytest.mark.parametrize("place", range(16, 16 + 6 * C.SLOT.itemsize, 5))
def test_a_slot_with_a_wrong_byte_is_made_again(root, tmp_path, place):
    def change(data):
        data[place] ^= 255
        return data

    assert len(damaged(root, tmp_path / "cache", change)) == 1


@pytest.mark.parametrize("head", [b"samples2", b"\0" * 8, b"samples3" + b"\xff" * 8, b"samples3" + b"\0" * 8])
def test_a_file_with_another_head_is_made_again(root, tmp_path, head):
    assert len(damaged(root, tmp_path / "cache", lambda data: head + data[len(head) :])) == 6


def test_pixels_that_have_moved_are_refused(root, tmp_path):
    data = SemData("train", root, root / "train.txt", cache=tmp_path / "cache")
    (file,) = entries(tmp_path / "cache")
    whole = file.read_bytes()
    file.write_bytes(whole[:5000] + whole[5001:] + b"x")
    with pytest.raises(Mistake, match=f"{file}: damaged: delete it, and the next run decodes its images again"):
        [data[index] for index in range(6)]


def test_files_of_an_earlier_version_are_named_once_and_left_alone(root, tmp_path):
    (tmp_path / "cache").mkdir()
    for name in "ab":
        (tmp_path / f"cache/{name}.raw").write_bytes(b"old")
    said = []
    build(root, tmp_path / "cache", said=said)
    assert sum("2 .raw files are of an earlier version and no longer used: delete them" in line for line in said) == 1
    said = []
    build(root, tmp_path / "cache", said=said)
    assert not said and len(list((tmp_path / "cache").glob("*.raw"))) == 2


def test_a_pair_that_is_listed_twice_is_decoded_once(root, tmp_path):
    (root / "train.txt").write_text("image/0.png label/0.png\n" * 20)
    seen = []
    cache = build(root, tmp_path / "cache", seen)
    assert seen == [0]
    np.testing.assert_array_equal(cache[19][0], picture(0)[0])


def test_places_where_no_cache_can_lie_are_named(root, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Mistake, match="cache .*file/cache: the folder cannot be made: not a directory"):
        build(root, tmp_path / "file/cache")
    with pytest.raises(Mistake, match="cache /proc/cache: the folder cannot be made"):
        build(root, "/proc/cache")
    (tmp_path / "cache/x.cache").mkdir(parents=True)
    with pytest.raises(Mistake, match="cache/x.cache: is a directory"):
        build(root, tmp_path / "cache")


def test_a_cached_file_that_vanishes_is_named(root, tmp_path):
    data = SemData("train", root, root / "train.txt", cache=tmp_path / "cache")
    (file,) = entries(tmp_path / "cache")
    file.unlink()
    with pytest.raises(Mistake, match=f"{file}: no such file"):
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
    seen = []
    assert_whole(build(root, tmp_path / "cache", seen))
    assert set(seen) <= {3, 4, 5} and 3 in seen


def test_a_build_that_was_killed_loses_what_it_decoded_since_the_last_commit(root, tmp_path, monkeypatch):
    pairs = read_list(root / "train.txt", root, "train")
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    monkeypatch.setattr(C, "COMMIT_S", 0)

    def killed(index):
        if index == 3:
            wait_for(lambda: sum(len(C._read_slots(file)) for file in entries(tmp_path / "cache")) == 3)
            os.kill(os.getpid(), signal.SIGKILL)
        return decode_of(pairs, [])(index)

    process = multiprocessing.get_context("fork").Process(
        target=C.build_cache, args=(tmp_path / "cache", pairs, killed, lambda text: None)
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    seen = []
    assert_whole(build(root, tmp_path / "cache", seen))
    assert sorted(seen) == [3, 4, 5] and len(entries(tmp_path / "cache")) == 2


def test_a_build_that_decodes_nothing_leaves_no_file(root, tmp_path):
    for i in range(6):
        (root / f"image/{i}.png").write_text("no image")
    pairs = read_list(root / "train.txt", root, "train")
    with pytest.raises(Mistake):
        C.build_cache(tmp_path / "cache", pairs, decode_of(pairs, []), lambda text: None)
    assert not entries(tmp_path / "cache")


def test_a_full_disk_is_named_and_what_was_written_is_kept(root, tmp_path, monkeypatch):
    written, write = [], C._write

    def full(stream, array):
        written.append(array)
        if len(written) == 11:  # in the third pair, after the header
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(stream, array)

    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    monkeypatch.setattr(C, "_write", full)
    with pytest.raises(Mistake, match=r"\.cache: no space left on device"):
        build(root, tmp_path / "cache")
    monkeypatch.undo()
    seen = []
    assert_whole(build(root, tmp_path / "cache", seen))
    assert 2 in seen and len(seen) < 6


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


def test_the_announced_size_is_that_of_the_file(root, tmp_path):
    save(root / "label/1.png", picture(1)[1].astype(np.uint16) + 300)
    pairs = read_list(root / "train.txt", root, "train")
    build(root, tmp_path / "cache")
    (file,) = entries(tmp_path / "cache")
    assert abs(sum(C._bytes_of(*pair) for pair in pairs) - file.stat().st_size) <= 4096


def test_an_unreadable_image_is_named(root, tmp_path):
    (root / "image/2.png").write_text("no image")
    with pytest.raises(ValueError, match=r"image/2.png: cannot be decoded"):
        build(root, tmp_path / "cache")


def test_workers_share_the_cache(root, tmp_path):
    data = SemData("train", root, root / "train.txt", LAZY, cache=tmp_path / "cache")
    how = {"batch_size": 2, "sampler": [(0, i) for i in range(len(data))], "worker_init_fn": worker_init}
    loaders = [torch.utils.data.DataLoader(data, num_workers=n, **how) for n in (0, 2)]
    for alone, shared in zip(*loaders):
        assert torch.equal(alone[0], shared[0]) and torch.equal(alone[1], shared[1])


def test_prepare_builds_the_cache_that_training_then_reads(toy_options, narrow, tmp_path, capsys, monkeypatch):
    config, options = str(ROOT / "config/toy/toy_pspnet18.yaml"), [*toy_options, "epochs", "1", "evaluate", "True"]
    assert train.main(["--config", config, *options]) == 0
    plain = load_checkpoint(tmp_path / "exp/model/train_epoch_1.pth")["state_dict"]
    options += ["cache", str(tmp_path / "cache"), "save_path", str(tmp_path / "cached")]
    prepare.main(["cache", "--config", config, *options])
    assert len(entries(tmp_path / "cache")) == 2 and "train.txt and" in capsys.readouterr().out
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

        assert_whole(C.build_cache(tmp_path / "cache", pairs, decode, say=lambda text: None))

    processes = [multiprocessing.get_context("fork").Process(target=work) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert sorted(log.read_text().split()) == ["0", "1", "2", "3", "4", "5"]


def test_without_locks_two_processes_build_two_files_and_both_are_in_order(root, tmp_path, monkeypatch):
    monkeypatch.setattr(C.fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOLCK, "no locks")))
    pairs, processes = read_list(root / "train.txt", root, "train"), multiprocessing.get_context("fork")
    together = processes.Barrier(2)

    def work():
        def decode(index):
            if index == 0:
                together.wait(600)
            return read_image(pairs[index][0]), read_label(pairs[index][1])

        assert_whole(C.build_cache(tmp_path / "cache", pairs, decode, say=lambda text: None))

    both = [processes.Process(target=work) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0] and len(entries(tmp_path / "cache")) == 2
    seen = []
    assert_whole(build(root, tmp_path / "cache", seen))
    assert not seen


def test_relative_paths_are_those_of_the_folder_the_run_is_in(root, tmp_path, monkeypatch):
    build(root, tmp_path / "cache")
    seen = []
    monkeypatch.chdir(root)
    pairs = [(f"image/{i}.png", f"label/{i}.png") for i in range(6)]
    assert_whole(C.build_cache(tmp_path / "cache", pairs, decode_of(pairs, seen), lambda text: None))
    assert not seen
