"""Documents from files: text, Markdown, reStructuredText, HTML, JSON lines, Parquet, and Hugging Face datasets.

prepare.py's reading half. A document is the unit that is never split between training and validation.
"""
import contextlib
import glob
import gzip
import html.parser
import json
import os
import re
from typing import NamedTuple

KINDS = {
    ".txt": "text", ".md": "text", ".rst": "text", ".html": "html", ".htm": "html",
    ".jsonl": "json", ".ndjson": "json", ".json": "json", ".parquet": "parquet",
}
READ_CHARACTERS = 1 << 24  # per read of a file of many documents, so that its size doesn't matter


class UserError(Exception):
    """A mistake of the user, or of the environment: printed in one line, exit code 2."""


class Document(NamedTuple):
    content: str
    is_html: bool
    path: str

    def text(self):
        return html_to_text(self.content) if self.is_html else self.content


def kind_of(path):
    """(kind, is gzipped) by the name's suffix; kind is None for a file that can't be read."""
    name = path.lower()
    gzipped = name.endswith(".gz")
    suffix = os.path.splitext(name[:-3] if gzipped else name)[1]
    kind = KINDS.get(suffix)
    return (None if gzipped and kind == "parquet" else kind), gzipped


def find_files(patterns):
    """Files, directories (searched recursively) and globs to a list of readable files, each once.

    In the order of the arguments; a directory's and a glob's files are sorted. Other files in a directory are left
    out; one that is named explicitly is an error.
    """
    found = {}
    for pattern in patterns:
        paths = [pattern] if os.path.exists(pattern) else sorted(glob.glob(pattern, recursive=True))
        if not paths:
            raise UserError(f"no file matches '{pattern}'")
        for path in paths:
            if os.path.isdir(path):
                files = [os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names]
                files = sorted(name for name in files if kind_of(name)[0])
                if not files:
                    raise UserError(f"{path}: no file of a known kind in this directory ({' '.join(KINDS)}, also .gz)")
            elif kind_of(path)[0]:
                files = [path]
            else:
                raise UserError(f"{path}: unknown kind of file, expected one of {' '.join(KINDS)}, also .gz")
            found.update((os.path.realpath(name), name) for name in files)
    return list(found.values())


def read_documents(path, text_field, separator, encoding):
    """Yields the documents of one file, without those that hold only white space."""
    kind, gzipped = kind_of(path)
    if kind == "parquet":
        contents = read_parquet(path, text_field)
    else:
        contents = read_text(path, gzipped, kind, text_field, separator, encoding)
    for content in contents:
        if content and not content.isspace():
            yield Document(content, kind == "html", path)


def read_text(path, gzipped, kind, text_field, separator, encoding):
    with opened_text(path, gzipped, encoding) as file:
        if kind == "json":
            yield from read_json_lines(file, path, text_field)
        elif kind == "text" and separator:
            yield from read_separated(file, separator)
        else:
            yield file.read()


def read_json_objects(path):
    """(where, object) of each line of a file of JSON lines, also .gz."""
    kind, gzipped = kind_of(path)
    if kind != "json":
        raise UserError(f"{path}: expected JSON lines: .jsonl, .ndjson or .json, also .gz")
    with opened_text(path, gzipped, "utf-8-sig") as file:
        for place, row in json_objects(file, path):
            if not isinstance(row, dict):
                raise UserError(f"{place}: not a JSON object on one line")
            yield place, row


