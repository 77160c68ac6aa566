"""Checks all of params.yaml at once, in a second, before the first stage starts.

Each stage checks its own section as well; here a mistake in the last section does not wait for the
first stages to finish.
"""

from pathlib import Path

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


def main() -> None:
    """Checks params.yaml in this folder."""
    path = Path(params.PARAMS_FILE)
    check(params.read(path), str(path))


if __name__ == "__main__":
    run(main, takes_arguments=False)
