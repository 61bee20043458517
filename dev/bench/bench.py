#!/usr/bin/env python3
"""The benchmark: our training step against PyTorch's, in one run.

    dev/bench/bench.py [--program build/train_qat_bench] [--rounds 15] [--quick | --smoke] [--newest PYTHON | --no-newest]

All contestants are started first and then take turns, one step each, so that all see the same machine; reported are
medians and their ratios. The peers are Debian's PyTorch, that of the Python which runs this, and the newest one of PyPI
in a virtual environment that is made once, beside our program (build/bench_venv). Then the step of a 1M model against
the benchmark model's efficiency, and the memory of a 396M model's step. Prints versions, a table, and beside each aim
whether it was met; the exit code does not depend on the aims.
--smoke: one step each of a tiny model, without PyPI: does everything still run?
"""

import argparse
import os
import pathlib
import platform
import re
import statistics
import subprocess
import sys

sys.dont_write_bytecode = True

import newest_torch

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
EAGER, TUNED = HERE / "bench_pytorch_eager.py", HERE / "bench_pytorch.py"
SHAPE = {"layers": 6, "width": 384, "heads": 6, "ffn": 1024, "vocabulary": 8192, "sequence": 256, "batch": 8}
TINY = {"layers": 1, "width": 64, "heads": 1, "ffn": 128, "vocabulary": 512, "sequence": 32, "batch": 2}


