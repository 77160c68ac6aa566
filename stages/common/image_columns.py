"""The images of a data set as columns: what fetch found out about each, and what the source says.

Reads:  the rows of data/inventory.csv, and the examples of data/raw without decoding them.
"""

import dataclasses
import itertools
import sys
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from stages.common import inventory, paths
from stages.common.datasets.raw import RawImage
from stages.common.run import UserError


@dataclass(frozen=True)
class Images:
    """What the split needs to know of the images, in columns of equal length: no pixels.

    A million images are a few hundred megabytes this way, and a gigabyte as objects.
    """

    ids: list[str]
    names: list[str]  # what people know them by
    labels: list[str]
    contents: np.ndarray  # (images,), bytes: sha256 in hexadecimal
    perceptual: np.ndarray  # (images,), uint64
    sizes: np.ndarray  # (images, 2), width and height in pixels
    means: np.ndarray  # (images, 3), float32, of red, green and blue, 0–255
    official_splits: list[str] = dataclasses.field(default_factory=list)
    columns: dict[str, list[str]] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    def where(self, kept: np.ndarray) -> "Images":
        """Those images for which `kept` (images,), bool, is true."""

        def pick(column):
            if isinstance(column, dict):
                return {name: pick(values) for name, values in column.items()}
            if isinstance(column, np.ndarray):
                return column[kept]
            return list(itertools.compress(column, kept))

        picked = {field.name: pick(getattr(self, field.name)) for field in dataclasses.fields(self)}
        return Images(**picked)


@dataclass(frozen=True)
class Rejected:
    """What fetch found that is not used, or not all of it."""

    ids: frozenset[str]
    labels: frozenset[str]
    problems: Counter  # images by code of inventory.PROBLEMS
    animated: int  # images of more than one frame, of which the first is used


def read_inventory(rows: Iterable[inventory.InventoryRow]) -> tuple[Images, Rejected]:
    """The images that can be used, without columns and official splits yet, and the others."""
    ids, names, labels, contents = [], [], [], bytearray()
    perceptual, sizes, means = array("Q"), array("l"), array("f")
    rejected_ids, rejected_labels, problems, animated = set(), set(), Counter(), 0
    for row in rows:
        if row.problem:
            rejected_ids.add(row.id)
            rejected_labels.add(row.label)
            problems[row.problem] += 1
            continue
        ids.append(row.id)
        names.append(row.id if row.name == row.id else row.name)
        labels.append(sys.intern(row.label))
        contents += row.content.encode()
        perceptual.append(int(row.perceptual, 16))
        sizes.extend((row.width, row.height))
        means.extend((row.red, row.green, row.blue))
        animated += row.frames > 1
    found = Images(
        ids=ids,
        names=names,
        labels=labels,
        contents=np.frombuffer(contents, "S64"),
        perceptual=np.frombuffer(perceptual, np.uint64),
        sizes=np.frombuffer(sizes, np.int64).reshape(-1, 2),
        means=np.frombuffer(means, np.float32).reshape(-1, 3),
    )
    return found, Rejected(frozenset(rejected_ids), frozenset(rejected_labels), problems, animated)


def with_columns(found: Images, rejected: Rejected, raw: Iterable[RawImage]) -> Images:
    """Adds the official split and the columns that data/raw has of each image.

    Raises:
        UserError: the inventory is of other images.
    """
    official: list[str] = []
    columns: dict[str, list[str]] = defaultdict(list)
    expected = zip(found.ids, found.names, strict=True)
    for image in raw:
        if image.id in rejected.ids:
            continue
        image_id, image_name = next(expected, ("", ""))
        if image.id != image_id:
            raise _other_images(image.id)
        official.append(sys.intern(image.official_split))
        for name, value in image.columns.items():
            text = str(value)
            # One text for all that are equal, and the name is here already.
            columns[name].append(image_name if text == image_name else sys.intern(text))
    for image_id, _ in expected:
        raise _other_images(image_id)
    return dataclasses.replace(found, official_splits=official, columns=dict(columns))


def _other_images(image_id: str) -> UserError:
    return UserError(
        f"{inventory.INVENTORY_FILE} and {paths.RAW} are not of the same images (at {image_id}); "
        "run `dvc repro --force --single-item fetch`"
    )


def encode(values: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """Texts as numbers, and the texts in the order of the alphabet that the numbers stand for."""
    names = sorted(set(values))
    number = {name: index for index, name in enumerate(names)}
    return np.fromiter(map(number.__getitem__, values), np.int64, len(values)), names
