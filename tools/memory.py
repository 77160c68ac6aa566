"""Runs every stage in this folder, without DVC, and prints the peak resident memory of each.

Run it in a copy of the project: it replaces the outputs. `python -m tools.memory`.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

from stages.common import params
from stages.common.run import UserError, run
from tools.profile import PIPELINE

# Kibibytes on Linux, bytes on macOS.
UNIT = 1 if sys.platform == "darwin" else 1024


def modules(pipeline: dict[str, Any]) -> Iterator[list[str]]:
    """The module of every stage with its arguments: ["stages.evaluate", "head"].

    Args:
        pipeline: the content of dvc.yaml, whose stages follow each other as they must run.
    """
    for stage in pipeline["stages"].values():
        for model in stage.get("matrix", {}).get("model", [""]):
            yield stage["cmd"].replace("${item.model}", model).split()[2:]


def peak_bytes(command: list[str], quiet: bool = False) -> int:
    """Runs a command to its end; its peak resident memory in bytes.

    Of the process or, where one of the processes that it started and waited for had a higher peak,
    of that one; never of several together.

    Args:
        command: the program and its arguments.
        quiet: whether what it writes to standard error is kept from the screen.

    Raises:
        UserError: it failed; with the last line that was kept from the screen.
    """
    # A file, since nobody reads a pipe while this waits.
    with tempfile.TemporaryFile("w+", errors="replace") as kept:
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=kept if quiet else None
        )
        # wait4 gives the usage of this one child, getrusage the largest of all so far.
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            kept.seek(0)
            last_line = kept.read().strip().splitlines()[-1:]
            raise UserError(": ".join([f"{' '.join(command)} failed", *last_line]))
    return usage.ru_maxrss * UNIT


def main() -> None:
    """Runs the stages in the order of dvc.yaml."""
    for module in modules(params.read(PIPELINE)):
        peak = peak_bytes([sys.executable, "-m", *module])
        name = "@".join(module).removeprefix("stages.")
        print(f"{name:<20} {peak / 2**20:>8.0f} MiB", flush=True)


if __name__ == "__main__":
    run(main, takes_arguments=False)
