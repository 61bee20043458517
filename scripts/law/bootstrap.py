"""Refits of the loss law to resampled runs: cells (N, D, B) with replacement, and seeds within a cell.

Runs of one cell and seed stay together, because they share a trunk and its luck. So do all widths of one (N, D, seed),
which resampling cells would take for independent: every refit therefore also shifts the losses of each (N, D, seed) by
a draw of that luck, whose size is known from how much seeds differ.

Refits all have the fitted form, which no cell follows exactly. So each also draws the misfit of one cell, by which the
losses that it predicts for other cells are off, too.
"""
import os
import time

import numpy as np

from law import loss_fit, records
from law.formula import FULL_PRECISION_BITS
from law.intervals import interval
from workers import in_order


def resampled_weights(runs, random):
    """How often every run is drawn."""
    index, triples = records.cells(runs)
    weight = np.zeros(len(runs.loss))
    for cell in random.integers(0, len(triples), len(triples)):
        members = np.flatnonzero(index == cell)
        seeds = np.unique(runs.seed[members])
        for seed in random.choice(seeds, len(seeds)):
            weight[members[runs.seed[members] == seed]] += 1
    return weight


def shifted(runs, deviation, random):
    """The runs, with luck of the trunks of every (N, D, seed) added."""
    trunk, rows = records.groups(runs.parameters, runs.tokens, runs.seed)
    return runs._replace(loss=runs.loss * np.exp(random.normal(0, deviation, len(rows)))[trunk])


def refitter(runs, fitted, deviation):
    """What a worker process does with seeds."""
    def refit_resampled(seed):
        random = np.random.default_rng([seed, 1])
        weight = resampled_weights(runs, random)
        return loss_fit.refit(shifted(runs, deviation, random), weight, fitted, deviation, seed).coefficients

    return refit_resampled


def cell_misfits(runs, fitted):
    """(of every quantized (N, D, B) the mean residual of log L, measured minus law, the luck of trunks taken out; the same of
    those in full precision, where the form may be wrong by more; 0 if there are none)."""
    residual = np.log(runs.loss / loss_fit.predict(fitted.coefficients, runs)) - fitted.offset
    index, triples = records.cells(runs)
    means = np.bincount(index, residual, len(triples)) / np.bincount(index, minlength=len(triples))
    reference = triples[:, 2] == FULL_PRECISION_BITS
    return means[~reference], means[reference] if reference.any() else np.zeros(1)


def refits(runs, fitted, count, progress=lambda done, left: None):
    """`count` sets of coefficients and misfits of losses, the same for any number of processes."""
    begin = time.monotonic()
    results = []
    draw = np.random.default_rng(2)
    misfits = [draw.choice(of, count) for of in cell_misfits(runs, fitted)]
    deviation = loss_fit.trunk_deviation(runs)
    task = ("law.bootstrap", "refitter", (runs, fitted, deviation))
    processes = min(len(os.sched_getaffinity(0)), count)
    for number, coefficients in enumerate(in_order(task, range(count), processes), 1):
        drawn = (float(of[number - 1]) for of in misfits)
        results.append(coefficients | dict(zip(("loss_misfit", "full_precision_misfit"), drawn)))
        progress(number, (time.monotonic() - begin) / number * (count - number))
    return results


def unidentified(runs, fitted, samples):
    """Names that the runs don't determine: exponents whose interval is wider than a factor of ten or ends at a bound of the
    fit, or by which the fit hardly changes; coefficients of terms that are next to nothing, and their exponents."""
    flat = loss_fit.undetermined(runs, fitted)
    names = loss_fit.absent(runs, fitted)
    for name in fitted.free:
        if name in names:
            continue
        values = np.array([sample[name] for sample in samples])
        low, high = interval(values)
        at_bound = name not in loss_fit.COEFFICIENTS and (
            low <= 1.01 * loss_fit.LOWEST_EXPONENT or high >= 0.99 * loss_fit.HIGHEST_EXPONENT)
        # A coefficient moves with its exponents; what matters is whether the term is there.
        if name in flat or at_bound or (name not in loss_fit.COEFFICIENTS and high > 10 * low):
            names.append(name)
    return names
