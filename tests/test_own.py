"""One's own images and masks: their pairs, splits and classes, the config for them, and the messages for what does not fit."""

import os
import re
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from folders import SIZE, ids, lines, pairs_of, picture, put, run, snapshot
from PIL import Image

from dataset.own import MANY, _look
from dataset.write_config import TEMPLATE, write_config
from model import check_config
from tool import demo, prepare, train
from util.common import Mistake
from util.config import ROOT, load_cfg_from_cfg_file, load_config
from util.dataset import read_list
from util.image import read_label
from util.visual import default_palette, load_colors


@pytest.fixture
def args(tmp_path):
    """The words that prepare tmp_path/images with tmp_path/masks."""
    return ["folder", "--images", tmp_path / "images", "--masks", tmp_path / "masks", "--out", tmp_path / "mine"]


@pytest.fixture
def own(tmp_path):
    """Ten photographs with masks of the ids 0, 1, 2 and void, in two folders."""
    for i in range(10):
        put(tmp_path / "photos" / f"day {i % 2}" / f"IMG_{i:04d}.JPG", picture(i))
        put(tmp_path / "masks" / f"day {i % 2}" / f"IMG_{i:04d}.png", ids([0, 1, 2, 255]))
    return ["--images", tmp_path / "photos", "--masks", tmp_path / "masks", "--out", tmp_path / "mine"]


def test_own_folder_is_paired_split_and_described(own, tmp_path, capsys):
    before, out = snapshot(tmp_path / "masks"), tmp_path / "mine"
    assert run("folder", *own, "--val-ratio", "0.3") == 0
    train, val = lines(out / "list/train.txt"), lines(out / "list/val.txt")
    assert len(train) == 7 and len(val) == 3 and not set(train) & set(val)
    assert lines(out / "list/trainval.txt") == train + val
    assert read_list(out / "list/val.txt", out, "val")[0][1].endswith(".png")  # spaces in the paths and all
    assert lines(out / "mine_names.txt") == ["class0", "class1", "class2"]
    assert load_colors(out / "mine_colors.txt", 3).shape == (3, 3)
    out = capsys.readouterr().out
    assert "classes: 3" in out and f"data_root: {tmp_path / 'mine'}\n" in out and snapshot(tmp_path / "masks") == before


def test_images_of_a_12_bit_camera_get_a_warning_until_they_fill_their_16_bits(tmp_path, capsys):
    frame = picture(0).astype(np.uint16) * 16  # 0..4080
    for factor in (1, 16):
        source = tmp_path / f"{factor}"
        for i in range(5):
            put(source / f"photos/{i}.tif", frame * (factor if i else 1))  # one stays dark, as by night
            put(source / f"masks/{i}.png", ids([0, 1]))
        assert run("folder", "--images", source / "photos", "--masks", source / "masks", "--out", source / "out") == 0
        warned = re.search("warning: half of the images have no pixel above 1[56] of 255", capsys.readouterr().out)
        assert bool(warned) == (factor == 1)


def test_own_folder_split_depends_on_the_seed_alone(own, tmp_path):
    splits = []
    for seed in (1, 1, 2):
        run("folder", *own, "--seed", seed)
        splits.append(lines(tmp_path / "mine/list/val.txt"))
    assert splits[0] == splits[1] != splits[2]


def test_one_more_image_moves_at_most_one_of_the_others_into_val_and_says_so(args, tmp_path, capsys):
    before = None
    for k in range(30):
        put(tmp_path / f"images/{k}.png", picture(k))
        put(tmp_path / f"masks/{k}.png", ids([0, 1]))
        if k > 18:
            assert run(*args) == 0
            train, val = ({*lines(tmp_path / f"mine/list/{split}.txt")} for split in ("train", "val"))
            assert before is None or len(before & val) <= 1
            said = "1 images of val were in train before" in capsys.readouterr().out
            assert said == bool(before and before & val)
            before = train
    (tmp_path / "mine/list/train.txt").write_bytes(b"\xff")  # damaged, and written anew
    assert run(*args) == 0 and {*lines(tmp_path / "mine/list/train.txt")} == before


def test_own_folder_keeps_a_split_into_train_and_val(args, tmp_path):
    for split, name in (("train", "a"), ("train", "b"), ("val", "c")):
        put(tmp_path / "images" / split / f"{name}.png", picture(1))
        put(tmp_path / "masks" / split / f"{name}_mask.png", ids([0, 1]))
    run(*args)
    assert lines(tmp_path / "mine/list/val.txt") == ["image/val/c.png label/val/c.png"]


def test_own_folder_follows_links_to_folders_once_and_leaves_hidden_files_alone(args, tmp_path):
    for kind, end, content in (("images", ".png", picture(1)), ("masks", "_mask.png", ids([0, 1]))):
        for split, name in (("train", "a"), ("train", "b"), ("val", "c")):
            put(tmp_path / "disk" / kind / split / f"{name}{end}", content)
        put(tmp_path / "disk" / kind / "train/.checkpoints" / f"d{end}", content)
        put(tmp_path / "disk" / kind / "val" / f".e{end}", content)
        (tmp_path / kind).mkdir()
        for split in ("train", "val"):
            (tmp_path / kind / split).symlink_to(tmp_path / "disk" / kind / split)
        (tmp_path / kind / "val/back").symlink_to(tmp_path / kind)  # a circle
        put(tmp_path / kind / f"test/f{end}", content)
        (tmp_path / kind / "all").symlink_to(tmp_path / kind / "test")  # its own name counts
    (tmp_path / "images/beside").symlink_to(tmp_path / "masks")
    assert run(*args) == 0
    assert lines(tmp_path / "mine/list/train.txt") == [f"image/train/{name}.png label/train/{name}.png" for name in "ab"]
    assert lines(tmp_path / "mine/list/val.txt") == ["image/val/c.png label/val/c.png"]
    assert lines(tmp_path / "mine/list/test.txt") == ["image/test/f.png label/test/f.png"]
    out = tmp_path / "disk/images/train/out"  # in a source, through a link
    assert run("folder", "--images", tmp_path / "images", "--masks", tmp_path / "masks", "--out", out) == 1 and not out.exists()


def test_a_file_is_of_no_split_for_its_own_name(args, tmp_path):
    place(tmp_path / "images", "test.png", "a.png", "b.png")
    place(tmp_path / "masks", "test.png", "a.png", "b.png", mask=True)
    assert run(*args) == 0
    assert len(lines(tmp_path / "mine/list/trainval.txt")) == 3 and not (tmp_path / "mine/list/test.txt").exists()


