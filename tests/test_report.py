"""The report: what it says, and that it stays small and safe; test_report_page opens it."""

import dataclasses
import json
import re
from collections import Counter

import pytest

from stages import report
from stages.common.metrics import ALL_CLASSES
from stages.common.report import charts, evidence, pictures, views, wording
from stages.common.run import UserError
from tests import report_fixture
from tests.report_fixture import HOSTILE

NOTHING_STATED = report.ReportParams(
    title=None, intended_use=None, limits=None, license=None, contact=None
)
SPACE, MINUS = wording.SPACE, wording.MINUS


def model_metrics(accuracy: float, images: int = 656, **classes: int) -> dict:
    """As much of metrics/<model>.json as sentences need."""
    support = classes or {"functional": 451, "defective": 205}
    return {
        "accuracy": accuracy,
        "images": images,
        "groups": images,
        "class": {name: {"support": count} for name, count in support.items()},
        "interval": {"accuracy": {"low": accuracy - 0.02, "high": accuracy + 0.02}},
    }


def verdict(difference: float, **ends: float) -> str:
    """The verdict on an accuracy of 84.6 % and what the difference makes of it."""
    return wording.verdict(
        model_metrics(0.846),
        model_metrics(0.846 + difference),
        {"accuracy": {"difference": difference, **ends}},
    ).replace(SPACE, " ")


@pytest.fixture
def found(tmp_path, monkeypatch) -> evidence.Evidence:
    """Evidence of twelve classes, one of them hostile, read from files as the stage does."""
    names = [HOSTILE[0], *(f"class {number}" for number in range(11))]
    report_fixture.write_evidence(
        tmp_path, names, test_images=600, gallery=12, slices={"camera": ["old", "new"]}, rejected=9
    )
    monkeypatch.chdir(tmp_path)
    return evidence.read()


# What the page says


def test_verdict_says_raises_where_the_interval_is_above_zero():
    assert verdict(0.026, low=0.003, high=0.049) == (
        "Fine-tuning raises accuracy on 656 test images from 84.6 % to 87.2 % "
        "(+2.6 points, 95 % interval 0.3 to 4.9)."
    )


def test_verdict_says_lowers_where_the_interval_is_below_zero():
    text = verdict(-0.05, low=-0.08, high=-0.02)
    assert text.startswith("Fine-tuning lowers accuracy on 656 test images from 84.6 % to 79.6 %")
    assert f"({MINUS}5.0 points, 95 % interval {MINUS}8.0 to {MINUS}2.0)" in text


@pytest.mark.parametrize(("low", "high"), [(-0.004, 0.056), (0.0, 0.05), (-0.05, 0.0)])
def test_verdict_claims_no_difference_where_the_interval_has_zero(low, high):
    text = verdict(0.026, low=low, high=high)
    assert text.startswith("No difference in accuracy can be shown")
    assert text.endswith("which includes zero).")
    assert "raises" not in text


def test_verdict_names_the_metrics_that_do_tell_the_models_apart():
    none, up, down = ({"low": low, "high": low + 0.02} for low in (-0.01, 0.01, -0.03))
    change = {"accuracy": {**none, "difference": 0.0}, "loss": down, "brier_score": down}
    models = model_metrics(0.846), model_metrics(0.846)
    text = wording.verdict(*models, {**change, "roc_auc": up, "f1_macro": none})
    assert text.endswith("The fine-tuned model is better by ROC AUC, Loss and Brier score.")
    text = wording.verdict(*models, {**change, "roc_auc": down})
    assert text.endswith(
        "The head is better by ROC AUC. The fine-tuned model is better by Loss and Brier score."
    )


def test_verdict_without_an_interval_claims_nothing():
    text = verdict(0.026)
    assert "interval" in text
    assert not re.search("raises|lowers", text)


@pytest.mark.parametrize(
    ("key", "low", "high", "words"),
    [
        ("accuracy", 0.01, 0.02, "fine-tuned better"),
        ("accuracy", -0.02, -0.01, "head better"),
        ("loss", 0.01, 0.02, "head better"),
        ("loss", -0.02, -0.01, "fine-tuned better"),
        ("loss", -0.02, 0.01, "no difference shown"),
    ],
)
def test_outcome_knows_which_metrics_should_be_low(key, low, high, words):
    assert wording.outcome(wording.METRIC_OF_KEY[key], {"low": low, "high": high}) == words


