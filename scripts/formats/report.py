"""What an export says of itself: types, sizes, and how far its weights are from those that were trained."""
import numpy as np


class Report:
    def __init__(self):
        self.weights = self.bytes = 0
        self.largest = 0.0
        self.types = {}  # type: matrices
        self.dropped_rows = 0  # of the embedding: those that the tokenizer has no pieces for

    def add(self, matrix, kind, size, stored):
        """stored: the float32 values that a reader of the file gets; size: bytes in the file."""
        difference = np.abs(stored - matrix.values())
        self.largest = max(self.largest, float(difference.max()))
        self.weights += matrix.weights.size
        self.bytes += size
        self.types[kind] = self.types.get(kind, 0) + 1

    def text(self, path, file_bytes):
        kinds = ", ".join(f"{count} x {kind}" for kind, count in self.types.items())
        if self.dropped_rows:
            kinds += f"; {self.dropped_rows} rows of the embedding left out, for which the tokenizer has no pieces"
        return (f"{path}: {file_bytes / 1e6:.2f} MB; matrices: {kinds}; {8 * self.bytes / self.weights:.2f} bits per weight; "
                f"largest weight difference {self.largest:g}")
