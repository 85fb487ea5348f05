"""`util/optim.py`: the parameter groups, and the learning rate of each parameter."""

import copy
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from util.common import Mistake
from util.optim import SGD, AdamW, build_optimizer, poly_learning_rate, set_learning_rate
from util.run import _optimizer_names, _optimizer_state


class Network(nn.Module):
    """The least that has what the rules tell apart: two backbone stages, BatchNorm in one of them, a head."""

    def __init__(self):
        super().__init__()
        self.layer0 = nn.Conv2d(3, 4, 3, bias=False)
        self.layer1 = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
        self.cls = nn.Sequential(nn.Conv2d(4, 4, 3), nn.SyncBatchNorm(4), nn.Conv2d(4, 2, 1))

    def backbone_modules(self):
        return [self.layer0, self.layer1]

    def head_modules(self):
        return [self.cls]


def settings(network, optimizer, key):
    """{name of a parameter: the value of its group}; every parameter must be in exactly one group."""
    names = {parameter: name for name, parameter in network.named_parameters()}
    pairs = [(names[parameter], group[key]) for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(name for name, _ in pairs) == sorted(names.values())
    return dict(pairs)


def test_poly_schedule_equals_the_golden_numbers():
    golden = np.load(Path(__file__).parent / "golden/semseg.npz")["poly_lr"]
    ours = [poly_learning_rate(0.01, i, 1000, power=0.9) for i in range(0, 1001, 50)]
    np.testing.assert_allclose(ours, golden, rtol=0, atol=1e-15)


def test_heads_learn_ten_times_as_fast_at_every_rate():
    optimizer = build_optimizer(Network(), base_lr=0.01, momentum=0.9, weight_decay=1e-4)
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.01, 0.01, 0.1])
    set_learning_rate(optimizer, 0.003)
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.003, 0.003, 0.03])
    assert all(g["momentum"] == 0.9 and g["weight_decay"] == 1e-4 for g in optimizer.param_groups)


def test_without_rules_every_module_is_one_group():
    """Optimizer states of checkpoints rely on it: the same groups, the parameters in the same order."""
    network = Network()
    groups = build_optimizer(network, base_lr=1.0).param_groups
    modules = [network.layer0, network.layer1, network.cls]
    assert [list(map(id, g["params"])) for g in groups] == [list(map(id, m.parameters())) for m in modules]
    assert [g["lr_factor"] for g in groups] == [1.0, 1.0, 10.0]


def test_a_module_without_parameters_keeps_its_place_among_the_groups():
    network = Network()
    network.head_modules = lambda: [nn.Identity(), network.cls]
    assert [len(g["params"]) for g in build_optimizer(network, base_lr=1.0).param_groups] == [1, 4, 0, 6]


def test_one_step_is_sgd_with_momentum_and_decay():
    network = nn.Linear(1, 1, bias=False)
    network.backbone_modules, network.head_modules = list, lambda: [network]
    nn.init.constant_(network.weight, 2.0)
    optimizer = build_optimizer(network, base_lr=0.1, head_lr_factor=10, momentum=0.9, weight_decay=0.5)
    for expected in (2.0 - 1.0 * (3.0 + 0.5 * 2.0), None):
        optimizer.zero_grad()
        (3.0 * network(torch.ones(1, 1))).sum().backward()
        optimizer.step()
        if expected is not None:
            assert network.weight.item() == pytest.approx(expected)
    velocity = 0.9 * 4.0 + (3.0 + 0.5 * -2.0)
    assert network.weight.item() == pytest.approx(-2.0 - velocity)


def test_two_steps_are_adamw_with_decay_apart_from_the_gradient():
    network = nn.Linear(1, 1, bias=False).double()
    network.backbone_modules, network.head_modules = list, lambda: [network]
    nn.init.constant_(network.weight, 2.0)
    optimizer = build_optimizer(network, kind="adamw", base_lr=0.01, head_lr_factor=10, momentum=0.9, weight_decay=0.5)
    assert [group["fused"] for group in optimizer.param_groups] == [True]
    expected, mean, square = 2.0, 0.0, 0.0
    for t, (gradient, beta) in enumerate([(3.0, 0.9), (-1.0, 0.8)], 1):
        set_learning_rate(optimizer, 0.01, beta)
        optimizer.zero_grad()
        (gradient * network(torch.ones(1, 1, dtype=torch.float64))).sum().backward()
        optimizer.step()
        mean, square = beta * mean + (1 - beta) * gradient, 0.999 * square + 0.001 * gradient**2
        step = mean / (1 - beta**t) / ((square / (1 - 0.999**t)) ** 0.5 + 1e-8)
        expected = expected * (1 - 0.1 * 0.5) - 0.1 * step
        assert network.weight.item() == pytest.approx(expected, rel=1e-12)


