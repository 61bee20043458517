"""How a command begins and ends: its mistakes in one line, its signals, its outputs whole or absent."""
import argparse
import sys

import outputs
import stopping
import streams
from mistakes import UserError, describe


class OneLineParser(argparse.ArgumentParser):
    """argparse prints its usage before an error; one line is easier to read, and --help has the rest."""

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message} (see --help)\n")


def path_name(text):
    """Of an argument that names a file or directory: a shell's variable may be empty."""
    if not text:
        raise argparse.ArgumentTypeError("'' names nothing")
    return text


def begin(program):
    """To be called first, before anything that takes its time to import."""
    streams.forgive()
    stopping.install(program, outputs.discard_all, gently=False)


def run(program, work, clean_up=outputs.discard_all, memory_advice=""):
    """work() and the exit status of the process. clean_up: leaves nothing incomplete, says what is complete, can be called twice.
    memory_advice: how a user can do with less."""
    stopping.install(program, clean_up)
    try:
        work()
    except (UserError, OSError, MemoryError) as error:
        clean_up()
        print(f"{program}: error: {describe(error, memory_advice)}", file=sys.stderr)
        return 2
    except stopping.Stopped as stopped:
        print(stopping.describe(program, stopped.number, clean_up()), file=sys.stderr)
        return stopped.status
    finally:
        clean_up()
    return 0
