"""Losses with an ignored label, and `upsampled_loss`, which computes one from logits at 1/8 of the label's size."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from util.common import Mistake


def widen(logits):
    """Half precision -> float32, so that the argmax has fewer ties."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def upsample(logits, size, align_corners):
    """Bilinear (N, K, h, w) -> (N, K, *size), float32 or float64."""
    logits = widen(logits)
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
            raise Mistake(f"loss_mean: {mean!r} is unknown; choose valid or all")
        self.ignore_label, self.mean = ignore_label, mean
        weight = None if weight is None else torch.as_tensor(weight, dtype=torch.float32)
        # Not in the state_dict: checkpoints load whatever the class weights of the loss.
        self.register_buffer("weight", weight, persistent=False)

    def normaliser(self, label):
        """Divisor of the loss, and its weight in a larger batch: 0-d float32, without synchronising with the device."""
        if self.mean == "all":
            return torch.full((), label.numel(), dtype=torch.float32, device=label.device)
        valid = label != self.ignore_label
        if self.weight is None:
            return valid.sum().float()
        return (self.weight[label.where(valid, 0)] * valid).sum()

    def forward(self, logits, label):
        logits = widen(logits)
        weight = None if self.weight is None else self.weight.to(logits.dtype)
        total = F.cross_entropy(logits, label, weight, ignore_index=self.ignore_label, reduction="sum")
        return self.mean_of(total, label)

    def mean_of(self, total, label):
        """The loss, given the sum over the pixels."""
        n = self.normaliser(label)
        return total / n.where(n > 0, 1.0)


def _one_process(tensor):
    """The sum over the processes, where there is one."""
    return tensor


class _WholeBatchLoss(nn.Module):
    """A loss that is no mean over pixels: each process computes that of the global batch, from sums over all processes.

    all_reduce_sum: tensor -> its sum over all processes, differentiable; the gradients of the sum are summed as well. All
        processes must call forward and backward equally often.
    """

    def __init__(self, ignore_label=255, weight=None, all_reduce_sum=_one_process):
        super().__init__()
        self.ignore_label, self.all_reduce_sum = ignore_label, all_reduce_sum
        self.register_buffer("weight", None if weight is None else torch.as_tensor(weight).float(), persistent=False)

    def normaliser(self, label):
        """1: every process has the loss of the global batch, and their mean is that again."""
        return torch.ones((), device=label.device)


class OhemCrossEntropy(_WholeBatchLoss):
    """Cross entropy of the hard pixels alone (online hard example mining: Shrivastava et al., CVPR 2016, for pixels).

    logits (N, K, H, W), label (N, H, W) int64 -> 0-d: the mean, weighted if weight (K,) is given, over the valid pixels whose
    label has a probability below `threshold`, and over at least the `min_kept` hardest of the global batch. Of pixels that are
    equally hard, in float32 all those with p = 1, each counts in part. 0 without a valid pixel.
    """

    def __init__(self, ignore_label=255, weight=None, threshold=0.7, min_kept=100_000, all_reduce_sum=_one_process):
        super().__init__(ignore_label, weight, all_reduce_sum)
        self.least_loss, self.min_kept = -math.log(threshold), min_kept

    def forward(self, logits, label):
        logits, valid = widen(logits), label != self.ignore_label
        loss = F.cross_entropy(logits, label, reduction="none", ignore_index=self.ignore_label)
        # The threshold stays a tensor, since reading it would synchronise with the device.
        hardness = loss.detach().where(valid, 0).abs().flatten()
        hardest = hardness.topk(min(self.min_kept, hardness.numel())).values
        last_kept = _kth_largest(hardest, self.min_kept, self.all_reduce_sum)
        least = last_kept.clamp(max=self.least_loss)
        above, equal = (valid & kept for kept in (hardness.view_as(loss) > least, hardness.view_as(loss) == least))
        # All of those that are as hard as the last would count like hard ones in the mean.
        n_above, n_equal = self.all_reduce_sum(torch.stack([above.sum(), equal.sum()]))
        part = ((self.min_kept - n_above).to(loss.dtype) / n_equal.clamp(min=1)).clamp(0, 1)
        share = above.to(loss.dtype) + equal * part
        if self.weight is not None:
            share = share * self.weight.to(loss.dtype)[label.where(valid, 0)]
        total, n = self.all_reduce_sum(torch.stack([(loss * share).sum(), share.sum()]))
        return total / n.where(n > 0, 1.0)


