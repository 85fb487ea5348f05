"""Measure what each difference between the Catalyst reproduction and the original costs, on the toy dataset.

    python tool/prepare.py toy --out dataset/toy_small --size 144x192
    python docs/why_0739.py --seeds 3 --parallel 2

Trains every row of ROWS with every seed into exp/why (a run that is finished is not repeated) and prints the Markdown table of
docs/why-0.739.md: mean and standard deviation over the seeds, and the paired difference from the first row.
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, stdev

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import numpy as np

from util.config import ROOT, load_config
from util.dataset import read_list
from util.image import read_label
from util.metric import confusion_matrix, scores

CONFIG = "config/toy/toy_pspnet18.yaml"
DATA = "dataset/toy_small"
# The original's recipe, as far as toy allows: its rates, groups and schedule, a crop of two thirds of the image's height.
COMMON = f"""data_root {DATA} train_list {DATA}/list/train.txt val_list {DATA}/list/val.txt test_list {DATA}/list/val.txt
    base_size 192 train_h 97 train_w 97 test_h 97 test_w 97 base_lr 0.01 head_lr_factor 10 batch_size 8 epochs 12 eval_freq 3
    keep_checkpoints 1 workers 0 precision bf16 channels_last True init semseg class_weights null ema_decay 0 optimizer sgd
    weight_decay 0.0001 scale_min 0.75 scale_max 1.5 rotate_min -5 rotate_max 5""".split()
AUGMENTATION = """[
    {Affine: {scale: [0.5, 2.0], keep_ratio: True, translate_percent: [-0.01, 0.01], rotate: [-10, 10], border_mode: 0,
              fill: [123.675, 116.28, 103.53], fill_mask: 255, p: 0.5}},
    {SmallestMaxSize: {max_size: 97, p: 1}}, {Blur: {blur_limit: 5, p: 0.5}}, {HorizontalFlip: {p: 0.5}},
    {RandomCrop: {height: 97, width: 97, p: 1}}]"""
CYCLE = "schedule onecycle schedule_by epoch warmup_epochs 1 momentum 0.95 momentum_low 0.85".split()
DECAY = ["bias_decay", "False", "param_rules", "[{name: 'layer*', weight_decay: 3e-5}]"]
ROWS = {
    "the original's": [],
    "loss outside the network": ["criterion_outside", "True"],
    "a tenth of the learning rates": ["base_lr", "0.001"],
    "one-cycle schedule by epoch": [*CYCLE, "warmup_lr", "0.001", "min_lr", "0.0001"],
    "weight decay 3e-5 in the backbone, none on biases": DECAY,
    "the port's augmentation": ["augmentation", AUGMENTATION],
    "batch of 5 (for 8, as 10 for 16)": ["batch_size", "5"],
    "all of them": ["criterion_outside", "True", "base_lr", "0.001", *CYCLE, "warmup_lr", "0.0001", "min_lr", "0.00001",
                    *DECAY, "augmentation", AUGMENTATION, "batch_size", "5"],
}  # fmt: skip
BATCH = 10  # images over which the port averages its IoU


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--parallel", type=int, default=1, help="runs at a time")
    args = parser.parse_args()
    jobs = [(i, seed) for seed in range(1, args.seeds + 1) for i in range(len(ROWS))]
    with ThreadPoolExecutor(args.parallel) as pool:
        list(pool.map(lambda job: train(*job, threads=max(1, (os.cpu_count() or 1) // args.parallel)), jobs))
    seeds = range(1, args.seeds + 1)
    print_training(seeds)
    print_metric(seeds)


def folder(row, seed):
    return ROOT / f"exp/why/{row}-{seed}"


def command(program, row, seed):
    run = ["manual_seed", str(seed), "save_path", str(folder(row, seed) / "model")]
    return [sys.executable, f"tool/{program}.py", "--config", CONFIG, *COMMON, *list(ROWS.values())[row], *run]


def train(row, seed, threads):
    where = folder(row, seed)
    if (where / "done").exists():
        return
    where.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive"}
    commands = [command("train", row, seed)]
    if row == 0:  # its predictions, for the metric
        commands.append([*command("test", row, seed), "flip", "False"])
    with (where / "screen.txt").open("w") as screen:
        for words in commands:
            subprocess.run(words, cwd=ROOT, env=environment, stdout=screen, stderr=screen, check=True)
    (where / "done").touch()
    print(f"done: {where}", file=sys.stderr, flush=True)


def validations(row, seed):
    """[(mIoU, loss)] of every validation, in order."""
    lines = map(json.loads, (folder(row, seed) / "model/metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [(line["mIoU_val"], line["loss_val"]) for line in lines if "mIoU_val" in line]


def print_training(seeds):
    first = [validations(0, seed)[-1][0] for seed in seeds]
    print("| recipe | mIoU, mean and standard deviation | difference from the first row |\n|---|--:|--:|")
    for row, name in enumerate(ROWS):
        last = [validations(row, seed)[-1][0] for seed in seeds]
        difference = [b - a for a, b in zip(first, last)]
        print(f"| {name} | {spread(last)} | {spread(difference, sign='+') if row else ''} |")
    chosen = [min(validations(0, seed), key=lambda v: v[1])[0] - max(validations(0, seed))[0] for seed in seeds]
    print(f"| (first row) checkpoint of the lowest loss, not of the highest mIoU | | {spread(chosen, sign='+')} |")


def print_metric(seeds):
    """The same predictions of the first row, scored over all pixels at once and averaged over batches."""
    cfg = load_config(ROOT / CONFIG, COMMON)
    labels = [read_label(path) for _, path in read_list(cfg.val_list, cfg.data_root, "val")]
    whole, batched = [], []
    for seed in seeds:
        files = sorted((folder(0, seed) / "result").rglob("gray/*.png"))
        counts = [confusion_matrix(read_label(file), label, cfg.classes) for file, label in zip(files, labels, strict=True)]
        whole.append(scores(sum(counts)).mIoU)
        parts = [scores(sum(counts[i : i + BATCH])) for i in range(0, len(counts), BATCH)]
        batched.append(mean(float(np.nan_to_num(part.iou).mean()) for part in parts))
    difference = [b - a for a, b in zip(whole, batched)]
    change = spread(difference, sign="+")
    print(f"| (first row) IoU averaged over batches of {BATCH}, absent classes as 0 | {spread(batched)} | {change} |")


def spread(values, sign=""):
    return f"{mean(values):{sign}.4f} ± {stdev(values) if len(values) > 1 else 0:.4f}"


if __name__ == "__main__":
    main()
