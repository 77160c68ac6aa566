"""Which images are the same, which look alike, and which belong together for either reason.

Exact copies have the same content. Near duplicates have perceptual hashes of which at most
`distance` of the 64 bits differ (the signs of the lowest frequencies of the grey picture, as
`imagehash.phash` makes them; half of them are ones, so that distances are even). Being alike is
passed on: if A is near B and B near C, all three are one group.

Two rules keep out pairs that only seem near: their aspect ratios must agree, and a picture that
is flat, or changes in one direction only, has no hash to speak of (`LEAST_SIGNS`).

Measured, groups / images beyond the first of each / images in the largest group:

    distance   2,624 solar cells     50,000 training images of CIFAR-10 (as JPEG)
        0        24 /  25 /   3         14 /   14 /  2
        2       103 / 153 /   8        102 /  104 /  3
        4       175 / 403 /  23        218 /  253 / 11
        6       184 / 781 / 384        393 /  507 / 23
        8       182 / 1091 / 661       706 / 1022 / 61

Looked at as pictures: at 2, nearly all pairs of both sets are one photograph or one object twice
(a solar cell under two exposures, a car in another tint; 103 of 105 pairs of CIFAR-10). At 4,
CIFAR-10 is still right in nine pairs of ten, but solar cells of one make chain into groups that
are not one cell. At 6 and 8, chains swallow a quarter of the cells, and birds meet aeroplanes.
Hence the default of 2; 4 suits varied photographs. Of copies at half the size, or as JPEG of
quality 75, a distance of 2 finds 95 to 100 %, and 4 finds all; of copies that lack a border of 5 %,
2 finds a twentieth at best, and 4 a quarter. For comparison: 0.4 % of these CIFAR-10 images have a
near duplicate among the others at distance 2, and 0.9 % at 4; by the features of a network and the
judgement of people, 3.3 % of the official test images have one among the training images (Barz
and Denzler 2020, "Do We Train on Test Data?", ciFAIR).
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

BITS = 64
# A picture without texture has nearly no frequency above (or below) the median: a black frame has
# none, a slope of grey up to 15. Hashes of such pictures say nothing about what they show.
LEAST_SIGNS = 16
ASPECT_TOLERANCE = 0.05  # resizing rounds to whole pixels: 5 % of a side of 20
LONGEST_RUN = 500  # hashes of one band that are compared each with each
MOST_PENDING_PAIRS = 2_000_000

Pairs = tuple[np.ndarray, np.ndarray]  # two arrays (pairs,) of indices


@dataclass(frozen=True)
class Duplicates:
    """What looks alike. Contents are numbered from 0 in the order of the alphabet."""

    contents: np.ndarray  # (images,), hexadecimal digests as bytes
    first: np.ndarray  # (different contents,), int64, the first image that has each
    copy_of: np.ndarray  # (images,), int64, number of the content
    alike: np.ndarray  # (images,), int64, number of the group of exact copies and near duplicates


class ContentNames(Sequence):
    """The names of groups that no column joins, made when they are asked for.

    A million of them at once would take as much memory as all else that is known of the images.
    """

    def __init__(self, contents: np.ndarray, image_of: np.ndarray):
        """Takes the digest of each image, and an image of each group."""
        self._contents, self._image_of = contents, image_of

    def __len__(self) -> int:
        return len(self._image_of)

    def __getitem__(self, group: int) -> str:
        return f"content {self._contents[self._image_of[group]].decode()}"


@dataclass(frozen=True)
class Groups:
    """What may not be parted: the number of each image's group, and each group's lasting name."""

    of_image: np.ndarray  # (images,), int64, index into `names`
    names: Sequence[str]

    def where(self, kept: np.ndarray) -> "Groups":
        """Only those groups, and their images, for which `kept` (groups,), bool, is true."""
        number = np.cumsum(kept) - 1
        of_image = number[self.of_image[kept[self.of_image]]]
        return Groups(of_image, list(itertools.compress(self.names, kept)))


def find(
    contents: np.ndarray, perceptual: np.ndarray, aspects: np.ndarray, distance: int | None
) -> Duplicates:
    """Exact copies, and near duplicates up to `distance` bits (None: exact copies only).

    Args:
        contents: (images,), hexadecimal digests as bytes.
        perceptual: (images,), uint64.
        aspects: (images,), width over height.
        distance: differing bits.
    """
    _, first, copy_of = np.unique(contents, return_index=True, return_inverse=True)
    if distance is None:
        return Duplicates(contents, first, copy_of, copy_of)
    near = near_groups(perceptual[first], aspects[first], distance)
    return Duplicates(contents, first, copy_of, near[copy_of])


def join(duplicates: Duplicates, column: Sequence[str] | None) -> Groups:
    """Groups of images that look alike or have the same value of a column `group`.

    Groups that share an image are joined, so that a copy under another patient's name pulls both
    patients into one split. A group bears the first of its columns' values in the alphabet, or else
    the first of its contents: another copy, or another image of a known patient, leaves the name
    as it was, and so the split.

    Args:
        duplicates: of the images.
        column: (images,), empty where an image has no group.
    """
    alike = duplicates.alike
    count = int(alike.max(initial=-1)) + 1
    first_content = _smallest(alike, duplicates.copy_of, count)
    of_contents = ContentNames(duplicates.contents, duplicates.first[first_content])
    values = sorted(set(() if column is None else column) - {""})
    if not values:
        return Groups(alike, of_contents)
    number = {value: index for index, value in enumerate(values)}
    codes = np.array([number.get(value, -1) for value in column])
    has_value = codes >= 0
    edges = (alike[has_value], count + codes[has_value])
    joined = _merge(np.arange(count + len(values)), [edges])
    groups = int(joined.max()) + 1
    first_value = _smallest(joined[count:], np.arange(len(values)), groups)
    # A group that no column joins to others is one of those that look alike.
    first_alike = _smallest(joined[:count], np.arange(count), groups)
    names = [
        f"column {values[value]}" if value < len(values) else of_contents[alike_group]
        for value, alike_group in zip(first_value, first_alike, strict=True)
    ]
    return Groups(joined[alike], names)


def members(duplicates: Duplicates) -> Iterator[np.ndarray]:
    """The indices of the images of each group of two or more alike, the largest group first."""
    sizes = np.bincount(duplicates.alike)
    order = np.lexsort((duplicates.copy_of, duplicates.alike))
    ends = np.cumsum(sizes)
    # Of equal size, the one with the first content in the alphabet: file order has no say.
    first = _smallest(duplicates.alike, duplicates.copy_of, len(sizes))
    for group in np.lexsort((first, -sizes)):
        if sizes[group] < 2:
            return
        yield order[ends[group] - sizes[group] : ends[group]]


def conflicts(duplicates: Duplicates, labels: np.ndarray) -> list[np.ndarray]:
    """The indices of the images of each content that has several labels.

    Args:
        duplicates: of the images.
        labels: (images,), numbers from 0.
    """
    classes = int(labels.max(initial=0)) + 1
    contents = np.unique(duplicates.copy_of * classes + labels) // classes
    content, different = np.unique(contents, return_counts=True)
    order = np.flatnonzero(np.isin(duplicates.copy_of, content[different > 1]))
    order = order[np.argsort(duplicates.copy_of[order], kind="stable")]
    starts = np.flatnonzero(np.diff(duplicates.copy_of[order]))
    return np.split(order, starts + 1) if len(order) else []


def counts(duplicates: Duplicates) -> dict[str, int]:
    """How many groups of exact copies and of near duplicates, and images beyond their first.

    A near duplicate is another content, so exact copies do not count as near, too.
    """
    exact = np.bincount(duplicates.copy_of)
    group_of_content = np.empty(len(duplicates.first), np.int64)
    group_of_content[duplicates.copy_of] = duplicates.alike
    near = np.bincount(group_of_content)
    return {
        "exact_groups": int((exact > 1).sum()),
        "exact_images": int((exact - 1).sum()),
        "near_groups": int((near > 1).sum()),
        "near_images": int((near - 1).sum()),
    }


def near_groups(perceptual: np.ndarray, aspects: np.ndarray, distance: int) -> np.ndarray:
    """The number (0, 1, …) of each image's group of near duplicates, (images,), int64.

    Args:
        perceptual: (images,), uint64.
        aspects: (images,), width over height.
        distance: differing bits that still count as near.
    """
    signs = np.bitwise_count(perceptual)
    textured = np.flatnonzero((signs >= LEAST_SIGNS) & (signs <= BITS - LEAST_SIGNS))
    if len(textured) == 0:
        return np.arange(len(perceptual))
    # Equal hashes are chained along their aspect ratios, which costs a sort however many they are;
    # the first of each chain stands for it from here on.
    order = textured[np.lexsort((aspects[textured], perceptual[textured]))]
    follows = (perceptual[order[1:]] == perceptual[order[:-1]]) & _same_shape(
        aspects[order[1:]], aspects[order[:-1]]
    )
    chain = np.concatenate([[0], np.cumsum(~follows)])
    heads = order[np.flatnonzero(np.concatenate([[True], ~follows]))]

    def edges() -> Iterator[Pairs]:
        yield order, heads[chain]
        for first, second in near_pairs(perceptual[heads], distance):
            shaped = _same_shape(aspects[heads[first]], aspects[heads[second]])
            yield heads[first[shaped]], heads[second[shaped]]

    return _merge(np.arange(len(perceptual)), edges())


def near_pairs(hashes: np.ndarray, distance: int) -> Iterator[Pairs]:
    """Chunks of pairs of indices whose hashes differ in at most `distance` bits.

    With the bits dealt to distance + 1 bands, such a pair agrees on a whole band (pigeonhole), so
    only hashes that share a band are compared. Where many share one, their other bits are dealt to
    bands in turn, as long as that halves the work. A pair may come more than once. On one core,
    a million random hashes take 1 s at distance 2, 7 s at 4, 9 s at 6, and 32 s at 8.

    Args:
        hashes: (images,), uint64; nearly all different.
        distance: differing bits.
    """
    yield from _near_pairs_among(hashes, np.arange(len(hashes)), distance)


def _near_pairs_among(hashes, indices, distance: int) -> Iterator[Pairs]:
    bands = _deal_bits(hashes[indices], distance + 1)
    runs = (np.unique(hashes[indices] & band, return_counts=True)[1] for band in bands)
    comparisons = sum(int((lengths**2).sum()) for lengths in runs)
    if len(indices) > LONGEST_RUN and 2 * comparisons > len(indices) ** 2:
        bands = [np.uint64(0)]  # no band would help: one run of all
    for band in bands:
        keys = hashes[indices] & band
        order = np.argsort(keys, kind="stable")
        starts = np.flatnonzero(np.diff(keys[order], prepend=~keys[order[:1]]))
        ends = np.append(starts[1:], len(order))
        lengths = ends - starts
        long = (lengths > LONGEST_RUN) & (len(bands) > 1)
        for start, end in zip(starts[long], ends[long], strict=True):
            yield from _near_pairs_among(hashes, indices[order[start:end]], distance)
        ends[long] = starts[long]  # done: nothing is left to compare in them
        yield from _compare_runs(hashes, indices[order], ends, lengths, distance)


def _deal_bits(hashes: np.ndarray, count: int) -> list[np.uint64]:
    """Masks of `count` bands of all bits; those that tell most hashes apart are dealt evenly."""
    ones = [np.count_nonzero(hashes & (np.uint64(1) << np.uint64(bit))) for bit in range(BITS)]
    most_telling_first = np.argsort(np.abs(np.array(ones) - len(hashes) / 2), kind="stable")
    return [
        np.bitwise_or.reduce(np.uint64(1) << most_telling_first[start::count].astype(np.uint64))
        for start in range(count)
    ]


def _compare_runs(hashes, ordered, ends, lengths, distance: int) -> Iterator[Pairs]:
    """Near pairs within runs of `ordered`: every member with the next, the next but one, …"""
    end_of = np.repeat(ends, lengths)
    members = np.arange(len(ordered))
    offset = 0
    while len(members):
        offset += 1
        members = members[members + offset < end_of[members]]
        first, second = ordered[members], ordered[members + offset]
        near = np.bitwise_count(hashes[first] ^ hashes[second]) <= distance
        if near.any():
            yield first[near], second[near]


def _same_shape(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.maximum(first, second) <= (1 + ASPECT_TOLERANCE) * np.minimum(first, second)


def _smallest(groups: np.ndarray, values: np.ndarray, count: int) -> np.ndarray:
    """The smallest value in each group, (count,); the largest integer where a group has none."""
    smallest = np.full(count, np.iinfo(np.int64).max)
    np.minimum.at(smallest, groups, values)
    return smallest


def _merge(labels: np.ndarray, pairs: Iterable[Pairs]) -> np.ndarray:
    """Numbers of the groups into which pairs of indices join `labels`, (len(labels),), from 0.

    Pairs are worked in whenever there are many, so that memory is bounded however many come.
    """
    pending: list[Pairs] = []
    count = 0
    for pair in pairs:
        pending.append(pair)
        count += len(pair[0])
        if count > MOST_PENDING_PAIRS:
            labels, pending, count = _connect(labels, pending), [], 0
    return _connect(labels, pending)


def _connect(labels: np.ndarray, pairs: list[Pairs]) -> np.ndarray:
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    if not pairs:
        return labels
    first = labels[np.concatenate([first for first, _ in pairs])]
    second = labels[np.concatenate([second for _, second in pairs])]
    edges = coo_array((np.ones(len(first), bool), (first, second)), shape=(len(labels),) * 2)
    _, joined = connected_components(edges, directed=False)
    used = joined.astype(np.int64)[labels]
    return np.unique(used, return_inverse=True)[1]
