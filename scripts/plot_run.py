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

from errors import OneLineParser, UserError, fail, forgive, import_text, text_of  # noqa: E402


def main():
    parser = OneLineParser(prog="plot_run.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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
    forgive()
    try:
        main()
    except ImportError as error:
        fail("plot_run.py", import_text(error))
    except (UserError, OSError) as error:
        fail("plot_run.py", text_of(error))
