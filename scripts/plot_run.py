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

from errors import OneLineParser, begin, path_name, run  # noqa: E402
from outputs import OutputFile  # noqa: E402

FORMATS = (".png", ".svg", ".pdf")


def parse_arguments():
    parser = OneLineParser(prog="plot_run.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("outputs", type=path_name, metavar="OUTPUT", nargs="+", help="directory of a run (train_qat's -o)")
    parser.add_argument("-o", dest="figure", type=path_name, metavar="FILE",
                        help=".png, .svg or .pdf (of one run: OUTPUT/training.png, drawn anew every time)")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE where it is there")
    arguments = parser.parse_args()
    if len(arguments.outputs) > 1 and not arguments.figure:
        parser.error("several runs: name the figure with -o")
    if arguments.figure and not arguments.figure.lower().endswith(FORMATS):
        parser.error(f"-o {arguments.figure}: the name must end in .png, .svg or .pdf")
    return arguments


def plot(arguments):
    from curves import one_run, overlay, records

    path = arguments.figure or os.path.join(arguments.outputs[0], "training.png")
    runs = [records.Run(output) for output in arguments.outputs]
    # A run's own figure is nobody else's, and shows the more the later it is drawn.
    with OutputFile(path, "-o", overwrite=arguments.overwrite or not arguments.figure, shared=True,
                    advice="give another name, or --overwrite") as file:
        figure = one_run.draw(runs[0]) if len(runs) == 1 else overlay.draw(runs)
        figure.savefig(file, format=os.path.splitext(path)[1][1:].lower(), dpi=160, bbox_inches="tight", facecolor="white")
    print(f"wrote {path}")


if __name__ == "__main__":
    begin("plot_run.py")
    arguments = parse_arguments()
    run("plot_run.py", lambda: plot(arguments))
