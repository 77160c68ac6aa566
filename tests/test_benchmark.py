"""The arithmetic of the benchmark; the speeds themselves are no test."""

import io
import json
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from stages.common import backbones, models, params, paths, shards
from stages.common.run import UserError
from tests import ROOT
from tools import benchmark, benchmark_scale, benchmark_training, check_params, memory, preset


class Clock:
    """Seconds that pass only where a case lets them."""

    def __init__(self):
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def case(self, *seconds: float):
        """A case whose calls take these times, one after the other."""
        waiting = list(seconds)

        def work():
            self.now += waiting.pop(0)

        return work


def test_rates_are_medians_of_timed_rounds_and_ratios_are_taken_within_a_round():
    clock = Clock()
    # The first call warms up. In the third round the machine is four times slower for both.
    cases = {"base": clock.case(99, 1, 1, 4), "twice": clock.case(50, 0.5, 0.5, 2)}
    base, twice = benchmark.rates(cases, count=10, rounds=3, clock=clock)
    assert (base.median, base.lowest, base.highest, base.ratio) == (10, 2.5, 10, 1)
    assert (twice.median, twice.lowest, twice.highest, twice.ratio) == (20, 5, 20, 2)


def test_table_names_every_case():
    rows = [benchmark.Rate("ours", 1234.4, 1000, 1300, 1.25)]
    assert benchmark.table("Decode", rows).splitlines()[-1].split() == [
        "ours",
        "1234",
        "1000",
        "1300",
        "1.25",
    ]


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_pictures_are_of_the_size_and_kind_that_the_table_names(kind):
    encoded = benchmark.photograph(0, (50, 40), kind)
    with Image.open(io.BytesIO(encoded)) as image:
        assert (image.format, image.size) == (kind, (50, 40))
    assert benchmark.photograph(1, (50, 40), kind) != encoded
    assert benchmark.pillow_alone(encoded, 16).shape == (16, 16, 3)


def test_rates_of_growth_leave_out_what_every_start_costs():
    rows = [
        benchmark_scale.Measured("fetch", 1000, 6.0, 600),
        benchmark_scale.Measured("fetch", 5000, 10.0, 610),
        benchmark_scale.Measured("fetch", 9000, 14.0, 610),
    ]
    cells = [line.split() for line in benchmark_scale.growth(rows).splitlines()[1:]]
    assert [row[3] for row in cells[1:]] == ["1000", "1000"]  # a straight line
    assert cells[0] == ["fetch", "1000", "6.0", "600"]
    assert cells[2][4] == "1.00"


def test_growth_is_compared_within_a_round():
    rows = [
        benchmark_scale.Measured("fetch", 1000, 6.0, 600, (6.0, 12.0, 6.0)),
        benchmark_scale.Measured("fetch", 5000, 10.0, 610, (10.0, 20.0, 8.0)),
        # The machine was half as fast throughout the second round; the rate falls to 0.8 in each.
        benchmark_scale.Measured("fetch", 9000, 15.0, 610, (15.0, 30.0, 10.5)),
    ]
    cells = [line.split() for line in benchmark_scale.growth(rows).splitlines()[1:]]
    assert cells[2][4] == "0.80"


def test_small_numbers_of_images_are_measured_in_turn_and_their_medians_count(
    tmp_path, monkeypatch
):
    seconds = iter([1, 10, 5, 30, 2, 20])
    ran = []

    def measure(folder, stage, count):
        # Nothing of an earlier round is there.
        assert sorted(path.name for path in (folder / "data").iterdir()) == ["own"]
        (folder / "data" / "raw").mkdir()
        (folder / "data" / "splits.csv").touch()
        ran.append(count)
        return benchmark_scale.Measured(stage, count, next(seconds), 600 + len(ran))

    monkeypatch.setattr(benchmark_scale, "STAGES", ("fetch",))
    monkeypatch.setattr(benchmark_scale, "measure", measure)
    rows = benchmark_scale.measure_all([10, 20], tmp_path)
    assert ran == [10, 20] * 3
    assert [(row.images, row.seconds, row.peak_mebibytes) for row in rows] == [
        (10, 2, 605),
        (20, 20, 606),
    ]


def test_what_is_measured_is_the_same_after_a_preset(tmp_path, monkeypatch):
    shutil.copytree(ROOT / "presets", tmp_path / "presets")
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(benchmark_scale, "ROOT", tmp_path)
    made = {}
    for name in ("committed", "smoke", "cifar10", "tutorial"):
        if name != "committed":
            monkeypatch.setattr(sys, "argv", ["preset", name])
            preset.main()
        (tmp_path / name).mkdir()
        benchmark_scale.make_project(tmp_path / name, 20)
        content = params.read(tmp_path / name / "params.yaml")
        check_params.check(content, name)
        made[name] = [content[section] for section in ("dataset", "split", "preprocess")]
    assert made["committed"] == made["smoke"] == made["cifar10"] == made["tutorial"]
    assert len(list((tmp_path / "smoke" / "data" / "own").rglob("*.jpg"))) == 20


def test_why_a_stage_failed_is_said(tmp_path):
    with pytest.raises(UserError, match=r"-m stages\.fetch failed: error: params\.yaml does not"):
        benchmark_scale.measure(tmp_path, "fetch", 20)
    bars = "import sys; sys.exit('50%\\rerror: the disk is full')"
    with pytest.raises(UserError, match=r"failed: error: the disk is full$"):
        memory.peak_bytes([sys.executable, "-c", bars], quiet=True)


