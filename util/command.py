"""The command line of tool/train.py and tool/test.py: the original's, `--config FILE KEY VALUE ...`, and MMSegmentation's,
`CONFIG --work-dir DIR ...`. All of it ends as overrides of the config, so that nothing else needs to know of flags."""

import argparse
import os
import re
import textwrap
from dataclasses import dataclass, replace
from pathlib import Path
from types import NoneType
from typing import get_origin

from util.common import MODEL_SUFFIXES, Mistake, did_you_mean
from util.config import FIELDS, SECTIONS, find_config, key_value_pairs, kinds_of, load_cfg_from_cfg_file, value_of
from util.fetch import is_url
from util.inference import find_model, is_model, load_model_config

WIDTH = 100  # of the help
PAIRS = "KEY VALUE"
MODELS = "CHECKPOINT"  # the words that name trained networks
GPU, OPTIONS = "train_gpu or test_gpu", "any key"  # what some flags set


@dataclass(frozen=True)
class Flag:
    name: str
    metavar: str | None  # of the word that follows; None: none does
    sets: str | None  # `key` of the config, or `key=value`
    help: str
    type: type = str
    choices: tuple | None = None
    several: str | None = None  # if several words may follow, the pattern of one


SEVERAL_MODELS = rf".*({'|'.join(map(re.escape, MODEL_SUFFIXES))})$|\w+://"
TRAINED, SUBMISSION = "Trained network", "Submission"  # of the test alone
START, SEEDS = "Where a run starts and what it does", "Reproducibility"
FLAGS = {  # by group
    "Experiment": (
        Flag("--config", "FILE", None, "the same as CONFIG"),
        Flag("--work-dir", "DIR", "save_path", "where checkpoints and logs go, and what the test writes: DIR/result/..."),
    ),
    TRAINED: (
        Flag("--model", "FILE [FILE ...]", "model_path", "the same as CHECKPOINT", several=SEVERAL_MODELS),
        Flag("--model-path", "FILE [FILE ...]", "model_path", "the same", several=SEVERAL_MODELS),
    ),
    SUBMISSION: (
        Flag("--format", "SERVER", "format", "also write the PNGs that this server takes: cityscapes, ade20k or voc2012"),
    ),
    START: (
        Flag("--load-from", "FILE", "weight", "start from these weights of a whole network"),
        Flag("--resume-from", "FILE", "resume", "resume from this checkpoint: weights, optimizer, position"),
        Flag("--auto-resume", None, "resume=auto", "resume from the newest checkpoint in the work dir unless --resume-from "
             "names one; if there is none, start anew with a warning"),
        Flag("--no-validate", None, "evaluate=False", "do not validate while training"),
    ),
    "Devices and processes": (
        Flag("--gpu-id", "I", GPU, "use this one GPU; not under a launcher", int),
        Flag("--gpus", "N", GPU, "deprecated: GPU 0 alone, whatever N is", int),
        Flag("--gpu-ids", "I [I ...]", GPU, "deprecated: the first of them alone", int, several=r"\d+$"),
        Flag("--one-gpu", None, None, "of the config's GPUs use the first alone, as train.sh CONFIG does"),
        Flag("--launcher", "NAME", None, "what has started this process: pytorch (torchrun), slurm or mpi; none (the default) "
             "uses what it finds", choices=("none", "pytorch", "slurm", "mpi")),
        Flag("--local-rank", "N", None, "comes from torch.distributed.launch", int),
        Flag("--dist-backend", "NAME", "dist_backend", "nccl or gloo; on CPUs always gloo"),
    ),
    SEEDS: (
        Flag("--seed", "S", "manual_seed", "of first weights, order, augmentation and dropout", int),
        Flag("--diff-seed", None, "diff_seed=True", "each process drops other channels (dropout)"),
        Flag("--deterministic", None, "deterministic=True", "only kernels that repeat bit by bit; slower on GPUs"),
    ),
    "Settings": (
        Flag("--cfg-options", "K=V [K=V ...]", OPTIONS, "the same as KEY VALUE, also with MMSegmentation's keys where they "
             "mean the same: optimizer.lr=0.02 scales=0.5,1.0 base_size=\"(2048,1024)\"", several="[^-=][^=]*="),
        Flag("--options", "K=V [K=V ...]", OPTIONS, "deprecated: --cfg-options", several="[^-=][^=]*="),
    ),
}  # fmt: skip
ABOUT = {
    "Experiment": "CONFIG is a YAML file, the name of a shipped one (cityscapes_pspnet50), or MMSegmentation's name for it "
    "(pspnet_r50-d8_512x1024_40k_cityscapes).",
    TRAINED: "CHECKPOINT, a file of tool/train.py, replaces the config's model_path. It carries its own config, so CONFIG may "
    "be left out. Of several checkpoints the probabilities are averaged.",
    "Settings": 'KEY VALUE overrides a key of the config: base_lr 0.02 scales "[0.5, 1.0]" resume null. VALUE is text for keys '
    "of text, else YAML. A key that is set in two ways must have one value. Relative paths start at the project's root.",
}

