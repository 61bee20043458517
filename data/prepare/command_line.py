"""What the commands that prepare data say of mistakes in their options: one line."""
import argparse


class OneLineParser(argparse.ArgumentParser):
    """argparse prints its usage before an error; one line is easier to read, and --help has the rest."""

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message} (see --help)\n")
