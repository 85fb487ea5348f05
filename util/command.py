"""The command line of tool/train.py and tool/test.py: the original's, `--config FILE KEY VALUE ...`, and MMSegmentation's,
`CONFIG --work-dir DIR ...`. All of it ends as overrides of the config, so that nothing else needs to know of flags."""

import argparse
import difflib
import itertools
import os
import re
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Union, get_args, get_origin

import yaml

from util.config import ROOT, SECTIONS, Config, convert, load_config

TYPES = {field.name: field.type for field in fields(Config)}
WIDTH = 100  # of the help
PAIRS = "KEY VALUE"


@dataclass(frozen=True)
class Flag:
    """A flag, and the key of the config that it sets."""

    name: str  # with dashes; underscores are understood too
    metavar: str | None  # of the word that follows; None = none does
    help: str
    key: str | None = None
    value: str | None = None  # what the key is set to; None = the word that follows
    type: Callable = str
    choices: tuple | None = None
    fits: Callable | None = None  # if several words may follow: is this one of them?


@dataclass(frozen=True)
class Group:
    title: str
    flags: tuple[Flag, ...]
    about: str | None = None


EXPERIMENT = Group("Experiment", (
    Flag("--config", "FILE", "the same as CONFIG"),
    Flag("--work-dir", "DIR", "where checkpoints and logs go", "save_path"),
), "CONFIG is a YAML file, the name of a shipped one (cityscapes_pspnet50), or MMSegmentation's name for it "
   "(pspnet_r50-d8_512x1024_40k_cityscapes).")  # fmt: skip
START = Group("Where a run starts and what it does", (
    Flag("--load-from", "FILE", "start from these weights of a whole network", "weight"),
    Flag("--resume-from", "FILE", "go on from this checkpoint: weights, optimizer, position", "resume"),
    Flag("--auto-resume", None, "go on from the newest checkpoint in the work dir unless --resume-from says from which; if "
         "there is none, start anew with a warning", "resume", "auto"),
    Flag("--no-validate", None, "do not validate while training", "evaluate", "False"),
))  # fmt: skip
DEVICES = Group("Devices and processes", (
    Flag("--gpu-id", "I", "use this one GPU; not under a launcher", type=int),
    Flag("--gpus", "N", "deprecated: GPU 0 alone, whatever N is", type=int),
    Flag("--gpu-ids", "I [I ...]", "deprecated: the first of them alone", type=int, fits=str.isdecimal),
    Flag("--one-gpu", None, "of the config's GPUs use the first alone, as train.sh CONFIG does"),
    Flag("--launcher", "NAME", "what has started this process: pytorch (torchrun), slurm or mpi; none (the default) takes what "
         "it finds", choices=("none", "pytorch", "slurm", "mpi")),
    Flag("--local-rank", "N", "comes from torch.distributed.launch", type=int),
    Flag("--dist-backend", "NAME", "nccl or gloo; on CPUs always gloo", "dist_backend"),
))  # fmt: skip
SEEDS = Group("Reproducibility", (
    Flag("--seed", "S", "of first weights, order, augmentation and dropout", "manual_seed", type=int),
    Flag("--diff-seed", None, "each process drops other channels (dropout)", "diff_seed", "True"),
    Flag("--deterministic", None, "only kernels that repeat their results bit by bit; slower on GPUs", "deterministic", "True"),
))  # fmt: skip
SERVERS = Group("Submission", (
    Flag("--format", "SERVER", "also write the PNGs that this server takes: %(choices)s", "format",
         choices=get_args(TYPES["format"])),
))  # fmt: skip
SEVERAL = {"metavar": "K=V [K=V ...]", "fits": lambda word: "=" in word and not word.startswith("-")}
SETTINGS = Group("Settings", (
    Flag("--cfg-options", help="the same as KEY VALUE, also with MMSegmentation's keys where they mean the same: "
         "optimizer.lr=0.02 scales=0.5,1.0 base_size=\"(2048,1024)\"", **SEVERAL),
    Flag("--options", help="deprecated: --cfg-options", **SEVERAL),
), "KEY VALUE overrides a key of the config, VALUE as in YAML: base_lr 0.02 scales \"[0.5, 1.0]\" resume null. A key that is "
   "set in two ways must have one value. Relative paths start at the project's root.")  # fmt: skip

