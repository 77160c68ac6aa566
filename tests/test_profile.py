"""tools.profile: what py-spy saw, sorted."""

import pytest

from stages.common.run import UserError
from tools import profile

MAIN = "_run_module_as_main (<frozen runpy>:198);<module> (stages/fine_tune.py:9)"
GRAPH = (
    "fit (keras/src/trainer.py:3);__call__ (tensorflow/python/eager/polymorphic_function/p.py:8)"
)


def stack(command: str, frames: str, samples: int, parent: str = "", number: int = 7) -> str:
    return f'{parent}process {number}:"python -m {command}";{frames} {samples}'


def test_help_is_no_command(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["profile", "--help"])
    with pytest.raises(SystemExit):
        profile.main()
    assert "default: dvc repro --force" in capsys.readouterr().out


def test_a_command_that_fails_leaves_the_committed_table(tmp_path, monkeypatch):
    """As py-spy does, what stands in for it ends well whatever the command ends with."""
    program = tmp_path / "bin" / "py-spy"
    program.parent.mkdir()
    program.write_text(
        '#!/bin/sh\nwhile [ "$1" != -- ]; do\n'
        '  if [ "$1" = --output ]; then output="$2"; fi\n  shift\ndone\nshift\n'
        f'"$@"\necho \'{stack("stages.fetch", MAIN, 40)}\' > "$output"\n'
    )
    program.chmod(0o755)
    page = tmp_path / "profile.md"
    page.write_text("<!-- table: profile -->\n\nbefore\n\n<!-- end -->\n")
    monkeypatch.setattr("sys.executable", str(program.with_name("python")))
    monkeypatch.setattr(profile, "RESULTS", tmp_path / "profile.csv")
    monkeypatch.setattr(profile, "PAGE", page)
    monkeypatch.setattr("sys.argv", ["profile", "sh", "-c", "exit 3"])
    with pytest.raises(UserError, match="sh -c exit 3 ended with status 3"):
        profile.main()
    assert "before" in page.read_text()
    monkeypatch.setattr("sys.argv", ["profile", "true"])
    profile.main()
    assert "`fetch`" in page.read_text()


def test_seconds_are_sorted_by_stage_and_activity():
    executed = f"{MAIN};{GRAPH};quick_execute (tensorflow/python/eager/execute.py:59)"
    traced = f"{MAIN};{GRAPH};_create_op (tensorflow/python/framework/ops.py:2667)"
    imported = f"{MAIN};start (stages/common/run.py:85);_load (<frozen importlib._bootstrap>:690)"
    dvc = 'process 3:"dvc repro";'
    found = profile.seconds_by_stage(
        [
            stack("stages.evaluate head", executed, 40, number=2),
            stack("stages.fine_tune", executed, 60, parent=dvc),
            stack("stages.fine_tune", traced, 20),
            stack("stages.fine_tune", imported, 10),
            stack("stages.fine_tune", f"{MAIN};unfreeze (stages/fine_tune.py:92)", 10),
            # No stage, another thread, a process that the stage started.
            stack("dvc repro", executed, 1000),
            stack("stages.fine_tune", "Thread._bootstrap (threading.py:1002)", 1000),
            stack("c spawn", executed, 1000, parent='process 7:"python -m stages.fine_tune";'),
        ],
        ["fetch", "fine_tune", "evaluate"],
        rate=20,
    )
    assert found == {
        "fine_tune": {
            "running graphs": 3.0,
            "tracing graphs": 1.0,
            "loading libraries": 0.5,
            "the rest": 0.5,
        },
        "evaluate@head": {"running graphs": 2.0},
    }
    assert profile.rows(found)[0] == ["fine_tune", "running graphs", 3.0, 0.6]
    assert [row[0] for row in profile.rows(found)] == ["fine_tune"] * 4 + ["evaluate@head"]


def test_the_table_has_a_line_for_each_stage_and_parts_that_add_up():
    found = [
        ["fetch", "loading libraries", 3.0, 0.75],
        ["fetch", "the rest", 1.0, 0.25],
        ["evaluate@head", "running graphs", 4.0, 1.0],
    ]
    page = profile.filled("before\n<!-- table: profile -->old<!-- end -->\nafter", found)
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines()]
    assert lines[3:7] == [
        ["stage", "of the whole", "loading libraries", "running graphs", "the rest"],
        ["---"] * 5,
        ["`fetch`", "50.0%", "75%", "", "25%"],
        ["`evaluate@head`", "50.0%", "", "100%", ""],
    ]
    assert page.startswith("before")
    assert page.endswith("after")
    assert "old" not in page
