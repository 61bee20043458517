"""What a law says about a run that was not trained: its loss over f for every width, the best fraction and width.

Intervals are for a run of a cell that was not fitted: of what refits to resampled runs say, each off by the misfit that one
of the fitted cells showed (of the logarithm of the loss, of the logit of the fraction).
"""
import collections

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit, logit

from law import formula, law_file
from errors import UserError
from law.intervals import interval
from law.formula import tokens_per_parameter_byte

# A value with its 90% interval.
Value = collections.namedtuple("Value", "value low high")
# fraction: f* by the law that the fit chose, and loss: with it. at: {fraction: Value}. wasted: share of the tokens that
# training 10% quantization-aware wastes. matching: tokens at which this width with f* reaches the full-precision loss of the
# tokens asked for; inf: never. None: the law says nothing there.
Width = collections.namedtuple("Width", "bits parameters tokens s fraction loss at wasted matching")

FRACTIONS = (0.05, 0.1, 0.2, 0.3, 0.5)
MOST_TOKENS = 1e4  # times those asked for, that matching full precision may take
TOLERANCE = 0.01  # of what counts as inside of a fitted range: budgets are whole steps
SAME_SIZE = 0.1


def value_of(values):
    """Value from that of the fit, first, and those of the refits."""
    values = np.asarray(values, float)
    low, high = interval(values[1:])
    return Value(float(values[0]), float(low), float(high))


def moved(fraction, misfits):
    """Fractions whose logits are off by misfits; 0 and 1 stay."""
    with np.errstate(divide="ignore"):
        return expit(logit(fraction) + misfits)


