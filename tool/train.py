"""Train a scene-parsing network.

    python tool/train.py --config config/toy/toy_pspnet18.yaml
    torchrun --nproc_per_node 8 tool/train.py --config config/cityscapes/cityscapes_pspnet50.yaml base_lr 0.02

Several GPUs in `train_gpu` are used without torchrun too; srun and mpirun start it as well (tool/slurm.sh).

Writes into `save_path`: train_epoch_N.pth, model_best.pth, config.yaml (as resolved), train-DATE.log, metrics.jsonl and
TensorBoard events. Exit status: 0 = the last epoch is done; 1 = a mistake, said in words; 75 = stopped by a signal and
saved: start again with `resume auto`.
"""

import argparse
import logging
import math
import multiprocessing
import os
import random
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import torch
from tensorboardX import SummaryWriter
from torch.utils.data import DataLoader

from model import build_model
from model.weights import fetch_torchvision, load_backbone, load_network_weights
from util import board, distributed, transform
from util.check import automatic_class_weights
from util.checkpoint import load_checkpoint, newest_checkpoint, prune_checkpoints, save_checkpoint, set_aside_checkpoints
from util.config import ROOT, changed_keys, dump_config, load_config
from util.dataset import EpochSampler, SemData, worker_init
from util.distributed import REQUEUE
from util.inference import predict_probability
from util.log import MetricsFile, ProgressBar, build_logger, environment, lock_folder, peak_memory_mb, report_errors
from util.metric import AverageMeter, confusion_matrix, intersectionAndUnionGPU, number, scores
from util.optim import build_optimizer, poly_learning_rate, set_learning_rate
from util.precision import Precision
from util.transform import MEAN, STD
from util.visual import default_palette, load_colors, load_names, panel

PANELS = 4  # validation images shown in TensorBoard


@dataclass
class State:
    """Where the run is. All of it goes into the checkpoint, so that a resumed run goes on inside its epoch."""

    epoch: int  # finished epochs
    seed: int
    step: int = 0  # finished iterations of the epoch that runs
    best_mIoU: float = -1.0
    best_epoch: int = 0
    loss_sum: float = 0.0  # over the iterations of the epoch that runs
    areas: list = field(default_factory=list)  # likewise: intersection, union and target pixels of each class


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
    args = parse_args(argv)

    def run():
        with end_workers():
            return train(args, argv)

    return report_errors(run)


def train(args, argv) -> int:
    # ---- config ----
    distributed.adopt_launcher()
    with distributed.same_errors():
        cfg = load_config(args.config, args.opts)
        cfg = load_config(args.config, args.opts, must_exist=needed_files(cfg))

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
    #    in save_path, if there is one
    # 2. weight: a whole network, trained from iteration 0; with skip_head the classifiers of other classes start random
    # 3. initmodel: the backbone; the heads start random
    # 4. none of them: all random
    resumed = None
    with distributed.same_errors():
        if cfg.resume == "auto":
            resumed = newest_checkpoint(save_path, warn=out.log.warning)
        elif cfg.resume:
            resumed = load_checkpoint(cfg.resume)
            if "state" not in resumed or "optimizer" not in resumed:
                raise ValueError(
                    f"{cfg.resume}: not a checkpoint of this project: no run can go on from it; give it as `weight`"
                )
        if resumed:
            check_resumed(cfg, resumed, out.log)
    seed = random.SystemRandom().randrange(2**31) if cfg.manual_seed is None else cfg.manual_seed
    state = State(epoch=cfg.start_epoch, seed=distributed.from_main(seed))
    if resumed:
        state = State(**resumed["state"])
    if asdict(state) != distributed.from_main(asdict(state)):
        raise ValueError(f"{save_path}: not the checkpoint that the main process found; all machines must see the same files")

    # ---- data ----
    train_data, val_data = build_data(cfg, state.seed)
    if cfg.check_data and not resumed:
        with distributed.same_errors():
            check_data(train_data, val_data)
    loader = build_loader(cfg, train_data, state.seed, device)
    steps = len(train_data) // cfg.batch_size  # iterations an epoch

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
    optimizer = build_optimizer(
        network.backbone_modules(),
        network.head_modules(),
        base_lr=cfg.base_lr,
        head_lr_factor=cfg.head_lr_factor,
        momentum=cfg.momentum,
        weight_decay=cfg.weight_decay,
    )
    precision = Precision(cfg.precision, device)
    if resumed:
        optimizer.load_state_dict(resumed["optimizer"])
        precision.load_state_dict(resumed.get("precision"))

    # ---- say what will happen ----
    origin = f"resumed at epoch {state.epoch}, iteration {state.step}" if resumed else cfg.weight or cfg.initmodel or "random"
    out.log.info(f"Environment: {environment(device)}, seed {state.seed}")
    out.log.info(f"Config {cfg.path}:\n{dump_config(cfg)}")
    for note in (*cfg.notes, *launch_notes(cfg)):
        out.log.info(note)
    out.log.info(
        f"{len(train_data)} training images, {steps} iterations of {cfg.batch_size} images an epoch, "
        f"{distributed.world_size()} process(es) on {device}, weights: {origin}"
    )
    if distributed.is_main():
        first = state.epoch * steps + state.step
        set_aside_checkpoints(save_path, (state.epoch, state.step), out.log.warning)
        (save_path / "config.yaml").write_text(dump_config(cfg), encoding="utf-8")
        out.writer = SummaryWriter(str(save_path), purge_step=first + 1 if first else None)
        board.log_start(out.writer, cfg)
        out.metrics = MetricsFile(save_path / "metrics.jsonl", first, state.epoch)

    # ---- loop ----
    def save(name):
        with distributed.same_errors():
            check_finite(network, state)
        if distributed.is_main():
            out.flush()
            save_checkpoint(checkpoint_of(cfg, network, optimizer, precision, state), save_path / name)
            prune_checkpoints(save_path, keep=cfg.keep_checkpoints)
            out.log.info(f"Saved {save_path / name}")

    def stopped():
        distributed.barrier()  # some launchers end all processes with the first, and the main one may still be saving
        out.log.warning(f"Stopped by {stop.name()}; everything is saved, start again with `resume auto`")
        distributed.close()
        return REQUEUE

    while state.epoch < cfg.epochs:
        if not train_one_epoch(cfg, net, network, loader, steps, optimizer, precision, state, device, out, stop, save):
            return stopped()
        finish_epoch(cfg, state, steps, out)
        if evaluates(cfg, state.epoch):
            mIoU = validate(cfg, network, val_data, precision, state, steps, device, out, stop)
            if mIoU is None:
                return stopped()
            if mIoU > state.best_mIoU:
                state.best_mIoU, state.best_epoch = mIoU, state.epoch
                save("model_best.pth")
        if state.epoch % cfg.save_freq == 0 or state.epoch == cfg.epochs:
            save(f"train_epoch_{state.epoch}.pth")
    if state.best_epoch:
        out.log.info(f"Best validation mIoU {state.best_mIoU:.4f}, epoch {state.best_epoch}: {save_path / 'model_best.pth'}")
    distributed.close()
    return 0


