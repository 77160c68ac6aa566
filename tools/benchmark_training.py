"""Compares training and prediction with what a user would run instead, on the last run's data.

`python -m tools.benchmark` calls it after a `make repro`. Each table has two or three ways to the
same end, in turn, in one process; the first case is what the others are compared with.
"""

import contextlib
import importlib.util
import io
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np

from stages import extract_features
from stages.common import augment, folding, heads, models, onnx_engine, paths, shards
from stages.common.run import data_options, progress
from stages.common.training import loop, optimizers
from stages.common.training.parameters import TrainingParams

EPOCHS = 10  # of the tutorial's first phase
BATCH = 32
FINE_TUNED_IMAGES = 320
PYTORCH_NETWORK = "tf_efficientnet_lite0"  # timm's name of the default backbone
HEAD = {
    "optimizer": "adamw",
    "learning_rate": 1e-3,
    "weight_decay": 0.01,
    "schedule": "constant",
    "decay_per_step": 0.0,
    "warmup_epochs": 0.0,
    "label_smoothing": 0.0,
    "clip_norm": None,
    "average_decay": None,
    "averaged_epochs": None,
    "batch_size": BATCH,
    "epochs": EPOCHS,
    "seconds_budget": None,
    "early_stopping_patience": None,
}

Cases = dict[str, Callable[[], object]]


def head_epochs() -> tuple[Cases, int]:
    """Ten epochs of a head, from shards to a trained head, and the images that one call handles.

    Same images, backbone, head, optimizer and epochs on both sides.
    """
    import keras

    backbone = models.load(paths.BACKBONE)
    side = backbone.get_layer("resize").height
    index = shards.read_index(paths.IMAGES / "train")
    classes = len(index.class_names)

    def labelled(split: str):
        return loop.with_one_hot(
            shards.batches(paths.IMAGES / split, BATCH, image_size=side), classes
        )

    def tutorial() -> None:
        """The frozen network in the graph: every epoch goes through it again."""
        backbone.trainable = False
        images = keras.Input(index.shape or (side, side, 3))
        features = keras.layers.GlobalAveragePooling2D()(backbone(images, training=False))
        _head_as_the_tutorial(images, features, labelled("train"), labelled("valid"), index, seed=0)

    def ours() -> None:
        """The frozen network once, then the head alone."""
        with tempfile.TemporaryDirectory() as folder:
            _extract(backbone, Path(folder))
            _head_as_ours(Path(folder), seed=0)

    return {"the tutorial's loop": tutorial, "extract_features, train_head": ours}, index.count


def head_accuracies(seeds: int) -> dict[str, list[float]]:
    """The accuracy on the validation split of the heads of `head_epochs`, a number for each seed.

    A seed decides the head's first weights and the order of the images: of one alone a single image
    may decide. A frozen network gives the same features in every epoch, so that all seeds take
    them from one pass: the tutorial's in float32, ours as extract_features keeps them.
    """
    import keras
    import tensorflow as tf

    backbone = models.load(paths.BACKBONE)
    side = backbone.get_layer("resize").height
    index = shards.read_index(paths.IMAGES / "train")
    pooled = keras.Model(backbone.input, models.as_features(backbone.output, "pooled"))
    inputs = keras.Input(pooled.output_shape[1:])

    def features_of(split: str):
        batches = loop.with_one_hot(
            shards.batches(paths.IMAGES / split, BATCH, image_size=side), len(index.class_names)
        )
        features, labels = zip(
            *((pooled(images, training=False), labels) for images, labels in batches), strict=True
        )
        whole = tf.concat(features, axis=0), tf.concat(labels, axis=0)
        return tf.data.Dataset.from_tensor_slices(whole).batch(BATCH)

    train, valid = features_of("train"), features_of("valid")
    accuracies = {"tutorial": [], "ours": []}
    with tempfile.TemporaryDirectory() as folder:
        _extract(backbone, Path(folder))
        for seed in progress(range(seeds), total=seeds, unit="seed", description="head accuracy"):
            accuracies["tutorial"].append(
                _head_as_the_tutorial(inputs, inputs, train, valid, index, seed)
            )
            accuracies["ours"].append(_head_as_ours(Path(folder), seed))
    return accuracies


