"""A Hugging Face folder: model.safetensors, config.json and the tokenizer, for transformers and whatever reads its format."""
import json
import os
import shutil

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from formats import tokenizer_json
from formats.checkpoint import EMBEDDING, FINAL_NORM, NORM_EPSILON, ROPE_THETA, layer_names

# Of --dtype: NumPy's dtype, whose name is PyTorch's too.
DTYPES = {"fp32": np.dtype(np.float32), "fp16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}


def config_of(checkpoint, dtype, tokenizer):
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama",
        "hidden_size": checkpoint.width, "intermediate_size": checkpoint.ffn,
        "num_hidden_layers": checkpoint.layers, "num_attention_heads": checkpoint.heads,
        "num_key_value_heads": checkpoint.kv_heads, "head_dim": checkpoint.head_dim,
        "max_position_embeddings": checkpoint.positions, "vocab_size": checkpoint.vocabulary,
        "rms_norm_eps": NORM_EPSILON, "rope_theta": ROPE_THETA, "hidden_act": "silu",
        "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": True,
        **({"bos_token_id": tokenizer.bos, "eos_token_id": tokenizer.eos} if tokenizer else {}),
        "torch_dtype": DTYPES[dtype].name,
    }


def all_matrices(checkpoint):
    names = [EMBEDDING] + [name for layer in range(checkpoint.layers)
                           for name, is_matrix in layer_names(layer).values() if is_matrix]
    return (checkpoint.matrix(name) for name in names)


def all_vectors(checkpoint):
    names = [name for layer in range(checkpoint.layers) for name, is_matrix in layer_names(layer).values() if not is_matrix]
    return {name: checkpoint.vector(name) for name in names + [FINAL_NORM]}


def write(checkpoint, directory, tokenizer, report, dtype):
    """The values that the model multiplies with, rounded to `dtype` where it can't hold them: the report says by how much."""
    tensors = {name: values.astype(DTYPES[dtype]) for name, values in all_vectors(checkpoint).items()}
    for matrix in all_matrices(checkpoint):
        stored = matrix.values().astype(DTYPES[dtype])
        tensors[matrix.name] = stored
        report.add(matrix, dtype.upper(), stored.nbytes, stored.astype(np.float32))
    save_file(tensors, os.path.join(directory, "model.safetensors"), {"format": "pt"})
    write_json(directory, "config.json", config_of(checkpoint, dtype, tokenizer))
    if tokenizer:
        write_tokenizer(directory, tokenizer)


def write_json(directory, name, content):
    with open(os.path.join(directory, name), "w", encoding="utf-8") as file:
        json.dump(content, file, indent=2, ensure_ascii=False)
        file.write("\n")


def write_tokenizer(directory, tokenizer):
    shutil.copyfile(tokenizer.path, os.path.join(directory, "tokenizer.model"))
    if tokenizer.peculiarity:
        return  # transformers converts such models itself
    write_json(directory, "tokenizer.json", tokenizer_json.content(tokenizer))
    write_json(directory, "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", "unk_token": tokenizer.piece(tokenizer.unk),
        "bos_token": tokenizer.piece(tokenizer.bos), "eos_token": tokenizer.piece(tokenizer.eos),
        "clean_up_tokenization_spaces": False,
    })