def test_momentum_moves_only_when_it_is_given():
    optimizer = build_optimizer(Network(), base_lr=0.01, momentum=0.95)
    set_learning_rate(optimizer, 0.02, momentum=0.85)
    assert {g["momentum"] for g in optimizer.param_groups} == {0.85}
    set_learning_rate(optimizer, 0.01)
    assert {g["momentum"] for g in optimizer.param_groups} == {0.85}


def test_without_bias_decay_no_bias_decays():
    network = Network()
    decay = settings(network, build_optimizer(network, base_lr=1.0, weight_decay=0.5, bias_decay=False), "weight_decay")
    assert len(decay) == 11
    assert all(value == (0 if name in {"layer1.0.bias", "layer1.1.bias", "cls.0.bias", "cls.1.bias", "cls.2.bias"} else 0.5)
               for name, value in decay.items())  # fmt: skip


def test_without_norm_decay_batchnorm_does_not_decay():
    network = Network()
    decay = settings(network, build_optimizer(network, base_lr=1.0, weight_decay=0.5, norm_decay=False), "weight_decay")
    assert {name for name in decay if decay[name] == 0} == {"layer1.1.weight", "layer1.1.bias", "cls.1.weight", "cls.1.bias"}
    assert {decay[name] for name in decay if decay[name]} == {0.5}
    rules = [{"name": "layer1.1.*", "weight_decay": 0.25}]
    groups = build_optimizer(network, base_lr=1.0, weight_decay=0.5, norm_decay=False, rules=rules)
    assert settings(network, groups, "weight_decay") == decay  # a rule does not undo it


def test_a_rule_gives_a_rate_relative_to_base_lr_in_heads_too():
    network = Network()
    rules = [{"name": "layer*", "lr_factor": 0.1}, {"name": "cls.2.*", "lr_factor": 3}]
    optimizer = build_optimizer(network, base_lr=0.01, rules=rules)
    set_learning_rate(optimizer, 0.02)
    rate = settings(network, optimizer, "lr")
    assert rate["layer0.weight"] == rate["layer1.1.bias"] == pytest.approx(0.002)
    assert rate["cls.2.weight"] == rate["cls.2.bias"] == pytest.approx(0.06)
    assert rate["cls.0.weight"] == rate["cls.1.weight"] == pytest.approx(0.2)
    assert set(settings(network, optimizer, "weight_decay").values()) == {1e-4}


def test_the_first_rule_that_fits_wins():
    network = Network()
    rules = [{"name": "layer1.0.weight", "weight_decay": 0.25}, {"name": "layer*", "lr_factor": 0.1, "weight_decay": 0.75}]
    optimizer = build_optimizer(network, base_lr=1.0, weight_decay=0.5, rules=rules)
    rate, decay = settings(network, optimizer, "lr"), settings(network, optimizer, "weight_decay")
    assert (rate["layer1.0.weight"], decay["layer1.0.weight"]) == (1.0, 0.25)
    assert (rate["layer1.0.bias"], decay["layer1.0.bias"]) == (0.1, 0.75)
    assert (rate["cls.0.bias"], decay["cls.0.bias"]) == (10.0, 0.5)


def test_the_recipe_of_the_catalyst_port_gives_its_rates_and_decays():
    network = Network()
    rules = [{"name": "layer*", "lr_factor": 0.1, "weight_decay": "3e-5"}]  # YAML reads 3e-5 as text
    optimizer = build_optimizer(network, base_lr=0.01, head_lr_factor=1, weight_decay=1e-4, bias_decay=False, rules=rules)
    rate, decay = settings(network, optimizer, "lr"), settings(network, optimizer, "weight_decay")
    for name in rate:
        backbone, bias = name.startswith("layer"), name.endswith("bias")
        assert rate[name] == pytest.approx(0.001 if backbone else 0.01)
        assert decay[name] == (0 if bias else 3e-5 if backbone else 1e-4)


