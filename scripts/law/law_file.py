"""law.json: what a fit found, for predictions here and in the trainer (model/plan/law_file.cpp reads the same)."""
import json

import numpy as np

from law import records
from errors import UserError
from json_records import is_finite, read_value
from law.formula import NAMES, tokens_per_parameter_byte

FORMAT = "train_qat scaling law 2"
LEAST_SAMPLES = 20
MISFITS = ("loss_misfit", "full_precision_misfit", "fraction_misfit")  # of every refit, beside its coefficients


def ranges(runs):
    """What was fitted: predictions outside of it are extrapolations."""
    both = records.take(runs, records.quantization_aware(runs))
    s = tokens_per_parameter_byte(both.tokens, both.parameters, both.bits)
    limits = lambda values: [float(np.min(values)), float(np.max(values))]
    reference = records.take(runs, records.full_precision(runs))
    return {"parameters": limits(both.parameters), "tokens": limits(both.tokens),
            "tokens_per_parameter_byte": limits(s), "qat_fraction": limits(records.fractions(both)),
            "bits": sorted(set(both.bits)),
            "full_precision": {"parameters": limits(reference.parameters), "tokens": limits(reference.tokens)}
            if len(reference.loss) else None}


def content(runs, cooldown, form, coefficients, samples, unidentified, constant, optimal_fraction, found, comparison):
    """The object to write. samples: coefficients and MISFITS of every refit; found: the measured optima; comparison: rows
    of the table."""
    return {
        "format": FORMAT,
        "source": {"runs": len(runs.loss), "cells": len(found), "vocabulary": int(runs.vocabulary[0]),
                   "data": sorted(map(str, set(runs.data))), "cooldown": cooldown},
        "fitted_range": ranges(runs),
        "loss_law": {"form": form, "coefficients": coefficients, "unidentified": unidentified,
                     "bootstrap": {name: [float(sample[name]) for sample in samples] for name in (*NAMES, *MISFITS)}},
        "fraction_law": {"a": constant.value, "bootstrap": {"a": [float(value) for value in constant.draws[:200]],
                                                            "misfit": [float(value) for value in constant.misfits[:200]]}},
        "optimal_fraction": optimal_fraction,
        "optima": [{key: float(value) for key, value in o._asdict().items() if key != "curve"} for o in found],
        "comparison": [{**row._asdict(), "held_out": {name: held._asdict() for name, held in row.held_out.items()}}
                       for row in comparison],
    }


def write(file, law):
    """file: open for bytes."""
    # A line for each part: bootstraps are long.
    parts = (f"{json.dumps(key)}: {json.dumps(value)}" for key, value in law.items())
    file.write(("{\n" + ",\n".join(parts) + "\n}\n").encode())


def is_number(value):
    return is_finite(value) and value >= 0


def read(path):
    """The law, checked. UserError names the file and the key."""
    try:
        law = read_value(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a law ({getattr(error, 'strerror', None) or error}); "
                        "`scaling_law.py fit` writes one") from None
    if not isinstance(law, dict) or law.get("format") != FORMAT:
        raise UserError(f"{path}: not a law of this version (format must be \"{FORMAT}\")")
    try:
        coefficients, samples = law["loss_law"]["coefficients"], law["loss_law"]["bootstrap"]
        lengths = {len(samples[name]) for name in (*NAMES, *MISFITS)}
        for name in NAMES:
            if not all(map(is_number, [coefficients[name], *samples[name]])):
                raise UserError(f"{path}: loss_law: {name} must be a number from 0, in the bootstrap too")
        if len(lengths) != 1 or min(lengths) < LEAST_SAMPLES:
            raise UserError(f"{path}: loss_law: the bootstrap needs {LEAST_SAMPLES} values or more of every coefficient")
        of_fraction = law["fraction_law"]["bootstrap"]
        if not of_fraction["a"] or not all(map(is_number, [law["fraction_law"]["a"], *of_fraction["a"]])):
            raise UserError(f"{path}: fraction_law: a must be a number from 0, in the bootstrap too")
        misfits = [value for name in MISFITS for value in samples[name]]
        if not all(map(is_finite, [*misfits, *of_fraction["misfit"]])) \
                or len(of_fraction["misfit"]) != len(of_fraction["a"]):
            raise UserError(f"{path}: misfits must be numbers, as many as there are refits")
        if law["optimal_fraction"] not in ("loss_law", "fraction_law"):
            raise UserError(f"{path}: optimal_fraction must be loss_law or fraction_law")
        ranges_of = dict(law["fitted_range"])
        reference = ranges_of.pop("full_precision") or {"parameters": [0], "tokens": [0]}
        for name in ("parameters", "tokens", "tokens_per_parameter_byte", "qat_fraction", "bits"):
            if not ranges_of[name] or not all(map(is_number, [*ranges_of[name], *reference.get(name, [])])):
                raise UserError(f"{path}: fitted_range: {name} must hold numbers")
        reference["parameters"], reference["tokens"]
        law["source"]["runs"]
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: not a whole law: {error} is missing or of the wrong kind") from None
    return law


def coefficient_sets(law):
    """[the fitted coefficients, then every refit's with its misfits]: {name: value} each."""
    samples = law["loss_law"]["bootstrap"]
    names = (*NAMES, *MISFITS)
    fitted = law["loss_law"]["coefficients"] | dict.fromkeys(MISFITS, 0.0)
    return [fitted, *({name: samples[name][i] for name in names} for i in range(len(samples["alpha"])))]
