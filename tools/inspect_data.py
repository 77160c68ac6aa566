"""Fetches and splits the data, then prints on one screen what is in it and what to do about it.

Reads:  params.yaml; data/inventory.csv, data/raw/dataset_info.json and metrics/data.json, as
        `dvc repro split` writes them. Where that fails, it prints what there is all the same.
"""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stages import fetch, split
from stages.common import geometry, inventory, params, paths, splits
from stages.common.data_plots import GREY_LEVELS
from stages.common.report.wording import UNBALANCED, imbalance
from stages.common.run import UserError, run

MOST_NAMED = 3
MOST_CLASSES_NAMED = 6
FEW_TEST_IMAGES = 100
LONG_AND_NARROW = 2  # width over height, or height over width
SEEN_AS = {
    "squash": "them squashed to a square",
    "crop": "their middle alone",
    "pad": "them small, between black borders",
}  # preprocess.resize to what becomes of such a picture
STEP = 32  # pixels; networks halve the picture five times
# On CIFAR-10, whose images are 32 pixels, fine-tuning that saw 192 gained nothing over 160, which
# was a point better than 128 (docs/experiments.md).
ENOUGH_ENLARGED = 5
# Stored pixels a side, over those that the network sees.
MOST_FOR_CROPS = 2


@dataclass
class Found:
    """What the rows of the inventory add up to."""

    classes: Counter = field(default_factory=Counter)  # images that can be used
    formats: Counter = field(default_factory=Counter)
    problems: dict[str, list[str]] = field(default_factory=dict)  # code to names
    widths: list[int] = field(default_factory=list)
    heights: list[int] = field(default_factory=list)
    grey: int = 0
    animated: int = 0
    dark: fetch.Dark = field(default_factory=fetch.Dark)

    @property
    def rejected(self) -> int:
        """Images that can not be used."""
        return sum(map(len, self.problems.values()))


def count(rows: Iterable[inventory.InventoryRow]) -> Found:
    """Adds up the rows."""
    found = Found()
    for row in fetch.noting_dark(rows, found.dark):
        if row.problem:
            found.problems.setdefault(row.problem, []).append(row.name)
            found.classes[row.label] += 0  # a class without one good image is to be seen
            continue
        found.classes[row.label] += 1
        found.formats[row.format] += 1
        found.widths.append(row.width)
        found.heights.append(row.height)
        colors = (row.red, row.green, row.blue)
        found.grey += max(colors) - min(colors) < GREY_LEVELS
        found.animated += row.frames > 1
    found.classes.pop("", None)  # of images without a label
    return found


def summary(
    found: Found, official: dict[str, int], metrics: dict | None, content: dict[str, Any]
) -> str:
    """The text of one screen.

    Args:
        found: of the inventory.
        official: images in each split of the source.
        metrics: what metrics/data.json says; None where the split failed.
        content: all of params.yaml.
    """
    parts = (
        ("What is there", what_is_there(found, official, metrics)),
        ("What is wrong", what_is_wrong(found, metrics, content) or ["nothing"]),
        ("What to do", what_to_do(found, official, metrics, content) or ["nothing: `make repro`"]),
    )
    return "\n\n".join("\n".join([title, *(f"  {line}" for line in ls)]) for title, ls in parts)


def what_is_there(found: Found, official: dict[str, int], metrics: dict | None) -> list[str]:
    """Images, classes, sizes, formats, colours and splits; a line each."""
    used = found.classes.total()
    lines = [f"images    {used + found.rejected:,}, of which {used:,} can be used"]
    lines.append(
        f"classes   {len(found.classes):,}: {_listed_classes(found.classes.most_common())}"
    )
    if used:
        lines += [
            f"width     {_spread(found.widths)}",
            f"height    {_spread(found.heights)}",
            "formats   " + ", ".join(f"{name} {n:,}" for name, n in found.formats.most_common()),
            f"colours   {100 * found.grey / used:.0f} % grey, "
            f"{100 * (used - found.grey) / used:.0f} % in colour",
        ]
    if official:
        lines.append("source    " + ", ".join(f"{n:,} in '{s}'" for s, n in official.items()))
    if metrics:
        words = (f"{name} {metrics['splits'][name]['images']:,}" for name in splits.SPLIT_NAMES)
        lines.append("splits    " + ", ".join(words))
    return lines


