"""Files that a user names and that are read whole: pipes would be waited for, devices may never end."""
import os
import stat

from mistakes import UserError


def check_regular(path):
    """UserError unless it can be read more than once. Opening a pipe would wait for its writer."""
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        kind = ("a pipe" if stat.S_ISFIFO(mode) else "a socket" if stat.S_ISSOCK(mode) else
                "a directory" if stat.S_ISDIR(mode) else "a device")
        raise UserError(f"{path}: is {kind}, not a file; write its content into a file first (it is read more than once)")


def read_bytes(path):
    """All of a file. UserError: it is none; OSError: it can't be read."""
    check_regular(path)
    with open(path, "rb") as file:
        return file.read()
