"""Reads data/raw, the one TFDS directory that every source ends in."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class RawImage:
    """One example of data/raw, its image still encoded."""

    id: str  # the library's `tfds_id`: unique, and stable while the source is unchanged
    official_split: str
    encoded: bytes
    label: int
    columns: dict[str, str | int | float]  # what else the source says of the image


class RawDataset:
    """An image classification set as TFDS stores it."""

    def __init__(self, directory: Path):
        """Opens a directory that `tfds` prepared; needs no builder code."""
        import tensorflow_datasets as tfds

        self._builder = tfds.builder_from_directory(str(directory))
        features = self._builder.info.features
        self.class_names: list[str] = list(features["label"].names)
        # Scalars beside image and label: a file's name, a group, a rater's confidence.
        self.column_names: list[str] = sorted(
            name
            for name, feature in features.items()
            if name not in ("image", "label") and feature.shape == () and name != "id"
        )
        self.split_names: list[str] = sorted(self._builder.info.splits)
        self.count: int = sum(
            self._builder.info.splits[name].num_examples for name in self.split_names
        )

    def __iter__(self) -> Iterator[RawImage]:
        """All examples, split by split, in the order in which they are stored."""
        import tensorflow_datasets as tfds

        decoders = {"image": tfds.decode.SkipDecoding()}
        config = tfds.ReadConfig(add_tfds_id=True, interleave_cycle_length=1)
        for split in self.split_names:
            examples = self._builder.as_dataset(
                split=split, decoders=decoders, read_config=config, shuffle_files=False
            )
            for example in examples.as_numpy_iterator():
                yield RawImage(
                    id=example["tfds_id"].decode(),
                    official_split=split,
                    encoded=example["image"],
                    label=int(example["label"]),
                    columns={name: _plain(example[name]) for name in self.column_names},
                )


def _plain(value: Any) -> str | int | float:
    """A NumPy scalar or bytes as a plain Python value."""
    return value.decode() if isinstance(value, bytes) else value.item()
