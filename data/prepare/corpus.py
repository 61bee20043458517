"""The documents of a corpus, divided into training and validation: prepare.py's hold-out and sampling."""
import hashlib
import itertools
import os
import zlib

from documents import Reading, find_files, read_documents, read_hugging_face
from hold_out import HoldOut, Survey, cut
from mistakes import UserError

SAMPLE_CHARACTERS = 1 << 14  # granularity of the tokenizer's training sample


def content_hash(content):
    digest = hashlib.blake2b(content.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


class Corpus:
    """All documents, each with its split. Files are read anew on every pass, so memory doesn't grow with them."""

    def __init__(self, arguments, findings):
        self.arguments, self.findings = arguments, findings
        self.reading = Reading(arguments.text_field, arguments.document_separator, arguments.encoding)
        own = os.path.realpath(arguments.output + ".json")
        self.validation_files = find_files(arguments.val_files or [], own)
        held_out = {os.path.realpath(path) for path in self.validation_files}
        self.files = [path for path in find_files(arguments.inputs, own) if os.path.realpath(path) not in held_out]
        self.states = {}  # of files when they were read first
        self.hold_out = HoldOut(int(arguments.val_fraction * 2**64))
        # Found by scan().
        self.single, self.longest_path, self.total_bytes = False, None, None
        self.validation_hashes = set()
        self.left_out = 0

    def documents(self):
        arguments = self.arguments
        if arguments.hf_dataset:
            source = read_hugging_face(arguments.hf_dataset, arguments.hf_config, arguments.hf_split,
                                       arguments.text_field, self.findings)
        else:
            source = itertools.chain.from_iterable(map(self.read, self.files))
        return itertools.islice(source, arguments.max_documents)

    def validation_documents(self):
        return itertools.chain.from_iterable(map(self.read, self.validation_files))

    def read(self, path):
        """The documents of one file; UserError when it is not what it was when it was read first."""
        self.check_unchanged(path)
        yield from read_documents(path, self.reading, self.findings)
        self.check_unchanged(path)

    def check_unchanged(self, path):
        status = os.stat(path)
        state = status.st_size, status.st_mtime_ns, status.st_ino
        if self.states.setdefault(path, state) != state:
            raise UserError(f"{path}: has changed while it was read; start again when nobody writes it")

    def scan(self):
        """One pass over the files: their size, and what the hold-out needs. A streamed dataset isn't read twice."""
        validation_bytes = 0
        for document in self.validation_documents():
            self.validation_hashes.add(content_hash(document.content))
            validation_bytes += len(document.content.encode())
        if self.validation_files and not self.validation_hashes:
            raise UserError("--val-files: these files hold no text")
        if self.arguments.hf_dataset:
            return
        survey = Survey(self.arguments.val_fraction)
        for document in self.documents():
            survey.add(content_hash(document.content), len(document.content.encode()), document.path)
        if survey.documents == 0:
            raise UserError("the input holds no text to train on")
        self.single, self.longest_path = survey.documents == 1, survey.longest[2]
        self.total_bytes = validation_bytes + survey.bytes
        if not self.validation_files:
            self.hold_out = survey.choose()

    @property
    def cuts(self):
        """Whether the end of one document is held out, instead of whole ones."""
        return self.hold_out.cut is not None

    def with_splits(self):
        """Yields (split, document); a validation document that is also among the rest is left out of training."""
        for document in self.validation_documents():
            yield "val", document
        self.left_out = 0
        for document in self.documents():
            value = content_hash(document.content)
            if self.validation_files:
                if value in self.validation_hashes:
                    self.left_out += 1
                else:
                    yield "train", document
            elif value == self.hold_out.cut:
                train, val = cut(document, self.hold_out.share)
                yield "train", train
                yield "val", val
            else:
                yield "val" if value < self.hold_out.limit else "train", document

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
