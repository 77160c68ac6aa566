"""Images that a table names: columns, official splits, groups, downloads and what is missing."""

import errno
import http.server
import itertools
import os
import shutil
import threading
from collections import Counter
from pathlib import Path
from urllib.parse import unquote

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import yaml

from stages import fetch
from stages.common import inventory, params, paths
from stages.common.datasets import library, remote
from stages.common.datasets.image_table import ImageTable, Table, other_columns
from stages.common.datasets.raw import RawDataset
from stages.common.images import BadImage
from stages.common.run import UserError
from tests import ROOT


def write_table(path: Path, header: str, *rows: str) -> Path:
    path.write_text("\n".join([header, *rows, ""]), encoding="utf-8")
    return path


def builder_of(table: Path, **columns) -> ImageTable:
    names = {
        "path_column": "path",
        "label_column": "label",
        "split_column": None,
        "group_column": None,
        **columns,
    }
    folder = table if table.is_dir() else table.parent
    return ImageTable(
        table=table, downloads=folder / "downloads", data_dir=folder / "building", **names
    )


def prepare(table: Path, **columns) -> tuple[RawDataset, ImageTable]:
    builder = builder_of(table, **columns)
    target = builder._table.path.parent / "raw"
    library.prepare(builder, None, target.parent / "tfds", target)
    return RawDataset(target), builder


@pytest.fixture
def pictures(tmp_path, draw_images) -> list[str]:
    """The names, relative to tmp_path, of six images."""
    return [path.relative_to(tmp_path).as_posix() for path in draw_images(tmp_path / "photos", 6)]


