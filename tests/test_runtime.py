"""What is asked of a GPU box, as far as a CPU shows it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from stages import extract_features, train_head
from stages import fine_tune as stage
from stages.common import (
    augment,
    backbones,
    geometry,
    heads,
    image_augmentation,
    models,
    params,
    paths,
    runtime,
    shards,
)
from stages.common.run import UserError, start_tensorflow
from stages.common.training import optimizers
from tests import ROOT
from tests.resized_parts import random_parts, resized_by_pillow

NAMES = ["blue", "green", "red"]


def classifier(path: Path) -> None:
    head = heads.build("linear", (16,), 3, hidden_units=[1], dropout=0.0)
    backbone = models.with_any_size(backbones.build("tiny", None, 32))
    models.save(models.assemble(backbone, head), path, NAMES)


def write_images(folder: Path, split: str, count: int, side: int = 32) -> None:
    random = np.random.default_rng(len(split))
    records = (
        (random.integers(0, 256, (side, side, 3), dtype=np.uint8), n % 3, f"{split} {n}")
        for n in range(count)
    )
    shards.write_all(folder / paths.IMAGES / split, records, "uint8", NAMES)


def prepare(folder: Path) -> None:
    """Makes fine_tune able to run: a head, 32 training and 16 validation images."""
    keras.utils.set_random_seed(0)
    classifier(folder / paths.HEAD)
    write_images(folder, "train", 32)
    write_images(folder, "valid", 16)
    (folder / "data" / "splits.csv").write_text("id,label,split\n")


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A folder in which fine_tune can run."""
    monkeypatch.chdir(tmp_path)
    prepare(tmp_path)
    return tmp_path


def write_params(
    folder: Path, devices="auto", precision="float32", steps_per_execution=1, **changes
) -> None:
    content = params.read(ROOT / "params.yaml")
    content["runtime"].update(
        devices=devices, precision=precision, steps_per_execution=steps_per_execution
    )
    given = {"epochs": 3, "batch_size": 8, "learning_rate": 0.01}
    given |= {"unfreeze": "all", "image_sizes": None}
    content["fine_tune"].update(given | changes)
    content["fine_tune"]["augment"].update(
        horizontal_flip=False, vertical_flip=False, quarter_turns=False, crop_area=1
    )
    (folder / "params.yaml").write_text(json.dumps(content))


