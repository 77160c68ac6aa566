import sys
import types

import tensorflow as tf

from stages.common.training import backups
from tests.training_toys import parameters


def test_fingerprint_follows_the_versions_of_packages(monkeypatch):
    before = backups.fingerprint(parameters())
    monkeypatch.setattr(tf, "__version__", "9.9.9")
    assert backups.fingerprint(parameters()) != before


def test_backup_of_another_configuration_is_removed_not_resumed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = backups.folder_of("fine_tune", backups.fingerprint(parameters(), 0))
    (first / "epoch-000001").mkdir(parents=True)
    (first.parent / ".DS_Store").touch()  # as macOS leaves in a folder that was looked at
    same = backups.folder_of("fine_tune", backups.fingerprint(parameters(), 0))
    assert same == first
    assert first.exists()
    other = backups.folder_of("fine_tune", backups.fingerprint(parameters(learning_rate=0.02), 0))
    assert other != first
    assert not first.exists()


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
