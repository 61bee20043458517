"""Signals that stop a command: it ends within seconds, says so, and leaves no partial file."""
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


def describe(program, number, complete):
    """complete: the outputs that are, in words; empty: none."""
    name = "interrupted" if number == signal.SIGINT else f"stopped by {signal.Signals(number).name}"
    return f"{program}: {name}; {f'complete: {complete}' if complete else 'nothing was written'}"


def install(program, clean_up, gently=True):
    """The first signal raises Stopped in the main thread. A second one, or a first one whose exception was lost (in a
    destructor, say), cleans up and ends the process there and then. Not gently: the first one does that, for the time in
    which a program begins and nobody would catch it. clean_up() says which outputs are complete."""
    first = []

    def end():
        complete = clean_up()
        sys.stderr.write(describe(program, first[0], complete) + "\n")
        sys.stderr.flush()
        os._exit(128 + first[0])

    def handle(number, _):
        first.append(number)
        if len(first) > 1 or not gently:
            end()
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
