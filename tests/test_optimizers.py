import re

import keras
import numpy as np
import pytest
import tensorflow as tf

from stages.common.training import optimizers
from tests.training_toys import fit, fit_until_input_ends, parameters, small_model, two_blobs


def rates(steps, **changes):
    schedule = optimizers.learning_rate(parameters(epochs=10, **changes), steps_per_epoch=10)
    return [float(schedule(step)) for step in steps]


def test_schedules():
    assert optimizers.learning_rate(parameters(), 10) == 0.01
    # The tutorial's: rate / (1 + decay × step).
    assert rates([0, 50], schedule="inverse_time", decay_per_step=0.02) == pytest.approx(
        [0.01, 0.005]
    )
    warm = rates([0, 10, 20, 60, 100], schedule="cosine", warmup_epochs=2.0)
    assert warm == pytest.approx([0, 0.005, 0.01, 0.005, 0], abs=1e-8)
    assert rates([0, 50, 100], schedule="cosine") == pytest.approx([0.01, 0.005, 0], abs=1e-8)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("by_layer", [False, True])
def test_weight_decay_shrinks_kernels_and_leaves_biases_and_batch_norm_alone(optimizer, by_layer):
    inputs = keras.Input((4,))
    x = keras.layers.BatchNormalization(name="norm")(keras.layers.Dense(4, name="hidden")(inputs))
    model = keras.Model(inputs, keras.layers.Dense(2, name="logits")(x))
    for layer in model.layers[1:]:
        layer.set_weights([np.ones_like(weight) for weight in layer.get_weights()])
    given = parameters(optimizer=optimizer, weight_decay=0.5, learning_rate=0.1)
    same_rate = [1.0] * len(model.trainable_variables)
    optimizers.compile_model(model, given, 1, (lambda _epoch: same_rate) if by_layer else None)
    zeros = [keras.ops.zeros_like(variable) for variable in model.trainable_variables]
    model.optimizer.apply(zeros, model.trainable_variables)
    for variable in model.trainable_variables:
        expected = 0.95 if variable.name == "kernel" else 1.0
        np.testing.assert_allclose(variable.numpy(), expected, err_msg=variable.path)


@pytest.mark.parametrize(
    ("clip_norm", "scale"),
    [(None, 1.0), (50.0, 1.0), (1.0, 1 / 13)],
)
def test_clip_norm_bounds_the_norm_of_all_gradients_together(clip_norm, scale):
    inputs = keras.Input((1,))
    model = keras.Model(inputs, keras.layers.Dense(2)(inputs))
    given = parameters(optimizer="sgd", learning_rate=0.1, clip_norm=clip_norm)
    optimizers.compile_model(model, given, 1)
    before = [variable.numpy() for variable in model.trainable_variables]
    gradients = [np.array([[3.0, 4.0]], "float32"), np.array([0.0, 12.0], "float32")]  # norm 13
    model.optimizer.apply(gradients, model.trainable_variables)
    for old, variable, gradient in zip(before, model.trainable_variables, gradients, strict=True):
        # The first step of Nesterov's momentum 0.9 is 1.9 times the rate times the gradient.
        expected = -0.1 * 1.9 * scale * gradient
        np.testing.assert_allclose(variable.numpy() - old, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("epoch", "kernel_scale", "bias_scale"), [(1, 1 / 5, 0), (2, 1 / 13, 1 / 13)]
)
def test_clip_norm_leaves_out_what_is_held_back(epoch, kernel_scale, bias_scale):
    inputs = keras.Input((1,))
    model = keras.Model(inputs, keras.layers.Dense(2)(inputs))
    given = parameters(optimizer="sgd", learning_rate=0.1, clip_norm=1.0)
    optimizers.compile_model(model, given, 1, lambda epoch: [1.0, 0.0 if epoch == 1 else 1.0])
    model.optimizer.begin_epoch(epoch)
    before = [variable.numpy() for variable in model.trainable_variables]
    gradients = [np.array([[3.0, 4.0]], "float32"), np.array([0.0, 12.0], "float32")]  # 5 and 12
    model.optimizer.apply(gradients, model.trainable_variables)
    for old, variable, gradient, scale in zip(
        before, model.trainable_variables, gradients, (kernel_scale, bias_scale), strict=True
    ):
        expected = -0.1 * 1.9 * scale * gradient
        np.testing.assert_allclose(variable.numpy() - old, expected, rtol=1e-4, atol=1e-6)


def test_clip_norm_and_rates_of_layers_take_variables_without_a_gradient():
    """As the mask token of DINOv2, which only its own pretraining uses."""
    inputs = keras.Input((1,))
    model = keras.Model(inputs, keras.layers.Dense(2)(inputs))
    given = parameters(optimizer="sgd", learning_rate=0.1, clip_norm=1.0)
    optimizers.compile_model(model, given, 1, lambda epoch: [0.5, 1.0])
    kernel, bias = model.trainable_variables
    before = bias.numpy()
    model.optimizer.apply([None, np.array([3.0, 4.0], "float32")], [kernel, bias])
    np.testing.assert_allclose(
        bias.numpy() - before, -0.1 * 1.9 / 5 * np.array([3.0, 4.0]), rtol=1e-4
    )


