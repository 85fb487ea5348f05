"""What a network and its training step cost, computed from shapes alone."""

import weakref
from collections import Counter
from dataclasses import replace

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from util.precision import Precision

REST = "between the parts"
STAGES = ("layer1", "layer2", "layer3", "layer4")


def step_memory(build_model, cfg, batch, h, w, processes=1) -> dict:
    """Bytes that a training step of `batch` images at a time needs on one device, by kind; `peak` is their sum.

    The step runs on fake tensors, and every block of memory is counted as long as it lives. Without what no tensor holds:
    CUDA's context, workspaces of the kernels, gaps in the allocator.
    """
    with FakeTensorMode(), Memory() as memory:
        network = build_model(cfg).train()
        pass_one_value(network)
        if cfg.ema_decay:
            memory.change(memory.now)  # the average of the weights
        weights = memory.now
        for _ in range(min(cfg.accumulate_steps, 2)):  # the gradients of the first part are there during the second
            before = memory.now
            image, label = torch.empty(batch, 3, h, w), torch.zeros(batch, h, w, dtype=torch.int64)
            with Precision(cfg.precision, "cpu").autocast():
                if cfg.criterion_outside:  # as train.forward, on logits of the full size
                    logits, label = network(image), network.label_of_logits(label)
                    main_loss, aux_loss = (0 if of is None else network.criterion(of, label) for of in logits)
                    del logits
                else:
                    _, main_loss, aux_loss = network(image, label)
            kept = memory.now - before
            (main_loss + cfg.aux_weight * aux_loss).backward()
            del image, label, main_loss, aux_loss
    gradients = sum(p.nbytes for p in network.parameters())
    momenta = gradients * ((2 if cfg.optimizer == "adamw" else 1) + (processes > 1))  # DDP copies them into buckets
    needs = {"weights": weights, "momenta": momenta, "kept": kept}
    return needs | {"temporaries": memory.peak - weights - kept, "peak": memory.peak + momenta}


class Memory(TorchDispatchMode):
    """Bytes of the storages that tensor operations made and that are alive, `now`, and their `peak`."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.known = weakref.WeakSet()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for storage in (leaf.untyped_storage() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)):
            if storage not in self.known:
                self.known.add(storage)
                self.change(storage.nbytes())
                weakref.finalize(storage, self.change, -storage.nbytes())
        return result

    def change(self, size):
        self.now += size
        self.peak = max(self.peak, self.now)


def fitting(build_model, cfg, share, fewest, least, h, w, processes, limit):
    """(config, images at a time, needs of a step): each precision, bf16 in channels_last, with stages kept and recomputed, at
    the fewest accumulate_steps whose peak is within `limit` bytes, or else at the most.

    share, fewest: images in an update of the device that has most, and of the one that has fewest, of which at least `least` go
    through the network at once.
    """
    recomputed = {(), STAGES} if cfg.arch != "smp_pspnet" and not cfg.compile else {()}
    for precision in dict.fromkeys((cfg.precision, "bf16")):
        for stages in sorted(recomputed | {tuple(cfg.checkpoint_layers)}, key=len):
            steps = [n for n in range(1, share + 1) if share % n == 0 and fewest // n >= least] if cfg.loss == "ce" else [1]
            for n in steps or [1]:
                tried = replace(cfg, precision=precision, checkpoint_layers=stages, accumulate_steps=n,
                                channels_last=cfg.channels_last or precision == "bf16")  # fmt: skip
                needs = step_memory(build_model, tried, share // n, h, w, processes)
                if needs["peak"] <= limit:
                    break
            yield tried, share // n, needs


def costs(network, batch, train_size, test_size):
    """[(part, its parameters, multiply-adds of a training image and of a test image, bytes kept for backward)] of a network on
    the meta device; the last part is **all**. Training is of `batch` images, a test of one; sizes are (h, w)."""
    pass_one_value(network.train())
    train_macs, kept = measure(network, batch, *train_size)
    test_macs, _ = measure(network.eval(), 1, *test_size)
    parameters = Counter({name: sum(p.numel() for p in part.parameters()) for name, part in network.named_children()})
    rows = [(name, parameters[name], train_macs[name] / batch, test_macs[name], kept[name]) for name in (*parameters, REST)]
    rows = [row for row in rows if row[1] or row[2] or row[4]]
    return [*rows, ("**all**", *map(sum, list(zip(*rows))[1:]))]


def pass_one_value(network):
    """Have BatchNorm take one value a channel, which with SyncBN is one of several: it computes as in a test then."""

    def check(norm, args):
        if args[0].numel() == norm.num_features:
            norm.eval()

    for norm in (m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        norm.register_forward_pre_hook(check)


def measure(network, batch, h, w):
    """(multiply-adds, bytes that autograd keeps) of the logits of a network on the meta device, as Counters by part."""
    macs, kept, seen, stack = Counter(), Counter(), {}, [REST]
    weights = {tensor.untyped_storage()._cdata for tensor in (*network.parameters(), *network.buffers())}
    counter = FlopCounterMode(display=False)

    def account():
        macs[stack[-1]] += counter.get_total_flops() // 2 - sum(macs.values())

    def enter(name):
        account()
        stack.append(name)

    def leave():
        account()
        stack.pop()

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in weights and storage._cdata not in seen:
            seen[storage._cdata] = storage  # holding it keeps its address from being used again
            kept[stack[-1]] += storage.nbytes()
        return tensor

    handles = []
    for name, part in network.named_children():
        # The leaves too: a network may call them without calling the part.
        for module in {part, *(m for m in part.modules() if not list(m.children()))}:
            handles.append(module.register_forward_pre_hook(lambda *_, name=name: enter(name)))
            handles.append(module.register_forward_hook(lambda *_: leave()))
    fast = getattr(network, "fast_head", False)
    if fast:  # it computes the convolution of `cls` itself
        head = network.head
        network.head = lambda features: (enter("cls"), head(features), leave())[1]
    with counter, saved_tensors_hooks(pack, lambda tensor: tensor), torch.set_grad_enabled(network.training):
        network(torch.empty(batch, 3, h, w, device="meta"))
        account()
    for handle in handles:
        handle.remove()
    if fast:
        del network.head
    return macs, kept
