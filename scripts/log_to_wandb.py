#!/usr/bin/env python3
"""Turn a run's metrics into an offline run of Weights & Biases, for `wandb sync`.

    scripts/log_to_wandb.py out/mine                        writes out/mine/wandb/offline-run-…
    wandb sync out/mine/wandb/offline-run-*                 uploads it (and what earlier calls have left there)

Settings, plan and results of run.json become the run's configuration. Nothing is sent by this program.
"""
import argparse
import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(ROOT, "scripts"))

from errors import OneLineParser, begin, path_name, run  # noqa: E402


def metrics_of(record):
    """{W&B's name: number} of a record of metrics.jsonl."""
    if "validation_loss" in record:
        return {f"validation/{record['weights']}": record["validation_loss"]}
    return {f"train/{name}": value for name, value in record.items() if name not in ("step", "phase")}


def convert(run, project, name):
    import wandb

    settings = wandb.Settings(silent=True, console="off", x_disable_stats=True, disable_git=True, save_code=False)
    with wandb.init(mode="offline", dir=run.directory, project=project, name=name, config=run.settings, settings=settings) as log:
        for record in sorted(run.training + run.validation, key=lambda record: record["step"]):
            log.log({key: float("nan") if value is None else value for key, value in metrics_of(record).items()}, step=record["step"])
        return os.path.dirname(log.dir)


def parse_arguments():
    parser = OneLineParser(prog="log_to_wandb.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=path_name, metavar="OUTPUT", help="directory of the run (train_qat's -o)")
    parser.add_argument("--project", default="train_qat")
    parser.add_argument("--name", help="of the run (default: that of its directory)")
    return parser.parse_args()


def log(arguments):
    from curves.records import Run

    of = Run(arguments.output)
    print(f"wrote {convert(of, arguments.project, arguments.name or of.name)}")


if __name__ == "__main__":
    begin("log_to_wandb.py")
    arguments = parse_arguments()
    run("log_to_wandb.py", lambda: log(arguments), "python3 -m venv out/tools && out/tools/bin/pip install wandb numpy, and start this "
                                                   "with out/tools/bin/python")
