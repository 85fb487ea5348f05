"""A checkpoint is enough: to predict in Python, and to test."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from processes import CONFIG, ONE_BLOCK, finish, said, small_training, start

from model import build_model, resnet
from tool import benchmark, convert, demo, export, prepare, test, train
from util import inference
from util.checkpoint import load_checkpoint, save_checkpoint
from util.command import parse_test
from util.common import Mistake
from util.config import ROOT, load_config
from util.image import read_image, rgb_of
from util.inference import Predictor, predict, predict_probability, prediction_settings

pytestmark = pytest.mark.usefixtures("narrow")
TOY_NAMES = (ROOT / "dataset/toy/toy_names.txt").read_text().split("\n")[:9]


@pytest.fixture(scope="module")
def runs(toy, tmp_path_factory, narrow):
    """Folders `a` and `b` with model_best.pth of two little trainings, and `result` where their test writes."""
    root = tmp_path_factory.mktemp("runs")
    for name, layers in (("a", 18), ("b", 34)):
        own = {"save_path": root / name, "save_folder": root / f"result_{name}", "epochs": 1, "eval_freq": 1, "layers": layers}
        assert train.main(["--config", CONFIG, *small_training(toy, **own)]) == 0
        content = load_checkpoint(root / name / "model_best.pth")
        content["state_dict"]["cls.4.bias"].zero_()  # three iterations have taught it the most frequent class
        content["state_dict"]["cls.4.weight"] *= 30
        save_checkpoint(content, root / name / "model_best.pth")
    return root


@pytest.fixture
def picture(toy):
    return sorted((toy / "image/val").iterdir())[0]


def network_of(path, **changes):
    """Network and config of a checkpoint, without Predictor."""
    content = load_checkpoint(path)
    cfg = load_config(path, [word for pair in changes.items() for word in pair], checkpoint=content)
    network = build_model(cfg).eval()
    network.load_state_dict(content["state_dict"])
    return network, cfg


def without(path, target, *keys):
    """A copy of a checkpoint that lacks these keys."""
    save_checkpoint({key: value for key, value in load_checkpoint(path).items() if key not in keys}, target)
    return target


def refusal(function, *words, **more):
    with pytest.raises(Mistake) as error:
        function(*words, **more)
    return str(error.value)


def test_checkpoint_carries_config_names_and_palette(runs):
    content = load_checkpoint(runs / "a/model_best.pth")
    assert content["names"] == TOY_NAMES and yaml.safe_load(content["config"])["TRAIN"]["layers"] == 18
    assert content["palette"] == np.loadtxt(ROOT / "dataset/toy/toy_colors.txt", dtype=int).tolist()


def test_predictor_predicts_as_the_engine_does(runs, picture):
    """Equal up to the rounding of folded BatchNorms; and bit for bit with the folded network."""
    network, cfg = network_of(runs / "a/model_best.pth")
    predictor = Predictor(runs / "a/model_best.pth", "cpu", "fp32")
    settings, image = prediction_settings(cfg), read_image(picture)
    ids, probability = predictor(picture), predictor.probability(picture)
    assert ids.shape == image.shape[:2] and ids.dtype == np.uint8 and probability.dtype == torch.float32
    torch.testing.assert_close(probability, predict_probability(network, image, **settings), rtol=0, atol=1e-5)
    assert np.array_equal(ids, predict(predictor.networks[0], image, **settings))
    assert torch.equal(probability, predict_probability(predictor.networks[0], image, **settings))
    assert predictor.names == TOY_NAMES and predictor.palette.shape == (9, 3) and predictor.palette.dtype == np.uint8
    assert predictor.device == torch.device("cpu") and predictor.cfg.layers == 18


def test_a_path_a_pillow_image_and_arrays_are_the_same_picture(runs, picture):
    predictor, image = Predictor(str(runs / "a/model_best.pth")), read_image(picture)
    expected = predictor(image)
    assert len(np.unique(expected)) > 1
    floats = [image.astype(kind) for kind in (np.float32, np.float64, ">f4", np.longdouble)]
    for form in (picture, str(picture), Image.open(picture), *floats):
        assert np.array_equal(predictor(form), expected)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "I;16", "CMYK"])
def test_a_pillow_image_is_seen_as_its_file_is(picture, tmp_path, mode):
    if mode == "I;16":
        image = Image.fromarray(np.random.default_rng(0).integers(0, 65536, (48, 64)).astype(np.uint16))
    else:
        image = Image.open(picture).convert(mode)
    if mode in ("LA", "RGBA"):
        image.putalpha(Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64)).astype(np.uint8)))
    path = tmp_path / ("picture.jpg" if mode == "CMYK" else "picture.png")
    image.save(path)
    by_path, by_image = rgb_of(path), rgb_of(Image.open(path))
    assert by_path.shape == by_image.shape == (48, 64, 3) and by_path.std() > 10
    largest = 1 if mode == "CMYK" else 0  # decoders round the mixture of its inks differently
    assert np.abs(by_path.astype(int) - by_image).max() <= largest


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_exif_orientation_is_applied_to_paths_and_to_pillow_images(runs, picture, tmp_path, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    Image.open(picture).save(tmp_path / "turned.png", exif=exif)
    turned = np.rot90(np.asarray(Image.open(picture)), {3: 2, 6: 3, 8: 1}[orientation])
    predictor = Predictor(runs / "a/model_best.pth")
    expected = predictor(np.ascontiguousarray(turned))
    assert np.array_equal(predictor(tmp_path / "turned.png"), expected)
    assert np.array_equal(predictor(Image.open(tmp_path / "turned.png")), expected)


@pytest.mark.parametrize(
    "image, message",
    [
        (np.zeros((5, 5), np.uint8), "expected a path, a Pillow image or an RGB array (H, W, 3), found ndarray uint8 [5, 5]"),
        (np.zeros((5, 5, 4), np.uint8), "found ndarray uint8 [5, 5, 4]"),
        (Image.new("RGB", (5, 0)), "a Pillow image without pixels, 5 x 0"),
        (np.zeros((0, 5, 3), np.uint8), "found ndarray uint8 [0, 5, 3]"),
        (np.ones((5, 5, 3), np.uint16), "expected uint8, or float of 0..255, found ndarray uint16 [5, 5, 3] of 1..1"),
        (np.ones((5, 5, 3), bool), "found ndarray bool [5, 5, 3] of 1..1"),
        (np.ones((5, 5, 3), complex), "found ndarray complex128 [5, 5, 3] of nan..nan"),
        (np.full((5, 5, 3), 0.5), "expected uint8, or float of 0..255, found ndarray float64 [5, 5, 3] of 0.5..0.5"),
        (np.full((5, 5, 3), 300.0), "of 300..300"),
        (np.full((5, 5, 3), np.nan), "of nan..nan"),
        (torch.zeros(3, 5, 5), "found Tensor torch.float32 [3, 5, 5]"),
        (None, "found NoneType"),
        (Image.new("F", (5, 5)), "a Pillow image of mode F"),
        (Image.new("I", (5, 5), 200), "a Pillow image of mode I has no certain range of values, found 200..200"),
        (Image.new("I", (5, 5), 70000), "found 70000..70000"),
        (Image.new("La", (5, 5)), "image: cannot be decoded (conversion from La to L not supported)"),
        ("nowhere.jpg", "nowhere.jpg: no such file"),
    ],
)
def test_what_is_no_picture_is_refused(runs, image, message):
    assert message in refusal(Predictor(runs / "a/model_best.pth"), image)


def test_a_damaged_file_is_named_through_pillow_too(runs, picture, tmp_path, capfd):
    (tmp_path / "cut.png").write_bytes(Path(picture).read_bytes()[:500])
    predictor = Predictor(runs / "a/model_best.pth")
    for image in (tmp_path / "cut.png", Image.open(tmp_path / "cut.png")):
        assert refusal(predictor, image).startswith(f"{tmp_path}/cut.png: cannot be decoded (")
    of_libpng = "libpng error: PNG input buffer is incomplete\n"  # which OpenCV 4 lets print by itself
    out, err = capfd.readouterr()
    assert out == "" and err in (["", of_libpng] if cv2.getVersionMajor() < 5 else [""])  # no lines of the decoder's own


def test_mode_i_of_16_bits_is_taken():
    wide = np.random.default_rng(0).integers(0, 65536, (8, 9))
    assert np.array_equal(rgb_of(Image.fromarray(wide.astype(np.int32)))[..., 0], wide >> 8)


def test_a_black_picture_of_floats_is_taken(runs):
    assert Predictor(runs / "a/model_best.pth")(np.zeros((5, 7, 3))).shape == (5, 7)


def test_probabilities_of_several_checkpoints_are_averaged(runs, picture):
    """Also of networks of different depth: each is built as its own config says."""
    files = [runs / "a/model_best.pth", runs / "b/model_best.pth"]
    both, single = Predictor(files, scales=[1.0]), [Predictor(file, scales=[1.0]) for file in files]
    expected = sum(predictor.probability(picture) for predictor in single) / 2
    assert torch.equal(both.probability(picture), expected)
    assert np.array_equal(both(picture), expected.argmax(0).numpy())
    both.probability(picture).mul_(2)  # no tensor of inference_mode, which would refuse this
    assert both.cfg.layers == 18 and [weights.epoch for weights in both.weights] == [1, 1]


def test_the_default_dtype_of_a_notebook_changes_nothing(runs, picture):
    ids = Predictor(runs / "a/model_best.pth")(picture)
    torch.set_default_dtype(torch.float64)
    try:
        assert np.array_equal(Predictor(runs / "a/model_best.pth")(picture), ids)
    finally:
        torch.set_default_dtype(torch.float32)


def test_each_network_of_several_resizes_its_logits_as_it_does_alone(runs, picture):
    content = load_checkpoint(runs / "a/model_best.pth")
    other = content | {"config": content["config"].replace("align_corners: true", "align_corners: false")}
    how = {"precision": "fp32", "average": "logit", "scales": [0.7], "flip": False}
    a, b = (Predictor(one, **how).probability(picture) for one in (content, other))
    assert not torch.equal(a, b)
    for files in ([content, other], [other, content]):
        both = Predictor(files, **how)
        assert torch.equal(both.probability(picture), (a + b) / 2)
        assert np.array_equal(both(picture), (a + b).argmax(0).numpy())


def test_protocol_of_the_config_holds_unless_told_otherwise(runs, picture):
    network, cfg = network_of(runs / "a/model_best.pth", scales="[0.5, 1.5]", flip="False", test_h="41")
    assert prediction_settings(cfg)["scales"] == (0.5, 1.5)
    predictor = Predictor(runs / "a/model_best.pth", precision="fp32", scales=[0.5, 1.5], flip=False, test_h=41)
    assert prediction_settings(predictor.cfg) == prediction_settings(cfg)
    expected = predict_probability(network, read_image(picture), **prediction_settings(cfg))
    torch.testing.assert_close(predictor.probability(picture), expected, rtol=0, atol=1e-5)
    again = Predictor(runs / "a/model_best.pth", config=Predictor(runs / "a/model_best.pth").cfg, scales=[0.5, 1.5], flip=False)
    assert again.cfg.scales == (0.5, 1.5) and again.cfg.test_h == 33
    for config in (None, again.cfg):  # what programs compute is of NumPy
        for scales in (np.array([0.5, 1.5]), [np.float64(0.5), 1.5]):
            of_numpy = {"scales": scales, "flip": np.bool_(False), "test_h": np.int64(41)}
            again = Predictor(runs / "a/model_best.pth", config=config, **of_numpy)
            assert prediction_settings(again.cfg) == prediction_settings(cfg)


@pytest.mark.parametrize(
    "protocol, message",
    [
        ({"scale": 1}, "Predictor: scale: unknown (did you mean scales?); settings are base_size, "),
        ({"layers": 50}, "Predictor: layers: unknown; settings are base_size, "),
        ({"scales": [0]}, "TEST.scales: 0.0 must be in [0.01, 100]"),
        ({"scales": []}, "TEST.scales: the list is empty"),
        ({"scales": np.array([])}, "TEST.scales: the list is empty"),
        ({"test_mode": "slid"}, "TEST.test_mode: 'slid' is not one of slide, whole"),
    ],
)
def test_wrong_protocol_is_named(runs, protocol, message):
    assert message in refusal(Predictor, runs / "a/model_best.pth", **protocol)


def test_names_and_colours_of_a_checkpoint_need_no_files(runs, tmp_path):
    content = load_checkpoint(runs / "a/model_best.pth")
    content["config"] = re.sub(r"dataset/toy/toy_(names|colors).txt", r"/elsewhere/\1", content["config"])
    predictor = Predictor(content)
    assert predictor.names == TOY_NAMES and predictor.palette.tolist() == content["palette"]
    cfg = load_config("x.pth", must_exist=["data_root"], checkpoint=content)  # names_path is not asked for either
    assert cfg.names_path is cfg.colors_path is None and cfg.path == "x.pth"
    (tmp_path / "names").write_text("\n".join("abcdefghi"))
    cfg = load_config("x.pth", ["names_path", str(tmp_path / "names")], checkpoint=content)
    assert cfg.names is None and cfg.names_path == str(tmp_path / "names")  # the command line's file comes first


def test_a_config_without_names_and_colours_takes_those_of_the_checkpoint(runs, tmp_path):
    content = load_checkpoint(runs / "a/model_best.pth")
    bare = re.sub(r"(names|colors)_path: .*", r"\1_path:", content["config"])
    (tmp_path / "bare.yaml").write_text(bare)
    predictor = Predictor(runs / "a/model_best.pth", config=tmp_path / "bare.yaml")
    assert predictor.names == TOY_NAMES and predictor.palette.tolist() == content["palette"] == predictor.carried[1]
    (tmp_path / "names").write_text("\n".join("abcdefghi"))
    (tmp_path / "bare.yaml").write_text(bare.replace("names_path:", f"names_path: {tmp_path}/names"))
    predictor = Predictor(runs / "a/model_best.pth", config=tmp_path / "bare.yaml")
    assert predictor.names == [*"abcdefghi"] and predictor.carried[0] == TOY_NAMES


def test_earlier_checkpoint_without_names_takes_the_files_of_its_config(runs, tmp_path, picture):
    old = without(runs / "a/model_best.pth", tmp_path / "old.pth", "names", "palette")
    assert Predictor(old).names == TOY_NAMES
    content = load_checkpoint(old)
    content["config"] = re.sub(r"dataset/toy/toy_(names|colors).txt", r"/elsewhere/\1", content["config"])
    predictor = Predictor(content)
    assert predictor.names[:2] == ["class 0", "class 1"] and predictor.palette.shape == (9, 3)
    assert sum("carries no" in note for note in predictor.cfg.notes) == 2
    assert np.array_equal(predictor(picture), Predictor(runs / "a/model_best.pth")(picture))


@pytest.mark.parametrize(
    "key, value",
    [("names", "road"), ("names", ["road"]), ("names", [1] * 9), ("palette", [[0, 0, 256]] * 9), ("palette", [[1, 2]] * 9),
     ("palette", [[1, 2, 3]]), ("palette", torch.zeros(9, 3)), ("config", "TEST: ["), ("config", "[1]"), ("config", 3)],
)  # fmt: skip
def test_damaged_names_colours_and_configs_are_named(runs, key, value):
    content = load_checkpoint(runs / "a/model_best.pth") | {key: value}
    message = refusal(Predictor, content)
    assert message.startswith(("checkpoint: ", "config of the checkpoint: ")) and key in message


def test_the_config_of_another_program_in_a_checkpoint_is_none(runs):
    own = load_checkpoint(runs / "a/model_best.pth")
    foreign = {"state_dict": own["state_dict"], "config": "the words of another program"}
    assert refusal(Predictor, foreign).startswith("checkpoint: carries no config of a run")
    alone = Predictor([own, own | foreign])  # the network of a second one may be the first one's
    assert len(alone.networks) == 2


@pytest.mark.parametrize("kind", ["semseg", "convert"])
def test_checkpoint_without_a_config_asks_for_one(runs, tmp_path, picture, kind, capsys, monkeypatch):
    monkeypatch.setitem(resnet.BLOCKS, 10, ONE_BLOCK)  # which tool/convert.py takes it for
    path = without(runs / "a/model_best.pth", tmp_path / "plain.pth", "config", "names", "palette", "state")
    if kind == "convert":
        path = tmp_path / "converted.pth"
        assert convert.main([str(tmp_path / "plain.pth"), str(path)]) == 0
        assert "config" in load_checkpoint(path)  # the keys of the network
    assert f"{path}: carries no config" in refusal(Predictor, path)
    assert test.main([str(path)]) == 1
    assert f"{path}: carries no config of a run" in capsys.readouterr().err
    cfg = load_config(runs / "a/config.yaml")
    for config in (runs / "a/config.yaml", cfg):
        assert np.array_equal(Predictor(path, config=config)(picture), Predictor(runs / "a/model_best.pth")(picture))
    assert refusal(Predictor, path, config=cfg, test_h=0).startswith("Predictor: test_h: 0 must be in")
    assert "Predictor: scales: the list is empty" in refusal(Predictor, path, config=cfg, scales=[])
    both = Predictor([path, runs / "a/model_best.pth"], config=cfg)
    assert np.array_equal(both(picture), Predictor(path, config=cfg)(picture))


def test_what_does_not_fit_together_is_refused(runs, tmp_path):
    best = runs / "a/model_best.pth"
    assert "the list of checkpoints is empty" in refusal(Predictor, [])
    assert "nowhere.pth: no such checkpoint" in refusal(Predictor, "nowhere.pth")
    assert "weights of another network" in refusal(Predictor, best, config=runs / "b/config.yaml")
    content = load_checkpoint(best)
    renamed = content | {"names": ["street", *content["names"][1:]]}
    assert f"checkpoint: other classes than {best} (0 is 'street' and 'road')" in refusal(Predictor, [best, renamed])
    cfg = Predictor(best).cfg
    for config in (replace(cfg, names=None), replace(cfg, names=None, names_path=str(ROOT / "dataset/toy/toy_names.txt"))):
        assert "other classes than " in refusal(Predictor, [best, renamed], config=config)
        assert Predictor(best, config=config).names == TOY_NAMES  # the checkpoint's own, if the config has none
    assert Predictor([renamed, renamed], config=config).names == TOY_NAMES  # those of names_path are new names
    assert Predictor([renamed, renamed], config=replace(cfg, names=None)).names[:2] == ["street", TOY_NAMES[1]]
    fewer = content | {"names": content["names"][:8], "palette": content["palette"][:8]}
    fewer["config"] = content["config"].replace("classes: 9", "classes: 8")
    assert "8 classes, but" in refusal(Predictor, [best, fewer])


def test_output_that_is_not_finite_raises_as_predict_does(runs, picture):
    content = load_checkpoint(runs / "a/model_best.pth")
    content["state_dict"]["cls.4.weight"].fill_(3e38)
    for checkpoint in (content, [runs / "a/model_best.pth", content]):
        with pytest.raises(FloatingPointError, match="NaN or infinite"):
            Predictor(checkpoint, precision="fp32")(picture)


def test_the_lines_of_the_readme_run(runs, toy, tmp_path):
    block = next(b for b in re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S) if "Predictor(" in b)
    (tmp_path / "exp/toy/pspnet18/model").mkdir(parents=True)
    (tmp_path / "exp/toy/pspnet18/model/model_best.pth").symlink_to(runs / "a/model_best.pth")
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset/toy").symlink_to(toy)
    check = "assert ids.shape == (48, 64) and (probability.argmax(0).cpu().numpy() == ids).all()"
    narrow = "from model import resnet; resnet.WIDTH, resnet.BLOCKS[18] = 8, (resnet.BasicBlock, (1, 1, 1, 1))\n"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", narrow + block + check]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip() in TOY_NAMES, done.stderr


# ---- tool/test.py ----


def grays(folder):
    return {path.name: np.asarray(Image.open(path)) for path in (folder / "gray").iterdir()}


def scores_of(folder, *words):
    """(protocol, predictions) of a test that writes into `folder`."""
    assert test.main([*map(str, words), "save_folder", str(folder)]) == 0
    return json.loads((folder / "result.json").read_text()), grays(folder)


@pytest.mark.parametrize("form", [["{}"], ["--model", "{}"], ["--model_path", "{}"], ["--config", "{}"], ["{}", "--model={}"]])
def test_test_needs_no_yaml(runs, tmp_path, form):
    best = str(runs / "a/model_best.pth")
    words = [word.format(best) for word in form]
    result, predictions = scores_of(tmp_path / "out", *words, "scales", "[1.0]", "flip", "False")
    predictor = Predictor(best, scales=[1.0], flip=False, precision="fp32")
    data_root = predictor.cfg.data_root
    for path in sorted((ROOT / data_root / "image/val").iterdir()):
        assert np.array_equal(predictions[path.name], predictor(path))
    assert result["protocol"]["checkpoint"] == result["protocol"]["config"] == best and result["protocol"]["epoch"] == 1
    assert [c["name"] for c in result["classes"]] == TOY_NAMES


def test_test_of_a_checkpoint_writes_where_its_config_says_and_gives_the_numbers_of_the_yaml(runs, tmp_path):
    best = str(runs / "a/model_best.pth")
    shutil.rmtree(runs / "result_a", ignore_errors=True)
    assert test.main([best]) == 0
    by_yaml, predictions = scores_of(tmp_path / "yaml", "--config", runs / "a/config.yaml", "model_path", best)
    by_position, _ = scores_of(tmp_path / "position", runs / "a/config.yaml", best)
    by_itself = json.loads((runs / "result_a/result.json").read_text())
    assert by_itself["classes"] == by_yaml["classes"] == by_position["classes"] and by_itself["mIoU"] == by_yaml["mIoU"]
    assert all(np.array_equal(a, predictions[name]) for name, a in grays(runs / "result_a").items())


def test_a_checkpoint_that_was_moved_does_not_replace_the_result_of_another_run(runs, tmp_path, capsys):
    moved = tmp_path / "renamed/model_best.pth.tar"
    moved.parent.mkdir()
    shutil.copy(runs / "a/model_best.pth", moved)
    shutil.rmtree(runs / "result_a", ignore_errors=True)
    (runs / "result_a").mkdir()
    (runs / "result_a/result.json").write_text("{")  # no result of a test
    assert test.main([str(moved)]) == 0 and test.main([str(moved)]) == 0  # there is no other result
    shutil.rmtree(runs / "result_a")
    both = [str(moved), str(runs / "a/model_best.pth")]
    assert test.main(both) == 0 and test.main(both) == 0  # its own result
    shutil.rmtree(runs / "result_a")
    assert test.main([str(runs / "a/model_best.pth")]) == 0
    kept = (runs / "result_a/result.json").read_bytes()
    assert test.main([str(moved)]) == 1
    error = capsys.readouterr().err
    assert f"{moved}: does not lie in the folder of its run, {runs / 'a'}, and its save_folder" in error
    assert f"has the result of {runs / 'a/model_best.pth'}; name another with save_folder DIR" in error
    assert (runs / "result_a/result.json").read_bytes() == kept
    (tmp_path / "link.pth").symlink_to(runs / "a/model_best.pth")
    assert test.main([str(tmp_path / "link.pth")]) == 0
    assert test.main([str(moved), "save_folder", str(tmp_path / "own")]) == 0


def test_test_moves_the_results_of_a_checkpoint_into_the_work_dir(runs, tmp_path):
    assert test.main([str(runs / "a/model_best.pth"), "--work-dir", str(tmp_path / "work"), "--launcher", "none"]) == 0
    assert (tmp_path / "work/result_a/result.json").is_file()


def test_two_checkpoints_are_averaged_and_named_in_the_protocol(runs, tmp_path):
    a, b = (str(runs / name / "model_best.pth") for name in "ab")
    result, predictions = scores_of(tmp_path / "pair", a, b)
    both = Predictor([a, b], precision="fp32")
    for path in sorted((ROOT / both.cfg.data_root / "image/val").iterdir()):
        assert np.array_equal(predictions[path.name], both(path))
    assert result["protocol"]["checkpoint"] == [a, b] and result["protocol"]["epoch"] == [1, 1]
    markdown = (tmp_path / "pair/result.md").read_text()
    assert a in markdown and b in markdown
    assert parse_test(["--model", a, b], "doc") == parse_test([a, b], "doc") == (Path(a), ["model_path", [a, b]], [])
    keyed, _ = scores_of(tmp_path / "key", runs / "a/config.yaml", "model_path", f"[{{save_path}}/model_best.pth, {b}]")
    assert result["classes"] == keyed["classes"]
    assert keyed["protocol"]["checkpoint"] == [a, b]


def test_one_and_two_processes_score_two_checkpoints_the_same(runs, toy, tmp_path):
    files = f"[{runs}/a/model_best.pth, {runs}/b/model_best.pth]"
    results = []
    for world in (1, 2):
        options = small_training(toy, model_path=files, save_folder=tmp_path / f"{world}")
        log = tmp_path / f"log{world}"
        assert finish(start(options, log=log, world=world, program="tool.test")) == [0] * world, said(log)
        results.append(json.loads((tmp_path / f"{world}/result.json").read_text()))
    assert results[0]["classes"] == results[1]["classes"] and len(results[0]["protocol"]["checkpoint"]) == 2


@pytest.mark.parametrize(
    "words, message",
    [
        (["{a}", "model_path", "other.pth"], "both set model_path; give one"),
        (["{a}", "--model", "other.pth"], "both set model_path; give one"),
        (["{a}", "scale", "1"], "did you mean scales?"),
        (["{a}", "test_list", "/nowhere.txt"], "give test_list PATH on the command line"),
        (["nowhere.pth"], "nowhere.pth: no such checkpoint"),
        (["{yaml}", "model_path", "[]"], "TEST.model_path: "),
        (["{yaml}", "model_path", "[{a}, nowhere.pth]"], "nowhere.pth does not exist"),
        (["{yaml}", "model_path", "[{{data_rot}}/a.pth, b.pth]"], "{data_rot} is not the name of another key with one value"),
        (["model_path", "x"], "model_path: no such config file"),
        ([], "which experiment? Give `python tool/test.py CONFIG`, or `--config FILE`, or a checkpoint"),
    ],
)
def test_mistakes_in_naming_the_network_end_with_one_message(runs, capsys, words, message):
    names = {"a": runs / "a/model_best.pth", "yaml": runs / "a/config.yaml"}
    assert test.main([word.format(**names) for word in words]) == 1
    assert message in capsys.readouterr().err


# ---- each program ----


def test_a_model_file_is_read_once(runs, picture, tmp_path, monkeypatch):
    reads, load = [], inference.load_checkpoint
    monkeypatch.setattr(inference, "load_checkpoint", lambda path: reads.append(str(path)) or load(path))
    best = str(runs / "a/model_best.pth")
    assert test.main([best, "save_folder", str(tmp_path / "test"), "index_step", "1"]) == 0
    assert demo.main(["--model", best, "--image", str(picture), "--out", str(tmp_path / "demo")]) == 0
    monkeypatch.setattr(export, "write_exported", lambda *_: sys.exit(7))
    with pytest.raises(SystemExit, match="7"):
        export.main(["--model", best, "--out", str(tmp_path / "a.onnx"), "--images", "0"])
    assert reads == [best] * 3


@pytest.mark.parametrize("program, words", [(demo, ["--image", "x.png"]), (export, ["--out", "x.onnx"])])
def test_two_networks_for_a_program_that_takes_one_are_refused(runs, tmp_path, program, words, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    a, b = (str(runs / name / "model_best.pth") for name in "ab")
    assert program.main(["--model", a, *words, "model_path", b]) == 1
    assert capsys.readouterr().err == f"error: command line: --model {a} and model_path {b} are two networks; give one\n"
    assert not list(tmp_path.iterdir())
    assert "no such picture" in says(demo, ["--model", a, "--image", "x.png", "model_path", a], capsys)


def says(program, words, capsys):
    assert program.main(words) == 1
    return capsys.readouterr().err


@pytest.mark.parametrize("words", [["{}"], ["--config", "{}"]])
def test_a_checkpoint_in_the_place_of_a_config_is_told_from_one(runs, words, capsys):
    best = str(runs / "a/model_best.pth")
    words = [word.format(best) for word in words]
    expected = f"{best}: the file of a trained network, and not a config; give the YAML file (or its name), and this file"
    assert f"{expected} as `weight`" in says(train, words, capsys)
    for command in ("check", "look --out x", "cache"):
        with pytest.raises(Mistake, match=re.escape(expected)):
            prepare.main([*command.split(), *words])
    assert expected in says(benchmark, ["model", *words], capsys)


@pytest.mark.parametrize("more, message", [
    ({"device": "gpu"}, "Predictor: device: 'gpu' is unknown; it is cpu, cuda, or cuda:1 for the second GPU"),
    ({"device": "cuda"}, "Predictor: device: cuda, but torch sees 0 GPUs here"),
    ({"device": "mps"}, "Predictor: device: mps cannot be used here ("),
    ({"device": "meta"}, "Predictor: device: 'meta' is unknown"),
    ({"device": 1.5}, "Predictor: device: 1.5 is unknown"),
    ({"checkpoint": None}, "Predictor: expected the path of a checkpoint, or its content as a dict, found NoneType"),
    ({"precision": "half"}, "Predictor: precision: 'half' is unknown; choose one of fp32, bf16, fp16, auto"),
])  # fmt: skip
def test_a_device_or_precision_that_is_none_is_named(runs, more, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert refusal(Predictor, **{"checkpoint": runs / "a/model_best.pth", **more}).startswith(message)
