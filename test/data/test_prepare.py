#!/usr/bin/env python3
"""Tests of data/prepare.py, run end to end in a subprocess on generated text. Needs the package sentencepiece.

    python3 test/data/test_prepare.py
"""
import contextlib
import gzip
import json
import os
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import unittest

from prepare_fixture import PREPARE, ROOT, PrepareFixture, make_text

import sentencepiece

try:
    import tokenizers
except ImportError:  # no Debian package
    tokenizers = None

import prose_corpus  # noqa: E402
from debian_packages import CorpusError  # noqa: E402
from html_text import html_to_text  # noqa: E402
from shard_files import Outputs, ShardWriter, fnv1a_64  # noqa: E402


class PrepareTest(PrepareFixture):
    def test_text_comes_back_from_the_shards(self):
        texts = self.write_documents()
        self.prepare("in", "-o", "out")
        train, val = self.documents("out", "train"), self.documents("out", "val")
        self.assertEqual(sorted(train + val), sorted(texts.values()))
        self.assertEqual(len(val), 1)  # 2% of six documents: at least one

        model = self.read("out.model")
        with open(self.path("out.json"), encoding="utf-8") as file:
            manifest = json.load(file)
        self.assertEqual(manifest["tokenizer"]["hash"], f"0x{fnv1a_64(model):016x}")
        for split, expected in ("train", train), ("val", val):
            [(header, tokens)] = self.shards("out", split)
            self.assertEqual(header[:4], (20240520, 1, len(tokens), 400))
            self.assertEqual(header[4] % 2**32 + (header[5] % 2**32 << 32), fnv1a_64(model))
            self.assertEqual(set(header[6:]), {0})
            self.assertEqual(manifest[split]["tokens"], len(tokens))
            self.assertEqual(manifest[split]["documents"], len(expected))
            self.assertEqual(manifest[split]["bytes"], sum(len(text.encode()) for text in expected))
            self.assertLess(max(tokens), 400)
            self.assertNotIn(0, tokens)  # byte fallback: nothing is unknown
            # The same ids as encoding each document in one go.
            processor = sentencepiece.SentencePieceProcessor(model_proto=model)
            self.assertEqual(list(tokens), [token for text in expected for token in [1] + processor.encode(text)])

    def test_hash_is_fnv1a(self):
        self.assertEqual(fnv1a_64(b""), 0xCBF29CE484222325)
        self.assertEqual(fnv1a_64(b"a"), 0xAF63DC4C8601EC8C)
        self.assertEqual(fnv1a_64(b"foobar"), 0x85944171F73967E8)
        self.assertEqual(fnv1a_64(bytes([0, 255, 128, 10])), 0xD865BB7BF628B7DE)  # as in test_tokenizer.cpp

    def test_long_document_in_pieces_equals_one_go(self):
        text = make_text(3, 12000)  # over two pieces
        self.assertGreater(len(text), 2.5 * (1 << 18))
        self.write("in/long.txt", text)
        self.write("in/short.txt", make_text(4, 50))
        self.prepare("in", "-o", "out", "--val-files", "in/short.txt", "--train-sample-mb", "0.1")
        processor = sentencepiece.SentencePieceProcessor(model_file=self.path("out.model"))
        [(_, tokens)] = self.shards("out", "train")
        self.assertEqual(list(tokens), [1] + processor.encode(text))

    def test_normalizing_model_is_not_cut_at_newlines(self):
        # This model turns newlines into spaces and drops doubled ones, so pieces would differ from the whole.
        self.write("lines.txt", make_text(9, 300))
        sentencepiece.SentencePieceTrainer.train(input=self.path("lines.txt"), model_prefix=self.path("folding"),
                                                 vocab_size=100, model_type="unigram", minloglevel=2)
        text = make_text(3, 6000)
        self.write("in/long.txt", text)
        self.write("in/short.txt", make_text(4, 50))
        self.prepare("in", "-o", "out", "--val-files", "in/short.txt", "--tokenizer", "folding.model")
        processor = sentencepiece.SentencePieceProcessor(model_file=self.path("folding.model"))
        [(_, tokens)] = self.shards("out", "train")
        self.assertEqual(list(tokens), [1] + processor.encode(text))

    def test_output_depends_on_neither_workers_nor_run(self):
        self.write_documents(9, 900)
        contents = []
        for workers in 1, 2, 5:
            self.prepare("in", "-o", f"w{workers}", "--workers", workers, "--shard-tokens", 7001)
            suffixes = sorted(name[2:] for name in os.listdir(self.directory)
                              if name.startswith(f"w{workers}") and not name.endswith(".json"))
            contents.append([(suffix, self.read(f"w{workers}{suffix}")) for suffix in suffixes])
        self.assertGreater(len(contents[0]), 5)
        self.assertEqual(contents[0], contents[1])
        self.assertEqual(contents[0], contents[2])

    def test_shards_are_cut_at_their_size(self):
        texts = self.write_documents()
        self.prepare("in", "-o", "out", "--shard-tokens", 1000, "--val-fraction", 0)
        shards = self.shards("out", "train")
        self.assertGreater(len(shards), 3)
        self.assertTrue(all(len(tokens) == 1000 == header[2] for header, tokens in shards[:-1]))
        self.assertEqual(self.documents("out", "train"), list(texts.values()))
        self.assertEqual(self.shards("out", "val"), [])

    def test_exact_multiple_leaves_no_empty_shard(self):
        self.write_documents(2)
        self.prepare("in", "-o", "whole", "--val-fraction", 0)
        total = len(self.shards("whole", "train")[0][1])
        self.prepare("in", "-o", "one", "--val-fraction", 0, "--shard-tokens", total)
        self.assertEqual([len(tokens) for _, tokens in self.shards("one", "train")], [total])

    def test_hold_out_is_by_content(self):
        texts = self.write_documents(40, 12)
        self.prepare("in", "-o", "a", "--val-fraction", 0.3)
        val = set(self.documents("a", "val"))
        self.assertTrue(4 <= len(val) <= 21, len(val))  # 12 expected, three standard deviations
        self.assertFalse(val & set(self.documents("a", "train")))
        # Other names and another order, as JSON lines: the same choice.
        rows = [json.dumps({"body": text}) for text in reversed(list(texts.values()))]
        self.write("rows.jsonl.gz", "\n".join(rows) + "\n\n")
        self.prepare("rows.jsonl.gz", "--text-field", "body", "-o", "b", "--val-fraction", 0.3)
        self.assertEqual(set(self.documents("b", "val")), val)
        # More to hold out only adds.
        self.prepare("in", "-o", "c", "--val-fraction", 0.6, "--tokenizer", "a.model")
        self.assertLess(val, set(self.documents("c", "val")))

    def test_hold_out_never_takes_everything(self):
        self.write_documents(3, 30)
        self.prepare("in", "-o", "out", "--val-fraction", 0.999999)
        self.assertEqual(len(self.documents("out", "train")), 1)
        self.assertEqual(len(self.documents("out", "val")), 2)

    def test_validation_files(self):
        texts = self.write_documents()
        self.write("in/copy.txt", texts["d3.txt"])  # would leak the validation text into training
        extra = make_text(99, 20)
        self.write("elsewhere/extra.md", extra)
        result = self.prepare("in", "-o", "out", "--val-files", "in/d3.txt", "elsewhere/*.md")
        self.assertEqual(self.documents("out", "val"), [texts["d3.txt"], extra])
        self.assertEqual(sorted(self.documents("out", "train")),
                         sorted(text for name, text in texts.items() if name != "d3.txt"))
        self.assertIn("left out of training: 1 document", result.stderr)

    def test_single_document_is_cut_at_a_line(self):
        text = make_text(1, 400)
        self.write("book.txt", text)
        result = self.prepare("book.txt", "-o", "out", "--val-fraction", 0.1)
        self.assertIn("a single document", result.stderr)
        [train], [val] = self.documents("out", "train"), self.documents("out", "val")
        self.assertEqual(train + val, text)
        self.assertTrue(train.endswith("\n"))
        self.assertAlmostEqual(len(val) / len(text), 0.1, delta=0.01)

    def test_tokenizer_never_sees_held_out_text(self):
        self.write_documents(4)
        self.write("secret.txt", "zyzzyva " * 3000)
        self.prepare("in", "-o", "out", "--val-files", "secret.txt")
        processor = sentencepiece.SentencePieceProcessor(model_file=self.path("out.model"))
        self.assertGreater(len(processor.encode("zyzzyva")), 5)

    def test_kinds_of_files(self):
        self.write("in/a.html", "<html><head><title>t</title><style>p{}</style></head><body><p>One &amp;\n two</p>"
                   "<script>no()</script><ul><li>x<li>y</ul><pre>a  b\n c</pre></body></html>")
        self.write("in/b.md", "# Title\n\ntext\n")
        self.write("in/sub/c.rst.gz", "Section\n=======\n")
        self.write("in/d.json", '{"text": "row one \\ud800"}\n{"text": "  "}\n{"text": "row two"}\n')
        self.write("in/e.bin", b"ignored")
        self.write("in/f.txt", b"\xef\xbb\xbfdos\r\nlines\r\n")
        self.write("in/g.txt", "")
        self.write("pad.txt", make_text(1, 200))
        self.prepare("in", "-o", "out", "--val-files", "pad.txt", "--tokenizer", self.tokenizer())
        self.assertEqual(self.documents("out", "train"), [
            html_to_text(self.read("in/a.html").decode()), "# Title\n\ntext\n",
            "row one \ufffd", "row two", "dos\nlines\n", "Section\n=======\n"])

    def test_html(self):
        page = ("<head><title>t</title></head><body><h1>A&nbsp;b</h1><p>One &amp;\n  two<br>three</p>"
                "<script>if (a < b) no()</script><pre>x  y\n z</pre>end")
        self.assertEqual(html_to_text(page), "A b\n\nOne & two\nthree\n\nx  y\n z\nend\n")
        self.assertEqual(html_to_text("plain"), "plain\n")

    def test_document_separator(self):
        parts = [make_text(seed, 10).strip() for seed in range(30)]
        self.write("all.txt", "<|end|>".join(parts))
        self.prepare("all.txt", "-o", "out", "--document-separator", "<|end|>", "--val-fraction", 0.2)
        self.assertEqual(sorted(self.documents("out", "train") + self.documents("out", "val")), sorted(parts))
        self.write("feeds.txt", "one\n\ftwo\n\f\fthree\n")
        self.prepare("feeds.txt", "-o", "f", "--document-separator", r"\n\f", "--val-fraction", 0, "--tokenizer",
                     "out.model")
        self.assertEqual(self.documents("f", "train"), ["one", "two", "\fthree\n"])

    def test_encoding_and_max_documents(self):
        self.write("in/a.txt", "café\n".encode("latin-1"))
        self.write("in/b.txt", "second\n")
        self.prepare("in", "-o", "out", "--encoding", "latin-1", "--max-documents", 1, "--val-fraction", 0,
                     "--tokenizer", self.tokenizer())
        self.assertEqual(self.documents("out", "train"), ["café\n"])

    def test_reused_tokenizer(self):
        self.write_documents()
        model = self.tokenizer()
        self.prepare("in", "-o", "out", "--tokenizer", model)
        self.assertEqual(self.read("out.model"), self.read(model))
        self.prepare("in", "-o", "out", "--tokenizer", "out.model", "--overwrite")  # its own copy
        self.assertTrue(os.path.exists(self.path("out.model")))

    def test_large_vocabulary_is_stored_as_uint32(self):
        outputs = Outputs(self.path("wide"), overwrite=False)
        writer = ShardWriter(outputs, "train", 65537, 5, 3)
        writer.write(struct.pack("<4I", 65536, 1, 2, 3))
        writer.close()
        self.assertFalse(os.path.exists(self.path("wide_train_000000.bin")))  # not before all is complete
        outputs.commit()
        self.assertEqual([(header[:5], tokens) for header, tokens in self.shards("wide", "train")], [
            ((20240801, 7, 3, 65537, 5), (65536, 1, 2)), ((20240801, 7, 1, 65537, 5), (3,))])

    def test_what_was_prepared_last_is_recorded(self):
        checkout = self.path("checkout")
        shutil.copytree(os.path.join(ROOT, "data"), os.path.join(checkout, "data"),
                        ignore=shutil.ignore_patterns("cache", "__pycache__"))
        text = self.write("text.txt", make_text(1, 400))

        def prepare(*arguments):
            command = [sys.executable, os.path.join(checkout, "data", "prepare.py"), text, *arguments]
            result = subprocess.run(command, capture_output=True, text=True, cwd=self.directory)
            self.assertEqual(result.returncode, 0, result.stderr)
            self.assertEqual([name for name in os.listdir(os.path.join(checkout, "data", "cache"))
                              if name.endswith(".partial")], [])
            with open(os.path.join(checkout, "data", "cache", "latest.json")) as file:
                return json.load(file)

        # From any folder; relative inside the checkout, which may be moved.
        self.assertEqual(prepare("-o", os.path.join(checkout, "data", "cache", "x"), "--vocab-size", "400"),
                         {"train": "x_train_*.bin", "validation": "x_val_*.bin", "tokenizer": "x.model"})
        self.assertEqual(prepare("-o", "checkout/y", "--vocab-size", "400", "--val-fraction", "0"),
                         {"train": "../../y_train_*.bin", "validation": None, "tokenizer": "../../y.model"})
        outside = self.path("z")
        self.assertEqual(prepare("-o", "z", "--vocab-size", "400"),
                         {"train": f"{outside}_train_*.bin", "validation": f"{outside}_val_*.bin",
                          "tokenizer": f"{outside}.model"})

    def test_overwriting(self):
        self.write_documents()
        self.prepare("in", "-o", "out", "--shard-tokens", 500)
        self.write("out_train_notes.txt", "mine")
        before = {name: os.stat(self.path(name)).st_mtime_ns for name in os.listdir(self.directory)}
        self.fails("in", "-o", "out", "--vocab-size", 400, text=["out", "exists", "--overwrite"])
        self.assertEqual({name: os.stat(self.path(name)).st_mtime_ns for name in before}, before)
        self.prepare("in", "-o", "out", "--overwrite")  # fewer shards: the old higher ones go
        self.assertEqual(len(self.shards("out", "val")), 1)
        self.assertTrue(os.path.exists(self.path("out_train_000000.bin")))
        self.assertFalse(os.path.exists(self.path("out_train_000001.bin")))
        self.assertTrue(os.path.exists(self.path("out_train_notes.txt")))

    def test_failed_overwrite_keeps_the_old_outputs(self):
        self.write_documents()
        self.prepare("in", "-o", "out")
        before = self.read("out_train_000000.bin")
        self.write("bad/x.jsonl", json.dumps({"text": "fine"}) + "\n{broken\n")
        self.fails("in", "bad", "-o", "out", "--overwrite", text=["bad/x.jsonl, line 2"])
        self.assertEqual(self.read("out_train_000000.bin"), before)

    def test_full_disk(self):
        self.write_documents(6, 2000)

        def limit_file_size():  # the kernel then refuses to write on, as on a full disk
            resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))

        self.fails("in", "-o", "out", "--vocab-size", 400, text=["File too large"], preexec_fn=limit_file_size)

    def test_mistakes(self):
        self.write_documents()
        self.write("odd.pdf", "x")
        self.write("empty.txt", " \n")
        self.write("latin.txt", b"caf\xe9 au lait\n")
        self.write("rows.jsonl", '{"content": "x"}\n')
        self.write("array.json", '[{"text": "a"},\n{broken}]\n')
        self.write("damaged.txt.gz", "text")
        with open(self.path("damaged.txt.gz"), "wb") as file:
            file.write(b"not gzip")
        self.write("bad.model", "not a model")
        os.mkdir(self.path("void"))
        self.write("twins/a.txt", "same\n")
        self.write("twins/b.txt", "same\n")
        out = ["-o", "out"]
        self.fails(*out, text=["INPUT"])
        self.fails("in", text=["--output"])
        self.fails("none*.txt", *out, text=["no file matches 'none*.txt'"])
        self.fails("void", *out, text=["void", "no file of a known kind"])
        self.fails("odd.pdf", *out, text=["odd.pdf", "unknown kind", ".jsonl"])
        self.fails("empty.txt", *out, text=["no text"])
        self.fails("latin.txt", *out, text=["latin.txt", "not valid utf-8", "0xe9", "--encoding"])
        self.fails("rows.jsonl", *out, text=["rows.jsonl, line 1", "'text'", "content", "--text-field"])
        self.fails("array.json", *out, text=["array.json, line 2", "not JSON"])
        self.fails("damaged.txt.gz", *out, text=["damaged.txt.gz", "gzip"])
        self.fails("twins", *out, text=["same content", "--val-files"])
        self.fails("in", *out, "--val-files", "in/*.txt", text=["no text to train on"])
        self.fails("in", *out, "--val-files", "empty.txt", text=["--val-files", "no text"])
        self.fails("in", *out, "--tokenizer", "bad.model", text=["bad.model", "not a SentencePiece model"])
        self.fails("in", *out, "--tokenizer", "none.model", text=["none.model", "No such file"])
        self.fails("in", *out, "--vocab-size", 200, text=["--vocab-size", "300"])
        self.fails("in", *out, "--vocab-size", 2**31 - 1, text=["--vocab-size 2147483647"])
        self.fails("in", *out, "--val-fraction", 1, text=["--val-fraction"])
        self.fails("in", *out, "--shard-tokens", 0, text=["--shard-tokens"])
        self.fails("in", *out, "--workers", 0, text=["--workers"])
        self.fails("in", *out, "--encoding", "klingon", text=["klingon"])
        self.fails("in", "-o", "in/", text=["prefix"])

    def test_damaged_tokenizer_models(self):
        self.write("in/a.txt", make_text(1, 5))
        model = self.read(self.tokenizer())
        odd = model.replace("amber".encode(), b"amb\xeer", 1)
        self.assertNotEqual(odd, model)
        normalizer = model.rindex(b"identity") - 4  # where the last of its three parts begins
        for content, words in ((b"", "is empty"), (b"[]", "not a SentencePiece model"), (model[:-1], "not a SentencePiece model"),
                               (model[:len(model) // 2], "not a SentencePiece model"), (model[:normalizer], "not a SentencePiece model"),
                               (b"\xef\xbb\xbf" + model, "not a SentencePiece model"), (odd, "not UTF-8")):
            self.write("damaged.model", content)
            self.fails("in", "-o", "out", "--tokenizer", "damaged.model", text=["damaged.model: ", words])

    def test_the_largest_and_smallest_vocabulary_of_a_text_are_said(self):
        self.write_documents(2, 20)
        self.write("many/a.txt", "".join(chr(0x4e00 + number % 900) + " " * (number % 7 == 0) for number in range(20_000)))
        self.write("few/a.txt", "abc" * 3000)
        for place, size, words in (("in", 60000, "the largest possible is "), ("many", 400, "the smallest possible is ")):
            line = self.fails(place, "-o", "out", "--vocab-size", size, "--val-fraction", 0, text=[f"--vocab-size {size}: ", words])
            self.assertNotIn(".cc", line)
            limit, beyond = int(line.split()[-1]), 1 if place == "in" else -1
            self.assertTrue(line.endswith(f"{words}{limit}"))
            self.prepare(place, "-o", f"out_{place}", "--vocab-size", limit, "--val-fraction", 0)
            self.fails(place, "-o", "out", "--vocab-size", limit + beyond, "--val-fraction", 0, text=[f"{words}{limit}"])
        self.assertNotIn(".cc", self.fails("few", "-o", "out", "--vocab-size", 300, text=["--vocab-size 300: ", "too short", "pieces"]))

    def test_missing_packages_are_named(self):
        self.write("x.parquet", "x")
        self.write("a.txt", make_text(1, 5))
        self.write("tokenizer.json", "{}")
        for arguments, package in [(["x.parquet"], "pyarrow"), (["--hf-dataset", "x"], "datasets"),
                                   (["a.txt", "--tokenizer", "gpt2"], "tiktoken"), (["a.txt"], "sentencepiece"),
                                   (["a.txt", "--tokenizer", "tokenizer.json"], "tokenizers")]:
            # A package that fails to import, whatever is installed.
            blocked = os.path.dirname(self.write(f"no_{package}/{package}.py", "raise ImportError"))
            environment = {**os.environ, "PYTHONPATH": blocked, "PYTHONDONTWRITEBYTECODE": "1"}
            self.fails(*arguments, "-o", "out", text=[package, "install"], env=environment)


@unittest.skipUnless(tokenizers, "the Python package tokenizers is not installed")
class HuggingFaceTokenizerTest(PrepareFixture):
    """Byte-level BPE that the package itself has trained."""

    def setUp(self):
        super().setUp()
        self.write("sample.txt", make_text(5, 300))
        tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = tokenizers.decoders.ByteLevel()
        tokenizer.train([self.path("sample.txt")], tokenizers.trainers.BpeTrainer(
            vocab_size=400, show_progress=False, special_tokens=["<|begin|>", "<|end|>"],
            initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet()))
        os.mkdir(self.path("model"))
        tokenizer.save(self.path("model", "tokenizer.json"))
        self.library = tokenizer
        self.configure("tokenizer_config.json", {"bos_token": "<|begin|>", "eos_token": {"content": "<|end|>"}})

    def configure(self, name, values):
        self.write(f"model/{name}", json.dumps(values))

    def expected(self, texts, start=0):
        self.library.encode_special_tokens = True
        return [token for text in texts for token in [start] + self.library.encode(text, add_special_tokens=False).ids]

    def test_text_comes_back_from_the_shards(self):
        texts = self.write_documents()
        texts["d9.txt"] = "looks like <|end|> and <|begin|> but is text\n  \n\n"
        self.write("in/d9.txt", texts["d9.txt"])
        for source in "model", "model/tokenizer.json":
            self.prepare("in", "-o", "out", "--tokenizer", source, "--val-fraction", 0, "--overwrite")
            [(header, tokens)] = self.shards("out", "train")
            self.assertEqual(list(tokens), self.expected(texts.values()))
            self.assertEqual(header[:4], (20240520, 1, len(tokens), 400))
            self.assertEqual(header[4] % 2**32 + (header[5] % 2**32 << 32), fnv1a_64(self.read("model/tokenizer.json")))
            self.assertEqual(tokens.count(0), len(texts))
            self.assertEqual(self.library.decode(list(tokens), skip_special_tokens=True), "".join(texts.values()))
            self.assertFalse(os.path.exists(self.path("out.model")))
        with open(self.path("out.json"), encoding="utf-8") as file:
            manifest = json.load(file)["tokenizer"]
        self.assertEqual((manifest["kind"], manifest["file"], manifest["document_start_id"]),
                         ("hugging_face", self.path("model/tokenizer.json"), 0))

    def test_long_documents_are_encoded_in_one_go(self):
        text = make_text(3, 6000)
        self.write("in/long.txt", text)
        for workers in 1, 3:
            self.prepare("in", "-o", f"out{workers}", "--tokenizer", "model", "--val-fraction", 0, "--workers", workers)
            [(_, tokens)] = self.shards(f"out{workers}", "train")
            self.assertEqual(list(tokens), self.expected([text]))

    def test_the_files_beside_it_say_what_begins_a_document(self):
        self.write("in/a.txt", "word\n")
        os.remove(self.path("model", "tokenizer_config.json"))
        for files, start in (({"special_tokens_map.json": {"bos_token": {"content": "<|end|>"}}}, 1),
                             ({"config.json": {"bos_token_id": 7, "eos_token_id": 1}}, 7),
                             ({"tokenizer_config.json": {"bos_token": None, "eos_token": "<|end|>"}}, 1),
                             ({"tokenizer_config.json": {"eos_token": "<|begin|>"}, "config.json": {"bos_token_id": 1}}, 1),
                             ({"config.json": {"bos_token_id": None, "eos_token_id": [5, 6]}}, 5)):
            for name, values in files.items():
                self.configure(name, values)
            self.prepare("in", "-o", "out", "--tokenizer", "model", "--val-fraction", 0, "--overwrite")
            self.assertEqual(self.shards("out", "train")[0][1][0], start)
            for name in files:
                os.remove(self.path("model", name))
        self.fails("in", "-o", "never", "--tokenizer", "model", text=["tokenizer.json", "config.json", "begin or end"])
        self.configure("config.json", {"bos_token_id": 400})  # no token
        self.fails("in", "-o", "never", "--tokenizer", "model", text=["tokenizer.json", "begin or end"])
        self.write("model/config.json", "{")
        self.fails("in", "-o", "never", "--tokenizer", "model", text=["config.json", "no JSON"])

    def test_a_large_vocabulary_has_wide_shards(self):
        file = json.loads(self.read("model/tokenizer.json"))
        file["model"]["vocab"].update({f"never{number}": number for number in range(400, 65600)})
        file["model"]["vocab"]["far"] = 70000  # ids may have gaps
        self.write("model/tokenizer.json", json.dumps(file))
        self.write("in/a.txt", make_text(1, 20))
        self.prepare("in", "-o", "out", "--tokenizer", "model", "--val-fraction", 0)
        [(header, tokens)] = self.shards("out", "train")
        self.assertEqual(header[:4], (20240801, 7, len(tokens), 70001))
        self.assertEqual(list(tokens), self.expected([make_text(1, 20)]))

    def test_the_record_names_what_the_trainer_reads(self):
        self.write("in/a.txt", make_text(1, 20))

        def recorded():
            result = subprocess.run([sys.executable, PREPARE, "--record", self.path("latest.json"), "in", "-o", "out", "--tokenizer",
                                     "model", "--val-fraction", "0", "--overwrite"], capture_output=True, text=True,
                                    cwd=self.directory)
            self.assertEqual(result.returncode, 0, result.stderr)
            record = json.loads(self.read("latest.json"))["tokenizer"]
            self.assertEqual("no sample of text" in result.stderr, record is None)
            return record

        self.assertEqual(recorded(), self.path("model", "tokenizer.json"))
        original = self.read("model/tokenizer.json")
        for part, value in (("normalizer", {"type": "Lowercase"}), ("pre_tokenizer", {"type": "Whitespace"}),
                            ("pre_tokenizer", None)):
            self.write("model/tokenizer.json", json.dumps({**json.loads(original), part: value}))
            self.assertIsNone(recorded())
        digits = {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True},
                                                        json.loads(original)["pre_tokenizer"]]}
        self.write("model/tokenizer.json", json.dumps({**json.loads(original), "pre_tokenizer": digits,
                                                       "normalizer": {"type": "NFC"}}))
        self.assertEqual(recorded(), self.path("model", "tokenizer.json"))

    def test_mistakes_with_it(self):
        self.write("in/a.txt", make_text(1, 20))
        before = self.read("model/tokenizer.json")
        for flags in ([], ["--overwrite"]):
            self.fails("in", "-o", "model/tokenizer", "--tokenizer", "model", *flags, text=["model/tokenizer.json", "prefix"])
        self.assertEqual(self.read("model/tokenizer.json"), before)
        self.write("odd/tokenizer.json", '{"version": "1.0"}')
        self.fails("in", "-o", "out", "--tokenizer", "odd", text=["odd/tokenizer.json", "not a tokenizer.json"])
        os.mkdir(self.path("void"))
        self.fails("in", "-o", "out", "--tokenizer", "void", text=["--tokenizer void", "tokenizer.json", "tokenizer.model"])


