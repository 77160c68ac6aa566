"""Two workers are two processes here, on loopback, with one thread each."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from stages import fine_tune as stage
from stages.common import device_shares, models, params, paths, shards, workers
from stages.common.run import UserError
from tests.test_runtime import NAMES, ROOT, classifier

TRAINING_BATCHES = shards.training_batches
TRAINING_IMAGES = 21  # in batches of 8: the last one has 5, which two workers share unequally
# The time of a start, of a heartbeat of TensorFlow that fails (10 s) and of a busy machine.
LIMIT_SECONDS = 300
# A worker that stands still before its backup of an epoch, so that it is killed at a known place.
WORKER = """
import sys, time
from pathlib import Path
import numpy as np
from stages import fine_tune
from stages.common.training import loop
from stages.common.run import run

stop, rename, train = sys.argv[1], Path.rename, loop.train

def rename_or_stop(path, target):
    if target.name == stop:
        print("stands still", flush=True)
        time.sleep(600)
    return rename(path, target)

def train_and_show(stage, model, *arguments, **keys):
    temperature = train(stage, model, *arguments, **keys)
    np.savez("weights.npz", *[variable.numpy() for variable in model.trainable_variables])
    return temperature

Path.rename, loop.train = rename_or_stop, train_and_show
run(fine_tune.main)
"""


def cluster_text(addresses, index: int) -> str:
    return json.dumps(
        {"cluster": {"worker": list(addresses)}, "task": {"type": "worker", "index": index}}
    )


def free_addresses(count: int) -> list[str]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    addresses = [f"127.0.0.1:{one.getsockname()[1]}" for one in sockets]
    for one in sockets:
        one.close()
    return addresses


class Workers:
    """Two worker processes; none outlives the `with`."""

    def __init__(self, folders, stops: int = 0, before_backup: int = 0):
        self.addresses = free_addresses(len(folders))
        self.logs = [folder / "log.txt" for folder in folders]
        self.processes = []
        stop = f"epoch-{before_backup:06}"
        for index, folder in enumerate(folders):
            environment = {
                "PYTHONPATH": str(ROOT),
                "PATH": os.environ["PATH"],
                "TF_CONFIG": cluster_text(self.addresses, index),
                "CUDA_VISIBLE_DEVICES": "",
                "OMP_NUM_THREADS": "1",
                "TF_NUM_INTRAOP_THREADS": "1",
                "TF_NUM_INTEROP_THREADS": "1",
            }
            with self.logs[index].open("w") as log:
                self.processes.append(
                    subprocess.Popen(
                        [sys.executable, "-c", WORKER, stop if index == stops else ""],
                        cwd=folder,
                        env=environment,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                    )
                )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.kill()
            process.wait()

    def log(self, index: int) -> str:
        return self.logs[index].read_text()

    def wait(self, index: int) -> int:
        return self.processes[index].wait(LIMIT_SECONDS)

    def wait_until(self, condition) -> None:
        end = time.monotonic() + LIMIT_SECONDS
        while not condition():
            logs = "".join(self.log(index) for index in range(len(self.logs)))
            assert time.monotonic() < end, logs
            assert all(process.poll() is None for process in self.processes), logs
            time.sleep(0.1)


def make_project(folder: Path, **changes) -> None:
    """A folder in which fine_tune can run."""
    random = np.random.default_rng(0)
    for split, count in (("train", TRAINING_IMAGES), ("valid", 17)):
        records = [
            (random.integers(0, 256, (16, 16, 3), dtype=np.uint8), n * n % 3, f"{split} {n}")
            for n in range(count)
        ]
        shards.write_all(folder / paths.IMAGES / split, records, "uint8", NAMES)
    classifier(folder / paths.HEAD)
    content = params.read(ROOT / "params.yaml")
    content["runtime"].update(devices="auto", precision="float32")
    content["fine_tune"].update(
        epochs=3,
        batch_size=8,
        unfreeze="all",
        image_sizes=None,
        # Unlike Adam it takes gradients of a wrong size for what they are.
        optimizer="sgd",
        learning_rate=0.05,
        clip_norm=0.5,  # some of the steps
        average_decay=0.9,
        class_weights="balanced",
        layer_decay=0.8,
        early_stopping_patience=3,
    )
    content["fine_tune"]["augment"].update(
        horizontal_flip=False, vertical_flip=False, quarter_turns=False, crop_area=1
    )
    content["fine_tune"].update(changes)
    (folder / "params.yaml").write_text(json.dumps(content))


def results(folder: Path):
    history = np.genfromtxt(folder / "plots/fine_tune/history.csv", delimiter=",", names=True)
    model = models.load(folder / paths.FINE_TUNED)
    return history, [weight.numpy() for weight in model.weights]


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """What every worker starts from."""
    folder = tmp_path_factory.mktemp("project")
    make_project(folder)
    return folder


@pytest.fixture(scope="module")
def boxes(tmp_path_factory, project):
    """A function that makes two boxes, folders equal to the project."""

    def make(name: str) -> list[Path]:
        folders = [tmp_path_factory.mktemp(f"{name}-{index}") for index in range(2)]
        for folder in folders:
            shutil.copytree(project, folder, dirs_exist_ok=True)
        return folders

    return make


@pytest.fixture(scope="module")
def trained_by_two(boxes) -> list[Path]:
    """The folders of two workers that have trained together."""
    folders = boxes("whole")
    with Workers(folders) as both:
        codes = [both.wait(index) for index in range(2)]
        assert codes == [0, 0], both.log(0) + both.log(1)
    return folders


def in_batches_of_two_workers(folder, batch_size, part=shards.ALL, **keys):
    """What two workers see together, for one."""
    parts = [
        TRAINING_BATCHES(folder, batch_size, part=shards.Part(number, 2), **keys)
        for number in range(2)
    ]
    return tf.data.Dataset.zip(tuple(parts)).map(
        lambda *batches: tuple(tf.concat(columns, axis=0) for columns in zip(*batches, strict=True))
    )


def test_two_workers_train_as_one_does(trained_by_two, project, tmp_path, monkeypatch):
    shutil.copytree(project, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TF_CONFIG", raising=False)
    monkeypatch.setattr(shards, "training_batches", in_batches_of_two_workers)
    stage.main()
    (one, first), (two, second) = results(tmp_path), results(trained_by_two[0])
    for column in ("learning_rate", "loss", "val_loss", "accuracy", "val_accuracy"):
        np.testing.assert_allclose(one[column], two[column], rtol=1e-4)
    for here, there in zip(first, second, strict=True):
        np.testing.assert_allclose(here, there, rtol=1e-3, atol=1e-5)
    before = [weight.numpy() for weight in models.load(project / paths.HEAD).weights]
    assert max(np.abs(a - b).max() for a, b in zip(before, first, strict=True)) > 1e-3


def test_both_end_with_equal_weights_and_the_first_alone_writes(trained_by_two):
    with (
        np.load(trained_by_two[0] / "weights.npz") as one,
        np.load(trained_by_two[1] / "weights.npz") as two,
    ):
        assert len(one.files) == len(two.files) == 8
        for name in one.files:
            np.testing.assert_array_equal(one[name], two[name])
    assert not list(trained_by_two[1].glob("models/fine_tuned.keras"))
    assert not list(trained_by_two[1].glob("plots"))


def kept_epochs(folder: Path) -> list[int]:
    return sorted(int(path.name[-6:]) for path in folder.glob(".backup/fine_tune*/*/epoch-*"))


def kill_one(folders: list[Path], killed: int, before_backup: int) -> None:
    """Starts both, kills one before it keeps an epoch, and sees the other end with one sentence."""
    left = 1 - killed
    with Workers(folders, killed, before_backup) as both:
        both.wait_until(
            lambda: (
                "stands still" in both.log(killed)
                and kept_epochs(folders[left])[-1:] == [before_backup]
            )
        )
        both.processes[killed].kill()
        started = time.monotonic()
        assert both.wait(left) == 1, both.log(left)
        assert time.monotonic() - started < 60
        assert both.log(left).endswith(
            f"error: worker {killed} at {both.addresses[killed]} does not answer any more; epoch "
            f"{before_backup} is kept here; start all workers again to go on from the last epoch "
            "that all keep\n"
        )
        assert "Traceback" not in both.log(left)


def finish(folders: list[Path], after: int) -> None:
    with Workers(folders) as both:
        assert [both.wait(index) for index in range(2)] == [0, 0], both.log(0) + both.log(1)
        assert all(f"resumed after epoch {after} of 3" in both.log(index) for index in range(2))


def assert_equal_bytes(one: Path, two: Path) -> None:
    for path in (paths.FINE_TUNED, paths.PLOTS / "fine_tune" / "history.csv"):
        assert (one / path).read_bytes() == (two / path).read_bytes()


def test_a_killed_worker_ends_the_other_and_all_resume_to_equal_bytes(trained_by_two, boxes):
    folders = boxes("killed")
    kill_one(folders, killed=1, before_backup=2)
    # They go on after the first epoch, the last that both keep.
    assert [kept_epochs(folder) for folder in folders] == [[1, 2], [1]]
    finish(folders, after=1)
    assert_equal_bytes(folders[0], trained_by_two[0])


@pytest.mark.slow
def test_a_killed_chief_ends_the_other_and_augmented_training_resumes_to_equal_bytes(tmp_path):
    augment = params.read(ROOT / "params.yaml")["fine_tune"]["augment"]
    augment.update(quarter_turns=True, crop_area=0.6, erasing=0.5, mixup=0.2)
    make_project(tmp_path / "project", augment=augment)
    folders = [tmp_path / name for name in ("whole-0", "whole-1", "killed-0", "killed-1")]
    for folder in folders:
        shutil.copytree(tmp_path / "project", folder)
    whole, killed = folders[:2], folders[2:]
    with Workers(whole) as both:
        assert [both.wait(index) for index in range(2)] == [0, 0], both.log(0) + both.log(1)
    kill_one(killed, killed=0, before_backup=3)
    assert [kept_epochs(folder) for folder in killed] == [[1, 2], [2, 3]]
    finish(killed, after=2)
    assert_equal_bytes(killed[0], whole[0])


@pytest.fixture
def alone(tmp_path, monkeypatch, project):
    """A function that runs fine_tune in this process with a text for TF_CONFIG; the error's."""
    shutil.copytree(project, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)

    def refused(text: str) -> str:
        monkeypatch.setenv("TF_CONFIG", text)
        monkeypatch.setattr(stage, "start_tensorflow", None)  # heavy: refused before
        with pytest.raises(UserError) as caught:
            stage.main()
        return str(caught.value)

    return refused


