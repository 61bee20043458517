#!/usr/bin/env python3
"""Run every test suite, side by side where there are cores for it, and sum up: the last line reads `N passed, N failed`.

    test/run_all.py                      all suites, of the programs in build/
    test/run_all.py cpp prepare          some of them

A line when a suite starts; all of its output when it ends. A suite that dies, hangs, runs no test or is not there counts
as a failed test. Exit status 1 when one failed.
"""
import argparse
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import namedtuple

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# OpenMP threads that wait soon go to sleep: two busy programs on one machine would else slow each other down greatly.
ENVIRONMENT = {"GOMP_SPINCOUNT": "1000", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}

# cores: of those that the pool hands out.
Suite = namedtuple("Suite", "title command environment cores", defaults=({}, 1))


def suites(build):
    """{name: Suite}, the longest first, so that none is left over in the end."""
    python = sys.executable
    kernels, sanitized = f"{build}/train_qat_kernel_test", f"{build}/{{}}/train_qat_kernel_test"
    emulated = {"TRAIN_QAT_TEST_DEVICES": "emulated"}
    small = {**emulated, "TRAIN_QAT_TEST_SMALL": "1"}
    return {
        # Blocks of a launch on two threads, for ThreadSanitizer to see them side by side.
        "thread": Suite("CUDA kernels on small shapes with ThreadSanitizer",
                        [sanitized.format("thread"), "[device]"],
                        {**small, "OMP_NUM_THREADS": "2"}),
        "address": Suite("CUDA kernels on small shapes with AddressSanitizer and UndefinedBehaviorSanitizer",
                         [sanitized.format("address"), "[device],[emulator],[cuda]"], small),
        "ranks": Suite("many ranks, over MPI", [python, "test/program/test_ranks.py", "--program", "./train_qat"]),
        "sweep": Suite("sweeps, over MPI", [python, "test/program/test_sweep.py", "--program", "./train_qat"]),
        "emulated": Suite("CUDA kernels, and models, on the emulated device",
                          [f"{build}/train_qat_test", "[device],[emulator],[cuda]"], emulated),
        "schedules": Suite("CUDA kernels in ten random orders of their threads, looking for races",
                           [python, "test/schedules.py", "--program", kernels], emulated),
        "collectives": Suite("ranks as processes: collectives and training, on the CPU and the emulated device",
                             [python, "test/program/rank_processes.py", "--program", f"{build}/train_qat_rank_test"]),
        "cpp": Suite("C++ on the CPU: kernels, model, data", [f"{build}/train_qat_test", "~[emulator]~[cuda]"],
                     {"TRAIN_QAT_TEST_DEVICES": "cpu"}),
        "program": Suite("the program, end to end", [python, "test/program/test_program.py", "--program", "./train_qat"]),
        "parity": Suite("training, against PyTorch",
                        [python, "test/torch/run_parity.py", "--tool", f"{build}/train_qat_parity"]),
        "variants": Suite("CUDA kernels of dev/cuda", [python, "test/kernel_variants.py", "--build", build], emulated),
        "benchmarks": Suite("every benchmark, for about a second", [python, "test/benchmarks.py", "--build", build]),
        "torch": Suite("the PyTorch reference itself", [python, "test/torch/self_test.py"]),
        "generation": Suite("-sample, of checkpoints", [python, "test/program/test_generation.py", "--program", "./train_qat"]),
        "evaluation": Suite("-eval_only, of checkpoints", [python, "test/program/test_evaluation.py", "--program", "./train_qat"]),
        "initial_model": Suite("training from Hugging Face folders",
                               [python, "test/program/test_initial_model.py", "--program", "./train_qat"]),
        "export": Suite("-export, at the end of a run", [python, "test/program/test_export.py", "--program", "./train_qat"]),
        "odd_input": Suite("odd input, shared places, recovery",
                           [python, "test/program/test_odd_input.py", "--program", "./train_qat"]),
        "ending": Suite("signals, and output that goes nowhere",
                        [python, "test/program/test_ending.py", "--program", "./train_qat"]),
        "fuzz_cpp": Suite("mutated inputs of every C++ reader, with AddressSanitizer and UndefinedBehaviorSanitizer",
                          [f"{build}/address/train_qat_fuzz", "--seconds", "2.5", "--corpus", "test/fuzz/corpus"]),
        "recipes": Suite("recipes and launchers", [python, "test/program/test_recipes.py", "--program", "./train_qat"]),
        "law": Suite("fits of the laws, on simulated runs", [python, "test/scripts/test_scaling_law.py"]),
        "trainer_law": Suite("the law in the trainer, against the one in Python",
                             [python, "test/scripts/test_law_in_trainer.py", "--program", "./train_qat"]),
        "exports": Suite("what exports read", [python, "test/scripts/test_exports.py", "--program", "./train_qat"]),
        "tokenizers": Suite("tokenizers as the trainer, data preparation and exports find them",
                            [python, "test/scripts/test_tokenizers.py", "--program", "./train_qat"]),
        "curves": Suite("plots of runs", [python, "test/scripts/test_plot_run.py"]),
        "prepare": Suite("data preparation", [python, "test/data/test_prepare.py"]),
        "prepare_input": Suite("data preparation of whatever people feed it", [python, "test/data/test_prepare_input.py"]),
        "fuzz_prepare": Suite("mutated input for the readers of data preparation and exports",
                              [python, "test/fuzz/fuzz_prepare.py", "--seconds", "15"]),
        "processes": Suite("data preparation whose processes die, are stopped, or are two",
                           [python, "test/data/test_prepare_processes.py"]),
        "hellaswag": Suite("HellaSwag's preparation", [python, "test/data/test_prepare_hellaswag.py"]),
        "scan": Suite("the CPU's matmuls of all small shapes", [kernels, "[.scan]"], {"TRAIN_QAT_TEST_DEVICES": "cpu"}),
        "rooms": Suite("which folder may include which, and that each header compiles alone", [python, "dev/rooms.py"]),
    }


