"""Exports and curves, read by the programs that they are for: transformers, llama.cpp, compressed-tensors, TensorBoard,
Weights & Biases."""
import ctypes
import glob
import json
import os
import random
import subprocess
import sys
import unittest

import fixture
import gguf
import llama_cpp
import numpy as np
import sentencepiece
import torch
import transformers

transformers.utils.logging.disable_progress_bar()

ALL_BITS = (1, 1.58, 2, 3, 4, 5, 6, 8)
SEED = random.randrange(10**6)


def transformers_model(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@torch.no_grad()
def transformers_loss(folder):
    batches = torch.tensor(fixture.validation_batches())
    logits = transformers_model(folder)(batches[:, :-1]).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), batches[:, 1:].flatten()).item()


def llama(folder, **options):
    return llama_cpp.Llama(os.path.join(folder, "model.gguf"), n_ctx=fixture.SEQUENCE, n_threads=1, n_batch=fixture.SEQUENCE,
                           verbose=False, **options)


def llama_loss(folder):
    model = llama(folder, logits_all=True)
    losses = []
    for sequence in fixture.validation_batches():
        model.reset()
        model.eval(sequence[:-1].tolist())
        logits = np.array(model.scores[:fixture.SEQUENCE], np.float64)
        logits -= logits.max(axis=1, keepdims=True)
        losses.append(np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(fixture.SEQUENCE), sequence[1:]])
    return float(np.mean(losses))


def ggml_values(tensor):
    """(rows, columns) float32 of a tensor of a GGUF file, by llama.cpp's own library."""
    kind = gguf.GGMLQuantizationType(tensor.tensor_type)
    columns, rows = int(tensor.shape[0]), int(tensor.shape[1])
    if kind == gguf.GGMLQuantizationType.F32:
        return np.array(tensor.data).reshape(rows, columns)
    (path,) = glob.glob(os.path.join(os.path.dirname(llama_cpp.__file__), "lib", "libggml-base.so"))
    name = kind.name if kind.name.endswith("_K") else kind.name.lower()
    read = getattr(ctypes.CDLL(path), "dequantize_row_" + name.replace("Q", "q").replace("T", "t"))
    packed, values = np.ascontiguousarray(tensor.data), np.full(rows * columns, np.nan, np.float32)
    read(ctypes.c_void_p(packed.ctypes.data), ctypes.c_void_p(values.ctypes.data), ctypes.c_int64(values.size))
    return values.reshape(rows, columns)


