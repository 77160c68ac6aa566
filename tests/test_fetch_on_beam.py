"""A runner of Apache Beam stores what the stage stores without one, byte for byte."""

import contextlib
import os
import socket
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import yaml

from stages import fetch
from stages.common import params, paths
from stages.common.datasets import image_folder, library, sources
from stages.common.datasets.raw import RawDataset
from stages.common.image_names import is_image
from stages.common.run import UserError
from tests import ROOT

PYTHON = ROOT / ".venv-beam" / "bin" / "python"


def content_with(**values) -> dict:
    """The committed params with other values in the section `dataset`."""
    content = params.read(ROOT / "params.yaml")
    content["dataset"] |= values
    return content


def dataset_params(**values) -> fetch.FetchParams:
    return params.check(content_with(**values), "dataset", fetch.FetchParams)


@pytest.fixture
def own(tmp_path, draw_images) -> Path:
    """A folder with official splits, nested classes, and files that are no images."""
    folder = tmp_path / "own"
    for number, name in enumerate(["train/cat", "train/dog/old", "test/cat", "test/dog/old"]):
        draw_images(folder / name, 3 + number)
    draw_images(folder / "train" / "dog", 2)
    (folder / "train" / "cat" / "._000.png").write_bytes(b"what macOS leaves on other disks")
    (folder / "train" / "cat" / "notes.txt").write_text("about these images")
    (folder / "train" / "link").symlink_to(folder / "train" / "cat")
    return folder


def test_a_link_to_what_is_not_there_is_rejected_as_without_beam(own):
    (own / "train" / "dog" / "gone.png").symlink_to(own / "nowhere.png")
    for on_beam in (False, True):
        builder = image_folder.ImageFolder(folder=own, on_beam=on_beam, data_dir=own / "building")
        if not on_beam:
            builder.download_and_prepare()
        assert {split: len(rows) for split, rows in builder.rejected.items()} == {
            "test": 0,
            "train": 1,
        }
        (row,) = builder.rejected["train"]
        assert (row.name, row.label, row.problem) == ("train/dog/gone.png", "dog", "missing_file")


