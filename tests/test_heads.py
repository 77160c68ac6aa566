"""Every head, on one layer or several: saved, trained, explained; and logistic regression."""

import itertools
import json
import re

import keras
import numpy as np
import pytest
import yaml
from sklearn.linear_model import LogisticRegression

from stages import extract_features, train_head
from stages.common import (
    augment,
    backbones,
    explain,
    heads,
    linear_probe,
    models,
    params,
    paths,
    shards,
)
from stages.common.run import UserError
from stages.common.training import backups
from tests.toy_project import OVERRIDES, ROOT
from tests.training_toys import fit

LAYERS = {"last": [], "one": ["block0_relu"], "several": ["block0_relu", "block1_relu"]}
CHANNELS = {"last": 16, "one": 8, "several": 24}
IMAGES = np.random.default_rng(0).integers(0, 256, (5, 40, 30, 3), dtype=np.uint8)


def head_of(kind: str, shape, **changes):
    options = {"hidden_units": [8, 4] if kind == "dense" else [8], "dropout": 0.2, **changes}
    return heads.build(kind, shape, 3, **options)


@pytest.mark.parametrize(
    ("kind", "where"),
    [
        *((kind, "several") for kind in heads.HEADS),
        *itertools.product(["dense", "conv"], ["last", "one"]),  # one for each kind of features
    ],
)
def test_a_classifier_of_any_head_and_layers_is_complete(kind, where, tmp_path):
    backbone = models.with_any_size(backbones.build("tiny", None, 32))
    backbone = models.at_layers(backbone, LAYERS[where])
    side = 16 if where == "one" else 8
    channels = CHANNELS[where]
    shape = (side, side, channels) if kind in heads.MAP_HEADS else (channels,)
    model = models.assemble(backbone, head_of(kind, shape), temperature=2.0)
    expected = model.predict(IMAGES, verbose=0)
    np.testing.assert_allclose(expected.sum(axis=1), 1, rtol=1e-5)

    models.save(model, tmp_path / "one.keras")
    loaded = keras.models.load_model(tmp_path / "one.keras", compile=False)
    np.testing.assert_array_equal(loaded.predict(IMAGES, verbose=0), expected)
    models.save(loaded, tmp_path / "two.keras")
    assert (tmp_path / "one.keras").read_bytes() == (tmp_path / "two.keras").read_bytes()

    training = models.training_model(
        loaded, augment.random_symmetry_layer([augment.IDENTITY], 0), [40, 30, 3]
    )
    np.testing.assert_allclose(
        training.predict(IMAGES, verbose=0),
        models.logits_of(loaded).predict(IMAGES, verbose=0),
        atol=1e-5,
    )
    maps = explain.heat_maps(loaded, IMAGES, np.zeros(5, int), batch_size=2)
    assert maps.shape == (5, side, side)
    assert np.isfinite(maps).all()


def test_what_lies_behind_the_cut_is_dropped():
    backbone = models.with_any_size(backbones.build("tiny", None, 32))
    names = [
        layer.name for layer in models.leaf_layers(models.at_layers(backbone, ["block0_relu"]))
    ]
    assert "block0_relu" in names
    assert not any(name.startswith("block1") for name in names)


def test_maps_of_several_layers_are_averaged_to_the_coarsest_and_joined():
    random = np.random.default_rng(0)
    # Seven is half of thirteen, rounded up: the last rows are averaged over what is there.
    fine, coarse = (random.normal(size=(2, side, side, 3)).astype("f4") for side in (13, 7))
    join = models.joining([keras.Input(one.shape[1:]) for one in (fine, coarse)])
    joined = join.predict([fine, coarse], verbose=0)
    assert joined.shape == (2, 7, 7, 6)
    np.testing.assert_array_equal(joined[..., 3:], coarse)
    np.testing.assert_allclose(joined[:, 1, 2, :3], fine[:, 2:4, 4:6].mean(axis=(1, 2)), rtol=1e-5)
    np.testing.assert_allclose(joined[:, 6, 6, :3], fine[:, 12, 12], rtol=1e-5)