def test_numbers_are_written_as_people_read_them():
    assert wording.percent(0.8461) == f"84.6{SPACE}%"
    assert wording.points(-0.0321) == f"{MINUS}3.2{SPACE}points"
    assert wording.points(-0.0001) == f"0.0{SPACE}points"
    assert wording.decimal(0.0456, "+") == "+0.046"
    assert wording.large(385_000_000) == f"385{SPACE}million"
    assert wording.count(1, "class", "classes") == f"1{SPACE}class"
    assert wording.count(1234, "class", "classes") == f"1,234{SPACE}classes"
    assert wording.listed(list("abcde"), 3) == "a, b, c and 2 more"
    assert wording.listed(list("ab")) == "a and b"
    assert wording.probability(0.00004) == "p < 0.001"


def test_baseline_is_the_share_of_the_largest_test_class():
    text = wording.baseline(model_metrics(0.9, images=8, cat=6, dog=2))
    assert "“cat”" in text
    assert f"75.0{SPACE}%" in text


def test_caveats_name_tiny_classes_wide_intervals_and_imbalance():
    metrics = model_metrics(0.6, images=30, cat=25, dog=5)
    metrics["interval"]["accuracy"] = {"low": 0.4, "high": 0.8}
    unclear = {"accuracy": {"difference": 0.01, "low": -0.1, "high": 0.1}}
    data = {"splits": {"train": {"class": {"cat": 100, "dog": 20}}}}
    text = " ".join(wording.caveats(data, dict.fromkeys(wording.NAMES, metrics), unclear))
    for part in ("test images (dog)", "too wide", "do not tell which", "5 times the training"):
        assert part in text
    balanced = model_metrics(0.9, images=900, cat=450, dog=450)
    data = {"splits": {"train": {"class": {"cat": 90, "dog": 100}}}}
    clear = {"difference": 0.1, "low": 0.05, "high": 0.15}
    for key in ("accuracy", "f1_macro"):
        comparison = unclear | {key: clear}
        text = " ".join(wording.caveats(data, dict.fromkeys(wording.NAMES, balanced), comparison))
        assert not re.search("too wide|do not tell which|times the training|fewer than", text)


def test_comparison_table_has_intervals_and_outcome_of_every_metric(found):
    metrics = {name: model.metrics for name, model in found.models.items()}
    rows = {row["name"]: row for row in views.comparison_table(metrics, found.comparison)}
    assert rows["Accuracy"]["outcome"] == "fine-tuned better"
    assert rows["Accuracy"]["head"] == wording.percent(metrics["head"]["accuracy"])
    low = metrics["head"]["interval"]["accuracy"]["low"]
    assert rows["Accuracy"]["head_interval"].startswith(f"{100 * low:.1f} to ")
    assert rows["Cohen's κ"]["outcome"] == "–"
    assert "Top-5 accuracy" in rows


def test_calibration_of_averaged_views_has_no_numbers_before_the_temperature(found):
    before = {name: model.metrics for name, model in found.models.items()}
    after = {name: dict(metrics) for name, metrics in before.items()}
    del after["fine_tuned"]["uncalibrated"]
    head, fine_tuned = views.calibration_table(after).rows
    assert "–" not in head
    assert fine_tuned[2::2] == ["–", "–", "–"]
    assert fine_tuned[3::2] == views.calibration_table(before).rows[1][3::2]


def test_rejected_images_are_counted_by_reason_with_first_names(found):
    rows = views.rejected_table(found).rows
    assert [row[2] for row in rows] == ["7", "2"]
    assert rows[0][1].startswith("own/0.jpg, own/1.jpg")
    assert rows[0][1].endswith("own/4.jpg …")
    assert rows[1][1] == "own/7.jpg and own/8.jpg"


def test_commit_tells_of_uncommitted_sources():
    changed = evidence.parse_changes(" M params.yaml\n?? stages/new.py\n")
    assert changed == ["params.yaml", "stages/new.py"]
    text = " ".join(views.commit_lines(evidence.Commit("abc1234", "2024-05-01", changed)))
    assert "abc1234" in text
    assert "uncommitted changes in params.yaml and stages/new.py" in text
    clean = evidence.Commit("abc1234", "2024-05-01")
    assert views.commit_lines(clean) == ["abc1234 of 2024-05-01"]
    assert "not known" in views.commit_lines(evidence.Commit(None))[0]


