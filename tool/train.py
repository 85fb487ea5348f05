"""Train a scene-parsing network.

    python tool/train.py --config config/toy/toy_pspnet18.yaml
    python tool/train.py pspnet_r50-d8_512x1024_40k_cityscapes --work-dir exp/first --seed 0
    torchrun --nproc_per_node 8 tool/train.py --config config/cityscapes/cityscapes_pspnet50.yaml base_lr 0.02

Several GPUs in `train_gpu` are used without torchrun too; srun and mpirun start it as well (tool/slurm.sh).

Writes into `save_path`: train_epoch_N.pth (train_iter_N.pth under max_iter), model_best.pth, config.yaml (as resolved),
train-DATE.log, metrics.jsonl and TensorBoard events; what an earlier run left there is moved into earlier-N. Exit status: 0 =
the run is complete; 1 = an error; 75 = stopped by a signal, and what it did is saved (where this program or train_dist.sh has
started several processes: stopped by a signal; the log says what is saved): start again with `resume auto`.
"""

import glob
import logging
import math
import random
import signal
import sys
import time
import zlib
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path

if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGQUIT):  # a shell ignores them in its background, where train.sh starts this
        signal.signal(number, signal.SIG_DFL)  # Ctrl-C ends the imports without a traceback; later see StopSignal
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import util.start  # noqa: F401  # isort: skip, before the packages
import torch

from model import build_model, check_config, images_needed
from model.weights import fetch_torchvision, load_backbone, load_network_weights
from util import distributed
from util.checkpoint import load_checkpoint
from util.command import parse_train
from util.common import Mistake, first_few
from util.config import ROOT, changed_keys, config_error, load_config
from util.distributed import REQUEUE
from util.ema import Average
from util.fetch import local_file
from util.image import read_text
from util.inference import NOT_FINITE, predict_probability, prediction_protocol, prediction_settings
from util.loader import automatic_class_weights, build_data, build_loader, build_val_loader, check_data, end_workers
from util.log import ProgressBar, build_logger, lock_folder, report_errors
from util.metric import AverageMeter, confusion_matrix, intersectionAndUnionGPU
from util.optim import build_optimizer, set_learning_rate
from util.precision import shared_precision
from util.progress import log_iteration, log_start, report_interval, report_iterations, report_validation
from util.run import Plan, Run, State, find_checkpoint, open_output, restore, save, state_of
from util.schedule import build_schedule
from util.visual import changed_names, class_names, palette_of, panel

PANELS = 4  # validation images shown in TensorBoard


def main(argv=None) -> int:
    argv = sys.argv[1:] if argv is None else argv

    def program():
        with end_workers():
            try:
                return train(argv)
            except distributed.StoppedEarly as name:
                logging.getLogger("semseg").warning(f"Stopped by {name} before the first iteration: start again")
                return REQUEUE

    return report_errors(program)


def train(argv) -> int:
    with distributed.same_errors():
        distributed.adopt_launcher()
        cfg, notes = read_config(argv)
    machines = {"machines": cfg.world_size, "machine": cfg.rank, "url": cfg.dist_url}
    status = distributed.launch(Path(__file__).resolve(), argv, cfg.train_gpu, **machines)
    if status is not None:
        return status  # of the processes that it started, which have done the work
    run = open_run(cfg)
    read_lists(run)
    checkpoint = find_start(run)
    prepare_data(run)
    build_training(run, checkpoint)
    del checkpoint  # to free its memory
    log_start(run, notes)
    if run.has_ended:
        run.log.info(f"The run has reached its end ({run.plan.max_iter} iterations) already: there is nothing to do")
        leave(run)
        return 0
    run.stop.early = False
    open_output(run)
    while not run.has_ended:
        stopped = not (train_interval(run) and finish_interval(run))
        if stopped:
            return finish(run, stopped)
    return finish(run)


# ---- start ----


def read_config(argv):
    """The checked config, and notes for the log."""
    path, overrides, notes = parse_train(argv, __doc__)
    cfg = load_config(path, overrides, needed_files, check_config)
    class_names(cfg), palette_of(cfg)  # Mistake if a file is wrong
    return cfg, notes


def needed_files(cfg) -> list[str]:
    weights = [key for key in ("weight", "resume") if getattr(cfg, key) not in (None, "auto", "best")]
    if cfg.resume in ("auto", "best") and any(glob.iglob("*.pth", root_dir=cfg.save_path)):  # noqa: PTH207, silent without the folder
        weights = []  # a run that resumes needs none; they may have been moved aside with an earlier run
    elif not weights and cfg.initmodel not in (None, "torchvision"):
        weights = ["initmodel"]
    return ["data_root", "train_list", *weights, *(["val_list"] if cfg.evaluate else [])]


