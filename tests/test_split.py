"""Membership of the splits: exact, stratified, stable, and never parting what belongs together."""

import csv
import dataclasses
import itertools
import json
import random
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pytest
import yaml
from PIL import Image

from stages import fetch, split
from stages.common import duplicates, inventory, membership, params
from stages.common.image_columns import Hashes, Images, Rejected, read_inventory, with_columns
from stages.common.run import UserError
from stages.common.splits import SPLITS_FILE
from stages.common.splits import read as read_splits
from tests import ROOT

DEFAULT = split.SplitParams(
    sample=1.0,
    method="stratified",
    train=0.65,
    valid=0.1,
    test=0.25,
    folds=None,
    fold=0,
    stratify_columns=None,
    near_duplicate_distance=2,
    official_copies="leave_out",
    min_images_per_class=3,
)
LABELS = ("cat", "dog", "eel", "fox")
# Hashes of pictures without texture, which are near to no other.
NO_TEXTURE = "8000000000000000"


@dataclass(frozen=True)
class Item:
    """One image as these tests think of it."""

    id: str
    official_split: str
    label: str
    content: str
    columns: dict[str, str] = field(default_factory=dict)
    perceptual: str = NO_TEXTURE


def with_params(**changes) -> split.SplitParams:
    return dataclasses.replace(DEFAULT, **changes)


def draw_items(count: int, first: int = 0, **columns) -> list[Item]:
    """Items of four classes in unequal shares, all of different content."""
    return [
        Item(
            id=f"id {number}",
            official_split="train",
            label=LABELS[number % 10 % 4],
            content=membership.keyed_hash(1, f"pixels {number}"),
            columns=dict(columns),
        )
        for number in range(first, first + count)
    ]


def read_items(items) -> tuple[Images, Hashes]:
    """The same in columns, through the readers of the stage."""
    rows = [
        inventory.InventoryRow(
            id=item.id,
            name=f"{item.id}.png",
            label=item.label,
            bytes=100,
            format="PNG",
            mode="RGB",
            width=20,
            height=10,
            frames=1,
            content=item.content,
            perceptual=item.perceptual,
            red=1.0,
            green=2.0,
            blue=3.0,
        )
        for item in items
    ]
    names = {name: "" for item in items for name in item.columns}
    complete = [dataclasses.replace(item, columns=names | item.columns) for item in items]
    found, hashes, rejected = read_inventory(rows)
    return with_columns(found, rejected, complete), hashes


def as_images(items) -> Images:
    return read_items(items)[0]


def duplicates_of(items, parameters=DEFAULT) -> duplicates.Duplicates:
    found, hashes = read_items(items)
    aspects = found.sizes[:, 0] / found.sizes[:, 1]
    distance = parameters.near_duplicate_distance
    return duplicates.find(hashes.contents, hashes.perceptual, aspects, distance)


def groups_of(items, parameters=DEFAULT) -> duplicates.Groups:
    groups = as_images(items).columns.get("group")
    return duplicates.join(duplicates_of(items, parameters), groups)


def splits_of(items, parameters=DEFAULT, seed=0) -> dict[str, str]:
    """The split of every item by its id."""
    found = as_images(items)
    split.check_source(parameters, list(found.columns), sorted(set(found.official_splits)))
    assigned = split.assign(found, groups_of(items, parameters), parameters, seed)
    return dict(zip(found.ids, assigned, strict=True))


def moved(before: dict[str, str], after: dict[str, str]) -> float:
    """Fraction of the items of `before` that are elsewhere in `after`."""
    return sum(after[name] != where for name, where in before.items()) / len(before)


@pytest.mark.parametrize("count", [40, 97, 1001, 2624])
@pytest.mark.parametrize(("test", "valid"), [(0.25, 0.1), (0.1, 0.15), (1 / 3, 1 / 3)])
def test_sizes_are_the_fractions_of_all_images_exactly(count, test, valid):
    parameters = with_params(train=1 - test - valid, valid=valid, test=test)
    sizes = Counter(splits_of(draw_items(count), parameters).values())
    assert sizes["test"] == round(count * test)
    assert abs(sizes["valid"] - count * valid) < 1
    assert sizes.total() == count


@pytest.mark.parametrize("images_per_class", [1, 2, 3, 5])
def test_sizes_are_the_fractions_of_all_images_with_many_small_classes(images_per_class):
    items = [
        dataclasses.replace(item, label=f"class {number // images_per_class}")
        for number, item in enumerate(draw_items(600))
    ]
    sizes = Counter(splits_of(items).values())
    assert abs(sizes["test"] - 150) <= 1
    assert abs(sizes["valid"] - 60) <= 1


def test_every_class_is_divided_by_the_fractions():
    items = draw_items(1003)
    splits = splits_of(items)
    for label in LABELS:
        of_class = [splits[item.id] for item in items if item.label == label]
        # Within an image for each border: the classes share what rounding leaves.
        test, valid = of_class.count("test"), of_class.count("valid")
        assert abs(test - 0.25 * len(of_class)) <= 1, label
        assert abs(test + valid - 0.35 * len(of_class)) <= 1, label


