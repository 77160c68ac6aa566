"""What the template shows: tables, charts and facts made from the evidence, all in words."""

from collections.abc import Mapping
from typing import Any

from stages.common import evaluation, geometry, inventory, paths
from stages.common.report import charts, wording
from stages.common.report.charts import Chart, Table
from stages.common.report.evidence import Commit, Evidence
from stages.common.report.wording import (
    METRIC_OF_KEY,
    METRICS,
    NAMES,
    Metric,
    count,
    decimal,
    number,
    percent,
)
from stages.common.splits import SPLIT_NAMES

# The numbers of metrics/data.json under `duplicates`, in words; one that is new shows its key.
DUPLICATES = {
    "exact_groups": "Groups of identical images",
    "exact_images": "Images that are copies of another",
    "near_groups": "Groups of near duplicates",
    "near_images": "Images that are near duplicates of another",
    "conflicting_labels": "Groups of identical images with differing labels",
    "near_conflicting_labels": "Groups of near duplicates with differing labels",
    "straddled_official": "Images with a copy or near duplicate in one of the source's own splits",
}
SLICE_METRICS = ("accuracy", "balanced_accuracy", "f1_macro", "roc_auc")
CALIBRATION = ("loss", "expected_calibration_error", "brier_score")
NAMED_CLASSES = 10


def page(evidence: Evidence, stated) -> dict[str, Any]:
    """Everything that the template shows, save the gallery.

    Args:
        evidence: what was found out.
        stated: the section `report`, what only a person knows.
    """
    models, metrics = evidence.models, {n: m.metrics for n, m in evidence.models.items()}
    head, fine_tuned = metrics["head"], metrics["fine_tuned"]
    class_names = list(fine_tuned["class"])
    shown = charts.most_confused([models[name].confusion for name in NAMES], class_names)
    columns = sorted(fine_tuned["slice"])
    return {
        "title": page_title(evidence, stated),
        "verdict": wording.verdict(head, fine_tuned, evidence.comparison),
        "beside_verdict": [
            wording.baseline(fine_tuned),
            wording.mcnemar(
                evidence.comparison["mcnemar"], fine_tuned["images"], fine_tuned["groups"]
            ),
        ],
        "key_figures": key_figures(metrics, evidence.comparison),
        "facts": facts(evidence),
        "counts": split_counts(evidence.data),
        "params_text": evidence.params_text,
        "comparison": comparison_table(metrics, evidence.comparison),
        "headline": charts.headline(models),
        "learning": [charts.learning(name, models[name].history) for name in NAMES],
        "learning_note": learning_note(evidence),
        "confusion": [charts.confusion(name, models[name].confusion, shown) for name in NAMES],
        "confusion_is_cut": len(shown) < len(class_names),
        "curves": [charts.roc(models), charts.precision_recall(models)]
        if models["head"].roc
        else [],
        "reliability": [charts.reliability(name, models[name].reliability) for name in NAMES],
        "calibration": calibration_table(metrics),
        "calibration_note": calibration_note(metrics),
        "class_f1": charts.class_f1(models),
        "classes": class_table(metrics, evidence.data),
        "no_slices": no_slices_note(evidence),
        "slices": [
            {
                "column": column,
                "chart": charts.slices(place, column, models),
                "table": slice_table(column, metrics),
            }
            for place, column in enumerate(columns)
        ],
        "kinds": {"mistake": "mistakes", "uncertain": "least certain", "sample": "sample"},
        "model_names": NAMES,
        "rejected": rejected_table(evidence),
        "data_notes": data_notes(evidence),
        "duplicates": duplicates_table(evidence),
        "class_balance": charts.class_balance(evidence.data["splits"]),
        "card": card(evidence, stated),
        "stated": stated,
    }


def all_charts(view: Mapping[str, Any]) -> dict[str, Chart]:
    """Every chart in what `page` returned, by its name."""
    found = [view["headline"], view["class_f1"], view["class_balance"]]
    for key in ("learning", "confusion", "curves", "reliability"):
        found += view[key]
    found += [part["chart"] for part in view["slices"]]
    return {chart.name: chart for chart in found}


def page_title(evidence: Evidence, stated) -> str:
    """What a person calls the model, or the network and the data set."""
    return stated.title or f"{evidence.params['backbone']['name']} on {dataset_name(evidence)}"


def dataset_name(evidence: Evidence) -> str:
    """The set's name, and for people's own images where they are."""
    name = evidence.params["dataset"]["name"]
    own = name in ("image_folder", "image_table")
    return evidence.params["dataset"]["path"] if own else name


