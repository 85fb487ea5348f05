"""Show what a network sees in pictures of your own.

    python tool/demo.py --config config/toy/toy_pspnet18.yaml --image picture.jpg
    python tool/demo.py --config config/ade20k/ade20k_pspnet50.yaml --image "holiday/*.jpg" --out seen scales "[0.75, 1.0]"

Writes NAME_gray.png (class ids), NAME_color.png (the same in colours) and NAME_overlay.png (colours over the picture) into
--out. A GPU is used if the config's `test_gpu` names one and there is one.
"""

import argparse
import glob
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import numpy as np
from PIL import Image, ImageOps

from model import build_model
from model.fold import for_test
from model.weights import load_network_weights
from util import distributed
from util.checkpoint import load_checkpoint
from util.command import find_config
from util.config import load_config
from util.inference import predict, prediction_settings
from util.log import report_errors
from util.precision import Precision
from util.visual import colorize, default_palette, load_colors, load_names, output_names, overlay, save_png

SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}


def main(argv=None) -> int:
    args = parse_args(argv)
    return report_errors(lambda: demo(args))


def demo(args) -> None:
    overrides = [*args.opts, *(["model_path", str(Path(args.model_path).resolve())] if args.model_path else [])]
    cfg = load_config(find_config(args.config), overrides, must_exist=["model_path"])
    paths = find_images(args.image)
    names = load_names(cfg.names_path, cfg.classes) if cfg.names_path else [f"class {i}" for i in range(cfg.classes)]
    palette = load_colors(cfg.colors_path, cfg.classes) if cfg.colors_path else default_palette(cfg.classes)
    device = distributed.pick_device(cfg.test_gpu)
    network = build_model(cfg)
    load_network_weights(network, cfg.model_path, read=load_checkpoint)
    network = for_test(network, device, channels_last=cfg.channels_last, compile=cfg.compile)
    precision = Precision(cfg.precision, device)

    for path, name in zip(paths, output_names(paths)):
        start = time.time()
        image = read_upright(path)
        with precision.autocast():
            pred = predict(network, image, **prediction_settings(cfg))
        save_png(f"{args.out}/{name}_gray.png", pred)
        save_png(f"{args.out}/{name}_color.png", colorize(pred, palette))
        save_png(f"{args.out}/{name}_overlay.png", overlay(image, pred, palette))
        ids, pixels = np.unique(pred, return_counts=True)
        largest = [f"{names[ids[i]]} {pixels[i] / pred.size:.0%}" for i in pixels.argsort()[::-1][:5]]
        print(f"{args.out}/{name}_overlay.png: {', '.join(largest)} ({time.time() - start:.1f} s)")


def find_images(pattern) -> list[Path]:
    """The pictures that a file, a folder or a glob pattern (`**` reaches into sub-folders) stands for, sorted."""
    if Path(pattern).is_file():
        return [Path(pattern)]
    folder = Path(pattern).is_dir()
    found = Path(pattern).iterdir() if folder else map(Path, glob.glob(pattern, recursive=True))  # noqa: PTH207, absolute
    images = sorted(path for path in found if path.suffix.lower() in SUFFIXES and path.is_file())
    if not images:
        what = "this folder holds no pictures" if folder else "no such picture, and no pictures match it"
        raise ValueError(f"--image {pattern}: {what} ({' '.join(sorted(SUFFIXES))})")
    return images


def read_upright(path):
    """The picture as (H, W, 3) uint8 RGB, turned as the camera says; data sets are read unturned, like their labels."""
    with Image.open(path) as image:
        return np.array(ImageOps.exif_transpose(image).convert("RGB"))


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
