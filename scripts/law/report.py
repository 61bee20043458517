"""The tables that fit and predict print."""
import math

from law import comparison, fraction_fit
from law.formula import COEFFICIENTS, NAMES, PAPER_CONSTANT, fraction_law
from law.intervals import interval
from law.optima import inside
from law.prediction import short


def percent(value):
    return "-" if value is None else f"{100 * value:.2f}%"


def number(value, digits=3):
    return "-" if value is None else f"{value:.{digits}f}"


def optima_table(found, silent, a):
    """f* of every cell beside the laws'. silent: cells that show none (optima.with_minimum)."""
    lines = [f"{'N':>8} {'D':>7} {'bits':>5} {'S':>6}  {'f* measured [90%]':<24} {'a = %.3f' % a:>9} "
             f"{'a = %.4f' % PAPER_CONSTANT:>10} {'loss':>7} {'runs':>4}"]
    for o in sorted([*found, *silent], key=lambda o: (o.bits, o.parameters, o.tokens)):
        measured = f"{o.fraction:.3f} [{o.low:.3f}, {o.high:.3f}]{'' if inside(o) else ' outside'}" if o in found else "-"
        lines.append(f"{short(o.parameters):>8} {short(o.tokens):>7} {o.bits:>5g} {o.s:>6.1f}  "
                     f"{measured:<24} {fraction_law(a, o.s):>9.3f} "
                     f"{fraction_law(PAPER_CONSTANT, o.s):>10.3f} {o.loss:>7.4f} {o.runs:>4}")
    if silent:
        lines.append(f"-: the losses of {len(silent)} cells are flat or fall to both sides, and show no best fraction")
    return "\n".join(lines)


def comparison_table(rows):
    splits = list(rows[0].held_out)
    head = f"{'form':<34} {'k':>3} {'loss':>7} {'AIC':>8} {'BIC':>8} {'f*':>6}"
    head += "".join(f"  {'loss ' + name:>14} {'f*':>6}" for name in splits)
    lines = [head]
    for row in rows:
        if row.name == comparison.CONSTANT:
            lines.append("of the optima, with AIC and BIC of f*:")
        line = f"{row.name:<34} {row.parameters:>3} {percent(row.loss_error):>7} {row.aic:>8.1f} {row.bic:>8.1f} "
        line += f"{number(row.fraction_error):>6}"
        for name in splits:
            held = row.held_out[name]
            line += f"  {percent(held.loss_error):>14} {number(held.fraction_error):>6}"
        lines.append(line)
    return "\n".join(lines)


def coefficient_table(coefficients, samples, unidentified):
    lines = [f"{'name':<8} {'value':>12}  90% interval"]
    for name in NAMES:
        if not coefficients[name]:
            continue
        low, high = interval([sample[name] for sample in samples])
        note = "  not identified by these runs" if name in unidentified else ""
        if name in COEFFICIENTS and name != "alpha" and name not in unidentified:
            note += "  (moves with its exponents)"
        lines.append(f"{name:<8} {coefficients[name]:>12.5g}  [{low:.4g}, {high:.4g}]{note}")
    return "\n".join(lines)


def finding(found):
    """Lines: does f* grow with S, do all widths and sizes fall on one curve?"""
    line = lambda name, value: f"{name:<34}{value}"
    between = lambda value, low, high: f"{value:.2f} [{low:.2f}, {high:.2f}]"
    lines = [line("rank correlation of f* and S", between(*fraction_fit.rank_correlation(found)))]
    power = fraction_fit.power_of_size(found)
    if power:
        lines.append(line("power of N in S", between(*power) + " (1: tokens per parameter byte; 0: N does not matter)"))
    for key, of, what in (("bits", "at {:g} bits", "widths"), ("parameters", "of N = {}", "sizes")):
        for value, group in fraction_fit.split(found, key).items():
            constant = fraction_fit.fit_constant(group, draws=200)
            name = of.format(value if key == "bits" else short(value))
            lines.append(line("a " + name, between(constant.value, constant.low, constant.high))
                         + f"; rank correlation {between(*fraction_fit.rank_correlation(group))} of {len(group)}")
        test = fraction_fit.one_curve_test(found, key)
        if test:
            lines.append(line(f"one curve in S for all {what}", f"AIC {test[0]:.1f}, a curve for each {test[1]:.1f}: "
                              + ("one is enough" if test[0] <= test[1] + 2 else "each has its own")))
    return "\n".join(lines)


def interval_text(value, digits=4):
    """0.1234 [0.1200, 0.1300]"""
    if not value:
        return "-"
    return f"{value.value:.{digits}f} [{value.low:.{digits}f}, {value.high:.{digits}f}]"


def tokens_text(value):
    if not value:
        return "-"
    return "never" if math.isinf(value.value) else \
        f"{short(value.value)} [{short(value.low)}, {'never' if math.isinf(value.high) else short(value.high)}]"


def prediction_table(law, widths, full_precision):
    name = "loss law" if law.by_loss else "fraction law"
    lines = [f"{'bits':>5} {'N':>8} {'S':>7}  {'f* by the ' + name:<24} {'loss at f*':<25} {'10% wastes':<23} "
             "matches full precision at"]
    for w in widths:
        wasted = "-"
        if w.wasted:
            wasted = f"{100 * w.wasted.value:.1f}% [{100 * w.wasted.low:.1f}, {100 * w.wasted.high:.1f}]"
        lines.append(f"{w.bits:>5g} {short(w.parameters):>8} {w.s:>7.1f}  {interval_text(w.fraction, 3):<24} "
                     f"{interval_text(w.loss):<25} {wasted:<23} {tokens_text(w.matching)}")
    lines.append(f"   16 {'':>8} {'':>7}  {'':<24} {interval_text(full_precision)}")
    if not full_precision:
        lines.append("-: no fitted run was in full precision")
    if any(not w.fraction for w in widths):
        lines.append("-: at S <= 1 there is no f*")
    lines.append("")
    lines.append(f"{'bits':>5}  loss at " + "".join(f"{f'f = {f:g}':<27}" for f in widths[0].at))
    lines += [f"{w.bits:>5g}          " + "".join(f"{interval_text(value):<27}" for value in w.at.values()) for w in widths]
    return "\n".join(lines)
