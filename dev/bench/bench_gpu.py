#!/usr/bin/env python3
"""The benchmark of GPUs: our training steps beside PyTorch's, in turn on one card, on the same shapes.

    dev/bench/bench_gpu.py                                  all sizes; half an hour and more, most of it torch.compile
    dev/bench/bench_gpu.py --sizes 124M,350M -o rows.jsonl  two of them; appends every row, with card and versions, to a file
    dev/bench/bench_gpu.py --device cpu --smoke             the same on the CPU with a tiny model: does it still run?

Ours: full precision, and QAT at 4, 2 and 1 bits with fused and with cuBLASLt matmuls; --hopper: and by the kernels for an H100 or
H200, in full precision and at 4 bits, as levels and as packed codes, with logits in bfloat16. PyTorch: torch.compile, bfloat16
autocast, fused AdamW, attention by flash and by cuDNN kernels; and LSQ fake quantization at 4 bits. llm.c and llmq where
their programs are named. Contestants run one after another, each for `--steps` steps, and all of that `--rounds` times;
reported is the median of the later half of the steps. A contestant that fails is one line and not the end.

MFU: (6 N_matmul + 6 L T C) tokens/s over the card's dense bfloat16 peak by kernels/cuda/platform/data_sheet.h. Memory: on
a card, what is in use above what was before; on a CPU, the process's resident memory. The ratios: tokens/s over those of
PyTorch's fastest way in full precision, and with LSQ. train_qat saves what it trained: TMPDIR must have room for 12 bytes
a parameter, 19 GB for 1.56B.
"""

import argparse
import datetime
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

sys.dont_write_bytecode = True

from gpu_card import Card, Processor
from gpu_contestants import Failure, LlmC, Llmq, Ours, PyTorch, Size, Tokens

ROOT = pathlib.Path(__file__).resolve().parents[2]
SIZES = [
    Size("124M", layers=12, width=768, heads=12, ffn=2048, batch=32),
    Size("350M", layers=24, width=1024, heads=16, ffn=2736, batch=32),
    Size("774M", layers=36, width=1280, heads=20, ffn=3408, batch=16),
    Size("1.56B", layers=48, width=1600, heads=25, ffn=4272, batch=8),
]
TINY = Size("smoke", layers=1, width=64, heads=1, ffn=128, batch=2, sequence=32, vocabulary=512)
START = time.monotonic()


def fail(text):
    print(f"bench_gpu.py: error: {text}", file=sys.stderr)
    sys.exit(2)


def progress(text):
    print(f"[{time.monotonic() - START:5.0f} s] {text}", file=sys.stderr, flush=True)


