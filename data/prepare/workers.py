"""Worker processes: results in the order of the jobs, and an end, whatever becomes of a process.

Plain processes and pipes: the pools of Python's library wait for ever when a worker dies while a job is being sent.
"""
import multiprocessing.connection
import os
import signal
import subprocess
import sys
import time

import stopping
from mistakes import UserError

PROGRAM = os.path.join(os.path.dirname(os.path.abspath(__file__)), "worker.py")
JOBS_AHEAD = 2  # of one worker: it computes one and has the next
started = set()  # all that live
advice = "use fewer --workers"  # how a user can do with less memory; another command says another


class Worker:
    def __init__(self, task):
        """task: (module, function, arguments), see worker.py; the module is found as here."""
        jobs, self.jobs = os.pipe()
        self.results, results = os.pipe()
        try:
            with stopping.held_back():  # signals are the parent's: it ends its workers
                command = [sys.executable, PROGRAM, str(jobs), str(results), str(os.getpid())]
                modules = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}  # those of the task and its arguments
                self.process = subprocess.Popen(command, pass_fds=(jobs, results), stdin=subprocess.DEVNULL,
                                                stdout=subprocess.DEVNULL, env=modules)
                started.add(self)
        except OSError as error:
            raise UserError(f"cannot start a worker process: {error.strerror}; {advice}") from None
        finally:
            os.close(jobs)  # the worker's ends must be nobody else's: a closed pipe tells that it has died
            os.close(results)
        self.jobs = multiprocessing.connection.Connection(self.jobs, readable=False)
        self.results = multiprocessing.connection.Connection(self.results, writable=False)
        self.numbers = []  # of the jobs that it has
        self.send(task)

    def send(self, message):
        try:
            self.jobs.send(message)
        except BrokenPipeError:
            raise self.death() from None

    def submit(self, number, job):
        self.numbers.append(number)
        self.send((number, job))

    def receive(self):
        """(number, value) of its next result; UserError for what went wrong."""
        try:
            number, how, value = self.results.recv()
        except (EOFError, OSError):
            raise self.death() from None
        if how != "done":
            raise UserError({"user": value, "memory": f"a worker process is out of memory; {advice}"}
                            .get(how, f"a worker process failed: {value}"))
        self.numbers.remove(number)
        return number, value

    def death(self):
        try:
            status = self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            status = None  # it closed its pipe and lives
        if status in (-signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP):
            time.sleep(0.5)  # sent to the whole group, perhaps, and about to stop this process as well
        if status == -signal.SIGKILL:
            return UserError(f"a worker process was killed, probably for lack of memory; {advice}")
        if status is not None and status < 0:
            return UserError(f"a worker process died of {signal.Signals(-status).name}")
        return UserError(f"a worker process ended with status {status}")

    def end(self):
        self.process.kill()
        self.process.wait()
        for connection in self.jobs, self.results:
            connection.close()
        started.discard(self)


def kill_all():
    """At the very end, from a signal's handler."""
    for worker in list(started):
        worker.process.kill()


def in_order(task, jobs, most):
    """Yields task's result of each job, in the order of the jobs, from up to `most` processes; few jobs are in memory."""
    workers, results, due = [], {}, 0

    def collect():
        busy = [worker for worker in workers if worker.numbers]
        ready = multiprocessing.connection.wait([worker.results for worker in busy])
        results.update(worker.receive() for worker in busy if worker.results in ready)

    try:
        for number, job in enumerate(jobs):
            while number - due >= JOBS_AHEAD * most + 2 or (
                    len(workers) == most and all(len(worker.numbers) >= JOBS_AHEAD for worker in workers)):
                if due in results:
                    yield results.pop(due)
                    due += 1
                else:
                    collect()
            worker = min(workers, key=lambda worker: len(worker.numbers), default=None)
            if len(workers) < most and (worker is None or worker.numbers):
                worker = Worker(task)
                workers.append(worker)
            worker.submit(number, job)
        while results or any(worker.numbers for worker in workers):
            if due in results:
                yield results.pop(due)
                due += 1
            else:
                collect()
    finally:
        for worker in workers:
            worker.end()


def run_apart(task, job):
    """The result of one job in a process of its own: for what may kill its process or can't be interrupted."""
    [result] = in_order(task, [job], 1)
    return result
