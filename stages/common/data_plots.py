"""Pictures of the data before anything is trained on it: classes, sizes, colours, duplicates.

All are of bounded size, from two classes and twenty images to a thousand classes and a million.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stages.common import plots
from stages.common.columns import encode
from stages.common.splits import SPLIT_NAMES

# The lines of splits lie on each other: where one is dashed, all are seen.
SPLIT_LINES = dict(zip(SPLIT_NAMES, ("-", (0, (4, 2)), (0, (1, 1))), strict=True))
# Red, green and blue as Okabe and Ito have them.
CHANNEL_COLORS = {"red": plots.ORANGE, "green": plots.GREEN, "blue": plots.BLUE}
MOST_CLASSES = 40
MOST_CLASSES_OF_CHANNELS = 20
MOST_BINS = 40
LONGEST_LABEL = 28  # characters
GREY_LEVELS = 0.5  # 0–255, within which the channel means of a grey picture lie


@dataclass(frozen=True)
class DuplicateGroup:
    """A group of images that are copies of each other, or look alike."""

    images: int
    exact: bool  # all of the same content
    labels: int  # different ones
    # Some of them: picture (height, width, 3) uint8, name, label, split.
    shown: list[tuple[np.ndarray, str, str, str]]


def class_balance(path: Path, rows: Sequence[tuple[str, str, int]]) -> None:
    """Writes a PNG with the images of every class, a bar for each split.

    Args:
        path: the file; its folder must exist.
        rows: (split, class, images); of many classes the largest and the smallest are shown.
    """
    counts: dict[str, dict[str, int]] = {}
    for split, label, count in rows:
        counts.setdefault(label, {})[split] = count
    sizes = {label: sum(of_class.values()) for label, of_class in counts.items()}
    labels, which = _largest_and_smallest(sizes, MOST_CLASSES)
    figure, axis = _axes(width=7, height=1.5 + 0.45 * len(labels))
    height = 0.27
    for number, (split, color) in enumerate(plots.SPLIT_COLORS.items()):
        rows_of_split = np.arange(len(labels)) + (number - 1) * height
        values = [counts[label].get(split, 0) for label in labels]
        bars = axis.barh(rows_of_split, values, height, label=split, color=color)
        axis.bar_label(bars, padding=3, fontsize=8, fmt="{:,.0f}")
    _name_rows(axis, labels)
    axis.set_xlabel("images")
    axis.margins(x=0.1)
    # Past the axes, where no bar can be.
    axis.legend(title="split", frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    axis.set_title(f"Images of each class{which}")
    plots.save(figure, path)


def sizes(path: Path, width_height: np.ndarray) -> None:
    """Writes a PNG with the distributions of widths, heights and aspect ratios.

    Args:
        path: the file; its folder must exist.
        width_height: (images, 2), pixels.
    """
    widths, heights = width_height.T
    figure = plots.new_figure(10, 3.8)
    title = f"Sizes of {_count(len(widths), 'image')}"
    if widths.min() == widths.max() and heights.min() == heights.max():
        title += f", all {widths[0]:,} × {heights[0]:,} pixels"
    figure.suptitle(title, fontsize=13)
    left, right = figure.subplots(1, 2)
    edges = _log_edges(width_height)
    # The height is dashed: both lines are seen where they lie on each other.
    for values, name, color, style in (
        (widths, "width", plots.BLUE, "-"),
        (heights, "height", plots.ORANGE, (0, (3, 3))),
    ):
        label = f"{name}: {_spread(values)}"
        left.stairs(_shares(values, edges), edges, label=label, color=color, lw=2.5, ls=style)
    _log_axis(left, edges)
    left.set_xlabel("pixels (logarithmic scale)")
    left.set_title("Width and height")

    aspects = widths / heights
    edges = _log_edges(np.array([0.5, 2.0, aspects.min(), aspects.max()]))
    right.stairs(
        _shares(aspects, edges),
        edges,
        fill=True,
        color=plots.GREEN,
        label=f"width / height: {_spread(aspects)}",
    )
    right.axvline(1, color=plots.BLACK, lw=1, ls=":")
    _log_axis(right, edges)
    right.set_xlabel("← upright     width / height (dotted: square)     wide →")
    right.set_title("Aspect ratio")
    for axis in (left, right):
        axis.set_ylabel("% of the images")
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, loc="upper left", fontsize=9)
        _from_zero(axis)
    plots.save(figure, path)


def channels(path: Path, means: np.ndarray, labels: Sequence[str], assigned: Sequence[str]) -> None:
    """Writes a PNG with the brightness of the images by split, and their colours by class.

    Splits should lie on each other; a class that stands apart by brightness alone can be told
    without looking at what the picture shows.

    Args:
        path: the file; its folder must exist.
        means: (images, 3), mean of red, green and blue, 0–255.
        labels: (images,), of many classes the largest and the smallest are shown.
        assigned: (images,), the split of each.
    """
    codes, names = encode(labels)
    splits_of, split_names = encode(assigned)
    sizes_of = dict(zip(names, np.bincount(codes).tolist(), strict=True))
    shown, which = _largest_and_smallest(sizes_of, MOST_CLASSES_OF_CHANNELS)
    grey = bool((np.ptp(means, axis=1) < GREY_LEVELS).all())
    figure = plots.new_figure(12, max(4, 1.6 + 0.32 * len(shown)))
    figure.suptitle(
        f"Brightness and colour of {_count(len(means), 'image')}" + (", all grey" if grey else ""),
        fontsize=13,
    )
    left, right = figure.subplots(1, 2)
    bins = int(np.clip(2 * len(means) ** (1 / 3), 10, MOST_BINS))  # Rice's rule
    edges = np.linspace(0, 255, bins + 1)
    brightness = means.mean(axis=1)
    for split, color in plots.SPLIT_COLORS.items():
        values = brightness[splits_of == split_names.index(split)]
        label = f"{split} ({_count(len(values), 'image')})"
        left.stairs(
            _shares(values, edges), edges, color=color, lw=2, ls=SPLIT_LINES[split], label=label
        )
    left.set_xlabel(
        f"an image's mean{'' if grey else ' of all channels'}, 0 (black) to 255 (white)"
    )
    left.set_ylabel("% of the split's images")
    left.set_title("Brightness by split")
    _from_zero(left)
    left.legend(frameon=False)

    series = {"grey": plots.BLACK} if grey else CHANNEL_COLORS
    step = 0.22
    for channel, (name, color) in enumerate(series.items()):
        rows = np.arange(len(shown)) + (channel - (len(series) - 1) / 2) * step
        low, quarter, middle, three_quarters, high = np.array(
            [
                np.quantile(
                    means[codes == names.index(label), channel], (0.05, 0.25, 0.5, 0.75, 0.95)
                )
                for label in shown
            ]
        ).T
        right.hlines(rows, low, high, color=color, lw=1)
        right.hlines(rows, quarter, three_quarters, color=color, lw=4, label=name)
        right.plot(middle, rows, "o", color="white", markeredgecolor=color, ms=5)
    _name_rows(right, shown)
    right.set_xlim(0, 255)
    right.set_xlabel(
        f"{'brightness' if grey else 'mean of the channel'}, 0 (black) to 255 (white)\n"
        "circle: median image; thick: middle half; thin: middle 90 %"
    )
    right.set_title(f"{'Brightness' if grey else 'Colour'} by class{which}")
    if not grey:
        right.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    plots.save(figure, path)


def duplicates(
    path: Path, groups: Sequence[DuplicateGroup], total: int, *, near_ones: bool = True
) -> None:
    """Writes a PNG with groups of duplicates, one below the other; a sentence if there is none.

    Args:
        path: the file; its folder must exist.
        groups: those that are shown; under several labels, or the largest of all.
        total: groups that there are.
        near_ones: whether near duplicates were looked for.
    """
    if not groups:
        kinds = "copy or a near duplicate of another." if near_ones else "copy of another."
        plots.sentence(path, f"No image is a {kinds}")
        return
    columns = max(4, max(len(group.shown) for group in groups))
    sections = []
    for group in groups:
        kind = "copies of one file" if group.exact else "images that look alike"
        heading = f"{group.images:,} {kind}"
        if len(group.shown) < group.images:
            heading += f", {len(group.shown)} of them shown"
        if group.labels > 1:
            heading += f", under {group.labels} labels"
        color = plots.ORANGE if group.labels > 1 else plots.BLACK
        tiles = [
            (picture, f"{plots.shorten(name)}\n{plots.shorten(label)} · {split}", color)
            for picture, name, label, split in group.shown
        ]
        sections.append((heading, tiles))
    title = "Duplicates: each group stays in one split"
    if total > len(groups):
        if any(group.labels > 1 for group in groups):
            title += f"\n{len(groups)} of {total:,} groups, those under several labels first"
        else:
            title += f"\nthe {len(groups)} largest of {total:,} groups"
    plots.image_sections(path, sections, columns=columns, title=title)


def _axes(width: float, height: float):
    figure = plots.new_figure(width, height)
    axis = figure.subplots()
    axis.spines[["top", "right"]].set_visible(False)
    return figure, axis


def _largest_and_smallest(sizes_of: dict[str, int], most: int) -> tuple[list[str], str]:
    """Classes by falling size, and what to add to a title if the middle ones are left out."""
    labels = sorted(sizes_of, key=lambda label: (-sizes_of[label], label))
    if len(labels) <= most:
        return labels, ""
    half = most // 2
    text = f", the {half} largest and {half} smallest of {len(labels):,}"
    return labels[:half] + labels[-half:], text


def _name_rows(axis, labels: Sequence[str]) -> None:
    """One row a class, the first on top."""
    names = [plots.shorten(label, LONGEST_LABEL) for label in labels]
    axis.set_yticks(np.arange(len(names)), names, parse_math=False)
    axis.set_ylim(len(names) - 0.5, -0.5)


def _from_zero(axis) -> None:
    """Percent from 0 to at most 100, with room for a legend above."""
    top = axis.dataLim.y1
    axis.set_ylim(0, 1.35 * top)
    axis.set_yticks([tick for tick in axis.get_yticks() if tick <= min(100, 1.2 * top)])
    axis.set_ylim(0, 1.35 * top)


def _log_edges(values: np.ndarray) -> np.ndarray:
    """Edges of bins of equal ratio around positive values, at least a fifth of an octave wide."""
    low, high = np.log2(values.min()), np.log2(values.max())
    margin = max(0.5, 0.05 * (high - low))
    bins = int(np.clip((high - low + 2 * margin) * 5, 10, MOST_BINS)) | 1  # one in the middle
    return 2 ** np.linspace(low - margin, high + margin, bins + 1)


def _log_axis(axis, edges: np.ndarray) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.set_xscale("log", base=2)
    # Powers of two, or halves between them where there are few.
    few = edges[-1] / edges[0] < 16
    axis.xaxis.set_major_locator(LogLocator(base=2, subs=(1, 1.5) if few else (1,), numticks=12))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _readable(value)))
    axis.set_xlim(edges[0], edges[-1])


def _shares(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Percent of the values in each bin."""
    return 100 * np.histogram(values, edges)[0] / max(1, len(values))


def _spread(values: np.ndarray) -> str:
    """`all 300`, or the least, the median and the largest."""
    low, middle, high = np.quantile(values, (0, 0.5, 1))
    if low == high:
        return f"all {_readable(low)}"
    return f"{_readable(low)} to {_readable(high)}, median {_readable(middle)}"


def _readable(value: float) -> str:
    """Four digits, and all of those before the point: 0.6667, 12,345."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
