import os
import sys
import types
from pathlib import Path

import tensorflow as tf

from stages.common.training import backups
from tests.training_toys import parameters


def test_fingerprint_follows_the_versions_of_packages(monkeypatch):
    before = backups.fingerprint(parameters())
    monkeypatch.setattr(tf, "__version__", "9.9.9")
    assert backups.fingerprint(parameters()) != before


def _begin_training(seconds: int, **params) -> Path:
    """The backup of a configuration, which had an epoch at that time."""
    folder = backups.folder_of("fine_tune", backups.fingerprint(parameters(**params), 0))
    (folder / "epoch-000001").mkdir(parents=True, exist_ok=True)
    os.utime(folder, (seconds, seconds))
    return folder


def test_a_run_that_was_interrupted_for_another_one_keeps_its_backup(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    interrupted = _begin_training(1)
    (interrupted.parent / ".DS_Store").touch()  # as macOS leaves in a folder that was looked at
    other = _begin_training(2, learning_rate=0.02)
    assert other != interrupted
    assert backups.latest(interrupted) == (1, interrupted / "epoch-000001")
    assert _begin_training(3) == interrupted  # its params are back


def test_backups_that_no_run_came_back_to_are_removed_oldest_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rates = [0.01, 0.02, 0.03, 0.04]
    folders = [_begin_training(second, learning_rate=rate) for second, rate in enumerate(rates)]
    _begin_training(10, learning_rate=rates[0])  # gone on with: the newest now
    _begin_training(11, learning_rate=0.05)
    assert [folder.exists() for folder in folders] == [True, False, False, True]


def test_fingerprint_follows_a_file_by_its_content(tmp_path):
    path = tmp_path / "model"
    path.write_bytes(b"one")
    before = backups.fingerprint(path)
    path.write_bytes(b"two")
    assert backups.fingerprint(path) != before


def test_fingerprint_follows_the_code_that_is_loaded(tmp_path, monkeypatch):
    path = tmp_path / "helper.py"
    path.write_text("x = 1")
    helper = types.ModuleType("stages.common.helper")
    helper.__file__ = str(path)
    monkeypatch.setitem(sys.modules, helper.__name__, helper)
    before = backups.fingerprint(parameters())
    assert backups.fingerprint(parameters()) == before
    path.write_text("x = 2")
    assert backups.fingerprint(parameters()) != before
