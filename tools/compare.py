"""Writes the Markdown of a pull-request comment: python -m tools.compare REV [--pictures FOLDER].

Compares the work tree with a Git revision: params that changed, metrics with their intervals, and
learning curves and confusion matrices of both as pictures.
"""

import argparse
import csv
import io
from collections import Counter
from pathlib import Path
from urllib.parse import quote

import yaml

from stages.common import paths, plots
from stages.common.run import UserError, run
from tools import markdown, revisions
from tools.summary import HEADLINES, better, ends

MOST_CLASSES = 20  # of a confusion matrix that can be read in a comment


def flat(values, prefix: str = "") -> dict[str, str]:
    """Nested params as `train_head.epochs` to the value as YAML writes it."""
    if not isinstance(values, dict):
        text = yaml.safe_dump(
            values, default_flow_style=True, width=float("inf"), allow_unicode=True
        )
        return {prefix: text.split("\n...")[0].strip()}
    found: dict[str, str] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}.{key}" if prefix else str(key))
    return found


def params_table(before: dict, after: dict) -> str:
    """The params that differ between two contents of params.yaml; a sentence where none does."""
    old, new = flat(before), flat(after)
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    if not names:
        return "No param changed."
    rows = [(f"`{name}`", _code(old.get(name)), _code(new.get(name))) for name in names]
    return markdown.table(("param", "before", "now"), rows)


def _code(value: str | None) -> str:
    if value is None:
        return "—"
    line = " ".join(value.split()).replace("|", "\\|")
    # Markdown: as code with a backtick in it is written.
    return f"`` {line} ``" if "`" in line else f"`{line}`"


def metrics_table(before: dict, after: dict) -> str:
    """Headline metrics of one model, with 95 % intervals where there are any."""
    rows = []
    for name in HEADLINES:
        if name in before and name in after:
            old, new = (
                f"{side[name]:.3f}{ends(side.get('interval', {}).get(name), '.3f')}"
                for side in (before, after)
            )
            change = f"{after[name] - before[name]:+.3f}"
            words = f"{name.replace('_', ' ')} ({better(name)} is better)"
            rows.append((words, old, new, change))
    if not rows:
        raise UserError("the two sides have no headline metric in common; `dvc metrics show`")
    return markdown.table(("metric", "before", "now", "change"), rows)


def draw_curves(before: dict[str, str], after: dict[str, str], file: Path) -> None:
    """Validation loss and accuracy by epoch, a row of charts for each training stage.

    Of logistic regression by the strength of its regularisation, which is what its rows differ in;
    where only one of the two sides has that, they share no axis and only the work tree's is drawn.

    Args:
        before: stage to the text of its history.csv, at the revision.
        after: the same of the work tree.
        file: PNG; its folder must exist.
    """
    figure = plots.new_figure(9, 3 * len(after))
    axes = figure.subplots(len(after), 2, squeeze=False)
    for (stage, text), charts in zip(after.items(), axes, strict=True):
        now = list(csv.DictReader(io.StringIO(text)))
        earlier = list(csv.DictReader(io.StringIO(before.get(stage, ""))))
        key, unit = ("l2", "strength of L2") if "l2" in now[0] else ("epoch", "epoch")
        comparable = bool(earlier) and ("l2" in earlier[0]) == (key == "l2")
        sides = [("before", earlier, "--")] if comparable else []
        for axis, name in zip(charts, ("loss", "accuracy"), strict=True):
            for label, rows, style in [*sides, ("now", now, "-")]:
                steps = [float(row[key]) for row in rows]
                values = [float(row[f"val_{name}"]) for row in rows]
                marker = "o" if len(rows) == 1 else None
                axis.plot(steps, values, style, marker=marker, label=label)
            if key == "l2":
                axis.set_xscale("log")
            axis.set_title(f"{stage}: validation {name}")
            axis.set_xlabel(unit)
            axis.grid(alpha=0.3)
            axis.legend()
    plots.save(figure, file)


