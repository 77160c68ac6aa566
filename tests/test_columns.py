"""Columns of texts and bytes: what goes in comes out, wherever it is kept."""

import dataclasses

import numpy as np
import pytest

from stages.common import columns, duplicates


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("count", [0, 1, columns.TEXTS_AT_ONCE, 3 * columns.TEXTS_AT_ONCE + 7])
def test_stored_texts_come_back_in_any_order(count):
    odd = ['a "quoted", comma', "two\nlines", "日本", "", "\udcff"]  # the last: no valid file name
    texts = [f"{odd[number % len(odd)]} {number}" for number in range(count)]
    stored = columns.StoredTexts(texts)
    assert list(stored) == texts
    assert len(stored) == count
    for index in np.random.default_rng(0).permutation(count):
        assert stored[index] == texts[index]
    with pytest.raises(IndexError):
        stored[count]


def test_stored_texts_grow_while_they_are_read():
    stored = columns.StoredTexts(f"text {number}" for number in range(columns.TEXTS_AT_ONCE))
    assert stored[3] == "text 3"
    for number in range(columns.TEXTS_AT_ONCE, 3 * columns.TEXTS_AT_ONCE):
        stored.append(f"text {number}")
        assert stored[number] == f"text {number}"
        assert stored[5] == "text 5"


def test_stored_bytes_come_back_in_any_order():
    values = np.array([bytes([number]) * 3 for number in range(1, 15)])[::2]
    stored = columns.StoredBytes(values)
    assert len(stored) == 7
    for index in np.random.default_rng(0).permutation(7):
        assert stored[index] == values[index]
    with pytest.raises(IndexError):
        stored[7]


def test_what_is_stored_leaves_no_file(tmp_path):
    stored = columns.StoredTexts(str(number) for number in range(1000))
    values = columns.StoredBytes(np.arange(1000))
    assert (len(stored), len(values)) == (1000, 1000)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_categories_are_their_texts_and_encode_sorts_those_that_are_there():
    texts = ["b", "a", "b", "c"]
    found = columns.Categories.of(texts)
    assert list(found) == [found[index] for index in range(4)] == texts
    for values in (texts[:3], columns.Categories(found.codes[:3], found.names)):
        codes, names = columns.encode(values)
        assert (codes.tolist(), names) == ([1, 0, 1], ["a", "b"])
    assert columns.encode([])[1] == []


@pytest.mark.parametrize("keep", [np.asarray, columns.StoredBytes])
def test_a_digest_that_ends_in_null_bytes_keeps_them_in_its_name(keep):
    digests = [bytes([1]) * 30 + bytes(2), bytes([1]) * 31 + bytes(1), bytes([7]) * 32]
    contents = np.array([*digests, digests[0]], "S32")
    hashes, aspects = np.zeros(4, np.uint64), np.ones(4)
    copies = duplicates.find(contents, hashes, aspects, None)
    groups = duplicates.join(dataclasses.replace(copies, contents=keep(contents)), None)
    assert [groups.names[group] for group in groups.of_image] == [
        f"content {digest.hex()}" for digest in (*digests, digests[0])
    ]
