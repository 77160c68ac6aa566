import keras
import numpy as np
import pytest
import tensorflow as tf

from stages.common.training import optimizers
from tests.training_toys import fit, fit_until_input_ends, parameters, small_model, two_blobs


def test_early_stopping_restores_the_best_epoch(tmp_path):
    # A rate this high makes validation loss rise after some epochs on labels turned around.
    features, labels = two_blobs()
    validation = tf.data.Dataset.from_tensor_slices((features, labels[:, ::-1])).batch(8)
    model = small_model()
    history = fit(model, tmp_path, make_validation=validation, epochs=30, early_stopping_patience=2)
    losses = [row["val_loss"] for row in history]
    best = int(np.argmin(losses))
    assert len(history) == best + 1 + 2 < 30
    restored = model.evaluate(validation, verbose=0)[0]
    assert restored == pytest.approx(losses[best], rel=1e-5)


def test_averaged_epochs_is_the_mean_of_the_best_ones(tmp_path):
    features, labels = two_blobs()
    validation = tf.data.Dataset.from_tensor_slices((features, labels[:, ::-1])).batch(8)
    seen = []

    class Watched(keras.Model):
        def save_weights(self, filepath, **options):
            if "best" in str(filepath):
                seen.append(self.get_layer("logits").get_weights())
            super().save_weights(filepath, **options)

    keras.utils.set_random_seed(1)
    inputs = keras.Input((4,))
    outputs = keras.layers.Dense(2, name="logits")(keras.layers.Dropout(0.2)(inputs))
    model = Watched(inputs, outputs)
    # By labels turned around the first epochs are the best.
    history = fit(
        model, tmp_path, make_validation=validation, epochs=5, averaged_epochs=2, learning_rate=0.1
    )
    losses = [row["val_loss"] for row in history]
    assert np.argsort(losses)[:2].tolist() == [0, 1]
    assert len(seen) == 2  # later epochs are worse and are not kept
    for received, *expected in zip(model.get_layer("logits").get_weights(), *seen, strict=True):
        np.testing.assert_allclose(received, np.mean(expected, axis=0), rtol=1e-6)


def test_averaged_epochs_go_on_after_an_interruption(tmp_path):
    data = tf.data.Dataset.from_tensor_slices(two_blobs()).batch(8)
    whole = small_model()
    fit(whole, tmp_path / "whole", averaged_epochs=3)
    broken = small_model()
    given = parameters(averaged_epochs=3)
    optimizers.compile_model(broken, given, 4)
    with pytest.raises(ValueError, match="stopped"):
        fit_until_input_ends(broken, given, list(data.repeat(2)), data, tmp_path / "resumed")
    resumed = small_model()
    fit(resumed, tmp_path / "resumed", averaged_epochs=3)
    for expected, actual in zip(whole.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_array_equal(expected, actual)
