"""Says what fine-tuning gained over the head, image by image on the test split.

Reads:  data/predictions/{head,fine_tuned}.csv; data/splits.csv — the groups of images.
Writes: metrics/comparison.json — by metric the difference, fine-tuned minus head, with the ends of
        its 95 % interval; and McNemar's test of which model is right more often.
"""

import numpy as np

from stages.common import bootstrap, evaluation, params, paths, predictions, tables
from stages.common.run import UserError, progress, run

COMPARED = ("accuracy", "balanced_accuracy", "f1_macro", "loss", "brier_score", "roc_auc")


def aligned(
    head: predictions.Predictions, fine_tuned: predictions.Predictions
) -> predictions.Predictions:
    """The fine-tuned model's predictions in the head's order of images.

    Raises:
        UserError: the tables are not of the same images, labels and classes.
    """
    advice = "run `dvc repro`, which predicts with both models"
    if head.class_names != fine_tuned.class_names:
        raise UserError(
            f"the predictions of head and fine_tuned are of other classes, {head.class_names} and "
            f"{fine_tuned.class_names}; {advice}"
        )
    only_head = set(head.ids) - set(fine_tuned.ids)
    only_fine_tuned = set(fine_tuned.ids) - set(head.ids)
    if only_head or only_fine_tuned:
        raise UserError(
            f"the predictions of head and fine_tuned are of other images: {len(only_head)} only "
            f"in head, {len(only_fine_tuned)} only in fine_tuned, such as "
            f"{min(only_head | only_fine_tuned)!r}; {advice}"
        )
    place_of = {example_id: place for place, example_id in enumerate(fine_tuned.ids)}
    order = [place_of[example_id] for example_id in head.ids]
    differing = np.flatnonzero(fine_tuned.labels[order] != head.labels)
    if len(differing):
        raise UserError(
            f"the predictions of head and fine_tuned give {len(differing)} images other labels, "
            f"such as {head.ids[differing[0]]!r}; {advice}"
        )
    return predictions.Predictions(
        head.ids, head.labels, fine_tuned.probabilities[order], head.class_names
    )


def differences(
    labels: np.ndarray, head: np.ndarray, fine_tuned: np.ndarray, groups, resamples: int, advance
) -> dict[str, dict[str, float]]:
    """Fine-tuned minus head by metric, each with the 95 % interval over paired resamples.

    Args:
        labels: (images,).
        head: its probabilities (images, classes), float64.
        fine_tuned: the same images' probabilities.
        groups: (images,), names; see bootstrap.distribution.
        resamples: how many.
        advance: is told of resamples that are done; two models make it twice as many.

    Returns:
        Metric to difference, and low and high where there is an interval. A metric that is
        undefined, and roc_auc of more than 100 classes, is left out.
    """
    once = np.ones((len(labels), 1))
    of_head, of_fine_tuned = (
        bootstrap.Statistics(labels, probabilities).of(once) for probabilities in (head, fine_tuned)
    )
    # Equal groups: both are of the same resamples.
    head_resampled, fine_tuned_resampled = (
        bootstrap.distribution(labels, probabilities, groups, resamples, advance)
        for probabilities in (head, fine_tuned)
    )
    ends = bootstrap.intervals(
        {name: fine_tuned_resampled[name] - head_resampled[name] for name in head_resampled}
    )
    found = {}
    for name in COMPARED:
        if name in of_head and np.isfinite(of_head[name][0]):
            difference = float(of_fine_tuned[name][0] - of_head[name][0])
            found[name] = {"difference": difference, **ends.get(name, {})}
    return found


def mcnemar(head_right: np.ndarray, fine_tuned_right: np.ndarray, groups) -> dict[str, float]:
    """McNemar's exact test (McNemar 1947): are the two models right equally often?

    Only images count of which one model is right and the other wrong; if both were equally good,
    each would be the right one by the toss of a coin. One toss decides for all images of a group,
    which are no independent evidence: a sign test of the groups' differences (Fisher 1935), which
    for groups of one image is McNemar's.

    Args:
        head_right: (images,), bool.
        fine_tuned_right: (images,), bool, of the same images.
        groups: (images,), names.
    """
    gained, lost = fine_tuned_right & ~head_right, head_right & ~fine_tuned_right
    _, members = np.unique(np.asarray(groups), return_inverse=True)
    of_groups = np.bincount(members, gained.astype(int) - lost.astype(int)).astype(int)
    return {
        "head_only_correct": int(lost.sum()),
        "fine_tuned_only_correct": int(gained.sum()),
        "p_value": _sign_test(of_groups),
    }


def _sign_test(differences: np.ndarray) -> float:
    """How likely a sum as far from 0 is, or farther, if each number's sign were tossed."""
    from scipy.stats import binom

    sizes = np.abs(differences)
    singles = int((sizes == 1).sum())
    # Probabilities of the sums from -total to total, which come to be in steps of 2.
    chances = binom.pmf(np.arange(singles + 1), singles, 0.5)
    for size in sizes[sizes > 1]:
        tossed = np.zeros(len(chances) + size)
        tossed[: len(chances)] += chances / 2
        tossed[size:] += chances / 2
        chances = tossed
    sums = 2 * np.arange(len(chances)) - sizes.sum()
    return min(1.0, float(chances[np.abs(sums) >= abs(differences.sum())].sum()))


def main() -> None:
    """Reads both tables of predictions and writes the comparison."""
    parameters = params.load("evaluate", evaluation.EvaluateParams)
    head, fine_tuned = (
        predictions.read(paths.PREDICTIONS / f"{name}.csv") for name in paths.CLASSIFIERS
    )
    fine_tuned = aligned(head, fine_tuned)
    rows = evaluation.in_order(evaluation.test_rows(), head.ids)
    resamples = parameters.bootstrap_samples
    groups = [row.group for row in rows]
    with progress(None, total=2 * resamples, unit="resample", description="compare") as bar:
        found = differences(
            head.labels,
            head.probabilities,
            fine_tuned.probabilities,
            groups,
            resamples,
            bar.update,
        )
    right = [table.probabilities.argmax(axis=1) == table.labels for table in (head, fine_tuned)]
    tables.write_metrics(
        paths.METRICS / "comparison.json", {**found, "mcnemar": mcnemar(*right, groups)}
    )


if __name__ == "__main__":
    run(main, takes_arguments=False)
