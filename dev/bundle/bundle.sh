#!/usr/bin/env bash
# make bundle: the programs and the libraries that they need, but for the C library's and CUDA's, in one folder to carry to a
# machine on which nothing is installed: out/bundle, and out/bundle.tar.xz.
#
# The variables below can be set in the environment. Exit status 2, and a line that says why, where something is missing.
set -euo pipefail

BUILD=${BUILD:-build/bundle}
JOBS=${JOBS:-$(nproc)}
DEPENDENCIES=${DEPENDENCIES:-install}
OUTPUT=${OUTPUT:-out/bundle}
# 0: for CPUs only.
BUNDLE_CUDA=${BUNDLE_CUDA:-1}
BUNDLE_ARCHITECTURES=${BUNDLE_ARCHITECTURES:-80-real;90-real;100-real;120}
# Some programs instead of all: train_qat alone is a bundle to train with.
BUNDLE_PROGRAMS=${BUNDLE_PROGRAMS:-}
CMAKE_FLAGS=${CMAKE_FLAGS:-}

# What gpu_check.sh, bench_gpu.py and the parity tests need, at the same places as here.
FILES="LICENSE dev/gpu_check.sh kernels/cuda/platform/data_sheet.h data/prepare/shard_files.py data/prepare/locks.py
    data/prepare/mistakes.py data/prepare/outputs.py data/prepare/stopping.py
    dev/bench/bench_gpu.py dev/bench/bench_pytorch_eager.py dev/bench/chain_shards.py dev/bench/gpu_card.py
    dev/bench/gpu_contestants.py dev/bench/pytorch_model.py dev/bench/pytorch_peer.py
    test/torch/compare.py test/torch/dump.py test/torch/llama.py test/torch/run_parity.py"
# Every Linux machine has its own of the first, and no other fits it; the second come with the driver, the toolkit or PyTorch.
C_LIBRARY='^(linux-vdso|ld-linux[^.]*|lib(c|m|mvec|pthread|dl|rt|util|resolv|anl|nsl))\.so'
CUDA_LIBRARY='^lib(cuda|cudart|cublas|cublasLt|nccl)\.so'

fail() {
    echo "make bundle: error: $*" >&2
    exit 2
}

# Where kernels/cuda/build.cmake looks too.
find_nvcc() {
    local directory
    command -v "${CUDACXX:-nvcc}" && return
    command -v nvcc && return
    for directory in "${CUDA_HOME:-}" "${CUDA_PATH:-}" /usr/local/cuda /opt/cuda; do
        [[ -n $directory && -x $directory/bin/nvcc ]] && { echo "$directory/bin/nvcc"; return; }
    done
    return 1
}

check_tools() {
    local name
    for name in cmake readelf objdump strip tar xz; do
        command -v "$name" >/dev/null || fail "$name is not installed (packages cmake, binutils, tar, xz-utils)"
    done
    [[ $BUNDLE_CUDA == [01] ]] || fail "BUNDLE_CUDA: must be 1, or 0 for CPUs only, is '$BUNDLE_CUDA'"
    [[ $BUNDLE_CUDA == 0 ]] || find_nvcc >/dev/null ||
        fail "no nvcc: install the CUDA toolkit or set CUDA_HOME to where it is, or build for CPUs only with BUNDLE_CUDA=0"
}

# An older bundle is replaced, but nothing else, and no results of runs.
check_output() {
    [[ -e $OUTPUT ]] || return 0
    [[ -e $OUTPUT/VERSIONS ]] || fail "$OUTPUT is there and is no bundle: move it, or name another place with OUTPUT="
    [[ ! -e $OUTPUT/out ]] || fail "$OUTPUT/out holds results of runs: move them before the bundle is built anew"
}

# The run path is the old kind, RPATH: libraries in lib/ then find one another there too, and another LD_LIBRARY_PATH with,
# say, an older libstdc++ changes nothing.
configure() {
    local cuda=(-DTRAIN_QAT_CUDA=OFF)
    [[ $BUNDLE_CUDA == 0 ]] || cuda=(-DTRAIN_QAT_CUDA=ON "-DTRAIN_QAT_CUDA_ARCHITECTURES=$BUNDLE_ARCHITECTURES")
    # shellcheck disable=SC2016,SC2086  # $ORIGIN is the loader's; CMAKE_FLAGS are several
    scripts/configure.sh "$BUILD" "${cuda[@]}" -DTRAIN_QAT_NATIVE=OFF -DTRAIN_QAT_MPI=OFF \
        -DCMAKE_BUILD_WITH_INSTALL_RPATH=ON '-DCMAKE_INSTALL_RPATH=$ORIGIN/lib' \
        -DCMAKE_EXE_LINKER_FLAGS=-Wl,--disable-new-dtags $CMAKE_FLAGS ||
        { scripts/install_dependencies.sh --check build; exit 1; }
    [[ $(programs) != *_test* ]] || ! grep -q '^Catch2_DIR:PATH=.*-NOTFOUND' "$BUILD/CMakeCache.txt" ||
        fail "the tests need Catch2: install the package catch2, or make the bundle without them: BUNDLE_PROGRAMS=train_qat"
}

programs() {
    local name benchmarks
    [[ -z $BUNDLE_PROGRAMS ]] || { echo "$BUNDLE_PROGRAMS"; return; }
    # gpu_check.sh names those that it runs.
    benchmarks=$(sed -n 's/^\(HOPPER_\)*BENCHMARKS=.*:-\(.*\)}$/\2/p' dev/gpu_check.sh)
    echo train_qat train_qat_test train_qat_kernel_test train_qat_parity
    for name in $benchmarks; do
        echo "emulated_bench_$name"
        [[ $BUNDLE_CUDA == 0 ]] || echo "bench_cuda_$name"
    done
}

