"""Blocks of ggml's quantized types, written directly from levels and scales, so that they hold exactly what was trained.
(ggml's own quantizers choose scales anew.) Layouts: ggml's `ggml-common.h` and `ggml-quants.c`.

A type holds a matrix exactly when its rows are whole blocks, a block lies within one scale, its integers include the grid's
levels, and the scale of those integers is a float16.
"""
from collections import namedtuple

import numpy as np

from formats import grids

# name: gguf's; block: weights of one; integers: those it holds; pack: which of them (blocks, block), and float16 scales
# (blocks, 1), to (blocks, bytes).
BlockType = namedtuple("BlockType", "name block integers pack")


def half_bytes(scales):
    return scales.astype("<f2").view(np.uint8).reshape(len(scales), 2)


def nibbles(codes):
    """Of 32 codes the first 16 in the low halves."""
    return codes[:, :16] & 15 | (codes[:, 16:] & 15) << 4


def pack_q4_0(codes, scales):
    return np.hstack([half_bytes(scales), nibbles(codes)])


def pack_q5_0(codes, scales):
    fifth = np.packbits(codes >> 4 & 1, axis=1, bitorder="little")
    return np.hstack([half_bytes(scales), fifth, nibbles(codes)])


def pack_q8_0(codes, scales):
    return np.hstack([half_bytes(scales), codes ^ 128])  # code - 128 in two's complement


def pack_q6_k(codes, scales):
    """Halves of 128 weights: four runs of 32, of each weight 4 bits in `low` and 2 in `high`."""
    runs = codes.reshape(-1, 2, 4, 32)
    low = np.stack([runs[:, :, 0] & 15 | (runs[:, :, 2] & 15) << 4, runs[:, :, 1] & 15 | (runs[:, :, 3] & 15) << 4], axis=2)
    high = sum((runs[:, :, run] >> 4) << 2 * run for run in range(4))
    ones = np.ones((len(codes), 16), np.uint8)
    return np.hstack([low.reshape(-1, 128), high.reshape(-1, 64), ones, half_bytes(scales)])


def pack_two_bits(codes):
    """256 codes of 2 bits: halves of 128, whose four runs of 32 share 32 bytes."""
    runs = codes.reshape(-1, 2, 4, 32)
    return sum((runs[:, :, run] & 3) << 2 * run for run in range(4)).astype(np.uint8).reshape(-1, 64)


def pack_q2_k(codes, scales):
    """Value: 2 d code - 3 d: sub-scale 2 and minimum 3 in every sub-block."""
    sub_blocks = np.full((len(codes), 16), 3 << 4 | 2, np.uint8)
    halves = half_bytes(scales)
    return np.hstack([sub_blocks, pack_two_bits(codes), halves, halves])


def pack_q3_k(codes, scales):
    """Sub-scales are stored plus 32: 33 = 1 + 2 * 16 in 4 and 2 bits, which is one."""
    top = (codes >> 2).reshape(-1, 8, 32)
    mask = sum(top[:, bit] << bit for bit in range(8)).astype(np.uint8)
    sub_scales = np.tile(np.array([0x11] * 8 + [0xAA] * 4, np.uint8), (len(codes), 1))
    return np.hstack([mask, pack_two_bits(codes), sub_scales, half_bytes(scales)])


def pack_tq1_0(codes, scales):
    """Five ternary digits to a byte, as a fraction of 256 rounded up: 32 bytes of every 32nd weight, 16 of every 16th, and
    four of every 4th with four digits."""
    def fractions(digits):  # (blocks, digits, bytes)
        value = np.zeros(digits[:, 0].shape, np.uint16)
        for place in range(5):
            value = 3 * value + (digits[:, place] if place < digits.shape[1] else 0)
        return ((value * np.uint32(256) + 242) // 243).astype(np.uint8)

    return np.hstack([fractions(codes[:, :160].reshape(-1, 5, 32)), fractions(codes[:, 160:240].reshape(-1, 5, 16)),
                      fractions(codes[:, 240:].reshape(-1, 4, 4)), half_bytes(scales)])


def pack_tq2_0(codes, scales):
    return np.hstack([pack_two_bits(codes), half_bytes(scales)])


def pack_q1_0(codes, scales):
    return np.hstack([half_bytes(scales), np.packbits(codes, axis=1, bitorder="little")])


def unpack_q1_0(rows):
    """(rows, weights) float32"""
    blocks = rows.reshape(-1, 2 + 16)
    signs = np.unpackbits(blocks[:, 2:], axis=1, bitorder="little").astype(np.float32) * 2 - 1
    return (blocks[:, :2].copy().view("<f2").astype(np.float32) * signs).reshape(len(rows), -1)


# Fewest bytes a weight first.
BLOCK_TYPES = [
    BlockType("Q1_0", 128, range(-1, 2, 2), pack_q1_0),
    BlockType("TQ1_0", 256, range(-1, 2), pack_tq1_0),
    BlockType("TQ2_0", 256, range(-1, 2), pack_tq2_0),
    BlockType("Q2_K", 256, range(-3, 4, 2), pack_q2_k),
    BlockType("Q3_K", 256, range(-4, 4), pack_q3_k),
    BlockType("Q4_0", 32, range(-8, 8), pack_q4_0),
    BlockType("Q5_0", 32, range(-16, 16), pack_q5_0),
    BlockType("Q6_K", 256, range(-32, 32), pack_q6_k),
    BlockType("Q8_0", 32, range(-128, 128), pack_q8_0),
]


def holds(block_type, matrix):
    """Whether the type holds this quantized matrix exactly, whichever levels of its grid it has."""
    if matrix.weights.shape[1] % block_type.block or matrix.group % block_type.block:
        return False
    scales = matrix.scales / matrix.factor
    return (np.isin(grids.all_levels(matrix.bits) * matrix.factor, block_type.integers).all() and
            np.array_equal(scales.astype(np.float16).astype(np.float32), scales))


def pack(block_type, matrix):
    """(rows, bytes of a row) uint8"""
    rows, columns = matrix.levels.shape
    integers, scales = matrix.integers_and_scales()
    places = (integers - block_type.integers.start) / block_type.integers.step
    blocks_of_scale = matrix.group // block_type.block
    return block_type.pack(places.astype(np.uint8).reshape(-1, block_type.block),
                           np.repeat(scales, blocks_of_scale, axis=1).reshape(-1, 1)).reshape(rows, -1)
