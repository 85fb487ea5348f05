"""One YAML file = one experiment: read it, apply `KEY VALUE` overrides, check everything, freeze it.

The sections of the file are the classes below; their fields are the keys, with type, bounds, default and meaning. `Config` is
all of them in one flat namespace, as the original scripts use it: `cfg.base_lr`, not `cfg.TRAIN.base_lr`. A path may name other
keys in braces: `model_path: '{save_path}/train_epoch_{epochs}.pth'`. Weights may be an address instead, see util/fetch.py.
"""

import copy
import dataclasses
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Literal, Union, get_args, get_origin

import yaml

from util.common import MODEL_SUFFIXES, Mistake, did_you_mean, first_few
from util.fetch import is_url, parse_url
from util.values import convert, parse_yaml, read_config_text, shown

ROOT = Path(__file__).resolve().parents[1]

# Every number is bounded by an interval: "[0, 1)" contains 0 and not 1. nan and infinity are refused.
Whole = Annotated[int, "[0, 2147483647]"]
Count = Annotated[int, "[1, 2147483647]"]
Side = Annotated[int, "[1, 1048576]"]  # pixels; OpenCV reads no larger image
Mask = Annotated[int, "[1, 1023]"]
Gpus = tuple[Annotated[int, "[0, 1023]"], ...]
Factor = Annotated[float, "[0, 1000]"]
Degrees = Annotated[float, "[-180, 180]"]
Scale = Annotated[float, "[0.01, 100]"]
Momentum = Annotated[float, "[0, 1)"]
File = Annotated[str, "path"]
Stages = tuple[Literal["layer0", "layer1", "layer2", "layer3", "layer4"], ...]
Steps = tuple[dict, ...]  # mappings, each with keys of its own


@dataclass(frozen=True, kw_only=True)
class Data:
    data_root: File  # the folder that the lists' paths are relative to
    train_list: File | None = None  # text file, `image label` a line
    val_list: File | None = None
    classes: Annotated[int, "[1, 65535]"]  # label ids are 0..classes-1 and ignore_label
    cache: File | None = None  # folder for decoded images: much larger than the files, faster to read; empty = none


