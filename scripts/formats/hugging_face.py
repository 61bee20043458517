"""A Hugging Face folder: model.safetensors, config.json and the tokenizer, for transformers and whatever reads its format."""
import os

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from errors import UserError
from formats import architecture
from formats.json_file import write_json

# Of --dtype: NumPy's dtype, whose name is PyTorch's too.
DTYPES = {"fp32": np.dtype(np.float32), "fp16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}


def rotations_of(checkpoint):
    """Of config.json: transformers 5 reads rope_parameters, older ones rope_theta and rope_scaling."""
    scaling = checkpoint.rope_scaling and {"rope_type": "llama3", **checkpoint.rope_scaling}
    return {"rope_theta": checkpoint.rope_theta, "rope_scaling": scaling,
            "rope_parameters": {"rope_theta": checkpoint.rope_theta, **(scaling or {"rope_type": "default"})}}


def config_of(checkpoint, dtype, tokenizer):
    kind = architecture.of(checkpoint)
    if kind == architecture.LLAMA and checkpoint.width % checkpoint.heads:
        raise UserError(f"{checkpoint.path}: has {checkpoint.heads} heads at width {checkpoint.width}: transformers takes Llama only "
                        "with heads that divide the width; use --to gguf or gguf-f32")
    config = {
        "architectures": [kind.class_name], "model_type": kind.model_type,
        "hidden_size": checkpoint.width, "intermediate_size": checkpoint.ffn,
        "num_hidden_layers": checkpoint.layers, "num_attention_heads": checkpoint.heads,
        "num_key_value_heads": checkpoint.kv_heads,
        "max_position_embeddings": checkpoint.positions, "vocab_size": checkpoint.vocabulary,
        "rms_norm_eps": checkpoint.norm_epsilon, **rotations_of(checkpoint), "hidden_act": "silu",
        "tie_word_embeddings": checkpoint.tied, "torch_dtype": DTYPES[dtype].name,
    }
    # Qwen2 has neither: its queries, keys and values have biases without being asked, and its heads share the width.
    if kind != architecture.QWEN2:
        config |= {"attention_bias": False, "head_dim": checkpoint.head_dim}
    if kind == architecture.LLAMA:
        config |= {"mlp_bias": False}
    if tokenizer:
        config |= {"bos_token_id": tokenizer.bos, "eos_token_id": tokenizer.eos}
    return config


def all_matrices(checkpoint):
    return (checkpoint.matrix(name) for _, _, name, shape in checkpoint.tensors() if len(shape) == 2)


def all_vectors(checkpoint):
    return {name: checkpoint.vector(name) for _, _, name, shape in checkpoint.tensors() if len(shape) == 1}


def check(checkpoint, tokenizer):
    """UserError: transformers has no such model."""
    config_of(checkpoint, "fp32", tokenizer)


def write(checkpoint, directory, tokenizer, report, dtype):
    """The values that the model multiplies with, rounded to `dtype` where it can't hold them: the report says by how much.
    Of what `check` lets through."""
    tensors = {name: values.astype(DTYPES[dtype]) for name, values in all_vectors(checkpoint).items()}
    for matrix in all_matrices(checkpoint):
        stored = matrix.values().astype(DTYPES[dtype])
        tensors[matrix.name] = stored
        report.add(matrix, dtype.upper(), stored.nbytes, stored.astype(np.float32))
    save_file(tensors, os.path.join(directory, "model.safetensors"), {"format": "pt"})
    write_json(directory, "config.json", config_of(checkpoint, dtype, tokenizer))
    if tokenizer:
        tokenizer.write_folder(directory)
