"""Predict pictures that need no labels and no list.

    python tool/demo.py --config config/toy/toy_pspnet18.yaml --image picture.jpg
    python tool/demo.py --config config/ade20k/ade20k_pspnet50.yaml --image "holiday/*.jpg" --out seen scales "[0.75, 1.0]"

Writes NAME_gray.png (class ids), NAME_color.png (the same in colours) and NAME_overlay.png (colours over the picture) into
--out. Pictures that cannot be read are listed at the end, with exit status 1. A GPU is used if the config's `test_gpu` names
one and there is one.
"""

import argparse
import glob
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import numpy as np

from model import build_model
from model.fold import for_test
from model.weights import load_network_weights
from util import distributed
from util.checkpoint import load_checkpoint
from util.command import find_config
from util.common import Mistake, first_few
from util.config import load_config
from util.image import read_image
from util.inference import predict, prediction_settings
from util.log import build_logger, report_errors
from util.precision import Precision
from util.visual import class_names, colorize, output_names, overlay, palette_of, save_png

SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}


def main(argv=None) -> int:
    args = parse_args(argv)
    return report_errors(lambda: demo(args))


def demo(args) -> None:
    overrides = [*args.opts, *(["model_path", str(Path(args.model_path).resolve())] if args.model_path else [])]
    cfg = load_config(find_config(args.config), overrides, must_exist=["model_path"])
    names, palette = class_names(cfg), palette_of(cfg)
    paths, out = find_images(args.image), Path(args.out)
    outputs = output_names(paths)
    written = {os.path.realpath(out / f"{name}_{kind}.png") for name in outputs for kind in ("gray", "color", "overlay")}
    if overwritten := written & set(map(os.path.realpath, paths)):
        raise Mistake(f"--out {out}: {min(overwritten)} is one of the pictures and would be overwritten; name another folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Mistake(f"--out {out}: no folder for the results ({error})") from error
    device = distributed.pick_device(cfg.test_gpu)
    network = build_model(cfg)
    load_network_weights(network, cfg.model_path, read=load_checkpoint)
    network = for_test(network, device, channels_last=cfg.channels_last, compile=cfg.compile)
    precision = Precision(cfg.precision, device)

    log, faults = build_logger(), []
    for path, name in zip(paths, outputs):
        start = time.time()
        try:
            image = read_image(path)
        except Mistake as error:
            faults.append(str(error))
            continue
        try:
            with precision.autocast():
                pred = predict(network, image, **prediction_settings(cfg))
        except FloatingPointError as error:
            raise Mistake(f"{path}: {error}") from error
        save_png(out / f"{name}_gray.png", pred)
        save_png(out / f"{name}_color.png", colorize(pred, palette))
        save_png(out / f"{name}_overlay.png", overlay(image, pred, palette, out=image))
        ids, pixels = np.unique(pred, return_counts=True)
        largest = [f"{names[ids[i]]} {pixels[i] / pred.size:.0%}" for i in pixels.argsort()[::-1][:5]]
        log.info(f"{out / name}_overlay.png: {', '.join(largest)} ({time.time() - start:.1f} s)")
    if faults:
        raise Mistake(f"{len(faults)} of {len(paths)} pictures could not be read:\n" + first_few(faults, 20, "\n"))


def find_images(pattern) -> list[Path]:
    """The pictures of a file, a folder or a glob pattern (`**` reaches into sub-folders), sorted."""
    if os.path.isfile(pattern):  # noqa: PTH113, Path.is_file raises where the name is too long
        return [Path(pattern)]
    folder = os.path.isdir(pattern)  # noqa: PTH112, likewise
    found = Path(pattern).iterdir() if folder else map(Path, glob.glob(pattern, recursive=True))  # noqa: PTH207, absolute
    images = sorted(path for path in found if path.suffix.lower() in SUFFIXES and path.is_file())
    if not images:
        what = "this folder holds no pictures" if folder else "no such picture, and no pictures match it"
        raise Mistake(f"--image {pattern}: {what} ({' '.join(sorted(SUFFIXES))})")
    return images


def parse_args(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="the experiment: its YAML file, or the name of a shipped one")
    parser.add_argument("--image", required=True, help="a picture, a folder of pictures, or a quoted pattern with *")
    parser.add_argument("--out", default="demo", help="folder for the results (default: %(default)s)")
    parser.add_argument("--model_path", "--model-path", help="checkpoint; default: the config's model_path")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="override keys of the config: scales [0.5,1.0]")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