def open_run(cfg) -> Run:
    """Device, process group, signals, the lock on save_path, and the log."""
    if cfg.deterministic:
        distributed.make_deterministic()
    device = distributed.pick_device(cfg.train_gpu)
    torch.backends.cudnn.benchmark = not cfg.deterministic  # the crops of a run have one size
    distributed.init_process_group(device, cfg.dist_backend)
    with distributed.same_errors():
        check_batch(cfg)
        names, palette = class_names(cfg), palette_of(cfg)
    stop = distributed.StopSignal(early=True)
    run = Run(cfg, device, build_logger(silent=not distributed.is_main()), names, palette, stop=stop)
    run.lock = distributed.on_main(lambda: lock_folder(run.folder))
    if distributed.is_main():
        run.log_file = run.folder / f"train-{time.strftime('%Y%m%d_%H%M%S')}.log"
        run.log = build_logger(run.log_file)
    return run


def check_batch(cfg) -> None:
    world = distributed.world_size()
    smallest = cfg.batch_size // world // cfg.accumulate_steps
    # More than two are never needed, and to ask the network takes a second.
    needed, reason = (1, "") if smallest > 1 or (cfg.sync_bn and world > 1) else images_needed(cfg)
    reason = reason and f" ({reason})"
    if smallest < needed:
        message = (
            f"{cfg.batch_size} over {world} process(es) and accumulate_steps {cfg.accumulate_steps} leaves {smallest} image(s) "
            f"at a time, and {needed} or more are needed{reason}; raise batch_size, lower accumulate_steps, or train on "
            "several processes with sync_bn: True"
        )
        raise Mistake(config_error(cfg, "batch_size", message))


def read_lists(run) -> None:
    """The data sets, and from their length the plan."""
    with distributed.same_errors():
        run.train_data, run.val_data = build_data(run.cfg)
        epoch = len(run.train_data) // run.cfg.batch_size
        if not epoch:
            message = (
                f"{run.cfg.batch_size} is more than the {len(run.train_data)} samples of train_list; lower it or add samples"
            )
            raise Mistake(config_error(run.cfg, "batch_size", message))
        run.judge = judge_of(run.cfg) if run.cfg.evaluate else None
    run.plan = Plan.of(run.cfg, epoch)


def judge_of(cfg) -> dict:
    """What the score of a validation depends on beside the network: two can be compared where this is equal."""
    images = zlib.crc32(read_text(cfg.val_list).encode())  # of the list, which may be written anew under its name
    return {"main_metric": cfg.main_metric, "val_list": images, **prediction_protocol(one_scale(cfg), precision=None)}


def one_scale(cfg):
    """The config with the protocol of the validation."""
    return replace(cfg, scales=(1.0,), flip=False, test_batch=cfg.batch_size_val)


def find_start(run) -> dict | None:
    """Set run.state; return the checkpoint to resume from, or None.

    Where the weights come from; the first that is set counts:
    1. resume: the full state of a run (network, optimizer, iteration, best score); `auto` = the newest sound checkpoint
       in save_path, `best` = model_best.pth there, which `auto` takes too where no other is left; with no checkpoint in
       save_path the run starts anew
    2. weight: a whole network, trained from iteration 0; with skip_head the classifiers of other classes start random
    3. initmodel: the backbone; the heads start random
    4. none of them: all random
    """
    cfg = run.cfg
    with distributed.same_errors():
        checkpoint = find_checkpoint(cfg, run.plan, run.log)
        if checkpoint is not None:
            run.state, run.resumed = state_of(cfg, run.plan, checkpoint), True
            run.recounted = run.state.iteration != checkpoint.get("iteration", run.state.iteration)
            keep_comparable(run, changed_keys(checkpoint["config"], cfg), checkpoint.get("judge"))
            note_changed_names(run, checkpoint)
    seed = random.SystemRandom().randrange(2**31) if cfg.manual_seed is None else cfg.manual_seed
    seed = distributed.from_main(seed)  # in every process, whatever each of them found
    run.state = run.state or State(cfg.start_epoch * run.plan.data_iters, seed)
    if asdict(run.state) != distributed.from_main(asdict(run.state)):
        raise Mistake(f"{run.folder}: not the checkpoint that the main process found; all machines must see the same files")
    run.cfg = replace(run.cfg, manual_seed=run.state.seed)  # config.yaml in save_path repeats the run
    return checkpoint


