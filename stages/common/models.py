"""Puts models together, and saves them so that equal models are equal bytes.

A model file is complete: RGB images, uint8 or float 0–255, of any size, to probabilities (grey or
other channels where preprocess.channels says so). It loads with plain `keras.models.load_model`.
Beside Keras' own parts the file holds the names of the classes, and to how many pixels a picture is
shrunk before. Its layers, by name:

    images → resize → backbone → [pool] → head → temperature → probabilities

Of a backbone that is read at several layers, `pool` pools each and joins what comes out; for a head
that looks at maps it pools them to one size.

`backbone` and `head` are models of their own, so that their layers can be reached. Both are called
with `training=False`: without it, a plain `model(images)` would run BatchNorm and dropout as in
training, since Keras' Resizing layer takes `training=True` for its default and passes it on.
"""

import json
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from stages.common import files, folding, geometry, hub
from stages.common.run import UserError

# The oldest date that a zip file can hold.
ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)
# Parts of a file of ours that Keras leaves alone.
CLASS_NAMES_PART = "class_names.json"
SHRUNK_TO_PART = "shrunk_to.json"


def with_any_size(backbone, resize: str = "squash"):
    """The backbone behind an input of any size and a layer that resizes.

    Args:
        backbone: a keras.Model from images of one size to feature maps.
        resize: how images that are no squares become such, see geometry.shrink.

    Returns:
        A keras.Model from (batch, height, width, channels), 0–255, as a rule RGB, to feature maps.
    """
    import keras

    _, image_size, _, channels = backbone.input_shape
    images = keras.Input((None, None, channels), name="images")
    resized = geometry.resizing_layer(image_size, resize)(images)
    return keras.Model(images, backbone(resized, training=False), name="backbone_any_size")


def output_at(backbone, name: str):
    """What a network goes on with behind a layer: its output, or the sum that it is a part of.

    ConvNeXt adds a block's branch to its input by an operation, which is no layer and has no name
    that could be asked for: the branch alone would leave out all that earlier blocks found.
    """
    import keras

    output = backbone.get_layer(name).output
    readers = [
        operation
        for operation in backbone.operations
        for node in operation._inbound_nodes
        if any(tensor is output for tensor in node.input_tensors)
    ]
    if len(readers) == 1 and not isinstance(readers[0], keras.layers.Layer):
        (operation,) = readers
        return operation.output if type(operation).__name__ == "Add" else output
    return output


def at_layers(backbone_model, names: Sequence[str]):
    """The same backbone, ending where the named layers do; what comes later is dropped.

    Args:
        backbone_model: what `with_any_size` gave.
        names: of layers inside, whose outputs are feature maps; none: the backbone as it is.

    Returns:
        A keras.Model like that of `with_any_size`; of several layers, a list of feature maps.
    """
    import keras

    if not names:
        return backbone_model
    backbone = backbone_model.get_layer("backbone")
    outputs = [output_at(backbone, name) for name in names]
    cut = keras.Model(backbone.input, outputs if len(names) > 1 else outputs[0], name="backbone")
    resized = backbone_model.get_layer("resize").output
    outputs = cut(resized, training=False)
    return keras.Model(backbone_model.input, outputs, name="backbone_any_size")


def as_features(feature_maps, features: str):
    """What a head gets of a backbone's output.

    Args:
        feature_maps: a symbolic tensor (batch, height, width, channels), or a list of them.
        features: 'pooled' or 'map', as extract_features.features.

    Returns:
        A symbolic tensor: (batch, channels) by the layer `pool`, or a map, of several layers by the
        layer `pool` too.

    Raises:
        UserError: several maps that are to stay maps do not fit into each other, see joining.
    """
    if features == "pooled":
        return pooling(feature_maps)(feature_maps)
    if isinstance(feature_maps, list):
        return joining(feature_maps)(feature_maps)
    return feature_maps