def draw_confusion(before: str | None, after: str, title: str, file: Path) -> None:
    """Both confusion matrices side by side, in per cent of each actual class.

    Args:
        before: text of confusion.csv at the revision, or None.
        after: of the work tree.
        title: of the picture.
        file: PNG; its folder must exist.
    """
    import numpy as np

    sides = [(name, text) for name, text in (("before", before), ("now", after)) if text]
    figure = plots.new_figure(4.5 * len(sides), 4.2)
    axes = figure.subplots(1, len(sides), squeeze=False)
    for axis, (name, text) in zip(axes[0], sides, strict=True):
        pairs = [(row["actual"], row["predicted"]) for row in csv.DictReader(io.StringIO(text))]
        classes = sorted({actual for actual, _ in pairs} | {predicted for _, predicted in pairs})
        left_out = len(classes) - MOST_CLASSES
        classes = classes[:MOST_CLASSES]
        of_class = Counter(actual for actual, _ in pairs)  # those predicted as one left out as well
        place = {class_name: number for number, class_name in enumerate(classes)}
        counts = np.zeros((len(classes), len(classes)))
        for actual, predicted in pairs:
            if actual in place and predicted in place:
                counts[place[actual], place[predicted]] += 1
        totals = np.array([[of_class[class_name]] for class_name in classes])
        shares = counts / np.maximum(totals, 1)
        axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        if len(classes) <= 10:
            for (row, column), share in np.ndenumerate(shares):
                color = "white" if share > 0.6 else "black"
                text = f"{share:.0%}\n{counts[row, column]:.0f}"
                axis.text(column, row, text, ha="center", va="center", color=color)
        shown = [plots.shorten(name) for name in classes]
        axis.set_xticks(range(len(classes)), shown, rotation=45, ha="right", parse_math=False)
        axis.set_yticks(range(len(classes)), shown, parse_math=False)
        axis.set_xlabel("predicted")
        axis.set_ylabel("actual")
        axis.set_title(f"{name}, {left_out} more classes left out" if left_out > 0 else name)
    figure.suptitle(title)
    plots.save(figure, file)


def draw(commit: str, folder: Path) -> dict[str, str]:
    """Draws all pictures; title to the name of the file."""
    before, after = (
        {
            stage: text
            for stage in paths.TRAINED_BY.values()
            if (text := revisions.read_result(side, f"plots/{stage}/history.csv")) is not None
        }
        for side in (commit, None)
    )
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {}
    if after:
        draw_curves(before, after, folder / "curves.png")
        drawn["Learning curves" if before else "Learning curves, of the work tree"] = "curves.png"
    for model in paths.CLASSIFIERS:
        path = f"plots/{model}/confusion.csv"
        if text := revisions.read_result(None, path):
            title = f"Confusion of {model.replace('_', '-')} on the test split"
            draw_confusion(
                revisions.read_result(commit, path), text, title, folder / f"{model}.png"
            )
            drawn[title] = f"{model}.png"
    return drawn


def comment(revision: str, pictures: Path | None, image_base: str) -> str:
    """The whole comment.

    Args:
        revision: to compare the work tree with.
        pictures: folder to draw into; None: do without.
        image_base: what stands before the pictures' names in the Markdown.
    """
    commit = revisions.resolve(revision)
    parts = [
        f"## Metrics against `{revision}` ({commit[:7]})",
        "Brackets: 95 % intervals on the test split.",
    ]
    if not revisions.same_test_images(commit):
        parts.append("**The test images differ, so that the numbers can't be compared.**")
    if stale := revisions.stale():
        parts.append(
            f"**These metrics are of another run than params.yaml asks for ({'; '.join(stale)}): "
            "`make repro` brings them up to date.**"
        )
    for model in paths.CLASSIFIERS:
        before, after = (
            revisions.read_json(side, f"metrics/{model}.json") for side in (commit, None)
        )
        parts += [f"### {model.replace('_', '-')}", metrics_table(before, after)]
    contents = [revisions.read_params(side) for side in (commit, None)]
    parts += ["### Params", params_table(*contents)]
    if pictures:
        base = quote(image_base, safe=":/?&=%")
        for title, name in draw(commit, pictures).items():
            parts.append(f"### {title}\n\n![{title}]({base}{name})")
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Prints the Markdown."""
    parser = argparse.ArgumentParser(prog="tools.compare", description=__doc__.split(":")[0])
    parser.add_argument("revision", help="Git revision to compare the work tree with")
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="draw curves and confusion")
    parser.add_argument(
        "--image-base",
        metavar="URL",
        help="what stands before the pictures' names in the Markdown; default: FOLDER/",
    )
    options = parser.parse_args()
    if options.pictures and options.pictures.exists() and not options.pictures.is_dir():
        raise UserError(f"--pictures: expected a folder, received the file {options.pictures}")
    base = options.image_base or f"{options.pictures}/"
    print(comment(options.revision, options.pictures, base), end="")


if __name__ == "__main__":
    run(main)
