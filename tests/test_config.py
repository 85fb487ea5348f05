import dataclasses
import datetime
import math
import pickle
import random
import re
from typing import Annotated, Literal, get_args, get_origin

import pytest
import yaml
from test_configs_build import SHIPPED, original_file

from util.common import Mistake
from util.config import (
    FIELDS,
    REMOVED,
    ROOT,
    SECTION_OF,
    changed_keys,
    config_error,
    convert,
    dump_config,
    load_cfg_from_cfg_file,
    load_config,
    merge_cfg_from_list,
)

ORIGINAL = original_file("voc2012", "psa", 50)


@pytest.fixture
def write(tmp_path):
    def _write(text=ORIGINAL, old="", new=""):
        path = tmp_path / "x.yaml"
        assert old in text
        path.write_text(text.replace(old, new) if old else text)
        return path

    return _write


def errors_of(path, overrides=(), **kwargs):
    with pytest.raises(Mistake) as caught:
        load_config(path, overrides, **kwargs)
    return str(caught.value)


def test_file_of_the_original_loads_with_every_value(write):
    cfg = load_config(write())
    for section in yaml.safe_load(ORIGINAL).values():
        for key, value in section.items():
            found = getattr(cfg, key)
            if isinstance(value, str) and "/" in value and not key.startswith("dist"):
                assert found.endswith(value.rpartition("/")[2])
            else:
                assert (list(found) if isinstance(found, tuple) else found) == value, key
    assert cfg.initmodel == str(ROOT / "initmodel/resnet50_v2.pth")


def test_config_is_frozen(write):
    with pytest.raises(dataclasses.FrozenInstanceError):
        load_config(write()).base_lr = 1.0


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_shipped_config_loads_and_has_its_own_save_path(path):
    cfg = load_config(path)
    dataset, exp = path.parent.name, path.stem.removeprefix(path.parent.name + "_")
    assert cfg.save_path == str(ROOT / f"exp/{dataset}/{exp}/model")
    assert cfg.model_path.startswith(cfg.save_path) and cfg.save_folder.startswith(str(ROOT / f"exp/{dataset}/{exp}/result"))
    assert not cfg.notes


def test_unknown_key_suggests_nearest(write):
    path = write(old="base_lr: 0.01", new="base_1r: 0.01")
    assert f"{path}: TRAIN.base_1r: unknown key (did you mean base_lr?)" in errors_of(path)


def test_unknown_section_suggests_nearest(write):
    at_the_top = errors_of(write(old="TRAIN:", new="base_lr: 0.1\nTRAIN:"))
    assert "base_lr: this key belongs in a section: put it below `TRAIN:`, indented" in at_the_top
    assert "Trian: unknown section (did you mean TRAIN?)" in errors_of(write(old="TRAIN:", new="Trian:"))


def test_all_errors_are_reported_at_once(write):
    text = ORIGINAL.replace("layers: 50", "layers: 51").replace("epochs: 50", "epochs: many").replace("TEST:", "TESTS:")
    lines = errors_of(write(text)).splitlines()
    assert len(lines) == 3
    assert any("TRAIN.layers: 51 is not one of 18, 34, 50, 101, 152" in line for line in lines)
    assert any("TRAIN.epochs: expected a whole number, not 'many'" in line for line in lines)


def test_missing_required_key_is_named(write):
    assert "DATA.classes: this key must be set" in errors_of(write(old="  classes: 21\n", new=""))


def test_key_that_stands_twice_is_refused(write):
    message = errors_of(write(old="  layers: 50\n", new="  layers: 50\n  layers: 101\n"))
    assert "layers" in message and "twice" in message and "line" in message


