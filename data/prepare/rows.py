"""Rows that hold a text in one field: JSON lines, JSON arrays, Parquet, datasets of the Hugging Face hub.

A row whose text is null or no text is left out and counted, in every format alike. A file in which no row has a text in that
field is an error: the field is probably another one.
"""
import collections
import json
import re

from mistakes import UserError, import_package, one_line
from text_files import Blocks

ROWS_WITHOUT_TEXT = 1000  # at the start of a file, after which it is not read on
READ_BYTES = 1 << 20
WHITE_SPACE = re.compile(r"[ \t\n\r]*")
NAMES = {dict: "an object", list: "a list", str: "a text", bool: "a boolean", float: "a number", int: "a number",
         bytes: "binary data", type(None): "null"}
DECODER = json.JSONDecoder(parse_int=float)  # of texts alone: int() takes but so many digits


def name_of(value):
    return NAMES.get(type(value), f"of type {type(value).__name__}")


def text_of(row, field):
    """(text, None), or (None, what the row has instead). A row that is a text itself has no other field."""
    if isinstance(row, str):
        return row, None
    if not isinstance(row, dict):
        return None, "null" if row is None else "not an object"
    if field not in row:
        return None, "without that field"
    value = row[field]
    return (value, None) if isinstance(value, str) else (None, name_of(value))


def listed(names):
    """Of fields, whatever characters a file has in them."""
    return one_line(", ".join(map(str, names))) if names else "no field"


def no_text(place, row, field):
    has = (f"it is {name_of(row)}" if not isinstance(row, dict) else
           f"it is {name_of(row[field])}" if field in row else
           f"it has {listed(row)}")
    return UserError(f"{place}: no text in the field '{field}' ({has}); name it with --text-field")


def texts(rows, source, field, findings):
    """rows: (place, row). Yields the texts; what it leaves out is counted in findings.skipped[source]."""
    skipped, first, any_text = collections.Counter(), None, False
    findings.skipped.pop(source, None)
    for number, (place, row) in enumerate(rows, 1):
        text, fault = text_of(row, field)
        if fault is None:
            any_text = True
            yield text
            continue
        skipped[fault] += 1
        findings.skipped[source] = skipped
        if first is None and fault != "null":
            first = place, row
        if first and not any_text and number >= ROWS_WITHOUT_TEXT:
            break
    if first and not any_text:
        raise no_text(*first, field)


def json_fault(path, line, error):
    reason = "nested too deeply" if isinstance(error, RecursionError) else one_line(error)
    return UserError(f"{path}, line {line}: not JSON: {reason}")


def json_lines(file, path):
    """One value a line; a file that is one array is read as such."""
    any_line = False
    for number, line in enumerate(file, 1):
        if line.isspace():
            continue
        if not any_line and line.lstrip()[0] == "[":
            file.seek(0)
            yield from JsonValues(file, path).rows()
            return
        any_line = True
        try:
            yield f"{path}, line {number}", DECODER.decode(line)
        except (ValueError, RecursionError) as error:
            raise json_fault(path, number, error) from None


class JsonValues:
    """The values of a JSON text, one after another, or the elements of the array that it is; memory holds one of them."""

    def __init__(self, file, path):
        self.blocks, self.path = Blocks(file), path
        self.text, self.at, self.line, self.ended = "", 0, 1, False  # line: of self.text[0]

    def read_on(self):
        more = self.blocks.read(max(READ_BYTES, len(self.text) - self.at))  # twice as much for a value that is long
        self.line += self.text.count("\n", 0, self.at)
        self.text, self.at, self.ended = self.text[self.at:] + more, 0, not more

    def next_character(self):
        """The next one that is no white space, not taken; '' at the end."""
        while True:
            self.at = WHITE_SPACE.match(self.text, self.at).end()
            if self.at < len(self.text):
                return self.text[self.at]
            if self.ended:
                return ""
            self.read_on()

    def place(self):
        return self.line + self.text.count("\n", 0, self.at)

    def value(self):
        while True:
            try:
                value, end = DECODER.raw_decode(self.text, self.at)
                if end < len(self.text) or self.ended:
                    self.at = end
                    return value
            except json.JSONDecodeError as error:
                # A value that is cut off fails at its end, or is a text that nothing ends.
                cut = error.pos > len(self.text) - 16 or error.msg.startswith("Unterminated string")
                if self.ended or not cut:
                    raise json_fault(self.path, self.line - 1 + error.lineno, error.msg) from None
            except RecursionError as error:
                raise json_fault(self.path, self.place(), error) from None
            self.read_on()

    def expect(self, characters):
        found = self.next_character()
        if found not in characters or not found:
            raise json_fault(self.path, self.place(), f"expected one of {' '.join(characters)}, found "
                             f"{repr(found) if found else 'the end of the file: it is cut short'}")
        self.at += 1
        return found

    def elements(self):
        self.at += 1  # [
        if self.next_character() == "]":
            self.at += 1
            return
        while True:
            self.next_character()
            yield self.place(), self.value()
            if self.expect(",]") == "]":
                return

    def rows(self):
        """(place, row)"""
        if self.next_character() == "[":
            for number, (line, value) in enumerate(self.elements(), 1):
                yield f"{self.path}, line {line}, element {number}", value
            if self.next_character():
                raise json_fault(self.path, self.place(), "something follows the end of the array")
            return
        while self.next_character():
            line = self.place()
            yield f"{self.path}, line {line}", self.value()


def parquet_rows(path, field):
    purpose = f"{path}: reading Parquet files"
    import_package("pyarrow", purpose)
    parquet = import_package("pyarrow.parquet", purpose)
    number = 0
    with parquet.ParquetFile(path) as file:
        if field not in file.schema_arrow.names:
            raise UserError(f"{path}: no column '{field}' (it has {listed(file.schema_arrow.names)}); name it with --text-field")
        for batch in file.iter_batches(batch_size=1024, columns=[field]):
            for value in batch.column(0):
                number += 1
                try:
                    yield f"{path}, row {number}", {field: value.as_py()}
                except UnicodeDecodeError as error:
                    raise UserError(f"{path}, row {number}: not valid {error.encoding}") from None


def hugging_face_rows(name, config, split):
    """Streams a dataset of the hub: nothing is stored on the disk."""
    datasets = import_package("datasets", "--hf-dataset")
    for number, row in enumerate(datasets.load_dataset(name, config, split=split, streaming=True), 1):
        yield f"dataset {name}, row {number}", row
