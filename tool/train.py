"""Train a scene-parsing network.

    python tool/train.py --config config/toy/toy_pspnet18.yaml
    python tool/train.py pspnet_r50-d8_512x1024_40k_cityscapes --work-dir exp/mine --seed 0
    torchrun --nproc_per_node 8 tool/train.py --config config/cityscapes/cityscapes_pspnet50.yaml base_lr 0.02

Several GPUs in `train_gpu` are used without torchrun too; srun and mpirun start it as well (tool/slurm.sh).

Writes into `save_path`: train_epoch_N.pth (train_iter_N.pth under max_iter), model_best.pth, config.yaml (as resolved),
train-DATE.log, metrics.jsonl and TensorBoard events. Exit status: 0 = the last epoch is done; 1 = a mistake, said in words;
75 = stopped by a signal and saved: start again with `resume auto`.
"""

import logging
import math
import os
import random
import sys
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import torch
import yaml
from tensorboardX import SummaryWriter

from model import build_model
from model.weights import fetch_torchvision, load_backbone, load_network_weights
from util import board, distributed
from util.check import automatic_class_weights
from util.checkpoint import load_checkpoint, newest_checkpoint, prune_checkpoints, save_checkpoint, set_aside_checkpoints
from util.command import parse_train
from util.config import ROOT, Config, changed_keys, dump_config, load_config
from util.distributed import REQUEUE
from util.inference import predict_probability, prediction_settings
from util.loader import build_data, build_loader, build_val_loader, check_data, end_workers
from util.log import MetricsFile, ProgressBar, build_logger, environment, lock_folder, peak_memory_mb, report_errors
from util.metric import AverageMeter, confusion_matrix, intersectionAndUnionGPU, number, scores
from util.optim import build_optimizer, set_learning_rate
from util.precision import Precision
from util.schedule import build_schedule
from util.visual import default_palette, load_colors, load_names, panel

PANELS = 4  # validation images shown in TensorBoard


@dataclass(frozen=True)
class Plan:
    """How long the run is. It is cut into epochs, after which it validates and saves: once through the data each, or under
    `max_iter` so many iterations, `iter_interval`, wherever the data begin anew."""

    data_iters: int  # iterations once through the data
    epoch_iters: int  # iterations of an epoch
    max_iter: int

    @property
    def epochs(self) -> int:
        return math.ceil(self.max_iter / self.epoch_iters)

    def steps(self, epoch: int) -> int:
        """Iterations of this epoch; the last one may be shorter."""
        return min(self.epoch_iters, self.max_iter - epoch * self.epoch_iters)

    def iteration(self, state) -> int:
        """Finished iterations."""
        return min(state.epoch * self.epoch_iters, self.max_iter) + state.step


@dataclass
class State:
    """Where the run is. All of it goes into the checkpoint, so that a resumed run goes on inside its epoch."""

    epoch: int  # finished epochs
    seed: int
    step: int = 0  # finished iterations of the epoch that runs
    best_score: float | None = None  # main_metric of the best validation
    best_at: str = ""  # its epoch or iteration
    counted: int = 0  # iterations of the epoch that runs, in the two below
    loss_sum: float = 0.0
    areas: list = field(default_factory=list)  # intersection, union and target pixels of each class


@dataclass
class Output:
    """Where a run speaks; in all processes but the main one everything is silent."""

    log: logging.Logger
    metrics: MetricsFile | None = None
    writer: SummaryWriter | None = None

    def scalars(self, iteration: int, epoch: int | None = None, **values) -> None:
        """TensorBoard tags and one line of metrics.jsonl, of one iteration or (with `epoch`) of an epoch that ended there; a
        nan (no class present) is left out."""
        if self.writer is not None:
            values = {tag: value for tag, value in values.items() if not math.isnan(value)}
            self.metrics.write(iteration=iteration, **({"epoch": epoch} if epoch else {}), **values)
            for tag, value in values.items():
                self.writer.add_scalar(tag, value, epoch or iteration)

    def flush(self) -> None:
        if self.writer is not None:
            self.metrics.flush()
            self.writer.flush()


def main(argv=None) -> int:
    argv = sys.argv[1:] if argv is None else argv

    def run():
        with end_workers():
            return train(argv)

    return report_errors(run)