def test_maps_that_do_not_fit_into_each_other_are_refused():
    maps = [keras.Input((side, side, 3)) for side in (35, 17)]
    with pytest.raises(UserError, match="received 35 by 35, 17 by 17; name layers of one size"):
        models.joining(maps)


def test_joined_maps_train_the_head_that_the_classifier_has(project):
    project(
        extract_features={"features": "map", "layers": ["block0_relu", "block1_relu"]},
        train_head={"head": "residual", "hidden_units": [8, 4], "epochs": 3},
    )
    extract_features.main()
    train_head.main()
    model = models.load(paths.HEAD)
    features, _labels, _ids = next(iter(shards.batches(paths.FEATURES / "valid", 12)))
    images, _labels, _ids = next(iter(shards.batches(paths.IMAGES / "valid", 12, image_size=32)))
    assert features.shape[1:] == (1, 8, 8, 24)
    np.testing.assert_allclose(
        model.get_layer("head")(features[:, 0]),
        models.logits_of(model).predict(images, verbose=0),
        atol=2e-2,  # features are kept in float16
    )


def test_the_cosine_head_gives_scaled_cosines():
    head = head_of("cosine", (16,))
    features = np.random.default_rng(1).normal(size=(6, 16)).astype(np.float32)
    kernel = head.get_layer("head_directions").kernel.numpy()
    cosines = features @ kernel / np.linalg.norm(features, axis=1, keepdims=True)
    cosines /= np.linalg.norm(kernel, axis=0)
    found = head.predict(features, verbose=0)
    np.testing.assert_allclose(found, heads.FIRST_COSINE_SCALE * cosines, atol=1e-4)
    np.testing.assert_allclose(head.predict(features * 7, verbose=0), found, atol=1e-4)


def test_the_cosine_heads_directions_keep_their_length_in_training():
    head = head_of("cosine", (16,))
    head.compile(keras.optimizers.Adam(0.1), keras.losses.CategoricalCrossentropy(from_logits=True))
    random = np.random.default_rng(1)
    head.fit(random.normal(size=(32, 16)), np.eye(3)[random.integers(3, size=32)], verbose=0)
    kernel = head.get_layer("head_directions").kernel.numpy()
    np.testing.assert_allclose(np.linalg.norm(kernel, axis=0), 1, atol=1e-5)
    assert head.get_layer("head_scale").kernel.numpy() != pytest.approx(heads.FIRST_COSINE_SCALE)


def test_a_mean_of_the_cosine_heads_directions_is_of_length_1_again(tmp_path):
    head = heads.build("cosine", (4,), 2, hidden_units=[], dropout=0.0)
    fit(head, tmp_path, average_decay=0.9, learning_rate=0.3)
    kernel = head.get_layer("head_directions").kernel.numpy()
    np.testing.assert_allclose(np.linalg.norm(kernel, axis=0), 1, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "batch_size", "images", "expected"),
    [
        ("dense", 64, 65, 65),
        ("dense", 64, 64 * 64 + 1, 65),
        ("dense", 2, 7, 4),  # 3 would leave one as well
        ("dense", 64, 66, 64),
        ("dense", 64, 1, 64),
        ("linear", 64, 65, 64),
        ("linear", 1, 65, 1),
    ],
)
def test_no_batch_that_is_normalised_is_a_single_image(kind, batch_size, images, expected):
    head = head_of(kind, (4,), batch_norm=True)
    assert train_head.batch_size_for(head, batch_size, images) == expected


def test_batches_of_one_image_are_refused_where_they_are_normalised():
    with pytest.raises(UserError, match=r"train_head\.batch_size: expected 2 or more"):
        train_head.batch_size_for(head_of("dense", (4,), batch_norm=True), 1, 65)


def test_dense_has_the_layers_that_are_asked_for():
    head = heads.build(
        "dense", (16,), 3, hidden_units=[8, 4], dropout=0.1, activation="gelu", batch_norm=True
    )
    kinds = [type(layer).__name__ for layer in head.layers[1:]]
    hidden = ["Dense", "BatchNormalization", "Activation", "Dropout"]
    assert kinds == ["Dropout", *hidden, *hidden, "Dense"]
    assert [w.shape for w in head.layers[2].weights] == [(16, 8)]


