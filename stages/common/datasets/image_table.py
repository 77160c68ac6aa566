"""Images listed in a table (CSV or Parquet), one row an image, with columns about it."""

import csv
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from stages.common import images, tables
from stages.common.datasets.image_folder import OFFICIAL_SPLITS
from stages.common.datasets.library import check_splits
from stages.common.datasets.remote import THREADS, Downloader, is_url
from stages.common.image_names import class_name_of, is_hidden
from stages.common.inventory import InventoryRow
from stages.common.params import nearest
from stages.common.run import UserError

SUFFIXES = (*tables.DELIMITERS, ".parquet")
ROWS_AT_ONCE = 4096
# Columns of data/raw and of data/splits.csv, which mean something else there.
RESERVED = ("id", "image", "label", "name", "split", "group")

Row = dict[str, str]


class Table:
    """The rows of a CSV, TSV or Parquet file, every value as text, read a few at a time."""

    def __init__(self, path: Path):
        """`path` is the file, or a folder with one such file, so that DVC sees the images too.

        Raises:
            UserError: there is no such file, or it can't be read.
        """
        self.path = _find_table(path)
        self._check_quotes()
        names = [name for name, _ in self._fields()]
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise UserError(
                f"dataset.path: {self.path} has several columns named {twice}; rename all but one "
                "of each, or remove them: spreadsheets write empty columns as commas"
            )
        self.column_names = [name for name, kind in self._fields() if not _holds_many_values(kind)]
        self.left_out = [name for name in names if name not in self.column_names]

    def rows(self) -> Iterator[Row]:
        """Every row by column name; an empty cell is an empty text."""
        import pyarrow as pa

        try:
            for batch in self._batches():
                columns = [
                    _without_nan(batch.column(name)).cast(pa.string()).fill_null("").to_pylist()
                    for name in self.column_names
                ]
                for values in zip(*columns, strict=True):
                    yield dict(zip(self.column_names, values, strict=True))
        except (pa.ArrowException, OSError) as error:
            raise self._explained(error) from None

    def _fields(self) -> list[tuple[str, Any]]:
        """Name and Arrow type of each column."""
        import pyarrow as pa

        try:
            if self.path.suffix.lower() in tables.DELIMITERS:
                schema = self._csv({}).schema
                return [(name, pa.string()) for name in schema.names]
            import pyarrow.parquet

            schema = pyarrow.parquet.read_schema(self.path)
            return list(zip(schema.names, schema.types, strict=True))
        # The names of columns that are no UTF-8 are found out later than all else that is not.
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise self._explained(error) from None

    def _check_quotes(self) -> None:
        """Arrow takes all that follows a quotation mark without its second one for one cell."""
        delimiter = tables.DELIMITERS.get(self.path.suffix.lower())
        if delimiter is None:
            return
        last_line = 0
        csv.field_size_limit(tables.MOST_CHARACTERS)
        with self.path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            try:
                for _row in reader:
                    last_line = reader.line_num
            except csv.Error as error:
                raise self._unreadable(
                    f"in the row that begins in line {last_line + 1}: {error} (a cell that begins "
                    "with a quotation mark ends with one, and marks within it are doubled)"
                ) from None

    def _batches(self) -> Iterator[Any]:
        if self.path.suffix.lower() in tables.DELIMITERS:
            import pyarrow as pa

            # As text: types that are guessed from the first rows can fail on later ones, and turn
            # a patient's number 007 into 7.
            yield from self._csv(dict.fromkeys(self.column_names, pa.string()))
        else:
            import pyarrow.parquet

            with pyarrow.parquet.ParquetFile(self.path) as file:
                yield from file.iter_batches(ROWS_AT_ONCE, columns=self.column_names)

    def _csv(self, types: Mapping[str, Any]):
        import pyarrow.csv

        return pyarrow.csv.open_csv(
            self.path,
            parse_options=pyarrow.csv.ParseOptions(
                delimiter=tables.DELIMITERS[self.path.suffix.lower()], newlines_in_values=True
            ),
            convert_options=pyarrow.csv.ConvertOptions(column_types=types),
        )

    def _explained(self, error: Exception) -> Exception:
        """A UserError, or the error itself where the disk or a permission is to blame.

        Arrow raises OSError for damaged Parquet too, without the number that the system's have.
        """
        return error if getattr(error, "errno", None) else self._unreadable(error)

    def _unreadable(self, error: Exception | str) -> UserError:
        return UserError(
            f"dataset.path: the table {self.path} can't be read: {error}; it must be UTF-8 text "
            "with a header line (CSV by commas, TSV by tabs) or Parquet"
        )


