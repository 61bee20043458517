"""What tests of data/prepare.py share: texts, runs in a subprocess, shards read back."""
import gzip
import os
import random
import struct
import subprocess
import sys
import tempfile
import unittest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PREPARE = os.path.join(ROOT, "data", "prepare.py")
sys.path.insert(0, os.path.join(ROOT, "data", "prepare"))
sys.dont_write_bytecode = True

import sentencepiece  # noqa: E402

WORDS = "amber birch cedar delta ember fjord grove haven inlet juniper kelp lagoon meadow north ocean pine".split()


def make_text(seed, lines):
    """Prose-like lines with blank lines, indentation, digits and some characters that no vocabulary holds."""
    generator = random.Random(seed)
    result = []
    for number in range(lines):
        line = " ".join(generator.choice(WORDS) + generator.choice(["", "s", "ing", "ed"]) for _ in range(9))
        result.append(generator.choice(["", "", "", "  ", "\t"]) + line + generator.choice([".", "!", "", "  "]))
        if generator.random() < 0.2:
            result.append("")
        if number % 50 == 17:
            result.append(f"{seed} – naïve 中文 🙂 {number * 7919}")
    return "\n".join(result) + "\n"


def read_shard(path):
    """(header integers, tokens), with nothing shared with the code under test."""
    with open(path, "rb") as file:
        data = file.read()
    header = struct.unpack("<256i", data[:1024])
    code = {(20240520, 1): "H", (20240801, 7): "I"}[header[:2]]
    return header, struct.unpack(f"<{(len(data) - 1024) // struct.calcsize(code)}{code}", data[1024:])


class PrepareFixture(unittest.TestCase):
    def setUp(self):
        self.temporary = tempfile.TemporaryDirectory(prefix="train_qat_test_")
        self.addCleanup(self.temporary.cleanup)
        self.directory = self.temporary.name

    def path(self, *names):
        return os.path.join(self.directory, *names)

    def write(self, name, content):
        path = self.path(name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if isinstance(content, str):
            content = content.encode()
        with (gzip.open if name.endswith(".gz") else open)(path, "wb") as file:
            file.write(content)
        return path

    def read(self, name):
        with open(self.path(name), "rb") as file:
            return file.read()

    def run_prepare(self, *arguments, **options):
        # No trace in the checkout: what a user has prepared last is not what a test has.
        return subprocess.run([sys.executable, PREPARE, "--record", "", *map(str, arguments)], capture_output=True,
                              text=True, cwd=self.directory, **options)

    def prepare(self, *arguments):
        """Runs it successfully; vocabulary 400 unless the arguments say otherwise."""
        result = self.run_prepare("--vocab-size", 400, *arguments)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual([name for name in os.listdir(self.directory) if name.endswith(".partial")], [])
        return result

    def fails(self, *arguments, text, **options):
        """It exits with 2 after one line that holds every one of `text`, and leaves no output."""
        before = sorted(os.listdir(self.directory))
        result = self.run_prepare(*arguments, **options)
        self.assertEqual(result.returncode, 2, result.stderr)
        lines = [line for line in result.stderr.splitlines() if "MB/s" not in line and not
                 line.startswith(("tokenizer:", "a single document:"))]
        self.assertEqual(len(lines), 1, result.stderr)
        self.assertTrue(lines[0].startswith("prepare.py: error: "), lines[0])
        for part in text:
            self.assertIn(part, lines[0])
        self.assertEqual(sorted(os.listdir(self.directory)), before)
        return lines[0]

    def shards(self, prefix, split):
        names = sorted(name for name in os.listdir(self.directory) if name.startswith(f"{prefix}_{split}_"))
        return [read_shard(self.path(name)) for name in names]

    def documents(self, prefix, split):
        """The texts of a split, decoded from its shards."""
        processor = sentencepiece.SentencePieceProcessor(model_file=self.path(prefix + ".model"))
        tokens = [token for _, shard in self.shards(prefix, split) for token in shard]
        texts, current = [], None
        for token in tokens + [1]:
            if token == 1:
                if current is not None:
                    texts.append(processor.decode(current))
                current = []
            else:
                current.append(token)
        return texts

    def write_documents(self, count=6, lines=60):
        texts = {f"d{index}.txt": make_text(index, lines) for index in range(count)}
        for name, text in texts.items():
            self.write(f"in/{name}", text)
        return texts

    def tokenizer(self):
        self.write("tokenizer_text/t.txt", make_text(5, 300))
        self.prepare("tokenizer_text", "-o", "shared")
        return "shared.model"
