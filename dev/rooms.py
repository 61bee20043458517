#!/usr/bin/env python3
"""Which folder includes which, and whether the house is in order: exit status 1, and a line for each fault, when it is not.

    dev/rooms.py            prints the includes between folders with their numbers, then what is wrong
    dev/rooms.py --no-headers    without compiling headers, which takes some seconds

Checked: every include goes to a lower room (LOWER), so that no folder needs one that needs it; a room holds at most 25
source files, a product file 400 lines, a room's README.md 40 (the front page 150); every header compiles alone.
The last line reads `N passed, N failed`.
"""
import argparse
import collections
import concurrent.futures
import os
import re
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SOURCES = (".h", ".cpp", ".cu", ".cuh")
PRODUCT = ("train_qat.cu", "model/", "kernels/", "data/")
MOST_FILES, MOST_LINES, README_LINES, FRONT_PAGE_LINES = 25, 400, 40, 150

# Each room and those that it may include. A room may include its own files; the driver, dev and test all rooms of the
# product, and test also dev. ("." is the driver.)
CUDA = "kernels/cuda"
CUDA_ROOMS = [f"{CUDA}/{name}" for name in ("rows", "attention", "matmul", "hopper_matmul", "weights", "generation")]
CPU = "kernels/cpu"
CPU_ROOMS = [f"{CPU}/{name}" for name in ("platform", "products", "attention", "generation", "levels")]
KERNELS = ["kernels", CPU, *CPU_ROOMS, "kernels/ranks", CUDA, *CUDA_ROOMS, f"{CUDA}/platform"]
MODEL = ["model", "model/generation", "model/plan", "model/storage", "model/import", "model/job", "model/run", "model/sweep",
         "model/evaluation"]
TOOLKIT = "dev/emulator"
LOWER = {
    "data": ["data/tokenizers"],
    "data/tokenizers": [],
    "kernels": [],
    "kernels/cpu/platform": ["kernels"],
    "kernels/cpu/products": ["kernels", "kernels/cpu/platform"],
    "kernels/cpu": ["kernels", "kernels/cpu/platform", "kernels/cpu/products"],
    "kernels/cpu/attention": ["kernels", "kernels/cpu", "kernels/cpu/platform", "kernels/cpu/products"],
    "kernels/cpu/generation": ["kernels", "kernels/cpu", "kernels/cpu/platform", "kernels/cpu/products"],
    "kernels/cpu/levels": ["kernels", "kernels/cpu/platform"],
    "kernels/ranks": ["kernels", "kernels/cpu", CUDA, f"{CUDA}/platform"],
    # The emulator is what CUDA's toolkit is otherwise, by its headers in the include path (TOOLKIT).
    f"{CUDA}/platform": ["kernels", "dev/emulator"],
    **{room: ["kernels", f"{CUDA}/platform"] for room in CUDA_ROOMS},
    f"{CUDA}/matmul": ["kernels", f"{CUDA}/platform", f"{CUDA}/weights"],
    f"{CUDA}/hopper_matmul": ["kernels", f"{CUDA}/platform", f"{CUDA}/weights", f"{CUDA}/matmul"],
    CUDA: ["kernels", f"{CUDA}/platform", *CUDA_ROOMS],
    "dev/emulator/machine": [],
    "dev/emulator": ["kernels", "dev/emulator/machine"],
    "dev/emulated_cuda": ["kernels", f"{CUDA}/platform", "dev/emulator", "dev/emulator/machine"],
    "model": ["data", "kernels", "kernels/ranks"],
    "model/plan": ["model", "kernels", "kernels/ranks"],
    "model/storage": ["model", "data", "kernels", "kernels/ranks"],
    "model/generation": ["model", "kernels"],
    "model/import": ["model", "model/storage", "kernels", "kernels/ranks"],
    "model/job": ["model", "model/plan", "model/storage", "model/import", "data", "kernels", "kernels/ranks", f"{CUDA}/platform"],
    "model/run": ["model", "model/generation", "model/plan", "model/storage", "model/import", "model/job", "data", "kernels",
                  "kernels/ranks"],
    "model/sweep": ["model", "model/plan", "model/storage", "model/job", "model/run", "data", "kernels", "kernels/ranks"],
    "model/evaluation": ["model", "model/generation", "model/plan", "model/storage", "model/import", "model/job", "model/run",
                         "data", "kernels", "kernels/ranks"],
    ".": ["data", *MODEL, *KERNELS],
}


def files():
    listed = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, check=True,
                            stdout=subprocess.PIPE, text=True).stdout.splitlines()
    return sorted(name for name in set(listed) if os.path.exists(os.path.join(ROOT, name)))