class TestTable:
    ROWS = (
        {"path": "a,b.jpg", "label": "cat", "age": "007", "note": 'two\nlines and a "word"'},
        {"path": "c.jpg", "label": "", "age": "", "note": "ü"},
    )

    @pytest.mark.parametrize("suffix", [".csv", ".tsv", ".CSV"])
    @pytest.mark.parametrize("beginning", ["", "\ufeff"])  # which Excel puts before UTF-8
    def test_every_value_is_text_as_it_was_written(self, tmp_path, suffix, beginning):
        path = tmp_path / f"table{suffix}"
        delimiter = "\t" if suffix == ".tsv" else ","
        quoted = [
            delimiter.join('"' + value.replace('"', '""') + '"' for value in row.values())
            for row in self.ROWS
        ]
        header = beginning + delimiter.join(self.ROWS[0])
        path.write_text("\n".join([header, *quoted, ""]), encoding="utf-8")
        table = Table(path)
        assert table.column_names == ["path", "label", "age", "note"]
        assert list(table.rows()) == list(self.ROWS)

    def test_parquet(self, tmp_path):
        path = tmp_path / "table.parquet"
        columns = {
            "path": ["a.jpg", "b.jpg"],
            "label": pa.array(["cat", "dog"]).dictionary_encode(),
            "age": [7, None],
            "weight": [0.1, 2.0],
            "sick": [True, False],
            "vector": [[1.0, 2.0], [3.0]],
            "bytes": [b"\xff", b""],
        }
        pyarrow.parquet.write_table(pa.table(columns), path)
        table = Table(path)
        assert list(table.rows()) == [
            {"path": "a.jpg", "label": "cat", "age": "7", "weight": "0.1", "sick": "true"},
            {"path": "b.jpg", "label": "dog", "age": "", "weight": "2", "sick": "false"},
        ]
        assert table.left_out == ["vector", "bytes"]

    @pytest.mark.parametrize("kind", [pa.float16(), pa.float32(), pa.float64()])
    def test_no_number_in_parquet_is_an_empty_cell(self, tmp_path, kind):
        path = tmp_path / "table.parquet"
        values = pa.array(np.array([1, np.nan, 2], kind.to_pandas_dtype()), from_pandas=False)
        pyarrow.parquet.write_table(pa.table({"path": ["a", "b", "c"], "label": values}), path)
        assert [row["label"] for row in Table(path).rows()] == ["1", "", "2"]

    def test_columns_of_bytes_are_left_out(self, tmp_path):
        path = tmp_path / "table.parquet"
        sixteen = [bytes(16)]
        columns = {
            "label": ["cat"],
            "key": pa.ExtensionArray.from_storage(pa.uuid(), pa.array(sixteen, pa.binary(16))),
            "fixed": pa.array(sixteen, pa.binary(16)),
            "view": pa.array(sixteen, pa.binary_view()),
        }
        pyarrow.parquet.write_table(pa.table(columns), path)
        table = Table(path)
        assert list(table.rows()) == [{"label": "cat"}]
        assert table.left_out == ["key", "fixed", "view"]

    def test_a_later_row_of_another_type_changes_nothing(self, tmp_path):
        numbers = [f"{number}.jpg,{number % 2}" for number in range(200_000)]
        table = Table(write_table(tmp_path / "t.csv", "path,label", *numbers, "x.jpg,none"))
        *_, last = table.rows()
        assert last == {"path": "x.jpg", "label": "none"}

    def test_line_breaks_inside_of_values_in_a_long_table(self, tmp_path):
        quoted = [f'{number}.jpg,"a\n{"b" * 40}\nc",cat' for number in range(60_000)]
        table = Table(write_table(tmp_path / "t.csv", "path,note,label", *quoted))
        assert sum(row["label"] == "cat" for row in table.rows()) == 60_000

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (b"", "Empty CSV"),
            (b"path,label\na.jpg,cat,3\n", "Expected 2 columns, got 3"),
            (b"path,label\n\xe9.jpg,cat\n", "UTF8"),
            (b"path,label,stra\xdfe\na.jpg,cat,b\n", "utf-8"),
            # Arrow would take the second line's end and the third for one cell.
            (b'path,label\na.jpg,"cat\nb.jpg,cat\n', "line 2: unexpected end of data"),
            (b'path,label\na.jpg,cat\nb.jpg,"a"b\n', "line 3: ',' expected after '\"'"),
        ],
    )
    def test_a_table_that_can_not_be_read(self, tmp_path, content, words):
        path = tmp_path / "table.csv"
        path.write_bytes(content)
        with pytest.raises(UserError, match=rf"table\.csv can't be read: .*{words}.*UTF-8 text"):
            list(Table(path).rows())

    def test_a_damaged_parquet_file(self, tmp_path):
        path = tmp_path / "table.parquet"
        path.write_bytes(b"PAR1 and nothing else")
        with pytest.raises(UserError, match=r"table\.parquet can't be read"):
            Table(path)

    def test_damage_within_a_parquet_file(self, tmp_path):
        path = tmp_path / "table.parquet"
        names = [f"{number}.jpg" for number in range(1000)]
        pyarrow.parquet.write_table(pa.table({"path": names, "label": names}), path)
        content = path.read_bytes()
        path.write_bytes(content[:100] + b"\xff" * 100 + content[200:])
        with pytest.raises(UserError, match=r"table\.parquet can't be read"):
            list(Table(path).rows())

    def test_two_columns_of_one_name(self, tmp_path):
        with pytest.raises(UserError, match=r"several columns named \['label'\]"):
            Table(write_table(tmp_path / "t.csv", "path,label,label", "a,b,c"))

    def test_the_path_may_be_a_folder_with_one_table(self, tmp_path):
        with pytest.raises(UserError, match=r"one table .* received none"):
            Table(tmp_path)
        first = write_table(tmp_path / "a.csv", "path,label", "a.jpg,cat")
        (tmp_path / "._a.csv").write_bytes(b"what macOS leaves on other disks")
        assert Table(tmp_path).path == first
        write_table(tmp_path / "b.csv", "path,label", "a.jpg,cat")
        with pytest.raises(UserError, match=r"received \['a\.csv', 'b\.csv'\]; name the file"):
            Table(tmp_path)

    def test_no_table(self, tmp_path):
        with pytest.raises(UserError, match=r"the table .*t\.csv does not exist"):
            Table(tmp_path / "t.csv")
        (tmp_path / "images.zip").write_bytes(b"")
        with pytest.raises(UserError, match=r"received .*images\.zip; .* image_folder"):
            Table(tmp_path / "images.zip")


