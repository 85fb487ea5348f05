"""Every shipped config builds its network and takes one step."""

import pytest
import torch
from golden_rules import golden_input, golden_label

from model import build_criterion, build_model, check_config
from util.config import ROOT, load_config
from util.optim import build_optimizer

SHIPPED = sorted(ROOT.glob("config/*/*.yaml"))

# Every key that files of the original have, their values written as there: 0 and 1 for some switches, data/ for lists of names.
ORIGINAL = """
DATA:
  data_root: dataset/{dataset}
  train_list: dataset/{dataset}/list/{train_list}
  val_list: dataset/{dataset}/list/{val_list}
  classes: {classes}

TRAIN:
  arch: {arch}
  layers: {layers}
  sync_bn: True  # adopt syncbn or not
  train_h: {size}
  train_w: {size}
  scale_min: 0.5  # minimum random scale
  scale_max: 2.0
  rotate_min: -10
  rotate_max: 10
  zoom_factor: 8
  ignore_label: 255
  aux_weight: 0.4
{attention}  train_gpu: [0, 1, 2, 3, 4, 5, 6, 7]
  workers: 16
  batch_size: 16  # batch size for training
  batch_size_val: 8
  base_lr: 0.01
  epochs: {epochs}
  start_epoch: 0
  power: 0.9
  momentum: 0.9
  weight_decay: 0.0001
  manual_seed:
  print_freq: 10
  save_freq: 1
  save_path: exp/{dataset}/{arch}net{layers}/model
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
  test_list: dataset/{dataset}/list/{val_list}
  split: val  # split in [train, val and test]
  base_size: {base_size}
  test_h: {size}
  test_w: {size}
  scales: [1.0]  # [0.5, 0.75, 1.0, 1.25, 1.5, 1.75]
  has_prediction: False
  index_start: 0
  index_step: 0
  test_gpu: [0]
  model_path: exp/{dataset}/{arch}net{layers}/model/train_epoch_{epochs}.pth
  save_folder: exp/{dataset}/{arch}net{layers}/result/epoch_{epochs}/val/ss
  colors_path: data/{dataset}/{dataset}_colors.txt
  names_path: data/{dataset}/{dataset}_names.txt
"""
ATTENTION = """  psa_type: 2
  compact: 0
  shrink_factor: 2
  mask_h: {mask}
  mask_w: {mask}
  normalization_factor: 1.0
  psa_softmax: 1
"""
DATASETS = {  # classes, crop of PSPNet, crop and mask of PSANet, epochs, base_size, lists
    "ade20k": (150, 473, 465, 59, 100, 512, "training.txt", "validation.txt"),
    "voc2012": (21, 473, 465, 59, 50, 512, "train_aug.txt", "val.txt"),
    "cityscapes": (19, 713, 705, 89, 200, 2048, "fine_train.txt", "fine_val.txt"),
}


def original_file(dataset, arch, layers):
    """The text of one of them."""
    classes, psp_size, psa_size, mask, epochs, base_size, train_list, val_list = DATASETS[dataset]
    attention = ATTENTION.format(mask=mask) if arch == "psa" else ""
    return ORIGINAL.format(size=psa_size if arch == "psa" else psp_size, **locals())


@pytest.mark.parametrize("layers", [50, 101])
@pytest.mark.parametrize("arch", ["psp", "psa"])
@pytest.mark.parametrize("dataset", DATASETS)
def test_every_config_of_the_original_loads_and_builds(dataset, arch, layers, tmp_path):
    classes, path = DATASETS[dataset][0], tmp_path / "original.yaml"
    path.write_text(original_file(dataset, arch, layers))
    cfg = load_config(path, check=check_config)
    assert all("does not exist, using" in note for note in cfg.notes)
    assert (cfg.compact, cfg.psa_softmax, cfg.manual_seed, cfg.weight) == (False, True, None, None)
    with torch.device("meta"):
        network = build_model(cfg)
    assert type(network).__name__ == {"psp": "PSPNet", "psa": "PSANet"}[arch]
    assert all(layer.out_channels == classes for layer in network.classifiers())


def test_keys_of_the_hard_pixel_loss_reach_the_criterion():
    words = ["loss", "ohem", "ohem_threshold", "0.6", "ohem_min_kept", "7", "classes", "2", "class_weights", "null"]
    logits = torch.tensor([0.0, 2.0, 0.1, 3.0]).view(1, 1, 4, 1) * torch.tensor([1.0, -1.0]).view(1, 2, 1, 1)
    label = torch.zeros(1, 4, 1, dtype=torch.int64)
    losses = torch.nn.functional.cross_entropy(logits, label, reduction="none").flatten()

    def loss(**changes):
        overrides = [*words, *(str(word) for pair in changes.items() for word in pair)]
        return build_criterion(load_config(ROOT / "config/toy/toy_pspnet18.yaml", overrides))(logits, label)

    hard = losses[torch.exp(-losses) < 0.6]
    assert len(hard) == 2 and torch.allclose(loss(ohem_min_kept=1), hard.mean())
    assert torch.allclose(loss(ohem_min_kept=3), losses.sort(descending=True).values[:3].mean())
    assert torch.allclose(loss(ohem_min_kept=1, ohem_threshold=0.999), losses.sum() / 4)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_the_mask_of_every_shipped_psanet_covers_its_crop_exactly(path):
    cfg = load_config(path)
    if cfg.arch == "psa":
        for size, mask in ((cfg.train_h, cfg.mask_h), (cfg.train_w, cfg.mask_w)):
            assert (size - 1) % (8 * cfg.shrink_factor) == 0 and mask == 2 * ((size - 1) // 8 // cfg.shrink_factor + 1) - 1


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_config_trains_a_step(path):
    """On the smallest crop that has something to attend to: the network is the config's own, masks included, but that its
    backbone has an eighth of the channels."""
    size = 8 * load_config(path).shrink_factor + 1
    cfg = load_config(path, ["train_h", size, "train_w", size])
    torch.manual_seed(0)
    network = build_model(cfg).train()
    optimizer = build_optimizer(
        network,
        kind=cfg.optimizer,
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
