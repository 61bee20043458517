#!/usr/bin/env python3
"""Mutated input for every reader of data/prepare.py and scripts/formats: whatever it is, there is a result, or a UserError of one
line that names the file.

    test/fuzz/fuzz_prepare.py --seconds 60 --seed 1

Findings are any other exception; a UserError that stands for *any* exception where that one is a mistake of the reader (MISTAKES);
more than LIMIT_SECONDS for an input, more memory than LIMIT_BYTES. Each is printed with the seed and the number of its input, which
make it again. The last line reads `N passed, M failed`.
"""
import argparse
import ast
import collections
import functools
import gzip
import os
import random
import resource
import signal
import sys
import tempfile
import time
import warnings

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path[:0] = [os.path.join(ROOT, "data", "prepare"), os.path.dirname(os.path.abspath(__file__))]
sys.dont_write_bytecode = True

from documents import Reading, read_documents  # noqa: E402
from findings import Findings  # noqa: E402
from long_words import LONGEST_WORD, divide_long_lines  # noqa: E402
from mistakes import UserError  # noqa: E402
from mutations import SEEDS, mutate  # noqa: E402
from reader_targets import TARGETS  # noqa: E402

LIMIT_SECONDS = 5
LIMIT_BYTES = 4 << 30
MOST_FINDINGS = 20
TEXT_SHARE = 0.4  # of the inputs
AVAILABLE = [target for target in TARGETS if target.available()]
MISTAKES = (AttributeError, NameError, TypeError, LookupError, AssertionError, ArithmeticError, RecursionError)
ENCODINGS = ["utf-8-sig"] * 6 + ["utf-16", "utf-32-le", "latin-1", "utf-7", "idna", "unicode_escape", "shift_jis", "gb18030"]


class Overrun(BaseException):
    """Too slow. No Exception, which a reader would turn into a UserError."""


def make_input(seed, number):
    """(suffix, content, how to read it) of one execution."""
    generator = random.Random(f"{seed} {number}")
    suffix, data = generator.choice(SEEDS)
    data = mutate(generator, data)
    if generator.random() < 0.15:
        suffix, data = suffix + ".gz", gzip.compress(data, 1)
        if generator.random() < 0.6:
            data = mutate(generator, data)
    return suffix, data, Reading("text", generator.choice([None, None, "\n", "\0", "<"]), generator.choice(ENCODINGS))


def read_texts(path, reading):
    """Reads a file as prepare.py does; AssertionError for what it must not yield."""
    findings = Findings()
    for document in read_documents(path, reading, findings):
        text = document.text()
        text.encode()
        for line in divide_long_lines(text.split("\n")):
            assert all(len(word) <= LONGEST_WORD for word in line.split(" ")), "a word is too long"
    assert all(isinstance(line, str) for line in findings.lines())


@functools.cache
def catch_alls(file):
    """The lines of one of our sources that are inside of an `except Exception`, or of one without a type."""
    if not file.startswith(ROOT + os.sep):
        return set()
    with open(file, encoding="utf-8") as source:
        tree = ast.parse(source.read())
    handlers = [node for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler)
                and (node.type is None or getattr(node.type, "id", "") in ("Exception", "BaseException"))]
    return {line for node in handlers for line in range(node.lineno, node.end_lineno + 1)}


def check(error, folder):
    """AssertionError for a UserError that is none, or hides a mistake of the reader."""
    assert "\n" not in str(error) and (folder in str(error) or str(error).startswith("--check")), f"not one line that names the file: {error}"
    while error.__context__ is not None:
        frame = error.__traceback__
        while frame.tb_next:
            frame = frame.tb_next
        cause = error.__context__
        hidden = isinstance(cause, MISTAKES) and frame.tb_lineno in catch_alls(frame.tb_frame.f_code.co_filename)
        if hidden or isinstance(cause, MemoryError):  # of which no input is worth 4 GiB
            raise AssertionError(f"hides {type(cause).__name__}: {cause}") from cause
        error = cause


def too_slow(*_):
    raise Overrun(f"more than {LIMIT_SECONDS} s")


def limit(seconds):
    """Of the processor; of the clock, where it waits for something, twenty times as much. 0: none."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, 20 * seconds)


def texts(folder, seed, number):
    """The target of texts, whose inputs are described by more than their name."""
    suffix, data, reading = make_input(seed, number)
    path = os.path.join(folder, "input" + suffix)
    with open(path, "wb") as file:
        file.write(data)
    return f"{suffix}, {len(data)} bytes, {reading.encoding}", lambda: read_texts(path, reading)


def input_of(folder, seed, number):
    """(what kind it is, which one, a function that writes and reads it)"""
    generator = random.Random(f"{seed} {number} target")
    if generator.random() < TEXT_SHARE:
        return "texts", *texts(folder, seed, number)
    target = generator.choice(AVAILABLE)
    return target.name, target.name, lambda: target.run(folder, generator)


def try_one(seed, number, counts):
    """None, or what went wrong."""
    with tempfile.TemporaryDirectory(prefix="train_qat_fuzz_") as folder:
        kind, name, read = input_of(folder, seed, number)
        counts[kind] += 1
        limit(LIMIT_SECONDS)
        try:
            try:
                read()
            except UserError as error:
                check(error, folder)
            except ModuleNotFoundError as error:  # which scripts/export.py says in a line of its own
                counts[f"{kind} without {error.name}"] += 1
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # also what a package in Rust panics with
            return f"{name}: {type(error).__name__}: {str(error)[:200]}"
        finally:
            limit(0)
    return None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--number", type=int, help="this input alone")
    arguments = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT_BYTES, LIMIT_BYTES))
    for of_clock_or_processor in signal.SIGALRM, signal.SIGPROF:
        signal.signal(of_clock_or_processor, too_slow)
    warnings.simplefilter("ignore")  # NumPy's, of numbers that overflow
    found, number, begin, counts = 0, arguments.number or 0, time.monotonic(), collections.Counter()
    while True:
        finding = try_one(arguments.seed, number, counts)
        number += 1
        if finding:
            found += 1
            print(f"--seed {arguments.seed} --number {number - 1}: {finding}", flush=True)
        seconds = time.monotonic() - begin
        if arguments.number is not None or seconds > arguments.seconds or found >= MOST_FINDINGS:
            break
    print(", ".join(f"{name} {count}" for name, count in sorted(counts.items())))
    for target in TARGETS:
        if target not in AVAILABLE:
            print(f"not run, for {sys.executable} has no {target.package}: {target.name}")
    executions = 1 if arguments.number is not None else number
    print(f"{executions} executions, {found} findings, {seconds:.0f} s, seed {arguments.seed}")
    print(f"{executions - found} passed, {found} failed")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
