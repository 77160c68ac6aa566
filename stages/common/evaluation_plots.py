"""What DVC and people look at after an evaluation: curves as CSV, pictures as PNG, a gallery.

`write_all` writes, for one model, into plots/<model>/:
    roc.csv — class, false_positive_rate, true_positive_rate.
    precision_recall.csv — class, recall, precision.
    reliability.csv — temperature (before or after), confidence, accuracy, images; of views that
        were averaged only after.
    classes.csv — class, f1, precision, recall, support.
    confusion.csv — actual, predicted: one row a test image.
    predictions.png, mistakes.png, uncertain.png, confused_pairs.png, explanations.png.
and the folder data/gallery/<model>/, see stages.common.gallery.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from stages.common import explain, gallery, metrics, plots, shards, tables
from stages.common.predictions import Predictions
from stages.common.run import progress

MOST_CURVE_POINTS = 200
MOST_CURVES = 10  # of more classes one curve is drawn, of all of them together
GRID_SIDE = 5
MOST_PAIRS = 6
PAIR_EXAMPLES = 6
EXPLAINED_OF_A_KIND = 6
EXPLAINED_IN_A_ROW = 3
MODEL_TITLES = {
    "head": "The new head on the frozen network",
    "fine_tuned": "The fine-tuned network",
}


@dataclass(frozen=True)
class Results(Predictions):
    """The predictions of the test images, in stored order, and what to say of them."""

    @cached_property
    def predicted(self) -> np.ndarray:
        """(images,), the most probable class."""
        return self.probabilities.argmax(axis=1)

    @cached_property
    def right(self) -> np.ndarray:
        """(images,), bool."""
        return self.predicted == self.labels

    def actual_name(self, index: int) -> str:
        """The short name of an image's class."""
        return plots.shorten(self.class_names[self.labels[index]])

    def guess(self, index: int, place: int = 0) -> str:
        """The short name and probability of the most probable class, or of a later one."""
        row = self.probabilities[index]
        number = int(np.argsort(-row, kind="stable")[place])
        return f"{plots.shorten(self.class_names[number], 16)} {100 * row[number]:.1f} %"

    def marked_guess(self, index: int) -> str:
        """The guess behind a sign of right or wrong, which can be told apart without colours."""
        return f"{'✓' if self.right[index] else '✗'} {self.guess(index)}"

    def color(self, index: int) -> str:
        """Blue where the model is right, orange where it is wrong."""
        return plots.BLUE if self.right[index] else plots.ORANGE


def write_all(
    folder: Path,
    gallery_folder: Path,
    *,
    model,
    image_folder: Path,
    image_size: int,
    labels: np.ndarray,
    probabilities: np.ndarray,
    temperature: float | None,
    ids: list[str],
    names: list[str],
    class_names: list[str],
    batch_size: int,
) -> None:
    """Writes all files of one model; the pictures are read in one pass over the test images.

    Args:
        folder: for CSV and PNG files, plots/<model>.
        gallery_folder: data/gallery/<model>.
        model: the classifier, which is asked for explanations only.
        image_folder: shards of the test images.
        image_size: see shards.batches.
        labels: (images,), whole numbers below the number of classes, in stored order as all else.
        probabilities: (images, classes), after the temperature.
        temperature: see metrics.numbers.
        ids: of the images.
        names: of the images, for people.
        class_names: one for each column of `probabilities`.
        batch_size: images in one pass through the model.
    """
    results = Results(ids, labels, probabilities, class_names)
    write_tables(folder, results, temperature)
    choices = gallery.choose(ids, labels, probabilities)
    grids = {
        "predictions": list(range(min(GRID_SIDE**2, len(ids)))),
        "mistakes": gallery.most_confident_mistakes(labels, probabilities)[: GRID_SIDE**2],
        "uncertain": gallery.least_certain(probabilities)[: GRID_SIDE**2],
    }
    pairs = confused_pairs(results)
    shown = {choice.index for choice in choices}.union(*grids.values())
    shown = shown.union(*(pair.examples for pair in pairs))
    pictures = read_pictures(
        image_folder, {ids[index]: index for index in shown}, image_size, batch_size
    )
    explained = [choice.index for choice in choices if choice.explained]
    heat_maps = explain.heat_maps(
        model,
        np.stack([pictures[index] for index in explained]),
        results.predicted[explained],
        batch_size,
    )
    overlays = {
        index: explain.overlay(pictures[index], heat_map)
        for index, heat_map in zip(explained, heat_maps, strict=True)
    }
    gallery.write(
        gallery_folder,
        choices,
        pictures=pictures,
        overlays=overlays,
        labels=labels,
        probabilities=probabilities,
        ids=ids,
        names=names,
        class_names=class_names,
    )
    draw_predictions(folder / "predictions.png", results, grids["predictions"], pictures)
    draw_mistakes(folder / "mistakes.png", results, grids["mistakes"], pictures)
    draw_uncertain(folder / "uncertain.png", results, grids["uncertain"], pictures)
    draw_confused_pairs(folder / "confused_pairs.png", results, pairs, pictures)
    draw_explanations(folder / "explanations.png", results, overlays, pictures)


