#!/usr/bin/env bash
# Everything about the CUDA backend that only a GPU can tell, in one go: builds for this machine's card, runs the tests on
# it, the kernel benchmarks (dev/cuda), a training run against the same on the CPU and on several GPUs, the speed of a 124M
# model, and the compute sanitizer. Ends with one table. Needs no network when the packages are there.
#
#   dev/gpu_check.sh [STEP...]          some of: emulated sass build tests benchmarks training ranks speed sanitizer
#   dev/gpu_check.sh --bundle [DIRECTORY] [STEP...]      with the programs of `make bundle`, without compiling: this bundle's
#                                                        when it lies in one, else those of out/bundle
#
# Exit status: 0 all passed, 1 something failed, 2 it could not run, 3 no CUDA device: then the benchmarks' kernels were
# checked on the emulated device, which is as far as one gets without. Logs and runs are kept in out/gpu_check, _2 ...
# The variables below can be set in the environment.
set -euo pipefail

BUILD=${BUILD:-build_gpu}
JOBS=${JOBS:-$(nproc)}
CMAKE_FLAGS=${CMAKE_FLAGS:-}
DEPENDENCIES=${DEPENDENCIES:-install}
PYTHON=${PYTHON:-python3}
BENCHMARKS=${BENCHMARKS:-matmul fakequant_matmul attention rmsnorm swiglu cross_entropy adamw}
# Of Hopper's own instructions, on cards that have them.
HOPPER_BENCHMARKS=${HOPPER_BENCHMARKS:-hopper_matmul hopper_combined hopper_attention}

# The comparison of devices: this many steps in full precision and as many quantization-aware, then validation losses.
SIZE=${SIZE:-10M}
BITS=${BITS:-4}
STEPS=${STEPS:-50}
TOLERANCE=${TOLERANCE:-0.02}
# Sequences of 1024 tokens in a micro-batch of the 124M model.
SPEED_BATCH=${SPEED_BATCH:-16}
# The benchmarks' --check covers the other operations.
SANITIZER_TESTS=${SANITIZER_TESTS:-[embedding_forward],[embedding_backward],[rope_forward],[rope_backward],[swiglu_forward],[swiglu_backward],[ste_backward_and_norm],[sum]}
SANITIZER_SECONDS=${SANITIZER_SECONDS:-600}

# OpenMP threads that wait soon go to sleep: on a shared machine spinning ones would slow everything down.
export GOMP_SPINCOUNT=${GOMP_SPINCOUNT:-20000}
failed=0
table=()

fail() {
    echo "gpu_check.sh: error: $*" >&2
    exit 2
}

title() {
    printf '\n==> [%dm%02ds] %s\n' $((SECONDS / 60)) $((SECONDS % 60)) "$*"
}

# A row of the table. record NAME RESULT SECONDS
record() {
    table+=("$(printf '%-44s %8s  %s' "$1" "$3" "$2")")
}

log_of() {
    echo "$output/$(tr -cs 'a-z0-9\n' _ <<<"${1,,}").log"
}

# Runs a command as one row of the table, with its output on the console and in a log: step NAME COMMAND...
step() {
    local name=$1 begin=$SECONDS status=0 result=passed log
    shift
    log=$(log_of "$name")
    title "$name"
    "$@" 2>&1 | tee "$log" || status=$?
    [[ $status -eq 0 ]] || {
        result="FAILED, exit status $status; $log"
        failed=1
    }
    record "$name" "$result" $((SECONDS - begin))
    return $status
}

# Adds to the row before.
annotate() {
    table[-1]+=": $*"
}

print_table() {
    printf '\n%-44s %8s  %s\n' step seconds result
    printf '%s\n' "${table[@]}"
}

# ---- the machine

# The programs of a bundle, instead of a build: use_bundle DIRECTORY, its whole path
use_bundle() {
    BUILD=$1
    [[ -e $BUILD/VERSIONS && -x $BUILD/train_qat ]] ||
        fail "--bundle: $1 is no bundle: make bundle makes one, or unpack bundle.tar.xz"
    DEPENDENCIES=skip
    # shellcheck source=dev/bundle/env.sh
    source "$BUILD/env.sh" || fail "--bundle: the libraries of $BUILD are not complete"
}

find_device() {
    local smi
    smi=$(command -v nvidia-smi) || { echo "nvidia-smi is not installed"; return 1; }
    "$smi" --query-gpu=name,memory.total,driver_version --format=csv,noheader 2>&1
}

find_tool() {
    local directory
    command -v "$1" && return
    for directory in "${CUDA_HOME:-/usr/local/cuda}/bin" /usr/local/cuda/bin; do
        [[ -x $directory/$1 ]] && { echo "$directory/$1"; return; }
    done
    return 1
}

