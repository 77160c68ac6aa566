"""Numbers as people read them, and the sentences that the page makes of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stages.common.augment import AugmentParams
from stages.common.splits import SPLIT_NAMES

# Mathematical signs and spaces that no line break can follow.
MINUS, SPACE = "\u2212", "\u00a0"
FEW_IMAGES = 20  # with fewer test images, one of them is five points of a class's recall
UNBALANCED = 3  # times the images of the smallest class, from which on it is said
FEW_GROUPS = 20  # with fewer, intervals miss up to twice as often as they say, see bootstrap
NAMES = {"head": "head", "fine_tuned": "fine-tuned"}  # of the models, for people


@dataclass(frozen=True)
class Metric:
    """One number of metrics/<model>.json."""

    key: str
    name: str
    meaning: str
    higher_is_better: bool = True
    as_percent: bool = False

    def format(self, value: float) -> str:
        """The value with its unit."""
        return percent(value) if self.as_percent else decimal(value)

    def format_difference(self, value: float) -> str:
        """With its sign; percentages differ by points."""
        return points(value) if self.as_percent else decimal(value, "+")

    def format_interval(self, low: float, high: float) -> str:
        """`a to b`, the unit left to what stands beside it."""
        if self.as_percent:
            return f"{_signed(f'{100 * low:.1f}')} to {_signed(f'{100 * high:.1f}')}"
        return f"{decimal(low)} to {decimal(high)}"


METRICS = (
    Metric("accuracy", "Accuracy", "share of images that got their class", True, True),
    Metric("weighted_accuracy", "Weighted accuracy", "by evaluate.weight_column", True, True),
    Metric("balanced_accuracy", "Balanced accuracy", "mean recall of the classes", True, True),
    Metric("top_5_accuracy", "Top-5 accuracy", "right class among the five likeliest", True, True),
    Metric("f1_macro", "Macro F1", "mean F1 of the classes"),
    Metric("f1_weighted", "Weighted F1", "the same, weighted by the images of a class"),
    Metric("cohen_kappa", "Cohen's κ", "agreement beyond chance, which is 0"),
    Metric("roc_auc", "ROC AUC", "area under the ROC curve; guessing gives 0.5"),
    Metric("weighted_roc_auc", "Weighted ROC AUC", "the same, by evaluate.weight_column"),
    Metric("average_precision", "Average precision", "area under precision over recall"),
    Metric("loss", "Loss", "negative log-likelihood, nats", False),
    Metric("expected_calibration_error", "Calibration error", "gap to the confidence, mean", False),
    Metric("brier_score", "Brier score", "squared error of the probabilities, 0 to 2", False),
)
METRIC_OF_KEY = {metric.key: metric for metric in METRICS}
ACCURACY = METRIC_OF_KEY["accuracy"]


def percent(fraction: float) -> str:
    """0.8461 to `84.6 %`."""
    return _signed(f"{100 * fraction:.1f}") + f"{SPACE}%"


def points(difference: float) -> str:
    """A difference of two fractions: 0.026 to `+2.6 points`."""
    return _signed(f"{100 * difference:+.1f}") + f"{SPACE}points"


def decimal(value: float, sign: str = "") -> str:
    """Three decimals; `sign` '+' shows that of a difference."""
    return _signed(f"{value:{sign}.3f}")


def number(value: int) -> str:
    """1234 to `1,234`."""
    return f"{value:,}"


def count(value: int, noun: str, plural: str = "") -> str:
    """`1 image`, `1,234 images`."""
    return f"{number(value)}{SPACE}{noun if value == 1 else plural or noun + 's'}"


def large(value: int) -> str:
    """`4.05 million` where the last digits tell nothing."""
    for size, name in ((10**9, "billion"), (10**6, "million")):
        if value >= size:
            return f"{value / size:.3g}{SPACE}{name}"
    return number(value)


def listed(words: Sequence[str], most: int = 10) -> str:
    """`a, b and 3 more`."""
    shown, more = list(words[:most]), len(words) - most
    if more > 0:
        return f"{', '.join(shown)} and {number(more)} more"
    return " and ".join([", ".join(shown[:-1]), shown[-1]]) if len(shown) > 1 else "".join(shown)


def probability(value: float) -> str:
    """A p-value: `p = 0.031`, or `p < 0.001`."""
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def _signed(text: str) -> str:
    """With the true minus; what rounds to nothing has no sign."""
    if not text.strip("+-0."):
        return text.lstrip("+-")
    return text.replace("-", MINUS)


def outcome(metric: Metric, change: Mapping) -> str:
    """Which model a difference (fine-tuned minus head) favours, as far as its interval tells."""
    if "low" not in change:
        return ""
    if change["low"] <= 0 <= change["high"]:
        return "no difference shown"
    return f"{'fine-tuned' if (change['low'] > 0) == metric.higher_is_better else 'head'} better"


def verdict(head: Mapping, fine_tuned: Mapping, comparison: Mapping) -> str:
    """What fine-tuning did to the accuracy, as far as the test images can tell.

    Where they can't, a second sentence names the metrics in which they do tell the models apart.

    Args:
        head, fine_tuned: contents of metrics/<model>.json.
        comparison: content of metrics/comparison.json.
    """
    before, after = (percent(metrics["accuracy"]) for metrics in (head, fine_tuned))
    images = count(head["images"], "test image")
    change = comparison["accuracy"]
    difference = points(change["difference"])
    if "low" not in change:
        return (
            f"Accuracy on {images} is {before} with the head and {after} after fine-tuning "
            f"({difference}); the images are too few or too much alike for an interval."
        )
    interval = f"95{SPACE}% interval {ACCURACY.format_interval(change['low'], change['high'])}"
    if change["low"] <= 0 <= change["high"]:
        return (
            f"No difference in accuracy can be shown between the head and the fine-tuned model: on "
            f"{images} it is {before} and {after} ({difference}, {interval}, which includes zero)."
            f"{_other_differences(comparison)}"
        )
    verb = "raises" if change["low"] > 0 else "lowers"
    return (
        f"Fine-tuning {verb} accuracy on {images} from {before} to {after} "
        f"({difference}, {interval})."
    )


def _other_differences(comparison: Mapping) -> str:
    """A sentence for each model that is better by some metrics, under their names, or nothing."""
    better_in: dict[str, list[str]] = {}
    for metric in METRICS:
        found = outcome(metric, comparison.get(metric.key, {}))
        if found.endswith(" better"):
            better_in.setdefault(found.removesuffix(" better"), []).append(metric.name)
    named = {"fine-tuned": "fine-tuned model", "head": "head"}
    return "".join(
        f" The {named[model]} is better by {listed(metrics)}."
        for model, metrics in better_in.items()
    )


def baseline(metrics: Mapping) -> str:
    """What a model would reach that always gives the test split's most frequent class."""
    support = {name: values["support"] for name, values in metrics["class"].items()}
    largest = max(support, key=support.__getitem__)
    share = support[largest] / metrics["images"]
    return (
        f"Always answering “{largest}”, the most frequent class, would be right on "
        f"{percent(share)}."
    )