def test_two_images_of_one_name_are_refused(args, tmp_path, capsys):
    place(tmp_path / "images", "a.jpg", "a.png", "b.jpg")
    place(tmp_path / "masks", "a.png", "b.png", mask=True)
    assert run(*args) == 1
    assert "images/a.jpg and a.png: two files for one name; keep one of them" in capsys.readouterr().err


def test_accents_of_a_mac_and_of_another_machine_are_one_name(args, tmp_path):
    for i, (image, mask) in enumerate((("NFD", "NFC"), ("NFC", "NFD"), ("NFC", "NFC"))):
        put(tmp_path / "images" / unicodedata.normalize(image, f"Stra\u00dfe S\u00fcd {i}.jpg"), picture(i))
        put(tmp_path / "masks" / unicodedata.normalize(mask, f"Stra\u00dfe S\u00fcd {i}.png"), ids([0, 1]))
    assert run(*args) == 0
    assert len(pairs_of(tmp_path / "mine")) == 3


def test_values_that_are_stretched_to_255_are_asked_about(args, tmp_path, capsys):
    put(tmp_path / "images/a.png", picture(1))
    put(tmp_path / "images/b.png", picture(2))
    for name in "ab":
        put(tmp_path / f"masks/{name}.png", ids([0, 85, 170, 255]))
    assert run(*args) == 1
    error = capsys.readouterr().err
    assert "void (255: 25.0 %)" in error and "or, if 255 is a class too:\n  --ids 0 85 170 255\n" in error


def test_own_folder_with_images_and_masks_together(tmp_path):
    for name, mask in (("a.jpg", "a.png"), ("b.jpeg", "b.png"), ("c.png", "c_mask.png"), ("d.jpg", "d_label.png")):
        put(tmp_path / "all" / name, picture(1))
        put(tmp_path / "all" / mask, ids([0, 1]))
    assert run("folder", "--source", tmp_path / "all", "--out", tmp_path / "mine") == 0
    assert sum(len(lines(tmp_path / f"mine/list/{split}.txt")) for split in ("train", "val")) == 4


def test_own_names_allow_ids_without_pixels(own, tmp_path):
    (tmp_path / "names.txt").write_text("road\npavement\nbuilding\nunicorn\n")
    assert run("folder", *own, "--names", tmp_path / "names.txt") == 0
    assert lines(tmp_path / "mine/mine_names.txt")[3] == "unicorn"


def test_ids_that_get_other_classes_than_before_are_named(own, tmp_path, capsys):
    notes = []
    for names in ("", "sky sea land", "sky sea land", "land sea sky"):  # without names: class0, class1, class2
        (tmp_path / "names.txt").write_text("\n".join(names.split()))
        assert run("folder", *own, *(["--names", tmp_path / "names.txt"] if names else [])) == 0
        notes.append(re.findall("class . was.*", capsys.readouterr().out))
    said = "class 0 was sky and is land, class 2 was land and is sky; a network that was trained before goes by the earlier ids"
    assert notes == [[], [], [], [said]]


def test_binary_masks_of_0_and_255_ask_for_the_ids_and_take_them(args, tmp_path, capsys):
    for name in "abc":
        put(tmp_path / "images" / f"{name}.png", picture(1))
        put(tmp_path / "masks" / f"{name}.png", ids([0, 255]))
    assert run(*args) == 1
    assert "\n  --ids 0 255\n" in capsys.readouterr().err
    assert run(*args, "--ids", 0, 255) == 0
    assert (read_label(tmp_path / "mine/label/a.png") == ids([0, 1])).all()


def test_binary_masks_of_0_and_255_with_names_ask_which_of_them_is_meant(args, tmp_path, capsys):
    """The object would be void, and a network that finds none would have an mIoU of 1."""
    for name in "abc":
        put(tmp_path / "images" / f"{name}.png", picture(1))
        put(tmp_path / "masks" / f"{name}.png", ids([0, 0, 0, 255]))
    (tmp_path / "names.txt").write_text("background\nroad\n")
    args += ["--names", tmp_path / "names.txt"]
    assert run(*args) == 1
    error = capsys.readouterr().err
    assert "the masks hold 0 and 255 (25.0 % of the pixels), and 255 is void if nothing else is said" in error
    assert "If it is the class road:\n  --ids 0 255\nif it is void:\n  --void 255\n" in error
    assert run(*args, "--void", 255) == 0 and (read_label(tmp_path / "mine/label/a.png") == ids([0, 0, 0, 255])).all()
    assert run(*args, "--ids", 0, 255) == 0 and (read_label(tmp_path / "mine/label/a.png") == ids([0, 0, 0, 1])).all()


def test_masks_of_0_and_1_beside_masks_of_0_and_255_are_asked_about(args, tmp_path, capsys):
    """The objects of the second kind would be void."""
    for name, values in (("a", [0, 1]), ("b", [0, 255]), ("c", [0, 1]), ("d", [0, 255])):
        put(tmp_path / "images" / f"{name}.png", picture(1))
        put(tmp_path / "masks" / f"{name}.png", ids(values))
    assert run(*args) == 1
    assert "some masks hold 0 and 1, and others 0 and 255" in capsys.readouterr().err
    assert run(*args, "--void", 255) == 0 and (read_label(tmp_path / "mine/label/b.png") == ids([0, 255])).all()
    put(tmp_path / "masks/d.png", ids([0, 1, 255]))  # void beside the object
    assert run(*args) == 0


