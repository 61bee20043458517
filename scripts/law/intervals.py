"""The interval that every figure here carries."""
import numpy as np


def interval(values):
    """The 5th and 95th percentile of draws, along the first axis: 90%."""
    return np.percentile(np.asarray(values, float), [5, 95], axis=0)
