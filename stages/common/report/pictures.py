"""The galleries as the page embeds them: base64 text, as much as the page has room for."""

import base64
import itertools
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from stages.common.report.evidence import Picture

SEPARATOR_BYTES = 4  # quotation marks, comma and space around a file in the JSON


def fit(galleries: Mapping[str, Sequence[Picture]], room: int) -> dict[str, Any]:
    """As many pictures as fit, evenly of each model and kind; equal files are stored once.

    Args:
        galleries: model to its pictures.
        room: bytes that files and entries may take in the page.

    Returns:
        `files` (base64 of JPEG files), `entries` (in the galleries' order, with `picture` and
        `explanation` as places in `files`) and `left_out`, the pictures that found no room.
    """
    from jinja2.utils import htmlsafe_json_dumps

    files: list[str] = []
    place_of: dict[bytes | None, int | None] = {None: None}
    chosen: dict[tuple[str, int], dict[str, Any]] = {}
    order = list(_fair_order(galleries))
    for model, index in order:
        picture = galleries[model][index]
        both = dict.fromkeys((picture.picture, picture.explanation))
        new = [content for content in both if content not in place_of]
        encoded = [base64.b64encode(content).decode() for content in new]
        places = {content: len(files) + number for number, content in enumerate(new)}
        entry = {
            "model": model,
            "name": picture.name,
            "label": picture.label,
            "predicted": picture.predicted,
            "confidence": picture.confidence,
            "probability_of_label": picture.probability_of_label,
            "correct": picture.correct,
            "kinds": list(picture.kinds),
            "picture": (place_of | places)[picture.picture],
            "explanation": (place_of | places)[picture.explanation],
        }
        size = len(htmlsafe_json_dumps(entry)) + sum(map(len, encoded))
        size += SEPARATOR_BYTES * (1 + len(encoded))
        if size <= room:
            room -= size
            place_of |= places
            files += encoded
            chosen[model, index] = entry
    ordered = [
        chosen[model, index]
        for model, pictures in galleries.items()
        for index in range(len(pictures))
        if (model, index) in chosen
    ]
    return {"files": files, "entries": ordered, "left_out": len(order) - len(ordered)}


def _fair_order(galleries: Mapping[str, Sequence[Picture]]) -> Iterator[tuple[str, int]]:
    """Model and index of every picture: the first of each model and kind, then the second, …"""
    queues = defaultdict(list)
    for model, pictures in galleries.items():
        for index, picture in enumerate(pictures):
            queues[model, picture.kinds[:1]].append((model, index))
    for round_of_all in itertools.zip_longest(*queues.values()):
        yield from (place for place in round_of_all if place is not None)
