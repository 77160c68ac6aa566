"""Writes a preset's overrides into params.yaml, keeping its comments: make preset NAME=cifar10."""

import sys
from pathlib import Path

from ruamel.yaml import YAML

from stages.common import files, params
from stages.common.run import UserError, run
from tools.check_params import check

PRESETS = Path("presets")
ONE_VALUE = ("class_weights",)  # may hold names of somebody's own, and is no section


def override(target: dict, changes: dict, source: str, prefix: str = "") -> list[str]:
    """Puts the changes into the target, in place.

    Returns:
        A line for each value that changed: `train_head.epochs: 40 → 10`.

    Raises:
        UserError: a key that the target does not have, with the nearest right ones.
    """
    changed = []
    for key, value in changes.items():
        name = f"{prefix}{key}"
        if key not in target:
            raise UserError(
                f"{source}, {name}: unknown key; allowed are {', '.join(target)}"
                f"{params.nearest(key, target)}"
            )
        if isinstance(target[key], dict) and key not in ONE_VALUE:
            if not isinstance(value, dict):
                raise UserError(f"{source}, {name}: expected keys and values, received {value!r}")
            changed += override(target[key], value, source, f"{name}.")
        elif target[key] != value:
            changed.append(f"{name}: {_text(target[key])} → {_text(value)}")
            # As they are, lists and mappings would bring the preset's comments along, in the place
            # of those that are there.
            plain = next((kind for kind in (list, dict) if isinstance(value, kind)), None)
            target[key] = plain(value) if plain else value
    return changed


def _text(value) -> str:
    return "null" if value is None else str(value)


def _yaml() -> YAML:
    yaml = YAML()
    yaml.width = 200  # comments stay on their lines
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.representer.add_representer(
        type(None),
        lambda representer, _: representer.represent_scalar("tag:yaml.org,2002:null", "null"),
    )
    return yaml


def main() -> None:
    """Merges, checks the result, and only then writes it."""
    available = sorted(path.stem for path in PRESETS.glob("*.yaml"))
    name = sys.argv[1] if len(sys.argv) == 2 else ""
    if name not in available:
        raise UserError(
            f"expected the name of a preset, one of {', '.join(available)}, received "
            f"{name!r}{params.nearest(name, available)}; write `make preset NAME={available[0]}`"
        )
    source = PRESETS / f"{name}.yaml"
    for file in (params.PARAMS_FILE, source):
        params.read(file)  # which says a mistake in words; the library below would not
    yaml = _yaml()
    content = yaml.load(params.PARAMS_FILE.read_text(encoding="utf-8"))
    changes = yaml.load(source.read_text(encoding="utf-8"))
    changed = override(content, changes, str(source))
    check(content, f"params.yaml with {source}")
    with files.replacing(params.PARAMS_FILE) as new, new.open("w", encoding="utf-8") as file:
        yaml.dump(content, file)
    print("\n".join(changed) or f"params.yaml has all values of {source} already")


if __name__ == "__main__":
    run(main)