def mcnemar(result: Mapping, images: int, groups: int) -> str:
    """The images on which the models differ, and how likely chance alone is to give that."""
    by_groups = " by groups" if groups < images else ""
    return (
        f"Of {count(images, 'test image')}, {number(result['head_only_correct'])} are right with "
        f"the head alone and {number(result['fine_tuned_only_correct'])} after fine-tuning alone "
        f"(McNemar's test{by_groups}: {probability(result['p_value'])})."
    )


def unfrozen(choice: int | str) -> str:
    """Which layers fine_tune trains, in words; `choice` is its `unfreeze`."""
    if choice in ("all", "none"):
        return {"all": "all layers", "none": "no layer but the head's"}[choice]
    if isinstance(choice, int):
        return f"the last {choice} layers of the network"
    if choice.startswith("regex:"):
        return f"the layers whose names match {choice.removeprefix('regex:')}"
    return f"the layers from {choice} on"


def split_sentence(split: Mapping[str, Any], splits: Mapping[str, Mapping]) -> str:
    """How test images were parted from training images.

    Args:
        split: the section of params.yaml.
        splits: of metrics/data.json.
    """
    total = sum(values["images"] for values in splits.values())
    shares = ", ".join(f"{name} {percent(splits[name]['images'] / total)}" for name in SPLIT_NAMES)
    methods = {
        "stratified": "class by class, in an order that follows from each image's content",
        "hashed": "each by a number that follows from its content",
        "sequential": "in the order that TensorFlow Datasets stored them in",
    }
    sentence = f"Images were parted {methods[split['method']]}: {shares}. "
    if split["valid"] == split["test"] == "official":
        sentence = f"Images are parted as the source parts them: {shares}. "
    if split["folds"]:
        sentence += f"The test split is fold {split['fold']} of {split['folds']}. "
    if "official" in (split["valid"], split["test"]):
        sentence += "Splits that the source draws itself were kept. "
        if split["official_copies"] == "leave_out":
            sentence += "What looks like one of their images is not trained on. "
    bits = split["near_duplicate_distance"]
    alike = "" if bits is None else f" and near duplicates ({bits} of 64 bits of a perceptual hash)"
    return f"{sentence}Identical images{alike} are never in two splits."


