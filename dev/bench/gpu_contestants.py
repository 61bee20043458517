"""Who takes part in the benchmark of GPUs: how each is started, and how its milliseconds a step are read.

Every run is a process of its own in an empty directory, so that the largest model has the card for itself.
"""

import contextlib
import functools
import json
import os
import pathlib
import re
import signal
import struct
import subprocess
import threading
from typing import NamedTuple

from chain_shards import write_chain_shards

HERE = pathlib.Path(__file__).resolve().parent
GPT2_VOCABULARY = 50257  # llm.c pads it to 50304
LLMC_WIDTHS = {12: 768, 24: 1024, 36: 1280, 48: 1600}  # its -e dDEPTH; the feed-forward block is 4 widths of GELU


class Size(NamedTuple):
    name: str
    layers: int
    width: int
    heads: int
    ffn: int
    batch: int
    sequence: int = 1024
    vocabulary: int = 50304

    def tokens(self):
        return self.batch * self.sequence

    def flops_per_token(self):
        """6 N_matmul + 6 L T C: forward and backward of the products with weights, and of causal attention, whose masked
        half does not count."""
        block = 4 * self.width**2 + 3 * self.width * self.ffn
        matmul_weights = self.layers * block + self.vocabulary * self.width
        return 6 * matmul_weights + 6 * self.layers * self.sequence * self.width


