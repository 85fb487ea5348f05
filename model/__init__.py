"""The networks. `build_model` is the only place here that knows the config."""

from model.init import init_as_mmseg
from model.loss import CrossEntropy, DiceLoss, OhemCrossEntropy
from model.psanet import PSANet
from model.pspnet import PSPNet
from model.smp import SMPPSPNet
from model.weights import load_backbone

# A key of the config is the keyword argument of the same name.
FRAME_KEYS = (
    "layers",
    "classes",
    "zoom_factor",
    "ignore_label",
    "dropout",
    "stem",
    "contract_dilation",
    "align_corners",
    "size_rule",
    "checkpoint_layers",
)
PSA_KEYS = ("psa_type", "compact", "shrink_factor", "mask_h", "mask_w", "normalization_factor", "psa_softmax")


def build_model(cfg, pretrained=None, class_weights=None):
    """cfg.arch "psp", "psa" or "smp_pspnet" -> the network, with the criterion of cfg.loss and the initial values of cfg.init.

    pretrained: path of the backbone's ImageNet weights. class_weights: (K,) numbers for the criterion.
    """
    criterion = build_criterion(cfg, class_weights)
    frame = {key: getattr(cfg, key) for key in FRAME_KEYS} | {"criterion": criterion}
    if cfg.arch == "psp":
        network = PSPNet(**frame)
    elif cfg.arch == "psa":
        attention = {key: getattr(cfg, key) for key in PSA_KEYS}
        for key, pixels in (("mask_h", cfg.train_h), ("mask_w", cfg.train_w)):
            if attention[key] is None:  # then it covers everything in a training image
                side = (pixels - 1) // 8 // cfg.shrink_factor + 1
                attention[key] = side if cfg.compact else 2 * side - 1
        network = PSANet(**frame, **attention)
    elif cfg.arch == "smp_pspnet":
        for key, only in (("zoom_factor", 8), ("checkpoint_layers", ())):
            if getattr(cfg, key) != only:
                raise ValueError(f"{cfg.path}: TRAIN.{key}: {getattr(cfg, key)} does not go with arch: smp_pspnet; "
                                 "leave it out")  # fmt: skip
        network = SMPPSPNet(cfg.layers, cfg.dropout, cfg.classes, criterion, cfg.ignore_label)
    else:
        raise ValueError(f"arch: {cfg.arch!r} is unknown; choose smp_pspnet, psp or psa")
    if cfg.init == "mmseg":
        init_as_mmseg(network)
    if pretrained:
        load_backbone(network, pretrained)
    return network


def build_criterion(cfg, class_weights=None):
    """cfg.loss "ce", "ohem" or "dice" -> the loss, a module of (logits, label)."""
    if cfg.loss == "ohem":
        return OhemCrossEntropy(cfg.ignore_label, class_weights, cfg.ohem_threshold, cfg.ohem_min_kept)
    if cfg.loss == "dice":
        return DiceLoss(cfg.ignore_label, class_weights)
    return CrossEntropy(cfg.ignore_label, class_weights, cfg.loss_mean)