@dataclass(frozen=True, kw_only=True)
class Train:
    # network
    arch: Literal["psp", "psa", "smp_pspnet"] = "psp"  # smp_pspnet: that of the package segmentation_models_pytorch
    layers: Literal[18, 34, 50, 101, 152] = 50  # depth of the ResNet
    stem: Literal["deep", "deep32", "plain"] = "deep"  # 3x3 convs of 64, 64, 128 or (MMSegmentation) 32, 32, 64; one 7x7
    contract_dilation: bool = False  # first block of a dilated stage as in MMSegmentation and torchvision
    align_corners: bool = True  # of every bilinear resize in the network
    size_rule: Literal["grid", "input"] = "grid"  # grid: 8n+1 to (H-1)/8*zoom+1; input: any size, logits as large
    zoom_factor: Literal[1, 2, 4, 8] = 8  # logits are this many times finer than the features
    dropout: Annotated[float, "[0, 1)"] = 0.1  # share of channels dropped before the classifiers
    sync_bn: bool = True  # BatchNorm statistics over all processes
    init: Literal["semseg", "mmseg"] = "semseg"  # of weights not loaded from a file: PyTorch's, or Kaiming and heads N(0, 0.01)
    initmodel: File | None = "initmodel/resnet{layers}_v2.pth"  # backbone weights, or `torchvision`; empty = random
    psa_type: Literal[0, 1, 2] = 2  # collect, distribute, both
    compact: bool = False  # attention from h*w channels, without the mask
    shrink_factor: Count = 2  # attention works on features this much smaller
    mask_h: Mask | None = None  # attention mask, odd; empty = 2 * feature size - 1
    mask_w: Mask | None = None
    normalization_factor: Annotated[float, "(0, 1e9]"] | None = 1.0  # empty = mask_h * mask_w
    psa_softmax: bool = True
    # speed and memory: results change by rounding only
    precision: Literal["fp32", "bf16", "fp16", "auto"] = "fp32"  # of the layers; auto: bf16 if it is native, else fp32
    channels_last: bool = False  # memory format; mostly faster with bf16 and fp16
    compile: bool = False  # torch.compile: the first iterations take minutes, the others are faster on most GPUs
    checkpoint_layers: Stages = ()  # stages computed twice to keep less in memory: [layer1, layer2, layer3, layer4]
    # augmentation; semseg: scale, rotate, blur, flip, crop; mmseg: resize into a box, crop, flip, colours, pad
    augmentation: Steps | Literal["semseg", "mmseg"] = "semseg"  # or Albumentations: [{HorizontalFlip: {p: 0.5}}, ...]
    train_h: Side = 473  # crop
    train_w: Side = 473
    scale_min: Scale = 0.5
    scale_max: Scale = 2.0
    rotate_min: Degrees = -10  # mmseg does not rotate
    rotate_max: Degrees = 10
    resize_box: tuple[Side, ...] | None = None  # mmseg: [long, short] that the scale is relative to; empty = the image's
    cat_max_ratio: Annotated[float, "(0, 1]"] = 1.0  # mmseg: redraw a crop with a class of a larger share, ten times at most
    # loss
    loss: Literal["ce", "ohem", "dice"] = "ce"  # cross entropy, cross entropy of the hard pixels, overlap of each class
    class_weights: Literal["auto", "sqrt"] | tuple[Factor, ...] | None = None  # auto: by median frequency; sqrt: its roots
    ohem_threshold: Annotated[float, "(0, 1)"] = 0.7  # a pixel is hard if its right class has a lower probability
    ohem_min_kept: Count = 100000  # pixels of a batch that count at least
    criterion_outside: bool = False  # the network returns logits, the loss is computed from them: the same numbers
    ignore_label: Annotated[int, "[1, 65535]"] = 255
    aux_weight: Factor = 0.4  # total = main + aux_weight * aux
    loss_mean: Literal["valid", "all"] = "valid"  # over the pixels that are not ignored; over all in MMSegmentation
    # optimizer
    optimizer: Literal["sgd", "adamw"] = "sgd"  # adamw wants a tenth of its base_lr or less
    batch_size: Count = 16  # images in one update, over all processes
    accumulate_steps: Count = 1  # the batch is processed in this many parts, to fit a small GPU
    base_lr: Factor = 0.01  # of the backbone
    head_lr_factor: Factor = 10.0  # heads learn at this many times base_lr
    momentum: Momentum = 0.9  # of adamw: its beta 1
    weight_decay: Factor = 1e-4
    bias_decay: bool = True  # False: no weight decay on biases
    norm_decay: bool = True  # False: none on the scales and shifts of BatchNorm
    param_rules: Steps = ()  # by name, the first that fits: [{name: 'layer*', lr_factor: 0.1, weight_decay: 3e-5}]
    ema_decay: Annotated[float, "[0, 1)"] = 0.0  # validate, save and test the moving average of the weights; 0: the weights
    # schedule of the learning rate, see util/schedule.py
    schedule: Literal["poly", "onecycle", "step", "cosine"] = "poly"
    schedule_by: Literal["iteration", "epoch"] = "iteration"  # when it moves
    power: Annotated[float, "[0, 100]"] = 0.9  # poly: lr = (base_lr - min_lr) * (1 - iteration / iterations) ** power + min_lr
    min_lr: Factor = 0.0  # the end of poly, cosine and onecycle
    step_at: tuple[Annotated[float, "(0, 1)"], ...] = (0.5, 0.75)  # step: after these shares of the run
    step_factor: Annotated[float, "(0, 1]"] = 0.1  # the rate is multiplied with this
    warmup_iters: Whole = 0  # first the rate rises linearly from warmup_lr
    warmup_epochs: Whole = 0  # the same in epochs
    warmup_lr: Factor = 0.0
    momentum_low: Momentum | None = None  # onecycle: momentum where the rate is highest; empty = `momentum` always
    # length: epochs, or iterations
    epochs: Count = 50
    max_iter: Count | None = None  # the run ends after so many iterations, and `epochs` is not used
    iter_interval: Count = 4000  # with max_iter, what save_freq and eval_freq count: intervals of so many iterations
    start_epoch: Whole = 0  # set by `resume`; a value of your own starts the schedule there
    # run
    check_data: bool | Count = True  # read all images and labels before a run, or so many (2, 3, ...); not if it resumes
    train_gpu: Gpus | None = None  # empty = CPU
    workers: Annotated[int, "[0, 4096]"] = 16  # loader processes of a machine, over its training processes
    loader_timeout: Annotated[int, "[0, 1000000]"] = 600  # seconds to wait for a batch before the run stops; 0 = for ever
    manual_seed: Annotated[int, "[0, 9007199254740992]"] | None = None  # empty = a new one each run, written to the log
    diff_seed: bool = True  # each process drops other channels (dropout); False: all of them the same
    deterministic: bool = False  # only kernels that repeat their results bit by bit; slower on GPUs
    print_freq: Count = 10  # iterations
    save_freq: Count = 1  # intervals: epochs, or iter_interval iterations
    save_iters: Whole = 0  # iterations between checkpoints inside an epoch; 0 = none
    keep_checkpoints: Count = 2  # newest train_epoch_N.pth files that stay; model_best.pth always does
    save_path: File  # where checkpoints and logs go
    weight: File | None = None  # a whole network to start from
    skip_head: bool = False  # of `weight`: leave out the classifiers, if they are for another number of classes
    resume: File | None = None  # the full state of a run to go on with; `auto`: the newest in save_path, if any; `best`
    # validation while training
    evaluate: bool = False
    eval_freq: Count = 1  # intervals
    batch_size_val: Count = 8  # windows that go through the network at once
    main_metric: Literal["mIoU", "mAcc", "allAcc", "fwIoU", "mDice", "loss"] = "mIoU"  # chooses model_best.pth


