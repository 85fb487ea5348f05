"""The paths of a GPU on fake CUDA tensors, which have shape, dtype and device but no memory and exist without a GPU. They raise
where one meets a CPU tensor, or where the host would read a number from the device.

What fake tensors cannot express is replaced here:
- Module.to changes tensors in place, so `to` replaces them;
- autograd's engine asks the driver for streams, so `backward` walks the graph in Python and calls the same nodes;
- the fused kernel of SGD has no fake form, so only the devices of what it is given are checked;
- fp16 reads on the host whether a gradient overflowed, so the GradScaler's test of it always answers no;
- `predict`, `validate` and `save` end by copying to the host: tested is what comes before, `predict_probability` and counts.
"""

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

from model import build_criterion, build_model
from model.fold import fold_batchnorm
from model.psanet import _cached_mask_index
from tool import train
from util.config import ROOT, load_config
from util.inference import predict_probability
from util.metric import confusion_matrix, intersectionAndUnionGPU
from util.optim import build_optimizer
from util.precision import Precision
from util.run import Run
from util.transform import MEAN, STD

pytestmark = pytest.mark.usefixtures("one_block")
GraphExecGroup = getattr(torch.utils.checkpoint, "GraphExecGroup", None)
if GraphExecGroup is None:
    pytest.skip(
        f"torch {torch.__version__} is too old to walk a graph of fake CUDA tensors (2.8 crashes)", allow_module_level=True
    )
CUDA = torch.device("cuda:0")
STAGES = "[layer0, layer1, layer2, layer3, layer4]"
ARCHES = {
    "psp": {},
    "psa": {"arch": "psa"},
    "compact": {"arch": "psa", "compact": True, "mask_h": 3, "mask_w": 3},
    "mmseg": {"size_rule": "input", "align_corners": False, "stem": "deep32", "contract_dilation": True},
    "smp_pspnet": {"arch": "smp_pspnet"},
}


def backward(loss, gradient=None):
    """Tensor.backward without streams: calls each node of the graph after all that lead to it."""
    todo, waiting, seen = [loss.grad_fn], {}, set()
    while todo:  # count the edges into each node
        node = todo.pop()
        for after, _ in node.next_functions if node not in seen else ():
            if after is not None:
                waiting[after] = waiting.get(after, 0) + 1
                todo.append(after)
        seen.add(node)
    group = GraphExecGroup()  # recomputed stages: once in this backward pass
    gradients, ready = {loss.grad_fn: {0: torch.ones_like(loss)}}, [loss.grad_fn]
    while ready:
        node = ready.pop()
        inputs = gradients.pop(node, {})
        call = node.apply if hasattr(node, "apply") else node
        with torch.no_grad(), group:
            found = call(*(inputs.get(i) for i in range(max(inputs, default=-1) + 1))) if inputs else ()
        found = found if isinstance(found, tuple) else (found,)
        for i, (after, place) in enumerate(node.next_functions):
            if after is None:
                continue
            if i < len(found) and found[i] is not None:
                into = gradients.setdefault(after, {})
                into[place] = into[place] + found[i] if place in into else found[i]
            waiting[after] -= 1
            if not waiting[after]:
                ready.append(after)


def to(module, device, memory_format=torch.preserve_format):
    """Module.to, with new parameters and buffers in place of changed ones."""
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, old in tensors.items():
                if old is None:
                    continue
                new = old.detach().to(device, memory_format=memory_format if old.dim() == 4 else torch.preserve_format)
                tensors[name] = torch.nn.Parameter(new) if tensors is part._parameters else new
    return module


def fused_sgd(*lists, **_):
    assert {tensor.device for tensors in lists for tensor in tensors} == {CUDA}


@pytest.fixture(autouse=True)
def fake_cuda(monkeypatch, narrow):
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)
    monkeypatch.setattr(torch.amp.GradScaler, "_maybe_opt_step", lambda _, optimizer, *__, **___: optimizer.step())
    monkeypatch.setattr(torch.Tensor, "backward", backward)
    monkeypatch.setattr(torch.nn.Module, "to", to)
    monkeypatch.setattr(torch, "_fused_sgd_", fused_sgd)
    cached = _cached_mask_index.cache_info().currsize
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield
    assert _cached_mask_index.cache_info().currsize == cached  # a fake index would break every later PSANet


def config(**changes):
    options = {"train_h": 33, "train_w": 33, "accumulate_steps": 1} | changes
    return load_config(ROOT / "config/toy/toy_pspnet18.yaml", [str(word) for option in options.items() for word in option])


def network_of(cfg, class_weights=None):
    network = build_model(cfg, class_weights)
    return network.to(CUDA, memory_format=torch.channels_last if cfg.channels_last else torch.preserve_format)


def batch(cfg, n=4):
    label = torch.zeros(n, cfg.train_h, cfg.train_w, dtype=torch.int64, device=CUDA)
    return torch.zeros(n, 3, cfg.train_h, cfg.train_w, device=CUDA), label


def test_the_walk_through_the_graph_gives_the_gradients_of_the_engine():
    cfg = config(checkpoint_layers="[layer3]", dropout=0)
    with unset_fake_temporarily():
        network, image = build_model(cfg).train(), torch.randn(4, 3, 33, 33)
        found = []
        for differentiate in (torch.autograd.backward, backward):
            network.zero_grad()
            differentiate(sum(network(image, torch.ones(4, 33, 33, dtype=torch.int64))[1:]))
            found.append([p.grad for p in network.parameters()])
        assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(*found))


