"""The loss law fitted to runs: a Huber loss on log L, L-BFGS with exact gradients from many starts.

Runs of one (N, D, seed) share their trunk's luck, by which seeds differ more than neighbouring fractions do. Each such
group has an offset of log L of its own, normally distributed with the deviation that runs which differ in the seed alone
show: the law is fitted to what differs within a trunk, and only as far as the seeds agree to what differs between them.
What a run costs is measured against the scale of the residuals, which a first fit finds: noise, and where the form is wrong.

Every coefficient and exponent is the exponential of a free number and so positive. Features are centred (a term is
c exp(-sum of e (x - mean x))), so that coefficient and exponents of a term hardly depend on each other during the fit;
`to_coefficients` undoes it. A form of the law is a set of names that are zero: forms are nested in the full law.
"""
import collections

import numpy as np
from scipy.optimize import minimize

from law import formula, records
from law.formula import COEFFICIENTS, FULL_PRECISION_BITS, NAMES, TERMS, features

FIRST_SCALE, LEAST_SCALE = 1e-3, 1e-4  # of residuals of log L: before any are known (arXiv 2203.15556), and at least
HUBER = 1.345  # residuals beyond so many scales count linearly: 95% of least squares' efficiency for normal ones
STARTS = 48
ITERATIONS = 5000
LOWEST_EXPONENT, HIGHEST_EXPONENT = 1e-3, 5.0

# Names that are zero. Without the size in the QAT terms a law needs fewer sizes to be fitted.
FORMS = {
    "full law": (),
    "no N in the QAT terms": ("psi", "nu"),
    "no N, no product S_fp S_qat": ("psi", "nu", "rho"),
    "no interaction term": ("lambda", "mu", "nu", "xi", "rho"),
}
FULL_PRECISION_ONLY = tuple(name for term in TERMS[3:] for name in term)

# trunk: index of each run's (N, D, seed). deviation: of offsets from trunk to trunk; 0: there are none. scale: of residuals
# of log L.
Problem = collections.namedtuple("Problem", "target weight centred means quantized trunk deviation scale")
# offset: of log L, of every run's trunk. converged: the descent ended at a minimum.
Fit = collections.namedtuple("Fit", "coefficients objective free offset scale converged")


def problem(runs, weight=None, deviation=None, scale=FIRST_SCALE):
    """What the objective needs of the runs. Quantized terms are absent at 16 bits. deviation: of trunks, if it is known."""
    quantized = runs.bits != FULL_PRECISION_BITS
    # Without quantization any division of the tokens does: S_fp and S_qat are not used.
    fp_tokens = np.where(quantized, runs.fp_tokens, runs.tokens / 2)
    raw = features(runs.parameters, fp_tokens, runs.tokens - fp_tokens, runs.bits)
    means = {name: float(np.mean(x if name in ("gamma", "eta") or not quantized.any() else x[quantized]))
             for name, x in raw.items()}
    weight = np.ones(len(runs.loss)) if weight is None else weight
    deviation = trunk_deviation(runs) if deviation is None else deviation
    trunk = records.groups(runs.parameters, runs.tokens, runs.seed)[0]
    return Problem(np.log(runs.loss), weight, {name: x - means[name] for name, x in raw.items()}, means,
                   quantized.astype(float), trunk, deviation, scale)


def trunk_deviation(runs):
    """Standard deviation of log L from one seed's trunk to another's: from runs that differ in the seed alone. 0 where
    none do."""
    twins, rows = records.groups(runs.parameters, runs.tokens, runs.bits, np.round(records.fractions(runs), 9))
    log_loss, budget = np.log(runs.loss), records.groups(runs.parameters, runs.tokens)[0]
    offsets = collections.defaultdict(list)  # (N, D), seed: deviations from the mean of the twins
    for twin in range(len(rows)):
        members = np.flatnonzero(twins == twin)
        if len(members) > 1:
            for member in members:
                offsets[budget[member], runs.seed[member]].append(log_loss[member] - log_loss[members].mean())
    if not offsets:
        return 0.0
    seeds = collections.Counter(key[0] for key in offsets)  # two or more: twins differ in the seed
    squares = [np.mean(values) ** 2 * seeds[key[0]] / (seeds[key[0]] - 1) for key, values in offsets.items()]
    return float(np.sqrt(np.mean(squares)))


