"""GGUF files for llama.cpp: quantized weights in the block type that holds their grid exactly, or everything in float32.

Architecture `llama` turns adjacent pairs of a head's numbers where training turns halves: rows of queries and keys go
(heads, 2, D / 2) -> (heads, D / 2, 2). Qwen's turn halves.
"""
import math
import os

import gguf
import numpy as np

from errors import UserError
from formats import architecture, gguf_blocks
from formats.checkpoint import EMBEDDING, HEAD

# Of the parts of a layer, and of those of none.
NAMES = {"q": "attn_q.weight", "k": "attn_k.weight", "v": "attn_v.weight", "o": "attn_output.weight", "gate": "ffn_gate.weight",
         "up": "ffn_up.weight", "down": "ffn_down.weight", "attention_norm": "attn_norm.weight", "ffn_norm": "ffn_norm.weight",
         "q_bias": "attn_q.bias", "k_bias": "attn_k.bias", "v_bias": "attn_v.bias",
         "q_norm": "attn_q_norm.weight", "k_norm": "attn_k_norm.weight"}
ENDS = {"embedding": "token_embd.weight", "norm": "output_norm.weight", "head": "output.weight"}
ALTERNATIVES = "use --to gguf-f32 or --to hf"


def type_of(name):
    return getattr(gguf.GGMLQuantizationType, name)


def is_known(name):
    """Whether the installed package has this type: the newest are in the newest ones."""
    return hasattr(gguf.GGMLQuantizationType, name)


def read_back(name, data):
    """The float32 values of packed rows."""
    # No release of the package has a reader of this one (0.19.0).
    return gguf_blocks.unpack_q1_0(data) if name == "Q1_0" else gguf.quants.dequantize(data, type_of(name))


def choose_type(matrix, asked):
    """The block type with the fewest bytes that holds the matrix exactly. asked: only this one for the layers' matrices."""
    candidates = [block for block in gguf_blocks.BLOCK_TYPES if is_known(block.name)]
    if asked and matrix.name not in (EMBEDDING, HEAD):
        candidates = [block for block in candidates if block.name == asked]
        if not candidates:
            names = sorted({block.name for block in gguf_blocks.BLOCK_TYPES if is_known(block.name)})
            raise UserError(f"--type {asked}: must be one of {', '.join(names)}")
    fitting = [block for block in candidates if gguf_blocks.holds(block, matrix)]
    if fitting:
        return fitting[0]
    rows, columns = matrix.weights.shape
    blocks = ", ".join(f"{block.name} (blocks of {block.block})" for block in candidates)
    raise UserError(f"{matrix.name} ({rows} x {columns}, {matrix.bits:g} bits, {matrix.group} weights a scale): none of "
                    f"{blocks} holds it exactly; {ALTERNATIVES}")


