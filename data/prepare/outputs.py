"""What a command writes: a file or a directory that is there whole or not at all, and never in place of another.

It is made under a name of its own beside the place and gets its name when it is complete. Nobody else makes the same one
meanwhile: a lock is held. What is not complete is gone whatever happens, also the directories that were made for it.
"""
import contextlib
import errno
import os
import re
import shutil
import tempfile

import stopping
from locks import Lock
from mistakes import UserError, one_line

LONGEST_PREFIX = 50  # characters of a name in that of its partial one: names of files have limits

unfinished = []  # all that are being made: whoever ends the process discards them
complete = []    # paths of those that are done


def discard_all():
    """Leaves nothing incomplete; returns what is complete. Can be called twice."""
    for output in list(unfinished):
        output.discard()
    return ", ".join(complete)


def check_name(option, path):
    if any("\ud800" <= character <= "\udfff" for character in path):
        raise UserError(f"{option} {ascii(path)}: is not valid UTF-8")


def make_directories(directory):
    """Returns those that were not there, the deepest first."""
    made, above = [], os.path.abspath(directory)
    while not os.path.lexists(above):
        made.append(above)
        above = os.path.dirname(above)
    try:
        os.makedirs(directory, exist_ok=True)
    except OSError as error:
        remove_directories(made)
        if isinstance(error, FileExistsError):  # a file in the place of a directory
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), error.filename) from None
        raise
    return made


def remove_directories(made):
    for directory in made:
        with contextlib.suppress(OSError):  # another run has written into it
            os.rmdir(directory)


def flush_directory(directory):
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(directory, prefix):
    """What killed processes have left of tempfile's names, while a lock keeps living ones away."""
    for name in os.listdir(directory):
        if re.fullmatch(re.escape(prefix) + "[a-z0-9_]{8}", name):
            path = os.path.join(directory, name)
            with contextlib.suppress(OSError):
                shutil.rmtree(path) if os.path.isdir(path) else os.unlink(path)


def allowed(mode):
    """What the user's umask leaves of a mode: tempfile makes what only the owner reads."""
    umask = os.umask(0)
    os.umask(umask)
    return mode & ~umask


def why(error):
    """Of an OSError. NumPy's have a text of their own: how many bytes were wanted and written."""
    return error.strerror or f"{one_line(error)} (is the disk full?)"


class Output:
    """option: by which the user named the path; advice: what to do where it is taken. shared: without a lock, so that of two at
    once the last one's stays. UserError: it can't be written, or is there and not to be overwritten."""

    def __init__(self, path, option, overwrite=False, shared=False, advice="name a new one"):
        self.path, self.option, self.overwrite, self.advice = path, option, overwrite, advice
        self.place = os.path.abspath(path)
        self.directory, self.name = os.path.split(self.place)
        self.made, self.lock, self.partial = [], None, None
        if not self.name or not path or (path.endswith("/") and self.KIND == "file"):
            raise UserError(f"{option} '{path}': names no {self.KIND}")
        check_name(option, path)
        self.check()
        unfinished.append(self)
        try:
            with stopping.held_back():  # no signal between a file and the note of it, by which it is removed
                self.made = make_directories(self.directory)
                prefix = f".{self.name[:LONGEST_PREFIX]}.partial-"
                if not shared:
                    self.lock = Lock(f"{self.place}.lock", f"{option} {path}", option=option)
                    if len(self.name) <= LONGEST_PREFIX:
                        remove_leftovers(self.directory, prefix)
                self.check()
                self.partial = self.make(prefix)
        except BaseException as error:
            self.discard()
            if isinstance(error, OSError):
                raise UserError(f"{option} {path}: cannot be written: {why(error)}") from None
            raise

    def check(self):
        if os.path.lexists(self.path) and not self.overwrite:
            raise UserError(f"{self.option} {self.path}: is there already; {self.advice}")

    def finish(self):
        """Gives it its name."""
        with stopping.held_back():
            self.put()
            self.partial = None
            self.made = []
            complete.append(self.path)
        with contextlib.suppress(OSError):  # not every file system can
            flush_directory(self.directory)
        self.discard()

    def discard(self):
        """Removes what is not complete; can be called again."""
        if self.partial:
            self.remove()
            self.partial = None
        if self.lock:
            self.lock.release()
        remove_directories(self.made)
        if self in unfinished:
            unfinished.remove(self)

    def __enter__(self):
        return self.opened()

    def __exit__(self, kind, error, _):
        try:
            if kind is None:
                self.finish()
        except OSError as failure:
            raise UserError(f"{self.option} {self.path}: cannot be written: {why(failure)}") from None
        finally:
            self.discard()
        if isinstance(error, OSError) and error.filename is None:  # of the file that is being written
            raise UserError(f"{self.option} {self.path}: cannot be written: {why(error)}") from None


class OutputFile(Output):
    """`with OutputFile(path, "-o") as file:` is open for bytes."""

    KIND = "file"

    def check(self):
        if os.path.isdir(self.path):
            raise UserError(f"{self.option} {self.path}: is a directory; name a file")
        super().check()

    def make(self, prefix):
        descriptor, partial = tempfile.mkstemp(prefix=prefix, dir=self.directory)
        self.file = open(descriptor, "w+b")
        return partial

    def opened(self):
        return self.file

    def finish(self):
        self.file.flush()
        os.fchmod(self.file.fileno(), allowed(0o666))
        os.fsync(self.file.fileno())
        self.file.close()
        super().finish()

    def put(self):
        if self.overwrite:
            os.replace(self.partial, self.place)
            return
        try:
            os.link(self.partial, self.place)  # unlike a renaming it never replaces
        except FileExistsError:
            self.check()
        except OSError:  # a file system without hard links
            self.check()
            os.rename(self.partial, self.place)
            return
        os.unlink(self.partial)

    def remove(self):
        with contextlib.suppress(OSError):
            self.file.close()  # what it still buffered isn't wanted
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.partial)


class OutputDirectory(Output):
    """`with OutputDirectory(path, "-o") as directory:` is the path of a directory to write files into."""

    KIND = "directory"

    def make(self, prefix):
        return tempfile.mkdtemp(prefix=prefix, dir=self.directory)

    def opened(self):
        return self.partial

    def put(self):
        for entry in os.scandir(self.partial):
            os.chmod(entry.path, allowed(0o666))
        os.chmod(self.partial, allowed(0o777))
        self.check()
        os.rename(self.partial, self.place)

    def remove(self):
        shutil.rmtree(self.partial, ignore_errors=True)