# What MMSegmentation's settings are called here.
MMSEG = {
    "optimizer.lr": "base_lr",
    "optimizer.momentum": "momentum",
    "optimizer.weight_decay": "weight_decay",
    "lr_config.power": "power",
    "lr_config.min_lr": "min_lr",
    "runner.max_iters": "max_iter",
    "checkpoint_config.interval": "iter_interval",
    "evaluation.interval": "iter_interval",
    "log_config.interval": "print_freq",
    "model.backbone.depth": "layers",
    "model.decode_head.num_classes": "classes",
    "model.auxiliary_head.num_classes": "classes",
    "load_from": "weight",
    "resume_from": "resume",
    "work_dir": "save_path",
}
REFUSED = {
    "data.samples_per_gpu": "batch_size is that of all GPUs together; give batch_size={value} times the number of GPUs",
    "data.workers_per_gpu": "workers are those of all GPUs together; give workers={value} times the number of GPUs",
}
WHY = {"iter_interval": " (checkpoints and validations have one interval; save_freq and eval_freq are multiples of it)"}

# What each launcher leaves in the environment, and how to start it.
LAUNCHERS = {
    "pytorch": (["RANK"], "torchrun --nproc-per-node GPUS {program} ..."),
    "slurm": (["SLURM_PROCID", "SLURM_STEP_NUM_TASKS"], "srun --ntasks GPUS python {program} ..."),
    "mpi": (["OMPI_COMM_WORLD_RANK"], "mpirun -n GPUS python {program} ..."),
}


@dataclass(frozen=True)
class Setting:
    """One override, and where it comes from."""

    source: str  # PAIRS, or a flag: the last of one source counts, two sources must agree
    written: str
    name: str  # for load_config: with or without a section,
    value: str  # and in YAML

    @property
    def key(self) -> str:
        return _without_section(self.name)

    def meaning(self):
        """The value as the config will have it."""
        try:
            return convert(yaml.safe_load(self.value), TYPES[self.key])
        except (yaml.YAMLError, KeyError, ValueError):
            return self.value  # load_config will say what is wrong with it


def parse_train(argv, doc) -> tuple[Path, list[str], list[str]]:
    """Path of the config, overrides `[KEY, VALUE, ...]` for load_config, and notes for the log.

    argv: the words behind the program's name. doc: what stands on top of --help, which prints it and ends the program.
    Call it after util.distributed.adopt_launcher. Sets LOCAL_RANK from --local-rank where the environment has none.
    Raises ValueError for a word that is not understood, and for words that cannot both be meant.
    """
    return _parse(argv, doc, "tool/train.py", "train_gpu", [EXPERIMENT, START, DEVICES, SEEDS, SETTINGS])


def parse_test(argv, doc) -> tuple[Path, list[str], list[str]]:
    """The same for tool/test.py. It takes the flags of training too, since train.sh gives the same ones to both."""
    return _parse(argv, doc, "tool/test.py", "test_gpu", [EXPERIMENT, SERVERS, DEVICES, SETTINGS], silent=[START, SEEDS])