def keep_comparable(run, changed, judge) -> None:
    """What a run that resumes keeps or begins anew where these keys of its config have changed, or what judged its validations,
    so that nothing it says is of two kinds: its seed, and its best validation."""
    state = run.state
    if run.cfg.manual_seed not in (None, state.seed):
        given = f"manual_seed: {run.cfg.manual_seed}"
        run.log.warning(f"{given} has no effect: a run that resumes keeps its seed, {state.seed}")
    judged = []
    if judge is None:  # a checkpoint of an earlier version, which may have no main_metric either
        judged = [key for key in ("main_metric", "val_list") if key in changed and getattr(run.cfg, key)]
        if changed.get("main_metric") == (None, "mIoU"):
            judged.remove("main_metric")
    elif run.judge:
        judged = [key for key, value in run.judge.items() if str(judge.get(key)) != str(value)]  # whatever a file holds
    run.judge = run.judge or judge  # without `evaluate` that of the best so far
    if judged and state.best_at is not None:
        run.log.warning(f"{' and '.join(judged)} changed: the best is chosen among the validations to come")
        state.best_score, state.best_at, run.rejudged = None, None, True


def note_changed_names(run, checkpoint) -> None:
    """Warn of class names that are not those of the checkpoint; a file says nothing of where its lines have come from."""
    changed = changed_names(checkpoint.get("names", ()), run.names)
    if changed:
        run.log.warning(f"names_path: {first_few(changed)}; what the network has learned goes by the ids")


def prepare_data(run) -> None:
    """Check every file of a new run, and build the loader."""
    run.train_data.seed = run.state.seed
    if run.cfg.check_data and not run.resumed:
        with distributed.same_errors():
            check_data(run.train_data, run.val_data, count=run.cfg.check_data, say=run.log.info)
    run.loader = build_loader(run.cfg, run.train_data, run.state.seed, run.device)


def build_training(run, checkpoint) -> None:
    """Network, optimizer, schedule and precision, with the weights of the checkpoint or of the config."""
    cfg = run.cfg
    torch.manual_seed(run.state.seed)  # the same initial weights in every process
    weights = cfg.class_weights
    if weights in ("auto", "sqrt"):
        labels = run.train_data.data_list, cfg.classes, cfg.ignore_label
        weights = distributed.from_main(distributed.on_main(lambda: automatic_class_weights(cfg.class_weights, *labels)))
    run.network = build_model(cfg, class_weights=weights, all_reduce_sum=distributed.differentiable_sum)
    if checkpoint is None:
        load_weights(run)
    run.network.to(run.device, memory_format=torch.channels_last if cfg.channels_last else torch.preserve_format)
    run.net = distributed.wrap(run.network, run.device, sync_bn=cfg.sync_bn)
    if cfg.compile:
        run.net = torch.compile(run.net)
    with distributed.same_errors():
        keys = ("base_lr", "head_lr_factor", "momentum", "weight_decay", "bias_decay", "norm_decay", "precision")
        try:
            values = {key: getattr(cfg, key) for key in keys}
            run.optimizer = build_optimizer(run.network, kind=cfg.optimizer, rules=cfg.param_rules, **values)
        except Mistake as mistake:
            raise Mistake(f"{cfg.path}: TRAIN.{mistake}") from None
        run.schedule = build_schedule(cfg, run.plan.max_iter, run.plan.data_iters)
    run.precision = shared_precision(cfg.precision, run.device)
    if cfg.ema_decay:
        run.average = Average(run.network, cfg.ema_decay)
    if checkpoint is not None:
        with distributed.same_errors():
            restore(run, checkpoint)
        if done := min(run.state.iteration, run.plan.max_iter):  # as after the last update: there may be no other before a save
            set_learning_rate(run.optimizer, *run.schedule(done - 1))


def load_weights(run) -> None:
    cfg = run.cfg
    with distributed.same_errors():
        if cfg.weight:
            path = distributed.first_on_machine(lambda: local_file(cfg.weight, ROOT / "initmodel", run.log.info))
            report = load_network_weights(run.network, path, skip_head=cfg.skip_head, read=load_checkpoint)
            run.log.info(f"Weights {cfg.weight}:\n{report}")
        elif cfg.initmodel:
            fetch = lambda: local_file(cfg.initmodel, ROOT / "initmodel", run.log.info)
            if cfg.initmodel == "torchvision":
                fetch = lambda: fetch_torchvision(cfg.layers, ROOT / "initmodel")
            path = distributed.first_on_machine(fetch)
            run.log.info(f"Backbone {path}:\n{load_backbone(run.network, path, read=load_checkpoint)}")


# ---- training ----


