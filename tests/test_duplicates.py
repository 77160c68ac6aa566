"""Copies and near duplicates: none is missed, few are made up, and cost stays near linear."""

import io
import itertools
import time
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from stages.common import checks, duplicates

TEXTURED = 0xF0F0F0F0F0F0F0F0


def near(hashes, distance, aspects=None) -> list[set[int]]:
    """Groups of two or more, as sets of indices."""
    hashes = np.array(hashes, np.uint64)
    aspects = np.ones(len(hashes)) if aspects is None else np.array(aspects)
    labels = duplicates.near_groups(hashes, aspects, distance)
    groups = [set(np.flatnonzero(labels == label).tolist()) for label in np.unique(labels)]
    return [group for group in groups if len(group) > 1]


def flip(value: int, *bits: int) -> int:
    for bit in bits:
        value ^= 1 << bit
    return value


def contents_of(*texts: str) -> np.ndarray:
    return np.array([bytes(31) + text.encode() for text in texts])


def find(texts, hashes, distance, aspects=None) -> duplicates.Duplicates:
    aspects = np.ones(len(hashes)) if aspects is None else np.array(aspects)
    return duplicates.find(contents_of(*texts), np.array(hashes, np.uint64), aspects, distance)


@pytest.mark.parametrize("distance", range(9))
def test_pairs_are_found_up_to_the_distance_and_not_beyond(distance):
    random = np.random.default_rng(distance)
    for _ in range(20):
        bits = random.permutation(64).tolist()
        inside, outside = flip(TEXTURED, *bits[:distance]), flip(TEXTURED, *bits[: distance + 1])
        assert near([TEXTURED, inside], distance) == [{0, 1}]
        assert near([TEXTURED, outside], distance) == []


@pytest.mark.parametrize("distance", [1, 2, 5, 8])
@pytest.mark.parametrize("longest_run", [2, 500])
def test_same_pairs_as_comparing_all_with_all(monkeypatch, distance, longest_run):
    # Runs that are dealt to bands again must lose no pair.
    monkeypatch.setattr(duplicates, "LONGEST_RUN", longest_run)
    random = np.random.default_rng(0)
    hashes = np.full(300, TEXTURED, np.uint64)
    for bit in random.permutation(64)[:20]:
        hashes ^= (random.random(300) < 0.2).astype(np.uint64) << np.uint64(bit)
    hashes = np.unique(hashes)
    found = {
        tuple(sorted(pair))
        for first, second in duplicates.near_pairs(hashes, distance)
        for pair in zip(first.tolist(), second.tolist(), strict=True)
    }
    expected = {
        (first, second)
        for first, second in itertools.combinations(range(len(hashes)), 2)
        if int(hashes[first] ^ hashes[second]).bit_count() <= distance
    }
    assert found == expected
    assert len(expected) > 10


def test_same_groups_as_comparing_all_with_all_where_hashes_are_equal_and_shapes_differ():
    """A picture may be like the last of those with one hash and unlike the first."""
    for seed in range(40):
        random = np.random.default_rng(seed)
        hashes = np.array([TEXTURED, flip(TEXTURED, 1), flip(TEXTURED, 1, 9)], np.uint64)
        hashes = hashes[random.integers(0, 3, 12)]
        aspects = random.uniform(1, 1.35, 12)
        joined = [{number} for number in range(12)]
        for first, second in itertools.combinations(range(12), 2):
            shapes = sorted(aspects[[first, second]])
            alike = shapes[1] <= (1 + duplicates.ASPECT_TOLERANCE) * shapes[0]
            if alike and int(hashes[first] ^ hashes[second]).bit_count() <= 1:
                merged = joined[first] | joined[second]
                for member in merged:
                    joined[member] = merged
        expected = {tuple(sorted(group)) for group in joined if len(group) > 1}
        assert {tuple(sorted(group)) for group in near(hashes, 1, aspects)} == expected, seed


def test_being_near_is_passed_on():
    second, third = flip(TEXTURED, 1, 2), flip(TEXTURED, 1, 2, 3, 4)
    far = flip(TEXTURED, *range(10, 20))
    assert near([third, far, TEXTURED, second], 2) == [{0, 2, 3}]
    assert near([third, far, TEXTURED], 2) == []


def test_pairs_of_other_shapes_are_none():
    assert near([TEXTURED, TEXTURED], 2, aspects=[1.5, 1.0]) == []
    assert near([TEXTURED, flip(TEXTURED, 1)], 2, aspects=[1.5, 1.0]) == []
    # 300 by 200 pixels, and the same made 31 pixels wide.
    assert near([TEXTURED, flip(TEXTURED, 1)], 2, aspects=[300 / 200, 31 / 21]) == [{0, 1}]
    assert near([TEXTURED] * 4, 0, aspects=[1.5, 1.0, 1.49, 1.01]) == [{0, 2}, {1, 3}]


