"""Which form of the laws the runs support: errors on the fitted runs and on runs that were held out, AIC and BIC."""
import collections

import numpy as np
from scipy.optimize import minimize_scalar

from law import formula, fraction_fit, loss_fit, records

# Loss errors are root mean squares of log L, fraction errors mean absolute; None: the form says nothing there.
Row = collections.namedtuple("Row", "name parameters loss_error aic bic fraction_error held_out")
HeldOut = collections.namedtuple("HeldOut", "loss_error fraction_error")

PER_BIT = "Chinchilla per width, blind to f"
FRACTION_FORMS = {"one constant fraction": 1, "fraction law, a fitted": 1, "fraction law, and a power of N": 2,
                  f"fraction law, a = {formula.PAPER_CONSTANT}": 0, "always 10%": 0}  # name: parameters
CONSTANT, LAW, SIZED_LAW, PAPER_LAW, TENTH = FRACTION_FORMS


def splits(runs):
    """{name: which runs are held out}, where two values or more remain: the largest N, the largest D, a width in the
    middle."""
    result = {}
    both = records.quantization_aware(runs)
    for name, column in (("largest N", runs.parameters), ("largest D", runs.tokens)):
        if len(np.unique(column[both])) > 2:
            result[name] = column == column[both].max()
    widths = np.unique(runs.bits[both])
    if len(widths) > 2:
        middle = widths[len(widths) // 2]
        result[f"{middle:g} bits"] = runs.bits == middle
    return result


def fit_per_bit(runs, seed=0):
    """A Chinchilla law for every width, of all its runs whatever their fraction: {bits: Fit}."""
    result = {}
    for bits in np.unique(runs.bits):
        of = records.take(runs, runs.bits == bits)
        of = of._replace(bits=np.full_like(of.bits, formula.FULL_PRECISION_BITS))
        result[bits] = loss_fit.fit(of, loss_fit.FULL_PRECISION_ONLY, starts=12, seed=seed)
    return result


def predict_per_bit(laws, runs):
    """nan for a width without a law."""
    result = np.full(len(runs.loss), np.nan)
    for bits, coefficients in laws.items():
        of = runs.bits == bits
        result[of] = formula.full_precision_loss(coefficients, runs.parameters[of], runs.tokens[of])
    return result


def loss_error(prediction, runs):
    residual = np.log(prediction / runs.loss)
    return float(np.sqrt(np.mean(residual**2))) if np.isfinite(residual).all() and len(residual) else None


def information(base, count, parameters):
    """AIC and BIC from -2 log likelihood; the variance is a parameter too. Differences matter, not values."""
    return float(base + 2 * (parameters + 1)), float(base + np.log(count) * (parameters + 1))


def minus_two_log_likelihood(residual, trunk, deviation):
    """Of normal residuals of log L that share their trunk's luck, whose deviation is known: with runs of variance v in
    groups of n, log det = (n - 1) log v + log(v + n deviation^2), at the likeliest v."""
    count = np.bincount(trunk)
    mean = np.bincount(trunk, residual) / count
    within = np.sum((residual - mean[trunk]) ** 2)

    def value(log_variance):
        variance = np.exp(log_variance)
        of_means = variance + count * deviation**2
        return np.sum((count - 1) * log_variance + np.log(of_means) + count * mean**2 / of_means) + within / variance

    start = np.log(np.mean(residual**2) + 1e-12)
    return float(minimize_scalar(value, bounds=(start - 12, start + 1), method="bounded").fun)


def loss_information(prediction, runs, deviation, parameters):
    """AIC and BIC of a form of the loss law, alike for all forms: of the residuals of what it predicts."""
    trunk = records.groups(runs.parameters, runs.tokens, runs.seed)[0]
    base = minus_two_log_likelihood(np.log(prediction / runs.loss), trunk, deviation)
    return information(base, len(runs.loss), parameters)


def law_fractions(coefficients, found):
    return formula.optimal_fractions(coefficients, [o.parameters for o in found], [o.tokens for o in found],
                                     [o.bits for o in found])


def mean_absolute(prediction, found):
    return float(np.mean(np.abs(fraction_fit.errors(prediction, found)))) if found else None


def held_out_optima(found, runs, held):
    """(optima of cells that were fitted, those of cells that were held out)."""
    cells = {tuple(row) for row in np.column_stack([runs.parameters, runs.tokens, runs.bits])[held]}
    is_held = lambda o: (o.parameters, o.tokens, o.bits) in cells
    return [o for o in found if not is_held(o)], [o for o in found if is_held(o)]


class Comparison:
    """All forms on all splits. found: the measured optima. starts: of every fit."""

    def __init__(self, runs, found, starts, report=lambda text: None):
        self.runs, self.found, self.starts, self.report = runs, found, starts, report
        self.splits = splits(runs)
        self.deviation = loss_fit.trunk_deviation(runs)
        self.fits = {}

    def loss_rows(self):
        for form, zero in loss_fit.FORMS.items():
            self.report(f"fitting: {form}")
            whole = self.fits[form] = loss_fit.fit(self.runs, zero, self.starts)
            prediction = loss_fit.predict(whole.coefficients, self.runs)
            held_out = {}
            for name, held in self.splits.items():
                rest, out = records.take(self.runs, ~held), records.take(self.runs, held)
                coefficients = loss_fit.fit(rest, zero, self.starts).coefficients
                of_held = held_out_optima(self.found, self.runs, held)[1]
                held_out[name] = HeldOut(loss_error(loss_fit.predict(coefficients, out), out),
                                         mean_absolute(law_fractions(coefficients, of_held), of_held))
            yield Row(form, len(whole.free), loss_error(prediction, self.runs),
                      *loss_information(prediction, self.runs, self.deviation, len(whole.free)),
                      mean_absolute(law_fractions(whole.coefficients, self.found), self.found), held_out)
        yield self.per_bit_row()

    def per_bit_row(self):
        self.report(f"fitting: {PER_BIT}")
        laws = fit_per_bit(self.runs)
        parameters = sum(len(law.free) for law in laws.values())
        whole = predict_per_bit({bits: law.coefficients for bits, law in laws.items()}, self.runs)
        held_out = {}
        for name, held in self.splits.items():
            out = records.take(self.runs, held)
            of_rest = fit_per_bit(records.take(self.runs, ~held))
            prediction = predict_per_bit({bits: law.coefficients for bits, law in of_rest.items()}, out)
            held_out[name] = HeldOut(loss_error(prediction, out), None)
        return Row(PER_BIT, parameters, loss_error(whole, self.runs),
                   *loss_information(whole, self.runs, self.deviation, parameters), None, held_out)

    def fraction_rows(self):
        """AIC and BIC of these are those of the measured optima, and can't be compared with those of losses."""
        found = fraction_fit.usable(self.found)
        measured = fraction_fit.measured(found)
        for name, parameters in FRACTION_FORMS.items():
            predict = fraction_form(name, found)
            residual = fraction_fit.errors(predict(measured), measured)
            held_out = {}
            for split, held in self.splits.items():
                rest, out = held_out_optima(found, self.runs, held)
                error = mean_absolute(fraction_form(name, rest)(out), out) if len(rest) >= 2 and out else None
                held_out[split] = HeldOut(None, error)
            base = len(measured) * np.log(np.mean(residual**2) + 1e-18) if measured else 0.0
            yield Row(name, parameters, None, *information(base, len(measured), parameters),
                      mean_absolute(predict(found), found), held_out)

    def rows(self):
        return [*self.loss_rows(), *self.fraction_rows()]


def fraction_form(name, found):
    """Fits it to optima; returns what it predicts for others."""
    s_of = lambda others: np.array([o.s for o in others])
    if name in (CONSTANT, TENTH):
        constant = fraction_fit.mean_fraction(found) if name == CONSTANT else 0.1
        return lambda others: np.full(len(others), constant)
    if name == SIZED_LAW:
        law = fraction_fit.fit_sized_law(found)
        return lambda others: formula.fraction_law(law.a, fraction_fit.sized_s(others, law.power, law.size))
    a = formula.PAPER_CONSTANT if name == PAPER_LAW else fraction_fit.solve(*fraction_fit.columns(found))
    return lambda others: formula.fraction_law(a, s_of(others))


def held_out_errors(rows, column):
    """{row's name: its mean over the splits where all of these rows say something; the fitted error where there are none}."""
    splits_of = [name for name in rows[0].held_out
                 if all(getattr(row.held_out[name], column) is not None for row in rows)]
    return {row.name: float(np.mean([getattr(row.held_out[name], column) for name in splits_of])) if splits_of
            else getattr(row, column) for row in rows}


# form: of the loss law. optimal_fraction: which law gives f*. remark: what a user should know of it; or "".
Recommendation = collections.namedtuple("Recommendation", "form optimal_fraction remark")
SAME_LOSS, SAME_FRACTION = 1.05, 0.01  # a factor, a difference


def recommend(rows):
    """The simplest form of the loss law that predicts held-out runs as well as the best: with a loss error within 5% of it
    and a fraction error within 0.01. For f* the one-parameter law unless the loss law's is better by more than 0.01."""
    forms = [row for row in rows if row.name in loss_fit.FORMS]
    of_loss = held_out_errors(forms, "loss_error")
    constant, law, sized = (next(row for row in rows if row.name == name) for name in (CONSTANT, LAW, SIZED_LAW))
    of_fraction = held_out_errors([*forms, constant, law, sized], "fraction_error")
    good = [row for row in forms if of_loss[row.name] <= SAME_LOSS * min(of_loss.values())
            and of_fraction[row.name] <= min(of_fraction[row.name] for row in forms) + SAME_FRACTION]
    best = min(good or [min(forms, key=lambda row: of_loss[row.name])], key=lambda row: row.parameters)
    by_loss = of_fraction[best.name] < of_fraction[law.name] - SAME_FRACTION
    chosen = of_fraction[best.name if by_loss else law.name]
    remark = ""
    if of_fraction[sized.name] < chosen - SAME_FRACTION:
        remark = (f"with its own power of N the law of the fraction predicts held-out runs better (errors "
                  f"{of_fraction[sized.name]:.3f} and {chosen:.3f}): S is not all that f* depends on")
    if of_fraction[constant.name] <= chosen + 0.1 * SAME_FRACTION:
        remark = (f"one constant fraction predicts f* of held-out runs as well (errors {of_fraction[constant.name]:.3f} and "
                  f"{chosen:.3f}): these runs do not show that f* depends on S")
    return Recommendation(best.name, "loss_law" if by_loss else "fraction_law", remark)
