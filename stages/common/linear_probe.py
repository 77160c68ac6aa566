"""The linear head as logistic regression: what papers report as linear probing.

L-BFGS on the cached features, the L2 strength chosen by the loss on the validation split from a
logarithmic grid (Kornblith et al. 2019, section A.4.1; Chen et al. 2020, SimCLR, section B.9).
Features are standardised for the solver, so that one strength suits all of them, and the scale is
folded into the weights afterwards: the head stays one dense layer.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stages.common import shards
from stages.common.run import UserError

# Times half the squared norm of the weights, against the mean loss of an image.
STRENGTHS = tuple(10.0**power for power in (1, 0, -1, -2, -3, -4, -5))
MOST_ITERATIONS = 500
MOST_BYTES = 8 * 2**30  # of the training features as float32; the solver needs twice that


@dataclass(frozen=True)
class Features:
    """One split in memory."""

    features: np.ndarray  # (images × views, channels), float32
    labels: np.ndarray  # (images × views,), whole numbers
    weights: np.ndarray  # (images × views,), float64: how much each counts


@dataclass(frozen=True)
class Solution:
    """A dense layer and how it was found."""

    kernel: np.ndarray  # (channels, classes), float32
    bias: np.ndarray  # (classes,), float32
    rows: list[dict[str, float]]  # one a strength, as columns of the learning curve


def load(folder: Path, weigh=None) -> Features:
    """All views of all images of a folder of feature shards; feature maps are pooled.

    Args:
        folder: shards of (views, channels) or (views, height, width, channels).
        weigh: from labels and ids to weights, see weights.ImageWeights; None: all equal.

    Raises:
        UserError: they would not fit into memory.
    """
    index = shards.read_index(folder)
    views, *_places, channels = index.shape
    needed = 4 * index.count * views * channels
    if needed > MOST_BYTES:
        raise UserError(
            f"params.yaml, train_head.solver: lbfgs holds all features in memory, at most "
            f"{MOST_BYTES / 2**30:.0f} GiB, and {index.count:,} images in {views} views of "
            f"{channels:,} features are {needed / 2**30:.1f} GiB; lower extract_features.views, or "
            "set the solver to gradient"
        )
    parts = []
    for arrays, labels, ids in shards.batches(folder, 256):
        features = arrays.numpy().astype(np.float32)
        features = features.mean(axis=tuple(range(2, features.ndim - 1)))
        weights = np.ones(len(labels)) if weigh is None else weigh(labels, ids).numpy()
        parts.append(
            (
                features.reshape(-1, channels),
                np.repeat(labels.numpy(), views),
                np.repeat(weights.astype(np.float64), views),
            )
        )
    return Features(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def solve(train: Features, valid: Features, classes: int) -> Solution:
    """The best of `STRENGTHS`, each from where the stronger one ended.

    A class without training images gets a bias below all others.

    Raises:
        UserError: the training images are all of one class.
    """
    if len(np.unique(train.labels)) < 2:
        raise UserError(
            "params.yaml, train_head.solver: lbfgs needs training images of two classes or more, "
            "received those of one; see `no image in 'train'` in what split says, and choose other "
            "fractions or another seed"
        )
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import accuracy_score, log_loss

    mean, scale = train.features.mean(axis=0), train.features.std(axis=0)
    scale[scale == 0] = 1.0

    def scaled(features):
        return (features - mean) / scale

    inputs = scaled(train.features)
    model = LogisticRegression(max_iter=MOST_ITERATIONS, warm_start=True)
    best, rows = (np.inf, None, None), []
    for number, strength in enumerate(STRENGTHS, start=1):
        model.set_params(C=1 / (strength * train.weights.sum()))
        model.fit(inputs, train.labels, sample_weight=train.weights)
        kernel, bias = _dense(model, classes)
        row = {"epoch": number, "l2": strength}
        for prefix, split in (("", train), ("val_", valid)):
            probabilities = _softmax(scaled(split.features) @ kernel + bias)
            row[f"{prefix}loss"] = float(
                log_loss(
                    split.labels,
                    probabilities,
                    sample_weight=split.weights,
                    labels=np.arange(classes),
                )
            )
            row[f"{prefix}accuracy"] = float(
                accuracy_score(split.labels, probabilities.argmax(axis=1))
            )
        rows.append(row)
        print(
            f"l2 {strength:g}: loss {row['loss']:.4f}, accuracy {row['accuracy']:.4f}, "
            f"val_loss {row['val_loss']:.4f}, val_accuracy {row['val_accuracy']:.4f}",
            flush=True,
        )
        if row["val_loss"] < best[0]:
            best = row["val_loss"], kernel, bias
    _, kernel, bias = best
    kernel = kernel / scale[:, None]
    return Solution(kernel.astype(np.float32), (bias - mean @ kernel).astype(np.float32), rows)


def _dense(model, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's coefficients as kernel (channels, classes) and bias (classes,)."""
    coefficients, intercepts = model.coef_.T, model.intercept_
    if len(model.classes_) == 2:  # one column: the logit of the second class
        coefficients = np.concatenate([-coefficients, coefficients], axis=1) / 2
        intercepts = np.concatenate([-intercepts, intercepts]) / 2
    kernel = np.zeros((len(coefficients), classes))
    bias = np.full(classes, intercepts.min() - 20.0)
    kernel[:, model.classes_], bias[model.classes_] = coefficients, intercepts
    return kernel, bias


def _softmax(logits: np.ndarray) -> np.ndarray:
    from scipy.special import softmax

    return softmax(logits, axis=1)
