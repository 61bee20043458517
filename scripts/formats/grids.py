"""The quantization grids of kernels/grid.h, in NumPy, to the bit: weights and scales to levels.

A weight w with scale s is the level q, used as s * q. float32 throughout, round half to even, as there.
"""
import numpy as np

SMALLEST_SCALE = np.float32(1e-5)
BITS = (1, 1.58, 2, 3, 4, 5, 6, 8)
# By bits; all others are integers.
STRETCHED = {1.58: (1.5, 0.0), 2.0: (2.0, 0.5)}  # half range n, shift


def all_levels(bits):
    """Levels / s, ascending."""
    if bits == 1:
        return np.array([-1.0, 1.0], np.float32)
    half_range, shift = STRETCHED.get(bits, (None, None))
    if half_range is None:
        return np.arange(-(2.0 ** (bits - 1)), 2.0 ** (bits - 1), dtype=np.float32)
    return np.arange(-half_range + 0.5, half_range, dtype=np.float32)


def effective_scales(scales):
    """Scales as training uses them: at least the smallest one, rounded to float16."""
    kept = np.where(scales < SMALLEST_SCALE, SMALLEST_SCALE, scales)  # a NaN stays one
    with np.errstate(over="ignore"):
        return np.minimum(kept, np.float32(65504)).astype(np.float16).astype(np.float32)


def spread(scales, group):
    """(rows, groups) to (rows, columns)."""
    return scales if scales.shape[1] == 1 else np.repeat(scales, group, axis=1)


def levels(bits, weights, scales):
    """(rows, columns) float32 levels of weights (rows, columns) by effective scales (rows, groups)."""
    ratio = weights / spread(scales, weights.shape[1] // scales.shape[1])
    if bits == 1:
        return np.where(ratio >= 0, np.float32(1), np.float32(-1))
    if bits in STRETCHED:
        half_range, shift = (np.float32(value) for value in STRETCHED[bits])
        clip = np.float32(0.99) * half_range
        return np.rint(np.clip(ratio, -clip, clip) - shift) + shift
    highest = np.float32(2 ** (int(bits) - 1) - 1)
    return np.rint(np.clip(ratio, -highest - 1, highest))
