#!/usr/bin/env python3
"""scripts/plot_run.py on runs that were made up: one, several, one that goes on, and what is none."""
import json
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import unittest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "scripts"))
sys.dont_write_bytecode = True

from curves import overlay, records  # noqa: E402

SEED = random.randrange(10**9)


class PlotRunTest(unittest.TestCase):
    def setUp(self):
        self.random = random.Random(SEED)
        directory = tempfile.TemporaryDirectory(prefix="curves_")
        self.addCleanup(directory.cleanup)
        self.directory = directory.name

    def write_run(self, name, steps, fp_steps, with_settings=True, unfinished=""):
        """A run of `steps` steps, quantization-aware behind fp_steps."""
        path = os.path.join(self.directory, name)
        os.makedirs(path)
        with open(os.path.join(path, "metrics.jsonl"), "w", encoding="utf-8") as file:
            for step in range(1, steps + 1):
                phase = "FP" if step <= fp_steps else "QAT"
                loss = 3 + 5 / step + self.random.random() / 10
                file.write(json.dumps({"step": step, "phase": phase, "loss": loss, "learning_rate": 1e-3 / step}) + "\n")
            for weights, step in (("full_precision", fp_steps), ("rounded", fp_steps), ("quantized", steps)):
                file.write(json.dumps({"step": step, "phase": "FP", "validation_loss": 3.25, "weights": weights}) + "\n")
            file.write(unfinished)
        if with_settings:
            settings = {"plan": {"fp_steps": fp_steps, "total_steps": 2 * steps, "bits": 2.0, "parameters": 12345}}
            with open(os.path.join(path, "run.json"), "w", encoding="utf-8") as file:
                json.dump(settings, file)
        return path

    def plot(self, *arguments, code=0):
        command = [sys.executable, os.path.join(ROOT, "scripts", "plot_run.py"), *arguments]
        result = subprocess.run(command, capture_output=True, text=True, timeout=120)
        self.assertEqual(result.returncode, code, f"seed {SEED}: {result.stdout}{result.stderr}")
        return result.stdout if code == 0 else result.stderr

    def test_records_are_those_of_the_run(self):
        run = records.Run(self.write_run("a", 40, 30, unfinished='\n{"step": 41, "text": "\u2028"}\n{"step": 4'))
        self.assertEqual([len(run.phase("FP")), len(run.phase("QAT")), len(run.validation)], [30, 10, 3])
        self.assertEqual((run.switch_step(), run.total_steps(), run.lookup("nothing", "bits")), (30, 80, 2.0))
        self.assertEqual(run.validations("quantized")[0]["step"], 40)
        bare = records.Run(self.write_run("b", 40, 30, with_settings=False))
        self.assertEqual((bare.switch_step(), bare.total_steps()), (30, 40))
        self.assertIsNone(records.Run(self.write_run("c", 5, 5)).switch_step())

    def test_one_run(self):
        for steps, fp_steps in ((1, 1), (3, 1), (200, 150)):
            path = self.write_run(f"run_{steps}", steps, fp_steps)
            self.plot(path)
            with open(os.path.join(path, "training.png"), "rb") as file:
                self.assertEqual(file.read(8), b"\x89PNG\r\n\x1a\n")

    def test_several_runs_are_in_one_figure(self):
        runs = [self.write_run(name, self.random.randint(1, 60), 1) for name in ("first", "second", "third/first")]
        figure = os.path.join(self.directory, "all.svg")
        self.plot(*runs, "-o", figure)
        with open(figure, encoding="utf-8") as file:
            self.assertIn("<svg", file.read(2000))
        self.assertEqual(overlay.names_of([records.Run(run) for run in runs[:2]]), ["first", "second"])
        self.assertEqual(overlay.names_of([records.Run(runs[0]), records.Run(runs[2])]), [runs[0], runs[2]])

    def test_numbers_that_are_none(self):
        path = self.write_run("nan", 30, 20)
        with open(os.path.join(path, "metrics.jsonl"), "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": 31, "phase": "QAT", "loss": None, "learning_rate": 1e-3}) + "\n")
        self.assertTrue(math.isnan(records.column(records.Run(path).training, "loss")[-1]))
        self.plot(path)
        self.plot(path, path, "-o", os.path.join(self.directory, "twice.pdf"))

    def test_records_that_are_none(self):
        for number, line in enumerate(('{"step": Infinity, "loss": 1, "phase": "FP"}', '{"step": 4, "loss": "abc", "phase": "FP"}',
                                       '{"step": 4, "validation_loss": "x", "weights": "rounded"}', '{"loss": 1}', "\xff\xfe",
                                       '{"step": 4, "validation_loss": 1}', '{"step": -1, "loss": 1, "phase": "FP"}', "[" * 100_000,
                                       '{"step": 4, "phase": "FP", "loss": 1' + 400 * "0" + "}")):
            path = self.write_run(f"bad_{number}", 3, 2)
            with open(os.path.join(path, "metrics.jsonl"), "a", encoding="latin-1") as file:
                file.write(line + "\n")
            with self.subTest(line=line):
                self.assertIn("line 7", self.plot(path, code=2))
        huge = {name: 10**400 for name in ("total_steps", "fp_steps", "parameters", "bits", "tokens_per_step", "qat_fraction")}
        for number, settings in enumerate(({"plan": {"fp_steps": "x", "total_steps": "y"}}, [], {"plan": 7}, {"plan": huge},
                                           {"plan": {"total_steps": -5}})):
            path = self.write_run(f"odd_{number}", 5, 3)
            with open(os.path.join(path, "run.json"), "w", encoding="utf-8") as file:
                json.dump(settings, file)
            self.plot(path)

    def test_refusals(self):
        run = self.write_run("run", 3, 2)
        empty = os.path.join(self.directory, "empty")
        os.makedirs(empty)
        taken = os.path.join(self.directory, "taken.svg")
        with open(taken, "w", encoding="utf-8") as file:
            file.write("mine")
        broken = self.write_run("broken", 3, 2, unfinished="{]\n")
        for arguments, text in (([empty], "is not a run of train_qat"), ([run + "x"], "no such directory"), ([broken], "line 7"),
                                ([run, run], "name the figure with -o"), ([run, "-o", "a.gif"], ".png, .svg or .pdf"), ([], "OUTPUT"),
                                ([run, "-o", os.path.join(run, "run.json", "a.png")], "Not a directory"),
                                ([run, "-o", ""], "names nothing"), ([""], "names nothing"), ([run, "-o", taken], "is there already")):
            with self.subTest(arguments=arguments):
                message = self.plot(*arguments, code=2)
                self.assertIn(text, message)
                self.assertEqual(message.count("\n"), 1, message)

        with open(taken, encoding="utf-8") as file:
            self.assertEqual(file.read(), "mine")
        self.plot(run, "-o", taken, "--overwrite")
        with open(taken, encoding="utf-8") as file:
            self.assertIn("<svg", file.read())

    def test_one_that_is_stopped_leaves_nothing(self):
        """In the middle of drawing: with a savefig that takes long."""
        run = self.write_run("stopped", 3, 2)
        code = """import matplotlib.figure, runpy, sys, time
matplotlib.figure.Figure.savefig = lambda self, file, **_: (file.write(b"half"), print("saving", flush=True), time.sleep(60))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")"""
        for number in signal.SIGINT, signal.SIGTERM, signal.SIGHUP:
            # Whoever is started by nohup or in the background of a script inherits that these are ignored.
            process = subprocess.Popen([sys.executable, "-c", code, os.path.join(ROOT, "scripts", "plot_run.py"), run],
                                       stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                       preexec_fn=lambda: [signal.signal(number, signal.SIG_DFL) for number in (signal.SIGINT, signal.SIGHUP)])
            self.assertEqual(process.stdout.readline(), "saving\n")
            process.send_signal(number)
            stderr = process.communicate(timeout=20)[1]
            self.assertEqual((process.returncode, stderr.count("\n")), (128 + number, 1), stderr)
            self.assertIn("nothing was written", stderr)
            self.assertEqual(sorted(os.listdir(run)), ["metrics.jsonl", "run.json"])

    def test_streams_that_are_ascii_or_not_read(self):
        run = self.write_run("läuft", 3, 2)
        script = os.path.join(ROOT, "scripts", "plot_run.py")
        for command in '"$0" "$1" "$2"', '"$0" "$1" "$2" | true; exit ${PIPESTATUS[0]}', '"$0" "$1" "$2" >&-':
            result = subprocess.run(["bash", "-c", command, sys.executable, script, run], capture_output=True, text=True, timeout=120,
                                    env={**os.environ, "PYTHONIOENCODING": "ascii"})
            self.assertEqual((result.returncode, result.stderr), (0, ""))


if __name__ == "__main__":
    unittest.main()
