#!/usr/bin/env bash
# Installs the Debian or Ubuntu packages that are missing, and does nothing, without network, when none is.
#
#   scripts/install_dependencies.sh [--check] [build|quickstart|reproduce|test|clients|bench|all]
#
# --check only names what is missing. `a|b` below are two names of the same thing, or two ways to provide it: one is
# enough. Exit code 2 with one line of explanation where packages are missing and cannot be installed.
set -euo pipefail

build=(g++ cmake make 'pkg-config|pkgconf' libcli11-dev nlohmann-json3-dev
       libsentencepiece-dev libpcre2-dev libutf8proc-dev libxxhash-dev 'libopenmpi-dev|libmpich-dev' 'openmpi-bin|mpich' ca-certificates)
quickstart=(python3 python3-numpy python3-sentencepiece python3-matplotlib)
reproduce=(python3 python3-numpy python3-scipy python3-matplotlib python3-sentencepiece)
test=(catch2 python3 python3-numpy python3-scipy python3-matplotlib python3-sentencepiece python3-torch python3-xxhash
      'libdnnl-dev|libonednn-dev')
# Without a fast BLAS PyTorch would be compared at a fraction of its speed. The newest PyTorch goes into a virtual
# environment; its compiler needs Python's headers.
# oneDNN's products are compared with ours, nothing else asks for them.
bench=('libdnnl-dev|libonednn-dev' python3 python3-numpy python3-torch 'libopenblas0-openmp|libopenblas0-pthread' python3-venv python3-dev binutils)
# test/clients/: the rest is in its virtual environment.
clients=(python3 python3-venv python3-dev binutils)
# Fetched and unpacked, not installed, by data/prepare/*_corpus.py: apt only has to know one of each goal.
declare -A corpus_package=([quickstart]=r-cran-janeaustenr [reproduce]=dict-gcide)
declare -A corpus_file=([quickstart]=data/cache/austen/persuasion.txt [reproduce]=data/cache/prose.jsonl)

fail() {
    echo "install_dependencies.sh: error: $*" >&2
    exit 2
}

# grep without -q: with it the program before it could die of a closed pipe, which pipefail takes for a failure.
is_installed() {
    dpkg-query -W -f '${db:Status-Status}\n' "$1" 2>/dev/null | grep -x installed >/dev/null
}

is_available() {
    apt-cache show --no-all-versions "$1" 2>/dev/null | grep '^Package:' >/dev/null
}

# Prints the entries of the arguments of which no alternative is installed.
missing_of() {
    local entry name
    for entry in "$@"; do
        for name in ${entry//|/ }; do
            is_installed "$name" && continue 2
        done
        echo "$entry"
    done
}

# Prints the first alternative of each argument that apt knows.
choose() {
    local entry name
    for entry in "$@"; do
        for name in ${entry//|/ }; do
            if is_available "$name"; then
                echo "$name"
                continue 2
            fi
        done
        fail "apt knows no package ${entry//|/ or }: check the network connection and apt's sources (on Ubuntu the" \
             "component universe is needed)"
    done
}

run_as_root() {
    if [[ $EUID -eq 0 ]]; then
        "$@"
    else
        sudo "$@"
    fi
}

apt_get() {
    run_as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300 "$@" </dev/null
}

# One broken source among many should not be the end: what is then really missing is named by `choose`.
update_lists() {
    apt_get update || echo "install_dependencies.sh: warning: apt-get update failed; trying the package lists at hand" >&2
}

# For messages: the first name of each entry, on one line.
first_names() {
    echo "${@%%|*}"
}

# The packages of a goal, into the array `wanted`.
select_packages() {
    wanted=("${build[@]}")
    case $1 in
        build) ;;
        quickstart) wanted+=("${quickstart[@]}") ;;
        reproduce) wanted+=("${reproduce[@]}") ;;
        test) wanted+=("${test[@]}") ;;
        clients) wanted+=("${clients[@]}") ;;
        bench) wanted+=("${bench[@]}") ;;
        all) wanted+=("${quickstart[@]}" "${reproduce[@]}" "${test[@]}" "${clients[@]}" "${bench[@]}") ;;
        *) fail "unknown goal '$1': one of build, quickstart, reproduce, test, clients, bench, all" ;;
    esac
    mapfile -t wanted < <(printf '%s\n' "${wanted[@]}" | awk '!seen[$0]++')
}

check_only=no
if [[ ${1:-} == --check ]]; then
    check_only=yes
    shift
fi
goal=${1:-build}
cd "$(dirname "${BASH_SOURCE[0]}")/.."
select_packages "$goal"

{ command -v dpkg-query && command -v apt-get; } >/dev/null ||
    fail "this is no Debian or Ubuntu (no apt): install by hand what these packages hold, then pass" \
         "DEPENDENCIES=skip to make: $(first_names "${wanted[@]}")"

mapfile -t missing < <(missing_of "${wanted[@]}")
corpus_unknown=no
corpus=${corpus_package[$goal]:-}
if [[ -n $corpus && ! -e ${corpus_file[$goal]} ]] && ! is_available "$corpus"; then
    corpus_unknown=yes
fi

if [[ $check_only == yes ]]; then
    [[ ${#missing[@]} -eq 0 ]] ||
        fail "missing packages: $(first_names "${missing[@]}") (scripts/install_dependencies.sh $goal installs them)"
    exit 0
fi
[[ ${#missing[@]} -gt 0 || $corpus_unknown == yes ]] || exit 0
[[ $EUID -eq 0 ]] || command -v sudo >/dev/null ||
    fail "neither root nor sudo: have an administrator run apt-get update and install:" \
         "$(first_names "${missing[@]}")"

update_lists
if [[ $corpus_unknown == yes ]] && ! is_available "$corpus"; then
    fail "apt knows no package $corpus, which holds text for 'make $goal': check the network connection and" \
         "apt's sources (on Ubuntu the component universe is needed)"
fi
[[ ${#missing[@]} -gt 0 ]] || exit 0
chosen=$(choose "${missing[@]}") || exit 2
mapfile -t chosen <<<"$chosen"
echo "installing ${chosen[*]}"
apt_get install -y --no-install-recommends "${chosen[@]}" || fail "apt-get could not install: ${chosen[*]}"
