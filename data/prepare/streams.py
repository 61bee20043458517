"""Standard streams that cannot fail work that is done: for ASCII terminals, closed ones and readers that have gone."""
import os
import sys


class ForgivingStream:
    """A text stream that goes on in silence when nobody reads it any longer, as with `... | head -1`."""

    def __init__(self, stream):
        self.stream = stream

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def write(self, text):
        try:
            return self.stream.write(text)
        except OSError:
            self.give_up()
            return len(text)

    def flush(self):
        try:
            self.stream.flush()
        except OSError:
            self.give_up()

    def give_up(self):
        """What is still buffered goes nowhere, also when Python flushes it at its end."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.stream.fileno())
        os.close(nowhere)


def forgive():
    """To be called first: a closed standard stream would otherwise give its number to the next file that is opened."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
    for name in "stdout", "stderr":
        stream = getattr(sys, name)
        if stream is None:
            stream = open(os.devnull, "w", encoding="utf-8")
        stream.reconfigure(errors="backslashreplace")
        setattr(sys, name, ForgivingStream(stream))
