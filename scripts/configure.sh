#!/usr/bin/env bash
# Configures a build directory: scripts/configure.sh DIRECTORY [FLAGS OF CMAKE...], from the root of the checkout.
#
# CMake refuses a directory that was configured at another path. Where the checkout was moved or copied after it had been
# built, what CMake knows and what it compiled belong to the old place: both are removed, and the build begins afresh.
set -euo pipefail

directory=$1
shift
cache=$directory/CMakeCache.txt

# A path that CMake wrote down: entry NAME
entry() {
    sed -n "s/^$1:INTERNAL=//p" "$cache"
}

if [[ -e $cache ]]; then
    source=$(entry CMAKE_HOME_DIRECTORY)
    place=$(entry CMAKE_CACHEFILE_DIR)
    if [[ ! $place -ef $directory || ! -e $source ]]; then
        echo "$directory was built as $place: the checkout was moved or copied, so it is built afresh (make clean removes it)"
        find "$directory" -name CMakeFiles -prune -exec rm -rf {} +
        find "$directory" -name CMakeCache.txt -delete
    elif [[ ! $source -ef . ]]; then
        echo "configure.sh: error: $directory is the build of another checkout, $source: name one of your own with BUILD=," \
             "or remove that one with make clean" >&2
        exit 2
    fi
fi
cmake -S . -B "$directory" "$@"
