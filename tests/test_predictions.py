import csv

import numpy as np
import pytest

from stages.common import predictions

NAMES = ["cat", "dog"]


def test_the_file_names_classes_and_says_what_is_right(tmp_path):
    path = tmp_path / "folder" / "head.csv"
    probabilities = np.array([[0.2, 0.8], [0.4, 0.6]], np.float32)
    predictions.write(path, ["i", "j"], np.array([0, 1]), probabilities, NAMES)
    assert path.read_text() == (
        "id,label,predicted,correct,probability cat,probability dog\n"
        "i,cat,dog,0,0.2,0.8\n"
        "j,dog,dog,1,0.4,0.6\n"
    )


def test_what_is_read_is_what_was_written_to_seven_digits(tmp_path, monkeypatch):
    random = np.random.default_rng(0)
    probabilities = random.dirichlet(np.full(4, 0.05), 500).astype(np.float32)
    labels = random.integers(0, 4, 500)
    # Ids that look like numbers, and names that CSV must quote or that look like nothing.
    ids = [f"{number:05}" for number in range(500)]
    names = ['a, "b"', "null", " two\nlines ", "1.0"]
    path = tmp_path / "head.csv"
    predictions.write(path, ids, labels, probabilities, names)
    # So that the table is read in several blocks, which may end within a name.
    monkeypatch.setattr(predictions, "BLOCK_BYTES", 1000)
    table = predictions.read(path)
    assert table.ids == ids
    assert table.class_names == names
    np.testing.assert_array_equal(table.labels, labels)
    assert table.probabilities.dtype == np.float64
    np.testing.assert_allclose(table.probabilities, probabilities, rtol=1e-6, atol=1e-40)
    np.testing.assert_allclose(table.probabilities.sum(axis=1), 1, rtol=1e-15)


def test_predicted_is_the_largest_of_what_is_written(tmp_path):
    # They differ in the eighth digit only, so that the file shows a tie, which goes to the first.
    probabilities = np.array([[0.30000001, 0.30000002, 0.3999999], [0.30000001, 0.40000001, 0.3]])
    probabilities[0, 2] = 0.2
    path = tmp_path / "head.csv"
    predictions.write(path, ["a", "b"], np.array([0, 1]), probabilities, ["x", "y", "z"])
    with path.open() as file:
        assert [row["predicted"] for row in csv.DictReader(file)] == ["x", "y"]
    assert predictions.read(path).probabilities.argmax(axis=1).tolist() == [0, 1]


def test_many_classes_fit(tmp_path):
    random = np.random.default_rng(0)
    names = [f"a rather long name of class {number}" for number in range(3000)]
    probabilities = random.dirichlet(np.ones(len(names)), 3)
    path = tmp_path / "head.csv"
    predictions.write(path, ["a", "b", "c"], np.array([0, 1, 2999]), probabilities, names)
    table = predictions.read(path)
    assert table.labels.tolist() == [0, 1, 2999]
    np.testing.assert_allclose(table.probabilities, probabilities, rtol=1e-6)


def test_a_row_too_few_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="zip"):
        predictions.write(tmp_path / "x.csv", ["a"], np.array([0, 1]), np.eye(2), NAMES)
