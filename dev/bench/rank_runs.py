"""How the benchmark of many ranks runs the program, on what data, and how it knows that others disturbed it."""

import json
import os
import pathlib
import re
import subprocess
import sys
import time

from chain_shards import write_chain_shards
from rank_traffic import Shape

START = time.monotonic()
QUIET = 0.05 * (os.cpu_count() or 1)  # cores that others may take; a run beside busier programs does not count


def progress(text):
    print(f"[{time.monotonic() - START:4.0f} s] {text}", file=sys.stderr, flush=True)


class Launcher:
    """How the program runs, alone and on ranks."""

    def __init__(self, program, directory, quiet):
        self.program, self.directory, self.quiet, self.runs = program, pathlib.Path(directory), quiet, 0
        self.processor_times = []  # of every finished process
        try:
            version = subprocess.run(["mpirun", "--version"], capture_output=True, text=True).stdout
        except FileNotFoundError:
            sys.exit("bench_ranks.py: error: mpirun is not installed; install openmpi-bin and build again")
        self.open_mpi = "Open MPI" in version
        self.mpi = version.splitlines()[0]
        # The numbers are the CPU's. Open MPI asks those who are root, as in containers, whether they mean it.
        self.environment = dict(os.environ, CUDA_VISIBLE_DEVICES="", OMPI_ALLOW_RUN_AS_ROOT="1",
                                OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")  # fmt: skip

    def output(self):
        self.runs += 1
        return self.directory / f"run_{self.runs}"

    def ranks(self, count, *options):
        """The words before the program: ranks that run wherever there is a free core."""
        place = ["--oversubscribe", "--bind-to", "none"] if self.open_mpi else []
        return ["mpirun", "-np", str(count), *place, *options]

    def start(self, words, launcher=(), threads=1):
        command = [*launcher, str(self.program), "-device", "cpu", "-threads", str(threads), *map(str, words)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                env=self.environment, cwd=self.directory)  # fmt: skip

    def finish(self, process):
        """What it printed."""
        text = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        self.processor_times.append(usage.ru_utime + usage.ru_stime)  # with those that it started
        if process.returncode:
            lines = text.strip().splitlines() or ["no output"]
            reason = next((line for line in lines if "error:" in line), lines[-1])
            sys.exit(f"bench_ranks.py: error: {' '.join(process.args)} failed: {reason}")
        return text

    def run(self, words, **how):
        return self.finish(self.start(words, **how))

    def shape(self, flags):
        text = self.run([*flags, "-plan", "-steps", 100, "-qat_frac", 0.5])

        def number(name):
            return float(re.search(rf"^ +{name} +([0-9,.]+)", text, re.MULTILINE).group(1).replace(",", ""))

        head_dim = int(re.search(r"^ +heads +\d+ x (\d+)", text, re.MULTILINE).group(1))
        sizes = [int(number(name)) for name in ("layers", "width", "heads", "kv heads", "ffn", "vocabulary")]
        shape = Shape(*sizes[:3], head_dim, *sizes[3:], flops_per_token=number("training") * 1e9)
        if shape.parameters() != number("parameters"):
            sys.exit(f"bench_ranks.py: error: cannot make out the shape of {' '.join(map(str, flags))}")
        return shape


def write_shards(directory, vocabulary, count):
    """Shards of dev/bench/chain_shards.py in the directory; the options that name them."""
    prefix = directory / f"chain_{vocabulary}"
    write_chain_shards(prefix, vocabulary, count)
    return ["-i", f"{prefix}_train_*.bin"], ["-j", f"{prefix}_val_*.bin"]


def read_record(directory):
    return json.loads((directory / "run.json").read_text())


def read_metrics(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def busy_seconds():
    """Of all processors together, since the start of the machine: of all programs, and what a hypervisor took."""
    user, nice, system, _, _, *others = map(int, pathlib.Path("/proc/stat").read_text().splitlines()[0].split()[1:9])
    return (user + nice + system + sum(others)) / os.sysconf("SC_CLK_TCK")


class Watch:
    """How long something takes, from now until stop(), and whether other programs disturbed it."""

    def __init__(self, launcher):
        self.launcher = launcher
        self.begin, self.busy, self.own = time.monotonic(), busy_seconds(), sum(launcher.processor_times)

    def stop(self):
        self.seconds = time.monotonic() - self.begin
        others = busy_seconds() - self.busy - (sum(self.launcher.processor_times) - self.own)
        self.disturbed = others / self.seconds > self.launcher.quiet.allowed
        return self.disturbed


class Quiet:
    """Waits for a machine of which other programs take at most `allowed` cores, `patience` seconds in all."""

    def __init__(self, patience, allowed=QUIET):
        self.patience, self.allowed = patience, allowed

    def wait(self):
        interval = 0.5
        said = False
        while self.patience > 0:
            begin = busy_seconds()
            time.sleep(interval)
            self.patience -= interval
            if busy_seconds() - begin <= self.allowed * interval:
                return
            if not said:
                progress(f"waiting for other programs to finish, {self.patience:.0f} s at most")
            said = True
