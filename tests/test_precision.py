"""Half precision, recomputed stages, folded BatchNorm, channels_last: each against the plain form."""

import copy
import functools
import json
from contextlib import nullcontext

import pytest
import torch
from golden_rules import fill_, golden_input, golden_label
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from model import build_model
from model.fold import fold_batchnorm, for_test
from model.psanet import PSANet
from model.pspnet import PSPNet
from tool import train
from util import precision
from util.checkpoint import load_checkpoint
from util.config import ROOT
from util.dataset import SemData
from util.distributed import CpuSyncBatchNorm
from util.inference import predict
from util.optim import build_optimizer
from util.precision import Precision
from util.run import Run
from util.transform import MEAN, STD

pytestmark = pytest.mark.usefixtures("narrow")
CPU = torch.device("cpu")
CONFIG = str(ROOT / "config/toy/toy_pspnet18.yaml")
STAGES = ("layer0", "layer1", "layer2", "layer3", "layer4")


def psp(layers=18, **changes):
    return fill_(PSPNet(layers, classes=5, dropout=0, **changes))


def psa(layers=18, **changes):
    return fill_(PSANet(layers, classes=5, dropout=0, mask_h=5, mask_w=5, **changes))


def batch(n=2, h=33, w=49):
    return golden_input("precision", n, h, w), golden_label("precision", n, h, w, 5)


def step(network, precision=None, **changes):
    """Losses, and gradients by name, of one training step."""
    image, label = batch(**changes)
    precision = precision or Precision("fp32", CPU)
    with precision.autocast():
        _, main_loss, aux_loss = network.train()(image, label)
    (main_loss + 0.4 * aux_loss).backward()
    return torch.stack([main_loss, aux_loss]).detach(), {name: p.grad for name, p in network.named_parameters()}


def similarity(a, b):
    """Cosine of the angle between two tensors."""
    return torch.cosine_similarity(a.flatten().double(), b.flatten().double(), 0)


@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_layers_compute_in_half_precision_and_losses_in_float32(name):
    network, precision, seen = psp(), Precision(name, CPU), []
    network.aux[0].register_forward_hook(lambda module, x, y: seen.append(y.dtype))
    losses, gradients = step(network, precision, h=97, w=97)
    exact, exact_gradients = step(psp(), h=97, w=97)
    assert seen == [precision.dtype]
    assert losses.dtype == torch.float32 and torch.allclose(losses, exact, rtol=2e-2)
    assert not torch.equal(losses, exact)
    assert all(g.dtype == torch.float32 for g in gradients.values())
    assert similarity(gradients["cls.4.weight"], exact_gradients["cls.4.weight"]) > 0.999


def test_statistics_over_processes_are_float32_in_half_precision():
    x = (torch.randn(2, 3, 40, 40) + 5).bfloat16()
    ours, theirs = CpuSyncBatchNorm(3), nn.BatchNorm2d(3)
    a, b = ours(x), theirs(x)
    assert a.dtype == torch.bfloat16 and (a.float() - b.float()).abs().max() < 0.02
    assert torch.allclose(ours.running_mean, theirs.running_mean) and torch.allclose(ours.running_var, theirs.running_var)


def test_fp32_changes_nothing():
    precision, network = Precision("fp32", CPU), nn.Linear(3, 2)
    x = torch.randn(4, 3)
    with precision.autocast():
        y = network(x)
    assert torch.equal(y, network(x)) and precision.state_dict() == {}
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    before = network.bias.detach().clone()
    precision.backward(y.sum())
    precision.step(optimizer)
    assert torch.equal(network.bias, before - 4)


def test_fp16_keeps_gradients_that_would_vanish():
    x = torch.full((1, 8), 1e-4)
    found = {}
    for scaled in (True, False):
        layer, precision = nn.Linear(8, 8, bias=False), Precision("fp16", CPU)
        optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
        nn.init.zeros_(layer.weight)
        with precision.autocast():
            loss = layer(x).float().sum() * 1e-5
        precision.backward(loss) if scaled else loss.backward()
        precision.step(optimizer) if scaled else optimizer.step()
        found[scaled] = layer.weight.detach()
    assert torch.allclose(found[True], torch.full((8, 8), -1e-9), rtol=1e-2, atol=0)
    assert not found[False].any()


