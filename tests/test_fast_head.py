"""The pyramid seen before upsampling against the plain head: `ppm`, then `cls[0]`."""

import pytest
import torch
import torch.nn.functional as F
from golden_rules import fill_, generator, golden_input, golden_label

from model.pspnet import PPM, PSPNet

K = 5
SIZES = [(9, 13), (8, 8), (60, 45), (1, 1), (2, 1), (5, 4), (1, 12), (7, 30)]
both_corners = pytest.mark.parametrize("align_corners", [True, False])


def layers(bins, align_corners=True, channels=16, planes=4, outplanes=6):
    ppm = fill_(PPM(channels, planes, bins, align_corners))
    weight = torch.randn(outplanes, ppm.out_channels, 3, 3, generator=generator("head"), dtype=torch.float64)
    return ppm, weight.requires_grad_()


def features(n, channels, h, w):
    x = torch.randn(n, channels, h, w, generator=generator(f"{n} {h} {w}"), dtype=torch.float64)
    return x.relu().requires_grad_()


def plain(ppm, x, weight, bias=None):
    return F.conv2d(ppm(x), weight, bias, padding=1)


def relative(a, b):
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("bins", [(1, 2, 3, 6), (1, 2, 4), (3,), (8, 1)], ids=str)
@both_corners
@pytest.mark.parametrize("training", [True, False])
def test_result_and_every_gradient_are_the_plain_ones(size, bins, align_corners, training):
    ppm, weight = layers(bins, align_corners)
    ppm.double().train(training)
    x, bias = features(3, 16, *size), weight.detach()[:, 0, 0, 0].clone().requires_grad_()
    outcomes = []
    for head in (PPM.convolved, plain):
        y = head(ppm, x, weight, bias)
        pull = torch.randn(y.shape, generator=generator("pull"), dtype=y.dtype)
        outcomes.append([y.detach(), *torch.autograd.grad((y * pull).sum(), [x, weight, bias, *ppm.parameters()])])
    assert outcomes[0][0].shape == (3, 6, *size)
    for fast, slow in zip(*outcomes):
        torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-10)


@both_corners
def test_in_float32_it_is_nearer_the_truth_than_the_plain_head(align_corners):
    ppm, weight = layers((1, 2, 3, 6), align_corners, channels=256, planes=64, outplanes=32)
    ppm.eval()
    x, weight = features(2, 256, 30, 23).detach(), weight.detach()
    truth = plain(ppm.double(), x, weight)
    ppm, x, weight = ppm.float(), x.float(), weight.float()
    fast, slow = ppm.convolved(x, weight), plain(ppm, x, weight)
    assert relative(fast, truth) < relative(slow, truth) < 2e-6
    torch.testing.assert_close(fast.double(), truth, rtol=0, atol=2e-6 * truth.abs().max().item())


def test_statistics_are_counted_once():
    a, weight = layers((1, 2, 3, 6))
    b, _ = layers((1, 2, 3, 6))
    x = features(2, 16, 9, 9).float()
    a.convolved(x, weight.float()), plain(b, x, weight.float())
    torch.testing.assert_close(a.state_dict(), b.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_bfloat16_is_as_near_the_truth_as_the_plain_head(layout):
    ppm, weight = layers((1, 2, 3, 6), channels=64, planes=16)
    ppm.eval()
    x = features(2, 64, 17, 15).detach().contiguous(memory_format=layout)
    truth = plain(ppm.double(), x, weight)
    ppm, x, weight = ppm.float(), x.float(), weight.float()
    with torch.autocast("cpu", torch.bfloat16):
        fast, slow = ppm.convolved(x, weight), plain(ppm, x, weight)
    assert fast.dtype == slow.dtype == torch.bfloat16
    assert relative(fast, truth) < 1.5 * relative(slow, truth)
    ppm, x, weight = ppm.bfloat16(), x.bfloat16(), weight.bfloat16()
    fast, slow = ppm.convolved(x, weight), plain(ppm, x, weight)
    assert fast.dtype == torch.bfloat16 and relative(fast, truth) < 1.5 * relative(slow, truth)


def networks(**options):
    """The same network with the fast and with the plain head."""
    torch.manual_seed(0)
    fast = PSPNet(18, classes=K, dropout=0, **options)
    slow = PSPNet(18, classes=K, dropout=0, fast_head=False, **options)
    slow.load_state_dict(fast.state_dict())
    return fast, slow


@pytest.mark.parametrize(
    "options",
    [{}, {"bins": (1, 2, 4), "zoom_factor": 2}, {"use_ppm": False}, {"size_rule": "input", "align_corners": False}],
    ids=str,
)
def test_a_network_trains_and_tests_the_same_with_and_without(options):
    fast, slow = (net.double() for net in networks(**options))
    image, label = golden_input("fast", 2, 33, 49).double(), golden_label("fast", 2, 33, 49, K)
    outcomes = []
    for net in (fast, slow):
        pred, main_loss, aux_loss = net(image, label)
        (main_loss + 0.4 * aux_loss).backward()
        outcomes.append((pred, main_loss, aux_loss, {name: p.grad for name, p in net.named_parameters()}))
    torch.testing.assert_close(*outcomes, rtol=1e-7, atol=1e-10)
    outcomes = [net.eval()(golden_input("any", 1, 40, 51).double()) for net in (fast, slow)]
    torch.testing.assert_close(*outcomes, rtol=1e-9, atol=1e-9)
    assert list(fast.state_dict()) == list(slow.state_dict())


def test_modules_are_called_only_with_the_plain_head():
    for net, expected in zip(networks(), ([], ["ppm", "cls.0"])):
        called = []
        net.ppm.register_forward_hook(lambda *_, called=called: called.append("ppm"))
        net.cls[0].register_forward_hook(lambda *_, called=called: called.append("cls.0"))
        net.eval()(golden_input("hooks", 1, 33, 33))
        assert called == expected


@pytest.mark.filterwarnings("ignore")  # that a trace is of one size, and that newer ways exist
def test_a_traced_and_an_exported_network_answer_the_same():
    net, x = networks()[0].eval(), golden_input("trace", 2, 33, 49)
    with torch.no_grad():
        expected = net(x)
        torch.testing.assert_close(torch.jit.trace(net, golden_input("example", 2, 33, 49))(x), expected)
        exported = torch.export.export(net, (golden_input("example", 2, 33, 49),)).module()
        torch.testing.assert_close(exported(x), expected)
