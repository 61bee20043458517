"""Documents from files: text, Markdown, reStructuredText, HTML, JSON lines, Parquet, and Hugging Face datasets.

prepare.py's reading half. A document is the unit that is never split between training and validation.
"""
import contextlib
import glob
import os
import re
from typing import NamedTuple

import rows
from findings import Findings
from html_text import html_to_text
from mistakes import UserError, one_line
from regular_files import check_regular
from text_files import GZIP_ERRORS, Blocks, encoding_error, gzip_error, open_text

KINDS = {
    ".txt": "text", ".md": "text", ".rst": "text", ".html": "html", ".htm": "html",
    ".jsonl": "json lines", ".ndjson": "json lines", ".json": "json", ".parquet": "parquet",
}
READ_BYTES = 1 << 24  # per read of a file of many documents, so that its size doesn't matter


class Document(NamedTuple):
    content: str
    is_html: bool
    path: str

    def text(self):
        return html_to_text(self.content) if self.is_html else self.content


class Reading(NamedTuple):
    """How files are read."""
    text_field: str
    separator: str
    encoding: str


def kind_of(path):
    """(kind, is gzipped) by the name's suffix; kind is None for a file that can't be read."""
    name = path.lower()
    gzipped = name.endswith(".gz")
    suffix = os.path.splitext(name[:-3] if gzipped else name)[1]
    kind = KINDS.get(suffix)
    return (None if gzipped and kind == "parquet" else kind), gzipped


def files_below(directory):
    """All files of a known kind, sorted; links to directories are followed, each directory is visited once."""
    found, visited = [], set()

    def fail(error):
        raise error

    for folder, folders, names in os.walk(directory, onerror=fail, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in visited:
            folders.clear()  # a link to a directory above it, or to one that was read already
            continue
        visited.add((status.st_dev, status.st_ino))
        found += [os.path.join(folder, name) for name in names if kind_of(name)[0]]
    return sorted(found)


def find_files(patterns, own=None):
    """Files, directories (searched recursively) and globs to a list of readable files, each once.

    In the order of the arguments; a directory's and a glob's files are sorted. Other files in a directory are left
    out; one that is named explicitly is an error. own: the real path of a file that this run will write.
    """
    found = {}
    for pattern in patterns:
        paths = [pattern] if os.path.lexists(pattern) else sorted(glob.glob(pattern, recursive=True))
        if not paths:
            raise UserError(f"no file matches '{pattern}'")
        for path in paths:
            if os.path.isdir(path):
                files = [name for name in files_below(path) if os.path.realpath(name) != own]
                if not files:
                    raise UserError(f"{path}: no file of a known kind in this directory ({' '.join(KINDS)}, also .gz)")
            elif os.path.realpath(path) == own:
                raise UserError(f"{path}: is an output of this run, too; choose another --output")
            elif kind_of(path)[0]:
                files = [path]
            else:
                raise UserError(f"{path}: unknown kind of file, expected one of {' '.join(KINDS)}, also .gz")
            found.update((os.path.realpath(name), name) for name in files)
    return list(found.values())


def read_documents(path, reading, findings):
    """Yields the documents of one file, without those that hold only white space. UserError, OSError: it can't be read."""
    kind, gzipped = kind_of(path)
    check_regular(path)
    findings.nuls.pop(path, None)
    if kind == "parquet":
        contents = rows.texts(rows.parquet_rows(path, reading.text_field), path, reading.text_field, findings)
    else:
        contents = read_text(path, gzipped, kind, reading, findings)
    for content in guarded(contents, path):
        if content and not content.isspace():
            if "\0" in content:
                findings.nuls[path] = findings.nuls.get(path, 0) + content.count("\0")
            yield Document(without_surrogates(content), kind == "html", path)


def guarded(contents, source):
    """The same; whatever a reader raises becomes one line that names the file or dataset."""
    try:
        yield from contents
    except UserError:
        raise
    except MemoryError:
        raise UserError(f"{source}: out of memory; divide it into smaller files, or into lines") from None
    except OSError as error:
        if error.filename:
            raise
        raise UserError(f"{source}: {error.strerror or one_line(error)}") from None
    except Exception as error:
        raise UserError(f"{source}: cannot be read: {type(error).__name__}: {one_line(error)}") from None


def without_surrogates(text):
    """JSON and some encodings can hold half of a surrogate pair, which isn't text."""
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        return re.sub("[\ud800-\udfff]", "\ufffd", text)


def read_text(path, gzipped, kind, reading, findings):
    try:
        with open_text(path, gzipped, reading.encoding, findings) as file:
            if kind in ("json", "json lines"):
                values = rows.json_lines(file, path) if kind == "json lines" else rows.JsonValues(file, path).rows()
                yield from rows.texts(values, path, reading.text_field, findings)
            elif kind == "text" and reading.separator:
                yield from read_separated(file, reading.separator)
            else:
                yield file.read()
    except UnicodeError as error:
        raise encoding_error(path, gzipped, error, reading.encoding) from None
    except GZIP_ERRORS as error:
        raise gzip_error(path, error) from None


def read_separated(file, separator):
    """The parts between separators; memory holds one of them and one read."""
    rest, blocks = "", Blocks(file)
    while chunk := blocks.read(READ_BYTES):
        *complete, rest = (rest + chunk).split(separator)
        yield from complete
    yield rest


def read_rows(path):
    """(place, row) of a file of JSON lines or a JSON array, also .gz."""
    kind, gzipped = kind_of(path)
    if kind not in ("json", "json lines"):
        raise UserError(f"{path}: expected JSON lines or a JSON array: .jsonl, .ndjson or .json, also .gz")
    check_regular(path)
    yield from guarded(rows_of_file(path, gzipped, kind), path)


def rows_of_file(path, gzipped, kind, encoding="utf-8-sig"):
    try:
        with open_text(path, gzipped, encoding, Findings()) as file:
            yield from rows.json_lines(file, path) if kind == "json lines" else rows.JsonValues(file, path).rows()
    except UnicodeError as error:
        raise encoding_error(path, gzipped, error, encoding) from None
    except GZIP_ERRORS as error:
        raise gzip_error(path, error) from None


def read_hugging_face(name, config, split, text_field, findings):
    """The documents of a dataset of the Hugging Face hub; whatever its libraries raise is a UserError."""
    source = f"dataset {name}"
    try:
        contents = guarded(rows.texts(rows.hugging_face_rows(name, config, split), source, text_field, findings), source)
        for content in contents:
            if content and not content.isspace():
                yield Document(without_surrogates(content), False, name)
    except OSError as error:  # the network's
        raise UserError(f"{source}: {one_line(error)}") from None
