"""Losses for unequal classes: only the hard pixels, and the overlap of each class."""

import math

import pytest
import torch
import torch.nn.functional as F

from model.loss import DiceLoss, OhemCrossEntropy


def a_batch(n=2, classes=4, size=9, seed=0):
    g = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(n, classes, size, size, generator=g, dtype=torch.float64)
    label = torch.randint(0, classes, (n, size, size), generator=g)
    label[torch.rand(label.shape, generator=g) < 0.2] = 255
    return logits.requires_grad_(), label


def pixel_losses(logits, label):
    """The cross entropy of every valid pixel, in one row."""
    return F.cross_entropy(logits.movedim(1, -1)[label != 255], label[label != 255], reduction="none")


def test_ohem_is_the_mean_over_the_pixels_below_the_threshold():
    logits, label = a_batch()
    losses = pixel_losses(logits, label)
    hard = losses[losses >= -math.log(0.7)]
    assert 5 < len(hard) < len(losses)
    torch.testing.assert_close(OhemCrossEntropy(threshold=0.7, min_kept=5)(logits, label), hard.mean())


def test_ohem_keeps_at_least_so_many_pixels():
    logits, label = a_batch()
    hardest = pixel_losses(logits, label).sort(descending=True).values[:120]
    assert hardest[-1] < -math.log(0.7)
    torch.testing.assert_close(OhemCrossEntropy(threshold=0.7, min_kept=120)(logits, label), hardest.mean())


def test_ohem_that_keeps_all_is_cross_entropy_with_and_without_weights():
    logits, label = a_batch()
    weight = torch.tensor([0.1, 2.0, 1.0, 0.5], dtype=torch.float64)
    for w in (None, weight):
        expected = F.cross_entropy(logits, label, w, ignore_index=255)
        ours = OhemCrossEntropy(weight=w, min_kept=10**6)(logits, label)
        torch.testing.assert_close(ours, expected, rtol=1e-7, atol=0)
        a, b = (torch.autograd.grad(loss, logits, retain_graph=True)[0] for loss in (ours, expected))
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-12)


def test_dice_is_the_formula_written_out_class_by_class():
    logits, label = a_batch()
    p, valid = logits.softmax(1), label != 255
    terms = []
    for k in range(4):
        pk, gk = p[:, k][valid], (label == k)[valid].double()
        terms.append(1 - 2 * (pk * gk).sum() / ((pk**2).sum() + (gk**2).sum()))
    torch.testing.assert_close(DiceLoss()(logits, label), torch.stack(terms).mean())
    weight = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    torch.testing.assert_close(DiceLoss(weight=weight)(logits, label), (torch.stack(terms) * weight).sum() / 10)


def test_dice_of_a_perfect_prediction_is_zero_and_absent_classes_do_not_count():
    label = torch.tensor([[[0, 0, 2], [2, 255, 0]]])
    logits = 100.0 * F.one_hot(label.where(label != 255, 0), 4).movedim(-1, 1)
    assert DiceLoss()(logits, label).item() == pytest.approx(0, abs=1e-6)
    assert DiceLoss()(-logits, label).item() > 0.5


@pytest.mark.parametrize("criterion", [OhemCrossEntropy(), DiceLoss()])
def test_ignored_pixels_have_no_gradient_and_a_batch_of_them_has_loss_zero(criterion):
    logits, label = a_batch()
    gradient = torch.autograd.grad(criterion(logits, label), logits)[0]
    assert gradient.movedim(1, -1)[label == 255].abs().max() == 0
    nothing = criterion(logits, torch.full_like(label, 255))
    assert nothing.item() == 0 and torch.autograd.grad(nothing, logits)[0].abs().max() == 0
