"""Numbers that say how good probabilities are; from scikit-learn where it has them."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

CALIBRATION_BINS = 15
TOP = 5
ALL_CLASSES = "all classes"  # the one curve of many: every decision of one class or not
# Curves are drawn class by class: of 1,000 classes and 50,000 images their areas take 20 seconds,
# once. Where they would be needed again and again (slices, resamples) they end at this many.
MOST_CLASSES_FOR_AREAS = 100
CHUNK_NUMBERS = 2**22  # probabilities of which scikit-learn makes its several copies at a time


def classification_metrics(
    labels: np.ndarray,
    probabilities: np.ndarray,
    class_names: Sequence[str],
    temperature: float | None,
    image_weights: np.ndarray | None = None,
) -> dict:
    """All metrics of one model on one split.

    Args:
        labels: (images,), whole numbers below the number of classes.
        probabilities: (images, classes), float64, rows adding up to 1.
        class_names: one for each column.
        temperature: see `numbers`.
        image_weights: see `numbers`.

    Returns:
        What `numbers` gives, and by class precision, recall, F1 (fractions, 0
        where undefined) and support (images).
    """
    from sklearn.metrics import precision_recall_fscore_support

    by_class = precision_recall_fscore_support(
        labels,
        probabilities.argmax(axis=1),
        labels=np.arange(len(class_names)),
        zero_division=0.0,
    )
    return {
        **numbers(labels, probabilities, temperature, image_weights=image_weights),
        "class": {
            name: {
                "precision": float(precision),
                "recall": float(recall),
                "f1": float(f1),
                "support": int(support),
            }
            for name, precision, recall, f1, support in zip(class_names, *by_class, strict=True)
        },
    }


def numbers(
    labels: np.ndarray,
    probabilities: np.ndarray,
    temperature: float | None,
    *,
    with_areas: bool = True,
    image_weights: np.ndarray | None = None,
) -> dict:
    """The metrics of one set of images, at least one.

    Args:
        labels: (images,), whole numbers below the number of classes.
        probabilities: (images, classes), float64, rows adding up to 1.
        temperature: by which the model divides its logits; None where it can't be taken back: of
            probabilities averaged over several views.
        with_areas: whether to find the areas under curves, which take longest.
        image_weights: (images,), 0 or more, for the weighted metrics; None: do without them.

    Returns:
        images; accuracy, top_5_accuracy (only with more than five classes): fractions from 0 to 1;
        loss, expected_calibration_error, brier_score: see `calibration`, and the same under
        `uncalibrated` for what the model would say without its temperature, if there is one to take
        back; weighted_accuracy: the weights of the images that are right over all weights (unless
        all are 0). Where the images are of two classes at least: balanced_accuracy (mean recall of
        the classes that images have), f1_macro (mean over the classes that images or predictions
        have), f1_weighted (by the images of a class), roc_auc, average_precision and
        weighted_roc_auc (see `areas`): fractions from 0 to 1; cohen_kappa: from -1 to 1.
    """
    from sklearn import metrics

    predicted = probabilities.argmax(axis=1)
    result = {
        "images": len(labels),
        "accuracy": float(metrics.accuracy_score(labels, predicted)),
        **calibration(labels, probabilities),
    }
    if temperature is not None:
        result["uncalibrated"] = calibration(labels, uncalibrated(probabilities, temperature))
    if image_weights is not None and image_weights.any():
        result["weighted_accuracy"] = float(
            metrics.accuracy_score(labels, predicted, sample_weight=image_weights)
        )
    found = np.unique(labels)
    if len(found) > 1:
        # The names and averages of scikit-learn, without its warning of classes that only labels
        # or only predictions have.
        recall = metrics.recall_score(labels, predicted, labels=found, average="macro")
        f1_weighted = metrics.f1_score(labels, predicted, labels=found, average="weighted")
        result["balanced_accuracy"] = float(recall)
        result["f1_macro"] = float(metrics.f1_score(labels, predicted, average="macro"))
        result["f1_weighted"] = float(f1_weighted)
        result["cohen_kappa"] = float(metrics.cohen_kappa_score(labels, predicted))
    classes = np.arange(probabilities.shape[1])
    if len(classes) > TOP:
        result[f"top_{TOP}_accuracy"] = _mean_over_images(
            partial(metrics.top_k_accuracy_score, k=TOP, labels=classes), labels, probabilities
        )
    if with_areas:
        result.update(areas(labels, probabilities, image_weights))
    return result


def areas(
    labels: np.ndarray, probabilities: np.ndarray, image_weights: np.ndarray | None = None
) -> dict[str, float]:
    """Areas under the ROC curve and under the precision-recall curve (average precision).

    Of two classes: of the second one, the positive. Of more: the mean over one-vs-rest curves. A
    class has a curve only where some images are of it and some are not; without any curve the
    numbers are left out.

    Returns:
        roc_auc and average_precision; with weights of images also weighted_roc_auc, the chance that
        of an image of the class and one of another, each drawn by its weight, the first scores
        higher, over the classes with weight on both sides.
    """
    from sklearn import metrics

    found = {"roc_auc": [], "average_precision": [], "weighted_roc_auc": []}
    for number in curve_classes(probabilities.shape[1]):
        positive, scores = labels == number, probabilities[:, number]
        if not 0 < positive.sum() < len(labels):
            continue
        found["roc_auc"].append(metrics.roc_auc_score(positive, scores))
        found["average_precision"].append(metrics.average_precision_score(positive, scores))
        if image_weights is None or not (
            image_weights[positive].any() and image_weights[~positive].any()
        ):
            continue
        found["weighted_roc_auc"].append(
            metrics.roc_auc_score(positive, scores, sample_weight=image_weights)
        )
    return {name: float(np.mean(values)) for name, values in found.items() if values}


def curve_classes(classes: int) -> range:
    """The classes that have a curve: of two only the second, whose curve tells all."""
    return range(1, 2) if classes == 2 else range(classes)


def calibration(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """Numbers that take the probabilities at their word; lower is better.

    Returns:
        loss: mean negative log-likelihood in nats; a probability of 0 counts as 2.2e-16.
        brier_score: squared differences from 0 and 1, summed over all classes, mean over images
            (Brier 1950), from 0 to 2; of two classes it is twice what is also called so.
        expected_calibration_error: a fraction from 0 to 1.
    """
    from sklearn import metrics

    classes = np.arange(probabilities.shape[1])
    brier_score = partial(metrics.brier_score_loss, labels=classes, scale_by_half=False)
    return {
        "loss": _mean_over_images(partial(metrics.log_loss, labels=classes), labels, probabilities),
        "brier_score": _mean_over_images(brier_score, labels, probabilities),
        "expected_calibration_error": expected_calibration_error(labels, probabilities),
    }


def _mean_over_images(metric: Callable, labels: np.ndarray, probabilities: np.ndarray) -> float:
    """A metric that is a mean over images, found piece by piece so that memory stays bounded."""
    images, classes = probabilities.shape
    step = max(1, CHUNK_NUMBERS // classes)
    total = 0.0
    for start in range(0, images, step):
        piece = slice(start, start + step)
        total += metric(labels[piece], probabilities[piece]) * len(labels[piece])
    return float(total / images)


def expected_calibration_error(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Mean distance of confidence from accuracy over 15 equal bins (Guo et al. 2017, eq. 3)."""
    return sum(
        abs(accuracy - confidence) * images / len(labels)
        for confidence, accuracy, images in reliability_bins(labels, probabilities)
    )


def reliability_bins(
    labels: np.ndarray, probabilities: np.ndarray
) -> list[tuple[float, float, int]]:
    """Mean confidence, accuracy and number of images of every bin that has images.

    The bins are (0, 1/15], (1/15, 2/15], …, of the largest probability.
    """
    confidence = probabilities.max(axis=1).astype(np.float64)
    right = probabilities.argmax(axis=1) == labels
    bins = np.ceil(confidence * CALIBRATION_BINS).astype(int)
    members = [bins == number for number in np.unique(bins)]
    return [
        (float(confidence[inside].mean()), float(right[inside].mean()), int(inside.sum()))
        for inside in members
    ]


def uncalibrated(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """The probabilities that the model would give without its temperature, (images, classes).

    Of one view of each image: a mean over several is not that of one logit.

    softmax(T · log p): the softmax does not see the constant by which T · log p differs from the
    logits. A probability of 0 stays 0.
    """
    from scipy.special import softmax

    with np.errstate(divide="ignore"):
        return softmax(temperature * np.log(probabilities), axis=1)