def key_figures(metrics: Mapping[str, Mapping], comparison: Mapping) -> list[dict[str, str]]:
    """The three numbers at the top: accuracy of both models and the difference."""
    accuracy = wording.ACCURACY
    figures = [
        {
            "model": model,
            "name": f"Accuracy, {NAMES[model]}",
            "value": percent(metrics[model]["accuracy"]),
            "interval": charts.interval_text(accuracy, metrics[model]),
        }
        for model in NAMES
    ]
    change = comparison["accuracy"]
    figures.append(
        {
            "model": "",
            "name": "Difference",
            "value": accuracy.format_difference(change["difference"]),
            "interval": charts.ends_text(accuracy, change),
        }
    )
    return figures


def facts(evidence: Evidence) -> list[tuple[str, list[str]]]:
    """What was trained on what: terms with one or more lines each."""
    params, source = evidence.params, evidence.source
    metrics = evidence.models["fine_tuned"].metrics
    backbone, head, fine_tune = (params[k] for k in ("backbone", "train_head", "fine_tune"))
    hidden = ""
    if head["head"] == "dense":
        units = head["hidden_units"]
        listed = units if isinstance(units, list) else [units]
        hidden = f" with {' and '.join(number(count) for count in listed)} hidden units"
    trained = {model: wording.large(total) for model, total in evidence.trainable.items()}
    lines = [
        (
            "Data set",
            [
                f"{dataset_name(evidence)}, version {source.get('version', 'not known')}",
                f"Licence: {licence(source) or 'the source names none'}",
                *(str(url) for url in source.get("location", {}).get("urls", [])),
            ],
        ),
        (
            "Network",
            [
                f"{backbone['name']} at {backbone['image_size'] or 'its own number of'} pixels, "
                "weights: "
                f"{backbone['weights'] or 'random'}",
                f"{wording.large(metrics['parameters'])} parameters"
                # Not known of layers of unknown kinds, as transformers have.
                + (
                    f", {wording.large(metrics['multiply_adds'])} multiply-adds an image"
                    if "multiply_adds" in metrics
                    else ""
                ),
            ],
        ),
        (
            "Head",
            [
                f"{head['head']}{hidden}; {trained['head']} parameters in layers that trained, "
                "on the frozen network",
            ],
        ),
        (
            "Fine-tuning",
            [
                f"unfrozen: {wording.unfrozen(fine_tune['unfreeze'])}; "
                f"{trained['fine_tuned']} parameters in layers "
                f"that trained, from the trained head, {fine_tune['optimizer']} at up to "
                f"{fine_tune['learning_rate']:g}",
            ],
        ),
        (
            "Split",
            [
                wording.split_sentence(params["split"], evidence.data["splits"]),
                f"Seed {params['seed']}.",
            ],
        ),
        ("Measured on", [wording.views_sentence(params["evaluate"]["test_time_augment"])]),
        # Of the environment in which the stage report ran: the models may be older.
        ("Commit of this page", commit_lines(evidence.commit)),
        (
            "Versions with which this page was made",
            [", ".join(f"{name} {version}" for name, version in evidence.versions.items())],
        ),
    ]
    return lines


def licence(source: Mapping[str, Any]) -> str | None:
    """The licence that the data set's description names."""
    return source.get("redistributionInfo", {}).get("license") or None


def commit_lines(commit: Commit) -> list[str]:
    """The commit, and what in the working tree was not in it when the page was made."""
    if commit.name is None:
        return ["not known: the project is under no Git, or has no commit yet"]
    lines = [f"{commit.name} of {commit.date}"]
    if commit.changed:
        lines.append(f"with uncommitted changes in {wording.listed(commit.changed, 5)}")
    return lines


def split_counts(data: Mapping[str, Any]) -> Table:
    """Images of each split; with few classes those of each class too."""
    splits = data["splits"]
    names = list(next(iter(splits.values()))["class"])
    columns = names if len(names) <= NAMED_CLASSES else []
    return Table(
        ["split", "images", *columns],
        [
            [name, number(split["images"]), *(number(split["class"][key]) for key in columns)]
            for name, split in ((name, splits[name]) for name in SPLIT_NAMES)
        ],
    )


def comparison_table(metrics: Mapping[str, Mapping], comparison: Mapping) -> list[dict[str, str]]:
    """A row for each metric of both models, with intervals, difference and what follows of it."""
    rows = []
    for metric in METRICS:
        if metric.key not in metrics["head"]:
            continue
        row = {
            "name": metric.name,
            "meaning": metric.meaning,
            "better": "higher is better" if metric.higher_is_better else "lower is better",
        }
        for model in NAMES:
            row[model] = metric.format(metrics[model][metric.key])
            row[f"{model}_interval"] = charts.interval_text(metric, metrics[model])
        change = comparison.get(metric.key, {})
        difference = metrics["fine_tuned"][metric.key] - metrics["head"][metric.key]
        row["difference"] = metric.format_difference(difference)
        row["difference_interval"] = charts.ends_text(metric, change)
        row["outcome"] = wording.outcome(metric, change) or "–"
        rows.append(row)
    return rows


