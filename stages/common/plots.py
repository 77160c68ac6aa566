"""Pictures for people: readable in print size, in colours the colour-blind can tell apart."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stages.common import files, geometry

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's palette: told apart with any of the common colour deficiencies.
BLUE, ORANGE, GREEN, BLACK = "#0072b2", "#d55e00", "#009e73", "#000000"
TILE_INCHES = 1.75
HEADING_INCHES = 0.35
# Of the splits, other ones than those of models and of right and wrong.
SPLIT_COLORS = {"train": GREEN, "valid": "#cc79a7", "test": "#808080"}
# Matplotlib's own font has no Chinese, Japanese, Korean or Indian letters. These are the ones that
# systems bring or commonly get; of those that are installed the first with the letter draws it.
FALLBACK_FONTS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Noto Sans CJK KR",
    "Source Han Sans SC",
    "WenQuanYi Zen Hei",
    "IPAexGothic",
    "NanumGothic",
    "Microsoft YaHei",
    "Yu Gothic",
    "Malgun Gothic",
    "PingFang SC",
    "Hiragino Sans",
    "Apple SD Gothic Neo",
    "Arial Unicode MS",
    "Noto Sans Thai",
    "Noto Sans Devanagari",
    "Nirmala UI",
)
# A picture (height, width, channels) uint8 and its caption, optionally with the caption's colour.
Tile = tuple[np.ndarray, str] | tuple[np.ndarray, str, str]


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure of so many inches, whose texts may have letters of all installed fonts."""
    import matplotlib
    from matplotlib import font_manager

    # The object interface: pyplot would keep every figure and ask for a display.
    from matplotlib.figure import Figure

    installed = set(font_manager.get_font_names())
    # A setting of the process, since each text of a figure looks it up when it is made.
    matplotlib.rcParams["font.family"] = [
        "DejaVu Sans",
        *(name for name in FALLBACK_FONTS if name in installed),
    ]
    return Figure(figsize=(width, height), layout="constrained")


def image_grid(path: Path, tiles: Sequence[Tile], *, columns: int, title: str) -> None:
    """Writes a PNG with one captioned picture a tile.

    Args:
        path: the file; its folder must exist.
        tiles: in rows from the left.
        columns: tiles in a row.
        title: stands above the grid.
    """
    image_sections(path, [("", tiles)], columns=columns, title=title)


def image_sections(
    path: Path,
    sections: Sequence[tuple[str, Sequence[Tile]]],
    *,
    columns: int,
    title: str,
    color_bar: tuple[np.ndarray, str, str, str] | None = None,
) -> None:
    """Writes a PNG with several grids of captioned pictures, one above the other.

    Args:
        path: the file; its folder must exist.
        sections: (heading, or an empty text for none; tiles).
        columns: tiles in a row.
        title: stands above all.
        color_bar: (its colours (1, steps, 3) uint8, what it shows, its low end, its high end).
    """
    rows = [max(1, -(-len(tiles) // columns)) for _, tiles in sections]
    inches = [
        count * (TILE_INCHES + 0.15 * _caption_lines(tiles)) + (HEADING_INCHES if heading else 0)
        for count, (heading, tiles) in zip(rows, sections, strict=True)
    ]
    if color_bar:
        inches.append(0.6)
    title_inches = 0.1 + 0.24 * len(title.splitlines())
    figure = new_figure(TILE_INCHES * columns, sum(inches) + title_inches)
    figure.suptitle(title, fontsize=13, parse_math=False)
    parts = figure.subfigures(len(inches), 1, height_ratios=inches, squeeze=False)[:, 0]
    for part, count, height, (heading, tiles) in zip(parts, rows, inches, sections, strict=False):
        if heading:
            # In a part of its own: below a title of the grid's there is hardly any room.
            above, part = part.subfigures(2, 1, height_ratios=(0.2, height - 0.2))
            above.text(
                0.01, 0, heading, va="bottom", fontsize=11, fontweight="bold", parse_math=False
            )
        axes = list(part.subplots(count, columns, squeeze=False).flat)
        for axis in axes:
            axis.set_axis_off()
        for axis, (picture, caption, *color) in zip(axes, tiles, strict=False):
            # Small pictures are enlarged pixel by pixel, so that nothing is made up.
            small = picture.shape[0] < 64
            axis.imshow(
                geometry.shown(picture), interpolation="nearest" if small else "antialiased"
            )
            # A name may hold dollar signs, which are no formula.
            axis.set_title(
                caption,
                fontsize=_fitting_size(caption),
                color=color[0] if color else BLACK,
                parse_math=False,
                y=1,  # where it is anyway; else every axis is measured for what may be in its way
            )
    if color_bar:
        colors, label, low, high = color_bar
        axis = parts[-1].add_axes((0.3, 0.45, 0.4, 0.2))
        axis.imshow(colors, aspect="auto", extent=(0, 1, 0, 1))
        axis.set_title(label, fontsize=10)
        axis.set_xticks([0, 1], [low, high])
        axis.set_yticks([])
    save(figure, path)


def _caption_lines(tiles: Sequence[Tile]) -> int:
    return max((len(caption.splitlines()) for _, caption, *_ in tiles), default=0)


def _fitting_size(caption: str) -> float:
    """The font size in points at which the widest line is no wider than a tile."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    widths = [
        text_to_path.get_text_width_height_descent(line, FontProperties(size=9), ismath=False)[0]
        for line in caption.splitlines()
    ]
    # 72 points an inch, 0.95 of the tile.
    return 9 * min(1, 0.95 * 72 * TILE_INCHES / max(widths, default=1))


def sentence(path: Path, text: str) -> None:
    """Writes a PNG that says, in place of pictures, why there are none."""
    figure = new_figure(8.75, 2)
    figure.text(0.5, 0.5, text, ha="center", va="center", fontsize=13, wrap=True, parse_math=False)
    save(figure, path)


def save(figure, path: Path) -> None:
    """Writes a figure as a PNG; the same picture is the same bytes at any version of matplotlib."""
    with files.replacing(path) as new:
        figure.savefig(new, dpi=100, metadata={"Software": None})


def shorten(name: str, length: int = 20) -> str:
    """A name on one line of at most `length` characters: what lies in the middle is left out."""
    line = " ".join(name.split())
    if len(line) <= length:
        return line
    end = (length - 1) // 2
    return f"{line[: length - 1 - end]}…{line[-end:]}"
