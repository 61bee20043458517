"""The card that the benchmark of GPUs runs on: its name, driver and peak rate, and how much of its memory is in use.

A CPU stands in for it where there is none, so that the same code runs everywhere.
"""

import contextlib
import os
import pathlib
import re
import subprocess
import threading

DATA_SHEET = pathlib.Path(__file__).resolve().parents[2] / "kernels" / "cuda" / "platform" / "data_sheet.h"


def peak_flops(name, data_sheet=DATA_SHEET):
    """FLOP/s of dense bfloat16 by data_sheet.h, where the first part of a name that fits counts; None: not in its table."""
    table = re.search(r"peak_rates\[\] = \{(.*?)\};", data_sheet.read_text(), re.DOTALL)[1]
    rates = re.findall(r'\{"([^"]+)", ([0-9.]+)\}', table)
    return next((float(rate) * 1e12 for part, rate in rates if part in name), None)


class Processor:
    """A CPU: no peak by a data sheet; the memory of a process is what it had resident at most."""

    def __init__(self):
        model = re.search(r"^model name\s*: (.*)", pathlib.Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        self.name, self.driver, self.peak, self.environment = model[1] if model else "CPU", None, None, {}

    def meter(self):
        """Around the run of a process; its peak(usage) is then known."""
        return ResidentMemory()


class ResidentMemory(contextlib.nullcontext):
    @staticmethod
    def peak(usage):
        """Bytes; usage: of the process, by os.wait4."""
        return usage.ru_maxrss * 1024


class Card:
    """One NVIDIA GPU: the first that CUDA_VISIBLE_DEVICES names, or the first of all. ValueError: there is none."""

    def __init__(self):
        self.index = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
        self.name, self.driver, used = self.query("name,driver_version,memory.used")
        if not used.isdigit():
            raise ValueError(f"nvidia-smi does not tell the memory in use of {self.name}, but {used}")
        self.peak = peak_flops(self.name)
        # CUDA counts from the fastest card, nvidia-smi along the bus.
        self.environment = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": self.index}

    def command(self, fields, *options):
        return ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits", "-i", self.index, *options]

    def query(self, fields):
        """Their texts."""
        try:
            result = subprocess.run(self.command(fields), capture_output=True, text=True)
        except OSError as error:
            raise ValueError(f"nvidia-smi: {error.strerror}") from None
        texts = result.stdout.strip().split(", ")
        if result.returncode or len(texts) != len(fields.split(",")):
            lines = (result.stdout + result.stderr).strip().splitlines() or ["it says nothing"]
            raise ValueError(f"nvidia-smi: {lines[0]}")
        return texts

    def meter(self):
        return CardMemory(self.command("memory.used", "-lms", "100"))


class CardMemory:
    """The most memory in use on the card above what was in use at first, ten times a second: with the CUDA context and
    what allocators hold back, alike for all programs."""

    def __init__(self, command):
        self.command = command

    def __enter__(self):
        self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE, text=True)
        self.first = self.largest = int(self.process.stdout.readline())
        self.thread = threading.Thread(target=self.read, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.thread.join()
        self.process.wait()

    def read(self):
        for line in self.process.stdout:
            self.largest = max(self.largest, int(line))

    def peak(self, usage):
        """Bytes, after the end; usage is that of the process alone, and not asked."""
        return (self.largest - self.first) * 2**20
