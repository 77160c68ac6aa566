"""A folder with one folder of images a class, as people have them, or an archive of it."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import tensorflow_datasets as tfds

from stages.common import splits
from stages.common.datasets.library import check_splits
from stages.common.datasets.sources import ARCHIVE_SUFFIXES, Folder, open_source
from stages.common.image_names import SUFFIXES, class_name_of, is_hidden, is_image
from stages.common.inventory import InventoryRow
from stages.common.run import UserError

MOST_FOLDERS_NAMED = 10
OFFICIAL_SPLITS = tuple(name for names in splits.OFFICIAL_NAMES.values() for name in names)


@dataclass(frozen=True)
class Layout:
    """How a file's name says its class and its split."""

    top: str  # folders that all images of an archive share, with a closing `/`; or empty
    has_splits: bool  # whether the folders below `top` are official splits
    folders: tuple[str, ...]  # all that hold images, with `top`
    class_names: tuple[str, ...]
    split_names: tuple[str, ...]
    left_out: dict[str, int]  # files that are no images by their names: suffix to number

    def place(self, name: str) -> tuple[str, str]:
        """Split and class of an image."""
        folder, _, _ = name.removeprefix(self.top).rpartition("/")
        return _split_and_class(folder, self.has_splits)


def _split_and_class(folder: str, has_splits: bool) -> tuple[str, str]:
    split, _, below = folder.partition("/") if has_splits else ("train", "", folder)
    return split.casefold(), "/".join(map(class_name_of, below.split("/")))


def survey(
    names: Iterable[str], where: Path, strip_top: bool, wanted: list[str] | None = None
) -> Layout:
    """Finds classes and official splits from the names of all files.

    The class is the path of a file's folder. If all folders at the top are named as splits are
    (splits.OFFICIAL_NAMES), they are official splits; a class `test` beside others is a class.

    Args:
        names: relative to the source.
        where: the source, for messages.
        strip_top: whether folders that all images share, as in most archives, are no classes. If
            official splits are all that they hold, they never are.
        wanted: the official splits to use, whose classes alone are classes; None: all.

    Raises:
        UserError: images lie outside any class, there are fewer than two classes, official splits
            lie inside classes or beside them, one that is wanted is not there, or a name is no
            text in UTF-8.
    """
    images_in: Counter[str] = Counter()
    first_in: dict[str, str] = {}
    left_out: Counter[str] = Counter()
    for name in names:
        if is_image(name):
            _check_encoding(name, where)
            folder, _, _ = name.rpartition("/")
            images_in[folder] += 1
            first_in.setdefault(folder, name)
        elif not is_hidden(name):
            left_out[PurePosixPath(name).suffix.lower() or "no suffix"] += 1
    top = _shared_top(images_in)
    has_splits = bool(images_in) and all(
        folder.removeprefix(top).split("/")[0].casefold() in OFFICIAL_SPLITS for folder in images_in
    )
    if not has_splits:
        _check_no_split_beside_others(images_in, top, where)
        _check_no_split_inside_classes(images_in, where)
    if not (strip_top or has_splits):
        top = ""
    places = {
        folder: _split_and_class(f"{folder}/".removeprefix(top).rstrip("/"), has_splits)
        for folder in images_in
    }
    available = sorted({split for split, _ in places.values()})
    split_names = tuple(check_splits(wanted, available) if available else ())
    for folder, (split, class_name) in places.items():
        if split in split_names and not class_name:
            raise UserError(
                f"dataset.path: {first_in[folder]} and {images_in[folder] - 1} more images lie in "
                f"{where / folder} itself; move each into a folder named after its class"
                + (", or name the other splits in dataset.splits" if has_splits else "")
            )
    class_names = tuple(sorted({name for split, name in places.values() if split in split_names}))
    if len(class_names) < 2:
        packed = [suffix for suffix in left_out if suffix in ARCHIVE_SUFFIXES]
        raise UserError(
            f"dataset.path: expected at least two folders with images in {where}, received "
            f"{list(class_names) or 'none'}; each class needs its own ({', '.join(SUFFIXES)})"
            + (f"; if they are in the {packed[0]} file there, name that file" if packed else "")
        )
    return Layout(
        top, has_splits, tuple(sorted(images_in)), class_names, split_names, dict(left_out)
    )


