"""JSON that others have written, perhaps by halves: files of one value, and of a record a line."""
import json
import math

from errors import UserError
from regular_files import read_bytes  # of data/prepare, where errors looks


def is_finite(value):
    """Whether it is a number that is one in float64 too, not NaN."""
    try:
        return type(value) in (int, float) and math.isfinite(value)
    except OverflowError:  # an integer of hundreds of digits
        return False


def parse(text):
    """The value of a JSON text, or of its bytes in UTF-8. ValueError, whatever is wrong with it."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_value(path):
    """Of a file. OSError, ValueError: it can't be had."""
    return parse(read_bytes(path).decode("utf-8"))


def read_json_lines(path, check, expected):
    """Yields (number of the line, record) of every line that is not empty. check(record) raises ValueError, KeyError, TypeError or
    OverflowError for what is none; expected: what a record is, and what to do. A last line that nothing ends may be half of one,
    which a program is writing."""
    *lines, unfinished = read_bytes(path).split(b"\n")
    for number, line in enumerate([*lines, unfinished], 1):
        if not line.strip():
            continue
        try:
            record = parse(line.decode("utf-8"))
            check(record)
        except (ValueError, KeyError, TypeError, OverflowError):
            if number > len(lines):
                return
            raise UserError(f"{path}, line {number}: not {expected}") from None
        yield number, record