def test_key_in_two_sections_is_refused(write):
    assert "stands in two sections" in errors_of(write(old="  classes: 21\n", new="  classes: 21\n  layers: 101\n"))


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("scale_min: 0.5", "scale_min: 3", "3.0 is greater than scale_max, 2.0"),
        ("ignore_label: 255", "ignore_label: 20", "20 is the id of a class, since classes is 21"),
        ("classes: 21", "classes: 300", "255 is the id of a class, since classes is 300; take 65535, with 16-bit labels"),
        ("classes: 21", "classes: 1", "1: there is nothing to tell apart; the background is a class too"),
        ("classes: 21", "classes:21", "line 6: could not find expected ':'"),
        ("train_gpu: [0,", "train_gpu: 0, 1 #", "expected a list in brackets, such as [0, 1], not '0, 1'"),
        ("batch_size: 16", "batch_size: 0", "0 must be in [1, 2147483647]"),
        ("base_lr: 0.01", "base_lr: -1", "-1.0 must be in [0, 1000]"),
        ("start_epoch: 0", "start_epoch: 50", "leaves nothing to do"),
        ("ignore_label: 255", "ignore_label: 255\n  class_weights: [1, 2]", "2 numbers for 21 classes"),
        ("ignore_label: 255", "ignore_label: 255\n  class_weights: some", "expected a number, not 'some'"),
        ("scales: [1.0]", "scales: []", "the list is empty"),
        ("sync_bn: True", "sync_bn: 2", "expected True or False, not 2"),
        ("sync_bn: True", "check_data: abc", "expected True, False or a whole number, not 'abc'"),
        ("batch_size: 16", "batch_size: 16.5", "expected a whole number, not 16.5"),
        ("classes: 21", "classes:", "expected a whole number, not None (this key cannot be empty)"),
        ("train_gpu: [0,", "train_gpu: [zero,", "expected a whole number, not 'zero'"),
        ("save_path: exp/voc2012/", "save_path: exp/{nonsense}/", "{nonsense} is not the name of another key"),
    ],
)
def test_impossible_value_is_explained(write, old, new, message):
    assert message in errors_of(write(old=old, new=new))


def test_override_works_with_and_without_section(write):
    path = write()
    assert load_config(path, ["base_lr", "0.02"]).base_lr == 0.02
    assert load_config(path, ["TRAIN.base_lr", "0.02", "TEST.scales", "[0.5, 1]"]).scales == (0.5, 1.0)


def test_scientific_notation_is_a_number(write):
    assert load_config(write(old="base_lr: 0.01", new="base_lr: 1e-2")).base_lr == 0.01
    assert load_config(write(), ["weight_decay", "5e-4"]).weight_decay == 5e-4


@pytest.mark.parametrize("word", ["null", "", "None", "~"])
def test_nullable_key_can_be_emptied_from_the_command_line(write, word):
    cfg = load_config(write(), ["train_gpu", word, "initmodel", word, "manual_seed", word])
    assert cfg.train_gpu is None and cfg.initmodel is None and cfg.manual_seed is None


def test_override_of_unknown_key_suggests_nearest(write):
    assert "command line: TRAIN.epoch: unknown key (did you mean TRAIN.epochs?)" in errors_of(write(), ["TRAIN.epoch", "3"])


def test_override_without_value_is_refused(write):
    assert "'epochs' has no partner" in errors_of(write(), ["base_lr", "1", "epochs"])


def test_missing_data_is_reported_with_the_remedy(write):
    overrides = ["initmodel", "/nowhere/r.pth", "data_root", "/nowhere"]
    message = errors_of(write(), overrides, must_exist=["data_root", "initmodel", "weight"])
    assert "DATA.data_root" in message and "tool/prepare.py" in message
    assert "initmodel/README.md" in message
    assert "TRAIN.weight: this key must be set" in message


def test_missing_names_file_falls_back_to_the_shipped_one(write):
    cfg = load_config(write())
    assert cfg.names_path == str(ROOT / "dataset/voc2012/voc2012_names.txt")
    assert any("names_path" in note and "using dataset/voc2012" in note for note in cfg.notes)


def test_path_may_name_other_keys(write):
    overrides = ["save_path", "/tmp/a/model", "model_path", "{save_path}/train_epoch_{epochs}.pth", "epochs", "7"]
    assert load_config(write(), overrides).model_path == "/tmp/a/model/train_epoch_7.pth"


