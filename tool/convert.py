"""Rename the tensors of a file of weights to semseg's names, or those of a PSPNet or backbone to MMSegmentation's.

    python tool/convert.py pspnet_r50-d8_512x1024_40k_cityscapes.pth exp/cityscapes/mmseg/model/train_epoch_1.pth
    python tool/convert.py exp/ade20k/pspnet50/model/train_epoch_100.pth pspnet50_mmseg.pth --to mmseg
    python tool/convert.py exp/ade20k/pspnet50/model/train_epoch_100.pth pspnet50.safetensors

Prints what was renamed, what was dropped and which config keys fit the weights. Writes `state_dict` with the same tensors in
the same order, `config` with those keys among the others that the file states, and `epoch`, `names`, `palette` and `meta` where
the file has them. A file *.safetensors, which may be IN, OUT or both, has all but the tensors as texts in its metadata. The
other programs read every format themselves and need no converted file.
"""

import argparse
import os
import sys
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import util.start  # noqa: F401  # isort: skip, before the packages
import torch
import yaml

from model.pspnet import PSPNet
from model.resnet import BLOCKS, ResNet
from model.weights import to_mmseg, to_semseg
from util.checkpoint import DESCRIPTION, load_checkpoint, save_checkpoint, save_safetensors
from util.common import EXPORT_FORMATS, Mistake
from util.config import SECTION_OF
from util.log import report_errors


def main(argv=None) -> int:
    args = parse_args(argv)
    return report_errors(lambda: convert(args))


def convert(args) -> None:
    output = Path(args.output)
    if os.path.isdir(output):  # noqa: PTH112, Path.is_dir raises where the name is too long
        raise Mistake(f"{output}: is a folder; name the file to write")
    if output.suffix in EXPORT_FORMATS:
        raise Mistake(
            f"{output}: {output.suffix} is a file that other programs run: write it with tool/export.py --model {args.input}; "
            "what is written here ends with .pth or .safetensors"
        )
    if os.path.realpath(output) == os.path.realpath(args.input):
        raise Mistake(f"{output}: is the file to read, whose optimizer and state would be lost; name another file to write")
    content = load_checkpoint(args.input)
    try:
        state, report = to_semseg(content)
        report.missing = missing_names(state, report.switches)
        renamed = to_mmseg(state) if args.to == "mmseg" else state
    except Mistake as error:
        raise Mistake(f"{args.input}: {error}") from None
    kept = {key: content[key] for key in DESCRIPTION if "state_dict" in content and key in content}
    save = save_safetensors if output.suffix == ".safetensors" else save_checkpoint
    save({**kept, "state_dict": renamed, "config": config_of(content, report)}, output)
    print(report)
    if args.to == "mmseg":
        print(f"MMSegmentation needs: {mmseg_settings(report.switches)}")
    print(f"written: {output}, {len(renamed)} tensors in {args.to} names")


def config_of(content, report) -> str:
    """The config in a checkpoint, if it has one, with the keys that fit the weights; YAML."""
    config = {"DATA": {}, "TRAIN": {}}
    with suppress(yaml.YAMLError, AttributeError, TypeError, ValueError, RecursionError):  # no config of this project
        config |= {section: dict(keys or {}) for section, keys in yaml.safe_load(content.get("config")).items()}
    for key, value in report.switches.items():
        section = config[SECTION_OF[key]]
        section[key] = value if key in report.stated else section.get(key, value)
    return yaml.safe_dump({section: keys for section, keys in config.items() if keys}, sort_keys=False)


def missing_names(state, switches) -> list[str]:
    """The tensors of a PSPNet or a backbone of this depth and stem that the file lacks."""
    if switches.get("arch", "psp") != "psp":
        return []  # the tensors of PSANet and SMPPSPNet depend on the config too; they are compared when it is loaded
    shape = {key: switches[key] for key in ("layers", "stem") if key in switches}
    if shape.get("layers") not in BLOCKS or "stem" not in shape:
        raise Mistake(f"not the weights of a whole ResNet or PSPNet; names and shapes fit {shape}")
    with torch.device("meta"):
        own = (PSPNet(**shape, classes=switches.get("classes", 2)) if "arch" in switches else ResNet(**shape)).state_dict()
    return [key for key in own if key not in state]


def mmseg_settings(switches) -> str:
    """The arguments of MMSegmentation's backbone and heads that these weights need."""
    backbone = {"plain": "ResNet", "deep": "ResNetV1c, stem_channels=128", "deep32": "ResNetV1c"}[switches["stem"]]
    heads = f"; heads: align_corners={switches['align_corners']}" if "align_corners" in switches else ""
    return f"backbone: {backbone}, depth={switches['layers']}, contract_dilation={switches['contract_dilation']}{heads}"


def parse_args(argv):
    parser = argparse.ArgumentParser(
        "python tool/convert.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("input", metavar="IN", help="a file of any format listed in model/weights.py")
    parser.add_argument("output", metavar="OUT", help="the file to write")
    parser.add_argument("--to", choices=("semseg", "mmseg"), default="semseg", help="names to write (default: semseg)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
