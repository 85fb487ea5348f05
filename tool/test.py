"""Test a network on whole images and score it, or score predictions that were made before.

    python tool/test.py --config config/cityscapes/cityscapes_pspnet50.yaml scales "[0.5, 0.75, 1.0, 1.25, 1.5, 1.75]"
    torchrun --nproc_per_node 8 tool/test.py --config config/cityscapes/cityscapes_pspnet50.yaml
    python tool/test.py --config config/cityscapes/cityscapes_pspnet50.yaml has_prediction True boundary_iou True
    python tool/test.py --config config/cityscapes/cityscapes_pspnet50.yaml --format cityscapes

Writes into `save_folder`: gray/NAME.png (class ids), color/NAME.png (the same in colours), test-DATE.log; with labels
result.json, result.md and report.html (the scores and how they were made; the last with pictures), confusion.csv,
confusion.png and overlay/NAME.jpg of the hardest images; with `format` what that evaluation server takes. Several processes
share the images; the scores are the same.
"""

import json
import math
import sys
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import numpy as np
import torch

from dataset.server import save_for_server, server_files
from model import build_model
from model.fold import for_test
from model.weights import load_network_weights
from util import distributed
from util.checkpoint import load_checkpoint
from util.command import parse_test
from util.config import ROOT, load_config
from util.dataset import SemData
from util.image import read_label
from util.inference import predict, prediction_settings
from util.log import build_logger, environment, report_errors
from util.metric import AverageMeter, boundary_areas, confusion_matrix, image_mIoU, number, scores, table
from util.precision import Precision
from util.report import Example, build_report, confusion_picture, write_confusion
from util.visual import colorize, default_palette, load_colors, load_names, output_names, overlay, save_jpeg, save_png

HARDEST, SHOWN, BEST = 20, 6, 3  # images listed in the report with their overlays; of them in pictures; the best in pictures


