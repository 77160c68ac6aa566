"""Which group of images goes to which split: pure functions of numbers and names.

A group's place in the queue is a hash of (seed, its name), so neither the order of the files nor
images that are added later have a say in it.
"""

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np

from stages.common.splits import SPLIT_NAMES

TRAIN, VALID, TEST = (SPLIT_NAMES.index(name) for name in ("train", "valid", "test"))
UNDECIDED = -1


def keyed_hash(seed: int, group: str) -> str:
    """A number in hexadecimal that depends on the seed and the group's name alone."""
    return hashlib.sha256(f"{seed} {group}".encode()).hexdigest()


def places(seed: int, names: Iterable[str], count: int) -> np.ndarray:
    """The groups' places in the queue, (count,), uint64, evenly spread over all 64 bits."""
    hashes = (int(keyed_hash(seed, name)[:16], 16) for name in names)
    return np.fromiter(hashes, np.uint64, count)


def in_sample(names: Sequence[str], fraction: float, seed: int) -> np.ndarray:
    """Which groups are among the given fraction of all, (groups,), bool; a larger one keeps them.

    The hash is another one than that of the splits, of which a sample would else favour one.
    """
    drawn = places(seed, (f"sample {name}" for name in names), len(names))
    return drawn < fraction * 2**64


def draw(
    queue: np.ndarray,
    strata: np.ndarray,
    sizes: np.ndarray,
    *,
    test: float,
    valid: float,
    folds: int | None,
    fold: int,
) -> np.ndarray:
    """The split of each group, (groups,), an index into SPLIT_NAMES: each stratum by the fractions.

    In every stratum, whole groups are taken in the order of the queue: test first, then valid, and
    train the rest: exact sizes where groups are single images, else as `_Divider` says. With
    folds, the queue is cut into that many equal parts: one of them is test, and valid begins with
    the next one, so fold 0 of 4 is what `test` of 0.25 gives.

    Exact sizes have a price: a tenth more images moves some of the others; measured with four
    strata, 1.5 % of 1,000, 0.8 % of 2,624 and 0.5 % of 10,000.

    Args:
        queue: (groups,), what to order by.
        strata: (groups,), number of the stratum.
        sizes: (groups,), images.
        test: fraction of the images; unused with folds.
        valid: fraction of the images.
        folds: number of parts, or None.
        fold: the part that is test, from 0.
    """
    shares = [test, 1 - test] if folds is None else [1 / folds] * folds
    tests, valids = _Divider(shares), _Divider([valid / (1 - shares[0]), 1.0])
    result = np.full(len(queue), TRAIN, np.int8)
    order = np.lexsort((queue, strata)).astype(np.int32)
    ends = np.flatnonzero(np.diff(strata[order], append=-1)) + 1
    for stratum in np.split(order, ends[:-1]):
        part = (tests.cut(sizes[stratum]) - fold) % len(shares)
        result[stratum[part == 0]] = TEST
        others = stratum[np.argsort(part, kind="stable")][np.count_nonzero(part == 0) :]
        result[others[valids.cut(sizes[others]) == 0]] = VALID
    return result


def draw_hashed(
    queue: np.ndarray, *, test: float, valid: float, folds: int | None, fold: int
) -> np.ndarray:
    """The split of each group, (groups,), by its own hash alone; sizes are right on average only.

    The arguments are those of `draw`; `queue` must be evenly spread over 64 bits.
    """
    if folds is not None:
        test = 1 / folds
    place = (queue / 2**64 - test * fold) % 1
    return np.where(place < test, TEST, np.where(place < test + valid, VALID, TRAIN))


class _Divider:
    """Cuts one stratum after another into parts of fixed shares, groups whole.

    Rounding the running total, not each stratum, keeps the parts' sizes exact however many strata
    there are: groups of one image give exact totals. What larger groups take too much or too
    little of one stratum is made good in the next ones, of each only so far as it keeps about
    half of its own share: a class of a few large groups must not leave another one without tests.
    """

    def __init__(self, shares: Sequence[float]):
        self._ends = np.cumsum(shares)[:-1]
        self._least_share = min(shares)
        self._images = 0
        self._taken = np.zeros(len(shares), np.int64)

    def cut(self, sizes: np.ndarray) -> np.ndarray:
        """The part, from 0, of each group of a stratum, in their order."""
        if not len(sizes):
            return np.zeros(0, np.int64)
        images = int(sizes.sum())
        self._images += images
        wanted = np.round(self._images * self._ends) - np.cumsum(self._taken)[:-1]
        # One image for what rounding leaves; half a group, so that strata of few take turns.
        reach = max(1, images * self._least_share / 2, images / len(sizes) / 2)
        wanted = np.clip(wanted, images * self._ends - reach, images * self._ends + reach)
        # A group belongs to the part that holds its middle.
        middles = np.cumsum(sizes) - sizes / 2
        parts = np.searchsorted(np.maximum.accumulate(wanted), middles, side="right")
        if wanted[0] > 0 and (parts > 0).all():
            parts = self._with_first(parts, sizes, wanted[0])
        self._taken += np.bincount(parts, sizes, len(self._taken)).astype(np.int64)
        return parts

    def _with_first(self, parts: np.ndarray, sizes: np.ndarray, wanted: float) -> np.ndarray:
        """The same with a group in the first part, which a large one has left empty."""
        fits = sizes <= 2 * wanted
        is_empty = self._taken[0] == 0
        if len(self._taken) > 2 and not is_empty:
            return parts  # folds: the first one is not to have more than the others
        if fits.any():
            parts[fits.argmax()] = 0
        elif is_empty or 2 * sizes.min() <= sizes.sum():
            parts[sizes.argmin()] = 0
        return parts
