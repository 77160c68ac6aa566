"""Fails where metrics got worse than a Git revision's: python -m tools.gate --against REV.

The rules are in gate.yaml. A baseline that is missing fails too: `dvc metrics diff` prints an empty
table there and exits with 0.
"""

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, model_validator

from stages.common import params, paths, splits
from stages.common.run import UserError, run
from tools import revisions

RULES_FILE = Path("gate.yaml")
ROUNDING = 1e-9  # 0.3 + 0.03 is a little less than 0.33
TOLERANCES = ("absolute", "relative", "interval")


@params.params_dataclass
class Rule:
    """How much worse one metric may get."""

    metric: params.Text
    better: Literal["higher", "lower"]
    absolute: params.NonNegativeFloat | None = None
    relative: params.NonNegativeFloat | None = None
    interval: bool = False

    @model_validator(mode="after")
    def _a_path(self):
        if not all(self.metric.partition(".")):
            raise ValueError(
                f"expected metric to be a file of metrics/ and a path in it, as in "
                f"fine_tuned.accuracy, received {self.metric!r}"
            )
        return self

    @model_validator(mode="after")
    def _one_tolerance(self):
        values = {name: getattr(self, name) for name in TOLERANCES}
        # By identity: a tolerance of 0 is one, and equals False.
        given = [name for name, value in values.items() if value is not None and value is not False]
        if len(given) != 1:
            raise ValueError(
                f"expected one of {', '.join(TOLERANCES)} for {self.metric}, received "
                f"{' and '.join(given) or 'none'}"
            )
        return self


@params.params_dataclass
class Gate:
    """The file gate.yaml."""

    test_images: Literal["require", "warn"]
    rules: Annotated[list[Rule], Field(min_length=1, description="one rule or more")]


@dataclass(frozen=True)
class Verdict:
    """One rule's outcome."""

    rule: Rule
    baseline: float
    current: float
    limit: float

    @property
    def passed(self) -> bool:
        """Whether the current value is no worse than the limit."""
        if self.rule.better == "higher":
            return self.current >= self.limit - ROUNDING
        return self.current <= self.limit + ROUNDING


def limit(rule: Rule, baseline: float, interval: dict[str, float] | None) -> float:
    """The worst value that a rule lets pass.

    Args:
        rule: one of gate.yaml.
        baseline: the metric at the other revision.
        interval: its `low` and `high`, where the metrics have it.

    Raises:
        UserError: the rule needs an interval, and there is none.
    """
    sign = -1 if rule.better == "higher" else 1
    if rule.absolute is not None:
        return baseline + sign * rule.absolute
    if rule.relative is not None:
        return baseline + sign * rule.relative * abs(baseline)
    if not interval:
        raise UserError(
            f"{RULES_FILE}: {rule.metric} has no interval in the baseline's metrics; give the rule "
            "absolute or relative in its place"
        )
    return interval["low" if rule.better == "higher" else "high"]


def judge(gate: Gate, baseline: Callable[[str], dict], current: Callable[[str], dict]):
    """A verdict for each rule.

    Args:
        gate: the rules.
        baseline: from the name of a file of metrics to what is in it, at the other revision.
        current: the same of the work tree.

    Raises:
        UserError: a side lacks a file or a metric, or a value is no finite number.
    """
    verdicts = []
    for rule in gate.rules:
        name, _, path = rule.metric.partition(".")
        before, after = (
            _number(read(name), path, f"{side}, metrics/{name}.json")
            for side, read in (("the baseline", baseline), ("the work tree", current))
        )
        holder, key = _place(baseline(name), path)
        interval = holder.get("interval", {}).get(key)
        verdicts.append(Verdict(rule, before, after, limit(rule, before, interval)))
    return verdicts


def _place(metrics: dict, path: str) -> tuple[dict, str] | None:
    """The dictionary that holds a value, and its key; keys may have points of their own."""
    if path in metrics:
        return metrics, path
    inside = (
        _place(value, path.removeprefix(f"{key}."))
        for key, value in metrics.items()
        if isinstance(value, dict) and path.startswith(f"{key}.")
    )
    return next(filter(None, inside), None)


def _number(metrics: dict, path: str, where: str) -> float:
    place = _place(metrics, path)
    if place is None:
        value: Any = metrics
        for part in path.split("."):
            keys = list(value) if isinstance(value, dict) else []
            if part not in keys:
                break
            value = value[part]
        raise UserError(
            f"{where} has no {path}{params.nearest(part, keys)}; `dvc metrics show` lists all"
        )
    holder, key = place
    value = holder[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(f"{where}: expected {path} to be a finite number, received {value!r}")
    return float(value)


def table(verdicts: list[Verdict]) -> str:
    """A line for each rule: metric, both values, the limit, and whether it holds."""
    width = max(len(verdict.rule.metric) for verdict in verdicts)
    lines = [f"{'metric':<{width}}  baseline  current   change    limit         "]
    for verdict in verdicts:
        sign = "≥" if verdict.rule.better == "higher" else "≤"
        lines.append(
            f"{verdict.rule.metric:<{width}}  {verdict.baseline:<8.4f}  {verdict.current:<8.4f}  "
            f"{verdict.current - verdict.baseline:<+8.4f}  {sign} {verdict.limit:<8.4f}  "
            f"{'passed' if verdict.passed else 'WORSE'}"
        )
    return "\n".join(lines)


def check_test_images(against: str, rule: str) -> None:
    """Says where the two sides did not test on the same images; UserError under `require`."""
    if revisions.same_test_images(against):
        return
    text = (
        f"neither {splits.SPLITS_FILE} nor {paths.IMAGES / 'test'} is that of {against}, so that "
        "both were measured on other test images and their numbers can't be compared"
    )
    if rule == "require":
        raise UserError(
            f"{text}; run `make repro` on {against} with this split, or set test_images to warn "
            f"in {RULES_FILE}"
        )
    print(f"warning: {text}")


def read_gate() -> Gate:
    """The rules; UserError where gate.yaml is not as it should be."""
    try:
        content = yaml.safe_load(RULES_FILE.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{RULES_FILE} does not exist; it holds the rules to compare by") from None
    except yaml.YAMLError as error:
        raise UserError(f"{RULES_FILE} is not YAML: {error}") from None
    return params.check({"gate": content}, "gate", Gate, source=str(RULES_FILE))


def main() -> None:
    """Prints a table; exits with 1 where a rule is broken."""
    parser = argparse.ArgumentParser(prog="tools.gate", description=__doc__.split(":")[0])
    parser.add_argument("--against", required=True, metavar="REV", help="a Git revision")
    options = parser.parse_args()
    gate = read_gate()
    commit = revisions.resolve(options.against)
    if stale := revisions.stale():
        raise UserError(
            f"metrics/ is of another run than {params.PARAMS_FILE} asks for ({'; '.join(stale)}); "
            "run `make repro`, which measures what there is"
        )
    check_test_images(commit, gate.test_images)
    verdicts = judge(
        gate,
        lambda name: revisions.read_json(commit, f"metrics/{name}.json"),
        lambda name: revisions.read_json(None, f"metrics/{name}.json"),
    )
    print(f"against {options.against} ({commit[:7]})")
    print(table(verdicts))
    broken = [verdict.rule.metric for verdict in verdicts if not verdict.passed]
    if broken:
        raise UserError(f"worse than {RULES_FILE} allows: {', '.join(broken)}")


if __name__ == "__main__":
    run(main)
