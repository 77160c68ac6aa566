"""Solar cells in electroluminescence photographs: the default data, from a package.

Buerhop-Lutz et al. 2018, "A Benchmark for Visual Identification of Defective Solar Cells in
Electroluminescence Imagery"; 2,624 grey photographs of 300 by 300 pixels. Each has a probability
of being defective (0, 1/3, 2/3 or 1) and a wafer type. The package `elpv-dataset` ships them;
licence CC BY-NC-SA 4.0.
"""

import functools
import importlib.util
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from stages.common.run import UserError

PACKAGE = "elpv_dataset"
# The file rounds thirds to four digits and more, so a probability is matched to the nearest.
PROBABILITIES = {"0": 0.0, "1/3": 1 / 3, "2/3": 2 / 3, "1": 1.0}
# How sure the raters were of a label, by which Deitsch et al. 2019 weigh images.
CONFIDENCES = {"0": 1.0, "1/3": 1 / 3, "2/3": 2 / 3, "1": 1.0}


def read_labels(text: str) -> list[tuple[str, float, str]]:
    """labels.csv (columns parted by spaces) as (path, probability, wafer type)."""
    rows = (line.split() for line in text.splitlines() if line.strip())
    return [(path, float(probability), wafer) for path, probability, wafer in rows]


def label_of(probability: float, labels: str, threshold: float) -> str:
    """The class of a cell: binary at a threshold, or the nearest of the four probabilities."""
    if labels == "binary":
        return "defective" if probability >= threshold else "functional"
    return nearest_name(probability)


def nearest_name(probability: float) -> str:
    """The one of the four probabilities that is meant, by name."""
    return min(PROBABILITIES, key=lambda name: abs(PROBABILITIES[name] - probability))


def package_folder() -> Path:
    """Where the package keeps labels.csv and images/, found without importing it."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None:
        raise UserError(
            "the package 'elpv-dataset' with the default photographs is not installed; "
            "run `make setup`, or set dataset.name to image_folder"
        )
    return Path(found.submodule_search_locations[0]) / "data"


def key_and_example(row: tuple[str, float, str], labels: str, threshold: float) -> tuple[str, dict]:
    """A row of labels.csv as TFDS wants it: what names the example, and its fields.

    A worker of Apache Beam finds the photograph in its own copy of the package.
    """
    path, probability, wafer_type = row
    example = {
        "image": str(package_folder() / path),
        "label": label_of(probability, labels, threshold),
        "name": path,
        "probability": probability,
        "rater_confidence": CONFIDENCES[nearest_name(probability)],
        "wafer_type": wafer_type,
    }
    return path, example


class Elpv(tfds.core.GeneratorBasedBuilder):
    """The photographs as the package stores them: PNG bytes, untouched."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(
        self, *, labels: str = "binary", threshold: float = 0.5, on_beam: bool = False, **kwargs
    ):
        """`labels` is 'binary' or 'probability'; `threshold` is the least defective probability.

        With `on_beam` examples are a transform of Apache Beam, whose workers read the photographs.
        """
        self._labels, self._threshold, self._on_beam = labels, threshold, on_beam
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        names = ["functional", "defective"] if self._labels == "binary" else list(PROBABILITIES)
        features = {
            "image": tfds.features.Image(shape=(None, None, 1)),
            "label": tfds.features.ClassLabel(names=names),
            "name": tfds.features.Text(),
            "probability": tfds.features.Scalar(np.float64),
            "rater_confidence": tfds.features.Scalar(np.float64),
            "wafer_type": tfds.features.Text(),
        }
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(features),
            homepage="https://github.com/zae-bayern/elpv-dataset",
            license="CC BY-NC-SA 4.0",
        )

    def _split_generators(self, dl_manager):
        del dl_manager  # nothing to download
        return {"train": self._generate_examples(package_folder())}

    def _generate_examples(self, folder: Path):
        rows = read_labels((folder / "labels.csv").read_text(encoding="utf-8"))
        make = functools.partial(key_and_example, labels=self._labels, threshold=self._threshold)
        if not self._on_beam:
            return map(make, rows)
        import apache_beam as beam

        return beam.Create(rows) | beam.Map(make)
