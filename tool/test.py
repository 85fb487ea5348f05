"""Test a network on whole images and score it, or score predictions that were made before.

    python tool/test.py --config config/cityscapes/cityscapes_pspnet50.yaml scales "[0.5, 0.75, 1.0, 1.25, 1.5, 1.75]"
    torchrun --nproc_per_node 8 tool/test.py --config config/cityscapes/cityscapes_pspnet50.yaml
    python tool/test.py --config config/cityscapes/cityscapes_pspnet50.yaml has_prediction True boundary_iou True
    python tool/test.py --config config/cityscapes/cityscapes_pspnet50.yaml --format cityscapes
    python tool/test.py exp/cityscapes/pspnet50/model/model_best.pth save_folder exp/best

The last line needs no config, since a checkpoint carries that of its run.

Writes into `save_folder`: gray/NAME.png (class ids), color/NAME.png (the same in colours), test-DATE.log; with labels
result.json, result.md and report.html (the scores and how they were made; the last with pictures), confusion.csv, images.csv
(the scores of each image) and overlay/NAME.jpg of the images that the report links; with `format` the files of that evaluation
server. Results of an earlier test become result-before.json and so on, since its predictions are replaced. Several processes
share the images; the scores are the same.
"""

import logging
import os
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import util.start  # noqa: F401  # isort: skip, before the packages
import numpy as np
import torch

from dataset.server import FOLDERS, save_for_server, server_files
from model import check_config
from util import distributed
from util.command import parse_test
from util.common import Mistake, ahead, first_few
from util.config import ROOT, Config, below_root
from util.dataset import SemData, check_ids
from util.fetch import local_file
from util.image import read_label, size_text
from util.inference import (
    Predictor,
    carried_classes,
    is_exported,
    is_model,
    load_model_config,
    prediction_protocol,
    read_model,
    with_carried,
)
from util.log import build_logger, environment, report_errors
from util.metric import AverageMeter, boundary_areas, confusion_matrix, image_scores
from util.precision import shared_precision
from util.report import (
    Example,
    Result,
    earlier_classes,
    earlier_protocol,
    log_result,
    set_result_aside,
    write_images,
    write_report,
    write_result,
)
from util.visual import changed_names, class_names, colorize, output_names, palette_of, save_png


@dataclass
class Evaluation:
    """What is tested, where the results go, and the counts so far."""

    cfg: Config
    data: SemData
    indices: range  # of the images to test, among those of `data`
    outputs: list[str]  # the name of each image's results, for all of `data`: a slice of it does not change names
    exports: list[Path]  # the file of each image for the evaluation server; empty without `format`
    names: list[str]
    palette: np.ndarray
    protocol: dict  # how the predictions are made, for people who compare numbers
    log: logging.Logger = field(default_factory=build_logger)
    device: torch.device = torch.device("cpu")
    predictor: Predictor | None = None  # None: the predictions were made before

    def __post_init__(self):
        K = self.cfg.classes
        self.confusion = np.zeros((K, K + 1), np.int64)  # the last column: predictions that are no class
        self.contours = np.zeros((3, K), np.int64)  # of `boundary_areas`
        self.image_scores = np.zeros((len(self.data), 2 + K))  # of `image_scores`

    @property
    def folder(self) -> Path:
        return Path(self.cfg.save_folder)

    def gray(self, index) -> Path:
        return self.folder / f"gray/{self.outputs[index]}.png"

    def color(self, index) -> Path:
        return self.folder / f"color/{self.outputs[index]}.png"


