"""The page's charts: Plotly figures without colours of text or grid, which the page's theme adds.

The two models have the same two colours, markers and patterns everywhere. Each chart brings its
summary for people who do not see it, and its numbers as a table.
"""

import html
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stages.common.metrics import ALL_CLASSES, CALIBRATION_BINS
from stages.common.plots import BLUE, ORANGE, SPLIT_COLORS, shorten
from stages.common.report import wording
from stages.common.report.evidence import Model
from stages.common.report.wording import NAMES, decimal, number, percent

MOST_CLASSES = 30  # in one chart
MOST_FULL_CELLS = 5  # classes of a confusion matrix up to which a cell has room for share and count
MOST_SHORT_CELLS = 12  # and for the share alone, without a unit
MOST_LEVEL_CHARACTERS = 28  # in all names below a confusion matrix, beside each other on a phone
MOST_TABLE_ROWS = 200


@dataclass(frozen=True)
class Style:
    """How a model looks in every chart."""

    color: str
    symbol: str
    open_symbol: str
    pattern: str


STYLES = {
    "head": Style(BLUE, "circle", "circle-open", "/"),
    "fine_tuned": Style(ORANGE, "diamond", "diamond-open", ""),
}


@dataclass(frozen=True)
class Table:
    """Rows under a header; the first `text_columns` columns hold words, the rest numbers.

    A cell is a text, or a text and a smaller one below it.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str | tuple[str, str]]]
    text_columns: int = 1
    note: str = ""
    groups: Sequence[tuple[str, int]] = ()  # a second header above: texts and columns they span


@dataclass(frozen=True)
class Chart:
    """One figure of the page."""

    name: str  # its id in the page
    title: str
    summary: str  # what a reader would see in it, in words
    figure: dict[str, Any]  # for Plotly: data and layout
    table: Table
    height: int  # pixels
    choices: Sequence[str] = ()  # classes that its lines may be cut to
    least_width: int = 0  # pixels; on a screen that is narrower the chart scrolls


def plain(text: str, length: int = 24) -> str:
    """A name for Plotly, which takes tags in texts for markup; long ones lose their middle."""
    return html.escape(shorten(text, length), quote=False)


def _figure(traces: list, **layout) -> dict[str, Any]:
    from plotly.graph_objects import Figure

    return Figure(traces, {"template": "none", **layout}).to_plotly_json()


def _rounded(values) -> list[float]:
    """Five digits: finer than any screen, and a fifth of the bytes."""
    return [float(f"{value:.5g}") for value in values]


def _dots(model: str, points, intervals, texts, **more):
    """A dot a line, head above fine-tuned, with whiskers where there is an interval (not None)."""
    from plotly.graph_objects import Scatter

    style = STYLES[model]
    ends = [
        interval or {"low": point, "high": point}
        for point, interval in zip(points, intervals, strict=True)
    ]
    offset = -0.13 if model == "head" else 0.13
    return Scatter(
        x=_rounded(points),
        y=[index + offset for index in range(len(points))],
        error_x={
            "type": "data",
            "symmetric": False,
            "array": _rounded(e["high"] - p for e, p in zip(ends, points, strict=True)),
            "arrayminus": _rounded(p - e["low"] for e, p in zip(ends, points, strict=True)),
            "thickness": 1.5,
            "width": 4,
        },
        text=texts,
        hovertemplate="%{text}<extra>" + NAMES[model] + "</extra>",
        mode="markers",
        marker={"color": style.color, "symbol": style.symbol, "size": 10},
        name=NAMES[model],
        **more,
    )


def _lines(names: Sequence[str]) -> dict[str, Any]:
    """An axis with a name for each of the places 0, 1, … from the top."""
    return {
        "tickvals": list(range(len(names))),
        "ticktext": names,
        "range": [len(names) - 0.5, -0.5],
        "showgrid": False,
        "zeroline": False,
    }


def headline(models: Mapping[str, Model]) -> Chart:
    """The metrics that have an interval: for both models a dot with whiskers."""
    intervals_of_head = models["head"].metrics["interval"]
    known = [metric for metric in wording.METRICS if metric.key in intervals_of_head]
    known = known or [wording.ACCURACY]
    groups = [[metric for metric in known if metric.higher_is_better is b] for b in (True, False)]
    traces = []
    for place, metrics in enumerate(groups):
        axis = "" if place == 0 else "2"
        for model in NAMES:
            values = models[model].metrics
            points = [values[metric.key] for metric in metrics]
            texts = [
                f"{metric.name}: {metric.format(values[metric.key])}<br>"
                f"95 % interval {interval_text(metric, values)}"
                for metric in metrics
            ]
            intervals = [values["interval"].get(metric.key) for metric in metrics]
            more = {"showlegend": place == 0, "xaxis": f"x{axis}", "yaxis": f"y{axis}"}
            traces.append(_dots(model, points, intervals, texts, **more))
    # Two charts, one above the other, with as much room for each line; without lines no chart.
    shares = [len(metrics) / len(known) for metrics in groups]
    gap = 0.9 / (len(known) + 4)
    domains = ([min(shares[1] + gap, 1), 1] if shares[1] else [0, 1], [0, max(shares[1] - gap, 0)])
    layout = {}
    for place, metrics in enumerate(groups):
        axis = "" if place == 0 else "2"
        words = "higher is better" if place == 0 else "lower is better"
        layout[f"xaxis{axis}"] = {
            "title": {"text": words},
            "anchor": f"y{axis}",
            "visible": bool(metrics),
        }
        layout[f"yaxis{axis}"] = {
            "domain": domains[place],
            "anchor": f"x{axis}",
            **_lines([metric.name for metric in metrics]),
        }
    rows = [
        [metric.name]
        + [
            cell
            for model in NAMES
            for cell in (
                metric.format(models[model].metrics[metric.key]),
                interval_text(metric, models[model].metrics),
            )
        ]
        for metric in known
    ]
    accuracy = {name: percent(models[name].metrics["accuracy"]) for name in NAMES}
    return Chart(
        name="headline",
        title=f"Both models on the test split, with 95{wording.SPACE}% intervals",
        summary=f"Dots with whiskers for {len(known)} metrics; accuracy is {accuracy['head']} with "
        f"the head and {accuracy['fine_tuned']} after fine-tuning.",
        figure=_figure(traces, **layout),
        table=Table(["metric", "head", "interval", "fine-tuned", "interval"], rows),
        height=150 + 44 * len(known),
    )


def interval_text(metric: wording.Metric, metrics: Mapping) -> str:
    """`a to b`, or a dash for a metric without an interval."""
    return ends_text(metric, metrics["interval"].get(metric.key, {}))


def ends_text(metric: wording.Metric, ends: Mapping) -> str:
    """`a to b` of `low` and `high`, or a dash where they are missing."""
    return metric.format_interval(ends["low"], ends["high"]) if "low" in ends else "–"


def learning(model: str, history: Sequence[Mapping[str, float]]) -> Chart:
    """Accuracy above loss, for training and validation images, by epoch.

    Of logistic regression by the strength of its regularisation, which is what its rows differ in.
    """
    from plotly.graph_objects import Scatter

    key, unit = ("l2", "strength of L2") if "l2" in history[0] else ("epoch", "epoch")
    steps = [row[key] for row in history]
    axis = {"title": {"text": unit}, "anchor": "y2", "type": "log" if key == "l2" else "linear"}
    traces, layout = [], {"xaxis": axis}
    for axis, quantity, domain in (("", "accuracy", [0.55, 1]), ("2", "loss", [0, 0.45])):
        layout[f"yaxis{axis}"] = {"title": {"text": quantity}, "domain": domain, "anchor": "x"}
        for prefix, name, dash, symbol in (
            ("", "training", "dot", STYLES[model].open_symbol),
            ("val_", "validation", "solid", STYLES[model].symbol),
        ):
            traces.append(
                Scatter(
                    x=steps,
                    y=_rounded(row[prefix + quantity] for row in history),
                    mode="lines+markers" if len(steps) <= 60 else "lines",
                    line={"color": STYLES[model].color, "dash": dash, "width": 2},
                    marker={"symbol": symbol, "size": 6},
                    name=name,
                    legendgroup=name,
                    showlegend=quantity == "accuracy",
                    yaxis=f"y{axis}",
                    hovertemplate=f"{unit} %{{x}}, {name} {quantity} %{{y:.4f}}<extra></extra>",
                )
            )
    best = min(history, key=lambda row: row["val_loss"])
    phase = {"head": "Training the head", "fine_tuned": "Fine-tuning"}[model]
    several = "epochs" if key == "epoch" else "strengths of L2"
    return Chart(
        name=f"learning-{model}",
        title=phase,
        summary=f"{phase}: {wording.count(len(history), unit, several)}. The lowest validation "
        f"loss, {decimal(best['val_loss'])}, is that of {unit} {best[key]:g}, with a validation "
        f"accuracy of {percent(best['val_accuracy'])}.",
        figure=_figure(traces, **layout),
        table=Table(
            [unit, "accuracy", "validation accuracy", "loss", "validation loss"],
            [
                [
                    f"{row[key]:g}",
                    *(
                        f"{row[name]:.4f}"
                        for name in ("accuracy", "val_accuracy", "loss", "val_loss")
                    ),
                ]
                for row in history
            ],
        ),
        height=420,
    )


def most_confused(confusions: Sequence[Counter], class_names: Sequence[str]) -> list[str]:
    """The classes for the confusion matrix: all, or MOST_CLASSES of those most often confused.

    Of many classes, those of the pairs with most mistakes (either way, in all `confusions`), so
    that the mistakes are in the picture; the two of a pair are neighbours as far as that goes.
    """
    if len(class_names) <= MOST_CLASSES:
        return list(class_names)
    mistakes: Counter = Counter()
    for confusion in confusions:
        for (actual, predicted), images in confusion.items():
            if actual != predicted:
                mistakes[min(actual, predicted), max(actual, predicted)] += images
    ordered = sorted(mistakes, key=lambda pair: (-mistakes[pair], pair))
    names = dict.fromkeys(name for pair in ordered for name in pair)
    return list(names | dict.fromkeys(class_names))[:MOST_CLASSES]


def confusion(model: str, counts: Counter, shown: Sequence[str]) -> Chart:
    """Of the images of each actual class (a row), the share that went to each predicted one.

    Args:
        model: which one.
        counts: (actual, predicted) to test images, of all classes.
        shown: the classes to draw; shares are those of all images of a class.
    """
    from plotly.graph_objects import Heatmap

    totals: Counter = Counter()
    for (actual, _), images in counts.items():
        totals[actual] += images
    shares = [
        [counts[actual, predicted] / max(totals[actual], 1) for predicted in shown]
        for actual in shown
    ]
    full, short = (len(shown) <= most for most in (MOST_FULL_CELLS, MOST_SHORT_CELLS))

    def text(share: float, images: int) -> str:
        if full:
            return f"{percent(share)}<br>{number(images)}"
        return f"{100 * share:.0f}" if images else ""

    texts = [
        [
            text(share, counts[actual, predicted])
            for predicted, share in zip(shown, row, strict=True)
        ]
        for actual, row in zip(shown, shares, strict=True)
    ]
    hover = [
        [
            f"actual {plain(actual, 40)}<br>predicted {plain(predicted, 40)}<br>"
            f"{number(counts[actual, predicted])} of {number(totals[actual])} images"
            for predicted in shown
        ]
        for actual in shown
    ]
    places = list(range(len(shown)))
    names = [shorten(name, 16) for name in shown]
    level = sum(map(len, names)) <= MOST_LEVEL_CHARACTERS
    axis = {
        "tickvals": places,
        "ticktext": [plain(name) for name in names],
        "showgrid": False,
        "zeroline": False,
    }
    trace = Heatmap(
        z=[_rounded(row) for row in shares],
        x=places,
        y=places,
        customdata=hover,
        hovertemplate="%{customdata}<extra></extra>",
        text=texts if short else None,
        texttemplate="%{text}" if short else None,
        zmin=0,
        zmax=1,
        xgap=1,
        ygap=1,
        showscale=not short,
        colorbar={"tickformat": ".0%", "thickness": 10, "outlinewidth": 0},
    )
    pairs = sorted(
        ((pair, images) for pair, images in counts.items() if pair[0] != pair[1]),
        key=lambda item: (-item[1], item[0]),
    )
    mistakes = sum(images for _, images in pairs)
    summary = f"{NAMES[model].capitalize()}: {number(mistakes)} of {number(counts.total())} wrong."
    if pairs:
        (actual, predicted), images = pairs[0]
        summary += (
            f" The commonest mistake is “{actual}” taken for “{predicted}”: {number(images)} of "
            f"{wording.count(totals[actual], 'image')}."
        )
    rows = [
        [actual, predicted, number(images), percent(images / totals[actual])]
        for (actual, predicted), images in pairs[:MOST_TABLE_ROWS]
    ]
    return Chart(
        name=f"confusion-{model}",
        title=f"Confusion: {NAMES[model]}{'' if full else ', in %'}",
        summary=summary,
        figure=_figure(
            [trace],
            # Left to itself, Plotly fails on a phone with angles that depend on the width.
            xaxis={**axis, "title": {"text": "predicted"}, "tickangle": 0 if level else -60},
            yaxis={**axis, "title": {"text": "actual"}, "autorange": "reversed"},
            meta={"model": model, "classes": list(shown)},
            margin={"t": 10},
        ),
        table=Table(
            ["actual", "taken for", "images", "of the class"],
            rows,
            text_columns=2,
            note=shortened_note(len(pairs), "pairs of classes, the commonest"),
        ),
        height=400 if full else 460 if short else 640,
        least_width=0 if short else 720,
    )


def shortened_note(total: int, what: str) -> str:
    """What a table with more rows than it may show says of it."""
    return (
        f"{number(MOST_TABLE_ROWS)} of {number(total)} {what}." if total > MOST_TABLE_ROWS else ""
    )


def roc(models: Mapping[str, Model]) -> Chart:
    """True over false positive rate."""
    return _curves(
        "roc",
        "ROC",
        {name: model.roc for name, model in models.items()},
        {name: model.metrics.get("roc_auc") for name, model in models.items()},
        ("false positive rate", "true positive rate"),
        "area under the curve",
        [{"type": "line", "x0": 0, "y0": 0, "x1": 1, "y1": 1}],
    )


def precision_recall(models: Mapping[str, Model]) -> Chart:
    """Precision over recall."""
    return _curves(
        "precision-recall",
        "Precision and recall",
        {name: model.precision_recall for name, model in models.items()},
        {name: model.metrics.get("average_precision") for name, model in models.items()},
        ("recall", "precision"),
        "average precision",
        [],
    )


def _curves(name, title, curves, areas, axes, area_name, shapes) -> Chart:
    from plotly.graph_objects import Scatter

    class_names = list(curves["head"])
    one = len(class_names) == 1
    traces, rows = [], []
    for model, style in STYLES.items():
        line = {"color": style.color, "width": 2.5 if one else 1.5}
        line["dash"] = "dash" if model == "head" else "solid"
        # Without data: what the legend shows, whichever lines are hidden.
        traces.append(Scatter(x=[None], y=[None], mode="lines", line=line, name=NAMES[model]))
        for class_name, points in curves[model].items():
            across, up = zip(*points, strict=True)
            traces.append(
                Scatter(
                    x=_rounded(across),
                    y=_rounded(up),
                    mode="lines",
                    line=line,
                    showlegend=False,
                    meta={"class": class_name},
                    text=[plain(class_name, 40)] * len(points) if not one else None,
                    hovertemplate=("" if one else "%{text}<br>")
                    + f"{axes[0]} %{{x:.3f}}<br>{axes[1]} %{{y:.3f}}"
                    f"<extra>{NAMES[model]}</extra>",
                )
            )
            # As many say as much as a reader can take in. Both ends are among them.
            last = len(points) - 1
            chosen = sorted({round(last * tenth / 10) for tenth in range(11)})
            for x, y in (points[place] for place in chosen):
                rows.append([class_name, NAMES[model], decimal(x), decimal(y)])
    known = [f"{NAMES[model]} {decimal(area)}" for model, area in areas.items() if area is not None]
    subject = f"“{class_names[0]}”" if one else wording.count(len(class_names), "class", "classes")
    known = known or ["not known"]
    if class_names == [ALL_CLASSES]:
        subject = "all decisions, one class or not, together"
        area_name = f"{area_name}, the mean over the classes' own curves"
    return Chart(
        name=name,
        title=title,
        summary=f"{title} of {subject}. {area_name.capitalize()}: {', '.join(known)}.",
        figure=_figure(
            traces,
            xaxis={"title": {"text": axes[0]}, "range": [-0.02, 1.02]},
            yaxis={"title": {"text": axes[1]}, "range": [-0.02, 1.02]},
            shapes=shapes,
        ),
        table=Table(
            ["class", "model", *axes],
            rows,
            text_columns=2,
            note="About ten points of each curve; all of them are in plots/.",
        ),
        height=400,
        choices=() if one else tuple(class_names),
    )


def reliability(model: str, bins: Mapping[str, Sequence[Mapping[str, float]]]) -> Chart:
    """Accuracy over confidence before and after the temperature, above the images of each bin.

    Without bins before it, where views were averaged, only after.
    """
    from plotly.graph_objects import Bar, Scatter

    style = STYLES[model]
    traces, rows = [], []
    for when, dash, symbol in (
        ("before", "dot", style.open_symbol),
        ("after", "solid", style.symbol),
    ):
        if not bins[when]:
            continue
        traces.append(
            Scatter(
                x=_rounded(row["confidence"] for row in bins[when]),
                y=_rounded(row["accuracy"] for row in bins[when]),
                customdata=[int(row["images"]) for row in bins[when]],
                mode="lines+markers",
                line={"color": style.color, "dash": dash, "width": 2},
                marker={"symbol": symbol, "size": 8},
                name=f"{when} scaling",
                hovertemplate="confidence %{x:.3f}<br>accuracy %{y:.3f}<br>%{customdata} images"
                f"<extra>{when}</extra>",
            )
        )
        rows += [
            [
                when,
                decimal(row["confidence"]),
                decimal(row["accuracy"]),
                number(int(row["images"])),
            ]
            for row in bins[when]
        ]
    after = bins["after"]
    traces.append(
        Bar(
            x=_rounded(row["confidence"] for row in after),
            y=[int(row["images"]) for row in after],
            width=0.03,
            marker={"color": style.color},
            showlegend=False,
            yaxis="y2",
            hovertemplate="confidence %{x:.3f}<br>%{y} images<extra>after</extra>",
        )
    )
    when_shown = "before and after" if bins["before"] else "after"
    # A bin is told by its mean; the end of one is where images can be counted.
    sure_from = 1 - 1 / CALIBRATION_BINS
    sure = sum(row["images"] for row in after if row["confidence"] > sure_from)
    total = sum(row["images"] for row in after)
    return Chart(
        name=f"reliability-{model}",
        title=f"Reliability: {NAMES[model]}",
        summary=f"Reliability of the {NAMES[model]} model, {when_shown} temperature scaling. "
        f"After it, {percent(sure / max(total, 1))} of the images have a confidence above "
        f"{decimal(sure_from)}.",
        figure=_figure(
            traces,
            xaxis={"title": {"text": "confidence"}, "range": [0, 1.03], "anchor": "y2"},
            yaxis={"title": {"text": "accuracy"}, "range": [-0.02, 1.05], "domain": [0.36, 1]},
            yaxis2={"title": {"text": "images"}, "domain": [0, 0.24], "nticks": 3},
            shapes=[{"type": "line", "x0": 0, "y0": 0, "x1": 1, "y1": 1}],
        ),
        table=Table(["scaling", "confidence", "accuracy", "images"], rows),
        height=460,
    )


def class_f1(models: Mapping[str, Model]) -> Chart:
    """F1 of every class, lowest after fine-tuning first; of many classes the lowest ones."""
    from plotly.graph_objects import Bar

    scores = {
        model: {
            name: row["f1"]
            for name, row in models[model].metrics["class"].items()
            if row["support"]  # else there is nothing to find
        }
        for model in NAMES
    }
    ordered = sorted(scores["fine_tuned"], key=lambda name: (scores["fine_tuned"][name], name))
    shown = ordered[:MOST_CLASSES]
    places = list(range(len(shown)))
    traces = [
        Bar(
            x=_rounded(scores[model][name] for name in shown),
            y=places,
            orientation="h",
            name=NAMES[model],
            marker={
                "color": STYLES[model].color,
                "pattern": {
                    "shape": STYLES[model].pattern,
                    "fillmode": "overlay",
                    "fgcolor": "rgba(255, 255, 255, 0.6)",
                    "size": 6,
                    "solidity": 0.2,
                },
            },
            customdata=[plain(name, 40) for name in shown],
            hovertemplate="%{customdata}: F1 %{x:.3f}<extra>" + NAMES[model] + "</extra>",
        )
        for model in NAMES
    ]
    what = "" if len(shown) == len(ordered) else f" of the {len(shown)} lowest of {len(ordered):,}"
    return Chart(
        name="class-f1",
        title=f"F1{what or ' of each'} class{'es' if what else ''}",
        summary=f"Bars of F1 for {wording.count(len(shown), 'class', 'classes')}; the lowest after "
        f"fine-tuning is “{shown[0]}” with {decimal(scores['fine_tuned'][shown[0]])}.",
        figure=_figure(
            traces,
            barmode="group",
            bargap=0.3,
            xaxis={"title": {"text": "F1"}, "range": [0, 1]},
            yaxis=_lines([plain(name, 22) for name in shown]),
        ),
        table=Table(
            ["class", "head", "fine-tuned"],
            [[name, *(decimal(scores[model][name]) for model in NAMES)] for name in shown],
        ),
        height=130 + (60 if len(shown) <= 10 else 26) * len(shown),
    )


def slices(place: int, column: str, models: Mapping[str, Model]) -> Chart:
    """Accuracy for every value of a column, with whiskers; of many values the lowest ones."""
    values = {model: models[model].metrics["slice"][column] for model in NAMES}
    ordered = sorted(
        values["fine_tuned"], key=lambda name: (values["fine_tuned"][name]["accuracy"], name)
    )
    shown = ordered[:MOST_CLASSES]
    traces, rows = [], []
    for model in NAMES:
        chosen = [values[model][name] for name in shown]
        texts = [
            f"{plain(name, 40)}: {percent(row['accuracy'])} of {number(row['images'])}"
            for name, row in zip(shown, chosen, strict=True)
        ]
        intervals = [row["interval"].get("accuracy") for row in chosen]
        traces.append(_dots(model, [row["accuracy"] for row in chosen], intervals, texts))
    for name in shown:
        pair = [values[model][name] for model in NAMES]
        rows.append([name, number(pair[0]["images"]), *(percent(row["accuracy"]) for row in pair)])
    of_many = "" if len(shown) == len(ordered) else f", the {len(shown)} lowest of {len(ordered):,}"
    return Chart(
        name=f"slices-{place}",
        title=f"Accuracy by {column}{of_many}",
        summary=wording.spread_of_slices(column, values["fine_tuned"])
        or f"Accuracy for the one value of {column}.",
        figure=_figure(
            traces,
            xaxis={"title": {"text": "accuracy"}, "tickformat": ".0%"},
            yaxis=_lines(
                [f"{plain(name, 20)} ({number(values['head'][name]['images'])})" for name in shown]
            ),
        ),
        table=Table([column, "images", "head", "fine-tuned"], rows),
        height=140 + (54 if len(shown) <= 10 else 28) * len(shown),
    )


def class_balance(splits: Mapping[str, Mapping]) -> Chart:
    """Images of every class, split by split; of many classes the largest and the smallest."""
    from plotly.graph_objects import Bar

    totals: Counter = Counter()
    for split in splits.values():
        totals.update(split["class"])
    ordered = [name for name, _ in totals.most_common()]
    shown, title = ordered, "Images of each class"
    if len(ordered) > MOST_CLASSES:
        half = MOST_CLASSES // 2
        shown = ordered[:half] + ordered[-half:]
        title = (
            f"Images of the {half} largest and {half} smallest of {number(len(ordered))} classes"
        )
    places = list(range(len(shown)))
    traces = [
        Bar(
            x=[splits[split]["class"].get(name, 0) for name in shown],
            y=places,
            orientation="h",
            name=split,
            marker={"color": color},
            customdata=[plain(name, 40) for name in shown],
            hovertemplate="%{customdata}: %{x} images<extra>" + split + "</extra>",
        )
        for split, color in SPLIT_COLORS.items()
    ]
    return Chart(
        name="class-balance",
        title=title,
        summary=f"{title}, for training, validation and test: from {number(totals[shown[0]])} "
        f"(“{shown[0]}”) to {number(totals[shown[-1]])} (“{shown[-1]}”).",
        figure=_figure(
            traces,
            barmode="stack",
            bargap=0.35,
            legend={"traceorder": "normal"},
            xaxis={"title": {"text": "images"}},
            yaxis=_lines([plain(name, 22) for name in shown]),
        ),
        table=Table(
            ["class", *SPLIT_COLORS],
            [
                [name, *(number(splits[split]["class"].get(name, 0)) for split in SPLIT_COLORS)]
                for name in shown
            ],
        ),
        height=130 + (44 if len(shown) <= 10 else 22) * len(shown),
    )
