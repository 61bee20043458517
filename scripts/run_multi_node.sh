#!/usr/bin/env bash
# Trains a recipe on several machines by mpirun over ssh, one rank per GPU. With Slurm: scripts/run_slurm.sh.
#
#   HOSTS=node1,node2 scripts/run_multi_node.sh 759M [flags of train_qat]
#   HOSTFILE=hosts.txt scripts/run_multi_node.sh 759M        one machine a line: node1 slots=8
#
# All machines need the same program and data under the same path (a shared file system), the same number of GPUs, and
# ssh without a password from here. Flags replace the recipe's; the same command with -resume goes on.
# Variables:
#   HOSTS or HOSTFILE    the machines
#   GPUS          per machine (all that nvidia-smi lists here, else 8)
#   NCCL_...      are passed on to all ranks, as are PATH, LD_LIBRARY_PATH and OMP_NUM_THREADS. Where NCCL does not
#                 connect:
#                   NCCL_SOCKET_IFNAME=eth0    the interface that all machines share (ip -brief address lists them)
#                   NCCL_IB_HCA=mlx5           the InfiniBand cards; NCCL_IB_DISABLE=1 goes without
#                   NCCL_DEBUG=INFO            what it chose, and why
#   MPI_INTERFACE the interface for mpirun itself (Open MPI), such as eth0
#   DATA, OUT, BIND, CORES, MPIRUN, MPIRUN_FLAGS, PROGRAM    as in scripts/run_single_node.sh
#   DRY_RUN       1: only prints the command
# Exit status 2 with one line for errors of use; otherwise that of the command.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/recipes/launch.sh

[[ $# -ge 1 ]] || fail "name a recipe: HOSTS=node1,node2 scripts/run_multi_node.sh 759M [flags]"
GPUS=${GPUS:-$(count_gpus 8)}
require_number GPUS "$GPUS"
[[ -n ${HOSTS:-} || -n ${HOSTFILE:-} ]] || fail "set HOSTS=node1,node2 or HOSTFILE=hosts.txt"
[[ -z ${HOSTS:-} || -z ${HOSTFILE:-} ]] || fail "set HOSTS or HOSTFILE, not both"
if [[ -n ${HOSTS:-} ]]; then
    IFS=, read -r -a hosts <<<"$HOSTS"
    machines=(-host "$(printf "%s:$GPUS," "${hosts[@]}" | sed 's/,$//')")
    nodes=${#hosts[@]}
else
    [[ -r $HOSTFILE ]] || fail "HOSTFILE: cannot read '$HOSTFILE'"
    machines=(-hostfile "$HOSTFILE")
    nodes=$(grep -cE '^[[:space:]]*[^#[:space:]]' "$HOSTFILE") || fail "HOSTFILE: there is no machine in '$HOSTFILE'"
fi
compose "$@"
place_ranks
exports=()
for name in PATH LD_LIBRARY_PATH OMP_NUM_THREADS $(compgen -e NCCL_ || true); do
    [[ -z ${!name:-} ]] || exports+=(-x "$name")
done
[[ -z ${MPI_INTERFACE:-} ]] ||
    exports+=(--mca btl_tcp_if_include "$MPI_INTERFACE" --mca oob_tcp_if_include "$MPI_INTERFACE")
[[ $DRY_RUN == 1 ]] || command -v "$MPIRUN" >/dev/null || fail "there is no $MPIRUN: install openmpi-bin on all machines"
run_mpirun -np $((nodes * GPUS)) "${machines[@]}" "${placement[@]}" "${exports[@]}" "${command[@]}"
