"""A batch in shares, one for each device, so that together they train as one device would.

TensorFlow parts a batch by itself too, but the last one of an epoch into shares of unequal size, of
which Keras takes the mean of means, and where it is small into empty ones, on which some kernels
fail.
"""

from collections.abc import Sequence

from stages.common import shards

ABSENT = -1.0  # the weight of an image that only fills an empty share


def parted(
    dataset, images: int, batch_size: int, part: shards.Part, local_replicas: int, replicas: int
):
    """A worker's batches as `share` parts them, for one device after the other.

    Args:
        dataset: of the worker's `part` of each batch: (images, labels) or (images, labels,
            weights), one epoch after the other.
        images: of all workers in one epoch.
        batch_size: of all workers together.
        part: the worker's own.
        local_replicas: devices of this worker.
        replicas: devices of all workers.
    """
    import tensorflow as tf

    full, last = divmod(images - 1, batch_size)
    counts = tf.constant([batch_size] * full + [last + 1], tf.int64)
    own = tf.constant([part.of_batch(batch_size)] * full + [part.of_batch(last + 1)], tf.int64)

    def parts(step, batch):
        step %= full + 1
        return tf.data.Dataset.range(local_replicas).map(
            lambda replica: share(
                batch, own[step], replica, local_replicas, replicas / counts[step]
            )
        )

    return dataset.enumerate().flat_map(parts).prefetch(tf.data.AUTOTUNE)


def on_all_devices(dataset, images: int, batch_size: int):
    """Batches for the devices of the strategy in whose scope this is called.

    Args:
        dataset: (images, labels) or (images, labels, weights), one epoch after the other.
        images: in one epoch.
        batch_size: of all devices together.

    Returns:
        The dataset itself where there is one device. Else shares of it, of (images, labels,
        weights) as `share` gives them, where an image that is not present has the weight ABSENT:
        Keras' `fit` knows no fourth column.
    """
    import tensorflow as tf

    strategy = tf.distribute.get_strategy()
    replicas = strategy.num_replicas_in_sync
    if replicas == 1:
        return dataset
    shares = parted(dataset, images, batch_size, shards.ALL, replicas, replicas)
    marked = shares.map(
        lambda images, labels, weights, present: (
            images,
            labels,
            tf.where(present > 0, weights, ABSENT),
        )
    )
    return strategy.distribute_datasets_from_function(lambda _context: marked)


def share(batch: Sequence, count, replica, replicas: int, factor) -> tuple:
    """One device's share of a worker's batch: (images, labels, weights, present).

    Shares differ by one image at most. The weights (images,) float32 are such that the mean loss of
    each share, divided by the number of all workers' devices as Keras does, adds up to the mean
    loss of all workers' images. A share of fewer images than there are devices holds one image that
    is not `present`, of weight 0.

    Args:
        batch: images (batch, …), labels (batch, classes) and, where images weigh, weights (batch,).
        count: of the images that are present, the first ones, int64.
        replica: which share, from 0, int64.
        replicas: devices of this worker.
        factor: devices of all workers over all their images of this step.
    """
    import tensorflow as tf

    begin, end = replica * count // replicas, (replica + 1) * count // replicas
    present = tf.cast(end > begin, tf.float32)
    begin = tf.maximum(tf.minimum(begin, count - 1), 0)
    end = tf.maximum(end, begin + 1)
    images, labels, *weights = (column[begin:end] for column in batch)
    of_one = present * tf.cast(end - begin, tf.float32) * tf.cast(factor, tf.float32)
    ones = tf.ones([end - begin])
    weights = weights[0] if weights else ones
    return images, labels, weights * of_one, ones * present
