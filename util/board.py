"""TensorBoard beside the scalars of a run: config, settings to compare runs by, scores by class, confusion matrix."""

import textwrap

import numpy as np
from tensorboardX.summary import hparams

from util.config import Config, dump_config
from util.metric import Scores, table
from util.visual import row_names

# Hyperparameters: the columns of the HParams tab.
COMPARED = """arch layers stem zoom_factor initmodel sync_bn dropout train_h train_w scale_min scale_max rotate_min rotate_max
    loss aux_weight precision batch_size base_lr head_lr_factor power momentum weight_decay schedule epochs max_iter
    manual_seed""".split()
LETTERS = 12  # pixels: the lowest row that can be read
JUDGED_BY = ("mIoU_val", "mAcc_val", "allAcc_val", "loss_val")  # scalars of the same run


def log_start(writer, cfg: Config, step: int = 0) -> None:
    """The config as text, and the settings that the HParams tab compares. step: iteration at which the run starts."""
    writer.add_text("config", textwrap.indent(dump_config(cfg), "    "), step)
    settings = {key: getattr(cfg, key) for key in COMPARED}
    if cfg.initmodel:
        settings["initmodel"] = cfg.initmodel.rpartition("/")[2]
    # Not writer.add_hparams, which opens a folder of its own for them, apart from the run's scalars.
    experiment, session, _ = hparams(settings, dict.fromkeys(JUDGED_BY, 0.0))
    for summary in (experiment, session):
        writer.file_writer.add_summary(summary, step)


def log_validation(writer, result: Scores, confusion, names: list[str], step: int) -> None:
    """IoU of each class, the table of all scores, and the confusion matrix (K, K) as a picture."""
    tags = [name.replace("/", " ") for name in names]
    for k, (tag, iou) in enumerate(zip(tags, result.iou)):
        if iou == iou:  # nan: an absent class
            writer.add_scalar(f"IoU_val/{tag}" if tags.count(tag) == 1 else f"IoU_val/{tag} {k}", iou, step)
    writer.add_text("val/table", table(result, names, markdown=True), step)
    writer.add_image("val/confusion", heat_map(confusion, names), step, dataformats="HWC")


def heat_map(confusion, names):
    """The confusion matrix (K, K) as a picture (H, W, 3) uint8, in cells of equal size, about 480 pixels high.

    Rows are labels, columns predictions, in the order of the names (K) at the left, which are left out where a row is too low
    for letters. The strength of the colour, blue on the diagonal and orange elsewhere, is the square root of the share of the
    row, which keeps small confusions visible; a row without labels is white.
    """
    confusion = np.asarray(confusion)
    share = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    colours = np.full((*share.shape, 3), (208, 84, 10))
    colours[np.diag_indices(len(share))] = (24, 95, 190)
    picture = np.rint(255 + np.sqrt(share)[..., None] * (colours - 255)).astype(np.uint8)
    cell = max(1, 480 // len(share))
    picture = picture.repeat(cell, 0).repeat(cell, 1)
    return picture if cell < LETTERS else np.hstack([row_names(names, cell), picture])
