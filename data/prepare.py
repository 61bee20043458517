#!/usr/bin/env python3
"""Turn text into token shards: PREFIX_train_000000.bin …, PREFIX_val_000000.bin …, PREFIX.model and PREFIX.json.
Notes them in data/cache/latest.json as the data set that train_qat takes when no other is named.

Inputs are files, directories or globs of .txt .md .rst .html .jsonl .json (objects one after another, or an array of
them), all also .gz, and .parquet; or a dataset of the Hugging Face hub. One file is one document, except with
--document-separator and in JSON and Parquet, where a row is one. UTF-16 and UTF-32 are recognised.

Tokens: every document is preceded by the tokenizer's begin token (SentencePiece: bos, id 1; GPT-2: <|endoftext|>; of a
tokenizer.json the one that the files beside it name, else the end token), and follows the previous one without padding. White space is kept as it is, so decoding gives the text back.

Hold-out: whole documents go to the validation set, chosen by the hash of their content (so the choice doesn't depend on
order, file names or machine); of a single document, or where documents are too unequal, the last part of the longest.
The tokenizer never sees held-out text.
"""
import argparse
import json
import os
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # of the checkout
sys.path.insert(0, os.path.join(ROOT, "data", "prepare"))

import hold_out  # noqa: E402
import workers  # noqa: E402
from command_line import OneLineParser, begin, path_name, run  # noqa: E402
from corpus import Corpus  # noqa: E402
from encoding import encode  # noqa: E402
from findings import Findings  # noqa: E402
from mistakes import UserError, describe  # noqa: E402
from outputs import OutputFile, discard_all  # noqa: E402
from shard_files import Outputs, check_platform  # noqa: E402
from regular_files import check_regular  # noqa: E402
from tokenization import LEAST_VOCABULARY, load_tokenizer, train_sentencepiece  # noqa: E402
from tokenizer_files import tokenizer_file  # noqa: E402


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
                    else "end of the single document" if corpus.cuts and corpus.single
                    else "end of the longest document" if corpus.cuts else "documents by content hash",
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
    # Shared: others that end just now note theirs before or after.
    with OutputFile(record, "--record", overwrite=True, shared=True) as file:
        file.write((json.dumps(latest, indent=2) + "\n").encode())


def check_record(record):
    """UserError before the work: what is there is no record of an earlier run."""
    if not os.path.lexists(record):
        return
    try:
        check_regular(record)
        with open(record, encoding="utf-8") as file:
            known = json.load(file)
        if isinstance(known, dict) and "train" in known:
            return
    except (ValueError, RecursionError):
        pass
    raise UserError(f"--record {record}: is there, and no record of what was prepared last; name another file, or remove it")


def say_what_is_cut(corpus):
    share = f"its last {100 * corpus.hold_out.share:.3g}%"
    if corpus.single:
        print(f"a single document: {share} is the validation set", file=sys.stderr)
    else:
        print(f"no whole document has about the size to hold out: of the longest, {corpus.longest_path}, {share} is the "
              "validation set", file=sys.stderr)


def report(corpus, counts, outputs, arguments):
    """The last lines; what is a warning or a note goes to stderr."""
    corpus.findings.print()
    if corpus.left_out:
        print(f"left out of training: {corpus.left_out} documents equal to a validation document", file=sys.stderr)
    warning = hold_out.warning(counts, arguments.val_fraction, corpus.validation_files)
    if warning:
        print(warning, file=sys.stderr)
    total = sum(count["bytes"] for count in counts.values())
    for split in "train", "val":
        count = counts[split]
        print(f"{split}: {count['documents']} documents, {count['bytes']} bytes ({100 * count['bytes'] / total:.3g}%), "
              f"{count['tokens']} tokens ({count['bytes_per_token']:.2f} bytes/token) in {len(count['shards'])} shards "
              f"{outputs.prefix}_{split}_*.bin")


def prepare(arguments, outputs):
    corpus = Corpus(arguments, Findings())
    corpus.scan()
    if corpus.cuts:
        say_what_is_cut(corpus)
    tokenizer = choose_tokenizer(corpus, outputs, arguments)
    counts = encode(corpus, tokenizer, outputs, arguments)
    write_manifest(outputs, tokenizer, counts, corpus, arguments)
    outputs.commit()
    if arguments.record:
        try:
            record_latest(arguments.record, outputs.prefix, tokenizer, counts)
        except (UserError, OSError) as error:  # the work is done all the same
            print(f"warning: these outputs are not noted as those prepared last: {describe(error)}", file=sys.stderr)
    report(corpus, counts, outputs, arguments)


def unescape(text):
    return text.replace("\\n", "\n").replace("\\f", "\f").replace("\\t", "\t")


def parse_arguments():
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("inputs", nargs="*", metavar="INPUT", help="file, directory or glob")
    add("-o", "--output", required=True, type=path_name, metavar="PREFIX", help="start of all output names, e.g. data/cache/novels")
    add("--record", metavar="FILE", default=os.path.join(ROOT, "data", "cache", "latest.json"),
        help="where to note these outputs as those prepared last, which train_qat takes without -i; '' for nowhere "
             "(data/cache/latest.json)")
    add("--overwrite", action="store_true", help="replace the outputs of an earlier run with the same prefix")
    add("--tokenizer", type=path_name, metavar="FILE", help="SentencePiece .model or tokenizer.json to use, "
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
    if not LEAST_VOCABULARY <= arguments.vocab_size < 2**31:
        parser.error(f"--vocab-size must be at least {LEAST_VOCABULARY} (256 bytes, control tokens and the characters of the text) and "
                     "below 2147483648")
    for name in "workers", "train_sample_mb", "max_documents":
        value = getattr(arguments, name)
        if value is not None and not 0 < value < 2**40:
            parser.error(f"--{name.replace('_', '-')} must be a positive number, below a million millions")
    try:
        "".encode(arguments.encoding)
    except Exception:  # LookupError, mostly; the encoding called "undefined" raises another
        parser.error(f"--encoding {arguments.encoding}: unknown encoding")
    if arguments.document_separator == "":
        parser.error("--document-separator: is empty")


def main():
    arguments = parse_arguments()
    outputs = None

    def clean_up():
        workers.kill_all()
        discard_all()
        if outputs:
            outputs.discard()
        return f"{arguments.output}*" if outputs and outputs.complete else ""

    def work():
        nonlocal outputs
        check_platform()
        if arguments.record:
            check_record(arguments.record)
        arguments.tokenizer = tokenizer_file(arguments.tokenizer)
        outputs = Outputs(arguments.output, arguments.overwrite, keep=arguments.tokenizer)
        prepare(arguments, outputs)

    return run("prepare.py", work, clean_up, "use fewer --workers or a smaller --train-sample-mb")


if __name__ == "__main__":
    begin("prepare.py")
    sys.exit(main())
