import numpy as np
import pytest

from stages.common import metrics, tables
from stages.common.metrics import classification_metrics, expected_calibration_error, numbers

NAMES = ["cat", "dog"]
# Four images: sure and right, sure and wrong, unsure and right, unsure and wrong.
LABELS = np.array([0, 0, 1, 1])
PROBABILITIES = np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [0.7, 0.3]])


def sure(predicted: list[int], classes: int) -> np.ndarray:
    """Probabilities of 0.9 for what is predicted, the rest shared."""
    rows = np.full((len(predicted), classes), 0.1 / (classes - 1))
    rows[np.arange(len(predicted)), predicted] = 0.9
    return rows


def test_two_classes_by_hand():
    result = classification_metrics(LABELS, PROBABILITIES, NAMES, 1.0)
    assert result["images"] == 4
    assert result["accuracy"] == 0.5
    assert result["balanced_accuracy"] == 0.5
    assert result["loss"] == pytest.approx(-np.log([0.9, 0.2, 0.6, 0.3]).mean())
    # Both classes are off by 0.1, 0.8, 0.4 and 0.7.
    assert result["brier_score"] == pytest.approx(2 * (0.01 + 0.64 + 0.16 + 0.49) / 4)
    # Of the four pairs of a cat and a dog, dog is ranked as more doglike in 2: (0.1, 0.6) and
    # (0.1, 0.3); not in (0.8, 0.6) and (0.8, 0.3).
    assert result["roc_auc"] == 0.5
    # By falling probability of dog: cat, dog, dog, cat. Precision 1/2 at the first dog, then 2/3.
    assert result["average_precision"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert result["class"]["cat"] == {"precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 2}
    assert result["f1_macro"] == 0.5
    assert result["cohen_kappa"] == 0.0  # half right, as by chance
    assert "top_5_accuracy" not in result


def test_three_classes_by_hand():
    labels = np.array([0, 0, 0, 1, 1, 2])
    result = classification_metrics(labels, sure([0, 0, 1, 1, 1, 1], 3), ["a", "b", "c"], 1.0)
    assert result["class"]["a"] == pytest.approx(
        {"precision": 1, "recall": 2 / 3, "f1": 4 / 5, "support": 3}
    )
    assert result["class"]["b"] == pytest.approx(
        {"precision": 1 / 2, "recall": 1, "f1": 2 / 3, "support": 2}
    )
    assert result["class"]["c"] == {"precision": 0, "recall": 0, "f1": 0, "support": 1}
    assert result["accuracy"] == pytest.approx(4 / 6)
    assert result["balanced_accuracy"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert result["f1_macro"] == pytest.approx((4 / 5 + 2 / 3 + 0) / 3)
    assert result["f1_weighted"] == pytest.approx((3 * 4 / 5 + 2 * 2 / 3 + 0) / 6)
    # Right 24/36; by chance 3/6 · 2/6 + 2/6 · 4/6 + 1/6 · 0 = 14/36.
    assert result["cohen_kappa"] == pytest.approx((24 - 14) / (36 - 14))
    # One against the rest. a: its 3 images against 3 others: 2 at 0.9, 1 at 0.05 beside three at
    # 0.05 (ties count half): (6 + 1.5) / 9. b: 2 at 0.9 against 0.05, 0.05, 0.9 and 0.9:
    # (4 + 2) / 8. c: all 0.05: 1/2.
    assert result["roc_auc"] == pytest.approx((7.5 / 9 + 6 / 8 + 1 / 2) / 3)
    # a: precision 1 up to recall 2/3, then 3/6; b: 2/4 for all; c: 1/6.
    expected = ((2 / 3 * 1 + 1 / 3 * 3 / 6) + 2 / 4 + 1 / 6) / 3
    assert result["average_precision"] == pytest.approx(expected)


def test_top_5_accuracy_by_hand():
    # Falling from the first class to the sixth: only the sixth is not among the first five.
    row = np.array([0.3, 0.25, 0.2, 0.1, 0.1, 0.05])
    result = numbers(np.array([0, 4, 5, 3]), np.tile(row, (4, 1)), 1.0)
    assert result["top_5_accuracy"] == 3 / 4
    assert result["accuracy"] == 1 / 4


def test_calibration_error_by_hand():
    # Confidences 0.9 and 0.8 and 0.6 and 0.7 lie in four bins of width 1/15, each with one image.
    expected = (0.1 + 0.8 + 0.4 + 0.7) / 4
    assert expected_calibration_error(LABELS, PROBABILITIES) == pytest.approx(expected)
    # A hundred images at 0.8, eighty of them right, are calibrated.
    labels = np.array([0] * 80 + [1] * 20)
    assert expected_calibration_error(labels, np.tile([0.8, 0.2], (100, 1))) == pytest.approx(0)


def test_temperature_is_undone():
    logits = np.array([[2.0, -1.0, 0.5], [0.0, 3.0, -300.0]])
    cooled = np.exp(logits / 2.5)
    cooled /= cooled.sum(axis=1, keepdims=True)
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(metrics.uncalibrated(cooled, 2.5), expected, rtol=1e-9)
    # What is written as 0 stays 0, with no number that is not finite.
    np.testing.assert_array_equal(metrics.uncalibrated(np.array([[1.0, 0.0]]), 3.0), [[1, 0]])


def test_numbers_before_the_temperature_are_given_beside_those_after():
    result = classification_metrics(LABELS, PROBABILITIES, NAMES, 2.0)
    # Of two classes softmax(2 · log p) is p² / (p² + q²).
    before = np.array([0.81 / 0.82, 0.04 / 0.68, 0.36 / 0.52, 0.09 / 0.58])
    assert result["uncalibrated"]["loss"] == pytest.approx(-np.log(before).mean())
    assert result["uncalibrated"]["brier_score"] == pytest.approx((2 * (1 - before) ** 2).mean())
    # Right at 0.988 (bin 15) and 0.692 (bin 11), wrong at 0.941 (bin 15) and 0.845 (bin 13).
    in_bin_15 = abs(1 / 2 - (before[0] + 1 - before[1]) / 2)
    gaps = 2 * in_bin_15 + (1 - before[2]) + (1 - before[3])
    expected = pytest.approx(gaps / 4)
    assert result["uncalibrated"]["expected_calibration_error"] == expected
    assert result["loss"] == pytest.approx(-np.log([0.9, 0.2, 0.6, 0.3]).mean())
    # Averaged views are not the softmax of one logit: there is nothing to take back.
    averaged = classification_metrics(LABELS, PROBABILITIES, NAMES, None)
    del result["uncalibrated"]
    assert averaged == result


def test_a_class_that_the_test_split_lacks():
    probabilities = np.array([[0.6, 0.3, 0.1], [0.2, 0.7, 0.1]])
    result = classification_metrics(np.array([0, 1]), probabilities, ["a", "b", "c"], 1.0)
    assert result["class"]["c"] == {"precision": 0, "recall": 0, "f1": 0, "support": 0}
    # Nothing is of it and nothing taken for it: it is in no mean.
    for name in ("roc_auc", "average_precision", "balanced_accuracy", "f1_macro", "f1_weighted"):
        assert result[name] == 1.0
    # Now an image is taken for it: 0 in the mean of F1, and no recall in balanced accuracy.
    result = numbers(np.array([0, 1]), sure([0, 2], 3), 1.0)
    assert result["f1_macro"] == pytest.approx((1 + 0 + 0) / 3)
    assert result["balanced_accuracy"] == 1 / 2


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("predicted", [[1, 1, 1], [1, 0, 2]])
@pytest.mark.parametrize("classes", [3, 6])
def test_images_of_one_class_have_no_numbers_that_weigh_classes(tmp_path, predicted, classes):
    names = [f"class {number}" for number in range(classes)]
    result = classification_metrics(np.ones(3, int), sure(predicted, classes), names, 1.5)
    expected = {"images", "accuracy", "loss", "brier_score", "expected_calibration_error"}
    expected |= {"uncalibrated", "class"}
    expected |= {"top_5_accuracy"} if classes > 5 else set()
    assert set(result) == expected
    assert result["accuracy"] == predicted.count(1) / 3
    tables.write_metrics(tmp_path / "all_finite.json", result)


def test_a_probability_of_zero_for_the_true_class_costs_a_finite_loss():
    result = numbers(np.array([0, 1]), np.array([[0.0, 1.0], [0.0, 1.0]]), 2.0)
    assert result["loss"] == pytest.approx(-np.log(2.2e-16) / 2, abs=0.01)
    assert np.isfinite(result["uncalibrated"]["loss"])


def test_pieces_add_up_to_the_whole(monkeypatch):
    random = np.random.default_rng(0)
    probabilities, labels = random.dirichlet(np.ones(7), 50), random.integers(0, 7, 50)
    whole = numbers(labels, probabilities, 1.3)
    monkeypatch.setattr(metrics, "CHUNK_NUMBERS", 7 * 8)  # 8 images, the last piece 2
    in_pieces = numbers(labels, probabilities, 1.3)
    assert in_pieces.pop("uncalibrated") == pytest.approx(whole.pop("uncalibrated"))
    assert in_pieces == pytest.approx(whole)


def test_a_weighted_area_counts_pairs_of_images_by_their_weights():
    labels, scores = np.array([0, 0, 1, 1]), np.array([0.1, 0.6, 0.4, 0.9])
    weights = np.array([1.0, 0.5, 0.5, 1.0])
    # Of the pairs one is in the wrong order, that of the two images that count half.
    result = metrics.areas(labels, np.stack([1 - scores, scores], axis=1), weights)
    assert result["weighted_roc_auc"] == pytest.approx(1 - 0.5 * 0.5 / (1.5 * 1.5))
    assert result["roc_auc"] == 3 / 4


def test_a_class_whose_images_weigh_nothing_has_no_weighted_area():
    weights = (LABELS == 0).astype(float)
    assert "weighted_roc_auc" not in numbers(LABELS, PROBABILITIES, 1.0, image_weights=weights)
    three = np.array([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.3, 0.4, 0.3], [0.1, 0.2, 0.7]])
    labels, weights = np.array([0, 1, 1, 2]), np.array([1.0, 1.0, 2.0, 0.0])
    found = metrics.areas(labels, three, weights)
    assert found["weighted_roc_auc"] == 1.0  # over the first two classes


def test_areas_can_be_left_out():
    result = numbers(LABELS, PROBABILITIES, 1.0, with_areas=False, image_weights=np.ones(4))
    assert not {"roc_auc", "average_precision", "weighted_roc_auc"} & set(result)


def test_metrics_file_holds_sorted_finite_numbers_only(tmp_path):
    path = tmp_path / "metrics.json"
    tables.write_metrics(path, {"b": 1, "a": {"x": 0.12345678, "y": -1e-9}})
    assert path.read_text() == (
        '{\n  "a": {\n    "x": 0.123457,\n    "y": 0.0\n  },\n  "b": 1\n}\n'
    )
    for bad in ("text", float("nan"), True, [1, 2]):
        with pytest.raises(ValueError, match="must be a finite number"):
            tables.write_metrics(path, {"bad": bad})
