"""Every shipped config builds its network and takes one step."""

import pytest
import torch
from golden_rules import golden_input, golden_label

from model import build_model
from util.config import ROOT, load_config
from util.optim import build_optimizer

SHIPPED = sorted(ROOT.glob("config/*/*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_the_mask_of_every_shipped_psanet_covers_its_crop_exactly(path):
    cfg = load_config(path)
    if cfg.arch == "psa":
        for size, mask in ((cfg.train_h, cfg.mask_h), (cfg.train_w, cfg.mask_w)):
            assert (size - 1) % (8 * cfg.shrink_factor) == 0 and mask == 2 * ((size - 1) // 8 // cfg.shrink_factor + 1) - 1


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_config_trains_a_step(path):
    """On the smallest crop that has something to attend to: the network is the config's own, masks included."""
    size = 8 * load_config(path).shrink_factor + 1
    cfg = load_config(path, ["train_h", size, "train_w", size])
    torch.manual_seed(0)
    network = build_model(cfg).train()
    optimizer = build_optimizer(
        network,
        base_lr=cfg.base_lr,
        head_lr_factor=cfg.head_lr_factor,
        momentum=cfg.momentum,
        weight_decay=cfg.weight_decay,
        bias_decay=cfg.bias_decay,
        norm_decay=cfg.norm_decay,
        rules=cfg.param_rules,
    )
    first = next(network.backbone_modules()[0].parameters())
    weights = [first, *(layer.weight for layer in network.classifiers())]
    before = [weight.detach().clone() for weight in weights]
    image, label = golden_input(path.stem, 2, size, size), golden_label(path.stem, 2, size, size, cfg.classes)
    pred, main_loss, aux_loss = network(image, label)
    (main_loss + cfg.aux_weight * aux_loss).backward()
    optimizer.step()
    side = (size - 1) // 8 * cfg.zoom_factor + 1 if cfg.size_rule == "grid" else size
    assert pred.shape == (2, side, side) and main_loss.isfinite() and aux_loss.isfinite()
    assert all(weight.isfinite().all() and not torch.equal(weight, old) for weight, old in zip(weights, before))
