#!/usr/bin/env python3
"""Compares a dumped training run (dump.py) with the same run in PyTorch, in float64.

    compare.py DIRECTORY              every comparison; exit status 1 when one fails
    compare.py DIRECTORY --self-test  damages the dump in many ways and expects every damage to be found

Teacher-forced: each step starts from the dumped weights and scales, so that errors cannot add up and every gradient
can be held to a tight tolerance. Optimizer: each step's dumped gradients must lead to the next step's dumped weights.
Free-running: the whole run from the weights of step 0 alone; where a weight's level has parted ways, the run goes on
from the dumped weights. Errors: the norm of the difference over the norm of the reference; for bfloat16 runs 1 - cosine
and the ratio of the norms, both scaled so that 1 is the tolerance.
"""

import argparse
import dataclasses
import sys
from collections import namedtuple

import numpy as np
import torch

import llama
from dump import read_dump

Check = namedtuple("Check", "category step tensor error tolerance")

# Relative errors that pass. "cosine" and "ratio" apply to tensors of bfloat16 runs: 1 - cosine, |norm ratio - 1|.
# A free run is chaotic in the small: a weight next to a rounding boundary takes the other level, a scale the other
# float16: then both go on from the same state. AdamW turns the rounding of a tiny gradient into a full step, so the
# final state is compared over all tensors together: weights relative to the distance that they moved in the whole run,
# scales relative to themselves (their movement is small and a sum that nearly cancels; "optimizer scale" holds it to 1e-6).
TOLERANCES = {
    "float32": {
        "loss": 1e-5, "tensor": 1e-5, "norm": 1e-5, "free FP loss": 1e-5, "free QAT loss": 1e-5,
        "free final weight": 2e-2, "free final scale": 1e-2,
        "optimizer": 1e-6, "dumped norm": 1e-5, "scale initialization": 1e-6,
    },
    "bfloat16": {
        "loss": 2e-3, "cosine": 1e-3, "ratio": 2e-2, "norm": 2e-2,
        "free FP loss": 1e-2, "free QAT loss": 1e-2, "free final weight": 0.3, "free final scale": 0.1,
        "optimizer": 1e-6, "dumped norm": 1e-5, "scale initialization": 1e-6,
    },
}  # fmt: skip


# Smallest norm that a float32 gradient counts with, as a fraction of the norm of all gradients of its kind. A gradient
# that cancels out is rounding noise, for instance that of queries and keys with only one position to attend to.
GRADIENT_FLOOR = 2e-3

# A float32 gradient that cancels, as behind a normalization, is as inexact as its terms. Where the tolerance is exceeded,
# this many times the noise of one rounding for each value passes: every value is itself a sum of some tens of terms.
ROUNDINGS = 32


def relative_error(value, reference, floor=0.0):
    """||value - reference|| / ||reference||, the divisor at least `floor`; inf where it is 0 and the value not."""
    value, reference = torch.as_tensor(value).double().flatten(), torch.as_tensor(reference).double().flatten()
    difference, size = (value - reference).norm().item(), max(reference.norm().item(), floor)
    return difference / size if size > 0 else (0.0 if difference == 0 else float("inf"))


