"""Measures one model on the test split; the only stage that reads it.

Called as `python -m stages.evaluate head` or `… fine_tuned`.

Reads:  data/images/test/ — RGB uint8; models/<model>.keras.
Writes: metrics/<model>.json — numbers, nested by class.
        data/predictions/<model>.csv — id, label, predicted, correct, one probability a class.
        plots/<model>/confusion.csv — columns actual, predicted: one row a test image.
        plots/<model>/predictions.png — 5 × 5 test images with "actual / predicted".
"""

import sys
from pathlib import Path

import numpy as np

from stages.common import metrics, models, params, paths, shards, tables, training
from stages.common.run import UserError, run, start_tensorflow

MODELS = {"head": paths.HEAD, "fine_tuned": paths.FINE_TUNED}
GRID_SIDE = 5


@params.params_dataclass
class EvaluateParams:
    """Section `evaluate`."""

    batch_size: params.PositiveInt


def prediction_rows(ids, labels, probabilities, class_names):
    """Rows of the table of predictions; probabilities with seven significant digits."""
    for example_id, label, row in zip(ids, labels, probabilities, strict=True):
        predicted = int(row.argmax())
        yield (
            example_id,
            class_names[label],
            class_names[predicted],
            int(predicted == label),
            *(f"{value:.7g}" for value in row),
        )


def first_images(folder: Path, count: int, image_size: int) -> np.ndarray:
    """The first images of a split (count, height, width, 3), uint8; stored order is random."""
    (images, _, _) = next(iter(shards.batches(folder, count, image_size=image_size)))
    return images.numpy()


def main() -> None:
    """Predicts the test split and writes what was found."""
    name = sys.argv[1] if len(sys.argv) == 2 else ""
    if name not in MODELS:
        raise UserError(f"expected one model of {', '.join(MODELS)}, received {sys.argv[1:]}")
    parameters = params.load("evaluate", EvaluateParams)
    start_tensorflow()
    from stages.common import plots

    folder = paths.IMAGES / "test"
    index = shards.read_index(folder)
    model = models.load(MODELS[name])
    image_size = model.get_layer("resize").height
    batches = shards.batches(folder, parameters.batch_size, image_size=image_size)
    probabilities, labels, ids = training.predict(model, batches, index.count, f"evaluate {name}")
    rows = list(prediction_rows(ids, labels, probabilities, index.class_names))
    tables.write_csv(
        paths.PREDICTIONS / f"{name}.csv",
        ("id", "label", "predicted", "correct", *(f"probability {c}" for c in index.class_names)),
        rows,
    )
    folder_of_plots = paths.PLOTS / name
    tables.write_csv(
        folder_of_plots / "confusion.csv", ("actual", "predicted"), [row[1:3] for row in rows]
    )
    pictures = first_images(folder, GRID_SIDE**2, image_size)
    plots.image_grid(
        folder_of_plots / "predictions.png",
        [
            (picture, f"{row[1]} /\n{row[2]}", plots.BLUE if row[3] else plots.ORANGE)
            for picture, row in zip(pictures, rows, strict=False)
        ],
        columns=GRID_SIDE,
        title="Test images: actual / predicted (orange: wrong)",
    )
    tables.write_metrics(
        paths.METRICS / f"{name}.json",
        metrics.classification_metrics(labels, probabilities, index.class_names),
    )


if __name__ == "__main__":
    run(main)
