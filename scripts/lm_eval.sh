#!/bin/sh
# lm-evaluation-harness, on the CPU, of a folder that scripts/export.py --to hf has written:
#
#   scripts/lm_eval.sh out/mine_hf arc_easy hellaswag        tasks of the harness, whose data come from the Hugging Face hub
#   TASKS=folder scripts/lm_eval.sh out/mine_hf mine         tasks of your own: YAML files in that folder
#   OUT=out/mine_lm_eval LIMIT=100 scripts/lm_eval.sh out/mine_hf arc_easy    a directory for the results; examples of a task
#
# Its first use makes a virtual environment, out/lm_eval, of the versions in scripts/lm_eval_requirements.txt and PyTorch without
# its CUDA libraries: 0.8 GB from PyPI. ENVIRONMENT names another place, PYTHON the Python that makes it.
set -eu

fail() {
    echo "lm_eval.sh: error: $*" >&2
    exit 2
}

root=$(dirname "$(dirname "$(realpath "$0")")")
environment=${ENVIRONMENT:-$root/out/lm_eval}
[ $# -ge 1 ] || fail "name a folder of scripts/export.py --to hf, and tasks (arc_easy hellaswag piqa winogrande)"
folder=$1
shift
[ -f "$folder/config.json" ] || fail "$folder: holds no config.json; make it with scripts/export.py --to hf"
ls "$folder" | grep -q '^tokenizer' || fail "$folder: holds no tokenizer; export it with --tokenizer"
[ -z "${OUT:-}" ] || [ ! -e "$OUT" ] || fail "OUT=$OUT: is there already; name a new directory"
[ $# -gt 0 ] || set -- arc_easy hellaswag piqa winogrande
tasks=$(echo "$*" | tr ' ' ',')

python=$("${PYTHON:-/usr/bin/python3}" "$root/dev/bench/newest_torch.py" "$environment" "$root/scripts/lm_eval_requirements.txt")
# add_bos_token: texts begin as the tokenizer begins them, which is how training had them.
exec "$python" -m lm_eval run --model hf --model_args "pretrained=$folder,dtype=float32,add_bos_token=True" --device cpu \
    --batch_size "${BATCH:-8}" --tasks "$tasks" ${TASKS:+--include_path "$TASKS"} ${LIMIT:+--limit "$LIMIT"} ${OUT:+--output_path "$OUT"}