class TestColumns:
    def test_a_wrong_column_is_answered_with_the_nearest(self, tmp_path):
        table = write_table(tmp_path / "t.csv", "file_path,label,patient", "a.jpg,cat,1")
        with pytest.raises(UserError) as caught:
            builder_of(table, path_column="filepath", group_column="patients")
        assert str(caught.value).splitlines() == [
            "params.yaml, dataset.image_table.path_column: expected one of ['file_path', 'label', "
            "'patient'], received 'filepath'; did you mean 'file_path'?",
            "       params.yaml, dataset.image_table.group_column: expected one of ['file_path', "
            "'label', 'patient'], received 'patients'; did you mean 'patient'?",
        ]

    def test_other_columns_get_names_that_mean_nothing_else(self):
        columns = ["path", "class", "", "label", "id", "age", "group", "table_group"]
        assert other_columns(columns, ["path", "class", None]) == {
            "column_3": "",
            "table_label": "label",
            "table_id": "id",
            "age": "age",
            "table_table_group": "group",
            "table_group": "table_group",
        }

    def test_columns_reach_the_data_set(self, tmp_path, pictures):
        rows = [
            f"{path},{label},p{number // 2},00{number},0.{number}"
            for number, (path, label) in enumerate(
                zip(pictures, itertools.cycle(["cat", "dog"]), strict=False)
            )
        ]
        table = write_table(tmp_path / "t.csv", "path,label,patient,serial,weight", *rows)
        raw, _ = prepare(table, group_column="patient")
        assert raw.class_names == ["cat", "dog"]
        assert raw.column_names == ["group", "name", "serial", "weight"]
        for image in raw:
            number = pictures.index(image.columns["name"])
            assert image.encoded == (tmp_path / pictures[number]).read_bytes()
            assert raw.class_name(image.label) == ("cat", "dog")[number % 2]
            assert image.columns == {
                "name": pictures[number],
                "group": f"p{number // 2}",
                "serial": f"00{number}",
                "weight": f"0.{number}",
            }

    def test_the_fields_of_an_example_are_in_order(self, tmp_path, pictures):
        # protobuf leaves their order to chance, a new one in each run, so that DVC would take the
        # same data for other data.
        others = ["alpha", "beta", "gamma", "delta", "omega"]
        rows = [f"{pictures[0]},cat,1,2,3,4,5", f"{pictures[1]},dog,1,2,3,4,5"]
        table = write_table(tmp_path / "t.csv", ",".join(["path", "label", *others]), *rows)
        prepare(table)
        (shard,) = (tmp_path / "raw").glob("*.tfrecord*")
        content = shard.read_bytes()
        names = sorted(["image", "label", "name", *others])
        keys = [bytes([10, len(name)]) + name.encode() for name in names]  # as protobuf has them
        for find in (content.find, content.rfind):  # in the first example, in the second
            places = [find(key) for key in keys]
            assert places == sorted(places)
            assert places[0] > 0

    def test_a_group_that_two_systems_write_in_two_ways_is_one(self, tmp_path, pictures):
        names = ["Jos\xe9 B", "Jose\u0301  B", "Ann", "Ann "]
        rows = [
            f"{path},{label},{name}"
            for path, label, name in zip(pictures, ["cat", "dog"] * 2, names, strict=False)
        ]
        table = write_table(tmp_path / "t.csv", "path,label,patient", *rows)
        raw, _ = prepare(table, group_column="patient")
        assert {image.columns["group"] for image in raw} == {"Jos\xe9 B", "Ann"}

    def test_an_image_may_be_named_twice(self, tmp_path, pictures):
        rows = [f"{pictures[0]},cat", f"{pictures[0]},dog", f"{pictures[1]},dog"]
        raw, _ = prepare(write_table(tmp_path / "t.csv", "path,label", *rows))
        found = Counter((image.columns["name"], raw.class_name(image.label)) for image in raw)
        assert found == {tuple(row.split(",")): 1 for row in rows}

    def test_paths_are_relative_to_the_table_or_absolute(self, tmp_path, pictures):
        folder = tmp_path / "tables"
        folder.mkdir()
        rows = [f"../{pictures[0]},cat", f"{tmp_path / pictures[1]},dog", f" ../{pictures[2]} ,dog"]
        raw, builder = prepare(write_table(folder / "t.csv", "path,label", *rows))
        assert raw.count == 3
        assert builder.rejected == {"train": []}

    def test_a_single_class(self, tmp_path):
        with pytest.raises(UserError, match=r"two classes in the column 'label', .* \['cat'\]"):
            builder_of(write_table(tmp_path / "t.csv", "path,label", "a.jpg,cat", "b.jpg, "))

    def test_a_line_break_in_a_name_makes_no_further_class(self, tmp_path, pictures):
        labels = ["rust", '"late\nblight"', "rust", "late  blight", "zinc", "zinc"]
        lines = [f"{path},{label}" for path, label in zip(pictures, labels, strict=True)]
        raw, _ = prepare(write_table(tmp_path / "t.csv", "path,label", *lines))
        assert raw.class_names == ["late blight", "rust", "zinc"]
        expected = ["rust", "late blight", "rust", "late blight", "zinc", "zinc"]
        assert {image.columns["name"]: raw.class_name(image.label) for image in raw} == dict(
            zip(pictures, expected, strict=True)
        )


