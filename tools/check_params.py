"""Checks all of params.yaml at once, in a second, before the first stage starts.

Each stage checks its own section as well; here a mistake in the last section does not wait for the
first stages to finish.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stages import (
    backbone,
    evaluate,
    extract_features,
    fetch,
    fine_tune,
    report,
    split,
    train_head,
)
from stages.common import geometry, image_augmentation, params, runtime
from stages.common.run import UserError, run

SECTIONS = {
    "runtime": runtime.RuntimeParams,
    "dataset": fetch.FetchParams,
    "split": split.SplitParams,
    "preprocess": geometry.PreprocessParams,
    "backbone": backbone.BackboneParams,
    "extract_features": extract_features.ExtractFeaturesParams,
    "train_head": train_head.TrainHeadParams,
    "fine_tune": fine_tune.FineTuneParams,
    "evaluate": evaluate.EvaluateParams,
    "report": report.ReportParams,
}


# What must fit together, looked at where each of the sections is sound by itself.
ACROSS_SECTIONS = (
    (
        ("train_head", "extract_features"),
        lambda head, features: train_head.check_features(head.head, features.features),
    ),
    (
        ("fine_tune", "preprocess"),
        lambda tuned, stored: image_augmentation.check_channels(tuned.augment, stored.channels),
    ),
    (
        ("fine_tune", "backbone"),
        lambda tuned, network: fine_tune.check_image_sizes(tuned.image_sizes, network.image_size),
    ),
)


def check(content: dict, source: str) -> None:
    """UserError with a sentence for each mistake in the whole content of a params file."""
    mistakes = []
    sections = {}
    try:
        params.check_seed(content, source)
    except UserError as error:
        mistakes.append(str(error))
    for name, kind in SECTIONS.items():
        try:
            sections[name] = params.check(content, name, kind, source)
        except UserError as error:
            mistakes.append(str(error))
    for name in sorted(map(str, set(content) - set(SECTIONS) - {"seed"})):
        mistakes.append(
            f"{source}, {name}: unknown section; allowed are seed, {', '.join(SECTIONS)}"
            f"{params.nearest(name, SECTIONS)}"
        )
    for names, check_together in ACROSS_SECTIONS:
        if set(names) <= set(sections):
            try:
                check_together(*(sections[name] for name in names))
            except UserError as error:
                mistakes.append(str(error))
    if mistakes:
        raise UserError("\n       ".join(mistakes))


def with_values(values: dict[str, Any]) -> dict[str, Any]:
    """The content of params.yaml with other values.

    Args:
        values: `section.key` to value.

    Raises:
        UserError: params.yaml has no such key.
    """
    content = params.read()
    for name, value in values.items():
        *parents, last = name.split(".")
        place = content
        for parent in parents:
            place = place.get(parent) if isinstance(place, dict) else None
        if not isinstance(place, dict) or last not in place:
            sections = [section for section in content if isinstance(content[section], dict)]
            known = [key for section in sections for key in _names(content[section], section)]
            raise UserError(f"{name}: params.yaml has no such key{params.nearest(name, known)}")
        place[last] = value
    return content


def _names(values: dict[str, Any], prefix: str) -> Iterator[str]:
    for key, value in values.items():
        name = f"{prefix}.{key}"
        yield from _names(value, name) if isinstance(value, dict) else [name]


def main() -> None:
    """Checks params.yaml in this folder."""
    path = Path(params.PARAMS_FILE)
    check(params.read(path), str(path))


if __name__ == "__main__":
    run(main, takes_arguments=False)
