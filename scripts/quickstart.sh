#!/usr/bin/env bash
# Text to quantized model in minutes, on a CPU: installs what is missing, builds, fetches six novels, trains a
# tokenizer on them, then the model, first in full precision and then quantization-aware, and plots the run.
#
#   scripts/quickstart.sh [BITS]        1, 1.58, 2, 3, 4 (default), 5, 6 or 8; also BITS=2 scripts/quickstart.sh
#
# Every run gets a directory of its own, out/quickstart_4bit, out/quickstart_4bit_2 ...: nothing is overwritten.
# It measures this machine's speed first and trains as long as fits into SECONDS_IN_ALL, which count from the start (but
# for packages that had to be installed). The variables below can be set in the environment.
set -euo pipefail

BITS=${1:-${BITS:-4}}

# Model and budget: about 5 million parameters, and FULL_STEPS * BATCH * SEQUENCE_LENGTH = 3.3 million tokens.
SIZE=${SIZE:-5M}
VOCABULARY=${VOCABULARY:-4096}
SEQUENCE_LENGTH=${SEQUENCE_LENGTH:-256}
BATCH=${BATCH:-8}
FULL_STEPS=1600
LEAST_STEPS=200
STEPS=${STEPS:-}  # empty: as many of FULL_STEPS as end in time, but at least LEAST_STEPS
SECONDS_IN_ALL=${SECONDS_IN_ALL:-240}
LEARNING_RATE=${LEARNING_RATE:-2e-3}
# Share of the tokens trained quantization-aware, or auto: the planner's law. Not auto here, because the law was fitted
# on runs of at least 20 tokens per parameter: for this run of less than one it would leave a single step.
QAT_FRAC=${QAT_FRAC:-0.2}
VALIDATE_EVERY=${VALIDATE_EVERY:-200}
PRINT_EVERY=${PRINT_EVERY:-20}
PROMPT=${PROMPT:-It was}

PYTHON=${PYTHON:-/usr/bin/python3}  # Debian's packages belong to this one
DEPENDENCIES=${DEPENDENCIES:-install}
CORPUS=data/cache/austen
SHARDS=data/cache/austen_$VOCABULARY
# OpenMP threads that wait soon go to sleep: on a shared machine spinning ones would slow everything down.
export GOMP_SPINCOUNT=${GOMP_SPINCOUNT:-20000}

fail() {
    echo "quickstart.sh: error: $*" >&2
    exit 2
}

source "$(dirname "${BASH_SOURCE[0]}")/step.sh"

prepare_shards() {
    local file
    for file in "$SHARDS".json "$SHARDS".model "$SHARDS"_train_000000.bin "$SHARDS"_val_000000.bin \
        data/cache/latest.json; do
        if [[ ! -e $file ]]; then
            # --overwrite: an incomplete set is what an interrupted run left in our own cache.
            "$PYTHON" data/prepare.py "$CORPUS" -o "$SHARDS" --vocab-size "$VOCABULARY" \
                --val-files "$CORPUS/persuasion.txt" --overwrite
            return
        fi
    done
    echo "$SHARDS: already there"
}

# out/quickstart_4bit, or the first of ..._2, ..._3 that is free.
free_directory() {
    local directory=out/quickstart_${BITS}bit number=2
    while [[ -e $directory ]]; do
        directory=out/quickstart_${BITS}bit_$((number++))
    done
    echo "$directory"
}

# train DIRECTORY STEPS [FLAGS...]
train() {
    local directory=$1 steps=$2
    shift 2
    ./train_qat -n "$SIZE" -b "$BITS" -qat_frac "$QAT_FRAC" -steps "$steps" -batch "$BATCH" \
        -seq_len "$SEQUENCE_LENGTH" -lr "$LEARNING_RATE" -i "${SHARDS}_train_*.bin" -j "${SHARDS}_val_*.bin" \
        -tokenizer "$SHARDS.model" -prompt "$PROMPT" -val_every "$VALIDATE_EVERY" -print_every "$PRINT_EVERY" \
        -o "$directory" "$@"
}

# Prints how many steps end within so many seconds, by the first ten of the very run in a directory that is thrown away.
measure_steps() {
    local begin=$SECONDS
    train "$scratch/run" "$FULL_STEPS" -until 10 >"$scratch/log" || fail "the first steps failed: $(tail -n 1 "$scratch/log")"
    scripts/choose_steps.sh "$scratch/run/metrics.jsonl" $((BATCH * SEQUENCE_LENGTH)) $(($1 - (SECONDS - begin))) \
        "$FULL_STEPS" "$LEAST_STEPS"
}

cd "$(dirname "${BASH_SOURCE[0]}")/.."
case $BITS in
    1 | 1.58 | 2 | 3 | 4 | 5 | 6 | 8) ;;
    *) fail "BITS must be 1, 1.58, 2, 3, 4, 5, 6 or 8, is '$BITS'" ;;
esac

step "dependencies"
[[ $DEPENDENCIES == skip ]] || scripts/install_dependencies.sh quickstart
deadline=$((SECONDS + SECONDS_IN_ALL))

step "build"
# Without a GPU nobody waits for CUDA kernels to compile; `make` adds them later.
nvidia-smi -L >/dev/null 2>&1 && CUDA=auto || CUDA=0
make --no-print-directory program CUDA=$CUDA

step "text: six novels by Jane Austen"
"$PYTHON" data/prepare/quickstart_corpus.py "$CORPUS"

step "tokens: five novels to train on, one to validate"
prepare_shards

if [[ -z $STEPS ]]; then
    step "speed of this machine"
    scratch=$(mktemp -d)
    trap 'end_children $$; rm -rf "$scratch"' EXIT
    # 10 seconds are for the plot and what surrounds the steps.
    STEPS=$(measure_steps $((deadline - SECONDS - 10)))
fi

output=$(free_directory)
step "training: $SIZE parameters, $BITS bits, $STEPS steps of $((BATCH * SEQUENCE_LENGTH)) tokens, into $output"
train "$output" "$STEPS"

step "plot"
"$PYTHON" scripts/plot_run.py "$output"

step "done"
echo "curves       $output/training.png"
echo "record       $output/run.json, $output/metrics.jsonl"
checkpoints=("$output"/step_*)
echo "checkpoint   ${checkpoints[-1]}"
