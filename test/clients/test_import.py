"""Folders that transformers has written, read by the trainer: its mean loss is transformers' own."""
import os
import re
import unittest

import architectures
import fixture
import torch
from test_exports import transformers_loss

DTYPES = torch.float32, torch.bfloat16, torch.float16
SHARDS = {"max_shard_size": "60KB"}


def saved(name, dtype, **how):
    """The folder of such a model with random weights, for sequences of the fixture."""
    folder = os.path.join(fixture.directory, re.sub(r"\W+", "_", f"{name} {dtype} {len(how)}"))
    architectures.random_model(name, dtype, max_position_embeddings=fixture.SEQUENCE).save_pretrained(folder, **how)
    return folder


def loss_of(folder):
    text = fixture.run(fixture.program, "-eval_only", "-e", folder, "-j", fixture.data() + "_val_*.bin", "-val_sequences", 40,
                       "-seq_len", fixture.SEQUENCE, "-dtype", "fp32", "-device", "cpu")
    return float(re.search(r"full precision +([\d.]+)", text)[1])


class ImportTest(unittest.TestCase):
    def test_losses(self):
        for number, name in enumerate(architectures.MODELS):
            for how in {}, SHARDS:
                dtype = DTYPES[(number + len(how)) % len(DTYPES)]
                with self.subTest(name, dtype=dtype, how=how):
                    folder = saved(name, dtype, **how)
                    self.assertEqual(os.path.exists(os.path.join(folder, "model.safetensors")), not how)
                    self.assertLess(abs(loss_of(folder) / transformers_loss(folder) - 1), 1e-5)

    def test_training_goes_on_from_their_weights(self):
        for name in "qwen2", "qwen3, untied":
            folder, out = saved(name, torch.bfloat16, **SHARDS), os.path.join(fixture.directory, f"trained {name}")
            fixture.run(fixture.program, "-init_from", folder, "-seq_len", fixture.SEQUENCE, "-b", 4, "-qat_frac", 1, "-steps", 40,
                        "-batch", 4, "-lr", "3e-3", "-dtype", "fp32", "-device", "cpu", "-sample_tokens", 0, "-val_sequences", 40,
                        "-i", fixture.data() + "_train_*.bin", "-j", fixture.data() + "_val_*.bin", "-o", out)
            losses = fixture.results_of(out)
            self.assertLess(abs(losses["full_precision_at_switch"] / transformers_loss(folder) - 1), 1e-5)
            self.assertLess(losses["quantized"], losses["rounded_at_switch"])
