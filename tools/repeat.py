"""Repeats the pipeline with several seeds: python -m tools.repeat --seeds 5 [--model head] [-S …].

A seed draws the split, new weights, the order of images and augmentation, so that the spread over
seeds is what a single number hides. Each repetition is a DVC experiment, and one that was run
before is not run again. Ends with a table; --csv keeps the figures for docs/experiments.md.
"""

import argparse
import contextlib
import csv
import hashlib
import json
import statistics
import subprocess
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import dvc.api
from ruamel.yaml import YAMLError

from stages.common import params, paths, tables
from stages.common.run import UserError, run
from tools import check_params, experiment, revisions, sweep
from tools.check_params import with_values

FIXED_COLUMNS = ("model", "change", "seed")
METRICS = (
    "accuracy",
    "weighted_accuracy",
    "balanced_accuracy",
    "roc_auc",
    "weighted_roc_auc",
    "loss",
)


def name_of(target: str, values: dict[str, Any]) -> str:
    """A name that is equal where commit, changes since, params, target, values and data are."""
    commit, changes = (
        subprocess.run(["git", *words], capture_output=True, check=True).stdout
        for words in (("rev-parse", "HEAD"), ("diff", "HEAD"))
    )
    parts = [
        commit,
        changes,
        params.PARAMS_FILE.read_bytes(),
        target.encode(),
        json.dumps(values, default=str).encode(),
        sweep.data_state([with_values(values)]).encode(),
    ]
    return f"repeat-{hashlib.sha256(b''.join(parts)).hexdigest()[:10]}"


def run_once(target: str, values: dict[str, Any]) -> str:
    """Runs the experiment up to a stage, unless it has been; its name."""
    name = name_of(target, values)
    if name in sweep.dvc("exp", "list", "--name-only").split():
        return name
    with contextlib.closing(experiment.lines(name, target, values)) as lines:
        for line in lines:
            print(line, end="", flush=True)
    return name


def read_metrics(name: str, model: str) -> dict[str, float]:
    """All numbers of a model in an experiment, nested names joined by points."""
    return flat(json.loads(dvc.api.read((paths.METRICS / f"{model}.json").as_posix(), rev=name)))


def flat(metrics: dict, prefix: str = "") -> dict[str, float]:
    """Nested numbers, their names joined by points."""
    found: dict[str, float] = {}
    for key, value in metrics.items():
        inside = isinstance(value, dict)
        found |= flat(value, f"{prefix}{key}.") if inside else {f"{prefix}{key}": value}
    return found


def check_names(model: str, names: list[str] | None, path: Path | None) -> None:
    """Says before the work what may be refused after it: a name that the last run's metrics lack.

    Other params may bring it.

    Raises:
        UserError: the file has other columns than these.
    """
    last = paths.METRICS / f"{model}.json"
    if last.exists():
        try:
            chosen(flat(json.loads(last.read_text(encoding="utf-8"))), names)
        except UserError as error:
            print(f"warning: in the last run, {last}, {error}", flush=True)
    if path and names:
        check_columns(path, names)


def check_columns(path: Path, names: Iterable[str], may_lack: Collection[str] = ()) -> list[str]:
    """The columns of results, those of the file where it is there.

    Args:
        path: the file.
        names: of the metrics.
        may_lack: names that the file may have beside them, which then stay empty.

    Raises:
        UserError: the file has other columns.
    """
    columns = [*FIXED_COLUMNS, *names]
    if not path.exists():
        return columns
    with path.open(newline="", encoding="utf-8") as file:
        found = csv.DictReader(file).fieldnames or []
    if [name for name in found if name in columns or name not in may_lack] != columns:
        raise UserError(
            f"{path} has columns {', '.join(found)}, and these results "
            f"{', '.join(columns)}; choose the same by --metrics, or another file"
        )
    return found


def chosen(
    metrics: dict[str, float], names: list[str] | None, known: Collection[str] = ()
) -> list[str]:
    """The metrics to show.

    Args:
        metrics: what there is.
        names: what was asked for; None: METRICS.
        known: names that are left out where there is no such metric.

    Raises:
        UserError: there is no metric of another name.
    """
    for name in names or ():
        if name not in metrics and name not in known:
            raise UserError(f"no metric is named {name!r}{params.nearest(name, metrics)}")
    return [name for name in names or METRICS if name in metrics]


