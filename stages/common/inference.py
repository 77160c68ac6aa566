"""A model's outputs over a whole data set."""

import numpy as np

from stages.common.run import progress


def predict(model, dataset, total: int, description: str) -> tuple[np.ndarray, np.ndarray, list]:
    """Runs a model over a data set once.

    Args:
        model: called with `training=False`.
        dataset: (arrays, labels, ids) batches.
        total: the number of images, for the progress bar.
        description: of the pass, likewise.

    Returns:
        Outputs (images, …), labels (images,) int64 and ids, in order.
    """
    import tensorflow as tf

    forward = tf.function(lambda arrays: model(arrays, training=False), reduce_retracing=True)
    outputs, labels, ids = [], [], []
    with progress(None, total=total, unit="image", description=description) as bar:
        for arrays, batch_labels, batch_ids in dataset:
            outputs.append(forward(arrays).numpy())
            labels.append(batch_labels.numpy())
            ids.extend(text.decode() for text in batch_ids.numpy())
            bar.update(len(batch_labels))
    return np.concatenate(outputs), np.concatenate(labels), ids