def test_every_number_of_a_table_is_that_of_its_model_and_class(found):
    metrics = {name: model.metrics for name, model in found.models.items()}
    head, fine_tuned = metrics["head"], metrics["fine_tuned"]
    figures = views.key_figures(metrics, found.comparison)
    assert [figure["value"] for figure in figures] == [
        wording.percent(head["accuracy"]),
        wording.percent(fine_tuned["accuracy"]),
        f"+8.0{SPACE}points",
    ]
    facts = dict(views.facts(found))
    assert f"650,000{SPACE}parameters".replace(SPACE, " ") in facts["Head"][0]
    assert f"4.05{SPACE}million parameters" in facts["Fine-tuning"][0]
    for name, images, *cells in views.slice_table("camera", metrics).rows:
        of_head, of_fine_tuned = (model["slice"]["camera"][name] for model in (head, fine_tuned))
        assert images == str(of_head["images"])
        assert [value for value, _ in cells[:2]] == [
            wording.percent(of_head["accuracy"]),
            wording.percent(of_fine_tuned["accuracy"]),
        ]
    for name, train, test, *cells in views.class_table(metrics, found.data).rows:
        assert train == str(found.data["splits"]["train"]["class"][name])
        assert test == str(head["class"][name]["support"])
        assert cells[:6] == [
            wording.decimal(model["class"][name][key])
            for key in ("precision", "recall", "f1")
            for model in (head, fine_tuned)
        ]
    splits = {
        name: {"images": 3 * times, "class": {"cat": times, "dog": 2 * times}}
        for name, times in (("train", 5), ("valid", 2), ("test", 1))
    }
    assert views.split_counts({"splits": splits}).rows == [
        ["train", "15", "5", "10"],
        ["valid", "6", "2", "4"],
        ["test", "3", "1", "2"],
    ]


def test_mcnemar_tells_which_model_alone_is_right():
    result = {"head_only_correct": 7, "fine_tuned_only_correct": 21, "p_value": 0.0125}
    assert wording.mcnemar(result, 656, 656).replace(SPACE, " ") == (
        "Of 656 test images, 7 are right with the head alone and 21 after fine-tuning alone "
        "(McNemar's test: p = 0.013)."
    )
    assert "(McNemar's test by groups: p" in wording.mcnemar(result, 656, 618).replace(SPACE, " ")


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ("all", "all layers"),
        ("none", "no layer but the head's"),
        (20, "the last 20 layers of the network"),
        ("block5", "the layers from block5 on"),
        ("regex:_conv$", "the layers whose names match _conv$"),
    ],
)
def test_what_fine_tuning_trained_is_said(choice, words):
    assert wording.unfrozen(choice) == words


@pytest.mark.parametrize(
    ("changes", "begin", "also"),
    [
        ({"method": "stratified"}, "Images were parted class by class, in an order that", []),
        ({"method": "hashed"}, "Images were parted each by a number that follows from", []),
        (
            {"method": "sequential"},
            "Images were parted in the order that TensorFlow Datasets stored them in: train 60.0 %",
            [],
        ),
        ({"folds": 5, "fold": 2}, "Images were parted class", ["The test split is fold 2 of 5."]),
        (
            {"test": "official", "official_copies": "leave_out"},
            "Images were parted class",
            ["Splits that the source draws itself were kept.", "is not trained on."],
        ),
        (
            {"valid": "official", "test": "official"},
            "Images are parted as the source parts them: train 60.0 %, valid 20.0 %, test 20.0 %.",
            ["Splits that the source draws itself were kept."],
        ),
        ({"near_duplicate_distance": None}, "Images", ["Identical images are never in two"]),
        ({"near_duplicate_distance": 3}, "Images", ["near duplicates (3 of 64 bits"]),
    ],
)
def test_how_images_were_parted_is_said(found, changes, begin, also):
    split = found.params["split"] | {"official_copies": "leave_out"} | changes
    text = wording.split_sentence(split, found.data["splits"]).replace(SPACE, " ")
    assert text.startswith(begin)
    for part in also:
        assert part in text
    if "test" not in changes:
        assert "source draws itself" not in text


