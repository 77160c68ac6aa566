"""What the two training stages share: optimizer, schedule, loss, history, backups, temperature."""

import csv
import dataclasses
import functools
import hashlib
import itertools
import math
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from stages.common import device_shares, files, models, params, paths, shards, tables
from stages.common.run import UserError, progress

REPORT_SECONDS = 10  # between two signs of life within an epoch, which may take an hour
LONGEST_WARM_UP = 0.1  # part of seconds_budget, since an epoch may take longer than all of it
MOST_OF_THE_START = 0.05  # share of the first weights in an average that goes without a word


@params.params_dataclass
class TrainingParams:
    """The keys that `train_head` and `fine_tune` have in common."""

    optimizer: Literal["adam", "adamw", "sgd"]
    learning_rate: params.PositiveFloat
    weight_decay: params.NonNegativeFloat
    schedule: Literal["constant", "inverse_time", "cosine"]
    decay_per_step: params.NonNegativeFloat
    warmup_epochs: params.NonNegativeFloat
    label_smoothing: params.RateBelowOne
    clip_norm: Annotated[
        float | None,
        Field(gt=0, allow_inf_nan=False, description="null (no limit) or a number above 0"),
    ]
    average_decay: Annotated[
        float | None,
        Field(gt=0, lt=1, description="null (no average) or a number above 0 and below 1"),
    ]
    averaged_epochs: Annotated[
        int | None,
        Field(ge=1, description="null (no average) or a whole number of epochs, 1 or more"),
    ]
    batch_size: params.PositiveInt
    epochs: params.PositiveInt
    seconds_budget: Annotated[
        float | None,
        Field(gt=0, allow_inf_nan=False, description="null (no limit) or a number above 0"),
    ]
    early_stopping_patience: Annotated[
        int | None,
        Field(ge=1, description="null (train all epochs) or a whole number of epochs, 1 or more"),
    ]

    @model_validator(mode="after")
    def _decay_has_an_effect(self):
        if self.optimizer == "adam" and self.weight_decay:
            raise ValueError(
                f"weight_decay: expected 0 with adam, received {self.weight_decay}; "
                "choose adamw, which is adam with weight decay"
            )
        return self

    @model_validator(mode="after")
    def _warm_up_ends(self):
        warms_up = self.schedule == "cosine" and not self.seconds_budget
        if warms_up and self.warmup_epochs > self.epochs:
            raise ValueError(
                f"warmup_epochs: expected at most {self.epochs} (epochs), received "
                f"{self.warmup_epochs}; the rate would not have risen when training ends"
            )
        return self

    @model_validator(mode="after")
    def _schedule_fits_a_budget(self):
        if self.seconds_budget and self.schedule == "inverse_time":
            raise ValueError(
                "schedule: expected constant or cosine with seconds_budget, received inverse_time, "
                "whose rate follows from the number of steps alone"
            )
        return self


def batch_size_without_single(batch_size: int, images: int) -> int:
    """The least size from `batch_size` on with which the last batch is no single image.

    Where BatchNorm normalises by the batch it is that one which its statistics follow most. Batches
    of one image, where they are asked for, stay.
    """
    if 1 in (batch_size, images):
        return batch_size
    return next(size for size in itertools.count(batch_size) if images % size != 1)


def with_batch_size(parameters, batch_size: int, images: int):
    """The params of a section with this batch size; where it is another, the log says why."""
    if batch_size == parameters.batch_size:
        return parameters
    print(f"batches of {batch_size}, since the last one of {images} images would be a single image")
    return dataclasses.replace(parameters, batch_size=batch_size)


def learning_rate(parameters: TrainingParams, steps_per_epoch: int):
    """A number, or a Keras schedule of the optimizer's step.

    `constant`; `inverse_time`: rate / (1 + decay_per_step × step), the tutorial's; `cosine`: linear
    warm-up from 0 over `warmup_epochs`, then half a cosine down to 0 at the last step. With a
    budget of seconds it is a number, which `_Budget` sets.
    """
    import keras

    if parameters.schedule == "constant" or parameters.seconds_budget:
        return parameters.learning_rate
    if parameters.schedule == "inverse_time":
        return keras.optimizers.schedules.InverseTimeDecay(
            parameters.learning_rate, decay_steps=1, decay_rate=parameters.decay_per_step
        )
    warmup_steps = round(parameters.warmup_epochs * steps_per_epoch)
    total_steps = parameters.epochs * steps_per_epoch
    if not warmup_steps:
        return keras.optimizers.schedules.CosineDecay(parameters.learning_rate, total_steps)
    return keras.optimizers.schedules.CosineDecay(
        0.0,
        max(1, total_steps - warmup_steps),
        warmup_target=parameters.learning_rate,
        warmup_steps=warmup_steps,
    )


