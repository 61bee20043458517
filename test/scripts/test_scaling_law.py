#!/usr/bin/env python3
"""scripts/scaling_law.py and its parts, on runs simulated from known laws.

    test/scripts/test_scaling_law.py
"""
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import unittest

import numpy as np

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SCRIPT = os.path.join(ROOT, "scripts", "scaling_law.py")
sys.path[:0] = [os.path.join(ROOT, "scripts"), os.path.dirname(os.path.abspath(__file__))]

import simulated_runs as simulated  # noqa: E402
from law import (bootstrap, comparison, cooldown, formula, fraction_fit, intervals, loss_fit, optima,  # noqa: E402
                 prediction, records, report)

SEED = int.from_bytes(os.urandom(4), "little")  # fresh data in every run


class LawTest(unittest.TestCase):
    def setUp(self):
        self.random = np.random.default_rng(SEED)
        directory = tempfile.TemporaryDirectory(prefix="law_")
        self.addCleanup(directory.cleanup)
        self.directory = directory.name
        self.results = os.path.join(self.directory, "results.jsonl")

    def runs(self, **changes):
        simulated.write(self.results, simulated.records(self.random, **changes))
        return records.select(records.read_runs([self.results]))[0]

    def random_coefficients(self):
        return {name: float(value * np.exp(self.random.normal(0, 0.3))) for name, value in simulated.TRUTH.items()}

    def call(self, *arguments, code=0):
        result = subprocess.run([sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True, timeout=600)
        self.assertEqual(result.returncode, code, result.stdout + result.stderr)
        return result.stdout if code == 0 else result.stderr


class Formula(LawTest):
    def test_loss_is_the_formula(self):
        for _ in range(20):
            c = self.random_coefficients()
            n, fp, qat, b = np.exp(self.random.uniform(np.log([1e5, 1e6, 1e5, 1]), np.log([1e10, 1e12, 1e12, 8])))
            s_fp, s_qat = fp / (n * b / 8), qat / (n * b / 8)
            expected = (c["alpha"] + c["beta"] / (fp + qat) ** c["gamma"] + c["zeta"] / n ** c["eta"]
                        + c["theta"] * 2 ** (-c["kappa"] * b)
                        + c["phi"] * 2 ** (-c["chi"] * b) / (n ** c["psi"] * s_qat ** c["omega"])
                        + c["lambda"] * 2 ** (-c["mu"] * b) / (n ** c["nu"] * s_fp ** c["xi"] * s_qat ** c["rho"]))
            self.assertAlmostEqual(float(formula.loss(c, n, fp, qat, b)) / expected, 1, 12)
            expected = c["alpha"] + c["beta"] / fp ** c["gamma"] + c["zeta"] / n ** c["eta"]
            self.assertAlmostEqual(float(formula.full_precision_loss(c, n, fp)) / expected, 1, 12)

    def test_optimal_fraction_is_the_least_loss(self):
        for _ in range(20):
            c = self.random_coefficients()
            n, d, b = np.exp(self.random.uniform(np.log([1e5, 1e6, 1]), np.log([1e9, 1e11, 8])))
            best = formula.optimal_fraction(c, n, d, b)
            brute = simulated.true_fraction(n, d, b, c)
            self.assertAlmostEqual(best, brute, delta=2e-4)
            self.assertAlmostEqual(float(formula.optimal_fractions(c, n, d, b)), brute, delta=2e-3)
            self.assertLessEqual(formula.loss_at(c, n, d, b, best), formula.loss_at(c, n, d, b, brute) + 1e-12)

    def test_fraction_law_is_the_papers(self):
        self.assertAlmostEqual(float(formula.fraction_law(6.7297, 40.25)), 0.1618, 4)
        s = 10 ** self.random.uniform(0.1, 4)
        self.assertAlmostEqual(float(formula.fraction_law(5.0, s)), math.exp(math.log(s) - 5 / math.log(s)) / s, 12)
        self.assertEqual(float(formula.fraction_law(5.0, 0.7)), 0.0)


class LossFit(LawTest):
    def test_gradient_is_the_finite_difference(self):
        of = loss_fit.problem(self.runs())
        for zero in loss_fit.FORMS.values():
            free = tuple(name for name in formula.NAMES if name not in zero)
            point = loss_fit.with_offsets(loss_fit.random_start(free, of, self.random), of)
            point[len(free):] = self.random.normal(0, 1, len(point) - len(free))
            self.assertEqual(len(point) - len(free), len(simulated.PARAMETERS) * len(simulated.TOKENS) * len(simulated.SEEDS))
            gradient = loss_fit.objective(point, free, of)[1]
            for i in range(len(point)):
                step = np.zeros(len(point))
                step[i] = 1e-5
                up, down = (loss_fit.objective(point + sign * step, free, of)[0] for sign in (1, -1))
                self.assertAlmostEqual((up - down) / 2e-5, gradient[i], delta=1e-5 * abs(gradient).max(), msg=(SEED, i))

    def test_points_and_coefficients_are_inverse(self):
        of = loss_fit.problem(self.runs())
        c = self.random_coefficients()
        point = loss_fit.to_point(c, formula.NAMES, of)
        for name, value in loss_fit.to_coefficients(point, formula.NAMES, of).items():
            self.assertAlmostEqual(value / c[name], 1, 9, name)

    def test_recovers_fractions_and_losses_from_noisy_runs(self):
        truth = self.random_coefficients() | {name: simulated.TRUTH[name] for name in ("kappa", "chi", "mu", "xi", "omega")}
        runs = self.runs(truth=truth, noise=0.002, trunk_noise=0.002)
        fitted = loss_fit.fit(runs, (), starts=16)
        for n in simulated.PARAMETERS:
            for d in simulated.TOKENS:
                for b in simulated.BITS:
                    self.assertAlmostEqual(formula.optimal_fraction(fitted.coefficients, n, d, b),
                                           simulated.true_fraction(n, d, b, truth), delta=0.02, msg=(SEED, n, d, b))
        error = np.log(loss_fit.predict(fitted.coefficients, runs) / runs.loss)
        self.assertLess(np.sqrt(np.mean(error**2)), 0.0025)

    def test_intervals_cover_the_true_loss_and_fraction(self):
        """Of two data sets, in 54 places each: nominal 90%."""
        hits = []
        for _ in range(2):
            runs = self.runs(noise=0.004, trunk_noise=0.008)
            fitted = loss_fit.fit(runs, (), starts=16)
            sets = bootstrap.refits(runs, fitted, 24)
            for n in simulated.PARAMETERS:
                for d in simulated.TOKENS:
                    for b in (1, 2, 3):
                        low, high = intervals.interval([formula.loss_at(c, n, d, b, 0.2) for c in sets])
                        hits.append(low <= formula.loss_at(simulated.TRUTH, n, d, b, 0.2) <= high)
                        low, high = intervals.interval([formula.optimal_fraction(c, n, d, b) for c in sets])
                        hits.append(low <= simulated.true_fraction(n, d, b) <= high)
        self.assertGreater(np.mean(hits), 0.65, SEED)  # the places share what is wrong

    def test_flat_exponents_are_said_to_be_unidentified(self):
        truth = simulated.TRUTH | {"theta": 1e-6}  # without its coefficient kappa does nothing
        runs = self.runs(truth=truth, noise=0.002, trunk_noise=0.001)
        fitted = loss_fit.fit(runs, (), starts=12)
        self.assertTrue(fitted.converged)
        flat = loss_fit.undetermined(runs, fitted)
        self.assertIn("kappa", flat, SEED)
        self.assertNotIn("xi", flat, SEED)
        names = bootstrap.unidentified(runs, fitted, [fitted.coefficients] * 20)
        self.assertEqual(set(names), {*flat, *loss_fit.absent(runs, fitted)})
        self.assertNotIn("lambda", names)

    def test_the_scale_is_that_of_the_residuals(self):
        for noise in (0.001, 0.01):
            fitted = loss_fit.fit(self.runs(noise=noise, trunk_noise=0.0), (), starts=8)
            self.assertAlmostEqual(fitted.scale / (noise / 3), 1, delta=0.5, msg=SEED)

    def test_misfits_are_those_of_cells(self):
        lines = simulated.records(self.random, noise=1e-4, trunk_noise=0.0)
        for line in lines:
            if (line["n"], line["tokens"], line["b"]) in ((500_000, 4_000_000, 2), (250_000, 1_500_000, 16)):
                line["validation_loss"] *= 1.05
        simulated.write(self.results, lines)
        runs = records.select(records.read_runs([self.results]))[0]
        misfits, in_full_precision = bootstrap.cell_misfits(runs, loss_fit.fit(runs, (), starts=8))
        triples = [tuple(row) for row in records.cells(runs)[1] if row[2] != 16]
        self.assertEqual(triples[int(np.argmax(misfits))], (500_000, 4_000_000, 2))
        self.assertGreater(misfits.max(), 0.04)
        self.assertEqual(int(np.argmax(in_full_precision)), 0)
        self.assertGreater(in_full_precision[0], 0.03)
        quantized = records.take(runs, runs.bits != 16)
        self.assertEqual(list(bootstrap.cell_misfits(quantized, loss_fit.fit(quantized, (), starts=4))[1]), [0.0])

    def test_trunk_luck_is_measured(self):
        runs = self.runs(noise=1e-4, trunk_noise=0.02, seeds=(1, 2, 3, 4), tokens=(10**6, 3 * 10**6, 10**7, 3 * 10**7))
        self.assertAlmostEqual(loss_fit.trunk_deviation(runs) / np.mean(0.02 / runs.loss), 1, delta=0.4)
        self.assertEqual(loss_fit.trunk_deviation(self.runs(seeds=(1,))), 0)


class Optima(LawTest):
    def test_minimum_of_a_curve(self):
        f = np.linspace(0.0026, 0.9974, 99_001)
        for _ in range(20):
            shape = optima.Shape(*self.random.uniform(0.1, 3, 2))
            a, c = np.exp(self.random.normal(0, 1.0, 2))
            brute = f[np.argmin(a * f**-shape.p + c * (1 - f) ** -shape.q)]
            self.assertAlmostEqual(optima.minimum(a, c, shape)[0], brute, delta=1e-3)
        self.assertEqual(optima.minimum(0.0, 1.0, shape)[0], 0)
        self.assertEqual(optima.minimum(1.0, 0.0, shape)[0], 1)

    def test_optima_are_close_and_their_intervals_cover(self):
        hits, errors = [], []
        for _ in range(8):
            for o in optima.measure(self.both(self.runs(noise=0.004))):
                truth = simulated.true_fraction(o.parameters, o.tokens, o.bits)
                hits.append(o.low <= truth <= o.high)
                errors.append(abs(o.fraction - truth))
        self.assertLess(np.mean(errors), 0.02, SEED)
        self.assertGreater(np.mean(hits), 0.78, SEED)  # nominal 90%
        self.assertLess(np.mean(hits), 0.98, SEED)     # and not because they are wide

    def both(self, runs):
        return records.take(runs, records.quantization_aware(runs))

    def test_shifts_of_a_seed_do_not_move_the_optimum(self):
        lines = simulated.records(self.random, noise=1e-4, trunk_noise=0)
        moved = [line | {"validation_loss": line["validation_loss"] + 0.5 * (line["seed"] == 2)} for line in lines]
        found = []
        for version in (lines, moved):
            simulated.write(self.results, version)
            found.append(optima.measure(self.both(records.select(records.read_runs([self.results]))[0])))
        for first, second in zip(*found):
            self.assertAlmostEqual(first.fraction, second.fraction, delta=1e-3)

    def test_losses_that_are_flat_or_fall_to_both_sides_show_no_optimum(self):
        of_budget = {1_500_000: lambda f: 3.0, 4_000_000: lambda f: 3 - 4 * (f - 0.3) ** 2}
        lines = [line | {"validation_loss": of_budget[line["tokens"]](line["qat_frac"]) + self.random.normal(0, 1e-3)}
                 if line["tokens"] in of_budget and line["n"] == 500_000 else line for line in simulated.records(self.random)]
        simulated.write(self.results, lines)
        found, silent = optima.with_minimum(optima.measure(self.both(records.select(records.read_runs([self.results]))[0])))
        self.assertLessEqual({(o.parameters, o.tokens) for o in silent}, {(500_000, tokens) for tokens in of_budget}, SEED)
        count = {tokens: sum(o.tokens == tokens for o in silent) for tokens in of_budget}
        self.assertEqual((count[4_000_000], len(found) + len(silent)), (4, 36), SEED)
        self.assertGreaterEqual(count[1_500_000], 2, SEED)  # noise alone may look like a minimum, at times
        table = report.optima_table(found, silent, 5.5)
        self.assertEqual(table.count(" -   "), len(silent), table)
        self.assertIn(f"the losses of {len(silent)} cells are flat or fall to both sides", table)

    def test_an_optimum_outside_of_the_measured_fractions_is_said_to_be(self):
        found = optima.measure(self.both(self.runs(fractions=(0.6, 0.7, 0.8, 0.9), noise=1e-4)))
        self.assertFalse(any(optima.inside(o) for o in found))


def optimum(s, fraction, error, bits=2.0, first=0.02, last=0.8):
    return optima.Optimum(1e6, s * bits / 8 * 1e6, bits, s, fraction, fraction - 1.645 * error, fraction + 1.645 * error, first,
                          last, 3.0, None, 0.004, 14)


class FractionFit(LawTest):
    def simulated_optima(self, a, error=0.02, count=24, bits=(1.0, 2.0, 3.0)):
        s = np.exp(self.random.uniform(np.log(15), np.log(900), count))
        return [optimum(x, float(formula.fraction_law(a, x) + self.random.normal(0, error)), error, bits[i % len(bits)])
                for i, x in enumerate(s)]

    def test_constant_is_recovered_and_its_interval_covers(self):
        hits, errors = 0, []
        for _ in range(40):
            a = self.random.uniform(4, 8)
            constant = fraction_fit.fit_constant(self.simulated_optima(a), draws=100)
            hits += constant.low <= a <= constant.high
            errors.append(abs(constant.value - a))
        self.assertGreaterEqual(hits, 28, SEED)  # of 40 at 90%; fewer has a chance of 1e-4
        self.assertLess(np.mean(errors), 0.2, SEED)

    def test_a_censored_optimum_pulls_only_to_its_side(self):
        of = self.simulated_optima(6.0, error=0.005)
        below = optimum(20.0, 0.0, 0.005, first=0.2)  # the law says 0.135, below 0.2: no contradiction
        self.assertAlmostEqual(fraction_fit.solve(*fraction_fit.columns(of)),
                               fraction_fit.solve(*fraction_fit.columns([*of, below])), delta=0.05)
        self.assertEqual(list(fraction_fit.errors(np.array([0.135]), [below])), [0.0])
        self.assertAlmostEqual(fraction_fit.errors(np.array([0.3]), [below])[0], 0.1)

    def test_power_of_the_size(self):
        for power in (0.0, 1.0):
            found = []
            for size in (250e3, 500e3, 1e6) * 8:
                o = optimum(np.exp(self.random.uniform(np.log(15), np.log(900))), 0.0, 0.004)._replace(parameters=size)
                s = fraction_fit.sized_s([o], power, 5e5)[0]
                found.append(o._replace(fraction=float(formula.fraction_law(5.0, s)) + self.random.normal(0, 0.004)))
            law = fraction_fit.fit_sized_law(found)
            self.assertAlmostEqual(law.power, power, delta=0.2, msg=SEED)
            value, low, high = fraction_fit.power_of_size(found, draws=20)
            self.assertTrue(low <= value <= high and high - low < 0.6, SEED)
        self.assertIsNone(fraction_fit.power_of_size(found[::3]))

    def test_rank_correlation_and_one_curve(self):
        rho, low, high = fraction_fit.rank_correlation(self.simulated_optima(6.0, error=0.005))
        self.assertGreater(low, 0.85)
        self.assertTrue(low <= rho <= high)
        flat = [o._replace(fraction=float(self.random.uniform(0.1, 0.4))) for o in self.simulated_optima(6.0)]
        self.assertLess(fraction_fit.rank_correlation(flat)[1], 0.5)
        together = fraction_fit.one_curve_test(self.simulated_optima(6.0), "bits")
        self.assertLess(together[0], together[1] + 10)  # chance of more: 1e-3
        apart = fraction_fit.one_curve_test(self.simulated_optima(4.0, bits=(1.0,)) + self.simulated_optima(8.0, bits=(3.0,)),
                                            "bits")
        self.assertGreater(apart[0], apart[1] + 10)


class Comparing(LawTest):
    def test_rows_and_recommendation(self):
        truth = simulated.TRUTH | {"psi": 0.0, "nu": 0.0}
        runs = self.runs(truth=truth, noise=0.003, trunk_noise=0.003)
        found = optima.measure(records.take(runs, records.quantization_aware(runs)))
        compared = comparison.Comparison(runs, found, 8)
        self.assertEqual(list(compared.splits), ["largest N", "largest D", "2 bits"])
        rows = {row.name: row for row in compared.rows()}
        full, blind = rows["full law"], rows["no interaction term"]
        self.assertEqual((full.parameters, rows["no N in the QAT terms"].parameters, blind.parameters), (16, 14, 11))
        self.assertLess(full.aic, blind.aic)
        self.assertLess(full.fraction_error, 0.03)
        self.assertGreater(blind.fraction_error, 0.2)  # without the interaction nothing speaks for full precision
        self.assertGreater(rows[comparison.PER_BIT].loss_error, full.loss_error)
        self.assertIsNone(rows[comparison.PER_BIT].held_out["2 bits"].loss_error)
        self.assertLess(full.held_out["largest D"].loss_error, 0.1)  # 2.5 times the budgets that were fitted
        advice = comparison.recommend(list(rows.values()))
        self.assertNotIn(advice.form, ("no interaction term",))
        self.assertEqual(advice.remark, "")
        same = [row if row.name != comparison.CONSTANT else row._replace(held_out={
            name: held._replace(fraction_error=0.0) for name, held in row.held_out.items()}) for row in rows.values()]
        self.assertIn("do not show that f* depends on S", comparison.recommend(same).remark)

    def test_likelihood_is_that_of_normal_residuals_that_share_luck(self):
        trunk = self.random.integers(0, 4, 30)
        trunk[:4] = range(4)
        residual = self.random.normal(0, 0.01, 30)
        least = np.inf
        for deviation in np.exp(np.linspace(np.log(1e-3), np.log(0.1), 4000)):
            covariance = deviation**2 * np.eye(30) + 0.02**2 * (trunk[:, None] == trunk)
            sign, determinant = np.linalg.slogdet(covariance)
            least = min(least, determinant + residual @ np.linalg.solve(covariance, residual))
        self.assertAlmostEqual(comparison.minus_two_log_likelihood(residual, trunk, 0.02), least, delta=1e-3)

    def test_cooldowns_are_compared_in_pairs(self):
        lines = simulated.records(self.random, noise=0.001, trunk_noise=0.1)
        fused = [line | {"cooldown_used": "fused", "job": line["job"] + " fused",
                         "validation_loss": line["validation_loss"] + (0.02 if line["b"] < 2 else -0.03)} for line in lines]
        simulated.write(self.results, lines + fused)
        found = {d.bits: d for d in cooldown.compare(records.read_runs([self.results]))}
        trunks = len(simulated.PARAMETERS) * len(simulated.TOKENS) * len(simulated.SEEDS)
        self.assertEqual((found[1].pairs, found[1].trunks), (7 * trunks, trunks))
        self.assertAlmostEqual(found[1].difference, 0.02, delta=1e-9)
        self.assertAlmostEqual(found[3].high, -0.03, delta=1e-9)
        # Fractions that are best for one of them only: the best of each is compared.
        fused = [line | {"validation_loss": line["validation_loss"] + 10 * (line["qat_frac"] != simulated.FRACTIONS[0])}
                 for line in lines if line["b"] == 2]
        for line in fused:
            line.update(cooldown_used="fused", job=line["job"] + " fused")
        lines = [line for line in lines if line["b"] == 2 and line["seed"] == 1 and line["n"] == simulated.PARAMETERS[0]]
        fused = [line for line in fused if line["seed"] == 1 and line["n"] == simulated.PARAMETERS[0]]
        simulated.write(self.results, lines + fused)
        expected = []
        for tokens in simulated.TOKENS:
            losses = {line["qat_frac"]: line["validation_loss"] for line in lines if line["tokens"] == tokens}
            expected.append(losses[simulated.FRACTIONS[0]] - min(losses.values()))
        self.assertAlmostEqual(cooldown.compare(records.read_runs([self.results]))[0].difference, np.mean(expected), 12)


class Predicting(LawTest):
    def test_wasted_and_matching_tokens(self):
        content = simulated.law(self.random, "loss_law", vary=0, zeros=())
        law = prediction.Law(content)
        for _ in range(5):
            c, d, b = law.sets[0], float(self.random.uniform(2e6, 2e7)), float(self.random.choice([1, 2, 4]))
            share = law.wasted(c, 5e5, d, b, 0.1)
            reached = law.best_loss(c, 5e5, d * (1 - share), b)
            self.assertAlmostEqual(reached, float(formula.loss_at(c, 5e5, d, b, 0.1)), 8)
            self.assertGreater(share, 0)
            tokens = law.matching_tokens(c, 5e5, d, b)
            if math.isinf(tokens):
                self.assertGreater(law.best_loss(c, 5e5, 1e4 * d, b), formula.full_precision_loss(c, 5e5, d))
            else:
                self.assertAlmostEqual(law.best_loss(c, 5e5, tokens, b), formula.full_precision_loss(c, 5e5, d), 8)
        best = formula.optimal_fraction(c, 5e5, d, b)
        self.assertAlmostEqual(law.wasted(c, 5e5, d, b, best), 0, 6)
        # One f* for both figures: where the law of the fraction gives it, tokens are counted with that.
        content["optimal_fraction"] = "fraction_law"
        law, share = prediction.Law(content), 0.0
        share = law.wasted(c, 5e5, 8e6, 1, 0.1)
        f = float(formula.fraction_law(5.5, 8e6 * (1 - share) / (5e5 / 8)))
        self.assertAlmostEqual(formula.loss_at(c, 5e5, 8e6 * (1 - share), 1, f), formula.loss_at(c, 5e5, 8e6, 1, 0.1), 8)

    def test_intervals_hold_misfits_and_few_infinities(self):
        content = simulated.law(self.random, "loss_law", vary=0, zeros=())
        law = prediction.Law(content)
        value = law.loss(5e5, 4e6, 2, 0.2)
        expected = [float(formula.loss_at(c, 5e5, 4e6, 2, 0.2)) * math.exp(c["loss_misfit"]) for c in law.sets[1:]]
        self.assertAlmostEqual(value.low, np.percentile(expected, 5), 12)
        self.assertAlmostEqual(value.high, np.percentile(expected, 95), 12)
        values = np.arange(200.0)
        values[150] = np.inf
        low, high = intervals.interval(values)
        self.assertTrue(np.isfinite(high) and low < high)
        self.assertTrue(np.isinf(intervals.interval(np.where(values > 100, np.inf, values))[1]))

    def test_what_a_law_can_not_say(self):
        path = os.path.join(self.directory, "law.json")
        content = simulated.law(self.random, "fraction_law", vary=0, zeros=())
        content["fitted_range"]["full_precision"] = None

        def write():
            with open(path, "w", encoding="utf-8") as file:
                json.dump(content, file)

        write()
        text = self.call("predict", path, "-n", "1M", "-tokens", "3M", "-b", "2", "8")
        self.assertIn("no fitted run was in full precision", text)
        self.assertNotIn("at S <= 1", text)
        self.assertIn("at S <= 1 there is no f*", self.call("predict", path, "-n", "1M", "-tokens", "0.9M", "-b", "8"))
        text = self.call("predict", path, "-n", "500K", "-tokens", "3M", "--memory", "150KB", "-b", "1", "2", "4")
        self.assertIn("4 bits: 500K weights take 250K bytes: too many", text)
        self.assertRegex(text, r"best in 150K bytes: [12] bits, N = 500K")
        self.assertIn("smaller -n or more memory",
                      self.call("predict", path, "-n", "500K", "-tokens", "3M", "--memory", "10KB", code=2))
        content["fitted_range"]["parameters"] = [5e5, 5e5]
        write()
        self.call("predict", path, "-n", "505K", "-tokens", "3M")
        self.assertIn("one size, N = 500K", self.call("predict", path, "-n", "1M", "-tokens", "3M", code=2))

    def test_command(self):
        path = os.path.join(self.directory, "law.json")
        for by, expected in (("loss_law", formula.optimal_fraction(simulated.TRUTH, 4e5, 3e6, 2)),
                             ("fraction_law", float(formula.fraction_law(5.5, 3e6 / 1e5)))):
            with open(path, "w", encoding="utf-8") as file:
                json.dump(simulated.law(self.random, by, vary=0, zeros=()), file)
            text = self.call("predict", path, "-n", "400K", "-tokens", "3M")
            line = next(line for line in text.splitlines() if line.split()[:1] == ["2"])
            self.assertAlmostEqual(float(line.split()[3]), expected, delta=6e-4)
            self.assertNotIn("extrapolated", text)
        text = self.call("predict", path, "-n", "396M", "-tokens", "8B", "-b", "4")
        self.assertIn("extrapolated: N = 396M is 396 times the largest fitted, 1M", text)
        self.assertIn("extrapolated: D = 8B", text)
        text = self.call("predict", path, "--memory", "100KB", "-tokens", "3M")
        self.assertIn("best in 100K bytes:", text)

    def test_mistakes_get_one_line(self):
        path = os.path.join(self.directory, "law.json")
        for change, words in (({"format": "other"}, "not a law of this version"),
                              ({"fraction_law": {}}, "missing"),
                              ({"optimal_fraction": "dice"}, "optimal_fraction"),
                              ({"loss_law": {"coefficients": simulated.TRUTH, "bootstrap": {}}}, "alpha")):
            with open(path, "w", encoding="utf-8") as file:
                json.dump(simulated.law(self.random, "loss_law") | change, file)
            error = self.call("predict", path, "-n", "1M", "-tokens", "8M", code=2)
            self.assertEqual(error.count("\n"), 1, error)
            self.assertIn(words, error)
        self.assertIn("No such file", self.call("predict", path + "x", "-n", "1M", "-tokens", "8M", code=2))


class Fitting(LawTest):
    def test_command_from_runs_to_plots(self):
        simulated.write(self.results, simulated.records(self.random, noise=0.003, tokens=simulated.TOKENS[:2]))
        law, plots = os.path.join(self.directory, "deep", "law.json"), os.path.join(self.directory, "plots")
        text = self.call("fit", self.results, "-o", law, "--plots", plots, "--starts", 8, "--bootstrap", 20)
        for words in ("rank correlation of f* and S", "recommended:", "a at 2 bits", "refits to resampled runs: 20 of 20"):
            self.assertIn(words, text)
        self.assertEqual(sorted(os.listdir(plots)),
                         sorted(name + ".png" for name in ("fraction_over_s", "predicted_over_measured", "loss_over_fraction",
                                                           "iso_loss", "best_bits_over_memory", "wasted_over_s")))
        for name in os.listdir(plots):
            self.assertGreater(os.path.getsize(os.path.join(plots, name)), 10_000)
        self.assertIn("0.", self.call("predict", law, "-n", "0.5M", "-tokens", "4M"))

    def test_bad_runs_get_one_line(self):
        good = simulated.records(self.random, parameters=(250_000, 500_000), tokens=(1_500_000, 4_000_000), seeds=(1,))
        changed = lambda **changes: [good[0] | changes, *good[1:]]
        quantized = [line for line in good if line["b"] != 16]
        cases = (
            (changed(validation_loss=None), "validation_loss of the run"),
            (changed(validation_loss=float("nan")), "validation_loss of the run"),
            (changed(vocabulary=2048), "different tokenizers"),
            (changed(data="fedcba9876543210"), "different data"),
            (changed(tokens=10**400), "tokens of the run"),
            (changed(seed="a"), "seed of the run"),
            (changed(data=7), "data of the run"),
            (changed(b=32), "neither 1 to 8 nor 16"),
            (changed(qat_tokens=0), "not fp_tokens + qat_tokens"),
            (changed(lr=1e-3), "different learning rates"),
            ([*good, good[0] | {"job": "another"}], "have the same n, tokens, b, fraction, seed and cooldown"),
            ([line for line in good if line["b"] == 2], "all runs have bits = 2"),
            ([line for line in good if line["tokens"] == 1_500_000], "all runs have D = 1.5e+06"),
            ([line for line in quantized if line["qat_frac"] in (0.08, 0.22)], "different fractions"),
            (quantized[:12], "at least 20 are needed"),
            ([line for line in good if line["b"] == 16], "no run has a full-precision and a quantization-aware phase"),
            ([line | {"status": "failed"} for line in good], "no finished run"),
        )
        for lines, words in cases:
            simulated.write(self.results, lines)
            error = self.call("fit", self.results, "-o", os.path.join(self.directory, "law.json"), code=2)
            self.assertIn(words, error)
            self.assertEqual(error.count("\n") - error.count("warning:"), 1, error)
            self.assertFalse(os.path.exists(os.path.join(self.directory, "law.json")))
        simulated.write(self.results, good)
        self.assertIn("one of the results to read", self.call("fit", self.results, "-o", self.results, code=2))
        kept = os.path.join(self.directory, "kept.json")
        with open(kept, "w", encoding="utf-8") as file:
            file.write("kept")
        self.assertIn("is there already", self.call("fit", self.results, "-o", kept, code=2))
        with open(kept, encoding="utf-8") as file:
            self.assertEqual(file.read(), "kept")
        with open(self.results, "w", encoding="utf-8") as file:
            file.write("{}\n" + json.dumps(good[0]) + "\n")
        self.assertIn("line 1: not a result of a sweep", self.call("fit", self.results, "-o", "law.json", code=2))

    def test_outputs_that_can_not_be_are_refused_before_the_work(self):
        simulated.write(self.results, simulated.records(self.random, seeds=(1,)))
        plots, law = os.path.join(self.directory, "plots"), os.path.join(self.directory, "law.json")
        os.makedirs(plots)
        figure = os.path.join(plots, "iso_loss.png")
        with open(figure, "w", encoding="utf-8") as file:
            file.write("mine")
        for arguments, words in ((["-o", ""], "names nothing"), (["-o", plots], "is a directory"), (["-o", plots + "/new/"], "names no file"),
                                 (["-o", self.results + "/law"], "Not a directory"), (["-o", law, "--plots", plots], "iso_loss.png is there"),
                                 (["-o", law, "--plots", self.results], "is no directory"), (["-o", law, "--plots", ""], "names nothing")):
            with self.subTest(arguments=arguments):
                error = self.call("fit", self.results, *arguments, code=2)
                self.assertIn(words, error)
                self.assertEqual(error.count("\n"), 1, error)
        self.assertEqual((sorted(os.listdir(self.directory)), os.listdir(plots)), (["plots", "results.jsonl"], ["iso_loss.png"]))

    def test_pipes_and_devices_are_no_files(self):
        pipe = os.path.join(self.directory, "pipe")
        os.mkfifo(pipe)
        for path, kind in (pipe, "a pipe"), ("/dev/zero", "a device"):
            for arguments in ("fit", path, "-o", "law.json"), ("predict", path, "-n", "1M", "-tokens", "10M"):
                self.assertIn(f"{path}: is {kind}, not a file", self.call(*arguments, code=2))

    def test_one_that_is_stopped_leaves_nothing_and_keeps_others_out(self):
        simulated.write(self.results, simulated.records(self.random))
        law = os.path.join(self.directory, "new", "law.json")
        for number in signal.SIGINT, signal.SIGTERM, signal.SIGHUP:
            # Whoever is started by nohup or in the background of a script inherits that these are ignored.
            process = subprocess.Popen([sys.executable, SCRIPT, "fit", self.results, "-o", law], stdout=subprocess.PIPE,
                                       stderr=subprocess.PIPE, text=True,
                                       preexec_fn=lambda: [signal.signal(number, signal.SIG_DFL) for number in (signal.SIGINT, signal.SIGHUP)])
            self.assertIn("fitting: full law", process.stdout.readline())
            if number == signal.SIGINT:
                self.assertIn(f"process {process.pid} on", self.call("fit", self.results, "-o", law, code=2))
            process.send_signal(number)
            stderr = process.communicate(timeout=30)[1]
            self.assertEqual((process.returncode, stderr.count("\n")), (128 + number, 1), stderr)
            self.assertEqual(os.listdir(self.directory), ["results.jsonl"])

    def test_runs_of_several_files_and_a_line_being_written(self):
        lines = simulated.records(self.random, seeds=(1,))
        first, second = os.path.join(self.directory, "first.jsonl"), os.path.join(self.directory, "second.jsonl")
        simulated.write(first, lines[:60])
        simulated.write(second, lines[50:])
        with open(second, "ab") as file:
            file.write(b'{"run": "\xe2\x80\xa8", "status": "failed"}\n' + json.dumps(lines[0])[:40].encode() + b"\xe2\x80")
        self.assertEqual(len(records.read_runs([first, second]).loss), len(lines))


if __name__ == "__main__":
    print(f"random seed {SEED}", file=sys.stderr)
    unittest.main()
