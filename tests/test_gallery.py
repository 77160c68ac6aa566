import json

import numpy as np
import pytest
from PIL import Image

from stages.common import gallery


def predictions(images: int, classes: int, wrong: float, seed: int = 0):
    """Labels and probabilities with about the given fraction of mistakes."""
    random = np.random.default_rng(seed)
    labels = np.random.default_rng(0).integers(0, classes, images)
    logits = random.normal(size=(images, classes))
    said = np.where(random.random(images) < wrong, (labels + 1) % classes, labels)
    logits[np.arange(images), said] = logits.max(axis=1) + random.random(images)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return labels, probabilities


def ids_of(images: int) -> list[str]:
    return [f"train__{number}" for number in range(images)]


def of_kind(choices, kind: str) -> list[int]:
    return [choice.index for choice in choices if kind in choice.kinds]


@pytest.mark.parametrize(
    ("images", "classes", "wrong"),
    [(20, 2, 0.2), (1000, 2, 0.3), (3000, 7, 0.0), (3000, 7, 1.0), (5000, 400, 0.5)],
)
def test_a_gallery_is_bounded_and_shows_right_and_wrong(images, classes, wrong):
    labels, probabilities = predictions(images, classes, wrong)
    choices = gallery.choose(ids_of(images), labels, probabilities)
    assert len(choices) == min(images, 240)
    assert len({choice.index for choice in choices}) == len(choices)
    assert all(choice.kinds for choice in choices)
    mistakes, uncertain = of_kind(choices, "mistake"), of_kind(choices, "uncertain")
    right = probabilities.argmax(axis=1) == labels
    assert len(mistakes) == min(80, (~right).sum())
    assert not right[mistakes].any()
    assert len(uncertain) == min(60, images)
    assert right[[choice.index for choice in choices]].any() == right.any()
    explained = [choice.index for choice in choices if choice.explained]
    assert len(explained) == min(48, images)
    if 24 <= right.sum() <= images - 24:
        assert right[explained].sum() == 24


def test_mistakes_are_the_most_confident_of_each_class_in_turn():
    # Class 0 has three mistakes, all surer than the only one of class 1.
    labels = np.array([0, 0, 0, 1, 1, 0])
    probabilities = np.array(
        [[0.01, 0.99], [0.04, 0.96], [0.02, 0.98], [0.6, 0.4], [0.1, 0.9], [0.7, 0.3]]
    )
    choices = gallery.choose(ids_of(6), labels, probabilities)
    assert of_kind(choices, "mistake") == [0, 3, 2, 1]
    assert gallery.most_confident_mistakes(labels, probabilities) == [0, 2, 1, 3]


def test_least_certain_have_the_smallest_margin_between_the_first_two_guesses():
    # By the largest probability alone the first row would be the least certain.
    probabilities = np.array([[0.4, 0.3, 0.3], [0.5, 0.48, 0.02], [0.9, 0.06, 0.04]])
    assert gallery.least_certain(probabilities) == [1, 0, 2]


def test_a_model_that_is_seldom_right_still_shows_where_it_is():
    labels, probabilities = predictions(2000, 2, wrong=1.0)
    lucky = 1234
    labels[lucky] = probabilities[lucky].argmax()
    choices = gallery.choose(ids_of(2000), labels, probabilities)
    assert lucky in [choice.index for choice in choices if choice.explained]
    assert len(choices) == 240


def test_the_sample_is_balanced_and_shared_by_two_models_in_any_stored_order():
    images, classes = 3000, 6
    labels, first = predictions(images, classes, wrong=0.4)
    labels[labels == 5] = np.arange((labels == 5).sum()) % 5  # a rare class: ten images
    labels[:10] = 5
    _, second = predictions(images, classes, wrong=0.01, seed=1)
    ids = ids_of(images)
    samples = [of_kind(gallery.choose(ids, labels, values), "sample") for values in (first, second)]
    short, long = sorted((set(sample) for sample in samples), key=len)
    assert len(short) > 90
    assert short <= long
    counts = np.bincount(labels[list(short)], minlength=classes)
    assert counts[5] == 10
    assert counts[:5].max() - counts[:5].min() <= 1
    # Another order of storage, the same images.
    order = np.random.default_rng(2).permutation(images)
    moved = gallery.choose([ids[index] for index in order], labels[order], first[order])
    assert {order[index] for index in of_kind(moved, "sample")} == set(samples[0])


def test_what_is_written_says_the_truth_and_stays_small(tmp_path):
    labels = np.array([0, 1, 1])
    probabilities = np.array([[0.25, 0.75], [0.125, 0.875], [0.5, 0.5]])
    pictures = {
        0: np.full((300, 200, 3), 40, np.uint8),
        1: np.full((20, 30, 3), 90, np.uint8),
        2: np.full((160, 160, 3), 200, np.uint8),
    }
    choices = [
        gallery.Choice(0, ("mistake", "sample"), True),
        gallery.Choice(2, ("uncertain",), False),
        gallery.Choice(1, ("sample",), False),
    ]
    for folder in ("first", "second"):
        gallery.write(
            tmp_path / folder,
            choices,
            pictures=pictures,
            overlays={0: np.full((300, 200, 3), 250, np.uint8)},
            labels=labels,
            probabilities=probabilities,
            ids=["a", "b", "c"],
            names=["a.png", "b.png", "c.png"],
            class_names=["good", "böse"],
        )
    entries = json.loads((tmp_path / "first" / "gallery.json").read_text(encoding="utf-8"))
    assert entries[0] == {
        "id": "a",
        "name": "a.png",
        "label": "good",
        "predicted": "böse",
        "confidence": 0.75,
        "probability_of_label": 0.25,
        "correct": False,
        "kinds": ["mistake", "sample"],
        "picture": "0000.jpg",
        "explanation": "0000_explanation.jpg",
    }
    assert [entry["id"] for entry in entries] == ["a", "c", "b"]
    assert entries[2]["correct"]
    assert entries[2]["explanation"] is None
    sizes, shades = {}, {}
    for path in (tmp_path / "first").glob("*.jpg"):
        with Image.open(path) as image:
            sizes[path.name], shades[path.name] = image.size, image.getpixel((5, 5))[0]
    assert sizes == {
        "0000.jpg": (107, 160),
        "0000_explanation.jpg": (107, 160),
        "0001.jpg": (160, 160),
        "0002.jpg": (30, 20),  # nothing is enlarged
    }
    assert [shades[name] for name in sorted(shades)] == [40, 250, 200, 90]
    files = {path.name: path.read_bytes() for path in (tmp_path / "first").iterdir()}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "second").iterdir()}
