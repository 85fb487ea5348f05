"""One YAML file = one experiment: read it, apply `KEY VALUE` overrides, check everything, freeze it.

The sections of the file are the classes below; their fields are the keys, with type, default and meaning. `Config` is all
of them in one flat namespace, as the original scripts use it: `cfg.base_lr`, not `cfg.TRAIN.base_lr`. A path may name other
keys in braces: `model_path: '{save_path}/train_epoch_{epochs}.pth'`.
"""

import contextlib
import dataclasses
import difflib
import os
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import yaml

ROOT = Path(__file__).resolve().parents[1]

Floats = tuple[float, ...]
Ints = tuple[int, ...]
Stages = tuple[Literal["layer0", "layer1", "layer2", "layer3", "layer4"], ...]
Steps = tuple[dict, ...]  # mappings, each with keys of its own


@dataclass(frozen=True, kw_only=True)
class Data:
    data_root: str  # the folder that the lists' paths are relative to
    train_list: str | None = None  # text file, `image label` a line
    val_list: str | None = None
    classes: int  # label ids are 0..classes-1 and ignore_label
    cache: str | None = None  # folder for decoded images, far larger than the files but read in no time; empty = none


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
    dropout: float = 0.1  # share of channels dropped before the classifiers
    sync_bn: bool = True  # BatchNorm statistics over all processes
    init: Literal["semseg", "mmseg"] = "semseg"  # how what no file brings starts: as PyTorch does, or Kaiming, heads N(0, 0.01)
    initmodel: str | None = "initmodel/resnet{layers}_v2.pth"  # backbone weights, or `torchvision`; empty = random
    psa_type: Literal[0, 1, 2] = 2  # collect, distribute, both
    compact: bool = False
    shrink_factor: int = 2
    mask_h: int | None = None  # attention mask, odd; empty = 2 * feature size - 1
    mask_w: int | None = None
    normalization_factor: float | None = 1.0  # empty = mask_h * mask_w
    psa_softmax: bool = True
    # speed and memory: the numbers stay the same but for rounding
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"  # of the layers, in training and test; weights and loss stay fp32
    channels_last: bool = False  # memory format; mostly faster with bf16 and fp16
    compile: bool = False  # torch.compile: the first iterations take minutes, the others are faster on most GPUs
    checkpoint_layers: Stages = ()  # stages computed twice to keep less in memory: [layer1, layer2, layer3, layer4]
    fast_head: bool = True  # False: the pyramid's convolution as it stands in the paper, to compare with
    fused_loss: bool = True  # False: all logits at label size in memory, to compare with
    # augmentation; semseg: scale, rotate, blur, flip, crop; mmseg: resize into a box, crop, flip, colours, pad
    augmentation: Steps | Literal["semseg", "mmseg"] = "semseg"  # or Albumentations: [{HorizontalFlip: {p: 0.5}}, ...]
    train_h: int = 473  # crop
    train_w: int = 473
    scale_min: float = 0.5
    scale_max: float = 2.0
    rotate_min: float = -10  # degrees; mmseg does not rotate
    rotate_max: float = 10
    resize_box: Ints | None = None  # mmseg: long and short side that the scale is relative to; empty = the image's own
    cat_max_ratio: float = 1.0  # mmseg: a crop with a class of a larger share is drawn again, ten times at most
    # loss
    loss: Literal["ce", "ohem", "dice"] = "ce"  # cross entropy, the same of the hard pixels alone, overlap of each class
    class_weights: Literal["auto"] | Floats | None = None  # one a class; auto: median frequency balancing
    ohem_threshold: float = 0.7  # a pixel is hard if its right class has a lower probability
    ohem_min_kept: int = 100000  # pixels of a batch that count at least
    criterion_outside: bool = False  # the network returns logits, the loss is computed from them: the same numbers
    ignore_label: int = 255
    aux_weight: float = 0.4  # total = main + aux_weight * aux
    loss_mean: Literal["valid", "all"] = "valid"  # over the pixels that are not ignored; over all in MMSegmentation
    # optimizer
    batch_size: int = 16  # images in one update, over all processes
    accumulate_steps: int = 1  # go through the batch in this many parts, to fit a small GPU
    base_lr: float = 0.01  # of the backbone; heads learn 10 times as fast
    head_lr_factor: float = 10.0
    momentum: float = 0.9
    weight_decay: float = 1e-4
    bias_decay: bool = True  # False: no weight decay on biases
    norm_decay: bool = True  # False: none on the scales and shifts of BatchNorm
    param_rules: Steps = ()  # by name, the first that fits: [{name: 'layer*', lr_factor: 0.1, weight_decay: 3e-5}]
    # schedule of the learning rate, see util/schedule.py
    schedule: Literal["poly", "onecycle", "step", "cosine"] = "poly"
    schedule_by: Literal["iteration", "epoch"] = "iteration"  # when it moves
    power: float = 0.9  # poly: lr = (base_lr - min_lr) * (1 - iteration / iterations) ** power + min_lr
    min_lr: float = 0.0  # the end of poly, cosine and onecycle
    step_at: Floats = (0.5, 0.75)  # step: after these shares of the run
    step_factor: float = 0.1  # the rate is multiplied with this
    warmup_iters: int = 0  # first the rate rises linearly from warmup_lr
    warmup_epochs: int = 0  # the same in epochs
    warmup_lr: float = 0.0
    momentum_low: float | None = None  # onecycle: momentum where the rate is highest; empty = `momentum` always
    # length: epochs, or iterations
    epochs: int = 50
    max_iter: int | None = None  # the run ends after so many iterations, and `epochs` is not used
    iter_interval: int = 4000  # with max_iter, what save_freq and eval_freq count: intervals of so many iterations
    start_epoch: int = 0  # set by `resume`; a value of your own starts the schedule there
    # run
    check_data: bool = True  # read every image and label once before the first step; skipped when a run resumes
    train_gpu: Ints | None = None  # empty = CPU
    workers: int = 16  # loader processes, over all training processes
    loader_timeout: int = 600  # seconds to wait for a batch before the run stops; 0 = for ever
    manual_seed: int | None = None  # empty = a new one each run, written to the log
    diff_seed: bool = True  # each process drops other channels (dropout); False: all of them the same
    deterministic: bool = False  # only kernels that repeat their results bit by bit; slower on GPUs
    print_freq: int = 10  # iterations
    save_freq: int = 1  # epochs
    save_iters: int = 0  # iterations between checkpoints inside an epoch; 0 = none
    keep_checkpoints: int = 2  # newest train_epoch_N.pth files that stay; model_best.pth always does
    save_path: str  # where checkpoints and logs go
    weight: str | None = None  # a whole network to start from
    skip_head: bool = False  # of `weight`: leave out the classifiers, if they are for another number of classes
    resume: str | None = None  # the full state of a run to go on with; `auto`: the newest in save_path, if any; `best`
    # validation while training
    evaluate: bool = False
    eval_freq: int = 1  # epochs
    batch_size_val: int = 8  # windows that go through the network at once
    main_metric: Literal["mIoU", "mAcc", "allAcc", "fwIoU", "mDice", "loss"] = "mIoU"  # chooses model_best.pth
    minimize_metric: bool = False  # True with loss


