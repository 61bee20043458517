"""Signals that stop prepare.py: it ends within seconds, says so, and leaves no partial file."""
import contextlib
import os
import signal
import sys

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PATIENCE_SECONDS = 5  # until it ends without regard to what the program is doing


class Stopped(BaseException):
    def __init__(self, number):
        super().__init__(number)
        self.number = number
        self.status = 128 + number  # as shells have it


def describe(number, written):
    name = "interrupted" if number == signal.SIGINT else f"stopped by {signal.Signals(number).name}"
    return f"prepare.py: {name}; {'the outputs are complete' if written else 'nothing was written'}"


def install(clean_up):
    """The first signal raises Stopped in the main thread. A second one, or a first one whose exception was lost (in a
    destructor, say), cleans up and ends the process there and then. clean_up() says whether the outputs are complete."""
    first = []

    def end():
        written = clean_up()
        sys.stderr.write(describe(first[0], written) + "\n")
        sys.stderr.flush()
        os._exit(128 + first[0])

    def handle(number, _):
        if first:
            end()
        first.append(number)
        signal.setitimer(signal.ITIMER_REAL, PATIENCE_SECONDS)
        raise Stopped(number)

    signal.signal(signal.SIGALRM, lambda *_: end())
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup and background jobs of scripts have them ignored
            signal.signal(number, handle)


@contextlib.contextmanager
def held_back():
    """Signals wait until the end of the block; processes that are started in it never see them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
