"""`evaluate` as a whole, its slices, and every number of its JSON computed again from its CSV."""

import csv
import dataclasses
import itertools
import json

import numpy as np
import pytest
from scipy.special import softmax
from sklearn import metrics as sklearn_metrics

from stages import evaluate
from stages.common import (
    augment,
    bootstrap,
    evaluation,
    model_cost,
    models,
    params,
    paths,
    shards,
    splits,
)
from stages.common.run import UserError
from stages.common.training import backups

NAMES = ["blue", "green", "red"]
AS_IT_IS = {"horizontal_flip": False, "vertical_flip": False, "quarter_turns": False}
RESAMPLES = 100


def row(number: int, split: str = "test", **columns: str) -> splits.SplitRow:
    return splits.SplitRow(
        f"toy__{number}", split, NAMES[number % 3], f"group {number // 2}", columns
    )


@pytest.fixture
def project(tmp_path, monkeypatch, toy_classifier):
    """A folder with a model, 30 test images of three classes, params and a table of splits."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["evaluate", "head"])
    (tmp_path / "params.yaml").write_text(
        f"evaluate:\n  batch_size: 8\n  bootstrap_samples: {RESAMPLES}\n  weight_column: score\n"
        "  slice_columns: null\n"
        f"  test_time_augment: {json.dumps(AS_IT_IS)}\n"
    )
    models.save(toy_classifier("linear", temperature=0.4), paths.HEAD)
    random = np.random.default_rng(0)
    shards.write_all(
        paths.IMAGES / "test",
        (
            (random.integers(0, 256, (40, 32, 3), dtype=np.uint8), number % 3, f"toy__{number}")
            for number in range(30)
        ),
        "uint8",
        NAMES,
    )
    thirds = ("0.0", "0.3333333432674408", "1.0")
    columns = [
        {"name": f"{number}.png", "camera": "ab"[number % 2], "score": thirds[number // 10 % 3]}
        for number in range(33)
    ]
    rows = [
        row(number, "test" if number < 30 else "train", **values)
        for number, values in enumerate(columns)
    ]
    splits.write(splits.SPLITS_FILE, rows[::-1], ["name", "camera", "score"])
    return tmp_path


class Recomputed:
    """The numbers of a set of rows of the CSV, from scikit-learn and nothing of this project."""

    def __init__(
        self, rows: list[dict], groups: dict[str, str], scores: dict[str, float], temperature: float
    ):
        self.class_names = [name[12:] for name in rows[0] if name.startswith("probability ")]
        self.labels = np.array([self.class_names.index(line["label"]) for line in rows])
        self.groups = np.array([groups[line["id"]] for line in rows])
        self.weights = np.array([scores[line["id"]] for line in rows])
        table = np.array([[float(text) for text in list(line.values())[4:]] for line in rows])
        self.probabilities = table / table.sum(axis=1, keepdims=True)
        self.temperature = temperature
        assert [line["correct"] for line in rows] == [
            str(int(line["predicted"] == line["label"])) for line in rows
        ]

    def headline(self, rows=slice(None)) -> dict[str, float]:
        labels, probabilities = self.labels[rows], self.probabilities[rows]
        predicted = probabilities.argmax(axis=1)
        numbers = range(len(self.class_names))
        of = sklearn_metrics
        found = {
            "accuracy": of.accuracy_score(labels, predicted),
            "balanced_accuracy": of.recall_score(
                labels, predicted, labels=np.unique(labels), average="macro"
            ),
            "f1_macro": of.f1_score(labels, predicted, average="macro"),
            **self.calibration(labels, probabilities),
        }
        weights = self.weights[rows]
        for name, counts in {"roc_auc": np.ones(len(labels)), "weighted_roc_auc": weights}.items():
            areas = [
                of.roc_auc_score(labels == number, probabilities[:, number], sample_weight=counts)
                for number in numbers
                if counts[labels == number].any() and counts[labels != number].any()
            ]
            found |= {name: np.mean(areas)} if areas else {}
        if weights.any():
            found["weighted_accuracy"] = weights[predicted == labels].sum() / weights.sum()
        return found

    def calibration(self, labels, probabilities) -> dict[str, float]:
        one_hot = np.eye(len(self.class_names))[labels]
        confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
        edges = np.linspace(0, 1, 16)
        gaps = [
            np.abs((right[inside] - confidence[inside]).sum())
            for low, high in itertools.pairwise(edges)
            if (inside := (confidence > low) & (confidence <= high)).any()
        ]
        return {
            "loss": -np.log(probabilities[np.arange(len(labels)), labels]).mean(),
            "brier_score": ((one_hot - probabilities) ** 2).sum(axis=1).mean(),
            "expected_calibration_error": sum(gaps) / len(labels),
        }

    def intervals(self) -> dict:
        """By taking the images of the drawn groups one by one."""
        names = sorted(set(self.groups))
        random = np.random.default_rng(0)
        drawn = []
        for _ in range(RESAMPLES):
            chosen = [names[number] for number in random.integers(len(names), size=len(names))]
            rows = np.concatenate([np.flatnonzero(self.groups == name) for name in chosen])
            drawn.append(self.headline(rows))
        values = {
            name: np.array([one[name] for one in drawn if name in one])
            for name in drawn[0]
            if name != "expected_calibration_error"
        }
        f1 = values["f1_macro"]
        values["f1_macro"] = np.clip(f1 - f1.mean() + self.headline()["f1_macro"], 0, 1)
        return {
            name: dict(zip(("low", "high"), np.quantile(each, (0.025, 0.975)), strict=True))
            for name, each in values.items()
        }

    def everything(self) -> dict:
        predicted = self.probabilities.argmax(axis=1)
        numbers = range(len(self.class_names))
        of = sklearn_metrics
        before = softmax(self.temperature * np.log(self.probabilities), axis=1)
        return {
            **self.headline(),
            "images": len(self.labels),
            "f1_weighted": of.f1_score(self.labels, predicted, average="weighted"),
            "cohen_kappa": of.cohen_kappa_score(self.labels, predicted),
            "average_precision": np.mean(
                [
                    of.average_precision_score(self.labels == number, self.probabilities[:, number])
                    for number in numbers
                ]
            ),
            "uncalibrated": self.calibration(self.labels, before),
        }

    def by_class(self) -> dict:
        predicted = self.probabilities.argmax(axis=1)
        report = sklearn_metrics.classification_report(
            self.labels,
            predicted,
            labels=range(len(self.class_names)),
            target_names=self.class_names,
            output_dict=True,
            zero_division=0,
        )
        return {
            name: {key.removesuffix("-score"): value for key, value in report[name].items()}
            for name in self.class_names
        }


def flat(nested: dict, prefix: str = "") -> dict[str, float]:
    """Nested numbers by their path."""
    found = {}
    for key, value in nested.items():
        found |= (
            flat(value, f"{prefix}{key}/") if isinstance(value, dict) else {prefix + key: value}
        )
    return found


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.UndefinedMetricWarning")
def test_every_number_follows_from_the_table_of_predictions(project, monkeypatch):
    monkeypatch.setattr(bootstrap, "LEAST_GROUPS", 5)  # those of a third of the images
    evaluate.main()
    with (project / "data" / "predictions" / "head.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    with (project / "data" / "splits.csv").open(newline="") as file:
        columns_of = {line["id"]: line for line in csv.DictReader(file)}
    groups = {example_id: line["group"] for example_id, line in columns_of.items()}
    written = json.loads((project / "metrics" / "head.json").read_text())
    temperature = written["temperature"]
    assert temperature == pytest.approx(0.4)

    scores = {example_id: float(line["score"]) for example_id, line in columns_of.items()}
    whole = Recomputed(rows, groups, scores, temperature)
    expected = {
        **whole.everything(),
        "interval": whole.intervals(),
        "groups": 15,
        "temperature": temperature,
        "class": whole.by_class(),
    }
    expected["slice"] = {
        column: {
            shown: Recomputed(
                [line for line in rows if columns_of[line["id"]][column] == value],
                groups,
                scores,
                temperature,
            ).everything()
            for shown, value in values.items()
        }
        for column, values in {
            "camera": {"a": "a", "b": "b"},
            "score": {"0": "0.0", "0.3333": "0.3333333432674408", "1": "1.0"},
        }.items()
    }
    # Image by image this takes a second for each set; one slice stands for all.
    of_a = Recomputed(
        [line for line in rows if columns_of[line["id"]]["camera"] == "a"],
        groups,
        scores,
        temperature,
    )
    expected["slice"]["camera"]["a"]["interval"] = of_a.intervals()
    for column, value in (("camera", "b"), ("score", "0"), ("score", "0.3333"), ("score", "1")):
        found = written["slice"][column][value].pop("interval")
        # Where all weights are 0 there is nothing to weigh.
        weighted = {"weighted_accuracy", "weighted_roc_auc"}
        undefined = weighted if (column, value) == ("score", "0") else set()
        assert set(found) == set(expected["interval"]) - undefined
    cost = {name: written.pop(name) for name in ("parameters", "multiply_adds")}
    assert flat(written) == pytest.approx(flat(expected), abs=1.5e-6)
    assert cost == model_cost.model_cost(models.load(paths.HEAD))
    assert len(rows) == 30
    assert (project / "plots" / "head" / "confusion.csv").is_file()
    assert (project / "data" / "gallery" / "head" / "gallery.json").is_file()


def test_each_model_is_measured_by_its_own_file(project, monkeypatch, toy_classifier):
    models.save(toy_classifier("linear"), paths.FINE_TUNED)  # of another temperature
    tables = []
    for name in paths.CLASSIFIERS:
        monkeypatch.setattr("sys.argv", ["evaluate", name])
        evaluate.main()
        tables.append((project / paths.PREDICTIONS / f"{name}.csv").read_text())
    assert tables[0] != tables[1]


def test_hours_of_training_are_kept_until_their_model_is_measured(
    project, monkeypatch, toy_classifier
):
    """One that was interrupted stays longer: the model that is measured may be of a checkout."""
    monkeypatch.setattr("sys.argv", ["evaluate", "fine_tuned"])
    interrupted, finished = (paths.BACKUP / "fine_tune" / name for name in ("one", "other"))
    for backup in (interrupted, finished):
        (backup / "epoch-000007").mkdir(parents=True)
    backups.finish(finished)
    with pytest.raises(UserError, match=r"fine_tuned\.keras does not exist"):
        evaluate.main()
    assert finished.exists()
    models.save(toy_classifier("linear"), paths.FINE_TUNED)
    evaluate.main()
    assert (interrupted.exists(), finished.exists()) == (True, False)


def test_what_is_wrong_in_params_is_told_before_anything_is_predicted(project, monkeypatch):
    def late():
        pytest.fail("too late")

    monkeypatch.setattr(evaluate, "start_tensorflow", late)
    text = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(text.replace("null", "\n    - camra"))
    with pytest.raises(
        UserError, match=r"slice_columns: .* received 'camra'; did you mean 'camera'"
    ):
        evaluate.main()


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("scor", "received 'scor'; did you mean 'score'"),
        ("camera", "number of 0 or more in the column 'camera', received '[ab]' for [0-9]+.png"),
    ],
)
def test_a_column_that_holds_no_weights_is_refused(project, column, message):
    with pytest.raises(UserError, match=f"evaluate.weight_column: expected .*{message}"):
        evaluation.image_weights(evaluation.test_rows(), column)


def test_weights_that_leave_no_image_are_refused(project):
    rows = [dataclasses.replace(one, columns={"score": "0"}) for one in evaluation.test_rows()]
    with pytest.raises(UserError, match=r"weight_column: every test image has weight 0 .* 'score'"):
        evaluation.image_weights(rows, "score")


def test_a_table_of_splits_of_other_images_is_refused(project):
    rows = [one for one in splits.read() if one.id != "toy__7"]
    splits.write(splits.SPLITS_FILE, rows, ["name", "camera", "score"])
    with pytest.raises(UserError, match=r"no test image 'toy__7' \(1 of 30 are missing\)"):
        evaluate.main()


def test_only_rows_of_the_test_split_count(project):
    assert [one.id for one in evaluation.test_rows()] == [f"toy__{n}" for n in range(29, -1, -1)]


def test_an_unknown_model_is_named(project, monkeypatch):
    monkeypatch.setattr("sys.argv", ["evaluate", "heads"])
    with pytest.raises(UserError, match=r"one model of head, fine_tuned, received \['heads'\]"):
        evaluate.main()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("bootstrap_samples", 50, "expected a whole number from 100 to 100000, received 50"),
        ("slice_columns", "camera", "null .every column with 2 to 10 values. or a list of columns"),
        ("slice_columns", [""], "slice_columns"),
        ("weight_column", "", "null or a column of data/splits.csv"),
        ("samples", 100, "samples: unknown key"),
    ],
)
def test_impossible_params_are_refused(key, value, message):
    section = {
        "batch_size": 8,
        "bootstrap_samples": 100,
        "weight_column": None,
        "slice_columns": None,
        "test_time_augment": AS_IT_IS,
        key: value,
    }
    with pytest.raises(UserError, match=message):
        params.check({"evaluate": section}, "evaluate", evaluation.EvaluateParams)


def rows_with(**columns: list[str]) -> list[splits.SplitRow]:
    count = len(next(iter(columns.values())))
    return [
        row(number, **{name: values[number] for name, values in columns.items()})
        for number in range(count)
    ]


def test_columns_with_two_to_ten_values_are_sliced_by_themselves():
    rows = rows_with(
        name=["a", "b"] * 6,
        constant=["x"] * 12,
        two=["x", "y"] * 6,
        ten=[str(min(number, 9)) for number in range(12)],
        eleven=[str(min(number, 10)) for number in range(12)],
    )
    assert evaluation.slice_columns(rows, None) == ["two", "ten"]
    assert evaluation.slice_columns(rows, []) == []
    # What somebody asks for is given, once.
    assert evaluation.slice_columns(rows, ["eleven", "name", "eleven"]) == ["eleven", "name"]


def test_columns_that_cannot_be_sliced_are_refused():
    rows = rows_with(serial=[str(number) for number in range(101)], site=["a"] * 101)
    with pytest.raises(UserError, match=r"which has serial, site, received 'sites'; did you mean"):
        evaluation.slice_columns(rows, ["sites"])
    with pytest.raises(
        UserError, match=r"at most 100 different values, .* 'serial', which has 101"
    ):
        evaluation.slice_columns(rows, ["serial"])
    with pytest.raises(UserError, match="which has none to slice by, received 'site'"):
        evaluation.slice_columns([row(0)], ["site"])


def test_values_become_readable_names():
    values = ["0.3333333432674408", "1.0", "", "mono", "007", "1.0"]
    assert evaluation.members_by_value(values) == {
        "0.3333": [0],
        "1": [1, 5],
        "(empty)": [2],
        "mono": [3],
        "007": [4],
    }
    # Shortened, these would be one; version 1.10 is not version 1.1.
    for values in (["0.33333", "0.33334"], ["1.10", "1.1"]):
        assert evaluation.members_by_value(values) == {values[0]: [0], values[1]: [1]}
    # A cell that says so and one that is so are one slice; none loses its images.
    assert evaluation.members_by_value(["", "(empty)", "x"]) == {"(empty)": [0, 1], "x": [2]}


def test_views_of_an_image_are_averaged(toy_classifier):
    model = toy_classifier("linear")
    images = np.random.default_rng(0).integers(0, 256, (6, 40, 30, 3)).astype("float32")
    both = evaluate.averaged(model, [augment.IDENTITY, augment.LEFT_RIGHT])(images)
    expected = (model(images) + model(images[:, :, ::-1])) / 2
    np.testing.assert_allclose(both, expected, rtol=1e-5)
    np.testing.assert_array_equal(
        evaluate.averaged(model, [augment.IDENTITY])(images), model(images)
    )


def test_the_views_that_params_ask_for_are_averaged(project):
    tables = {}
    for flip in (False, True):
        text = (project / "params.yaml").read_text()
        asked = json.dumps(AS_IT_IS | {"horizontal_flip": flip})
        (project / "params.yaml").write_text(text.replace(json.dumps(AS_IT_IS), asked))
        evaluate.main()
        metrics = json.loads((project / "metrics" / "head.json").read_text())
        assert metrics["temperature"] == pytest.approx(0.4)
        # A mean of two views has no logit from which the temperature could be taken back.
        for numbers in (metrics, metrics["slice"]["camera"]["a"]):
            assert ("uncalibrated" in numbers) != flip
        with (project / "plots" / "head" / "reliability.csv").open(newline="") as file:
            shown = {row["temperature"] for row in csv.DictReader(file)}
        assert shown == ({"after"} if flip else {"before", "after"})
        with (project / "data" / "predictions" / "head.csv").open(newline="") as file:
            tables[flip] = [
                [float(value) for name, value in row.items() if name.startswith("probability ")]
                for row in csv.DictReader(file)
            ]
    model = models.load(paths.HEAD)
    images = np.concatenate(
        [batch[0].numpy() for batch in shards.batches(paths.IMAGES / "test", 30)]
    ).astype("float32")
    mirrored = model(images[:, :, ::-1]).numpy()
    assert np.abs(mirrored - np.array(tables[False])).max() > 1e-3
    expected = (np.array(tables[False]) + mirrored) / 2
    np.testing.assert_allclose(np.array(tables[True]), expected, atol=1e-5)
