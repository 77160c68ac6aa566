"""Networks whose weights have a download host; here without weights, or without the host."""

import numpy as np

from stages.common import backbones, heads, models


def test_efficientnet_b0_is_whole_and_scales_inside():
    backbone = backbones.build("efficientnet_b0", None, 64)
    model = models.with_any_size(backbone)
    images = np.random.default_rng(0).integers(0, 256, (2, 50, 70, 3), dtype=np.uint8)
    assert model.predict(images, verbose=0).shape == (2, 2, 2, 1280)
    names = [layer.name for layer in backbone.layers]
    # A user names one of these in fine_tune.unfreeze.
    assert "block7a_expand_conv" in names
    head = heads.build("conv", (2, 2, 1280), 10, hidden_units=8, dropout=0.2)
    assert models.assemble(model, head).predict(images, verbose=0).shape == (2, 10)


def test_equal_seeds_give_equal_random_weights():
    first, second = (backbones.build("tiny", None, 32).get_weights() for _ in range(2))
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


def test_weights_that_cannot_be_reached_end_in_one_sentence(run_stage, tmp_path):
    (tmp_path / "params.yaml").write_text(
        "backbone:\n  name: efficientnet_b0\n  weights: imagenet\n  image_size: 224\n"
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