def main(argv=None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    return report_errors(lambda: test(argv))


def test(argv) -> int | None:
    # ---- config ----
    distributed.adopt_launcher()
    path, overrides, notes = parse_test(argv, __doc__)
    cfg = load_config(path, overrides)
    cfg = load_config(path, overrides, must_exist=needed_files(cfg))
    if cfg.save_folder is None:
        raise ValueError(f"{cfg.path}: TEST.save_folder: this key must be set, for the results")
    folder = Path(cfg.save_folder)
    names = load_names(cfg.names_path, cfg.classes) if cfg.names_path else [f"class {i}" for i in range(cfg.classes)]
    palette = load_colors(cfg.colors_path, cfg.classes) if cfg.colors_path else default_palette(cfg.classes)

    # ---- images ----
    data = SemData(cfg.split, cfg.data_root, cfg.test_list, None, classes=cfg.classes, ignore_label=cfg.ignore_label)
    images = [image for image, _ in data.data_list]
    outputs = names_of_outputs(cfg, data.data_list)  # of the whole list: a slice must not change names
    exports = [folder / file for file in server_files_of(cfg, images)]
    indices = chosen_indices(cfg, len(data))
    if cfg.has_prediction:
        check_predictions(cfg, [folder / f"gray/{outputs[i]}.png" for i in indices])

    # ---- processes, device, log ----
    status = distributed.launch(Path(__file__).resolve(), argv, cfg.test_gpu)
    if status is not None:
        return status  # the processes that it started have done the work
    device = distributed.pick_device(cfg.test_gpu)
    distributed.init_process_group(device, cfg.dist_backend)
    folder.mkdir(parents=True, exist_ok=True)
    log = build_logger(silent=not distributed.is_main())
    if distributed.is_main():
        log = build_logger(folder / f"test-{time.strftime('%Y%m%d_%H%M%S')}.log")
    for note in (*notes, *cfg.notes):
        log.info(note)
    mine = indices[distributed.rank() :: distributed.world_size()]

    # ---- predict and count ----
    log.info(">>>>>>>>>>>>>>>> Start Evaluation >>>>>>>>>>>>>>>>")
    if cfg.has_prediction:
        protocol = earlier_protocol(folder)
        predictions = ahead(lambda i: read_prediction(cfg, folder / f"gray/{outputs[i]}.png", data.data_list[i][1]), mine)
        predictions = zip(mine, predictions)
    else:
        network = build_model(cfg)
        weights = load_network_weights(network, cfg.model_path, read=load_checkpoint)
        log.info(f"Weights {cfg.model_path}:\n{weights}")
        network = for_test(network, device, channels_last=cfg.channels_last, compile=cfg.compile)
        protocol = protocol_of(cfg, weights.epoch, device)
        predictions = predict_images(cfg, network, data, mine, device, log)

    def finish(item):
        """Write the files of one image and count its pixels."""
        index, (pred, label) = item
        if not cfg.has_prediction:
            save_png(folder / f"gray/{outputs[index]}.png", pred)
            save_png(folder / f"color/{outputs[index]}.png", colorize(pred, palette))
        if cfg.format != "none":
            save_for_server(exports[index], pred, cfg.format)
        return index, *(count(cfg, pred, label, data.data_list[index][1]) if cfg.split != "test" else (0, 0, 0))

    confusion = np.zeros((cfg.classes, cfg.classes + 1), np.int64)  # the last column: predictions that are no class
    contours = np.zeros((3, cfg.classes), np.int64)
    image_scores = np.zeros(len(data))
    for index, image_confusion, image_contours, image_score in ahead(finish, predictions):
        confusion += image_confusion
        contours += image_contours
        image_scores[index] = image_score
    counts = (confusion, contours, image_scores)  # each process filled in its own images
    confusion, contours, image_scores = (
        distributed.all_reduce_sum(torch.from_numpy(count).to(device)).cpu().numpy() for count in counts
    )

    # ---- result ----
    if cfg.format != "none":
        log.info(f"Wrote {len(indices)} PNGs for the {cfg.format} server into {exports[0].parent}")
    if cfg.split == "test":
        log.info(f"Predictions are in {folder}; split test has no labels, so there is no score")
    elif distributed.is_main():
        protocol |= {
            "list": shown(cfg.test_list),
            "images": len(indices),
            "first image": cfg.index_start,
            "ignore_label": cfg.ignore_label,
        }
        report(confusion, contours if cfg.boundary_iou else None, names, protocol, folder, log)
        order = sorted((i for i in indices if not math.isnan(image_scores[i])), key=lambda i: image_scores[i])
        illustrate(cfg, data, outputs, order, image_scores, confusion, contours, names, palette, protocol, folder)
        log.info(f"Wrote {folder / 'report.html'}: open it in a browser")
    log.info("<<<<<<<<<<<<<<<<< End Evaluation <<<<<<<<<<<<<<<<<")
    distributed.close()
    return None


def predict_images(cfg, network, data, indices, device, log):
    """Yield (index, (prediction, label)) of these images; threads read the next ones while the network works."""
    precision = Precision(cfg.precision, device)
    data_time, batch_time = AverageMeter(), AverageMeter()
    end = time.time()
    for done, (index, image, label) in enumerate(ahead(lambda i: (i, *data.read(i)), indices), 1):
        data_time.update(time.time() - end)
        with precision.autocast():
            pred = predict(network, image, **prediction_settings(cfg))
        batch_time.update(time.time() - end)
        if done % cfg.print_freq == 0 or done == len(indices):
            log.info(
                f"Test: [{done}/{len(indices)}] Data {data_time.val:.3f} ({data_time.avg:.3f}) "
                f"Batch {batch_time.val:.3f} ({batch_time.avg:.3f})."
            )
        yield index, (pred, label)
        end = time.time()


def read_prediction(cfg, prediction, label):
    """A prediction that was made before, and its label (a test image has none)."""
    return read_label(prediction), None if cfg.split == "test" else read_label(label)


def count(cfg, pred, label, path):
    """Of one image: confusion (K, K + 1) and areas of the contours (3, K), int64, and its score; errors name `path`, the
    label's file."""
    try:
        confusion = confusion_matrix(pred, label, cfg.classes, cfg.ignore_label, other=True).numpy()
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    contours = boundary_areas(pred, label, cfg.classes, cfg.ignore_label) if cfg.boundary_iou else 0
    return confusion, contours, image_mIoU(confusion)


def ahead(function, items, threads=2, depth=4):
    """Yield function(item) for every item in order, computed by threads up to `depth` items before they are needed."""
    with ThreadPoolExecutor(threads) as pool:
        pending = deque()
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > depth:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def report(confusion, contours, names, protocol, folder, log):
    """Print the scores, and write them with their protocol into result.json, result.md, confusion.csv and confusion.png."""
    result, boundary = scores(confusion), None if contours is None else scores(*contours)
    summary = f"mIoU/mAcc/allAcc {number(result.mIoU)}/{number(result.mAcc)}/{number(result.allAcc)}"
    further = {"mDice": result.mDice, "frequency-weighted IoU": result.fwIoU}
    further |= {"boundary IoU": boundary.mIoU} if boundary else {}
    further = {key: number(value) for key, value in further.items()}
    log.info(f"Eval result: {summary}.")
    for i, name in enumerate(names):
        log.info(f"Class_{i} result: iou/accuracy {number(result.iou[i])}/{number(result.accuracy[i])}, name: {name}.")
    log.info("Further: " + ", ".join(f"{key} {value}" for key, value in further.items()))
    log.info("Protocol: " + ", ".join(f"{key} {value}" for key, value in protocol.items()))
    log.info("\n" + table(result, names, boundary=boundary))

    columns = {key: getattr(result, key) for key in ("iou", "accuracy", "recall", "precision", "dice")}
    intersection, target = confusion.diagonal(), confusion.sum(1)
    union = target + confusion.sum(0)[:-1] - intersection
    columns |= {"intersection": intersection, "union": union, "target": target}
    means = {key: getattr(result, key) for key in ("mIoU", "mAcc", "allAcc", "fwIoU", "mDice")}
    if boundary:
        columns["boundary_iou"], means["boundary_mIoU"] = boundary.iou, boundary.mIoU
    classes = [
        {"id": i, "name": name} | {key: plain(column[i]) for key, column in columns.items()} for i, name in enumerate(names)
    ]
    content = {key: plain(value) for key, value in means.items()} | {"protocol": protocol, "classes": classes}
    content = json.dumps(content, indent=1, ensure_ascii=False)
    (folder / "result.json").write_text(content + "\n", encoding="utf-8")
    lines = [
        f"# {summary}",
        "",
        *(f"- {key}: {value}" for key, value in (further | protocol).items()),
        "",
        table(result, names, markdown=True, boundary=boundary),
        "",
        "A dash: the class is in no label (accuracy), or in neither label nor prediction (IoU, dice), or in no "
        "prediction (precision); the means leave it out. The accuracy of a class is its recall.",
    ]
    (folder / "result.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    write_confusion(folder / "confusion.csv", confusion, names)
    save_png(folder / "confusion.png", confusion_picture(confusion, names))
    log.info(f"Wrote {folder / 'result.md'}, result.json, confusion.csv and confusion.png")


def illustrate(cfg, data, outputs, order, image_scores, confusion, contours, names, palette, protocol, folder):
    """Write report.html, and the overlays of the hardest images; order: indices of the images, the hardest first."""

    def example(index):
        image, label = data.read(index)
        pred = read_label(folder / f"gray/{outputs[index]}.png")
        save_jpeg(folder / overlay_of(index), overlay(image, pred, palette))
        return Example(outputs[index], image_scores[index], image, label, pred, overlay_of(index))

    def overlay_of(index):
        return f"overlay/{outputs[index]}.jpg"

    hardest = order[:HARDEST]
    best = [i for i in order[::-1][:BEST] if i not in hardest[:SHOWN]]
    for index in hardest[SHOWN:]:
        example(index)  # for its overlay
    page = build_report(
        shown(cfg.path),
        scores(confusion),
        scores(*contours) if cfg.boundary_iou else None,
        confusion,
        names,
        palette,
        protocol,
        hardest=map(example, hardest[:SHOWN]),
        best=map(example, best),
        listed=[(outputs[i], image_scores[i], overlay_of(i)) for i in hardest],
        ignore_label=cfg.ignore_label,
    )
    (folder / "report.html").write_text(page, encoding="utf-8")


def protocol_of(cfg, epoch, device):
    """How the predictions are made, for people who compare numbers."""
    return {
        "config": shown(cfg.path),
        "checkpoint": shown(cfg.model_path),
        "epoch": epoch,
        "scales": list(cfg.scales),
        "flip": cfg.flip,
        "mode": cfg.test_mode,
        "average": cfg.average,
        "crop": [cfg.test_h or cfg.train_h, cfg.test_w or cfg.train_w],
        "stride": "2/3",
        "base_size": list(cfg.base_size) if isinstance(cfg.base_size, tuple) else cfg.base_size or "the image's own long side",
        "precision": cfg.precision,
        "date": time.strftime("%Y-%m-%d %H:%M:%S"),
        "environment": environment(device),
    }


def earlier_protocol(folder):
    """The protocol that lies beside predictions made by this program."""
    path = folder / "result.json"
    if path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))["protocol"]
    return {"predictions": f"{shown(folder)}/gray, made elsewhere"}


