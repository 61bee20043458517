#!/usr/bin/env python3
"""How the program ends when it is asked to, or when what it prints goes nowhere: at once and with one line where there is
nothing to save, and never at the cost of what was trained.

    test/program/test_ending.py --program ./train_qat
"""
import os
import select
import shutil
import signal
import subprocess
import sys
import time

import program_fixture as fixture
from program_fixture import LIMIT_SECONDS, ProgramTest, checkpoints, read_bytes, read_metrics, run_tests, snapshot, write_shards
from shard_files import fnv1a_64

MANY = 20_000_000  # tokens, and more than anyone waits for
RUN = "-qat_frac 0.5 -steps 4 -sample_tokens 0"


class EndingTest(ProgramTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.long = write_shards(os.path.join(cls.data, "w"), "val", 400_000, seed=4, shard_tokens=400_000)
        cls.letters = os.path.join(cls.data, "letters.model")
        letters = [chr(code) for code in range(ord("0"), ord("0") + fixture.VOCABULARY - 4)]
        with open(cls.letters, "wb") as file:  # without an end token
            file.write(fixture.sentencepiece_model(["\u2581"] + letters).replace(b"</s>", b"</t>"))

    def begin(self, command, **options):
        # Under nohup, and in some shells' background, HUP is ignored.
        process = subprocess.Popen(command, cwd=self.directory, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL), **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options})
        self.addCleanup(process.communicate)
        self.addCleanup(process.kill)
        return process

    def read_until(self, process, text):
        """What it has printed when `text` is in it."""
        printed, deadline = b"", time.monotonic() + LIMIT_SECONDS
        while text not in printed:
            self.assertTrue(select.select([process.stdout], [], [], max(0, deadline - time.monotonic()))[0], printed)
            more = os.read(process.stdout.fileno(), 1 << 16)
            self.assertTrue(more, printed)
            printed += more
        return printed

    def check_stopped_at_once(self, command, text):
        """By every signal, when `text` has been printed."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
            with self.subTest(command=command, signal=number):
                before = snapshot(self.directory)
                process = self.begin(command)
                self.read_until(process, text)
                process.send_signal(number)
                errors = process.communicate(timeout=60)[1].decode()
                self.assertEqual((process.returncode, errors),
                                 (128 + number, f"train_qat: stopped by {number.name}; there was nothing to save\n"))
                self.assertEqual(snapshot(self.directory), before)

    def evaluation(self, *arguments):
        return [self.program, "-eval_only", "-device", "cpu", "-threads", "1", "-e", self.path("out"), *arguments]

    def sample(self, *arguments):
        return [self.program, "-sample", "AB", "-device", "cpu", "-threads", "1", "-e", self.path("out"), "-tokenizer", self.letters, *arguments]

    def test_what_saves_nothing_stops_at_once(self):
        self.run_program(RUN)
        for number in range(40):
            os.link(self.long.replace("*", "000000"), self.path(f"many_{number}.bin"))
        self.check_stopped_at_once(self.evaluation("-j", self.path("many_*.bin"), "-val_sequences", str(MANY)), b"  weights")
        self.check_stopped_at_once(self.sample("-sample_tokens", str(MANY)), b"AB")

    def test_a_run_before_its_first_step(self):
        # Checksums take a while: of 40 times 4 GB of zeros, which need no disk.
        shard = self.path("zeros_00.bin")
        shutil.copy(self.train.replace("*", "000000"), shard)
        tokens = 2 ** 31 - 1
        with open(shard, "r+b") as file:
            file.seek(8)
            file.write(tokens.to_bytes(4, "little"))
            file.truncate(1024 + 2 * tokens)
        for number in range(1, 40):
            os.link(shard, self.path(f"zeros_{number:02}.bin"))
        process = self.begin(self.command(RUN, train=self.path("zeros_*.bin")))
        self.read_until(process, b"device:")
        process.send_signal(signal.SIGTERM)
        self.assertEqual(process.communicate(timeout=60)[1], b"train_qat: stopped by SIGTERM; there was nothing to save\n")
        self.assertEqual(process.returncode, 143)
        self.assertEqual(set(os.listdir(self.path("out"))) - {".lock"}, set())
        self.run_program(RUN)  # what it has left is in nobody's way

    def test_the_last_validation(self):
        flags = RUN + " -b 4 -val_sequences 16000"
        for kind, number in (("", signal.SIGTERM), (" -qat_frac 0", signal.SIGHUP)):
            with self.subTest(kind=kind):
                whole, out = "whole" + kind[1:4], "out" + kind[1:4]
                self.run_program(flags + kind, output=whole, validation=self.long)
                process = self.begin(self.command(flags + kind, output=out, validation=self.long))
                self.read_until(process, b"\nstep 4/4")
                process.send_signal(number)
                printed, errors = process.communicate(timeout=LIMIT_SECONDS)
                self.assertEqual((process.returncode, errors), (128 + number, b""))
                self.assertTrue(printed.endswith(b"\nstopped after step 4; go on with the same command and -resume\n"), printed)
                self.assertEqual(checkpoints(self.path(out)), [4])
                self.run_program(flags + kind, "-resume", output=out, validation=self.long)
                self.same_run(self.path(whole), self.path(out))

    def test_what_follows_the_last_checkpoint(self):
        # The sample of text ends there.
        train = write_shards(self.path("text"), "train", 3000, seed=1, tokenizer_hash=fnv1a_64(read_bytes(self.letters)))
        process = self.begin(self.command(RUN, f"-sample_tokens {MANY} -tokenizer {self.letters} -prompt AB", train=train))
        self.read_until(process, b"\nsaved ")
        process.send_signal(signal.SIGTERM)
        printed, errors = process.communicate(timeout=60)
        self.assertEqual((process.returncode, errors), (0, b""))
        self.assertIn(b"\nsample\nAB", printed)
        # An export gets the signal too.
        with open(self.path("python"), "w") as file:
            file.write('#!/bin/sh\ncase "$*" in *--check*) exit 0;; esac\necho exporting\nexec sleep 60\n')
        os.chmod(self.path("python"), 0o755)
        process = self.begin(self.command(RUN, "-export gguf", output="other"), env={**os.environ, "PYTHON": self.path("python")})
        self.read_until(process, b"\nexporting\n")
        process.send_signal(signal.SIGTERM)
        printed, errors = process.communicate(timeout=60)
        self.assertEqual((process.returncode, errors), (143, b""))
        self.assertEqual(printed, b"stopped; the run is done, its export is not: scripts/export.py makes it\n")

    def test_a_full_disk_behind_the_output(self):
        self.run_program(RUN)
        for command in ([self.program, "-h"], self.evaluation("-j", self.validation), self.sample("-sample_tokens", "3"),
                        self.command(RUN, "-plan")):
            for redirect in (">/dev/full", ">&-"):
                with self.subTest(command=command, redirect=redirect):
                    result = self.start(["sh", "-c", 'exec "$0" "$@" ' + redirect, *command])
                    self.check_error(result, "the standard output cannot be written to")

    def test_a_run_whose_output_is_lost_goes_on(self):
        self.run_program(RUN, output="whole")
        for name, redirect in (("full", ">/dev/full"), ("closed", ">&-"), ("all", "<&- >&- 2>&-")):
            result = self.start(["sh", "-c", 'exec "$0" "$@" ' + redirect, *self.command(RUN, output=name)])
            self.assertEqual((result.returncode, result.stderr), (0, ""))
            self.same_run(self.path("whole"), self.path(name))
            self.assertEqual(sorted(os.listdir(self.path("whole"))), sorted(os.listdir(self.path(name))))

    def test_a_reader_that_goes(self):
        self.run_program(RUN)
        for command in (self.sample("-sample_tokens", str(MANY)), [self.program, "-h"]):
            process = self.begin(command)
            process.stdout.close()  # in -h's case as early as `head -0` does
            self.assertEqual(process.wait(LIMIT_SECONDS), -signal.SIGPIPE)
            self.assertEqual(process.stderr.read(), b"")
            process.stdout = None
        # Training is not text for a reader: what it has done is kept.
        process = self.begin(self.command("-qat_frac 0.5 -steps 300 -sample_tokens 0", output="run"))
        self.read_until(process, b"\nstep ")
        process.stdout.close()
        self.assertEqual((process.wait(LIMIT_SECONDS), process.stderr.read()), (0, b""))
        process.stdout = None
        self.assertEqual(len(read_metrics(self.path("run"))[0]), 300)


if __name__ == "__main__":
    sys.exit(run_tests(__doc__, sys.modules[__name__], ["EndingTest"]))
