#!/usr/bin/env python3
"""Tests of odd input to data/prepare.py: encodings, rows without a text, damaged files, unequal documents, odd streams."""
import gzip
import json
import os
import random
import socket
import subprocess
import sys
import unittest
from types import SimpleNamespace

from prepare_fixture import PREPARE, PrepareFixture, make_text

import rows
import text_files
from corpus import Corpus
from documents import Reading, find_files, read_documents
from findings import Findings
from hold_out import HoldOut, Survey, cut, warning
from html_text import html_to_text
from long_words import LONGEST_LINE, LONGEST_WORD, divide_long_lines
from mistakes import UserError, import_package
from shard_files import Outputs

RUSSIAN = "Всё смешалось в доме Облонских.\nЖена узнала, что муж был в связи.\n" * 30
CHINESE = "道可道，非常道。名可名，非常名。一生二，二生三，三生万物。\n" * 40
ENGLISH = "Happy families are all alike.\nEvery unhappy family is unhappy in its own way.\n" * 30


class ReaderFixture(PrepareFixture):
    def read_file(self, name, encoding=text_files.DEFAULT_ENCODING, field="text", separator=None):
        """(texts, findings)"""
        findings = Findings()
        reading = Reading(field, separator, encoding)
        return [document.content for document in read_documents(self.path(name), reading, findings)], findings

    def refuses(self, name, content, *texts, **options):
        """One UserError that names the file and holds `texts`."""
        path = self.write(name, content)
        with self.assertRaises(UserError) as caught:
            self.read_file(name, **options)
        for text in (path, *texts):
            self.assertIn(text, str(caught.exception))
        self.assertNotIn("\n", str(caught.exception))


