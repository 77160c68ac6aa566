"""Flips and quarter turns: exact, free of interpolation, and done on the device.

Both flips and quarter turns of a square generate the eight symmetries of the square. Each is
(transpose, flip left-right, flip up-down), applied in that order.
"""

from stages.common import params

Symmetry = tuple[bool, bool, bool]
IDENTITY: Symmetry = (False, False, False)
LEFT_RIGHT: Symmetry = (False, True, False)
UP_DOWN: Symmetry = (False, False, True)
QUARTER_TURN: Symmetry = (True, True, False)


@params.params_dataclass
class AugmentParams:
    """Which pictures of the same thing a training image may become."""

    horizontal_flip: params.Flag
    vertical_flip: params.Flag
    quarter_turns: params.Flag

    @property
    def symmetries(self) -> list[Symmetry]:
        """All that the allowed moves generate, the identity first; 1, 2, 4 or 8 of them."""
        moves = [
            move
            for move, allowed in (
                (LEFT_RIGHT, self.horizontal_flip),
                (UP_DOWN, self.vertical_flip),
                (QUARTER_TURN, self.quarter_turns),
            )
            if allowed
        ]
        found = [IDENTITY]
        for symmetry in found:  # grows while it is read, until nothing new turns up
            for move in moves:
                if (product := _then(symmetry, move)) not in found:
                    found.append(product)
        return found


def _then(first: Symmetry, second: Symmetry) -> Symmetry:
    """One symmetry after another: a transpose exchanges the flips that came before it."""
    transpose, left_right, up_down = first
    if second[0]:
        left_right, up_down = up_down, left_right
    return (transpose ^ second[0], left_right ^ second[1], up_down ^ second[2])


def apply(images, symmetry: Symmetry):
    """A batch (batch, height, width, channels) under one symmetry."""
    from keras import ops

    transpose, left_right, up_down = symmetry
    if transpose:
        images = ops.transpose(images, (0, 2, 1, 3))
    axes = [axis for axis, flipped in ((2, left_right), (1, up_down)) if flipped]
    return ops.flip(images, axes) if axes else images


def random_symmetry_layer(symmetries: list[Symmetry], seed: int):
    """A Keras layer that gives every training image one of the symmetries by chance.

    It takes and returns (batch, height, width, channels); a transpose needs squares. It is part
    of the model that trains, never of the one that is saved. Its random state is a Keras seed
    generator, which `training.loop.fit` sets anew for each epoch.
    """
    import keras
    from keras import ops

    class RandomSymmetry(keras.layers.Layer):
        def __init__(self):
            super().__init__(name="random_symmetry")
            self.seed_generator = keras.random.SeedGenerator(seed)

        def call(self, images, training=False):
            if not training or len(symmetries) == 1:
                return images
            choice = keras.random.randint(
                (ops.shape(images)[0],), 0, len(symmetries), seed=self.seed_generator
            )
            # (batch, 3): for each image, which of the three moves to make, in this order.
            moves = ops.take(ops.convert_to_tensor(symmetries, "bool"), choice, axis=0)
            for number, move in enumerate(((True, False, False), LEFT_RIGHT, UP_DOWN)):
                if any(symmetry[number] for symmetry in symmetries):
                    chosen = ops.reshape(moves[:, number], (-1, 1, 1, 1))
                    images = ops.where(chosen, apply(images, move), images)
            return images

    return RandomSymmetry()
