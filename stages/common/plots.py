"""Pictures for people: readable in print size, in colours the colour-blind can tell apart."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

# Okabe and Ito's palette: told apart with any of the common colour deficiencies.
BLUE, ORANGE, GREEN, BLACK = "#0072b2", "#d55e00", "#009e73", "#000000"
MOST_CLASSES = 40


def image_grid(
    path: Path,
    tiles: Sequence[tuple[np.ndarray, str] | tuple[np.ndarray, str, str]],
    *,
    columns: int,
    title: str,
) -> None:
    """Writes a PNG with one captioned picture a tile.

    Args:
        path: the file; its folder must exist.
        tiles: (picture (height, width, 3) uint8, caption) and optionally the caption's colour.
        columns: tiles in a row.
        title: stands above the grid.
    """
    # The object interface: pyplot would keep every figure and ask for a display.
    from matplotlib.figure import Figure

    rows = max(1, -(-len(tiles) // columns))
    figure = Figure(figsize=(1.75 * columns, 2.05 * rows + 0.5), layout="constrained")
    figure.suptitle(title, fontsize=13)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes:
        axis.set_axis_off()
    for axis, (picture, caption, *color) in zip(axes, tiles, strict=False):
        # Small pictures are enlarged pixel by pixel, so that nothing is made up.
        axis.imshow(picture, interpolation="nearest" if picture.shape[0] < 64 else "antialiased")
        axis.set_title(caption, fontsize=9, color=color[0] if color else BLACK)
    # Without metadata the same picture is the same bytes under any version of matplotlib.
    figure.savefig(path, dpi=100, metadata={"Software": None})


def class_balance(path: Path, rows: Sequence[tuple[str, str, int]]) -> None:
    """Writes a PNG with the images of every class, a bar for each split.

    Args:
        path: the file; its folder must exist.
        rows: (split, class, images); of many classes the largest and the smallest are shown.
    """
    from matplotlib.figure import Figure

    counts: dict[str, dict[str, int]] = {}
    for split, label, count in rows:
        counts.setdefault(label, {})[split] = count
    labels = sorted(counts, key=lambda label: -sum(counts[label].values()))
    title = "Images of each class"
    if len(labels) > MOST_CLASSES:
        half = MOST_CLASSES // 2
        title += f", the {half} largest and {half} smallest of {len(labels)}"
        labels = labels[:half] + labels[-half:]
    figure = Figure(figsize=(7, 1.5 + 0.45 * len(labels)), layout="constrained")
    axis = figure.subplots()
    height = 0.27
    for number, (split, color) in enumerate(
        zip(("train", "valid", "test"), (BLUE, ORANGE, GREEN), strict=True)
    ):
        places = np.arange(len(labels)) + (number - 1) * height
        values = [counts[label].get(split, 0) for label in labels]
        bars = axis.barh(places, values, height, label=split, color=color)
        axis.bar_label(bars, padding=3, fontsize=8)
    axis.set_yticks(np.arange(len(labels)), labels)
    axis.invert_yaxis()
    axis.set_xlabel("images")
    axis.margins(x=0.1)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(title="split", frameon=False)
    axis.set_title(title)
    figure.savefig(path, dpi=100, metadata={"Software": None})
