"""Predict pictures and videos that need no labels and no list.

    python tool/demo.py --model exp/toy/pspnet18/model/model_best.pth --image picture.jpg drive.mp4
    python tool/demo.py ade20k_pspnet50 --image "holiday/*.jpg" --out seen scales "[0.75, 1.0]"
    python tool/demo.py --model model_best.pth --image 0 scales "[1.0]" flip False

A checkpoint of tool/train.py is enough; CONFIG (a YAML file, or the name of a shipped one) is for checkpoints that carry none,
or says another protocol. KEY VALUE overrides keys of either.

Of a picture it writes NAME_gray.png (class ids), NAME_color.png (the same in colours) and NAME_overlay.png (colours over the
picture), of a video NAME_overlay.mp4, into --out. A number is a camera: Ctrl-C ends it and completes camera_overlay.mp4. Of a
GIF the first frame is taken. Files that cannot be read are listed at the end, with exit status 1. A GPU is used if the config's
`test_gpu` names one and there is one.
"""

import argparse
import glob
import os
import re
import signal
import sys
import time
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import util.start  # noqa: F401  # isort: skip, before the packages
import cv2
import numpy as np

from model import check_config
from util import distributed
from util.common import MODEL_SUFFIXES, Mistake, first_few
from util.config import SECTION_OF, Config
from util.image import file_errors, read_image
from util.inference import Predictor, find_model, is_model, load_model_config, read_model, with_model
from util.log import ProgressBar, build_logger, report_errors
from util.video import VIDEO_SUFFIXES, UnfitVideo, VideoReader, write_video
from util.visual import below, changed_names, colorize, legend, output_names, overlay, row_strips, save_png, save_png_strips

SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
WINDOW = "camera, q ends"


def main(argv=None) -> int:
    return report_errors(lambda: demo(parse_args(argv)))


def demo(args) -> None:
    read = lru_cache(1)(read_model)  # the checkpoint has the config and the network
    cfg = load_cfg(args, read)
    log, faults = build_logger(), []
    sources, out = find_sources(args.image, log), Path(args.out)
    names = output_names([Path(f"camera{source or ''}") if isinstance(source, int) else source for source in sources])
    outputs = {os.path.realpath(out / f"{name}_{kind}") for name in names
               for kind in ("gray.png", "color.png", "overlay.png", "overlay.mp4")}  # fmt: skip
    if overwritten := outputs & {os.path.realpath(source) for source in sources if isinstance(source, Path)}:
        raise Mistake(f"--out {out}: {min(overwritten)} is one of the inputs and would be overwritten; name another folder")
    predictor = Predictor(cfg.model_path, distributed.pick_device(cfg.test_gpu), cfg.precision, cfg, read)
    read.cache_clear()
    if changed := changed_names(predictor.carried[0] or (), predictor.names):
        log.warning(f"names_path: the checkpoint has other names: {first_few(changed)}")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Mistake(f"--out {out}: no folder for the results ({error})") from error
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the program as Ctrl-C does

    for source, name in zip(sources, names):
        moving = isinstance(source, int) or source.suffix.lower() in VIDEO_SUFFIXES
        try:
            content = VideoReader(source) if moving else read_image(source)
        except Mistake as error:
            faults.append(str(error))
            continue
        try:
            if moving:
                show_video(predictor, source, content, out / f"{name}_overlay.mp4", args, log)
            else:
                show_picture(predictor, content, out / name, args, log)
        except UnfitVideo as error:
            faults.append(str(error))
        except FloatingPointError as error:
            raise Mistake(f"{source}: {error}") from error
    if faults:
        raise Mistake(f"{len(faults)} of {len(sources)} inputs are not done:\n" + first_few(faults, 20, "\n"))


