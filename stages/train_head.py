"""Trains a new classifier on the cached features of the frozen network.

Reads:  data/features/{train,valid}/ — float16 features; models/backbone.keras; data/splits.csv —
        the training images' column of weights, where one is asked for.
Writes: models/head.keras — images to calibrated probabilities.
        plots/train_head/history.csv — one row an epoch: loss and accuracy of both splits.
"""

from pydantic import field_validator

from stages.common import heads, models, params, paths, shards, training, weights
from stages.common.run import UserError, run, start_tensorflow


@params.params_dataclass
class TrainHeadParams(weights.WeightParams, training.TrainingParams):
    """Section `train_head`."""

    head: params.Text
    hidden_units: params.PositiveInt
    dropout: params.RateBelowOne

    @field_validator("head")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in heads.HEADS:
            raise ValueError(
                f"expected one of {', '.join(heads.HEADS)}, received {name!r}"
                f"{params.nearest(name, heads.HEADS)}"
            )
        return name


def check_features(head: str, features: str) -> None:
    """UserError where a head needs the feature map and only pooled features are kept."""
    if head in heads.MAP_HEADS and features != "map":
        raise UserError(
            f"params.yaml, train_head.head: '{head}' needs the feature map; set "
            f"extract_features.features to map, or choose one of "
            f"{', '.join(name for name in heads.HEADS if name not in heads.MAP_HEADS)}"
        )


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


def main() -> None:
    """Trains the head, fits its temperature and puts the whole classifier together."""
    parameters = params.load("train_head", TrainHeadParams)
    seed = params.load_seed()
    index = shards.read_index(paths.FEATURES / "train")
    _views, *feature_shape = index.shape
    check_features(parameters.head, "map" if len(feature_shape) == 3 else "pooled")
    image_weights = weights.load(parameters, "train_head", index.class_names, index.class_counts)
    start_tensorflow(seed)
    head = heads.build(
        parameters.head,
        feature_shape,
        len(index.class_names),
        hidden_units=parameters.hidden_units,
        dropout=parameters.dropout,
    )
    temperature = training.train(
        "train_head",
        head,
        parameters,
        data=paths.FEATURES,
        seed=seed,
        inputs=weights.files(parameters),
        image_weights=image_weights,
        prepare=lambda batches, first_batch: one_view(batches, seed, first_batch),
    )
    model = models.assemble(models.load(paths.BACKBONE), head, temperature)
    models.save(model, paths.HEAD)
    frozen = model.count_params() - head.count_params()
    print(f"{head.count_params():,} parameters trained, {frozen:,} frozen")


if __name__ == "__main__":
    run(main)
