import json
import os
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from processes import CONFIG, finish, said, small_training, start

from model import build_model
from tool import demo, test
from util.checkpoint import save_checkpoint
from util.common import Mistake
from util.config import load_config
from util.image import read_image
from util.inference import predict
from util.metric import confusion_matrix, scores
from util.report import earlier_protocol, set_result_aside
from util.transform import MEAN, STD
from util.visual import overlay, save_png

pytestmark = pytest.mark.usefixtures("narrow")
NAMES = ["road", "sky", "traffic light"]


@pytest.fixture(scope="module")
def project(narrow, tmp_path_factory):
    """Three little images, two of one name, with labels that hold no `sky`; a config; random weights in a checkpoint."""
    root = tmp_path_factory.mktemp("project")
    rng = np.random.default_rng(0)
    lines = []
    for name in ("aachen/1", "bonn/1", "bonn/2"):
        for kind in ("image", "label"):
            (root / kind / name).parent.mkdir(parents=True, exist_ok=True)
        image = rng.integers(0, 256, (40, 57, 3)).astype(np.uint8)
        label = rng.choice([0, 2, 255], (40, 57)).astype(np.uint8)
        Image.fromarray(image).save(root / f"image/{name}.png")
        Image.fromarray(label).save(root / f"label/{name}.png")
        lines.append(f"image/{name}.png label/{name}.png")
    (root / "val.txt").write_text("\n".join(lines) + "\n")
    (root / "names.txt").write_text("\n".join(NAMES))
    (root / "colors.txt").write_text("128 64 128\n0 0 255\n255 255 0\n")
    config = {
        "DATA": {"data_root": str(root), "classes": 3},
        "TRAIN": {"layers": 18, "train_h": 33, "train_w": 41, "save_path": str(root / "model")},
        "TEST": {
            "test_list": str(root / "val.txt"),
            "model_path": str(root / "train_epoch_7.pth"),
            "scales": [0.8, 1.0],
            "save_folder": str(root / "result"),
            "names_path": str(root / "names.txt"),
            "colors_path": str(root / "colors.txt"),
        },
    }
    (root / "config.yaml").write_text(yaml.safe_dump(config))
    torch.manual_seed(0)
    network = build_model(load_config(root / "config.yaml"))
    save_checkpoint({"epoch": 7, "state_dict": network.state_dict()}, root / "train_epoch_7.pth")
    return root


def run(project, *overrides):
    return test.main(["--config", str(project / "config.yaml"), *map(str, overrides)])


def expected_predictions(project, scales=(0.8, 1.0), base_size=None, **how):
    cfg = load_config(project / "config.yaml")
    network = build_model(cfg).eval()
    network.load_state_dict(torch.load(project / "train_epoch_7.pth")["state_dict"])
    for name in ("aachen/1", "bonn/1", "bonn/2"):
        image = np.asarray(Image.open(project / f"image/{name}.png"))
        pred = predict(
            network, image, classes=3, base_size=base_size, crop_h=33, crop_w=41, scales=scales, mean=MEAN, std=STD, **how
        )
        yield name, pred, np.asarray(Image.open(project / f"label/{name}.png"))