class Comparison:
    """One dump, its tolerances, and the list of checks made so far."""

    def __init__(self, config, tensors):
        self.config, self.tensors, self.checks = config, tensors, []
        self.tolerances = TOLERANCES[config.dtype]

    def get(self, name):
        """A dumped tensor, floating point as float64."""
        tensor = torch.from_numpy(np.array(self.tensors[name]))
        return tensor.double() if tensor.is_floating_point() else tensor.long()

    def group(self, place, kind):
        """{parameter: tensor} of step{i}/kind/ or final/kind/, in the dump's own order of parameters."""
        prefix = f"{place}/{kind}/"
        return {name[len(prefix) :]: self.get(name) for name in self.tensors if name.startswith(prefix)}

    def tokens(self, step):
        return self.get(f"step{step}/inputs"), self.get(f"step{step}/targets")

    def after(self, step):
        """Where the state after a step is found."""
        return f"step{step + 1}" if step + 1 < self.config.steps else "final"

    def add(self, category, step, tensor, error, tolerance):
        self.checks.append(Check(category, step, tensor, error, tolerance))

    def add_tensor(self, category, step, name, value, reference, floor=0.0):
        """An activation or gradient: by relative error in float32, by cosine and norm in bfloat16."""
        if self.config.dtype == "float32":
            self.add(category, step, name, relative_error(value, reference, floor), self.tolerances["tensor"])
            return
        value, reference = value.flatten(), reference.flatten()
        size, reference_size = value.norm().item(), reference.norm().item()
        if size == 0 or reference_size == 0:
            cosine, ratio = (1.0, 1.0) if size == reference_size else (0.0, float("inf"))
        else:
            cosine, ratio = (value @ reference).item() / (size * reference_size), size / reference_size
        self.add(category + " 1-cosine", step, name, 1 - cosine, self.tolerances["cosine"])
        self.add(category + " norm ratio", step, name, abs(ratio - 1), self.tolerances["ratio"])

    # ---- the comparisons ------------------------------------------------------------------------------------------

    def check_layout(self):
        """The dump holds what it must and nothing else, in the right shapes: else a check would quietly not run."""
        expected = self.config.tensor_shapes()
        for name in sorted(set(expected) | set(self.tensors)):
            right = name in expected and name in self.tensors and self.tensors[name].shape == tuple(expected[name])
            self.add("layout", "all", name, 0.0 if right else float("inf"), 0.0)
        return not any(check.error for check in self.checks)

    def check_teacher_forced(self):
        for step in range(self.config.steps):
            place = f"step{step}"
            arguments = self.group(place, "weight"), self.group(place, "scale"), *self.tokens(step), self.config
            loss, gradients, scale_gradients, logits = llama.loss_and_gradients(*arguments)
            self.add("loss", step, "", relative_error(self.get(place + "/loss"), [loss]), self.tolerances["loss"])
            if place + "/logits" in self.tensors:
                self.add_tensor("logits", step, "", self.get(place + "/logits"), logits)
            for kind, references in (("gradient", gradients), ("scale_gradient", scale_gradients)):
                floor = GRADIENT_FLOOR * llama.global_norm(references)
                for name, reference in references.items():
                    self.add_tensor(kind, step, name, self.get(f"{place}/{kind}/{name}"), reference, floor)
            self.allow_for_noise(step, arguments, {"gradient": gradients, "scale_gradient": scale_gradients})
            norm = llama.global_norm(gradients, scale_gradients)
            self.add("norm", step, "", relative_error(self.get(place + "/norm"), [norm]), self.tolerances["norm"])

    def allow_for_noise(self, step, arguments, references):
        """Relates the errors of float32 gradients that are too large to the noise of float32 in this very step, which is
        what rounding every activation and its gradient once does to the reference."""
        mine = [check for check in self.checks if check.step == step and check.category in references]
        suspects = [check for check in mine if failed(check)]
        if self.config.dtype != "float32" or not suspects:
            return
        noisy = llama.loss_and_gradients(*arguments, llama.round_to_float32)
        noisy = {"gradient": noisy[1], "scale_gradient": noisy[2]}
        for check in suspects:
            value = self.get(f"step{step}/{check.category}/{check.tensor}")
            reference = references[check.category][check.tensor]
            noise = (noisy[check.category][check.tensor] - reference).norm().item()
            error = relative_error(value, reference, ROUNDINGS * noise / check.tolerance)
            self.checks[self.checks.index(check)] = check._replace(error=min(check.error, error))

    def check_scale_initialization(self):
        step = self.config.fp_steps
        if not self.config.is_qat(step) or self.config.qat_steps == 0:
            return
        for name, scale in llama.initial_scales(self.group(f"step{step}", "weight"), self.config).items():
            error = relative_error(self.get(f"step{step}/scale/{name}"), scale)
            self.add("scale initialization", step, name, error, self.tolerances["scale initialization"])

    def check_optimizer(self):
        optimizer = llama.AdamW(self.config)
        for step in range(self.config.steps):
            kinds = ("weight", "scale", "gradient", "scale_gradient")
            weights, scales, norm = optimizer.step(step, *(self.group(f"step{step}", kind) for kind in kinds))
            error = relative_error(self.get(f"step{step}/norm"), [norm])
            self.add("dumped norm", step, "", error, self.tolerances["dumped norm"])
            for kind, references in (("weight", weights), ("scale", scales)):
                for name, reference in references.items():
                    error = relative_error(self.get(f"{self.after(step)}/{kind}/{name}"), reference)
                    self.add(f"optimizer {kind}", step, name, error, self.tolerances["optimizer"])

    def meet(self, step, weights, scales):
        """The free run's state where all its levels are the dumped ones, else the dumped state."""
        dumped = self.group(f"step{step}", "weight"), self.group(f"step{step}", "scale")
        mine, its = (llama.fake_quantize(*state, self.config) for state in ((weights, scales), dumped))
        return (weights, scales) if all(torch.equal(mine[name], its[name]) for name in scales) else dumped

    def check_free_running(self):
        start = self.group("step0", "weight")
        for step, run in enumerate(llama.train(self.config, start, self.tokens, start=self.meet)):
            error = relative_error(self.get(f"step{step}/loss"), [run["loss"]])
            category = "free QAT loss" if self.config.is_qat(step) else "free FP loss"
            self.add(category, step, "", error, self.tolerances[category])
        for kind in ("weight", "scale"):
            final, category = run[f"next_{kind}"], f"free final {kind}"
            if final:
                origin = start if kind == "weight" else {name: 0.0 for name in final}
                reference = torch.cat([(tensor - origin[name]).flatten() for name, tensor in final.items()])
                moved = torch.cat([(self.get(f"final/{kind}/{name}") - origin[name]).flatten() for name in final])
                self.add(category, "end", "all together", relative_error(moved, reference), self.tolerances[category])

    def run(self):
        if self.check_layout():
            self.check_scale_initialization()
            self.check_teacher_forced()
            self.check_optimizer()
            self.check_free_running()
        return self


