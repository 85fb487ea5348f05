"""Draw the mIoU of runs' validations over their iterations; needs matplotlib.

    python docs/curve.py curve.png exp/toy/pspnet18/model [folders of other runs]
"""

import argparse
import json
from itertools import cycle
from pathlib import Path

import matplotlib.pyplot as plt
from PIL import Image

parser = argparse.ArgumentParser(
    "python docs/curve.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("picture", type=Path, help="PNG to write")
parser.add_argument("run", type=Path, nargs="+", help="save_path of a run")
args = parser.parse_args()
if args.picture.suffix.lower() != ".png":  # the name of a run or of its metrics, which would be replaced
    parser.error(f"{args.picture}: expected the name of a PNG to write, before the folders of the runs")
plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#969ca8"})
figure, axis = plt.subplots(figsize=(6, 3.4), layout="constrained")
for run, colour in zip(args.run, cycle(("#185fbe", "#d0540a", "#2f8f5b", "#8b4fb3", "#6b7280", "#b3874f"))):
    file = run / "metrics.jsonl"
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    lines = [json.loads(line) for line in text.splitlines() if line.endswith("}")]  # a killed run may have cut its last one
    points = [(line["iteration"], line["mIoU_val"]) for line in lines if "mIoU_val" in line]
    if not points:
        parser.error(f"{file}: there is no validation in it; give the save_path of a run with `evaluate True`")
    axis.plot(*zip(*points), color=colour, marker="o", markersize=4, linewidth=2, clip_on=False, label=str(run))
axis.set(xlabel="iteration", ylabel="mIoU of the validation images", xlim=(0, None), ylim=(0, None))
axis.grid(color="#e8eaef")
axis.legend(frameon=False, loc="lower right")
figure.savefig(args.picture, dpi=100, format="png")
Image.open(args.picture).convert("RGB").quantize(64, dither=Image.Dither.NONE).save(args.picture, "PNG", optimize=True)