@contextlib.contextmanager
def opened_text(path, gzipped, encoding):
    try:
        # Universal newlines: \r\n becomes \n. utf-8-sig is utf-8 that drops a byte order mark.
        with (gzip.open if gzipped else open)(path, "rt", encoding=encoding) as file:
            yield file
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not valid {error.encoding} (byte {error.object[error.start]:#04x}); "
                        "name its encoding with --encoding, for example latin-1") from None
    except (gzip.BadGzipFile, EOFError) as error:
        raise UserError(f"{path}: damaged gzip file: {error}") from None


def read_separated(file, separator):
    """The parts between separators; memory holds one of them and one read."""
    rest = ""
    while chunk := file.read(READ_CHARACTERS):
        *complete, rest = (rest + chunk).split(separator)
        yield from complete
    yield rest


def read_json_lines(file, path, text_field):
    for place, row in json_objects(file, path):
        yield field_of(row, text_field, place)


def json_objects(file, path):
    """(where, row) of each line; a row need not be an object."""
    for number, line in enumerate(file, 1):
        if line.isspace():
            continue
        try:
            yield f"{path}, line {number}", json.loads(line)
        except ValueError as error:
            raise UserError(f"{path}, line {number}: not a JSON object on one line: {error}") from None


def field_of(row, text_field, place):
    text = row.get(text_field) if isinstance(row, dict) else None
    if not isinstance(text, str):
        fields = f"it has {', '.join(map(str, row)) or 'none'}" if isinstance(row, dict) else "it is not an object"
        raise UserError(f"{place}: no text in the field '{text_field}' ({fields}); name it with --text-field")
    try:
        text.encode()
    except UnicodeEncodeError:  # JSON can hold half of a surrogate pair, which isn't text
        text = re.sub("[\ud800-\udfff]", "\ufffd", text)
    return text


def read_parquet(path, text_field):
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError(f"{path}: reading Parquet files needs the Python package pyarrow: "
                        "pip install pyarrow") from None
    try:
        file = pyarrow.parquet.ParquetFile(path)
        if text_field not in file.schema_arrow.names:
            raise UserError(f"{path}: no column '{text_field}' (it has {', '.join(file.schema_arrow.names)}); "
                            "name it with --text-field")
        for batch in file.iter_batches(batch_size=1024, columns=[text_field]):
            for text in batch.column(0).to_pylist():
                if text is not None and not isinstance(text, str):
                    raise UserError(f"{path}: the column '{text_field}' doesn't hold text")
                yield text
    except pyarrow.ArrowException as error:
        raise UserError(f"{path}: cannot read Parquet: {one_line(error)}") from None


def read_hugging_face(name, config, split, text_field):
    for row in read_rows_of_hub(name, config, split):
        text = field_of(row, text_field, f"dataset {name}")
        if text and not text.isspace():
            yield Document(text, False, name)


def read_rows_of_hub(name, config, split):
    """Streams a dataset of the Hugging Face hub: nothing is stored on the disk."""
    try:
        import datasets
    except ImportError:
        raise UserError(f"dataset {name}: needs the Python package datasets: pip install datasets") from None
    try:
        yield from datasets.load_dataset(name, config, split=split, streaming=True)
    except Exception as error:  # the hub's errors are of many unrelated classes
        raise UserError(f"dataset {name}: {one_line(error)}") from None


def one_line(error):
    return " ".join(str(error).split()) or type(error).__name__


class TextExtractor(html.parser.HTMLParser):
    """Collects the visible text of a page; block elements start a new line, white space runs collapse."""

    INVISIBLE = {"script", "style", "head", "template", "noscript", "svg"}
    BLOCKS = {
        "address", "article", "aside", "blockquote", "br", "dd", "div", "dl", "dt", "figcaption", "figure", "footer",
        "form", "h1", "h2", "h3", "h4", "h5", "h6", "header", "hr", "li", "main", "nav", "ol", "p", "pre", "section",
        "table", "td", "th", "tr", "ul",
    }

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.parts, self.invisible, self.preformatted = [], 0, 0

    def handle_starttag(self, tag, attributes):
        if tag == "body":  # a <head> that is never closed ends here
            self.invisible = 0
        self.invisible += tag in self.INVISIBLE
        self.preformatted += tag == "pre"
        if tag in self.BLOCKS:
            self.parts.append("\n")

    def handle_endtag(self, tag):
        self.invisible = max(0, self.invisible - (tag in self.INVISIBLE))
        self.preformatted = max(0, self.preformatted - (tag == "pre"))
        if tag in self.BLOCKS:
            self.parts.append("\n")

    def handle_data(self, data):
        if not self.invisible:
            self.parts.append(data if self.preformatted else re.sub(r"\s+", " ", data))


def html_to_text(content):
    parser = TextExtractor()
    parser.feed(content)
    parser.close()
    text = re.sub(r" *\n *(?=\n)| +(?=\n)", "\n", "".join(parser.parts))
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"
