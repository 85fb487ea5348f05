import pytest
import torch
import torch.nn.functional as F
from golden_rules import golden_input, golden_label
from torch import nn

from model import build_model
from model.base import SceneParser
from model.loss import CrossEntropy
from model.psanet import PSANet
from model.pspnet import PSPNet
from model.resnet import ResNet, feature_channels
from util.config import Config

pytestmark = pytest.mark.usefixtures("narrow")
K, H, W = 5, 33, 49  # both sides are of the form 16n+1, which PSANet with shrink_factor 2 needs


def pspnet(**options):
    torch.manual_seed(0)
    return PSPNet(**({"layers": 18, "classes": K, "dropout": 0} | options))


def psanet(**options):
    torch.manual_seed(0)
    return PSANet(**({"layers": 18, "classes": K, "dropout": 0, "mask_h": 5, "mask_w": 7} | options))


every_network = pytest.mark.parametrize("make", [pspnet, psanet])


@pytest.fixture
def batch():
    return golden_input("frame", 2, H, W), golden_label("frame", 2, H, W, K)


@every_network
@pytest.mark.parametrize("zoom", [1, 2, 4, 8])
def test_three_forms_of_a_network(make, zoom, batch):
    net, (image, label) = make(zoom_factor=zoom), batch
    side = ((H - 1) // 8 * zoom + 1, (W - 1) // 8 * zoom + 1)
    pred, main_loss, aux_loss = net(image, label)
    assert pred.shape == (2, *side) == net.label_of_logits(label).shape and pred.dtype == torch.int64
    assert main_loss.shape == aux_loss.shape == () and main_loss.requires_grad and aux_loss.requires_grad
    logits, aux_logits = net(image)
    assert logits.shape == aux_logits.shape == (2, K, *side)
    assert net.eval()(image).shape == (2, K, *side)


@every_network
@pytest.mark.parametrize(
    "options",
    [{}, {"zoom_factor": 2}, {"size_rule": "input", "align_corners": False}, {"loss_mean": "all", "ignore_label": 4}],
    ids=str,
)
def test_loss_inside_equals_loss_outside_with_the_same_gradients(make, options, batch):
    net = make(**options).double()
    image, label = batch[0].double(), batch[1].where(batch[1] != 255, options.get("ignore_label", 255))

    pred, main_loss, aux_loss = net(image, label)
    (main_loss + 0.4 * aux_loss).backward()
    inside = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    step = 8 // options.get("zoom_factor", 8)
    target = label[:, ::step, ::step]
    logits, aux_logits = net(image)
    ignore = options.get("ignore_label", 255)
    losses = [F.cross_entropy(x, target, ignore_index=ignore, reduction="sum") for x in (logits, aux_logits)]
    n = target.numel() if "loss_mean" in options else (target != ignore).sum()
    assert net.valid_pixels(label) == n
    ((losses[0] + 0.4 * losses[1]) / n).backward()

    torch.testing.assert_close((main_loss, aux_loss), (losses[0] / n, losses[1] / n))
    assert torch.equal(pred, logits.argmax(1))
    torch.testing.assert_close(inside, [p.grad for p in net.parameters()])


@every_network
def test_a_criterion_of_pytorch_gives_what_ours_gives(make, batch):
    ours, theirs = make(), make(criterion=nn.CrossEntropyLoss(ignore_index=255))
    torch.testing.assert_close(ours(*batch), theirs(*batch))
    assert ours.valid_pixels(batch[1]) == theirs.valid_pixels(batch[1])
    assert list(ours.state_dict()) == list(theirs.state_dict())


def test_valid_pixels_of_a_weighted_criterion_are_the_weights_of_the_pixels(batch):
    weight = torch.tensor([1.0, 2.0, 0.5, 0.0, 4.0])
    net = pspnet(criterion=CrossEntropy(255, weight))
    label = batch[1]
    torch.testing.assert_close(net.valid_pixels(label), weight[label[label != 255]].sum())


@every_network
@pytest.mark.parametrize("zoom", [1, 4, 8])
def test_any_size_at_test_is_padded_with_the_mean_and_cut_back(make, zoom):
    net, step, sizes = make(zoom_factor=zoom).eval(), 8 // zoom, ((40, 50), (32, 33), (1, 7))
    grid = {pspnet: ((41, 57), (33, 33), (1, 9)), psanet: ((49, 65), (33, 33), (1, 17))}[make]
    with torch.no_grad():
        for (h, w), (grid_h, grid_w) in zip(sizes, grid):
            image, padded = golden_input("any", 1, h, w), torch.zeros(1, 3, grid_h, grid_w)
            padded[:, :, :h, :w] = image
            logits, expected = net(image), net(padded)
            assert logits.shape == (1, K, -(-h // step), -(-w // step))
            expected = expected[..., : logits.shape[2], : logits.shape[3]]
            torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)


@every_network
def test_size_rule_input_allows_any_size_and_gives_logits_of_that_size(make):
    net = make(size_rule="input", align_corners=False)
    for h, w in ((40, 51), (64, 38)):
        image, label = golden_input("any", 2, h, w), golden_label("any", 2, h, w, K)
        assert net.train()(image, label)[0].shape == (2, h, w)
        assert net(image)[1].shape == (2, K, h, w)
        assert net.eval()(image).shape == (2, K, h, w)


def test_a_wrong_training_size_is_named_with_the_nearest_right_ones():
    with pytest.raises(ValueError, match=r"40 x 33 .*8n\+1, not height 40 \(the nearest: 33 and 41\); .*train_h"):
        pspnet()(torch.zeros(2, 3, 40, 33))
    with pytest.raises(ValueError, match=r"16n\+1, not height 41 .*33 and 49\) and width 57 .*49 and 65"):
        psanet()(torch.zeros(2, 3, 41, 57))


def test_a_label_of_another_size_is_refused(batch):
    image, label = batch
    with pytest.raises(ValueError, match=r"\(2, 33, 48\).*expected \(2, 33, 49\)$"):
        pspnet()(image, label[:, :, :-1])
    with pytest.raises(ValueError, match=r"expected \(2, 33, 49\) or \(2, 5, 7\)$"):
        pspnet(zoom_factor=1)(image, label[:, :9, :13])
    with pytest.raises(ValueError, match=r"label \(1, 5, 7\)"):
        pspnet(zoom_factor=1)(image, label[:1, ::8, ::8])


@every_network
@pytest.mark.parametrize("zoom", [1, 2, 4, 8])
def test_a_label_reduced_outside_the_network_gives_the_same_losses(make, zoom, batch):
    net, (image, label) = make(zoom_factor=zoom), batch
    size = [(side - 1) // 8 * zoom + 1 for side in (H, W)]
    reduced = F.interpolate(label[:, None].float(), size, mode="bilinear", align_corners=True)[:, 0].long()  # as semseg does
    torch.testing.assert_close(net(image, label), net(image, reduced), rtol=0, atol=0)
    assert torch.equal(net.label_of_logits(label, image), net.label_of_logits(reduced, image))


@every_network
def test_a_batch_without_a_valid_pixel_has_loss_and_gradients_zero(make, batch):
    net, (image, label) = make(), batch
    _, main_loss, aux_loss = net(image, torch.full_like(label, 255))
    (main_loss + 0.4 * aux_loss).backward()
    assert main_loss == 0 and aux_loss == 0 and net.valid_pixels(torch.full_like(label, 255)) == 0
    assert all((p.grad == 0).all() for p in net.parameters())


@pytest.mark.parametrize("make, options", [(psanet, {}), (pspnet, {"bins": (2, 3, 6)})])
def test_a_batch_of_one_image_trains_unless_it_is_averaged_to_one_value(make, options, batch):
    net = make(**options)
    pred, main_loss, aux_loss = net(batch[0][:1], batch[1][:1])
    (main_loss + aux_loss).backward()
    assert torch.isfinite(main_loss) and all(torch.isfinite(p.grad).all() for p in net.parameters())


@every_network
def test_the_two_parameter_groups_are_the_whole_network(make):
    net = make()
    groups = [p for m in net.backbone_modules() + net.head_modules() for p in m.parameters()]
    assert [id(p) for p in groups] == [id(p) for p in net.parameters()]
    backbone = sum(p.numel() for m in net.backbone_modules() for p in m.parameters())
    assert backbone == sum(p.numel() for p in ResNet(18).parameters())


@every_network
def test_without_its_context_module_the_head_sees_the_features_of_layer4(make, batch):
    net = make(**{"use_ppm" if make is pspnet else "use_psa": False})
    assert net.cls[0].in_channels == feature_channels(18) == 64 and not net.context_names
    assert net.eval()(batch[0]).shape == (2, K, H, W)


def test_a_context_module_of_ones_own_is_all_a_new_network_adds(batch):
    class GlobalMean(nn.Module):
        stride, out_channels = 1, 128

        def forward(self, x):
            return torch.cat([x, x.mean((2, 3), keepdim=True).expand_as(x)], 1)

    net = SceneParser(18, 0.1, K, 8, context={"mean": GlobalMean()})
    assert net(*batch)[0].shape == (2, H, W)
    assert net.cls[0].in_channels == 2 * feature_channels(18) == 128


@every_network
def test_logits_and_losses_are_float32_under_bfloat16_autocast(make, batch):
    net = make()
    with torch.autocast("cpu", torch.bfloat16):
        _, main_loss, aux_loss = net(*batch)
        assert main_loss.dtype == aux_loss.dtype == torch.float32
        assert net.eval()(batch[0]).dtype == torch.float32
    (main_loss + aux_loss).backward()


def test_impossible_switches_are_named():
    with pytest.raises(ValueError, match="zoom_factor: 3 .*1, 2, 4, 8"):
        pspnet(zoom_factor=3)
    with pytest.raises(ValueError, match="size_rule: 'exact' .*grid or input"):
        pspnet(size_rule="exact")
    for layers, name in (("layer4", "'l'"), (["layer5"], "'layer5'")):
        with pytest.raises(ValueError, match=f"checkpoint_layers: {name} is unknown; give a list of layer0, layer1"):
            PSPNet(18, classes=3, checkpoint_layers=layers)
    with pytest.raises(ValueError, match="zoom_factor: 4 needs size_rule grid"):
        pspnet(zoom_factor=4, size_rule="input")
    with pytest.raises(ValueError, match="pretrained: give the path"):
        pspnet(pretrained=True)


def test_pretrained_fills_the_backbone_and_leaves_the_heads_random(tmp_path):
    torch.save(ResNet(18).state_dict(), tmp_path / "resnet18.pth")
    net = pspnet(pretrained=tmp_path / "resnet18.pth")
    given, plain = torch.load(tmp_path / "resnet18.pth"), pspnet().state_dict()
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, given.get(name, plain[name])), name


def config(**changes):
    keys = {"arch": "psa", "layers": 18, "classes": K, "dropout": 0.0, "train_h": H, "train_w": W}
    return Config(**{"data_root": "", "save_path": "", "path": ""} | keys | changes)


def test_build_model_follows_the_config():
    net = build_model(config(arch="psp", stem="deep", zoom_factor=4, ignore_label=7, loss_mean="all"))
    assert isinstance(net, PSPNet) and net.zoom_factor == 4
    assert (net.criterion.ignore_label, net.criterion.mean) == (7, "all")
    net = build_model(config(psa_type=1, mask_h=3, mask_w=5, normalization_factor=None))
    assert isinstance(net, PSANet) and (net.psa.psa_type, net.psa.mask_h, net.psa.mask_w) == (1, 3, 5)
    assert net.psa.scale == 1 / 15
    with pytest.raises(ValueError, match="arch: 'unet' .*psp or psa"):
        build_model(config(arch="unet"))


def test_an_empty_mask_covers_everything_in_a_training_image(batch):
    net = build_model(config())  # features of 5 x 7, shrunk to 3 x 4
    assert (net.psa.mask_h, net.psa.mask_w) == (5, 7)
    net = build_model(config(compact=True))
    assert (net.psa.mask_h, net.psa.mask_w) == (3, 4)
    assert net(*batch)[0].shape == (2, H, W)
