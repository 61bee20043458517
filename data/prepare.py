#!/usr/bin/env python3
"""Turn text into token shards: PREFIX_train_000000.bin …, PREFIX_val_000000.bin …, PREFIX.model and PREFIX.json.
Notes them in data/cache/latest.json as the data set that train_qat takes when no other is named.

Inputs are files, directories or globs of .txt .md .rst .html .jsonl .json (one object a line), all also .gz, and
.parquet; or a dataset of the Hugging Face hub. One file is one document, except with --document-separator and in
JSON lines and Parquet, where a row is one.

Tokens: every document is preceded by the tokenizer's begin token (SentencePiece: bos, id 1; GPT-2: <|endoftext|>; of a
tokenizer.json the one that the files beside it name, else the end token), and follows the previous one without padding. White space is kept as it is, so decoding gives the text back.

Hold-out: whole documents go to the validation set, chosen by the hash of their content (so the choice doesn't depend on
order, file names or machine); of a single document, its last part. The tokenizer never sees held-out text.
"""
import argparse
import json
import os
import signal
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # of the checkout
sys.path.insert(0, os.path.join(ROOT, "data", "prepare"))

from command_line import OneLineParser, describe  # noqa: E402
from corpus import Corpus  # noqa: E402
from documents import UserError  # noqa: E402
from encoding import encode  # noqa: E402
from shard_files import Outputs, check_platform  # noqa: E402
from tokenization import load_tokenizer, tokenizer_file, train_sentencepiece  # noqa: E402


def choose_tokenizer(corpus, outputs, arguments):
    """Loads or trains it; a SentencePiece model is also written beside the shards."""
    if not arguments.tokenizer:
        started = time.monotonic()
        sample = corpus.tokenizer_sample(int(arguments.train_sample_mb * 1e6))
        source = train_sentencepiece(sample, arguments.vocab_size)
    else:
        source = arguments.tokenizer
    tokenizer = load_tokenizer(source)
    if not arguments.tokenizer:
        print(f"tokenizer: trained {tokenizer.vocabulary_size} pieces in {time.monotonic() - started:.1f} s",
              file=sys.stderr)
    if tokenizer.model and not outputs.is_kept(outputs.prefix + ".model"):
        outputs.create(".model").write(tokenizer.model)
    return tokenizer


def write_manifest(outputs, tokenizer, counts, corpus, arguments):
    manifest = {
        "tokenizer": {
            "kind": tokenizer.kind,
            "file": os.path.basename(outputs.prefix) + ".model" if tokenizer.model else
                    os.path.abspath(tokenizer.source) if tokenizer.kind == "hugging_face" else None,
            "vocabulary_size": tokenizer.vocabulary_size,
            "hash": f"0x{tokenizer.hash:016x}",
            "document_start_id": tokenizer.start_id,
        },
        "train": counts["train"],
        "val": counts["val"],
        "held_out": "val_files" if corpus.validation_files else "none" if arguments.val_fraction == 0
                    else "end of the single document" if corpus.single else "documents by content hash",
        "duplicates_of_validation_left_out": corpus.left_out,
        "arguments": {name: value for name, value in vars(arguments).items() if name != "record"},
    }
    outputs.create(".json").write((json.dumps(manifest, indent=2) + "\n").encode())


