#!/usr/bin/env bash
# The paper's main finding measured by this program: how the best fraction of quantization-aware training grows with the
# tokens per parameter byte. Fetches text, trains several hundred small models in sweeps, fits the laws and draws the plots.
#
#   scripts/reproduce.sh                 on CPU cores: about two hours on two of an AMD EPYC (Zen 5)
#   QUICK=1 scripts/reproduce.sh         within ten minutes: one size, two widths, a first look
#   SCALE=gpu scripts/reproduce.sh       1M to 16M parameters on this machine's GPU
#
# The same command goes on where it was interrupted. All parts append to one OUTPUT/results.jsonl, also those of another
# SCALE with the same OUTPUT. What came out of it: dev/results/scaling_law/.
set -euo pipefail

QUICK=${QUICK:-}
[[ $QUICK != 0 ]] || QUICK=
SCALE=${SCALE:-cpu}
VOCABULARY=1024
SEQUENCE_LENGTH=128
BATCH=32  # sequences of a step
PYTHON=${PYTHON:-/usr/bin/python3}  # Debian's packages belong to this one
DEPENDENCIES=${DEPENDENCIES:-install}
TEXT=data/cache/prose.jsonl
SHARDS=data/cache/prose_$VOCABULARY
OUTPUT=${OUTPUT:-out/reproduction${QUICK:+_quick}}
# One worker a core: models this small keep no more than one busy. A GPU trains one after the other.
case $SCALE in
    cpu) WORKERS=${WORKERS:-$(nproc)} DEVICE=(-device cpu -threads 1) ;;
    gpu) WORKERS=${WORKERS:-1} DEVICE=(-device cuda) ;;
    *) echo "reproduce.sh: error: SCALE must be cpu or gpu, is '$SCALE'" >&2; exit 2 ;;
esac
export GOMP_SPINCOUNT=${GOMP_SPINCOUNT:-20000}
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1

source "$(dirname "${BASH_SOURCE[0]}")/step.sh"

# Peak learning rates: of full precision tuned for 2.5M tokens up to 1M; of the quantization-aware range a quarter of those,
# which was tuned at 0.5M (dev/results/scaling_law.md). HIGH_RATE: what tuning at one fraction, of 0.25, had found.
declare -A FP_RATE=([0.25M]=6e-3 [0.5M]=4e-3 [1M]=3e-3 [2M]=3e-3 [4M]=2e-3 [8M]=2e-3 [16M]=1.5e-3)
declare -A QAT_RATE=([0.25M]=1.5e-3 [0.5M]=1e-3 [1M]=7.5e-4 [2M]=7.5e-4 [4M]=5e-4 [8M]=5e-4 [16M]=3.75e-4)
declare -A HIGH_RATE=([0.25M]=4e-3 [0.5M]=3e-3 [1M]=2e-3)

# On a GPU: layers, width and heads of 64, for which attention is many times as fast as for the size rule's 32.
declare -A GPU_SHAPE=([1M]="2 192 3" [2M]="2 256 4" [4M]="4 256 4" [8M]="6 320 5" [16M]="8 384 6")

# sweep NAME SIZE COOLDOWN JSON: one part; JSON holds the grid's axes but for the size.
sweep() {
    local name=$1 size=$2 cooldown=$3 axes="\"n\": \"$2\", $4" grid=$OUTPUT/grids/$1.json qat_rate=() shape=()
    if [[ $SCALE == gpu ]]; then
        read -ra shape <<<"${GPU_SHAPE[$size]}"
        shape=(-layers "${shape[0]}" -width "${shape[1]}" -heads "${shape[2]}")
        axes=$4
    fi
    # A fused run has one peak; with full precision only there is no second.
    [[ $cooldown == fused || $4 == *"$FULL_PRECISION"* ]] || qat_rate=(-qat_lr "${QAT_RATE[$size]}")
    mkdir -p "$OUTPUT/grids"
    echo "{$axes}" >"$grid"
    step "part $name"
    mpirun -np "$WORKERS" --bind-to none --oversubscribe ./train_qat -sweep "$grid" -o "$OUTPUT" "${DEVICE[@]}" "${shape[@]}" \
        -lr "${FP_RATE[$size]}" "${qat_rate[@]}" -cooldown "$cooldown" -warmup 100 -seq_len $SEQUENCE_LENGTH \
        -batch $BATCH -val_sequences 400 -sample_tokens 0 -print_every 1000 -i "${SHARDS}_train_*.bin" -j "${SHARDS}_val_*.bin"
}

# Fractions lie closer where the optimum is expected, and enclose it.
SHORT='"qat_frac": [0.03, 0.06, 0.1, 0.15, 0.22, 0.32, 0.5]'
MIDDLE='"qat_frac": [0.05, 0.1, 0.16, 0.24, 0.34, 0.48]'
LONG='"qat_frac": [0.05, 0.1, 0.16, 0.24, 0.34, 0.48, 0.68]'
FEW='"qat_frac": [0.1, 0.24, 0.48]'  # of MIDDLE
LOW='"b": [1, 1.58, 2, 3]'
ALL='"b": [1, 1.58, 2, 3, 4, 6]'
FULL_PRECISION='"b": 16'

