"""tools.search: the space is checked; a search runs, ends early, goes on, and writes a preset."""

import contextlib
import itertools
import re
import shutil
import subprocess
import sys
from pathlib import Path

import dvc.api
import pytest
import yaml

from stages.common import params
from stages.common.run import UserError
from tests import ROOT
from tests.toy_project import ToyProject
from tools import experiment, search


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def space(folder: Path, **params_) -> Path:
    path = folder / "space.yaml"
    content = {"stage": "fine_tune", "trials": 3, "params": params_}
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.parametrize(
    ("name", "choices", "message"),
    [
        ("fine_tune.learning_rat", [1.0], r"no such key; did you mean 'fine_tune.learning_rate'"),
        ("split.train", [0.5], r"split\.train: expected a param of preprocess, backbone, extract"),
        (
            "fine_tune.label_smoothing",
            [0.0, 0.1],
            r"label_smoothing: expected params that leave the validation loss what it is",
        ),
        ("fine_tune.optimizer", ["adamw", "adamm"], r"optimizer=adamm.*did you mean 'adam'"),
        ("fine_tune.learning_rate", {"low": 0.1, "high": 0.01}, r"expected low below high"),
        ("fine_tune.learning_rate", {"low": -1.0, "high": 1.0}, r"learning_rate=-1\.0"),
        ("fine_tune.class_weights", [None, {"é": 1.0}], r"DVC can't be handed {'é': 1.0} \("),
        (
            "fine_tune.learning_rate",
            0.1,
            r"learning_rate: expected a list of values, or low and",
        ),
    ],
)
def test_mistakes_in_a_space_are_told_before_anything_runs(folder, name, choices, message):
    with pytest.raises(UserError, match=message):
        search.read_space(space(folder, **{name: choices}))


def test_the_committed_spaces_are_sound(monkeypatch):
    monkeypatch.chdir(ROOT)
    spaces = sorted((ROOT / "searches").glob("*.yaml"))
    assert spaces
    for path in spaces:
        found = search.read_space(path)
        assert search.present_values(found) is not None  # the present is one of the trials


def test_a_head_is_not_searched_by_what_acts_after_it(folder):
    path = folder / "space.yaml"
    path.write_text("stage: train_head\ntrials: 1\nparams:\n  fine_tune.epochs: [1, 2]\n")
    with pytest.raises(UserError, match=r"expected a param of .*train_head, which alone"):
        search.read_space(path)


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ({"early_stopping_patience": None, "averaged_epochs": None}, 0.9),
        ({"early_stopping_patience": 5, "averaged_epochs": None}, 0.2),
        ({"early_stopping_patience": None, "averaged_epochs": 2}, 0.25),
        ({"early_stopping_patience": None, "averaged_epochs": None, "solver": "lbfgs"}, 0.2),
    ],
)
def test_the_loss_of_a_trial_is_that_of_the_model_it_keeps(section, expected):
    assert search.kept_loss([0.3, 0.2, 0.9], section) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1e-05, "1e-05"),
        (2.5e-05, "2.5e-05"),
        (0.1, "0.1"),
        (None, "null"),
        (True, "true"),
        ("données", '"données"'),
        (r"regex:block\d", r'"regex:block\d"'),
        ('a "quote"', r'"a \"quote\""'),
        ("ends in \\", r'"ends in \\"'),
        ({"functional": 1, "defective": 2.0}, "{functional:1,defective:2.0}"),
        ({"yes": 1, "a:b": 1, "a, (b) = [c]": 2}, r"{yes:1,a\:b:1,a\,\ \(b\)\ \=\ \[c\]:2}"),
        ([[1, "none"], [4, "all"]], '[[1,"none"],[4,"all"]]'),
    ],
)
def test_values_reach_params_as_they_are(tmp_path, value, expected):
    from dvc.utils.hydra import apply_overrides

    assert experiment.as_override(value) == expected
    path = tmp_path / "params.yaml"
    path.write_text("key: 0\n")
    apply_overrides(path, [f"key={expected}"])
    assert params.read(path) == {"key": value}


