"""Runs a TFDS builder: its name, its downloads, the files that a person must bring, its splits."""

import importlib.util
import shutil
from collections.abc import Sequence
from pathlib import Path

from stages.common import params, paths
from stages.common.run import UserError

REACH_SECONDS = 5
MANUAL = "manual"  # the folder in which TFDS looks for files that a person brought
OFFLINE_DEFAULT = "set dataset.name to elpv, which needs no download, or image_folder"
SHUFFLE_BYTES = 16 * 2**20
BEAM_PACKAGE = "apache_beam"
# Beam's DirectRunner tries to download a program, Prism, and runs that. FnApiRunner is what it runs
# where that fails: this machine's Python alone, the same on every machine.
LOCAL_RUNNERS = {"DirectRunner": "FnApiRunner"}


def library_builder(name: str, own_sources: Sequence[str], data_dir: Path | str):
    """The builder of a set of TensorFlow Datasets: `cifar10`, `oxford_flowers102:2.1.1`.

    Raises:
        UserError: no set, version or variant is called so, or it is no image classification.
    """
    import tensorflow_datasets as tfds

    base_name = name.split(":")[0].split("/")[0]
    known = [*own_sources, *tfds.list_builders(with_community_datasets=False)]
    if base_name not in known:
        raise UserError(
            f"params.yaml, dataset.name: expected {', '.join(own_sources)} or one of the "
            f"{len(known) - len(own_sources)} sets of TensorFlow Datasets, received {name!r}"
            f"{params.nearest(base_name, known)}"
        )
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except (ValueError, AssertionError, tfds.core.registered.DatasetNotFoundError) as error:
        # AssertionError: a version that the set does not have.
        raise UserError(f"params.yaml, dataset.name: {error}") from None
    missing = missing_features(builder.info.features)
    if missing:
        raise UserError(
            f"params.yaml, dataset.name: {name!r} is no image classification set; it lacks the "
            f"features {missing} and has {sorted(builder.info.features)}"
        )
    return builder


def missing_features(features) -> list[str]:
    """Which of `image` (a picture) and `label` (one class) a set does not have."""
    import tensorflow_datasets as tfds

    needed = {"image": tfds.features.Image, "label": tfds.features.ClassLabel}
    return [
        name
        for name, kind in needed.items()
        if not (name in features and isinstance(features[name], kind))
    ]


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


def check_manual_files(builder, downloads: Path) -> None:
    """UserError where a set needs files that a person must bring, and none is there."""
    folder = downloads / MANUAL
    if builder.MANUAL_DOWNLOAD_INSTRUCTIONS and not (folder.is_dir() and any(folder.iterdir())):
        raise UserError(_manual_sentence(builder))


def _manual_sentence(builder) -> str:
    instructions = " ".join(builder.MANUAL_DOWNLOAD_INSTRUCTIONS.split())
    return (
        f"params.yaml, dataset.name: '{builder.name}' has files that only a person can get; put "
        f"them into {paths.DOWNLOADS / MANUAL} and run again, or {OFFLINE_DEFAULT} (the set's own "
        f"words: {instructions})"
    )


def _bound_memory_and_fix_bytes() -> None:
    """Sets two things that TFDS has no argument for.

    It sorts up to 1 GB of examples in memory, beyond that on disk in the same order. And it leaves
    the order of an example's fields to chance, so that fetching the same data twice would look to
    DVC as if the data had changed.
    """
    from tensorflow_datasets.core import example_serializer, shuffle

    from stages.common.datasets.serializer import DeterministicSerializer

    shuffle.MAX_MEM_BUFFER_SIZE = SHUFFLE_BYTES
    example_serializer.ExampleSerializer = DeterministicSerializer


