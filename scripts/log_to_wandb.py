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

from errors import OneLineParser, UserError, fail, forgive, import_text, text_of  # noqa: E402


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


def main():
    parser = OneLineParser(prog="log_to_wandb.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", metavar="OUTPUT", help="directory of the run (train_qat's -o)")
    parser.add_argument("--project", default="train_qat")
    parser.add_argument("--name", help="of the run (default: that of its directory)")
    arguments = parser.parse_args()
    from curves.records import Run

    run = Run(arguments.output)
    print(f"wrote {convert(run, arguments.project, arguments.name or run.name)}")


if __name__ == "__main__":
    forgive()
    try:
        main()
    except ImportError as error:
        fail("log_to_wandb.py", import_text(error, "python3 -m venv out/tools && out/tools/bin/pip install wandb numpy, and "
                                                   "start this with out/tools/bin/python"))
    except (UserError, OSError) as error:
        fail("log_to_wandb.py", text_of(error))