def test_the_values_of_a_column_are_divided_by_the_fractions_too():
    items = draw_items(600, kind="rare")[:60] + draw_items(540, first=60, kind="common")
    splits = splits_of(items, with_params(stratify_columns=["kind"]))
    for label, kind in itertools.product(LABELS, ("rare", "common")):
        names = [
            splits[item.id] for item in items if (item.label, item.columns["kind"]) == (label, kind)
        ]
        assert abs(names.count("test") - 0.25 * len(names)) <= 1, (label, kind)


def test_a_column_of_many_values_takes_nothing_from_the_seed():
    """A date for each image: within strata of one image there would be nothing to draw."""
    items = [dataclasses.replace(item, columns={"date": item.id}) for item in draw_items(600)]
    parameters = with_params(stratify_columns=["date"])
    splits = splits_of(items, parameters)
    for label in LABELS:
        of_class = [splits[item.id] for item in items if item.label == label]
        assert abs(of_class.count("test") - 0.25 * len(of_class)) <= 1, label
    chance = 1 - sum(share**2 for share in (0.65, 0.1, 0.25))
    assert moved(splits, splits_of(items, parameters, seed=1)) == pytest.approx(chance, abs=0.1)


def test_the_values_of_two_columns_are_divided_together():
    kinds = [
        dict(kind=kind, site=site) for kind in ("rare", "common") for site in ("north", "south")
    ]
    items = [
        item
        for number, columns in enumerate(kinds)
        for item in draw_items(100, first=100 * number, **columns)
    ]
    splits = splits_of(items, with_params(stratify_columns=["kind", "site"]))
    for label, columns in itertools.product(LABELS, kinds):
        names = [
            splits[item.id] for item in items if (item.label, item.columns) == (label, columns)
        ]
        assert abs(names.count("test") - 0.25 * len(names)) <= 1, (label, columns)


def test_a_column_that_is_not_there_is_answered_with_those_that_are():
    with pytest.raises(UserError) as caught:
        splits_of(draw_items(40, wafer_type="mono"), with_params(stratify_columns=["wafer_typ"]))
    assert str(caught.value) == (
        "params.yaml, split.stratify_columns: expected columns of ['wafer_type'], "
        "received 'wafer_typ'; did you mean 'wafer_type'?; set it to null to balance the classes "
        "alone"
    )


def test_the_order_of_the_images_does_not_matter():
    items = draw_items(300)
    # Copies, some of them under another class's name, and groups of several classes.
    items += [dataclasses.replace(items[n], id=f"copy {n}") for n in range(0, 60, 3)]
    items += [dataclasses.replace(items[n], id=f"other {n}", label="cat") for n in range(1, 60, 3)]
    items += [
        dataclasses.replace(item, columns={"group": f"patient {number // 5}"})
        for number, item in enumerate(draw_items(100, first=300))
    ]
    shuffled = random.Random(0).sample(items, len(items))
    assert splits_of(shuffled) == splits_of(items)


def test_the_seed_decides():
    items = draw_items(1000)
    assert splits_of(items, seed=3) == splits_of(items, seed=3)
    # Two independent draws of 65, 10 and 25 % disagree on about half of the images.
    assert 0.4 < moved(splits_of(items, seed=3), splits_of(items, seed=4)) < 0.6


def test_copies_never_straddle_two_splits():
    items = draw_items(400)
    copies = [
        dataclasses.replace(item, id=f"copy {number} of {item.id}")
        for number in range(3)
        for item in items[:150]
    ]
    splits = splits_of(items + copies)
    for copy in copies:
        assert splits[copy.id] == splits[copy.id.split(" of ")[1]]
    assert {splits[copy.id] for copy in copies} == {"train", "valid", "test"}


def test_a_copy_under_another_class_goes_with_its_original():
    items = draw_items(400)
    copies = [
        dataclasses.replace(item, id=f"copy of {item.id}", label="cat")
        for item in items
        if item.label != "cat"
    ]
    splits = splits_of(items + copies)
    assert all(splits[copy.id] == splits[copy.id.removeprefix("copy of ")] for copy in copies)


def test_groups_never_straddle_two_splits():
    items = [
        dataclasses.replace(item, columns={"group": f"patient {number // 7}"})
        for number, item in enumerate(draw_items(700))
    ]
    splits = splits_of(items)
    of_group: dict[str, set[str]] = {}
    for item in items:
        of_group.setdefault(item.columns["group"], set()).add(splits[item.id])
    assert len(of_group) == 100
    assert all(len(names) == 1 for names in of_group.values())
    assert Counter(name for (name,) in of_group.values()).keys() == {"train", "valid", "test"}


def test_groups_that_share_an_image_become_one():
    first, second, third, fourth, alone = draw_items(5)
    items = [
        dataclasses.replace(first, columns={"group": "a"}),
        dataclasses.replace(second, columns={"group": "a"}),
        # The same picture under two patients, and a third patient behind the second.
        dataclasses.replace(second, id="copy", columns={"group": "b"}),
        dataclasses.replace(third, columns={"group": "b"}),
        dataclasses.replace(third, id="other copy", columns={"group": "c"}),
        dataclasses.replace(fourth, columns={"group": "c"}),
        dataclasses.replace(alone, columns={"group": "d"}),
    ]
    groups = groups_of(items)
    assert groups.of_image.tolist() == [groups.of_image[0]] * 6 + [groups.of_image[6]]
    assert sorted(groups.names) == ["column a", "column d"]


