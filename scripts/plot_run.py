#!/usr/bin/env python3
"""Plot a run: loss and learning rate over the steps, from OUTPUT/metrics.jsonl and OUTPUT/run.json.

    scripts/plot_run.py out/quickstart_4bit                  writes out/quickstart_4bit/training.png
    scripts/plot_run.py out/quickstart_4bit -o curves.svg    or .pdf

Works on a run that is still going on, too.
"""
import argparse
import json
import os
import sys

FULL_PRECISION, QUANTIZED, ROUNDED, INK, GRID = "#0072b2", "#d55e00", "#a3195b", "#333333", "#e3e3e3"
COLOURS = {"FP": FULL_PRECISION, "QAT": QUANTIZED}
PHASE_NAMES = {"FP": "full precision", "QAT": "quantization-aware"}
MOST_POINTS = 4000  # of a curve: more than a figure has pixels
SHOWN_FROM = 0.08   # share of the steps whose steep start may leave the figure at the top


class UserError(Exception):
    """Something the user has to know: printed in one line, exit code 2."""


def read_metrics(path):
    """Returns the training records and the validation records, in the order of steps."""
    training, validation = [], []
    with open(path, encoding="utf-8") as file:
        lines = file.read().splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            kind = training if "loss" in record else validation if "validation_loss" in record else None
            if kind is not None:
                kind.append((int(record["step"]), record))
        except (ValueError, KeyError, TypeError):
            if number == len(lines) and not line.endswith("\n"):
                break  # a run in progress is writing it
            raise UserError(f"{path}, line {number}: not a record of train_qat (a JSON object with a step)") from None
    if not training:
        raise UserError(f"{path}: holds no training step yet")
    return ([record for _, record in sorted(records, key=lambda item: item[0])] for records in (training, validation))


def read_run(path):
    """run.json, or an empty one: the curves can be drawn without it."""
    try:
        with open(path, encoding="utf-8") as file:
            run = json.load(file)
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None
    return run if isinstance(run, dict) else {}


def lookup(run, *names):
    """The first of these keys in the plan, the configuration or the parts of either."""
    sections = [run.get(name) for name in ("plan", "configuration")]
    sections = [section for section in sections if isinstance(section, dict)]
    sections += [part for section in sections for part in section.values() if isinstance(part, dict)]
    for name in names:
        for section in sections:
            if section.get(name) is not None:
                return section[name]
    return None


def column(records, name):
    """Values as floats; null, which stands for NaN and infinity, becomes NaN."""
    return np.array([np.nan if record.get(name) is None else float(record[name]) for record in records])


