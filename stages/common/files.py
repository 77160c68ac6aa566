"""Files appear whole, in place of what was there, and are never written into.

DVC may put the files of its cache into the workspace as hard links: who opens one and writes
changes what every experiment with the same content shares. It removes outputs before it runs a
stage; a stage that is run by hand finds them there.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write a file to, which takes the place of `path` at the end of the block.

    Until then, and where the block raises, what was there stays as it is. The folder is created.

    Args:
        path: of a file. The path to write to lies beside it, its name ends in the same way, and
            Git ignores it, since a process that is killed leaves it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".unfinished-{path.name}")
    try:
        yield beside
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def empty(folder: Path) -> None:
    """Makes a folder that is there and empty; one that is a link stays one."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
