"""Training on several boxes: the cluster that TF_CONFIG names, the loop, and what ends it.

Every box runs the same command with the same params and data. TensorFlow's
MultiWorkerMirroredStrategy adds up the gradients of all; Keras' own `fit` fails there
(keras#20585), its train step and optimizers do not, so that the loop alone is ours. It calls the
callbacks that Keras would call.
"""

import contextlib
import faulthandler
import json
import re
import signal
import socket
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from stages.common import device_shares, shards
from stages.common.paths import BACKUP
from stages.common.run import UserError

EXAMPLE = (
    '{"cluster": {"worker": ["first-box:2222", "second-box:2222"]}, '
    '"task": {"type": "worker", "index": 0}}'
)
# Others may still be at an earlier stage, or copy their data; nobody waits for a box for ever.
START_SECONDS = 600
# From when all are there until TensorFlow has connected them.
CONNECT_SECONDS = 120
# TensorFlow's own heartbeat ends a collective operation after ten seconds; this is for naming.
PROBE_SECONDS = 5
MOST_PORTS = 65535


@dataclass(frozen=True)
class Cluster:
    """The boxes that train together, and which of them this process is."""

    addresses: tuple[str, ...]  # host:port; the first is the chief
    index: int
    has_chief_job: bool = False  # TF_CONFIG calls the first 'chief', not 'worker'

    def task(self, index: int) -> str:
        """A worker as TensorFlow's messages call it."""
        if not self.has_chief_job:
            return f"worker {index}"
        return "chief 0" if index == 0 else f"worker {index - 1}"

    def name(self, index: int) -> str:
        """A worker as messages call it."""
        return f"worker {index} at {self.addresses[index]}"


def cluster_from(environment: Mapping[str, str]) -> Cluster | None:
    """The cluster that TF_CONFIG describes; None without one, and for a cluster of one.

    Raises:
        UserError: TF_CONFIG is no JSON, or no cluster of workers with a task among them.
    """
    text = environment.get("TF_CONFIG", "")
    if not text.strip():
        return None
    try:
        described = json.loads(text)
    except json.JSONDecodeError as error:
        raise _mistake(f"JSON, received {text!r}: {error}") from None
    if not isinstance(described, dict) or not isinstance(described.get("cluster", {}), dict):
        raise _mistake(f"an object with cluster and task, received {text!r}")
    cluster = described.get("cluster", {})
    if not cluster:
        return None
    unknown = sorted(set(cluster) - {"chief", "worker"})
    if unknown:
        raise _mistake(f"cluster to hold worker, and chief at most, received {', '.join(unknown)}")
    jobs = {job: cluster.get(job, []) for job in ("chief", "worker")}
    for job, addresses in jobs.items():
        _check_addresses(job, addresses)
    everyone = (*jobs["chief"], *jobs["worker"])
    if len(set(everyone)) < len(everyone):
        raise _mistake(f"every address once, received {', '.join(everyone)}")
    if len(jobs["chief"]) > 1:
        raise _mistake(f"one chief at most, received {', '.join(jobs['chief'])}")
    index = _position(described.get("task"), jobs)
    return Cluster(everyone, index, bool(jobs["chief"])) if len(everyone) > 1 else None


def _mistake(expected: str) -> UserError:
    return UserError(
        f"TF_CONFIG: expected {expected}; for two boxes it is, on the first, {EXAMPLE}; unset it "
        "to train on this box alone"
    )


def _check_addresses(job: str, addresses) -> None:
    if not isinstance(addresses, list):
        raise _mistake(f"cluster.{job} to be a list of host:port, received {addresses!r}")
    for address in addresses:
        host, _, port = address.rpartition(":") if isinstance(address, str) else ("", "", "")
        if not host or not port.isdecimal() or not 1 <= int(port) <= MOST_PORTS:
            raise _mistake(f"cluster.{job} to be a list of host:port, received {address!r}")


