#!/usr/bin/env python3
"""What ptxas says about every kernel: registers, spills, shared memory, and the occupancy that these allow.

    dev/ptxas_table.py                                  all kernels for sm_80, written to dev/results/ptxas.md
    dev/ptxas_table.py --architectures 80 90 100 120    for all targets
    dev/ptxas_table.py kernels/cuda/rows/rmsnorm.cu     of one file, printed

Needs nvcc, no GPU. Occupancy counts registers, threads and static shared memory; dynamic shared memory is an argument
of the launch (dev/results/lint.md shows it) and can lower it. Files named hopper_* are compiled for sm_90a, in place of
sm_90, and for no other target. Exit status 1 when a kernel spills registers, or ptxas says that it makes wgmma wait.
"""
import argparse
import concurrent.futures
import os
import re
import subprocess
import sys
import tempfile

import compiled_kernels
from compiled_kernels import CUDA, ROOT, Failure, demangle, shorten

REGISTERS = 65536  # of a multiprocessor, on all targets
# compute capability: (warps, blocks, KiB of shared memory) that a multiprocessor holds
MULTIPROCESSOR = {"80": (64, 32, 164), "86": (48, 16, 100), "89": (48, 24, 100), "90": (64, 32, 228),
                  "100": (64, 32, 228), "120": (48, 24, 100)}


def is_for(source, architecture):
    return architecture == "90" or not compiled_kernels.for_hopper(source)


def compile_to(nvcc, source, architecture, kind):
    """(messages, output text) of one compilation; kind: ptx or cubin."""
    target = architecture + "a" if compiled_kernels.for_hopper(source) else architecture
    with tempfile.TemporaryDirectory() as directory:
        output = os.path.join(directory, "out")
        messages = compiled_kernels.compile_to(nvcc, source, target, kind, output)
        slow = compiled_kernels.waiting_wgmma(messages)
        if slow:
            raise Failure(f"{source} for sm_{target}: {slow}")
        with open(output, errors="replace") as file:
            return messages, file.read()


def threads_of(nvcc, source):
    """{name: threads of a block, as __launch_bounds__ says: the same for all targets}"""
    _, ptx = compile_to(nvcc, source, "90", "ptx")
    matches = re.findall(r"\.entry (\w+)\([^{]*?\.maxntid (\d+)", ptx, re.DOTALL)
    return {name: int(count) for name, (_, count) in zip(demangle([name for name, _ in matches]), matches)}


def occupancy(registers, threads, shared, architecture):
    warps, blocks, kibibytes = MULTIPROCESSOR[architecture]
    per_block = (threads + 31) // 32
    per_warp = max(256, (registers * 32 + 255) // 256 * 256)
    fitting = min(warps // per_block, REGISTERS // per_warp // per_block, blocks)
    if shared > 0:
        fitting = min(fitting, kibibytes * 1024 // (shared + 1024))
    return fitting * per_block / warps


def kernels_of(nvcc, source, architecture, threads):
    """[(kernel, threads, registers, spilled bytes, static shared bytes, occupancy)]"""
    messages, _ = compile_to(nvcc, source, architecture, "cubin")
    pattern = re.compile(r"Compiling entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
                         r"(\d+) bytes spill loads.*?Used (\d+) registers(.*?)\n", re.DOTALL)
    found = pattern.findall(messages)
    rows = []
    for name, (_, _, stores, loads, registers, rest) in zip(demangle([match[0] for match in found]), found):
        shared = re.search(r"(\d+) bytes smem", rest)
        shared = int(shared[1]) if shared else 0
        count = threads.get(name, 1024)
        rows.append((shorten(name), count, int(registers), int(stores) + int(loads), shared,
                     occupancy(int(registers), count, shared, architecture)))
    return sorted(rows)


def family(kernel):
    """The kernel without the template arguments that do not change what it does with the machine."""
    return re.sub(r"<.*", "", kernel)


def collapse(rows):
    """[(family, instances, threads, least and most registers, spilled, most shared bytes, least occupancy)]"""
    families = {}
    for kernel, *numbers in rows:
        families.setdefault((family(kernel), numbers[0]), []).append(numbers)
    result = []
    for (name, threads), instances in sorted(families.items()):
        registers = [numbers[1] for numbers in instances]
        result.append((name, len(instances), threads, min(registers), max(registers),
                       sum(numbers[2] for numbers in instances), max(numbers[3] for numbers in instances),
                       min(numbers[4] for numbers in instances)))
    return result


def table(results, architectures, version):
    lines = ["# Registers, shared memory, spills and occupancy of every kernel", "",
             f"`dev/ptxas_table.py --architectures {' '.join(architectures)}`, {version}. Instances of one "
             "template stand in one line.", "Occupancy: the least of them, of registers, threads and static shared memory; "
             "dynamic shared memory is in", "[lint.md](lint.md). Files named `hopper_*` are compiled for sm_90a and stand under "
             "sm_90; their warpgroups share", "a block's registers out anew.", ""]
    spilling = []
    for architecture in architectures:
        lines += [f"## sm_{architecture}", "",
                  "| file | kernel | instances | threads | registers | spilled bytes | static shared bytes | occupancy |",
                  "|---|---|---:|---:|---:|---:|---:|---:|"]
        for source in sorted(name for name, target in results if target == architecture):
            rows = results[source, architecture]
            spilling += [f"{source}: {row[0]} spills {row[3]} bytes for sm_{architecture}" for row in rows if row[3]]
            for kernel, instances, threads, least, most, spills, shared, occupied in collapse(rows):
                registers = str(most) if least == most else f"{least} to {most}"
                lines.append(f"| {source} | `{kernel}` | {instances} | {threads} | {registers} | {spills} | {shared} | "
                             f"{occupied:.0%} |")
        lines.append("")
    return "\n".join(lines), spilling


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", help="default: all of kernels/cuda, and the table goes to dev/results/ptxas.md")
    parser.add_argument("--architectures", nargs="+", default=["80"], metavar="N", choices=MULTIPROCESSOR)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    nvcc = compiled_kernels.find_nvcc()
    files = [os.path.abspath(file) for file in arguments.files] or compiled_kernels.kernel_files()
    tasks = [(os.path.relpath(file, CUDA), architecture, file) for architecture in arguments.architectures for file in files
             if is_for(file, architecture)]
    results = {}
    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        threads = dict(zip(files, pool.map(lambda file: threads_of(nvcc, file), files)))
        futures = {pool.submit(kernels_of, nvcc, file, architecture, threads[file]): (name, architecture)
                   for name, architecture, file in tasks}
        for done, future in enumerate(concurrent.futures.as_completed(futures), 1):
            results[futures[future]] = future.result()
            print(f"[{done}/{len(tasks)}] {futures[future][0]} sm_{futures[future][1]}", file=sys.stderr, flush=True)
    version = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    text, spilling = table(results, arguments.architectures, "CUDA " + re.search(r"release ([\d.]+)", version)[1])
    if arguments.files:
        print(text)
    else:
        with open(os.path.join(ROOT, "dev", "results", "ptxas.md"), "w") as file:
            file.write(text)
    print("\n".join(spilling) if spilling else "no kernel spills", file=sys.stderr)
    return 1 if spilling else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Failure as failure:
        sys.exit(f"dev/ptxas_table.py: error: {failure}")
