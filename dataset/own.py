"""One's own images and masks as a `Plan`: which mask belongs to which image, and which of its values is which class.

Masks are read here only to find their values. Nothing is written but a colour table for the user to fill in.
"""

import os
import re
import shlex
import unicodedata
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import numpy as np
from PIL import Image

from dataset.build import keep_sources, write_text
from dataset.layout import IMAGE_TYPES, VOID, Plan, Sample, by_id, is_dir, list_each, numbered
from util.common import Mistake, first_few, text_table
from util.image import image_header, pixel_counts, read_image, read_label, read_lines, system_words
from util.visual import default_palette, line_colour

# What may follow an image's name in that of its mask, if --mask-suffix does not say it.
ENDING = re.compile(
    "(_gtFine)?[-_. ](l|masks?|labels?|gt|seg|segmentation|annotations?|label_?ids|label_?train_?ids|train_?ids?)$", re.I
)
SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test",
          "testing": "test"}  # fmt: skip
MANY = 1000  # colours of a file that are counted
TABLE_HEAD = """\
# R G B name: one colour a line. Put names in place of class0, class1, ...; colours of one name are one class, and the name
# void is for colours to ignore. The order of the lines is that of the ids.
"""


def masks(images, masks, names=None, table=None, ids=None, void=None, suffix=None, draw=(0.2, 0), new_table=None):
    """The plan for images and masks, paired by their path below `images` and `masks` without file type.

    suffix: what follows the image's name in that of its mask; None: nothing, or an ending that the names show. names: class
    names. table: [(R, G, B, name)], the classes of colour masks; the name `void` marks colours to ignore. ids: the values in
    the masks that are classes 0, 1, ...; without any of these the masks must hold 0, 1, ... and void values only. void: values
    to ignore; None: 255, unless it is among `ids`. draw: share of val and seed, see `stay`. new_table: the file to write for
    the user to fill in if the masks are in colour and there is no table.
    """
    ignored = (VOID,) if void is None else void
    if void and table is not None and ids is None:
        raise Mistake("--void is for masks of ids; with --colors, give the colours to ignore the name void")
    pictures, labels, notes = _images_and_masks(images, masks, suffix)
    label_of, faults, more_notes = _pair(pictures, labels, suffix, images, masks)
    splits, split_notes = split_by_folder(pictures)
    samples = [Sample(splits.get(key, ""), path, f"image/{key}{path.suffix}", label_of.get(key), f"label/{key}.png",
                      faults.get(key, "")) for key, path in pictures.items()]  # fmt: skip
    samples += [Sample("", labels[key], "", fault=fault) for key, fault in faults.items() if key not in pictures]

    colors = None
    if table is not None:
        colour_of = {}  # of each class the first, for display
        for *colour, name in table:
            colour_of.setdefault(name, colour)
        colour_of.pop("void", None)
        if names is not None and tuple(names) != tuple(colour_of):
            raise Mistake(f"the names ({', '.join(names)}) are not those of the colour table ({', '.join(colour_of)})")
        names, colors = tuple(colour_of), np.array([*colour_of.values()], np.uint8)
    else:
        found = _values_of([*label_of.values()])
        if found.colours and ids is None:
            keep_sources((images, masks), [new_table])
            raise Mistake(_ask_for_a_table(found, new_table))
    if names is None:
        names = tuple(f"class{k}" for k in range(_count_ids(found, ignored) if ids is None else len(ids)))
    values = range(len(names)) if ids is None else ids
    if table is None and ids is None and void is None:
        _check_binary(found, names)
    if len(set(values)) < len(values):
        raise Mistake(f"--ids {' '.join(map(str, ids))}: an id is given twice, and one id cannot be two classes")
    if len(values) != len(names):
        raise Mistake(f"{len(values)} ids for {len(names)} classes ({', '.join(names)}): give one a class")
    if both := [value for value in void or () if value in values]:
        raise Mistake(f"--void {both[0]}: this value is the class {names[values.index(both[0])]}; the classes are the ids "
                      f"{first_few(values, 20)}. Leave it out of --void, or say with --ids what the classes are")  # fmt: skip
    read = by_id({**dict.fromkeys(ignored, VOID), **numbered(values)})
    if table is None:
        colors = _palette_of(found, values)
    else:
        read = _by_colour(table, None if ids is None else read)
    return own_plan((images, masks), samples, names, read, draw, colors, notes + more_notes + split_notes)


