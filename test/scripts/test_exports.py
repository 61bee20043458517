#!/usr/bin/env python3
"""What exports read: checkpoints of the trainer, whole and damaged. Exports themselves need packages of PyPI: test/clients.

    test/scripts/test_exports.py --program ./train_qat
"""
import argparse
import contextlib
import glob
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import unittest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path[:0] = [os.path.join(ROOT, "scripts"), os.path.join(ROOT, "dev", "bench")]
sys.dont_write_bytecode = True

import numpy as np  # noqa: E402
from chain_shards import write_chain_shards  # noqa: E402
from errors import UserError  # noqa: E402
from formats import checkpoint, gguf_blocks, grids  # noqa: E402

SEED = random.randrange(10**9)
program = "./train_qat"
LEVELS = {1: {-1, 1}, 1.58: {-1, 0, 1}, 2: {-1.5, -0.5, 0.5, 1.5}, 3: set(range(-4, 4)), 6: set(range(-32, 32))}  # / scale


class ExportsTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        directory = tempfile.TemporaryDirectory(prefix="exports_")
        cls.addClassCleanup(directory.cleanup)
        cls.directory = directory.name
        write_chain_shards(os.path.join(cls.directory, "chain"), 61, 20000)

    @classmethod
    def train(cls, bits, group=0):
        """The checkpoint of a run of four steps, the last two quantization-aware."""
        out = os.path.join(cls.directory, f"run_{bits}_{group}")
        if not os.path.exists(out):
            shards = os.path.join(cls.directory, "chain_{}_*.bin")
            command = f"""-layers 1 -width 64 -heads 2 -kv_heads 1 -ffn 96 -seq_len 16 -batch 2 -steps 4 -lr 1e-3 -b {bits} -group {group}
                -sample_tokens 0 -device cpu -dtype fp32 -val_sequences 2""".split() + ([] if bits == 16 else ["-qat_frac", "0.5"])
            subprocess.run([program, *command, "-i", shards.format("train"), "-j", shards.format("val"), "-o", out], check=True,
                           capture_output=True, timeout=120)
        (step,) = glob.glob(os.path.join(out, "step_*"))
        return step

    def setUp(self):
        self.random = random.Random(SEED)
        self.copy = os.path.join(self.directory, "copy")

    @contextlib.contextmanager
    def copied(self, step):
        """A copy of a checkpoint, to be damaged."""
        shutil.copytree(step, self.copy)
        try:
            yield self.copy
        finally:
            shutil.rmtree(self.copy)

    def refusal(self, path):
        with self.assertRaises(UserError, msg=f"seed {SEED}") as caught:
            model = checkpoint.Checkpoint(path)
            for _, _, name, shape in model.tensors():
                (model.matrix if len(shape) == 2 else model.vector)(name)
        self.assertNotIn("\n", str(caught.exception))
        return str(caught.exception)

    def test_levels_and_scales_are_those_of_the_grid(self):
        for bits, group in ((1, 0), (1.58, 32), (2, 0), (3, 32), (6, 0)):
            with self.subTest(bits=bits):
                model = checkpoint.Checkpoint(self.train(bits, group))
                self.assertEqual((model.layers, model.width, model.kv_heads, model.head_dim, model.bits), (1, 64, 1, 32, bits))
                matrix = model.matrix("model.layers.0.mlp.down_proj.weight")
                self.assertEqual(matrix.levels.shape, (64, 96))
                self.assertEqual(matrix.scales.shape, (64, 96 // (group or 96)))
                self.assertEqual(set(grids.all_levels(bits).tolist()), LEVELS[bits])
                self.assertLessEqual(set(np.unique(matrix.levels).tolist()), LEVELS[bits])
                # No other level is nearer to a weight that is not clipped.
                scales = matrix.spread(matrix.scales)
                nearest = np.min([np.abs(matrix.weights - level * scales) for level in LEVELS[bits]], axis=0)
                distance = np.abs(matrix.weights - matrix.values())
                inside = np.abs(matrix.weights) < 0.9 * scales * max(LEVELS[bits])
                self.assertLess(float((distance - nearest)[inside].max(initial=0)), 1e-6)
                self.assertTrue(np.array_equal(matrix.scales.astype(np.float16).astype(np.float32), matrix.scales))

    def test_full_precision_has_no_levels(self):
        model = checkpoint.Checkpoint(self.train(16))
        matrix = model.matrix(checkpoint.EMBEDDING)
        self.assertEqual((model.bits, matrix.levels), (16, None))
        self.assertIs(matrix.values(), matrix.weights)

    def test_what_a_run_would_export_is_known_from_its_settings(self):
        for bits, group in ((2, 0), (3, 32), (16, 0)):
            step = self.train(bits, group)
            with open(os.path.join(step, "manifest.json"), encoding="utf-8") as file:
                settings = json.load(file)["state"]["settings"]
            model, planned = checkpoint.Checkpoint(step), checkpoint.UntrainedModel(json.dumps(settings))
            self.assertEqual(list(planned.tensors()), list(model.tensors()))
            self.assertEqual(planned.bits, model.bits)
            for _, _, name, shape in model.tensors():
                if len(shape) == 2 and bits < 16:
                    self.assertEqual(*[[block.name for block in gguf_blocks.BLOCK_TYPES if gguf_blocks.holds(block, one.matrix(name))]
                                       for one in (model, planned)])
        for wrong in ("", "{}", "[]", "7", json.dumps({**settings, "heads": 0, "head_dim": None})):
            with self.assertRaisesRegex(UserError, "--check: is no model's settings"):
                checkpoint.UntrainedModel(wrong)

    def test_blocks_that_hold_a_matrix(self):
        generator = np.random.default_rng(SEED)
        weights = generator.normal(size=(3, 64)).astype(np.float32)
        scales = np.full((3, 1), 0.25, np.float32)
        fitting = lambda matrix: [block.name for block in gguf_blocks.BLOCK_TYPES if gguf_blocks.holds(block, matrix)]
        self.assertEqual(fitting(checkpoint.Matrix("m", weights, 4, scales)), ["Q4_0", "Q5_0", "Q8_0"])
        self.assertEqual(fitting(checkpoint.Matrix("m", weights, 6, scales)), ["Q8_0"])
        self.assertEqual(fitting(checkpoint.Matrix("m", weights[:, :40], 4, scales)), [])
        # Half of the smallest float16 is none.
        tiny = np.full((3, 1), 2.0**-24, np.float32)
        matrix = checkpoint.Matrix("m", weights, 2, scales)
        matrix.scales = tiny
        self.assertEqual(fitting(matrix), [])

    def test_effective_scales_are_those_of_training(self):
        given = np.array([0, 1e-6, 9.9e-6, 1e-5, 0.1, 70000, 1 + 2**-11, 1 + 3 * 2**-11], np.float32)
        expected = np.array([1e-5, 1e-5, 1e-5, 1e-5, 0.1, 65504, 1, 1 + 2**-9], np.float16).astype(np.float32)
        self.assertTrue(np.array_equal(grids.effective_scales(given), expected))

    def test_any_damaged_byte_is_noticed(self):
        step = self.train(2)
        size = os.path.getsize(os.path.join(step, "model.safetensors"))
        for place in [0, 7, 8, 9, size - 1, *(self.random.randrange(size) for _ in range(25))]:
            with self.copied(step) as path, self.subTest(place=place, seed=SEED):
                with open(os.path.join(path, "model.safetensors"), "r+b") as file:
                    file.seek(place)
                    byte = file.read(1)[0]
                    file.seek(place)
                    file.write(bytes([byte ^ 1 << self.random.randrange(8)]))
                self.assertIn("model.safetensors", self.refusal(path))

    def test_files_that_are_cut_off_or_missing(self):
        step = self.train(2)
        for length in (0, 4, 8, 100, os.path.getsize(os.path.join(step, "model.safetensors")) - 1):
            with self.copied(step) as path, self.subTest(length=length):
                os.truncate(os.path.join(path, "model.safetensors"), length)
                self.assertIn("model.safetensors", self.refusal(path))
        with self.copied(step) as path:
            os.remove(os.path.join(path, "model.safetensors"))
            self.assertIn("No such file", self.refusal(path))

    def test_json_that_is_nested_too_deeply_is_refused(self):
        for name, head in (("model.safetensors", (100_000).to_bytes(8, "little")), ("manifest.json", b"")):
            with self.copied(self.train(2)) as path:
                with open(os.path.join(path, name), "wb") as file:
                    file.write(head + b"[" * 100_000)
                self.assertIn(name, self.refusal(path))
        with self.assertRaisesRegex(UserError, "--check: is no model's settings"):
            checkpoint.UntrainedModel("[" * 100_000)

    def test_manifests_that_say_something_else(self):
        step = self.train(2)
        with open(os.path.join(step, "manifest.json"), encoding="utf-8") as file:
            right = json.load(file)
        def change(**settings):
            return {**right, "state": {**right["state"], "settings": {**right["state"]["settings"], **settings}}}
        for wrong in ([], {}, 7, {**right, "version": 1}, {**right, "state": {}}, {**right, "files": []}, change(heads=0), change(heads="x"),
                      change(layers=None), change(b=7), change(width=128), change(vocab=60), change(group=32), change(ffn=100)):
            with self.copied(step) as path, self.subTest(wrong=str(wrong)[-300:]):
                with open(os.path.join(path, "manifest.json"), "w", encoding="utf-8") as file:
                    json.dump(wrong, file)
                self.assertIn(path, self.refusal(path))

    def test_not_a_number_is_refused(self):
        path = os.path.join(self.directory, "nan.safetensors")
        header = json.dumps({"w": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}).encode()
        for value in (np.nan, np.inf):
            with open(path, "wb") as file:
                file.write(len(header).to_bytes(8, "little") + header + np.array([1, 2, value, 4], "<f4").tobytes())
            with self.assertRaisesRegex(UserError, "w holds NaN or infinity"):
                checkpoint.Safetensors(path).read("w", (2, 2))

    def test_the_latest_of_a_run(self):
        step = self.train(2)
        run = os.path.join(self.directory, "many")
        for number in (3, 99999999, 100000000):
            shutil.copytree(step, os.path.join(run, f"step_{number:08d}"))
        os.makedirs(os.path.join(run, "step_200000000"))  # without a manifest
        self.assertTrue(checkpoint.directory_of(run).endswith("step_100000000"))
        with self.assertRaisesRegex(UserError, "no checkpoint here"):
            checkpoint.directory_of(self.directory)
        with self.assertRaisesRegex(UserError, "no such directory"):
            checkpoint.directory_of(run + "x")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--program", default=program)
    arguments, rest = parser.parse_known_args()
    program = os.path.abspath(arguments.program)
    unittest.main(argv=[sys.argv[0], *rest])