MMSEG = {  # MMSegmentation's settings, and their keys here
    "optimizer.lr": "base_lr", "optimizer.momentum": "momentum", "optimizer.weight_decay": "weight_decay",
    "lr_config.power": "power", "lr_config.min_lr": "min_lr", "runner.max_iters": "max_iter",
    "checkpoint_config.interval": "iter_interval", "evaluation.interval": "iter_interval", "log_config.interval": "print_freq",
    "model.backbone.depth": "layers", "model.decode_head.num_classes": "classes", "model.auxiliary_head.num_classes": "classes",
    "optim_wrapper.optimizer.lr": "base_lr", "optim_wrapper.optimizer.momentum": "momentum",
    "optim_wrapper.optimizer.weight_decay": "weight_decay", "train_cfg.max_iters": "max_iter",
    "train_cfg.val_interval": "iter_interval", "load_from": "weight",
    "resume_from": "resume", "work_dir": "save_path",
}  # fmt: skip
REFUSED = {
    "data.samples_per_gpu": "batch_size is that of all GPUs together; give batch_size={value} times the number of GPUs",
    "train_dataloader.batch_size": "batch_size is that of all GPUs together; give batch_size={value} times the number of GPUs",
    "train_dataloader.num_workers": "workers are those of all GPUs together; give workers={value} times the number of GPUs",
    "data.workers_per_gpu": "workers are those of all GPUs together; give workers={value} times the number of GPUs",
}
DEPRECATED = {
    "--gpus": "--gpu-id 0; for several GPUs: sh tool/train_dist.sh CONFIG NUM_GPUS",
    "--gpu-ids": "--gpu-id with the first of them; for several GPUs: sh tool/train_dist.sh CONFIG NUM_GPUS",
    "--options": "--cfg-options",
}
# Flags of its version 1, and what they are here.
NEWER = {"--resume": "give --auto-resume, or resume FILE", "--amp": "write precision auto, or precision fp16"}
TESTING = {  # flags of its test, and what they are here
    "--eval": "leave it out: scores are always computed", "--out": "write save_folder FOLDER",
    "--show-dir": "write save_folder FOLDER", "--format-only": "write split test --format cityscapes",
    "--aug-test": 'write scales "[0.5, 0.75, 1.0, 1.25, 1.5, 1.75]" flip True',
    "--tta": 'write scales "[0.5, 0.75, 1.0, 1.25, 1.5, 1.75]" flip True',
}  # fmt: skip
WHY = {"iter_interval": " (checkpoints and validations have one interval; save_freq and eval_freq are multiples of it)"}
LAUNCHERS = {  # the variables that each one sets, and how to start it
    "none": ([], ""),
    "pytorch": (["RANK"], "torchrun --nproc-per-node GPUS {program} ..."),
    "slurm": (["SLURM_PROCID", "SLURM_STEP_NUM_TASKS"], "srun --ntasks GPUS python {program} ..."),
    "mpi": (["OMPI_COMM_WORLD_RANK"], "mpirun -n GPUS python {program} ..."),
}


