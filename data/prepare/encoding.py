"""Encodes the documents of a corpus in worker processes and writes the shards, for prepare.py.

The shards depend neither on the number of workers nor on which of them is faster.
"""
import collections

from corpus import pieces_at_newlines
from documents import Document
from mistakes import UserError
from progress import Progress
from shard_files import ShardWriter
from tokenization import load_tokenizer
from workers import in_order

JOB_CHARACTERS = 1 << 20     # text handed to a worker at a time
PIECE_CHARACTERS = 1 << 18   # a long document is encoded in pieces of about this size

Piece = collections.namedtuple("Piece", "split starts_document content is_html path")


def encoding_jobs(corpus, splittable):
    """Lists of pieces of about JOB_CHARACTERS: long documents are cut, short ones grouped."""
    job, size = [], 0
    for split, document in corpus.with_splits():
        cut = splittable and not document.is_html
        contents = pieces_at_newlines(document.content, PIECE_CHARACTERS) if cut else [document.content]
        for index, content in enumerate(contents):
            job.append(Piece(split, index == 0, content, document.is_html, document.path))
            size += len(content)
            if size >= JOB_CHARACTERS:
                yield job
                job, size = [], 0
    if job:
        yield job


def encoder(source):
    """What a worker process does with jobs: returns [(split, documents, bytes of text, tokens as bytes)], bytes read."""
    tokenizer = load_tokenizer(source)

    def encode_job(job):
        results, read = [], 0
        for piece in job:
            text = Document(piece.content, piece.is_html, piece.path).text()
            size = len(text.encode())
            read += len(piece.content.encode()) if piece.is_html else size
            tokens = tokenizer.encode(text, piece.starts_document)
            results.append((piece.split, int(piece.starts_document), size, tokens))
        return results, read

    return encode_job


def encode(corpus, tokenizer, outputs, arguments):
    """Writes all shards and returns the manifest's statistics of each split."""
    writers = {split: ShardWriter(outputs, split, tokenizer.vocabulary_size, tokenizer.hash, arguments.shard_tokens)
               for split in ("train", "val")}
    counts = {split: {"documents": 0, "bytes": 0} for split in writers}
    progress = Progress("encode", corpus.total_bytes)
    jobs = encoding_jobs(corpus, tokenizer.splittable)
    for results, read in in_order(("encoding", "encoder", (tokenizer.source,)), jobs, arguments.workers):
        for split, documents, size, tokens in results:
            counts[split]["documents"] += documents
            counts[split]["bytes"] += size
            writers[split].write(tokens)
        progress.add(read)
    progress.finish()
    for split, writer in writers.items():
        writer.close()
        tokens = sum(shard["tokens"] for shard in writer.shards)
        counts[split].update(tokens=tokens, bytes_per_token=round(counts[split]["bytes"] / max(tokens, 1), 4),
                             shards=writer.shards)
    check_splits(counts, arguments)
    return counts


def check_splits(counts, arguments):
    if counts["train"]["documents"] == 0:
        raise UserError("no document is left to train on; give more input or a smaller --val-fraction")
    if counts["val"]["documents"] == 0 and arguments.val_fraction > 0:
        raise UserError("no document fell into the validation set; raise --val-fraction, pass --val-files, or "
                        "--val-fraction 0 for none")