def last(pattern, text):
    matches = list(re.finditer(pattern, text, re.MULTILINE))
    return matches[-1] if matches else None


def number(name, text):
    """The N of `name=N` (unittest) or `N name` (Catch2); 0 without one."""
    match = re.search(rf"(?:^|\W){name}=(\d+)|(\d+) {name}(?!\w| as)", text)
    return int(match[1] or match[2]) if match else 0


def read_counts(output):
    """(passed, failed, skipped) from the summary of our own scripts, unittest, or Catch2 2 and 3; else None."""
    match = last(r"^(\d+) passed, (\d+) failed", output)
    if match:
        return int(match[1]), int(match[2]), 0
    match = last(r"^Ran (\d+) tests? in .*\n\n?(OK|FAILED|NO TESTS RAN)(.*)$", output)
    if match:
        failed = sum(number(name, match[3]) for name in ("failures", "errors", "unexpected successes"))
        skipped = number("skipped", match[3])
        return max(0, int(match[1]) - failed - skipped), failed, skipped
    match = last(r"^All tests passed \(.*?(\d+) test cases?", output)
    if match:
        return int(match[1]), 0, 0
    match = last(r"^test cases: +\d+ *\|(.*)$", output)
    if match:
        expected = re.search(r"(\d+) failed as expected", match[1])
        passed = number("passed", match[1]) + (int(expected[1]) if expected else 0)
        return passed, number("failed", match[1]), number("skipped", match[1])
    return None


