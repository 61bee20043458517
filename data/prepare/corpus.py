"""The documents of a corpus, divided into training and validation: prepare.py's hold-out and sampling."""
import hashlib
import itertools
import os
import zlib

from documents import Document, UserError, find_files, read_documents, read_hugging_face

SAMPLE_CHARACTERS = 1 << 14  # granularity of the tokenizer's training sample


def content_hash(content):
    digest = hashlib.blake2b(content.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


class Corpus:
    """All documents, each with its split. Files are read anew on every pass, so memory doesn't grow with them."""

    def __init__(self, arguments):
        self.arguments = arguments
        self.validation_files = find_files(arguments.val_files or [])
        held_out = {os.path.realpath(path) for path in self.validation_files}
        self.files = [path for path in find_files(arguments.inputs) if os.path.realpath(path) not in held_out]
        self.limit = int(arguments.val_fraction * 2**64)
        # Found by scan(): what to hold out when the fraction alone would take nothing or everything.
        self.smallest = self.largest = None
        self.total_bytes = None
        self.single = False
        self.validation_hashes = set()
        self.left_out = 0

    def documents(self):
        arguments = self.arguments
        if arguments.hf_dataset:
            source = read_hugging_face(arguments.hf_dataset, arguments.hf_config, arguments.hf_split,
                                       arguments.text_field)
        else:
            source = itertools.chain.from_iterable(map(self.read, self.files))
        return itertools.islice(source, arguments.max_documents)

    def read(self, path):
        return read_documents(path, self.arguments.text_field, self.arguments.document_separator,
                              self.arguments.encoding)

    def scan(self):
        """One pass over the files: their size, and what the hold-out needs. A streamed dataset isn't read twice."""
        validation_bytes = 0
        for document in itertools.chain.from_iterable(map(self.read, self.validation_files)):
            self.validation_hashes.add(content_hash(document.content))
            validation_bytes += len(document.content.encode())
        if self.validation_files and not self.validation_hashes:
            raise UserError("--val-files: these files hold no text")
        if self.arguments.hf_dataset:
            return
        documents = held_out = 0
        self.total_bytes = validation_bytes
        for document in self.documents():
            value = content_hash(document.content)
            documents += 1
            held_out += value < self.limit
            self.total_bytes += len(document.content.encode())
            self.smallest = value if self.smallest is None else min(self.smallest, value)
            self.largest = value if self.largest is None else max(self.largest, value)
        if documents == 0:
            raise UserError("the input holds no text to train on")
        if self.validation_files or self.limit == 0:
            return
        self.single = documents == 1
        if documents > 1 and self.smallest == self.largest:
            raise UserError(f"all {documents} documents have the same content, so none can be held out; "
                            "pass --val-files or --val-fraction 0")
        if held_out == 0:
            self.limit = self.smallest + 1
        elif held_out == documents:
            self.limit = self.largest

    def with_splits(self):
        """Yields (split, document); a validation document that is also among the rest is left out of training."""
        for document in itertools.chain.from_iterable(map(self.read, self.validation_files)):
            yield "val", document
        self.left_out = 0
        for document in self.documents():
            if self.single:
                yield from self.cut(document)
            elif self.validation_files:
                if content_hash(document.content) in self.validation_hashes:
                    self.left_out += 1
                else:
                    yield "train", document
            else:
                yield "val" if content_hash(document.content) < self.limit else "train", document

    def cut(self, document):
        """A single document: its last part is held out, from the start of a line, or else of a word."""
        text = document.text()
        place = int(len(text) * (1 - self.arguments.val_fraction))
        for boundary in "\n", " ":
            found = text.find(boundary, place)
            if 0 < found < len(text) - 1:
                place = found + 1
                break
        place = min(max(place, 1), len(text) - 1)
        if len(text) < 2:
            raise UserError(f"{document.path}: one character can't be divided into training and validation text")
        yield "train", Document(text[:place], False, document.path)
        yield "val", Document(text[place:], False, document.path)

    def tokenizer_sample(self, size):
        """Lines of the training split, about `size` bytes, spread evenly and chosen the same on every run."""
        rate = 1.0 if self.total_bytes is None else min(1.0, size / self.total_bytes)
        taken = 0
        for number, (split, document) in enumerate(self.with_splits()):
            if split != "train":
                continue
            for index, piece in enumerate(pieces_at_newlines(document.text(), SAMPLE_CHARACTERS)):
                if zlib.crc32(f"{number} {index}".encode()) >= rate * 2**32:
                    continue
                taken += len(piece.encode())
                yield from piece.split("\n")
                if taken >= size:
                    return


def pieces_at_newlines(text, size):
    """Cuts text into pieces of at least `size` characters; every one but the first starts with a newline."""
    begin = 0
    while begin < len(text):
        end = text.find("\n", begin + size)
        end = len(text) if end < 0 else end
        yield text[begin:end]
        begin = end
