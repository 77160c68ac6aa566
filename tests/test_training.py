import re
import sys
import types
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.special import log_softmax

from stages.common import augment, backbones, heads, models, params, shards, training
from stages.common.run import UserError
from stages.fine_tune import (
    FineTuneParams,
    largest_side,
    rate_factors,
    rate_factors_by_epoch,
    training_side,
    unfreeze,
    unfrozen_layers,
)
from stages.train_head import one_view
from tests import ROOT
from tests.test_params import error_of

TRAINING = {
    "optimizer": "adamw",
    "learning_rate": 0.01,
    "weight_decay": 0.0,
    "schedule": "constant",
    "decay_per_step": 0.0,
    "warmup_epochs": 0.0,
    "label_smoothing": 0.0,
    "clip_norm": None,
    "average_decay": None,
    "averaged_epochs": None,
    "batch_size": 8,
    "epochs": 4,
    "seconds_budget": None,
    "early_stopping_patience": None,
}


def parameters(**changes) -> training.TrainingParams:
    return training.TrainingParams(**{**TRAINING, **changes})


def small_model() -> keras.Model:
    keras.utils.set_random_seed(1)
    inputs = keras.Input((4,))
    # Dropout: a resumed run must draw the numbers that an uninterrupted one draws.
    x = keras.layers.Dropout(0.2)(inputs)
    return keras.Model(inputs, keras.layers.Dense(2, name="logits")(x))


def two_blobs(count: int = 32):
    """(features, one-hot labels) of two well-parted classes."""
    generator = np.random.default_rng(0)
    labels = np.arange(count) % 2
    features = generator.normal(0, 0.5, (count, 4)) + labels[:, None] * 2 - 1
    return features.astype("float32"), np.eye(2, dtype="float32")[labels]


def fit(model, tmp_path, make_validation=None, rate_factors=None, **changes):
    given = parameters(**changes)
    arrays = two_blobs()
    data = tf.data.Dataset.from_tensor_slices(arrays).batch(given.batch_size)
    training.compile_model(model, given, 4, rate_factors)
    return training.fit(
        model,
        given,
        make_training_batches=lambda first: data.repeat(given.epochs - first),
        validation_batches=make_validation or data,
        images_per_epoch=32,
        backup=tmp_path / "backup",
    )


def test_loss_falls_and_history_has_a_row_an_epoch(tmp_path):
    history = fit(small_model(), tmp_path)
    assert [row["epoch"] for row in history] == [1, 2, 3, 4]
    losses = [row["loss"] for row in history]
    assert losses == sorted(losses, reverse=True)
    assert history[-1]["val_loss"] < history[0]["val_loss"]