def features_of(random, count, classes, shift):
    labels = random.integers(classes, size=count)
    values = random.normal(size=(count, 6)) * [1, 2, 3, 4, 5, 0] + 3
    values[:, :classes] += shift * np.eye(classes)[labels]
    return linear_probe.Features(values.astype(np.float32), labels, np.ones(count))


@pytest.mark.parametrize(("kind", "shape"), [("dense", (8,)), ("residual", (2, 2, 8))])
def test_a_few_steps_are_enough_to_know_the_statistics(kind, shape):
    head = heads.build(kind, shape, 2, hidden_units=[4], dropout=0.0, batch_norm=True)
    features = np.random.default_rng(0).normal(5, 3, (64, *shape)).astype("float32")
    for _ in range(80):  # as many as a hundred images have in 40 epochs
        trained = head(features, training=True)
    np.testing.assert_allclose(head(features, training=False), trained, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("classes", [2, 4])
def test_the_solution_is_logistic_regression_at_the_best_strength(classes):
    random = np.random.default_rng(0)
    train, valid = (features_of(random, count, classes, 2.0) for count in (120, 80))
    solution = linear_probe.solve(train, valid, classes)
    best = min(solution.rows, key=lambda row: row["val_loss"])
    mean, scale = train.features.mean(axis=0), train.features.std(axis=0)
    scale[scale == 0] = 1
    model = LogisticRegression(C=1 / (best["l2"] * len(train.labels)), max_iter=5000, tol=1e-8)
    model.fit((train.features - mean) / scale, train.labels)
    logits = valid.features @ solution.kernel + solution.bias
    found = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = model.predict_proba((valid.features - mean) / scale)
    np.testing.assert_allclose(found, expected, atol=5e-3)
    assert solution.rows[0]["l2"] > solution.rows[-1]["l2"]


def test_weights_count_and_a_class_that_has_no_image_is_never_chosen():
    random = np.random.default_rng(0)
    train = features_of(random, 200, 2, 0.5)
    heavy = linear_probe.Features(train.features, train.labels, np.where(train.labels, 9.0, 1.0))
    shares = [
        (train.features @ one.kernel + one.bias).argmax(axis=1).mean()
        for one in (linear_probe.solve(part, train, 3) for part in (train, heavy))
    ]
    assert shares[1] > shares[0] + 0.2
    solution = linear_probe.solve(train, train, 3)
    assert (train.features @ solution.kernel + solution.bias).argmax(axis=1).max() == 1
    of_one = linear_probe.Features(train.features, np.zeros_like(train.labels), train.weights)
    with pytest.raises(UserError, match="two classes or more, received those of one"):
        linear_probe.solve(of_one, train, 3)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Images of two classes in two splits, a tiny backbone and a function that sets params."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    for split, count in (("train", 24), ("valid", 12)):
        rows = [
            (
                random.integers(100 * (n % 2), 256, (24, 24, 3)).astype(np.uint8),
                n % 2,
                f"{split}{n}",
            )
            for n in range(count)
        ]
        shards.write_all(paths.IMAGES / split, rows, "uint8", ["dark", "light"])
    models.save(models.with_any_size(backbones.build("tiny", None, 32)), paths.BACKBONE)
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    for section in ("extract_features", "train_head"):
        content[section].update(OVERRIDES[section])

    def with_params(**changes):
        for section, values in changes.items():
            content[section].update(values)
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))

    return with_params


@pytest.mark.parametrize("head", ["linear", "dense", "cosine"])
def test_stages_train_every_head_on_all_blocks(project, head):
    project(extract_features={"layers": "all_blocks"}, train_head={"head": head, "epochs": 3})
    extract_features.main()
    assert json.loads((paths.FEATURES / "layers.json").read_text()) == [
        "block0_relu",
        "block1_relu",
    ]
    assert shards.read_index(paths.FEATURES / "train").shape == [2, 24]
    train_head.main()
    model = models.load(paths.HEAD)
    assert model.get_layer("head").input_shape == (None, 24)
    # The classifier computes what was cached.
    images, _labels, _ids = next(iter(shards.batches(paths.IMAGES / "valid", 4, image_size=32)))
    features, _labels, _ids = next(iter(shards.batches(paths.FEATURES / "valid", 4)))
    found = model.get_layer("pool")(model.get_layer("backbone")(model.get_layer("resize")(images)))
    np.testing.assert_allclose(found, features[:, 0], rtol=2e-3, atol=2e-3)