def calibration_table(metrics: Mapping[str, Mapping]) -> Table:
    """Calibration before and after the temperature."""
    known = [METRIC_OF_KEY[key] for key in CALIBRATION]
    rows = []
    for model, name in NAMES.items():
        row = [name, decimal(metrics[model]["temperature"])]
        for metric in known:
            # Averaged views have no probabilities without the temperature.
            before = metrics[model].get("uncalibrated")
            row.append("–" if before is None else metric.format(before[metric.key]))
            row.append(metric.format(metrics[model][metric.key]))
        rows.append(row)
    groups = [("", 2), *((metric.name, 2) for metric in known)]
    return Table(["model", "temperature", *(len(known) * ["before", "after"])], rows, groups=groups)


def class_table(metrics: Mapping[str, Mapping], data: Mapping[str, Any]) -> Table:
    """Every class with its images, and precision, recall and F1 of both models."""
    train = data["splits"]["train"]["class"]
    rows = []
    for name, after in metrics["fine_tuned"]["class"].items():
        before = metrics["head"]["class"][name]
        row = [name, number(train.get(name, 0)), number(after["support"])]
        if not after["support"]:  # nothing was there to be found
            rows.append([*row, *(7 * ["–"])])
            continue
        for key in ("precision", "recall", "f1"):
            row += [decimal(before[key]), decimal(after[key])]
        rows.append([*row, decimal(after["f1"] - before["f1"], "+")])
    groups = [("", 1), ("Images", 2), ("Precision", 2), ("Recall", 2), ("F1", 3)]
    return Table(
        ["class", "train", "test", *(3 * [*NAMES.values()]), "change"], rows, groups=groups
    )


def slice_table(column: str, metrics: Mapping[str, Mapping]) -> Table:
    """Every value of a metadata column with the metrics of both models and their intervals."""
    values = {model: metrics[model]["slice"][column] for model in NAMES}
    known = [
        METRIC_OF_KEY[key]
        for key in SLICE_METRICS
        if any(key in row for row in values["fine_tuned"].values())
    ]

    def cell(metric: Metric, row: Mapping) -> str | tuple[str, str]:
        if metric.key not in row:
            return "–"
        return metric.format(row[metric.key]), charts.interval_text(metric, row)

    rows = [
        [
            name,
            number(values["fine_tuned"][name]["images"]),
            *(cell(metric, values[model][name]) for metric in known for model in NAMES),
        ]
        for name in sorted(values["fine_tuned"])
    ]
    groups = [("", 2), *((metric.name, 2) for metric in known)]
    return Table([column, "images", *(len(known) * [*NAMES.values()])], rows, groups=groups)


def rejected_table(evidence: Evidence) -> Table:
    """Images that could not be used, by reason, with the first names."""
    return Table(
        ["reason", "first names", "images"],
        [
            [
                inventory.PROBLEMS.get(code, code),
                wording.listed(rejected.first_names)
                + (" …" if rejected.images > len(rejected.first_names) else ""),
                number(rejected.images),
            ]
            for code, rejected in evidence.rejected.items()
        ],
        text_columns=2,
    )


def duplicates_table(evidence: Evidence) -> Table:
    """What the comparison of all images with each other found."""
    duplicates = evidence.data["duplicates"]
    identical_alone = evidence.params["split"]["near_duplicate_distance"] is None
    return Table(
        ["what", "number"],
        [
            [
                words,
                "not looked for"
                if identical_alone and key.startswith("near_")
                else number(duplicates[key]),
            ]
            for key, words in DUPLICATES.items()
        ],
    )


def learning_note(evidence: Evidence) -> str:
    """What the numbers of the learning curves are, and are not."""
    by_epoch = [name for name in NAMES if "l2" not in evidence.models[name].history[0]]
    sentences = []
    if by_epoch:
        sentences.append(
            "Training numbers of an epoch are taken while weights still change, with dropout and "
            "augmentation, so that accuracy may lie below that of validation, and loss above."
        )
    smoothed = [
        f", of {'the head' if name == 'head' else 'fine-tuning'} with label smoothing of {amount:g}"
        for name in by_epoch
        if (amount := evidence.params[paths.TRAINED_BY[name]]["label_smoothing"])
    ]
    sentences.append(
        f"Losses are before the temperature{''.join(smoothed)}: other numbers than the loss on the "
        "test split."
    )
    return " ".join(sentences)


def calibration_note(metrics: Mapping[str, Mapping]) -> str:
    """What the temperature does, to one view of an image or to the mean of several."""
    fitted = "One temperature a model, fitted on the validation split, scales the probabilities"
    if "uncalibrated" in metrics["fine_tuned"]:
        return f"{fitted}; it changes no prediction."
    return f"{fitted} of each view; it is not fitted to the mean over views that is measured here."


