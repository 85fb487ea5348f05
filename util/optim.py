"""Learning-rate schedule and optimizer."""

import inspect

import torch


def poly_learning_rate(base_lr: float, curr_iter: int, max_iter: int, power: float = 0.9) -> float:
    """base_lr * (1 - curr_iter / max_iter) ** power (PSPNet, Zhao et al. 2017, section 5.1).

    curr_iter counts the finished updates, 0..max_iter; the rate falls from base_lr to 0.
    """
    return base_lr * (1 - curr_iter / max_iter) ** power


def build_optimizer(backbone, heads, *, base_lr, head_lr_factor=10.0, momentum=0.9, weight_decay=1e-4):
    """SGD with one parameter group a module; new modules (heads) learn `head_lr_factor` times as fast as the backbone.

    backbone, heads: lists of modules, on their device already. Each group carries `lr_factor`, which `set_learning_rate`
    multiplies with.
    """
    groups = [{"params": list(m.parameters()), "lr": base_lr, "lr_factor": 1.0} for m in backbone]
    head_lr = base_lr * head_lr_factor
    groups += [{"params": list(m.parameters()), "lr": head_lr, "lr_factor": head_lr_factor} for m in heads]
    kernel = {}
    if groups[0]["params"][0].is_cuda and "fused" in inspect.signature(torch.optim.SGD).parameters:  # torch 2.3
        kernel["fused"] = True  # one for all weights; it also leaves out a step of GradScaler's without asking the host
    optimizer = torch.optim.SGD(groups, lr=base_lr, momentum=momentum, weight_decay=weight_decay, **kernel)

    def keep_kernel(optimizer):  # a checkpoint brings that of the device it was made on
        for group in optimizer.param_groups:
            group["fused"] = kernel.get("fused")

    optimizer.register_load_state_dict_post_hook(keep_kernel)
    return optimizer


def set_learning_rate(optimizer, lr: float) -> None:
    """Give every parameter group `lr` times its factor."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_factor"]
