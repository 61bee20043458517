#!/usr/bin/env python3
"""The benchmark of many ranks, on the CPU: what they send, how long a step takes, what a sweep saves.

    dev/bench/bench_ranks.py [--program build/train_qat] [--rounds 4] [--quick | --smoke] [bytes] [time] [sweep]

bytes   what a rank sends in an optimizer step: of small models as the runs record it and as MPI counts it, of large
        ones as the formulas of rank_traffic.py say, to which the small ones must agree
time    the step of one process and of two ranks, in turn; reported are medians, and medians of the rounds' ratios
sweep   3 token budgets x 5 fractions x 3 bit widths, every run alone and with shared steps: planned at 396M, trained
        at a tiny size, where both must give the same bits

All three without an argument. Prints tables, and progress to stderr; exit code 1 when a check fails. --smoke: a little of
each with tiny models: does everything still run?
"""

import argparse
import concurrent.futures
import itertools
import json
import math
import pathlib
import re
import statistics
import sys
import tempfile

sys.dont_write_bytecode = True

from rank_runs import Launcher, Quiet, Watch, progress, read_metrics, read_record, write_shards
from rank_traffic import Traffic, control_bytes, step_traffic

HERE = pathlib.Path(__file__).resolve().parent
GRID = HERE / "sweep_3x5x3.json"
failures = []


def check(met, text):
    """A line for a check; a failed one is repeated at the end."""
    if not met:
        failures.append(text)
    print(f"  {'ok' if met else 'FAILED'}: {text}")


# ---- bytes


def recorded(record, phase):
    sent = record["results"]["bytes_sent_per_step"][phase]
    return Traffic(sent["gradients"], sent["weights"], sent["unpacked_weights"])


class BytesTable:
    def __init__(self):
        print(f"{'':10}{'':7}{'':13}{'':6}{'gradients':>11}{'weights':>21}{'unpacked':>11}{'':>8}{'QAT step':>10}")
        print(f"{'model':10}{'ranks':7}{'bits':13}{'zero':6}{'both':>11}{'FP':>11}{'QAT':>10}{'QAT':>11}{'ratio':>8}"
              f"{'/ FP step':>10}")  # fmt: skip

    def row(self, name, ranks, bits, group, zero, full, quantized, source):
        text = f"{bits}, group {group}" if group else str(bits)
        sizes = [full.gradients, full.weights, quantized.weights, quantized.unpacked]
        columns = "".join(f"{megabytes(size):>{width}}" for size, width in zip(sizes, (11, 11, 10, 11)))
        ratio = f"{quantized.unpacked / quantized.weights:.1f}x" if quantized.weights else "-"
        print(f"{name:10}{ranks:<7}{text:13}{zero:<6}{columns}{ratio:>8}"
              f"{quantized.total() / full.total():>10.3f}  {source}")  # fmt: skip


def megabytes(count):
    return f"{count / 1e6:.{1 if count >= 1e8 else 3}f}" if count else "-"


def bytes_on_the_wire(launcher, words, counts, ranks):
    """Bytes that each rank hands to MPI in runs of these numbers of steps; nothing where MPI does not count."""
    sent, records = [], []
    for steps in counts:
        output = launcher.output()
        count = ["--mca", "pml_monitoring_enable", "1", "--mca", "pml_monitoring_enable_output", "3", "--mca",
                 "pml_monitoring_filename", f"{output}_mpi"] if launcher.open_mpi else []  # fmt: skip
        launcher.run([*words, "-steps", steps, "-o", output], launcher=launcher.ranks(ranks, *count))
        records.append(read_record(output))
        files = [pathlib.Path(f"{output}_mpi.{rank}.prof") for rank in range(ranks)]
        if all(file.exists() for file in files):
            sent.append([sum(int(count) for count in re.findall(r"^E\t\d+\t\d+\t(\d+) bytes", file.read_text(),
                                                                re.MULTILINE)) for file in files])  # fmt: skip
    return records[-1], sent if len(sent) == len(counts) else None


