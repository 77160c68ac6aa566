"""Prints the test metrics of both models side by side, and where the pictures are."""

from stages.common import paths
from stages.common.report.wording import METRIC_OF_KEY
from stages.common.run import run
from tools import revisions

# What a reader asks for first; metrics/ has the rest.
HEADLINES = (
    "accuracy",
    "weighted_accuracy",
    "balanced_accuracy",
    "f1_macro",
    "roc_auc",
    "weighted_roc_auc",
    "loss",
    "brier_score",
    "expected_calibration_error",
)
FILES = ("head", "fine_tuned", "comparison")


def better(name: str) -> str:
    """Which values of a headline metric are better: `higher` or `lower`."""
    return "higher" if METRIC_OF_KEY[name].higher_is_better else "lower"


def table(head: dict, fine_tuned: dict, comparison: dict) -> str:
    """Lines of text: a metric a row, head, fine-tuned and their difference, with 95 % intervals."""
    title = f"{head['images']} test images"
    lines = [f"{title:<27} {'head':<21} {'fine-tuned':<21} {'difference':<24} better is"]
    for name in HEADLINES:
        if name in head and name in fine_tuned:
            cells = [
                f"{metrics[name]:.3f}{ends(metrics['interval'].get(name), '.3f')}"
                for metrics in (head, fine_tuned)
            ]
            change = comparison.get(name)
            gain = f"{change['difference']:+.3f}{ends(change, '+.3f')}" if change else ""
            words = name.replace("_", " ")
            lines.append(f"{words:<27} {cells[0]:<21} {cells[1]:<21} {gain:<24} {better(name)}")
    test = comparison["mcnemar"]
    lines.append(
        "In brackets: 95 % intervals. Images that one model alone gets right: head "
        f"{test['head_only_correct']}, fine-tuned {test['fine_tuned_only_correct']} "
        f"(McNemar's p = {test['p_value']:.2g})."
    )
    return "\n".join(lines)


def ends(interval: dict | None, form: str) -> str:
    """` [low, high]`, or nothing where there is no interval."""
    if not interval or "low" not in interval:
        return ""
    return f" [{interval['low']:{form}}, {interval['high']:{form}}]"


def main() -> None:
    """Reads the files of metrics."""
    files = [(paths.METRICS / f"{name}.json").as_posix() for name in FILES]
    print(table(*(revisions.read_json(None, file) for file in files)))
    print("\nMore: metrics/, `dvc metrics show`.")
    print("Pictures: plots/, and `dvc plots show` for all of them on one page.")
    print("Models: models/head.keras, models/fine_tuned.keras.")


if __name__ == "__main__":
    run(main, takes_arguments=False)
