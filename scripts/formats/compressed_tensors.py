"""A folder for vLLM: Hugging Face's layout with the layers' matrices as compressed-tensors `pack-quantized` integers.

Of each matrix `NAME`: `NAME_packed` int32 (rows, ceil(columns * bits / 32)), integers plus 2^(bits - 1) from the lowest bits on;
`NAME_scale` (rows, groups); `NAME_shape`. vLLM's kernels take 4 and 8 bits, so the levels of 1, 1.58 and 3 bits are stored in 4,
those of 2 bits doubled, with half the scale, those of 5 and 6 in 8. Scales are float32, as the rest of the file: float16 holds
them too, but who multiplies with it there rounds the weights.
"""
import os

import numpy as np
from safetensors.numpy import save_file

from formats import hugging_face
from formats.checkpoint import EMBEDDING, HEAD
from formats.json_file import write_json
from errors import UserError


def stored_bits(matrix):
    return 4 if matrix.bits <= 4 else 8


def pack(integers, bits):
    """(rows, words) int32"""
    per_word = 32 // bits
    codes = np.pad((integers + 2 ** (bits - 1)).astype("<u4"), ((0, 0), (0, -integers.shape[1] % per_word)))
    places = codes.reshape(len(codes), -1, per_word) << np.arange(0, 32, bits, dtype="<u4")
    return np.bitwise_or.reduce(places, axis=2).astype("<u4").view("<i4")


def unpack(words, bits, columns):
    codes = words.view("<u4")[:, :, None] >> np.arange(0, 32, bits, dtype="<u4") & np.uint32(2 ** bits - 1)
    return codes.reshape(len(words), -1)[:, :columns].astype(np.float32) - np.float32(2 ** (bits - 1))


def quantization_config(bits, matrix):
    groups = matrix.scales.shape[1] > 1
    weights = {"num_bits": bits, "type": "int", "symmetric": True, "strategy": "group" if groups else "channel",
               "group_size": matrix.group if groups else None, "dynamic": False}
    return {"quant_method": "compressed-tensors", "format": "pack-quantized", "quantization_status": "compressed",
            "ignore": ["lm_head"],
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights,
                                          "input_activations": None, "output_activations": None}}}


def check(checkpoint, tokenizer):
    """UserError: no such model, or without levels."""
    hugging_face.check(checkpoint, tokenizer)
    if checkpoint.bits == 16:
        raise UserError(f"{checkpoint.path}: is in full precision, there are no levels to export; use --to hf")


def write(checkpoint, directory, tokenizer, report):
    """Of what `check` lets through."""
    tensors = hugging_face.all_vectors(checkpoint)
    for matrix in hugging_face.all_matrices(checkpoint):
        if matrix.name in (EMBEDDING, HEAD):
            tensors[matrix.name] = matrix.values()
            report.add(matrix, "F32", tensors[matrix.name].nbytes, tensors[matrix.name])
            continue
        bits = stored_bits(matrix)
        integers, scales = matrix.integers_and_scales()
        words = pack(integers, bits)
        name = matrix.name.removesuffix(".weight")
        tensors |= {f"{name}.weight_packed": words, f"{name}.weight_scale": np.ascontiguousarray(scales),
                    f"{name}.weight_shape": np.array(integers.shape, np.int64)}
        read_back = matrix.spread(scales) * unpack(words, bits, integers.shape[1])
        report.add(matrix, f"{bits}-bit integers", words.nbytes + scales.nbytes, read_back)
        config = quantization_config(bits, matrix)
    save_file(tensors, os.path.join(directory, "model.safetensors"), {"format": "pt"})
    write_json(directory, "config.json", hugging_face.config_of(checkpoint, "fp32", tokenizer) | {"quantization_config": config})
    if tokenizer:
        tokenizer.write_folder(directory)
