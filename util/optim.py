"""SGD or AdamW with its parameter groups, and the learning rate of each group."""

import difflib
import fnmatch
from inspect import unwrap

import torch
from torch import nn

from util.common import Mistake, did_you_mean
from util.config import Factor
from util.schedule import poly
from util.values import convert

RULE_KEYS = ("name", "lr_factor", "weight_decay")


def _eager(kind):
    """An optimizer without its wrappers for torch.compile, which import the compiler: that takes longer than the first step."""
    names = ("add_param_group", "state_dict", "load_state_dict", "zero_grad")
    plain = {name: unwrap(getattr(kind, name)) for name in names} | {"step": torch.no_grad()(unwrap(kind.step))}
    return type(kind.__name__, (kind,), plain)


SGD, AdamW = _eager(torch.optim.SGD), _eager(torch.optim.AdamW)


def poly_learning_rate(base_lr: float, curr_iter: int, max_iter: int, power: float = 0.9) -> float:
    """base_lr * (1 - curr_iter / max_iter) ** power (PSPNet, Zhao et al. 2017, section 5.1).

    curr_iter counts the finished updates, 0..max_iter; the rate falls from base_lr to 0.
    """
    return poly(curr_iter, max_iter, base_lr, power)


def build_optimizer(network, *, base_lr, head_lr_factor=10.0, momentum=0.9, weight_decay=1e-4, bias_decay=True,
                    norm_decay=True, rules=(), precision="fp32", kind="sgd"):  # fmt: skip
    """One parameter group per module; new modules (heads) learn at `head_lr_factor` times the backbone's rate.

    kind: sgd, with `momentum`, or adamw (Loshchilov and Hutter 2019, algorithm 2), whose beta 1 is `momentum`, beta 2 0.999 and
        epsilon 1e-8: it multiplies each weight with 1 - lr * weight_decay.
    network: with `backbone_modules()` and `head_modules()`, on its device already. Each group carries `lr_factor`, which
    `set_learning_rate` multiplies with. Where parameters of a module differ in what follows, it has a group for each kind:
    bias_decay: False: no weight decay for parameters whose name ends in `bias`, those of BatchNorm among them.
    norm_decay: False: none for the weight and bias of BatchNorm.
    rules: mappings such as {name: "layer*", lr_factor: 0.1, weight_decay: 3e-5}. `name` is a pattern (*, ?, [abc]) for the
        whole name of a parameter, `layer4.2.conv1.weight`; the first rule that fits a parameter is the one that counts. Its
        lr_factor is relative to base_lr, in the heads too, where it stands for head_lr_factor. Its weight_decay stands for
        that of the other parameters, but parameters that the two switches exempt from decay stay exempt.
    precision: with fp16 SGD's kernel is not fused: when a GradScaler leaves out the very first step, the fused one leaves its
        momentum buffers uninitialised and the second step reads them (torch 2.14).
    Raises Mistake for a rule with other keys or values, or that no parameter is left for.
    """
    names = {parameter: name for name, parameter in network.named_parameters()}
    rule_of = _assign(_checked(rules), list(names.values()))
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    norms = {parameter for module in norms for parameter in module.parameters(recurse=False)}

    def settings(parameter, lr_factor):
        name = names[parameter]
        rule = rule_of.get(name, {})
        free = not bias_decay and name.endswith("bias") or not norm_decay and parameter in norms
        return rule.get("lr_factor", lr_factor), 0.0 if free else rule.get("weight_decay", weight_decay)

    modules = [(module, 1.0) for module in network.backbone_modules()]
    modules += [(module, head_lr_factor) for module in network.head_modules()]
    groups = []
    for module, lr_factor in modules:
        parts = {}
        for parameter in module.parameters():
            parts.setdefault(settings(parameter, lr_factor), []).append(parameter)
        for (factor, decay), params in (parts or {(lr_factor, weight_decay): []}).items():
            groups.append({"params": params, "lr": base_lr * factor, "lr_factor": factor, "weight_decay": decay})
    grouped = {parameter for group in groups for parameter in group["params"]}
    outside = [name for parameter, name in names.items() if parameter.requires_grad and parameter not in grouped]
    if outside:
        raise ValueError(f"{len(outside)} parameters would never learn ({', '.join(outside[:5])}): name their modules in "
                         "backbone_modules() or head_modules() of the network, or freeze them")  # fmt: skip

    if kind == "adamw":  # fused: one kernel for all weights, on CPUs too
        optimizer = AdamW(groups, lr=base_lr, betas=(momentum, 0.999), weight_decay=weight_decay, fused=True)
    elif kind == "sgd":
        fused = True if next(network.parameters()).is_cuda and precision != "fp16" else None
        optimizer = SGD(groups, lr=base_lr, momentum=momentum, weight_decay=weight_decay, fused=fused)
    else:
        raise Mistake(f"optimizer: {kind!r} is unknown; choose sgd or adamw")

    own = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]

    def keep_settings(optimizer):  # a checkpoint has those of the config and the device that it was made with
        for group, mine in zip(optimizer.param_groups, own):
            group.update(mine)
        for parameter, state in optimizer.state.items():  # fused kernels pair numbers by their place in memory
            for name, value in state.items():
                if torch.is_tensor(value) and value.shape == parameter.shape:
                    state[name] = torch.empty_like(parameter).copy_(value)

    optimizer.register_load_state_dict_post_hook(keep_settings)
    return optimizer