def test_slices_are_told_by_the_lowest_and_the_highest():
    values = {
        name: {"accuracy": accuracy, "images": images}
        for name, accuracy, images in (("a", 0.8, 10), ("b", 0.7, 20), ("c", 0.9, 1))
    }
    assert wording.spread_of_slices("camera", values).replace(SPACE, " ") == (
        "By camera, the fine-tuned model's accuracy goes from 70.0 % (“b”, 20 images) to 90.0 % "
        "(“c”, 1 image)."
    )
    equal = {name: {"accuracy": 1.0, "images": 9} for name in "ab"}
    text = wording.spread_of_slices("camera", equal).replace(SPACE, " ")
    assert text == "By camera, the fine-tuned model's accuracy is 100.0 % for every value."
    assert wording.spread_of_slices("camera", {"a": values["a"]}) is None


def test_a_model_without_mistakes_is_not_said_to_be_certain():
    clear = {"accuracy": {"difference": 0.1, "low": 0.05, "high": 0.15}}
    data = {"splits": {"train": {"class": {"cat": 90, "dog": 100}}}}
    perfect = model_metrics(1.0, images=60, cat=30, dog=30)
    perfect["interval"]["accuracy"] = {"low": 1.0, "high": 1.0}
    usual = model_metrics(0.9)

    def text(head, fine_tuned) -> str:
        models = {"head": head, "fine_tuned": fine_tuned}
        return " ".join(wording.caveats(data, models, clear)).replace(SPACE, " ")

    words = "up to 5.0 % of such images are wrong, 60 images may all be right"
    assert words in text(usual, perfect)
    assert "No test image is wrong (head and fine-tuned)" in text(perfect, perfect)
    assert "No test image is wrong (head), which" in text(perfect, model_metrics(0.9, images=60))
    assert "without width" not in text(usual, usual)
    of_patients = perfect | {"groups": 10}
    words = "up to 30.0 % of such groups are wrong, 10 groups may all be right"
    assert words in text(of_patients, of_patients)


def test_few_groups_are_said_to_give_too_narrow_intervals():
    data = {"splits": {"train": {"class": {"cat": 90, "dog": 100}}}}
    clear = {"accuracy": {"difference": 0.1, "low": 0.05, "high": 0.15}}

    def text(**changes) -> str:
        found = model_metrics(0.9) | changes
        models = {"head": found, "fine_tuned": found}
        return " ".join(wording.caveats(data, models, clear)).replace(SPACE, " ")

    assert "The 656 test images are of 19 groups, and those of one belong" in text(groups=19)
    assert "belong together" not in text(groups=20)
    assert "belong together" not in text(images=9, groups=9)


def test_a_temperature_is_not_said_to_be_fitted_to_averaged_views():
    fitted = {"fine_tuned": {"uncalibrated": {}}}
    assert "it changes no prediction" in views.calibration_note(fitted)
    assert "not fitted to the mean over views" in views.calibration_note({"fine_tuned": {}})


def with_params(found, section: str, **changes) -> evidence.Evidence:
    """The same with other params of one section."""
    changed = found.params | {section: found.params[section] | changes}
    return dataclasses.replace(found, params=changed)


def test_why_no_column_parts_the_images(found):
    asked = with_params(found, "evaluate", slice_columns=[])
    assert views.no_slices_note(asked) == "params.yaml asks for none."
    by_itself = with_params(found, "evaluate", slice_columns=None)
    assert views.no_slices_note(by_itself) == "none has 2 to 10 values."


def test_numbers_of_averaged_views_are_not_said_to_be_those_of_the_saved_model(found):
    none = dict.fromkeys(("horizontal_flip", "vertical_flip", "quarter_turns"), False)
    for flags, words in (
        ({}, "each image as it is"),
        ({"horizontal_flip": True}, "mean probabilities of 2 views"),
        ({"horizontal_flip": True, "quarter_turns": True}, "mean probabilities of 8 views"),
    ):
        averaged = with_params(found, "evaluate", test_time_augment=none | flags)
        (sentence,) = dict(views.facts(averaged))["Measured on"]
        assert words in sentence
        assert ("answers somewhat differently" in sentence) == bool(flags)


def test_losses_of_the_curves_are_told_from_those_of_the_tables(found):
    plain = with_params(found, "train_head", label_smoothing=0.0)
    smoothed = with_params(plain, "fine_tune", label_smoothing=0.05)
    note = views.learning_note(smoothed)
    assert "accuracy may lie below that of validation, and loss above" in note
    assert "before the temperature, of fine-tuning with label smoothing of 0.05:" in note
    assert "smoothing" not in views.learning_note(
        with_params(plain, "fine_tune", label_smoothing=0)
    )
    regression = [{"epoch": 1, "l2": 0.1}]
    models = {
        name: dataclasses.replace(model, history=regression) for name, model in found.models.items()
    }
    note = views.learning_note(dataclasses.replace(smoothed, models=models))
    assert note.startswith("Losses are before the temperature:")


