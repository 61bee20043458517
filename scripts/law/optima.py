"""The measured optimum of every (N, D, B): from smooth curves through the losses over f, with an interval.

Within a cell, runs of one seed share their full-precision trunk and differ in f alone. The curves are

    loss(f, seed) = offset(seed) + A f^-p + C (1 - f)^-q,    A, C >= 0,

whose two parts say that little of either phase costs loss. Each has one minimum; the seed's offset takes out what its
runs have in common. A, C and the offsets are linear: least squares. Which exponents p and q a cell has is uncertain:
every pair of a grid counts by its likelihood. The optimum is the mean of their minima; the 90% interval that of 2,000
draws of exponents and of the normal distribution of the estimates, the variance of a run being pooled over the budgets of
one size and width: what the luck of a trunk adds differs from size to size.
"""
import collections

import numpy as np
from scipy.optimize import nnls
from scipy.special import expit

from law import records
from law.formula import tokens_per_parameter_byte
from law.intervals import interval

# fraction: that of least loss; low, high: its 90% interval; first, last: the range of measured fractions. loss: at the
# optimum, of the mean seed. curve: the likeliest. error: standard deviation of a run's loss about it.
Optimum = collections.namedtuple("Optimum", "parameters tokens bits s fraction low high first last loss curve error runs")
Shape = collections.namedtuple("Shape", "p q")
# solution: the offsets, A, C. squares: the sum of squared residuals.
Curve = collections.namedtuple("Curve", "shape solution squares matrix")

DRAWS = 2000
LEAST_FREEDOM = 4  # degrees of freedom that a pooled variance needs
SHAPES = [Shape(p, q) for p in (0.05, 0.15, 0.3, 0.5, 0.75, 1.0, 1.5) for q in (0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0)]
GRID = expit(np.linspace(-6.0, 6.0, 2401))


def parts(fraction, shape):
    """The curve's two parts, (..., 2)."""
    return np.stack([fraction ** -shape.p, (1 - fraction) ** -shape.q], -1)


def design(fraction, seed, shape):
    """Columns: an indicator for each seed, then the two parts."""
    return np.hstack([(seed[:, None] == np.unique(seed)).astype(float), parts(fraction, shape)])


def minimum(a, c, shape):
    """The fraction that minimises a f^-p + c (1-f)^-q; arrays of coefficients. 0 or 1 where one part is missing."""
    a, c = np.atleast_1d(a), np.atleast_1d(c)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.log(c / a)
    # The derivative vanishes where p f^(-p-1) = c/a q (1-f)^(-q-1); the logarithm of c/a falls with f there.
    slope = np.log(shape.p / shape.q) - (shape.p + 1) * np.log(GRID) + (shape.q + 1) * np.log1p(-GRID)
    return np.where(a <= 0, 0.0, np.where(c <= 0, 1.0, np.interp(-ratio, -slope, GRID)))


def fit_curve(of, shape):
    """The curve of one cell with these exponents. Non-negative least squares: offsets are positive because losses are."""
    matrix = design(records.fractions(of), of.seed, shape)
    solution, distance = nnls(matrix, of.loss)
    return Curve(shape, solution, distance**2, matrix)


def usable(runs):
    """Only cells with enough fractions to have a minimum."""
    index, triples = records.cells(runs)
    fraction = records.fractions(runs)
    enough = [len(np.unique(np.round(fraction[index == cell], 6))) >= records.LEAST_FRACTIONS
              for cell in range(len(triples))]
    return records.take(runs, np.array(enough, bool)[index])


def variances(best, triples):
    """Of every cell the variance of a run's loss about the best curve: pooled over the budgets of one size and width, or where
    those say too little, of one size, or over all cells. p and q count as fitted."""
    squares, freedom = collections.Counter(), collections.Counter()
    keys = [[(parameters, bits), parameters, "all"] for parameters, _, bits in triples]
    for curve, pools in zip(best, keys):
        for pool in pools:
            squares[pool] += curve.squares
            freedom[pool] += max(curve.matrix.shape[0] - curve.matrix.shape[1] - 2, 0)
    pool_of = lambda pools: next((pool for pool in pools if freedom[pool] >= LEAST_FREEDOM), "all")
    return [squares[pool_of(pools)] / max(freedom[pool_of(pools)], 1) for pools in keys]


def draw_minima(curves, variance, random):
    """(the mean minimum, draws of it) over the curves of a cell."""
    squares = np.array([curve.squares for curve in curves])
    weight = np.exp((squares.min() - squares) / (2 * variance))
    weight /= weight.sum()
    minima = [0.5 if not curve.solution[-2:].any() else minimum(*curve.solution[-2:], curve.shape)[0] for curve in curves]
    centre = weight @ np.array(minima)
    draws = []
    for curve, count in zip(curves, random.multinomial(DRAWS, weight)):
        if count:
            covariance = variance * np.linalg.pinv(curve.matrix.T @ curve.matrix)
            of_parts = random.multivariate_normal(curve.solution[-2:], covariance[-2:, -2:], count)
            a, c = np.maximum(of_parts, 0).T
            # Losses that neither rise to the left nor to the right say nothing of where the minimum is.
            draws.append(np.where((a == 0) & (c == 0), random.uniform(0, 1, count), minimum(a, c, curve.shape)))
    return float(centre), np.concatenate(draws)


def measure(runs, seed=0):
    """An Optimum for every cell with enough fractions. runs: those with both phases."""
    runs = usable(runs)
    if not len(runs.loss):
        return []
    index, triples = records.cells(runs)
    fitted = [[fit_curve(records.take(runs, index == cell), shape) for shape in SHAPES] for cell in range(len(triples))]
    best = [min(curves, key=lambda curve: curve.squares) for curves in fitted]
    variance = variances(best, triples)
    random = np.random.default_rng(seed)
    found = []
    for cell, (parameters, tokens, bits) in enumerate(triples):
        centre, draws = draw_minima(fitted[cell], variance[cell], random)
        of = records.fractions(records.take(runs, index == cell))
        low, high = interval(draws)
        found.append(Optimum(parameters, tokens, bits, tokens_per_parameter_byte(tokens, parameters, bits), centre,
                             float(low), float(high), of.min(), of.max(),
                             float(curve_at(best[cell], np.clip(centre, of.min(), of.max()))), best[cell],
                             float(np.sqrt(variance[cell])), len(of)))
    return found


def curve_at(curve, fraction):
    """The loss of the mean seed."""
    return curve.solution[:-2].mean() + parts(np.asarray(fraction, float), curve.shape) @ curve.solution[-2:]


def with_minimum(found):
    """(optima, cells whose losses show none: the interval holds every fraction that was measured, because they are flat to within
    their noise, or fall to both sides). The mean of such a cell's minima is a number that says nothing."""
    silent = [o for o in found if o.low <= o.first and o.high >= o.last]
    return [o for o in found if o not in silent], silent


def inside(optimum):
    """Whether the minimum lies in the range of measured fractions, and so was measured."""
    return optimum.first < optimum.fraction < optimum.last
