import os
import pickle
import resource

import pytest
import torch

from util.checkpoint import (
    load_checkpoint,
    newest_checkpoint,
    position_of,
    prune_checkpoints,
    save_checkpoint,
    set_aside_checkpoints,
)


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


def test_every_flipped_bit_in_the_tensors_is_noticed(tmp_path):
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
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Attack()))
    for name in ("zip.pth", "plain.pth"):
        with pytest.raises(ValueError, match="refused.*could run code"):
            load_checkpoint(tmp_path / name)
    assert not (tmp_path / "ran").exists()


def test_missing_file_and_wrong_content_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"gone\.pth: no such checkpoint"):
        load_checkpoint(tmp_path / "gone.pth")
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
        with pytest.raises(OSError, match=r"a\.pth: could not be written.*earlier checkpoints are untouched"):
            save_checkpoint(a_state(2.0), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert load_checkpoint(path)["state_dict"]["weight"][0, 0] == 1.0
    assert [p.name for p in tmp_path.iterdir()] == ["a.pth"]


def test_newest_checkpoint_passes_over_damaged_files(tmp_path):
    for name, value in (("train_epoch_2", 2.0), ("train_epoch_10", 10.0), ("train_epoch_10_iter_5", 10.5)):
        save_checkpoint(a_state(value), tmp_path / f"{name}.pth")
    warnings = []
    assert newest_checkpoint(tmp_path, warnings.append)["state_dict"]["weight"][0, 0] == 10.5
    (tmp_path / "train_epoch_10_iter_5.pth").write_bytes(b"PK")
    assert newest_checkpoint(tmp_path, warnings.append)["state_dict"]["weight"][0, 0] == 10.0
    assert len(warnings) == 1 and "train_epoch_10_iter_5.pth" in warnings[0]
    assert newest_checkpoint(tmp_path / "empty", warnings.append) is None


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
    prune_checkpoints(run_folder, keep=2)
    newest = {f"train_epoch_{n}" for n in (10, 11, "11_iter_6", "11_iter_7")}
    assert names_in(run_folder) == newest | {"model_best", "train_epoch_final"}


def test_pruning_never_removes_the_only_good_one(run_folder):
    before = names_in(run_folder)
    for n in ("11", "11_iter_7"):
        damaged = bytearray((run_folder / f"train_epoch_{n}.pth").read_bytes())
        damaged[len(damaged) // 2] ^= 1
        (run_folder / f"train_epoch_{n}.pth").write_bytes(damaged)
    prune_checkpoints(run_folder, keep=1)
    assert names_in(run_folder) == before


def test_checkpoints_beyond_the_start_are_set_aside_and_half_written_ones_removed(run_folder):
    (run_folder / ".train_epoch_12.pth.123.tmp").touch()
    warnings, before = [], names_in(run_folder)
    set_aside_checkpoints(run_folder, (11, 5), warnings.append)
    aside = {"train_epoch_11_iter_6", "train_epoch_11_iter_7"}
    assert names_in(run_folder) == before - aside - {".train_epoch_12.pth.123.tmp"} | {f"{name}.pth.old" for name in aside}
    assert len(warnings) == 2 and position_of(run_folder / "train_epoch_11.pth") == (11, 0)


def test_position_is_read_from_the_name():
    assert position_of("a/train_epoch_7.pth") == (7, 0)
    assert position_of("train_epoch_7_iter_120.pth") == (7, 120)