def test_images_that_took_no_part_are_counted(found):
    assert not any("took no part" in note for note in views.data_notes(found))
    more = dataclasses.replace(found, data=found.data | {"images": found.data["images"] + 1500})
    note = views.data_notes(more)[0].replace(SPACE, " ")
    assert note.startswith("1,500 images of the source's 4,509 took no part")


def test_classes_of_which_no_image_is_used_are_named(found):
    splits = {
        name: split | {"class": {k: v for k, v in split["class"].items() if k != "class 3"}}
        for name, split in found.data["splits"].items()
    }
    without = dataclasses.replace(found, data=found.data | {"splits": splits})
    assert f"1{SPACE}class has no training image: class 3." in views.data_notes(without)
    assert not any("no training image" in note for note in views.data_notes(found))


def test_near_duplicates_that_were_not_looked_for_are_not_counted(found):
    looked = with_params(found, "split", near_duplicate_distance=2)
    assert views.duplicates_table(looked).rows == [
        ["Groups of identical images", "3"],
        ["Images that are copies of another", "4"],
        ["Groups of near duplicates", "12"],
        ["Images that are near duplicates of another", "15"],
        ["Groups of identical images with differing labels", "1"],
        ["Groups of near duplicates with differing labels", "3"],
        ["Images with a copy or near duplicate in one of the source's own splits", "5"],
    ]
    rows = views.duplicates_table(with_params(found, "split", near_duplicate_distance=None)).rows
    assert ["Groups of near duplicates", "not looked for"] in rows
    assert ["Groups of near duplicates with differing labels", "not looked for"] in rows
    assert ["Groups of identical images", "3"] in rows


# Charts


def traces(chart: charts.Chart, name: str) -> list[dict]:
    """Those of a chart that bear a name."""
    return [trace for trace in chart.figure["data"] if trace.get("name") == name]


def test_every_chart_shows_each_model_its_own_numbers(found):
    close = {"rel": 1e-4}
    for model, name in wording.NAMES.items():
        metrics = found.models[model].metrics
        shown = {}
        for place, trace in enumerate(traces(charts.headline(found.models), name)):
            ends = trace["error_x"]
            keys = [m.key for m in wording.METRICS if m.key in metrics["interval"]]
            keys = [key for key in keys if wording.METRIC_OF_KEY[key].higher_is_better != place]
            for key, x, up, down in zip(
                keys, trace["x"], ends["array"], ends["arrayminus"], strict=True
            ):
                shown[key] = {"low": x - down, "high": x + up}
                assert x == pytest.approx(metrics[key], **close)
        for key, interval in metrics["interval"].items():
            assert shown[key] == pytest.approx(interval, abs=1e-4)

        values = metrics["slice"]["camera"]
        (trace,) = traces(charts.slices(0, "camera", found.models), name)
        assert sorted(trace["x"]) == pytest.approx(
            sorted(value["accuracy"] for value in values.values()), **close
        )
        (trace,) = traces(charts.class_f1(found.models), name)
        expected = [metrics["class"][each]["f1"] for each in trace["customdata"][-5:]]
        assert list(trace["x"][-5:]) == pytest.approx(expected, **close)

        for chart, curves in (
            (charts.roc(found.models), found.models[model].roc),
            (charts.precision_recall(found.models), found.models[model].precision_recall),
        ):
            lines = [trace for trace in chart.figure["data"] if trace.get("meta")]
            line = lines[list(wording.NAMES).index(model)]
            assert list(line["y"]) == pytest.approx([up for _, up in curves[ALL_CLASSES]], **close)

        chart = charts.learning(model, found.models[model].history)
        for quantity, training, validation in zip(
            ("accuracy", "loss"),
            *(traces(chart, n) for n in ("training", "validation")),
            strict=True,
        ):
            for trace, key in ((training, quantity), (validation, f"val_{quantity}")):
                expected = [row[key] for row in found.models[model].history]
                assert list(trace["y"]) == pytest.approx(expected, **close)
    assert [len(found.models[model].history) for model in wording.NAMES] == [12, 6]


