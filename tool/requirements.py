"""Does this Python satisfy requirements files? Says what is missing, status 1 if anything is.

    python tool/requirements.py requirements.txt requirements-dev.txt

Runs before anything is installed, so it needs the standard library alone.
"""

import re
import sys
from importlib import metadata
from pathlib import Path

# Builds of the same OpenCV: any of them will do.
SAME = {"opencv-python": ("opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless")}


def missing(path) -> list[str]:
    """What the file asks for (`name` or `name>=version`, and `-r other file`) and this Python lacks."""
    lacking = []
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        line = line.partition("#")[0].strip()
        if line.startswith("-r "):
            lacking += missing(Path(path).parent / line[3:].strip())
        elif line:
            name, _, least = line.partition(">=")
            found = [version for each in (name.strip(), *SAME.get(name.strip(), ())) if (version := installed(each))]
            if not found or numbers(found[0]) < numbers(least):
                lacking.append(f"{line} (found {found[0] if found else 'none'})")
    return lacking


def installed(name) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def numbers(version) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", version.partition("+")[0])[:3]]


if __name__ == "__main__":
    problems = [] if sys.version_info >= (3, 10) else [f"Python >= 3.10 (found {sys.version.split()[0]})"]
    for file in sys.argv[1:]:
        problems += missing(file)
    if not problems:
        try:
            import cv2  # noqa: F401, it can be installed and still fail for want of libGL
        except ImportError as error:
            problems.append(f"a working cv2 ({error})")
    if problems:
        sys.exit("missing: " + ", ".join(problems))