def train_one_epoch(cfg, net, network, loader, steps, optimizer, precision, state, device, out, stop, save) -> bool:
    """Go on with the epoch at `state.step`; False if a signal asked to stop."""
    net.train()
    loader.batch_sampler.set_epoch(state.epoch, start_batch=state.step)
    max_iter = cfg.epochs * steps
    data_time, batch_time = AverageMeter(), AverageMeter()
    bar = ProgressBar(f"Epoch {state.epoch + 1}/{cfg.epochs}", steps)
    pending = []  # results that are still on the device: to read each at once would stop the host at every iteration
    end = time.time()
    for image, label in loader:
        data_time.update(time.time() - end)
        iteration = state.epoch * steps + state.step
        lr = poly_learning_rate(cfg.base_lr, iteration, max_iter, cfg.power)
        set_learning_rate(optimizer, lr)
        seed_iteration(cfg, state, iteration)
        image, label = image.to(device, non_blocking=True), label.to(device, non_blocking=True)
        pending.append((*update(cfg, net, network, optimizer, precision, image, label), lr))
        state.step += 1
        batch_time.update(time.time() - end)

        last, stopping = state.step == steps, stop.requested()
        saving = stopping or cfg.save_iters and state.step % cfg.save_iters == 0
        saving = saving or last and evaluates(cfg, state.epoch + 1)  # no epoch is lost to a validation that fails
        if state.step % cfg.print_freq == 0 or saving or last:
            with distributed.same_errors():
                main_loss, aux_loss, loss, accuracy = report_iterations(state, steps, pending, out)
            pending = []
            if out.writer is not None:
                out.writer.add_scalar("images_per_second", cfg.batch_size / batch_time.avg, iteration + 1)
            bar.clear()
            out.log.info(
                f"Epoch: [{state.epoch + 1}/{cfg.epochs}][{state.step}/{steps}] "
                f"Data {data_time.val:.3f} ({data_time.avg:.3f}) Batch {batch_time.val:.3f} ({batch_time.avg:.3f}) "
                f"Remain {clock((max_iter - iteration - 1) * batch_time.avg)} "
                f"MainLoss {main_loss:.4f} AuxLoss {aux_loss:.4f} Loss {loss:.4f} Accuracy {accuracy:.4f}. "
                f"Lr {lr:.3e} Memory {peak_memory_mb(device):.0f} MB"
            )
        if saving:
            save(f"train_epoch_{state.epoch}_iter_{state.step}.pth")
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
                pred, main_loss, aux_loss = net(part_image, part_label)
            main_loss, aux_loss = main_loss * share, aux_loss * share
            loss = main_loss + cfg.aux_weight * aux_loss
            precision.backward(loss * world)  # since DistributedDataParallel divides the sum of gradients by the processes
        losses = losses + torch.stack([main_loss, aux_loss, loss]).detach()
        part_label = network.label_of_logits(part_label)
        areas = areas + torch.stack(intersectionAndUnionGPU(pred, part_label, cfg.classes, cfg.ignore_label))
    precision.step(optimizer)
    return losses, areas


