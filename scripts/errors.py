"""What a user can mend, said in one line; exit status 2."""
import argparse
import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.append(os.path.join(ROOT, "data", "prepare"))  # whose modules stand alone

from mistakes import UserError, how_to_install, one_line  # noqa: E402, F401
from streams import forgive  # noqa: E402, F401: for every script prints a path or two, perhaps into `head`


def import_text(error, hint=None):
    """One line for an ImportError. hint: a command that installs what is missing (default: for this Python)."""
    if not isinstance(error, ModuleNotFoundError):
        return f"a package of {sys.executable} is there but cannot be imported: {one_line(error)}"
    package = error.name.partition(".")[0]
    return f"{sys.executable} has no package {package}: {hint or how_to_install(package, f'python3-{package}')}"


def text_of(error):
    """One line for a UserError or OSError."""
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    return one_line(error)


def fail(program, text):
    print(f"{program}: error: {text}", file=sys.stderr)
    sys.exit(2)


class OneLineParser(argparse.ArgumentParser):
    """argparse prints its usage before an error; one line is easier to read, and --help has the rest."""

    def error(self, message):
        fail(self.prog, f"{message} (see --help)")