class Law:
    def __init__(self, content):
        self.content = content
        self.sets = law_file.coefficient_sets(content)
        of_fraction = content["fraction_law"]
        self.constants = np.array([of_fraction["a"], *of_fraction["bootstrap"]["a"]])
        self.constant_misfits = np.array([0.0, *of_fraction["bootstrap"]["misfit"]])
        self.by_loss = content["optimal_fraction"] == "loss_law"
        self.ranges = content["fitted_range"]
        self.bits = self.ranges["bits"]

    def misfits(self, name):
        return np.array([c[name] for c in self.sets])

    def best_fraction(self, parameters, tokens, bits):
        """f* by the law that the fit chose; None at S <= 1 where that is the one-constant law."""
        if self.by_loss:
            return formula.optimal_fraction(self.sets[0], parameters, tokens, bits)
        s = tokens_per_parameter_byte(tokens, parameters, bits)
        return float(formula.fraction_law(self.constants[0], s)) if s > 1 else None

    def best_fractions(self, parameters, tokens, bits):
        """f* of arrays, for plots; nan where there is none."""
        if self.by_loss:
            return formula.optimal_fractions(self.sets[0], parameters, tokens, bits)
        found = formula.fraction_law(self.constants[0], tokens_per_parameter_byte(tokens, parameters, bits))
        return np.where(found > 0, found, np.nan)

    def fraction(self, parameters, tokens, bits):
        """The same with its interval."""
        if self.best_fraction(parameters, tokens, bits) is None:
            return None
        if self.by_loss:
            values = [formula.optimal_fraction(c, parameters, tokens, bits) for c in self.sets]
            return value_of(moved(np.array(values), self.misfits("fraction_misfit")))
        s = tokens_per_parameter_byte(tokens, parameters, bits)
        return value_of(moved(formula.fraction_law(self.constants, s), self.constant_misfits))

    def loss(self, parameters, tokens, bits, fraction):
        losses = [formula.loss_at(c, parameters, tokens, bits, fraction) for c in self.sets]
        return value_of(np.array(losses) * np.exp(self.misfits("loss_misfit")))

    def full_precision(self, parameters, tokens):
        """None: no run was trained at 16 bits."""
        if not self.ranges["full_precision"]:
            return None
        losses = [formula.full_precision_loss(c, parameters, tokens) for c in self.sets]
        return value_of(np.array(losses) * np.exp(self.misfits("full_precision_misfit")))

    def best_loss(self, coefficients, parameters, tokens, bits):
        """With this law's f*, and a refit's coefficients. inf: no f*."""
        fraction = self.best_fraction(parameters, tokens, bits)
        return np.inf if not fraction else float(formula.loss_at(coefficients, parameters, tokens, bits, fraction))

    def wasted(self, coefficients, parameters, tokens, bits, fraction=0.1):
        """1 - D'/D, where D' tokens with f* reach the loss of D tokens with this fraction; 0 where f* is no better."""
        target = float(formula.loss_at(coefficients, parameters, tokens, bits, fraction))
        excess = lambda x: self.best_loss(coefficients, parameters, np.exp(x), bits) - target
        high = np.log(tokens)
        if excess(high) >= 0:
            return 0.0
        low = high - 1
        while excess(low) < 0 and high - low < 30:
            low -= 1
        return float(1 - np.exp(root(excess, low, high) - high)) if excess(low) > 0 else 1.0

    def matching_tokens(self, coefficients, parameters, tokens, bits):
        """Tokens at which f* reaches the full-precision loss of `tokens`, both off by their misfits; inf: none do."""
        misfit = coefficients["full_precision_misfit"] - coefficients["loss_misfit"]
        target = float(formula.full_precision_loss(coefficients, parameters, tokens)) * np.exp(misfit)
        excess = lambda x: self.best_loss(coefficients, parameters, np.exp(x), bits) - target
        low, high = np.log(tokens) - 1, np.log(tokens * MOST_TOKENS)
        if excess(high) > 0:
            return np.inf
        while excess(low) < 0 and low > 0:
            low -= 1
        return float(np.exp(root(excess, low, high))) if excess(low) > 0 else float(np.exp(low))

    def width(self, parameters, tokens, bits):
        self.check_size(parameters)
        s = tokens_per_parameter_byte(tokens, parameters, bits)
        fraction = self.fraction(parameters, tokens, bits)
        at = {f: self.loss(parameters, tokens, bits, f) for f in FRACTIONS}
        if not fraction or not fraction.value:
            return Width(bits, parameters, tokens, s, None, None, at, None, None)
        of_sets = lambda function: value_of([function(c, parameters, tokens, bits) for c in self.sets])
        return Width(bits, parameters, tokens, s, fraction, self.loss(parameters, tokens, bits, fraction.value), at,
                     of_sets(self.wasted), of_sets(self.matching_tokens) if self.ranges["full_precision"] else None)

    def check_size(self, parameters):
        """A law of one size has no term that says what another would do."""
        low, high = self.ranges["parameters"]
        if low == high and abs(parameters / low - 1) > SAME_SIZE:
            raise UserError(f"the law was fitted on one size, N = {short(low)}, and says nothing of N = {short(parameters)}; "
                            "add sizes to the sweep")

    def extrapolations(self, parameters, tokens, bits):
        """What lies outside of the fitted range, one text each."""
        of = self.ranges
        s = tokens_per_parameter_byte(tokens, parameters, bits)
        yield from outside("N", parameters, of["parameters"])
        yield from outside("D", tokens, of["tokens"])
        yield from outside("S", s, of["tokens_per_parameter_byte"])
        yield from outside("B", bits, of["bits"])
        if of["full_precision"]:
            yield from outside("in full precision N", parameters, of["full_precision"]["parameters"])
            yield from outside("in full precision D", tokens, of["full_precision"]["tokens"])


def outside(name, value, fitted):
    low, high = min(fitted), max(fitted)
    if value < low * (1 - TOLERANCE):
        yield f"{name} = {short(value)} is below the {short(low)} fitted"
    if value > high * (1 + TOLERANCE):
        yield f"{name} = {short(value)} is {value / high:.3g} times the largest fitted, {short(high)}"


def root(excess, low, high):
    """Where a function that may be infinite at the left end is 0."""
    return brentq(lambda x: min(excess(x), 1e3), low, high)


def short(value):
    """1.5M, 40.2, 800B."""
    for unit, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if value >= unit:
            return f"{value / unit:.4g}{suffix}"
    return f"{value:.4g}"
