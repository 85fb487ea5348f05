"""The networks. `build_model` and the checks below are the only functions here that read the config.

A network of one's own needs the three forms of forward (model/base.py), `criterion`, `zoom_factor`, `label_of_logits`,
`valid_pixels`, `training_sides`, `backbone_modules`, `head_modules`, and for `init: mmseg` `classifiers`; SMPPSPNet is the
shortest example.
"""

import torch

from model.init import init_as_mmseg
from model.loss import CrossEntropy, DiceLoss, OhemCrossEntropy
from model.psanet import PSANet
from model.pspnet import PSPNet
from model.smp import SMPPSPNet, import_package
from model.weights import ATTENTION, mask_side
from util.common import Mistake

# Each key of the config is the keyword argument of the same name.
FRAME_KEYS = """layers classes zoom_factor ignore_label dropout stem contract_dilation align_corners size_rule
    checkpoint_layers""".split()


def build_model(cfg, class_weights=None, **distributed):
    """cfg.arch "psp", "psa" or "smp_pspnet" -> the network, with the criterion of cfg.loss and the initial weights of cfg.init.

    class_weights: (K,) numbers for the criterion. distributed: `all_reduce_sum` of the criterion, where there are several
    processes. Raises Mistake, "key: what is wrong", for values that check_config refuses.
    """
    criterion = build_criterion(cfg, class_weights, **distributed)
    frame = {key: getattr(cfg, key) for key in FRAME_KEYS} | {"criterion": criterion}
    if cfg.arch == "psp":
        network = PSPNet(**frame)
    elif cfg.arch == "psa":
        attention = {key: getattr(cfg, key) for key in ATTENTION}
        for key, pixels in (("mask_h", cfg.train_h), ("mask_w", cfg.train_w)):
            if attention[key] is None:
                attention[key] = mask_side(pixels, cfg.shrink_factor, cfg.compact)
        network = PSANet(**frame, **attention)
    elif cfg.arch == "smp_pspnet":
        fitting = {"zoom_factor": [8], "checkpoint_layers": [()], "align_corners": [True], "stem": ["deep", "plain"]}
        for key, values in fitting.items():  # stem: it has the plain one, and a config that leaves the key out has deep
            if getattr(cfg, key) not in values:
                raise Mistake(f"{key}: {getattr(cfg, key)} does not go with arch: smp_pspnet; leave it out")
        network = SMPPSPNet(cfg.layers, cfg.dropout, cfg.classes, criterion, cfg.ignore_label)
    else:
        raise Mistake(f"arch: {cfg.arch!r} is unknown; choose smp_pspnet, psp or psa")
    if cfg.init == "mmseg":
        init_as_mmseg(network)
    return network


def build_criterion(cfg, class_weights=None, **distributed):
    """cfg.loss "ce", "ohem" or "dice" -> the loss, a module of (logits, label)."""
    if cfg.loss == "ohem":
        return OhemCrossEntropy(cfg.ignore_label, class_weights, cfg.ohem_threshold, cfg.ohem_min_kept, **distributed)
    if cfg.loss == "dice":
        return DiceLoss(cfg.ignore_label, class_weights, **distributed)
    if cfg.loss == "ce":
        return CrossEntropy(cfg.ignore_label, class_weights, cfg.loss_mean)
    raise Mistake(f"loss: {cfg.loss!r} is unknown; choose ce, ohem or dice")


def check_config(cfg):
    """Yield (key, message) for every value, or combination of values, with which network or loss cannot train or test.

    The network is built without memory, on the meta device, and asked.
    """
    if cfg.loss in ("ohem", "dice") and cfg.accumulate_steps > 1:
        message = f"{cfg.accumulate_steps} does not go with loss: {cfg.loss}, which needs the whole batch at once; set it to 1"
        yield "accumulate_steps", message
    if cfg.loss != "ce" and cfg.loss_mean == "all":
        yield "loss_mean", f"all goes with loss: ce only, not with {cfg.loss}"
    try:
        network = _without_memory(cfg)
    except Mistake as error:
        key, _, message = str(error).partition(": ")
        yield key, message
        return
    fits = True
    for key in ("train_h", "train_w"):
        side, near = getattr(cfg, key), network.training_sides(getattr(cfg, key))
        if near != (side,):
            fits = False
            form = f"{network.stride}n+1 that arch: {cfg.arch} needs with size_rule: grid"
            yield key, f"{side} is not of the form {form}; the nearest are {near[0]} and {near[1]}"
    if fits and cfg.arch == "psa" and cfg.compact:
        tested = "test_h" if cfg.test_h else "test_w", *cfg.window
        for key, h, w in (("compact", cfg.train_h, cfg.train_w), tested):
            try:
                with torch.no_grad():
                    network.eval()(torch.empty(1, 3, h, w, device="meta"))
            except Mistake as error:
                yield key, str(error).removeprefix("compact: ")
                break
        if cfg.test_mode == "whole":
            yield "test_mode", "whole does not go with compact: True, which works at one image size only; set it to slide"


def images_needed(cfg):
    """(fewest images that one process can train with, without SyncBN; the reason) of a config that passes check_config.

    The network is run on the meta device.
    """
    network = _without_memory(cfg).train()
    try:
        with torch.no_grad():
            network(torch.empty(1, 3, cfg.train_h, cfg.train_w, device="meta"))
    except ValueError as error:  # of BatchNorm, with the size of its input
        if "more than 1 value per channel" not in str(error):
            raise
        return 2, f"BatchNorm of {type(network).__name__} with one image: {error}"
    return 1, ""


def _without_memory(cfg):
    if cfg.arch == "smp_pspnet":
        import_package()
    with torch.device("meta"):
        return build_model(cfg)
