"""Write a trained network into a file that other programs run: ONNX, torch.export (pt2) or OpenVINO.

    python tool/export.py --model exp/cityscapes/pspnet50/model/model_best.pth --format onnx --out cityscapes.onnx
    python tool/export.py --model model_best.pth --format openvino --out cityscapes.xml --images 20
    python tool/test.py --model cityscapes.onnx save_folder exp/onnx

The file takes windows of one size, any number of them, in float32, and holds the BatchNorms folded, class names, colours, mean,
standard deviation, config and revision. Before it gets its name it is compared with the network: the logits of random windows,
and logits, pixels and mIoU on the config's val_list (test_list, if there is none), tested as the config says. If the mIoU
differs by more than 1e-4, the exit status is 1 and there is no file.
"""

import argparse
import math
import os
import re
import signal
import sys
import tempfile
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import util.start  # noqa: F401  # isort: skip, before the packages
import torch

from model import check_config
from model.exported import Exported, Window, check_window, write_exported
from util.common import EXPORT_FORMATS, Mistake
from util.config import config_error, dump_config
from util.dataset import SemData
from util.inference import (
    carried_classes,
    find_model,
    is_exported,
    is_model,
    load_model_config,
    load_predicting_network,
    predict,
    prediction_settings,
    read_model,
    with_carried,
    with_model,
)
from util.log import ProgressBar, build_logger, git_revision, report_errors
from util.metric import confusion_matrix, scores
from util.transform import MEAN, STD
from util.visual import class_names, palette_of

LOGITS, MIOU = 1e-4, 1e-4  # largest differences: of logits, relative to the largest logit if that exceeds 1; of the mIoU


def main(argv=None) -> int:
    args = parse_args(argv)
    return report_errors(lambda: export(args))


def export(args) -> None:
    out = Path(args.out)
    if EXPORT_FORMATS.get(out.suffix) != args.format:
        suffix = next(suffix for suffix, form in EXPORT_FORMATS.items() if form == args.format)
        raise Mistake(f"--out {out}: the name of a file of --format {args.format} ends with {suffix}")
    weights_file = out.with_suffix(".bin") if args.format == "openvino" else out
    for path in (out, weights_file):
        if os.path.isdir(path):  # noqa: PTH112, Path.is_dir raises where the name is too long
            raise Mistake(f"--out {path}: is a folder; name the file to write")
        if len(os.fsencode(path.name)) > 255:
            raise Mistake(f"--out {path}: the name is longer than the 255 bytes that a file's may have")
    if os.path.exists(weights_file) and not os.path.exists(out):  # noqa: PTH110, likewise
        raise Mistake(
            f"--out {out}: its weights would replace {weights_file}, which belongs to no {out.name}; name another file"
        )
    if is_exported(args.model) or not is_model(args.model):
        raise Mistake(f"--model {args.model}: expected a checkpoint, such as model_best.pth")
    log = build_logger()  # which outlives a closed screen
    model, read = find_model(args.model), lru_cache(1)(read_model)
    cfg = load_model_config(args.config or model, with_model(args.opts, model), ["model_path"], check_config, read)
    h, w = args.size or cfg.window
    cfg = replace(cfg, test_h=h, test_w=w, precision="fp32", channels_last=False, compile=False)
    data, count = (None, 0) if args.images == 0 else labelled_images(cfg, args.images)
    cfg = with_carried(cfg, *carried_classes(read(model), cfg))
    network, weights = load_predicting_network(model, read(model), cfg, torch.device("cpu"))
    read.cache_clear()
    windows = [torch.randn(n, 3, h, w, generator=torch.Generator().manual_seed(n)) for n in (1, 2, 3)]
    logits = [run_network(network, window) for window in windows]  # refuses a size before the long export
    if not all(y.isfinite().all() for y in logits):
        raise Mistake(f"--model {args.model}: its logits are NaN or infinite: its weights are damaged or too large")
    if data is not None:  # and so does the first image, if its windows will not be those of the file
        refuse = lambda x: check_window(out, x, (h, w)) or x.new_zeros(len(x), cfg.classes, h, w)
        predict(refuse, data.read(0)[0], **prediction_settings(cfg))
    meta = {"config": dump_config(cfg), "names": class_names(cfg), "palette": palette_of(cfg).tolist(), "mean": MEAN,
            "std": STD, "size": [h, w], "epoch": weights.epoch, "revision": git_revision()}  # fmt: skip

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the program as Ctrl-C does: the folder below goes with it
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(prefix=".export-", dir=out.parent)
    except OSError as error:
        raise Mistake(f"--out {out}: cannot be written ({error})") from error
    with folder:
        file = Path(folder.name) / out.name
        write_exported(file, network, meta)
        exported = Exported(file)
        exported.path = str(out)  # for messages: the name that it will have
        difference = torch.stack([(exported(window) - y).abs().max() for window, y in zip(windows, logits)]).max().item()
        largest = max(y.abs().max().item() for y in logits)
        log.info(f"random windows, 1, 2 and 3 at once: logits of up to {largest:.3g} differ by at most {difference:.1e}")
        if not difference <= LOGITS * max(largest, 1):
            raise Mistake(
                f"{out}: not written, since its logits are not those of the network: {difference:.1e} is more than rounding"
            )
        if data is None:
            log.info("mIoU: not compared (--images 0)")
        else:
            compare_images(cfg, data, count, network, exported, out, log)
        for path in sorted(Path(folder.name).iterdir()):  # OpenVINO's .bin first: an .xml never lacks its weights
            try:
                path.replace(out.with_name(path.name))
            except OSError as error:
                raise Mistake(f"--out {out}: {path.name} cannot be written ({error})") from error
    log.info(f"written: {out}, {args.format}, windows of {h} x {w}, {cfg.classes} classes")