def adjacent_pairs(head_dim, rows):
    """Order of the rows of queries or keys for rotations of adjacent pairs."""
    return np.arange(rows).reshape(-1, 2, head_dim // 2).swapaxes(1, 2).reshape(-1)


def add_matrix(writer, name, matrix, exact_types, asked, report):
    if exact_types:
        block = choose_type(matrix, asked)
        data = gguf_blocks.pack(block, matrix)
        writer.add_tensor(name, data, raw_dtype=type_of(block.name))
        report.add(matrix, block.name, data.nbytes, read_back(block.name, data))
    else:
        values = np.ascontiguousarray(matrix.values())
        writer.add_tensor(name, values)
        report.add(matrix, "F32", values.nbytes, values)


def add_sizes(writer, checkpoint, vocabulary):
    writer.add_block_count(checkpoint.layers)
    writer.add_context_length(checkpoint.positions)
    writer.add_embedding_length(checkpoint.width)
    writer.add_feed_forward_length(checkpoint.ffn)
    writer.add_head_count(checkpoint.heads)
    writer.add_head_count_kv(checkpoint.kv_heads)
    if checkpoint.head_dim * checkpoint.heads != checkpoint.width:
        writer.add_key_length(checkpoint.head_dim)
        writer.add_value_length(checkpoint.head_dim)
    writer.add_layer_norm_rms_eps(checkpoint.norm_epsilon)
    writer.add_rope_dimension_count(checkpoint.head_dim)
    writer.add_rope_freq_base(checkpoint.rope_theta)
    writer.add_vocab_size(vocabulary)


def rotation_factors(checkpoint):
    """(D / 2) float32 by which llama.cpp divides the rotations' frequencies: model/config.h's RopeScaling."""
    scaling, factors = checkpoint.rope_scaling, []
    for pair in range(checkpoint.head_dim // 2):
        frequency = checkpoint.rope_theta ** (-2 * pair / checkpoint.head_dim)
        turns = scaling["original_max_position_embeddings"] * frequency / (2 * math.pi)
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        kept = min(max((turns - low) / (high - low), 0), 1)
        factors.append(1 / (kept + (1 - kept) / scaling["factor"]))
    return np.array(factors, np.float32)


def ordered(part, matrix, checkpoint):
    """The matrix with its rows as llama.cpp wants them."""
    if part not in ("q", "k") or not architecture.of(checkpoint).adjacent_pairs:
        return matrix
    return matrix.of_rows(adjacent_pairs(checkpoint.head_dim, len(matrix.weights)))


def check(checkpoint, tokenizer, exact_types, asked):
    """UserError: what llama.cpp has no architecture, no tokenizer or no block type for."""
    kind = architecture.of(checkpoint)
    if checkpoint.rope_scaling and kind != architecture.LLAMA:
        raise UserError(f"{checkpoint.path}: stretches its rotations as Llama 3 does; llama.cpp has that for Llama, not for "
                        f"{kind.class_name}: use --to hf")
    if tokenizer is None:
        raise UserError("--tokenizer: GGUF holds the tokenizer too; name the SentencePiece model or tokenizer.json of the training data")
    if tokenizer.obstacle_to_llama_cpp:
        raise UserError(f"--tokenizer {tokenizer.path}: {tokenizer.obstacle_to_llama_cpp}; llama.cpp would find other tokens: use --to hf")
    if not exact_types:
        return
    if checkpoint.bits == 16:
        raise UserError(f"{checkpoint.path}: is in full precision, there are no levels to export; {ALTERNATIVES}")
    for _, _, name, shape in checkpoint.tensors():
        if len(shape) == 2:
            choose_type(checkpoint.matrix(name), asked)


def add_tensors(writer, checkpoint, vocabulary, exact_types, asked, report):
    for layer, part, name, shape in checkpoint.tensors():
        to = ENDS[part] if layer is None else f"blk.{layer}.{NAMES[part]}"
        if len(shape) == 1:
            writer.add_tensor(to, checkpoint.vector(name))
            continue
        matrix = checkpoint.matrix(name)
        # Rows behind the tokenizer's pieces are padding, which llama.cpp does not take.
        matrix = matrix.of_rows(slice(vocabulary)) if layer is None else ordered(part, matrix, checkpoint)
        add_matrix(writer, to, matrix, exact_types, asked, report)
    if checkpoint.rope_scaling:
        writer.add_tensor("rope_freqs.weight", rotation_factors(checkpoint))


def write(checkpoint, directory, tokenizer, report, exact_types=True, asked=None):
    """model.gguf, of what `check` lets through. exact_types: else float32."""
    report.dropped_rows = checkpoint.vocabulary - tokenizer.count
    writer = gguf.GGUFWriter(os.path.join(directory, "model.gguf"), architecture.of(checkpoint).gguf)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    add_sizes(writer, checkpoint, tokenizer.count)
    tokenizer.add_to_gguf(writer)
    add_tensors(writer, checkpoint, tokenizer.count, exact_types, asked, report)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
