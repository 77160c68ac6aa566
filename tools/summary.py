"""Prints the test metrics of both models side by side, and where the pictures are."""

import json

from stages.common import paths
from stages.common.run import UserError, run

# What a reader asks for first; metrics/ has the rest.
HEADLINES = (
    ("accuracy", "higher"),
    ("balanced_accuracy", "higher"),
    ("f1_macro", "higher"),
    ("roc_auc", "higher"),
    ("loss", "lower"),
    ("expected_calibration_error", "lower"),
)


def table(head: dict, fine_tuned: dict) -> str:
    """Lines of text: a metric a row, head beside fine-tuned."""
    lines = [f"{'test split':<28} {'head':>9} {'fine-tuned':>11}   better is"]
    for name, better in HEADLINES:
        if name in head:
            words = name.replace("_", " ")
            lines.append(f"{words:<28} {head[name]:>9.4f} {fine_tuned[name]:>11.4f}   {better}")
    lines.append(f"{'images':<28} {head['images']:>9} {fine_tuned['images']:>11}")
    return "\n".join(lines)


def main() -> None:
    """Reads both files of metrics."""
    contents = []
    for model in ("head", "fine_tuned"):
        path = paths.METRICS / f"{model}.json"
        if not path.exists():
            raise UserError(f"{path} does not exist; `make repro` makes it")
        contents.append(json.loads(path.read_text(encoding="utf-8")))
    print(table(*contents))
    print("\nMore: metrics/, `dvc metrics show`.")
    print("Pictures: plots/, and `dvc plots show` for all of them on one page.")
    print("Models: models/head.keras, models/fine_tuned.keras.")


if __name__ == "__main__":
    run(main)
