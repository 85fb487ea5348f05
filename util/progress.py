"""What a training run reports: log lines, metrics.jsonl and TensorBoard."""

import math
import os

import torch

from util import board, distributed
from util.common import Mistake
from util.config import Config, dump_config
from util.log import environment, peak_memory_mb
from util.metric import number, scores


def log_start(run, notes) -> None:
    cfg, plan, first = run.cfg, run.plan, run.state.iteration
    run.log.info(f"Environment: {environment(run.device)}, seed {run.state.seed}")
    run.log.debug(f"Config {cfg.path}:\n{dump_config(cfg)}")  # in the log file
    for note in (*notes, *cfg.notes, *unused_keys(cfg)):
        run.log.info(note)
    resumed = f"resumed at iteration {first} (epoch {plan.epoch(first)})"
    run.log.info(
        f"{cfg.path}: {len(run.train_data)} training images, {plan.data_iters} iterations of {cfg.batch_size} images an epoch, "
        f"{plan.max_iter} iterations in all, {distributed.world_size()} process(es) on {run.device} in {run.precision.label}, "
        f"weights: {resumed if run.resumed else cfg.weight or cfg.initmodel or 'random'}"
    )


def unused_keys(cfg):
    """Notes on some keys of the config that have no effect, or will be missed later."""
    if cfg.test_list and not os.path.exists(cfg.test_list):  # noqa: PTH110, Path.exists raises where the name is too long
        yield f"test_list: {cfg.test_list} does not exist; the training does not need it, but the test will"
    if not cfg.max_iter and cfg.iter_interval != Config.iter_interval:
        yield f"iter_interval: {cfg.iter_interval} is for runs of max_iter iterations; this one counts epochs"
    if cfg.world_size not in (1, int(os.environ.get("GROUP_WORLD_SIZE", 1))):
        yield f"world_size: {cfg.world_size}, rank and dist_url are not used: the launcher knows the machines"
    if not cfg.multiprocessing_distributed and cfg.train_gpu and len(cfg.train_gpu) > 1:
        yield "multiprocessing_distributed: False meant DataParallel; every GPU has a process of its own now"


def report_iterations(run, pending):
    """Read the pending results from the device, check that the losses are finite, accumulate and write them.

    Returns main, aux and total loss and the pixel accuracy of the last iteration.
    """
    state = run.state
    losses = distributed.all_reduce_sum(torch.stack([losses for losses, _, _ in pending])).tolist()
    areas = distributed.all_reduce_sum(torch.stack([areas for _, areas, _ in pending])).cpu().numpy()
    for i, ((main_loss, aux_loss, loss), area, (_, _, lr)) in enumerate(zip(losses, areas, pending)):
        iteration = state.iteration - len(pending) + i + 1
        if not math.isfinite(loss):
            raise Mistake(
                f"the loss became {loss} in {run.plan.place(iteration)} (main {main_loss}, aux {aux_loss}), "
                f"at learning rate {lr:.3e}; the checkpoints written so far are sound. Try a smaller base_lr"
            )
        state.counted += 1
        state.loss_sum += loss
        state.areas = (area + state.areas).tolist() if state.areas else area.tolist()
        batch = scores(*area)
        run.out.scalars(
            iteration,
            loss_train_batch=loss,
            main_loss_train_batch=main_loss,
            aux_loss_train_batch=aux_loss,
            mIoU_train_batch=batch.mIoU,
            mAcc_train_batch=batch.mAcc,
            allAcc_train_batch=batch.allAcc,
            lr=lr,
        )
    return main_loss, aux_loss, loss, batch.allAcc


def log_iteration(run, results, data_time, batch_time, lr) -> None:
    """The line of the original, with learning rate and memory behind it. Seconds: of the last iteration (Data) and the mean of
    the iterations since the last line (Batch); in brackets the mean of the interval."""
    plan, iteration = run.plan, run.state.iteration
    main_loss, aux_loss, loss, accuracy = results
    where = f"Iter: [{iteration}/{plan.max_iter}]"
    if plan.counts_epochs:
        epoch, step = divmod(iteration - 1, plan.data_iters)
        where = f"Epoch: [{epoch + 1}/{run.cfg.epochs}][{step + 1}/{plan.data_iters}]"
    if run.out.writer is not None:
        run.out.writer.add_scalar("images_per_second", run.cfg.batch_size / batch_time.avg, iteration)
    run.log.info(
        f"{where} Data {data_time.val:.3f} ({data_time.avg:.3f}) Batch {batch_time.val:.3f} ({batch_time.avg:.3f}) "
        f"Remain {clock((plan.max_iter - iteration) * batch_time.avg)} "
        f"MainLoss {main_loss:.4f} AuxLoss {aux_loss:.4f} Loss {loss:.4f} Accuracy {accuracy:.4f}. "
        f"Lr {lr:.3e} Memory {peak_memory_mb(run.device):.0f} MiB"
    )


def report_interval(run) -> None:
    """Scores of the training batches since the last interval ended."""
    plan, state = run.plan, run.state
    result, loss = scores(*state.areas), state.loss_sum / state.counted
    if math.isnan(result.allAcc):
        raise Mistake(
            f"{run.cfg.train_list}: no labelled pixel in {state.counted} iterations: all labels are {run.cfg.ignore_label}"
        )
    at = f"iteration [{state.iteration}/{plan.max_iter}]"
    if plan.counts_epochs:
        at = f"epoch [{plan.epoch(state.iteration)}/{run.cfg.epochs}]"
    run.log.info(f"Train result at {at}: mIoU/mAcc/allAcc {result.mIoU:.4f}/{result.mAcc:.4f}/{result.allAcc:.4f}.")
    run.out.scalars(
        state.iteration,
        epoch=plan.epoch(state.iteration),
        loss_train=loss,
        mIoU_train=result.mIoU,
        mAcc_train=result.mAcc,
        allAcc_train=result.allAcc,
    )


def report_validation(run, protocol, confusion, nll, pixels) -> dict:
    """Log the scores of a confusion matrix (K, K) and of a summed loss, with their protocol; returns {name: score}."""
    result = scores(confusion)
    values = {"loss": nll / pixels if pixels else math.nan} | result.means
    run.log.info(f"Val result: mIoU/mAcc/allAcc {result.mIoU:.4f}/{result.mAcc:.4f}/{result.allAcc:.4f}.")
    run.log.info(f"Protocol: {', '.join(f'{key} {value}' for key, value in protocol.items())}")
    for i, name in enumerate(run.names):
        iou, accuracy = number(result.iou[i]), number(result.accuracy[i])
        run.log.info(f"Class_{i} Result: iou/accuracy {iou}/{accuracy}. {name}")
    if run.out.writer is not None:
        board.log_validation(run.out.writer, result, confusion.cpu().numpy(), run.names, run.state.iteration)
    run.out.scalars(run.state.iteration, **{f"{name}_val": value for name, value in values.items()})
    run.log.info("<<<<<<<<<<<<<<<<< End Evaluation <<<<<<<<<<<<<<<<<")
    return values


def clock(seconds: float) -> str:
    """HH:MM:SS, with as many hours as it takes."""
    return f"{int(seconds) // 3600:02d}:{int(seconds) // 60 % 60:02d}:{int(seconds) % 60:02d}"
