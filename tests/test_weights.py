"""Class weights and sample weights: the numbers, the loss that follows, and what goes wrong."""

import contextlib
import csv
import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
import yaml
from scipy.special import log_softmax
from sklearn.utils.class_weight import compute_class_weight

from stages import fine_tune, train_head
from stages.common import backbones, blocks, heads, models, params, paths, shards, splits, weights
from stages.common.run import UserError
from stages.common.training import backups, loop, optimizers
from tests import ROOT
from tests.test_params import error_of
from tests.training_toys import parameters

CLASSES = ["cat", "dog", "owl"]
COUNTS = [6, 3, 1]
LABELS = np.repeat([0, 1, 2], COUNTS)
QUALITY = [0, 1, 2, 3, 4, 5, 1, 1, 1, 8]


def wanted(**changes) -> weights.WeightParams:
    keys = {"class_weights": None, "class_balance_beta": 0.9, "sample_weight_column": None}
    return weights.WeightParams(**{**keys, **changes})


def load(class_counts=COUNTS, **changes):
    return weights.load(wanted(**changes), "train_head", CLASSES, class_counts)


def write_splits(rows, columns=("quality",), split="train"):
    """data/splits.csv in this folder: one (id, label, *columns) a row, and one test image."""
    splits.SPLITS_FILE.parent.mkdir(exist_ok=True)
    table = [
        splits.SplitRow(
            id=example_id,
            split=split,
            label=label,
            group="",
            columns={name: str(value) for name, value in zip(columns, values, strict=True)},
        )
        for example_id, label, *values in rows
    ]
    others = dict.fromkeys(columns, "no weight")
    test = splits.SplitRow(id="test", split="test", label="cat", group="", columns=others)
    splits.write(splits.SPLITS_FILE, [*table, test], list(columns))


@pytest.fixture
def table(tmp_path, monkeypatch):
    """A folder whose data/splits.csv has the column `quality` for the ten training images."""
    monkeypatch.chdir(tmp_path)
    write_splits(
        [(f"id {n}", CLASSES[label], QUALITY[n]) for n, label in enumerate(LABELS)],
    )


def image_weights(loaded) -> np.ndarray:
    """The weights of the ten training images."""
    ids = [f"id {number}" for number in range(len(LABELS))]
    return loaded.function()(tf.constant(LABELS), tf.constant(ids)).numpy()


def test_balanced_weights_are_those_of_scikit_learn():
    expected = compute_class_weight("balanced", classes=np.arange(3), y=LABELS)
    np.testing.assert_allclose(weights.of_classes("balanced", 0.9, CLASSES, COUNTS), expected)
    np.testing.assert_allclose(expected, [10 / 18, 10 / 9, 10 / 3])
    # Their mean over the images is 1 as it is.
    np.testing.assert_allclose(load(class_weights="balanced").by_class, expected)


def test_effective_number_by_hand_and_its_two_ends():
    by_hand = [0.1 / (1 - 0.9**6), 0.1 / (1 - 0.9**3), 1.0]
    np.testing.assert_allclose(
        weights.of_classes("effective_number", 0.9, CLASSES, COUNTS), by_hand
    )
    all_equal = load(class_weights="effective_number", class_balance_beta=0.0)
    np.testing.assert_allclose(all_equal.by_class, [1, 1, 1])
    nearly_balanced = load(class_weights="effective_number", class_balance_beta=0.999999)
    np.testing.assert_allclose(nearly_balanced.by_class, [10 / 18, 10 / 9, 10 / 3], rtol=1e-5)


def test_a_class_without_a_training_image_makes_no_weight_infinite():
    for choice in weights.METHODS:
        by_class = load(class_counts=[6, 3, 0], class_weights=choice).by_class
        assert np.isfinite(by_class).all()
        assert by_class @ [6, 3, 0] == pytest.approx(9)


