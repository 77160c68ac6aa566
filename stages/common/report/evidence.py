"""Reads what the other stages found out: small files only, no model and no TensorFlow.

From metrics/, plots/, data/gallery/, data/rejected.csv, data/raw/dataset_info.json, params.yaml.
"""

import csv
import importlib.metadata
import json
import platform
import subprocess
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stages.common import inventory, params, paths
from stages.common.gallery import GALLERY_FILE
from stages.common.run import UserError

FIRST_NAMES = 5
LIBRARIES = ("tensorflow", "keras", "tensorflow-datasets", "scikit-learn", "numpy", "dvc")
# What decides the results; what the pipeline writes into Git is of no interest here.
SOURCES = ("params.yaml", "dvc.yaml", "stages", "requirements.txt")


@dataclass(frozen=True)
class Picture:
    """One entry of a gallery, its JPEG files read."""

    name: str
    label: str
    predicted: str
    confidence: float
    probability_of_label: float
    correct: bool
    kinds: tuple[str, ...]
    picture: bytes
    explanation: bytes | None


@dataclass(frozen=True)
class Model:
    """What is known of one model."""

    metrics: dict[str, Any]
    confusion: Counter  # (actual, predicted) to test images
    roc: dict[str, list[tuple[float, float]]]  # class to (false, true positive rate)
    precision_recall: dict[str, list[tuple[float, float]]]  # class to (recall, precision)
    reliability: dict[str, list[dict[str, float]]]  # before, after to confidence, accuracy, images
    history: list[dict[str, float]]  # one an epoch
    gallery: list[Picture]


@dataclass(frozen=True)
class Rejected:
    """The images with one kind of problem."""

    images: int
    first_names: list[str]


@dataclass(frozen=True)
class Commit:
    """What Git says of the working tree; `name` is None where it says nothing."""

    name: str | None
    date: str = ""  # of the commit, YYYY-MM-DD
    changed: list[str] = field(default_factory=list)  # of SOURCES, what differs from the commit


@dataclass(frozen=True)
class Evidence:
    """All that the page tells."""

    models: dict[str, Model]
    comparison: dict[str, Any]
    data: dict[str, Any]
    rejected: dict[str, Rejected]  # by code
    source: dict[str, Any]  # what TFDS notes of the data set
    trainable: dict[str, int]  # model to parameters of the layers that trained
    params: dict[str, Any]
    params_text: str
    commit: Commit
    versions: dict[str, str]


def read() -> Evidence:
    """Everything, from the project's folder."""
    return Evidence(
        models={name: _read_model(name) for name in paths.CLASSIFIERS},
        comparison=_read_json(paths.METRICS / "comparison.json"),
        data=_read_json(paths.METRICS / "data.json"),
        rejected=summarise_rejected(inventory.read(_there(inventory.REJECTED_FILE))),
        source=_read_json(paths.RAW / "dataset_info.json"),
        trainable=_read_trainable(paths.PLOTS / "fine_tune" / "layers.csv"),
        params=params.read(),
        params_text=params.PARAMS_FILE.read_text(encoding="utf-8"),
        commit=_read_commit(),
        versions={"Python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in LIBRARIES},
    )


def summarise_rejected(rows: Iterable[inventory.InventoryRow]) -> dict[str, Rejected]:
    """How many images each problem has, and the first names; most frequent first."""
    counts: Counter = Counter()
    names: dict[str, list[str]] = {}
    for row in rows:
        counts[row.problem] += 1
        if counts[row.problem] <= FIRST_NAMES:
            names.setdefault(row.problem, []).append(row.name or row.id)
    return {code: Rejected(images, names[code]) for code, images in counts.most_common()}


def parse_changes(porcelain: str) -> list[str]:
    """The paths that `git status --porcelain` names."""
    return [line[3:] for line in porcelain.splitlines() if line]


def _read_model(name: str) -> Model:
    folder = paths.PLOTS / name
    confusion = Counter(
        (row["actual"], row["predicted"]) for row in _rows(folder / "confusion.csv")
    )
    reliability: dict[str, list[dict[str, float]]] = {"before": [], "after": []}
    for row in _rows(folder / "reliability.csv"):
        numbers = {key: float(row[key]) for key in ("confidence", "accuracy", "images")}
        reliability[row["temperature"]].append(numbers)
    return Model(
        metrics=_read_json(paths.METRICS / f"{name}.json"),
        confusion=confusion,
        roc=_curves(folder / "roc.csv", "false_positive_rate", "true_positive_rate"),
        precision_recall=_curves(folder / "precision_recall.csv", "recall", "precision"),
        reliability=reliability,
        history=[
            {key: float(value) for key, value in row.items() if value}
            for row in _rows(paths.PLOTS / paths.TRAINED_BY[name] / "history.csv")
        ],
        gallery=_read_gallery(paths.GALLERY / name),
    )


def _read_gallery(folder: Path) -> list[Picture]:
    def picture(entry: dict) -> Picture:
        explanation = entry["explanation"]
        return Picture(
            **{
                key: entry[key]
                for key in ("label", "predicted", "confidence", "probability_of_label", "correct")
            },
            name=entry["name"] or entry["id"],
            kinds=tuple(entry["kinds"]),
            picture=_there(folder / entry["picture"]).read_bytes(),
            explanation=_there(folder / explanation).read_bytes() if explanation else None,
        )

    return [picture(entry) for entry in _read_json(folder / GALLERY_FILE)]


def _curves(path: Path, across: str, up: str) -> dict[str, list[tuple[float, float]]]:
    curves: dict[str, list[tuple[float, float]]] = {}
    for row in _rows(path):
        curves.setdefault(row["class"], []).append((float(row[across]), float(row[up])))
    return curves


def _read_trainable(path: Path) -> dict[str, int]:
    totals = dict.fromkeys(paths.CLASSIFIERS, 0)
    for row in _rows(path):
        for model, stage in paths.TRAINED_BY.items():
            if row[f"trainable_in_{stage}"] == "True":
                totals[model] += int(row["parameters"])
    return totals


def _read_json(path: Path) -> Any:
    return json.loads(_text(path))


def _rows(path: Path) -> Iterable[dict[str, str]]:
    return csv.DictReader(_text(path).splitlines(keepends=True))


def _text(path: Path) -> str:
    return _there(path).read_text(encoding="utf-8")


def _there(path: Path) -> Path:
    if not path.exists():
        raise UserError(f"{path} does not exist; `dvc repro` makes it")
    return path


def _read_commit() -> Commit:
    try:
        name, date = _git("log", "-1", "--format=%h %cs").split()
        return Commit(name, date, parse_changes(_git("status", "--porcelain", "--", *SOURCES)))
    except (OSError, subprocess.CalledProcessError):
        return Commit(None)  # no Git on the machine, no repository, or no commit in it yet


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], capture_output=True, check=True, encoding="utf-8")
    return done.stdout
