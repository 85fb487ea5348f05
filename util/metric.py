"""Scores of a segmentation: exact integer counts, and mIoU, mAcc, allAcc and related means of them.

All counts come from one histogram of (label, prediction) pairs in int64, so they are exact for any number of pixels and
add up over images and processes. Rules:

- pixels labelled `ignore_index` count nowhere;
- a prediction outside [0, K) belongs to no class: a false negative of the labelled class, a false positive of none;
- a label outside [0, K) that is not `ignore_index` is an error in the data: the functions that work on the host raise
  ValueError, `intersectionAndUnionGPU` counts the pixel as a false positive of the predicted class.
"""

import re
from dataclasses import dataclass

import cv2
import numpy as np
import torch

from util.common import first_few, text_table


class AverageMeter:
    """Last value and running mean of a number or an array. The mean of no values is nan; a nan among them makes it nan."""

    def __init__(self):
        self.reset()

    def reset(self):
        self.val, self.sum, self.count, self.avg = 0, 0, 0, float("nan")

    def update(self, val, n=1):
        """Add `val`, the mean of `n` samples."""
        self.val = val
        self.sum = self.sum + val * n  # not +=, which would write into the caller's array
        self.count += n
        self.avg = self.sum / self.count if self.count else float("nan")


def intersectionAndUnion(output, target, K, ignore_index=255):
    """Counts of one or many images on the host.

    output, target: integer arrays of one shape, predictions and labels; neither is modified.
    Returns area_intersection, area_union, area_target: (K,) int64 arrays of pixels. Raises ValueError for a label
    outside [0, K) that is not ignore_index.
    """
    output, target = _host(output), _host(target)
    pairs = _pairs(output, target, K, ignore_index)
    _check_labels(pairs, target, K, ignore_index)
    return tuple(count.numpy() for count in _areas(pairs, K))


def intersectionAndUnionGPU(output, target, K, ignore_index=255):
    """The same for tensors, (K,) int64 on their device. Never makes the host wait for the device, so it checks no values."""
    return _areas(_pairs(output, target, K, ignore_index), K)


def confusion_matrix(pred, label, K, ignore_label=255, other=False):
    """(K, K) int64 tensor, rows = label, columns = prediction, from integer arrays or tensors of one shape.

    Raises ValueError for a label, or a prediction on a labelled pixel, outside [0, K), except for tensors on an
    accelerator, where the check would make the host wait: such pixels are then left out. With `other`, predictions outside
    are no error but one more column, (K, K + 1).
    """
    pred, label = _host(pred), _host(label)
    pairs = _pairs(pred, label, K, ignore_label)
    if pairs.device.type == "cpu":
        _check_labels(pairs, label, K, ignore_label)
        if not other and pairs[:K, K].any():
            pred = pred.long()  # torch compares few of its unsigned types
            outside = pred[((pred < 0) | (pred >= K)) & (label.long() != ignore_label)]
            raise ValueError(f"prediction {_tally(outside)} outside 0..{K - 1}: scored with the right classes?")
    return pairs[:K, : K + other].contiguous()


def boundary_areas(pred, label, K, ignore_label=255, dilation=0.02):
    """Counts for the boundary IoU of one image: (3, K) int64 array, intersection, union and target, as `scores` takes them.

    Of a class's region G in the label and P in the prediction only the pixels within distance d of the region's own contour
    count, G_d and P_d: |G_d & P_d| / |G_d | P_d|, with d = round(dilation * diagonal), at least 1 (Cheng, Girshick, Dollar,
    Berg, Kirillov: Boundary IoU, CVPR 2021). The distance is the chessboard's, and the image's border is contour,
    as in the authors' program. Ignored pixels count nowhere; in label and prediction alike the pixels beside them are contour.

    pred, label: (H, W) integer arrays, ids 0..65534. dilation: share of the diagonal.
    """
    valid = label != ignore_label
    nothing = 65535
    label, pred = (np.where(valid & (ids < K), ids, np.uint16(nothing)).astype(np.uint16) for ids in (label, pred))
    distance = max(1, round(dilation * float(np.hypot(*label.shape))))
    # A pixel is inside, not on the contour, if its whole neighbourhood is of its class: minimum and maximum of the ids
    # answer that for all classes at once.
    square = np.ones((2 * distance + 1, 2 * distance + 1), np.uint8)
    contours = []
    for ids in (label, pred):
        framed = cv2.copyMakeBorder(ids, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=nothing)
        contour = cv2.erode(framed, square) != cv2.dilate(framed, square)
        contours.append(contour[1:-1, 1:-1] & (ids < K))
    of_label, of_pred = contours
    both = of_label & of_pred & (label == pred)
    intersection, target, predicted = (
        np.bincount(ids[where], minlength=K) for ids, where in ((label, both), (label, of_label), (pred, of_pred))
    )
    return np.stack([intersection, target + predicted - intersection, target])


