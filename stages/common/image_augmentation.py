"""What fine-tuning does to its training images by chance: on the device, batch by batch.

Flips and quarter turns are those of stages.common.augment. All else is off unless asked for, and
is done by Keras layers where Keras has one.
"""

from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from stages.common import augment, geometry, params
from stages.common.run import UserError

LARGEST_STRETCH = 4 / 3  # of a crop's sides: the range of Inception's crops (Szegedy et al. 2015)
# Keras draws Beta(α, α) from float32 numbers that at 0.02 begin to be too small: weights are one
# half then, of 3 in 100 pairs, and of 84 in 100 at 0.001, where nearly all should be 0 or 1.
LEAST_ALPHA = 0.05
ALPHA_ALLOWED = f"0 (off) or a number of {LEAST_ALPHA} or more"


def _that_can_be_drawn(alpha: float) -> float:
    if 0 < alpha < LEAST_ALPHA:
        raise ValueError(f"expected {ALPHA_ALLOWED}, received {alpha}")
    return alpha


Alpha = Annotated[
    float,
    AfterValidator(_that_can_be_drawn),
    Field(ge=0, allow_inf_nan=False, description=ALPHA_ALLOWED),
]
Fraction = Annotated[float, Field(ge=0, le=1, description="a number from 0 to 1")]


@params.params_dataclass
class ImageAugmentationParams(augment.AugmentParams):
    """Section `fine_tune.augment`."""

    crop_area: Annotated[
        float, Field(gt=0, le=1, description="a fraction above 0, up to 1 (no crops)")
    ]
    shift: Fraction
    rand_augment: Fraction
    erasing: Fraction
    mixup: Alpha
    cutmix: Annotated[
        float,
        AfterValidator(_that_can_be_drawn),
        Field(ge=0, le=1, description=f"0 (off) or a number from {LEAST_ALPHA} to 1"),
    ]

    @model_validator(mode="after")
    def _one_mixture(self):
        if self.mixup and self.cutmix:
            raise ValueError(
                f"mixup and cutmix: expected one of them to be 0, received {self.mixup} and "
                f"{self.cutmix}; an image is mixed with another in one way"
            )
        return self


def check_channels(parameters: ImageAugmentationParams, channels: int) -> None:
    """UserError where an augmentation is for RGB and the images are not."""
    if parameters.rand_augment and channels != geometry.RGB:
        raise UserError(
            f"params.yaml, fine_tune.augment.rand_augment: expected 0 with preprocess.channels: "
            f"{channels}, since its changes of colour are for RGB, received "
            f"{parameters.rand_augment}; use crop_area, shift, erasing, mixup or cutmix"
        )


def augmentation_layer(parameters: ImageAugmentationParams, seed: int, network_side: int):
    """A layer of images (batch, height, width, channels), 0–255, that acts in training only.

    In this order, each by chance and for each image anew:
    flips and quarter turns; a crop of at least `crop_area` of the area and of sides stretched by
    up to 4/3 (or 1 / `crop_area` where that is less), brought to squares of `network_side`; a shift
    by up to `shift` of the sides, in whole pixels, where the picture's reflection fills what opens
    up; two of RandAugment's changes (Cubuk et al. 2020) of strength `rand_augment`; with
    probability `erasing` a rectangle of 2 to 33 % of the area filled with noise (Zhong et al.
    2020).

    Args:
        parameters: the section.
        seed: of all of it; `training.loop.fit` sets the layers' random states anew for each epoch.
        network_side: in pixels, of the largest squares that the network sees in training. A crop
            that was brought to the picture's size first would be resized twice, and what turns and
            shears interpolate between few pixels is blurred: RandAugment changes pictures that have
            been enlarged. In epochs that see smaller squares all of them are shrunk once more.

    Returns:
        A layer. In training it gives (batch, network_side, network_side, channels), float32, with
        crops; with RandAugment alone squares of that size where the pictures are smaller; else
        pictures of the size that they had. Out of training it leaves all as it is.
    """
    import keras

    steps = [augment.random_symmetry_layer(parameters.symmetries, seed)]
    if parameters.crop_area < 1:
        steps.append(_random_crop_layer(parameters.crop_area, seed + 1, network_side))
    if parameters.shift:
        steps.append(_random_shift_layer(parameters.shift, seed + 2))
    if parameters.rand_augment:
        steps.append(_enlargement_layer(network_side))
        steps.append(_rand_augment_layer(parameters.rand_augment, seed + 3))
    if parameters.erasing:
        # A pair: Keras takes one number for the upper end of a probability drawn for each image.
        factor = (parameters.erasing,) * 2
        steps.append(keras.layers.RandomErasing(factor=factor, seed=seed + 4))

    class Augmentation(keras.layers.Layer):
        def __init__(self):
            super().__init__(name="augmentation")
            self.steps = steps

        def build(self, input_shape):
            for step in self.steps:
                step.build(input_shape)

        def call(self, images, training=False):
            if training:
                for step in self.steps:
                    images = step(images, training=True)
            return images

    return Augmentation()


