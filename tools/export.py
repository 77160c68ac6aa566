"""Exports a model for other programs, and runs every file: python -m tools.export [--model FILE].

Writes to exports/: a SavedModel with a serving signature, LiteRT in float32, float16 and with int8
weights, and ONNX; `class_names.json`; `input.json`, which model it was and what a new picture has
to become: shrunk to `shrunk_to` pixels as `preprocess` does it, then a square of `side` pixels,
bilinear, antialiased, of values from 0 to 255; then a table of what each file gives over the test
split by its runtime.
ONNX and its runtime are an optional extra: make extra NAME=export.
"""

import argparse
import contextlib
import io
import json
import platform
import shutil
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from stages.common import geometry, models, onnx_engine, paths, shards
from stages.common.run import UserError, progress, run, start_tensorflow
from tools import markdown

FOLDER = Path("exports")
LARGEST_DIFFERENCE = 1e-4  # of a probability, that a file in float32 may have
TIMED_IMAGES, ROUNDS = 20, 5
FLOAT32 = ("saved_model", "model.float32.tflite", "model.onnx")

Predict = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Row:
    """One exported file against the Keras model."""

    file: str
    megabytes: float
    accuracy: float  # on the test split
    agreement: float  # part of the images with the same likeliest class
    largest_difference: float  # of any probability
    latency_ratio: float  # median time of one image over that of the Keras model, in turn


def fixed_size(model):
    """The classifier for images (batch, side, side, channels) float32 of one size, for phones."""
    import keras

    side, channels = model.get_layer("resize").height, model.input_shape[-1]
    images = keras.Input((side, side, channels), name="images", dtype="float32")
    features = model.get_layer("backbone")(images, training=False)
    for layer in models.pool_of(model):
        features = layer(features)
    logits = model.get_layer("head")(features, training=False)
    cooled = model.get_layer("temperature")(logits)
    return keras.Model(images, model.get_layer("probabilities")(cooled), name="classifier")


def write_saved_model(model, folder: Path) -> Path:
    """A SavedModel: images of any size, float32 0–255, to probabilities."""
    path = folder / "saved_model"
    onnx_engine.save_quietly(model, path)
    return path


def write_litert(model, folder: Path) -> list[Path]:
    """Three LiteRT files of a model of one size: float32, float16 weights, int8 weights."""
    import tensorflow as tf

    written = []
    for name, types in (("float32", None), ("float16", [tf.float16]), ("int8", [])):
        converter = tf.lite.TFLiteConverter.from_keras_model(model)
        if types is not None:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.target_spec.supported_types = types
        path = folder / f"model.{name}.tflite"
        with contextlib.redirect_stdout(io.StringIO()):  # a line for each weight
            content = converter.convert()
        path.write_bytes(content)
        written.append(path)
    return written


def runtime_of(path: Path) -> Predict:
    """Images (batch, side, side, channels) float32 to probabilities, by the file alone."""
    if path.suffix == ".tflite":
        return _litert(path)
    if path.suffix == ".onnx":
        return onnx_engine.load(path)
    import tensorflow as tf

    loaded = tf.saved_model.load(str(path))
    return lambda images: loaded.serve(tf.constant(images)).numpy()


def _litert(path: Path) -> Predict:
    import tensorflow as tf

    interpreter = tf.lite.Interpreter(model_path=str(path))
    given, result = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    interpreter.allocate_tensors()

    def predict(images: np.ndarray) -> np.ndarray:
        rows = []
        for image in images:  # the file takes one at a time
            interpreter.set_tensor(given["index"], image[None])
            interpreter.invoke()
            rows.append(interpreter.get_tensor(result["index"])[0].copy())
        return np.stack(rows)

    return predict


def compare(
    file: Path,
    keras_predict: Predict,
    batches: Iterable[tuple[np.ndarray, np.ndarray]],
    reference: np.ndarray,
) -> Row:
    """Runs a file over the test split.

    Args:
        file: what was exported.
        keras_predict: the Keras model, for the time.
        batches: (images (batch, side, side, channels) float32, labels (batch,)).
        reference: the Keras model's probabilities of all images.
    """
    predict = runtime_of(file)
    probabilities, labels, first = [], [], None
    for images, batch_labels in batches:
        first = images if first is None else first
        probabilities.append(predict(images))
        labels.append(batch_labels)
    found, expected = np.concatenate(probabilities), np.concatenate(labels)
    chosen = found.argmax(axis=1)
    size = sum(part.stat().st_size for part in file.rglob("*")) if file.is_dir() else None
    return Row(
        file=file.name,
        megabytes=round((size or file.stat().st_size) / 1e6, 2),
        accuracy=round(float((chosen == expected).mean()), 4),
        agreement=round(float((chosen == reference.argmax(axis=1)).mean()), 4),
        largest_difference=float(f"{np.abs(found - reference).max():.2g}"),
        latency_ratio=round(latency_ratio(predict, keras_predict, first[:TIMED_IMAGES]), 2),
    )


