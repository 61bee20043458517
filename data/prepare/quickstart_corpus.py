#!/usr/bin/env python3
"""Fetch the quickstart corpus: Jane Austen's six novels, 4 MB of English prose, one text file each.

The novels come with the Debian package r-cran-janeaustenr (public domain text). R isn't needed: the package keeps each
novel as a vector of lines in R's serialization format, and the small reader below understands as much of it as that takes.
"""
import gzip
import os
import struct
import sys
import zlib

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from command_line import OneLineParser, begin, run  # noqa: E402
from debian_packages import CorpusError, unpacked  # noqa: E402
from outputs import OutputFile  # noqa: E402

PACKAGE = "r-cran-janeaustenr"
DATA_FILES = "usr/lib/R/site-library/janeaustenr/data/Rdata"

# Name in the package: (file to write, first words of the text, least length in bytes).
NOVELS = {
    "emma": ("emma.txt", "EMMA", 850_000),
    "mansfieldpark": ("mansfield_park.txt", "MANSFIELD PARK", 850_000),
    "northangerabbey": ("northanger_abbey.txt", "NORTHANGER ABBEY", 420_000),
    "persuasion": ("persuasion.txt", "Persuasion", 450_000),
    "prideprejudice": ("pride_and_prejudice.txt", "PRIDE AND PREJUDICE", 680_000),
    "sensesensibility": ("sense_and_sensibility.txt", "SENSE AND SENSIBILITY", 650_000),
}
LEAST_TOTAL_BYTES = 3_900_000
MOST_TOTAL_BYTES = 4_200_000


class RReader:
    """Reads R's serialization format, version 2 or 3, in XDR (big endian) encoding.

    Every item starts with an int of flags: bits 0-7 its type, bit 9 "has attributes", bit 10 "has a tag", bits 12+
    the encoding of a string. Source: "R Internals", section "Serialization Formats".
    """

    SYMBOL, PAIRLIST, STRING, LOGICAL, INTEGER, STRINGS, LIST = 1, 2, 9, 10, 13, 16, 19
    NULL, REFERENCE = 254, 255
    LATIN1 = 1 << 2

    def __init__(self, data):
        if data[:2] != b"X\n":
            raise CorpusError("the package's data isn't in R's XDR serialization format")
        self.data, self.position, self.symbols = data, 2, []
        version, _, _ = self.int(), self.int(), self.int()
        if version == 3:
            self.bytes(self.int())  # the name of the native encoding

    def bytes(self, count):
        self.position += count
        return self.data[self.position - count : self.position]

    def int(self):
        return struct.unpack(">i", self.bytes(4))[0]

    def item(self):
        flags = self.int()
        kind, has_attributes, has_tag = flags & 255, flags & 512, flags & 1024
        if kind == self.NULL:
            return None
        if kind == self.REFERENCE:
            return self.symbols[(flags >> 8) - 1]
        if kind == self.SYMBOL:
            self.symbols.append(self.item())
            return self.symbols[-1]
        if kind == self.PAIRLIST:
            return self.pairlist(has_attributes, has_tag)
        if kind == self.STRING:
            length = self.int()
            encoding = "latin-1" if (flags >> 12) & self.LATIN1 else "utf-8"
            return None if length < 0 else self.bytes(length).decode(encoding)
        if kind in (self.LOGICAL, self.INTEGER):
            value = [self.int() for _ in range(self.int())]
        elif kind in (self.STRINGS, self.LIST):
            value = [self.item() for _ in range(self.int())]
        else:
            raise CorpusError(f"the package's data holds an R object of the unexpected type {kind}")
        attributes = self.item() if has_attributes else {}
        return dict(zip(attributes["names"], value)) if "names" in attributes else value

    def pairlist(self, has_attributes, has_tag):
        """A linked list of tag and value: a dict."""
        if has_attributes:
            self.item()
        tag = self.item() if has_tag else None
        return {tag: self.item(), **(self.item() or {})}


def read_lazy_data(base):
    """R's lazy-load database: an index (.rdx) of offset and length into a file (.rdb) of compressed objects."""
    with gzip.open(base + ".rdx") as file:
        variables = RReader(file.read()).item()["variables"]
    with open(base + ".rdb", "rb") as file:
        database = file.read()
    objects = {}
    for name, (offset, length) in variables.items():
        # 4 bytes uncompressed length, then a zlib stream.
        objects[name] = RReader(zlib.decompress(database[offset + 4 : offset + length])).item()
    return objects


def fetch_novels():
    """Returns {name in the package: text}."""
    with unpacked(PACKAGE) as root:
        base = os.path.join(root, DATA_FILES)
        if not os.path.exists(base + ".rdb"):
            raise CorpusError(f"the package {PACKAGE} has changed: {DATA_FILES}.rdb is not in it")
        objects = read_lazy_data(base)
    return {name: "\n".join(lines).strip("\n") + "\n" for name, lines in objects.items()}


def check(texts):
    """Six novels, each with its title first and of about the right length."""
    if sorted(texts) != sorted(NOVELS):
        raise CorpusError(f"expected the novels {', '.join(sorted(NOVELS))}, found {', '.join(sorted(texts))}")
    for name, (_, title, least_bytes) in NOVELS.items():
        size = len(texts[name].encode())
        if not texts[name].startswith(title) or size < least_bytes:
            raise CorpusError(f"the novel {name} is not complete: {size} bytes, starts with {texts[name][:30]!r}")
    total = sum(len(text.encode()) for text in texts.values())
    if not LEAST_TOTAL_BYTES <= total <= MOST_TOTAL_BYTES:
        raise CorpusError(f"the novels have {total} bytes together, expected about 4.0 million")


def read_present(directory):
    """The texts if all six files are there and complete, else None."""
    texts = {}
    for name, (file_name, _, _) in NOVELS.items():
        path = os.path.join(directory, file_name)
        if not os.path.exists(path):
            return None
        with open(path, encoding="utf-8", errors="replace") as file:
            texts[name] = file.read()
    try:
        check(texts)
    except CorpusError as error:
        raise CorpusError(f"{directory} holds a damaged copy ({error}); remove it and run this again") from None
    return texts


def write(directory, texts):
    for name, (file_name, _, _) in NOVELS.items():
        path, content = os.path.join(directory, file_name), texts[name].encode()
        if os.path.exists(path):  # a run that was stopped has left it: files get their names when they are whole
            with open(path, "rb") as file:
                if file.read() != content:
                    raise CorpusError(f"{path}: is there already and is another text; name another directory")
            continue
        with OutputFile(path, "directory") as file:
            file.write(content)


def fetch(directory):
    if not directory:
        raise CorpusError("directory '': names no directory")
    texts = read_present(directory)
    found = texts is not None
    if not found:
        texts = fetch_novels()
        check(texts)
        write(directory, texts)
    size = sum(len(text.encode()) for text in texts.values())
    print(f"{directory}: six novels, {size / 1e6:.1f} MB" + (", already there" if found else ""))


def parse_arguments():
    default = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "cache", "austen")
    parser = OneLineParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", nargs="?", default=default, help="where to put the novels (data/cache/austen)")
    return parser.parse_args()


if __name__ == "__main__":
    begin("quickstart_corpus.py")
    arguments = parse_arguments()
    sys.exit(run("quickstart_corpus.py", lambda: fetch(arguments.directory)))
