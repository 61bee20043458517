"""A process that works for another (workers.py): worker.py JOBS RESULTS PARENT, two descriptors and a process id.

The first message is (module, function, arguments); what that function returns is then called with every job. A result is
(how, value): "done", or "user", "memory" or "error" with the text of what went wrong.
"""
import ctypes
import importlib
import multiprocessing.connection
import os
import queue
import signal
import sys
import threading

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with(parent):
    """Also while this process is deep in a library; its pipe ends it everywhere else."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def receive(connection, jobs):
    """In a thread of its own, so that whoever sends never waits for the work; ends the process with its parent."""
    try:
        while True:
            jobs.put(connection.recv())
    except (EOFError, OSError):
        os._exit(1)


def outcome(function, arguments):
    from mistakes import UserError, one_line
    try:
        return "done", function(*arguments)
    except UserError as error:
        return "user", str(error)
    except MemoryError:
        return "memory", ""
    except Exception as error:
        return "error", f"{type(error).__name__}: {one_line(error)}"


def main():
    jobs_descriptor, results_descriptor, parent = map(int, sys.argv[1:4])
    die_with(parent)
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    results = multiprocessing.connection.Connection(results_descriptor, readable=False)
    jobs = queue.SimpleQueue()
    connection = multiprocessing.connection.Connection(jobs_descriptor, writable=False)
    threading.Thread(target=receive, args=(connection, jobs), daemon=True).start()
    module, name, arguments = jobs.get()
    how, function = outcome(lambda: getattr(importlib.import_module(module), name)(*arguments), ())
    while True:
        number, job = jobs.get()
        results.send((number, *((how, function) if how != "done" else outcome(function, (job,)))))


if __name__ == "__main__":
    try:
        main()
    except BrokenPipeError:
        os._exit(1)  # the parent has gone