def _find_table(path: Path) -> Path:
    if path.is_dir():
        found = sorted(
            file
            for file in path.iterdir()
            if file.suffix.lower() in SUFFIXES and not is_hidden(file.name)
        )
        if len(found) != 1:
            raise UserError(
                f"dataset.path: expected one table ({', '.join(SUFFIXES)}) in the folder {path}, "
                f"received {[file.name for file in found] or 'none'}; name the file itself"
            )
        return found[0]
    if not path.exists():
        raise UserError(f"dataset.path: the table {path} does not exist; name a file that does")
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(
            f"dataset.path: expected a table ({', '.join(SUFFIXES)}), received {path}; a folder "
            "or an archive of images needs dataset.name: image_folder"
        )
    return path


def _holds_many_values(kind: Any) -> bool:
    """Whether a column holds lists, structures or bytes, which are no property of an image."""
    import pyarrow as pa

    if isinstance(kind, pa.BaseExtensionType):  # a UUID, for one
        kind = kind.storage_type
    holds_bytes = (
        pa.types.is_binary,
        pa.types.is_large_binary,
        pa.types.is_binary_view,
        pa.types.is_fixed_size_binary,
    )
    return pa.types.is_nested(kind) or any(holds(kind) for holds in holds_bytes)


def _without_nan(values: Any) -> Any:
    """The column with null for NaN: writers of Parquet keep either for an empty cell."""
    import pyarrow as pa
    from pyarrow import compute

    if not pa.types.is_floating(values.type):
        return values
    return compute.if_else(compute.is_nan(values), pa.scalar(None, values.type), values)


def check_columns(wanted: Mapping[str, str | None], available: Sequence[str]) -> None:
    """UserError where a column that params name is not in the table.

    Args:
        wanted: the param's name to the column's name, or None where there is none.
        available: the table's columns.
    """
    problems = [
        f"params.yaml, dataset.image_table.{param}: expected one of {sorted(available)}, received "
        f"{name!r}{nearest(name, available)}"
        for param, name in wanted.items()
        if name is not None and name not in available
    ]
    if problems:
        raise UserError("\n       ".join(problems))


def other_columns(table_columns: Sequence[str], used: Sequence[str | None]) -> dict[str, str]:
    """The columns that are kept beside path, label, split and group: ours to the table's name.

    A name that means something else here is put behind `table_`, an empty one is numbered.
    """
    names: dict[str, str] = {}
    for number, column in enumerate(table_columns, start=1):
        if column in used:
            continue
        name = column or f"column_{number}"
        while name in RESERVED or name in names or (name != column and name in table_columns):
            name = f"table_{name}"
        names[name] = column
    return names


def survey(
    rows: Iterator[Row], label_column: str, split_column: str | None, wanted: list[str] | None
) -> tuple[list[str], list[str]]:
    """Class names and official splits, both sorted, in one pass.

    Args:
        rows: of the table.
        label_column: its column of classes.
        split_column: its column of official splits; None: all rows are of `train`.
        wanted: the splits to use, whose classes alone are classes; None: all.

    Raises:
        UserError: there are fewer than two classes, a split has an unknown name, or one that is
            wanted is not there.
    """
    labels: dict[str, set[str]] = {}  # of each split
    splits: Counter[str] = Counter()
    for row in rows:
        split = official_split(row, split_column)
        labels.setdefault(split, set()).add(class_name_of(row[label_column]))
        splits[split] += 1
    unknown = {name: count for name, count in splits.items() if name not in OFFICIAL_SPLITS}
    if unknown:
        listed = ", ".join(f"{name!r} in {count} rows" for name, count in sorted(unknown.items()))
        raise UserError(
            f"params.yaml, dataset.image_table.split_column: expected {', '.join(OFFICIAL_SPLITS)} "
            f"in the column {split_column!r}, received {listed}; mend the table, or set it to null"
        )
    used = check_splits(wanted, sorted(splits)) if splits else []
    class_names = sorted(set().union(*(labels[split] for split in used)) - {""})
    if len(class_names) < 2:
        raise UserError(
            f"dataset.path: expected at least two classes in the column {label_column!r}, "
            f"received {class_names or 'none'}"
        )
    return class_names, used


