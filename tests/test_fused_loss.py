"""The loss of a few rows at a time against the plain one: upsample, then cross entropy."""

import pytest
import torch
from golden_rules import generator, golden_label
from torch import nn

from model import loss
from model.loss import CrossEntropy, upsampled_loss
from model.psanet import PSANet
from model.pspnet import PSPNet

SIZES = [
    ((5, 7), (33, 49)), ((4, 6), (32, 41)), ((5, 7), (5, 7)), ((3, 9), (9, 33)), ((1, 1), (1, 8)), ((2, 13), (3, 97)),
    ((7, 5), (4, 3)),
]  # fmt: skip
each_size = pytest.mark.parametrize("small, size", SIZES, ids=str)
both_corners = pytest.mark.parametrize("align_corners", [True, False])


@pytest.fixture(params=[1, 7, 1000], ids=lambda rows: f"strips of {rows}")
def rows_at_a_time(request, monkeypatch):
    monkeypatch.setattr(loss, "_strip_rows", lambda *args: request.param)


def problem(small, size, classes, n=2, dtype=torch.float64):
    logits = 3 * torch.randn(n, classes, *small, generator=generator("logits"), dtype=torch.float64)
    return logits.to(dtype).requires_grad_(), golden_label("fused", n, *size, classes)


def results(logits, size, label, criterion, align_corners, fused):
    """Loss, gradient of 3 * loss, and predictions."""
    value, pred = upsampled_loss(logits, size, label, criterion, align_corners, fused=fused)
    return value.detach(), torch.autograd.grad(3 * value, logits)[0], pred


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


@each_size
@both_corners
@pytest.mark.parametrize("mean", ["valid", "all"])
@pytest.mark.parametrize("weighted", [False, True])
def test_loss_gradient_and_classes_are_the_plain_ones(rows_at_a_time, small, size, align_corners, mean, weighted):
    weight = torch.rand(6, generator=generator("weight")) if weighted else None
    logits, label = problem(small, size, 6)
    fused, plain = (results(logits, size, label, CrossEntropy(255, weight, mean), align_corners, f) for f in (True, False))
    assert relative(fused[0], plain[0]) < 1e-12 and relative(fused[1], plain[1]) < 1e-12
    assert torch.equal(fused[2], plain[2]) and fused[2].dtype == torch.int64


def test_a_strip_of_the_widest_label_is_one_row():
    assert loss._strip_rows(torch.empty(1, 150, 1, 1), 10**6) == 1


@pytest.mark.parametrize("classes, small, size", [(150, (12, 9), (89, 65)), (19, (40, 33), (313, 257))])
@both_corners
def test_in_float32_it_is_the_plain_one_to_a_millionth(classes, small, size, align_corners):
    logits, label = problem(small, size, classes, dtype=torch.float32)
    fused, plain = (results(logits, size, label, CrossEntropy(), align_corners, f) for f in (True, False))
    assert relative(fused[0], plain[0]) < 1e-6 and relative(fused[1], plain[1]) < 1e-6
    assert (fused[2] != plain[2]).float().mean() < 1e-4  # of two classes that are equal but for rounding, either may win


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_widened_first(dtype):
    logits, label = problem((5, 7), (33, 49), 6, dtype=dtype)
    value, gradient, pred = results(logits, (33, 49), label, CrossEntropy(), True, fused=True)
    wide = logits.detach().float().requires_grad_()
    expected = results(wide, (33, 49), label, CrossEntropy(), True, fused=True)
    assert gradient.dtype == dtype and value.dtype == torch.float32
    torch.testing.assert_close((value, gradient, pred), (expected[0], expected[1].to(dtype), expected[2]), rtol=0, atol=0)


def test_autocast_does_not_reach_it():
    logits, label = problem((5, 7), (33, 49), 6, dtype=torch.float32)
    expected = results(logits, (33, 49), label, CrossEntropy(), True, fused=True)
    with torch.autocast("cpu", torch.bfloat16):
        under = results(logits, (33, 49), label, CrossEntropy(), True, fused=True)
    torch.testing.assert_close(under, expected, rtol=0, atol=0)


def test_layout_of_the_logits_does_not_matter():
    logits, label = problem((5, 7), (33, 49), 6)
    expected = results(logits, (33, 49), label, CrossEntropy(), True, fused=True)
    last = logits.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    torch.testing.assert_close(results(last, (33, 49), label, CrossEntropy(), True, fused=True), expected)


def test_large_logits_do_not_overflow():
    logits, label = problem((5, 7), (33, 49), 6, dtype=torch.float32)
    large = (logits.detach() * 1000).requires_grad_()
    fused, plain = (results(large, (33, 49), label, CrossEntropy(), True, f) for f in (True, False))
    assert torch.isfinite(fused[0]) and relative(fused[0], plain[0]) < 1e-6 and relative(fused[1], plain[1]) < 1e-5