def _extract(backbone, folder: Path) -> None:
    """What extract_features writes of the network's last layer, one view."""
    side = backbone.get_layer("resize").height
    extract = extract_features.feature_function(backbone, "pooled", [augment.IDENTITY])
    for split in ("train", "valid"):
        found = (
            (row[0], int(label), image_id.decode())
            for images, labels, ids in shards.batches(paths.IMAGES / split, 64, image_size=side)
            for row, label, image_id in zip(
                extract(images), labels.numpy(), ids.numpy(), strict=True
            )
        )
        class_names = shards.read_index(paths.IMAGES / split).class_names
        shards.write_all(folder / split, found, "float16", class_names)


def _new_head(features: int, index: shards.Index, seed: int):
    import keras

    keras.utils.set_random_seed(seed)
    return heads.build(
        "dense", (features,), len(index.class_names), hidden_units=[512], dropout=0.2
    )


def _head_as_the_tutorial(inputs, features, train, valid, index: shards.Index, seed: int) -> float:
    """Trains a head from `inputs` over `features` by Keras alone; its validation accuracy."""
    import keras

    steps = -(-index.count // BATCH)
    model = keras.Model(inputs, _new_head(features.shape[-1], index, seed)(features))
    optimizers.compile_model(model, TrainingParams(**HEAD), steps)
    history = model.fit(
        train.shuffle(steps, seed=seed),
        epochs=EPOCHS,
        validation_data=valid,
        shuffle=False,  # it is: Keras need not warn
        verbose=0,
    ).history
    return history["val_accuracy"][-1]


def _head_as_ours(folder: Path, seed: int) -> float:
    """Trains a head on the features in a folder as train_head does; its validation accuracy."""
    index = shards.read_index(folder / "train")
    given = TrainingParams(**HEAD)
    model = _new_head(index.shape[-1], index, seed)
    optimizers.compile_model(model, given, -(-index.count // BATCH))

    def labelled(batches):
        return loop.with_one_hot(batches, len(index.class_names))

    # A line for each epoch; and a backup, from which the next seed would go on.
    with (
        contextlib.redirect_stdout(io.StringIO()),
        tempfile.TemporaryDirectory(dir=folder) as backup,
    ):
        history = loop.fit(
            model,
            given,
            make_training_batches=lambda first: labelled(
                shards.training_batches(
                    folder / "train", BATCH, seed=seed, first_epoch=first, epochs=EPOCHS
                )
            ),
            validation_batches=labelled(shards.batches(folder / "valid", BATCH)),
            images_per_epoch=index.count,
            backup=Path(backup),
        )
    return history[-1]["val_accuracy"]


def forward_pass() -> tuple[Cases, int]:
    """The frozen pass over the test images, to pooled features: `model.predict` against ours.

    On an array as it stands `model.predict` may wait for tf.data at its end, so that this row says
    what a user waits for, and not what the work takes (`data_options`).
    """
    import keras

    backbone = models.load(paths.BACKBONE)
    side = backbone.get_layer("resize").height
    folder = paths.IMAGES / "test"
    count = shards.read_index(folder).count
    images = np.concatenate(
        [batch[0].numpy() for batch in shards.batches(folder, 64, image_size=side)]
    )
    pooled = keras.Model(backbone.input, models.as_features(backbone.output, "pooled"))

    def ours(make: Callable) -> Callable[[], None]:
        extract = make(backbone, "pooled", [augment.IDENTITY])

        def run() -> None:
            for batch, _, _ in shards.batches(folder, 64, image_size=side):
                extract(batch)

        return run

    cases: Cases = {
        "model.predict, without autotuning": lambda: pooled.predict(
            _in_batches(images, batch_size=64), verbose=0
        ),
        "model.predict on an array": lambda: pooled.predict(images, batch_size=64, verbose=0),
        "extract_features, from shards": ours(extract_features.feature_function),
    }
    if all(map(importlib.util.find_spec, onnx_engine.PACKAGES)):
        cases["the same, engine onnx_runtime (extra)"] = ours(
            extract_features.onnx_feature_function
        )
    if all(map(importlib.util.find_spec, ("timm", "torch"))):
        # timm's network has no layer that resizes.
        seen = backbone.get_layer("resize")(images).numpy()
        cases["timm's, PyTorch"] = _pytorch_pass(seen)
    return cases, count


def _in_batches(arrays, batch_size: int, shuffled: bool = False):
    """What Keras makes of arrays in memory, but for tf.data's autotuning, as a tf.data.Dataset."""
    import tensorflow as tf

    dataset = tf.data.Dataset.from_tensor_slices(arrays)
    if shuffled:
        dataset = dataset.shuffle(len(dataset))
    batches = dataset.batch(batch_size).prefetch(tf.data.AUTOTUNE)
    return batches.with_options(data_options())


def _pytorch_pass(images: np.ndarray) -> Callable[[], None]:
    """The same network in PyTorch (timm), from an array in memory; its weights are random."""
    # TensorFlow and Triton, which PyTorch would load, bring an LLVM each: two end the process.
    sys.modules.setdefault("triton", None)
    import timm
    import torch

    network = timm.create_model(PYTORCH_NETWORK, pretrained=False, num_classes=0).eval()
    network = network.to(memory_format=torch.channels_last)

    def run() -> None:
        with torch.inference_mode():
            for start in range(0, len(images), 64):
                # NHWC seen as NCHW is what PyTorch calls channels_last: nothing is copied.
                batch = torch.from_numpy(images[start : start + 64]).permute(0, 3, 1, 2)
                network(batch.float() / 127.5 - 1.0)

    return run


def fine_tuning() -> tuple[Cases, int]:
    """An epoch of fine-tuning: bare `model.fit` on arrays against ours on shards.

    On arrays as they stand `model.fit` may wait for tf.data at the end of an epoch, so that this
    row says what a user waits for, and not what the work takes (`data_options`). The last case is
    what the first one takes where BatchNorm is left behind its convolution.
    """
    index = shards.read_index(paths.IMAGES / "train")
    classes = len(index.class_names)
    count = min(FINE_TUNED_IMAGES, index.count)
    classifier = models.load(paths.HEAD)
    side = classifier.get_layer("resize").height
    given = TrainingParams(**HEAD)

    def compiled():
        nothing = augment.random_symmetry_layer([augment.IDENTITY], 0)
        model = models.training_model(classifier, nothing, index.shape or [side, side, 3])
        model.trainable = True
        optimizers.compile_model(model, given, count // BATCH)
        return model

    model = compiled()
    with mock.patch.object(folding, "foldable", return_value={}):
        not_folded = compiled()
    steps = count // BATCH

    def batches():
        return loop.with_one_hot(
            shards.training_batches(
                paths.IMAGES / "train", BATCH, seed=0, first_epoch=0, epochs=1, image_size=side
            ),
            classes,
        ).take(steps)

    arrays = tuple(part.numpy() for part in next(iter(batches().unbatch().batch(count))))
    in_batches = _in_batches(arrays, BATCH, shuffled=True)
    return {
        "model.fit, without autotuning": lambda: model.fit(in_batches, shuffle=False, verbose=0),
        "model.fit on arrays": lambda: model.fit(*arrays, batch_size=BATCH, verbose=0),
        "ours, from shards": lambda: model.fit(
            batches(), steps_per_epoch=steps, shuffle=False, verbose=0
        ),
        "without autotuning, not folded": lambda: not_folded.fit(
            in_batches, shuffle=False, verbose=0
        ),
    }, steps * BATCH


def nothing_to_do() -> tuple[Cases, int]:
    """`dvc repro` where nothing changed, against `dvc status`."""

    def dvc(*words: str) -> None:
        command = [sys.executable, "-m", "dvc", *words]
        subprocess.run(command, check=True, capture_output=True)

    return {"dvc status": lambda: dvc("status"), "dvc repro": lambda: dvc("repro")}, 1