def train() -> np.ndarray:
    """Runs fine_tune in this process; what it writes of each epoch."""
    stage.main()
    return np.genfromtxt("plots/fine_tune/history.csv", delimiter=",", names=True)


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> np.ndarray:
    """Of three epochs by the plain params of `write_params`."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("plain")
        patch.chdir(folder)
        prepare(folder)
        write_params(folder)
        return train()


RUN = """
import sys
import tensorflow as tf
count = int(sys.argv[1])
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * count
)
from stages import fine_tune
from stages.common.run import run
run(fine_tune.main)
"""


def run(folder: Path, devices: int) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", RUN, str(devices)],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize(
    ("count", "precision"),
    [
        pytest.param(32, "float32", marks=pytest.mark.slow),
        pytest.param(29, "float32", marks=pytest.mark.slow),
        (25, "float32"),
        pytest.param(25, "mixed_float16", marks=pytest.mark.slow),
    ],
)
def test_two_devices_train_as_one_does(project, count, precision):
    """Also where the last batch has shares of unequal size (5 images), or one of none (1)."""
    write_images(project, "train", count)
    results = {}
    for devices in (1, 2):
        write_params(project, precision=precision, average_decay=0.9, early_stopping_patience=3)
        done = run(project, devices)
        assert done.returncode == 0, done.stderr
        assert "resumed" not in done.stdout  # other devices, other random numbers
        assert ("2 CPUs, 4 images of each batch on each" in done.stdout) == (devices == 2)
        history = np.genfromtxt("plots/fine_tune/history.csv", delimiter=",", names=True)
        model = models.load(paths.FINE_TUNED)
        results[devices] = history, [weight.numpy() for weight in model.weights]
    before = [weight.numpy() for weight in models.load(paths.HEAD).weights]
    (one, first), (two, second) = results[1], results[2]
    for column in ("loss", "val_loss", "accuracy", "val_accuracy"):
        rounding = 1e-4 if precision == "float32" else 1e-2
        np.testing.assert_allclose(one[column], two[column], rtol=rounding)
    for here, there in zip(first, second, strict=True):
        np.testing.assert_allclose(here, there, rtol=10 * rounding, atol=rounding)
    assert max(np.abs(a - b).max() for a, b in zip(before, first, strict=True)) > 1e-3


@pytest.mark.parametrize(
    "changes",
    [
        {"augment": {"erasing": 1.0}},
        {"augment": {"mixup": 1.0}},
        {"image_sizes": [[1, 16]]},
        {"layer_decay": 0.1},
        {"gradual_unfreezing": [[1, "none"]]},
        {"batch_norm_statistics": "updated"},
        {"unfreeze": "none"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_params_ask_for_reaches_training(project, plain, changes):
    """By the loss of the last epoch, the same where `fine_tune` forgot to hand something on."""
    write_params(project, **{k: v for k, v in changes.items() if k != "augment"})
    content = json.loads((project / "params.yaml").read_text())
    content["fine_tune"]["augment"].update(changes.get("augment", {}))
    (project / "params.yaml").write_text(json.dumps(content))
    assert abs(train()["loss"][-1] - plain["loss"][-1]) > 1e-4


@pytest.mark.parametrize("stored", [16, 40])
@pytest.mark.parametrize(("image_sizes", "side"), [(None, 32), ([[1, 24]], 24)])
def test_crops_end_at_what_the_network_sees(project, monkeypatch, image_sizes, side, stored):
    write_images(project, "train", 8, side=stored)
    write_params(project, epochs=1, image_sizes=image_sizes)
    content = json.loads((project / "params.yaml").read_text())
    content["fine_tune"]["augment"]["crop_area"] = 0.5
    (project / "params.yaml").write_text(json.dumps(content))
    make, shapes = image_augmentation.augmentation_layer, []

    def spied(*arguments):
        layer = make(*arguments)
        shapes.append(layer(np.zeros((2, stored, stored, 3), "float32"), training=True).shape)
        return layer

    monkeypatch.setattr(image_augmentation, "augmentation_layer", spied)
    train()
    assert shapes == [(2, side, side, 3)]


def test_statistics_that_move_see_no_batch_of_a_single_image(project, capsys):
    write_params(project, epochs=1, batch_size=31, batch_norm_statistics="updated")
    train()
    assert "batches of 32, since the last one of 32 images would" in capsys.readouterr().out
    write_params(project, epochs=1, batch_size=31)
    train()
    assert "batches of" not in capsys.readouterr().out


def test_the_same_params_train_alike(project, plain):
    """Or the test above would tell nothing: another loss might be chance."""
    write_params(project)
    np.testing.assert_array_equal(train(), plain)


def test_norms_that_are_not_to_train_stay_as_they_were(project):
    write_params(project, batch_norm_trainable=False)
    train()
    before, after = (
        models.load(path).get_layer("backbone") for path in (paths.HEAD, paths.FINE_TUNED)
    )
    for old, new in zip(
        before.get_layer("block1_norm").get_weights(),
        after.get_layer("block1_norm").get_weights(),
        strict=True,
    ):
        np.testing.assert_array_equal(old, new)
    assert np.any(before.get_layer("block1_conv").kernel != after.get_layer("block1_conv").kernel)


def test_the_seed_reaches_training(project, plain):
    write_params(project)
    content = json.loads((project / "params.yaml").read_text())
    (project / "params.yaml").write_text(json.dumps({**content, "seed": 1}))
    assert abs(train()["loss"][-1] - plain["loss"][-1]) > 1e-4


def test_what_is_saved_has_its_temperature_and_its_names(project, capsys):
    write_params(project)
    train()
    (said,) = re.findall(r"temperature ([\d.]+)", capsys.readouterr().out)
    assert models.temperature_of(models.load(paths.FINE_TUNED)) == pytest.approx(
        float(said), abs=1e-3
    )
    assert float(said) != pytest.approx(1, abs=1e-2)
    assert models.class_names(paths.FINE_TUNED) == NAMES


def test_a_run_does_not_resume_what_began_with_another_head_or_precision(project, capsys):
    write_params(project, epochs=1)
    train()
    before = paths.HEAD.read_bytes()
    classifier(paths.HEAD)  # drawn anew
    assert paths.HEAD.read_bytes() != before
    train()
    write_params(project, epochs=1, precision="mixed_bfloat16")
    train()
    assert "resumed" not in capsys.readouterr().out
    train()
    assert "resumed after epoch 1 of 1" in capsys.readouterr().out


ON_TWO_DEVICES = """
import sys
from pathlib import Path
import numpy as np
import tensorflow as tf
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)
import keras
from stages.common import models
from stages.common.training import loop, optimizers
strategy = tf.distribute.MirroredStrategy()
"""


def on_two_devices(code: str) -> str:
    """Runs the code in a process of two devices; what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", ON_TWO_DEVICES + code],
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_several_devices_can_not_do_is_one_sentence(project):
    folders = []
    for changes in (
        {"devices": 3},
        {"batch_size": 7},
        {"steps_per_execution": 2, "batch_norm_statistics": "updated"},
    ):
        folders.append(project / str(len(folders)))
        (folders[-1] / "data").mkdir(parents=True)
        for shared in ("models", paths.IMAGES, "data/splits.csv"):
            (folders[-1] / shared).symlink_to(project / shared)
        write_params(folders[-1], **changes)
    printed = on_two_devices(f"""
import os
from stages import fine_tune
from stages.common.run import UserError
for folder in {[str(folder) for folder in folders]}:
    os.chdir(folder)
    try:
        fine_tune.main()
    except UserError as error:
        print(error)
""")
    for message in (
        "runtime.devices: expected auto or at most 2, the CPUs of this machine",
        "fine_tune.batch_size: expected a multiple of 2",
        "runtime.steps_per_execution: expected 1 with several devices",
        "fine_tune.batch_norm_statistics: expected frozen with several devices",
    ):
        assert message in printed


