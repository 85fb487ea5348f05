"""Weights from elsewhere: recognised by their names, renamed to semseg's, compared with the network, then loaded.

| format | file | names |
|---|---|---|
| semseg | train_epoch_N.pth of this project and of the original (`module.` or not) | layer0..4, ppm or psa, cls, aux |
| semseg backbone | the original's resnet{50,101,152}_v2.pth | conv1, bn1, ..., conv3, bn3, layer1..4, fc |
| mmseg | PSPNet of MMSegmentation, R{18,50,101,152}-d8 | backbone.*, decode_head.*, auxiliary_head.* |
| mmseg backbone | resnet{18,50,101}_v1c | stem.*, layer1..4, with or without `backbone.` |
| torchvision | resnet{18,34,50,101,152} | conv1 (7x7), bn1, layer1..4, fc |
| smp | PSPNet of segmentation_models_pytorch with a ResNet; its names stay | encoder, decoder, segmentation_head |
"""

import pickle
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml

# Names are mapped by how they begin. layer0 is a Sequential of (conv, bn, relu) triples; so is MMSegmentation's stem.
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
# What has no place here: ImageNet classifiers, other heads, stages behind the last that smp's PSPNet calls.
DROPPED = ("fc.", "head.", "decode_head.", "auxiliary_head.", "encoder.layer3.", "encoder.layer4.")
HEADS = ("ppm.", "psa.", "cls.", "aux.", "decoder.", "segmentation_head.")
CLASSIFIERS = ("cls.4.", "aux.4.", "segmentation_head.0.")
SMP_ENCODER = {"layer0.0.": "encoder.conv1.", "layer0.1.": "encoder.bn1.", "layer1.": "encoder.layer1.",
               "layer2.": "encoder.layer2."}  # fmt: skip

# How each family computes with its weights, which no shape tells.
SEMSEG = {"contract_dilation": False, "align_corners": True, "size_rule": "grid"}
MMSEG = {"contract_dilation": True, "align_corners": False, "size_rule": "input"}


@dataclass
class Report:
    """What became of the tensors of a file."""

    format: str
    renamed: dict  # {name in the file: name here}
    dropped: list  # names in the file that have no place here
    switches: dict  # the config keys that fit these weights
    stated: set  # those of `switches` that are certain, by shapes, by the file's own words or by its format
    missing: list  # names that the network has and the file has not, allowed since they do not matter
    skipped: list  # classifiers left out, since the number of classes differs
    epoch: int | None = None

    def __str__(self):
        """Lines to print; names that change in the same way stand together."""
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
        needs = [
            f"{key}: {value}" + ("" if key in self.stated else " (usual for this format; the file does not say)")
            for key, value in self.switches.items()
        ]
        lists = {"fits": needs, "dropped": self.dropped, "missing": self.missing, "skipped": self.skipped}
        return "\n".join(lines + [f"{what}: {', '.join(names)}" for what, names in lists.items() if names])


def recognise(state):
    """The format, a name of the table above, of a flat dict {name: tensor}. Raises ValueError for any other."""
    firsts = {key.removeprefix("module.").removeprefix("backbone.").split(".")[0] for key in state}
    prefixed = any(key.removeprefix("module.").startswith("backbone.") for key in state)
    if {"encoder", "segmentation_head"} <= firsts:
        return "smp"
    if "layer1" in firsts:
        if "layer0" in firsts:
            return "semseg"
        if "decode_head" in firsts:
            return "mmseg"
        if "stem" in firsts or prefixed:
            return "mmseg backbone"
        if "conv1" in firsts:
            return "semseg backbone" if "conv3" in firsts else "torchvision"
    raise ValueError(
        f"not the weights of a ResNet, PSPNet or PSANet; its names begin with {', '.join(sorted(firsts)[:10])}; "
        "known are the files of this project, semseg, MMSegmentation (PSPNet), torchvision (ResNet) and "
        "segmentation_models_pytorch (PSPNet)"
    )


def to_semseg(content):
    """content, a flat dict of tensors or a checkpoint with `state_dict` -> ({semseg name: tensor} in the same order, Report).

    Names that begin in no known way stay as they are, so that strict loading refuses them.
    """
    state = content.get("state_dict", content)
    if not isinstance(state, dict) or not state or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ValueError("holds no weights: expected {name: tensor}, or that under `state_dict`")
    table = {**STEM, **TRIPLES, **PSP_HEAD}
    kind = recognise(state)
    renamed, dropped = {}, []
    for key in state:
        bare = key.removeprefix("module.").removeprefix("backbone.")
        name = _rename(bare, table)
        if name.startswith(DROPPED):
            dropped.append(key)
        else:
            renamed[key] = name
    ours = {name: state[key] for key, name in renamed.items()}
    if len(ours) < len(renamed):
        raise ValueError("holds two networks: some tensors are there twice, with and without `module.` or `backbone.`")
    switches, stated = _switches(kind, ours, content)
    epoch = content.get("epoch") if "state_dict" in content else None
    return ours, Report(kind, renamed, dropped, switches, stated, [], [], epoch)