class TestOfficialSplits:
    def test_they_are_splits_of_the_data_set(self, tmp_path, pictures):
        names = ["train", "test", "Validation", "train", "val", " test "]
        rows = [
            f"{path},{label},{split}"
            for path, label, split in zip(pictures, ["cat", "dog"] * 3, names, strict=True)
        ]
        table = write_table(tmp_path / "t.csv", "path,label,split", *rows)
        raw, _ = prepare(table, split_column="split")
        assert {image.columns["name"]: image.official_split for image in raw} == dict(
            zip(pictures, ["train", "test", "validation", "train", "val", "test"], strict=True)
        )
        assert raw.column_names == ["name"]

    def test_nothing_of_a_split_that_is_left_out_is_read(self, tmp_path, pictures):
        """Neither its classes, nor images that are not there, which may be URLs to download."""
        rows = [f"{pictures[0]},cat,train", f"{pictures[1]},dog,train", "gone.png,mouse,test"]
        table = write_table(tmp_path / "t.csv", "path,label,split", *rows)
        builder = builder_of(table, split_column="split", splits=["train"])
        library.prepare(builder, ["train"], tmp_path / "tfds", tmp_path / "raw")
        raw = RawDataset(tmp_path / "raw")
        assert raw.class_names == ["cat", "dog"]
        assert raw.split_names == ["train"]
        assert builder.rejected == {"train": []}

    def test_a_split_that_is_not_there(self, tmp_path):
        table = write_table(tmp_path / "t.csv", "path,label,split", "a.jpg,cat,train")
        with pytest.raises(UserError, match=r"expected some of \['train'\], received 'test'"):
            builder_of(table, split_column="split", splits=["test"])

    def test_a_column_split_that_params_do_not_name_is_only_kept(self, tmp_path, pictures):
        rows = [f"{pictures[0]},cat,test", f"{pictures[1]},dog,whatever"]
        raw, _ = prepare(write_table(tmp_path / "t.csv", "path,label,split", *rows))
        assert raw.split_names == ["train"]
        assert {image.columns["table_split"] for image in raw} == {"test", "whatever"}

    def test_unknown_names_are_listed(self, tmp_path):
        rows = ["a.jpg,cat,train", "b.jpg,dog,holdout", "c.jpg,dog,holdout", "d.jpg,dog,"]
        table = write_table(tmp_path / "t.csv", "path,label,fold", *rows)
        with pytest.raises(UserError) as caught:
            builder_of(table, split_column="fold")
        assert str(caught.value) == (
            "params.yaml, dataset.image_table.split_column: expected train, training, valid, "
            "validation, val, dev, test, testing in the column 'fold', received '' in 1 rows, "
            "'holdout' in 2 rows; mend the table, or set it to null"
        )


