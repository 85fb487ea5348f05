"""Losses for unequal classes: only the hard pixels, and the overlap of each class."""

import math
import multiprocessing

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from processes import finish, free_port
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from model.loss import CrossEntropy, DiceLoss, OhemCrossEntropy, _kth_largest
from util.distributed import all_reduce_sum, differentiable_sum


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
    torch.testing.assert_close(OhemCrossEntropy(min_kept=5)(logits, label), hard.mean())


def test_ohem_keeps_at_least_so_many_pixels():
    logits, label = a_batch()
    hardest = pixel_losses(logits, label).sort(descending=True).values[:120]
    assert hardest[-1] < -math.log(0.7)
    torch.testing.assert_close(OhemCrossEntropy(threshold=0.7, min_kept=120)(logits, label), hardest.mean())


@pytest.mark.parametrize("gap", [8, 12, 14, 17])
def test_ohem_of_a_sure_network_is_the_mean_over_as_many_pixels(gap):
    """In float32 the losses of sure pixels are 0 or a few multiples of its precision, so that thousands are equal."""
    g = torch.Generator().manual_seed(0)
    logits, label = torch.zeros(1, 2, 100, 100), torch.zeros(1, 100, 100, dtype=torch.long)
    logits[:, 0] = gap + 4 * torch.rand(100, 100, generator=g)
    logits[0, 0, 0] = -5.0  # 100 pixels that are wrong
    hardest = pixel_losses(logits.double(), label).sort(descending=True).values[:500]
    ours = OhemCrossEntropy(min_kept=500)(logits.requires_grad_(), label)
    torch.testing.assert_close(ours.double(), hardest.mean(), rtol=1e-5, atol=0)
    assert torch.autograd.grad(ours, logits)[0].abs().max() == pytest.approx(1 / 500, rel=0.01)


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


@pytest.mark.parametrize("criterion", [CrossEntropy(), OhemCrossEntropy(min_kept=5), DiceLoss()])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_widened(criterion, dtype):
    logits, label = a_batch()
    logits = logits.detach().to(dtype)
    torch.testing.assert_close(criterion(logits, label), criterion(logits.float(), label), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kth_largest_is_that_of_the_sorted_values(dtype):
    values = torch.rand(50, generator=torch.Generator().manual_seed(0), dtype=dtype) * torch.logspace(-40, 30, 50, dtype=dtype)
    values = torch.cat([values, values[:20], torch.zeros(5, dtype=dtype)])
    ordered = values.sort(descending=True).values
    assert all(_kth_largest(values, k, lambda x: x) == ordered[k - 1] for k in range(1, 76))
    assert _kth_largest(values, 76, lambda x: x) == 0
    assert _kth_largest(values.new_tensor([torch.inf, 1]), 1, lambda x: x) == torch.inf


# ---- several processes ----

WEIGHT = (0.1, 2.0, 1.0, 0.5)
LOSSES = {
    "ohem, threshold": (OhemCrossEntropy, {"threshold": 0.7, "min_kept": 5}),
    "ohem, hardest": (OhemCrossEntropy, {"threshold": 0.3, "min_kept": 150}),
    "ohem, hardest, weighted": (OhemCrossEntropy, {"threshold": 0.3, "min_kept": 150, "weight": WEIGHT}),
    "ohem, some of the equally hard": (OhemCrossEntropy, {"threshold": 0.04, "min_kept": 220}),
    "ohem, all": (OhemCrossEntropy, {"min_kept": 10**6, "weight": WEIGHT}),
    "dice": (DiceLoss, {}),
    "dice, weighted": (DiceLoss, {"weight": WEIGHT}),
}
IGNORED = {
    "none": [],
    "a few": [(0, slice(0, 8))],
    "the first process": [(0, slice(None))],
    "all": [(slice(None), slice(None))],
}


def a_global_batch(ignored):
    """Five images; the first process has one of them, the second four."""
    g = torch.Generator().manual_seed(3)
    image, label = torch.randn(5, 3, 9, 9, generator=g).double(), torch.randint(0, 4, (5, 9, 9), generator=g)
    label[3] = label[3].clamp(max=1)
    image[:, :, 3:] = 1  # equally hard pixels, in both processes
    for images, rows in IGNORED[ignored]:
        label[images, rows] = 255
    return image, label


def step(image, label, kind, world=1, **more):
    """[main + 0.4 aux loss of the global batch, gradients], computed as tool/train.py does."""
    criterion, options = LOSSES[kind]
    criterion = criterion(**options, **more)
    torch.manual_seed(0)
    net = nn.Conv2d(3, 8, 1).double()
    net.weight.data *= 4
    parallel = DistributedDataParallel(net) if world > 1 else net
    logits = parallel(image)
    share = criterion.normaliser(label) / all_reduce_sum(criterion.normaliser(label))
    loss = share * (criterion(logits[:, :4], label) + 0.4 * criterion(logits[:, 4:], label))
    (loss * world).backward()
    return [all_reduce_sum(loss.detach().clone()), *(p.grad for p in net.parameters())]


def one_of_two(rank, port, path):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    results = {}
    for ignored in IGNORED:
        image, label = (x[:1] if rank == 0 else x[1:] for x in a_global_batch(ignored))
        results |= {(ignored, kind): step(image, label, kind, world=2, all_reduce_sum=differentiable_sum) for kind in LOSSES}
    torch.save(results, f"{path}.{rank}")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    context, port, path = multiprocessing.get_context("forkserver"), free_port(), tmp_path_factory.mktemp("two") / "results"
    processes = [context.Process(target=one_of_two, args=(rank, port, path)) for rank in range(2)]
    for process in processes:
        process.start()
    assert finish(processes) == [0, 0]
    return [torch.load(f"{path}.{rank}") for rank in range(2)]


@pytest.mark.parametrize("ignored", IGNORED)
@pytest.mark.parametrize("kind", LOSSES)
def test_two_processes_have_the_loss_and_the_gradients_of_one_with_the_whole_batch(two_processes, kind, ignored):
    expected = step(*a_global_batch(ignored), kind)
    assert (expected[0] == 0) == (ignored == "all")
    for results in two_processes:
        torch.testing.assert_close(results[ignored, kind], expected, rtol=1e-10, atol=1e-10)
