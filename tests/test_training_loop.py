import keras
import numpy as np
import pytest
import tensorflow as tf

from stages.common import augment, shards
from stages.common.training import backups, loop, optimizers
from tests.training_toys import (
    fit,
    fit_until_input_ends,
    parameters,
    small_model,
    two_blobs,
    write_blobs,
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
    optimizers.compile_model(interrupted, given, 4)
    # The input breaks in the middle of the third epoch.
    broken = data.repeat(4).take(10)
    with pytest.raises(ValueError, match="stopped"):
        fit_until_input_ends(interrupted, given, broken, data, tmp_path / "backup")
    resumed = small_model()
    resumed_history = fit(resumed, tmp_path, schedule="cosine", warmup_epochs=1.0)
    assert [row["epoch"] for row in resumed_history] == [1, 2, 3, 4]
    for expected, actual in zip(whole.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_array_equal(expected, actual)
    assert [row["loss"] for row in resumed_history] == [row["loss"] for row in history]


def test_train_numbers_batches_over_epochs_and_resumes_with_equal_data_only(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    features, one_hot = two_blobs()
    labels = one_hot.argmax(axis=1)
    first_batches, folders = [], []

    def fit_nothing(_model, _parameters, *, make_training_batches, backup, **_keys):
        make_training_batches(2)
        folders.append(backup)
        raise StopIteration

    def prepare(batches, first_batch):
        first_batches.append(first_batch)
        return batches

    monkeypatch.setattr(loop, "fit", fit_nothing)
    # Eight images a batch: four batches an epoch, of 32 images.
    for edited, value in ((None, 0), (None, 0), ("train", 9), ("valid", 9)):
        for split in ("train", "valid"):
            rows = features + (value if split == edited else 0)
            records = ((row, int(labels[n]), f"{n}") for n, row in enumerate(rows))
            shards.write_all(tmp_path / "data" / split, records, "float32", ["no", "yes"])
        with pytest.raises(StopIteration):
            loop.train(
                "toy",
                small_model(),
                parameters(),
                data=tmp_path / "data",
                seed=0,
                save=pytest.fail,
                prepare=prepare,
            )
    assert first_batches == [0, 2 * 4] * 4
    plain, again, other_train, other_valid = folders
    assert plain == again
    assert len({plain, other_train, other_valid}) == 3


@pytest.mark.parametrize("average_decay", [None, 0.9])
def test_what_could_not_be_saved_is_not_trained_again(tmp_path, monkeypatch, capsys, average_decay):
    monkeypatch.chdir(tmp_path)
    data, given = write_blobs(tmp_path / "data"), parameters(average_decay=average_decay)
    models, temperatures = [small_model(), small_model()], []

    def train(model, save):
        loop.train("toy", model, given, data=data, seed=0, save=save)

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
    backups.forget("toy")
    assert not list((tmp_path / ".backup").glob("*/*"))


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
    loop.train(
        "toy",
        model,
        parameters(epochs=1),
        data=tmp_path / "data",
        seed=0,
        save=saved.append,
        image_size=16,
    )
    assert len(saved) == 1


def test_an_average_that_a_budget_cuts_short_is_told_of_at_the_end(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    given = parameters(epochs=1000, seconds_budget=1e-3, average_decay=0.99)
    data = write_blobs(tmp_path / "data")
    loop.train("toy", small_model(), given, data=data, seed=0, save=lambda _: None)
    assert "average_decay 0.99: after 4 steps 96 %" in capsys.readouterr().out
