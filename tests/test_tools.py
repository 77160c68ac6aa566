import json
import shutil
import socket
from pathlib import Path

import pytest
import yaml

from stages.common import paths
from stages.common.run import UserError
from tests import ROOT
from tools import check_params, compare_metrics, demo, preset, summary

PRESETS = sorted(path.stem for path in (ROOT / "presets").glob("*.yaml"))


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A folder with the committed params and presets."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    shutil.copytree(ROOT / "presets", tmp_path / "presets")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def comments(path: Path) -> list[str]:
    return [line.split("#", 1)[1] for line in path.read_text().splitlines() if "#" in line]


@pytest.mark.parametrize("name", PRESETS)
def test_preset_changes_values_and_keeps_all_comments_of_params(project, monkeypatch, name):
    monkeypatch.setattr("sys.argv", ["preset", name])
    before = comments(project / "params.yaml")
    preset.main()
    assert comments(project / "params.yaml") == before
    content = yaml.safe_load((project / "params.yaml").read_text())
    wanted = yaml.safe_load((project / "presets" / f"{name}.yaml").read_text())
    for section, values in wanted.items():
        for key, value in values.items():
            if not isinstance(value, dict):
                assert content[section][key] == value
    assert (project / "presets" / f"{name}.yaml").read_text().count("Expected") == 1


@pytest.mark.parametrize("before", PRESETS)
@pytest.mark.parametrize("name", ["cifar10", "cifar10_cpu", "deitsch2019", "tutorial"])
def test_recipe_leaves_nothing_of_a_preset_that_was_written_before(
    project, monkeypatch, before, name
):
    path = project / "params.yaml"
    clean = path.read_text()

    def write(*names):
        path.write_text(clean)
        for one in names:
            monkeypatch.setattr("sys.argv", ["preset", one])
            preset.main()
        return yaml.safe_load(path.read_text())

    assert write(before, name) == write(name)


def test_preset_leaves_lines_that_it_does_not_change_as_they_were(project, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["preset", "smoke"])
    before = (project / "params.yaml").read_text().splitlines()
    epochs = yaml.safe_load((project / "params.yaml").read_text())["fine_tune"]["epochs"]
    preset.main()
    after = (project / "params.yaml").read_text().splitlines()
    changed = capsys.readouterr().out.splitlines()
    differing = [pair for pair in zip(before, after, strict=True) if pair[0] != pair[1]]
    assert len(differing) == len(changed) > 3
    assert f"fine_tune.epochs: {epochs} → 2" in changed
    preset.main()
    assert "has all values" in capsys.readouterr().out


def test_preset_with_an_unknown_key_or_a_bad_value_writes_nothing(project, monkeypatch):
    monkeypatch.setattr("sys.argv", ["preset", "wrong"])
    before = (project / "params.yaml").read_text()
    for text, message in (
        ("fine_tune:\n  epoch: 3\n", "fine_tune.epoch: unknown key.*did you mean 'epochs'"),
        ("fine_tune:\n  epochs: 0\n", "fine_tune.epochs: expected a whole number of 1 or more"),
        ("finetune:\n  epochs: 1\n", "finetune: unknown key.*did you mean 'fine_tune'"),
    ):
        (project / "presets" / "wrong.yaml").write_text(text)
        with pytest.raises(UserError, match=message):
            preset.main()
        assert (project / "params.yaml").read_text() == before


