"""Checkpoints of train_qat (model/storage/README.md), read for exports: sizes of the model, weights, levels and scales."""
import json
import os
import re

import numpy as np

from formats import grids
from errors import UserError

FORMAT = "train_qat checkpoint"
VERSION = 2
ROPE_THETA, NORM_EPSILON = 10000.0, 1e-5  # of every model that is trained here (model/config.h)


def directory_of(path):
    """The checkpoint: `path` itself, or the latest of the run whose output directory it is."""
    if os.path.isfile(os.path.join(path, "manifest.json")):
        return path
    if not os.path.isdir(path):
        raise UserError(f"{path}: no such directory")
    steps = sorted(name for name in os.listdir(path)
                   if re.fullmatch(r"step_\d{8,}", name) and os.path.isfile(os.path.join(path, name, "manifest.json")))
    if not steps:
        raise UserError(f"{path}: no checkpoint here (a directory with manifest.json, or with step_######## in it)")
    return os.path.join(path, steps[-1])


def read_json(path):
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: can't be read: {getattr(error, 'strerror', None) or error}") from None


class Safetensors:
    """A file of tensors, read through a memory map: a large model is never in memory as a whole."""

    WIDTHS = {"F32": np.dtype("<f4"), "BF16": np.dtype("<u2")}

    def __init__(self, path):
        self.path = path
        try:
            self.bytes = np.memmap(path, np.uint8, mode="r")
            start = 8 + int.from_bytes(self.bytes[:8].tobytes(), "little")
            header = json.loads(self.bytes[8:start].tobytes())
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: can't be read: {getattr(error, 'strerror', None) or error}") from None
        self.start = start
        self.tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}

    def __contains__(self, name):
        return name in self.tensors

    def read(self, name):
        """As float32."""
        if name not in self.tensors:
            raise UserError(f"{self.path}: has no tensor {name}")
        entry = self.tensors[name]
        dtype = self.WIDTHS.get(entry["dtype"])
        if dtype is None:
            raise UserError(f"{self.path}: {name} is {entry['dtype']}; checkpoints hold F32 and BF16")
        begin, end = (self.start + offset for offset in entry["data_offsets"])
        if end > len(self.bytes) or end - begin != int(np.prod(entry["shape"])) * dtype.itemsize:
            raise UserError(f"{self.path}: truncated: {name} does not fit into the file")
        values = np.frombuffer(self.bytes[begin:end], dtype).reshape(entry["shape"])
        return values if dtype.kind == "f" else (values.astype("<u4") << 16).view("<f4")


class Matrix:
    """A weight matrix (rows, columns): float32 weights, or quantized ones as levels and scales.

    levels: (rows, columns) float32, multiples of 1/2; scales: (rows, groups) float32 that float16 holds exactly, each of
    columns / groups weights. The model multiplies with scale * level. Both None where the matrix is not quantized.
    """

    def __init__(self, name, weights, bits=16, scales=None):
        self.name, self.bits, self.weights = name, bits, weights
        self.levels = self.scales = None
        if scales is not None:
            self.scales = grids.effective_scales(scales)
            self.levels = grids.levels(bits, weights, self.scales)

    @property
    def group(self):
        """Weights of one scale."""
        return self.weights.shape[1] // self.scales.shape[1]

    def of_rows(self, rows):
        """The same matrix of these rows alone, in this order: an index or a slice of NumPy."""
        result = Matrix(self.name, self.weights[rows], self.bits)
        if self.levels is not None:
            result.levels, result.scales = self.levels[rows], self.scales[rows]
        return result

    def integers_and_scales(self):
        """Levels as integers, and the scales (rows, groups) that go with them: the levels of 2 bits are odd halves."""
        factor = np.float32(2 if self.bits == 2 else 1)
        return self.levels * factor, self.scales / factor

    def values(self):
        """(rows, columns) float32: what the model multiplies with, exactly."""
        if self.levels is None:
            return self.weights
        return self.spread(self.scales) * self.levels

    def spread(self, scales):
        """(rows, groups) to (rows, columns), or what NumPy takes for it."""
        return grids.spread(scales, self.group)


class Checkpoint:
    """The model of a checkpoint. Attributes: layers, width, heads, kv_heads, head_dim, ffn, vocabulary, positions; bits: 16
    while the model is in full precision."""

    def __init__(self, path):
        self.path = directory_of(path)
        manifest = read_json(os.path.join(self.path, "manifest.json"))
        if manifest.get("format") != FORMAT or manifest.get("version") != VERSION:
            raise UserError(f"{self.path}: is not a checkpoint of this version (format '{FORMAT}' {VERSION})")
        state = manifest["state"]
        settings = state["settings"]
        self.step = manifest["step"]
        self.layers, self.width, self.ffn = settings["layers"], settings["width"], settings["ffn"]
        self.heads, self.kv_heads = settings["heads"], settings["kv_heads"]
        self.head_dim = self.width // self.heads
        self.vocabulary, self.positions = settings["vocab"], settings["seq_len"]
        self.bits = float(settings["b"]) if state["quantized"] else 16.0
        self.file = Safetensors(os.path.join(self.path, "model.safetensors"))
        if len(self.file.bytes) != manifest["files"]["model.safetensors"]["bytes"]:
            raise UserError(f"{self.file.path}: has not the size that the manifest says: damaged or cut off")

    def vector(self, name):
        return self.file.read(name)

    def matrix(self, name):
        weights = self.file.read(name)
        if name + "_scale" not in self.file:
            return Matrix(name, weights)
        # The embedding, also the output head, keeps at least 4 bits (model/quantizer.h).
        bits = max(self.bits, 4.0) if name == EMBEDDING else self.bits
        return Matrix(name, weights, bits, self.file.read(name + "_scale"))


EMBEDDING, FINAL_NORM = "model.embed_tokens.weight", "model.norm.weight"


def layer_names(layer):
    """Hugging Face's names of a layer's tensors: {short name: (name, whether it is a matrix)}."""
    prefix = f"model.layers.{layer}."
    matrices = {part: f"self_attn.{part}_proj" for part in "qkvo"}
    matrices |= {part: f"mlp.{part}_proj" for part in ("gate", "up", "down")}
    vectors = {"attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
    return ({short: (f"{prefix}{name}.weight", True) for short, name in matrices.items()}
            | {short: (f"{prefix}{name}.weight", False) for short, name in vectors.items()})
