"""Contact sheets: samples with their labels as training sees them, after the augmentation."""

from itertools import islice
from pathlib import Path

import cv2
import numpy as np

from util.augmentation import build_augmentation
from util.dataset import EpochSampler, SemData
from util.transform import MEAN, STD
from util.visual import below, class_names, legend, output_names, overlay, palette_of, save_png

COLUMNS, ROWS = 4, 4  # of samples on a sheet
SIDE, GAP, CAPTION = 256, 6, 14  # pixels: the longest side of a picture, between samples, height of a sample's name


def look(cfg, out, count=16):
    """Write the first samples of the first epoch, image and label over it side by side, into out/look_1.png, look_2.png, ...

    They are exactly those of a training with the config's manual_seed (0 if it is empty). Ignored pixels are dark.
    """
    seed = cfg.manual_seed or 0
    data = SemData("train", cfg.data_root, cfg.train_list, build_augmentation(cfg), classes=cfg.classes,
                   ignore_label=cfg.ignore_label, seed=seed, cache=cfg.cache)  # fmt: skip
    names, palette = class_names(cfg), palette_of(cfg)
    images = list(dict.fromkeys(image for image, _ in data.data_list))  # a list may name one more than once
    files = dict(zip(images, output_names(images)))
    order = [key for (key,) in islice(EpochSampler(len(data), 1, seed=seed), count)]
    sheets = [order[i : i + COLUMNS * ROWS] for i in range(0, len(order), COLUMNS * ROWS)]
    for number, keys in enumerate(sheets, 1):
        samples = [(*data[key], files[data.data_list[key[1]][0]]) for key in keys]
        sheet = _grid([_cell(*sample, palette) for sample in samples])
        present = [k for k in range(cfg.classes) if any((label == k).any() for _, label, _ in samples)]
        strip = legend([names[k] for k in present], palette[present], sheet.shape[:2])
        save_png(Path(out) / f"look_{number}.png", below(sheet, strip))
    crop = f"{cfg.train_h} x {cfg.train_w}"
    return f"{len(order)} of the {len(data)} samples of epoch 0, seed {seed}, crop {crop}: {out}/look_1.png" + (
        f" to look_{len(sheets)}.png" if len(sheets) > 1 else ""
    )


def _cell(image, label, name, palette):
    """Image and overlay side by side under the sample's name, uint8 RGB. image: (3, H, W) normalised, label: (H, W) int64."""
    image = image.permute(1, 2, 0).numpy() * np.float32(STD) + np.float32(MEAN)
    image = np.clip(np.rint(image), 0, 255).astype(np.uint8)
    pair = np.hstack([image, overlay(image, label.numpy(), palette)])
    scale = SIDE / max(image.shape[:2])
    if scale < 1:
        pair = cv2.resize(pair, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    caption = np.full((CAPTION, pair.shape[1], 3), 255, np.uint8)
    cv2.putText(caption, name[-pair.shape[1] // 6 :], (1, 10), cv2.FONT_HERSHEY_SIMPLEX, 0.35, (0, 0, 0), 1, cv2.LINE_AA)
    return np.vstack([caption, pair])


def _grid(cells):
    h, w = cells[0].shape[0] + GAP, cells[0].shape[1] + GAP
    rows = -(-len(cells) // COLUMNS)
    sheet = np.full((rows * h, min(len(cells), COLUMNS) * w, 3), 255, np.uint8)
    for i, cell in enumerate(cells):
        y, x = i // COLUMNS * h, i % COLUMNS * w
        sheet[y : y + h - GAP, x : x + w - GAP] = cell
    return sheet