def test_predictions_and_scores_are_those_of_the_engine(project, tmp_path, capsys):
    assert run(project, "save_folder", tmp_path, "print_freq", 2) == 0
    confusion = 0
    for name, pred, label in expected_predictions(project):
        assert np.array_equal(Image.open(tmp_path / f"gray/{name}.png"), pred)  # named apart by their folders
        color = Image.open(tmp_path / f"color/{name}.png")
        assert color.mode == "P" and np.array_equal(color, pred) and color.getpalette()[:6] == [128, 64, 128, 0, 0, 255]
        confusion = confusion + confusion_matrix(pred, label, 3, 255)
    expected, result = scores(confusion), json.loads((tmp_path / "result.json").read_text())
    assert (result["mIoU"], result["mAcc"], result["allAcc"]) == (expected.mIoU, expected.mAcc, expected.allAcc)
    assert result["mDice"] == expected.mDice
    assert [c["target"] for c in result["classes"]] == confusion.sum(1).tolist()
    assert result["classes"][1]["accuracy"] is None and result["classes"][2]["name"] == "traffic light"
    protocol = result["protocol"]
    assert protocol["epoch"] == 7 and protocol["scales"] == [0.8, 1.0] and protocol["crop"] == [33, 41]
    assert protocol["images"] == 3 and protocol["flip"] is True

    screen = capsys.readouterr().out
    summary = f"mIoU/mAcc/allAcc {expected.mIoU:.4f}/{expected.mAcc:.4f}/{expected.allAcc:.4f}"
    assert f"Eval result: {summary}." in screen
    assert all(len(re.findall(rf"\b{name}\b", screen)) == 1 for name in NAMES)
    assert re.search(rf"^ +0  road +{expected.iou[0]:.4f} +{expected.accuracy[0]:.4f}", screen, re.M)
    assert f"Further: mDice {expected.mDice:.4f}, frequency-weighted IoU {expected.fwIoU:.4f}\n" in screen
    assert "Test: [2/3] Data " in screen and "Test: [3/3] Data " in screen
    markdown = (tmp_path / "result.md").read_text()
    assert summary in markdown and "- scales: [0.8, 1.0]" in markdown and f"- mDice: {expected.mDice:.4f}\n" in markdown
    assert "| 2 | traffic light | " in markdown


@pytest.mark.parametrize("mode", ["slide", "whole"])
def test_keys_of_the_config_test_as_mmsegmentation_does(project, tmp_path, mode):
    keys = ("average", "logit", "base_size", "[80, 50]", "test_mode", mode, "align_corners", True)
    assert run(project, "save_folder", tmp_path, *keys) == 0
    how = {"base_size": (80, 50), "average": "logit", "mode": mode, "align_corners": True}
    for name, pred, _ in expected_predictions(project, **how):
        assert np.array_equal(Image.open(tmp_path / f"gray/{name}.png"), pred)
    protocol = json.loads((tmp_path / "result.json").read_text())["protocol"]
    assert (protocol["average"], protocol["base_size"], protocol["mode"]) == ("logit", [80, 50], mode)
    assert (protocol.get("crop"), protocol.get("stride")) == (([33, 41], "2/3") if mode == "slide" else (None, None))
    markdown = (tmp_path / "result.md").read_text()
    assert "- average: logit\n" in markdown and "- base_size: [80, 50]\n" in markdown


def test_predictions_take_the_names_of_the_labels_if_told_to(project, tmp_path):
    lines = []
    for i, name in enumerate(("aachen/1", "bonn/1", "bonn/2")):
        (tmp_path / f"scene{i}_labels.png").write_bytes((project / f"label/{name}.png").read_bytes())
        lines.append(f"image/{name}.png {tmp_path}/scene{i}_labels.png")
    (tmp_path / "list.txt").write_text("\n".join(lines))
    options = ("save_folder", tmp_path / "out", "test_list", tmp_path / "list.txt", "name_by", "label")
    assert run(project, *options) == 0
    assert sorted(p.name for p in (tmp_path / "out/gray").iterdir()) == [f"scene{i}_labels.png" for i in range(3)]
    for i, (_, pred, _) in enumerate(expected_predictions(project)):
        assert np.array_equal(Image.open(tmp_path / f"out/gray/scene{i}_labels.png"), pred)
    first = json.loads((tmp_path / "out/result.json").read_text())
    for n, earlier in enumerate(("-before", "-before-2", "-before-3")):
        assert run(project, *options, "has_prediction", True, "index_step", n + 1) == 0
        images = [json.loads((tmp_path / f"out/result{end}.json").read_text())["protocol"]["images"] for end in ("", earlier)]
        assert images == [n + 1, n or 3]
    assert json.loads((tmp_path / "out/result.json").read_text())["mIoU"] == first["mIoU"]


