"""What an export says of itself: types, sizes, and how far its weights are from those that were trained."""
import numpy as np


class Report:
    def __init__(self):
        self.weights = self.bytes = 0
        self.largest = 0.0
        self.types = {}  # type: (matrices, weights)

    def add(self, matrix, kind, size, stored):
        """stored: the float32 values that a reader of the file gets; size: bytes in the file."""
        difference = np.abs(stored - matrix.values())
        self.largest = max(self.largest, float(difference.max())) if not np.isnan(difference).any() else float("nan")
        self.weights += matrix.weights.size
        self.bytes += size
        count, weights = self.types.get(kind, (0, 0))
        self.types[kind] = count + 1, weights + matrix.weights.size

    def text(self, path, file_bytes):
        kinds = ", ".join(f"{count} x {kind}" for kind, (count, _) in self.types.items())
        return (f"{path}: {file_bytes / 1e6:.2f} MB; matrices: {kinds}; {8 * self.bytes / self.weights:.2f} bits per weight; "
                f"largest weight difference {self.largest:g}")
