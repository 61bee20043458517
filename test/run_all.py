#!/usr/bin/env python3
"""Run every test suite, show its output, and sum up: the last line reads `N passed, N failed`.

    test/run_all.py                      all suites, of the programs in build/
    test/run_all.py cpp prepare          some of them

A suite that dies, hangs, runs no test or is not there counts as a failed test. Exit status 1 when one failed.
"""
import argparse
import os
import re
import signal
import subprocess
import sys
import threading
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# OpenMP threads that wait soon go to sleep: two busy programs on one machine would else slow each other down greatly.
ENVIRONMENT = {"GOMP_SPINCOUNT": "20000", "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}


def suites(build):
    """{name: (what it tests, command, environment)}"""
    python = sys.executable
    kernels, sanitized = f"{build}/train_qat_kernel_test", f"{build}/{{}}/train_qat_kernel_test"
    on_device = "[device],[emulator],[cuda]"
    # Launches are many and short: threads that wait for the next one must not take the core from others.
    emulated = {"TRAIN_QAT_TEST_DEVICES": "emulated", "GOMP_SPINCOUNT": "1000"}
    return {
        "cpp": ("C++ on the CPU: kernels, model, data", [f"{build}/train_qat_test", "~[emulator]~[cuda]"],
                {"TRAIN_QAT_TEST_DEVICES": "cpu"}),
        "emulated": ("CUDA kernels, and models, on the emulated device", [f"{build}/train_qat_test", on_device],
                     emulated),
        "variants": ("CUDA kernels of dev/cuda", [python, "test/kernel_variants.py", "--build", build], emulated),
        "schedules": ("CUDA kernels in ten random orders of their threads, looking for races",
                      [python, "test/schedules.py", "--program", kernels], emulated),
        "address": ("CUDA kernels with AddressSanitizer and UndefinedBehaviorSanitizer",
                    [sanitized.format("address"), on_device], emulated),
        "thread": ("CUDA kernels on small shapes with ThreadSanitizer", [sanitized.format("thread"), "[device]~*large heads*~*very long rows*"],
                   {**emulated, "TRAIN_QAT_TEST_SMALL": "1"}),
        "prepare": ("data preparation", [python, "test/data/test_prepare.py"], {}),
        "torch": ("the PyTorch reference itself", [python, "test/torch/self_test.py"], {}),
        "parity": ("training, against PyTorch",
                   [python, "test/torch/run_parity.py", "--tool", f"{build}/train_qat_parity"], {}),
        "collectives": ("ranks as processes: collectives and training, on the CPU and the emulated device",
                        [python, "test/ranks/rank_processes.py", "--program", f"{build}/train_qat_rank_test"], {"GOMP_SPINCOUNT": "1000"}),
        "program": ("the program, end to end", [python, "test/program/test_program.py", "--program", "./train_qat"], {}),
        "recipes": ("recipes and launchers", [python, "test/program/test_recipes.py", "--program", "./train_qat"], {}),
        "ranks": ("many ranks and sweeps, over MPI", [python, "test/program/test_ranks.py", "--program", "./train_qat"], {}),
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


def run(command, environment, limit_seconds):
    """Shows the output as it comes. Returns (exit status, output); a suite over the limit is killed."""
    process = subprocess.Popen(command, cwd=ROOT, env={**ENVIRONMENT, **os.environ, **environment}, stdin=subprocess.DEVNULL,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
                               start_new_session=True)
    timer = threading.Timer(limit_seconds, kill, [process])
    timer.start()
    lines = []
    try:
        for line in process.stdout:
            lines.append(line)
            sys.stdout.write(line)
            sys.stdout.flush()
        return process.wait(), "".join(lines)
    finally:
        timer.cancel()
        kill(process)


def status_text(status, seconds, limit_seconds):
    if status >= 0:
        return f"exit status {status}"
    if status == -signal.SIGKILL and seconds >= limit_seconds:
        return f"killed after {limit_seconds:.0f} s"
    return f"killed by {signal.Signals(-status).name}"


def run_suite(name, title, command, environment, limit_seconds):
    """Returns (passed, failed, skipped, seconds, note)."""
    settings = "".join(f"{key}={value} " for key, value in environment.items())
    print(f"\n==> {name}: {title}\n    {settings}{' '.join(command)}", flush=True)
    started = time.monotonic()
    file = command[1] if command[0] == sys.executable else command[0]
    if not os.path.exists(os.path.join(ROOT, file)):
        return 0, 1, 0, 0.0, f"{file} is missing"
    try:
        status, output = run(command, environment, limit_seconds)
    except OSError as error:
        return 0, 1, 0, 0.0, f"{file}: {error.strerror}"
    seconds = time.monotonic() - started
    passed, failed, skipped = read_counts(output) or (0, 0, 0)
    note = "" if status == 0 else status_text(status, seconds, limit_seconds)
    if failed == 0 and status != 0:
        failed = 1
    elif failed == 0 and passed == 0:
        failed, note = 1, "ran no test"
    return passed, failed, skipped, seconds, note


def print_table(results):
    print(f"\n{'suite':<13}{'passed':>8}{'failed':>8}{'skipped':>9}{'seconds':>9}")
    for name, (passed, failed, skipped, seconds, note) in results.items():
        print(f"{name:<13}{passed:>8}{failed:>8}{skipped:>9}{seconds:>9.1f}  {note}".rstrip())
    passed, failed = (sum(result[index] for result in results.values()) for index in (0, 1))
    print(f"\n{passed} passed, {failed} failed", flush=True)
    return failed


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=f"of {', '.join(suites('build'))}; default: all")
    parser.add_argument("--build", default="build", metavar="DIRECTORY", help="where the programs are (build)")
    parser.add_argument("--limit", type=float, default=1800, metavar="SECONDS", help="of a suite (1800)")
    arguments = parser.parse_args()
    known = suites(arguments.build)
    unknown = [name for name in arguments.suites if name not in known]
    if unknown:
        parser.error(f"no suite '{unknown[0]}': one of {', '.join(known)}")
    results = {name: run_suite(name, *known[name], arguments.limit) for name in arguments.suites or known}
    return 1 if print_table(results) else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
