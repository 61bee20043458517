"""The figure of several runs on one another: a colour each, dashed from the switch on."""
import matplotlib
import numpy as np

from curves.records import column
from curves.style import INK, late_values, lone, set_limits, smooth, thinned, two_axes
from errors import UserError

LINES = {"FP": "solid", "QAT": (0, (4, 1.5))}


def names_of(runs):
    """Of their directories; with those above them where two have the same."""
    names = [run.name for run in runs]
    return names if len(set(names)) == len(names) else [run.directory.rstrip("/") for run in runs]


def label_of(run, name):
    for weights in ("quantized", "full_precision"):
        records = run.validations(weights)
        if records:
            return f"{name}: {records[-1]['validation_loss']:.3f} {weights.replace('_', ' ')}"
    return name


def draw_run(loss_axes, rate_axes, run, colour, label):
    """Returns the losses that the figure must show."""
    seen = []
    width = max(3, len(run.training) // 40)
    for phase, line in LINES.items():
        records = run.phase(phase)
        if not records:
            continue
        steps, loss = column(records, "step"), smooth(column(records, "loss"), width)
        loss_axes.plot(*thinned(steps, loss), color=colour, linestyle=line, linewidth=1.6, marker=lone(steps), zorder=3)
        rate_axes.plot(*thinned(steps, column(records, "learning_rate")), color=colour, linestyle=line, linewidth=1.4,
                       marker=lone(steps))
        seen.append(late_values(steps, loss) if phase == "FP" else loss[np.isfinite(loss)])
    for weights in ("full_precision", "quantized"):
        records = run.validations(weights)
        if records:
            losses = column(records, "validation_loss")
            loss_axes.plot(column(records, "step"), losses, color=colour, linestyle="none", marker="o", markersize=5.5,
                           markerfacecolor="white", markeredgewidth=1.5, zorder=5)
            seen.append(losses)
    if run.switch_step() is not None:
        loss_axes.axvline(run.switch_step(), color=colour, linewidth=0.9, linestyle=(0, (1, 2)), zorder=1)
    loss_axes.plot([], [], color=colour, linewidth=2, label=label)
    return np.concatenate(seen) if seen else np.array([])


def draw(runs):
    """A figure of Matplotlib."""
    figure, loss_axes, rate_axes = two_axes(max(run.total_steps() for run in runs))
    colours = matplotlib.colormaps["tab10" if len(runs) <= 10 else "turbo"]
    seen = []
    for index, (run, name) in enumerate(zip(runs, names_of(runs))):
        colour = colours(index) if len(runs) <= 10 else colours(index / (len(runs) - 1))
        seen.append(draw_run(loss_axes, rate_axes, run, colour, label_of(run, name)))
    seen = np.concatenate(seen)
    if not len(seen):
        raise UserError("metrics.jsonl: no finite loss")
    set_limits(loss_axes, seen)
    rate_axes.set_ylim(bottom=0)
    loss_axes.plot([], [], color=INK, linestyle=LINES["QAT"], label="quantization-aware; circles: validation")
    loss_axes.legend(loc="lower left", bbox_to_anchor=(-0.008, 1.0), ncol=2, fontsize=9.5, frameon=False, borderpad=0.3)
    figure.align_ylabels()
    return figure
