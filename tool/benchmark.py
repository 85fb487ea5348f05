"""Measure; every subcommand prints a Markdown table.

    python tool/benchmark.py model --config config/cityscapes/cityscapes_pspnet50.yaml
    python tool/benchmark.py model --config config/toy/toy_pspnet18.yaml --step

model: parameters, multiply-adds and memory of each part of a network.
"""

import argparse
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from model import build_model
from util.config import load_config
from util.log import peak_memory_mb, report_errors

REST = "between the parts"


def main(argv=None) -> int:
    args = parse_args(argv)
    return report_errors(lambda: args.command(args))


def model(args) -> None:
    cfg = load_config(args.config, args.opts)
    train_size = args.h or cfg.train_h, args.w or cfg.train_w
    test_size = args.h or cfg.test_h or cfg.train_h, args.w or cfg.test_w or cfg.train_w
    batch = args.batch or max(cfg.batch_size // max(len(cfg.train_gpu or ()), 1) // cfg.accumulate_steps, 1)
    with torch.device("meta"):  # shapes without numbers: no memory, no time
        network = build_model(cfg)
    train_macs, kept = measure(network.train(), batch, *train_size)
    test_macs, _ = measure(network.eval(), 1, *test_size)
    parameters = Counter({name: sum(p.numel() for p in part.parameters()) for name, part in network.named_children()})

    train, test = ("x".join(map(str, size)) for size in (train_size, test_size))
    print(f"| part | parameters (M) | multiply-adds, train {train} (G) | test {test} (G) | kept for backward (MiB) |")
    print("|---|--:|--:|--:|--:|")
    parts = [name for name in (*parameters, REST) if parameters[name] or train_macs[name] or kept[name]]
    for name in (*parts, "**all**"):
        row = [sum(c.values()) if name == "**all**" else c[name] for c in (parameters, train_macs, test_macs, kept)]
        p, a, b, m = row
        print(f"| {name} | {p / 1e6:.2f} | {a / batch / 1e9:.1f} | {b / 1e9:.1f} | {m / 2**20:.0f} |")
    print("\nMultiply-adds: of one image, forward; convolutions and matrix products as torch.utils.flop_counter counts them, "
          "which counts two operations each. Backward takes about twice as many.\n"
          f"Kept for backward: what autograd saves of a float32 forward pass, {batch} image(s), by saved_tensors_hooks; "
          "without the weights and the loss.")
    if args.step:
        print(training_step(cfg, batch, *train_size))


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
    with counter, saved_tensors_hooks(pack, lambda tensor: tensor), torch.set_grad_enabled(network.training):
        network(torch.empty(batch, 3, h, w, device="meta"))
        account()
    for handle in handles:
        handle.remove()
    return macs, kept


def training_step(cfg, batch, h, w) -> str:
    """One step with SGD on the GPU, or on the CPU without one; says its peak memory."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    before = peak_memory_mb(device)
    network = build_model(cfg).to(device).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    image = torch.randn(batch, 3, h, w, device=device)
    label = torch.randint(0, cfg.classes, (batch, h, w), device=device)
    _, main_loss, aux_loss = network(image, label)
    (main_loss + cfg.aux_weight * aux_loss).backward()
    optimizer.step()
    how = "torch.cuda.max_memory_allocated" if device.type == "cuda" else f"resident memory; {before:.0f} MiB before it"
    return f"One float32 training step of {batch} image(s) on {device}: peak {peak_memory_mb(device):.0f} MiB ({how})."


def parse_args(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    sub = commands.add_parser("model", help="parameters, multiply-adds and memory of each part of a network")
    sub.set_defaults(command=model)
    sub.add_argument("--config", required=True, help="YAML file of the experiment")
    sub.add_argument("--h", type=int, help="height of the image (default: train_h, test_h)")
    sub.add_argument("--w", type=int, help="width of the image (default: train_w, test_w)")
    sub.add_argument("--batch", type=int, help="images at a time (default: batch_size over train_gpu and accumulate_steps)")
    sub.add_argument("--step", action="store_true", help="do one training step too, for its peak memory")
    sub.add_argument("opts", nargs="*", metavar="KEY VALUE", help="override keys of the config")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