def write_tables(folder: Path, results: Results, temperature: float | None) -> None:
    """Writes the CSV files that DVC plots."""
    names = results.class_names
    stages = {"after": results.probabilities}
    if temperature is not None:
        before = metrics.uncalibrated(results.probabilities, temperature)
        stages = {"before": before, **stages}
    tables.write_csv(
        folder / "confusion.csv",
        ("actual", "predicted"),
        (
            (names[actual], names[predicted])
            for actual, predicted in zip(results.labels, results.predicted, strict=True)
        ),
    )
    tables.write_csv(
        folder / "roc.csv",
        ("class", "false_positive_rate", "true_positive_rate"),
        roc_rows(results),
    )
    tables.write_csv(
        folder / "precision_recall.csv",
        ("class", "recall", "precision"),
        precision_recall_rows(results),
    )
    tables.write_csv(
        folder / "reliability.csv",
        ("temperature", "confidence", "accuracy", "images"),
        (
            (when, f"{confidence:.6g}", f"{accuracy:.6g}", images)
            for when, values in stages.items()
            for confidence, accuracy, images in metrics.reliability_bins(results.labels, values)
        ),
    )
    tables.write_csv(
        folder / "classes.csv",
        ("class", "f1", "precision", "recall", "support"),
        class_rows(results),
    )


def one_vs_rest(results: Results) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """What a curve is drawn of: its name, whether it is so (bool), and the score (float).

    Of two classes the second one; of up to ten each; of more, one curve over the decisions of all
    classes together (micro average). A class that no test image has, or that all have, has no
    curve.
    """
    labels, probabilities = results.labels, results.probabilities
    numbers = metrics.curve_classes(probabilities.shape[1])
    if len(numbers) > MOST_CURVES:
        is_class = np.zeros(probabilities.shape, bool)
        is_class[np.arange(len(labels)), labels] = True
        yield metrics.ALL_CLASSES, is_class.ravel(), probabilities.ravel()
        return
    for number in numbers:
        is_class = labels == number
        if 0 < is_class.sum() < len(labels):
            yield results.class_names[number], is_class, probabilities[:, number]


def roc_rows(results: Results) -> Iterator[tuple[str, str, str]]:
    """Class, false and true positive rate, from (0, 0) to (1, 1)."""
    from sklearn.metrics import roc_curve

    for name, is_class, scores in one_vs_rest(results):
        false_positives, true_positives, _ = roc_curve(is_class, scores)
        for index in thin(false_positives, true_positives):
            yield name, f"{false_positives[index]:.6g}", f"{true_positives[index]:.6g}"