def labelled_images(cfg, limit):
    """(The images with labels to compare on, how many of them)."""
    key = "val_list" if cfg.val_list or cfg.split == "test" else "test_list"
    for needed in ("data_root", key):
        path = getattr(cfg, needed)
        if not path or not os.path.exists(path):  # noqa: PTH110, Path.exists raises where the name is too long
            what = f"{path} does not exist" if path else "is not set"
            what += ", and the mIoU of the exported file cannot be compared without it"
            remedy = f"give `{needed} PATH`, or --images 0 to compare logits of random windows alone"
            raise Mistake(config_error(cfg, needed, f"{what}; {remedy}"))
    data = SemData("val", cfg.data_root, getattr(cfg, key), None, classes=cfg.classes, ignore_label=cfg.ignore_label)
    return data, min(limit or len(data), len(data))


def compare_images(cfg, data, count, network, exported, out, log) -> None:
    """Predict `count` images, evenly spread over the list, with both; say how they differ. Mistake if the mIoU does."""
    how, confusions = prediction_settings(cfg), [0, 0]
    difference = equal = pixels = 0
    bar = ProgressBar("Comparing", count)
    for i in range(count):
        image, label = data.read(i * len(data) // count)
        first = []  # windows of this image, and their logits: those of all would fill the memory

        def run_file(windows, first=first):
            y = exported(windows)
            first[:] = first or [windows, y]
            return y

        try:
            preds = predict(network, image, **how), predict(run_file, image, **how)
        except FloatingPointError as error:
            raise Mistake(f"{out}: not written: {data.data_list[i * len(data) // count][0]}: {error}") from error
        windows, y = first
        difference = max(difference, (run_network(network, windows) - y).abs().max().item())
        equal, pixels = equal + (preds[0] == preds[1]).sum(), pixels + label.size
        confusions = [c + confusion_matrix(pred, label, cfg.classes, cfg.ignore_label) for c, pred in zip(confusions, preds)]
        bar.show(i + 1)
    bar.clear()
    ours, theirs = (scores(confusion).mIoU for confusion in confusions)
    log.info(f"{count} of the {len(data)} images in {data.list_path}: logits of each one's first windows differ by at most "
             f"{difference:.1e}, {equal / pixels:.4%} of the pixels are equal")  # fmt: skip
    log.info(f"mIoU: {ours:.6f} of the network, {theirs:.6f} of the file")
    if abs(ours - theirs) > MIOU or math.isnan(ours) != math.isnan(theirs):  # both nan: no pixel has a label
        raise Mistake(
            f"{out}: not written, since its mIoU differs from the network's by {abs(ours - theirs):.1e}, more than {MIOU:g}"
        )


@torch.inference_mode()
def run_network(network, windows):
    """Logits (N, K, h, w) of windows (N, 3, h, w), as large as these."""
    return Window(network)(windows)


def parse_args(argv):
    parser = argparse.ArgumentParser(
        "python tool/export.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="the checkpoint: a file, or an address as in the config")
    parser.add_argument("--format", choices=tuple(EXPORT_FORMATS.values()), default="onnx", help="default: %(default)s")
    parser.add_argument("--out", required=True, help="the file to write: .onnx, .pt2, or .xml (with a .bin beside it)")
    parser.add_argument("--size", type=size, metavar="HxW", help="window (default: test_h x test_w of the config)")
    parser.add_argument("--images", type=whole, metavar="N", help="compare on N images of the list; 0: none (default: all)")
    parser.add_argument("--config", help="YAML file, for a checkpoint that carries no config")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="override keys of the config: scales [0.5,1.0]")
    return parser.parse_args(argv)


def whole(text):
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of images")
    return int(text)


def size(text):
    match = re.fullmatch(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not HxW, as 473x473")
    return int(match[1]), int(match[2])


if __name__ == "__main__":
    sys.exit(main())
