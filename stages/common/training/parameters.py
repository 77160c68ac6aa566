"""What both training stages are given: how long, at what rate, by which optimizer."""

import dataclasses
import itertools
from typing import Annotated, Literal

from pydantic import Field, model_validator

from stages.common import params


@params.params_dataclass
class TrainingParams:
    """The keys that `train_head` and `fine_tune` have in common."""

    optimizer: Literal["adam", "adamw", "sgd"]
    learning_rate: params.PositiveFloat
    weight_decay: params.NonNegativeFloat
    schedule: Literal["constant", "inverse_time", "cosine"]
    decay_per_step: params.NonNegativeFloat
    warmup_epochs: params.NonNegativeFloat
    label_smoothing: params.RateBelowOne
    clip_norm: Annotated[
        float | None,
        Field(gt=0, allow_inf_nan=False, description="null (no limit) or a number above 0"),
    ]
    average_decay: Annotated[
        float | None,
        Field(gt=0, lt=1, description="null (no average) or a number above 0 and below 1"),
    ]
    averaged_epochs: Annotated[
        int | None,
        Field(ge=1, description="null (no average) or a whole number of epochs, 1 or more"),
    ]
    batch_size: params.PositiveInt
    epochs: params.PositiveInt
    seconds_budget: Annotated[
        float | None,
        Field(gt=0, allow_inf_nan=False, description="null (no limit) or a number above 0"),
    ]
    early_stopping_patience: Annotated[
        int | None,
        Field(ge=1, description="null (train all epochs) or a whole number of epochs, 1 or more"),
    ]

    @model_validator(mode="after")
    def _decay_has_an_effect(self):
        if self.optimizer == "adam" and self.weight_decay:
            raise ValueError(
                f"weight_decay: expected 0 with adam, received {self.weight_decay}; "
                "choose adamw, which is adam with weight decay"
            )
        return self

    @model_validator(mode="after")
    def _warm_up_ends(self):
        warms_up = self.schedule == "cosine" and not self.seconds_budget
        if warms_up and self.warmup_epochs > self.epochs:
            raise ValueError(
                f"warmup_epochs: expected at most {self.epochs} (epochs), received "
                f"{self.warmup_epochs}; the rate would not have risen when training ends"
            )
        return self

    @model_validator(mode="after")
    def _schedule_fits_a_budget(self):
        if self.seconds_budget and self.schedule == "inverse_time":
            raise ValueError(
                "schedule: expected constant or cosine with seconds_budget, received inverse_time, "
                "whose rate follows from the number of steps alone"
            )
        return self


def batch_size_without_single(batch_size: int, images: int) -> int:
    """The least size from `batch_size` on with which the last batch is no single image.

    Where BatchNorm normalises by the batch it is that one which its statistics follow most. Batches
    of one image, where they are asked for, stay.
    """
    if 1 in (batch_size, images):
        return batch_size
    return next(size for size in itertools.count(batch_size) if images % size != 1)


def with_batch_size(parameters, batch_size: int, images: int):
    """The params of a section with this batch size; where it is another, the log says why."""
    if batch_size == parameters.batch_size:
        return parameters
    print(f"batches of {batch_size}, since the last one of {images} images would be a single image")
    return dataclasses.replace(parameters, batch_size=batch_size)