def _kth_largest(values, k, all_reduce_sum):
    """The k-th largest of the values (n,), each at least 0, of all processes: 0-d; 0 if there are fewer than k.

    Floats of at least 0 are ordered as the integers with the same bits. So the result is built three bits at a time, from the
    highest down: the largest bits such that k values are at least as large.
    """
    bits = values.view({4: torch.int32, 8: torch.int64}[values.element_size()]).long()
    found, digits = bits.new_zeros(()), torch.arange(1, 8, device=values.device)
    for shift in range((8 * values.element_size() - 2) // 3 * 3, -1, -3):
        at_least = all_reduce_sum((bits >= (found + (digits << shift))[:, None]).sum(1))
        found = found + ((at_least >= k).sum() << shift)
    return found.to(torch.int32 if values.element_size() == 4 else torch.int64).view(values.dtype)


class DiceLoss(_WholeBatchLoss):
    """1 - the mean over the classes in the label of 2 sum(p g) / (sum(p^2) + sum(g^2)) (Milletari et al., V-Net, 3DV 2016).

    logits (N, K, H, W), label (N, H, W) int64 -> 0-d in [0, 1]; p is the softmax, g one-hot, the sums run over the valid
    pixels of the global batch, and the mean is weighted if weight (K,) is given. 0 without a valid pixel.
    """

    def forward(self, logits, label):
        valid = (label != self.ignore_label)[:, None]
        p = widen(logits).softmax(1) * valid
        g = torch.zeros_like(p).scatter_(1, label[:, None].where(valid, 0), valid.to(p.dtype))
        dims = (0, 2, 3)
        both, of_p, of_g = self.all_reduce_sum(torch.stack([(p * g).sum(dims), p.square().sum(dims), g.sum(dims)]))
        dice = 2 * both / (of_p + of_g).clamp(min=1e-12)
        share = (of_g > 0).to(p.dtype)
        if self.weight is not None:
            share = share * self.weight.to(p.dtype)
        return (share * (1 - dice)).sum() / share.sum().clamp(min=1e-12)


def upsampled_loss(logits, size, label, criterion, align_corners, predict=True, fused=True):
    """Loss of logits (N, K, h, w) resized to size, with label (N, *size).

    Returns the loss (0-d) and the predicted classes (N, *size) int64, or None for them if predict is False.
    fused: resize, loss and gradient are computed a few rows at a time, so that logits of label size never exist as a whole.
    Equal to the plain form up to rounding, and can be differentiated once. For CrossEntropy only; every other criterion, its
    subclasses too, is computed in the plain form.
    """
    # torch.compile fuses the plain form itself, and would unroll the loop over strips.
    if not fused or type(criterion) is not CrossEntropy or torch.compiler.is_compiling():
        logits = upsample(logits, size, align_corners)
        # max finds the place three times as fast as argmax on a CPU.
        return criterion(logits, label), logits.detach().max(1).indices if predict else None
    logits = widen(logits)
    differentiate = logits.requires_grad and torch.is_grad_enabled()
    with torch.no_grad(), torch.autocast(logits.device.type, enabled=False):
        total, gradient, pred = _loss_by_strips(logits, size, label, criterion, align_corners, predict, differentiate)
    if differentiate:
        total = _WithGradient.apply(logits, total, gradient)
    return criterion.mean_of(total, label), pred


class _WithGradient(torch.autograd.Function):
    """Attaches a precomputed gradient to a number computed from logits."""

    @staticmethod
    def forward(ctx, logits, total, gradient):
        ctx.save_for_backward(gradient)
        return total.clone()

    @staticmethod
    def backward(ctx, scale):
        if torch.is_grad_enabled():  # create_graph=True: the second derivative would be 0
            raise RuntimeError("the fused loss cannot be differentiated twice; build the network with fused_loss=False")
        return scale * ctx.saved_tensors[0], None, None


def _loss_by_strips(logits, size, label, criterion, align_corners, predict, differentiate):
    """The sum of the pixels' cross entropy (0-d), its gradient (N, K, h, w) or None, the classes (N, *size) or None.

    Resizing one map X (h, w) is Y = D X A with D (H, h) and A (w, W), so the gradient of X is D^T dY A^T; D is banded.
    A pixel of class t and weight c with logits y has, with m = max y and s = sum exp(y - m),
        loss = c (log s - (y_t - m)),  d loss / d y_k = c (exp(y_k - m) / s - [k = t]).
    """
    (n, classes, h, w), (height, width) = logits.shape, size
    down = _resize_matrix(logits, h, height, align_corners)
    across = _resize_matrix(logits, w, width, align_corners).T.contiguous()
    valid = label != criterion.ignore_label
    target = label.where(valid, 0)
    coefficient = valid.to(logits.dtype)
    if criterion.weight is not None:
        coefficient *= criterion.weight.to(logits.dtype)[target]
    step = _strip_rows(logits, width)
    losses = []
    gradient = torch.empty_like(logits) if differentiate else None
    pred = torch.empty_like(label) if predict else None
    for i in range(n):
        wide = logits[i].transpose(0, 1) @ across  # (h, K, W): rows first, so that a strip is one block of memory
        wide_gradient = torch.zeros_like(wide)
        for start in range(0, height, step):
            rows = slice(start, min(start + step, height))
            near = _rows_under(rows, h, height, align_corners)
            t, c = target[i, rows, None], coefficient[i, rows, None]  # (rows, 1, W)
            y = (down[rows, near] @ wide[near].flatten(1)).view(-1, classes, width)
            if predict:
                m, index = y.max(1, keepdim=True)
                pred[i, rows] = index[:, 0]
            else:
                m = y.amax(1, keepdim=True)
            y -= m
            y_t = y.gather(1, t)
            s = y.exp_().sum(1, keepdim=True)
            losses.append((c * (s.log() - y_t)).sum())
            if differentiate:
                y *= c / s
                y.scatter_(1, t, c * (y_t.exp() / s - 1))
                wide_gradient[near].flatten(1).addmm_(down[rows, near].T, y.flatten(1))
        if differentiate:
            gradient[i] = (wide_gradient @ across.T).transpose(0, 1)
    return torch.stack(losses).sum(), gradient, pred


def _strip_rows(logits, width):
    """Rows of label size at a time: on a CPU so many that they fit its cache, else more, for fewer kernel launches."""
    strip_bytes = 2**22 if logits.device.type == "cpu" else 2**26
    return max(1, strip_bytes // (logits.shape[1] * width * logits.element_size()))


def _resize_matrix(like, small, large, align_corners):
    """Matrix (large, small) that resizes a column of `small` values linearly."""
    eye = torch.eye(small, dtype=like.dtype, device=like.device)
    return F.interpolate(eye[None], large, mode="linear", align_corners=align_corners)[0].T


def _rows_under(rows, small, large, align_corners):
    """The slice of the `small` rows from which these of the `large` rows are interpolated, with a margin for rounding."""
    scale = (small - 1) / max(large - 1, 1) if align_corners else small / large
    shift = 0 if align_corners else (scale - 1) / 2
    first, last = (int(max(row * scale + shift, 0)) for row in (rows.start, rows.stop - 1))
    return slice(max(first - 1, 0), min(last + 3, small))
