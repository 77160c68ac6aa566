"""Pushes every training and validation image through the frozen network, once.

Reads:  data/images/{train,valid}/ — uint8, RGB as a rule; models/backbone.keras.
Writes: data/features/{train,valid}/ — shards of float16: pooled (views, channels), or feature maps
        (views, height, width, channels); training images in `views` of the allowed symmetries,
        validation images in one view. Of several layers, the channels one after the other, maps
        averaged down to the size of the coarsest.
        data/features/layers.json — the layers of the backbone that were read; none: its output.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from stages.common import (
    augment,
    blocks,
    folding,
    geometry,
    models,
    onnx_engine,
    params,
    paths,
    runtime,
    shards,
)
from stages.common.run import UserError, progress, run, start_tensorflow


@params.params_dataclass
class ExtractFeaturesParams:
    """Section `extract_features`."""

    features: Literal["pooled", "map"]
    layers: Annotated[
        Literal["all_blocks"] | list[params.Text] | None,
        Field(min_length=1, description="null (the last layer), all_blocks, or a list of names"),
    ]
    views: params.PositiveInt
    augment: augment.AugmentParams
    batch_size: params.PositiveInt
    engine: Literal["tensorflow", "onnx_runtime"]

    @model_validator(mode="after")
    def _enough_views(self):
        available = len(self.augment.symmetries)
        if self.views > available:
            raise ValueError(
                f"views: expected at most {available}, the different pictures that "
                f"extract_features.augment allows, received {self.views}"
            )
        return self


def feature_function(backbone_model, features: str, symmetries):
    """A compiled function: images (batch, height, width, channels) to (batch, views, …) float16."""
    import keras
    import tensorflow as tf

    resize = geometry.on_device(backbone_model.get_layer("resize"))
    folded = folding.folded(backbone_model.get_layer("backbone"))
    network = keras.Model(folded.input, models.as_features(folded.output, features))

    @tf.function(reduce_retracing=True)
    def extract(images):
        views = []
        for symmetry in symmetries:
            resized = resize(tf.cast(augment.apply(images, symmetry), tf.float32))
            received = network(resized, training=False)
            # Half the bytes; the eleven bits that are left are far finer than the features' noise.
            views.append(tf.cast(received, tf.float16))
        return tf.stack(views, axis=1)

    return lambda images: extract(images).numpy()


def onnx_feature_function(backbone_model, features: str, symmetries):
    """What `feature_function` gives, to rounding, with the network run by ONNX Runtime."""
    import tensorflow as tf

    resize = geometry.on_device(backbone_model.get_layer("resize"))
    network = onnx_engine.compiled(onnx_engine.fixed_size(backbone_model, features))

    @tf.function(reduce_retracing=True)
    def views_of(images):
        images = tf.cast(images, tf.float32)
        return [resize(augment.apply(images, symmetry)) for symmetry in symmetries]

    def extract(images):
        views = [network(view.numpy()).astype(np.float16) for view in views_of(images)]
        return np.stack(views, axis=1)

    return extract


def check_finite(features: np.ndarray, layers: Sequence[str]) -> None:
    """UserError where activations are larger than float16 holds, or are no numbers."""
    if not np.isfinite(features).all():
        raise UserError(
            f"the network's activations at {', '.join(layers) or 'its output'} are no numbers, or "
            "above the 65,504 that features, kept as float16, can be; choose other "
            "extract_features.layers, or see whether the weights fit the network (backbone.weights)"
        )


def describe_precision_without_effect(precision: str) -> str | None:
    """A sentence where ONNX Runtime is asked for another precision; on CPUs it has few kernels."""
    if precision == "float32":
        return None
    return (
        f"runtime.precision {precision}: without effect here, since extract_features.engine is "
        "onnx_runtime, which computes in float32"
    )


def main() -> None:
    """Streams both splits through the network."""
    parameters = params.load("extract_features", ExtractFeaturesParams)
    settings = params.load("runtime", runtime.RuntimeParams)
    by_onnx = parameters.engine == "onnx_runtime"
    if by_onnx:
        onnx_engine.check_installed("params.yaml, extract_features.engine: onnx_runtime")
    start_tensorflow(deterministic=settings.deterministic)
    backbone_model = models.load(paths.BACKBONE)
    layers = blocks.resolve(backbone_model.get_layer("backbone"), parameters.layers)
    backbone_model = models.at_layers(backbone_model, layers)
    if not by_onnx:
        runtime.set_precision(backbone_model.get_layer("backbone"), settings.precision)
    elif sentence := describe_precision_without_effect(settings.precision):
        print(sentence)
    image_size = backbone_model.get_layer("resize").height
    symmetries = parameters.augment.symmetries[: parameters.views]
    for split, views in (("train", symmetries), ("valid", [augment.IDENTITY])):
        folder = paths.IMAGES / split
        index = shards.read_index(folder)
        make = onnx_feature_function if by_onnx else feature_function
        extract = make(backbone_model, parameters.features, views)
        batches = shards.batches(folder, parameters.batch_size, image_size=image_size)
        bar = progress(
            None, total=index.count * len(views), unit="image", description=f"extract {split}"
        )
        with (
            shards.ShardWriter(paths.FEATURES / split, "float16", index.class_names) as writer,
            bar,
        ):
            for images, labels, ids in batches:
                features: np.ndarray = extract(images)
                check_finite(features, layers)
                for row in zip(features, labels.numpy(), ids.numpy(), strict=True):
                    writer.write(row[0], int(row[1]), row[2].decode())
                bar.update(len(features) * len(views))
    blocks.write_layers(layers)


if __name__ == "__main__":
    run(main, takes_arguments=False)
