"""How much each training image counts: by its class, and by a column of data/splits.csv.

The weight multiplies the image's loss, in training only; both kinds multiply each other. The mean
weight over the training images is 1, so that the learning rate keeps its meaning.

Validation loss, early stopping and the temperature take every image once. They say how the model
does on images as they come, with the frequencies that the data has, and so does evaluation: a
weighted temperature would be calibrated for frequencies that nobody meets. Class weights still
move the model's probabilities towards the classes that they favour, and one temperature cannot
move them back.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field, PlainValidator

from stages.common import params, splits
from stages.common.run import UserError

METHODS = ("balanced", "effective_number")
ALLOWED = "null (all equal), balanced, effective_number, or a number of 0 or more for each class"


def _check_choice(choice):
    if choice is None or choice in METHODS:
        return choice
    if isinstance(choice, dict) and choice:
        wrong = [f"{name}: {weight!r}" for name, weight in choice.items() if not _is_weight(weight)]
        if wrong:
            raise ValueError(
                f"expected a number of 0 or more for each class, received {', '.join(wrong)}"
            )
        return choice
    near = params.nearest(choice, METHODS) if isinstance(choice, str) else ""
    raise ValueError(f"expected {ALLOWED}, received {choice!r}{near}")


def _is_weight(value) -> bool:
    return type(value) in (int, float) and 0 <= value < float("inf")


@params.params_dataclass
class WeightParams:
    """The keys on weights that `train_head` and `fine_tune` have in common."""

    class_weights: Annotated[
        str | dict[str, float] | None, PlainValidator(_check_choice), Field(description=ALLOWED)
    ]
    class_balance_beta: params.RateBelowOne
    sample_weight_column: Annotated[
        str | None,
        Field(min_length=1, description="null (all equal) or a column of data/splits.csv"),
    ]


@dataclass(frozen=True)
class ImageWeights:
    """The weights of all training images, their mean 1."""

    by_class: np.ndarray  # (classes,), float64
    ids: np.ndarray | None  # (images,), bytes; None where no column weighs
    by_image: np.ndarray | None  # (images,), float64: the factor besides that of the class

    def function(self):
        """A function for tf.data: labels and ids, both (batch,), to weights (batch,) float32."""
        import tensorflow as tf

        by_class = tf.constant(self.by_class, tf.float32)
        if self.ids is None:
            return lambda labels, _ids: tf.gather(by_class, labels)
        # 240 MB for a million images. An unknown id makes the loss NaN, which `fit` refuses.
        table = tf.lookup.StaticHashTable(
            tf.lookup.KeyValueTensorInitializer(self.ids, self.by_image.astype(np.float32)),
            default_value=float("nan"),
        )
        return lambda labels, ids: tf.gather(by_class, labels) * table.lookup(ids)


def files(parameters: WeightParams) -> list[Path]:
    """The files that `load` reads for these params."""
    return [] if parameters.sample_weight_column is None else [splits.SPLITS_FILE]


def load(
    parameters: WeightParams, section: str, class_names: Sequence[str], class_counts: Sequence[int]
) -> ImageWeights | None:
    """The weights that one section of params.yaml asks for; None where all images are equal.

    Args:
        parameters: the section.
        section: its name, for errors.
        class_names: of the training images.
        class_counts: training images of each class.

    Raises:
        UserError: given weights leave a class out or name an unknown one; no such column, or a
            value in it that is no weight; all weights are 0; data/splits.csv is of other images.
    """
    choice, column = parameters.class_weights, parameters.sample_weight_column
    if choice is None and column is None:
        return None
    where = f"params.yaml, {section}"
    if isinstance(choice, dict):
        check_class_names(choice, class_names, f"{where}.class_weights")
    by_class = of_classes(choice, parameters.class_balance_beta, class_names, class_counts)
    class_totals, ids, by_image = np.array(class_counts, dtype=np.float64), None, None
    if column is not None:
        ids, labels, by_image = of_images(
            (row for row in splits.read() if row.split == "train"),
            column,
            f"{where}.sample_weight_column",
        )
        positions = _positions(labels, class_names, class_counts)
        class_totals = np.bincount(positions, weights=by_image, minlength=len(class_names))
    total = by_class @ class_totals
    if total == 0:
        raise UserError(f"{where}: every training image has weight 0; give some of them more")
    by_class = by_class * (sum(class_counts) / total)
    described = ", ".join(
        f"{name} {weight:.3g}" for name, weight in zip(class_names[:20], by_class, strict=False)
    )
    more = ", …" if len(class_names) > 20 else ""
    times = "" if column is None else f", times {column}"
    print(f"weights of training images: {described}{more}{times}", flush=True)
    return ImageWeights(by_class, ids, by_image)


def check_class_names(given: dict[str, float], class_names: Sequence[str], where: str) -> None:
    """UserError where given weights name an unknown class or leave one out."""
    unknown = [name for name in given if name not in class_names]
    missing = [name for name in class_names if name not in given]
    mistakes = [f"unknown class {name!r}{params.nearest(name, class_names)}" for name in unknown]
    if missing:
        mistakes.append(f"no weight for {', '.join(map(repr, missing))}; give one, 0 to ignore it")
    if mistakes:
        raise UserError("\n       ".join(f"{where}: {mistake}" for mistake in mistakes))


def of_classes(
    choice: str | dict[str, float] | None,
    beta: float,
    class_names: Sequence[str],
    class_counts: Sequence[int],
) -> np.ndarray:
    """The weight of each class, (classes,) float64, before the mean over images is made 1.

    `balanced`: n / (classes × n_class), as scikit-learn's compute_class_weight.
    `effective_number`: (1 - β) / (1 - β^n_class), the factor of the class-balanced loss (Cui et
    al. 2019): all equal at β = 0, towards `balanced` as β nears 1.
    """
    # A class without a training image has no loss to weigh.
    counts = np.maximum(class_counts, 1).astype(np.float64)
    if choice is None:
        return np.ones(len(class_names))
    if isinstance(choice, dict):
        return np.array([choice[name] for name in class_names], dtype=np.float64)
    if choice == "balanced":
        return sum(class_counts) / (len(class_counts) * counts)
    return (1 - beta) / (1 - beta**counts)


def of_images(
    rows: Iterable[splits.SplitRow], column: str, where: str
) -> tuple[np.ndarray, list[str], np.ndarray]:
    """A column as weights, unchanged: ids (images,) bytes, class names, weights (images,) float64.

    Raises:
        UserError: see splits.with_weights.
    """
    ids, labels, weights = [], [], []
    for row, weight in splits.with_weights(rows, column, where):
        ids.append(row.id.encode())
        labels.append(row.label)
        weights.append(weight)
    return np.array(ids), labels, np.array(weights)


def _positions(
    labels: Sequence[str], class_names: Sequence[str], class_counts: Sequence[int]
) -> np.ndarray:
    """Class names as their positions; UserError where these are not the images that train."""
    position_of = {name: position for position, name in enumerate(class_names)}
    positions = np.array([position_of.get(label, -1) for label in labels], dtype=np.int64)
    known = positions[positions >= 0]
    counts = np.bincount(known, minlength=len(class_names))
    if len(known) < len(labels) or counts.tolist() != list(class_counts):
        raise UserError(
            f"{splits.SPLITS_FILE} lists {len(labels)} training images, and {sum(class_counts)} "
            "are stored, or their classes differ; run `dvc repro` to store them anew"
        )
    return positions
