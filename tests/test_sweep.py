"""tools.sweep: two workers, four experiments, and which GPU a worker sees."""

import itertools
import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from stages.common import params
from stages.common.run import UserError
from tests.toy_project import ToyProject
from tools import sweep

STATUS = """Task     Name    Created    Status
1a2b3c4  dusty-Failed        11:01 AM   Running
2a2b3c4          11:01 AM   Queued
3a2b3c4  fine    10:58 AM   Success
4a2b3c4          10:57 AM   Failed

Worker status: 1 active, 1 idle
"""


def test_states_and_workers_are_read_from_the_queue():
    assert sweep.tasks(STATUS) == Counter(Running=1, Queued=1, Success=1, Failed=1)
    assert sweep.answering_workers(STATUS) == 2
    assert sweep.answering_workers("No experiment tasks in the queue.") == 0


@pytest.mark.parametrize(
    ("workers", "available", "expected"),
    [
        (None, [], [None]),
        (3, [], [None, None, None]),
        (None, ["0", "1"], ["0", "1"]),
        (1, ["2", "5"], ["2"]),
    ],
)
def test_each_worker_has_a_gpu_of_its_own(workers, available, expected):
    assert sweep.devices(workers, available) == expected


def test_more_workers_than_gpus_are_refused():
    with pytest.raises(UserError, match="expected at most 2, the number of GPUs, received 3"):
        sweep.devices(3, ["0", "1"])