class EncodingTest(ReaderFixture):
    def test_wide_encodings_are_recognised(self):
        for text in ENGLISH, RUSSIAN, CHINESE, "short\n":
            for encoding in "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be":
                for name in "a.txt", "a.txt.gz":
                    if text == "short\n" and name == "a.txt.gz":
                        continue
                    self.write(name, text.encode(encoding))
                    texts, findings = self.read_file(name)
                    self.assertEqual(texts, [text], encoding)
                    self.assertEqual(findings.encodings, {self.path(name): encoding})
                    self.assertIn(f"read as {encoding}", "\n".join(findings.lines()))
        big = b"\xfe\xff" + ENGLISH.encode("utf-16-be")
        self.write("rows.jsonl", json.dumps({"text": "é"}).encode("utf-16"))
        self.assertEqual(self.read_file("rows.jsonl")[0], ["é"])
        self.write("a.txt", big)
        self.assertEqual(self.read_file("a.txt", "latin-1")[0], [ENGLISH])  # a mark says more than an option

    def test_narrow_encodings_are_left_alone(self):
        for text, encoding in (ENGLISH, "utf-8"), (RUSSIAN, "utf-8"), (CHINESE, "utf-8"), (ENGLISH + "é\n", "latin-1"), (RUSSIAN, "cp1251"):
            self.write("a.txt", text.encode(encoding))
            texts, findings = self.read_file("a.txt", encoding)
            self.assertEqual((texts, findings.encodings), ([text], {}))

    def test_encodings_that_hold_text_back_need_no_more_memory(self):
        """Of read(n) as much as of n such characters."""
        limit = "import resource; resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30)); "
        read = "from documents import *; print(len([*read_documents('a.txt', Reading('text', '<', 'utf-7'), Findings())][-1].content))"
        self.write("a.txt", "x<+" + "TgBOAE4A" * 20_000)
        result = subprocess.run([sys.executable, "-c", limit + read], capture_output=True, text=True, cwd=self.directory,
                                env={**os.environ, "PYTHONPATH": os.path.dirname(text_files.__file__)})
        self.assertEqual((result.stdout, result.stderr), ("60000\n", ""))

    def test_nul_bytes_are_named(self):
        self.write("a.txt", (ENGLISH * 3).replace("alike", "al\0ike", 1))
        texts, findings = self.read_file("a.txt")
        self.assertIn("al\0ike", texts[0])
        self.assertEqual(findings.nuls, {self.path("a.txt"): 1})
        self.assertIn("1 NUL characters", "\n".join(findings.lines()))
        generator = random.Random(3)
        self.refuses("b.txt", b"text " + bytes(generator.choice([0, 1, 2, 65, 200, 255]) for _ in range(9000)), "NUL bytes, the first at byte")

    def test_text_that_nul_bytes_divide_is_not_utf_16(self):
        for number, record in enumerate((b"abc\0", b"ab\0", b"abcd\0", b"a line of text\0", b"key=value\0\0\0\0", "caf\xe9\0".encode("latin-1"),
                                         "naïve\0".encode(), b"x\n\0\0", b"\0abc", b"PATH=/bin\nHOME=/\n\0")):
            name = f"{number}.txt"
            self.refuses(name, record * 2000, "NUL bytes, the first at byte", str(record.index(0)))
            self.refuses(name, record * 3, "NUL bytes, the first at byte")
        for text in ENGLISH, ENGLISH.replace("all", "\u201call\u201d \u2026"), RUSSIAN, CHINESE, "Ä Ö é ß\n" * 50, "Łódź i żółw\n" * 50, "のは、です。\n" * 50:
            for encoding in "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be":
                self.write("wide.txt", text.encode(encoding))
                self.assertEqual(self.read_file("wide.txt")[0], [text], encoding)

    def test_encodings_that_do_not_suit_the_file(self):
        self.refuses("a.txt", ENGLISH, "is UTF-8, not utf-16", encoding="utf-16")
        self.refuses("a.txt", ENGLISH, "is UTF-8, not utf-32-le", encoding="utf-32-le")
        self.refuses("b.txt", "fine\nfine\ncaf\xe9 au lait\n".encode("latin-1"), "b.txt, line 3", "not valid utf-8", "0xe9", "--encoding")
        self.refuses("b.txt.gz", "fine\ncaf\xe9 au lait\n".encode("latin-1"), "b.txt.gz, line 2")
        self.refuses("c.txt", RUSSIAN.encode("utf-16-le") + b"x", "utf-16-le", "cut short")
        for encoding in "idna", "unicode_escape", "punycode", "utf-7":
            self.write("d.txt", b"\\ud800 \\x +2AA- \xff" * 9)
            try:
                self.read_file("d.txt", encoding)[0][0].encode()
            except UserError as error:
                self.assertIn("d.txt", str(error))

    def test_files_that_are_something_else(self):
        self.refuses("a.txt", gzip.compress(b"x" * 99), "gzip", ".gz")
        self.refuses("a.md", b"PK\x03\x04\x14\x00\xff\xff", "zip")
        self.refuses("a.html", b"%PDF-1.4\n%", "PDF", "pdftotext")