def test_fp16_leaves_out_a_step_that_overflows_and_halves_its_factor():
    layer, precision = nn.Linear(2, 1), Precision("fp16", CPU)
    before, factor = copy.deepcopy(layer.state_dict()), precision.state_dict()["scale"]
    precision.backward(layer(torch.full((1, 2), 1e38)).sum())
    precision.step(torch.optim.SGD(layer.parameters(), lr=1.0))
    assert all(torch.equal(layer.state_dict()[k], before[k]) for k in before)
    assert precision.state_dict()["scale"] == factor / 2


def test_a_run_goes_on_with_its_factor_and_starts_one_where_it_had_none():
    old, new = Precision("fp16", CPU), Precision("fp16", CPU)
    layer = nn.Linear(2, 1)
    for _ in range(3):
        old.backward(layer(torch.full((1, 2), 1e38)).sum())
        old.step(torch.optim.SGD(layer.parameters(), lr=1.0))
    new.load_state_dict(old.state_dict())
    assert new.state_dict() == old.state_dict() and new.state_dict()["scale"] == 65536 / 8
    fresh = Precision("fp16", CPU)
    fresh.load_state_dict({})  # of a run in fp32
    assert fresh.state_dict()["scale"] == 65536
    Precision("bf16", CPU).load_state_dict(old.state_dict())


def test_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="precision: 'half' is unknown; choose one of fp32, bf16, fp16, auto"):
        Precision("half", CPU)


X86, ARM = "processor\t: 0\nflags\t\t: fpu avx2 {}\nbugs\t\t: bf16\n", "processor\t: 0\nFeatures\t: fp asimd {}\n"


@pytest.mark.parametrize("cpu, name", [
    (X86.format("avx512f avx512_bf16"), "bf16"), (X86.format("amx_bf16 amx_tile"), "bf16"), (ARM.format("bf16"), "bf16"),
    (X86.format("avx512f avx512_vnni"), "fp32"), (ARM.format("svebf16x"), "fp32"), ("", "fp32"), (None, "fp32"),
])  # fmt: skip
def test_auto_is_bf16_only_on_cpus_with_instructions_for_it(cpu, name, tmp_path, monkeypatch):
    """Among those without are the ones with AVX512, for which torch says that it supports bf16: it emulates it."""
    (tmp_path / "cpuinfo").write_text(cpu) if cpu is not None else None
    monkeypatch.setattr(precision, "Path", lambda path: tmp_path / "cpuinfo" if path == "/proc/cpuinfo" else 1 / 0)
    assert precision.native_precision("cpu") == Precision("auto", CPU).name == name
    assert Precision("auto", CPU).dtype == precision.DTYPES[name] and Precision("auto", CPU).label == f"{name} (auto)"
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert precision.native_precision("cpu") == "fp32"


@pytest.mark.parametrize("capability, name", [((7, 5), "fp32"), ((8, 0), "bf16"), ((12, 0), "bf16")])
def test_auto_is_bf16_on_gpus_of_compute_capability_8_and_up(capability, name, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability if device.index == 1 else None)
    assert precision.native_precision("cuda:1") == name


@pytest.mark.parametrize("others, name", [(["bf16", "bf16"], "bf16"), (["bf16", "fp32"], "fp32")])
def test_auto_is_bf16_only_if_every_process_computes_it_natively(others, name, monkeypatch):
    monkeypatch.setattr(precision, "native_precision", lambda _: others[0])
    monkeypatch.setattr(precision.distributed, "gather", lambda _: others)
    assert precision.shared_precision("auto", CPU).label == f"{name} (auto)"
    assert precision.shared_precision("fp16", CPU).label == "fp16"