def test_a_picture_among_the_masks_keeps_a_thousand_of_its_colours(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    noise[:4] = 7, 8, 9
    _, _, colours, fault = _look(put(tmp_path / "picture.png", noise))
    assert len(colours) == MANY and colours.most_common(1) == [((7, 8, 9), 256)] and not fault


@pytest.mark.parametrize("name", ["camvid", "toy"])
def test_a_folder_with_the_names_of_another_command_is_refused(own, capsys, name):
    before = snapshot(ROOT / "dataset" / name)
    assert run("folder", *own[:-1], ROOT / "dataset" / name) == 1
    assert f"holds names and colours of `prepare.py {name}`" in capsys.readouterr().err
    assert snapshot(ROOT / "dataset" / name) == before


def test_one_class_is_refused(args, tmp_path, capsys):
    for name in "abc":
        put(tmp_path / "images" / f"{name}.png", picture(1))
        put(tmp_path / "masks" / f"{name}.png", ids([0]))
    (tmp_path / "names.txt").write_text("road\n")
    for more in (["--names", tmp_path / "names.txt"], ["--ids", 0]):
        assert run(*args, *more) == 1
        assert "one class, " in capsys.readouterr().err and not (tmp_path / "mine/list").exists()


@pytest.mark.parametrize("names, message", [
    ([f"c{k}" for k in range(256)], "256 classes; labels have 8 bits, so at most 255"),
    (["road", "car", "road"], "the class road is named twice; names must differ"),
])  # fmt: skip
def test_names_that_cannot_be_those_of_classes_are_refused(own, tmp_path, capsys, names, message):
    (tmp_path / "names.txt").write_text("\n".join(names))
    assert run("folder", *own, "--names", tmp_path / "names.txt") == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("number, message", [
    (255, "This makes them the classes 0 to 254 in this order"), (256, "the masks hold 256 ids, and the labels that are"),
])  # fmt: skip
def test_more_ids_than_labels_can_hold_are_told(args, tmp_path, capsys, number, message):
    for name in "ab":
        put(tmp_path / "images" / f"{name}.png", picture(1))
        put(tmp_path / "masks" / f"{name}.png", np.resize(np.arange(1000, 1000 + number, dtype=np.uint16), SIZE))
    assert run(*args) == 1
    assert message in capsys.readouterr().err


@pytest.fixture
def coloured(args, tmp_path):
    """Masks in red and green on black; black is void."""
    colours = np.array([(0, 0, 0), (255, 0, 0), (0, 128, 0)], np.uint8)
    for name in "abc":
        put(tmp_path / "images" / f"{name}.jpg", picture(1))
        put(tmp_path / "masks" / f"{name}.png", colours[ids([0, 1, 2])])
    return args


def test_colour_masks_without_a_table_get_one_to_fill_in(coloured, tmp_path, capsys):
    assert run(*coloured) == 1
    error, table = capsys.readouterr().err, tmp_path / "mine/colors.txt"
    assert f"\n  --colors {table}\n" in error and re.search("0 128 0 +31.25 %", error) and not (tmp_path / "mine/list").exists()
    assert lines(table)[-3:] == ["0 0 0 class0", "0 128 0 class1", "255 0 0 class2"]
    assert run(*coloured, "--colors", table) == 0
    assert (read_label(tmp_path / "mine/label/a.png") == ids([0, 2, 1])).all()
    table.write_text(table.read_text().replace("0 0 0 class0", "0 0 0 void"))
    assert run(*coloured) == 1 and "0 0 0 void" in table.read_text()  # what somebody has filled in stays
    assert run(*coloured, "--colors", table) == 0
    assert lines(tmp_path / "mine/mine_names.txt") == ["class1", "class2"]


def test_colours_of_smooth_masks_are_too_many_for_a_table(coloured, tmp_path, capsys):
    put(tmp_path / "masks/a.png", picture(1))
    assert run(*coloured) == 1
    error = capsys.readouterr().err
    assert "colours are more than the 255 classes" in error and "export them anew" in error
    assert not (tmp_path / "mine/colors.txt").exists()


@pytest.mark.parametrize("number", [255, 256])
def test_a_table_holds_as_many_colours_as_labels_hold_classes(args, tmp_path, capsys, number):
    for name in "ab":
        put(tmp_path / "images" / f"{name}.png", picture(1))
        put(tmp_path / "masks" / f"{name}.png", np.resize(np.uint8([(k, 0, 1) for k in range(number)]), (*SIZE, 3)))
    assert run(*args) == 1
    assert ("256 colours are more than the 255 classes" in capsys.readouterr().err) == (number == 256)
    assert (tmp_path / "mine/colors.txt").exists() == (number == 255)


def test_a_table_is_not_written_into_a_source(coloured, tmp_path, capsys):
    assert run(*coloured[:-1], tmp_path / "masks") == 1
    assert "lies in the source" in capsys.readouterr().err and not (tmp_path / "masks/colors.txt").exists()


@pytest.mark.parametrize("palette", [False, True])
def test_colour_masks_with_a_table_become_ids(coloured, tmp_path, palette):
    if palette:
        path = tmp_path / "masks/a.png"
        Image.open(path).quantize(8).save(path)
    (tmp_path / "colors.txt").write_text("255 0 0 poppy\n0 128 0 tall grass\n0 0 0 void\n")
    assert run(*coloured, "--colors", tmp_path / "colors.txt") == 0
    assert (read_label(tmp_path / "mine/label/a.png") == ids([255, 0, 1])).all()
    assert lines(tmp_path / "mine/mine_names.txt") == ["poppy", "tall grass"]
    assert lines(tmp_path / "mine/mine_colors.txt") == ["255 0 0", "0 128 0"]


def test_grays_of_a_colour_mask_saved_with_one_channel_are_colours_and_ids_with_ids(coloured, tmp_path, capsys):
    put(tmp_path / "images/d.png", picture(1))
    for name in "ad":
        Image.new("1", SIZE[::-1]).save(tmp_path / f"masks/{name}.png")
    Image.new("L", SIZE[::-1], 1).save(tmp_path / "masks/b.png")
    put(tmp_path / "masks/c.png", np.uint16(ids([0, 1])))
    (tmp_path / "colors.txt").write_text("255 0 0 poppy\n0 128 0 grass\n0 0 0 void\n")
    assert run(*coloured, "--colors", tmp_path / "colors.txt") == 1
    error = capsys.readouterr().err
    assert "2 of 4 samples" in error
    assert "b.png: colours that the colour table does not have: 1 1 1 (768 pixels); if these are ids, say" in error
    assert "c.png: one channel of mode I" in error
    assert run(*coloured, "--colors", tmp_path / "colors.txt", "--skip-bad") == 0
    assert all((read_label(tmp_path / f"mine/label/{name}.png") == 255).all() for name in "ad")
    assert run(*coloured, "--colors", tmp_path / "colors.txt", "--ids", 0, 1) == 0
    labels = [read_label(tmp_path / f"mine/label/{name}.png") for name in "abc"]
    assert [set(np.unique(label)) for label in labels] == [{0}, {1}, {0, 1}]


def test_a_colour_that_the_table_lacks_is_named(coloured, tmp_path, capsys):
    (tmp_path / "colors.txt").write_text("255 0 0 poppy\n0 0 9 sky\n0 0 0 void\n")
    assert run(*coloured, "--colors", tmp_path / "colors.txt") == 1
    assert "masks/a.png: colours that the colour table does not have: 0 128 0 (" in capsys.readouterr().err


def test_a_table_or_names_in_the_place_of_an_output_stay_as_they_are(coloured, tmp_path, capsys):
    table, names = tmp_path / "mine/mine_colors.txt", tmp_path / "mine/mine_names.txt"
    table.parent.mkdir()
    table.write_text("255 0 0 poppy\n0 128 0 grass\n0 0 0 void\n")
    before = snapshot(tmp_path)
    assert run(*coloured, "--colors", table) == 1
    assert f"--colors {table}: would be replaced by" in capsys.readouterr().err and snapshot(tmp_path) == before
    names.write_text("poppy\n\ngrass")  # what will be written
    table.rename(tmp_path / "colors.txt")
    assert run(*coloured, "--colors", tmp_path / "colors.txt", "--names", names) == 0 and lines(names) == ["poppy", "grass"]


@pytest.mark.parametrize("table, message", [("1 2\n", "entry 1 is '1 2'"), ("1 2 999 a\n", "0..255"), ("", "no colours"),
                                            ("1 2 3 a\n1 2 3 b\n", "1 2 3 is there twice")])  # fmt: skip
def test_a_wrong_colour_table_is_explained(coloured, tmp_path, capsys, table, message):
    (tmp_path / "colors.txt").write_text(table)
    assert run(*coloured, "--colors", tmp_path / "colors.txt") == 1
    assert message in capsys.readouterr().err


def test_colours_without_a_name_take_none_that_is_there(coloured, tmp_path):
    (tmp_path / "colors.txt").write_text("0 0 0 Void\n255 0 0\n0 128 0 class0\n")  # as CamVid's own table writes it
    assert run(*coloured, "--colors", tmp_path / "colors.txt") == 0
    assert lines(tmp_path / "mine/mine_names.txt") == ["class1", "class0"]


def test_a_command_that_fails_leaves_the_data_set_as_it_was(own, tmp_path, capsys):
    assert run("folder", *own) == 0
    before = snapshot(tmp_path / "mine")
    put(tmp_path / "new/day 0/IMG_0000.png", ids([1, 0, 2, 255]))
    for i in range(1, 10):
        put(tmp_path / "new" / f"day {i % 2}" / f"IMG_{i:04d}.png", ids([1, 0, 2, 255]) if i < 9 else ids([0]))
    (tmp_path / "new/day 1/IMG_0009.png").write_bytes(b"cut")
    words = ["folder", *own[:2], "--masks", tmp_path / "new", *own[4:]]
    assert run(*words, "--names", tmp_path / "mine/mine_names.txt") == 1
    assert "1 of 10 samples cannot be used" in capsys.readouterr().err and snapshot(tmp_path / "mine") == before
    assert run(*words, "--skip-bad") == 0
    assert not list((tmp_path / "mine").glob(".*")) and snapshot(tmp_path / "mine") != before
    before = snapshot(tmp_path / "mine")
    for path in sorted((tmp_path / "masks").rglob("*.png"))[1:]:
        path.write_bytes(b"cut")
    assert run("folder", *own, "--skip-bad") == 1
    assert "images with a label: 1" in capsys.readouterr().err and snapshot(tmp_path / "mine") == before


def test_a_folder_of_labels_may_lie_elsewhere(own, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "mine/label").symlink_to(tmp_path / "elsewhere")
    assert run("folder", *own) == 0
    assert len([*(tmp_path / "elsewhere").rglob("*.png")]) == 10
    assert run("folder", *own[:-1], "/proc/self") == 1  # which takes no folder


def test_gray_pictures_are_no_masks_of_255_classes(args, tmp_path, capsys):
    for name in "ab":
        put(tmp_path / "images" / f"{name}.png", picture(1))
        put(tmp_path / "masks" / f"{name}.png", np.resize(np.arange(256, dtype=np.uint8), picture(1).shape[:2]))
    assert run(*args) == 1
    assert "the masks hold all of 0 to 255: are they gray pictures, or smoothed between" in capsys.readouterr().err


def test_0_and_255_with_three_names_are_asked_about_too(args, tmp_path, capsys):
    for name in "ab":
        put(tmp_path / "images" / f"{name}.png", picture(1))
        put(tmp_path / "masks" / f"{name}.png", ids([0, 255]))
    (tmp_path / "names").write_text("a\nb\nc\n")
    assert run(*args, "--names", tmp_path / "names") == 1
    assert "If it is the class b:\n  --ids 0 255 2\n" in capsys.readouterr().err
    assert run(*args, "--names", tmp_path / "names", "--ids", 0, 255, 2) == 0


def test_a_comment_is_no_name(own, tmp_path, capsys):
    (tmp_path / "names").write_text("# my classes\na\nb\nc\n")
    assert run("folder", *own, "--names", tmp_path / "names") == 1
    assert "names: '# my classes' would be the name of a class; take comments out" in capsys.readouterr().err


def test_a_folder_that_cannot_be_read_is_named(own, tmp_path, monkeypatch, capsys):
    walk = os.walk

    def denied(top, onerror=None, **more):
        onerror(PermissionError(13, "Permission denied", f"{tmp_path}/photos/day 1"))
        return walk(top, onerror=onerror, **more)

    monkeypatch.setattr(os, "walk", denied)
    assert run("folder", *own) == 1
    assert "photos/day 1: permission denied" in capsys.readouterr().err


def test_a_jpeg_whose_name_ends_like_a_masks_is_a_picture(tmp_path):
    for name in ("car_l.jpeg", "photo_seg.jpg"):
        put(tmp_path / "both" / name, picture(1))
    put(tmp_path / "both/car_l_mask.png", ids([0, 1]))
    put(tmp_path / "both/photo_seg.png", ids([0, 1]))
    other = f"{tmp_path}/both/../both"  # the same folder by another name
    assert run("folder", "--images", tmp_path / "both", "--masks", other, "--out", tmp_path / "mine") == 0
    assert len(lines(tmp_path / "mine/list/trainval.txt")) == 2


def test_masks_in_colour_beside_black_ones_are_told(args, tmp_path, capsys):
    for k, name in enumerate("abcd"):
        put(tmp_path / "images" / f"{name}.png", picture(1))
        put(tmp_path / "masks" / f"{name}.png", np.zeros_like(picture(1)) + np.uint8([255 * (k > 1), 0, 0]))
    assert run(*args) == 1
    assert "2 masks are in colour: if colours are the classes, give --colors FILE" in capsys.readouterr().err


def test_palettes_bring_the_colours_of_the_classes(own, tmp_path):
    palette = [0, 0, 0, 128, 0, 0, 0, 128, 0, *[9] * 759]
    for path in (tmp_path / "masks").rglob("*.png"):
        mask = Image.fromarray(read_label(path))
        mask.putpalette(palette)
        mask.save(path)
    assert run("folder", *own) == 0
    assert lines(tmp_path / "mine/mine_colors.txt") == ["0 0 0", "128 0 0", "0 128 0"]


@pytest.mark.parametrize("palette", [(0, 0, 0, 9, 9, 9, 20, 20, 20), (0, 0, 0, 128, 0, 0, 128, 0, 0)])
def test_a_palette_that_is_gray_or_tells_classes_not_apart_gives_way_to_ours(own, tmp_path, palette):
    for path in (tmp_path / "masks").rglob("*.png"):
        mask = Image.fromarray(read_label(path))
        mask.putpalette([*palette, *[9] * 759])
        mask.save(path)
    assert run("folder", *own) == 0
    assert (load_colors(tmp_path / "mine/mine_colors.txt", 3) == default_palette(3)).all()


def test_palettes_that_differ_make_the_colours_the_classes(args, tmp_path, capsys):
    red, green = [0, 0, 0, 255, 0, 0], [0, 0, 0, 0, 255, 0]
    for name, palette in (("a", red), ("b", green), ("c", red)):
        put(tmp_path / "images" / f"{name}.png", picture(1))
        mask = Image.fromarray(ids([0, 1]))
        mask.putpalette(palette)
        (tmp_path / "masks").mkdir(exist_ok=True)
        mask.save(tmp_path / "masks" / f"{name}.png")
    assert run(*args) == 1
    assert "index 1 is 255 0 0 in the palette of" in capsys.readouterr().err
    assert run(*args, "--colors", tmp_path / "mine/colors.txt") == 0
    assert [read_label(tmp_path / f"mine/label/{name}.png")[0, -1] for name in "abc"] == [2, 1, 2]


@pytest.mark.parametrize("values, line", [
    ((0, 255), "--ids 0 255"), ((0, 7, 300), "--ids 0 7 300"), ((0, 7, 255), "--ids 0 7 --void 255"), ((1, 2), "--ids 1 2"),
    ((0, 7, 300, 65535), "--ids 0 7 300 --void 65535"), ((0, 1, 65535), "--void 65535"),
])  # fmt: skip
def test_ids_with_gaps_get_the_flags_that_do(args, tmp_path, capsys, values, line):
    for name in "ab":
        put(tmp_path / "images" / f"{name}.png", picture(1))
        put(tmp_path / "masks" / f"{name}.png", np.uint16(values)[ids(range(len(values)))])
    assert run(*args) == 1
    error = capsys.readouterr().err
    assert f"\n  {line}\n" in error and ("void (" in error) == ("--void" in line)
    assert run(*args, *line.split()) == 0
    void = line.partition("--void ")[2].split()
    assert set(np.unique(read_label(tmp_path / "mine/label/a.png"))) == {
        *range(len(values) - len(void)),
        *([255] if void else []),
    }


# ---- which mask belongs to which image


def place(root, *names, mask=False):
    for name in names:
        put(root / name, ids([0, 1]) if mask else picture(1))
    return root


def prepared(tmp_path, *args):
    """The names of the images that have a label."""
    assert run("folder", *args, "--out", tmp_path / "mine") == 0
    return {Path(image).stem for image, _ in pairs_of(tmp_path / "mine")}


@pytest.mark.parametrize("end", ["_L", "_mask", "_gt", "_labelIds", "_label", "-seg", " labels", "_anything"])
def test_an_ending_that_the_names_share_is_found(tmp_path, capsys, end):
    place(tmp_path / "images", *(f"day/IMG_{i}.jpg" for i in range(11)))  # IMG_1 begins IMG_10_L too
    place(tmp_path / "masks", *(f"day/IMG_{i}{end}.png" for i in range(11)), mask=True)
    assert len(prepared(tmp_path, "--images", tmp_path / "images", "--masks", tmp_path / "masks")) == 11
    assert f"names of masks: that of the image and {end}\n" in capsys.readouterr().out


def test_names_of_images_may_have_an_ending_too(tmp_path):
    place(tmp_path / "all", *(f"{i}_sat.jpg" for i in range(4)))
    place(tmp_path / "all", *(f"{i}_mask.png" for i in range(4)), mask=True)
    assert prepared(tmp_path, "--source", tmp_path / "all") == {f"{i}_sat" for i in range(4)}


def test_other_files_about_an_image_are_left_alone(tmp_path, capsys):
    place(tmp_path / "images", *(f"{i}.jpg" for i in range(4)))
    place(tmp_path / "masks", *(f"{i}_gtFine_{end}.png" for i in range(4) for end in ("labelIds", "color")), mask=True)
    assert len(prepared(tmp_path, "--images", tmp_path / "images", "--masks", tmp_path / "masks")) == 4
    assert "left alone: 4 with '_gtFine_color' after the name" in capsys.readouterr().out


def test_a_mask_suffix_decides_where_names_allow_several(tmp_path, capsys):
    place(tmp_path / "images", *(f"{i}.jpg" for i in range(4)))
    place(tmp_path / "masks", *(f"{i}_{end}.png" for i in range(4) for end in ("a", "b")), mask=True)
    args = "--images", tmp_path / "images", "--masks", tmp_path / "masks"
    assert run("folder", *args, "--out", tmp_path / "mine") == 1
    error = capsys.readouterr().err
    assert "two masks for one image" in error and "--mask-suffix _a for 4, --mask-suffix _b for 4" in error
    place(tmp_path / "masks", "0.png", mask=True)
    assert len(prepared(tmp_path, *args, "--mask-suffix", "_b")) == 4
    assert f"{tmp_path}/masks/0_b.png" not in str(snapshot(tmp_path / "mine"))  # labels are written, not linked


def test_a_mask_suffix_counts_at_the_end_of_a_name_in_a_shared_folder_too(tmp_path):
    place(tmp_path / "all", *(f"{i}_L_new.jpg" for i in range(4)))
    place(tmp_path / "all", *(f"{i}_L_new_L.png" for i in range(4)), mask=True)
    assert len(prepared(tmp_path, "--source", tmp_path / "all", "--mask-suffix", "_L")) == 4


def test_a_mask_that_fits_two_images_is_given_to_neither(args, tmp_path, capsys):
    place(tmp_path / "images", "a.jpg", "a_mask.jpg", "b.jpg")
    place(tmp_path / "masks", "a_mask.png", "b_mask.png", mask=True)
    assert run(*args) == 1
    error = capsys.readouterr().err
    assert "a_mask.png: a mask for two images, " in error and "--mask-suffix _mask for 2" in error
    assert run(*args, "--mask-suffix", "_mask") == 1
    assert "images/a_mask.jpg: an image without a mask" in capsys.readouterr().err


def test_a_mask_suffix_that_fits_nothing_gets_those_that_would(args, tmp_path, capsys):
    place(tmp_path / "images", "a.jpg", "b.jpg")
    place(tmp_path / "masks", "a_L.png", "b_L.png", mask=True)
    assert run(*args, "--mask-suffix", "_gt") == 1
    assert (
        "with '_gt' after it. Images: a, b; masks: a_L, b_L. What the names allow: --mask-suffix _L for 2"
        in capsys.readouterr().err
    )


def test_images_and_masks_without_partner_are_named_with_what_was_expected(args, tmp_path, capsys):
    place(tmp_path / "images", "a.jpg", "b.jpg", "c.jpg")
    place(tmp_path / "masks", "a_L.png", "b_L.png", "x_L.png", "a2_L.png", mask=True)
    assert run(*args) == 1
    error = capsys.readouterr().err
    assert f"images/c.jpg: an image without a mask: expected {tmp_path}/masks/c_L.png" in error
    assert "3 of 5 samples" in error and "masks/a2_L.png: a mask without an image" in error
    assert f"masks/x_L.png: a mask without an image: expected {tmp_path}/images/x with the file type" in error
    assert run(*args, "--skip-bad") == 0


def test_of_two_endings_the_one_of_most_masks_is_expected(args, tmp_path, capsys):
    place(tmp_path / "images", "a.jpg", "b.jpg", "c.jpg", "d.jpg")
    place(tmp_path / "masks", "a_label.png", "b_mask.png", "c_mask.png", mask=True)
    assert run(*args) == 1
    assert f"images/d.jpg: an image without a mask: expected {tmp_path}/masks/d_mask.png" in capsys.readouterr().err


def test_names_that_have_nothing_in_common_are_shown(args, tmp_path, capsys):
    place(tmp_path / "images", "a.jpg", "b.jpg")
    place(tmp_path / "masks", "x.png", "y.png", mask=True)
    assert run(*args) == 1
    assert "no mask has the name of an image" in (error := capsys.readouterr().err) and "Images: a, b; masks: x, y" in error


def test_masks_in_a_folder_inside_that_of_the_images(tmp_path):
    place(tmp_path / "all", "a.png", "b.png")
    place(tmp_path / "all/masks", "a.png", "b.png", mask=True)
    assert prepared(tmp_path, "--images", tmp_path / "all", "--masks", tmp_path / "all/masks") == {"a", "b"}


# ---- splits


def test_bad_files_are_dropped_before_the_validation_images_are_drawn(own, tmp_path):
    before = tmp_path / "before"
    run("folder", *own[:-1], before, "--val-ratio", "0.2")
    for line in lines(before / "list/val.txt"):  # all that would be drawn
        (tmp_path / "photos" / line.split("\t")[0].removeprefix("image/")).write_bytes(b"")
    assert run("folder", *own, "--val-ratio", "0.25", "--skip-bad") == 0
    assert len(lines(tmp_path / "mine/list/val.txt")) == 2 and len(lines(tmp_path / "mine/list/train.txt")) == 6


def test_an_orphan_does_not_disturb_the_splits_of_folders(args, tmp_path):
    place(tmp_path / "images", "train/a.png", "train/b.png", "valid/c.png")
    place(tmp_path / "masks", "train/a.png", "train/b.png", "valid/c.png", "valid/x.png", mask=True)
    assert run(*args, "--skip-bad") == 0
    assert lines(tmp_path / "mine/list/val.txt") == ["image/valid/c.png label/valid/c.png"]


@pytest.mark.parametrize("train, val, test", [("Train", "VAL", "Test"), ("training", "validation", "testing")])
def test_splits_in_capitals_are_known_and_a_stray_image_that_undoes_them_is_named(args, tmp_path, capsys, train, val, test):
    names = [f"{train}/a.png", f"{train}/b.png", f"{val}/c.png", f"{test}/d.png"]
    place(tmp_path / "images", *names)
    place(tmp_path / "masks", *names, mask=True)
    assert run(*args) == 0 and "split anew" not in capsys.readouterr().out
    assert [len(lines(tmp_path / f"mine/list/{split}.txt")) for split in ("train", "val", "test")] == [2, 1, 1]
    place(tmp_path / "images", "x.png")
    place(tmp_path / "masks", "x.png", mask=True)
    assert run(*args) == 0
    assert "the images of train and val are split anew, since 1 are in no split: x\n" in capsys.readouterr().out
    assert lines(tmp_path / "mine/list/test.txt") == [f"image/{test}/d.png label/{test}/d.png"]


def test_images_of_train_and_test_alone_are_drawn_anew_without_a_word_of_strays(args, tmp_path, capsys):
    names = ["train/a.png", "train/b.png", "train/c.png", "test/d.png"]
    place(tmp_path / "images", *names)
    place(tmp_path / "masks", *names, mask=True)
    assert run(*args) == 0 and "split anew" not in capsys.readouterr().out
    assert [len(lines(tmp_path / f"mine/list/{split}.txt")) for split in ("trainval", "test")] == [3, 1]


def test_one_image_that_is_left_cannot_be_split(own, tmp_path, capsys):
    for path in sorted((tmp_path / "photos").rglob("*.JPG"))[1:]:
        path.write_bytes(b"")
    assert run("folder", *own, "--skip-bad") == 1
    error = capsys.readouterr().err
    assert "images with a label: 1; at least 2 are needed" in error
    assert f"val; left out: {tmp_path / 'photos/day 0/IMG_0002.JPG'}: " in error and "and 8 more" in error


# ---- a config of one's own


@pytest.fixture
def configs(tmp_path, monkeypatch):
    """The folder that --config writes into."""
    monkeypatch.setattr("dataset.write_config.CONFIGS", tmp_path / "config")
    return tmp_path / "config"


def test_a_config_is_written_complete_and_never_over_another(own, tmp_path, configs, capsys):
    assert run("folder", *own, "--config", "mine") == 0
    out, path = capsys.readouterr().out, configs / "mine/mine_pspnet18.yaml"
    for command in ("sh tool/train.sh mine pspnet18\n", "sh tool/test.sh mine pspnet18\n", f"demo.py --config {path} --image "):
        assert command in out
    cfg = load_config(path, must_exist=["data_root", "train_list", "val_list", "test_list"], check=check_config)
    assert (
        cfg.classes == 3 and cfg.train_list == f"{tmp_path}/mine/list/train.txt" and cfg.names_path.endswith("mine_names.txt")
    )
    assert cfg.save_path == str(ROOT / "exp/mine/pspnet18/model") and cfg.batch_size == 8
    assert list(load_cfg_from_cfg_file(path)) == list(load_cfg_from_cfg_file(TEMPLATE)) and "camvid" not in path.read_text()
    path.write_text(mine := path.read_text().replace("epochs: ", "epochs: 1"))
    assert run("folder", *own, "--config", "mine") == 0
    assert "is there and stays as it is" in capsys.readouterr().out and path.read_text() == mine
    assert run("folder", *own[:-1], tmp_path / "other", "--config", "mine") == 1
    other = f"data_root: {tmp_path / 'mine'}, and the output is {tmp_path / 'other'}; remove {path}"
    assert f"{path}: is there with {other}" in capsys.readouterr().err
    path.write_text(mine.replace("classes: 3", "classes: 4"))
    assert run("folder", *own, "--config", "mine") == 1
    assert f"{path}: is there with classes: 4, and these data have 3; remove {path}" in capsys.readouterr().err


@pytest.mark.parametrize("size, train, expected", [
    ((360, 480), 367, {"train_h": 193, "train_w": 257, "base_size": 480, "test_h": 361, "test_w": 481, "scale_min": 0.75,
                       "batch_size": 8, "epochs": 9, "eval_freq": 1, "loss": "ce", "class_weights": "sqrt"}),
    ((480, 360), 367, {"train_h": 257, "train_w": 193, "test_h": 481, "test_w": 361}),
    ((3000, 4000), 20, {"train_h": 241, "train_w": 321, "base_size": 1024, "test_h": 769, "test_w": 1025, "scale_min": 0.192,
                        "scale_max": 0.384, "epochs": 200, "eval_freq": 20}),
    ((192, 256), 3, {"train_h": 185, "train_w": 193, "base_size": 256, "test_h": 193, "test_w": 257, "batch_size": 3}),
    ((20, 3000), 9, {"train_h": 9, "train_w": 321, "base_size": 1024}),
])  # fmt: skip
def test_sizes_of_a_config_fit_the_median_image(tmp_path, configs, size, train, expected):
    sizes = [size] * 5 + [(10, 10), (9000, 9000)]
    write_config("mine", f"{tmp_path}/it's: mine #1", "mine", "how", 4, train, sizes)
    cfg = load_config(configs / "mine/mine_pspnet18.yaml", check=check_config)
    assert {key: getattr(cfg, key) for key in expected} == expected
    assert cfg.train_h <= max(size[0], 9) and cfg.train_w <= size[1] and cfg.data_root == f"{tmp_path}/it's: mine #1"


@pytest.mark.parametrize("name", ["a/b", "../a", "", "a b", "-a"])
def test_a_name_that_no_config_can_have_is_refused_before_the_work(own, tmp_path, capsys, name):
    assert run("folder", *own, f"--config={name}") == 1
    assert "expected a name of letters, digits, - and _" in capsys.readouterr().err and not (tmp_path / "mine").exists()


@pytest.mark.parametrize("name", ["two\nlines", "caf\udce9", "a\u2028b", "bell\a"])
def test_a_path_that_no_config_can_hold_is_refused_before_the_work(own, tmp_path, configs, capsys, name):
    assert run("folder", *own[:-1], tmp_path / name, "--config", "mine") == 1
    assert "--config mine: a YAML file cannot hold paths with line breaks" in capsys.readouterr().err
    assert not (tmp_path / name).exists() and not configs.exists()


def test_a_folder_that_no_config_can_name_leaves_none(own, tmp_path, configs, capsys):
    assert run("folder", *own[:-1], tmp_path / "{mine}", "--config", "mine") == 1
    assert "{mine} is not the name of another key" in capsys.readouterr().err
    assert not list(configs.rglob("*.yaml")) and not list(configs.rglob("*.tmp"))


VARIANTS = {
    "colours": ("--colors", "{root}/colors.txt"),
    "palette": ("--mask-suffix", "_L"),
    "binary": ("--ids", "0", "255"),
    "16 bits": ("--ids", "0", "7", "300", "--void", "65535"),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_own_data_train_and_predict_with_three_commands(tmp_path, configs, narrow, variant):
    root = tmp_path / "own data"
    for i in range(5):
        name = f"day {i % 2}/IMG_{i}" if variant == "palette" else f"IMG_{i}"
        put(root / "images" / f"{name}.jpg", picture(i, (48, 64)))
        mask = ids([0, 1, 2, 255], (48, 64))
        if variant == "colours":
            put(root / "masks" / f"{name}.png", np.uint8([(0, 0, 0), (255, 0, 0), (0, 128, 0)])[mask % 3])
        elif variant == "palette":
            palette = Image.fromarray(mask)
            palette.putpalette([0, 0, 0, 255, 0, 0, 0, 128, 0, *[9] * 759])
            (root / "masks" / name).parent.mkdir(parents=True, exist_ok=True)
            palette.save(root / "masks" / f"{name}_L.png")
        elif variant == "binary":
            put(root / "masks" / f"{name}.png", np.uint8(255) * (mask == 1))
        else:
            put(root / "masks" / f"{name}.png", np.uint16([0, 7, 300, 65535])[np.minimum(mask, 3)])
    (root / "colors.txt").write_text("0 0 0 void\n255 0 0 poppy\n0 128 0 grass\n")
    flags = [flag.format(root=root) for flag in VARIANTS[variant]]
    out, config = tmp_path / "my set", configs / "mine/mine_pspnet18.yaml"
    assert run("folder", "--images", root / "images", "--masks", root / "masks", "--out", out, "--config", "mine", *flags) == 0
    quick = ["save_path", str(tmp_path / "model"), "epochs", "1", "workers", "0"]  # for the test: nothing needs it
    assert train.main(["--config", str(config), *quick]) == 0
    assert (
        demo.main(["--config", str(config), "--image", str(root / "images/**/*.jpg"), "--out", str(tmp_path / "seen"), *quick])
        == 0
    )
    assert len([*(tmp_path / "seen").rglob("*_overlay.png")]) == 5


def test_own_faults_are_all_named(own, tmp_path, capsys):
    (tmp_path / "names.txt").write_text("a\nb\nc\n")
    masks = tmp_path / "masks/day 0"
    (masks / "IMG_0000.png").write_bytes(b"")
    put(masks / "IMG_0002.png", ids([0, 9]))
    put(masks / "IMG_0004.png", ids([0], (5, 5)))
    put(masks / "IMG_0006.png", picture(1))
    put(masks / "extra.png", ids([0]))
    (masks / "IMG_0008.png").unlink()
    put(masks / "IMG_0008.jpg", ids([0]))
    (tmp_path / "photos/day 1/IMG_0001.JPG").write_bytes(b"no image")
    assert run("folder", *own, "--names", tmp_path / "names.txt", "--skip-bad") == 0
    skipped = lines(tmp_path / "mine/skipped.txt")
    expected = {"IMG_0000.png": "empty", "IMG_0002.png": "9 (384 pixels)", "IMG_0004.png": "5 x 5, but", "IMG_0008.jpg": "JPEG",
                "IMG_0006.png": "a colour mask", "extra.png": "without an image",
                "IMG_0001.JPG": "cannot be decoded"}  # fmt: skip
    for name, reason in expected.items():
        assert any(name in line and reason in line for line in skipped), name
    assert len(skipped) == len(expected) and "7 left out" in capsys.readouterr().out


@pytest.mark.parametrize("name, reason", [
    ("new\nline", "a TAB or a line break"), ("a\tb", "a TAB or a line break"), ("a\rb", "a TAB or a line break"),
    ("\udcff", "is not UTF-8"),
])  # fmt: skip
def test_a_name_that_no_list_can_hold_is_a_fault(own, tmp_path, name, reason):
    put(tmp_path / "photos" / f"{name}.png", picture(1))
    put(tmp_path / "masks" / f"{name}.png", ids([0, 1, 2]))
    with pytest.raises(Mistake, match=f"its name .*{reason}"):
        prepare.main(["folder", *map(str, own)])
    assert run("folder", *own, "--skip-bad") == 0
    assert reason in (tmp_path / "mine/skipped.txt").read_text(encoding="utf-8")
    assert len(pairs_of(tmp_path / "mine")) == 10


def test_any_name_can_be_printed_in_any_locale(own, tmp_path):
    for name in ("\udcff.txt", "é.txt"):
        (tmp_path / "photos" / name).write_text("left alone")
    plain = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, ROOT / "tool/prepare.py", "folder", *own], env=plain, capture_output=True, check=False
    )
    assert done.returncode == 0 and b"left alone: " in done.stdout and not done.stderr