class DamageTest(ReaderFixture):
    def test_gzip(self):
        whole = gzip.compress(ENGLISH.encode())
        for content in whole[:-9], whole[:40], b"no gzip", whole + b"garbage", whole[:60] + bytes(20) + whole[80:]:
            with open(self.path("a.txt.gz"), "wb") as file:
                file.write(content)
            with self.assertRaisesRegex(UserError, "a.txt.gz: damaged gzip file"):
                self.read_file("a.txt.gz")

    def test_json(self):
        row = '{"text": "fine"}\n'
        self.refuses("a.jsonl", row + "{broken\n", "a.jsonl, line 2", "not JSON")
        self.refuses("a.jsonl", row + "[" * 100_000 + "\n", "a.jsonl, line 2", "nested too deeply")
        self.refuses("a.json", "\n" + '{"a":' * 100_000, "a.json, line 2", "nested too deeply")
        self.refuses("a.json", '[{"text": "x"},\n{"text": "y"}', "line 2", "cut short")
        self.refuses("a.json", '[{"text": "x"}\n{"text": "y"}]', "line 2", "expected one of , ]")
        self.refuses("a.json", '[{"text": "x"},\n{"text": \'y\'}]', "line 2", "not JSON")
        self.refuses("a.json", '[{"text": "x"}]\n[]', "line 2", "follows the end")
        self.refuses("a.json", '{"text": "unfinished', "line 1", "Unterminated string")
        self.write("a.jsonl", '{"id": ' + "9" * 10_000 + ', "text": "x \\ud800"}\n')
        self.assertEqual(self.read_file("a.jsonl")[0], ["x \ufffd"])

    def test_json_values_however_they_are_laid_out(self):
        values = [{"text": f"{number} \"é\\ {'long ' * (number % 5) * 900}", "id": [number, {"a": -1.5e3}]} for number in range(60)]
        texts = [value["text"] for value in values]
        for name, content in [("a.json", json.dumps(values)), ("b.json", json.dumps(values, indent=2)), ("c.jsonl", json.dumps(values)),
                              ("d.json", "\n".join(json.dumps(value, indent=1) for value in values)),
                              ("e.json", " ".join(map(json.dumps, values))), ("f.json.gz", json.dumps(values)), ("g.json", json.dumps(texts))]:
            self.write(name, content)
            for size in 1, 7, 64, 1 << 20:  # wherever the reads end
                original, rows.READ_BYTES = rows.READ_BYTES, size
                try:
                    self.assertEqual(self.read_file(name)[0], texts, name)
                finally:
                    rows.READ_BYTES = original

    def test_rows_without_a_text_are_counted(self):
        values = [{"text": "one"}, {"text": None}, {"text": 5}, {"other": "x"}, None, [], {"text": ["x"]}, {"text": "two"}, {"text": True}]
        expected = {"null": 2, "a number": 1, "without that field": 1, "not an object": 1, "a list": 1, "a boolean": 1}
        for name, content in ("a.jsonl", "\n".join(map(json.dumps, values))), ("b.json", json.dumps(values)):
            self.write(name, content)
            texts, findings = self.read_file(name)
            self.assertEqual(texts, ["one", "two"])
            self.assertEqual(findings.skipped, {self.path(name): expected})
            self.assertIn(f"{name}: 7 rows without a text left out (2 null, 1 a number", "\n".join(findings.lines()))
        self.write("nulls.jsonl", '{"text": null}\n' * 3)
        self.assertEqual(self.read_file("nulls.jsonl")[0], [])
        self.refuses("c.jsonl", '{"text": null}\n{"text": 7}\n', "c.jsonl, line 2", "'text'", "it is a number", "--text-field")
        self.refuses("d.jsonl", '{"body": "x"}\n' * 2000, "d.jsonl, line 1", "it has body")
        self.refuses("e.jsonl", '{"te\\nt": "x", "": 1}\n', "it has te t,")
        self.refuses("f.jsonl", "{}\n", "it has no field")

    def test_parquet(self):
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError:
            self.skipTest("pyarrow is not installed")
        for name, values in ("a.parquet", ["one", None, "two", ""]), ("b.parquet", [1, 2]), ("c.parquet", [b"\xff"]):
            pyarrow.parquet.write_table(pyarrow.table({"text": values}), self.path(name))
        texts, findings = self.read_file("a.parquet")
        self.assertEqual((texts, findings.skipped), (["one", "two"], {self.path("a.parquet"): {"null": 1}}))
        for name, text in ("b.parquet", "row 1: .*it is a number"), ("c.parquet", "row 1: .*binary data"):
            with self.assertRaisesRegex(UserError, text):
                self.read_file(name)
        self.refuses("d.parquet", b"PAR1 no", "cannot be read")
        with self.assertRaisesRegex(UserError, "no column 'body' .it has text."):
            self.read_file("a.parquet", field="body")

    def test_html(self):
        self.assertEqual(html_to_text("a<![foo[b]]>c &#" + "9" * 6000 + "; d"), "ac \ufffd d\n")
        self.assertEqual(html_to_text("a <!-- never closed"), "a <!-- never closed\n")
        for part in "<!--", "<a ", "<![", "<?", "</", "&#", "<pre>" + " " * 99, "<script>", "<a b='":  # in time that grows no faster than they do
            html_to_text(part * 20_000)


