#!/usr/bin/env python3
"""-sample: the text of checkpoints, its speed, and what is refused.

    test/program/test_generation.py --program ./train_qat
"""
import fcntl
import os
import re
import sys

import program_fixture as fixture
from program_fixture import ProgramTest, checkpoint, read_bytes, run_tests, snapshot
from shard_files import fnv1a_64

SPEED = (r"generation \d+ tokens/s, memory allows \d+ \([\d.]+ k?B of weights, [\d.]+ k?B of keys and values at \d+ GB/s\); "
         r"prompt \d+ tokens/s \((\d+) tokens?\)(?:; the context was full (\d+) times?)?")


class GenerationTest(ProgramTest):
    def setUp(self):
        super().setUp()
        # A letter for each token, and no end token: how much is generated must not depend on luck.
        letters = [chr(code) for code in range(ord("0"), ord("0") + fixture.VOCABULARY - 4)]
        self.tokenizer = self.path("letters.model")
        with open(self.tokenizer, "wb") as file:
            file.write(fixture.sentencepiece_model(["\u2581"] + letters).replace(b"</s>", b"</t>"))

    def trained(self, *flags):
        self.run_program(*flags, "-steps 8 -qat_frac 0.5 -sample_tokens 0")
        return self.path("out")

    def sample(self, run, text, *arguments):
        """(text, prompt tokens, times that the context was full)"""
        before = snapshot(self.directory)
        result = self.start([self.program, "-sample", text, "-e", run, "-tokenizer", self.tokenizer, "-device", "cpu",
                             *map(str, arguments)])
        self.assertEqual((result.returncode, result.stderr), (0, ""), result.stdout)
        self.assertEqual(snapshot(self.directory), before)
        made, empty, speed, end = result.stdout.rsplit("\n", 3)
        self.assertEqual((empty, end), ("", ""))
        match = re.fullmatch(SPEED, speed)
        self.assertIsNotNone(match, speed)
        return made, int(match[1]), int(match[2] or 0)

    def test_text_is_continued_reproducibly(self):
        for bits in ("4", "1.58", "16"):
            with self.subTest(bits=bits):
                flags = f"-b {bits} -steps 8 -sample_tokens 0" + (" -qat_frac 0.5" if bits != "16" else "")
                self.run_program(flags, output=f"run_{bits}")
                run = self.path(f"run_{bits}")
                # A begin token, the letters' own space, three letters.
                greedy, prompt, _ = self.sample(run, "ABC", "-temperature", 0, "-sample_tokens", 7)
                self.assertEqual(prompt, 5)
                self.assertTrue(greedy.startswith("ABC"), greedy)
                self.assertEqual(self.sample(run, "ABC", "-temperature", 0, "-sample_tokens", 7, "-seed", 9)[0], greedy)
                self.assertEqual(self.sample(run, "ABC", "-top_k", 1, "-sample_tokens", 7, "-threads", 1)[0], greedy)
                self.assertEqual(self.sample(run, "ABC", "-top_p", 1e-9, "-sample_tokens", 7)[0], greedy)
                longer = self.sample(run, "ABC", "-temperature", 0, "-sample_tokens", 8)[0]
                self.assertTrue(longer.startswith(greedy))
                drawn = {seed: self.sample(run, "ABC", "-temperature", 5, "-seed", seed)[0] for seed in (1, 2)}
                self.assertNotEqual(drawn[1], drawn[2])
                self.assertEqual(self.sample(run, "ABC", "-temperature", 5, "-seed", 2)[0], drawn[2])

    def test_the_sample_at_a_runs_end_is_the_same_text(self):
        train = fixture.write_shards(self.path("text"), "train", 3000, seed=1,
                                     tokenizer_hash=fnv1a_64(read_bytes(self.tokenizer)))
        printed = self.run_program(f"-steps 8 -qat_frac 0.5 -sample_tokens 12 -prompt AB -temperature 0.9 -seed 3 -tokenizer {self.tokenizer}",
                                   train=train)
        made, _, _ = self.sample(self.path("out"), "AB", "-sample_tokens", 12, "-temperature", 0.9, "-seed", 3)
        self.assertTrue(printed.endswith(f"\nsample\n{made}\n"), printed)

    def test_generation_goes_on_when_the_context_is_full(self):
        run = self.trained("-b 2 -group 32")
        made, prompt, full = self.sample(run, "A", "-sample_tokens", 5 * fixture.SEQUENCE, "-temperature", 0)
        self.assertEqual(prompt, 3)
        self.assertGreaterEqual(full, 3)
        self.assertGreater(len(made), 4 * fixture.SEQUENCE)
        # A longer prompt's last half.
        _, prompt, _ = self.sample(run, "A" * (2 * fixture.SEQUENCE), "-sample_tokens", 5)
        self.assertEqual(prompt, fixture.SEQUENCE // 2)

    def test_a_checkpoint_of_full_precision_steps(self):
        self.run_program("-b 4 -steps 8 -qat_frac 0.5 -sample_tokens 0 -save_every 2 -keep 0")
        run = self.path("out")
        before, after = (self.sample(checkpoint(run, step), "AB", "-temperature", 0)[0] for step in (2, 8))
        self.assertTrue(before.startswith("AB") and after.startswith("AB"))

    def test_refusals(self):
        run = self.trained("-b 4")
        with open(self.path("unmarked.model"), "wb") as file:
            file.write(fixture.sentencepiece_model(["\u2581", "A"]).replace(b"<s>", b"<t>").replace(b"</s>", b"</t>"))
        with open(self.path("large.model"), "wb") as file:
            file.write(fixture.sentencepiece_model([chr(200 + i) for i in range(fixture.VOCABULARY)]))
        sample, tokenizer = ["-sample", "A", "-e", run, "-device", "cpu"], ["-tokenizer", self.tokenizer]
        for arguments, words in ((["-sample", "A", *tokenizer], ("-sample", "-e")), (sample, ("-sample", "-tokenizer")),
                                 ([*sample, *tokenizer, "-sweep", "grid.json"], ("-sample", "-sweep")),
                                 ([*sample, *tokenizer, "-plan"], ("-sample", "-plan")),
                                 ([*sample, *tokenizer, "-resume"], ("-sample", "-resume")),
                                 ([*sample, *tokenizer, "-from", run], ("-sample", "-from")),
                                 ([*sample, *tokenizer, "-until", "3"], ("-sample", "-until")),
                                 ([*sample, *tokenizer, "-tensorboard"], ("-sample", "-tensorboard")),
                                 ([*sample, *tokenizer, "-eval_only"], ("-eval_only",)),
                                 ([*sample, *tokenizer, "-export", "hf"], ("-export", "is for training")),
                                 ([*sample, *tokenizer, "-init_from", run], ("-init_from", "-sample")),
                                 ([*sample, *tokenizer, "-hellaswag", "x.bin"], ("-hellaswag", "-eval_only")),
                                 ([*sample, *tokenizer, "-top_k", "-1"], ("-top_k",)), ([*sample, *tokenizer, "-top_p", "0"], ("-top_p",)),
                                 ([*sample, *tokenizer, "-top_p", "1.5"], ("-top_p",)),
                                 ([*sample, *tokenizer, "-temperature", "-1"], ("-temperature",)),
                                 ([*sample, *tokenizer, "-sample_tokens", "-1"], ("-sample_tokens",)),
                                 ([*sample, "-tokenizer", self.path("none.model")], ("none.model",)),
                                 ([*sample, "-tokenizer", self.path("large.model")], ("-tokenizer", "vocabulary")),
                                 (["-sample", "", "-e", run, "-device", "cpu", "-tokenizer", self.path("unmarked.model")],
                                  ("-sample", "neither a begin nor an end token")),
                                 (["-sample", "A", "-e", self.path("nothing"), *tokenizer, "-device", "cpu"], ("nothing",))):
            with self.subTest(arguments=arguments):
                self.check_error(self.start([self.program, *arguments]), *words)
        for text in b"\xff", b"A\xc3":
            self.check_error(self.start([self.program, "-sample", text, *sample[2:], *tokenizer]), "-sample: is no valid UTF-8")
            self.check_error(self.start([*self.command("-steps 4 -qat_frac 0.5"), *tokenizer, "-prompt", text]), "-prompt: is no valid UTF-8")

    def test_beside_a_run_in_the_usual_place(self):
        """It writes nothing, so that it needs no lock of `out`."""
        run = self.trained("-b 4")
        lock = os.open(os.path.join(run, ".lock"), os.O_RDWR | os.O_CREAT)
        self.addCleanup(os.close, lock)
        fcntl.flock(lock, fcntl.LOCK_EX)
        self.sample(run, "A")


if __name__ == "__main__":
    sys.exit(run_tests(__doc__, sys.modules[__name__], ["GenerationTest"]))