@dataclass(frozen=True)
class Setting:
    """One override, and where it comes from."""

    source: str  # PAIRS, or a flag: the last of one source counts, two sources must agree
    written: str
    name: str  # for load_config: with or without a section
    value: str | list

    @property
    def key(self) -> str:
        section, _, key = self.name.rpartition(".")
        return key if section in SECTIONS else self.name

    def meaning(self):
        """The value as the config will have it."""
        try:
            return value_of(self.key, self.value)
        except Mistake:
            return self.value  # load_config will report it


def parse_train(argv, doc) -> tuple[Path, list[str], list[str]]:
    """Path of the config, overrides `[KEY, VALUE, ...]` for load_config, and notes for the log.

    argv: the words after the program's name. doc: the beginning of --help, which prints it and ends the program.
    Call it after util.distributed.adopt_launcher. Sets LOCAL_RANK from --local-rank where the environment has none.
    Raises Mistake for words that are not understood or contradict each other.
    """
    return _parse(argv, doc, "tool/train.py", "train_gpu", [title for title in FLAGS if title not in (TRAINED, SUBMISSION)])


def parse_test(argv, doc, read=None) -> tuple[Path, list[str], list[str]]:
    """The same for tool/test.py; the path may be that of a checkpoint, for load_model_config, which `read` reads. Flags of
    training are accepted too, since train.sh gives the same ones to both."""
    return _parse(argv, doc, "tool/test.py", "test_gpu", FLAGS, hidden=(START, SEEDS), read=read)


def _parse(argv, doc, program, gpu_key, titles, hidden=(), read=None):
    flags = {flag.name: flag for title in titles for flag in FLAGS[title]}
    parser = _build_parser(doc, program, titles, hidden)
    args, words = parser.parse_known_args(_spell_out(argv, flags))
    wrong = [word.partition("=")[0] for word in words if re.match(r"--?[A-Za-z][\w-]*(=|$)", word)]
    if wrong:
        key = wrong[0].lstrip("-").replace("-", "_")
        remedy = (NEWER if START not in hidden else TESTING).get(wrong[0])
        remedy = remedy or (f"write {key} VALUE" if key in FIELDS else None)
        parser.error(f"{wrong[0]}: unknown flag{f'; {remedy}' if remedy else did_you_mean(wrong[0], flags, cutoff=0.75)}")
    given = {name: value for name, value in vars(args).items() if value is not None}
    if "--local-rank" in given:
        os.environ.setdefault("LOCAL_RANK", str(given["--local-rank"]))
    takes_models = TRAINED in titles
    config, models = _which_experiment(given, words, takes_models)
    if config is None:
        more = ", or a checkpoint" if takes_models else ""
        raise Mistake(f"command line: which experiment? Give `python {program} CONFIG`, or `--config FILE`{more}")
    launcher = given.get("--launcher", "none")
    missing = [name for name in LAUNCHERS[launcher][0] if name not in os.environ]
    if missing:
        raise Mistake(
            f"command line: --launcher {launcher}: it has not started this process ({missing[0]} is not in the environment); "
            f"start it with `{LAUNCHERS[launcher][1].format(program=program)}`, or leave --launcher out"
        )
    of_flags = [s for name, value in given.items() for s in _settings(flags[name], value, gpu_key, launcher)]
    settings = [Setting(PAIRS, f"{key} {value}", key, value) for key, value in key_value_pairs(words)] + of_flags
    if models:
        settings.append(Setting(MODELS, " ".join(map(str, models)), "model_path", _one_or_all(models)))
    flagged = [s for s in settings if s.key == "resume" and s.source not in (PAIRS, "--auto-resume")]
    if flagged and "--auto-resume" in given:  # it gives way to a checkpoint, and resume_from=None names none
        named = any(s.meaning() is not None for s in flagged)
        settings = [s for s in settings if s.source != "--auto-resume"] if named else [s for s in settings if s not in flagged]
    _check_agreement(settings)
    overrides, keys = [word for s in settings for word in (s.name, s.value)], {s.key for s in settings}
    if any(s.source in ("--work-dir", "--cfg-options work_dir") for s in settings):
        overrides += _into_work_dir(config, keys, read)
    notes = [f"{name} is deprecated, use {use}" for name, use in DEPRECATED.items() if name in given]
    intervals = [s.written for s in settings if s.key == "iter_interval" and s.source.endswith(".interval")]
    notes += [f"{intervals[0]}: sets iter_interval{WHY['iter_interval']}"] if len(intervals) == 1 else []
    gpus = _fit_gpus(given, config, overrides, gpu_key, gpu_key in keys, read)
    if gpus:
        starter = "the launcher" if launcher == "none" else launcher
        reason = "as --one-gpu asks" if len(gpus) == 1 else f"one for each process that {starter} has started"
        overrides, notes = [*overrides, gpu_key, str(gpus)], [*notes, f"{gpu_key}: {gpus}, {reason}"]
    return config, overrides, notes