def table(rows: list[dict[str, float]]) -> str:
    """Mean, standard deviation and extremes over the seeds, a metric a line.

    What a seed lacks, as the area under the curve where it tests one class alone, is left out.
    """
    names = [name for name in rows[0] if all(name in row for row in rows)]
    width = max(map(len, names), default=7)
    lines = [f"{f'{len(rows)} seeds':<{width}}  {'mean':>7} {'± sd':>7} {'from':>7} {'to':>7}"]
    for name in names:
        values = [row[name] for row in rows]
        spread = f"{statistics.stdev(values):.4f}" if len(values) > 1 else ""
        lines.append(
            f"{name:<{width}}  {statistics.mean(values):>7.4f} {spread:>7} {min(values):>7.4f} "
            f"{max(values):>7.4f}"
        )
    return "\n".join(lines)


def keep(
    path: Path,
    model: str,
    change: str,
    rows: list[dict[str, float]],
    names: list[str] | None = None,
) -> None:
    """Writes a row for each seed; rows of the same model and change that are there give way.

    Args:
        path: the file.
        model: whose metrics they are.
        change: what was set.
        rows: the metrics of each seed; what one lacks stays empty.
        names: of the metrics; None: all that any seed has, as METRICS has them.

    Raises:
        UserError: the file has other columns.
    """
    found = dict.fromkeys(name for row in rows for name in row)
    # A stable sort: what METRICS has not follows in the order of the rows.
    order = {name: place for place, name in enumerate(METRICS)}
    found_in_order = sorted(found, key=lambda name: order.get(name, len(order)))
    columns = check_columns(path, names or found_in_order, () if names else METRICS)
    kept = []
    if path.exists():
        with path.open(newline="", encoding="utf-8") as file:
            rows_there = csv.DictReader(file)
            kept = [row for row in rows_there if (row["model"], row["change"]) != (model, change)]
    new = [{"model": model, "change": change, "seed": seed, **row} for seed, row in enumerate(rows)]
    tables.write_csv(
        path, columns, ([row.get(name, "") for name in columns] for row in [*kept, *new])
    )


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="tools.repeat", description=__doc__.split(":")[0])
    parser.add_argument("--seeds", type=int, required=True, help="how many: 0 to one less")
    parser.add_argument("--model", choices=paths.CLASSIFIERS, default="fine_tuned")
    parser.add_argument("-S", "--set-param", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument(
        "--metrics", nargs="+", metavar="NAME", help=f"default: {' '.join(METRICS)}"
    )
    parser.add_argument("--csv", type=Path, help="keep the figures, a row for each seed")
    options = parser.parse_args()
    if options.csv and not options.csv.parent.is_dir():
        parser.error(f"--csv: there is no folder {options.csv.parent}")
    if options.csv and options.csv.is_dir():
        parser.error(f"--csv: expected a file, received the folder {options.csv}")
    if options.seeds < 1:
        parser.error(f"--seeds: expected 1 or more, received {options.seeds}")
    return options


def main() -> None:
    """Runs what is still to run, and prints."""
    options = parse()
    revisions.check_history()
    values = {}
    for change in options.set_param:
        key, equals, value = change.partition("=")
        if not equals:
            raise UserError(f"-S: expected KEY=VALUE, received {change!r}")
        try:
            values[key] = params.parse(value)
        except YAMLError as error:
            raise UserError(f"-S: expected {key}=YAML, received {value!r}: {error}") from None
    if "seed" in values:
        raise UserError("-S: received seed, which --seeds sets; leave it out")
    check_params.check(with_values({**values, "seed": 0}), "params.yaml with -S")
    check_names(options.model, options.metrics, options.csv)
    experiment.check_handed(values)
    rows = []
    begun = experiment.state([values])
    for seed in range(options.seeds):
        experiment.check_unchanged(begun, [values])
        print(f"seed {seed}, {seed + 1} of {options.seeds}", flush=True)
        name = run_once(f"evaluate@{options.model}", {**values, "seed": seed})
        metrics = read_metrics(name, options.model)
        known = {*METRICS, *(name for row in rows for name in row)}
        found = chosen(metrics, options.metrics, known)
        if lacking := [name for name in options.metrics or () if name not in metrics]:
            print(f"warning: seed {seed} has no {', '.join(lacking)}", flush=True)
        rows.append({name: metrics[name] for name in found})
        print(table(rows), flush=True)
        if options.csv and seed == 0:
            check_columns(options.csv, found, METRICS)
    if options.csv:
        change = " ".join(options.set_param) or "none"
        keep(options.csv, options.model, change, rows, options.metrics)


if __name__ == "__main__":
    run(main)
