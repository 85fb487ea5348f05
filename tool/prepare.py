"""Make a data set ready for training, or check one.

    python tool/prepare.py toy
    python tool/prepare.py cityscapes --source /data/cityscapes
    python tool/prepare.py folder --images photos --masks masks --out dataset/mine --config mine
    python tool/prepare.py folder --images photos --polygons annotations --out dataset/mine --config mine
    python tool/prepare.py check toy_pspnet18
    python tool/prepare.py look toy_pspnet18 --out seen
    python tool/prepare.py cache toy_pspnet18 cache dataset/toy/cache

The commands for data sets write images (links, or copies with --copy), 8-bit labels and lists into dataset/NAME, the folder in
the configs; the source is never changed, and an interrupted run is completed by starting it again. Exit status: 0 = done; 1 =
an error in the data or in what was asked, which the message names; 2 = flags that are missing, unknown or cannot be read.
"""

import argparse
import os
import re
import shlex
import signal
import sys
from pathlib import Path

if __name__ == "__mp_main__":  # in a process that renders
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends its imports without a traceback
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import util.start  # noqa: F401  # isort: skip, before the packages
from dataset import build, layout, own, polygons
from dataset.check import check
from dataset.look import look
from dataset.write_config import config_path, write_config
from util.common import Mistake, first_few
from util.config import ROOT, below_root, find_config, load_cfg_from_cfg_file, load_config
from util.dataset import SemData
from util.image import read_lines
from util.log import report_errors
from util.values import shown

LAYOUTS = (layout.camvid, layout.cityscapes, layout.ade20k, layout.voc2012, layout.bdd)
MASK_FLAGS = ("--masks", "--source", "--mask-suffix", "--colors", "--ids", "--void")