def test_interrupted_fit_resumes_after_the_last_whole_epoch_with_equal_weights(tmp_path):
    whole = small_model()
    history = fit(whole, tmp_path / "whole", schedule="cosine", warmup_epochs=1.0)

    interrupted = small_model()
    given = parameters(schedule="cosine", warmup_epochs=1.0)
    data = tf.data.Dataset.from_tensor_slices(two_blobs()).batch(8)
    training.compile_model(interrupted, given, 4)
    # The input breaks in the middle of the third epoch.
    broken = data.repeat(4).take(10)
    with pytest.raises(ValueError, match="stopped"):
        _fit_until_input_ends(interrupted, given, broken, data, tmp_path / "backup")
    resumed = small_model()
    resumed_history = fit(resumed, tmp_path, schedule="cosine", warmup_epochs=1.0)
    assert [row["epoch"] for row in resumed_history] == [1, 2, 3, 4]
    for expected, actual in zip(whole.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_array_equal(expected, actual)
    assert [row["loss"] for row in resumed_history] == [row["loss"] for row in history]


def _fit_until_input_ends(model, given, broken, data, backup):
    def batches(_first):
        def generate():
            yield from broken
            raise ValueError("stopped")

        return tf.data.Dataset.from_generator(
            generate,
            output_signature=(tf.TensorSpec((None, 4)), tf.TensorSpec((None, 2))),
        )

    try:
        training.fit(
            model,
            given,
            make_training_batches=batches,
            validation_batches=data,
            images_per_epoch=32,
            backup=backup,
        )
    except tf.errors.InvalidArgumentError as error:
        raise ValueError("stopped") from error


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


def test_fingerprint_follows_the_versions_of_packages(monkeypatch):
    before = training.fingerprint(parameters())
    monkeypatch.setattr(tf, "__version__", "9.9.9")
    assert training.fingerprint(parameters()) != before


def test_backup_of_another_configuration_is_removed_not_resumed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = training.backup_folder("fine_tune", training.fingerprint(parameters(), 0))
    (first / "epoch-000001").mkdir(parents=True)
    same = training.backup_folder("fine_tune", training.fingerprint(parameters(), 0))
    assert same == first
    assert first.exists()
    other = training.backup_folder(
        "fine_tune", training.fingerprint(parameters(learning_rate=0.02), 0)
    )
    assert other != first
    assert not first.exists()


def test_fingerprint_follows_a_file_by_its_content(tmp_path):
    path = tmp_path / "model"
    path.write_bytes(b"one")
    before = training.fingerprint(path)
    path.write_bytes(b"two")
    assert training.fingerprint(path) != before


def test_fingerprint_follows_the_code_that_is_loaded(tmp_path, monkeypatch):
    path = tmp_path / "helper.py"
    path.write_text("x = 1")
    helper = types.ModuleType("stages.common.helper")
    helper.__file__ = str(path)
    monkeypatch.setitem(sys.modules, helper.__name__, helper)
    before = training.fingerprint(parameters())
    assert training.fingerprint(parameters()) == before
    path.write_text("x = 2")
    assert training.fingerprint(parameters()) != before


def test_train_numbers_batches_over_epochs_and_resumes_with_equal_data_only(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    features, one_hot = two_blobs()
    labels = one_hot.argmax(axis=1)
    first_batches, backups = [], []

    def fit_nothing(_model, _parameters, *, make_training_batches, backup, **_keys):
        make_training_batches(2)
        backups.append(backup)
        raise StopIteration

    def prepare(batches, first_batch):
        first_batches.append(first_batch)
        return batches

    monkeypatch.setattr(training, "fit", fit_nothing)
    # Eight images a batch: four batches an epoch, of 32 images.
    for edited, value in ((None, 0), (None, 0), ("train", 9), ("valid", 9)):
        for split in ("train", "valid"):
            rows = features + (value if split == edited else 0)
            records = ((row, int(labels[n]), f"{n}") for n, row in enumerate(rows))
            shards.write_all(tmp_path / "data" / split, records, "float32", ["no", "yes"])
        with pytest.raises(StopIteration):
            training.train(
                "toy",
                small_model(),
                parameters(),
                data=tmp_path / "data",
                seed=0,
                save=pytest.fail,
                prepare=prepare,
            )
    assert first_batches == [0, 2 * 4] * 4
    plain, again, other_train, other_valid = backups
    assert plain == again
    assert len({plain, other_train, other_valid}) == 3


@pytest.mark.parametrize("average_decay", [None, 0.9])
def test_what_could_not_be_saved_is_not_trained_again(tmp_path, monkeypatch, capsys, average_decay):
    monkeypatch.chdir(tmp_path)
    data, given = write_blobs(tmp_path / "data"), parameters(average_decay=average_decay)
    models, temperatures = [small_model(), small_model()], []

    def train(model, save):
        training.train("toy", model, given, data=data, seed=0, save=save)

    def no_space(temperature):
        temperatures.append(temperature)
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space"):
        train(models[0], no_space)
    capsys.readouterr()
    train(models[1], temperatures.append)
    shown = capsys.readouterr().out
    assert "resumed after epoch 4 of 4" in shown
    assert "epoch 1/4" not in shown
    for first, second in zip(models[0].get_weights(), models[1].get_weights(), strict=True):
        np.testing.assert_array_equal(first, second)
    assert temperatures[0] == temperatures[1]
    # DVC may yet be stopped before it holds the model, and would have the stage run again.
    train(small_model(), temperatures.append)
    assert "resumed after epoch 4 of 4" in capsys.readouterr().out
    training.forget_backup("toy")
    assert not list((tmp_path / ".backup").glob("*"))


def test_equal_pictures_that_are_no_squares_train_as_squares(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for split in ("train", "valid"):
        records = ((np.full((20, 24, 3), 9 * n, np.uint8), n % 2, f"{n}") for n in range(16))
        shards.write_all(tmp_path / "data" / split, records, "uint8", ["no", "yes"])
    images = keras.Input((16, 16, 3))
    quarter_turns = augment.random_symmetry_layer([augment.IDENTITY, augment.QUARTER_TURN], 0)
    pixels = keras.layers.Flatten()(quarter_turns(images))
    model = keras.Model(images, keras.layers.Dense(2)(pixels))
    saved = []
    training.train(
        "toy",
        model,
        parameters(epochs=1),
        data=tmp_path / "data",
        seed=0,
        save=saved.append,
        image_size=16,
    )
    assert len(saved) == 1


def rates(steps, **changes):
    schedule = training.learning_rate(parameters(epochs=10, **changes), steps_per_epoch=10)
    return [float(schedule(step)) for step in steps]


def test_schedules():
    assert training.learning_rate(parameters(), 10) == 0.01
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
    training.compile_model(model, given, 1, (lambda _epoch: same_rate) if by_layer else None)
    zeros = [keras.ops.zeros_like(variable) for variable in model.trainable_variables]
    model.optimizer.apply(zeros, model.trainable_variables)
    for variable in model.trainable_variables:
        expected = 0.95 if variable.name == "kernel" else 1.0
        np.testing.assert_allclose(variable.numpy(), expected, err_msg=variable.path)


@pytest.mark.parametrize("section", ["train_head", "fine_tune"])
def test_weight_decay_that_adam_would_ignore_is_refused(section):
    assert error_of(section, {"optimizer": "adam", "weight_decay": 0.01}) == (
        f"params.yaml, {section}.weight_decay: expected 0 with adam, received 0.01; choose adamw, "
        "which is adam with weight decay"
    )
    assert parameters(optimizer="adam", weight_decay=0.0).weight_decay == 0


@pytest.mark.parametrize(
    ("clip_norm", "scale"),
    [(None, 1.0), (50.0, 1.0), (1.0, 1 / 13)],
)
def test_clip_norm_bounds_the_norm_of_all_gradients_together(clip_norm, scale):
    inputs = keras.Input((1,))
    model = keras.Model(inputs, keras.layers.Dense(2)(inputs))
    given = parameters(optimizer="sgd", learning_rate=0.1, clip_norm=clip_norm)
    training.compile_model(model, given, 1)
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
    training.compile_model(model, given, 1, lambda epoch: [1.0, 0.0 if epoch == 1 else 1.0])
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
    training.compile_model(model, given, 1, lambda epoch: [0.5, 1.0])
    kernel, bias = model.trainable_variables
    before = bias.numpy()
    model.optimizer.apply([None, np.array([3.0, 4.0], "float32")], [kernel, bias])
    np.testing.assert_allclose(
        bias.numpy() - before, -0.1 * 1.9 / 5 * np.array([3.0, 4.0]), rtol=1e-4
    )


@pytest.mark.parametrize("value", [0, -1.0, float("inf"), True, "none"])
def test_clip_norm_takes_null_or_a_number_above_0(value):
    error = error_of("fine_tune", {"clip_norm": value})
    assert error.startswith(
        "params.yaml, fine_tune.clip_norm: expected null (no limit) or a number above 0, received "
    )


def test_training_that_diverges_stops_with_the_cure_and_keeps_the_last_good_epoch(tmp_path):
    features, labels = two_blobs()
    features[-1] = np.nan
    broken = tf.data.Dataset.from_tensor_slices((features, labels)).batch(8)
    with pytest.raises(UserError, match=r"diverged: the loss of epoch 1 .*nan; lower.*clip_norm"):
        fit(small_model(), tmp_path, make_validation=broken)
    assert not list((tmp_path / "backup").glob("epoch-*"))


def test_training_that_diverges_does_not_wait_for_the_end_of_an_epoch(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "REPORT_SECONDS", 0)
    model = small_model()
    model.layers[-1].bias.assign([np.nan, np.nan])
    with pytest.raises(UserError, match=r"diverged: the loss of epoch 1 is nan; lower.*clip_norm"):
        fit(model, tmp_path)


def test_label_smoothing_raises_the_loss_of_a_sure_and_right_model():
    sure = np.array([[10.0, -10.0]], "float32")
    label = np.array([[1.0, 0.0]], "float32")
    losses = []
    for smoothing in (0.0, 0.2):
        model = small_model()
        training.compile_model(model, parameters(label_smoothing=smoothing), 1)
        losses.append(float(model.compute_loss(y=label, y_pred=sure)))
    assert losses == pytest.approx([0.0, 0.1 * 20], abs=1e-3)


def test_temperature_recovers_the_one_that_logits_were_scaled_by():
    generator = np.random.default_rng(0)
    honest = generator.normal(0, 2, (20_000, 5))
    probabilities = np.exp(log_softmax(honest, axis=1))
    labels = np.array([generator.choice(5, p=row / row.sum()) for row in probabilities])
    assert training.fit_temperature(honest * 3.0, labels) == pytest.approx(3.0, rel=0.05)


@pytest.mark.parametrize("classes", [2, 10])
def test_a_small_split_that_is_all_right_does_not_make_the_model_sure_of_all(classes):
    """Of calibrated logits, 50 images that all happen to be right: 1 is the best temperature."""
    generator = np.random.default_rng(0)
    logits = generator.normal(0, 4, (50, classes))
    temperature = training.fit_temperature(logits, logits.argmax(axis=1))
    assert 0.5 < temperature < 1.2


def test_few_images_of_many_classes_leave_a_calibrated_model_nearly_as_it_is():
    generator = np.random.default_rng(0)
    logits = generator.normal(0, 4, (1020, 102))
    probabilities = np.exp(log_softmax(logits, axis=1))
    labels = np.array([generator.choice(102, p=row / row.sum()) for row in probabilities])
    assert training.fit_temperature(logits, labels) == pytest.approx(1, abs=0.1)


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


@pytest.mark.parametrize(
    ("choice", "norm_trains", "changing"),
    [
        ("none", False, set()),
        ("all", False, {"block0_conv", "block1_conv"}),
        ("all", True, {"block0_conv", "block0_norm", "block1_conv", "block1_norm"}),
        (3, False, {"block1_conv"}),
        ("block1_conv", True, {"block1_conv", "block1_norm"}),
    ],
)
def test_a_step_changes_the_unfrozen_layers_and_no_batch_norm_statistics(
    toy_classifier, choice, norm_trains, changing
):
    model = toy_classifier("conv")
    unfreeze(model, choice, norm_trains)
    nothing = augment.random_symmetry_layer([augment.IDENTITY], seed=0)
    trained = models.training_model(model, nothing, [32, 32, 3])
    training.compile_model(trained, parameters(learning_rate=0.1), 1)
    layers = {layer.name: layer for layer in models.leaf_layers(model)}
    before = {name: [w.copy() for w in layer.get_weights()] for name, layer in layers.items()}
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    labels = np.eye(3, dtype="float32")[np.arange(8) % 3]
    trained.train_on_batch(images, labels)
    changed = {
        name
        for name, layer in layers.items()
        for old, new in zip(before[name], layer.get_weights(), strict=True)
        if not np.array_equal(old, new)
    }
    assert {name for name in changed if name.startswith("block")} == changing
    assert "logits" in changed
    assert "head_norm" not in changed
    for name in ("block0_norm", "block1_norm", "head_norm"):
        np.testing.assert_array_equal(before[name][2:], layers[name].get_weights()[2:])


def test_unknown_layer_names_the_candidates():
    with pytest.raises(UserError, match=r"'block1_conf'.*did you mean 'block1_conv'.*stem"):
        unfrozen_layers("block1_conf", ["stem", "block1_conv"], {})
    with pytest.raises(UserError, match=r"expected 0 to 2.*received 3"):
        unfrozen_layers(3, ["stem", "block1_conv"], {})


UNFROZEN = {
    "block1": ["block1_conv", "block1_relu"],
    "block0_norm": ["block0_norm", "block0_relu", "block1_conv", "block1_relu"],
    "regex:_conv$": ["block0_conv", "block1_conv"],
    2: ["block1_conv", "block1_relu"],
}


@pytest.mark.parametrize("choice", UNFROZEN)
def test_layers_are_unfrozen_by_block_by_name_by_pattern_and_by_number(choice):
    names = ["block0_conv", "block0_norm", "block0_relu", "block1_conv", "block1_relu"]
    of_block = {"block0": names[:3], "block1": names[3:]}
    assert unfrozen_layers(choice, names, of_block) == set(UNFROZEN[choice])


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("regex:(", "expected a regular expression after regex:, received '\\('"),
        ("regex:top", "a pattern that some layer's name has, received 'top'; the layers are stem"),
        ("blok1", "did you mean 'block1'.*the blocks are block1; the layers are stem"),
    ],
)
def test_a_choice_that_unfreezes_nothing_is_refused(choice, message):
    with pytest.raises(UserError, match=message):
        unfrozen_layers(choice, ["stem", "block1_conv"], {"block1": ["block1_conv"]})


def test_layers_of_a_model_inside_belong_to_its_block(toy_classifier):
    images = keras.Input((32, 32, 3))
    inside = keras.Sequential([keras.layers.Conv2D(4, 2, 2, name="shrink_conv")], name="shrink")
    x = inside(keras.layers.Conv2D(4, 2, 2, name="stem_conv")(images))
    backbone = keras.Model(images, keras.layers.Conv2D(16, 1, name="last")(x), name="backbone")
    head = toy_classifier("linear").get_layer("head")
    model = models.assemble(models.with_any_size(backbone), head)
    layers = {layer.name: layer for layer in models.leaf_layers(model.get_layer("backbone"))}
    trained = models.training_model(model, keras.layers.Identity(), [32, 32, 3])
    for choice, trainable in (("shrink", {"shrink_conv", "last"}), ("last", {"last"})):
        unfreeze(model, choice, True)
        with_weights = {name for name, layer in layers.items() if layer.weights}
        assert {name for name in with_weights if layers[name].trainable} == trainable
        unfreeze(model, "all", True)
        given = fine_tune_params(gradual_unfreezing=[[1, choice]])
        variables = trained.trainable_variables
        factors = rate_factors_by_epoch(variables, model.get_layer("backbone"), given)(1)
        paired = zip(variables, factors, strict=True)
        moving = {variable.path.split("/")[-2] for variable, factor in paired if factor}
        assert moving == {*trainable, "logits"}


def test_rates_fall_block_by_block_towards_the_input(toy_classifier):
    model = toy_classifier("conv")
    unfreeze(model, "all", True)
    backbone = model.get_layer("backbone")
    trained = models.training_model(model, keras.layers.Identity(), [32, 32, 3])
    factors = rate_factors(trained.trainable_variables, backbone, 0.5)
    names = [variable.path for variable in trained.trainable_variables]
    of = {name: factors[[name in path for path in names].index(True)] for name in LAYER_FACTORS}
    assert of == LAYER_FACTORS


# The tiny network has two blocks; the head keeps the whole rate.
LAYER_FACTORS = {"logits": 1.0, "block1_conv": 0.5, "block0_conv": 0.25}


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_factor_scales_steps_and_weight_decay(optimizer):
    given = parameters(optimizer=optimizer, weight_decay=0.5, learning_rate=0.1)
    steps = []
    for factors in (None, lambda _epoch: [0.1, 0.1]):
        model = small_model()
        training.compile_model(model, given, 4, factors)
        before = model.get_weights()
        model.train_on_batch(*two_blobs())
        steps.append([new - old for new, old in zip(model.get_weights(), before, strict=True)])
    for whole, tenth in zip(*steps, strict=True):
        assert np.abs(whole).max() > 0
        # The decay comes first and shrinks what the step starts from, not the step.
        np.testing.assert_allclose(tenth, whole * 0.1, rtol=2e-2, atol=1e-7)


def fine_tune_params(**changes) -> FineTuneParams:
    content = params.read(ROOT / "params.yaml")
    content["fine_tune"].update(changes)
    return params.check(content, "fine_tune", FineTuneParams)


def test_gradual_unfreezing_moves_what_its_turn_has_come_for(toy_classifier):
    model = toy_classifier("linear")
    unfreeze(model, "all", True)
    backbone = model.get_layer("backbone")
    trained = models.training_model(model, keras.layers.Identity(), [32, 32, 3])
    given = fine_tune_params(
        gradual_unfreezing=[[2, "block1"], [4, "all"]], layer_decay=0.5, learning_rate=0.01
    )
    factors = rate_factors_by_epoch(trained.trainable_variables, backbone, given)
    assert factors(4) == rate_factors(trained.trainable_variables, backbone, 0.5)
    assert set(factors(1)) == {0.0, 1.0}
    training.compile_model(trained, given, 4, factors)
    layers = {"logits": model.get_layer("head").get_layer("logits")} | {
        name: backbone.get_layer(name) for name in ("block0_conv", "block1_conv")
    }
    statistics = backbone.get_layer("block1_norm").get_weights()[2:]
    moved = {}
    for epoch in (1, 2, 3, 4):
        before = {name: layer.get_weights() for name, layer in layers.items()}
        trained.optimizer.begin_epoch(epoch)
        # The schedule begins at 0, so that it is the second step that moves.
        for _ in range(2):
            trained.train_on_batch(*eight_images())
        moved[epoch] = {
            name
            for name, layer in layers.items()
            if any(np.any(a != b) for a, b in zip(layer.get_weights(), before[name], strict=True))
        }
    assert moved == {
        1: {"logits"},
        2: {"logits", "block1_conv"},
        3: {"logits", "block1_conv"},
        4: {"logits", "block1_conv", "block0_conv"},
    }
    still = backbone.get_layer("block1_norm").get_weights()[2:]
    for old, new in zip(statistics, still, strict=True):
        np.testing.assert_array_equal(old, new)


def eight_images():
    """(images, one-hot labels) of noise."""
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3)).astype("float32")
    return images, np.eye(3, dtype="float32")[np.arange(8) % 3]


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