class Result:
    """What the runs of one contestant gave on one size."""

    def __init__(self, contestant, size):
        self.contestant, self.size, self.runs, self.error = contestant, size, [], None

    def speed_of(self, runs):
        """Tokens/s by the median of the later half of every run's steps."""
        later = [time for run in runs for time in run.milliseconds[len(run.milliseconds) // 2 :]]
        return 1e3 * self.size.tokens() / statistics.median(later)

    def speed(self):
        return self.speed_of(self.runs) if self.runs else None

    def memory(self):
        return max(run.memory for run in self.runs) if self.runs else None

    def utilization(self, card):
        """0 to 1; None where the card's peak is not known."""
        if not self.runs or not card.peak:
            return None
        return self.size.flops_per_token() * self.speed() / card.peak


def fastest(results, bits):
    """Tokens/s of PyTorch's fastest way; None where it has none."""
    return max((r.speed() for r in results if r.contestant.kind == "PyTorch" and r.contestant.bits == bits and r.runs),
               default=None)  # fmt: skip


def measure(size, contestants, arguments, card, scratch):
    """Results of a size, all contestants in turn."""
    results = [Result(contestant, size) for contestant in contestants]
    tokens = Tokens(scratch, size, arguments.steps)
    for number in range(arguments.rounds):
        for result in results:
            if result.error:
                continue
            directory = scratch / "run"
            try:
                run = result.contestant.run(size, arguments.steps, tokens, directory, card, arguments.limit)
                result.runs.append(run)
                said = f"{result.speed_of([run]):,.0f} tokens/s"
            except Failure as failure:
                result.error = said = str(failure)
            # Checkpoints of gigabytes.
            shutil.rmtree(directory, ignore_errors=True)
            progress(f"{size.name}, round {number + 1}/{arguments.rounds}: {result.contestant.name}: {said}")
    return results


def rows_of(results, arguments, card):
    """A dictionary of every result, for people who read files."""
    plain, quantized = fastest(results, 16), fastest(results, 4)
    for result in results:
        size, speed, contestant = result.size, result.speed(), result.contestant
        yield {
            "size": size.name, "contestant": contestant.name, "kind": contestant.kind, "bits": contestant.bits,
            "tokens_per_second": speed, "mfu": result.utilization(card), "peak_memory_bytes": result.memory(),
            "ratio_to_pytorch": speed / plain if speed and plain else None,
            "ratio_to_pytorch_lsq": speed / quantized if speed and quantized else None,
            "rounds": [result.speed_of([run]) for run in result.runs], "error": result.error,
            "shape": size._asdict(), "steps": arguments.steps, "device": arguments.device,
            "card": card.name, "driver": card.driver, "peak_flops": card.peak,
            "versions": result.runs[-1].versions if result.runs else None,
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        }  # fmt: skip


def print_table(size, rows):
    def number(value, pattern):
        return pattern.format(value) if value is not None else "-"

    print(f"\n{size.name}: {size.layers} x {size.width}, {size.heads} heads, ffn {size.ffn}, batch {size.batch} x "
          f"{size.sequence}, vocabulary {size.vocabulary:,}")  # fmt: skip
    print(f"{'':38}{'tokens/s':>10}{'MFU':>8}{'GiB':>8}{'/ PyTorch':>11}{'/ its LSQ':>11}")
    for row in rows:
        memory = row["peak_memory_bytes"]
        print(f"{row['contestant']:38}{number(row['tokens_per_second'], '{:,.0f}'):>10}{number(row['mfu'], '{:.1%}'):>8}"
              f"{number(memory and memory / 2**30, '{:.2f}'):>8}{number(row['ratio_to_pytorch'], '{:.3f}'):>11}"
              f"{number(row['ratio_to_pytorch_lsq'], '{:.3f}'):>11}{'  ' + row['error'] if row['error'] else ''}")  # fmt: skip


def pytorch_compiles(python, device):
    """Whether this Python's PyTorch has torch.compile. Ends the program where it has no PyTorch for the device."""
    code = "import torch; print(torch.__version__, hasattr(torch, 'compile'), torch.cuda.is_available())"
    try:
        result = subprocess.run([python, "-c", code], capture_output=True, text=True)
    except OSError as error:
        fail(f"--python: {python}: {error.strerror}")
    if result.returncode:
        fail(f"--python: {python} has no PyTorch; name one that has, or take --only ours")
    version, compiles, finds_card = result.stdout.split()
    if device == "cuda" and finds_card == "False":
        fail(f"--python: PyTorch {version} of {python} finds no GPU; name one built for CUDA, or take --only ours")
    if compiles == "False":
        progress(f"PyTorch {version} has no torch.compile: it runs as it is")
    return compiles == "True"


def contestants_of(arguments):
    threads, device = arguments.threads, arguments.device
    chosen = []
    if arguments.only != "pytorch":
        gemms = ("fused", "cublaslt") if device == "cuda" else ("auto",)  # a choice of CUDA's matmuls
        chosen.append(Ours(arguments.program, device, threads))
        chosen += [Ours(arguments.program, device, threads, bits, gemm) for bits in (4, 2, 1) for gemm in gemms]
        if arguments.hopper:
            chosen.append(Ours(arguments.program, device, threads, hopper=True))
            chosen += [Ours(arguments.program, device, threads, 4, gemm, True) for gemm in ("cublaslt", "hopper")]
    if arguments.only != "ours":
        compiled = pytorch_compiles(arguments.python, device)
        kernels = ("flash", "cudnn") if device == "cuda" else (None,)
        chosen += [PyTorch(arguments.python, device, threads, compiled, bits, kernel) for bits in (16, 4) for kernel in kernels]
    if arguments.llmc:
        chosen.append(LlmC(arguments.llmc))
    if arguments.llmq:
        chosen.append(Llmq(arguments.llmq))
    return chosen


def sizes_of(arguments):
    if arguments.smoke:
        return [TINY]
    known = {size.name: size for size in SIZES}
    names = arguments.sizes.split(",") if arguments.sizes else list(known)
    unknown = [name for name in names if name not in known]
    if unknown:
        fail(f"--sizes: no size '{unknown[0]}': some of {','.join(known)}")
    return [known[name] for name in names]


def card_of(device):
    if device == "cpu":
        return Processor()
    try:
        return Card()
    except ValueError as error:
        fail(f"no GPU: {error}; try --device cpu --smoke")


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    beside = ROOT / "train_qat"  # of a bundle, or make's link
    parser.add_argument("--program", default=beside, metavar="PATH", help="train_qat (./train_qat)")
    parser.add_argument("--python", default=sys.executable, help="with the PyTorch to compare with (the one that runs this)")
    parser.add_argument("--only", choices=("ours", "pytorch"))
    parser.add_argument("--hopper", action="store_true", help="ours by Hopper's own instructions too, which `auto` does not choose")
    parser.add_argument("--llmc", metavar="PATH", help="llm.c's train_gpt2cu, to compare with it too")
    parser.add_argument("--llmq", metavar="PATH", help="llmq's train, to compare with it too")
    parser.add_argument("--sizes", metavar="NAMES", help="some of 124M,350M,774M,1.56B, between commas (all)")
    parser.add_argument("--steps", type=int, help="of every run (30)")
    parser.add_argument("--rounds", type=int, help="runs of every contestant (2)")
    parser.add_argument("--limit", type=float, default=1200, metavar="SECONDS", help="of a run (1200)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="CPU threads (all)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--smoke", action="store_true", help="a tiny model, one round of few steps")
    parser.add_argument("-o", "--output", metavar="FILE", help="append the rows to it, one JSON object a line")
    arguments = parser.parse_args()
    arguments.steps = arguments.steps if arguments.steps is not None else 4 if arguments.smoke else 30
    arguments.rounds = arguments.rounds if arguments.rounds is not None else 1 if arguments.smoke else 2
    if arguments.steps < 2 or arguments.rounds < 1:
        fail("--steps must be at least 2, --rounds at least 1")
    if arguments.output:
        try:
            open(arguments.output, "a").close()
        except OSError as error:
            fail(f"--output: {arguments.output}: {error.strerror}")
    for name in "program", "llmc", "llmq":
        path = getattr(arguments, name)
        if path and not (name == "program" and arguments.only == "pytorch"):
            path = pathlib.Path(path).resolve()
            if not os.access(path, os.X_OK) or path.is_dir():
                fail(f"--{name}: {path} is no program; build it, or name another")
            setattr(arguments, name, path)
    return arguments


def main():
    sys.stdout.reconfigure(line_buffering=True)
    arguments = parse_arguments()
    sizes, card = sizes_of(arguments), card_of(arguments.device)
    contestants = contestants_of(arguments)
    peak = f"{card.peak / 1e12:.0f} TFLOP/s of dense bfloat16" if card.peak else "peak not in data_sheet.h, so no MFU"
    print(f"{card.name}, driver {card.driver or '-'}, {peak}; {arguments.steps} steps, {arguments.rounds} rounds")
    everything = []
    with tempfile.TemporaryDirectory(prefix="bench_gpu_") as scratch:
        for size in sizes:
            directory = pathlib.Path(scratch) / size.name
            directory.mkdir()
            rows = list(rows_of(measure(size, contestants, arguments, card, directory), arguments, card))
            shutil.rmtree(directory)
            print_table(size, rows)
            if arguments.output:
                with open(arguments.output, "a") as file:
                    file.writelines(json.dumps(row) + "\n" for row in rows)
            everything += rows
    print(*dict.fromkeys(row["versions"] for row in everything if row["versions"]), sep="\n")
    return 0 if any(row["tokens_per_second"] for row in everything) else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