def main(argv=None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    return report_errors(lambda: test(argv))


def test(argv) -> int | None:
    distributed.adopt_launcher()
    read = lru_cache(1)(read_model)  # a checkpoint has the config and the network
    with distributed.same_errors():
        path, overrides, notes = parse_test(argv, __doc__, read)
        cfg = load_model_config(path, overrides, needed_files, check_config, read)
        if not {"save_folder", "save_path"} & {word.rpartition(".")[2] for word in overrides[::2]}:
            refuse_result_of_another_run(cfg)
        run = plan(cfg)
    status = distributed.launch(Path(__file__).resolve(), argv, cfg.test_gpu)
    if status is not None:  # of the processes that it started, which have done the work
        return 130 if status == distributed.REQUEUE else status  # of a test nothing is saved
    run.device = distributed.pick_device(cfg.test_gpu)
    distributed.init_process_group(run.device, cfg.dist_backend)
    run.log = distributed.on_main(lambda: open_log(run.folder)) or build_logger(silent=True)
    for note in (*notes, *cfg.notes):
        run.log.info(note)

    run.log.info(">>>>>>>>>>>>>>>> Start Evaluation >>>>>>>>>>>>>>>>")
    mine = run.indices[distributed.rank() :: distributed.world_size()]
    if cfg.has_prediction:
        predictions = ahead(partial(read_prediction, run), mine)
    else:
        with distributed.same_errors():
            load_network(run, read)
        read.cache_clear()
        distributed.on_main(lambda: set_result_aside(run.folder))
        predictions = predict_images(run, mine)
    with distributed.first_error():
        count_images(run, predictions)

    for form, folder in FOLDERS.items():
        if form != cfg.format and not cfg.has_prediction and (run.folder / folder).is_dir():
            run.log.warning(f"{run.folder / folder} is not of this test: --format {form} would write it anew")
    if cfg.format != "none":
        run.log.info(f"Wrote {len(run.indices)} PNGs for the {cfg.format} server into {run.exports[0].parent}")
    if cfg.split == "test":
        run.log.info(f"Predictions are in {run.folder}; split test has no labels, so there is no score")
    elif distributed.is_main():
        set_result_aside(run.folder, copy=True)  # with has_prediction it is there until the new one is whole
        write_results(run)
    run.log.info("<<<<<<<<<<<<<<<<< End Evaluation <<<<<<<<<<<<<<<<<")
    distributed.close()
    return None


# ---- before the first image ----


def needed_files(cfg):
    if cfg.save_folder is None:
        raise Mistake(f"{cfg.path}: TEST.save_folder: this key must be set, for the results")
    return ["data_root", "test_list", "save_folder" if cfg.has_prediction else "model_path"]


def refuse_result_of_another_run(cfg) -> None:
    """A checkpoint that was moved carries the folders of its run, where another run may have its results by now."""
    place = os.path.dirname(os.path.realpath(cfg.path))  # noqa: PTH120, of an address too
    if is_model(cfg.path) and not cfg.has_prediction and place != os.path.realpath(cfg.save_path):
        other = None
        with suppress(Mistake):  # what is no result is put aside
            other = earlier_protocol(Path(cfg.save_folder)).get("checkpoint")
        if other not in (None, named_checkpoints(cfg)):
            other = first_few(other) if isinstance(other, list) else other
            raise Mistake(f"{cfg.path}: does not lie in the folder of its run, {cfg.save_path}, and its save_folder, "
                          f"{cfg.save_folder}, has the result of {other}; name another with save_folder DIR")  # fmt: skip


def named_checkpoints(cfg) -> str | list[str]:
    """model_path, as the protocol has it."""
    return [below_root(path) for path in cfg.model_path] if isinstance(cfg.model_path, tuple) else below_root(cfg.model_path)


def plan(cfg) -> Evaluation:
    """The images, the names of their results, and the predictions that must be there; Mistake for what does not fit."""
    if cfg.split == "test" and cfg.name_by == "label":
        raise Mistake(f"{cfg.path}: TEST.name_by: label: split test has no labels; set name_by: image")
    if cfg.split == "test" and cfg.has_prediction and cfg.format == "none":
        raise Mistake(f"{cfg.path}: TEST.split: test has no labels, so has_prediction has nothing to score with")
    if cfg.has_prediction:  # made by a checkpoint that may have carried names and colours
        cfg = with_carried(cfg, *carried_classes(earlier_classes(Path(cfg.save_folder)), cfg))
    names, palette = class_names(cfg), palette_of(cfg)
    data = SemData(cfg.split, cfg.data_root, cfg.test_list, None, classes=cfg.classes, ignore_label=cfg.ignore_label)
    indices = range(len(data))[cfg.index_start : cfg.index_start + cfg.index_step if cfg.index_step else None]
    if not indices:
        raise Mistake(
            f"{cfg.path}: TEST.index_start: {cfg.index_start} is behind the last of the {len(data)} images in {cfg.test_list}"
        )
    images = [image for image, _ in data.data_list]
    outputs = output_names([label if cfg.name_by == "label" else image for image, label in data.data_list])
    exports = []
    if cfg.format != "none":
        try:
            exports = server_files(cfg.format, images, cfg.split, cfg.classes)
        except Mistake as error:
            raise Mistake(f"{cfg.path}: TEST.format: {error}") from error
    run = Evaluation(cfg, data, indices, outputs, [Path(cfg.save_folder) / file for file in exports], names, palette, {})
    if cfg.has_prediction:
        missing = [run.gray(i) for i in indices if not os.path.isfile(run.gray(i))]  # noqa: PTH113, as below
        if missing:
            raise Mistake(
                f"{cfg.path}: TEST.has_prediction: {len(missing)} of the {len(indices)} predictions do not exist: "
                f"{first_few(missing, 3)}"
            )
        run.protocol = earlier_protocol(run.folder)
    else:
        there = os.path.exists  # Path.exists raises where the folder cannot be entered
        written = {os.path.realpath(path) for i in indices for path in (run.gray(i), run.color(i)) if there(path)}
        read = (path for pair in data.data_list for path in pair if path) if written else ()
        if overwritten := written.intersection(map(os.path.realpath, read)):
            raise Mistake(f"{cfg.path}: TEST.save_folder: {min(overwritten)} is in test_list and would be overwritten")
    return run


def open_log(folder):
    """The log on screen and in the file test-DATE.log in `folder`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return build_logger(folder / f"test-{time.strftime('%Y%m%d_%H%M%S')}.log")
    except OSError as error:
        raise Mistake(f"TEST.save_folder: no results can be written to {folder} ({error})") from error


def load_network(run, read):
    cfg = run.cfg
    checkpoints = cfg.model_path if isinstance(cfg.model_path, tuple) else (cfg.model_path,)
    exported = any(map(is_exported, checkpoints))  # these compute in fp32, which is what auto means then
    precision = shared_precision("fp32" if exported and cfg.precision == "auto" else cfg.precision, run.device)
    run.log.info(f"Precision: {precision.label}")
    fetch = lambda path: distributed.first_on_machine(lambda: local_file(path, ROOT / "initmodel", run.log.info))
    files = [path if path == cfg.path else fetch(path) for path in checkpoints]  # that of the config is here
    run.predictor = Predictor(files, run.device, precision, cfg, read)
    run.names, run.palette = run.predictor.names, run.predictor.palette  # the checkpoint's, where the config has none
    if changed := changed_names(run.predictor.carried[0] or (), run.names):
        run.log.warning(f"names_path: the checkpoint has other names: {first_few(changed)}")
    for path, weights in zip(checkpoints, run.predictor.weights):
        run.log.info(f"Weights {path}:\n{weights}")
    epochs = [weights.epoch for weights in run.predictor.weights]
    part = {"predicted": f"{len(run.indices)} of {len(run.data)} images, from number {run.indices.start}"}
    run.protocol = {
        "config": below_root(cfg.path),
        "checkpoint": named_checkpoints(cfg),
        "epoch": epochs[0] if len(epochs) == 1 else epochs,
        **prediction_protocol(cfg, precision.label),
        **(part if len(run.indices) < len(run.data) else {}),  # it stays with the predictions when more of them are scored
        "date": time.strftime("%Y-%m-%d %H:%M:%S"),
        "environment": environment(run.device),
    }


# ---- images ----


def predict_images(run, indices):
    """Yield (index, prediction, label) of these images; threads read the next ones while the network works."""
    data_time, batch_time = AverageMeter(), AverageMeter()
    end = time.time()
    for done, (index, image, label) in enumerate(ahead(lambda i: (i, *run.data.read(i)), indices), 1):
        data_time.update(time.time() - end)
        try:
            pred = run.predictor(image)
        except FloatingPointError as error:
            raise Mistake(f"{run.data.data_list[index][0]}: {error}") from error
        batch_time.update(time.time() - end)
        if done % run.cfg.print_freq == 0 or done == len(indices):
            run.log.info(
                f"Test: [{done}/{len(indices)}] Data {data_time.val:.3f} ({data_time.avg:.3f}) "
                f"Batch {batch_time.val:.3f} ({batch_time.avg:.3f})."
            )
        yield index, pred, label
        end = time.time()


def read_prediction(run, index):
    """(index, prediction, label) from their files; the label of a test image is None."""
    pred, path = read_label(run.gray(index)), run.data.data_list[index][1]
    if run.cfg.split == "test":
        return index, pred, None
    label = read_label(path)
    if pred.shape != label.shape:
        raise Mistake(f"{run.gray(index)}: {size_text(pred)}, but the label {path} is {size_text(label)}")
    check_ids(label, run.cfg.classes, run.cfg.ignore_label, path)
    return index, pred, label


def count_images(run, predictions):
    """Write the files of each image and add up its counts, over all processes."""
    for index, confusion, contours, scores in ahead(lambda item: finish_image(run, *item), predictions):
        run.confusion += confusion
        run.contours += contours
        run.image_scores[index] = scores
    for name in ("confusion", "contours", "image_scores"):  # each process filled in its own images
        total = distributed.all_reduce_sum(torch.from_numpy(getattr(run, name)).to(run.device))
        setattr(run, name, total.cpu().numpy())


def finish_image(run, index, pred, label):
    """Write the files of one image; returns index, confusion (K, K + 1), contours (3, K) and the image's scores (2 + K,)."""
    cfg = run.cfg
    if not cfg.has_prediction:
        save_png(run.gray(index), pred)
        save_png(run.color(index), colorize(pred, run.palette))
    if cfg.format != "none":
        save_for_server(run.exports[index], pred, cfg.format)
    if cfg.split == "test":
        return index, 0, 0, 0
    confusion = confusion_matrix(pred, label, cfg.classes, cfg.ignore_label, other=True).numpy()
    contours = boundary_areas(pred, label, cfg.classes, cfg.ignore_label) if cfg.boundary_iou else 0
    return index, confusion, contours, image_scores(confusion)


# ---- results ----


def write_results(run):
    """Log the scores, and write them with their protocol."""
    cfg, log = run.cfg, run.log
    protocol = run.protocol | {
        "list": below_root(cfg.test_list),
        "images": len(run.indices),
        "first image": cfg.index_start,
        "ignore_label": cfg.ignore_label,
    }
    contours = run.contours if cfg.boundary_iou else None
    result = Result(below_root(cfg.path), run.names, run.palette, cfg.ignore_label, run.confusion, contours, protocol)
    log_result(log, result)
    write_result(run.folder, result)
    write_images(run.folder, run.names, [(run.outputs[i], run.image_scores[i]) for i in run.indices])
    log.info(f"Wrote {run.folder / 'result.md'}, result.json, confusion.csv and images.csv")

    def read(index):
        return *run.data.read(index), read_label(run.gray(index))

    examples = [Example(run.outputs[i], run.image_scores[i, 0], partial(read, i)) for i in run.indices]
    write_report(run.folder, result, examples)
    log.info(f"Wrote {run.folder / 'report.html'}: open it in a browser")


if __name__ == "__main__":
    with distributed.exits_at_once():
        sys.exit(main())
