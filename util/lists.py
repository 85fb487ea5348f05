"""Image lists: a text file with `image label` a line becomes a sequence of pairs of paths that takes little memory.

A million lines as Python strings are 240 MB, and more in each loader worker: to look at a string counts a reference in it,
which copies its page of memory after a fork. Here they are a few arrays that nobody writes to.
"""

import os
import re
import stat
from array import array
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import accumulate, chain, islice
from pathlib import Path

import numpy as np

from util.common import Mistake, first_few
from util.image import file_errors, read_text, system_words

FEW = 32  # names for which a folder is not worth reading
TASKS = 64  # of the threads that look into the folders
MANY = 20  # times as many files in a folder as the list names there: it is asked for those that are left one by one


class Texts(Sequence):
    """Strings in two arrays: their UTF-8 bytes, end to end, and where each one begins and ends."""

    def __init__(self, strings=()):
        self.content, self.bounds = bytearray(), array("Q", [0])
        self.extend(strings)

    def extend(self, strings):
        parts = [string.encode("utf-8", "surrogateescape") for string in strings]
        self.content += b"".join(parts)
        self.bounds.extend(islice(accumulate(map(len, parts), initial=self.bounds[-1]), 1, None))

    def __len__(self):
        return len(self.bounds) - 1

    def __getitem__(self, index):
        return self.content[self.bounds[index] : self.bounds[index + 1]].decode("utf-8", "surrogateescape")


class Pairs(Sequence):
    """The (image path, label path or None) of a list, as a list of tuples would hold them. Folders are kept once."""

    def __init__(self, folders, folder_of, names, labelled):
        self.folders, self.folder_of, self.names, self.labelled = folders, folder_of, names, labelled

    def __len__(self):
        return len(self.names) // (1 + self.labelled)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]  # counts from the end if negative, and raises IndexError
        return (self.path(2 * index), self.path(2 * index + 1)) if self.labelled else (self.path(index), None)

    def __eq__(self, other):
        return isinstance(other, Sequence) and len(self) == len(other) and all(a == b for a, b in zip(self, other))

    def path(self, i):
        return self.folders[self.folder_of[i]] + self.names[i]


def read_list(path, data_root, split):
    """Read a list file into a sequence of (image path, label path), the label path None for split `test`.

    A line is `image label`, relative to data_root; `test` needs the image only and ignores a label. Blank lines and lines
    that begin with `#` are skipped. Paths that hold spaces are separated by a TAB, or else where both parts are files. A list
    that is missing, empty or not UTF-8, lines without label and paths that are no files raise Mistake.
    """
    if split not in ("train", "val", "test"):
        raise ValueError(f"split = {split!r}: expected 'train', 'val' or 'test'")
    if path is None or not _is_file(path):
        raise Mistake(f"{path}: no such list file (split {split}): check the list's path in the config")
    root, labelled, unlabelled = Path(data_root or ""), split != "test", []
    names, folder_of, folders = Texts(), array("I"), defaultdict(lambda: len(folders))  # folder: its number
    hashes, numbers = array("q"), array("I")  # of each name; of the line of each pair
    lines = _lines(path)
    while block := [*islice(lines, 4096)]:  # a step for all of them is faster than all steps for each
        entries = []
        for number, line in block:
            parts = line.split()
            if len(parts) != 1 + labelled:  # an ordinary line needs no look at the disk
                image, label = _split_line(line, root, split)
                if labelled and label is None:
                    unlabelled.append(f"line {number}: {line}")
                    continue
                parts = (image, label) if labelled else (image,)
            entries += parts
            numbers.append(number)
        cuts = [entry.rfind("/") + 1 for entry in entries]
        folder_of.extend([folders[entry[:cut]] for entry, cut in zip(entries, cuts)])
        own = [entry[cut:] for entry, cut in zip(entries, cuts)]
        names.extend(own)
        hashes.extend(map(hash, own))
    if unlabelled:
        listed = first_few(unlabelled, separator="\n  ")
        raise Mistake(f"{path}: {len(unlabelled)} lines have no label, split {split} needs `image label` on each line "
                      f"(separated by a TAB if paths hold spaces):\n  {listed}")  # fmt: skip
    pairs = Pairs(Texts(_prefix(root / folder) for folder in folders), folder_of, names, labelled)
    missing = [f"line {numbers[i // (1 + labelled)]}: {pairs.path(i)}{fault}" for i, fault in _faults(pairs, hashes)]
    if missing:
        listed = first_few(missing, separator="\n  ")
        raise Mistake(f"{path}: {len(missing)} of the files it names do not exist under data_root = {data_root}:\n  {listed}")
    if not pairs:
        raise Mistake(f"{path}: the list is empty (split {split})")
    return pairs


