"""Runs a grid of experiments, a worker for each GPU: python -m tools.sweep -S KEY=A,B [-S …].

Queues every combination with DVC, starts its workers one by one so that each sees one GPU only
(CUDA_VISIBLE_DEVICES), shows progress, and ends with DVC's table of results. Killed, it leaves the
workers running: call it without -S to watch them on.
"""

import argparse
import hashlib
import itertools
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from stages.common import params
from stages.common.datasets.sources import Folder
from stages.common.run import UserError, progress, run
from tools import check_params, revisions

NO_DEVICE = ("", "-1", "NoDevFiles")
POLL_SECONDS = 5
START_SECONDS = 120  # in which a worker that starts must have come up
# Columns that would make the table wider than any screen: parts of metrics, and hashes of files.
DROPPED = "|".join(
    (
        "(State|Executor)$",
        r".*:(interval|slice|class|uncalibrated)\.",
        r".*\.(difference|high|low)$",  # of metrics/comparison.json
        r"(data|models|plots|reports)/|metrics/\w+\.json$",
    )
)
MOST_COPIES = 1000  # named on one command line
# What Git ignores in them is .venv, DVC's cache and the stages' outputs.
PROJECT_FOLDERS = (Path("."), Path("data"))
DATA_PATHS = (("dataset", "path"), ("backbone", "own_weights"))
WORKERS = Path(".dvc/tmp/exps/celery")  # where DVC notes the processes of its workers
WAITING = ("Queued", "Running")
ENDED = ("Success", "Failed")


def dvc(*words: str, environment: dict[str, str] | None = None) -> str:
    """Runs DVC and returns what it prints; UserError with its last lines where it fails."""
    # Files, since workers that DVC starts keep its output open: the end of a pipe would come when
    # the last of them ends.
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        done = subprocess.run(
            [sys.executable, "-m", "dvc", *words],
            env={**os.environ, **(environment or {})},
            stdout=output,
            stderr=errors,
        )
        output.seek(0)
        errors.seek(0)
        if done.returncode:
            raise UserError(f"dvc {' '.join(words)} failed: {errors.read().strip()[-1000:]}")
        return output.read()


def gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA names them; none on a machine without."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        names = map(str.strip, os.environ["CUDA_VISIBLE_DEVICES"].split(","))
        # As CUDA does: what is no device hides all that follow.
        return list(itertools.takewhile(lambda name: name not in NO_DEVICE, names))
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.split() if done.returncode == 0 else []


def devices(workers: int | None, available: list[str]) -> list[str | None]:
    """The GPU of each worker, or None for a worker that is left as it is.

    Args:
        workers: how many; None: as many as GPUs, at least one.
        available: what `gpus` found.

    Raises:
        UserError: more workers than GPUs, where there are any.
    """
    if not available:
        return [None] * (workers or 1)
    if workers is not None and workers > len(available):
        raise UserError(
            f"--workers: expected at most {len(available)}, the number of GPUs, received {workers}"
        )
    return list(available[:workers])


def tasks(status: str) -> Counter:
    """How many experiments are in which state, from what `dvc queue status` prints."""
    rows = [line.split() for line in status.splitlines()]
    states = {"Queued", "Running", "Success", "Failed", "Preparing"}
    return Counter(word for row in rows for word in row if word in states and row[-1] == word)


def answering_workers(status: str) -> int:
    """How many workers answered DVC's question, from what `dvc queue status` prints.

    They have a second for it: on a busy machine none may answer, although all run.
    """
    found = re.search(r"Worker status: (\d+) active, (\d+) idle", status)
    return int(found[1]) + int(found[2]) if found else 0


def running_workers() -> int:
    """How many workers' processes run, by what DVC notes of those that it starts."""
    found = 0
    for path in WORKERS.glob("dvc-exp-worker-*.json"):
        try:
            # By the words of its command: the number may have gone to another process.
            number = json.loads(path.read_text(encoding="utf-8"))["pid"]
            found += "queue-worker" in psutil.Process(number).cmdline()
        except psutil.Error:
            continue  # it ended
    return found