def compile_model(
    model,
    parameters: TrainingParams,
    steps_per_epoch: int,
    rate_factors: Callable[[int], Sequence[float]] | None = None,
    steps_per_execution: int = 1,
) -> None:
    """Compiles a model that gives logits, for one-hot labels.

    Weight decay is decoupled, of 'sgd' as well as 'adamw', and leaves biases and BatchNorm alone
    (Loshchilov and Hutter 2019). `clip_norm` scales all gradients of a step down together where
    their norm exceeds it (Pascanu et al. 2013), less those that a factor of 0 holds back.
    `average_decay` keeps a moving average of the weights that train (Polyak and Juditsky 1992),
    which validation and the finished model use; BatchNorm's moving statistics stay those of the
    last steps. Where layers compute in float16 the loss is scaled, so that small gradients survive
    (Micikevicius et al. 2018).

    Args:
        model: leaves compiled.
        parameters: the stage's section.
        steps_per_epoch: for the schedule.
        rate_factors: from an epoch, from 1, to what the rate of each trainable variable is
            multiplied by; None: 1.
        steps_per_execution: that follow each other without Python in between, at most: as many as
            divide an epoch into equal parts, since Keras would go beyond its end.
    """
    import keras

    kinds = {
        "adam": keras.optimizers.Adam,
        "adamw": keras.optimizers.AdamW,
        "sgd": keras.optimizers.SGD,
    }
    momentum = {"momentum": 0.9, "nesterov": True} if parameters.optimizer == "sgd" else {}
    kind = kinds[parameters.optimizer]
    if rate_factors is not None:
        kind = _with_rate_factors(kind, rate_factors)
    if parameters.clip_norm is not None:
        kind = _with_clipping_of_the_sum(kind)
    optimizer = kind(
        learning_rate(parameters, steps_per_epoch),
        **momentum,
        weight_decay=parameters.weight_decay,
        global_clipnorm=parameters.clip_norm,
        use_ema=parameters.average_decay is not None,
        ema_momentum=parameters.average_decay or 0.99,  # the latter without effect
    )
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    if any(layer.compute_dtype == "float16" for layer in models.leaf_layers(model)):
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    # Else Keras makes its variables inside the graph of the first step, which is then traced twice.
    optimizer.build(model.trainable_variables)
    model.compile(
        optimizer=optimizer,
        # With smoothing 0 this equals the sparse loss.
        loss=keras.losses.CategoricalCrossentropy(
            from_logits=True, label_smoothing=parameters.label_smoothing
        ),
        metrics=["accuracy"],  # takes every image once, whatever its weight
        # By itself Keras turns XLA on where there is a GPU and no determinism; XLA has no kernels
        # for random crops and shifts, and the first step would end in its error.
        jit_compile=False,
        steps_per_execution=_largest_divisor(steps_per_epoch, steps_per_execution),
    )
    if parameters.average_decay is not None:
        # Keras begins with zeros until the first step, which a scaled loss may skip for an epoch.
        for variable, average in _averages(model):
            average.assign(variable)


def describe_what_has_no_effect(parameters: TrainingParams) -> list[str]:
    """A sentence for each number that is given, and that the schedule does not read."""
    read_by = {"warmup_epochs": "cosine", "decay_per_step": "inverse_time"}
    return [
        f"{key} {getattr(parameters, key):g}: without effect, since schedule is "
        f"{parameters.schedule}, not {schedule}"
        for key, schedule in read_by.items()
        if getattr(parameters, key) and parameters.schedule != schedule
    ]


