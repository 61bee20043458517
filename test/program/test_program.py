#!/usr/bin/env python3
"""Tests of the program as its users run it: on tiny synthetic shards, in temporary directories, one process a run.

    test/program/test_program.py --program ./train_qat [TESTS]

Most runs use one thread: the numbers do not depend on it (tested), and a busy machine wakes sleeping threads slowly.
"""
import fcntl
import json
import math
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import unittest.mock

from program_fixture import (BATCH, LIMIT_SECONDS, SEQUENCE, SHAPE, VOCABULARY, ProgramTest, checkpoint, checkpoints,
                             expected_shapes, parameter_count, read_bytes, read_metrics, read_safetensors,
                             run_tests, sentencepiece_model, snapshot, write_shards)
from shard_files import fnv1a_64


# ---- whole runs ---------------------------------------------------------------------------------------------------

class WholeRunTest(ProgramTest):
    def check_run(self, steps, qat_steps, arguments, group=0, bits=4):
        """Every number that a run leaves, against the plan that it had to follow."""
        printed = self.run_program(*arguments, f"-b {bits} -steps {steps} -lr 5e-3 -val_every 10")
        out = self.path("out")
        records, validations = read_metrics(out)
        fp_steps = steps - qat_steps
        self.assertEqual([(record["step"], record["phase"]) for record in records],
                         [(step, "FP" if step <= fp_steps else "QAT") for step in range(1, steps + 1)])
        for record in records:
            self.assertTrue(all(math.isfinite(record[key]) and record[key] > 0
                                for key in ("loss", "learning_rate", "gradient_norm")), record)
        loss = [record["loss"] for record in records]
        self.assertAlmostEqual(loss[0], math.log(VOCABULARY), delta=0.5)
        self.assertLess(sum(loss[-5:]) / 5, sum(loss[:5]) / 5 - 0.3)
        self.check_validations(validations, steps, fp_steps, bits)
        self.check_results(validations, printed, steps, fp_steps, bits)
        self.assertEqual(checkpoints(out), [steps])
        model = read_safetensors(checkpoint(out, steps) + "/model.safetensors")
        self.assertEqual({name: shape for name, (shape, _) in model.items()},
                         expected_shapes(qat_steps > 0, group))
        self.assertTrue(all(math.isfinite(x) for _, numbers in model.values() for x in numbers))
        self.assertTrue(all(x >= 1e-5 * 0.999 for name, (_, numbers) in model.items() if name.endswith("_scale")
                            for x in numbers))

    def check_validations(self, validations, steps, fp_steps, bits):
        expected = [(step, "FP", "full_precision") if step <= fp_steps else (step, "QAT", "quantized")
                    for step in range(10, steps, 10) if step != fp_steps]
        if 0 < fp_steps < steps:
            expected += [(fp_steps, "FP", "full_precision"), (fp_steps, "FP", "rounded")]
        if fp_steps < steps:
            expected.append((steps, "QAT", "quantized"))
        else:
            expected.append((steps, "FP", "full_precision"))
            expected += [(steps, "FP", "rounded")] if bits < 16 else []
        found = [(record["step"], record["phase"], record["weights"]) for record in validations]
        self.assertEqual(sorted(found), sorted(expected))
        self.assertEqual([step for step, _, _ in found], sorted(step for step, _, _ in found))

    def check_results(self, validations, printed, steps, fp_steps, bits):
        def at(step, weights):
            found = [record["validation_loss"] for record in validations
                     if (record["step"], record["weights"]) == (step, weights)]
            return found[0] if found else None
        record = json.loads(read_bytes(self.path("out", "run.json")))
        self.assertEqual(record["configuration"]["b"], bits)
        self.assertEqual((record["configuration"]["fp_steps"], record["configuration"]["steps"]), (fp_steps, steps))
        results = record["results"]
        expected = [at(fp_steps, "full_precision") if fp_steps else None, at(fp_steps, "rounded") if fp_steps else None,
                    at(steps, "quantized")]
        self.assertEqual([results[key] for key in ("full_precision_at_switch", "rounded_at_switch", "quantized")],
                         expected)
        for loss in expected:
            self.assertIn(f"{loss:.4f}" if loss is not None else "", printed.rsplit("validation loss\n", 1)[1])
        self.assertEqual(results["tokens_per_second_fp"] > 0, fp_steps > 0)
        self.assertEqual(results["tokens_per_second_qat"] > 0, fp_steps < steps)

    def every_precision(self, *check, **options):
        for dtype in ("fp32", "bf16"):
            with self.subTest(dtype=dtype):
                steps, qat_steps, arguments = check
                self.check_run(steps, qat_steps, [f"-dtype {dtype} {arguments}"], **options)
            shutil.rmtree(self.path("out"), ignore_errors=True)

    def test_four_bits(self):
        self.every_precision(40, 20, "-qat_frac 0.5")

    def test_one_bit(self):
        self.every_precision(60, 45, "-qat_frac 0.75", bits=1)

    def test_two_bits_in_groups(self):
        self.every_precision(41, 16, "-qat_frac 0.4 -group 32 -schedule cosine", bits=2, group=32)

    def test_ternary_with_gradient_accumulation(self):
        self.every_precision(40, 30, "-qat_frac 0.75 -grad_accum 3", bits=1.58)

    def test_sixteen_bits(self):
        self.every_precision(40, 0, "", bits=16)

    def test_full_precision_only(self):
        self.every_precision(40, 0, "-qat_frac 0")

    def test_quantized_from_the_start(self):
        self.every_precision(40, 40, "-qat_frac 1")

    def test_the_laws_fraction(self):
        steps, tokens_per_step, bits = 120, 32 * SEQUENCE, 1
        S = steps * tokens_per_step / (parameter_count() * bits / 8)
        qat_steps = round(math.exp(-6.7297 / math.log(S)) * steps)
        self.assertTrue(5 < qat_steps < 60, qat_steps)
        self.every_precision(steps, qat_steps, "-qat_frac auto -batch 32", bits=bits)

    def test_one_step(self):
        self.run_program("-steps 1 -qat_frac 1")
        self.assertEqual([record["phase"] for record in read_metrics(self.path("out"))[0]], ["QAT"])

    def test_sample_of_text(self):
        pieces = ["\u2581"] + [chr(code) for code in range(ord("0"), ord("0") + VOCABULARY - 4)]
        with open(self.path("letters.model"), "wb") as file:
            file.write(sentencepiece_model(pieces))
        hash_of_model = fnv1a_64(read_bytes(self.path("letters.model")))
        train = write_shards(self.path("text"), "train", 3000, seed=1, tokenizer_hash=hash_of_model)
        flags = f"-steps 8 -qat_frac 0.5 -sample_tokens 12 -prompt ABC -tokenizer {self.path('letters.model')}"
        printed = self.run_program(flags, train=train)
        sample = json.loads(read_bytes(self.path("out", "run.json")))["results"]["sample"]
        self.assertTrue(sample.startswith("ABC") and len(sample) > 3, sample)
        self.assertTrue(printed.endswith(f"\nsample\n{sample}\n"), printed)
        self.run_program(flags.replace("-sample_tokens 12", "-sample_tokens 0"), train=train, output="none")
        self.assertEqual(json.loads(read_bytes(self.path("none", "run.json")))["results"]["sample"], "")

    def test_threads_do_not_change_numbers(self):
        for dtype in ("fp32", "bf16"):
            for threads in (1, 2):
                self.run_program(f"-steps 8 -qat_frac 0.5 -grad_accum 2 -dtype {dtype} -threads {threads}",
                                 output=f"{dtype}_{threads}")
            self.same_run(self.path(f"{dtype}_1"), self.path(f"{dtype}_2"))

    def test_rows_of_logits_change_the_last_places_alone(self):
        flags = "-b 16 -qat_frac 0 -steps 6 -dtype fp32"
        self.run_program(flags, output="whole")
        self.run_program(flags, "-logit_rows 7 -until 3", output="chunks")
        printed = self.run_program(flags, "-logit_rows 5 -resume", output="chunks")
        self.assertIn("resume: step 3 from", printed)
        self.assertIn("\n  5 rows of logits and their gradient ", printed)
        losses = []
        for output, rows in (("whole", BATCH * SEQUENCE), ("chunks", 5)):
            record = json.loads(read_bytes(self.path(output, "run.json")))
            self.assertEqual(record["layout"]["logit_rows"], rows)
            losses.append([record["loss"] for record in read_metrics(self.path(output))[0]])
        self.assertEqual(len(losses[1]), 6)
        for whole, chunks in zip(*losses):
            self.assertAlmostEqual(chunks / whole, 1, delta=1e-5)

    def test_seed_and_precision_change_numbers(self):
        losses = set()
        for flags in ("-seed 1 -dtype fp32", "-seed 2 -dtype fp32", "-seed 1 -dtype bf16", "-seed 1 -dtype fp32 -b 2",
                      "-seed 1 -dtype bf16 -logits bf16"):
            self.run_program("-steps 6 -qat_frac 0.5", flags, output=flags.replace(" ", "_"))
            losses.add(read_metrics(self.path(flags.replace(" ", "_")))[0][-1]["loss"])
        self.assertEqual(len(losses), 5)


