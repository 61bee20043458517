"""How the scripts begin and end: what a user can mend in one line with exit status 2, signals, packages that are missing."""
import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.append(os.path.join(ROOT, "data", "prepare"))  # whose modules stand alone

import command_line  # noqa: E402
from command_line import OneLineParser, begin, path_name  # noqa: E402, F401
from mistakes import UserError, how_to_install, one_line  # noqa: E402, F401


def import_text(error, hint=None):
    """One line for an ImportError. hint: a command that installs what is missing (default: for this Python)."""
    if not isinstance(error, ModuleNotFoundError):
        return f"a package of {sys.executable} is there but cannot be imported: {one_line(error)}"
    package = error.name.partition(".")[0]
    return f"{sys.executable} has no package {package}: {hint or how_to_install(package, f'python3-{package}')}"


def fail(program, text):
    print(f"{program}: error: {text}", file=sys.stderr)
    sys.exit(2)


def run(program, work, packages=None):
    """work(), then the end of the process. packages: a command that installs what this script imports."""
    def work_with_packages():
        try:
            work()
        except ImportError as error:
            raise UserError(import_text(error, packages)) from None

    sys.exit(command_line.run(program, work_with_packages))