def test_slices_of_the_list_make_up_the_whole_when_scored(project, tmp_path, capsys):
    whole, slices = tmp_path / "whole", tmp_path / "slices"
    (whole / "ade20k").mkdir(parents=True)
    assert run(project, "save_folder", whole) == 0
    assert f"{whole}/ade20k is not of this test: --format ade20k would" in capsys.readouterr().out
    assert run(project, "save_folder", slices, "index_step", 1) == 0
    assert run(project, "save_folder", slices, "index_start", 1) == 0
    assert json.loads((slices / "result-before.json").read_text())["protocol"]["images"] == 1
    assert run(project, "save_folder", slices, "has_prediction", True, "model_path", "null") == 0
    whole, slices = (json.loads((folder / "result.json").read_text()) for folder in (whole, slices))
    assert whole["classes"] == slices["classes"] and slices["protocol"]["images"] == 3
    one, two = ((tmp_path / name / "images.csv").read_bytes() for name in ("whole", "slices"))
    assert one == two and one.count(b"\r\n") == 4
    assert slices["protocol"]["epoch"] == 7  # scoring again does not forget how the predictions were made
    assert slices["protocol"]["predicted"] == "2 of 3 images, from number 1" and "predicted" not in whole["protocol"]


def test_predictions_that_are_scored_again_keep_the_names_and_colours_of_their_checkpoint(project, tmp_path):
    content = torch.load(project / "train_epoch_7.pth")
    content |= {"names": ["Way", "Wagon", "Air"], "palette": [[1, 2, 3], [4, 5, 6], [7, 8, 9]]}
    save_checkpoint(content, tmp_path / "named.pth")
    options = "save_folder", tmp_path / "out", "names_path", "null", "colors_path", "null"
    assert run(project, *options, "model_path", tmp_path / "named.pth") == 0
    result, table = json.loads((tmp_path / "out/result.json").read_text()), (tmp_path / "out/confusion.csv").read_text()
    assert [of["colour"] for of in result["classes"]] == content["palette"] and "Wagon" in table
    assert run(project, *options, "has_prediction", True, "model_path", "null") == 0
    assert json.loads((tmp_path / "out/result.json").read_text())["classes"] == result["classes"]
    assert (tmp_path / "out/confusion.csv").read_text() == table


@pytest.mark.parametrize("status, expected", [(75, 130), (1, 1), (0, 0)])
def test_a_test_on_several_gpus_that_a_signal_ends_is_not_to_be_started_again(project, tmp_path, monkeypatch, status, expected):
    monkeypatch.setattr(test.distributed, "launch", lambda *_: status)
    assert run(project, "save_folder", tmp_path) == expected


