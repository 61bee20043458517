"""Fused against classic cooldown: runs that differ in nothing else, paired."""
import collections

import numpy as np
from scipy.stats import t as student

from law import records

# difference: fused - classic validation loss, of `pairs` pairs; low, high: 90% interval of the mean.
Difference = collections.namedtuple("Difference", "bits pairs difference low high")


def pairs(runs):
    """{bits: differences of equal (N, D, B, f, seed)}."""
    of = records.take(runs, records.quantization_aware(runs))
    classic, fused = {}, {}
    for row in zip(of.parameters, of.tokens, of.bits, of.qat_tokens, of.seed, of.cooldown, of.loss):
        (fused if row[5] == "fused" else classic)[row[:5]] = row[6]
    result = collections.defaultdict(list)
    for key in sorted(fused.keys() & classic.keys()):
        result[key[2]].append(fused[key] - classic[key])
    return result


def compare(runs):
    """A Difference for every width with two pairs or more."""
    found = []
    for bits, differences in pairs(runs).items():
        count = len(differences)
        if count < 2:
            continue
        mean, error = np.mean(differences), np.std(differences, ddof=1) / np.sqrt(count)
        reach = student.ppf(0.95, count - 1) * error
        found.append(Difference(bits, count, float(mean), float(mean - reach), float(mean + reach)))
    return found


def table(found):
    lines = [f"{'bits':>5} {'pairs':>5}  fused - classic loss [90%]"]
    for d in found:
        verdict = "fused is better" if d.high < 0 else "classic is better" if d.low > 0 else "no difference seen"
        lines.append(f"{d.bits:>5g} {d.pairs:>5}  {d.difference:+.4f} [{d.low:+.4f}, {d.high:+.4f}]  {verdict}")
    return "\n".join(lines)
