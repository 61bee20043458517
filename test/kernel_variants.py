#!/usr/bin/env python3
"""The kernels of dev/cuda in all their variants, checked on the emulated device.

    test/kernel_variants.py --build build

The last line reads `N passed, N failed`: variants, summed over programs and sizes.
"""
import argparse
import glob
import os
import re
import subprocess
import sys


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", required=True, metavar="DIRECTORY", help="where the programs are")
    arguments = parser.parse_args()
    passed = failed = 0
    for program in sorted(glob.glob(os.path.join(arguments.build, "emulated_bench_*"))):
        result = subprocess.run([program, "--check"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                errors="replace")
        checked = len(re.findall(r"of the tolerance$", result.stdout, re.MULTILINE))
        wrong = int(result.returncode != 0 or checked == 0)
        if wrong:
            print(result.stdout)
        print(f"{os.path.basename(program)}: {checked} variants checked, exit status {result.returncode}", flush=True)
        passed += checked - wrong * checked
        failed += wrong
    print(f"{passed} passed, {failed} failed")
    return 1 if failed or passed == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
