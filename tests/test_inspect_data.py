import dataclasses
import json
import os
import subprocess
import sys

import pytest

from stages.common import inventory, params
from stages.split import SplitParams
from tests import ROOT
from tests.toy_project import ToyProject
from tools import inspect_data


def rows(label: str, count: int, width: int = 300, height: int = 300, **changes) -> list:
    """Good images of a class, in colour."""
    known = {"format": "JPEG", "mode": "RGB", "red": 9.0, "green": 90.0, "blue": 50.0} | changes
    return [
        inventory.InventoryRow(
            id=f"{label} {number}",
            name=f"{label}/{number}.jpg",
            label=label,
            width=width,
            height=height,
            frames=1,
            **known,
        )
        for number in range(count)
    ]


def bad_rows(label: str, count: int, problem: str) -> list:
    return [
        inventory.InventoryRow(
            id=f"{problem} {n}", name=f"{label}/bad{n}.jpg", label=label, problem=problem
        )
        for n in range(count)
    ]


@pytest.fixture
def content() -> dict:
    """The committed params, which must not decide what these tests see."""
    read = params.read(ROOT / "params.yaml")
    read["dataset"]["on_bad_image"] = "error"
    read["preprocess"]["image_size"] = read["backbone"]["image_size"] = 224
    read["split"] |= {"test": 0.25, "min_images_per_class": 3}
    read["fine_tune"]["image_sizes"] = [[1, 160]]
    for section in ("train_head", "fine_tune"):
        read[section]["class_weights"] = None
    return read


def metrics(test: int = 500, **duplicates) -> dict:
    kinds = (
        *("exact_groups", "exact_images", "near_groups", "near_images"),
        *("conflicting_labels", "near_conflicting_labels", "straddled_official"),
    )
    return {
        "duplicates": dict.fromkeys(kinds, 0) | duplicates,
        "splits": {name: {"images": test, "class": {}} for name in ("train", "valid", "test")},
    }


def summary(inventory_rows, content, official=None, of_split=None) -> dict[str, list[str]]:
    """The lines of the summary by the titles of its parts."""
    text = inspect_data.summary(
        inspect_data.count(inventory_rows), official or {}, of_split, content
    )
    # One screen, wherever it is shown.
    assert len(text.splitlines()) <= 40
    parts = (part.splitlines() for part in text.split("\n\n"))
    return {title: [line.strip() for line in lines] for title, *lines in parts}


def test_good_data_needs_nothing(content):
    found = summary(
        [*rows("cat", 20), *rows("dog", 30, width=400, format="PNG", green=9.0, blue=9.2)],
        content,
        official={"train": 50},
        of_split=metrics(test=500),
    )
    assert found == {
        "What is there": [
            "images    50, of which 50 can be used",
            "classes   2: dog 30, cat 20",
            "width     300 to 400 pixels, median 400",
            "height    300 pixels, all",
            "formats   PNG 30, JPEG 20",
            "colours   60 % grey, 40 % in colour",
            "source    50 in 'train'",
            "splits    train 500, valid 500, test 500",
        ],
        "What is wrong": ["nothing"],
        "What to do": ["nothing: `make repro`"],
    }


def test_messy_data_gets_lines_for_params(content):
    found = summary(
        [
            *rows("cat", 40),
            *rows("dog", 10),
            *rows("eel", 2, width=1000, height=200),
            *bad_rows("cat", 5, "truncated"),
            *bad_rows("fox", 1, "not_an_image"),
        ],
        content,
        of_split=metrics(
            test=12,
            exact_images=1,
            exact_groups=1,
            near_images=9,
            near_groups=4,
            conflicting_labels=1,
            near_conflicting_labels=2,
        ),
    )
    assert found["What is there"][:2] == [
        "images    58, of which 52 can be used",
        "classes   4: cat 40, dog 10, eel 2, fox 0",
    ]
    assert found["What is wrong"] == [
        "5 images rejected, cut off or damaged: cat/bad0.jpg, cat/bad1.jpg, cat/bad2.jpg "
        "and 2 more",
        "1 image rejected, no image of a known format: fox/bad0.jpg",
        "1 exact copy in 1 group, each kept in one split",
        "9 near duplicates in 4 groups, each kept in one split",
        "1 image there several times, under different labels",
        "2 groups of near duplicates under different labels",
        "2 classes too small to be divided: fox 0, eel 2",
        "unequal classes: the largest has 20 times the images of the smallest",
    ]
    settings = [line.split("  #")[0] for line in found["What to do"]]
    assert settings == [
        "mend or remove the images that data/rejected.csv lists",
        "or leave them out: dataset.on_bad_image: skip",
        "decide for one label of each copy in data/duplicates.csv",
        "look at near duplicates under different labels in data/duplicates.csv",
        "add images to the small classes, merge or remove them; or split.min_images_per_class: "
        "null",
        "train_head.class_weights: balanced",
        "fine_tune.class_weights: balanced",
        "split.folds: 5",
    ]


