"""What a law says about a run that was not trained: its loss over f for every width, the best fraction and width."""
import collections

import numpy as np
from scipy.optimize import brentq

from law import formula, law_file
from law.intervals import interval
from law.formula import tokens_per_parameter_byte

# A value with its 90% interval.
Value = collections.namedtuple("Value", "value low high")
# at: {fraction: Value}. wasted: share of the tokens that training 10% quantization-aware wastes. matching: tokens at which
# this width, at its best fraction, reaches the full-precision loss of the tokens asked for; inf: never.
Width = collections.namedtuple("Width", "bits parameters tokens s fraction loss at wasted matching")

FRACTIONS = (0.05, 0.1, 0.2, 0.3, 0.5)
MOST_TOKENS = 1e4  # times those asked for, that matching full precision may take


def value_of(values):
    """Value from that of the fit, first, and those of the refits."""
    values = np.asarray(values, float)
    finite = values[1:][np.isfinite(values[1:])]
    low, high = interval(finite) if len(finite) == len(values) - 1 else (np.min(values[1:]), np.inf)
    return Value(float(values[0]), float(low), float(high))


class Law:
    def __init__(self, content):
        self.content = content
        self.sets = law_file.coefficient_sets(content)
        self.constants = [content["fraction_law"]["a"], *content["fraction_law"]["bootstrap"]]
        self.by_loss = content["optimal_fraction"] == "loss_law"
        self.bits = content["fitted_range"]["bits"]

    def fraction(self, parameters, tokens, bits):
        """f* by the law that the fit chose."""
        if self.by_loss:
            return value_of([formula.optimal_fraction(c, parameters, tokens, bits) for c in self.sets])
        s = tokens_per_parameter_byte(tokens, parameters, bits)
        return value_of([formula.fraction_law(a, s) for a in self.constants])

    def loss(self, parameters, tokens, bits, fraction):
        return value_of([formula.loss_at(c, parameters, tokens, bits, fraction) for c in self.sets])

    def full_precision(self, parameters, tokens):
        return value_of([formula.full_precision_loss(c, parameters, tokens) for c in self.sets])

    def wasted(self, parameters, tokens, bits, fraction=0.1):
        """1 - D'/D, where D' tokens at their best fraction reach the loss of D tokens at this one."""
        return value_of([wasted(c, parameters, tokens, bits, fraction) for c in self.sets])

    def matching_tokens(self, parameters, tokens, bits):
        """Tokens at which the best fraction reaches the full-precision loss of `tokens`; inf: none do."""
        return value_of([matching_tokens(c, parameters, tokens, bits) for c in self.sets])

    def width(self, parameters, tokens, bits):
        s = tokens_per_parameter_byte(tokens, parameters, bits)
        fraction = self.fraction(parameters, tokens, bits)
        inner = float(np.clip(fraction.value, 1e-6, 1 - 1e-6))
        at = {f: self.loss(parameters, tokens, bits, f) for f in FRACTIONS}
        return Width(bits, parameters, tokens, s, fraction, self.loss(parameters, tokens, bits, inner), at,
                     self.wasted(parameters, tokens, bits), self.matching_tokens(parameters, tokens, bits))

    def extrapolations(self, parameters, tokens, bits):
        """What lies outside of the fitted range, one text each."""
        of = self.content["fitted_range"]
        s = tokens_per_parameter_byte(tokens, parameters, bits)
        asked = (("N", parameters, of["parameters"]), ("D", tokens, of["tokens"]),
                 ("S", s, of["tokens_per_parameter_byte"]), ("B", bits, of["bits"]))
        for name, value, fitted in asked:
            low, high = min(fitted), max(fitted)
            if value < low * (1 - 1e-9):
                yield f"{name} = {short(value)} is below the {short(low)} fitted"
            if value > high * (1 + 1e-9):
                yield f"{name} = {short(value)} is {value / high:.3g} times the largest fitted, {short(high)}"


def best_loss(coefficients, parameters, tokens, bits):
    fraction = formula.optimal_fraction(coefficients, parameters, tokens, bits)
    return float(formula.loss_at(coefficients, parameters, tokens, bits, fraction))


def wasted(coefficients, parameters, tokens, bits, fraction):
    target = float(formula.loss_at(coefficients, parameters, tokens, bits, fraction))
    excess = lambda x: best_loss(coefficients, parameters, np.exp(x), bits) - target
    high = np.log(tokens)
    if excess(high) >= 0:
        return 0.0
    low = high - 1
    while excess(low) < 0 and high - low < 30:
        low -= 1
    return float(1 - np.exp(brentq(excess, low, high) - high)) if excess(low) > 0 else 1.0


def matching_tokens(coefficients, parameters, tokens, bits):
    target = float(formula.full_precision_loss(coefficients, parameters, tokens))
    excess = lambda x: best_loss(coefficients, parameters, np.exp(x), bits) - target
    low, high = np.log(tokens) - 1, np.log(tokens * MOST_TOKENS)
    if excess(high) > 0:
        return np.inf
    while excess(low) < 0 and low > 0:
        low -= 1
    return float(np.exp(brentq(excess, low, high))) if excess(low) > 0 else float(np.exp(low))


def short(value):
    """1.5M, 40.2, 800B."""
    for unit, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if value >= unit:
            return f"{value / unit:.4g}{suffix}"
    return f"{value:.4g}"
