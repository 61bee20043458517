"""What a rank sends to others in an optimizer step, computed from shapes alone: the formulas of
model/data_parallel.cpp and kernels/codes.h once more, in a few lines that share nothing with them.
"""

from dataclasses import dataclass

FLOAT = 4  # bytes


@dataclass(frozen=True)
class Shape:
    layers: int
    width: int
    heads: int
    head_dim: int
    kv_heads: int
    ffn: int
    vocabulary: int
    flops_per_token: float = 0.0  # of training, as the program's plan states it

    def linears(self):
        """(rows, columns) of the matrices whose weights take `bits` bits."""
        query, key = self.heads * self.head_dim, self.kv_heads * self.head_dim
        layer = [(query, self.width), (key, self.width), (key, self.width), (self.width, query)]
        return self.layers * (layer + 2 * [(self.ffn, self.width)] + [(self.width, self.ffn)])

    def embedding(self):
        return self.vocabulary, self.width

    def norms(self):
        return (2 * self.layers + 1) * [(1, self.width)]

    def arrays(self):
        return [self.embedding(), *self.linears(), *self.norms()]

    def parameters(self):
        return sum(rows * columns for rows, columns in self.arrays())


@dataclass(frozen=True)
class Traffic:
    """Bytes; `unpacked`: what `weights` would be in the compute type."""

    gradients: int
    weights: int = 0
    unpacked: int = 0

    def total(self):
        return self.gradients + self.weights


def own_rows(rows, rank, ranks):
    return rows * (rank + 1) // ranks - rows * rank // ranks


def code_bits(bits):
    """Bits that a code takes: the power of two that holds the levels."""
    return 1 if bits == 1 else 2 if bits <= 2 else 4 if bits <= 4 else 8


def code_row_bytes(columns, bits):
    """Packed codes of a row, padded to 16 bytes."""
    return (columns * code_bits(bits) + 127) // 128 * 16


def row_bytes(columns, bits, group, element):
    """A row of weights as ranks exchange it: codes and scales or, at 16 bits, numbers of the compute type."""
    if bits == 16:
        return columns * element
    return code_row_bytes(columns, bits) + columns // (group or columns) * FLOAT


def step_traffic(shape, ranks, bits, group=0, element=2, zero=1, rank=0):
    """What `rank` sends in a step whose weights have `bits` bits; 16: full precision."""

    def gather(arrays, bytes_of_row):
        return sum(own_rows(rows, rank, ranks) * bytes_of_row(columns) for rows, columns in arrays) * (ranks - 1)

    embedding_bits = bits if bits == 16 else max(bits, 4)
    matrices = [(shape.linears(), bits), ([shape.embedding()], embedding_bits)]
    reduced = sum((rows - own_rows(rows, rank, ranks)) * columns * FLOAT for rows, columns in shape.arrays())
    if zero == 0:
        finished = gather(shape.arrays(), lambda columns: columns * FLOAT)
        for arrays, width in matrices:
            if width < 16:
                finished += gather(arrays, lambda columns: columns // (group or columns) * FLOAT)
        return Traffic(reduced + finished)
    norms = gather(shape.norms(), lambda columns: columns * FLOAT)
    weights = sum(gather(arrays, lambda c, b=width: row_bytes(c, b, group, element)) for arrays, width in matrices)
    unpacked = sum(gather(arrays, lambda columns: columns * element) for arrays, _ in matrices)
    return Traffic(reduced, weights + norms, unpacked + norms)


def control_bytes(shape, ranks):
    """Beside gradients and weights: a square norm for each array, and every rank's loss and wish to stop."""
    return (ranks - 1) * (len(shape.arrays()) * FLOAT + 2 * 8)