def test_what_is_set_already_is_not_advised(content):
    content["dataset"]["on_bad_image"] = "skip"
    content["train_head"]["class_weights"] = "balanced"
    content["split"]["test"] = "official"
    images = [*rows("cat", 40), *rows("dog", 10), *bad_rows("cat", 1, "truncated")]
    found = summary(images, content, official={"train": 40, "test": 10}, of_split=metrics())
    assert [line.split("  #")[0] for line in found["What to do"]] == [
        "mend or remove the images that data/rejected.csv lists",
        "fine_tune.class_weights: balanced",
    ]


@pytest.mark.parametrize(
    ("side", "stored", "seen", "advice"),
    [
        (300, 224, 224, None),
        (32, 224, 224, "backbone.image_size: 160"),
        (24, 224, 224, "backbone.image_size: 128\nfine_tune.image_sizes: null"),
        (300, 128, 224, "preprocess.image_size: 224"),
        (300, 300, 224, None),  # for random crops
        (600, 600, 224, "preprocess.image_size: 448"),
        (400, 600, 224, None),
        (200, 300, 224, None),  # no pixel is stored that is not there
        (45, 224, 224, None),
        (32, 160, 160, None),  # as presets/cifar10_cpu.yaml has it
    ],
)
def test_sizes_that_cost_more_than_they_give(content, side, stored, seen, advice):
    content["preprocess"]["image_size"], content["backbone"]["image_size"] = stored, seen
    images = rows("cat", 9, side, side) + rows("dog", 9, side, side)
    lines = summary(images, content, of_split=metrics())["What to do"]
    settings = [line.split("  #")[0] for line in lines]
    assert settings == (advice or "nothing: `make repro`").splitlines()


def test_folds_are_not_advised_where_they_are_set_or_refused(content):
    images = rows("cat", 40) + rows("dog", 40)
    content["split"]["folds"] = 5
    assert summary(images, content, of_split=metrics(test=16))["What to do"][0].startswith("noth")
    content["split"] |= {"folds": None, "test": "official"}
    official = {"train": 64, "testing": 16}
    found = summary(images, content, official, metrics(test=16))
    assert found["What to do"] == ["nothing: `make repro`"]


def test_what_a_split_lacks_and_what_was_left_out_is_told(content):
    of_split = metrics(straddled_official=2)
    of_split["splits"]["train"]["class"] = {"cat": 9, "dog": 0}
    of_split["splits"]["test"]["class"] = {"cat": 1, "dog": 9}
    found = summary(rows("cat", 10) + rows("dog", 9), content, of_split=of_split)
    assert found["What is wrong"] == [
        "2 images with a copy, a near duplicate or the group of one in an official split: left out "
        "(split.official_copies)",
        "no image in 'train' of dog",
    ]


def test_nearly_black_images_of_sixteen_bits_are_wrong(content):
    mixed = [
        dataclasses.replace(row, mode=mode, red=8.0, green=8.0, blue=8.0)
        for mode, label in (("I;16", "cat"), ("L", "dog"))
        for row in rows(label, 9)
    ]
    (told,) = summary(mixed, content, of_split=metrics())["What is wrong"]
    assert told.startswith("9 of the images of 16 bits are nearly black, cat/0.jpg the first")


