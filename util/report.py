"""The results of a test as files: result.json, result.md, confusion.csv, images.csv, report.html and its overlays.

report.html is one file with its pictures inside and no script; its content security policy forbids it to fetch anything.
Text files are UTF-8 whatever the locale is, and every file is written whole or not at all.
"""

import base64
import csv
import io
import json
import math
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from html import escape
from itertools import count
from urllib.parse import quote

import cv2
import numpy as np
from PIL import Image

from util.common import Mistake, write_aside
from util.config import below_root
from util.image import file_errors
from util.metric import Scores, confusion_matrix, mean, number, scores, table
from util.visual import colorize, overlay, paint, row_strips, save_jpeg

HARDEST, SHOWN, BEST = 20, 6, 3  # images listed with their overlays; of them shown in four pictures; best images shown
JPEG_SIDE = 65500  # pixels at most
THUMBNAIL = 480  # pixels of the long side: sharp at twice the density of a screen with four in a row
LONG = ("config", "checkpoint", "date", "environment", "list")  # what the protocol has in files and not on the screen
DASHES = """A dash: the class is in no label (accuracy), or in neither label nor prediction (IoU, dice), or in no prediction
(precision); the means leave it out. The accuracy of a class is its recall."""


@dataclass(frozen=True)
class Result:
    """Counts of a test, and what is needed to present them."""

    title: str  # of the page
    names: list[str]  # of the K classes
    palette: np.ndarray  # (K, 3) uint8 RGB
    ignore_label: int
    confusion: np.ndarray  # (K, K + 1) int64: rows are labels, columns predictions, the last one those that are no class
    contours: np.ndarray | None  # (3, K) int64, the sum of `boundary_areas`, if the boundary IoU was asked for
    protocol: dict  # how the predictions were made

    @cached_property
    def scores(self) -> Scores:
        return scores(self.confusion)

    @cached_property
    def boundary(self) -> Scores | None:
        return None if self.contours is None else scores(*self.contours)

    @property
    def summary(self) -> str:
        return "mIoU/mAcc/allAcc " + "/".join(number(getattr(self.scores, key)) for key in ("mIoU", "mAcc", "allAcc"))

    @property
    def further(self) -> dict[str, str]:
        """Means that are not in the summary."""
        means = {"mDice": self.scores.mDice, "frequency-weighted IoU": self.scores.fwIoU}
        means |= {"boundary IoU": self.boundary.mIoU} if self.boundary else {}
        return {key: number(value) for key, value in means.items()}

    @property
    def columns(self) -> list[str]:
        """Names of the columns of the confusion matrix: `(none)` is one of them only if some predictions were no class."""
        return [*self.names, "(none)"] if self.confusion[:, -1].any() else list(self.names)

    @property
    def shares(self) -> np.ndarray:
        """The confusion matrix (K, columns) as shares of its rows; the row of a class without labels is 0."""
        counts = self.confusion[:, : len(self.columns)]
        return counts / np.maximum(counts.sum(1, keepdims=True), 1)


@dataclass(frozen=True)
class Example:
    """One image of the test."""

    name: str
    mIoU: float  # over the classes that are labelled in it; nan if none is
    read: Callable  # () -> image (H, W, 3) uint8 RGB, label (H, W), prediction (H, W)

    @property
    def link(self) -> str:
        """Its overlay, relative to the report."""
        return f"overlay/{self.name}.jpg"


# ---- numbers ----


def log_result(log, result: Result) -> None:
    log.info(f"Eval result: {result.summary}.")
    text = lambda values: ", ".join(f"{key} {value}" for key, value in values.items())
    log.info(f"Further: {text(result.further)}")
    log.info(f"Protocol: {text({key: value for key, value in result.protocol.items() if key not in LONG})}")
    log.debug(f"Protocol: {text(result.protocol)}")
    log.info("\n" + table(result.scores, result.names, boundary=result.boundary))