def official_split(row: Row, split_column: str | None) -> str:
    """The split that a row names; `train` for all where there is no such column."""
    return row[split_column].strip().casefold() if split_column else "train"


class ImageTable(tfds.core.GeneratorBasedBuilder):
    """The images that a table names, their encoded bytes untouched."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(
        self,
        *,
        table: Path,
        path_column: str,
        label_column: str,
        split_column: str | None,
        group_column: str | None,
        downloads: Path,
        splits: list[str] | None = None,
        **kwargs,
    ):
        """Paths are relative to the table, absolute, or URLs, which are kept in `downloads`.

        Of official splits, those named in `splits` alone are read; None: all.

        The group becomes the column `group`, the path the column `name`; every other column keeps
        its text, since TFRecord files would round numbers to single precision.
        """
        self._table = Table(table)
        named = {
            "path_column": path_column,
            "label_column": label_column,
            "split_column": split_column,
            "group_column": group_column,
        }
        check_columns(named, self._table.column_names)
        self._path_column, self._label_column = path_column, label_column
        self._split_column, self._group_column = split_column, group_column
        self._others = other_columns(self._table.column_names, list(named.values()))
        self._class_names, self.split_names = survey(
            self._table.rows(), label_column, split_column, splits
        )
        self._downloader = Downloader(downloads)
        left_out = self._table.left_out
        self.notes = (
            [f"left out are the columns {left_out}, which hold lists or bytes"] if left_out else []
        )
        # Split to the rows whose image never got into the data set.
        self.rejected: dict[str, list[InventoryRow]] = {split: [] for split in self.split_names}
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        texts = ["name", *(["group"] if self._group_column else []), *self._others]
        features = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label": tfds.features.ClassLabel(names=self._class_names),
            **{name: tfds.features.Text() for name in texts},
        }
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        del dl_manager  # it can neither retry single files nor leave one out
        return {split: self._generate_examples(split) for split in self.split_names}

    def _generate_examples(self, split: str):
        numbered = enumerate(self._table.rows(), start=1)
        rows = (
            (number, row)
            for number, row in numbered
            if official_split(row, self._split_column) == split
        )
        loaded = images.parallel_map(self._load, rows, ahead=2 * THREADS, threads=THREADS)
        rejected, any_image = self.rejected[split], False
        for number, row, outcome in loaded:
            path, label = row[self._path_column].strip(), class_name_of(row[self._label_column])
            if isinstance(outcome, images.BadImage):
                row_id = f"table row {number}"
                rejected.append(
                    InventoryRow(
                        id=row_id,
                        name=path or row_id,
                        label=label,
                        problem=outcome.problem,
                        detail=outcome.detail,
                    )
                )
                continue
            any_image = True
            example = {"image": outcome, "label": label, "name": path}
            if self._group_column:
                # As labels are: of one patient, é may be written in two ways.
                example["group"] = class_name_of(row[self._group_column])
            yield number, example | {name: row[column] for name, column in self._others.items()}
        if not any_image:
            raise UserError(
                f"dataset.path: no row of {self._table.path} for the split '{split}' gives an "
                f"image; the last is {rejected[-1].name}: {rejected[-1].detail}"
            )

    def _load(self, numbered: tuple[int, Row]) -> tuple[int, Row, bytes | images.BadImage]:
        """The encoded bytes of a row's image, or why there are none."""
        number, row = numbered
        try:
            if not row[self._label_column].strip():
                raise images.BadImage("empty_label", f"no label in row {number} of the table")
            return number, row, self._read(row[self._path_column].strip(), number)
        except images.BadImage as problem:
            return number, row, problem

    def forget(self, path: str) -> None:
        """Removes what a URL gave, so that the next run asks it anew; a local file stays."""
        if is_url(path):
            self._downloader.forget(path)

    def _read(self, path: str, number: int) -> bytes:
        if not path:
            raise images.BadImage("missing_file", f"no path in row {number} of the table")
        file = self._downloader.get(path) if is_url(path) else self._table.path.parent / path
        try:
            return file.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise images.BadImage("missing_file", f"{file} does not exist") from None
        except IsADirectoryError:
            raise images.BadImage("missing_file", f"{file} is a folder") from None
        except (OSError, ValueError) as error:  # a name too long, a null character, no permission
            raise images.BadImage("missing_file", f"{path!r} can't be read: {error}") from None