@dataclass(frozen=True, kw_only=True)
class Distributed:
    # torchrun, srun and mpirun bring all this themselves; without them each machine starts its own processes:
    dist_url: str = "tcp://127.0.0.1:6789"  # where the machines meet: the first one's address and a free port
    dist_backend: Literal["nccl", "gloo"] = "nccl"  # on CPUs always gloo
    multiprocessing_distributed: bool = True  # always one process per GPU; False meant DataParallel, which is gone
    world_size: Count = 1  # machines
    rank: Whole = 0  # of this machine


@dataclass(frozen=True, kw_only=True)
class Test:
    test_list: File | None = None
    split: Literal["train", "val", "test"] = "val"  # test: images without labels
    base_size: Side | tuple[Side, ...] | None = None  # long side at scale 1, or [long, short] to fit into; empty = as it is
    test_h: Side | None = None  # window; empty = train_h, train_w
    test_w: Side | None = None
    test_mode: Literal["slide", "whole"] = "slide"  # overlapping windows, or each scaled image in one piece
    scales: tuple[Scale, ...] = (1.0,)
    flip: bool = True  # average with the mirror image
    average: Literal["prob", "logit"] = "prob"  # over windows; logit: softmax last, as MMSegmentation
    test_batch: Count = 1  # windows, with their mirror images, that go through the network at once
    has_prediction: bool = False  # score the PNGs that are in save_folder already
    boundary_iou: bool = False  # score the contours too; slower
    format: Literal["none", "cityscapes", "ade20k", "voc2012"] = "none"  # write the PNGs of this evaluation server too
    index_start: Whole = 0  # first image of the list
    index_step: Whole = 0  # how many; 0 = to the end
    test_gpu: Gpus | None = None  # empty = CPU
    model_path: File | tuple[File, ...] | None = None  # of several checkpoints the probabilities are averaged
    save_folder: File | None = None
    name_by: Literal["image", "label"] = "image"  # whose name a prediction gets
    colors_path: File | None = None
    names_path: File | None = None


@dataclass(frozen=True, kw_only=True)
class Config(Test, Distributed, Train, Data):
    """Every key of every section as an attribute; paths are absolute; `notes` lists what was assumed while reading."""

    path: str  # the YAML file, or the checkpoint that carries the config
    notes: tuple[str, ...] = ()
    names: tuple[str, ...] | None = None  # of the classes, and their colours R, G, B, where a checkpoint carries them;
    palette: tuple[tuple[int, ...], ...] | None = None  # names_path and colors_path are empty then

    @property
    def window(self) -> tuple[int, int]:
        """Height and width of the test's windows."""
        return self.test_h or self.train_h, self.test_w or self.train_w


SECTIONS = {"DATA": Data, "TRAIN": Train, "Distributed": Distributed, "TEST": Test}
SECTION_OF = {field.name: name for name, section in SECTIONS.items() for field in dataclasses.fields(section)}
FIELDS = {field.name: field for field in dataclasses.fields(Config) if field.name in SECTION_OF}
PATHS = tuple(key for key, field in FIELDS.items() if field.type is File or File in get_args(field.type))
WORDS = (("resume", "auto"), ("resume", "best"), ("initmodel", "torchvision"))  # accepted in place of a path
WEIGHTS = ("weight", "initmodel", "model_path")  # these may be addresses too
REMOVED = {  # keys of earlier versions: files that hold them still load
    "minimize_metric": "main_metric decides: the lowest loss is best, and the highest of every other score",
    "fast_head": "it is an argument of PSPNet, for comparisons",
    "fused_loss": "it is an argument of the networks, for comparisons",
}