def train(argv) -> int:
    # ---- config ----
    distributed.adopt_launcher()
    with distributed.same_errors():
        path, overrides, notes = parse_train(argv, __doc__)
        cfg = load_config(path, overrides)
        cfg = load_config(path, overrides, must_exist=needed_files(cfg))

    # ---- processes, device, log ----
    machines = {"machines": cfg.world_size, "machine": cfg.rank, "url": cfg.dist_url}
    status = distributed.launch(Path(__file__).resolve(), argv, cfg.train_gpu, **machines)
    if status is not None:
        return status  # the processes that it started have done the work
    if cfg.deterministic:
        distributed.make_deterministic()
    device = distributed.pick_device(cfg.train_gpu)
    distributed.init_process_group(device, cfg.dist_backend)
    with distributed.same_errors():
        check_batch(cfg)
    stop = distributed.StopSignal()
    save_path = Path(cfg.save_path)
    out = Output(build_logger(silent=not distributed.is_main()))
    lock = distributed.on_main(lambda: lock_folder(save_path))  # noqa: F841, the lock lasts as long as this name
    if distributed.is_main():
        out.log = build_logger(save_path / f"train-{time.strftime('%Y%m%d_%H%M%S')}.log")

    # ---- where the weights come from; the first that is set wins ----
    # 1. resume: the full state of a run (network, optimizer, position, best score); `auto` = the newest sound checkpoint
    #    in save_path, `best` = model_best.pth there, if there is one
    # 2. weight: a whole network, trained from iteration 0; with skip_head the classifiers of other classes start random
    # 3. initmodel: the backbone; the heads start random
    # 4. none of them: all random
    resumed = None
    with distributed.same_errors():
        if cfg.resume == "auto":
            resumed = newest_checkpoint(save_path, warn=out.log.warning)
        elif cfg.resume == "best":
            resumed = load_checkpoint(save_path / "model_best.pth") if (save_path / "model_best.pth").exists() else None
        elif cfg.resume:
            resumed = load_checkpoint(cfg.resume)
            if "state" not in resumed or "optimizer" not in resumed:
                raise ValueError(
                    f"{cfg.resume}: not a checkpoint of this project: no run can go on from it; give it as `weight`"
                )
        if resumed:
            check_resumed(cfg, resumed, out.log)
        elif cfg.resume:
            out.log.warning(f"resume: {cfg.resume}: there is no checkpoint in {save_path} yet; the run starts anew")
    seed = random.SystemRandom().randrange(2**31) if cfg.manual_seed is None else cfg.manual_seed
    state = State(epoch=cfg.start_epoch, seed=distributed.from_main(seed))
    if resumed:
        state = state_of(resumed)
    if asdict(state) != distributed.from_main(asdict(state)):
        raise ValueError(f"{save_path}: not the checkpoint that the main process found; all machines must see the same files")

    # ---- data ----
    train_data, val_data = build_data(cfg, state.seed)
    if cfg.check_data and not resumed:
        with distributed.same_errors():
            check_data(train_data, val_data)
    loader = build_loader(cfg, train_data, state.seed, device)
    data_iters = len(train_data) // cfg.batch_size
    plan = Plan(data_iters, data_iters, cfg.epochs * data_iters)
    if cfg.max_iter:
        plan = Plan(data_iters, cfg.iter_interval, cfg.max_iter)
    moved = resumed is not None and find_place(cfg, plan, state, resumed)

    # ---- network, optimizer ----
    torch.manual_seed(state.seed)  # the same first weights in every process
    auto = cfg.class_weights == "auto"
    weights = automatic_class_weights(train_data.data_list, cfg.classes) if auto else cfg.class_weights
    network = build_model(cfg, class_weights=weights)
    if resumed:
        network.load_state_dict(resumed["state_dict"])
    elif cfg.weight:
        report = load_network_weights(network, cfg.weight, skip_head=cfg.skip_head, read=load_checkpoint)
        out.log.info(f"Weights {cfg.weight}:\n{report}")
    elif cfg.initmodel:
        path = initmodel_file(cfg)
        out.log.info(f"Backbone {path}:\n{load_backbone(network, path, read=load_checkpoint)}")
    network.to(device, memory_format=torch.channels_last if cfg.channels_last else torch.preserve_format)
    net = distributed.wrap(network, device, sync_bn=cfg.sync_bn)
    if cfg.compile:
        net = torch.compile(net)
    with distributed.same_errors():
        optimizer = optimizer_of(cfg, network)
        schedule = build_schedule(cfg, plan.max_iter, plan.data_iters)
    precision = Precision(cfg.precision, device)
    if resumed:
        optimizer.load_state_dict(resumed["optimizer"])
        precision.load_state_dict(resumed.get("precision"))

    # ---- say what will happen ----
    origin = cfg.weight or cfg.initmodel or "random"
    if resumed:
        inside = f"epoch {state.epoch}, iteration {state.step}"
        origin = f"resumed at {f'iteration {plan.iteration(state)}' if cfg.max_iter else inside}"
    out.log.info(f"Environment: {environment(device)}, seed {state.seed}")
    out.log.info(f"Config {cfg.path}:\n{dump_config(cfg)}")
    for note in (*notes, *cfg.notes, *launch_notes(cfg)):
        out.log.info(note)
    out.log.info(
        f"{len(train_data)} training images, {data_iters} iterations of {cfg.batch_size} images once through them, "
        f"{plan.max_iter} iterations in all, {distributed.world_size()} process(es) on {device}, weights: {origin}"
    )
    if distributed.is_main():
        first = plan.iteration(state)
        set_aside_checkpoints(save_path, (first, 0) if cfg.max_iter else (state.epoch, state.step), out.log.warning)
        (save_path / "config.yaml").write_text(dump_config(cfg), encoding="utf-8")
        out.writer = SummaryWriter(str(save_path), purge_step=first + 1 if first else None)
        board.log_start(out.writer, cfg)
        # Where epochs have another length now, their numbers say nothing of which lines are beyond the start.
        out.metrics = MetricsFile(save_path / "metrics.jsonl", first, math.inf if moved else state.epoch)

    # ---- loop ----
    def save(name=None):
        name = name or checkpoint_name(cfg, plan, state)
        with distributed.same_errors():
            check_finite(network, state)
        if distributed.is_main():
            out.flush()
            save_checkpoint(checkpoint_of(cfg, plan, network, optimizer, precision, state), save_path / name)
            prune_checkpoints(save_path, keep=cfg.keep_checkpoints)
            out.log.info(f"Saved {save_path / name}")

    def stopped():
        distributed.barrier()  # some launchers end all processes with the first, and the main one may still be saving
        out.log.warning(f"Stopped by {stop.name()}; everything is saved, start again with `resume auto`")
        distributed.close()
        return REQUEUE

    while state.epoch < plan.epochs:
        if not train_one_epoch(cfg, plan, net, network, loader, schedule, optimizer, precision, state, device, out, stop, save):
            return stopped()
        finish_epoch(cfg, plan, state, out)
        if evaluates(cfg, plan, state.epoch):
            result = validate(cfg, plan, network, val_data, precision, state, device, out, stop)
            if result is None:
                return stopped()
            if is_better(cfg, result[cfg.main_metric], state.best_score):
                state.best_score = result[cfg.main_metric]
                state.best_at = f"iteration {plan.iteration(state)}" if cfg.max_iter else f"epoch {state.epoch}"
                save("model_best.pth")
        if state.epoch % cfg.save_freq == 0 or state.epoch == plan.epochs:
            save()
    if state.best_at:
        best = f"{cfg.main_metric} {state.best_score:.4f}, {state.best_at}"
        out.log.info(f"Best validation {best}: {save_path / 'model_best.pth'}")
    distributed.close()
    return 0