class TestParams:
    def test_without_a_runner_nothing_changes(self):
        dataset = dataset_params()
        assert (dataset.beam_runner, dataset.beam_options, dataset.beam_folder) == (None,) * 3
        assert library.beam_config(dataset.beam_runner, dataset.beam_options) is None
        assert fetch.describe_beam_without_effect(dataset) == []
        assert fetch.building_folder(dataset) == str(paths.RAW / "building")

    def test_what_is_given_without_a_runner_is_said_to_have_no_effect(self):
        dataset = dataset_params(beam_options=["--direct_num_workers=4"], beam_folder="gs://a")
        assert fetch.describe_beam_without_effect(dataset) == [
            f"dataset.{key}: without effect, since dataset.beam_runner is null"
            for key in ("beam_options", "beam_folder")
        ]

    @pytest.mark.parametrize(
        ("values", "error"),
        [
            (
                {"beam_runner": "SparkRuner"},
                r"dataset\.beam_runner: expected null, or one of DirectRunner, .*SparkRunner, "
                r"received 'SparkRuner'; did you mean .*'SparkRunner'",
            ),
            (
                {"beam_runner": "SparkRunner", "beam_options": ["spark_version=3"]},
                r"dataset\.beam_options: expected --key=value, received 'spark_version=3'",
            ),
            (
                {"beam_runner": "SparkRunner", "beam_options": "--spark_version=3"},
                r"dataset\.beam_options: expected null, or a list of options .* received '--spark",
            ),
            (
                {"beam_runner": "DirectRunner", "beam_folder": ""},
                r"dataset\.beam_folder: expected null, or a folder or bucket",
            ),
            (
                {"beam_runner": "FlinkRunner", "name": "image_table"},
                r"dataset\.beam_runner: expected null for image_table, .* received 'FlinkRunner'",
            ),
        ],
    )
    def test_a_mistake_is_one_sentence(self, values, error):
        with pytest.raises(UserError, match=error):
            dataset_params(**values)

    def test_workers_get_whole_paths(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        for folder, whole in (
            (None, f"{tmp_path}/data/raw/building"),
            ("shared", f"{tmp_path}/shared/warmstart_building"),
            ("gs://bucket/some/", "gs://bucket/some/warmstart_building"),
        ):
            dataset = dataset_params(beam_runner="DirectRunner", beam_folder=folder)
            assert fetch.building_folder(dataset) == whole


def test_without_the_package_the_first_thing_is_what_to_do(tmp_path, monkeypatch):
    content = content_with(beam_runner="DirectRunner")
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(library, "BEAM_PACKAGE", "no_such_package")
    with pytest.raises(UserError, match=r"DirectRunner needs Apache Beam.* `make fetch-on-beam`"):
        fetch.main()
    assert not (tmp_path / "data").exists()


def test_workers_that_write_elsewhere_need_a_folder_in_common(tmp_path, monkeypatch):
    class Elsewhere:
        name = "image_folder"
        split_names = ("train",)
        data_path = tmp_path / "building" / "1.0.0"
        url_infos = MANUAL_DOWNLOAD_INSTRUCTIONS = None

        def download_and_prepare(self, **_):
            raise FileNotFoundError(f"{self.data_path}/image_folder-train.split_info.json")

    monkeypatch.setattr(library, "beam_config", lambda runner, options: None)
    with pytest.raises(UserError, match=r"dataset\.beam_folder: .*FlinkRunner wrote to another"):
        library.prepare(Elsewhere(), None, tmp_path / "d", tmp_path / "raw", "FlinkRunner")


def test_an_archive_is_one_stream(tmp_path):
    path = tmp_path / "images.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("cat/1.png", "dog/1.png"):
            archive.writestr(name, b"x")
    dataset = dataset_params(name="image_folder", path=str(path), beam_runner="DirectRunner")
    with pytest.raises(UserError, match=r"images\.zip is an archive, .* one stream.* unpack it"):
        fetch.make_builder(dataset, tmp_path / "building")


def test_folder_by_folder_workers_find_the_files_that_one_walk_finds(own):
    source = sources.Folder(own)
    layout = image_folder.survey(source.names(), own, strip_top=False)
    listed = [
        name for folder in layout.folders for name in image_folder.image_names(folder, source)
    ]
    assert sorted(listed) == sorted(filter(is_image, source.names()))
    assert len(listed) == len(set(listed)) == 23


def run_fetch(python: Path, folder: Path, **values) -> dict[str, bytes]:
    """Runs the stage in a folder of its own; the files of data/raw by name."""
    folder.mkdir()
    content = content_with(**values)
    (folder / "params.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    done = subprocess.run(
        [python, "-m", "stages.fetch"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return {path.name: path.read_bytes() for path in (folder / "data" / "raw").iterdir()}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_for(port: int) -> None:
    """Returns when something listens; fails after a minute."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.2)
    raise AssertionError(f"nothing listens on port {port}")


@pytest.fixture
def engine(tmp_path):
    """Options of an engine as Flink and Spark are one: a job server, and workers elsewhere.

    Beam's own job server stands in for theirs, which Beam would have to download.
    """
    elsewhere = tmp_path / "elsewhere"  # what a worker finds by a relative path is not the data
    elsewhere.mkdir()
    path = f"{PYTHON.parent}{os.pathsep}{os.environ['PATH']}"  # workers are started as `python`
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
    jobs, workers = free_port(), free_port()
    commands = (
        ("apache_beam.runners.portability.local_job_service_main", "--port", str(jobs)),
        ("apache_beam.runners.worker.worker_pool_main", "--service_port", str(workers)),
    )
    with contextlib.ExitStack() as stack:
        for command in commands:
            started = subprocess.Popen(
                [PYTHON, "-m", *command],
                cwd=elsewhere,
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            stack.callback(started.wait, 30)
            stack.callback(started.terminate)
        wait_for(jobs)
        wait_for(workers)
        yield [
            f"--job_endpoint=localhost:{jobs}",
            "--environment_type=EXTERNAL",
            f"--environment_config=localhost:{workers}",
        ]


@pytest.mark.slow
@pytest.mark.skipif(not PYTHON.exists(), reason="`make test-all` installs Apache Beam")
class TestOnBeam:
    def test_elpv(self, tmp_path):
        alone = run_fetch(sys.executable, tmp_path / "alone")
        on_beam = run_fetch(PYTHON, tmp_path / "on_beam", beam_runner="DirectRunner")
        assert on_beam == alone
        assert RawDataset(tmp_path / "on_beam" / "data" / "raw").count == 2624

    def test_image_folder(self, tmp_path, own, engine):
        source = {"name": "image_folder", "path": "../own"}
        shared = tmp_path / "shared"
        shared.mkdir()
        (shared / "of others.txt").write_text("stays")
        ways = {
            "alone": {},
            "direct": {"beam_runner": "DirectRunner"},
            "engine": {
                "beam_runner": "PortableRunner",
                "beam_options": engine,
                "beam_folder": "../shared",
            },
        }
        stored = {
            way: run_fetch(PYTHON if values else sys.executable, tmp_path / way, **source, **values)
            for way, values in ways.items()
        }
        assert stored["direct"] == stored["alone"]
        assert stored["engine"] == stored["alone"]
        assert [path.name for path in shared.iterdir()] == ["of others.txt"]
        images = list(RawDataset(tmp_path / "engine" / "data" / "raw"))
        assert len(images) == 23
        for image in images:
            assert image.encoded == (own / image.name).read_bytes()