def free_names(zero, runs):
    """Names to fit: without those that a form sets to zero, or that one size or one budget leaves undetermined."""
    zero = set(zero)
    if len(np.unique(runs.parameters)) < 2:
        zero |= {"zeta", "eta", "psi", "nu"}
    if len(np.unique(runs.tokens)) < 2:
        zero |= {"beta", "gamma"}
    return tuple(name for name in NAMES if name not in zero)


def evaluate(point, free, of):
    """(log L, its derivatives by the point, a row each)."""
    value = dict(zip(free, np.exp(point)))
    total = np.zeros_like(of.target)
    rows = {}
    for number, names in enumerate(TERMS):
        if names[0] not in value:
            continue
        exponents = [name for name in names[1:] if name in value]
        logarithm = np.zeros_like(total)
        for name in exponents:
            logarithm -= value[name] * of.centred[name]
        this = value[names[0]] * np.exp(np.minimum(logarithm, 300.0))
        if number > 2:
            this = this * of.quantized
        total += this
        rows[names[0]] = this
        for name in exponents:
            rows[name] = -value[name] * of.centred[name] * this
    total = np.maximum(total, 1e-300)
    return np.log(total), np.array([rows[name] for name in free]) / total


def luck(offsets, of):
    """What the trunks' offsets add to log L, a run each. offsets: in units of their deviation; there may be none."""
    return of.deviation * offsets[of.trunk] if len(offsets) else np.zeros_like(of.target)


def objective(point, free, of):
    """Minus the logarithm of the likelihood, a run: Huber loss of log L in units of its scale, and the offsets' own cost.
    And its gradient. The point: logarithms of the free names, then the offsets in units of their deviation."""
    count = len(free)
    offsets = point[count:]
    prediction, derivatives = evaluate(point[:count], free, of)
    residual = (prediction + luck(offsets, of) - of.target) / of.scale
    size = np.abs(residual)
    value = np.where(size <= HUBER, 0.5 * residual**2, HUBER * (size - 0.5 * HUBER))
    slope = of.weight * np.clip(residual, -HUBER, HUBER) / of.scale
    gradient = derivatives @ slope
    total = float(of.weight @ value)
    if len(offsets):
        total += 0.5 * float(offsets @ offsets)
        gradient = np.concatenate([gradient, of.deviation * np.bincount(of.trunk, slope, len(offsets)) + offsets])
    runs = of.weight.sum()
    return total / runs, gradient / runs


def residual_scale(point, free, of):
    """Of log L once the offsets are taken out: 1.4826 median |residual|, the standard deviation of normal ones."""
    residual = evaluate(point[:len(free)], free, of)[0] + luck(point[len(free):], of) - of.target
    return max(1.4826 * float(np.median(np.abs(residual))), LEAST_SCALE)


def offset_count(of):
    return int(of.trunk.max()) + 1 if of.deviation else 0


def bounds(free):
    exponent = (np.log(LOWEST_EXPONENT), np.log(HIGHEST_EXPONENT))
    return [(-25.0, 10.0) if name in COEFFICIENTS else exponent for name in free]


def with_offsets(point, of):
    """A start: no trunk is lucky."""
    return np.concatenate([point, np.zeros(offset_count(of))])


def random_start(free, of, random):
    """A guess of the right order: most of the loss irreducible, terms of a few hundredths to a half of it."""
    least = np.exp(of.target.min())
    point = []
    for name in free:
        if name == "alpha":
            point.append(np.log(least * random.uniform(0.2, 0.9)))
        elif name in COEFFICIENTS:
            point.append(np.log(least) + random.uniform(np.log(0.005), np.log(0.5)))
        else:
            point.append(random.uniform(np.log(0.05), np.log(2.0)))
    return np.array(point)


def descend(start, free, of, iterations=ITERATIONS, fixed=()):
    """fixed: indices of the start that stay."""
    limits = bounds(free) + [(-5.0, 5.0)] * (len(start) - len(free))
    for index in fixed:
        limits[index] = (start[index], start[index])
    return minimize(objective, start, (free, of), jac=True, method="L-BFGS-B", bounds=limits,
                    options={"maxiter": iterations, "maxfun": 2 * iterations, "ftol": 1e-10, "gtol": 1e-6, "maxcor": 30})


