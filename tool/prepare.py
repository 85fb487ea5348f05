"""Make a data set ready for training, or check one.

    python tool/prepare.py toy
    python tool/prepare.py camvid --source ~/Downloads/CamVid

Writes images (links, or copies with --copy), 8-bit labels and lists into dataset/NAME, which is what the configs' data_root
says; the source is never changed. Run it again after an interruption. Exit status: 0 = done; 1 = a mistake, said in words.
"""

import argparse
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from util import prepare
from util.config import ROOT
from util.log import report_errors

LAYOUTS = {
    "camvid": (prepare.camvid, "CamVid, the folder that the SegNet tutorial distributes"),
}


def main(argv=None):
    args = parse(argv)
    print(args.run(args))


def run_toy(args):
    return prepare.toy(args.out, args.train, args.val, *args.size, args.seed)


def run_layout(args):
    names = (ROOT / "dataset" / args.name / f"{args.name}_names.txt").read_text(encoding="utf-8").splitlines()
    return prepare.build(args.layout(args.source, tuple(names)), args.out, args.copy, args.skip_bad)


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="name", metavar="COMMAND", required=True)

    def command(name, run, about, out=True):
        sub = commands.add_parser(name, help=about, description=about)
        sub.set_defaults(run=run)
        if out:
            sub.add_argument("--out", type=Path, default=ROOT / "dataset" / name, help=f"default: dataset/{name}")
        return sub

    sub = command("toy", run_toy, "render little street scenes, in seconds")
    sub.add_argument("--train", type=positive, default=160, metavar="N", help="training scenes (160)")
    sub.add_argument("--val", type=positive, default=40, metavar="N", help="validation scenes (40)")
    sub.add_argument("--size", type=size, default=(192, 256), metavar="HxW", help="in pixels (192x256)")
    sub.add_argument("--seed", type=natural, default=0, help="another seed, other streets (0)")

    for name, (layout, about) in LAYOUTS.items():
        sub = command(name, run_layout, about)
        sub.set_defaults(layout=layout)
        sub.add_argument("--source", type=Path, required=True, metavar="DIR", help="the data as they were unpacked")
        add_common(sub)
    return parser.parse_args(argv)


def add_common(sub):
    how = sub.add_mutually_exclusive_group()
    how.add_argument("--link", dest="copy", action="store_false", default=False, help="link the images to the source (default)")
    how.add_argument("--copy", action="store_true", help="copy the images")
    sub.add_argument("--skip-bad", action="store_true", help="leave out what cannot be used, and list it in skipped.txt")


def size(text):
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if not match or min(int(n) for n in match.groups()) < 16:
        raise argparse.ArgumentTypeError(f"{text!r} is not HEIGHTxWIDTH of at least 16x16")
    return tuple(int(n) for n in match.groups())


def natural(text):
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number >= 0")
    return int(text)


def positive(text):
    if natural(text) == 0:
        raise argparse.ArgumentTypeError("0 scenes; at least 1")
    return int(text)


if __name__ == "__main__":
    sys.exit(report_errors(main))
