"""Every kind of mistake in params.yaml is one sentence: the key, what is allowed, what came."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from dvc.utils.serialize import parse_yaml

from stages.common import params
from stages.common.run import UserError
from tests import ROOT
from tools.check_params import SECTIONS
from tools.preset import override

COMMITTED = ROOT / "params.yaml"
PRESETS = sorted((ROOT / "presets").glob("*.yaml"))
STAGE_OF_SECTION = {name: name for name in SECTIONS} | {"dataset": "fetch", "runtime": "fine_tune"}
MISSING = object()


def changed(section: str, changes: dict) -> dict:
    """The committed params with keys of one section, nested ones after a point, set or removed."""
    content = params.read(COMMITTED)
    for place, value in changes.items():
        *parents, key = place.split(".")
        owner = content[section]
        for parent in parents:
            owner = owner[parent]
        if value is MISSING:
            del owner[key]
        else:
            owner[key] = value
    return content


def error_of(section: str, changes: dict) -> str:
    """What the user reads after the changes."""
    with pytest.raises(UserError) as caught:
        params.check(changed(section, changes), section, SECTIONS[section])
    return str(caught.value)


def write_params(folder: Path, content: dict) -> None:
    (folder / "params.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")


def test_an_unknown_key_is_answered_with_the_nearest_right_one():
    error = error_of("fine_tune", {"learning_rat": 0.1})
    assert error.startswith("params.yaml, fine_tune.learning_rat: unknown key; allowed are ")
    assert "batch_size" in error
    assert error.endswith("did you mean 'learning_rate'?")


@pytest.mark.parametrize("key", ["learning-rate", "int", "list[rate]"])
def test_an_unknown_key_is_named_whatever_characters_it_has(key):
    error = error_of("fine_tune", {key: 0.1})
    assert error.startswith(f"params.yaml, fine_tune.{key}: unknown key; allowed are ")


def test_a_missing_key_is_named_with_what_is_expected():
    error = error_of("train_head", {"epochs": MISSING})
    assert error == (
        "params.yaml, train_head.epochs: missing; expected a whole number of 1 or more; add it"
    )


def test_a_number_that_yaml_reads_as_text_comes_with_the_cure():
    # YAML 1.1 wants a point in the mantissa.
    value = yaml.safe_load("1e-4")
    assert error_of("fine_tune", {"learning_rate": value}) == (
        "params.yaml, fine_tune.learning_rate: expected a number above 0, received '1e-4' "
        "(write 1.0e-4, without quotes)"
    )


@pytest.mark.parametrize(
    ("key", "value", "cure"),
    [("epochs", "10", "10"), ("dropout", "0.5", "0.5"), ("learning_rate", "3E-5", "3.0e-5")],
)
def test_a_number_in_quotes_comes_with_a_cure_that_is_accepted(key, value, cure):
    error = error_of("train_head", {key: value})
    assert error.endswith(f"received {value!r} (write {cure}, without quotes)")
    content = changed("train_head", {key: yaml.safe_load(cure)})
    params.check(content, "train_head", SECTIONS["train_head"])


def test_a_text_that_is_no_number_comes_without_a_cure():
    for text in ("many", "nan", "inf"):
        assert error_of("train_head", {"epochs": text}).endswith(f"received {text!r}")


@pytest.mark.parametrize(
    ("section", "key", "value", "allowed"),
    [
        ("train_head", "epochs", 2.5, "a whole number of 1 or more"),
        ("train_head", "epochs", True, "a whole number of 1 or more"),
        ("train_head", "learning_rate", [0.1], "a number above 0"),
        ("train_head", "learning_rate", None, "a number above 0"),
        ("fine_tune", "batch_norm_trainable", "yes", "true or false"),
        ("backbone", "name", 0, "a text that is not empty"),
        ("dataset", "splits", "train", "null for all, or a list"),
        ("dataset", "splits", [], "null for all, or a list"),
    ],
)
def test_a_wrong_type(section, key, value, allowed):
    error = error_of(section, {key: value})
    assert error.startswith(f"params.yaml, {section}.{key}: expected {allowed}")
    assert f"received {value!r}" in error


@pytest.mark.parametrize(
    ("section", "key", "value", "allowed"),
    [
        ("train_head", "learning_rate", 0, "a number above 0"),
        ("train_head", "learning_rate", float("inf"), "a number above 0"),
        ("train_head", "learning_rate", float("nan"), "a number above 0"),
        ("train_head", "weight_decay", -0.1, "a number of 0 or more"),
        ("train_head", "dropout", 1.0, "a number from 0 to below 1"),
        ("train_head", "early_stopping_patience", 0, "null (train all epochs) or a whole number"),
        ("preprocess", "image_size", 0, "a whole number of 1 or more"),
        ("backbone", "name", "", "a text that is not empty"),
        ("split", "sample", 1.5, "a fraction above 0, at most 1"),
        ("split", "train", 1, "a fraction above 0 and below 1"),
        ("evaluate", "batch_size", -8, "a whole number of 1 or more"),
    ],
)
def test_a_value_out_of_range(section, key, value, allowed):
    error = error_of(section, {key: value})
    assert error.startswith(f"params.yaml, {section}.{key}: expected {allowed}")
    assert f"received {value!r}" in error


@pytest.mark.parametrize("value", [0, 1.5, -0.25])
def test_a_fraction_beside_official_is_checked_too(value):
    error = error_of("split", {"train": 0.75, "valid": value, "test": "official"})
    assert error.startswith("params.yaml, split.valid: expected a fraction above 0 and below 1")
    assert f"received {value}" in error


def test_fractions_that_do_not_add_up_to_one():
    error = error_of("split", {"train": 0.75, "valid": 0.15, "test": 0.25})
    assert error == (
        "params.yaml, split: the fractions must add up to 1, received "
        "train 0.75 + valid 0.15 + test 0.25 = 1.15"
    )


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("010", 10), ("0o17", 15), ("-0x1F", -31), ("0b11", 3), ("1_000", 1000)),
        *((".5", 0.5), ("5.", 5.0), ("-.5e-3", -0.0005), ("-.inf", -np.inf), ("1_0.5", 10.5)),
        *(("true", True), ("yes", "yes"), ("no", "no"), ("on", "on"), ("null", None)),
        *(("40:00", "40:00"), ("1:30.5", "1:30.5"), ("1.2.3", "1.2.3"), ("0x", "0x")),
    ],
)
def test_a_value_is_what_dvc_reads(text, value):
    """Or `dvc params diff` would tell another number than the one that was trained with."""
    found = params.parse(f"value: {text}")["value"]
    assert (type(found), found) == (type(value), value)
    assert parse_yaml(f"value: {text}", "params.yaml")["value"] == value


@pytest.mark.parametrize("text", ["1e-5", "1e-05", "1E-5", "1.0e-5", "1.e-5", "0.00001"])
def test_a_small_number_may_be_written_as_dvc_writes_it(text):
    """`dvc exp run -S fine_tune.learning_rate=1e-5` leaves 1e-05, which is YAML 1.2."""
    assert params.parse(f"rate: {text}") == {"rate": 1e-5}
    assert params.parse("[e-5, 12e, 1e-5 a]") == ["e-5", "12e", "1e-5 a"]


def test_keys_are_texts_as_dvc_reads_them():
    """Classes may be called so, in class_weights."""
    text = "{yes: 2, no: 1, 01: 1, 2024-01-31: 1, null: 1}"
    assert list(params.parse(text)) == ["yes", "no", "01", "2024-01-31", "null"]


@pytest.mark.parametrize("text", ["seed: 0\nseed: 1\n", "a:\n  epochs: 1\n  epochs: 1\n"])
def test_a_key_that_is_there_twice_is_named(tmp_path, text):
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(UserError, match=r"the key '(seed|epochs)' is there twice"):
        params.read(tmp_path / "params.yaml")


def test_a_split_is_named_once():
    error = error_of("dataset", {"splits": ["train", "train"]})
    assert (
        error
        == "params.yaml, dataset.splits: expected each split once, received ['train', 'train']"
    )


def test_fractions_add_up_without_the_official_splits():
    error = error_of("split", {"train": 0.75, "valid": 0.15, "test": "official"})
    assert "received train 0.75 + valid 0.15 = 0.9" in error
    content = changed("split", {"train": 0.85, "valid": 0.15, "test": "official"})
    loaded = params.check(content, "split", SECTIONS["split"])
    assert loaded.fractions == {"valid": 0.15, "train": 0.85}


def test_thirds_add_up_in_spite_of_rounding():
    content = changed("split", {"train": 0.7, "valid": 0.2, "test": 0.1})
    assert params.check(content, "split", SECTIONS["split"]).test == 0.1


def test_a_misspelt_official_split():
    error = error_of("split", {"train": 0.85, "valid": 0.15, "test": "offical"})
    assert error == (
        "params.yaml, split.test: expected a fraction above 0 and below 1, or official (the set's "
        "own split), received 'offical'; did you mean 'official'?"
    )


@pytest.mark.parametrize("value", [True, 1.5, None, ["all"]])
def test_unfreeze_takes_a_number_or_a_name_and_nothing_else(value):
    error = error_of("fine_tune", {"unfreeze": value})
    assert error.startswith(
        "params.yaml, fine_tune.unfreeze: expected all, none, a number of last backbone layers"
    )
    assert f"received {value!r}" in error


@pytest.mark.parametrize("value", ["all", "none", 12, "block3_expand_conv"])
def test_unfreeze_keeps_the_type_of_what_it_takes(value):
    content = changed("fine_tune", {"unfreeze": value})
    assert params.check(content, "fine_tune", SECTIONS["fine_tune"]).unfreeze == value


def test_an_unknown_backbone():
    error = error_of("backbone", {"name": "eficientnet_b0"})
    assert error.startswith("params.yaml, backbone.name: expected one of the ")
    assert "received 'eficientnet_b0'; did you mean 'efficientnet_b0'" in error


def test_weights_that_a_backbone_does_not_have():
    error = error_of("backbone", {"name": "tiny", "weights": "imagenet"})
    assert error.startswith("params.yaml, backbone.weights: ")
    assert "received 'imagenet'" in error
    assert "null" in error


def test_unknown_weights():
    error = error_of("backbone", {"name": "efficientnet_b0", "weights": "imagenet21k"})
    assert error.startswith("params.yaml, backbone.weights: expected ")
    assert "received 'imagenet21k'; did you mean 'imagenet'?" in error


@pytest.mark.parametrize("section", ["train_head", "fine_tune"])
def test_an_unknown_optimizer(section):
    assert error_of(section, {"optimizer": "adamv"}) == (
        f"params.yaml, {section}.optimizer: expected 'adam', 'adamw' or 'sgd', received 'adamv'; "
        "did you mean 'adam' or 'adamw'?"
    )


def test_an_unknown_head():
    error = error_of("train_head", {"head": "convolution"})
    assert error == (
        "params.yaml, train_head.head: expected one of linear, dense, conv, residual, cosine, "
        "received 'convolution'"
    )


def test_more_views_than_there_are_pictures():
    flips = {"horizontal_flip": True, "vertical_flip": False, "quarter_turns": False}
    changes = {f"augment.{name}": allowed for name, allowed in flips.items()}
    error = error_of("extract_features", {**changes, "views": 3})
    assert error.startswith("params.yaml, extract_features.views: expected at most 2")
    assert "received 3" in error


def test_a_value_in_a_nested_section():
    assert error_of("dataset", {"elpv.threshold": 2}) == (
        "params.yaml, dataset.elpv.threshold: expected a number above 0, at most 1, received 2"
    )
    assert error_of("fine_tune", {"augment.horizontal_flip": "on"}) == (
        "params.yaml, fine_tune.augment.horizontal_flip: expected true or false, received 'on'"
    )


def test_an_unknown_key_in_a_nested_section_is_answered_with_that_sections_keys():
    assert error_of("fine_tune", {"augment.horizontal_flips": True}) == (
        "params.yaml, fine_tune.augment.horizontal_flips: unknown key; allowed are "
        "crop_area, cutmix, erasing, horizontal_flip, mixup, quarter_turns, rand_augment, shift, "
        "vertical_flip; did you mean 'horizontal_flip' or "
        "'vertical_flip'?"
    )


def test_a_value_where_a_nested_section_belongs():
    error = error_of("fine_tune", {"augment": True})
    assert error.startswith("params.yaml, fine_tune.augment: expected ")
    assert "received True" in error


def test_two_mistakes_are_two_sentences():
    first, second = error_of("train_head", {"epochs": 0, "dropout": 2}).splitlines()
    assert "train_head.dropout: expected a number from 0 to below 1, received 2" in first + second
    assert "train_head.epochs: expected a whole number of 1 or more, received 0" in first + second


@pytest.mark.parametrize("value", [-1, 2**31, "0", 1.0, None])
def test_a_seed_that_is_no_seed(value):
    with pytest.raises(UserError) as caught:
        params.check_seed({"seed": value})
    assert str(caught.value).startswith(
        f"params.yaml, seed: expected a whole number from 0 to 2147483647, received {value!r}"
    )


def test_a_missing_seed():
    with pytest.raises(UserError) as caught:
        params.check_seed({"split": {}})
    assert str(caught.value) == (
        "params.yaml, seed: missing; expected a whole number from 0 to 2147483647; add it"
    )


def test_a_missing_section():
    with pytest.raises(UserError, match=r"^params.yaml: the section 'split' is missing; add it$"):
        params.check({"seed": 0}, "split", SECTIONS["split"])


@pytest.mark.parametrize("value", [None, 3, ["train"]])
def test_a_section_without_keys(value):
    with pytest.raises(UserError) as caught:
        params.check({"split": value}, "split", SECTIONS["split"])
    assert str(caught.value) == f"params.yaml, split: expected keys and values, received {value!r}"


def test_a_missing_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        params.load("split", SECTIONS["split"])
    assert str(caught.value) == (
        f"params.yaml does not exist in {tmp_path}; run from the project's folder"
    )


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"split:\n\ttrain: 0.5\n", "line 2"),
        (b"split: {train: 0.5\n", "not valid YAML"),
        ("seed: 0 # für alles".encode("latin-1"), "UTF-8"),
        (b"", "expected sections, received None"),
        (b"- split\n", "expected sections, received ['split']"),
    ],
)
def test_a_file_that_is_not_yaml_with_sections(tmp_path, content, says):
    path = tmp_path / "params.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        params.read(path)
    assert str(caught.value).startswith(str(path))
    assert says in str(caught.value)


@pytest.mark.parametrize("preset", [None, *PRESETS], ids=lambda path: path.stem if path else "none")
def test_the_committed_params_load_alone_and_under_each_preset(preset):
    content = params.read(COMMITTED)
    if preset:
        override(content, params.read(preset), str(preset))
    assert 0 <= params.check_seed(content) < 2**31
    for section, kind in SECTIONS.items():
        assert isinstance(params.check(content, section, kind), kind)


@pytest.mark.parametrize("now", [None, "balanced", {"x": 1, "y": 2}])
@pytest.mark.parametrize("wanted", [None, "balanced", {"z": 3}])
def test_a_preset_sets_class_weights_whole(now, wanted):
    content = {"train_head": {"class_weights": now}}
    changed = override(content, {"train_head": {"class_weights": wanted}}, "preset")
    assert content == {"train_head": {"class_weights": wanted}}
    assert len(changed) == (now != wanted)


@pytest.mark.parametrize("section", SECTIONS)
def test_every_stage_reports_a_mistake_before_it_imports_tensorflow(tmp_path, run_stage, section):
    # These stand where the real packages would be found, so whoever imports them is caught.
    blocker = tmp_path / "blocker"
    for package in ("tensorflow", "keras", "tensorflow_datasets"):
        (blocker / package).mkdir(parents=True)
        text = f"raise AssertionError('{package} was imported')\n"
        (blocker / package / "__init__.py").write_text(text)
    write_params(tmp_path, changed(section, {"no_such_key": 1}))
    arguments = ["head"] if section == "evaluate" else []
    done = run_stage(STAGE_OF_SECTION[section], *arguments, first_on_path=blocker)
    assert done.returncode == 1
    (sentence,) = done.stderr.splitlines()
    assert sentence.startswith(f"error: params.yaml, {section}.no_such_key: unknown key; allowed")
    assert done.stdout == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["blocker", "params.yaml"]


@pytest.mark.parametrize("stage", ["split", "backbone", "train_head", "fine_tune"])
def test_stages_with_randomness_check_the_seed_too(tmp_path, run_stage, stage):
    write_params(tmp_path, {**params.read(COMMITTED), "seed": -1})
    done = run_stage(stage)
    assert done.returncode == 1
    assert done.stderr == (
        "error: params.yaml, seed: expected a whole number from 0 to 2147483647, received -1\n"
    )


def test_evaluate_asks_for_one_of_its_models(tmp_path, run_stage):
    write_params(tmp_path, params.read(COMMITTED))
    done = run_stage("evaluate", "haed")
    assert done.returncode == 1
    assert done.stderr == "error: expected one model of head, fine_tuned, received ['haed']\n"