class TestMissing:
    def test_rows_without_an_image_are_rejected_by_name(
        self, tmp_path, pictures, monkeypatch, capsys
    ):
        (tmp_path / "photos" / "folder.png").mkdir()
        rows = [
            f"{pictures[0]},cat,1",
            "photos/gone.png,dog,2",
            f"{pictures[1]},dog,3",
            f"{pictures[2]},  ,4",
            ",dog,5",
            "photos/folder.png,dog,6",
            f"photos/{'long' * 100}.png,dog,7",
        ]
        write_table(tmp_path / "t.csv", "path,label,serial", *rows)
        content = params.read(ROOT / "params.yaml")
        content["dataset"] |= {"name": "image_table", "path": "t.csv", "on_bad_image": "skip"}
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
        monkeypatch.chdir(tmp_path)
        fetch.main()
        assert "5 of 7 images can't be used and are left out (1 empty_label, 4 missing_file)" in (
            capsys.readouterr().out
        )
        rejected = list(inventory.read(inventory.REJECTED_FILE))
        assert [(row.id, row.name, row.label, row.problem) for row in rejected] == [
            ("table row 2", "photos/gone.png", "dog", "missing_file"),
            ("table row 4", pictures[2], "", "empty_label"),
            ("table row 5", "table row 5", "dog", "missing_file"),
            ("table row 6", "photos/folder.png", "dog", "missing_file"),
            ("table row 7", f"photos/{'long' * 100}.png", "dog", "missing_file"),
        ]
        rows_of_all = list(inventory.read(inventory.INVENTORY_FILE))
        assert rows_of_all[2:] == rejected
        assert {row.name for row in rows_of_all[:2]} == set(pictures[:2])
        assert [row.id for row in rows_of_all[:2]] == [image.id for image in RawDataset(paths.RAW)]
        content["dataset"]["on_bad_image"] = "error"
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
        with pytest.raises(UserError, match=r"5 of 7 images") as caught:
            fetch.main()
        assert [line.split(":")[0].strip() for line in str(caught.value).splitlines()[1:]] == [
            row.name for row in rejected
        ]

    def test_a_split_without_any_image(self, tmp_path, pictures):
        rows = [f"{pictures[0]},cat,train", f"{pictures[1]},dog,train", "gone.png,dog,test"]
        table = write_table(tmp_path / "t.csv", "path,label,split", *rows)
        with pytest.raises(UserError, match=r"no row .* for the split 'test' .* gone\.png"):
            prepare(table, split_column="split")