def describe_average(parameters: TrainingParams, steps: int) -> str | None:
    """A sentence where the average of the weights is still near where training began.

    Args:
        parameters: the stage's section.
        steps: of the whole training, at most.
    """
    decay = parameters.average_decay
    if decay is None or decay**steps <= MOST_OF_THE_START:
        return None
    # Two digits of its distance from 1, downwards: 0.997, where two digits of itself would be 1.
    largest = MOST_OF_THE_START ** (1 / steps)
    scale = 10 ** (1 - math.floor(math.log10(1 - largest)))
    advice = math.floor(largest * scale) / scale
    return (
        f"average_decay {decay}: after {steps} steps {100 * decay**steps:.0f} % of the averaged "
        f"weights are those that training began with; at {advice:g} or "
        f"less, or with more epochs, {100 * MOST_OF_THE_START:.0f} % would be"
    )


def _averages(model) -> list[tuple]:
    """Each variable that trains, and the moving average of it that the optimizer keeps."""
    averages = _inner_optimizer(model)._model_variables_moving_average
    return list(zip(model.trainable_variables, averages, strict=True))


def _largest_divisor(number: int, limit: int) -> int:
    return max(one for one in range(1, min(number, limit) + 1) if number % one == 0)


def _with_rate_factors(kind, rate_factors: Callable[[int], Sequence[float]]):
    """An optimizer class whose steps and weight decay are multiplied, variable by variable.

    Keras has MultiOptimizer, an optimizer for each part: it would clip the gradients of each part
    by themselves.
    """
    import keras
    from keras import ops

    # Variables, since a compiled step reads a number once; not the optimizer's, since they follow
    # from the epoch and need no backup.
    factors = [keras.Variable(factor, trainable=False) for factor in rate_factors(1)]
    # Of the variables that have a gradient. Not the optimizer's attribute: what is in it becomes
    # part of its state, which a resumed run then could not load.
    of_gradients: list = []

    class OptimizerWithRateFactors(kind):
        def begin_epoch(self, epoch: int) -> None:
            """Takes the factors of an epoch, from 1."""
            for variable, factor in zip(factors, rate_factors(epoch), strict=True):
                variable.assign(factor)

        def _factor(self, variable):
            return factors[self._get_variable_index(variable)]

        def _apply_weight_decay(self, variables):
            """Left to `update_step`, which has the rate of each variable."""

        def _filter_empty_gradients(self, grads, vars):
            found = super()._filter_empty_gradients(grads, vars)
            of_gradients[:] = [self._factor(variable) for variable in found[1]]
            return found

        def _clip_gradients(self, gradients):
            """As Keras, but what is held back (factor 0) has no part in the norm."""
            if self.global_clipnorm is None:
                return gradients
            moving = [ops.cast(factor > 0, "float32") for factor in of_gradients]
            pairs = list(zip(gradients, moving, strict=True))
            clipped = super()._clip_gradients([gradient * moves for gradient, moves in pairs])
            # For the moments of what is held back alone.
            held = [gradient * (1 - moves) for gradient, moves in pairs]
            return [one + other for one, other in zip(clipped, held, strict=True)]

        def update_step(self, gradient, variable, learning_rate):
            rate = learning_rate * self._factor(variable)
            if self.weight_decay and self._use_weight_decay(variable):
                self.assign_sub(variable, variable * rate * self.weight_decay)
            super().update_step(gradient, variable, rate)

    return OptimizerWithRateFactors


def _with_clipping_of_the_sum(kind):
    """An optimizer class that clips the gradients of the whole batch when devices share it.

    Keras clips those of each device by themselves, before it adds them up.
    """
    import tensorflow as tf

    class OptimizerThatClipsTheSum(kind):
        def _clip_gradients(self, gradients):
            context = tf.distribute.get_replica_context()
            if context is None or context.num_replicas_in_sync == 1:
                return super()._clip_gradients(gradients)
            summed = super()._clip_gradients(context.all_reduce("SUM", list(gradients)))
            # Keras adds up what this gives.
            return [gradient / context.num_replicas_in_sync for gradient in summed]

    return OptimizerThatClipsTheSum


def _inner_optimizer(model):
    """The optimizer that takes the steps, inside one that scales the loss."""
    return getattr(model.optimizer, "inner_optimizer", model.optimizer)


