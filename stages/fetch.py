"""Brings the data set into one TFDS directory and checks every image of it.

Reads:  the source: a package (elpv), dataset.path (image_folder, image_table), or a TFDS set by
        its name.
Writes: data/raw/ — TFRecord shards with the original encoded image bytes, labels, class names,
        and whatever else the source says of an image.
        data/inventory.csv — one row an image of the source: size, format, hashes, channel means,
        and the problem of those that can't be used.
        data/rejected.csv — those alone: id, name, label, problem, detail.
"""

import functools
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from stages.common import checks, images, inventory, params, paths
from stages.common.datasets.library import check_beam_installed, prepare, remove_folder
from stages.common.datasets.raw import RawDataset
from stages.common.run import UserError, progress, run, start_tensorflow

OWN_SOURCES = ("elpv", "image_folder", "image_table")

BeamRunner = Literal[
    "DirectRunner", "DataflowRunner", "FlinkRunner", "PortableRunner", "PrismRunner", "SparkRunner"
]

# Mean of 0–255 below which a picture of 16 bits is looked at twice: what has 12 bits in 16 reaches
# 15 at most, 14 bits 63.
DARK = 16

# Problems of what a URL gave, which may give another file later.
OF_THE_FILE = ("not_an_image", "truncated", "zero_pixels")
OptionalColumn = Annotated[
    Annotated[str, Field(min_length=1)] | None,
    Field(description="null, or the name of a column"),
]


@params.params_dataclass
class ElpvParams:
    """How a solar cell's probability of being defective becomes its class."""

    labels: Literal["binary", "probability"]
    threshold: Annotated[float, Field(gt=0, le=1, description="a number above 0, at most 1")]


@params.params_dataclass
class ImageTableParams:
    """The table's columns that mean something; all others are kept as they are."""

    path_column: params.Text
    label_column: params.Text
    split_column: OptionalColumn
    group_column: OptionalColumn


@params.params_dataclass
class FetchParams:
    """Section `dataset`."""

    name: params.Text
    path: params.Text
    splits: Annotated[
        list[str] | None,
        Field(
            min_length=1,
            description="null for all, or a list of the set's own splits, such as [train]",
        ),
    ]
    on_bad_image: Literal["error", "skip"]
    pixel_limit: Annotated[
        int,
        Field(
            ge=1,
            le=images.MOST_PIXELS,
            description=f"a whole number from 1 to {images.MOST_PIXELS}",
        ),
    ]
    beam_runner: Annotated[
        BeamRunner | None,
        Field(description=f"null, or one of {', '.join(get_args(BeamRunner))}"),
    ]
    beam_options: Annotated[
        list[str] | None,
        Field(description="null, or a list of options of the runner, such as [--key=value]"),
    ]
    beam_folder: Annotated[
        params.Text | None, Field(description="null, or a folder or bucket that all workers reach")
    ]
    image_table: ImageTableParams
    elpv: ElpvParams

    @model_validator(mode="after")
    def _splits_are_different(self):
        if len(set(self.splits or [])) < len(self.splits or []):
            raise ValueError(f"splits: expected each split once, received {self.splits}")
        return self

    @model_validator(mode="after")
    def _options_are_options(self):
        for option in self.beam_options or []:
            if not option.startswith("--"):  # Beam would leave it out in silence
                raise ValueError(f"beam_options: expected --key=value, received {option!r}")
        return self

    @model_validator(mode="after")
    def _source_runs_on_beam(self):
        if self.beam_runner and self.name == "image_table":
            raise ValueError(
                "beam_runner: expected null for image_table, whose rows this process reads, and "
                f"lists those that give no image, received {self.beam_runner!r}"
            )
        return self


def building_folder(dataset: FetchParams) -> str:
    """Where the builder writes, before its files become data/raw.

    It is inside the output, so that nothing crosses file systems, unless workers of Apache Beam
    write elsewhere. They have another working folder: for them the path is a whole one.
    """
    if dataset.beam_runner is None:
        return str(paths.RAW / "building")
    if dataset.beam_folder is None:
        return str((paths.RAW / "building").absolute())
    folder = dataset.beam_folder
    if "://" not in folder:
        folder = str(Path(folder).absolute())
    return f"{folder.rstrip('/')}/warmstart_building"


def make_builder(dataset: FetchParams, data_dir: Path | str):
    """The TFDS builder of the named source; UserError where there is none of that name."""
    on_beam = dataset.beam_runner is not None
    if dataset.name == "elpv":
        from stages.common.datasets.elpv import Elpv

        elpv = dataset.elpv
        return Elpv(
            labels=elpv.labels, threshold=elpv.threshold, on_beam=on_beam, data_dir=data_dir
        )
    if dataset.name == "image_folder":
        from stages.common.datasets.image_folder import ImageFolder

        return ImageFolder(
            folder=Path(dataset.path), splits=dataset.splits, on_beam=on_beam, data_dir=data_dir
        )
    if dataset.name == "image_table":
        from stages.common.datasets.image_table import ImageTable

        columns = dataset.image_table
        return ImageTable(
            table=Path(dataset.path),
            path_column=columns.path_column,
            label_column=columns.label_column,
            split_column=columns.split_column,
            group_column=columns.group_column,
            downloads=paths.DOWNLOADS / dataset.name,
            splits=dataset.splits,
            data_dir=data_dir,
        )
    from stages.common.datasets.library import library_builder

    return library_builder(dataset.name, OWN_SOURCES, data_dir)


