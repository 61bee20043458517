"""The figure of one run: loss of both phases, validations, the switch, and the learning rate below."""
import matplotlib
import numpy as np

from curves.records import column
from curves.style import (FULL_PRECISION, INK, PHASE_NAMES, QUANTIZED, ROUNDED, late_values, lone, set_limits, smooth, thinned,
                          two_axes)
from errors import UserError
from json_records import is_finite

COLOURS = {"FP": FULL_PRECISION, "QAT": QUANTIZED}


def draw_training(axes, run):
    """Both phases' curves; returns {phase: (steps, smoothed loss)}."""
    curves = {}
    width = max(3, len(run.training) // 40)
    for phase in ("FP", "QAT"):
        records = run.phase(phase)
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


def draw_validation(axes, run):
    """Points of full-precision and quantized weights."""
    for name, colour in (("full_precision", FULL_PRECISION), ("quantized", QUANTIZED)):
        records = run.validations(name)
        if records:
            axes.plot(column(records, "step"), column(records, "validation_loss"), color=colour, linewidth=1.0,
                      linestyle=(0, (1, 2)), marker="o", markersize=6.5, markerfacecolor="white", markeredgewidth=1.7,
                      zorder=5, label=f"validation, {name.replace('_', ' ')}: {last_value(records)}")


def set_loss_limits(axes, curves, run):
    """Leaves out the steep start, and outliers of the raw curve."""
    steps, smoothed = (np.concatenate(parts) for parts in zip(*curves.values()))
    validations = column([r for r in run.validation if r.get("weights") != "rounded"], "validation_loss")
    seen = np.concatenate([late_values(steps, smoothed), validations[np.isfinite(validations)]])
    if not len(seen):
        raise UserError("metrics.jsonl: no finite loss")
    set_limits(axes, seen)


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


def draw_switch(loss_axes, rate_axes, step):
    for axes in (loss_axes, rate_axes):
        axes.axvline(step, color=INK, linewidth=1.0, linestyle=(0, (4, 3)), zorder=1)
        axes.axvspan(step, axes.get_xlim()[1], color=QUANTIZED, alpha=0.05, linewidth=0, zorder=0)
    annotate_beside(loss_axes, step, loss_axes.get_ylim()[0], f"switch to QAT after step {step:,}", 6, 7, va="bottom",
                    color=INK)


def draw_learning_rate(axes, run):
    for phase in ("FP", "QAT"):
        records = run.phase(phase)
        if records:
            steps = column(records, "step")
            axes.plot(*thinned(steps, column(records, "learning_rate")), color=COLOURS[phase], linewidth=1.8, marker=lone(steps))
    axes.set_ylim(bottom=0)


def format_count(count):
    for size, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if count >= size:
            return f"{count / size:.1f}{suffix}"
    return f"{count:.0f}"


def titles(run):
    """Headline, and a line of details."""
    parameters, bits = run.lookup("parameters"), run.lookup("bits")
    fraction, predicted = run.lookup("qat_fraction"), run.lookup("predicted_fraction")
    per_step, steps = run.lookup("tokens_per_step"), run.lookup("total_steps", "steps")
    headline = [f"{format_count(parameters)} parameters"] if is_finite(parameters) else []
    if is_finite(bits):
        headline.append("no quantization" if bits >= 16 else "1 bit" if bits == 1 else f"{bits:g} bits")
    if is_finite(fraction):
        headline.append(f"{100 * fraction:.3g}% of the tokens quantization-aware")
    details = []
    if is_finite(per_step) and is_finite(steps) and isinstance(per_step * steps, int):
        details.append(f"{format_count(per_step * steps)} tokens in {steps:,} steps of {per_step:,}")
    if is_finite(predicted) and predicted >= 0.001:
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


def draw(run):
    """A figure of Matplotlib."""
    figure, loss_axes, rate_axes = two_axes(run.total_steps())
    curves = draw_training(loss_axes, run)
    draw_validation(loss_axes, run)
    set_loss_limits(loss_axes, curves, run)
    draw_rounded(loss_axes, run.validations("rounded"))
    draw_learning_rate(rate_axes, run)
    switch = run.switch_step()
    if switch is not None:
        draw_switch(loss_axes, rate_axes, switch)
    headline, details = titles(run)
    above = 16 * draw_legend(loss_axes) + 10  # points
    loss_axes.annotate(details, (0, 1), xycoords="axes fraction", xytext=(0, above), textcoords="offset points",
                       fontsize=9.5, color="#666666")
    loss_axes.set_title(headline, loc="left", fontsize=13, fontweight="bold", pad=above + (19 if details else 3))
    figure.align_ylabels()
    return figure