# Names of all libraries that the files need, also those of libraries; and where they are: NAME PATH, or NAME alone
needed() {
    ldd "$@" | awk '$2 == "=>" { print $1, $3 == "not" ? "" : $3 } NF == 2 && $2 ~ /^\(/ { print $1 }' | sort -u
}

# Copies what the programs in a folder need into its lib/, with the packages' copyright: copy_libraries FOLDER
copy_libraries() {
    local folder=$1 name path package
    mkdir -p "$folder/lib/copyright"
    needed "${files[@]}" >"$folder/needed"
    while read -r name path; do
        [[ $(basename "$name") =~ $C_LIBRARY|$CUDA_LIBRARY ]] && continue
        [[ -n $path ]] || fail "$name is needed, and nowhere to be found"
        install -m 755 "$path" "$folder/lib/$name"
        strip --strip-unneeded "$folder/lib/$name"
        if package=$(dpkg-query -S "$(readlink -f "$path")" 2>/dev/null); then
            package=${package%%:*}
            cp "/usr/share/doc/$package/copyright" "$folder/lib/copyright/$package"
        fi
    done <"$folder/needed"
    rm "$folder/needed"
}

cuda_libraries() {
    readelf -d "${files[@]}" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p' | sort -u | grep -E "$CUDA_LIBRARY" || true
}

# The newest version of a symbol that files ask a library for: newest PREFIX FILE...
newest() {
    local prefix=$1
    shift
    objdump -T "$@" | grep -o "${prefix}_[0-9.]*" | sort -uV | tail -n 1 | cut -d_ -f2
}

# env.sh reads it. The compiler's own libraries often ask for a newer C library than all the rest.
versions() {
    local folder=$1 commit toolkit="none, for CPUs only" file others=()
    commit=$(git describe --always --dirty --abbrev=12 2>/dev/null) || commit=unknown
    [[ $BUNDLE_CUDA == 0 ]] ||
        toolkit="$("$(find_nvcc)" --version | sed -n 's/.*release \([0-9.]*\).*/\1/p'), architectures $BUNDLE_ARCHITECTURES"
    for file in "$folder"/lib/*.so*; do
        [[ $(basename "$file") =~ ^lib(stdc\+\+|gcc_s)\. ]] || others+=("$file")
    done
    echo "commit $commit"
    echo "processor x86-64-v3 (AVX2) or later"
    echo "glibc $(newest GLIBC "${files[@]}" "${others[@]}")"
    echo "libstdc++ $(newest GLIBCXX "${files[@]}" "${others[@]}"); the one in lib asks for" \
         "glibc $(newest GLIBC "$folder"/lib/lib{stdc++,gcc_s}.so*)"
    echo "cuda $toolkit"
    echo "compiler $(g++ --version | head -n 1)"
}

# Nothing but the bundle's own libraries, the C library's and CUDA's, whatever this machine's LD_LIBRARY_PATH is.
check_libraries() {
    local folder file name path
    folder=$(readlink -f "$1")
    for file in "${files[@]}"; do
        while read -r name path; do
            [[ $(basename "$name") =~ $C_LIBRARY|$CUDA_LIBRARY || $path == "$folder/lib/"* ]] ||
                fail "$(basename "$file") would take $name from ${path:-nowhere}, not from the bundle"
        done < <(LD_LIBRARY_PATH='' LD_PRELOAD='' needed "$folder/$(basename "$file")")
    done
}

assemble() {
    local folder=$1 name
    rm -rf "$folder"
    mkdir -p "$folder"
    for name in $(programs); do
        install -m 755 -s "$BUILD/$name" "$folder/$name"
        files+=("$folder/$name")
    done
    for name in $FILES; do
        install -D -m "$(stat -c %a "$name")" "$name" "$folder/$name"
    done
    install -m 644 dev/bundle/env.sh "$folder/env.sh"
    install -m 644 dev/bundle/USING.md "$folder/README.md"
    copy_libraries "$folder"
    cuda_libraries >"$folder/cuda_libraries.txt"
    versions "$folder" >"$folder/VERSIONS"
    check_libraries "$folder"
}

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
files=()
check_tools
check_output
[[ $DEPENDENCIES == skip ]] || scripts/install_dependencies.sh build
configure
mapfile -t targets < <(programs | tr ' ' '\n')
# An outer `make -j` must not hand its job server to the make that CMake starts.
MAKEFLAGS=--no-print-directory cmake --build "$BUILD" --parallel "$JOBS" --target "${targets[@]}"
assemble "$OUTPUT.partial"
rm -rf "$OUTPUT"
mv "$OUTPUT.partial" "$OUTPUT"
tar --sort=name --owner=0 --group=0 --numeric-owner -C "$(dirname "$OUTPUT")" -cf - "$(basename "$OUTPUT")" |
    xz -T0 >"$OUTPUT.tar.xz.partial"
mv "$OUTPUT.tar.xz.partial" "$OUTPUT.tar.xz"
cat "$OUTPUT/VERSIONS"
echo "$OUTPUT: $(du -sh "$OUTPUT" | cut -f1); $OUTPUT.tar.xz: $(du -h "$OUTPUT.tar.xz" | cut -f1); how to use it: $OUTPUT/README.md"
