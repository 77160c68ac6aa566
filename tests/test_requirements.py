"""Each environment has what the scripts that run there import."""

import re
from importlib import metadata

import pytest

from tests import ROOT, project_imports

SCRIPTS = [path for folder in ("stages", "tools") for path in sorted((ROOT / folder).glob("*.py"))]
EXTRAS = ["export", "keras-hub", "profile", "s3", "search"]


def listed(*environments: str) -> set[str]:
    """Packages that requirements*.in name."""
    lines = [
        line
        for name in environments
        for line in (ROOT / f"requirements{name}.in").read_text(encoding="utf-8").splitlines()
    ]
    return {found[0].lower() for line in lines if (found := re.match(r"[\w.]+(-\w+)*", line))}


@pytest.mark.parametrize(
    ("scripts", "environments", "where_they_are"),
    [
        (SCRIPTS, ["", "-demo", "-beam", *(f"-{name}" for name in EXTRAS)], {"torch", "timm"}),
        ([ROOT / "tools" / "demo.py"], ["-demo"], {"keras-hub"}),
        ([ROOT / "stages" / "fetch.py"], ["-beam"], {"cykooz-resizer"}),
    ],
    ids=["all", "demo", "beam"],
)
def test_an_environment_has_what_is_imported_there(scripts, environments, where_they_are):
    """Packages of `where_they_are` are asked for, and done without."""
    names = set().union(*map(project_imports.packages, scripts))
    installed = metadata.packages_distributions()
    packages = {installed.get(name, [name.replace("_", "-")])[0].lower() for name in names}
    assert packages - where_they_are <= listed(*environments)
