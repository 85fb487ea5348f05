#!/bin/sh
# All checks: lint and the whole test suite. Installs what it needs into .venv if the active Python lacks it.
#   sh tool/check.sh [pytest arguments]
#   sh tool/check.sh -m campaign     # faults by the hundred, a quarter of an hour; see tests/campaign.py
set -eu
cd "$(dirname "$0")/.."
. tool/environment.sh
make_python requirements-dev.txt
"$PYTHON" -m ruff check .
exec "$PYTHON" -m pytest "$@"
