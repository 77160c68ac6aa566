"""Arrays on disk as TFRecord shards: decoded images and cached features share this one format.

A folder holds `index.json` and `shard-00000.tfrecord`, … Each record is a tf.train.Example with
`array` (raw bytes), `shape`, `label` and `id`. Everything streams: memory does not grow with the
number of records, save for the shuffle buffer, whose bytes are bounded.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from stages.common import files
from stages.common.run import UserError, data_options

INDEX_FILE = "index.json"
# Few and large: DVC pays for each file, a reader does not gain from more.
SHARD_BYTES = 64 * 2**20
# Records are stored in random order already; this much is shuffled anew in each epoch.
SHUFFLE_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Index:
    """What index.json says of a folder of shards."""

    count: int
    shape: list[int] | None  # of every record; None where they differ
    largest_bytes: int  # of one record's array
    dtype: str
    class_names: list[str]
    class_counts: list[int]  # records of each class
    files: list[str]
    file_counts: list[int]  # records of each file
    sha256: str  # of all arrays, labels and ids, in order


@dataclass(frozen=True)
class Part:
    """One of several equal parts of all records: of each batch, and so of the stored order.

    What one worker of a team reads: a stretch of records of its own, and no shard that lies
    outside of it.
    """

    number: int  # from 0
    parts: int  # of how many

    def of_batch(self, images: int) -> int:
        """How many images of a batch belong to it."""
        return (self.number + 1) * images // self.parts - self.number * images // self.parts

    def records(self, count: int, batch_size: int) -> range:
        """Which of the records, by their place in the stored order, belong to it.

        Args:
            count: of all records.
            batch_size: of all parts together; the last batch may be smaller.
        """
        last = count % batch_size or batch_size

        def begin(number: int) -> int:
            of_full = number * batch_size // self.parts
            return (count - last) // batch_size * of_full + number * last // self.parts

        return range(begin(self.number), begin(self.number + 1))


ALL = Part(0, 1)


def read_index(folder: Path) -> Index:
    """The index of a folder that a ShardWriter wrote; UserError where there is none."""
    try:
        text = (folder / INDEX_FILE).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(
            f"{folder / INDEX_FILE} does not exist; `dvc repro` makes it, and where several boxes "
            "train it has to be copied to each of them"
        ) from None
    return Index(**json.loads(text))


class ShardWriter:
    """Writes records one by one; `with` closes the last shard and writes the index."""

    def __init__(self, folder: Path, dtype: str, class_names: list[str]):
        """`with` creates the folder, or empties it.

        Args:
            folder: of this writer alone.
            dtype: of every array, 'uint8' or 'float16'.
            class_names: labels are places in it.
        """
        self._folder, self._dtype, self._class_names = folder, dtype, class_names
        self._files: list[str] = []
        self._file_counts: list[int] = []
        self._writer = None
        self._shard_bytes = 0
        self._shapes: set[tuple[int, ...]] = set()
        self._class_counts = [0] * len(class_names)
        self._largest_bytes = 0
        self._digest = hashlib.sha256()

    def __enter__(self) -> "ShardWriter":
        files.empty(self._folder)
        return self

    def write(self, array: np.ndarray, label: int, example_id: str) -> None:
        """Appends one record; the array must have the writer's dtype."""
        import tensorflow as tf

        if array.dtype != self._dtype:
            raise TypeError(f"expected an array of {self._dtype}, received {array.dtype}")
        raw = array.tobytes()
        if self._writer is None or self._shard_bytes >= SHARD_BYTES:
            self._start_shard()
        values = {
            "array": tf.train.Feature(bytes_list=tf.train.BytesList(value=[raw])),
            "shape": tf.train.Feature(int64_list=tf.train.Int64List(value=array.shape)),
            "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
            "id": tf.train.Feature(bytes_list=tf.train.BytesList(value=[example_id.encode()])),
        }
        example = tf.train.Example(features=tf.train.Features(feature=values))
        self._writer.write(example.SerializeToString(deterministic=True))
        self._digest.update(raw + f"|{label}|{example_id}|".encode())
        self._shapes.add(array.shape)
        self._largest_bytes = max(self._largest_bytes, len(raw))
        self._shard_bytes += len(raw)
        self._file_counts[-1] += 1
        self._class_counts[label] += 1

    def _start_shard(self) -> None:
        import tensorflow as tf

        if self._writer is not None:
            self._writer.close()
        self._files.append(f"shard-{len(self._files):05}.tfrecord")
        self._file_counts.append(0)
        self._writer = tf.io.TFRecordWriter(str(self._folder / self._files[-1]))
        self._shard_bytes = 0

    def __exit__(self, kind, error, traceback) -> None:
        if self._writer is not None:
            self._writer.close()
        if error is not None:
            return  # no index: what was written is not a whole folder
        index = Index(
            count=sum(self._class_counts),
            shape=list(next(iter(self._shapes))) if len(self._shapes) == 1 else None,
            largest_bytes=self._largest_bytes,
            dtype=self._dtype,
            class_names=self._class_names,
            class_counts=self._class_counts,
            files=self._files,
            file_counts=self._file_counts,
            sha256=self._digest.hexdigest(),
        )
        text = json.dumps(asdict(index), indent=2, sort_keys=True)
        with files.replacing(self._folder / INDEX_FILE) as new:
            new.write_text(text + "\n", encoding="utf-8")


