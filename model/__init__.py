"""The networks. `build_model` is the only place here that knows the config."""

from model.psanet import PSANet
from model.pspnet import PSPNet

# A key of the config is a keyword argument of the same name.
FRAME_KEYS = ("layers", "classes", "zoom_factor", "ignore_label", "dropout", "stem", "contract_dilation",
              "align_corners", "size_rule", "loss_mean")
PSA_KEYS = ("psa_type", "compact", "shrink_factor", "mask_h", "mask_w", "normalization_factor", "psa_softmax")


def build_model(cfg, pretrained=None):
    """cfg.arch "psp" or "psa" -> the network; pretrained is the path of the backbone's ImageNet weights."""
    networks = {"psp": (PSPNet, ()), "psa": (PSANet, PSA_KEYS)}
    if cfg.arch not in networks:
        raise ValueError(f"arch: {cfg.arch!r} is unknown; choose one of {', '.join(networks)}")
    network, keys = networks[cfg.arch]
    return network(**{key: getattr(cfg, key) for key in FRAME_KEYS + keys}, pretrained=pretrained)
