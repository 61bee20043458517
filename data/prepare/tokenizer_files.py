"""Which file a tokenizer is, of which kind, and what documents begin and end with: for prepare.py and for exports alike, and as
data/tokenizer.h and data/begin_and_end.h have it for the trainer."""
import os

from json_objects import read_object
from mistakes import UserError

MARK = b"\xef\xbb\xbf"  # of UTF-8; no JSON has one, but text editors write it
TEXTS, IDS = ("tokenizer_config.json", "special_tokens_map.json"), ("config.json", "generation_config.json")


def tokenizer_file(path):
    """The file of --tokenizer: of a folder its tokenizer.json, else its tokenizer.model."""
    if not path or not os.path.isdir(path):
        return path
    for name in "tokenizer.json", "tokenizer.model":
        if os.path.exists(os.path.join(path, name)):
            return os.path.join(path, name)
    raise UserError(f"--tokenizer {path}: holds neither tokenizer.json nor tokenizer.model")


def is_json(content):
    """Of a tokenizer's bytes: whether they are a tokenizer.json. A SentencePiece model is a binary message and begins with the
    byte of its first field, never with a brace."""
    return content.removeprefix(MARK).lstrip(b" \t\r\n").startswith(b"{")


def check_sentencepiece(content, name):
    """UserError unless these bytes can be a SentencePiece model: a protobuf message of pieces (field 1), how it was trained (2)
    and how it normalizes text (3). SentencePiece itself takes one that was cut between fields, with other settings."""
    at, found = 0, set()

    def number():
        nonlocal at
        value = 0
        for shift in range(0, 64, 7):
            value |= (content[at] & 0x7f) << shift
            at += 1
            if content[at - 1] < 0x80:
                break
        return value

    try:
        while at < len(content):
            field, kind = divmod(number(), 8)
            length = number()
            at += length
            found.add(field if kind == 2 and at <= len(content) else None)
    except IndexError:
        found.add(None)
    if None in found or not found >= {1, 2, 3}:
        raise UserError(f"{name}: {'' if content else 'is empty: '}not a SentencePiece model (or one that is damaged or cut short), "
                        "nor a tokenizer.json")


def begin_and_end(path, id_of, has):
    """(begin, end): ids of the tokens that the files beside a tokenizer.json, `path`, name, or None; in the order of
    data/begin_and_end.h. id_of: a token's id by its text, or None; has: whether an id is a token's. UserError."""
    folder = os.path.dirname(path)
    files = {name: os.path.join(folder, name) for name in TEXTS + IDS}
    known = {name: read_object(file) if os.path.exists(file) else {} for name, file in files.items()}
    by_text = TEXTS if "added_tokens_decoder" in known[TEXTS[0]] else TEXTS[::-1]

    def ids(role):
        for name in by_text:
            yield id_of_text(known[name].get(f"{role}_token"), f"{files[name]}: {role}_token", id_of)
        for name in IDS:
            yield known_id(known[name].get(f"{role}_token_id"), f"{files[name]}: {role}_token_id", has)

    candidates = [list(ids(role)) for role in ("bos", "eos")]  # all of them, so that any fault is said
    return tuple(next((token for token in tokens if token is not None), None) for tokens in candidates)


def id_of_text(token, place, id_of):
    """Of what has a token as a text, or as an object with it."""
    text = token["content"] if isinstance(token, dict) and "content" in token else token
    if token is None:
        return None
    if not isinstance(text, str) or not is_text(text):
        raise UserError(f"{place}: must be a text, an object with it as content, or null")
    return id_of(text) if text else None


def is_text(text):
    """JSON can hold half of a surrogate pair."""
    try:
        text.encode()
        return True
    except UnicodeEncodeError:
        return False


def known_id(token, place, has):
    """Of what has a token as an id, or as a list of them."""
    if token is None or token == []:
        return None
    if isinstance(token, list):
        token = token[0]  # the first ends a document, the others turns
    if not isinstance(token, int) or isinstance(token, bool) or not -2**63 <= token < 2**64:
        raise UserError(f"{place}: must be a token's id, a list of ids, or null")
    return token if has(token) else None
