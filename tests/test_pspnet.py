"""PSPNet against the numbers of the original semseg and of MMSegmentation (tests/golden)."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden_rules import draw, fill_, golden_input, golden_label

from model.pspnet import PPM, Cells, PSPNet

pytestmark = pytest.mark.usefixtures("two_threads")
GOLDEN = Path(__file__).parent / "golden"
MAPPING = json.loads((GOLDEN / "key_mapping.json").read_text())
MMSEG_NAMES = {ours: theirs for theirs, ours in MAPPING["mmseg_to_semseg"].items()}
K, H, W = 5, 65, 97


@pytest.fixture(scope="module")
def golden():
    return np.load(GOLDEN / "semseg.npz")


@pytest.fixture(scope="module")
def golden_mmseg():
    return np.load(GOLDEN / "mmseg.npz")


@pytest.fixture(scope="module")
def net50():
    return PSPNet(50, classes=K, dropout=0)


@pytest.fixture
def net(net50):
    """The one big network of this file, filled anew and in float32."""
    net50.zoom_factor = 8
    net50.zero_grad()  # the gradients have the dtype of the test before
    return fill_(net50.float())


@pytest.fixture(scope="module")
def mmseg_net50():
    """The switches that make it MMSegmentation's network."""
    return PSPNet(
        50,
        classes=19,
        dropout=0,
        stem="deep32",
        contract_dilation=True,
        align_corners=False,
        size_rule="input",
        loss_mean="all",
    )


@pytest.fixture
def mmseg_net(mmseg_net50):
    mmseg_net50.zero_grad()
    return fill_(mmseg_net50.float(), MMSEG_NAMES)


def training_batch(tag):
    return golden_input(tag, 2, H, W).double(), golden_label(tag, 2, H, W, K)


def assert_gradient_norms(net, golden, prefix, names=None):
    for name, p in net.named_parameters():
        expected = golden[f"{prefix}gradnorm64/{names[name] if names else name}"]
        assert p.grad.norm().item() == pytest.approx(expected, rel=1e-6), name


@pytest.mark.parametrize("layers", [50, 101, 152])
def test_state_dict_has_the_names_shapes_and_order_of_the_original(layers):
    expected = json.loads((GOLDEN / "semseg_keys.json").read_text())[f"pspnet{layers}"]
    with torch.device("meta"):
        state = PSPNet(layers, classes=19).state_dict()
    assert [(name, list(tensor.shape)) for name, tensor in state.items()] == list(expected.items())


@pytest.mark.parametrize("bins", [1, 2, 3, 6])
@pytest.mark.parametrize("size", [(5, 5), (12, 18), (17, 13), (64, 128)])
def test_cells_by_products_are_those_of_adaptive_pooling(size, bins):
    """Which CUDA computes without an order; only a GPU takes the products, tests/test_gpu.py compares runs."""
    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    found, expected = Cells(bins).products(x), F.adaptive_avg_pool2d(x, bins)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    weight = torch.randn_like(found)
    torch.testing.assert_close(*(torch.autograd.grad((y * weight).sum(), x)[0] for y in (found, expected)), rtol=0, atol=1e-12)
    with torch.autocast("cpu", torch.bfloat16):
        half = Cells(bins).products(x.detach().bfloat16())
    assert half.dtype == torch.bfloat16 and torch.allclose(half.double(), expected, atol=0.02)


@pytest.mark.parametrize("case, zoom", [("pspnet50", 8), ("pspnet50_zoom1", 1)])
def test_logits_equal_the_original(net, golden, case, zoom):
    net.eval().zoom_factor = zoom
    with torch.no_grad():
        logits = net(golden_input(case, 1, H, W))
    np.testing.assert_allclose(logits[:, :, ::4, ::4], golden[f"{case}/logits_s4"], rtol=0, atol=1e-5)
    hist = np.bincount(logits.argmax(1).flatten(), minlength=K)
    assert np.abs(hist - golden[f"{case}/pred_hist"]).sum() <= 0.002 * hist.sum()


def test_training_losses_predictions_and_gradients_equal_the_original(net, golden):
    pred, main_loss, aux_loss = net.double().train()(*training_batch("pspnet50_train"))
    (main_loss + 0.4 * aux_loss).backward()
    assert main_loss.item() == pytest.approx(golden["pspnet50/main_loss"], rel=1e-6)
    assert aux_loss.item() == pytest.approx(golden["pspnet50/aux_loss"], rel=1e-6)
    assert np.bincount(pred.flatten(), minlength=K).tolist() == golden["pspnet50/train_pred_hist"].tolist()
    assert_gradient_norms(net, golden, "pspnet50/")


@pytest.mark.parametrize("zoom", [1, 2, 4])
def test_zoomed_training_losses_equal_the_original(net, golden, zoom):
    net.double().train().zoom_factor = zoom
    with torch.no_grad():
        _, *losses = net(*training_batch("pspnet50_train"))
    np.testing.assert_allclose(losses, golden[f"pspnet50_zoom{zoom}/train_losses"], rtol=1e-6)