def own_plan(sources, samples, names, read, draw, colors, notes):
    """The Plan of samples with splits; without train and val, those of no split are drawn as `draw` says."""
    if len(names) > VOID:
        raise Mistake(f"{len(names)} classes; labels have 8 bits, so at most {VOID}")
    if len(names) < 2:
        raise Mistake(f"one class, {first_few(names)}: training needs two; what is not of it, the background, is a class too")
    twice = [name for name, n in Counter(names).items() if n > 1]
    if twice:
        raise Mistake(f"the class {twice[0]} is named twice; names must differ")
    splits = [split for split in ("train", "val", "test") if any(sample.split == split for sample in samples)]
    drawn = "train" not in splits
    lists = list_each(("train", "val", *splits) if drawn else splits)
    return Plan(tuple(sources), samples, lists, tuple(names), read, draw if drawn else None, colors, tuple(notes))


def stay(splits):
    """Those of the splits that images have which are kept: train and val with or without test; else test, beside any others,
    so that no image to test on is drawn for training."""
    if {"train", "val"} <= splits <= {"train", "val", "test"}:
        return splits
    return splits & {"test"} if len(splits) > 1 else set()


def split_by_folder(keys):
    """({key: the split that its first folder is named after, or "" if it is not kept}, notes)."""
    keys = [*keys]
    found = [SPLITS.get(key.split("/")[0].lower(), "") if "/" in key else "" for key in keys]
    splits, notes = keep_splits(keys, found)
    return dict(zip(keys, splits)), notes


def keep_splits(images, found):
    """(the splits found, with "" for those that do not `stay`; a note if images without a split have undone others)."""
    kept = stay({*found})
    lost = [split for split in ("train", "val") if split in {*found} - kept]
    strays = [image for image, split in zip(images, found) if not split]
    notes = [f"the images of {' and '.join(lost)} are split anew, since {len(strays)} are in no split: {first_few(strays)}"]
    return [split if split in kept else "" for split in found], notes if lost and strays else []


# ---- which mask belongs to which image


def own_files(root, without=None):
    """(images below root, notes). Hidden files and the folder `without` do not count."""
    if not is_dir(root):
        raise Mistake(f"{root}: no such folder")
    images, others = [], []
    for path in files_below(root, without):
        (images if path.suffix.lower() in IMAGE_TYPES else others).append(path)
    return images, [f"{root}: no images, left alone: {first_few([path.name for path in others])}"] if others else []


def files_below(root, without=None):
    """All files in root and its folders, sorted, but for those of the folder `without`. Links to folders are followed, each
    folder once, under its own name if it has one. Names that begin with a dot do not count: such files are a program's own."""

    def fail(error):
        raise Mistake(f"{error.filename}: {system_words(error)}") from error

    def walk(links):
        for folder, folders, files in os.walk(root, onerror=fail, followlinks=links):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            yield folder, os.path.realpath(folder), folders, files

    found, real = [], {place for _, place, *_ in walk(links=False)}
    seen = {os.path.realpath(without)} if without else set()
    for folder, place, folders, files in walk(links=True):
        if place in seen or place in real and os.path.islink(folder) and folder != str(root):  # noqa: PTH114, of a text
            folders.clear()
        else:
            found += [Path(folder, name) for name in files if not name.startswith(".")]
            seen.add(place)
    return sorted(found)


def by_key(root, files):
    """{path below root without file type: file}. Accents are one letter in the key, as Windows and Linux write them; Macs write
    a letter and its accent, and a mask may come from another machine than its image."""
    found = {}
    for path in files:
        key = unicodedata.normalize("NFC", path.relative_to(root).with_suffix("").as_posix())
        if key in found:
            raise Mistake(f"{found[key]} and {path.name}: two files for one name; keep one of them")
        found[key] = path
    return found


