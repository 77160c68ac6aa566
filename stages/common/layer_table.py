"""The table of a classifier's layers: what each gives, holds, and in which phase it trains."""

from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from stages.common import models, tables


@dataclass(frozen=True)
class LayerRow:
    """One layer; those of the backbone and the head are listed one by one."""

    index: int
    name: str
    kind: str
    output_shape: str
    parameters: int
    trainable_in_train_head: bool
    trainable_in_fine_tune: bool


def trainable_in_head_phase(model) -> set[str]:
    """Names of the layers with weights that trained while the backbone was frozen: the head's."""
    head = models.leaf_layers(model.get_layer("head"))
    return {layer.name for layer in head if layer.trainable_weights}


def rows(model, trained_before: set[str]) -> list[LayerRow]:
    """The table of a classifier whose `trainable` flags are set for fine-tuning."""
    return [
        LayerRow(
            index=index,
            name=layer.name,
            kind=type(layer).__name__,
            output_shape=" × ".join(str(size or "?") for size in models.output_shape(layer)[1:]),
            parameters=layer.count_params(),
            trainable_in_train_head=layer.name in trained_before,
            trainable_in_fine_tune=bool(layer.trainable_weights),
        )
        for index, layer in enumerate(models.leaf_layers(model))
    ]


def totals(table: Sequence[LayerRow]) -> str:
    """One line: parameters in all, and those of the layers that train in each phase."""
    total = sum(row.parameters for row in table)
    head = sum(row.parameters for row in table if row.trainable_in_train_head)
    fine = sum(row.parameters for row in table if row.trainable_in_fine_tune)
    return (
        f"{len(table)} layers, {total:,} parameters; in layers that train: {head:,} in train_head, "
        f"{fine:,} in fine_tune"
    )


def write(path: Path, table: Sequence[LayerRow]) -> None:
    """Writes the table as CSV."""
    header = [field.name for field in fields(LayerRow)]
    tables.write_csv(path, header, [astuple(row) for row in table])
