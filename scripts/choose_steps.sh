#!/usr/bin/env bash
# How many steps fit: scripts/choose_steps.sh METRICS TOKENS_PER_STEP SECONDS FULL LEAST
#
# METRICS: metrics.jsonl of a few steps of the very run, measured on this machine as it is now. Prints a number of steps,
# FULL when they end within SECONDS, else as many as do, in fifties, but at least LEAST; to stderr one line for the reader.
set -euo pipefail

awk -v tokens="$2" -v seconds="$3" -v full="$4" -v least="$5" '
    match($0, /"tokens_per_second": *[0-9.e+]+/) {
        split(substr($0, RSTART, RLENGTH), part, ":")
        speed[++count] = part[2] + 0
    }
    function text(s) { return sprintf("%dm%02ds", s / 60, s % 60) }
    END {
        # Without the first two steps, which create matmuls and touch memory.
        for (i = 3; i <= count; ++i) seconds_a_token += 1 / speed[i] / (count - 2)
        if (count < 3) { print "choose_steps.sh: error: no speed in the metrics" > "/dev/stderr"; exit 2 }
        step = 1.08 * tokens * seconds_a_token  # validations, and QAT steps, which are a little slower
        steps = full
        if (steps * step > seconds) steps = int(seconds / step / 50) * 50
        if (steps < least) steps = least
        line = sprintf("measured %d tokens/s: %d steps, about %s", 1 / seconds_a_token, steps, text(steps * step))
        if (steps < full) line = line sprintf(" (STEPS=%d trains as far as a fast machine would, in %s)", full, text(full * step))
        print line > "/dev/stderr"
        print steps
    }' "$1"
