"""Tokenizers of Hugging Face models for prepare.py: tokenizer.json, read by the library that writes it."""
import array
import functools
import json
import os

from json_objects import parse_object
from mistakes import UserError, import_package, one_line
from shard_files import fnv1a_64, type_code_for
from tokenizer_files import IDS, TEXTS, begin_and_end


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
        parse_object(content, path)  # says what is wrong with it in fewer words
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
        """The begin token, else the end token, that the files beside this one name."""
        begin, end = begin_and_end(self.source, self.tokenizer.token_to_id, self.has_token)
        if begin is None and end is None:
            raise UserError(f"{self.source}: none of {', '.join(TEXTS + IDS)} beside it names a begin or end token to separate "
                            "documents")
        return end if begin is None else begin

    def has_token(self, index):
        return 0 <= index < self.vocabulary_size and self.tokenizer.id_to_token(index) is not None

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
