"""Compares the metrics of a run with the committed ones: python -m tools.compare_metrics OLD NEW.

Exit status 1 where a headline metric differs by more than the tolerance: other processors round
differently, and training amplifies that.
"""

import json
import sys
from pathlib import Path

from stages.common import paths
from stages.common.run import UserError, run

TOLERANCE = 0.02
COMPARED = ("accuracy", "roc_auc")


def differences(old: dict, new: dict) -> dict[str, tuple[float, float]]:
    """Metric to (old, new) for all that are compared.

    Raises:
        UserError: one side lacks a metric; a comparison with nothing would pass.
    """
    for side, metrics in (("committed", old), ("new", new)):
        missing = [name for name in COMPARED if name not in metrics]
        if missing:
            raise UserError(f"the {side} metrics lack {', '.join(missing)}")
    return {name: (old[name], new[name]) for name in COMPARED}


def read(folder: Path, model: str) -> dict:
    """The metrics of a model; UserError where there are none."""
    path = folder / f"{model}.json"
    if not path.is_file():
        raise UserError(f"{path} does not exist, so there is nothing to compare")
    return json.loads(path.read_text(encoding="utf-8"))


def main() -> None:
    """Prints a table; fails where a difference is beyond the tolerance."""
    if len(sys.argv) != 3:
        raise UserError("expected two folders of metrics, the old one and the new one")
    old, new = map(Path, sys.argv[1:])
    beyond = []
    for model in paths.CLASSIFIERS:
        for name, (before, after) in differences(read(old, model), read(new, model)).items():
            far = not abs(after - before) <= TOLERANCE  # not a number is far as well
            beyond += [f"{model} {name}"] if far else []
            print(f"{model:<11} {name:<9} {before:.4f} {after:.4f} {'DIFFERS' if far else 'same'}")
    if beyond:
        raise UserError(f"{', '.join(beyond)}: differ by more than {TOLERANCE}")


if __name__ == "__main__":
    run(main)