@dataclass(frozen=True)
class Scores:
    """Per class (K,) float64 arrays, nan where the denominator is 0; the means run over the other classes, nan if none.

    A class is absent from iou and dice when nothing is labelled or predicted as it (union 0), from accuracy when
    nothing is labelled as it (target 0), from precision when nothing is predicted as it.
    """

    iou: np.ndarray  # intersection / union
    accuracy: np.ndarray  # intersection / labelled pixels: the recall of the class
    dice: np.ndarray  # 2 intersection / (labelled + predicted pixels)
    precision: np.ndarray  # intersection / predicted pixels
    mIoU: float
    mAcc: float  # mean of accuracy
    allAcc: float  # correct pixels / labelled pixels
    fwIoU: float  # sum over classes of labelled pixels * IoU / labelled pixels (Long et al., CVPR 2015, section 5)
    mDice: float  # mean of dice

    @property
    def means(self):
        """{name: mean}, for files and TensorBoard."""
        return {key: value for key, value in vars(self).items() if isinstance(value, float)}

    @property
    def recall(self):
        return self.accuracy


def scores(*counts):
    """Scores from a (K, K) or (K, K + 1) confusion matrix, or three (K,) counts intersection, union, target; arrays or
    tensors."""
    counts = [np.asarray(c.cpu() if torch.is_tensor(c) else c, np.float64) for c in counts]
    if len(counts) == 1:
        confusion = counts[0]
        intersection, target = np.diagonal(confusion), confusion.sum(1)
        union = target + confusion.sum(0)[: len(confusion)] - intersection
    else:
        intersection, union, target = counts
    iou, accuracy = _ratio(intersection, union), _ratio(intersection, target)
    dice = _ratio(2 * intersection, union + intersection)
    return Scores(
        iou=iou,
        accuracy=accuracy,
        dice=dice,
        precision=_ratio(intersection, union - target + intersection),
        mIoU=mean(iou),
        mDice=mean(dice),
        mAcc=mean(accuracy),
        allAcc=float(_ratio(intersection.sum(), target.sum())),
        fwIoU=float(_ratio(np.nansum(target * iou), target.sum())),
    )


def image_scores(confusion):
    """Scores of one image, (2 + K,) float64: mIoU, allAcc, and the IoU of each class that is labelled in it, nan for others.

    mIoU is their mean, for ranking images; nan if none is labelled. A class that is only predicted would count as a 0 among few
    classes, however few pixels it has; those pixels lower the IoU of the labelled classes already.
    """
    result = scores(confusion)
    iou = np.where(np.asarray(confusion).sum(1) > 0, result.iou, np.nan)
    return np.array([mean(iou), result.allAcc, *iou])