def test_steps_of_unfreezing_and_of_sizes_are_checked():
    for steps in ([[2, "none"], [1, "all"]], [[0, "all"]], [[99, "all"]]):
        with pytest.raises(UserError, match=r"gradual_unfreezing: expected epochs that rise, from"):
            fine_tune_params(gradual_unfreezing=steps)
        sizes = [[epoch, 64] for epoch, _ in steps]
        with pytest.raises(UserError, match=r"image_sizes: expected epochs that rise, from"):
            fine_tune_params(image_sizes=sizes)
    with pytest.raises(UserError, match=r"image_sizes"):
        fine_tune_params(image_sizes=[[1, 0]])
    with pytest.raises(UserError, match=r"unfreeze: .*received 'none': no layer would ever"):
        fine_tune_params(gradual_unfreezing=[[1, "none"], [4, "all"]], unfreeze="none")
    with pytest.raises(UserError, match=r"gradual_unfreezing.*expected null, or a list of \[epoch"):
        fine_tune_params(gradual_unfreezing="all")
    with pytest.raises(UserError, match=r"layers whose turn has not come"):
        fine_tune_params(gradual_unfreezing=[[1, "none"]], batch_norm_statistics="updated")


def test_statistics_of_unfrozen_norms_move_where_they_are_asked_to(toy_classifier):
    model = toy_classifier("linear")
    unfreeze(model, "block1", True)
    backbone = model.get_layer("backbone")
    trained = models.training_model(
        model, keras.layers.Identity(), [32, 32, 3], update_statistics=True
    )
    training.compile_model(trained, fine_tune_params(batch_norm_statistics="updated"), 4)
    norms = {name: backbone.get_layer(name) for name in ("block0_norm", "block1_norm")}
    before = {name: norm.get_weights()[2:] for name, norm in norms.items()}
    trained.train_on_batch(*eight_images())
    moved = {
        name: all(np.any(a != b) for a, b in zip(norm.get_weights()[2:], before[name], strict=True))
        for name, norm in norms.items()
    }
    assert moved == {"block0_norm": False, "block1_norm": True}
    # Out of training the statistics that moved are used, as the saved model uses them.
    images, _ = eight_images()
    np.testing.assert_allclose(
        trained(images, training=False),
        models.logits_of(model)(images, training=False),
        rtol=1e-4,
        atol=1e-4,
    )
    with pytest.raises(UserError, match=r"batch_norm_statistics: expected frozen, since"):
        fine_tune_params(batch_norm_statistics="updated", batch_norm_trainable=False)


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
    training.compile_model(stepped, parameters(epochs=3), 4)
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
    training.compile_model(model, parameters(average_decay=0.9), 4)
    inner = model.optimizer.inner_optimizer
    assert int(inner.iterations.numpy()) == 0
    averages = inner._model_variables_moving_average
    for variable, average in zip(model.trainable_variables, averages, strict=True):
        np.testing.assert_array_equal(average.numpy(), variable.numpy())