def smooth(values, width):
    """Centred moving average with a triangular window, over what there is at the ends; NaN counts as missing."""
    width = min(width, len(values))
    window = 1.0 - np.abs(np.linspace(-1, 1, 2 * (width // 2) + 3))[1:-1]
    present = np.isfinite(values)
    # np.convolve's "same" follows the longer operand, so the padding is cut off by hand.
    half = len(window) // 2
    total = np.convolve(np.where(present, values, 0.0), window)[half : half + len(values)]
    weight = np.convolve(present.astype(float), window)[half : half + len(values)]
    return np.where(weight > 0, total / np.maximum(weight, 1e-12), np.nan)


def thinned(steps, values):
    stride = max(1, len(steps) // MOST_POINTS)
    return steps[::stride], values[::stride]


def lone(steps):
    """The marker of a curve: a line of one point would be invisible."""
    return "." if len(steps) == 1 else None


def draw_training(axes, training):
    """Both phases' curves; returns {phase: (steps, smoothed loss)}."""
    curves = {}
    width = max(3, len(training) // 40)
    for phase in ("FP", "QAT"):
        records = [record for record in training if record.get("phase") == phase]
        if not records:
            continue
        steps, loss = column(records, "step"), column(records, "loss")
        smoothed = smooth(loss, width)
        curves[phase] = steps, smoothed
        axes.plot(*thinned(steps, loss), color=COLOURS[phase], alpha=0.22, linewidth=0.8, zorder=2)
        axes.plot(*thinned(steps, smoothed), color=COLOURS[phase], linewidth=1.8, zorder=3, marker=lone(steps),
                  label=f"training, {PHASE_NAMES[phase]}")
    if not curves:
        raise UserError("metrics.jsonl: no record has the phase FP or QAT")
    return curves


def last_value(records):
    return f"{records[-1]['validation_loss']:.3f}"


def draw_validation(axes, validation):
    """Points of full-precision and quantized weights; returns the records of the rounding at the switch."""
    by_weights = {name: [record for record in validation
                         if record.get("weights") == name and record["validation_loss"] is not None]
                  for name in ("full_precision", "quantized", "rounded")}
    for name, colour in (("full_precision", FULL_PRECISION), ("quantized", QUANTIZED)):
        records = by_weights[name]
        if records:
            axes.plot(column(records, "step"), column(records, "validation_loss"), color=colour, linewidth=1.0,
                      linestyle=(0, (1, 2)), marker="o", markersize=6.5, markerfacecolor="white", markeredgewidth=1.7,
                      zorder=5, label=f"validation, {name.replace('_', ' ')}: {last_value(records)}")
    return by_weights["rounded"]


def set_loss_limits(axes, curves, validation):
    """Leaves out the steep start, and outliers of the raw curve."""
    smoothed = np.concatenate([values for _, values in curves.values()])
    steps = np.concatenate([steps for steps, _ in curves.values()])
    late = smoothed[steps >= steps[0] + SHOWN_FROM * (steps[-1] - steps[0])]
    seen = np.concatenate([late, column([r for r in validation if r.get("weights") != "rounded"], "validation_loss")])
    seen = seen[np.isfinite(seen)]
    if not len(seen):
        raise UserError("metrics.jsonl: no finite loss")
    low, high = float(seen.min()), float(seen.max())
    margin = max(0.08 * (high - low), 0.02)
    axes.set_ylim(low - 1.5 * margin, high + margin)


def annotate_beside(axes, step, loss, text, away, up, **style):
    """Text on the side of a point that has the room; `away` and `up` in points."""
    left = step > axes.get_xlim()[1] / 2
    axes.annotate(text, (step, loss), xytext=(-away if left else away, up), textcoords="offset points",
                  ha="right" if left else "left", fontsize=9, **style)


def draw_rounded(axes, rounded):
    """What rounding alone (PTQ) makes of the weights at the switch: far above the curves with few bits."""
    if not rounded:
        return
    step, loss = rounded[-1]["step"], rounded[-1]["validation_loss"]
    low, high = axes.get_ylim()
    label = f"validation, rounded at the switch (PTQ): {loss:.3f}"
    style = {"color": ROUNDED, "linestyle": "none", "zorder": 6, "label": label}
    if loss <= high + 0.5 * (high - low):
        margin = 0.06 * (high - low)
        axes.set_ylim(min(low, loss - margin), max(high, loss + margin))
        axes.plot([step], [loss], marker="X", markersize=10, markeredgecolor="white", markeredgewidth=0.8, **style)
        return
    axes.plot([step], [high - 0.025 * (high - low)], marker="^", markersize=10, **style)
    annotate_beside(axes, step, high, f"{loss:.2f}, above the figure", 9, -5, va="top", color=ROUNDED)


def switch_step(run, training):
    """Steps done when quantization-aware training began; None without both phases."""
    quantized = [record["step"] for record in training if record.get("phase") == "QAT"]
    if not quantized or not any(record.get("phase") == "FP" for record in training):
        return None
    return lookup(run, "fp_steps") or quantized[0] - 1


def draw_switch(loss_axes, rate_axes, step):
    for axes in (loss_axes, rate_axes):
        axes.axvline(step, color=INK, linewidth=1.0, linestyle=(0, (4, 3)), zorder=1)
        axes.axvspan(step, axes.get_xlim()[1], color=QUANTIZED, alpha=0.05, linewidth=0, zorder=0)
    annotate_beside(loss_axes, step, loss_axes.get_ylim()[0], f"switch to QAT after step {step:,}", 6, 7, va="bottom",
                    color=INK)


def draw_learning_rate(axes, training):
    rates = column(training, "learning_rate")
    steps = column(training, "step")
    for phase in ("FP", "QAT"):
        mask = np.array([record.get("phase") == phase for record in training])
        if mask.any():
            axes.plot(*thinned(steps[mask], rates[mask]), color=COLOURS[phase], linewidth=1.8,
                      marker=lone(steps[mask]))
    axes.set_ylim(bottom=0)
    axes.set_ylabel("learning rate")
    axes.yaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda value, _: f"{value:g}"))


def format_count(count):
    for size, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if count >= size:
            return f"{count / size:.1f}{suffix}"
    return f"{count:.0f}"


def titles(run):
    """Headline, and a line of details."""
    parameters, bits = lookup(run, "parameters"), lookup(run, "bits")
    fraction, predicted = lookup(run, "qat_fraction"), lookup(run, "predicted_fraction")
    per_step, steps = lookup(run, "tokens_per_step"), lookup(run, "total_steps", "steps")
    headline = [f"{format_count(parameters)} parameters"] if isinstance(parameters, (int, float)) else []
    if isinstance(bits, (int, float)):
        headline.append("no quantization" if bits >= 16 else "1 bit" if bits == 1 else f"{bits:g} bits")
    if isinstance(fraction, (int, float)):
        headline.append(f"{100 * fraction:.3g}% of the tokens quantization-aware")
    details = []
    if isinstance(per_step, int) and isinstance(steps, int):
        details.append(f"{format_count(per_step * steps)} tokens in {steps:,} steps of {per_step:,}")
    if isinstance(predicted, (int, float)) and predicted >= 0.001:
        details.append(f"planner's optimal fraction {100 * predicted:.3g}%")
    return ", ".join(headline) or "training run", ";  ".join(details)


def draw_legend(axes):
    """Above the axes, where it hides nothing: training in the left column, validation in the right one."""
    handles, labels = axes.get_legend_handles_labels()
    entries = list(zip(handles, labels))
    training = [entry for entry in entries if entry[1].startswith("training")]
    validation = [entry for entry in entries if entry not in training]
    blank = matplotlib.lines.Line2D([], [], linestyle="none"), ""
    rows = max(len(training), len(validation))
    columns = [column + [blank] * (rows - len(column)) for column in (training, validation) if column]
    handles, labels = zip(*sum(columns, []))
    axes.legend(handles, labels, loc="lower left", bbox_to_anchor=(-0.008, 1.0), ncol=len(columns), fontsize=9.5,
                frameon=False, borderpad=0.3, labelspacing=0.4, columnspacing=3.0)
    return rows


def plot(run, training, validation, path):
    matplotlib.use("Agg")
    plt.rcParams.update({
        "font.size": 10, "axes.edgecolor": "#999999", "axes.labelcolor": INK, "text.color": INK, "xtick.color": INK,
        "ytick.color": INK, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
        "grid.color": GRID, "grid.linewidth": 0.7, "axes.axisbelow": True,
    })
    figure, (loss_axes, rate_axes) = plt.subplots(
        2, 1, sharex=True, figsize=(9.6, 6.2), gridspec_kw={"height_ratios": (4.2, 1), "hspace": 0.09})
    steps = column(training, "step")
    loss_axes.set_xlim(0, max(steps[-1], lookup(run, "total_steps") or 0) * 1.015)
    curves = draw_training(loss_axes, training)
    rounded = draw_validation(loss_axes, validation)
    set_loss_limits(loss_axes, curves, validation)
    draw_rounded(loss_axes, rounded)
    draw_learning_rate(rate_axes, training)
    switch = switch_step(run, training)
    if switch is not None:
        draw_switch(loss_axes, rate_axes, switch)
    headline, details = titles(run)
    above = 16 * draw_legend(loss_axes) + 10  # points
    loss_axes.annotate(details, (0, 1), xycoords="axes fraction", xytext=(0, above), textcoords="offset points",
                       fontsize=9.5, color="#666666")
    loss_axes.set_title(headline, loc="left", fontsize=13, fontweight="bold", pad=above + (19 if details else 3))
    loss_axes.set_ylabel("loss (nats per token)")
    rate_axes.set_xlabel("optimizer step")
    rate_axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(nbins=9, integer=True))
    rate_axes.xaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda value, _: f"{value:,.0f}"))
    figure.align_ylabels()
    save(figure, path)


