"""What the tests with the real clients share: a tokenizer and shards of English text, checkpoints that the trainer has
made of them, their exports."""
import atexit
import glob
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "scripts"))
sys.dont_write_bytecode = True
os.environ |= {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}

SEQUENCE, VOCABULARY = 64, 509
# Rows of 256 and 512: whole blocks of every GGUF type. Grouped heads.
SHAPE = f"-layers 2 -width 256 -heads 4 -kv_heads 2 -ffn 512 -seq_len {SEQUENCE}"
DIFFICULT = ["", " ", "  two  spaces ", "tab\tand\nnew\r\nlines\n\n", "naïve café — “quoted” …", "数字 12345 и слова", "🙂🙃 \u200b zero width",
             "Hello world", " leading", "trailing ", "<s></s><unk>", "a" * 70, "0x7f 3.14159 1e-8", "\x07bell \x7f"]
directory = tempfile.mkdtemp(prefix="clients_")
atexit.register(shutil.rmtree, directory, ignore_errors=True)
program = "./train_qat"


def run(*command):
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=600)
    if result.returncode != 0:
        raise AssertionError(f"{' '.join(map(str, command))}\n{result.stdout}{result.stderr}")
    return result.stdout


def once(function):
    """Remembers what the function returned for these arguments."""
    known = {}

    def remembering(*arguments, **named):
        key = repr((arguments, named))
        if key not in known:
            known[key] = function(*arguments, **named)
        return known[key]
    return remembering


@once
def data():
    """The prefix of shards and tokenizer of the text that is always here: this project's own pages."""
    pages = sorted(glob.glob(os.path.join(ROOT, "**", "*.md"), recursive=True))
    prefix = os.path.join(directory, "pages")
    run(sys.executable, os.path.join(ROOT, "data", "prepare.py"), *pages, "-o", prefix, "--vocab-size", VOCABULARY,
        "--val-fraction", "0.1")
    return prefix


def tokenizer():
    return data() + ".model"


@once
def checkpoint(bits, group=0, shape=SHAPE, steps=30):
    """A run of a small model, most of its steps quantization-aware; bits 16: none."""
    out = os.path.join(directory, f"run_{bits}_{group}_{len(os.listdir(directory))}")
    quantized = [] if bits == 16 else ["-qat_frac", "0.7", "-group", group]
    run(program, *shape.split(), "-b", bits, *quantized, "-steps", steps, "-batch", "4", "-lr", "3e-3", "-dtype", "fp32", "-device",
        "cpu", "-i", data() + "_train_*.bin", "-j", data() + "_val_*.bin", "-val_sequences", "40", "-sample_tokens", "0", "-o", out)
    return out


def results_of(run_directory):
    with open(os.path.join(run_directory, "run.json"), encoding="utf-8") as file:
        return json.load(file)["results"]


def loss_of(run_directory):
    """The trainer's own, of the weights as they are exported."""
    results = results_of(run_directory)
    return results["full_precision_at_switch"] if results["quantized"] is None else results["quantized"]


def export_command(checkpoint_path, kind, out, *flags):
    return [sys.executable, os.path.join(ROOT, "scripts", "export.py"), checkpoint_path, "--to", kind, "-o", out, *flags]


@once
def export_with(tokenizer_path, checkpoint_path, kind, *flags):
    """The folder; checks the closing line."""
    out = os.path.join(directory, f"export_{len(os.listdir(directory))}")
    text = run(*export_command(checkpoint_path, kind, out, "--tokenizer", tokenizer_path, *flags))
    if not text.endswith("largest weight difference 0\n"):
        raise AssertionError(text)
    return out


def export(checkpoint_path, kind, *flags):
    return export_with(tokenizer(), checkpoint_path, kind, *flags)


def expected_matrix(path, name):
    """(rows, columns) float32: what the model of a checkpoint multiplies with."""
    from formats.checkpoint import Checkpoint
    return Checkpoint(path).matrix(name).values()


def validation_batches():
    """(sequences, SEQUENCE + 1) token ids, those that the trainer validates with: of the shard from its begin on."""
    import numpy as np
    (shard,) = glob.glob(data() + "_val_*.bin")
    tokens = np.fromfile(shard, "<u2", offset=1024).astype(np.int64)
    count = min(40, (len(tokens) - 1) // SEQUENCE)
    return np.stack([tokens[i * SEQUENCE:(i + 1) * SEQUENCE + 1] for i in range(count)])


def drawn_texts(seed):
    generator = random.Random(seed)
    return ["".join(chr(generator.choice([32, 10, 97, 101, 233, 0x4E2D, 0x1F600, 45])) for _ in range(25)) for _ in range(20)]