@pytest.mark.parametrize("choice", [None, *weights.METHODS, {"owl": 0, "cat": 2.5, "dog": 10}])
@pytest.mark.parametrize("column", [None, "quality"])
@pytest.mark.usefixtures("table")
def test_the_mean_weight_over_the_training_images_is_one(choice, column):
    if choice is None and column is None:
        assert load() is None  # so that the datasets stay without weights
        return
    loaded = image_weights(load(class_weights=choice, sample_weight_column=column))
    assert loaded.dtype == np.float32
    assert loaded.mean() == pytest.approx(1, rel=1e-6)
    assert len(set(loaded)) > 1


@pytest.mark.usefixtures("table")
def test_class_and_sample_weights_multiply():
    loaded = load(class_weights={"cat": 1, "dog": 2, "owl": 0.5}, sample_weight_column="quality")
    product = np.array([1, 2, 0.5])[LABELS] * QUALITY
    np.testing.assert_allclose(image_weights(loaded), product / product.mean(), rtol=1e-6)


def test_equal_weights_read_no_table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load() is None
    assert load(class_weights="balanced") is not None
    assert weights.files(wanted(class_weights="balanced")) == []
    assert weights.files(wanted(sample_weight_column="quality")) == [splits.SPLITS_FILE]


@pytest.mark.usefixtures("table")
def test_an_image_that_the_table_does_not_have_gets_no_weight_in_silence():
    weigh = load(sample_weight_column="quality").function()
    assert np.isnan(weigh(tf.constant([0]), tf.constant(["another"])).numpy()).all()


@pytest.mark.parametrize(
    ("value", "received"),
    [
        ("balance", "'balance'; did you mean 'balanced'?"),
        ("effective number", "'effective number'; did you mean 'effective_number'?"),
        (2, "2"),
        (True, "True"),
        ([1, 2], "[1, 2]"),
        ({}, "{}"),
    ],
)
@pytest.mark.parametrize("section", ["train_head", "fine_tune"])
def test_class_weights_that_are_none(section, value, received):
    assert error_of(section, {"class_weights": value}) == (
        f"params.yaml, {section}.class_weights: expected null (all equal), balanced, "
        f"effective_number, or a number of 0 or more for each class, received {received}"
    )


def test_a_class_with_a_weight_that_is_no_weight_is_named():
    given = {"cat": -1, "dog": "1e-4", "owl": 1, "yak": True, "ant": float("inf")}
    assert error_of("train_head", {"class_weights": given}) == (
        "params.yaml, train_head.class_weights: expected a number of 0 or more for each class, "
        "received cat: -1, dog: '1e-4', yak: True, ant: inf"
    )


def test_class_names_that_yaml_reads_as_numbers_are_names():
    content = params.read(ROOT / "params.yaml")
    content["train_head"]["class_weights"] = yaml.safe_load("0: 1.0\n0.5: 2\n")
    read = params.check(content, "train_head", train_head.TrainHeadParams)
    weights.check_class_names(read.class_weights, ["0", "0.5"], "here")


def test_given_weights_name_every_class_and_no_other():
    with pytest.raises(UserError) as caught:
        load(class_weights={"cat": 1, "dgo": 2})
    assert str(caught.value).split("\n       ") == [
        "params.yaml, train_head.class_weights: unknown class 'dgo'; did you mean 'dog'?",
        "params.yaml, train_head.class_weights: no weight for 'dog', 'owl'; give one, 0 to ignore "
        "it",
    ]


@pytest.mark.usefixtures("table")
def test_weights_that_are_all_zero():
    for given in ({"cat": 0, "dog": 0, "owl": 0}, {"cat": 0.0, "dog": 0, "owl": 0}):
        with pytest.raises(UserError, match="train_head: every training image has weight 0"):
            load(class_weights=given)


@pytest.mark.usefixtures("table")
def test_an_unknown_column_is_answered_with_those_that_there_are():
    with pytest.raises(UserError) as caught:
        load(sample_weight_column="qualty")
    assert str(caught.value) == (
        "params.yaml, train_head.sample_weight_column: expected null or a column of "
        "data/splits.csv, which has quality, received 'qualty'; did you mean 'quality'?"
    )