def config(cluster, kind="worker", index=0) -> str:
    return json.dumps({"cluster": cluster, "task": {"type": kind, "index": index}})


TWO = ["one:2222", "two:2222"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{cluster", "TF_CONFIG: expected JSON, received '{cluster'"),
        ("[]", "expected an object with cluster and task, received '\\[\\]'"),
        (config({"worker": TWO, "ps": TWO}), "worker, and chief at most, received ps"),
        (config({"worker": "one:2222"}), "cluster.worker to be a list of host:port, received 'one"),
        (config({"worker": ["one", "two:1"]}), "list of host:port, received 'one'"),
        (config({"worker": ["one:70000", "two:1"]}), "list of host:port, received 'one:70000'"),
        (config({"worker": ["one:1", "one:1"]}), "every address once, received one:1, one:1"),
        (config({"worker": TWO, "chief": ["a:1", "b:1"]}), "one chief at most, received a:1, b:1"),
        (config({"worker": TWO}, "chief"), "task.type to be worker, received 'chief'"),
        (config({"worker": TWO}, index=2), "task.index to be 0 to 1.*received 2"),
        (config({"worker": TWO}, index="0"), "received '0'; for two boxes it is, on the first, {"),
        (json.dumps({"cluster": {"worker": TWO}}), "task.type to be worker, received None"),
    ],
)
def test_a_wrong_description_of_the_cluster_is_refused_at_once(alone, text, message):
    assert re.search(message, alone(text))


