#!/usr/bin/env python3
"""The kernel tests on the emulated CUDA device, its threads in ten random orders, with the search for races.

    test/schedules.py --program build/train_qat_kernel_test [--seeds 10]

A kernel whose result depends on the order of its threads fails here, or is stopped with the two lines that conflict.
The last line reads `N passed, N failed`: test cases, summed over the orders.
"""
import argparse
import os
import subprocess
import sys

from run_all import read_counts


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", required=True)
    parser.add_argument("--seeds", type=int, default=10, help="number of orders (10)")
    arguments = parser.parse_args()
    passed = failed = 0
    for seed in range(1, arguments.seeds + 1):
        environment = {**os.environ, "TRAIN_QAT_TEST_DEVICES": "emulated", "TRAIN_QAT_TEST_SMALL": "1",
                       "TRAIN_QAT_TEST_RACES": "1", "TRAIN_QAT_TEST_SCHEDULE": str(seed)}
        result = subprocess.run([arguments.program, "[device]"], env=environment, stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT, text=True, errors="replace")
        counts = read_counts(result.stdout) or (0, 0, 0)
        if result.returncode != 0 or counts[0] == 0:
            print(result.stdout)
        print(f"order {seed}: {counts[0]} passed, {max(counts[1], int(result.returncode != 0))} failed", flush=True)
        passed += counts[0]
        failed += max(counts[1], int(result.returncode != 0 or counts[0] == 0))
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
