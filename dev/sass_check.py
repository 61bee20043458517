#!/usr/bin/env python3
"""What only the machine code of kernels for Hopper shows: a register that is used while the tensor cores still need it.

    dev/sass_check.py                                   all files hopper_*.cu of kernels/cuda, and those of dev/cuda
    dev/sass_check.py FILE...                           .cu (compiled for sm_90a), .cubin, or a disassembler's output (.sass)
    dev/sass_check.py --disassembler PATH               an nvdisasm or a cuobjdump

ptxas does not keep operand a of a product under way (HGMMA) from being overwritten, and the emulator, which has no registers,
cannot see it. The check follows the control flow with the groups of products that may be under way: a group ends with its
HGMMA ... gsb0, and WARPGROUP.DEPBAR.LE gsb0, N leaves the N newest. A finding is
  * a write to a register of operand a, or any access to a sum, of a product that may be under way;
  * a spill (STL, LDL);
  * of a .cu file: a kernel whose PTX has wgmma or setmaxnreg and whose machine code has no HGMMA or USETMAXREG, and a message
    of ptxas that it makes products wait.
Needs a disassembler: PATH, CUDA_HOME/bin, or --disassembler; the toolkit has both, and so have the packages nvidia-cuda-nvdisasm
and nvidia-cuda-cuobjdump of PyPI. Exit status 1 with findings, 2 when it cannot run.
"""
import argparse
import concurrent.futures
import os
import re
import subprocess
import sys
import tempfile
from collections import namedtuple

import sass
from compiled_kernels import ROOT, Failure, compile_to, demangle, find_nvcc, find_tool, for_hopper, kernel_files
from compiled_kernels import shorten, waiting_wgmma

Finding = namedtuple("Finding", "offset instruction text")
LISTED = 3       # findings of a kernel
PTXAS = "ptxas"  # stands for a kernel where ptxas says something

# ---- products under way
#
# A state: the products of the group that is not closed yet, and those of the closed groups, the newest first; each a set as
# bits of an integer, bit i for the function's i-th HGMMA. Where paths meet, sets are united, group by group: what follows for
# each product alone is the same on every path, so this finds what following all paths would find.


def united(first, second):
    if first is None:
        return second
    longer, shorter = sorted((first, second), key=len, reverse=True)
    return tuple(bits | (shorter[i] if i < len(shorter) else 0) for i, bits in enumerate(longer))


class Flow:
    """Which products may be under way before each instruction of a function."""

    def __init__(self, function):
        self.function = function
        self.products = {}  # index of the instruction: (bit, sass.Product)
        self.waits = {}     # index: groups that it leaves
        for i, instruction in enumerate(function.instructions):
            if instruction.opcode.startswith("HGMMA"):
                self.products[i] = 1 << len(self.products), sass.product_registers(instruction)
            elif instruction.opcode.startswith("WARPGROUP.DEPBAR"):
                self.waits[i] = int(instruction.operands[1], 16)
            elif instruction.opcode.startswith("WARPGROUP.") and instruction.opcode != "WARPGROUP.ARRIVE":
                raise Failure(f"{function.name}: {instruction.text}: this check does not know what it does to groups")
        # No wait tells older groups from each other: they share the last place.
        self.places = max(self.waits.values(), default=0) + 1
        self.before = self.solve()

    def solve(self):
        successors = self.function.successors()
        states = [None] * len(successors)
        states[0] = (0,)
        work = [0]
        while work:
            i = work.pop()
            after = self.after(i, states[i])
            for following in successors[i]:
                joined = united(states[following], after)
                if joined != states[following]:
                    states[following] = joined
                    work.append(following)
        return states

    def after(self, i, state):
        if i in self.products:
            bit, product = self.products[i]
            result = (state[0] | bit, *state[1:])
            if product.closes:
                result = (0, *result)
                oldest = 0
                for bits in result[self.places:]:
                    oldest |= bits
                result = (*result[:self.places], oldest)
        elif i in self.waits:
            result = state[:1 + self.waits[i]]
        else:
            return state
        return united(state, result) if self.function.instructions[i].predicate else result

    def under_way(self, i):
        """[(offset of the HGMMA, sass.Product)] before instruction i."""
        bits = 0
        for group in self.before[i] or ():
            bits |= group
        return [(self.function.instructions[at].offset, product)
                for at, (bit, product) in self.products.items() if bits & bit]


def name_of(registers):
    return "R" + str(min(registers))


def conflict(flow, i):
    """What instruction i must not do, or None."""
    under_way = flow.under_way(i)
    if not under_way:
        return None
    if i in flow.products:
        _, own = flow.products[i]
        read, written = own.a, own.sums
    else:
        read, written = sass.accesses(flow.function.instructions[i])
    for offset, product in under_way:
        if written & product.a:
            return f"writes {name_of(written & product.a)}, operand a of the HGMMA at {offset:04x} that may be under way"
        adds_up = i in flow.products and written == product.sums  # products of one kind on the same sums keep their order
        for verb, touched in (("reads", read), ("writes", written if not adds_up else set())):
            if touched & product.sums:
                return f"{verb} {name_of(touched & product.sums)}, a sum of the HGMMA at {offset:04x} that may be under way"
    return None


