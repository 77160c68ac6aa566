import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from stages.common import bootstrap
from stages.common.metrics import MOST_CLASSES_FOR_AREAS, numbers

METRICS = {"accuracy", "loss", "brier_score", "balanced_accuracy", "f1_macro", "roc_auc"}


def draw(images: int, classes: int, seed: int = 0, decimals: int | None = None):
    """Labels and probabilities that know something of them; rounded, many are equal."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, images)
    logits = random.normal(size=(images, classes))
    logits[np.arange(images), labels] += 1
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    if decimals is not None:
        probabilities = np.round(probabilities, decimals) + 1e-3
        probabilities /= probabilities.sum(axis=1, keepdims=True)
        probabilities = np.round(probabilities, 9)
    return labels, probabilities


def by_scikit_learn(labels, probabilities, weights=None) -> dict[str, float]:
    """The same metrics of one weighting, each by its function."""
    predicted = probabilities.argmax(axis=1)
    classes = np.arange(probabilities.shape[1])
    columns = [1] if len(classes) == 2 else classes
    weigh = {"sample_weight": weights}
    return {
        "accuracy": sklearn_metrics.accuracy_score(labels, predicted, **weigh),
        "balanced_accuracy": sklearn_metrics.balanced_accuracy_score(labels, predicted, **weigh),
        "f1_macro": sklearn_metrics.f1_score(labels, predicted, average="macro", **weigh),
        "loss": sklearn_metrics.log_loss(labels, probabilities, labels=classes, **weigh),
        "brier_score": sklearn_metrics.brier_score_loss(
            labels, probabilities, labels=classes, scale_by_half=False, **weigh
        ),
        "roc_auc": np.mean(
            [
                sklearn_metrics.roc_auc_score(labels == number, probabilities[:, number], **weigh)
                for number in columns
                if 0 < (labels == number).sum() < len(labels)
            ]
        ),
    }


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("decimals", [None, 1])
def test_weighted_metrics_are_those_of_scikit_learn(classes, decimals):
    labels, probabilities = draw(60, classes, decimals=decimals)
    if decimals:
        assert len(np.unique(probabilities[:, 1])) < 40  # ties are there to be counted
    weights = np.random.default_rng(1).random((60, 3)) + 0.1
    found = bootstrap.Statistics(labels, probabilities).of(weights)
    assert set(found) == METRICS
    for column in range(3):
        expected = by_scikit_learn(labels, probabilities, weights[:, column])
        at_column = {name: values[column] for name, values in found.items()}
        assert at_column == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("classes", [2, 4])
def test_weights_of_images_count_on_top_of_how_often_they_are_drawn(classes):
    labels, probabilities = draw(60, classes)
    image_weights = np.random.default_rng(2).integers(0, 3, 60) / 3
    times = np.random.default_rng(3).integers(0, 3, (60, 2)).astype(np.float32)
    found = bootstrap.Statistics(labels, probabilities, image_weights).of(times)
    assert set(found) == METRICS | {"weighted_accuracy", "weighted_roc_auc"}
    for column in range(2):
        weighted = by_scikit_learn(labels, probabilities, times[:, column] * image_weights)
        plain = by_scikit_learn(labels, probabilities, times[:, column])
        for name in ("accuracy", "roc_auc"):
            assert found[f"weighted_{name}"][column] == pytest.approx(weighted[name], rel=1e-5)
            assert found[name][column] == pytest.approx(plain[name], rel=1e-5)


def test_whole_weights_are_images_taken_as_often():
    labels, probabilities = draw(40, 3)
    times = np.random.default_rng(2).integers(0, 3, (40, 5)).astype(np.float32)
    times[labels == 2, 0] = 0  # a class that a resample lacks altogether
    found = bootstrap.Statistics(labels, probabilities).of(times)
    for column in range(5):
        rows = np.repeat(np.arange(40), times[:, column].astype(int))
        expected = numbers(labels[rows], probabilities[rows], 1.0)
        for name, values in found.items():
            assert values[column] == pytest.approx(expected[name], rel=1e-6), name


def test_area_with_ties_by_hand():
    positive = np.array([True, True, False, False, False])
    scores = np.array([0.5, 0.3, 0.5, 0.3, 0.1])
    # Each of the two against three others: 0.5 wins 2 and ties 1; 0.3 wins 1, ties 1, loses 1.
    # With weights 2 and 1 for the positives and 1, 1, 3 for the negatives: 2 · (4 + 1/2) + 3 + 1/2
    # of 3 · 5. With no positive at all there is no area.
    weights = np.array([[1, 1, 1, 1, 1], [2, 1, 1, 1, 3], [0, 0, 1, 1, 1]], dtype=float).T
    areas = bootstrap.RocArea(positive, scores).of(weights)
    assert areas[:2] == pytest.approx([(2.5 + 1.5) / 6, 12.5 / 15])
    assert np.isnan(areas[2])


def test_resamples_of_two_groups_are_the_three_that_exist(monkeypatch):
    monkeypatch.setattr(bootstrap, "LEAST_GROUPS", 2)
    # Group a: two images, both right. Group b: one image, wrong. Drawn are aa, ab, ba or bb.
    labels, probabilities = np.zeros(3, int), np.array([[0.9, 0.1], [0.9, 0.1], [0.2, 0.8]])
    accuracy = bootstrap.distribution(labels, probabilities, ["a", "a", "b"], 4000)["accuracy"]
    values, counts = np.unique(np.round(accuracy, 9), return_counts=True)
    assert values == pytest.approx([0, 2 / 3, 1])
    assert counts / 4000 == pytest.approx([1 / 4, 1 / 2, 1 / 4], abs=0.03)
    ends = bootstrap.intervals({"accuracy": accuracy})
    assert ends == {"accuracy": {"low": 0.0, "high": 1.0}}


def test_interval_ends_are_the_percentiles():
    values = np.arange(1001) / 1000
    assert bootstrap.intervals({"x": values})["x"] == pytest.approx({"low": 0.025, "high": 0.975})
    # Undefined resamples do not count; a metric that none defines has no interval.
    padded = np.concatenate([values, np.full(500, np.nan)])
    found = bootstrap.intervals({"x": padded, "y": np.full(3, np.nan)})
    assert found == {"x": pytest.approx({"low": 0.025, "high": 0.975})}


def test_equal_input_gives_equal_intervals_whatever_the_chunks(monkeypatch):
    labels, probabilities = draw(30, 3)
    groups = [str(number // 2) for number in range(30)]
    whole = bootstrap.distribution(labels, probabilities, groups, 100)
    told = []
    monkeypatch.setattr(bootstrap, "CHUNK_NUMBERS", 30 * 7)
    pieces = bootstrap.distribution(labels, probabilities, groups, 100, told.append)
    assert told == [7] * 14 + [2]
    for name, values in whole.items():
        np.testing.assert_array_equal(values, pieces[name])


def test_two_models_meet_the_same_resamples():
    labels, better = draw(80, 2)
    worse = np.where((np.arange(80) % 20 == 0)[:, None], better[:, ::-1], better)
    groups = [str(number) for number in range(80)]
    first, second = (
        bootstrap.distribution(labels, probabilities, groups, 1000)["accuracy"]
        for probabilities in (worse, better)
    )
    # Only four images differ, so that the difference swings less than either number; on resamples
    # of their own it would swing more than either.
    assert np.std(second - first) < 0.7 * np.std(first)
    assert np.std(second - np.random.default_rng(0).permutation(first)) > 1.2 * np.std(first)


def test_few_groups_have_no_interval():
    labels, probabilities = draw(12, 2)
    told = []
    five, six = ([str(number % count) for number in range(12)] for count in (5, 6))
    assert bootstrap.distribution(labels, probabilities, five, 100, told.append) == {}
    assert told == [100]
    assert "accuracy" in bootstrap.distribution(labels, probabilities, six, 100)


def test_weights_of_few_groups_have_no_interval():
    labels, probabilities = draw(12, 2)

    def found(weighted: int) -> set[str]:
        weights = np.where(np.arange(12) < weighted, 0.5, 0.0)
        groups = [str(number) for number in range(12)]
        return {*bootstrap.distribution(labels, probabilities, groups, 100, image_weights=weights)}

    assert found(6) - found(5) == {"weighted_accuracy", "weighted_roc_auc"}
    assert "accuracy" in found(5)


def test_the_interval_of_f1_lies_around_it_also_where_classes_have_few_images():
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(200), 3)
    answers = np.where(random.random(600) < 0.8, labels, random.integers(0, 200, 600))
    probabilities = np.eye(200)[answers]
    resampled = bootstrap.distribution(labels, probabilities, list(range(600)), 200)
    ends = bootstrap.intervals(resampled)["f1_macro"]
    estimate = sklearn_metrics.f1_score(labels, answers, average="macro")
    assert ends["low"] + 0.01 < estimate < ends["high"] - 0.01


def test_images_of_one_class_have_intervals_of_what_is_defined():
    _, probabilities = draw(20, 3)
    found = bootstrap.distribution(np.ones(20, int), probabilities, list(range(20)), 100)
    assert set(found) == {"accuracy", "loss", "brier_score"}


def test_areas_of_very_many_classes_are_left_out():
    labels, probabilities = draw(300, MOST_CLASSES_FOR_AREAS + 1)
    found = bootstrap.distribution(labels, probabilities, list(range(300)), 10)
    assert set(found) == METRICS - {"roc_auc"}
    labels, probabilities = draw(300, MOST_CLASSES_FOR_AREAS)
    assert set(bootstrap.distribution(labels, probabilities, list(range(300)), 10)) == METRICS


def coverage(images_in_a_group: int, groups: np.ndarray, tests: int = 300) -> tuple[float, float]:
    """How often the interval of accuracy holds the truth, 0.8, and its mean width.

    All images of a group are right, or all are wrong.
    """
    random = np.random.default_rng(3)
    images = len(groups)
    labels = np.zeros(images, int)
    held, widths = 0, 0.0
    for _ in range(tests):
        right = np.repeat(random.random(images // images_in_a_group) < 0.8, images_in_a_group)
        of_class = np.where(right, 0.9, 0.1)
        probabilities = np.stack([of_class, 1 - of_class], axis=1)
        resampled = bootstrap.distribution(labels, probabilities, groups, 400)
        ends = bootstrap.intervals({"accuracy": resampled["accuracy"]})["accuracy"]
        held += ends["low"] <= 0.8 <= ends["high"]
        widths += ends["high"] - ends["low"]
    return held / tests, widths / tests


def test_intervals_hold_the_truth_as_often_as_they_say():
    """285 of 300 intervals, give or take 4, and a few less by the percentile method's own error."""
    each = np.arange(160)
    held, width = coverage(1, each)
    assert 0.90 <= held <= 0.98
    # ± 1.96 standard errors of a share of 0.8.
    assert width == pytest.approx(2 * 1.96 * np.sqrt(0.8 * 0.2 / 160), rel=0.05)

    # Four pictures of each thing are no more evidence than one: 40 groups.
    held, grouped_width = coverage(4, each // 4)
    assert 0.89 <= held <= 0.98
    assert grouped_width == pytest.approx(2 * width, rel=0.1)
    # Taken for 160 images, the interval is half as wide and misses the truth one time in three.
    held, _ = coverage(4, each)
    assert held < 0.78