def _position(task, jobs: Mapping[str, Sequence[str]]) -> int:
    """Where the task stands among all workers, the chief first."""
    kind, index = (task.get("type"), task.get("index")) if isinstance(task, dict) else (None, None)
    allowed = [job for job, addresses in jobs.items() if addresses]
    if kind not in allowed:
        raise _mistake(f"task.type to be {' or '.join(allowed) or 'worker'}, received {kind!r}")
    # A bool is an int to Python.
    if type(index) is not int or not 0 <= index < len(jobs[kind]):
        raise _mistake(
            f"task.index to be 0 to {len(jobs[kind]) - 1}, the tasks of {kind}, received {index!r}"
        )
    return index + (len(jobs["chief"]) if kind == "worker" else 0)


def check_params(parameters, settings) -> None:
    """UserError where params ask for what several workers can't do.

    Args:
        parameters: section fine_tune.
        settings: section runtime.
    """
    refused = {
        "runtime.devices": (
            settings.devices,
            settings.devices != "auto",
            "auto",
            "each takes all GPUs that it sees; hide others from it by CUDA_VISIBLE_DEVICES",
        ),
        "runtime.precision": (
            settings.precision,
            settings.precision == "mixed_float16",
            "float32 or mixed_bfloat16",
            "each would scale the loss by its own gradients",
        ),
        "runtime.steps_per_execution": (
            settings.steps_per_execution,
            settings.steps_per_execution != 1,
            "1",
            "they agree with each other after each step",
        ),
        "fine_tune.seconds_budget": (
            parameters.seconds_budget,
            parameters.seconds_budget is not None,
            "null",
            "each would stop by its own clock; set epochs",
        ),
        "fine_tune.batch_norm_statistics": (
            parameters.batch_norm_statistics,
            parameters.batch_norm_statistics == "updated",
            "frozen",
            "each would move the statistics by its own images",
        ),
    }
    mistakes = [
        f"params.yaml, {key}: expected {allowed} with several workers (TF_CONFIG), received "
        f"{value!r}: {reason}"
        for key, (value, is_wrong, allowed, reason) in refused.items()
        if is_wrong
    ]
    if mistakes:
        raise UserError("\n       ".join(mistakes))


