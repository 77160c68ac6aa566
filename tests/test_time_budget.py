import re
import time

import numpy as np
import pytest
import tensorflow as tf

from stages.common.training import backups, optimizers, time_budget
from tests.training_toys import fit, fit_until_input_ends, parameters, small_model, two_blobs


def test_a_budget_ends_training_and_brings_the_rate_down(tmp_path, monkeypatch):
    seconds = iter(np.arange(0, 10_000, 0.5))
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(seconds)))
    history = fit(small_model(), tmp_path, epochs=1000, schedule="cosine", seconds_budget=60.0)
    assert 1 < len(history) < 100
    rates = [row["learning_rate"] for row in history]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 0.01 * rates[0] < rates[0] <= 0.01


class Clock:
    """In place of the time of all modules: a look at it takes a moment, all else is by hand."""

    def __init__(self, monkeypatch, moment: float = 1e-3):
        self.now, self.moment = 0.0, moment
        monkeypatch.setattr(time, "perf_counter", self)

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
    budget = time_budget.Budget(tmp_path / "seconds.txt", parameters(seconds_budget=9.0), False)
    budget.seconds = 8.0
    assert budget.rate(100, 10) == 0.01


def test_a_resumed_budget_goes_on_from_the_seconds_and_the_rate_it_had(tmp_path, monkeypatch):
    clock, data = Clock(monkeypatch, moment=1.0), tf.data.Dataset.from_tensor_slices(two_blobs())
    data = data.batch(8)
    given = {"epochs": 1000, "schedule": "cosine", "seconds_budget": 200.0, "warmup_epochs": 1.0}
    model = small_model()
    optimizers.compile_model(model, parameters(**given), 4)
    with pytest.raises(ValueError, match="stopped"):
        fit_until_input_ends(
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
    keep, spent = backups.callback, {"schedule": "cosine", "seconds_budget": 1e-3}

    def failing(*arguments, **keys):
        callback = keep(*arguments, **keys)

        def full():
            raise OSError("No space left on device")

        callback._save_model = full
        return callback

    monkeypatch.setattr(backups, "callback", failing)
    with pytest.raises(OSError, match="No space left"):
        fit(small_model(), tmp_path, **spent)
    monkeypatch.setattr(backups, "callback", keep)
    again = small_model()
    before = again.get_weights()
    assert len(fit(again, tmp_path, **spent)) == 1
    assert np.abs(again.get_weights()[0] - before[0]).max() > 1e-3


def test_a_budget_counts_what_was_used_before_an_interruption(tmp_path):
    path, given = tmp_path / "seconds.txt", parameters(schedule="cosine", seconds_budget=100.0)
    path.write_text("60.0 0.01 0.1")
    assert time_budget.Budget(path, given, resumed=True).seconds == 60
    assert time_budget.Budget(path, given, resumed=False).seconds == 0
    path.write_text("100.5 0.01 0.1")
    assert time_budget.Budget(path, given, resumed=True).spent


@pytest.mark.parametrize(("warmup_epochs", "expected"), [(0.1, 4), (1000.0, 11)])
def test_a_budget_has_room_for_warm_up_and_cosine(tmp_path, warmup_epochs, expected):
    """A warm-up longer than the budget takes a tenth; where it ends the rate is the whole one."""
    given = parameters(
        epochs=1000, schedule="cosine", seconds_budget=100.0, warmup_epochs=warmup_epochs
    )
    budget = time_budget.Budget(tmp_path / "seconds.txt", given, resumed=False)
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
    budget = time_budget.Budget(tmp_path / "seconds.txt", given, resumed=False)
    rates = []
    for step, seconds in enumerate((0, 30, 35, 40, 41)):
        budget.seconds = float(seconds)
        rates.append(budget.rate(step, 40) / given.learning_rate)
    assert rates == pytest.approx([0, 0, 0.5, 1, 1], abs=0.03)