def _begin_epoch_callback(model):
    """Tells which epoch begins, from 1, whatever follows from it: a model, its optimizer."""
    import keras

    told = [part for part in (model, _inner_optimizer(model)) if hasattr(part, "begin_epoch")]

    def begin(epoch, logs):
        for part in told:
            part.begin_epoch(epoch + 1)

    return keras.callbacks.LambdaCallback(on_epoch_begin=begin)


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


def fingerprint(*parts: Any) -> str:
    """A short name for a configuration: paths by their content, all else by its repr.

    All code of the stages that this process has loaded is part of it, and so are the versions of
    Keras and TensorFlow: a run does not resume what other code began.
    """
    import keras
    import tensorflow as tf

    code = {
        name: Path(module.__file__)
        for name, module in sys.modules.items()
        if name.split(".")[0] in ("stages", "__main__") and getattr(module, "__file__", None)
    }
    digest = hashlib.sha256()
    versions = (keras.__version__, tf.__version__)
    for part in (*parts, *versions, *(code[name] for name in sorted(code))):
        content = part.read_bytes() if isinstance(part, Path) else repr(part).encode()
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()[:16]


def backup_folder(stage: str, name: str) -> Path:
    """The folder of one configuration's backup; those of other configurations are removed.

    Nothing else would ever remove them, and a run resumes only its own.
    """
    parent = paths.BACKUP / stage
    for other in parent.glob("*"):
        if other.name != name:
            shutil.rmtree(other)
    return parent / name