def set_learning_rate(optimizer, lr: float, momentum: float | None = None) -> None:
    """Give every parameter group `lr` times its factor, and `momentum` if there is one."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_factor"]
        if momentum is not None:
            if "betas" in group:
                group["betas"] = momentum, group["betas"][1]
            else:
                group["momentum"] = momentum


def _checked(rules) -> list[dict]:
    """The rules with their values as numbers, also where YAML reads a string (`3e-5`)."""
    checked = []
    for rule in rules:
        where = f"param_rules: {dict(rule)}"
        for key in rule:
            if key not in RULE_KEYS:
                near = did_you_mean(key, RULE_KEYS)
                raise Mistake(f"{where}: unknown key {key!r}{near}; a rule has {', '.join(RULE_KEYS)}")
        if not isinstance(rule.get("name"), str) or len(rule) == 1:
            raise Mistake(f"{where}: a rule needs `name`, a pattern for names of parameters, and lr_factor or weight_decay")
        checked.append({"name": rule["name"]})
        for key in rule.keys() - {"name"}:
            try:
                checked[-1][key] = convert(rule[key], Factor)
            except Mistake as mistake:
                raise Mistake(f"{where}: {key}: {mistake}") from None
    return checked


def _assign(rules, names) -> dict:
    """{name: the first rule that fits}; Mistake for a rule that is the first for no name."""
    rule_of = {}
    for rule in rules:
        fitting = [name for name in names if fnmatch.fnmatchcase(name, rule["name"])]
        if not fitting:
            near = ", ".join(_nearest(rule["name"], names))
            raise Mistake(f"param_rules: {rule}: no parameter has such a name; the nearest: {near}")
        left = [name for name in fitting if name not in rule_of]
        if not left:
            raise Mistake(f"param_rules: {rule}: nothing is left for it, since the first rule that fits counts, and "
                          f"{rule_of[fitting[0]]['name']!r} has {fitting[0]}; put this one before it")  # fmt: skip
        rule_of |= dict.fromkeys(left, rule)
    return rule_of


def _nearest(pattern, names) -> list[str]:
    """Names whose beginning or end, of as many parts as the pattern, is most like it."""
    pattern = pattern.strip("*.")
    parts = pattern.count(".") + 1
    ends = {}
    for name in names:
        words = name.split(".")
        for end in (words[:parts], words[-parts:]):
            ends.setdefault(".".join(end), name)
    return list(dict.fromkeys(ends[end] for end in difflib.get_close_matches(pattern, ends, cutoff=0.0)))