def test_label_smoothing_raises_the_loss_of_a_sure_and_right_model():
    sure = np.array([[10.0, -10.0]], "float32")
    label = np.array([[1.0, 0.0]], "float32")
    losses = []
    for smoothing in (0.0, 0.2):
        model = small_model()
        optimizers.compile_model(model, parameters(label_smoothing=smoothing), 1)
        losses.append(float(model.compute_loss(y=label, y_pred=sure)))
    assert losses == pytest.approx([0.0, 0.1 * 20], abs=1e-3)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_factor_scales_steps_and_weight_decay(optimizer):
    given = parameters(optimizer=optimizer, weight_decay=0.5, learning_rate=0.1)
    steps = []
    for factors in (None, lambda _epoch: [0.1, 0.1]):
        model = small_model()
        optimizers.compile_model(model, given, 4, factors)
        before = model.get_weights()
        model.train_on_batch(*two_blobs())
        steps.append([new - old for new, old in zip(model.get_weights(), before, strict=True)])
    for whole, tenth in zip(*steps, strict=True):
        assert np.abs(whole).max() > 0
        # The decay comes first and shrinks what the step starts from, not the step.
        np.testing.assert_allclose(tenth, whole * 0.1, rtol=2e-2, atol=1e-7)


def test_training_tells_the_optimizer_which_epoch_it_is(tmp_path):
    def from_the_third(epoch):
        return [float(epoch >= 3)] * 2

    for epochs, moves in ((2, False), (3, True)):
        model = small_model()
        before = model.get_weights()
        fit(model, tmp_path / str(epochs), rate_factors=from_the_third, epochs=epochs)
        changes = [np.abs(a - b).max() for a, b in zip(before, model.get_weights(), strict=True)]
        assert (min(changes) > 0) == moves
        assert (max(changes) > 0) == moves


def test_the_average_of_the_weights_is_validated_and_kept(tmp_path):
    """By hand, from the weights of every step of a run without an average."""

    def without_dropout():
        keras.utils.set_random_seed(1)
        inputs = keras.Input((4,))
        return keras.Model(inputs, keras.layers.Dense(2, name="logits")(inputs))

    features, labels = two_blobs()
    validation = tf.data.Dataset.from_tensor_slices((features, labels)).batch(8)
    model = without_dropout()
    history = fit(model, tmp_path / "a", average_decay=0.9, epochs=3)
    stepped = without_dropout()
    optimizers.compile_model(stepped, parameters(epochs=3), 4)
    average = None
    for _ in range(3):
        for batch in validation:
            stepped.train_on_batch(*batch)
            weights = stepped.get_layer("logits").get_weights()
            average = average or weights
            average = [0.9 * old + 0.1 * new for old, new in zip(average, weights, strict=True)]
    for expected, actual in zip(average, model.get_layer("logits").get_weights(), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)
    # What is kept is what the last validation saw; the weights themselves are elsewhere.
    assert model.evaluate(validation, verbose=0)[0] == pytest.approx(
        history[-1]["val_loss"], rel=1e-5
    )
    plain = without_dropout()
    plain_history = fit(plain, tmp_path / "b", epochs=3)
    assert [row["loss"] for row in plain_history] == [row["loss"] for row in history]
    # It lags behind: at a decay of 0.9 half of the way is made in some seven steps.
    assert history[0]["val_loss"] > plain_history[0]["val_loss"]


def test_an_average_without_a_single_step_is_the_model_as_it_was():
    """Steps that a scaled loss skips must not leave zeros, which would then be validated."""
    model = small_model()
    model.get_layer("logits").dtype_policy = "mixed_float16"
    optimizers.compile_model(model, parameters(average_decay=0.9), 4)
    inner = model.optimizer.inner_optimizer
    assert int(inner.iterations.numpy()) == 0
    averages = inner._model_variables_moving_average
    for variable, average in zip(model.trainable_variables, averages, strict=True):
        np.testing.assert_array_equal(average.numpy(), variable.numpy())


def test_an_average_goes_on_after_an_interruption(tmp_path):
    data = tf.data.Dataset.from_tensor_slices(two_blobs()).batch(8)
    given = parameters(average_decay=0.9, early_stopping_patience=3)
    whole = small_model()
    fit(whole, tmp_path / "whole", average_decay=0.9, early_stopping_patience=3)
    broken = small_model()
    optimizers.compile_model(broken, given, 4)
    with pytest.raises(ValueError, match="stopped"):
        fit_until_input_ends(broken, given, list(data.repeat(2)), data, tmp_path / "resumed")
    resumed = small_model()
    fit(resumed, tmp_path / "resumed", average_decay=0.9, early_stopping_patience=3)
    for expected, actual in zip(whole.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_array_equal(expected, actual)


def test_numbers_that_the_schedule_does_not_read_are_told_of():
    told = optimizers.describe_what_has_no_effect
    assert told(parameters(warmup_epochs=2.0)) == [
        "warmup_epochs 2: without effect, since schedule is constant, not cosine"
    ]
    (sentence,) = told(parameters(schedule="cosine", warmup_epochs=2.0, decay_per_step=0.5))
    assert sentence.startswith("decay_per_step 0.5: without effect, since schedule is cosine")
    assert told(parameters(schedule="inverse_time", decay_per_step=0.5)) == []


def test_an_average_that_a_short_run_does_not_fill_is_told_of():
    short = optimizers.describe_average(parameters(average_decay=0.99), 60)
    assert short.startswith("average_decay 0.99: after 60 steps 55 % of the averaged weights")
    assert "at 0.951 or less, or with more epochs, 5 % would be" in short
    assert optimizers.describe_average(parameters(average_decay=0.99), 1600) is None
    assert optimizers.describe_average(parameters(), 1) is None


@pytest.mark.parametrize("steps", [1, 40, 300, 1000, 30_000])
def test_the_average_that_is_advised_is_filled(steps):
    advice = optimizers.describe_average(parameters(average_decay=0.999999), steps)
    decay = float(re.search(r"; at ([0-9.e-]+) or less", advice)[1])
    assert decay < 1
    assert optimizers.describe_average(parameters(average_decay=decay), steps) is None
    more = decay + 0.2 * (1 - decay)
    assert optimizers.describe_average(parameters(average_decay=more), steps) is not None
