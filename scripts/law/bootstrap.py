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


def trunk_deviation(runs):
    """Standard deviation of log L from one seed's trunk to another's: from runs that differ in the seed alone. 0 where
    none do."""
    twins, rows = records.groups(runs.parameters, runs.tokens, runs.bits, np.round(records.fractions(runs), 9))
    log_loss, budget = np.log(runs.loss), records.groups(runs.parameters, runs.tokens)[0]
    offsets = {}  # (N, D), seed: deviations from the mean of the twins
    for twin in range(len(rows)):
        members = np.flatnonzero(twins == twin)
        if len(members) > 1:
            for member in members:
                key = (budget[member], runs.seed[member])
                offsets.setdefault(key, []).append(log_loss[member] - log_loss[members].mean())
    if not offsets:
        return 0.0
    seeds_of = np.array([np.sum([key[0] == other[0] for other in offsets]) for key in offsets], float)
    squares = np.array([np.mean(values) ** 2 for values in offsets.values()])
    return float(np.sqrt(np.mean(squares * seeds_of / (seeds_of - 1))))


def shifted(runs, deviation, random):
    """The runs, with luck of the trunks of every (N, D, seed) added."""
    trunk, rows = records.groups(runs.parameters, runs.tokens, runs.seed)
    return runs._replace(loss=runs.loss * np.exp(random.normal(0, deviation, len(rows)))[trunk])


def refit_resampled(arguments):
    runs, fitted, deviation, seed = arguments
    random = np.random.default_rng([seed, 1])
    weight = resampled_weights(runs, random)
    return loss_fit.refit(shifted(runs, deviation, random), weight, fitted, seed).coefficients


def refits(runs, fitted, count, progress=lambda done, left: None):
    """`count` sets of coefficients, the same for any number of processes."""
    begin = time.monotonic()
    results = []
    deviation = trunk_deviation(runs)
    jobs = ((runs, fitted, deviation, seed) for seed in range(count))
    with multiprocessing.get_context("fork").Pool(min(os.cpu_count() or 1, count)) as pool:
        for number, coefficients in enumerate(pool.imap(refit_resampled, jobs), 1):
            results.append(coefficients)
            progress(number, (time.monotonic() - begin) / number * (count - number))
    return results


def interval(values):
    """The 5th and 95th percentile: 90%."""
    low, high = np.percentile(np.asarray(values, float), [5, 95], axis=0)
    return low, high


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
