"""Runs from results.jsonl files of sweeps, checked for what the fits need."""
import collections
import json
import sys

import numpy as np

from errors import UserError
from json_records import is_finite, read_json_lines
from law.formula import FULL_PRECISION_BITS

LEAST_RUNS, LEAST_FRACTIONS = 20, 4
NUMBERS = ("n", "tokens", "b", "fp_tokens", "qat_tokens", "validation_loss")
COUNTS = ("seed", "vocabulary")  # whole numbers, where they are given
TEXTS = ("data", "cooldown_used")

# Arrays of one length, a run each. data, vocabulary: texts and numbers that all of them share.
Runs = collections.namedtuple("Runs", "parameters tokens bits fp_tokens qat_tokens loss seed cooldown data vocabulary")


def take(runs, which):
    return Runs(*(column[which] for column in runs))


def fractions(runs):
    return runs.qat_tokens / (runs.fp_tokens + runs.qat_tokens)


def groups(*columns):
    """The index of every row's group among the sorted distinct rows, and those rows."""
    rows, index = np.unique(np.column_stack(columns), axis=0, return_inverse=True)
    return index.reshape(-1), rows


def cells(runs):
    """The index of every run's (N, D, B), and those triples."""
    return groups(runs.parameters, runs.tokens, runs.bits)


def read_lines(path):
    """(number of the line, record)"""
    try:
        yield from read_json_lines(path, lambda record: (record["run"], record["status"]),
                                   "a result of a sweep (a JSON object with run and status); remove the line")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def check_record(path, number, record):
    def fail(key, what):
        raise UserError(f"{path}, line {number}: {key} of the run {record['run']} is {json.dumps(record.get(key))}, {what}; "
                        "remove the line or train the run again (-retry_failed)")

    for key in NUMBERS:
        value = record.get(key)
        if not is_finite(value) or value < 0 or (value == 0 and key not in ("fp_tokens", "qat_tokens")):
            fail(key, "not a positive number")
    for key in COUNTS:
        if key in record and (not isinstance(record[key], int) or isinstance(record[key], bool)):
            fail(key, "not a whole number")
    for key in TEXTS:
        if key in record and not isinstance(record[key], str):
            fail(key, "not a text")
    if not (1 <= record["b"] <= 8 or record["b"] == FULL_PRECISION_BITS):
        fail("b", f"neither 1 to 8 nor {FULL_PRECISION_BITS}")
    if record["fp_tokens"] + record["qat_tokens"] != record["tokens"]:
        fail("tokens", f"not fp_tokens + qat_tokens = {record['fp_tokens'] + record['qat_tokens']:g}")


def read_records(paths):
    """The finished runs of all files; one of the same job replaces an earlier one."""
    finished, failed = {}, set()
    for path in paths:
        for number, record in read_lines(path):
            key = record.get("job", record["run"])
            if record["status"] == "done":
                check_record(path, number, record)
                finished[key] = record
                failed.discard(key)
            else:
                failed.add(key)
    if failed:
        print(f"scaling_law.py: warning: {len(failed)} failed runs are left out", file=sys.stderr)
    return list(finished.values())


def check_rates(records):
    """Runs of one cell must differ in fraction and seed alone."""
    rates = collections.defaultdict(set)
    for record in records:
        cell = (record["n"], record["tokens"], record["b"], record.get("cooldown_used"))
        rates[cell].add((record.get("lr"), record.get("qat_lr")))
    for (parameters, tokens, bits, _), found in rates.items():
        if len(found) > 1:
            raise UserError(f"the runs of n = {parameters}, tokens = {tokens}, b = {bits:g} have different learning rates "
                            f"({', '.join(f'{lr} and {qat_lr}' for lr, qat_lr in sorted(found, key=str))}): fit each alone")


def check_twins(records):
    """No run twice: what makes two jobs of a sweep different beyond these (batch, device) makes them incomparable, too."""
    seen = {}
    for record in records:
        key = tuple(record.get(name) for name in ("n", "tokens", "b", "fp_tokens", "seed", "cooldown_used"))
        if key in seen:
            raise UserError(f"the runs {seen[key]} and {record['run']} have the same n, tokens, b, fraction, seed and cooldown; "
                            "remove one")
        seen[key] = record["run"]


def read_runs(paths):
    """All finished runs. UserError for what can't be compared: other data, another tokenizer."""
    records = read_records(paths)
    if not records:
        raise UserError(f"{', '.join(paths)}: no finished run")
    vocabularies = sorted({str(record.get("vocabulary", "unknown")) for record in records})
    if len(vocabularies) > 1:
        raise UserError(f"the runs have different tokenizers (vocabularies {', '.join(vocabularies)}), so that their "
                        "losses can't be compared; fit each alone")
    data = sorted({str(record.get("data", "unknown")) for record in records})
    if len(data) > 1:
        raise UserError(f"the runs were trained or validated on different data ({', '.join(data)} in \"data\"), so that "
                        "their losses can't be compared; fit each alone")
    check_rates(records)
    check_twins(records)
    column = lambda key, kind=float: np.array([record[key] for record in records], kind)
    return Runs(column("n"), column("tokens"), column("b"), column("fp_tokens"), column("qat_tokens"),
                column("validation_loss"), np.array([record.get("seed", 0) for record in records], float),
                np.array([record.get("cooldown_used", "classic") for record in records]),
                np.array([record.get("data", "unknown") for record in records]),
                np.array([record.get("vocabulary", 0) for record in records]))


def full_precision(runs):
    return runs.bits == FULL_PRECISION_BITS


def quantization_aware(runs):
    """Which runs have both phases: the law speaks of those."""
    return ~full_precision(runs) & (runs.qat_tokens > 0) & (runs.fp_tokens > 0)


def select(runs, cooldown=None):
    """(runs to fit on, their cooldown): with both phases, or without quantization. The more frequent cooldown."""
    both = quantization_aware(runs)
    if not both.any():
        raise UserError("no run has a full-precision and a quantization-aware phase (qat_frac between 0 and 1)")
    if cooldown is None:
        names, counts = np.unique(runs.cooldown[both], return_counts=True)
        cooldown = str(names[np.argmax(counts)])
    which = (both & (runs.cooldown == cooldown)) | full_precision(runs)
    left_out = len(which) - int(which.sum())
    if left_out:
        print(f"scaling_law.py: note: {left_out} runs with another cooldown, or with one phase alone, are left out",
              file=sys.stderr)
    chosen = take(runs, which)
    check_variation(chosen, cooldown)
    return chosen, cooldown


def check_variation(runs, cooldown):
    """What the fits can't do without."""
    both = take(runs, quantization_aware(runs))
    if len(both.loss) < LEAST_RUNS:
        raise UserError(f"{len(both.loss)} runs with cooldown {cooldown} and both phases: at least {LEAST_RUNS} are needed")
    for name, column, what in (("bits", both.bits, "b"), ("N", both.parameters, "n"), ("D", both.tokens, "tokens")):
        if name != "N" and len(np.unique(column)) < 2:
            raise UserError(f"all runs have {name} = {column[0]:.4g}: a law needs at least two values; extend \"{what}\" "
                            "in the sweep's grid")
    index, triples = cells(both)
    fraction = fractions(both)
    if max(len(np.unique(fraction[index == cell])) for cell in range(len(triples))) < LEAST_FRACTIONS:
        raise UserError(f"no (N, D, B) has {LEAST_FRACTIONS} different fractions: the best one can't be found; extend "
                        "\"qat_frac\" in the sweep's grid")