def test_class_balance_shows_every_split_its_own_images(found):
    splits = found.data["splits"]
    chart = charts.class_balance(splits)
    for name, split in splits.items():
        (trace,) = traces(chart, name)
        assert sum(trace["x"]) == sum(split["class"].values())


@pytest.mark.parametrize("points", [2, 11, 19, 195])
def test_the_table_of_curves_has_every_class_from_end_to_end(found, points):
    names = [f"class {number}" for number in range(10)]
    curve = [(place / (points - 1), 1.0) for place in range(points)]
    models = {
        name: dataclasses.replace(model, roc={each: curve for each in names})
        for name, model in found.models.items()
    }
    rows = charts.roc(models).table.rows
    assert Counter(map(tuple, (row[:2] for row in rows))) == {
        (each, name): min(points, 11) for each in names for name in wording.NAMES.values()
    }
    assert [rows[0][2], rows[-1][2]] == ["0.000", "1.000"]


def test_confusion_shows_shares_of_the_actual_class():
    counts = Counter({("cat", "cat"): 3, ("cat", "dog"): 1, ("dog", "dog"): 4})
    chart = charts.confusion("head", counts, ["cat", "dog"])
    assert chart.figure["data"][0]["z"] == [[0.75, 0.25], [0.0, 1.0]]
    assert chart.table.rows == [["cat", "dog", "1", f"25.0{SPACE}%"]]
    assert "“cat” taken for “dog”: 1 of" in chart.summary


def test_sure_images_are_counted_by_bins_that_lie_above_the_named_confidence():
    """The bin from 0.867 to 0.933 holds images below 0.9 too, whatever its mean."""
    after = [
        {"confidence": 0.92, "accuracy": 0.9, "images": 30},
        {"confidence": 0.97, "accuracy": 0.9, "images": 10},
    ]
    summary = charts.reliability("head", {"before": [], "after": after}).summary
    assert summary.endswith(f"25.0{SPACE}% of the images have a confidence above 0.933.")


def test_reliability_of_averaged_views_is_shown_after_the_temperature_alone():
    bins = [{"confidence": 0.95, "accuracy": 0.9, "images": 10}]
    both = charts.reliability("head", {"before": bins, "after": bins})
    after = charts.reliability("head", {"before": [], "after": bins})
    names = [
        [one["name"] for one in chart.figure["data"] if "name" in one] for chart in (both, after)
    ]
    assert names == [["before scaling", "after scaling"], ["after scaling"]]
    assert "model, before and after temperature scaling" in both.summary
    assert "model, after temperature scaling" in after.summary


def test_the_one_curve_of_many_classes_is_not_said_to_have_the_mean_of_their_areas(found):
    """The curve of all decisions together has another area than the mean of the classes' own."""
    points = [(0.0, 0.0), (0.1, 0.9), (1.0, 1.0)]
    models = {
        name: dataclasses.replace(
            model, roc={ALL_CLASSES: points}, precision_recall={ALL_CLASSES: points}
        )
        for name, model in found.models.items()
    }
    for chart in (charts.roc(models), charts.precision_recall(models)):
        assert "of all decisions, one class or not, together" in chart.summary
        assert ", the mean over the classes' own curves: head 0." in chart.summary


def test_logistic_regression_has_no_epochs():
    rows = [{"epoch": number, "l2": 10.0**-number, "val_loss": 1 / number} for number in (1, 2, 3)]
    others = {"accuracy": 0.9, "loss": 0.1, "val_accuracy": 0.8}
    chart = charts.learning("head", [row | others for row in rows])
    assert f"3{SPACE}strengths of L2" in chart.summary
    assert "is that of strength of L2 0.001" in chart.summary
    assert "epoch" not in chart.summary + str(chart.figure) + str(chart.table)
    assert list(chart.figure["data"][0]["x"]) == [0.1, 0.01, 0.001]


def test_a_class_without_test_images_has_no_numbers(found):
    metrics = {
        name: model.metrics | {"class": dict(model.metrics["class"])}
        for name, model in found.models.items()
    }
    for of_model in metrics.values():
        of_model["class"]["class 3"] = dict.fromkeys(("precision", "recall", "f1"), 0.0)
        of_model["class"]["class 3"]["support"] = 0
    (row,) = (row for row in views.class_table(metrics, found.data).rows if row[0] == "class 3")
    assert row[2:] == ["0", *(7 * ["–"])]
    models = {
        name: dataclasses.replace(model, metrics=metrics[name])
        for name, model in found.models.items()
    }
    assert "class 3" not in [row[0] for row in charts.class_f1(models).table.rows]