@pytest.mark.slow
def test_a_search_goes_on_writes_a_preset_and_leaves_the_work_tree_alone(tmp_path):
    import optuna

    project = ToyProject(tmp_path)
    project.set_params({"train_head": {"epochs": 3}, "fine_tune": {"epochs": 6, "unfreeze": "all"}})
    file = space(project.folder, **{"fine_tune.learning_rate": [1.0e-3, 2.0e-3, 30.0]})
    project.repro()
    project.commit("results")

    def run(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "tools.search", str(file), *words],
            cwd=project.folder,
            env=project.environment,
            capture_output=True,
            text=True,
            timeout=500,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    printed = run("--trials", "2")
    assert "trial 1 of 2: {'fine_tune.learning_rate': 0.001}" in printed  # what there is, first
    assert printed.count("epoch 6/6") == 1  # which has been trained
    storage = f"sqlite:///{project.folder / '.search' / file.stem}.db"
    first = optuna.load_study(study_name=file.stem, storage=storage).trials[0]
    # From DVC's cache; others are held to it all the same.
    assert list(first.intermediate_values) == list(range(1, 7))
    printed = run("--trials", "3", "--preset", "best")
    assert "trial 3 of 3" in printed
    assert "trial 2 of 3" not in printed
    preset = yaml.safe_load((project.folder / "presets" / "best.yaml").read_text())
    assert preset["fine_tune"]["learning_rate"] in (1.0e-3, 2.0e-3)
    status = subprocess.run(
        ["git", "status", "--porcelain"], cwd=project.folder, capture_output=True, text=True
    ).stdout.split()
    assert set(status) <= {"??", ".search/", "presets/best.yaml", "metrics/"}
    assert len(project.run("dvc", "exp", "list", "--name-only", "--all").split()) >= 3


@pytest.mark.slow
def test_an_experiment_runs_only_what_depends_on_its_values(tmp_path, monkeypatch):
    project = ToyProject(tmp_path)
    project.set_params({"train_head": {"epochs": 3}})
    project.repro("train_head")
    project.commit("head")
    monkeypatch.chdir(project.folder)
    monkeypatch.setenv("PATH", project.environment["PATH"])
    for rate in (2.0e-3, 3.0e-3):  # the second in place of the first
        process = experiment.start("one", "train_head", {"train_head.learning_rate": rate})
        printed = process.stdout.read()
        assert process.wait() == 0, printed
        assert re.findall(r"Running stage '(\w+)'", printed) == ["train_head"]
        assert project.run("dvc", "exp", "list", "--name-only").split()[-1] == "one"
        content = yaml.safe_load(dvc.api.read("params.yaml", rev="one"))
        assert content["train_head"]["learning_rate"] == rate


@pytest.mark.slow
def test_an_experiment_is_ended_when_it_is_told_to(tmp_path, monkeypatch):
    project = ToyProject(tmp_path)
    project.set_params({"train_head": {"epochs": 3}, "fine_tune": {"epochs": 400}})
    project.repro("train_head")
    project.commit("head")
    monkeypatch.chdir(project.folder)
    monkeypatch.setenv("PATH", project.environment["PATH"])
    seen = []

    def on_epoch(epoch: int, loss: float) -> bool:
        seen.append(epoch)
        return epoch == 3

    values = {"fine_tune.learning_rate": 1.0e-3}
    assert search.run_experiment("ended", "fine_tune", values, on_epoch) is None
    assert seen == [1, 2, 3]
    # DVC's locks are free: the next command works at once.
    assert "ended" not in project.run("dvc", "exp", "list", "--name-only")


@pytest.mark.slow
def test_a_trial_that_fails_is_left_behind(folder, monkeypatch, capsys):
    """One that diverges, or whose values params.yaml refuses together, would else end every run."""
    import optuna

    path = space(folder, **{"fine_tune.learning_rate": {"low": 1e-4, "high": 1.0, "log": True}})

    def studied():
        return optuna.load_study(study_name=path.stem, storage=f"sqlite:///.search/{path.stem}.db")

    outcomes = iter([UserError("training diverged"), 0.5, UserError("diverged"), None, 0.3])

    def run_experiment(*_):
        outcome = next(outcomes)
        if isinstance(outcome, UserError):
            raise outcome
        return outcome

    monkeypatch.setattr(search.revisions, "check_history", lambda: None)
    monkeypatch.setattr(search, "run_experiment", run_experiment)
    monkeypatch.setattr("sys.argv", ["search", str(path), "--trials", "3"])
    search.main()
    printed = capsys.readouterr().out
    assert "failed: training diverged" in printed
    assert "ended early" in printed
    states = [trial.state.name for trial in studied().trials]
    assert states == ["FAIL", "COMPLETE", "FAIL", "PRUNED", "COMPLETE"]

    outcomes = itertools.repeat(UserError("no space left"))
    monkeypatch.setattr("sys.argv", ["search", str(path), "--trials", "9"])
    with pytest.raises(UserError, match="3 trials in a row failed, the last: no space left"):
        search.main()
    assert not studied().get_trials(states=[optuna.trial.TrialState.RUNNING])


