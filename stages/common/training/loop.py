"""The loop of both training stages, which an interruption costs one epoch at most."""

import functools
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from stages.common import calibration, device_shares, inference, paths, shards
from stages.common.training import backups, learning_curve, optimizers
from stages.common.training.best_weights import BestWeights
from stages.common.training.parameters import TrainingParams
from stages.common.training.time_budget import Budget


def with_one_hot(dataset, classes: int, weigh=None):
    """(arrays, labels, ids) batches as (arrays, one-hot labels (batch, classes) float32).

    With `weigh`, a function from labels and ids to weights (batch,) float32, these come third:
    Keras multiplies each image's loss by its weight and divides the sum by the number of images.
    """
    import tensorflow as tf

    def convert(arrays, labels, ids):
        one_hot = tf.one_hot(labels, classes)
        return (arrays, one_hot) if weigh is None else (arrays, one_hot, weigh(labels, ids))

    return dataset.map(convert, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


def train(
    stage: str,
    model,
    parameters: TrainingParams,
    *,
    data: Path,
    seed: int,
    save: Callable[[float], None],
    inputs: Sequence[Any] = (),
    image_weights=None,
    image_size: int | None = None,
    rate_factors: Callable[[int], Sequence[float]] | None = None,
    steps_per_execution: int = 1,
    prepare=lambda batches, first_batch: batches,
    team=None,
) -> None:
    """Trains a model that gives logits, writes its learning curve and fits its temperature.

    Args:
        stage: names the curve, plots/<stage>/history.csv, and the backup.
        model: not compiled; leaves trained.
        parameters: the stage's section.
        data: shards of the model's inputs in train/ and valid/.
        seed: of the order of the training images.
        save: keeps the trained model, given its temperature. The backup stays: between the end of a
            stage and DVC's own copy of what it wrote a run may be stopped too. `backups.forget`
            removes it; in a team it goes here.
        inputs: files and settings besides `data` and the params on which the result depends; a run
            resumes with equal ones.
        image_weights: a weights.ImageWeights, for the training images only; None: all equal.
        image_size: side in pixels of the squares that images become, unless all are of one square's
            shape already; None: the arrays are no images.
        rate_factors, steps_per_execution: see `optimizers.compile_model`.
        prepare: from a dataset of (arrays, labels, ids) batches and the number of its first one,
            counted over all epochs, to the dataset that the model takes.
        team: a workers.Team, where several boxes train together; the first then saves, and writes
            the learning curve. None: this box alone.
    """
    index, validation_index = (shards.read_index(data / split) for split in ("train", "valid"))
    classes = len(index.class_names)
    weigh = None if image_weights is None else image_weights.function()
    steps_per_epoch = -(-index.count // parameters.batch_size)
    optimizers.compile_model(model, parameters, steps_per_epoch, rate_factors, steps_per_execution)
    too_slow = optimizers.describe_average(parameters, parameters.epochs * steps_per_epoch)
    without_effect = optimizers.describe_what_has_no_effect(parameters)
    for sentence in (*without_effect, *filter(None, [too_slow])):
        print(sentence, flush=True)

    part = shards.ALL if team is None else team.part

    def for_devices(batches, images: int):
        # A team parts them by itself.
        if team is not None:
            return batches
        return device_shares.on_all_devices(batches, images, parameters.batch_size)

    def make_training_batches(first_epoch: int):
        batches = shards.training_batches(
            data / "train",
            parameters.batch_size,
            seed=seed,
            first_epoch=first_epoch,
            epochs=parameters.epochs,
            image_size=image_size,
            squares=image_size is not None,
            part=part,
        )
        prepared = prepare(batches, first_epoch * steps_per_epoch)
        return for_devices(with_one_hot(prepared, classes, weigh), index.count)

    def validation(part: shards.Part = shards.ALL):
        batches = shards.batches(
            data / "valid",
            parameters.batch_size,
            image_size=image_size,
            squares=image_size is not None,
            part=part,
        )
        return prepare(batches, 0)

    name = backups.fingerprint(parameters, seed, index.sha256, validation_index.sha256, *inputs)
    backup = backups.folder_of(stage if team is None else team.backup_name(stage), name)
    # Before data is parted: of too few images some would get none.
    team_loop = None if team is None else team.loop(name, index.count, validation_index.count)
    history = fit(
        model,
        parameters,
        make_training_batches=make_training_batches,
        validation_batches=for_devices(
            with_one_hot(validation(part), classes), validation_index.count
        ),
        images_per_epoch=index.count,
        backup=backup,
        team_loop=team_loop,
    )
    # A budget of seconds, or early stopping, may leave fewer steps than there might have been.
    steps = len(history) * steps_per_epoch
    if not too_slow and (late := optimizers.describe_average(parameters, steps)):
        print(late, flush=True)
    if team is None or team.is_chief:
        learning_curve.write(paths.PLOTS / stage / "history.csv", history)
        logits, labels, _ = inference.predict(
            model, validation(), validation_index.count, "calibrate"
        )
        temperature = calibration.fit_temperature(logits, labels)
        print(f"temperature {temperature:.3f}")
        save(temperature)
        backups.finish(backup)
    if team is not None:
        team.meet()  # a backup goes when all have the last epoch, and the first has saved it
        shutil.rmtree(backup)


def fit(
    model,
    parameters: TrainingParams,
    *,
    make_training_batches,
    validation_batches,
    images_per_epoch: int,
    backup: Path,
    team_loop=None,
) -> list[dict[str, float]]:
    """Trains to the last epoch, from the last one that was backed up.

    Args:
        model: compiled; leaves with its final weights: with `averaged_epochs` the mean of those of
            so many best epochs by validation loss, a uniform soup of one run (Wortsman et al.
            2022); else with `early_stopping_patience` those of the best epoch.
        parameters: epochs, batch size, patience.
        make_training_batches: first epoch to a dataset of all the batches from there on.
        validation_batches: the validation split.
        images_per_epoch: for the number of steps and the rate that is shown.
        backup: this configuration's folder, see `backups.folder_of`; stays.
        team_loop: a workers.Loop, in place of Keras' own `fit`; None: that.

    Returns:
        One row an epoch, those before an interruption included: epoch (from 1), learning_rate,
        loss, accuracy, val_loss, val_accuracy.
    """
    backup.mkdir(parents=True, exist_ok=True)
    if team_loop is not None:
        agreed = team_loop.agreed_epoch(backups.kept_epochs(backup))
        backups.forget_epochs_after(backup, agreed)
    first_epoch, latest_folder = backups.latest(backup)
    curve = learning_curve.LearningCurve(backup / "history.csv", first_epoch)
    best = BestWeights(backup, parameters, curve)
    budget = Budget(backup / "seconds.txt", parameters, resumed=first_epoch > 0)
    averages = optimizers.average_callbacks() if parameters.average_decay is not None else []
    steps_per_epoch = -(-images_per_epoch // parameters.batch_size)
    if first_epoch:
        print(f"resumed after epoch {first_epoch} of {parameters.epochs}", flush=True)
    if first_epoch < parameters.epochs and not best.exhausted and not budget.spent:
        (model.fit if team_loop is None else functools.partial(team_loop.fit, model))(
            make_training_batches(first_epoch),
            epochs=parameters.epochs,
            steps_per_epoch=steps_per_epoch,
            validation_data=validation_batches,
            # In this order: what resumes reads the history and the best weights that were
            # complete when the backup was made.
            callbacks=[
                epoch_seeds_callback(*(() if team_loop is None else team_loop.place)),
                begin_epoch_callback(model),
                *averages[:1],
                curve.callback(images_per_epoch, parameters.epochs),
                best.callback(),
                *averages[1:],
                *budget.callbacks(steps_per_epoch),
                # One worker may be killed before its backup of an epoch, another after.
                backups.callback(backup, kept=1 if team_loop is None else 2),
            ],
            shuffle=False,  # the batches come shuffled
            verbose=0,
        )
    elif first_epoch:
        model.load_weights(latest_folder / "latest.weights.h5")
        # As Keras' fit does at its end: puts the average of the weights in their place.
        model.optimizer.finalize_variable_values(model.trainable_variables)
    best.restore(model)
    for variable in model.trainable_variables:  # a mean of weights need not be of length 1
        if variable.constraint is not None:
            variable.assign(variable.constraint(variable))
    return curve.rows


def epoch_seeds_callback(worker: int = 0, workers: int = 1):
    """Makes the randomness of an epoch (dropout, augmentation) follow from seed and epoch alone.

    Keras saves no state of its seed generators, so that a resumed run would draw the first epoch's
    numbers again. Their state is (seed, counter); an epoch draws far fewer than 2²⁰ times. Each
    device, of each of several workers, has numbers of its own: TensorFlow gives all the same.
    """
    import keras

    class EpochSeeds(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            for variable in self.model.non_trainable_variables:
                if variable.path.endswith("seed_generator_state"):
                    seed = int(variable.numpy()[0])
                    of_devices = getattr(variable.value, "values", [variable.value])
                    place = (epoch * workers + worker) * len(of_devices)
                    for device, state in enumerate(of_devices):
                        state.assign([seed, (place + device << 20) % 2**32])

    return EpochSeeds()


def begin_epoch_callback(model):
    """Tells which epoch begins, from 1, whatever follows from it: a model, its optimizer."""
    import keras

    told = [
        part for part in (model, optimizers.inner_optimizer(model)) if hasattr(part, "begin_epoch")
    ]

    def begin(epoch, logs):
        for part in told:
            part.begin_epoch(epoch + 1)

    return keras.callbacks.LambdaCallback(on_epoch_begin=begin)
