"""What a user can mend, said in one line; exit status 2."""
import argparse
import sys


class UserError(Exception):
    """Something the user has to know: printed in one line, exit code 2."""


def text_of(error):
    """One line for a UserError or OSError."""
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def fail(program, text):
    print(f"{program}: error: {text}", file=sys.stderr)
    sys.exit(2)


class OneLineParser(argparse.ArgumentParser):
    """argparse prints its usage before an error; one line is easier to read, and --help has the rest."""

    def error(self, message):
        fail(self.prog, f"{message} (see --help)")
