#!/usr/bin/env python3
"""Tokenizers as the trainer, data preparation and exports find them: the same kind, begin and end tokens, faults said alike.
What needs the packages of PyPI: test/clients/test_tokenizers.py.

    test/scripts/test_tokenizers.py --program ./train_qat
"""
import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import unittest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path[:0] = [os.path.join(ROOT, "scripts"), os.path.join(ROOT, "test", "data")]
sys.dont_write_bytecode = True

import tokenizer_folders  # noqa: E402
from errors import UserError  # noqa: E402
from formats import tokenizer  # noqa: E402
from tokenizer_files import begin_and_end, is_json  # noqa: E402

SEED = random.randrange(10**6)
program = "./train_qat"


def of_trainer(path):
    """(begin, end) ids or None, or the line that it says instead."""
    tool = os.path.join(os.path.dirname(os.path.realpath(program)), "train_qat_tokenize")
    result = subprocess.run([tool, path], input="[]", capture_output=True, text=True)
    if result.returncode:
        return result.stderr
    found = json.loads(result.stdout)
    return tuple(None if found[role] == -1 else found[role] for role in ("bos", "eos"))


def of_preparation(path):
    with open(path, "rb") as file:
        content = file.read()
    tokens = json.loads(content)["model"]["vocab"]
    try:
        return begin_and_end(path, tokens.get, set(tokens.values()).__contains__)
    except UserError as error:
        return str(error)


def of_exports(path):
    try:
        found = tokenizer.load(path, 1000)
    except UserError as error:
        return str(error)
    return found.bos, found.eos


READERS = of_trainer, of_preparation, of_exports


class TokenizersTest(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory(prefix="train_qat_test_")
        self.addCleanup(directory.cleanup)
        self.directory = directory.name

    def path(self, name):
        return os.path.join(self.directory, name)

    def test_begin_and_end_tokens_are_found_alike(self):
        draw = random.Random(SEED)
        cases = tokenizer_folders.KNOWN + [(tokenizer_folders.drawn(draw), None) for _ in range(100)]
        for number, (files, expected) in enumerate(cases):
            path = tokenizer_folders.write(self.path(str(number)), files)
            found = [read(path) for read in READERS]
            self.assertEqual(found, [expected or found[0]] * len(READERS), f"{files}, seed {SEED}")

    def test_damaged_files_beside_it_are_named(self):
        for number, (files, words) in enumerate(tokenizer_folders.DAMAGED):
            path = tokenizer_folders.write(self.path(str(number)), files)
            for read in READERS:
                with self.subTest(files=str(files)[:80], read=read.__name__):
                    self.assertIn(words, read(path))
                    self.assertNotIn("\n", read(path).rstrip("\n"))

    def test_what_a_file_holds_says_what_it_is(self):
        beside = {"tokenizer_config.json": {"bos_token": "<s>", "eos_token": "</s>"}}
        for name in "my.json", "tokenizer.model", "t":
            path = tokenizer_folders.write(self.path(f"in {name}"), beside, name)
            for read in READERS:
                self.assertEqual(read(path), (tokenizer_folders.BEGIN, tokenizer_folders.END))
            os.mkdir(self.path(f"out {name}"))
            tokenizer.load(path, 1000).write_folder(self.path(f"out {name}"))
            with open(os.path.join(self.path(f"out {name}"), "tokenizer.json"), encoding="utf-8") as file:
                self.assertEqual(json.load(file), tokenizer_folders.tokenizer_json())
            self.assertEqual(sorted(os.listdir(self.path(f"out {name}")))[:2], ["tokenizer.json", "tokenizer_config.json"])
        for name in "tokenizer.json", "x.json":  # no JSON, whatever they are called
            folder = self.path(f"other {name}")
            path = tokenizer_folders.write(folder, {}, name, "\n\x0e\n\x05<unk>")
            for read in of_trainer, of_exports:
                self.assertIn("not a SentencePiece model", read(path))

    def test_exports_name_what_a_tokenizer_lacks(self):
        for number, (place, value, words) in enumerate((
                (("model",), 5, "TypeError"), (("model", "vocab", "the"), 1.5, "a token's id is 1.5"), (("model", "vocab", "the"), 2**32, "token's id"),
                (("added_tokens", 0, "id"), -1, "a token's id is -1"), (("added_tokens", 0, "content"), None, "a token is null"))):
            content = tokenizer_folders.tokenizer_json()
            container = content
            for key in place[:-1]:
                container = container[key]
            container[place[-1]] = value
            path = tokenizer_folders.write(self.path(str(number)), {}, content=content)
            for read in of_trainer, of_exports:
                self.assertIn(path, read(path))
            self.assertIn(words, of_exports(path))

    def test_settings_that_gguf_cannot_have_are_obstacles(self):
        nested = {"type": "Sequence", "pretokenizers": []}
        for _ in range(400):
            nested = {"type": "Sequence", "pretokenizers": [nested]}
        for number, (key, value) in enumerate((("decoder", 5), ("decoder", []), ("pre_tokenizer", 7), ("pre_tokenizer", [[]]),
                                               ("pre_tokenizer", {"type": ["x"]}), ("pre_tokenizer", nested), ("normalizer", "NFC"))):
            path = tokenizer_folders.write(self.path(str(number)), {}, content={**tokenizer_folders.tokenizer_json(), key: value})
            self.assertTrue(tokenizer.load(path, 1000).obstacle_to_llama_cpp, (key, value))
        path = tokenizer_folders.write(self.path("whole"), {})
        self.assertEqual(tokenizer.load(path, 1000).obstacle_to_llama_cpp, "")

    def test_files_that_are_neither(self):
        for number, (content, words) in enumerate((("", "is empty"), ("[]", "nor a tokenizer.json"), ("\ufeff{}", "byte order mark"),
                                                   ('{"model": ', "no JSON"), ("{}", "model"), ("plain text", "nor a tokenizer.json"))):
            path = tokenizer_folders.write(self.path(str(number)), {}, "tokenizer.json", content or "")
            with open(path, "rb") as file:
                self.assertEqual(is_json(file.read()), "{" in content)
            for read in of_trainer, of_exports:
                with self.subTest(content=content, read=read.__name__):
                    self.assertIn(words, read(path))
                    self.assertIn(path, read(path))
                    self.assertNotIn("\n", read(path).rstrip("\n"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default=program)
    arguments, rest = parser.parse_known_args()
    program = arguments.program
    unittest.main(argv=[sys.argv[0], *rest])
