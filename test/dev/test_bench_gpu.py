#!/usr/bin/env python3
"""The benchmark of GPUs: its numbers are those of the runs. Once with programs that stand in for all contestants and for
nvidia-smi, and tell random times; once with the real ones, on the CPU.

    test/dev/test_bench_gpu.py --program build/train_qat
"""
import argparse
import json
import os
import pathlib
import random
import re
import statistics
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BENCH = ROOT / "dev" / "bench" / "bench_gpu.py"
LIMIT_SECONDS = 600

# One stand-in for all: what it plays follows from its name. Times come from the file that TIMES names, one a run, and go
# on with the next line in the next run.
STAND_IN = r'''#!@PYTHON@
import json, os, pathlib, sys, time
name, words = pathlib.Path(sys.argv[0]).name, sys.argv[1:]
here = pathlib.Path(__file__).resolve().parent
option = lambda key: words[words.index(key) + 1]
if name == "nvidia-smi":
    if "-lms" not in words:
        print("NVIDIA H100 80GB HBM3, 580.95, 1000")
        sys.exit()
    for used in 1000, int((here / "memory").read_text()), 1001:
        print(used, flush=True)
    time.sleep(600)
if name == "python" and words[0] == "-c":
    print("2.99.0 True True")
    sys.exit()
time.sleep(0.3)  # for the meter of memory
who = name
if name == "python":
    who += "_qat" if "--qat" in words else ""
    who += "_" + option("--attention")
    assert "--compile" in words and option("--device") == "cuda", words
if name == "train_qat":
    who += option("-b") + (option("-qat_gemm") if "-qat_gemm" in words else "")
    if "-gemm" in words:
        who += "_hopper"
        assert (option("-gemm"), option("-attention"), option("-logits")) == ("hopper", "hopper", "bf16"), words
if name == "train_gpt2cu" and option("-e") == "d24":
    print("CUDA error: out of memory")
    sys.exit(1)
with open(here / "log", "a") as log:
    times = json.loads((here / "times").read_text())
    runs = (here / "log").read_text().split().count(who)
    print(who, file=log)
steps = int(option({"train_qat": "-steps", "train_gpt2cu": "-x"}.get(name, "--steps")))
own = times[who][runs][:steps]
if name == "train_qat":
    tokens = int(option("-batch")) * int(option("-seq_len"))
    run = pathlib.Path(option("-o"))
    run.mkdir()
    lines = [json.dumps({"step": i, "tokens_per_second": 1e3 * tokens / ms}) for i, ms in enumerate(own, 1)]
    lines.append(json.dumps({"step": len(own), "validation_loss": 1.0}))
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    (run / "run.json").write_text(json.dumps({"compiler": "0.1", "device": "stand-in"}))
elif name == "train":
    (pathlib.Path("log.json")).write_text("[\n" + "".join(
        f'  {{"log": "step", "time": "x", "step": {i}, "epoch": 0, "step_tokens": 1, "duration_ms": {ms}, "norm": 1}},\n'
        for i, ms in enumerate(own)) + '{"log": "eval", "duration_ms": 1}\n]')
elif name == "train_gpt2cu":
    print("val loss 10.9")
    for i, ms in enumerate(own, 1):
        print(f"step {i:4d}/{steps} | loss 9.123456 (+0.10z)| norm 1.1000 (+nanz)| lr 3.00e-04 | {ms:.2f} ms | 1.0% bf16 MFU | 7 tok/s")
else:
    print("torch 2.99.0, CUDA 13")
    for ms in own:
        print(f"{ms:.2f} ms")
'''
OURS = ["train_qat16"] + [f"train_qat{bits}{gemm}" for bits in (4, 2, 1) for gemm in ("fused", "cublaslt")]
HOPPER = ["train_qat16_hopper", "train_qat4cublaslt_hopper", "train_qat4hopper_hopper"]
PYTORCH = ["python_flash", "python_cudnn", "python_qat_flash", "python_qat_cudnn"]
EVERYONE = OURS + HOPPER + PYTORCH + ["train_gpt2cu", "train"]


