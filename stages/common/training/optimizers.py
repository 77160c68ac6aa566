"""How training takes its steps: schedule, weight decay, clipping, layers' rates, averages, loss."""

import math
from collections.abc import Callable, Sequence

from stages.common import models
from stages.common.training.parameters import TrainingParams

MOST_OF_THE_START = 0.05  # share of the first weights in an average that goes without a word


def learning_rate(parameters: TrainingParams, steps_per_epoch: int):
    """A number, or a Keras schedule of the optimizer's step.

    `constant`; `inverse_time`: rate / (1 + decay_per_step × step), the tutorial's; `cosine`: linear
    warm-up from 0 over `warmup_epochs`, then half a cosine down to 0 at the last step. With a
    budget of seconds it is a number, which `time_budget.Budget` sets.
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
        # By itself Keras turns XLA on where there is a GPU and no determinism; XLA has no kernel
        # for what turns and shears in RandAugment, and the first step would end in its error.
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
    averages = inner_optimizer(model)._model_variables_moving_average
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


def inner_optimizer(model):
    """The optimizer that takes the steps, inside one that scales the loss."""
    return getattr(model.optimizer, "inner_optimizer", model.optimizer)


def average_callbacks() -> list:
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
