#!/usr/bin/env python3
"""Turn a checkpoint into files that other programs load.

    scripts/export.py out/mine --to gguf -o out/mine_gguf --tokenizer data/cache/books.model     for llama.cpp
    scripts/export.py out/mine --to hf -o out/mine_hf --tokenizer data/cache/books.model         for transformers
    scripts/export.py out/mine --to gguf -o out/mine_gguf --tokenizer models/the_one_that_training_began_with

CHECKPOINT is a step_######## directory, or the output directory of a run: then its latest. Its levels and scales are
written exactly, and full-precision weights as they are: the closing line says by how much any weight differs, and it must
be 0 but where --dtype asks for less. OUT is new and whole, or absent. Memory: about that of the files written.
"""
import argparse
import contextlib
import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(ROOT, "scripts"))

from errors import OneLineParser, UserError, begin, one_line, path_name, run  # noqa: E402
from outputs import OutputDirectory  # noqa: E402

FORMATS = ("hf", "gguf", "gguf-f32", "compressed-tensors")
PACKAGES = "safetensors gguf numpy ml_dtypes xxhash sentencepiece protobuf"


def parse_arguments():
    parser = OneLineParser(prog="export.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=path_name, metavar="CHECKPOINT", help="with --check: the settings of a run, as its manifest.json has them")
    parser.add_argument("--to", required=True, choices=FORMATS)
    parser.add_argument("-o", "--output", type=path_name, metavar="OUT", required=True, help="directory to make")
    parser.add_argument("--tokenizer", type=path_name, metavar="PATH",
                        help="of the training data: a SentencePiece model, a tokenizer.json, or a folder with one of them")
    parser.add_argument("--check", action="store_true", help="write nothing; say whether a run with these settings can be exported")
    parser.add_argument("--dtype", choices=("fp32", "fp16", "bf16"),
                        help="hf: of the weights; fp16 and bf16 round them (default: fp32)")
    parser.add_argument("--type", metavar="TYPE", help="gguf: the block type of the layers' matrices (default: the smallest exact)")
    return parser.parse_args()


def writer_of(arguments):
    """The module of a format, and what its check and write want besides checkpoint and tokenizer."""
    if arguments.to == "hf":
        from formats import hugging_face
        return hugging_face, (), (arguments.dtype or "fp32",)
    if arguments.to == "compressed-tensors":
        from formats import compressed_tensors
        return compressed_tensors, (), ()
    from formats import gguf_file
    return gguf_file, (arguments.to == "gguf", arguments.type), (arguments.to == "gguf", arguments.type)


def size_of(directory):
    return sum(entry.stat().st_size for entry in os.scandir(directory))


def export(arguments):
    from formats import tokenizer as tokenizers
    from formats.checkpoint import Checkpoint, UntrainedModel
    from formats.report import Report

    if arguments.dtype and arguments.to != "hf":
        raise UserError(f"--dtype: is for --to hf; --to {arguments.to} has its own types")
    if arguments.type and arguments.to != "gguf":
        raise UserError("--type: is for --to gguf")
    if os.path.lexists(arguments.output):
        raise UserError(f"-o {arguments.output}: is there already; name a new directory")
    checkpoint = (UntrainedModel if arguments.check else Checkpoint)(arguments.checkpoint)
    tokenizer = tokenizers.load(arguments.tokenizer, checkpoint.vocabulary) if arguments.tokenizer else None
    module, of_check, of_write = writer_of(arguments)
    module.check(checkpoint, tokenizer, *of_check)
    if arguments.check:
        return
    report = Report()
    with OutputDirectory(arguments.output, "-o", advice="name a new directory") as partial, own_errors():
        module.write(checkpoint, partial, tokenizer, report, *of_write)
        if report.largest > 0 and not arguments.dtype:
            raise AssertionError(f"a weight differs by {report.largest:g}")
    print(report.text(arguments.output, size_of(arguments.output)))


@contextlib.contextmanager
def own_errors():
    """Of a format's library: a full disk, among others."""
    try:
        yield
    except Exception as error:
        if type(error).__name__ == "SafetensorError":
            raise OSError(None, one_line(error)) from None
        raise


if __name__ == "__main__":
    begin("export.py")
    arguments = parse_arguments()
    run("export.py", lambda: export(arguments), "make a Python that has what exports need: python3 -m venv out/tools && "
                                                f"out/tools/bin/pip install {PACKAGES}")