@pytest.mark.parametrize("rule, words", [
    ({"name": "layr1*", "lr_factor": 1}, ["'layr1*'", "no parameter", "layer1.0.weight"]),
    ({"name": "*.biass", "lr_factor": 1}, ["'*.biass'", "no parameter", "layer1.0.bias"]),
    ({"name": "CLS*", "lr_factor": 1}, ["'CLS*'", "no parameter"]),
    ({"name": "layer1.*", "lr": 1}, ["unknown key 'lr'", "name, lr_factor, weight_decay"]),
    ({"name": "layer1.*", "lr_facto": 1}, ["unknown key 'lr_facto' (did you mean lr_factor?)"]),
    ({"lr_factor": 1}, ["a rule needs `name`"]),
    ({"name": "layer1.*"}, ["lr_factor or weight_decay"]),
    ({"name": "layer1.*", "lr_factor": "fast"}, ["lr_factor: expected a number", "'fast'"]),
    ({"name": "layer1.*", "weight_decay": -1}, ["weight_decay: -1.0 must be in [0, 1000]"]),
    ({"name": "layer1.*", "lr_factor": None}, ["lr_factor: expected a number", "None"]),
    ({"name": "layer1.*", "lr_factor": 1e300}, ["lr_factor: 1e+300 must be in [0, 1000]"]),
    ({"name": "layer1.*", "lr_factor": 10**400}, ["lr_factor: expected a number"]),
    ({"name": "layer0*", "lr_factor": 1}, ["nothing is left for it", "'*0.weight' has layer0.weight"]),
])  # fmt: skip
def test_a_rule_that_cannot_work_is_named(rule, words):
    with pytest.raises(Mistake) as caught:
        build_optimizer(Network(), base_lr=1.0, rules=[{"name": "*0.weight", "lr_factor": 2}, rule])
    assert all(word in str(caught.value) for word in ["param_rules: {", *words])


def test_a_parameter_that_no_group_would_hold_is_named():
    network = Network()
    network.extra = nn.Linear(1, 1)
    with pytest.raises(ValueError, match=r"2 parameters would never learn \(extra.weight, extra.bias\)"):
        build_optimizer(network, base_lr=1.0)
    network.extra.requires_grad_(False)
    assert len(build_optimizer(network, base_lr=1.0).param_groups) == 3


class OnCuda(nn.Parameter):
    """A parameter in main memory that looks like one on a GPU; CPUs have the fused kernel too."""

    is_cuda = True


def momentum_after_an_overflow(optimizer, weight):
    """The momentum after a step that a GradScaler left out and a second one with gradient 1."""
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for gradient in (torch.inf, 1.0):
        optimizer.zero_grad()
        scaler.scale((weight * gradient).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
    return optimizer.state[weight]["momentum_buffer"]


@pytest.fixture
def uninitialised_memory_is_nan():
    torch.use_deterministic_algorithms(True)  # fills what `empty` returns
    yield
    torch.use_deterministic_algorithms(False)


def test_the_fused_kernel_reads_uninitialised_momentum_after_an_overflow(uninitialised_memory_is_nan):
    """Why fp16 does without it. Where this fails, torch has repaired it, and fp16 may use the fused kernel again."""
    weight = nn.Parameter(torch.ones(4))
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9, fused=True)
    assert momentum_after_an_overflow(optimizer, weight).isnan().all()


@pytest.mark.parametrize("precision, fused", [("fp32", True), ("bf16", True), ("fp16", None)])
def test_the_kernel_is_fused_on_a_gpu_but_not_under_a_grad_scaler(precision, fused, uninitialised_memory_is_nan):
    network = nn.Linear(2, 2, bias=False)
    network.weight = OnCuda(torch.ones(2, 2))
    network.backbone_modules, network.head_modules = list, lambda: [network]
    optimizer = build_optimizer(network, base_lr=0.1, weight_decay=0.0, precision=precision)
    assert [group["fused"] for group in optimizer.param_groups] == [fused]
    optimizer.load_state_dict(
        torch.optim.SGD([network.weight], lr=1, momentum=0.9, fused=not fused).state_dict() | {"state": {}}
    )
    assert [group["fused"] for group in optimizer.param_groups] == [fused]
    if not fused:
        assert torch.equal(momentum_after_an_overflow(optimizer, network.weight), torch.ones(2, 2))


