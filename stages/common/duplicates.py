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
(a solar cell under two exposures, a car in another tint; 103 of 105 pairs of CIFAR-10); some
of the cells are another one of the same grain, whole where the first is cracked. At 4,
CIFAR-10 is still right in nine pairs of ten, but solar cells of one make chain into groups that
are not one cell. At 6 and 8, chains swallow a quarter of the cells, and birds meet aeroplanes.
Hence the default of 2; 4 suits varied photographs. Of copies at half the size, or as JPEG of
quality 75, a distance of 2 finds 95 to 100 %, and 4 finds all; of copies that lack a border of 5 %,
2 finds a twentieth at best, and 4 a quarter. For comparison: 0.4 % of these CIFAR-10 images have a
near duplicate among the others at distance 2, and 0.9 % at 4; by the features of a network and the
judgement of people, 3.3 % of the official test images have one among the training images (Barz
and Denzler 2020, "Do We Train on Test Data?", ciFAIR).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

DIGEST_BYTES = 32  # of SHA-256
BITS = 64  # of a perceptual hash
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

    contents: Sequence[bytes]  # (images,), digests of 32 bytes
    first: np.ndarray  # (different contents,), int32, the first image that has each
    copy_of: np.ndarray  # (images,), int32, number of the content
    alike: np.ndarray  # (images,), int32, number of the group of exact copies and near duplicates


@dataclass(frozen=True)
class GroupNames(Sequence[str]):
    """The names of groups, made when they are asked for.

    A million of them at once would take as much memory as all else that is known of the images.
    """

    contents: Sequence[bytes]  # (images,), digests
    image_of: np.ndarray  # (groups,), int32, the image that gives its content
    values: Sequence[str] = ()  # of a column
    value_of: np.ndarray | None = None  # (groups,), index into `values`, or above them: content

    def __len__(self) -> int:
        return len(self.image_of)

    def __getitem__(self, group: int) -> str:
        if self.value_of is not None and self.value_of[group] < len(self.values):
            return f"column {self.values[self.value_of[group]]}"
        digest = self.contents[self.image_of[group]]
        # NumPy leaves out null bytes at the end.
        return f"content {digest.ljust(DIGEST_BYTES, bytes(1)).hex()}"

    def where(self, kept: np.ndarray) -> "GroupNames":
        """Those of the groups for which `kept` (groups,), bool, is true."""
        value_of = None if self.value_of is None else self.value_of[kept]
        return GroupNames(self.contents, self.image_of[kept], self.values, value_of)


@dataclass(frozen=True)
class Groups:
    """What may not be parted: the number of each image's group, and each group's lasting name."""

    of_image: np.ndarray  # (images,), int32, index into `names`
    names: GroupNames

    def where(self, kept: np.ndarray) -> "Groups":
        """Only those groups, and their images, for which `kept` (groups,), bool, is true."""
        number = np.cumsum(kept, dtype=np.int32) - 1
        of_image = number[self.of_image[kept[self.of_image]]]
        return Groups(of_image, self.names.where(kept))


def find(
    contents: np.ndarray, perceptual: np.ndarray, aspects: np.ndarray, distance: int | None
) -> Duplicates:
    """Exact copies, and near duplicates up to `distance` bits (None: exact copies only).

    Args:
        contents: (images,), digests, S32.
        perceptual: (images,), uint64.
        aspects: (images,), width over height.
        distance: differing bits.
    """
    first, copy_of = _number_contents(contents)
    if distance is None:
        return Duplicates(contents, first, copy_of, copy_of)
    near = near_groups(perceptual[first], aspects[first], distance)
    return Duplicates(contents, first, copy_of, near[copy_of])


