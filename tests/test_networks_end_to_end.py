"""The whole graph with a network of each library and with each head, on toy images.

And with weights of one's own, in grey, and with five channels. The weights that have a download
host are random here.
"""

import json

import pytest

from stages.common import hub
from tests.toy_project import ToyProject

pytestmark = pytest.mark.slow

CHANGES = {
    "keras, linear": ({"name": "mobilenet_v2"}, {"head": "linear"}),
    "keras, lbfgs": ({"name": "mobilenet_v2"}, {"head": "linear", "solver": "lbfgs"}),
    "package, cosine": ({"name": "efficientnet_lite0", "weights": "imagenet"}, {"head": "cosine"}),
    "paper, conv": ({"name": "lenet5"}, {"head": "conv"}),
    "keras_hub, dense": (
        {"library": "keras_hub", "name": "preset", "weights": "preset"},
        {"head": "dense"},
    ),
}


@pytest.mark.parametrize("which", CHANGES)
def test_the_whole_graph(which, tmp_path):
    backbone, head = CHANGES[which]
    project = ToyProject(tmp_path)
    if backbone.get("library") == "keras_hub":
        save_tiny_preset(tmp_path / "preset")
    mapped = head["head"] == "conv"
    project.set_params(
        {
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
    for model in ("head", "fine_tuned"):
        metrics = json.loads((tmp_path / "metrics" / f"{model}.json").read_text())
        assert 0 <= metrics["accuracy"] <= 1
    assert (tmp_path / "reports" / "index.html").stat().st_size > 100_000
    assert project.repro() == []


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
