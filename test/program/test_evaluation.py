#!/usr/bin/env python3
"""-eval_only: what it prints of checkpoints, beside what their runs had measured themselves.

    test/program/test_evaluation.py --program ./train_qat
"""
import json
import math
import os
import random
import re
import shutil
import struct
import sys

import program_fixture as fixture
from program_fixture import ProgramTest, checkpoint, checkpoints, read_bytes, read_metrics, run_tests, snapshot


class EvaluationTest(ProgramTest):
    def evaluate(self, *arguments):
        """{weights: (loss, perplexity, bits per byte or None)}, and what was printed."""
        before = snapshot(self.directory)
        result = self.start([self.program, "-eval_only", "-device", "cpu", *map(str, arguments)])
        self.assertEqual((result.returncode, result.stderr), (0, ""), result.stdout)
        self.assertEqual(snapshot(self.directory), before)
        rows = re.findall(r"^  (full precision|quantized, \S+ bits?|rounded to \S+ bits?) +([\d.]+) +([\d.]+)(?: +([\d.]+))?$",
                          result.stdout, re.MULTILINE)
        return {name: tuple(float(value) if value else None for value in values) for name, *values in rows}, result.stdout

    def test_losses_are_those_of_the_run(self):
        for bits, group, dtype in (("4", "0", "fp32"), ("1.58", "32", "bf16"), ("1", "0", "fp32")):
            with self.subTest(bits=bits):
                name = f"run_{bits}"
                flags = f"-b {bits} -group {group} -dtype {dtype} -steps 20 -qat_frac 0.4 -lr 5e-3 -save_every 6 -keep 0 -sample_tokens 0"
                self.run_program(flags, output=name)
                _, validations = read_metrics(self.path(name))
                measured = {record["weights"]: record["validation_loss"] for record in validations}
                unit = "bit" if bits == "1" else "bits"
                common = ("-j", self.validation, "-dtype", dtype)
                last, text = self.evaluate("-e", self.path(name), *common)
                self.assertEqual(set(last), {"full precision", f"quantized, {bits} {unit}"})
                loss, perplexity, bits_per_byte = last[f"quantized, {bits} {unit}"]
                self.assertAlmostEqual(loss, measured["quantized"], delta=6e-5)
                self.assertAlmostEqual(perplexity, math.exp(measured["quantized"]), delta=6e-4)
                self.assertIsNone(bits_per_byte)
                self.assertIn("step_00000020", text)
                # The checkpoint of the switch has its first scales already.
                switch, _ = self.evaluate("-e", checkpoint(self.path(name), 12), *common)
                self.assertAlmostEqual(switch["full precision"][0], measured["full_precision"], delta=6e-5)
                self.assertAlmostEqual(switch[f"quantized, {bits} {unit}"][0], measured["rounded"], delta=6e-5)
                before, _ = self.evaluate("-e", checkpoint(self.path(name), 6), *common)
                self.assertEqual(set(before), {"full precision", f"rounded to {bits} {unit}"})
                self.assertGreater(before["full precision"][0], switch["full precision"][0])

    def test_a_run_without_quantization_has_one_row(self):
        self.run_program("-b 16 -steps 5 -sample_tokens 0")
        rows, _ = self.evaluate("-e", self.path("out"), "-j", self.validation)
        self.assertEqual(set(rows), {"full precision"})

    def test_bits_per_byte_count_the_text_of_the_tokens(self):
        pieces = ["\u2581" * (i % 3) + "abcdefgh"[:1 + i % 8] + chr(0xE0 + i) for i in range(fixture.VOCABULARY - 3)]
        with open(self.path("pieces.model"), "wb") as file:
            file.write(fixture.sentencepiece_model(pieces))
        self.run_program("-b 2 -steps 4 -qat_frac 0.5 -sample_tokens 0")
        rows, text = self.evaluate("-e", self.path("out"), "-j", self.validation, "-tokenizer", self.path("pieces.model"),
                                   "-val_sequences", "7")
        sizes = [0, 0, 0] + [len(piece.replace("\u2581", " ").encode()) for piece in pieces]
        sizes[0] = len("<unk>")
        shards = sorted(os.listdir(self.data))
        (shard,) = [name for name in shards if name.startswith("v_val")]
        data = read_bytes(self.data, shard)
        tokens = struct.unpack(f"<{(len(data) - 1024) // 2}H", data[1024:])
        count = 7 * fixture.SEQUENCE
        bytes_each = sum(sizes[token] for token in tokens[1:count + 1]) / count
        self.assertIn(f"{count} tokens", text)
        for loss, _, bits_per_byte in rows.values():
            self.assertAlmostEqual(bits_per_byte, loss / math.log(2) / bytes_each, delta=2e-4)

    def write_hellaswag(self, name, count, longest_context=30, vocabulary=fixture.VOCABULARY):
        """Examples of random tokens, in llm.c's format (data/hellaswag.h)."""
        draw, examples = random.Random(7), b""
        for index in range(count):
            words = [65535, 0, index, draw.randrange(4), 4]
            for longest in (longest_context, 9, 9, 9, 9):
                length = draw.randint(1, longest)
                words += [length, *(draw.randrange(vocabulary) for _ in range(length))]
            words[1] = 2 * len(words)
            examples += struct.pack(f"<{len(words)}H", *words)
        with open(self.path(name), "wb") as file:
            file.write(struct.pack("<256i", 20240522, 1, count, 999, *[0] * 252) + examples)
        return self.path(name)

    def right_answers(self, *arguments):
        """{weights: (share by mean, its error, share by sum, its error)}, and what was printed."""
        result = self.start([self.program, "-eval_only", "-device", "cpu", *map(str, arguments)])
        self.assertEqual((result.returncode, result.stderr), (0, ""), result.stdout)
        rows = re.findall(r"^  (\S.*?)  +([\d.]+) \+- +([\d.]+) +([\d.]+) \+- +([\d.]+)$", result.stdout, re.MULTILINE)
        return {name: tuple(map(float, values)) for name, *values in rows}, result.stdout

    def test_right_answers(self):
        """Against transformers: test/clients."""
        self.run_program("-b 2 -steps 20 -qat_frac 0.5 -lr 5e-3 -sample_tokens 0")
        examples = self.write_hellaswag("examples.bin", 37)
        common = ("-e", self.path("out"), "-hellaswag", examples, "-dtype", "fp32")
        rows, text = self.right_answers(*common)
        self.assertEqual(set(rows), {"full precision", "quantized, 2 bits"})
        self.assertIn(f"37 examples of {examples}, ", text)
        self.assertIn(f"the model reads {fixture.SEQUENCE} tokens", text)  # some contexts are longer
        for share, error, *_ in rows.values():
            self.assertAlmostEqual(share * 37, round(share * 37), delta=2e-3)
            self.assertAlmostEqual(error, math.sqrt(share * (1 - share) / 36), delta=1e-4)
        for others in (("-batch", "1"), ("-batch", "5"), ("-j", self.validation)):
            self.assertEqual(self.right_answers(*common, *others)[0], rows)

    def test_examples_that_are_refused(self):
        self.run_program("-b 16 -steps 1 -sample_tokens 0")
        foreign = self.write_hellaswag("foreign.bin", 3, vocabulary=9000)
        common = ["-eval_only", "-device", "cpu", "-e", self.path("out"), "-hellaswag"]
        for arguments, words in (([*common, foreign], "the model's vocabulary"), ([*common, self.path("none.bin")], "none.bin"),
                                 ([*common, __file__], "no HellaSwag file"), (self.command("-hellaswag x")[1:], "-hellaswag: is for -eval_only")):
            with self.subTest(arguments=arguments):
                self.check_error(self.start([self.program, *arguments]), words)

    def test_losses_that_are_no_numbers(self):
        self.run_program("-b 16 -steps 1 -sample_tokens 0 -dtype fp32")
        shutil.copy(os.path.join(checkpoint(self.path("out"), 1), "model.safetensors"), self.path("model.safetensors"))
        with open(self.path("config.json"), "w") as file:
            json.dump({"model_type": "llama", "hidden_size": fixture.WIDTH, "intermediate_size": fixture.FFN,
                       "num_hidden_layers": fixture.LAYERS, "num_attention_heads": fixture.HEADS, "rms_norm_eps": 1e-5,
                       "vocab_size": fixture.VOCABULARY, "max_position_embeddings": fixture.SEQUENCE, "tie_word_embeddings": True}, file)
        data = bytearray(read_bytes(self.path("model.safetensors")))
        length = struct.unpack("<Q", data[:8])[0]
        first, _ = json.loads(data[8:8 + length])["model.norm.weight"]["data_offsets"]
        for place in range(fixture.WIDTH):  # finite, but no product with them is
            struct.pack_into("<f", data, 8 + length + first + 4 * place, 3e38)
        with open(self.path("model.safetensors"), "wb") as file:
            file.write(data)
        result = self.start([self.program, "-eval_only", "-device", "cpu", "-dtype", "fp32", "-e", self.directory, "-seq_len",
                             str(fixture.SEQUENCE), "-hellaswag", self.write_hellaswag("examples.bin", 3)])
        self.check_error(result, "-hellaswag: the loss of completion 0 of example 0 is ")

    def test_refusals(self):
        self.run_program("-b 4 -steps 4 -qat_frac 0.5 -sample_tokens 0")
        run, common = self.path("out"), ["-device", "cpu", "-j", self.validation]
        damaged = self.path("damaged")
        shutil.copytree(checkpoint(run, checkpoints(run)[-1]), damaged)
        manifest = json.loads(read_bytes(damaged, "manifest.json"))
        os.truncate(os.path.join(damaged, "model.safetensors"), 1000)
        self.assertEqual(manifest["step"], 4)
        for arguments, words in ((["-eval_only"], "-e"), (["-e", run], "-eval_only"),
                                 (["-eval_only", "-e", self.path("nothing"), *common], "nothing"),
                                 (["-eval_only", "-e", damaged, *common], "model.safetensors"),
                                 (["-eval_only", "-e", run, "-device", "cpu"], "-j"),
                                 (["-eval_only", "-e", run, "-sweep", "grid.json"], "-sweep"),
                                 (["-eval_only", "-e", run, "-plan", *common], "-plan"),
                                 (["-eval_only", "-e", run, "-resume", *common], "-resume"),
                                 (["-eval_only", "-e", run, "-device", "cpu", "-j", "none_*.bin"], "none_*.bin")):
            with self.subTest(arguments=arguments):
                self.check_error(self.start([self.program, *arguments]), words)


if __name__ == "__main__":
    sys.exit(run_tests(__doc__, sys.modules[__name__], ["EvaluationTest"]))
