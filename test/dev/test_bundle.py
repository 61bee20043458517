#!/usr/bin/env python3
"""What surrounds a bundle's programs, tested with programs that stand in for them: env.sh finds CUDA's libraries or says
which are missing, and gpu_check.sh --bundle runs all of its steps without compiling.

    test/dev/test_bundle.py
"""
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
LIMIT_SECONDS = 300
BENCHMARKS = "matmul fakequant_matmul attention rmsnorm swiglu cross_entropy adamw".split()
HOPPER_BENCHMARKS = "hopper_matmul hopper_combined hopper_attention".split()
SCRIPTS = ("dev/gpu_check.sh", "dev/bench/chain_shards.py", "data/prepare/shard_files.py", "data/prepare/locks.py", "data/prepare/mistakes.py",
           "data/prepare/outputs.py", "data/prepare/stopping.py")
LIBRARY = "libcublasLt_train_qat_test.so.99"  # on no machine

# Stands in for every program: writes down who was called with which words, and does what gpu_check.sh reads.
STAND_IN = r'''#!@PYTHON@
import json, os, pathlib, sys
name, words = pathlib.Path(sys.argv[0]).name, sys.argv[1:]
log = pathlib.Path("@LOG@")
path = os.environ.get("LD_LIBRARY_PATH", "")
with log.open("a") as file:
    print(json.dumps([name, words, os.environ.get("TRAIN_QAT_TEST_DEVICES"), path]), file=file)
if name == "nvidia-smi":
    if "--query-gpu=compute_cap" in words:
        print("9.0")
    else:
        print(*(["GPU 0: a card", "GPU 1: a card"] if "-L" in words else ["NVIDIA H100, 81559 MiB, 580.95"]), sep="\n")
elif name == "train_qat":
    directory = pathlib.Path(words[words.index("-o") + 1])
    directory.mkdir(parents=True, exist_ok=True)
    worse = 1 + @WORSE@ * (directory.name == "cuda")
    losses = {name: 4.0 * worse for name in ("full_precision_at_switch", "rounded_at_switch", "quantized")}
    speeds = {"tokens_per_second_fp": 123456.0, "tokens_per_second_qat": 654321.0}
    (directory / "run.json").write_text(json.dumps({"results": {**losses, **speeds}}))
    print("step 10/60  FP   loss 4.1  MFU 33.3%\nstep 60/60  QAT  loss 4.0  MFU 44.4%")
elif name in ("cmake", "mpirun", "nvcc", "compute-sanitizer"):
    sys.exit(9)  # nothing may call it
'''


