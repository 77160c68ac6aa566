"""Decides which image trains, validates and tests, and shows what is there.

Reads:  data/inventory.csv — what fetch found out about every image.
        data/raw/ — labels and columns of every image, pixels of the few that are shown.
Writes: data/splits.csv — id, split (train, valid or test), label, group, and the source's columns;
        images that fetch rejected have no row.
        data/duplicates.csv — group, id, name, label, split, kind (exact or near) of every image
        that has a copy or a near duplicate, the largest group first.
        metrics/data.json — counts: images, rejected, duplicates, images per split and class.
        plots/data/class_balance.csv and .png — columns split, label, images.
        plots/data/samples.png — training images of every class, with their labels.
        plots/data/sizes.png, channels.png — widths, heights and shapes; brightness and colours.
        plots/data/duplicates.png — groups of duplicates, those under several labels first.
"""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from stages.common import duplicates, images, inventory, membership, params, paths, splits, tables
from stages.common.columns import Categories, StoredBytes, encode, give_back_large_arrays
from stages.common.datasets.raw import RawDataset
from stages.common.image_columns import Images, Rejected, read_inventory, with_columns
from stages.common.run import UserError, progress, run, start_tensorflow

DUPLICATES_FILE = Path("data/duplicates.csv")
DUPLICATES_COLUMNS = ("group", "id", "name", "label", "split", "kind")
METRICS = paths.METRICS / "data.json"
PLOTS = paths.PLOTS / "data"
SAMPLES_PER_CLASS = 6
MOST_CLASSES_SHOWN = 10
MOST_GROUPS_SHOWN = 5
MOST_OF_A_GROUP_SHOWN = 6
MOST_CONFLICTS_PRINTED = 10
MOST_CLASSES_PRINTED = 10
SAMPLE_SIZE = 160  # pixels
LEAST_IN_STRATUM = 10  # groups that `stratify_columns` make a stratum of their own
# Stand for a split in the list of duplicates.
NOT_SAMPLED, LEFT_OUT = "not sampled", "left out"
# Those that a source's own split may stay; test wins where a group is in both.
OFFICIAL = ("valid", "test")

Share = Annotated[
    float | Literal["official"],
    Field(description="a fraction above 0 and below 1, or official (the set's own split)"),
]


@params.params_dataclass
class SplitParams:
    """Section `split`."""

    sample: Annotated[float, Field(gt=0, le=1, description="a fraction above 0, at most 1")]
    method: Literal["stratified", "hashed", "sequential"]
    train: params.OpenFraction
    valid: Share
    test: Share
    folds: Annotated[int | None, Field(ge=2, description="null, or a whole number of 2 or more")]
    fold: params.NonNegativeInt
    stratify_columns: Annotated[
        list[params.Text] | None,
        Field(description="null (the classes alone) or a list of columns"),
    ]
    near_duplicate_distance: Annotated[
        int | None, Field(ge=0, le=8, description="null, or a whole number from 0 to 8")
    ]
    official_copies: Literal["leave_out", "move"]
    min_images_per_class: Annotated[
        int | None, Field(ge=1, description="null, or a whole number of 1 or more")
    ]

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

    @model_validator(mode="after")
    def _folds_make_sense(self):
        if self.folds is None:
            if self.fold:
                raise ValueError(
                    f"fold: received {self.fold} with folds: null; set split.folds to the number "
                    "of folds, or split.fold to 0"
                )
            return self
        if self.fold >= self.folds:
            raise ValueError(
                f"fold: expected a whole number from 0 to {self.folds - 1} with folds: "
                f"{self.folds}, received {self.fold}"
            )
        if self.test == "official":
            raise ValueError(
                "test: official keeps one test split, and folds draw another one each; set "
                "split.folds to null, or split.test to a fraction (which folds then replace)"
            )
        if self.valid != "official" and self.valid + 1 / self.folds >= 1:
            raise ValueError(
                f"valid: {self.valid} and a test split of 1/{self.folds} leave nothing to train "
                "on; lower split.valid or raise split.folds"
            )
        return self

    @property
    def fractions(self) -> dict[str, float]:
        """Share of the images that have no official split; of train the rest."""
        test = self.test if self.folds is None else 1 / self.folds
        drawn = {
            name: share
            for name, share in {"valid": self.valid, "test": test}.items()
            if share != "official"
        }
        return {**drawn, "train": 1 - sum(drawn.values())}