def measure_bytes(launcher, table, smoke):
    ranks, name = 2, "500K" if smoke else "5M"
    size = ["-n", name, "-vocab", 4096, "-seq_len", 64, "-batch", 2]
    data = write_shards(launcher.directory, 4096, 20000)[0]
    cases = [(1, 0, 1), (2, 0, 1), (4, 0, 1), (4, 32, 1), (8, 0, 1), (4, 0, 0)]
    shape = launcher.shape(size)
    formula, wire, counted = [], [], False
    for bits, group, zero in cases[:1] if smoke else cases:
        case = f"{bits} bits" + (f", group {group}" if group else "") + (", -zero 0" if zero == 0 else "")
        progress(f"bytes: {name} on {ranks} ranks, {case}")
        words = [*size, *data, "-b", bits, "-group", group, "-zero", zero, "-qat_frac", 0.5]
        record, sent = bytes_on_the_wire(launcher, words, (4, 8), ranks)
        element = 2 if record["configuration"]["dtype"] == "bfloat16" else 4
        phases = {"FP": 16, "QAT": bits}
        full, quantized = (recorded(record, phase) for phase in phases)
        table.row(name, ranks, bits, group, zero, full, quantized, "run")
        computed = [[step_traffic(shape, ranks, b, group, element, zero, rank) for b in phases.values()]
                    for rank in range(ranks)]  # fmt: skip
        if computed[0] != [full, quantized]:
            formula.append(f"{case}: the run records {full}, {quantized}, the formula gives {computed[0]}")
        if sent is None:
            continue
        counted = True
        # The longer run has two more steps of either kind.
        for rank, (short, long) in enumerate(zip(*sent)):
            expected = 2 * sum(step.total() for step in computed[rank]) + 4 * control_bytes(shape, ranks)
            if long - short != expected:
                wire.append(f"{case}: MPI counts {long - short} bytes of rank {rank}, the formula gives {expected}")
    return formula, wire, counted


def compute_bytes(launcher, table):
    shapes = {}
    for name in "86M", "396M", "759M", "2.2B":
        progress(f"bytes: {name}, computed")
        shapes[name] = launcher.shape(["-n", name, "-vocab", 32000, "-seq_len", 1024, "-batch", 1])
        cases = [(1, 0), (2, 0), (4, 0), (8, 0)] + ([(4, 32)] if name == "396M" else [])
        for bits, group in cases:
            steps = [step_traffic(shapes[name], 8, b, group) for b in (16, bits)]
            table.row(name, 8, bits, group, 1, *steps, "formula")
    return shapes


# NVIDIA's data sheets: H100 SXM, dense bfloat16 and one direction of its NVLink; ConnectX-7, 400 Gb/s for each GPU.
PEAK_FLOPS, NVLINK, INFINIBAND = 989.4e12, 450e9, 50e9


def print_floors(shapes, ranks=8, step_tokens=2**19):
    """Milliseconds of a step that no program undercuts."""
    print(f"\nfloors of a step of {step_tokens} tokens on {ranks} GPUs, computed, ms: FLOPs over"
          f" {PEAK_FLOPS / 1e12:.0f} TFLOP/s;\nbytes over {NVLINK / 1e9:.0f} GB/s (NVLink) or"
          f" {INFINIBAND / 1e9:.0f} GB/s (IB)")  # fmt: skip
    print(f"{'':10}{'':>10}{'gradients':>20}{'weights, bf16':>20}{'4 bits':>20}{'1 bit':>20}")
    print(f"{'model':10}{'compute':>10}" + f"{'NVLink':>10}{'IB':>10}" * 4)
    for name, shape in shapes.items():
        compute = shape.flops_per_token * step_tokens / ranks / PEAK_FLOPS
        full, four, one = (step_traffic(shape, ranks, bits) for bits in (16, 4, 1))
        sizes = [full.gradients, full.weights, four.weights, one.weights]
        times = [size / bandwidth for size in sizes for bandwidth in (NVLINK, INFINIBAND)]
        print(f"{name:10}{1e3 * compute:10.1f}" + "".join(f"{1e3 * seconds:10.2f}" for seconds in times))


