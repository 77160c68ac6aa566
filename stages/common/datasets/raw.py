"""Reads data/raw, the one TFDS directory that every source ends in."""

import itertools
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stages.common.run import data_options

READ_AT_ONCE = 16  # images; one by one, passing them on takes longer than reading them


@dataclass(frozen=True)
class RawImage:
    """One example of data/raw, its image still encoded."""

    id: str  # the library's `tfds_id`: unique, and stable while the source is unchanged
    official_split: str
    encoded: bytes
    label: int  # -1 where the source gives none
    columns: dict[str, str | int | float]  # what else the source says of the image

    @property
    def name(self) -> str:
        """What people know the image by: its path in the source, or the id."""
        return str(self.columns.get("name") or self.id)


class RawDataset:
    """An image classification set as TFDS stores it."""

    def __init__(self, directory: Path):
        """Opens a directory that `tfds` prepared; needs no builder code."""
        import tensorflow_datasets as tfds

        self._builder = tfds.builder_from_directory(str(directory))
        features = self._builder.info.features
        self.class_names: list[str] = list(features["label"].names)
        # Scalars beside image and label: a file's name, a group, a rater's confidence. `id` and
        # `split` are columns of data/splits.csv that mean something else.
        self.column_names: list[str] = sorted(
            name
            for name, feature in features.items()
            if name not in ("image", "label", "id", "split") and feature.shape == ()
        )
        self.split_names: list[str] = sorted(self._builder.info.splits)
        self.count: int = sum(
            self._builder.info.splits[name].num_examples for name in self.split_names
        )

    def class_name(self, label: int) -> str:
        """The name of a RawImage's class; empty for -1."""
        return "" if label < 0 else self.class_names[label]

    def __iter__(self) -> Iterator[RawImage]:
        """All examples, split by split, in the order in which they are stored."""
        import tensorflow_datasets as tfds

        # Without its own setting, TFDS keeps a set of less than 250 MiB in memory.
        config = tfds.ReadConfig(
            options=data_options(), interleave_cycle_length=1, try_autocache=False
        )
        for split in self.split_names:
            examples = self._builder.as_dataset(
                split=split, decoders=self._decoders(), read_config=config, shuffle_files=False
            )
            yield from self._read(split, examples, self._ids(split))

    def pick(self, ids: Collection[str]) -> Iterator[RawImage]:
        """The examples of these ids, in the same order; the others are not even parsed."""
        import tensorflow as tf

        parse, decoders = self._builder.info.features.deserialize_example, self._decoders()
        for split in self.split_names:
            wanted = np.array([image_id in ids for image_id in self._ids(split)], bool)
            if not wanted.any():
                continue
            is_wanted, last = tf.constant(wanted), np.flatnonzero(wanted)[-1]
            files = [str(path) for path in self._builder.info.splits[split].filepaths]
            records = tf.data.TFRecordDataset(files).with_options(data_options())
            numbered = records.take(last + 1).enumerate().batch(READ_AT_ONCE)
            picked = numbered.map(
                lambda numbers, records, kept=is_wanted: records[tf.gather(kept, numbers)]
            )
            examples = picked.unbatch().map(lambda record: parse(record, decoders=decoders))
            yield from self._read(split, examples, itertools.compress(self._ids(split), wanted))

    def _decoders(self) -> dict:
        import tensorflow_datasets as tfds

        return {
            name: tfds.decode.SkipDecoding()
            for name, feature in self._builder.info.features.items()
            if isinstance(feature, tfds.features.Image)  # some sets have a mask as well
        }

    def _read(self, split: str, examples, ids: Iterator[str]) -> Iterator[RawImage]:
        """The elements of a tf.data.Dataset of a split's examples, and their ids, as RawImages."""
        fields = ["image", "label", *self.column_names]
        examples = examples.map(lambda example: {name: example[name] for name in fields})
        for batch in examples.batch(READ_AT_ONCE).as_numpy_iterator():
            columns = [self._plain(name, batch[name]) for name in self.column_names]
            labels = batch["label"].tolist()
            for encoded, label, *values in zip(batch["image"], labels, *columns, strict=True):
                yield RawImage(
                    id=next(ids),
                    official_split=split,
                    encoded=encoded,
                    label=label,
                    columns=dict(zip(self.column_names, values, strict=True)),
                )

    def _ids(self, split: str) -> Iterator[str]:
        """The `tfds_id` of each example; the library takes as long for it as for all else."""
        info = self._builder.info.splits[split]
        for path, length in zip(info.filepaths, info.shard_lengths, strict=True):
            for number in range(length):
                yield f"{path.name}__{number}"

    def _plain(self, name: str, values: Any) -> list[str | int | float]:
        """A batch of a column as plain Python values, classes by their names."""
        plain = values.tolist()
        if names := getattr(self._builder.info.features[name], "names", None):
            return ["" if value < 0 else names[value] for value in plain]
        return [value.decode() if isinstance(value, bytes) else value for value in plain]
