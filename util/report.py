"""The report of a test: a picture of the confusion matrix, and one HTML file with numbers and pictures that needs no network.

The page holds its pictures, has no script, and a content security policy forbids it to fetch anything.
"""

import base64
import csv
import io
from dataclasses import dataclass
from html import escape
from urllib.parse import quote

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from util.metric import confusion_matrix, mean, number
from util.visual import colorize, paint

THUMBNAIL = 480  # pixels of the long side: sharp at twice the density of a screen with four in a row


@dataclass(frozen=True)
class Example:
    """One image for the report: (H, W, 3) uint8 RGB, label and prediction (H, W) ids, and where its files are."""

    name: str
    mIoU: float
    image: np.ndarray
    label: np.ndarray
    pred: np.ndarray
    link: str  # relative to the report


# ---- confusion matrix ----


def write_confusion(path, confusion, names):
    """CSV of pixels: rows are labels, columns predictions; a last column `(none)` if some predictions were no class."""
    confusion, columns = _trim(confusion, names)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["label \\ prediction", *columns])
        writer.writerows([name, *row] for name, row in zip(names, confusion.tolist()))


def confusion_picture(confusion, names, dark=False):
    """The matrix as a picture (H, W, 3) uint8 RGB, rows labels, columns predictions, each cell its share of the row.

    confusion: (K, K) or (K, K + 1) counts. Blue: right; orange: wrong; a row without labels is gray. The strength of the
    colour is the root of the share, so that small confusions show. Up to 30 classes have their per cent written in.
    """
    confusion, columns = _trim(confusion, names)
    K = len(names)
    total = confusion.sum(1, keepdims=True)
    share = confusion / np.maximum(total, 1)
    back, ink, faint, right, wrong = (
        ((24, 26, 30), (226, 228, 232), (44, 47, 53), (92, 160, 255), (255, 140, 66)) if dark else
        ((255, 255, 255), (34, 38, 46), (240, 241, 244), (24, 95, 190), (208, 84, 10))
    )  # fmt: skip
    full = np.broadcast_to(np.float32(wrong), (*share.shape, 3)).copy()
    full[range(K), range(K)] = right
    strength = np.sqrt(share)[..., None]
    cells = (1 - strength) * np.float32(back) + strength * full
    cells[total[:, 0] == 0] = faint

    cell = int(np.clip(1500 // K, 12, 44))
    text, small = _font(min(cell - 1, 14)), _font(12)
    rows, tops = ([_shorten(name) for name in some] for some in (names, columns))
    width = max(_width(name, text) for name in [*rows, *tops]) + 12
    caption = "rows: label, columns: prediction; per cent of the row, blue where right, orange where wrong"
    image = Image.new("RGB", (max(width + cell * len(columns), _width(caption, small)) + 13, width + cell * K + 34), back)
    grid = np.rint(cells).astype(np.uint8).repeat(cell, 0).repeat(cell, 1)
    line = 1 if K <= 60 else 5  # fewer lines where cells are small
    for axis, count in enumerate((K, len(columns))):
        for i in range(0, count, line):
            grid[tuple([slice(None)] * axis + [i * cell])] = faint
    image.paste(Image.fromarray(grid), (width, width))

    draw = ImageDraw.Draw(image)
    for i, name in enumerate(rows):
        draw.text((width - 6, width + (i + 0.5) * cell), name, ink, text, anchor="rm")
    sideways = Image.new("L", (width, cell * len(columns)))  # drawn level, then turned
    for i, name in enumerate(tops):
        ImageDraw.Draw(sideways).text((6, (i + 0.5) * cell), name, 255, text, anchor="lm")
    sideways = sideways.transpose(Image.Transpose.ROTATE_90)
    image.paste(Image.new("RGB", sideways.size, ink), (width, 0), sideways)
    if K <= 30:
        for i, j in np.argwhere(share >= 0.005):
            colour = back if share[i, j] > 0.5 else ink
            draw.text((width + (j + 0.5) * cell, width + (i + 0.5) * cell), f"{100 * share[i, j]:.0f}", colour, small, "mm")
    draw.text((6, image.height - 8), caption, ink, small, anchor="ls")
    return np.asarray(image)


def confusions(confusion, names, count=10):
    """The commonest mistakes: (share of the labelled pixels of the class, class, what it was taken for), largest first."""
    confusion, columns = _trim(confusion, names)
    share = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    share[range(len(names)), range(len(names))] = 0
    order = np.argsort(-share, axis=None, kind="stable")[:count]
    pairs = zip(*np.unravel_index(order, share.shape))
    return [(float(share[i, j]), names[i], columns[j]) for i, j in pairs if share[i, j] > 0]


def _trim(confusion, names):
    """Without the column of predictions that are no class if it is empty; names of the columns."""
    K = len(names)
    if confusion[:, K:].any():
        return confusion, [*names, "(none)"]
    return confusion[:, :K], list(names)


def _shorten(name, longest=22):
    return name if len(name) <= longest else name[: longest - 1].rstrip() + "\N{HORIZONTAL ELLIPSIS}"


def _width(text, font):
    return int(font.getlength(text)) + 1


def _font(size):
    try:
        return ImageFont.load_default(size)
    except TypeError:  # Pillow before 10.1 has one size
        return ImageFont.load_default()


# ---- pictures ----


def error_map(image, label, pred, ignore_label=255):
    """(H, W, 3) uint8 RGB: the image pale and gray, wrong pixels orange, ignored ones dark."""
    gray = cv2.cvtColor(np.uint8(image), cv2.COLOR_RGB2GRAY)
    shown = np.repeat((150 + 0.4 * gray[..., None]), 3, 2)
    shown[(pred != label) & (label != ignore_label)] *= (1.0, 0.36, 0.05)
    shown[label == ignore_label] /= 4
    return shown.astype(np.uint8)


def _pictures(example, palette, ignore_label):
    """(title, data URI) of input, label, prediction and errors."""
    label = np.where(example.label == ignore_label, 65535, example.label)
    errors = error_map(example.image, example.label, example.pred, ignore_label)
    return [
        ("input", _data_uri(Image.fromarray(_shrink(example.image)))),
        ("label", _data_uri(_ids(label, palette))),
        ("prediction", _data_uri(_ids(example.pred, palette))),
        ("errors", _data_uri(Image.fromarray(_shrink(errors)))),
    ]


def _ids(ids, palette):
    """Class ids as a small picture; what is no class is black."""
    ids = _shrink(np.where(ids < len(palette), ids, len(palette)).astype(np.uint16), cv2.INTER_NEAREST)
    if len(palette) < 256:
        return colorize(ids, palette)
    return Image.fromarray(paint(ids, palette))


def _shrink(array, interpolation=cv2.INTER_AREA):
    factor = THUMBNAIL / max(array.shape[:2])
    if factor >= 1:
        return array
    height, width = (max(1, round(side * factor)) for side in array.shape[:2])
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


def _flat(picture):
    """A drawing in at most 256 colours, a quarter of the bytes."""
    return Image.fromarray(picture).quantize(256, dither=Image.Dither.NONE)


# ---- page ----


def build_report(title, result, boundary, confusion, names, palette, protocol, hardest, best, listed, ignore_label=255):
    """The page as one text.

    result, boundary: `Scores`; boundary may be None. confusion: (K, K) or (K, K + 1) counts. names, palette (K, 3): of the
    classes. protocol: dict, shown beside the score. hardest, best: iterables of `Example`, taken one at a time. listed:
    (name, mIoU, link) of the hardest images, for the list.
    """
    tiles = {"mAcc": result.mAcc, "allAcc": result.allAcc, "frequency-weighted IoU": result.fwIoU}
    if boundary:
        tiles["boundary IoU"] = boundary.mIoU
    numbers = "".join(f"<div><b>{number(value)}</b><span>{key}</span></div>" for key, value in tiles.items())
    terms = "".join(f"<dt>{escape(str(key))}</dt><dd>{escape(_plain(value))}</dd>" for key, value in protocol.items())
    light, dark = (_data_uri(_flat(confusion_picture(confusion, names, dark=d))) for d in (False, True))
    mistakes = "".join(
        f"<li><b>{share:.1%}</b> of <i>{escape(a)}</i> taken for <i>{escape(b)}</i></li>"
        for share, a, b in confusions(confusion, names)
    )
    links = "".join(
        f'<li><a href="{escape(quote(link))}">{escape(name)}</a> <b>{number(mIoU)}</b></li>' for name, mIoU, link in listed
    )
    hardest, best = ("".join(_row(example, names, palette, ignore_label) for example in some) for some in (hardest, best))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{escape(title)}: mIoU {number(result.mIoU)}</title>
<style>{STYLE}</style>
</head>
<body>
<header>
<div class="score">
<p>{escape(title)}</p>
<h1>{number(result.mIoU)}<small>mIoU</small></h1>
<div class="tiles">{numbers}</div>
</div>
<dl>{terms}</dl>
</header>

<section>
<h2>Classes</h2>
<div class="wide">{_class_table(result, boundary, confusion, names, palette)}</div>
<p class="note">A dash: the class is in no label (accuracy), or in neither label nor prediction (IoU, dice), or in no
prediction (precision); the means leave it out. The accuracy of a class is its recall.</p>
</section>

<section>
<h2>Confusion</h2>
<div class="wide"><picture><source srcset="{dark}" media="(prefers-color-scheme: dark)"><img src="{light}"
alt="Confusion matrix of {len(names)} classes" class="matrix{" large" if len(names) > 60 else ""}"></picture></div>
<ol class="columns">{mistakes}</ol>
<p class="note">The counts are in <a href="confusion.csv">confusion.csv</a>, the picture in
<a href="confusion.png">confusion.png</a>.</p>
</section>

<section>
<h2>Hardest images</h2>
<p class="note">By the mean IoU over the classes that are labelled in the image. Errors are orange, ignored pixels dark.</p>
{hardest}
<details><summary>The {len(listed)} hardest, with the prediction over the image</summary>
<ol class="columns">{links}</ol></details>
</section>

<section>
<h2>Best images</h2>
{best}
</section>
</body>
</html>
"""


def _class_table(result, boundary, confusion, names, palette):
    columns = {"IoU": result.iou, "accuracy": result.accuracy, "precision": result.precision, "dice": result.dice}
    if boundary:
        columns["boundary IoU"] = boundary.iou
    target = confusion.sum(1)
    share = target / max(target.sum(), 1)
    head = "".join(f"<th>{key}</th>" for key in columns)
    rows = []
    for i, (name, colour) in enumerate(zip(names, palette)):
        iou, *others = (column[i] for column in columns.values())
        cells = "".join(f"<td>{number(value)}</td>" for value in others)
        chip = f'<i style="background:rgb({colour[0]},{colour[1]},{colour[2]})"></i>'
        rows.append(f"<tr><td>{i}</td><th>{chip}{escape(name)}</th>"
                    f'<td class="bar" style="--v:{0 if np.isnan(iou) else iou:.4f}">{number(iou)}</td>{cells}'
                    f"<td>{100 * share[i]:.2f} %</td></tr>")  # fmt: skip
    means = "".join(f"<td>{number(mean(column))}</td>" for column in columns.values())
    return (f"<table><thead><tr><th></th><th>class</th>{head}<th>of the labels</th></tr></thead><tbody>{''.join(rows)}</tbody>"
            f"<tfoot><tr><td></td><th>mean</th>{means}<td></td></tr></tfoot></table>")  # fmt: skip


def _row(example, names, palette, ignore_label):
    """One image of the report, as four figures."""
    confusion = confusion_matrix(example.pred, example.label, len(names), ignore_label, other=True).numpy()
    wrong = confusion.copy()
    np.fill_diagonal(wrong, 0)
    i, j = np.unravel_index(wrong.argmax(), wrong.shape)
    note = ""
    if wrong[i, j]:
        share = wrong[i, j] / confusion.sum()
        note = f"largest confusion: {share:.1%} of the pixels are {names[i]} taken for {[*names, '(none)'][j]}"
    name, link = escape(example.name), escape(quote(example.link))
    figures = "".join(f'<figure><img src="{uri}" alt="{kind} of {name}"><figcaption>{kind}</figcaption></figure>'
                      for kind, uri in _pictures(example, palette, ignore_label))  # fmt: skip
    return (f'<article><h3><a href="{link}">{name}</a> <b>{number(example.mIoU)}</b> <span>{escape(note)}</span></h3>'
            f'<div class="four">{figures}</div></article>\n')  # fmt: skip


def _plain(value):
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


STYLE = """
:root { color-scheme: light dark; --back: #fff; --ink: #22262e; --soft: #666d7a; --line: #e4e6eb; --card: #f6f7f9;
  --accent: #185fbe; --bar: #cfe1f7 }
@media (prefers-color-scheme: dark) { :root { --back: #181a1e; --ink: #e2e4e8; --soft: #9aa1ad; --line: #33373f;
  --card: #202329; --accent: #7db4ff; --bar: #24446d } }
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
table { border-collapse: collapse; width: 100%; font-size: 14px }
th { text-align: left; font-weight: 400 }
thead th { color: var(--soft); font-size: 13px }
td, thead th:nth-child(n+3) { text-align: right }
td, th { padding: 4px 12px; border-bottom: 1px solid var(--line); white-space: nowrap }
td:first-child { color: var(--soft); padding-left: 0; width: 1% }
tbody th i { display: inline-block; width: 12px; height: 12px; margin-right: 10px; border-radius: 3px; vertical-align: -1px;
  box-shadow: inset 0 0 0 1px rgba(128, 128, 128, .4) }
tbody tr:hover { background: var(--card) }
tfoot td, tfoot th { font-weight: 600; border: 0; color: var(--ink) }
.bar { min-width: 180px; background: linear-gradient(var(--bar), var(--bar)) no-repeat 0 50% / calc(var(--v) * 100%) 60% }
.matrix { display: block; max-width: 100%; height: auto; margin: 0 auto }
.matrix.large { max-width: none }
.columns { columns: 320px; column-gap: 40px; padding-left: 28px; font-size: 14px }
.columns b { font-weight: 600 }
.columns i { font-style: normal; color: var(--ink); border-bottom: 1px solid var(--line) }
.four { display: grid; grid-template-columns: repeat(4, minmax(0, 1fr)); gap: 8px }
figure { margin: 0 }
figure img { display: block; width: 100%; height: auto; border-radius: 4px; background: #000 }
figcaption { font-size: 12px; margin-top: 2px }
summary { margin-top: 24px; cursor: pointer; color: var(--accent) }
@media (max-width: 800px) { header { grid-template-columns: 1fr } .four { grid-template-columns: 1fr 1fr }
  h1 { font-size: 56px } }
@media print { body { max-width: none; padding: 0 } article { break-inside: avoid } details { display: none } }
"""