@pytest.fixture
def run_search(folder, monkeypatch):
    """Runs a search in which no training takes place; gives the values of each trial."""
    monkeypatch.setattr(search.revisions, "check_history", lambda: None)
    ran = []

    def run_experiment(name, stage, values, on_epoch):
        ran.append(values)
        losses = [0.5] * 40 if len(ran) <= search.UNPRUNED_TRIALS else [0.9] * 40
        ended = any(on_epoch(epoch, loss) for epoch, loss in enumerate(losses, start=1))
        return None if ended else losses[-1]

    monkeypatch.setattr(search, "run_experiment", run_experiment)

    def run(*words: str) -> list[dict]:
        monkeypatch.setattr("sys.argv", ["search", "space.yaml", *words])
        search.main()
        return ran

    return run


@pytest.mark.slow
def test_a_search_that_goes_on_tries_new_values(folder, run_search):
    space(folder, **{"fine_tune.learning_rate": {"low": 1e-4, "high": 1.0, "log": True}})
    for trials in ("3", "5", "7"):
        tried = run_search("--trials", trials)
    assert len({values["fine_tune.learning_rate"] for values in tried}) == 7


@pytest.mark.slow
def test_trials_that_are_worse_than_the_others_are_ended(folder, run_search, capsys):
    space(folder, **{"fine_tune.learning_rate": {"low": 1e-4, "high": 1.0, "log": True}})
    run_search("--trials", "6")
    assert capsys.readouterr().out.count("ended early") == 2


def edit(folder: Path, section: str, **changes) -> None:
    content = yaml.safe_load((folder / "params.yaml").read_text())
    content[section].update(changes)
    (folder / "params.yaml").write_text(yaml.safe_dump(content))


@pytest.mark.slow
def test_a_search_goes_on_where_nothing_changed_that_its_losses_depend_on(folder, run_search):
    path = space(folder, **{"train_head.learning_rate": {"low": 1e-4, "high": 1e-2}})
    file = path.read_text().replace("fine_tune", "train_head", 1)
    path.write_text(file)
    run_search("--trials", "1")
    edit(folder, "train_head", learning_rate=0.005)  # as the preset that was found does
    edit(folder, "fine_tune", epochs=3)  # which acts later
    path.write_text(file.replace("trials: 3", "trials: 2"))
    assert len(run_search()) == 2
    edit(folder, "train_head", dropout=0.3)
    with pytest.raises(UserError, match="was begun with other params, values, stage, data or code"):
        run_search("--trials", "3")
    edit(folder, "train_head", dropout=0.2)
    code = folder / "stages" / "train_head.py"
    code.parent.mkdir()
    code.write_text("print('other')")
    with pytest.raises(UserError, match="was begun with other params, values, stage, data or code"):
        run_search("--trials", "3")


@pytest.mark.slow
def test_a_search_does_not_go_on_with_other_data(folder, run_search):
    """Also where Git holds the table, so that the edit may be committed meanwhile."""
    (folder / "table.csv").write_text("path,label\na.png,cat\n")
    edit(folder, "dataset", name="image_table", path="table.csv")
    for words in (["init", "--quiet"], ["add", "."]):
        subprocess.run(["git", *words], check=True)
    space(folder, **{"train_head.learning_rate": [1e-3, 1e-2]})
    run_search("--trials", "1")
    (folder / "table.csv").write_text("path,label\na.png,dog\n")
    subprocess.run(["git", "add", "."], check=True)
    with pytest.raises(UserError, match="was begun with other params, values, stage, data or code"):
        run_search("--trials", "2")


@pytest.mark.slow
def test_an_edit_while_trials_run_ends_the_search(folder, run_search, monkeypatch):
    subprocess.run(["git", "init", "--quiet"], check=True)
    subprocess.run(["git", "add", "params.yaml"], check=True)
    space(folder, **{"train_head.learning_rate": [1e-3, 1e-2]})
    train = search.run_experiment

    def edited(*arguments):
        edit(folder, "train_head", dropout=0.3)
        return train(*arguments)

    monkeypatch.setattr(search, "run_experiment", edited)
    with pytest.raises(UserError, match=r"params\.yaml or data changed while experiments ran"):
        run_search("--trials", "3")
    edit(folder, "train_head", dropout=0.2)
    monkeypatch.setattr(search, "run_experiment", train)
    assert len(run_search("--trials", "3")) == 3  # the first was kept


