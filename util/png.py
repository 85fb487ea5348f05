"""The first rows and columns of a PNG, decoded without the others.

PNG codes a byte by its difference to those left and above, so what is below or to the right of a window is not needed: the
rows are inflated up to the window's last, cut behind its last column, and handed to the decoder as an uncompressed PNG.
"""

import struct
import zlib

import numpy as np

try:
    from isal.isal_zlib import decompressobj, error  # an optional package: inflates in 0.6 of the time
except ImportError:
    from zlib import decompressobj, error

SIGNATURE = b"\x89PNG\r\n\x1a\n"
CHANNELS = {0: 1, 2: 3, 4: 2, 6: 4}  # of the colour types without a palette
PIECE = 1 << 16  # bytes inflated at a time: few, so that memory is used again instead of asked for


def png_layout(data):
    """(height, width, bytes of a pixel, [(start, stop) of each IDAT]) of an ordinary PNG, None of anything else.

    Ordinary is 8 or 16 bits without palette, interlacing, transparent colour, orientation and animation.
    """
    if not data.startswith(SIGNATURE) or data[12:16] != b"IHDR" or not _is_intact(data, 16, 29):
        return None
    place, spans = 8, []
    while place + 12 <= len(data):
        size, kind = int.from_bytes(data[place : place + 4], "big"), data[place + 4 : place + 8]
        if kind in (b"PLTE", b"tRNS", b"eXIf", b"acTL"):
            return None
        if kind == b"IDAT":
            spans.append((place + 8, place + 8 + size))
        place += 12 + size
    w, h, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", data[16:29])
    ordinary = w and h and depth in (8, 16) and colour in CHANNELS and not interlaced
    return (h, w, CHANNELS[colour] * depth // 8, spans) if ordinary else None


def cut_png(data, layout, rows, columns):
    """An uncompressed PNG of the first rows and columns, as bytes, or None if what they need is damaged."""
    _, w, pixel, spans = layout
    stride, stop = 1 + w * pixel, 1 + columns * pixel  # each row begins with a byte for the kind of its differences
    store, stored, rest, left = zlib.compressobj(0), [], b"", rows
    for piece in _inflated(memoryview(data), spans):
        rest += piece
        whole = min(len(rest) // stride, left)
        table = np.frombuffer(rest, np.uint8, whole * stride).reshape(whole, stride)
        stored.append(store.compress(table[:, :stop].tobytes()))
        rest, left = rest[whole * stride :], left - whole
        if not left:
            break
    if left:
        return None
    header = struct.pack(">II", columns, rows) + data[24:29]
    chunks = chunk(b"IHDR", header), chunk(b"IDAT", *stored, store.flush()), chunk(b"IEND")
    return b"".join([SIGNATURE, *sum(chunks, ())])


def _inflated(view, spans):
    """The bytes of the IDAT chunks at `spans`, inflated, in pieces, up to the first chunk that is damaged."""
    inflate = decompressobj()
    for start, stop in spans:
        if not _is_intact(view, start, stop):
            return
        for place in range(start, stop, PIECE):
            try:
                yield inflate.decompress(view[place : min(place + PIECE, stop)])
            except error:
                return


def _is_intact(data, start, stop):
    """Whether the checksum behind a chunk's content is that of its name and content."""
    return zlib.crc32(data[start - 4 : stop]) == int.from_bytes(data[stop : stop + 4], "big")


def chunk(kind, *parts):
    """A chunk of a PNG in pieces: its length, kind and parts, and its checksum."""
    checksum = zlib.crc32(kind)
    for part in parts:
        checksum = zlib.crc32(part, checksum)
    return struct.pack(">I", sum(map(len, parts))), kind, *parts, struct.pack(">I", checksum)
