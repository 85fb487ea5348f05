import pytest
import torch
import torch.nn.functional as F
from golden_rules import golden_label

from model.loss import CrossEntropy, DiceLoss, OhemCrossEntropy, upsample, upsampled_loss

WEIGHT = torch.tensor([0.5, 2.0, 1.0, 0.1])


@pytest.fixture
def batch():
    g = torch.Generator().manual_seed(0)
    return torch.randn(2, 4, 9, 11, generator=g, dtype=torch.float64), golden_label("loss", 2, 9, 11, 4)


def value_and_gradient(f, logits):
    logits = logits.clone().requires_grad_()
    loss = f(logits)
    return loss.detach(), torch.autograd.grad(loss, logits)[0]


@pytest.mark.parametrize("weight", [None, WEIGHT])
def test_mean_over_valid_pixels_is_pytorchs_cross_entropy(batch, weight):
    logits, label = batch
    theirs = None if weight is None else weight.double()
    ours = value_and_gradient(lambda x: CrossEntropy(255, weight)(x, label), logits)
    reference = value_and_gradient(lambda x: F.cross_entropy(x, label, theirs, ignore_index=255), logits)
    torch.testing.assert_close(ours, reference, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("weight", [None, WEIGHT])
def test_mean_over_all_pixels_divides_by_their_number(batch, weight):
    logits, label = batch
    theirs = None if weight is None else weight.double()
    total = F.cross_entropy(logits, label, theirs, ignore_index=255, reduction="sum")
    loss = CrossEntropy(255, weight, "all")(logits, label)
    torch.testing.assert_close(loss, total / label.numel(), rtol=1e-7, atol=0)


def test_another_ignored_label_is_honoured(batch):
    logits, label = batch
    torch.testing.assert_close(
        CrossEntropy(3)(logits, label.where(label != 255, 3)),
        F.cross_entropy(logits, label.where(label != 3, 255), ignore_index=255),
    )


@pytest.mark.parametrize("weight", [None, WEIGHT])
@pytest.mark.parametrize("mean", ["valid", "all"])
def test_a_batch_without_a_valid_pixel_has_loss_and_gradient_zero(batch, weight, mean):
    logits, label = batch[0], torch.full_like(batch[1], 255)
    loss, gradient = value_and_gradient(lambda x: CrossEntropy(255, weight, mean)(x, label), logits)
    assert loss == 0 and (gradient == 0).all()


@pytest.mark.parametrize("weight", [None, WEIGHT])
@pytest.mark.parametrize("mean", ["valid", "all"])
def test_parts_weighted_by_their_normalisers_make_the_whole(batch, weight, mean):
    logits, label = batch
    label[0, :6] = 255  # so that the two images weigh differently
    criterion = CrossEntropy(255, weight, mean)
    n = torch.stack([criterion.normaliser(label[i : i + 1]) for i in range(2)]).double()
    losses = torch.stack([criterion(logits[i : i + 1], label[i : i + 1]) for i in range(2)])
    torch.testing.assert_close((n * losses).sum() / n.sum(), criterion(logits, label), rtol=1e-6, atol=0)
    torch.testing.assert_close(n.sum().float(), criterion.normaliser(label))


@pytest.mark.parametrize("criterion", [CrossEntropy, OhemCrossEntropy, DiceLoss])
def test_class_weights_stay_out_of_the_state_dict(criterion):
    assert criterion(255, WEIGHT).state_dict() == {}


def test_an_unknown_mean_is_named_with_the_choices():
    with pytest.raises(ValueError, match="loss_mean: 'sum' .*valid or all"):
        CrossEntropy(mean="sum")


@pytest.mark.parametrize("align_corners", [True, False])
def test_upsampled_loss_is_upsampling_then_the_criterion(batch, align_corners):
    logits, _ = batch
    label = golden_label("large", 2, 65, 81, 4)
    large = F.interpolate(logits, (65, 81), mode="bilinear", align_corners=align_corners)
    loss, pred = upsampled_loss(logits, (65, 81), label, CrossEntropy(), align_corners)
    torch.testing.assert_close(loss, F.cross_entropy(large, label, ignore_index=255))
    assert torch.equal(pred, large.argmax(1)) and pred.dtype == torch.int64
    assert upsampled_loss(logits, (65, 81), label, CrossEntropy(), align_corners, predict=False) == (loss, None)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_widened_before_they_are_resized(batch, dtype):
    logits = batch[0].to(dtype)
    large = upsample(logits, (65, 81), True)
    assert large.dtype == torch.float32
    assert torch.equal(large, F.interpolate(logits.float(), (65, 81), mode="bilinear", align_corners=True))
    assert upsample(logits, (9, 11), True).dtype == torch.float32
