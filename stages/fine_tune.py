"""Unfreezes the trained classifier and goes on at a smaller rate: linear probe, then fine-tune.

Reads:  data/images/{train,valid}/ — uint8, RGB as a rule; models/head.keras; data/splits.csv —
        the training images' column of weights, where one is asked for.
Writes: models/fine_tuned.keras — images to calibrated probabilities.
        plots/fine_tune/history.csv — one row an epoch: loss and accuracy of both splits.
        plots/fine_tune/layers.csv — every layer: shape, parameters, trainable in which phase.

Where TF_CONFIG names several boxes they train together, and the first one alone writes.
"""

import os
import re
from collections.abc import Callable, Sequence
from typing import Annotated, Literal

from pydantic import Field, model_validator

from stages.common import (
    blocks,
    image_augmentation,
    layer_table,
    models,
    params,
    paths,
    runtime,
    shards,
    weights,
    workers,
)
from stages.common.run import UserError, run, start_tensorflow
from stages.common.training import loop
from stages.common.training.parameters import (
    TrainingParams,
    batch_size_without_single,
    with_batch_size,
)

PATTERN = "regex:"
SIZES_ALLOWED = "null, or a list of [epoch, pixels from then on], as [[1, 128], [9, 224]]"
GRADUAL_ALLOWED = "null, or a list of [epoch, what trains from then on], as [[1, none], [4, all]]"


@params.params_dataclass
class FineTuneParams(weights.WeightParams, TrainingParams):
    """Section `fine_tune`."""

    unfreeze: Annotated[
        int | str,
        Field(
            description="all, none, a number of last backbone layers, the name of a backbone block "
            "or layer to start from, or regex: and a pattern that names must match"
        ),
    ]
    gradual_unfreezing: Annotated[
        list[tuple[int, int | str]] | None, Field(min_length=1, description=GRADUAL_ALLOWED)
    ]
    batch_norm_trainable: params.Flag
    batch_norm_statistics: Literal["frozen", "updated"]
    layer_decay: Annotated[
        float, Field(gt=0, le=1, description="a number above 0, up to 1 (one rate for all layers)")
    ]
    image_sizes: Annotated[
        list[tuple[int, params.PositiveInt]] | None, Field(min_length=1, description=SIZES_ALLOWED)
    ]
    augment: image_augmentation.ImageAugmentationParams

    @model_validator(mode="after")
    def _steps_follow_each_other(self):
        for key in ("gradual_unfreezing", "image_sizes"):
            epochs = [epoch for epoch, _ in getattr(self, key) or []]
            within = all(1 <= epoch <= self.epochs for epoch in epochs)
            if epochs != sorted(set(epochs)) or not within:
                raise ValueError(
                    f"{key}: expected epochs that rise, from 1 to {self.epochs} (epochs), "
                    f"received {epochs}"
                )
            if self.seconds_budget and epochs not in ([], [1]):
                raise ValueError(
                    f"{key}: expected null, or one entry from epoch 1 on, with seconds_budget, "
                    f"received epochs {epochs}: time may be up before a later one begins"
                )
        return self

    @model_validator(mode="after")
    def _something_is_unfrozen(self):
        if self.gradual_unfreezing and self.unfreeze in ("none", 0):
            raise ValueError(
                "unfreeze: expected what is to train in the end, such as all, with "
                f"gradual_unfreezing, received {self.unfreeze!r}: no layer would ever have its turn"
            )
        return self

    @model_validator(mode="after")
    def _statistics_belong_to_trained_layers(self):
        if self.batch_norm_statistics == "updated" and not self.batch_norm_trainable:
            raise ValueError(
                "batch_norm_statistics: expected frozen, since batch_norm_trainable is false, "
                "received 'updated'; BatchNorm layers whose γ and β are frozen keep all they have"
            )
        if self.batch_norm_statistics == "updated" and self.gradual_unfreezing:
            raise ValueError(
                "batch_norm_statistics: expected frozen with gradual_unfreezing, received "
                "'updated', which would move the statistics of layers whose turn has not come"
            )
        return self