def find_config(name, root=ROOT) -> Path:
    """The YAML file that `name` means; ValueError with the nearest names if there is none.

    name: a path, from here or from `root`; the name of a shipped file, `cityscapes_pspnet50`; or MMSegmentation's,
    `pspnet_r50-d8_512x1024_40k_cityscapes` or `configs/pspnet/pspnet_r50-d8_512x1024_40k_cityscapes.py`.
    """
    wanted = Path(name)
    for path in (wanted, root / wanted):
        if path.is_file() and path.suffix != ".py":
            return path
    ours, theirs, turned = {}, {}, {}
    for path in sorted(root.glob("config/*/*.yaml")):
        ours[path.stem] = path
        recipe = path.stem.removeprefix(f"{path.parent.name}_")
        dataset = {"voc2012": "voc12aug"}.get(path.parent.name, path.parent.name)
        if re.search(r"_r\d+-d8_", recipe):
            theirs[f"{recipe}_{dataset}"] = turned[f"{dataset}_{recipe}"] = path
    known = {**turned, **theirs, **ours}
    stem = wanted.stem if wanted.suffix in (".yaml", ".py") else wanted.name
    if stem in known and (str(name) == wanted.name or "configs" in wanted.parts):  # no other path may mean another file
        return known[stem]
    near = [f"{match}.yaml" for match in difflib.get_close_matches(stem, ours, n=2, cutoff=0.5)]
    near += difflib.get_close_matches(stem, theirs, n=2, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else "config/ has the shipped ones"
    raise ValueError(f"{name}: no such config file ({hint})")


def _parse(argv, doc, program, gpu_key, groups, silent=()):
    flags = {flag.name: flag for group in (*groups, *silent) for flag in group.flags}
    given, words = _read(_build_parser(doc, program, groups, silent), argv, flags)
    config = given.get("--config") or (words.pop(0) if words else None)
    if config is None:
        raise ValueError(f"command line: which experiment? Say `python {program} CONFIG`, or `--config FILE`")
    config = find_config(config)
    if len(words) % 2:
        raise ValueError(f"command line: overrides are KEY VALUE pairs, and {words[-1]!r} has no partner")
    _check_launcher(given, program)
    settings = [Setting(PAIRS, f"{key} {value}", key, value) for key, value in zip(words[::2], words[1::2])]
    settings += [*_of_flags(given, flags), *_of_options(given), *_of_gpu_flags(given, gpu_key)]
    if any(s.key == "resume" and s.source not in (PAIRS, "--auto-resume") for s in settings):
        settings = [s for s in settings if s.source != "--auto-resume"]  # it gives way
    _check_agreement(settings)
    overrides = [word for s in settings for word in (s.name, s.value)]
    notes = [*_deprecations(given)]
    gpus = _fit_gpus(given, config, overrides, gpu_key, fixed=any(s.key == gpu_key for s in settings))
    if gpus:
        overrides += [gpu_key, str(gpus)]
        reason = "as --one-gpu says" if len(gpus) == 1 else f"one for each process that {given['--launcher']} has started"
        notes.append(f"{gpu_key}: {gpus}, {reason}")
    return config, overrides, notes


def _without_section(name) -> str:
    section, _, key = name.rpartition(".")
    return key if section in SECTIONS else name


# ---- words ----


class _Parser(argparse.ArgumentParser):
    """Speaks of mistakes as load_config does."""

    def error(self, message):
        raise ValueError(f"command line: {message} (python {self.prog} --help lists the flags)")


def _build_parser(doc, program, groups, silent):
    fill = lambda text: text if text.startswith(" ") else textwrap.fill(text, WIDTH, break_on_hyphens=False)
    paragraphs = map(fill, doc.strip().split("\n\n"))
    parser = _Parser(
        prog=program,
        usage=f"python {program} CONFIG [flags] [KEY VALUE ...]\n       python {program} --config FILE [KEY VALUE ...] [flags]",
        description="\n\n".join(paragraphs),  # those that are indented are commands
        epilog="Flags may stand anywhere, and have dashes or underscores.",
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=28, width=WIDTH),
        allow_abbrev=False,
    )
    parser.add_argument("words", nargs="*", help=argparse.SUPPRESS)
    for group in (*groups, *silent):
        section = parser.add_argument_group(group.title, group.about and textwrap.fill(group.about, WIDTH - 4))
        for flag in group.flags:
            how = {"action": "store_true", "default": None}
            if flag.metavar:
                action = "append" if flag.fits else "store"
                how = {"action": action, "metavar": flag.metavar, "type": flag.type, "choices": flag.choices}
            text = argparse.SUPPRESS if group in silent else flag.help
            section.add_argument(flag.name, dest=flag.name, help=text, **how)
    return parser


def _read(parser, argv, flags):
    """{flag: value} of the flags that are there, and the words that belong to none of them, in their order."""
    args, unknown = parser.parse_known_intermixed_args(_spell_out(argv, flags))
    wrong = [word.partition("=")[0] for word in unknown if word.startswith("-")]
    if wrong:
        near = difflib.get_close_matches(wrong[0].lstrip("-"), [name[2:] for name in flags], n=1)
        parser.error(f"{wrong[0]}: unknown flag" + (f", did you mean --{near[0]}?" if near else ""))
    given = {name: value for name, value in vars(args).items() if name in flags and value is not None}
    if "--local-rank" in given:
        os.environ.setdefault("LOCAL_RANK", str(given["--local-rank"]))
    return given, [word.removeprefix(" ") if word.startswith(" -") else word for word in args.words]


def _spell_out(argv, flags):
    """One spelling of what has several: dashes in flags, a flag for every value, no value that looks like a flag."""
    words, rest = [], list(argv)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            words.append(f" {word}" if re.match(r"-[\d.]", word) else word)  # a negative number
            continue
        name, equals, value = word.partition("=")
        name = name.replace("_", "-")
        fits = flags[name].fits if name in flags and not equals else None
        if not fits:
            words.append(name + equals + value)
            continue
        values = list(itertools.takewhile(fits, rest))
        if not values:
            found = f"not {rest[0]!r}" if rest else "and nothing follows"
            raise ValueError(f"command line: {name}: expected {flags[name].metavar}, {found}")
        words += [f"{name}={value}" for value in values]
        rest = rest[len(values) :]
    return words


# ---- what they mean ----


def _of_flags(given, flags):
    for name, value in given.items():
        flag = flags[name]
        if flag.key and flag.value:
            yield Setting(name, name, flag.key, flag.value)
        elif flag.key:
            yield Setting(name, f"{name} {value}", flag.key, _quoted(value) if flag.type is str else str(value))


