#!/usr/bin/env python3
"""Plot runs: loss and learning rate over the steps, from OUTPUT/metrics.jsonl and OUTPUT/run.json.

    scripts/plot_run.py out/quickstart_4bit                  writes out/quickstart_4bit/training.png
    scripts/plot_run.py out/quickstart_4bit -o curves.svg    or .pdf
    scripts/plot_run.py out/mine out/other -o both.png       runs on one another

Works on runs that are still going on, too.
"""
import argparse
import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(ROOT, "scripts"))

from errors import UserError  # noqa: E402


class OneLineParser(argparse.ArgumentParser):
    """argparse prints its usage before an error; one line is easier to read, and --help has the rest."""

    def error(self, message):
        self.exit(2, f"plot_run.py: error: {message} (see --help)\n")


def main():
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("outputs", metavar="OUTPUT", nargs="+", help="directory of a run (train_qat's -o)")
    parser.add_argument("-o", dest="figure", metavar="FILE", help=".png, .svg or .pdf (of one run: OUTPUT/training.png)")
    arguments = parser.parse_args()
    from curves import one_run, overlay, records, style

    if len(arguments.outputs) > 1 and not arguments.figure:
        parser.error("several runs: name the figure with -o")
    path = arguments.figure or os.path.join(arguments.outputs[0], "training.png")
    if not path.lower().endswith(style.FORMATS):
        parser.error(f"-o {path}: the name must end in .png, .svg or .pdf")
    runs = [records.Run(output) for output in arguments.outputs]
    if len(runs) == 1:
        one_run.plot(runs[0], path)
    else:
        overlay.plot(runs, path)
    print(f"wrote {path}")


if __name__ == "__main__":
    try:
        main()
    except ImportError as error:
        print(f"plot_run.py: error: Python has no {error.name}; install python3-matplotlib and use /usr/bin/python3",
              file=sys.stderr)
        sys.exit(2)
    except (UserError, OSError) as error:
        text = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else error
        print(f"plot_run.py: error: {text}", file=sys.stderr)
        sys.exit(2)
