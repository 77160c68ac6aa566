"""Runs a network by ONNX Runtime, on some CPUs faster than TensorFlow; `make benchmark` tells.

An optional extra: make extra NAME=export.
"""

import contextlib
import importlib.util
import io
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from stages.common import models
from stages.common.run import UserError

PACKAGES = ("tf2onnx", "onnxruntime")


def check_installed(wanted_by: str) -> None:
    """UserError where a package is missing; `wanted_by` begins its sentence."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"{wanted_by} needs {' and '.join(missing)}; `make extra NAME=export` installs what it "
            "takes"
        )


def save_quietly(model, folder: Path) -> None:
    """A SavedModel of a Keras model, without a line for each weight."""
    with contextlib.redirect_stdout(io.StringIO()):
        model.export(folder, format="tf_saved_model", verbose=False)


def write(model, path: Path) -> Path:
    """An ONNX file of a model of one image size, by way of a SavedModel.

    Keras' own export to ONNX makes a file of EfficientNetB0 that ONNX Runtime refuses.

    Args:
        model: a keras.Model.
        path: of the file.

    Raises:
        UserError: the converter does not know one of the model's operations.
    """
    saved = path.with_suffix(".saved_model")
    save_quietly(model, saved)
    # A process of its own: the converter changes TensorFlow's settings.
    command = ["tf2onnx.convert", "--saved-model", str(saved), "--output", str(path)]
    done = subprocess.run(
        [sys.executable, "-m", *command, "--opset", "17"], capture_output=True, text=True
    )
    shutil.rmtree(saved)
    if done.returncode:
        # Killed, for want of memory say, it leaves no word.
        said = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise UserError(f"tf2onnx failed: {said}")
    return path


def fixed_size(backbone_model, features: str):
    """A backbone for images of its own size, as extract_features wants its outputs.

    Args:
        backbone_model: what models.with_any_size or models.at_layers gave.
        features: 'pooled' or 'map', see models.as_features.

    Returns:
        A keras.Model from (batch, side, side, channels), float32, to (batch, …), float32.
    """
    import keras

    backbone = backbone_model.get_layer("backbone")
    images = keras.Input(backbone.input_shape[1:], name="images", dtype="float32")
    feature_maps = backbone(images, training=False)
    return keras.Model(images, models.as_features(feature_maps, features))


def load(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """A function from the model's input (batch, …) float32 to its first output, by the file."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})[0]


def compiled(model) -> Callable[[np.ndarray], np.ndarray]:
    """A model of one image size as a function that ONNX Runtime runs."""
    with tempfile.TemporaryDirectory() as folder:
        return load(write(model, Path(folder) / "model.onnx"))
