"""Small models with random weights of each architecture that the trainer can hold, as transformers makes them; checkpoints
with their weights; byte-level BPE tokenizers."""
import glob
import json
import os

import fixture
import numpy as np
import tokenizers
import torch
import transformers
from safetensors.numpy import save_file
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 16}
SIZES = {"vocab_size": 512, "max_position_embeddings": 48, "num_hidden_layers": 2, "bos_token_id": 1, "eos_token_id": 2}
# Odd sizes where the architecture has them: heads of other widths than width / heads, grouped heads, untied output heads.
MODELS = {
    "llama": {"model_type": "llama", "hidden_size": 48, "num_attention_heads": 4, "num_key_value_heads": 4,
              "intermediate_size": 88, "rms_norm_eps": 1e-5, "tie_word_embeddings": True, "rope_theta": 10000.0},
    "llama, untied": {"model_type": "llama", "hidden_size": 60, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 24,
                      "intermediate_size": 136, "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "rope_theta": 12345.0},
    "llama 3": {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32,
                "intermediate_size": 96, "rms_norm_eps": 1e-5, "tie_word_embeddings": True, "rope_theta": 500000.0,
                "rope_scaling": LLAMA3},
    "qwen2": {"model_type": "qwen2", "hidden_size": 56, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 104,
              "rms_norm_eps": 1e-6, "tie_word_embeddings": True, "rope_theta": 1000000.0},
    "qwen2, untied": {"model_type": "qwen2", "hidden_size": 80, "num_attention_heads": 5, "num_key_value_heads": 1,
                      "intermediate_size": 120, "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "rope_theta": 1000000.0},
    "qwen3": {"model_type": "qwen3", "hidden_size": 56, "num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 20,
              "intermediate_size": 104, "rms_norm_eps": 1e-6, "tie_word_embeddings": True, "rope_theta": 1000000.0},
    "qwen3, untied": {"model_type": "qwen3", "hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 64,
                      "intermediate_size": 96, "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "rope_theta": 1000000.0},
}


def random_model(name, dtype=torch.float32, **changes):
    """A transformers model whose weights all differ from those of a new one: norms are not one, biases not zero."""
    config = transformers.AutoConfig.for_model(**{**SIZES, **MODELS[name], **changes})
    torch.manual_seed(len(name))
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            spread = 0.3 if parameter.dim() == 1 else 1.5 / parameter.shape[1] ** 0.5
            parameter.normal_(1.0 if "norm" in parameter_name else 0.0, spread)
    return model.to(dtype).eval()


@fixture.once
def folder(name, dtype="float32"):
    """Its Hugging Face folder, without a tokenizer."""
    path = os.path.join(fixture.directory, f"{name.replace(' ', '_')}_{dtype}")
    random_model(name, getattr(torch, dtype)).save_pretrained(path)
    return path


def settings_of(config, bits=16):
    """Of a checkpoint's manifest."""
    scaling = config.rope_parameters
    return {"layers": config.num_hidden_layers, "width": config.hidden_size, "heads": config.num_attention_heads,
            "head_dim": getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
            "kv_heads": config.num_key_value_heads, "ffn": config.intermediate_size, "vocab": config.vocab_size,
            "seq_len": config.max_position_embeddings, "tied": config.tie_word_embeddings,
            "attention_biases": config.model_type == "qwen2", "head_norms": config.model_type == "qwen3",
            "rope_theta": scaling["rope_theta"], "norm_eps": config.rms_norm_eps, "b": bits, "group": 0,
            "rope_scaling": {key: scaling[key] for key in LLAMA3 if key != "rope_type"} if scaling["rope_type"] == "llama3" else None}


@fixture.once
def checkpoint(name, bits=16, **settings):
    """A checkpoint directory with the model's weights; bits below 16: with scales that leave no weight out of the grid.
    settings: that its manifest has instead of the model's own."""
    from formats.checkpoint import FORMAT, VERSION, Safetensors
    model = random_model(name)
    path = os.path.join(fixture.directory, f"checkpoint_{len(os.listdir(fixture.directory))}")
    os.makedirs(path)
    tensors = {key: value.numpy() for key, value in model.state_dict().items() if key != "lm_head.weight" or not model.config.tie_word_embeddings}
    if bits < 16:
        tensors |= {key + "_scale": np.abs(value).max(axis=1, keepdims=True) / np.float32(2 ** (bits - 1) - 1)
                    for key, value in tensors.items() if value.ndim == 2}
    save_file(tensors, os.path.join(path, "model.safetensors"))
    checksum = Safetensors(os.path.join(path, "model.safetensors")).checksum()
    state = {"settings": {**settings_of(model.config, bits), **settings}, "quantized": bits < 16}
    with open(os.path.join(path, "manifest.json"), "w", encoding="utf-8") as file:
        json.dump({"format": FORMAT, "version": VERSION, "state": state,
                   "files": {"model.safetensors": {"xxh3_64_rows": f"{checksum:016x}"}}}, file)
    return path


@fixture.once
def imported(name, dtype="float32", bits=16):
    """A run that began with the model's folder and ended after a step that changed nothing; bits below 16: with scales."""
    out = os.path.join(fixture.directory, f"imported_{len(os.listdir(fixture.directory))}")
    quantized = [] if bits == 16 else ["-qat_frac", "1", "-scale_lr", "0"]
    fixture.run(fixture.program, "-init_from", folder(name, dtype), "-b", bits, *quantized, "-seq_len", SIZES["max_position_embeddings"],
                "-steps", "1", "-batch", "1", "-lr", "1e-30", "-weight_decay", "0", "-dtype", "fp32", "-device", "cpu", "-threads", "1",
                "-sample_tokens", "0", "-i", fixture.data() + "_train_*.bin", "-o", out)
    return out


def logits(path, ids):
    """(tokens, vocabulary) float64: the trainer's, of a checkpoint, a run or a folder."""
    given, found = (os.path.join(fixture.directory, name) for name in ("tokens", "logits"))
    np.asarray(ids, "<i4").tofile(given)
    fixture.run(os.path.join(os.path.dirname(fixture.program), "train_qat_logits"), given, found, "-e", path, "-seq_len",
                SIZES["max_position_embeddings"], "-batch", "1", "-dtype", "fp32", "-device", "cpu", "-threads", "1")
    return np.fromfile(found, "<f4").astype(np.float64).reshape(len(ids), -1)


# ---- tokenizers

WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
BYTES = lambda use_regex: pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
SPLIT = lambda words: pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(words), "isolated"), BYTES(False)])
PRE_TOKENIZERS = {
    "gpt-2": lambda: BYTES(True),
    "qwen2": lambda: SPLIT(WORDS),
    "llama-bpe": lambda: SPLIT(WORDS.replace(r"|\p{N}|", r"|\p{N}{1,3}|")),
    "smollm": lambda: pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), BYTES(True)]),
    "of nobody": lambda: SPLIT(r"\p{N}{2}|[^\p{N}]+"),
}