@dataclass(frozen=True, kw_only=True)
class Distributed:
    # torchrun, srun and mpirun know all this themselves; without them each machine starts its own processes:
    dist_url: str = "tcp://127.0.0.1:6789"  # where the machines meet: the first one's address and a free port
    dist_backend: Literal["nccl", "gloo"] = "nccl"  # on CPUs always gloo
    multiprocessing_distributed: bool = True  # always one process per GPU; False meant DataParallel, which is gone
    world_size: int = 1  # machines
    rank: int = 0  # of this machine


@dataclass(frozen=True, kw_only=True)
class Test:
    test_list: str | None = None
    split: Literal["train", "val", "test"] = "val"  # test: images without labels
    base_size: int | Ints | None = None  # long side of the image at scale 1, or [long, short] to fit into; empty = as it is
    test_h: int | None = None  # window; empty = train_h, train_w
    test_w: int | None = None
    test_mode: Literal["slide", "whole"] = "slide"  # overlapping windows, or each scaled image in one piece
    scales: Floats = (1.0,)
    flip: bool = True  # average with the mirror image
    average: Literal["prob", "logit"] = "prob"  # over windows; logit: softmax last, as MMSegmentation
    test_batch: int = 1  # windows, with their mirror images, that go through the network at once
    has_prediction: bool = False  # score the PNGs that are in save_folder already
    boundary_iou: bool = False  # score the contours too; slower
    format: Literal["none", "cityscapes", "ade20k", "voc2012"] = "none"  # write the PNGs of this evaluation server too
    index_start: int = 0  # first image of the list
    index_step: int = 0  # how many; 0 = to the end
    test_gpu: Ints | None = None  # empty = CPU
    model_path: str | None = None
    save_folder: str | None = None
    name_by: Literal["image", "label"] = "image"  # whose name a prediction gets
    colors_path: str | None = None
    names_path: str | None = None


