"""What was odd in the input and did not keep it from being read: counted by file, and said in the end."""
import sys

MOST_FILES = 5  # of a kind that are named


class Findings:
    """Every pass over a file counts anew."""

    def __init__(self):
        self.skipped = {}    # file or dataset -> {what its rows had instead of a text: how many}
        self.encodings = {}  # file -> encoding that was found, not asked for
        self.nuls = {}       # file -> NUL characters in it

    def lines(self):
        for path, counts in list(self.skipped.items())[:MOST_FILES]:
            parts = ", ".join(f"{count} {what}" for what, count in counts.items())
            yield f"warning: {path}: {sum(counts.values())} rows without a text left out ({parts})"
        if len(self.skipped) > MOST_FILES:
            rest = list(self.skipped.values())[MOST_FILES:]
            yield (f"warning: {sum(sum(counts.values()) for counts in rest)} rows without a text left out of "
                   f"{len(rest)} more files")
        for encoding in dict.fromkeys(self.encodings.values()):
            yield f"note: read as {encoding}, not as --encoding says: {self.names(self.encodings, encoding)}"
        if self.nuls:
            yield (f"warning: {sum(self.nuls.values())} NUL characters in the text: binary data, or another encoding? "
                   f"{self.names(self.nuls)}")

    @staticmethod
    def names(found, value=None):
        paths = [path for path in found if value is None or found[path] == value]
        more = f" and {len(paths) - MOST_FILES} more files" if len(paths) > MOST_FILES else ""
        return ", ".join(paths[:MOST_FILES]) + more

    def print(self):
        for line in self.lines():
            print(line, file=sys.stderr)
