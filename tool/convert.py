"""Rename the tensors of a file of weights to semseg's names, or those of a PSPNet or backbone to MMSegmentation's.

    python tool/convert.py pspnet_r50-d8_512x1024_40k_cityscapes.pth exp/cityscapes/mmseg/model/train_epoch_1.pth
    python tool/convert.py exp/ade20k/pspnet50/model/train_epoch_100.pth pspnet50_mmseg.pth --to mmseg

Prints what was renamed, what was dropped and which config keys fit the weights. Writes `state_dict` with the same tensors in
the same order, `config` with those keys, and `epoch` and `meta` where the file has them. The other programs read every format
themselves and need no converted file.
"""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import util.start  # noqa: F401  # isort: skip, before the packages
import torch
import yaml

from model.pspnet import PSPNet
from model.resnet import BLOCKS, ResNet
from model.weights import to_mmseg, to_semseg
from util.checkpoint import load_checkpoint, save_checkpoint
from util.common import Mistake
from util.log import report_errors


def main(argv=None) -> int:
    args = parse_args(argv)
    return report_errors(lambda: convert(args))


def convert(args) -> None:
    output = Path(args.output)
    if os.path.isdir(output):  # noqa: PTH112, Path.is_dir raises where the name is too long
        raise Mistake(f"{output}: is a folder; name the file to write")
    if os.path.realpath(output) == os.path.realpath(args.input):
        raise Mistake(f"{output}: is the file to read, whose optimizer and state would be lost; name another file to write")
    content = load_checkpoint(args.input)
    try:
        state, report = to_semseg(content)
        report.missing = missing_names(state, report.switches)
        renamed = to_mmseg(state) if args.to == "mmseg" else state
    except Mistake as error:
        raise Mistake(f"{args.input}: {error}") from None
    kept = {key: content[key] for key in ("epoch", "meta") if "state_dict" in content and key in content}
    network = dict(report.switches)
    data = {"DATA": {"classes": network.pop("classes")}} if "classes" in network else {}
    config = yaml.safe_dump({**data, "TRAIN": network}, sort_keys=False)
    save_checkpoint({**kept, "state_dict": renamed, "config": config}, output)
    print(report)
    if args.to == "mmseg":
        print(f"MMSegmentation needs: {mmseg_settings(report.switches)}")
    print(f"written: {output}, {len(renamed)} tensors in {args.to} names")


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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input", metavar="IN", help="a file of any format listed in model/weights.py")
    parser.add_argument("output", metavar="OUT", help="the file to write")
    parser.add_argument("--to", choices=("semseg", "mmseg"), default="semseg", help="names to write (default: semseg)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