def test_images_without_a_group_stay_by_themselves():
    items = draw_items(10, group="")
    assert len(set(groups_of(items).of_image)) == 10


def test_a_tenth_more_images_moves_one_in_a_hundred_of_the_others_or_fewer():
    # The mean of ten draws: sizes are exact, so each draw moves as many as chance asks for.
    draws = [
        moved(
            splits_of(draw_items(4000, first), seed=seed),
            splits_of(draw_items(4400, first), seed=seed),
        )
        for seed, first in enumerate(range(0, 50_000, 5_000))
    ]
    assert sum(draws) / len(draws) <= 0.01
    assert max(draws) <= 0.02


def test_more_images_of_known_groups_leave_the_groups_where_they_were():
    draws = []
    for seed in range(10):
        items = [
            dataclasses.replace(item, columns={"group": f"patient {number % 440}"})
            for number, item in enumerate(draw_items(4400, first=5_000 * seed))
        ]
        draws.append(moved(splits_of(items[:4000], seed=seed), splits_of(items, seed=seed)))
    assert sum(draws) / len(draws) <= 0.01
    assert max(draws) <= 0.02


def test_official_splits_are_kept():
    items = [
        dataclasses.replace(item, official_split=name)
        for item, name in zip(
            draw_items(200), ["train"] * 120 + ["validation"] * 30 + ["test"] * 50, strict=True
        )
    ]
    splits = splits_of(items, with_params(train=0.5, valid="official", test="official"))
    for item in items:
        assert splits[item.id] == {"validation": "valid"}.get(
            item.official_split, item.official_split
        )
    # With one of them, the fraction is of the images that the other leaves.
    splits = splits_of(items, with_params(train=0.8, valid=0.2, test="official"))
    assert Counter(splits.values()) == {"train": 120, "valid": 30, "test": 50}
    assert all(splits[item.id] == "test" for item in items if item.official_split == "test")


def test_an_official_split_that_is_not_there():
    with pytest.raises(UserError) as caught:
        splits_of(draw_items(40), with_params(train=0.9, valid=0.1, test="official"))
    assert str(caught.value) == (
        "params.yaml, split.test: the data set has no official split of that kind, only "
        "['train']; give a fraction instead"
    )


def test_sequential_is_the_layout_of_the_tutorial():
    # train[:10%] tests, train[10%:25%] validates, train[25%:] trains.
    items = draw_items(200)
    parameters = with_params(method="sequential", train=0.75, valid=0.15, test=0.1)
    for seed in (0, 1):
        names = list(splits_of(items, parameters, seed).values())
        assert names == ["test"] * 20 + ["valid"] * 30 + ["train"] * 150


@pytest.mark.parametrize("method", ["stratified", "sequential"])
def test_a_split_that_would_be_empty(method):
    items = [dataclasses.replace(item, label="cat") for item in draw_items(4)]
    with pytest.raises(UserError) as caught:
        splits_of(items, with_params(method=method))
    assert str(caught.value).startswith("the split 'valid' would be empty with 4 images")
    assert "raise split.valid" in str(caught.value)
    with pytest.raises(UserError, match=r"add images or raise split\.sample"):
        splits_of(items, with_params(method=method, sample=0.9))


def test_a_sample_is_its_fraction_of_whole_groups_and_grows_with_it():
    names = groups_of(draw_items(4000)).names

    def sampled(fraction, seed=0):
        return set(itertools.compress(names, membership.in_sample(names, fraction, seed)))

    kept = {fraction: sampled(fraction) for fraction in (1 / 16, 1 / 4, 1.0)}
    assert kept[1 / 16] < kept[1 / 4] < kept[1.0] == set(names)
    # Four standard deviations of a binomial draw.
    assert abs(len(kept[1 / 4]) - 1000) < 110
    assert abs(len(kept[1 / 16]) - 250) < 62
    assert sampled(1 / 16, seed=1) != kept[1 / 16]


def test_a_sample_does_not_favour_a_split():
    items = draw_items(4000)
    groups = groups_of(items)
    whole = split.assign(as_images(items), groups, DEFAULT, 0)
    sampled = Counter(
        itertools.compress(whole, membership.in_sample(groups.names, 0.25, 0)[groups.of_image])
    )
    # Drawn by the same hash as the splits, a sample would hold test images alone.
    assert sampled["test"] / sampled.total() == pytest.approx(0.25, abs=0.06)


def test_a_sample_keeps_groups_and_their_names():
    groups = groups_of([*draw_items(6), dataclasses.replace(draw_items(4)[3], id="copy")])
    kept = np.array([name in (groups.names[0], groups.names[5]) for name in groups.names])
    sampled = groups.where(kept)
    assert list(sampled.names) == [groups.names[0], groups.names[5]]
    before = [groups.names[group] for group in groups.of_image if kept[group]]
    assert [sampled.names[group] for group in sampled.of_image] == before


# Three hashes, each one bit from the next, and one that is far from them.
ALIKE = ("f0f0f0f0f0f0f0f0", "f0f0f0f0f0f0f0f3", "f0f0f0f0f0f0f0ff")
ALONE = "123456789abcdef0"


