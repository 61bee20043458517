"""The tokens of a tokenizer.json, ours and those of Hugging Face's own library: byte-level BPE as GPT-2, Llama 3, Qwen and
others divide text, trained on this project's pages."""
import json
import os
import random
import subprocess
import sys
import unittest

import architectures
import fixture
import transformers
from tokenizers import AddedToken, Tokenizer, pre_tokenizers

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path[:0] = [os.path.join(ROOT, "test", "data"), os.path.join(ROOT, "data", "prepare")]

import tokenizer_folders  # noqa: E402
from hugging_face_tokenizer import HuggingFaceTokenizer  # noqa: E402
from mistakes import UserError  # noqa: E402

SEED = random.randrange(10**6)
DIFFICULT = [
    "", "a", " ", "\n", "  two  spaces\n\n\n and\ttabs \r\n", "It's we'll I'VE don'T", "12345 1,234.5 ½²³ ٣٤",
    "naïve e\u0301 n\u0303 \ufb01 \u212b 가 \u1100\u1161", "日本語 中文。العربية हिन्दी", "<|begin|>x<|end|>hi<tool><|end",
    "👨‍👩‍👧‍👦🏳️‍🌈", "\u00a0nbsp\u2003em\u3000ideographic \u0085nel \x0bvt \x0cff", "a" * 3000, "  " * 400, "\x00nul\x7f", "ẞ ſ İ ı", "\u200bzero\ufeff",
]
WORDS = "the of and .. ,, !! 's 'S 123 45 \n \n\n \t é ü 中 ß ' \" ( — … 0 A _ - = # \u0301 \u00a0 \u2028".split(" ")


def random_texts(draw):
    for _ in range(300):
        yield "".join(draw.choice(WORDS) + draw.choice(["", " ", ""]) for _ in range(draw.randint(1, 40)))
    ranges = [(1, 0x7f), (0x80, 0x7ff), (0x800, 0xd7ff), (0xe000, 0xffff), (0x10000, 0x1ffff)]
    for _ in range(100):
        yield "".join(chr(draw.randint(*draw.choice(ranges))) for _ in range(draw.randint(1, 30)))


def ours(folder, texts):
    program = os.path.join(os.path.dirname(os.path.realpath(fixture.program)), "train_qat_tokenize")
    return json.loads(subprocess.run([program, folder], input=json.dumps(texts), capture_output=True, text=True, check=True).stdout)


class ByteLevelTokens(unittest.TestCase):
    def library(self, kind):
        """A tokenizer of this kind, with a token that begins like others; "space_first": as "gpt-2", and texts begin with a
        space."""
        folder = architectures.byte_tokenizer("gpt-2" if kind == "space_first" else kind)
        tokenizer = Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
        if kind == "space_first":
            tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        tokenizer.add_tokens([AddedToken("<|end", normalized=False)])
        return tokenizer

    def test_are_those_of_the_library(self):
        texts = DIFFICULT + list(random_texts(random.Random(SEED)))
        for kind in (*architectures.PRE_TOKENIZERS, "space_first"):
            tokenizer, folder = self.library(kind), os.path.join(fixture.directory, f"tokens of {kind}")
            os.makedirs(folder)
            tokenizer.save(os.path.join(folder, "tokenizer.json"))
            with open(os.path.join(folder, "tokenizer_config.json"), "w", encoding="utf-8") as file:
                json.dump({"bos_token": None, "eos_token": {"content": "<|end|>"}}, file)
            found = ours(folder, texts)
            self.assertEqual((found["vocabulary"], found["bos"], found["eos"]), (tokenizer.get_vocab_size(), -1, tokenizer.token_to_id("<|end|>")))
            for text, result in zip(texts, found["results"]):
                ids = tokenizer.encode(text, add_special_tokens=False).ids
                with self.subTest(kind=kind, text=text, seed=SEED):
                    self.assertEqual(result["ids"], ids)
                    self.assertEqual(result["text"], tokenizer.decode(ids))
                    self.assertEqual(result["bytes"], len(result["text"].encode()))


class BeginAndEnd(unittest.TestCase):
    def test_tokens_are_those_of_transformers_where_a_tokenizer_file_names_them(self):
        draw = random.Random(SEED)
        cases = [files for files, _ in tokenizer_folders.KNOWN] + [tokenizer_folders.drawn(draw) for _ in range(80)]
        compared = 0
        for number, files in enumerate(cases):
            path = tokenizer_folders.write(os.path.join(fixture.directory, f"begin and end {number}"), files)
            trainer = ours(path, [])
            expected = transformers.PreTrainedTokenizerFast.from_pretrained(os.path.dirname(path))
            for role, text in ("bos", expected.bos_token), ("eos", expected.eos_token):
                with self.subTest(files=files, role=role, seed=SEED):
                    if text not in (None, "", "<nobody>"):  # it makes new tokens of names that are none
                        self.assertEqual(trainer[role], expected.convert_tokens_to_ids(text))
                        compared += 1
            with self.subTest(files=files, seed=SEED):
                start = trainer["eos"] if trainer["bos"] == -1 else trainer["bos"]
                self.assertEqual(self.start_of(path), start)
        self.assertGreater(compared, 20)

    def start_of(self, path):
        """Before every document that data/prepare.py writes; -1: none, and it says so."""
        with open(path, "rb") as file:
            content = file.read()
        try:
            return HuggingFaceTokenizer(path, content).start_id
        except UserError as error:
            self.assertIn("names a begin or end token", str(error))
            return -1
