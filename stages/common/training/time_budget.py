"""The seconds that a training stage may take, and the learning rate that follows from them."""

import math
import time
from pathlib import Path

from stages.common import files
from stages.common.training.parameters import TrainingParams

LONGEST_WARM_UP = 0.1  # part of seconds_budget, since an epoch may take longer than all of it


class Budget:
    """The seconds that training may take, those before an interruption included.

    The schedule is fitted to them: its position is the part of the budget that is used, or that of
    the epochs where these end earlier; the warm-up takes a tenth at most, the first step, which
    builds the graph, not counted. A clock decides when training ends, so that two runs differ.
    """

    def __init__(self, path: Path, parameters: TrainingParams, resumed: bool):
        self._path, self._parameters = path, parameters
        # The file is written before the backup: where there is none, the clock begins anew too.
        kept = path.read_text().split() if resumed and path.exists() else ("0", "nan", "0")
        # The latter two are positions, from 0 to 1; the first is not known before the first step.
        self.seconds, self._warm_up_begin, self._warm_up_end = map(float, kept)

    @property
    def spent(self) -> bool:
        """Whether there is a budget and nothing of it is left."""
        budget = self._parameters.seconds_budget
        return budget is not None and self.seconds >= budget

    def rate(self, steps_done: int, steps_per_epoch: int) -> float:
        """The learning rate of the next step."""
        parameters = self._parameters
        if parameters.schedule == "constant":
            return parameters.learning_rate
        position = max(
            steps_done / (parameters.epochs * steps_per_epoch),
            self.seconds / parameters.seconds_budget,
        )
        warmup_steps = round(parameters.warmup_epochs * steps_per_epoch)
        if warmup_steps:
            if steps_done and math.isnan(self._warm_up_begin):
                self._warm_up_begin = position
            used = position - self._warm_up_begin if steps_done else 0.0
            risen = max(steps_done / warmup_steps, used / LONGEST_WARM_UP)
            if risen < 1:
                self._warm_up_end = position
                return parameters.learning_rate * risen
        done = (position - self._warm_up_end) / (1 - self._warm_up_end)
        return parameters.learning_rate * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))

    def callbacks(self, steps_per_epoch: int) -> list:
        """One that sets the rate of each step and ends training in time; none without a budget."""
        import keras

        if self._parameters.seconds_budget is None:
            return []
        budget = self

        class BudgetCallback(keras.callbacks.Callback):
            def on_train_begin(self, logs=None):
                self.started = time.perf_counter() - budget.seconds
                self.steps = 0

            def on_epoch_begin(self, epoch, logs=None):
                self.steps = self.before = epoch * steps_per_epoch

            def on_train_batch_begin(self, batch, logs=None):
                self.model.optimizer.learning_rate = budget.rate(self.steps, steps_per_epoch)

            def on_train_batch_end(self, batch, logs=None):
                self.steps = self.before + batch + 1  # the last of those of one execution
                self.stop_if_spent()

            def on_epoch_end(self, epoch, logs=None):
                self.stop_if_spent()  # validation takes time too
                numbers = (budget.seconds, budget._warm_up_begin, budget._warm_up_end)
                with files.replacing(budget._path) as new:
                    new.write_text(" ".join(map(str, numbers)))

            def stop_if_spent(self):
                budget.seconds = time.perf_counter() - self.started
                if budget.spent and not self.model.stop_training:
                    self.model.stop_training = True
                    print("stopped at the end of seconds_budget", flush=True)

        return [BudgetCallback()]