def unfreeze(model, choice: int | str, batch_norm_trainable: bool) -> None:
    """Sets which layers of a classifier train; compile it afterwards.

    The head always trains, save for its BatchNorm. As a rule no BatchNorm updates its statistics:
    the backbone's since `models.training_model` calls it with `training=False`, the head's since
    they stay frozen.

    Args:
        model: from `models.assemble`.
        choice: 'all', 'none', the number of last backbone layers, the name of the block or layer
            to start from, or 'regex:' and a pattern that is searched for in layers' names.
        batch_norm_trainable: whether γ and β of unfrozen BatchNorm layers train.

    Raises:
        UserError: no layer of that name, or a number out of range; the candidates are listed.
            No name matches the pattern, or it is none.
    """
    import keras

    layers = list(models.leaf_layers(model.get_layer("backbone")))
    names, of_block = leaves_and_blocks(model.get_layer("backbone"))
    unfrozen = unfrozen_layers(choice, names, of_block)
    # A frozen parent would freeze all inside it.
    model.trainable = True
    for layer in models.leaf_layers(model.get_layer("head")):
        layer.trainable = not isinstance(layer, keras.layers.BatchNormalization)
    for layer in layers:
        is_norm = isinstance(layer, keras.layers.BatchNormalization)
        layer.trainable = layer.name in unfrozen and (batch_norm_trainable or not is_norm)


def leaves_and_blocks(backbone) -> tuple[list[str], dict[str, list[str]]]:
    """The names of all layers in the order of depth, and those of each block.

    Layers of models inside, as ConvNeXt's downsampling is one, stand for these: they can be trained
    one by one.
    """
    import keras

    def leaves(name: str) -> list[str]:
        layer = backbone.get_layer(name)
        inside = isinstance(layer, keras.Model)
        return [leaf.name for leaf in models.leaf_layers(layer)] if inside else [name]

    of_block = {
        block: [leaf for name in names for leaf in leaves(name)]
        for block, names in blocks.blocks(backbone).items()
    }
    return [layer.name for layer in models.leaf_layers(backbone)], of_block


def unfrozen_layers(
    choice: int | str, names: list[str], of_block: dict[str, list[str]], key: str = "unfreeze"
) -> set[str]:
    """The backbone layers that train.

    Args:
        choice: see `unfreeze`.
        names: of all layers, in the order of depth.
        of_block: block to the names of its layers.
        key: of the param that chooses, for messages.
    """
    if choice in ("all", "none"):
        return set(names) if choice == "all" else set()
    if isinstance(choice, str) and choice.startswith(PATTERN):
        return _matching(choice.removeprefix(PATTERN), names, key)
    if isinstance(choice, int):
        if not 0 <= choice <= len(names):
            raise UserError(
                f"params.yaml, fine_tune.{key}: expected 0 to {len(names)}, the layers of this "
                f"backbone, received {choice}"
            )
        return set(names[len(names) - choice :])
    if choice in of_block:
        # By blocks, not by position: layers of branches lie between each other.
        following = list(of_block)[list(of_block).index(choice) :]
        return {name for block in following for name in of_block[block]}
    if choice not in names:
        raise UserError(
            f"params.yaml, fine_tune.{key}: expected all, none, a number, the name of a block "
            f"or layer, or {PATTERN} and a pattern, received {choice!r}"
            f"{params.nearest(choice, [*of_block, *names])}; the blocks are "
            f"{', '.join(of_block)}; the layers are {', '.join(names)}"
        )
    return set(names[names.index(choice) :])


def rate_factors(variables: Sequence, backbone, decay: float) -> list[float]:
    """By what the learning rate of each variable is multiplied: less the deeper its layer lies.

    1 for the head, `decay` for the last block of the backbone, `decay`² for the one before it, and
    so on, as in ELECTRA and BEiT (Clark et al. 2020; Bao et al. 2022), by block, not by layer.

    Args:
        variables: those that train.
        backbone: the network inside the classifier.
        decay: above 0, at most 1.
    """
    of_block = list(blocks.blocks(backbone).values())
    depth_of = {
        id(variable): len(of_block) - number
        for number, layers in enumerate(of_block)
        for name in layers
        for variable in backbone.get_layer(name).variables
    }
    return [decay ** depth_of.get(id(variable), 0) for variable in variables]


