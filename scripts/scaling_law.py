#!/usr/bin/env python3
"""Fit the laws of quantization-aware training to the runs of sweeps, and predict with them (arXiv 2509.22935).

    scripts/scaling_law.py fit out/sweep/results.jsonl -o law.json --plots plots/
    scripts/scaling_law.py predict law.json -n 396M -tokens 8B --memory 500MB

`fit` measures the best fraction of every (N, D, B), fits the loss law and the law of the fraction, holds out parts of the
runs, compares simpler forms, and writes what `predict` and `train_qat -law` read. Intervals are 90%.
"""
import argparse
import collections
import math
import os
import re
import sys
import time

for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):  # matrices here are small: threads would only wait
    os.environ.setdefault(_name, "1")

from errors import OneLineParser, UserError, begin, fail, import_text, path_name, run  # noqa: E402
import workers  # noqa: E402: of data/prepare
from outputs import OutputFile  # noqa: E402

if __name__ == "__main__":
    begin("scaling_law.py")  # NumPy and SciPy take a second

try:
    import numpy as np

    from law import (bootstrap, comparison, cooldown, fraction_fit, law_file, loss_fit, optima, records,  # noqa: E402
                     report)
    from law.prediction import Law, short  # noqa: E402
except ImportError as missing:
    fail("scaling_law.py", import_text(missing))

UNITS = {"": 1, "K": 1e3, "M": 1e6, "B": 1e9, "G": 1e9, "T": 1e12}


def count(text):
    """396M, 8B, 1.5e9; also with B for bytes: 500MB."""
    match = re.fullmatch(r"([0-9.]+(?:e[0-9]+)?)([KMGBT]?)B?", text.strip(), re.IGNORECASE)
    try:
        value = float(match[1]) * UNITS[match[2].upper()]
    except (TypeError, ValueError):
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"cannot read '{text}': expected a positive number such as 396M, 8B or 500MB")
    return value


def progress_line(begin):
    """Prints what is being done, with the seconds since the start."""
    return lambda text: print(f"[{time.monotonic() - begin:5.0f}s] {text}", flush=True)