class FilesTest(ReaderFixture):
    def test_linked_directories_are_read_once(self):
        self.write("in/a.txt", "a")
        self.write("elsewhere/b.txt", "b")
        os.symlink(self.path("elsewhere"), self.path("in/link"))
        os.symlink(self.path("in"), self.path("in/cycle"))
        os.symlink(self.path("in"), self.path("elsewhere/back"))
        self.assertEqual([os.path.basename(name) for name in find_files([self.path("in")])], ["a.txt", "b.txt"])

    def test_files_that_cannot_be_read(self):
        os.mkfifo(self.path("pipe.txt"))
        self.fails("pipe.txt", "-o", "out", text=["pipe.txt", "a pipe"], timeout=20)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(self.path("s.txt"))
            self.fails("s.txt", "-o", "out", text=["s.txt", "a socket"])
        os.symlink("/dev/zero", self.path("zero.txt"))
        self.fails("zero.txt", "-o", "out", text=["zero.txt", "a device"], timeout=20)
        os.symlink("nowhere.txt", self.path("dangling.txt"))
        self.fails("dangling.txt", "-o", "out", text=["dangling.txt", "No such file"])

    def test_files_that_change_or_vanish_meanwhile(self):
        for change, text in (lambda path: self.write("a.txt", "longer than before"), "has changed"), (os.unlink, "No such file"):
            path = self.write("a.txt", "text")
            corpus = Corpus(SimpleNamespace(text_field="text", document_separator=None, encoding="utf-8", output=self.path("out"), val_files=None,
                                            inputs=[path], val_fraction=0.1, hf_dataset=None, max_documents=None), Findings())
            corpus.scan()
            change(path)
            with self.assertRaisesRegex((UserError, OSError), text):
                list(corpus.with_splits())

    def test_outputs_are_no_input(self):
        self.write_documents(3)
        self.prepare("in", "-o", "in/out", "--val-fraction", 0)
        before = self.read("in/out_train_000000.bin")
        self.prepare("in", "-o", "in/out", "--val-fraction", 0, "--overwrite")
        self.assertEqual(self.read("in/out_train_000000.bin"), before)
        self.fails("in/out.json", "-o", "in/out", "--overwrite", text=["in/out.json", "output of this run"])


class LongWordsTest(PrepareFixture):
    def test_nothing_is_lost_and_nothing_torn(self):
        generator = random.Random(5)
        for alphabet in "ACGT", "道可非常名", "e\u0301", "ab \0":
            line = "".join(generator.choice(alphabet) for _ in range(150_000))
            parts = list(divide_long_lines([line, "x"]))
            self.assertEqual("".join(parts).replace(" ", ""), (line + "x").replace(" ", "").replace("\0", ""))
            self.assertTrue(all(len(part) <= LONGEST_LINE for part in parts))
            self.assertTrue(all(len(word) <= LONGEST_WORD for part in parts for word in part.split(" ")))
            self.assertFalse(any(word.startswith("\u0301") for part in parts[1:] for word in part.split(" ") if alphabet[0] == "e"
                                 and "\u0301" * 16 not in word))

    def test_lines_without_spaces_are_trained_on(self):
        generator = random.Random(1)
        words = ["".join(generator.choice("ACGT") for _ in range(70_000)), "".join(chr(0x4E00 + generator.randrange(99)) for _ in range(66_000))]
        self.write("in.txt", make_text(1, 300) + "\n".join(words) + "\n")
        self.prepare("in.txt", "-o", "out", "--val-fraction", 0)
        self.assertEqual(self.documents("out", "train"), [self.read("in.txt").decode()])


