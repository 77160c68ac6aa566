"""dvc.yaml says the whole truth about the scripts."""

import ast
from pathlib import Path

import pytest
import yaml

from stages.common import params
from tests import ROOT, project_imports

GRAPH = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
STAGES = GRAPH["stages"]


@pytest.mark.parametrize("name", STAGES)
def test_deps_list_exactly_the_code_that_the_stage_imports(name):
    listed = {Path(dep) for dep in STAGES[name]["deps"] if dep.endswith(".py")}
    assert listed == project_imports.modules(ROOT / "stages" / f"{name}.py")


def loaded_sections(name: str) -> set[str]:
    """Sections of params.yaml that a stage's script loads, by its calls of `params`."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / "stages" / f"{name}.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called == "params.load":
                found.add(ast.literal_eval(node.args[0]))
            elif called == "params.load_seed":
                found.add("seed")
    return found


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_depends_on_the_params_that_it_reads(name):
    stage = STAGES[name]
    assert stage["cmd"].split()[:3] == ["python", "-m", f"stages.{name}"]
    listed = {param.partition(".")[0] for param in stage["params"]}
    if name == "report":  # it shows all of them, by stages/common/report/evidence.py
        assert listed == set(params.read(ROOT / "params.yaml"))
    else:
        assert listed == loaded_sections(name)


def test_parts_of_sections_are_those_that_change_what_a_stage_makes():
    """`runtime` above all: other devices make the same features, another precision does not."""
    parts = {name: {p for p in stage["params"] if "." in p} for name, stage in STAGES.items()}
    assert {name: found for name, found in parts.items() if found} == {
        "extract_features": {"runtime.deterministic", "runtime.precision"},
        "train_head": {"runtime.deterministic"},
        "compare": {"evaluate.bootstrap_samples"},
    }


def test_only_evaluate_reads_the_test_split():
    for name, stage in STAGES.items():
        reads_test = any(
            Path(dep) in (Path("data/images"), Path("data/images/test")) for dep in stage["deps"]
        )
        assert reads_test == (name == "evaluate"), name


def test_git_ignores_what_dvc_keeps_and_nothing_else():
    """Else a commit would take gigabytes, or leave out the metrics that a reviewer looks for."""
    for stage in STAGES.values():
        for out in stage["outs"]:
            given, options = next(iter(out.items())) if isinstance(out, dict) else (out, {})
            for model in stage.get("matrix", {}).get("model", [""]):
                path = Path(given.replace("${item.model}", model))
                ignored = ROOT / path.parent / ".gitignore"
                names = ignored.read_text().splitlines() if ignored.exists() else []
                assert (f"/{path.name}" in names) == options.get("cache", True), path


def test_every_metric_and_plot_is_an_output_of_a_stage():
    outputs = []
    for stage in STAGES.values():
        for out in stage["outs"]:
            path = next(iter(out)) if isinstance(out, dict) else out
            models = stage.get("matrix", {}).get("model", [""])
            outputs += [path.replace("${item.model}", model) for model in models]
    shown = list(GRAPH["metrics"])
    for plot in GRAPH["plots"]:
        shown += next(iter(plot.values()))["y"] if isinstance(plot, dict) else [plot]
    for path in shown:
        assert any(Path(path).is_relative_to(output) for output in outputs), path
