"""Brings the data set into one TFDS directory.

Reads:  the source: a package (elpv), dataset.path (image_folder), or a TFDS set by its name.
Writes: data/raw/ — TFRecord shards with the original encoded image bytes, labels, class names,
        and whatever else the source says of an image.
"""

import shutil
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from stages.common import params, paths
from stages.common.run import UserError, run, start_tensorflow

REACH_SECONDS = 5
MANUAL = "manual"  # the folder in which TFDS looks for files that a person brought
OFFLINE_DEFAULT = "set dataset.name to elpv, which needs no download, or image_folder"


@params.params_dataclass
class ElpvParams:
    """How a solar cell's probability of being defective becomes its class."""

    labels: Literal["binary", "probability"]
    threshold: Annotated[float, Field(gt=0, le=1, description="a number above 0, at most 1")]


@params.params_dataclass
class FetchParams:
    """Section `dataset`."""

    name: params.Text
    path: params.Text
    splits: Annotated[
        list[str] | None,
        Field(description="null for all, or a list of the set's own splits, such as [train]"),
    ]
    elpv: ElpvParams


def make_builder(dataset: FetchParams, data_dir: Path):
    """The TFDS builder of the named source; UserError where there is none of that name."""
    if dataset.name == "elpv":
        from stages.common.datasets.elpv import Elpv

        elpv = dataset.elpv
        return Elpv(labels=elpv.labels, threshold=elpv.threshold, data_dir=data_dir)
    if dataset.name == "image_folder":
        from stages.common.datasets.image_folder import ImageFolder

        return ImageFolder(folder=Path(dataset.path), data_dir=data_dir)
    import tensorflow_datasets as tfds

    base_name = dataset.name.split(":")[0].split("/")[0]
    known = ["elpv", "image_folder", *tfds.list_builders(with_community_datasets=False)]
    if base_name not in known:
        raise UserError(
            f"params.yaml, dataset.name: expected elpv, image_folder or one of the "
            f"{len(known) - 2} sets of TensorFlow Datasets, received {dataset.name!r}"
            f"{params.nearest(base_name, known)}"
        )
    try:
        builder = tfds.builder(dataset.name, data_dir=data_dir)
    except (ValueError, AssertionError, tfds.core.registered.DatasetNotFoundError) as error:
        # AssertionError: a version that the set does not have.
        raise UserError(f"params.yaml, dataset.name: {error}") from None
    missing = {"image", "label"} - set(builder.info.features)
    if missing:
        raise UserError(
            f"params.yaml, dataset.name: {dataset.name!r} is no image classification set; it "
            f"lacks the features {sorted(missing)} and has {sorted(builder.info.features)}"
        )
    return builder


def check_splits(wanted: list[str] | None, available: list[str]) -> list[str]:
    """The set's own splits to use: all, or those asked for where they exist."""
    for name in wanted or []:
        if name not in available:
            raise UserError(
                f"params.yaml, dataset.splits: expected some of {sorted(available)}, received "
                f"{name!r}{params.nearest(name, available)}"
            )
    return sorted(wanted or available)


def missing_downloads(builder, downloads: Path) -> list[str]:
    """URLs that the builder would download: neither kept from before nor brought by a person."""
    from tensorflow_datasets.core.download import resource

    def is_there(url: str, info) -> bool:
        if info.filename and (downloads / MANUAL / info.filename).exists():
            return True
        kept = downloads.rglob(resource.get_dl_fname(url, info.checksum))
        return any(resource.is_locally_cached(path) for path in kept)

    return [url for url, info in (builder.url_infos or {}).items() if not is_there(url, info)]


def check_reachable(urls: list[str]) -> None:
    """Asks each host once; TFDS would retry for minutes and end in a traceback.

    Raises:
        UserError: a host does not answer within seconds. Any answer, an error too, counts as one.
    """
    import requests

    by_host = {url.split("/")[2]: url for url in urls if "://" in url}
    for host, url in by_host.items():
        try:
            requests.head(url, timeout=REACH_SECONDS, allow_redirects=True)
        except requests.RequestException:
            raise UserError(
                f"{host} can't be reached, so {url} can't be downloaded; connect this machine, "
                f"put the file into {paths.DOWNLOADS / MANUAL}, or {OFFLINE_DEFAULT}"
            ) from None


def prepare(builder, splits: list[str] | None, downloads: Path, target: Path) -> dict[str, int]:
    """Runs the builder and moves its directory to `target`; returns images per split."""
    import tensorflow_datasets as tfds

    check_reachable(missing_downloads(builder, downloads))
    try:
        builder.download_and_prepare(download_dir=str(downloads))
    except tfds.core.utils.error_utils.DatasetGenerationError as error:
        raise error.__cause__ or error from None
    info = builder.info
    used = check_splits(splits, [str(name) for name in info.splits])
    target.mkdir(parents=True, exist_ok=True)
    for name in used:
        for shard in info.splits[name].filepaths:
            shutil.move(shard, target / shard.name)
    info.set_splits(tfds.core.splits.SplitDict([info.splits[name] for name in used]))
    info.write_to_directory(target)
    return {name: info.splits[name].num_examples for name in used}


def main() -> None:
    """Reads the source and writes data/raw."""
    dataset = params.load("dataset", FetchParams)
    start_tensorflow()
    paths.DOWNLOADS.mkdir(parents=True, exist_ok=True)
    building = paths.RAW / "building"  # inside the output, so that nothing crosses file systems
    counts = prepare(make_builder(dataset, building), dataset.splits, paths.DOWNLOADS, paths.RAW)
    shutil.rmtree(building)
    print(f"{dataset.name}: " + ", ".join(f"{n} images in '{s}'" for s, n in counts.items()))


if __name__ == "__main__":
    run(main)