def check_classes(
    images_of: Counter, groups_of: Counter, minimum: int | None, also: Iterable[str] = ()
) -> None:
    """Finds the classes that are too small to be divided.

    Args:
        images_of: images of each class.
        groups_of: groups of each class; copies, near duplicates and one `group` count once.
        minimum: of groups; None for no check.
        also: classes that must be there, even if none of their images could be used.

    Raises:
        UserError: there are fewer than two classes, or too small ones; all of them are listed.
    """
    if len(images_of) < 2:
        raise UserError(
            f"a classifier needs images of two classes or more, received {sorted(images_of)}; "
            f"see {inventory.REJECTED_FILE} for images that could not be used"
        )
    if minimum is None:
        return
    labels = sorted({*images_of, *also} - {""})
    small = [label for label in labels if groups_of[label] < minimum]
    if small:
        lines = [f"  {label}: {_counted(images_of[label], groups_of[label])}" for label in small]
        raise UserError(
            f"{len(small)} of {len(labels)} classes have fewer than {minimum} different images "
            "(split.min_images_per_class); train, valid and test want one each:\n"
            + "\n".join(lines)
            + "\nadd images, merge or remove these classes, or lower split.min_images_per_class "
            "(null: no check)"
        )


def _counted(image_count: int, group_count: int) -> str:
    text = number_of(image_count, "image")
    if group_count == image_count:
        return text
    return f"{text} in {number_of(group_count, 'group')} of copies, near duplicates or one `group`"


def number_of(count: int, noun: str) -> str:
    """`1 image`, `2 images`, `2 classes`."""
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{count:,} {noun if count == 1 else plural}"


def check_source(parameters: SplitParams, column_names: list[str], official: list[str]) -> None:
    """Finds params that ask for what the source does not have: a column, an official split."""
    for column in parameters.stratify_columns or []:
        if parameters.method == "stratified" and column not in column_names:
            raise UserError(
                f"params.yaml, split.stratify_columns: expected columns of "
                f"{sorted(column_names)}, received {column!r}"
                f"{params.nearest(column, column_names)}; set it to null to balance the classes "
                "alone"
            )
    for name in OFFICIAL:
        there = set(splits.OFFICIAL_NAMES[name]) & set(official)
        if getattr(parameters, name) == "official" and not there:
            raise UserError(
                f"params.yaml, split.{name}: the data set has no official split of that kind, "
                f"only {sorted(official)}; give a fraction instead"
            )


