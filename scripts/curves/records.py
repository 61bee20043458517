"""What a run has written: metrics.jsonl and run.json, also while it goes on."""
import os

import numpy as np

from errors import UserError
from json_records import read_json_lines, read_value

MOST_STEPS = 2**53  # which float64 tells apart


def is_step(value):
    return type(value) is int and 0 <= value < MOST_STEPS


class Run:
    """training, validation: records in the order of steps; settings: run.json, or empty: curves can be drawn without it."""

    def __init__(self, directory):
        if not os.path.isdir(directory):
            raise UserError(f"{directory}: no such directory; give the one that train_qat wrote with -o")
        metrics = os.path.join(directory, "metrics.jsonl")
        if not os.path.exists(metrics):
            raise UserError(f"{metrics}: no such file; {directory} is not a run of train_qat")
        self.directory = directory
        self.training, self.validation = read_metrics(metrics)
        self.settings = read_run(os.path.join(directory, "run.json"))

    @property
    def name(self):
        return os.path.basename(os.path.abspath(self.directory))

    def lookup(self, *names):
        """The first of these keys in the plan, the configuration or the parts of either."""
        sections = [self.settings.get(name) for name in ("plan", "configuration")]
        sections = [section for section in sections if isinstance(section, dict)]
        sections += [part for section in sections for part in section.values() if isinstance(part, dict)]
        for name in names:
            for section in sections:
                if section.get(name) is not None:
                    return section[name]
        return None

    def phase(self, name):
        """Training records of FP or QAT."""
        return [record for record in self.training if record.get("phase") == name]

    def validations(self, weights):
        """Those that have a number: of full_precision, rounded or quantized weights."""
        return [record for record in self.validation
                if record.get("weights") == weights and record["validation_loss"] is not None]

    def count(self, name):
        """A number of steps of the settings, 0 where there is none."""
        value = self.lookup(name)
        return value if is_step(value) else 0

    def switch_step(self):
        """Steps done when quantization-aware training began; None without both phases."""
        quantized = self.phase("QAT")
        return (self.count("fp_steps") or quantized[0]["step"] - 1) if quantized and self.phase("FP") else None

    def total_steps(self):
        return max(self.training[-1]["step"], self.count("total_steps"), 1)


def check(record):
    """ValueError, KeyError or OverflowError when a number of it is none."""
    if "loss" not in record and "validation_loss" not in record:
        return  # of another kind
    for name in ("loss", "learning_rate", "validation_loss", "step"):
        value = record.get(name)
        if not (value is None or type(value) in (int, float)):
            raise ValueError(name)
        float(value or 0)
    if not is_step(record["step"]) or ("validation_loss" in record and not isinstance(record["weights"], str)):
        raise ValueError("step or weights")


def read_metrics(path):
    """Returns the training records and the validation records, in the order of steps. Their numbers are numbers, or null."""
    training, validation = [], []
    for _, record in read_json_lines(path, check, "a record of train_qat (a JSON object with a step)"):
        kind = training if "loss" in record else validation if "validation_loss" in record else []
        kind.append(record)
    if not training:
        raise UserError(f"{path}: holds no training step yet")
    return (sorted(records, key=lambda record: record["step"]) for records in (training, validation))


def read_run(path):
    """run.json, or an empty one: the curves can be drawn without it."""
    try:
        run = read_value(path)
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None
    return run if isinstance(run, dict) else {}


def column(records, name):
    """Values as floats; null, which stands for NaN and infinity, becomes NaN."""
    return np.array([np.nan if record.get(name) is None else float(record[name]) for record in records])
