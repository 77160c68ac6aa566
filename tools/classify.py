"""Names what pictures show, by a network as ImageNet left it: python -m tools.classify IMAGE…

No training comes before this: it shows what a pretrained network knows. EfficientNet-Lite works
offline; other networks fetch their weights.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from stages.common import backbones, images, params, plots
from stages.common.run import UserError, run, start_tensorflow

MOST_DRAWN = 100  # below each other; a picture of twice as many is none that matplotlib writes
SCALING_STEPS = ("Rescaling", "Normalization", "Flip")


def imagenet_classifier(name: str):
    """A network with its own top: (batch, side, side, 3), RGB 0–255, to (batch, 1000).

    Raises:
        UserError: an unknown name, a network without weights, weights that can't be reached.
    """
    return backbones.build(name, "imagenet", native_size(name), with_top=True)


def native_size(name: str) -> int:
    """The side in pixels of the pictures that a network with ImageNet weights wants.

    Raises:
        UserError: an unknown name, or a network without weights.
    """
    known = [row for row in backbones.BACKBONES if "imagenet" in backbones.BACKBONES[row].weights]
    if name not in known:
        raise UserError(
            f"--backbone: expected one of the {len(known)} networks with ImageNet weights that "
            f"`python -m tools.backbones` lists, received {name!r}{params.nearest(name, known)}"
        )
    return backbones.BACKBONES[name].native_size


def class_names() -> list[str]:
    """The 1,000 classes of ImageNet, in the order of every network's outputs; from TFDS."""
    from tensorflow_datasets.datasets.siscore.labels import IMAGENET_LABELS_LIST

    return [synonyms.split(",")[0] for synonyms in IMAGENET_LABELS_LIST]


def centre_square(encoded: bytes, side: int) -> np.ndarray:
    """The largest square in the middle of a picture, (side, side, 3) uint8 RGB: bicubic.

    Raises:
        images.BadImage: the bytes can't be decoded.
    """
    from PIL import Image, ImageOps

    picture = ImageOps.fit(images.decode(encoded), (side, side), Image.Resampling.BICUBIC)
    return np.asarray(picture)


def scaled_input(model, picture: np.ndarray) -> np.ndarray:
    """What the first convolution gets of a picture (side, side, 3): same shape, float32."""
    import keras

    scaled = model.input
    for step in model.operations:  # turning RGB to BGR is one, but no layer
        if type(step).__name__ in SCALING_STEPS:
            scaled = step.output
        elif getattr(step, "weights", None):
            break
    first = keras.Model(model.input, scaled)
    return first.predict(picture[None].astype(np.float32), verbose=0)[0]


def draw_input(model, pictures: Sequence[tuple[str, np.ndarray]], file: Path) -> None:
    """Draws each picture as the network gets it, and what its input scaling makes of it."""
    figure = plots.new_figure(10, 3.4 * len(pictures))
    axes = figure.subplots(len(pictures), 3, squeeze=False)
    for (name, picture), row in zip(pictures, axes, strict=True):
        scaled = scaled_input(model, picture)
        low, high = scaled.min(), scaled.max()
        row[0].imshow(picture)
        title = f"{name}\n{picture.shape[1]} × {picture.shape[0]} pixels, 0 to 255"
        row[0].set_title(title, parse_math=False)
        row[1].imshow((scaled - low) / max(high - low, 1e-9))
        row[1].set_title(f"after input scaling\n{low:.2f} (black) to {high:.2f} (white)")
        for channel, style in enumerate(("-", "--", ":")):
            counts, edges = np.histogram(scaled[..., channel], bins=50, range=(low, high))
            centres = (edges[:-1] + edges[1:]) / 2
            row[2].plot(centres, counts, style, label=f"channel {channel + 1}")
        row[2].set_title("pixels by scaled value")
        row[2].legend()
        for axis in row[:2]:
            axis.axis("off")
    plots.save(figure, file)


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="tools.classify", description=__doc__.split(":")[0])
    parser.add_argument("images", nargs="+", type=Path)
    parser.add_argument("--backbone", default="efficientnet_lite0", help="see tools.backbones")
    parser.add_argument("--top", type=int, default=5, help="classes to name, 1 to 1000")
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.add_argument(
        "--show-preprocessed", type=Path, metavar="FILE", help="draw what the network gets (.png)"
    )
    options = parser.parse_args(arguments)
    if not 1 <= options.top <= 1000:
        parser.error(f"--top: expected 1 to 1000, received {options.top}")
    shown = options.show_preprocessed
    if shown and shown.suffix.lower() != ".png":
        parser.error(f"--show-preprocessed: expected a .png file, received {shown}")
    if shown and len(options.images) > MOST_DRAWN:
        parser.error(
            f"--show-preprocessed: expected at most {MOST_DRAWN} images, which it draws below each "
            f"other, received {len(options.images)}"
        )
    return options


def main() -> None:
    """Prints the likeliest classes; files that can't be read make the exit status 1."""
    options = parse(sys.argv[1:])
    side = native_size(options.backbone)
    squares, bad = [], 0
    for path in options.images:
        try:
            encoded = path.read_bytes()
            squares.append((path, centre_square(encoded, side)))
        except (OSError, images.BadImage) as error:
            bad += 1
            why = error.strerror if isinstance(error, OSError) else str(error)
            print(f"error: {path}: {why}", file=sys.stderr)
    some_are_none = UserError(
        f"{bad} of {len(options.images)} files are no images; they are named above"
    )
    if not squares:
        if options.json:
            print("[]")
        raise some_are_none
    start_tensorflow()
    model = imagenet_classifier(options.backbone)
    names, found = class_names(), []
    for path, square in squares:
        probabilities = model.predict(square[None].astype(np.float32), verbose=0)[0]
        best = np.argsort(-probabilities)[: options.top]
        classes = [
            {"class": names[place], "probability": round(float(probabilities[place]), 6)}
            for place in best
        ]
        found.append({"image": str(path), "predictions": classes})
        if not options.json:
            print(path)
            for row in classes:
                print(f"  {row['probability']:6.1%}  {row['class']}")
    if options.json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
    if options.show_preprocessed:
        pictures = [(path.name, square) for path, square in squares]
        draw_input(model, pictures, options.show_preprocessed)
    if bad:
        raise some_are_none


if __name__ == "__main__":
    run(main)