def test_devices_draw_different_random_numbers_which_follow_from_the_epoch():
    on_two_devices("""
with strategy.scope():
    layer = keras.layers.Dropout(0.5, seed=1)
    model = keras.Sequential([keras.Input((64,)), layer])
callback = loop.epoch_seeds_callback()
callback.set_model(model)

@tf.function
def draw():
    results = strategy.run(lambda: layer(tf.ones((1, 64)), training=True))
    return strategy.experimental_local_results(results)

def epoch(number):
    callback.on_epoch_begin(number)
    return [one.numpy() for one in draw()]

first, second = epoch(0)
assert np.any(first != second)
again, _ = epoch(0)
np.testing.assert_array_equal(first, again)
assert np.any(epoch(1)[0] != first) and np.any(epoch(1)[0] != second)
""")


def test_gradients_that_overflow_on_the_second_device_alone_change_nothing(project):
    on_two_devices(f"""
with strategy.scope():
    model = models.load(Path("{project / paths.HEAD}"))
    model.trainable = True
    trained = models.training_model(model, keras.layers.Identity(), [32, 32, 3])
    trained.compile(
        optimizer=keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1)),
        loss=keras.losses.CategoricalCrossentropy(from_logits=True),
        jit_compile=False,
    )
before = [weight.numpy() for weight in trained.trainable_variables]
images = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3)).astype("uint8")

def shares(weights):
    return tf.data.Dataset.from_generator(
        lambda: ((images, np.eye(3, dtype="float32")[:1], np.float32([w])) for w in weights),
        output_signature=(
            tf.TensorSpec((1, 32, 32, 3), tf.uint8),
            tf.TensorSpec((1, 3)),
            tf.TensorSpec((1,)),
        ),
    )

def fit(*weights):
    data = strategy.distribute_datasets_from_function(lambda _: shares(weights))
    trained.fit(data, steps_per_epoch=1, verbose=0)

fit(1.0, 1e36)
for old, weight in zip(before, trained.trainable_variables):
    np.testing.assert_array_equal(old, weight.numpy())
fit(1.0, 1.0)
assert any(np.any(old != w.numpy()) for old, w in zip(before, trained.trainable_variables))
assert all(np.isfinite(w.numpy()).all() for w in trained.trainable_variables)
""")


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_trains_and_saves_a_plain_model(project, plain, precision):
    write_params(project, precision=precision)
    mixed = train()
    np.testing.assert_allclose(mixed["loss"], plain["loss"], rtol=0.05)
    assert np.any(mixed["loss"] != plain["loss"])
    saved = keras.models.load_model(paths.FINE_TUNED, compile=False)
    assert {layer.compute_dtype for layer in models.leaf_layers(saved)} == {"float32"}
    assert {weight.dtype for weight in saved.weights} <= {"float32", "uint32"}