free_directory() {
    local directory=out/gpu_check number=2
    while [[ -e $directory ]]; do
        directory=out/gpu_check_$((number++))
    done
    echo "$directory"
}

# ---- steps

configure() {
    local cuda=(-DTRAIN_QAT_CUDA=ON -DTRAIN_QAT_CUDA_ARCHITECTURES=native)
    [[ $have_device == yes ]] || cuda=(-DTRAIN_QAT_CUDA=OFF)
    # shellcheck disable=SC2086  # several flags
    cmake -S . -B "$BUILD" "${cuda[@]}" $CMAKE_FLAGS
}

build() {
    cmake --build "$BUILD" --parallel "$JOBS" --target "$@"
}

emulated_checks() {
    local name
    [[ -n $bundle ]] || step "build for the emulated device" build train_qat_kernel_check || return 0
    for name in $BENCHMARKS $HOPPER_BENCHMARKS; do
        step "emulated: $name" "$BUILD/emulated_bench_$name" --check || true
    done
}

# What only machine code shows (dev/sass_check.py), where there is a compiler and a disassembler.
machine_code() {
    local reason=
    if [[ -n $bundle ]]; then
        reason="a bundle has no sources"
    elif ! find_tool nvcc >/dev/null; then
        reason="no nvcc"
    elif ! find_tool nvdisasm >/dev/null && ! find_tool cuobjdump >/dev/null; then
        reason="no nvdisasm and no cuobjdump"
    else
        step "machine code of Hopper's kernels" "$PYTHON" dev/sass_check.py || true
        return
    fi
    record "machine code of Hopper's kernels" "skipped: $reason" 0
}

# Of a benchmark's log the lines of the kernels that train, each as a row of the table.
kernels_of() {
    awk '
        / us +(GB|TFLOP)\/s +of limit/ { operation = $0; sub(/ +us .*/, "", operation); sub(/^ +/, "", operation) }
        /^ *[0-9]+ .*(\.cu|cuBLASLt|fused, packed codes|hopper_attention|128 x 256, 4 stages|one kernel) .*%/ {
            name = substr($0, 5, 58); sub(/ +$/, "", name)
            split(substr($0, 63), number)
            printf "    %-70s %10s us  %7s of the limit\n", operation ": " name, number[1], number[3]
        }' "$1"
}

# label, NAME of bench_cuda_NAME, its options
benchmark() {
    local rows
    step "benchmark: $1" "$BUILD/bench_cuda_$2" "${@:3}" || true
    mapfile -t rows < <(kernels_of "$(log_of "benchmark: $1")")
    table+=("${rows[@]}")
}

is_hopper() {
    [[ $(nvidia-smi --query-gpu=compute_cap --format=csv,noheader) == 9.0* ]]
}

benchmarks() {
    local name
    for name in $BENCHMARKS; do
        benchmark "$name" "$name"
        if [ "$name" = attention ]; then
            benchmark "attention, heads of 32" attention --head_dim 32 --heads 24 --kv_heads 24
            benchmark "attention, heads of 96" attention --head_dim 96 --heads 8 --kv_heads 8
        elif [ "$name" = fakequant_matmul ]; then
            benchmark "fakequant_matmul, few rows" fakequant_matmul --rows 64
        fi
    done
    is_hopper || return 0
    for name in $HOPPER_BENCHMARKS; do
        benchmark "$name" "$name"
    done
}

# Shards of a chain of tokens in which four of five follow from the one before: prefix vocabulary tokens
write_shards() {
    "$PYTHON" dev/bench/chain_shards.py "$@"
}

# train DIRECTORY SHARDS OPTIONS...; with the words of the array `launcher` before the program
launcher=()
train() {
    local directory=$1 shards=$2
    shift 2
    "${launcher[@]}" "$BUILD/train_qat" -o "$directory" -i "${shards}_train_*.bin" -j "${shards}_val_*.bin" \
        -b "$BITS" -qat_frac 0.5 -print_every 10 -val_every 0 "$@"
}

# Numbers of run.json's results, one a line: results DIRECTORY NAME...
results() {
    "$PYTHON" -c 'import json, sys
record = json.load(open(sys.argv[1] + "/run.json"))["results"]
print(*(record[name] for name in sys.argv[2:]), sep="\n")' "$@"
}

