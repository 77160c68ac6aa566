"""Files appear whole, and none that is there is written into: it may be a link."""

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stages.common import (
    blocks,
    files,
    gallery,
    inventory,
    models,
    plots,
    predictions,
    splits,
    tables,
)
from stages.common.shards import write_all
from tests import ROOT


def test_the_new_file_takes_the_place_of_the_old_one_at_the_end(tmp_path):
    path = tmp_path / "folder" / "table.csv"
    for text in ("first", "second"):
        with files.replacing(path) as new:
            new.write_text(text)
            assert new.name.endswith("table.csv")
            assert not path.exists() or path.read_text() == "first"
        assert path.read_text() == text
    assert os.listdir(path.parent) == ["table.csv"]


def test_what_fails_half_way_leaves_what_was_there(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("whole")

    def rows():
        yield ["1"]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tables.write_csv(path, ["column"], rows())
    assert path.read_text() == "whole"
    assert os.listdir(tmp_path) == ["table.csv"]


def write_model(folder: Path, number: int) -> None:
    import keras

    images = keras.Input((2,))
    output = keras.layers.Dense(number)(images)
    models.save(keras.Model(images, output), folder / "model.keras")


def write_gallery(folder: Path, number: int) -> None:
    picture = np.full((8, 8, 3), 40 * number, np.uint8)
    gallery.write(
        folder / "gallery",
        [gallery.Choice(0, ("sure",), explained=False)],
        pictures={0: picture},
        overlays={},
        labels=np.array([0]),
        probabilities=np.array([[0.5, 0.5]]),
        ids=[f"id{number}"],
        names=["name"],
        class_names=["a", "b"],
    )


def write_layers(folder: Path, number: int) -> None:
    del folder
    blocks.write_layers([f"block{number}"])


def write_picture(folder: Path, number: int) -> None:
    plots.sentence(folder / "plot.png", str(number))


WRITERS = {
    "metrics": lambda folder, number: tables.write_metrics(folder / "a.json", {"a": number}),
    "table": lambda folder, number: tables.write_csv(folder / "a.csv", ["a"], [[number]]),
    "splits": lambda folder, number: splits.write(
        folder / "a.csv", [splits.SplitRow(str(number), "train", "a", "g", {})], []
    ),
    "inventory": lambda folder, number: inventory.write(
        folder / "a.csv", [inventory.InventoryRow(id=str(number), name="name", label="label")]
    ),
    "shards": lambda folder, number: write_all(
        folder / "shards", [(np.full(4, number, np.uint8), 0, "id")], "uint8", ["a"]
    ),
    "predictions": lambda folder, number: predictions.write(
        folder / "a.csv", [str(number)], np.array([0]), np.array([[0.5, 0.5]]), ["a", "b"]
    ),
    "model": write_model,
    "gallery": write_gallery,
    "layers": write_layers,
    "picture": write_picture,
}


@pytest.mark.parametrize("name", WRITERS)
def test_an_output_that_is_a_link_into_the_cache_is_replaced(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outputs, cache = tmp_path / "data", tmp_path / "cache"
    outputs.mkdir()
    cache.mkdir()
    WRITERS[name](outputs, 1)
    cached = {}
    for number, path in enumerate(path for path in outputs.rglob("*") if path.is_file()):
        link = cache / str(number)
        link.hardlink_to(path)
        link.chmod(0o444)  # as DVC has them
        cached[link] = link.read_bytes()
    assert cached
    WRITERS[name](outputs, 2)
    assert {link: link.read_bytes() for link in cached} == cached
    written = {path.read_bytes() for path in outputs.rglob("*") if path.is_file()}
    assert written - set(cached.values())


def test_shards_of_an_earlier_run_are_gone(tmp_path):
    """`dvc commit` would take them along."""
    write_all(tmp_path, [(np.zeros(4, np.uint8), 0, "id")], "uint8", ["a"])
    (tmp_path / "shard-00007.tfrecord").write_bytes(b"of a larger set")
    write_all(tmp_path, [(np.zeros(4, np.uint8), 0, "id")], "uint8", ["a"])
    assert sorted(os.listdir(tmp_path)) == ["index.json", "shard-00000.tfrecord"]


def test_a_folder_that_is_a_link_is_emptied_behind_it(tmp_path):
    """A larger disk, say."""
    (tmp_path / "disk" / "inner").mkdir(parents=True)
    (tmp_path / "disk" / "file").touch()
    (tmp_path / "folder").symlink_to(tmp_path / "disk")
    files.empty(tmp_path / "folder")
    assert (tmp_path / "folder").is_symlink()
    assert not os.listdir(tmp_path / "disk")


def test_what_a_killed_process_leaves_is_not_for_git(tmp_path):
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    shutil.copy(ROOT / ".gitignore", tmp_path)
    with files.replacing(tmp_path / "metrics" / "head.json") as new:
        command = ["git", "check-ignore", "--quiet", new]
        assert subprocess.run(command, cwd=tmp_path).returncode == 0
        new.touch()


def test_pictures_that_are_written_can_be_read(tmp_path):
    write_picture(tmp_path, 1)
    with Image.open(tmp_path / "plot.png") as picture:
        assert picture.size == (875, 200)