def report_iterations(state, steps, pending, out):
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
        state.loss_sum += loss
        state.areas = (area + state.areas).tolist() if state.areas else area.tolist()
        batch = scores(*area)
        out.scalars(
            iteration=state.epoch * steps + step,
            loss_train_batch=loss,
            main_loss_train_batch=main_loss,
            aux_loss_train_batch=aux_loss,
            mIoU_train_batch=batch.mIoU,
            mAcc_train_batch=batch.mAcc,
            allAcc_train_batch=batch.allAcc,
            lr=lr,
        )
    return main_loss, aux_loss, loss, batch.allAcc


def finish_epoch(cfg, state, steps, out) -> None:
    """Report the epoch that ended and open the books of the next one."""
    result, loss = scores(*state.areas), state.loss_sum / steps
    state.epoch, state.step, state.loss_sum, state.areas = state.epoch + 1, 0, 0.0, []
    out.log.info(
        f"Train result at epoch [{state.epoch}/{cfg.epochs}]: "
        f"mIoU/mAcc/allAcc {result.mIoU:.4f}/{result.mAcc:.4f}/{result.allAcc:.4f}."
    )
    out.scalars(
        iteration=state.epoch * steps,
        epoch=state.epoch,
        loss_train=loss,
        mIoU_train=result.mIoU,
        mAcc_train=result.mAcc,
        allAcc_train=result.allAcc,
    )


@torch.inference_mode()
def validate(cfg, network, data, precision, state, steps, device, out, stop) -> float | None:
    """mIoU over the whole validation images: one scale, no mirror images, windows as in the test. Each process takes every
    n-th image; the counts are added up once, so the result does not depend on the number of processes. None if a signal asked
    to stop."""
    out.log.info(">>>>>>>>>>>>>>>> Start Evaluation >>>>>>>>>>>>>>>>")
    network.eval()
    rank, world = distributed.rank(), distributed.world_size()
    mine = range(rank, len(data), world)
    images = DataLoader(data, None, sampler=mine, worker_init_fn=worker_init, **loader_workers(cfg))
    palette = load_colors(cfg.colors_path, cfg.classes) if cfg.colors_path else default_palette(cfg.classes)
    confusion = torch.zeros(cfg.classes, cfg.classes, dtype=torch.int64, device=device)
    loss = torch.zeros(2, dtype=torch.float64, device=device)  # sum of -log p over the labelled pixels, their number
    bar = ProgressBar("Validation", len(mine))
    for i, (image, label) in enumerate(images):
        image, label = image.numpy(), label.to(device)
        with precision.autocast():
            probability = predict_probability(
                network,
                image,
                classes=cfg.classes,
                base_size=cfg.base_size,
                crop_h=cfg.test_h or cfg.train_h,
                crop_w=cfg.test_w or cfg.train_w,
                scales=(1.0,),
                mean=MEAN,
                std=STD,
                flip=False,
                test_batch=cfg.batch_size_val,
                mode=cfg.test_mode,
            )
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
    result = scores(distributed.all_reduce_sum(confusion))
    nll, pixels = distributed.all_reduce_sum(loss).tolist()
    out.log.info(f"Val result: mIoU/mAcc/allAcc {result.mIoU:.4f}/{result.mAcc:.4f}/{result.allAcc:.4f}.")
    names = load_names(cfg.names_path, cfg.classes) if cfg.names_path else [f"class {i}" for i in range(cfg.classes)]
    for i, name in enumerate(names):
        iou, accuracy = number(result.iou[i]), number(result.accuracy[i])
        out.log.info(f"Class_{i} Result: iou/accuracy {iou}/{accuracy}. {name}".rstrip())
    if out.writer is not None:
        board.log_validation(out.writer, result, confusion.cpu().numpy(), names, state.epoch)
    out.scalars(
        iteration=state.epoch * steps,
        epoch=state.epoch,
        loss_val=nll / max(pixels, 1),
        mIoU_val=result.mIoU,
        mAcc_val=result.mAcc,
        allAcc_val=result.allAcc,
    )
    out.log.info("<<<<<<<<<<<<<<<<< End Evaluation <<<<<<<<<<<<<<<<<")
    return result.mIoU


