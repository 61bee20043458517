#!/usr/bin/env python3
"""Tests the PyTorch reference itself: against definitions, closed forms, torch's own optimizer, and fabricated dumps.

The last line reads `N passed, N failed`; exit status 1 when a test fails.
"""

import contextlib
import dataclasses
import importlib.util
import io
import itertools
import math
import pathlib
import sys
import tempfile
import types
import unittest
import unittest.mock

import numpy as np
import torch

import compare
import llama
from dump import Config, read_safetensors, write_dump, write_safetensors

ALL_BITS = (1, 1.58, 2, 3, 4, 5, 6, 8)
LEVELS = {1: [-1, 1], 1.58: [-1, 0, 1], 2: [-1.5, -0.5, 0.5, 1.5]} | {
    bits: list(range(-(2 ** (bits - 1)), 2 ** (bits - 1))) for bits in (3, 4, 5, 6, 8)
}
# |w/s| up to which the gradient passes; integers: from the lowest to the highest level.
CLIPS = {1: (-1, 1), 1.58: (-1.485, 1.485), 2: (-1.98, 1.98)}

SMALL = Config(
    layers=2, width=12, heads=4, kv_heads=2, head_dim=6, ffn=20, vocabulary=37, sequence_length=7, batch=2,
    micro_batches=2, tied=True, attention_biases=False, head_norms=False, rope_theta=1000.0,
    rope_scaling=(1, 1, 4, 0), norm_epsilon=1e-5, bits=4, group=0, dtype="float32", fp_steps=3, qat_steps=3,
    learning_rates=(1e-3, 2e-3, 2e-3, 1e-3, 2e-3, 1e-3), scale_learning_rates=(1e-4,) * 6, beta1=0.9, beta2=0.95,
    epsilon=1e-8, weight_decay=0.1, clip_norm=1.0,
)  # fmt: skip
# bfloat16 tolerances hold for matrices that are large enough for errors to average out.
MEDIUM = dataclasses.replace(
    SMALL, width=64, heads=4, kv_heads=2, head_dim=16, ffn=176, vocabulary=300, sequence_length=32, dtype="bfloat16"
)


def random_weights(config, dtype, seed=1):
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in config.shapes().items():
        draw = torch.randn(shape, generator=generator, dtype=torch.float64)
        weights[name] = (1 + 0.1 * draw if len(shape) == 1 else draw / math.sqrt(shape[1])).to(dtype)
    return weights


def random_tokens(config, seed):
    shape = (config.micro_batches, config.batch, config.sequence_length + 1)
    tokens = torch.randint(config.vocabulary, shape, generator=torch.Generator().manual_seed(seed))
    return tokens[..., :-1], tokens[..., 1:]


def fabricate(config):
    """The dump that a faultless trainer would write: this model in float32, rounded where bfloat16 is stored."""
    compute = llama.exact if config.dtype == "float32" else llama.round_to_bfloat16
    batches = [random_tokens(config, seed) for seed in range(config.steps)]
    tensors = {}
    weights = random_weights(config, torch.float32)
    for step, run in enumerate(llama.train(config, weights, batches.__getitem__, compute)):
        at = f"step{step}/"
        tensors |= {at + "inputs": batches[step][0].int().numpy(), at + "targets": batches[step][1].int().numpy()}
        tensors |= {at + key: np.array([run[key]], np.float32) for key in ("loss", "norm")}
        if step in (0, config.fp_steps):
            tensors[at + "logits"] = run["logits"].numpy()
        for kind in ("weight", "scale", "gradient", "scale_gradient"):
            tensors |= {f"{at}{kind}/{name}": tensor.numpy() for name, tensor in run[kind].items()}
    for kind in ("weight", "scale"):
        tensors |= {f"final/{kind}/{name}": tensor.numpy() for name, tensor in run[f"next_{kind}"].items()}
    return tensors


