#!/usr/bin/env bash
#SBATCH --job-name=train_qat
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --output=slurm_%x_%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=TERM@300
#
# Trains a recipe as a Slurm job, one task per GPU. Submit it from the repository's root, which all nodes must see under
# the same path:
#
#   sbatch [--nodes=4 ...] scripts/run_slurm.sh 2.2B [flags of train_qat]
#
# sbatch's own options replace those above; tasks per node must be GPUs per node. -resume is always given: the job starts
# afresh where there is no checkpoint and goes on where there is one, so it may be requeued, or submitted again when its
# time is over (--dependency=singleton does that in advance). Slurm asks the ranks to stop 300 seconds before the end of
# its time, and they leave a checkpoint. Flags replace the recipe's.
# Variables (sbatch passes them on):
#   MPI           none: ranks meet through a file in the directory of submission, no MPI needed (default);
#                 pmix, or what srun --mpi=list names: for a program built with that MPI
#   NCCL_SOCKET_IFNAME, NCCL_IB_HCA, NCCL_DEBUG    for NCCL, see scripts/run_multi_node.sh
#   DATA, OUT, PROGRAM    as in scripts/run_single_node.sh
#   DRY_RUN       1: only prints the command; works without Slurm
# Exit status 2 with one line for errors of use; otherwise that of srun.
set -euo pipefail
# Slurm runs a copy of this file from elsewhere.
cd "${SLURM_SUBMIT_DIR:-$(dirname "${BASH_SOURCE[0]}")/..}"
[[ -e scripts/recipes/launch.sh ]] || {
    echo "run_slurm.sh: error: submit this from the repository's root, not from $PWD" >&2
    exit 2
}
source scripts/recipes/launch.sh

[[ $# -ge 1 ]] || fail "name a recipe: sbatch scripts/run_slurm.sh 2.2B [flags]"
[[ $DRY_RUN == 1 || -n ${SLURM_JOB_ID:-} ]] || fail "this is no Slurm job: submit it with sbatch, or set DRY_RUN=1"
MPI=${MPI:-none}
has_flag -resume "$@" || set -- "$@" -resume
if [[ $MPI == none ]]; then
    # A path for every start of every job: ranks of different starts must not meet.
    set -- "$@" -rendezvous "$PWD/rendezvous_${SLURM_JOB_ID:-0}_${SLURM_RESTART_COUNT:-0}"
fi
compose "$@"
# All tasks of a node see all of its GPUs and choose by their local rank: NCCL connects GPUs directly only so.
run srun --mpi="$MPI" --kill-on-bad-exit=1 --gpu-bind=none --cpus-per-task="${SLURM_CPUS_PER_TASK:-8}" --cpu-bind=cores \
    "${command[@]}"
