"""Draw the schedules of util/schedule.py into docs/schedules.png; needs matplotlib."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import matplotlib.pyplot as plt
from PIL import Image

from util.schedule import cosine, onecycle, poly, step, with_warmup

T = 40  # thousand iterations; the one-cycle recipe counts 30 epochs
RATE, MOMENTUM = "#185fbe", "#d0540a"
CYCLE = {"T": 29, "warmup": 3}
WARM = {"warmup": 4, "warmup_lr": 0.002}
PANELS = [  # title, keys, t -> value, length, colour
    ("poly", "power 0.9", lambda t: poly(t, T, 0.01), T, RATE),
    ("poly, floor and warm-up", "min_lr 0.001, warmup_lr 0.002",
     lambda t: with_warmup(lambda t: poly(t, T, 0.01, min_lr=0.001), t, **WARM), T, RATE),
    ("cosine", "min_lr 0.001", lambda t: cosine(t, T, 0.01, 0.001), T, RATE),
    ("step", "step_at [0.5, 0.75], step_factor 0.1", lambda t: step(t, T, 0.01, (0.5, 0.75), 0.1), T, RATE),
    ("onecycle", "3 epochs warm-up from 0.001, min_lr 0.0001",
     lambda t: onecycle(t, peak=0.01, start=0.001, end=0.0001, **CYCLE), 30, RATE),
    ("onecycle, momentum", "momentum 0.95, momentum_low 0.85",
     lambda t: onecycle(t, peak=0.85, start=0.95, end=0.95, **CYCLE), 30, MOMENTUM),
]  # fmt: skip

plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#969ca8"})
figure, axes = plt.subplots(2, 3, figsize=(11, 5.4), layout="constrained")
for axis, (title, keys, schedule, length, colour) in zip(axes.flat, PANELS):
    ticks = [t / 20 for t in range(20 * length)] if length == T else list(range(length))
    axis.plot([*ticks, length], [schedule(t) for t in (*ticks, ticks[-1])], colour, drawstyle="steps-post", linewidth=2)
    axis.set_title(title, loc="left", fontsize=12, fontweight="bold", pad=20)
    axis.text(0, 1.04, keys, transform=axis.transAxes, color="#6b7280", in_layout=False)
    axis.set(xlim=(0, length), xlabel="iteration (thousands)" if length == T else "epoch")
    axis.set(**{"ylim": (0.84, 0.96), "ylabel": "momentum"} if colour == MOMENTUM else {"ylim": (0, 0.0105), "ylabel": "rate"})
    axis.grid(color="#e8eaef")
target = Path(__file__).with_suffix(".png")
figure.savefig(target, dpi=100)
Image.open(target).convert("RGB").quantize(64, dither=Image.Dither.NONE).save(target, optimize=True)