def load_config(path, overrides=(), must_exist=(), check=None, checkpoint=None) -> Config:
    """Read, override, check and freeze.

    path: a YAML file or a name that `find_config` knows; or a checkpoint, whose content is then given as `checkpoint` and
    whose class names and colours come with the config. overrides: `[KEY, VALUE, KEY, VALUE, ...]`, KEY with or without its
    section (`TRAIN.base_lr`), VALUE as in `read_value`. must_exist: keys whose files the program is about to need, or a
    function of the config that returns them; names_path and colors_path are then checked too. check: a function of the config
    that yields (key, message) for further mistakes. Relative paths in file and overrides start at the project's root.

    Raises Mistake with one line for every mistake, `file: SECTION.key: what is wrong (what to do)`.
    """
    path, errors = find_config(path) if checkpoint is None else path, []

    def error(key, message):
        errors.append(config_error(path, key, message))

    content = _read_file(path) if checkpoint is None else _carried_config(path, checkpoint)
    given = _parse_overrides(overrides, error)
    values = _flatten(content, error) | given
    checked = {}
    for key, field in FIELDS.items():
        if key in values:
            try:
                checked[key] = convert(values[key], field.type)
            except Mistake as mistake:
                error(key, mistake)
        elif field.default is dataclasses.MISSING:
            error(key, "this key must be set")
    notes = [] if errors else _resolve_paths(checked, error)
    if not errors:
        carried = {} if checkpoint is None else _carried_classes(checkpoint, checked, given, error, notes)
        cfg = Config(**checked, **carried, path=str(path))
        cfg = dataclasses.replace(cfg, notes=(*notes, *_notes_on_removed(values, cfg)))
        keys = must_exist(cfg) if callable(must_exist) else must_exist
        for key, message in (*_mistakes(cfg), *_missing_files(cfg, keys), *(check(cfg) if check else ())):
            error(key, message)
    if errors:
        raise Mistake("\n".join(errors))
    return cfg


def config_error(cfg, key, message) -> str:
    """`file: SECTION.key: message`, the form of every mistake in a config. cfg: a Config, or the file's path."""
    where = f"{SECTION_OF[key]}.{key}" if key in SECTION_OF else key
    return f"{getattr(cfg, 'path', cfg)}: {where}: {message}"


def find_config(name, root=ROOT) -> Path:
    """The YAML file that `name` means; Mistake with the nearest names if there is none.

    name: a path, from here or from `root`; the name of a shipped file, `cityscapes_pspnet50`; or MMSegmentation's,
    `pspnet_r50-d8_512x1024_40k_cityscapes` or `configs/pspnet/pspnet_r50-d8_512x1024_40k_cityscapes.py`, or of its version 1,
    `pspnet_r50-d8_4xb2-40k_cityscapes-512x1024`.
    """
    wanted = Path(name)
    if is_url(str(name)) or str(name).endswith(MODEL_SUFFIXES):
        raise Mistake(
            f"{name}: the file of a trained network, and not a config; give the YAML file (or its name), and this file as "
            "`weight` to start a training from it, as `resume` to go on with its run, or as --model to test, demo and export"
        )
    for path in (wanted, root / wanted):
        if os.path.isfile(path) and path.suffix != ".py":  # noqa: PTH113, Path.is_file raises where the name is too long
            return path
    ours, theirs, newer = {}, {}, {}
    for path in sorted(root.glob("config/*/*.yaml")):
        ours[path.stem] = path
        recipe = path.stem.removeprefix(f"{path.parent.name}_")
        dataset = {"voc2012": "voc12aug"}.get(path.parent.name, path.parent.name)
        if re.search(r"_r\d+-d8_", recipe):
            theirs |= {f"{dataset}_{recipe}": path, f"{recipe}_{dataset}": path}
            net, size, length = recipe.rsplit("_", 2)  # its version 1: pspnet_r50-d8_4xb2-40k_cityscapes-512x1024
            newer[f"{net}_{length}_{dataset}-{size}"] = path
    known = theirs | ours
    stem = wanted.stem if wanted.suffix in (".yaml", ".py") else wanted.name
    if (plain := re.sub(r"_\d+xb\d+-", "_", stem)) in newer:
        stem, known = plain, newer
    if stem in known and (str(name) == wanted.name or "configs" in wanted.parts):  # no other path may mean another file
        return known[stem]
    near = did_you_mean(stem, [*(f"{name}.yaml" for name in ours), *theirs], count=2, cutoff=0.5)
    raise Mistake(f"{name}: no such config file{near or ' (config/ has the shipped ones)'}")