def to_mmseg(state):
    """{semseg name: tensor} -> the same tensors, in order, under MMSegmentation's names; a backbone without `backbone.`."""
    heads = any(key.startswith(("cls.", "aux.")) for key in state)
    if any(key.startswith(("psa.", "encoder.")) for key in state) or heads and not any(key.startswith("ppm.") for key in state):
        raise ValueError("only PSPNets and backbones have names in MMSegmentation's form")
    stem = TRIPLES if describe(state).get("stem") == "plain" else STEM
    table = {ours: theirs for theirs, ours in {**stem, **PSP_HEAD}.items()}
    prefix = {start: f"backbone.{start}" for start in ("layer", "stem", "conv", "bn")} if heads else {}
    return {_rename(_rename(key, table), prefix): tensor for key, tensor in state.items()}


def _rename(key, table):
    """key with its beginning replaced by the table's; as it is if the table has none of its beginnings."""
    start = next((start for start in table if key.startswith(start)), "")
    return table.get(start, "") + key[len(start) :]


def describe(state):
    """The config keys that the names and shapes of {semseg name: tensor} tell, as far as they are there."""
    if any(key.startswith("encoder.") for key in state):
        return _describe_smp(state)
    found = {}
    if any(key.startswith(("ppm.", "psa.")) for key in state):
        found["arch"] = "psa" if any(key.startswith("psa.") for key in state) else "psp"
    blocks = {tuple(key.split(".")[:2]) for key in state if re.match(r"layer[1-4]\.\d+\.", key)}
    found["layers"] = len(blocks) * (3 if "layer1.0.conv3.weight" in state else 2) + 2
    if "layer0.0.weight" in state:
        channels, *_, side = state["layer0.0.weight"].shape
        found["stem"] = "plain" if side == 7 else "deep32" if channels == 32 else "deep"
    if "cls.4.weight" in state:
        found["classes"] = len(state["cls.4.weight"])
    return found


def _describe_smp(state):
    """Its layer1 and layer2 are those of ResNet-50 in ResNet-101 too."""
    blocks = len({tuple(key.split(".")[1:3]) for key in state if key.startswith(("encoder.layer1.", "encoder.layer2."))})
    layers = {4: 18, 7: 50 if "encoder.layer1.0.conv3.weight" in state else 34, 11: 152}.get(blocks)
    found = {"arch": "smp_pspnet", "layers": layers, "stem": "plain"}
    if "segmentation_head.0.weight" in state:
        found["classes"] = len(state["segmentation_head.0.weight"])
    return found


def _switches(kind, state, content):
    """({config key: value} that fit the weights, those of the keys that are certain)."""
    if kind == "smp":
        found = describe(state)
        return found, set(found) - {"layers"}
    # ImageNet backbones learned without dilation; this is how their families dilate them.
    usual = {"semseg": SEMSEG, "mmseg": MMSEG, "semseg backbone": {"contract_dilation": False}}
    certain = describe(state) | ({"contract_dilation": True} if kind == "mmseg" else {})
    certain |= {key: value for key, value in _own_words(content).items() if key in SEMSEG}
    return {**describe(state), **usual.get(kind, {"contract_dilation": True}), **certain}, set(certain)


def _own_words(content):
    """What a checkpoint says of its config: `config`, a YAML text, in this project; `meta` in MMSegmentation."""
    text = content.get("config")
    if isinstance(text, str):
        try:
            return dict(yaml.safe_load(text)["TRAIN"])
        except (yaml.YAMLError, TypeError, KeyError, ValueError):
            return {}
    meta = content.get("meta")
    text = str(meta.get("config") or meta.get("cfg")) if isinstance(meta, dict) else ""
    values = {key: set(re.findall(rf"\b{key}\s*=\s*(True|False)", text)) for key in ("contract_dilation", "align_corners")}
    return {key: found == {"True"} for key, found in values.items() if len(found) == 1}