def forget_backup(stage: str) -> None:
    """Removes the backup of a training stage whose model DVC holds by now."""
    shutil.rmtree(paths.BACKUP / stage, ignore_errors=True)


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
            stage and DVC's own copy of what it wrote a run may be stopped too. `forget_backup`
            removes it; in a team it goes here.
        inputs: files and settings besides `data` and the params on which the result depends; a run
            resumes with equal ones.
        image_weights: a weights.ImageWeights, for the training images only; None: all equal.
        image_size: side in pixels of the squares that images become, unless all are of one square's
            shape already; None: the arrays are no images.
        rate_factors, steps_per_execution: see `compile_model`.
        prepare: from a dataset of (arrays, labels, ids) batches and the number of its first one,
            counted over all epochs, to the dataset that the model takes.
        team: a workers.Team, where several boxes train together; the first then saves, and writes
            the learning curve. None: this box alone.
    """
    index, validation_index = (shards.read_index(data / split) for split in ("train", "valid"))
    classes = len(index.class_names)
    weigh = None if image_weights is None else image_weights.function()
    steps_per_epoch = -(-index.count // parameters.batch_size)
    compile_model(model, parameters, steps_per_epoch, rate_factors, steps_per_execution)
    too_slow = describe_average(parameters, parameters.epochs * steps_per_epoch)
    for sentence in (*describe_what_has_no_effect(parameters), *filter(None, [too_slow])):
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

    name = fingerprint(parameters, seed, index.sha256, validation_index.sha256, *inputs)
    backup = backup_folder(stage if team is None else team.backup_name(stage), name)
    history = fit(
        model,
        parameters,
        make_training_batches=make_training_batches,
        validation_batches=for_devices(
            with_one_hot(validation(part), classes), validation_index.count
        ),
        images_per_epoch=index.count,
        backup=backup,
        loop=None if team is None else team.loop(name, index.count, validation_index.count),
    )
    # A budget of seconds, or early stopping, may leave fewer steps than there might have been.
    if not too_slow and (late := describe_average(parameters, len(history) * steps_per_epoch)):
        print(late, flush=True)
    if team is None or team.is_chief:
        write_history(paths.PLOTS / stage / "history.csv", history)
        logits, labels, _ = predict(model, validation(), validation_index.count, "calibrate")
        temperature = fit_temperature(logits, labels)
        print(f"temperature {temperature:.3f}")
        save(temperature)
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
    loop=None,
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
        backup: this configuration's folder, see `backup_folder`; stays.
        loop: a workers.Loop, in place of Keras' own `fit`; None: that.

    Returns:
        One row an epoch, those before an interruption included: epoch (from 1), learning_rate,
        loss, accuracy, val_loss, val_accuracy.
    """
    backup.mkdir(parents=True, exist_ok=True)
    if loop is not None:
        _forget_epochs_after(backup, loop.agreed_epoch(_kept_epochs(backup)))
    first_epoch, latest = _latest_backup(backup)
    history = _History(backup / "history.csv", first_epoch)
    best = _BestWeights(backup, parameters, history)
    budget = _Budget(backup / "seconds.txt", parameters, resumed=first_epoch > 0)
    averages = _average_callbacks() if parameters.average_decay is not None else []
    steps_per_epoch = -(-images_per_epoch // parameters.batch_size)
    if first_epoch:
        print(f"resumed after epoch {first_epoch} of {parameters.epochs}", flush=True)
    if first_epoch < parameters.epochs and not best.exhausted and not budget.spent:
        (model.fit if loop is None else functools.partial(loop.fit, model))(
            make_training_batches(first_epoch),
            epochs=parameters.epochs,
            steps_per_epoch=steps_per_epoch,
            validation_data=validation_batches,
            # In this order: what resumes reads the history and the best weights that were
            # complete when the backup was made.
            callbacks=[
                _epoch_seeds_callback(*(() if loop is None else loop.place)),
                _begin_epoch_callback(model),
                *averages[:1],
                history.callback(images_per_epoch, parameters.epochs),
                best.callback(),
                *averages[1:],
                *budget.callbacks(steps_per_epoch),
                # One worker may be killed before its backup of an epoch, another after.
                _backup_callback(backup, kept=1 if loop is None else 2),
            ],
            shuffle=False,  # the batches come shuffled
            verbose=0,
        )
    elif first_epoch:
        model.load_weights(latest / "latest.weights.h5")
        # As Keras' fit does at its end: puts the average of the weights in their place.
        model.optimizer.finalize_variable_values(model.trainable_variables)
    best.restore(model)
    for variable in model.trainable_variables:  # a mean of weights need not be of length 1
        if variable.constraint is not None:
            variable.assign(variable.constraint(variable))
    return history.rows


def _kept_epochs(backup: Path) -> dict[int, Path]:
    """The numbers of epochs that complete backups hold, in order, and their folders."""
    found = sorted(backup.glob("epoch-*"))
    return {int(folder.name.removeprefix("epoch-")): folder for folder in found}


def _latest_backup(backup: Path) -> tuple[int, Path | None]:
    """The number of epochs that the newest complete backup holds, and its folder."""
    kept = _kept_epochs(backup)
    return max(kept.items()) if kept else (0, None)


def _forget_epochs_after(backup: Path, epoch: int) -> None:
    for number, folder in _kept_epochs(backup).items():
        if number > epoch:
            shutil.rmtree(folder)


def _backup_callback(backup: Path, kept: int = 1):
    """Keras' BackupAndRestore, each backup in a folder that appears whole or not at all.

    As many of the newest ones are `kept`.

    Keras writes weights and epoch number in place: a kill between or within the two would leave a
    file that can't be read, or new weights under the old number.
    """
    import keras

    class WholeBackup(keras.callbacks.BackupAndRestore):
        def _save_model(self):
            writing = backup / "writing"
            shutil.rmtree(writing, ignore_errors=True)
            self.backup_dir = str(writing)
            self._weights_path = str(writing / "latest.weights.h5")
            self._training_metadata_path = str(writing / "training_metadata.json")
            super()._save_model()
            writing.rename(backup / f"epoch-{self._current_epoch:06}")
            for folder in list(_kept_epochs(backup).values())[:-kept]:
                shutil.rmtree(folder)

    _, folder = _latest_backup(backup)
    return WholeBackup(str(folder or backup / "none"), delete_checkpoint=False)


def _epoch_seeds_callback(worker: int = 0, workers: int = 1):
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


def _average_callbacks() -> list:
    """Two callbacks: put the average of the weights into the model for validation, and back again.

    Between them stand those that see the weights that were validated: the best are kept of these.
    Keras' SwapEMAWeights goes back before the epoch ends.
    """
    import keras

    def swap(model):
        for variable, average in _averages(model):
            current = variable.numpy()
            variable.assign(average)
            average.assign(current)

    class UseAverage(keras.callbacks.Callback):
        def on_test_begin(self, logs=None):
            swap(self.model)

    class GoOnFromCurrent(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            swap(self.model)

    return [UseAverage(), GoOnFromCurrent()]


class _Budget:
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


class _History:
    """The rows of the learning curve, kept in a CSV file while training goes on."""

    def __init__(self, path: Path, epochs: int):
        self.path, self.rows = path, []
        if epochs:
            with path.open(newline="", encoding="utf-8") as file:
                rows = [
                    {key: float(text) for key, text in row.items()} for row in csv.DictReader(file)
                ]
            # An epoch that was written but not backed up is trained again.
            self.rows = [{**row, "epoch": int(row["epoch"])} for row in rows[:epochs]]

    def add(self, row: dict[str, float]) -> None:
        self.rows.append(row)
        write_history(self.path, self.rows)

    def callback(self, images_per_epoch: int, epochs: int):
        import keras

        history = self

        class HistoryCallback(keras.callbacks.Callback):
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
                history.add({"epoch": epoch + 1, "learning_rate": rate, **logs})
                print(
                    f"epoch {epoch + 1}/{epochs}: loss {logs['loss']:.4f}, "
                    f"accuracy {logs['accuracy']:.4f}, validation loss {logs['val_loss']:.4f}, "
                    f"accuracy {logs['val_accuracy']:.4f}, "
                    f"{self.rate(self.trained):.0f} images/s",
                    flush=True,
                )

        return HistoryCallback()


HISTORY_COLUMNS = ("epoch", "learning_rate", "loss", "accuracy", "val_loss", "val_accuracy")


def write_history(path: Path, rows: Sequence[dict[str, float]]) -> None:
    """One row an epoch, as `fit` returns them."""
    values = [[row[name] for name in HISTORY_COLUMNS] for row in rows]
    tables.write_csv(path, HISTORY_COLUMNS, values)


class _BestWeights:
    """Early stopping and the mean of the best epochs, with a memory that survives a kill.

    It is all in the history and a file for each of the best epochs. Keras' EarlyStopping keeps its
    best weights and its patience in the process alone.
    """

    def __init__(self, folder: Path, parameters: TrainingParams, history: _History):
        self._folder, self._history = folder, history
        self._patience = parameters.early_stopping_patience
        self._count = parameters.averaged_epochs or (0 if self._patience is None else 1)

    @property
    def _losses(self) -> list[float]:
        return [row["val_loss"] for row in self._history.rows]

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


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature that minimises the negative log-likelihood (Guo et al. 2017, section 4.2).

    Labels are smoothed as in Platt 1999 (section 2.2), by two images that are of no class: with n
    images and k classes each label counts n / (n + 2), and each class 2 / k / (n + 2) more.
    Without, a small split on which all images are right asks for a temperature of 0: for a model
    that is never in doubt. One such image for each class would be too many where a class has few.

    Args:
        logits: (images, classes), float, of the validation split.
        labels: (images,), whole numbers.

    Returns:
        A number from 0.05 to 20; the loss is convex in its inverse, so the search finds the best.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    logits = logits.astype(np.float64)
    images = len(logits)
    spread = 2 / (images + 2)  # part of each label that all classes share

    def loss(log_temperature: float) -> float:
        log_probabilities = log_softmax(logits / np.exp(log_temperature), axis=1)
        of_labels = log_probabilities[np.arange(images), labels].mean()
        return -(1 - spread) * of_labels - spread * log_probabilities.mean()

    found = minimize_scalar(loss, bounds=(np.log(0.05), np.log(20)), method="bounded")
    return float(np.exp(found.x))


def predict(model, dataset, total: int, description: str) -> tuple[np.ndarray, np.ndarray, list]:
    """Runs a model over (arrays, labels, ids) batches; outputs, labels and ids in order."""
    import tensorflow as tf

    forward = tf.function(lambda arrays: model(arrays, training=False), reduce_retracing=True)
    outputs, labels, ids = [], [], []
    with progress(None, total=total, unit="image", description=description) as bar:
        for arrays, batch_labels, batch_ids in dataset:
            outputs.append(forward(arrays).numpy())
            labels.append(batch_labels.numpy())
            ids.extend(text.decode() for text in batch_ids.numpy())
            bar.update(len(batch_labels))
    return np.concatenate(outputs), np.concatenate(labels), ids