def test_of_many_classes_the_most_confused_pairs_are_shown_side_by_side():
    names = [f"class {number:03}" for number in range(100)]
    confusion = Counter({(name, name): 50 for name in names})
    confusion.update({("class 090", "class 010"): 30, ("class 005", "class 006"): 9})
    shown = charts.most_confused([confusion, Counter({("class 010", "class 090"): 2})], names)
    assert shown[:4] == ["class 010", "class 090", "class 005", "class 006"]
    assert len(shown) == len(set(shown)) == charts.MOST_CLASSES
    assert charts.most_confused([confusion], names[:30]) == names[:30]


@pytest.mark.parametrize(("classes", "text"), [(2, "50.0"), (12, "50"), (13, None)])
def test_cells_bear_as_much_text_as_they_have_room_for(classes, text):
    names = [f"class {number}" for number in range(classes)]
    counts = Counter({(name, other): 1 for name in names for other in (name, names[0])})
    chart = charts.confusion("head", counts, names)
    texts = chart.figure["data"][0].get("text")
    assert texts is None if text is None else texts[1][1].startswith(text)
    assert bool(chart.least_width) == (text is None)


def test_names_can_bring_no_markup_into_a_chart(found):
    view = views.page(found, NOTHING_STATED)
    for chart in views.all_charts(view).values():
        texts = json.dumps({**chart.figure, "layout": {**chart.figure["layout"], "meta": None}})
        texts = re.sub(r'"meta": \{"class": .*?\}', "", texts)
        assert "<scr" not in texts, chart.name


def test_both_models_keep_their_colors_and_markers_in_every_chart(found):
    for chart in views.all_charts(views.page(found, NOTHING_STATED)).values():
        for trace in chart.figure["data"]:
            if trace.get("name") in wording.NAMES.values():
                model = {name: key for key, name in wording.NAMES.items()}[trace["name"]]
                look = {**trace.get("line", {}), **trace.get("marker", {})}
                assert look["color"] == charts.STYLES[model].color, chart.name
    head, fine_tuned = charts.STYLES["head"], charts.STYLES["fine_tuned"]
    assert head.color != fine_tuned.color
    assert head.symbol != fine_tuned.symbol


def test_every_chart_has_a_summary_and_numbers(found):
    found_charts = views.all_charts(views.page(found, NOTHING_STATED))
    assert len(found_charts) == 12
    for chart in found_charts.values():
        assert len(chart.summary) > 30
        assert chart.table.rows
        for row in chart.table.rows:
            assert len(row) == len(chart.table.header)


def test_a_metric_that_is_not_defined_is_left_out_not_an_error(found):
    undefined = ("roc_auc", "average_precision", "balanced_accuracy")
    models = {
        name: dataclasses.replace(
            model,
            metrics={key: value for key, value in model.metrics.items() if key not in undefined}
            | {"interval": {}},
            roc={},
            precision_recall={},
        )
        for name, model in found.models.items()
    }
    comparison = {"accuracy": {"difference": 0.1}, "mcnemar": found.comparison["mcnemar"]}
    bare = dataclasses.replace(found, models=models, comparison=comparison)
    page = report.render(views.page(bare, NOTHING_STATED), {}).decode()
    assert "All test images are of one class" in page
    assert '<th scope="row">ROC AUC' not in page


def test_what_is_not_known_of_the_network_is_left_out_not_an_error(found):
    """Layers of unknown kinds have no count of multiply-adds; an image size may be its own."""
    models = {
        name: dataclasses.replace(
            model, metrics={k: v for k, v in model.metrics.items() if k != "multiply_adds"}
        )
        for name, model in found.models.items()
    }
    params = found.params | {
        "backbone": found.params["backbone"] | {"image_size": None},
        "preprocess": found.params["preprocess"] | {"channels": 1},
    }
    bare = dataclasses.replace(found, models=models, params=params)
    page = report.render(views.page(bare, NOTHING_STATED), {}).decode()
    assert "multiply-adds" not in page
    assert "None pixels" not in page
    assert "Input: grey images of any size" in page


# The file


def picture(content: bytes, kind: str = "mistake", explanation: bytes | None = None):
    return evidence.Picture("name", "cat", "dog", 0.9, 0.1, False, (kind,), content, explanation)


