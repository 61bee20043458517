# Finds the CUDA libraries that the programs of this bundle need, and puts their folders into LD_LIBRARY_PATH. For bash:
#
#   source env.sh
#
# Looked for in LD_LIBRARY_PATH, where the system's loader looks, in toolkits (CUDA_HOME, CUDA_PATH, /usr/local/cuda*,
# /opt/cuda*, nvcc's), and in what comes with the PyTorch of PYTHON (python3). One line says where each one was found;
# returns 1 where one is missing, or where the C library is too old.
# shellcheck shell=bash

# Folders that may hold CUDA libraries, one a line.
train_qat_cuda_folders() {
    local directory nvcc
    nvcc=$(command -v nvcc) && nvcc=$(dirname "$(dirname "$(readlink -f "$nvcc")")")
    for directory in "${CUDA_HOME:-}" "${CUDA_PATH:-}" "$nvcc" /usr/local/cuda /usr/local/cuda-* /opt/cuda /opt/cuda-*; do
        [[ ! -d $directory ]] || printf '%s\n' "$directory"/{lib64,lib,targets/x86_64-linux/lib}
    done
    # Without importing PyTorch, which takes seconds.
    "${PYTHON:-python3}" -c '
import glob, importlib.util
for package, folders in ("nvidia", "*/lib"), ("torch", "lib"):
    spec = importlib.util.find_spec(package)
    for place in (spec.submodule_search_locations or []) if spec else []:
        print(*sorted(glob.glob(f"{place}/{folders}")), sep="\n")' 2>/dev/null
}

# The folder of a library, and whether it must be added to LD_LIBRARY_PATH: train_qat_find NAME
train_qat_find() {
    local folder folders
    IFS=: read -r -a folders <<<"${LD_LIBRARY_PATH:-}"
    for folder in "${folders[@]}"; do
        [[ ! -e $folder/$1 ]] || { echo "$folder there"; return; }
    done
    folder=$(PATH=$PATH:/sbin:/usr/sbin ldconfig -p 2>/dev/null | awk -v name="$1" '$1 == name && /x86-64/ { print $NF; exit }')
    [[ -z $folder ]] || { echo "$(dirname "$folder") there"; return; }
    while read -r folder; do
        [[ ! -e $folder/$1 ]] || { echo "$folder add"; return; }
    done < <(train_qat_cuda_folders)
    return 1
}

# Whether this machine's C library has a version: train_qat_glibc_has VERSION
train_qat_glibc_has() {
    local here
    here=$(getconf GNU_LIBC_VERSION | cut -d' ' -f2)
    [[ $(printf '%s\n' "$1" "$here" | sort -V | tail -n 1) == "$here" ]]
}

# Where the machine is older than the bundle's libstdc++ and libgcc_s, its own do if they are new enough. They are loaded
# first, as the programs would else take those in lib/.
train_qat_compiler_libraries() {
    local wanted asks name path paths=()
    wanted=$(sed -n 's/^libstdc++ \([0-9.]*\);.*/\1/p' "$1/VERSIONS")
    asks=$(sed -n 's/^libstdc++ .* glibc //p' "$1/VERSIONS")
    ! train_qat_glibc_has "$asks" || return 0
    for name in libstdc++.so.6 libgcc_s.so.1; do
        path=$(PATH=$PATH:/sbin:/usr/sbin ldconfig -p | awk -v name="$name" '$1 == name && /x86-64/ { print $NF; exit }')
        paths+=("$path")
    done
    if ! grep -q "GLIBCXX_$wanted" "${paths[0]:-/dev/null}"; then
        echo "env.sh: error: the programs need a libstdc++ with GLIBCXX_$wanted, that in lib/ asks for glibc $asks, and this" \
             "machine's is older: build the bundle on a machine as old as this one" >&2
        return 1
    fi
    [[ ${LD_PRELOAD:-} == *"${paths[0]}"* ]] || export LD_PRELOAD=${paths[0]}:${paths[1]}${LD_PRELOAD:+:$LD_PRELOAD}
    echo "env.sh: ${paths[0]} and libgcc_s of this machine, as those in lib/ ask for glibc $asks (LD_PRELOAD)"
}

train_qat_environment() {
    local root name place need status=0
    root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
    need=$(sed -n 's/^glibc //p' "$root/VERSIONS")
    if ! train_qat_glibc_has "$need"; then
        echo "env.sh: error: the bundle needs glibc $need, here is $(getconf GNU_LIBC_VERSION): build it on a machine as old as" \
             "this one" >&2
        return 1
    fi
    train_qat_compiler_libraries "$root" || status=1
    while read -r name; do
        if place=$(train_qat_find "$name"); then
            echo "env.sh: $name in ${place% *}"
            [[ $place == *" there" ]] || export LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}${place% *}
        else
            echo "env.sh: error: $name is nowhere: set CUDA_HOME or LD_LIBRARY_PATH to where it is, or PYTHON to a Python" \
                 "whose PyTorch is built with the same CUDA" >&2
            status=1
        fi
    done <"$root/cuda_libraries.txt"
    [[ -s $root/cuda_libraries.txt ]] || echo "env.sh: a bundle for CPUs needs no CUDA libraries"
    return $status
}

train_qat_environment