# ---- stages computed twice ----


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("make, layers, stages", [(psp, 18, STAGES), (psp, 50, ("layer1", "layer3")), (psa, 18, STAGES[1:])])
def test_recomputed_stages_change_no_bit(make, layers, stages, precision):
    plain, recomputing = make(layers), make(layers, checkpoint_layers=stages)
    for _ in range(2):  # twice: running statistics that were counted double would show
        expected, got = (step(network, Precision(precision, CPU)) for network in (plain, recomputing))
        assert torch.equal(got[0], expected[0])
        assert all(torch.equal(a, b) for a, b in zip(got[1].values(), expected[1].values()))
    assert plain.state_dict().keys() == recomputing.state_dict().keys()
    for name, tensor in plain.state_dict().items():
        assert torch.equal(recomputing.state_dict()[name], tensor), name
    assert recomputing.layer1[0].bn1.num_batches_tracked == 2


def test_recomputed_stages_keep_little_in_memory():
    def kept(**changes):
        network, seen = psp(50, use_ppm=False, **changes).train(), {}
        weights = {p.untyped_storage().data_ptr() for p in network.parameters()}

        def pack(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                seen[storage.data_ptr()] = storage
            return tensor

        with saved_tensors_hooks(pack, lambda tensor: tensor):
            network(*batch(2, 65, 65))
        return sum(storage.nbytes() for storage in seen.values())

    every, some, none = (kept(checkpoint_layers=names) for names in (STAGES, ("layer3",), ()))
    assert every < 0.35 * none < some < none


def test_recomputing_is_for_training_alone():
    network = psp(checkpoint_layers=STAGES).eval()
    network.layer1[0].register_forward_hook(lambda *_: None)
    image, _ = batch()
    with torch.inference_mode():
        assert torch.equal(network(image), psp().eval()(image))


# ---- BatchNorm in the convolutions ----


@pytest.mark.parametrize("stem", ["deep", "plain"])
@pytest.mark.parametrize("make, changes", [(psp, {}), (psp, {"fast_head": False}), (psp, {"use_ppm": False}), (psa, {})])
@pytest.mark.parametrize("layers", [18, 50])
def test_folded_network_gives_the_same_logits(make, changes, layers, stem):
    network = make(layers, stem=stem, **changes).eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    folded = fold_batchnorm(network)
    image, _ = batch()
    with torch.inference_mode():
        assert (folded(image) - network(image)).abs().max() < 1e-5
    left = [name for name, m in folded.named_modules() if isinstance(m, nn.BatchNorm2d)]
    assert not left
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_network_in_training_is_not_folded():
    with pytest.raises(ValueError, match="call network.eval"):
        fold_batchnorm(psp().train())


def test_network_for_test_is_folded_in_its_format_and_may_be_compiled(monkeypatch):
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))  # the tracing without g++
    network, (image, _) = psp().train(), batch()
    folded, compiled = (for_test(network, CPU, channels_last=True, compile=flag) for flag in (False, True))
    with torch.inference_mode():
        expected = network.eval()(image)
        assert torch.allclose(folded(image), expected, atol=1e-5) and torch.allclose(compiled(image), expected, atol=1e-5)
    assert not folded.training and not compiled.training
    assert folded.layer1[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.layer4.modules())


# ---- memory format, optimizer ----


