#!/bin/sh
# Test one experiment: predictions as PNGs, and the scores. What follows the names goes to tool/test.py; --help lists the flags.
#   sh tool/test.sh DATASET EXP [KEY VALUE ...] [flags]
#   sh tool/test.sh cityscapes pspnet50 scales '[0.5, 0.75, 1.0, 1.25, 1.5, 1.75]'
set -eu
if [ $# -lt 2 ]; then
    echo "usage: sh tool/test.sh DATASET EXP [KEY VALUE ...] [flags]" >&2
    exit 2
fi
CDPATH= cd "$(dirname "$0")/.."
. tool/environment.sh
need_python requirements.txt
config=config/$1/$1_$2.yaml
shift 2
exec "$PYTHON" tool/test.py --config "$config" "$@"
