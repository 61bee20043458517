#!/usr/bin/env python3
"""-init_from and -e with folders as transformers writes them: further training, straight QAT, sweeps, ranks, refusals.

    test/program/test_initial_model.py --program ./train_qat
"""
import json
import os
import re
import shutil
import subprocess
import sys

from program_fixture import (BATCH, FFN, HEADS, LAYERS, SEQUENCE, SHAPE, VOCABULARY, WIDTH, RanksTest, checkpoint,
                             checkpoints, read_bytes, read_metrics, run_tests, sentencepiece_model, snapshot)

CONFIG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": WIDTH,
          "intermediate_size": FFN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": HEADS,
          "vocab_size": VOCABULARY, "max_position_embeddings": 2 * SEQUENCE, "rms_norm_eps": 1e-05, "rope_theta": 10000.0,
          "tie_word_embeddings": True, "torch_dtype": "float32"}
TRAIN = "-dtype fp32 -lr 1e-3 -steps 12 -b 4 -qat_frac 0.5 -sample_tokens 0"
QAT = "-dtype fp32 -lr 1e-3 -steps 12 -b 2 -qat_frac 1 -sample_tokens 0"


def results_of(directory):
    return json.loads(read_bytes(directory, "run.json"))["results"]


class InitialModelTest(RanksTest):
    """The source is a model that this program has trained in full precision: its own losses are known."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.source = os.path.join(cls.data, "source")
        subprocess.run([cls.program, *SHAPE, *"-threads 1 -device cpu -dtype fp32 -b 16 -steps 40 -lr 5e-3 -sample_tokens 0".split(),
                        "-i", cls.train, "-j", cls.validation, "-o", cls.source], check=True, stdout=subprocess.DEVNULL)
        cls.loss = results_of(cls.source)["full_precision_at_switch"]

    def setUp(self):
        super().setUp()
        self.folder = self.path("model")
        os.mkdir(self.folder)
        shutil.copy(os.path.join(checkpoint(self.source, 40), "model.safetensors"), self.folder)
        self.write_config({})

    def write_config(self, changes, folder="model"):
        with open(self.path(folder, "config.json"), "w", encoding="utf-8") as file:
            json.dump({**CONFIG, **changes}, file)

    def command(self, *arguments, **options):
        """Without a shape where a folder gives it."""
        command = super().command(*arguments, **options)
        if "-init_from" in command:
            for flag in ("-layers", "-width", "-heads", "-ffn"):
                place = command.index(flag)
                if command[place + 1] in SHAPE:
                    del command[place:place + 2]
        return command

    def test_quantization_aware_training_begins_with_the_weights_of_the_folder(self):
        printed = self.run_program(QAT, "-val_every 4 -init_from", self.folder)
        self.assertIn(f"of {self.folder}", printed)
        results = results_of(self.path("out"))
        self.assertEqual(results["full_precision_at_switch"], self.loss)
        self.assertGreater(results["rounded_at_switch"], self.loss)
        self.assertLess(results["quantized"], results["rounded_at_switch"])
        steps, validations = read_metrics(self.path("out"))
        self.assertEqual([record["step"] for record in validations], [0, 0, 4, 8, 12])
        self.assertEqual({record["phase"] for record in steps}, {"QAT"})

    def test_full_precision_training_goes_on(self):
        self.run_program("-dtype fp32 -b 16 -steps 12 -lr 1e-3 -sample_tokens 0 -init_from", self.folder)
        self.run_program("-dtype fp32 -b 16 -steps 12 -lr 1e-3 -sample_tokens 0", output="new")
        (first, *_), _ = read_metrics(self.path("out"))
        (new, *_), _ = read_metrics(self.path("new"))
        self.assertLess(abs(first["loss"] - self.loss), 0.3)
        self.assertLess(first["loss"], new["loss"] - 0.5)
        self.assertLess(results_of(self.path("out"))["full_precision_at_switch"], self.loss)

    def test_resumed_runs_are_the_same(self):
        for name, flags in (("trained", TRAIN), ("straight", QAT)):
            with self.subTest(flags):
                flags = f"{flags} -save_every 4 -keep 0 -val_every 4 -init_from {self.folder}"
                self.run_program(flags, output=name)
                self.run_program(flags, "-until 8", output=name + "_again")
                self.run_program(flags, "-resume", output=name + "_again")
                self.same_run(self.path(name), self.path(name + "_again"))
                self.fails(flags.replace("-init_from " + self.folder, ""), "-resume", output=name,
                           text=["-resume", "add -init_from and that folder"])
        # One that has not come to its first checkpoint begins again.
        for step in checkpoints(self.path("straight_again")):
            shutil.rmtree(checkpoint(self.path("straight_again"), step))
        self.run_program(flags, "-resume", output="straight_again")
        self.same_run(self.path("straight"), self.path("straight_again"))

    def test_other_weights_are_another_start(self):
        flags = f"{QAT} -save_every 4 -init_from {self.folder}"
        self.run_program(flags, "-until 4")
        path = os.path.join(self.folder, "model.safetensors")
        data = bytearray(read_bytes(path))
        data[-1] ^= 1
        with open(path, "wb") as file:
            file.write(data)
        self.fails(flags, "-resume", text=["-resume", "init_from"])

    def test_every_run_of_a_sweep_begins_with_them(self):
        with open(self.path("grid.json"), "w", encoding="utf-8") as file:
            json.dump({"b": [2, 4], "qat_frac": [0.5, 1]}, file)
        flags = f"-dtype fp32 -warmup 2 -lr 1e-3 -steps 12 -sample_tokens 0 -init_from {self.folder}"
        self.run_program(flags, "-sweep", self.path("grid.json"), output="sweep")
        runs = [folder for folder, _, names in os.walk(self.path("sweep"))
                if "run.json" in names and json.loads(read_bytes(folder, "run.json"))["results"]["quantized"] is not None]
        self.assertEqual(len(runs), 4)
        for run in runs:
            configuration = json.loads(read_bytes(run, "run.json"))["configuration"]
            name = f"alone_{len(os.listdir(self.directory))}"
            self.run_program(flags, f"-b {configuration['b']:g} -qat_frac {configuration['qat_frac']}", output=name)
            self.same_folders(run, self.path(name))
            if configuration["qat_frac"] == 1:
                self.assertEqual(results_of(run)["full_precision_at_switch"], self.loss)

    def test_ranks_divide_the_weights(self):
        for zero in (0, 1):
            name = f"ranks_{zero}"
            self.run_job(3, QAT, f"-zero {zero} -batch 1 -total_batch 3 -init_from {self.folder}", output=name)
            self.assertAlmostEqual(results_of(self.path(name))["full_precision_at_switch"], self.loss, delta=1e-5)
        self.assertEqual(*(read_bytes(checkpoint(self.path(f"ranks_{zero}"), 12), "model.safetensors") for zero in (0, 1)))

    def evaluate(self, *arguments):
        before = snapshot(self.directory)
        result = self.start([self.program, "-eval_only", "-device", "cpu", "-dtype", "fp32", "-j", self.validation,
                             *map(str, arguments)])
        self.assertEqual((result.returncode, result.stderr), (0, ""), result.stdout)
        self.assertEqual(snapshot(self.directory), before)
        return {name: float(loss) for name, loss in
                re.findall(r"^  (full precision|rounded to \S+ bits?) +([\d.]+)", result.stdout, re.MULTILINE)}

    def test_folders_are_evaluated(self):
        flags = ("-e", self.folder, "-seq_len", SEQUENCE, "-batch", BATCH)
        self.assertEqual(self.evaluate(*flags), {"full precision": round(self.loss, 6)})
        self.run_program(QAT, "-init_from", self.folder)
        self.assertEqual(self.evaluate(*flags, "-b", 2), {"full precision": round(self.loss, 6),
                         "rounded to 2 bits": round(results_of(self.path("out"))["rounded_at_switch"], 6)})
        self.assertNotEqual(self.evaluate("-e", self.folder, "-seq_len", 2 * SEQUENCE)["full precision"], round(self.loss, 6))
        # Of a run that began with it.
        self.assertEqual(self.evaluate("-e", self.path("out")).keys(), {"full precision"})

    def test_the_text_of_a_folder_is_that_of_its_bits(self):
        """A run that has learned nothing has the rounded weights of the folder."""
        with open(self.path("letters.model"), "wb") as file:
            file.write(sentencepiece_model(["\u2581", *map(chr, range(48, 44 + VOCABULARY))]))
        self.run_program("-dtype fp32 -lr 1e-30 -steps 1 -b 1 -qat_frac 1 -sample_tokens 0 -init_from", self.folder)
        texts = []
        for flags in (["-e", self.path("out")], ["-e", self.folder, "-b", 1], ["-e", self.folder], ["-e", self.folder, "-b", 16]):
            flags += ["-seq_len", SEQUENCE] * (self.folder in flags)
            result = self.start([self.program, "-sample", "AB", "-tokenizer", self.path("letters.model"), "-temperature", "0",
                                 "-sample_tokens", "9", "-dtype", "fp32", "-device", "cpu", *map(str, flags)])
            self.assertEqual((result.returncode, result.stderr), (0, ""))
            texts.append(result.stdout.rsplit("\n", 3)[0])
        run, rounded, whole, unrounded = texts
        self.assertEqual(run, rounded)
        self.assertNotEqual(rounded, whole)
        self.assertEqual(whole, unrounded)

    def test_a_plan_needs_the_configuration_alone(self):
        os.remove(os.path.join(self.folder, "model.safetensors"))
        printed = self.run_program(QAT, "-plan -init_from", self.folder)
        self.assertIn(f"of {self.folder}", printed)

    def test_refusals(self):
        flags = f"{QAT} -init_from {self.folder}"
        for given in ("-n 1M", "-kv_heads 1", f"-vocab {VOCABULARY}", "-untied"):
            self.fails(flags, given, text=[given.split()[0] + ":", "-init_from"])
        self.fails(flags, f"-seq_len {2 * SEQUENCE + 1}", text=["-seq_len", "max_position_embeddings"])
        for changes, words in (({"model_type": "mistral"}, ["model_type", "mistral"]), ({"mystery": 1}, ["mystery", "1"]),
                               ({"vocab_size": VOCABULARY - 1}, ["-init_from", str(VOCABULARY)]),
                               ({"vocab_size": VOCABULARY + 1}, ["model.safetensors", "embed_tokens"]),
                               ({"tie_word_embeddings": False}, ["model.safetensors", "lm_head.weight"])):
            self.write_config(changes)
            self.fails(flags, text=words)
        self.write_config({})
        path = os.path.join(self.folder, "model.safetensors")
        good = read_bytes(path)
        for bad, words in ((good[:-4], ["truncated"]), (good[:-4] + b"\0\0\xc0\x7f", ["NaN"]), (b"", ["too short"])):
            with open(path, "wb") as file:
                file.write(bad)
            self.fails(flags, text=["model.safetensors", *words])
            before = snapshot(self.directory)
            self.check_error(self.start([self.program, "-eval_only", "-e", self.folder, "-j", self.validation, "-seq_len", "8",
                                         "-device", "cpu"]), "model.safetensors", *words)
            self.assertEqual(snapshot(self.directory), before)
        os.remove(path)
        self.fails(flags, text=["model.safetensors.index.json"])
        self.fails(QAT, "-init_from", self.path("nowhere"), text=["nowhere", "config.json"])


if __name__ == "__main__":
    sys.exit(run_tests(__doc__, sys.modules[__name__], ["InitialModelTest"]))
