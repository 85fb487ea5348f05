"""Test a network on whole images and score it, or score predictions that were made before.

    python tool/test.py --config config/cityscapes/cityscapes_pspnet50.yaml scales "[0.5, 0.75, 1.0, 1.25, 1.5, 1.75]"
    torchrun --nproc_per_node 8 tool/test.py --config config/cityscapes/cityscapes_pspnet50.yaml
    python tool/test.py --config config/cityscapes/cityscapes_pspnet50.yaml has_prediction True

Writes into `save_folder`: gray/NAME.png (class ids), color/NAME.png (the same in colours), test-DATE.log, and with labels
result.json and result.md: the scores and how they were made. Several processes share the images; the scores are the same.
"""

import argparse
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

from model import build_model
from util import distributed
from util.checkpoint import load_weights
from util.config import ROOT, load_config
from util.dataset import SemData
from util.image import read_label
from util.inference import predict
from util.log import build_logger, environment, report_errors
from util.metric import AverageMeter, intersectionAndUnion, number, scores, table
from util.transform import MEAN, STD
from util.visual import colorize, default_palette, load_colors, load_names, output_names, save_png


def main(argv=None) -> int:
    args = parse_args(argv)
    return report_errors(lambda: test(args))


def test(args) -> None:
    # ---- config ----
    cfg = load_config(args.config, args.opts)
    cfg = load_config(args.config, args.opts, must_exist=needed_files(cfg))
    if cfg.save_folder is None:
        raise ValueError(f"{cfg.path}: TEST.save_folder: this key must be set, for the results")
    folder = Path(cfg.save_folder)
    names = load_names(cfg.names_path, cfg.classes) if cfg.names_path else [f"class {i}" for i in range(cfg.classes)]
    palette = load_colors(cfg.colors_path, cfg.classes) if cfg.colors_path else default_palette(cfg.classes)

    # ---- images ----
    data = SemData(cfg.split, cfg.data_root, cfg.test_list, None, classes=cfg.classes, ignore_label=cfg.ignore_label)
    outputs = output_names([image for image, _ in data.data_list])  # of the whole list: a slice must not change names
    indices = chosen_indices(cfg, len(data))
    if cfg.has_prediction:
        check_predictions(cfg, [folder / f"gray/{outputs[i]}.png" for i in indices])

    # ---- processes, device, log ----
    device = distributed.pick_device(cfg.test_gpu)
    distributed.init_process_group(device, cfg.dist_backend)
    folder.mkdir(parents=True, exist_ok=True)
    log = build_logger(silent=not distributed.is_main())
    if distributed.is_main():
        log = build_logger(folder / f"test-{time.strftime('%Y%m%d_%H%M%S')}.log")
    for note in cfg.notes:
        log.info(note)
    mine = indices[distributed.rank()::distributed.world_size()]

    # ---- predict and count ----
    log.info(">>>>>>>>>>>>>>>> Start Evaluation >>>>>>>>>>>>>>>>")
    if cfg.has_prediction:
        protocol = earlier_protocol(folder)
        areas = sum(ahead(lambda i: count_file(cfg, folder / f"gray/{outputs[i]}.png", data.data_list[i][1]), mine),
                    np.zeros((3, cfg.classes), np.int64))
    else:
        network = build_model(cfg)
        checkpoint = load_weights(network, cfg.model_path)
        network.to(device).eval()
        protocol = protocol_of(cfg, checkpoint.get("epoch"), device)
        areas = predict_images(cfg, network, data, outputs, mine, palette, folder, log)
    areas = distributed.all_reduce_sum(torch.from_numpy(areas).to(device)).cpu().numpy()

    # ---- result ----
    if cfg.split == "test":
        log.info(f"Predictions are in {folder}; split test has no labels, so there is no score")
    elif distributed.is_main():
        protocol |= {"list": shown(cfg.test_list), "images": len(indices), "first image": cfg.index_start,
                     "ignore_label": cfg.ignore_label}
        report(areas, names, protocol, folder, log)
    log.info("<<<<<<<<<<<<<<<<< End Evaluation <<<<<<<<<<<<<<<<<")
    distributed.close()