def test_equal_pictures_of_both_models_are_stored_once():
    galleries = {"head": [picture(b"same")], "fine_tuned": [picture(b"same", explanation=b"why")]}
    gallery = pictures.fit(galleries, 10_000)
    assert len(gallery["files"]) == 2
    first, second = gallery["entries"]
    assert first["picture"] == second["picture"]
    assert first["explanation"] is None
    assert gallery["files"][second["explanation"]] == "d2h5"  # base64 of `why`


def test_pictures_that_find_no_room_are_left_out_evenly_and_counted():
    def many(model: str, kind: str) -> list:
        return [picture(f"{model} {kind} {n:03}".encode() * 40, kind) for n in range(50)]

    galleries = {model: many(model, "mistake") + many(model, "sample") for model in ("head", "new")}
    gallery = pictures.fit(galleries, 40_000)
    size = len(json.dumps(gallery["files"])) + len(json.dumps(gallery["entries"]))
    assert 35_000 < size <= 40_000
    kept = Counter((entry["model"], *entry["kinds"]) for entry in gallery["entries"])
    assert len(kept) == 4
    assert max(kept.values()) - min(kept.values()) <= 1
    assert gallery["left_out"] == 200 - len(gallery["entries"]) > 0


def test_page_keeps_below_its_size_and_says_what_is_left_out(found):
    view = views.page(found, NOTHING_STATED)
    galleries = {name: model.gallery for name, model in found.models.items()}
    whole = report.render(view, galleries)
    limit = len(whole) - 6_000
    page = report.render(view, galleries, limit)
    assert len(page) <= limit
    assert re.search(r"\d+ pictures are left out", page.decode())
    assert "pictures are left out" not in whole.decode()
    with pytest.raises(UserError, match="without any picture"):
        report.render(view, galleries, 100_000)


def test_pages_that_are_channels_are_not_said_to_be_left_out(found):
    said = "several frames or pages; the first one is the image"
    assert any(said in note for note in views.data_notes(found))
    of_five = {**found.params, "preprocess": {**found.params["preprocess"], "channels": 5}}
    notes = views.data_notes(dataclasses.replace(found, params=of_five))
    assert not any("frames" in note for note in notes)


def test_class_names_cannot_break_out_of_the_page(found):
    page = report.render(
        views.page(found, NOTHING_STATED),
        {name: model.gallery for name, model in found.models.items()},
    ).decode()
    assert HOSTILE[0] not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    (embedded,) = re.findall(r'<script type="application/json" id="page-data">(.*?)</script>', page)
    assert any(entry["label"] == HOSTILE[0] for entry in json.loads(embedded)["gallery"]["entries"])


def test_what_a_person_states_replaces_the_sentence_that_it_is_not_stated(found):
    silent = report.render(views.page(found, NOTHING_STATED), {}).decode()
    for key in ("intended_use", "limits", "license", "contact"):
        assert f"<code>report.{key}</code>" in silent
    stated = dataclasses.replace(NOTHING_STATED, title="Cells & cracks", limits="Not outdoors")
    page = report.render(views.page(found, stated), {}).decode()
    assert "<h1>Cells &amp; cracks</h1>" in page
    assert "<p>Not outdoors</p>" in page
    assert "<code>report.limits</code>" not in page
    names = (found.params[section]["name"] for section in ("backbone", "dataset"))
    assert " on ".join(names) in silent


def test_stage_writes_the_page_of_two_classes_and_twenty_images(tmp_path, run_stage):
    report_fixture.write_evidence(tmp_path, HOSTILE, test_images=20, gallery=20)
    done = run_stage("report")
    assert done.returncode == 0, done.stderr
    assert "reports/index.html" in done.stdout
    first = (tmp_path / "reports/index.html").read_bytes()
    assert run_stage("report").returncode == 0
    assert (tmp_path / "reports/index.html").read_bytes() == first


@pytest.mark.parametrize(
    "missing",
    [
        "metrics/comparison.json",
        "plots/fine_tune/layers.csv",
        "data/rejected.csv",
        "data/gallery/head/0000.jpg",
    ],
)
def test_which_file_is_missing_is_said_and_how_to_get_it(tmp_path, monkeypatch, missing):
    report_fixture.write_evidence(tmp_path, HOSTILE, test_images=20, gallery=2)
    (tmp_path / missing).unlink()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"^{missing} does not exist; `dvc repro` makes it$"):
        evidence.read()