class ProseCorpusTest(unittest.TestCase):
    """data/prepare/prose_corpus.py without a network: a package is a directory here."""

    def setUp(self):
        temporary = tempfile.TemporaryDirectory(prefix="train_qat_test_")
        self.addCleanup(temporary.cleanup)
        self.root = temporary.name
        original = prose_corpus.unpacked
        prose_corpus.unpacked = lambda package: contextlib.nullcontext(self.root)
        self.addCleanup(setattr, prose_corpus, "unpacked", original)

    def package(self, text):
        folder = os.path.join(self.root, "usr/share/dictd")
        os.makedirs(folder)
        with gzip.open(os.path.join(folder, "devil.dict.dz"), "wb") as file:
            file.write(text)

    def test_a_dictionary_becomes_pages_of_joined_lines(self):
        entry = b"Word \\Word\\, n.\n   A sound   that means\n   {happiness}.\n   [1913 Webster]\n\n"
        self.package(entry * 400 + b"\xff Last entry.\n")
        pages = list(prose_corpus.dictionary("dict-devil"))
        self.assertGreater(len(pages), 2)
        lines = "\n".join(pages).split("\n")
        self.assertEqual(lines[:400], ["Word \\Word\\, n. A sound that means happiness."] * 400)
        self.assertEqual(lines[400].strip(), "Last entry.")
        self.assertTrue(all(len(page) < prose_corpus.PAGE_CHARACTERS + 300 for page in pages))

    def test_a_package_that_has_changed_is_said_to_have(self):
        with self.assertRaisesRegex(CorpusError, "dict-devil has changed: devil.dict.dz is not in it"):
            list(prose_corpus.dictionary("dict-devil"))
        self.package(b"Something else.\n")
        with self.assertRaisesRegex(CorpusError, "its text is not the one known"):
            list(prose_corpus.dictionary("dict-devil"))


if __name__ == "__main__":
    unittest.main()