def predict_images(cfg, network, data, outputs, indices, palette, folder, log):
    """Write the PNGs of these images; returns (3, K) int64, intersection, union and target pixels of each class.

    Threads read the next images and write the last ones while the network works.
    """
    def read(index):
        return index, *data.read(index)

    def predictions():
        data_time, batch_time = AverageMeter(), AverageMeter()
        end = time.time()
        for done, (index, image, label) in enumerate(ahead(read, indices), 1):
            data_time.update(time.time() - end)
            pred = predict(network, image, classes=cfg.classes, base_size=cfg.base_size,
                           crop_h=cfg.test_h or cfg.train_h, crop_w=cfg.test_w or cfg.train_w, scales=cfg.scales,
                           mean=MEAN, std=STD, flip=cfg.flip, test_batch=cfg.test_batch)
            batch_time.update(time.time() - end)
            if done % cfg.print_freq == 0 or done == len(indices):
                log.info(f"Test: [{done}/{len(indices)}] Data {data_time.val:.3f} ({data_time.avg:.3f}) "
                         f"Batch {batch_time.val:.3f} ({batch_time.avg:.3f}).")
            yield index, pred, label
            end = time.time()

    def finish(item):
        index, pred, label = item
        save_png(folder / f"gray/{outputs[index]}.png", pred)
        save_png(folder / f"color/{outputs[index]}.png", colorize(pred, palette))
        return 0 if cfg.split == "test" else count(cfg, pred, label, data.data_list[index][1])

    return sum(ahead(finish, predictions()), np.zeros((3, cfg.classes), np.int64))


def count(cfg, pred, label, path):
    """(3, K) int64 of one image; errors name `path`, the file of the label."""
    try:
        return np.stack(intersectionAndUnion(pred, label, cfg.classes, cfg.ignore_label))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def count_file(cfg, prediction, label):
    return count(cfg, read_label(prediction), read_label(label), label)


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


def report(areas, names, protocol, folder, log):
    """Print the scores, and write them with their protocol into result.json and result.md."""
    result = scores(*areas)
    summary = f"mIoU/mAcc/allAcc {number(result.mIoU)}/{number(result.mAcc)}/{number(result.allAcc)}"
    log.info(f"Eval result: {summary}.")
    for i, name in enumerate(names):
        log.info(f"Class_{i} result: iou/accuracy {number(result.iou[i])}/{number(result.accuracy[i])}, name: {name}.")
    log.info("Protocol: " + ", ".join(f"{key} {value}" for key, value in protocol.items()))
    log.info("\n" + table(result, names))

    columns = {"iou": result.iou, "accuracy": result.accuracy, "precision": result.precision, "dice": result.dice}
    columns |= dict(zip(("intersection", "union", "target"), areas))
    classes = [{"id": i, "name": name} | {key: plain(column[i]) for key, column in columns.items()}
               for i, name in enumerate(names)]
    means = {key: plain(getattr(result, key)) for key in ("mIoU", "mAcc", "allAcc")}
    content = json.dumps(means | {"protocol": protocol, "classes": classes}, indent=1, ensure_ascii=False)
    (folder / "result.json").write_text(content + "\n", encoding="utf-8")
    lines = [f"# {summary}", "", *(f"- {key}: {value}" for key, value in protocol.items()), "",
             table(result, names, markdown=True), "",
             "A dash: the class is in no label (accuracy), or in neither label nor prediction (IoU, dice), or in no "
             "prediction (precision); the means leave it out."]
    (folder / "result.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    log.info(f"Wrote {folder / 'result.md'} and result.json")


def protocol_of(cfg, epoch, device):
    """How the predictions are made, for people who compare numbers."""
    return {
        "config": shown(cfg.path),
        "checkpoint": shown(cfg.model_path),
        "epoch": epoch,
        "scales": list(cfg.scales),
        "flip": cfg.flip,
        "crop": [cfg.test_h or cfg.train_h, cfg.test_w or cfg.train_w],
        "stride": "2/3",
        "base_size": cfg.base_size or "the image's own long side",
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
    indices = range(images)[cfg.index_start:end]
    if not indices:
        raise ValueError(f"{cfg.path}: TEST.index_start: {cfg.index_start} is behind the last of the {images} images in "
                         f"{cfg.test_list}")
    return indices


def check_predictions(cfg, files):
    if cfg.split == "test":
        raise ValueError(f"{cfg.path}: TEST.split: test has no labels, so has_prediction has nothing to score with")
    missing = [str(file) for file in files if not file.is_file()]
    if missing:
        raise ValueError(f"{cfg.path}: TEST.has_prediction: {len(missing)} of the {len(files)} predictions do not exist: "
                         f"{', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}")


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


def parse_args(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="YAML file of the experiment")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="override keys of the config: scales [0.5,1.0]")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