class Tokens:
    """Synthetic tokens for so many steps of a size, written when they are first asked for."""

    def __init__(self, directory, size, steps):
        self.directory, self.size = directory, size
        # The validation shards, an eighth, must hold a batch too.
        self.count = max(steps, 8) * (size.tokens() + size.sequence)

    @functools.cache
    def shards(self, vocabulary):
        """The prefix of shards in llm.c's format."""
        prefix = self.directory / f"tokens_{vocabulary}"
        write_chain_shards(prefix, vocabulary, self.count)
        return prefix

    @functools.cache
    def llmq_file(self):
        """llmq's format, version 2: 256 int32 of header, which begins with 8 characters, then int32 tokens."""
        path = self.directory / "tokens_llmq.bin"
        tokens = [(index * 7 + index // 11) % self.size.vocabulary for index in range(self.count)]
        header = struct.pack("<8s4i", b"BIN.TOK\n", 2, 4, len(tokens), self.size.vocabulary).ljust(1024, b"\0")
        path.write_bytes(header + struct.pack(f"<{len(tokens)}i", *tokens))
        return path


class Failure(Exception):
    """A run that gave no times; its text is one line that says why."""


class Run(NamedTuple):
    milliseconds: list  # of every step
    memory: int  # bytes at the peak
    versions: str  # what the program says of itself


def kill(process):
    """It and everything that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def run_process(command, directory, output, environment, limit):
    """(exit status, resource usage) of a command, killed with all that it started after `limit` seconds."""
    process = subprocess.Popen(command, cwd=directory, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                               env=environment, start_new_session=True)  # fmt: skip
    timer = threading.Timer(limit, kill, [process])
    timer.start()
    try:
        _, status, usage = os.wait4(process.pid, 0)
    finally:  # also after an interruption
        timer.cancel()
        kill(process)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, usage


def reason(status, output, limit):
    """One line that says why a program ended with this status."""
    if status == -signal.SIGKILL:
        return f"killed: out of memory, or it took longer than {limit:.0f} s (--limit)"
    lines = [line.strip() for line in output.splitlines() if line.strip()] or ["no output"]
    errors = [line for line in lines if re.search(r"error", line, re.IGNORECASE)]
    return f"exit status {status}: {(errors or lines)[-1][:200]}"


class Contestant:
    """name; kind: whose program it is; bits: 16 in full precision."""

    def __init__(self, name, kind, bits=16):
        self.name, self.kind, self.bits = name, kind, bits

    def run(self, size, steps, tokens, directory, card, limit):
        """Trains so many steps in a new directory. Failure when it does not end well within `limit` seconds."""
        directory.mkdir()
        command = [str(word) for word in self.command(size, steps, tokens)]
        log = directory / "output.txt"
        meter = card.meter()
        with open(log, "w") as output, meter:
            status, usage = run_process(command, directory, output, {**os.environ, **card.environment}, limit)
        text = log.read_text(errors="replace")
        if status:
            raise Failure(reason(status, text, limit))
        milliseconds = self.milliseconds(size, directory, text)
        if len(milliseconds) < steps - 1:
            raise Failure(f"gave the times of {len(milliseconds)} steps, not of {steps}")
        return Run(milliseconds, meter.peak(usage), self.versions(directory, text))

    def versions(self, directory, text):
        return self.kind


class Ours(Contestant):
    """train_qat, all of its steps of one kind."""

    def __init__(self, program, device, threads, bits=16, gemm="auto", hopper=False):
        """gemm: of quantized weights. hopper: dense matmuls and attention by Hopper's own instructions, logits in bfloat16."""
        way = "" if gemm == "auto" else f", {gemm}"
        if hopper:
            way = ", Hopper" + {"auto": "", "cublaslt": " levels", "hopper": " codes"}[gemm]
        super().__init__(f"train_qat, FP{way}" if bits == 16 else f"train_qat, QAT {bits} bits{way}", "train_qat", bits)
        self.program, self.device, self.threads, self.gemm, self.hopper = program, device, threads, gemm, hopper

    def command(self, size, steps, tokens):
        prefix = tokens.shards(size.vocabulary)
        environment = self.program.parent / "env.sh"  # of a bundle: finds CUDA's libraries
        start = ["bash", "-c", 'source "$0" && exec "$@"', environment] if environment.exists() else []
        quantization = ["-qat_frac", 1, "-qat_gemm", self.gemm] if self.bits < 16 else []
        kernels = ["-gemm", "hopper", "-attention", "hopper", "-logits", "bf16"] if self.hopper else []
        return [
            *start, self.program, "-o", "run", "-i", f"{prefix}_train_*.bin", "-j", f"{prefix}_val_*.bin",
            "-layers", size.layers, "-width", size.width, "-heads", size.heads, "-ffn", size.ffn,
            "-seq_len", size.sequence, "-batch", size.batch, "-steps", steps, "-b", self.bits, *quantization, *kernels,
            "-device", self.device, "-threads", self.threads, "-val_every", 0, "-val_sequences", 1, "-sample_tokens", 0,
        ]  # fmt: skip

    def milliseconds(self, size, directory, text):
        records = map(json.loads, (directory / "run" / "metrics.jsonl").read_text().splitlines())
        speeds = [record["tokens_per_second"] for record in records if "tokens_per_second" in record]
        return [1e3 * size.tokens() / speed for speed in speeds]

    def versions(self, directory, text):
        record = json.loads((directory / "run" / "run.json").read_text())
        return f"train_qat, compiler {record['compiler']}, {record['device']}"


class PyTorch(Contestant):
    """bench_pytorch_eager.py with bfloat16 autocast; attention: None is PyTorch's own choice."""

    def __init__(self, python, device, threads, compiled, bits=16, attention=None):
        words = ["PyTorch", *(["LSQ 4 bits"] if bits < 16 else []), "compiled" if compiled else "eager"]
        super().__init__(", ".join(words + ([attention] if attention else [])), "PyTorch", bits)
        self.python, self.device, self.threads, self.compiled = python, device, threads, compiled
        self.attention = attention

    def command(self, size, steps, tokens):
        options = ["--compile"] if self.compiled else []
        options += ["--qat", self.bits] if self.bits < 16 else []
        options += ["--attention", self.attention] if self.attention else []
        return [
            self.python, HERE / "bench_pytorch_eager.py", "--mode", "bf16", "--device", self.device, *options,
            "--layers", size.layers, "--width", size.width, "--heads", size.heads, "--kv-heads", size.heads,
            "--ffn", size.ffn, "--vocabulary", size.vocabulary, "--sequence", size.sequence, "--batch", size.batch,
            "--steps", steps, "--threads", self.threads,
        ]  # fmt: skip

    def milliseconds(self, size, directory, text):
        return [float(number) for number in re.findall(r"^([0-9.]+) ms$", text, re.MULTILINE)]

    def versions(self, directory, text):
        return next((line for line in text.splitlines() if line.startswith("torch ")), self.kind)


class LlmC(Contestant):
    """train_gpt2cu of llm.c: GPT-2 of the same depth and width."""

    def __init__(self, program):
        super().__init__("llm.c", "llm.c")
        self.program = program

    def command(self, size, steps, tokens):
        if LLMC_WIDTHS.get(size.layers) != size.width:
            raise Failure(f"llm.c has no model of {size.layers} layers of width {size.width}")
        prefix = tokens.shards(GPT2_VOCABULARY)
        # Steps between validations and samples: never, but for the validation at the start and the end, of one batch.
        return [
            self.program, "-e", f"d{size.layers}", "-i", f"{prefix}_train_*.bin", "-j", f"{prefix}_val_*.bin",
            "-b", size.batch, "-t", size.sequence, "-d", size.tokens(), "-x", steps, "-v", steps, "-m", 1,
            "-s", 0, "-h", 0, "-n", 0,
        ]  # fmt: skip

    def milliseconds(self, size, directory, text):
        return [float(number) for number in re.findall(r"^step .*\| ([0-9.]+) ms \|.*tok/s", text, re.MULTILINE)]


class Llmq(Contestant):
    """train of llmq: the same Llama, its weights kept in bfloat16."""

    def __init__(self, program):
        super().__init__("llmq, bf16 weights", "llmq")
        self.program = program

    def command(self, size, steps, tokens):
        model = tokens.directory / "llmq_model"
        model.mkdir(exist_ok=True)
        (model / "config.json").write_text(json.dumps({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": size.width,
            "intermediate_size": size.ffn, "num_hidden_layers": size.layers, "num_attention_heads": size.heads,
            "num_key_value_heads": size.heads, "vocab_size": size.vocabulary, "tie_word_embeddings": True,
            "max_position_embeddings": size.sequence, "rope_theta": 10000.0, "rms_norm_eps": 1e-5,
            "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "bfloat16",
        }))  # fmt: skip
        file = tokens.llmq_file()
        return [
            self.program, "--model", model, "--from-scratch", "--train-file", file, "--eval-file", file,
            "--model-dtype", "bf16", "--batch-size", size.batch, "--seq-len", size.sequence,
            "--grad-accumulation", 1, "--steps", steps, "--gpus", 1, "--eval-num-steps", 1,
            "--eval-every-n-steps", 10 * steps, "--ckpt-interval", 10 * steps, "--log-file", "log.json",
        ]  # fmt: skip

    def milliseconds(self, size, directory, text):
        log = (directory / "log.json").read_text() if (directory / "log.json").exists() else ""
        return [float(number) for number in re.findall(r'"log": "step",.*"duration_ms": ([0-9.]+)', log)]
