"""tools.gate on real Git revisions: one worse than the other, one without a baseline."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests import ROOT
from tools import revisions

METRICS = {
    "accuracy": 0.9,
    "loss": 0.3,
    "interval": {"accuracy": {"low": 0.87, "high": 0.92}},
}
RULES = [
    {"metric": "fine_tuned.accuracy", "better": "higher", "interval": True},
    {"metric": "fine_tuned.loss", "better": "lower", "relative": 0.1},
]


class Repository:
    """A folder under Git with metrics, a lock and rules."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.git("init", "--quiet")
        (folder / "metrics").mkdir()
        self.rules(RULES)
        self.lock("one")

    def git(self, *arguments: str) -> None:
        identity = ("-c", "user.name=t", "-c", "user.email=t@t")
        subprocess.run(["git", *identity, *arguments], cwd=self.folder, check=True)

    def commit(self, name: str) -> None:
        self.git("add", ".")
        self.git("commit", "--quiet", "--allow-empty", "-m", name)
        self.git("tag", name)

    def metrics(self, **changes) -> None:
        content = json.dumps({**METRICS, **changes})
        (self.folder / "metrics" / "fine_tuned.json").write_text(content)

    def rules(self, rules: list[dict], test_images: str = "require") -> None:
        content = {"test_images": test_images, "rules": rules}
        (self.folder / "gate.yaml").write_text(yaml.safe_dump(content))

    def lock(self, splits: str, test_images: str | None = None) -> None:
        stages = {"split": {"outs": [{"path": "data/splits.csv", "md5": splits}]}}
        stages["fine_tune"] = {"params": {"params.yaml": {"fine_tune": {"learning_rate": 1e-05}}}}
        (self.folder / "params.yaml").write_text("fine_tune: {learning_rate: 1e-05}\n")
        if test_images is not None:
            deps = [{"path": "data/images/test", "md5": test_images}]
            stages["evaluate@head"] = {"deps": deps}
        (self.folder / "dvc.lock").write_text(yaml.safe_dump({"stages": stages}))

    def gate(self, against: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-m", "tools.gate", "--against", against],
            cwd=self.folder,
            env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(self.folder)},
            capture_output=True,
            text=True,
            timeout=60,
        )


@pytest.fixture
def repository(tmp_path) -> Repository:
    made = Repository(tmp_path)
    made.commit("before")
    made.metrics()
    made.commit("base")
    return made


@pytest.mark.parametrize(
    ("changes", "worse"),
    [
        ({}, []),
        ({"accuracy": 0.87, "loss": 0.33}, []),
        ({"accuracy": 0.95, "loss": 0.1}, []),
        ({"accuracy": 0.869}, ["fine_tuned.accuracy"]),
        ({"loss": 0.331}, ["fine_tuned.loss"]),
        ({"accuracy": 0.5, "loss": 0.9}, ["fine_tuned.accuracy", "fine_tuned.loss"]),
    ],
)
def test_only_what_is_worse_than_the_rule_allows_fails(repository, changes, worse):
    repository.metrics(**changes)
    done = repository.gate("base")
    assert done.returncode == bool(worse)
    lines = [line for line in done.stdout.splitlines() if line.startswith("fine_tuned.")]
    assert len(lines) == len(RULES)
    assert [line.split()[0] for line in lines if line.endswith("WORSE")] == worse
    assert all(name in done.stderr for name in worse)


def test_a_metric_may_be_kept_from_getting_worse_at_all(repository):
    rule = {"metric": "fine_tuned.accuracy", "better": "higher", "absolute": 0}
    repository.rules([rule])
    assert repository.gate("base").returncode == 0
    repository.metrics(accuracy=0.899)
    assert repository.gate("base").returncode == 1
    repository.rules([rule | {"relative": 0.1}])
    assert "received absolute and relative" in repository.gate("base").stderr


@pytest.mark.parametrize(
    ("against", "message"),
    [
        ("before", "metrics/fine_tuned.json is not in "),
        ("nowhere", "'nowhere' is no revision that this clone knows"),
    ],
)
def test_a_missing_baseline_fails(repository, against, message):
    done = repository.gate(against)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_an_empty_baseline_fails(repository):
    (repository.folder / "metrics" / "fine_tuned.json").write_text("")
    repository.commit("empty")
    repository.metrics()
    assert "or empty there" in repository.gate("empty").stderr


