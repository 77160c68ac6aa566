"""A folder with one folder of images a class, as people have them."""

from pathlib import Path

import tensorflow_datasets as tfds

from stages.common import images
from stages.common.run import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff")
MOST_LISTED = 20


def find(folder: Path) -> dict[str, list[Path]]:
    """Class name to its image files, both sorted; the class is the path of the file's folder.

    Raises:
        UserError: the folder is absent, or has fewer than two classes with images.
    """
    if not folder.is_dir():
        raise UserError(
            f"dataset.path: the folder {folder} does not exist; put one folder of images for "
            "each class into it"
        )
    files: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.is_file() and path.suffix.lower() in SUFFIXES and not hidden:
            class_name = path.parent.relative_to(folder).as_posix()
            files.setdefault(class_name, []).append(path)
    loose = files.pop(".", [])
    if loose:
        raise UserError(
            f"dataset.path: {loose[0]} and {len(loose) - 1} more images lie in {folder} itself; "
            "move each into a folder named after its class"
        )
    if len(files) < 2:
        raise UserError(
            f"dataset.path: expected at least two folders with images in {folder}, received "
            f"{sorted(files) or 'none'}; each class needs its own ({', '.join(SUFFIXES)})"
        )
    return files


def check(files: dict[str, list[Path]]) -> None:
    """Decodes every image once.

    Raises:
        UserError: some can't be decoded; all of them are counted and the first ones named.
    """

    def problem(path: Path) -> str | None:
        try:
            images.decode(path.read_bytes())
        except ValueError as error:
            return f"{path}: {error}"
        return None

    paths = [path for group in files.values() for path in group]
    problems = [text for text in images.parallel_map(problem, paths) if text]
    if problems:
        listed = "\n       ".join(problems[:MOST_LISTED])
        more = len(problems) - MOST_LISTED
        raise UserError(
            f"{len(problems)} of {len(paths)} images can't be read; mend or remove them:\n"
            f"       {listed}" + (f"\n       … and {more} more" if more > 0 else "")
        )


class ImageFolder(tfds.core.GeneratorBasedBuilder):
    """The images of a folder, their encoded bytes untouched."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, folder: Path, **kwargs):
        """`folder` holds one folder a class, nested folders joined with `/`."""
        self._folder = Path(folder)
        self._files = find(self._folder)
        check(self._files)
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label": tfds.features.ClassLabel(names=sorted(self._files)),
            "name": tfds.features.Text(),
        }
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        del dl_manager  # nothing to download
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for class_name, paths in self._files.items():
            for path in paths:
                name = path.relative_to(self._folder).as_posix()
                yield name, {"image": str(path), "label": class_name, "name": name}
