"""Examples in HellaSwag's form, made of this project's own pages: which of four ends is the one that follows?"""
import glob
import json
import os
import random

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