def rate_factors_by_epoch(
    variables: Sequence, backbone, parameters: FineTuneParams
) -> Callable[[int], list[float]] | None:
    """From an epoch, from 1, to the factors of `rate_factors`; None where all are always 1.

    A layer that gradual unfreezing has not reached has the factor 0 (Howard and Ruder 2018). It is
    not frozen, so that no optimizer starts anew: its moments are there when its turn comes.

    Raises:
        UserError: gradual_unfreezing names no layer of this network.
    """
    constant = rate_factors(variables, backbone, parameters.layer_decay)
    steps = parameters.gradual_unfreezing
    if steps is None:
        return None if set(constant) == {1.0} else lambda _epoch: constant
    names, of_block = leaves_and_blocks(backbone)
    reached = [
        (epoch, unfrozen_layers(choice, names, of_block, "gradual_unfreezing"))
        for epoch, choice in steps
    ]
    layer_of = {
        id(variable): layer.name
        for layer in models.leaf_layers(backbone)
        for variable in layer.variables
    }

    def of_epoch(epoch: int) -> list[float]:
        begun = [layers for first, layers in reached if first <= epoch]
        unfrozen = begun[-1] if begun else set()
        return [
            factor if layer_of.get(id(variable)) in {None, *unfrozen} else 0.0
            for variable, factor in zip(variables, constant, strict=True)
        ]

    return of_epoch


def _matching(pattern: str, names: list[str], key: str) -> set[str]:
    try:
        found = {name for name in names if re.search(pattern, name)}
    except re.error as error:
        raise UserError(
            f"params.yaml, fine_tune.{key}: expected a regular expression after {PATTERN}, "
            f"received {pattern!r}: {error}"
        ) from None
    if not found:
        raise UserError(
            f"params.yaml, fine_tune.{key}: expected a pattern that some layer's name has, "
            f"received {pattern!r}; the layers are {', '.join(names)}"
        )
    return found


def training_side(
    shape: Sequence[int] | None, network_side: int, shrunk_to: int | None, crop_area: float
) -> int:
    """The side in pixels of the squares that training images come as: quarter turns need squares.

    Args:
        shape: of all images, [height, width, channels]; None where they differ.
        network_side: what the network sees.
        shrunk_to: `preprocess.image_size`, if known.
        crop_area: the least part of an image that is cut out; below 1 it is cut from all pixels
            that `preprocess` kept, so that a crop has as many as it can.
    """
    if shape is not None and shape[0] == shape[1]:
        return shape[0]
    return max(network_side, shrunk_to or 0) if crop_area < 1 else network_side


def largest_side(image_sizes: Sequence[tuple[int, int]] | None, network_side: int) -> int:
    """The side in pixels of the largest squares that the network sees while it trains.

    Args:
        image_sizes: of `fine_tune`, epoch and pixels from then on.
        network_side: what it sees later, and until the first of these epochs.
    """
    sides = dict(image_sizes or [])
    return max(sides.values()) if 1 in sides else network_side


def check_image_sizes(image_sizes: Sequence[tuple[int, int]] | None, seen: int | None) -> None:
    """UserError where fine-tuning would see larger images than the network later does.

    Args:
        image_sizes: of `fine_tune`, epoch and pixels.
        seen: the side of what the network is given; None: not known yet.
    """
    largest = max((pixels for _, pixels in image_sizes or []), default=0)
    if seen is not None and largest > seen:
        raise UserError(
            f"params.yaml, fine_tune.image_sizes: expected at most {seen} pixels, what the network "
            f"sees (backbone.image_size), received {largest}; choose less, or null"
        )


