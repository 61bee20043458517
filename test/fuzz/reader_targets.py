"""Readers of whole files for fuzz_prepare.py: Parquet, tokenizers and what lies beside them, checkpoints. A target is a name,
the package that it needs, and run(folder, generator), which writes mutated files into an empty folder and reads them."""
import importlib.util
import io
import json
import os
import struct
import sys
from typing import Callable, NamedTuple

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path[:0] = [os.path.join(ROOT, "scripts"), os.path.join(ROOT, "test", "data")]

import errors  # noqa: E402, F401: scripts' way to data/prepare
import tokenizer_folders  # noqa: E402
from documents import Reading, read_documents  # noqa: E402
from findings import Findings  # noqa: E402
from formats import tokenizer as tokenizers_of_exports  # noqa: E402
from mutations import mutate  # noqa: E402
from tokenization import load_tokenizer, train_here  # noqa: E402
from tokenizer_files import begin_and_end  # noqa: E402

ODD = [None, True, -1, 0, 1, 1.5, 2**31, 2**64, 1e300, float("nan"), "", "x", "\ud800", "A" * 3000, [], [None], ["a", 1], {}, {"type": "x"},
       {"content": 5}]
TEXT = "Every unhappy family is unhappy in its own way, 12.\n\xe9\U0001f642"


class Target(NamedTuple):
    name: str
    package: str
    run: Callable

    def available(self):
        return not self.package or importlib.util.find_spec(self.package) is not None


def places_in(value, parent=None, key=None):
    """(container, key) of every value in a JSON value, but for its own."""
    if parent is not None:
        yield parent, key
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for number, (inner, child) in enumerate(entries):
        if number < 40:
            yield from places_in(child, value, inner)


def mutated_json(generator, value):
    """Bytes: with other values, without some, or damaged as text."""
    value = json.loads(json.dumps(value))
    for _ in range(generator.choice([0, 1, 1, 2, 3])):
        places = list(places_in(value))
        if not places:
            break
        container, key = generator.choice(places)
        if generator.random() < 0.25:
            del container[key]
        else:
            container[key] = json.loads(json.dumps(generator.choice([*ODD, generator.choice(places)[0]])))
    data = json.dumps(value).encode()
    return mutate(generator, data) if generator.random() < 0.2 else data


def write(path, content):
    with open(path, "wb") as file:
        file.write(content)
    return path


# ---- Parquet

def parquet_bytes(generator):
    import pyarrow
    import pyarrow.parquet
    columns = [["one", None, "two\n" * 9, ""], [1, 2, None, 4], [b"\xff", b"x", None, b""], [["a"], [], None, ["b", "c"]]]
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"text": generator.choice(columns), "id": [1, 2, 3, 4]}), file,
                                compression=generator.choice(["none", "snappy", "gzip"]), use_dictionary=generator.random() < 0.5)
    return file.getvalue()


def read_parquet(folder, generator):
    path = write(os.path.join(folder, "rows.parquet"), mutate(generator, parquet_bytes(generator)))
    for document in read_documents(path, Reading("text", None, "utf-8-sig"), Findings()):
        document.text().encode()


# ---- tokenizers

def cached(function):
    known = []
    return lambda: known[0] if known else known.append(function()) or known[0]


@cached
def sentencepiece_model():
    return train_here([TEXT.split("\n")[0] + str(number) for number in range(300)], 300)


def use_tokenizer(path):
    tokenizer = load_tokenizer(path)
    tokenizer.encode(TEXT, True)
    tokenizer.encode("\nand more", not tokenizer.splittable)


def mutated_model(folder, generator):
    model = sentencepiece_model()
    return write(os.path.join(folder, "t.model"), mutate(generator, model[:generator.choice([len(model), 3000])] if generator.random() < 0.2
                                                         else model))


def mutated_folder(folder, generator):
    """tokenizer.json, also under another name, and files beside it, at most one of them damaged."""
    files = tokenizer_folders.drawn(generator)
    chosen = generator.choice(["tokenizer.json", *files])
    tokenizer = tokenizer_folders.tokenizer_json()
    if generator.random() < 0.5:
        tokenizer["model"]["byte_fallback"] = generator.choice([True, None, 1])
        write(os.path.join(folder, "tokenizer.model"), generator.choice([sentencepiece_model(), b"", b"{}"]))
    tokenizer["model"]["merges"] = generator.choice([["a b"], [["a", "b"]], []])
    tokenizer["model"]["vocab"]["ab"] = 261
    files["tokenizer.json"] = tokenizer
    for name, value in files.items():
        content = mutated_json(generator, value) if name == chosen else json.dumps(value).encode()
        write(os.path.join(folder, name), content)
    path = os.path.join(folder, "tokenizer.json")
    if generator.random() < 0.3:
        os.rename(path, path := os.path.join(folder, generator.choice(["my.json", "other", "tokenizer.model"])))
    return path


