"""Decides which image trains, validates and tests, and shows what is there.

Reads:  data/raw/ — encoded images with labels.
Writes: data/splits.csv — id, split (train, valid or test), label, group, and the source's columns.
        metrics/data.json — images per split and class, and how many are copies of another.
        plots/data/class_balance.csv and .png — columns split, label, images.
        plots/data/samples.png — training images of every class, with their labels.
"""

import hashlib
import itertools
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field, model_validator

from stages.common import images, params, paths, splits, tables
from stages.common.datasets.raw import RawDataset, RawImage
from stages.common.run import UserError, progress, run, start_tensorflow

METRICS = paths.METRICS / "data.json"
PLOTS = paths.PLOTS / "data"
SAMPLES_PER_CLASS = 6
MOST_CLASSES_SHOWN = 10
SAMPLE_SIZE = 160  # pixels

Share = Annotated[
    float | Literal["official"],
    Field(description="a fraction above 0 and below 1, or official (the set's own split)"),
]


@params.params_dataclass
class SplitParams:
    """Section `split`."""

    sample: Annotated[float, Field(gt=0, le=1, description="a fraction above 0, at most 1")]
    method: Literal["stratified", "sequential"]
    train: params.OpenFraction
    valid: Share
    test: Share
    stratify_column: str | None

    @model_validator(mode="after")
    def _add_up(self):
        for name in ("valid", "test"):
            share = getattr(self, name)
            if share != "official" and not 0 < share < 1:
                raise ValueError(
                    f"{name}: expected a fraction above 0 and below 1, received {share}"
                )
        fractions = {
            name: getattr(self, name)
            for name in splits.SPLIT_NAMES
            if getattr(self, name) != "official"
        }
        total = sum(fractions.values())
        if len(fractions) > 1 and abs(total - 1) > 1e-9:
            listed = " + ".join(f"{name} {share}" for name, share in fractions.items())
            raise ValueError(f"the fractions must add up to 1, received {listed} = {total:g}")
        return self

    @property
    def fractions(self) -> dict[str, float]:
        """Share of the images that have no official split; of train the rest."""
        shares = {"valid": self.valid, "test": self.test}
        drawn = {name: share for name, share in shares.items() if share != "official"}
        return {**drawn, "train": 1 - sum(drawn.values())}


@dataclass(frozen=True)
class Item:
    """What the split needs to know of an image; no pixels."""

    id: str
    official_split: str
    label: str
    content: str  # sha256 of the encoded bytes, in hexadecimal
    columns: dict[str, str] = field(default_factory=dict)


# The names that data sets give to their splits, by our name.
OFFICIAL_NAMES = {"valid": ("valid", "validation", "val", "dev"), "test": ("test",)}


def describe(image: RawImage, class_names: Sequence[str]) -> Item:
    """An image without its pixels."""
    return Item(
        id=image.id,
        official_split=image.official_split,
        label=class_names[image.label],
        content=hashlib.sha256(image.encoded).hexdigest(),
        columns={name: str(value) for name, value in image.columns.items()},
    )


def group_items(items: Sequence[Item]) -> list[str]:
    """The group of every item: images with equal content, or of one `group`, belong together.

    Groups that share an image are joined, so that a copy under another patient's name pulls both
    patients into one split. A joined group bears its first name in the alphabet, and "column" comes
    before "content": more images of a known patient leave the name, and so the split, as it was.
    """
    parent: dict[str, str] = {}

    def root(key: str) -> str:
        while parent.setdefault(key, key) != key:
            parent[key] = key = parent[parent[key]]
        return key

    for item in items:
        content = f"content {item.content}"
        if item.columns.get("group"):
            first, second = sorted((root(content), root(f"column {item.columns['group']}")))
            parent[second] = first
    return [root(f"content {item.content}") for item in items]


def keyed_hash(seed: int, group: str) -> str:
    """A number in hexadecimal that depends on the seed and the group's name alone."""
    return hashlib.sha256(f"{seed} {group}".encode()).hexdigest()


def in_sample(group: str, fraction: float, seed: int) -> bool:
    """Whether a group is among the given fraction of all; a larger fraction keeps it."""
    return int(keyed_hash(seed, f"sample {group}")[:8], 16) < fraction * 2**32


def assign(
    items: Sequence[Item], groups: Sequence[str], parameters: SplitParams, seed: int
) -> list[str]:
    """The split of every item.

    Stratified: within each stratum (class, and `stratify_column` where given) whole groups are
    taken in the order of a keyed hash, so that neither file order nor images that are added later
    move the others much. Sequential: the stored order, test first, then valid, then train.
    Official splits keep the images that the source put there; a copy of one of them goes with it.

    Raises:
        UserError: an official split or a column is not there, or a split would be empty.
    """
    split_of_group = _official_splits(items, groups, parameters)
    members: dict[str, list[int]] = defaultdict(list)
    for index, group in enumerate(groups):
        members[group].append(index)
    strata: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for group, indices in members.items():
        if group not in split_of_group:
            # Members of several classes count as one of them, whatever their order.
            stratum = min(_stratum(items[index], parameters) for index in indices)
            strata[stratum].append(group)
    images_before = 0
    for _, names in sorted(strata.items()):
        if parameters.method == "stratified":
            names.sort(key=lambda group: keyed_hash(seed, group))
        sizes = [len(members[group]) for group in names]
        for group, name in zip(names, cut(sizes, parameters, images_before), strict=True):
            split_of_group[group] = name
        images_before += sum(sizes)
    result = [split_of_group[group] for group in groups]
    for name in splits.SPLIT_NAMES:
        if name not in result:
            raise UserError(
                f"the split '{name}' would be empty with {len(items)} images and fractions "
                f"{parameters.fractions}; add images or raise split.{name}"
            )
    return result