def main(argv=None):
    args = parse(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the program as Ctrl-C does: what is half done goes with it
    print(args.run(args))


def run_toy(args):
    return build.toy(args.out, args.train, args.val, *args.size, args.seed)


def run_layout(args):
    names = read_lines(ROOT / "dataset" / args.name / f"{args.name}_names.txt")
    return build.build(args.layout(args.source, tuple(names)), args.out, args.copy, args.skip_bad).summary


def run_folder(args):
    config = None if args.config is None else config_path(args.config)
    out, command = args.out.absolute(), shlex.join(["python", "tool/prepare.py", *args.words])
    if config and re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", f"{out}{command}"):
        raise Mistake(f"--config {args.config}: a YAML file cannot hold paths with line breaks, control characters or bytes "
                      "that are not UTF-8; rename the folders, or leave --config out")  # fmt: skip
    for name in ("toy", *(reader.__name__ for reader in LAYOUTS)):
        if os.path.realpath(out) == os.path.realpath(ROOT / "dataset" / name):
            raise Mistake(f"--out {args.out}: holds names and colours of `prepare.py {name}`; give another folder")
    plan = plan_of(args)
    for path, text in build.names_and_colors(plan, out).items():
        for flag, given in (("--names", args.names), ("--colors", args.colors)):
            if given and path.exists() and path.samefile(given) and read_lines(given) != text.split("\n")[:-1]:
                raise Mistake(f"{flag} {given}: would be replaced by the names or colours of the output, which differ; "
                              "move or rename it, or give another folder with --out")  # fmt: skip
    if config and config.exists():
        check_same_data(config, out, len(plan.names))
    done = build.build(plan, args.out, args.copy, args.skip_bad)
    root = below_root(out)  # configs' paths start at the project's root
    if not config:
        return f"""{done.summary}
For the config, which --config NAME writes:
  data_root: {root}
  train_list: {root}/list/train.txt
  val_list: {root}/list/val.txt
  test_list: {root}/list/val.txt
  save_path: exp/{out.name}/pspnet18/model
  classes: {len(plan.names)}
  names_path: {root}/{out.name}_names.txt
  colors_path: {root}/{out.name}_colors.txt"""
    there = below_root(config)
    if config.exists():
        text = f"{there} is there and stays as it is; remove it to have it written anew"
    else:
        text = write_config(args.config, root, out.name, command, len(plan.names), done.train, done.sizes)
        text = f"{there} is written. {text}"
    return f"""{done.summary}
{text}
Next:
  sh tool/train.sh {args.config} pspnet18
  sh tool/test.sh {args.config} pspnet18
  python tool/demo.py --config {there} --image {shlex.quote(f"{root}/{done.example}")} --out seen"""


def check_same_data(config, out, classes):
    """Mistake if a config that is there, and stays as it is, is not of this output."""
    there = load_cfg_from_cfg_file(config)
    root = os.path.realpath(ROOT / os.path.expanduser(str(there.get("data_root"))))  # noqa: PTH111, as load_config does
    remedy = f"remove {config} to have it written anew, correct it, give another name with --config, or leave --config out"
    if root != os.path.realpath(out):
        raise Mistake(f"{config}: is there with data_root: {there.get('data_root')}, and the output is {out}; {remedy}")
    if there.get("classes") != classes:
        raise Mistake(f"{config}: is there with classes: {there.get('classes')}, and these data have {classes}; {remedy}")


def plan_of(args):
    """The plan of `folder`: masks or polygons."""
    names, draw = args.names and tuple(read_lines(args.names)), (args.val_ratio, args.seed)
    if names == ():
        raise Mistake(f"{args.names}: no names in it; expected those of the classes, one a line")
    if comments := [name for name in names or () if name.startswith("# ")]:
        raise Mistake(f"{args.names}: {shown(comments[0])} would be the name of a class; take comments out of this file")
    if args.polygons:
        if wrong := [flag for flag in MASK_FLAGS if getattr(args, flag[2:].replace("-", "_")) is not None]:
            raise Mistake(f"--polygons does not go with {' and '.join(wrong)}, which are for masks")
        return polygons.polygons(args.polygons, args.images, names, args.background or "background", draw)
    if (args.source is None) == (args.images is None or args.masks is None):
        raise Mistake("give --images DIR and --masks DIR, or --source DIR where both lie in one folder, or --polygons PATH")
    if args.background:
        raise Mistake("--background is for --polygons; of masks every value is a class, or void with --void")
    images, masks = args.images or args.source, args.masks or args.source
    table = args.colors and own.read_colour_table(args.colors)
    return own.masks(images, masks, names, table, args.ids, args.void, args.mask_suffix, draw, args.out / "colors.txt")


def run_check(args):
    """Decode every file of a config's lists; print its faults, the share of each class and weights for the loss."""
    report, faults = check(load_config(find_config(args.config), args.overrides))
    if report:
        print(report, flush=True)
    if faults:
        listed = first_few(faults, 50, "\n  ")
        raise Mistake(f"{len(faults)} fault{'s' * (len(faults) > 1)}:\n  {listed}")
    return "no faults"


def run_look(args):
    """Show the first samples of a training, after the augmentation: image and label over it, ignored pixels dark."""
    return look(load_config(find_config(args.config), args.overrides, must_exist=["train_list"]), args.out, args.count)


def run_cache(args):
    """Decode the images of a config's training and validation list into its cache; training does this if it is missing."""
    cfg = load_config(find_config(args.config), args.overrides, must_exist=["data_root", "train_list"])
    if cfg.cache is None:
        raise Mistake(f"{args.config}: DATA.cache: no folder is set; set one in the file or here: cache dataset/NAME/cache")
    lists = {"train": cfg.train_list, **({"val": cfg.val_list} if cfg.val_list else {})}
    for split, path in lists.items():
        SemData(split, cfg.data_root, path, classes=cfg.classes, ignore_label=cfg.ignore_label, cache=cfg.cache)
    return f"{cfg.cache} holds {' and '.join(lists.values())}"


def parse(argv):
    parser = argparse.ArgumentParser(
        "python tool/prepare.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="name", metavar="COMMAND", required=True)

    def command(name, run, about):
        sub = commands.add_parser(name, help=about, description=about)
        sub.set_defaults(run=run)
        default = None if name == "folder" else ROOT / "dataset" / name
        sub.add_argument("--out", type=Path, default=default, required=default is None, metavar="DIR",
                         help=f"folder to make ({f'dataset/{name}' if default else 'required'})")  # fmt: skip
        return sub

    sub = command("toy", run_toy, "render small street scenes, in seconds")
    sub.add_argument("--train", type=whole(1, 100000), default=160, metavar="N", help="training scenes (160)")
    sub.add_argument("--val", type=whole(1, 100000), default=40, metavar="N", help="validation scenes (40)")
    sub.add_argument("--size", type=size, default=(192, 256), metavar="HxW", help="in pixels (192x256)")
    sub.add_argument("--seed", type=whole(0, 999999999), default=0, help="of the scenes (0)")

    for reader in LAYOUTS:
        sub = command(reader.__name__, run_layout, reader.__doc__.splitlines()[0])
        sub.set_defaults(layout=reader)
        sub.add_argument("--source", type=Path, required=True, metavar="DIR", help="the data set as distributed, unpacked")
        add_common(sub)

    sub = command("folder", run_folder, "your own images and masks")
    sub.add_argument("--images", type=Path, metavar="DIR", help="the images")
    sub.add_argument("--masks", type=Path, metavar="DIR", help="their masks: same names, ids or palette or colours, PNG")
    sub.add_argument("--source", type=Path, metavar="DIR", help="instead of both: NAME.jpg with NAME.png or NAME_mask.png")
    sub.add_argument("--mask-suffix", metavar="END", help="what follows an image's name in that of its mask (guessed)")
    sub.add_argument("--polygons", type=Path, nargs="+", metavar="PATH",
                     help="instead of masks: folder of labelme's JSON files, COCO's JSON files, YOLO's data.yaml")  # fmt: skip
    sub.add_argument("--background", metavar="NAME", help="of polygons: the class of what none covers, or void (background)")
    sub.add_argument("--names", type=Path, metavar="FILE", help="class names, one a line (class0, class1, ...)")
    sub.add_argument("--colors", type=Path, metavar="FILE", help="`R G B name` a line: the classes of the colours in the masks")
    sub.add_argument("--ids", type=whole(0, 65535), nargs="+", metavar="ID", help="mask values that are classes 0, 1, ...")
    sub.add_argument("--void", type=whole(0, 65535), nargs="*", metavar="ID", help="values to ignore (255)")
    sub.add_argument("--val-ratio", type=share, default=0.2, metavar="R", help="share of the images for validation (0.2)")
    sub.add_argument("--seed", type=whole(0, 999999999), default=0, help="of the draw of the validation images (0)")
    sub.add_argument("--config", metavar="NAME", help="write config/NAME/NAME_pspnet18.yaml, with sizes that fit the images")
    add_common(sub)

    for name, run, about, text in (
        ("check", run_check, "check every file of a config's lists", run_check.__doc__),
        ("cache", run_cache, "decode a config's images into its cache", run_cache.__doc__),
        ("look", run_look, "contact sheets of samples as training sees them", run_look.__doc__),
    ):
        usage = "%(prog)s CONFIG [flags] [KEY VALUE ...]"
        sub = commands.add_parser(name, help=about, description=text, usage=usage)
        sub.set_defaults(run=run)
        sub.add_argument("--config", metavar="FILE", help="the same as CONFIG, a YAML file or the name of one, toy_pspnet18")
        sub.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="keys of the config to change")
        if name == "look":
            sub.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for look_1.png, ...")
            sub.add_argument("--count", type=whole(1, 10000), default=16, metavar="N", help="samples to show (16)")
    words = sys.argv[1:] if argv is None else argv
    args, more = parser.parse_known_args(words)
    if more and (not hasattr(args, "overrides") or any(word.startswith("--") for word in more)):
        parser.error(f"unrecognized arguments: {' '.join(more)}")
    if hasattr(args, "overrides"):
        args.overrides += more  # those after a flag
        args.config = args.config or (args.overrides.pop(0) if args.overrides else parser.error("which config? Give CONFIG"))
    args.words = words
    return args


def add_common(sub):
    how = sub.add_mutually_exclusive_group()
    how.add_argument("--link", dest="copy", action="store_false", default=False, help="link the images to the source (default)")
    how.add_argument("--copy", action="store_true", help="copy the images")
    sub.add_argument("--skip-bad", action="store_true", help="leave out what cannot be used, and list it in skipped.txt")


def size(text):
    match = re.fullmatch(r"(\d{2,4})x(\d{2,4})", text)
    if not match or not all(16 <= int(n) <= 4096 for n in match.groups()):
        raise argparse.ArgumentTypeError(f"{text!r} is not HEIGHTxWIDTH between 16x16 and 4096x4096")
    return tuple(int(n) for n in match.groups())


def share(text):
    if not 0 < float(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not between 0 and 1")
    return float(text)


def whole(low, high):
    """The type of an argument: a whole number from low to high."""

    def parse_number(text):
        if not text.isdecimal() or len(text) > 9 or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"{text[:80]!r} is not a whole number from {low} to {high}")
        return int(text)

    return parse_number


if __name__ == "__main__":
    sys.exit(report_errors(main))