def test_the_ignored_label_may_be_a_class_or_negative():
    logits, label = problem((5, 7), (33, 49), 6)
    for ignore_label in (3, -1):
        relabelled = label.where(label != 255, ignore_label)
        fused, plain = (results(logits, (33, 49), relabelled, CrossEntropy(ignore_label), True, f) for f in (True, False))
        torch.testing.assert_close(fused, plain, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("mean", ["valid", "all"])
def test_a_batch_without_a_valid_pixel_has_loss_and_gradient_zero(mean):
    logits, label = problem((5, 7), (33, 49), 6)
    value, gradient, _ = results(logits, (33, 49), torch.full_like(label, 255), CrossEntropy(mean=mean), True, fused=True)
    assert value == 0 and (gradient == 0).all()


def test_a_label_outside_the_classes_is_refused():
    logits, label = problem((5, 7), (33, 49), 6)
    label[0, 3, 4] = 6
    with pytest.raises(RuntimeError, match="out of bounds"):
        upsampled_loss(logits, (33, 49), label, CrossEntropy(), True)


def test_a_second_derivative_is_refused():
    logits, label = problem((5, 7), (33, 49), 6)
    value, _ = upsampled_loss(logits, (33, 49), label, CrossEntropy(), True)
    with pytest.raises(RuntimeError, match="differentiated twice; .* fused_loss=False"):
        torch.autograd.grad(value, logits, create_graph=True)


def test_the_graph_can_be_walked_again_if_it_is_kept():
    logits, label = problem((5, 7), (33, 49), 6)
    value, _ = upsampled_loss(logits, (33, 49), label, CrossEntropy(), True)
    (first,) = torch.autograd.grad(value, logits, retain_graph=True)
    (second,) = torch.autograd.grad(2 * value, logits)
    torch.testing.assert_close(second, 2 * first)


def test_without_gradients_none_is_computed(monkeypatch):
    logits, label = problem((5, 7), (33, 49), 6)
    expected = upsampled_loss(logits, (33, 49), label, CrossEntropy(), True, fused=False)
    asked = []
    work = loss._loss_by_strips
    monkeypatch.setattr(loss, "_loss_by_strips", lambda *args: asked.append(args[-1]) or work(*args))
    for given in (logits, logits.detach()):
        with torch.no_grad() if given is logits else torch.enable_grad():
            value, pred = upsampled_loss(given, (33, 49), label, CrossEntropy(), True)
        assert not value.requires_grad and torch.equal(pred, expected[1])
        torch.testing.assert_close(value, expected[0].detach())
    assert asked == [False, False]


def test_other_criteria_are_computed_in_the_plain_form(monkeypatch):
    class Doubled(CrossEntropy):
        def forward(self, logits, label):
            return 2 * super().forward(logits, label)

    monkeypatch.delattr(loss, "_loss_by_strips")
    logits, label = problem((5, 7), (33, 49), 6)
    value, _ = upsampled_loss(logits, (33, 49), label, Doubled(), True)
    reference, _ = upsampled_loss(logits, (33, 49), label, nn.CrossEntropyLoss(ignore_index=255), True)
    torch.testing.assert_close(value, 2 * reference)


def test_no_large_tensor_is_ever_made():
    """At 150 classes: less than a third of the plain form's memory, in tensors that are alive at one time."""
    peak = {}
    for fused in (True, False):
        logits, label = problem((17, 17), (129, 129), 150, n=4, dtype=torch.float32)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            upsampled_loss(logits, (129, 129), label, CrossEntropy(), True, fused=fused)[0].backward()
        peak[fused] = peak_bytes(profile)
    large = 4 * 150 * 129 * 129 * 4
    assert peak[False] > 2 * large and peak[True] < peak[False] / 3


def peak_bytes(profile):
    alive = most = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            alive += event.nbytes()
            most = max(most, alive)
    return most


@pytest.mark.parametrize("make", [PSPNet, PSANet])
@pytest.mark.parametrize("options", [{}, {"zoom_factor": 2}, {"size_rule": "input", "align_corners": False}], ids=str)
def test_a_network_trains_the_same_with_and_without(make, options, narrow):
    torch.manual_seed(0)
    net = make(18, classes=5, dropout=0, **options, **({"mask_h": 5, "mask_w": 7} if make is PSANet else {})).double()
    image, label = torch.randn(2, 3, 33, 49, generator=generator("image")).double(), golden_label("net", 2, 33, 49, 5)
    outcomes = []
    assert net.fused_loss
    for net.fused_loss in (True, False):
        net.zero_grad()
        pred, main_loss, aux_loss = net(image, label)
        (main_loss + 0.4 * aux_loss).backward()
        outcomes.append((pred, main_loss, aux_loss, [p.grad.clone() for p in net.parameters()]))
    torch.testing.assert_close(*outcomes, rtol=1e-9, atol=1e-12)
