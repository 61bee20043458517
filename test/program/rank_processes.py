#!/usr/bin/env python3
"""Runs test/ranks/rank_test.cpp on 1, 2, 3 and 4 ranks under mpirun and adds up what it counts; the last line is the sum.

    test/program/rank_processes.py --program build/train_qat_rank_test [RANKS...]
"""
import argparse
import re
import subprocess
import sys

from program_fixture import ROOT, launcher

LIMIT_SECONDS = 600  # of one number of ranks, far more than it takes


def run(program, ranks):
    """(passed, failed) of the program on so many ranks."""
    print(f"==> {ranks} rank{'s' if ranks > 1 else ''}", flush=True)
    process = subprocess.Popen([*launcher(ranks), program], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                               text=True)
    try:
        output = process.communicate(timeout=LIMIT_SECONDS)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        output = process.communicate()[0] + f"killed after {LIMIT_SECONDS} s\n"
    sys.stdout.write(output)
    sums = re.findall(r"^(\d+) passed, (\d+) failed$", output, re.MULTILINE)
    if len(sums) != 1:
        return 0, 1
    passed, failed = map(int, sums[0])
    return passed, failed if process.returncode == 0 else max(failed, 1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default="build/train_qat_rank_test", metavar="PATH")
    parser.add_argument("ranks", nargs="*", type=int, metavar="RANKS", help="default: 1 2 3 4")
    arguments = parser.parse_args()
    if launcher(1) is None:
        parser.error("there is no mpirun: install openmpi-bin")
    passed = failed = 0
    for ranks in arguments.ranks or (1, 2, 3, 4):
        counts = run(arguments.program, ranks)
        passed, failed = passed + counts[0], failed + counts[1]
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
