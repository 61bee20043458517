"""The laws of Compute-Optimal Quantization-Aware Training (arXiv 2509.22935), as functions of NumPy arrays.

With N parameters, D tokens of which a fraction f trains quantization-aware, B bits, and S = D / (N B/8) tokens per
parameter byte, S_fp and S_qat the same of (1-f) D and f D:

    L = alpha + beta / D^gamma + zeta / N^eta
        + theta 2^(-kappa B) + phi 2^(-chi B) / (N^psi S_qat^omega)
        + lambda 2^(-mu B) / (N^nu S_fp^xi S_qat^rho)

The first line is full precision, which has no other terms. The other place that knows this formula is
model/plan/scaling_law.cpp; test/scripts/test_law_in_trainer.py holds them to each other.
"""
import numpy as np
from scipy.special import expit

# Coefficient and exponents of each term, in the order of the formula.
TERMS = (("alpha",), ("beta", "gamma"), ("zeta", "eta"), ("theta", "kappa"), ("phi", "chi", "psi", "omega"),
         ("lambda", "mu", "nu", "xi", "rho"))
NAMES = tuple(name for term in TERMS for name in term)
COEFFICIENTS = tuple(term[0] for term in TERMS)
FULL_PRECISION_BITS = 16
PAPER_CONSTANT = 6.7297  # a of the one-parameter law for f*, arXiv 2509.22935
LN2 = np.log(2.0)


def tokens_per_parameter_byte(tokens, parameters, bits):
    return tokens / (parameters * bits / 8.0)


def features(parameters, fp_tokens, qat_tokens, bits):
    """{exponent: what it multiplies in the logarithm of its term}: a term is c exp(-sum of exponent * feature)."""
    size, total = np.log(parameters), np.log(np.add(fp_tokens, qat_tokens))
    with np.errstate(divide="ignore"):  # no tokens of a phase: its terms are infinite, which is what the law says
        s_fp = np.log(tokens_per_parameter_byte(fp_tokens, parameters, bits))
        s_qat = np.log(tokens_per_parameter_byte(qat_tokens, parameters, bits))
    width = LN2 * np.asarray(bits, float)
    return {"gamma": total, "eta": size, "kappa": width, "chi": width, "psi": size, "omega": s_qat,
            "mu": width, "nu": size, "xi": s_fp, "rho": s_qat}


def term(names, coefficients, of):
    """One term, computed through logarithms: coefficients of large exponents are huge. 0 for a coefficient of 0."""
    scale = coefficients[names[0]]
    if not scale:
        return 0.0
    exponent = np.log(scale)
    for name in names[1:]:
        if coefficients[name]:
            exponent = exponent - coefficients[name] * of[name]
    return np.exp(exponent)


def loss(coefficients, parameters, fp_tokens, qat_tokens, bits):
    """The loss after full-precision and quantization-aware training. coefficients: {name: value} of NAMES."""
    of = features(parameters, fp_tokens, qat_tokens, bits)
    return sum(term(names, coefficients, of) for names in TERMS)


def full_precision_loss(coefficients, parameters, tokens):
    of = {"gamma": np.log(tokens), "eta": np.log(parameters)}
    return sum(term(names, coefficients, of) for names in TERMS[:3])


def loss_at(coefficients, parameters, tokens, bits, fraction):
    return loss(coefficients, parameters, np.multiply(1 - np.asarray(fraction), tokens), np.multiply(fraction, tokens),
                bits)


def optimal_fraction(coefficients, parameters, tokens, bits):
    """The fraction of least loss; scalars. A grid over its logit from -7 to 7, then golden section."""
    at = lambda x: loss_at(coefficients, parameters, tokens, bits, expit(x))
    grid = np.linspace(-7.0, 7.0, 201)
    best = int(np.argmin(at(grid)))
    low, high = grid[max(best - 1, 0)], grid[min(best + 1, 200)]
    ratio = (np.sqrt(5.0) - 1) / 2
    left, right = high - ratio * (high - low), low + ratio * (high - low)
    at_left, at_right = at(left), at(right)
    while high - low > 1e-10:
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - ratio * (high - low)
            at_left = at(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + ratio * (high - low)
            at_right = at(right)
    return float(expit((low + high) / 2))


def optimal_fractions(coefficients, parameters, tokens, bits):
    """The same of arrays, to four digits, in one sweep over a fine grid of fractions: for fits and plots."""
    grid = expit(np.linspace(-7.0, 7.0, 1401))
    shape = np.broadcast(parameters, tokens, bits).shape
    columns = [np.broadcast_to(np.asarray(v, float), shape)[..., None] for v in (parameters, tokens, bits)]
    return grid[np.argmin(loss_at(coefficients, *columns, grid), axis=-1)]


def fraction_law(constant, s):
    """f* = exp(-a / ln S) for S > 1, and its limit 0 below."""
    s = np.asarray(s, float)
    with np.errstate(divide="ignore"):
        return np.where(s > 1, np.exp(-constant / np.log(np.maximum(s, 1.0))), 0.0)