def _images_and_masks(images, masks, suffix):
    """({key: image}, {key: mask}, notes). In a shared folder a mask is what ends in `suffix`; without one, what has an ending
    of masks and is no JPEG, and a PNG that has a JPEG of the same name beside it."""
    masks = images if os.path.realpath(masks) == os.path.realpath(images) else masks
    pictures, notes = own_files(images, masks if masks != images else None)
    if masks == images:
        stems = Counter(path.with_suffix("") for path in pictures)

        def is_mask(path):
            if suffix:
                return path.stem.endswith(suffix)
            png = path.suffix.lower() == ".png"
            if stems[path.with_suffix("")] > 1 or path.suffix.lower() in (".jpg", ".jpeg"):  # no mask is a JPEG
                return png
            return suffix is None and ENDING.search(path.stem) is not None

        labels, pictures = [*filter(is_mask, pictures)], [path for path in pictures if not is_mask(path)]
    else:
        labels, more_notes = own_files(masks, images)
        notes += more_notes
    if not pictures:
        raise Mistake(f"{images}: no images ({' '.join(IMAGE_TYPES)}) in it")
    pictures, labels = by_key(images, pictures), by_key(masks, labels)
    if not labels:
        raise Mistake(f"{masks}: no masks in it; a mask is a PNG with the name of its image, and _mask, _label, _gt or another "
                      f"ending may follow the name; if masks have a folder of their own, give --images DIR and --masks DIR"
                      f"{_would_do(_endings(pictures, pictures))}")  # fmt: skip
    return pictures, labels, notes


def _endings(bases, labels):
    """How many masks are named after an image with this ending, a Counter."""
    found = ((key, cut) for key in labels for cut in range(1, len(key) + 1) if key[:cut] in bases)
    return Counter(key[cut:] for key, cut in found if "/" not in key[cut:])


def _would_do(endings):
    flag = lambda end: f"--mask-suffix{'=' if end.startswith('-') else ' '}{shlex.quote(end)}"
    named = [f"{flag(end)} for {count}" for end, count in endings.most_common(4) if end]
    return f". What the names allow: {', '.join(named)}" if named else ""


def _pair(pictures, labels, suffix, images, masks):
    """({key of an image: its mask}, {key of an image or of a mask: why it has no partner}, notes)."""
    tail = re.search(r"[-_. ][^-_. /]*$", next(iter(pictures)))
    tail = tail[0] if tail and all(key.endswith(tail[0]) for key in pictures) else ""  # 7_sat.jpg with 7_mask.png
    for cut in dict.fromkeys(("", tail)):
        bases = {key.removesuffix(cut): key for key in pictures}
        endings = _endings(bases, labels)
        if suffix in endings or suffix is None and endings:
            break
    taken = [end for end in endings if (not end or ENDING.fullmatch(end) if suffix is None else end == suffix)]
    if not taken and suffix is None:
        taken = [end for end, count in endings.items() if count == max(endings.values())]
    if not taken:
        rule = f"with {suffix!r} after it" if suffix else "alone or with an ending after it"
        raise Mistake(f"{masks}: no mask has the name of an image in {images}, {rule}. Images: {first_few([*pictures], 3)}; "
                      f"masks: {first_few([*labels], 3)}{_would_do(endings)}")  # fmt: skip

    label_of, partner, faults = {}, {}, {}
    for key, path in labels.items():
        for end in taken:
            picture = bases.get(key.removesuffix(end)) if key.endswith(end) else None
            if picture is not None and key in partner:
                raise Mistake(f"{path}: a mask for two images, {pictures[partner[key]]} and {pictures[picture].name}; which is "
                              f"it? Move the other, or give --mask-suffix ('' for none){_would_do(endings)}")  # fmt: skip
            if picture in label_of and label_of[picture] != path:
                raise Mistake(f"{label_of[picture]} and {path.name}: two masks for one image; which is it?{_would_do(endings)}")
            if picture is not None:
                label_of[picture] = path
                partner[key] = picture
    others = Counter()  # endings of further files about an image that has its mask
    for key, path in labels.items():
        if key in partner:
            continue
        cuts = [*(place.start() for place in re.finditer("[-_. ]", key)), len(key)]  # IMG_12_L is not about IMG_1
        about = [key[cut:] for cut in cuts if bases.get(key[:cut]) in label_of and "/" not in key[cut:]]
        if about:
            others[about[-1]] += 1
        else:
            base = next((key.removesuffix(end) for end in taken if end and key.endswith(end)), key)
            faults[key] = f"{path}: a mask without an image: expected {images / base}{cut} with the file type of an image"
    end = max(taken, key=endings.get)
    for base, key in bases.items():
        if key not in label_of:
            faults[key] = f"{pictures[key]}: an image without a mask: expected {masks / base}{end}.png"
    notes = []
    if any(taken):
        less = f" without {cut}" if cut else ""
        notes.append(f"names of masks: that of the image{less} and {' or '.join(filter(None, taken))}")
    if others:
        notes.append(f"{masks}: left alone: {', '.join(f'{n} with {end!r} after the name' for end, n in others.items())}")
    return label_of, faults, notes