@dataclass(frozen=True, kw_only=True)
class Config(Test, Distributed, Train, Data):
    """Every key of every section as an attribute; paths are absolute; `notes` says what was assumed while reading."""

    path: str  # the YAML file
    notes: tuple[str, ...] = ()


SECTIONS = {"DATA": Data, "TRAIN": Train, "Distributed": Distributed, "TEST": Test}
SECTION_OF = {f.name: name for name, section in SECTIONS.items() for f in dataclasses.fields(section)}
PATHS = (
    *("data_root", "cache", "train_list", "val_list", "test_list", "colors_path", "names_path"),
    *("save_path", "initmodel", "weight", "resume", "model_path", "save_folder"),  # may start with {save_path}
)
POSITIVE = (
    *("classes", "train_h", "train_w", "test_h", "test_w", "scale_min", "epochs", "world_size"),
    *("ohem_min_kept", "batch_size", "batch_size_val", "test_batch", "accumulate_steps", "mask_h", "mask_w", "shrink_factor"),
    *("print_freq", "save_freq", "eval_freq", "keep_checkpoints", "max_iter", "iter_interval", "cat_max_ratio", "step_factor"),
)
NOT_NEGATIVE = (
    *("workers", "aux_weight", "base_lr", "head_lr_factor", "power", "momentum", "weight_decay", "ignore_label"),
    *("start_epoch", "save_iters", "loader_timeout", "index_start", "index_step", "rank"),
    *("min_lr", "warmup_iters", "warmup_epochs", "warmup_lr"),
)


def load_config(path, overrides=(), must_exist=()) -> Config:
    """Read, override, check and freeze.

    path: a YAML file. overrides: `[KEY, VALUE, KEY, VALUE, ...]`, KEY with or without its section (`TRAIN.base_lr`), VALUE
    in YAML (`null`, `[0, 1]`, `1e-2`). must_exist: keys whose files the program is about to need. Relative paths in file and
    overrides start at the project's root, so that programs can be started from anywhere.

    Raises ValueError with one line for every mistake, `file: SECTION.key: what is wrong (what to do)`.
    """
    errors = []

    def error(key, message):
        where = f"{SECTION_OF[key]}.{key}" if key in SECTION_OF else key
        errors.append(f"{path}: {where}: {message}")

    values = _flatten(_read_yaml(path), error)
    values |= _parse_overrides(overrides, error)
    checked = {}
    for field in dataclasses.fields(Config):
        if field.name in values:
            try:
                checked[field.name] = convert(values[field.name], field.type)
            except ValueError as mistake:
                error(field.name, mistake)
        elif field.name in SECTION_OF and field.default is dataclasses.MISSING:
            error(field.name, "this key must be set")
    if not errors:
        notes = _resolve_paths(checked, error)
        cfg = Config(**checked, path=str(path), notes=tuple(notes))
        for key, message in _mistakes(cfg):
            error(key, message)
        for key in must_exist:
            if getattr(cfg, key) is None:
                error(key, "this key must be set for what you are about to do")
            elif not Path(getattr(cfg, key)).exists():
                error(key, f"{getattr(cfg, key)} does not exist{_remedy(cfg, key)}")
    if errors:
        raise ValueError("\n".join(errors))
    return cfg