def _random_shift_layer(most: float, seed: int):
    """Keras' RandomTranslation moves by parts of pixels, and so blurs what training sees alone.

    Of noise of 32 pixels it leaves half the variance, and pictures of so few are nearly noise.
    """
    import keras
    import tensorflow as tf

    class RandomShift(keras.layers.Layer):
        def __init__(self):
            super().__init__(name="random_shift")
            self.seed_generator = keras.random.SeedGenerator(seed)

        def call(self, images, training=False):
            if not training:
                return images
            shape = tf.shape(images)
            for axis in (1, 2):
                pixels = tf.cast(shape[axis], "float32")
                # One pixel at least: a shift that is asked for is not to be without effect.
                limit = tf.maximum(tf.round(most * pixels), 1)
                drawn = keras.random.uniform((shape[0],), -1, 1, seed=self.seed_generator)
                # From -limit to limit, each as likely as the others.
                offsets = tf.cast(tf.floor((drawn + 1) * (limit + 0.5) - limit), "int32")
                places = tf.range(shape[axis])[tf.newaxis] + offsets[:, tf.newaxis]
                # The picture and its mirror image in turn, so that edges stand twice.
                places = tf.minimum(places % (2 * shape[axis]), -(places + 1) % (2 * shape[axis]))
                moved = tf.gather(images, places, axis=axis, batch_dims=1)
                # Keras' RandomErasing wants sides that are known before the graph runs.
                images = tf.ensure_shape(moved, images.shape)
            return images

    return RandomShift()


def _random_crop_layer(least_area: float, seed: int, side: int):
    import keras
    import tensorflow as tf
    from keras import ops

    # More would make a side longer than the picture and, cut down to it, leave less than the area.
    largest_stretch = min(LARGEST_STRETCH, 1 / least_area)

    class RandomCropAndResize(keras.layers.Layer):
        def __init__(self):
            super().__init__(name="random_crop_and_resize")
            self.seed_generator = keras.random.SeedGenerator(seed)

        def call(self, images, training=False):
            if not training:
                return images
            count = tf.shape(images)[0]

            def uniform(low, high):
                return keras.random.uniform((count,), low, high, seed=self.seed_generator)

            area = uniform(least_area, 1.0)
            log_stretch = ops.log(largest_stretch)
            stretch = ops.exp(uniform(-log_stretch, log_stretch))
            heights = ops.minimum(ops.sqrt(area / stretch), 1.0)
            widths = ops.minimum(ops.sqrt(area * stretch), 1.0)
            top = uniform(0.0, 1.0) * (1.0 - heights)
            left = uniform(0.0, 1.0) * (1.0 - widths)
            corners, extents = ops.stack([top, left], axis=1), ops.stack([heights, widths], axis=1)
            return geometry.cropped(images, side, corners, extents)

    return RandomCropAndResize()


def _enlargement_layer(least_side: int):
    import keras

    class Enlargement(keras.layers.Layer):
        def __init__(self):
            super().__init__(name="enlargement")

        def call(self, images, training=False):
            if not training or max(images.shape[1:3]) >= least_side:
                return images
            return geometry.antialiased(images, least_side)

    return Enlargement()