def write_result(folder, result: Result) -> None:
    """result.json (for programs), result.md (for people) and confusion.csv."""
    _write(folder / "result.json", json.dumps(_content(result), indent=1, ensure_ascii=False) + "\n")
    _write(folder / "result.md", _markdown(result))
    counts = result.confusion[:, : len(result.columns)].tolist()
    rows = [[name, *row] for name, row in zip(result.names, counts)]
    _write_csv(folder / "confusion.csv", [["label \\ prediction", *result.columns], *rows])


def write_images(folder, names, images) -> None:
    """images.csv: of each image (its name, its `image_scores`) a row, 6 digits; nan is an empty cell. names: of the classes."""
    rows = ([name, *("" if math.isnan(x) else round(x, 6) for x in values.tolist())] for name, values in images)
    _write_csv(folder / "images.csv", [["image", "mIoU", "allAcc", *(f"IoU {name}" for name in names)], *rows])


def earlier_protocol(folder) -> dict:
    """How the predictions in `folder` were made, from the result.json beside them; Mistake if that is no result of a test."""
    path = folder / "result.json"
    if not os.path.isfile(path):  # noqa: PTH113, Path.is_file raises where the folder cannot be entered
        return {"predictions": f"{below_root(folder)}/gray, made elsewhere"}
    with file_errors(path):
        text = path.read_text(encoding="utf-8", errors="surrogateescape")
    try:
        protocol = dict(json.loads(text)["protocol"].items())
        json.dumps(protocol, ensure_ascii=False).encode("utf-8", "surrogateescape")  # it must be possible to write it again
        return protocol
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Mistake(
            f"{path}: not a result of tool/test.py, so it does not tell how the predictions beside it were made; "
            "move it away to score them all the same"
        ) from error