def test_names_with_spaces_at_their_ends_and_rare_characters_are_kept(tmp_path):
    names = (" a", "b ", "c\u2028d", "#e", "f  g", "-h", "\xa0i\xa0", "é東")
    for name in names:
        put(tmp_path / "photos" / f"{name}.png", picture(1))
        put(tmp_path / "masks" / f"{name}.png", ids([0, 1]))
    assert run("folder", "--images", tmp_path / "photos", "--masks", tmp_path / "masks", "--out", tmp_path / "mine") == 0
    found = [
        pair for split in ("train", "val") for pair in read_list(tmp_path / f"mine/list/{split}.txt", tmp_path / "mine", split)
    ]
    assert {Path(image).stem for image, _ in found} == {Path(label).stem for _, label in found} == {*names}


def test_photographs_turned_by_exif_fit_their_upright_masks(own, tmp_path, capsys):
    exif = Image.Exif()
    exif[0x112] = 6
    for path in (tmp_path / "photos").rglob("*.JPG"):
        Image.fromarray(picture(1, SIZE[::-1])).save(path, exif=exif)  # stored on its side
    assert run("folder", *own) == 0
    Image.fromarray(picture(1)).save(tmp_path / "photos/day 0/IMG_0000.JPG", exif=exif)
    assert run("folder", *own) == 1
    assert (
        "day 0/IMG_0000.JPG is 24 x 32; the label fits the pixels as they are stored, but the image's EXIF"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize("spoil, message", [
    (lambda out: out.write_text(""), "mine: could not be written: file exists"),
    (lambda out: out.symlink_to(out), "mine/image.*: not a folder that can be written to|could not be written"),
    (lambda out: (out / "skipped.txt").mkdir(parents=True), "skipped.txt: cannot be removed"),
    (lambda out: (out / "list/val.txt").mkdir(parents=True), "list/val.txt: could not be written"),
], ids=["a file", "a loop of links", "a folder for skipped.txt", "a folder for a list"])  # fmt: skip
def test_an_output_that_cannot_be_written_is_named(own, tmp_path, capsys, spoil, message):
    spoil(tmp_path / "mine")
    assert run("folder", *own) == 1
    assert re.search(f"error: .*{message}", capsys.readouterr().err)


@pytest.mark.parametrize("option, content, message", [
    ("--names", b"\xff\n", "file.txt: not UTF-8 text"), ("--colors", b"\xff\n", "file.txt: not UTF-8 text"),
    ("--colors", b"1 2 " + b"9" * 5000, "entry 1 is '1 2 999"), ("--colors", "1 2 ³ a".encode(), "entry 1 is '1 2 ³ a'"),
    ("--names", None, "file.txt: no such file"), ("--colors", None, "file.txt: no such file"),
])  # fmt: skip
def test_unfit_files_of_names_and_colours_are_named(own, tmp_path, capsys, option, content, message):
    if content is not None:
        (tmp_path / "file.txt").write_bytes(content)
    assert run("folder", *own, option, tmp_path / "file.txt") == 1
    assert message in capsys.readouterr().err


def test_one_id_for_two_classes_is_refused(own, capsys):
    assert run("folder", *own, "--ids", 0, 0, 1) == 1
    assert "--ids 0 0 1: an id is given twice" in capsys.readouterr().err


def test_a_value_to_ignore_that_is_a_class_is_refused(own, tmp_path, capsys):
    (tmp_path / "names.txt").write_text("unlabelled\nroad\ncar\n")
    (tmp_path / "colors.txt").write_text("0 0 0 a\n1 1 1 b\n")
    for args, message in (
        (["--names", tmp_path / "names.txt"], "--void 0: this value is the class unlabelled; the classes are the ids 0, 1, 2."),
        (["--ids", 2, 1, 0], "--void 0: this value is the class class2; the classes are the ids 2, 1, 0."),
        (["--colors", tmp_path / "colors.txt"], "--void is for masks of ids; with --colors, give the colours to ignore"),
    ):
        assert run("folder", *own, "--void", 0, 255, *args) == 1
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("args, message", [
    (["--images", "x" * 300, "--masks", "."], "x: file name too long"),
    (["--source", "x", "--images", "y", "--masks", "z"], "give --images DIR and --masks DIR, or --source"),
    (["--images", "y"], "give --images DIR and --masks DIR, or --source"),
    (["--images", "nowhere", "--masks", "nowhere"], "nowhere: no such folder"),
])  # fmt: skip
def test_own_folder_arguments_are_checked(tmp_path, capsys, args, message):
    assert run("folder", *args, "--out", tmp_path / "mine") == 1
    assert message in capsys.readouterr().err