def test_dumped_config_loads_as_the_same_config(write, tmp_path):
    cfg = load_config(write(), ["scales", "[0.5, 1.0]", "resume", "auto"])
    again = tmp_path / "again.yaml"
    again.write_text(dump_config(cfg))
    assert dataclasses.replace(load_config(again), path=cfg.path, notes=cfg.notes) == cfg


def test_changed_keys_name_old_and_new_value(write):
    old = dump_config(load_config(write()))
    assert changed_keys(old, load_config(write(), ["base_lr", "0.5"])) == {"base_lr": (0.01, 0.5)}


def test_yaml_that_would_run_code_is_refused(write, tmp_path):
    mark = tmp_path / "ran"
    path = write(old="classes: 21", new=f"classes: !!python/object/apply:os.mkdir ['{mark}']")
    assert "could not determine a constructor" in errors_of(path)
    assert not mark.exists()


def test_whole_number_is_not_rounded():
    with pytest.raises(Mistake, match="whole number"):
        convert(1.5, int)
    assert convert("1e4", int) == 10000


# ---- files of the original and of earlier versions ----


def test_a_key_of_true_or_false_accepts_0_and_1(write):
    cfg = load_config(write(), ["sync_bn", "0", "evaluate", "1"])
    assert (cfg.compact, cfg.psa_softmax, cfg.sync_bn, cfg.evaluate) == (False, True, False, True)
    assert all(isinstance(getattr(cfg, key), bool) for key in ("compact", "psa_softmax", "sync_bn", "evaluate"))


def test_merge_keys_of_yaml_are_overridden_by_the_keys_beside_them(tmp_path):
    text = ORIGINAL.replace("DATA:\n", "DATA: &data\n").replace("TRAIN:\n", "TRAIN:\n  <<: {layers: 101, base_lr: 0.5}\n")
    path = tmp_path / "x.yaml"
    path.write_text(text)
    cfg = load_config(path)
    assert (cfg.layers, cfg.base_lr, cfg.classes) == (50, 0.01, 21)
    path.write_text(text.replace("  base_lr: 0.01\n", ""))
    assert load_config(path).base_lr == 0.5
    path.write_text(text.replace("  layers: 50\n", "  layers: 50\n  layers: 50\n"))
    assert "layers: this key stands twice" in errors_of(path)


def test_an_alias_stands_for_the_value_of_its_anchor(write):
    path = write(old="  base_size: 512\n  test_h: 465", new="  base_size: 512\n  test_h: *side")
    path.write_text(path.read_text().replace("train_h: 465", "train_h: &side 465"))
    assert load_config(path).test_h == 465


@pytest.mark.parametrize("key", REMOVED)
def test_removed_key_loads_with_a_note_from_file_and_command_line(write, key):
    in_file = load_config(write(old="  layers: 50\n", new=f"  layers: 50\n  {key}: False\n"))
    given = [load_config(write(), [name, "False"]) for name in (key, f"TRAIN.{key}")]
    for cfg in (in_file, *given):
        assert [note for note in cfg.notes if note.startswith(f"{key}: False is ignored, the key was removed: ")]
        assert not hasattr(cfg, key) and key not in dump_config(cfg)


@pytest.mark.parametrize("metric, value, contradicts", [("loss", "True", False), ("loss", "False", True), ("mIoU", "1", True)])
def test_a_removed_minimize_metric_is_noted_where_it_contradicts(write, metric, value, contradicts):
    notes = "\n".join(load_config(write(), ["main_metric", metric, "minimize_metric", value]).notes)
    assert ("contradicts main_metric: " + metric in notes) == contradicts


FORK = """
DATA:
  data_root: data/mine
TRAIN:
  arch: mine
  base_lr: 0.01
  epochs: 10
  scales: [0.5, 1.0]
  weight:
  evaluate: False
  my_key: {a: 1}
  since: 2024-01-01
TEST:
  save_folder: exp/x
  scales: [1.0]
"""


