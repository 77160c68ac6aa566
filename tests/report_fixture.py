"""Writes what the stage `report` reads, as the other stages would, for classes that are made up."""

import csv
import json
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from stages.common import inventory
from stages.common.layer_table import LayerRow
from stages.common.report.wording import METRICS
from tests import ROOT

HOSTILE = ("<script>alert(1)</script>", "a/b \"c\" 'd' & é 日本")
SCORES = tuple(metric.key for metric in METRICS if metric.key != "top_5_accuracy")
ACCURACY = {"head": 0.78, "fine_tuned": 0.86}  # about


def write_evidence(
    folder: Path,
    class_names: Sequence[str],
    *,
    test_images: int,
    gallery: int,
    picture_side: int = 24,
    slices: dict[str, Sequence[str]] | None = None,
    rejected: int = 0,
) -> None:
    """Writes metrics, plots, galleries and params below `folder`.

    Args:
        folder: is created.
        class_names: at least two.
        test_images: in the test split; the other splits follow from it.
        gallery: pictures of each model, of noise, which JPEG hardly compresses.
        picture_side: pixels of their sides.
        slices: column to its values.
        rejected: images that could not be used.
    """
    random = np.random.default_rng(0)
    number = len(class_names)
    drawn = random.integers(number, size=max(0, test_images - number))
    labels = np.sort(np.concatenate([np.arange(number)[:test_images], drawn]))
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / "params.yaml", folder)
    for model, accuracy in ACCURACY.items():
        right = random.random(test_images) < accuracy
        others = (labels + 1 + random.integers(min(3, number - 1), size=test_images)) % number
        predicted = np.where(right, labels, others)
        confidence = np.where(right, random.beta(9, 1, test_images), random.beta(5, 3, test_images))
        metrics = model_metrics(labels, predicted, class_names)
        metrics["slice"] = {
            column: {
                value: slice_metrics(metrics, 0.02 * (place % 5 - 2), len(values))
                for place, value in enumerate(values)
            }
            for column, values in (slices or {}).items()
        }
        write_json(folder / f"metrics/{model}.json", metrics)
        names = [(class_names[a], class_names[p]) for a, p in zip(labels, predicted, strict=True)]
        plots = folder / "plots" / model
        write_rows(plots / "confusion.csv", ("actual", "predicted"), names)
        write_curves(plots, class_names, accuracy)
        write_reliability(plots / "reliability.csv", test_images)
        chosen = random.permutation(test_images)[:gallery]
        write_gallery(
            folder / "data/gallery" / model,
            [(*names[index], float(confidence[index])) for index in chosen],
            picture_side,
        )
    write_json(folder / "metrics/comparison.json", comparison(test_images))
    write_json(folder / "metrics/data.json", data_metrics(labels, class_names, rejected))
    write_training(folder / "plots")
    codes = list(inventory.PROBLEMS)
    inventory.write_rejected(
        folder / inventory.REJECTED_FILE,
        (
            inventory.InventoryRow(
                id=f"set__{number}",
                name=f"own/{number}.jpg",
                label=class_names[0],
                problem=codes[min(number // 7, len(codes) - 1)],
                detail="made up",
            )
            for number in range(rejected)
        ),
    )
    write_json(
        folder / "data/raw/dataset_info.json",
        {"name": "toy", "version": "1.0.0", "redistributionInfo": {"license": "CC BY 4.0"}},
    )


def model_metrics(labels, predicted, class_names) -> dict:
    """metrics/<model>.json: accuracy and classes are true, the other scores lie near accuracy."""
    number = len(class_names)
    actual, found = (np.bincount(values, minlength=number) for values in (labels, predicted))
    hits = np.bincount(labels[labels == predicted], minlength=number)
    recall, precision = hits / np.maximum(actual, 1), hits / np.maximum(found, 1)
    f1 = 2 * hits / np.maximum(actual + found, 1)
    accuracy = float((labels == predicted).mean())
    scores = {
        key: accuracy * (1 - 0.01 * place) if METRICS[place].higher_is_better else (1 - accuracy)
        for place, key in enumerate(SCORES)
    }
    half = 1.96 * (accuracy * (1 - accuracy) / len(labels)) ** 0.5
    calibration = ("loss", "expected_calibration_error", "brier_score")
    return {
        **scores,
        **({"top_5_accuracy": min(1.0, accuracy + 0.1)} if number > 5 else {}),
        "images": len(labels),
        "groups": len(labels),
        "temperature": 1.3,
        "uncalibrated": {key: 1.2 * scores[key] for key in calibration},
        "interval": {
            key: {"low": max(0.0, score - half), "high": min(1.0, score + half)}
            for key, score in scores.items()
        },
        "class": {
            name: {
                "precision": float(precision[place]),
                "recall": float(recall[place]),
                "f1": float(f1[place]),
                "support": int(actual[place]),
            }
            for place, name in enumerate(class_names)
        },
        "parameters": 4_050_000,
        "multiply_adds": 385_000_000,
    }


def slice_metrics(metrics: dict, better: float, slices: int) -> dict:
    """The numbers of one of several slices, which is better than the whole by some accuracy."""
    accuracy = min(0.95, metrics["accuracy"] + better)
    return {
        **{key: metrics[key] for key in SCORES},
        "images": metrics["images"] // slices,
        "accuracy": accuracy,
        "interval": {"accuracy": {"low": accuracy - 0.03, "high": accuracy + 0.02}},
    }


def comparison(test_images: int) -> dict:
    """metrics/comparison.json."""
    half = 0.7 / test_images**0.5
    change = {"difference": 0.08, "low": 0.08 - half, "high": 0.08 + half}
    keys = ("accuracy", "balanced_accuracy", "f1_macro", "roc_auc")
    return {
        **dict.fromkeys(keys, change),
        "loss": {"difference": -0.08, "low": -0.08 - half, "high": -0.08 + half},
        "mcnemar": {
            "head_only_correct": test_images // 20,
            "fine_tuned_only_correct": test_images // 8,
            "p_value": 0.0004,
        },
    }


def data_metrics(labels, class_names, rejected: int) -> dict:
    """metrics/data.json; training has three times the images of test."""
    counts = Counter(class_names[label] for label in labels)
    splits = {
        split: {
            "images": times * len(labels),
            "class": {name: times * counts[name] for name in class_names},
        }
        for split, times in (("train", 3), ("valid", 1), ("test", 1))
    }
    return {
        "images": 5 * len(labels) + rejected,
        "used": 5 * len(labels),
        "classes": len(class_names),
        "rejected": {"total": rejected},
        "animated": 2,
        "duplicates": {
            "exact_groups": 3,
            "exact_images": 4,
            "near_groups": 12,
            "near_images": 15,
            "conflicting_labels": 1,
            "near_conflicting_labels": 3,
            "straddled_official": 5,
        },
        "splits": splits,
    }


def write_curves(folder: Path, class_names: Sequence[str], skill: float) -> None:
    """roc.csv and precision_recall.csv: of the second class, of each of up to ten, or of all.

    The better the skill, from 0 to 1, the further they are from the diagonal.
    """
    several = list(class_names) if len(class_names) <= 10 else ["all classes"]
    names = [class_names[1]] if len(class_names) == 2 else several
    across = np.linspace(0, 1, 195)
    for file, up, header in (
        ("roc.csv", across ** (1 - skill), ("class", "false_positive_rate", "true_positive_rate")),
        ("precision_recall.csv", 1 - (1 - skill) * across**6, ("class", "recall", "precision")),
    ):
        rows = [(name, x, y) for name in names for x, y in zip(across, up, strict=True)]
        write_rows(folder / file, header, rows)


def write_reliability(path: Path, test_images: int) -> None:
    """Over-confident before, calibrated after; bins without images have no row."""
    rows = []
    for when, gap in (("before", 0.12), ("after", 0.01)):
        for place in range(15):
            confidence = (place + 0.5) / 15
            if images := test_images * place // 105:
                rows.append((when, confidence, max(0.0, confidence - gap), images))
    write_rows(path, ("temperature", "confidence", "accuracy", "images"), rows)


def write_training(folder: Path) -> None:
    """The histories of both phases, and the table of layers."""
    header = ("epoch", "learning_rate", "loss", "accuracy", "val_loss", "val_accuracy")
    for phase, epochs, start in (("train_head", 12, 0.9), ("fine_tune", 6, 0.6)):
        rows = [
            (epoch, 1e-3, start / epoch**0.4, 1 - 0.4 / epoch**0.5, start / epoch**0.3, 0.7)
            for epoch in range(1, epochs + 1)
        ]
        write_rows(folder / phase / "history.csv", header, rows)
    layers = [
        LayerRow(0, "stem", "Conv2D", "112 × 112 × 32", 3_400_000, False, True),
        LayerRow(0, "frozen", "DepthwiseConv2D", "112 × 112 × 32", 200_000, False, False),
        LayerRow(1, "logits", "Dense", "2", 650_000, True, True),
    ]
    rows = [tuple(vars(layer).values()) for layer in layers]
    write_rows(folder / "fine_tune" / "layers.csv", tuple(vars(layers[0])), rows)


def write_gallery(folder: Path, answers: Sequence[tuple[str, str, float]], side: int) -> None:
    """gallery.json and JPEG files from (actual, predicted, confidence)."""
    random = np.random.default_rng(1)
    folder.mkdir(parents=True)
    entries = []
    for place, (label, predicted, confidence) in enumerate(answers):
        names = [f"{place:04}.jpg", f"{place:04}_explanation.jpg" if place % 3 == 0 else None]
        for name in filter(None, names):
            noise = random.integers(0, 256, (side, side, 3), dtype=np.uint8)
            Image.fromarray(noise).save(folder / name, quality=85)
        right = label == predicted
        kinds = ["sample"] if place % 4 == 0 else ["uncertain"] if right else ["mistake"]
        entries.append(
            {
                "id": f"toy__{place}",
                "name": f"images/{place}.jpg",
                "label": label,
                "predicted": predicted,
                "confidence": confidence,
                "probability_of_label": confidence if right else (1 - confidence) / 2,
                "correct": right,
                "kinds": kinds,
                "picture": names[0],
                "explanation": names[1],
            }
        )
    write_json(folder / "gallery.json", entries)


def write_json(path: Path, content) -> None:
    """Creates the folder too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, sort_keys=True), encoding="utf-8")


def write_rows(path: Path, header: Sequence[str], rows) -> None:
    """Creates the folder too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])