def test_bad_weights_are_counted_and_the_first_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bad = ["", "heavy", "-0.1", "nan", "inf", "1,5", "-3"]
    write_splits([(f"id {n}", "cat", text) for n, text in enumerate(["1", *bad, "0"])])
    with pytest.raises(UserError) as caught:
        load(class_counts=[9, 0, 0], sample_weight_column="quality")
    assert str(caught.value) == (
        "params.yaml, train_head.sample_weight_column: expected a number of 0 or more in the "
        "column 'quality', received '' for id 1, 'heavy' for id 2, "
        "'-0.1' for id 3, 'nan' for id 4, 'inf' for id 5 and 2 more; mend the data set's table"
    )


def test_bad_weights_are_found_by_the_name_of_the_image_where_there_is_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_splits([("id 0", "cat", "x", "cats/0.png")], columns=("quality", "name"))
    with pytest.raises(UserError, match=r"received 'x' for cats/0\.png; mend"):
        load(class_counts=[1, 0, 0], sample_weight_column="quality")


@pytest.mark.usefixtures("table")
def test_a_table_of_other_images_than_those_stored_is_refused():
    for counts in ([6, 3, 2], [5, 4, 1]):
        with pytest.raises(UserError, match=r"splits.csv lists 10 training images.*dvc repro"):
            load(class_counts=counts, sample_weight_column="quality")
    with pytest.raises(UserError, match="their classes differ"):
        weights.load(wanted(sample_weight_column="quality"), "train_head", ["cat", "dog"], [6, 4])


# What the weights do to training.


def linear_model(features: int = 4, classes: int = 3) -> keras.Model:
    keras.utils.set_random_seed(1)
    inputs = keras.Input((features,))
    return keras.Model(inputs, keras.layers.Dense(classes, name="logits")(inputs))


def features_of(count: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, 4)).astype("float32")


def losses_of(model, features, labels) -> np.ndarray:
    """The cross-entropy of each image, in float64, by SciPy."""
    log_probabilities = log_softmax(model.predict(features, verbose=0).astype(float), axis=1)
    return -log_probabilities[np.arange(len(labels)), labels]


@pytest.mark.usefixtures("table")
def test_loss_of_a_batch_is_the_weighted_mean_by_hand_and_accuracy_counts_images():
    loaded = load(class_weights="balanced", sample_weight_column="quality")
    model = linear_model()
    optimizers.compile_model(model, parameters(), 1)
    features = features_of(10)
    losses = losses_of(model, features, LABELS)
    correct = model.predict(features, verbose=0).argmax(axis=1) == LABELS
    ids = tf.constant([f"id {number}" for number in range(10)])
    # In two batches, the loss that an epoch reports is the mean over all of its images.
    batches = tf.data.Dataset.from_tensor_slices((features, LABELS, ids)).batch(7)
    ((arrays, one_hot, given), _) = loop.with_one_hot(batches, 3, loaded.function())
    by_class = np.array([10 / 18, 10 / 9, 10 / 3])[LABELS]
    by_hand = by_class * QUALITY / (by_class * QUALITY).mean()
    np.testing.assert_allclose(given, by_hand[:7], rtol=1e-6)
    loss, accuracy = model.train_on_batch(arrays, one_hot, sample_weight=given)
    assert loss == pytest.approx((by_hand[:7] * losses[:7]).mean(), rel=1e-5)
    assert accuracy == pytest.approx(correct[:7].mean())
    assert 0 < correct[:7].mean() < 1
    assert loss != pytest.approx(losses[:7].mean(), rel=1e-2)


def test_without_weights_the_dataset_has_none():
    batches = tf.data.Dataset.from_tensor_slices((features_of(10), LABELS, ["x"] * 10)).batch(5)
    assert len(loop.with_one_hot(batches, 3).element_spec) == 2


def write_features(folder, features, labels, class_names):
    """Shards of both splits; those of the validation split have other ids."""
    for split in ("train", "valid"):
        prefix = "id" if split == "train" else "valid"
        records = ((row, int(labels[n]), f"{prefix} {n}") for n, row in enumerate(features))
        shards.write_all(folder / split, records, "float32", class_names)