def mean(values):
    """Mean of the values that are not nan; nan if there are none."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else float("nan")


def number(value):
    """`0.1234`, or `-` for the nan of an absent class."""
    return "-" if np.isnan(value) else f"{value:.4f}"


def table(result, names, markdown=False, boundary=None):
    """The per-class table of a `Scores` as text or Markdown; its last line holds the means over the classes present.

    boundary: the `Scores` of `boundary_areas`, for one more column.
    """
    columns = {"IoU": result.iou, "accuracy": result.accuracy, "precision": result.precision, "dice": result.dice}
    if boundary:
        columns["boundary IoU"] = boundary.iou
    rows = [["class", "name", *columns]]
    rows += [[str(i), name, *(number(c[i]) for c in columns.values())] for i, name in enumerate(names)]
    rows += [["mean", "", *(number(mean(c)) for c in columns.values())]]
    if not markdown:
        return text_table(rows)
    cells = [[re.sub(r"([\\|<])", r"\\\1", " ".join(cell.split())) for cell in row] for row in rows]  # markup in names
    cells.insert(1, ["---", ":---", *["---:"] * len(columns)])
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def _host(x):
    """Arrays as tensors; uint16, negative strides and read-only arrays, which torch does not take, are copied."""
    if torch.is_tensor(x):
        return x
    x = np.asarray(x)
    return torch.from_numpy(np.require(x, np.uint8 if x.dtype == np.uint8 else np.int64, ["C", "W"]))


def _pairs(pred, label, K, ignore):
    """(K+2, K+1) int64 histogram; row K: labels outside [0, K), row K+1: ignored, column K: predictions outside."""
    if pred.shape != label.shape:
        raise ValueError(f"prediction of shape {tuple(pred.shape)} and label of shape {tuple(label.shape)} differ")
    size = (K + 2) * (K + 1)
    if pred.device.type == "cpu":
        pred, label = _bytes(pred), _bytes(label)
    if pred.dtype == label.dtype == torch.uint8 and pred.device.type == "cpu":
        # Counts all 65536 pairs of bytes, then adds up the counts by class, which saves masking every pixel.
        byte = torch.arange(256)
        cell = _row(byte, K, ignore)[:, None] * (K + 1) + _column(byte, K)
        pieces = zip(label.reshape(-1).split(2**22), pred.reshape(-1).split(2**22))  # less memory for a large image
        count = sum(torch.bincount(a.to(torch.int32).mul_(256).add_(b), minlength=65536) for a, b in pieces)
        pairs = count.new_zeros(size).index_add_(0, cell.reshape(-1), count)
    else:
        cell = (_row(label.long(), K, ignore) * (K + 1) + _column(pred.long(), K)).reshape(-1)
        if cell.device.type == "cpu":
            pairs = torch.bincount(cell, minlength=size)
        else:  # bincount reads the largest value first, which makes the host wait
            pairs = cell.new_zeros(size).scatter_add_(0, cell, torch.ones_like(cell))
    return pairs.view(K + 2, K + 1)


def _bytes(x):
    """x as uint8 if all values fit, as in nearly every label and prediction."""
    if x.dtype == torch.uint8 or not x.numel():
        return x
    x = x.long() if x.dtype == torch.uint16 else x  # which has no aminmax; 16-bit labels from a loader
    low, high = x.aminmax()
    return x.to(torch.uint8) if low >= 0 and high <= 255 else x


def _row(label, K, ignore):
    outside = (label < 0) | (label >= K)
    return label.masked_fill(outside, K).masked_fill_(label == ignore, K + 1)


def _column(pred, K):
    return pred.masked_fill((pred < 0) | (pred >= K), K)


def _areas(pairs, K):
    intersection, target = pairs.diagonal()[:K].clone(), pairs[:K].sum(1)
    return intersection, target + pairs[: K + 1, :K].sum(0) - intersection, target


def _check_labels(pairs, label, K, ignore):
    if pairs[K].any():
        label = label.long()  # bytes torch would compare with the number's last 8 bits
        outside = label[((label < 0) | (label >= K)) & (label != ignore)]
        raise ValueError(
            f"label {_tally(outside)} outside 0..{K - 1} and not the ignored {ignore}: "
            "correct the label image, or `classes` and `ignore_label`"
        )


def _tally(values):
    values, count = values.unique(return_counts=True)
    return first_few([f"{v} ({n} pixels)" for v, n in zip(values.tolist(), count.tolist())])


def _ratio(a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return np.divide(a, b, out=np.full(b.shape, np.nan), where=b > 0)
