#!/usr/bin/env python3
"""Turn a checkpoint into files that other programs load.

    scripts/export.py out/mine --to gguf -o out/mine_gguf --tokenizer data/cache/books.model     for llama.cpp
    scripts/export.py out/mine --to hf -o out/mine_hf --tokenizer data/cache/books.model         for transformers

CHECKPOINT is a step_######## directory, or the output directory of a run: then its latest. Weights are those that the
model multiplies with, bit by bit: the closing line says by how much any weight differs, and it must be 0 but where --dtype
asks for less. OUT is new and whole, or absent.
"""
import argparse
import os
import shutil
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(ROOT, "scripts"))

from errors import UserError  # noqa: E402

FORMATS = ("hf", "gguf", "gguf-f32", "compressed-tensors")
PACKAGES = "safetensors gguf numpy ml_dtypes sentencepiece protobuf"


def parse_arguments():
    parser = argparse.ArgumentParser(prog="export.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", metavar="CHECKPOINT")
    parser.add_argument("--to", required=True, choices=FORMATS)
    parser.add_argument("-o", "--output", metavar="OUT", required=True, help="directory to make")
    parser.add_argument("--tokenizer", metavar="FILE", help="SentencePiece model of the training data")
    parser.add_argument("--dtype", choices=("fp32", "fp16", "bf16"),
                        help="hf: of the weights; fp16 and bf16 round them (default: fp32)")
    parser.add_argument("--type", metavar="TYPE", help="gguf: the block type of the layers' matrices (default: the smallest exact)")
    return parser.parse_args()


def write(arguments, checkpoint, directory, tokenizer, report):
    if arguments.to == "hf":
        from formats import hugging_face
        hugging_face.write(checkpoint, directory, tokenizer, report, arguments.dtype or "fp32")
    elif arguments.to == "compressed-tensors":
        from formats import compressed_tensors
        compressed_tensors.write(checkpoint, directory, tokenizer, report)
    else:
        from formats import gguf_file
        gguf_file.write(checkpoint, directory, tokenizer, report, arguments.to == "gguf", arguments.type)


def size_of(directory):
    return sum(entry.stat().st_size for entry in os.scandir(directory))


def open_to_readers(directory):
    """tempfile and safetensors make what only the owner reads; give it what the user's umask allows."""
    umask = os.umask(0)
    os.umask(umask)
    os.chmod(directory, 0o777 & ~umask)
    for entry in os.scandir(directory):
        os.chmod(entry.path, 0o666 & ~umask)


def export(arguments):
    from formats import sentencepiece_model
    from formats.checkpoint import Checkpoint
    from formats.report import Report

    if arguments.dtype and arguments.to != "hf":
        raise UserError(f"--dtype: is for --to hf; --to {arguments.to} has its own types")
    if arguments.type and arguments.to != "gguf":
        raise UserError("--type: is for --to gguf")
    if os.path.lexists(arguments.output):
        raise UserError(f"-o {arguments.output}: is there already; name a new directory")
    checkpoint = Checkpoint(arguments.checkpoint)
    tokenizer = sentencepiece_model.load(arguments.tokenizer, checkpoint.vocabulary) if arguments.tokenizer else None
    parent, name = os.path.split(os.path.abspath(arguments.output))
    os.makedirs(parent, exist_ok=True)
    partial = tempfile.mkdtemp(prefix=f".{name}.partial-", dir=parent)
    try:
        report = Report()
        write(arguments, checkpoint, partial, tokenizer, report)
        open_to_readers(partial)
        os.rename(partial, arguments.output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    print(report.text(arguments.output, size_of(arguments.output)))


def main():
    arguments = parse_arguments()
    try:
        export(arguments)
    except ImportError as error:
        sys.exit(fail(f"{error}; make a Python that has what exports need: "
                      f"python3 -m venv out/tools && out/tools/bin/pip install {PACKAGES}"))
    except (UserError, OSError) as error:
        sys.exit(fail(str(error)))


def fail(text):
    print(f"export.py: error: {text}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
