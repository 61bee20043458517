"""results.jsonl as a sweep would write it, from known coefficients and known noise."""
import json

import numpy as np

from law import formula

# Of the size that sweeps of small models have: f* grows from 0.1 to 0.45 over S from 15 to 600.
TRUTH = {"alpha": 1.6, "beta": 420.0, "gamma": 0.42, "zeta": 55.0, "eta": 0.33, "theta": 0.9, "kappa": 0.8,
         "phi": 1.5, "chi": 0.7, "psi": 0.01, "omega": 0.45, "lambda": 4.0, "mu": 0.02, "nu": 0.01, "xi": 0.62, "rho": 0.12}
PARAMETERS, TOKENS, BITS, SEEDS = (250_000, 500_000, 1_000_000), (1_500_000, 4_000_000, 10_000_000), (1, 1.58, 2, 3), (1, 2)
FRACTIONS = (0.04, 0.08, 0.14, 0.22, 0.32, 0.45, 0.65)


def record(parameters, tokens, bits, fraction, seed, loss, **changes):
    qat = 0 if bits == 16 else round(fraction * tokens)
    name = f"n{parameters}_t{tokens}_b{bits}_f{fraction}_s{seed}"
    return {"run": name, "job": "job of " + name, "status": "done", "reason": None, "n": parameters, "tokens": tokens, "b": bits, "qat_frac": fraction,
            "cooldown_used": "classic", "seed": seed, "vocabulary": 1024, "data": "0123456789abcdef",
            "fp_tokens": tokens - qat, "qat_tokens": qat, "losses": {"rounded_at_switch": None}, "validation_loss": loss,
            **changes}


def records(random, truth=TRUTH, noise=0.004, trunk_noise=0.01, parameters=PARAMETERS, tokens=TOKENS, bits=BITS,
            fractions=FRACTIONS, seeds=SEEDS):
    """Every combination. trunk_noise: of all runs with one (N, D, seed); noise: of each run."""
    result = []
    for n in parameters:
        for d in tokens:
            for seed in seeds:
                shift = random.normal(0, trunk_noise)
                for b in bits:
                    for f in fractions:
                        loss = float(formula.loss_at(truth, n, d, b, f)) + shift + random.normal(0, noise)
                        result.append(record(n, d, b, f, seed, loss))
                loss = float(formula.full_precision_loss(truth, n, d)) + shift + random.normal(0, noise)
                result.append(record(n, d, 16, 0, seed, loss))
    return result


def write(path, lines):
    with open(path, "w", encoding="utf-8") as file:
        for line in lines:
            file.write(json.dumps(line) + "\n")


def true_fraction(parameters, tokens, bits, truth=TRUTH):
    """By brute force."""
    f = np.linspace(0.001, 0.999, 9981)
    return float(f[np.argmin(formula.loss_at(truth, parameters, tokens, bits, f))])


def law(random, by, vary=0.2, zeros=("psi", "nu", "rho", "theta")):
    """The content of a law.json: TRUTH with its coefficients varied, up to two of `zeros` zero; by: its optimal_fraction."""
    coefficients = {name: float(value * np.exp(random.normal(0, vary))) for name, value in TRUTH.items()}
    for name in random.choice(zeros, random.integers(0, 3), replace=False) if zeros else ():
        coefficients[name] = 0.0
    count = int(random.integers(20, 60))
    samples = {name: [float(value * np.exp(random.normal(0, 0.02))) for _ in range(count)]
               for name, value in coefficients.items()}
    normal = lambda deviation, count: [float(value) for value in random.normal(0, deviation, count)]
    samples |= {"loss_misfit": normal(0.01, count), "full_precision_misfit": normal(0.03, count),
                "fraction_misfit": normal(0.3, count)}
    return {"format": "train_qat scaling law 2",
            "source": {"runs": 321, "vocabulary": 1024, "data": ["0123456789abcdef"], "cooldown": "classic"},
            "fitted_range": {"parameters": [2.5e5, 1e6], "tokens": [1.5e6, 1e7], "tokens_per_parameter_byte": [6.0, 800.0],
                             "qat_fraction": [0.03, 0.7], "bits": [1, 1.58, 2, 3, 4, 6],
                             "full_precision": {"parameters": [2.5e5, 1e6], "tokens": [1.5e6, 1e7]}},
            "loss_law": {"form": "full law", "coefficients": coefficients, "bootstrap": samples},
            "fraction_law": {"a": 5.5, "bootstrap": {"a": [5.5 + value for value in normal(0.2, count + 3)],
                                                     "misfit": normal(0.3, count + 3)}},
            "optimal_fraction": by}
