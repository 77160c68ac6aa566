"""The whole graph on toy data: what runs again, what is the same, what survives a kill."""

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import zipfile
from pathlib import Path

import h5py
import pytest
import yaml

from stages.common import models
from tests.toy_project import ToyProject
from tools import revisions

ALL_STAGES = [
    "fetch",
    "split",
    "preprocess",
    "backbone",
    "extract_features",
    "train_head",
    "fine_tune",
    "evaluate@head",
    "evaluate@fine_tuned",
    "compare",
    "report",
]
KILLED_AFTER = "epoch 3/"


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> ToyProject:
    """A project whose graph has run once."""
    toy = ToyProject(tmp_path_factory.mktemp("toy"))
    assert sorted(toy.repro()) == sorted(ALL_STAGES)
    return toy


def test_second_run_and_edited_comments_run_nothing(project):
    path = project.folder / "params.yaml"
    path.write_text("# a new comment\n" + path.read_text())
    assert project.repro() == []


def test_an_image_that_is_added_is_noticed(project):
    folder = project.folder / "data" / "own" / "blue"
    added = shutil.copy(folder / "0.png", folder / "added.png")
    try:
        assert "data/own" in project.run("dvc", "status", "fetch")
    finally:
        added.unlink()
    assert "up to date" in project.run("dvc", "status", "fetch")


def test_models_learn_and_metrics_are_whole(project):
    for model in ("head", "fine_tuned"):
        metrics = json.loads((project.folder / "metrics" / f"{model}.json").read_text())
        assert metrics["images"] == 24
        assert metrics["accuracy"] > 0.9  # three colours
        assert set(metrics["class"]) == {"blue", "green", "red"}
    output = project.run("tools.summary")
    assert "accuracy" in output
    assert "fine-tuned" in output


def test_every_file_that_dvc_plots_names_is_there(project):
    shown = project.run("dvc", "plots", "show", "--out", "shown")
    page = (project.folder / "shown" / "index.html").read_text(encoding="utf-8")
    assert "file://" in shown
    for title in ("Learning curve of the head", "Learning curve of fine-tuning", "Confusion"):
        assert title in page
    images = list((project.folder / "shown" / "static").glob("*.png"))
    plots = yaml.safe_load((project.folder / "dvc.yaml").read_text(encoding="utf-8"))["plots"]
    assert len(images) == len([plot for plot in plots if str(plot).endswith(".png")])


def test_report_is_one_page_about_this_run(project):
    page = (project.folder / "reports" / "index.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    metrics = json.loads((project.folder / "metrics" / "fine_tuned.json").read_text())
    assert f"{100 * metrics['accuracy']:.1f}" in page
    for class_name in metrics["class"]:
        assert class_name in page


def test_each_model_file_says_what_a_new_picture_is_shrunk_to(project):
    for path in sorted((project.folder / "models").glob("*.keras")):
        assert models.shrunk_to(path) == 24, path


def test_the_models_carry_no_optimizer(project):
    for path in sorted((project.folder / "models").glob("*.keras")):
        with (
            zipfile.ZipFile(path) as file,
            h5py.File(io.BytesIO(file.read("model.weights.h5"))) as weights,
        ):
            names = []
            weights.visit(names.append)
        assert names
        assert not [name for name in names if "optimizer" in name], path


@pytest.fixture
def remote(request, project, tmp_path, monkeypatch):
    """Makes a DVC remote the project's default, and takes it away again."""
    if request.param == "folder":
        project.run("dvc", "remote", "add", "--default", "shared", str(tmp_path / "remote"))
        yield
    else:
        import s3fs
        from moto.server import ThreadedMotoServer

        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        endpoint = "http://{}:{}".format(*server.get_host_and_port())
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "testing")
        s3fs.S3FileSystem(endpoint_url=endpoint).mkdir("bucket")
        project.run("dvc", "remote", "add", "--default", "shared", "s3://bucket/results")
        project.run("dvc", "remote", "modify", "shared", "endpointurl", endpoint)
        yield
        server.stop()
    project.run("dvc", "remote", "remove", "shared")


