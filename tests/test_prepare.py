"""Every public data set of `tool/prepare.py` on a small tree with the real file names, and the messages for faults."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from folders import SIZE, ids, lines, picture, put, run, snapshot
from PIL import Image

from util.config import ROOT
from util.image import read_image, read_label

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


def test_toy_prints_the_baseline_of_rows(tmp_path, capsys):
    run("toy", "--out", tmp_path, "--train", 3, "--val", 2, "--size", "48x64", "--seed", 5)
    assert "most frequent class of each row: mIoU 0." in capsys.readouterr().out


@pytest.mark.parametrize(
    "wrong",
    [
        ["--size", "192"],
        ["--size", "8x8"],
        ["--size", "99999x99999"],
        ["--train", "0"],
        ["--train", "9" * 30],
        ["--seed", "-1"],
        ["--seed", "9" * 5000],
    ],
)
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


@pytest.mark.parametrize("entry", ["val/a.png", "val/a.png valannot/a.png b.png"])
def test_an_entry_of_a_camvid_list_that_is_no_pair_is_named(camvid, tmp_path, capsys, entry):
    (camvid / "val.txt").write_text(f"val/0016E5_07959.png valannot/0016E5_07959.png\n{entry}\n")
    assert run("camvid", "--source", camvid, "--out", tmp_path / "out") == 1
    assert f"{camvid}/val.txt: entry 2 is {entry!r}, expected `image label`" in capsys.readouterr().err


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


@pytest.mark.parametrize("copy", [[], ["--copy"]])
@pytest.mark.parametrize("kind, key", [("image", "train"), ("label", "trainannot")])
def test_a_file_that_a_source_links_to_is_not_replaced_by_what_is_made_of_it(camvid, tmp_path, capsys, kind, key, copy):
    original = tmp_path / "out" / kind / "train/0001TP_006690.png"
    original.parent.mkdir(parents=True)
    (camvid / key / original.name).rename(original)
    (camvid / key / original.name).symlink_to(original)
    before = snapshot(tmp_path)
    assert run("camvid", "--source", camvid, "--out", tmp_path / "out", *copy) == 1
    assert f"the output {original} is this very file" in capsys.readouterr().err and snapshot(tmp_path) == before


NAME = "0006R0_f00930.png"
FAULTS = {
    f"train/{NAME}: the file is empty": lambda source: (source / "train" / NAME).write_bytes(b""),
    f"train/{NAME}: cannot be decoded": lambda source: os.truncate(path := source / "train" / NAME, path.stat().st_size - 200),
    f"train/{NAME}: no such file": lambda source: (source / "train" / NAME).unlink(),
    f"trainannot/{NAME}: no such file": lambda source: (source / "trainannot" / NAME).unlink(),
    f"trainannot/{NAME}: 16 x 12, but its image": lambda source: put(source / "trainannot" / NAME, ids([1, 2], (12, 16))),
    f"trainannot/{NAME}: ids out of range: 77 (384 pixels); expected 0..11":
        lambda source: put(source / "trainannot" / NAME, ids([1, 77])),
    f"trainannot/{NAME}: a colour mask": lambda source: put(source / "trainannot" / NAME, picture(1)),
}  # fmt: skip


@pytest.mark.parametrize("message", FAULTS)
def test_a_bad_sample_stops_the_run_and_is_named(camvid, tmp_path, capsys, message):
    FAULTS[message](camvid)
    assert run("camvid", "--source", camvid, "--out", tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert message in error and "1 of 5 samples cannot be used" in error and "Traceback" not in error
    assert not (tmp_path / "out/list").exists()


@pytest.mark.parametrize("message", FAULTS)
def test_skip_bad_leaves_it_out_and_says_so(camvid, tmp_path, capsys, message):
    FAULTS[message](camvid)
    out = tmp_path / "out"
    assert run("camvid", "--source", camvid, "--out", out, "--skip-bad") == 0
    assert message in (out / "skipped.txt").read_text()
    assert "1 left out" in capsys.readouterr().out
    assert [line.split("/")[-1] for line in lines(out / "list/train.txt")] == ["0001TP_006690.png", "Seq05VD_f00000.png"]


def test_skip_bad_does_not_leave_a_split_empty(camvid, tmp_path, capsys):
    for path in (camvid / "val").glob("*.png"):
        path.write_bytes(b"")
    assert run("camvid", "--source", camvid, "--out", tmp_path / "out", "--skip-bad") == 1
    assert "nothing is left of val" in capsys.readouterr().err


def test_a_clean_run_takes_the_old_skipped_file_away(camvid, tmp_path):
    out = tmp_path / "out"
    put(camvid / "trainannot/0006R0_f00930.png", ids([1, 2], (12, 16)))
    run("camvid", "--source", camvid, "--out", out, "--skip-bad")
    put(camvid / "trainannot/0006R0_f00930.png", ids([1]))
    assert run("camvid", "--source", camvid, "--out", out) == 0
    assert not (out / "skipped.txt").exists() and len(lines(out / "list/train.txt")) == 3


def test_a_label_that_is_there_already_is_not_written_again(camvid, tmp_path):
    """The cache takes a new file for another label."""
    out = tmp_path / "out"
    run("camvid", "--source", camvid, "--out", out)
    before = {path: path.stat().st_mtime_ns for path in out.glob("label/*/*")}
    put(camvid / "trainannot/0006R0_f00930.png", ids([1, 3]))
    assert run("camvid", "--source", camvid, "--out", out) == 0 and len(before) == 5
    changed = [path.name for path, time in before.items() if path.stat().st_mtime_ns != time]
    assert changed == ["0006R0_f00930.png"]


def test_one_image_twice_in_the_lists_of_a_source_is_a_fault(camvid, tmp_path, capsys):
    entries = lines(camvid / "train.txt")
    put(camvid / "other" / "0001TP_006690.png", picture(3))
    entries += [entries[1], entries[0].replace("/train/", "/other/")]
    (camvid / "train.txt").write_text("\n".join(entries))
    assert run("camvid", "--source", camvid, "--out", tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert "train/0006R0_f00930.png: is listed twice" in error and "2 of 7 samples" in error
    assert f"other/0001TP_006690.png: would be written to the file of {camvid}/train/0001TP_006690.png" in error


# ---- cityscapes

POLYGONS = {
    "imgWidth": SIZE[1],
    "imgHeight": SIZE[0],
    "objects": [
        {"label": "sky", "polygon": [[0, 0], [31, 0], [31, 23], [0, 23]]},
        {"label": "road", "polygon": [[0, 12], [31, 12], [31, 23], [0, 23]]},
        {"label": "cargroup", "polygon": [[4, 8], [12, 8], [12, 16], [4, 16]]},
        {"label": "license plate", "polygon": [[6, 12], [8, 12], [8, 14], [6, 14]]},
        {"label": "static", "polygon": [[20, 8], [28, 8], [28, 16], [20, 16]]},
        {"label": "person", "polygon": [[0, 0], [3, 0], [3, 3]], "deleted": 1},
        {"label": "polegroup", "polygon": [[14, 2], [18, 2], [18, 6], [14, 6]]},
        {"label": "person", "polygon": [[30, 3]]},
    ],
}


@pytest.fixture
def cityscapes(tmp_path):
    """A frame of two cities to train on, one to validate, one to test; the second training frame has polygons only."""
    source = tmp_path / "cityscapes"
    frames = [("train", "aachen_000000_000019"), ("train", "bremen_000264_000019"), ("val", "frankfurt_000000_000294"),
              ("test", "berlin_000000_000019")]  # fmt: skip
    for i, (split, stem) in enumerate(frames):
        city = stem.split("_")[0]
        put(source / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png", picture(i))
        labels = source / "gtFine" / split / city
        if i != 1:
            put(labels / f"{stem}_gtFine_labelIds.png", ids([0, 7, 8, 26, 29, 33]))
            put(labels / f"{stem}_gtFine_color.png", picture(i))
        labels.mkdir(parents=True, exist_ok=True)
        (labels / f"{stem}_gtFine_polygons.json").write_text(json.dumps(POLYGONS))
    return source


def test_cityscapes_label_ids_become_train_ids(cityscapes, tmp_path):
    before, out = snapshot(cityscapes), tmp_path / "out"
    assert run("cityscapes", "--source", cityscapes, "--out", out) == 0
    line = (
        "leftImg8bit/val/frankfurt/frankfurt_000000_000294_leftImg8bit.png gtFine/val/frankfurt/frankfurt_000000_000294_gtFine_"
    )
    assert lines(out / "list/fine_val.txt") == lines(out / "fine_val.txt") == [line + "labelTrainIds.png"]
    label = read_label(out / line.split()[1].replace("_gtFine_", "_gtFine_labelTrainIds.png"))
    assert (label == ids([255, 0, 1, 13, 255, 18])).all()
    assert len(lines(out / "list/fine_trainval.txt")) == 3 and lines(out / "list/fine_train.txt") == lines(
        out / "fine_train.txt"
    )
    assert lines(out / "list/fine_test.txt") == ["leftImg8bit/test/berlin/berlin_000000_000019_leftImg8bit.png"]
    assert snapshot(cityscapes) == before


def test_cityscapes_polygons_are_drawn_where_there_is_no_png(cityscapes, tmp_path):
    run("cityscapes", "--source", cityscapes, "--out", tmp_path / "out")
    label = read_label(tmp_path / "out/gtFine/train/bremen/bremen_000264_000019_gtFine_labelTrainIds.png")
    sky, road, car = 10, 0, 13
    assert (label[0] == sky).all() and (label[20] == road).all()
    assert label[13, 7] == car and label[10, 24] == 255  # the plate is part of the car; static is void
    assert label[4, 16] == 255 and label[3, 30] == sky  # a group of poles is no pole; a point has no area


def test_every_id_of_cityscapes_has_its_class_or_is_void(cityscapes, tmp_path):
    name = "train/aachen/aachen_000000_000019_gtFine"
    put(cityscapes / f"gtFine/{name}_labelIds.png", np.resize(np.uint8([*range(34), 255]), SIZE))
    assert run("cityscapes", "--source", cityscapes, "--out", tmp_path / "out") == 0
    label = read_label(tmp_path / f"out/gtFine/{name}_labelTrainIds.png").ravel()[:35].tolist()
    assert [k for k in range(35) if label[k] != 255] == [7, 8, 11, 12, 13, 17, *range(19, 29), 31, 32, 33]
    assert [k for k in label if k != 255] == [*range(19)]


def test_cityscapes_train_ids_are_taken_as_they_are_where_there_is_nothing_else(cityscapes, tmp_path):
    name = "gtFine/train/bremen/bremen_000264_000019_gtFine"
    (cityscapes / f"{name}_polygons.json").unlink()
    put(cityscapes / f"{name}_labelTrainIds.png", ids([0, 18, 255]))
    assert run("cityscapes", "--source", cityscapes, "--out", tmp_path / "out") == 0
    assert (read_label(tmp_path / f"out/{name}_labelTrainIds.png") == ids([0, 18, 255])).all()


@pytest.mark.parametrize("content, message", [
    ("{", "not a polygon file"),
    ("[" * 100000, "not a polygon file"),
    ("7", "not a polygon file"),
    ('{"imgWidth": 32, "imgHeight": 24, "objects": [{"label": "car", "polygon": [[1, 2, 3], [4, 5]]}]}', "not a polygon file"),
    ('{"imgWidth": 9, "imgHeight": 9, "objects": [{"label": "car", "polygon": [[0, 0], [1e99, NaN]]}]}', "far outside"),
    ('{"imgWidth": 3e9, "imgHeight": 24, "objects": []}', "expected a size in pixels"),
    ('{"imgWidth": 999999, "imgHeight": 999999, "objects": []}', "expected a size in pixels"),
    ('{"imgWidth": 32, "imgHeight": 24, "objects": [{"label": "spaceship", "polygon": []}]}', "'spaceship' is no class"),
    ('{"imgWidth": 16, "imgHeight": 24, "objects": []}', "16 x 24, but its image"),
])  # fmt: skip
def test_cityscapes_bad_polygons_are_named(cityscapes, tmp_path, capsys, content, message):
    path = cityscapes / "gtFine/train/bremen/bremen_000264_000019_gtFine_polygons.json"
    path.write_text(content)
    assert run("cityscapes", "--source", cityscapes, "--out", tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert message in error and path.name in error


def test_cityscapes_images_and_labels_without_partner_are_named(cityscapes, tmp_path, capsys):
    (cityscapes / "leftImg8bit/val/frankfurt/frankfurt_000000_000294_leftImg8bit.png").unlink()
    (cityscapes / "gtFine/train/bremen/bremen_000264_000019_gtFine_polygons.json").unlink()
    assert run("cityscapes", "--source", cityscapes, "--out", tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert "labelIds.png: a label without an image" in error and "leftImg8bit.png: an image without a label" in error
    assert "2 of 4 samples" in error


def test_a_split_without_one_label_names_its_images(cityscapes, tmp_path, capsys):
    for path in (cityscapes / "gtFine/val").rglob("*_gtFine_*"):
        path.unlink()
    assert run("cityscapes", "--source", cityscapes, "--out", tmp_path / "out") == 1
    assert "leftImg8bit.png: an image without a label" in capsys.readouterr().err


def test_cityscapes_with_half_of_the_download_says_which_half(cityscapes, tmp_path, capsys):
    (cityscapes / "gtFine").rename(tmp_path / "elsewhere")
    assert run("cityscapes", "--source", cityscapes, "--out", tmp_path / "out") == 1
    assert "gtFine/train/, gtFine/val/ missing" in capsys.readouterr().err


# ---- ade20k, voc2012, bdd


@pytest.fixture
def ade20k(tmp_path):
    source = tmp_path / "ADEChallengeData2016"
    for split, stem in (
        ("training", "ADE_train_00000001"),
        ("training", "ADE_train_00000002"),
        ("validation", "ADE_val_00000001"),
    ):
        put(source / "images" / split / f"{stem}.jpg", picture(1))
        put(source / "annotations" / split / f"{stem}.png", ids([0, 1, 150]))
    (source / "objectInfo150.txt").write_text("Idx\tRatio\n")
    (source / "images/training/._ADE_train_00000001.jpg").write_bytes(b"of the system that it was unpacked on")
    return source


@pytest.mark.parametrize("below", ["", ".."])  # the folder itself, or the one it was unpacked in
def test_ade20k_ids_move_down_by_one_and_zero_is_void(ade20k, tmp_path, below):
    out = tmp_path / "out"
    assert run("ade20k", "--source", ade20k / below, "--out", out) == 0
    line = "images/validation/ADE_val_00000001.jpg annotations/validation/ADE_val_00000001.png"
    assert lines(out / "list/validation.txt") == [line] and len(lines(out / "list/training.txt")) == 2
    assert (read_label(out / "annotations/training/ADE_train_00000002.png") == ids([255, 0, 149])).all()
    assert read_image(out / "images/training/ADE_train_00000001.jpg").shape == (*SIZE, 3)


def test_ade20k_annotations_of_the_full_set_are_out_of_range(ade20k, tmp_path, capsys):
    put(ade20k / "annotations/validation/ADE_val_00000001.png", ids([3, 151, 255]))
    assert run("ade20k", "--source", ade20k, "--out", tmp_path / "out") == 1
    assert "ids out of range: 151 (264 pixels), 255 (240 pixels); expected 0..150" in capsys.readouterr().err


@pytest.fixture
def voc(tmp_path):
    """Three official frames with palette PNGs, an augmented one, and the augmented labels of the official ones."""
    source = tmp_path / "VOCdevkit" / "VOC2012"
    sets = {"train": ["2007_000032", "2007_000039"], "val": ["2007_000033"]}
    for split, stems in sets.items():
        (source / "ImageSets/Segmentation").mkdir(parents=True, exist_ok=True)
        (source / "ImageSets/Segmentation" / f"{split}.txt").write_text("\n".join(stems) + "\n")
        for stem in stems:
            put(source / "JPEGImages" / f"{stem}.jpg", picture(1))
            mask = Image.fromarray(ids([0, 15, 255, 20]))
            mask.putpalette([(37 * i) % 256 for i in range(768)])
            (source / "SegmentationClass").mkdir(exist_ok=True)
            mask.save(source / "SegmentationClass" / f"{stem}.png")
            put(source / "SegmentationClassAug" / f"{stem}.png", ids([0, 15]))
    put(source / "JPEGImages/2008_000002.jpg", picture(2))
    put(source / "SegmentationClassAug/2008_000002.png", ids([0, 20]))
    return source.parent


def test_voc_palette_labels_become_ids(voc, tmp_path):
    out = tmp_path / "out"
    assert run("voc2012", "--source", voc, "--out", out) == 0
    label = out / "SegmentationClass/2007_000033.png"
    assert Image.open(label).mode == "L" and (read_label(label) == ids([0, 15, 255, 20])).all()


def test_voc_train_aug_has_the_extra_frames_and_none_of_val(voc, tmp_path):
    out = tmp_path / "out"
    run("voc2012", "--source", voc, "--out", out)
    assert lines(out / "list/train_aug.txt") == [
        "JPEGImages/2007_000032.jpg SegmentationClass/2007_000032.png",
        "JPEGImages/2007_000039.jpg SegmentationClass/2007_000039.png",
        "JPEGImages/2008_000002.jpg SegmentationClassAug/2008_000002.png",
    ]
    assert not set(lines(out / "list/val.txt")) & set(lines(out / "list/train_aug.txt"))
    assert len(lines(out / "list/trainval.txt")) == 3 and not (out / "list/test.txt").exists()


def test_voc_without_the_augmented_labels_says_so(voc, tmp_path, capsys):
    (voc / "VOC2012/SegmentationClassAug").rename(tmp_path / "aug")
    assert run("voc2012", "--source", voc / "VOC2012", "--out", tmp_path / "out") == 0
    assert "no train_aug.txt" in capsys.readouterr().out and not (tmp_path / "out/list/train_aug.txt").exists()


def test_voc_test_frames_get_a_list_of_images(voc, tmp_path):
    put(voc / "VOC2012/JPEGImages/2008_000006.jpg", picture(3))
    (voc / "VOC2012/ImageSets/Segmentation/test.txt").write_text("2008_000006\n")
    run("voc2012", "--source", voc, "--out", tmp_path / "out")
    assert lines(tmp_path / "out/list/test.txt") == ["JPEGImages/2008_000006.jpg"]


@pytest.mark.parametrize("images, labels, ending", [
    ("images/10k", "labels/sem_seg/masks", ""), ("images/10k", "seg/labels", "_train_id"),
    ("seg/images", "seg/labels", "_train_id"),
])  # fmt: skip
def test_bdd_in_its_layouts(tmp_path, capsys, images, labels, ending):
    source, out = tmp_path / "data/bdd100k", tmp_path / "out"
    for split, stem in (("train", "0000f77c-6257be58"), ("val", "7d2f7975-e0c1c5a7")):
        put(source / images / split / f"{stem}.jpg", picture(1))
        put(source / labels / split / f"{stem}{ending}.png", ids([0, 18, 255]))
    put(source / images / "test" / "ac6d4f42-00000000.jpg", picture(2))
    for root in (source, source.parent):  # the folder itself, or the one it was unpacked in
        assert run("bdd", "--source", root, "--out", out) == 0
    assert lines(out / "list/val.txt") == ["image/val/7d2f7975-e0c1c5a7.jpg label/val/7d2f7975-e0c1c5a7.png"]
    assert lines(out / "list/test.txt") == ["image/test/ac6d4f42-00000000.jpg"]
    assert (read_label(out / "label/train/0000f77c-6257be58.png") == ids([0, 18, 255])).all()
    put(source / labels / "train" / f"0000f77c-6257be58{ending}.png", ids([0, 19]))
    assert run("bdd", "--source", source, "--out", out) == 1
    assert "ids out of range: 19 (384 pixels); expected 0..18, 255\n" in capsys.readouterr().err


def test_bdd_that_is_none_names_the_folders(tmp_path, capsys):
    assert run("bdd", "--source", tmp_path, "--out", tmp_path / "out") == 1
    assert "images/10k/ with labels/sem_seg/masks/, or seg/images/" in capsys.readouterr().err


# ---- all of them


def test_every_data_set_with_train_and_val_has_a_list_of_both(camvid, ade20k, tmp_path):
    run("camvid", "--source", camvid, "--out", tmp_path / "camvid_out")
    run("ade20k", "--source", ade20k, "--out", tmp_path / "ade_out")
    run("toy", "--out", tmp_path / "toy_out", "--train", 2, "--val", 1, "--size", "48x64")
    for name, first, second in (("camvid_out", "train", "val"), ("ade_out", "training", "validation"),
                                ("toy_out", "train", "val")):  # fmt: skip
        parts = [lines(tmp_path / name / f"list/{split}.txt") for split in (first, second)]
        assert lines(tmp_path / name / "list/trainval.txt") == parts[0] + parts[1], name


def test_program_runs_from_any_folder(tmp_path):
    done = subprocess.run([sys.executable, ROOT / "tool/prepare.py", "camvid", "--source", tmp_path / "nowhere"],
                          cwd=tmp_path, capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 1 and done.stderr.startswith("error: ") and "Traceback" not in done.stderr