@pytest.mark.usefixtures("table")
def test_history_has_the_weighted_loss_and_plain_accuracy_and_validation(tmp_path):
    features = features_of(10)
    write_features(tmp_path / "features", features, LABELS, CLASSES)
    model = linear_model()
    losses = losses_of(model, features, LABELS)
    correct = model.predict(features, verbose=0).argmax(axis=1) == LABELS
    loop.train(
        "toy",
        model,
        # A rate so small that all batches see the model as it is now.
        parameters(learning_rate=1e-9, epochs=1, batch_size=4),
        data=tmp_path / "features",
        seed=0,
        save=lambda temperature: None,
        image_weights=load(sample_weight_column="quality"),
    )
    with (paths.PLOTS / "toy" / "history.csv").open() as file:
        (row,) = csv.DictReader(file)
    by_hand = np.array(QUALITY) / np.mean(QUALITY)
    assert float(row["loss"]) == pytest.approx((by_hand * losses).mean(), rel=1e-4)
    assert float(row["val_loss"]) == pytest.approx(losses.mean(), rel=1e-4)
    assert float(row["accuracy"]) == float(row["val_accuracy"]) == pytest.approx(correct.mean())


def test_a_class_of_weight_zero_has_no_influence():
    loaded = load(class_weights={"cat": 0, "dog": 1, "owl": 1})
    weigh = loaded.function()
    model = linear_model()
    optimizers.compile_model(model, parameters(optimizer="sgd", learning_rate=1.0), 1)
    before = model.get_weights()
    one_hot = np.eye(3, dtype="float32")
    for labels, changes in (([0, 0, 0, 0], False), ([0, 1, 0, 0], True)):
        given = weigh(tf.constant(labels), tf.constant(["x"] * 4)).numpy()
        model.train_on_batch(features_of(4), one_hot[labels], sample_weight=given)
        changed = any(
            not np.array_equal(old, new)
            for old, new in zip(before, model.get_weights(), strict=True)
        )
        assert changed == changes


@pytest.mark.parametrize("choice", ["balanced", "effective_number"])
def test_a_rare_class_is_found_more_often_with_weights(tmp_path, monkeypatch, choice):
    monkeypatch.chdir(tmp_path)
    # Two overlapping classes, 19 to 1: by frequency alone the rare one is hardly ever right.
    labels = np.repeat([0, 1], [380, 20])
    features = np.random.default_rng(0).normal(size=(400, 4)) + labels[:, None] * 0.8
    features = features.astype("float32")
    write_features(tmp_path / "features", features, labels, ["common", "rare"])
    recalls = {}
    for wish in (None, choice):
        backups.forget("toy")  # of the run before, which would be taken as finished
        model = linear_model(classes=2)
        asked = wanted(class_weights=wish, class_balance_beta=0.999)
        loop.train(
            "toy",
            model,
            parameters(learning_rate=0.05, epochs=15, batch_size=40),
            data=tmp_path / "features",
            seed=0,
            save=lambda temperature: None,
            image_weights=weights.load(asked, "toy", ["common", "rare"], [380, 20]),
        )
        found = model.predict(features, verbose=0).argmax(axis=1)
        recalls[wish] = [(found[labels == label] == label).mean() for label in (0, 1)]
    assert recalls[None][0] > 0.95
    assert recalls[None][1] < 0.5
    assert recalls[choice][1] > recalls[None][1] + 0.25
    assert recalls[choice][0] > 0.6  # not by calling everything rare


# The two stages, as dvc.yaml runs them.


