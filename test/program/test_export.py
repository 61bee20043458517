#!/usr/bin/env python3
"""-export: how the trainer runs scripts/export.py, here with a Python that has no packages, or that is none. What exports
hold: test/clients.

    test/program/test_export.py --program ./train_qat
"""
import os
import stat
import sys

from program_fixture import ProgramTest, run_tests

SHORT = "-b 2 -steps 4 -qat_frac 0.5 -sample_tokens 0"


class ExportTest(ProgramTest):
    def python(self, name, script):
        """A program to be named by PYTHON; the arguments that it gets are in NAME.log."""
        path = self.path(name)
        with open(path, "w", encoding="utf-8") as file:
            file.write(f'#!/bin/sh\nprintf "%s\\n" "$@" >> {path}.log\n{script}\n')
        os.chmod(path, os.stat(path).st_mode | stat.S_IXUSR)
        return path

    def run_with(self, python, *arguments):
        return self.start(self.command(*arguments), env={**os.environ, "PYTHON": python})

    def test_it_is_asked_before_and_run_behind_the_training(self):
        python = self.python("good", 'echo "written to $6"')
        result = self.run_with(python, SHORT, "-export gguf,hf")
        self.assertEqual((result.returncode, result.stderr), (0, ""), result.stdout)
        with open(python + ".log", encoding="utf-8") as file:
            lines = file.read().split("\n")
        calls = [i for i, line in enumerate(lines) if line.endswith(os.path.join("scripts", "export.py"))]
        self.assertEqual(len(calls), 4)
        for call, kind in zip(calls, ("gguf", "hf", "gguf", "hf")):
            arguments = lines[call + 1:call + 7]
            self.assertEqual([argument for argument in arguments if argument != "--check"][1:5], ["--to", kind, "-o", self.path("out", kind)])
        self.assertIn('"b":2', lines[calls[0] + 1].replace("2.0", "2"))
        self.assertEqual(lines[calls[2] + 1], self.path("out"))
        self.assertLess(result.stdout.index("step"), result.stdout.rindex("written to"))

    def test_what_fails_before_leaves_nothing(self):
        for script, words in (('echo "export.py: error: no such type" >&2; exit 2', "-export gguf: no such type"),
                              ("exit 3", "exit code 3; name another Python with the variable PYTHON"),
                              ("echo no such module >&2; exit 1", "exit code 1 (no such module); name another Python"),
                              ('echo "export.py: error: p has no package x" >&2; exit 2', "has no package x; or name another Python"), ("kill -9 $$", "exit code 137")):
            with self.subTest(script=script):
                result = self.run_with(self.python("bad", script), SHORT, "-export gguf")
                self.check_error(result, words)
                self.assertFalse(os.path.exists(self.path("out")))
        self.check_error(self.run_with(self.path("nothing"), SHORT, "-export gguf"), "cannot be started", "PYTHON")

    def test_what_fails_behind_keeps_the_checkpoint(self):
        python = self.python("late", 'case "$*" in *--check*) ;; *) echo "export.py: error: disk full" >&2; exit 2;; esac')
        result = self.run_with(python, SHORT, "-export gguf")
        self.check_error(result, "-export gguf: disk full")
        self.assertIn("step_00000004", os.listdir(self.path("out")))

    def test_refusals(self):
        self.fails(SHORT, "-export", "pdf", text=["-export: must be gguf", "'pdf'"])
        self.fails(SHORT, "-export", "hf,hf", text=["names hf twice"])
        self.fails(SHORT, "-export", "hf", "-until", "2", text=["-export", "-until"])
        self.check_error(self.start([self.program, *"-export hf -eval_only -e x".split()]), "-export: is for training")
        os.makedirs(self.path("out", "hf"))
        self.fails(SHORT, "-export", "hf", text=["-export hf: " + self.path("out", "hf"), "move it away"])


if __name__ == "__main__":
    sys.exit(run_tests(__doc__, sys.modules[__name__], ["ExportTest"]))
