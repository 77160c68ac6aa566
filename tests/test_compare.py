import json

import numpy as np
import pytest

from stages import compare
from stages.common import bootstrap, predictions, splits
from stages.common.predictions import Predictions
from stages.common.run import UserError

AS_IT_IS = "{horizontal_flip: false, vertical_flip: false, quarter_turns: false}"


def table(ids="abcd", labels=(0, 0, 1, 1), names=("cat", "dog"), of_dog=(0.1, 0.8, 0.6, 0.3)):
    dog = np.array(of_dog)
    return Predictions(list(ids), np.array(labels), np.stack([1 - dog, dog], axis=1), list(names))


@pytest.mark.parametrize(
    ("head_only", "fine_tuned_only", "p_value"),
    [
        # Six coins: 0 or 1 heads, or as many tails, has a chance of 2 · (1 + 6) / 64.
        (1, 5, 14 / 64),
        (5, 1, 14 / 64),
        (0, 10, 2 / 1024),
        (3, 3, 1.0),
        (0, 0, 1.0),
    ],
)
def test_mcnemar_by_hand(head_only, fine_tuned_only, p_value):
    both_right_and_both_wrong = [True] * 7 + [False] * 4
    head = both_right_and_both_wrong + [True] * head_only + [False] * fine_tuned_only
    fine_tuned = both_right_and_both_wrong + [False] * head_only + [True] * fine_tuned_only
    each = list(range(len(head)))
    assert compare.mcnemar(np.array(head), np.array(fine_tuned), each) == {
        "head_only_correct": head_only,
        "fine_tuned_only_correct": fine_tuned_only,
        "p_value": pytest.approx(p_value),
    }


def test_mcnemar_tosses_once_for_all_images_of_a_group():
    """A burst of five that fine-tuning alone gets right, and three single images, one lost."""
    fine_tuned = np.array([True] * 5 + [True, True, False])
    groups = ["burst"] * 5 + ["a", "b", "c"]
    # 5 + 1 + 1 - 1 = 6: of 16 tosses, 5 ± 1 ± 1 ± 1 is 6 or more in 4 of 8, and as many below.
    assert compare.mcnemar(~fine_tuned, fine_tuned, groups)["p_value"] == pytest.approx(1 / 2)
    alone = compare.mcnemar(~fine_tuned, fine_tuned, list(range(8)))["p_value"]
    assert alone == pytest.approx(18 / 256)
    # What cancels out within a group says nothing.
    even = np.array([True, False, True])
    assert compare.mcnemar(~even, even, ["one", "one", "b"])["p_value"] == 1


def test_differences_by_hand(monkeypatch):
    monkeypatch.setattr(bootstrap, "LEAST_GROUPS", 2)
    # Head: images a and c right. Fine-tuned: a, b and c. Four groups of an image each.
    labels = np.array([0, 0, 1, 1])
    head, tuned = table().probabilities, table(of_dog=(0.1, 0.4, 0.9, 0.3)).probabilities
    found = compare.differences(labels, head, tuned, list("abcd"), 2000, lambda count: None)
    assert found["accuracy"]["difference"] == pytest.approx(1 / 4)
    # Only image b makes a difference: it is drawn 0 to 4 times, more than thrice in 1 of 256.
    assert found["accuracy"]["low"] == 0
    assert found["accuracy"]["high"] == 3 / 4
    assert found["balanced_accuracy"]["difference"] == pytest.approx(1 / 4)
    # Head: 2 of 4 pairs. Fine-tuned: dogs at 0.9 and 0.3, cats at 0.1 and 0.4: 3 of 4.
    assert found["roc_auc"]["difference"] == pytest.approx(1 / 4)
    # F1 1/2 and 1/2; then cat 2 · 2 / (2 + 3) and dog 2 · 1 / (2 + 1).
    assert found["f1_macro"]["difference"] == pytest.approx((4 / 5 + 2 / 3) / 2 - 1 / 2)
    assert found["loss"]["difference"] == pytest.approx(-np.log([0.6 / 0.2, 0.9 / 0.6]).sum() / 4)
    assert found["brier_score"]["difference"] == pytest.approx(
        2 * (0.4**2 - 0.8**2 + 0.1**2 - 0.4**2) / 4
    )
    assert set(found) == set(compare.COMPARED)


