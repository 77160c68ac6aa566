"""Where the seconds of each stage go: python -m tools.profile [COMMAND …]

Samples every stage that the command runs (by default `dvc repro --force`) twenty times a second, by
py-spy (`make extra NAME=profile`), which slows nothing down, and sorts what the stage's main thread
was at. Writes benchmarks/profile.csv and from it the table in benchmarks/profile.md.
"""

import argparse
import importlib.util
import re
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from stages.common import params, tables
from stages.common.run import UserError, run
from tools import markdown

RESULTS, PAGE = Path("benchmarks/profile.csv"), Path("benchmarks/profile.md")
PIPELINE = Path("dvc.yaml")
COMMAND = ["dvc", "repro", "--force"]
RATE = 20  # samples a second
STAGE = re.compile(r':"[^"]*-m stages\.(\w+)(?: (\w+))?"')
# The first that fits counts. A pattern is searched for in the names of all functions and files that
# were running, the innermost last, or where it ends in `$` in the innermost alone.
ACTIVITIES = {
    "loading libraries": r"<frozen importlib",
    "running graphs": r"quick_execute \(tensorflow/python/eager/execute|multi_step.*execute\.py.*$",
    "tracing graphs": r"tensorflow/python/eager/polymorphic_function/|func_graph\.py",
    "waiting for decoded images": r"in_order \(stages/common/images\.py",
    "drawing": r"matplotlib/|evaluation_plots\.py|data_plots\.py|report/pictures\.py",
    "intervals": r"bootstrap\.py",
    "reading and writing data": r"tensorflow_datasets/|shards\.py|iterator_ops\.py|inventory\.py",
    "building, loading and saving models": r"keras/|torch_checkpoint\.py|h5py/|models\.py",
}
REST = "the rest"
# py-spy ends with 0 whatever its command ended with, which is therefore written to a file.
KEEP_STATUS = '"$@"; echo $? > "$0"'


def activity(frames: str) -> str:
    """What a thread was at.

    Args:
        frames: `function (file:line)`, the outermost first, parted by semicolons.
    """
    innermost = frames.rsplit(";", 1)[-1]
    for name, pattern in ACTIVITIES.items():
        if re.search(pattern, innermost if pattern.endswith("$") else frames):
            return name
    return REST


def seconds_by_stage(
    lines: Iterable[str], stages: Sequence[str], rate: int = RATE
) -> dict[str, Counter]:
    """Seconds of each activity in the main thread of each stage, in the order of `stages`.

    Args:
        lines: py-spy's raw format: `process N:"command";frame;…;frame samples`.
        stages: as dvc.yaml names them.
        rate: samples a second.
    """
    found: dict[str, Counter] = defaultdict(Counter)
    for line in lines:
        stack, _, samples = line.rstrip().rpartition(" ")
        processes, _, frames = stack.partition("_run_module_as_main")
        # The last process is the one that was running; those before it started it.
        stage = re.search(STAGE, processes.rsplit("process ", 1)[-1])
        if stage and frames:
            found["@".join(filter(None, stage.groups()))][activity(frames)] += int(samples) / rate
    return dict(sorted(found.items(), key=lambda item: stages.index(item[0].split("@")[0])))


def rows(found: dict[str, Counter]) -> list[list]:
    """Stage, activity, seconds, share of the stage; stages as they ran, the largest share first."""
    return [
        [stage, name, round(seconds, 1), round(seconds / total, 3)]
        for stage, activities in found.items()
        if (total := activities.total())
        for name, seconds in activities.most_common()
    ]


def table(found: list[list]) -> str:
    """Markdown: a stage a line, its part of the whole, and the parts of the stage in percent."""
    shares: dict[str, dict[str, float]] = defaultdict(dict)
    seconds: Counter = Counter()
    for stage, name, value, share in found:
        shares[stage][name] = share
        seconds[stage] += value
    names = [name for name in (*ACTIVITIES, REST) if any(name in of for of in shares.values())]
    lines = []
    for stage, of in shares.items():
        parts = (f"{of[name]:.0%}" if name in of else "" for name in names)
        lines.append([f"`{stage}`", f"{seconds[stage] / seconds.total():.1%}", *parts])
    return markdown.table(["stage", "of the whole", *names], lines)


def filled(page: str, found: list[list]) -> str:
    """The page with its table made anew."""
    return markdown.filled(page, {"profile": table(found)}.__getitem__)


def main() -> None:
    """Runs the command under py-spy."""
    parser = argparse.ArgumentParser(prog="tools.profile", description=__doc__.split(":")[0])
    parser.add_argument(
        "command",
        nargs=argparse.REMAINDER,
        metavar="COMMAND …",
        help=f"what to run and sample; default: {' '.join(COMMAND)}",
    )
    command = parser.parse_args().command or COMMAND
    stages = list(params.read(PIPELINE)["stages"])
    program = Path(sys.executable).with_name("py-spy")
    if not program.exists() and importlib.util.find_spec("py_spy") is None:
        raise UserError("py-spy is not installed; `make extra NAME=profile` installs it")
    with tempfile.TemporaryDirectory() as folder:
        output, status = Path(folder) / "stacks.txt", Path(folder) / "status.txt"
        options = ["--subprocesses", "--idle", "--format", "raw", "--rate", str(RATE)]
        kept = ["sh", "-c", KEEP_STATUS, status, *command]
        sampled = [program, "record", *options, "--output", output, "--", *kept]
        if subprocess.run(sampled).returncode or not output.exists():
            raise UserError(
                f"{' '.join(command)} failed under py-spy, which needs root or the right to trace "
                "other processes; see what it printed"
            )
        if not status.exists() or (ended := status.read_text().strip()) != "0":
            ended = f"with status {ended}" if status.exists() else "early"
            raise UserError(
                f"{' '.join(command)} ended {ended}; see what it printed. {RESULTS} is as it was"
            )
        with output.open(encoding="utf-8", errors="replace") as lines:
            found = rows(seconds_by_stage(lines, stages))
    if not found:
        raise UserError(f"{' '.join(command)} ran no stage; nothing was measured")
    tables.write_csv(RESULTS, ["stage", "activity", "seconds", "share"], found)
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), found), encoding="utf-8")
    for stage, name, seconds, share in found:
        print(f"{stage:<22} {name:<36} {seconds:>8.1f} s {share:>6.0%}")
    print(f"written to {RESULTS} and {PAGE}")


if __name__ == "__main__":
    run(main)