# ---- which value is which class


@dataclass
class Values:
    """What masks hold: pixels of each id; colours of ids from palettes; pixels of each colour of colour masks."""

    ids: Counter = field(default_factory=Counter)
    palette: dict = field(default_factory=dict)
    colours: Counter = field(default_factory=Counter)
    reason: str = ""  # why the colours count
    coloured: int = 0  # masks in colour
    one_and_void: bool = False  # in one mask
    fault: str = ""  # of the first file that cannot be read


def _values_of(paths):
    with ThreadPoolExecutor() as pool:
        found = [*zip(paths, pool.map(_look, paths))]
    values, files = Values(), Counter()
    used = {}  # id: (its colour in a palette, file)
    for path, (ids, palette, colours, fault) in found:
        values.ids += ids
        values.colours += colours
        values.one_and_void |= {1, VOID} <= ids.keys()
        values.fault = values.fault or fault
        files["colours"] += bool(colours)
        files["ids"] += bool(ids)
        for value in ids:
            if value not in palette:
                continue
            colour, first = used.setdefault(value, (palette[value], path))
            if colour != palette[value] and not values.reason:
                other = _rgb(palette[value])
                values.reason = (f"index {value} is {_rgb(colour)} in the palette of {first}, and {other} in that of {path}, "
                                 "so not the indices but the colours are the classes")  # fmt: skip
        values.palette = {**palette, **values.palette}
    values.palette |= {value: colour for value, (colour, _) in used.items()}
    values.coloured = files["colours"]
    if values.reason:
        for _, (ids, palette, _, _) in found:
            values.colours += Counter({palette[value]: pixels for value, pixels in ids.items() if value in palette})
    elif files["colours"] <= files["ids"]:  # the few in colour are faults
        values.colours.clear()
    else:
        values.reason = "the masks are in colour"
    return values