def train_one_epoch(cfg, plan, net, network, loader, schedule, optimizer, precision, state, device, out, stop, save) -> bool:
    """Go on with the epoch at `state.step`; False if a signal asked to stop."""
    net.train()
    steps = plan.steps(state.epoch)
    data_epoch, start_batch = divmod(plan.iteration(state), plan.data_iters)
    loader.batch_sampler.set_epoch(data_epoch, start_batch, batches=steps - state.step)
    data_time, batch_time = AverageMeter(), AverageMeter()
    bar = ProgressBar(f"Epoch {state.epoch + 1}/{plan.epochs}", steps)
    pending = []  # results that are still on the device: to read each at once would stop the host at every iteration
    end = time.time()
    for image, label in loader:
        data_time.update(time.time() - end)
        iteration = plan.iteration(state)
        lr, momentum = schedule(iteration)
        set_learning_rate(optimizer, lr, momentum)
        seed_iteration(cfg, state, iteration)
        image, label = image.to(device, non_blocking=True), label.to(device, non_blocking=True)
        pending.append((*update(cfg, net, network, optimizer, precision, image, label), lr))
        state.step += 1
        batch_time.update(time.time() - end)

        last, stopping = state.step == steps, stop.requested()
        count = plan.iteration(state) if cfg.max_iter else state.step
        saving = stopping or cfg.save_iters and count % cfg.save_iters == 0
        saving = saving or last and evaluates(cfg, plan, state.epoch + 1)  # no epoch is lost to a validation that fails
        if count % cfg.print_freq == 0 or saving or last:
            with distributed.same_errors():
                main_loss, aux_loss, loss, accuracy = report_iterations(plan, state, pending, out)
            pending = []
            if out.writer is not None:
                out.writer.add_scalar("images_per_second", cfg.batch_size / batch_time.avg, iteration + 1)
            bar.clear()
            out.log.info(
                f"{place(cfg, plan, state, steps)} "
                f"Data {data_time.val:.3f} ({data_time.avg:.3f}) Batch {batch_time.val:.3f} ({batch_time.avg:.3f}) "
                f"Remain {clock((plan.max_iter - iteration - 1) * batch_time.avg)} "
                f"MainLoss {main_loss:.4f} AuxLoss {aux_loss:.4f} Loss {loss:.4f} Accuracy {accuracy:.4f}. "
                f"Lr {lr:.3e} Memory {peak_memory_mb(device):.0f} MB"
            )
        if saving:
            save()
        if stopping:
            return False
        bar.show(state.step)
        end = time.time()
    bar.clear()
    if data_time.avg > 0.3 * batch_time.avg:
        share = data_time.avg / batch_time.avg
        out.log.warning(f"The network waited for data {share:.0%} of the time: more `workers` would make training faster")
    return True


