#!/bin/sh
# Train one experiment under SLURM, one process a GPU, on one or several machines. From the project's root:
#   sbatch tool/slurm.sh DATASET EXP [KEY VALUE ...]
#   sbatch --nodes 2 --ntasks-per-node 4 --gpus-per-node 4 tool/slurm.sh cityscapes pspnet50 base_lr 0.02
# Two minutes before the time limit, and when the job is preempted, the run saves and the job queues up again, to resume there.
#SBATCH --job-name=semseg
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -u
if [ $# -lt 2 ]; then
    echo "usage: sbatch tool/slurm.sh DATASET EXP [KEY VALUE ...]" >&2
    exit 2
fi
cd "${SLURM_SUBMIT_DIR:?is set by sbatch, which starts this script}" || exit 1
[ -f tool/environment.sh ] || { echo "error: $PWD is not the project's root: call sbatch there" >&2; exit 1; }
. tool/environment.sh
need_python requirements.txt || exit 1
config=config/$1/$1_$2.yaml
shift 2
before=
for word in "$@"; do # a job that is requeued has the same arguments, and would begin there again
    case "$before $word" in
        "resume auto" | "TRAIN.resume auto") ;;
        "resume "* | "TRAIN.resume "* | *" --resume"*)
            echo "error: resume: a job resumes from the newest checkpoint in save_path; to go on from another, copy it there" >&2
            exit 2
            ;;
    esac
    before=$word
done
export OMP_NUM_THREADS=1
export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}" # srun does not take it from sbatch since SLURM 22.05
# A process that dies ends the others after a minute (--wait): they may still be saving.
srun --wait=60 "$PYTHON" tool/train.py --config "$config" resume auto "$@"
status=$?
case $status in
    75 | 138 | 143) scontrol requeue "$SLURM_JOB_ID" ;; # stopped by a signal, and saved; by SIGUSR1 or SIGTERM before it listened
esac
exit $status