def load_cfg(args, read) -> Config:
    experiment = args.config or args.model
    if args.model and (os.path.isdir(args.model) or not args.config and not is_model(args.model)):  # noqa: PTH112, long names
        raise Mistake(f"--model {args.model}: not the file of a network ({' '.join(MODEL_SUFFIXES)})")
    if not experiment:
        raise Mistake("command line: which network? Give --model FILE.pth, or the CONFIG of an experiment")
    model = args.model or (experiment if is_model(experiment) else None)
    overrides = with_model(args.opts, find_model(model)) if model else args.opts
    return load_model_config(experiment, overrides, ["model_path"], check_config, read)


def show_picture(predictor, image, place, args, log) -> None:
    start = time.time()
    ids = predictor(image)
    pixels = sum(np.bincount(ids[rows].ravel(), minlength=len(predictor.names)) for rows in row_strips(ids))
    present = [k for k in pixels.argsort(kind="stable")[::-1] if pixels[k]]
    h, w = len(ids), ids.shape[1] * (1 + args.side_by_side)
    names = [legend([predictor.names[k] for k in present], predictor.palette[present], (h, w))] if args.legend else []
    shown = (compose(image[rows], ids[rows], predictor.palette, args) for rows in row_strips(ids))  # no second large picture
    save_png(f"{place}_gray.png", ids)
    save_png(f"{place}_color.png", colorize(ids, predictor.palette))
    h, w = h + sum(map(len, names)), max([w, *(strip.shape[1] for strip in names)])
    save_png_strips(f"{place}_overlay.png", h, w, chain(shown, names))
    log.info(f"{place}_overlay.png: {largest(pixels, predictor.names)} ({time.time() - start:.1f} s)")


def show_video(predictor, source, video, path, args, log) -> None:
    """Write the overlay of every frame.

    Ctrl-C or SIGTERM: what is done so far is a whole file; for a camera that is the end, else the program ends with it.
    """
    camera, interrupted = isinstance(source, int), False
    bar = ProgressBar(path.name, min(filter(None, (args.frames, video.count)), default=0))
    pixels, strip, done, written, start = 0, None, 0, 0, time.time()
    window = camera and open_window()
    with write_video(path, video.rate) as append:
        try:
            for frame in islice(video, args.frames):
                ids = predictor(frame)
                pixels = pixels + np.bincount(ids.ravel(), minlength=len(predictor.names))
                shown = compose(frame, ids, predictor.palette, args)
                if args.legend:  # the same below every frame, so of the classes of the network, in their order
                    if strip is None:
                        strip = legend(predictor.names, predictor.palette, shown.shape[:2], max_rows=10)
                    shown = below(shown, strip)
                # A camera's pictures last as long as they were on: the video plays at the speed of life.
                due = round((time.time() - start) * video.rate) - written if camera else 1
                for _ in range(max(due, 1)):
                    append(shown)
                    written += 1
                done += 1
                bar.total = max(bar.total, done)
                bar.show(done)
                if window and not in_window(shown):
                    break
        except KeyboardInterrupt:
            if not written:
                raise
            interrupted = True
    bar.clear()
    seconds = max(time.time() - start, 1e-9)
    shares = largest(pixels, predictor.names)
    log.info(f"{path}: {done} frames, {shares} ({seconds:.1f} s, {done / seconds:.2f} frames/s)")
    if interrupted and not camera:
        log.info(f"interrupted: {path} holds the first {done} frames of {source}")
        raise KeyboardInterrupt
    if done != args.frames and (seconds := video.missing()):  # a video that was trimmed without loss states all frames too
        log.warning(f"{source}: states {seconds:.1f} seconds more than it has (trimmed, cut short or damaged?)")


def compose(image, ids, palette, args):
    if args.side_by_side:
        return np.hstack([image, overlay(image, ids, palette)])
    return overlay(image, ids, palette, out=image)


def largest(pixels, names) -> str:
    """`road 41%, sky 12%, ...`: the five classes with the most pixels."""
    order = [k for k in pixels.argsort(kind="stable")[::-1][:5] if pixels[k]]
    return ", ".join(f"{names[k]} {pixels[k] / pixels.sum():.0%}" for k in order)


