import errno
import os
import pickle
import random
import resource
from pathlib import Path

import pytest
import torch

from util import checkpoint
from util.checkpoint import (
    Damaged,
    load_checkpoint,
    newest_checkpoint,
    position_of,
    prune_checkpoints,
    save_checkpoint,
    set_aside,
)
from util.common import Mistake, write_aside

EPOCH = 20  # iterations of an epoch


def a_state(value=1.0):
    return {"epoch": 3, "state_dict": {"weight": torch.full((50, 20), value), "bias": torch.zeros(50)}, "state": {"step": 2}}


def test_what_is_saved_comes_back(tmp_path):
    save_checkpoint(a_state(), tmp_path / "a.pth")
    back = load_checkpoint(tmp_path / "a.pth")
    assert back["epoch"] == 3 and back["state"] == {"step": 2}
    assert torch.equal(back["state_dict"]["weight"], a_state()["state_dict"]["weight"])
    assert [p.name for p in tmp_path.iterdir()] == ["a.pth"]


def test_module_prefix_is_removed_when_read(tmp_path):
    torch.save({"epoch": 1, "state_dict": {"module.weight": torch.ones(2)}}, tmp_path / "a.pth")
    assert list(load_checkpoint(tmp_path / "a.pth")["state_dict"]) == ["weight"]


def test_flipped_bits_in_the_tensors_are_noticed(tmp_path):
    path = tmp_path / "a.pth"
    save_checkpoint(a_state(), path)
    sound = path.read_bytes()
    tensor = sound.index(torch.full((50, 20), 1.0).numpy().tobytes())
    for position in range(tensor, tensor + 4000, 499):
        damaged = bytearray(sound)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="damaged file"):
            load_checkpoint(path)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 0.99])
def test_truncated_file_is_refused(tmp_path, share):
    path = tmp_path / "a.pth"
    save_checkpoint(a_state(), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ValueError, match=r"a\.pth: "):
        load_checkpoint(path)


def test_checkpoint_that_would_run_code_is_refused(tmp_path):
    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"state_dict": Attack()}, tmp_path / "zip.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Attack(), protocol=2))
    for name in ("zip.pth", "plain.pth"):
        with pytest.raises(ValueError, match="refused.*could run code"):
            load_checkpoint(tmp_path / name)
    assert not (tmp_path / "ran").exists()


def test_missing_file_and_wrong_content_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"gone\.pth: no such checkpoint"):
        load_checkpoint(tmp_path / "gone.pth")
    with pytest.raises(ValueError, match=r"street\.pt2: a file of tool/export.py, which can only predict; give the checkpoint"):
        load_checkpoint(tmp_path / "street.pt2")
    torch.save(torch.ones(3), tmp_path / "t.pth")
    with pytest.raises(ValueError, match="expected a dict"):
        load_checkpoint(tmp_path / "t.pth")


