"""Files of weights: the format is recognised by the tensors' names, which are mapped to semseg's; loading is strict.

| format | file | names of tensors begin with |
|---|---|---|
| semseg | train_epoch_N.pth of this project and of the original (`module.` or not) | layer0..4, ppm or psa, cls, aux |
| semseg backbone | the original's resnet{50,101,152}_v2.pth | conv1, bn1, ..., conv3, bn3, layer1..4, fc |
| mmseg | PSPNet of MMSegmentation, R{18,50,101,152}-d8 | backbone.*, decode_head.*, auxiliary_head.* |
| mmseg backbone | resnet{18,50,101}_v1c | stem.*, layer1..4, with or without `backbone.` |
| torchvision | resnet{18,34,50,101,152} | conv1 (7x7), bn1, layer1..4, fc |
| smp | PSPNet of segmentation_models_pytorch with a ResNet; its names stay | encoder, decoder, segmentation_head |
"""

import re
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

import torch
import yaml

from util.common import Mistake, first_few, write_aside

# Prefixes of names, theirs -> semseg's. layer0 is a Sequential of (conv, bn, relu) triples; so is MMSegmentation's stem.
STEM = {"stem.": "layer0."}
TRIPLES = {f"{kind}{i + 1}.": f"layer0.{3 * i + j}." for i in range(3) for j, kind in enumerate(("conv", "bn"))}
PSP_HEAD = {
    "decode_head.conv_seg.": "cls.4.",
    "decode_head.bottleneck.conv.": "cls.0.",
    "decode_head.bottleneck.bn.": "cls.1.",
    "auxiliary_head.conv_seg.": "aux.4.",
    "auxiliary_head.convs.0.conv.": "aux.0.",
    "auxiliary_head.convs.0.bn.": "aux.1.",
    **{
        f"decode_head.psp_modules.{i}.1.{kind}.": f"ppm.features.{i}.{j}."
        for i in range(9)
        for j, kind in ((1, "conv"), (2, "bn"))
    },
}
# Not loaded: ImageNet classifiers, other heads, stages after the last one that smp's PSPNet uses.
DROPPED = ("fc.", "head.", "decode_head.", "auxiliary_head.", "encoder.layer3.", "encoder.layer4.")
BACKBONE = ("layer", "encoder.")
CLASSIFIERS = ("cls.4.", "aux.4.", "segmentation_head.0.")
SMP_ENCODER = {"layer0.0.": "encoder.conv1.", "layer0.1.": "encoder.bn1.", "layer1.": "encoder.layer1.",
               "layer2.": "encoder.layer2."}  # fmt: skip

# Settings of each family that cannot be told from names and shapes.
SEMSEG = {"contract_dilation": False, "align_corners": True, "size_rule": "grid"}
MMSEG = {"contract_dilation": True, "align_corners": False, "size_rule": "input"}
# And of PSANet's attention; of mask_h and mask_w shapes tell the product alone.
ATTENTION = ("psa_type", "compact", "shrink_factor", "mask_h", "mask_w", "normalization_factor", "psa_softmax")

FLOATS = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
INTEGERS = {torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}


@dataclass
class Report:
    """What was done with the tensors of a file."""

    format: str
    renamed: dict  # {name in the file: name here}
    dropped: list  # names in the file that are not loaded
    switches: dict  # config keys and values that fit these weights
    stated: set  # the keys of `switches` known from shapes, from the config in the file or from the format
    missing: list  # names that only the network has; allowed for num_batches_tracked
    skipped: list  # classifiers that keep their values, since the number of classes differs
    epoch: int | None = None

    def __str__(self):
        """Lines to print; names renamed in the same way share a line."""
        groups = Counter()
        for theirs, ours in self.renamed.items():
            a, b = theirs.split("."), ours.split(".")
            while a and b and a[-1] == b[-1]:
                a, b = a[:-1], b[:-1]
            groups[".".join([*a, "*"]), ".".join([*b, "*"])] += 1
        lines = [f"format: {self.format}"]
        lines += [
            f"{theirs} -> {ours}: {n} tensors" if theirs != ours else f"names kept: {n} tensors"
            for (theirs, ours), n in groups.items()
        ]
        fits = [
            f"{key}: {value}" + ("" if key in self.stated else " (usual for this format; not stated in the file)")
            for key, value in self.switches.items()
        ]
        lists = {"fits": fits, "dropped": self.dropped, "missing": self.missing, "skipped": self.skipped}
        return "\n".join(lines + [f"{what}: {', '.join(names)}" for what, names in lists.items() if names])