def _lines(path):
    """(number, text) of the lines that are neither blank nor comments."""
    try:
        with file_errors(path), Path(path).open(encoding="utf-8-sig") as stream:
            for number, line in enumerate(stream, 1):
                line = line.strip()
                if line and not line.startswith("#"):
                    yield number, line
    except UnicodeDecodeError:
        read_text(path)  # says at which byte of the file
        raise  # it has changed meanwhile


def _split_line(line, root, split):
    """(image, label or None) of one line: at a TAB, else at the space that leaves files on disk, else at the first space."""
    if "\t" in line:
        image, label = (part.strip() for part in line.split("\t", 1))
        return image, label or None
    splits = [(line[: gap.start()], line[gap.end() :]) for gap in re.finditer(r"\s+", line)]
    if split == "test":
        splits = [(line, None), *reversed(splits)]  # the longest name that is a file
    if len(splits) > 1:
        for image, label in splits:
            if _is_file(root / image) and (split == "test" or _is_file(root / label)):
                return image, label
    return splits[0] if splits else (line, None)


def _prefix(folder):
    """What stands before the names of a folder."""
    return "" if str(folder) == "." else str(folder).rstrip("/") + "/"


def _faults(pairs, hashes):
    """(place, reason) of the names of `pairs` that are no files. A folder is read at once, which is much faster than a question
    for each file; only what is not found there as a plain file is asked for by its path."""
    folder_of = np.frombuffer(pairs.folder_of, np.uint32)
    order = np.argsort(folder_of, kind="stable")
    ends = np.cumsum(np.bincount(folder_of, minlength=len(pairs.folders)))
    hashes = np.frombuffer(hashes, np.int64)

    def look(folder):
        of_folder = order[ends[folder - 1] if folder else 0 : ends[folder]]
        if len(of_folder) > FEW:
            with suppress(OSError, ValueError), os.scandir(pairs.folders[folder] or ".") as entries:
                files = (hash(entry.name) for entry in entries if entry.is_file(follow_symlinks=False))
                there = np.fromiter(islice(files, MANY * len(of_folder)), np.int64)
                of_folder = of_folder[~np.isin(hashes[of_folder], there)]
        return [(i, fault) for i in of_folder.tolist() if (fault := _file_fault(pairs.path(i))) is not None]

    def look_into(folders):
        return [fault for folder in folders for fault in look(folder)]

    with ThreadPoolExecutor() as pool:  # a task for each folder would take longer than to look into a small one
        parts = pool.map(look_into, (range(i, len(ends), TASKS) for i in range(TASKS)))
        return sorted(chain.from_iterable(parts))


def _file_fault(path):
    """None for a file, else the reason in parentheses, which is empty where there is nothing of that name."""
    try:
        kind = Path(path).stat().st_mode
    except FileNotFoundError:
        path = Path(path)
        return f" (a link to {path.readlink()}, which is gone: prepare the data again)" if path.is_symlink() else ""
    except OSError as error:
        return f" ({system_words(error)})"
    except ValueError:
        return " (a NUL character in the path)"
    return None if stat.S_ISREG(kind) else " (a folder)" if stat.S_ISDIR(kind) else " (not a regular file)"


def _is_file(path):
    return _file_fault(path) is None