# Losses of two runs, the first of which is right, one row each; exit status 1 when one is too far off.
# compare_losses DIRECTORY DIRECTORY
compare_losses() {
    "$PYTHON" - "$TOLERANCE" "$@" <<'PYTHON'
import json
import os
import sys

tolerance = float(sys.argv[1])
first, second = (os.path.basename(directory) for directory in sys.argv[2:])
right, tested = (json.load(open(directory + "/run.json"))["results"] for directory in sys.argv[2:])
largest = 0.0
for name in "full_precision_at_switch", "rounded_at_switch", "quantized":
    distance = abs(tested[name] - right[name]) / right[name]
    largest = max(largest, distance if distance == distance else 1e9)
    print(f"{name:28} {first} {right[name]:8.4f}  {second} {tested[name]:8.4f}  apart {100 * distance:6.2f}%")
print(f"largest distance {100 * largest:.2f}%, allowed {100 * tolerance:.0f}%")
sys.exit(largest > tolerance)
PYTHON
}

training() {
    local shards=$output/chain_512 run="-n $SIZE -steps $((2 * STEPS)) -seq_len 256 -batch 8 -lr 2e-3 -seed 1"
    step "shards for the comparison" write_shards "$shards" 512 400000 || return 0
    # shellcheck disable=SC2086
    step "train $SIZE on the CPU" train "$output/cpu" "$shards" $run -device cpu || return 0
    # shellcheck disable=SC2086
    step "train $SIZE on the GPU" train "$output/cuda" "$shards" $run -device cuda || return 0
    step "losses of both" compare_losses "$output/cpu" "$output/cuda" || true
    annotate "$(tail -n 1 "$(log_of "losses of both")")"
}

# Two ranks that no MPI starts or connects, on the first two GPUs. The arguments are those of train.
train_by_variables() {
    local rank status=0 ranks=()
    for rank in 0 1; do
        RANK=$rank WORLD_SIZE=2 LOCAL_RANK=$rank LOCAL_WORLD_SIZE=2 train "$@" -rendezvous "$output/rendezvous" &
        ranks+=($!)
    done
    for rank in "${ranks[@]}"; do
        wait "$rank" || status=$?
    done
    return "$status"
}

train_by_mpirun() {
    local launcher=(mpirun -np 2 --bind-to none)
    train "$@"
}

# The same total batch on one GPU and on two; sums of gradients then differ by their rounding only.
ranks() {
    local shards=$output/chain_512 run="-n $SIZE -steps $((2 * STEPS)) -seq_len 256 -total_batch 8 -lr 2e-3 -seed 1"
    local gpus
    gpus=$(nvidia-smi -L | grep -c '^GPU ') || gpus=0
    if [[ $gpus -lt 2 ]]; then
        record "ranks" "skipped: one GPU only, and every rank needs one of its own" 0
        return
    fi
    run+=" -device cuda"
    [[ -e ${shards}_train_000000.bin ]] || step "shards for the ranks" write_shards "$shards" 512 400000 || return 0
    # shellcheck disable=SC2086
    step "train $SIZE on one GPU" train "$output/one_gpu" "$shards" $run -batch 4 || return 0
    # shellcheck disable=SC2086
    if step "train $SIZE on two GPUs, without MPI" train_by_variables "$output/by_file" "$shards" $run -batch 4; then
        step "losses of one and two GPUs, without MPI" compare_losses "$output/one_gpu" "$output/by_file" || true
    fi
    if [[ -n $bundle ]]; then
        record "ranks by mpirun" "skipped: a bundle is built without MPI" 0
        return
    fi
    if ! command -v mpirun >/dev/null; then
        record "ranks by mpirun" "mpirun is not installed, skipped" 0
        return
    fi
    # Open MPI asks those who are root, as in containers, whether they mean it.
    export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
    if step "build the test of ranks" build train_qat_rank_test; then
        [[ $gpus -le 4 ]] || gpus=4
        step "test of $gpus ranks" env TRAIN_QAT_TEST_DEVICES=gpu mpirun -np "$gpus" --bind-to none \
            "$BUILD/train_qat_rank_test" || true
    fi
    # shellcheck disable=SC2086
    step "train $SIZE on two GPUs" train_by_mpirun "$output/two_gpus" "$shards" $run -batch 4 || return 0
    step "losses of one and two GPUs" compare_losses "$output/one_gpu" "$output/two_gpus" || true
    annotate "$(tail -n 1 "$(log_of "losses of one and two GPUs")")"
}

# Tokens/s of both phases, and what their last console lines say of the MFU: speed_of DIRECTORY LOG
speed_of() {
    local numbers fp qat
    mapfile -t numbers < <(results "$1" tokens_per_second_fp tokens_per_second_qat)
    fp=$(sed -n 's/.* FP .*\(MFU [0-9.]*%\).*/\1/p' "$2" | tail -n 1)
    qat=$(sed -n 's/.* QAT .*\(MFU [0-9.]*%\).*/\1/p' "$2" | tail -n 1)
    printf '%.0f tokens/s, %s; QAT %.0f tokens/s, %s' "${numbers[0]}" "$fp" "${numbers[1]}" "$qat"
}