def recognise(state, own=()):
    """The format (a name of the table above) of a flat dict {name: tensor}; `own` if the names are these. Raises Mistake."""
    firsts = {key.removeprefix("module.").removeprefix("backbone.").split(".")[0] for key in state}
    prefixed = any(key.removeprefix("module.").startswith("backbone.") for key in state)
    if {"encoder", "segmentation_head"} <= firsts:
        return "smp"
    if not {"layer0", "layer1"} <= firsts and {key.removeprefix("module.") for key in state} == set(own):
        return "own"
    if "layer1" in firsts:
        if "layer0" in firsts:
            return "semseg"
        if "decode_head" in firsts:
            return "mmseg"
        if "stem" in firsts or prefixed:
            return "mmseg backbone"
        if "conv1" in firsts:
            return "semseg backbone" if "conv3" in firsts else "torchvision"
    raise Mistake(
        f"not the weights of a ResNet, PSPNet or PSANet: its names begin with {first_few(sorted(firsts))}; supported are "
        "files of this project, semseg, MMSegmentation (PSPNet), torchvision (ResNet) and segmentation_models_pytorch (PSPNet)"
    )


def to_semseg(content, own=()):
    """content, a flat dict of tensors or a checkpoint with `state_dict` -> ({semseg name: tensor} in the same order, Report).

    Names that the tables do not know are kept, so that strict loading refuses them. own: the names of a network; a file with
    just these needs no known format. Raises Mistake.
    """
    state = content.get("state_dict", content) if isinstance(content, dict) else content
    found = type(state).__name__
    if isinstance(state, dict):
        other = [f"{key!r}: {_kind(t)}" for key, t in state.items() if not isinstance(key, str) or _kind(t) != "tensor"]
        found = first_few(other, 3) if state else "nothing"
    if found:
        raise Mistake(f"holds no weights: expected {{name: tensor}}, or that under `state_dict`, found {found}")
    table = {**STEM, **TRIPLES, **PSP_HEAD}
    kind = recognise(state, own)
    renamed, dropped = {}, []
    for key in state:
        name = key.removeprefix("module.")
        if kind == "own":
            renamed[key] = name
            continue
        name = _rename(name.removeprefix("backbone."), table)
        if name.startswith(DROPPED):
            dropped.append(key)
        else:
            renamed[key] = name
    ours = {name: state[key] for key, name in renamed.items()}
    if len(ours) < len(renamed):
        raise Mistake("holds two networks: the same names with and without `module.` or `backbone.`")
    switches, stated = _switches(kind, ours, content)
    epoch = content.get("epoch") if "state_dict" in content else None
    return ours, Report(kind, renamed, dropped, switches, stated, [], [], epoch if isinstance(epoch, int) else None)


def _kind(value):
    if not isinstance(value, torch.Tensor):
        return type(value).__name__
    return "tensor" if value.layout == torch.strided and not value.is_nested else f"{value.layout} tensor"


def to_mmseg(state):
    """{semseg name: tensor} -> the same tensors, in order, under MMSegmentation's names; a backbone without `backbone.`."""
    heads = any(key.startswith(("cls.", "aux.")) for key in state)
    if any(key.startswith(("psa.", "encoder.")) for key in state) or heads and not any(key.startswith("ppm.") for key in state):
        raise Mistake("only PSPNets and backbones have names in MMSegmentation's form")
    stem = TRIPLES if describe(state).get("stem") == "plain" else STEM
    table = {ours: theirs for theirs, ours in {**stem, **PSP_HEAD}.items()}
    prefix = {start: f"backbone.{start}" for start in ("layer", "stem", "conv", "bn")} if heads else {}
    return {_rename(_rename(key, table), prefix): tensor for key, tensor in state.items()}


def _rename(key, table):
    """key with its prefix replaced as in the table; unchanged if no prefix fits."""
    start = next((start for start in table if key.startswith(start)), "")
    return table.get(start, "") + key[len(start) :]


def describe(state):
    """The config keys that follow from names and shapes of {semseg name: tensor}; those that cannot be told are left out."""
    if any(key.startswith("encoder.") for key in state):
        return _describe_smp(state)
    found = {}
    if any(key.startswith(("ppm.", "psa.")) for key in state):
        found["arch"] = "psa" if any(key.startswith("psa.") for key in state) else "psp"
    blocks = {tuple(key.split(".")[:2]) for key in state if re.match(r"layer[1-4]\.\d+\.", key)}
    found["layers"] = len(blocks) * (3 if "layer1.0.conv3.weight" in state else 2) + 2
    if "layer0.0.weight" in state and state["layer0.0.weight"].dim() == 4:
        channels, *_, side = state["layer0.0.weight"].shape
        found["stem"] = "plain" if side == 7 else "deep32" if channels == 32 else "deep"
    return found | _classes(state, "cls.4.weight")


