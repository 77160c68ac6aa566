import numpy as np
import pytest

from stages.common import tables
from stages.common.metrics import classification_metrics, expected_calibration_error
from stages.evaluate import prediction_rows

NAMES = ["cat", "dog"]
# Four images: sure and right, sure and wrong, unsure and right, unsure and wrong.
LABELS = np.array([0, 0, 1, 1])
PROBABILITIES = np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [0.7, 0.3]])


def test_numbers_of_a_case_worked_out_by_hand():
    result = classification_metrics(LABELS, PROBABILITIES, NAMES)
    assert result["images"] == 4
    assert result["accuracy"] == 0.5
    assert result["balanced_accuracy"] == 0.5
    assert result["loss"] == pytest.approx(-np.log([0.9, 0.2, 0.6, 0.3]).mean())
    # Of the four pairs of a cat and a dog, dog is ranked as more doglike in 2: (0.1, 0.6) and
    # (0.1, 0.3); not in (0.8, 0.6) and (0.8, 0.3).
    assert result["roc_auc"] == 0.5
    assert result["class"]["cat"] == {"precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 2}
    assert result["f1_macro"] == 0.5


def test_calibration_error_by_hand():
    # Confidences 0.9 and 0.8 and 0.6 and 0.7 lie in four bins of width 1/15, each with one image.
    expected = (0.1 + 0.8 + 0.4 + 0.7) / 4
    assert expected_calibration_error(LABELS, PROBABILITIES) == pytest.approx(expected)
    # A hundred images at 0.8, eighty of them right, are calibrated.
    labels = np.array([0] * 80 + [1] * 20)
    assert expected_calibration_error(labels, np.tile([0.8, 0.2], (100, 1))) == pytest.approx(0)


def test_three_classes_of_which_the_test_split_lacks_one():
    probabilities = np.array([[0.6, 0.3, 0.1], [0.2, 0.7, 0.1]])
    result = classification_metrics(np.array([0, 1]), probabilities, ["a", "b", "c"])
    assert result["class"]["c"]["support"] == 0
    assert result["roc_auc"] == 1.0
    assert result["balanced_accuracy"] == 1.0
    tables_ready = {key: value for key, value in result.items() if key != "class"}
    assert all(np.isfinite(list(tables_ready.values())))


def test_metrics_file_holds_sorted_finite_numbers_only(tmp_path):
    path = tmp_path / "metrics.json"
    tables.write_metrics(path, {"b": 1, "a": {"x": 0.12345678}})
    assert path.read_text() == '{\n  "a": {\n    "x": 0.123457\n  },\n  "b": 1\n}\n'
    for bad in ("text", float("nan"), True, [1, 2]):
        with pytest.raises(ValueError, match="must be a finite number"):
            tables.write_metrics(path, {"bad": bad})


def test_prediction_rows_name_classes_and_say_what_is_right():
    rows = list(prediction_rows(["i", "j"], LABELS[1:3], PROBABILITIES[1:3], NAMES))
    assert rows == [
        ("i", "cat", "dog", 0, "0.2", "0.8"),
        ("j", "dog", "dog", 1, "0.4", "0.6"),
    ]