def _check_no_split_beside_others(folders: Iterable[str], top: str, where: Path) -> None:
    """UserError where one more folder makes official splits classes, each of them several times."""
    parts = [folder.removeprefix(top).partition("/") for folder in folders]
    in_splits = [(head, below) for head, _, below in parts if head.casefold() in OFFICIAL_SPLITS]
    alike = sorted({head for head, _ in in_splits})
    others = sorted({head for head, _, _ in parts} - set(alike))
    times = Counter(below for _, below in in_splits if below)
    if others and any(number > 1 for number in times.values()):
        raise UserError(
            f"dataset.path: {' and '.join(alike)} in {where / top} hold folders of the same names, "
            f"as official splits do, but {', '.join(others)} beside them names no split; move "
            f"what is no split elsewhere, or give it one of the names {', '.join(OFFICIAL_SPLITS)}"
        )


def _check_no_split_inside_classes(folders: Iterable[str], where: Path) -> None:
    """UserError where `cats/train` and `cats/test` would be two classes."""
    heads: dict[str, set[str]] = {}
    for folder in folders:
        head, _, last = folder.rpartition("/")
        if not head or last.casefold() not in OFFICIAL_SPLITS:
            return
        heads.setdefault(head, set()).add(last)
    several = [(head, sorted(lasts)) for head, lasts in heads.items() if len(lasts) > 1]
    if several:
        head, lasts = min(several)
        raise UserError(
            f"dataset.path: {where / head} holds {' and '.join(lasts)}, as all classes there hold "
            "folders named after official splits; put splits above classes, "
            f"{lasts[0]}/{PurePosixPath(head).name} in place of "
            f"{PurePosixPath(head).name}/{lasts[0]}"
        )


def _check_encoding(name: str, where: Path) -> None:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise UserError(
            f"dataset.path: expected names of files in UTF-8, received {os.fsencode(name)!r} in "
            f"{where}; rename it, or all of them at once: convmv -f latin1 -t utf8 -r --notest"
        ) from None


def without_images(folders: Iterable[str], with_images: Iterable[str]) -> list[str]:
    """The folders in and below which no image lies, of several in one another the outermost."""
    leading = {str(above) for name in with_images for above in (name, *PurePosixPath(name).parents)}
    idle = {name for name in folders if not is_hidden(name)} - leading
    return sorted(name for name in idle if str(PurePosixPath(name).parent) not in idle)


def _shared_top(folders: Iterable[str]) -> str:
    """The folders that all others are in, with a closing `/`; a split's folder is none of them."""
    rests, top = set(folders), ""
    while len(rests) > 1:
        heads = {folder.split("/")[0] for folder in rests}
        (head, *others) = heads
        if others or head.casefold() in OFFICIAL_SPLITS or not head:
            break
        top += f"{head}/"
        rests = {folder.partition("/")[2] for folder in rests}
    return top


def image_names(folder: str, source: Folder) -> Iterator[str]:
    """The name of every image that lies in one folder of the source."""
    return (name for name in source.names_in(folder) if is_image(name))


def key_and_example(name: str, source: Folder, layout: Layout) -> tuple[str, dict]:
    """A file as TFDS wants it: what names the example, and its fields."""
    return _example(name, source.read(name), layout)


def _example(name: str, encoded: bytes, layout: Layout) -> tuple[str, dict]:
    _, class_name = layout.place(name)
    return name, {"image": encoded, "label": class_name, "name": name}