def earlier_classes(folder) -> dict:
    """Names and colours of the classes in the result.json in `folder`, as a checkpoint carries them; {} if there are none."""
    with suppress(OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        classes = json.loads((folder / "result.json").read_text(encoding="utf-8", errors="surrogateescape"))["classes"]
        return {"names": [of["name"] for of in classes], "palette": [of.get("colour") for of in classes]}
    return {}


def set_result_aside(folder, copy=False) -> None:
    """Rename the results of an earlier test, before the first of its predictions is replaced: they would tell of the others
    too how they were made and scored, if this test ends early or has no labels. What was set aside before stays.
    copy: leave them in place too, until they are replaced."""
    names = ("result.json", "result.md", "report.html", "confusion.csv", "images.csv")
    there = [folder / name for name in names if os.path.isfile(folder / name)]  # noqa: PTH113, as above
    ends = ("-before" if number == 1 else f"-before-{number}" for number in count(1))
    free = next(end for end in ends if not any(os.path.lexists(path.with_stem(path.stem + end)) for path in there))
    for path in there:
        with file_errors(path):
            (shutil.copy2 if copy else os.replace)(path, path.with_stem(path.stem + free))


def _content(result):
    """result.json: the means, the protocol, and a dict of each class; nan is null."""
    columns = {key: getattr(result.scores, key) for key in ("iou", "accuracy", "recall", "precision", "dice")}
    means = result.scores.means
    intersection, target = result.confusion.diagonal(), result.confusion.sum(1)
    union = target + result.confusion.sum(0)[:-1] - intersection
    columns |= {"intersection": intersection, "union": union, "target": target}
    if result.boundary:
        columns["boundary_iou"], means["boundary_mIoU"] = result.boundary.iou, result.boundary.mIoU

    def plain(value):
        return None if math.isnan(value) else value.item() if isinstance(value, np.generic) else value

    classes = [
        {"id": i, "name": name, "colour": [*map(int, colour)]} | {key: plain(column[i]) for key, column in columns.items()}
        for i, (name, colour) in enumerate(zip(result.names, result.palette))
    ]
    return {key: plain(value) for key, value in means.items()} | {"protocol": result.protocol, "classes": classes}


def _markdown(result):
    lines = [f"- {key}: {value}" for key, value in (result.further | result.protocol).items()]
    scored = table(result.scores, result.names, markdown=True, boundary=result.boundary)
    return "\n".join([f"# {result.summary}", "", *lines, "", scored, "", DASHES.replace("\n", " ")]) + "\n"


def _write_csv(path, rows):
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    _write(path, text.getvalue())


def _write(path, text):
    with write_aside(path) as temporary:
        temporary.write_bytes(text.encode("utf-8", "surrogateescape"))  # which is how Python holds paths that are not UTF-8


# ---- report.html ----


def write_report(folder, result: Result, examples) -> None:
    """report.html, and overlay/NAME.jpg of the images that it shows or lists. Images are read one at a time."""
    examples = sorted((e for e in examples if not math.isnan(e.mIoU)), key=lambda e: e.mIoU)
    hardest, best = examples[:HARDEST], examples[SHOWN:][: -BEST - 1 : -1]
    rows = {}
    for example in dict.fromkeys([*hardest, *best]):
        image, label, pred = example.read()
        save_jpeg(folder / example.link, _shrink(overlay(image, pred, result.palette), side=JPEG_SIDE))
        if example in hardest[:SHOWN] or example in best:
            rows[example] = _article(result, example, image, label, pred)
    links = "".join(f'<li><a href="{escape(quote(e.link))}">{escape(e.name)}</a> <b>{number(e.mIoU)}</b></li>' for e in hardest)
    body = f"""{_header(result)}
<section>
<h2>Classes</h2>
<div class="wide">{_class_table(result)}</div>
<p class="note">{DASHES}</p>
</section>

<section>
<h2 id="confusion">Confusion</h2>
<p class="note" id="how">Rows are labels, columns predictions; a cell is the share of the row's labelled pixels in per cent,
blue where right, orange where wrong. The counts are in <a href="confusion.csv">confusion.csv</a>.</p>
<div class="wide high" role="region" aria-labelledby="confusion" tabindex="0">{_confusion_table(result)}</div>
<h3>The most frequent errors</h3>
<ol class="columns">{_errors(result)}</ol>
</section>

<section>
<h2>Hardest images</h2>
<p class="note">By the mean IoU over the classes that are labelled in the image. Errors are orange, ignored pixels dark.</p>
{"".join(rows[e] for e in hardest[:SHOWN])}
<details><summary>The {len(hardest)} hardest, with the prediction over the image</summary>
<ol class="columns">{links}</ol></details>
</section>
"""
    if best:
        body += f"<section>\n<h2>Best images</h2>\n{''.join(rows[e] for e in best)}\n</section>"
    _write(folder / "report.html", _page(f"{result.title}: mIoU {number(result.scores.mIoU)}", body))


def _page(title, body):
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
{body}
</body>
</html>
"""


def _header(result):
    tiles = {"mAcc": result.scores.mAcc, "allAcc": result.scores.allAcc, "frequency-weighted IoU": result.scores.fwIoU}
    if result.boundary:
        tiles["boundary IoU"] = result.boundary.mIoU
    tiles = "".join(f"<div><b>{number(value)}</b><span>{key}</span></div>" for key, value in tiles.items())

    def text(value):
        return escape(", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value))

    terms = "".join(f"<dt>{text(key)}</dt><dd>{text(value)}</dd>" for key, value in result.protocol.items())
    return f"""<header>
<div class="score">
<p>{escape(result.title)}</p>
<h1>{number(result.scores.mIoU)}<small>mIoU</small></h1>
<div class="tiles">{tiles}</div>
</div>
<dl>{terms}</dl>
</header>
"""


def _class_table(result):
    columns = {key: getattr(result.scores, key.lower()) for key in ("IoU", "accuracy", "precision", "dice")}
    if result.boundary:
        columns["boundary IoU"] = result.boundary.iou
    target = result.confusion.sum(1)
    share = target / max(target.sum(), 1)
    head = "".join(f'<th scope="col">{key}</th>' for key in columns)
    rows = []
    for i, (name, colour) in enumerate(zip(result.names, result.palette)):
        iou, *others = (column[i] for column in columns.values())
        cells = "".join(f"<td>{number(value)}</td>" for value in others)
        chip = f'<i style="background:rgb({colour[0]},{colour[1]},{colour[2]})"></i>'
        rows.append(f'<tr><td>{i}</td><th scope="row">{chip}{escape(name)}</th>'
                    f'<td class="bar" style="--v:{0 if np.isnan(iou) else iou:.4f}">{number(iou)}</td>{cells}'
                    f"<td>{100 * share[i]:.2f} %</td></tr>")  # fmt: skip
    means = "".join(f"<td>{number(mean(column))}</td>" for column in columns.values())
    return (f'<table class="scores"><thead><tr><td></td><th scope="col">class</th>{head}<th scope="col">of the labels</th></tr>'
            f'</thead><tbody>{"".join(rows)}</tbody>'
            f'<tfoot><tr><td></td><th scope="row">mean</th>{means}<td></td></tr></tfoot></table>')  # fmt: skip


def _confusion_table(result):
    """Up to 30 classes the cells hold numbers; more are small and coloured, with their numbers as tooltips.

    The strength of the colour is the root of the share, so that small confusions show.
    """
    small, names, columns = len(result.names) > 30, [escape(n) for n in result.names], [escape(n) for n in result.columns]

    def cell(i, j, share):
        if share < 0.0005:
            return "<td>"
        title = f' title="{names[i]} taken for {columns[j]}: {share:.1%}"' if i != j else f' title="{names[i]}: {share:.1%}"'
        text = f"{100 * share:.0f}" if share >= 0.005 and not small else ""
        return f"<td{' class=r' if i == j else ''} style=--s:{math.sqrt(share):.2f}{title}>{text}"

    head = "".join(f'<th scope="col" title="{name}"><span>{name}</span>' for name in columns)
    rows = []
    for i, row in enumerate(result.shares.tolist()):
        cells = "".join(cell(i, j, share) for j, share in enumerate(row))
        empty = "" if any(row) else ' class="empty" title="no pixel has this label"'
        rows.append(f'<tr{empty}><th scope="row" title="{names[i]}"><span>{names[i]}</span>{cells}\n')
    return (f'<table class="matrix{" small" if small else ""}" aria-labelledby="confusion" aria-describedby="how">'
            f"<thead><tr><td>label \\ prediction{head}<tbody>{''.join(rows)}</table>")  # fmt: skip


def _errors(result):
    """List items of the ten largest cells off the diagonal, as shares of their rows."""
    shares = result.shares
    np.fill_diagonal(shares, 0)
    order = np.argsort(-shares, axis=None, kind="stable")[:10]
    pairs = [(i, j) for i, j in zip(*np.unravel_index(order, shares.shape)) if shares[i, j] > 0]
    return "".join(
        f"<li><b>{shares[i, j]:.1%}</b> of <i>{escape(result.names[i])}</i> taken for <i>{escape(result.columns[j])}</i></li>"
        for i, j in pairs
    )


def _article(result, example, image, label, pred):
    """One image of the report, as four figures."""
    confusion = confusion_matrix(pred, label, len(result.names), result.ignore_label, other=True).numpy()
    wrong = confusion.copy()
    np.fill_diagonal(wrong, 0)
    i, j = np.unravel_index(wrong.argmax(), wrong.shape)
    note = ""
    if wrong[i, j]:
        share, taken = wrong[i, j] / confusion.sum(), [*result.names, "(none)"][j]
        note = f"largest confusion: {share:.1%} of the labelled pixels are {result.names[i]} taken for {taken}"
    ids = np.where(label == result.ignore_label, np.uint16(65535), label)
    errors = error_map(image, label, pred, result.ignore_label)
    pictures = {
        "input": Image.fromarray(_shrink(image)),
        "label": _ids(ids, result.palette),
        "prediction": _ids(pred, result.palette),
        "errors": Image.fromarray(_shrink(errors)),
    }
    name, link = escape(example.name), escape(quote(example.link))
    figures = "".join(f'<figure><img src="{_data_uri(picture)}" alt="{kind} of {name}"><figcaption>{kind}</figcaption></figure>'
                      for kind, picture in pictures.items())  # fmt: skip
    return (f'<article><h3><a href="{link}">{name}</a> <b>{number(example.mIoU)}</b> <span>{escape(note)}</span></h3>'
            f'<div class="four">{figures}</div></article>\n')  # fmt: skip


def error_map(image, label, pred, ignore_label=255):
    """(H, W, 3) uint8 RGB: the image pale and gray, wrong pixels orange, ignored ones dark."""
    shown = np.empty((*label.shape, 3), np.uint8)
    for rows in row_strips(label):
        gray = cv2.cvtColor(np.uint8(image[rows]), cv2.COLOR_RGB2GRAY)
        strip, ignored = np.repeat((150 + 0.4 * gray[..., None]), 3, 2), label[rows] == ignore_label
        strip[(pred[rows] != label[rows]) & ~ignored] *= (1.0, 0.36, 0.05)
        strip[ignored] /= 4
        shown[rows] = strip
    return shown


def _ids(ids, palette):
    """Class ids as a small picture; ids that are no class are black."""
    ids = _shrink(np.where(ids < len(palette), ids, np.uint16(len(palette))).astype(np.uint16), cv2.INTER_NEAREST)
    if len(palette) < 256:
        return colorize(ids, palette)
    return Image.fromarray(paint(ids, palette))


def _shrink(array, interpolation=cv2.INTER_AREA, side=THUMBNAIL):
    factor = side / max(array.shape[:2])
    if factor >= 1:
        return array
    height, width = (max(1, round(n * factor)) for n in array.shape[:2])
    return cv2.resize(array, (width, height), interpolation=interpolation)


def _data_uri(image):
    """PNG for few flat colours, else JPEG."""
    content = io.BytesIO()
    if image.mode == "P":
        image.save(content, "PNG", optimize=True)
    else:
        image.save(content, "JPEG", quality=80)
    kind = "png" if image.mode == "P" else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(content.getvalue()).decode()}"


STYLE = """
:root { color-scheme: light dark; --back: #fff; --ink: #22262e; --soft: #666d7a; --line: #e4e6eb; --card: #f6f7f9;
  --accent: #185fbe; --bar: #cfe1f7; --right: 120 170 235; --wrong: 245 150 80 }
@media (prefers-color-scheme: dark) { :root { --back: #181a1e; --ink: #e2e4e8; --soft: #9aa1ad; --line: #33373f;
  --card: #202329; --accent: #7db4ff; --bar: #24446d; --right: 40 90 170; --wrong: 165 72 15 } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 1200px; padding: 40px 24px 80px; background: var(--back); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
  font-variant-numeric: tabular-nums }
header { display: grid; grid-template-columns: minmax(0, 5fr) minmax(0, 6fr); gap: 32px; align-items: start }
.score p { margin: 0; color: var(--soft); overflow-wrap: anywhere }
h1 { margin: 4px 0 16px; font-size: 72px; line-height: 1; font-weight: 650; letter-spacing: -.03em }
h1 small { margin-left: 12px; font-size: 20px; font-weight: 400; letter-spacing: 0; color: var(--soft) }
h2 { margin: 56px 0 12px; font-size: 22px; font-weight: 600 }
h3 { margin: 24px 0 8px; font-size: 15px; font-weight: 400; overflow-wrap: anywhere }
h3 span, .note, figcaption { color: var(--soft) }
h3 span, .note { font-size: 14px }
h3 span { margin-left: 8px }
.tiles { display: flex; flex-wrap: wrap; gap: 8px 28px }
.tiles b { display: block; font-size: 20px; font-weight: 600 }
.tiles span { font-size: 13px; color: var(--soft) }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: 2px 16px; margin: 0; padding: 16px 20px;
  background: var(--card); border-radius: 10px; font-size: 13px }
dt { color: var(--soft) }
dd { margin: 0; overflow-wrap: anywhere }
a { color: var(--accent); text-decoration: none }
a:hover { text-decoration: underline }
.wide { overflow-x: auto }
.high { max-height: 90vh; overflow-y: auto }
th { text-align: left; font-weight: 400 }
.scores { border-collapse: collapse; width: 100%; font-size: 14px }
.scores thead th { color: var(--soft); font-size: 13px }
.scores td, .scores thead th:nth-child(n+3) { text-align: right }
.scores td, .scores th { padding: 4px 12px; border-bottom: 1px solid var(--line); white-space: nowrap }
.scores td:first-child { color: var(--soft); padding-left: 0; width: 1% }
.scores i { display: inline-block; width: 12px; height: 12px; margin-right: 10px; border-radius: 3px; vertical-align: -1px;
  box-shadow: inset 0 0 0 1px rgba(128, 128, 128, .4) }
.scores tbody tr:hover { background: var(--card) }
.scores tfoot td, .scores tfoot th { font-weight: 600; border: 0; color: var(--ink) }
.bar { min-width: 180px; background: linear-gradient(var(--bar), var(--bar)) no-repeat 0 50% / calc(var(--v) * (100% - 5em))
  60% }
.matrix { border-spacing: 1px; font-size: 12px; line-height: 1.2; --side: 32px; --name: 170px }
.matrix td { min-width: var(--side); height: var(--side); padding: 0; text-align: center; --hue: var(--wrong);
  background: linear-gradient(rgb(var(--hue) / var(--s, 0)) 0 0) var(--card) }
.matrix .r { --hue: var(--right) }
.matrix .empty td { background: none }
.matrix th, .matrix thead td { position: sticky; background: var(--back); padding: 0 8px 0 0; z-index: 1 }
.matrix tbody th { left: 0; text-align: right }
.matrix thead th { top: 0; padding: 0 0 8px; vertical-align: bottom }
.matrix thead td { top: 0; left: 0; z-index: 2; vertical-align: bottom; text-align: right; color: var(--soft) }
.matrix th span { display: block; max-width: var(--name); overflow: hidden; text-overflow: ellipsis; white-space: nowrap;
  margin-left: auto }
.matrix thead span { writing-mode: vertical-rl; transform: rotate(180deg); max-width: none; max-height: var(--name);
  margin: 0 auto }
.matrix.small { font-size: 10px; line-height: 1; --side: 12px; --right: 24 95 190; --wrong: 208 84 10 }
.columns { columns: 320px; column-gap: 40px; padding-left: 28px; font-size: 14px }
.columns b { font-weight: 600 }
.columns i { font-style: normal; color: var(--ink); border-bottom: 1px solid var(--line) }
.four { display: grid; grid-template-columns: repeat(4, minmax(0, 1fr)); gap: 8px }
figure { margin: 0 }
figure img { display: block; width: 100%; height: auto; border-radius: 4px; background: #000 }
figcaption { font-size: 12px; margin-top: 2px }
summary { margin-top: 24px; cursor: pointer; color: var(--accent) }
@media (prefers-color-scheme: dark) { .matrix.small { --right: 92 160 255; --wrong: 255 140 66 } }
@media (max-width: 800px) { header { grid-template-columns: 1fr } .four { grid-template-columns: 1fr 1fr }
  h1 { font-size: 56px } .matrix { --name: 90px } }
@media print { body { max-width: none; padding: 0 } article { break-inside: avoid } details { display: none }
  .wide { overflow: visible; max-height: none } }
"""