def dump_config(cfg: Config) -> str:
    """The resolved config as YAML, by section; paths inside the project are written relative to its root."""
    sections = {}
    for key, section in SECTION_OF.items():
        value = getattr(cfg, key)
        if key in PATHS and value:
            value = [below_root(path) for path in value] if isinstance(value, tuple) else below_root(value)
        sections.setdefault(section, {})[key] = list(value) if isinstance(value, tuple) else value
    return yaml.safe_dump(sections, sort_keys=False)


def below_root(path) -> str:
    """A path inside the project relative to it, so that it reads the same on every machine; another one as it is."""
    return str(Path(path).relative_to(ROOT)) if Path(path).is_relative_to(ROOT) else str(path)


def changed_keys(old: str, cfg: Config) -> dict:
    """{key: (old value, new value)} of what differs between a dumped config and this one. Mistake if `old` is no config."""
    before = _settings(old if isinstance(old, str) else "", "config of the checkpoint")
    after = _settings(dump_config(cfg), cfg.path)
    return {key: (before.get(key), value) for key, value in after.items() if before.get(key) != value}


# ---- out of a checkpoint ----


def carries_config(content) -> bool:
    """Does this content have the whole config of a run? What tool/convert.py made of a foreign file has a part of one."""
    needed = {key for key, field in FIELDS.items() if field.default is dataclasses.MISSING}
    text = content.get("config")
    try:
        return isinstance(text, str) and needed <= _settings(text, "config of the checkpoint").keys()
    except Mistake:
        if re.search("^(DATA|TRAIN|TEST):", text, re.MULTILINE):  # of a run, and damaged
            raise
        return False


def _carried_config(path, content) -> dict:
    if not carries_config(content):
        raise Mistake(
            f"{path}: carries no config of a run, as checkpoints of tool/train.py do; name the experiment with --config, and "
            "this file as its model_path (in Python: Predictor(..., config=FILE))"
        )
    return parse_yaml(content["config"], path)


def _carried_classes(content, values, given, error, notes) -> dict:
    """`names` and `palette` of a Config out of a checkpoint. They take the place of the files of the machine that trained,
    which are left out of `values`, unless the command line names files. Earlier checkpoints carry neither."""
    carried, classes = {}, values["classes"]
    names, palette = content.get("names"), content.get("palette")
    if names is not None and "names_path" not in given:
        if not is_each(names, classes, is_name):
            error("names", f"expected {classes} names of classes, found {shown(names)}")
        else:
            values["names_path"], carried["names"] = None, tuple(names)
    if palette is not None and "colors_path" not in given:
        if not is_each(palette, classes, is_colour):
            error("palette", f"expected {classes} colours [R, G, B] of 0..255, found {shown(palette)}")
        else:
            values["colors_path"], carried["palette"] = None, tuple(map(tuple, palette))
    for key, what in (("names_path", "names of its classes"), ("colors_path", "colours")):
        path = None if key in given else values.get(key)
        if path and not os.path.exists(path):  # noqa: PTH110, as in find_config
            notes.append(f"{key}: {path} does not exist, and this checkpoint of an earlier version carries no {what}")
            values[key] = None
    return carried


def is_each(found, classes, sound) -> bool:
    """Is this a list with something `sound` for each class?"""
    return isinstance(found, list) and len(found) == classes and all(map(sound, found))


def is_name(name) -> bool:
    """A text that can be written: half a character of two halves cannot."""
    return isinstance(name, str) and not re.search("[\ud800-\udfff]", name)


def is_colour(c) -> bool:
    return isinstance(c, list) and len(c) == 3 and all(type(v) is int and 0 <= v <= 255 for v in c)


# ---- for scripts written for the original repository ----


class Settings(dict):
    """The keys of all sections in one dict, also as attributes."""

    __setattr__ = dict.__setitem__

    def __getattr__(self, key):
        if key in self:
            return self[key]
        raise AttributeError(f"{key}: no such key in the config{did_you_mean(key, self)}")


