"""PSANet and its mask operation against the original semseg (tests/golden) and against plain loops."""

import inspect
import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_rules import fill_, generator, golden_input, golden_label

from model.psanet import PSA, PSANet, psa_mask

pytestmark = pytest.mark.usefixtures("two_threads")
GOLDEN = Path(__file__).parent / "golden"
K, H, W = 5, 65, 97
CASES = {
    "psanet50_type0": {"psa_type": 0},
    "psanet50_type1": {"psa_type": 1},
    "psanet50_type2": {"psa_type": 2},
    "psanet50_smallmask_nosoftmax": {
        "shrink_factor": 1,
        "mask_h": 5,
        "mask_w": 7,
        "normalization_factor": None,
        "psa_softmax": False,
    },
    "psanet50_compact_type1": {"psa_type": 1, "compact": True, "mask_h": 5, "mask_w": 7},
    "psanet50_compact_type2": {"psa_type": 2, "compact": True, "mask_h": 5, "mask_w": 7},
}


@pytest.fixture(scope="module")
def golden():
    return np.load(GOLDEN / "semseg.npz")


@pytest.fixture(scope="module")
def backbone50():
    """A PSANet50 whose backbone and heads all cases share; only `psa` differs."""
    return PSANet(50, classes=K, dropout=0, mask_h=9, mask_w=13)


def network(backbone50, case):
    net = backbone50.float()
    net.psa = PSA(2048, 512, **({"mask_h": 9, "mask_w": 13} | CASES[case]))
    net.zero_grad()
    return fill_(net)


def mask_by_loops(x, psa_type, mask_h, mask_w, rows=None):
    """The definition, cell by cell; rows limits the work to the first rows of positions."""
    n, _, h, w = x.shape
    out = x.new_zeros(n, h * w, h, w)
    for i in range(rows or h):
        for j in range(w):
            for a in range(mask_h):
                for b in range(mask_w):
                    p, q = i + a - (mask_h - 1) // 2, j + b - (mask_w - 1) // 2
                    if 0 <= p < h and 0 <= q < w:
                        value = x[:, a * mask_w + b, i, j]
                        if psa_type == 0:
                            out[:, p * w + q, i, j] = value
                        else:
                            out[:, i * w + j, p, q] = value
    return out


@pytest.mark.parametrize("layers", [50, 101])
def test_state_dict_has_the_names_shapes_and_order_of_the_original(layers):
    expected = json.loads((GOLDEN / "semseg_keys.json").read_text())[f"psanet{layers}_mask59"]
    with torch.device("meta"):
        state = PSANet(layers, classes=19, mask_h=59, mask_w=59).state_dict()
    assert [(name, list(tensor.shape)) for name, tensor in state.items()] == list(expected.items())


def test_arguments_and_their_defaults_are_those_of_the_original():
    given = list(inspect.signature(PSANet).parameters.values())[:12]
    assert [(argument.name, argument.default) for argument in given] == [
        ("layers", 50), ("dropout", 0.1), ("classes", 2), ("zoom_factor", 8), ("use_psa", True), ("psa_type", 2),
        ("compact", False), ("shrink_factor", 2), ("mask_h", 59), ("mask_w", 59), ("normalization_factor", 1.0),
        ("psa_softmax", True),
    ]  # fmt: skip


@pytest.mark.parametrize("align_corners", [True, False])
def test_the_attention_resizes_as_the_network_does(align_corners):
    assert PSANet(18, mask_h=3, mask_w=3, align_corners=align_corners).psa.align_corners == align_corners


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_the_original(backbone50, golden, case):
    net = network(backbone50, case).eval()
    with torch.no_grad():
        logits = net(golden_input(case, 1, H, W))
    np.testing.assert_allclose(logits[:, :, ::4, ::4], golden[f"{case}/logits_s4"], rtol=0, atol=1e-5)
    hist = np.bincount(logits.argmax(1).flatten(), minlength=K)
    assert np.abs(hist - golden[f"{case}/pred_hist"]).sum() <= 0.002 * hist.sum()


def test_training_losses_predictions_and_gradients_equal_the_original(backbone50, golden):
    case = "psanet50_type2"
    net = network(backbone50, case).double().train()
    image, label = golden_input(f"{case}_train", 2, H, W).double(), golden_label(f"{case}_train", 2, H, W, K)
    pred, main_loss, aux_loss = net(image, label)
    (main_loss + 0.4 * aux_loss).backward()
    assert main_loss.item() == pytest.approx(golden[f"{case}/main_loss"], rel=1e-6)
    assert aux_loss.item() == pytest.approx(golden[f"{case}/aux_loss"], rel=1e-6)
    assert np.bincount(pred.flatten(), minlength=K).tolist() == golden[f"{case}/train_pred_hist"].tolist()
    for name, p in net.named_parameters():
        assert p.grad.norm().item() == pytest.approx(golden[f"{case}/gradnorm64/{name}"], rel=1e-6), name