def _look(path):
    """(pixels of each id, colours of a palette, pixels of each colour, fault) of a mask."""
    try:
        mode = image_header(path)[2]
        if mode in ("RGB", "RGBA"):
            pixels = read_image(path, lossless=True)
            if (pixels != pixels[..., :1]).any():
                packed = _count(pixels.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32))
                commonest = packed.most_common(MANY)  # a picture may have a colour a pixel
                return Counter(), {}, Counter({(v >> 16, v >> 8 & 255, v & 255): n for v, n in commonest}), ""
        ids = _count(read_label(path))
    except Mistake as error:
        return Counter(), {}, Counter(), str(error)
    palette = {}
    if mode == "P":
        with Image.open(path) as image:
            flat = image.getpalette() or []
        palette = {k: tuple(flat[3 * k : 3 * k + 3]) for k in range(len(flat) // 3)}
    return ids, palette, Counter(), ""


def _count(values):
    """Pixels of each value of an integer array, from its runs: masks have few."""
    flat = values.ravel()
    starts = np.flatnonzero(np.append(True, flat[1:] != flat[:-1]))
    found, which = np.unique(flat[starts], return_inverse=True)
    return Counter(dict(zip(found.tolist(), np.bincount(which, np.diff(starts, append=flat.size)).astype(int).tolist())))


def _count_ids(values, void):
    """The number of classes in id masks that hold 0, 1, ... without gaps; else Mistake with the flags that would do."""
    if not values.ids:
        raise Mistake(f"no class ids in the masks: {values.fault}")
    seen = sorted(values.ids.keys() - {*void})
    if seen == [*range(VOID)] and VOID in void and VOID in values.ids:
        raise Mistake("the masks hold all of 0 to 255: are they gray pictures, or smoothed between the classes? Export the ids "
                      "alone; if there are 255 classes, give their names with --names FILE")  # fmt: skip
    if len(seen) > 1 and seen == list(range(len(seen))):
        return len(seen)
    ignored = sorted(values.ids.keys() & {*void, 65535})
    classes = [value for value in sorted(values.ids) if value not in ignored]
    if len(classes) < 2:  # binary masks of 0 and 255
        classes, ignored = sorted(values.ids), []
    total = sum(values.ids.values())
    share = {value: f"{100 * pixels / total:.1f} %" for value, pixels in values.ids.items()}
    held = first_few([f"{value} ({share[value]})" for value in classes], 20)
    held += f" and void ({', '.join(f'{value}: {share[value]}' for value in ignored)})" if ignored else ""
    if len(classes) < 2:
        colour = f". {values.coloured} masks are in colour: if colours are the classes, give --colors FILE"
        raise Mistake(f"the masks hold nothing but {held}; training needs two classes, or --names FILE if there are classes "
                      f"without pixels{colour if values.coloured else ''}")  # fmt: skip
    if len(classes) > VOID:
        raise Mistake(
            f"the masks hold {len(values.ids)} ids, and the labels that are written {VOID} at most: are these masks "
            "of classes? If so, write the lists yourself: training takes 16-bit labels, with ignore_label: 65535"
        )
    flags = [*(["--ids", *classes] if classes != [*range(len(classes))] else []), *(["--void", *ignored] if ignored else [])]
    other = ""
    if VOID in ignored and "--ids" in flags:  # 0 85 170 255: classes that are stretched to be seen
        other = (
            f"or, if {VOID} is a class too:\n  --ids {' '.join(map(str, sorted({*classes, VOID})))}"
            f"{' --void 65535' * (65535 in ignored)}\n"
        )
    raise Mistake(f"the masks hold the ids {held}, not 0, 1, 2, ... without gaps. This makes them the classes 0 to "
                  f"{len(classes) - 1} in this order:\n  {' '.join(map(str, flags))}\n{other}"
                  "or, if ids without pixels are classes too, give the names of all with --names FILE")  # fmt: skip


def _check_binary(values, names):
    """Mistake where masks of 0 and 255 have names for two classes or more: the object would be ignored, and a network that says
    background everywhere would score 1."""
    if len(names) > 1 and values.ids.keys() == {0, 1, VOID} and not values.one_and_void:
        raise Mistake(f"some masks hold 0 and 1, and others 0 and {VOID}: is it one class, stored in two ways? Then save all "
                      f"alike. If {VOID} is void:\n  --void {VOID}")  # fmt: skip
    if len(names) > 1 and values.ids.keys() == {0, VOID}:
        share = 100 * values.ids[VOID] / sum(values.ids.values())
        more = "".join(f" {k}" for k in range(2, len(names)))  # of which there are no pixels
        raise Mistake(f"the masks hold 0 and {VOID} ({share:.1f} % of the pixels), and {VOID} is void if nothing else is said. "
                      f"If it is the class {names[1]}:\n  --ids 0 {VOID}{more}\nif it is void:\n  --void {VOID}")  # fmt: skip


def _palette_of(values, ids):
    """Colours of the classes, (K, 3) uint8: those of the masks' palette if it tells them apart, else our own."""
    colors = [values.palette.get(value) for value in ids]
    gray = all(colour and len({*colour}) == 1 for colour in colors)
    good = None not in colors and len({*colors}) == len(colors) and not gray
    return np.array(colors, np.uint8) if good else default_palette(len(colors))


# ---- colours


def _ask_for_a_table(values, path):
    """The message for masks in colour; writes the table `path` unless there is one."""
    total, colours = sum(values.colours.values()), sorted(values.colours)
    if len(colours) > VOID:
        cut = len(colours) >= MANY
        number = f"{len(colours)} colours{' or more' * cut}"
        commonest = [_rgb(colour) + f" ({100 * n / total:.1f} %)" * (not cut) for colour, n in values.colours.most_common(10)]
        return (f"{values.reason}, and {number} are more than the {VOID} classes of 8-bit labels. Smooth edges "
                f"or a lossy format do this to masks: export them anew. The commonest are {', '.join(commonest)}")  # fmt: skip
    if not path.exists():
        write_text(path, TABLE_HEAD + "".join(f"{_rgb(colour)} class{k}\n" for k, colour in enumerate(colours)))
    share = {colour: f"{100 * values.colours[colour] / total:.2f} %" for colour in colours}
    rows = [("", "R G B", "share"), *(("", _rgb(colour), share[colour]) for colour in colours)]
    return (f"{values.reason}. Put the names of the classes into {path}, or leave class0, class1, ..., and start again with\n"
            f"  --colors {path}\nThe colours of all masks:\n{text_table(rows)}")  # fmt: skip


def read_colour_table(path):
    """A text file of `R G B name` lines as [(R, G, B, name)]; a name that is missing becomes class0, class1, ..."""
    table = []
    for number, line in enumerate(read_lines(path), 1):
        if line.startswith("#"):
            continue
        parts = line.split(maxsplit=3)
        colour = line_colour(parts[:3])
        if colour is None:
            raise Mistake(f"{path}: entry {number} is {line[:80]!r}, expected `R G B name` with numbers 0..255")
        if colour in [tuple(entry[:3]) for entry in table]:
            raise Mistake(f"{path}: entry {number}: the colour {' '.join(parts[:3])} is there twice")
        table.append([*colour, parts[3] if len(parts) > 3 else None])
    taken = {name for *_, name in table}
    free = (name for name in map("class{}".format, count()) if name not in taken)
    table = [[*colour, name or next(free)] for *colour, name in table]
    table = [[*colour, "void" if name.lower() == "void" else name] for *colour, name in table]  # CamVid's own has Void
    if all(name == "void" for *_, name in table):
        raise Mistake(f"{path}: no colours in it, expected `R G B name` lines")
    return table


def _by_colour(table, read_ids=None):
    """A reader of colour masks. table: [(R, G, B, name)]. read_ids: reads files of one channel, if they hold ids; without it
    their grays are colours, since a mask without a colourful pixel is often saved as gray."""
    names = [*dict.fromkeys(name for *_, name in table if name != "void")]
    lookup = np.full(1 << 24, -1, np.int16)  # at R << 16 | G << 8 | B
    for r, g, b, name in table:
        lookup[r << 16 | g << 8 | b] = VOID if name == "void" else names.index(name)

    def read(path, size):
        mode = image_header(path)[2]
        one_channel = mode not in ("P", "RGB", "RGBA")
        if one_channel and read_ids:
            return read_ids(path, size)
        if mode.startswith(("I", "F")):  # as an image it would lose its low byte
            raise Mistake(f"{path}: one channel of mode {mode} holds no colours; if these are ids, say which with --ids")
        pixels = read_image(path, lossless=True).astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)
        classes = lookup[pixels]
        if (classes < 0).any():
            found = pixel_counts(pixels[classes < 0], lambda v: f"{v >> 16} {v >> 8 & 255} {v & 255}")
            hint = "; if these are ids, say which with --ids" if one_channel else ""
            raise Mistake(f"{path}: colours that the colour table does not have: {found}{hint}")
        return classes.astype(np.uint8)

    return read


def _rgb(colour):
    return "{} {} {}".format(*colour)