def test_warm_up_that_never_ends_is_refused():
    changes = {"schedule": "cosine", "epochs": 4, "warmup_epochs": 5.0}
    assert error_of("train_head", changes) == (
        "params.yaml, train_head.warmup_epochs: expected at most 4 (epochs), received 5.0; the "
        "rate would not have risen when training ends"
    )
    assert parameters(schedule="cosine", epochs=4, warmup_epochs=4.0).warmup_epochs == 4


def test_an_average_goes_on_after_an_interruption(tmp_path):
    data = tf.data.Dataset.from_tensor_slices(two_blobs()).batch(8)
    given = parameters(average_decay=0.9, early_stopping_patience=3)
    whole = small_model()
    fit(whole, tmp_path / "whole", average_decay=0.9, early_stopping_patience=3)
    broken = small_model()
    training.compile_model(broken, given, 4)
    with pytest.raises(ValueError, match="stopped"):
        _fit_until_input_ends(broken, given, list(data.repeat(2)), data, tmp_path / "resumed")
    resumed = small_model()
    fit(resumed, tmp_path / "resumed", average_decay=0.9, early_stopping_patience=3)
    for expected, actual in zip(whole.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_array_equal(expected, actual)


def test_a_budget_ends_training_and_brings_the_rate_down(tmp_path, monkeypatch):
    seconds = iter(np.arange(0, 10_000, 0.5))
    monkeypatch.setattr(training.time, "perf_counter", lambda: float(next(seconds)))
    history = fit(small_model(), tmp_path, epochs=1000, schedule="cosine", seconds_budget=60.0)
    assert 1 < len(history) < 100
    rates = [row["learning_rate"] for row in history]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 0.01 * rates[0] < rates[0] <= 0.01


class Clock:
    """In place of the time: each look at it takes a moment, all else is passed by hand."""

    def __init__(self, monkeypatch, moment: float = 1e-3):
        self.now, self.moment = 0.0, moment
        monkeypatch.setattr(training.time, "perf_counter", self)

    def __call__(self) -> float:
        self.now += self.moment
        return self.now


def test_no_epoch_begins_where_validation_used_the_budget_up(tmp_path, monkeypatch, capsys):
    clock, (features, one_hot) = Clock(monkeypatch), two_blobs()

    def validate():
        clock.now += 60
        yield features, one_hot

    signature = (tf.TensorSpec((None, 4)), tf.TensorSpec((None, 2)))
    slow = tf.data.Dataset.from_generator(validate, output_signature=signature)
    slow = slow.apply(tf.data.experimental.assert_cardinality(1))
    given = {"epochs": 1000, "schedule": "cosine", "seconds_budget": 100.0}
    assert len(fit(small_model(), tmp_path, make_validation=slow, **given)) == 2
    assert capsys.readouterr().out.count("stopped at the end of seconds_budget") == 1


def test_the_rate_of_an_epoch_that_a_budget_cuts_counts_the_steps_that_were_done(
    tmp_path, monkeypatch, capsys
):
    Clock(monkeypatch, moment=1.0)  # looked at once before a step of 8 images and twice after it
    fit(small_model(), tmp_path, epochs=1000, schedule="constant", seconds_budget=3.0)
    (shown,) = re.findall(r"epoch 1/1000: .*, (\d+) images/s", capsys.readouterr().out)
    assert 1 <= int(shown) <= 4  # of the whole epoch it would be 32 images in these seconds


def test_the_schedule_ends_with_the_epochs_where_these_end_first(tmp_path):
    history = fit(small_model(), tmp_path, schedule="cosine", seconds_budget=1e6)
    assert len(history) == 4
    assert history[-1]["learning_rate"] < 0.02 * 0.01


def test_a_constant_rate_stays_within_a_budget(tmp_path):
    budget = training._Budget(tmp_path / "seconds.txt", parameters(seconds_budget=9.0), False)
    budget.seconds = 8.0
    assert budget.rate(100, 10) == 0.01


def test_a_resumed_budget_goes_on_from_the_seconds_and_the_rate_it_had(tmp_path, monkeypatch):
    clock, data = Clock(monkeypatch, moment=1.0), tf.data.Dataset.from_tensor_slices(two_blobs())
    data = data.batch(8)
    given = {"epochs": 1000, "schedule": "cosine", "seconds_budget": 200.0, "warmup_epochs": 1.0}
    model = small_model()
    training.compile_model(model, parameters(**given), 4)
    with pytest.raises(ValueError, match="stopped"):
        _fit_until_input_ends(
            model, parameters(**given), list(data.repeat(3)), data, tmp_path / "backup"
        )
    used, begin, end = map(float, (tmp_path / "backup" / "seconds.txt").read_text().split())
    assert 20 < used < 100
    assert 0 < begin < end < 0.2
    clock.now = started = 10_000.0  # another process
    history = fit(small_model(), tmp_path, **given)
    assert clock.now - started == pytest.approx(200 - used, abs=20)
    rates = [row["learning_rate"] for row in history]
    assert np.diff(rates[1:]).max() < 0  # no second warm-up, and no step back


def test_a_spent_budget_whose_epoch_was_not_kept_begins_anew(tmp_path, monkeypatch):
    """The disk is full when the backup is written; untrained weights must not pass for a model."""
    keep, spent = training._backup_callback, {"schedule": "cosine", "seconds_budget": 1e-3}

    def failing(*arguments, **keys):
        callback = keep(*arguments, **keys)

        def full():
            raise OSError("No space left on device")

        callback._save_model = full
        return callback

    monkeypatch.setattr(training, "_backup_callback", failing)
    with pytest.raises(OSError, match="No space left"):
        fit(small_model(), tmp_path, **spent)
    monkeypatch.setattr(training, "_backup_callback", keep)
    again = small_model()
    before = again.get_weights()
    assert len(fit(again, tmp_path, **spent)) == 1
    assert np.abs(again.get_weights()[0] - before[0]).max() > 1e-3


def test_a_budget_counts_what_was_used_before_an_interruption(tmp_path):
    path, given = tmp_path / "seconds.txt", parameters(schedule="cosine", seconds_budget=100.0)
    path.write_text("60.0 0.01 0.1")
    assert training._Budget(path, given, resumed=True).seconds == 60
    assert training._Budget(path, given, resumed=False).seconds == 0
    path.write_text("100.5 0.01 0.1")
    assert training._Budget(path, given, resumed=True).spent


def write_blobs(folder: Path) -> Path:
    """Shards of the two classes in train/ and valid/ below `folder`, 32 images each."""
    features, one_hot = two_blobs()
    for split in ("train", "valid"):
        records = [(row, int(one_hot[n].argmax()), f"{n}") for n, row in enumerate(features)]
        shards.write_all(folder / split, records, "float32", ["no", "yes"])
    return folder


def test_an_average_that_a_budget_cuts_short_is_told_of_at_the_end(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    given = parameters(epochs=1000, seconds_budget=1e-3, average_decay=0.99)
    data = write_blobs(tmp_path / "data")
    training.train("toy", small_model(), given, data=data, seed=0, save=lambda _: None)
    assert "average_decay 0.99: after 4 steps 96 %" in capsys.readouterr().out


def test_numbers_that_the_schedule_does_not_read_are_told_of():
    told = training.describe_what_has_no_effect
    assert told(parameters(warmup_epochs=2.0)) == [
        "warmup_epochs 2: without effect, since schedule is constant, not cosine"
    ]
    (sentence,) = told(parameters(schedule="cosine", warmup_epochs=2.0, decay_per_step=0.5))
    assert sentence.startswith("decay_per_step 0.5: without effect, since schedule is cosine")
    assert told(parameters(schedule="inverse_time", decay_per_step=0.5)) == []


def test_an_average_that_a_short_run_does_not_fill_is_told_of():
    short = training.describe_average(parameters(average_decay=0.99), 60)
    assert short.startswith("average_decay 0.99: after 60 steps 55 % of the averaged weights")
    assert "at 0.951 or less, or with more epochs, 5 % would be" in short
    assert training.describe_average(parameters(average_decay=0.99), 1600) is None
    assert training.describe_average(parameters(), 1) is None


@pytest.mark.parametrize("steps", [1, 40, 300, 1000, 30_000])
def test_the_average_that_is_advised_is_filled(steps):
    advice = training.describe_average(parameters(average_decay=0.999999), steps)
    decay = float(re.search(r"; at ([0-9.e-]+) or less", advice)[1])
    assert decay < 1
    assert training.describe_average(parameters(average_decay=decay), steps) is None
    more = decay + 0.2 * (1 - decay)
    assert training.describe_average(parameters(average_decay=more), steps) is not None


@pytest.mark.parametrize(("warmup_epochs", "expected"), [(0.1, 4), (1000.0, 11)])
def test_a_budget_has_room_for_warm_up_and_cosine(tmp_path, warmup_epochs, expected):
    """A warm-up longer than the budget takes a tenth; where it ends the rate is the whole one."""
    given = parameters(
        epochs=1000, schedule="cosine", seconds_budget=100.0, warmup_epochs=warmup_epochs
    )
    budget = training._Budget(tmp_path / "seconds.txt", given, resumed=False)
    rates = []
    for step in range(101):  # of a second each, 40 to an epoch
        budget.seconds = float(step)
        rates.append(budget.rate(step, 40))
    top = int(np.argmax(rates))
    assert top == expected
    assert rates[top] == pytest.approx(given.learning_rate, rel=0.01)
    assert np.diff(rates[: top + 1]).min() > 0 > np.diff(rates[top:]).max()
    assert rates[0] == 0
    assert rates[-1] == pytest.approx(0, abs=1e-9)


def test_a_slow_first_step_takes_nothing_of_the_warm_up(tmp_path):
    """It builds the graph, which may take more than the tenth of a short budget."""
    given = parameters(epochs=1000, schedule="cosine", seconds_budget=100.0, warmup_epochs=1000.0)
    budget = training._Budget(tmp_path / "seconds.txt", given, resumed=False)
    rates = []
    for step, seconds in enumerate((0, 30, 35, 40, 41)):
        budget.seconds = float(seconds)
        rates.append(budget.rate(step, 40) / given.learning_rate)
    assert rates == pytest.approx([0, 0, 0.5, 1, 1], abs=0.03)


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
    training.compile_model(broken, given, 4)
    with pytest.raises(ValueError, match="stopped"):
        _fit_until_input_ends(broken, given, list(data.repeat(2)), data, tmp_path / "resumed")
    resumed = small_model()
    fit(resumed, tmp_path / "resumed", averaged_epochs=3)
    for expected, actual in zip(whole.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_array_equal(expected, actual)


def test_images_are_smaller_where_an_epoch_says_so_and_whole_out_of_training(toy_classifier):
    model = toy_classifier("linear")
    sizes = fine_tune_params(image_sizes=[[2, 16], [4, 32]]).image_sizes
    trained = models.training_model(model, keras.layers.Identity(), [32, 32, 3], image_sizes=sizes)
    images, _ = eight_images()
    whole = model.get_layer("head")(
        tf.reduce_mean(model.get_layer("backbone")(images, training=False), axis=(1, 2))
    )
    # The same weights behind an input of 16 pixels.
    smaller = backbones.build("tiny", None, 16)
    smaller.set_weights(model.get_layer("backbone").get_weights())
    maps = smaller(tf.image.resize(images, (16, 16), antialias=True), training=False)
    of_smaller = model.get_layer("head")(tf.reduce_mean(maps, axis=(1, 2)))
    for epoch, expected in ((1, whole), (2, of_smaller), (3, of_smaller), (4, whole)):
        trained.begin_epoch(epoch)
        received = trained(images, training=True)
        np.testing.assert_allclose(received, expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(trained(images, training=False), whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["dense", "residual"])
def test_layers_of_several_depths_train_on_smaller_images(kind):
    backbone = models.at_layers(
        models.with_any_size(backbones.build("tiny", None, 32)), ["block0_relu", "block1_relu"]
    )
    channels = [feature_map.shape[-1] for feature_map in backbone.output]
    shape = (8, 8, sum(channels)) if kind == "residual" else (sum(channels),)
    head = heads.build(kind, shape, 3, hidden_units=[8], dropout=0.0)
    model = models.assemble(backbone, head)
    trained = models.training_model(
        model, keras.layers.Identity(), [32, 32, 3], image_sizes=[(1, 16), (2, 32)]
    )
    training.compile_model(trained, fine_tune_params(image_sizes=[[1, 16], [2, 32]]), 4)
    images, labels = eight_images()
    for epoch in (1, 2):
        trained.begin_epoch(epoch)
        assert np.isfinite(trained.train_on_batch(images, labels)[0])


def test_a_network_of_one_size_says_that_it_is_one(toy_classifier):
    model = toy_classifier("linear")
    images = keras.Input((32, 32, 3))
    flat = keras.layers.Dense(16)(keras.layers.Flatten()(images))
    backbone = keras.Model(images, keras.layers.Reshape((1, 1, 16))(flat), name="backbone")
    fixed = models.assemble(models.with_any_size(backbone), model.get_layer("head"))
    with pytest.raises(UserError, match=r"image_sizes: this network, of 32 pixels, or its"):
        models.training_model(fixed, keras.layers.Identity(), [32, 32, 3], image_sizes=[(1, 16)])


def test_a_head_that_needs_larger_maps_says_so_before_it_trains(toy_classifier):
    model = toy_classifier("conv")  # 7 by 7 on 8 by 8
    with pytest.raises(UserError, match=r"image_sizes: this network.*or its head does not take"):
        models.training_model(model, keras.layers.Identity(), [32, 32, 3], image_sizes=[(1, 16)])


@pytest.mark.parametrize(
    ("shape", "crop_area", "side"),
    [
        ([300, 300, 3], 0.6, 300),
        ([32, 32, 3], 1.0, 32),
        # Crops are cut from all pixels that are there, whatever the pictures' shapes.
        ([240, 300, 3], 0.6, 300),
        (None, 0.6, 300),
        (None, 1.0, 192),
    ],
)
def test_training_images_come_as_squares(shape, crop_area, side):
    assert training_side(shape, 192, 300, crop_area) == side


@pytest.mark.parametrize(
    ("image_sizes", "expected"),
    [(None, 192), ([(1, 160)], 160), ([(1, 128), (4, 176)], 176), ([(3, 96)], 192)],
)
def test_the_largest_side_that_training_sees(image_sizes, expected):
    assert largest_side(image_sizes, 192) == expected


def test_training_at_two_sizes_lowers_the_loss(toy_classifier, tmp_path):
    model = toy_classifier("linear")
    trained = models.training_model(
        model,
        keras.layers.Identity(),
        [32, 32, 3],
        image_sizes=[(1, 16), (3, 32)],
    )
    given = parameters(learning_rate=0.003, epochs=6)
    images, labels = eight_images()
    data = tf.data.Dataset.from_tensor_slices((images, labels)).batch(8)
    training.compile_model(trained, given, 1)
    history = training.fit(
        trained,
        given,
        make_training_batches=lambda first: data.repeat(given.epochs - first),
        validation_batches=data,
        images_per_epoch=8,
        backup=tmp_path / "backup",
    )
    assert history[-1]["val_loss"] < history[0]["val_loss"]
