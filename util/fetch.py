"""Weights from elsewhere, `https://HOST/FILE#sha256=HEX` and `hf://OWNER/NAME/FILE`: checked, and kept in a folder.

`hf://` is the main branch of a model on the Hugging Face Hub; its checksum may be left out.
"""

import hashlib
import os
import re
import time
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from util.common import Mistake, write_aside

HUB = "https://huggingface.co"
TIMEOUT = 20  # seconds that a server may keep silent
WAIT, PAUSE = 3600, 0.5  # seconds that a process waits for what another one fetches, and between two looks


def is_url(value) -> bool:
    """Is this value of a config an address of any kind, and no path?"""
    return isinstance(value, str) and re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", value) is not None


def parse_url(value) -> tuple[str, str | None]:
    """(the address to ask, SHA-256 in lower case or None) of `https://...#sha256=HEX` or `hf://...`; Mistake for any other."""
    url, _, fragment = value.partition("#")
    sha256 = re.fullmatch(r"sha256=([0-9A-Fa-f]{64})", fragment)
    if fragment and not sha256:
        raise Mistake(f"{value}: after # goes the checksum of the file, sha256= and 64 hexadecimal digits")
    model = re.fullmatch(r"hf://([\w.-]+)/([\w.-]+)/([\w./+-]+)", url, re.ASCII)
    if model and not {"", ".", ".."} & {*url.removeprefix("hf://").split("/")}:
        owner, name, file = model.groups()
        return f"{HUB}/{owner}/{name}/resolve/main/{file}", sha256 and sha256[1].lower()
    # Plain http is for a server of this machine; the characters are those of RFC 3986, so no space, brace or user@.
    host = r"(https://[\w.-]+|http://(127\.0\.0\.1|localhost))(:\d+)?"
    if not re.fullmatch(rf"{host}/[\w.~:/?\[\]@!$&'()*+,;=%-]+", url, re.ASCII):
        raise Mistake(f"{value}: expected https://HOST/FILE#sha256=HEX, hf://OWNER/NAME/FILE, or the path of a file")
    if not sha256:
        raise Mistake(
            f"{value}: the checksum is missing: write {value}#sha256=HEX, with the 64 digits that the file's publisher states, "
            "or that `sha256sum FILE` prints for a copy that you trust"
        )
    return url, sha256[1].lower()


def local_file(value, folder, say=print) -> Path:
    """The file that a config's value means: itself if it is a path, else its copy in `folder`, fetched if it is not there.

    The copy is used only if it has the checksum; without one in `value`, say(...) tells it. Raises Mistake if the file cannot
    be fetched or has another checksum; nothing is left then. Several processes may do this at once; of those that a launcher
    has started on one machine the first one fetches, the others wait for its copy.
    """
    if not is_url(value):
        return Path(value)
    url, pinned = parse_url(value)
    by_url = _place(folder, url, hashlib.sha256(url.encode()).hexdigest())
    places = [_place(folder, url, pinned), by_url] if pinned else [by_url]
    first = int(os.environ.get("LOCAL_RANK", 0)) == 0  # of the processes that a launcher has started on this machine
    path, found = _kept(places, pinned)
    if not path and first:
        path = places[0]
        say(f"Fetching {url} into {path}")
        found = _download(value, url, pinned, path)
    end = time.monotonic() + WAIT
    while not path:  # if the first one fails, the launcher ends this one too
        if time.monotonic() > end:
            raise Mistake(f"{value}: the first process of this machine, which fetches it into {places[0]}, has not done so")
        time.sleep(PAUSE)
        path, found = _kept(places, pinned)
    if not pinned and first:
        say(f"{value}: to have this very file checked from now on, write {value}#sha256={found}")
    return path


def _kept(places, pinned):
    """(path, SHA-256) of the first of these files that is there and has the checksum, or (None, None)."""
    for path in places:
        found = path.is_file() and _sha256_of(path)
        if found and pinned in (None, found):
            return path, found
    return None, None


def _place(folder, url, digits) -> Path:
    """A path in `folder`, whatever the address holds: its last word, 16 digits that no other file has, its suffix."""
    name = PurePosixPath(re.sub(r"[^\w.-]", "_", urlsplit(url).path.rpartition("/")[2], flags=re.ASCII))
    return Path(folder) / f"{name.stem[:80]}-{digits[:16]}{name.suffix[:20]}"


def _sha256_of(path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise Mistake(f"{path}: cannot be read ({error})") from error


def _download(value, url, pinned, path) -> str:
    """Put the file at `path`; returns its SHA-256."""
    digest = hashlib.sha256()
    with write_aside(path, sync=True) as aside:
        with aside.open("wb") as file:
            for piece in _pieces(value, url, path):
                file.write(piece)
                digest.update(piece)
        if pinned not in (None, digest.hexdigest()):
            raise Mistake(f"{value}: the file there has another checksum, sha256={digest.hexdigest()}; it was not kept")
    return digest.hexdigest()


def _pieces(value, url, path):
    """Yield the bytes that the server sends; Mistake if they do not come, or not all of them."""
    try:
        with build_opener(_OnlyToHttps).open(Request(url, headers={"User-Agent": "semseg"}), timeout=TIMEOUT) as reply:
            while piece := reply.read(2**20):
                yield piece
            if reply.length:
                raise HTTPException(f"the connection ended {reply.length} bytes too early")
    except (OSError, HTTPException, ValueError) as error:  # ValueError: an address that a redirection gave
        reason = error if isinstance(error, HTTPError) else getattr(error, "reason", error)
        raise Mistake(
            f"{value}: could not be fetched ({reason}); check the address and the network, or get the file on another machine, "
            f"put it at {path}, and start again"
        ) from error


class _OnlyToHttps(HTTPRedirectHandler):
    def redirect_request(self, request, reply, code, message, headers, url):
        if urlsplit(url).scheme != "https":
            raise ValueError(f"it redirects to {url}, which is not https")
        return super().redirect_request(request, reply, code, message, headers, url)
