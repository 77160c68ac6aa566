"""tools.repeat: repetitions over seeds, each run once, and their spread."""

import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from stages.common.run import UserError
from tests import ROOT
from tests.toy_project import ToyProject
from tools import repeat


def test_spread_over_seeds():
    rows = [{"accuracy": 0.8, "loss": 0.5}, {"accuracy": 0.9, "loss": 0.5}]
    lines = [line.split() for line in repeat.table(rows).splitlines()]
    assert lines[1] == ["accuracy", "0.8500", "0.0707", "0.8000", "0.9000"]
    assert lines[2] == ["loss", "0.5000", "0.0000", "0.5000", "0.5000"]


def test_a_metric_that_a_seed_lacks_has_no_spread():
    lines = repeat.table([{"accuracy": 0.8, "roc_auc": 0.9}, {"accuracy": 0.9}]).splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["accuracy"]


def test_without_a_commit_nothing_is_begun(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    for words in ([], ["git", "init", "--quiet"]):
        if words:
            subprocess.run(words, check=True)
        with pytest.raises(UserError, match=r"there is none here; `git init`.*`git commit`"):
            repeat.revisions.check_history()


def test_metrics_are_chosen_by_name():
    metrics = {"accuracy": 1.0, "roc_auc": 1.0, "slice.wafer_type.mono.accuracy": 1.0}
    assert repeat.chosen(metrics, None) == ["accuracy", "roc_auc"]
    with pytest.raises(UserError, match=r"'slice.wafer_typ.mono.accuracy'; did you mean 'slice"):
        repeat.chosen(metrics, ["slice.wafer_typ.mono.accuracy"])


def test_figures_of_a_setting_replace_those_that_are_there(tmp_path: Path):
    file = tmp_path / "results.csv"
    repeat.keep(file, "head", "none", [{"loss": 0.5}, {"loss": 0.6}])
    repeat.keep(file, "head", "seed=1", [{"loss": 0.7}])
    repeat.keep(file, "head", "none", [{"loss": 0.4}])
    assert file.read_text().splitlines() == [
        "model,change,seed,loss",
        "head,seed=1,0,0.7",
        "head,none,0,0.4",
    ]
    with pytest.raises(UserError, match="choose the same by --metrics"):
        repeat.keep(file, "head", "none", [{"accuracy": 0.4}])


def test_metrics_that_a_seed_lacks_stay_empty(tmp_path: Path, monkeypatch):
    file = tmp_path / "results.csv"
    repeat.keep(file, "head", "none", [{"loss": 0.5}, {"accuracy": 0.7, "loss": 0.6}])
    text = "model,change,seed,accuracy,loss\nhead,none,0,,0.5\nhead,none,1,0.7,0.6\n"
    assert file.read_text() == text
    monkeypatch.setattr("os.replace", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        repeat.keep(file, "head", "none", [{"accuracy": 0.1, "loss": 0.2}])
    assert file.read_text() == text  # what was there is there


@pytest.fixture
def repetitions(tmp_path, monkeypatch):
    """A function that repeats, given the metrics of each seed; it returns the seeds that ran."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(repeat.revisions, "check_history", lambda: None)
    monkeypatch.setattr(repeat, "run_once", lambda _, values: str(values["seed"]))

    def run(metrics: list[dict], *words: str) -> list[int]:
        ran = []

        def read_metrics(name: str, _) -> dict:
            ran.append(int(name))
            return metrics[int(name)]

        monkeypatch.setattr(repeat, "read_metrics", read_metrics)
        monkeypatch.setattr(sys, "argv", ["repeat", "--seeds", str(len(metrics)), *words])
        try:
            repeat.main()
        finally:
            (tmp_path / "ran").write_text(str(ran))
        return ran

    return run


@pytest.mark.parametrize("lacking", [0, 1, 2])
def test_a_seed_without_a_metric_does_not_end_the_others(repetitions, capsys, lacking):
    metrics = [{"accuracy": 0.5, "roc_auc": 0.75, "slice.a": 0.25} for _ in range(3)]
    del metrics[lacking]["roc_auc"]
    assert repetitions(metrics, "--metrics", "roc_auc", "slice.a", "--csv", "kept.csv") == [0, 1, 2]
    assert capsys.readouterr().out.count(f"warning: seed {lacking} has no roc_auc\n") == 1
    rows = Path("kept.csv").read_text().splitlines()
    assert rows[0] == "model,change,seed,roc_auc,slice.a"
    area = ["0.75", "0.75", "0.75"]
    area[lacking] = ""
    assert rows[1:] == [f"fine_tuned,none,{seed},{area[seed]},0.25" for seed in range(3)]


def test_a_metric_that_one_seed_alone_has_is_kept_in_its_place(repetitions):
    metrics = [{"accuracy": 0.5, "loss": 1.0}, {"accuracy": 0.5, "roc_auc": 0.75, "loss": 1.0}]
    repetitions(metrics, "--csv", "kept.csv")
    repetitions(metrics[:1], "--model", "head", "--csv", "kept.csv")
    assert Path("kept.csv").read_text().splitlines() == [
        "model,change,seed,accuracy,roc_auc,loss",
        "fine_tuned,none,0,0.5,,1.0",
        "fine_tuned,none,1,0.5,0.75,1.0",
        "head,none,0,0.5,,1.0",
    ]


def test_a_name_of_no_metric_ends_at_the_first_seed(repetitions, tmp_path):
    with pytest.raises(UserError, match=r"no metric is named 'slice\.b'; did you mean 'slice\.a'"):
        repetitions([{"slice.a": 0.25}] * 3, "--metrics", "slice.a", "slice.b")
    assert (tmp_path / "ran").read_text() == "[0]"


def test_a_file_that_can_not_take_the_results_ends_at_the_first_seed(repetitions, tmp_path, capsys):
    Path("kept.csv").write_text("model,change,seed,loss\n")
    with pytest.raises(UserError, match=r"kept\.csv has columns .*, loss, and these results"):
        repetitions([{"accuracy": 0.5, "loss": 1.0}] * 3, "--csv", "kept.csv")
    assert (tmp_path / "ran").read_text() == "[0]"
    Path("kept").mkdir()
    with pytest.raises(SystemExit):
        repetitions([{"accuracy": 0.5}] * 3, "--csv", "kept")
    assert "--csv: expected a file, received the folder kept" in capsys.readouterr().err
    assert (tmp_path / "ran").read_text() == "[]"


def test_an_edit_while_seeds_run_ends_the_repetition(repetitions, monkeypatch):
    """DVC takes the work tree as it is at each start: one mean would be of two settings."""
    for words in (["init", "--quiet"], ["add", "params.yaml"]):
        subprocess.run(["git", *words], check=True)
    Path("notes.txt").write_text("of nobody's interest")
    edits = [lambda: Path("notes.txt").write_text("more"), lambda: edit_params("dropout: 0.7")]

    def run_once(_, values: dict) -> str:
        edits[values["seed"]]()
        return str(values["seed"])

    def edit_params(line: str) -> None:
        path = Path("params.yaml")
        path.write_text(re.sub(r"dropout: [\d.]+", line, path.read_text(), count=1))

    monkeypatch.setattr(repeat, "run_once", run_once)
    with pytest.raises(UserError, match=r"params\.yaml or data changed while experiments ran"):
        repetitions([{"accuracy": 0.5}] * 3)
    assert Path("ran").read_text() == "[0, 1]"


def test_a_value_that_dvc_would_misread_starts_nothing(repetitions):
    weights = "{a: 1.0, 猫: 2.0}"
    with pytest.raises(UserError, match=r"train_head\.class_weights: DVC can't be handed .*猫"):
        repetitions([{"accuracy": 0.5}], "-S", f"train_head.class_weights={weights}")
    assert Path("ran").read_text() == "[]"


def test_a_seed_that_would_be_ignored_is_refused(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["repeat", "--seeds", "1", "-S", "seed=7"])
    monkeypatch.setattr(repeat.revisions, "check_history", lambda: None)
    with pytest.raises(UserError, match="received seed, which --seeds sets"):
        repeat.main()


def test_a_shallow_clone_is_refused_before_the_work(tmp_path, monkeypatch):
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@t"]
    (tmp_path / "whole").mkdir()
    (tmp_path / "whole" / "a").write_text("a")
    for words in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "-m", "one"]):
        subprocess.run([*git, *words], cwd=tmp_path / "whole", check=True)
    monkeypatch.chdir(tmp_path / "whole")
    repeat.revisions.check_history()
    clone = ["clone", "--quiet", "--depth", "1", f"file://{tmp_path}/whole", tmp_path / "shallow"]
    subprocess.run([*git, *clone], check=True)
    monkeypatch.chdir(tmp_path / "shallow")
    with pytest.raises(UserError, match=r"`git fetch --unshallow` completes it"):
        repeat.revisions.check_history()


def test_an_experiment_can_be_ended_where_the_tool_ignores_ctrl_c(monkeypatch):
    """As all jobs in the background of a script do, and what they start."""
    ignoring = signal.signal(signal.SIGINT, signal.SIG_IGN)
    start = subprocess.Popen
    monkeypatch.setattr(repeat.experiment, "dvc", lambda *words: "")
    monkeypatch.setattr(repeat.experiment, "untracked_data", lambda chosen: [])
    sleep = [sys.executable, "-c", "import time; print(flush=True); time.sleep(99)"]
    monkeypatch.setattr(
        repeat.experiment.subprocess, "Popen", lambda words, **options: start(sleep, **options)
    )
    try:
        process = repeat.experiment.start("name", "train_head", {})
    finally:
        signal.signal(signal.SIGINT, ignoring)
    process.stdout.readline()
    repeat.experiment.end(process)
    assert process.returncode != -signal.SIGKILL  # DVC would clean nothing up


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_an_experiment_ends_with_the_tool_that_is_told_to_end(number):
    """DVC stands in as a program that never ends; experiment.end ends it."""
    script = """if True:
        import subprocess, sys
        from stages.common.run import run
        from tools import experiment, repeat
        start = subprocess.Popen
        endless = (
            "import os, signal, time; signal.signal(signal.SIGINT, signal.SIG_DFL); "
            "print(os.getpid()); time.sleep(99)"  # also where a job in the background ignores it
        )
        sleep = [sys.executable, "-u", "-c", endless]
        experiment.subprocess.Popen = lambda words, **options: start(sleep, **options)
        experiment.dvc = repeat.sweep.dvc = lambda *words: ""
        experiment.untracked_data = lambda chosen: []
        repeat.name_of = lambda *parts: "name"
        run(lambda: repeat.run_once("train_head", {}))
    """
    tool = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    experiment_process = psutil.Process(int(tool.stdout.readline()))
    tool.send_signal(number)
    assert b"interrupted" in tool.communicate(timeout=60)[1]
    assert tool.returncode == 130
    assert not experiment_process.is_running()


def test_a_repetition_after_an_edit_is_another_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@t"]
    (tmp_path / "code.py").write_text("seed: 0\n")
    (tmp_path / ".gitignore").write_text("/own\n")
    (tmp_path / "params.yaml").write_text(
        "seed: 0\ndataset: {path: own}\nbackbone: {own_weights: mine}\n"
    )
    (tmp_path / "own").mkdir()
    for words in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "-m", "base"]):
        subprocess.run([*git, *words], check=True)
    before = repeat.name_of("evaluate@head", {"seed": 0})
    assert repeat.name_of("evaluate@head", {"seed": 0}) == before
    (tmp_path / "own" / "new.png").write_bytes(b"")
    with_data = repeat.name_of("evaluate@head", {"seed": 0})
    assert with_data != before
    (tmp_path / "code.py").write_bytes(b"seed: 1 # caf\xe9\n")  # a diff that is no UTF-8
    assert repeat.name_of("evaluate@head", {"seed": 0}) not in (before, with_data)


def test_what_may_be_refused_in_the_end_is_said_before_the_work(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    repeat.check_names("head", ["acuracy"], None)  # nothing to know it by
    (tmp_path / "metrics").mkdir()
    (tmp_path / "metrics" / "head.json").write_text('{"accuracy": 0.5, "slice": {"a": {"b": 1}}}')
    repeat.check_names("head", ["accuracy", "slice.a.b"], None)
    assert capsys.readouterr().out == ""
    repeat.check_names("head", ["acuracy"], None)  # other params may bring it
    assert "no metric is named 'acuracy'; did you mean 'accuracy'" in capsys.readouterr().out
    (tmp_path / "kept.csv").write_text("model,change,seed,loss\n")
    with pytest.raises(UserError, match="columns model, change, seed, loss, and these results mod"):
        repeat.check_names("head", ["accuracy"], tmp_path / "kept.csv")


@pytest.mark.slow
def test_a_repetition_is_run_once_and_leaves_the_work_tree_alone(tmp_path):
    project = ToyProject(tmp_path)
    project.set_params({"train_head": {"epochs": 3}})
    project.repro("evaluate@head")
    project.commit("results")

    def run() -> str:
        done = subprocess.run(
            [sys.executable, "-m", "tools.repeat", "--seeds", "2", "--model", "head"],
            cwd=project.folder,
            env=project.environment,
            capture_output=True,
            text=True,
            timeout=500,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    printed = run()
    assert "Running stage 'train_head'" in printed
    assert "fine_tune" not in printed
    again = run()
    assert "Running stage" not in again
    assert again.splitlines()[-3:] == printed.splitlines()[-3:]
    accuracy = json.loads((tmp_path / "metrics" / "head.json").read_text())["accuracy"]
    (line,) = [line for line in again.splitlines() if line.startswith("accuracy")][-1:]
    low, high = map(float, line.split()[-2:])
    assert low <= accuracy + 5e-5  # seed 0 is the run in the work tree
    assert high >= accuracy - 5e-5
    status = subprocess.run(
        ["git", "status", "--porcelain"], cwd=project.folder, capture_output=True, text=True
    ).stdout
    assert "params.yaml" not in status