def test_scored_files_need_no_network_and_a_wrong_id_is_a_miss(project, tmp_path):
    for name in ("aachen/1", "bonn/1", "bonn/2"):
        label = np.array(Image.open(project / f"label/{name}.png"))
        label[:20][label[:20] == 2] = 77
        (tmp_path / "gray" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(label).save(tmp_path / f"gray/{name}.png")
    assert run(project, "save_folder", tmp_path, "has_prediction", True, "model_path", "null") == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["classes"][0]["iou"] == 1 and result["classes"][1]["iou"] is None
    assert 0.4 < result["classes"][2]["iou"] == result["classes"][2]["accuracy"] < 0.6
    assert result["mIoU"] == (1 + result["classes"][2]["iou"]) / 2


def test_split_without_labels_predicts_and_gives_no_score(project, tmp_path, capsys):
    (tmp_path / "list.txt").write_text("image/bonn/1.png\nimage/bonn/2.png\n")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/result.json").write_text('{"protocol": {"epoch": 3}}')  # of the predictions that are replaced
    for name in ("result.md", "report.html", "confusion.csv", "images.csv"):
        (tmp_path / "out" / name).write_text("old")
    assert earlier_protocol(tmp_path / "out") == {"epoch": 3}
    assert run(project, "save_folder", tmp_path / "out", "split", "test", "test_list", tmp_path / "list.txt") == 0
    assert (tmp_path / "out/gray/1.png").is_file() and not (tmp_path / "out/result.json").exists()
    assert "no labels, so there is no score" in capsys.readouterr().out
    assert earlier_protocol(tmp_path / "out") == {"predictions": f"{tmp_path}/out/gray, made elsewhere"}
    assert (tmp_path / "out/result-before.json").read_text() == '{"protocol": {"epoch": 3}}'
    assert (tmp_path / "out/report-before.html").read_text() == "old" and (tmp_path / "out/result-before.md").exists()
    assert not any((tmp_path / "out" / name).exists() for name in ("result.md", "report.html", "confusion.csv", "images.csv"))


@pytest.mark.parametrize(
    "overrides, message",
    [
        (("model_path", "nowhere.pth"), "nowhere.pth does not exist"),
        (("model_path", "null"), "TEST.model_path: this key must be set"),
        (("save_folder", "null"), "TEST.save_folder: this key must be set"),
        (("test_list", "none.txt"), "none.txt does not exist"),
        (("classes", 4, "names_path", "null", "colors_path", "null"), "weights of another network"),
        (("classes", 4), "names.txt: expected 4 names, one a line, found 3"),
        (("index_start", 3), "TEST.index_start: 3 is behind the last of the 3 images"),
        (("has_prediction", True), "3 of the 3 predictions do not exist: "),
        (("split", "test", "name_by", "label"), "TEST.name_by: label: split test has no labels; set name_by: image"),
        (("has_prediction", True, "split", "test"), "has_prediction has nothing to score with"),
        (("scale", 1), "did you mean scales?"),
    ],
)
def test_mistakes_end_before_the_first_image_with_one_message(project, tmp_path, capsys, overrides, message):
    assert run(project, "save_folder", tmp_path, *overrides) == 1
    assert message in capsys.readouterr().err and not (tmp_path / "gray").exists()


def test_a_missing_image_is_named(project, tmp_path, capsys):
    (tmp_path / "list.txt").write_text("image/bonn/1.png label/bonn/1.png\nimage/bonn/9.png label/bonn/2.png\n")
    assert run(project, "save_folder", tmp_path / "out", "test_list", tmp_path / "list.txt") == 1
    assert "image/bonn/9.png" in capsys.readouterr().err and not (tmp_path / "out/gray").exists()


def test_a_wrong_label_is_named_with_its_file(project, tmp_path, capsys):
    Image.fromarray(np.full((40, 57), 9, np.uint8)).save(tmp_path / "bad.png")
    (tmp_path / "list.txt").write_text(f"image/bonn/1.png {tmp_path / 'bad.png'}\n")
    save_png(tmp_path / "gray/1.png", np.zeros((40, 57), np.uint8))
    for options in ((), ("has_prediction", True)):
        assert run(project, "save_folder", tmp_path, "test_list", tmp_path / "list.txt", *options) == 1
        assert "bad.png: label ids outside 0..2 that are not ignore_label = 255: 9 (2280 pixels)" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["[]", "{}", "", '{"protocol": 3}', "\0\x01", "[" * 100_000, '"protocol"', "null",
                                     '{"protocol": {"a": "\\ud800"}}'])  # fmt: skip
def test_a_result_json_of_something_else_is_named(project, tmp_path, capsys, content):
    """The protocol of the predictions is read from it."""
    for name in ("aachen/1", "bonn/1", "bonn/2"):
        (tmp_path / "gray" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"gray/{name}.png").write_bytes((project / f"label/{name}.png").read_bytes())
    (tmp_path / "result.json").write_text(content)
    assert run(project, "save_folder", tmp_path, "has_prediction", True, "model_path", "null") == 1
    assert f"error: {tmp_path / 'result.json'}: not a result of tool/test.py" in capsys.readouterr().err
    assert (tmp_path / "result.json").read_text() == content and not (tmp_path / "report.html").exists()


def test_a_result_json_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    def denied(*words, **more):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "result.json").touch()
    monkeypatch.setattr(os, "replace", denied)
    for name in ("is_file", "read_text"):  # is_file: of Python before 3.14, in a folder that cannot be entered
        monkeypatch.setattr(Path, name, denied)
    for function in (earlier_protocol, set_result_aside):
        with pytest.raises(Mistake, match=f"^{tmp_path}/result.json: permission denied"):
            function(tmp_path)


def test_a_prediction_of_another_size_is_named(project, tmp_path, capsys):
    (tmp_path / "list.txt").write_text("image/bonn/1.png label/bonn/1.png\n")
    (tmp_path / "gray").mkdir()
    Image.fromarray(np.zeros((20, 57), np.uint8)).save(tmp_path / "gray/1.png")
    assert run(project, "save_folder", tmp_path, "test_list", tmp_path / "list.txt", "has_prediction", True) == 1
    error = capsys.readouterr().err
    assert f"{tmp_path}/gray/1.png: 57 x 20, but the label {project}/label/bonn/1.png is 57 x 40" in error