class Team:
    """This worker among the others, from the start of TensorFlow's strategy on."""

    def __init__(self, cluster: Cluster, batch_size: int):
        """Waits for all workers.

        Args:
            cluster: from `cluster_from`.
            batch_size: of all workers together.

        Raises:
            UserError: a worker does not come, or the batch can't be parted equally.
        """
        import tensorflow as tf

        self.cluster, self.batch_size = cluster, batch_size
        self.finished_epoch = 0  # as far as this worker knows
        print(f"{cluster.name(cluster.index)} waits for {self.size - 1} more", flush=True)
        wait_for_all(cluster, START_SECONDS)
        # One that is killed between here and there leaves TensorFlow waiting: then a traceback.
        faulthandler.dump_traceback_later(CONNECT_SECONDS, exit=True)
        with _gone_workers_explained(cluster, lambda: 0):
            self.strategy = tf.distribute.MultiWorkerMirroredStrategy()
        faulthandler.cancel_dump_traceback_later()
        # TensorFlow takes SIGTERM for a preemption that something else will handle.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        replicas = self.strategy.num_replicas_in_sync
        if batch_size % replicas:
            raise UserError(
                f"params.yaml, fine_tune.batch_size: expected a multiple of {replicas}, the "
                f"devices of all workers, received {batch_size}"
            )
        print(
            f"{self.size} workers, {replicas} devices, {batch_size // replicas} "
            "images of each batch on each",
            flush=True,
        )

    @property
    def size(self) -> int:
        """How many workers there are."""
        return len(self.cluster.addresses)

    @property
    def local_replicas(self) -> int:
        """Devices of this worker."""
        return self.strategy.num_replicas_in_sync // self.size

    @property
    def is_chief(self) -> bool:
        """Whether this worker writes models and plots."""
        return self.cluster.index == 0

    def backup_name(self, stage: str) -> str:
        """See `backup_name`."""
        return backup_name(stage, self.cluster.index)

    def loop(self, fingerprint: str, images: int, validation_images: int) -> "Loop":
        """What trains in place of Keras' own `fit`.

        Args:
            fingerprint: of params, data and code, hexadecimal.
            images: of the training split.
            validation_images: of the validation split.

        Raises:
            UserError: there are fewer images than devices.
        """
        fewest, replicas = min(images, validation_images), self.strategy.num_replicas_in_sync
        if fewest < replicas:
            raise UserError(
                f"expected at least {replicas} images to train and to validate on, one for each "
                f"device of all workers, received {fewest}; train on fewer boxes (TF_CONFIG), or "
                "raise split.valid"
            )
        return Loop(self, fingerprint, images, validation_images)

    def agreed_epoch(self, fingerprint: str, epochs: Collection[int]) -> int:
        """The last epoch that all workers have kept; 0: none.

        Args:
            fingerprint: see `loop`.
            epochs: whose backups this worker has.

        Raises:
            UserError: the workers do not train the same thing, or some have lost their backups.
        """
        latest = max(epochs, default=0)
        # 60 bits: what a signed number of 64 holds.
        numbers = self._of_all([int(fingerprint[:15], 16), latest])
        self.finished_epoch = last_common_epoch(self.cluster, numbers)
        return self.finished_epoch

    def _of_all(self, numbers: Sequence[int]) -> list[list[int]]:
        """The numbers of every worker, by its index."""
        mine = np.zeros((self.size, len(numbers)), np.int64)
        mine[self.cluster.index] = numbers

        def of_replica(context):
            first = context.replica_id_in_sync_group % self.local_replicas == 0
            return mine if first else np.zeros_like(mine)

        values = self.strategy.experimental_distribute_values_from_function(of_replica)
        return self.strategy.reduce("SUM", values, axis=None).numpy().tolist()

    def meet(self) -> None:
        """Waits until all workers are here."""
        self._of_all([0])

    @property
    def part(self) -> shards.Part:
        """What this worker reads of all records."""
        return shards.Part(self.cluster.index, self.size)

    def distributed(self, dataset, images: int):
        """This worker's batches in shares, see device_shares.parted.

        Args:
            dataset: of this worker's `part` of each batch: (images, labels) or (images, labels,
                weights), one epoch after the other.
            images: of all workers in one epoch.
        """
        parted = device_shares.parted(
            dataset,
            images,
            self.batch_size,
            self.part,
            self.local_replicas,
            self.strategy.num_replicas_in_sync,
        )
        return self.strategy.distribute_datasets_from_function(lambda _context: parted)

    @contextlib.contextmanager
    def scope(self):
        """TensorFlow's scope of the strategy, left by a UserError where another worker is gone."""
        explained = _gone_workers_explained(self.cluster, lambda: self.finished_epoch)
        with explained, self.strategy.scope():
            yield


@contextlib.contextmanager
def _gone_workers_explained(cluster: Cluster, finished_epoch: Callable[[], int]):
    """Turns what TensorFlow raises where another worker is gone into one sentence."""
    import tensorflow as tf

    try:
        yield
    except (
        tf.errors.UnavailableError,
        tf.errors.AbortedError,
        tf.errors.CancelledError,
        tf.errors.DeadlineExceededError,
        tf.errors.FailedPreconditionError,
        tf.errors.InternalError,
    ) as error:
        gone = gone_workers(cluster, str(error))
        if not gone:
            raise
        names = " and ".join(cluster.name(index) for index in gone)
        epoch = finished_epoch()
        kept = f"epoch {epoch} is kept here" if epoch else "no epoch was finished here"
        raise UserError(
            f"{names} {'do' if len(gone) > 1 else 'does'} not answer any more; {kept}; start "
            "all workers again to go on from the last epoch that all keep"
        ) from error