def bench(*words, **environment):
    return subprocess.run([sys.executable, str(BENCH), *map(str, words)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True, timeout=LIMIT_SECONDS, env={**os.environ, **environment})


def table_of(text):
    """{size: {contestant: cells}}: tokens/s, MFU, GiB, ratio to PyTorch, ratio to its LSQ; and what follows them."""
    tables, size = {}, None
    for line in text.splitlines():
        begin = re.match(r"(\S+): \d+ x \d+, ", line)
        if begin:
            size = tables.setdefault(begin[1], {})
        elif size is not None and re.match(r".{38} *([0-9,]+|-) ", line) and line[:38].strip():
            size[line[:38].strip()] = line[38:].split(None, 5)
    return tables


def rows_of(path):
    return [json.loads(line) for line in pathlib.Path(path).read_text().splitlines()]


class BenchTest(unittest.TestCase):
    def setUp(self):
        temporary = tempfile.TemporaryDirectory(prefix="train_qat_bench_gpu_")
        self.addCleanup(temporary.cleanup)
        self.directory = pathlib.Path(temporary.name)
        self.output = self.directory / "rows.jsonl"

    def assert_table_shows(self, text, rows):
        tables = table_of(text)
        for row in rows:
            cells = tables[row["size"]][row["contestant"]]
            shown = [float(cell.replace(",", "").rstrip("%")) if cell != "-" else None for cell in cells[:5]]
            speed, memory = row["tokens_per_second"], row["peak_memory_bytes"]
            wanted = [speed and round(speed), row["mfu"] and 100 * row["mfu"], memory and memory / 2**30,
                      row["ratio_to_pytorch"], row["ratio_to_pytorch_lsq"]]
            for number, right, digit in zip(shown, wanted, (0.5, 0.05, 0.005, 0.0005, 0.0005)):
                self.assertEqual(number is None, right is None, (row, cells))
                if number is not None:
                    self.assertAlmostEqual(number, right, delta=1.01 * digit)

    # ---- stand-ins

    def write_stand_ins(self):
        for name in ("nvidia-smi", "python", "train_qat", "train_gpt2cu", "train"):
            (self.directory / name).write_text(STAND_IN.replace("@PYTHON@", sys.executable))
            (self.directory / name).chmod(0o755)
        self.times = {who: [[round(random.uniform(20, 900), 2) for _ in range(7)] for _ in range(4)] for who in EVERYONE}
        self.times["train"] = [[round(ms) for ms in run] for run in self.times["train"]]
        (self.directory / "times").write_text(json.dumps(self.times))
        self.memory = random.randrange(2000, 70000)
        (self.directory / "memory").write_text(str(self.memory))

    def bench_stand_ins(self, *words):
        programs = [f"--{option}={self.directory / name}" for option, name in (
            ("program", "train_qat"), ("python", "python"), ("llmc", "train_gpt2cu"), ("llmq", "train"))]
        return bench(*programs, "-o", self.output, *words, PATH=f"{self.directory}:{os.environ['PATH']}")

    def test_numbers_are_those_of_the_runs(self):
        self.write_stand_ins()
        steps = random.randrange(2, 8)
        result = self.bench_stand_ins("--sizes", "124M", "--rounds", 2, "--steps", steps, "--hopper")
        self.assertEqual(result.returncode, 0, result.stderr)
        rows = rows_of(self.output)
        self.assertEqual(len(rows), len(EVERYONE))
        medians = {}
        for who, row in zip(EVERYONE, rows):
            later = [ms for run in self.times[who][:2] for ms in run[:steps][steps // 2 :]]
            medians[who] = 1e3 * 32 * 1024 / statistics.median(later)
            self.assertAlmostEqual(row["tokens_per_second"], medians[who], delta=1e-6 * medians[who])
            # 6 N + 6 L T C of 124M, and an H100's peak, written out.
            flops = 6 * (12 * (4 * 768 * 768 + 3 * 768 * 2048) + 50304 * 768) + 6 * 12 * 1024 * 768
            self.assertAlmostEqual(row["mfu"], flops * medians[who] / 989e12, places=9)
            self.assertEqual(row["peak_memory_bytes"], (self.memory - 1000) * 2**20)
            self.assertEqual((row["card"], row["driver"]), ("NVIDIA H100 80GB HBM3", "580.95"))
        plain = max(medians["python_flash"], medians["python_cudnn"])
        quantized = max(medians["python_qat_flash"], medians["python_qat_cudnn"])
        for who, row in zip(EVERYONE, rows):
            self.assertAlmostEqual(row["ratio_to_pytorch"], medians[who] / plain, places=6)
            self.assertAlmostEqual(row["ratio_to_pytorch_lsq"], medians[who] / quantized, places=6)
        self.assert_table_shows(result.stdout, rows)
        # In turn: everyone once, then everyone again.
        self.assertEqual((self.directory / "log").read_text().split(), 2 * EVERYONE)

    def test_a_failure_is_one_line(self):
        self.write_stand_ins()
        result = self.bench_stand_ins("--sizes", "350M", "--rounds", 2, "--steps", 3)
        self.assertEqual(result.returncode, 0, result.stderr)
        rows = rows_of(self.output)
        failed = [row for row in rows if row["error"]]
        self.assertEqual([(row["contestant"], row["tokens_per_second"]) for row in failed], [("llm.c", None)])
        self.assertIn("CUDA error: out of memory", failed[0]["error"])
        self.assertRegex(result.stdout, r"(?m)^llm\.c .* exit status 1: CUDA error: out of memory$")
        self.assert_table_shows(result.stdout, rows)
        # Rows are appended.
        self.bench_stand_ins("--sizes", "350M", "--rounds", 1, "--steps", 3, "--only", "ours")
        self.assertEqual(len(rows_of(self.output)), len(rows) + len(OURS) + 2)

    def test_mistakes_are_one_line(self):
        self.write_stand_ins()
        for words, named in ((["--sizes", "125M"], "--sizes"), (["--program", self.directory / "none"], "--program"),
                             (["--llmc", self.directory], "--llmc"), (["--steps", 1], "--steps"),
                             (["--python", self.directory / "none"], "--python")):
            result = self.bench_stand_ins(*words)
            self.assertEqual(result.returncode, 2, result.stderr)
            self.assertRegex(result.stderr, rf"\Abench_gpu\.py: error: {named}[^\n]*\n\Z")
        no_card = bench("--program", self.directory / "train_qat", "--only", "ours", PATH=str(self.directory / "nowhere"))
        self.assertEqual(no_card.returncode, 2)
        self.assertRegex(no_card.stderr, r"\Abench_gpu\.py: error: no GPU: nvidia-smi: No such file[^\n]*\n\Z")

    # ---- real programs

    def test_smoke_on_the_cpu(self):
        result = bench("--device", "cpu", "--smoke", "--threads", 1, "--program", PROGRAM, "-o", self.output)
        self.assertEqual(result.returncode, 0, result.stderr)
        rows = rows_of(self.output)
        self.assertEqual([(row["kind"], row["bits"], row["error"]) for row in rows],
                         [("train_qat", bits, None) for bits in (16, 4, 2, 1)] + [("PyTorch", bits, None) for bits in (16, 4)])
        self.assertEqual(len({row["tokens_per_second"] for row in rows}), len(rows))
        for row in rows:
            self.assertGreater(row["tokens_per_second"], 0)
            self.assertGreater(row["peak_memory_bytes"], 2**20)
            self.assertAlmostEqual(row["ratio_to_pytorch"], row["tokens_per_second"] / rows[4]["tokens_per_second"])
            self.assertAlmostEqual(row["ratio_to_pytorch_lsq"], row["tokens_per_second"] / rows[5]["tokens_per_second"])
            self.assertIsNone(row["mfu"])  # a CPU is in no data sheet
        self.assertIn("torch ", rows[4]["versions"])
        self.assert_table_shows(result.stdout, rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", required=True, help="train_qat")
    arguments, rest = parser.parse_known_args()
    PROGRAM = os.path.abspath(arguments.program)
    unittest.main(argv=[sys.argv[0], *rest])