def _of_options(given):
    if "--options" in given and "--cfg-options" in given:
        raise ValueError("command line: --options is the old name of --cfg-options; give all settings to --cfg-options")
    for word in given.get("--cfg-options", given.get("--options", [])):
        name, equals, value = word.partition("=")
        if not name or not equals:
            raise ValueError(f"command line: --cfg-options: expected K=V, not {word!r}")
        if name in REFUSED:
            raise ValueError(f"command line: --cfg-options {word}: {REFUSED[name].format(value=value)}")
        key = MMSEG.get(name, name)
        value = _option_value(value, TYPES.get(_without_section(key)))
        yield Setting(f"--cfg-options {name}", f"--cfg-options {word}", key, value)


def _of_gpu_flags(given, gpu_key):
    names = [name for name in ("--gpu-id", "--gpu-ids", "--gpus") if name in given]
    if len(names) > 1:
        raise ValueError(f"command line: {' and '.join(names)} say the same in different ways; give --gpu-id alone")
    if not names:
        return
    name, value = names[0], given[names[0]]
    launcher = given.get("--launcher", "none")
    if launcher != "none":
        raise ValueError(
            f"command line: {name} is for one process, and --launcher {launcher} starts several, each with a GPU of its own; "
            f'leave {name} out, or say which GPUs with KEY VALUE: {gpu_key} "[0, 1]"'
        )
    if name == "--gpus" and value < 1:
        raise ValueError(f"command line: --gpus {value}: must be 1 or more; on the CPU: {gpu_key} null")
    gpu = {"--gpus": 0, "--gpu-ids": value[0] if name == "--gpu-ids" else None, "--gpu-id": value}[name]
    written = " ".join(map(str, [name, *(value if name == "--gpu-ids" else [value])]))
    yield Setting(name, written, gpu_key, f"[{gpu}]")


def _deprecations(given):
    several = "; for several GPUs: sh tool/train_dist.sh CONFIG NUM_GPUS"
    if "--gpus" in given:
        yield "--gpus is deprecated, use --gpu-id 0" + (several if given["--gpus"] > 1 else "")
    if "--gpu-ids" in given:
        first, *others = given["--gpu-ids"]
        yield f"--gpu-ids is deprecated, use --gpu-id {first}" + (several if others else "")
    if "--options" in given:
        yield "--options is deprecated, use --cfg-options"


def _quoted(text) -> str:
    """A YAML string, whatever is in it."""
    return "'" + text.replace("'", "''") + "'"


def _option_value(text, kind) -> str:
    """V of K=V in YAML: a,b and (a,b) and [(a,b),(c,d)] are lists where the key, of type `kind`, takes one."""
    kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    text = re.sub(r"^(['\"])([^'\"]*)\1$", r"\2", text)  # quotes that the shell has left
    if NoneType in kinds and text.lower() in ("none", "null", ""):
        return "null"
    if str in kinds:
        return _quoted(text)
    if any(get_origin(k) is tuple for k in kinds):
        text = re.sub(r"'[^']*'|\"[^\"]*\"|[()]", lambda m: {"(": "[", ")": "]"}.get(m[0], m[0]), text)
        return f"[{text}]" if "," in text and not text.startswith("[") else text
    return text


def _check_agreement(settings):
    """One key, one value: within KEY VALUE, or within one flag, the last counts; between them nobody could know."""
    last = {(setting.key, setting.source): setting for setting in settings}
    first, mistakes = {}, []
    for setting in last.values():
        other = first.setdefault(setting.key, setting)
        if other.meaning() != setting.meaning():
            why = WHY.get(setting.key, "")
            mistakes.append(f"command line: {other.written} and {setting.written} both set {setting.key}{why}; give one")
    if mistakes:
        raise ValueError("\n".join(mistakes))


# ---- launchers ----


def _check_launcher(given, program):
    launcher = given.get("--launcher", "none")
    variables, start = LAUNCHERS.get(launcher, ([], ""))
    missing = [name for name in variables if name not in os.environ]
    if missing:
        raise ValueError(
            f"command line: --launcher {launcher}: it has not started this process ({missing[0]} is not in the environment); "
            f"start it with `{start.format(program=program)}`, or leave --launcher out"
        )


def _fit_gpus(given, config, overrides, gpu_key, fixed) -> list[int] | None:
    """The GPUs to use in place of the config's, if their number depends on how the program was started.

    --one-gpu keeps the first. Under --launcher a machine with more processes than the config has GPUs uses its first ones,
    unless the command line names them (`fixed`). A config for the CPU stays one.
    """
    launched = given.get("--launcher", "none") != "none"
    if not launched and "--one-gpu" not in given:
        return None
    gpus = getattr(load_config(config, overrides), gpu_key) or ()
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if launched and not fixed and gpus and processes > len(gpus):
        return list(range(processes))
    if not launched and "RANK" not in os.environ and len(gpus) > 1:
        return [gpus[0]]
    return None