speed() {
    local shards=$output/chain_50304 gemm name gemms="fused cublaslt" kernels
    local shape="-layers 12 -width 768 -heads 12 -ffn 2048 -seq_len 1024 -batch $SPEED_BATCH -steps 60"
    step "shards for the speed" write_shards "$shards" 50304 1200000 || return 0
    ! is_hopper || gemms+=" hopper"
    for gemm in $gemms; do
        # With fused matmuls of Hopper all other kernels are Hopper's too.
        kernels="-qat_gemm $gemm"
        [[ $gemm != hopper ]] || kernels+=" -gemm hopper -attention hopper"
        name="speed of 124M, qat_gemm $gemm"
        # shellcheck disable=SC2086
        step "$name" train "$output/speed_$gemm" "$shards" $shape -val_sequences 16 -device cuda $kernels || continue
        annotate "$(speed_of "$output/speed_$gemm" "$(log_of "$name")")"
        rm -rf "$output/speed_$gemm"/step_*  # checkpoints of gigabytes that nobody needs
    done
}

sanitizer() {
    local tool name program
    program=$(find_tool compute-sanitizer) || {
        record "compute-sanitizer" "not installed, skipped" 0
        return
    }
    for tool in memcheck racecheck; do
        for name in $BENCHMARKS $(! is_hopper || echo "$HOPPER_BENCHMARKS"); do
            step "$tool: $name" timeout "$SANITIZER_SECONDS" "$program" --tool "$tool" --error-exitcode 1 \
                "$BUILD/bench_cuda_$name" --check || true
        done
        step "$tool: tests of the other kernels" env TRAIN_QAT_TEST_DEVICES=gpu timeout "$SANITIZER_SECONDS" "$program" \
            --tool "$tool" --error-exitcode 1 "$BUILD/train_qat_kernel_test" "$SANITIZER_TESTS" || true
    done
}

# ---- all of it

wanted() {
    [[ " $chosen " == *" $1 "* ]]
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
all="emulated sass build tests benchmarks training ranks speed sanitizer"
bundle=
if [[ ${1:-} == --bundle ]]; then
    shift
    bundle=$root
    [[ -e $root/VERSIONS ]] || bundle=$root/out/bundle
    if [[ $# -gt 0 && " $all " != *" $1 "* ]]; then
        bundle=$(readlink -m "$1")
        shift
    fi
fi
chosen=${*:-$all}
for name in $chosen; do
    [[ " $all " == *" $name "* ]] || fail "unknown step '$name': some of $all"
done
[[ -z $bundle ]] || use_bundle "$bundle"
cd "$root"
have_device=no
device=$(find_device) && have_device=yes
output=$(free_directory)
mkdir -p "$output"

title "dependencies"
[[ $DEPENDENCIES == skip ]] || scripts/install_dependencies.sh build
title "device: $device"
if [[ -n $bundle ]]; then
    [[ $have_device == no || -e $BUILD/bench_cuda_matmul ]] || fail "there is a GPU, but $BUILD is a bundle for CPUs"
    record "build" "skipped: the programs of $BUILD, commit $(sed -n 's/^commit //p' "$BUILD/VERSIONS")" 0
else
    [[ $have_device == no ]] || find_tool nvcc >/dev/null || fail "there is a GPU, but no nvcc: install the CUDA toolkit," \
        "or run a bundle that was made elsewhere (make bundle; dev/gpu_check.sh --bundle)"
    step "configure" configure || { print_table; exit 1; }
fi
if wanted emulated; then emulated_checks; fi
if wanted sass; then machine_code; fi
if [[ $have_device == no ]]; then
    print_table
    [[ $failed -eq 0 ]] || exit 1
    echo "gpu_check.sh: no CUDA device: ${device%%$'\n'*}; everything else needs one" >&2
    exit 3
fi
if [[ -z $bundle ]] && wanted build; then
    step "build for this GPU" build train_qat train_qat_test train_qat_kernel_test train_qat_kernel_benchmarks ||
        { print_table; exit 1; }
fi
if wanted tests; then step "tests on this GPU" env TRAIN_QAT_TEST_DEVICES=gpu "$BUILD/train_qat_test" || true; fi
if wanted benchmarks; then benchmarks; fi
if wanted training; then training; fi
if wanted ranks; then ranks; fi
if wanted speed; then speed; fi
if wanted sanitizer; then sanitizer; fi
print_table
exit $failed
