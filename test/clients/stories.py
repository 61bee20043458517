"""Examples in HellaSwag's form, made of this project's own pages: which of four ends is the one that follows?"""
import collections
import glob
import json
import os
import random
import re
import sys

import fixture


def words_of_pages():
    for path in sorted(glob.glob(os.path.join(fixture.ROOT, "**", "README.md"), recursive=True)):
        with open(path, encoding="utf-8") as file:
            lines = [line.split() for line in file.read().split("\n")]
            yield from (line for line in lines if 12 <= len(line) <= 22 and "|" not in line and max(map(len, line)) < 14)


@fixture.once
def examples(count=40):
    """[{"ctx", "endings", "label"}]"""
    draw, lines = random.Random(3), list(words_of_pages())
    rows = []
    for index in range(count):
        line = lines[index % len(lines)]
        cut = draw.randint(3, len(line) - 3)
        wrong = [draw.choice(lines)[-draw.randint(2, 6):] for _ in range(3)]
        endings, label = [" ".join(words) for words in wrong], draw.randrange(4)
        endings.insert(label, " ".join(line[cut:cut + draw.randint(2, 6)]))
        rows.append({"ctx": " ".join(line[:cut]), "endings": endings, "label": label})
    return rows


@fixture.once
def file():
    """Of JSON lines."""
    path = os.path.join(fixture.directory, "stories.jsonl")
    with open(path, "w", encoding="utf-8") as lines:
        lines.writelines(json.dumps(row) + "\n" for row in examples())
    return path


@fixture.once
def prepared():
    """Their tokens."""
    path = os.path.join(fixture.directory, "stories.bin")
    fixture.run(sys.executable, os.path.join(fixture.ROOT, "data", "prepare_hellaswag.py"), "--input", file(), "--tokenizer",
                fixture.tokenizer(), "-o", path)
    return path


# Numbers of right answers, standard error of the share of one, and examples without the begin of their context.
Answers = collections.namedtuple("Answers", "by_mean by_sum by_sum_error cut")


def right_answers(run):
    """{weights: Answers} that the trainer counts."""
    text = fixture.run(fixture.program, "-eval_only", "-e", run, "-hellaswag", prepared(), "-device", "cpu", "-dtype", "fp32",
                       "-threads", "1")
    cut, count = re.search(r", (\d+) of them without the begin", text), len(examples())
    rows = re.findall(r"^  (\S.*?)  +([\d.]+) \+- +[\d.]+ +([\d.]+) \+- +([\d.]+)$", text, re.MULTILINE)
    return {name: Answers(round(float(by_mean) * count), round(float(by_sum) * count), float(error), int(cut[1]) if cut else 0)
            for name, by_mean, by_sum, error in rows}
