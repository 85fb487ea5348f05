"""The files for evaluation servers, and the agreement with Cityscapes' own evaluation on rendered scenes in its layout."""

import copy
import json
import math

import numpy as np
import pytest
import yaml
from PIL import Image

from dataset.layout import CITYSCAPES_IDS
from dataset.server import save_for_server, server_files, voc_palette
from dataset.toy.scene import render_scene
from tool import prepare
from tool import test as program
from util.common import Mistake
from util.config import ROOT
from util.visual import load_colors, save_png

TRAIN_IDS = {label_id: train_id for train_id, label_id in enumerate((7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27,
                                                                     28, 31, 32, 33))}  # fmt: skip
VOID_IDS = (0, 1, 3, 4, 9, 10, 29, 30)


def label_ids(scene, rng, turn):
    """A rendered label as Cityscapes label ids: another nine of its classes each turn, several of its ids for void."""
    table = np.zeros(256, np.uint8)
    table[:9] = [list(TRAIN_IDS)[(k + 7 * turn) % 19] for k in range(9)]
    ids = table[scene]
    blocks = rng.choice(VOID_IDS, (scene.shape[0] // 8 + 1, scene.shape[1] // 8 + 1)).repeat(8, 0).repeat(8, 1)
    return np.where(scene == 255, blocks[: scene.shape[0], : scene.shape[1]], ids).astype(np.uint8)


@pytest.fixture(scope="module")
def cityscapes(tmp_path_factory):
    """Rendered scenes in Cityscapes' layout, prepared, with noisy predictions of train ids in result/gray; a config."""
    root = tmp_path_factory.mktemp("cityscapes")
    rng = np.random.default_rng(0)
    frames = [("train", "aachen_000000_000019"), ("val", "frankfurt_000000_000294"), ("val", "frankfurt_000001_000538"),
              ("val", "lindau_000002_000019"), ("val", "munster_000003_000019")]  # fmt: skip
    for turn, (split, frame) in enumerate(frames):
        image, scene = render_scene(rng, 64, 128)
        ids = label_ids(scene, rng, turn)
        city = frame.split("_")[0]
        save_png(root / f"source/leftImg8bit/{split}/{city}/{frame}_leftImg8bit.png", image)
        save_png(root / f"source/gtFine/{split}/{city}/{frame}_gtFine_labelIds.png", ids)
        table = np.zeros(256, np.uint8)  # what no class is in the label gets one in the prediction all the same
        table[list(TRAIN_IDS)] = list(TRAIN_IDS.values())
        pred = np.where(rng.random((8, 16)).repeat(8, 0).repeat(8, 1) < 0.3, rng.integers(0, 19), np.roll(table[ids], 2, 1))
        pred[:3, :5] = 255  # no class
        save_png(root / f"result/gray/{frame}_leftImg8bit.png", pred.astype(np.uint8))
    prepare.main(["cityscapes", "--source", str(root / "source"), "--out", str(root / "data")])
    config = {
        "DATA": {"data_root": str(root / "data"), "classes": 19},
        "TRAIN": {"save_path": str(root / "model")},
        "TEST": {"test_list": str(root / "data/list/fine_val.txt"), "save_folder": str(root / "result"),
                 "has_prediction": True, "names_path": str(ROOT / "dataset/cityscapes/cityscapes_names.txt")},
    }  # fmt: skip
    (root / "config.yaml").write_text(yaml.safe_dump(config))
    return root


def test_class_ious_are_those_of_the_official_evaluation(cityscapes):
    official = pytest.importorskip(
        "cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling", reason="needs pip install cityscapesscripts"
    )
    assert program.main(["--config", str(cityscapes / "config.yaml"), "--format", "cityscapes"]) == 0
    result = json.loads((cityscapes / "result/result.json").read_text())
    args = copy.copy(official.args)
    args.predictionPath, args.predictionWalk = str(cityscapes / "result/cityscapes"), None
    args.evalInstLevelScore, args.JSONOutput, args.quiet = False, False, True
    labels = sorted(map(str, (cityscapes / "source/gtFine/val").glob("*/*_gtFine_labelIds.png")))
    theirs = official.evaluateImgLists([official.getPrediction(args, label) for label in labels], labels, args)
    for ours in result["classes"]:
        iou = math.nan if ours["iou"] is None else ours["iou"]
        assert iou == pytest.approx(theirs["classScores"][ours["name"]], abs=1e-6, nan_ok=True), ours["name"]
    assert result["mIoU"] == pytest.approx(theirs["averageScoreClasses"], abs=1e-6) and 0.3 < result["mIoU"] < 0.8
    assert sum(ours["iou"] is not None for ours in result["classes"]) >= 17


def test_cityscapes_files_have_its_names_and_label_ids(cityscapes):
    assert program.main(["--config", str(cityscapes / "config.yaml"), "format", "cityscapes", "index_step", "1"]) == 0
    path = cityscapes / "result/cityscapes/frankfurt_000000_000294_pred_labelIds.png"
    gray = cityscapes / "result/gray/frankfurt_000000_000294_leftImg8bit.png"
    ids, pred = np.asarray(Image.open(path)), np.asarray(Image.open(gray))
    assert not ids[pred == 255].any() and set(np.unique(ids)) <= {0, *TRAIN_IDS}
    assert all((ids[pred == train_id] == label_id).all() for label_id, train_id in TRAIN_IDS.items())
    assert CITYSCAPES_IDS == TRAIN_IDS


def test_ade20k_files_hold_ids_plus_one(tmp_path):
    (file,) = server_files("ade20k", ["images/validation/ADE_val_00000001.jpg"], "val", 150)
    save_for_server(tmp_path / file, np.uint8([[0, 149, 255]]), "ade20k")
    assert np.asarray(Image.open(tmp_path / "ade20k/ADE_val_00000001.png")).tolist() == [[1, 150, 0]]


def test_voc_files_lie_in_its_folders_with_its_palette(tmp_path):
    files = server_files("voc2012", ["JPEGImages/2008_000009.jpg"], "test", 21)
    assert files == ["results/VOC2012/Segmentation/comp6_test_cls/2008_000009.png"]
    save_for_server(tmp_path / files[0], np.uint8([[0, 20, 255]]), "voc2012")
    image = Image.open(tmp_path / files[0])
    assert image.mode == "P" and np.asarray(image).tolist() == [[0, 20, 0]]
    assert np.asarray(image.convert("RGB"))[0].tolist() == [[0, 0, 0], [0, 64, 128], [0, 0, 0]]
    assert np.array_equal(voc_palette()[:21], load_colors(ROOT / "dataset/voc2012/voc2012_colors.txt", 21))
    assert voc_palette()[255].tolist() == [224, 224, 192]


def test_predictions_of_a_test_set_are_brought_into_a_servers_form_without_labels(cityscapes, tmp_path, capsys):
    save_png(tmp_path / "gray/2008_000009.png", np.full((5, 7), 20, np.uint8))
    save_png(tmp_path / "2008_000009.png", np.zeros((5, 7, 3), np.uint8))
    (tmp_path / "list.txt").write_text("2008_000009.png\n")
    words = ["data_root", tmp_path, "test_list", tmp_path / "list.txt", "split", "test", "classes", 21, "names_path", "null"]
    words = ["--config", cityscapes / "config.yaml", "--format", "voc2012", *words, "save_folder", tmp_path]
    assert program.main(list(map(str, words))) == 0
    assert (tmp_path / "results/VOC2012/Segmentation/comp6_test_cls/2008_000009.png").is_file()
    assert "Wrote 1 PNGs for the voc2012 server" in capsys.readouterr().out


@pytest.mark.parametrize("form, images, classes, message", [
    ("ade20k", ["a.jpg"], 19, "ade20k has 150 classes, but `classes` is 19"),
    ("cityscapes", ["aachen_000000_000019_leftImg8bit.png", "mine.png"], 19, "mine.png: cityscapes knows images by names like"),
    ("ade20k", ["a/1.jpg", "b/1.jpg"], 150, "a/1.jpg: another image has the same file name"),
])  # fmt: skip
def test_images_that_a_server_would_not_know_are_named(form, images, classes, message):
    with pytest.raises(Mistake, match=message):
        server_files(form, images, "val", classes)


def test_a_wrong_format_ends_before_the_first_image(cityscapes, tmp_path, capsys):
    words = ["--config", str(cityscapes / "config.yaml"), "--format", "ade20k", "save_folder", str(tmp_path)]
    assert program.main(words) == 1
    assert "TEST.format: ade20k has 150 classes, but `classes` is 19" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