def test_pages_that_are_channels_are_all_used(content):
    images = [dataclasses.replace(row, frames=5) for row in rows("cat", 9) + rows("dog", 9)]
    told = summary(images, content, of_split=metrics())["What is wrong"]
    assert told == ["18 images with several frames: only the first is used"]
    content["preprocess"]["channels"] = 5
    assert summary(images, content, of_split=metrics())["What is wrong"] == ["nothing"]


@pytest.mark.parametrize(
    ("changes", "advice"),
    [
        ({}, ["test: official", "train: 0.9"]),
        ({"train": 0.45, "valid": 0.3}, ["test: official", "train: 0.7"]),
        ({"valid": "official", "train": 0.75}, ["test: official"]),
        ({"folds": 5}, ["test: official", "train: 0.9", "folds: null"]),
        ({"folds": 5, "fold": 2}, ["test: official", "train: 0.9", "folds: null", "fold: 0"]),
    ],
)
def test_an_official_test_split_is_advised_with_all_that_it_wants(content, changes, advice):
    content["split"] |= {"train": 0.65, "valid": 0.1, "folds": None, "fold": 0, **changes}
    params.check(content, "split", SplitParams)
    official = {"train": 40, "test": 10}
    images = rows("cat", 9) + rows("dog", 9)
    found = summary(images, content, official, metrics(test=4))["What to do"]
    assert found[0] == "split.test: official  # the source brings a test split"
    settings = [line.split("  #")[0] for line in found]
    assert settings == [f"split.{line}" for line in advice]
    content["split"] |= params.parse("\n".join(advice))
    params.check(content, "split", SplitParams)
    assert summary(images, content, official, metrics())["What to do"] == ["nothing: `make repro`"]


def test_an_official_test_split_without_labels_is_not_advised(content):
    """As of ImageNet's: following the advice would end in an empty test split."""
    images = rows("cat", 9) + rows("dog", 9) + bad_rows("", 10, "empty_label")
    found = summary(images, content, {"train": 18, "test": 10}, metrics())["What to do"]
    assert not [line for line in found if line.startswith("split.")]


def test_long_pictures_and_many_classes_are_told_in_short(content):
    images = [row for n in range(50) for row in rows(f"class {n}", 60 + n, 100, 300)]
    found = summary(images, content, of_split=metrics())
    assert found["What is there"][1] == (
        "classes   50: class 49 109, class 48 108, class 47 107, …, class 2 62, class 1 61, "
        "class 0 60"
    )
    assert found["What is wrong"] == [
        "100 % of the images are more than 2 times as long as wide; the network sees them "
        "squashed to a square"
    ]


def test_nothing_usable_is_still_a_summary(content):
    found = summary(bad_rows("cat", 2, "missing_file"), content)
    assert found["What is there"] == ["images    2, of which 0 can be used", "classes   1: cat 0"]
    assert found["What is wrong"][-1].startswith("the data could not be divided")
    assert found["What to do"][0].startswith("mend what the error above names")


def test_a_split_that_fails_leaves_what_fetch_found(tmp_path):
    """Without a dvc.yaml, DVC fails at once."""
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    inventory.write(tmp_path / inventory.INVENTORY_FILE, rows("cat", 4) + rows("dog", 5))
    (tmp_path / "data" / "raw").mkdir()
    note = {"splits": [{"name": "train", "shardLengths": ["5", "4"]}]}
    (tmp_path / "data" / "raw" / "dataset_info.json").write_text(json.dumps(note))
    done = subprocess.run(
        [sys.executable, "-m", "tools.inspect_data"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "classes   2: dog 5, cat 4" in done.stdout
    assert "source    9 in 'train'" in done.stdout
    assert "the data could not be divided" in done.stdout
    assert done.stderr.endswith("error: fetch or split failed, as said above\n")


def test_the_command_runs_fetch_and_split_alone(tmp_path):
    project = ToyProject(tmp_path)
    (project.folder / "data" / "own" / "red" / "broken.png").write_bytes(b"no image")
    project.set_params({"dataset": {"on_bad_image": "skip"}})
    output = project.run("tools.inspect_data")
    ran = [line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")]
    assert ran == ["fetch", "split"]
    assert "blue" in output
    assert "1 image rejected, no image of a known format" in output
    assert (project.folder / "plots" / "data" / "samples.png").exists()
