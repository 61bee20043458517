"""Which part of the text validation gets: whole documents by the hash of their content, or the end of the largest one."""
from typing import NamedTuple

from documents import Document
from long_words import safe_cut
from mistakes import UserError

FAR = 2  # times more or less than what was asked for: worth a warning
LEAST_SHARE = 1 / 4  # of what was asked for: a single document that is smaller is no validation set


class HoldOut(NamedTuple):
    """limit: documents whose hash is below it are held out, except the one with the hash `cut` (None: no such), of which the
    last part is: `share` of its text."""
    limit: int
    cut: int | None = None
    share: float = 0.0


def most_share(fraction):
    """Of the bytes that may be held out: not the larger part, unless that is what was asked for."""
    return 0.5 if fraction < 0.5 else (1 + fraction) / 2


class Survey:
    """What the choice needs to know of all documents, in constant memory."""

    def __init__(self, fraction):
        self.fraction, self.limit = fraction, int(fraction * 2**64)
        self.documents = self.bytes = 0
        self.below = [0, 0]                       # documents and bytes whose hash is below the limit
        self.first = self.last = None             # (hash, bytes) of the smallest and of the largest hash
        self.longest = None                       # (bytes, hash, path)

    def add(self, value, size, path):
        self.documents += 1
        self.bytes += size
        if value < self.limit:
            self.below = [self.below[0] + 1, self.below[1] + size]
        self.first = min(self.first or (value, size), (value, size))
        self.last = max(self.last or (value, size), (value, size))
        self.longest = max(self.longest or (size, value, path), (size, value, path))

    def choose(self):
        """Whole documents where their share is tolerable. Few documents, or very unequal ones: the end of the longest."""
        if self.limit == 0:
            return HoldOut(0)
        if self.documents == 1:
            return HoldOut(0, self.longest[1], self.fraction)
        if self.first[0] == self.last[0]:
            raise UserError(f"all {self.documents} documents have the same content, so none can be held out; "
                            "pass --val-files or --val-fraction 0")
        limit, (count, size) = self.limit, self.below
        if count == self.documents:
            limit, size = self.last[0], self.bytes - self.last[1]
        least, most = LEAST_SHARE * self.fraction * self.bytes, most_share(self.fraction) * self.bytes
        if count > 0 and size <= most:
            return HoldOut(limit)
        if least <= self.first[1] <= most:
            return HoldOut(self.first[0] + 1)
        share = min(self.fraction * self.bytes / self.longest[0], most_share(self.fraction))
        return HoldOut(0, self.longest[1], share)


def cut(document, share):
    """(what is trained on, what is held out): its last part, from the start of a line, or else of a word."""
    text = document.text()
    if len(text) < 2:
        raise UserError(f"{document.path}: one character can't be divided into training and validation text")
    place = min(max(int(len(text) * (1 - share)), 1), len(text) - 1)
    nearby = place + (len(text) - place) // 2  # a boundary further on would leave too little
    for boundary in "\n", " ":
        found = text.find(boundary, place, nearby)
        if found >= 0:
            place = found + 1
            break
    else:
        place = safe_cut(text, 0, place)
    return Document(text[:place], False, document.path), Document(text[place:], False, document.path)


def warning(counts, fraction, by_files):
    """None, or what to say of the shares: counts are the manifest's."""
    total = counts["train"]["bytes"] + counts["val"]["bytes"]
    share = counts["val"]["bytes"] / total
    said = f"{100 * share:.3g}% of the text is held out"
    if by_files:
        return f"warning: {said}, more than is trained on" if share > 0.5 else None
    if fraction and not fraction / FAR <= share <= FAR * fraction:
        return (f"warning: {said}, --val-fraction asks for {100 * fraction:.3g}%: the documents are few or very unequal; "
                "divide files with --document-separator, or name --val-files")
    return None