def combinations(changes: Sequence[str]) -> list[dict[str, Any]]:
    """The params of every combination that a grid asks for, as DVC expands it, checked.

    Args:
        changes: `section.key=values` by Hydra's grammar, with or without `params.yaml:` before.

    Raises:
        UserError: params.yaml has no such key or refuses a combination, or the grammar is broken.
    """
    from dvc.exceptions import DvcException
    from dvc.utils.cli_parse import to_path_overrides
    from dvc.utils.hydra import apply_overrides, get_hydra_sweeps
    from hydra.errors import HydraException

    contents = []
    try:
        for overrides in get_hydra_sweeps(to_path_overrides(changes)):
            chosen = overrides.get(str(params.PARAMS_FILE), [])
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / params.PARAMS_FILE.name
                shutil.copyfile(params.PARAMS_FILE, path)
                apply_overrides(path, chosen)
                contents.append(params.read(path))
            source = f"{params.PARAMS_FILE} with -S {' -S '.join(chosen)}"
            check_params.check(contents[-1], source)
    except (DvcException, HydraException) as error:
        raise UserError(f"-S {' -S '.join(changes)}: {error.__cause__ or error}") from None
    return contents


def data_of(contents: Iterable[Mapping[str, Any]]) -> dict[str, list]:
    """What `untracked_data` looks at, of the params of several experiments."""
    found: dict[tuple, dict] = {key: {} for key in (("dataset", "name"), *DATA_PATHS)}  # in order
    for content in contents:
        for section, key in found:
            found[section, key][content[section].get(key)] = None
    return {".".join(key): list(values) for key, values in found.items()}


def untracked_data(values: Mapping[str, Sequence[str]]) -> list[str]:
    """Data and weights that Git does not hold: an experiment's own folder needs a copy.

    Stages depend on them, used or not: without a copy they would run again. Beside a table lie its
    images.

    Args:
        values: `section.key` to its values, where they are others than that of params.yaml.

    Raises:
        UserError: a path leads out of the repository, or there is too much to copy.
    """
    content = params.read()
    names = values.get("dataset.name", [content["dataset"].get("name")])
    paths = {
        f"{section}.{key}": values.get(f"{section}.{key}", [content[section][key]])
        for section, key in DATA_PATHS
    }
    found: dict[str, None] = {}  # a set that keeps its order
    for key, given in paths.items():
        for path in map(Path, given):
            found |= dict.fromkeys(_untracked(key, path))
            if key == "dataset.path" and "image_table" in names:
                found |= dict.fromkeys(_beside(path))
    # A folder comes with all that is in it, and DVC copies no folder onto one that is there.
    copies = [
        name for name in found if not any(str(above) in found for above in Path(name).parents)
    ]
    if len(copies) > MOST_COPIES:
        raise UserError(
            f"{', '.join(itertools.chain(*paths.values()))}: expected at most "
            f"{MOST_COPIES} files and folders that Git does not hold, each of which an experiment "
            f"has to copy, received {len(copies)}; put them outside of the repository and give "
            "the full path, or into a folder of which Git holds nothing"
        )
    return copies


def data_state(contents: Iterable[Mapping[str, Any]]) -> str:
    """A hash that is another one where the data or weights of experiments are others.

    Of files that Git holds by their bytes, since DVC itself writes those anew at the start of an
    experiment; of others, also outside of the repository and of those that a table names, by name,
    size and time of change. What lies behind URLs is not asked.

    Args:
        contents: of params.yaml, of each experiment.

    Raises:
        UserError: a table can't be read.
    """
    contents = list(contents)
    given = itertools.chain(
        *(values for key, values in data_of(contents).items() if key != "dataset.name")
    )
    tables = {
        (content["dataset"]["path"], content["dataset"]["image_table"]["path_column"]): None
        for content in contents
        if content["dataset"].get("name") == "image_table"
    }
    named = (_state(file) for table in tables for file in _files_of_rows(*table))
    states = sorted({*state_of(given), *filter(None, named)})
    in_git = {os.path.realpath(name) for name in tracked_files(["."])}
    held, others = [], []
    for entry in states:
        if os.path.realpath(entry[0]) in in_git:
            held.append(entry[0])
        else:
            others.append(entry)
    return hashlib.sha256(f"{bytes_of(held)} {others}".encode()).hexdigest()