def latency_ratio(predict: Predict, other: Predict, images: np.ndarray) -> float:
    """The time that one image takes over that of another runtime: both in turn, medians."""
    ratios = []
    for _ in range(ROUNDS + 1):
        seconds = []
        for function in (predict, other):
            started = time.perf_counter()
            for image in images:
                function(image[None])
            seconds.append(time.perf_counter() - started)
        ratios.append(seconds[0] / seconds[1])
    return statistics.median(ratios[1:])  # the first round warms up


def table(rows: list[Row]) -> str:
    """The table as it is written to exports/table.md."""
    header = ["file", "MB", "accuracy", "same class", "largest difference"]
    lines = [
        [
            row.file,
            str(row.megabytes),
            f"{row.accuracy:.3f}",
            f"{row.agreement:.1%}",
            f"{row.largest_difference:.1e}",
            f"{row.latency_ratio:.2f}",
        ]
        for row in rows
    ]
    return markdown.table([*header, "time of an image, × Keras"], lines) + "\n"


def _test_index(model: Path, class_names: Sequence[str]) -> shards.Index:
    """The index of the test images, on which files are tried; UserError without the model's."""
    folder = paths.IMAGES / "test"
    if not (folder / shards.INDEX_FILE).exists():
        raise UserError(
            f"{folder} has no test images, on which every file is tried beside the model; `make "
            "repro` or `dvc pull` brings them"
        )
    index = shards.read_index(folder)
    if list(index.class_names) != list(class_names):
        raise UserError(
            f"{model} knows the classes {', '.join(class_names)}, and {folder} has "
            f"{', '.join(index.class_names)}: they are not its test images"
        )
    return index


def main() -> None:
    """Exports, compares, writes the table; fails where a float32 file differs."""
    parser = argparse.ArgumentParser(prog="tools.export", description=__doc__.split(":")[0])
    parser.add_argument("--model", type=Path, default=paths.FINE_TUNED, help="a .keras file")
    options = parser.parse_args()
    onnx_engine.check_installed("tools.export")
    class_names = models.class_names(options.model)
    index = _test_index(options.model, class_names)
    start_tensorflow()
    import tensorflow as tf

    model = models.load(options.model)
    resize = model.get_layer("resize")
    side = resize.height
    if FOLDER.is_symlink() or (FOLDER.exists() and not FOLDER.is_dir()):
        raise UserError(f"{FOLDER}: expected a folder or none, received a link or a file; move it")
    # Beside it first: what is there stays until the new files are whole.
    building = FOLDER.with_name(f"{FOLDER.name}.new")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir()
    names = json.dumps(class_names, ensure_ascii=False) + "\n"
    (building / "class_names.json").write_text(names, encoding="utf-8")
    expected = {
        "model": options.model.as_posix(),
        "shrunk_to": models.shrunk_to(options.model) or side,
        "resize": geometry.of_layer(resize),
        "side": side,
        "channels": model.input_shape[-1],
    }
    (building / "input.json").write_text(json.dumps(expected, indent=2) + "\n")
    one_size = fixed_size(model)
    files = [
        write_saved_model(model, building),
        *write_litert(one_size, building),
        onnx_engine.write(one_size, building / "model.onnx"),
    ]
    forward = tf.function(lambda images: model(images, training=False), reduce_retracing=True)

    def keras_predict(images: np.ndarray) -> np.ndarray:
        return forward(tf.constant(images)).numpy()

    def batches():
        for images, labels, _ in shards.batches(paths.IMAGES / "test", 32, image_size=side):
            # `preprocess` may keep more pixels than the network sees, which is all that files take.
            yield resize(tf.cast(images, tf.float32)).numpy(), labels.numpy()

    reference = np.concatenate([keras_predict(images) for images, _ in batches()])
    rows = []
    for file in progress(files, total=len(files), unit="file", description="compare"):
        rows.append(compare(file, keras_predict, batches(), reference))
    text = table(rows)
    (building / "table.md").write_text(text, encoding="utf-8")
    described = {
        "model": options.model.as_posix(),
        "images": index.count,
        "machine": platform.machine(),
        "rows": [asdict(row) for row in rows],
    }
    (building / "table.json").write_text(json.dumps(described, indent=2) + "\n")
    print(text, end="")
    wrong = [
        row.file
        for row in rows
        # Not a number is no smaller than the limit either.
        if row.file in FLOAT32 and not row.largest_difference <= LARGEST_DIFFERENCE
    ]
    if wrong:
        raise UserError(
            f"{', '.join(wrong)} in {building}: differs from the Keras model by more than "
            f"{LARGEST_DIFFERENCE}; do not ship it, and report the network's name"
        )
    if FOLDER.exists():
        shutil.rmtree(FOLDER)
    building.rename(FOLDER)


if __name__ == "__main__":
    run(main)