def test_scripts_of_the_original_get_all_sections_in_one_namespace(tmp_path):
    path = tmp_path / "fork.yaml"
    path.write_text(FORK)
    cfg = load_cfg_from_cfg_file(str(path))
    assert cfg == {"data_root": "data/mine", "arch": "mine", "base_lr": 0.01, "epochs": 10, "scales": [1.0], "weight": None,
                   "evaluate": False, "my_key": {"a": 1}, "since": datetime.date(2024, 1, 1),
                   "save_folder": "exp/x"}  # fmt: skip
    cfg.train_gpu = [0, 1]
    assert cfg["train_gpu"] == cfg.train_gpu == [0, 1] and pickle.loads(pickle.dumps(cfg)) == cfg
    with pytest.raises(AttributeError, match=r"base_1r: no such key in the config \(did you mean base_lr\?\)"):
        _ = cfg.base_1r


def test_scripts_of_the_original_override_keys_by_a_list(tmp_path):
    path = tmp_path / "fork.yaml"
    path.write_text(FORK)
    old = load_cfg_from_cfg_file(path)
    words = "base_lr 1 TRAIN.epochs 1e2 scales [0.5,2] evaluate 1 save_folder a:#b weight w.pth my_key {b} arch null since 3"
    new = merge_cfg_from_list(old, words.split())
    assert (new.base_lr, new.epochs, new.scales, new.evaluate) == (1.0, 100, [0.5, 2], True)
    assert (new.save_folder, new.weight, new.arch) == ("a:#b", "w.pth", None)
    assert new.since == 3 and old.base_lr == 0.01 and old.my_key == {"a": 1}
    assert merge_cfg_from_list(old, ["scales", "2"]).scales == [2]
    empty = merge_cfg_from_list(old, ["scales", "None", "epochs", "None", "weight", "None", "since", ""])
    assert (empty.scales, empty.epochs, empty.weight, empty.since) == (None, None, None, None)


@pytest.mark.parametrize("words, message", [
    (["epoch", "3"], r"epoch: unknown key \(did you mean epochs\?\)"),
    (["TRAIN.epochs", "many"], "TRAIN.epochs: expected a whole number, not 'many'"),
    (["base_lr", "[1]"], r"base_lr: expected a number, not \[1\]"),
    (["my_key", "3"], "my_key: expected `name: value` pairs, not 3"),
    (["evaluate", "perhaps"], "evaluate: expected True or False"),
    (["scales", "[1"], "scales: .*line 1"),
    (["scales", "(0.5,1.0)"], r"scales: expected a list in brackets, such as \[0.5,1.0\], not '\(0.5,1.0\)'"),
    (["epochs"], "'epochs' has no partner"),
])  # fmt: skip
def test_a_wrong_override_of_an_original_script_names_the_key(tmp_path, words, message):
    path = tmp_path / "fork.yaml"
    path.write_text(FORK)
    with pytest.raises(Mistake, match=message):
        merge_cfg_from_list(load_cfg_from_cfg_file(path), words)


# ---- numbers ----


def test_numbers_are_decimal():
    """YAML 1.1 has octal and sexagesimal numbers."""
    more = ["index_start", "0010", "base_lr", "01.5e-2", "epochs", "1_0", "param_rules", "[{name: 'cls*', lr_factor: 010}]"]
    cfg = load_config("config/toy/toy_pspnet18.yaml", more)
    assert (cfg.index_start, cfg.base_lr, cfg.epochs, cfg.param_rules[0]["lr_factor"]) == (10, 0.015, 10, 10)
    for text in ("1:30", "0o7"):
        with pytest.raises(Mistake, match=f"epochs: expected a whole number, not '{text}'"):
            load_config("config/toy/toy_pspnet18.yaml", ["epochs", text])
    with pytest.raises(Mistake, match="base_lr: expected a number, not '1:30.5'"):
        load_config("config/toy/toy_pspnet18.yaml", ["base_lr", "1:30.5"])


def numbers_in(kind):
    """The (type, interval) of each number in an annotated type; no interval: (type, None)."""
    if get_origin(kind) is Annotated:
        return [get_args(kind)] if get_args(kind)[0] in (int, float) else []
    if kind in (int, float):
        return [(kind, None)]
    return [] if get_origin(kind) is Literal else [number for part in get_args(kind) for number in numbers_in(part)]


