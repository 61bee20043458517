"""The interval that every figure here carries."""
import numpy as np


def interval(values):
    """The 5th and 95th percentile of draws, along the first axis: 90%. By linear interpolation between neighbours, of
    which equal ones may be infinite."""
    ordered = np.sort(np.asarray(values, float), axis=0)
    ends = []
    for percent in (5, 95):
        position = percent / 100 * (len(ordered) - 1)
        low, high = ordered[int(position)], ordered[min(int(position) + 1, len(ordered) - 1)]
        with np.errstate(invalid="ignore"):
            ends.append(np.where((low == high) | (position % 1 == 0), low, low + position % 1 * (high - low)))
    return np.array(ends)
