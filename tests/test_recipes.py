"""A tiny version of every recipe of the sibling systems: their shipped configs train, validate, resume and test on toy."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from tool import test, train
from util.checkpoint import load_checkpoint
from util.config import ROOT, load_config

MMSEG = {"max_iter": 5, "iter_interval": 2, "resize_box": "[64, 48]", "base_size": "[64, 48]", "train_h": 32, "train_w": 48}
EPOCHS = {"epochs": 5, "train_h": 33, "train_w": 33, "test_h": 33, "test_w": 33, "base_size": 64}
ALBUMENTATIONS = [
    {"RandomScale": {"scale_limit": [-0.5, 1.0], "p": 1}},
    {"HorizontalFlip": {"p": 0.5}},
    {"PadIfNeeded": {"min_height": 33, "min_width": 33, "fill": [124, 116, 104], "fill_mask": 255}},
    {"RandomCrop": {"height": 33, "width": 33}},
]
RECIPES = {
    "cityscapes/cityscapes_pspnet_r50-d8_512x1024_40k": MMSEG,
    "cityscapes/cityscapes_pspnet_r18-d8_512x1024_80k": MMSEG,
    "cityscapes/cityscapes_pspnet_r50-d8_769x769_40k": MMSEG | {"train_w": 32, "test_h": 32, "test_w": 32},
    "ade20k/ade20k_pspnet_r50-d8_512x512_80k": MMSEG,
    "voc2012/voc2012_pspnet_r50-d8_512x512_20k": MMSEG,
    "cityscapes/cityscapes_pspnet50_onecycle": EPOCHS
    | {"augmentation": json.dumps(ALBUMENTATIONS), "precision": "auto"},  # fp16 takes minutes on a CPU
    "cityscapes/cityscapes_pspnet50_albumentations": EPOCHS | {"augmentation": json.dumps(ALBUMENTATIONS)},
    "cityscapes/cityscapes_smp_pspnet50": EPOCHS | {"train_h": 65, "train_w": 65, "test_h": 65, "test_w": 65},
}


def options(recipe, toy, save_path):
    values = {"data_root": toy, "train_list": toy / "list/train.txt", "val_list": toy / "list/val.txt", "classes": 9}
    values |= {"test_list": toy / "list/val.txt", "names_path": "null", "colors_path": "null", "train_gpu": "null"}
    values |= {"layers": 18, "initmodel": "null", "batch_size": 4, "workers": 0, "print_freq": 1, "manual_seed": 7}
    values |= {"test_gpu": "null", "save_path": save_path, "keep_checkpoints": 9, "eval_freq": 2} | RECIPES[recipe]
    return ["--config", str(ROOT / f"config/{recipe}.yaml"), *(str(word) for pair in values.items() for word in pair)]


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_trains_validates_resumes_and_tests(recipe, toy, tmp_path):
    whole, parts = tmp_path / "whole/model", tmp_path / "parts/model"
    assert train.main(options(recipe, toy, whole)) == 0
    cfg = load_config(ROOT / f"config/{recipe}.yaml", options(recipe, toy, whole)[2:])
    last = f"train_iter_{cfg.max_iter}.pth" if cfg.max_iter else f"train_epoch_{cfg.epochs}.pth"
    early = "train_iter_2.pth" if cfg.max_iter else "train_epoch_2.pth"
    assert (whole / "model_best.pth").is_file() and (whole / last).is_file()

    parts.mkdir(parents=True)
    for name in (early, "model_best.pth"):  # a state that tells of a best one is told anew where that is missing
        shutil.copy(whole / name, parts / name)
    assert train.main([*options(recipe, toy, parts), "resume", "auto"]) == 0
    ours, theirs = load_checkpoint(parts / last), load_checkpoint(whole / last)
    assert ours["state"] == theirs["state"] and ours["iteration"] == theirs["iteration"]
    assert all(torch.equal(ours["state_dict"][key], value) for key, value in theirs["state_dict"].items())

    assert test.main(options(recipe, toy, whole)) == 0
    result = json.loads((Path(cfg.save_folder) / "result.json").read_text())
    assert result["protocol"]["mode"] == cfg.test_mode and 0 <= result["mIoU"] <= 1
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    scored = [line["mIoU_val"] for line in lines if "mIoU_val" in line]
    if not cfg.flip:  # then the test repeats the last validation
        assert result["mIoU"] == pytest.approx(scored[-1], abs=1e-6)
    assert {"mIoU_val", "mDice_val", "loss_val"} <= {key for line in lines for key in line}