def test_flat_pictures_are_not_alike():
    def hash_of(picture: Image.Image) -> int:
        file = io.BytesIO()
        picture.convert("RGB").save(file, "PNG")
        return int(checks.inspect(file.getvalue(), 10**8)["perceptual"], 16)

    slope = Image.linear_gradient("L")
    pictures = [
        *(Image.new("RGB", (64, 64), color) for color in ("black", "white", "red", "red")),
        *(slope, slope.rotate(90), slope.rotate(180), Image.eval(slope, lambda grey: grey // 2)),
    ]
    assert near([hash_of(picture) for picture in pictures], 8) == []
    # With texture, half the brightness is the same picture still.
    spots = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    bright = Image.fromarray(spots).resize((64, 64), Image.Resampling.BICUBIC)
    assert near([hash_of(bright), hash_of(Image.eval(bright, lambda grey: grey // 2))], 2)


def test_exact_copies_are_found_whatever_they_show():
    flat = 1 << 63
    found = find(["b", "a", "b", "c"], [flat] * 4, 2)
    assert found.alike.tolist()[0] == found.alike.tolist()[2]
    assert len(set(found.alike.tolist())) == 3
    assert duplicates.counts(found) == {
        "exact_groups": 1,
        "exact_images": 1,
        "near_groups": 0,
        "near_images": 0,
    }


def test_without_a_distance_only_exact_copies_count():
    texts, hashes = ["a", "a", "b"], [TEXTURED] * 3
    assert find(texts, hashes, None).alike.tolist() == [0, 0, 1]
    assert find(texts, hashes, 0).alike.tolist() == [0, 0, 0]


def test_copies_and_near_duplicates_are_counted_apart():
    # Three of content a, two of b which is near a, c near a; d twice; e alone.
    hashes = [*[TEXTURED] * 3, *[flip(TEXTURED, 1)] * 2, flip(TEXTURED, 5), 7, 7, 7]
    found = find(list("aaabbcdde"), hashes, 2)
    assert duplicates.counts(found) == {
        "exact_groups": 3,
        "exact_images": 2 + 1 + 1,
        "near_groups": 1,
        "near_images": 2,
    }
    groups = [set(group.tolist()) for group in duplicates.members(found)]
    assert groups == [{0, 1, 2, 3, 4, 5}, {6, 7}]


def test_conflicts_are_contents_of_several_labels():
    found = find(list("aabbccd"), [0] * 7, None)
    labels = np.array([0, 1, 1, 1, 2, 0, 0])
    assert [group.tolist() for group in duplicates.conflicts(found.copy_of, labels)] == [
        [0, 1],
        [4, 5],
    ]
    assert duplicates.conflicts(found.copy_of, np.zeros(7, int)) == []


def test_near_conflicts_are_near_duplicates_of_several_labels():
    # a and b are alike, and so are c and d; e has two labels by itself.
    hashes = [TEXTURED, flip(TEXTURED, 1), *[flip(TEXTURED, *range(20))] * 2, 7, 7]
    found = find(list("abcdee"), hashes, 2)
    labels = np.array([0, 1, 2, 2, 0, 1])
    assert [group.tolist() for group in duplicates.near_conflicts(found, labels)] == [[0, 1]]
    assert duplicates.near_conflicts(found, np.zeros(6, int)) == []


def test_groups_are_named_by_column_or_else_by_the_first_content():
    found = find(list("dcba"), [TEXTURED, flip(TEXTURED, 3), 0, 0], 2)
    contents = contents_of(*"dcba")
    alone = duplicates.join(found, None)
    names = [alone.names[group] for group in alone.of_image]
    assert names == [f"content {contents[n].hex()}" for n in (1, 1, 2, 3)]
    joined = duplicates.join(found, ["", "z", "y", "z"])
    assert [joined.names[group] for group in joined.of_image] == [
        "column z",
        "column z",
        "column y",
        "column z",
    ]


def test_cost_is_near_linear_and_memory_bounded():
    """Random hashes, one hash for all of them, and hashes that agree on half of their bits."""
    count = 50_000
    random = np.random.default_rng(0)
    spread = random.integers(0, 2**64, count, dtype=np.uint64)
    sets = {
        "random": spread,
        "equal": np.full(count, TEXTURED, np.uint64),
        "half": np.uint64(TEXTURED) ^ (spread & np.uint64(0xFFFFFFFF)),
    }
    for name, hashes in sets.items():
        tracemalloc.start()
        started = time.process_time()
        duplicates.near_groups(hashes, np.ones(count), 4)
        seconds = time.process_time() - started
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        # All pairs would be 1.25e9, some twenty seconds and ten gigabytes.
        assert seconds < 8, name
        assert peak < 60e6, name