def views_sentence(test_time_augment: Mapping[str, bool]) -> str:
    """Whether the numbers are those of the saved model, or of several views of each image.

    Args:
        test_time_augment: from the section `evaluate` of params.yaml.
    """
    views = len(AugmentParams(**test_time_augment).symmetries)
    if views == 1:
        return "The test split, each image as it is."
    return (
        f"The test split, with the mean probabilities of {views} views of each image "
        "(evaluate.test_time_augment). The saved model, given an image once, answers somewhat "
        "differently."
    )


def kind_of_images(channels: int) -> str:
    """`RGB images`, by preprocess.channels."""
    return {1: "grey images", 3: "RGB images"}.get(channels, f"images of {channels} channels")


def caveats(data: Mapping, metrics: Mapping[str, Mapping], comparison: Mapping) -> list[str]:
    """What the numbers themselves warn of.

    Args:
        data: content of metrics/data.json.
        metrics: model to the content of metrics/<model>.json.
        comparison: content of metrics/comparison.json.
    """
    fine_tuned = metrics["fine_tuned"]
    sentences = [
        "The numbers hold for images like those of the test split: same source, same cameras, same "
        "share of each class. Other images need a test split of their own.",
        f"The model answers one of its {count(len(fine_tuned['class']), 'class', 'classes')} for "
        "any picture, also for one that shows none of them.",
    ]
    few = tiny_classes(fine_tuned)
    if few:
        sentences.append(
            f"{count(len(few), 'class', 'classes')} of {number(len(fine_tuned['class']))} "
            f"{'has' if len(few) == 1 else 'have'} fewer than {FEW_IMAGES} test images "
            f"({listed(few, 5)}): single images move their numbers by points."
        )
    interval = fine_tuned["interval"].get("accuracy")
    if interval and interval["high"] - interval["low"] > 0.1:
        sentences.append(
            f"With {count(fine_tuned['images'], 'test image')} the accuracy's 95{SPACE}% interval "
            f"is {ACCURACY.format_interval(**interval)}{SPACE}%: too wide for fine comparisons."
        )
    images, groups = fine_tuned["images"], fine_tuned["groups"]
    if interval and groups < min(images, FEW_GROUPS):
        sentences.append(
            f"The {number(images)} test images are of {count(groups, 'group')}, and those of one "
            "belong together: one piece of evidence. Intervals of so few are too narrow."
        )
    perfect = [name for model, name in NAMES.items() if metrics[model]["accuracy"] == 1]
    if perfect:
        # By chance groups are right, not images: those of one are right or wrong together.
        kind = "image" if groups == images else "group"
        sentences.append(
            f"No test image is wrong ({' and '.join(perfect)}), which gives an interval without "
            f"width, but no certainty: where up to {percent(min(1.0, 3 / groups))} of such {kind}s "
            f"are wrong, {count(groups, kind)} may all be right by chance (the rule of three)."
        )
    if not _other_differences(comparison):
        sentences.append(
            "The test images do not tell which of the two models is better; the head is the "
            "smaller change to the pretrained network."
        )
    ratio, largest, smallest = imbalance(data["splits"]["train"]["class"])
    if ratio >= UNBALANCED:
        sentences.append(
            f"“{largest}” has {ratio:.0f} times the training images of “{smallest}”; read balanced "
            "accuracy and the classes beside plain accuracy."
        )
    sentences.append(
        "One training run with one seed: another seed gives somewhat other weights and numbers, "
        "which the intervals, drawn from the test images alone, do not cover."
    )
    return sentences


def tiny_classes(metrics: Mapping) -> list[str]:
    """Classes with fewer than FEW_IMAGES test images, the smallest first."""
    support = {name: values["support"] for name, values in metrics["class"].items()}
    return sorted((name for name in support if support[name] < FEW_IMAGES), key=support.__getitem__)


def imbalance(classes: Mapping[str, int]) -> tuple[float, str, str]:
    """Images of the largest class over those of the smallest that has any, and both names."""
    present = {name: images for name, images in classes.items() if images}
    largest = max(present, key=present.__getitem__)
    smallest = min(present, key=present.__getitem__)
    return present[largest] / present[smallest], largest, smallest


def spread_of_slices(column: str, values: Mapping[str, Mapping]) -> str | None:
    """The lowest and highest accuracy over the values of a column; None with one value."""
    if len(values) < 2:
        return None
    low, high = (choose(values, key=lambda name: values[name]["accuracy"]) for choose in (min, max))
    if values[low]["accuracy"] == values[high]["accuracy"]:
        return (
            f"By {column}, the fine-tuned model's accuracy is {percent(values[low]['accuracy'])} "
            "for every value."
        )
    return (
        f"By {column}, the fine-tuned model's accuracy goes from "
        f"{percent(values[low]['accuracy'])} (“{low}”, {count(values[low]['images'], 'image')}) to "
        f"{percent(values[high]['accuracy'])} (“{high}”, {count(values[high]['images'], 'image')})."
    )