def _which_experiment(given, words, takes_models):
    """(path of the config, checkpoints that stand without a flag), which it takes from the beginning of `words`.

    Without CONFIG the path is that of the first checkpoint; it is None if there is none either.
    """
    config, flagged = given.get("--config"), given.get("--model") or given.get("--model-path") or []
    if not config and words and (not flagged or len(words) % 2):  # what follows are pairs
        config = words.pop(0)
    if config and takes_models and is_model(config):
        words.insert(0, config)
        config = None
    models = []
    while takes_models and words and is_model(words[0]):
        models.append(find_model(words.pop(0)))
    first = next(iter(models or map(find_model, flagged)), None)
    return find_config(config) if config else first if is_url(first) else first and Path(first), models


def _one_or_all(items):
    return items[0] if len(items) == 1 else items


# ---- words ----


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise Mistake(f"command line: {message} (python {self.prog} --help lists the flags)")


def _build_parser(doc, program, titles, hidden):
    fill = lambda text, width=WIDTH: text if text[0] == " " else textwrap.fill(text, width, break_on_hyphens=False)
    what = "CONFIG [CHECKPOINT ...] or CHECKPOINT ..." if TRAINED in titles else "CONFIG"
    parser = _Parser(
        prog=program,
        usage=f"python {program} {what} [flags] [KEY VALUE ...]\n       python {program} --config FILE [KEY VALUE ...] [flags]",
        description="\n\n".join(map(fill, doc.strip().split("\n\n"))),  # indented paragraphs are commands
        epilog="Flags may stand anywhere, and have dashes or underscores.\nIn brackets: the key that a flag sets.",
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=28, width=WIDTH),
        allow_abbrev=False,
    )
    for title in titles:
        section = parser.add_argument_group(title, ABOUT.get(title) and fill(ABOUT[title], WIDTH - 4))
        exclusive = section.add_mutually_exclusive_group()
        for flag in FLAGS[title]:
            how = {"action": "store_true", "default": None}
            if flag.metavar:
                action = "append" if flag.several else "store"
                how = {"action": action, "metavar": flag.metavar, "type": flag.type, "choices": flag.choices}
            sets = "" if flag.sets in (None, OPTIONS) else f" [{flag.sets}]"
            text = argparse.SUPPRESS if title in hidden else flag.help + sets
            (exclusive if flag.sets in (GPU, OPTIONS) else section).add_argument(flag.name, dest=flag.name, help=text, **how)
    return parser


def _spell_out(argv, flags) -> list[str]:
    """The words with dashes in flags, and the flag repeated before each of several values."""
    words, flag = [], None
    for word in argv:
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            word = name.replace("_", "-") + equals + value
            flag = flags.get(word)
        elif not flag or not flag.several or not re.match(flag.several, word):
            flag = None
        elif words[-1] != flag.name:
            words.append(flag.name)
        words.append(word)
    return words


# ---- what they mean ----


