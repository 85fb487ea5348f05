"""Imported by the programs before any package: threads that wait without spinning, and one line where a package is missing."""

import os
import shlex
import sys
from pathlib import Path

PACKAGES = {"torch", "torchvision", "numpy", "cv2", "PIL", "yaml", "tensorboardX"}  # of requirements.txt, as they are imported

# Threads that spin while they wait slow everything down where there are more of them than free cores. OpenMP reads this when
# torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


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