@pytest.mark.parametrize("psa_type", [0, 1])
@pytest.mark.parametrize("mask_h, mask_w", [(9, 13), (3, 5)])
def test_mask_equals_the_original(golden, psa_type, mask_h, mask_w):
    x = torch.randn(2, mask_h * mask_w, 5, 7, generator=generator(f"psamask{psa_type}{mask_h}{mask_w}"))
    expected = golden[f"psamask/type{psa_type}_{mask_h}x{mask_w}_5x7"]
    assert np.array_equal(psa_mask(x, psa_type, mask_h, mask_w), expected)


@pytest.mark.parametrize("psa_type", [0, 1])
@pytest.mark.parametrize(
    "h, w, mask_h, mask_w",
    [(5, 7, 9, 13), (4, 6, 7, 11), (4, 6, 5, 9), (4, 6, 3, 5), (5, 3, 9, 1), (3, 4, 9, 15), (1, 1, 1, 1)],
)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_mask_and_its_gradient_equal_loops(psa_type, h, w, mask_h, mask_w, layout):
    g = generator("loops")
    x = torch.randn(2, mask_h * mask_w, h, w, generator=g).contiguous(memory_format=layout).requires_grad_()
    weight = torch.randn(2, h * w, h, w, generator=g)
    fast, slow = psa_mask(x, psa_type, mask_h, mask_w), mask_by_loops(x, psa_type, mask_h, mask_w)
    assert torch.equal(fast, slow)
    gradients = [torch.autograd.grad((out * weight).sum(), x)[0] for out in (fast, slow)]
    assert torch.equal(*gradients)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_mask_keeps_the_dtype_and_moves_values_only(dtype):
    x = torch.randn(1, 35, 3, 4, generator=generator("dtype")).to(dtype).requires_grad_()
    out = psa_mask(x, 0)
    assert out.dtype == dtype and torch.equal(out, mask_by_loops(x, 0, 5, 7))
    out.sum().backward()
    assert x.grad.dtype == dtype and set(x.grad.flatten().tolist()) == {0.0, 1.0}


def test_cells_outside_the_image_never_reach_the_result():
    x = torch.full((1, 15, 2, 2), float("nan"))
    x.view(3, 5, 2, 2)[1, 2] = 1  # the mask's centre
    out = psa_mask(x, 0, 3, 5).view(4, 4)
    assert (out.diagonal() == 1).all()
    x.view(3, 5, 2, 2)[:, 1:4] = 1  # all that lies inside
    assert (psa_mask(x, 0, 3, 5) == 1).all()


def test_a_mask_that_was_first_used_for_testing_trains_afterwards():
    x = torch.randn(1, 15, 2, 3)
    with torch.inference_mode():
        psa_mask(x, 0)
    x = x.clone().requires_grad_()
    psa_mask(x, 0).sum().backward()
    assert x.grad.sum() == 36


@pytest.mark.parametrize("psa_type", [0, 1])
def test_mask_is_more_than_20_times_faster_than_loops(psa_type):
    x = torch.randn(1, 59 * 59, 30, 30)
    psa_mask(x, psa_type)
    start = time.perf_counter()
    mask_by_loops(x, psa_type, 59, 59, rows=1)
    loops = 30 * (time.perf_counter() - start)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        psa_mask(x, psa_type)
        times.append(time.perf_counter() - start)
    assert loops > 20 * min(times)


def test_wrong_masks_are_named():
    with pytest.raises(ValueError, match="mask_w: 4 must be odd"):
        psa_mask(torch.zeros(1, 12, 5, 5), 0, 3, 4)
    with pytest.raises(ValueError, match="3 x 5: needs 15 channels, not 14"):
        psa_mask(torch.zeros(1, 14, 5, 5), 0, 3, 5)
    with pytest.raises(ValueError, match="psa_type: 2 "):
        psa_mask(torch.zeros(1, 15, 5, 5), 2, 3, 5)
    with pytest.raises(ValueError, match="mask_h: 8 must be odd"):
        PSANet(18, mask_h=8)
    with pytest.raises(ValueError, match="shrink_factor: 0 must be at least 1"):
        PSANet(18, shrink_factor=0)
    with pytest.raises(ValueError, match="psa_type: 3 .*collect.*distribute.*both"):
        PSANet(18, psa_type=3)


def test_a_compact_network_works_at_one_size_only():
    net = PSANet(18, classes=K, compact=True, mask_h=3, mask_w=4).eval()
    assert net(torch.zeros(1, 3, 33, 49)).shape == (1, K, 33, 49)
    with pytest.raises(ValueError, match="compact: needs mask_h x mask_w = 3 x 3, .*not 3 x 4"):
        net(torch.zeros(1, 3, 33, 33))