class Server:
    """Serves a folder on loopback and fails where it is told to."""

    def __init__(self, folder: Path):
        self.asked: Counter[str] = Counter()
        self.failures: dict[str, list[int | str]] = {}  # path to what its first requests get
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                path = unquote(self.path)
                outer.asked[path] += 1
                failures = outer.failures.get(path, [])
                failure = failures.pop(0) if failures else None
                file = folder / path.lstrip("/")
                if isinstance(failure, int) or not file.is_file():
                    self.send_error(failure or 404)
                    return
                content = file.read_bytes()
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[:20] if failure == "cut off" else content)

            do_HEAD = do_GET

            def log_message(self, *arguments):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        serve = self._server.serve_forever
        threading.Thread(target=serve, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server(tmp_path, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(remote, "WAITS", (0.0, 0.0))  # two further attempts, at once
    server = Server(tmp_path)
    yield server
    server.close()


class TestRemote:
    @pytest.fixture
    def get(self, tmp_path):
        return remote.Downloader(tmp_path / "downloads").get

    def kept(self, tmp_path) -> list[Path]:
        return [path for path in (tmp_path / "downloads").rglob("*") if path.is_file()]

    @pytest.mark.parametrize("failures", [[], [503], [500, "cut off"], ["cut off", 429]])
    def test_a_download_is_tried_again(self, tmp_path, pictures, server, get, failures):
        server.failures[f"/{pictures[0]}"] = list(failures)
        content = (tmp_path / pictures[0]).read_bytes()
        url = f"{server.url}/{pictures[0]}"
        assert get(url).read_bytes() == content
        assert server.asked[f"/{pictures[0]}"] == len(failures) + 1
        # Once it is there, nobody is asked for it again, and no half file is left.
        assert get(url).read_bytes() == content
        assert server.asked[f"/{pictures[0]}"] == len(failures) + 1
        assert len(self.kept(tmp_path)) == 1

    def test_after_the_last_attempt_the_row_is_rejected(self, tmp_path, pictures, server, get):
        server.failures[f"/{pictures[0]}"] = [500, "cut off", 500, 500]
        with pytest.raises(BadImage, match="500") as caught:
            get(f"{server.url}/{pictures[0]}")
        assert caught.value.problem == "not_downloaded"
        assert server.asked[f"/{pictures[0]}"] == 3
        assert self.kept(tmp_path) == []

    @pytest.mark.parametrize("status", [403, 404, 410])
    def test_what_will_not_change_is_asked_for_once(self, pictures, server, get, status):
        server.failures[f"/{pictures[0]}"] = [status] * 5
        with pytest.raises(BadImage) as caught:
            get(f"{server.url}/{pictures[0]}")
        assert caught.value.problem == "not_downloaded"
        assert server.asked[f"/{pictures[0]}"] == 1

    def test_a_half_file_is_not_trusted(self, tmp_path, pictures, server, get):
        url = f"{server.url}/{pictures[0]}"
        complete = get(url)
        content = complete.read_bytes()
        complete.rename(complete.with_name(f"{complete.name}.0123.part"))
        assert get(url).read_bytes() == content
        assert server.asked[f"/{pictures[0]}"] == 2

    @pytest.mark.parametrize(
        "error",
        [OSError(errno.ENOSPC, "No space left on device"), PermissionError(errno.EACCES, "", "{}")],
        ids=["full", "not allowed"],
    )
    def test_a_full_disk_is_no_fault_of_the_url(self, tmp_path, monkeypatch, get, error):
        def fail(url, target):
            raise type(error)(error.errno, error.strerror, error.filename and str(target))

        monkeypatch.setattr(remote, "_copy", fail)
        with pytest.raises(OSError, match=rf"\[Errno {error.errno}\]"):
            get("https://nowhere.test/1.png")

    def test_what_a_killed_run_left_half_done_goes(self, tmp_path):
        abandoned, recent = (tmp_path / "ab" / f"abc.{name}.part" for name in ("one", "two"))
        for path in (abandoned, recent):
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"half")
        os.utime(abandoned, (0, 0))
        remote.Downloader(tmp_path)
        assert (abandoned.exists(), recent.exists()) == (False, True)

    def test_another_run_may_complete_a_download_meanwhile(self, tmp_path):
        listed = tmp_path / "ab" / "abc.one.part"
        listed.parent.mkdir()
        listed.symlink_to(tmp_path / "nowhere")  # listed, and not there when it is looked at
        remote.Downloader(tmp_path)

    def test_when_nothing_can_be_reached_it_gives_up(self, monkeypatch, server, get):
        server.close()
        monkeypatch.setattr(remote, "MOST_FAILURES_IN_A_ROW", 5)
        for number in range(4):
            with pytest.raises(BadImage):
                get(f"{server.url}/{number}.png")
        with pytest.raises(UserError, match=r"5 downloads in a row failed, .*4\.png.* run again"):
            get(f"{server.url}/4.png")

    def test_dead_links_among_living_ones_do_not_end_it(self, monkeypatch, server, get):
        monkeypatch.setattr(remote, "MOST_FAILURES_IN_A_ROW", 3)
        for number in range(10):
            server.failures[f"/{number}.png"] = [500] * 3 if number % 2 else [404]
            with pytest.raises(BadImage):
                get(f"{server.url}/{number}.png")

    def test_a_host_that_is_gone_ends_nothing_where_another_answers(
        self, monkeypatch, pictures, server, get
    ):
        monkeypatch.setattr(remote, "MOST_FAILURES_IN_A_ROW", 3)
        gone = "http://127.0.0.1:9"  # where nobody listens
        get(f"{server.url}/{pictures[0]}")
        for number in range(3):
            with pytest.raises(BadImage, match="ClientConnectorError"):
                get(f"{gone}/{number}.png")
        for number in range(9):
            with pytest.raises(BadImage, match="not tried, after 3 downloads") as caught:
                get(f"{gone}/{number}.png")
            assert caught.value.problem == "not_downloaded"
        assert get(f"{server.url}/{pictures[1]}").exists()
        server.close()
        for number in range(2):
            with pytest.raises(BadImage):
                get(f"{server.url}/lost{number}.png")
        with pytest.raises(UserError, match="3 downloads in a row failed"):
            get(f"{server.url}/lost2.png")

    def test_a_url_may_hold_what_elsewhere_parts_a_chain_of_them(self, tmp_path, server, get):
        (tmp_path / "a::b.png").write_bytes(b"picture")
        assert get(f"{server.url}/a::b.png").read_bytes() == b"picture"

    def test_an_unknown_scheme(self, get):
        with pytest.raises(UserError, match=r"names nosuch://a/1\.png, which can't be opened: "):
            get("nosuch://a/1.png")

    @pytest.mark.slow
    def test_a_bucket(self, tmp_path, pictures, get, monkeypatch):
        import s3fs
        from moto.server import ThreadedMotoServer

        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        try:
            endpoint = "http://{}:{}".format(*server.get_host_and_port())
            for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
                monkeypatch.setenv(name, "testing")
            monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
            bucket = s3fs.S3FileSystem(endpoint_url=endpoint)
            bucket.mkdir("photos")
            content = (tmp_path / pictures[0]).read_bytes()
            bucket.pipe("photos/a b.png", content)
            assert get("s3://photos/a b.png").read_bytes() == content
            with pytest.raises(BadImage, match="gone"):
                get("s3://photos/gone.png")
        finally:
            server.stop()

    def test_a_picture_that_is_mended_behind_its_url_is_asked_for_again(
        self, tmp_path, pictures, server, monkeypatch
    ):
        rows = [
            f"{server.url}/{name},{label}"
            for name, label in zip(pictures, ["a", "b", "a", "b", "a", ""], strict=True)
        ]
        write_table(tmp_path / "t.csv", "path,label", *rows)
        content = params.read(ROOT / "params.yaml")
        content["dataset"] |= {"name": "image_table", "path": "t.csv"}
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
        monkeypatch.chdir(tmp_path)
        sound = Path(pictures[0]).read_bytes()
        Path(pictures[0]).write_bytes(b"<html>please log in</html>")
        with pytest.raises(
            UserError, match=r"2 of 6 images can't be used \(1 empty_label, 1 not_an_image\)"
        ):
            fetch.main()
        Path(pictures[0]).write_bytes(sound)
        shutil.rmtree(paths.RAW)  # as DVC does
        before = Counter(server.asked)
        with pytest.raises(UserError, match=r"1 of 6 images can't be used \(1 empty_label\)"):
            fetch.main()
        assert (server.asked - before).keys() == {f"/{pictures[0]}"}

    def test_a_table_of_urls_of_several_kinds(self, tmp_path, pictures, server):
        memory = fsspec.filesystem("memory")
        memory.pipe("/photos/five.png", (tmp_path / pictures[5]).read_bytes())
        urls = [
            f"{server.url}/{pictures[0]}",
            f"{server.url}/{pictures[1]}",
            (tmp_path / pictures[2]).as_uri(),
            pictures[3],
            f"{server.url}/photos/gone.png",
            "memory://photos/five.png",
            f"{server.url}/{pictures[1]}",
        ]
        labels = itertools.cycle(["cat", "dog"])
        rows = [f"{url},{label}" for url, label in zip(urls, labels, strict=False)]
        table = write_table(tmp_path / "t.csv", "path,label", *rows)
        server.failures[f"/{pictures[0]}"] = [503, "cut off"]
        raw, builder = prepare(table)
        sources = {urls[0]: 0, urls[1]: 1, urls[2]: 2, urls[3]: 3, urls[5]: 5}
        for image in raw:
            picture = tmp_path / pictures[sources[image.columns["name"]]]
            assert image.encoded == picture.read_bytes()
        assert raw.count == 6
        (row,) = builder.rejected["train"]
        assert (row.id, row.name, row.problem) == ("table row 5", urls[4], "not_downloaded")
        # A second run goes on from what is there.
        asked = Counter(server.asked)
        (tmp_path / "raw").rename(tmp_path / "first")
        library.prepare(
            ImageTable(
                table=table,
                path_column="path",
                label_column="label",
                split_column=None,
                group_column=None,
                downloads=tmp_path / "downloads",
                data_dir=tmp_path / "again",
            ),
            None,
            tmp_path / "tfds",
            tmp_path / "raw",
        )
        assert server.asked - asked == {"/photos/gone.png": 1}