def test_what_stays_in_float32_and_when_the_loss_is_scaled():
    backbone = backbones.build("mobilenet_v2", None, 32)
    runtime.set_precision(backbone, "mixed_float16")
    computes = {layer.name: layer.compute_dtype for layer in backbone.layers}
    assert computes["input_scaling"] == "float32"
    assert computes["block_1_depthwise"] == "float32"
    assert computes["block_1_project"] == "float16"
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype("float32")
    assert backbone(images).dtype == "float16"

    head = heads.build("linear", (1280,), 3, hidden_units=[1], dropout=0.0)
    model = models.assemble(models.with_any_size(backbone), head)
    trained = models.training_model(model, keras.layers.Identity(), [32, 32, 3])
    assert trained(images).dtype == "float32"
    given = params.load("fine_tune", stage.FineTuneParams, ROOT / "params.yaml")
    optimizers.compile_model(trained, given, 4)
    assert isinstance(trained.optimizer, keras.optimizers.LossScaleOptimizer)
    runtime.set_precision(backbone, "mixed_bfloat16")
    optimizers.compile_model(trained, given, 4)
    assert not isinstance(trained.optimizer, keras.optimizers.LossScaleOptimizer)


def test_a_gpu_is_deterministic_unless_told_otherwise(monkeypatch):
    import tensorflow as tf

    asked = []
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["gpu"])
    monkeypatch.setattr(tf.config.experimental, "set_memory_growth", lambda *_: None)
    monkeypatch.setattr(
        tf.config.experimental, "enable_op_determinism", lambda: asked.append("deterministic")
    )
    start_tensorflow(0, deterministic=False)
    assert asked == []
    start_tensorflow(0)
    assert asked == ["deterministic"]


@pytest.fixture
def with_gpu(monkeypatch):
    """What is built looks as on a GPU box; it runs where it can."""
    real = tf.config.list_physical_devices
    monkeypatch.setattr(
        tf.config,
        "list_physical_devices",
        lambda kind=None: ["a GPU"] if kind == "GPU" else real(kind),
    )


def operations(function, *arguments) -> set[str]:
    """The kernels that a compiled function calls, those of functions inside included."""
    graph = function.get_concrete_function(*arguments).graph.as_graph_def()
    every = [graph.node, *(inner.node_def for inner in graph.library.function)]
    return {node.op for nodes in every for node in nodes}


@pytest.mark.parametrize("side", [17, 32, 48])
@pytest.mark.parametrize("size", [(32, 32), (50, 20)])
def test_on_a_gpu_pictures_are_resized_to_what_they_are_on_a_cpu(with_gpu, size, side):
    images = np.random.default_rng(0).uniform(0, 255, (2, *size, 3)).astype(np.float32)
    compiled = tf.function(lambda one: geometry.antialiased(one, side), jit_compile=True)
    np.testing.assert_allclose(
        compiled(images), tf.image.resize(images, [side, side], antialias=True), atol=5e-3
    )


@pytest.mark.parametrize("side", [17, 48])
def test_on_a_gpu_parts_are_resized_to_what_they_are_on_a_cpu(with_gpu, side):
    images, corners, extents = random_parts((50, 30))
    compiled = tf.function(geometry.cropped, jit_compile=True)
    expected = resized_by_pillow(images, side, corners, extents)
    np.testing.assert_allclose(compiled(images, side, corners, extents), expected, atol=5e-3)


@pytest.mark.parametrize("on_gpu", [False, True])
def test_pictures_of_the_size_that_is_wanted_are_not_resized(on_gpu, request):
    if on_gpu:
        request.getfixturevalue("with_gpu")
    resized = tf.function(lambda images: geometry.antialiased(images, 24))
    found = operations(resized, tf.TensorSpec([None, 24, 24, 3], tf.uint8))
    assert not found & {"ScaleAndTranslate", "ResizeBilinear", "Einsum"}
    images = np.full((1, 24, 24, 3), 7, np.uint8)
    np.testing.assert_array_equal(resized(images), images)
    assert resized(images).dtype == tf.float32


