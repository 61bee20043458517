"""Tests of what surrounds a build: checkouts that were moved, the link to the program, what a switch of CUDA builds anew,
and the number of steps that the quickstart chooses. Run by test_recipes.py.
"""
import json
import os
import shutil
import subprocess
import tempfile
import unittest

from program_fixture import LIMIT_SECONDS, ROOT

TOP = ("Makefile", "CMakeLists.txt", "train_qat.cu", "model", "kernels", "data", "scripts", "test", "dev")
# A CMake that builds at once.
FAKE_CMAKE = """#!/bin/sh
[ "$1" != --build ] || { mkdir -p "$2" && touch "$2/train_qat"; }
"""


def compiler_flags(build):
    """{file: text} of the flags of everything that the host compiler builds."""
    found = {}
    for directory, _, names in os.walk(build):
        if "flags.make" in names:
            path = os.path.join(directory, "flags.make")
            with open(path) as file:
                text = file.read()
            if "CXX_FLAGS" in text:
                found[path] = text
    return found


class MakeTest(unittest.TestCase):
    def setUp(self):
        temporary = tempfile.TemporaryDirectory(prefix="train_qat_make_")
        self.addCleanup(temporary.cleanup)
        self.directory = temporary.name
        self.checkout = os.path.join(self.directory, "checkout")
        os.mkdir(self.checkout)
        ignore = shutil.ignore_patterns("cache", "__pycache__")
        for name in TOP:
            source, copy = os.path.join(ROOT, name), os.path.join(self.checkout, name)
            shutil.copytree(source, copy, ignore=ignore) if os.path.isdir(source) else shutil.copy2(source, copy)

    def make(self, *words, **variables):
        environment = {**os.environ, "DEPENDENCIES": "skip", **variables}
        for name in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS"):
            environment.pop(name, None)
        return subprocess.run(["make", "--no-print-directory", *words], cwd=self.checkout, env=environment, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=LIMIT_SECONDS)

    def write(self, *names, text=""):
        path = os.path.join(self.checkout, *names)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w") as file:
            file.write(text)
        return path

    def write_cache(self, source, place):
        self.write("build", "CMakeCache.txt", text=f"CMAKE_HOME_DIRECTORY:INTERNAL={source}\n"
                                                   f"CMAKE_CACHEFILE_DIR:INTERNAL={place}\n")

    def test_a_moved_checkout_is_configured_afresh(self):
        self.write_cache("/gone/checkout", "/gone/checkout/build")
        stale = self.write("build", "model", "CMakeFiles", "model.dir", "flags.make")
        other = self.write("build", "notes.txt")
        result = self.make("configure", "CUDA=0")
        self.assertEqual(result.returncode, 0, result.stdout)
        self.assertRegex(result.stdout, r"\Abuild was built as /gone/checkout/build: [^\n]+\n--")
        self.assertNotIn("CMake Error", result.stdout)
        self.assertTrue(os.path.exists(other))
        with open(stale.replace("model.dir", "train_qat_model.dir")) as file:
            self.assertIn("CXX_FLAGS", file.read())
        again = self.make("configure", "CUDA=0")
        self.assertEqual(again.returncode, 0, again.stdout)
        self.assertNotIn("was built as", again.stdout)

    def test_the_build_of_another_checkout_is_left_alone(self):
        other = os.path.join(self.directory, "other")
        os.mkdir(other)
        self.write_cache(other, os.path.join(self.checkout, "build"))
        result = self.make("configure", "CUDA=0")
        self.assertNotEqual(result.returncode, 0)
        self.assertRegex(result.stdout, rf"\Aconfigure.sh: error: build is the build of another checkout, {other}: [^\n]+\n")
        self.assertTrue(os.path.exists(os.path.join(self.checkout, "build", "CMakeCache.txt")))

    def test_the_link_to_the_program_moves_with_the_checkout(self):
        cmake = self.write("bin", "cmake", text=FAKE_CMAKE)
        os.chmod(cmake, 0o755)
        path = f"{os.path.dirname(cmake)}:{os.environ['PATH']}"
        result = self.make("program", f"BUILD={self.checkout}/build", PATH=path)
        self.assertEqual(result.returncode, 0, result.stdout)
        self.assertEqual(os.readlink(os.path.join(self.checkout, "train_qat")), "build/train_qat")

    @unittest.skipUnless(shutil.which("nvcc"), "needs nvcc")
    def test_a_switch_of_cuda_changes_no_flags_of_the_host_compiler(self):
        flags = []
        for cuda in "0", "auto":
            result = self.make("configure", f"CUDA={cuda}")
            self.assertEqual(result.returncode, 0, result.stdout)
            flags.append(compiler_flags(os.path.join(self.checkout, "build")))
        self.assertGreater(len(flags[0]), 5)
        self.assertEqual(*flags)

    def choose(self, speeds, seconds):
        metrics = self.write("metrics.jsonl", text="".join(
            json.dumps({"step": i + 1, "loss": 8.0, "tokens_per_second": speed}) + "\n" for i, speed in enumerate(speeds)))
        result = subprocess.run([os.path.join(ROOT, "scripts", "choose_steps.sh"), metrics, "2048", str(seconds), "1600", "200"],
                                capture_output=True, text=True)
        return result.returncode, result.stdout, result.stderr

    def test_the_quickstart_chooses_as_many_steps_as_fit(self):
        warm_up = [10.0, 100.0]
        for speed, steps in ((20000.0, "1600"), (10000.0, "900"), (4096.5, "350"), (100.0, "200")):
            with self.subTest(speed=speed):
                status, output, line = self.choose(warm_up + 4 * [speed], 200)
                self.assertEqual((status, output), (0, steps + "\n"))
                self.assertRegex(line, rf"\Ameasured {int(speed)} tokens/s: {steps} steps, about \d+m\d\ds[^\n]*\n\Z")
                self.assertEqual("STEPS=1600" in line, steps != "1600")
        self.assertEqual(self.choose(warm_up, 200), (2, "", "choose_steps.sh: error: no speed in the metrics\n"))


if __name__ == "__main__":
    unittest.main()
