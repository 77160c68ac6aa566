"""A copy of the project with toy images, a tiny network and its own DVC cache."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from tests import ROOT

TRACKED = (
    ".dvc/config",
    ".dvc/plots",
    ".dvcignore",
    "dvc.yaml",
    "params.yaml",
    "stages",
    "tools",
    "presets",
    "models/own",
    "data/own/README.md",
)
OVERRIDES = {
    "dataset": {"name": "image_folder"},
    "split": {"train": 0.5, "valid": 0.25, "test": 0.25, "stratify_columns": None},
    "preprocess": {"image_size": 24},
    "backbone": {"name": "tiny", "weights": None, "image_size": 32},
    "extract_features": {"views": 2},
    "train_head": {"hidden_units": 16, "batch_size": 16, "epochs": 40, "learning_rate": 1.0e-2},
    "fine_tune": {
        "image_sizes": None,
        "batch_size": 4,
        "epochs": 30,
        "learning_rate": 1.0e-3,
    },
}
COLORS = {"blue": (40, 60, 200), "green": (40, 180, 60), "red": (200, 50, 40)}


class ToyProject:
    """Runs DVC and the scripts in a temporary folder, with this project's code."""

    def __init__(self, folder: Path):
        self.folder = folder
        for name in TRACKED:
            source, target = ROOT / name, folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, target)
        self.set_params(OVERRIDES)
        draw_images(folder / "data" / "own")
        (folder / ".gitignore").write_text(
            "/.backup/\n/data/downloads/\n/data/own/*\n!/data/own/README.md\n__pycache__/\n"
        )
        subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
        self.commit("toy")

    @classmethod
    def clone(cls, source: "ToyProject", folder: Path) -> "ToyProject":
        """What a colleague gets from Git: no data, no models, an empty cache."""
        subprocess.run(["git", "clone", "--quiet", source.folder, folder], check=True)
        made = cls.__new__(cls)
        made.folder = folder
        return made

    @classmethod
    def copy(cls, source: "ToyProject", folder: Path) -> "ToyProject":
        """All that is there, the cache too."""
        shutil.copytree(source.folder, folder, symlinks=True)
        made = cls.__new__(cls)
        made.folder = folder
        return made

    def commit(self, message: str) -> None:
        """Commits all that Git is to keep."""
        identity = ("-c", "user.name=t", "-c", "user.email=t@t")
        for command in (("add", "."), (*identity, "commit", "--quiet", "-m", message)):
            subprocess.run(["git", *command], cwd=self.folder, check=True)

    def set_params(self, changes: dict) -> None:
        """Overwrites values of params.yaml, section by section."""
        path = self.folder / "params.yaml"
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        for section, values in changes.items():
            content[section].update(values)
        path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")

    def command(self, *words: str) -> list[str]:
        """`dvc …` or a script of this environment."""
        return [sys.executable, "-m", *words]

    @property
    def environment(self) -> dict[str, str]:
        """This process's, with this environment's python first, as the stages' commands need."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return {**os.environ, "PATH": path}

    def run(self, *words: str) -> str:
        """Runs to the end and returns all output; fails with that output."""
        done = subprocess.run(
            self.command(*words),
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    def repro(self, *words: str) -> list[str]:
        """`dvc repro`; the names of the stages that ran, in their order."""
        lines = self.run("dvc", "repro", *words).splitlines()
        return [line.split("'")[1] for line in lines if line.startswith("Running stage")]

    def results(self) -> dict[str, str]:
        """Hashes of what must be equal between two runs: models, metrics, the table of splits."""
        files = [
            self.folder / "data" / "splits.csv",
            *sorted((self.folder / "models").glob("*.keras")),
            *sorted((self.folder / "metrics").glob("*.json")),
        ]
        return {
            str(path.relative_to(self.folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in files
        }


def draw_images(folder: Path, per_class: int = 32) -> None:
    """PNG files of three colours under noise, of two shapes, the same at every call."""
    generator = np.random.default_rng(0)
    for class_name, color in COLORS.items():
        (folder / class_name).mkdir(parents=True)
        for number in range(per_class):
            shape = (28, 28, 3) if number % 2 else (20, 30, 3)
            noise = generator.normal(0, 60, shape)
            pixels = np.clip(np.array(color) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / class_name / f"{number}.png")
