"""Obtains the pretrained network, cuts its top off and stores it as one complete model.

Reads:  a package that ships weights, keras.applications, KerasHub, or a file of weights.
Writes: models/backbone.keras — images of any size, 0–255, RGB or of preprocess.channels, to the
        last feature map; resizing and the network's own input scaling are layers inside.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from stages.common import channels, geometry, hub, models, own_weights, params, paths
from stages.common.backbones import BACKBONES, build
from stages.common.run import UserError, run, start_tensorflow

WEIGHTS_ALLOWED = (
    f"imagenet, preset (of keras_hub), null (random), or a file that ends in "
    f"{' or '.join(own_weights.SUFFIXES)}"
)


@params.params_dataclass
class BackboneParams:
    """Section `backbone`."""

    library: Literal["keras", "keras_hub"]
    name: params.Text
    weights: Annotated[str | None, Field(description=WEIGHTS_ALLOWED)]
    own_weights: params.Text
    image_size: Annotated[
        int | None, Field(ge=1, description="null (the network's own) or a whole number above 0")
    ]

    @model_validator(mode="after")
    def _network_and_its_weights_exist(self):
        in_table = self.library == "keras"
        if in_table and self.name not in BACKBONES:
            raise ValueError(
                f"name: expected one of the {len(BACKBONES)} that `python -m tools.backbones` "
                f"lists, received {self.name!r}{params.nearest(self.name, BACKBONES)}"
            )
        folder, own_folder = Path(self.name).resolve(), Path(self.own_weights).resolve()
        if not in_table and folder.is_dir() and own_folder not in folder.parents:
            raise ValueError(
                f"name: expected a preset of KerasHub, or a folder in {self.own_weights} "
                f"(backbone.own_weights), where DVC notices its changes, received {self.name!r}; "
                "move it there"
            )
        if self.weights is None or self.weights.endswith(own_weights.SUFFIXES):
            return self
        allowed = [*filter(None, BACKBONES[self.name].weights)] if in_table else ["preset"]
        if self.weights not in allowed:
            expected = ", ".join([*allowed, "null"])
            raise ValueError(
                f"weights: expected {expected} or a file that ends in "
                f"{' or '.join(own_weights.SUFFIXES)} for {self.name}, received {self.weights!r}"
                f"{params.nearest(self.weights, allowed)}"
            )
        return self

    @property
    def weights_file(self) -> Path | None:
        """The file of weights of one's own, where there is one."""
        if self.weights is None or not self.weights.endswith(own_weights.SUFFIXES):
            return None
        return Path(self.own_weights) / self.weights


def network(parameters: BackboneParams, image_channels: int = geometry.RGB, seed: int = 0):
    """The network that the params name, as a keras.Model.

    Args:
        parameters: the section.
        image_channels: of the images that it takes, see channels.with_channels.
        seed: of random weights. Where all are loaded it has no say, so that experiments that differ
            in their seed share the model's bytes.
    """
    own = parameters.weights_file
    if parameters.weights is not None:
        seed = 0
    if own:
        own_weights.check(own)
    if parameters.library == "keras_hub":
        import keras

        keras.utils.set_random_seed(seed)  # as `build` does
        backbone = hub.build(parameters.name, parameters.weights == "preset", parameters.image_size)
    else:
        image_size = parameters.image_size or BACKBONES[parameters.name].native_size
        published = None if own else parameters.weights
        backbone = build(parameters.name, published, image_size, seed=seed)
    if own:
        try:
            backbone = own_weights.load(backbone, own)
        except UserError:
            if image_channels == geometry.RGB:
                raise
            # Not of RGB: what an earlier run with as many channels trained fits as it is.
            backbone = channels.with_channels(backbone, image_channels, averaged=False)
            backbone = own_weights.load(backbone, own)
    return channels.with_channels(backbone, image_channels, averaged=bool(parameters.weights))


def main() -> None:
    """Builds the network and saves it."""
    parameters = params.load("backbone", BackboneParams)
    images = params.load("preprocess", geometry.PreprocessParams)
    seed = params.load_seed()
    start_tensorflow()
    backbone = network(parameters, images.channels, seed)
    model = models.with_any_size(backbone, images.resize)
    models.save(model, paths.BACKBONE, shrunk_to=images.image_size)
    print(
        f"{parameters.name}: {backbone.count_params():,} parameters, {len(backbone.layers)} layers"
    )


if __name__ == "__main__":
    run(main, takes_arguments=False)