def test_every_number_has_bounds_and_its_default_lies_inside():
    found = 0
    for key, field in FIELDS.items():
        for kind, interval in numbers_in(field.type):
            assert interval, key
            low, high = map(float, interval[1:-1].split(","))
            assert low < high and (high < math.inf or interval.endswith(")")), key
            assert kind is float or high <= 2**53 and (high < 2**31 or key == "manual_seed"), key
            found += 1
        if field.default is not dataclasses.MISSING:
            assert convert(field.default, field.type) == field.default, key
    assert found == 60


@pytest.mark.parametrize("key, inside, outside", [
    ("momentum", ["0", "0.999"], ["1", "-0.1", ".nan", ".inf"]),
    ("rotate_max", ["180"], ["180.5", ".inf", "1e999"]),
    ("rotate_min", ["-180"], ["-.inf", "-181"]),
    ("normalization_factor", ["1e-9", "3481"], ["0", "-1", ".inf"]),
    ("class_weights", ["[" + "1," * 20 + "0]"], ["[" + "0," * 21 + "]", "[" + ".inf," * 21 + "]", "[1, 2]"]),
    ("scales", ["[0.5, 1.75]", "1"], ["[1, .nan]", "[0]", "[.inf]", "[]"]),
    ("manual_seed", ["0", "9007199254740992"], ["-1", "9007199254740993", "1e300"]),
    ("print_freq", ["1", "2147483647"], ["0", "-1", "2147483648", "0x" + "f" * 5000]),
    ("train_h", ["473"], ["0", "1e7", "-473"]),
    ("loader_timeout", ["0"], ["1000001"]),  # poll() takes milliseconds in 32 bits
    ("base_lr", ["0", "1e-30"], ["1e39", "-1"]),
    ("train_gpu", ["[0, 1]", "3"], ["[0, 0]", "-1", "[1.5]"]),
    ("base_size", ["512", "[2048, 1024]"], ["0", "[1, 2, 3]", "[]", "[0, 5]"]),
    ("resize_box", ["[2048, 1024]"], ["512", "[1, 2, 3]", "[]", "[0, 5]"]),
    ("world_size", ["2"], ["0"]),
    ("rank", ["0"], ["1", "-1"]),
])  # fmt: skip
def test_numbers_are_finite_and_inside_their_bounds(write, key, inside, outside):
    path = write()
    for value in inside:
        load_config(path, [key, value])
    for value in outside:
        assert f"{SECTION_OF[key]}.{key}: " in errors_of(path, [key, value]), value


def test_processes_share_a_gpu_over_gloo_alone(write):
    assert load_config(write(), ["train_gpu", "[0, 0]", "dist_backend", "gloo"]).train_gpu == (0, 0)


def test_a_seed_is_kept_to_the_last_digit(write):
    assert load_config(write(), ["manual_seed", "9007199254740991"]).manual_seed == 9007199254740991
    assert load_config(write(old="manual_seed:", new="manual_seed: '9007199254740991'")).manual_seed == 9007199254740991


def bomb(levels=60, width=9):
    """A structure whose text is endless, though little is in memory."""
    value = "x"
    for _ in range(levels):
        value = [value] * width
    return value


def drawn(rng, depth=0):
    """A value that somebody may write into a config: often wrong, sometimes absurd."""
    numbers = [0, 1, -1, 2, 7, 255, 473, 65535, 2**31 - 1, 2**31, 2**63, 2**64, 10**400, -(10**400), 2**20000]
    numbers += [0.5, 1e-300, 1e308, -0.0, math.nan, math.inf, -math.inf, rng.randrange(-(2**40), 2**40), rng.uniform(-2, 2)]
    words = ["", " ", "9" * 5000, *"None null auto best semseg layer1 True 1e-2 1e999 nan tcp://h:1".split()]
    words += ["a: b", "# c", "x\ny", "\0", "é", "\udcff", "../..", "/", "*", "~nobody", "a" * 300, "b/" * 3000]
    words += ["{path}", "{save_path}", "{epochs.foo}", "{save_path:>9999999}", "{0}", "{}", "}{", "{epochs}"]
    others = [None, True, False, datetime.date(2024, 1, 1), b"bytes", {1, 2}, bomb()]
    if depth > 2 or rng.random() < 0.7:
        return rng.choice(rng.choice([numbers, words, others]))
    items = [drawn(rng, depth + 1) for _ in range(rng.randrange(4))]
    return items if rng.random() < 0.6 else {f"k{i}": item for i, item in enumerate(items)}


