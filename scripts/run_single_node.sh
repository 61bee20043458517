#!/usr/bin/env bash
# Trains a recipe on the GPUs of this machine, one rank each.
#
#   scripts/run_single_node.sh 396M [flags of train_qat]     86M, 396M, 759M or 2.2B, see scripts/recipes
#
# Flags replace the recipe's: scripts/run_single_node.sh 396M -b 2 -tokens 40B. The same command with -resume goes on.
# Variables:
#   GPUS          ranks (all GPUs that nvidia-smi lists, else 1); 1 needs no mpirun
#   DATA, OUT     shards (data/cache/fineweb, prepared as scripts/recipes/launch.sh says) and output (out/396M)
#   BIND          none: ranks are not bound to cores; CORES: cores to divide among them
#   MPIRUN, MPIRUN_FLAGS, PROGRAM    other commands and flags
#   DRY_RUN       1: only prints the command
# Exit status 2 with one line for errors of use; otherwise that of the command.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/recipes/launch.sh

[[ $# -ge 1 ]] || fail "name a recipe: scripts/run_single_node.sh 396M [flags]"
GPUS=${GPUS:-$(count_gpus 1)}
require_number GPUS "$GPUS"
compose "$@"
[[ $GPUS -gt 1 ]] || run "${command[@]}"
place_ranks
[[ $DRY_RUN == 1 ]] || command -v "$MPIRUN" >/dev/null ||
    fail "there is no $MPIRUN: install openmpi-bin, or train on one GPU with GPUS=1"
run_mpirun -np "$GPUS" "${placement[@]}" "${command[@]}"
