#!/usr/bin/env python3
"""Mutated input for every reader of data/prepare.py: whatever it is, there are texts, or a UserError of one line.

    test/fuzz/fuzz_prepare.py --seconds 60 --seed 1

Any other exception, more than LIMIT_SECONDS for an input, and more memory than LIMIT_BYTES are findings; each is printed with
the seed and the number of its input, which make it again. The last line reads `N passed, M failed`.
"""
import argparse
import gzip
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "data", "prepare"))
sys.dont_write_bytecode = True

from documents import Reading, read_documents  # noqa: E402
from findings import Findings  # noqa: E402
from long_words import LONGEST_WORD, divide_long_lines  # noqa: E402
from mistakes import UserError  # noqa: E402

LIMIT_SECONDS = 5
LIMIT_BYTES = 4 << 30
MOST_FINDINGS = 20
LONGEST_INPUT = 1 << 16
TEXT = "Every unhappy family is unhappy in its own way.\nДом, 道可道。 \U0001f642 e\u0301\n"
ROWS = [{"text": TEXT}, {"text": None}, {"id": 7, "text": "x"}, {"text": ["a"]}, {"other": {"a": [1, -2.5e3, True]}}]
PAGE = ("<!DOCTYPE html><html><head><title>t</title></head><body class='a'><!-- c --><p>One &amp; &#65; &#x41; two<br>"
        "<![CDATA[x]]><script>no()</script><pre>a  b\n c</pre><?pi?></body></html>")
# Suffix and content.
SEEDS = [
    (".txt", TEXT.encode()), (".md", TEXT.encode("utf-16")), (".txt", TEXT.encode("utf-16-be")), (".rst", TEXT.encode("utf-32-le")),
    (".jsonl", "\n".join(map(json.dumps, ROWS)).encode()), (".jsonl", json.dumps(ROWS).encode("utf-16")),
    (".json", json.dumps(ROWS, indent=1).encode()), (".json", "\n".join(map(json.dumps, ROWS)).encode()),
    (".html", PAGE.encode()), (".htm", PAGE.encode("utf-16-le")),
]
TOKENS = [b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\\ud800", b"[", b"]", b"{", b"}", b'"', b"\\", b",", b"<!--", b"-->", b"<![",
          b"<", b">", b"&#", b"&#99999999999;", b"</", b"<pre>", b"</script>", b"\n", b"\r", b"1e999", b"NaN", b"null", b"9" * 5000, b"[" * 3000,
          b'{"a":' * 2000, b" " * 3000, b"A" * 9000]
ENCODINGS = ["utf-8-sig"] * 6 + ["utf-16", "utf-32-le", "latin-1", "utf-7", "idna", "unicode_escape", "shift_jis", "gb18030"]


class Overrun(BaseException):
    """Too slow. No Exception, which a reader would turn into a UserError."""


def mutate(generator, data):
    data = bytearray(data)
    for _ in range(generator.choice([0, 1, 1, 2, 4, 16])):
        at = generator.randrange(len(data) + 1)
        what = generator.randrange(6)
        if what == 0 and at < len(data):
            data[at] ^= 1 << generator.randrange(8)
        elif what == 1:
            data[at:at] = generator.choice(TOKENS) * generator.choice([1, 1, 1, 2, 50])
        elif what == 2:
            del data[at:at + generator.choice([1, 2, 3, 40, 10_000])]
        elif what == 3:
            end = min(len(data), at + generator.randrange(1, 60))
            data[at:at] = data[at:end] * generator.choice([1, 2, 300])
        elif what == 4 and at < len(data):
            data[at] = generator.choice([0, 9, 10, 13, 32, 127, 128, 255])
        elif what == 5:
            data[at:at] = generator.choice(SEEDS)[1]
        del data[LONGEST_INPUT:]
    return bytes(data)


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


def execute(path, reading):
    """Reads a file as prepare.py does; AssertionError for what it must not yield."""
    findings = Findings()
    try:
        for document in read_documents(path, reading, findings):
            text = document.text()
            text.encode()
            for line in divide_long_lines(text.split("\n")):
                assert all(len(word) <= LONGEST_WORD for word in line.split(" ")), "a word is too long"
    except UserError as error:
        assert "\n" not in str(error) and path in str(error), f"not one line that names the file: {error}"
    assert all(isinstance(line, str) for line in findings.lines())


def too_slow(*_):
    raise Overrun(f"more than {LIMIT_SECONDS} s")


def try_one(folder, seed, number):
    """None, or what went wrong."""
    suffix, data, reading = make_input(seed, number)
    path = os.path.join(folder, "input" + suffix)
    with open(path, "wb") as file:
        file.write(data)
    signal.setitimer(signal.ITIMER_REAL, LIMIT_SECONDS)
    try:
        execute(path, reading)
    except (Exception, Overrun) as error:
        return f"{suffix}, {len(data)} bytes, {reading.encoding}: {type(error).__name__}: {str(error)[:200]}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--number", type=int, help="this input alone")
    arguments = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT_BYTES, LIMIT_BYTES))
    signal.signal(signal.SIGALRM, too_slow)
    found, number, begin = 0, arguments.number or 0, time.monotonic()
    with tempfile.TemporaryDirectory(prefix="train_qat_fuzz_") as folder:
        while True:
            finding = try_one(folder, arguments.seed, number)
            number += 1
            if finding:
                found += 1
                print(f"--seed {arguments.seed} --number {number - 1}: {finding}", flush=True)
            seconds = time.monotonic() - begin
            if arguments.number is not None or seconds > arguments.seconds or found >= MOST_FINDINGS:
                break
    executions = 1 if arguments.number is not None else number
    print(f"{executions} executions, {found} findings, {seconds:.0f} s, seed {arguments.seed}")
    print(f"{executions - found} passed, {found} failed")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