def seed_iteration(cfg, state, iteration) -> None:
    """Dropout depends on (seed, iteration, process) alone, so that a resumed run draws what an uninterrupted one draws, and a
    checkpoint needs no state of random numbers. Without diff_seed it is the same in every process."""
    torch.manual_seed((state.seed + iteration) * 1009 + cfg.diff_seed * distributed.rank())


def update(cfg, net, network, optimizer, precision, image, label):
    """One optimizer step on this process's part of the global batch, in `accumulate_steps` parts.

    The loss is the mean over the valid pixels of the GLOBAL batch: each part's own mean is weighted with its share of
    them. Returns this process's part of main, aux and total loss (3,) float32 and of the intersection, union and target
    counts (3, K) int64, on the device: summed over processes they are those of the global batch.
    """
    world = distributed.world_size()
    normaliser = distributed.all_reduce_sum(network.valid_pixels(label)).clamp(min=1e-12)
    losses, areas = 0, 0
    parts = list(zip(image.tensor_split(cfg.accumulate_steps), label.tensor_split(cfg.accumulate_steps)))
    optimizer.zero_grad(set_to_none=True)
    for i, (part_image, part_label) in enumerate(parts):
        share = network.valid_pixels(part_label) / normaliser
        with nullcontext() if world == 1 or i == len(parts) - 1 else net.no_sync():
            with precision.autocast():
                pred, main_loss, aux_loss = forward(cfg, net, network, part_image, part_label)
            main_loss, aux_loss = main_loss * share, aux_loss * share
            loss = main_loss + cfg.aux_weight * aux_loss
            precision.backward(loss * world)  # since DistributedDataParallel divides the sum of gradients by the processes
        losses = losses + torch.stack([main_loss, aux_loss, loss]).detach()
        part_label = network.label_of_logits(part_label)
        areas = areas + torch.stack(intersectionAndUnionGPU(pred, part_label, cfg.classes, cfg.ignore_label))
    precision.step(optimizer)
    return losses, areas