def test_clusters():
    assert workers.cluster_from({}) is None
    assert workers.cluster_from({"TF_CONFIG": "{}"}) is None
    assert workers.cluster_from({"TF_CONFIG": config({"worker": ["one:1"]})}) is None
    second = workers.cluster_from({"TF_CONFIG": config({"worker": TWO}, index=1)})
    assert (second.addresses, second.index) == (tuple(TWO), 1)
    assert second.task(1) == "worker 1"
    text = config({"chief": ["[::1]:1"], "worker": TWO}, index=1)
    third = workers.cluster_from({"TF_CONFIG": text})
    assert (third.addresses, third.index) == (("[::1]:1", *TWO), 2)
    assert [third.task(index) for index in range(3)] == ["chief 0", "worker 0", "worker 1"]


def test_params_that_several_workers_cannot_follow_are_refused_together(alone):
    content = params.read(Path("params.yaml"))
    content["runtime"].update(devices=2, precision="mixed_float16", steps_per_execution=4)
    content["fine_tune"].update(seconds_budget=9.0, batch_norm_statistics="updated")
    Path("params.yaml").write_text(json.dumps(content))
    message = alone(config({"worker": TWO}))
    for expected in (
        "runtime.devices: expected auto with several workers (TF_CONFIG), received 2",
        "runtime.precision: expected float32 or mixed_bfloat16",
        "runtime.steps_per_execution: expected 1 with several workers (TF_CONFIG), received 4",
        "fine_tune.seconds_budget: expected null",
        "fine_tune.batch_norm_statistics: expected frozen",
    ):
        assert expected in message