def test_six_training_steps_follow_the_original(net, golden):
    net.double().train()
    modules = [(net.backbone_modules(), 1), (net.head_modules(), 10)]
    groups = [{"params": [p for m in ms for p in m.parameters()], "factor": factor} for ms, factor in modules]
    optimizer = torch.optim.SGD(groups, lr=0.001, momentum=0.9, weight_decay=1e-4)
    losses = []
    for step in range(6):
        for group in optimizer.param_groups:
            group["lr"] = 0.001 * group["factor"] * (1 - step / 6) ** 0.9
        _, main_loss, aux_loss = net(*training_batch(f"traj{step}"))
        loss = main_loss + 0.4 * aux_loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append([main_loss.item(), aux_loss.item(), loss.item()])
    np.testing.assert_allclose(losses, golden["trajectory64/losses"], rtol=1e-6)


@pytest.mark.parametrize("size", [(65, 129), (97, 64)])
def test_logits_and_losses_equal_mmsegmentation(mmseg_net, golden_mmseg, size):
    tag, net = "{}x{}".format(*size), mmseg_net.eval()
    x = torch.from_numpy(golden_mmseg[f"x_{tag}"])
    label = torch.from_numpy(golden_mmseg[f"y_{tag}"]).long()
    with torch.no_grad():
        third = net.layer3(net.layer2(net.layer1(net.layer0(x))))
        head, aux = net.head(net.layer4(third)), net.aux(third)
        logits = net(x)
        large_aux = torch.nn.functional.interpolate(aux, size, mode="bilinear")
        losses = net.criterion(logits, label).item(), 0.4 * net.criterion(large_aux, label).item()
    for ours, name in ((head, "head"), (aux, "aux"), (logits, "logits")):
        np.testing.assert_allclose(ours, golden_mmseg[f"{name}_{tag}"], rtol=0, atol=1e-5)
    expected = golden_mmseg[f"decode.loss_ce_{tag}"], golden_mmseg[f"aux.loss_ce_{tag}"]
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


def test_training_losses_and_gradients_equal_mmsegmentation(mmseg_net, golden_mmseg):
    net = mmseg_net.double().train()
    x, label = golden_input("train", 2, 65, 129).double(), golden_label("train", 2, 65, 129, 19)
    _, main_loss, aux_loss = net(x, label)
    (main_loss + 0.4 * aux_loss).backward()
    assert main_loss.item() == pytest.approx(golden_mmseg["train_decode.loss_ce"], rel=1e-6)
    assert 0.4 * aux_loss.item() == pytest.approx(golden_mmseg["train_aux.loss_ce"], rel=1e-6)
    assert (main_loss + 0.4 * aux_loss).item() == pytest.approx(golden_mmseg["train_total_loss"], rel=1e-6)
    assert_gradient_norms(net, golden_mmseg, "", MMSEG_NAMES)


def test_names_of_mmsegmentation_map_onto_every_tensor(mmseg_net):
    shapes = {ours: MAPPING["mmseg_shapes"][theirs] for ours, theirs in MMSEG_NAMES.items()}
    assert {name: list(tensor.shape) for name, tensor in mmseg_net.state_dict().items()} == shapes


def test_pyramid_pooling_is_the_features_and_their_averages_resized():
    ppm = fill_(PPM(8, 2, (1, 3))).eval()
    x = draw("x.weight", (2, 8, 9, 7))
    y = ppm(x)
    assert y.shape == (2, 12, 9, 7) and ppm.out_channels == 12 and torch.equal(y[:, :8], x)
    conv, bn = ppm.features[0][1], ppm.features[0][2]
    mean = torch.relu(bn(conv(x.mean((2, 3), keepdim=True))))
    torch.testing.assert_close(y[:, 8:10], mean.expand(-1, -1, 9, 7))


def test_small_backbones_scale_all_heads_with_512_features():
    with torch.device("meta"):
        net = PSPNet(18, classes=19)
    shapes = {name: tuple(p.shape) for name, p in net.named_parameters()}
    assert shapes["ppm.features.0.1.weight"] == (128, 512, 1, 1)
    assert shapes["cls.0.weight"] == (128, 1024, 3, 3) and shapes["cls.4.weight"] == (19, 128, 1, 1)
    assert shapes["aux.0.weight"] == (64, 256, 3, 3) and shapes["aux.4.weight"] == (19, 64, 1, 1)


def test_other_bins_train_too():
    net = PSPNet(18, bins=(1, 2, 4), classes=K)
    assert net.cls[0].in_channels == 512 + 3 * (512 // 3)
    assert net(golden_input("bins", 2, 33, 33), golden_label("bins", 2, 33, 33, K))[0].shape == (2, 33, 33)