def test_near_duplicates_never_straddle_two_splits():
    random_bits = random.Random(0).getrandbits
    items = [
        dataclasses.replace(item, perceptual=f"{random_bits(64):016x}") for item in draw_items(300)
    ]
    edited = [
        dataclasses.replace(
            item,
            id=f"edited {item.id}",
            content=membership.keyed_hash(2, item.id),
            perceptual=f"{int(item.perceptual, 16) ^ 0b11 << number % 60:016x}",
        )
        for number, item in enumerate(items)
    ]
    splits = splits_of(items + edited)
    assert all(splits[item.id] == splits[f"edited {item.id}"] for item in items)
    apart = splits_of(items + edited, with_params(near_duplicate_distance=None))
    assert any(apart[item.id] != apart[f"edited {item.id}"] for item in items)


def test_another_copy_leaves_the_group_of_near_duplicates_where_it_was():
    items = draw_items(60)
    for number, perceptual in enumerate(ALIKE):
        items[number] = dataclasses.replace(items[number], perceptual=perceptual)
    copies = [dataclasses.replace(item, id=f"copy of {item.id}") for item in items[:3]]
    before, after = groups_of(items), groups_of(items + copies)
    assert before.names[before.of_image[0]] == after.names[after.of_image[0]]
    assert len(set(after.of_image[[0, 1, 2, 60, 61, 62]])) == 1
    # And other groups keep their names, whichever images are added.
    assert set(before.names) == set(after.names)