def _describe_smp(state):
    """As `describe`; ResNet-101 is described as 50, since their layer1 and layer2 are equal."""
    blocks = len({tuple(key.split(".")[1:3]) for key in state if key.startswith(("encoder.layer1.", "encoder.layer2."))})
    layers = {4: 18, 7: 50 if "encoder.layer1.0.conv3.weight" in state else 34, 11: 152}.get(blocks)
    return {"arch": "smp_pspnet", "layers": layers, "stem": "plain"} | _classes(state, "segmentation_head.0.weight")


def _classes(state, classifier):
    return {"classes": len(state[classifier])} if classifier in state and state[classifier].dim() == 4 else {}


def _switches(kind, state, content):
    """({config key: value} that fit the weights, the set of keys that are certain)."""
    if kind == "own":
        return {}, set()
    if kind == "smp":
        found = describe(state)
        return found, set(found) - {"layers"}
    # ImageNet backbones were trained without dilation; this is how the family they come from dilates them.
    usual = {"semseg": SEMSEG, "mmseg": MMSEG, "semseg backbone": {"contract_dilation": False}}
    certain = describe(state) | ({"contract_dilation": True} if kind == "mmseg" else {})
    config = _config_in(content)
    certain |= {key: value for key, value in config.items() if key in SEMSEG}
    certain |= _attention_in(config) if certain.get("arch") == "psa" else {}
    return {**describe(state), **usual.get(kind, {"contract_dilation": True}), **certain}, set(certain)


def _config_in(content):
    """Config keys stated in a checkpoint: `config`, a YAML text, in this project; `meta` in MMSegmentation."""
    text = content.get("config")
    if isinstance(text, str):
        try:
            return dict(yaml.safe_load(text)["TRAIN"])
        except (yaml.YAMLError, TypeError, KeyError, ValueError, RecursionError):
            return {}
    meta = content.get("meta")
    texts = [meta.get(key) for key in ("config", "cfg")] if isinstance(meta, dict) else []
    text = next((text for text in texts if isinstance(text, str)), "")
    values = {key: set(re.findall(rf"\b{key}\s*=\s*(True|False)", text)) for key in ("contract_dilation", "align_corners")}
    return {key: found == {"True"} for key, found in values.items() if len(found) == 1}


def _attention_in(config):
    """The keys of ATTENTION that a config states, with the values of those that it leaves empty."""
    found = {key: config[key] for key in ATTENTION if config.get(key) is not None}
    with suppress(KeyError, TypeError, ZeroDivisionError):  # not stated, or no numbers
        for key, pixels in (("mask_h", "train_h"), ("mask_w", "train_w")):
            if config[key] is None:
                found[key] = mask_side(config[pixels], config["shrink_factor"], config["compact"])
        if config["normalization_factor"] is None:
            found["normalization_factor"] = found["mask_h"] * found["mask_w"]
    return found


def mask_side(pixels, shrink_factor, compact):
    """Height or width of the smallest mask of a PSANet that covers the whole training image, of so many pixels."""
    side = (pixels - 1) // 8 // shrink_factor + 1
    return side if compact else 2 * side - 1


def load_network_weights(network, path, *, read, skip_head=False):
    """Fill a whole network from a file of format semseg or mmseg, an SMPPSPNet from one of format smp; returns the Report.

    read: path -> content of the file, such as util.checkpoint.load_checkpoint.
    skip_head: classifiers for another number of classes (cls.4 and aux.4, segmentation_head.0) keep their values and are listed
        in `skipped`.
    Raises Mistake with the config keys to set and the tensors that do not fit; the network is unchanged then.
    """
    own = network.state_dict()
    state, report = _read_as_semseg(path, read, own)
    if skip_head:
        classes = report.switches.get("classes")
        report.skipped = [
            key
            for key in own
            if key.startswith(CLASSIFIERS)
            and key in state
            and state[key].shape == (classes, *own[key].shape[1:]) != own[key].shape
        ]
    expected = describe(own) | {key: getattr(network, key) for key in SEMSEG if hasattr(network, key)}
    if expected.get("arch") == "psa":
        expected |= {key: getattr(network.psa, key) for key in ATTENTION}
    for key in report.skipped:
        expected.pop("classes", None)
        del own[key], state[key]
    _load(network, own, state, path, report, expected)
    return report


