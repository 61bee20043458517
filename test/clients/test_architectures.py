"""Llama, Qwen2 and Qwen3 of odd sizes: exports of them, read by transformers and llama.cpp."""
import os
import random
import shutil
import subprocess
import unittest

import architectures
import fixture
import gguf
import llama_cpp
import numpy as np
import torch
import transformers
from safetensors.torch import load_file

transformers.utils.logging.disable_progress_bar()
torch.set_num_threads(1)

SEED = random.randrange(10**6)
POSITIONS = architectures.SIZES["max_position_embeddings"]


def tokens(count=POSITIONS):
    return np.random.default_rng(SEED).integers(0, fixture.VOCABULARY, count)


@torch.no_grad()
def transformers_logits(folder, ids):
    """(tokens, vocabulary) float64."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model(torch.tensor(ids[None])).logits[0].double().numpy()


def llama_logits(folder, ids):
    model = llama_cpp.Llama(os.path.join(folder, "model.gguf"), n_ctx=POSITIONS, n_threads=1, n_batch=POSITIONS, verbose=False,
                            logits_all=True, type_k=llama_cpp.GGML_TYPE_F32, type_v=llama_cpp.GGML_TYPE_F32)
    model.eval(ids.tolist())
    return np.array(model.scores[:len(ids)], np.float64)


def log_softmax(logits):
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def divergence(expected, found):
    """Largest KL divergence at a position."""
    expected, found = log_softmax(expected), log_softmax(found)
    return float((np.exp(expected) * (expected - found)).sum(axis=1).max())


def tensors_of(folder):
    return load_file(os.path.join(folder, "model.safetensors"))


def config_of(folder):
    """What transformers makes of config.json, but for what names the file and the version."""
    config = transformers.AutoConfig.from_pretrained(folder).to_dict()
    return {key: value for key, value in config.items() if key not in ("_name_or_path", "transformers_version", "dtype")}


class ArchitecturesTest(unittest.TestCase):
    def for_all(self, check):
        for name in architectures.MODELS:
            with self.subTest(model=name, seed=SEED):
                check(name)

    def refusal(self, *command):
        result = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        self.assertEqual((result.returncode, result.stderr.count("\n")), (2, 1), result.stdout + result.stderr)
        return result.stderr

    def check_hf(self, name):
        source, made = architectures.folder(name), fixture.export(architectures.checkpoint(name), "hf")
        expected, found = tensors_of(source), tensors_of(made)
        self.assertEqual(set(found), set(expected))
        for key in expected:
            self.assertEqual(found[key].dtype, expected[key].dtype)
            self.assertTrue(torch.equal(found[key], expected[key]), key)
        self.assertEqual(config_of(made), config_of(source))

    def test_transformers_gets_the_same_model(self):
        self.for_all(self.check_hf)

    def check_our_logits(self, name):
        """At all positions, of the folder and of the run that began with it."""
        ids = tokens()
        expected = transformers_logits(architectures.folder(name), ids)
        for path in (architectures.folder(name), architectures.imported(name)):
            found = architectures.logits(path, ids)
            error = np.abs(found - expected).max(axis=1) / np.abs(expected).max(axis=1)
            self.assertLess(error.max(), 1e-4, path)
        last = tokens(1)  # a single position
        self.assertLess(divergence(transformers_logits(architectures.folder(name), last),
                                   architectures.logits(architectures.folder(name), last)), 1e-8)

    def test_our_logits_are_transformers(self):
        self.for_all(self.check_our_logits)

    def check_quantized_logits(self, name):
        run, ids = architectures.imported(name, "float32", 4), tokens()
        expected = transformers_logits(fixture.export(run, "hf"), ids)
        found = architectures.logits(run, ids)
        self.assertLess((np.abs(found - expected).max(axis=1) / np.abs(expected).max(axis=1)).max(), 1e-4)

    def test_our_quantized_logits_are_those_of_the_export(self):
        self.for_all(self.check_quantized_logits)

    def check_round_trip(self, name):
        """A folder, trained from, exported again: the same to the bit."""
        halves = (("bfloat16", "bf16"), ("float16", "fp16")) if name in ("llama, untied", "qwen2", "qwen3, untied") else ()
        for dtype, flag in (("float32", "fp32"), *halves):
            source = architectures.folder(name, dtype)
            made = fixture.export(architectures.imported(name, dtype), "hf", "--dtype", flag)
            expected, found = tensors_of(source), tensors_of(made)
            self.assertEqual(set(found), set(expected))
            for key in expected:
                self.assertEqual(found[key].dtype, expected[key].dtype)
                self.assertTrue(torch.equal(found[key], expected[key]), f"{dtype} {key}")
            self.assertEqual(config_of(made), config_of(source))

    def test_folders_come_back_as_they_were(self):
        self.for_all(self.check_round_trip)

    def check_llama_cpp(self, name):
        ids = tokens()
        expected = transformers_logits(architectures.folder(name), ids)[:, :fixture.VOCABULARY]
        self.assertGreater(log_softmax(expected).std(), 0.5)  # that it says something
        found = llama_logits(fixture.export(architectures.checkpoint(name), "gguf-f32"), ids)
        self.assertLess(divergence(expected, found), 1e-8)

    def test_llama_cpp_computes_the_same(self):
        self.for_all(self.check_llama_cpp)

    def check_quantized(self, name):
        """4 bits: compressed-tensors and GGUF hold the levels of all matrices, the output head's too."""
        checkpoint, ids = architectures.checkpoint(name, 4), tokens()
        expected = transformers_logits(fixture.export(checkpoint, "hf"), ids)
        packed = transformers_logits(fixture.export(checkpoint, "compressed-tensors"), ids)
        self.assertLess(divergence(expected, packed), 1e-9)
        exact = llama_logits(fixture.export(checkpoint, "gguf-f32"), ids)
        self.assertLess(divergence(expected[:, :fixture.VOCABULARY], exact), 1e-8)

    def test_quantized_models(self):
        self.for_all(self.check_quantized)

    def test_quantized_gguf(self):
        for name in ("llama 3", "qwen3, untied"):
            checkpoint, ids = architectures.checkpoint(name, 4), tokens()
            folder = fixture.export(checkpoint, "gguf")
            kinds = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(os.path.join(folder, "model.gguf")).tensors}
            self.assertEqual({kinds[key] for key in kinds if key.endswith("weight") and "norm" not in key and "freqs" not in key}, {"Q4_0"})
            expected = transformers_logits(fixture.export(checkpoint, "hf"), ids)[:, :fixture.VOCABULARY]
            self.assertLess(divergence(expected, llama_logits(folder, ids)), 0.1)  # it rounds activations to 8 bits

    def test_tokens_of_byte_level_tokenizers(self):
        checkpoint = architectures.checkpoint("qwen2, untied")
        for kind in ("gpt-2", "qwen2", "llama-bpe", "smollm"):
            source = architectures.byte_tokenizer(kind)
            expected = transformers.AutoTokenizer.from_pretrained(source)
            folder = fixture.export_with(source, checkpoint, "gguf-f32")
            model = llama_cpp.Llama(os.path.join(folder, "model.gguf"), vocab_only=True, verbose=False)
            for text in fixture.DIFFICULT + fixture.drawn_texts(SEED):
                with self.subTest(kind=kind, text=text, seed=SEED):
                    ids = expected(text)["input_ids"]
                    self.assertEqual(model.tokenize(text.encode(), add_bos=True, special=True), ids)
                    self.assertEqual(model.detokenize(ids, special=True).decode(), expected.decode(ids))
            self.assertEqual(model.token_eos(), expected.eos_token_id)

    def test_tokenizer_files_are_taken_over(self):
        source = architectures.byte_tokenizer("qwen2")
        for path in (source, os.path.join(source, "tokenizer.json")):
            folder = fixture.export_with(path, architectures.checkpoint("qwen2"), "hf")
            names = set(os.listdir(source))
            self.assertEqual(set(os.listdir(folder)), names | {"config.json", "model.safetensors"})
            for name in names:
                with open(os.path.join(source, name), "rb") as first, open(os.path.join(folder, name), "rb") as second:
                    self.assertEqual(first.read(), second.read())
            self.assertEqual(transformers.AutoConfig.from_pretrained(folder).eos_token_id, 1)

    def test_a_tokenizer_of_another_name_makes_the_same_gguf(self):
        source, checkpoint = architectures.byte_tokenizer("llama-bpe"), architectures.checkpoint("qwen2")
        renamed = os.path.join(fixture.directory, "renamed")
        shutil.copytree(source, renamed)
        os.rename(os.path.join(renamed, "tokenizer.json"), os.path.join(renamed, "my.json"))
        files = [os.path.join(fixture.export_with(path, checkpoint, "gguf-f32"), "model.gguf") for path in (source, os.path.join(renamed, "my.json"))]
        first, second = ([(field.name, field.contents()) for field in gguf.GGUFReader(path).fields.values()] for path in files)
        self.assertEqual(first, second)
        self.assertIn("tokenizer.ggml.merges", dict(first))

    def test_refusals(self):
        new = os.path.join(fixture.directory, "never")
        refuse = lambda path, kind, tokenizer: self.refusal(*fixture.export_command(path, kind, new, "--tokenizer", tokenizer))
        checkpoint = architectures.checkpoint("qwen2")
        self.assertIn("which is none of gpt-2, llama-bpe", refuse(checkpoint, "gguf-f32", architectures.byte_tokenizer("of nobody")))
        self.assertIn("neither tokenizer.json nor tokenizer.model", refuse(checkpoint, "hf", fixture.directory))
        self.assertIn("another tokenizer", refuse(checkpoint, "hf", architectures.byte_tokenizer("gpt-2", 600)))
        both = architectures.checkpoint("qwen2", 16, attention_biases=True, head_norms=True)
        self.assertIn("neither Llama, Qwen2 nor Qwen3", refuse(both, "hf", fixture.tokenizer()))
        stretched = architectures.checkpoint("qwen3", rope_scaling=architectures.LLAMA3)
        self.assertIn("not for Qwen3ForCausalLM", refuse(stretched, "gguf-f32", fixture.tokenizer()))
        wide = architectures.checkpoint("qwen2", head_dim=16)
        self.assertIn("divide the width", refuse(wide, "gguf-f32", fixture.tokenizer()))
        odd = architectures.checkpoint("llama", heads=5, head_dim=8)
        self.assertIn("divide the width", refuse(odd, "hf", fixture.tokenizer()))
        self.assertFalse(os.path.exists(new))
