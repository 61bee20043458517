"""GGUF files for llama.cpp: quantized weights in the block type that holds their grid exactly, or everything in float32.

Architecture `llama` turns adjacent pairs of a head's numbers where training turns halves: rows of queries and keys go
(heads, 2, D / 2) -> (heads, D / 2, 2).
"""
import os

import gguf
import numpy as np

from formats import gguf_blocks
from formats.checkpoint import EMBEDDING, FINAL_NORM, NORM_EPSILON, ROPE_THETA, layer_names
from errors import UserError

NAMES = {"q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_output", "gate": "ffn_gate", "up": "ffn_up",
         "down": "ffn_down", "attention_norm": "attn_norm", "ffn_norm": "ffn_norm"}
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
    if asked and matrix.name != EMBEDDING:
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
    writer.add_layer_norm_rms_eps(NORM_EPSILON)
    writer.add_rope_dimension_count(checkpoint.head_dim)
    writer.add_rope_freq_base(ROPE_THETA)
    writer.add_vocab_size(vocabulary)


def add_tokenizer(writer, tokenizer):
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokenizer.pieces)
    writer.add_token_scores(tokenizer.scores)
    writer.add_token_types(tokenizer.types)
    writer.add_unk_token_id(tokenizer.unk)
    for add, index in ((writer.add_bos_token_id, tokenizer.bos), (writer.add_eos_token_id, tokenizer.eos)):
        if index is not None:
            add(index)
    writer.add_add_bos_token(tokenizer.bos is not None)
    writer.add_add_space_prefix(tokenizer.adds_space)
    writer.add_remove_extra_whitespaces(False)


def write(checkpoint, directory, tokenizer, report, exact_types=True, asked=None):
    """model.gguf. exact_types: else float32."""
    if tokenizer is None:
        raise UserError("--tokenizer: GGUF holds the tokenizer too; name the SentencePiece model of the training data")
    if tokenizer.peculiarity:
        raise UserError(f"--tokenizer {tokenizer.path}: {tokenizer.peculiarity}; llama.cpp would find other tokens: use --to hf")
    if exact_types and checkpoint.bits == 16:
        raise UserError(f"{checkpoint.path}: is in full precision, there are no levels to export; {ALTERNATIVES}")
    vocabulary = len(tokenizer.pieces)
    report.dropped_rows = checkpoint.vocabulary - vocabulary
    writer = gguf.GGUFWriter(os.path.join(directory, "model.gguf"), "llama")
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    add_sizes(writer, checkpoint, vocabulary)
    add_tokenizer(writer, tokenizer)
    # Rows behind the tokenizer's pieces are padding, which llama.cpp does not take.
    add_matrix(writer, "token_embd.weight", checkpoint.matrix(EMBEDDING).of_rows(slice(vocabulary)), exact_types, asked, report)
    for layer in range(checkpoint.layers):
        for short, (name, is_matrix) in layer_names(layer).items():
            to = f"blk.{layer}.{NAMES[short]}.weight"
            if not is_matrix:
                writer.add_tensor(to, checkpoint.vector(name))
                continue
            matrix = checkpoint.matrix(name)
            if short in "qk":
                matrix = matrix.of_rows(adjacent_pairs(checkpoint.head_dim, len(matrix.weights)))
            add_matrix(writer, to, matrix, exact_types, asked, report)
    writer.add_tensor("output_norm.weight", checkpoint.vector(FINAL_NORM))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