def save(figure, path):
    partial = path + ".partial"
    try:
        figure.savefig(partial, format=os.path.splitext(path)[1][1:].lower(), dpi=160, bbox_inches="tight",
                       facecolor="white")
        os.replace(partial, path)
    finally:
        if os.path.exists(partial):
            os.unlink(partial)


class OneLineParser(argparse.ArgumentParser):
    """argparse prints its usage before an error; one line is easier to read, and --help has the rest."""

    def error(self, message):
        self.exit(2, f"plot_run.py: error: {message} (see --help)\n")


def main():
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", metavar="OUTPUT", help="directory of the run (train_qat's -o)")
    parser.add_argument("-o", dest="figure", metavar="FILE", help=".png, .svg or .pdf (OUTPUT/training.png)")
    arguments = parser.parse_args()
    path = arguments.figure or os.path.join(arguments.output, "training.png")
    if not path.lower().endswith((".png", ".svg", ".pdf")):
        parser.error(f"-o {path}: the name must end in .png, .svg or .pdf")
    if not os.path.isdir(arguments.output):
        raise UserError(f"{arguments.output}: no such directory; give the one that train_qat wrote with -o")
    metrics = os.path.join(arguments.output, "metrics.jsonl")
    if not os.path.exists(metrics):
        raise UserError(f"{metrics}: no such file; {arguments.output} is not a run of train_qat")
    training, validation = read_metrics(metrics)
    plot(read_run(os.path.join(arguments.output, "run.json")), training, validation, path)
    print(f"wrote {path}")


if __name__ == "__main__":
    try:
        import matplotlib
        import matplotlib.pyplot as plt
        import matplotlib.ticker  # noqa: F401 (used through matplotlib)
        import numpy as np
    except ImportError as error:
        print(f"plot_run.py: error: Python has no {error.name}; install python3-matplotlib and use /usr/bin/python3",
              file=sys.stderr)
        sys.exit(2)
    try:
        main()
    except (UserError, OSError) as error:
        text = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else error
        print(f"plot_run.py: error: {text}", file=sys.stderr)
        sys.exit(2)
