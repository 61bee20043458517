"""The figures of a fit, one PNG each."""
import os

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
from matplotlib.ticker import FuncFormatter  # noqa: E402

from law import formula, loss_fit, optima, records  # noqa: E402
from law.intervals import interval  # noqa: E402
from outputs import OutputFile  # noqa: E402
from law.prediction import short  # noqa: E402

INK, GRID, PAPER = "#333333", "#e3e3e3", "#888888"
PALETTE = ("#d55e00", "#cc79a7", "#0072b2", "#009e73", "#e69f00", "#56b4e9", "#666666", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P")
NAMES = ("fraction_over_s", "predicted_over_measured", "loss_over_fraction", "iso_loss", "best_bits_over_memory", "wasted_over_s")
SAMPLES = 60  # refits that a band is drawn of


def colours(bits):
    return dict(zip(sorted(set(bits)), PALETTE))


def figure(width=7.0, height=4.6, rows=1, columns=1, **options):
    made, axes = plt.subplots(rows, columns, figsize=(width, height), squeeze=False, constrained_layout=True, **options)
    for axis in axes.flat:
        axis.grid(color=GRID, linewidth=0.6)
        axis.set_axisbelow(True)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    return made, axes


def save(made, directory, name):
    path = os.path.join(directory, name + ".png")
    with OutputFile(path, "--plots", overwrite=True, shared=True) as file:
        made.savefig(file, dpi=120, format="png")
    plt.close(made)
    return path


def counts(axis, which):
    getattr(axis, which).set_major_formatter(FuncFormatter(lambda value, _: short(value)))


def fraction_over_s(found, constant, directory):
    """f* against S: measured optima with their intervals, our curve with its band, the paper's."""
    made, axes = figure()
    axis, colour = axes[0, 0], colours(o.bits for o in found)
    sizes = sorted({o.parameters for o in found})
    s = np.geomspace(max(1.5, min(o.s for o in found) * 0.7), max(o.s for o in found) * 1.5, 300)
    axis.plot(s, formula.fraction_law(constant.value, s), color=INK, label=f"exp(−a / ln S), a = {constant.value:.2f} "
              f"[{constant.low:.2f}, {constant.high:.2f}]", zorder=3)
    axis.fill_between(s, formula.fraction_law(constant.high, s), formula.fraction_law(constant.low, s), color=INK, alpha=0.15)
    axis.plot(s, formula.fraction_law(formula.PAPER_CONSTANT, s), "--", color=PAPER, zorder=3,
              label=f"a = {formula.PAPER_CONSTANT}, arXiv 2509.22935")
    for o in found:
        inside = optima.inside(o)
        middle = np.clip(o.fraction, o.first, o.last)
        low, high = max(o.low, 0.0), min(o.high, 1.0)
        axis.errorbar(o.s, middle, [[max(middle - low, 0)], [max(high - middle, 0)]], color=colour[o.bits], capsize=2,
                      marker=MARKERS[sizes.index(o.parameters) % len(MARKERS)], markersize=5, linewidth=1,
                      markerfacecolor=colour[o.bits] if inside else "white", linestyle="none", zorder=4)
    for bits in colour:
        axis.plot([], [], "o", color=colour[bits], label=f"{bits:g} bits")
    for number, size in enumerate(sizes):
        axis.plot([], [], MARKERS[number % len(MARKERS)], color=INK, markerfacecolor="white", label=f"N = {short(size)}")
    axis.axhline(0.1, color=PAPER, linewidth=0.8, linestyle=":")
    axis.set(xscale="log", xlabel="S, tokens per parameter byte", ylabel="optimal QAT fraction f*", ylim=(0, None))
    counts(axis, "xaxis")
    axis.legend(fontsize=8, frameon=False, ncol=2)
    return save(made, directory, "fraction_over_s")


def predicted_over_measured(runs, coefficients, directory):
    made, axes = figure(6.0, 5.0)
    axis, colour = axes[0, 0], colours(runs.bits)
    prediction = loss_fit.predict(coefficients, runs)
    for bits in colour:
        of = runs.bits == bits
        axis.plot(runs.loss[of], prediction[of], ".", color=colour[bits], markersize=4,
                  label="full precision" if bits == formula.FULL_PRECISION_BITS else f"{bits:g} bits")
    limits = [min(runs.loss.min(), prediction.min()), max(runs.loss.max(), prediction.max())]
    axis.plot(limits, limits, color=INK, linewidth=0.8)
    error = np.sqrt(np.mean(np.log(prediction / runs.loss) ** 2))
    axis.set(xlabel="measured validation loss", ylabel="loss by the law",
             title=f"{len(runs.loss)} runs, rms error {100 * error:.2f}%")
    axis.legend(fontsize=8, frameon=False)
    return save(made, directory, "predicted_over_measured")


def loss_over_fraction(runs, found, coefficients, directory):
    """A panel for every (N, D): measured losses, the smooth curves, their minima, the law."""
    both = records.take(runs, records.quantization_aware(runs))
    panels = sorted({(o.parameters, o.tokens) for o in found})
    columns = min(4, len(panels))
    made, axes = figure(3.6 * columns, 3.1 * -(-len(panels) // columns), -(-len(panels) // columns), columns)
    colour = colours(o.bits for o in found)
    for axis, (parameters, tokens) in zip(axes.flat, panels):
        for o in (o for o in found if (o.parameters, o.tokens) == (parameters, tokens)):
            of = records.take(both, (both.parameters == parameters) & (both.tokens == tokens) & (both.bits == o.bits))
            f = np.geomspace(o.first, o.last, 100)
            axis.plot(records.fractions(of), of.loss, ".", color=colour[o.bits], markersize=4)
            axis.plot(f, optima.curve_at(o.curve, f), color=colour[o.bits], linewidth=1, label=f"{o.bits:g} bits")
            axis.plot(f, formula.loss_at(coefficients, parameters, tokens, o.bits, f), ":", color=colour[o.bits], linewidth=1)
            if optima.inside(o):
                axis.plot(o.fraction, optima.curve_at(o.curve, o.fraction), "|", color=INK, markersize=10)
        axis.set(xscale="log", title=f"N = {short(parameters)}, D = {short(tokens)}")
        axis.set_xticks([0.05, 0.1, 0.2, 0.4, 0.8], labels=["0.05", "0.1", "0.2", "0.4", "0.8"])
        axis.minorticks_off()
        axis.set_xlim(0.025, 0.9)
    for axis in axes.flat[len(panels):]:
        axis.set_visible(False)
    made.supxlabel("QAT fraction f", fontsize=10)
    made.supylabel("validation loss", fontsize=10)
    handles = [plt.Line2D([], [], color=colour[b], label=f"{b:g} bits") for b in colour]
    handles += [plt.Line2D([], [], color=INK, linestyle=":", label="loss law")]
    axes[0, 0].legend(handles=handles, fontsize=7, frameon=False, ncol=2, loc="upper center")
    return save(made, directory, "loss_over_fraction")


def iso_loss(law, directory):
    """Lines of equal loss over the tokens of both phases, for the least and the most bits that were fitted."""
    of = law.content["fitted_range"]
    parameters = of["parameters"][1]
    chosen = [of["bits"][0], of["bits"][-1]]
    made, axes = figure(9.0, 4.2, 1, 2)
    tokens = np.geomspace(of["tokens"][0] * of["qat_fraction"][0], of["tokens"][1], 160)
    for axis, bits in zip(axes.flat, chosen):
        fp, qat = np.meshgrid(tokens, tokens)
        values = formula.loss(law.sets[0], parameters, fp, qat, bits)
        lines = axis.contour(fp, qat, values, levels=14, cmap="viridis", linewidths=1)
        axis.clabel(lines, fontsize=7, fmt="%.2f")
        total = np.geomspace(tokens[0] * 2, tokens[-1], 60)
        best = law.best_fractions(parameters, total, bits)
        axis.plot((1 - best) * total, best * total, color=PALETTE[0], label="f* of the total")
        axis.set(xscale="log", yscale="log", xlabel="full-precision tokens", ylabel="QAT tokens",
                 title=f"N = {short(parameters)}, {bits:g} bits")
        counts(axis, "xaxis")
        counts(axis, "yaxis")
        axis.legend(fontsize=8, frameon=False, loc="lower left")
    return save(made, directory, "iso_loss")


def best_bits_over_memory(law, directory):
    """The loss of every width over memory, at the largest budget that was fitted: N = 8 memory / bits."""
    of = law.content["fitted_range"]
    tokens = of["tokens"][1]
    made, axes = figure()
    axis, colour = axes[0, 0], colours(of["bits"])
    least = of["parameters"][0] * of["bits"][0] / 8
    memory = np.geomspace(least, of["parameters"][1] * of["bits"][-1] / 8, 120)
    for bits in of["bits"]:
        parameters = 8 * memory / bits
        fitted = (parameters >= of["parameters"][0] * 0.999) & (parameters <= of["parameters"][1] * 1.001)
        values = formula.loss_at(law.sets[0], parameters, tokens, bits, law.best_fractions(parameters, tokens, bits))
        axis.plot(memory, np.where(fitted, values, np.nan), color=colour[bits], label=f"{bits:g} bits", linewidth=2)
        axis.plot(memory, values, ":", color=colour[bits], linewidth=1)
    axis.set(xscale="log", xlabel="bytes of the weights, N B/8", ylabel=f"loss by the law, D = {short(tokens)}, at f*",
             title="dotted: sizes outside of those fitted")
    counts(axis, "xaxis")
    axis.legend(fontsize=8, frameon=False)
    return save(made, directory, "best_bits_over_memory")


def wasted_over_s(law, directory):
    """Tokens that 10% quantization-aware training wastes against f*, for each width at the middle size."""
    of = law.content["fitted_range"]
    parameters = float(np.sqrt(of["parameters"][0] * of["parameters"][1]))
    made, axes = figure()
    axis, colour = axes[0, 0], colours(of["bits"])
    for bits in of["bits"]:
        s = np.geomspace(*of["tokens_per_parameter_byte"], 14)
        tokens = s * parameters * bits / 8
        fitted = (tokens >= of["tokens"][0] * 0.5) & (tokens <= of["tokens"][1] * 2)
        if fitted.sum() < 2:
            continue
        values = np.array([[law.wasted(c, parameters, d, bits) for d in tokens[fitted]] for c in law.sets[:1 + SAMPLES]])
        low, high = interval(values[1:])
        axis.plot(s[fitted], 100 * values[0], color=colour[bits], label=f"{bits:g} bits")
        axis.fill_between(s[fitted], 100 * low, 100 * high, color=colour[bits], alpha=0.15)
    axis.set(xscale="log", xlabel="S, tokens per parameter byte", ylabel="tokens that f = 10% wastes, %",
             title=f"N = {short(parameters)}, losses by the loss law, 90% bands", ylim=(0, None))
    counts(axis, "xaxis")
    axis.legend(fontsize=8, frameon=False)
    return save(made, directory, "wasted_over_s")


def draw_all(runs, found, constant, law, directory):
    """Yields the path of each of NAMES when it is there."""
    coefficients = law.sets[0]
    yield fraction_over_s(found, constant, directory)
    yield predicted_over_measured(runs, coefficients, directory)
    yield loss_over_fraction(runs, found, coefficients, directory)
    yield iso_loss(law, directory)
    yield best_bits_over_memory(law, directory)
    yield wasted_over_s(law, directory)
