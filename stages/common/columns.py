"""Columns of a million images, which as Python's own texts and bytes would fill the memory."""

import ctypes
import json
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import IO

import numpy as np

from stages.common import inventory

TEXTS_AT_ONCE = 256  # that are read from the disk for one of them
M_MMAP_THRESHOLD = -3  # of the GNU C library's malloc.h
LARGE_ARRAY = 2**20  # bytes


def give_back_large_arrays() -> None:
    """Has the GNU C library hand freed arrays back to the system, whatever it learned.

    It takes the size of the largest array that was freed so far for what will be wanted again, and
    keeps such ones between others: 76 of 898 MiB with a million images.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # there is none elsewhere
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGE_ARRAY)


def _unnamed_file(buffering: int = -1) -> IO[bytes]:
    """An open file that is gone with the process."""
    folder = inventory.INVENTORY_FILE.parent  # not the system's, which may be in memory
    folder.mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryFile(buffering=buffering, dir=folder)


class StoredTexts(Sequence[str]):
    """Texts on the disk, in a file without a name that is gone with the process.

    Good for reading from the first to the last, and for picking a few.
    """

    def __init__(self, texts: Iterable[str] = ()):
        """Stores the texts; `append` adds more."""
        self._file = _unnamed_file()
        self._starts = array("Q")  # of each full block in the file
        self._latest: list[str] = []  # a block that is not full yet
        self._read: tuple[int, list[str]] = (-1, [])  # the block that was read last, its number
        for text in texts:
            self.append(text)

    def append(self, text: str) -> None:
        """Adds a text behind the last."""
        self._latest.append(text)
        if len(self._latest) == TEXTS_AT_ONCE:
            self._starts.append(self._file.seek(0, 2))
            self._file.write(json.dumps(self._latest).encode() + b"\n")
            self._latest = []

    def __len__(self) -> int:
        return TEXTS_AT_ONCE * len(self._starts) + len(self._latest)

    def __getitem__(self, index: int) -> str:
        index = range(len(self))[index]  # IndexError where there is none
        block, place = divmod(int(index), TEXTS_AT_ONCE)
        return self._block(block)[place]

    def __iter__(self) -> Iterator[str]:
        for block in range(len(self._starts)):
            yield from self._block(block)
        yield from self._latest

    def _block(self, number: int) -> list[str]:
        if number == len(self._starts):
            return self._latest
        if self._read[0] != number:
            self._file.seek(self._starts[number])
            self._read = (number, json.loads(self._file.readline()))
        return self._read[1]


class StoredBytes(Sequence[bytes]):
    """Values of equal length on the disk, in a file without a name; good for picking any."""

    def __init__(self, values: np.ndarray):
        """Stores the values, (count,), of any data type."""
        self._count, self._length = len(values), values.itemsize
        self._file = _unnamed_file(buffering=0)  # a buffer would be filled anew for each
        values.tofile(self._file)  # a single write without a buffer would end at two gibibytes

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> bytes:
        index = range(self._count)[index]  # IndexError where there is none
        self._file.seek(self._length * index)
        return self._file.read(self._length)


class Categories(Sequence[str]):
    """Texts of which there are few different ones, as numbers."""

    def __init__(self, codes: np.ndarray, names: Sequence[str]):
        """Takes the number (texts,) of each text in `names`."""
        self.names = list(names)
        self.codes = codes.astype(np.min_scalar_type(len(self.names)), copy=False)

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Categories":
        """Reads the texts one after the other."""
        number: dict[str, int] = {}
        codes = array("i", (number.setdefault(text, len(number)) for text in texts))
        return cls(np.frombuffer(codes, np.int32), list(number))

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, index: int) -> str:
        return self.names[self.codes[index]]

    def __iter__(self) -> Iterator[str]:
        return map(self.names.__getitem__, self.codes)


def encode(values: Iterable[str]) -> tuple[np.ndarray, list[str]]:
    """Texts as numbers, and the texts in the order of the alphabet that the numbers stand for."""
    found = values if isinstance(values, Categories) else Categories.of(values)
    used = np.unique(found.codes)
    names = sorted(found.names[code] for code in used)
    number = {name: index for index, name in enumerate(names)}
    place = np.array([number.get(name, -1) for name in found.names], np.int32)
    return place[found.codes], names
