"""What the commands that prepare data say of mistakes: one line."""
import argparse
import errno

from documents import one_line


class OneLineParser(argparse.ArgumentParser):
    """argparse prints its usage before an error; one line is easier to read, and --help has the rest."""

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message} (see --help)\n")


def describe(error):
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"no space left on the device{f' for {error.filename}' if error.filename else ''}; nothing was written"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, MemoryError):
        return "out of memory; use fewer --workers or a smaller --train-sample-mb"
    return one_line(error)
