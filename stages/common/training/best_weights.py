"""Early stopping, and the weights of the best epochs."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from stages.common import files
from stages.common.training.learning_curve import LearningCurve
from stages.common.training.parameters import TrainingParams


class BestWeights:
    """Early stopping and the mean of the best epochs, with a memory that survives a kill.

    It is all in the learning curve and a file for each of the best epochs. Keras' EarlyStopping
    keeps its best weights and its patience in the process alone.
    """

    def __init__(self, folder: Path, parameters: TrainingParams, curve: LearningCurve):
        self._folder, self._curve = folder, curve
        self._patience = parameters.early_stopping_patience
        self._count = parameters.averaged_epochs or (0 if self._patience is None else 1)

    @property
    def _losses(self) -> list[float]:
        return [row["val_loss"] for row in self._curve.rows]

    @property
    def exhausted(self) -> bool:
        """Whether validation loss has not improved for `patience` epochs."""
        if self._patience is None or not self._losses:
            return False
        return len(self._losses) - 1 - int(np.argmin(self._losses)) >= self._patience

    def _best(self, losses: Sequence[float]) -> set[Path]:
        """The files of the best of these epochs; of equal ones the earlier."""
        order = np.argsort(losses, kind="stable")[: self._count]
        return {self._folder / f"best-{epoch + 1:06}.weights.h5" for epoch in order}

    def callback(self):
        """Keeps the best epochs' weights, and ends training where patience is at its end."""
        import keras

        best = self

        class BestWeightsCallback(keras.callbacks.Callback):
            def on_epoch_end(self, epoch, logs=None):
                losses = best._losses
                kept = best._best(losses)
                path = best._folder / f"best-{epoch + 1:06}.weights.h5"
                if path in kept:
                    with files.replacing(path) as new:
                        self.model.save_weights(new, overwrite=True)
                # A kill from here on goes back by one epoch: its best ones stay as well.
                for other in set(best._folder.glob("best-*")) - kept - best._best(losses[:-1]):
                    other.unlink()
                if best.exhausted:
                    self.model.stop_training = True
                    print(f"stopped early: epoch {np.argmin(losses) + 1} was best")

        return BestWeightsCallback()

    def restore(self, model) -> None:
        """Puts the mean of the best epochs into a model."""
        best = sorted(self._best(self._losses))
        if not best:
            return
        means = None
        for number, path in enumerate(best, start=1):
            model.load_weights(path)
            weights = [variable.numpy().astype(np.float64) for variable in model.weights]
            means = (
                weights
                if means is None
                else [
                    mean + (weight - mean) / number
                    for mean, weight in zip(means, weights, strict=True)
                ]
            )
        if len(best) > 1:
            for variable, mean in zip(model.weights, means, strict=True):
                if np.issubdtype(variable.numpy().dtype, np.floating):  # no seed generators
                    variable.assign(mean)