class Loop:
    """Does what Keras' `fit` does, on all workers together."""

    def __init__(self, team: Team, fingerprint: str, images: int, validation_images: int):
        self._team, self._fingerprint = team, fingerprint
        self._images, self._validation_images = images, validation_images

    @property
    def place(self) -> tuple[int, int]:
        """This worker's number, and how many there are."""
        return self._team.cluster.index, self._team.size

    def agreed_epoch(self, epochs: Collection[int]) -> int:
        """See Team.agreed_epoch."""
        return self._team.agreed_epoch(self._fingerprint, epochs)

    def fit(self, model, batches, *, epochs, steps_per_epoch, validation_data, callbacks, **_keys):
        """Trains from the agreed epoch on, with the arguments of Keras' `fit`."""
        import keras

        team = self._team
        steps = _Steps(team, self._images, _training_step(model))
        validation_steps = _Steps(team, self._validation_images, _validation_step(model))
        parts = iter(team.distributed(batches, self._images))
        validation_parts = team.distributed(validation_data, self._validation_images)
        calls = keras.callbacks.CallbackList(
            callbacks, model=model, epochs=epochs, steps=steps_per_epoch
        )
        model.stop_training = False
        calls.on_train_begin()
        for epoch in range(team.finished_epoch, epochs):
            calls.on_epoch_begin(epoch)
            logs = steps.run(parts, calls.on_train_batch_begin, calls.on_train_batch_end)
            calls.on_test_begin()
            of_validation = validation_steps.run(iter(validation_parts))
            calls.on_test_end()
            logs.update({f"val_{name}": value for name, value in of_validation.items()})
            calls.on_epoch_end(epoch, logs)
            team.finished_epoch = epoch + 1
            if model.stop_training:
                break
        model.optimizer.finalize_variable_values(model.trainable_variables)
        calls.on_train_end()


def backup_name(stage: str, index: int) -> str:
    """The name of one worker's backups: on a shared disk they would meet under one."""
    return f"{stage}-worker-{index}" if index else stage


def last_common_epoch(cluster: Cluster, reports: Sequence[Sequence[int]]) -> int:
    """The last epoch that all workers have kept; 0: none.

    Args:
        cluster: for names.
        reports: of each worker a number that follows from what it trains, and its last epoch.

    Raises:
        UserError: see Team.agreed_epoch.
    """
    for index, (number, _) in enumerate(reports):
        if number != reports[0][0]:
            raise UserError(
                f"{cluster.name(index)} has other params, data, models/head.keras or code than "
                f"{cluster.name(0)}; bring both to one commit, and copy data/images and "
                "models/head.keras from one to the other"
            )
    kept = [epoch for _, epoch in reports]
    # All end an epoch together, so that a kill leaves them one apart at most.
    if max(kept) - min(kept) > 1:
        behind, ahead = kept.index(min(kept)), kept.index(max(kept))
        raise UserError(
            f"{cluster.name(behind)} keeps epoch {min(kept)} of this run and "
            f"{cluster.name(ahead)} epoch {max(kept)}; copy what is in "
            f"{BACKUP / backup_name('fine_tune', ahead)} there to "
            f"{BACKUP / backup_name('fine_tune', behind)} here, or remove {BACKUP} on all workers "
            "to begin anew"
        )
    return min(kept)


def gone_workers(cluster: Cluster, message: str) -> list[int]:
    """Which other workers do not answer, or where all do, which an error of TensorFlow names."""
    others = [index for index in range(len(cluster.addresses)) if index != cluster.index]
    silent = [index for index in others if not _answers(cluster.addresses[index])]
    if silent:
        return silent
    named = {f"{job} {number}" for job, number in re.findall(r"/job:(\w+)\S*?/task:(\d+)", message)}
    return [index for index in others if cluster.task(index) in named]