def test_gpus_are_those_that_are_visible(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert sweep.gpus() == ["3", "5"]
    for none in ("", "-1", "NoDevFiles"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", none)
        assert sweep.gpus() == []


@pytest.mark.parametrize("before", ["", "params.yaml:", "++"])
@pytest.mark.parametrize("values", ["data/a,'data/b'", "choice(data/a,data/b)"])
def test_the_data_of_a_grid_is_found_however_it_is_written(before, values):
    changes = [f"{before}dataset.path={values}", "seed=range(2)"]
    found = sweep.data_of(sweep.combinations(changes))
    assert found["dataset.path"] == ["data/a", "data/b"]
    assert found["dataset.name"] == ["elpv"]  # as in params.yaml


def test_data_and_weights_that_git_does_not_hold_are_copied(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    subprocess.run(["git", "init", "--quiet"], check=True)
    (tmp_path / ".gitignore").write_text("data/\nmine/\n")
    for name in ("data/own/a.png", "data/other.zip", "mine/b0.keras", "tracked.csv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "data" / "own" / "README.md").write_text("put your images here")
    tracked = ("tracked.csv", ".gitignore", "data/own/README.md")
    subprocess.run(["git", "add", "--force", *tracked], check=True)
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@t"]
    subprocess.run([*git, "commit", "--quiet", "-m", "base"], check=True)
    (tmp_path / "params.yaml").write_text(
        "dataset: {path: data/own}\nbackbone: {weights: imagenet, own_weights: mine}\n"
    )
    # Beside what Git holds, which is there already.
    assert sweep.untracked_data({}) == ["data/own/a.png", "mine"]
    chosen = {"dataset.path": ["data/other.zip", "tracked.csv", "data/own"]}
    assert sweep.untracked_data(chosen) == ["data/other.zip", "data/own/a.png", "mine"]
    monkeypatch.setattr(sweep, "MOST_COPIES", 1)
    with pytest.raises(UserError, match=r"expected at most 1 files .*, received 2; put them"):
        sweep.untracked_data({})
    (tmp_path / "data" / "own" / ".DS_Store").write_text("left behind")
    before = sweep.state_of(["data/own", "tracked.csv"])
    names = [name for name, _, _ in before]
    assert names == ["data/own/README.md", "data/own/a.png", "tracked.csv"]
    (tmp_path / "data" / "own" / "a.png").write_text("other")
    assert sweep.state_of(["data/own", "tracked.csv"]) != before


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A project of which Git holds params.yaml alone; a function writes what lies beside it."""
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    subprocess.run(["git", "init", "--quiet"], check=True)

    def write(dataset: str, *names: str, tracked: tuple[str, ...] = (".gitignore", "params.yaml")):
        (folder / ".gitignore").write_text("/.venv\n/data/own\n/data/raw\n")
        (folder / "params.yaml").write_text(f"dataset: {dataset}\nbackbone: {{own_weights: own}}\n")
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text("x")
        subprocess.run(["git", "add", "--force", *tracked], check=True)
        git = ["git", "-c", "user.name=t", "-c", "user.email=t@t"]
        subprocess.run([*git, "commit", "--quiet", "-m", "base"], check=True)

    return write


def files_of_an_experiment(values: dict, folder: Path) -> set[str]:
    """All files beside the tracked ones that an experiment has in a folder of its own."""
    from dvc.repo.experiments.executor.base import BaseExecutor

    subprocess.run(["git", "clone", "--quiet", ".", folder], check=True)
    there = set(folder.rglob("*"))
    for path in sweep.untracked_data(values):
        BaseExecutor._copy_path(str(Path(path).absolute()), str(folder / path))
    return {
        path.relative_to(folder).as_posix()
        for path in set(folder.rglob("*")) - there
        if path.is_file()
    }


def test_a_file_in_a_folder_that_git_does_not_hold_reaches_its_experiments(repository, tmp_path):
    repository("{path: sets/new/cells.zip}", "sets/new/cells.zip", "sets/old.zip", "sets/new/b.zip")
    assert "sets/new/cells.zip" in files_of_an_experiment({}, tmp_path / "one")
    assert sweep.untracked_data({}) == ["sets/new"]
    grid = {"dataset.path": ["sets/new/cells.zip", "sets/old.zip", "sets/new/b.zip"]}
    assert files_of_an_experiment(grid, tmp_path / "grid") >= {*grid["dataset.path"]}
    here = {"dataset.path": [str(Path("sets/old.zip").absolute())]}
    assert "sets/old.zip" in files_of_an_experiment(here, tmp_path / "absolute")


def test_a_path_that_leads_out_of_the_repository_is_refused(repository, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_text("x")
    repository("{path: ../photos}")
    with pytest.raises(
        UserError,
        match=r"dataset\.path: expected a path inside .*received \.\./photos, .*give /.*/photos,",
    ):
        sweep.untracked_data({})
    with pytest.raises(UserError, match=r"backbone\.own_weights: .* received \.\./nets"):
        sweep.untracked_data({"dataset.path": ["."], "backbone.own_weights": ["../nets"]})
    assert sweep.untracked_data({"dataset.path": [str(tmp_path / "photos")]}) == []


def test_what_lies_behind_a_link_reaches_its_experiments(repository, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "cells.zip").write_text("x")
    (tmp_path / "project" / "data").mkdir()
    (tmp_path / "project" / "data" / "own").symlink_to(tmp_path / "disk")
    repository("{path: data/own/cells.zip}")
    assert files_of_an_experiment({}, tmp_path / "one") == {"data/own/cells.zip"}


@pytest.mark.parametrize("tracked", [(), ("data/own/list.csv",)])
def test_the_images_of_a_table_reach_its_experiments(repository, tmp_path, tracked):
    names = ("data/own/list.csv", "data/own/a.png", "data/own/deep/b.png", "data/raw/huge")
    tracked = (".gitignore", "params.yaml", *tracked)
    repository("{name: elpv, path: data/own/list.csv}", *names, tracked=tracked)
    images = {"data/own/a.png", "data/own/deep/b.png"}
    grid = {"dataset.name": ["elpv", "image_table"]}
    assert files_of_an_experiment(grid, tmp_path / "one") - {"data/own/list.csv"} == images


@pytest.mark.parametrize("folder", ["", "data/"])
def test_a_table_beside_the_projects_own_files_brings_no_environment(repository, tmp_path, folder):
    names = (f"{folder}list.csv", f"{folder}pictures/a.png", ".venv/python", "data/raw/huge")
    kept = (".gitignore", "params.yaml", "data/kept")
    repository(f"{{name: image_table, path: {folder}list.csv}}", *names, "data/kept", tracked=kept)
    assert files_of_an_experiment({}, tmp_path / "one") == {*names[:2]}


def test_an_edit_behind_a_link_is_seen(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "notes.txt").write_text("x")
    (tmp_path / "disk" / ".hidden").write_text("x")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "cat").symlink_to(tmp_path / "disk")
    (tmp_path / "own" / "cat" / "above").symlink_to(tmp_path / "own")  # has no end
    (tmp_path / "own" / "gone").symlink_to(tmp_path / "nothing")
    (state,) = sweep.state_of([str(tmp_path / "own")])
    assert state[:2] == (f"{tmp_path}/own/cat/notes.txt", 1)


def grown(state: Callable[[], str], *edits: Callable[[], object]) -> list[bool]:
    """Whether the state is another one after each edit."""
    states = [state()]
    for edit in edits:
        edit()
        states.append(state())
    return [later != earlier for earlier, later in itertools.pairwise(states)]


def state_of_data() -> str:
    return sweep.data_state([params.read()])


def test_edits_of_data_are_seen_wherever_it_lies(repository, tmp_path):
    away = tmp_path / "away"
    away.mkdir()
    (away / "one.png").write_text("1")
    repository(f"{{path: {away}}}", "own/weights.h5", "lists/held.csv")
    assert grown(
        state_of_data,
        lambda: (away / "two.png").write_text("2"),  # out of the repository
        lambda: Path("own/weights.h5").write_text("y"),
        lambda: Path("lists/held.csv").write_text("y"),  # of nobody's interest
    ) == [True, True, False]


@pytest.mark.parametrize("path", ["photos", "link", "lists/../photos", "absolute"])
def test_what_git_holds_counts_by_its_bytes(repository, path):
    """DVC writes edited files anew at the start of an experiment, which moves their time."""
    path = str(Path("photos").absolute()) if path == "absolute" else path
    repository(f"{{path: {path}}}", "photos/a.png", "lists/t.csv", tracked=(".",))
    Path("link").symlink_to("photos")
    file = Path("photos/a.png")
    file.write_text("y")
    before = file.stat()

    def with_the_same_time() -> None:
        file.write_text("z")
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))

    later = (before.st_atime_ns, before.st_mtime_ns + 10**9)
    assert grown(
        state_of_data,
        lambda: os.utime(file, ns=later),
        lambda: subprocess.run(["git", "add", "."], check=True),
        with_the_same_time,
    ) == [False, False, True]


def test_edits_of_images_that_a_table_names_are_seen(repository, tmp_path):
    away = tmp_path / "away.png"
    away.write_text("1")
    columns = "image_table: {path_column: file}"
    names = ("lists/near.png", "photos/held.png")
    tracked = (".gitignore", "params.yaml", "photos/held.png")
    dataset = f"{{name: image_table, path: lists/t.csv, {columns}}}"
    repository(dataset, *names, tracked=tracked)
    missing = ("https://example.com/far.png", "gone.png", "long" * 100, "a\0b.png", "../photos")
    rows = [str(away), "near.png", "../photos/held.png", *missing]
    Path("lists/t.csv").write_text("\n".join(["file,label", *(f"{row},cat" for row in rows)]))
    later = (0, 10**18)
    assert grown(
        state_of_data,
        lambda: away.write_text("22"),
        lambda: Path("lists/near.png").write_text("yy"),
        lambda: Path("photos/held.png").write_text("z"),
        lambda: os.utime("photos/held.png", ns=later),
        lambda: Path("lists/other.csv").write_text("beside the table"),
    ) == [True, True, True, False, False]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["fine_tune.epochs=1,-2"], r"-S fine_tune\.epochs=-2, .* 1 or more, received -2"),
        (
            ["fine_tune.epochs=1", "params.yaml:seed=2,x"],
            r"-S fine_tune\.epochs=1 -S seed=x, seed: ",
        ),
        (["split.fold=range(2)"], r"split\.fold: received 1 with folds: null"),
        (["fine_tune.epoch=1,2"], r"-S fine_tune\.epoch=1,2: Could not override"),
        (["fine_tune.epochs"], r"-S fine_tune\.epochs: Error parsing override"),
        (["fine_tune.epochs=glob(*)"], r"Glob override .* is not supported"),
    ],
)
def test_a_grid_that_params_refuse_queues_nothing(monkeypatch, changes, message):
    monkeypatch.setattr(sweep.revisions, "check_history", lambda: None)
    monkeypatch.setattr(sweep, "dvc", lambda *words, **_: "" if words[0] == "queue" else 1 / 0)
    words = [word for change in changes for word in ("-S", change)]
    monkeypatch.setattr(sys, "argv", ["tools.sweep", *words])
    with pytest.raises(UserError, match=message):
        sweep.main()


def test_a_grid_is_checked_as_dvc_expands_it():
    changes = ["split.folds=5", "split.fold=range(5)", "fine_tune.epochs=1,2"]
    assert len(sweep.combinations(changes)) == 10


class Queue:
    """Stands for `dvc`: each start brings one more worker up, each look ends an experiment."""

    def __init__(self, waiting: int, *ended: str):
        self.waiting, self.ended = waiting, [*ended]
        self.workers, self.seen = 0, []

    def __call__(self, *words: str, environment: dict | None = None) -> str:
        if words[:2] == ("queue", "start"):
            self.workers = int(words[words.index("--jobs") + 1])
            self.seen.append((environment or {}).get("CUDA_VISIBLE_DEVICES"))
        elif self.workers == 2 and self.waiting:
            self.waiting -= 1
            self.ended.append("Success")
        states = ["Queued"] * self.waiting + self.ended
        rows = [f"{number:07} 11:01 AM {state}" for number, state in enumerate(states)]
        return "\n".join([*rows, f"Worker status: {self.workers} active, 0 idle"])


def test_each_worker_is_started_with_its_own_gpu(monkeypatch):
    queue = Queue(4)
    monkeypatch.setattr(sweep, "dvc", queue)
    sweep.start(["3", "5"])
    assert queue.seen == ["3", "5"]


def test_a_worker_that_goes_on_does_not_keep_the_next_one_waiting(tmp_path, monkeypatch):
    """DVC's workers inherit the output of the command that starts them, and live for hours."""
    (tmp_path / "dvc.py").write_text(
        "import subprocess, sys\n"
        'command = \'import time; time.sleep(5); open("ended", "w")\'\n'
        "subprocess.Popen([sys.executable, '-c', command])\n"
        "print('started')\n"
    )
    monkeypatch.chdir(tmp_path)
    assert sweep.dvc("queue", "start") == "started\n"
    assert not (tmp_path / "ended").exists()


def test_a_sweep_without_workers_ends(tmp_path, monkeypatch):
    """They were killed, say; experiments that wait would be waited for without an end."""
    queue = Queue(4)
    monkeypatch.setattr(sweep, "WORKERS", tmp_path)
    monkeypatch.setattr(sweep, "dvc", queue)
    monkeypatch.setattr(sweep, "POLL_SECONDS", 0)
    with pytest.raises(UserError, match="experiments wait, but no worker runs"):
        sweep.watch(Counter())


def test_workers_too_busy_to_answer_are_waited_for(tmp_path, monkeypatch):
    """DVC gives them a second, and shows none then; on a busy machine that lasted 35 seconds."""
    queue = Queue(3)
    command = [sys.executable, "-c", "import time; time.sleep(60)", "queue-worker"]
    with subprocess.Popen(command) as worker:
        while not psutil.Process(worker.pid).cmdline():
            time.sleep(0.01)  # Linux may wake who started it before its command line is there
        noted = {"pid": worker.pid, "stdin": None, "stdout": None, "stderr": None}
        (tmp_path / "dvc-exp-worker-1.json").write_text(json.dumps({**noted, "returncode": None}))
        looks = iter([False] * 20 + [True] * 10)

        def silent(*words: str, environment: dict | None = None) -> str:
            if words[:2] == ("queue", "status") and next(looks):
                queue.workers = 2  # from here on each look ends an experiment
            return re.sub("Worker status: .*", "Worker status: 0 active, 0 idle", queue(*words))

        monkeypatch.setattr(sweep, "dvc", silent)
        monkeypatch.setattr(sweep, "POLL_SECONDS", 0)
        monkeypatch.setattr(sweep, "WORKERS", tmp_path)
        monkeypatch.setattr(sweep, "START_SECONDS", 0)
        sweep.start([None])
        with pytest.raises(UserError, match="worker 2 did not start"):
            sweep.start([None, None])
        queue.workers = 0
        assert sweep.watch(Counter()) == Counter(Success=3)
        worker.kill()
    queue = Queue(3)
    with pytest.raises(UserError, match="experiments wait, but no worker runs"):
        sweep.watch(Counter())


def test_an_interrupted_sweep_says_how_to_go_on_without_queuing_all_again(monkeypatch):
    def interrupted(devices):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["sweep", "--workers", "1"])
    monkeypatch.setattr(sweep, "dvc", lambda *words: "")
    monkeypatch.setattr(sweep.revisions, "check_history", lambda: None)
    monkeypatch.setattr(sweep, "start", interrupted)
    with pytest.raises(UserError, match=r"`python -m tools\.sweep`, without -S, watches the rest"):
        sweep.main()


def test_what_failed_before_is_not_this_sweeps(tmp_path, monkeypatch, capsys):
    queue = Queue(4, "Failed", "Success")
    monkeypatch.setattr(sweep, "dvc", queue)
    monkeypatch.setattr(sweep, "WORKERS", tmp_path)
    monkeypatch.setattr(sweep.revisions, "check_history", lambda: None)
    monkeypatch.setattr(sweep, "POLL_SECONDS", 0)
    monkeypatch.setattr("sys.argv", ["sweep", "--workers", "2"])
    monkeypatch.setattr(sweep, "gpus", list)
    sweep.main()  # else: 1 experiments failed
    assert "4/4" in capsys.readouterr().err


@pytest.mark.slow
def test_four_experiments_by_two_workers_end_in_one_table(tmp_path):
    project = ToyProject(tmp_path)
    project.set_params({"fine_tune": {"epochs": 1}, "train_head": {"epochs": 2}})
    project.repro()
    project.commit("results")
    output = project.run(
        "tools.sweep",
        *("-S", "train_head.learning_rate=0.001,0.01"),
        *("-S", "train_head.dropout=0.1,0.3"),
        *("--workers", "2"),
    )
    rows = [line for line in output.splitlines() if "0.001" in line or "0.01" in line]
    pairs = {
        (rate, rest)
        for line in rows
        for rate in ("0.001", "0.01")
        for rest in ("0.1", "0.3")
        if f" {rate} " in line and f" {rest} " in line
    }
    assert len(pairs) == 4, output
    logs = sorted(
        (project.folder / ".dvc" / "tmp" / "exps" / "celery").glob("dvc-exp-worker-*.out")
    )
    assert ["succeeded in" in log.read_text() for log in logs] == [True, True]
    assert "4/4" in output