def assign(
    found: Images, groups: duplicates.Groups, parameters: SplitParams, seed: int
) -> Categories:
    """The split of every image.

    Stratified: within each stratum (class, and `stratify_columns` where given) whole groups are
    taken in the order of a keyed hash, so that neither file order nor images that are added later
    move the others much. Hashed: each group by its own hash, so that nothing moves but what gets a
    near duplicate, and sizes are right on average. Sequential: the stored order, test first, then
    valid, then train. Official splits keep the images that the source put there; an image that is
    not of them, but in a group with one, is left out, so that the split stays what others measured
    on, or goes with it (`official_copies`).

    Returns:
        One of splits.SPLIT_NAMES for each image, or LEFT_OUT.

    Raises:
        UserError: a split would be empty.
    """
    of_image, count = groups.of_image, len(groups.names)
    split_of_group = np.full(count, membership.UNDECIDED, np.int8)
    for name in OFFICIAL:
        if getattr(parameters, name) == "official":
            split_of_group[of_image[_official(found, name)]] = splits.SPLIT_NAMES.index(name)
    undecided = split_of_group == membership.UNDECIDED
    # Where all are, views do: a million groups need not be copied.
    free = slice(None) if undecided.all() else undecided
    shares = {
        "test": parameters.fractions.get("test", 0.0),
        "valid": parameters.fractions.get("valid", 0.0),
        "folds": parameters.folds,
        "fold": parameters.fold,
    }
    if parameters.method == "hashed":
        queue = membership.places(seed, groups.names, count)
        drawn = membership.draw_hashed(queue[free], **shares)
    else:
        if parameters.method == "sequential":
            queue, strata = np.full(count, len(found)), np.zeros(count, np.int32)
            np.minimum.at(queue, of_image, np.arange(len(found)))
        else:
            queue = membership.places(seed, groups.names, count)
            strata = _strata(found, of_image, count, parameters.stratify_columns or [])
        sizes = np.bincount(of_image, minlength=count).astype(np.int32)
        drawn = membership.draw(queue[free], strata[free], sizes[free], **shares)
    split_of_group[free] = drawn
    result = split_of_group[of_image]
    if parameters.official_copies == "leave_out":
        result[straddling(found, result, parameters)] = len(splits.SPLIT_NAMES)
    for number, name in enumerate(splits.SPLIT_NAMES):
        if number not in result:
            raise UserError(
                f"the split '{name}' would be empty with {len(found)} images in {count} groups "
                f"and fractions {parameters.fractions}; add images or {_remedy(name, parameters)}"
            )
    return Categories(result, [*splits.SPLIT_NAMES, LEFT_OUT])


def _remedy(name: str, parameters: SplitParams) -> str:
    """What fills an empty split."""
    if parameters.sample < 1:
        return "raise split.sample"
    if name == "test" and parameters.folds:
        return "lower split.folds"
    if getattr(parameters, name) == "official":
        return f"set split.{name} to a fraction"
    return f"raise split.{name}"


def _official(found: Images, name: str) -> np.ndarray:
    """Which images the source put into its split of that kind, (images,), bool."""
    wanted = splits.OFFICIAL_NAMES[name]
    official = found.official_splits
    return np.array([split in wanted for split in official.names], bool)[official.codes]


def _strata(found: Images, of_image, count: int, columns: Sequence[str]) -> np.ndarray:
    """The number of each group's stratum; members of several count as the first of them.

    What the columns part into fewer groups than LEAST_IN_STRATUM is one stratum for each class: of
    strata of one group, as dates make them, every n-th in the alphabet would test, at any seed.
    """
    classes, _ = encode(found.labels)
    codes = classes
    for column in columns:
        values, names = encode(found.columns[column])
        # Numbered anew: products of many columns' values would not fit.
        _, codes = np.unique(codes.astype(np.int64) * len(names) + values, return_inverse=True)
    strata = np.full(count, np.iinfo(codes.dtype).max, codes.dtype)
    np.minimum.at(strata, of_image, codes)
    if columns:
        _, stratum, sizes = np.unique(strata, return_inverse=True, return_counts=True)
        small = sizes[stratum] < LEAST_IN_STRATUM
        class_of_code = np.zeros(len(found), np.int64)
        class_of_code[codes] = classes
        strata[small] = len(found) + class_of_code[strata[small]]
    return strata


def straddling(found: Images, codes: np.ndarray, parameters: SplitParams) -> np.ndarray:
    """Which images are in an official split for the sake of a copy there alone, (images,), bool.

    Args:
        found: the images.
        codes: (images,), index of each one's split in splits.SPLIT_NAMES.
        parameters: which splits are official.
    """
    straddles = np.zeros(len(found), bool)
    for name in OFFICIAL:
        if getattr(parameters, name) == "official":
            there = codes == splits.SPLIT_NAMES.index(name)
            straddles |= there & ~_official(found, name)
    return straddles


def duplicate_metrics(
    found: Images, copies: duplicates.Duplicates, straddled_official: int
) -> dict[str, int]:
    """Groups of copies, the images beyond their first, and what is odd about them."""
    codes, _ = encode(found.labels)
    return {
        **duplicates.counts(copies),
        "conflicting_labels": len(duplicates.conflicts(copies.copy_of, codes)),
        "near_conflicting_labels": len(duplicates.near_conflicts(copies, codes)),
        "straddled_official": straddled_official,
    }


