"""Cross entropy with an ignored label, and the one function between small logits and the loss."""

import torch
import torch.nn.functional as F
from torch import nn


def upsample(logits, size, align_corners):
    """Bilinear (N, K, h, w) -> (N, K, *size); half precision becomes float32 first, else the argmax has many ties."""
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    if logits.shape[-2:] == tuple(size):
        return logits
    return F.interpolate(logits, tuple(size), mode="bilinear", align_corners=align_corners)


class CrossEntropy(nn.Module):
    """Sum of the valid pixels' cross entropy over a normaliser: logits (N, K, H, W), label (N, H, W) int64 -> 0-d.

    mean="valid" divides by the valid pixels (by the sum of their class weights when weight (K,) is given), mean="all"
    by all pixels. A batch without a valid pixel has loss 0 and gradient 0.
    """

    def __init__(self, ignore_label=255, weight=None, mean="valid"):
        super().__init__()
        if mean not in ("valid", "all"):
            raise ValueError(f"loss_mean: {mean!r} is unknown; choose valid or all")
        self.ignore_label, self.mean = ignore_label, mean
        weight = None if weight is None else torch.as_tensor(weight, dtype=torch.float32)
        # Not in the state_dict: a checkpoint must not depend on how its loss was weighted.
        self.register_buffer("weight", weight, persistent=False)

    def normaliser(self, label):
        """What the loss of this label is divided by: 0-d float32, without waiting for the device."""
        if self.mean == "all":
            return torch.full((), label.numel(), dtype=torch.float32, device=label.device)
        valid = label != self.ignore_label
        if self.weight is None:
            return valid.sum().float()
        return (self.weight[label.where(valid, 0)] * valid).sum()

    def forward(self, logits, label):
        weight = None if self.weight is None else self.weight.to(logits.dtype)
        total = F.cross_entropy(logits, label, weight, ignore_index=self.ignore_label, reduction="sum")
        n = self.normaliser(label)
        return total / n.where(n > 0, 1.0)


def upsampled_loss(logits, size, label, criterion, align_corners, predict=True):
    """Resize small logits (N, K, h, w) to size, compare with label (N, *size).

    Returns the loss (0-d) and the predicted classes (N, *size) int64, or None for them if predict is False.
    """
    logits = upsample(logits, size, align_corners)
    return criterion(logits, label), logits.detach().argmax(1) if predict else None
