"""How far a long pass over the text is, for prepare.py."""
import sys
import time

PROGRESS_SECONDS = 5  # between lines of progress when the output isn't a terminal


class Progress:
    """A line with amount, speed and time left on stderr: rewritten in place on a terminal, else every few seconds."""

    def __init__(self, label, total_bytes=None):
        self.label, self.total, self.done = label, total_bytes, 0
        self.start = self.shown = time.monotonic()
        self.terminal = sys.stderr.isatty()

    def add(self, count):
        self.done += count
        now = time.monotonic()
        if now - self.shown >= (0.2 if self.terminal else PROGRESS_SECONDS):
            self.shown = now
            self.show(now)

    def show(self, now, end=""):
        seconds = max(now - self.start, 1e-9)
        text = f"{self.label}: {self.done / 1e6:.1f} MB"
        if self.total and not end:
            text = (f"{self.label}: {self.done / 1e6:.1f} of {self.total / 1e6:.1f} MB "
                    f"({100 * self.done / self.total:.0f}%)")
        text += f", {self.done / 1e6 / seconds:.1f} MB/s"
        if self.total and self.done and not end:
            left = max(0, seconds * (self.total / self.done - 1))
            text += f", {left // 60:.0f}m{left % 60:02.0f}s left"
        if end:
            text += f", {seconds:.1f} s"
        sys.stderr.write(f"\r{text}\x1b[K{end}" if self.terminal else f"{text}\n")
        sys.stderr.flush()

    def finish(self):
        self.show(time.monotonic(), end="\n")
