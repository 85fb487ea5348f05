#!/bin/sh
# Train one experiment with NUM_GPUS processes on this machine, a GPU each. What follows goes to tool/train.py.
#   sh tool/train_dist.sh CONFIG NUM_GPUS [KEY VALUE ...] [flags]
#   sh tool/train_dist.sh pspnet_r50-d8_512x1024_40k_cityscapes 4 --work-dir exp/first
# Several machines that see the same files: the same command on each, with its own number and the first one's address:
#   NNODES=2 NODE_RANK=0 MASTER_ADDR=HOST0 PORT=29500 sh tool/train_dist.sh CONFIG NUM_GPUS
# Several runs on one machine: give each its own PORT.
set -eu
usage() {
    echo "usage: sh tool/train_dist.sh CONFIG NUM_GPUS [KEY VALUE ...] [flags]" >&2
    exit 2
}
[ $# -gt 1 ] || usage
config=$1
processes=$2
case $processes in
    "" | *[!0-9]*) usage ;;
esac
[ "$processes" -gt 0 ] || usage
shift 2
case $config in
    /* | *.py) ;;
    *) if [ -f "$config" ]; then config=$PWD/$config; fi ;; # a file of the directory that this was called from
esac
CDPATH= cd "$(dirname "$0")/.."
. tool/environment.sh
need_python requirements.txt
exec "$PYTHON" -m util.distributed \
    --nnodes "${NNODES:-1}" --node-rank "${NODE_RANK:-0}" --nproc-per-node "$processes" \
    --master-addr "${MASTER_ADDR:-127.0.0.1}" --master-port "${PORT:-29500}" \
    tool/train.py --launcher pytorch "$config" "$@"
