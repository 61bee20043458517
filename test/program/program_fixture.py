"""What the tests of the program share: tiny shards and tokenizers, readers of what a run leaves, and test cases that run
the program in a temporary directory, alone or as many ranks. The readers share nothing with the code under test.
"""
import argparse
import array
import ctypes
import hashlib
import json
import math
import os
import random
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import unittest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "data", "prepare"))
sys.dont_write_bytecode = True

from shard_files import Outputs, ShardWriter  # noqa: E402

# The numbers that these tests compare are the CPU's, unless someone names a GPU.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

VOCABULARY, LAYERS, WIDTH, HEADS, FFN, SEQUENCE, BATCH = 61, 2, 32, 2, 64, 16, 4
SHAPE = f"-layers {LAYERS} -width {WIDTH} -heads {HEADS} -ffn {FFN} -seq_len {SEQUENCE} -batch {BATCH}".split()
LIMIT_SECONDS = 120  # of one process: far more than it takes, so that a hang is an error and not the end of the tests


# ---- data ---------------------------------------------------------------------------------------------------------

def write_shards(prefix, split, count, seed, vocabulary=VOCABULARY, tokenizer_hash=0, shard_tokens=2000, stated=True):
    """A chain of tokens in which four of five follow from the one before. stated: the header says the vocabulary."""
    generator = random.Random(seed)
    tokens = [0]
    while len(tokens) < count:
        follows = generator.random() < 0.8
        tokens.append((tokens[-1] * 7 + 3) % vocabulary if follows else generator.randrange(vocabulary))
    outputs = Outputs(prefix, overwrite=False)
    writer = ShardWriter(outputs, split, vocabulary if stated else 0, tokenizer_hash, shard_tokens)
    writer.write(array.array("H", tokens).tobytes())
    writer.close()
    outputs.commit()
    return f"{prefix}_{split}_*.bin"


def sentencepiece_model(pieces):
    """A SentencePiece model (protobuf) of `pieces` behind <unk>, <s> and </s>."""
    def field(number, kind, data):
        return bytes([number << 3 | kind]) + (bytes([len(data)]) if kind == 2 else b"") + data
    model = b""
    for text, kind in [("<unk>", 2), ("<s>", 3), ("</s>", 3)] + [(piece, 1) for piece in pieces]:
        piece = field(1, 2, text.encode()) + field(2, 5, struct.pack("<f", -1.0)) + field(3, 0, bytes([kind]))
        model += field(1, 2, piece)
    return model + field(2, 2, b"") + field(3, 2, b"")  # how it was trained, how it normalizes: by default


# ---- what a run leaves --------------------------------------------------------------------------------------------

def read_bytes(*path):
    with open(os.path.join(*path), "rb") as file:
        return file.read()


def read_metrics(directory):
    """(steps, validations): the records of metrics.jsonl, without the measured speed."""
    steps, validations = [], []
    for line in read_bytes(directory, "metrics.jsonl").decode().splitlines():
        record = json.loads(line)
        record.pop("tokens_per_second", None)
        (validations if "validation_loss" in record else steps).append(record)
    return steps, validations


def checkpoints(directory):
    return sorted(int(name[5:]) for name in os.listdir(directory) if re.fullmatch(r"step_\d{8}", name))


def checkpoint(directory, step):
    return os.path.join(directory, f"step_{step:08d}")


def read_safetensors(path):
    """{name: (shape, numbers)}; checks that the tensors are float32 and fill the file without a gap."""
    data = read_bytes(path)
    length = struct.unpack("<Q", data[:8])[0]
    header, body = json.loads(data[8:8 + length]), data[8 + length:]
    header.pop("__metadata__", None)
    tensors, end = {}, 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        first, last = entry["data_offsets"]
        assert entry["dtype"] == "F32" and first == end and last - first == 4 * math.prod(entry["shape"]), (name, entry)
        tensors[name], end = (tuple(entry["shape"]), array.array("f", body[first:last])), last
    assert end == len(body), (end, len(body))
    return tensors


