"""What both kinds of figures share: colours, smoothing, axes."""
import matplotlib
import numpy as np

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402
import matplotlib.ticker  # noqa: E402, F401 (used through matplotlib)

FULL_PRECISION, QUANTIZED, ROUNDED, INK, GRID = "#0072b2", "#d55e00", "#a3195b", "#333333", "#e3e3e3"
PHASE_NAMES = {"FP": "full precision", "QAT": "quantization-aware"}
MOST_POINTS = 4000  # of a curve: more than a figure has pixels
SHOWN_FROM = 0.08   # share of the steps whose steep start may leave the figure at the top


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


def late_values(steps, values):
    """Finite values without those of the steep start."""
    late = values[steps >= steps[0] + SHOWN_FROM * (steps[-1] - steps[0])]
    return late[np.isfinite(late)]


def two_axes(total_steps):
    """(figure, axes of losses, axes of learning rates below them)"""
    plt.rcParams.update({
        "font.size": 10, "axes.edgecolor": "#999999", "axes.labelcolor": INK, "text.color": INK, "xtick.color": INK,
        "ytick.color": INK, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
        "grid.color": GRID, "grid.linewidth": 0.7, "axes.axisbelow": True,
    })
    figure, (loss_axes, rate_axes) = plt.subplots(
        2, 1, sharex=True, figsize=(9.6, 6.2), gridspec_kw={"height_ratios": (4.2, 1), "hspace": 0.09})
    loss_axes.set_xlim(0, total_steps * 1.015)
    loss_axes.set_ylabel("loss (nats per token)")
    rate_axes.set_ylabel("learning rate")
    rate_axes.yaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    rate_axes.set_xlabel("optimizer step")
    rate_axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(nbins=9, integer=True))
    rate_axes.xaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda value, _: f"{value:,.0f}"))
    return figure, loss_axes, rate_axes


def set_limits(axes, values):
    """Around the finite values."""
    low, high = float(np.min(values)), float(np.max(values))
    margin = max(0.08 * (high - low), 0.02)
    axes.set_ylim(low - 1.5 * margin, high + margin)
