"""Decodes every image once and stores its pixels, split by split.

Reads:  data/raw/ — encoded images; data/splits.csv — the split of each.
Writes: data/images/{train,valid,test}/ — shards of (height, width, preprocess.channels) uint8, RGB
        as a rule, no side above preprocess.image_size; smaller images keep their size, since an
        upsampled pixel holds nothing new. With preprocess.resize crop or pad all are squares.
"""

import contextlib
import functools
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from stages.common import geometry, images, params, paths, splits
from stages.common.datasets.raw import RawDataset, RawImage
from stages.common.run import UserError, progress, run, start_tensorflow
from stages.common.shards import ShardWriter

# Mean bytes of an encoded image below which Python's own work on it, which threads can't share, is
# most of its decoding, and passing its pixels between processes is little.
SMALL_BYTES = 6 * 1024
LOOKED_AT = 64  # images, to tell


@dataclass(frozen=True)
class Placed:
    """An image and its split."""

    image: RawImage
    split: str

    @property
    def encoded(self) -> bytes:
        """As `images.map_encoded` wants it."""
        return self.image.encoded


def decoded(
    placed: Iterable[Placed], parameters: geometry.PreprocessParams
) -> Iterator[tuple[Placed, np.ndarray]]:
    """Images with their pixels (height, width, channels), uint8, in order, by all cores.

    Small images by processes, large ones by threads (benchmarks/profile.md).

    Raises:
        UserError: some can't be read; all of them are named, when the others have come.
    """
    pixels_of = functools.partial(
        images.to_array,
        image_size=parameters.image_size,
        resize=parameters.resize,
        channels=parameters.channels,
    )
    placed = iter(placed)
    first = list(itertools.islice(placed, LOOKED_AT))
    are_small = sum(len(one.encoded) for one in first) < SMALL_BYTES * len(first)
    # By an iterator of its own, and forgotten here: a chain would keep the list to its end.
    everything = itertools.chain(iter(first), placed)
    del first
    if are_small:
        pairs = images.map_encoded(pixels_of, everything)
    else:

        def pair(one: Placed) -> tuple[Placed, np.ndarray | images.BadImage]:
            try:
                return one, pixels_of(one.encoded)
            except images.BadImage as error:
                return one, error

        pairs = images.parallel_map(pair, everything)
    bad = []
    for one, found in pairs:
        if isinstance(found, images.BadImage):
            bad.append(f"\n       {one.image.name}: {found}")
        else:
            yield one, found
    if bad:
        raise UserError(
            f"{len(bad)} images can't be read as images of {parameters.channels} channels "
            f"(preprocess.channels); mend or remove them:{''.join(bad)}"
        )


def with_split(raw: Iterable[RawImage], rows: Iterable[splits.SplitRow]) -> Iterator[Placed]:
    """The images that the table has, each with its split; no more than one row is in memory.

    Args:
        raw: all images.
        rows: of data/splits.csv, in the order of `raw`; split.sample leaves some images out.

    Raises:
        UserError: a row has no image, or comes in another order.
    """
    remaining = iter(rows)
    row = next(remaining, None)
    for image in raw:
        if row is not None and row.id == image.id:
            yield Placed(image, row.split)
            row = next(remaining, None)
    if row is not None:
        raise UserError(
            f"{splits.SPLITS_FILE}: expected the images of {paths.RAW} in their order, received "
            f"{row.id}, which is not there or comes too late; run `dvc repro split`"
        )


def main() -> None:
    """Streams data/raw through all cores into three folders of shards."""
    parameters = params.load("preprocess", geometry.PreprocessParams)
    start_tensorflow()
    raw = RawDataset(paths.RAW)
    total = sum(1 for _ in splits.read())
    with contextlib.ExitStack() as stack:
        writers = {
            name: stack.enter_context(ShardWriter(paths.IMAGES / name, "uint8", raw.class_names))
            for name in splits.SPLIT_NAMES
        }
        pairs = decoded(with_split(raw, splits.read()), parameters)
        for one, pixels in progress(pairs, total=total, unit="image", description="preprocess"):
            writers[one.split].write(pixels, one.image.label, one.image.id)


if __name__ == "__main__":
    run(main, takes_arguments=False)
