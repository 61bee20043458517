"""Refits of the loss law to resampled runs: cells (N, D, B) with replacement, and seeds within a cell.

Runs of one cell and seed stay together, because they share a trunk and its luck. So do all widths of one (N, D, seed),
which resampling cells would take for independent: every refit therefore also shifts the losses of each (N, D, seed) by
a draw of that luck, whose size is known from how much seeds differ.
"""
import multiprocessing
import os
import time

import numpy as np

from law import loss_fit, records
from law.intervals import interval


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


def refit_resampled(arguments):
    runs, fitted, deviation, seed = arguments
    random = np.random.default_rng([seed, 1])
    weight = resampled_weights(runs, random)
    return loss_fit.refit(shifted(runs, deviation, random), weight, fitted, deviation, seed).coefficients


def refits(runs, fitted, count, progress=lambda done, left: None):
    """`count` sets of coefficients, the same for any number of processes."""
    begin = time.monotonic()
    results = []
    deviation = loss_fit.trunk_deviation(runs)
    jobs = ((runs, fitted, deviation, seed) for seed in range(count))
    with multiprocessing.get_context("fork").Pool(min(os.cpu_count() or 1, count)) as pool:
        for number, coefficients in enumerate(pool.imap(refit_resampled, jobs), 1):
            results.append(coefficients)
            progress(number, (time.monotonic() - begin) / number * (count - number))
    return results


def unidentified(fitted, samples):
    """Names whose interval is wider than a factor of ten or ends at a bound of the fit: the runs don't determine them."""
    names = []
    for name in fitted.free:
        values = np.array([sample[name] for sample in samples])
        low, high = interval(values)
        at_bound = name not in loss_fit.COEFFICIENTS and (
            low <= 1.01 * loss_fit.LOWEST_EXPONENT or high >= 0.99 * loss_fit.HIGHEST_EXPONENT)
        # A coefficient moves with its exponents; what matters is whether the term is there.
        if at_bound or (name not in loss_fit.COEFFICIENTS and high > 10 * low):
            names.append(name)
    return names
