"""Obtains the pretrained network, cuts its top off and stores it as one complete model.

Reads:  a package that ships weights, or keras.applications.
Writes: models/backbone.keras — RGB images of any size, 0–255, to the last feature map; resizing
        and the network's own input scaling are layers inside.
"""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from stages.common import models, params, paths
from stages.common.backbones import BACKBONES, build
from stages.common.run import run, start_tensorflow


@params.params_dataclass
class BackboneParams:
    """Section `backbone`."""

    name: params.Text
    weights: Literal["imagenet"] | None
    image_size: Annotated[
        int | None, Field(ge=1, description="null (the network's own) or a whole number above 0")
    ]

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in BACKBONES:
            raise ValueError(
                f"expected one of the {len(BACKBONES)} that `python -m tools.backbones` lists, "
                f"received {name!r}{params.nearest(name, BACKBONES)}"
            )
        return name

    @model_validator(mode="after")
    def _weights_exist(self):
        if self.weights not in BACKBONES[self.name].weights:
            raise ValueError(
                f"weights: expected null, since there are none for {self.name}, received "
                f"{self.weights!r}"
            )
        return self


def main() -> None:
    """Builds the network and saves it."""
    parameters = params.load("backbone", BackboneParams)
    start_tensorflow()
    image_size = parameters.image_size or BACKBONES[parameters.name].native_size
    backbone = build(parameters.name, parameters.weights, image_size)
    model = models.with_any_size(backbone)
    models.save(model, paths.BACKBONE)
    print(
        f"{parameters.name}: {backbone.count_params():,} parameters, {len(backbone.layers)} layers"
    )


if __name__ == "__main__":
    run(main)