quick_parts() {
    sweep short 0.25M classic "\"tokens\": \"1M\", \"b\": [1, 2], $SHORT"
    sweep long 0.25M classic "\"tokens\": \"3M\", \"b\": [1, 2], $LONG"
    sweep full 0.25M classic "\"tokens\": [\"1M\", \"3M\"], $FULL_PRECISION"
}

# The most telling parts first: what is there when it is interrupted is worth a fit.
cpu_parts() {
    local size
    for size in 0.5M 0.25M; do
        sweep "${size}_middle" $size classic "\"tokens\": \"4M\", $ALL, $MIDDLE, \"seed\": [1, 2]"
    done
    sweep 1M_middle 1M classic "\"tokens\": \"4M\", \"b\": [1, 1.58, 2, 3, 6], $MIDDLE, \"seed\": [1, 2]"
    for size in 0.25M 0.5M; do
        sweep "${size}_short" $size classic "\"tokens\": \"1.5M\", $LOW, $SHORT, \"seed\": [1, 2]"
        sweep "${size}_full" $size classic "\"tokens\": [\"1.5M\", \"4M\", \"10M\"], $FULL_PRECISION"
        sweep "${size}_fused" $size fused "\"tokens\": \"4M\", \"b\": [2, 3, 4, 6], $FEW, \"seed\": [1, 2]"
    done
    sweep 1M_full 1M classic "\"tokens\": \"4M\", $FULL_PRECISION"
    sweep 0.25M_long 0.25M classic "\"tokens\": \"10M\", $LOW, $LONG"
    sweep 0.5M_long 0.5M classic "\"tokens\": \"10M\", \"b\": [1, 2], $LONG"
    sweep 0.25M_longest 0.25M classic "\"tokens\": \"25M\", \"b\": [1, 2], $LONG"
    sweep 1M_long 1M classic "\"tokens\": \"10M\", \"b\": [1, 2], $LONG"
    high_rate_parts
    low_rate_part
}

# Cells of the same budgets at the higher quantization-aware rate, with a results.jsonl and a law of their own: how much f*
# depends on it.
high_rate_parts() {
    local OUTPUT=$OUTPUT/high_rate size
    for size in "${!HIGH_RATE[@]}"; do
        QAT_RATE[$size]=${HIGH_RATE[$size]}
    done
    for size in 0.25M 0.5M; do
        sweep "${size}_high_short" $size classic "\"tokens\": \"1.5M\", $LOW, $SHORT, \"seed\": [1, 2]"
        sweep "${size}_high_middle" $size classic "\"tokens\": \"4M\", $ALL, $LONG, \"seed\": [1, 2]"
    done
    sweep 1M_high_middle 1M classic "\"tokens\": \"4M\", $LOW, $LONG, \"seed\": [1, 2]"
}

# Whether a rate below a quarter would be better still, for the widths that want low ones.
low_rate_part() {
    local OUTPUT=$OUTPUT/low_rate
    QAT_RATE[0.5M]=3e-4
    sweep 0.5M_low_middle 0.5M classic "\"tokens\": \"4M\", \"b\": [3, 6], $LONG, \"seed\": 1"
}

gpu_parts() {
    local size
    for size in 1M 2M 4M 8M 16M; do
        sweep "gpu_${size}" $size classic "\"tokens\": [\"10M\", \"40M\", \"160M\"], $LOW, $LONG, \"seed\": [1, 2]"
        sweep "gpu_${size}_full" $size classic "\"tokens\": [\"10M\", \"40M\", \"160M\"], $FULL_PRECISION"
    done
}

cd "$(dirname "${BASH_SOURCE[0]}")/.."
step "dependencies"
[[ $DEPENDENCIES == skip ]] || scripts/install_dependencies.sh reproduce
step "build"
make --no-print-directory program $([[ $SCALE == gpu ]] || echo CUDA=0)
step "text: 80 MB of English prose"
"$PYTHON" data/prepare/prose_corpus.py "$TEXT"
step "tokens"
if [[ -e $SHARDS.json ]]; then
    echo "$SHARDS: already there"
else
    "$PYTHON" data/prepare.py "$TEXT" -o "$SHARDS" --vocab-size $VOCABULARY --val-fraction 0.01 --train-sample-mb 10 \
        --record '' --overwrite
fi
if [[ -n $QUICK ]]; then quick_parts; else "${SCALE}_parts"; fi

step "laws"
[[ -n $QUICK ]] && effort=(--starts 16 --bootstrap 60) || effort=()
fit() {  # DIRECTORY: the law and the plots of its results.jsonl
    "$PYTHON" scripts/scaling_law.py fit "$1/results.jsonl" -o "$1/law.json" --overwrite --plots "$1" "${effort[@]}"
}
if [[ -e $OUTPUT/high_rate/results.jsonl ]]; then
    fit "$OUTPUT/high_rate"
    step "law of the main parts"
fi
fit "$OUTPUT"
step "done"