def tracked_files(paths: Sequence[str]) -> list[str]:
    """The files that Git holds of some paths, sorted; none where there is no repository."""
    return sorted(_ls_files("--", *paths) or [])


def bytes_of(names: Iterable[str]) -> str:
    """A hash of the names and bytes of files, of those that are there."""
    found = hashlib.sha256()
    for name in names:
        if Path(name).is_file():
            found.update(name.encode() + b"\0" + Path(name).read_bytes() + b"\0")
    return found.hexdigest()


def _files_of_rows(path: str, column: str) -> Iterator[Path]:
    """The local files that the rows of a table name; none where it has no such column."""
    from stages.common.datasets.image_table import Table
    from stages.common.datasets.remote import is_url

    table = Table(Path(path))
    if column in table.column_names:  # else fetch says so
        names = (row[column].strip() for row in table.rows())
        yield from (table.path.parent / name for name in names if name and not is_url(name))


def _untracked(key: str, path: Path) -> list[str]:
    """What Git does not hold of a file or folder; UserError where it is not in the repository."""
    # Git looks behind no link; DVC copies what is there.
    links = [folder for folder in path.parents if folder.is_symlink()]
    if links and not path.is_absolute():
        path = links[-1]
    done = _ls_files("--others", "--directory", "--no-empty-directory", "--", str(path))
    leads_out = Path(os.path.normpath(path)).parts[:1] == ("..",)
    if done is None and not leads_out:
        return []  # absolute: the same place for every experiment; or there is no repository at all
    if done is None:
        raise UserError(
            f"{key}: expected a path inside of this repository, or an absolute one, received "
            f"{path}, which names nothing in the folder that an experiment runs in; give "
            f"{path.resolve()}, or move it inside"
        )
    if len(done) == 1 and Path(done[0]).is_file():
        # DVC makes no folder for a file, but those above a folder: where none is there, its own.
        folder = str(Path(done[0]).parent)
        return done if _ls_files("--", folder) else [folder]
    return done


def _beside(table: Path) -> list[str]:
    """What Git does not hold of the folder of a table, where the path is that of a file."""
    if not table.is_file() or table.is_absolute():
        return []
    if table.parent in PROJECT_FOLDERS:
        words = ("--others", "--directory", "--no-empty-directory", "--exclude-standard")
        return _ls_files(*words, "--", str(table.parent)) or []
    return _untracked("dataset.path", table.parent)


def _ls_files(*words: str) -> list[str] | None:
    """What `git ls-files` names, of folders the topmost; None where it fails."""
    done = subprocess.run(["git", "ls-files", "-z", *words], capture_output=True, text=True)
    if done.returncode:
        return None
    return [name.rstrip("/") for name in done.stdout.split("\0") if name]


def state_of(paths: Iterable[str]) -> list[tuple[str, int, int]]:
    """Name, bytes and time of change of every file in folders, and of files: what an edit moves.

    Folders that are links are looked into, as fetch does. Hidden files, which systems leave behind,
    are left out.
    """
    files = {
        file
        for path in paths
        for file in (
            [Path(path) / name for name in Folder(Path(path)).names()]
            if Path(path).is_dir()
            else [Path(path)]
        )
        if file.is_file() and not file.name.startswith(".")
    }
    return list(filter(None, map(_state, sorted(files))))


