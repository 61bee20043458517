#!/usr/bin/env python3
"""Input that a run could take in silence, and places that two processes could share: one clear line, and nothing is lost.

    test/program/test_odd_input.py
"""
import itertools
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time

from program_fixture import (BATCH, LIMIT_SECONDS, SEQUENCE, VOCABULARY, ProgramTest, checkpoint, checkpoints, read_bytes,
                             read_metrics, run_tests, snapshot, write_shards)

RUN = "-qat_frac 0.5 -steps 12 -save_every 4 -keep 0 -sample_tokens 0"

CONFIG = {"model_type": "llama", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8,
          "vocab_size": 61, "max_position_embeddings": 8, "rms_norm_eps": 1e-5}


class OnePlaceTest(ProgramTest):

    def test_resume_beside_a_live_run(self):
        live = subprocess.Popen(self.command("-qat_frac 0.5 -steps 100000 -save_every 10 -print_every 1000"),
                                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        self.addCleanup(live.wait)
        self.addCleanup(live.kill)
        deadline = time.monotonic() + LIMIT_SECONDS
        while not os.path.isdir(self.path("out")) or not checkpoints(self.path("out")):
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.01)
        for resume in ("-resume", ""):
            result = self.start(self.command("-qat_frac 0.5 -steps 100000", resume))
            self.check_error(result, f"-o {self.path('out')}: another process is at work in it (a run, process {live.pid} on ")
        live.send_signal(signal.SIGTERM)
        self.assertEqual(live.communicate(timeout=LIMIT_SECONDS)[1], "")
        steps = [record["step"] for record in read_metrics(self.path("out"))[0]]
        self.assertEqual(steps, list(range(1, checkpoints(self.path("out"))[-1] + 1)))
        self.assertNotIn(".lock", os.listdir(self.path("out")))

    def test_what_killed_runs_left_goes(self):
        self.run_program(RUN, "-until 8")
        os.rename(checkpoint(self.path("out"), 8), self.path("out", ".step_00000008.replaced-1"))
        os.mkdir(self.path("out", ".step_00000012.partial-1"))
        self.assertIn("resume: step 8 from", self.run_program(RUN, "-resume"))
        self.assertFalse([name for name in os.listdir(self.path("out")) if name.startswith(".")])


