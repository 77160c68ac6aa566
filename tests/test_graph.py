"""dvc.yaml says the whole truth about the scripts."""

import ast
from pathlib import Path

import pytest
import yaml

from tests import ROOT

GRAPH = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
STAGES = GRAPH["stages"]
# The contract of the design: which sections of params.yaml each stage may depend on.
SECTIONS = {
    "fetch": {"dataset"},
    "split": {"seed", "split"},
    "preprocess": {"preprocess"},
    "backbone": {"seed", "backbone", "preprocess"},
    "extract_features": {"extract_features", "runtime.deterministic", "runtime.precision"},
    "train_head": {"seed", "runtime.deterministic", "train_head"},
    "fine_tune": {"seed", "runtime", "fine_tune"},
    "evaluate": {"evaluate"},
    "compare": {"evaluate.bootstrap_samples"},
    "report": {
        "seed",
        "runtime",
        "dataset",
        "split",
        "preprocess",
        "backbone",
        "extract_features",
        "train_head",
        "fine_tune",
        "evaluate",
        "report",
    },
}


def imported_modules(path: Path) -> set[Path]:
    """Files of this project that a script imports, those inside functions and of others too."""
    found: set[Path] = set()
    waiting = [path]
    while waiting:
        current = waiting.pop()
        if current in found:
            continue
        found.add(current)
        for node in ast.walk(ast.parse(current.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            for name in names:
                module = ROOT / (name.replace(".", "/") + ".py")
                if module.exists():
                    waiting.append(module)
    return {module.relative_to(ROOT) for module in found}


@pytest.mark.parametrize("name", STAGES)
def test_deps_list_exactly_the_code_that_the_stage_imports(name):
    listed = {Path(dep) for dep in STAGES[name]["deps"] if dep.endswith(".py")}
    assert listed == imported_modules(ROOT / "stages" / f"{name}.py")


@pytest.mark.parametrize("name", STAGES)
def test_stage_script_params_section_and_command_share_one_name(name):
    stage = STAGES[name]
    assert stage["cmd"].split()[:3] == ["python", "-m", f"stages.{name}"]
    assert set(stage["params"]) == SECTIONS[name]
    assert len(stage["desc"]) > 20


def test_only_evaluate_reads_the_test_split():
    for name, stage in STAGES.items():
        reads_test = any(
            Path(dep) in (Path("data/images"), Path("data/images/test")) for dep in stage["deps"]
        )
        assert reads_test == (name == "evaluate"), name


def test_run_cache_is_switched_off_in_cheap_stages_only():
    uncached = {
        name
        for name, stage in STAGES.items()
        for out in stage["outs"]
        if isinstance(out, dict) and not next(iter(out.values())).get("cache", True)
    }
    assert uncached == {"split", "evaluate", "compare"}


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