def check_beam_installed(runner: str | None) -> None:
    """UserError where a runner of Apache Beam is asked for and this Python has no Beam."""
    if runner and importlib.util.find_spec(BEAM_PACKAGE) is None:
        raise UserError(
            f"params.yaml, dataset.beam_runner: {runner} needs Apache Beam, which is not installed "
            "here; run `make fetch-on-beam`, which has it in an environment of its own, and then "
            "`make repro`, or set it to null"
        )


def beam_config(runner: str | None, options: list[str] | None):
    """What TFDS is told of the runner of Apache Beam; None where there is none.

    Args:
        runner: a name that Beam knows.
        options: the runner's own, each as `--key=value`.
    """
    if runner is None:
        return None
    import tensorflow_datasets as tfds
    from apache_beam.options.pipeline_options import PipelineOptions

    return tfds.download.DownloadConfig(
        beam_runner=LOCAL_RUNNERS.get(runner, runner),
        beam_options=PipelineOptions(options or []),  # without a list it reads our command line
    )


def remove_folder(folder: str) -> None:
    """Removes a folder, one of a bucket too, where it is there."""
    import tensorflow_datasets as tfds

    path = tfds.core.Path(folder)
    if path.exists():
        path.rmtree()


def _move(file, target: Path) -> None:
    """Moves a file of any file system that TFDS writes to; `target` is the new path, on a disk."""
    if "://" in str(file):
        file.copy(target)
        file.unlink()
    else:
        shutil.move(file, target)


def prepare(
    builder,
    splits: list[str] | None,
    downloads: Path,
    target: Path,
    beam_runner: str | None = None,
    beam_options: list[str] | None = None,
) -> dict[str, int]:
    """Runs the builder and moves its directory to `target`; returns images per split.

    Args:
        builder: of TFDS or ours.
        splits: the set's own splits to use; None: all.
        downloads: folder of what is downloaded, kept for the next time.
        target: folder, made where it is not there.
        beam_runner: runner of Apache Beam for a builder that gives its examples as a transform;
            all other builders, most of TFDS's own, run in this process whatever it is.
        beam_options: the runner's own.
    """
    import tensorflow as tf
    import tensorflow_datasets as tfds

    # Where the splits are known before: a mistake must not cost the download.
    if known := getattr(builder, "split_names", None) or list(builder.info.splits):
        check_splits(splits, [str(name) for name in known])
    check_manual_files(builder, downloads)
    if not builder.MANUAL_DOWNLOAD_INSTRUCTIONS:  # those list the files that a person brings too
        check_reachable(missing_downloads(builder, downloads))
    _bound_memory_and_fix_bytes()
    try:
        builder.download_and_prepare(
            download_dir=str(downloads), download_config=beam_config(beam_runner, beam_options)
        )
    except (AssertionError, FileNotFoundError, tf.errors.NotFoundError) as error:
        if "share the same hashed key" in str(error):
            raise UserError(
                f"the source '{builder.name}' holds two images of the same name; remove one of them"
            ) from None
        if builder.MANUAL_DOWNLOAD_INSTRUCTIONS:  # some files are there, but not all
            raise UserError(f"{_manual_sentence(builder)}: {error}") from None
        if beam_runner and "split_info.json" in str(error):
            raise UserError(
                f"params.yaml, dataset.beam_folder: the workers of {beam_runner} wrote to another "
                f"{builder.data_path.parent} than the one of this machine; set it to a folder or "
                "bucket that all of them and this machine reach by the same path"
            ) from None
        raise
    info = builder.info
    used = check_splits(splits, [str(name) for name in info.splits])
    target.mkdir(parents=True, exist_ok=True)
    for path in target.iterdir():  # of an earlier run; see files.py
        if path.is_symlink() or path.is_file():
            path.unlink()
    for name in used:
        for shard in info.splits[name].filepaths:
            _move(shard, target / shard.name)
    info.set_splits(tfds.core.splits.SplitDict([info.splits[name] for name in used]))
    info.write_to_directory(target)
    return {name: info.splits[name].num_examples for name in used}
