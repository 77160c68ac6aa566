"""What an interrupted training stage goes on from: a backup of each epoch, whole or not at all."""

import hashlib
import shutil
import sys
from pathlib import Path
from typing import Any

from stages.common import paths

FINISHED = "finished"
KEPT_OF_OTHERS = 2  # a backup has three times the bytes of the weights


def fingerprint(*parts: Any) -> str:
    """A short name for a configuration: paths by their content, all else by its repr.

    All code of the stages that this process has loaded is part of it, and so are the versions of
    Keras and TensorFlow: a run does not resume what other code began.
    """
    import keras
    import tensorflow as tf

    code = {
        name: Path(module.__file__)
        for name, module in sys.modules.items()
        if name.split(".")[0] in ("stages", "__main__") and getattr(module, "__file__", None)
    }
    digest = hashlib.sha256()
    versions = (keras.__version__, tf.__version__)
    for part in (*parts, *versions, *(code[name] for name in sorted(code))):
        content = part.read_bytes() if isinstance(part, Path) else repr(part).encode()
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()[:16]


def folder_of(stage: str, name: str) -> Path:
    """The folder of one configuration's backup.

    Of other configurations the two newest stay: a run that was interrupted for another one goes on
    once its params are back. Nothing else would ever remove older ones.
    """
    parent = paths.BACKUP / stage
    # macOS leaves files of its own. A folder's time is that of the last epoch it was given.
    others = [other for other in parent.glob("*") if other.name != name and other.is_dir()]
    others.sort(key=lambda other: other.stat().st_mtime, reverse=True)
    for other in others[KEPT_OF_OTHERS:]:
        shutil.rmtree(other)
    return parent / name


def finish(backup: Path) -> None:
    """Notes that the model of this configuration is trained and saved."""
    (backup / FINISHED).touch()


def forget(stage: str) -> None:
    """Removes the backup of a training stage that finished: DVC holds its model by now.

    One that was interrupted stays, since the model that is measured meanwhile may be another one,
    checked out.
    """
    for mark in (paths.BACKUP / stage).glob(f"*/{FINISHED}"):
        shutil.rmtree(mark.parent)


def kept_epochs(backup: Path) -> dict[int, Path]:
    """The numbers of epochs that complete backups hold, in order, and their folders."""
    found = sorted(backup.glob("epoch-*"))
    return {int(folder.name.removeprefix("epoch-")): folder for folder in found}


def latest(backup: Path) -> tuple[int, Path | None]:
    """How many epochs the newest complete backup holds, and its folder; (0, None) without one."""
    kept = kept_epochs(backup)
    return max(kept.items()) if kept else (0, None)


def forget_epochs_after(backup: Path, epoch: int) -> None:
    """Removes backups of later epochs than the last one that all workers hold."""
    for number, folder in kept_epochs(backup).items():
        if number > epoch:
            shutil.rmtree(folder)


def callback(backup: Path, kept: int = 1):
    """Keras' BackupAndRestore, each backup in a folder that appears whole or not at all.

    As many of the newest ones are `kept`.

    Keras writes weights and epoch number in place: a kill between or within the two would leave a
    file that can't be read, or new weights under the old number.
    """
    import keras

    class WholeBackup(keras.callbacks.BackupAndRestore):
        def _save_model(self):
            writing = backup / "writing"
            shutil.rmtree(writing, ignore_errors=True)
            self.backup_dir = str(writing)
            self._weights_path = str(writing / "latest.weights.h5")
            self._training_metadata_path = str(writing / "training_metadata.json")
            super()._save_model()
            writing.rename(backup / f"epoch-{self._current_epoch:06}")
            for folder in list(kept_epochs(backup).values())[:-kept]:
                shutil.rmtree(folder)

    _, folder = latest(backup)
    return WholeBackup(str(folder or backup / "none"), delete_checkpoint=False)
