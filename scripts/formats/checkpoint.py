"""Checkpoints of train_qat (model/storage/README.md), read for exports: sizes of the model, weights, levels and scales."""
import functools
import os
import re

import numpy as np
import xxhash

from errors import UserError
from formats import grids
from json_objects import read_json
from json_records import parse
from regular_files import check_regular

FORMAT = "train_qat checkpoint"
VERSION = 2
EMBEDDING, FINAL_NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
# Keys of the settings' rope_scaling and of Hugging Face's.
ROPE_SCALING = {"factor": float, "low_freq_factor": float, "high_freq_factor": float, "original_max_position_embeddings": int}


def directory_of(path):
    """The checkpoint: `path` itself, or the latest of the run whose output directory it is."""
    if os.path.isfile(os.path.join(path, "manifest.json")):
        return path
    if not os.path.isdir(path):
        raise UserError(f"{path}: no such directory")
    steps = sorted((name for name in os.listdir(path)
                    if re.fullmatch(r"step_\d{8,}", name) and os.path.isfile(os.path.join(path, name, "manifest.json"))),
                   key=lambda name: int(name[5:]))
    if not steps:
        raise UserError(f"{path}: no checkpoint here (a directory with manifest.json, or with step_######## in it)")
    return os.path.join(path, steps[-1])


class Safetensors:
    """A file of tensors, read through a memory map."""

    WIDTHS = {"F32": np.dtype("<f4"), "BF16": np.dtype("<u2")}

    def __init__(self, path):
        self.path = path
        try:
            check_regular(path)
            self.bytes = np.memmap(path, np.uint8, mode="r")
        except (OSError, ValueError) as error:  # ValueError: an empty file
            raise UserError(f"{path}: can't be read: {getattr(error, 'strerror', None) or error}") from None
        self.start = 8 + int.from_bytes(self.bytes[:8].tobytes(), "little")
        if len(self.bytes) < 8 or self.start > len(self.bytes):
            raise UserError(f"{path}: damaged: it is shorter than its header")
        try:
            self.tensors = parse(self.bytes[8:self.start].tobytes())
            self.tensors.pop("__metadata__", None)
        except (ValueError, AttributeError, TypeError):
            raise UserError(f"{path}: damaged: its header is no JSON object") from None

    def checksum(self):
        """model/storage/manifest.h: a sum over the header and the rows of all tensors."""
        pieces = [(0, self.start)]  # offset in the file, bytes
        for entry in self.tensors.values():
            begin, end = entry["data_offsets"]
            rows = entry["shape"][0] if len(entry["shape"]) > 1 else 1
            if end > begin:
                size = (end - begin) // rows
                pieces += [(self.start + offset, size) for offset in range(begin, end, size)]
        data = memoryview(self.bytes)
        return sum(xxhash.xxh3_64_intdigest(data[offset:offset + size], seed=offset) for offset, size in pieces) % 2**64

    def read(self, name, shape):
        """As float32; shape: what it must have."""
        if name not in self.tensors:
            raise UserError(f"{self.path}: has no tensor {name}")
        try:
            entry = self.tensors[name]
            dtype = self.WIDTHS[entry["dtype"]]
            begin, end = (self.start + offset for offset in entry["data_offsets"])
            fits = self.start <= begin <= end <= len(self.bytes) and end - begin == int(np.prod(shape)) * dtype.itemsize
            if tuple(entry["shape"]) != tuple(shape) or not fits:
                raise ValueError
        except (KeyError, TypeError, ValueError):
            raise UserError(f"{self.path}: {name} is not {' x '.join(map(str, shape))} float32 or bfloat16 numbers") from None
        values = np.frombuffer(self.bytes[begin:end], dtype).reshape(shape)
        values = values if dtype.kind == "f" else (values.astype("<u4") << 16).view("<f4")
        if not np.isfinite(values).all():
            raise UserError(f"{self.path}: {name} holds NaN or infinity; export an earlier checkpoint")
        return values


class Matrix:
    """A weight matrix (rows, columns): float32 weights, or quantized ones as levels and scales.

    levels: (rows, columns) float32, multiples of 1/2; scales: (rows, groups) float32 that float16 holds exactly, each of
    columns / groups weights. The model multiplies with scale * level. Both None where the matrix is not quantized.
    """

    def __init__(self, name, weights, bits=16, scales=None):
        self.name, self.bits, self.weights = name, bits, weights
        self.scales = None if scales is None else grids.effective_scales(scales)

    @functools.cached_property
    def levels(self):
        return None if self.scales is None else grids.levels(self.bits, self.weights, self.scales)

    @property
    def group(self):
        """Weights of one scale."""
        return self.weights.shape[1] // self.scales.shape[1]

    def of_rows(self, rows):
        """The same matrix of these rows alone, in this order: an index or a slice of NumPy."""
        return Matrix(self.name, self.weights[rows], self.bits, None if self.scales is None else self.scales[rows])

    @property
    def factor(self):
        """That makes integers of levels: those of 2 bits are odd halves."""
        return np.float32(2 if self.bits == 2 else 1)

    def integers_and_scales(self):
        """Levels as integers, and the scales (rows, groups) that go with them."""
        return self.levels * self.factor, self.scales / self.factor

    def values(self):
        """(rows, columns) float32: what the model multiplies with, exactly."""
        if self.scales is None:
            return self.weights
        return self.spread(self.scales) * self.levels

    def spread(self, scales):
        """(rows, groups) to (rows, columns), or what NumPy takes for it."""
        return grids.spread(scales, self.group)