MINIMAL = "DATA: {data_root: d, classes: 3}\nTRAIN: {save_path: s}\n"


@pytest.mark.parametrize("key", [*FIELDS, *REMOVED])
def test_any_value_of_any_key_gives_a_config_or_a_mistake_that_names_the_key(key, tmp_path):
    rng, path = random.Random(key), tmp_path / "x.yaml"
    path.write_text(MINIMAL)
    for _ in range(20):
        value = drawn(rng)
        try:
            cfg = load_config(path, [key, value])
        except Mistake as mistake:
            assert re.search(rf"\b{key}\b", str(mistake)) and len(str(mistake)) < 20000
            continue
        text = dump_config(cfg)
        again = tmp_path / "again.yaml"
        again.write_text(text, encoding="utf-8")
        assert dataclasses.replace(load_config(again), path=cfg.path, notes=cfg.notes) == cfg
        assert changed_keys(text, cfg) == {}


@pytest.mark.parametrize("key", [*FIELDS, *REMOVED])
def test_any_text_for_any_key_on_the_command_line_gives_a_config_or_a_mistake_that_names_the_key(key, tmp_path):
    rng, path = random.Random(key), tmp_path / "x.yaml"
    path.write_text(MINIMAL)
    signs = ["[", "]", "{", "}", ":", " ", ",", "'", '"', "|", ">", "-", "\n", "\t", "%", "@", "<<", "&a", "*a", "!!int"]
    signs += ["!!python/name:os.system", "1", "0.5", "auto", "2024-13-45", "0o9", "1:90", "[" * 500, "y" * 2000]
    for _ in range(20):
        text = "".join(rng.choice(signs) for _ in range(rng.randrange(1, 7)))
        try:
            load_config(path, [key, text])
        except Mistake as mistake:
            assert re.search(rf"\b{key}\b", str(mistake)) and len(str(mistake)) < 20000


# ---- text and paths ----


@pytest.mark.parametrize("text", ["a: b", "a #b", "'quoted'", '"quoted"', "[x]", "line\nbreak", "*x", "3", "1e5", "true", "é"])
def test_a_value_of_text_on_the_command_line_stays_as_it_is(write, text):
    cfg = load_config(write(), ["save_path", f"/tmp/{text}", "weight", f"/tmp/{text}", "resume", text, "dist_url", text])
    assert cfg.save_path == cfg.weight == f"/tmp/{text}" and cfg.resume == str(ROOT / text) and cfg.dist_url == text


@pytest.mark.parametrize("text", [
    "{path}", "{notes}", "{nonsense}", "{save_path}", "exp/{save_path}/x", "{epochs.foo}", "{epochs[0]}", "{epochs!r}",
    "{save_path:>9999999}", "{epochs:d}", "{}", "{0}", "{{epochs}}", "}", "{", "{weight}", "{scales}", "{train_gpu}",
])  # fmt: skip
def test_braces_hold_nothing_but_the_name_of_another_key_with_one_value(write, text):
    assert "TRAIN.save_path: " in errors_of(write(), ["save_path", text])


def test_keys_that_name_each_other_are_refused(write):
    message = errors_of(write(), ["save_path", "{weight}/a", "weight", "{resume}/a", "resume", "{save_path}/a"])
    assert all(f"TRAIN.{key}: " in message for key in ("save_path", "weight", "resume"))


def test_braces_that_multiply_are_refused_before_they_fill_the_memory(write):
    keys = ["save_path", "weight", "resume", "cache", "model_path", "save_folder"]
    words = [word for key, other in zip(keys, keys[1:]) for word in (key, f"{{{other}}}" * 300)]
    assert "more than any file system allows" in errors_of(write(), [*words, "save_folder", "x"])


