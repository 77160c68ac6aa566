import csv
import io

from stages.common import tables


def written(rows) -> str:
    file = io.StringIO(newline="")
    tables.csv_writer(file).writerows(rows)
    return file.getvalue()


def test_cells_come_back_as_they_were():
    cells = ["line one\rline two", "a\r\nb", "a\nb", "\r", "\r\n", 'x,"y"', "p" * 200_000, "é"]
    header = [f"column {number}" for number in range(len(cells))]
    file = io.StringIO(written([header, cells]), newline="")
    (row,) = tables.csv_reader(file)
    assert list(row.values()) == cells


def test_lines_end_as_on_unix():
    rows = [("id", "name"), ("1", "a b"), ("2", 'x,"y"'), ("3", "two\nlines"), ("4", "")]
    file = io.StringIO(newline="")
    csv.writer(file, lineterminator="\n").writerows(rows)
    assert written(rows) == file.getvalue()
