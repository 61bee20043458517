#!/usr/bin/env python3
"""The benchmark: our training step against PyTorch's, in one run.

    dev/bench/bench.py [--program build/train_qat_bench] [--rounds 15] [--quick]

All contestants are started first and then take turns, one step each, so that all see the same machine; reported are
medians and their ratios. Then the step of a 1M model against the benchmark model's efficiency, and the memory of a
396M model's step. Prints a table, and beside each aim whether it was met; the exit code does not depend on it.
"""

import argparse
import os
import pathlib
import re
import statistics
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
TOKENS = 8 * 256


class Contestant:
    """A program with --serve: answers the milliseconds of one step to each line `step`."""

    def __init__(self, name, command):
        self.name, self.times = name, []
        self.process = subprocess.Popen(
            [str(part) for part in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, cwd=HERE.parent.parent,
        )  # fmt: skip
        self.banner = self.process.stdout.readline().strip()
        if not self.banner:
            raise RuntimeError(f"{name}: did not start: {self.process.stderr.read().strip().splitlines()[-1:]}")
        if self.banner.startswith("peak"):
            self.process.stdout.readline()  # ready

    def step(self):
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        return float(re.search(r'"ms": ([0-9.]+)|^([0-9.]+)', answer).group(0).replace('"ms": ', ""))

    def quit(self):
        self.process.stdin.close()
        self.process.wait(timeout=60)


def race(contestants, rounds):
    for contestant in contestants:  # twice: caches, matmul creation, allocators
        contestant.step(), contestant.step()
    for done in range(rounds):
        for contestant in contestants:
            contestant.times.append(contestant.step())
        if sys.stderr.isatty():
            print(f"\rround {done + 1}/{rounds}", end="", file=sys.stderr, flush=True)
    if sys.stderr.isatty():
        print("\r" + " " * 20 + "\r", end="", file=sys.stderr)
    for contestant in contestants:
        contestant.quit()


def run_bench(program, *options):
    """Runs the step benchmark alone; returns its text and its peak resident memory in GiB."""
    process = subprocess.Popen([str(program), *map(str, options)], stdout=subprocess.PIPE, text=True)
    text = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"bench.py: error: {program} {' '.join(map(str, options))} failed")
    return text, usage.ru_maxrss / 2**20


def efficiency(text):
    """Percent of the matmul peak that was measured in the same process."""
    return float(re.search(r"([0-9.]+)% of the measured", text).group(1))


def verdict(met):
    return "met" if met else "MISSED"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", type=pathlib.Path, default=HERE.parent.parent / "build" / "train_qat_bench")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="few rounds, without the 396M model")
    arguments = parser.parse_args()
    if not arguments.program.exists():
        sys.exit(f"bench.py: error: {arguments.program} does not exist; build first (make bench does)")
    rounds = 5 if arguments.quick else arguments.rounds
    program, python = arguments.program, sys.executable
    eager, tuned = HERE / "bench_pytorch_eager.py", HERE / "bench_pytorch.py"
    full = Contestant("train_qat, full-precision step", [program, "--serve"])
    contestants = [full]
    for bits in (4, 2, 1):
        contestants.append(Contestant(f"train_qat, {bits}-bit QAT step", [program, "--serve", "--bits", bits]))
    peers = [
        Contestant("PyTorch, fp32", [python, eager, "--mode", "fp32", "--serve"]),
        Contestant("PyTorch, bf16 autocast", [python, eager, "--mode", "bf16", "--serve"]),
        Contestant("PyTorch, hand-tuned bf16", [python, tuned, "--mode", "bf16", "--serve"]),
        Contestant("PyTorch, hand-tuned 4-bit QAT", [python, tuned, "--mode", "bf16", "--qat", 4, "--serve"]),
    ]
    peak = float(re.search(r"peak ([0-9.]+)", full.banner).group(1))
    race(contestants + peers, rounds)

    base = statistics.median(full.times)
    print(f"13.8M model: 6 layers, width 384, 6 heads, FFN 1024, vocabulary 8192, T 256, batch 8; {peers[0].banner}")
    print(f"{rounds} rounds in turn, medians; measured matmul peak {peak:.0f} GFLOP/s (bf16)\n")
    print(f"{'':36}{'ms/step':>9}{'tokens/s':>10}{'time / ours':>13}")
    for contestant in contestants + peers:
        median = statistics.median(contestant.times)
        print(f"{contestant.name:36}{median:9.1f}{TOKENS / median * 1e3:10.0f}{median / base:13.2f}")

    best = min(statistics.median(peer.times) for peer in peers[:2])
    qat = max(statistics.median(c.times) for c in contestants[1:])
    own = efficiency(run_bench(program, "--steps", 10 if arguments.quick else 30)[0])
    tiny = efficiency(run_bench(program, "--size", "1M", "--vocabulary", 4096, "--steps", 50)[0])
    print("\naims")
    print(f"  PyTorch's best of fp32, bf16 autocast / ours  {best / base:6.2f}x   (>= 1.50) {verdict(best >= 1.5 * base)}")
    print(f"  share of the measured bf16 matmul peak        {own:6.1f}%   (>= 55)   {verdict(own >= 55)}")
    print(f"  slowest QAT step / full-precision step        {qat / base:6.3f}x   (<= 1.03) {verdict(qat <= 1.03 * base)}")
    print(f"  1M model's share of the peak                  {tiny:6.1f}%   (>= half)  {verdict(2 * tiny >= own)}")
    if arguments.quick:
        return
    memory = run_bench(program, "--size", "396M", "--vocabulary", 32000, "--batch", 1, "--bits", 4, "--steps", 2)[1]
    print(f"  396M model, batch 1, T 256: peak memory       {memory:6.2f} GiB (< 10)   {verdict(memory < 10)}")


if __name__ == "__main__":
    main()