class _Steps:
    """An epoch of training or validation steps, and the means of what they measure."""

    def __init__(self, team: Team, images: int, step):
        import tensorflow as tf

        self._images, self._batch_size = images, team.batch_size

        def on_all_devices(part):
            results = team.strategy.run(step, args=part)
            # All replicas have the sum over all.
            return [team.strategy.experimental_local_results(result)[0] for result in results]

        self._step = tf.function(on_all_devices, reduce_retracing=True, autograph=False)

    def run(self, batches, before=lambda step: None, after=lambda step, logs: None) -> dict:
        """Goes through one epoch; mean loss and accuracy of all its images, floats."""
        loss, correct, seen = 0.0, 0.0, 0
        for step in range(-(-self._images // self._batch_size)):
            before(step)
            batch_loss, batch_correct = self._step(next(batches))
            count = min(self._batch_size, self._images - seen)
            loss, correct, seen = loss + batch_loss * count, correct + batch_correct, seen + count
            after(step, {"loss": loss / seen, "accuracy": correct / seen})
        return {"loss": float(loss) / seen, "accuracy": float(correct) / seen}


def _training_step(model):
    """A function of one device's part that takes a step and measures, as `_sums` does."""
    import tensorflow as tf

    def step(images, labels, weights, present):
        images, labels, weights = model.augmented(images, labels, weights)
        with tf.GradientTape() as tape:
            logits = model(images, training=True)
            loss = model.compute_loss(images, labels, logits, weights, training=True)
        gradients = tape.gradient(loss, model.trainable_variables)
        # Adds up the gradients of all devices.
        model.optimizer.apply(gradients, model.trainable_variables)
        return _sums(loss, labels, logits, present)

    return step


def _validation_step(model):
    def step(images, labels, weights, present):
        logits = model(images, training=False)
        loss = model.compute_loss(images, labels, logits, weights, training=False)
        return _sums(loss, labels, logits, present)

    return step


def _sums(loss, labels, logits, present):
    """Sums over all devices: losses, and images of which the likeliest class is right."""
    import keras
    import tensorflow as tf

    right = tf.reduce_sum(keras.metrics.categorical_accuracy(labels, logits) * present)
    return tf.distribute.get_replica_context().all_reduce("SUM", [loss, right])


def wait_for_all(cluster: Cluster, seconds: float) -> None:
    """Returns when every other worker has been seen at its address.

    TensorFlow waits without an end for a worker that does not come, and neither Ctrl-C nor a
    thread of Python can stop it.

    Raises:
        UserError: some did not come within so many seconds, or this worker's port is taken.
    """
    waiting = [index for index in range(len(cluster.addresses)) if index != cluster.index]
    end = time.monotonic() + seconds
    with _listening(cluster.addresses[cluster.index]) as listener:
        while True:
            _accept_all(listener)
            waiting = [index for index in waiting if not _answers(cluster.addresses[index])]
            if not waiting:
                return
            if time.monotonic() > end:
                raise UserError(
                    f"{' and '.join(cluster.name(index) for index in waiting)} did not come within "
                    f"{seconds:.0f} seconds; start the same command on all boxes, each with its "
                    "own index in TF_CONFIG, and let each reach the ports of all"
                )
            time.sleep(0.5)


def _listening(address: str) -> socket.socket:
    """A socket on the port of this worker's address that does not block."""
    port = int(address.rpartition(":")[2])
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        listener = socket.create_server(("", port), family=family, dualstack_ipv6=both)
    except OSError as error:
        raise UserError(
            f"TF_CONFIG: this worker cannot listen at {address} ({error.strerror}); is another "
            "process there, or another worker of the same index?"
        ) from None
    listener.setblocking(False)
    return listener


def _accept_all(listener: socket.socket) -> None:
    """Takes the connections that wait, so that none is turned away."""
    with contextlib.suppress(BlockingIOError):
        while True:
            listener.accept()[0].close()


def _answers(address: str) -> bool:
    """Whether something listens at host:port."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=PROBE_SECONDS):
            return True
    except OSError:
        return False