def test_of_one_class_only_what_is_defined_is_compared(monkeypatch):
    monkeypatch.setattr(bootstrap, "LEAST_GROUPS", 2)
    labels = np.zeros(4, int)
    found = compare.differences(
        labels, table().probabilities, table().probabilities, list("abcd"), 100, lambda count: None
    )
    assert set(found) == {"accuracy", "loss", "brier_score"}
    assert found["accuracy"] == {"difference": 0.0, "low": 0.0, "high": 0.0}


def test_one_group_has_a_difference_and_no_interval():
    labels = np.array([0, 0, 1, 1])
    found = compare.differences(
        labels, table().probabilities, table().probabilities, ["a"] * 4, 100, lambda count: None
    )
    assert found["roc_auc"] == {"difference": 0.0}


def test_tables_in_another_order_are_matched_by_id():
    other = table(ids="dbca", labels=(1, 0, 1, 0), of_dog=(0.4, 0.2, 0.3, 0.1))
    found = compare.aligned(table(), other)
    assert found.ids == list("abcd")
    np.testing.assert_array_equal(found.probabilities[:, 1], [0.1, 0.2, 0.3, 0.4])


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (table(ids="abce"), r"1 only in head, 1 only in fine_tuned, such as 'd'; run `dvc repro`"),
        (table(labels=(0, 1, 1, 1)), r"give 1 images other labels, such as 'b'; run `dvc repro`"),
        (table(names=("cat", "wolf")), r"other classes, \['cat', 'dog'\] and \['cat', 'wolf'\]"),
    ],
)
def test_tables_of_other_images_are_refused(other, message):
    with pytest.raises(UserError, match=message):
        compare.aligned(table(), other)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with params, a table of splits and both tables of predictions."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text(
        "evaluate:\n  batch_size: 4\n  bootstrap_samples: 100\n  weight_column: null\n"
        "  slice_columns: null\n"
        f"  test_time_augment: {AS_IT_IS}\n"
    )
    (tmp_path / "data").mkdir()
    rows = [
        splits.SplitRow(name, "train" if name == "e" else "test", "cat", group, {})
        for name, group in zip("abcde", ("one", "one", "two", "two", "three"), strict=True)
    ]
    splits.write(splits.SPLITS_FILE, rows, [])
    for model, of_dog in (("head", (0.1, 0.8, 0.6, 0.3)), ("fine_tuned", (0.1, 0.4, 0.9, 0.3))):
        content = table(of_dog=of_dog)
        predictions.write(
            tmp_path / "data" / "predictions" / f"{model}.csv",
            content.ids,
            content.labels,
            content.probabilities,
            content.class_names,
        )
    return tmp_path


def test_the_stage_writes_the_comparison(project, monkeypatch):
    monkeypatch.setattr(bootstrap, "LEAST_GROUPS", 2)
    compare.main()
    found = json.loads((project / "metrics" / "comparison.json").read_text())
    assert found["accuracy"]["difference"] == 0.25
    # Group one gains half of its images, group two none; by single images 3/4 would be the end.
    assert (found["accuracy"]["low"], found["accuracy"]["high"]) == (0, 0.5)
    assert found["mcnemar"] == {
        "head_only_correct": 0,
        "fine_tuned_only_correct": 1,
        "p_value": 1.0,
    }


def test_a_table_of_splits_that_lacks_an_image_is_refused(project):
    rows = [row for row in splits.read() if row.id != "c"]
    splits.write(splits.SPLITS_FILE, rows, [])
    with pytest.raises(UserError, match=r"has no test image 'c' \(1 of 4 are missing\)"):
        compare.main()