def build_data(cfg, seed):
    """Training set with the standard augmentation, and validation set (None without `evaluate`)."""
    augmentation = transform.Compose(
        [
            transform.RandScale([cfg.scale_min, cfg.scale_max]),
            transform.RandRotate([cfg.rotate_min, cfg.rotate_max], padding=MEAN, ignore_label=cfg.ignore_label),
            transform.RandomGaussianBlur(),
            transform.RandomHorizontalFlip(),
            transform.Crop([cfg.train_h, cfg.train_w], "rand", padding=MEAN, ignore_label=cfg.ignore_label),
            transform.ToTensor(),
            transform.Normalize(MEAN, STD),
        ],
        lazy=True,
    )
    how = {"classes": cfg.classes, "ignore_label": cfg.ignore_label, "cache": cfg.cache}
    train_data = SemData("train", cfg.data_root, cfg.train_list, augmentation, seed=seed, **how)
    return train_data, SemData("val", cfg.data_root, cfg.val_list, None, **how) if cfg.evaluate else None


def build_loader(cfg, data, seed, device):
    """Batches of this process. The order depends on (seed, epoch) alone, whatever the number of processes and workers."""
    sampler = EpochSampler(
        len(data), cfg.batch_size, seed=seed, epoch=0, rank=distributed.rank(), world_size=distributed.world_size()
    )
    workers = loader_workers(cfg)
    return DataLoader(
        data,
        batch_sampler=sampler,
        worker_init_fn=worker_init,
        persistent_workers=workers["num_workers"] > 0,
        pin_memory=device.type == "cuda",
        generator=torch.Generator().manual_seed(seed * 1009 + distributed.rank()),  # for transforms with numbers of their own
        **workers,
    )


def loader_workers(cfg) -> dict:
    """Worker processes of this process: `workers` is for the whole machine, and more than it has cores only cost memory."""
    workers = math.ceil(min(cfg.workers, os.cpu_count() or 1) / distributed.local_world_size())
    if not workers:
        return {"num_workers": 0}
    fork = "fork" if sys.platform == "linux" else None  # Python 3.14 would put a server between, and a worker's death go unseen
    return {"num_workers": workers, "timeout": cfg.loader_timeout, "multiprocessing_context": fork}


@contextmanager
def end_workers():
    """At the end, kill the loader workers that an error leaves behind: the program would wait for ever for one that hangs."""
    try:
        yield
    finally:
        for child in multiprocessing.active_children():
            if child.daemon:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch would report their death as another error
                child.kill()


def evaluates(cfg, epoch) -> bool:
    """Does a validation follow this epoch?"""
    return cfg.evaluate and (epoch % cfg.eval_freq == 0 or epoch == cfg.epochs)


def checkpoint_of(cfg, network, optimizer, precision, state) -> dict:
    return {
        "epoch": state.epoch,
        "state_dict": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "precision": precision.state_dict(),
        "state": asdict(state),
        "config": dump_config(cfg),
    }


def check_data(*datasets) -> None:
    """Read every image and label once, and report all that is wrong at once: better now than in the middle of the night."""
    samples = [(data, index) for data in datasets if data is not None for index in range(len(data))]
    mine = samples[distributed.rank() :: distributed.world_size()]
    bar = ProgressBar("Checking the data", len(mine))

    def mistake(sample):
        data, index = sample
        try:
            data.read(index)
        except (ValueError, OSError) as error:
            return str(error)
        return None

    mistakes = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # OpenCV decodes without holding Python's lock
        for done, found in enumerate(pool.map(mistake, mine), 1):
            mistakes += [found] if found else []
            bar.show(done)
    bar.clear()
    mistakes = distributed.gather(mistakes)
    if mistakes:
        more = f"\n... and {len(mistakes) - 10} more" if len(mistakes) > 10 else ""
        raise ValueError(f"{len(mistakes)} of {len(samples)} samples are faulty:\n" + "\n".join(mistakes[:10]) + more)


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
            "set them back, or resume from a train_epoch_N.pth without `_iter_`"
        )


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
    """What old keys of the config meant, where that is not what happens."""
    if cfg.world_size not in (1, int(os.environ.get("GROUP_WORLD_SIZE", 1))):
        yield f"world_size: {cfg.world_size}, rank and dist_url are not used: the launcher knows the machines"
    if not cfg.multiprocessing_distributed and cfg.train_gpu and len(cfg.train_gpu) > 1:
        yield "multiprocessing_distributed: False meant DataParallel; every GPU has a process of its own now"


def needed_files(cfg) -> list[str]:
    weights = [key for key in ("weight", "resume") if getattr(cfg, key) not in (None, "auto")]
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


def parse_args(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="YAML file of the experiment")
    parser.add_argument("--local-rank", "--local_rank", type=int, help="given by torch.distributed.launch; not needed")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="override keys of the config: base_lr 0.02 epochs 10")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
