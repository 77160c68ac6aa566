"""What several test modules share."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stages.common import backbones, heads, models
from tests import ROOT

# Tests make repositories of their own: Git must look for none that called it, as a hook's does, nor
# at what its user has set up, such as signed commits.
for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX", "GIT_CONFIG_PARAMETERS"):
    os.environ.pop(name, None)
os.environ |= {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
os.environ |= {
    "GIT_CONFIG_COUNT": "1",
    "GIT_CONFIG_KEY_0": "safe.directory",  # of a clone that another user made
    "GIT_CONFIG_VALUE_0": "*",
}


@pytest.fixture
def draw_images() -> Callable[..., list[Path]]:
    """A function that draws small images, no two of them equal, into a folder."""
    random = np.random.default_rng(0)

    def draw(folder: Path, count: int, suffix: str = ".png", size=(12, 10)) -> list[Path]:
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f"{number:03}{suffix}" for number in range(count)]
        for path in paths:
            pixels = random.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path)
        return paths

    return draw


@pytest.fixture
def run_stage(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess]:
    """A function that runs a stage as dvc.yaml does, in the test's own folder."""

    def run(stage: str, *arguments: str, first_on_path: Path | None = None, **environment: str):
        path = [str(folder) for folder in (first_on_path, ROOT) if folder]
        return subprocess.run(
            [sys.executable, "-m", f"stages.{stage}", *arguments],
            cwd=tmp_path,
            env={**os.environ, **environment, "PYTHONPATH": os.pathsep.join(path)},
            capture_output=True,
            text=True,
            timeout=120,
        )

    return run


@pytest.fixture(scope="session")
def toy_backbone():
    """Images of any size to feature maps (8, 8, 16), random weights."""
    return models.with_any_size(backbones.build("tiny", None, 32))


@pytest.fixture
def toy_classifier():
    """A function from the kind of head to a new classifier of three classes."""

    def make(kind: str, temperature: float = 1.0):
        feature_shape = (8, 8, 16) if kind in heads.MAP_HEADS else (16,)
        head = heads.build(kind, feature_shape, 3, hidden_units=[8], dropout=0.2)
        backbone = models.with_any_size(backbones.build("tiny", None, 32))
        return models.assemble(backbone, head, temperature)

    return make