class Checkpoint:
    """The model of a checkpoint. Attributes: layers, width, heads, kv_heads, head_dim, ffn, vocabulary, positions; tied,
    attention_biases, head_norms, rope_theta, rope_scaling (None, or factor, low_freq_factor, high_freq_factor and
    original_max_position_embeddings), norm_epsilon, as in model/config.h; bits: 16 while the model is in full precision; group:
    weights of a scale. UserError: damaged, or of another version."""

    def __init__(self, path):
        self.path = directory_of(path)
        manifest_path = os.path.join(self.path, "manifest.json")
        manifest = read_json(manifest_path)
        try:
            if manifest["format"] != FORMAT or manifest["version"] != VERSION:
                raise UserError(f"{self.path}: is not a checkpoint of this version ('{FORMAT}' {VERSION})")
            self.read_settings(manifest["state"])
            expected = int(manifest["files"]["model.safetensors"]["xxh3_64_rows"], 16)
        except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
            raise UserError(f"{manifest_path}: damaged ({type(error).__name__}: {error})") from None
        self.file = Safetensors(os.path.join(self.path, "model.safetensors"))
        try:
            found = self.file.checksum()
        except (KeyError, TypeError, ValueError, ZeroDivisionError):
            found = None
        if found != expected:
            raise UserError(f"{self.file.path}: damaged: its checksum is not the one in manifest.json")

    def read_settings(self, state):
        """Of a manifest: what it says of the model."""
        settings = state["settings"]
        number = lambda name: int(settings[name])
        self.layers, self.width, self.ffn = number("layers"), number("width"), number("ffn")
        self.heads, self.kv_heads = number("heads"), number("kv_heads")
        self.vocabulary, self.positions = number("vocab"), number("seq_len")
        # Older checkpoints don't say these: all their models were alike (model/job/model_settings.cpp).
        self.head_dim = int(settings.get("head_dim", self.width // self.heads))
        self.tied = bool(settings.get("tied", True))
        self.attention_biases = bool(settings.get("attention_biases", False))
        self.head_norms = bool(settings.get("head_norms", False))
        self.rope_theta = float(settings.get("rope_theta", 10000.0))
        self.norm_epsilon = float(settings.get("norm_eps", 1e-5))
        scaling = settings.get("rope_scaling")
        self.rope_scaling = None if scaling is None else {name: kind(scaling[name]) for name, kind in ROPE_SCALING.items()}
        self.bits = float(settings["b"]) if state["quantized"] else 16.0
        self.group = number("group")
        if self.bits not in (16, *grids.BITS):
            raise ValueError(f"{self.bits:g} bits")

    def parts(self):
        """Of a layer: {part: (its name within the layer, as Hugging Face has it, and shape)}, matrices and vectors."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        rows = {"q": queries, "k": keys, "v": keys}
        parts = {part: (f"self_attn.{part}_proj.weight", (rows[part], self.width)) for part in "qkv"}
        parts |= {"o": ("self_attn.o_proj.weight", (self.width, queries)), "gate": ("mlp.gate_proj.weight", (self.ffn, self.width)),
                  "up": ("mlp.up_proj.weight", (self.ffn, self.width)), "down": ("mlp.down_proj.weight", (self.width, self.ffn)),
                  "attention_norm": ("input_layernorm.weight", (self.width,)),
                  "ffn_norm": ("post_attention_layernorm.weight", (self.width,))}
        if self.attention_biases:
            parts |= {f"{part}_bias": (f"self_attn.{part}_proj.bias", (rows[part],)) for part in "qkv"}
        if self.head_norms:
            parts |= {f"{part}_norm": (f"self_attn.{part}_norm.weight", (self.head_dim,)) for part in "qk"}
        return parts

    def tensors(self):
        """(layer, part, name, shape) of all tensors; part as in parts(), or with layer None: embedding, norm, head."""
        yield None, "embedding", EMBEDDING, self.shape_of(EMBEDDING)
        for layer in range(self.layers):
            for part, (name, shape) in self.parts().items():
                yield layer, part, f"model.layers.{layer}.{name}", shape
        yield None, "norm", FINAL_NORM, self.shape_of(FINAL_NORM)
        if not self.tied:
            yield None, "head", HEAD, self.shape_of(HEAD)

    def shape_of(self, name):
        ends = {EMBEDDING: (self.vocabulary, self.width), HEAD: (self.vocabulary, self.width), FINAL_NORM: (self.width,)}
        return ends.get(name) or dict(self.parts().values())[re.sub(r"^model\.layers\.\d+\.", "", name)]

    def vector(self, name):
        return self.file.read(name, self.shape_of(name))

    def matrix(self, name):
        rows, columns = self.shape_of(name)
        weights = self.file.read(name, (rows, columns))
        if self.bits == 16:
            return Matrix(name, weights)
        # Embedding and output head keep at least 4 bits (model/quantizer.h).
        bits = max(self.bits, 4.0) if name in (EMBEDDING, HEAD) else self.bits
        return Matrix(name, weights, bits, self.file.read(name + "_scale", (rows, columns // (self.group or columns))))


class UntrainedModel(Checkpoint):
    """What a run would export, known from its settings alone: its weights are all one. Of its layers only the first, which
    stands for all."""

    def __init__(self, settings):
        self.path, self.file = "the model", self
        try:
            settings = parse(settings)
            self.read_settings({"settings": settings, "quantized": float(settings["b"]) < 16 and settings["qat_steps"] > 0})
        except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
            raise UserError(f"--check: is no model's settings ({type(error).__name__}: {error})") from None
        self.layers = min(self.layers, 1)

    def read(self, _, shape):
        return np.broadcast_to(np.float32(1), shape)
