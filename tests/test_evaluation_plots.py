import csv
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from stages.common import backbones, evaluation_plots, heads, metrics, models, plots, shards
from tests import ROOT

PICTURES = ("predictions", "mistakes", "uncertain", "confused_pairs", "explanations")


def make_results(labels, probabilities, class_names=None):
    probabilities = np.asarray(probabilities, np.float64)
    names = class_names or [f"class {number}" for number in range(probabilities.shape[1])]
    ids = [f"test__{number}" for number in range(len(labels))]
    return evaluation_plots.Results(ids, np.asarray(labels), probabilities, names)


def random_results(images: int, classes: int, skill: float = 2.0):
    random = np.random.default_rng(0)
    labels = random.integers(0, classes, images)
    logits = random.normal(size=(images, classes))
    logits[np.arange(images), labels] += skill
    return make_results(labels, np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True))


def binary(positive: list[float]) -> np.ndarray:
    return np.stack([1 - np.array(positive), positive], axis=1)


def points(rows) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for _, x, y in rows]


def test_roc_and_precision_recall_of_four_images_by_hand():
    # Thresholds from the top: 0.8 (right), 0.4 (wrong), 0.35 (right), 0.1 (wrong).
    found = make_results([0, 0, 1, 1], binary([0.1, 0.4, 0.35, 0.8]), ["good", "bad"])
    rows = list(evaluation_plots.roc_rows(found))
    assert {name for name, _, _ in rows} == {"bad"}  # two classes: one curve, of the second
    assert points(rows) == [(0, 0), (0, 0.5), (0.5, 0.5), (0.5, 1), (1, 1)]
    rows = list(evaluation_plots.precision_recall_rows(found))
    assert points(rows) == [(0, 1), (0.5, 1), (0.5, 0.5), (1, 0.666667), (1, 0.5)]


def test_curves_are_one_a_class_up_to_ten_and_one_of_all_beyond():
    def curves(found):
        return list(dict.fromkeys(name for name, _, _ in evaluation_plots.roc_rows(found)))

    assert curves(random_results(60, 3)) == ["class 0", "class 1", "class 2"]
    assert len(curves(random_results(200, 10))) == 10
    assert curves(random_results(200, 11)) == ["all classes"]
    absent = random_results(60, 3)
    absent.labels[absent.labels == 1] = 0
    assert curves(absent) == ["class 0", "class 2"]
    assert curves(make_results([1, 1], binary([0.9, 0.6]))) == []


def test_the_curve_of_all_classes_counts_every_decision():
    # Eleven classes, one image: its own class comes second of the eleven decisions.
    probabilities = np.full((1, 11), 0.01)
    probabilities[0, 0], probabilities[0, 1] = 0.5, 0.41
    rows = list(evaluation_plots.roc_rows(make_results([1], probabilities)))
    assert points(rows) == [(0, 0), (0.1, 0), (0.1, 1), (1, 1)]


@pytest.mark.parametrize("rows_of", ["roc_rows", "precision_recall_rows"])
def test_long_curves_are_thinned_and_keep_their_shape_and_ends(rows_of, monkeypatch):
    found = random_results(20_000, 2, skill=0.5)
    thinned = np.array(points(getattr(evaluation_plots, rows_of)(found)))
    monkeypatch.setattr(evaluation_plots, "thin", lambda x, y: np.arange(len(x)))
    whole = np.array(points(getattr(evaluation_plots, rows_of)(found)))
    assert len(whole) > 5000
    assert 100 < len(thinned) <= 200
    np.testing.assert_array_equal(thinned[[0, -1]], whole[[0, -1]])
    distances = np.abs(whole[:, np.newaxis] - thinned).sum(axis=2).min(axis=1)
    assert distances.max() < 0.05
    assert np.all(np.diff(thinned[:, 0]) >= 0)