def test_order_of_keys_in_braces_does_not_matter(write):
    cfg = load_config(write(), ["data_root", "{save_path}/data", "save_path", "/tmp/{layers}", "weight", "{data_root}/w.pth"])
    assert (cfg.data_root, cfg.weight) == ("/tmp/50/data", "/tmp/50/data/w.pth")


@pytest.mark.parametrize("empty", ["", "  "])
def test_an_empty_path_is_none_and_a_needed_one_is_refused(write, empty):
    assert load_config(write(old="  weight:\n", new=f"  weight: '{empty}'\n"), ["cache", empty]).weight is None
    assert "TRAIN.save_path: expected text" in errors_of(write(), ["save_path", empty])
    assert "DATA.data_root: expected text" in errors_of(write(old="data_root: dataset/voc2012", new=f"data_root: '{empty}'"))


@pytest.mark.parametrize("key", ["names_path", "colors_path"])
def test_a_wrong_path_of_names_or_colours_is_reported_with_the_other_files(write, tmp_path, key):
    overrides = ["data_root", str(tmp_path), key, "/nowhere/x.txt"]
    assert errors_of(write(), overrides, must_exist=["data_root"]).endswith(f"TEST.{key}: /nowhere/x.txt does not exist")
    load_config(write(), overrides)  # what needs no file looks at none
    load_config(write(), [*overrides[:2], key, "null"], must_exist=["data_root"])


@pytest.mark.parametrize("key", ["weight", "train_list", "colors_path"])
def test_a_folder_where_a_file_is_needed_is_named_with_its_key(write, tmp_path, key):
    message = errors_of(write(), ["data_root", str(tmp_path), key, str(tmp_path)], must_exist=["data_root", key])
    assert message.endswith(f".{key}: {tmp_path} is a folder, not a file")


@pytest.mark.parametrize("text, message", [
    ("[" * 5000, "command line: scales: .*nested too deeply"),
    ("{" * 5000, "command line: scales: .*nested too deeply"),
    ("a" * 5000, "TEST.scales: expected a number"),
])  # fmt: skip
def test_long_and_deep_texts_of_the_command_line_are_refused_with_their_key(write, text, message):
    assert re.search(message, errors_of(write(), ["scales", text]))


def test_needed_files_may_depend_on_the_config(write, tmp_path):
    needed = lambda cfg: ["data_root"] if cfg.evaluate else []
    load_config(write(), ["data_root", "/nowhere"], must_exist=needed)
    assert "DATA.data_root: /nowhere does not exist" in errors_of(
        write(), ["data_root", "/nowhere", "evaluate", "1"], must_exist=needed
    )


def test_further_checks_are_reported_with_the_others_in_the_same_form(write):
    path = write()
    message = errors_of(
        path, ["start_epoch", "50"], check=lambda cfg: [("train_h", f"{cfg.train_h} does not suit the network")]
    )
    assert message.splitlines()[1] == f"{path}: TRAIN.train_h: 465 does not suit the network"
    assert config_error(load_config(path), "scales", "no") == f"{path}: TEST.scales: no"


# ---- damaged files ----