def test_a_cpu_tensor_that_meets_a_cuda_one_raises():
    cfg = config()
    network, (image, label) = network_of(cfg).train(), batch(cfg)
    for pair in ((image.cpu(), label), (image, label.cpu())):
        with pytest.raises(RuntimeError, match="device"):
            network(*pair)
    network.criterion.weight = torch.ones(cfg.classes)
    with pytest.raises(RuntimeError, match="device"):
        network(image, label)


STEPS = [
    {},
    {"precision": "bf16", "channels_last": True, "checkpoint_layers": STAGES},
    {"precision": "fp16", "accumulate_steps": 2, "checkpoint_layers": "[layer3]"},
    {"loss": "ohem", "precision": "bf16", "zoom_factor": 4},
    {"loss": "dice", "precision": "fp16", "zoom_factor": 2},
    {"zoom_factor": 1, "precision": "bf16", "accumulate_steps": 2},
    {"loss": "ohem", "criterion_outside": True},
    {"criterion_outside": True, "zoom_factor": 2, "loss_mean": "all"},
]
CASES = [("psp", step) for step in STEPS] + [("psa", step) for step in STEPS[:5]]
CASES += [("compact", STEPS[1]), ("mmseg", STEPS[1]), ("mmseg", {"loss": "dice"}), ("smp_pspnet", {"precision": "fp16"})]


@pytest.mark.parametrize("arch, changes, weighted", [(*case, i % 2 == 1) for i, case in enumerate(CASES)])
def test_an_update_stays_on_the_gpu(arch, changes, weighted):
    cfg = config(**ARCHES[arch], **changes)
    network = network_of(cfg, [1.0] * cfg.classes if weighted else None).train()
    optimizer = build_optimizer(network, base_lr=0.1, precision=cfg.precision)
    assert bool(optimizer.param_groups[0].get("fused")) == (cfg.precision != "fp16")
    run = Run(cfg, CUDA, None, net=network, network=network, optimizer=optimizer, precision=Precision(cfg.precision, CUDA))
    dtypes = set()
    module = network.segmentation_head[0] if arch == "smp_pspnet" else network.cls[4]
    module.register_forward_hook(lambda module, x, y: dtypes.add(y.dtype))
    for _ in range(2):
        losses, areas = train.update(run, *batch(cfg))
    assert dtypes == {run.precision.dtype or torch.float32}
    assert (losses.shape, losses.device, losses.dtype) == ((3,), CUDA, torch.float32)
    assert (areas.shape, areas.device, areas.dtype) == ((3, cfg.classes), CUDA, torch.int64)
    for name, p in network.named_parameters():
        assert p.grad is not None and p.grad.device == CUDA and p.grad.dtype == torch.float32, name
        assert optimizer.state[p]["momentum_buffer"].device == CUDA


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_mode_of_inference_stays_on_the_gpu(arch, precision):
    cfg = config(**ARCHES[arch])
    with unset_fake_temporarily():
        network = fold_batchnorm(build_model(cfg).eval())
    network.to(CUDA, memory_format=torch.channels_last if precision == "bf16" else torch.preserve_format)
    image = np.zeros((41, 57, 3), np.uint8)
    whole = () if arch == "compact" else ("whole",)
    for mode in ("slide", *whole):
        for average in ("prob", "logit"):
            for flip, scales, base_size in ((False, (1.0,), None), (True, (0.75, 1.0), 64)):
                if arch == "compact" and average == "logit":
                    scales = (1.0,)  # smaller images would be smaller windows
                with Precision(precision, CUDA).autocast():
                    probability = predict_probability(network, image, classes=cfg.classes, base_size=base_size, crop_h=33,
                                                      crop_w=33, scales=scales, mean=MEAN, std=STD, flip=flip, mode=mode,
                                                      average=average, test_batch=3)  # fmt: skip
                assert (probability.shape, probability.device) == ((cfg.classes, 41, 57), CUDA)
                assert probability.dtype == torch.float32


@pytest.mark.parametrize("loss", ["ce", "ohem", "dice"])
def test_losses_of_logits_outside_the_network(loss):
    cfg = config(loss=loss)
    criterion = build_criterion(cfg, [1.0] * cfg.classes).to(CUDA)
    logits = torch.zeros(2, cfg.classes, 9, 9, device=CUDA, requires_grad=True)
    label = torch.zeros(2, 9, 9, dtype=torch.int64, device=CUDA)
    value = criterion(logits, label)
    value.backward()
    assert value.device == logits.grad.device == criterion.normaliser(label).device == CUDA
    with pytest.raises(RuntimeError, match="device"):
        criterion(logits, label.cpu())


def test_scores_never_leave_the_gpu():
    label, pred = (torch.zeros(9, 9, dtype=dtype, device=CUDA) for dtype in (torch.uint8, torch.int64))
    assert {areas.device for areas in intersectionAndUnionGPU(pred, label, 5)} == {CUDA}
    assert confusion_matrix(pred, label, 5).device == CUDA
    with pytest.raises(RuntimeError, match="device"):
        confusion_matrix(pred, label.cpu(), 5)
