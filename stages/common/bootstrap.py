"""How far metrics would swing on other test images: the bootstrap, over whole groups of images.

Percentile intervals (Efron and Tibshirani 1993, chapter 13). Images of one group (a patient, copies
of one picture) are no independent evidence, so that groups are drawn, not images. The seed is
fixed: equal predictions have equal intervals, and two models are compared on the same resamples.

What no test image shows, no resample shows: a model that is right on all of them has an interval
without width. And intervals of few groups are too narrow. In a simulation of two equally good
models on patients of 100 images (400 times, 300 resamples), the interval of their difference left
zero out in 52 % of the cases with two patients, 17 % with five, 12 % with six and 10 % with twelve,
where it should in 5.
"""

from collections.abc import Callable, Sequence

import numpy as np

from stages.common.metrics import MOST_CLASSES_FOR_AREAS, curve_classes

SEED = 0
CONFIDENCE = 0.95
# All of five groups point in one direction by chance once in 16 times, of six once in 32.
LEAST_GROUPS = 6
# Weights at a time, 8 MB: summing them is five times as fast while they fit into the cache.
CHUNK_NUMBERS = 2**21


def distribution(
    labels: np.ndarray,
    probabilities: np.ndarray,
    groups: Sequence[str],
    resamples: int,
    advance: Callable[[int], object] = lambda count: None,
    image_weights: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """The headline metrics of many resamples of the images.

    Args:
        labels: (images,), whole numbers below the number of classes.
        probabilities: (images, classes), float64, rows adding up to 1.
        groups: (images,), names; images of one group are drawn together.
        resamples: how many sets of as many groups to draw, with replacement.
        advance: is told the number of resamples that are done since it was last called.
        image_weights: (images,), 0 or more, for the weighted metrics; None: do without them.

    Returns:
        Metric to (resamples,) float64; see `Statistics.of`. Equal groups give the same resamples,
        so that distributions of two models on the same images can be subtracted. Empty where there
        are fewer than LEAST_GROUPS groups, which say too little of others; without the weighted
        metrics where so few have images with a weight.
    """
    names, members = np.unique(np.asarray(groups), return_inverse=True)
    if len(names) < LEAST_GROUPS:
        advance(resamples)
        return {}
    if image_weights is not None and len(np.unique(members[image_weights > 0])) < LEAST_GROUPS:
        image_weights = None
    statistics = Statistics(labels, probabilities, image_weights)
    generator = np.random.default_rng(SEED)
    chunk = max(1, CHUNK_NUMBERS // len(labels))
    parts = []
    for start in range(0, resamples, chunk):
        size = min(chunk, resamples - start)
        # Whole numbers, whose sums are exact up to 2²⁴ images.
        times_drawn = np.empty((len(names), size), np.float32)
        for column in range(size):
            drawn = generator.integers(len(names), size=len(names))
            times_drawn[:, column] = np.bincount(drawn, minlength=len(names))
        parts.append(statistics.of(times_drawn[members]))
        advance(size)
    found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    if "f1_macro" in found:
        (estimate,) = statistics.of(np.ones((len(labels), 1)))["f1_macro"]
        found["f1_macro"] = _around(found["f1_macro"], estimate)
    return found


def _around(values: np.ndarray, estimate: float) -> np.ndarray:
    """Resampled scores from 0 to 1, moved so that their mean is the estimate.

    Of classes with few images F1 is smaller in a resample, some of which lack what makes it large:
    their interval would lie beside the number that it is of (Efron and Tibshirani 1993, chapter 10,
    on bias).
    """
    return np.clip(values + (estimate - np.nanmean(values)), 0, 1)


def intervals(resampled: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Metric to the low and the high end of its 95 % interval.

    Resamples that leave a metric undefined (no image of any class that has a curve) do not count;
    a metric that none defines has no interval.
    """
    tail = (1 - CONFIDENCE) / 2
    found = {}
    for name, values in resampled.items():
        defined = values[np.isfinite(values)]
        if len(defined):
            low, high = np.quantile(defined, (tail, 1 - tail))
            found[name] = {"low": float(low), "high": float(high)}
    return found


class Statistics:
    """The headline metrics of one set of images as functions of how often each image counts.

    scikit-learn's metrics with `sample_weight`, for many weightings at once.
    """

    def __init__(
        self,
        labels: np.ndarray,
        probabilities: np.ndarray,
        image_weights: np.ndarray | None = None,
    ):
        """Takes labels (images,), probabilities (images, classes), float64, weights (images,)."""
        from scipy import sparse

        images, self._classes = probabilities.shape
        rows = np.arange(images)
        predicted = probabilities.argmax(axis=1)
        right = (predicted == labels).astype(np.float64)
        likelihood = probabilities[rows, labels]
        least = np.finfo(np.float64).eps  # as in scikit-learn's log_loss
        squares = np.einsum("ic,ic->i", probabilities, probabilities)
        of_images = [
            right,
            -np.log(np.clip(likelihood, least, 1 - least)),
            squares - 2 * likelihood + 1,
        ]

        def by_class(numbers, values):
            return sparse.csr_array((values, (numbers, rows)), shape=(self._classes, images))

        # All sums over images in one matrix: three rows, then three for each class.
        self._sums = sparse.vstack(
            [
                sparse.csr_array(np.stack(of_images)),
                by_class(labels, np.ones(images)),
                by_class(predicted, np.ones(images)),
                by_class(labels, right),
            ]
        )
        self._image_weights = image_weights
        self._weighted_sums = None
        if image_weights is not None:
            self._weighted_sums = np.stack([right * image_weights, image_weights])
        self._several_classes = len(np.unique(labels)) > 1
        self._areas = []
        if self._classes <= MOST_CLASSES_FOR_AREAS:
            for number in curve_classes(self._classes):
                positive = labels == number
                if 0 < positive.sum() < images:
                    self._areas.append(RocArea(positive, probabilities[:, number]))

    def of(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """The metrics under each weighting.

        Args:
            weights: (images, weightings), float, 0 or more, in no column all 0.

        Returns:
            accuracy, loss, brier_score, with weights of images weighted_accuracy and, where the
            images are of two classes at least, balanced_accuracy, f1_macro and (of up to 100
            classes) roc_auc and, with weights of images, weighted_roc_auc, NaN where undefined; as
            defined in stages.common.metrics, (weightings,) each.
        """
        sums = self._sums @ weights
        accuracy, loss, brier_score = sums[:3] / weights.sum(axis=0)
        found = {"accuracy": accuracy, "loss": loss, "brier_score": brier_score}
        if self._weighted_sums is not None:
            with np.errstate(invalid="ignore"):
                found["weighted_accuracy"] = np.divide(*(self._weighted_sums @ weights))
        if not self._several_classes:
            return found
        support, predicted, right = np.split(sums[3:], 3)
        with np.errstate(invalid="ignore"):
            recall = right / support
            f1 = 2 * right / (support + predicted)
        # A class that no image has is left out; of F1, one that no image is taken for either.
        found["balanced_accuracy"] = np.nanmean(recall, axis=0)
        found["f1_macro"] = np.nanmean(f1, axis=0)
        if self._areas:
            found["roc_auc"] = self._mean_area(weights)
            if self._image_weights is not None:
                found["weighted_roc_auc"] = self._mean_area(
                    weights * self._image_weights[:, np.newaxis]
                )
        return found

    def _mean_area(self, weights: np.ndarray) -> np.ndarray:
        areas = np.stack([area.of(weights) for area in self._areas])
        defined = np.isfinite(areas)
        with np.errstate(invalid="ignore"):
            return np.where(defined, areas, 0).sum(axis=0) / defined.sum(axis=0)


class RocArea:
    """Area under one ROC curve as a function of how often each image counts.

    The chance that a positive image scores higher than a negative one, equal scores counting half
    (Hanley and McNeil 1982). One pass sums the weights of the negatives between each two scores
    that positives have.
    """

    def __init__(self, positive: np.ndarray, scores: np.ndarray):
        """Takes (images,) bool, some true and some false, and (images,) float."""
        from scipy import sparse

        levels, level_of_positive = np.unique(scores[positive], return_inverse=True)
        # Negatives: row 2i is below level i and above the one before, row 2i + 1 equals level i.
        # After these 2n + 1 rows come the positives, a row for each level.
        rows = np.searchsorted(levels, scores, "left") + np.searchsorted(levels, scores, "right")
        self._first_positive = 2 * len(levels) + 1
        rows[positive] = self._first_positive + level_of_positive
        images = len(scores)
        self._sums = sparse.csr_array(
            (np.ones(images, np.float32), (rows, np.arange(images))),
            shape=(3 * len(levels) + 1, images),
        )

    def of(self, weights: np.ndarray) -> np.ndarray:
        """Weights (images, weightings), float, 0 or more, to areas (weightings,) from 0 to 1.

        NaN where all positives or all negatives have weight 0.
        """
        negatives, positives = np.split(
            (self._sums @ weights).astype(np.float64), [self._first_positive]
        )
        below = np.cumsum(negatives, axis=0)[0:-1:2]  # the sum up to row 2i is below level i
        wins = (positives * (below + negatives[1::2] / 2)).sum(axis=0)
        with np.errstate(invalid="ignore"):
            return wins / (positives.sum(axis=0) * negatives.sum(axis=0))