def test_reliability_bins_by_hand_and_as_the_calibration_error_has_them():
    # 0.6 is the upper edge of its bin (8/15, 9/15], 0.65 lies in the next, 11/15 between 0.72
    # and 0.74; above 14/15 are three.
    labels = np.array([1, 1, 0, 1, 0, 1, 0])
    probabilities = binary([0.95, 0.95, 0.99, 0.6, 0.65, 0.72, 0.74])
    bins = metrics.reliability_bins(labels, probabilities)
    assert bins == [
        (pytest.approx(0.6), 1.0, 1),
        (pytest.approx(0.65), 0.0, 1),
        (pytest.approx(0.72), 1.0, 1),
        (pytest.approx(0.74), 0.0, 1),
        (pytest.approx(2.89 / 3), pytest.approx(2 / 3), 3),
    ]
    gaps = 0.4 + 0.65 + 0.28 + 0.74 + 3 * (2.89 / 3 - 2 / 3)
    assert metrics.expected_calibration_error(labels, probabilities) == pytest.approx(gaps / 7)


def test_tables_tell_actual_from_predicted_and_before_from_after(tmp_path):
    found = make_results([0, 0], binary([0.9, 0.2]), ["good", "bad"])
    evaluation_plots.write_tables(tmp_path, found, 0.5)
    confusion = (tmp_path / "confusion.csv").read_text(encoding="utf-8")
    assert confusion == "actual,predicted\ngood,bad\ngood,good\n"
    reliability = (tmp_path / "reliability.csv").read_text(encoding="utf-8")
    assert reliability.splitlines() == [
        "temperature,confidence,accuracy,images",
        "before,0.666667,1,1",
        "before,0.75,0,1",
        "after,0.8,1,1",
        "after,0.9,0,1",
    ]
    evaluation_plots.write_tables(tmp_path, found, None)
    reliability = (tmp_path / "reliability.csv").read_text(encoding="utf-8")
    assert reliability.splitlines()[1:] == ["after,0.8,1,1", "after,0.9,0,1"]


def test_captions_name_the_guesses_in_blue_where_right():
    found = make_results([0, 0], [[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]], ["a", "b", "c"])
    assert [found.color(index) for index in (0, 1)] == [plots.BLUE, plots.ORANGE]
    assert [found.guess(1, place) for place in (0, 1)] == ["c 70.0 %", "b 20.0 %"]
    assert found.actual_name(1) == "a"


def test_pictures_say_what_they_show(tmp_path, monkeypatch):
    """Five images of two classes, two of them wrong: texts of each picture, in order."""
    said = []
    monkeypatch.setattr(
        plots,
        "image_sections",
        lambda path, sections, *, title, **_: said.extend(
            [title, *(text for heading, tiles in sections for text in (heading, *tiles))]
        ),
    )

    def texts(draw, *arguments) -> list[str]:
        said.clear()
        draw(tmp_path / "fine_tuned" / "picture.png", found, *arguments)
        # Of a tile the caption; pictures are named by their numbers here.
        return [text if isinstance(text, str) else text[1] for text in said if text]

    found = make_results([0, 0, 0, 1, 1], binary([0.9, 0.7, 0.2, 0.6, 0.4]), ["cat", "dog"])
    pictures = {number: number for number in range(5)}
    title, *captions = texts(evaluation_plots.draw_predictions, [0, 2, 3], pictures)
    assert title.splitlines()[1] == "3 test images; right on 2 of all 5"
    assert captions == [
        "actual: cat\n✗ dog 90.0 %",
        "actual: cat\n✓ cat 80.0 %",
        "actual: dog\n✓ dog 60.0 %",
    ]
    title, *captions = texts(evaluation_plots.draw_mistakes, [0, 1], pictures)
    assert title.splitlines()[1] == "The 2 most confident of 3 mistakes on 5 test images"
    assert captions[1] == "actual: cat\n✗ dog 70.0 %"
    pairs = evaluation_plots.confused_pairs(found)
    headings = texts(evaluation_plots.draw_confused_pairs, pairs, pictures)
    assert "cat taken for dog: 2 of the 3 of that class (66.7 %)" in headings
    assert "dog taken for cat: 1 of the 2 of that class (50.0 %)" in headings
    heat = np.zeros((2, 2, 3), np.uint8)
    overlays = {number: heat + np.array([number, 0, 0], np.uint8) for number in (2, 0)}
    _, *captions = texts(evaluation_plots.draw_explanations, overlays, pictures)
    assert captions == [
        "Wrong: the most confident mistakes of each class in turn",
        "actual class:\ncat",
        "predicted (no heat):\ndog 90.0 %",
        "Right: drawn at random, each class in turn",
        "actual class:\ncat",
        "predicted:\ncat 80.0 %",
    ]


