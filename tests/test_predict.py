"""tools.predict as its users call it."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stages.common import geometry, models
from stages.common.datasets.sources import Folder
from stages.common.run import UserError
from tests import ROOT
from tools import predict

NAMES = ["blue", "green", "rot & süß"]


@pytest.fixture(scope="module")
def model_file(tmp_path_factory) -> Path:
    from stages.common import backbones, heads

    head = heads.build("linear", (16,), 3, hidden_units=[8], dropout=0.2)
    backbone = models.with_any_size(backbones.build("tiny", None, 32))
    path = tmp_path_factory.mktemp("model") / "moved.keras"
    models.save(models.assemble(backbone, head), path, NAMES)
    return path


@pytest.fixture
def folder(tmp_path) -> Path:
    """Five images of different shapes in nested folders, and one that is none."""
    random = np.random.default_rng(0)
    for number, size in enumerate([(32, 32), (50, 40), (20, 60), (90, 90), (31, 33)]):
        path = tmp_path / "images" / ("deep" if number % 2 else "") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    (tmp_path / "images" / "broken.jpg").write_bytes(b"no image")
    return tmp_path / "images"


def run(*arguments, cwd) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "tools.predict", *map(str, arguments)],
        cwd=cwd,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_folder_is_classified_and_a_broken_file_loses_nothing(folder, model_file, tmp_path):
    arguments = (folder, "--model", model_file, "--format", "csv", "--batch-size", 2, "--top", 3)
    result = run(*arguments, "--explain", tmp_path / "seen", cwd=tmp_path)
    assert result.returncode == 1
    assert "broken.jpg: not an image" in result.stderr
    assert "1 of 6 files could not be classified" in result.stderr
    assert "image/s" in result.stderr
    rows = list(csv.DictReader(result.stdout.splitlines()))
    assert len(rows) == 5 * 3
    assert {row["class"] for row in rows} == set(NAMES)
    for start in range(0, 15, 3):
        shares = [float(row["probability"]) for row in rows[start : start + 3]]
        assert shares == sorted(shares, reverse=True)
        assert sum(shares) == pytest.approx(1, abs=1e-5)
    seen = sorted((tmp_path / "seen").iterdir())
    assert len(seen) == 5
    assert Image.open(seen[0]).size == (64, 32)  # the picture, and where the network looked


def test_what_is_printed_is_what_the_model_says(folder, model_file):
    model = models.load(model_file)
    files = predict.find([folder / "0.png", folder / "deep" / "3.png"], "path")
    found = list(
        predict.classify(
            predict.Classifier(model_file),
            files,
            top=1,
            batch_size=8,
            on_bad=None,
            on_batch=lambda *_: None,
        )
    )
    for prediction in found:
        picture = geometry.shrink(Image.open(prediction.path), 32, "squash")
        row = model.predict(np.asarray(picture)[None].astype("float32"), verbose=0)[0]
        assert prediction.likeliest == [(NAMES[row.argmax()], pytest.approx(row.max(), abs=1e-5))]


def test_a_picture_is_shrunk_as_those_that_the_model_trained_on(folder, model_file, tmp_path):
    model = models.load(model_file)
    models.save(model, tmp_path / "model.keras", NAMES, shrunk_to=40)
    classifier = predict.Classifier(tmp_path / "model.keras")
    picture = Image.open(folder / "deep" / "3.png")  # 90 by 90
    stored = np.asarray(geometry.shrink(picture, 40, "squash"))
    expected = model.predict(stored[None].astype("float32"), verbose=0)
    given = (folder / "deep" / "3.png").read_bytes()
    assert classifier.decode(given).tolist() == stored.tolist()
    found = classifier.probabilities(classifier.picture(given)[None])
    np.testing.assert_allclose(found, expected, atol=1e-6)
    at_once = classifier.picture(Path(folder / "0.png").read_bytes())  # 32 by 32: stays as it is
    assert at_once.astype("uint8").tolist() == np.asarray(Image.open(folder / "0.png")).tolist()
    # In one go the picture would be another one.
    straight = np.asarray(geometry.shrink(picture, 32, "squash"), "float32")
    assert np.abs(classifier.picture(given) - straight).max() > 5


@pytest.mark.parametrize("name", ["0.png", "2.png"])
def test_pictures_of_one_small_size_are_seen_as_evaluate_sees_them(
    folder, model_file, tmp_path, name
):
    """`evaluate` leaves pictures of one size as they are stored, and rounds nothing after."""
    model = models.load(model_file)
    models.save(model, tmp_path / "model.keras", NAMES, shrunk_to=90)
    stored = np.asarray(Image.open(folder / name).resize((20, 24)))
    Image.fromarray(stored).save(tmp_path / "small.png")
    expected = models.on_device(model)(stored[None].astype("float32"))
    classifier = predict.Classifier(tmp_path / "model.keras")
    picture = classifier.picture((tmp_path / "small.png").read_bytes())
    np.testing.assert_allclose(classifier.probabilities(picture[None]), expected, atol=1e-6)


def test_a_name_that_no_file_can_have_loses_nothing(folder):
    good, bad = predict.read_files([folder / "0.png", folder / "a\0b.png"])
    assert good.encoded
    assert "null byte" in bad.unreadable


def test_json_is_one_list(folder, capsys):
    prediction = predict.Prediction(folder / "0.png", [("rot & süß", 0.75)])
    predict.write_json(iter([prediction, prediction]), sys.stdout)
    assert (
        json.loads(capsys.readouterr().out)
        == [
            {
                "image": str(folder / "0.png"),
                "predictions": [{"class": "rot & süß", "probability": 0.75}],
            }
        ]
        * 2
    )
    predict.write_json(iter([]), sys.stdout)
    assert json.loads(capsys.readouterr().out) == []


def test_a_table_names_its_images_relative_to_itself(folder):
    (folder / "list.csv").write_text("path,who\n0.png,a\ndeep/1.png,b\n", encoding="utf-8")
    (folder / "list.tsv").write_text("path\twho\n0.png\ta\ndeep/1.png\tb\n", encoding="utf-8")
    for table in ("list.csv", "list.tsv"):
        assert predict.find([folder / table], "path") == [folder / "0.png", folder / "deep/1.png"]
    with pytest.raises(UserError, match=r"no column 'paht'; did you mean 'path'.*--path-column"):
        predict.find([folder / "list.csv"], "paht")


def test_a_folder_is_searched_for_the_names_that_training_takes(folder):
    for name in ("a.JFIF", "b.heic", "._0.png", ".cache/c.png", "notes.txt"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"")
    found = {path.relative_to(folder).as_posix() for path in predict.find([folder], "path")}
    images = {"0.png", "2.png", "4.png", "deep/1.png", "deep/3.png", "broken.jpg"}
    # What can't be read is found too, so that it is named; what systems leave behind is not.
    assert found == images | {"a.JFIF", "b.heic"}


def test_a_folder_is_searched_behind_links_as_for_training(folder, draw_images, tmp_path):
    (seen,) = draw_images(tmp_path / "disk", 1)
    (folder / "linked").symlink_to(tmp_path / "disk")
    (folder / "linked" / "above").symlink_to(folder)  # has no end
    found = predict.find([folder], "path")
    assert folder / "linked" / seen.name in found
    assert found == [folder / name for name in Folder(folder).names()]


def test_mistakes_are_told_before_anything_heavy(folder, model_file, tmp_path):
    with pytest.raises(UserError, match=r"no\.png does not exist; give images"):
        predict.find([folder / "no.png"], "path")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"holds no file that ends in \.jpg"):
        predict.find([tmp_path / "empty"], "path")
    with pytest.raises(UserError, match="does not exist; `make repro` makes"):
        models.class_names(tmp_path / "none.keras")
    for path in (folder / "0.png", folder):
        with pytest.raises(UserError, match=r"is not a \.keras file"):
            models.class_names(path)
    refused = run(folder, "--explain", folder / "0.png", cwd=tmp_path)
    assert "--explain: expected a folder, received the file" in refused.stderr
    models.save(models.load(model_file), tmp_path / "plain.keras")
    with pytest.raises(UserError, match="holds no class names"):
        models.class_names(tmp_path / "plain.keras")