def open_window() -> bool:
    """Open a window for the camera, where there is a screen and OpenCV is built with windows."""
    if sys.platform == "linux" and not os.environ.get("DISPLAY"):
        return False  # Qt would end the program
    try:
        cv2.namedWindow(WINDOW, cv2.WINDOW_NORMAL)
    except cv2.error:
        return False
    return True


def in_window(frame) -> bool:
    """Show a frame; False if q or Esc was pressed."""
    cv2.imshow(WINDOW, cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    return cv2.waitKey(1) & 255 not in (ord("q"), 27)


def find_sources(patterns, log) -> list:
    """The pictures and videos of files, folders and glob patterns (`**` reaches into sub-folders), each sorted, as paths, and
    the numbers of cameras; each once."""
    found = []
    for pattern in patterns:
        camera = re.fullmatch("[0-9]{1,4}", pattern) and not os.path.exists(pattern)  # noqa: PTH110, as below
        found += [int(pattern)] if camera else find_files(pattern, log)
    return list({source if isinstance(source, int) else os.path.abspath(source): source for source in found}.values())  # noqa: PTH100


def find_files(pattern, log) -> list[Path]:
    if os.path.isfile(pattern):  # noqa: PTH113, Path.is_file raises where the name is too long
        return [Path(pattern)]
    folder = os.path.isdir(pattern)  # noqa: PTH112, likewise
    with file_errors(f"--image {pattern}"):
        found = [*Path(pattern).iterdir()] if folder else map(Path, glob.glob(pattern, recursive=True))  # noqa: PTH207, absolute
    suffixes = SUFFIXES | VIDEO_SUFFIXES
    end = Path(pattern).suffix
    stated = not folder and end and not glob.has_magic(end)  # *.gif says which kind
    present = sorted(path for path in found if os.path.isfile(path))  # noqa: PTH113
    files = [path for path in present if stated or path.suffix.lower() in suffixes]
    if others := [path.name for path in present if path not in files]:
        log.info(f"--image {pattern}: left alone, since their names do not end as pictures' do: {first_few(others)}")
    if not files:
        what = "this folder holds no pictures or videos" if folder else "no such picture or video, and none match it"
        raise Mistake(f"--image {pattern}: {what} ({' '.join(sorted(suffixes))})")
    return files


def parse_args(argv):
    parser = argparse.ArgumentParser(
        usage="python tool/demo.py [--model FILE.pth] [CONFIG] --image FILE [FILE ...] [flags] [KEY VALUE ...]",
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--model", "--model_path", "--model-path", metavar="FILE",
                        help="checkpoint, or a file of tool/export.py; default: CONFIG's model_path")  # fmt: skip
    parser.add_argument("--config", metavar="FILE", help="the same as CONFIG")
    parser.add_argument("--image", required=True, nargs="+", action="extend", metavar="FILE",
                        help="pictures, videos, folders of them, quoted patterns with *, a camera's number")  # fmt: skip
    parser.add_argument("--out", default="demo", metavar="DIR", help="folder for the results (default: %(default)s)")
    parser.add_argument("--no-legend", dest="legend", action="store_false", help="overlays without the names of the classes")
    parser.add_argument("--side-by-side", action="store_true", help="overlays beside the picture itself")
    parser.add_argument("--frames", type=int, metavar="N", help="end a video or a camera after N frames")
    args, words = parser.parse_known_args(argv)
    wrong = [word for word in words if re.match(r"--?[A-Za-z]", word)]
    if wrong:
        parser.error(f"unrecognized arguments: {' '.join(wrong)}")
    if args.frames is not None and args.frames < 1:
        parser.error(f"--frames {args.frames}: must be 1 or more")
    for i, word in enumerate(args.image):  # KEY VALUE may follow the pictures
        if word.rpartition(".")[2] in SECTION_OF and not os.path.exists(word):  # noqa: PTH110, as below
            args.image, words = args.image[:i], words + args.image[i:]
            break
    if not args.image:
        parser.error("argument --image: expected at least one file")
    if not args.config and len(words) % 2:
        args.config = words.pop(0)
    args.opts = words
    return args


if __name__ == "__main__":
    sys.exit(main())
