#!/usr/bin/env python3
"""Tests of scripts/recipes and the scripts that start them: what they would run is what the program can plan. With
them the tests of building, test_make.py.

    test/program/test_recipes.py --program ./train_qat [TESTS]
"""
import os
import re
import shlex
import signal
import subprocess
import sys

from program_fixture import LIMIT_SECONDS, ROOT, ProgramTest, run_tests, write_shards
from test_make import MakeTest  # noqa: F401 (run with these)

SIZES = {"86M": 86e6, "396M": 396e6, "759M": 759e6, "2.2B": 2.2e9}
# The ranks that each is started on, by the variables that say so.
LAUNCHERS = {
    "run_single_node.sh": (8, {"GPUS": "8"}, ["mpirun", "-np", "8"]),
    "run_multi_node.sh": (16, {"HOSTS": "one,two", "GPUS": "8"}, ["mpirun", "-np", "16"]),
    "run_slurm.sh": (16, {}, ["srun"]),
}


class RecipeTest(ProgramTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        prefix = os.path.join(cls.data, "llama")
        write_shards(prefix, "train", 5000, seed=7, vocabulary=32000, shard_tokens=5000)
        cls.shards = prefix

    def launch(self, script, *arguments, **variables):
        environment = {**os.environ, "DRY_RUN": "1", "DATA": self.shards, "PROGRAM": self.program, **variables}
        return subprocess.run(["bash", os.path.join(ROOT, "scripts", script), *arguments], capture_output=True, text=True,
                              env=environment, timeout=LIMIT_SECONDS)

    def command_of(self, script, *arguments, **variables):
        """The words before the program, and its flags."""
        result = self.launch(script, *arguments, **variables)
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        words = shlex.split(result.stdout)
        place = words.index(self.program)
        return words[:place], words[place + 1:]

    @staticmethod
    def value(flags, name):
        return flags[flags.index(name) + 1]

    def plan(self, flags):
        result = self.start([self.program, *flags, "-plan", "-device", "cpu", "-o", self.path("out")])
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        return result.stdout

    def test_what_quickstart_and_reproduce_have_started_ends_with_them(self):
        step = os.path.join(ROOT, "scripts", "step.sh")
        for work in 'echo $BASHPID >&2; exec sleep 60', 'work() { echo $BASHPID >&2; exec sleep 60; }; found=$(work); echo "$found"':
            process = subprocess.Popen(["bash", "-c", f'set -eu; source "$0"; ({work}); echo "went on" >&2', step], stderr=subprocess.PIPE,
                                       text=True)
            process.stderr.readline()  # it works
            process.terminate()
            self.assertEqual(process.wait(LIMIT_SECONDS), -signal.SIGTERM)
            self.assertEqual(process.communicate(timeout=30)[1], "")  # its end is that of the last that could write

    def test_every_recipe_can_be_planned(self):
        for size, parameters in SIZES.items():
            with self.subTest(size=size):
                before, flags = self.command_of("run_single_node.sh", size, GPUS="1")
                self.assertEqual(before, [])
                place = flags.index("-o")
                text = self.plan(flags[:place] + flags[place + 2:])
                found = int(re.search(r"\n  parameters N +([\d,]+) ", text)[1].replace(",", ""))
                self.assertLess(abs(found / parameters - 1), 0.03)
                step = int(re.search(r"\n  tokens per step +([\d,]+)\n", text)[1].replace(",", ""))
                self.assertEqual(step, int(self.value(flags, "-total_batch")) * int(self.value(flags, "-seq_len")))
                self.assertRegex(text, r"optimal fraction +0\.\d+ = .*, used")

    def test_every_launcher_starts_every_recipe(self):
        for script, (ranks, variables, start) in LAUNCHERS.items():
            for size in SIZES:
                with self.subTest(script=script, size=size):
                    before, flags = self.command_of(script, size, **variables)
                    self.assertEqual(before[:len(start)], start)
                    self.assertEqual(self.value(flags, "-n"), size)
                    self.assertEqual(int(self.value(flags, "-total_batch")) % ranks, 0)

    def test_flags_replace_the_recipes(self):
        _, flags = self.command_of("run_single_node.sh", "86M", "-b", "2", "-tokens", "1B", "-resume", GPUS="2")
        self.assertEqual([flags.count(flag) for flag in ("-b", "-tokens", "-resume")], [1, 1, 1])
        self.assertEqual((self.value(flags, "-b"), self.value(flags, "-tokens")), ("2", "1B"))

    def test_slurm_meets_without_mpi(self):
        before, flags = self.command_of("run_slurm.sh", "86M")
        self.assertIn("--mpi=none", before)
        self.assertIn("-rendezvous", flags)
        before, flags = self.command_of("run_slurm.sh", "86M", MPI="pmix")
        self.assertIn("--mpi=pmix", before)
        self.assertNotIn("-rendezvous", flags)

    def test_mistakes(self):
        for script, (_, variables, _) in LAUNCHERS.items():
            for arguments in ([], ["9M"], ["../86M"]):
                with self.subTest(script=script, arguments=arguments):
                    result = self.launch(script, *arguments, **variables)
                    self.assertEqual((result.returncode, result.stdout), (2, ""))
                    self.assertRegex(result.stderr, rf"\A{re.escape(script)}: error: [^\n]+\n\Z")
        result = self.launch("run_single_node.sh", "86M", GPUS="none")
        self.assertEqual(result.returncode, 2)
        self.assertIn("GPUS", result.stderr)


if __name__ == "__main__":
    sys.exit(run_tests(__doc__, sys.modules[__name__], ["RecipeTest", "MakeTest"]))
