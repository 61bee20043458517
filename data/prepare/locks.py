"""A lock on the outputs of a run, which the kernel releases when the process dies."""
import contextlib
import fcntl
import os
import re
import socket
import time

from mistakes import UserError


class Lock:
    """Holds `path`, a file that says who holds it and is gone when nobody does. UserError: another process has it."""

    HOLDER = re.compile(rb"process \d+ on ")  # so begins what the file says

    def __init__(self, path, outputs, option="--output"):
        """option: by which the user named the outputs."""
        self.path, self.option = path, option
        while True:
            self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                self.take(outputs)
                self.check_own()
                if self.is_current():
                    break  # else its last holder has removed this file meanwhile
            except BaseException:
                os.close(self.descriptor)
                raise
            os.close(self.descriptor)
        holder = f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}"
        with contextlib.suppress(OSError):  # a full disk: the lock holds all the same
            os.ftruncate(self.descriptor, 0)
            os.pwrite(self.descriptor, holder.encode(), 0)

    def take(self, outputs):
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self.descriptor, 300, 0).decode(errors="replace") or "a process that has just begun"
            raise UserError(f"{outputs}: another run is writing these outputs: {holder}; wait until it ends, or choose "
                            f"another {self.option}") from None
        except OSError as error:
            raise UserError(f"{self.path}: this file system has no locks ({error.strerror}); choose an {self.option} on "
                            "another one") from None

    def check_own(self):
        """A user may have a file of this name (poetry.lock), which is not to be written over."""
        found = os.pread(self.descriptor, 300, 0)
        if found and not self.HOLDER.match(found):
            raise UserError(f"{self.path}: is there, and is no lock of this program; choose another {self.option}, or remove it")

    def is_current(self):
        try:
            return os.path.samestat(os.fstat(self.descriptor), os.stat(self.path))
        except FileNotFoundError:
            return False

    def release(self):
        if self.descriptor is not None:
            with contextlib.suppress(OSError):
                os.unlink(self.path)
            os.close(self.descriptor)
            self.descriptor = None
