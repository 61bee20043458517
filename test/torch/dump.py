"""The dump of a training run that train_qat_parity writes and compare.py reads: parity.json and parity.safetensors.

A safetensors file is an 8-byte little-endian length, a JSON header {name: {dtype, shape, data_offsets}} of that
length, and the tensors' bytes, which the offsets count from the end of the header.
"""

import json
import pathlib
from dataclasses import asdict, dataclass

import numpy as np

DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "I64": np.int64, "I32": np.int32}
DTYPE_NAMES = {np.dtype(dtype): name for name, dtype in DTYPES.items()}


def read_safetensors(path):
    """{name: numpy array} of a safetensors file."""
    data = pathlib.Path(path).read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    tensors = {}
    for name, entry in json.loads(data[8:start]).items():
        if name == "__metadata__":
            continue
        if entry["dtype"] not in DTYPES:
            raise ValueError(f"{path}: {name} has dtype {entry['dtype']}; expected one of {', '.join(DTYPES)}")
        first, last = entry["data_offsets"]
        array = np.frombuffer(data[start + first : start + last], DTYPES[entry["dtype"]])
        tensors[name] = array.reshape(entry["shape"])
    return tensors


def write_safetensors(path, tensors):
    """Writes {name: numpy array} as a safetensors file."""
    header, chunks, offset = {}, [], 0
    for name, array in tensors.items():
        chunks.append(np.ascontiguousarray(array).tobytes())
        end = offset + len(chunks[-1])
        header[name] = {"dtype": DTYPE_NAMES[array.dtype], "shape": list(array.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    pathlib.Path(path).write_bytes(len(text).to_bytes(8, "little") + text + b"".join(chunks))


@dataclass(frozen=True)
class Config:
    """parity.json: the model, the schedule and the optimizer of the dumped run."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocabulary: int
    sequence_length: int
    batch: int
    micro_batches: int
    tied: bool
    attention_biases: bool
    head_norms: bool
    rope_theta: float
    rope_scaling: tuple  # factor, low and high frequency factor, original positions (0: no scaling), as Llama 3 has it
    norm_epsilon: float
    bits: float  # 1, 1.58, 2, 3, 4, 5, 6, 8; 16: nothing is quantized
    group: int  # columns per scale; 0: one scale per row
    dtype: str  # "float32" or "bfloat16": the type the run computed in
    fp_steps: int
    qat_steps: int
    learning_rates: tuple  # one per step
    scale_learning_rates: tuple  # one per step
    beta1: float
    beta2: float
    epsilon: float
    weight_decay: float
    clip_norm: float  # 0: no clipping

    @property
    def steps(self):
        return self.fp_steps + self.qat_steps

    def is_qat(self, step):
        return self.bits < 16 and step >= self.fp_steps

    def shapes(self):
        """{name: shape} of every parameter, names and [out, in] order as in Hugging Face's Llama."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        shapes = {"model.embed_tokens.weight": (self.vocabulary, self.width)}
        for layer in range(self.layers):
            prefix = f"model.layers.{layer}."
            shapes |= {
                prefix + "input_layernorm.weight": (self.width,),
                prefix + "self_attn.q_proj.weight": (queries, self.width),
                prefix + "self_attn.k_proj.weight": (keys, self.width),
                prefix + "self_attn.v_proj.weight": (keys, self.width),
                prefix + "self_attn.o_proj.weight": (self.width, queries),
                prefix + "post_attention_layernorm.weight": (self.width,),
                prefix + "mlp.gate_proj.weight": (self.ffn, self.width),
                prefix + "mlp.up_proj.weight": (self.ffn, self.width),
                prefix + "mlp.down_proj.weight": (self.width, self.ffn),
            }
            if self.attention_biases:
                shapes |= {f"{prefix}self_attn.{name}_proj.bias": (queries if name == "q" else keys,) for name in "qkv"}
            if self.head_norms:
                shapes |= {f"{prefix}self_attn.{name}_norm.weight": (self.head_dim,) for name in "qk"}
        shapes["model.norm.weight"] = (self.width,)
        return shapes if self.tied else shapes | {"lm_head.weight": (self.vocabulary, self.width)}

    def weight_bits(self, name):
        """Bits of a tensor in the QAT steps; None: full precision. Embedding and output head get at least 4."""
        if self.bits >= 16 or len(self.shapes()[name]) == 1:
            return None
        return max(self.bits, 4) if name in ("model.embed_tokens.weight", "lm_head.weight") else self.bits

    def scale_shapes(self):
        """{name: (rows, groups)} of the learned scales."""
        return {
            name: (shape[0], shape[1] // self.group if self.group else 1)
            for name, shape in self.shapes().items()
            if self.weight_bits(name) is not None
        }

    def tensor_shapes(self):
        """{name: shape} of everything that parity.safetensors must hold."""
        tokens = (self.micro_batches, self.batch, self.sequence_length)
        logits = (self.batch * self.sequence_length, self.vocabulary)
        weights, scales = self.shapes(), self.scale_shapes()
        expected = {}
        for step in range(self.steps):
            at = f"step{step}/"
            expected |= {at + "inputs": tokens, at + "targets": tokens, at + "loss": (1,), at + "norm": (1,)}
            for kind in ("weight", "gradient"):
                expected |= {f"{at}{kind}/{name}": shape for name, shape in weights.items()}
            if self.is_qat(step):
                for kind in ("scale", "scale_gradient"):
                    expected |= {f"{at}{kind}/{name}": shape for name, shape in scales.items()}
            if step in (0, self.fp_steps):
                expected[at + "logits"] = logits
        expected |= {f"final/weight/{name}": shape for name, shape in weights.items()}
        if self.qat_steps > 0:
            expected |= {f"final/scale/{name}": shape for name, shape in scales.items()}
        return expected


def read_dump(directory):
    """(Config, {name: array}) of a directory that holds parity.json and parity.safetensors."""
    directory = pathlib.Path(directory)
    fields = json.loads((directory / "parity.json").read_text())
    names = set(Config.__dataclass_fields__)
    if names - set(fields):
        raise ValueError(f"{directory / 'parity.json'}: missing {', '.join(sorted(names - set(fields)))}")
    config = Config(**{name: fields[name] for name in names})
    if fields["dtype"] not in ("float32", "bfloat16"):
        raise ValueError(f"{directory / 'parity.json'}: dtype is {fields['dtype']!r}; expected float32 or bfloat16")
    for name in ("learning_rates", "scale_learning_rates"):
        if len(getattr(config, name)) != config.steps:
            raise ValueError(f"{directory / 'parity.json'}: {name} needs {config.steps} values, one per step")
    return config, read_safetensors(directory / "parity.safetensors")


def write_dump(directory, config, tensors):
    directory = pathlib.Path(directory)
    (directory / "parity.json").write_text(json.dumps(asdict(config), indent=1) + "\n")
    write_safetensors(directory / "parity.safetensors", tensors)