def check_images(raw: RawDataset, pixel_limit: int) -> Iterator[inventory.InventoryRow]:
    """Decodes every image of data/raw once: what it is or why it can't be used, in their order."""
    inspect = functools.partial(checks.inspect, pixel_limit=pixel_limit)
    checked = images.map_encoded(inspect, raw)
    for image, found in progress(checked, total=raw.count, unit="image", description="check"):
        if image.label < 0 and "problem" not in found:
            found |= {"problem": "empty_label", "detail": "the source gives no label"}
        yield inventory.InventoryRow(
            id=image.id, name=image.name, label=raw.class_name(image.label), **found
        )


@dataclass
class Dark:
    """Images of 16 bits that are nearly black: how many, since there may be a million of them."""

    count: int = 0
    first: str = ""

    def __str__(self) -> str:
        return (
            f"{self.count} of the images of 16 bits are nearly black, {self.first} the first: "
            f"their means are below {DARK} of 255. Where a camera stored 10, 12 or 14 bits in 16, "
            "multiply the values up to all 16 before this pipeline reads them, or little of them "
            "is left"
        )


def noting_dark(
    rows: Iterable[inventory.InventoryRow], dark: Dark
) -> Iterator[inventory.InventoryRow]:
    """The rows as they come; nearly black ones of 16 bits are counted in `dark`."""
    for row in rows:
        of_16_bits = row.mode.startswith("I") or row.mode.endswith(images.OF_16_BITS)
        if of_16_bits and not row.problem and max(row.red, row.green, row.blue) < DARK:
            dark.count += 1
            dark.first = dark.first or row.name
        yield row


def noting_rejected(
    rows: Iterable[inventory.InventoryRow], rejected: list[inventory.InventoryRow]
) -> Iterator[inventory.InventoryRow]:
    """The rows as they come; those with a problem are put into `rejected` as well."""
    for row in rows:
        if row.problem:
            rejected.append(row)
        yield row


def judge(rejected: list[inventory.InventoryRow], count: int, on_bad_image: str) -> str | None:
    """A sentence on the images that can't be used; None where all `count` can.

    Raises:
        UserError: there are some, and `on_bad_image` is error. Its text names all of them.
    """
    if not rejected:
        return None
    numbers = Counter(row.problem for row in rejected)
    summary = ", ".join(f"{number} {problem}" for problem, number in sorted(numbers.items()))
    if on_bad_image == "error":
        listed = "".join(f"\n       {row.name}: {row.problem}: {row.detail}" for row in rejected)
        raise UserError(
            f"{len(rejected)} of {count} images can't be used ({summary}); mend or remove them, or "
            f"set dataset.on_bad_image to skip; {inventory.REJECTED_FILE} lists them too:{listed}"
        )
    return (
        f"{len(rejected)} of {count} images can't be used and are left out ({summary}); "
        f"{inventory.REJECTED_FILE} lists them"
    )


def describe_beam_without_effect(dataset: FetchParams) -> list[str]:
    """A sentence for each param of Apache Beam that is given where it doesn't run."""
    if dataset.beam_runner:
        return []
    return [
        f"dataset.{key}: without effect, since dataset.beam_runner is null"
        for key in ("beam_options", "beam_folder")
        if getattr(dataset, key)
    ]


def main() -> None:
    """Reads the source, writes data/raw, and checks what is there."""
    dataset = params.load("dataset", FetchParams)
    check_beam_installed(dataset.beam_runner)
    for sentence in describe_beam_without_effect(dataset):
        print(sentence)
    start_tensorflow()

    paths.DOWNLOADS.mkdir(parents=True, exist_ok=True)
    building = building_folder(dataset)
    remove_folder(building)  # what a run that was stopped left would be taken as finished
    builder = make_builder(dataset, building)
    counts = prepare(
        builder,
        dataset.splits,
        paths.DOWNLOADS,
        paths.RAW,
        dataset.beam_runner,
        dataset.beam_options,
    )
    remove_folder(building)
    print(f"{dataset.name}: " + ", ".join(f"{n} images in '{s}'" for s, n in counts.items()))
    # Our own builders say what they left out; of TFDS's own there is nothing to say.
    for note in getattr(builder, "notes", []):
        print(note)
    never_stored = getattr(builder, "rejected", {})  # split to rows: there is no image to check
    without_image = [row for split in counts for row in never_stored.get(split, [])]
    raw = RawDataset(paths.RAW)
    rejected: list[inventory.InventoryRow] = []
    dark = Dark()
    checked = noting_dark(check_images(raw, dataset.pixel_limit), dark)
    rows = itertools.chain(checked, without_image)
    inventory.write(inventory.INVENTORY_FILE, noting_rejected(rows, rejected))
    inventory.write_rejected(inventory.REJECTED_FILE, rejected)
    if dark.count:
        print(dark)
    if dataset.name == "image_table":
        for row in rejected:
            if row.problem in OF_THE_FILE:  # or what is mended behind its URL would never come
                builder.forget(row.name)
    sentence = judge(rejected, raw.count + len(without_image), dataset.on_bad_image)
    if sentence:
        print(sentence)


if __name__ == "__main__":
    run(main, takes_arguments=False)
