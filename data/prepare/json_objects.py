"""JSON files that are read whole: what is wrong with one is one line that names it."""
import json

from mistakes import UserError, one_line
from regular_files import read_bytes


def read_json(path):
    try:
        content = read_bytes(path)
    except OSError as error:
        raise UserError(f"{path}: can't be read: {error.strerror or one_line(error)}") from None
    return parse_json(content, path)


def parse_json(content, path):
    """content: the bytes of the file."""
    try:
        return json.loads(content.decode())
    except RecursionError:
        raise UserError(f"{path}: no JSON that can be read: nested too deeply") from None
    except ValueError as error:
        reason = "is empty" if not content else "begins with a byte order mark" if content.startswith(b"\xef\xbb\xbf") else one_line(error)
        raise UserError(f"{path}: no JSON: {reason}") from None


def parse_object(content, path):
    return the_object(parse_json(content, path), path)


def read_object(path):
    return the_object(read_json(path), path)


def the_object(value, path):
    if not isinstance(value, dict):
        raise UserError(f"{path}: must be a JSON object, and is {'a list' if isinstance(value, list) else json.dumps(value)[:60]}")
    return value
