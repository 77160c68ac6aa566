"""Measures one model on the test split; the only stage that reads it.

Called as `python -m stages.evaluate head` or `… fine_tuned`.

Reads:  data/images/test/ — uint8, RGB as a rule; models/<model>.keras; data/splits.csv — groups,
        and the columns to slice by.
Writes: data/predictions/<model>.csv — id, label, predicted, correct, one probability a class.
        metrics/<model>.json — numbers, nested: all but the cost and the temperature follow from the
        predictions and data/splits.csv.
        plots/<model>/ — CSV files and pictures, see stages.common.evaluation_plots.
        data/gallery/<model>/ — pictures for the report, see stages.common.gallery.
"""

import sys
from collections.abc import Sequence

import numpy as np

from stages.common import (
    augment,
    bootstrap,
    evaluation,
    inference,
    metrics,
    model_cost,
    models,
    params,
    paths,
    predictions,
    shards,
    splits,
    tables,
)
from stages.common.evaluation import EvaluateParams
from stages.common.run import UserError, progress, run, start_tensorflow
from stages.common.training import backups


def measure(
    table: predictions.Predictions,
    rows: Sequence[splits.SplitRow],
    columns: Sequence[str],
    temperature: float | None,
    resamples: int,
    image_weights: np.ndarray | None = None,
) -> dict:
    """All metrics that follow from predictions.

    Args:
        table: the predictions, as read from their file.
        rows: of data/splits.csv, in the order of the table.
        columns: by whose values to give the metrics too.
        temperature: see metrics.numbers.
        resamples: for the intervals.
        image_weights: (images,), 0 or more, for the weighted metrics; None: do without them.

    Returns:
        What stages.common.metrics gives, `groups` (how many there are), `interval` (metric to low
        and high), and `slice`: column to value to the same numbers of these images alone. Of more
        than 100 classes, slices and intervals go without the areas under curves, which take too
        long.
    """
    groups = np.array([row.group for row in rows])
    slices = {
        column: evaluation.members_by_value([row.columns[column] for row in rows])
        for column in columns
    }
    with_areas = len(table.class_names) <= metrics.MOST_CLASSES_FOR_AREAS
    result = metrics.classification_metrics(
        table.labels, table.probabilities, table.class_names, temperature, image_weights
    )
    sets_of_images = 1 + sum(len(values) for values in slices.values())
    with progress(
        None, total=resamples * sets_of_images, unit="resample", description="intervals"
    ) as bar:

        def weights_of(members):
            return None if image_weights is None else image_weights[members]

        def interval(members):
            return bootstrap.intervals(
                bootstrap.distribution(
                    table.labels[members],
                    table.probabilities[members],
                    groups[members],
                    resamples,
                    bar.update,
                    weights_of(members),
                )
            )

        result["groups"] = len(np.unique(groups))
        result["interval"] = interval(slice(None))
        result["slice"] = {
            column: {
                value: {
                    **metrics.numbers(
                        table.labels[members],
                        table.probabilities[members],
                        temperature,
                        with_areas=with_areas,
                        image_weights=weights_of(members),
                    ),
                    "interval": interval(members),
                }
                for value, members in values.items()
            }
            for column, values in slices.items()
        }
    return result


def averaged(model, symmetries: Sequence[augment.Symmetry]):
    """A function from images and `training` to probabilities averaged over views of each image."""
    from keras import ops

    def probabilities(images, training=False):
        views = [
            model(augment.apply(images, symmetry), training=training) for symmetry in symmetries
        ]
        return ops.mean(ops.stack(views), axis=0) if len(views) > 1 else views[0]

    return probabilities


def main() -> None:
    """Predicts the test split and writes what was found."""
    name = sys.argv[1] if len(sys.argv) == 2 else ""
    if name not in paths.CLASSIFIERS:
        raise UserError(
            f"expected one model of {', '.join(paths.CLASSIFIERS)}, received {sys.argv[1:]}"
        )
    parameters = params.load("evaluate", EvaluateParams)
    rows = evaluation.test_rows()
    columns = evaluation.slice_columns(rows, parameters.slice_columns)
    evaluation.image_weights(rows, parameters.weight_column)  # checked before anything heavy
    start_tensorflow()
    from stages.common import evaluation_plots

    folder = paths.IMAGES / "test"
    index = shards.read_index(folder)
    model = models.load(paths.CLASSIFIERS[name])
    image_size = model.get_layer("resize").height
    batches = shards.batches(folder, parameters.batch_size, image_size=image_size)
    symmetries = parameters.test_time_augment.symmetries
    probabilities, labels, ids = inference.predict(
        averaged(models.on_device(model), symmetries),
        batches,
        index.count,
        f"evaluate {name}",
    )
    rows = evaluation.in_order(rows, ids)
    predictions_file = paths.PREDICTIONS / f"{name}.csv"
    predictions.write(predictions_file, ids, labels, probabilities, index.class_names)
    # What follows sees the digits that are written, so that anybody can compute it again.
    table = predictions.read(predictions_file)
    temperature = round(models.temperature_of(model), tables.DECIMALS)
    to_take_back = temperature if len(symmetries) == 1 else None
    evaluation_plots.write_all(
        paths.PLOTS / name,
        paths.GALLERY / name,
        model=model,
        image_folder=folder,
        image_size=image_size,
        labels=table.labels,
        probabilities=table.probabilities,
        temperature=to_take_back,
        ids=ids,
        names=[row.name for row in rows],
        class_names=index.class_names,
        batch_size=parameters.batch_size,
    )
    found = measure(
        table,
        rows,
        columns,
        to_take_back,
        parameters.bootstrap_samples,
        evaluation.image_weights(rows, parameters.weight_column),
    )
    tables.write_metrics(
        paths.METRICS / f"{name}.json",
        {**found, "temperature": temperature, **model_cost.model_cost(model)},
    )
    backups.forget(paths.TRAINED_BY[name])


if __name__ == "__main__":
    run(main)