def _settings(flag, value, gpu_key, launcher):
    if flag.sets == OPTIONS:
        yield from map(_option, value)
    elif flag.sets == GPU:
        if launcher != "none":
            raise Mistake(
                f"command line: {flag.name} is for one process, and --launcher {launcher} starts several, each with a GPU of "
                f'its own; leave {flag.name} out, or name the GPUs with KEY VALUE: {gpu_key} "[0, 1]"'
            )
        if flag.name == "--gpus" and value < 1:
            raise Mistake(f"command line: --gpus {value}: must be 1 or more; on the CPU: {gpu_key} null")
        several = value if isinstance(value, list) else [value]
        written = " ".join(map(str, (flag.name, *several)))
        yield Setting(flag.name, written, gpu_key, f"[{0 if flag.name == '--gpus' else several[0]}]")
    elif flag.sets == "model_path":
        yield Setting(flag.name, " ".join([flag.name, *value]), flag.sets, _one_or_all([find_model(path) for path in value]))
    elif flag.sets:
        key, equals, fixed = flag.sets.partition("=")
        yield Setting(flag.name, flag.name if equals else f"{flag.name} {value}", key, fixed if equals else str(value))


def _option(word) -> Setting:
    """That of K=V: a,b and (a,b) and [(a,b),(c,d)] are lists where the key holds one; of text if each part is a checkpoint."""
    name, equals, value = word.partition("=")
    if not name or not equals:
        raise Mistake(f"command line: --cfg-options: expected K=V, not {word!r}")
    if name in REFUSED:
        raise Mistake(f"command line: --cfg-options {word}: {REFUSED[name].format(value=value)}")
    setting = Setting(f"--cfg-options {name}", f"--cfg-options {word}", MMSEG.get(name, name), value)
    kinds = kinds_of(setting.key)
    value = re.sub(r"^(['\"])([^'\"]*)\1$", r"\2", value)  # quotes that the shell has left
    if NoneType in kinds and value.lower() == "none":
        value = "null"
    elif str in kinds and any(get_origin(kind) is tuple for kind in kinds):
        bare = re.sub(r"^\((.*)\)$", r"\1", value)
        models = all(part.strip(" '\"").endswith(MODEL_SUFFIXES) for part in bare.split(","))
        value = f"[{bare}]" if "," in bare and models else value
    elif any(get_origin(kind) is tuple for kind in kinds):
        value = re.sub(r"'[^']*'|\"[^\"]*\"|[()]", lambda m: {"(": "[", ")": "]"}.get(m[0], m[0]), value)
        value = f"[{value}]" if "," in value and not value.startswith("[") else value
    return replace(setting, value=value)


def _check_agreement(settings):
    """One key, one value: within KEY VALUE, or within one flag, the last counts; two sources must agree."""
    last = {(setting.key, setting.source): setting for setting in settings}
    first, mistakes = {}, []
    for setting in last.values():
        other = first.setdefault(setting.key, setting)
        if other.meaning() != setting.meaning():
            why = WHY.get(setting.key, "")
            mistakes.append(f"command line: {other.written} and {setting.written} both set {setting.key}{why}; give one")
    if mistakes:
        raise Mistake("\n".join(mistakes))


def _into_work_dir(config, given, read) -> list[str]:
    """Overrides that put into the work dir what the config keeps in its save_path or beside it (`{save_path}/../result`), so
    that two work dirs share nothing. given: keys that the command line sets itself."""
    file, overrides = vars(load_model_config(config, read=read)) if is_model(config) else load_cfg_from_cfg_file(config), []
    for key in {"model_path", "save_folder"} - given:
        if isinstance(file.get(key), str) and isinstance(file.get("save_path"), str) and not is_url(file[key]):
            place = os.path.relpath(file[key].replace("{save_path}", file["save_path"]), file["save_path"])
            place = place.removeprefix("../")
            if not place.startswith(".."):
                overrides += [key, f"{{save_path}}/{place}"]
    return overrides


def _fit_gpus(given, config, overrides, gpu_key, fixed, read) -> list[int] | None:
    """The GPUs to use in place of the config's, if their number depends on how the program was started.

    --one-gpu keeps the first. Where a launcher has started more processes on this machine than the config has GPUs, the first
    GPUs are used, unless the command line names them (`fixed`). A config for the CPU stays one.
    """
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if "RANK" in os.environ else 0
    if (processes == 1 or fixed) if processes else "--one-gpu" not in given:
        return None
    gpus = getattr(load_model_config(config, overrides, read=read), gpu_key) or ()
    if processes:
        return list(range(processes)) if gpus and processes > len(gpus) else None
    return [gpus[0]] if len(gpus) > 1 else None
