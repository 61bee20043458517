"""Which of the architectures that other programs know a model has."""
from collections import namedtuple

from errors import UserError

# model_type and class: transformers'; gguf: llama.cpp's name, whose rotations are of adjacent pairs or of halves, as training's.
Architecture = namedtuple("Architecture", "model_type class_name gguf adjacent_pairs")

LLAMA = Architecture("llama", "LlamaForCausalLM", "llama", True)
QWEN2 = Architecture("qwen2", "Qwen2ForCausalLM", "qwen2", False)
QWEN3 = Architecture("qwen3", "Qwen3ForCausalLM", "qwen3", False)


def of(checkpoint):
    """UserError: of none."""
    if checkpoint.attention_biases and checkpoint.head_norms:
        raise UserError(f"{checkpoint.path}: has biases on queries, keys and values, and norms of their heads too: neither Llama, "
                        "Qwen2 nor Qwen3 has both")
    if checkpoint.attention_biases and checkpoint.head_dim * checkpoint.heads != checkpoint.width:
        raise UserError(f"{checkpoint.path}: has biases, and {checkpoint.heads} heads of {checkpoint.head_dim} at width "
                        f"{checkpoint.width}: Qwen2's heads divide the width")
    return QWEN2 if checkpoint.attention_biases else QWEN3 if checkpoint.head_norms else LLAMA
