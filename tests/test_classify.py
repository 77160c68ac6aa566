"""tools.classify as its users call it, offline."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from stages.common import backbones
from stages.common.run import UserError
from tests import ROOT
from tools import classify


def run(*arguments, cwd) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "tools.classify", *map(str, arguments)],
        cwd=cwd,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_cat_is_named_and_what_is_no_image_loses_nothing(tmp_path):
    from skimage import data

    Image.fromarray(data.chelsea()).save(tmp_path / "chelsea $\\frac$ 5.jpg")  # no formula
    (tmp_path / "broken.png").write_bytes(b"no image")
    shown = tmp_path / "deep" / "shown.png"
    arguments = ("broken.png", "chelsea $\\frac$ 5.jpg", "none.png", "--json", "--top", 2)
    done = run(*arguments, "--show-preprocessed", shown, cwd=tmp_path)
    assert done.returncode == 1
    assert "broken.png: not an image" in done.stderr
    assert "none.png: No such file" in done.stderr
    assert "2 of 3 files are no images" in done.stderr
    (found,) = json.loads(done.stdout)
    assert found["image"] == "chelsea $\\frac$ 5.jpg"
    assert [row["class"] for row in found["predictions"]] == ["Egyptian cat", "tiger cat"]
    assert Image.open(shown).width > 800
    refused = run("broken.png", "--show-preprocessed", tmp_path / "shown.foo", cwd=tmp_path)
    assert "--show-preprocessed: expected a .png file, received" in refused.stderr
    refused = run(*["a.png"] * 101, "--show-preprocessed", shown, cwd=tmp_path)
    assert "--show-preprocessed: expected at most 100 images" in refused.stderr


@pytest.mark.parametrize(
    ("name", "least", "greatest"),
    [
        ("efficientnet_lite0", -127 / 128, 1.0),
        ("vgg16", -123.68, 255 - 103.939),  # the smallest red, the largest blue
        ("mobilenet_v2", -1.0, 1.0),
        ("densenet121", (0 - 0.485) / 0.229, (1 - 0.406) / 0.225),
    ],
)
def test_what_is_shown_is_what_the_first_convolution_gets(name, least, greatest):
    model = backbones.build(name, None, 64)
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[:32] = 255
    scaled = classify.scaled_input(model, picture)
    assert scaled.shape == (64, 64, 3)
    assert scaled.min() == pytest.approx(least, abs=1e-3)
    assert scaled.max() == pytest.approx(greatest, abs=1e-3)


def test_bgr_is_shown_as_such():
    red = np.zeros((64, 64, 3), np.uint8)
    red[..., 0] = 255
    scaled = classify.scaled_input(backbones.build("vgg16", None, 64), red)
    np.testing.assert_allclose(scaled[0, 0], [-103.939, -116.779, 255 - 123.68], atol=1e-3)


def test_a_square_is_the_middle_of_the_picture(tmp_path):
    picture = np.zeros((40, 80, 3), np.uint8)
    picture[:, 20:60] = 200
    Image.fromarray(picture).save(tmp_path / "wide.png")
    square = classify.centre_square((tmp_path / "wide.png").read_bytes(), 20)
    np.testing.assert_allclose(square, 200, atol=15)  # bicubic overshoots at edges


def test_networks_without_a_classifier_are_refused():
    with pytest.raises(UserError, match=r"received 'efficientnet_light0'; did you mean 'efficien"):
        classify.imagenet_classifier("efficientnet_light0")
    with pytest.raises(UserError, match=r"networks with ImageNet weights.*received 'tiny'"):
        classify.imagenet_classifier("tiny")


def test_class_names_are_in_the_networks_order():
    names = classify.class_names()
    assert len(names) == 1000
    assert [names[place] for place in (0, 285, 967, 999)] == [
        "tench",
        "Egyptian cat",
        "espresso",
        "toilet tissue",
    ]