def to_fit(result, free, of):
    return Fit(to_coefficients(result.x[:len(free)], free, of), float(result.fun), free, luck(result.x[len(free):], of),
               of.scale, bool(result.success))


def to_coefficients(point, free, of):
    """{name: value} of all NAMES, 0 for those that are not free; features no longer centred."""
    value = {name: 0.0 for name in NAMES}
    value.update(zip(free, np.exp(point)))
    for names in TERMS:
        if value[names[0]]:
            shift = sum(value[name] * of.means[name] for name in names[1:])
            value[names[0]] = float(np.exp(np.log(value[names[0]]) + shift))
    return {name: float(number) for name, number in value.items()}


def to_point(coefficients, free, of):
    """The inverse of to_coefficients."""
    point = []
    for names in TERMS:
        shift = sum(coefficients[name] * of.means[name] for name in names[1:])
        for name in names:
            if name in free:
                point.append(np.log(coefficients[name]) - (shift if name in COEFFICIENTS else 0.0))
    lower, upper = np.array(bounds(free)).T
    return np.clip(point, lower, upper)


def fit(runs, zero=(), starts=STARTS, seed=0):
    """The best of many starts: short descents from all, long ones from the best few. zero: names that are zero."""
    free = free_names(zero, runs)
    of = problem(runs)
    random = np.random.default_rng(seed)
    short = [descend(with_offsets(random_start(free, of, random), of), free, of, 200) for _ in range(starts)]
    short.sort(key=lambda result: result.fun)
    of = of._replace(scale=residual_scale(short[0].x, free, of))
    long = [descend(result.x, free, of, 1000) for result in short[:max(4, starts // 8)]]
    best = min(long, key=lambda result: result.fun)
    of = of._replace(scale=residual_scale(best.x, free, of))
    return to_fit(descend(best.x, free, of), free, of)


def undetermined(runs, fitted, factor=3.0, rise=1.35):
    """Exponents that the runs determine to no factor of three: with the exponent that much smaller or larger, and all else
    fitted again, minus the logarithm of the likelihood rises by less than 1.35 (half the 90% point of chi squared)."""
    of = problem(runs, scale=fitted.scale)
    free = fitted.free
    best = descend(with_offsets(to_point(fitted.coefficients, free, of), of), free, of)
    names = []
    for index, name in enumerate(free):
        if name in COEFFICIENTS:
            continue
        for step in (-np.log(factor), np.log(factor)):
            start = best.x.copy()
            start[index] = np.clip(start[index] + step, np.log(LOWEST_EXPONENT), np.log(HIGHEST_EXPONENT))
            if (descend(start, free, of, 1000, (index,)).fun - best.fun) * len(of.target) < rise:
                names.append(name)
                break
    return names


def absent(runs, fitted, least=1e-4):
    """Names of terms that add less than this to the loss in the middle of the runs."""
    of = problem(runs)
    middle = dict(zip(fitted.free, np.exp(to_point(fitted.coefficients, fitted.free, of))))
    return [name for names in TERMS if middle.get(names[0], least) < least for name in names if name in fitted.free]


def refit(runs, weight, near, deviation, seed=0):
    """A fit to weighted runs that starts at another fit and near it."""
    of = problem(runs, weight, deviation, near.scale)
    random = np.random.default_rng(seed)
    start = to_point(near.coefficients, near.free, of)
    results = [descend(with_offsets(start + noise, of), near.free, of, 600)
               for noise in (0.0, random.normal(0, 0.3, len(start)))]
    return to_fit(min(results, key=lambda result: result.fun), near.free, of)


def predict(coefficients, runs):
    """The law's loss of every run."""
    result = formula.full_precision_loss(coefficients, runs.parameters, runs.tokens)
    both = records.quantization_aware(runs)
    of = records.take(runs, both)
    result[both] = formula.loss(coefficients, of.parameters, of.fp_tokens, of.qat_tokens, of.bits)
    return result