def batches(
    folder: Path,
    batch_size: int,
    *,
    image_size: int | None = None,
    squares: bool = False,
    part: Part = ALL,
):
    """All records once, in stored order.

    Args:
        folder: what a ShardWriter wrote.
        batch_size: records in a batch; the last may be smaller.
        image_size: side in pixels to which images of differing shapes are brought, so that they
            fit into one batch; where all have one shape they stay as they are.
        squares: whether images of one shape are brought to that size too where it is no square,
            as training wants them: the quarter turn of another shape fits into no batch with it.
        part: of all records; its batches are the part of `batch_size` that is its own.

    Returns:
        A tf.data.Dataset of (arrays (batch, *shape), labels (batch,) int64, ids (batch,) string).
        Of a part that has no image of the last batch, this one holds its first record once more.
    """
    import tensorflow as tf

    index = read_index(folder)
    stretches = _stretches(folder, index, part.records(index.count, batch_size))
    records = tf.data.Dataset.from_tensor_slices(stretches).flat_map(_records_of)
    channels = channels_of(folder, index)
    parsed = _batches_of(records, index, batch_size, part, image_size, squares, channels)
    # Keras warns of missing data at the end of a dataset whose length it does not know.
    length = tf.data.experimental.assert_cardinality(-(-index.count // batch_size))
    return parsed.apply(length).prefetch(tf.data.AUTOTUNE).with_options(data_options())


def training_batches(
    folder: Path,
    batch_size: int,
    *,
    seed: int,
    first_epoch: int,
    epochs: int,
    image_size: int | None = None,
    squares: bool = False,
    part: Part = ALL,
):
    """Shuffled epochs one after the other, from `first_epoch` up to, not including, `epochs`.

    The order of an epoch follows from (seed, epoch, part) alone, so that a run resumed at an epoch
    sees what an uninterrupted one would have seen.

    Returns:
        A tf.data.Dataset as `batches` gives, of ceil(count / batch_size) batches an epoch.
    """
    import tensorflow as tf

    index = read_index(folder)
    own = part.records(index.count, batch_size)
    stretches = [tf.constant(column) for column in _stretches(folder, index, own)]
    channels = channels_of(folder, index)
    buffer = max(batch_size, min(len(own), SHUFFLE_BYTES // max(index.largest_bytes, 1)))

    def one_epoch(epoch):
        # Of this function's graph alone. Without it the order would follow the process's global
        # seed too, and a global seed of 0 fails with a shuffle seed that is a tensor.
        tf.random.set_seed(1)
        epoch_seed = tf.random.experimental.stateless_fold_in(
            tf.stack([tf.cast(seed, tf.int64), tf.constant(0, tf.int64)]), epoch
        )
        order = tf.random.experimental.stateless_shuffle(
            tf.range(len(stretches[0])), seed=epoch_seed
        )
        shuffled = tuple(tf.gather(column, order) for column in stretches)
        records = tf.data.Dataset.from_tensor_slices(shuffled).flat_map(_records_of)
        # Drawn, not read off: of the two numbers that fold_in gives the second is the epoch alone.
        drawn = tf.random.stateless_uniform(
            [], epoch_seed, minval=0, maxval=tf.int64.max, dtype=tf.int64
        )
        records = records.shuffle(buffer, seed=drawn, reshuffle_each_iteration=False)
        return _batches_of(records, index, batch_size, part, image_size, squares, channels)

    dataset = tf.data.Dataset.range(first_epoch, epochs).flat_map(one_epoch)
    return dataset.prefetch(tf.data.AUTOTUNE).with_options(data_options())


def _stretches(folder: Path, index: Index, wanted: range) -> tuple[list, list, list]:
    """Where records lie: files, how many records to skip in each, how many to take."""
    stretches, begin = [], 0
    for name, count in zip(index.files, index.file_counts, strict=True):
        inside = range(max(wanted.start - begin, 0), min(wanted.stop - begin, count))
        if inside:
            stretches.append((str(folder / name), inside.start, len(inside)))
        begin += count
    paths, skipped, taken = zip(*stretches, strict=True)
    return list(paths), list(skipped), list(taken)


def _records_of(file, skipped, taken):
    """The serialized records of one stretch."""
    import tensorflow as tf

    skipped, taken = tf.cast(skipped, tf.int64), tf.cast(taken, tf.int64)
    return tf.data.TFRecordDataset(file).skip(skipped).take(taken)


def _batches_of(records, index: Index, batch_size: int, part: Part, *of_images):
    """A part's batches, as many as all parts have; `of_images` as _parsed_batches wants it."""
    parsed = _parsed_batches(records, index, part.of_batch(batch_size), *of_images)
    if part.of_batch(index.count % batch_size or batch_size):
        return parsed
    return parsed.concatenate(_parsed_batches(records.take(1), index, 1, *of_images))


def channels_of(folder: Path, index: Index) -> int:
    """The last number of every record's shape: of pictures of any size, their channels."""
    if index.shape is not None:
        return index.shape[-1]
    import tensorflow as tf

    # The index leaves differing shapes out; the first record is as good as any.
    (first,) = tf.data.TFRecordDataset(str(folder / index.files[0])).take(1).as_numpy_iterator()
    return tf.train.Example.FromString(first).features.feature["shape"].int64_list.value[-1]


def _parsed_batches(
    records,
    index: Index,
    batch_size: int,
    image_size: int | None,
    squares: bool,
    channels: int,
):
    """Serialized records to batches; parsed whole batches at a time where they stay as they are."""
    import tensorflow as tf

    rank = 3 if index.shape is None else len(index.shape)
    features = {
        "array": tf.io.FixedLenFeature([], tf.string),
        "shape": tf.io.FixedLenFeature([rank], tf.int64),
        "label": tf.io.FixedLenFeature([], tf.int64),
        "id": tf.io.FixedLenFeature([], tf.string),
    }
    to_be_square = squares and rank == 3 and index.shape and index.shape[0] != index.shape[1]
    if index.shape is not None and not to_be_square:

        def parse_batch(serialized):
            parsed = tf.io.parse_example(serialized, features)
            arrays = tf.io.decode_raw(parsed["array"], index.dtype)
            return tf.reshape(arrays, [-1, *index.shape]), parsed["label"], parsed["id"]

        return records.batch(batch_size).map(parse_batch, num_parallel_calls=tf.data.AUTOTUNE)

    if image_size is None:
        raise ValueError("pictures that are to become squares need an image_size")

    def parse_one(serialized):
        parsed = tf.io.parse_single_example(serialized, features)
        image = tf.reshape(tf.io.decode_raw(parsed["array"], index.dtype), parsed["shape"])
        return square_pixels(image, image_size, channels), parsed["label"], parsed["id"]

    parsed = records.map(parse_one, num_parallel_calls=tf.data.AUTOTUNE)
    return parsed.batch(batch_size)


def square_pixels(image, image_size: int, channels: int):
    """A picture (height, width, channels) as a square, uint8: squashed, bilinear.

    Args:
        image: any whole numbers 0–255.
        image_size: side of the square, in pixels.
        channels: of the picture.

    Returns:
        (image_size, image_size, channels), uint8.
    """
    import tensorflow as tf

    resized = tf.image.resize(image, (image_size, image_size), antialias=True)
    pixels = tf.cast(tf.clip_by_value(tf.round(resized), 0, 255), tf.uint8)
    return tf.ensure_shape(pixels, (image_size, image_size, channels))


def write_all(
    folder: Path,
    records: Iterable[tuple[np.ndarray, int, str]],
    dtype: str,
    class_names: list[str],
) -> None:
    """Writes an iterable of (array, label, id) as one folder of shards."""
    with ShardWriter(folder, dtype, class_names) as writer:
        for array, label, example_id in records:
            writer.write(array, label, example_id)
