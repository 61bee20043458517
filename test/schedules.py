#!/usr/bin/env python3
"""The kernel tests on the emulated CUDA device, its threads in ten random orders, with the search for races.

    test/schedules.py --program build/train_qat_kernel_test [--seeds 10]

A kernel whose result depends on the order of its threads fails here, or is stopped with the two lines that conflict.
The last line reads `N passed, N failed`: test cases, summed over the orders.
"""
import argparse
import concurrent.futures
import os
import subprocess
import sys

from run_all import read_counts


def run(program, seed):
    # The search for races runs the blocks of a launch one by one, so a process needs one core.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TRAIN_QAT_TEST_DEVICES": "emulated", "TRAIN_QAT_TEST_SMALL": "1",
                   "TRAIN_QAT_TEST_RACES": "1", "TRAIN_QAT_TEST_SCHEDULE": str(seed)}
    return subprocess.run([program, "[device]"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True, errors="replace")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", required=True)
    parser.add_argument("--seeds", type=int, default=10, help="number of orders (10)")
    parser.add_argument("--jobs", type=int, default=1, help="orders at a time (1)")
    arguments = parser.parse_args()
    passed = failed = 0
    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        for seed, result in enumerate(pool.map(lambda seed: run(arguments.program, seed), range(1, arguments.seeds + 1)), 1):
            right, wrong = (read_counts(result.stdout) or (0, 0, 0))[:2]
            if result.returncode != 0 or right == 0:
                print(result.stdout)
                wrong = max(wrong, 1)
            print(f"order {seed}: {right} passed, {wrong} failed", flush=True)
            passed += right
            failed += wrong
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
