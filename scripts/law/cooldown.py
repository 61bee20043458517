"""Fused against classic cooldown, runs of one (N, D, bits, seed): the best of the fractions that both were trained with.

Each has its own best fraction, and its own learning rate: a fused run has one peak, a classic one a second for its
quantization-aware range. Runs of one trunk share its luck, so that trunks are what is counted."""
import collections

import numpy as np
from scipy.stats import t as student

from law import records

# difference: fused - classic validation loss, the mean over `trunks` of what differs between the best of `pairs` pairs; low,
# high: its 90% interval.
Difference = collections.namedtuple("Difference", "bits pairs trunks difference low high")


def pairs(runs):
    """{bits: {(N, D, seed): [(fused, classic loss) of every common f]}}."""
    of = records.take(runs, records.quantization_aware(runs))
    classic, fused = {}, {}
    for row in zip(of.parameters, of.tokens, of.bits, of.qat_tokens, of.seed, of.cooldown, of.loss):
        (fused if row[5] == "fused" else classic)[row[:5]] = row[6]
    result = collections.defaultdict(lambda: collections.defaultdict(list))
    for key in sorted(fused.keys() & classic.keys()):
        parameters, tokens, bits, _, seed = key
        result[bits][parameters, tokens, seed].append((fused[key], classic[key]))
    return result


def compare(runs):
    """A Difference for every width with two trunks or more."""
    found = []
    for bits, by_trunk in sorted(pairs(runs).items()):
        differences = [np.subtract(*np.min(losses, axis=0)) for losses in by_trunk.values()]
        count = len(differences)
        if count < 2:
            continue
        mean = np.mean(differences)
        reach = student.ppf(0.95, count - 1) * np.std(differences, ddof=1) / np.sqrt(count)
        found.append(Difference(bits, sum(map(len, by_trunk.values())), count, float(mean), float(mean - reach),
                                float(mean + reach)))
    return found


def table(found):
    lines = [f"{'bits':>5} {'pairs':>5} {'trunks':>6}  fused - classic loss at the best common f [90%]"]
    for d in found:
        verdict = "fused is better" if d.high < 0 else "classic is better" if d.low > 0 else "no difference seen"
        lines.append(f"{d.bits:>5g} {d.pairs:>5} {d.trunks:>6}  {d.difference:+.4f} [{d.low:+.4f}, {d.high:+.4f}]  {verdict}")
    return "\n".join(lines)
