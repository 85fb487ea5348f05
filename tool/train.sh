#!/bin/sh
# Train one experiment, then test what came out.
#   sh tool/train.sh DATASET EXP [KEY VALUE ...]
#   sh tool/train.sh cityscapes pspnet50 base_lr 0.02
# Copies code and config into exp/DATASET/EXP first, so that a run can be understood later. Checkpoints and the log are in
# exp/DATASET/EXP/model, predictions and scores in exp/DATASET/EXP/result.
set -eu
if [ $# -lt 2 ]; then
    echo "usage: sh tool/train.sh DATASET EXP [KEY VALUE ...]" >&2
    exit 2
fi
cd "$(dirname "$0")/.."
. tool/environment.sh
need_python requirements.txt
config=config/$1/$1_$2.yaml
snapshot=exp/$1/$2/snapshot
shift 2
if [ -f "$config" ]; then
    mkdir -p "$snapshot"
    cp -R tool model util "$config" "$snapshot"
fi
"$PYTHON" tool/train.py --config "$config" "$@"
"$PYTHON" tool/test.py --config "$config" "$@"
