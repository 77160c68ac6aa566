"""Numbers that say how good probabilities are; from scikit-learn where it has them."""

from collections.abc import Sequence

import numpy as np

CALIBRATION_BINS = 15


def classification_metrics(
    labels: np.ndarray, probabilities: np.ndarray, class_names: Sequence[str]
) -> dict:
    """All metrics of one model on one split.

    Args:
        labels: (images,), whole numbers below the number of classes.
        probabilities: (images, classes), float, rows adding up to 1.
        class_names: one for each column.

    Returns:
        Nested numbers: accuracy, balanced_accuracy, f1_macro, loss (negative log-likelihood, nats),
        roc_auc (macro average of one-vs-rest), expected_calibration_error, images, and by class
        precision, recall, f1 and support. Fractions from 0 to 1. An area under the curve needs
        images in and out of a class; classes without are left out of its average.
    """
    from sklearn import metrics

    numbers = np.arange(len(class_names))
    predicted = probabilities.argmax(axis=1)
    precision, recall, f1, support = metrics.precision_recall_fscore_support(
        labels, predicted, labels=numbers, zero_division=0.0
    )
    result = {
        "images": len(labels),
        "accuracy": float(metrics.accuracy_score(labels, predicted)),
        "balanced_accuracy": float(recall[support > 0].mean()),
        "f1_macro": float(f1.mean()),
        "loss": float(metrics.log_loss(labels, probabilities, labels=numbers)),
        "expected_calibration_error": expected_calibration_error(labels, probabilities),
        "class": {
            name: {
                "precision": float(precision[number]),
                "recall": float(recall[number]),
                "f1": float(f1[number]),
                "support": int(support[number]),
            }
            for number, name in enumerate(class_names)
        },
    }
    areas = [
        metrics.roc_auc_score(labels == number, probabilities[:, number])
        for number in numbers
        if 0 < support[number] < len(labels)
    ]
    if areas:
        result["roc_auc"] = float(np.mean(areas))
    return result


def expected_calibration_error(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Mean distance of confidence from accuracy over 15 equal bins (Guo et al. 2017, eq. 3)."""
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == labels
    # Bins (0, 1/15], (1/15, 2/15], …: the upper edge belongs to the bin.
    bins = np.ceil(confidence * CALIBRATION_BINS).astype(int) - 1
    gaps = [
        abs(correct[bins == number].mean() - confidence[bins == number].mean())
        * (bins == number).mean()
        for number in np.unique(bins)
    ]
    return float(sum(gaps))