def dump_config(cfg: Config) -> str:
    """The resolved config as YAML, by section; paths inside the project are written relative to its root."""
    sections = {}
    for key, section in SECTION_OF.items():
        value = getattr(cfg, key)
        if key in PATHS and value and Path(value).is_relative_to(ROOT):
            value = str(Path(value).relative_to(ROOT))
        sections.setdefault(section, {})[key] = list(value) if isinstance(value, tuple) else value
    return yaml.safe_dump(sections, sort_keys=False)


def changed_keys(old: str, cfg: Config) -> dict:
    """{key: (old value, new value)} of what differs between a dumped config and this one."""
    before, after = (
        {key: value for keys in yaml.safe_load(text).values() for key, value in keys.items()}
        for text in (old, dump_config(cfg))
    )
    return {key: (before.get(key), value) for key, value in after.items() if before.get(key) != value}


def convert(value: Any, kind: Any) -> Any:
    """`value` as the annotated type `kind`, or ValueError that says what was expected.

    YAML 1.1 reads `1e-2` as a string and command lines carry nothing but strings, so numbers in strings are accepted.
    """
    if get_origin(kind) in (Union, UnionType):  # X | None
        if value is None or value in ("", "None"):
            return None
        *others, last = (k for k in get_args(kind) if k is not NoneType)
        for other in others:
            with contextlib.suppress(ValueError):
                return convert(value, other)
        return convert(value, last)  # whose error is the one to show
    if get_origin(kind) is Literal:
        for choice in get_args(kind):
            if value == choice and not isinstance(value, bool):
                return choice
        raise ValueError(f"{value!r} is not one of {', '.join(map(str, get_args(kind)))}")
    if get_origin(kind) is tuple:
        items = value if isinstance(value, list | tuple) else [value]
        return tuple(convert(item, get_args(kind)[0]) for item in items)
    if kind is str and isinstance(value, str):
        return value
    if kind is dict and isinstance(value, dict):
        return value
    if kind is bool and isinstance(value, bool):
        return value
    if kind in (int, float) and isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            number = float(value)
        except ValueError:
            number = None
        if number is not None and kind is float:
            return number
        if number is not None and number.is_integer():
            return int(number)
    expected = {str: "text", bool: "True or False", dict: "`name: value` pairs", int: "a whole number", float: "a number"}[kind]
    raise ValueError(f"expected {expected}, not {value!r}" + (" (this key cannot be empty)" if value is None else ""))