@pytest.mark.parametrize("text, line, words", [
    (b"DATA:\n  ? [a, b]\n  : 1\n", 2, "a key must be a word"),
    (b"DATA:\n  {a: 1}: 2\n", 2, "a key must be a word"),
    (b"DATA:\n  classes: " + b"[" * 5000, 2, "nested too deeply"),
    (b"DATA:\n" + b"\n".join(b" " * i + b"a:" for i in range(1, 3000)), 51, "nested too deeply"),
    (b"DATA: &a\n  x: *a\n", 2, "nested too deeply"),
    (b"DATA: &a\n  <<: *a\n", 2, "nested too deeply"),
    ("DATA:\n  data_root: Städte\n".encode("latin-1"), 2, "not UTF-8"),
    (b"\xff\xfeD\0A\0", 1, "not UTF-8"),
    (b"DATA:\n\tclasses: 3\n", 2, "cannot start any token"),
    (b"DATA:\n  a\0b: 3\n", 2, "the character '\\x00' is not allowed"),
    (b"DATA:\n  classes: 2024-13-45\n", 2, "month must be in 1..12"),
    (b"DATA:\n  classes: !!int x\n", 2, "cannot be read"),
    (b"DATA:\n  classes: !!int ''\n", 2, "cannot be read"),
    (b"DATA:\n  classes: !!timestamp x\n", 2, "cannot be read"),
    (b"DATA:\n  classes: !!bool x\n", 2, "cannot be read"),
    (b"DATA:\n  classes: " + b"9" * 5000, 2, "cannot be read"),
    (b"DATA:\n  classes: *nothing\n", 2, "undefined alias"),
    (b"DATA:\n  classes: 3\n---\nTRAIN:\n", 3, "but found another document"),
    (b"DATA:\n  classes: [3\nTRAIN:\n", 3, "expected ',' or ']'"),
    (b"DATA:\n  << : 3\n", 2, "expected a mapping"),
])  # fmt: skip
def test_a_file_that_is_no_yaml_is_reported_with_file_and_line(tmp_path, text, line, words):
    path = tmp_path / "x.yaml"
    path.write_bytes(text)
    message = errors_of(path)
    assert message.startswith(f"{path}: line {line}: ") and words in message and "\n" not in message


@pytest.mark.parametrize("text", ["", "3", "[]", "- DATA", "text", "null"])
def test_a_file_without_sections_is_reported(tmp_path, text):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    assert f"{path}: expected sections DATA, TRAIN, Distributed, TEST" in errors_of(path)


@pytest.mark.parametrize("content", ["0", "''", "[]", "x", "[a]", "False"])
def test_a_section_that_holds_no_keys_is_reported(tmp_path, content):
    path = tmp_path / "x.yaml"
    path.write_text(MINIMAL + f"TEST: {content}\n")
    assert f"{path}: TEST: expected `key: value` lines" in errors_of(path)


def test_strange_keys_are_unknown_keys(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text(MINIMAL + "TEST: {1: 2, null: 3, true: 4, 2024-01-01: 5, 0x" + "f" * 90 + ": 6}\n3: x\n")
    assert len(errors_of(path).splitlines()) == 6


def test_a_folder_or_a_file_that_cannot_be_read_is_no_config(tmp_path, monkeypatch):
    assert "no such config file" in errors_of(tmp_path)
    assert "no such config file" in errors_of("x" * 5000)
    assert "no such config file" in errors_of("a\0b")
    path = tmp_path / "x.yaml"
    path.write_text(MINIMAL)

    def denied(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.read_bytes", denied)
    assert errors_of(path) == f"{path}: cannot be read (Permission denied)"


@pytest.mark.parametrize(
    "old", ["", "[]", "3", "a: [", "DATA: [1]", "\0", "[" * 5000, "DATA: &a {x: *a}", None, 7, b"DATA: {}"]
)
def test_a_checkpoints_config_that_is_none_is_a_mistake(write, old):
    with pytest.raises(Mistake, match="config of the checkpoint"):
        changed_keys(old, load_config(write()))


def test_a_pipeline_holds_only_text_and_finite_numbers(write):
    for value in ("[{Blur: {p: .nan}}]", "[{Blur: {p: 2024-01-01}}]", "[{Blur: {p: 0x" + "f" * 90 + "}}]"):
        assert "TRAIN.augmentation: " in errors_of(write(), ["augmentation", value])
    assert "more than 10000 values" in errors_of(write(), ["param_rules", [{"name": bomb()}]])


def test_scripts_of_the_original_get_numbers_that_yaml_reads_as_text(tmp_path):
    (tmp_path / "a.yaml").write_text("TRAIN:\n  base_lr: 1e-2\n  save_path: 1e-2\n  mine: 1e-2\n")
    cfg = load_cfg_from_cfg_file(tmp_path / "a.yaml")
    assert (cfg.base_lr, cfg.save_path, cfg.mine) == (0.01, "1e-2", "1e-2")
    assert merge_cfg_from_list(cfg, ["base_lr", "2e-2"]).base_lr == 0.02
