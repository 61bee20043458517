"""Writes token shards (the format is described in shard.h) and keeps outputs atomic. prepare.py's writing half."""
import array
import contextlib
import glob
import os
import re
import struct
import sys

import stopping
from locks import Lock
from mistakes import UserError
from outputs import check_name, flush_directory, make_directories, remove_directories


LARGEST_UINT16_VOCABULARY = 65536
HEADER_INTS = 256


def type_code_for(vocabulary_size):
    """Of array.array: the width of a shard's tokens."""
    return "H" if vocabulary_size <= LARGEST_UINT16_VOCABULARY else "I"


def fnv1a_64(data):
    """64-bit FNV-1a, as in tokenizer.h: identifies a tokenizer by the bytes of its model file."""
    value = 0xCBF29CE484222325
    for byte in data:
        value = ((value ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return value


class Outputs:
    """The files of one run: written as NAME.partial, and given their names only when all of them are complete.

    Nobody else writes them meanwhile: a lock is held from the beginning to commit() or discard()."""

    NAMES = re.compile(r"(_(train|val)_\d{6}\.bin|\.model|\.json)(\.partial)?")  # after the prefix

    def __init__(self, prefix, overwrite, keep=None):
        """keep: a file that is an input of this run, so neither an obstacle nor replaced."""
        self.prefix, self.keep = prefix, keep
        self.pending = {}  # name -> open file
        self.complete = False
        directory, name = os.path.split(prefix)
        if not name:
            raise UserError(f"--output {prefix}: expected a prefix, for example {os.path.join(prefix, 'corpus')}")
        check_name("--output", prefix)
        self.directory = directory or "."
        self.lock, self.made = None, make_directories(self.directory)
        try:
            self.lock = Lock(prefix + ".lock", f"--output {prefix}")
            names = self.existing()
            for name in names:
                if os.path.isdir(name):  # which nothing could replace, when the others have been
                    raise UserError(f"--output {prefix}: {name} is a directory; choose another --output")
            self.previous = [name for name in names if not name.endswith(".partial")]
            if self.previous and not overwrite:
                raise UserError(f"{self.previous[0]} exists already; choose another --output, or pass --overwrite")
            for name in set(names) - set(self.previous):
                os.unlink(name)  # what a killed run has left
        except BaseException:
            self.discard()
            raise

    def existing(self):
        """Outputs with this prefix, and the beginnings of such."""
        names = glob.glob(glob.escape(self.prefix) + "*")
        return sorted(name for name in names if not self.is_kept(name) and self.NAMES.fullmatch(name[len(self.prefix):]))

    def is_kept(self, path):
        return bool(self.keep) and os.path.realpath(path) == os.path.realpath(self.keep)

    def create(self, suffix):
        path = self.prefix + suffix
        if self.is_kept(path):
            raise UserError(f"--output {self.prefix}: {path} is the tokenizer; choose another prefix")
        with stopping.held_back():  # no signal between the file and the note of it, by which it is removed
            self.pending[path] = open(path + ".partial", "wb")
        return self.pending[path]

    def finish(self, file):
        """Flushes a complete file to the disk."""
        if not file.closed:
            file.flush()
            os.fsync(file.fileno())
            file.close()

    def commit(self):
        for file in self.pending.values():
            self.finish(file)
        with stopping.held_back():
            for path in self.pending:
                os.replace(path + ".partial", path)
            for path in self.previous:
                if path not in self.pending:
                    os.unlink(path)  # for example the higher shards of a longer earlier run
            self.pending, self.complete = {}, True
        flush_directory(self.directory)
        self.lock.release()

    def discard(self):
        """Removes what is not complete; can be called again, and after commit()."""
        for path, file in list(self.pending.items()):
            with contextlib.suppress(OSError):
                file.close()  # what it still buffered isn't wanted
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path + ".partial")
        self.pending = {}
        if self.lock:
            self.lock.release()
        if not self.complete:
            remove_directories(self.made)


class ShardWriter:
    """Writes a stream of tokens to <prefix>_<split>_000000.bin, 000001, … of at most `shard_tokens` tokens each."""

    def __init__(self, outputs, split, vocabulary_size, tokenizer_hash, shard_tokens):
        self.outputs, self.split, self.shard_tokens = outputs, split, shard_tokens
        self.vocabulary_size, self.tokenizer_hash = vocabulary_size, tokenizer_hash
        self.type_code = type_code_for(vocabulary_size)
        self.file, self.tokens = None, 0
        self.shards = []  # {"file", "tokens"} of each

    def write(self, token_bytes):
        """token_bytes: tokens in native byte order, of the width that the vocabulary needs."""
        tokens = memoryview(token_bytes).cast("B").cast(self.type_code)
        while len(tokens):
            if self.file is None:
                self.open()
            part = tokens[: self.shard_tokens - self.tokens]
            self.file.write(part)
            self.tokens += len(part)
            tokens = tokens[len(part):]
            if self.tokens == self.shard_tokens:
                self.close()

    def open(self):
        suffix = f"_{self.split}_{len(self.shards):06d}.bin"
        self.file, self.tokens = self.outputs.create(suffix), 0
        self.file.write(bytes(4 * HEADER_INTS))  # the real header needs the number of tokens
        self.shards.append({"file": os.path.basename(self.outputs.prefix) + suffix, "tokens": 0})

    def close(self):
        if self.file is None:
            return
        self.shards[-1]["tokens"] = self.tokens
        magic, version = (20240801, 7) if self.type_code == "I" else (20240520, 1)
        header = struct.pack("<4iQ", magic, version, self.tokens, self.vocabulary_size, self.tokenizer_hash)
        self.file.seek(0)
        self.file.write(header)
        self.outputs.finish(self.file)
        self.file = None


def check_platform():
    if sys.byteorder != "little" or array.array("I").itemsize != 4 or array.array("H").itemsize != 2:
        raise UserError("this machine is not little endian with 16 and 32 bit integers, as shards need")