@pytest.mark.parametrize(("sizes", "resized"), [([(1, 24)], False), ([(1, 24), (2, 32)], True)])
def test_crops_of_the_only_size_are_not_resized_again(project, sizes, resized):
    model = models.load(paths.HEAD)
    augmentation = augment.random_symmetry_layer([augment.IDENTITY], 0)
    trained = models.training_model(model, augmentation, [40, 40, 3], image_sizes=sizes)
    stepped = tf.function(lambda crops: trained(crops, training=True))
    found = operations(stepped, tf.TensorSpec([None, 24, 24, 3], tf.float32))
    assert bool(found & {"ScaleAndTranslate", "ResizeBilinear"}) == resized


def test_on_a_gpu_no_picture_leaves_it_to_be_resized(project, with_gpu):
    # TensorFlow has no such kernel for GPUs: an antialiased resize would run on one CPU thread.
    images = np.random.default_rng(0).integers(0, 256, (4, 40, 40, 3), dtype=np.uint8)
    model = models.load(paths.HEAD)
    given = tf.TensorSpec([None, 40, 40, 3], tf.uint8)

    running = models.on_device(model)
    evaluated = tf.function(lambda one: running(one, training=False))
    np.testing.assert_allclose(evaluated(images), model(images), atol=1e-4)
    default = params.load("fine_tune", stage.FineTuneParams, ROOT / "params.yaml").augment
    # To 32 and then to 24, so that both ways to resize are in the graph.
    augmentation = image_augmentation.augmentation_layer(default, 0, 32)
    trained = models.training_model(model, augmentation, [40, 40, 3], image_sizes=[(1, 24)])
    trained.begin_epoch(1)
    stepped = tf.function(lambda one: trained(augmentation(one, training=True), training=True))
    backbone = backbones.build("tiny", None, 32)
    extract = extract_features.feature_function(
        models.with_any_size(backbone), "pooled", [augment.IDENTITY]
    )
    found = extract(images)
    assert not {"ScaleAndTranslate"} & (operations(evaluated, given) | operations(stepped, given))
    np.testing.assert_allclose(found, cpu_features(backbone, images), atol=2e-3)


def cpu_features(backbone, images) -> np.ndarray:
    resized = tf.image.resize(images, [32, 32], antialias=True)
    return backbone(resized).numpy().mean(axis=(1, 2))[:, np.newaxis]


@pytest.mark.parametrize("resize", ["crop", "pad"])
def test_on_a_gpu_pictures_that_are_cropped_or_padded_stay_as_they_were(with_gpu, resize):
    layer = geometry.resizing_layer(16, resize)
    wide = np.random.default_rng(0).uniform(0, 255, (1, 20, 40, 3)).astype(np.float32)
    square = wide[:, :, :20]
    np.testing.assert_array_equal(geometry.on_device(layer)(wide), layer(wide))
    np.testing.assert_allclose(geometry.on_device(layer)(square), layer(square), atol=5e-3)


def test_xla_is_left_out_of_training():
    # Else Keras turns it on where there is a GPU and no determinism; RandAugment fails in it.
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    given = params.load("train_head", train_head.TrainHeadParams, ROOT / "params.yaml")
    optimizers.compile_model(model, given, 1)
    assert model.jit_compile is False


def test_steps_that_python_does_not_see_train_alike(project, monkeypatch):
    compile_model, asked = optimizers.compile_model, []

    def compile_and_note(model, *arguments):
        compile_model(model, *arguments)
        asked.append(model.steps_per_execution)

    monkeypatch.setattr(optimizers, "compile_model", compile_and_note)
    # 32 images in batches of 8: 3 does not divide the epoch, 100 is more than it has.
    outcomes = []
    for steps_per_execution in (1, 3, 100):
        write_params(project, steps_per_execution=steps_per_execution)
        train()
        history = paths.PLOTS / "fine_tune" / "history.csv"
        outcomes.append((history.read_text(), paths.FINE_TUNED.read_bytes()))
    assert outcomes[0] == outcomes[1] == outcomes[2]
    assert asked == [1, 2, 4]


def test_settings_are_checked():
    section = {"precision": "float16", "devices": 0, "deterministic": True}
    with pytest.raises(UserError) as caught:
        params.check({"runtime": section}, "runtime", runtime.RuntimeParams)
    assert "runtime.precision: expected 'float32', 'mixed_float16' or" in str(caught.value)
    assert "runtime.devices: expected auto (all GPUs) or a whole number of 1 or" in str(
        caught.value
    )