class HoldOutTest(PrepareFixture):
    def test_small_and_large(self):
        large = make_text(1, 3000)
        for small in "Notes.\n", "Other notes.\n", "More.\n":  # whichever hash is the smaller
            self.write("in/large.txt", large)
            self.write("in/small.txt", small)
            result = self.prepare("in", "-o", "out", "--overwrite")
            self.assertIn("of the longest, in/large.txt, its last 2% is the validation set", result.stderr)
            [held_out] = self.documents("out", "val")
            self.assertTrue(large.endswith(held_out))
            self.assertAlmostEqual(len(held_out) / len(large), 0.02, delta=0.01)
            self.assertEqual(sorted(self.documents("out", "train")), sorted([large[:-len(held_out)], small]))
            self.assertIn(f"val: 1 documents, {len(held_out.encode())} bytes (", result.stdout)

    def test_choices(self):
        """Whatever the sizes: never the larger part, and something."""
        generator = random.Random(7)
        for _ in range(2000):
            fraction = generator.choice([0.001, 0.02, 0.1, 0.3])
            survey = Survey(fraction)
            documents = [(generator.randrange(2**64), int(generator.paretovariate(0.5)) % 10**7 + 2) for _ in range(generator.randrange(2, 60))]
            for value, size in documents:
                survey.add(value, size, "")
            chosen = survey.choose()
            self.assertIsInstance(chosen, HoldOut)
            held_out = sum(chosen.share * size if value == chosen.cut else size * (value < chosen.limit) for value, size in documents)
            self.assertLessEqual(held_out, 0.5 * survey.bytes)
            self.assertGreaterEqual(held_out, min(fraction * survey.bytes, min(size for _, size in documents)) / 4)

    def test_cuts(self):
        for text in "ab", "x" * 1000, "word " * 300, "line\n" * 300, "x" * 990 + "\n" + "y" * 9, "e\u0301" * 500:
            for share in 0.001, 0.02, 0.5:
                train, val = cut(SimpleNamespace(text=lambda: text, path="p"), share)
                self.assertEqual(train.content + val.content, text)
                self.assertTrue(train.content and val.content)

    def test_warnings(self):
        def of(train, val, fraction=0.02, by_files=()):
            return warning({"train": {"bytes": train}, "val": {"bytes": val}}, fraction, by_files)

        self.assertIsNone(of(98, 2))
        self.assertIsNone(of(98, 0, 0))
        self.assertIn("16.7% of the text is held out, --val-fraction asks for 2%", of(50, 10))
        self.assertIn("0.1% of", of(999, 1))
        self.assertIsNone(of(90, 10, by_files=["x"]))
        self.assertIn("more than is trained on", of(40, 60, by_files=["x"]))


