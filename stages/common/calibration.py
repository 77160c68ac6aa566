"""The temperature that calibrates a classifier's probabilities."""

import numpy as np


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature that minimises the negative log-likelihood (Guo et al. 2017, section 4.2).

    Labels are smoothed as in Platt 1999 (section 2.2), by two images that are of no class: with n
    images and k classes each label counts n / (n + 2), and each class 2 / k / (n + 2) more.
    Without, a small split on which all images are right asks for a temperature of 0: for a model
    that is never in doubt. One such image for each class would be too many where a class has few.

    Args:
        logits: (images, classes), float, of the validation split.
        labels: (images,), whole numbers.

    Returns:
        A number from 0.05 to 20; the loss is convex in its inverse, so the search finds the best.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    logits = logits.astype(np.float64)
    images = len(logits)
    spread = 2 / (images + 2)  # part of each label that all classes share

    def loss(log_temperature: float) -> float:
        log_probabilities = log_softmax(logits / np.exp(log_temperature), axis=1)
        of_labels = log_probabilities[np.arange(images), labels].mean()
        return -(1 - spread) * of_labels - spread * log_probabilities.mean()

    found = minimize_scalar(loss, bounds=(np.log(0.05), np.log(20)), method="bounded")
    return float(np.exp(found.x))