def expected_shapes(quantized, group):
    """Names and shapes of Hugging Face's Llama layout, and a _scale beside each matrix."""
    matrices = {"model.embed_tokens.weight": (VOCABULARY, WIDTH)}
    shapes = {"model.norm.weight": (WIDTH,)}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        matrices.update({prefix + f"self_attn.{name}_proj.weight": (WIDTH, WIDTH) for name in "qkvo"})
        matrices.update({prefix + f"mlp.{name}_proj.weight": (FFN, WIDTH) for name in ("gate", "up")})
        matrices[prefix + "mlp.down_proj.weight"] = (WIDTH, FFN)
        shapes.update({prefix + f"{name}_layernorm.weight": (WIDTH,) for name in ("input", "post_attention")})
    shapes.update(matrices)
    if quantized:
        shapes.update({name + "_scale": (rows, columns // (group or columns))
                       for name, (rows, columns) in matrices.items()})
    return shapes


def parameter_count():
    return sum(math.prod(shape) for shape in expected_shapes(False, 0).values())


def read_run_record(directory):
    """run.json without the measured speeds."""
    record = json.loads(read_bytes(directory, "run.json"))
    record["peak"].pop("flops_per_second")
    for phase in ("fp", "qat"):
        record["results"].pop(f"tokens_per_second_{phase}")
    return record


def read_checkpoint(directory, step):
    """{name: content} of a checkpoint, without the time at which it was written."""
    path = checkpoint(directory, step)
    files = {name: read_bytes(path, name) for name in os.listdir(path)}
    files["manifest.json"] = json.loads(files["manifest.json"])
    files["manifest.json"].pop("written")
    return files


def snapshot(directory):
    """{path: hash} of everything below a directory."""
    result = {}
    for folder, names, files in os.walk(directory):
        for name in names:
            result[os.path.join(folder, name)] = None
        for name in files:
            result[os.path.join(folder, name)] = hashlib.sha256(read_bytes(folder, name)).hexdigest()
    return result


class ProgramTest(unittest.TestCase):
    """A temporary directory with shards in data/; runs write beside them."""

    program = os.path.join(ROOT, "train_qat")

    @classmethod
    def setUpClass(cls):
        temporary = tempfile.TemporaryDirectory(prefix="train_qat_test_")
        cls.addClassCleanup(temporary.cleanup)
        cls.data = temporary.name
        cls.train = write_shards(os.path.join(cls.data, "a"), "train", 5000, seed=1)
        cls.validation = write_shards(os.path.join(cls.data, "v"), "val", 1500, seed=2)
        cls.other = write_shards(os.path.join(cls.data, "b"), "train", 5000, seed=3)

    def setUp(self):
        temporary = tempfile.TemporaryDirectory(prefix="train_qat_test_")
        self.addCleanup(temporary.cleanup)
        self.directory = temporary.name

    def path(self, *names):
        return os.path.join(self.directory, *names)

    def command(self, *arguments, output="out", train=None, validation=None):
        """Arguments are split at blanks, later ones replace earlier ones; output, train, validation None: left out."""
        flags = {}
        for text in [*SHAPE, "-threads", "1", *" ".join(map(str, arguments)).split()]:
            if re.match(r"-[a-z]", text):
                name = text
                flags[name] = []
            else:
                flags[name].append(text)
        flags.update({"-i": [train or self.train], "-j": [validation or self.validation], "-o": [self.path(output)]})
        return [self.program, *(text for name, values in flags.items() for text in [name, *values])]

    def start(self, command, **options):
        return subprocess.run(command, capture_output=True, text=True, cwd=self.directory, timeout=LIMIT_SECONDS,
                              **options)

    def run_program(self, *arguments, **options):
        """A run that must succeed; returns what it printed."""
        result = self.start(self.command(*arguments, **options))
        self.assertEqual((result.returncode, result.stderr), (0, ""), result.stdout)
        return result.stdout

    def check_error(self, result, *words):
        self.assertEqual(result.returncode, 2, result.stderr)
        self.assertRegex(result.stderr, r"\Atrain_qat: error: [^\n]+\n\Z")
        for word in words:
            self.assertIn(word, result.stderr)

    def fails(self, *arguments, text=(), **options):
        """A run that must fail with one line, which is returned, and change nothing."""
        with self.subTest(arguments=arguments):
            before = snapshot(self.directory)
            result = self.start(self.command(*arguments, **options))
            self.check_error(result, *text)
            self.assertEqual(snapshot(self.directory), before)
            return result.stderr

    def copy_until(self, step, source, target):
        """Copies a run without the checkpoints after `step`; returns the flag to go on from there."""
        shutil.copytree(self.path(source), self.path(target))
        for later in checkpoints(self.path(target)):
            if later > step:
                shutil.rmtree(checkpoint(self.path(target), later))
        return "-resume"

    def same_run(self, first, second):
        """Equal metrics but for the speed, and the same last checkpoint to the byte."""
        self.assertEqual(read_metrics(first), read_metrics(second))
        self.assertEqual(checkpoints(first)[-1], checkpoints(second)[-1])
        for name in ("model.safetensors", "optimizer.safetensors"):
            files = [read_bytes(checkpoint(run, checkpoints(run)[-1]), name) for run in (first, second)]
            self.assertTrue(files[0] == files[1], f"{name} differs")
        results = [json.loads(read_bytes(run, "run.json"))["results"] for run in (first, second)]
        for key in ("full_precision_at_switch", "rounded_at_switch", "quantized", "sample"):
            self.assertEqual(results[0][key], results[1][key], key)

    def same_folders(self, first, second):
        """Equal in everything that is not a measured time; log.txt, which only runs of a sweep have, may differ."""
        names = [sorted(name for name in os.listdir(run) if name != "log.txt") for run in (first, second)]
        self.assertEqual(*names)
        self.assertEqual(read_metrics(first), read_metrics(second))
        self.assertEqual(read_run_record(first), read_run_record(second))
        for step in checkpoints(first):
            files = [read_checkpoint(run, step) for run in (first, second)]
            self.assertEqual(*map(sorted, files))
            for name in files[0]:
                self.assertTrue(files[0][name] == files[1][name], f"{name} of step {step} differs")


# ---- many ranks ---------------------------------------------------------------------------------------------------

def launcher(ranks):
    """What starts a program as `ranks` ranks on this machine, more than it has cores if need be; None without mpirun."""
    if shutil.which("mpirun") is None:
        return None
    version = subprocess.run(["mpirun", "--version"], capture_output=True, text=True, timeout=LIMIT_SECONDS).stdout
    command = ["mpirun", "-np", str(ranks)]
    if "Open MPI" in version or "OpenRTE" in version:
        command += ["--oversubscribe", "--bind-to", "none"]
        command += ["--allow-run-as-root"] if os.geteuid() == 0 else []
    return command


class Job:
    """A command and all processes that it starts, in a session of their own by which they are found again."""

    PR_SET_CHILD_SUBREAPER = 36

    def __init__(self, command, directory):
        # Whose parent has died becomes a child of ours, so that its end can be waited for.
        ctypes.CDLL(None).prctl(self.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self.output, self.errors = tempfile.TemporaryFile("w+"), tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=self.output, stderr=self.errors,
                                        cwd=directory, start_new_session=True)

    def processes(self):
        """All that have not ended."""
        found = []
        for name in filter(str.isdigit, os.listdir("/proc")):
            try:
                state, _, _, session = read_bytes("/proc", name, "stat").decode().rsplit(")", 1)[1].split()[:4]
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(session) != self.process.pid:
                continue
            if state != "Z":
                found.append(int(name))
            elif int(name) != self.process.pid:
                self.forget_orphan(int(name))
        return found

    @staticmethod
    def forget_orphan(process):
        try:
            os.waitpid(process, os.WNOHANG)
        except ChildProcessError:
            pass  # its parent is alive

    def rank(self, number):
        """The process that is this rank."""
        for process in self.processes():
            variables = read_bytes("/proc", str(process), "environ").split(b"\0")
            if {b"OMPI_COMM_WORLD_RANK=%d" % number, b"PMI_RANK=%d" % number} & set(variables):
                return process
        raise AssertionError(f"there is no rank {number}")

    def kill(self):
        """Whatever is left, also what has been stopped."""
        while left := self.processes():
            for process in left:
                try:
                    os.kill(process, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            self.process.poll()
            time.sleep(0.01)
        self.process.wait()
        self.processes()

    def end(self, limit_seconds=LIMIT_SECONDS):
        """Waits for the end. Returns the exit code, and what it printed; over the limit everything is killed."""
        try:
            self.process.wait(limit_seconds)
        finally:
            late = self.process.poll() is None
            self.kill()
        assert not late
        for file in (self.output, self.errors):
            file.seek(0)
        return subprocess.CompletedProcess(self.process.args, self.process.returncode, self.output.read(),
                                           self.errors.read())


class RanksTest(ProgramTest):
    """Jobs of many ranks under mpirun; skipped where there is none."""

    def launched(self, ranks, command):
        start = launcher(ranks)
        if start is None:
            self.skipTest("there is no mpirun: install openmpi-bin to test many ranks")
        return [*start, *command]

    def start_job(self, ranks, *arguments, **options):
        """ranks 0: one process, without mpirun."""
        command = self.command(*arguments, **options)
        job = Job(self.launched(ranks, command) if ranks else command, self.directory)
        self.addCleanup(job.kill)
        return job

    def job(self, ranks, *arguments, **options):
        return self.start_job(ranks, *arguments, **options).end()

    def run_job(self, ranks, *arguments, **options):
        """A job that must succeed; returns what it printed."""
        result = self.job(ranks, *arguments, **options)
        self.assertEqual((result.returncode, result.stderr), (0, ""), result.stdout)
        return result.stdout

    @staticmethod
    def own_lines(result):
        """What the program, and not mpirun, wrote to stderr."""
        return re.findall(r"^train_qat: .*$", result.stderr, re.MULTILINE)

    def check_job_error(self, result, *words):
        """One error line of the whole job, and the exit code of a user's mistake."""
        lines = self.own_lines(result)
        self.assertEqual((result.returncode, len(lines)), (2, 1), result.stderr)
        self.assertTrue(lines[0].startswith("train_qat: error: "), lines[0])
        for word in words:
            self.assertIn(word, lines[0])

    def job_fails(self, ranks, *arguments, text=(), **options):
        """A job that must fail so, and change nothing."""
        with self.subTest(ranks=ranks, arguments=arguments):
            before = snapshot(self.directory)
            self.check_job_error(self.job(ranks, *arguments, **options), *text)
            self.assertEqual(snapshot(self.directory), before)

    def wait_for(self, job, path):
        """Until a file is there, which a running job writes."""
        deadline = time.monotonic() + LIMIT_SECONDS
        while not os.path.exists(path):
            if job.process.poll() is not None or time.monotonic() > deadline:
                self.fail(f"{path} did not appear: {job.end().stderr}")
            time.sleep(0.002)


# ---- the command line of a test -----------------------------------------------------------------------------------

def run_tests(description, module, default_names):
    """Runs the tests that the command line names, of the program that it names; the last line printed is the sum."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default=ProgramTest.program, metavar="PATH")
    parser.add_argument("tests", nargs="*", metavar="TESTS", help=f"such as {default_names[0]}; all")
    arguments = parser.parse_args()
    ProgramTest.program = os.path.abspath(arguments.program)
    if not os.access(ProgramTest.program, os.X_OK):
        parser.error(f"{arguments.program} is not there; build it with make")
    suite = unittest.defaultTestLoader.loadTestsFromNames(arguments.tests or default_names, module)
    result = unittest.TextTestRunner(verbosity=2).run(suite)
    failed_tests = {str(getattr(test, "test_case", test)) for test, _ in result.failures + result.errors}
    failed = max(len(failed_tests), 0 if result.wasSuccessful() else 1)
    sys.stderr.flush()
    print(f"{max(0, result.testsRun - len(result.skipped) - failed)} passed, {failed} failed", flush=True)
    return 1 if failed else 0
