"""What a user can mend, said in one line."""
import errno
import importlib
import sys


class UserError(Exception):
    """A mistake of the user, or of the environment: printed in one line, exit code 2."""


def one_line(error):
    return " ".join(str(error).split()) or type(error).__name__


def describe(error, memory_advice=""):
    """One line for a UserError, OSError or MemoryError that ends a run before its outputs are complete."""
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"no space left on the device{f' for {error.filename}' if error.filename else ''}; nothing was written"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, MemoryError):
        return "out of memory" + (f"; {memory_advice}" if memory_advice else "")
    return one_line(error)


def how_to_install(name, debian_package):
    """A command that works where this Python is: Debian's own refuses pip."""
    if sys.prefix != sys.base_prefix:
        return f"install it with `{sys.executable} -m pip install {name}`"
    if debian_package and sys.executable.startswith("/usr/bin/"):
        return f"install it with `apt install {debian_package}`"
    return (f"install it in an environment of its own, `python3 -m venv out/tools && out/tools/bin/pip install {name} "
            "sentencepiece`, and start this with out/tools/bin/python")


def import_package(name, purpose, debian_package=None):
    """The module of this name; UserError that says why it can't be had: missing, or installed and broken."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        top = name.partition(".")[0]
        if error.name == top:
            raise UserError(f"{purpose} needs the Python package {top}, which {sys.executable} lacks: "
                            f"{how_to_install(top, debian_package)}") from None
        raise broken(name, purpose, error) from None
    except Exception as error:  # a shared library that is missing, another NumPy than it was built for, ...
        raise broken(name, purpose, error) from None


def broken(name, purpose, error):
    return UserError(f"{purpose} needs the Python package {name}, which is installed for {sys.executable} but cannot "
                     f"be imported: {type(error).__name__}: {one_line(error)}")
