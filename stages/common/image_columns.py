"""The images of a data set as columns: what fetch found out about each, and what the source says.

Reads:  the rows of data/inventory.csv, and the examples of data/raw without decoding them.
"""

import dataclasses
import itertools
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from stages.common import duplicates, inventory, paths
from stages.common.columns import Categories, StoredTexts
from stages.common.datasets.raw import RawImage
from stages.common.run import UserError

# NumPy leaves out null bytes at the end of what it gives back.
CONTENT = np.dtype((np.bytes_, duplicates.DIGEST_BYTES))


@dataclass(frozen=True)
class Images:
    """What the split needs to know of the images, in columns of equal length: no pixels.

    A million images are 22 megabytes this way; ids, names and other texts are on the disk.
    """

    ids: Sequence[str]
    names: Sequence[str]  # what people know them by
    labels: Categories
    sizes: np.ndarray  # (images, 2), int32, width and height in pixels
    means: np.ndarray  # (images, 3), float32, of red, green and blue, 0–255
    official_splits: Categories
    columns: dict[str, Sequence[str]] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    def where(self, kept: np.ndarray) -> "Images":
        """Those images for which `kept` (images,), bool, is true."""

        def pick(column):
            if isinstance(column, dict):
                return {name: pick(values) for name, values in column.items()}
            if isinstance(column, np.ndarray):
                return column[kept]
            if isinstance(column, Categories):
                return Categories(column.codes[kept], column.names)
            return StoredTexts(itertools.compress(column, kept))

        picked = {field.name: pick(getattr(self, field.name)) for field in dataclasses.fields(self)}
        return Images(**picked)


@dataclass(frozen=True)
class Hashes:
    """What tells which images are the same or look alike; 40 megabytes for a million images."""

    contents: np.ndarray  # (images,), CONTENT
    perceptual: np.ndarray  # (images,), uint64


@dataclass(frozen=True)
class Rejected:
    """What fetch found that is not used, or not all of it."""

    ids: frozenset[str]
    labels: frozenset[str]
    problems: Counter  # images by code of inventory.PROBLEMS
    animated: int  # images of more than one frame, of which the first is used


def read_inventory(rows: Iterable[inventory.InventoryRow]) -> tuple[Images, Hashes, Rejected]:
    """The images that can be used, without columns and official splits yet, and the others."""
    ids, names, contents, labels = StoredTexts(), StoredTexts(), bytearray(), array("i")
    number: dict[str, int] = {}  # of each label
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
        labels.append(number.setdefault(row.label, len(number)))
        contents += bytes.fromhex(row.content)
        perceptual.append(int(row.perceptual, 16))
        sizes.extend((row.width, row.height))
        means.extend((row.red, row.green, row.blue))
        animated += row.frames > 1
    found = Images(
        ids=ids,
        names=names,
        labels=Categories(np.frombuffer(labels, np.int32), list(number)),
        sizes=np.frombuffer(sizes, np.int32).reshape(-1, 2),
        means=np.frombuffer(means, np.float32).reshape(-1, 3),
        official_splits=Categories.of([]),
    )
    hashes = Hashes(np.frombuffer(contents, CONTENT), np.frombuffer(perceptual, np.uint64))
    rejected = Rejected(frozenset(rejected_ids), frozenset(rejected_labels), problems, animated)
    return found, hashes, rejected


def with_columns(found: Images, rejected: Rejected, raw: Iterable[RawImage]) -> Images:
    """Adds the official split and the columns that data/raw has of each image.

    Raises:
        UserError: the inventory is of other images.
    """
    official, number = array("i"), {}
    columns: dict[str, StoredTexts] = defaultdict(StoredTexts)
    expected = iter(found.ids)
    for image in raw:
        if image.id in rejected.ids:
            continue
        if image.id != next(expected, ""):
            raise _other_images(image.id)
        official.append(number.setdefault(image.official_split, len(number)))
        for name, value in image.columns.items():
            columns[name].append(str(value))
    for image_id in expected:
        raise _other_images(image_id)
    splits = Categories(np.frombuffer(official, np.int32), list(number))
    return dataclasses.replace(found, official_splits=splits, columns=dict(columns))


def _other_images(image_id: str) -> UserError:
    return UserError(
        f"{inventory.INVENTORY_FILE} and {paths.RAW} are not of the same images (at {image_id}); "
        "run `dvc repro --force --single-item fetch`"
    )