def test_lbfgs_separates_what_can_be_separated_and_writes_its_curve(project, capsys):
    project(train_head={"head": "linear", "solver": "lbfgs"})
    extract_features.main()
    train_head.main()
    lines = (paths.PLOTS / "train_head" / "history.csv").read_text().splitlines()
    assert lines[0] == "epoch,l2,loss,accuracy,val_loss,val_accuracy"
    assert len(lines) == 1 + len(linear_probe.STRENGTHS)
    model = models.load(paths.HEAD)
    images, labels, _ids = next(iter(shards.batches(paths.IMAGES / "valid", 12, image_size=32)))
    assert (model.predict(images, verbose=0).argmax(axis=1) == labels.numpy()).all()
    assert "temperature" in capsys.readouterr().out


def test_the_head_that_params_ask_for_is_saved_with_its_temperature_and_names(project, capsys):
    project(
        train_head={
            **{"head": "dense", "hidden_units": [8, 4], "activation": "tanh", "epochs": 3},
            **{"batch_norm": True, "dropout": 0.3},
        }
    )
    extract_features.main()
    train_head.main()
    model = models.load(paths.HEAD)
    (said,) = re.findall(r"temperature ([\d.]+)", capsys.readouterr().out)
    assert models.temperature_of(model) == pytest.approx(float(said), abs=1e-3)
    assert float(said) != pytest.approx(1, abs=1e-2)
    assert models.class_names(paths.HEAD) == ["dark", "light"]
    of_kind = {}
    for layer in model.get_layer("head").layers:
        of_kind.setdefault(type(layer).__name__, []).append(layer)
    assert [layer.units for layer in of_kind["Dense"]] == [8, 4, 2]
    assert [layer.rate for layer in of_kind["Dropout"]] == [0.3] * 3
    assert [layer.activation for layer in of_kind["Activation"]] == [keras.activations.tanh] * 2
    assert len(of_kind["BatchNormalization"]) == 2


def test_a_head_follows_from_the_seed(project):
    project(train_head={"head": "linear", "epochs": 1})
    extract_features.main()
    text, kernels = params.PARAMS_FILE.read_text(), []
    for seed in (0, 1, 1):
        params.PARAMS_FILE.write_text(text.replace("seed: 0", f"seed: {seed}"))
        backups.forget("train_head")
        train_head.main()
        kernels.append(models.load(paths.HEAD).get_layer("head").get_weights()[0])
    assert np.abs(kernels[0] - kernels[1]).max() > 0.1  # the order of images alone moves them less
    np.testing.assert_array_equal(kernels[1], kernels[2])


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        ("train_head", {"solver": "lbfgs"}, "lbfgs solves the linear head only.*head: dense"),
        ("train_head", {"hidden_units": []}, "a whole number of 1 or more.*received \\[\\]"),
        ("train_head", {"hidden_units": [8, True]}, "received \\[8, True\\]"),
        ("train_head", {"head": "conv", "hidden_units": [8, 8]}, "one hidden layer"),
        ("extract_features", {"layers": []}, "layers"),
    ],
)
def test_params_that_contradict_each_other_are_refused(project, section, changes, message):
    project(**{section: changes})
    stage = {"train_head": train_head, "extract_features": extract_features}[section]
    with pytest.raises(Exception, match=message):
        stage.main()


def test_activations_that_float16_cannot_hold_are_refused():
    features = np.full((2, 1, 4), np.inf, np.float16)  # what it makes of 70,000
    with pytest.raises(UserError, match="at block3 are no numbers, or above the 65,504"):
        extract_features.check_finite(features, ["block3"])