def forward(cfg, net, network, image, label):
    """Predicted classes, main and aux loss, computed by the network itself or, the same, from its logits."""
    if not cfg.criterion_outside:
        return net(image, label)
    logits, aux_logits = net(image)
    label = network.label_of_logits(label)
    main_loss = network.criterion(logits, label)
    aux_loss = main_loss.new_zeros(()) if aux_logits is None else network.criterion(aux_logits, label)
    return logits.detach().max(1).indices, main_loss, aux_loss


def report_iterations(plan, state, pending, out):
    """Read the pending results from the device, stop on a loss that is not finite, add the rest to the books.

    Returns main, aux and total loss and the pixel accuracy of the last iteration.
    """
    losses = distributed.all_reduce_sum(torch.stack([losses for losses, _, _ in pending])).tolist()
    areas = distributed.all_reduce_sum(torch.stack([areas for _, areas, _ in pending])).cpu().numpy()
    for i, ((main_loss, aux_loss, loss), area, (_, _, lr)) in enumerate(zip(losses, areas, pending)):
        step = state.step - len(pending) + i + 1
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the loss became {loss} in epoch {state.epoch + 1}, iteration {step} (main {main_loss}, aux {aux_loss}), "
                f"at learning rate {lr:.3e}; the checkpoints written so far are sound. Try a smaller base_lr"
            )
        state.counted += 1
        state.loss_sum += loss
        state.areas = (area + state.areas).tolist() if state.areas else area.tolist()
        batch = scores(*area)
        out.scalars(
            iteration=plan.iteration(state) - len(pending) + i + 1,
            loss_train_batch=loss,
            main_loss_train_batch=main_loss,
            aux_loss_train_batch=aux_loss,
            mIoU_train_batch=batch.mIoU,
            mAcc_train_batch=batch.mAcc,
            allAcc_train_batch=batch.allAcc,
            lr=lr,
        )
    return main_loss, aux_loss, loss, batch.allAcc


def finish_epoch(cfg, plan, state, out) -> None:
    """Report the epoch that ended and open the books of the next one."""
    result, loss = scores(*state.areas), state.loss_sum / state.counted
    state.epoch, state.step = state.epoch + 1, 0
    state.counted, state.loss_sum, state.areas = 0, 0.0, []
    when = f"iteration [{plan.iteration(state)}/{plan.max_iter}]" if cfg.max_iter else f"epoch [{state.epoch}/{plan.epochs}]"
    out.log.info(f"Train result at {when}: mIoU/mAcc/allAcc {result.mIoU:.4f}/{result.mAcc:.4f}/{result.allAcc:.4f}.")
    out.scalars(
        iteration=plan.iteration(state),
        epoch=state.epoch,
        loss_train=loss,
        mIoU_train=result.mIoU,
        mAcc_train=result.mAcc,
        allAcc_train=result.allAcc,
    )