def load_cfg_from_cfg_file(file) -> Settings:
    """What the file holds, unchecked and without defaults; keys that this project does not have are kept. `1e-2`, which is
    text in YAML 1.1, is a number."""
    values = Settings(_settings(read_config_text(file), file))
    for key in values:
        if isinstance(values[key], str) and float in kinds_of(key):
            with suppress(Mistake):
                values[key] = convert(values[key], float)
    return values


def merge_cfg_from_list(cfg: Settings, cfg_list) -> Settings:
    """A copy with `[KEY, VALUE, ...]` applied; each VALUE must be of the type that the key has in `cfg`, or empty (`None`)."""
    new = copy.deepcopy(cfg)
    for name, text in key_value_pairs(cfg_list):
        key = name.rpartition(".")[2]
        if key not in new:
            raise Mistake(f"{name}: unknown key{did_you_mean(key, new)}")
        old = cfg[key]
        try:
            value = read_value(key, text, kinds=[str] if isinstance(old, str) else kinds_of(key))
            value = None if value in ("", "None") else value
            if isinstance(old, list | tuple) and value is not None:
                value = convert(value, FIELDS[key].type) if key in FIELDS else value
                value = list(value) if isinstance(value, list | tuple) else [value]
            elif value is not None and type(old) in (bool, int, float, str, dict):
                value = convert(value, type(old))
        except Mistake as mistake:
            raise Mistake(f"{name}: {mistake}") from None
        new[key] = value
    return new


# ---- values ----


def kinds_of(key) -> list:
    """The plain types of a key, without bounds: [str, NoneType] for `weight`; none for an unknown key."""

    def plain(kind):
        if get_origin(kind) is Annotated:
            return plain(get_args(kind)[0])
        return [k for part in get_args(kind) for k in plain(part)] if get_origin(kind) in (Union, UnionType) else [kind]

    return plain(FIELDS[key].type) if key in FIELDS else []


def read_value(key, text, kinds=None):
    """VALUE of a command line: for a key of text the text itself (`null` and nothing: empty), else YAML (`[0, 1]`, `1e-2`)."""
    if not isinstance(text, str):
        return text
    kinds = kinds_of(key) if kinds is None else kinds
    if str in kinds and any(get_origin(kind) is tuple for kind in kinds) and re.match(r"\[.*\]$", text.strip()):
        return [path.strip(" '\"") for path in text.strip()[1:-1].split(",")]
    if str in kinds:
        return None if text.strip() in ("", "~", "null", "Null", "NULL", "None") else text
    return parse_yaml(text, shown_as=shown(text))


def value_of(key, text):
    """The value that a config has after `KEY VALUE`, or Mistake."""
    if key not in FIELDS:
        raise Mistake(f"{key}: unknown key{did_you_mean(key, FIELDS)}")
    return convert(read_value(key, text), FIELDS[key].type)


# ---- files ----


def _read_file(path) -> dict:
    content = parse_yaml(read_config_text(path), path)
    if not isinstance(content, dict):
        raise Mistake(f"{path}: expected sections {', '.join(SECTIONS)} with keys, found {type(content).__name__}")
    return content


def _settings(text, shown_as) -> dict:
    """The keys of all sections, whatever they are."""
    sections = parse_yaml(text, shown_as)
    if not isinstance(sections, dict) or not all(isinstance(keys, dict | NoneType) for keys in sections.values()):
        raise Mistake(f"{shown_as}: expected sections with `key: value` lines")
    return {key: value for keys in sections.values() for key, value in (keys or {}).items()}


def _flatten(content, error) -> dict:
    values = {}
    for section, keys in content.items():
        if section in SECTION_OF:
            error(section, f"this key belongs in a section: put it below `{SECTION_OF[section]}:`, indented")
        elif section not in SECTIONS:
            error(section, f"unknown section{did_you_mean(section, SECTIONS)}; there are {', '.join(SECTIONS)}")
        elif not isinstance(keys, dict | NoneType):
            error(section, f"expected `key: value` lines, found {shown(keys)}")
        else:
            for key, value in (keys or {}).items():
                if key not in SECTION_OF and key not in REMOVED:
                    error(f"{section}.{key}", f"unknown key{did_you_mean(key, SECTION_OF)}")
                elif key in values:
                    error(f"{section}.{key}", "this key stands in two sections; remove one")
                values[key] = value
    return values


