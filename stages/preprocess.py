"""Decodes every image once and stores its pixels, split by split.

Reads:  data/raw/ — encoded images; data/splits.csv — the split of each.
Writes: data/images/{train,valid,test}/ — shards of (height, width, preprocess.channels) uint8, RGB
        as a rule, no side above preprocess.image_size; smaller images keep their size, since an
        upsampled pixel holds nothing new. With preprocess.resize crop or pad all are squares.
"""

import contextlib

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


def main() -> None:
    """Streams data/raw through all cores into three folders of shards."""
    parameters = params.load("preprocess", geometry.PreprocessParams)
    start_tensorflow()
    raw = RawDataset(paths.RAW)
    split_of = {row.id: row.split for row in splits.read()}
    used = (image for image in raw if image.id in split_of)  # split.sample leaves the others out
    decoded = images.parallel_map(lambda image: (image, pixels_of(image, parameters)), used)
    with contextlib.ExitStack() as stack:
        writers = {
            name: stack.enter_context(ShardWriter(paths.IMAGES / name, "uint8", raw.class_names))
            for name in splits.SPLIT_NAMES
        }
        bar = progress(decoded, total=len(split_of), unit="image", description="preprocess")
        for image, pixels in bar:
            writers[split_of[image.id]].write(pixels, image.label, image.id)


if __name__ == "__main__":
    run(main)