@pytest.mark.parametrize("make", [psp, psa])
def test_channels_last_gives_the_same_numbers(make):
    last = make().to(memory_format=torch.channels_last)
    (losses, gradients), (expected, expected_gradients) = step(last), step(make())
    assert last.layer1[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(losses, expected, rtol=1e-5)
    assert all(similarity(gradients[name], expected_gradients[name]) > 0.9999 for name in gradients)


def test_a_checkpoint_brings_no_kernel_of_another_device():
    network = psp()
    optimizer = build_optimizer(network, base_lr=0.1)
    state = optimizer.state_dict()
    for group in state["param_groups"]:
        group["fused"] = True  # as on a GPU
    optimizer.load_state_dict(state)
    assert all(not group["fused"] for group in optimizer.param_groups)


# ---- programs ----


def run(options, *more):
    assert train.main(["--config", CONFIG, *options, "evaluate", "False", *map(str, more)]) == 0


def test_an_fp16_run_that_is_resumed_ends_as_one_that_is_not(toy_options, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "exp/model"
    monkeypatch.setattr(Precision, "autocast", lambda _: nullcontext())  # CPUs take half a minute; this is about the factor
    run(toy_options, "precision", "fp16")
    whole, first = (load_checkpoint(folder / f"train_epoch_{i}.pth") for i in (2, 1))
    states = [Precision("fp16", CPU).state_dict(), first["precision"], whole["precision"]]
    assert len({tuple(state.items()) for state in states}) == 3  # a factor that started anew would show
    run(toy_options, "precision", "fp16", "resume", folder / "train_epoch_1.pth", "save_path", tmp_path / "again")
    again = load_checkpoint(tmp_path / "again/train_epoch_2.pth")
    assert again["precision"] == whole["precision"]
    assert all(torch.equal(again["state_dict"][name], tensor) for name, tensor in whole["state_dict"].items())
    capsys.readouterr()
    run(toy_options, "resume", folder / "train_epoch_1.pth", "save_path", tmp_path / "changed")
    assert "Resuming with a changed precision: fp16 -> fp32" in capsys.readouterr().out


@pytest.mark.parametrize("switches", [{"channels_last": True}, {"checkpoint_layers": "[layer1, layer2, layer3, layer4]"},
                                      {"compile": True}])  # fmt: skip
def test_switches_of_speed_leave_the_run_what_it_is(toy_options, tmp_path, monkeypatch, switches):
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))  # the tracing without g++
    toy_options += ["epochs", "1", "base_lr", "0.001", "evaluate", "False"]
    run(toy_options)
    run(toy_options, *(word for switch in switches.items() for word in switch), "save_path", tmp_path / "switched")
    folders = tmp_path / "exp/model", tmp_path / "switched"
    plain, switched = (load_checkpoint(folder / "train_epoch_1.pth")["state_dict"] for folder in folders)
    assert plain.keys() == switched.keys()
    assert plain["layer1.0.bn1.num_batches_tracked"] == switched["layer1.0.bn1.num_batches_tracked"] == 3
    lines = [map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()[:3]) for folder in folders]
    (first, *expected), (got, *later) = ([line["loss_train_batch"] for line in found] for found in lines)
    assert got == pytest.approx(first, rel=1e-6) and later == pytest.approx(expected, rel=1e-3)


def test_bf16_sees_what_fp32_sees_after_training(toy, toy_options, full_size, tmp_path):  # a narrow network is less sure
    run(toy_options, "epochs", 8, "save_freq", 8)
    cfg = train.load_config(CONFIG, toy_options)
    network = build_model(cfg)
    network.load_state_dict(load_checkpoint(tmp_path / "exp/model/train_epoch_8.pth")["state_dict"])
    how = {"classes": 9, "base_size": None, "crop_h": 33, "crop_w": 33, "scales": (1.0,), "mean": MEAN, "std": STD}
    data, same, seen = SemData("val", toy, toy / "list/val.txt"), 0, set()
    fast = for_test(network, CPU, channels_last=True)
    for i in range(len(data)):
        image, _ = data.read(i)
        expected = predict(network.eval(), image, **how)
        with Precision("bf16", CPU).autocast():
            same += (predict(fast, image, **how) == expected).mean() / len(data)
        seen |= set(expected.flatten().tolist())
    assert same >= 0.99 and len(seen) >= 3


def test_an_update_never_waits_for_the_device(monkeypatch):
    """A tensor on the meta device has no values: whatever asks for one raises."""
    device = torch.device("meta")
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # which knows no such device
    cfg = train.load_config(CONFIG, ["accumulate_steps", "2"])
    network = build_model(cfg).to(device).train()
    optimizer = build_optimizer(network, base_lr=0.1)
    image, label = torch.empty(4, 3, 33, 33, device=device), torch.empty(4, 33, 33, dtype=torch.int64, device=device)
    run = Run(cfg, device, None, net=network, network=network, optimizer=optimizer, precision=Precision("fp32", device))
    for _ in range(2):
        losses, areas = train.update(run, image, label)
    assert losses.shape == (3,) and areas.shape == (3, cfg.classes) and losses.device == device
