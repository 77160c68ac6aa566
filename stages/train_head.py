"""Trains a new classifier on the cached features of the frozen network.

Reads:  data/features/{train,valid}/ — float16 features; models/backbone.keras; data/splits.csv —
        the training images' column of weights, where one is asked for.
        data/features/layers.json — the layers of the backbone that the features are from.
Writes: models/head.keras — images to calibrated probabilities.
        plots/train_head/history.csv — one row an epoch: loss and accuracy of both splits; of the
        solver lbfgs one row for each L2 strength.
"""

import functools
from typing import Annotated, Literal

from pydantic import Field, PlainValidator, field_validator, model_validator

from stages.common import (
    blocks,
    calibration,
    heads,
    linear_probe,
    models,
    params,
    paths,
    runtime,
    shards,
    tables,
    weights,
)
from stages.common.run import UserError, run, start_tensorflow
from stages.common.training import loop
from stages.common.training.parameters import (
    TrainingParams,
    batch_size_without_single,
    with_batch_size,
)

HIDDEN_UNITS_ALLOWED = "a whole number of 1 or more, or a list of such"


def _as_list(choice) -> list[int]:
    units = choice if isinstance(choice, list) else [choice]
    if not units or any(type(number) is not int or number < 1 for number in units):
        raise ValueError(f"expected {HIDDEN_UNITS_ALLOWED}, received {choice!r}")
    return units


@params.params_dataclass
class TrainHeadParams(weights.WeightParams, TrainingParams):
    """Section `train_head`."""

    head: params.Text
    hidden_units: Annotated[
        list[int], PlainValidator(_as_list), Field(description=HIDDEN_UNITS_ALLOWED)
    ]
    activation: Literal[heads.ACTIVATIONS]
    batch_norm: params.Flag
    dropout: params.RateBelowOne
    solver: Literal["gradient", "lbfgs"]

    @field_validator("head")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in heads.HEADS:
            raise ValueError(
                f"expected one of {', '.join(heads.HEADS)}, received {name!r}"
                f"{params.nearest(name, heads.HEADS)}"
            )
        return name

    @model_validator(mode="after")
    def _head_bears_the_rest(self):
        if self.solver == "lbfgs" and self.head != "linear":
            raise ValueError(
                f"solver: lbfgs solves the linear head only, received head: {self.head}; set head "
                "to linear, or solver to gradient"
            )
        if self.head == "conv" and len(self.hidden_units) > 1:
            raise ValueError(
                f"hidden_units: the conv head has one hidden layer, received {self.hidden_units}; "
                "give one number, or set head to dense"
            )
        return self


def check_features(head: str, features: str) -> None:
    """UserError where a head needs the feature map and only pooled features are kept."""
    if head in heads.MAP_HEADS and features != "map":
        raise UserError(
            f"params.yaml, train_head.head: '{head}' needs the feature map; set "
            f"extract_features.features to map, or choose one of "
            f"{', '.join(name for name in heads.HEADS if name not in heads.MAP_HEADS)}"
        )


def batch_size_for(head, batch_size: int, images: int) -> int:
    """The least size from `batch_size` on with which no batch of BatchNorm is a single image.

    Such a batch has no variance; the last one of an epoch is what the statistics follow most.

    Raises:
        UserError: batches of one image are what was asked for.
    """
    from keras import layers

    if not any(isinstance(layer, layers.BatchNormalization) for layer in head.layers):
        return batch_size
    if batch_size == 1:
        raise UserError(
            "params.yaml, train_head.batch_size: expected 2 or more with a head that has "
            "BatchNorm, received 1; of a single image there is no variance to normalise by"
        )
    return batch_size_without_single(batch_size, images)


def one_view(dataset, seed: int, first_batch: int = 0):
    """Batches of (batch, views, …) features as (batch, …): a view of each image by chance.

    The choice follows from the seed and the number of the batch, counted over all epochs, so that
    a resumed run chooses as an uninterrupted one.
    """
    import tensorflow as tf

    views = dataset.element_spec[0].shape[1]

    def choose(number, batch):
        features, labels, ids = batch
        if views == 1:
            return features[:, 0], labels, ids
        choice = tf.random.stateless_uniform(
            tf.shape(labels), (seed, number), 0, views, dtype=tf.int32
        )
        return tf.gather(features, choice, axis=1, batch_dims=1), labels, ids

    return dataset.enumerate(first_batch).map(choose, num_parallel_calls=tf.data.AUTOTUNE)


def solve(head, image_weights) -> float:
    """Gives a linear head the weights of logistic regression; returns its temperature."""
    weigh = None if image_weights is None else image_weights.function()
    train = linear_probe.load(paths.FEATURES / "train", weigh)
    valid = linear_probe.load(paths.FEATURES / "valid")
    solution = linear_probe.solve(train, valid, head.output_shape[-1])
    columns = list(solution.rows[0])
    tables.write_csv(
        paths.PLOTS / "train_head" / "history.csv",
        columns,
        [[row[name] for name in columns] for row in solution.rows],
    )
    head.get_layer("logits").set_weights([solution.kernel, solution.bias])
    temperature = calibration.fit_temperature(
        valid.features @ solution.kernel + solution.bias, valid.labels
    )
    print(f"temperature {temperature:.3f}")
    return temperature


def main() -> None:
    """Trains the head, fits its temperature and puts the whole classifier together."""
    parameters = params.load("train_head", TrainHeadParams)
    seed = params.load_seed()
    deterministic = params.load("runtime", runtime.RuntimeParams).deterministic
    index = shards.read_index(paths.FEATURES / "train")
    _views, *feature_shape = index.shape
    check_features(parameters.head, "map" if len(feature_shape) == 3 else "pooled")
    image_weights = weights.load(parameters, "train_head", index.class_names, index.class_counts)
    start_tensorflow(seed, deterministic)
    build_head = functools.partial(
        heads.build,
        parameters.head,
        feature_shape,
        len(index.class_names),
        hidden_units=parameters.hidden_units,
        dropout=parameters.dropout,
        activation=parameters.activation,
        batch_norm=parameters.batch_norm,
    )
    head = build_head()
    batch_size = batch_size_for(head, parameters.batch_size, index.count)
    parameters = with_batch_size(parameters, batch_size, index.count)

    def save(temperature: float) -> None:
        backbone_model = models.at_layers(models.load(paths.BACKBONE), blocks.read_layers())
        # A model that was compiled is saved with its optimizer, which nobody needs and Keras warns
        # of.
        saved_head = build_head()
        saved_head.set_weights(head.get_weights())
        model = models.assemble(backbone_model, saved_head, temperature)
        models.save(model, paths.HEAD, index.class_names, models.shrunk_to(paths.BACKBONE))
        frozen = model.count_params() - head.count_params()
        print(f"{head.count_params():,} parameters trained, {frozen:,} frozen")

    if parameters.solver == "lbfgs":
        save(solve(head, image_weights))
    else:
        loop.train(
            "train_head",
            head,
            parameters,
            data=paths.FEATURES,
            seed=seed,
            save=save,
            inputs=weights.files(parameters),
            image_weights=image_weights,
            prepare=lambda batches, first_batch: one_view(batches, seed, first_batch),
        )


if __name__ == "__main__":
    run(main, takes_arguments=False)