@pytest.mark.parametrize(
    ("count", "teams", "replicas"), [(8, 2, 1), (5, 2, 1), (7, 2, 2), (1, 3, 1), (2, 3, 2)]
)
@pytest.mark.parametrize("weighted", [True, False])
def test_shares_hold_each_image_once_and_their_losses_add_up(count, teams, replicas, weighted):
    images, labels = np.arange(1.0, count + 1), np.eye(count, dtype="float32")
    weights = np.linspace(0.5, 2, count).astype("float32")
    losses, kept, sizes, begin = [], [], [], 0
    for number in range(teams):
        own = shards.Part(number, teams).of_batch(count)
        # A worker without an image in the batch has another one in its place.
        part = slice(begin, begin + own) if own else slice(0, 1)
        begin += own
        batch = (images[part], labels[part], weights[part])[: 3 if weighted else 2]
        for replica in range(replicas):
            factor = teams * replicas / count
            share = device_shares.share(batch, own, replica, replicas, factor)
            # As Keras does: the mean of each share, by the number of all devices.
            losses.append((share[2] * share[0]).numpy().mean() / (teams * replicas))
            kept += np.asarray(share[0])[share[3].numpy() == 1].tolist()
            sizes.append(len(share[0]))
    assert kept == images.tolist()
    assert min(sizes) >= 1
    assert max(sizes) - min(sizes) <= 1
    whole = (weights * images).mean() if weighted else images.mean()
    assert sum(losses) == pytest.approx(whole, rel=1e-6)


def test_workers_that_do_not_fit_together_are_named():
    cluster = workers.Cluster(tuple(TWO), 0)
    assert workers.last_common_epoch(cluster, [(7, 3), (7, 2)]) == 2
    with pytest.raises(UserError, match="worker 1 at two:2222 has other params, data"):
        workers.last_common_epoch(cluster, [(7, 3), (8, 3)])
    with pytest.raises(UserError, match=r"worker 1 at two:2222 keeps epoch 0 of this run and .*3"):
        workers.last_common_epoch(cluster, [(7, 3), (7, 0)])


def test_who_is_gone_follows_from_the_port_or_from_the_message():
    dead, _ = free_addresses(2)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        alive = f"127.0.0.1:{listening.getsockname()[1]}"
        cluster = workers.Cluster(("me:1", dead, alive), 0)
        assert workers.gone_workers(cluster, "") == [1]
        cluster = workers.Cluster(("me:1", alive), 0)
        message = "on /job:worker/replica:0/task:0: no heartbeat of /job:worker/replica:0/task:1"
        assert workers.gone_workers(cluster, message) == [1]
        assert workers.gone_workers(cluster, "something else") == []


def test_a_worker_that_does_not_come_is_named():
    mine, other = free_addresses(2)
    cluster = workers.Cluster((mine, other), 0)
    with pytest.raises(UserError, match=f"worker 1 at {other} did not come within 0 seconds"):
        workers.wait_for_all(cluster, 0)
    with socket.create_server(("127.0.0.1", int(other.partition(":")[2]))):
        workers.wait_for_all(cluster, 0)
        with pytest.raises(UserError, match=f"cannot listen at {other} .Address already in use"):
            workers.wait_for_all(workers.Cluster((mine, other), 1), 0)
