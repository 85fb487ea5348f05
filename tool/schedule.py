"""Draw learning-rate schedules: all there are, or the one of a config.

    python tool/schedule.py --out docs/schedules.png
    python tool/schedule.py --config config/cityscapes/cityscapes_pspnet50.yaml schedule cosine --out cosine.png

Writes one PNG. The drawing of a config shows the rate of the backbone and, where it moves, the momentum.
"""

import argparse
import math
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from util.command import find_config
from util.config import load_config
from util.dataset import read_list
from util.log import report_errors
from util.schedule import build_schedule, cosine, onecycle, poly, step, with_warmup

WIDTH, HEIGHT = 1200, 310  # pixels: of the picture, of a row of panels
FINE = 4  # drawn so many times larger, then averaged
SAMPLES = 1200  # points of a curve at most
RATE, MOMENTUM = (24, 95, 190), (208, 84, 10)
INK, GRAY, LINE, GRID = (34, 38, 46), (107, 114, 128), (150, 156, 168), (232, 234, 239)


@dataclass(frozen=True)
class Panel:
    title: str
    note: str  # keys and values
    x: np.ndarray  # (n,), rising from 0
    y: np.ndarray  # (n,)
    unit: str  # of x
    colour: tuple = RATE


def main(argv=None) -> int:
    args = parse_args(argv)

    def run():
        if args.opts and not args.config:
            raise ValueError(f"{' '.join(args.opts)}: these are keys of a config; name it with --config")
        panels = panels_of(load_config(find_config(args.config), args.opts)) if args.config else all_panels()
        args.out.parent.mkdir(parents=True, exist_ok=True)
        image = draw(panels, columns=min(len(panels), 3))
        image.quantize(128, dither=Image.Dither.NONE).save(args.out, optimize=True)
        print(args.out)

    return report_errors(run)


# ---- what is drawn ----


def all_panels() -> list[Panel]:
    def smooth(schedule, T=40000):
        t = np.linspace(0, T, 1001)
        return t, np.array([schedule(i) for i in t.tolist()])

    def warm(t):
        return with_warmup(lambda t: poly(t, 40000, 0.01, min_lr=0.001), t, 4000, 0.002)

    def falling(t):
        return step(t, 40000, 0.01, (0.5, 0.75), 0.1)

    epochs, moving = 30, {"T": 29, "warmup": 3}
    rates = [onecycle(t, peak=0.01, start=0.001, end=0.0001, **moving) for t in range(epochs)]
    momenta = [onecycle(t, peak=0.85, start=0.95, end=0.95, **moving) for t in range(epochs)]
    recipe = "by epoch, 3 of warm-up"
    return [
        Panel("poly", "power 0.9", *smooth(lambda t: poly(t, 40000, 0.01)), "iteration"),
        Panel("poly with floor and warm-up", "min_lr 0.001, warmup_lr 0.002, warmup_iters 4000", *smooth(warm), "iteration"),
        Panel("cosine", "min_lr 0.001", *smooth(lambda t: cosine(t, 40000, 0.01, 0.001)), "iteration"),
        Panel("step", "step_at [0.5, 0.75], step_factor 0.1", *smooth(falling), "iteration"),
        Panel("onecycle", f"{recipe}, min_lr 0.0001, warmup_lr 0.001", *stairs(range(epochs), rates, epochs), "epoch"),
        Panel("onecycle, momentum", f"{recipe}, momentum_low 0.85", *stairs(range(epochs), momenta, epochs), "epoch", MOMENTUM),
    ]


def panels_of(cfg) -> list[Panel]:
    """The rate and, if it moves, the momentum of a config, over epochs, or iterations if it has max_iter."""
    epoch_iters = iterations_of_an_epoch(cfg)
    max_iter = cfg.max_iter or cfg.epochs * epoch_iters
    schedule = build_schedule(cfg, max_iter, epoch_iters)
    iterations = np.unique(np.linspace(0, max_iter - 1, min(max_iter, SAMPLES)).astype(int))
    rates, momenta = zip(*(schedule(i) for i in iterations.tolist()))
    x, end, unit = (iterations, max_iter, "iteration") if cfg.max_iter else (iterations / epoch_iters, cfg.epochs, "epoch")
    name = Path(cfg.path).stem
    panels = [Panel(f"{name}: {cfg.schedule}", describe(cfg), *stairs(x, rates, end), unit)]
    if len(set(momenta)) > 1:
        note = f"momentum {cfg.momentum:g}, momentum_low {cfg.momentum_low:g}"
        panels.append(Panel(f"{name}: momentum", note, *stairs(x, momenta, end), unit, MOMENTUM))
    return panels


