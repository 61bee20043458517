"""Bytes that fuzz_prepare.py begins with, and what it does to them."""
import json

LONGEST_INPUT = 1 << 16
TEXT = "Every unhappy family is unhappy in its own way.\nДом, 道可道。 \U0001f642 e\u0301\n"
ROWS = [{"text": TEXT}, {"text": None}, {"id": 7, "text": "x"}, {"text": ["a"]}, {"other": {"a": [1, -2.5e3, True]}}]
PAGE = ("<!DOCTYPE html><html><head><title>t</title></head><body class='a'><!-- c --><p>One &amp; &#65; &#x41; two<br>"
        "<![CDATA[x]]><script>no()</script><pre>a  b\n c</pre><?pi?></body></html>")
# Suffix and content.
SEEDS = [
    (".txt", TEXT.encode()), (".md", TEXT.encode("utf-16")), (".txt", TEXT.encode("utf-16-be")), (".rst", TEXT.encode("utf-32-le")),
    (".jsonl", "\n".join(map(json.dumps, ROWS)).encode()), (".jsonl", json.dumps(ROWS).encode("utf-16")),
    (".json", json.dumps(ROWS, indent=1).encode()), (".json", "\n".join(map(json.dumps, ROWS)).encode()),
    (".html", PAGE.encode()), (".htm", PAGE.encode("utf-16-le")),
]
TOKENS = [b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\\ud800", b"[", b"]", b"{", b"}", b'"', b"\\", b",", b"<!--", b"-->", b"<![",
          b"<", b">", b"&#", b"&#99999999999;", b"</", b"<pre>", b"</script>", b"\n", b"\r", b"1e999", b"NaN", b"null", b"9" * 5000, b"[" * 3000,
          b'{"a":' * 2000, b" " * 3000, b"A" * 9000]


def mutate(generator, data):
    data = bytearray(data)
    for _ in range(generator.choice([0, 1, 1, 2, 4, 16])):
        at = generator.randrange(len(data) + 1)
        what = generator.randrange(6)
        if what == 0 and at < len(data):
            data[at] ^= 1 << generator.randrange(8)
        elif what == 1:
            data[at:at] = generator.choice(TOKENS) * generator.choice([1, 1, 1, 2, 50])
        elif what == 2:
            del data[at:at + generator.choice([1, 2, 3, 40, 10_000])]
        elif what == 3:
            end = min(len(data), at + generator.randrange(1, 60))
            data[at:at] = data[at:end] * generator.choice([1, 2, 300])
        elif what == 4 and at < len(data):
            data[at] = generator.choice([0, 9, 10, 13, 32, 127, 128, 255])
        elif what == 5:
            data[at:at] = generator.choice(SEEDS)[1]
        del data[LONGEST_INPUT:]
    return bytes(data)
