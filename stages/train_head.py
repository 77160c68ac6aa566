"""Trains a new classifier on the cached features of the frozen network.

Reads:  data/features/{train,valid}/ — float16 features; models/backbone.keras.
Writes: models/head.keras — images to calibrated probabilities.
        plots/train_head/history.csv — one row an epoch: loss and accuracy of both splits.
"""

from pathlib import Path

from pydantic import field_validator

from stages.common import heads, models, params, paths, shards, training
from stages.common.run import UserError, run, start_tensorflow


@params.params_dataclass
class TrainHeadParams(training.TrainingParams):
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


def one_view(dataset, views: int, seed: int, first_batch: int = 0):
    """Batches of (batch, views, …) features as (batch, …): a view of each image by chance.

    The choice follows from the seed and the number of the batch, counted over all epochs, so that
    a resumed run chooses as an uninterrupted one.
    """
    import tensorflow as tf

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
    train, valid = paths.FEATURES / "train", paths.FEATURES / "valid"
    index = shards.read_index(train)
    check_features(parameters.head, "map" if len(index.shape) == 4 else "pooled")
    start_tensorflow(seed)
    views, *feature_shape = index.shape
    classes = len(index.class_names)
    head = heads.build(
        parameters.head,
        feature_shape,
        classes,
        hidden_units=parameters.hidden_units,
        dropout=parameters.dropout,
    )
    steps_per_epoch = -(-index.count // parameters.batch_size)
    training.compile_model(head, parameters, steps_per_epoch)

    def make_training_batches(first_epoch: int):
        batches = shards.training_batches(
            train,
            parameters.batch_size,
            seed=seed,
            first_epoch=first_epoch,
            epochs=parameters.epochs,
        )
        chosen = one_view(batches, views, seed, first_epoch * steps_per_epoch)
        return training.with_one_hot(chosen, classes)

    validation = one_view(shards.batches(valid, parameters.batch_size), 1, seed)
    history = training.fit(
        head,
        parameters,
        make_training_batches=make_training_batches,
        validation_batches=training.with_one_hot(validation, classes),
        images_per_epoch=index.count,
        backup=training.backup_folder(
            "train_head",
            training.fingerprint(parameters, seed, train / shards.INDEX_FILE, Path(__file__)),
        ),
    )
    logits, labels, _ = training.predict(
        head, validation, shards.read_index(valid).count, "calibrate"
    )
    temperature = training.fit_temperature(logits, labels)
    model = models.assemble(models.load(paths.BACKBONE), head, temperature)
    models.save(model, paths.HEAD)
    training.write_history(paths.PLOTS / "train_head" / "history.csv", history)
    frozen = model.count_params() - head.count_params()
    print(f"{head.count_params():,} parameters trained, {frozen:,} frozen")
    print(f"temperature {temperature:.3f}")


if __name__ == "__main__":
    run(main)