class Contestant:
    """A program with --serve: answers the milliseconds of one step to each line `step`."""

    def __init__(self, name, command):
        self.name, self.times = name, []
        self.process = subprocess.Popen(
            [str(part) for part in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, cwd=ROOT,
        )  # fmt: skip
        self.banner = self.process.stdout.readline().strip()
        if not self.banner:
            raise RuntimeError(f"{name}: did not start: {self.last_words()}")
        if self.banner.startswith("peak"):
            self.process.stdout.readline()  # ready

    def last_words(self):
        return (self.process.stderr.read().strip().splitlines() or ["no output"])[-1]

    def step(self):
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        answer = re.search(r'"ms": ([0-9.]+)|^([0-9.]+)', self.process.stdout.readline())
        if not answer:
            raise RuntimeError(f"{self.name}: no answer: {self.last_words()}")
        return float(answer[1] or answer[2])

    def median(self):
        return statistics.median(self.times)

    def quit(self):
        self.process.stdin.close()
        self.process.wait(timeout=60)


def race(contestants, rounds):
    def show(text):
        if sys.stderr.isatty():
            print(f"\r{text:60}\r", end="", file=sys.stderr, flush=True)

    for contestant in contestants:  # twice: caches, matmul creation, allocators, compilers
        show(f"warming up {contestant.name}")
        contestant.step(), contestant.step()
    for done in range(rounds):
        show(f"round {done + 1}/{rounds}")
        for contestant in contestants:
            contestant.times.append(contestant.step())
    show("")
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
    return float(re.search(r"([0-9.]+)% of the measured", text)[1])


def newest_python(arguments):
    """The Python of the newest PyTorch; None, and a line that says why, where there is none to compare with."""
    if arguments.newest:
        return arguments.newest
    if arguments.no_newest or arguments.smoke:
        return None
    try:
        return newest_torch.python_of(arguments.program.parent / "bench_venv")
    except (OSError, subprocess.CalledProcessError, ValueError) as error:
        reason = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[-1]
        print(f"bench.py: the newest PyTorch can't be installed, Debian's alone is compared: {reason}", file=sys.stderr)
        return None


def peers_of(name, python, shape, newest):
    eager = [python, EAGER, *shape, "--serve", "--mode"]
    tuned = [python, TUNED, *shape, "--serve", "--mode", "bf16"]
    peers = [
        Contestant(f"{name}, fp32", [*eager, "fp32"]),
        Contestant(f"{name}, bf16 autocast", [*eager, "bf16"]),
        Contestant(f"{name}, hand-tuned bf16", tuned),
        Contestant(f"{name}, hand-tuned 4-bit QAT", [*tuned, "--qat", 4]),
    ]
    if newest:
        peers[2:2] = [
            Contestant(f"{name}, fp32, compiled", [*eager, "fp32", "--compile"]),
            Contestant(f"{name}, bf16 autocast, compiled", [*eager, "bf16", "--compile"]),
        ]
    return peers


def versions(groups):
    """Lines that say what was compared on what."""
    model = re.search(r"^model name\s*: (.*)", pathlib.Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    compiler = subprocess.run(["g++", "-dumpfullversion"], capture_output=True, text=True).stdout.strip()
    yield f"{model[1] if model else platform.machine()}, {os.cpu_count()} cores, Linux {platform.release()}"
    yield f"train_qat: g++ {compiler}"
    for name, peers in groups.items():
        yield f"{name}: {peers[0].banner}"


def print_aims(contestants, groups, own, tiny):
    base = contestants[0].median()
    debian, *newest = groups.values()
    plain = min(peer.median() for peer in debian[:2]) / base
    qat = max(contestant.median() for contestant in contestants[1:]) / base
    aims = [("Debian's PyTorch, best of fp32, bf16 autocast / ours", f"{plain:.2f}x", ">= 1.50", plain >= 1.5)]
    for peers in newest:
        own_ways = [peer for peer in peers if "hand-tuned" not in peer.name]
        best, tuned = (min(peer.median() for peer in some) / base for some in (own_ways, peers))
        aims.append(("newest PyTorch, best of eager and compiled / ours", f"{best:.2f}x", ">= 1.50", best >= 1.5))
        aims.append(("newest PyTorch, best of all, also hand-tuned / ours", f"{tuned:.2f}x", ">= 1.00", tuned >= 1))
    aims += [
        ("share of the measured bf16 matmul peak", f"{own:.1f}%", ">= 55", own >= 55),
        ("slowest QAT step / full-precision step", f"{qat:.3f}x", "<= 1.03", qat <= 1.03),
        ("1M model's share of the peak", f"{tiny:.1f}%", ">= half", 2 * tiny >= own),
    ]
    print("\naims")
    for aim in aims:
        print_aim(*aim)


def print_aim(name, value, wanted, met):
    print(f"  {name:54}{value:>9}  ({wanted:7})  {'met' if met else 'MISSED'}")


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", type=pathlib.Path, default=ROOT / "build" / "train_qat_bench")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of every contestant")
    parser.add_argument("--quick", action="store_true", help="few rounds, without the 396M model")
    parser.add_argument("--smoke", action="store_true", help="one round of a tiny model, without PyPI and aims")
    parser.add_argument("--newest", metavar="PYTHON", help="a Python with a PyTorch to compare with, instead of PyPI's")
    parser.add_argument("--no-newest", action="store_true", help="Debian's PyTorch alone")
    arguments = parser.parse_args()
    arguments.program = arguments.program.resolve()
    if not arguments.program.exists():
        sys.exit(f"bench.py: error: {arguments.program} does not exist; build first (make bench does)")
    return arguments


def main():
    sys.stdout.reconfigure(line_buffering=True)
    arguments = parse_arguments()
    program, sizes = arguments.program, TINY if arguments.smoke else SHAPE
    rounds = 1 if arguments.smoke else 5 if arguments.quick else arguments.rounds
    threads = ["--threads", arguments.threads]
    shape = [word for name, size in (sizes | {"kv-heads": sizes["heads"]}).items() for word in (f"--{name}", size)]
    shape += threads
    contestants = [Contestant("train_qat, full-precision step", [program, *shape, "--serve"])]
    for bits in (4, 2, 1):
        contestants.append(Contestant(f"train_qat, {bits}-bit QAT step", [program, *shape, "--serve", "--bits", bits]))
    groups = {"Debian's PyTorch": peers_of("Debian's PyTorch", sys.executable, shape, newest=False)}
    python = newest_python(arguments)
    if python:
        groups["newest PyTorch"] = peers_of("newest PyTorch", python, shape, newest=True)
    everyone = contestants + [peer for peers in groups.values() for peer in peers]
    race(everyone, rounds)

    print(*versions(groups), sep="\n")
    peak = float(re.search(r"peak ([0-9.]+)", contestants[0].banner)[1])
    print(", ".join(f"{name} {size}" for name, size in sizes.items()) + f"; {arguments.threads} threads")
    print(f"{rounds} rounds in turn, medians; measured matmul peak {peak:.0f} GFLOP/s (bf16)\n")
    print(f"{'':40}{'ms/step':>9}{'tokens/s':>10}{'time / ours':>13}")
    tokens, base = sizes["batch"] * sizes["sequence"], contestants[0].median()
    for contestant in everyone:
        median = contestant.median()
        print(f"{contestant.name:40}{median:9.1f}{tokens / median * 1e3:10.0f}{median / base:13.2f}")
    if arguments.smoke:
        return
    own = efficiency(run_bench(program, *threads, "--steps", 10 if arguments.quick else 30)[0])
    tiny = efficiency(run_bench(program, *threads, "--size", "1M", "--vocabulary", 4096, "--steps", 50)[0])
    print_aims(contestants, groups, own, tiny)
    if not arguments.quick:
        large = ["--size", "396M", "--vocabulary", 32000, "--batch", 1, "--bits", 4, "--steps", 2]
        memory = run_bench(program, *threads, *large)[1]
        print_aim("396M model, batch 1, T 256: peak memory", f"{memory:.2f} GiB", "< 10", memory < 10)


if __name__ == "__main__":
    try:
        main()
    except RuntimeError as error:
        sys.exit(f"bench.py: error: {error}")