@pytest.mark.parametrize("items", [1000, 300])
def test_hashed_moves_no_image_and_its_sizes_are_near_the_fractions(items):
    # It needs no column: there are no strata.
    parameters = with_params(method="hashed", stratify_columns=["wafer_type"])
    before = splits_of(draw_items(items), parameters)
    after = splits_of(draw_items(items + items // 10), parameters)
    assert moved(before, after) == 0
    sizes = Counter(before.values())
    # Four standard deviations of a binomial draw.
    for name, share in (("test", 0.25), ("valid", 0.1)):
        assert abs(sizes[name] - items * share) < 4 * (items * share * (1 - share)) ** 0.5


@pytest.mark.parametrize("method", ["stratified", "hashed", "sequential"])
def test_every_image_is_in_the_test_split_of_exactly_one_fold(method):
    items = draw_items(403) + [
        dataclasses.replace(item, id=f"copy {item.id}") for item in draw_items(100)
    ]
    tests, valids = Counter(), []
    for fold in range(5):
        splits = splits_of(items, with_params(method=method, folds=5, fold=fold))
        tests.update(name for name, where in splits.items() if where == "test")
        valids.append({name for name, where in splits.items() if where == "valid"})
        sizes = Counter(splits.values())
        if method != "hashed":
            assert abs(sizes["test"] - 503 / 5) <= 2
            assert abs(sizes["valid"] - 50.3) <= 2
    assert tests == Counter({item.id: 1 for item in items})
    # Each fold is validated on other images, so that repeats are as different as they can be.
    assert all(not first & second for first, second in itertools.combinations(valids, 2))


def test_folds_are_stratified():
    items = draw_items(1000)
    for fold in range(4):
        splits = splits_of(items, with_params(folds=4, fold=fold))
        for label in LABELS:
            of_class = [splits[item.id] for item in items if item.label == label]
            assert abs(of_class.count("test") - len(of_class) / 4) <= 1


def test_first_fold_of_four_is_the_test_split_of_a_quarter():
    items = draw_items(1000)
    assert splits_of(items, with_params(folds=4)) == splits_of(items, with_params(test=0.25))


def test_folds_of_the_stored_order_are_blocks_and_valid_is_what_follows():
    items = draw_items(20)
    parameters = with_params(method="sequential", folds=4, train=0.65, valid=0.1)
    for fold in range(4):
        splits = list(splits_of(items, dataclasses.replace(parameters, fold=fold)).values())
        start = 5 * fold
        assert splits[start : start + 5] == ["test"] * 5
        # After the last block comes the first.
        assert [splits[(start + place) % 20] for place in (5, 6)] == ["valid"] * 2
        assert Counter(splits) == {"train": 13, "valid": 2, "test": 5}


def test_a_copy_in_both_official_splits_is_a_test_image_alone():
    items = draw_items(100)
    official = ["train"] * 60 + ["test"] * 20 + ["validation"] * 20
    items = [
        dataclasses.replace(item, official_split=name)
        for item, name in zip(items, official, strict=True)
    ]
    copies = [
        dataclasses.replace(items[90], id="copy of valid", official_split="test"),
        dataclasses.replace(items[70], id="copy of test", official_split="validation"),
    ]
    given = with_params(train=0.5, valid="official", test="official")
    splits = splits_of(items + copies, given)
    assert {splits["copy of valid"], splits["id 70"]} == {"test"}
    assert {splits["id 90"], splits["copy of test"]} == {split.LEFT_OUT}
    splits = splits_of(items + copies, dataclasses.replace(given, official_copies="move"))
    assert {splits[name] for name in ("id 90", "id 70", "copy of valid", "copy of test")} == {
        "test"
    }


def test_groups_larger_than_a_split_still_fill_all_three():
    items = [
        dataclasses.replace(item, columns={"group": f"patient {number % 4}"})
        for number, item in enumerate(draw_items(100))
    ]
    assert Counter(splits_of(items).values()) == {"train": 50, "valid": 25, "test": 25}


def in_groups(groups_of_class: dict[str, list[int]]) -> list[Item]:
    """Images of the given classes in groups of the given sizes."""
    owners = [
        (label, f"{label} {number}")
        for label, sizes in groups_of_class.items()
        for number, size in enumerate(sizes)
        for _ in range(size)
    ]
    return [
        dataclasses.replace(item, label=label, columns={"group": group})
        for item, (label, group) in zip(draw_items(len(owners)), owners, strict=True)
    ]


@pytest.mark.parametrize("folds", [None, 5])
def test_a_class_of_large_groups_leaves_the_others_their_share(folds):
    items = in_groups({"bursts": [300, 120, 80], "few": [5] * 8, "many": [1] * 400})
    for seed in range(20):
        splits = splits_of(items, with_params(folds=folds), seed)
        for label, least in [("few", 0.05), ("many", 0.4)]:
            found = Counter(splits[item.id] for item in items if item.label == label)
            for name, share in [("test", 1 / folds if folds else 0.25), ("valid", 0.1)]:
                assert found[name] >= least * share * found.total(), (seed, label, name)
            assert found["train"] >= 0.4 * found.total()


def test_classes_of_a_few_large_groups_share_the_test_images():
    """Of a group of ten in three a tenth can't be taken; of ten such classes it can."""
    items = in_groups({f"class {number}": [10] * 3 for number in range(30)})
    sizes = Counter(splits_of(items, with_params(test=0.1, valid=0.1, train=0.8)).values())
    assert sizes == {"train": 720, "valid": 90, "test": 90}


@pytest.mark.parametrize("folds", [None, 4])
def test_groups_of_uneven_sizes_give_the_fractions_on_the_whole(folds):
    drawn = np.random.default_rng(0).lognormal(3, 1, (20, 8)).astype(int) + 1
    items = in_groups({f"class {number}": list(sizes) for number, sizes in enumerate(drawn)})
    for fold in range(folds or 1):
        sizes = Counter(splits_of(items, with_params(folds=folds, fold=fold)).values())
        assert sizes["test"] == pytest.approx(0.25 * len(items), rel=0.15)
        assert sizes["valid"] == pytest.approx(0.1 * len(items), rel=0.2)


def test_columns_of_many_values_each_are_no_error():
    items = [
        dataclasses.replace(item, columns={name: item.id for name in "abcdefg"})
        for item in draw_items(600)
    ]
    splits = splits_of(items, with_params(stratify_columns=list("abcdefg")))
    assert splits == splits_of(items, with_params(stratify_columns=["a"]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fold": 2}, "split.fold: received 2 with folds: null; set split.folds"),
        ({"folds": 5, "fold": 5}, "split.fold: expected a whole number from 0 to 4 with folds: 5"),
        ({"folds": 1}, "split.folds: expected null, or a whole number of 2 or more, received 1"),
        ({"folds": 5, "test": "official", "train": 0.9}, "split.test: official keeps one test"),
        ({"folds": 2, "valid": 0.5, "train": 0.25}, "split.valid: 0.5 and a test split of 1/2"),
        ({"near_duplicate_distance": 9}, "expected null, or a whole number from 0 to 8"),
        ({"min_images_per_class": 0}, "expected null, or a whole number of 1 or more"),
    ],
)
def test_params_that_do_not_go_together(changes, message):
    content = params.read(ROOT / "params.yaml")
    content["split"] |= changes
    with pytest.raises(UserError, match=r"^params\.yaml, split\.") as caught:
        params.check(content, "split", split.SplitParams)
    assert message in str(caught.value)


def test_classes_that_are_too_small_are_all_listed():
    images_of = Counter(cat=40, dog=2, eel=30)
    with pytest.raises(UserError) as caught:
        split.check_classes(images_of, Counter(cat=39, dog=2, eel=1), 3, also={"fox", "", "cat"})
    first, *lines, last = str(caught.value).splitlines()
    assert first.startswith("3 of 4 classes have fewer than 3 different images")
    assert lines == [
        "  dog: 2 images",
        "  eel: 30 images in 1 group of copies, near duplicates or one `group`",
        "  fox: 0 images",
    ]
    assert "lower split.min_images_per_class" in last
    split.check_classes(images_of, Counter(cat=39, dog=2, eel=1), None)
    split.check_classes(images_of, Counter(cat=39, dog=3, eel=3), 3)


def test_a_single_class_is_no_classification():
    with pytest.raises(UserError, match=r"two classes or more, received \['cat'\]"):
        split.check_classes(Counter(cat=9), Counter(cat=9), None)


def test_different_images_of_a_class_are_counted_by_group():
    items = [
        *draw_items(4),
        dataclasses.replace(draw_items(1)[0], id="copy"),
        dataclasses.replace(draw_items(1)[0], id="other class", label="dog"),
    ]
    groups = groups_of(items)
    labels = [item.label for item in items]
    assert split.groups_of_classes(labels, groups.of_image) == Counter(cat=1, dog=2, eel=1, fox=1)


def test_inventory_of_other_images_is_refused_and_rejected_ones_are_left_out():
    items = draw_items(4)
    found, _, rejected = read_inventory(
        [
            inventory.InventoryRow(id="table row 3", name="a.png", label="", problem="empty_label"),
            *(
                inventory.InventoryRow(
                    id=item.id,
                    name=item.id,
                    label=item.label,
                    width=4,
                    height=3,
                    frames=2,
                    content=item.content,
                    perceptual=ALONE,
                    red=0.0,
                    green=0.0,
                    blue=0.0,
                )
                for item in items[:3]
            ),
            inventory.InventoryRow(id="id 3", name="b.png", label="eel", problem="truncated"),
        ]
    )
    assert rejected == Rejected(
        ids=frozenset({"table row 3", "id 3"}),
        labels=frozenset({"", "eel"}),
        problems=Counter(empty_label=1, truncated=1),
        animated=3,
    )
    assert list(with_columns(found, rejected, items).official_splits) == ["train"] * 3
    for wrong in (items[:2], items[1:], [*items, *draw_items(1, first=9)], items[::-1]):
        with pytest.raises(UserError, match="not of the same images"):
            with_columns(found, rejected, wrong)


def duplicated_items() -> list[Item]:
    """Two contents twice, one of them under two labels; two near duplicates of one; one alone."""
    first, second, third, fourth, fifth = draw_items(5)
    items = [
        dataclasses.replace(first, perceptual=ALIKE[0]),
        dataclasses.replace(second, perceptual=ALIKE[1]),
        dataclasses.replace(third, perceptual=ALIKE[2]),
        fourth,
        dataclasses.replace(fifth, perceptual=ALONE),
    ]
    return [
        *items,
        dataclasses.replace(items[0], id="same label"),
        dataclasses.replace(fourth, id="other label", label="cat"),
    ]


def test_duplicates_are_counted():
    items = duplicated_items()
    found, copies = as_images(items), duplicates_of(items)
    assert split.duplicate_metrics(found, copies, straddled_official=5) == {
        "exact_groups": 2,
        "exact_images": 2,
        "near_groups": 1,
        "near_images": 2,
        "conflicting_labels": 1,
        "near_conflicting_labels": 1,
        "straddled_official": 5,
    }


def test_duplicates_are_listed_by_name_and_as_data_splits_names_their_group():
    items = duplicated_items()
    found, copies = as_images(items), duplicates_of(items)
    rows = list(split.duplicate_rows(found, copies, [split.NOT_SAMPLED, *["test"] * 6]))
    assert Counter(row[1:] for row in rows[:4]) == Counter(
        [
            ("id 0", "id 0.png", "cat", "not sampled", "exact"),
            ("same label", "same label.png", "cat", "test", "exact"),
            ("id 1", "id 1.png", "dog", "test", "near"),
            ("id 2", "id 2.png", "eel", "test", "near"),
        ]
    )
    assert [row[1:] for row in rows[4:]] == [
        ("id 3", "id 3.png", "fox", "test", "exact"),
        ("other label", "other label.png", "cat", "test", "exact"),
    ]
    groups = groups_of(items)
    of_id = dict(zip(found.ids, groups.of_image, strict=True))
    assert all(row[0] == split.group_id(groups.names[of_id[row[1]]]) for row in rows)

    counts = split.duplicate_metrics(found, copies, 0)
    first, *conflicts = split.describe_duplicates(found, copies, counts)
    assert "2 exact in 2 groups, 2 near in 1 group" in first
    assert conflicts == [
        "images with more than one label: 1",
        "  id 3.png (fox) = other label.png (cat)",
        "groups of near duplicates with more than one label: 1",
        "  id 0.png (cat) ~ id 1.png (dog) ~ id 2.png (eel) ~ same label.png (cat)",
    ]


def test_groups_under_several_labels_are_shown_before_larger_ones():
    first, second, third = draw_items(3)
    items = [dataclasses.replace(first, id=f"large {number}") for number in range(4)]
    items += [dataclasses.replace(second, id=f"same {number}", label="cat") for number in range(8)]
    items[-1] = dataclasses.replace(items[-1], label="dog")
    items += [dataclasses.replace(third, id=f"small {number}") for number in range(2)]
    found, copies = as_images(items), duplicates_of(items)
    shown = split.choose_groups(found, copies)
    assert [{found.ids[index][:5] for index in group} for group in shown] == [
        {"same "},
        {"large"},
        {"small"},
    ]
    # The last of eight copies, of which not all are shown.
    assert {found.labels[index] for index in shown[0][:2]} == {"cat", "dog"}


def test_a_conflict_shows_every_label_however_many_copies_there_are():
    (first,) = draw_items(1)
    items = [dataclasses.replace(first, id=f"copy {number}") for number in range(8)]
    items[-1] = dataclasses.replace(items[-1], label="dog")
    found, copies = as_images(items), duplicates_of(items)
    lines = split.describe_duplicates(found, copies, split.duplicate_metrics(found, copies, 0))
    assert lines[-1].startswith("  copy 0.png (cat) = copy 7.png (dog) = copy 1.png (cat)")


def test_metrics_count_images_classes_and_rejected_ones():
    items = draw_items(4)
    rejected = Rejected(frozenset("ab"), frozenset(), Counter(truncated=2, empty_label=1), 7)
    assigned = ["train", "train", "valid", "test"]
    assert split.data_metrics(as_images(items), assigned, rejected) == {
        "classes": 4,
        "used": 4,
        "rejected": {"total": 3, "truncated": 2, "empty_label": 1},
        "animated": 7,
        "splits": {
            "train": {"images": 2, "class": {"cat": 1, "dog": 1, "eel": 0, "fox": 0}},
            "valid": {"images": 1, "class": {"cat": 0, "dog": 0, "eel": 1, "fox": 0}},
            "test": {"images": 1, "class": {"cat": 0, "dog": 0, "eel": 0, "fox": 1}},
        },
    }


@pytest.mark.parametrize(
    ("official_copies", "expected"), [("move", "test"), ("leave_out", split.LEFT_OUT)]
)
def test_copies_of_official_images_follow_them_or_are_left_out(official_copies, expected):
    items = draw_items(200)
    tests = [dataclasses.replace(item, official_split="test") for item in items[:50]]
    copies = [dataclasses.replace(item, id=f"copy of {item.id}") for item in items[:20]]
    everything = [*copies, *items[50:], *tests]
    parameters = with_params(train=0.9, valid=0.1, test="official", official_copies=official_copies)
    found = as_images(everything)
    assigned = split.assign(found, groups_of(everything, parameters), parameters, 0)
    of_id = dict(zip(found.ids, assigned, strict=True))
    assert {of_id[item.id] for item in tests} == {"test"}
    assert {of_id[item.id] for item in copies} == {expected}
    assert Counter(assigned)["test"] == (70 if official_copies == "move" else 50)
    straddling = split.straddling(found, assigned.codes, parameters)
    assert straddling.sum() == (20 if official_copies == "move" else 0)
    assert not split.straddling(found, assigned.codes, DEFAULT).any()


def test_splits_that_lack_a_class_are_told():
    labels, assigned = ["cat", "dog", "cat", "dog", "cat"], ["train"] * 2 + ["valid", "test"] * 1
    lines = split.describe_gaps(labels, [*assigned, "test"], {"cat", "dog"})
    assert lines == ["no image in 'valid' of 1 class: dog"]
    lines = split.describe_gaps(labels, [*assigned, "test"], {"cat", "dog", "rare"})  # not sampled
    assert lines[0] == "no image in 'train' of 1 class: rare"


def test_samples_are_training_images_of_every_class():
    items = draw_items(400)
    items += [dataclasses.replace(item, id=f"copy of {item.id}") for item in items]
    found = as_images(items)
    assigned = split.assign(found, groups_of(items), DEFAULT, 0)
    chosen = split.choose_samples(found, duplicates_of(items).first, assigned, LABELS)
    assert Counter(chosen.values()) == dict.fromkeys(LABELS, split.SAMPLES_PER_CLASS)
    content_of = {item.id: item.content for item in items}
    assert len({content_of[name] for name in chosen}) == len(chosen)  # of copies one
    by_id = {item.id: (item.label, name) for item, name in zip(items, assigned, strict=True)}
    assert all(by_id[name] == (label, "train") for name, label in chosen.items())


@pytest.fixture
def own_folder(tmp_path, draw_images):
    """Two classes; a copy under the other one's name, another at half the size, a broken file."""
    content = params.read(ROOT / "params.yaml")
    content["dataset"] |= {"name": "image_folder", "path": "own", "on_bad_image": "skip"}
    content["split"]["stratify_columns"] = ["probability", "wafer_type"]  # whatever is there
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    cat = draw_images(tmp_path / "own" / "cat", 20, size=(64, 48))
    draw_images(tmp_path / "own" / "dog", 20, size=(64, 48))
    (tmp_path / "own" / "dog" / "copy.png").write_bytes(cat[0].read_bytes())
    spots = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    smooth = Image.fromarray(spots).resize((160, 120), Image.Resampling.BICUBIC)
    smooth.save(cat[1])
    smooth.resize((80, 60)).save(tmp_path / "own" / "cat" / "smaller.png")
    (tmp_path / "own" / "cat" / "broken.png").write_bytes(b"<html>404</html>")
    return tmp_path


def test_stage_on_a_messy_folder(own_folder, run_stage):
    assert run_stage("fetch").returncode == 0
    # The default columns are those of the default data; the first one is asked for.
    done = run_stage("split")
    assert done.returncode == 1
    assert "received 'probability'; set it to null to balance the classes alone" in done.stderr

    content = params.read(own_folder / "params.yaml")
    content["split"]["stratify_columns"] = None
    (own_folder / "params.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    done = run_stage("split")
    assert done.returncode == 0, done.stderr
    assert "duplicates: 1 exact in 1 group, 1 near in 1 group" in done.stdout
    assert "dog/copy.png (dog)" in done.stdout
    metrics = json.loads((own_folder / "metrics" / "data.json").read_text())
    assert (metrics["images"], metrics["used"], metrics["rejected"]["total"]) == (43, 42, 1)
    with (own_folder / "data" / "splits.csv").open() as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert len(rows) == 42
    for name, copy in (("cat/000.png", "dog/copy.png"), ("cat/001.png", "cat/smaller.png")):
        assert rows[name]["split"] == rows[copy]["split"]
        assert rows[name]["group"] == rows[copy]["group"]
    with (own_folder / "data" / "duplicates.csv").open() as file:
        listed = {(row["name"], row["kind"], row["split"]) for row in csv.DictReader(file)}
    assert listed == {
        (name, kind, rows[name]["split"])
        for name, kind in (
            ("cat/000.png", "exact"),
            ("dog/copy.png", "exact"),
            ("cat/001.png", "near"),
            ("cat/smaller.png", "near"),
        )
    }
    plots = {path.name for path in (own_folder / "plots" / "data").iterdir()}
    assert plots == {"class_balance.csv"} | {
        f"{name}.png" for name in ("class_balance", "samples", "sizes", "channels", "duplicates")
    }


def test_stage_writes_the_joined_group_in_place_of_the_tables_own(tmp_path, draw_images, run_stage):
    content = params.read(ROOT / "params.yaml")
    content["dataset"] |= {"name": "image_table", "path": "own"}
    content["dataset"]["image_table"]["group_column"] = "patient"
    content["split"]["stratify_columns"] = None
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    pictures = draw_images(tmp_path / "own", 40, size=(64, 48))
    # Ten patients of two images, of which an equal picture joins the first two; 20 without one.
    pictures[2].write_bytes(pictures[0].read_bytes())
    rows = [
        f"{path.name},{('cat', 'dog')[number % 2]},{f'p{number // 2}' if number < 20 else ''}"
        for number, path in enumerate(pictures)
    ]
    (tmp_path / "own" / "table.csv").write_text("\n".join(["path,label,patient", *rows]) + "\n")
    for stage in ("fetch", "split"):
        done = run_stage(stage)
        assert done.returncode == 0, done.stderr
    with (tmp_path / "data" / "splits.csv").open() as file:
        assert next(csv.reader(file)) == ["id", "split", "label", "group", "name"]
    group = {row.columns["name"]: row.group for row in read_splits(tmp_path / SPLITS_FILE)}
    named = [group[path.name] for path in pictures]
    assert len({*named[:4]}) == 1
    assert len({*named[:20]}) == 9
    assert len({*named[20:]}) == 20
    assert len({*named}) == 29


def test_stage_leaves_copies_of_official_test_images_out(tmp_path, draw_images, run_stage):
    content = params.read(ROOT / "params.yaml")
    content["dataset"] |= {"name": "image_folder", "path": "own"}
    content["split"] |= {"train": 0.8, "valid": 0.2, "test": "official", "stratify_columns": None}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    for name in ("cat", "dog"):
        draw_images(tmp_path / "own" / "train" / name, 12, size=(64, 48))
        test = draw_images(tmp_path / "own" / "test" / name, 4, size=(60, 48))
    (tmp_path / "own" / "train" / "dog" / "copy.png").write_bytes(test[0].read_bytes())
    for stage in ("fetch", "split"):
        done = run_stage(stage)
        assert done.returncode == 0, done.stderr
    assert "1 image with a copy, a near duplicate or the group of one in an official" in done.stdout
    with (tmp_path / "data" / "splits.csv").open() as file:
        rows = {row["name"]: row["split"] for row in csv.DictReader(file)}
    assert "train/dog/copy.png" not in rows
    assert sorted(name for name, split in rows.items() if split == "test") == sorted(
        f"test/{name}/{number:03}.png" for name in ("cat", "dog") for number in range(4)
    )
    with (tmp_path / "data" / "duplicates.csv").open() as file:
        listed = {row["name"]: row["split"] for row in csv.DictReader(file)}
    assert listed == {"train/dog/copy.png": "left out", "test/dog/000.png": "test"}
    metrics = json.loads((tmp_path / "metrics" / "data.json").read_text())
    assert (metrics["images"], metrics["used"]) == (33, 32)
    assert metrics["duplicates"]["straddled_official"] == 1


def test_stage_draws_sample_and_splits_by_its_params_and_seed(tmp_path, draw_images, monkeypatch):
    content = params.read(ROOT / "params.yaml")
    content["dataset"] |= {"name": "image_folder", "path": "own"}
    content["split"]["stratify_columns"] = None
    for name in ("cat", "dog"):
        draw_images(tmp_path / "own" / name, 40, size=(64, 48))
    monkeypatch.chdir(tmp_path)

    def split_of(seed: int, sample: float) -> dict[str, str]:
        content["split"]["sample"] = sample
        text = yaml.safe_dump(content | {"seed": seed})
        (tmp_path / "params.yaml").write_text(text, encoding="utf-8")
        if not (tmp_path / "data" / "raw").exists():
            fetch.main()
        split.main()
        metrics = json.loads((tmp_path / "metrics" / "data.json").read_text())
        found = {row.id: row.split for row in read_splits()}
        assert (metrics["images"], metrics["used"]) == (80, len(found))
        return found

    whole, other, half = split_of(0, 1.0), split_of(1, 1.0), split_of(0, 0.5)
    assert whole != other
    assert len(whole) == len(other) == 80
    assert 22 < len(half) < 58  # four standard deviations
