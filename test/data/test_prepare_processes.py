#!/usr/bin/env python3
"""Tests of what becomes of data/prepare.py, its workers and its outputs when processes die, are stopped, or are two."""
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import unittest

from prepare_fixture import PREPARE, PrepareFixture, make_text

import workers
from locks import Lock
from mistakes import UserError
from shard_files import Outputs

LIMIT_SECONDS = 20  # until a run must have ended: it needs one or two


def children(process):
    with open(f"/proc/{process.pid}/task/{process.pid}/children") as file:
        return [int(child) for child in file.read().split()]


def is_alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition):
    end = time.monotonic() + LIMIT_SECONDS
    while not condition():
        if time.monotonic() > end:
            raise AssertionError("nothing has happened")
        time.sleep(0.01)


class StoppingTest(PrepareFixture):
    def setUp(self):
        super().setUp()
        self.model = self.tokenizer()
        with open(self.path("in.txt"), "w", encoding="utf-8") as file:
            file.write(make_text(1, 4000) * 16)
        self.before = sorted(os.listdir(self.directory))

    def start(self, *arguments):
        """In a group of its own, in the middle of its work."""
        # Whoever is started by nohup or in the background of a script inherits that these are ignored.
        process = subprocess.Popen([sys.executable, PREPARE, "--record", "", "in.txt", "-o", "out", *arguments],
                                   cwd=self.directory, stderr=subprocess.PIPE, text=True, start_new_session=True,
                                   preexec_fn=lambda: [signal.signal(number, signal.SIG_DFL) for number in (signal.SIGINT, signal.SIGHUP)])
        self.addCleanup(process.stderr.close)
        return process

    def start_encoding(self):
        process = self.start("--tokenizer", self.model, "--workers", "2")
        wait_until(lambda: os.path.exists(self.path("out_train_000000.bin.partial")) or process.poll() is not None)
        for worker in children(process):
            os.kill(worker, signal.SIGSTOP)  # in the middle of its work, however fast the machine is
        return process

    def check_end(self, process, status, text):
        _, stderr = process.communicate(timeout=LIMIT_SECONDS)
        self.assertEqual(process.returncode, status, stderr)
        lines = [line for line in stderr.splitlines() if "MB/s" not in line and not line.startswith("a single document")]
        self.assertEqual(len(lines), 1, stderr)
        self.assertIn(text, lines[0])
        self.assertEqual(sorted(os.listdir(self.directory)), self.before)

    def test_signals(self):
        # To the process alone; to its group, as a terminal, systemd and Slurm do.
        for send, number, status in ((os.kill, signal.SIGTERM, 143), (os.killpg, signal.SIGINT, 130),
                                     (os.killpg, signal.SIGTERM, 143), (os.killpg, signal.SIGHUP, 129)):
            process = self.start_encoding()
            workers_of_it = children(process)
            send(process.pid, number)
            self.check_end(process, status, "nothing was written")
            wait_until(lambda: not any(map(is_alive, workers_of_it)))

    def test_two_signals(self):
        process = self.start_encoding()
        os.killpg(process.pid, signal.SIGTERM)
        os.killpg(process.pid, signal.SIGTERM)
        self.check_end(process, 143, "stopped by SIGTERM; nothing was written")

    def test_a_signal_while_the_tokenizer_is_trained(self):
        process = self.start("--vocab-size", "2000")
        wait_until(lambda: children(process) or process.poll() is not None)
        for child in children(process):
            os.kill(child, signal.SIGSTOP)  # as in the trainer's C++, where Python handles no signal, for as long as it takes
        process.send_signal(signal.SIGTERM)
        self.check_end(process, 143, "SIGTERM")

    def test_a_worker_is_killed(self):
        for number, text in (signal.SIGKILL, "lack of memory; use fewer --workers"), (signal.SIGSEGV, "died of SIGSEGV"):
            process = self.start_encoding()
            for worker in children(process):  # an idle one is not missed
                os.kill(worker, number)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker, signal.SIGCONT)  # only SIGKILL reaches a stopped process
            self.check_end(process, 2, text)

    def test_workers_end_with_a_killed_run_and_the_next_one_cleans_up(self):
        process = self.start_encoding()
        workers_of_it = children(process)
        process.kill()
        process.wait()
        wait_until(lambda: not any(map(is_alive, workers_of_it)))
        self.assertTrue(os.path.exists(self.path("out_train_000000.bin.partial")))
        self.write("out_val_000007.bin.partial", "of a longer run")
        self.write("small.txt", make_text(2, 50))
        self.prepare("small.txt", "-o", "out", "--tokenizer", self.model)
        self.assertFalse(os.path.exists(self.path("out.lock")))


class LockTest(PrepareFixture):
    def test_the_second_run_says_who_has_the_outputs_and_touches_nothing(self):
        self.write_documents()
        first = Outputs(self.path("out"), overwrite=False)
        first.create(".json").write(b"of the first")
        before = sorted(os.listdir(self.directory))
        for arguments in [], ["--overwrite"]:
            self.fails("in", "-o", "out", *arguments,
                       text=[f"process {os.getpid()} on {socket.gethostname()}", "another --output"])
        self.assertEqual(sorted(os.listdir(self.directory)), before)
        first.commit()
        self.assertEqual(self.read("out.json"), b"of the first")
        self.prepare("in", "-o", "out", "--overwrite")

    def test_the_lock_of_a_dead_process_is_none(self):
        code = "import sys, os, signal; sys.path.insert(0, sys.argv[1])\nfrom locks import Lock\n" \
               "Lock(sys.argv[2], 'x'); os.kill(os.getpid(), signal.SIGKILL)"
        path = self.path("a.lock")
        subprocess.run([sys.executable, "-c", code, os.path.dirname(workers.PROGRAM), path])
        self.assertTrue(os.path.exists(path))
        lock = Lock(path, "x")
        with self.assertRaisesRegex(UserError, f"process {os.getpid()} on"):
            Lock(path, "x")
        lock.release()
        self.assertFalse(os.path.exists(path))
        Lock(path, "x").release()

    def test_directories_that_a_failed_run_made_are_removed(self):
        self.write("latin.txt", b"caf\xe9 au lait\n")
        self.fails("latin.txt", "-o", "new/deep/out", text=["latin.txt"])


class WorkersTest(unittest.TestCase):
    def test_results_come_in_the_order_of_the_jobs(self):
        task = ("long_words", "divide_words", None)  # any function that a module has
        with self.assertRaisesRegex(UserError, "a worker process failed: TypeError"):
            list(workers.in_order(task, [1, 2, 3], 2))
        jobs = [["word " * (1 + number % 7)] * 10 for number in range(200)]
        task = ("operator", "itemgetter", (slice(0, 3),))
        for most in 1, 3:
            self.assertEqual(list(workers.in_order(task, iter(jobs), most)), [job[:3] for job in jobs])
        self.assertEqual(list(workers.in_order(task, [], 2)), [])
        self.assertFalse(workers.started)

    def test_large_jobs_and_results_pass_each_other(self):
        """More than a pipe holds, in both directions at once."""
        jobs = [[str(number) * 500_000] for number in range(12)]
        self.assertEqual(list(workers.in_order(("operator", "itemgetter", (slice(None),)), jobs, 2)), jobs)


if __name__ == "__main__":
    unittest.main()