@fixture.once
def byte_tokenizer(kind, vocabulary=509):
    """A folder with a byte-level BPE tokenizer of this project's own pages, as llama.cpp names its kind."""
    tokenizer = tokenizers.Tokenizer(models.BPE(ignore_merges=kind == "llama-bpe"))
    tokenizer.pre_tokenizer, tokenizer.decoder = PRE_TOKENIZERS[kind](), decoders.ByteLevel()
    if kind == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    special = ["<|begin|>", "<|end|>"]
    pages = sorted(glob.glob(os.path.join(fixture.ROOT, "**", "*.md"), recursive=True))
    tokenizer.train(pages, trainers.BpeTrainer(vocab_size=vocabulary - 1, special_tokens=special, show_progress=False,
                                               initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.add_tokens(["<tool>"])
    if kind == "llama-bpe":
        begin = processors.TemplateProcessing(single="<|begin|> $A", special_tokens=[("<|begin|>", tokenizer.token_to_id("<|begin|>"))])
        tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), begin])
    path = os.path.join(fixture.directory, f"tokenizer_{kind.replace(' ', '_')}_{vocabulary}")
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|begin|>", eos_token="<|end|>").save_pretrained(path)
    with open(os.path.join(path, "generation_config.json"), "w", encoding="utf-8") as file:
        json.dump({"temperature": 0.5}, file)
    return path