@pytest.mark.parametrize("program", ["test", "demo"])
def test_a_network_whose_output_is_not_finite_ends_with_the_name_of_the_image(project, tmp_path, capsys, program):
    """All weights are finite; only the logits are not."""
    checkpoint = torch.load(project / "train_epoch_7.pth")
    checkpoint["state_dict"]["cls.4.weight"].fill_(3e38)
    save_checkpoint(checkpoint, tmp_path / "large.pth")
    if program == "test":
        assert run(project, "save_folder", tmp_path / "out", "model_path", tmp_path / "large.pth") == 1
        assert not (tmp_path / "out/result.json").exists()
    else:
        words = ("--image", project / "image/aachen/1.png", "--out", tmp_path / "out", "model_path", tmp_path / "large.pth")
        assert show(project, *words) == 1
    assert f"error: {project}/image/aachen/1.png: the network's output is NaN or infinite" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["gray", "color", "report.html", "result.json", "confusion.csv", "images.csv",
                                  "overlay"])  # fmt: skip
def test_a_result_that_cannot_be_written_is_named(project, tmp_path, capsys, what):
    if "." in what:
        (tmp_path / what / "full").mkdir(parents=True)  # a folder where a file should be, and the reverse
    else:
        (tmp_path / what).write_text("")
    assert run(project, "save_folder", tmp_path) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path / what}") and "could not be written" in error


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_save_folder_that_is_a_file_is_named(project, tmp_path, capsys, place):
    (tmp_path / "file").write_text("")
    assert run(project, "save_folder", tmp_path / place) == 1
    assert f"error: TEST.save_folder: no results can be written to {tmp_path / place}" in capsys.readouterr().err


@pytest.mark.parametrize("mistake", [("scale", 1), ("save_folder", "null"), ("model_path", "nowhere.pth"), ("classes", 20),
                                     ("index_start", 99)])  # fmt: skip
def test_several_processes_report_a_mistake_once(toy, tmp_path, mistake):
    log = tmp_path / "log"
    options = small_training(toy, save_folder=tmp_path / "out", model_path=tmp_path / "weights.pth")
    torch.manual_seed(0)
    save_checkpoint({"state_dict": build_model(load_config(CONFIG)).state_dict()}, tmp_path / "weights.pth")
    assert finish(start(options, *mistake, log=log, world=3, program="tool.test")) == [1, 1, 1]
    assert said(log, 0).count("error: ") == 1 and "Traceback" not in said(log, 0), said(log, 0)
    assert said(log, 1) == said(log, 2) == ""


def test_several_processes_report_a_folder_that_cannot_be_written_once(toy, tmp_path):
    (tmp_path / "file").write_text("")
    log, options = tmp_path / "log", small_training(toy, model_path=tmp_path / "weights.pth")
    torch.manual_seed(0)
    save_checkpoint({"state_dict": build_model(load_config(CONFIG)).state_dict()}, tmp_path / "weights.pth")
    assert finish(start(options, "save_folder", tmp_path / "file/below", log=log, world=2, program="tool.test")) == [1, 1]
    assert said(log, 0).count("error: TEST.save_folder") == 1 and "Traceback" not in said(log, 0) and said(log, 1) == ""


def show(project, *words):
    return demo.main(["--config", str(project / "config.yaml"), *map(str, words)])


def test_demo_predicts_a_folder_with_every_scale(project, tmp_path, capsys):
    words = ("--no-legend", "scales", "[0.5, 1.0, 1.5]")
    assert show(project, "--image", project / "image/bonn", "--out", tmp_path, *words) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        f"{i}_{kind}.png" for i in (1, 2) for kind in ("color", "gray", "overlay")
    ]
    for name, pred, _ in expected_predictions(project, scales=(0.5, 1.0, 1.5)):
        if name.startswith("bonn"):
            assert np.array_equal(Image.open(tmp_path / f"{name[5:]}_gray.png"), pred)
            assert np.asarray(Image.open(tmp_path / f"{name[5:]}_overlay.png")).shape == (40, 57, 3)
    assert "1_overlay.png: " in capsys.readouterr().out


