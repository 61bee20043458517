#!/usr/bin/env python3
"""Tests of data/prepare_hellaswag.py, run in a subprocess. Needs the package sentencepiece.

    python3 test/data/test_prepare_hellaswag.py
"""
import gzip
import io
import json
import os
import random
import struct
import subprocess
import sys
import tempfile
import unittest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.dont_write_bytecode = True

import sentencepiece  # noqa: E402

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
        return subprocess.run([sys.executable, os.path.join(ROOT, "data", "prepare_hellaswag.py"), *arguments], capture_output=True,
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
                                     ("empty", [{**good[0], "ctx": " "}], "no example"), ("none", "", "holds no examples"),
                                     ("json", "{", "line 1: not JSON"), ("list", "[1]", "element 1: not an object"),
                                     ("long", [{**good[0], "ctx": "word " * 40000}], "more than 65535 bytes")):
            with self.subTest(name=name):
                result = self.run_command("--input", self.write(name + ".jsonl", content), "--tokenizer", self.tokenizer, "-o", output)
                self.assertEqual((result.returncode, result.stderr.count("\n")), (2, 1), result.stderr)
                self.assertIn(words, result.stderr)
                self.assertFalse([left for left in os.listdir(self.directory) if left.startswith("never")])
        missing = self.run_command("--input", "nothing.jsonl", "--tokenizer", self.tokenizer, "-o", output)
        self.assertIn("no file matches", missing.stderr)


if __name__ == "__main__":
    unittest.main()