def record_latest(record, prefix, tokenizer, counts):
    """Notes what was prepared last, which train_qat takes without -i. Paths inside the checkout are relative to the
    record's folder, so a checkout can be moved; others are absolute."""
    folder = os.path.dirname(os.path.abspath(record))

    def recorded(path):
        path = os.path.abspath(path)
        inside = os.path.commonpath([path, ROOT]) == os.path.commonpath([folder, ROOT]) == ROOT
        return os.path.relpath(path, folder) if inside else path

    latest = {"train": recorded(f"{prefix}_train_*.bin"),
              "validation": recorded(f"{prefix}_val_*.bin") if counts["val"]["shards"] else None,
              "tokenizer": None}
    if tokenizer.model:
        latest["tokenizer"] = recorded(f"{prefix}.model")
    elif tokenizer.kind == "hugging_face" and tokenizer.trainer_reads_it():
        latest["tokenizer"] = recorded(tokenizer.source)
    else:
        print("tokenizer: not one that train_qat reads, so it will show no sample of text", file=sys.stderr)
    os.makedirs(folder, exist_ok=True)
    with open(f"{record}.partial", "w") as file:
        file.write(json.dumps(latest, indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(f"{record}.partial", record)


def prepare(arguments, outputs):
    corpus = Corpus(arguments)
    corpus.scan()
    if corpus.single:
        print(f"a single document: its last {100 * arguments.val_fraction:g}% is the validation set", file=sys.stderr)
    tokenizer = choose_tokenizer(corpus, outputs, arguments)
    counts = encode(corpus, tokenizer, outputs, arguments)
    write_manifest(outputs, tokenizer, counts, corpus, arguments)
    outputs.commit()
    if arguments.record:
        record_latest(arguments.record, outputs.prefix, tokenizer, counts)
    if corpus.left_out:
        print(f"left out of training: {corpus.left_out} documents equal to a validation document", file=sys.stderr)
    for split in "train", "val":
        count = counts[split]
        print(f"{split}: {count['documents']} documents, {count['bytes'] / 1e6:.2f} MB, {count['tokens']} tokens "
              f"({count['bytes_per_token']:.2f} bytes/token) in {len(count['shards'])} shards "
              f"{outputs.prefix}_{split}_*.bin")


def unescape(text):
    return text.replace("\\n", "\n").replace("\\f", "\f").replace("\\t", "\t")


def parse_arguments():
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("inputs", nargs="*", metavar="INPUT", help="file, directory or glob")
    add("-o", "--output", required=True, metavar="PREFIX", help="start of all output names, e.g. data/cache/novels")
    add("--record", metavar="FILE", default=os.path.join(ROOT, "data", "cache", "latest.json"),
        help="where to note these outputs as those prepared last, which train_qat takes without -i; '' for nowhere "
             "(data/cache/latest.json)")
    add("--overwrite", action="store_true", help="replace the outputs of an earlier run with the same prefix")
    add("--tokenizer", metavar="FILE", help="SentencePiece .model or tokenizer.json to use, "
        "a model's folder with one of them, or 'gpt2'; default: train one")
    add("--vocab-size", type=int, default=8192, help="of a trained tokenizer (8192)")
    add("--train-sample-mb", type=float, default=50, help="text to train the tokenizer on, in MB (50)")
    add("--val-fraction", type=float, default=0.02, help="of the documents to hold out; 0: none (0.02)")
    add("--val-files", nargs="+", metavar="GLOB", help="hold out exactly these files, among INPUT or not")
    add("--text-field", default="text", help="field of JSON lines, Parquet and datasets (text)")
    add("--document-separator", type=unescape, metavar="TEXT", help=r"divides text files into documents; \n \f \t work")
    add("--encoding", default="utf-8-sig", help="of text files (utf-8)")
    add("--max-documents", type=int, metavar="N", help="stop after N documents")
    add("--hf-dataset", metavar="NAME", help="stream this Hugging Face dataset instead of files")
    add("--hf-config", metavar="NAME", help="its configuration")
    add("--hf-split", metavar="NAME", default="train", help="its split (train)")
    add("--shard-tokens", type=int, default=100_000_000, help="most tokens in a shard (100000000)")
    add("--workers", type=int, default=len(os.sched_getaffinity(0)), help="encoding processes (all cores)")
    arguments = parser.parse_args()
    check_arguments(parser, arguments)
    return arguments


def check_arguments(parser, arguments):
    if bool(arguments.inputs) == bool(arguments.hf_dataset):
        parser.error("give either INPUT files or --hf-dataset")
    if not 0 <= arguments.val_fraction < 1:
        parser.error("--val-fraction must be at least 0 and below 1")
    if not 1 <= arguments.shard_tokens < 2**31:
        parser.error("--shard-tokens must be from 1 to 2147483647")
    if arguments.vocab_size < 300:
        parser.error("--vocab-size must be at least 300 (256 bytes, control tokens and the characters of the text)")
    for name in "workers", "train_sample_mb", "max_documents":
        value = getattr(arguments, name)
        if value is not None and value <= 0:
            parser.error(f"--{name.replace('_', '-')} must be positive")
    try:
        "".encode(arguments.encoding)
    except LookupError:
        parser.error(f"--encoding {arguments.encoding}: unknown encoding")


def main():
    arguments = parse_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the partial files are removed
    outputs = None
    try:
        check_platform()
        arguments.tokenizer = tokenizer_file(arguments.tokenizer)
        outputs = Outputs(arguments.output, arguments.overwrite, keep=arguments.tokenizer)
        prepare(arguments, outputs)
    except (UserError, OSError, MemoryError) as error:
        print(f"prepare.py: error: {describe(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("prepare.py: interrupted; nothing was written", file=sys.stderr)
        return 130
    finally:
        if outputs:
            outputs.discard()
    return 0


if __name__ == "__main__":
    sys.exit(main())
