#!/bin/sh
# The test suite in new environments: Python 3.10 with the lowest versions that the requirements allow, 3.11 to 3.13 with the
# newest. Needs python3.10 ... python3.13 on PATH; each environment takes 5 to 7 GB and is removed when its tests have ended.
#   sh tool/matrix.sh [pytest arguments]
#   PYTHONS="3.10 3.13" sh tool/matrix.sh           only these
set -eu
CDPATH= cd "$(dirname "$0")/.."
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-passive}"
[ $# -gt 0 ] || set -- -n logical --maxprocesses 4 --dist worksteal
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
trap 'exit 130' INT TERM
status=0
versions=${PYTHONS:-3.10 3.11 3.12 3.13}
unset PYTHONS # a test runs this script
for version in $versions; do
    : > "$folder/constraints.txt"
    if [ "$version" = 3.10 ]; then # the headless build comes with albumentations and replaces the files of the other
        sed -n -e 's/ *#.*//' -e 's/>=/==/p' -e 's/^opencv-python==/opencv-python-headless==/p' \
            requirements.txt requirements-dev.txt > "$folder/constraints.txt"
    fi
    "python$version" -m venv "$folder/env"
    PYTHON=$folder/env/bin/python
    "$PYTHON" -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt -c "$folder/constraints.txt"
    "$PYTHON" -c 'import platform, sys
from importlib.metadata import version
print("Python", platform.python_version(), *(f"{name} {version(name)}" for name in sys.argv[1:]), sep=", ")' \
        $(sed -n 's/>=.*//p' requirements.txt)
    "$PYTHON" -m pytest "$@" || status=1
    rm -rf "$folder/env"
done
exit $status
