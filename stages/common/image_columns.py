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

TEXT = np.dtypes.StringDType()  # 16 bytes, and its length where that is above 15
TEXTS_AT_ONCE = 10_000


@dataclass(frozen=True)
class Images:
    """What the split needs to know of the images, in columns of equal length: no pixels.

    A million images are some two hundred megabytes this way, and a gigabyte as objects.
    """

    ids: np.ndarray  # (images,), texts
    names: np.ndarray  # (images,), texts: what people know them by
    labels: list[str]
    contents: np.ndarray  # (images,), bytes: sha256 in hexadecimal
    perceptual: np.ndarray  # (images,), uint64
    sizes: np.ndarray  # (images, 2), width and height in pixels
    means: np.ndarray  # (images, 3), float32, of red, green and blue, 0–255
    official_splits: list[str] = dataclasses.field(default_factory=list)
    columns: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)  # (images,), texts

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


class _Texts:
    """A column of texts that grows: half of what a list of them takes, and an array in the end."""

    def __init__(self):
        self._full: list[np.ndarray] = []
        self._latest: list[str] = []

    def append(self, text: str) -> None:
        self._latest.append(text)
        if len(self._latest) == TEXTS_AT_ONCE:
            self._full.append(np.array(self._latest, TEXT))
            self._latest = []

    def to_array(self) -> np.ndarray:
        """All of them, (texts,)."""
        return np.concatenate([*self._full, np.array(self._latest, TEXT)])


def read_inventory(rows: Iterable[inventory.InventoryRow]) -> tuple[Images, Rejected]:
    """The images that can be used, without columns and official splits yet, and the others."""
    ids, names, labels, contents = _Texts(), _Texts(), [], bytearray()
    perceptual, sizes, means = array("Q"), array("i"), array("f")
    rejected_ids, rejected_labels, problems, animated = set(), set(), Counter(), 0
    for row in rows:
        if row.problem:
            rejected_ids.add(row.id)
            rejected_labels.add(row.label)
            problems[row.problem] += 1
            continue
        ids.append(row.id)
        names.append(row.name)
        labels.append(sys.intern(row.label))
        contents += row.content.encode()
        perceptual.append(int(row.perceptual, 16))
        sizes.extend((row.width, row.height))
        means.extend((row.red, row.green, row.blue))
        animated += row.frames > 1
    found = Images(
        ids=ids.to_array(),
        names=names.to_array(),
        labels=labels,
        contents=np.frombuffer(contents, "S64"),
        perceptual=np.frombuffer(perceptual, np.uint64),
        sizes=np.frombuffer(sizes, np.int32).reshape(-1, 2),
        means=np.frombuffer(means, np.float32).reshape(-1, 3),
    )
    return found, Rejected(frozenset(rejected_ids), frozenset(rejected_labels), problems, animated)


def with_columns(found: Images, rejected: Rejected, raw: Iterable[RawImage]) -> Images:
    """Adds the official split and the columns that data/raw has of each image.

    Raises:
        UserError: the inventory is of other images.
    """
    official: list[str] = []
    columns: dict[str, _Texts] = defaultdict(_Texts)
    expected = iter(found.ids)
    for image in raw:
        if image.id in rejected.ids:
            continue
        if image.id != next(expected, ""):
            raise _other_images(image.id)
        official.append(sys.intern(image.official_split))
        for name, value in image.columns.items():
            columns[name].append(str(value))
    for image_id in expected:
        raise _other_images(image_id)
    texts = {name: column.to_array() for name, column in columns.items()}
    return dataclasses.replace(found, official_splits=official, columns=texts)


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