class _UniqueKeyLoader(yaml.SafeLoader):
    """PyYAML keeps the last of two equal keys without a word; here that is an error."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise ValueError(f"line {key_node.start_mark.line + 1}: {key}: this key stands twice; remove one")
            seen.add(key)
        return super().construct_mapping(node, deep)


def _read_yaml(path) -> dict:
    if not Path(path).is_file():
        shipped = [p.name for p in ROOT.glob("config/*/*.yaml")]
        near = difflib.get_close_matches(Path(path).name, shipped, cutoff=0.5)
        raise ValueError(f"{path}: no such config file" + (f" (did you mean {' or '.join(near)}?)" if near else ""))
    try:
        content = yaml.load(Path(path).read_text(encoding="utf-8"), _UniqueKeyLoader)  # a SafeLoader: runs no code
    except (yaml.YAMLError, ValueError) as mistake:
        raise ValueError(f"{path}: {mistake}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected sections {', '.join(SECTIONS)} with keys, found {type(content).__name__}")
    return content


def _flatten(content, error) -> dict:
    values = {}
    for section, keys in content.items():
        if section not in SECTIONS:
            error(section, f"unknown section{_suggest(section, SECTIONS)}; there are {', '.join(SECTIONS)}")
            continue
        if not isinstance(keys or {}, dict):
            error(section, f"expected `key: value` lines, found {keys!r}")
            continue
        for key, value in (keys or {}).items():
            if key not in SECTION_OF:
                error(f"{section}.{key}", f"unknown key{_suggest(key, SECTION_OF)}")
            elif key in values:
                error(f"{section}.{key}", "this key stands in two sections; remove one")
            else:
                values[key] = value
    return values


def _parse_overrides(overrides, error) -> dict:
    values = {}
    if len(overrides) % 2:
        error("command line", f"overrides are KEY VALUE pairs, and {overrides[-1]!r} has no partner")
    for name, text in zip(overrides[::2], overrides[1::2]):
        section, _, key = name.rpartition(".")
        if key not in SECTION_OF or section not in ("", SECTION_OF[key]):
            known = [*SECTION_OF, *(f"{s}.{k}" for k, s in SECTION_OF.items())]
            error(f"command line: {name}", f"unknown key{_suggest(name, known)}")
            continue
        try:
            values[key] = yaml.safe_load(text) if isinstance(text, str) else text
        except yaml.YAMLError:
            values[key] = text  # a path such as `a: b` that is no YAML value
    return values


def _resolve_paths(values, error) -> list[str]:
    """Fill in `{key}`, make paths absolute in place; returns notes on files that were found elsewhere."""
    notes = []
    defaults = {f.name: f.default for f in dataclasses.fields(Config)}
    known = {**defaults, **values}
    for key in PATHS:
        value = known[key]
        if value is None or (key, value) in (("resume", "auto"), ("resume", "best"), ("initmodel", "torchvision")):
            continue
        try:
            value = value.format(**known)
        except (KeyError, IndexError, ValueError):
            error(key, f"{value}: only the name of another key may stand in braces")
            continue
        known[key] = values[key] = os.path.normpath(ROOT / Path(value).expanduser())
        if key in ("colors_path", "names_path") and not Path(values[key]).exists():
            shipped = list(ROOT.glob(f"dataset/*/{Path(value).name}"))
            if shipped:
                values[key] = str(shipped[0])
                notes.append(f"{key}: {value} does not exist, using {shipped[0].relative_to(ROOT)}")
    return notes


def _mistakes(cfg: Config):
    """Yield (key, message) for every value, or pair of values, that cannot work."""
    for key in POSITIVE:
        if getattr(cfg, key) is not None and not getattr(cfg, key) > 0:
            yield key, f"{getattr(cfg, key)} must be greater than 0"
    for key in NOT_NEGATIVE:
        if not getattr(cfg, key) >= 0:
            yield key, f"{getattr(cfg, key)} must not be negative"
    if cfg.ignore_label < cfg.classes:
        yield "ignore_label", (f"{cfg.ignore_label} is the id of a class, since classes is {cfg.classes}; "
                               "take 255, or 65535 with 16-bit labels")  # fmt: skip
    if isinstance(cfg.class_weights, tuple) and (len(cfg.class_weights) != cfg.classes or min(cfg.class_weights) < 0):
        yield "class_weights", f"{len(cfg.class_weights)} numbers for {cfg.classes} classes; give one a class, none negative"
    if not 0 < cfg.ohem_threshold < 1:
        yield "ohem_threshold", f"{cfg.ohem_threshold} must be in (0, 1)"
    if cfg.loss != "ce" and cfg.loss_mean == "all":
        yield "loss_mean", f"all goes with loss: ce alone, not with {cfg.loss}"
    if cfg.classes > 65535:
        yield "classes", f"{cfg.classes} do not fit into 16-bit labels"
    if not 0 <= cfg.dropout < 1:
        yield "dropout", f"{cfg.dropout} must be in [0, 1)"
    for low, high in (("scale_min", "scale_max"), ("rotate_min", "rotate_max")):
        if getattr(cfg, low) > getattr(cfg, high):
            yield low, f"{getattr(cfg, low)} is greater than {high}, {getattr(cfg, high)}"
    if not cfg.scales or min(cfg.scales) <= 0:
        yield "scales", f"{list(cfg.scales)} must be a list of numbers greater than 0"
    for key in ("train_h", "train_w"):
        size = getattr(cfg, key)
        if cfg.size_rule == "grid" and (size - 1) % 8:
            low = (size - 1) // 8 * 8 + 1
            yield key, f"{size} is not of the form 8n+1 that size_rule: grid needs; the nearest are {low} and {low + 8}"
    for key in ("base_size", "resize_box"):
        sides = getattr(cfg, key)
        sides = sides if isinstance(sides, tuple) else (sides or 1,)
        if len(sides) > 2 or min(sides, default=0) < 1:
            yield key, f"{list(sides)} must be the long and the short side in pixels"
    for key in ("mask_h", "mask_w"):
        if getattr(cfg, key) is not None and getattr(cfg, key) % 2 == 0:
            yield key, f"{getattr(cfg, key)} must be odd, so that the mask has a centre"
    if cfg.compile and cfg.checkpoint_layers:
        yield "checkpoint_layers", f"{list(cfg.checkpoint_layers)} cannot go with compile: True; leave one of them out"
    if cfg.min_lr > cfg.base_lr and cfg.schedule != "step":
        yield "min_lr", f"{cfg.min_lr} is greater than base_lr, {cfg.base_lr}"
    if cfg.warmup_iters and cfg.warmup_epochs:
        yield "warmup_iters", "give it or warmup_epochs, not both"
    if cfg.warmup_epochs and cfg.max_iter:
        yield "warmup_epochs", "a run of max_iter iterations has no epochs; give warmup_iters"
    if list(cfg.step_at) != sorted(cfg.step_at) or not all(0 < share < 1 for share in cfg.step_at):
        yield "step_at", f"{list(cfg.step_at)} must be rising shares of the run, each in (0, 1)"
    if cfg.momentum_low is not None and not (cfg.schedule == "onecycle" and 0 <= cfg.momentum_low <= cfg.momentum):
        yield "momentum_low", f"{cfg.momentum_low} needs schedule: onecycle and must be in [0, momentum = {cfg.momentum}]"
    if (cfg.main_metric == "loss") != cfg.minimize_metric:
        best = "lowest" if cfg.main_metric == "loss" else "highest"
        yield "minimize_metric", f"{cfg.minimize_metric} does not fit main_metric: {cfg.main_metric}; the {best} is best"
    if cfg.cat_max_ratio > 1:
        yield "cat_max_ratio", f"{cfg.cat_max_ratio} must be a share, at most 1"
    if cfg.max_iter and cfg.start_epoch:
        yield "start_epoch", f"{cfg.start_epoch} means nothing in a run of max_iter iterations; leave it 0 and use `resume`"
    if cfg.start_epoch >= cfg.epochs and not cfg.max_iter:
        yield "start_epoch", f"{cfg.start_epoch} leaves nothing to do, since epochs is {cfg.epochs}"


def _suggest(name, known) -> str:
    by_lower = {k.lower(): k for k in known}
    near = difflib.get_close_matches(str(name).lower(), list(by_lower), n=1)
    return f" (did you mean {by_lower[near[0]]}?)" if near else ""


def _remedy(cfg, key) -> str:
    if key == "initmodel":
        return "; initmodel/README.md says where it comes from, and an empty `initmodel:` starts from random weights"
    if key in ("data_root", "train_list", "val_list", "test_list"):
        return f"; prepare the data (python tool/prepare.py --help) or correct {cfg.path}"
    if key == "model_path":
        return "; train first, or name the checkpoint"
    return ""