def _stratum(item: Item, parameters: SplitParams) -> tuple[str, ...]:
    if parameters.method == "sequential":
        return ()
    column = parameters.stratify_column
    if column is None:
        return (item.label,)
    if column not in item.columns:
        raise UserError(
            f"params.yaml, split.stratify_column: expected null or one of "
            f"{sorted(item.columns)}, received {column!r}{params.nearest(column, item.columns)}"
        )
    return (item.label, item.columns[column])


def _official_splits(items, groups, parameters: SplitParams) -> dict[str, str]:
    """Group to split for the groups that an official split holds; test wins over valid."""
    available = sorted({item.official_split for item in items})
    found: dict[str, str] = {}
    for name in ("valid", "test"):
        if getattr(parameters, name) != "official":
            continue
        wanted = set(OFFICIAL_NAMES[name]) & set(available)
        if not wanted:
            raise UserError(
                f"params.yaml, split.{name}: the data set has no official split of that kind, "
                f"only {available}; give a fraction instead"
            )
        for item, group in zip(items, groups, strict=True):
            if item.official_split in wanted:
                found[group] = name
    return found


def cut(sizes: Sequence[int], parameters: SplitParams, images_before: int) -> list[str]:
    """Gives the groups of one stratum, in their order, to test, then valid, then train.

    Args:
        sizes: images of each group.
        parameters: the fractions.
        images_before: images in the strata that were cut already. Rounding the running total, not
            each stratum, keeps the splits' sizes exact however many strata there are.
    """
    test = parameters.fractions.get("test", 0.0)
    valid = parameters.fractions.get("valid", 0.0) / (1 - test)

    def totals(images_so_far: int) -> tuple[int, int]:
        # Valid is a share of what test leaves: two roundings of one total could overlap.
        tests = round(images_so_far * test)
        return tests, round((images_so_far - tests) * valid)

    tests_before, valids_before = totals(images_before)
    tests_after, valids_after = totals(images_before + sum(sizes))
    test_end = tests_after - tests_before
    valid_end = test_end + valids_after - valids_before
    starts = itertools.accumulate(sizes[:-1], initial=0)
    return [
        "test" if start < test_end else "valid" if start < valid_end else "train"
        for start in starts
    ]


def data_metrics(items: Sequence[Item], assigned: Sequence[str]) -> dict:
    """Images per split and class, and the number of images that are copies of another."""
    per_split: dict[str, Counter] = {name: Counter() for name in splits.SPLIT_NAMES}
    for item, name in zip(items, assigned, strict=True):
        per_split[name][item.label] += 1
    contents = Counter(item.content for item in items)
    labels = sorted({item.label for item in items})
    return {
        "images": len(items),
        "classes": len(labels),
        "copies": sum(count - 1 for count in contents.values()),
        "splits": {
            name: {"images": counts.total(), "class": {label: counts[label] for label in labels}}
            for name, counts in per_split.items()
        },
    }


def choose_samples(items, assigned, class_names: Sequence[str]) -> dict[str, str]:
    """Ids of some training images of every class shown, each with its label; in order."""
    chosen: dict[str, list[str]] = {name: [] for name in class_names[:MOST_CLASSES_SHOWN]}
    ordered = sorted(zip(items, assigned, strict=True), key=lambda pair: pair[0].content)
    for item, name in ordered:
        ids = chosen.get(item.label)
        if name == "train" and ids is not None and len(ids) < SAMPLES_PER_CLASS:
            ids.append(item.id)
    return {example_id: label for label, ids in chosen.items() for example_id in ids}


def main() -> None:
    """Reads data/raw twice: once to hash, once for the pictures of the samples."""
    parameters = params.load("split", SplitParams)
    seed = params.load_seed()
    start_tensorflow()
    from stages.common import plots

    raw = RawDataset(paths.RAW)
    described = images.parallel_map(lambda image: describe(image, raw.class_names), raw)
    items = list(progress(described, total=raw.count, unit="image", description="split"))
    groups = group_items(items)
    kept = [in_sample(group, parameters.sample, seed) for group in groups]
    items, groups = (list(itertools.compress(values, kept)) for values in (items, groups))
    assigned = assign(items, groups, parameters, seed)
    rows = [
        splits.SplitRow(item.id, name, item.label, keyed_hash(0, group)[:16], item.columns)
        for item, name, group in zip(items, assigned, groups, strict=True)
    ]
    splits.write(splits.SPLITS_FILE, rows, raw.column_names)
    tables.write_metrics(METRICS, data_metrics(items, assigned))
    PLOTS.mkdir(parents=True, exist_ok=True)
    counts = Counter((row.split, row.label) for row in rows)
    balance = [
        (name, label, counts[name, label])
        for label in raw.class_names
        for name in splits.SPLIT_NAMES
    ]
    tables.write_csv(PLOTS / "class_balance.csv", ("split", "label", "images"), balance)
    plots.class_balance(PLOTS / "class_balance.png", balance)
    samples = choose_samples(items, assigned, raw.class_names)
    pictures = {
        image.id: images.to_array(image.encoded, SAMPLE_SIZE)
        for image in raw
        if image.id in samples
    }
    plots.image_grid(
        PLOTS / "samples.png",
        [(pictures[example_id], label) for example_id, label in samples.items()],
        columns=SAMPLES_PER_CLASS,
        title="Training images and their labels",
    )


if __name__ == "__main__":
    run(main)