def read_weights(path):
    """The content of a file of weights, on the CPU; only tensors and plain values are accepted."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file; initmodel/README.md says where ImageNet weights come from")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path}: cannot be read as a file of weights: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds no weights, but {type(content).__name__}")
    return content


def load_network_weights(network, path, *, skip_head=False, read=read_weights):
    """Fill a whole network strictly from a file of format semseg or mmseg, an SMPPSPNet from smp; returns the Report.

    skip_head: classifiers (cls.4 and aux.4, segmentation_head.0) of another number of classes stay as they are and are listed
        in `skipped`.
    read: path -> content of the checkpoint.
    Raises one ValueError that says what the file has, what the network has and which config keys to set.
    """
    state, report = _read_as_semseg(path, read)
    own = network.state_dict()
    if skip_head:
        report.skipped = [
            key for key in own if key.startswith(CLASSIFIERS) and key in state and state[key].shape != own[key].shape
        ]
    expected = describe(own)
    if expected.get("arch") != "smp_pspnet":
        expected |= {"align_corners": network.align_corners, "contract_dilation": _contracts(network)}
    for key in report.skipped:
        expected.pop("classes", None)
        del own[key], state[key]
    _load(network, own, state, path, report, expected)
    return report


def load_backbone(network, path, *, read=read_weights):
    """Fill layer0..4 of a ResNet or of a whole network from a file of any format; heads and `fc` are dropped. The encoder of an
    SMPPSPNet takes what it has from any file with a plain stem, such as torchvision's.

    Returns the Report. Raises FileNotFoundError, or one ValueError that says what the file has, what the network has,
    which config keys to set, and every missing, unexpected and wrong-shaped tensor.
    """
    state, report = _read_as_semseg(path, read)
    own = {key: tensor for key, tensor in network.state_dict().items() if not key.startswith(HEADS)}
    expected, table, dropped = describe(own), {}, HEADS
    if expected.get("arch") == "smp_pspnet":
        if report.switches.get("stem") != "plain":
            raise ValueError(
                f"{path}: the weights of another stem: arch: smp_pspnet begins with one 7x7 convolution, as "
                "torchvision's ResNets do; set `initmodel: torchvision`"
            )
        expected, table, dropped = {"layers": network.layers}, SMP_ENCODER, (*HEADS, "layer3.", "layer4.")
        report.switches = {key: report.switches[key] for key in ("layers", "stem")}  # the others mean nothing there
    names = {key: _rename(ours, table) for key, ours in report.renamed.items()}
    state = {names[key]: state[ours] for key, ours in report.renamed.items() if not names[key].startswith(dropped)}
    report.dropped += [key for key, ours in names.items() if ours.startswith(dropped)]
    report.renamed = {key: ours for key, ours in names.items() if not ours.startswith(dropped)}
    _load(network, own, state, path, report, expected)
    return report


def fetch_torchvision(layers, folder, download=torch.hub.download_url_to_file):
    """Path of torchvision's ImageNet weights of a ResNet in `folder`, fetched and checked (SHA-256) if not there yet.

    IMAGENET1K_V1, from which torchvision's own segmentation networks start too. Raises OSError that says what to do.
    """
    from torchvision.models import get_model_weights  # slow to import, and needed only here

    url = get_model_weights(f"resnet{layers}").IMAGENET1K_V1.url
    path = Path(folder) / url.rsplit("/", 1)[-1]  # resnet50-0676ba61.pth: the end is the beginning of its SHA-256
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            download(url, str(path), hash_prefix=path.stem.rsplit("-", 1)[-1], progress=False)
        except (OSError, RuntimeError) as error:
            raise OSError(
                f"initmodel: torchvision: {url} could not be fetched ({error}); fetch it on a machine that can, "
                f"put it at {path}, and start again"
            ) from error
    return path


def _read_as_semseg(path, read):
    content = read(path)
    try:
        return to_semseg(content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _contracts(network):
    block = network.layer4[0]
    return (block.conv2 if hasattr(block, "conv3") else block.conv1).dilation == (2, 2)


def _load(network, own, state, path, report, expected):
    """Load `state`, which must be all of `own`, into a network with the config keys `expected`; sets report.missing."""
    problems = []
    for key, value in expected.items():
        found = report.switches.get(key)
        if key in report.stated and found != value:
            skip = ", or leave the classifiers out with `skip_head: True`" if key == "classes" else ""
            problems.append(f"{key}: the file has {found}, the network {value}; set `{key}: {found}`{skip}")
    if problems:
        problems.append(f"the file fits {', '.join(f'{key}: {value}' for key, value in report.switches.items())}")
    if any(key.startswith(HEADS) for key in own) and not any(key.startswith(HEADS) for key in state):
        problems.append("it holds a backbone only: name it under `initmodel`")
    # num_batches_tracked counts the steps of a training that is over, and older files lack it.
    report.missing = [key for key in own if key not in state and key.endswith("num_batches_tracked")]
    lists = {
        "missing": [key for key in own if key not in state and key not in report.missing],
        "unexpected": [key for key in state if key not in own],
        "wrong shape": [
            f"{key} is {tuple(state[key].shape)}, the network has {tuple(own[key].shape)}"
            for key in own
            if key in state and state[key].shape != own[key].shape
        ],
    }
    shown = 3 if problems else 20
    for what, names in lists.items():
        if names:
            more = f", ... {len(names)} in all" if len(names) > shown else ""
            problems.append(f"{what}: {', '.join(names[:shown])}{more}")
    if problems:
        raise ValueError("\n  ".join([f"{path}: the weights of another network", *problems]))
    network.load_state_dict(state, strict=False)
