"""Tokenizers of Hugging Face models for prepare.py: tokenizer.json, read by the library that writes it."""
import array
import functools
import json
import os

from mistakes import UserError, import_package, one_line
from shard_files import fnv1a_64, type_code_for

CONFIGURATIONS = "tokenizer_config.json", "special_tokens_map.json", "config.json"


def import_tokenizers(path):
    # Documents are divided among processes already.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    model = os.path.join(os.path.dirname(path), "tokenizer.model")
    hint = f" ({model}, which lies beside it, needs no such package)" if os.path.exists(model) else ""
    return import_package("tokenizers", f"--tokenizer {path}{hint}:")


class HuggingFaceTokenizer:
    """Text that looks like a special token is text. Never in pieces: where a pattern would divide a text depends on what
    surrounds the place."""

    kind, model, splittable = "hugging_face", None, False

    def __init__(self, path, content):
        self.source, self.content = path, content
        tokenizers = import_tokenizers(path)
        try:
            self.tokenizer = tokenizers.Tokenizer.from_str(content.decode())
        except Exception as error:  # the library's only kind; or bytes that are no text
            raise UserError(f"{path}: not a tokenizer.json that tokenizers {tokenizers.__version__} reads: "
                            f"{one_line(error)}") from None
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.tokenizer.encode_special_tokens = True
        # Ids may have gaps.
        self.vocabulary_size = max(self.tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        if self.vocabulary_size == 0:
            raise UserError(f"{path}: has no tokens")
        self.type_code = type_code_for(self.vocabulary_size)
        self.start_id = self.find_start()

    @functools.cached_property
    def hash(self):
        return fnv1a_64(self.content)

    def find_start(self):
        """The begin token, else the end token, that a file beside this one names."""
        folder = os.path.dirname(self.source)
        known = [configuration(os.path.join(folder, name)) for name in CONFIGURATIONS]
        for role in "bos", "eos":
            for values in known:
                for token in self.token_of(values.get(f"{role}_token")), values.get(f"{role}_token_id"):
                    if isinstance(token, list) and token:
                        token = token[0]  # several end a text; the first ends a document
                    if isinstance(token, int) and 0 <= token < self.vocabulary_size:
                        return token
        raise UserError(f"{self.source}: no {' or '.join(CONFIGURATIONS)} beside it names a begin or end token to separate "
                        "documents")

    def token_of(self, token):
        """The id of what tokenizer_config.json has: a text, or an object with it."""
        content = token.get("content") if isinstance(token, dict) else token
        return self.tokenizer.token_to_id(content) if isinstance(content, str) else None

    def encode(self, text, starts_document):
        ids = self.tokenizer.encode(text, add_special_tokens=False).ids
        return array.array(self.type_code, [self.start_id] * starts_document + ids).tobytes()

    def trainer_reads_it(self):
        """Whether data/tokenizers/byte_level_tokenizer.cpp, which reads byte-level BPE, knows all that the file asks for."""
        file = json.loads(self.content)
        model = file["model"]
        dividers = parts_of(file.get("pre_tokenizer"), "pretokenizers")
        return (model.get("type", "BPE") == "BPE"
                and not any(model.get(name) for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix",
                                                         "byte_fallback"))
                and all(part["type"] == "NFC" for part in parts_of(file.get("normalizer"), "normalizers"))
                and any(part["type"] == "ByteLevel" for part in dividers)
                and all(part["type"] in ("ByteLevel", "Digits")
                        or part["type"] == "Split" and part["behavior"] == "Isolated" and not part.get("invert")
                        for part in dividers)
                and not any(token.get(name) for token in file.get("added_tokens") or []
                            for name in ("single_word", "lstrip", "rstrip")))


def parts_of(part, name):
    """The parts of a Sequence, or the one part that there is."""
    if part is None:
        return []
    return part[name] if part["type"] == "Sequence" else [part]


def configuration(path):
    """The object of a JSON file; empty: there is none."""
    try:
        with open(path, encoding="utf-8") as file:
            values = json.load(file)
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise UserError(f"{path}: no JSON: {one_line(error)}") from None
    return values if isinstance(values, dict) else {}
