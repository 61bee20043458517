#!/usr/bin/env python3
"""Shards of a chain of tokens in which four of five follow from the one before: data that a model learns fast.

    dev/bench/chain_shards.py PREFIX VOCABULARY TOKENS       writes PREFIX_train_*.bin and, an eighth of it, PREFIX_val_*.bin
"""
import array
import pathlib
import random
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "data" / "prepare"))

from shard_files import Outputs, ShardWriter  # noqa: E402


def write_chain_shards(prefix, vocabulary, count):
    outputs = Outputs(str(prefix), overwrite=False)
    for split, length, seed in ("train", count, 1), ("val", count // 8, 2):
        generator, tokens = random.Random(seed), array.array("H", [0])
        while len(tokens) < length:
            follows = generator.random() < 0.8
            tokens.append((tokens[-1] * 7 + 3) % vocabulary if follows else generator.randrange(vocabulary))
        writer = ShardWriter(outputs, split, vocabulary, 0, length)
        writer.write(tokens.tobytes())
        writer.close()
    outputs.commit()


if __name__ == "__main__":
    write_chain_shards(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