def read_model(folder, generator):
    use_tokenizer(mutated_model(folder, generator))


def read_tokenizer_json(folder, generator):
    use_tokenizer(mutated_folder(folder, generator))


def find_begin_and_end(folder, generator):
    tokens = tokenizer_folders.tokenizer_json()["model"]["vocab"]
    begin_and_end(mutated_folder(folder, generator), tokens.get, set(tokens.values()).__contains__)


def export_with(path, folder):
    tokenizer = tokenizers_of_exports.load(path, 1 << 24)
    os.mkdir(os.path.join(folder, "out"))
    tokenizer.write_folder(os.path.join(folder, "out"))
    tokenizer.obstacle_to_llama_cpp


def export_tokenizer_json(folder, generator):
    export_with(mutated_folder(folder, generator), folder)


def export_model(folder, generator):
    export_with(mutated_model(folder, generator), folder)


# ---- checkpoints

SETTINGS = {"layers": 1, "width": 4, "heads": 2, "kv_heads": 1, "head_dim": 2, "ffn": 4, "vocab": 5, "seq_len": 8, "tied": True, "b": 4,
            "group": 0, "qat_steps": 1, "norm_eps": 1e-5, "rope_theta": 1e4, "attention_biases": False, "head_norms": True,
            "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}}


def untrained(settings):
    from formats.checkpoint import UntrainedModel
    return UntrainedModel(settings)


def tensors_of(model):
    """As a safetensors header has them, all of 32-bit numbers, and how many bytes there are."""
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for _, _, name, shape in model.tensors():
        shapes = {name: shape} if len(shape) == 1 else {name: shape, name + "_scale": (shape[0], 1)}
        for key, (rows, *columns) in shapes.items():
            size = 4 * rows * (columns[0] if columns else 1)
            header[key] = {"dtype": "F32", "shape": [rows, *columns], "data_offsets": [at, at + size]}
            at += size
    return header, at


def safetensors(header, size):
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(header)) + header + struct.pack("<f", 0.5) * (size // 4)


def read_all(model):
    for _, _, name, shape in model.tensors():
        if len(shape) == 2:
            model.matrix(name).values()
        else:
            model.vector(name)


def read_safetensors(folder, generator):
    from formats.checkpoint import Safetensors
    model = untrained(json.dumps(SETTINGS))
    header, size = tensors_of(model)
    content = safetensors(mutated_json(generator, header), size)
    path = write(os.path.join(folder, "model.safetensors"), mutate(generator, content) if generator.random() < 0.3 else content)
    model.file = Safetensors(path)
    read_all(model)


def read_checkpoint(folder, generator):
    from formats.checkpoint import FORMAT, VERSION, Checkpoint, Safetensors
    path = os.path.join(folder, "model.safetensors")
    header, size = tensors_of(untrained(json.dumps(SETTINGS)))
    write(path, safetensors(mutated_json(generator, header) if generator.random() < 0.5 else header, size))
    try:
        checksum = Safetensors(path).checksum()
    except Exception:  # the checkpoint must say so, whatever it is
        checksum = 0
    manifest = {"format": FORMAT, "version": VERSION, "state": {"settings": SETTINGS, "quantized": True},
                "files": {"model.safetensors": {"xxh3_64_rows": f"{checksum:016x}"}}}
    write(os.path.join(folder, "manifest.json"), mutated_json(generator, manifest))
    read_all(Checkpoint(folder))


def read_settings(_, generator):
    model = untrained(mutated_json(generator, SETTINGS).decode(errors="surrogateescape"))
    for _, _, name, shape in model.tensors():
        assert all(isinstance(extent, int) for extent in shape), name


TARGETS = [
    Target("parquet", "pyarrow", read_parquet),
    Target("SentencePiece model", "sentencepiece", read_model),
    Target("tokenizer.json", "tokenizers", read_tokenizer_json),
    Target("begin and end tokens", None, find_begin_and_end),
    Target("exports, tokenizer.json", None, export_tokenizer_json),
    Target("exports, SentencePiece model", "google", export_model),
    Target("safetensors", "xxhash", read_safetensors),
    Target("checkpoint", "xxhash", read_checkpoint),
    Target("settings", "xxhash", read_settings),
]
