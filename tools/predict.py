"""Classifies images: python -m tools.predict IMAGE|FOLDER|TABLE… [--top 3] [--explain FOLDER].

Prints the likeliest classes of each image. The model is one file, models/fine_tuned.keras unless
--model names another; nothing else of the pipeline is needed.
"""

import argparse
import functools
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np

from stages.common import explain, geometry, images, models, params, paths, tables
from stages.common.datasets.sources import Folder
from stages.common.image_names import SUFFIXES, is_image
from stages.common.run import UserError, progress, run, start_tensorflow

MOST_NAME_BYTES = 200  # of 255 that file systems take
COLUMNS = ("image", "rank", "class", "probability")


@dataclass(frozen=True)
class ImageFile:
    """A file to classify; its bytes are empty where it can't be read."""

    path: Path
    encoded: bytes
    unreadable: str | None = None


@dataclass(frozen=True)
class Prediction:
    """What the model says of one image: (class, probability), likeliest first."""

    path: Path
    likeliest: list[tuple[str, float]]


def find(inputs: Iterable[Path], path_column: str) -> list[Path]:
    """All image files that the arguments name, in order.

    Args:
        inputs: image files; folders, searched as fetch does, to any depth and behind links, for
            files whose name says that they are images; CSV or TSV files with a column of paths,
            relative to the file.
        path_column: the name of that column.

    Raises:
        UserError: a path does not exist, a folder holds no image, a table lacks the column.
    """
    found = []
    for path in inputs:
        if path.is_dir():
            inside = [path / name for name in Folder(path).names() if is_image(name)]
            if not inside:
                raise UserError(f"{path} holds no file that ends in {', '.join(SUFFIXES)}")
            found += inside
        elif not path.exists():
            raise UserError(f"{path} does not exist; give images, folders, CSV or TSV files")
        elif path.suffix.lower() in tables.DELIMITERS:
            found += _listed(path, path_column)
        else:
            found.append(path)
    return found


def _listed(table: Path, column: str) -> list[Path]:
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = tables.csv_reader(file, tables.DELIMITERS[table.suffix.lower()])
            columns = reader.fieldnames or []
            if column not in columns:
                raise UserError(
                    f"{table} has no column {column!r}{params.nearest(column, columns)}; its "
                    f"columns are {', '.join(columns) or 'none'}; name one by --path-column"
                )
            return [table.parent / row[column] for row in reader if row[column]]
    except UnicodeDecodeError:
        raise UserError(f"{table} is not a table in UTF-8") from None


def read_files(files: Iterable[Path]) -> Iterator[ImageFile]:
    """Files with their bytes, one at a time."""
    for path in files:
        try:
            yield ImageFile(path, path.read_bytes())
        except (OSError, ValueError) as error:  # ValueError: a NUL byte in the name
            yield ImageFile(path, b"", getattr(error, "strerror", None) or str(error))


class Classifier:
    """A model file, ready to use: `class_names`, `side` of its square input in pixels and that
    input's `channels`, and to how many pixels a picture is `shrunk_to` before.

    Raises:
        UserError: the file is no classifier that train_head or fine_tune saved.
    """

    def __init__(self, path: Path):
        self.class_names = models.class_names(path)  # before anything heavy
        start_tensorflow()
        import tensorflow as tf

        model = models.load(path)
        self.side: int = model.get_layer("resize").height
        # Files that say nothing of it are older, or not of this pipeline.
        self.shrunk_to: int = models.shrunk_to(path) or self.side
        self.channels: int = model.input_shape[-1]
        self.resize = geometry.of_layer(model.get_layer("resize"))
        running = models.on_device(model)
        self._forward = tf.function(lambda batch: running(batch, training=False))
        self._heat_maps = functools.cache(lambda: explain.heat_mapper(model))

    def picture(self, encoded: bytes) -> np.ndarray:
        """An encoded image as the model sees it: (side, side, channels) float32; or BadImage."""
        return self.square(self.decode(encoded))

    @property
    def decode(self) -> Callable[[bytes], np.ndarray]:
        """From an encoded image to what preprocess stores, (height, width, channels) uint8.

        Other processes may do it: it holds no network.
        """
        return functools.partial(
            images.to_array,
            image_size=self.shrunk_to,
            resize=self.resize,
            channels=self.channels,
        )

    def square(self, pixels: np.ndarray) -> np.ndarray:
        """A stored picture as the network's square, float32: what the model makes of it."""
        return geometry.antialiased(pixels[np.newaxis], self.side).numpy()[0]

    def probabilities(self, pictures: np.ndarray) -> np.ndarray:
        """(batch, side, side, channels), 0–255, to (batch, classes) float32."""
        return self._forward(pictures).numpy()

    def overlays(self, pictures: np.ndarray, classes: np.ndarray) -> list[np.ndarray]:
        """Each picture with where the network looked for its class (Grad-CAM), uint8."""
        heat_maps = self._heat_maps()(pictures, classes)
        seen = as_bytes(pictures)
        return [explain.overlay(*pair) for pair in zip(seen, heat_maps, strict=True)]


def as_bytes(pictures: np.ndarray) -> np.ndarray:
    """Pictures to look at, uint8, of numbers from 0 to 255."""
    return np.clip(np.round(pictures), 0, 255).astype(np.uint8)