def key_value_pairs(words):
    """[(KEY, VALUE), ...] of [KEY, VALUE, ...]."""
    if joined := next((word for word in words[::2] if re.match(r"(\w+\.)?\w+=", word)), None):
        raise Mistake(f"command line: overrides are KEY VALUE pairs: write {joined.replace('=', ' ', 1)}")
    if len(words) % 2:
        raise Mistake(f"command line: overrides are KEY VALUE pairs, and {shown(words[-1])} has no partner")
    return zip(words[::2], words[1::2])


def _parse_overrides(overrides, error) -> dict:
    values = {}
    for name, text in key_value_pairs(overrides):
        section, _, key = name.rpartition(".")
        if section not in ("", SECTION_OF.get(key, "TRAIN")) or key not in SECTION_OF and key not in REMOVED:
            known = [*SECTION_OF, *(f"{s}.{k}" for k, s in SECTION_OF.items())]
            error(f"command line: {name}", f"unknown key{did_you_mean(name, known)}")
            continue
        try:
            values[key] = read_value(key, text)
        except Mistake as mistake:
            error(f"command line: {name}", mistake)
    return values


def _notes_on_removed(values, cfg):
    for key in sorted(REMOVED & values.keys()):
        value = values[key]
        contradicts = key == "minimize_metric" and value != (cfg.main_metric == "loss")
        more = f"; this value contradicts main_metric: {cfg.main_metric}" if contradicts else ""
        yield f"{key}: {shown(value)} is ignored, the key was removed: {REMOVED[key]}{more}"


# ---- paths ----


def _resolve_paths(values, error) -> list[str]:
    """Replace `{key}` and make paths absolute, in place; returns notes on files that were found elsewhere."""
    notes, done = [], {}
    known = {key: field.default for key, field in FIELDS.items()} | values

    def filled(key, outer=()):
        """The absolute path of `key`, or a tuple of them. outer: the keys whose paths name this one."""
        if key not in done:
            several = isinstance(known[key], tuple)
            paths = [absolute(text, (*outer, key)) for text in (known[key] if several else [known[key]])]
            done[key] = tuple(paths) if several else paths[0]
        return done[key]

    def absolute(text, outer):
        if is_url(text):
            if outer[-1] not in WEIGHTS:
                raise Mistake(f"{text}: expected a path; addresses are for {', '.join(WEIGHTS)}")
            parse_url(text)
            return text
        if re.search(r"[{}]", re.sub(r"\{\w+\}", "", text)):
            raise Mistake(f"{text}: braces may hold only the name of another key")
        text = re.sub(r"\{(\w+)\}", lambda match: named(match[1], outer), text)
        if len(text) > 4000:
            raise Mistake(f"the path has {len(text)} characters, more than any file system allows")
        return os.path.normpath(ROOT / os.path.expanduser(text))  # noqa: PTH111, Path's raises for an unknown user

    def named(name, outer):
        value = known.get(name)
        if name in outer or value is None or isinstance(value, tuple) or (name, value) in WORDS or is_url(value):
            raise Mistake(f"{known[outer[-1]]}: {{{name}}} is not the name of another key with one value")
        return filled(name, outer) if name in PATHS else str(value)

    for key in PATHS:
        if known[key] is None or (key, known[key]) in WORDS:
            continue
        try:
            values[key] = filled(key)
        except Mistake as mistake:
            error(key, mistake)
            continue
        if key in ("colors_path", "names_path") and not os.path.exists(values[key]):  # noqa: PTH110, as in find_config
            shipped = [path for path in ROOT.glob("dataset/*/*.txt") if path.name == Path(values[key]).name]
            if shipped:
                values[key] = str(shipped[0])
                notes.append(f"{key}: {known[key]} does not exist, using {shipped[0].relative_to(ROOT)}")
    return notes


