import numpy as np
import pytest
import tensorflow as tf

from stages.common.run import UserError
from stages.common.training import learning_curve
from tests.training_toys import fit, small_model, two_blobs


def test_training_that_diverges_stops_with_the_cure_and_keeps_the_last_good_epoch(tmp_path):
    features, labels = two_blobs()
    features[-1] = np.nan
    broken = tf.data.Dataset.from_tensor_slices((features, labels)).batch(8)
    with pytest.raises(UserError, match=r"diverged: the loss of epoch 1 .*nan; lower.*clip_norm"):
        fit(small_model(), tmp_path, make_validation=broken)
    assert not list((tmp_path / "backup").glob("epoch-*"))


def test_training_that_diverges_does_not_wait_for_the_end_of_an_epoch(tmp_path, monkeypatch):
    monkeypatch.setattr(learning_curve, "REPORT_SECONDS", 0)
    model = small_model()
    model.layers[-1].bias.assign([np.nan, np.nan])
    with pytest.raises(UserError, match=r"diverged: the loss of epoch 1 is nan; lower.*clip_norm"):
        fit(model, tmp_path)