@pytest.mark.slow
def test_every_stage_that_sees_all_images_is_measured(tmp_path):
    benchmark_scale.make_project(tmp_path, 120)
    measured = [benchmark_scale.measure(tmp_path, name, 120) for name in benchmark_scale.STAGES]
    assert all(row.seconds > 0 and row.peak_mebibytes > 100 for row in measured)
    counts = json.loads((tmp_path / "metrics" / "data.json").read_text())
    assert counts["images"] == 120


def test_an_epoch_of_fine_tuning_is_compared_with_networks_that_train(
    tmp_path, monkeypatch, toy_classifier
):
    """The one that is not folded has to be as `models.training_model` builds the other."""
    monkeypatch.chdir(tmp_path)
    models.save(toy_classifier("dense"), paths.HEAD)
    pictures = np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3), dtype=np.uint8)
    shards.write_all(
        paths.IMAGES / "train",
        ((picture, number % 3, str(number)) for number, picture in enumerate(pictures)),
        "uint8",
        ["a", "b", "c"],
    )
    cases, count = benchmark_training.fine_tuning()
    assert count == 64
    losses = {name: case().history["loss"][0] for name, case in cases.items()}
    assert all(np.isfinite(loss) for loss in losses.values())
    assert len(losses) == 4


def test_a_few_tables_are_chosen_by_their_titles():
    assert benchmark.chosen(["jpeg, 32"]) == {"JPEG, 32 by 32"}
    assert len(benchmark.chosen([])) == 10
    with pytest.raises(
        UserError, match=r"--only: expected a part of one of .* received 'decoding'"
    ):
        benchmark.chosen(["decoding"])


def test_tables_of_another_machine_are_not_mixed_with_this_ones(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    here = benchmark.machine()
    assert benchmark.earlier_results(here) == {}
    benchmark.RESULTS.parent.mkdir()
    benchmark.RESULTS.write_text(json.dumps({"machine": here, "training": {"a": []}}))
    assert benchmark.earlier_results(here)["training"] == {"a": []}
    with pytest.raises(UserError, match=r"results\.json was measured with cores \d+, here it is 1"):
        benchmark.earlier_results(here | {"cores": 1000})
    with pytest.raises(UserError, match=r"was measured with processor .*, here it is another"):
        benchmark.earlier_results(here | {"processor": "another"})


def test_versions_of_packages_that_are_gone_stay_with_their_rows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    here = {name: value for name, value in benchmark.machine().items() if name != "torch"}
    benchmark.RESULTS.parent.mkdir()
    there = here | {"torch": "2.14.1", "timm": "1.0.31"}
    benchmark.RESULTS.write_text(json.dumps({"machine": there}))
    now = here | {"timm": "1.0.32"}
    assert benchmark.earlier_results(now)["machine"] == now | {"torch": "2.14.1"}


def test_what_is_not_the_last_runs_is_not_measured(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["benchmark", "--only", "nothing to do"])
    with pytest.raises(UserError, match=r"head\.keras does not exist; `make repro` makes"):
        benchmark.main()
    paths.HEAD.parent.mkdir()
    paths.HEAD.touch()
    status = "import sys; assert sys.argv[1:] == ['status', '--json']; {}"
    (tmp_path / "dvc.py").write_text(status.format("""print('{"split": []}')"""))
    with pytest.raises(UserError, match=r"received older ones, .*; run `make repro` first"):
        benchmark.main()
    (tmp_path / "dvc.py").write_text(status.format("print('{}')"))
    benchmark.check_last_run()
    # Where DVC itself fails, nothing is known of the results.
    (tmp_path / "dvc.py").write_text(status.format("sys.exit('ERROR: the lock is held')"))
    with pytest.raises(UserError, match="status --json failed: ERROR: the lock is held"):
        benchmark.check_last_run()


@pytest.fixture
def pictures(tmp_path, monkeypatch, toy_classifier):
    """A folder in which a network, a head and images of three classes lie."""
    monkeypatch.chdir(tmp_path)
    backbone = models.with_any_size(backbones.build("tiny", None, 32))
    models.save(backbone, paths.BACKBONE)
    models.save(toy_classifier("dense"), paths.HEAD)
    random = np.random.default_rng(0)
    for split, count in (("train", 64), ("valid", 16), ("test", 16)):
        shards.write_all(
            paths.IMAGES / split,
            (
                (random.integers(0, 256, (32, 32, 3), dtype=np.uint8), number % 3, str(number))
                for number in range(count)
            ),
            "uint8",
            ["a", "b", "c"],
        )


@pytest.mark.usefixtures("pictures")
def test_all_ways_to_a_head_and_to_features_run(monkeypatch):
    monkeypatch.setattr(benchmark_training, "EPOCHS", 1)
    monkeypatch.setitem(benchmark_training.HEAD, "epochs", 1)
    for make, handled in (
        (benchmark_training.head_epochs, 64),
        (benchmark_training.forward_pass, 16),
    ):
        cases, count = make()
        assert count == handled
        for work in cases.values():
            work()
    accuracies = benchmark_training.head_accuracies(2)
    assert {name: len(values) for name, values in accuracies.items()} == {"tutorial": 2, "ours": 2}
    assert all(0 <= value <= 1 for values in accuracies.values() for value in values)


def test_memory_is_measured_of_every_stage():
    measured = [" ".join(words) for words in memory.modules(params.read(ROOT / "dvc.yaml"))]
    assert {"stages.evaluate head", "stages.evaluate fine_tuned"} < set(measured)
    scripts = {path.stem for path in (ROOT / "stages").glob("*.py")} - {"__init__"}
    assert {words.split()[0].removeprefix("stages.") for words in measured} == scripts