def test_a_project_in_a_folder_of_a_larger_repository_has_its_baseline(repository, monkeypatch):
    inner = repository.folder / "inner"
    (inner / "metrics").mkdir(parents=True)
    (inner / "metrics" / "head.json").write_text('{"accuracy": 0.5}')
    repository.commit("nested")
    monkeypatch.chdir(inner)
    assert revisions.read_json("HEAD", "metrics/head.json") == {"accuracy": 0.5}


@pytest.mark.parametrize("name", ["metrics/fine_tuned.json", "dvc.lock"])
def test_a_merge_conflict_is_named(repository, name):
    path = repository.folder / name
    path.write_text(f"<<<<<<< HEAD\n{path.read_text()}=======\n>>>>>>> other\n")
    done = repository.gate("base")
    assert done.returncode == 1
    assert f"error: {name} can't be read" in done.stderr
    assert "does it hold a merge conflict?" in done.stderr


@pytest.mark.parametrize("value", [float("nan"), None, "0.9"])
def test_a_value_that_is_no_number_fails(repository, value):
    repository.metrics(accuracy=value)
    done = repository.gate("base")
    assert done.returncode == 1
    assert "the work tree, metrics/fine_tuned.json: expected accuracy to be a finite" in done.stderr


def test_a_metric_that_is_not_there_fails(repository):
    repository.rules([{"metric": "fine_tuned.acuracy", "better": "higher", "absolute": 0.1}])
    done = repository.gate("base")
    assert done.returncode == 1
    assert "has no acuracy; did you mean 'accuracy'" in done.stderr


def test_other_test_images_fail_or_warn(repository):
    repository.lock("two")
    done = repository.gate("base")
    assert done.returncode == 1
    assert "measured on other test images" in done.stderr
    repository.rules(RULES, test_images="warn")
    done = repository.gate("base")
    assert done.returncode == 0
    assert "warning: neither data/splits.csv nor data/images/test is that of" in done.stdout


def test_more_images_to_train_on_leave_the_sources_own_test_split_the_same(repository):
    repository.lock("one", "tests")
    repository.commit("pictures")
    repository.lock("two", "tests")
    assert repository.gate("pictures").returncode == 0
    repository.lock("two", "others")
    assert "measured on other test images" in repository.gate("pictures").stderr


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"metric": "fine_tuned.loss", "better": "lower"}, "received none"),
        (
            {"metric": "fine_tuned.loss", "better": "lower", "absolute": 1.0, "interval": True},
            "received absolute and interval",
        ),
        ({"metric": "accuracy", "better": "higher", "absolute": 1.0}, "received 'accuracy'"),
        ({"metric": "fine_tuned.loss", "better": "less", "absolute": 1.0}, "received 'less'"),
        ({"metric": "fine_tuned.loss", "better": "lower", "interval": True}, "has no interval"),
    ],
)
def test_rules_that_say_nothing_are_refused(repository, rule, message):
    repository.rules([rule])
    done = repository.gate("base")
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_the_committed_rules_hold_for_the_committed_metrics():
    done = subprocess.run(
        [sys.executable, "-c", COMMITTED], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


COMMITTED = """
import json
from pathlib import Path
from tools import gate
read = lambda name: json.loads(Path(f"metrics/{name}.json").read_text())
verdicts = gate.judge(gate.read_gate(), read, read)
assert all(verdict.passed for verdict in verdicts)
"""


def test_a_slice_has_its_own_interval_and_its_value_may_have_a_point(repository):
    slices = {"rater": {"0.3333": {"accuracy": 0.8, "interval": {"accuracy": {"low": 0.75}}}}}
    repository.metrics(slice=slices)
    metric = "fine_tuned.slice.rater.0.3333.accuracy"
    repository.rules([{"metric": metric, "better": "higher", "interval": True}])
    repository.commit("sliced")
    for accuracy, passes in ((0.76, True), (0.74, False)):
        slices["rater"]["0.3333"]["accuracy"] = accuracy
        repository.metrics(slice=slices)
        done = repository.gate("sliced")
        assert (done.returncode == 0) == passes, done.stdout + done.stderr
        assert f"{metric}  0.8000" in done.stdout


def test_metrics_of_other_params_pass_nothing(repository):
    (repository.folder / "params.yaml").write_text("fine_tune: {learning_rate: 1e-04}\n")
    done = repository.gate("base")
    assert done.returncode == 1
    assert "another run than params.yaml asks for (fine_tune ran with another fine_tune)" in (
        done.stderr
    )


def test_a_lock_without_a_split_fails(repository):
    (repository.folder / "dvc.lock").write_text("stages: {}\n")
    done = repository.gate("base")
    assert done.returncode == 1
    assert "dvc.lock has no data/splits.csv; run `make repro`" in done.stderr
