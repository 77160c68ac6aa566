"""Decodes every image once and stores its pixels, split by split.

Reads:  data/raw/ — encoded images; data/splits.csv — the split of each.
Writes: data/images/{train,valid,test}/ — shards of (height, width, preprocess.channels) uint8, RGB
        as a rule, no side above preprocess.image_size; smaller images keep their size, since an
        upsampled pixel holds nothing new. With preprocess.resize crop or pad all are squares.
"""

import contextlib
from collections.abc import Iterable, Iterator

import numpy as np

from stages.common import geometry, images, params, paths, splits
from stages.common.datasets.raw import RawDataset, RawImage
from stages.common.run import UserError, progress, run, start_tensorflow
from stages.common.shards import ShardWriter


def pixels_of(image: RawImage, parameters: geometry.PreprocessParams) -> np.ndarray:
    """An image (height, width, channels), uint8; UserError with its name if it can't be read."""
    try:
        return images.to_array(
            image.encoded, parameters.image_size, parameters.resize, parameters.channels
        )
    except ValueError as error:
        name = image.columns.get("name", image.id)
        raise UserError(f"the image {name} can't be read: {error}; mend or remove it") from None


def with_split(
    raw: Iterable[RawImage], rows: Iterable[splits.SplitRow]
) -> Iterator[tuple[RawImage, str]]:
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
            yield image, row.split
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
    decoded = images.parallel_map(
        lambda pair: (*pair, pixels_of(pair[0], parameters)), with_split(raw, splits.read())
    )
    with contextlib.ExitStack() as stack:
        writers = {
            name: stack.enter_context(ShardWriter(paths.IMAGES / name, "uint8", raw.class_names))
            for name in splits.SPLIT_NAMES
        }
        bar = progress(decoded, total=total, unit="image", description="preprocess")
        for image, split, pixels in bar:
            writers[split].write(pixels, image.label, image.id)


if __name__ == "__main__":
    run(main)