def check_function(function):
    """[Finding] of one kernel's machine code."""
    flow = Flow(function)
    findings = []
    for i, instruction in enumerate(function.instructions):
        name = instruction.opcode.split(".")[0]
        text = conflict(flow, i)
        if text:
            findings.append(Finding(instruction.offset, instruction.text, text))
        if name in ("STL", "LDL"):
            findings.append(Finding(instruction.offset, instruction.text, "registers spill to local memory"))
    findings += [Finding(jump.offset, jump.text, "a jump that cannot be followed") for jump in function.jumps_out_of_sight()]
    return findings


# ---- what a kernel asks for

ASKED = (("wgmma.mma_async", "HGMMA"), ("setmaxnreg", "USETMAXREG"))


def missing(function, ptx):
    """[Finding]: instructions of a kernel's PTX (None when it is not known) that its machine code lacks."""
    has = {instruction.opcode.split(".")[0] for instruction in function.instructions}
    return [Finding(0, wanted, f"missing, and the kernel's PTX has {asked}")
            for asked, wanted in ASKED if ptx is not None and asked in ptx and wanted not in has]


def kernels_of_ptx(text):
    """{mangled name: PTX of the kernel}"""
    parts = re.split(r"\.entry\s+(\w+)\s*\(", text)
    return dict(zip(parts[1::2], parts[2::2]))


# ---- files


def find_disassembler(given):
    if given:
        if not os.access(given, os.X_OK):
            raise Failure(f"--disassembler {given}: there is no such program")
        return given
    found = find_tool("nvdisasm") or find_tool("cuobjdump")
    if not found:
        raise Failure("no nvdisasm and no cuobjdump in PATH or CUDA_HOME/bin: the CUDA toolkit has them, and so has `pip install "
                      "nvidia-cuda-nvdisasm`, with --disassembler SITE_PACKAGES/nvidia/cu13/bin/nvdisasm")
    return found


def disassemble(disassembler, cubin):
    option = "-sass" if os.path.basename(disassembler).startswith("cuobjdump") else "-c"
    result = subprocess.run([disassembler, option, cubin], capture_output=True, text=True)
    if result.returncode != 0:
        raise Failure(f"{disassembler} {option} fails: {result.stderr.strip()}")
    return result.stdout


def check_text(text, ptx=None):
    """{mangled name: (number of HGMMA, [Finding])} of a disassembler's output; ptx: kernels_of_ptx."""
    result = {}
    for function in sass.parse(text):
        if function.instructions:
            count = sum(instruction.opcode.startswith("HGMMA") for instruction in function.instructions)
            result[function.name] = count, check_function(function) + missing(function, (ptx or {}).get(function.name))
    return result


def check_source(source, nvcc, disassembler):
    with tempfile.TemporaryDirectory() as directory:
        ptx, cubin = os.path.join(directory, "kernels.ptx"), os.path.join(directory, "kernels.cubin")
        compile_to(nvcc, source, "90a", "ptx", ptx)
        slow = waiting_wgmma(compile_to(nvcc, ptx, "90a", "cubin", cubin))
        with open(ptx) as file:
            asked = kernels_of_ptx(file.read())
        result = check_text(disassemble(disassembler, cubin), asked)
    if slow:
        result[PTXAS] = 0, [Finding(0, "its message", slow)]
    return result


def own_files():
    """Those of the product, and of dev/cuda that use their headers."""
    def uses_hopper(path):
        with open(path) as file:
            return re.search(r'#include ".*hopper', file.read())
    return ([file for file in kernel_files() if for_hopper(file)] +
            [file for file in kernel_files(os.path.join(ROOT, "dev", "cuda")) if uses_hopper(file)])


def check_file(path, tools):
    if path.endswith(".cu"):
        return check_source(path, tools.nvcc(), tools.disassembler())
    if path.endswith(".cubin"):
        return check_text(disassemble(tools.disassembler(), path))
    try:
        with open(path, errors="replace") as file:
            result = check_text(file.read())
    except OSError as error:
        raise Failure(f"{path}: {error.strerror}") from error
    if not result:
        raise Failure(f"{path}: no function in it; give a .cu or .cubin file, or what cuobjdump -sass or nvdisasm printed")
    return result


class Tools:
    """Looked for when a file needs them."""

    def __init__(self, disassembler):
        self.given = disassembler

    def nvcc(self):
        return find_nvcc()

    def disassembler(self):
        return find_disassembler(self.given)


def report(path, kernels):
    """Prints a file's line, and its findings; how many there are."""
    findings = sum(len(found) for _, found in kernels.values())
    products = sum(count for count, _ in kernels.values())
    count = sum(name != PTXAS for name in kernels)
    print(f"{path}: {count} kernels, {products} HGMMA: {f'{findings} findings' if findings else 'clean'}", flush=True)
    for name, full in zip(kernels, demangle(list(kernels))):
        _, found = kernels[name]
        for finding in found[:LISTED]:
            print(f"    {shorten(full)} /*{finding.offset:04x}*/ {finding.instruction}: {finding.text}")
        if len(found) > LISTED:
            print(f"    {shorten(full)}: and {len(found) - LISTED} more")
    return findings


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", metavar="FILE")
    parser.add_argument("--disassembler", metavar="PATH", help="nvdisasm or cuobjdump; default: that of PATH or CUDA_HOME")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    files, tools = arguments.files or own_files(), Tools(arguments.disassembler)
    findings = 0
    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        for path, kernels in zip(files, pool.map(lambda path: check_file(path, tools), files)):
            findings += report(os.path.relpath(path), kernels)
    print(f"{findings} findings" if findings else "no findings")
    return 1 if findings else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Failure as failure:
        print(f"dev/sass_check.py: error: {failure}", file=sys.stderr)
        sys.exit(2)
