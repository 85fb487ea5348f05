"""Learning-rate schedules: plain functions of t, the finished updates, and T, those of the whole run.

t counts 0..T: iterations, or epochs (`schedule_by`). With T = 0 every schedule returns its value at t = 0.
`build_schedule` makes the one of a config; docs/schedules.png, which docs/schedules.py draws, shows all of them.
"""

import math

from util.common import Mistake
from util.config import config_error


def poly(t, T, base_lr, power=0.9, min_lr=0.0) -> float:
    """(base_lr - min_lr) * (1 - t / T) ** power + min_lr (PSPNet, Zhao et al. 2017, section 5.1; there without min_lr)."""
    return (base_lr - min_lr) * (1 - _share(t, T)) ** power + min_lr


def step(t, T, base_lr, step_at, step_factor) -> float:
    """base_lr, multiplied with step_factor after each of the shares of the run in `step_at`."""
    return base_lr * step_factor ** sum(_share(t, T) >= share for share in step_at)


def cosine(t, T, base_lr, min_lr=0.0) -> float:
    """Half a period of a cosine from base_lr to min_lr (SGDR, Loshchilov and Hutter, ICLR 2017, equation 5; one period)."""
    return min_lr + (base_lr - min_lr) * (1 + math.cos(math.pi * _share(t, T))) / 2


def onecycle(t, T, peak, start, end, warmup) -> float:
    """A straight line from `start` at t = 0 to `peak` at t = warmup, another to `end` at t = T.

    The one-cycle policy (super-convergence, Smith and Topin 2019), its two halves of different lengths. The momentum moves
    the other way, by the same function: its peak is the lowest value.
    """
    if t < warmup:
        return _between(start, peak, t / warmup)
    return _between(peak, end, _share(t - warmup, T - warmup))


def with_warmup(schedule, t, warmup, warmup_lr) -> float:
    """A straight line from warmup_lr at t = 0 to schedule(warmup) at t = warmup; from there on schedule(t) itself.

    The schedule itself is not shifted by the warm-up, so that the run ends as it would without one.
    """
    if t < warmup:
        return _between(warmup_lr, schedule(warmup), t / warmup)
    return schedule(t)


def build_schedule(cfg, max_iter, epoch_iters):
    """A function: finished iterations, 0..max_iter-1 -> (learning rate, momentum) of the next one.

    epoch_iters: iterations once through the data. With schedule_by: epoch t counts epochs, so rate and momentum stand still
    within one. The last iteration, or epoch, is that of t = T - 1, so the value at T, often 0, is not used; but onecycle
    reaches its end in the last one. Raises Mistake for a warm-up that does not fit into the run.
    """
    by_epoch = cfg.schedule_by == "epoch"
    ticks = math.ceil(max_iter / epoch_iters) if by_epoch else max_iter
    T = ticks - 1 if cfg.schedule == "onecycle" else ticks
    warmup = _warmup(cfg, by_epoch, epoch_iters)
    if warmup and warmup >= T:
        key = "warmup_epochs" if cfg.warmup_epochs else "warmup_iters"
        message = (
            f"{getattr(cfg, key)} leaves no time for the schedule after the warm-up in a run of {max_iter} iterations, "
            f"{epoch_iters} an epoch; lower it or train longer"
        )
        raise Mistake(config_error(cfg, key, message))

    def rate(t):
        if cfg.schedule == "onecycle":
            return onecycle(t, T, cfg.base_lr, cfg.warmup_lr, cfg.min_lr, warmup)
        if cfg.schedule == "step":
            return step(t, T, cfg.base_lr, cfg.step_at, cfg.step_factor)
        if cfg.schedule == "cosine":
            return cosine(t, T, cfg.base_lr, cfg.min_lr)
        if cfg.schedule == "poly":
            return poly(t, T, cfg.base_lr, cfg.power, cfg.min_lr)
        raise Mistake(config_error(cfg, "schedule", f"{cfg.schedule!r} is unknown"))

    def schedule(iteration):
        t = iteration // epoch_iters if by_epoch else iteration
        momentum = cfg.momentum
        if cfg.momentum_low is not None:
            momentum = onecycle(t, T, cfg.momentum_low, cfg.momentum, cfg.momentum, warmup)
        return with_warmup(rate, t, warmup, cfg.warmup_lr), momentum

    return schedule


def _warmup(cfg, by_epoch, epoch_iters):
    """Length of the warm-up in iterations or epochs, as the schedule counts."""
    if not by_epoch:
        return cfg.warmup_iters or cfg.warmup_epochs * epoch_iters
    if cfg.warmup_iters:
        message = (
            f"{cfg.warmup_iters} cannot go with schedule_by: epoch, where the rate moves once an epoch; give warmup_epochs, "
            "or schedule_by: iteration"
        )
        raise Mistake(config_error(cfg, "warmup_iters", message))
    if cfg.warmup_epochs and not cfg.warmup_lr:
        message = "0 would be the rate of the whole first epoch with schedule_by: epoch; give one, or schedule_by: iteration"
        raise Mistake(config_error(cfg, "warmup_lr", message))
    return cfg.warmup_epochs


def _share(t, T) -> float:
    return t / T if T else 0.0


def _between(a, b, share) -> float:
    """On the straight line from a to b, exact at both ends."""
    return a * (1 - share) + b * share