@torch.inference_mode()
def validate(cfg, plan, network, data, precision, state, device, out, stop) -> dict | None:
    """Scores over the whole validation images, by name: one scale, no mirror images, windows as in the test. Each process
    takes every n-th image; the counts are added up once, so the result does not depend on the number of processes. None if a
    signal asked to stop."""
    out.log.info(">>>>>>>>>>>>>>>> Start Evaluation >>>>>>>>>>>>>>>>")
    network.eval()
    images = build_val_loader(cfg, data)
    how = prediction_settings(cfg) | {"scales": (1.0,), "flip": False, "test_batch": cfg.batch_size_val}
    palette = load_colors(cfg.colors_path, cfg.classes) if cfg.colors_path else default_palette(cfg.classes)
    confusion = torch.zeros(cfg.classes, cfg.classes, dtype=torch.int64, device=device)
    loss = torch.zeros(2, dtype=torch.float64, device=device)  # sum of -log p over the labelled pixels, their number
    bar = ProgressBar("Validation", len(images))
    for i, (image, label) in enumerate(images):
        image, label = image.numpy(), label.to(device)
        with precision.autocast():
            probability = predict_probability(network, image, **how)
        pred = probability.argmax(0)
        confusion += confusion_matrix(pred, label, cfg.classes, cfg.ignore_label).to(device)
        labelled = label != cfg.ignore_label
        p = probability.gather(0, label.long().where(labelled, 0)[None])[0][labelled]
        loss += torch.stack([-p.clamp(min=1e-12).log().double().sum(), labelled.sum().double()])
        if out.writer is not None and i < PANELS:
            picture = panel(image, label.cpu().numpy(), pred.cpu().numpy(), palette, cfg.ignore_label)
            out.writer.add_image(f"val/{i}_input_label_prediction", picture, state.epoch, dataformats="HWC")
        bar.show(i + 1)
        if stop.received:
            break
    bar.clear()
    if stop.requested():
        return None
    confusion = distributed.all_reduce_sum(confusion)
    result = scores(confusion)
    nll, pixels = distributed.all_reduce_sum(loss).tolist()
    values = {"loss": nll / max(pixels, 1)}
    values |= {name: getattr(result, name) for name in ("mIoU", "mAcc", "allAcc", "fwIoU", "mDice")}
    out.log.info(f"Val result: mIoU/mAcc/allAcc {result.mIoU:.4f}/{result.mAcc:.4f}/{result.allAcc:.4f}.")
    names = load_names(cfg.names_path, cfg.classes) if cfg.names_path else [f"class {i}" for i in range(cfg.classes)]
    for i, name in enumerate(names):
        iou, accuracy = number(result.iou[i]), number(result.accuracy[i])
        out.log.info(f"Class_{i} Result: iou/accuracy {iou}/{accuracy}. {name}".rstrip())
    if out.writer is not None:
        board.log_validation(out.writer, result, confusion.cpu().numpy(), names, state.epoch)
    out.scalars(iteration=plan.iteration(state), epoch=state.epoch, **{f"{name}_val": value for name, value in values.items()})
    out.log.info("<<<<<<<<<<<<<<<<< End Evaluation <<<<<<<<<<<<<<<<<")
    return values


def evaluates(cfg, plan, epoch) -> bool:
    """Does a validation follow this epoch?"""
    return cfg.evaluate and (epoch % cfg.eval_freq == 0 or epoch == plan.epochs)


def is_better(cfg, score, best) -> bool:
    """A nan, where no class was there to score, is never better."""
    return not math.isnan(score) and (best is None or (score < best if cfg.minimize_metric else score > best))


def place(cfg, plan, state, steps) -> str:
    if cfg.max_iter:
        return f"Iter: [{plan.iteration(state)}/{plan.max_iter}]"
    return f"Epoch: [{state.epoch + 1}/{plan.epochs}][{state.step}/{steps}]"


def checkpoint_name(cfg, plan, state) -> str:
    if cfg.max_iter:
        return f"train_iter_{plan.iteration(state)}.pth"
    return f"train_epoch_{state.epoch}{f'_iter_{state.step}' if state.step else ''}.pth"


def optimizer_of(cfg, network):
    keys = ("base_lr", "head_lr_factor", "momentum", "weight_decay", "bias_decay", "norm_decay")
    try:
        return build_optimizer(network, rules=cfg.param_rules, **{key: getattr(cfg, key) for key in keys})
    except ValueError as mistake:
        raise ValueError(f"{cfg.path}: TRAIN.{mistake}") from None


def checkpoint_of(cfg, plan, network, optimizer, precision, state) -> dict:
    return {
        "epoch": plan.iteration(state) // plan.data_iters,
        "iteration": plan.iteration(state),
        "state_dict": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "precision": precision.state_dict(),
        "state": asdict(state),
        "config": dump_config(cfg),
    }


def check_finite(network, state) -> None:
    """A checkpoint with a weight that is not a number would be worse than none."""
    for name, tensor in network.state_dict().items():
        if not tensor.isfinite().all():
            raise FloatingPointError(
                f"{name} became infinite or nan in epoch {state.epoch + 1}, iteration {state.step}; the checkpoints written so "
                "far are sound. Try a smaller base_lr"
            )


