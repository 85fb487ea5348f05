"""A training run: its length, its state, its parts, and the checkpoints that it resumes from."""

import logging
import math
import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from util import board, distributed
from util.checkpoint import list_checkpoints, load_checkpoint, newest_checkpoint, prune_checkpoints, save_checkpoint, set_aside
from util.common import Mistake, first_few, write_aside
from util.config import Config, changed_keys, dump_config
from util.log import Output


@dataclass(frozen=True)
class Plan:
    """Length of a run, and where it validates and saves. All numbers are iterations; epochs follow from them."""

    data_iters: int  # of an epoch: once through the data
    max_iter: int  # of the run
    interval: int  # between validations and between checkpoints: an epoch, or `iter_interval` under `max_iter`
    counts_epochs: bool  # False under `max_iter`: names and log lines then state iterations alone

    @classmethod
    def of(cls, cfg, data_iters):
        if cfg.max_iter:
            return cls(data_iters, cfg.max_iter, cfg.iter_interval, counts_epochs=False)
        return cls(data_iters, cfg.epochs * data_iters, data_iters, counts_epochs=True)

    @property
    def recount(self) -> int | None:
        """The iterations of an epoch where epochs are counted: those of a checkpoint with another number are converted."""
        return self.data_iters if self.counts_epochs else None

    def interval_end(self, state) -> int:
        """Where the interval ends that is under way at this state; a state with accumulated results has not finished it."""
        if state.counted and (state.iteration % self.interval == 0 or state.iteration == self.max_iter):
            return state.iteration
        return min((state.iteration // self.interval + 1) * self.interval, self.max_iter)

    def is_due(self, iteration, frequency) -> bool:
        """True if an event of every `frequency` intervals, or of the end of the run, is due at this iteration."""
        return iteration == self.max_iter or iteration % (self.interval * frequency) == 0

    def epoch(self, iteration) -> float:
        """Finished epochs, whole numbers as int."""
        return iteration // self.data_iters if iteration % self.data_iters == 0 else round(iteration / self.data_iters, 4)

    def place(self, iteration) -> str:
        """The iteration for messages, counted from 1: `iteration 5`, or `epoch 2, iteration 1`."""
        if not self.counts_epochs:
            return f"iteration {iteration}"
        epoch, step = divmod(iteration - 1, self.data_iters)
        return f"epoch {epoch + 1}, iteration {step + 1}"

    def end(self, iteration) -> str:
        """The end of an interval for messages: `iteration 8` or `epoch 2`."""
        return f"epoch {self.epoch(iteration)}" if self.counts_epochs else f"iteration {iteration}"


@dataclass
class State:
    """Where the run is. All of it is in the checkpoint."""

    iteration: int  # finished iterations
    seed: int
    best_score: float | None = None  # main_metric of the best validation
    best_at: int | None = None  # its iteration
    # accumulated since the last interval ended:
    counted: int = 0  # iterations
    loss_sum: float = 0.0
    areas: list = field(default_factory=list)  # intersection, union and target pixels of each class (3, K)

    def reset_accumulators(self):
        self.counted, self.loss_sum, self.areas = 0, 0.0, []


@dataclass
class Run:
    """The parts of a training run; `tool/train.py` fills them in from top to bottom."""

    cfg: Config
    device: torch.device
    log: logging.Logger
    names: list[str] = field(default_factory=list)  # of the classes
    palette: Any = None  # (K, 3) uint8
    log_file: Path | None = None  # of the main process
    lock: Any = None  # on save_path; it lasts as long as this object
    stop: distributed.StopSignal | None = None
    train_data: Any = None
    val_data: Any = None
    plan: Plan | None = None
    state: State | None = None
    resumed: bool = False  # from a checkpoint
    recounted: bool = False  # whose iterations were of another number of images
    rejudged: bool = False  # whose best was chosen by another score, on other images or in other windows
    judge: dict | None = None  # what the scores of its validations depend on beside the network; None without any
    loader: Any = None
    network: Any = None  # the module with the weights that are trained
    net: Any = None  # the same as it is trained: in DistributedDataParallel, compiled
    average: Any = None  # of its weights, an ema.Average; None without ema_decay
    optimizer: Any = None
    schedule: Any = None  # finished iterations -> (learning rate, momentum) of the next one
    precision: Any = None
    out: Output | None = None

    @property
    def folder(self) -> Path:
        return Path(self.cfg.save_path)

    @property
    def evaluated(self):
        """The network that is validated, saved and tested."""
        return self.network if self.average is None else self.average.network

    @property
    def has_ended(self) -> bool:
        beyond = self.state.iteration - self.plan.max_iter
        return beyond > 0 or beyond == 0 and not self.state.counted


# ---- start ----


def open_output(run) -> None:
    """Move what an earlier run left aside, then open the files of this one; from here on save_path is written to."""
    run.out = Output()
    best_is_there = distributed.from_main(distributed.on_main(lambda: _open_output(run)))
    if run.state.best_at is not None and not best_is_there:
        run.log.warning(f"{run.folder} has no model_best.pth: the best is chosen among the validations to come")
        run.state.best_score = run.state.best_at = None


def _open_output(run) -> bool:
    """Is there a best checkpoint?"""
    state, finished = run.state, not run.state.counted
    resumes_here = run.cfg.resume in ("auto", "best") or os.path.realpath(
        Path(run.cfg.resume or "").parent
    ) == os.path.realpath(run.folder)
    position = (state.iteration, finished) if run.resumed and resumes_here else None
    aside = set_aside(run.folder, run.log_file, position, run.plan.recount, run.recounted, run.rejudged)
    if aside and position:
        kept = first_few(sorted(path.name for path in aside.iterdir()))
        run.log.warning(f"what does not go on from iteration {state.iteration} is kept in {aside}: {kept}")
    elif aside:
        run.log.warning(f"{run.folder} held an earlier run: moved into {aside}")
    with write_aside(run.folder / "config.yaml") as path:
        path.write_text(dump_config(run.cfg), encoding="utf-8")
    run.out = Output(run.folder, state.iteration, finished)
    board.log_start(run.out.writer, run.cfg, state.iteration)
    return (run.folder / "model_best.pth").is_file()


# ---- checkpoints ----


def save(run, name=None) -> None:
    """Write a checkpoint in the main process; refuses weights that are not finite in all of them."""
    name = name or checkpoint_name(run.plan, run.state)
    for network in dict.fromkeys((run.network, run.evaluated)):
        distributed.share_buffers(network)
        with distributed.same_errors():
            check_finite(network, run.plan.place(run.state.iteration))
    if distributed.is_main():
        run.out.flush()
        save_checkpoint(checkpoint_of(run), run.folder / name)
        if name != "model_best.pth":
            prune_checkpoints(run.folder, run.cfg.keep_checkpoints, run.plan.recount)
        run.log.info(f"Saved {run.folder / name}")


def checkpoint_of(run) -> dict:
    return {
        "epoch": run.state.iteration // run.plan.data_iters,
        "iteration": run.state.iteration,
        "data_iters": run.plan.data_iters,
        "state_dict": run.evaluated.state_dict(),
        **({} if run.average is None else {"trained_state_dict": run.network.state_dict()}),
        "optimizer": run.optimizer.state_dict(),
        "optimizer_names": _optimizer_names(run),
        "precision": run.precision.state_dict(),
        "state": asdict(run.state),
        **({} if run.judge is None else {"judge": run.judge}),
        "config": dump_config(run.cfg),
        "names": run.names,
        "palette": np.asarray(run.palette).tolist(),
    }


def _optimizer_names(run) -> list[str]:
    """Of the parameters, in the order of the optimizer's state, which follows from their groups."""
    names = {parameter: name for name, parameter in run.network.named_parameters()}
    return [names[parameter] for group in run.optimizer.param_groups for parameter in group["params"]]


def checkpoint_name(plan, state) -> str:
    """train_iter_N.pth under max_iter; else train_epoch_N.pth, or inside an epoch and before its validation
    train_epoch_N_iter_M.pth."""
    if not plan.counts_epochs:
        return f"train_iter_{state.iteration}.pth"
    if state.iteration % plan.data_iters == 0 and not state.counted:
        return f"train_epoch_{state.iteration // plan.data_iters}.pth"
    epoch, step = divmod(state.iteration - 1, plan.data_iters)
    return f"train_epoch_{epoch}_iter_{step + 1}.pth"


def check_finite(network, place) -> None:
    for name, tensor in network.state_dict().items():
        if not tensor.isfinite().all():
            raise Mistake(
                f"{name} became infinite or nan in {place}; the checkpoints written so far are sound. Try a smaller base_lr"
            )


def find_checkpoint(cfg, plan, log) -> dict | None:
    """Content of the checkpoint that `resume` names, or None; `auto` and `best` name one only if there is one."""
    folder, best = Path(cfg.save_path), Path(cfg.save_path) / "model_best.pth"
    if not cfg.resume:
        return None
    if cfg.resume == "auto":
        found = newest_checkpoint(folder, plan.recount, warn=log.warning)
    elif cfg.resume == "best":
        found = (best, load_checkpoint(best)) if best.exists() else None
        numbered = list_checkpoints(folder, plan.recount)
        if not found and numbered:
            raise Mistake(f"{cfg.path}: TRAIN.resume: best: {folder} has {numbered[-1].name} but no model_best.pth; use auto")
    else:
        found = cfg.resume, load_checkpoint(cfg.resume)
    if not found:
        log.warning(f"resume: {cfg.resume}: there is no checkpoint in {folder} yet; the run starts anew")
        return None
    path, content = found
    log.info(f"resume: {path}")
    parts = {"state": dict, "optimizer": dict, "config": str, "state_dict": dict}
    parts |= {k: kind for k, kind in (("trained_state_dict", dict), ("judge", dict), ("names", list)) if k in content}
    missing = [key for key, kind in parts.items() if not isinstance(content.get(key), kind)]
    if missing:
        raise Mistake(
            f"{cfg.path}: TRAIN.resume: {path}: not a checkpoint of this program (it has no {' and no '.join(missing)}), "
            "so no run can resume from it; give the file as `weight`"
        )
    for key, (old, new) in changed_keys(content["config"], cfg).items():
        if key not in ("resume", "manual_seed"):
            log.info(f"Resuming with a changed {key}: {old} -> {new}")
    return content


def state_of(cfg, plan, content) -> State:
    """The state in a checkpoint, for the plan of the run that resumes.

    One rule: the run resumes at its iteration, whatever its length and intervals are now. If an epoch has another number of
    iterations now, a run that counts epochs resumes at its epoch, and only from the end of one.
    """
    where = f"{cfg.path}: TRAIN.resume: {cfg.resume}"
    try:
        state, data_iters = _state_and_epoch(content, plan.data_iters)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RuntimeError, yaml.YAMLError) as error:
        raise Mistake(f"{where}: the state of the run in this checkpoint is not readable ({error!r})") from error
    if state.areas and len(state.areas[0]) != cfg.classes:
        raise Mistake(
            f"{where}: classes: {len(state.areas[0])} in the checkpoint, {cfg.classes} now; set it back, or use `weight`"
        )
    if plan.counts_epochs and data_iters != plan.data_iters:
        if state.counted or state.iteration % data_iters:
            raise Mistake(
                f"{where}: the checkpoint is inside an epoch of {data_iters} iterations, and an epoch has {plan.data_iters} "
                "now; set batch_size and train_list back, or resume from a checkpoint at the end of an epoch"
            )
        state.iteration = state.iteration // data_iters * plan.data_iters
        if state.best_at is not None:
            state.best_at = state.best_at * plan.data_iters // data_iters
    return state


def restore(run, content) -> None:
    """Load network, average, optimizer and loss scale from a checkpoint; Mistake if they are those of another network."""
    where = f"{run.cfg.path}: TRAIN.resume: {run.cfg.resume}"
    own, averaged = run.network.state_dict(), content["state_dict"]
    trained = content.get("trained_state_dict", averaged)
    differences = set()
    for theirs in (trained, averaged):
        differences |= own.keys() ^ theirs.keys()
        differences |= {key for key in own.keys() & theirs.keys() if not _fits(theirs[key], own[key])}
    if differences:
        raise Mistake(
            f"{where}: the checkpoint is that of another network: {len(differences)} weights are missing, unknown or of "
            f"another shape ({first_few(sorted(differences))}); set arch, layers and classes back, or start from it "
            "with `weight` (and skip_head: True for other classes)"
        )
    unsound = [key for theirs in (trained, averaged) for key, value in theirs.items() if not value.isfinite().all()]
    if unsound:
        raise Mistake(f"{where}: the checkpoint has nan or infinite values in {first_few(unsound)}; use an earlier one")
    run.network.load_state_dict(trained)
    if run.average is not None:
        run.average.network.load_state_dict(averaged)
        if trained is averaged:
            run.log.info(f"{where}: it has no average of the weights; that of this run starts from its weights")
    elif trained is not averaged:
        run.log.info(f"{where}: without ema_decay the run goes on from the weights under training, not from their average")
    try:
        run.optimizer.load_state_dict(_optimizer_state(run, content))
        was, now = changed_keys(content["config"], run.cfg).get("optimizer", ("sgd", "sgd"))
        changed = (was or "sgd") != now  # earlier versions had no such key
        wrong = [
            f"{name} of another shape, kind or optimizer"
            for group in run.optimizer.param_groups
            for parameter in group["params"]
            for name, value in run.optimizer.state[parameter].items()
            if changed or value is not None and not _fits(value, torch.empty(()) if name == "step" else parameter)
        ]
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        wrong = [str(error) or repr(error)]
    if wrong:
        back = "optimizer" if "optimizer_names" in content else "optimizer, param_rules, bias_decay and norm_decay"
        raise Mistake(
            f"{where}: the optimizer in this checkpoint has other parameter groups ({wrong[0]}); set {back} back, or start "
            "from the checkpoint with `weight`"
        )
    try:
        run.precision.load_state_dict(content.get("precision"))
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise Mistake(f"{where}: the loss scale in this checkpoint is not readable ({error!r})") from error


def _optimizer_state(run, content) -> dict:
    """The optimizer's state in a checkpoint, in the order of this run's groups; earlier versions had no names."""
    saved, theirs = content["optimizer"], content.get("optimizer_names")
    if theirs is None:
        return saved
    if sum(len(group["params"]) for group in saved["param_groups"]) != len(theirs):
        raise ValueError(f"{len(theirs)} names")
    place = {name: i for i, name in enumerate(theirs)}
    order = [place[name] for name in _optimizer_names(run)]
    state = {i: saved["state"][old] for i, old in enumerate(order) if old in saved["state"]}
    return {"state": state, "param_groups": run.optimizer.state_dict()["param_groups"]}


def _state_and_epoch(content, data_iters):
    """State of a checkpoint, and the iterations that an epoch had. Earlier versions counted finished epochs or intervals and
    the iterations of the next one: `epoch`, `step`; the first of them had neither `iteration` nor `best_score`."""
    state = dict(content["state"])
    if "epoch" in state:
        epoch, step = state.pop("epoch"), state.pop("step")
        counted_epochs = not yaml.safe_load(content["config"])["TRAIN"].get("max_iter")
        iteration = content.get("iteration", epoch * data_iters + step)
        if counted_epochs and epoch:
            data_iters = (iteration - step) // epoch
        if "best_mIoU" in state:
            score, at = state.pop("best_mIoU"), state.pop("best_epoch")
            state |= {"best_score": score, "best_at": f"epoch {at}"} if at else {}
            state["counted"] = step
        unit, _, number = (state.pop("best_at", "") or "").partition(" ")
        state["best_at"] = int(number) * (data_iters if unit == "epoch" else 1) if number else None
        state["iteration"] = iteration
    else:
        data_iters = content["data_iters"]
    if state.keys() != {key.name for key in fields(State)} or not _whole(data_iters, low=1):
        raise ValueError(f"found {', '.join(map(str, state))}")
    wrong = [key for key in ("iteration", "seed", "counted") if not _whole(state[key])]
    wrong += [key for key in ("best_score", "loss_sum") if not _finite(state[key] or 0.0)]
    wrong += ["best_at"] if state["best_at"] is not None and not _whole(state["best_at"]) else []
    areas = torch.tensor(state["areas"]) if state["areas"] else torch.zeros(3, 0, dtype=torch.int64)
    wrong += ["areas"] if areas.dtype != torch.int64 or areas.dim() != 2 or len(areas) != 3 else []
    if wrong or state["loss_sum"] is None or bool(state["counted"]) != bool(areas.numel()):
        raise ValueError(f"impossible values: {', '.join(wrong) or 'counted, loss_sum or areas'}")
    return State(**state), data_iters


def _whole(value, low=0) -> bool:
    return type(value) is int and low <= value < 2**63


def _finite(value) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _fits(theirs, own) -> bool:
    plain = isinstance(theirs, torch.Tensor) and theirs.layout == torch.strided
    return plain and theirs.shape == own.shape and theirs.dtype.is_floating_point == own.dtype.is_floating_point
