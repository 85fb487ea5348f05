"""Predictions in the form of the evaluation servers: one PNG an image, with the server's ids and file names.

cityscapes  cityscapes/CITY_SEQ_FRAME_pred_labelIds.png, label ids 0..33, not train ids. The names as the description of
            `getPrediction` in cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling has them: CITY_SEQ_FRAME*.png, one
            for each image; the ids as in cityscapesscripts.helpers.labels.
ade20k      ade20k/NAME.png, ids plus one: 1..150, 0 being what is unlabelled, as in the annotations and the evaluation code
            of the MIT scene parsing challenge (ADEChallengeData2016).
voc2012     results/VOC2012/Segmentation/comp6_SPLIT_cls/NAME.png, ids with VOC's palette. Folder and palette as in the VOC2012
            development kit (VOCinit.m, VOClabelcolormap.m); comp6, not comp5, since ImageNet and SBD are data of one's own.
"""

import re
from collections import Counter
from pathlib import Path

import numpy as np

from dataset.layout import CITYSCAPES_IDS
from util.common import Mistake
from util.visual import colorize, save_png

CLASSES = {"cityscapes": 19, "ade20k": 150, "voc2012": 21}
FOLDERS = {"cityscapes": "cityscapes", "ade20k": "ade20k", "voc2012": "results/VOC2012"}  # in that of the results


def server_files(form, images, split, classes):
    """The PNG of each image, relative to the folder of results.

    form: a key of CLASSES. images: paths. split: train, val or test. Raises Mistake for another number of classes than the
    server's, for names that the server does not know, and for two images with one name.
    """
    if classes != CLASSES[form]:
        raise Mistake(f"{form} has {CLASSES[form]} classes, but `classes` is {classes}")
    names = [Path(image).stem for image in images]
    if form == "cityscapes":
        found = [re.match(r"[^_]+_\d+_\d+(?=_|$)", name) for name in names]
        unknown = [image for image, match in zip(images, found) if not match]
        if unknown:
            raise Mistake(f"{unknown[0]}: cityscapes knows images by names like CITY_SEQ_FRAME_leftImg8bit.png")
        names = [f"{match[0]}_pred_labelIds" for match in found]
    if len(set(names)) < len(names):
        count = Counter(names)
        twice = next(image for image, name in zip(images, names) if count[name] > 1)
        raise Mistake(f"{twice}: another image has the same file name, and {form} tells images apart by it alone")
    folder = FOLDERS[form] + (f"/Segmentation/comp6_{split}_cls" if form == "voc2012" else "")
    return [f"{folder}/{name}.png" for name in names]


def save_for_server(path, pred, form):
    """Write the prediction (H, W) of class ids in the server's form; ids that are no class become its unlabelled id."""
    pred = np.where(pred < CLASSES[form], pred, 255).astype(np.uint8)
    if form == "cityscapes":
        label_ids = np.zeros(256, np.uint8)  # 0: unlabeled
        label_ids[list(CITYSCAPES_IDS.values())] = list(CITYSCAPES_IDS)
        save_png(path, label_ids[pred])
    elif form == "ade20k":
        save_png(path, pred + np.uint8(1))  # 255, no class, becomes 0
    else:
        save_png(path, colorize(np.where(pred == 255, 0, pred), voc_palette()))  # 0: background


def voc_palette():
    """(256, 3) uint8: bits 0, 1, 2 of the id are the highest bit of red, green, blue; bits 3, 4, 5 the next, and so on."""
    ids, palette = np.arange(256), np.zeros((256, 3), int)
    for i in range(8):
        palette |= (ids[:, None] >> (3 * i + np.arange(3)) & 1) << (7 - i)
    return palette.astype(np.uint8)
