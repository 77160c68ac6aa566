"""Membership of the splits: exact, stratified, stable, and never parting what belongs together."""

import dataclasses
import itertools
import random
from collections import Counter

import pytest

from stages import split
from stages.common.run import UserError

DEFAULT = split.SplitParams(
    sample=1.0, method="stratified", train=0.65, valid=0.1, test=0.25, stratify_column=None
)
LABELS = ("cat", "dog", "eel", "fox")


def with_params(**changes) -> split.SplitParams:
    return dataclasses.replace(DEFAULT, **changes)


def draw_items(count: int, first: int = 0, **columns) -> list[split.Item]:
    """Items of four classes in unequal shares, all of different content."""
    return [
        split.Item(
            id=f"id {number}",
            official_split="train",
            label=LABELS[number % 10 % 4],
            content=split.keyed_hash(1, f"pixels {number}"),
            columns=dict(columns),
        )
        for number in range(first, first + count)
    ]


def splits_of(items, parameters=DEFAULT, seed=0) -> dict[str, str]:
    """The split of every item by its id."""
    assigned = split.assign(items, split.group_items(items), parameters, seed)
    return {item.id: name for item, name in zip(items, assigned, strict=True)}


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
    splits = splits_of(items, with_params(stratify_column="kind"))
    for label, kind in itertools.product(LABELS, ("rare", "common")):
        names = [
            splits[item.id] for item in items if (item.label, item.columns["kind"]) == (label, kind)
        ]
        assert abs(names.count("test") - 0.25 * len(names)) <= 1, (label, kind)


def test_a_column_that_is_not_there_is_answered_with_those_that_are():
    with pytest.raises(UserError) as caught:
        splits_of(draw_items(40, wafer_type="mono"), with_params(stratify_column="wafer_typ"))
    assert str(caught.value) == (
        "params.yaml, split.stratify_column: expected null or one of ['wafer_type'], "
        "received 'wafer_typ'; did you mean 'wafer_type'?"
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
    *joined, other = split.group_items(items)
    assert len(set(joined)) == 1
    assert other != joined[0]


def test_images_without_a_group_stay_by_themselves():
    items = draw_items(10, group="")
    assert len(set(split.group_items(items))) == 10


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


def test_a_copy_of_an_official_test_image_goes_with_it():
    items = draw_items(200)
    tests = [dataclasses.replace(item, official_split="test") for item in items[:50]]
    copies = [dataclasses.replace(item, id=f"copy of {item.id}") for item in items[:20]]
    splits = splits_of(
        [*copies, *items[50:], *tests], with_params(train=0.9, valid=0.1, test="official")
    )
    assert {splits[copy.id] for copy in copies} == {"test"}


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


def test_a_sample_is_its_fraction_of_whole_groups_and_grows_with_it():
    groups = split.group_items(draw_items(4000))
    kept = {
        fraction: {group for group in groups if split.in_sample(group, fraction, seed=0)}
        for fraction in (1 / 16, 1 / 4, 1.0)
    }
    assert kept[1 / 16] < kept[1 / 4] < kept[1.0] == set(groups)
    # Four standard deviations of a binomial draw.
    assert abs(len(kept[1 / 4]) - 1000) < 110
    assert abs(len(kept[1 / 16]) - 250) < 62
    other = {group for group in groups if split.in_sample(group, 1 / 16, seed=1)}
    assert other != kept[1 / 16]


def test_a_sample_does_not_favour_a_split():
    items = draw_items(4000)
    groups = split.group_items(items)
    whole = split.assign(items, groups, DEFAULT, 0)
    sampled = Counter(
        name for name, group in zip(whole, groups, strict=True) if split.in_sample(group, 0.25, 0)
    )
    # Drawn by the same hash as the splits, a sample would hold test images alone.
    assert sampled["test"] / sampled.total() == pytest.approx(0.25, abs=0.06)


def test_metrics_count_images_classes_and_copies():
    first, second, third, fourth = draw_items(4)
    copy, other_copy = (dataclasses.replace(first, id=name) for name in ("copy", "other copy"))
    items = [first, second, third, fourth, copy, other_copy]
    assigned = ["train", "train", "valid", "test", "train", "train"]
    assert split.data_metrics(items, assigned) == {
        "images": 6,
        "classes": 4,
        "copies": 2,
        "splits": {
            "train": {"images": 4, "class": {"cat": 3, "dog": 1, "eel": 0, "fox": 0}},
            "valid": {"images": 1, "class": {"cat": 0, "dog": 0, "eel": 1, "fox": 0}},
            "test": {"images": 1, "class": {"cat": 0, "dog": 0, "eel": 0, "fox": 1}},
        },
    }


def test_samples_are_training_images_of_every_class():
    items = draw_items(400)
    assigned = list(splits_of(items).values())
    chosen = split.choose_samples(items, assigned, LABELS)
    assert Counter(chosen.values()) == dict.fromkeys(LABELS, split.SAMPLES_PER_CLASS)
    by_id = {item.id: (item.label, name) for item, name in zip(items, assigned, strict=True)}
    assert all(by_id[name] == (label, "train") for name, label in chosen.items())