# ---- with few flags ------------------------------------------------------------------------------------------------

class DefaultsTest(ProgramTest):
    """The command of the front page: where a checkout has prepared data, nothing must be said about them."""

    COMMAND = "-b 4 -qat_frac 0.25 -seq_len 16 -threads 1"

    def record(self, **entries):
        os.makedirs(self.path("data", "cache"), exist_ok=True)
        with open(self.path("data", "cache", "latest.json"), "w") as file:
            json.dump({"train": None, "validation": None, "tokenizer": None, **entries}, file)

    def run_command(self, arguments="", size="13K"):
        result = self.start([self.program, *f"{self.COMMAND} -n {size} {arguments}".split()])
        self.assertEqual((result.returncode, result.stderr), (0, ""), result.stdout)
        return result.stdout

    def prepare(self):
        """Shards and a tokenizer in data/cache, and the record of them."""
        os.makedirs(self.path("data", "cache"))
        pieces = ["\u2581"] + [chr(code) for code in range(ord("0"), ord("0") + VOCABULARY - 4)]
        model = sentencepiece_model(pieces)
        with open(self.path("data", "cache", "letters.model"), "wb") as file:
            file.write(model)
        for prefix, split, count, seed in (("x", "train", 5000, 1), ("y", "val", 1500, 2)):
            write_shards(self.path("data", "cache", prefix), split, count, seed=seed, tokenizer_hash=fnv1a_64(model))
        self.record(train="x_train_*.bin", validation="y_val_*.bin", tokenizer="letters.model")

    def test_what_was_prepared_last(self):
        self.prepare()
        printed = self.run_command()
        self.assertRegex(printed.splitlines()[0], r"^data: data/cache/x_train_\*\.bin \(prepared last; -i .*"
                         r"data/cache/y_val_\*\.bin.*data/cache/letters\.model")
        tokens = re.search(r"tokens D +([\d,]+) \(.*, 20\.0 per parameter; -tokens sets them\)", printed)
        parameters = re.search(r"parameters N +([\d,]+)", printed)
        D, N = (int(match[1].replace(",", "")) for match in (tokens, parameters))
        self.assertAlmostEqual(D / N, 20, delta=0.05)
        self.assertIn("\nsample\n", printed)
        steps, validations = read_metrics(self.path("out"))
        self.assertEqual(len(steps), D // (8 * 16))
        self.assertEqual(validations[-1]["weights"], "quantized")
        # As if all had been named, from anywhere.
        cache = self.path("data", "cache")
        self.run_command(f"-i {cache}/x_train_*.bin -j {cache}/y_val_*.bin -tokenizer {cache}/letters.model -tokens {D} -o named")
        self.same_run(self.path("out"), self.path("named"))
        # And it does not train over what is there.
        result = self.start([self.program, *f"{self.COMMAND} -n 13K".split()])
        self.check_error(result, "-o out: holds a run already", "-resume")

    def test_named_shards_alone(self):
        self.prepare()
        printed = self.run_command(f"-i {self.train} -until 2")
        self.assertNotIn("data/cache", printed)
        self.assertEqual(read_metrics(self.path("out"))[1], [])  # no validation shards are assumed

    def test_named_validation(self):
        self.prepare()
        self.record(train="x_train_*.bin", validation="gone_*.bin")
        self.assertIn(f"validation {self.validation}", self.run_command(f"-j {self.validation} -until 2"))

    def test_plan_with_and_without_data(self):
        self.assertRegex(self.run_command("-plan", size="1.5M"), r"vocabulary +32,?000\n")
        self.assertEqual(os.listdir(self.directory), [])
        self.prepare()
        self.assertRegex(self.run_command("-plan"), rf"vocabulary +{VOCABULARY}\n")
        # One for another vocabulary than that of what was prepared.
        self.assertRegex(self.run_command(f"-plan -vocab {VOCABULARY - 1}"), rf"vocabulary +{VOCABULARY - 1}\n")


# ---- resume -------------------------------------------------------------------------------------------------------

class ResumeTest(ProgramTest):
    def interrupted(self, whole, step, generator, output):
        """What a kill after the checkpoint of `step` leaves: no later checkpoint, more metrics, cut anywhere."""
        out = self.path(output)
        shutil.copytree(whole, out, ignore=lambda _, names: [name for name in names if name == "run.json"])
        for later in checkpoints(out):
            if later > step:
                shutil.rmtree(checkpoint(out, later))
        lines = read_bytes(out, "metrics.jsonl").splitlines(keepends=True)
        kept = sum(len(line) for line in lines if json.loads(line)["step"] <= step)
        with open(os.path.join(out, "metrics.jsonl"), "r+b") as file:
            file.truncate(generator.randint(kept, sum(map(len, lines))))
        return out

    def check_every_checkpoint(self, flags, steps, which):
        self.run_program(flags, f"-steps {steps} -save_every 1 -keep 0", output="whole")
        self.assertEqual(checkpoints(self.path("whole")), list(range(1, steps + 1)))
        generator = random.Random(7)
        for step in which:
            with self.subTest(step=step):
                out = self.interrupted(self.path("whole"), step, generator, f"from_{step}")
                resumed = f"-steps {steps} -save_every 4 -keep 1 -resume"
                printed = self.run_program(flags, resumed, output=f"from_{step}")
                self.assertIn(f"resume: step {step} from" if step else "resume: no checkpoint", printed)
                self.assertEqual(checkpoints(out), [steps])
                self.same_run(self.path("whole"), out)

    def test_from_every_checkpoint(self):
        self.check_every_checkpoint("-qat_frac 0.5 -dtype fp32 -grad_accum 2 -val_every 5", 20, range(21))

    def test_from_every_checkpoint_with_two_decays(self):
        self.check_every_checkpoint("-b 1 -qat_frac 0.6 -dtype bf16 -val_every 4", 15, range(16))

    def test_from_checkpoints_of_one_range(self):
        for fraction in (0, 1):
            self.check_every_checkpoint(f"-qat_frac {fraction} -group 32", 6, (0, 1, 5, 6))
            for name in os.listdir(self.directory):
                shutil.rmtree(self.path(name))

    def test_a_finished_run_stays_as_it_is(self):
        flags = "-qat_frac 0.5 -steps 9 -save_every 3"
        self.run_program(flags, output="whole")
        shutil.copytree(self.path("whole"), self.path("again"))
        for _ in range(2):
            self.run_program(flags, "-resume", output="again")
        self.same_run(self.path("whole"), self.path("again"))

    def test_killed_at_random_moments(self):
        generator = random.Random(11)
        kills = 0
        for bits, dtype in ((4, "fp32"), (1, "bf16")):
            flags = f"-b {bits} -dtype {dtype} -qat_frac 0.5 -steps 60 -save_every 3 -grad_accum 2 -val_every 7 -keep 1"
            begin = time.monotonic()
            self.run_program(flags, output=f"whole_{bits}")
            seconds = time.monotonic() - begin
            out = self.path(f"killed_{bits}")
            for attempt in range(40):
                command = self.command(flags, "-resume" if attempt else "", output=f"killed_{bits}")
                process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
                try:
                    # The last attempt may finish, so that a slow machine does not keep the test from ending.
                    _, errors = process.communicate(timeout=generator.uniform(0, seconds) if attempt < 39 else None)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.communicate()
                    kills += 1
                    continue
                self.assertEqual((process.returncode, errors), (0, b""))
                break
            self.same_run(self.path(f"whole_{bits}"), out)
        self.assertGreater(kills, 0)

    def stop_at(self, flags, line_start, signal_number, output):
        """Sends a signal when a line appears; the small pipe keeps the program from running far ahead of us."""
        process = subprocess.Popen(self.command(flags, output=output), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                   text=True, bufsize=1)
        fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ if hasattr(fcntl, "F_SETPIPE_SZ") else 1031, 4096)
        for line in process.stdout:
            if line.startswith(line_start):
                process.send_signal(signal_number)
                break
        else:
            self.fail(f"no line {line_start}: {process.stderr.read()}")
        printed, errors = process.communicate(timeout=LIMIT_SECONDS)
        self.assertEqual(errors, "")
        return process.returncode, line + printed

    def check_killed(self, flags, line_start, resumed_from):
        flags += " -qat_frac 0.5 -steps 300 -val_every 60"
        self.run_program(flags, output="whole")
        status, _ = self.stop_at(flags, line_start, signal.SIGKILL, "killed")
        self.assertEqual(status, -signal.SIGKILL)
        printed = self.run_program(flags, "-resume", output="killed")
        step = re.search(r"resume: step (\d+)", printed)
        self.assertIn(int(step[1]) if step else 0, resumed_from)
        self.same_run(self.path("whole"), self.path("killed"))

    def test_killed_in_full_precision(self):
        self.check_killed("-save_every 3 -keep 1", "step  20/", range(18, 150))

    def test_killed_in_quantization_aware_training(self):
        self.check_killed("-save_every 3 -keep 1", "step 180/", range(177, 300))

    def test_killed_after_the_switch(self):
        self.check_killed("-save_every 150 -keep 1", "step 160/", [150])

    def test_killed_before_the_first_checkpoint(self):
        self.check_killed("-save_every 290", "step  40/", [0])

    def check_stopped(self, signal_number, line_start, first, last):
        flags = "-qat_frac 0.5 -steps 300 -keep 1"
        self.run_program(flags, output="whole")
        out = self.path("stopped")
        status, printed = self.stop_at(flags, line_start, signal_number, "stopped")
        self.assertEqual(status, 128 + signal_number)
        message = re.search(r"\nstopped after step (\d+); go on with the same command and -resume\n\Z", printed)
        self.assertTrue(message, printed)
        step = int(message[1])
        self.assertIn(step, range(first, last))
        self.assertEqual(checkpoints(out), [step])
        self.assertEqual([record["step"] for record in read_metrics(out)[0]], list(range(1, step + 1)))
        self.run_program(flags, "-resume", output="stopped")
        self.same_run(self.path("whole"), out)

    def test_interrupted_in_full_precision(self):
        self.check_stopped(signal.SIGINT, "step  20/", 20, 150)

    def test_interrupted_in_quantization_aware_training(self):
        self.check_stopped(signal.SIGINT, "step 180/", 180, 300)

    def test_terminated(self):
        self.check_stopped(signal.SIGTERM, "step 170/", 170, 300)

    def test_damaged_manifest_is_passed_over(self):
        flags = "-qat_frac 0.5 -steps 20 -save_every 4 -keep 0"
        self.run_program(flags, output="whole")
        out = self.interrupted(self.path("whole"), 12, random.Random(1), "damaged")
        manifest = os.path.join(checkpoint(out, 12), "manifest.json")
        text = read_bytes(manifest)
        with open(manifest, "wb") as file:
            file.write(text[:len(text) // 2])
        result = self.start(self.command(flags, "-resume", output="damaged"))
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertRegex(result.stdout, r"\npassed over: .*step_00000012/manifest.json: damaged")
        self.assertIn("resume: step 8 from", result.stdout)
        self.assertRegex(result.stderr, r"\Atrain_qat: warning: [^\n]*step_00000012[^\n]*unreadable[^\n]*\n\Z")
        kept = [name for name in os.listdir(out) if name.startswith("step_00000012.unreadable")]
        self.assertEqual(read_bytes(out, kept[0], "manifest.json"), text[:len(text) // 2])
        self.same_run(self.path("whole"), out)

    def test_refused(self):
        flags = "-qat_frac 0.5 -steps 12 -save_every 4 -keep 0"
        self.run_program(flags)
        for changed, name in [("-lr 2e-3", "lr"), ("-batch 5", "total_batch"), ("-grad_accum 2", "total_batch"),
                              ("-qat_frac 0.25", "qat_frac"), ("-steps 13", "steps"), ("-b 3", "b"),
                              ("-seed 2", "seed"), ("-group 32", "group"), ("-ffn 96", "ffn"),
                              ("-dtype fp32", "dtype"), ("-clip 2", "clip"), ("-schedule cosine", "schedule")]:
            self.fails(flags, "-dtype bf16 -resume", changed, text=["-resume: the checkpoint was trained with " + name])
        self.fails(flags, "-resume", train=self.other, text=["-resume", "shards", "-i"])
        self.fails(flags, text=["holds a run already", "step_00000012", "-resume"])
        model = os.path.join(checkpoint(self.path("out"), 12), "model.safetensors")
        content = bytearray(read_bytes(model))
        content[-100] ^= 4
        with open(model, "wb") as file:
            file.write(content)
        self.fails(flags, "-resume", text=["step_00000012/model.safetensors", "damaged", "checksum"])
        for step in checkpoints(self.path("out")):
            os.unlink(os.path.join(checkpoint(self.path("out"), step), "optimizer.safetensors"))
        self.fails(flags, "-resume", text=["-resume", "no valid checkpoint", "optimizer.safetensors"])
        for step in checkpoints(self.path("out")):
            shutil.rmtree(checkpoint(self.path("out"), step))
        self.fails(flags, text=["metrics.jsonl", "exists already"])

    def test_resume_without_a_run_starts_one(self):
        self.assertIn("starting at step 0", self.run_program("-qat_frac 0.5 -steps 4 -resume"))
        self.assertEqual(checkpoints(self.path("out")), [4])


# ---- mistakes and mishaps -----------------------------------------------------------------------------------------

class ErrorTest(ProgramTest):
    def test_data(self):
        def shard(name, change):
            data = bytearray(read_bytes(self.data, "a_train_000000.bin"))
            with open(self.path(name), "wb") as file:
                file.write(change(data))
            return self.path(name)
        flags = "-qat_frac 0.5 -steps 4"
        self.fails(flags, train=self.path("none_*.bin"), text=["no token shard matches", "none_*.bin"])
        self.fails(flags, validation=self.path("none_*.bin"), text=["no token shard matches", "none_*.bin"])
        self.fails(flags, train=shard("short.bin", lambda data: data[:-2]),
                   text=["short.bin", "truncated", "2000 tokens"])
        self.fails(flags, train=shard("tiny.bin", lambda data: data[:600]), text=["tiny.bin", "too short"])
        self.fails(flags, validation=shard("cut.bin", lambda data: data[:-2]), text=["cut.bin", "truncated"])
        self.fails(flags, train=shard("text.bin", lambda data: b"Call me Ishmael. " * 99),
                   text=["text.bin", "not a token shard", "prepare.py"])
        self.fails(flags, train=self.directory, text=["is a directory"])
        self.fails(flags, "-seq_len 3000", text=["holds no sample", "3000"])
        self.fails(flags, "-vocab 60", text=["vocabulary of 61", "60"])
        silent = write_shards(self.path("silent"), "train", 3000, seed=1, stated=False)
        self.fails(flags, train=silent, text=["-vocab", "do not say their vocabulary"])

    def test_token_outside_of_the_vocabulary(self):
        # The ids of shards that state no vocabulary are only seen when they are read.
        silent = write_shards(self.path("silent"), "train", 3000, seed=1, stated=False)
        held_out = write_shards(self.path("held_out"), "val", 1000, seed=2, stated=False)
        result = self.start(self.command("-qat_frac 0.5 -steps 400 -vocab 50", train=silent, validation=held_out))
        self.check_error(result, "silent_train_00000", "has id 5", "vocabulary has 50")

    def test_tokenizer(self):
        with open(self.path("some.model"), "wb") as file:
            file.write(sentencepiece_model("abc"))
        with open(self.path("junk.model"), "wb") as file:
            file.write(b"no model at all")
        with open(self.path("large.model"), "wb") as file:
            file.write(sentencepiece_model(chr(0x4E00 + i) for i in range(100)))
        hashed = write_shards(self.path("hashed"), "train", 3000, seed=1, tokenizer_hash=12345)
        flags = "-qat_frac 0.5 -steps 4 -tokenizer"
        self.fails(flags, self.path("some.model"), train=hashed, text=["made with the tokenizer", "0x0000000000003039"])
        self.fails(flags, self.path("none.model"), text=["none.model", "No such file"])
        self.fails(flags, self.path("junk.model"), text=["junk.model", "not a SentencePiece model"])
        self.fails(flags, self.path("large.model"), text=["-tokenizer", "103 tokens", "61"])

    def test_flags(self):
        for flags, text in [
                ("-steps 4 -qat_frac 1.5", ["-qat_frac 1.5", "from 0 to 1"]),
                ("-steps 4 -qat_frac x", ["-qat_frac", "'x'", "auto"]),
                ("-steps 4 -qat_frac nan", ["-qat_frac nan"]),
                ("-steps 4", ["-qat_frac", "tokens per parameter byte"]),
                ("-steps 4 -b 7 -qat_frac 0.5", ["-b", "7", "1.58"]),
                ("-steps 4 -b 16 -qat_frac 0.5", ["-qat_frac", "16"]),
                ("-steps 4 -tokens 8000 -b 4 -qat_frac 0.5", ["-tokens and -steps", "not both"]),
                ("-tokens 20 -qat_frac 0.5", ["-tokens", "less than one step"]),
                ("-tokens 8X -qat_frac 0.5", ["-tokens", "'8X'"]),
                ("-steps 0 -qat_frac 0.5", ["-steps 0"]),
                ("-steps x -qat_frac 0.5", ["--steps", "x"]),
                ("-steps 4 -qat_fraction 0.5", ["--qat_fraction", "-h"]),
                ("-steps 4 -qat_frac 0.5 -n 0", ["-n", "'0'"]),
                ("-steps 4 -qat_frac 0.5 -heads 3", ["-heads 3", "width 32"]),
                ("-steps 4 -qat_frac 0.5 -width 34 -heads 1 -group 32", ["-group 32", "34"]),
                ("-steps 4 -qat_frac 0.5 -width 33", ["-width 33", "even"]),
                ("-steps 4 -qat_frac 0.5 -group 5", ["-group"]),
                ("-steps 4 -qat_frac 0.5 -lr 0", ["-lr 0"]),
                ("-steps 4 -qat_frac 0.5 -lr -1", ["-lr -1"]),
                ("-steps 4 -qat_frac 0.5 -batch 0", ["-batch"]),
                ("-steps 4 -qat_frac 0.5 -batch 9000000000", ["-batch"]),
                ("-steps 4 -qat_frac 0.5 -vocab 9000000000000000000", ["-vocab"]),
                ("-steps 4 -qat_frac 0.5 -threads 100000", ["-threads"]),
                ("-steps 4 -qat_frac 0.5 -threads -1", ["-threads"]),
                ("-steps 4 -qat_frac 0.5 -logit_rows -1", ["-logit_rows", "from 1"]),
                ("-steps 4 -qat_frac 0.5 -logit_rows 1000001", ["-logit_rows", "1000000"]),
                ("-steps 4 -qat_frac 0.5 -logits fp8", ["-logits", "'fp8'"]),
                ("-steps 4 -qat_frac 0.5 -logits bf16 -dtype fp32", ["-logits bf16", "-dtype fp32"]),
                ("-steps 4 -qat_frac 0.5 -keep -1", ["-keep"]),
                ("-steps 4 -qat_frac 0.5 -device tpu", ["-device", "'tpu'"]),
                ("-steps 4 -qat_frac 0.5 -dtype fp8", ["-dtype", "'fp8'"]),
                ("-steps 4 -qat_frac 0.5 -schedule linear", ["-schedule linear"]),
                ("-steps 4 -qat_frac 0.5 -cooldown no", ["-cooldown no"]),
                ("-steps 4 -qat_frac 0.5 -warmup x", ["-warmup", "'x'"])]:
            self.fails(flags, text=text)

    def test_no_training_data(self):
        result = self.start([self.program, *SHAPE, *"-steps 4 -qat_frac 0.5 -vocab 61".split()])
        self.check_error(result, "-i", "make quickstart", "data/prepare.py")
        self.assertEqual(os.listdir(self.directory), [])

    def test_damaged_record_of_prepared_data(self):
        os.makedirs(self.path("data", "cache"))
        for content in ("", "{}", '{"train": 1, "validation": null, "tokenizer": null}'):
            with open(self.path("data", "cache", "latest.json"), "w") as file:
                file.write(content)
            self.check_error(self.start([self.program, *SHAPE, *"-steps 4 -qat_frac 0.5".split()]),
                             "data/cache/latest.json", "-i")

    def test_too_large_for_the_memory(self):
        with self.subTest("model"):
            flags = f"-n 2000B -qat_frac 0.5 -steps 4 -i {self.train} -o {self.path('out')}"
            self.check_error(self.start([self.program, *flags.split()]), "not enough memory", "GiB", "-plan")
        self.fails("-steps 4 -qat_frac 0.5 -batch 1000000 -seq_len 1000", text=["not enough memory", "-batch"])
        self.assertEqual(os.listdir(self.directory), [])
        largest_kibibytes = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        self.assertLess(largest_kibibytes, 1 << 20)  # it did not try

    def test_devices(self):
        hidden = unittest.mock.patch.dict(os.environ, CUDA_VISIBLE_DEVICES="")
        hidden.start()
        self.addCleanup(hidden.stop)
        reasons = "built without CUDA|no NVIDIA driver is installed|no CUDA device is visible"
        text = self.fails("-steps 4 -qat_frac 0.5 -device cuda", text=["no CUDA device to use", "-device cpu"])
        self.assertRegex(text, reasons)
        for device, fell_back in (("auto", True), ("cpu", False)):
            lines = self.run_program(f"-steps 2 -qat_frac 0.5 -device {device}", output=device).splitlines()
            line = next(line for line in lines if line.startswith("device: "))
            self.assertIn("1 thread", line)
            self.assertEqual(bool(re.search(rf"\(-device auto: .*({reasons})", line)), fell_back)

    def test_weights_without_masters_need_the_gpu(self):
        self.fails("-steps 4 -qat_frac 0.5 -device cpu -master off", text=["-master off", "-device cuda"])

    def test_matmuls_of_the_gpu_need_it(self):
        hidden = unittest.mock.patch.dict(os.environ, CUDA_VISIBLE_DEVICES="")
        hidden.start()
        self.addCleanup(hidden.stop)
        for device, remedy in (("cpu", "use -device cuda"), ("auto", "9.0, and ")):
            self.fails("-steps 4 -qat_frac 0.5 -qat_gemm hopper", "-device " + device,
                       text=["-qat_gemm hopper: needs a card of compute capability 9.0", remedy])
        self.fails("-steps 4 -qat_frac 0.5 -qat_gemm blas", text=["-qat_gemm: must be auto, fused, cublaslt or hopper"])
        for gemm in ("hopper", "cublaslt"):
            for device, remedy in (("cpu", "use -device cuda"), ("auto", "only the CUDA backend has it, and ")):
                self.fails(f"-steps 4 -qat_frac 0.5 -gemm {gemm}", "-device " + device, text=[f"-gemm {gemm}: ", remedy])
        self.fails("-steps 4 -qat_frac 0.5 -gemm blas", text=["-gemm: must be auto, cublaslt or hopper, is 'blas'"])

    def test_output_directory(self):
        with open(self.path("out"), "w") as file:
            file.write("precious")
        for resume in ("", "-resume"):
            self.fails("-steps 4 -qat_frac 0.5", resume, text=["/out", "not a directory"])

    def test_full_disk(self):
        flags = "-qat_frac 0.5 -steps 12 -save_every 3 -keep 0"
        self.run_program(flags)
        out = self.path("out")
        whole = read_metrics(out), read_bytes(checkpoint(out, 12), "model.safetensors")
        for step in (6, 9, 12):
            shutil.rmtree(checkpoint(out, step))
        before = snapshot(checkpoint(out, 3))
        limit = 20000  # more than the metrics, less than a checkpoint
        result = self.start(self.command(flags, "-resume"),
                            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
        self.check_error(result, "model.safetensors", "ulimit -f")
        self.assertEqual(sorted(os.listdir(out)), ["metrics.jsonl", "run.json", "step_00000003"])
        self.assertEqual(snapshot(checkpoint(out, 3)), before)
        self.run_program(flags, "-resume")
        self.assertEqual((read_metrics(out), read_bytes(checkpoint(out, 12), "model.safetensors")), whole)

    def test_full_disk_for_metrics(self):
        result = self.start(self.command("-qat_frac 0.5 -steps 200"),
                            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000)))
        self.check_error(result, "metrics.jsonl", "ulimit -f")
        self.assertTrue(read_metrics(self.path("out"))[0])  # whole lines

    def test_numbers_that_go_wrong(self):
        for rate in ("1e15", "1e30"):
            with self.subTest(rate=rate):
                out = self.path("out_" + rate)
                flags = f"-qat_frac 0.5 -steps 40 -lr {rate} -warmup 0 -dtype fp32"
                result = self.start(self.command(flags, "-save_every 1", output="out_" + rate))
                self.check_error(result, "step 2: ", "first bad gradient: model.embed_tokens.weight",
                                 "nothing of this step was kept", "the last good checkpoint is " + checkpoint(out, 1),
                                 "-lr")
                self.assertEqual([record["step"] for record in read_metrics(out)[0]], [1])
                for file in ("model", "optimizer"):
                    tensors = read_safetensors(checkpoint(out, 1) + f"/{file}.safetensors")
                    self.assertTrue(all(math.isfinite(x) for _, numbers in tensors.values() for x in numbers))
                again = self.start(self.command(flags, "-resume", output="out_" + rate))
                self.assertIn("resume: step 1 from", again.stdout)
                self.check_error(again, "step 2: ", checkpoint(out, 1))
                result = self.start(self.command(flags, output="bare_" + rate))
                self.check_error(result, "step 2: ", "there is no checkpoint yet")


# ---- without training ---------------------------------------------------------------------------------------------

class PlanTest(ProgramTest):
    def plan(self, flags):
        result = self.start([self.program, *flags.split(), "-plan"])
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        self.assertEqual(os.listdir(self.directory), [])
        return result.stdout

    def number(self, pattern, text):
        match = re.search(pattern, text)
        self.assertTrue(match, f"{pattern}\n{text}")
        return float(match[1].replace(",", ""))

    def check_plan(self, text, tokens, bits, tokens_per_step):
        """S, f*, steps and FLOPs, computed here from the size that the program solved for. Returns f*."""
        N = self.number(r"parameters N +([\d,]+)", text)
        self.assertAlmostEqual(N / 396e6, 1, delta=0.03)
        S = self.number(r"S = D / \(N B/8\) +(\S+)", text)
        self.assertAlmostEqual(S / (tokens / (N * bits / 8)), 1, delta=1e-3)
        optimal = self.number(r"optimal fraction +(\S+)", text)
        self.assertAlmostEqual(optimal, math.exp(-6.7297 / math.log(tokens / (N * bits / 8))), delta=1e-3)
        steps = self.number(r"\n  total +(\d+) ", text)
        self.assertEqual(steps, round(tokens / tokens_per_step))
        flops = self.number(r"\n  total .* (\S+)\n", text)
        self.assertAlmostEqual(flops / (6 * N * tokens), 1, delta=0.2)
        memory = text[text.index("\nmemory ("):]
        rows = dict(re.findall(r"\n  (\S.*?) {2,}(\d+\.?\d* \w+)", memory))
        size = {"GiB": 2**30, "MiB": 2**20, "KiB": 2**10, "B": 1}
        values = {name: float(text.split()[0]) * size[text.split()[1]] for name, text in rows.items()}
        self.assertAlmostEqual(values["master weights (float32)"] / (4 * N), 1, delta=0.01)
        self.assertAlmostEqual(values["AdamW moments (float32)"] / (8 * N), 1, delta=0.01)
        total = values.pop("total")
        self.assertAlmostEqual(sum(values.values()) / total, 1, delta=0.01)
        return optimal, steps

    def test_given_fraction(self):
        text = self.plan("-n 396M -b 4 -qat_frac 0.25 -tokens 8B -batch 10 -seq_len 1024")
        _, steps = self.check_plan(text, 8e9, 4, 10 * 1024)
        self.assertIn("overridden", text)
        qat_steps = math.floor(0.25 * steps + 0.5)
        self.assertEqual(self.number(r"\n  QAT +\[\d+, \d+\) +(\d+) ", text), qat_steps)
        self.assertEqual(self.number(r"\n  FP +\[0, (\d+)\) ", text), steps - qat_steps)

    def test_the_laws_fraction(self):
        for flags in ("-qat_frac auto", ""):
            text = self.plan(f"-n 396M -b 2 {flags} -tokens 8B -batch 10 -seq_len 1024")
            optimal, steps = self.check_plan(text, 8e9, 2, 10 * 1024)
            self.assertIn("used", text)
            self.assertAlmostEqual(self.number(r"\n  QAT +\[\d+, \d+\) +(\d+) ", text) / steps, optimal, delta=1e-4)

    def test_memory_of_logits(self):
        for asked, rows, types, size in ((0, 512, "-dtype fp32", 4), (1, 1, "-dtype bf16", 4 + 2),
                                         (100, 100, "-dtype bf16 -logits bf16", 2), (999999, 10 * 256, "-logits fp32 -dtype fp32", 4)):
            text = self.plan(f"-n 1.5M -qat_frac 0.5 -steps 9 -batch 10 -device cpu {types} -logit_rows {asked}")
            shown = f"{rows:,} row{'s' if rows > 1 else ''} of logits and their gradient"
            mebibytes = self.number(rf"\n  {shown} +(\S+) MiB\n", text)
            self.assertAlmostEqual(mebibytes, rows * 32000 * size / 2**20, delta=0.006)

    def test_vocabulary_of_the_shards(self):
        text = self.plan(f"-layers 2 -width 32 -steps 9 -qat_frac 0.5 -i {self.train}")
        self.assertRegex(text, r"vocabulary +61\n")

    def test_help(self):
        options = """n layers width heads kv_heads ffn vocab seq_len b group qat_frac tokens steps schedule cooldown
            cooldown_frac warmup lr final_lr_frac qat_lr qat_warmup plan i j tokenizer o val_every val_sequences
            save_every keep eval_only e resume resume_from print_every tensorboard export hellaswag prompt sample sample_tokens temperature top_k
            top_p init_from head_dim untied batch grad_accum weight_decay beta1 beta2 eps
            clip scale_lr seed device dtype gemm qat_gemm attention master logit_rows logits threads from until total_batch zero rank_timeout rendezvous
            sweep sweep_ranks retry_failed law memory flops""".split()
        for flag in ("-h", "--help", "-help"):
            result = self.start([self.program, flag])
            self.assertEqual((result.returncode, result.stderr), (0, ""))
            listed = re.findall(r"^  --?(\w+)", result.stdout, re.MULTILINE)
            self.assertEqual(sorted(listed), sorted([*options, "h"]))


if __name__ == "__main__":
    sys.exit(run_tests(__doc__, sys.modules[__name__], ["WholeRunTest", "DefaultsTest", "ResumeTest", "ErrorTest", "PlanTest"]))
