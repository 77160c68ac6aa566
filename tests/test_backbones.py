"""Networks whose weights have a download host; here without weights, or without the host."""

import json

import keras
import numpy as np
import pytest

from stages.common import backbones, heads, models
from stages.common.run import UserError
from tools import backbones as list_backbones
from tools import classify


def test_efficientnet_b0_is_whole_and_scales_inside():
    backbone = backbones.build("efficientnet_b0", None, 64)
    model = models.with_any_size(backbone)
    images = np.random.default_rng(0).integers(0, 256, (2, 50, 70, 3), dtype=np.uint8)
    assert model.predict(images, verbose=0).shape == (2, 2, 2, 1280)
    names = [layer.name for layer in backbone.layers]
    # A user names one of these in fine_tune.unfreeze.
    assert "block7a_expand_conv" in names
    head = heads.build("conv", (2, 2, 1280), 10, hidden_units=[8], dropout=0.2)
    assert models.assemble(model, head).predict(images, verbose=0).shape == (2, 10)


def test_equal_seeds_give_equal_random_weights():
    first, second = (backbones.build("tiny", None, 32).get_weights() for _ in range(2))
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)
    another = backbones.build("tiny", None, 32, seed=1).get_weights()
    assert any((one != other).any() for one, other in zip(first, another, strict=True))


def test_weights_that_cannot_be_reached_end_in_one_sentence(run_stage, tmp_path):
    (tmp_path / "params.yaml").write_text(
        "seed: 0\n"
        "preprocess: {image_size: 224, resize: squash, channels: 3}\n"
        "backbone: {library: keras, name: efficientnet_b0, weights: imagenet, "
        "own_weights: models/own, image_size: 224}\n"
    )
    # A proxy that is not there cuts any machine off; an empty home has no weights from before.
    nowhere = "http://127.0.0.1:9"
    done = run_stage(
        "backbone",
        https_proxy=nowhere,
        http_proxy=nowhere,
        HOME=str(tmp_path),
        KERAS_HOME=str(tmp_path / "keras"),
    )
    assert done.returncode == 1
    (sentence,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert "the weights of EfficientNetB0 can't be downloaded" in sentence
    assert "efficientnet_lite0" in sentence
    assert "Traceback" not in done.stderr


# One of each family; the others differ in depth alone, but for EfficientNetV2, whose larger members
# scale in another way.
FAMILIES = {
    "efficientnet_b0": "efficientnet",
    "efficientnet_v2_b0": "efficientnet_v2",
    "convnext_tiny": "convnext",
    "mobilenet_v3_small": "mobilenet_v3",
    "mobilenet": "mobilenet",
    "mobilenet_v2": "mobilenet_v2",
    "xception": "xception",
    "inception_v3": "inception_v3",
    "inception_resnet_v2": "inception_resnet_v2",
    "nasnet_mobile": "nasnet",
    "resnet50_v2": "resnet_v2",
    "densenet121": "densenet",
    "resnet50": "resnet",
    "vgg16": "vgg16",
}


# Large ones take ten to twenty seconds each.
SLOW = (
    *("inception_v3", "inception_resnet_v2", "nasnet_mobile", "densenet121", "xception"),
    *("resnet50_v2", "convnext_tiny", "efficientnet_v2_b0", "efficientnet_v2_s"),
)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else [])
        for name in [*FAMILIES, "efficientnet_v2_s"]
    ],
)
def test_a_familys_input_scaling_is_its_own_and_needs_none_of_our_code(name, tmp_path):
    """Against keras.applications' preprocess_input and a network that is fed with that."""
    images = np.random.default_rng(0).integers(0, 256, (2, 96, 96, 3)).astype(np.float32)
    backbone = backbones.build(name, None, 96)
    models.save(models.with_any_size(backbone), tmp_path / "backbone.keras")
    loaded = keras.models.load_model(tmp_path / "backbone.keras", compile=False)
    found = loaded.predict(images, verbose=0)

    constructor = backbones.BACKBONES[name].build.args[0]
    plain = getattr(keras.applications, constructor)(
        include_top=False, weights=None, input_shape=(96, 96, 3)
    )
    plain.set_weights(backbone.get_weights())
    module = getattr(keras.applications, FAMILIES.get(name, "efficientnet_v2"))
    scaled = module.preprocess_input(images.copy())
    expected = plain.predict(scaled, verbose=0)
    # By the spread of what comes out, which of random weights is 1e-20 in some families.
    assert np.abs(found - expected).max() < 1e-4 * expected.std()
    if backbones.BACKBONES[name].build.args[1] is not None:  # else the scaling is not ours
        ours = classify.scaled_input(backbone, images[0])
        np.testing.assert_allclose(ours, scaled[0], rtol=1e-4, atol=1e-4)
    keras.backend.clear_session()


@pytest.mark.parametrize("name", ["mobilenet_v2", "densenet121", "mobilenet_v3_small", "resnet50"])
def test_the_tables_parameters_are_those_of_the_network(name):
    row = backbones.BACKBONES[name]
    whole = getattr(keras.applications, row.build.args[0])(weights=None)
    assert whole.count_params() / 1e6 == pytest.approx(row.parameters, abs=0.06)
    keras.backend.clear_session()


def test_every_row_names_a_network_of_keras():
    for name, row in backbones.BACKBONES.items():
        if row.weights_from == backbones.KERAS:
            assert hasattr(keras.applications, row.build.args[0]), name


def test_an_image_size_that_is_too_small_is_refused():
    with pytest.raises(UserError, match=r"image_size: too small for InceptionV3, received 32"):
        backbones.build("inception_v3", None, 32)


def test_the_list_is_filtered_and_read_by_programs(capsys):
    list_backbones.main(["RESNET50", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"resnet50", "resnet50_v2", "se_resnet50"}
    assert found["resnet50"]["imagenet_top_1_percent"] == 74.9
    list_backbones.main([])
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 1 + len(backbones.BACKBONES)
    assert printed[1].split()[:3] == ["efficientnet_lite0", "224", "4.7"]
    with pytest.raises(SystemExit):
        list_backbones.main(["resnet49"])
    assert "no network has 'resnet49' in its name; did you mean 'resnet" in capsys.readouterr().err
