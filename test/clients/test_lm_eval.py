"""scripts/lm_eval.sh: lm-evaluation-harness finds the right answers that -hellaswag counts. Without its environment, which
LM_EVAL_ENVIRONMENT names (out/lm_eval), the test is skipped: scripts/lm_eval.sh makes it."""
import glob
import json
import os
import subprocess
import unittest

import fixture
import stories

SCRIPT = os.path.join(fixture.ROOT, "scripts", "lm_eval.sh")
ENVIRONMENT = os.environ.get("LM_EVAL_ENVIRONMENT", os.path.join(fixture.ROOT, "out", "lm_eval"))
TASKS = os.path.join(fixture.ROOT, "test", "clients", "tasks")


class LmEvalTest(unittest.TestCase):
    def start(self, *arguments, **variables):
        environment = {**os.environ, "ENVIRONMENT": ENVIRONMENT, "TASKS": TASKS, "HF_DATASETS_OFFLINE": "1",
                       "HF_HOME": os.path.join(fixture.directory, "hub"), "OMP_NUM_THREADS": "1", **variables}
        return subprocess.run([SCRIPT, *arguments], capture_output=True, text=True, env=environment, cwd=fixture.directory, timeout=300)

    def test_right_answers_are_ours(self):
        if not os.path.exists(os.path.join(ENVIRONMENT, "requirements.txt")):
            self.skipTest(f"{ENVIRONMENT}: scripts/lm_eval.sh has not made it yet")
        run, out = fixture.checkpoint(4), os.path.join(fixture.directory, "lm_eval")
        stories.file()
        result = self.start(fixture.export(run, "hf"), "stories", OUT=out)
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
        self.assertIn("|stories|", result.stdout)
        (path,) = glob.glob(os.path.join(out, "**", "results*.json"), recursive=True)
        with open(path, encoding="utf-8") as file:
            found = json.load(file)["results"]["stories"]
        ours = stories.right_answers(run)["quantized, 4 bits"]
        count = len(stories.examples())
        self.assertEqual(round(found["acc,none"] * count), ours.by_sum)
        self.assertAlmostEqual(found["acc_stderr,none"], ours.by_sum_error, delta=1e-4)

    def test_refusals(self):
        existing = fixture.export(fixture.checkpoint(4), "hf")
        for arguments, variables, words in (([], {}, "name a folder"), (["nothing"], {}, "holds no config.json"),
                                            ([existing, "stories"], {"OUT": fixture.directory}, "is there already")):
            with self.subTest(arguments=arguments):
                result = self.start(*arguments, **variables)
                self.assertEqual((result.returncode, result.stderr.count("\n")), (2, 1), result.stderr)
                self.assertIn(words, result.stderr)