class FakeQuantization(unittest.TestCase):
    def ratios(self, bits):
        """Random w/s well beyond the clipping range, and the places where something changes."""
        limit = 1.5 * max(abs(level) for level in LEVELS[bits])
        special = [0.0, -0.0, 0.5, -0.5, 1.0, -1.0, 1.5, 2.5, -2.5, *CLIPS.get(bits, (0,)), *LEVELS[bits][::7]]
        return np.concatenate([np.random.default_rng(5).uniform(-limit, limit, 500), special]).astype(np.float32)

    def test_level_is_the_nearest_one(self):
        for bits in ALL_BITS:
            levels = np.array(LEVELS[bits], np.float64)
            for r in self.ratios(bits):
                found = llama.grid(torch.tensor([r]), bits)[0].item()
                distance = np.abs(levels - float(r))
                self.assertIn(found, levels)
                self.assertAlmostEqual(abs(found - float(r)), distance.min(), delta=1e-6, msg=f"{bits} bits, r = {r}")

    def test_ties_go_to_even_and_zero_is_positive(self):
        def levels(bits, *values):
            return llama.grid(torch.tensor(values), bits)[0].tolist()

        self.assertEqual(levels(1, 0.0, -0.0, -1e-30), [1, 1, -1])
        self.assertEqual(levels(1.58, 0.5, -0.5), [0, 0])
        self.assertEqual(levels(2, 0.0, 1.0, -1.0), [0.5, 0.5, -1.5])
        self.assertEqual(levels(4, 0.5, 1.5, 2.5, -0.5, 7.5, -8.5, 100.0), [0, 2, 2, 0, 7, -8, 7])

    def test_straight_through_mask(self):
        for bits in ALL_BITS:
            lowest, highest = CLIPS.get(bits, (LEVELS[bits][0], LEVELS[bits][-1]))
            r = self.ratios(bits)
            inside = llama.grid(torch.from_numpy(r), bits)[1].numpy()
            np.testing.assert_array_equal(inside, (np.float32(lowest) <= r) & (r <= np.float32(highest)))

    def test_gradients_by_definition(self):
        for bits, groups in itertools.product(ALL_BITS, (1, 3)):
            random = np.random.default_rng(7)
            weight = random.normal(size=(4, 9)).astype(np.float32)
            scale = random.uniform(0.2, 0.5, size=(4, groups)).astype(np.float16).astype(np.float32)
            gradient = random.normal(size=(4, 9)).astype(np.float64)
            w, s = torch.from_numpy(weight).double().requires_grad_(), torch.from_numpy(scale).double().requires_grad_()
            quantized = llama.FakeQuantize.apply(w, s, bits)
            quantized.backward(torch.from_numpy(gradient))
            lowest, highest = CLIPS.get(bits, (LEVELS[bits][0], LEVELS[bits][-1]))
            d_weight, d_scale, value = np.zeros((4, 9)), np.zeros((4, groups)), np.zeros((4, 9))
            for i, j in np.ndindex(4, 9):
                k = j * groups // 9
                r = weight[i, j] / scale[i, k]
                level = min(LEVELS[bits], key=lambda candidate: abs(candidate - r))
                value[i, j] = float(scale[i, k]) * level
                inside = np.float32(lowest) <= r <= np.float32(highest)
                d_weight[i, j] = gradient[i, j] if inside else 0
                # dŵ/ds of s*round(w/s), rounding passed straight: round(w/s) + s * (-w/s^2); a sign has no w/s.
                d_scale[i, k] += gradient[i, j] * (level - (float(r) if inside and bits != 1 else 0))
            d_scale /= math.sqrt(36 * {3: 3, 4: 7, 5: 15, 6: 31, 8: 127}.get(bits, 1))
            np.testing.assert_allclose(quantized.detach(), value, rtol=1e-12)
            np.testing.assert_allclose(w.grad, d_weight, rtol=1e-12)
            np.testing.assert_allclose(s.grad, d_scale, rtol=1e-9, atol=1e-12)

    def test_effective_scale(self):
        raw = np.array([-1, 0, 1e-6, 1e-5, 3.1e-5, 6.2e-5, 0.1, 1 + 2**-11, 1 + 3 * 2**-11, 1e6], np.float32)
        expected = np.minimum(np.maximum(raw, np.float32(1e-5)), 65504).astype(np.float16).astype(np.float32)
        np.testing.assert_array_equal(llama.effective_scale(torch.from_numpy(raw)).numpy(), expected)
        self.assertEqual(expected[7:9].tolist(), [1, 1 + 2**-9])  # ties to even

    def test_initial_scale(self):
        weight = torch.tensor([[1.0, -3.0, 0.5, 0.25], [0.0, 0.0, 0.0, 0.0]])
        expected = {1: 1.1875, 1.58: 2, 2: 1.5, 3: 1, 4: 3 / 7, 8: 3 / 127}
        for bits, first in expected.items():
            scale = llama.initial_scale(weight, bits, 1).flatten().tolist()
            np.testing.assert_allclose(scale, [first, 1e-5], rtol=1e-6)
        np.testing.assert_allclose(llama.initial_scale(weight, 4, 2)[0], [3 / 7, 0.5 / 7], rtol=1e-6)


