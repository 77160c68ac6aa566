"""tools.compare against this repository's own history, and its pictures."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stages.common import params
from stages.common.run import UserError
from tests import ROOT
from tools import compare

METRICS = {"accuracy": 0.9, "loss": 0.3, "interval": {"accuracy": {"low": 0.87, "high": 0.92}}}


@pytest.fixture
def repository(tmp_path, monkeypatch) -> Path:
    """Two states of a project: one committed as `base`, a better one in the work tree."""
    monkeypatch.chdir(tmp_path)
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@t"]
    subprocess.run([*git, "init", "--quiet"], check=True)

    def write(path: str, text: str) -> None:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)

    def state(accuracy: float, epochs: int) -> None:
        for model in ("head", "fine_tuned"):
            write(f"metrics/{model}.json", json.dumps({**METRICS, "accuracy": accuracy}))
            write(f"plots/{model}/confusion.csv", "actual,predicted\ncat,cat\ndog,cat\ndog,dog\n")
        write("params.yaml", f"seed: 0\ntrain:\n  epochs: {epochs}\n  name: a|b\n")
        write("dvc.lock", "stages: {split: {outs: [{path: data/splits.csv, md5: one}]}}\n")
        rows = "".join(f"{epoch},0.1,1,0.5,1,0.5\n" for epoch in range(1, epochs))
        header = "epoch,learning_rate,loss,accuracy,val_loss,val_accuracy\n"
        write("plots/fine_tune/history.csv", header + rows)

    state(0.9, 4)
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "--quiet", "-m", "base"], check=True)
    subprocess.run([*git, "tag", "base"], check=True)
    state(0.95, 8)
    return tmp_path


def test_the_comment_says_what_changed(repository):
    text = compare.comment("base", repository / "drawn", "https://pictures/7/")
    row = "| accuracy (higher is better) | 0.900 [0.870, 0.920] | 0.950 [0.870, 0.920] | +0.050 |"
    assert text.count(row) == 2
    assert "| `train.epochs` | `4` | `8` |" in text
    assert "train.name" not in text
    for name in ("curves.png", "head.png", "fine_tuned.png"):
        assert f"(https://pictures/7/{name})" in text
        assert Image.open(repository / "drawn" / name).width > 600
    assert "can't be compared" not in text


def test_folders_of_pictures_with_spaces_are_addresses(repository):
    text = compare.comment("base", repository / "drawn", "my pictures/")
    assert "![" in text
    assert "(my%20pictures/head.png)" in text


def test_other_test_images_are_said(repository):
    lock = repository / "dvc.lock"
    lock.write_text(lock.read_text().replace("one", "two"))
    assert "**The test images differ" in compare.comment("base", None, "")


def test_metrics_of_another_run_are_said(repository):
    """Else a param that was just edited stands beside metrics of the value before."""
    section = {"epochs": 8, "name": "a|b"}
    for stage, ran, deps, why in (
        ("train", {"seed": 0, "train": section}, [], None),
        (
            "train",
            {"seed": 0, "train": {**section, "epochs": 4}},
            [],
            "train ran with another train",
        ),
        ("train", {"train.epochs": 8}, [], None),
        ("train", {"train.epochs": 4}, [], "train ran with another train.epochs"),
        ("report", {"train.epochs": 4}, [], None),  # which makes no metric
        ("evaluate@head", {}, ["one"], None),
        ("evaluate@head", {}, ["two"], "evaluate@head read another data/splits.csv"),
    ):
        stages = {
            "split": {"outs": [{"path": "data/splits.csv", "md5": "one"}]},
            stage: {
                "params": {"params.yaml": ran},
                "deps": [{"path": "data/splits.csv", "md5": md5} for md5 in deps],
            },
        }
        (repository / "dvc.lock").write_text(json.dumps({"stages": stages}))  # which is YAML too
        text = compare.comment("base", None, "")
        assert ("**These metrics are of another run" in text) == (why is not None)
        assert why is None or f"({why})" in text


def test_without_a_baseline_there_is_no_comment(repository):
    with pytest.raises(UserError, match="'nothing' is no revision"):
        compare.comment("nothing", None, "")


def params_table(before: str, after: str) -> str:
    return compare.params_table(params.parse(before), params.parse(after))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<<<<<<< HEAD\nseed: 0\n=======\nseed: 1\n>>>>>>> other\n", ""),
        ("seed:\t0\n\tname: 1\n", ""),
        ("seed: 0\nseed: 1\n", "'seed' is there twice"),
    ],
)
def test_params_that_can_not_be_read_are_named_with_their_revision(repository, text, reason):
    (repository / "params.yaml").write_text(text)
    message = rf"can't be read \(.*{reason}.*\); does it hold a merge conflict\?"
    with pytest.raises(UserError, match=rf"^params\.yaml {message}"):
        compare.comment("base", None, "")
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@t"]
    subprocess.run([*git, "commit", "--quiet", "--all", "-m", "broken"], check=True)
    (repository / "params.yaml").write_text("seed: 0\n")
    with pytest.raises(UserError, match=rf"^params\.yaml of [0-9a-f]+ {message}"):
        compare.comment("HEAD", None, "")


def test_params_that_come_and_go_are_named():
    table = params_table("a: 1\nb: {c: null}\n", "b: {c: [x]}\nd: {e: 'x|y'}\n")
    assert table.splitlines()[2:] == [
        "| `a` | `1` | — |",
        "| `b.c` | `null` | `[x]` |",
        "| `d.e` | — | `x\\|y` |",
    ]
    assert params_table("a: 1", "a: 1") == "No param changed."
    lines = "a: |\n  Two paragraphs.\n\n  With `code`.\n"
    assert params_table("a: null", lines).splitlines()[2:] == [
        "| `a` | `null` | `` 'Two paragraphs. With `code`. ' `` |",
    ]


def test_pictures_are_pushed_to_a_branch_of_their_own(repository, tmp_path_factory):
    remote = tmp_path_factory.mktemp("remote")
    subprocess.run(["git", "init", "--quiet", "--bare", remote], check=True)
    subprocess.run(["git", "remote", "add", "origin", remote], check=True)
    (repository / "drawn").mkdir()
    Image.new("RGB", (4, 4)).save(repository / "drawn" / "a.png")
    script = ROOT / ".github" / "push_pictures"
    for place in ("7/1", "7/2", "7/2"):  # a job that runs again
        subprocess.run([script, "drawn", place], check=True)
    done = subprocess.run(
        ["git", "ls-tree", "-r", "--name-only", "pictures"],
        cwd=remote,
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["7/1/a.png", "7/2/a.png"]


def test_long_and_foreign_texts_stay_in_one_line():
    after = "report:\n  limits: " + "viel Grün und mehr " * 8 + "\n"
    table = params_table("report:\n  limits: null\n", after)
    assert len(table.splitlines()) == 3
    assert "viel Grün und mehr viel Grün" in table


def test_shares_of_a_confusion_count_what_is_left_out(tmp_path, monkeypatch):
    """Of ten pictures of class 00 one is right, and nine are taken for a class that has no row."""
    rows = ["00,00"] + ["00,25"] * 9 + [f"{number:02},{number:02}" for number in range(1, 26)]
    drawn = []
    monkeypatch.setattr(
        "matplotlib.axes.Axes.imshow", lambda axis, shares, **_: drawn.append(shares)
    )
    text = "actual,predicted\n" + "\n".join(rows) + "\n"
    compare.draw_confusion(None, text, "title", tmp_path / "c.png")
    assert drawn[0][0, 0] == pytest.approx(0.1)
    compare.draw_confusion(None, "actual,predicted\nx$_$y,b\nb,b\n", "t", tmp_path / "m.png")


L2 = "epoch,l2,val_loss,val_accuracy\n1,0.1,0.5,0.8\n2,0.01,0.4,0.9\n"
EPOCHS = "epoch,val_loss,val_accuracy\n1,0.5,0.8\n2,0.4,0.9\n"


@pytest.mark.parametrize(
    ("before", "after", "unit", "curves"),
    [
        (EPOCHS, EPOCHS, "epoch", [[1, 2], [1, 2]]),
        (L2, L2, "strength of L2", [[0.1, 0.01], [0.1, 0.01]]),
        (EPOCHS, L2, "strength of L2", [[0.1, 0.01]]),
        (L2, EPOCHS, "epoch", [[1, 2]]),
        (None, EPOCHS, "epoch", [[1, 2]]),
    ],
)
def test_strengths_of_l2_are_no_epochs(tmp_path, monkeypatch, before, after, unit, curves):
    figures = []
    monkeypatch.setattr(compare.plots, "save", lambda figure, _: figures.append(figure))
    sides = {} if before is None else {"train_head": before}
    compare.draw_curves(sides, {"train_head": after}, tmp_path / "c.png")
    for axis in figures[0].axes:
        assert axis.get_xlabel() == unit
        assert [list(line.get_xdata()) for line in axis.get_lines()] == curves


def test_long_names_of_classes_leave_room_for_the_confusion(tmp_path, recwarn):
    names = ["a class with a name of thirty-odd letters", "z" * 120]
    rows = [f"{actual},{predicted}" for actual in names for predicted in names]
    text = "actual,predicted\n" + "\n".join(rows) + "\n"
    compare.draw_confusion(text, text, "title", tmp_path / "c.png")
    assert not [str(one.message) for one in recwarn if "layout" in str(one.message)]
    pixels = np.asarray(Image.open(tmp_path / "c.png").convert("L"))
    shares = pixels[:, : pixels.shape[1] // 2] < 200
    assert shares.mean() > 0.05  # the matrix; names alone leave it no room


def test_a_file_in_place_of_the_folder_of_pictures_is_refused(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_text("x")
    words = ["tools.compare", "HEAD", "--pictures", str(tmp_path / "a.png")]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(UserError, match=r"--pictures: expected a folder, .*a\.png"):
        compare.main()