class ImageFolder(tfds.core.GeneratorBasedBuilder):
    """The images of a folder or an archive (.zip, .tar, .tar.gz), their encoded bytes untouched."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(
        self, *, folder: Path, splits: list[str] | None = None, on_beam: bool = False, **kwargs
    ):
        """`folder` holds one folder a class, nested folders joined with `/`; or is an archive.

        Of official splits, those named in `splits` alone are read; None: all.

        With `on_beam` examples are a transform of Apache Beam, whose workers list and read the
        files, at the same path as here.

        Raises:
            UserError: among others, `on_beam` of an archive, which is one stream from its first
                file to its last: one worker would do all the work.
        """
        # A worker has another working folder, so that its path must be a whole one.
        folder = Path(folder).absolute() if on_beam else Path(folder)
        self._source = open_source(folder)
        if on_beam and self._source.is_archive:
            raise UserError(
                f"dataset.path: {self._source.path} is an archive, which is read as one stream, "
                "so that several workers of Apache Beam gain nothing; unpack it into a folder that "
                "all of them reach, or set dataset.beam_runner to null"
            )
        self._on_beam = on_beam
        self.layout = survey(
            self._source.names(), self._source.path, self._source.is_archive, splits
        )
        self.split_names = self.layout.split_names
        left_out = sorted(self.layout.left_out.items())
        self.notes = (
            [
                "left out are files that are no images by their names: "
                + ", ".join(f"{count} of {suffix}" for suffix, count in left_out)
            ]
            if left_out
            else []
        )
        if idle := without_images(self._source.folders, self.layout.folders):
            shown = ", ".join(idle[:MOST_FOLDERS_NAMED])
            more = ", …" if len(idle) > MOST_FOLDERS_NAMED else ""
            self.notes.append(
                f"folders without any image, which are no classes: {len(idle)} ({shown}{more})"
            )
        if self._source.linked_folders:
            self.notes.append(
                f"{self._source.path / min(self._source.linked_folders)} is a link to a folder, in "
                "which DVC notices no change; after a change there `dvc repro --force fetch`"
            )
        if self._source.links:
            self.notes.append(
                f"links in the archive, which are left out: {self._source.links}; pack the files "
                "that they name: tar --dereference --hard-dereference, zip without -y"
            )
        super().__init__(**kwargs)

    @property
    def rejected(self) -> dict[str, list[InventoryRow]]:
        """Split to the rows of images that are not there."""
        rows: dict[str, list[InventoryRow]] = {split: [] for split in self.split_names}
        for name, why in sorted(self._source.missing.items()):
            if not is_image(name):
                continue
            split, class_name = self.layout.place(name)
            row = InventoryRow(
                id=name,
                name=name,
                label=class_name,
                problem="missing_file",
                detail=f"{self._source.path / name} {why}",
            )
            if split in rows:
                rows[split].append(row)
        return rows

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label": tfds.features.ClassLabel(names=list(self.layout.class_names)),
            "name": tfds.features.Text(),
        }
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        del dl_manager  # nothing to download
        return {split: self._generate_examples(split) for split in self.split_names}

    def _generate_examples(self, split: str):
        return self._transform(split) if self._on_beam else self._examples(split)

    def _examples(self, split: str) -> Iterator[tuple[str, dict]]:
        def wanted(name: str) -> bool:
            return is_image(name) and self.layout.place(name)[0] == split

        any_image = False
        for name, encoded in self._source.files(wanted):
            any_image = True
            yield _example(name, encoded, self.layout)
        if not any_image:  # TFDS has no words for that
            first = min(filter(wanted, self._source.missing))
            raise UserError(
                f"dataset.path: no image of the split '{split}' in {self._source.path} can be "
                f"read; {first} {self._source.missing[first]}; mount what links point to, or copy "
                "the files"
            )

    def _transform(self, split: str):
        import apache_beam as beam

        # Folders, not files, are named in the pipeline itself, which every engine limits in size.
        folders = [
            folder for folder in self.layout.folders if self.layout.place(f"{folder}/")[0] == split
        ]
        return (
            beam.Create(folders)
            | "List" >> beam.FlatMap(image_names, source=self._source)
            | beam.Reshuffle()  # or the files of one folder would be one worker's
            | "Read" >> beam.Map(key_and_example, source=self._source, layout=self.layout)
        )
