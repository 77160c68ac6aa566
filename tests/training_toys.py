"""A small model, its data and its params, which all tests of training share."""

from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from stages.common import shards
from stages.common.training import loop, optimizers
from stages.common.training.parameters import TrainingParams

TRAINING = {
    "optimizer": "adamw",
    "learning_rate": 0.01,
    "weight_decay": 0.0,
    "schedule": "constant",
    "decay_per_step": 0.0,
    "warmup_epochs": 0.0,
    "label_smoothing": 0.0,
    "clip_norm": None,
    "average_decay": None,
    "averaged_epochs": None,
    "batch_size": 8,
    "epochs": 4,
    "seconds_budget": None,
    "early_stopping_patience": None,
}


def parameters(**changes) -> TrainingParams:
    return TrainingParams(**{**TRAINING, **changes})


def small_model() -> keras.Model:
    keras.utils.set_random_seed(1)
    inputs = keras.Input((4,))
    # Dropout: a resumed run must draw the numbers that an uninterrupted one draws.
    x = keras.layers.Dropout(0.2)(inputs)
    return keras.Model(inputs, keras.layers.Dense(2, name="logits")(x))


def two_blobs(count: int = 32):
    """(features, one-hot labels) of two well-parted classes."""
    generator = np.random.default_rng(0)
    labels = np.arange(count) % 2
    features = generator.normal(0, 0.5, (count, 4)) + labels[:, None] * 2 - 1
    return features.astype("float32"), np.eye(2, dtype="float32")[labels]


def fit(model, tmp_path, make_validation=None, rate_factors=None, **changes):
    given = parameters(**changes)
    arrays = two_blobs()
    data = tf.data.Dataset.from_tensor_slices(arrays).batch(given.batch_size)
    optimizers.compile_model(model, given, 4, rate_factors)
    return loop.fit(
        model,
        given,
        make_training_batches=lambda first: data.repeat(given.epochs - first),
        validation_batches=make_validation or data,
        images_per_epoch=32,
        backup=tmp_path / "backup",
    )


def write_blobs(folder: Path) -> Path:
    """Shards of the two classes in train/ and valid/ below `folder`, 32 images each."""
    features, one_hot = two_blobs()
    for split in ("train", "valid"):
        records = [(row, int(one_hot[n].argmax()), f"{n}") for n, row in enumerate(features)]
        shards.write_all(folder / split, records, "float32", ["no", "yes"])
    return folder


def fit_until_input_ends(model, given, broken, data, backup):
    """A run that dies: the batches of `broken`, then an error of the input."""

    def batches(_first):
        def generate():
            yield from broken
            raise ValueError("stopped")

        return tf.data.Dataset.from_generator(
            generate,
            output_signature=(tf.TensorSpec((None, 4)), tf.TensorSpec((None, 2))),
        )

    try:
        loop.fit(
            model,
            given,
            make_training_batches=batches,
            validation_batches=data,
            images_per_epoch=32,
            backup=backup,
        )
    except tf.errors.InvalidArgumentError as error:
        raise ValueError("stopped") from error
