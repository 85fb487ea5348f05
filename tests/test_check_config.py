"""What network or loss cannot do is said before any data is read: `check_config` and `images_needed` ask the network."""

import dataclasses

import pytest
import torch
from golden_rules import golden_input, golden_label

from model import build_model, check_config, images_needed
from util.config import ROOT, Config, load_config

pytestmark = pytest.mark.usefixtures("narrow")
PSA = {"arch": "psa", "train_h": 465, "train_w": 465}
COMPACT = {**PSA, "compact": True}


def config(**changes):
    return Config(**{"data_root": "", "save_path": "", "path": "", "classes": 5, "layers": 18} | changes)


@pytest.mark.parametrize("path", sorted(ROOT.glob("config/*/*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_config_passes(path):
    assert not list(check_config(load_config(path)))


@pytest.mark.parametrize("changes", [
    {"train_h": 1, "train_w": 9},
    PSA,
    {"arch": "psa", "size_rule": "input", "train_h": 480, "train_w": 640},
    {"size_rule": "input", "train_h": 512},
    {"arch": "smp_pspnet", "train_h": 768, "train_w": 500},
    {"arch": "smp_pspnet", "train_h": 768, "size_rule": "input"},
    COMPACT,
    {**COMPACT, "mask_h": 30, "mask_w": 30, "test_h": 460},  # a compact mask may be even; 460 is padded to 465
    {**PSA, "mask_h": 3, "mask_w": 5},
    {"accumulate_steps": 4, "loss_mean": "all"},
    {"loss": "ohem"},
])  # fmt: skip
def test_what_works_passes(changes):
    assert not list(check_config(config(**changes)))


@pytest.mark.parametrize("changes, expected", [
    ({"train_h": 768}, {"train_h": "768 is not of the form 8n+1 that arch: psp needs with size_rule: grid; the nearest are "
                                   "761 and 769"}),
    ({"arch": "psa"}, dict.fromkeys(("train_h", "train_w"), "473 is not of the form 16n+1 that arch: psa needs with "
                                                            "size_rule: grid; the nearest are 465 and 481")),
    ({**PSA, "shrink_factor": 3}, dict.fromkeys(("train_h", "train_w"), "24n+1 ")),
    ({**PSA, "shrink_factor": 1, "train_w": 470}, {"train_w": "8n+1 that arch: psa needs"}),
    ({**COMPACT, "train_w": 473}, {"train_w": "16n+1"}),
    ({**COMPACT, "mask_h": 59}, {"compact": "needs mask_h x mask_w = 30 x 30, the size of the features here, not 59 x 30"}),
    ({**COMPACT, "test_w": 481}, {"test_w": "needs mask_h x mask_w = 30 x 31"}),
    ({**COMPACT, "test_mode": "whole"}, {"test_mode": "whole does not go with compact: True"}),
    ({**PSA, "mask_w": 58}, {"mask_w": "58 must be odd"}),
    ({"size_rule": "input", "zoom_factor": 4}, {"zoom_factor": "4 needs size_rule grid"}),
    ({"arch": "smp_pspnet", "zoom_factor": 4}, {"zoom_factor": "4 does not go with arch: smp_pspnet"}),
    ({"arch": "smp_pspnet", "checkpoint_layers": ("layer1",)}, {"checkpoint_layers": "does not go with arch: smp_pspnet"}),
    ({"loss": "dice", "accumulate_steps": 2}, {"accumulate_steps": "2 does not go with loss: dice, which needs the whole"}),
    ({"loss": "ohem", "accumulate_steps": 3, "loss_mean": "all", "train_w": 2},
     {"accumulate_steps": "loss: ohem", "loss_mean": "all goes with loss: ce only", "train_w": "the nearest are 1 and 9"}),
])  # fmt: skip
def test_what_cannot_work_is_named_by_key(changes, expected):
    found = dict(check_config(config(**changes)))
    assert found.keys() == expected.keys()
    assert all(words in found[key] for key, words in expected.items())


SIZES = {"train_h": 33, "train_w": 33, "dropout": 0.0}


@pytest.mark.parametrize("changes, images", [
    ({}, 2),
    ({"arch": "psa"}, 1),
    ({"arch": "psa", "train_h": 1, "train_w": 1}, 2),
    ({"arch": "smp_pspnet"}, 1),
    ({"size_rule": "input", "train_h": 40}, 2),
])  # fmt: skip
def test_images_needed_are_those_with_which_a_step_succeeds(changes, images):
    cfg = config(**{**SIZES, **changes})
    needed, reason = images_needed(cfg)
    assert needed == images and ("BatchNorm" in reason or "more than 1 value per channel" in reason) == (images == 2)
    network = build_model(cfg).train()
    for n in (1, 2):
        image, label = (make(f"{n}", n, cfg.train_h, cfg.train_w, *k) for make, k in ((golden_input, ()), (golden_label, (5,))))
        if n < needed:
            with pytest.raises(ValueError, match="more than 1 value per channel"):
                network(image, label)
        else:
            assert network(image, label)[1].isfinite()


def test_the_check_draws_no_random_number_and_changes_no_default_device():
    state = torch.get_rng_state()
    list(check_config(config(**COMPACT)))
    images_needed(config())
    assert torch.equal(torch.get_rng_state(), state) and torch.empty(1).device.type == "cpu"


@pytest.mark.parametrize("h", [*range(1, 20), 33, 41])
def test_the_sizes_that_pass_are_those_that_train(h):
    cfg = dataclasses.replace(config(arch="psa", dropout=0.0), train_h=h, train_w=33)
    network, image = build_model(dataclasses.replace(cfg, mask_h=5, mask_w=5)).train(), torch.zeros(2, 3, h, 33)
    try:
        network(image)
    except ValueError as error:
        near = f"{(h - 1) // 16 * 16 + 1} and {(h - 1) // 16 * 16 + 17}"
        assert near in str(error) and near in dict(check_config(cfg))["train_h"]
    else:
        assert not list(check_config(cfg)) and h % 16 == 1