def fine_tune(
    parameters: FineTuneParams,
    settings: runtime.RuntimeParams,
    seed: int,
    index: shards.Index,
    image_weights,
    team: workers.Team | None = None,
) -> None:
    """From models/head.keras to models/fine_tuned.keras, on this box alone or in a team."""
    import tensorflow as tf

    model = models.load(paths.HEAD)
    check_image_sizes(parameters.image_sizes, model.get_layer("resize").height)
    trained_before = layer_table.trainable_in_head_phase(model)
    unfreeze(model, parameters.unfreeze, parameters.batch_norm_trainable)
    table = layer_table.rows(model, trained_before)
    if team is None or team.is_chief:
        layer_table.write(paths.PLOTS / "fine_tune" / "layers.csv", table)
    print(layer_table.totals(table), flush=True)
    runtime.set_precision(model.get_layer("backbone"), settings.precision)
    image_channels = model.input_shape[-1]
    image_augmentation.check_channels(parameters.augment, image_channels)
    image_size = training_side(
        index.shape,
        model.get_layer("resize").height,
        models.shrunk_to(paths.HEAD),
        parameters.augment.crop_area,
    )
    trained = models.training_model(
        model,
        image_augmentation.augmentation_layer(
            parameters.augment,
            seed,
            largest_side(parameters.image_sizes, model.get_layer("resize").height),
        ),
        [image_size, image_size, image_channels],
        image_augmentation.mixture_layer(parameters.augment, seed),
        update_statistics=parameters.batch_norm_statistics == "updated",
        image_sizes=parameters.image_sizes,
    )

    devices = tf.distribute.get_strategy().num_replicas_in_sync

    def save(temperature: float) -> None:
        runtime.set_precision(model.get_layer("backbone"), "float32")  # as all models are saved
        fine_tuned = models.with_temperature(model, temperature)
        models.save(fine_tuned, paths.FINE_TUNED, index.class_names, models.shrunk_to(paths.HEAD))

    loop.train(
        "fine_tune",
        trained,
        parameters,
        data=paths.IMAGES,
        seed=seed,
        save=save,
        # Random numbers differ from worker to worker and from device to device, and so with how
        # many there are.
        inputs=[
            *(paths.HEAD, settings, *weights.files(parameters)),
            *(1 if team is None else team.size, devices),
        ],
        image_weights=image_weights,
        image_size=image_size,
        rate_factors=rate_factors_by_epoch(
            trained.trainable_variables, model.get_layer("backbone"), parameters
        ),
        steps_per_execution=settings.steps_per_execution,
        team=team,
    )


def check_several_devices(parameters: FineTuneParams, settings: runtime.RuntimeParams) -> None:
    """Finds what works on one device alone.

    Raises:
        UserError: all mistakes.
    """
    mistakes = []
    if settings.steps_per_execution > 1:
        mistakes.append(
            "params.yaml, runtime.steps_per_execution: expected 1 with several devices, received "
            f"{settings.steps_per_execution}: Keras' loop of steps fails there"
        )
    if parameters.batch_norm_statistics == "updated":
        mistakes.append(
            "params.yaml, fine_tune.batch_norm_statistics: expected frozen with several devices, "
            "received 'updated': each device would move the statistics by its own images"
        )
    if mistakes:
        raise UserError("\n       ".join([*mistakes, "or set runtime.devices to 1"]))


def main() -> None:
    """Fine-tunes, fits the temperature anew and saves the classifier."""
    parameters = params.load("fine_tune", FineTuneParams)
    settings = params.load("runtime", runtime.RuntimeParams)
    seed = params.load_seed()
    cluster = workers.cluster_from(os.environ)
    if cluster is not None:
        workers.check_params(parameters, settings)
    models.check_exists(paths.HEAD)  # before other boxes wait for this one
    index = shards.read_index(paths.IMAGES / "train")
    image_weights = weights.load(parameters, "fine_tune", index.class_names, index.class_counts)
    if parameters.batch_norm_statistics == "updated":
        size = batch_size_without_single(parameters.batch_size, index.count)
        parameters = with_batch_size(parameters, size, index.count)
    start_tensorflow(seed, settings.deterministic)
    if cluster is None:
        strategy = runtime.strategy(settings.devices, parameters.batch_size)
        if strategy.num_replicas_in_sync > 1:
            check_several_devices(parameters, settings)
        with strategy.scope():
            fine_tune(parameters, settings, seed, index, image_weights)
        return
    team = workers.Team(cluster, parameters.batch_size)
    with team.scope():
        fine_tune(parameters, settings, seed, index, image_weights, team)


if __name__ == "__main__":
    run(main, takes_arguments=False)