class DataTest(ProgramTest):

    def test_validation_among_training(self):
        shard = self.train.replace("*", "000000")
        shutil.copy(shard, self.path("held_out.bin"))
        for flags in ("-qat_frac 0.5 -steps 4", "-qat_frac 0.5 -steps 4 -until 1"):
            self.fails(flags, validation=self.path("held_out.bin"), text=["-j " + self.path("held_out.bin"), "also in " + shard, "-i"])
            self.fails(flags, validation=shard, text=["-j " + shard, "also in -i"])

    def test_validation_from_the_middle_of_training(self):
        """Another cut of the same text: no beginning or end in common."""
        train = write_shards(self.path("long"), "train", 60_000, seed=5, shard_tokens=25_000)
        tokens = read_bytes(self.path("long_train_000001.bin"))[1024:]
        with open(self.path("cut.bin"), "wb") as file:
            file.write(struct.pack("<256i", 20240520, 1, 6000, VOCABULARY, *[0] * 252) + tokens[2 * 7001:2 * 13_001])
        self.fails("-qat_frac 0.5 -steps 4", train=train, validation=self.path("cut.bin"),
                   text=["-j " + self.path("cut.bin"), "also in " + self.path("long_train_000001.bin")])

    def test_passes_over_the_data(self):
        samples = sum((tokens - 1) // SEQUENCE for tokens in (2000, 2000, 1000))
        for steps, warned in ((5, False), (4 * samples // BATCH - 1, False), (4 * samples // BATCH + 1, True), (10**6, True)):
            printed = self.run_program(f"-qat_frac 0.5 -steps {steps} -plan")
            passes = float(re.search(r"read ([\d.]+) times \(passes\)", printed)[1])
            self.assertAlmostEqual(passes, steps * BATCH / samples, delta=0.51 if passes > 10 else 0.006)
            self.assertEqual("warning: the data are read" in printed, warned)
        self.assertIn("times (passes)", self.run_program(RUN, "-until 1"))

    def test_changed_shards(self):
        train = write_shards(self.path("s"), "train", 5000, seed=1)
        self.run_program(RUN, "-until 4", train=train)
        with open(self.path("s_train_000001.bin"), "r+b") as file:
            file.seek(1024 + 2 * 1000)
            tokens = file.read(2)
            file.seek(1024 + 2 * 1000)
            file.write(bytes([tokens[0] ^ 1, tokens[1]]))
        before = snapshot(self.path("out"))
        result = self.start(self.command(RUN, "-resume", train=train))
        self.check_error(result, "-resume: ", "s_train_000001.bin", "other tokens", "-o")
        self.assertEqual(snapshot(self.path("out")), before)
        # The shard of before under another header is the same.
        with open(self.path("s_train_000001.bin"), "r+b") as file:
            file.seek(1024 + 2 * 1000)
            file.write(tokens)
            file.seek(4 * 100)
            file.write(b"note")
        self.assertIn("resume: step 4", self.run_program(RUN, "-resume", train=train))

    def test_other_validation_on_resume(self):
        self.run_program(RUN, "-until 4 -val_every 2")
        other = write_shards(self.path("w"), "val", 1500, seed=9)
        printed = self.run_program(RUN, "-resume -until 8", validation=other)
        self.assertRegex(printed, r"resume: warning: other validation data \(-j .*w_val_\*\.bin\) than before \(-j .*v_val_\*\.bin\)")
        with open(os.path.join(checkpoint(self.path("out"), 8), "manifest.json")) as file:
            validation = json.load(file)["state"]["validation"]
        self.assertEqual((validation["shards"], validation["since_step"]), (other, 5))
        self.assertNotIn("warning: other", self.run_program(RUN, "-resume -until 10", validation=other))
        self.assertIn("warning: other", self.run_program(RUN, "-resume -val_sequences 3", validation=other))


class FileTest(ProgramTest):
    """A pipe nobody writes to, a folder, a socket, an endless device: where a file is expected, none is waited for."""

    def odd_files(self):
        """(path, word of the error)"""
        os.mkfifo(self.path("pipe"))
        os.mkdir(self.path("folder"))
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(self.path("socket"))
        return [(self.path("pipe"), "a pipe"), (self.path("folder"), "a folder"), (self.path("socket"), "a socket"), ("/dev/zero", "a device")]

    def refused(self, command, *words):
        result = subprocess.run(command, capture_output=True, text=True, cwd=self.directory, timeout=20)
        self.check_error(result, *words)

    def test_files_of_flags(self):
        self.run_program(RUN, output="run")
        evaluation = [self.program, "-eval_only", "-device", "cpu", "-e", self.path("run")]
        for path, kind in self.odd_files():
            with self.subTest(path=path):
                of_shards = "is a directory" if kind == "a folder" else kind
                self.refused(self.command(RUN, train=path), of_shards, path)
                self.refused(self.command(RUN, validation=path), of_shards, path)
                self.refused([*evaluation, "-hellaswag", path], kind, path)
                self.refused(self.command(RUN, "-sweep", path), kind, path)
                self.refused(self.command(f"-b 4 -tokens 1M -plan -law {path} -qat_frac auto"), kind, path)
                if kind != "a folder":
                    self.refused(self.command(RUN, "-tokenizer", path), kind, path)
        self.refused([self.program, "-eval_only", "-e", self.path("pipe"), "-j", self.validation], self.path("pipe"))

    def test_files_of_folders(self):
        self.run_program(RUN, output="run")
        os.makedirs(self.path("data", "cache"))
        os.mkfifo(self.path("data", "cache", "latest.json"))
        self.refused([self.program, "-steps", "4", "-layers", "2", "-width", "32", "-heads", "2"], "latest.json", "a pipe")
        for name in ("manifest.json", "model.safetensors", "optimizer.safetensors"):
            shutil.copytree(self.path("run"), self.path("out"))
            os.remove(os.path.join(checkpoint(self.path("out"), 12), name))
            os.mkfifo(os.path.join(checkpoint(self.path("out"), 12), name))
            # As of any checkpoint that is not whole: the one before it.
            result = subprocess.run(self.command(RUN, "-resume"), capture_output=True, text=True, timeout=20)
            self.assertEqual(result.returncode, 0, result.stderr)
            self.assertIn("resume: step 8", result.stdout)
            shutil.rmtree(self.path("out"))
        for name in ("config.json", "model.safetensors"):
            folder = self.path("of_" + name)
            os.mkdir(folder)
            with open(os.path.join(folder, "config.json"), "w") as file:
                json.dump(CONFIG, file)
            if os.path.exists(os.path.join(folder, name)):
                os.remove(os.path.join(folder, name))
            os.mkfifo(os.path.join(folder, name))
            self.refused([self.program, "-sample", "x", "-e", folder, "-seq_len", "8"], name, "a pipe")


class FlagTest(ProgramTest):

    def test_numbers(self):
        flags = "lr final_lr_frac qat_lr cooldown_frac weight_decay beta1 beta2 eps clip scale_lr rank_timeout temperature"
        for flag, value in zip(flags.split(), itertools.cycle(("nan", "inf", "infinity", "1e400", "1e39"))):
            self.fails(f"-steps 4 -qat_frac 0.5 -{flag} {value}", text=[f"-{flag} {value}"])
        for value in ("18446744073709551616", "99999999999999999999999", "-1", "010", "nan"):
            self.fails("-steps 4 -qat_frac 0.5 -seed", value, text=["-seed", value])
        self.fails("-steps 9223372036854775808 -qat_frac 0.5", text=["-steps"])
        for flag, value in zip("tokens n memory flops b warmup qat_warmup qat_frac".split(), itertools.cycle(("nan", "inf"))):
            self.fails(f"-qat_frac 0.5 -{flag} {value}", text=["-" + flag])
        self.assertIn("tokens D", self.run_program("-steps 4 -qat_frac 0.5 -plan -seed 18446744073709551615"))

    def test_sizes_beyond_any_memory(self):
        """At once, in one line, and with totals that 64 bits can count."""
        start = time.monotonic()
        for flags, words in (("-layers 1000000", ["-layers 1000000", "at most 10000"]),
                             ("-layers 10000 -width 1000000 -heads 10000 -ffn 1000000", ["-layers", "no memory"]),
                             ("-layers 10000 -width 1000 -heads 10 -batch 1000000 -seq_len 1000000", ["-batch 1000000", "no memory"]),
                             ("-heads 1000000 -head_dim 256", ["-heads 1000000", "-head_dim 256"])):
            self.fails("-steps 4 -qat_frac 0.5 -plan", flags, text=words)
        printed = self.run_program("-steps 4 -qat_frac 0.5 -plan -layers 2000 -width 4096 -heads 32 -ffn 16384 -batch 10000")
        self.assertRegex(printed, r"total +[\d.]+ GiB")
        self.assertLess(time.monotonic() - start, 10)

    def test_prompt_without_tokenizer(self):
        self.fails("-steps 4 -qat_frac 0.5 -prompt Once", text=["-prompt", "-tokenizer"])


class ResumeFromTest(ProgramTest):

    def test_damaged_latest(self):
        self.run_program(RUN, output="whole")
        shutil.copytree(self.path("whole"), self.path("out"))
        model = os.path.join(checkpoint(self.path("out"), 12), "model.safetensors")
        with open(model, "r+b") as file:
            file.seek(-5, os.SEEK_END)
            file.write(b"damaged"[:4])
        self.fails(RUN, "-resume", text=["model.safetensors", "damaged", "-resume_from 8 or 4 goes on from there"])
        self.fails(RUN, "-resume_from 7", text=["-resume_from 7", "-resume_from 12 or 8 or 4"])
        self.fails(RUN, "-resume_from", checkpoint(self.path("whole"), 8), text=["-resume_from", "-from"])
        shutil.copytree(self.path("out"), self.path("again"))
        for output, named in (("out", "8"), ("again", checkpoint(self.path("again"), 4) + "/")):
            printed = self.run_program(RUN, "-resume_from", named, output=output)
            self.assertIn(f"resume: step {'8' if named == '8' else '4'} from ", printed)
            self.assertIn("step_00000012.set_aside", printed)
            self.same_run(self.path("whole"), self.path(output))
        self.assertIn("step_00000008.set_aside", os.listdir(self.path("again")))
        self.assertNotIn("step_00000008.set_aside", os.listdir(self.path("out")))


if __name__ == "__main__":
    sys.exit(run_tests(__doc__, sys.modules[__name__], ["OnePlaceTest", "DataTest", "FileTest", "FlagTest", "ResumeFromTest"]))