@pytest.mark.slow
@pytest.mark.parametrize("remote", ["folder", "s3"], indirect=True)
def test_a_colleague_pulls_the_results_and_trains_only_what_they_change(
    remote, project, tmp_path, monkeypatch
):
    project.commit("results")
    project.run("dvc", "push")
    clone = ToyProject.clone(project, tmp_path / "clone")
    clone.run("dvc", "pull")
    assert clone.results() == project.results()
    own = Path("data/own")  # Git has its README
    shutil.copytree(project.folder / own, clone.folder / own, dirs_exist_ok=True)
    assert clone.repro() == []
    monkeypatch.chdir(clone.folder)  # learning curves are DVC's, not Git's
    curve = Path("plots/fine_tune/history.csv").read_text()
    assert revisions.read_result("HEAD", "plots/fine_tune/history.csv") == curve
    assert revisions.read_result("HEAD", "plots/fine_tune/no.csv") is None

    changing = ToyProject.clone(project, tmp_path / "changing")
    changing.set_params({"fine_tune": {"epochs": 1}})
    shutil.rmtree(changing.folder / own)  # images that are not there, not images that are others
    assert changing.repro("--pull", "--allow-missing") == [
        "fine_tune",
        "evaluate@fine_tuned",
        "compare",
        "report",
    ]
    data = changing.folder / "data"
    assert (data / "images" / "train").exists()  # which fine_tune reads
    assert not (data / "features").exists()  # which it does not
    assert [path.name for path in (data / "raw").iterdir()] == ["dataset_info.json"]  # the report's


def test_a_change_that_is_reverted_comes_back_from_the_cache(project):
    before = project.results()
    project.set_params({"fine_tune": {"learning_rate": 2.0e-3, "epochs": 1}})
    assert project.repro("fine_tune") == ["fine_tune"]
    assert project.results() != before
    # By a dry run: what is known to be of the old model by now; `compare` reads what they write.
    assert project.repro("--dry") == ["evaluate@fine_tuned", "report"]
    project.set_params({"fine_tune": {"learning_rate": 1.0e-3, "epochs": 30}})
    assert project.repro() == []
    assert project.results() == before


@pytest.mark.slow
def test_stages_that_are_run_by_hand_leave_the_cache_as_it_is(project, tmp_path):
    """What is in the workspace are links into it where the file system has no better."""
    copy = ToyProject.copy(project, tmp_path / "copy")
    copy.run("dvc", "config", "cache.type", "hardlink")  # of any file system
    copy.run("dvc", "checkout", "--relink")
    cached = [path for path in (copy.folder / ".dvc/cache/files").rglob("*") if path.is_file()]
    before = {path: path.read_bytes() for path in cached}
    assert (copy.folder / "models" / "head.keras").stat().st_nlink > 1
    copy.set_params(
        {
            "split": {"train": 0.4, "valid": 0.35},
            "train_head": {"epochs": 2},
            "fine_tune": {"epochs": 1},
        }
    )
    copy.run("tools.memory")
    after = copy.results()
    same = [name for name, found in project.results().items() if after[name] == found]
    assert same == ["models/backbone.keras"]
    assert {path: path.read_bytes() for path in cached} == before


def test_train_head_params_run_no_forward_pass_over_the_training_images(project):
    project.set_params({"train_head": {"dropout": 0.3}})
    assert project.repro("--dry", "evaluate@head")[0] == "train_head"
    project.set_params({"train_head": {"dropout": 0.2}})
    assert project.repro("--dry", "evaluate@head") == []


def test_second_project_killed_while_fine_tuning_resumes_and_ends_in_the_same_bytes(
    project, tmp_path
):
    """Two runs in two folders, and one of them interrupted, give equal results."""
    twin = ToyProject(tmp_path)
    stage = None
    with subprocess.Popen(
        twin.command("dvc", "repro"),
        cwd=twin.folder,
        env=twin.environment,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as running:
        for line in running.stdout:
            if line.startswith("Running stage"):
                stage = line.split("'")[1]
            if stage == "fine_tune" and line.startswith(KILLED_AFTER):
                os.killpg(running.pid, signal.SIGKILL)
                break
        else:
            pytest.fail("fine_tune ended before it could be killed")
    assert not (twin.folder / "models" / "fine_tuned.keras").exists()

    output = twin.run("dvc", "repro", "fine_tune")
    assert list((twin.folder / ".backup").glob("fine_tune/*"))  # until the model is measured
    twin.run("dvc", "repro", "compare")

    assert "resumed after epoch" in output
    with (twin.folder / "plots" / "fine_tune" / "history.csv").open() as file:
        epochs = [row["epoch"] for row in csv.DictReader(file)]
    assert epochs == [str(number) for number in range(1, 31)]
    assert twin.results() == project.results()
    assert not list((twin.folder / ".backup").glob("*/*"))
