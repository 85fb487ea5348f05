"""Rename the weights in a file: MMSegmentation's, torchvision's and older names to semseg's, or semseg's to MMSegmentation's.

    python tool/convert.py pspnet_r50-d8_512x1024_40k_cityscapes.pth exp/cityscapes/mmseg/model/train_epoch_1.pth
    python tool/convert.py exp/ade20k/pspnet50/model/train_epoch_100.pth pspnet50_mmseg.pth --to mmseg

Prints what was renamed, what was dropped and which config keys fit the weights. Writes `state_dict` with the same tensors in
the same order, `config` with those keys, and `epoch` and `meta` where the file has them. No program here needs a converted
file: each reads every format by itself.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import torch
import yaml

from model.pspnet import PSPNet
from model.resnet import ResNet
from model.weights import to_mmseg, to_semseg
from util.checkpoint import load_checkpoint, save_checkpoint
from util.log import report_errors


def main(argv=None) -> int:
    args = parse_args(argv)
    return report_errors(lambda: convert(args))


def convert(args) -> None:
    content = load_checkpoint(args.input)
    try:
        state, report = to_semseg(content)
        report.missing = missing_names(state, report.switches)
        renamed = to_mmseg(state) if args.to == "mmseg" else state
    except ValueError as error:
        raise ValueError(f"{args.input}: {error}") from None
    kept = {key: content[key] for key in ("epoch", "meta") if "state_dict" in content and key in content}
    network = dict(report.switches)
    data = {"DATA": {"classes": network.pop("classes")}} if "classes" in network else {}
    config = yaml.safe_dump({**data, "TRAIN": network}, sort_keys=False)
    Path(args.output).parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint({**kept, "state_dict": renamed, "config": config}, args.output)
    print(report)
    if args.to == "mmseg":
        print(f"MMSegmentation needs: {mmseg_settings(report.switches)}")
    print(f"written: {args.output}, {len(renamed)} tensors in {args.to} names")


def missing_names(state, switches) -> list[str]:
    """What a PSPNet or a backbone of this depth and stem has and the file has not."""
    shape = {key: switches[key] for key in ("layers", "stem")}
    with torch.device("meta"):
        if switches.get("arch") == "psp":
            own = PSPNet(**shape, classes=switches.get("classes", 2)).state_dict()
        elif "arch" not in switches:
            own = ResNet(**shape).state_dict()
        else:
            return []  # a PSANet has more than one form; loading compares it with the one of the config
    return [key for key in own if key not in state]


def mmseg_settings(switches) -> str:
    """The arguments of its backbone and heads that make MMSegmentation compute the same."""
    backbone = {"plain": "ResNet", "deep": "ResNetV1c, stem_channels=128", "deep32": "ResNetV1c"}[switches["stem"]]
    heads = f"; heads: align_corners={switches['align_corners']}" if "align_corners" in switches else ""
    return f"backbone: {backbone}, depth={switches['layers']}, contract_dilation={switches['contract_dilation']}{heads}"


def parse_args(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input", metavar="IN", help="a file of any format in model/weights.py")
    parser.add_argument("output", metavar="OUT", help="the file to write")
    parser.add_argument("--to", choices=("semseg", "mmseg"), default="semseg", help="names to write (default: semseg)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