def test_classes_and_confused_pairs_by_hand():
    labels = [0, 0, 0, 0, 1, 1, 2]
    said = [0, 1, 1, 2, 1, 1, 1]
    probabilities = np.eye(4)[said] * 0.9 + 0.025
    found = make_results(labels, probabilities, ["a", "b", "c", "d"])
    assert evaluation_plots.class_rows(found) == [
        ("a", "0.4", "1", "0.25", 4),  # 1 of 1 found, 1 of 4 recalled
        ("b", "0.571429", "0.4", "1", 2),  # 2 of 5, 2 of 2
        ("c", "0", "0", "0", 1),
        # Of d there is no image: nothing is known of it.
    ]
    pairs = evaluation_plots.confused_pairs(found)
    described = [(pair.actual, pair.predicted, pair.images, pair.of) for pair in pairs]
    assert described == [(0, 1, 2, 4), (0, 2, 1, 4), (2, 1, 1, 1)]
    assert sorted(pairs[0].examples) == [1, 2]
    assert pairs[1].examples == [3]


def test_at_most_six_pairs_with_six_examples_are_shown():
    pairs = evaluation_plots.confused_pairs(random_results(4000, 5, skill=0.1))
    assert len(pairs) == 6
    assert all(len(pair.examples) == 6 for pair in pairs)
    assert [pair.images for pair in pairs] == sorted([pair.images for pair in pairs], reverse=True)


