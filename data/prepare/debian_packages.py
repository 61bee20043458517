"""Texts that come as Debian packages: fetched and unpacked without being installed.

`apt-get download` needs neither root nor the packages' dependencies.
"""
import contextlib
import os
import shutil
import subprocess
import tempfile

from mistakes import UserError


class CorpusError(UserError):
    """What keeps a package from being the text that is known."""


def run(command, directory):
    if shutil.which(command[0]) is None:
        raise CorpusError(f"{command[0]} is not installed: this corpus needs Debian or Ubuntu; prepare.py takes "
                          "any other text files")
    result = subprocess.run(command, cwd=directory, capture_output=True, text=True)
    if result.returncode == 0:
        return
    reason = " ".join(line.strip() for line in result.stderr.splitlines() if line.startswith("E:"))
    reason = reason or result.stderr.strip().replace("\n", " ") or f"exit code {result.returncode}"
    hint = ""
    if "Unable to locate package" in reason or "No packages found" in reason or "no candidate" in reason:
        hint = "; run `apt-get update` first"
    elif command[0] == "apt-get":
        hint = "; check the network connection, and run `apt-get update` if the package list is old"
    raise CorpusError(f"`{' '.join(command)}` failed: {reason}{hint}")


@contextlib.contextmanager
def unpacked(package):
    """The files of a package, in a directory that is gone afterwards: `with unpacked("anarchism") as root:`."""
    with tempfile.TemporaryDirectory(prefix="corpus_") as directory:
        # The sandbox user of apt can't enter a private directory; saying so avoids its warning.
        run(["apt-get", "-o", "APT::Sandbox::User=root", "download", package], directory)
        archives = [name for name in os.listdir(directory) if name.endswith(".deb")]
        if not archives:
            raise CorpusError(f"`apt-get download {package}` left no package file")
        run(["dpkg-deb", "-x", archives[0], "unpacked"], directory)
        yield os.path.join(directory, "unpacked")