def what_is_wrong(found: Found, metrics: dict | None, content: dict[str, Any]) -> list[str]:
    """Rejected images, duplicates, classes too small or too unequal; a line each."""
    lines = []
    for code, names in sorted(found.problems.items(), key=lambda item: -len(item[1])):
        meaning = inventory.PROBLEMS.get(code, code)
        lines.append(f"{_images(len(names))} rejected, {meaning}: {_listed(names)}")
    if found.animated and content["preprocess"]["channels"] in (geometry.RGB, geometry.GREY):
        lines.append(f"{_images(found.animated)} with several frames: only the first is used")
    if found.dark.count:
        lines.append(str(found.dark))
    duplicates = metrics["duplicates"] if metrics else Counter()
    for kind, *words in (
        ("exact", "exact copy", "exact copies"),
        ("near", "near duplicate", "near duplicates"),
    ):
        if duplicates[f"{kind}_images"]:
            groups = _counted(duplicates[f"{kind}_groups"], "group", "groups")
            images = _counted(duplicates[f"{kind}_images"], *words)
            lines.append(f"{images} in {groups}, each kept in one split")
    if duplicates["conflicting_labels"]:
        lines.append(
            f"{_images(duplicates['conflicting_labels'])} there several times, under "
            "different labels"
        )
    if duplicates["near_conflicting_labels"]:
        groups = _counted(duplicates["near_conflicting_labels"], "group", "groups")
        lines.append(f"{groups} of near duplicates under different labels")
    if metrics:
        lines += split.describe_straddling(
            duplicates["straddled_official"], content["split"]["official_copies"]
        )
    for name in splits.SPLIT_NAMES if metrics else ():
        absent = sorted(label for label, n in metrics["splits"][name]["class"].items() if not n)
        if absent:
            lines.append(f"no image in '{name}' of {_listed(absent)}")
    tiny = _tiny_classes(found, content)
    if tiny:
        classes = _counted(len(tiny), "class", "classes")
        lines.append(f"{classes} too small to be divided: {_listed_classes(tiny)}")
    if _imbalance(found) >= UNBALANCED:
        lines.append(
            f"unequal classes: the largest has {_imbalance(found):.3g} times the images of the "
            "smallest"
        )
    narrow = _narrow_share(found)
    if narrow > 0.05:
        lines.append(
            f"{100 * narrow:.0f} % of the images are more than {LONG_AND_NARROW} times as long as "
            f"wide; the network sees {SEEN_AS[content['preprocess']['resize']]}"
        )
    if metrics is None:
        lines.append("the data could not be divided; the error above says why")
    return lines


def what_to_do(
    found: Found, official: dict[str, int], metrics: dict | None, content: dict[str, Any]
) -> list[str]:
    """Lines for params.yaml, and what else can be mended."""
    lines = []
    if metrics is None:
        lines.append("mend what the error above names, then `make data` again")
    if found.rejected:
        lines.append(f"mend or remove the images that {inventory.REJECTED_FILE} lists")
        if content.get("dataset", {}).get("on_bad_image") == "error":
            lines.append("or leave them out: dataset.on_bad_image: skip")
    if metrics and metrics["duplicates"]["conflicting_labels"]:
        lines.append("decide for one label of each copy in data/duplicates.csv")
    if metrics and metrics["duplicates"]["near_conflicting_labels"]:
        lines.append(
            "look at near duplicates under different labels in data/duplicates.csv  # they differ "
            "in what matters, or a label is wrong"
        )
    if _tiny_classes(found, content):
        lines.append(
            "add images to the small classes, merge or remove them; or split.min_images_per_class: "
            "null"
        )
    if _imbalance(found) >= UNBALANCED:
        lines += [
            f"{section}.class_weights: balanced  # so that small classes count as much"
            for section in ("train_head", "fine_tune")
            if content.get(section, {}).get("class_weights") is None
        ]
    section = content.get("split", {})
    keeps_test, folded = section.get("test") == "official", section.get("folds")
    tests = [official[name] for name in splits.OFFICIAL_NAMES["test"] if name in official]
    # Where as many are rejected it may hold none that can be used: its labels may not be public.
    has_test = sum(tests) > found.rejected
    few = metrics and metrics["splits"]["test"]["images"] < FEW_TEST_IMAGES
    if has_test and len(official) > 1 and not keeps_test:
        lines += _keeping_the_test_split(section)
    elif few and not keeps_test and not folded:
        lines.append(
            f"split.folds: 5  # with {metrics['splits']['test']['images']} test images, figures "
            "swing; `python -m tools.sweep -S split.folds=5 -S 'split.fold=range(5)'` tests on "
            "every image"
        )
    return lines + _about_sizes(found, content)