@pytest.mark.parametrize(
    ("value", "is_handed"),
    [
        (None, True),
        ("balanced", True),
        ({"cat": 1.0, "a b": 0.5, "(1)": 2}, True),
        ({"cat": 1.0, "1": 2.0}, True),
        ({"cat": 1.0, "null": 2.0}, False),
        ({"cat": 1.0, "猫": 2.0}, False),
        ({"cat": 1.0, "it's": 2.0}, False),
        ({"cat": 1.0, "2.50": 2.0}, False),
        ("${seed}", False),
    ],
)
def test_values_that_dvc_would_misread_are_refused(folder, value, is_handed):
    refused = contextlib.nullcontext() if is_handed else pytest.raises(UserError, match="handed")
    with refused:
        experiment.check_handed({"fine_tune.class_weights": value})


def test_a_mapping_is_refused_where_dvc_would_add_to_the_one_that_is_there(folder):
    edit(folder, "fine_tune", class_weights={"cat": 1.0, "dog": 2.0})
    with pytest.raises(UserError, match="adds a mapping to the one that is there"):
        experiment.check_handed({"fine_tune.class_weights": {"cat": 3.0}})


def test_a_search_that_runs_is_left_alone(folder):
    with search.hold("space"), pytest.raises(UserError, match="runs in another process; wait"):
        search.hold("space")
    search.hold("space").close()


def test_values_that_params_refuse_together_start_nothing(folder):
    values = {"fine_tune.augment.mixup": 0.2, "fine_tune.augment.cutmix": 1.0}
    with pytest.raises(UserError, match=r"of the trial t, fine_tune.augment: mixup and cutmix"):
        search.run_experiment("t", "fine_tune", values, lambda *_: False)


def test_what_can_not_name_experiments_starts_nothing(folder, monkeypatch):
    path = space(folder, **{"fine_tune.learning_rate": [1e-3]})
    path.rename(folder / "my space.yaml")
    monkeypatch.setattr(sys, "argv", ["search", "my space.yaml"])
    with pytest.raises(UserError, match=r"my space\.yaml: expected a name of letters, digits"):
        search.main()
    assert not (folder / ".search").exists()


@pytest.mark.parametrize("name", ["presets/found.yaml", "found.yaml", "mine/found", ""])
def test_a_preset_that_can_not_be_written_starts_nothing(folder, monkeypatch, name):
    space(folder, **{"fine_tune.learning_rate": [1e-3]})
    monkeypatch.setattr(sys, "argv", ["search", "space.yaml", "--preset", name])
    message = f"--preset: expected a name of letters, .*received {name!r}; give the name alone"
    with pytest.raises(UserError, match=message):
        search.main()
    assert not (folder / ".search").exists()


@pytest.mark.slow
def test_trials_that_failed_are_not_counted_among_those_that_the_best_is_of(folder):
    import optuna

    path = space(folder, **{"fine_tune.learning_rate": {"low": 1e-4, "high": 1e-2}})
    study = optuna.create_study()
    for state in ("COMPLETE", "FAIL", "PRUNED", "FAIL"):
        trial = study.ask()
        trial.suggest_float("fine_tune.learning_rate", 1e-4, 1e-2)
        state = optuna.trial.TrialState[state]
        study.tell(trial, 0.5 if state == optuna.trial.TrialState.COMPLETE else None, state=state)
    assert "the best of 2 trials" in search.preset_text("s", study, search.read_space(path))


@pytest.mark.slow
def test_a_search_in_another_space_is_not_mixed_with_the_first(folder):
    search.open_study("s", 0, 40, "one space")
    search.open_study("s", 0, 40, "one space")
    with pytest.raises(UserError, match=r"other params, .* data or code, .* remove \.search/s\.db"):
        search.open_study("s", 0, 40, "another space")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("losses", "ended_after"),
    [
        ([9.0] * 13 + [0.3] * 27, None),  # the start says nothing of the end
        ([0.6] * 40, 14),
        ([0.35] * 20 + [0.6] * 20, None),  # its best one counts
    ],
)
def test_a_trial_is_judged_past_its_start_and_by_its_best_epoch(folder, losses, ended_after):
    study = search.open_study("s", 0, 40)
    for number in range(search.UNPRUNED_TRIALS):
        trial = study.ask()
        for epoch in range(1, 41):
            trial.report(0.4 + 0.01 * number, epoch)
        study.tell(trial, 0.4)
    trial = study.ask()
    for epoch, loss in enumerate(losses, start=1):
        trial.report(loss, epoch)
        if trial.should_prune():
            assert epoch == ended_after
            return
    assert ended_after is None
