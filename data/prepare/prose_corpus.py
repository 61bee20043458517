#!/usr/bin/env python3
"""Fetch the reproduction's corpus: about 80 MB of English prose from Debian packages, as one JSON lines file.

Novels, a long FAQ, two dictionaries of English with their quotations, and dictionaries of computing. All are free texts:
the packages name their licences. A document is a chapter, a section, or a page of consecutive dictionary entries; their
order is by the hash of their contents, so that any part of the file holds the same mixture.
"""
import glob
import gzip
import hashlib
import json
import os
import re
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import quickstart_corpus  # noqa: E402
from command_line import OneLineParser, begin, run  # noqa: E402
from debian_packages import CorpusError, unpacked  # noqa: E402
from outputs import OutputFile  # noqa: E402

PAGE_CHARACTERS = 6000
LEAST_CHARACTERS = 200  # shorter documents are headings and remains

# package: (file, words of the text by which a whole one is known)
DICTIONARIES = {
    "dict-gcide": ("gcide.dict.dz", "as water surrounds a person"),
    "dict-wn": ("wn.dict.dz", "a solid that has been pulverized"),
    "dict-foldoc": ("foldoc.dict.dz", "operating system"),
    "dict-jargon": ("jargon.dict.dz", "hacker"),
    "dict-devil": ("devil.dict.dz", "happiness"),
}
# What dictionaries repeat in every entry: notes of the source, and marks of links.
SOURCE_NOTE = re.compile(r"\s*\[(?:\d{4} Webster|Webster \d{4}|WordNet \d|PJC|Century Dict)[^\]]*\]")
LINK_MARKS = str.maketrans("", "", "{}")
RUN_OF_SPACES = re.compile(r"\s+")


def paragraphs(text):
    """Hard-wrapped lines joined, one text a paragraph."""
    for block in re.split(r"\n\s*\n", text):
        joined = RUN_OF_SPACES.sub(" ", block).strip()
        if joined:
            yield joined


def pages(parts):
    """Consecutive parts joined into documents of about PAGE_CHARACTERS."""
    page, length = [], 0
    for part in parts:
        page.append(part)
        length += len(part)
        if length >= PAGE_CHARACTERS:
            yield "\n".join(page)
            page, length = [], 0
    if page:
        yield "\n".join(page)


def dictionary(package):
    name, known_words = DICTIONARIES[package]
    with unpacked(package) as root:
        path = os.path.join(root, "usr/share/dictd", name)
        if not os.path.exists(path):
            raise CorpusError(f"the package {package} has changed: {name} is not in it")
        with gzip.open(path, "rt", encoding="utf-8", errors="replace") as file:
            text = file.read()
    if known_words not in RUN_OF_SPACES.sub(" ", text):
        raise CorpusError(f"the package {package} has changed: its text is not the one known")
    text = SOURCE_NOTE.sub("", text).translate(LINK_MARKS).replace("\ufffd", "")
    return pages(paragraphs(text))


def anarchist_faq():
    with unpacked("anarchism") as root:
        files = sorted(glob.glob(os.path.join(root, "usr/share/doc/anarchism/markdown/*.md.gz")))
        if len(files) < 100:
            raise CorpusError("the package anarchism has changed: its Markdown files are not in it")
        for path in files:
            with gzip.open(path, "rt", encoding="utf-8", errors="replace") as file:
                yield from pages(paragraphs(file.read()))


def novels():
    texts = quickstart_corpus.fetch_novels()
    quickstart_corpus.check(texts)
    for name in sorted(texts):
        yield from pages(paragraphs(texts[name]))


def documents(progress):
    sources = [("r-cran-janeaustenr", novels), ("anarchism", anarchist_faq)]
    sources += [(package, lambda package=package: dictionary(package)) for package in DICTIONARIES]
    result = {}  # by hash: the same text twice would be in both training and validation
    for package, read in sources:
        size = 0
        for text in read():
            if len(text) >= LEAST_CHARACTERS:
                data = text.encode()
                result[hashlib.sha256(data).digest()] = {"source": package, "text": text}
                size += len(data)
        progress(f"{package}: {size / 1e6:.1f} MB")
    return [result[key] for key in sorted(result)]


def fetch(path):
    if os.path.exists(path):  # it got its name when it was complete
        print(f"{path}: already there")
        return
    with OutputFile(path, "path") as file:
        found = documents(lambda line: print(line, flush=True))
        for document in found:
            file.write((json.dumps(document, ensure_ascii=False) + "\n").encode())
    size = sum(len(document["text"].encode()) for document in found)
    print(f"{path}: {len(found)} documents, {size / 1e6:.1f} MB")


def parse_arguments():
    default = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "cache", "prose.jsonl")
    parser = OneLineParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", nargs="?", default=default, help="the file to write (data/cache/prose.jsonl)")
    return parser.parse_args()


if __name__ == "__main__":
    begin("prose_corpus.py")
    arguments = parse_arguments()
    sys.exit(run("prose_corpus.py", lambda: fetch(arguments.path)))
