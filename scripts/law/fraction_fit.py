"""The law of the fraction alone, f* = exp(-a / ln S), fitted to measured optima, and what can be asked of them.

An optimum counts by 1 / (its own variance + the scatter of optima about the law). Where it lies outside of the measured
fractions it is only known to be below or above them: a prediction there is no error.
"""
import collections

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import logit
from scipy.stats import rankdata

from law.formula import fraction_law
from law.intervals import interval
from law.optima import inside

LEAST_OPTIMA = 3
NORMAL_90 = 1.645
DRAWS = 2000

# draws: of a. misfits: by how much the logits of optima differ from the law's, one for each draw.
Constant = collections.namedtuple("Constant", "value low high draws misfits")


def columns(found):
    """(S, f*, standard error, first, last measured fraction) as arrays."""
    s = np.array([o.s for o in found])
    fraction = np.array([o.fraction for o in found])
    error = np.array([(o.high - o.low) / (2 * NORMAL_90) for o in found])
    return s, fraction, error, np.array([o.first for o in found]), np.array([o.last for o in found])


def errors(prediction, found):
    """prediction - measured; 0 where the optimum is censored and the prediction lies beyond the same end."""
    _, fraction, _, first, last = columns(found)
    prediction = np.broadcast_to(prediction, fraction.shape)
    below = (fraction <= first) & (prediction <= first)
    above = (fraction >= last) & (prediction >= last)
    return np.where(below | above, 0.0, prediction - np.clip(fraction, first, last))


def scatter(residual, error):
    """Variance of the optima about a law beyond their own errors (the method of moments)."""
    return max(float(np.mean(residual**2 - error**2)), 1e-6)


def solve(s, fraction, error, first, last):
    """The constant a; twice, the second time with the scatter of the first."""
    clipped = np.clip(fraction, first, last)

    def residual(a):  # of one constant, or a row for each of several
        prediction = fraction_law(np.asarray(a)[..., None], s)
        beyond = ((fraction <= first) & (prediction <= first)) | ((fraction >= last) & (prediction >= last))
        return np.where(beyond, 0.0, prediction - clipped)

    grid = np.exp(np.linspace(np.log(0.05), np.log(60), 121))  # in ln a the law is smooth: this finds the valley
    of_grid = residual(grid)
    extra = 0.03**2
    for _ in range(2):
        weight = 1 / (error**2 + extra)
        best = int(np.argmin(of_grid**2 @ weight))
        low, high = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
        constant = float(minimize_scalar(lambda a: residual(a) ** 2 @ weight, bounds=(low, high), method="bounded",
                                         options={"xatol": 1e-6}).x)
        extra = scatter(residual(constant), error)
    return constant


def usable(found):
    """Optima that the law speaks of."""
    return [o for o in found if o.s > 1]


def fit_constant(found, seed=0, draws=DRAWS // 4):
    """a with its 90% interval: cells drawn with replacement, which holds what every optimum is off by; deviations from
    the fit made larger by sqrt(n / (n - 1)), because draws of n cells differ less than n new ones would."""
    found = usable(found)
    of = columns(found)
    count = len(found)
    value = solve(*of)
    random = np.random.default_rng(seed)
    values = []
    for _ in range(draws):
        chosen = random.integers(0, count, count)
        values.append(solve(*(column[chosen] for column in of)))
    values = value * (np.array(values) / value) ** np.sqrt(count / max(count - 1, 1))
    low, high = interval(values)
    misfits = logit_misfits(found, lambda of: fraction_law(value, columns(of)[0]))
    return Constant(value, float(low), float(high), values, random.choice(misfits, draws))


def measured(found):
    """Optima that lie within the measured fractions: others are only known to be beyond them."""
    return [o for o in found if inside(o)]


def logit_misfits(found, predict):
    """logit(measured) - logit(law) of the measured optima, 0 if there are none. predict: fractions of a list of optima."""
    of = measured(found)
    return logit(columns(of)[1]) - logit(predict(of)) if of else np.zeros(1)


# f* = exp(-a / ln S'), with S' = S (N / size)^(1 - power): of power 1 the law itself, of power 0 blind to N.
SizedLaw = collections.namedtuple("SizedLaw", "a power size")
POWERS = np.linspace(-1, 2, 31)


def sized_s(found, power, size):
    """S' of the optima."""
    return np.array([o.s * (o.parameters / size) ** (1 - power) for o in found])


def fit_sized_law(found):
    """The likeliest power of N of a grid, each with its likeliest a."""
    size = float(np.exp(np.mean([np.log(o.parameters) for o in found])))
    _, *others = columns(found)
    weight = 1 / (others[1] ** 2 + 0.03**2)

    def cost(power):
        a = solve(sized_s(found, power, size), *others)
        return float(weight @ errors(fraction_law(a, sized_s(found, power, size)), found) ** 2), a

    costs = {power: cost(power) for power in POWERS}
    power = min(costs, key=lambda power: costs[power][0])
    return SizedLaw(costs[power][1], float(power), size)


def power_of_size(found, seed=0, draws=100):
    """(power of N in S', 5th, 95th percentile), over cells drawn with replacement. None for one size."""
    found = usable(found)
    if len({o.parameters for o in found}) < 2:
        return None
    random = np.random.default_rng(seed)
    powers = []
    for _ in range(draws):
        chosen = [found[i] for i in random.integers(0, len(found), len(found))]
        powers.append(fit_sized_law(chosen).power)
    return (fit_sized_law(found).power, *map(float, interval(powers)))


def mean_fraction(found):
    """The best constant fraction, weighted as `solve` does."""
    _, fraction, error, first, last = columns(found)
    clipped = np.clip(fraction, first, last)
    value, extra = float(np.mean(clipped)), 0.03**2
    for _ in range(3):
        weight = 1 / (error**2 + extra)
        value = float(np.sum(weight * clipped) / np.sum(weight))
        extra = scatter(value - clipped, error)
    return value


def rank_correlation(found, seed=0):
    """(Spearman's correlation of f* and S, 5th, 95th percentile), over cells and the optima's own errors."""
    s, fraction, error, _, _ = columns(found)

    def spearman(x, y):
        x, y = rankdata(x), rankdata(y)
        return float(np.corrcoef(x, y)[0, 1]) if np.ptp(x) and np.ptp(y) else 0.0

    random = np.random.default_rng(seed)
    draws = []
    for _ in range(DRAWS):
        chosen = random.integers(0, len(s), len(s))
        draws.append(spearman(s[chosen], (fraction + error * random.standard_normal(len(s)))[chosen]))
    return (spearman(s, fraction), *map(float, interval(draws)))


def split(found, key):
    """{value of the optima's field `key`: its optima}, where there are enough of them."""
    found = usable(found)
    groups = {value: [o for o in found if getattr(o, key) == value] for value in sorted({getattr(o, key) for o in found})}
    return {value: group for value, group in groups.items() if len(group) >= LEAST_OPTIMA}


def one_curve_test(found, key):
    """(AIC of one constant, AIC of one constant a value of `key`): do all widths, or sizes, fall on one curve in S?"""
    groups = list(split(measured(found), key).values())
    of_all = [o for group in groups for o in group]
    if len(groups) < 2:
        return None
    squares = lambda group: float(np.sum(errors(fraction_law(solve(*columns(group)), columns(group)[0]), group) ** 2))
    count = len(of_all)
    # The variance is a parameter too.
    return tuple(count * np.log(max(total, 1e-12) / count) + 2 * (1 + parameters)
                 for total, parameters in ((squares(of_all), 1), (sum(map(squares, groups)), len(groups))))