def _keeping_the_test_split(section: dict[str, Any]) -> list[str]:
    """All that has to change with split.test, or params.yaml would be refused."""
    lines = ["split.test: official  # the source brings a test split"]
    valid = section.get("valid")
    if isinstance(valid, float):  # where it is official, train is what is left
        lines.append(
            f"split.train: {1 - valid:.9g}  # the rest beside valid: both are parts of the images "
            "that no official split has"
        )
    if section.get("folds"):
        lines.append("split.folds: null  # they would draw other test splits")
    if section.get("fold"):
        lines.append("split.fold: 0")
    return lines


def _about_sizes(found: Found, content: dict[str, Any]) -> list[str]:
    seen = content.get("backbone", {}).get("image_size")
    stored = content.get("preprocess", {}).get("image_size")
    if not (found.widths and seen and stored):
        return []
    side = int(np.median(np.maximum(found.widths, found.heights)))
    enough = -(-ENOUGH_ENLARGED * side // STEP) * STEP
    if enough < seen:
        trained = [pixels for _, pixels in content.get("fine_tune", {}).get("image_sizes") or []]
        return [
            f"backbone.image_size: {enough}  # images of {side} pixels are enlarged to {seen}; "
            f"this is {(seen / enough) ** 2:.2g} times faster, and a little worse at most",
            *(
                ["fine_tune.image_sizes: null  # they exceed that"]
                if max(trained, default=0) > enough
                else []
            ),
        ]
    if side > stored and stored < seen:
        return [f"preprocess.image_size: {seen}  # {stored} is less than the network sees"]
    if min(side, stored) > MOST_FOR_CROPS * seen:
        most = MOST_FOR_CROPS * seen
        return [f"preprocess.image_size: {most}  # a quarter of it has all that the network sees"]
    return []


def _tiny_classes(found: Found, content: dict[str, Any]) -> list[tuple[str, int]]:
    least = content.get("split", {}).get("min_images_per_class") or 0
    return [(name, n) for name, n in reversed(_by_size(found)) if n < least]


def _by_size(found: Found) -> list[tuple[str, int]]:
    """Classes and their images, the largest first."""
    return sorted(found.classes.items(), key=lambda item: (-item[1], item[0]))


def _imbalance(found: Found) -> float:
    return imbalance(found.classes)[0] if found.classes.total() else 1.0


def _narrow_share(found: Found) -> float:
    widths, heights = np.array(found.widths), np.array(found.heights)
    if not len(widths):
        return 0.0
    ratio = np.maximum(widths, heights) / np.minimum(widths, heights)
    return float((ratio > LONG_AND_NARROW).mean())


def _spread(values: Sequence[int]) -> str:
    low, middle, high = np.quantile(values, (0, 0.5, 1))
    if low == high:
        return f"{low:,.0f} pixels, all"
    return f"{low:,.0f} to {high:,.0f} pixels, median {middle:,.0f}"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMED:,} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more


def _listed_classes(classes: Sequence[tuple[str, int]]) -> str:
    """Names and images; of many the first and the last."""
    words = [f"{name} {n:,}" for name, n in classes]
    if len(words) > MOST_CLASSES_NAMED:
        half = MOST_CLASSES_NAMED // 2
        words = [*words[:half], "…", *words[-half:]]
    return ", ".join(words)


def _images(number: int) -> str:
    return _counted(number, "image", "images")


def _counted(number: int, one: str, several: str) -> str:
    return f"{number:,} {one if number == 1 else several}"


def official_splits() -> dict[str, int]:
    """Images in each split of data/raw, as TFDS notes them; importing the library takes seconds."""
    path = paths.RAW / "dataset_info.json"
    if not path.exists():
        return {}
    noted = json.loads(path.read_text(encoding="utf-8")).get("splits", [])
    return {one["name"]: sum(map(int, one["shardLengths"])) for one in noted}


def main() -> None:
    """Runs fetch and split, and prints the summary; exit status 1 where they failed."""
    content = params.read()
    done = subprocess.run([sys.executable, "-m", "dvc", "repro", "split"], check=False)
    if not inventory.INVENTORY_FILE.exists():
        raise UserError(f"there is no {inventory.INVENTORY_FILE}; the error above says why")
    metrics = None
    if done.returncode == 0:
        metrics = json.loads((paths.METRICS / "data.json").read_text(encoding="utf-8"))
    print("\n" + summary(count(inventory.read()), official_splits(), metrics, content))
    print("\nPictures: plots/data/. Every image: data/inventory.csv.")
    if done.returncode:
        raise UserError("fetch or split failed, as said above")


if __name__ == "__main__":
    run(main, takes_arguments=False)