def lines_of(name):
    with open(os.path.join(ROOT, name), encoding="utf-8") as file:
        return file.read().splitlines()


def room_of(name):
    return os.path.dirname(name) or "."


def includes(sources):
    """{(room, room that it includes): [file that includes: file that is included]}"""
    found = collections.defaultdict(list)
    for name in sources:
        for line in lines_of(name):
            match = re.match(r'\s*#\s*include\s+(?:"([^"]+)"|<((?:cuda|hopper)_emulator\.h)>)', line)
            included = (match[1] or f"{TOOLKIT}/{match[2]}") if match else name
            if room_of(included) != room_of(name):
                found[room_of(name), room_of(included)].append(f"{name}: {included}")
    return found


def allowed(room, other):
    if room.startswith("test"):
        return True
    if room.startswith("dev") and room not in LOWER:
        # Benchmarks check their results with the tests' oracles.
        return not other.startswith("test") or other == "test/support"
    return other in LOWER.get(room, ())


def rooms_on_a_cycle(edges):
    """The rooms from which a way leads back to them."""
    reached = {room: {other for one, other in edges if one == room} for room, _ in edges}
    changed = True
    while changed:
        changed = False
        for others in reached.values():
            more = set().union(*(reached.get(other, set()) for other in others)) - others
            others |= more
            changed |= bool(more)
    return sorted(room for room, others in reached.items() if room in others)


def needs_readme(room):
    return (room in (".", "model", "kernels", "data", "scripts", "test", "dev") or room in ("data/prepare", "data/tokenizers", "scripts/law")
            or re.match(r"(kernels|model|dev)/", room))


def faults_of_rooms(names, sources):
    edges = includes(sources)
    print(f"{'room':<24} includes")
    for (room, other), where in sorted(edges.items()):
        print(f"{room:<24} {other:<24} {len(where):>4}")
    print()
    for (room, other), where in sorted(edges.items()):
        if not allowed(room, other):
            yield f"{room} must not include {other}: {', '.join(where)}"
    for room in rooms_on_a_cycle({edge for edge in edges if not edge[0].startswith("test")}):
        yield f"{room} needs a room that needs it"
    for room, count in collections.Counter(map(room_of, sources)).items():
        if count > MOST_FILES and not room.startswith("test"):
            yield f"{room} holds {count} source files, more than {MOST_FILES}"
    for name in sources:
        if name.startswith(PRODUCT) and len(lines_of(name)) > MOST_LINES:
            yield f"{name} has {len(lines_of(name))} lines, more than {MOST_LINES}"
    code = [name for name in names if name.endswith((*SOURCES, ".py", ".sh"))]
    for room in sorted(set(filter(needs_readme, map(room_of, code)))):
        readme, most = os.path.normpath(os.path.join(room, "README.md")), README_LINES if room != "." else FRONT_PAGE_LINES
        if readme not in names:
            yield f"{room} has no README.md"
        elif len(lines_of(readme)) > most:
            yield f"{readme} has {len(lines_of(readme))} lines, more than {most}"


def first_include(name):
    found = (re.match(r'\s*#\s*include\s+["<]([^">]+)', line) for line in lines_of(name))
    return next((match[1] for match in found if match), None)


def headers_to_compile(sources):
    """Those that no source includes first: of the others the build shows that they compile alone. NCCL's are for nvcc."""
    first = {first_include(name) for name in sources if name.endswith((".cpp", ".cu"))}
    return [name for name in sources if name.endswith((".h", ".cuh")) and name not in first
            and first_include(name) != "nccl.h"]


def fault_of_header(name):
    """None, or what keeps a header from compiling alone. Headers of device code compile through the emulator."""
    command = ["g++", "-std=c++20", "-fsyntax-only", "-w", "-fopenmp", "-fno-strict-aliasing", "-I", ROOT,
               "-I", os.path.join(ROOT, "dev", "emulator"), "-x", "c++",
               os.path.join(ROOT, name)]
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return f"{name} does not compile alone:\n{result.stdout}" if result.returncode else None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-headers", action="store_true", help="do not compile the headers")
    parser.add_argument("--jobs", type=int, default=1, help="headers that are compiled at a time (1)")
    arguments = parser.parse_args()
    names = files()
    sources = [name for name in names if name.endswith(SOURCES)]
    headers = [] if arguments.no_headers else headers_to_compile(sources)
    faults = list(faults_of_rooms(names, sources))
    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        faults += filter(None, pool.map(fault_of_header, headers))
    for fault in faults:
        print(fault)
    print(f"{len(names) - len(faults)} passed, {len(faults)} failed")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
