#!/usr/bin/env python3
"""Runs every benchmark in its shortest form, so that none stops working unnoticed; those of GPUs with stand-ins.

    test/benchmarks.py --build build

The last line reads `N passed, N failed`: commands.
"""
import argparse
import os
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def commands(build):
    python, program = sys.executable, os.path.join(build, "train_qat_bench")
    yield [python, "dev/bench/bench.py", "--program", program, "--smoke"]
    yield [python, "dev/bench/bench_ranks.py", "--program", os.path.join(build, "train_qat"), "--smoke"]
    yield [python, "test/dev/test_bench_gpu.py", "--program", os.path.join(build, "train_qat")]
    yield [python, "test/dev/test_bundle.py"]
    yield [python, "test/dev/test_sass_check.py"]
    yield [program, "--layers", "1", "--width", "64", "--heads", "1", "--kv-heads", "1", "--ffn", "128", "--steps", "2", "--profile"]
    yield [os.path.join(build, "train_qat_lint")]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", required=True, metavar="DIRECTORY", help="where the programs are")
    passed = failed = 0
    for command in commands(os.path.abspath(parser.parse_args().build)):
        print(f"==> {' '.join(command)}", flush=True)
        try:
            status = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL).returncode
        except OSError as error:
            status = error.strerror
        print(f"exit status {status}", flush=True)
        passed, failed = passed + (status == 0), failed + (status != 0)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
