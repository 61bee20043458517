#!/usr/bin/env python3
"""Folders that transformers has written, read by the trainer: its mean loss is transformers' own.

    make test-clients        makes the environment that this needs, then runs it
"""
import os
import random
import re
import sys
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import fixture  # noqa: E402
import torch  # noqa: E402
from test_exports import transformers_loss  # noqa: E402
from transformers import (LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config,  # noqa: E402
                          Qwen3ForCausalLM)

SEED = random.randrange(10**6)
CLASSES = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen2": (Qwen2Config, Qwen2ForCausalLM),
           "qwen3": (Qwen3Config, Qwen3ForCausalLM)}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 50000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 32}
# Odd sizes; heads of 8, 14 and 10 numbers, grouped.
SIZES = {"vocab_size": fixture.VOCABULARY + 6, "hidden_size": 48, "intermediate_size": 52, "num_hidden_layers": 3,
         "num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": fixture.SEQUENCE, "rms_norm_eps": 3e-6}
MODELS = {
    "llama": ("llama", {}, torch.float32, {}),
    "llama, tied": ("llama", {"tie_word_embeddings": True}, torch.bfloat16, {}),
    "llama, heads for all keys, in shards": ("llama", {"num_key_value_heads": 6}, torch.float16, {"max_shard_size": "60KB"}),
    "llama 3": ("llama", {"rope_parameters": LLAMA3, "head_dim": 14}, torch.float32, {"max_shard_size": "200KB"}),
    "qwen2": ("qwen2", {}, torch.bfloat16, {"max_shard_size": "60KB"}),
    "qwen2, tied": ("qwen2", {"tie_word_embeddings": True, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
                    torch.float32, {}),
    "qwen3": ("qwen3", {"hidden_size": 44, "head_dim": 10}, torch.bfloat16, {}),
    "qwen3, tied, in shards": ("qwen3", {"head_dim": 16, "tie_word_embeddings": True}, torch.float32, {"max_shard_size": "60KB"}),
}


def saved(name, kind, changes, dtype, how):
    """The folder of a model with random weights, biases and norms, large enough for every operation to count."""
    make_config, make_model = CLASSES[kind]
    torch.manual_seed(SEED)
    model = make_model(make_config(**{**SIZES, **changes}))
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            centre = 1 if "norm" in parameter_name else 0
            parameter.copy_(centre + 0.15 * torch.randn_like(parameter))
    folder = os.path.join(fixture.directory, re.sub(r"\W+", "_", name))
    model.to(dtype).save_pretrained(folder, **how)
    return folder


def loss_of(folder):
    text = fixture.run(fixture.program, "-eval_only", "-e", folder, "-j", fixture.data() + "_val_*.bin", "-val_sequences", 40,
                       "-seq_len", fixture.SEQUENCE, "-dtype", "fp32", "-device", "cpu")
    return float(re.search(r"full precision +([\d.]+)", text)[1])


class ImportTest(unittest.TestCase):
    def test_losses(self):
        for name, model in MODELS.items():
            with self.subTest(name, seed=SEED):
                folder = saved(name, *model)
                self.assertEqual(len([file for file in os.listdir(folder) if file.endswith(".index.json")]), len(model[3]))
                expected = transformers_loss(folder)
                self.assertLess(abs(loss_of(folder) / expected - 1), 1e-5)

    def test_training_goes_on_from_their_weights(self):
        folder = saved("trained", "qwen3", {"head_dim": 16}, torch.bfloat16, {})
        out = os.path.join(fixture.directory, "trained_further")
        fixture.run(fixture.program, "-init_from", folder, "-seq_len", fixture.SEQUENCE, "-b", 4, "-qat_frac", 1, "-steps", 60,
                    "-batch", 4, "-lr", "3e-3", "-dtype", "fp32", "-device", "cpu", "-sample", 0, "-i", fixture.data() + "_train_*.bin",
                    "-j", fixture.data() + "_val_*.bin", "-val_sequences", 40, "-o", out)
        losses = fixture.results_of(out)
        self.assertLess(abs(losses["full_precision_at_switch"] / transformers_loss(folder) - 1), 1e-5)
        self.assertLess(losses["quantized"], losses["full_precision_at_switch"])