def bench_bytes(launcher, arguments):
    print("bytes that rank 0 sends in an optimizer step, in MB (10^6)\n")
    table = BytesTable()
    formula, wire, counted = measure_bytes(launcher, table, arguments.smoke)
    shapes = compute_bytes(launcher, table)
    print(f"\n  run: measured, as run.json of a run on 2 ranks records it, {launcher.mpi}\n"
          "  formula: computed from the shape, vocabulary 32000, bfloat16")  # fmt: skip
    check(not formula, formula[0] if formula else "the measured rows are what the formula gives")
    if counted:
        check(not wire, wire[0] if wire else "MPI's own count of both ranks' bytes agrees to the byte, norms and losses"
              " included")  # fmt: skip
    else:
        print("  not counted by MPI itself: this one has no monitoring (Open MPI's pml_monitoring)")
    print_floors(shapes)


# ---- time


class Contestant:
    """A step of 8 sequences, trained in one way: by `ranks` ranks, or by `copies` processes side by side that know
    nothing of one another."""

    def __init__(self, name, threads=1, batch=8, ranks=1, zero=1, copies=1):
        self.name, self.threads, self.ranks, self.copies = name, threads, ranks, copies
        self.words = ["-batch", batch, "-zero", zero]
        self.rounds = {"FP": [], "QAT": []}  # of each round the median milliseconds of a step; None: disturbed

    def run(self, launcher, words):
        watch = Watch(launcher)
        prefix = launcher.ranks(self.ranks) if self.ranks > 1 else ()
        outputs = [launcher.output() for _ in range(self.copies)]
        processes = [launcher.start([*words, *self.words, "-o", output], launcher=prefix, threads=self.threads)
                     for output in outputs]  # fmt: skip
        for process in processes:
            launcher.finish(process)
        disturbed = watch.stop()
        for phase, rounds in self.rounds.items():
            step = statistics.mean(median_step(output, phase) for output in outputs)
            rounds.append(None if disturbed else step)
        return not disturbed

    def median(self, phase):
        """As text."""
        times = [milliseconds for milliseconds in self.rounds[phase] if milliseconds is not None]
        return f"{statistics.median(times):.1f}" if times else "-"

    def ratio(self, other, phase, spread=False):
        """Of our time to the other's in the same round, as text: the median, and half the distance of the extremes."""
        pairs = zip(self.rounds[phase], other.rounds[phase])
        ratios = [mine / its for mine, its in pairs if mine is not None and its is not None]
        if not ratios:
            return "-"
        half = f" +-{(max(ratios) - min(ratios)) / 2:.3f}" if spread and len(ratios) > 1 else ""
        return f"{statistics.median(ratios):.3f}{half}"


def median_step(output, phase):
    """Milliseconds, without the first step of a phase, which creates matmuls and touches memory."""
    tokens = read_record(output)["plan"]["tokens_per_step"]
    times = [1e3 * tokens / step["tokens_per_second"] for step in read_metrics(output) if step.get("phase") == phase]
    return statistics.median(times[1:])


def bench_time(launcher, arguments):
    layers, width, heads, ffn, steps = (1, 64, 1, 128, 4) if arguments.smoke else (6, 384, 6, 1024, 10)
    shape = ["-layers", layers, "-width", width, "-heads", heads, "-ffn", ffn, "-vocab", 8192, "-seq_len", 256]
    data = write_shards(launcher.directory, 8192, 100000)[0]
    words = [*shape, *data, "-b", 4, "-steps", steps, "-qat_frac", 0.5]
    one_thread = Contestant("1 process, 1 thread")
    two_threads = Contestant("1 process, 2 threads", threads=2)
    ranks = Contestant("2 ranks, 1 thread each, -zero 1", batch=4, ranks=2)
    undivided = Contestant("2 ranks, 1 thread each, -zero 0", batch=4, ranks=2, zero=0)
    strangers = Contestant("2 processes that share nothing, half each", batch=4, copies=2)
    contestants = [one_thread, two_threads, ranks, undivided, strangers]
    rounds, good = 1 if arguments.smoke else 2 if arguments.quick else arguments.rounds, 0
    for done in range(rounds):
        turn = done % len(contestants)
        for contestant in contestants[turn:] + contestants[:turn]:
            launcher.quiet.wait()
            progress(f"time: round {done + 1} of {rounds}, {contestant.name}")
            good += contestant.run(launcher, words)

    print(f"\ntime of an optimizer step of 8 sequences: {layers} layers, width {width}, heads {heads}, FFN {ffn},\n"
          f"vocabulary 8192, T 256, 4 bits; {rounds} rounds in turn, medians of the {good} of"
          f" {rounds * len(contestants)} runs that no other\nprogram disturbed\n")  # fmt: skip
    phases = "FP", "QAT"
    print(f"{'':44}{'ms, FP':>9}{'ms, QAT':>9}{'FP / first':>12}{'QAT / first':>13}")
    for contestant in contestants:
        times = "".join(f"{contestant.median(phase):>9}" for phase in phases)
        ratios = [contestant.ratio(one_thread, phase) for phase in phases]
        print(f"{contestant.name:44}{times}{ratios[0]:>12}{ratios[1]:>13}")
    print(f"\n  {'ratios in the same round: median, +- half their range':54}{'FP':>16}{'QAT':>16}")
    for text, mine, other in (
        ("2 ranks, -zero 1 / 1 process, 2 threads", ranks, two_threads),
        ("2 ranks, -zero 0 / 2 ranks, -zero 1", undivided, ranks),
        ("2 ranks, -zero 1 / 2 processes that share nothing", ranks, strangers),
        ("2 ranks, -zero 0 / 2 processes that share nothing", undivided, strangers),
    ):
        print(f"  {text:54}" + "".join(f"{mine.ratio(other, phase, spread=True):>16}" for phase in phases))
    if any(contestant.median("FP") == "-" for contestant in contestants):
        print("  -: always disturbed; --patience SECONDS waits longer for a quiet machine")


