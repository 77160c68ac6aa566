import numpy as np
import tensorflow as tf

from stages.train_head import one_view


def test_one_view_follows_from_seed_and_batch_number_so_that_a_resumed_run_sees_the_same():
    features = np.arange(24 * 4, dtype="float16").reshape(24, 4, 1)
    batches = tf.data.Dataset.from_tensor_slices(
        (features, np.arange(24), np.array(["x"] * 24))
    ).batch(8)
    whole = [batch[0].numpy() for batch in one_view(batches, seed=5)]
    resumed = [batch[0].numpy() for batch in one_view(batches.skip(1), seed=5, first_batch=1)]
    np.testing.assert_array_equal(whole[1:], resumed)
    views = np.concatenate(whole)[:, 0] - features[:, 0, 0]
    assert set(views) == {0, 1, 2, 3}
