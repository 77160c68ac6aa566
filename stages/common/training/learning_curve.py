"""The learning curve: a row an epoch, kept while training goes on, and signs of life between."""

import csv
import math
import time
from collections.abc import Sequence
from pathlib import Path

from stages.common import tables
from stages.common.run import UserError

REPORT_SECONDS = 10  # between two signs of life within an epoch, which may take an hour
COLUMNS = ("epoch", "learning_rate", "loss", "accuracy", "val_loss", "val_accuracy")


def check_finite(epoch: int, loss: float, validation_loss: float | None = None) -> None:
    """UserError where a loss is no finite number; None: there is none yet."""
    if not math.isfinite(loss + (validation_loss or 0.0)):
        validated = (
            "" if validation_loss is None else f", on the validation split {validation_loss}"
        )
        raise UserError(
            f"training diverged: the loss of epoch {epoch} is {loss}{validated}; lower the "
            "stage's learning_rate, or set its clip_norm"
        )


class LearningCurve:
    """The rows of the learning curve, kept in a CSV file while training goes on."""

    def __init__(self, path: Path, epochs_done: int):
        """Begins with the rows of as many epochs, those of the backup."""
        self.path, self.rows = path, []
        if epochs_done:
            with path.open(newline="", encoding="utf-8") as file:
                rows = [
                    {key: float(text) for key, text in row.items()} for row in csv.DictReader(file)
                ]
            # An epoch that was written but not backed up is trained again.
            self.rows = [{**row, "epoch": int(row["epoch"])} for row in rows[:epochs_done]]

    def add(self, row: dict[str, float]) -> None:
        self.rows.append(row)
        write(self.path, self.rows)

    def callback(self, images_per_epoch: int, epochs: int):
        """Adds a row at each epoch's end, and tells of the rate; of `epochs` in all."""
        import keras

        curve = self

        class LearningCurveCallback(keras.callbacks.Callback):
            def on_epoch_begin(self, epoch, logs=None):
                self.epoch = epoch + 1
                self.started = self.reported = time.perf_counter()

            def on_train_batch_end(self, batch, logs=None):
                self.steps = batch + 1  # fewer than an epoch has where a budget ends within it
                if (now := time.perf_counter()) - self.reported > REPORT_SECONDS:
                    self.reported = now
                    check_finite(self.epoch, logs["loss"])
                    print(
                        f"epoch {self.epoch}/{epochs}, step {self.steps}/{self.params['steps']}: "
                        f"loss {logs['loss']:.4f}, {self.rate(now):.0f} images/s",
                        flush=True,
                    )

            def rate(self, now: float) -> float:
                images = self.steps / self.params["steps"] * images_per_epoch
                return images / (now - self.started)

            def on_test_begin(self, logs=None):
                self.trained = time.perf_counter()

            def on_epoch_end(self, epoch, logs=None):
                check_finite(epoch + 1, logs["loss"], logs["val_loss"])
                rate = float(self.model.optimizer.learning_rate.numpy())
                curve.add({"epoch": epoch + 1, "learning_rate": rate, **logs})
                print(
                    f"epoch {epoch + 1}/{epochs}: loss {logs['loss']:.4f}, "
                    f"accuracy {logs['accuracy']:.4f}, validation loss {logs['val_loss']:.4f}, "
                    f"accuracy {logs['val_accuracy']:.4f}, "
                    f"{self.rate(self.trained):.0f} images/s",
                    flush=True,
                )

        return LearningCurveCallback()


def write(path: Path, rows: Sequence[dict[str, float]]) -> None:
    """One row an epoch, as `loop.fit` returns them."""
    values = [[row[name] for name in COLUMNS] for row in rows]
    tables.write_csv(path, COLUMNS, values)