def _missing_files(cfg, keys):
    """Yield (key, message) for each of these keys whose file is not there."""
    for key in dict.fromkeys((*keys, *(key for key in ("names_path", "colors_path") if keys and getattr(cfg, key)))):
        paths = getattr(cfg, key)
        if paths is None:
            yield key, "this key must be set for what you are about to do"
        for path in paths if isinstance(paths, tuple) else [paths] if paths else []:
            if is_url(path) or os.path.exists(path):  # noqa: PTH110, as in find_config
                if key not in ("data_root", "save_folder") and os.path.isdir(path):  # noqa: PTH112
                    yield key, f"{path} is a folder, not a file"
                continue
            remedy = ""
            if key == "initmodel":
                remedy = "; initmodel/README.md has its source, and an empty `initmodel:` starts from random weights"
            elif key == "resume":
                remedy = "; a checkpoint of a run, `auto` (the newest in save_path) or `best`"
            elif key == "weight":
                remedy = "; a file of weights, or an address; relative paths start at the project's root"
            elif key in ("data_root", "train_list", "val_list", "test_list"):
                correct = f"correct {cfg.path}" if Path(cfg.path).suffix == ".yaml" else f"give {key} PATH on the command line"
                remedy = f"; prepare the data (python tool/prepare.py --help) or {correct}"
            elif key == "model_path":
                there = []
                with suppress(OSError):  # a folder whose name is too long
                    there = sorted(Path(path).parent.glob("*.pth"), key=lambda p: p.lstat().st_mtime, reverse=True)
                remedy = "; train first, or name the checkpoint: model_path FILE"
                if there:
                    remedy = f"; there are {first_few([p.name for p in there])}: name one, model_path {there[0]}"
            yield key, f"{path} does not exist{remedy}"


# ---- what cannot go together ----


def _mistakes(cfg: Config):
    """Yield (key, message) for every value, or pair of values, that cannot work. model.check_config checks the
    keys of network and loss."""
    if cfg.ignore_label < cfg.classes:
        free = "255, or 65535 with 16-bit labels" if cfg.classes <= 255 else "65535, with 16-bit labels"
        yield "ignore_label", f"{cfg.ignore_label} is the id of a class, since classes is {cfg.classes}; take {free}"
    if cfg.classes == 1:
        yield "classes", "1: there is nothing to tell apart; the background is a class too"
    if isinstance(cfg.class_weights, tuple):
        if len(cfg.class_weights) != cfg.classes:
            yield "class_weights", f"{len(cfg.class_weights)} numbers for {cfg.classes} classes; give one per class"
        elif not any(cfg.class_weights):
            yield "class_weights", "all are 0, so nothing would be learned"
    if cfg.model_path == ():
        yield "model_path", "the list is empty; name at least one checkpoint"
    for low, high in (("scale_min", "scale_max"), ("rotate_min", "rotate_max")):
        if getattr(cfg, low) > getattr(cfg, high):
            yield low, f"{getattr(cfg, low)} is greater than {high}, {getattr(cfg, high)}"
    if not cfg.scales:
        yield "scales", "the list is empty; [1.0] is the image's own size"
    for key, sides in (("base_size", (1, 2)), ("resize_box", (2,))):
        if isinstance(getattr(cfg, key), tuple) and len(getattr(cfg, key)) not in sides:
            yield key, f"{list(getattr(cfg, key))} must be the long and the short side in pixels"
    for key in ("train_gpu", "test_gpu"):
        if cfg.dist_backend == "nccl" and len(set(getattr(cfg, key) or ())) < len(getattr(cfg, key) or ()):
            yield key, f"{list(getattr(cfg, key))} has a GPU twice; with dist_backend nccl each process needs its own"
    if cfg.compile and cfg.checkpoint_layers:
        yield "checkpoint_layers", f"{list(cfg.checkpoint_layers)} cannot go with compile: True; leave one of them out"
    if cfg.min_lr > cfg.base_lr and cfg.schedule != "step":
        yield "min_lr", f"{cfg.min_lr} is greater than base_lr, {cfg.base_lr}"
    if cfg.warmup_iters and cfg.warmup_epochs:
        yield "warmup_iters", "give it or warmup_epochs, not both"
    if cfg.warmup_epochs and cfg.max_iter:
        yield "warmup_epochs", "a run of max_iter iterations has no epochs; give warmup_iters"
    if list(cfg.step_at) != sorted(cfg.step_at):
        yield "step_at", f"{list(cfg.step_at)} must rise"
    if cfg.momentum_low is not None and not (cfg.schedule == "onecycle" and cfg.momentum_low <= cfg.momentum):
        yield "momentum_low", f"{cfg.momentum_low} needs schedule: onecycle and must not exceed momentum, {cfg.momentum}"
    if cfg.max_iter and cfg.start_epoch:
        yield "start_epoch", f"{cfg.start_epoch} means nothing in a run of max_iter iterations; leave it 0 and use `resume`"
    if cfg.start_epoch >= cfg.epochs and not cfg.max_iter:
        yield "start_epoch", f"{cfg.start_epoch} leaves nothing to do, since epochs is {cfg.epochs}"
    if cfg.rank >= cfg.world_size:
        yield "rank", f"{cfg.rank} is no number of one of {cfg.world_size} machine(s); they count from 0"