def chosen_indices(cfg, images):
    end = cfg.index_start + cfg.index_step if cfg.index_step else images
    indices = range(images)[cfg.index_start : end]
    if not indices:
        raise ValueError(
            f"{cfg.path}: TEST.index_start: {cfg.index_start} is behind the last of the {images} images in {cfg.test_list}"
        )
    return indices


def names_of_outputs(cfg, data_list):
    if cfg.name_by == "label" and cfg.split == "test":
        raise ValueError(f"{cfg.path}: TEST.name_by: label: split test has no labels; set name_by: image")
    return output_names([label if cfg.name_by == "label" else image for image, label in data_list])


def check_predictions(cfg, files):
    if cfg.split == "test" and cfg.format == "none":
        raise ValueError(f"{cfg.path}: TEST.split: test has no labels, so has_prediction has nothing to score with")
    missing = [str(file) for file in files if not file.is_file()]
    if missing:
        raise ValueError(
            f"{cfg.path}: TEST.has_prediction: {len(missing)} of the {len(files)} predictions do not exist: "
            f"{', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}"
        )


def server_files_of(cfg, images):
    if cfg.format == "none":
        return []
    try:
        return server_files(cfg.format, images, cfg.split, cfg.classes)
    except ValueError as error:
        raise ValueError(f"{cfg.path}: TEST.format: {error}") from None


def needed_files(cfg):
    files = ["data_root", "test_list", "save_folder" if cfg.has_prediction else "model_path"]
    return files + [key for key in ("names_path", "colors_path") if getattr(cfg, key)]


def shown(path):
    """A path inside the project relative to it, so that results read the same on every machine."""
    path = Path(path)
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


def plain(value):
    """A number that JSON knows: null for nan."""
    return None if math.isnan(value) else value.item() if isinstance(value, np.generic) else value


if __name__ == "__main__":
    sys.exit(main())