def failed(check):
    return not check.error <= check.tolerance  # so that NaN fails


def print_table(checks):
    """One line per category and step: the worst tensor."""
    worst = {}
    for check in checks:
        key = check.category, check.step
        rank = float("inf") if np.isnan(check.error) else check.error
        if key not in worst or rank > worst[key][0]:
            worst[key] = rank, check
    print(f"{'category':27} {'step':>4} {'error':>9} {'tolerance':>9}  worst tensor")
    for _, check in worst.values():
        verdict = "  FAILED" if failed(check) else ""
        numbers = f"{check.step!s:>4} {check.error:9.1e} {check.tolerance:9.1e}"
        print(f"{check.category:27} {numbers}  {check.tensor}{verdict}")


def damages(config):
    """(category that must notice it, what is done, dump tensor or configuration field, damage)."""
    last, middle = config.steps - 1, f"step{config.steps // 2}"
    query = f"model.layers.{config.layers - 1}.self_attn.q_proj.weight"
    norm = "model.norm.weight"

    def scaled(factor):
        return lambda array: array * np.asarray(factor, array.dtype)

    def one_element(array):
        array.flat[array.size // 2] += 0.5 * np.linalg.norm(array)
        return array

    strict = 1 + 5 * TOLERANCES[config.dtype]["optimizer"]
    yield "loss", f"{middle}/loss", scaled(1.01)
    yield "loss", f"step{last}/loss", scaled(np.nan)
    yield "logits", "step0/logits", one_element
    for name in (query, norm, "model.embed_tokens.weight"):
        yield "gradient", f"{middle}/gradient/{name}", one_element
        yield "gradient", f"{middle}/gradient/{name}", scaled(1.05)
        yield "optimizer weight", f"{middle}/gradient/{name}", scaled(-1)
        yield "optimizer weight", f"final/weight/{name}", scaled(strict)
        yield "free final weight", f"final/weight/{name}", one_element
    yield "norm", f"{middle}/norm", scaled(1.05)
    yield "dumped norm", f"{middle}/norm", scaled(1.0001)
    yield "free", f"step{last}/loss", scaled(1.05)
    yield "free", "step0/loss", scaled(1.05)
    yield "optimizer weight", "learning_rates", lambda rates: [1.01 * rate for rate in rates]
    yield "optimizer weight", "beta1", lambda beta: beta - 0.01
    yield "optimizer weight", "beta2", lambda beta: beta - 0.01
    if config.weight_decay:
        yield "optimizer weight", "weight_decay", lambda decay: 1.2 * decay
    yield "gradient", "rope_theta", lambda theta: theta / 2
    yield "logits", "norm_epsilon", lambda epsilon: epsilon + 1e-1
    yield "layout", f"final/weight/{query}", lambda array: None
    yield "layout", f"final/weight/{query}", lambda array: array[1:]
    if config.is_qat(config.fp_steps) and config.qat_steps > 0:
        switch = f"step{config.fp_steps}"
        for name in (query, "model.embed_tokens.weight"):
            yield "scale initialization", f"{switch}/scale/{name}", scaled(strict)
            yield "scale_gradient", f"step{last}/scale_gradient/{name}", scaled(1.05)
            yield "scale_gradient", f"step{last}/scale_gradient/{name}", one_element
            yield "optimizer scale", f"final/scale/{name}", scaled(strict)
            yield "free final scale", f"final/scale/{name}", one_element
        yield "optimizer scale", "scale_learning_rates", lambda rates: [1.05 * rate for rate in rates]


def check_of(category):
    """The comparison that makes the checks of a category."""
    for words, method in (
        (("layout",), Comparison.check_layout),
        (("scale initialization",), Comparison.check_scale_initialization),
        (("optimizer", "dumped norm"), Comparison.check_optimizer),
        (("free",), Comparison.check_free_running),
    ):
        if category.startswith(words):
            return method
    return Comparison.check_teacher_forced


def self_test(config, tensors):
    """Damages copies of a dump; returns (found, missed)."""
    found = missed = 0
    for category, target, damage in damages(config):
        damaged_config, damaged = config, dict(tensors)
        if target in Comparison(config, tensors).tensors:
            damaged[target] = damage(tensors[target].copy())
            if damaged[target] is None:
                del damaged[target]
        else:
            damaged_config = dataclasses.replace(config, **{target: damage(getattr(config, target))})
        comparison = Comparison(damaged_config, damaged)
        check_of(category)(comparison)
        noticed = any(failed(check) and check.category.startswith(category) for check in comparison.checks)
        found, missed = found + noticed, missed + (not noticed)
        if not noticed:
            print(f"not noticed: {target} damaged, expected a failure of '{category}'")
    return found, missed


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", help="holds parity.json and parity.safetensors")
    parser.add_argument("--self-test", action="store_true", help="check that damaged copies of the dump fail")
    arguments = parser.parse_args()
    try:
        config, tensors = read_dump(arguments.directory)
    except (OSError, ValueError) as error:
        print(f"compare.py: error: {error}", file=sys.stderr)
        return 2
    if arguments.self_test:
        passes, failures = self_test(config, tensors)
    else:
        checks = Comparison(config, tensors).run().checks
        print_table(checks)
        failures = sum(map(failed, checks))
        passes = len(checks) - failures
    print(f"{passes} passed, {failures} failed")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