class StreamsTest(PrepareFixture):
    def run_shell(self, command, **environment):
        return subprocess.run(["bash", "-c", command, PREPARE, sys.executable], cwd=self.directory, capture_output=True, text=True,
                              env={**os.environ, **environment}, timeout=60)

    def test_streams_that_are_ascii_closed_or_not_read(self):
        self.write("ü.txt", make_text(1, 300))
        command = '"$1" "$0" --record "" ü.txt --vocab-size 400 --overwrite -o ö/out'
        for redirection in "", ">&-", "2>&-", ">&- 2>&-", "<&-", "> /dev/full", "2> /dev/full":
            result = self.run_shell(f"{command} {redirection}", PYTHONIOENCODING="ascii", PYTHONUTF8="0", LC_ALL="C.UTF-8")
            self.assertEqual(result.returncode, 0, (redirection, result.stderr))
            self.assertNotIn("Exception", result.stderr)
            self.assertEqual(sorted(os.listdir(self.path("ö"))),
                             ["out.json", "out.model", "out_train_000000.bin", "out_val_000000.bin"])
            with open(self.path("ö/out.json"), encoding="utf-8") as file:
                json.load(file)
        result = self.run_shell(f'{command} | true; exit "${{PIPESTATUS[0]}}"')
        self.assertEqual((result.returncode, "Broken" in result.stderr), (0, False), result.stderr)
        self.assertEqual(self.run_shell('"$1" "$0" --help', PYTHONIOENCODING="ascii").returncode, 0)

    def test_a_record_that_cannot_be_written_is_a_warning(self):
        self.write("a.txt", make_text(1, 300))
        self.write("file", "no directory")
        command = [sys.executable, PREPARE, "a.txt", "-o", "out", "--vocab-size", "400", "--record", "file/latest.json"]
        result = subprocess.run(command, cwd=self.directory, capture_output=True, text=True)
        self.assertEqual(result.returncode, 0)
        self.assertIn("warning: these outputs are not noted", result.stderr)
        self.assertNotIn("nothing was written", result.stderr)

    def test_a_file_that_is_no_record_is_not_replaced(self):
        for name, content in (("a.txt", "a text"), ("b.json", "[1]"), ("c.json", '{"other": 1}'), ("d.json", "[" * 100_000)):
            self.write(name, content)
            self.fails("a.txt", "-o", "out", "--record", name, text=[f"--record {name}: is there, and no record"])
            self.assertEqual(self.read(name), content.encode())
        os.mkdir(self.path("folder"))
        self.fails("a.txt", "-o", "out", "--record", "folder", text=["folder: is a directory"])


class PackagesTest(PrepareFixture):
    def test_a_package_that_is_there_and_broken_is_not_missing(self):
        sys.path.insert(0, self.directory)
        self.addCleanup(sys.path.remove, self.directory)
        self.write("broken_one.py", "import no_such_module_at_all")
        self.write("broken_two.py", "raise OSError('libx.so.1: cannot open shared object file')")
        for name, text in ("broken_one", "no_such_module_at_all"), ("broken_two", "libx.so.1"):
            with self.assertRaisesRegex(UserError, f"a test needs the Python package {name}, which is installed .* cannot be imported.*{text}"):
                import_package(name, "a test")
        with self.assertRaisesRegex(UserError, "no_such_package, which .* lacks: install it .*no_such_package"):
            import_package("no_such_package", "a test")


class OptionsTest(PrepareFixture):
    def test_numbers(self):
        self.write("a.txt", "text")
        for option, value in [("--train-sample-mb", "nan"), ("--train-sample-mb", "inf"), ("--val-fraction", "nan"), ("--val-fraction", "inf"),
                              ("--vocab-size", 2**40), ("--workers", 2**70), ("--encoding", "undefined"), ("--encoding", "rot13"),
                              ("--document-separator", "")]:
            self.fails("a.txt", "-o", "out", option, value, text=[option])

    def test_output_names(self):
        with self.assertRaisesRegex(UserError, "not valid UTF-8"):
            Outputs(self.path("\udcff"), False)
        self.write("a.txt", "text")
        self.fails("a.txt", "-o", "", text=["names nothing"])
        self.fails("a.txt", "-o", "out", "--tokenizer", "", text=["names nothing"])
        os.mkfifo(self.path("pipe.model"))
        self.fails("a.txt", "-o", "out", "--tokenizer", "pipe.model", text=["pipe.model: is a pipe"], timeout=30)

    def test_an_output_that_cannot_be_replaced_keeps_all_from_being_written(self):
        self.write("a.txt", make_text(1, 50))
        os.mkdir(self.path("out_train_000000.bin"))
        self.fails("a.txt", "-o", "out", "--vocab-size", 400, "--overwrite", text=["out_train_000000.bin is a directory"])


if __name__ == "__main__":
    unittest.main()