def test_demo_takes_a_file_or_a_pattern_and_another_model(project, tmp_path):
    model = project / "train_epoch_7.pth"
    assert show(project, "--image", project / "image/bonn/2.png", "--out", tmp_path / "a", "--model_path", model) == 0
    assert (tmp_path / "a/2_color.png").is_file()
    assert show(project, "--image", project / "image/*/1.png", "--out", tmp_path / "b") == 0
    assert (tmp_path / "b/aachen/1_overlay.png").is_file() and (tmp_path / "b/bonn/1_overlay.png").is_file()


def test_demo_names_what_it_could_not_find(project, tmp_path, capsys):
    for pattern, message in ((tmp_path / "no.jpg", "no such picture"), (tmp_path, "this folder holds no pictures")):
        assert show(project, "--image", pattern, "--out", tmp_path / "out") == 1
        assert f"error: --image {pattern}: {message}" in capsys.readouterr().err
    assert show(project, "--image", tmp_path, "--model_path", tmp_path / "no.pth") == 1
    assert "no.pth does not exist" in capsys.readouterr().err


def test_a_missing_checkpoint_is_answered_with_those_that_are_there(project, tmp_path, capsys):
    """As after a run of fewer epochs than the config's."""
    for i, name in enumerate(("train_epoch_9.pth", "train_epoch_10.pth", "model_best.pth")):
        (tmp_path / name).write_bytes(b"")
        os.utime(tmp_path / name, (i, i))
    model = ("model_path", tmp_path / "train_epoch_50.pth")
    words = f"{model[1]} does not exist; there are model_best.pth, train_epoch_10.pth, train_epoch_9.pth: name one, "
    words += f"model_path {tmp_path}/model_best.pth\n"
    assert run(project, *model) == 1 and words in capsys.readouterr().err
    assert show(project, "--image", project / "image/bonn", *model) == 1 and words in capsys.readouterr().err


def test_demo_predicts_the_pictures_that_it_can_read_and_lists_the_others(project, tmp_path, capsys):
    whole = (project / "image/bonn/1.png").read_bytes()
    for name, content in (("a.jpg", b"no picture"), ("b.png", whole[:40]), ("c.png", whole), ("d.png", b"")):
        (tmp_path / name).write_bytes(content)
    assert show(project, "--image", tmp_path, "--out", tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert "3 of 4 inputs are not done:" in error
    assert all(f"{tmp_path / name}: " in error for name in ("a.jpg", "b.png", "d.png")) and "c.png" not in error
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["c_color.png", "c_gray.png", "c_overlay.png"]


def test_demo_reads_a_16_bit_picture_as_the_test_does(project, tmp_path):
    pixels = np.random.default_rng(1).integers(0, 65536, (40, 57)).astype(np.uint16)
    cv2.imwrite(str(tmp_path / "deep.png"), pixels)
    (tmp_path / "list.txt").write_text(f"{tmp_path}/deep.png\n")
    assert run(project, "save_folder", tmp_path / "out", "split", "test", "test_list", tmp_path / "list.txt") == 0
    assert show(project, "--image", tmp_path / "deep.png", "--out", tmp_path / "seen", "--no-legend") == 0
    by_test, by_demo = (np.asarray(Image.open(tmp_path / name)) for name in ("out/gray/deep.png", "seen/deep_gray.png"))
    assert np.array_equal(by_test, by_demo)
    shown = np.asarray(Image.open(tmp_path / "seen/deep_overlay.png"))
    palette = np.uint8([[128, 64, 128], [0, 0, 255], [255, 255, 0]])
    assert np.array_equal(shown, overlay(read_image(tmp_path / "deep.png"), by_demo, palette)) and len(np.unique(shown)) > 100


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_demo_refuses_an_out_that_is_a_file(project, tmp_path, capsys, place):
    (tmp_path / "file").write_text("")
    assert show(project, "--image", project / "image/bonn/1.png", "--out", tmp_path / place) == 1
    assert f"error: --out {tmp_path / place}: no folder for the results" in capsys.readouterr().err