def data_metrics(found: Images, assigned: Sequence[str], rejected: Rejected) -> dict:
    """Images, what was rejected, and images per split and class; of `found` all are used."""
    counts = Counter(zip(assigned, found.labels, strict=True))
    labels = sorted(set(found.labels))
    return {
        "classes": len(labels),
        "used": len(found),
        "rejected": {"total": rejected.problems.total(), **rejected.problems},
        "animated": rejected.animated,
        "splits": {
            name: {
                "images": sum(counts[name, label] for label in labels),
                "class": {label: counts[name, label] for label in labels},
            }
            for name in splits.SPLIT_NAMES
        },
    }


def duplicate_rows(
    found: Images, copies: duplicates.Duplicates, split_of: Sequence[str]
) -> Iterator[tuple[str, ...]]:
    """Rows of data/duplicates.csv.

    Args:
        found: all images.
        copies: of these images.
        split_of: (images,), split, NOT_SAMPLED or LEFT_OUT.
    """
    exact = np.bincount(copies.copy_of)
    names = duplicates.join(copies, None).names
    for members in duplicates.members(copies):
        # As data/splits.csv names a group that no column joins to others.
        group = group_id(names[copies.alike[members[0]]])
        for index in members:
            kind = "exact" if exact[copies.copy_of[index]] > 1 else "near"
            named = (found.ids[index], found.names[index], found.labels[index])
            yield group, *named, split_of[index], kind


def group_id(name: str) -> str:
    """A group's name in tables."""
    return membership.keyed_hash(0, name)[:16]


def choose_samples(
    found: Images, firsts: np.ndarray, split_of: Sequence[str], class_names: Sequence[str]
) -> dict[str, str]:
    """Ids of some training images of every class shown, each with its label; in order.

    Args:
        found: all images.
        firsts: `first` of duplicates.Duplicates: of copies one is shown.
        split_of: (images,), split of each.
        class_names: of all classes.
    """
    chosen: dict[str, list[str]] = {name: [] for name in class_names[:MOST_CLASSES_SHOWN]}
    for index in firsts:
        ids = chosen.get(found.labels[index])
        if split_of[index] == "train" and ids is not None and len(ids) < SAMPLES_PER_CLASS:
            ids.append(found.ids[index])
    return {image_id: label for label, ids in chosen.items() for image_id in ids}


def choose_groups(found: Images, copies: duplicates.Duplicates) -> list[np.ndarray]:
    """The indices of the images of some groups of duplicates, to be shown.

    Those under several labels come first, then the others, the largest first of both.
    """
    codes, _ = encode(found.labels)
    conflicts = sorted(duplicates.conflicts(copies.alike, codes), key=len, reverse=True)
    several = {copies.alike[group[0]] for group in conflicts}
    others = (
        group for group in duplicates.members(copies) if copies.alike[group[0]] not in several
    )
    labelled = (_each_label_first(group, codes) for group in conflicts)
    return list(itertools.islice(itertools.chain(labelled, others), MOST_GROUPS_SHOWN))