def pooling(feature_maps):
    """The layer `pool`: global averages (batch, channels) of one feature map, or of several joined.

    Args:
        feature_maps: a symbolic tensor (batch, height, width, channels), or a list of them.
    """
    import keras
    from keras import layers

    if not isinstance(feature_maps, list):
        return layers.GlobalAveragePooling2D(name="pool")
    # Of any size: of fine_tune.image_sizes maps are smaller.
    inputs = [keras.Input((None, None, feature_map.shape[-1])) for feature_map in feature_maps]
    pooled = [
        layers.GlobalAveragePooling2D(name=f"pool_{number}")(one)
        for number, one in enumerate(inputs)
    ]
    return keras.Model(inputs, layers.Concatenate(name="pooled")(pooled), name="pool")


def joining(feature_maps):
    """The layer `pool` where maps stay maps: averaged down to the size of the coarsest, and joined.

    Args:
        feature_maps: a list of symbolic tensors (batch, height, width, channels) whose heights and
            widths are those of the smallest times a power of two, rounded up at each halving.

    Returns:
        A keras.Model from such a list to (batch, height, width, channels of all together).

    Raises:
        UserError: the sizes are others, as of networks whose convolutions pad nothing.
    """
    import keras
    from keras import layers

    sizes = [feature_map.shape[1:3] for feature_map in feature_maps]
    coarsest = min(sizes)
    inputs, pooled = [], []
    for number, (feature_map, size) in enumerate(zip(feature_maps, sizes, strict=True)):
        stride = round(size[0] / coarsest[0])
        if tuple(-(-side // stride) for side in size) != tuple(coarsest):
            raise UserError(
                "params.yaml, extract_features: expected layers whose maps can be averaged down to "
                f"the size of the smallest, received {', '.join(f'{a} by {b}' for a, b in sizes)}; "
                "name layers of one size, or set features to pooled"
            )
        inputs.append(keras.Input((None, None, feature_map.shape[-1])))
        pool = layers.AveragePooling2D(stride, padding="same", name=f"pool_{number}")
        pooled.append(pool(inputs[-1]) if stride > 1 else inputs[-1])
    return keras.Model(inputs, layers.Concatenate(name="joined")(pooled), name="pool")


def assemble(backbone_model, head, temperature: float = 1.0):
    """A whole classifier.

    Args:
        backbone_model: what `with_any_size` or `at_layers` gave.
        head: a keras.Model named 'head' from pooled features (batch, channels) or feature maps
            (batch, height, width, channels) to logits (batch, classes).
        temperature: by which logits are divided before the softmax (Guo et al. 2017).

    Returns:
        A keras.Model from images to probabilities (batch, classes), float32.
    """
    pooled = len(head.input_shape) == 2
    features = as_features(backbone_model.output, "pooled" if pooled else "map")
    logits = head(features, training=False)
    return _with_probabilities(backbone_model.input, logits, temperature)


def with_temperature(model, temperature: float):
    """The same classifier, layers shared, with another temperature."""
    return _with_probabilities(model.input, logits_of(model).output, temperature)


def _with_probabilities(images, logits, temperature: float):
    import keras

    cooled = keras.layers.Rescaling(1.0 / temperature, name="temperature")(logits)
    probabilities = keras.layers.Softmax(name="probabilities", dtype="float32")(cooled)
    return keras.Model(images, probabilities, name="classifier")


def temperature_of(model) -> float:
    """The temperature that a classifier divides its logits by."""
    return 1.0 / model.get_layer("temperature").scale


def pool_of(model) -> list:
    """The layer of a classifier that pools feature maps; none where the head takes the maps."""
    return [layer for layer in model.layers if layer.name == "pool"]


def logits_of(model):
    """The classifier up to its logits, layers shared: what is trained."""
    import keras

    return keras.Model(model.input, model.get_layer("temperature").input, name="logits")


def on_device(model):
    """A classifier as it runs, layers shared, by geometry.on_device; not to be saved."""
    import keras

    layer = model.get_layer("resize")
    running = geometry.on_device(layer)

    def call(called, *arguments, **keywords):
        return (running if called is layer else called)(*arguments, **keywords)

    return keras.models.clone_model(model, clone_function=lambda one: one, call_function=call)


def training_model(
    model,
    augmentation,
    image_shape,
    mixture=None,
    update_statistics=False,
    image_sizes: Sequence[tuple[int, int]] | None = None,
):
    """The classifier as it trains, layers shared: augmentation in front, logits at the end.

    The backbone runs with `training=False` here unless its statistics are asked for, so that
    BatchNorm keeps them whether or not γ and β train, and is folded into the convolution before it.
    Baking that into the saved graph would not do: Keras 3 lets the `training` of the outer call
    replace the one a functional model was built with.

    Args:
        model: from `assemble`.
        augmentation: a layer from images to images that acts in training only.
        image_shape: [height, width, channels] of the training images.
        mixture: a layer that mixes the images of a batch, and columns of numbers with them, see
            image_augmentation.mixture_layer; None: images stay whole.
        update_statistics: run the backbone as in training: unfrozen BatchNorm layers normalise by
            the batch and move their statistics, and dropout of the network's own acts.
        image_sizes: (epoch, pixels): from that epoch on, from 1, it trains on images of that side;
            smaller ones first as in Tan and Le 2021 (EfficientNetV2), section 4. The model's
            `begin_epoch` wants to know the epoch. None: always that of the classifier, which
            counts before the first epoch that is named, and out of training.

    Returns:
        A built keras.Model from images (batch, *image_shape), 0–255, to logits (batch, classes).

    Raises:
        UserError: `image_sizes` are given and the network does not take them.
    """
    import keras
    from keras import ops

    pool = pool_of(model)
    head = model.get_layer("head")
    backbone = model.get_layer("backbone")
    # Not a part of the model that trains, where it would have a copy of each weight's name.
    network = backbone if update_statistics else folding.folded(backbone, is_trained=True)
    image_size = model.get_layer("resize").height
    if image_sizes is not None:
        network_at_any_size, head_at_any_size = _of_any_size(network), _of_any_size(head)
        _try_sizes([network_at_any_size, *pool, head_at_any_size], image_sizes, image_size)
        # A number where it never changes: crops of that size are not resized again, and smaller
        # pictures take the plain resize.
        only_side = image_sizes[0][1] if [first for first, _ in image_sizes] == [1] else None
        # No part of the model either: it follows from the epoch and needs no backup.
        side = keras.Variable(image_size, trainable=False, dtype="int32")

    class TrainingModel(keras.Model):
        def begin_epoch(self, epoch: int) -> None:
            """Takes the image size of an epoch, from 1."""
            if image_sizes is not None:
                begun = [pixels for first, pixels in image_sizes if first <= epoch]
                side.assign(begun[-1] if begun else image_size)

        def __init__(self):
            super().__init__(name="training")
            self.augmentation, self.mixture = augmentation, mixture
            self.resize = geometry.on_device(model.get_layer("resize"))
            self.backbone = backbone
            self.pool = pool
            self.head = head

        def augmented(self, images, labels, image_weights):
            """A batch as the network sees it in training."""
            images = self.augmentation(images, training=True)
            if self.mixture is not None:
                images, labels, image_weights = _mixed(self.mixture, images, labels, image_weights)
            return images, labels, image_weights

        def train_step(self, data):
            import tensorflow as tf

            if tf.distribute.get_strategy().num_replicas_in_sync == 1:
                batch = keras.utils.unpack_x_y_sample_weight(data)
                return super().train_step(self.augmented(*batch))
            images, labels, present = data[0], data[1], data[2] >= 0
            images, labels, image_weights = self.augmented(images, labels, ops.relu(data[2]))
            with tf.GradientTape() as tape:
                logits = self(images, training=True)
                loss = self.compute_loss(images, labels, logits, image_weights, training=True)
                scaled = self.optimizer.scale_loss(loss)
            gradients = tape.gradient(scaled, self.trainable_variables)
            if isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer):
                # It skips a step whose gradients overflow on the first device: all must see them.
                context = tf.distribute.get_replica_context()
                devices = context.num_replicas_in_sync
                gradients = [one / devices for one in context.all_reduce("SUM", gradients)]
            # Adds up the gradients of all devices.
            self.optimizer.apply(gradients, self.trainable_variables)
            return self._measured(loss, labels, logits, present)

        def test_step(self, data):
            import tensorflow as tf

            if tf.distribute.get_strategy().num_replicas_in_sync == 1:
                return super().test_step(data)
            images, labels, image_weights = data
            logits = self(images, training=False)
            loss = self.compute_loss(images, labels, logits, ops.relu(image_weights))
            return self._measured(loss, labels, logits, image_weights >= 0)

        def _measured(self, loss, labels, logits, present):
            """Counts a device's share, see device_shares, as `fit` counts a batch.

            Shares' losses add up to the mean loss of the whole batch.
            """
            import tensorflow as tf

            here = tf.reduce_sum(tf.cast(present, tf.float32))
            everywhere = tf.distribute.get_replica_context().all_reduce("SUM", here)
            self._loss_tracker.update_state(
                tf.math.divide_no_nan(loss * everywhere, here), sample_weight=here
            )
            count = tf.cast(here, tf.int32)  # the first ones
            return self.compute_metrics(None, labels[:count], logits[:count])

        def call(self, images, training=False):
            # As the classifier's input does: a resize of bytes would round to bytes.
            images = ops.cast(images, "float32")
            if training and image_sizes is not None:
                resized = geometry.antialiased(images, only_side or side.value)
                features = network_at_any_size(resized, training=update_statistics)
                classify = head_at_any_size
            else:
                resized = self.resize(images)
                features = network(resized, training=training and update_statistics)
                classify = self.head
            for layer in self.pool:
                features = layer(features)
            return classify(features, training=training)

    for layer in (augmentation, mixture):
        if layer is not None:
            layer.build((None, *image_shape))
    trained = TrainingModel()
    trained(keras.Input(tuple(image_shape), name="training_images"))
    return trained


def _of_any_size(model):
    """A model of feature maps or images of one size behind an input of any; layers shared.

    One of pooled features is given back as it is.
    """
    import keras

    *sides, channels = model.input_shape[1:]
    if not sides:
        return model
    any_input = keras.Input((*(None for _ in sides), channels))
    return keras.models.clone_model(
        model, input_tensors=any_input, clone_function=lambda layer: layer
    )


def _try_sizes(models, image_sizes: Sequence[tuple[int, int]], image_size: int) -> None:
    """Gives one black image of every size to models that stand one behind the other.

    Args:
        models: the first takes images.
        image_sizes: (epoch, pixels).
        image_size: of the classifier, for the message.

    Raises:
        UserError: one of them does not take one of the sizes.
    """
    import tensorflow as tf

    sides = sorted({pixels for _, pixels in image_sizes})
    try:
        for side in sides:
            features = tf.zeros((1, side, side, models[0].input_shape[-1]))
            for model in models:
                features = model(features, training=False)
    except (ValueError, TypeError, tf.errors.OpError) as error:
        raise UserError(
            f"params.yaml, fine_tune.image_sizes: this network, of {image_size} pixels, or its "
            f"head does not take one of {sides}; choose larger ones, or null "
            f"({str(error).strip().splitlines()[0]})"
        ) from None


def _mixed(mixture, images, labels, image_weights):
    """One batch with its images mixed; each part keeps the weight of the image that it is from.

    The loss is linear in labels times weight: these are mixed, and parted again.
    """
    from keras import ops

    images = ops.cast(images, "float32")
    if image_weights is None:
        mixed = mixture({"images": images, "labels": labels}, training=True)
        return mixed["images"], mixed["labels"], None
    weights = ops.expand_dims(image_weights, -1)
    columns = ops.concatenate([labels * weights, weights], axis=-1)
    mixed = mixture({"images": images, "labels": columns}, training=True)
    weights = mixed["labels"][:, -1:]
    labels = ops.divide_no_nan(mixed["labels"][:, :-1], weights)
    return mixed["images"], labels, ops.squeeze(weights, axis=-1)


def leaf_layers(model):
    """All layers in order, those of models inside included; the models themselves are not."""
    import keras

    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from leaf_layers(layer)
        else:
            yield layer


def output_shape(layer) -> tuple[int | None, ...]:
    """The shape of what the network goes on with: a layer may give more beside it (DINOv2)."""
    output = layer.output
    return tuple((output[0] if isinstance(output, list) else output).shape)


def save(
    model,
    path: Path,
    class_names: Sequence[str] | None = None,
    shrunk_to: int | None = None,
) -> None:
    """Saves an uncompiled model as a .keras file whose bytes depend on the model alone.

    Keras stores the date and memory addresses and the zip format stores times, so two saves of one
    model differ and DVC would run again all that follows (keras#15143). All three are removed.

    Args:
        model: a keras.Model.
        path: of the file.
        class_names: of a classifier; they go with it in a part of the file that Keras leaves alone.
        shrunk_to: `preprocess.image_size`, pixels: what a new picture is shrunk to before the model
            sees it, as those were that it trained on; in another such part.
    """
    parts = {CLASS_NAMES_PART: class_names and list(class_names), SHRUNK_TO_PART: shrunk_to}
    with files.replacing(path) as new, tempfile.TemporaryDirectory(dir=new.parent) as folder:
        dated = Path(folder) / "model.keras"
        model.save(dated)
        with zipfile.ZipFile(dated) as source, zipfile.ZipFile(new, "w") as target:
            for name in sorted(source.namelist()):
                content = source.read(name)
                if name.endswith(".json"):
                    described = _without_addresses(json.loads(content), {})
                    described.pop("date_saved", None)
                    content = json.dumps(described, sort_keys=True).encode()
                target.writestr(zipfile.ZipInfo(name, ZIP_EPOCH), content)
            for name, part in parts.items():
                if part is not None:
                    content = json.dumps(part, ensure_ascii=False)
                    target.writestr(zipfile.ZipInfo(name, ZIP_EPOCH), content)


def class_names(path: Path) -> list[str]:
    """The class names that `save` put into a file, in the order of the probabilities.

    Raises:
        UserError: the file is no Keras model, or holds no names.
    """
    try:
        with zipfile.ZipFile(path) as file:
            return json.loads(file.read(CLASS_NAMES_PART))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; `make repro` makes the models") from None
    except (zipfile.BadZipFile, IsADirectoryError):
        raise UserError(f"{path} is not a .keras file, which is a zip archive") from None
    except KeyError:
        raise UserError(
            f"{path} holds no class names: it is no classifier that train_head or fine_tune saved "
            "(Keras drops them where it saves such a file anew)"
        ) from None


def shrunk_to(path: Path) -> int | None:
    """The `shrunk_to` that `save` put into a file; None where it put none."""
    with zipfile.ZipFile(path) as file:
        if SHRUNK_TO_PART not in file.namelist():
            return None
        return json.loads(file.read(SHRUNK_TO_PART))


def _without_addresses(described, numbers: dict[int, int]):
    """A model's description with its shared objects numbered in order, not by their address.

    Keras marks an object that several layers share by `id()`. Data type policies are values, so
    that sharing them means nothing; after a reload they are not marked either.
    """
    if isinstance(described, list):
        return [_without_addresses(part, numbers) for part in described]
    if not isinstance(described, dict):
        return described
    result = {key: _without_addresses(part, numbers) for key, part in described.items()}
    if "shared_object_id" in result:
        address = result.pop("shared_object_id")
        if result.get("class_name") != "DTypePolicy":
            result["shared_object_id"] = numbers.setdefault(address, len(numbers))
    return result


def check_exists(path: Path) -> None:
    """UserError where there is no such model."""
    if not path.exists():
        raise UserError(
            f"{path} does not exist; `dvc repro` makes it, and where several boxes train it has to "
            "be copied to each of them"
        )


def load(path: Path):
    """A saved model, not compiled; UserError where there is no such file."""
    import keras

    check_exists(path)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as file:
            if b'"keras_hub' in file.read("config.json"):
                hub.library()  # registers its layers
    return keras.models.load_model(path, compile=False)