def check_resumed(cfg, resumed, log) -> None:
    """A checkpoint goes on only under a config that gives its position the same meaning; other changes are noted."""
    changes = changed_keys(resumed["config"], cfg)
    for key, (old, new) in changes.items():
        log.info(f"Resuming with a changed {key}: {old} -> {new}")
    if resumed["state"]["step"] and {"batch_size", "train_list"} & changes.keys():
        raise ValueError(
            f"{cfg.path}: the checkpoint stands inside an epoch, and batch_size or train_list changed since; "
            "set them back, or resume from a checkpoint at the end of an epoch or interval"
        )


def state_of(resumed) -> State:
    """That of a checkpoint, also of one written before `main_metric` and `max_iter` were there."""
    state = dict(resumed["state"])
    if "best_mIoU" in state:
        score, epoch = state.pop("best_mIoU"), state.pop("best_epoch")
        state |= {"best_score": score, "best_at": f"epoch {epoch}"} if epoch else {}
        state["counted"] = state["step"]
    return State(**state)


def find_place(cfg, plan, state, resumed) -> bool:
    """A run that counts in intervals, or did before, goes on at its iteration, however long they are now: True if it moved."""
    iteration = resumed.get("iteration", state.epoch * plan.data_iters + state.step)
    counted_epochs = not cfg.max_iter and not yaml.safe_load(resumed["config"])["TRAIN"].get("max_iter")
    if counted_epochs or plan.iteration(state) == iteration:
        return False
    state.epoch, state.step = divmod(iteration, plan.epoch_iters)
    if iteration >= plan.max_iter:
        state.epoch, state.step = plan.epochs, 0
    state.counted, state.loss_sum, state.areas = 0, 0.0, []
    return True


def check_batch(cfg) -> None:
    smallest = cfg.batch_size // distributed.world_size() // cfg.accumulate_steps
    synced = cfg.sync_bn and distributed.world_size() > 1
    if smallest < 1 or smallest == 1 and not synced:
        raise ValueError(
            f"{cfg.path}: TRAIN.batch_size: {cfg.batch_size} over {distributed.world_size()} process(es) and accumulate_steps "
            f"{cfg.accumulate_steps} leaves {smallest} image(s) at a time, and BatchNorm over the 1x1 bin of the pyramid needs "
            "two or more; raise batch_size, lower accumulate_steps, or train on several processes with sync_bn: True"
        )


def launch_notes(cfg):
    """What keys of the config do not do, or will not."""
    if cfg.test_list and not Path(cfg.test_list).exists():
        yield f"test_list: {cfg.test_list} does not exist; the training does not need it, but the test will"
    if not cfg.max_iter and cfg.iter_interval != Config.iter_interval:
        yield f"iter_interval: {cfg.iter_interval} is for runs of max_iter iterations; this one counts epochs"
    if cfg.world_size not in (1, int(os.environ.get("GROUP_WORLD_SIZE", 1))):
        yield f"world_size: {cfg.world_size}, rank and dist_url are not used: the launcher knows the machines"
    if not cfg.multiprocessing_distributed and cfg.train_gpu and len(cfg.train_gpu) > 1:
        yield "multiprocessing_distributed: False meant DataParallel; every GPU has a process of its own now"


def needed_files(cfg) -> list[str]:
    weights = [key for key in ("weight", "resume") if getattr(cfg, key) not in (None, "auto", "best")]
    if not weights and cfg.initmodel not in (None, "torchvision"):
        weights = ["initmodel"]
    return ["data_root", "train_list", *weights, *(["val_list"] if cfg.evaluate else [])]


def initmodel_file(cfg):
    """Path of the backbone's weights; those of torchvision are fetched by the main process, once."""
    if cfg.initmodel != "torchvision":
        return cfg.initmodel
    if distributed.is_main():
        fetch_torchvision(cfg.layers, ROOT / "initmodel")
    distributed.barrier()
    return fetch_torchvision(cfg.layers, ROOT / "initmodel")


def clock(seconds: float) -> str:
    """HH:MM:SS, with as many hours as it takes."""
    return f"{int(seconds) // 3600:02d}:{int(seconds) // 60 % 60:02d}:{int(seconds) % 60:02d}"


if __name__ == "__main__":
    sys.exit(main())