def _rand_augment_layer(strength: float, seed: int):
    """RandAugment: of 13 changes two are drawn for each image anew, each as likely.

    The ranges are those of AutoAugment (Cubuk et al. 2019, table 6) times the strength; auto
    contrast and equalization have none. Brightness is added, by up to 0.45 of white: as much as
    AutoAugment's 0.1 to 1.9 times change mid-grey. Keras' RandAugment would change a whole batch
    in the same way and in one direction, and posterize and solarize most where it is weak.
    """
    import keras
    import numpy as np
    import tensorflow as tf
    from keras import layers, ops

    shift = 150 / 331 * strength
    blend = 0.9 * strength
    # Layers of the same seed would draw the same numbers.
    seeds = iter(np.random.SeedSequence(seed).generate_state(11).tolist())

    class RandAugment(layers.Layer):
        def __init__(self):
            super().__init__(name="rand_augment")
            self.seed_generator = keras.random.SeedGenerator(next(seeds))
            self.layers = [
                layers.RandomShear(x_factor=0.3 * strength, seed=next(seeds)),
                layers.RandomShear(y_factor=0.3 * strength, seed=next(seeds)),
                layers.RandomTranslation(0.0, shift, seed=next(seeds)),
                layers.RandomTranslation(shift, 0.0, seed=next(seeds)),
                layers.RandomRotation(30 / 360 * strength, seed=next(seeds)),
                layers.RandomBrightness(0.45 * strength, seed=next(seeds)),
                # A pair: Keras takes one number for the upper end alone.
                layers.RandomContrast((blend, blend), seed=next(seeds)),
                layers.RandomColorDegeneration((-blend, blend), seed=next(seeds)),
                # 0.5 leaves a picture as it is, 0 blurs it, 1 adds as much as that takes away.
                layers.RandomSharpness((0.5 - blend / 2, 0.5 + blend / 2), seed=next(seeds)),
                # Bits; Keras leaves out the upper end of a pair, not of two equal numbers.
                layers.RandomPosterization((8 - round(4 * strength), 8), seed=next(seeds)),
                layers.AutoContrast(),
            ]
            self.equalization = layers.Equalization()

        def build(self, input_shape):
            for layer in [*self.layers, self.equalization]:
                layer.build(input_shape)

        def changes(self) -> list:
            return [*self.layers, self._solarized, self._equalized]

        def call(self, images, training=False):
            if not training:
                return images
            changes = self.changes()
            count = tf.shape(images)[0]
            changed = ops.cast(images, "float32")
            for _ in range(2):
                # Auto contrast and equalization would make a picture of rounding errors.
                changed = ops.round(changed)
                drawn = keras.random.randint((count,), 0, len(changes), seed=self.seed_generator)
                parts = tf.dynamic_partition(changed, drawn, len(changes))
                places = tf.dynamic_partition(tf.range(count), drawn, len(changes))
                parts = [self._changed(*pair) for pair in zip(changes, parts, strict=True)]
                changed = tf.dynamic_stitch(places, parts)
            return tf.ensure_shape(changed, images.shape)

        def _changed(self, change, images):
            # Not every change takes an empty batch.
            return tf.cond(tf.size(images) > 0, lambda: change(images), lambda: images)

        def _solarized(self, images):
            # Keras' Solarization scales the upper end of its thresholds to 255, not the lower one.
            threshold = keras.random.uniform(
                (tf.shape(images)[0], 1, 1, 1), 256 * (1 - strength), 256, seed=self.seed_generator
            )
            return ops.where(images < threshold, images, 255 - images)

        def _equalized(self, images):
            # One by one: Keras counts the values of a whole batch together. On the CPU: TensorFlow
            # refuses to count on a GPU where runs must be reproducible.
            with tf.device("CPU"):
                return tf.map_fn(self.equalization, images)

    return RandAugment()


def mixture_layer(parameters: ImageAugmentationParams, seed: int):
    """MixUp (Zhang et al. 2018) or CutMix (Yun et al. 2019), or None where both are off.

    A Keras layer that takes and returns a dict of `images` (batch, height, width, channels) and
    `labels` (batch, columns), float32.
    """
    import keras

    if parameters.mixup:
        return keras.layers.MixUp(alpha=parameters.mixup, seed=seed + 5)
    if parameters.cutmix:
        # A pair: of one number Keras takes the upper end of an α drawn for each batch.
        return keras.layers.CutMix(factor=(parameters.cutmix,) * 2, seed=seed + 6)
    return None