def test_full_disk_leaves_the_previous_checkpoint(tmp_path):
    path = tmp_path / "a.pth"
    save_checkpoint(a_state(1.0), path)
    import signal

    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(Mistake, match=r"a\.pth: could not be written.*what was there is untouched"):
            save_checkpoint(a_state(2.0), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert load_checkpoint(path)["state_dict"]["weight"][0, 0] == 1.0
    assert [p.name for p in tmp_path.iterdir()] == ["a.pth"]


def test_every_damage_to_the_directory_of_the_archive_is_a_mistake(tmp_path):
    path = tmp_path / "a.pth"
    save_checkpoint(a_state(), path)
    sound = path.read_bytes()
    first = sound.index(b"PK\x01\x02")  # the central directory; then its end records
    directory, rng, refused = range(8 * first, 8 * len(sound)), random.Random(0), 0
    for bits in [*zip(directory), *(rng.sample(directory, 3) for _ in range(2000))]:
        damaged = bytearray(sound)
        for bit in bits:
            damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            content = load_checkpoint(path)
        except Damaged as error:
            assert str(path) in str(error)
            refused += 1
        else:  # a bit that means nothing, such as one of a date
            assert all(torch.equal(content["state_dict"][key], tensor) for key, tensor in a_state()["state_dict"].items())
            assert content.keys() == a_state().keys() and content["epoch"] == a_state()["epoch"]
    assert refused > 500


@pytest.mark.parametrize(
    "content, words", [(b"\x89PNG\r\n\x1a\n" + b"x" * 99, "PNG"), (b"", "b''"), (b"\x80", "not a readable")]
)
def test_file_of_another_kind_is_refused_without_talk_of_code(tmp_path, content, words):
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(Damaged, match="not a readable checkpoint") as error:
        load_checkpoint(tmp_path / "a.pth")
    assert words in str(error.value) and "could run code" not in str(error.value)


def test_newest_checkpoint_passes_over_damaged_files(tmp_path):
    for name, value in (("train_epoch_2", 2.0), ("train_epoch_10", 10.0), ("train_epoch_10_iter_5", 10.5)):
        save_checkpoint(a_state(value), tmp_path / f"{name}.pth")
    warnings = []
    assert newest_checkpoint(tmp_path, EPOCH, warnings.append)[1]["state_dict"]["weight"][0, 0] == 10.5
    (tmp_path / "train_epoch_10_iter_5.pth").write_bytes(b"PK")
    path, content = newest_checkpoint(tmp_path, EPOCH, warnings.append)
    assert path.name == "train_epoch_10.pth" and content["state_dict"]["weight"][0, 0] == 10.0
    assert len(warnings) == 1 and "train_epoch_10_iter_5.pth" in warnings[0]
    assert newest_checkpoint(tmp_path / "empty", EPOCH, warnings.append) is None


def test_the_best_is_the_newest_checkpoint_where_no_other_is_left(tmp_path):
    save_checkpoint(a_state(), tmp_path / "train_epoch_2.pth")
    save_checkpoint(a_state(), tmp_path / "model_best.pth")
    assert newest_checkpoint(tmp_path, EPOCH, pytest.fail)[0].name == "train_epoch_2.pth"
    (tmp_path / "train_epoch_2.pth").write_bytes(b"PK")
    assert newest_checkpoint(tmp_path, EPOCH, [].append)[0].name == "model_best.pth"
    (tmp_path / "train_epoch_2.pth").unlink()
    assert newest_checkpoint(tmp_path, EPOCH, pytest.fail)[0].name == "model_best.pth"
    (tmp_path / "model_best.pth").write_bytes(b"PK")
    with pytest.raises(Mistake, match="every checkpoint is damaged"):
        newest_checkpoint(tmp_path, EPOCH, print)


def test_nothing_but_damaged_checkpoints_is_a_mistake_that_lists_them(tmp_path):
    for n in (1, 2):
        (tmp_path / f"train_epoch_{n}.pth").write_bytes(b"PK")
    with pytest.raises(Mistake, match="every checkpoint is damaged") as error:
        newest_checkpoint(tmp_path, EPOCH, print)
    assert "train_epoch_1.pth" in str(error.value) and "train_epoch_2.pth" in str(error.value)


@pytest.mark.parametrize(
    "error", [OSError(errno.EIO, "Input/output error"), PermissionError(errno.EACCES, "Permission denied"), MemoryError()]
)
def test_an_error_of_reading_is_not_taken_for_damage(tmp_path, monkeypatch, error):
    for n in (1, 2):
        save_checkpoint(a_state(), tmp_path / f"train_epoch_{n}.pth")
    read = Path.read_bytes

    def fail(path):
        if path.name == "train_epoch_2.pth":
            raise error
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(Mistake, match=r"train_epoch_2\.pth: cannot be read \(.+\)") as caught:
        newest_checkpoint(tmp_path, EPOCH, pytest.fail)
    assert not isinstance(caught.value, Damaged)


def test_epochs_and_iterations_have_one_order(tmp_path):
    names = ["train_epoch_1_iter_20", "train_epoch_2", "train_iter_45", "train_epoch_2_iter_6", "train_iter_100"]
    for name in reversed(names):
        (tmp_path / f"{name}.pth").touch()
    assert [path.stem for path in checkpoint.list_checkpoints(tmp_path, EPOCH)] == names


@pytest.fixture
def run_folder(tmp_path):
    """A folder with checkpoints of several epochs, of the epoch that runs, and names that people gave."""
    names = [f"train_epoch_{n}" for n in (1, 2, 9, 10, 11, "10_iter_3", "11_iter_5", "11_iter_6", "11_iter_7", "final")]
    for name in (*names, "model_best"):
        save_checkpoint(a_state(), tmp_path / f"{name}.pth")
    return tmp_path


def names_in(folder):
    return {path.name.removesuffix(".pth") for path in folder.iterdir()}


def test_pruning_keeps_the_newest_and_the_best(run_folder):
    prune_checkpoints(run_folder, 2, EPOCH)
    newest = {f"train_epoch_{n}" for n in (10, 11, "11_iter_6", "11_iter_7")}
    assert names_in(run_folder) == newest | {"model_best", "train_epoch_final"}


def test_pruning_never_removes_the_only_good_one(run_folder):
    before = names_in(run_folder)
    for n in ("11", "11_iter_7"):
        damaged = bytearray((run_folder / f"train_epoch_{n}.pth").read_bytes())
        damaged[len(damaged) // 2] ^= 1
        (run_folder / f"train_epoch_{n}.pth").write_bytes(damaged)
    prune_checkpoints(run_folder, 1, EPOCH)
    assert names_in(run_folder) == before


def test_checkpoints_beyond_the_start_are_moved_aside_and_half_written_ones_deleted(run_folder):
    (run_folder / ".train_epoch_12.pth.123.tmp").touch()
    (run_folder / "metrics.jsonl").write_text("{}\n")
    before = names_in(run_folder) - {".train_epoch_12.pth.123.tmp"}
    assert set_aside(run_folder, None, (11 * EPOCH + 5, False), EPOCH) == run_folder / "earlier-1"
    aside = {"train_epoch_11_iter_6", "train_epoch_11_iter_7"}
    assert names_in(run_folder) == before - aside | {"earlier-1"} and names_in(run_folder / "earlier-1") == aside | {
        "metrics.jsonl"
    }
    assert set_aside(run_folder, None, (11 * EPOCH + 5, False), EPOCH) is None


def test_a_best_checkpoint_from_beyond_the_start_is_moved_too(tmp_path):
    save_checkpoint(a_state() | {"iteration": 7}, tmp_path / "model_best.pth")
    assert set_aside(tmp_path, None, (7, True), EPOCH) is None
    assert set_aside(tmp_path, None, (6, True), EPOCH) == tmp_path / "earlier-1"
    assert names_in(tmp_path / "earlier-1") == {"model_best"} and names_in(tmp_path) == {"earlier-1"}


def test_an_earlier_run_is_moved_as_a_whole_and_nothing_else(run_folder):
    mine = {"mine.txt", "notes.pth", "train-new.log"}
    for name in (*mine, "train-old.log", "metrics.jsonl", "config.yaml", "events.out.tfevents.1.host"):
        (run_folder / name).touch()
    assert set_aside(run_folder, run_folder / "train-new.log") == run_folder / "earlier-1"
    assert {path.name for path in run_folder.iterdir()} == mine | {"train_epoch_final.pth", "earlier-1"}
    (run_folder / "train_iter_3.pth").touch()
    assert set_aside(run_folder, None) == run_folder / "earlier-2"
    (run_folder / "train-failed.log").touch()  # a start that failed leaves a log and no run
    assert set_aside(run_folder, None) is None


def test_position_is_read_from_the_name():
    assert position_of("a/train_epoch_7.pth", EPOCH) == (140, True)
    assert position_of("train_epoch_7_iter_12.pth", EPOCH) == (152, False)
    assert position_of("train_iter_12.pth", EPOCH) == (12, True)


def test_position_of_a_file_of_a_run_that_counted_otherwise_is_what_the_file_states(tmp_path):
    """Epochs of 3 iterations, then iterations; iterations of 6 images, then of half as many."""
    for name in ("train_epoch_2", "train_epoch_1_iter_2", "train_iter_6"):
        save_checkpoint(a_state() | {"iteration": 5 if "iter_2" in name else 6, "data_iters": 3}, tmp_path / f"{name}.pth")
    assert position_of(tmp_path / "train_epoch_2.pth", None) == (6, True)
    assert position_of(tmp_path / "train_epoch_1_iter_2.pth", None) == (5, False)
    assert position_of(tmp_path / "train_iter_6.pth", 6) == (12, True)
    assert set_aside(tmp_path, None, (6, True), None) is None


def test_a_file_that_is_not_of_a_run_stays(tmp_path):
    for name in (".notes.tmp", ".toy.onnx.1a2b.tmp", ".train_epoch_2.pth.1a2b.tmp", ".config.yaml.1a2b.tmp"):
        (tmp_path / name).touch()
    assert set_aside(tmp_path, None) is None
    assert {path.name for path in tmp_path.iterdir()} == {".notes.tmp", ".toy.onnx.1a2b.tmp"}


def test_two_writers_of_one_file_are_not_in_each_others_way(tmp_path):
    with write_aside(tmp_path / "a") as first, write_aside(tmp_path / "a") as second:
        first.write_text("first")
        second.write_text("second")
    assert [path.name for path in tmp_path.iterdir()] == ["a"] and (tmp_path / "a").read_text() == "first"
