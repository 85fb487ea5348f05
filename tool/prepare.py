"""Make a data set ready for training, or check one.

    python tool/prepare.py toy
    python tool/prepare.py cityscapes --source /data/cityscapes
    python tool/prepare.py folder --images photos --masks masks --out dataset/mine
    python tool/prepare.py check --config config/toy/toy_pspnet18.yaml
    python tool/prepare.py cache --config config/toy/toy_pspnet18.yaml cache dataset/toy/cache

All but `check` and `cache` write images (links, or copies with --copy), 8-bit labels and lists into dataset/NAME, the folder in
the configs; the source is never changed, and an interrupted run is completed by starting it again. Exit status: 0 = done; 1 =
an error in the arguments or the data, which the message names.
"""

import argparse
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import util.start  # noqa: F401  # isort: skip, before the packages
from dataset import build, layout
from dataset.check import check
from util.command import find_config
from util.common import Mistake, first_few
from util.config import ROOT, load_config
from util.dataset import SemData
from util.image import read_lines
from util.log import report_errors


def main(argv=None):
    args = parse(argv)
    print(args.run(args))


def run_toy(args):
    return build.toy(args.out, args.train, args.val, *args.size, args.seed)


def run_layout(args):
    names = read_lines(ROOT / "dataset" / args.name / f"{args.name}_names.txt")
    return build.build(args.layout(args.source, tuple(names)), args.out, args.copy, args.skip_bad)


def run_folder(args):
    if (args.source is None) == (args.images is None or args.masks is None):
        raise Mistake("give --images DIR and --masks DIR, or --source DIR where both lie in one folder")
    images, masks = args.images or args.source, args.masks or args.source
    table = args.colors and layout.read_colour_table(args.colors)
    names = args.names and tuple(read_lines(args.names))
    void = [value for value in args.void if value not in (args.ids or ())]
    plan = layout.folder(images, masks, names, table, args.ids, void, args.val_ratio, args.seed)
    done = build.build(plan, args.out, args.copy, args.skip_bad)
    out = args.out.absolute()
    root = out.relative_to(ROOT) if out.is_relative_to(ROOT) else out  # configs' paths start at the project's root
    return f"""{done}
For the config:
  data_root: {root}
  train_list: {root}/list/train.txt
  val_list: {root}/list/val.txt
  test_list: {root}/list/val.txt
  save_path: exp/{out.name}/pspnet18/model
  classes: {len(plan.names)}
  names_path: {root}/{out.name}_names.txt
  colors_path: {root}/{out.name}_colors.txt"""


def run_check(args):
    report, faults = check(load_config(find_config(args.config), args.overrides))
    if report:
        print(report, flush=True)
    if faults:
        listed = first_few(faults, 50, "\n  ")
        raise Mistake(f"{len(faults)} fault{'s' * (len(faults) > 1)}:\n  {listed}")
    return "no faults"


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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="name", metavar="COMMAND", required=True)

    def command(name, run, about):
        sub = commands.add_parser(name, help=about, description=about)
        sub.set_defaults(run=run)
        default = None if name == "folder" else ROOT / "dataset" / name
        sub.add_argument("--out", type=Path, default=default, required=default is None, metavar="DIR",
                         help="folder to make (dataset/NAME)")  # fmt: skip
        return sub

    sub = command("toy", run_toy, "render small street scenes, in seconds")
    sub.add_argument("--train", type=whole(1, 100000), default=160, metavar="N", help="training scenes (160)")
    sub.add_argument("--val", type=whole(1, 100000), default=40, metavar="N", help="validation scenes (40)")
    sub.add_argument("--size", type=size, default=(192, 256), metavar="HxW", help="in pixels (192x256)")
    sub.add_argument("--seed", type=whole(0, 999999999), default=0, help="of the scenes (0)")

    for reader in (layout.camvid, layout.cityscapes, layout.ade20k, layout.voc2012, layout.bdd):
        sub = command(reader.__name__, run_layout, reader.__doc__.splitlines()[0])
        sub.set_defaults(layout=reader)
        sub.add_argument("--source", type=Path, required=True, metavar="DIR", help="the data set as distributed, unpacked")
        add_common(sub)

    sub = command("folder", run_folder, "your own images and masks")
    sub.add_argument("--images", type=Path, metavar="DIR", help="the images")
    sub.add_argument("--masks", type=Path, metavar="DIR", help="their masks: same names, ids or palette or colours, PNG")
    sub.add_argument("--source", type=Path, metavar="DIR", help="instead of both: NAME.jpg with NAME.png or NAME_mask.png")
    sub.add_argument("--names", type=Path, metavar="FILE", help="class names, one a line (class0, class1, ...)")
    sub.add_argument("--colors", type=Path, metavar="FILE", help="`R G B name` a line: the classes of the colours in the masks")
    sub.add_argument("--ids", type=whole(0, 65535), nargs="+", metavar="ID", help="mask values that are classes 0, 1, ...")
    sub.add_argument("--void", type=whole(0, 65535), nargs="*", default=[255], metavar="ID", help="values to ignore (255)")
    sub.add_argument("--val-ratio", type=share, default=0.2, metavar="R", help="share of the images for validation (0.2)")
    sub.add_argument("--seed", type=whole(0, 999999999), default=0, help="of the draw of the validation images (0)")
    add_common(sub)

    for name, run, about, text in (
        ("check", run_check, "check every file of a config's lists", check.__doc__),
        ("cache", run_cache, "decode a config's images into its cache", run_cache.__doc__),
    ):
        sub = commands.add_parser(name, help=about, description=text)
        sub.set_defaults(run=run)
        sub.add_argument("--config", type=Path, required=True, metavar="FILE")
        sub.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="keys of the config to change")
    return parser.parse_args(argv)


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
    sys.stdout.reconfigure(errors="backslashreplace")  # file names that the terminal's encoding lacks
    sys.exit(report_errors(main))