def train_interval(run) -> bool:
    """Train until the interval ends; False if a signal asked to stop."""
    cfg, plan, state = run.cfg, run.plan, run.state
    run.net.train()
    end = plan.interval_end(state)
    epoch, batch = divmod(state.iteration, plan.data_iters)
    run.loader.batch_sampler.set_epoch(epoch, batch, batches=end - state.iteration)
    data_time, batch_time = AverageMeter(), AverageMeter()
    bar = ProgressBar(plan.end(end) if plan.counts_epochs else f"to iteration {end}", end - state.iteration)
    pending = []  # results on the device: reading each at once would make the host wait for the device at every iteration
    printed, waited, first_wait = time.time(), time.time(), 0
    for image, label in run.loader:
        data_time.update(time.time() - waited)
        first_wait = data_time.val if data_time.count == 1 else first_wait  # the workers start
        lr, momentum = run.schedule(state.iteration)
        set_learning_rate(run.optimizer, lr, momentum)
        seed_iteration(run)
        image, label = image.to(run.device, non_blocking=True), label.to(run.device, non_blocking=True)
        pending.append((*update(run, image, label), lr))
        if run.average is not None:
            run.average.update(state.iteration)
        state.iteration += 1

        last, stopping = state.iteration == end, run.stop.requested()
        due = cfg.save_iters > 0 and state.iteration % cfg.save_iters == 0
        saving = stopping or due or (last and validates(run))  # before a validation, so that one that fails loses nothing
        count = (state.iteration - 1) % plan.data_iters + 1 if plan.counts_epochs else state.iteration
        if count % cfg.print_freq == 0 or saving or last:
            with distributed.same_errors():
                results = report_iterations(run, pending)
            batch_time.update((time.time() - printed) / len(pending), len(pending))
            pending = []
            bar.clear()
            log_iteration(run, results, data_time, batch_time, lr)
        if saving:
            save(run)
        if stopping:
            return False
        bar.show(data_time.count)
        waited = time.time()
        printed = printed if pending else waited  # the time of saving is not the batch's
    bar.clear()
    if data_time.count >= 10 and data_time.sum - first_wait > 0.3 * batch_time.sum:
        share = (data_time.sum - first_wait) / batch_time.sum
        run.log.warning(
            f"Data loading takes {share:.0%} of the time: raise `workers` (up to the number of cores) or set `cache`"
        )
    return True


def seed_iteration(run) -> None:
    """Dropout depends on (seed, iteration, process) alone, so that a resumed run draws what an uninterrupted one draws, and a
    checkpoint needs no random state. Without diff_seed it is the same in every process."""
    torch.manual_seed((run.state.seed + run.state.iteration) * 1009 + run.cfg.diff_seed * distributed.rank())


def update(run, image, label):
    """One optimizer step on this process's part of the global batch, in `accumulate_steps` parts.

    The loss is the mean over the valid pixels of the GLOBAL batch: each part's own mean is weighted with its share of
    them. Returns this process's part of main, aux and total loss (3,) float32 and of the intersection, union and target
    counts (3, K) int64, on the device: summed over processes they are those of the global batch.
    """
    cfg, network = run.cfg, run.network
    world = distributed.world_size()
    normaliser = distributed.all_reduce_sum(network.valid_pixels(label)).clamp(min=1e-12)
    losses, areas = 0, 0
    parts = list(zip(image.tensor_split(cfg.accumulate_steps), label.tensor_split(cfg.accumulate_steps)))
    run.optimizer.zero_grad(set_to_none=True)
    for i, (part_image, part_label) in enumerate(parts):
        share = network.valid_pixels(part_label) / normaliser
        with nullcontext() if world == 1 or i == len(parts) - 1 else run.net.no_sync():
            with run.precision.autocast():
                pred, main_loss, aux_loss = forward(run, part_image, part_label)
            main_loss, aux_loss = main_loss * share, aux_loss * share
            loss = main_loss + cfg.aux_weight * aux_loss
            run.precision.backward(loss * world)  # DistributedDataParallel divides the sum of gradients by the processes
        losses = losses + torch.stack([main_loss, aux_loss, loss]).detach()
        part_label = network.label_of_logits(part_label)
        areas = areas + torch.stack(intersectionAndUnionGPU(pred, part_label, cfg.classes, cfg.ignore_label))
    run.precision.step(run.optimizer)
    return losses, areas