def iterations_of_an_epoch(cfg) -> int:
    """From the list; without one any number will do, unless the config itself counts iterations against epochs."""
    if cfg.train_list and Path(cfg.train_list).is_file():
        return max(len(read_list(cfg.train_list, cfg.data_root, "train")) // cfg.batch_size, 1)
    if cfg.schedule_by == "epoch" if cfg.max_iter else cfg.warmup_iters:
        key = "schedule_by" if cfg.max_iter else "warmup_iters"
        raise ValueError(
            f"{cfg.path}: DATA.train_list: {cfg.train_list} does not exist, and {key}: {getattr(cfg, key)} needs the number of "
            "iterations of an epoch; prepare the data (python tool/prepare.py --help)"
        )
    return math.ceil(SAMPLES / cfg.epochs)


def describe(cfg) -> str:
    """The keys that make this schedule."""
    own = {"poly": ["power", "min_lr"], "onecycle": ["min_lr"], "step": ["step_at", "step_factor"], "cosine": ["min_lr"]}
    warmup = ["warmup_lr", *(key for key in ("warmup_iters", "warmup_epochs") if getattr(cfg, key))]
    keys = ["base_lr", *own[cfg.schedule], *(warmup if len(warmup) > 1 else []), "schedule_by"]
    words = [list(value) if isinstance(value, tuple) else value for value in (getattr(cfg, key) for key in keys)]
    return ", ".join(f"{key} {word:g}" if isinstance(word, float) else f"{key} {word}" for key, word in zip(keys, words))


def stairs(x, y, end):
    """Points of a curve that stands still from each x to the next, the last one to `end`."""
    x = np.append(np.asarray(x, float), end)
    return x.repeat(2)[1:-1], np.asarray(y, float).repeat(2)


# ---- how ----


def draw(panels, columns):
    width, rows = WIDTH // columns, math.ceil(len(panels) / columns)
    image = Image.new("RGB", (FINE * WIDTH, FINE * HEIGHT * rows), "white")
    canvas = ImageDraw.Draw(image)
    for i, panel in enumerate(panels):
        row, column = divmod(i, columns)
        draw_panel(canvas, panel, column * width, row * HEIGHT, width)
    return image.reduce(FINE)


def draw_panel(canvas, panel, x0, y0, width):
    """One panel into the box with its upper left corner at (x0, y0)."""
    left, right, top, bottom = x0 + 62, x0 + width - 64, y0 + 82, y0 + HEIGHT - 52
    low, high = (panel.y.min(), panel.y.max()) if panel.colour == MOMENTUM else (0.0, round_up(panel.y.max()))
    foot = bottom - (24 if low else 0)  # where `low` is

    def place(x, y):
        return left + (right - left) * x / panel.x[-1], foot - (foot - top) * (y - low) / (high - low)

    def line(points, colour, thickness):
        points = [(FINE * x, FINE * y) for x, y in points]
        canvas.line(points, colour, round(FINE * thickness), joint="curve")

    def text(x, y, words, colour, size, anchor):
        canvas.text((FINE * x, FINE * y), words, colour, font(FINE * size), anchor, stroke_width=2 * FINE, stroke_fill="white")

    text(x0 + 20, y0 + 30, panel.title, INK, 18, "ls")
    text(x0 + 20, y0 + 50, panel.note, GRAY, 12.5, "ls")
    for value in (low, (low + high) / 2, high):
        y = place(0, value)[1]
        line([(left, y), (right, y)], GRID, 1)
        text(left - 9, y, f"{value:.3g}", GRAY, 12, "rm")
    line([(left, top - 10), (left, bottom), (right, bottom)], LINE, 1)
    for value in (0, panel.x[-1] / 2, panel.x[-1]):
        x = place(value, low)[0]
        line([(x, bottom), (x, bottom + 5)], LINE, 1)
        text(x, bottom + 9, f"{value:,g}" if value < 1e5 else f"{value:,.0f}", GRAY, 12, "ma")
    text((left + right) / 2, bottom + 27, panel.unit, GRAY, 12, "ma")

    line([place(x, y) for x, y in zip(panel.x, panel.y)], panel.colour, 2.2)
    for x, y, shift, anchor in labels(panel):
        px, py = place(x, y)
        canvas.ellipse([FINE * (px - 4), FINE * (py - 4), FINE * (px + 4), FINE * (py + 4)], panel.colour, "white", FINE)
        if y:  # the axis says 0 already
            below = min(py + shift[1], bottom - 11) if anchor == "lt" else py + shift[1]
            text(px + shift[0], below, f"{y:.3g}" if y > 1e-4 else f"{y:.2g}", panel.colour, 12.5, anchor)


def labels(panel):
    """(x, y, shift of the text in pixels, its anchor) of the two ends, and of a peak or valley between them."""
    x, y = panel.x, panel.y
    first, last = y[0], y[-1]
    rises = y[y != first][0] > first if (y != first).any() else False
    yield x[0], first, (8, 5) if rises else (6, -9), "lt" if rises else "ls"
    yield x[-1], last, (9, 0), "lm"
    for extreme, shift, anchor in ((y.max(), (6, -8), "ls"), (y.min(), (6, 8), "lt")):
        if extreme not in (first, last):
            yield x[y == extreme].mean(), extreme, shift, anchor


def round_up(value):
    """The least of 1, 1.5, 2, ... 10 times a power of ten that is not below the value; 1 for 0."""
    power = 10.0 ** math.floor(math.log10(value)) if value > 0 else 1.0
    return next(power * factor for factor in (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10) if power * factor >= value * (1 - 1e-9))


def font(size):
    try:
        return ImageFont.load_default(size)
    except TypeError:
        raise ValueError("Pillow: this version has no font that can be drawn large; pip install 'pillow>=10.1'") from None


def parse_args(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="the PNG")
    parser.add_argument("--config", metavar="FILE", help="draw the schedule of this experiment")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="override keys of the config: schedule cosine")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
