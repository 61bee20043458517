#!/usr/bin/env python3
"""Tests of data/prepare_hellaswag.py, run in a subprocess. Needs the package sentencepiece.

    python3 test/data/test_prepare_hellaswag.py
"""
import glob
import gzip
import io
import json
import os
import random
import signal
import struct
import subprocess
import sys
import tempfile
import time
import unittest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SCRIPT = os.path.join(ROOT, "data", "prepare_hellaswag.py")
sys.path.insert(0, os.path.join(ROOT, "data", "prepare"))
sys.dont_write_bytecode = True

import sentencepiece  # noqa: E402
from mistakes import UserError  # noqa: E402
from outputs import OutputDirectory, OutputFile  # noqa: E402

SEED = random.randrange(10**6)
WORDS = "amber birch cedar delta ember fjord grove haven inlet juniper kelp lagoon meadow north ocean pine".split()


def read_examples(path):
    """Header and [(index, label, context, completions)], by the description in data/hellaswag.h."""
    with open(path, "rb") as file:
        data = file.read()
    header, words = struct.unpack("<256i", data[:1024]), list(struct.unpack(f"<{(len(data) - 1024) // 2}H", data[1024:]))
    examples, longest = [], 0
    while words:
        start, size, index, label, count = words[:5]
        assert start == 65535 and count == 4, words[:5]
        rest, lists = words[5:size // 2], []
        while rest:
            lists.append(rest[1:1 + rest[0]])
            rest = rest[1 + rest[0]:]
        examples.append((index, label, lists[0], lists[1:]))
        words, longest = words[size // 2:], max(longest, size)
    assert header[3] == longest, (header[3], longest)
    return header, examples


class PrepareHellaswagTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        temporary = tempfile.TemporaryDirectory(prefix="train_qat_test_")
        cls.addClassCleanup(temporary.cleanup)
        cls.directory, draw = temporary.name, random.Random(SEED)
        lines = [" ".join(draw.choice(WORDS) for _ in range(12)) + "." for _ in range(300)]
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(lines), model_writer=model, model_type="bpe", vocab_size=330,
                                                 byte_fallback=True, unk_id=0, bos_id=1, eos_id=2, pad_id=-1, minloglevel=2)
        cls.tokenizer = os.path.join(cls.directory, "words.model")
        with open(cls.tokenizer, "wb") as file:
            file.write(model.getvalue())

    def rows(self, count):
        draw = random.Random(SEED + count)
        sentence = lambda: " ".join(draw.choice(WORDS + ["naïve", "中"]) for _ in range(draw.randint(1, 15)))
        return [{"ctx": sentence(), "endings": [sentence() + "." for _ in range(4)], "label": draw.choice([draw.randrange(4), str(draw.randrange(4))])}
                for _ in range(count)]

    def write(self, name, content):
        path = os.path.join(self.directory, name)
        with (gzip.open if name.endswith(".gz") else open)(path, "wt", encoding="utf-8") as file:
            file.write(content if isinstance(content, str) else "".join(json.dumps(row) + "\n" for row in content))
        return path

    def run_command(self, *arguments):
        return subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True,
                              text=True, timeout=60)

    def test_examples_are_those_of_the_file(self):
        rows, output = self.rows(20), os.path.join(self.directory, "new", "h.bin")
        paths = [self.write("a.jsonl", rows[:13]), self.write("b.jsonl.gz", rows[13:])]
        result = self.run_command("--input", *paths, "--tokenizer", self.tokenizer, "-o", output)
        self.assertEqual((result.returncode, result.stdout), (0, f"{output}: 20 examples\n"), result.stderr)
        header, examples = read_examples(output)
        self.assertEqual((header[:3], header[4]), ((20240522, 1, 20), 330))
        processor = sentencepiece.SentencePieceProcessor(model_file=self.tokenizer)
        for number, (row, (index, label, context, completions)) in enumerate(zip(rows, examples)):
            self.assertEqual((index, label), (number, int(row["label"])))
            self.assertEqual(context, [1, *processor.encode(row["ctx"])])
            for ending, completion in zip(row["endings"], completions):
                self.assertEqual(context[1:] + completion, processor.encode(row["ctx"] + " " + ending), f"seed {SEED}")
        again = self.run_command("--input", *paths, "--tokenizer", self.tokenizer, "-o", output)
        self.assertEqual(again.returncode, 2)
        self.assertIn("is there already", again.stderr)

    def test_refusals(self):
        good, output = self.rows(2), os.path.join(self.directory, "never.bin")
        for name, content, words in (("label", [*good, {**good[0], "label": 4}], "line 3: no example"),
                                     ("three", [{**good[0], "endings": ["a", "b", "c"]}], "line 1: no example"),
                                     ("empty", [{**good[0], "ctx": " "}], "no example"),
                                     ("ending", [{**good[0], "endings": ["a", "", "b", "c"]}], "no text may be empty"), ("none", "", "holds no examples"),
                                     ("json", "{", "line 1: not JSON"), ("list", "[1]", "element 1: not an object"),
                                     ("long", [{**good[0], "ctx": "word " * 40000}], "more than 65535 bytes")):
            with self.subTest(name=name):
                result = self.run_command("--input", self.write(name + ".jsonl", content), "--tokenizer", self.tokenizer, "-o", output)
                self.assertEqual((result.returncode, result.stderr.count("\n")), (2, 1), result.stderr)
                self.assertIn(words, result.stderr)
                self.assertFalse([left for left in os.listdir(self.directory) if left.startswith("never")])
        for name, path, words in (("no name", "", "names no file"), ("folder", self.directory + "/", "names no file"),
                                  ("directory", self.directory, "is a directory"), ("below a file", self.tokenizer + "/a", "Not a directory"),
                                  ("deep", os.path.join(self.directory, "never", "deep", "a.bin"), "line 3: no example")):
            with self.subTest(name=name):
                result = self.run_command("--input", os.path.join(self.directory, "label.jsonl"), "--tokenizer", self.tokenizer, "-o", path)
                self.assertEqual((result.returncode, result.stderr.count("\n")), (2, 1), result.stderr)
                self.assertIn(words, result.stderr)
                self.assertFalse([left for left in os.listdir(self.directory) if left.startswith("never")])
        missing = self.run_command("--input", "nothing.jsonl", "--tokenizer", self.tokenizer, "-o", output)
        self.assertIn("no file matches", missing.stderr)

    def test_half_of_a_surrogate_pair_becomes_what_prepare_makes_of_it(self):
        rows, outputs = self.rows(1), []
        for name, character in (("half", "\ud800"), ("replaced", "\ufffd")):
            row = {**rows[0], "ctx": f"amber {character} birch", "endings": [f"{character} cedar", "a", "b", "c"]}
            outputs.append(os.path.join(self.directory, name + ".bin"))
            result = self.run_command("--input", self.write(name + ".jsonl", [row]), "--tokenizer", self.tokenizer, "-o", outputs[-1])
            self.assertEqual((result.returncode, result.stderr.count("Traceback")), (0, 0), result.stderr)
        self.assertEqual(*map(read_examples, outputs))

    def test_files_of_others_are_left_alone(self):
        path, output = self.write("own.jsonl", self.rows(2)), os.path.join(self.directory, "own.bin")
        self.write("own.bin.partial", "mine")
        self.assertEqual(self.run_command("--input", path, "--tokenizer", self.tokenizer, "-o", output).returncode, 0)
        self.write("poetry.lock", "mine")
        result = self.run_command("--input", path, "--tokenizer", self.tokenizer, "-o", os.path.join(self.directory, "poetry"))
        self.assertIn("is no lock of this program", result.stderr)
        for name in "own.bin.partial", "poetry.lock":
            with open(os.path.join(self.directory, name), encoding="utf-8") as file:
                self.assertEqual(file.read(), "mine")

    def test_what_a_killed_one_has_left_is_removed_by_the_next(self):
        output = os.path.join(self.directory, "stopped.bin")
        process = self.start(output)
        process.kill()
        process.communicate()
        self.write(".stopped.bin.partial-notes", "of somebody else: no name that tempfile makes, which has eight characters")
        path = self.write("rows.jsonl", self.rows(2))
        self.assertEqual(self.run_command("--input", path, "--tokenizer", self.tokenizer, "-o", output).returncode, 0)
        self.assertEqual(glob.glob(os.path.join(self.directory, ".stopped.bin.partial-*")),
                         [os.path.join(self.directory, ".stopped.bin.partial-notes")])

    def test_pipes_and_devices_are_no_files(self):
        pipe, rows = os.path.join(self.directory, "pipe.jsonl"), self.write("rows.jsonl", self.rows(1))
        os.mkfifo(pipe)
        for path, kind in (pipe, "a pipe"), ("/dev/zero", "a device"):
            for tokenizer, rows in ((path, rows), (self.tokenizer, pipe))[:2 if path == pipe else 1]:
                result = self.run_command("--input", rows, "--tokenizer", tokenizer, "-o", os.path.join(self.directory, "new.bin"))
                self.assertIn(f"{path}: is {kind}, not a file", result.stderr)
                self.assertEqual((result.returncode, result.stderr.count("\n")), (2, 1), result.stderr)

    def start(self, output):
        """In the middle of its work: it reads more than it could in a minute."""
        if not os.path.exists(os.path.join(self.directory, "long.jsonl")):
            self.write("long.jsonl", self.rows(200) * 300)
        process = subprocess.Popen([sys.executable, SCRIPT, "--input", os.path.join(self.directory, "long.jsonl"), "--tokenizer",
                                    self.tokenizer, "-o", output], stderr=subprocess.PIPE, text=True,
                                   preexec_fn=lambda: [signal.signal(number, signal.SIG_DFL) for number in (signal.SIGINT, signal.SIGHUP)])
        end = time.monotonic() + 20
        while not glob.glob(os.path.join(self.directory, ".stopped.bin.partial-*")):
            self.assertLess(time.monotonic(), end)
            self.assertIsNone(process.poll())
            time.sleep(0.01)
        return process

    def test_one_that_is_stopped_leaves_nothing_and_keeps_others_out(self):
        output = os.path.join(self.directory, "made", "..", "stopped.bin")
        os.makedirs(os.path.join(self.directory, "made"), exist_ok=True)
        for number in signal.SIGINT, signal.SIGTERM, signal.SIGHUP:
            with self.subTest(number=number):
                process = self.start(output)
                second = self.run_command("--input", os.path.join(self.directory, "long.jsonl"), "--tokenizer", self.tokenizer, "-o", output)
                self.assertEqual(second.returncode, 2)
                self.assertIn(f"another run is writing these outputs: process {process.pid} on", second.stderr)
                process.send_signal(number)
                stderr = process.communicate(timeout=20)[1]
                self.assertEqual((process.returncode, "Traceback" in stderr), (128 + number, False), stderr)
                self.assertIn("nothing was written", stderr)
                self.assertFalse([name for name in os.listdir(self.directory) if "stopped" in name])

    def test_what_appears_meanwhile_is_not_replaced(self):
        path = os.path.join(self.directory, "raced.bin")
        with self.assertRaisesRegex(UserError, "-o .*raced.bin: is there already"):
            with OutputFile(path, "-o") as file:
                file.write(b"ours")
                with open(path, "wb") as other:
                    other.write(b"of another")
        with open(path, "rb") as file:
            self.assertEqual(file.read(), b"of another")
        self.assertEqual([name for name in os.listdir(self.directory) if "raced" in name], ["raced.bin"])

    def test_directories_are_whole_or_absent(self):
        path = os.path.join(self.directory, "absent", "folder")
        for error, words in ((OSError("73728 requested and 61600 written"), "61600 written .is the disk full"), (UserError("other"), "other")):
            with self.assertRaisesRegex(UserError, words):
                with OutputDirectory(path, "-o") as partial:
                    with open(os.path.join(partial, "a"), "w", encoding="utf-8"):
                        raise error
            self.assertFalse(os.path.exists(os.path.dirname(path)))
        with OutputDirectory(path, "-o") as partial:
            with self.assertRaisesRegex(UserError, "another run is writing"):
                OutputDirectory(path, "-o")
            open(os.path.join(partial, "a"), "w", encoding="utf-8").close()
        self.assertEqual((os.listdir(os.path.dirname(path)), os.listdir(path)), (["folder"], ["a"]))
        with self.assertRaisesRegex(UserError, "is there already"):
            OutputDirectory(path, "-o")


if __name__ == "__main__":
    unittest.main()
