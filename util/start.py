"""Imported by the programs before any package: threads that wait without spinning, memory that is used again, and one line
where a package is missing."""

import ctypes
import os
import shlex
import sys
from pathlib import Path

PACKAGES = {"torch", "torchvision", "numpy", "cv2", "PIL", "yaml", "tensorboardX"}  # of requirements.txt, as they are imported

# Threads that spin while they wait slow everything down where there are more of them than free cores. OpenMP reads this when
# torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h


def keep_memory():
    """Have glibc keep large blocks that are freed, for the next step, which asks for the same: the system clears each page
    that it hands out. Nothing happens with another C library or allocator, or where variables of glibc's malloc are set."""
    chosen = any("malloc" in os.environ.get(name, "") for name in ("LD_PRELOAD", "GLIBC_TUNABLES"))
    if chosen or any(name.startswith("MALLOC_") for name in os.environ):
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "gnu_get_libc_version") and libc.mallopt(M_MMAP_THRESHOLD, 2**30):  # old versions refuse more than 32 MiB
        libc.mallopt(M_TRIM_THRESHOLD, -1)  # never


def say_what_is_missing(kind, error, trace):
    """As `sys.excepthook`: the import of a package that is not there ends with a line; all else with its traceback."""
    if not isinstance(error, ModuleNotFoundError) or error.name not in PACKAGES:
        sys.__excepthook__(kind, error, trace)
        return
    remedy = "run `sh tool/quickstart.sh` once, or `pip install -r requirements.txt`"
    made = Path(__file__).resolve().parents[1] / ".venv"
    if (made / "bin/activate").is_file() and Path(sys.prefix) != made:
        remedy = f"`. {shlex.quote(str(made / 'bin/activate'))}` makes `python` the one that was installed here"
    print(f"error: {sys.executable} has no package {error.name}; {remedy}", file=sys.stderr)


if sys.version_info < (3, 10):  # noqa: UP036, an older one would end in a traceback
    sys.exit(f"error: Python 3.10 or newer is needed, and {sys.executable} is {sys.version.split()[0]}")
sys.excepthook = say_what_is_missing
keep_memory()