def classify(
    classifier: Classifier,
    files: Iterable[Path],
    *,
    top: int,
    batch_size: int,
    on_bad: Callable[[Path, str], None],
    on_batch: Callable[[list[Path], np.ndarray, np.ndarray], None],
) -> Iterator[Prediction]:
    """Predictions in the order of the files; memory is bounded by a few batches.

    Images are decoded and shrunk as the pipeline does.

    Args:
        classifier: does the work.
        files: of images.
        top: how many classes to name.
        batch_size: images in one forward pass.
        on_bad: is told each file that can't be used, and why.
        on_batch: gets paths, images (batch, side, side, channels) float32 and probabilities
            (batch, classes) of each batch.
    """

    def predict(batch: list[tuple[Path, np.ndarray]]) -> Iterator[Prediction]:
        batch_paths, pixels = zip(*batch, strict=True)
        pictures = np.stack([classifier.square(picture) for picture in pixels])
        probabilities = classifier.probabilities(pictures)
        on_batch(list(batch_paths), pictures, probabilities)
        for path, row in zip(batch_paths, probabilities, strict=True):
            best = np.argsort(-row, kind="stable")[:top]
            likeliest = [(classifier.class_names[place], float(row[place])) for place in best]
            yield Prediction(path, likeliest)

    waiting: list[tuple[Path, np.ndarray]] = []
    for file, result in images.map_encoded(classifier.decode, read_files(files)):
        if isinstance(result, images.BadImage):
            on_bad(file.path, file.unreadable or str(result))
            continue
        waiting.append((file.path, result))
        if len(waiting) == batch_size:
            yield from predict(waiting)
            waiting = []
    if waiting:
        yield from predict(waiting)


def write_table(predictions: Iterable[Prediction], out: TextIO) -> None:
    """A line an image: its path and its classes with per cent."""
    for prediction in predictions:
        classes = "  ".join(f"{name} {share:.1%}" for name, share in prediction.likeliest)
        print(f"{prediction.path}  {classes}", file=out)


def write_csv(predictions: Iterable[Prediction], out: TextIO) -> None:
    """A row for each image and class."""
    writer = tables.csv_writer(out)
    writer.writerow(COLUMNS)
    for prediction in predictions:
        for rank, (name, share) in enumerate(prediction.likeliest, 1):
            writer.writerow([prediction.path, rank, name, f"{share:.6f}"])


def write_json(predictions: Iterable[Prediction], out: TextIO) -> None:
    """A list of objects, written one by one."""
    separator = "[\n"
    for prediction in predictions:
        classes = [
            {"class": name, "probability": round(share, 6)} for name, share in prediction.likeliest
        ]
        row = json.dumps(
            {"image": str(prediction.path), "predictions": classes}, ensure_ascii=False
        )
        print(f"{separator}{row}", end="", file=out)
        separator = ",\n"
    print("[]" if separator == "[\n" else "\n]", file=out)


WRITERS = {"table": write_table, "json": write_json, "csv": write_csv}


def explainer(
    classifier: Classifier, folder: Path
) -> Callable[[list[Path], np.ndarray, np.ndarray], None]:
    """Writes for each image where the network looked for its likeliest class.

    Names follow from a running number and the image's own name, since two folders may hold files
    of one name.
    """
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    written = 0

    def write(batch_paths: list[Path], pictures: np.ndarray, probabilities: np.ndarray) -> None:
        nonlocal written
        overlays = classifier.overlays(pictures, probabilities.argmax(axis=1))
        seen = as_bytes(pictures)
        for path, picture, overlay in zip(batch_paths, seen, overlays, strict=True):
            written += 1
            both = np.concatenate([geometry.shown(picture), overlay], axis=1)
            stem = os.fsencode(path.stem)[:MOST_NAME_BYTES].decode(errors="ignore")
            Image.fromarray(both).save(folder / f"{written:06} {stem}.png")

    return write


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="tools.predict", description=__doc__.split(":")[0])
    parser.add_argument("inputs", nargs="+", type=Path, help="images, folders, CSV or TSV files")
    parser.add_argument("--model", type=Path, default=paths.FINE_TUNED, help="a .keras file")
    parser.add_argument("--top", type=_positive, default=3, help="classes to name for each image")
    parser.add_argument("--explain", type=Path, help="folder for pictures of where it looked")
    parser.add_argument("--format", choices=WRITERS, default="table")
    parser.add_argument("--path-column", default="path", help="of CSV or TSV files")
    parser.add_argument("--batch-size", type=_positive, default=32, help="images in one pass")
    return parser.parse_args(arguments)


def _positive(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of 1 or more, received {text!r}")
    return number


def main() -> None:
    """Prints predictions; bad files go to standard error, and make the exit status 1."""
    options = parse(sys.argv[1:])
    files = find(options.inputs, options.path_column)
    if options.explain and options.explain.exists() and not options.explain.is_dir():
        raise UserError(f"--explain: expected a folder, received the file {options.explain}")
    classifier = Classifier(options.model)
    bad = 0
    with progress(None, total=len(files), unit="image", description="predict") as bar:

        def on_bad(path: Path, why: str) -> None:
            nonlocal bad
            bad += 1
            bar.update(1)
            bar.write(f"error: {path}: {why}", file=sys.stderr)

        explain_batch = explainer(classifier, options.explain) if options.explain else None

        def on_batch(batch_paths, pictures, probabilities) -> None:
            bar.update(len(batch_paths))
            if explain_batch:
                explain_batch(batch_paths, pictures, probabilities)

        predictions = classify(
            classifier,
            files,
            top=options.top,
            batch_size=options.batch_size,
            on_bad=on_bad,
            on_batch=on_batch,
        )
        WRITERS[options.format](predictions, sys.stdout)
    if bad:
        raise UserError(
            f"{bad} of {len(files)} files could not be classified; they are named above"
        )


if __name__ == "__main__":
    run(main)
