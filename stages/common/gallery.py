"""The gallery of one model: test images to look at, chosen the same way at every run.

`write` makes a folder with gallery.json, JPEG pictures and JPEG explanations (Grad-CAM).
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stages.common import files, geometry

GALLERY_FILE = "gallery.json"
MOST_ENTRIES = 240
MOST_MISTAKES = 80
MOST_UNCERTAIN = 60
MOST_EXPLAINED = 48
LONGER_SIDE = 160  # pixels, at most
JPEG_QUALITY = 85


@dataclass(frozen=True)
class Choice:
    """One test image in the gallery."""

    index: int  # row of the predictions
    kinds: tuple[str, ...]  # of 'mistake', 'uncertain' and 'sample', why it was chosen
    explained: bool  # whether it gets a Grad-CAM picture


def choose(ids: Sequence[str], labels: np.ndarray, probabilities: np.ndarray) -> list[Choice]:
    """The test images worth a look, in the order in which to show them.

    The most confident mistakes, spread over the classes; the least certain; and for the rest a
    sample balanced over the classes whose order depends on the ids alone, so that the galleries of
    two models share their sample as far as the shorter one goes. Where the model is right on some
    image there is one, even if no other rule chose it. Half of what is explained are mistakes,
    as long as there are enough of both.

    Args:
        ids: of the images, no two equal.
        labels: (images,), whole numbers below the number of classes.
        probabilities: (images, classes).
    """
    predicted = probabilities.argmax(axis=1)
    right = predicted == labels
    kinds: dict[int, list[str]] = {}
    for kind, indices in (
        ("mistake", spread(most_confident_mistakes(labels, probabilities), labels)[:MOST_MISTAKES]),
        ("uncertain", least_certain(probabilities)[:MOST_UNCERTAIN]),
    ):
        for index in indices:
            kinds.setdefault(index, []).append(kind)
    sample = sample_order(ids, labels)
    some_right = next((index for index in sample if right[index]), None)
    if some_right is not None and not any(right[index] for index in kinds):
        kinds[some_right] = []
    for index in sample:
        if index not in kinds and len(kinds) == MOST_ENTRIES:
            break
        kinds.setdefault(index, []).append("sample")
    wrong = [index for index in kinds if not right[index]]
    # In the sample's order, so that what two models explain can be compared.
    explained = _half_each(wrong, [index for index in sample if index in kinds and right[index]])
    return [
        Choice(index, tuple(names) or ("sample",), index in explained)
        for index, names in kinds.items()
    ]


def _half_each(wrong: list[int], right: list[int]) -> set[int]:
    """The first ones of both, as many of each; where one is short, more of the other."""
    half = MOST_EXPLAINED // 2
    wrong = wrong[: max(half, MOST_EXPLAINED - len(right))]
    return {*wrong, *right[: MOST_EXPLAINED - len(wrong)]}


def most_confident_mistakes(labels: np.ndarray, probabilities: np.ndarray) -> list[int]:
    """Rows whose largest probability is that of a wrong class, the largest first."""
    order = np.argsort(-probabilities.max(axis=1), kind="stable")
    wrong = probabilities.argmax(axis=1) != labels
    return [int(index) for index in order if wrong[index]]


def least_certain(probabilities: np.ndarray) -> list[int]:
    """All rows, those first whose two largest probabilities lie closest together."""
    two_largest = np.partition(probabilities, -2, axis=1)[:, -2:]
    return np.argsort(two_largest[:, 1] - two_largest[:, 0], kind="stable").tolist()


def sample_order(ids: Sequence[str], labels: np.ndarray) -> list[int]:
    """All rows, balanced over the classes as far as any first ones go; the same for every model."""
    return spread(in_order_of_hash(ids), labels)


def in_order_of_hash(ids: Sequence[str]) -> list[int]:
    """All rows in an order that looks random and depends on the ids alone."""
    keys = [hashlib.sha256(example_id.encode()).digest() for example_id in ids]
    return sorted(range(len(ids)), key=keys.__getitem__)


def spread(indices: Sequence[int], classes: np.ndarray) -> list[int]:
    """The first index of every class in their given order, then the second of every class, …"""
    seen: Counter = Counter()
    ranked = []
    for place, index in enumerate(indices):
        ranked.append((seen[classes[index]], place, index))
        seen[classes[index]] += 1
    return [index for _, _, index in sorted(ranked)]


def write(
    folder: Path,
    choices: Sequence[Choice],
    *,
    pictures: Mapping[int, np.ndarray],
    overlays: Mapping[int, np.ndarray],
    labels: np.ndarray,
    probabilities: np.ndarray,
    ids: Sequence[str],
    names: Sequence[str],
    class_names: Sequence[str],
) -> None:
    """Writes gallery.json and one or two JPEG files for each choice.

    Args:
        folder: is created; what an earlier run wrote into it is removed.
        choices: from `choose`; entries and files are in their order.
        pictures: row to (height, width, channels), uint8, of every choice; see geometry.shown.
        overlays: row to an explanation of the same kind, of the choices that are explained.
        labels, probabilities, ids, names: of all test images, by row; `names` are for people.
        class_names: one for each column of `probabilities`.
    """
    files.empty(folder)
    entries = []
    for number, choice in enumerate(choices):
        row = probabilities[choice.index]
        label, predicted = int(labels[choice.index]), int(row.argmax())
        picture = f"{number:04}.jpg"
        explanation = f"{number:04}_explanation.jpg" if choice.explained else None
        _write_jpeg(folder / picture, pictures[choice.index])
        if explanation:
            _write_jpeg(folder / explanation, overlays[choice.index])
        entries.append(
            {
                "id": ids[choice.index],
                "name": names[choice.index],
                "label": class_names[label],
                "predicted": class_names[predicted],
                "confidence": round(float(row[predicted]), 6),
                "probability_of_label": round(float(row[label]), 6),
                "correct": predicted == label,
                "kinds": list(choice.kinds),
                "picture": picture,
                "explanation": explanation,
            }
        )
    text = json.dumps(entries, indent=1, ensure_ascii=False)
    (folder / GALLERY_FILE).write_text(text + "\n", encoding="utf-8")


def _write_jpeg(path: Path, pixels: np.ndarray) -> None:
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(geometry.shown(pixels)))
    image.thumbnail((LONGER_SIDE, LONGER_SIDE))  # enlarges nothing
    image.save(path, quality=JPEG_QUALITY)