@pytest.mark.parametrize("ours, theirs", [(SGD, torch.optim.SGD), (AdamW, torch.optim.AdamW)])
def test_optimizers_are_torchs_to_the_bit_and_leave_no_graph(ours, theirs):
    networks = [nn.Linear(5, 3) for _ in range(2)]
    networks[1].load_state_dict(networks[0].state_dict())
    how = {"lr": 0.1, "weight_decay": 0.01} | ({"momentum": 0.9} if ours is SGD else {})
    optimizers = [kind(network.parameters(), **how) for kind, network in zip((theirs, ours), networks)]
    for _ in range(3):
        image = torch.randn(4, 5)
        for network, optimizer in zip(networks, optimizers):
            optimizer.zero_grad()
            network(image).square().sum().backward()
            optimizer.step()
    a, b = (optimizer.state_dict() for optimizer in optimizers)
    assert a["param_groups"] == b["param_groups"] and a["state"].keys() == b["state"].keys() == {0, 1}
    assert all(torch.equal(a["state"][i][key], value) for i in (0, 1) for key, value in b["state"][i].items())
    assert torch.equal(networks[0].weight, networks[1].weight) and networks[1].weight.is_leaf
    optimizers[1].load_state_dict(a)
    optimizers[1].zero_grad()
    assert networks[1].weight.grad is None


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_a_checkpoint_brings_its_momenta_and_none_of_its_settings(kind):
    network = Network()
    ours = build_optimizer(network, base_lr=0.1, momentum=0.9, weight_decay=0.5, kind=kind)
    theirs = build_optimizer(network, base_lr=0.2, head_lr_factor=3, momentum=0.8, weight_decay=0.25, kind=kind)
    network.cls(network.layer1(network.layer0(torch.rand(2, 3, 9, 9)))).sum().backward()
    theirs.step()
    before = [{**group} for group in ours.param_groups]
    ours.load_state_dict(theirs.state_dict())
    assert ours.param_groups == before and len(ours.state) == 11


@pytest.mark.parametrize("way", [1, -1])
def test_momenta_of_another_memory_format_stay_with_their_weights(way):
    """A fused kernel goes through memory, so AdamW would take those of other weights."""
    torch.manual_seed(0)
    formats = (torch.contiguous_format, torch.channels_last)[::way]
    start, gradients = Network(), [[torch.randn_like(p) for p in Network().parameters()] for _ in range(3)]
    ends = []
    for before, after in ((formats[0], formats[0]), formats):
        network = copy.deepcopy(start).to(memory_format=before)
        optimizer = build_optimizer(network, base_lr=0.1, kind="adamw")
        for i, gradient in enumerate(gradients):
            if i == 1:  # resumed
                state, network = optimizer.state_dict(), copy.deepcopy(network).to(memory_format=after)
                optimizer = build_optimizer(network, base_lr=0.1, kind="adamw")
                optimizer.load_state_dict(state)
            for p, g in zip(network.parameters(), gradient):
                p.grad = torch.empty_like(p).copy_(g)
            optimizer.step()
        ends.append([p.detach() for p in network.parameters()])
    torch.testing.assert_close(*ends, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_the_state_of_a_checkpoint_is_found_by_name_in_whatever_groups(kind):
    """The rules give the two parameters of BatchNorm, of one shape, the other order."""
    network, images = Network(), torch.rand(2, 3, 9, 9)
    build = partial(build_optimizer, network, base_lr=0.1, kind=kind)
    first = build(rules=[{"name": "layer1.1.weight", "lr_factor": 2}])
    network.cls(network.layer1(network.layer0(images))).square().sum().backward()
    first.step()
    run = SimpleNamespace(network=network, optimizer=first)
    content = {"optimizer": first.state_dict(), "optimizer_names": _optimizer_names(run)}
    run.optimizer = build(rules=[{"name": "layer1.1.bias", "lr_factor": 2}], norm_decay=False)
    run.optimizer.load_state_dict(_optimizer_state(run, content))
    assert content["optimizer_names"] != _optimizer_names(run)
    buffer = "momentum_buffer" if kind == "sgd" else "exp_avg"
    for parameter in network.parameters():
        assert torch.equal(run.optimizer.state[parameter][buffer], first.state[parameter][buffer])
    assert settings(network, run.optimizer, "lr_factor")["layer1.1.bias"] == 2


def test_an_unknown_optimizer_is_refused():
    with pytest.raises(Mistake, match="optimizer: 'rmsprop' is unknown; choose sgd or adamw"):
        build_optimizer(Network(), base_lr=0.1, kind="rmsprop")