def precision_recall_rows(results: Results) -> Iterator[tuple[str, str, str]]:
    """Class, recall and precision, from recall 0, where precision is 1 by definition, to 1."""
    from sklearn.metrics import precision_recall_curve

    for name, is_class, scores in one_vs_rest(results):
        precision, recall, _ = precision_recall_curve(is_class, scores, drop_intermediate=True)
        for index in thin(recall, precision)[::-1]:
            yield name, f"{recall[index]:.6g}", f"{precision[index]:.6g}"


def thin(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Indices of at most MOST_CURVE_POINTS of a curve, both ends too, at even steps along it."""
    if len(x) <= MOST_CURVE_POINTS:
        return np.arange(len(x))
    way = np.concatenate([[0], np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y)))])
    return np.unique(np.searchsorted(way, np.linspace(0, way[-1], MOST_CURVE_POINTS)))


def class_rows(results: Results) -> list[tuple]:
    """Class, F1, precision, recall and number of test images; of the classes that have some."""
    from sklearn.metrics import precision_recall_fscore_support

    precision, recall, f1, support = precision_recall_fscore_support(
        results.labels,
        results.predicted,
        labels=np.arange(len(results.class_names)),
        zero_division=0.0,
    )
    return [
        (name, *(f"{value:.6g}" for value in values), int(images))
        for name, *values, images in zip(
            results.class_names, f1, precision, recall, support, strict=True
        )
        if images
    ]


@dataclass(frozen=True)
class ConfusedPair:
    """Images of one class that were taken for another."""

    actual: int
    predicted: int
    images: int
    of: int  # all test images of the actual class
    examples: list[int]  # some of them, by row


def confused_pairs(results: Results) -> list[ConfusedPair]:
    """The commonest confusions, the commonest first, with examples that no score has chosen."""
    classes = len(results.class_names)
    cells = results.labels.astype(np.int64) * classes + results.predicted
    found, counts = np.unique(cells[~results.right], return_counts=True)
    order = gallery.in_order_of_hash(results.ids)
    support = np.bincount(results.labels, minlength=classes)
    pairs = []
    for place in np.argsort(-counts, kind="stable")[:MOST_PAIRS]:
        actual, predicted = divmod(int(found[place]), classes)
        examples = [index for index in order if cells[index] == found[place]][:PAIR_EXAMPLES]
        pairs.append(
            ConfusedPair(actual, predicted, int(counts[place]), int(support[actual]), examples)
        )
    return pairs


def read_pictures(
    folder: Path, wanted: dict[str, int], image_size: int, batch_size: int
) -> dict[int, np.ndarray]:
    """Some pictures of a folder of shards, in one pass that ends with the last of them.

    Args:
        folder: what a ShardWriter wrote.
        wanted: id to the key that the picture gets.
        image_size: see shards.batches.
        batch_size: images in memory at a time, besides those that are wanted.

    Returns:
        Key to (height, width, channels), uint8.
    """
    pictures: dict[int, np.ndarray] = {}
    with progress(None, total=len(wanted), unit="image", description="pictures") as bar:
        for images, _, ids in shards.batches(folder, batch_size, image_size=image_size):
            for place, example_id in enumerate(ids.numpy()):
                key = wanted.get(example_id.decode())
                if key is not None:
                    pictures[key] = images[place].numpy()
                    bar.update(1)
            if len(pictures) == len(wanted):
                break
    return pictures


def titled(path: Path, title: str) -> str:
    """A title under the name of the model, after which the folder is called."""
    return f"{MODEL_TITLES.get(path.parent.name, path.parent.name)}\n{title}"


def draw_predictions(path: Path, results: Results, indices, pictures) -> None:
    """The first test images, which are stored in random order."""
    right = int(results.right.sum())
    plots.image_grid(
        path,
        [
            (
                pictures[index],
                f"actual: {results.actual_name(index)}\n{results.marked_guess(index)}",
                results.color(index),
            )
            for index in indices
        ],
        columns=GRID_SIDE,
        title=titled(
            path,
            f"{len(indices)} test images; right on {right} of all {len(results.ids)}\n"
            "✓ right, ✗ wrong: the predicted class and its probability",
        ),
    )


def draw_mistakes(path: Path, results: Results, indices, pictures) -> None:
    """The mistakes with the largest probability, or a sentence if there are none."""
    mistakes = int((~results.right).sum())
    if not mistakes:
        plots.sentence(path, no_mistakes(results))
        return
    plots.image_grid(
        path,
        [
            (
                pictures[index],
                f"actual: {results.actual_name(index)}\n{results.marked_guess(index)}",
                plots.ORANGE,
            )
            for index in indices
        ],
        columns=GRID_SIDE,
        title=titled(
            path,
            f"The {len(indices)} most confident of {mistakes} mistakes on {len(results.ids)} test "
            "images\n✗ the predicted class and its probability",
        ),
    )


def draw_uncertain(path: Path, results: Results, indices, pictures) -> None:
    """The images whose two most probable classes are closest."""
    plots.image_grid(
        path,
        [
            (
                pictures[index],
                f"actual: {results.actual_name(index)}\n"
                f"{results.marked_guess(index)}\nthen {results.guess(index, 1)}",
                results.color(index),
            )
            for index in indices
        ],
        columns=GRID_SIDE,
        title=titled(
            path,
            f"The {len(indices)} least certain of {len(results.ids)} test images\n"
            "first guess (✓ right, ✗ wrong), then the second, with their probabilities",
        ),
    )


def draw_confused_pairs(path: Path, results: Results, pairs, pictures) -> None:
    """A row of examples for each of the commonest confusions."""
    if not pairs:
        plots.sentence(path, no_mistakes(results))
        return
    names = results.class_names
    sections = [
        (
            f"{plots.shorten(names[pair.actual], 30)} taken for "
            f"{plots.shorten(names[pair.predicted], 30)}: "
            f"{pair.images} of the {pair.of} of that class ({100 * pair.images / pair.of:.1f} %)",
            [(pictures[index], results.guess(index)) for index in pair.examples],
        )
        for pair in pairs
    ]
    plots.image_sections(
        path,
        sections,
        columns=PAIR_EXAMPLES,
        title=titled(
            path,
            "The commonest confusions, with examples drawn at random\n"
            "above each picture: the predicted class and its probability",
        ),
    )


def draw_explanations(path: Path, results: Results, overlays, pictures) -> None:
    """Pictures beside their Grad-CAM overlays, wrong ones above right ones."""
    wrong = [index for index in overlays if not results.right[index]]
    # Right ones in the sample's order, so that the pictures of two models show the same images.
    sample = gallery.sample_order(results.ids, results.labels)
    right = [index for index in sample if index in overlays and results.right[index]]
    sections = []
    for heading, indices in (
        ("Wrong: the most confident mistakes of each class in turn", wrong),
        ("Right: drawn at random, each class in turn", right),
    ):
        tiles = []
        for index in indices[:EXPLAINED_OF_A_KIND]:
            color = results.color(index)
            actual, guess = results.actual_name(index), results.guess(index)
            tiles.append((pictures[index], f"actual class:\n{actual}", color))
            # A map without heat leaves the picture grey, which is a finding and no fault.
            hot = np.ptp(overlays[index], axis=2).any()
            tiles.append(
                (overlays[index], f"predicted{'' if hot else ' (no heat)'}:\n{guess}", color)
            )
        if tiles:
            sections.append((heading, tiles))
    plots.image_sections(
        path,
        sections,
        columns=2 * EXPLAINED_IN_A_ROW,
        title=titled(
            path, "What spoke for the predicted class (Grad-CAM): each picture beside its heat map"
        ),
        color_bar=(
            explain.overlay_colors(),
            "evidence for the predicted class, each picture on its own scale",
            "none: the picture in grey",
            "most in this picture",
        ),
    )


def no_mistakes(results: Results) -> str:
    """The sentence that stands in place of a picture of mistakes."""
    return f"No mistakes: all {len(results.ids)} test images are classified right."