def kill(process):
    """The suite and everything that it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def run(command, environment, limit_seconds, running):
    """Returns (exit status, output, seconds of all cores); over the limit it is killed. It is in `running` meanwhile."""
    process = subprocess.Popen(command, cwd=ROOT, env={**ENVIRONMENT, **os.environ, **environment}, stdin=subprocess.DEVNULL,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
                               start_new_session=True)
    timer = threading.Timer(limit_seconds, kill, [process])
    timer.start()
    running.add(process)
    try:
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        return process.returncode, output, usage.ru_utime + usage.ru_stime
    finally:
        timer.cancel()
        kill(process)
        running.discard(process)


def status_text(status, seconds, limit_seconds):
    if status >= 0:
        return f"exit status {status}"
    if status == -signal.SIGKILL and seconds >= limit_seconds:
        return f"killed after {limit_seconds:.0f} s"
    return f"killed by {signal.Signals(-status).name}"


def run_suite(suite, limit_seconds, running):
    """Returns (passed, failed, skipped, seconds, seconds of all cores, note, output)."""
    started = time.monotonic()
    file = suite.command[1] if suite.command[0] == sys.executable else suite.command[0]
    if not os.path.exists(os.path.join(ROOT, file)):
        return 0, 1, 0, 0.0, 0.0, f"{file} is missing", ""
    try:
        status, output, core_seconds = run(suite.command, suite.environment, limit_seconds, running)
    except OSError as error:
        return 0, 1, 0, 0.0, 0.0, f"{file}: {error.strerror}", ""
    seconds = time.monotonic() - started
    passed, failed, skipped = read_counts(output) or (0, 0, 0)
    note = "" if status == 0 else status_text(status, seconds, limit_seconds)
    if failed == 0 and status != 0:
        failed = 1
    elif failed == 0 and passed == 0:
        failed, note = 1, "ran no test"
    return passed, failed, skipped, seconds, core_seconds, note, output


class Pool:
    """Runs suites in their order, each as soon as the cores that it wants are free."""

    def __init__(self, cores, limit_seconds):
        self.cores, self.free, self.limit_seconds = cores, cores, limit_seconds
        self.changed = threading.Condition()  # of `free` and `results`; held while something is printed
        self.results, self.running = {}, set()

    def work(self, name, suite, cores):
        result = run_suite(suite, self.limit_seconds, self.running)
        with self.changed:
            settings = "".join(f"{key}={value} " for key, value in suite.environment.items())
            print(f"\n==> {name}: {suite.title}\n    {settings}{' '.join(suite.command)}\n{result[6].rstrip()}")
            print(f"<== {name}: {result[0]} passed, {result[1]} failed, {result[3]:.0f} s {result[5]}".rstrip(), flush=True)
            self.results[name] = result[:6]
            self.free += cores
            self.changed.notify()

    def run(self, chosen):
        try:
            return self.run_all(chosen)
        finally:
            for process in set(self.running):  # after an interruption
                kill(process)

    def run_all(self, chosen):
        for name, suite in chosen.items():
            cores = min(suite.cores, self.cores)
            with self.changed:
                self.changed.wait_for(lambda: self.free >= cores)
                self.free -= cores
                print(f"... {name} starts", flush=True)
            threading.Thread(target=self.work, args=(name, suite, cores), daemon=True).start()
        with self.changed:
            self.changed.wait_for(lambda: len(self.results) == len(chosen))
        return {name: self.results[name] for name in chosen}


def print_table(results, times):
    print(f"\n{'suite':<13}{'passed':>8}{'failed':>8}{'skipped':>9}{'seconds':>9}{'of cores':>10}")
    for name, (passed, failed, skipped, seconds, core_seconds, note) in results.items():
        print(f"{name:<13}{passed:>8}{failed:>8}{skipped:>9}{seconds:>9.1f}{core_seconds:>10.1f}  {note}".rstrip())
    passed, failed = (sum(result[index] for result in results.values()) for index in (0, 1))
    print(f"\n{times}\n{passed} passed, {failed} failed", flush=True)
    return failed


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=f"of {', '.join(suites('build'))}; default: all")
    parser.add_argument("--build", default="build", metavar="DIRECTORY", help="where the programs are (build)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), metavar="CORES", help="cores to use (all)")
    parser.add_argument("--since", type=float, metavar="TIME", help="when the builds began, in seconds since 1970")
    parser.add_argument("--limit", type=float, default=1800, metavar="SECONDS", help="of a suite (1800)")
    arguments = parser.parse_args()
    known = suites(arguments.build)
    unknown = [name for name in arguments.suites if name not in known]
    if unknown:
        parser.error(f"no suite '{unknown[0]}': one of {', '.join(known)}")
    begin = time.time()
    results = Pool(max(1, arguments.jobs), arguments.limit).run({name: known[name] for name in arguments.suites or known})
    builds = f"builds {begin - arguments.since:.0f} s, " if arguments.since else ""
    return 1 if print_table(results, f"{builds}suites {time.time() - begin:.0f} s") else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