# ---- sweep


def planned_saving(text):
    """(runs, trunks, tokens alone, tokens shared, saving) of the program's own table."""
    total = re.search(r"^ +total +(\d+) +\d+ +\d+ +(\d+) +(\S+) +(\S+) +(\S+%)", text, re.MULTILINE)
    if not total:
        sys.exit("bench_ranks.py: error: -sweep -plan prints no line of totals")
    return total.groups()


def tiny_grid(grid, tokens_per_step, least_steps):
    """The same proportions: budgets of least_steps steps and their multiples."""
    def count(text):
        return float(text.rstrip("MB")) * {"M": 1e6, "B": 1e9}[text[-1]]
    smallest = min(map(count, grid["tokens"]))
    return dict(grid, tokens=[str(round(count(text) / smallest * least_steps) * tokens_per_step)
                              for text in grid["tokens"]])  # fmt: skip


def steps_and_losses(directory):
    """metrics.jsonl but for the speed."""
    return [{key: value for key, value in record.items() if key != "tokens_per_second"}
            for record in read_metrics(directory)]  # fmt: skip


def final_weights(directory):
    return max(directory.glob("step_*")).joinpath("model.safetensors").read_bytes()


def compare_runs(shared, alone):
    """What differs of a run that was trained both ways; nothing if not a bit does."""
    names = "full_precision_at_switch", "rounded_at_switch", "quantized"
    losses = [[read_record(directory)["results"][name] for name in names] for directory in (shared, alone)]
    if losses[0] != losses[1] or None in losses[0]:
        return f"validation losses {losses[0]}, alone {losses[1]}"
    if steps_and_losses(shared) != steps_and_losses(alone):
        return "metrics.jsonl differs"
    return "" if final_weights(shared) == final_weights(alone) else "weights differ"


def train_shared(launcher, words):
    """What the sweep printed, its runs' directories by (tokens, fraction, bits), and how long it took."""
    output = launcher.output()
    launcher.quiet.wait()
    progress("sweep: 500K, trained with shared steps")
    watch = Watch(launcher)
    text = launcher.run([*words, "-o", output], launcher=launcher.ranks(2))
    watch.stop()
    records = [json.loads(line) for line in (output / "results.jsonl").read_text().splitlines()]
    done = [record for record in records if record["status"] == "done"]
    return text, {(str(r["tokens"]), r["qat_frac"], r["b"]): launcher.directory / r["directory"] for r in done}, watch


def train_alone(launcher, words, points):
    """The directories of the runs, and how long all took, two at a time."""
    def train(point, output):
        tokens, fraction, bits = point
        launcher.run([*words, "-tokens", tokens, "-qat_frac", fraction, "-b", bits, "-o", output])
        return output

    launcher.quiet.wait()
    progress(f"sweep: 500K, {len(points)} runs trained alone, two at a time")
    watch = Watch(launcher)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        directories = list(pool.map(train, points, [launcher.output() for _ in points]))
    watch.stop()
    return directories, watch