def no_slices_note(evidence: Evidence) -> str:
    """Why no column parts the test images."""
    if evidence.params["evaluate"]["slice_columns"] is None:
        return f"none has {evaluation.FEWEST_VALUES} to {evaluation.MOST_VALUES} values."
    return "params.yaml asks for none."


def data_notes(evidence: Evidence) -> list[str]:
    """Sentences on what was left out, imbalance, small classes and animations."""
    data, metrics = evidence.data, evidence.models["fine_tuned"].metrics
    train = data["splits"]["train"]["class"]
    ratio, largest, smallest = wording.imbalance(train)
    notes = [
        f"In training, the largest class (“{largest}”, {count(train[largest], 'image')}) has "
        f"{ratio:.1f} times the images of the smallest (“{smallest}”, "
        f"{count(train[smallest], 'image')})."
    ]
    unused = data["images"] - data["used"] - data["rejected"]["total"]
    if unused:
        notes.insert(
            0,
            f"{count(unused, 'image')} of the source's {number(data['images'])} took no part: "
            "outside of split.sample, or a copy of what an official split holds.",
        )
    # The data's own list lacks a class of which no image is used.
    absent = [name for name in metrics["class"] if not train.get(name)]
    if absent:
        notes.append(
            f"{count(len(absent), 'class has', 'classes have')} no training image: "
            f"{wording.listed(absent, 5)}."
        )
    tiny = wording.tiny_classes(metrics)
    notes.append(
        f"{count(len(tiny), 'class has', 'classes have')} fewer than {wording.FEW_IMAGES} test "
        f"images, so that one moves its recall by five points or more: {wording.listed(tiny, 5)}."
        if tiny
        else f"Every class has {wording.FEW_IMAGES} test images or more."
    )
    takes_one_frame = evidence.params["preprocess"]["channels"] in (geometry.RGB, geometry.GREY)
    if data["animated"] and takes_one_frame:  # else pages are channels
        notes.append(
            f"{count(data['animated'], 'file')} with several frames or pages; the first one is "
            "the image."
        )
    return notes


def card(evidence: Evidence, stated) -> dict[str, Any]:
    """The generated sentences of the model card, by section."""
    models = {name: model.metrics for name, model in evidence.models.items()}
    fine_tuned, splits = models["fine_tuned"], evidence.data["splits"]
    columns = sorted(fine_tuned["slice"])
    classes = list(fine_tuned["class"])
    spreads = [
        sentence
        for column in columns
        if (sentence := wording.spread_of_slices(column, fine_tuned["slice"][column]))
    ]
    return {
        "details": [
            f"{page_title(evidence, stated)}: a classifier of "
            f"{count(len(classes), 'class', 'classes')} ({wording.listed(classes, 5)}).",
            f"Input: {wording.kind_of_images(evidence.params['preprocess']['channels'])} of any "
            "size, values 0–255. Output: one probability a class, scaled "
            "by a temperature that was fitted on the validation split.",
            "Files: models/head.keras and models/fine_tuned.keras.",
        ],
        "data_licence": licence(evidence.source),
        "factors": (
            f"Measured apart: {wording.listed(columns)}. Other ways in which images can differ "
            "(camera, place, time, light, people) were not looked at."
            if columns
            else "No column of the data set was measured apart: groups within the data may fare "
            "differently, and this page would not show it."
        ),
        "metrics": (
            "Accuracy is the headline; balanced accuracy, F1, ranking and calibration stand beside "
            f"it. Intervals: 95{wording.SPACE}%, percentile bootstrap over the groups of test "
            "images; they tell what other test images of the same kind might give."
        ),
        "evaluation": f"{count(splits['test']['images'], 'test image')}. "
        f"{wording.split_sentence(evidence.params['split'], splits)} "
        "No stage but the evaluation reads them.",
        "training": f"{count(splits['train']['images'], 'training image')} and "
        f"{count(splits['valid']['images'], 'validation image')} of {dataset_name(evidence)}, with "
        f"{evidence.params['backbone']['weights'] or 'random'} weights as the start.",
        "results": [
            wording.verdict(models["head"], fine_tuned, evidence.comparison),
            *spreads,
        ],
        "ethics": [
            "Whether the images show people, and whether they agreed to this use, is for the "
            "data's owner to say; the pipeline does not know.",
            "The pretrained network brings what it learnt from its own images, errors and unequal "
            "treatment of groups included.",
            "A decision that affects somebody needs a person who can overrule the model: see its "
            "most confident mistakes above.",
        ],
        "caveats": wording.caveats(evidence.data, models, evidence.comparison),
    }