def bootstrap_progress(say, count_of_refits):
    def progress(done, left):
        if done in (1, count_of_refits) or done % max(1, count_of_refits // 5) == 0:
            say(f"refits to resampled runs: {done} of {count_of_refits}, {left:.0f}s left")
    return progress


def check_outputs(arguments):
    """Before hours are spent on what could not be written; the law itself is begun before them."""
    path, directory = arguments.output, arguments.plots
    if os.path.realpath(path) in map(os.path.realpath, arguments.results):
        raise UserError(f"-o {path}: is one of the results to read; give another name")
    if not directory:
        return
    from law import plots
    above = os.path.abspath(directory)
    while not os.path.lexists(above):
        above = os.path.dirname(above)
    if not os.path.isdir(above) or not os.access(above, os.W_OK):
        raise UserError(f"--plots {directory}: {above} is no directory that can be written to")
    for name in plots.NAMES:
        figure = os.path.join(directory, name + ".png")
        if os.path.lexists(figure) and not arguments.overwrite:
            raise UserError(f"--plots {directory}: {figure} is there already; name another directory, or --overwrite")


def with_fraction_misfits(samples, fitted, found):
    """The refits, each with the misfit of f* that one of the measured optima shows."""
    misfits = fraction_fit.logit_misfits(found, lambda of: comparison.law_fractions(fitted.coefficients, of))
    drawn = np.random.default_rng(3).choice(misfits, len(samples))
    return [sample | {"fraction_misfit": float(misfit)} for sample, misfit in zip(samples, drawn)]


def fit(arguments):
    workers.advice = "free some, or give this program fewer cores (taskset)"
    check_outputs(arguments)
    with OutputFile(arguments.output, "-o", arguments.overwrite, advice="give another name, or --overwrite") as file:
        fitted = fit_law(arguments)
        law_file.write(file, fitted.law)
    print(fitted.text)
    print(f"\nlaw         {arguments.output}")
    if arguments.plots:
        draw(arguments.plots, fitted)


# law: the content of its file; text: what the fit says of it.
Fitted = collections.namedtuple("Fitted", "law runs found constant text")


def fit_law(arguments):
    """A Fitted."""
    say = progress_line(time.monotonic())
    every_run = records.read_runs(arguments.results)
    runs, chosen_cooldown = records.select(every_run, arguments.cooldown)
    both = records.take(runs, records.quantization_aware(runs))
    found, silent = optima.with_minimum(optima.measure(both))
    if len(fraction_fit.usable(found)) < fraction_fit.LEAST_OPTIMA:
        raise UserError(f"only {len(fraction_fit.usable(found))} (N, D, B) with S > 1 have {records.LEAST_FRACTIONS} "
                        f"fractions or more, and losses that show which is best: at least {fraction_fit.LEAST_OPTIMA} are needed")
    constant = fraction_fit.fit_constant(found)
    compared = comparison.Comparison(runs, found, arguments.starts, say)
    rows = compared.rows()
    advice = comparison.recommend(rows)
    form = advice.form if arguments.form == "auto" else arguments.form
    fitted = compared.fits[form]
    samples = bootstrap.refits(runs, fitted, arguments.bootstrap, bootstrap_progress(say, arguments.bootstrap))
    samples = with_fraction_misfits(samples, fitted, found)
    unidentified = bootstrap.unidentified(runs, fitted, samples)
    law = law_file.content(runs, chosen_cooldown, form, fitted.coefficients, samples, unidentified, constant,
                           advice.optimal_fraction, found, rows)
    lines = [f"\n{len(runs.loss)} runs, cooldown {chosen_cooldown}; {len(found)} optima\n",
             report.optima_table(found, silent, constant.value),
             f"\nf* = exp(-a / ln S): a = {constant.value:.3f} [{constant.low:.3f}, {constant.high:.3f}]",
             report.finding(found), f"\n{report.comparison_table(rows)}",
             f"recommended: {advice.form}; f* by the {advice.optimal_fraction.replace('_', ' ')}"]
    if advice.remark:
        lines.append(f"note: {advice.remark}")
    if form != advice.form:
        lines.append(f"fitted, as --form asks: {form}")
    if not fitted.converged:
        lines.append("note: the fit stopped at its limit of iterations: coefficients may still move, losses hardly")
    lines.append(f"\n{report.coefficient_table(fitted.coefficients, samples, unidentified)}")
    differences = cooldown.compare(every_run)
    if differences:
        lines.append(f"\n{cooldown.table(differences)}")
    return Fitted(law, runs, found, constant, "\n".join(lines))


def draw(directory, fitted):
    from law import plots
    law = Law(fitted.law)
    for path in plots.draw_all(fitted.runs, fitted.found, fitted.constant, law, directory):
        print(f"plot        {path}")


def sizes(arguments, bits):
    """[(bits, N)]: the size asked for where it fits into the memory, or those that fill the memory."""
    if not arguments.memory:
        if not arguments.n:
            raise UserError("give the size, -n 396M, or the memory for the weights, --memory 500MB")
        return [(b, arguments.n) for b in bits]
    if not arguments.n:
        print(f"sizes whose weights fill {short(arguments.memory)} bytes: N = 8 memory / bits (train_qat -memory counts scales "
              "and embeddings, too)")
        return [(b, 8 * arguments.memory / b) for b in bits]
    fitting = [(b, arguments.n) for b in bits if arguments.n * b / 8 <= arguments.memory]
    if not fitting:
        raise UserError(f"--memory: {short(arguments.n)} weights take {short(arguments.n * min(bits) / 8)} bytes at "
                        f"{min(bits):g} bits; give a smaller -n or more memory")
    for b in sorted(set(bits) - {b for b, _ in fitting}):
        print(f"{b:g} bits: {short(arguments.n)} weights take {short(arguments.n * b / 8)} bytes: too many")
    return fitting


def predict(arguments):
    content = law_file.read(arguments.law)
    law = Law(content)
    source = content["source"]
    print(f"law of {source['runs']} runs: {content['loss_law'].get('form', 'loss law')}; intervals are 90%")
    widths = [law.width(size, arguments.tokens, b) for b, size in sizes(arguments, arguments.b or law.bits)]
    reference = arguments.n or widths[-1].parameters
    print(report.prediction_table(law, widths, law.full_precision(reference, arguments.tokens)))
    predicted = [width for width in widths if width.loss]
    if arguments.memory and predicted:
        best = min(predicted, key=lambda width: width.loss.value)
        print(f"\nbest in {short(arguments.memory)} bytes: {best.bits:g} bits, N = {short(best.parameters)}, f* = "
              f"{best.fraction.value:.3f}, loss {report.interval_text(best.loss)}")
    outside = sorted({text for w in widths for text in law.extrapolations(w.parameters, w.tokens, w.bits)})
    for text in outside:
        print(f"extrapolated: {text}")


def parse_arguments():
    parser = OneLineParser(description=__doc__.splitlines()[0], formatter_class=argparse.RawDescriptionHelpFormatter,
                                     epilog="\n".join(__doc__.splitlines()[2:]))
    commands = parser.add_subparsers(dest="command", required=True)
    fitting = commands.add_parser("fit", help="fit the laws to results.jsonl of sweeps")
    fitting.add_argument("results", nargs="+", type=path_name, metavar="RESULTS", help="results.jsonl, one or more")
    fitting.add_argument("-o", "--output", required=True, type=path_name, help="the law to write, e.g. law.json")
    fitting.add_argument("--overwrite", action="store_true", help="replace the law and figures that are there")
    fitting.add_argument("--plots", type=path_name, metavar="DIRECTORY", help="where to put the figures")
    fitting.add_argument("--cooldown", choices=("classic", "fused"), help="of the runs to fit (the more frequent one)")
    fitting.add_argument("--form", choices=("auto", *loss_fit.FORMS), default="auto",
                         help="of the loss law (auto: the simplest that predicts held-out runs as well as the best)")
    fitting.add_argument("--starts", type=int, default=loss_fit.STARTS, help=f"of every fit ({loss_fit.STARTS})")
    fitting.add_argument("--bootstrap", type=int, default=200, help="refits to resampled runs (200)")
    predicting = commands.add_parser("predict", help="what a law says about a run")
    predicting.add_argument("law", type=path_name, metavar="LAW", help="law.json")
    predicting.add_argument("-n", type=count, help="parameters, e.g. 396M")
    predicting.add_argument("-tokens", "--tokens", type=count, required=True, help="e.g. 8B")
    predicting.add_argument("-b", type=float, nargs="+", help="widths (those fitted)")
    predicting.add_argument("-memory", "--memory", type=count, help="of the weights: sizes follow from it, e.g. 500MB")
    arguments = parser.parse_args()
    if arguments.command == "fit" and (arguments.starts < 8 or arguments.bootstrap < law_file.LEAST_SAMPLES):
        parser.error(f"--starts must be at least 8 and --bootstrap at least {law_file.LEAST_SAMPLES}")
    if arguments.command == "predict" and arguments.b and not all(1 <= b <= 8 for b in arguments.b):
        parser.error("-b: widths must be from 1 to 8 bits")
    return arguments


if __name__ == "__main__":
    arguments = parse_arguments()
    run("scaling_law.py", lambda: (fit if arguments.command == "fit" else predict)(arguments))