def _state(file: Path) -> tuple[str, int, int] | None:
    """Name, bytes and time of change of a file; None where there is none of that name."""
    try:
        found = file.stat()
    except (OSError, ValueError):  # a name too long, a null character, no permission
        return None
    is_file = stat.S_ISREG(found.st_mode)
    return (file.as_posix(), found.st_size, found.st_mtime_ns) if is_file else None


def start(worker_devices: list[str | None]) -> None:
    """Starts the workers one after the other, each with its own environment.

    DVC starts all that are missing at once, with one environment: the next may be asked for only
    when the one before is up.
    """
    for number, device in enumerate(worker_devices, 1):
        environment = {} if device is None else {"CUDA_VISIBLE_DEVICES": device}
        dvc("queue", "start", "--jobs", str(number), environment=environment)
        begun = time.monotonic()
        while answering_workers(status := dvc("queue", "status")) < number:
            if not any(tasks(status)[state] for state in WAITING):
                return  # all was done before this worker was needed
            if time.monotonic() - begun > START_SECONDS:
                if running_workers() >= number:
                    break  # too busy to answer
                raise UserError(f"worker {number} did not start; see `dvc queue logs`")
            time.sleep(1)


def watch(earlier: Counter) -> Counter:
    """Shows progress until no experiment waits or runs; the states at the end.

    Args:
        earlier: those that had ended before this sweep, by state, which DVC still lists.
    """
    total = sum((tasks(dvc("queue", "status")) - earlier).values())
    with progress(None, total=total, unit="experiment", description="sweep") as bar:
        while True:
            # Asked first: a worker that ends later has ended its experiments.
            running = running_workers()
            status = dvc("queue", "status")
            now = tasks(status) - earlier
            bar.update(now["Success"] + now["Failed"] - bar.n)
            alive = running or answering_workers(status)
            if not alive and any(now[state] for state in WAITING):
                raise UserError(
                    "experiments wait, but no worker runs any more; start again without -S to go "
                    "on, and see `dvc queue logs` for why they ended"
                )
            if not any(now[state] for state in (*WAITING, "Preparing")):
                return now
            time.sleep(POLL_SECONDS)


def main() -> None:
    """Queues, runs and shows."""
    parser = argparse.ArgumentParser(prog="tools.sweep", description=__doc__.split(":")[0])
    parser.add_argument(
        "-S",
        "--set-param",
        action="append",
        default=[],
        metavar="KEY=A,B",
        help="a param and its values; several: every combination",
    )
    parser.add_argument("--workers", type=int, help="default: one for each GPU, one without any")
    options = parser.parse_args()
    if options.workers is not None and options.workers < 1:
        parser.error(f"--workers: expected 1 or more, received {options.workers}")
    revisions.check_history()
    worker_devices = devices(options.workers, gpus())
    before = tasks(dvc("queue", "status"))
    earlier = Counter({state: before[state] for state in ENDED})
    if options.set_param:
        words = [word for change in options.set_param for word in ("-S", change)]
        chosen = data_of(combinations(options.set_param))
        copies = [word for path in untracked_data(chosen) for word in ("--copy-paths", path)]
        print(dvc("exp", "run", "--queue", *copies, *words), end="", flush=True)
    try:
        start(worker_devices)
        states = watch(earlier)
    except KeyboardInterrupt:
        raise UserError(
            "interrupted; experiments that were begun go on: `python -m tools.sweep`, without -S, "
            "watches the rest, `dvc queue stop --kill` ends them"
        ) from None
    shown = ("--only-changed", "--drop", DROPPED, "--no-pager", "--hide-workspace", "--md")
    print(dvc("exp", "show", *shown), end="")
    if states["Failed"]:
        raise UserError(
            f"{states['Failed']} experiments failed; `dvc queue status` names them and "
            "`dvc queue logs NAME` says why"
        )


if __name__ == "__main__":
    run(main)
