"""Which form of the laws the runs support: errors on the fitted runs and on runs that were held out, AIC and BIC."""
import collections

import numpy as np

from law import formula, fraction_fit, loss_fit, records

# Loss errors are root mean squares of log L, fraction errors mean absolute; None: the form says nothing there.
Row = collections.namedtuple("Row", "name parameters loss_error aic bic fraction_error held_out")
HeldOut = collections.namedtuple("HeldOut", "loss_error fraction_error")

PER_BIT = "Chinchilla per width, blind to f"
FRACTION_FORMS = ("one constant fraction", "fraction law, a fitted", f"fraction law, a = {formula.PAPER_CONSTANT}",
                  "always 10%")


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


def fitted_errors(prediction, runs, offset):
    """(error of the prediction, error once the trunks' offsets are taken out)."""
    return loss_error(prediction, runs), loss_error(prediction * np.exp(offset), runs)


def information(error, count, parameters):
    """AIC and BIC of normal residuals, those of log L without the trunks' offsets. Differences matter, not values."""
    base = count * np.log(error**2)
    return float(base + 2 * (parameters + 1)), float(base + np.log(count) * (parameters + 1))


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
        self.fits = {}

    def loss_rows(self):
        for form, zero in loss_fit.FORMS.items():
            self.report(f"fitting: {form}")
            whole = self.fits[form] = loss_fit.fit(self.runs, zero, self.starts)
            error, within = fitted_errors(loss_fit.predict(whole.coefficients, self.runs), self.runs, whole.offset)
            held_out = {}
            for name, held in self.splits.items():
                rest, out = records.take(self.runs, ~held), records.take(self.runs, held)
                coefficients = loss_fit.fit(rest, zero, self.starts).coefficients
                of_held = held_out_optima(self.found, self.runs, held)[1]
                held_out[name] = HeldOut(loss_error(loss_fit.predict(coefficients, out), out),
                                         mean_absolute(law_fractions(coefficients, of_held), of_held))
            yield Row(form, len(whole.free), error, *information(within, len(self.runs.loss), len(whole.free)),
                      mean_absolute(law_fractions(whole.coefficients, self.found), self.found), held_out)
        yield self.per_bit_row()

    def per_bit_row(self):
        self.report(f"fitting: {PER_BIT}")
        laws = fit_per_bit(self.runs)
        parameters = sum(len(law.free) for law in laws.values())
        offset = np.zeros(len(self.runs.loss))
        for bits, law in laws.items():
            offset[self.runs.bits == bits] = law.offset
        coefficients = {bits: law.coefficients for bits, law in laws.items()}
        error, within = fitted_errors(predict_per_bit(coefficients, self.runs), self.runs, offset)
        held_out = {}
        for name, held in self.splits.items():
            out = records.take(self.runs, held)
            of_rest = fit_per_bit(records.take(self.runs, ~held))
            prediction = predict_per_bit({bits: law.coefficients for bits, law in of_rest.items()}, out)
            held_out[name] = HeldOut(loss_error(prediction, out), None)
        return Row(PER_BIT, parameters, error, *information(within, len(self.runs.loss), parameters), None, held_out)

    def fraction_rows(self):
        """AIC and BIC of these are those of the optima, and can't be compared with those of losses."""
        found = fraction_fit.usable(self.found)
        for name in FRACTION_FORMS:
            predict = fraction_form(name, found)
            residual = fraction_fit.errors(predict(found), found)
            parameters = 1 if name in FRACTION_FORMS[:2] else 0
            held_out = {}
            for split, held in self.splits.items():
                rest, out = held_out_optima(found, self.runs, held)
                error = mean_absolute(fraction_form(name, rest)(out), out) if len(rest) >= 2 and out else None
                held_out[split] = HeldOut(None, error)
            error = max(float(np.sqrt(np.mean(residual**2))), 1e-9)
            yield Row(name, parameters, None, *information(error, len(found), parameters),
                      mean_absolute(predict(found), found), held_out)

    def rows(self):
        return [*self.loss_rows(), *self.fraction_rows()]


def fraction_form(name, found):
    """Fits it to optima; returns what it predicts for others."""
    s_of = lambda others: np.array([o.s for o in others])
    if name == FRACTION_FORMS[0]:
        constant = fraction_fit.mean_fraction(found)
        return lambda others: np.full(len(others), constant)
    if name == FRACTION_FORMS[3]:
        return lambda others: np.full(len(others), 0.1)
    a = formula.PAPER_CONSTANT
    if name == FRACTION_FORMS[1]:
        a = fraction_fit.solve(*fraction_fit.columns(found))
    return lambda others: formula.fraction_law(a, s_of(others))


def mean_held_out(row, column):
    """The mean over the splits, or the fitted error where nothing was held out; None where the form says nothing."""
    values = [getattr(held, column) for held in row.held_out.values()]
    values = [value for value in values if value is not None]
    return float(np.mean(values)) if values else getattr(row, column)


def recommend(rows):
    """(the form of the loss law, which law gives f*). The simplest that predicts held-out runs as well as the best: a loss
    error within 5% of it and a fraction error within 0.01; for f* the one-parameter law unless the other is better by
    more than 0.005."""
    forms = [row for row in rows if row.name in loss_fit.FORMS]
    least_loss = min(mean_held_out(row, "loss_error") for row in forms)
    least_fraction = min(mean_held_out(row, "fraction_error") for row in forms)
    good = [row for row in forms if mean_held_out(row, "loss_error") <= 1.05 * least_loss
            and mean_held_out(row, "fraction_error") <= least_fraction + 0.01]
    best = min(good or [min(forms, key=lambda row: mean_held_out(row, "loss_error"))], key=lambda row: row.parameters)
    of_law = next(row for row in rows if row.name == FRACTION_FORMS[1])
    by_loss = mean_held_out(best, "fraction_error") < mean_held_out(of_law, "fraction_error") - 0.005
    return best.name, "loss_law" if by_loss else "fraction_law"
