import dataclasses

import pytest
import yaml

from util.common import Mistake
from util.config import ROOT, changed_keys, convert, dump_config, load_config

SHIPPED = sorted(ROOT.glob("config/*/*.yaml"))

# A file as the original repository has them: every key it knows, none that it does not.
ORIGINAL = """
DATA:
  data_root: dataset/voc2012
  train_list: dataset/voc2012/list/train_aug.txt
  val_list: dataset/voc2012/list/val.txt
  classes: 21
TRAIN:
  arch: psa
  layers: 50
  sync_bn: True  # adopt sync_bn or not
  train_h: 465
  train_w: 465
  scale_min: 0.5
  scale_max: 2.0
  rotate_min: -10
  rotate_max: 10
  zoom_factor: 8
  ignore_label: 255
  aux_weight: 0.4
  psa_type: 2
  compact: False
  shrink_factor: 2
  mask_h: 59
  mask_w: 59
  normalization_factor: 1.0
  psa_softmax: True
  train_gpu: [0, 1, 2, 3, 4, 5, 6, 7]
  workers: 16
  batch_size: 16
  batch_size_val: 8
  base_lr: 0.01
  epochs: 50
  start_epoch: 0
  power: 0.9
  momentum: 0.9
  weight_decay: 0.0001
  manual_seed:
  print_freq: 10
  save_freq: 1
  save_path: exp/voc2012/psanet50/model
  weight:
  resume:
  evaluate: False
Distributed:
  dist_url: tcp://127.0.0.1:6789
  dist_backend: 'nccl'
  multiprocessing_distributed: True
  world_size: 1
  rank: 0
TEST:
  test_list: dataset/voc2012/list/val.txt
  split: val
  base_size: 512
  test_h: 465
  test_w: 465
  scales: [1.0]
  has_prediction: False
  index_start: 0
  index_step: 0
  test_gpu: [0]
  model_path: exp/voc2012/psanet50/model/train_epoch_50.pth
  save_folder: exp/voc2012/psanet50/result/epoch_50/val/ss
  colors_path: data/voc2012/voc2012_colors.txt
  names_path: data/voc2012/voc2012_names.txt
"""


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
        ("mask_h: 59", "mask_h: 58", "58 must be odd"),
        ("scale_min: 0.5", "scale_min: 3", "3.0 is greater than scale_max, 2.0"),
        ("ignore_label: 255", "ignore_label: 20", "20 is the id of a class, since classes is 21"),
        ("batch_size: 16", "batch_size: 0", "0 must be in [1, 2147483647]"),
        ("base_lr: 0.01", "base_lr: -1", "-1.0 must be in [0, 1000]"),
        ("start_epoch: 0", "start_epoch: 50", "leaves nothing to do"),
        ("ignore_label: 255", "ignore_label: 255\n  class_weights: [1, 2]", "2 numbers for 21 classes"),
        ("ignore_label: 255", "ignore_label: 255\n  class_weights: some", "expected a number, not 'some'"),
        ("scales: [1.0]", "scales: []", "the list is empty"),
        ("sync_bn: True", "sync_bn: 2", "expected True or False, not 2"),
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


def test_single_gpu_needs_no_brackets(write):
    assert load_config(write(), ["train_gpu", "3"]).train_gpu == (3,)


def test_override_of_unknown_key_suggests_nearest(write):
    assert "command line: TRAIN.epoch: unknown key (did you mean TRAIN.epochs?)" in errors_of(write(), ["TRAIN.epoch", "3"])


def test_override_without_value_is_refused(write):
    assert "'epochs' has no partner" in errors_of(write(), ["base_lr", "1", "epochs"])


def test_missing_config_file_suggests_a_shipped_one():
    assert "did you mean cityscapes_pspnet50.yaml" in errors_of("config/cityscapes/cityscape_pspnet50.yaml")


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
