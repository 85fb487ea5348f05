"""Every layout of `tool/prepare.py` on a small tree with the real file names, and what it says of trees with faults."""
import hashlib
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from tool import prepare
from util.image import read_image, read_label
from util.log import report_errors

ROOT = Path(__file__).resolve().parents[1]
SIZE = 24, 32


def picture(seed, size=SIZE):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


def ids(values, size=SIZE):
    """A label map with vertical stripes of these ids."""
    return np.array(values, np.uint8)[np.arange(size[1]) * len(values) // size[1]][None].repeat(size[0], 0)


def put(path, array):
    """Write an image (RGB) or a label map, with the folders it needs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = array[..., ::-1] if array.ndim == 3 else array
    path.write_bytes(cv2.imencode(path.suffix, array)[1])
    return path


def snapshot(folder):
    """Every path below a folder with the hash of its bytes, and where links point."""
    return {str(path.relative_to(folder)): str(path.readlink()) if path.is_symlink() else path.is_dir() or
            hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.rglob("*"))}  # fmt: skip


def run(*args):
    """The program in this process: its exit status."""
    return report_errors(lambda: prepare.main([str(arg) for arg in args]))


def lines(path):
    return path.read_text().splitlines()


# ---- toy


def test_toy_is_the_same_bytes_twice(tmp_path):
    for name in ("one", "two"):
        assert run("toy", "--out", tmp_path / name, "--train", 3, "--val", 2, "--size", "48x64") == 0
    assert snapshot(tmp_path / "one") == snapshot(tmp_path / "two")


def test_toy_lists_name_its_files(tmp_path):
    run("toy", "--out", tmp_path, "--train", 3, "--val", 2, "--size", "48x64")
    assert lines(tmp_path / "list/val.txt") == [f"image/val/val_000{i}.png label/val/val_000{i}.png" for i in (0, 1)]
    assert len(lines(tmp_path / "list/train.txt")) == 3
    for line in lines(tmp_path / "list/train.txt"):
        image, label = (tmp_path / part for part in line.split())
        assert read_image(image).shape == (48, 64, 3) and read_label(label).shape == (48, 64)


def test_toy_scene_does_not_depend_on_how_many_there_are(tmp_path):
    run("toy", "--out", tmp_path / "few", "--train", 1, "--val", 1, "--size", "48x64")
    run("toy", "--out", tmp_path / "more", "--train", 2, "--val", 2, "--size", "48x64")
    more = snapshot(tmp_path / "more")
    assert all(more[name] == value for name, value in snapshot(tmp_path / "few").items() if name.endswith(".png"))


def test_toy_prints_the_row_baseline(tmp_path, capsys):
    run("toy", "--out", tmp_path, "--train", 3, "--val", 2, "--size", "48x64", "--seed", 5)
    assert "has mIoU 0." in capsys.readouterr().out


@pytest.mark.parametrize("wrong", [["--size", "192"], ["--size", "8x8"], ["--train", "0"], ["--seed", "-1"]])
def test_toy_refuses_a_wrong_number(tmp_path, wrong, capsys):
    with pytest.raises(SystemExit):
        run("toy", "--out", tmp_path, *wrong)
    assert wrong[0] in capsys.readouterr().err and not any(tmp_path.iterdir())


# ---- camvid


@pytest.fixture
def camvid(tmp_path):
    """The SegNet tutorial's layout: three training frames, two for validation."""
    source = tmp_path / "SegNet" / "CamVid"
    names = {"train": ["0001TP_006690", "0006R0_f00930", "Seq05VD_f00000"], "val": ["0016E5_07959", "0016E5_07961"]}
    for split, stems in names.items():
        for i, stem in enumerate(stems):
            put(source / split / f"{stem}.png", picture(i))
            put(source / f"{split}annot" / f"{stem}.png", ids([*range(12)] if i == 0 else [3, 4, 11]))
        entries = (f"/SegNet/CamVid/{split}/{s}.png /SegNet/CamVid/{split}annot/{s}.png" for s in stems)
        (source / f"{split}.txt").write_text("\n".join(entries) + "\n\n")
    return source


def test_camvid_becomes_lists_linked_images_and_labels(camvid, tmp_path):
    before, out = snapshot(camvid), tmp_path / "out"
    assert run("camvid", "--source", camvid, "--out", out) == 0
    assert lines(out / "list/val.txt") == [f"image/val/{s}.png label/val/{s}.png" for s in ("0016E5_07959", "0016E5_07961")]
    assert len(lines(out / "list/train.txt")) == 3 and not (out / "list/test.txt").exists()
    image = out / "image/train/0001TP_006690.png"
    assert image.readlink() == camvid / "train/0001TP_006690.png"
    assert set(np.unique(read_label(out / "label/train/0001TP_006690.png"))) == {*range(11), 255}
    assert (read_label(out / "label/val/0016E5_07961.png") == np.where(ids([3, 4, 11]) == 11, 255, ids([3, 4, 11]))).all()
    assert snapshot(camvid) == before


def test_camvid_copies_when_asked(camvid, tmp_path):
    out = tmp_path / "out"
    run("camvid", "--source", camvid, "--out", out)
    assert run("camvid", "--source", camvid, "--out", out, "--copy") == 0
    image = out / "image/val/0016E5_07959.png"
    assert not image.is_symlink() and image.read_bytes() == (camvid / "val/0016E5_07959.png").read_bytes()


def test_camvid_with_a_test_split_gets_its_list(camvid, tmp_path):
    put(camvid / "test/0001TP_008550.png", picture(9))
    put(camvid / "testannot/0001TP_008550.png", ids([0, 1]))
    (camvid / "test.txt").write_text("/SegNet/CamVid/test/0001TP_008550.png /SegNet/CamVid/testannot/0001TP_008550.png\n")
    run("camvid", "--source", camvid, "--out", tmp_path / "out")
    assert lines(tmp_path / "out/list/test.txt") == ["image/test/0001TP_008550.png label/test/0001TP_008550.png"]


@pytest.mark.parametrize("copy", [[], ["--copy"]])
def test_a_second_run_changes_nothing(camvid, tmp_path, copy):
    out = tmp_path / "out"
    run("camvid", "--source", camvid, "--out", out, *copy)
    first = snapshot(out)
    assert run("camvid", "--source", camvid, "--out", out, *copy) == 0
    assert snapshot(out) == first


def test_an_interrupted_run_is_completed_by_the_next(camvid, tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "out"
    run("camvid", "--source", camvid, "--out", whole)
    run("camvid", "--source", camvid, "--out", out)
    (out / "image/train/0001TP_006690.png").unlink()
    (out / "label/val/0016E5_07961.png").write_bytes(b"")
    (out / "list/val.txt").unlink()
    assert run("camvid", "--source", camvid, "--out", out) == 0
    assert snapshot(out) == snapshot(whole)


def test_the_summary_counts_images_and_classes(camvid, tmp_path, capsys):
    run("camvid", "--source", camvid, "--out", tmp_path / "out")
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["images", "3", "2"] in rows and ["id", "class", "train", "val"] in rows
    assert sum(float(row[2]) for row in rows if row and row[0].isdigit()) == pytest.approx(100, abs=0.06)


def test_missing_parts_are_all_named(camvid, tmp_path, capsys):
    (camvid / "val.txt").unlink()
    (camvid / "trainannot").rename(camvid / "labels")
    assert run("camvid", "--source", camvid, "--out", tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and str(camvid) in error
    assert "trainannot/, val.txt missing" in error and not (tmp_path / "out").exists()


def test_a_source_that_is_not_there_is_named(tmp_path, capsys):
    assert run("camvid", "--source", tmp_path / "nowhere", "--out", tmp_path / "out") == 1
    assert f"{tmp_path / 'nowhere'}: no such folder" in capsys.readouterr().err


def test_a_source_that_is_the_output_is_refused(camvid, tmp_path, capsys):
    (tmp_path / "link").symlink_to(camvid)
    for out in (camvid, camvid / "sub", tmp_path / "link"):
        before = snapshot(camvid)
        assert run("camvid", "--source", camvid, "--out", out) == 1
        assert "lies in the source" in capsys.readouterr().err and snapshot(camvid) == before


def spoil_empty_image(source):
    (source / "train/0006R0_f00930.png").write_bytes(b"")


def spoil_cut_image(source):
    path = source / "train/0006R0_f00930.png"
    path.write_bytes(path.read_bytes()[:-200])


def spoil_missing_image(source):
    (source / "train/0006R0_f00930.png").unlink()


def spoil_missing_label(source):
    (source / "trainannot/0006R0_f00930.png").unlink()


def spoil_size(source):
    put(source / "trainannot/0006R0_f00930.png", ids([1, 2], (12, 16)))


def spoil_range(source):
    put(source / "trainannot/0006R0_f00930.png", ids([1, 77]))


def spoil_colour(source):
    put(source / "trainannot/0006R0_f00930.png", picture(1))


FAULTS = [
    (spoil_empty_image, "train/0006R0_f00930.png: the file is empty"),
    (spoil_cut_image, "train/0006R0_f00930.png: cannot be decoded"),
    (spoil_missing_image, "train/0006R0_f00930.png: no such file"),
    (spoil_missing_label, "trainannot/0006R0_f00930.png: no such file"),
    (spoil_size, "trainannot/0006R0_f00930.png: 16 x 12, but its image 0006R0_f00930.png is 32 x 24"),
    (spoil_range, "trainannot/0006R0_f00930.png: ids out of range: 77 (384 pixels); expected 0..11"),
    (spoil_colour, "trainannot/0006R0_f00930.png: a colour mask"),
]


@pytest.mark.parametrize("spoil, message", FAULTS, ids=[spoil.__name__ for spoil, _ in FAULTS])
def test_a_bad_sample_stops_the_run_and_is_named(camvid, tmp_path, capsys, spoil, message):
    spoil(camvid)
    assert run("camvid", "--source", camvid, "--out", tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert message in error and "1 of 5 samples cannot be used" in error and "Traceback" not in error
    assert not (tmp_path / "out/list").exists()


@pytest.mark.parametrize("spoil, message", FAULTS, ids=[spoil.__name__ for spoil, _ in FAULTS])
def test_skip_bad_leaves_it_out_and_says_so(camvid, tmp_path, capsys, spoil, message):
    spoil(camvid)
    out = tmp_path / "out"
    assert run("camvid", "--source", camvid, "--out", out, "--skip-bad") == 0
    assert message in (out / "skipped.txt").read_text()
    assert "1 left out" in capsys.readouterr().out
    assert [line.split("/")[-1] for line in lines(out / "list/train.txt")] == ["0001TP_006690.png", "Seq05VD_f00000.png"]


def test_a_clean_run_takes_the_old_skipped_file_away(camvid, tmp_path):
    out = tmp_path / "out"
    spoil_size(camvid)
    run("camvid", "--source", camvid, "--out", out, "--skip-bad")
    put(camvid / "trainannot/0006R0_f00930.png", ids([1]))
    assert run("camvid", "--source", camvid, "--out", out) == 0
    assert not (out / "skipped.txt").exists() and len(lines(out / "list/train.txt")) == 3


def test_program_runs_from_any_folder(tmp_path):
    done = subprocess.run([sys.executable, ROOT / "tool/prepare.py", "camvid", "--source", tmp_path / "nowhere"],
                          cwd=tmp_path, capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 1 and done.stderr.startswith("error: ") and "Traceback" not in done.stderr