class Model(unittest.TestCase):
    def test_rope_is_a_complex_rotation(self):
        B, H, T, D, theta = 2, 3, 11, 10, 500.0
        x = torch.randn(B, H, T, D, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).numpy()
        turned = llama.rope(torch.from_numpy(x), dataclasses.replace(SMALL, rope_theta=theta)).numpy()
        number = x[..., : D // 2] + 1j * x[..., D // 2 :]
        angle = np.arange(T)[:, None] * theta ** (-2 * np.arange(D // 2) / D)
        number = number * np.exp(1j * angle)
        np.testing.assert_allclose(turned, np.concatenate([number.real, number.imag], -1), atol=1e-13)

    def test_attention_by_loops(self):
        config, generator = SMALL, torch.Generator().manual_seed(3)
        B, T, D = config.batch, config.sequence_length, config.head_dim
        x = torch.randn(B, T, config.width, dtype=torch.float64, generator=generator)
        weights, prefix = random_weights(config, torch.float64), "model.layers.0.self_attn."
        expected = torch.zeros(B, T, config.heads * D, dtype=torch.float64)
        for b, h in np.ndindex(B, config.heads):

            def head(name, index):
                rows = weights[f"{prefix}{name}_proj.weight"][index * D : (index + 1) * D]
                return x[b] @ rows.T

            group = h // 2  # 4 query heads on 2 key/value heads
            query = llama.rope(head("q", h)[None, None], config)[0, 0]
            key = llama.rope(head("k", group)[None, None], config)[0, 0]
            value = head("v", group)
            for t in range(T):
                share = [math.exp((query[t] @ key[u]).item() / math.sqrt(D)) for u in range(t + 1)]
                expected[b, t, h * D : (h + 1) * D] = sum(p / sum(share) * value[u] for u, p in enumerate(share))
        expected = expected @ weights[prefix + "o_proj.weight"].T
        found = llama.attention(x, weights, prefix, config, llama.exact)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)

    def test_gradients_numerically(self):
        config = dataclasses.replace(
            SMALL, layers=1, width=4, heads=2, kv_heads=1, head_dim=2, ffn=3, vocabulary=5, sequence_length=3
        )
        weights = random_weights(config, torch.float64)
        inputs, targets = random_tokens(config, 4)

        def loss(*values):
            logits = llama.forward(dict(zip(weights, values)), inputs[0], config)
            return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets[0].flatten())

        self.assertTrue(torch.autograd.gradcheck(loss, [w.requires_grad_() for w in weights.values()]))

    def test_micro_batches_are_averaged(self):
        weights, (inputs, targets) = random_weights(SMALL, torch.float64), random_tokens(SMALL, 9)
        loss, gradients, _, logits = llama.loss_and_gradients(weights, {}, inputs, targets, SMALL)
        merged = dataclasses.replace(SMALL, micro_batches=1, batch=2 * SMALL.batch)
        together = llama.loss_and_gradients(
            weights, {}, inputs.flatten(0, 1)[None], targets.flatten(0, 1)[None], merged
        )
        self.assertAlmostEqual(loss, together[0], places=12)
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, together[1][name], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(logits, together[3][: len(logits)])


class Optimizer(unittest.TestCase):
    def test_like_torch(self):
        """Constants that float32 holds exactly, so that both compute the same thing."""
        config = dataclasses.replace(
            SMALL, learning_rates=(2**-9,) * 6, scale_learning_rates=(2**-7,) * 6, beta1=0.875, beta2=0.9375,
            epsilon=2**-20, weight_decay=0.125, clip_norm=0.5,
        )  # fmt: skip
        generator = torch.Generator().manual_seed(6)

        def draw(*shape):
            return torch.randn(*shape, dtype=torch.float64, generator=generator)

        weights, scales = {"matrix": draw(3, 5), "norm": draw(5)}, {"matrix": draw(3, 1).abs() + 1}
        mine = [weights["matrix"], weights["norm"], scales["matrix"]]
        theirs = [tensor.clone().requires_grad_() for tensor in mine]
        relative, expected_scale = theirs[2], mine[2].clone()  # torch moves by the same amounts, but absolute ones
        torch_optimizer = torch.optim.AdamW(
            [{"params": theirs[:1], "weight_decay": 0.125}, {"params": theirs[1:2]}, {"params": theirs[2:], "lr": 2**-7}],
            lr=2**-9, betas=(0.875, 0.9375), eps=2**-20, weight_decay=0.0,
        )  # fmt: skip
        optimizer = llama.AdamW(config)
        for step in range(4):
            gradients = [(0.01 if step == 2 else 1) * draw(*tensor.shape) for tensor in mine]
            for parameter, gradient in zip(theirs, gradients):
                parameter.grad = gradient.clone()
            norm = torch.cat([gradient.flatten() for gradient in gradients]).norm().item()
            for parameter in theirs:
                parameter.grad *= min(1, 0.5 / norm)
            before = relative.detach().clone()
            torch_optimizer.step()
            expected_scale = expected_scale * (1 + relative.detach() - before)
            weights, scales, found = optimizer.step(
                step, weights, scales, {"matrix": gradients[0], "norm": gradients[1]}, {"matrix": gradients[2]}
            )
            self.assertAlmostEqual(found, norm, places=12)
            for one, other in zip((weights["matrix"], weights["norm"], scales["matrix"]), (*theirs[:2], expected_scale)):
                torch.testing.assert_close(one, other.detach(), rtol=1e-12, atol=1e-14)

    def test_scales_are_floored(self):
        config = dataclasses.replace(SMALL, scale_learning_rates=(2.0,) * 6)
        one = torch.ones(2, 1)
        _, scales, _ = llama.AdamW(config).step(0, {}, {"matrix": one}, {}, {"matrix": one})
        torch.testing.assert_close(scales["matrix"], torch.full((2, 1), 1e-5))


class Benchmark(unittest.TestCase):
    """The peer benchmark must compute this model, or its time says nothing."""

    def load(self):
        path = pathlib.Path(__file__).resolve().parents[2] / "dev" / "bench" / "bench_pytorch.py"
        specification = importlib.util.spec_from_file_location("bench_pytorch", path)
        module = importlib.util.module_from_spec(specification)
        with unittest.mock.patch.object(sys, "path", [str(path.parent), *sys.path]):  # for its neighbours
            specification.loader.exec_module(module)
        return module

    def test_loss_and_gradients(self):
        for bits, kv_heads in ((None, 2), (None, 4), (1, 4), (1.58, 2), (2, 2), (4, 4)):
            config = dataclasses.replace(
                SMALL, width=24, kv_heads=kv_heads, rope_theta=10000.0, bits=bits or 16, micro_batches=1
            )
            names = ("layers", "width", "heads", "kv_heads", "ffn", "vocabulary", "batch")
            arguments = {name: getattr(config, name) for name in names}
            arguments |= {"sequence": config.sequence_length, "mode": "fp32", "bf16": "copies", "qat": bits}
            torch.manual_seed(8)
            model = self.load().Model(types.SimpleNamespace(**arguments))
            model.scales.copy_(llama.effective_scale(model.scales))

            def converted(source):
                """The benchmark's joined tensors under this model's names, and their scales."""
                rows = (config.heads * 6, kv_heads * 6, kv_heads * 6)
                found = [{}, {}]
                for target, prefix in zip(found, ("", "scale_")):
                    if prefix and bits is None:
                        continue
                    target["model.embed_tokens.weight"] = source(prefix + "embedding")
                    for i in range(config.layers):
                        at = f"model.layers.{i}."
                        parts = dict(zip("qkv", source(f"{prefix}qkv{i}").split(rows)))
                        parts |= {"o": source(f"{prefix}out{i}")}
                        target |= {f"{at}self_attn.{k}_proj.weight": part for k, part in parts.items()}
                        gate, up = source(f"{prefix}gate_up{i}").chunk(2)
                        parts = {"gate": gate, "up": up, "down": source(f"{prefix}down{i}")}
                        target |= {f"{at}mlp.{k}_proj.weight": part for k, part in parts.items()}
                for i in range(config.layers):
                    found[0][f"model.layers.{i}.input_layernorm.weight"] = source(f"attention_norm{i}")
                    found[0][f"model.layers.{i}.post_attention_layernorm.weight"] = source(f"feed_forward_norm{i}")
                found[0]["model.norm.weight"] = source("norm")
                return found

            inputs, targets = random_tokens(config, 8)
            loss = model.loss(inputs[0], targets[0])
            loss.backward()
            weights, scales = converted(lambda name: model.master[name].detach().double())
            reference = llama.loss_and_gradients(weights, scales, inputs, targets, config)
            self.assertAlmostEqual(loss.item(), reference[0], places=5)
            gradients, scale_gradients = converted(lambda name: model.master[name].grad)
            for name, gradient in reference[1].items():
                self.assertLess(compare.relative_error(gradients[name], gradient), 1e-5, f"{name}, {bits} bits")
            for name, gradient in reference[2].items():
                # The joined matrices count all their weights in g = 1/sqrt(n Q_p): the same direction, other length.
                found = scale_gradients[name].double()
                found *= gradient.norm() / found.norm()
                self.assertLess(compare.relative_error(found, gradient), 1e-5, f"scale of {name}, {bits} bits")


class Dumps(unittest.TestCase):
    def test_faultless_runs_pass(self):
        variants = [(SMALL, {"bits": bits}) for bits in (*ALL_BITS, 16)]
        variants += [(SMALL, {"group": 4, "kv_heads": 4}), (SMALL, {"fp_steps": 0})]
        variants += [(SMALL, {"qat_steps": 0, "clip_norm": 0.0})]
        variants += [(MEDIUM, {"bits": bits}) for bits in (1, 1.58, 2, 4, 8)]
        for base, change in variants:
            config = dataclasses.replace(base, **change)
            config = dataclasses.replace(config, learning_rates=config.learning_rates[: config.steps])
            with self.subTest(**change):
                checks = compare.Comparison(config, fabricate(config)).run().checks
                self.assertGreater(len(checks), 100)
                self.assertEqual([check for check in checks if compare.failed(check)], [])

    def test_every_damage_is_found(self):
        for config in (dataclasses.replace(SMALL, bits=2), MEDIUM):
            with self.subTest(dtype=config.dtype):
                found, missed = compare.self_test(config, fabricate(config))
                self.assertGreater(found, 30)
                self.assertEqual(missed, 0)

    def test_files_and_exit_status(self):
        def status(directory):
            sys.argv = ["compare.py", directory]
            with contextlib.redirect_stdout(io.StringIO()) as output, contextlib.redirect_stderr(output):
                return compare.main(), output.getvalue().splitlines()[-1]

        tensors = fabricate(SMALL)
        with tempfile.TemporaryDirectory() as directory:
            write_dump(directory, SMALL, tensors)
            code, line = status(directory)
            self.assertEqual(code, 0)
            self.assertRegex(line, r"^\d+ passed, 0 failed$")
            write_dump(directory, SMALL, tensors | {"step1/loss": tensors["step1/loss"] * np.float32(1.01)})
            code, line = status(directory)
            self.assertEqual(code, 1)
            self.assertRegex(line, r"^\d+ passed, 2 failed$")  # teacher-forced and free-running
        self.assertEqual(status(directory)[0], 2)

    def test_safetensors_round_trip(self):
        tensors = {"a": np.arange(6, dtype=np.int32).reshape(2, 3), "b/c": np.array([1.5], np.float32)}
        with tempfile.NamedTemporaryFile() as file:
            write_safetensors(file.name, tensors)
            found = read_safetensors(file.name)
        self.assertEqual(list(found), list(tensors))
        for name, array in tensors.items():
            self.assertEqual(found[name].dtype, array.dtype)
            np.testing.assert_array_equal(found[name], array)


if __name__ == "__main__":
    result = unittest.main(exit=False).result
    failures = len(result.failures) + len(result.errors)
    print(f"{result.testsRun - failures} passed, {failures} failed")
    sys.exit(1 if failures else 0)