def test_a_preset_that_can_not_be_written_leaves_params_whole(project, monkeypatch):
    """On a full disk, say; what is there may hold edits that nobody has committed."""
    before = (project / "params.yaml").read_text()
    monkeypatch.setattr("sys.argv", ["preset", "smoke"])
    monkeypatch.setattr("os.replace", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        preset.main()
    assert (project / "params.yaml").read_text() == before


def test_an_empty_preset_is_one_sentence(project, monkeypatch):
    (project / "presets" / "empty.yaml").write_text("# nothing yet\n")
    monkeypatch.setattr("sys.argv", ["preset", "empty"])
    with pytest.raises(UserError, match=r"empty\.yaml: expected sections, received None"):
        preset.main()


@pytest.mark.parametrize("line", ["seed:\t0", "seed: 0\nseed: 0"])
def test_a_preset_over_params_with_a_mistake_is_one_sentence(project, monkeypatch, line):
    path = project / "params.yaml"
    path.write_text(path.read_text().replace("seed: 0", line, 1))
    monkeypatch.setattr("sys.argv", ["preset", PRESETS[0]])
    with pytest.raises(UserError, match=r"^params\.yaml is not valid YAML"):
        preset.main()


def test_unknown_preset_names_the_known_ones(project, monkeypatch):
    monkeypatch.setattr("sys.argv", ["preset", "cifar"])
    known = ", ".join(PRESETS)
    with pytest.raises(UserError, match=f"{known}.*received 'cifar'"):
        preset.main()


def test_all_mistakes_of_a_params_file_are_told_at_once():
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    content["fine_tune"]["epochs"] = 0
    content["split"]["train"] = 0.7
    content["finetune"] = {}
    del content["evaluate"]
    with pytest.raises(UserError) as caught:
        check_params.check(content, "params.yaml")
    sentences = str(caught.value)
    for part in ("fine_tune.epochs", "add up to 1", "finetune: unknown section", "'evaluate'"):
        assert part in sentences


def test_conv_head_on_pooled_features_is_refused_before_anything_runs():
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    content["train_head"]["head"] = "conv"
    with pytest.raises(UserError, match=r"set extract_features.features to map"):
        check_params.check(content, "params.yaml")


@pytest.mark.parametrize(
    ("sizes", "seen", "refused"),
    [
        ([[1, 96], [3, 128]], 128, False),
        ([[1, 96], [3, 129]], 128, True),
        (None, 32, False),
        ([[1, 512]], None, False),  # the network's own size
    ],
)
def test_training_on_larger_images_than_the_network_later_sees_is_refused(sizes, seen, refused):
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    content["fine_tune"].update(image_sizes=sizes)
    content["backbone"].update(image_size=seen)
    if refused:
        with pytest.raises(UserError, match=r"at most 128 pixels, .*received 129"):
            check_params.check(content, "params.yaml")
    else:
        check_params.check(content, "params.yaml")


@pytest.mark.parametrize("port", ["70000", "0", "-1"])
def test_a_port_that_there_is_not_is_refused(capsys, port):
    with pytest.raises(SystemExit):
        demo.parse(["--port", port])
    message = f"--port: expected a whole number from 1 to 65535, received {port}"
    assert message in capsys.readouterr().err
    assert demo.parse(["--port", "65535"]).port == 65535


def test_an_address_that_can_not_be_served_names_the_option():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"--port: expected a free port, received {port}: "):
            demo.check_address("127.0.0.1", port)
        demo.check_address("127.0.0.1", None)
    demo.check_address("127.0.0.1", port)
    nobodys = "192.0.2.1"  # RFC 5737
    with pytest.raises(UserError, match=f"--host: expected an address .*, received {nobodys}: "):
        demo.check_address(nobodys, None)


def test_summary_shows_both_models_side_by_side(project, capsys):
    (project / "metrics").mkdir()
    metrics = dict.fromkeys(summary.HEADLINES, 0.25) | {"images": 7}
    for name, accuracy in (("head", 0.5), ("fine_tuned", 0.75)):
        interval = {"accuracy": {"low": accuracy - 0.125, "high": accuracy + 0.25}}
        path = project / "metrics" / f"{name}.json"
        path.write_text(json.dumps({**metrics, "accuracy": accuracy, "interval": interval}))
    comparison = {
        "accuracy": {"difference": 0.25, "low": -0.125, "high": 0.5},
        "loss": {"difference": -0.125},
        "mcnemar": {"head_only_correct": 3, "fine_tuned_only_correct": 5, "p_value": 0.72656},
    }
    (project / "metrics" / "comparison.json").write_text(json.dumps(comparison))
    summary.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["7", "test", "images"]
    (line,) = [row for row in lines if row.startswith("accuracy")]
    assert line.split() == [
        *("accuracy", "0.500", "[0.375,", "0.750]", "0.750", "[0.625,", "1.000]"),
        *("+0.250", "[-0.125,", "+0.500]", "higher"),
    ]
    (line,) = [row for row in lines if row.startswith("loss")]
    assert line.split() == ["loss", "0.250", "0.250", "-0.125", "lower"]
    assert any("head 3, fine-tuned 5 (McNemar's p = 0.73)" in row for row in lines)


def test_summary_without_results_says_what_makes_them(project):
    with pytest.raises(UserError, match=r"head.json does not exist; `make repro` makes it"):
        summary.main()


@pytest.mark.parametrize(("auc", "passes"), [(0.915, True), (0.87, False), (float("nan"), False)])
def test_compare_metrics_fails_beyond_the_tolerance(project, monkeypatch, auc, passes):
    for folder, value in (("old", 0.9), ("new", auc)):
        (project / folder).mkdir()
        for model in paths.CLASSIFIERS:
            metrics = {"accuracy": 0.85, "roc_auc": value}
            (project / folder / f"{model}.json").write_text(json.dumps(metrics))
    monkeypatch.setattr("sys.argv", ["compare_metrics", "old", "new"])
    if passes:
        compare_metrics.main()
    else:
        with pytest.raises(UserError, match="head roc_auc, fine_tuned roc_auc"):
            compare_metrics.main()


def test_compare_metrics_with_nothing_fails(project, monkeypatch):
    monkeypatch.setattr("sys.argv", ["compare_metrics", "old", "new"])
    with pytest.raises(UserError, match="nothing to compare"):
        compare_metrics.main()
    with pytest.raises(UserError, match="new metrics lack roc_auc"):
        compare_metrics.differences({"accuracy": 1, "roc_auc": 1}, {"accuracy": 1})