def bench_sweep(launcher, arguments):
    train, validation = write_shards(launcher.directory, 512, 60000)
    grid = json.loads(GRID.read_text())
    progress("sweep: 396M, planned")
    size = ["-n", "396M", "-vocab", 32000, "-seq_len", 1024, "-batch", 32, "-grad_accum", 16, "-warmup", 300]
    text = launcher.run(["-sweep", GRID, "-plan", *size, *train, "-o", launcher.output()])
    rows = [("396M, planned", *planned_saving(text), "")]

    sequence, batch, least_steps = 64, 4, 10 if arguments.smoke else 50 if arguments.quick else 100
    if arguments.smoke:
        grid |= {"tokens": grid["tokens"][:1], "qat_frac": grid["qat_frac"][-1:]}
    tiny = tiny_grid(grid, sequence * batch, least_steps)
    path = launcher.directory / "tiny_sweep.json"
    path.write_text(json.dumps(tiny))
    words = ["-n", "500K", "-vocab", 512, "-seq_len", sequence, "-batch", batch, "-warmup", 4, *train, *validation,
             "-val_sequences", 16]  # fmt: skip
    points = list(itertools.product(tiny["tokens"], tiny["qat_frac"], tiny["b"]))
    points.sort(key=lambda point: -int(point[0]))  # large ones first, as the sweep does it
    text, shared, together = train_shared(launcher, [*words, "-sweep", path])
    alone, apart = train_alone(launcher, words, points)
    seconds = f"{apart.seconds:.1f} s alone, {together.seconds:.1f} s shared: "
    seconds += f"{100 * (1 - together.seconds / apart.seconds):.1f}%"
    if apart.disturbed or together.disturbed:
        seconds += " (disturbed by other programs)"
    rows.append(("500K, trained", *planned_saving(text), seconds))

    print(f"\nsweep of {GRID.name}: {len(grid['tokens'])} budgets x {len(grid['qat_frac'])} fractions x"
          f" {len(grid['b'])} bit widths\n")  # fmt: skip
    print(f"{'':16}{'runs':>6}{'segments':>10}{'tokens alone':>14}{'shared':>9}{'saving':>9}  wall-clock on 2 ranks")
    for name, *numbers, seconds in rows:
        print(f"{name:16}" + "".join(f"{n:>{w}}" for n, w in zip(numbers, (6, 10, 14, 9, 9))) + f"  {seconds}")
    different = []
    for point, directory in zip(points, alone):
        difference = compare_runs(shared[point], directory) if point in shared else "no result of the sweep"
        if difference:
            different.append(f"tokens {point[0]}, fraction {point[1]}, {point[2]} bits: {difference}")
    print()
    check(not different, f"{len(different)} of {len(points)} runs differ: {different[0]}" if different else
          f"all {len(points)} runs are the same both ways, bit by bit: losses, validations, weights")  # fmt: skip


def main():
    parts = {"bytes": bench_bytes, "time": bench_time, "sweep": bench_sweep}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", type=pathlib.Path, default=HERE.parent.parent / "build" / "train_qat")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--patience", type=float, default=30, help="seconds to wait in all for a quiet machine")
    parser.add_argument("--quick", action="store_true", help="two rounds, and half the steps of the trained sweep")
    parser.add_argument("--smoke", action="store_true", help="tiny models, busy machine or not")
    parser.add_argument("part", nargs="*", help="bytes, time, sweep: some of it (default: all)")
    arguments = parser.parse_args()
    for part in arguments.part:
        if part not in parts:
            parser.error(f"unknown part '{part}': bytes, time or sweep")
    program = arguments.program.resolve()
    if not program.exists():
        sys.exit(f"bench_ranks.py: error: {program} does not exist; build first (make bench-ranks does)")
    with tempfile.TemporaryDirectory(prefix="bench_ranks_") as directory:
        quiet = Quiet(0, allowed=math.inf) if arguments.smoke else Quiet(arguments.patience)
        launcher = Launcher(program, directory, quiet)
        for name, part in parts.items():
            if not arguments.part or name in arguments.part:
                part(launcher, arguments)
    progress("done")
    for text in failures:
        print(f"bench_ranks.py: FAILED: {text}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
