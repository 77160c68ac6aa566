"""tools.export: every file runs in its own runtime and says what the Keras model says."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from stages.common import augment, backbones, blocks, heads, models, onnx_engine, paths, shards
from stages.common.run import UserError
from stages.extract_features import (
    describe_precision_without_effect,
    feature_function,
    onnx_feature_function,
)
from tests import ROOT
from tools import export

NAMES = ["blue", "grün", "red"]


@pytest.fixture(params=["differing shapes", "squares of more pixels"])
def project(tmp_path, monkeypatch, request) -> Path:
    """A folder with a model of two depths of features, and 24 test images."""
    monkeypatch.chdir(tmp_path)
    backbone = models.with_any_size(backbones.build("tiny", None, 32))
    backbone = models.at_layers(backbone, ["block0_relu", "block1_relu"])
    head = heads.build("dense", (24,), 3, hidden_units=[8], dropout=0.2)
    classifier = models.assemble(backbone, head, temperature=0.3)
    models.save(classifier, paths.FINE_TUNED, NAMES, shrunk_to=40)
    random = np.random.default_rng(0)
    heights = range(20, 44) if request.param == "differing shapes" else [40] * 24
    records = (
        (random.integers(0, 256, (height, 40, 3), dtype=np.uint8), n % 3, f"id {n}")
        for n, height in enumerate(heights)
    )
    shards.write_all(paths.IMAGES / "test", records, "uint8", NAMES)
    return tmp_path


def run(folder: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "tools.export"],
        cwd=folder,
        # Files are UTF-8 whatever the system's own encoding is; what is printed follows it.
        env={
            **{"PYTHONPATH": str(ROOT), "PATH": "", "LC_ALL": "C"},
            **{"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "utf-8"},
        },
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.slow
def test_every_file_agrees_with_the_keras_model(project):
    done = run(project)
    assert done.returncode == 0, done.stderr
    table = json.loads((project / "exports" / "table.json").read_text())
    assert table["images"] == 24
    rows = {row["file"]: row for row in table["rows"]}
    assert set(rows) == {
        "saved_model",
        "model.float32.tflite",
        "model.float16.tflite",
        "model.int8.tflite",
        "model.onnx",
    }
    for name in export.FLOAT32:
        assert rows[name]["agreement"] == 1
        assert rows[name]["largest_difference"] < 1e-5
    assert rows["model.int8.tflite"]["megabytes"] <= rows["model.float32.tflite"]["megabytes"]
    class_names = (project / "exports" / "class_names.json").read_text(encoding="utf-8")
    assert json.loads(class_names) == NAMES
    assert json.loads((project / "exports" / "input.json").read_text()) == {
        "model": "models/fine_tuned.keras",
        "shrunk_to": 40,
        "resize": "squash",
        "side": 32,
        "channels": 3,
    }
    assert (project / "exports" / "table.md").read_text() in done.stdout


def test_an_export_that_fails_leaves_the_one_before(project, monkeypatch):
    before = [export.FOLDER / "table.md", export.FOLDER / "model.onnx"]
    export.FOLDER.mkdir()
    for path in before:
        path.write_text("before")
    monkeypatch.setattr("sys.argv", ["export"])
    monkeypatch.setattr(export.onnx_engine, "check_installed", lambda _: None)
    monkeypatch.setattr(export, "write_saved_model", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export.main()
    assert [path.read_text() for path in before] == ["before"] * 2
    export.FOLDER.rename("elsewhere")
    export.FOLDER.symlink_to("elsewhere")
    with pytest.raises(UserError, match="expected a folder or none, received a link"):
        export.main()


def test_a_saved_model_is_exact_for_images_of_any_size(project):
    model = models.load(paths.FINE_TUNED)
    predict = export.runtime_of(export.write_saved_model(model, project))
    for shape in ((5, 32, 32, 3), (2, 50, 20, 3)):
        images = np.random.default_rng(1).uniform(0, 255, shape).astype("float32")
        np.testing.assert_allclose(predict(images), model.predict(images, verbose=0), atol=1e-6)


def test_the_model_of_one_size_is_the_same_model(project):
    model = models.load(paths.FINE_TUNED)
    images = np.random.default_rng(1).uniform(0, 255, (3, 32, 32, 3)).astype("float32")
    np.testing.assert_allclose(
        export.fixed_size(model).predict(images, verbose=0),
        model.predict(images, verbose=0),
        atol=1e-6,
    )


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setattr(onnx_engine, "PACKAGES", ("no_such_package",))
    with pytest.raises(UserError, match="needs no_such_package; `make extra NAME=export` installs"):
        onnx_engine.check_installed("tools.export")


def test_a_precision_that_onnx_runtime_leaves_out_is_said():
    assert describe_precision_without_effect("float32") is None
    sentence = describe_precision_without_effect("mixed_float16")
    assert sentence.startswith("runtime.precision mixed_float16: without effect here")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("features", "layers"),
    [("pooled", "all_blocks"), ("map", None), ("map", ["block10", "block14"])],
)
def test_onnx_runtime_gives_the_features_of_tensorflow(features, layers):
    backbone = models.with_any_size(backbones.build("efficientnet_lite0", "imagenet", 64))
    network = backbone.get_layer("backbone")
    backbone = models.at_layers(backbone, blocks.resolve(network, layers))
    images = np.random.default_rng(0).integers(0, 256, (4, 80, 80, 3), dtype=np.uint8)
    symmetries = [augment.IDENTITY, augment.LEFT_RIGHT]
    expected = feature_function(backbone, features, symmetries)(images)
    received = onnx_feature_function(backbone, features, symmetries)(images)
    assert received.shape == expected.shape
    assert received.dtype == expected.dtype == np.float16
    scale = np.abs(expected.astype(np.float32)).max()
    np.testing.assert_allclose(received.astype(np.float32), expected, atol=1e-3 * scale)