def forward(run, image, label):
    """Predicted classes, main and aux loss, computed by the network itself or, the same, from its logits."""
    if not run.cfg.criterion_outside:
        return run.net(image, label)
    logits, aux_logits = run.net(image)
    label = run.network.label_of_logits(label)
    main_loss = run.network.criterion(logits, label)
    aux_loss = main_loss.new_zeros(()) if aux_logits is None else run.network.criterion(aux_logits, label)
    return logits.detach().max(1).indices, main_loss, aux_loss


# ---- end of an interval ----


def finish_interval(run) -> bool:
    """Report the interval, validate and save where that is due; False if a signal asked to stop."""
    cfg, state = run.cfg, run.state
    with distributed.same_errors():
        report_interval(run)
    state.reset_accumulators()
    if validates(run):
        values = validate(run)
        if values is None:
            return False
        score = values[cfg.main_metric]
        if math.isnan(score):
            run.log.warning(f"{cfg.val_list}: no labelled pixel has counted, so no checkpoint is the best")
        elif state.best_score is None or (score < state.best_score if cfg.main_metric == "loss" else score > state.best_score):
            state.best_score, state.best_at = score, state.iteration
            save(run, "model_best.pth")
    if run.plan.is_due(state.iteration, cfg.save_freq):
        save(run)
    return True


def validates(run) -> bool:
    """Does a validation follow the interval that ends here?"""
    return run.cfg.evaluate and run.plan.is_due(run.state.iteration, run.cfg.eval_freq)


@torch.inference_mode()
def validate(run) -> dict | None:
    """Scores over the whole validation images, by name: one scale, no mirror images, windows as in the test. Each process
    takes every n-th image; the counts are summed once, so the result does not depend on the number of processes. None if a
    signal asked to stop."""
    cfg, step = run.cfg, run.state.iteration
    run.log.info(">>>>>>>>>>>>>>>> Start Evaluation >>>>>>>>>>>>>>>>")
    network = run.evaluated
    distributed.share_buffers(network)
    network.eval()
    images = build_val_loader(cfg, run.val_data)
    single = one_scale(cfg)
    how = prediction_settings(single)
    confusion = torch.zeros(cfg.classes, cfg.classes, dtype=torch.int64, device=run.device)
    loss = torch.zeros(2, dtype=torch.float64, device=run.device)  # sum of -log p over the labelled pixels, their number
    bar = ProgressBar("Validation", len(images))
    for i, (image, label) in enumerate(images):
        image, label = image.numpy(), label.to(run.device)
        with run.precision.autocast():
            probability = predict_probability(network, image, **how)
        pred = probability.max(0).indices
        confusion += confusion_matrix(pred, label, cfg.classes, cfg.ignore_label).to(run.device)
        labelled = label.int() != cfg.ignore_label  # of bytes torch would compare the number's last 8 bits
        p = probability.gather(0, label.long().where(labelled, 0)[None])[0].where(labelled, 1.0)
        loss += torch.stack([-p.clamp(min=1e-12).log().double().sum(), labelled.sum().double()])
        if run.out.writer is not None and i < PANELS:
            picture = panel(image, label.cpu().numpy(), pred.cpu().numpy(), run.palette, cfg.ignore_label)
            run.out.writer.add_image(f"val/{i}_input_label_prediction", picture, step, dataformats="HWC")
        bar.show(i + 1)
        if run.stop.received:
            break
    bar.clear()
    if run.stop.requested():
        return None
    confusion, loss = distributed.all_reduce_sum(confusion), distributed.all_reduce_sum(loss)
    if not loss.isfinite().all():  # max takes NaN for the largest, so the scores would look like those of a network
        run.log.warning(f"{NOT_FINITE}. This validation has no scores")
        confusion.zero_(), loss.zero_()
    protocol = prediction_protocol(single, run.precision.label) | {"images": len(run.val_data)}
    return report_validation(run, protocol, confusion, *loss.tolist())


# ---- end ----


def leave(run) -> None:
    """End the process group. DistributedDataParallel goes first: the last to hold the group waits for its threads while it has
    the interpreter's lock, which one of them may need."""
    distributed.barrier()  # some launchers end all processes with the first, and the main one may still be saving
    run.net = None
    distributed.close()


def finish(run, stopped=False) -> int:
    run.out.close()
    state = run.state
    if stopped:
        run.log.warning(f"Stopped by {run.stop.name()}; everything is saved, start again with `resume auto`")
    elif state.best_at is not None:
        score = f"{run.cfg.main_metric} {state.best_score:.4f}, {run.plan.end(state.best_at)}"
        run.log.info(f"Best validation {score}: {run.folder / 'model_best.pth'}")
    leave(run)
    return REQUEUE if stopped else 0


if __name__ == "__main__":
    with distributed.exits_at_once():
        sys.exit(main())