def test_dvc_plots_columns_that_the_tables_have_with_templates_that_are_there(tmp_path):
    for model in ("head", "fine_tuned"):
        found = random_results(50, 3)
        evaluation_plots.write_tables(tmp_path / "plots" / model, found, 1.3)
    graph = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
    shown = set()
    for plot in graph["plots"]:
        settings = next(iter(plot.values())) if isinstance(plot, dict) else {}
        for path, column in settings.get("y", {}).items():
            if (tmp_path / path).exists():
                shown.add(path)
                with (tmp_path / path).open(newline="", encoding="utf-8") as file:
                    rows = list(csv.DictReader(file))
                assert rows
                assert {settings["x"], column} <= set(rows[0]), path
                template = ROOT / ".dvc" / "plots" / f"{settings['template']}.json"
                assert "<DVC_METRIC_DATA>" in template.read_text(encoding="utf-8")
    assert shown == {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.csv")}
    for model in ("head", "fine_tuned"):
        for name in PICTURES:
            assert f"plots/{model}/{name}.png" in graph["plots"]


class Evaluation:
    """A model, test images whose shade is their number, and what the model said of them."""

    def __init__(self, folder: Path, images: int, class_names: list[str], mistakes: int):
        self.folder, self.class_names = folder, class_names
        classes = len(class_names)
        random = np.random.default_rng(0)
        self.labels = np.arange(images) % classes
        said = np.where(np.arange(images) < mistakes, (self.labels + 1) % classes, self.labels)
        logits = random.normal(size=(images, classes))
        logits[np.arange(images), said] = logits.max(axis=1) + random.random(images)
        self.probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        self.ids = [f"test__{number}" for number in range(images)]
        shards.write_all(
            folder / "test",
            (
                (np.full((20, 24, 3), number % 256, np.uint8), int(label), example_id)
                for number, (label, example_id) in enumerate(
                    zip(self.labels, self.ids, strict=True)
                )
            ),
            "uint8",
            class_names,
        )
        head = heads.build("linear", (16,), classes, hidden_units=[1], dropout=0)
        backbone = models.with_any_size(backbones.build("tiny", None, 32))
        self.model = models.assemble(backbone, head)

    def write(self, name: str) -> Path:
        """Writes everything and gives the folder of plots; the gallery is in `<name>_gallery`."""
        folder = self.folder / name / "fine_tuned"
        evaluation_plots.write_all(
            folder,
            self.folder / f"{name}_gallery",
            model=self.model,
            image_folder=self.folder / "test",
            image_size=32,
            labels=self.labels,
            probabilities=self.probabilities,
            temperature=1.0,
            ids=self.ids,
            names=self.ids,
            class_names=self.class_names,
            batch_size=16,
        )
        return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_everything_is_written_and_the_same_bytes_each_time(tmp_path):
    evaluation = Evaluation(tmp_path, 300, ["red", "green", "blue"], mistakes=100)
    first, second = evaluation.write("first"), evaluation.write("second")
    tables = {"roc", "precision_recall", "reliability", "classes", "confusion"}
    expected = {f"{name}.csv" for name in tables} | {f"{name}.png" for name in PICTURES}
    assert set(contents(first)) == expected
    assert contents(first) == contents(second)
    assert contents(tmp_path / "first_gallery") == contents(tmp_path / "second_gallery")
    entries = json.loads((tmp_path / "first_gallery" / "gallery.json").read_text())
    assert len(entries) == 240
    for entry in entries[::20]:  # every entry shows its own image
        with Image.open(tmp_path / "first_gallery" / entry["picture"]) as picture:
            shade = int(entry["id"].removeprefix("test__")) % 256
            assert picture.size == (24, 20)
            assert abs(picture.getpixel((12, 10))[0] - shade) <= 2
    assert sum(entry["explanation"] is not None for entry in entries) == 48


def test_every_explanation_is_that_of_its_image_and_its_predicted_class(tmp_path, monkeypatch):
    evaluation = Evaluation(tmp_path, 250, ["red", "green"], mistakes=100)

    def light_is_hot(model, images, classes, batch_size):
        numbers = images[:, 0, 0, 0]  # each image's shade
        np.testing.assert_array_equal(classes, evaluation.probabilities.argmax(axis=1)[numbers])
        return np.repeat(numbers > 125, 4).reshape(-1, 2, 2).astype(np.float32)

    monkeypatch.setattr(evaluation_plots.explain, "heat_maps", light_is_hot)
    evaluation.write("plots")
    folder = tmp_path / "plots_gallery"
    entries = json.loads((folder / "gallery.json").read_text())
    hot = {}
    for entry in entries:
        if entry["explanation"]:
            with Image.open(folder / entry["explanation"]) as picture:
                red, _, blue = picture.getpixel((12, 10))
            hot[int(entry["id"].removeprefix("test__"))] = red - blue > 20
    assert len(hot) == 48
    assert {number > 125 for number in hot} == {False, True}
    assert all(is_hot == (number > 125) for number, is_hot in hot.items())


def test_without_a_mistake_the_pictures_say_so(tmp_path):
    folder = Evaluation(tmp_path, 20, ["good", "bad"], mistakes=0).write("plots")
    plots.sentence(tmp_path / "said.png", "No mistakes: all 20 test images are classified right.")
    said = (tmp_path / "said.png").read_bytes()
    assert (folder / "mistakes.png").read_bytes() == said
    assert (folder / "confused_pairs.png").read_bytes() == said
    assert (folder / "explanations.png").read_bytes() != said
    with Image.open(tmp_path / "said.png") as picture:
        assert picture.convert("L").getextrema() == (0, 255)


def test_pictures_of_many_classes_with_awkward_names_stay_of_bounded_size(tmp_path):
    names = [f"$x_{number}$ {{ a class\nwhose name has no end {'y' * 80}" for number in range(300)]
    folder = Evaluation(tmp_path, 900, names, mistakes=850).write("plots")
    for name in PICTURES:
        with Image.open(folder / f"{name}.png") as picture:
            assert picture.width <= 1400, name
            assert picture.height <= 1500, name
        assert (folder / f"{name}.png").stat().st_size < 1_000_000


def test_pictures_of_differing_shapes_are_read_as_the_model_sees_them(tmp_path):
    sides = [20, 30, 40, 50]
    shards.write_all(
        tmp_path,
        ((np.full((side, 25, 3), side, np.uint8), 0, str(side)) for side in sides),
        "uint8",
        ["a", "b"],
    )
    pictures = evaluation_plots.read_pictures(tmp_path, {"40": 7, "20": 2}, 32, 2)
    assert {key: picture.shape for key, picture in pictures.items()} == {
        7: (32, 32, 3),
        2: (32, 32, 3),
    }
    assert pictures[7].mean() == 40