class BundleTest(unittest.TestCase):
    def setUp(self):
        temporary = tempfile.TemporaryDirectory(prefix="train_qat bundle ")
        self.addCleanup(temporary.cleanup)
        self.directory = pathlib.Path(temporary.name)
        self.bundle, self.tools, self.log = self.directory / "bundle", self.directory / "tools", self.directory / "log"
        self.tools.mkdir()
        for name in SCRIPTS:
            (self.bundle / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, self.bundle / name)
        shutil.copy2(ROOT / "dev" / "bundle" / "env.sh", self.bundle)
        self.commit = f"{random.randrange(16**12):012x}"
        self.write_versions("2.2.5")
        (self.bundle / "cuda_libraries.txt").write_text(LIBRARY + "\n")

    def write_versions(self, glibc, libstdcxx="3.4", asks="2.2.5"):
        (self.bundle / "VERSIONS").write_text(
            f"commit {self.commit}\nglibc {glibc}\nlibstdc++ {libstdcxx}; the one in lib asks for glibc {asks}\ncuda 13.0\n")

    def write_programs(self, worse=0.0, card=True):
        text = STAND_IN.replace("@PYTHON@", sys.executable).replace("@LOG@", str(self.log)).replace("@WORSE@", str(worse))
        programs = ["train_qat", "train_qat_test", "train_qat_kernel_test"]
        programs += [f"{kind}_{name}" for kind in ("bench_cuda", "emulated_bench") for name in BENCHMARKS + HOPPER_BENCHMARKS]
        for folder, names in (self.bundle, programs), (self.tools, ["cmake", *(["nvidia-smi"] if card else [])]):
            for name in names:
                (folder / name).write_text(text)
                (folder / name).chmod(0o755)

    def library(self, *folders):
        """An empty library in a new folder."""
        folder = self.directory.joinpath(*folders)
        folder.mkdir(parents=True)
        (folder / LIBRARY).touch()
        return folder

    def bash(self, command, cwd=None, **environment):
        own = {"PATH": f"{self.tools}:/usr/bin:/bin", "HOME": str(self.directory), **environment}
        return subprocess.run(["bash", "-c", command], cwd=cwd or self.bundle, env=own, stdin=subprocess.DEVNULL, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=LIMIT_SECONDS)

    # ---- env.sh

    def test_libraries_are_found(self):
        loaded, toolkit = self.library("loaded"), self.library("toolkit", "lib64")
        packages = self.library("packages", "nvidia", "cu99", "lib").parents[2]
        # What is named first wins; a folder that is there already is not added again.
        for environment, folder, path in (
            ({"PYTHONPATH": str(packages)}, packages / "nvidia" / "cu99" / "lib", None),
            ({"PYTHONPATH": str(packages), "CUDA_HOME": str(toolkit.parent)}, toolkit, None),
            ({"LD_LIBRARY_PATH": "/nowhere", "CUDA_HOME": str(toolkit.parent)}, toolkit, f"/nowhere:{toolkit}"),
            ({"LD_LIBRARY_PATH": f"/nowhere:{loaded}", "CUDA_HOME": str(toolkit.parent)}, loaded, f"/nowhere:{loaded}"),
        ):
            result = self.bash("set -euo pipefail; source env.sh; source env.sh >&2; echo $LD_LIBRARY_PATH",
                               PYTHON=sys.executable, **environment)
            self.assertEqual((result.returncode, result.stdout),
                             (0, f"env.sh: {LIBRARY} in {folder}\n{path or folder}\n"), result.stderr)
            self.assertEqual(result.stderr, f"env.sh: {LIBRARY} in {folder}\n")

    def test_what_is_missing_is_said(self):
        result = self.bash("source env.sh; echo $? ${LD_LIBRARY_PATH:-none}")
        self.assertEqual(result.stdout, "1 none\n")
        self.assertRegex(result.stderr, rf"\Aenv\.sh: error: {LIBRARY} is nowhere: set CUDA_HOME [^\n]*\n\Z")
        self.write_versions("9.99")
        (self.bundle / "cuda_libraries.txt").write_text("")
        result = self.bash("source env.sh; echo $?")
        self.assertEqual(result.stdout, "1\n")
        self.assertRegex(result.stderr, r"\Aenv\.sh: error: the bundle needs glibc 9\.99, here is glibc [0-9.]+: [^\n]*\n\Z")

    def test_an_older_machine_takes_its_own_libstdcxx(self):
        (self.bundle / "cuda_libraries.txt").write_text("")
        self.write_versions("2.2.5", "3.4", "9.99")
        result = self.bash("source env.sh; source env.sh; echo $? $LD_PRELOAD; cat /dev/null")
        line = r"env\.sh: (/\S+/libstdc\+\+\.so\.6) and libgcc_s of this machine[^\n]*\nenv\.sh: a bundle for CPUs [^\n]*\n"
        self.assertRegex(result.stdout, rf"\A({line}){{2}}0 /\S+/libstdc\+\+\.so\.6:/\S+/libgcc_s\.so\.1\n\Z")
        self.assertEqual(result.stderr, "")
        self.write_versions("2.2.5", "9.9", "9.99")
        result = self.bash("source env.sh; echo $? ${LD_PRELOAD:-none}")
        self.assertRegex(result.stdout, r"\n1 none\n\Z")
        self.assertRegex(result.stderr, r"\Aenv\.sh: error: the programs need a libstdc\+\+ with GLIBCXX_9\.9, [^\n]*\n\Z")

    # ---- gpu_check.sh --bundle

    def check(self, *words, cwd=None):
        toolkit = self.directory / "toolkit"
        if not toolkit.exists():
            self.library("toolkit", "lib64")
        command = " ".join([f"'{self.bundle}/dev/gpu_check.sh'", "--bundle", *words])
        return self.bash(command, cwd=cwd or self.directory, CUDA_HOME=str(toolkit), STEPS="2", PYTHON=sys.executable)

    def calls(self):
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def test_all_steps_run_without_compiling(self):
        self.write_programs()
        result = self.check()
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
        table = result.stdout[result.stdout.rindex("\nstep ") :]
        self.assertRegex(table, rf"(?m)^build +0  skipped: the programs of .*, commit {self.commit}$")
        self.assertRegex(table, r"(?m)^ranks by mpirun +0  skipped: a bundle is built without MPI$")
        self.assertRegex(table, r"(?m)^losses of both .* passed: largest distance 0\.00%")
        self.assertIn("123456 tokens/s, MFU 33.3%; QAT 654321 tokens/s, MFU 44.4%", table)
        self.assertNotIn("FAILED", table)
        called = self.calls()
        names = [call[0] for call in called]
        self.assertNotIn("cmake", names)
        for name in BENCHMARKS + HOPPER_BENCHMARKS:
            self.assertEqual([call[1] for call in called if call[0] == f"emulated_bench_{name}"], [["--check"]])
            self.assertIn([], [call[1] for call in called if call[0] == f"bench_cuda_{name}"])
        self.assertEqual([call[2] for call in called if call[0] == "train_qat_test"], ["gpu"])
        for name, _, _, path in called:
            if name != "nvidia-smi":
                self.assertIn(str(self.directory / "toolkit" / "lib64"), path.split(":"))
        self.assertTrue((self.bundle / "out" / "gpu_check" / "losses_of_both.log").exists())

    def test_failures_count(self):
        self.write_programs(worse=random.uniform(0.03, 0.5))
        result = self.check("training")
        self.assertEqual(result.returncode, 1, result.stderr)
        self.assertIn("FAILED", result.stdout)

    def test_without_a_card_the_emulated_device_is_checked(self):
        if shutil.which("nvidia-smi", path="/usr/bin:/bin"):
            self.skipTest("this machine has a card")
        self.write_programs(card=False)
        result = self.check(f"'{self.bundle}'")
        self.assertEqual(result.returncode, 3, result.stdout + result.stderr)
        self.assertEqual({call[0] for call in self.calls()}, {f"emulated_bench_{name}" for name in BENCHMARKS + HOPPER_BENCHMARKS})

    def test_mistakes_are_one_line(self):
        self.write_programs()
        for words, said in (("nowhere", rf"--bundle: {self.directory}/nowhere is no bundle: "), ("tests nonsense", "unknown step 'nonsense'")):
            result = self.check(words)
            self.assertEqual((result.returncode, result.stdout), (2, ""))
            self.assertRegex(result.stderr, rf"\Agpu_check\.sh: error: {said}[^\n]*\n\Z")
        (self.bundle / "bench_cuda_matmul").unlink()
        result = self.check("tests")
        self.assertEqual(result.returncode, 2)
        self.assertRegex(result.stderr, r"\Agpu_check\.sh: error: there is a GPU, but .* is a bundle for CPUs\n\Z")


if __name__ == "__main__":
    unittest.main()
