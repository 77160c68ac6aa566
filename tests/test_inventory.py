"""data/inventory.csv keeps what was found out, row by row."""

import csv

from stages.common import inventory
from stages.common.inventory import InventoryRow

GOOD = InventoryRow(
    id="toy-train.tfrecord-00000-of-00001__7",
    name='cats, and "dogs"/1\n2.jpg',
    label="Ähre",
    bytes=1234,
    format="JPEG",
    mode="L",
    width=30,
    height=20,
    frames=1,
    content="ab" * 32,
    perceptual="00ff00ff00ff00ff",
    red=0.0,
    green=127.126,
    blue=255.0,
)
BAD = InventoryRow(
    id="table row 3",
    name="missing.png",
    label="",
    problem="missing_file",
    detail="missing.png does not exist",
)


def test_rows_come_back_in_their_order(tmp_path):
    path = tmp_path / "new folder" / "inventory.csv"
    inventory.write(path, [BAD, GOOD])
    first, second = inventory.read(path)
    assert first == BAD
    # Means keep two decimals; 0 is a mean and not an unknown one.
    assert (second.red, second.green, second.blue) == (0.0, 127.13, 255.0)
    assert {**vars(second), "green": 127.126} == vars(GOOD)


def test_the_columns_are_those_that_other_stages_read(tmp_path):
    inventory.write(tmp_path / "inventory.csv", [BAD])
    header, cells = csv.reader((tmp_path / "inventory.csv").open(newline=""))
    assert header == [
        *("id", "name", "label", "bytes", "format", "mode", "width", "height", "frames"),
        *("content", "perceptual", "red", "green", "blue", "problem", "detail"),
    ]
    # What is not known is empty, and never 0 or None.
    assert cells[3:14] == [""] * 11


def test_rejected_rows_have_what_a_person_needs(tmp_path):
    path = tmp_path / "rejected.csv"
    inventory.write_rejected(path, [BAD])
    assert path.read_text() == (
        "id,name,label,problem,detail\n"
        "table row 3,missing.png,,missing_file,missing.png does not exist\n"
    )
    assert list(inventory.read(path)) == [BAD]
    inventory.write_rejected(path, [])
    assert path.read_text() == "id,name,label,problem,detail\n"


def test_rows_are_written_and_read_one_by_one(tmp_path):
    path = tmp_path / "inventory.csv"
    sizes = []

    def rows():
        for _ in range(20_000):
            yield GOOD
            (growing,) = tmp_path.iterdir()  # beside its place until it is whole
            sizes.append(growing.stat().st_size)

    inventory.write(path, rows())
    assert 0 < sizes[10_000] < sizes[-1]
    reading = inventory.read(path)
    assert next(reading).name == GOOD.name
    path.write_text("")  # whoever had read the table as a whole would not notice
    assert sum(1 for _ in reading) < 19_999
