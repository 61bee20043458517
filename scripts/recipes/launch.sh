# What the three launchers share; sourced by them, from the repository's root. Needs bash 4.4.
#
# A recipe (scripts/recipes/SIZE.sh) fills the array `recipe` with flags of train_qat, each followed by its value.

# The data: SHARDS_train_*.bin, SHARDS_val_*.bin and SHARDS.model as data/prepare.py writes them. FineWeb or DCLM, where
# Hugging Face can be reached (pip install datasets); sample-10BT has 10 billion tokens of GPT-2, sample-100BT ten times
# as many, and two bytes a token come onto the disk:
#   /usr/bin/python3 data/prepare.py --hf-dataset HuggingFaceFW/fineweb --hf-config sample-10BT -o data/cache/fineweb \
#       --vocab-size 32000 --train-sample-mb 500 --val-fraction 0.001
#   /usr/bin/python3 data/prepare.py --hf-dataset mlfoundations/dclm-baseline-1.0 --max-documents 40000000 \
#       -o data/cache/dclm --vocab-size 32000 --train-sample-mb 500 --val-fraction 0.001
DATA=${DATA:-data/cache/fineweb}
PROGRAM=${PROGRAM:-./train_qat}
DRY_RUN=${DRY_RUN:-0}
MPIRUN=${MPIRUN:-mpirun}

fail() {
    echo "$(basename "$0"): error: $*" >&2
    exit 2
}

require_number() {
    [[ $2 =~ ^[1-9][0-9]*$ ]] || fail "$1 must be a number from 1 on, is '$2'"
}

# The GPUs that CUDA_VISIBLE_DEVICES names or nvidia-smi lists here, or the argument where there are none.
count_gpus() {
    local count=0
    if [[ -n ${CUDA_VISIBLE_DEVICES:-} ]]; then
        count=$(tr ',' '\n' <<<"$CUDA_VISIBLE_DEVICES" | grep -c .)
    elif command -v nvidia-smi >/dev/null; then
        count=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU ' || true)
    fi
    [[ $count -gt 0 ]] && echo "$count" || echo "$1"
}

# Cores of this machine without their hyperthreads, as far as this process may use them.
count_cores() {
    local cores usable
    usable=$(nproc)
    cores=$(lscpu -p=core,socket 2>/dev/null | grep -v '^#' | sort -u | wc -l) || cores=0
    [[ $cores -gt 0 && $cores -lt $usable ]] && echo "$cores" || echo "$usable"
}

# True when a flag stands among the arguments, in any of its spellings: has_flag -lr ARGUMENT...
has_flag() {
    local name=${1#-} argument
    shift
    for argument in "$@"; do
        [[ $argument =~ ^--?$name(=.*)?$ ]] && return
    done
    return 1
}

# The whole command of the program, into the array `command`: the recipe's flags, data and output, then the arguments,
# which replace flags of the same name. compose RECIPE FLAGS...
compose() {
    local name=$1 flag index
    shift
    local file=scripts/recipes/$name.sh
    [[ $name =~ ^[0-9.]+[MB]$ && -e $file ]] ||
        fail "there is no recipe '$name'; those in scripts/recipes are 86M, 396M, 759M and 2.2B"
    local recipe=()
    # shellcheck source=scripts/recipes/396M.sh
    source "$file"
    recipe+=(-n "$name" -i "${DATA}_train_*.bin" -j "${DATA}_val_*.bin" -o "${OUT:-out/$name}")
    [[ ! -e $DATA.model ]] || recipe+=(-tokenizer "$DATA.model")
    command=("$PROGRAM")
    for ((index = 0; index < ${#recipe[@]}; index += 2)); do
        flag=${recipe[index]}
        case $flag in  # two ways to say the same
            -tokens) ! has_flag -steps "$@" || continue ;;
            -total_batch) ! has_flag -grad_accum "$@" || continue ;;
        esac
        has_flag "$flag" "$@" || command+=("$flag" "${recipe[index + 1]}")
    done
    command+=("$@")
    [[ $DRY_RUN == 1 ]] && return
    [[ -x $PROGRAM ]] || fail "there is no $PROGRAM: build it with make, or set PROGRAM"
    has_flag -i "$@" || compgen -G "${DATA}_train_*.bin" >/dev/null ||
        fail "no shards ${DATA}_train_*.bin: prepare them as scripts/recipes/launch.sh says, or set DATA or -i"
}

# Runs the arguments in place of this shell, or prints them: run COMMAND...
run() {
    if [[ $DRY_RUN == 1 ]]; then
        local words
        printf -v words '%q ' "$@"
        echo "${words% }"
        exit 0
    fi
    echo "+ $*"
    exec "$@"
}

# Runs mpirun with the arguments, or prints the command. Ctrl-C and TERM stop the training after its present step, with a
# checkpoint: mpirun itself would leave the ranks a second, so it gets USR1, which it passes on, and hears of the others
# only the second time. run_mpirun ARGUMENTS...
run_mpirun() {
    [[ $DRY_RUN != 1 ]] || run "$MPIRUN" "$@"
    echo "+ $MPIRUN $*"
    set -m  # a process group of its own, which the terminal does not interrupt
    "$MPIRUN" "$@" &
    local job=$! status=0
    trap 'trap "kill -TERM $job" INT TERM; echo "stopping after this step ..." >&2; kill -USR1 '$job INT TERM
    while wait "$job" || status=$?; kill -0 "$job" 2>/dev/null; do
        status=0
    done
    exit "$status"
}

# mpirun's flags for GPUS ranks on every machine, into the array `placement`: each rank gets its share of the cores, in
# the order of the ranks, as GPUs mostly lie. MPIRUN_FLAGS replaces these flags, which are Open MPI's; BIND=none leaves
# ranks where the system puts them.
# shellcheck disable=SC2034  # the launchers use it
place_ranks() {
    local cores
    if [[ -n ${MPIRUN_FLAGS:-} ]]; then
        read -r -a placement <<<"$MPIRUN_FLAGS"
        return
    fi
    cores=$((${CORES:-$(count_cores)} / GPUS))
    placement=(--map-by "ppr:$GPUS:node" --bind-to none)
    if [[ ${BIND:-core} != none && $cores -ge 1 ]]; then
        placement=(--map-by "ppr:$GPUS:node:PE=$cores" --bind-to core)
    fi
}