@pytest.fixture
def project(tmp_path, monkeypatch, toy_backbone):
    """A folder with what both training stages read; a function sets keys of one section."""
    monkeypatch.chdir(tmp_path)
    names, labels = ["cat", "dog"], np.arange(16) % 2
    random = np.random.default_rng(0)
    for split in ("train", "valid"):
        images = random.integers(0, 256, (16, 32, 32, 3), dtype=np.uint8)
        ids = [f"{split} {number}" for number in range(16)]
        features = random.normal(size=(16, 2, 16)).astype("float16")
        features = features if split == "train" else features[:, :1]
        for folder, arrays in ((paths.IMAGES, images), (paths.FEATURES, features)):
            records = zip(arrays, labels.tolist(), ids, strict=True)
            shards.write_all(folder / split, records, str(arrays.dtype), names)
    write_splits([(f"train {n}", names[label], int(label)) for n, label in enumerate(labels)])
    models.save(toy_backbone, paths.BACKBONE)
    blocks.write_layers([])
    quick = {"batch_size": 8, "epochs": 6, "learning_rate": 0.1, "early_stopping_patience": None}
    content = params.read(ROOT / "params.yaml")
    for section in ("train_head", "fine_tune"):
        content[section].update(quick, hidden_units=8)
    del content["fine_tune"]["hidden_units"]
    content["fine_tune"]["image_sizes"] = None  # the network sees 32 pixels

    def set_keys(section: str, **changes) -> None:
        content[section].update(changes)
        params.PARAMS_FILE.write_text(yaml.safe_dump(content))

    return set_keys


STAGES = {
    "train_head": (train_head.main, paths.HEAD),
    "fine_tune": (fine_tune.main, paths.FINE_TUNED),
}


@pytest.mark.parametrize("stage", STAGES)
def test_both_stages_use_class_weights_and_sample_weights(project, stage):
    main, path = STAGES[stage]
    images, _, _ = next(iter(shards.batches(paths.IMAGES / "valid", 16)))
    # `quality` is 0 for cats and 1 for dogs.
    for changes, only in (
        ({"class_weights": {"cat": 1.0, "dog": 0.0}}, 0),
        ({"class_weights": None, "sample_weight_column": "quality"}, 1),
    ):
        project(stage, **changes)
        models.save(new_classifier(), paths.HEAD)
        main()
        found = models.load(path).predict(images, verbose=0).argmax(axis=1)
        assert set(found) == {only}


def new_classifier():
    keras.utils.set_random_seed(0)
    head = heads.build("linear", (16,), 2, hidden_units=[1], dropout=0.0)
    return models.assemble(models.with_any_size(backbones.build("tiny", None, 32)), head)


class Stopped(Exception):
    """Ends a stage where its training would begin."""


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_does_not_resume_what_began_with_other_weights(project, monkeypatch, stage):
    main, _ = STAGES[stage]
    models.save(new_classifier(), paths.HEAD)
    folders = []

    def stop(*_arguments, backup, **_keys):
        folders.append(backup.name)
        raise Stopped

    monkeypatch.setattr(loop, "fit", stop)

    def backup_with(**changes) -> str:
        project(stage, **changes)
        with contextlib.suppress(Stopped):
            main()
        return folders[-1]

    plain = backup_with()
    with_column = backup_with(sample_weight_column="quality")
    balanced = backup_with(sample_weight_column=None, class_weights="balanced")
    assert plain == backup_with(class_weights=None)
    text = splits.SPLITS_FILE.read_text()
    splits.SPLITS_FILE.write_text(text.replace("train 1,train,dog,,1", "train 1,train,dog,,7"))
    assert plain == backup_with()  # which reads no table
    edited = backup_with(sample_weight_column="quality")
    assert len(folders) == 6
    for one, other in itertools.combinations((plain, with_column, balanced, edited), 2):
        assert one != other


@pytest.mark.parametrize("stage", STAGES)
def test_wrong_class_names_are_found_before_tensorflow_starts(project, monkeypatch, stage):
    main, _ = STAGES[stage]

    def start(*_arguments):
        raise AssertionError("TensorFlow was started")

    monkeypatch.setattr(f"stages.{stage}.start_tensorflow", start)
    models.save(new_classifier(), paths.HEAD)  # without it fine_tune has nothing to begin with
    project(stage, class_weights={"cat": 1.0, "dgo": 2.0})
    with pytest.raises(UserError, match=rf"{stage}.class_weights: unknown class 'dgo'"):
        main()
