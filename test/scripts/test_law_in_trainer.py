#!/usr/bin/env python3
"""The two places that know the loss law, held to each other: scripts/law and `train_qat -plan -law`.

    test/scripts/test_law_in_trainer.py --program ./train_qat
"""
import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import unittest

import numpy as np

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path[:0] = [os.path.join(ROOT, "scripts"), os.path.dirname(os.path.abspath(__file__))]

import simulated_runs as simulated  # noqa: E402
from law import formula  # noqa: E402
from law.prediction import Law  # noqa: E402

SEED = int.from_bytes(os.urandom(4), "little")
program = "./train_qat"
VALUE = r"(\d+\.\d+) \[(\d+\.\d+), (\d+\.\d+)\]"
PRINTED = 6e-5   # half of the last of four digits, and rounding
ROUNDING = 1e-9  # relative: near S = 1 the optimal fraction is so small that a loss there can have 15 digits before its point


class TwoPlaces(unittest.TestCase):
    def setUp(self):
        self.random = np.random.default_rng(SEED)
        directory = tempfile.TemporaryDirectory(prefix="law_")
        self.addCleanup(directory.cleanup)
        self.path = os.path.join(directory.name, "law.json")

    def plan(self, *flags, code=0):
        command = [program, "-plan", "-vocab", "1024", "-seq_len", "64", "-batch", "8", *map(str, flags)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=120)
        self.assertEqual(result.returncode, code, result.stdout + result.stderr)
        return result.stdout if code == 0 else result.stderr

    def write(self, content):
        with open(self.path, "w", encoding="utf-8") as file:
            json.dump(content, file)

    def values(self, pattern, text):
        match = re.search(pattern, text)
        self.assertIsNotNone(match, f"{pattern} in\n{text}")
        return [float(value) for value in match.groups()]

    def same(self, value, printed, message):
        for expected, number in zip(value, printed):
            self.assertAlmostEqual(expected, number, delta=PRINTED + ROUNDING * abs(expected), msg=f"{message}, seed {SEED}")

    def test_losses_and_fractions_are_the_same(self):
        for round_ in range(12):
            by = ("loss_law", "fraction_law")[round_ % 2]
            content = simulated.law(self.random, by=by)
            self.write(content)
            law = Law(content)
            bits = float(self.random.choice([1, 1.58, 2, 3, 4, 5, 6, 8]))
            size, tokens = map(int, np.exp(self.random.uniform(np.log([1e5, 1e8]), np.log([3e8, 1e11]))))
            used = float(self.random.uniform(0.02, 0.9))
            text = self.plan("-law", self.path, "-n", size, "-tokens", tokens, "-b", f"{bits:g}", "-qat_frac", f"{used:.17g}")
            parameters = int(re.search(r"parameters N +([\d,]+)", text)[1].replace(",", ""))
            trained = int(re.search(r"tokens D +([\d,]+)", text)[1].replace(",", ""))
            fraction = law.fraction(parameters, trained, bits)
            message = f"N {parameters} D {trained} B {bits} {by}"
            self.same(fraction, self.values(rf"optimal fraction +{VALUE}", text), message)
            at_best = law.loss(parameters, trained, bits, fraction.value)
            self.same(at_best, self.values(rf"{VALUE} at the optimal fraction", text), message)
            self.same(law.loss(parameters, trained, bits, used), self.values(rf"{VALUE} at the fraction", text), message)
            self.same(law.loss(parameters, trained, bits, 0.1), self.values(rf"{VALUE} at 10%", text), message)
            self.same(law.full_precision(parameters, trained), self.values(rf"{VALUE} in full precision", text), message)

    def test_automatic_fraction_is_the_laws(self):
        content = simulated.law(self.random, by="loss_law")
        self.write(content)
        text = self.plan("-law", self.path, "-n", "0.5M", "-tokens", "40M", "-b", "2")
        parameters = int(re.search(r"parameters N +([\d,]+)", text)[1].replace(",", ""))
        trained = int(re.search(r"tokens D +([\d,]+)", text)[1].replace(",", ""))
        best = formula.optimal_fraction(content["loss_law"]["coefficients"], parameters, trained, 2)
        steps = [int(n) for n in re.findall(r"^  (?:FP|QAT) .*\) +(\d+)", text, re.MULTILINE)]
        self.assertAlmostEqual(steps[1] / sum(steps), best, delta=1.0 / sum(steps))

    def test_automatic_bits_are_the_laws(self):
        content = simulated.law(self.random, by="loss_law")
        self.write(content)
        law = Law(content)
        text = self.plan("-law", self.path, "-n", "1M", "-tokens", "60M", "-b", "auto")
        parameters = int(re.search(r"parameters N +([\d,]+)", text)[1].replace(",", ""))
        trained = int(re.search(r"tokens D +([\d,]+)", text)[1].replace(",", ""))
        best = min((1, 1.58, 2, 3, 4, 5, 6), key=lambda bits: law.width(parameters, trained, bits).loss.value)
        self.assertEqual(float(re.search(r"bits B +([\d.]+)", text)[1]), best)

    def test_automatic_sizes_are_the_laws(self):
        """Every row of the choice: loss and fraction by the law in Python, and the chosen one is the least of them."""
        content = simulated.law(self.random, by="loss_law")
        self.write(content)
        law = Law(content)
        text = self.plan("-law", self.path, "-n", "auto", "-flops", "3e14", "-b", "auto", "-memory", "300KB")
        rows = re.findall(rf"^  ([\d.]+) +([\d.]+[KM]) +([\d.]+[KMB]) +\S+ +(\d\.\d+)  {VALUE} +(\S+ \S+)( +chosen)?", text,
                          re.MULTILINE)
        self.assertGreater(len(rows), 3, text)
        units = {"K": 1e3, "M": 1e6, "B": 1e9}
        number = lambda shown: float(shown[:-1]) * units[shown[-1]]
        for bits, parameters, tokens, fraction, value, _, _, size, chosen in rows:
            # Sizes are printed in a few digits, by which losses change little.
            expected = law.loss(number(parameters), number(tokens), float(bits), float(fraction)).value
            self.assertAlmostEqual(float(value), expected, delta=0.02 * expected, msg=text)
            best = formula.optimal_fraction(law.sets[0], number(parameters), number(tokens), float(bits))
            self.assertAlmostEqual(float(fraction), best, delta=0.01, msg=text)
            self.assertLessEqual(number(parameters) * float(bits) / 8, 300e3 * 1.05, text)
            if chosen:
                self.assertEqual(value, min(row[4] for row in rows), text)

    def test_bits_that_fit_into_a_memory(self):
        content = simulated.law(self.random, by="loss_law")
        self.write(content)
        text = self.plan("-law", self.path, "-n", "1M", "-tokens", "60M", "-b", "auto", "-memory", "300KB")
        self.assertLessEqual(float(re.search(r"bits B +([\d.]+)", text)[1]), 2)
        self.assertIn("does not fit", text)

    def test_what_the_law_can_not_say(self):
        content = simulated.law(self.random, by="loss_law")
        content["fitted_range"]["full_precision"] = None
        self.write(content)
        self.assertIn("none in full precision: no fitted run was", self.plan("-law", self.path, "-n", "0.5M", "-tokens", "4M",
                                                                             "-b", "2"))
        self.assertIn("-b 16", self.plan("-law", self.path, "-n", "auto", "-flops", "1e14", "-b", "16", code=2))
        content["fitted_range"]["parameters"] = [5e5, 5e5]
        self.write(content)
        for size in ("1M", "auto"):
            error = self.plan("-law", self.path, "-n", size, *(["-flops", "1e14"] if size == "auto" else ["-tokens", "4M"]),
                              "-b", "2", code=2)
            self.assertIn("was fitted on one size, 500.0K parameters", error)
            self.assertEqual(error.count("\n"), 1, error)

    def test_a_fit_by_the_tool_is_read_by_the_trainer(self):
        results = self.path + ".results.jsonl"
        simulated.write(results, simulated.records(self.random, tokens=simulated.TOKENS[:2], seeds=(1,)))
        subprocess.run([sys.executable, os.path.join(ROOT, "scripts", "scaling_law.py"), "fit", results, "-o", self.path,
                        "--starts", "8", "--bootstrap", "20"], check=True, capture_output=True, timeout=600)
        text = self.plan("-law", self.path, "-n", "0.5M", "-tokens", "4M", "-b", "2")
        value = self.values(rf"{VALUE} at the optimal fraction", text)
        self.assertTrue(value[1] <= value[0] + 0.02 and value[0] <= value[2] + 0.02, text)
        self.assertIn("extrapolated      nothing", self.plan("-law", self.path, "-n", "0.5M", "-tokens", "3.9M", "-b", "2",
                                                             "-cooldown", "classic", "-qat_frac", "0.2"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", default=program)
    options, rest = parser.parse_known_args()
    program = os.path.abspath(options.program)
    print(f"random seed {SEED}", file=sys.stderr)
    unittest.main(argv=[sys.argv[0], *rest])
