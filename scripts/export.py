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
import shutil
import signal
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(ROOT, "scripts"))

from errors import OneLineParser, UserError, fail, forgive, import_text, text_of  # noqa: E402

FORMATS = ("hf", "gguf", "gguf-f32", "compressed-tensors")
PACKAGES = "safetensors gguf numpy ml_dtypes xxhash sentencepiece protobuf"


def parse_arguments():
    parser = OneLineParser(prog="export.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="with --check: the settings of a run, as its manifest.json has them")
    parser.add_argument("--to", required=True, choices=FORMATS)
    parser.add_argument("-o", "--output", metavar="OUT", required=True, help="directory to make")
    parser.add_argument("--tokenizer", metavar="PATH",
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


def open_to_readers(directory):
    """tempfile and safetensors make what only the owner reads; give it what the user's umask allows."""
    umask = os.umask(0)
    os.umask(umask)
    os.chmod(directory, 0o777 & ~umask)
    for entry in os.scandir(directory):
        os.chmod(entry.path, 0o666 & ~umask)


def export(arguments):
    from formats import tokenizer as tokenizers
    from formats.checkpoint import Checkpoint, UntrainedModel
    from formats.report import Report

    if arguments.dtype and arguments.to != "hf":
        raise UserError(f"--dtype: is for --to hf; --to {arguments.to} has its own types")
    if arguments.type and arguments.to != "gguf":
        raise UserError("--type: is for --to gguf")
    if not arguments.output:
        raise UserError("-o: names no directory")
    if os.path.lexists(arguments.output):
        raise UserError(f"-o {arguments.output}: is there already; name a new directory")
    checkpoint = (UntrainedModel if arguments.check else Checkpoint)(arguments.checkpoint)
    tokenizer = tokenizers.load(arguments.tokenizer, checkpoint.vocabulary) if arguments.tokenizer else None
    module, of_check, of_write = writer_of(arguments)
    module.check(checkpoint, tokenizer, *of_check)
    if arguments.check:
        return
    report = Report()
    with new_directory(arguments.output) as partial:
        module.write(checkpoint, partial, tokenizer, report, *of_write)
        if report.largest > 0 and not arguments.dtype:
            raise AssertionError(f"a weight differs by {report.largest:g}")
    print(report.text(arguments.output, size_of(arguments.output)))


@contextlib.contextmanager
def new_directory(path):
    """A directory to write into, which becomes `path` when that is done; else nothing is left, whatever happens."""
    parent, name = os.path.split(os.path.abspath(path))
    made = []  # of those above it
    try:
        above = parent
        while not os.path.isdir(above):
            made.append(above)
            above = os.path.dirname(above)
        os.makedirs(parent, exist_ok=True)
        partial = tempfile.mkdtemp(prefix=f".{name}.partial-", dir=parent)
        try:
            yield partial
            open_to_readers(partial)
            os.rename(partial, path)
            made = []
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise UserError(f"-o {path}: cannot be written: {error.strerror or error}") from None
    except Exception as error:
        if type(error).__name__ == "SafetensorError":  # a full disk, among others
            raise UserError(f"-o {path}: cannot be written: {error}") from None
        raise
    finally:
        for directory in made:
            with contextlib.suppress(OSError):
                os.rmdir(directory)


def main():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # cleans up on its way
    arguments = parse_arguments()
    try:
        export(arguments)
    except ImportError as error:
        fail("export.py", import_text(error, "make a Python that has what exports need: python3 -m venv out/tools && "
                                             f"out/tools/bin/pip install {PACKAGES}"))
    except (UserError, OSError) as error:
        fail("export.py", text_of(error))
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    forgive()
    main()