def _each_label_first(group: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Of each label one image first: further copies under the same label are no news."""
    firsts = np.sort(np.unique(codes[group], return_index=True)[1])
    return np.concatenate([group[firsts], np.delete(group, firsts)])


def describe_duplicates(
    found: Images, copies: duplicates.Duplicates, counts: dict[str, int]
) -> list[str]:
    """What a person must know of duplicates, in lines; those under several labels by name."""
    codes, _ = encode(found.labels)
    kinds = [
        f"{counts[f'{kind}_images']} {kind} in {number_of(counts[f'{kind}_groups'], 'group')}"
        for kind in ("exact", "near")
        if counts[f"{kind}_images"]
    ]
    if not kinds:
        return ["duplicates: none"]
    lines = [f"duplicates: {', '.join(kinds)}; {DUPLICATES_FILE} lists them"]
    exact = duplicates.conflicts(copies.copy_of, codes)
    near = duplicates.near_conflicts(copies, codes)
    for title, groups, sign in (
        ("images with more than one label", exact, "="),
        ("groups of near duplicates with more than one label", near, "~"),
    ):
        if groups:
            lines.append(f"{title}: {len(groups)}")
        for group in groups[:MOST_CONFLICTS_PRINTED]:
            shown = _each_label_first(group, codes)
            named = (f"{found.names[index]} ({found.labels[index]})" for index in shown)
            lines.append("  " + f" {sign} ".join(itertools.islice(named, MOST_OF_A_GROUP_SHOWN)))
        if len(groups) > MOST_CONFLICTS_PRINTED:
            lines.append(f"  … and {len(groups) - MOST_CONFLICTS_PRINTED} more")
    return lines


def describe_straddling(count: int, official_copies: str) -> list[str]:
    """A line where images look like one of an official split, or share its group."""
    if not count:
        return []
    done = {"leave_out": "left out", "move": "moved there"}[official_copies]
    return [
        f"{number_of(count, 'image')} with a copy, a near duplicate or the group of one in an "
        f"official split: {done} (split.official_copies)"
    ]


def describe_gaps(
    labels: Sequence[str], assigned: Sequence[str], every_label: Iterable[str]
) -> list[str]:
    """A line for each split that lacks classes; `every_label` has those that no image is of too."""
    there = set(zip(assigned, labels, strict=True))
    lines = []
    for name in splits.SPLIT_NAMES:
        absent = sorted(label for label in set(every_label) if (name, label) not in there)
        if absent:
            more = ", …" if len(absent) > MOST_CLASSES_PRINTED else ""
            listed = ", ".join(absent[:MOST_CLASSES_PRINTED]) + more
            lines.append(f"no image in '{name}' of {number_of(len(absent), 'class')}: {listed}")
    return lines


def groups_of_classes(labels: Sequence[str], of_image: np.ndarray) -> Counter:
    """Different groups in each class; one of several classes counts in each."""
    codes, names = encode(labels)
    # Most images are alone in their group: numpy.unique takes 45 bytes for each that it is given.
    alone = np.bincount(of_image)[of_image] == 1
    counts = np.bincount(codes[alone], minlength=len(names))
    pairs = np.unique(of_image[~alone].astype(np.int64) * len(names) + codes[~alone])
    counts += np.bincount(pairs % len(names), minlength=len(names))
    return Counter(dict(zip(names, counts.tolist(), strict=True)))


def main() -> None:
    """Reads the inventory, the columns of data/raw, and then the pictures that are shown."""
    parameters = params.load("split", SplitParams)
    seed = params.load_seed()
    give_back_large_arrays()
    found, hashes, rejected = read_inventory(inventory.read())
    minimum = parameters.min_images_per_class
    per_class = Counter(found.labels)
    check_classes(per_class, per_class, minimum, also=rejected.labels)
    # Before TensorFlow is there, which is as large as what this takes of a million images.
    copies = duplicates.find(
        hashes.contents,
        hashes.perceptual,
        found.sizes[:, 0] / found.sizes[:, 1],
        parameters.near_duplicate_distance,
    )
    # From here on contents only name groups.
    copies = dataclasses.replace(copies, contents=StoredBytes(copies.contents))
    del hashes
    start_tensorflow()

    raw = RawDataset(paths.RAW)
    check_source(parameters, raw.column_names, raw.split_names)
    if parameters.stratify_columns and parameters.method != "stratified":
        print(f"split.stratify_columns: without effect, since split.method is {parameters.method}")
    bar = progress(raw, total=raw.count, unit="image", description="split")
    found = with_columns(found, rejected, bar)
    groups = duplicates.join(copies, found.columns.get("group"))
    check_classes(per_class, groups_of_classes(found.labels, groups.of_image), minimum)
    sampled = membership.in_sample(groups.names, parameters.sample, seed)
    in_sample = sampled[groups.of_image]
    # A million images need not be there twice.
    used = found if in_sample.all() else found.where(in_sample)
    groups = groups if sampled.all() else groups.where(sampled)
    assigned = assign(used, groups, parameters, seed)
    codes = np.full(len(found), len(assigned.names), np.int8)
    codes[in_sample] = assigned.codes
    split_of = Categories(codes, [*assigned.names, NOT_SAMPLED])
    left_out = assigned.codes == assigned.names.index(LEFT_OUT)
    straddled = int((left_out | straddling(used, assigned.codes, parameters)).sum())
    of_image = groups.of_image
    if left_out.any():
        used, of_image = used.where(~left_out), of_image[~left_out]
        assigned = Categories(assigned.codes[~left_out], assigned.names)

    names, columns = used.columns.keys(), used.columns.values()
    rows = (
        splits.SplitRow(
            image_id,
            split,
            label,
            group_id(groups.names[group]),
            dict(zip(names, values, strict=True)),
        )
        for image_id, split, label, group, *values in zip(
            used.ids, assigned, used.labels, of_image, *columns, strict=True
        )
    )
    splits.write(splits.SPLITS_FILE, rows, raw.column_names)
    tables.write_csv(DUPLICATES_FILE, DUPLICATES_COLUMNS, duplicate_rows(found, copies, split_of))
    counted = duplicate_metrics(found, copies, straddled)
    for line in [
        *describe_duplicates(found, copies, counted),
        *describe_straddling(straddled, parameters.official_copies),
        *describe_gaps(used.labels, assigned, per_class),
    ]:
        print(line)
    near_ones = parameters.near_duplicate_distance is not None
    draw_plots(raw, found, copies, used, assigned, split_of, near_ones)
    tables.write_metrics(
        METRICS,
        {
            **data_metrics(used, assigned, rejected),
            "images": len(found) + rejected.problems.total(),
            "duplicates": counted,
        },
    )


def draw_plots(
    raw: RawDataset,
    found: Images,
    copies: duplicates.Duplicates,
    used: Images,
    assigned: Sequence[str],
    split_of: Sequence[str],
    near_ones: bool,
) -> None:
    """Writes plots/data; reads data/raw for the pictures that are shown.

    `near_ones` tells whether near duplicates were looked for.
    """
    from stages.common import data_plots, plots

    counts = Counter(zip(assigned, used.labels, strict=True))
    balance = [
        (name, label, counts[name, label])
        for label in raw.class_names
        for name in splits.SPLIT_NAMES
    ]
    tables.write_csv(PLOTS / "class_balance.csv", ("split", "label", "images"), balance)
    data_plots.class_balance(PLOTS / "class_balance.png", balance)
    data_plots.sizes(PLOTS / "sizes.png", used.sizes)
    data_plots.channels(PLOTS / "channels.png", used.means, used.labels, assigned)

    samples = choose_samples(found, copies.first, split_of, raw.class_names)
    groups = choose_groups(found, copies)
    shown = {found.ids[index] for group in groups for index in group[:MOST_OF_A_GROUP_SHOWN]}
    pictures = _pictures(raw, shown | samples.keys())
    plots.image_grid(
        PLOTS / "samples.png",
        [(pictures[image_id], plots.shorten(label)) for image_id, label in samples.items()],
        columns=SAMPLES_PER_CLASS,
        title=f"Training images and their labels, up to {SAMPLES_PER_CLASS} of a class",
    )
    data_plots.duplicates(
        PLOTS / "duplicates.png",
        [
            data_plots.DuplicateGroup(
                images=len(group),
                exact=len(set(copies.copy_of[group])) == 1,
                labels=len({found.labels[index] for index in group}),
                shown=[
                    (
                        pictures[found.ids[index]],
                        found.names[index],
                        found.labels[index],
                        split_of[index],
                    )
                    for index in group[:MOST_OF_A_GROUP_SHOWN]
                ],
            )
            for group in groups
        ],
        total=int((np.bincount(copies.alike) > 1).sum()),
        near_ones=near_ones,
    )


def _pictures(raw: RawDataset, wanted: set[str]) -> dict[str, np.ndarray]:
    """The pixels of some images by id."""
    return {
        image.id: images.to_array(image.encoded, SAMPLE_SIZE, "squash")
        for image in raw.pick(wanted)
    }


if __name__ == "__main__":
    run(main, takes_arguments=False)
