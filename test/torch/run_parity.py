#!/usr/bin/env python3
"""Trains many tiny models with train_qat_parity and compares every step with PyTorch (compare.py).

The matrix: every bit width in float32; groups, grouped-query and plain multi-head attention, odd sizes, single
tokens, several micro-batches, runs of only one phase; some of it in bfloat16. One line per case, with the check that
came closest to failing; then the largest error of each kind as a fraction of its tolerance. The last line sums up
compare.py's checks. Exit status 1 when one fails.
"""

import argparse
import os
import pathlib
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("OMP_NUM_THREADS", "2")
# Threads that wait for work sleep soon: spinning ones starve the others when there are more threads than cores.
os.environ.setdefault("GOMP_SPINCOUNT", "20000")

import torch

from compare import Comparison, failed, print_table
from dump import read_dump

HERE = pathlib.Path(__file__).resolve().parent
ALL_BITS = (1, 1.58, 2, 3, 4, 5, 6, 8, 16)

BASE = {
    "layers": 2, "width": 32, "heads": 4, "kv_heads": 2, "ffn": 96, "vocabulary": 131, "sequence": 16, "batch": 3,
    "micro_batches": 1, "bits": 4, "group": 0, "dtype": "float32", "fp_steps": 10, "qat_steps": 10, "seed": 1,
    "clip_norm": 2,
}  # fmt: skip
# bfloat16 tolerances hold for tensors that are large enough for errors to average out.
BFLOAT16 = {"dtype": "bfloat16", "width": 96, "heads": 6, "ffn": 256, "sequence": 32, "batch": 4}
SHAPES = {
    "multi-head": {"kv_heads": 4},
    "one head": {"heads": 1, "kv_heads": 1},
    "odd sizes": {"width": 42, "heads": 3, "kv_heads": 1, "ffn": 53, "vocabulary": 97, "sequence": 13, "layers": 3},
    "one layer": {"layers": 1},
    "single tokens": {"sequence": 1, "batch": 7},
    "one sequence": {"batch": 1, "sequence": 40},
    "2 micro-batches": {"micro_batches": 2, "batch": 2},
    "3 micro-batches": {"micro_batches": 3, "batch": 1, "sequence": 33},
    "several logit chunks": {"batch": 9, "sequence": 64, "fp_steps": 2, "qat_steps": 2},
    "7 rows of logits at a time": {"logit_rows": 7},
    "one row of logits at a time": {"logit_rows": 1, "batch": 2},
    "only full precision": {"qat_steps": 0},
    "only QAT": {"fp_steps": 0},
    "no clipping": {"clip_norm": 0},
    "an output head of its own": {"tied": 0, "micro_batches": 2},
    "Qwen2's biases": {"attention_biases": 1, "micro_batches": 2},
    "Qwen3's norms, wide heads": {"head_norms": 1, "head_dim": 22, "micro_batches": 2},
    "Llama 3's rotations": {"stretched_from": 16, "sequence": 40, "batch": 1},
}


def options_of(case):
    """All options of train_qat_parity for a case."""
    return BASE | case


def cases(quick):
    """(name, options of train_qat_parity)"""
    for bits in ALL_BITS:
        yield f"{bits} bits", {"bits": bits, "seed": bits * 100 // 1}
    for bits in (4,) if quick else (1, 1.58, 2, 3, 4, 8):
        yield f"{bits} bits, groups of 32", {"bits": bits, "group": 32, "width": 64}
    for name, shape in list(SHAPES.items())[: 3 if quick else None]:
        yield f"4 bits, {name}", shape
    if not quick:
        yield "2 bits, groups of 32, odd vocabulary, 2 micro-batches", {
            "bits": 2, "group": 32, "width": 96, "heads": 3, "kv_heads": 1, "vocabulary": 77, "micro_batches": 2,
        }  # fmt: skip
    for bits in (4,) if quick else (1, 1.58, 2, 4, 8, 16):
        yield f"{bits} bits, bfloat16", BFLOAT16 | {"bits": bits}
    if not quick:
        yield "4 bits, bfloat16, groups of 32", BFLOAT16 | {"group": 32}
        yield "4 bits, bfloat16, 2 micro-batches", BFLOAT16 | {"micro_batches": 2, "batch": 2}
        yield "4 bits, bfloat16, biases, norms, a head of its own", BFLOAT16 | {
            "attention_biases": 1, "head_norms": 1, "tied": 0,
        }  # fmt: skip
    for bits in (4,) if quick else (1.58, 4, 16):
        yield f"{bits} bits, bfloat16, also the logits", BFLOAT16 | {"bits": bits, "logits": "bfloat16"}


def run_case(tool, options):
    """All checks of one case, and how many of its steps were clipped."""
    with tempfile.TemporaryDirectory(prefix="train_qat_parity_") as directory:
        flags = [str(word) for name, value in options_of(options).items() for word in ("--" + name, value)]
        subprocess.run([tool, directory, *flags], check=True)
        config, tensors = read_dump(directory)
        clipped = sum(0 < config.clip_norm < tensors[f"step{step}/norm"][0] for step in range(config.steps))
        return Comparison(config, tensors).run().checks, clipped


def worst_errors(checks):
    """The largest error of each kind as a fraction of its tolerance, ignoring what must be exact."""
    worst = {}
    for check in checks:
        if check.tolerance > 0:
            kind = check.category
            worst[kind] = max(worst.get(kind, 0.0), check.error / check.tolerance)
    return worst


def default_tool():
    return HERE.parents[1] / "build" / "train_qat_parity"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tool", default=default_tool(), help="train_qat_parity; default: build/train_qat_parity")
    parser.add_argument("--quick", action="store_true", help="every bit width, but few shapes")
    arguments = parser.parse_args()
    if not os.access(arguments.tool, os.X_OK):
        print(f"run_parity.py: error: {arguments.tool} is not there; build it, or name it with --tool", file=sys.stderr)
        return 2
    torch.set_num_threads(2)
    start, passes, failures, overall = time.monotonic(), 0, 0, {}
    for name, options in cases(arguments.quick):
        dtype = options.get("dtype", "float32")
        try:
            checks, clipped = run_case(str(arguments.tool), options)
        except (subprocess.CalledProcessError, OSError, ValueError) as error:
            print(f"{name:52} FAILED: {error}", flush=True)
            failures += 1
            continue
        bad = sum(map(failed, checks))
        passes, failures = passes + len(checks) - bad, failures + bad
        worst = worst_errors(checks)
        for kind, error in worst.items():
            overall[dtype, kind] = max(overall.get((dtype, kind), 0.0), error)
        kind = max(worst, key=worst.get)
        counts = f"{len(checks) - bad:5} passed {bad:3} failed, {clipped:2} steps clipped"
        print(f"{name:52} {counts}, closest: {kind} {worst[kind]:.2f}", flush=True)
        if bad:
            print_table(filter(failed, checks))
    print("\nlargest error of all cases, as a fraction of its tolerance")
    for (dtype, kind), error in overall.items():
        print(f"  {dtype:9} {kind:28} {error:.3f}")
    print(f"{time.monotonic() - start:.0f} s")
    print(f"{passes} passed, {failures} failed")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
