#!/usr/bin/env python3
"""Turn HellaSwag (arXiv 1905.07830), or any examples in its form, into tokens for `train_qat -eval_only -hellaswag OUT`.

    data/prepare_hellaswag.py --input hellaswag_val.jsonl --tokenizer data/cache/books.model -o data/cache/hellaswag.bin
    data/prepare_hellaswag.py --tokenizer gpt2 -o data/cache/hellaswag.bin      from the Hugging Face hub (package datasets)

Inputs are JSON lines, also .gz, of {"ctx": text, "endings": [four texts], "label": 0 to 3}. The file is llm.c's
(data/hellaswag.h): with --tokenizer gpt2 it holds what llm.c's own script writes. Its tokens have 16 bits, so a vocabulary must not
exceed 65,536.

Tokens of a context: as at the begin of a document, with the tokenizer's begin token (for --tokenizer gpt2 without one, as
llm.c). Those of a completion: what context + " " + ending has behind the tokens of the context.
"""
import argparse
import array
import os
import struct
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "prepare"))

import rows  # noqa: E402
from command_line import OneLineParser, begin, path_name, run  # noqa: E402
from documents import find_files, read_rows, without_surrogates  # noqa: E402
from mistakes import UserError, one_line  # noqa: E402
from outputs import OutputFile  # noqa: E402
from progress import Progress  # noqa: E402
from shard_files import HEADER_INTS, LARGEST_UINT16_VOCABULARY, check_platform  # noqa: E402
from tokenization import load_tokenizer  # noqa: E402
from tokenizer_files import tokenizer_file  # noqa: E402

DATASET, SPLIT = "Rowan/hellaswag", "validation"
MAGIC, VERSION, START = 20240522, 1, 65535


def parse_arguments():
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--input", nargs="+", type=path_name, metavar="FILE", help=f"JSON lines (default: the {SPLIT} set of {DATASET} on the Hugging Face hub)")
    add("--tokenizer", required=True, type=path_name, metavar="FILE", help="that of the training data: a SentencePiece .model, a tokenizer.json, their folder, or 'gpt2'")
    add("-o", "--output", required=True, metavar="FILE", help="the file to make")
    return parser.parse_args()


def rows_of(arguments):
    """(where, row) of all examples."""
    if not arguments.input:
        try:
            yield from rows.hugging_face_rows(DATASET, None, SPLIT)
        except UserError:
            raise
        except Exception as error:  # the hub's errors are of many unrelated classes
            raise UserError(f"dataset {DATASET}: {one_line(error)}") from None
    for path in find_files(arguments.input or []):
        yield from read_rows(path)


def example_of(row, place):
    """(context, endings, label)"""
    if not isinstance(row, dict):
        raise UserError(f"{place}: not an object")
    context, endings = row.get("ctx"), row.get("endings")
    fits = isinstance(context, str) and isinstance(endings, list) and len(endings) == 4 and all(isinstance(text, str) and text.strip() for text in endings)
    label = row.get("label")
    label = str(int(label) if isinstance(label, float) and label.is_integer() else label)  # readers make floats of all numbers
    if not fits or not context.strip() or label not in ("0", "1", "2", "3"):
        raise UserError(f'{place}: no example {{"ctx": text, "endings": [four texts], "label": 0 to 3}}; no text may be empty')
    return without_surrogates(context), [without_surrogates(text) for text in endings], int(label)


def ids_of(tokenizer, text):
    """At the begin of a document, for GPT-2 without a begin token, as llm.c has it."""
    ids = array.array(tokenizer.type_code)
    ids.frombytes(tokenizer.encode(text, tokenizer.kind != "gpt2"))
    return ids


def words_of(tokenizer, index, example, place):
    """The uint16 of one example."""
    text, endings, label = example
    context = ids_of(tokenizer, text)
    words = [START, 0, index, label, len(endings), len(context), *context]
    for ending in endings:
        completion = ids_of(tokenizer, f"{text} {ending}")[len(context):]
        if not completion:
            raise UserError(f"{place}: the ending {ending!r} has no tokens")
        words += [len(completion), *completion]
    if START in words[6:] or 2 * len(words) > 65535:
        raise UserError(f"{place}: has the token 65535 or more than 65535 bytes, which the format can't hold")
    words[1] = 2 * len(words)
    return array.array("H", words)


def write(file, tokenizer, arguments):
    """Returns the number of examples."""
    file.write(bytes(4 * HEADER_INTS))  # the real header needs their number
    count = longest = 0
    progress = Progress("tokens")
    for place, row in rows_of(arguments):
        if count == 65536:
            raise UserError(f"{place}: the format holds no more than 65536 examples")
        words = words_of(tokenizer, count, example_of(row, place), place)
        file.write(words.tobytes())
        count, longest = count + 1, max(longest, 2 * len(words))
        progress.add(2 * len(words))
    if not count:
        raise UserError("--input: holds no examples")
    file.seek(0)
    file.write(struct.pack("<5iQ", MAGIC, VERSION, count, longest, tokenizer.vocabulary_size, tokenizer.hash))
    return count


def prepare(arguments):
    check_platform()
    with OutputFile(arguments.output, "-o", advice="name a new file") as file:
        tokenizer = load_tokenizer(tokenizer_file(arguments.tokenizer))
        if tokenizer.vocabulary_size > LARGEST_UINT16_VOCABULARY:
            raise UserError(f"--tokenizer {arguments.tokenizer}: has {tokenizer.vocabulary_size} tokens, the format of llm.c's "
                            f"HellaSwag files no more than {LARGEST_UINT16_VOCABULARY}")
        count = write(file, tokenizer, arguments)
    print(f"{arguments.output}: {count} examples")


if __name__ == "__main__":
    begin("prepare_hellaswag.py")
    arguments = parse_arguments()
    sys.exit(run("prepare_hellaswag.py", lambda: prepare(arguments)))
