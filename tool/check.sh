#!/bin/sh
# All checks: lint and the whole test suite, in a process a core, up to four. Installs what it needs into .venv if the active
# Python lacks it.
#   sh tool/check.sh
#   sh tool/check.sh PYTEST_ARGUMENTS            in one process, if they do not say otherwise: -n 2 --dist worksteal
#   sh tool/check.sh --gpu [pytest arguments]    what depends on a GPU, on this machine's; ends with a table for docs/speed.md
#   sh tool/check.sh -m campaign     # faults by the hundred, a quarter of an hour; see tests/campaign.py
set -eu
CDPATH= cd "$(dirname "$0")/.."
. tool/environment.sh
make_python requirements-dev.txt
if [ "${1:-}" = --gpu ]; then
    shift
    if ! "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
        echo "No GPU that torch can use: the GPU tests are skipped"
        exit 0
    fi
    exec env TEST_DEVICE=cuda "$PYTHON" -m pytest tests/test_gpu.py "$@"
fi
"$PYTHON" -m ruff check .
[ $# -gt 0 ] || set -- -n logical --maxprocesses 4 --dist worksteal
exec "$PYTHON" -m pytest "$@"