def in_halves(rows, head_dim):
    """Rows of queries or keys in llama.cpp's order, put back: pair i of a head is numbers i and i + D / 2."""
    result = np.empty_like(rows)
    for row in range(len(rows)):
        head, place = divmod(row, head_dim)
        result[head * head_dim + place // 2 + place % 2 * (head_dim // 2)] = rows[row]
    return result


def leveldb_records(path):
    """Of a log file of W&B: 7 bytes, then blocks of 32 KiB with records or parts of some: crc, length, type, data."""
    with open(path, "rb") as file:
        content = file.read()
    whole, first, last = 1, 2, 4
    place, record = 7, b""
    while place + 7 <= len(content):
        left = 2**15 - place % 2**15
        if left < 7:
            place += left
            continue
        length, kind = int.from_bytes(content[place + 4:place + 6], "little"), content[place + 6]
        data = content[place + 7:place + 7 + length]
        record = data if kind in (whole, first) else record + data
        if kind in (whole, last):
            yield record
        place += 7 + length


class ExportTest(unittest.TestCase):
    def check_gguf_weights(self, run, folder, types):
        reader = gguf.GGUFReader(os.path.join(folder, "model.gguf"))
        found = {tensor.name: tensor for tensor in reader.tensors}
        seen = set()
        for layer in range(2):
            for short, (name, columns_of_head) in {
                    "attn_q": ("self_attn.q_proj", 64), "attn_k": ("self_attn.k_proj", 64), "attn_v": ("self_attn.v_proj", 0),
                    "attn_output": ("self_attn.o_proj", 0), "ffn_gate": ("mlp.gate_proj", 0), "ffn_up": ("mlp.up_proj", 0),
                    "ffn_down": ("mlp.down_proj", 0)}.items():
                tensor = found[f"blk.{layer}.{short}.weight"]
                values = ggml_values(tensor)
                values = in_halves(values, columns_of_head) if columns_of_head else values
                expected = fixture.expected_matrix(run, f"model.layers.{layer}.{name}.weight")
                self.assertTrue(np.array_equal(values, expected), tensor.name)
                seen.add(gguf.GGMLQuantizationType(tensor.tensor_type).name)
        embedding = fixture.expected_matrix(run, "model.embed_tokens.weight")
        self.assertTrue(np.array_equal(ggml_values(found["token_embd.weight"]), embedding))
        self.assertEqual(seen, types)

    def test_transformers_computes_the_trainers_loss(self):
        for bits, group in [(16, 0)] + [(bits, 0) for bits in ALL_BITS]:
            run = fixture.checkpoint(bits, group)
            with self.subTest(bits=bits):
                self.assertAlmostEqual(transformers_loss(fixture.export(run, "hf")), fixture.loss_of(run), delta=1e-5)

    def test_llama_cpp_reads_exactly_our_weights(self):
        smallest = {1: "Q1_0", 1.58: "TQ1_0", 2: "Q2_K", 3: "Q3_K", 4: "Q4_0", 5: "Q5_0", 6: "Q6_K", 8: "Q8_0"}
        for bits in ALL_BITS:
            with self.subTest(bits=bits):
                run = fixture.checkpoint(bits)
                self.check_gguf_weights(run, fixture.export(run, "gguf"), {smallest[bits]})

    def test_llama_cpp_reads_scales_of_groups(self):
        for bits, group, kind in ((2, 32, "Q4_0"), (4, 32, "Q4_0"), (5, 64, "Q5_0"), (8, 128, "Q8_0")):
            with self.subTest(bits=bits, group=group):
                run = fixture.checkpoint(bits, group)
                self.check_gguf_weights(run, fixture.export(run, "gguf"), {kind})

    def test_other_types_hold_the_same_weights(self):
        for bits, kind in ((1, "TQ1_0"), (1, "TQ2_0"), (1.58, "TQ2_0"), (1.58, "Q4_0"), (2, "Q4_0"), (3, "Q6_K"), (4, "Q8_0")):
            with self.subTest(bits=bits, kind=kind):
                run = fixture.checkpoint(bits)
                self.check_gguf_weights(run, fixture.export(run, "gguf", "--type", kind), {kind})

    def test_llama_cpp_computes_the_trainers_loss(self):
        for bits in (1, 2, 4, 16):
            run = fixture.checkpoint(bits)
            with self.subTest(bits=bits):
                exact = llama_loss(fixture.export(run, "gguf-f32"))
                self.assertAlmostEqual(np.exp(exact - fixture.loss_of(run)), 1, delta=1e-3)
                if bits != 16:  # the runtime rounds activations as well
                    self.assertAlmostEqual(np.exp(llama_loss(fixture.export(run, "gguf")) - exact), 1, delta=0.02)

    def test_llama_cpp_generates(self):
        run = fixture.checkpoint(2)
        model = transformers_model(fixture.export(run, "hf"))
        prompt = [1, *sentencepiece.SentencePieceProcessor(model_file=fixture.tokenizer()).encode("A run")]
        expected = model.generate(torch.tensor([prompt]), max_length=fixture.SEQUENCE, do_sample=False, eos_token_id=None,
                                  pad_token_id=0)
        generator = llama(fixture.export(run, "gguf-f32")).generate(prompt, temp=0, repeat_penalty=1)
        self.assertEqual([next(generator) for _ in range(fixture.SEQUENCE - len(prompt))], expected[0, len(prompt):].tolist())
        for bits in ALL_BITS:
            with self.subTest(bits=bits):
                generator = llama(fixture.export(fixture.checkpoint(bits), "gguf")).generate(prompt, temp=0)
                self.assertTrue(all(0 <= next(generator) < fixture.VOCABULARY for _ in range(10)))

    def test_tokens_are_sentencepieces(self):
        expected = sentencepiece.SentencePieceProcessor(model_file=fixture.tokenizer())
        run = fixture.checkpoint(4)
        model = llama(fixture.export(run, "gguf"), vocab_only=True)
        tokenizer = transformers.AutoTokenizer.from_pretrained(fixture.export(run, "hf"))
        for text in fixture.DIFFICULT + fixture.drawn_texts(SEED):
            with self.subTest(text=text, seed=SEED):
                ids = expected.encode(text)
                self.assertEqual(model.tokenize(text.encode(), add_bos=False, special=False), ids)
                if "<s>" not in text:  # transformers takes the names of special tokens for these tokens
                    self.assertEqual(tokenizer(text, add_special_tokens=False)["input_ids"], ids)

    def test_compressed_tensors_decompresses_to_our_weights(self):
        for bits, group in [(bits, 0) for bits in ALL_BITS] + [(4, 32), (8, 128), (2, 64)]:
            with self.subTest(bits=bits, group=group):
                run = fixture.checkpoint(bits, group)
                parameters = dict(transformers_model(fixture.export(run, "compressed-tensors")).named_parameters())
                for name in parameters:
                    if "proj" in name and name.endswith(".weight"):
                        self.assertTrue(np.array_equal(parameters[name].detach().numpy(), fixture.expected_matrix(run, name)), name)
                self.assertAlmostEqual(transformers_loss(fixture.export(run, "compressed-tensors")), fixture.loss_of(run),
                                       delta=1e-5)

    def test_tensorboard_shows_the_curves(self):
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
        out = os.path.join(fixture.directory, "curves")
        command = ["-n", "50K", "-seq_len", "16", "-b", "2", "-qat_frac", "0.5", "-steps", "20", "-save_every", "10", "-keep", "0",
                   "-tensorboard", "-sample_tokens", "0", "-device", "cpu", "-i", fixture.data() + "_train_*.bin",
                   "-j", fixture.data() + "_val_*.bin", "-val_sequences", "4", "-o", out]
        fixture.run(fixture.program, *command, "-until", "14")
        (last,) = glob.glob(os.path.join(out, "step_*14"))
        os.rename(last, os.path.join(fixture.directory, "set_aside"))
        fixture.run(fixture.program, *command, "-resume")  # from step 10: steps 11 to 14 are done twice
        curves = EventAccumulator(out).Reload()
        with open(os.path.join(out, "metrics.jsonl"), encoding="utf-8") as file:
            records = [json.loads(line) for line in file]
        steps = [record for record in records if "loss" in record]
        for key in ("loss", "learning_rate", "gradient_norm"):
            shown = [(event.step, event.value) for event in curves.Scalars("train/" + key)]
            self.assertEqual(shown, [(record["step"], float(np.float32(record[key]))) for record in steps])
        for record in records:
            if "validation_loss" in record:
                (event,) = curves.Scalars("validation/" + record["weights"])
                self.assertEqual((event.step, event.value), (record["step"], float(np.float32(record["validation_loss"]))))

    def test_weights_and_biases_gets_all_records(self):
        from wandb.proto import wandb_internal_pb2
        run = fixture.checkpoint(4)
        fixture.run(sys.executable, os.path.join(fixture.ROOT, "scripts", "log_to_wandb.py"), run)
        (path,) = glob.glob(os.path.join(run, "wandb", "offline-run-*", "*.wandb"))
        logged = {}
        for content in leveldb_records(path):
            record = wandb_internal_pb2.Record.FromString(content)
            if record.WhichOneof("record_type") == "history":
                items = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
                logged.setdefault(items.pop("_step"), {}).update(items)
        with open(os.path.join(run, "metrics.jsonl"), encoding="utf-8") as file:
            records = [json.loads(line) for line in file]
        for record in records:
            names = {"validation_loss": f"validation/{record.get('weights')}", "loss": "train/loss", "learning_rate": "train/learning_rate"}
            for name, tag in names.items():
                if name in record:
                    self.assertEqual(logged[record["step"]][tag], record[name])

    def refusal(self, *command):
        result = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        self.assertEqual(result.returncode, 2, result.stdout + result.stderr)
        self.assertEqual(result.stderr.count("\n"), 1, result.stderr)
        return result.stderr

    def test_refusals(self):
        run, model = fixture.checkpoint(4), ["--tokenizer", fixture.tokenizer()]
        new = os.path.join(fixture.directory, "never")
        command = fixture.export_command
        existing = fixture.export(run, "hf")
        self.assertIn("is there already", self.refusal(*command(run, "hf", existing, *model)))
        self.assertIn("no checkpoint here", self.refusal(*command(fixture.directory, "hf", new)))
        self.assertIn("No such file", self.refusal(*command(run, "hf", new, "--tokenizer", "nothing.model")))
        self.assertIn("is not a SentencePiece model", self.refusal(*command(run, "hf", new, "--tokenizer", __file__)))
        self.assertIn("GGUF holds the tokenizer too", self.refusal(*command(run, "gguf", new)))
        self.assertIn("none of TQ2_0 (blocks of 256) holds it exactly", self.refusal(*command(run, "gguf", new, *model, "--type", "TQ2_0")))
        self.assertIn("--type Q9: must be one of", self.refusal(*command(run, "gguf", new, *model, "--type", "Q9")))
        self.assertIn("is in full precision", self.refusal(*command(fixture.checkpoint(16), "gguf", new, *model)))
        odd = fixture.checkpoint(6, 0, "-layers 1 -width 80 -heads 4 -ffn 144 -seq_len 16", 4)
        self.assertIn("--to gguf-f32", self.refusal(*command(odd, "gguf", new, *model)))
        self.assertFalse(os.path.exists(new))
        self.assertFalse([name for name in os.listdir(fixture.directory) if ".partial-" in name])

    def test_damaged_checkpoints(self):
        import shutil
        run = fixture.checkpoint(4)
        (step,) = glob.glob(os.path.join(run, "step_*"))
        copy, new = os.path.join(fixture.directory, "damaged"), os.path.join(fixture.directory, "never")
        for change in ("cut", "missing", "manifest"):
            shutil.copytree(step, copy)
            weights = os.path.join(copy, "model.safetensors")
            if change == "cut":
                os.truncate(weights, os.path.getsize(weights) - 1000)
            elif change == "missing":
                os.remove(weights)
            else:
                with open(os.path.join(copy, "manifest.json"), "w", encoding="utf-8") as file:
                    file.write("{}")
            with self.subTest(change=change):
                self.assertRegex(self.refusal(*fixture.export_command(copy, "hf", new)), "damaged|No such file")
                self.assertFalse(os.path.exists(new))
            shutil.rmtree(copy)
