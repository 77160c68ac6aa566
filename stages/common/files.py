"""Outputs appear whole, in place of what was there, and are never written into.

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
        path: of a file. The path to write to lies beside it and has the same suffix.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"new.{path.name}")
    try:
        yield beside
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def empty(folder: Path) -> None:
    """Makes a folder that is there and empty: what an earlier run wrote is removed."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