def _number_contents(contents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`first` and `copy_of` of Duplicates: what numpy.unique does, in a third of its memory."""
    # As big-endian numbers the first bytes sort as the digests do, and tell nearly all apart.
    starts = contents.view(">u8")[:: contents.itemsize // 8].astype(np.uint64)
    order = np.argsort(starts, kind="stable").astype(np.int32)
    tied = np.flatnonzero(starts[order[1:]] == starts[order[:-1]])
    is_first = np.ones(len(order), bool)
    is_first[tied + 1] = contents[order[tied + 1]] != contents[order[tied]]
    if is_first[tied + 1].any():  # two digests of one start, which no data set is known to have
        order = np.argsort(contents, kind="stable")
        is_first[1:] = contents[order[1:]] != contents[order[:-1]]
    copy_of = np.empty(len(order), np.int32)
    copy_of[order] = np.cumsum(is_first, dtype=np.int32) - 1
    return order[is_first], copy_of


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
    image_of = duplicates.first[first_content]
    values = sorted(set(() if column is None else column) - {""})
    if not values:
        return Groups(alike, GroupNames(duplicates.contents, image_of))
    number = {value: index for index, value in enumerate(values)}
    codes = np.fromiter((number.get(value, -1) for value in column), np.int32, len(alike))
    has_value = codes >= 0
    edges = (alike[has_value], count + codes[has_value])
    joined = _merge(np.arange(count + len(values), dtype=np.int32), [edges])
    groups = int(joined.max()) + 1
    first_value = _smallest(joined[count:], np.arange(len(values), dtype=np.int32), groups)
    # A group that no column joins to others is one of those that look alike.
    first_alike = _smallest(joined[:count], np.arange(count, dtype=np.int32), groups)
    names = GroupNames(duplicates.contents, image_of[first_alike], values, first_value)
    return Groups(joined[alike], names)


def members(duplicates: Duplicates) -> Iterator[np.ndarray]:
    """The indices of the images of each group of two or more alike, the largest group first."""
    sizes = np.bincount(duplicates.alike)
    listed = np.flatnonzero(sizes[duplicates.alike] > 1)
    groups, contents = duplicates.alike[listed], duplicates.copy_of[listed]
    order = np.lexsort((contents, groups))
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    lengths = np.diff(starts, append=len(order))
    # Of equal size, the one with the first content in the alphabet: file order has no say.
    for group in np.lexsort((contents[order[starts]], -lengths)):
        yield listed[order[starts[group] : starts[group] + lengths[group]]]


def conflicts(groups: np.ndarray, labels: np.ndarray) -> list[np.ndarray]:
    """The indices of the images of each group that has several labels.

    Args:
        groups: (images,), number of each one's group: `copy_of` or `alike` of Duplicates.
        labels: (images,), numbers from 0.
    """
    classes = int(labels.max(initial=0)) + 1
    listed = np.flatnonzero(np.bincount(groups)[groups] > 1)
    pairs = np.unique(groups[listed].astype(np.int64) * classes + labels[listed])
    group, different = np.unique(pairs // classes, return_counts=True)
    order = listed[np.isin(groups[listed], group[different > 1])]
    order = order[np.argsort(groups[order], kind="stable")]
    starts = np.flatnonzero(np.diff(groups[order]))
    return np.split(order, starts + 1) if len(order) else []


def near_conflicts(duplicates: Duplicates, labels: np.ndarray) -> list[np.ndarray]:
    """The indices of the images of each group of near duplicates that has several labels.

    All may be right, where the images differ in what the labels are about, as by a crack.

    Args:
        duplicates: of the images.
        labels: (images,), numbers from 0.
    """
    groups = conflicts(duplicates.alike, labels)
    return [group for group in groups if np.ptp(duplicates.copy_of[group])]


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
    """The number (0, 1, …) of each image's group of near duplicates, (images,), int32.

    Args:
        perceptual: (images,), uint64.
        aspects: (images,), width over height.
        distance: differing bits that still count as near.
    """
    signs = np.bitwise_count(perceptual)
    textured = np.flatnonzero((signs >= LEAST_SIGNS) & (signs <= BITS - LEAST_SIGNS))
    if len(textured) == 0:
        return np.arange(len(perceptual), dtype=np.int32)
    # Equal hashes are chained along their aspect ratios, which costs a sort however many they are;
    # from here on the first of each chain stands for it, with all the shapes that it has: they lie
    # so close that a shape between the lowest and the highest is like one of them.
    order = textured[np.lexsort((aspects[textured], perceptual[textured]))].astype(np.int32)
    del signs, textured
    follows = (perceptual[order[1:]] == perceptual[order[:-1]]) & _same_shape(
        aspects[order[1:]], aspects[order[:-1]]
    )
    starts = np.flatnonzero(np.concatenate([[True], ~follows]))
    heads = order[starts]
    lowest, highest = aspects[heads], aspects[order[np.append(starts[1:], len(order)) - 1]]
    followers = np.flatnonzero(follows) + 1
    # Of each, the last head before it.
    chained = order[followers], heads[followers - np.arange(1, len(followers) + 1)]
    del order, follows, followers, starts

    def edges() -> Iterator[Pairs]:
        yield chained
        for first, second in near_pairs(perceptual[heads], distance):
            shaped = _same_shape(
                np.maximum(lowest[first], lowest[second]),
                np.minimum(highest[first], highest[second]),
            )
            yield heads[first[shaped]], heads[second[shaped]]

    return _merge(np.arange(len(perceptual), dtype=np.int32), edges())


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
    yield from _near_pairs_among(hashes, np.arange(len(hashes), dtype=np.int32), distance)


def _near_pairs_among(hashes, indices, distance: int) -> Iterator[Pairs]:
    bands = _deal_bits(hashes[indices], distance + 1)
    comparisons = sum(_comparisons(hashes[indices] & band) for band in bands)
    if len(indices) > LONGEST_RUN and 2 * comparisons > len(indices) ** 2:
        bands = [np.uint64(0)]  # no band would help: one run of all
    for band in bands:
        keys = hashes[indices] & band
        order = np.argsort(keys, kind="stable").astype(np.int32)
        starts, ends = _runs(keys[order])
        ordered = indices[order]
        del keys, order
        long = (ends - starts > LONGEST_RUN) & (len(bands) > 1)
        for start, end in zip(starts[long], ends[long], strict=True):
            yield from _near_pairs_among(hashes, ordered[start:end], distance)
        yield from _compare_runs(hashes, ordered, starts[~long], ends[~long], distance)


def _comparisons(keys: np.ndarray) -> int:
    """The sum of the squares of the lengths of all runs of equal keys."""
    keys.sort()
    starts, ends = _runs(keys)
    lengths = ends - starts
    return int((lengths**2).sum()) + len(keys) - int(lengths.sum())


def _runs(keys: np.ndarray) -> Pairs:
    """Where runs of two equal keys or more begin and end, of sorted keys."""
    same = keys[1:] == keys[:-1]
    edges = np.diff(same.view(np.int8), prepend=np.int8(0), append=np.int8(0))
    return np.flatnonzero(edges == 1), np.flatnonzero(edges == -1) + 1


def _deal_bits(hashes: np.ndarray, count: int) -> list[np.uint64]:
    """Masks of `count` bands of all bits; those that tell most hashes apart are dealt evenly."""
    ones = [np.count_nonzero(hashes & (np.uint64(1) << np.uint64(bit))) for bit in range(BITS)]
    most_telling_first = np.argsort(np.abs(np.array(ones) - len(hashes) / 2), kind="stable")
    return [
        np.bitwise_or.reduce(np.uint64(1) << most_telling_first[start::count].astype(np.uint64))
        for start in range(count)
    ]


def _compare_runs(hashes, ordered, starts, ends, distance: int) -> Iterator[Pairs]:
    """Near pairs within runs of `ordered`: every member with the next, the next but one, …"""
    lengths = ends - starts
    end_of = np.repeat(ends, lengths)
    members = np.arange(len(end_of)) + np.repeat(starts - (np.cumsum(lengths) - lengths), lengths)
    offset = 0
    while len(members):
        offset += 1
        inside = members + offset < end_of
        members, end_of = members[inside], end_of[inside]
        first, second = ordered[members], ordered[members + offset]
        near = np.bitwise_count(hashes[first] ^ hashes[second]) <= distance
        if near.any():
            yield first[near], second[near]


def _same_shape(wider: np.ndarray, narrower: np.ndarray) -> np.ndarray:
    """Whether aspect ratios are alike, also where the first one is the smaller one."""
    return wider <= (1 + ASPECT_TOLERANCE) * narrower


def _smallest(groups: np.ndarray, values: np.ndarray, count: int) -> np.ndarray:
    """The smallest value in each group, (count,); the largest integer where a group has none."""
    smallest = np.full(count, np.iinfo(values.dtype).max, values.dtype)
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
    used = joined[labels]
    there = np.zeros(len(labels), bool)
    there[used] = True
    return (np.cumsum(there, dtype=np.int32) - 1)[used]
