"""The whole graph with a network of each library and with each head, by the smoke preset.

And with weights of one's own, in grey, and with five channels. The weights that have a download
host are random here.
"""

import json

import numpy as np
import pytest
import tifffile
import yaml
from PIL import Image

from stages.common import backbones, hub, models, shards
from tests.toy_project import ROOT, ToyProject

pytestmark = pytest.mark.slow

LITE0 = {"name": "efficientnet_lite0", "weights": "imagenet"}
MOBILE = {"name": "mobilenet_v2", "weights": None}
CHANGES = {
    "package, cosine, grey": (LITE0, {"head": "cosine"}),
    "keras, conv": (MOBILE, {"head": "conv"}),
    "keras_hub, dense": (
        {"library": "keras_hub", "name": "models/own/preset", "weights": "preset"},
        {"head": "dense"},
    ),
    "own weights, lbfgs": (
        {"name": "tiny", "weights": "mine.keras"},
        {"head": "linear", "solver": "lbfgs"},
    ),
}


@pytest.fixture(scope="module")
def smoke(tmp_path_factory) -> tuple[ToyProject, str]:
    """The project with the real data, fetched once, and its params with the smoke preset."""
    project = ToyProject(tmp_path_factory.mktemp("smoke"))
    content = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    preset = yaml.safe_load((ROOT / "presets" / "smoke.yaml").read_text(encoding="utf-8"))
    for section, values in preset.items():
        content[section].update(values)
    return project, yaml.safe_dump(content, sort_keys=False)


@pytest.mark.parametrize("which", CHANGES)
def test_the_smoke_preset(which, smoke):
    project, preset = smoke
    backbone, head = CHANGES[which]
    folder = project.folder
    mapped = head["head"] == "conv"
    grey = "grey" in which
    (folder / "params.yaml").write_text(preset, encoding="utf-8")
    if backbone.get("library") == "keras_hub":
        save_tiny_preset(folder / "models" / "own" / "preset")
    if backbone["weights"] == "mine.keras":
        own = backbones.build("tiny", None, 96)
        models.save(models.with_any_size(own), folder / "models" / "own" / "mine.keras")
    project.set_params(
        {
            "preprocess": {"channels": 1 if grey else 3},
            "backbone": backbone,
            "extract_features": {
                "features": "map" if mapped else "pooled",
                "layers": None if mapped else "all_blocks",
            },
            "train_head": {**head, "epochs": 3},
            "fine_tune": {"epochs": 1},
        }
    )
    project.repro()
    check_results(folder)
    assert models.load(folder / "models" / "fine_tuned.keras").input_shape[-1] == (1 if grey else 3)
    assert project.repro() == []
    if grey:
        assert "%" in project.run("tools.predict", str(next(folder.glob("plots/data/*.png"))))


def check_results(folder) -> None:
    for model in ("head", "fine_tuned"):
        metrics = json.loads((folder / "metrics" / f"{model}.json").read_text())
        assert 0 <= metrics["accuracy"] <= 1
    assert (folder / "reports" / "index.html").stat().st_size > 100_000


def save_tiny_preset(folder) -> None:
    keras_hub = hub.library()
    network = keras_hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[3],
        stackwise_num_filters=[64, 64],
        stackwise_num_blocks=[1, 1],
        stackwise_num_strides=[1, 2],
        block_type="basic_block",
        use_pre_activation=False,
    )
    network.save_to_preset(folder)
    converter = keras_hub.layers.ResNetImageConverter(image_size=(32, 32), scale=1 / 255)
    converter.save_to_preset(folder)


def test_tiff_files_of_five_channels(tmp_path):
    project = ToyProject(tmp_path)
    random = np.random.default_rng(0)
    for file in sorted((tmp_path / "data" / "own").rglob("*.png")):
        pixels = np.asarray(Image.open(file))
        more = random.integers(0, 256, (*pixels.shape[:2], 2), dtype=np.uint8)
        five = np.concatenate([pixels, more], axis=-1)
        tifffile.imwrite(
            file.with_suffix(".tiff"), five, photometric="minisblack", planarconfig="contig"
        )
        file.unlink()
    project.set_params(
        {
            "preprocess": {"channels": 5},
            "fine_tune": {"epochs": 2},
        }
    )
    project.repro()
    check_results(tmp_path)
    batches = shards.batches(tmp_path / "data" / "images" / "test", 2, image_size=32)
    assert next(iter(batches))[0].shape == (2, 32, 32, 5)
    # Only three of the channels tell the classes apart.
    metrics = json.loads((tmp_path / "metrics" / "head.json").read_text())
    assert metrics["accuracy"] > 0.6
    project.run("tools.predict", "data/own", "--explain", "seen")
    assert len(list((tmp_path / "seen").glob("*.png"))) == 96
