#!/bin/sh
# Train one experiment. What follows the names goes to tool/train.py; --help lists the flags.
#   sh tool/train.sh DATASET EXP [KEY VALUE ...] [flags]    then tests what came out
#   sh tool/train.sh CONFIG [KEY VALUE ...] [flags]         on one GPU, or the CPU; without a test
#   sh tool/train.sh cityscapes pspnet50 base_lr 0.02
#   sh tool/train.sh pspnet_r50-d8_512x1024_40k_cityscapes --work-dir exp/first
# DATASET EXP copies code and config into exp/DATASET/EXP/snapshot first, so that a run can be understood later; if they have
# changed, the copy that is there becomes snapshot-N. Checkpoints and the log are in exp/DATASET/EXP/model, predictions and
# scores in exp/DATASET/EXP/result; all but the copies follow --work-dir.
set -eu
usage() {
    echo "usage: sh tool/train.sh DATASET EXP [KEY VALUE ...] [flags]" >&2
    echo "       sh tool/train.sh CONFIG [KEY VALUE ...] [flags]" >&2
    exit 2
}
[ $# -gt 0 ] && [ -n "$1" ] || usage
here=$PWD
CDPATH= cd "$(dirname "$0")/.."
. tool/environment.sh
if [ ! -d "config/$1" ]; then
    need_python requirements.txt
    config=$1
    shift
    case $config in
        /* | *.py) ;;
        *) if [ -f "$here/$config" ]; then config=$here/$config; fi ;; # a file of the directory that this was called from
    esac
    exec "$PYTHON" tool/train.py --one-gpu "$config" "$@"
fi
[ $# -gt 1 ] || usage
need_python requirements.txt
config=config/$1/$1_$2.yaml
snapshot=exp/$1/$2/snapshot
shift 2
if [ -f "$config" ]; then
    new=$snapshot.$$
    trap 'rm -rf "$new"' EXIT
    mkdir -p "$new/dataset"
    cp -R tool model util "$config" "$new"
    cp dataset/*.py "$new/dataset"
    find "$new" -name __pycache__ -prune -exec rm -rf {} +
    if diff -r "$snapshot" "$new" > /dev/null 2>&1; then
        rm -rf "$new"
    else # that of an earlier run stays
        n=1
        while [ -e "$snapshot-$n" ]; do n=$((n + 1)); done
        [ ! -e "$snapshot" ] || mv "$snapshot" "$snapshot-$n"
        mv "$new" "$snapshot"
    fi
    trap - EXIT
fi
run_training --config "$config" "$@"
exec "$PYTHON" tool/test.py --config "$config" "$@"