def load_backbone(network, path, *, read):
    """Fill layer0..4 of a ResNet or of a whole network from a file of any format; all else in it, such as heads and `fc`, is
    dropped. The encoder of an SMPPSPNet is filled from any file with a plain stem, such as torchvision's.

    read: path -> content of the file, such as util.checkpoint.load_checkpoint. Returns the Report.
    Raises Mistake with the config keys to set and the tensors that do not fit; the network is unchanged then.
    """
    state, report = _read_as_semseg(path, read)
    own = {key: tensor for key, tensor in network.state_dict().items() if key.startswith(BACKBONE)}
    if not own:
        raise Mistake(f"{path}: there is nothing to fill: a backbone's weights are named layer0..4, or encoder")
    expected, table, kept = describe(own), {}, "layer"
    if expected.get("arch") == "smp_pspnet":
        if report.switches.get("stem") != "plain":
            raise Mistake(
                f"{path}: the weights of another stem: that of arch: smp_pspnet is one 7x7 convolution, as in torchvision's "
                "ResNets; set `initmodel: torchvision`"
            )
        expected, table, kept = {"layers": network.layers}, SMP_ENCODER, "encoder."
        report.switches = {key: report.switches[key] for key in ("layers", "stem")}  # it has no other key
    names = {key: _rename(ours, table) for key, ours in report.renamed.items()}
    state = {names[key]: state[ours] for key, ours in report.renamed.items() if names[key].startswith(kept)}
    report.dropped += [key for key, ours in names.items() if not ours.startswith(kept)]
    report.renamed = {key: ours for key, ours in names.items() if ours.startswith(kept)}
    _load(network, own, state, path, report, expected)
    return report


def fetch_torchvision(layers, folder, download=torch.hub.download_url_to_file):
    """Path of torchvision's ImageNet weights (IMAGENET1K_V1) of a ResNet in `folder`; downloaded if they are not there.

    The file gets its name only after its SHA-256 was checked. Raises Mistake with the URL and the path to put the file at.
    """
    from torchvision.models import get_model_weights  # slow to import, and needed only here

    url = get_model_weights(f"resnet{layers}").IMAGENET1K_V1.url
    path = Path(folder) / url.rsplit("/", 1)[-1]  # resnet50-0676ba61.pth ends with the first digits of its SHA-256
    if not path.is_file():
        with write_aside(path) as temporary:
            try:
                download(url, str(temporary), hash_prefix=path.stem.rsplit("-", 1)[-1], progress=False)
            except (OSError, RuntimeError, HTTPException) as error:  # RuntimeError: another SHA-256
                raise Mistake(
                    f"initmodel: torchvision: {url} could not be downloaded ({error}); download it on another machine, "
                    f"put it at {path}, and start again"
                ) from error
    return path


def _read_as_semseg(path, read, own=()):
    content = read(path)
    try:
        return to_semseg(content, own)
    except Mistake as error:
        raise Mistake(f"{path}: {error}") from None


def _load(network, own, state, path, report, expected):
    """Load `state`, which must have all of `own`, into a network with the config keys `expected`; sets report.missing."""
    problems = []
    for key, value in expected.items():
        found = report.switches.get(key)
        if key in report.stated and found != value:
            skip = ", or leave the classifiers out with `skip_head: True`" if key == "classes" else ""
            problems.append(f"{key}: the file has {found}, the network {value}; set `{key}: {found}`{skip}")
    if problems:
        problems.append(f"the file fits {', '.join(f'{key}: {value}' for key, value in report.switches.items())}")
    if all(key.startswith(BACKBONE) for key in state) and not all(key.startswith(BACKBONE) for key in own):
        problems.append("it holds a backbone only: name it under `initmodel`")
    # num_batches_tracked counts training steps, which are not continued, and older files lack it.
    report.missing = [key for key in own if key not in state and key.endswith("num_batches_tracked")]
    both = [key for key in own if key in state]
    lists = {
        "missing": [key for key in own if key not in state and key not in report.missing],
        "unexpected": [key for key in state if key not in own],
        "wrong shape": [
            f"{key} is {tuple(state[key].shape)}, the network has {tuple(own[key].shape)}"
            for key in both
            if state[key].shape != own[key].shape
        ],
    }
    shown = 3 if problems else 20
    problems += [f"{what}: {first_few(names, shown)}" for what, names in lists.items() if names]
    if problems:
        raise Mistake("\n  ".join([f"{path}: the weights of another network", *problems]))
    wrong = [f"{key} {fault}" for key in both if (fault := _fault(key, state[key], own[key].dtype))]
    if wrong:
        raise Mistake(f"{path}: unusable weights: {first_few(wrong)}")
    network.load_state_dict(state, strict=False)


def _fault(key, tensor, dtype):
    """Why a tensor of a file cannot take the place of one of type dtype, or None."""
    if tensor.is_meta:
        return "has no values"
    if tensor.dtype not in (FLOATS if dtype.is_floating_point else FLOATS | INTEGERS):  # counters may have been averaged too
        return f"is {tensor.dtype}, not {dtype}"
    values = tensor.to(dtype if dtype.is_floating_point else torch.float64)
    if not values.isfinite().all():
        return "has nan or infinite values"
    return "has negative values" if key.endswith("running_var") and (values < 0).any() else None
