"""Searches params by Optuna: python -m tools.search SPACE.yaml [--trials N] [--preset NAME].

Each trial is an ordinary DVC experiment in a folder of its own, so that the work tree stays as it
is; `dvc exp show` lists them. Only the validation split is looked at. Trials that do worse than
the median of the others end early, past the first third of their epochs. What is known is kept in
.search/: the same command goes on where it was stopped, as long as what the losses depend on (other
params, data, the stages' code) is the same.
"""

import argparse
import contextlib
import csv
import hashlib
import io
import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TextIO

import yaml
from pydantic import Field, model_validator

from stages.common import params, paths
from stages.common.run import UserError, run
from tools import check_params, compare, experiment, revisions, sweep
from tools.check_params import with_values
from tools.preset import PRESETS

MEMORY = Path(".search")
# What changes the validation images, or comes after training, can't be searched by their loss.
SECTIONS = ("preprocess", "backbone", "extract_features", "train_head", "fine_tune")
ALWAYS_KNOWN = ("seed", "dataset", "split")  # on which a trial's loss depends too
SETTINGS = ("runtime.precision",)  # of other sections, the same
CHANGES_THE_LOSS = ("label_smoothing",)
EPOCH = re.compile(r"epoch (\d+)/\d+: loss .* validation loss ([\d.]+|nan|inf),")
NAME = re.compile(r"[\w-]+")
UNPRUNED_TRIALS = 4  # with fewer there is no median to be worse than
# The first epochs tell of the warm-up and of BatchNorm, not of the end; and among forty looks at a
# trial, one would find it worse than the median by chance.
UNPRUNED_PART, LOOKS = 1 / 3, 4
MOST_FAILURES_IN_A_ROW = 3  # one trial may diverge; all of them mean that something else is wrong


@params.params_dataclass
class Range:
    """Numbers from low to high, which steps from low may miss; whole ones where both are."""

    low: int | float
    high: int | float
    log: bool = False
    step: int | float | None = None

    @model_validator(mode="after")
    def _is_a_range(self):
        whole = isinstance(self.low, int) and isinstance(self.high, int)
        if (
            self.low >= self.high
            or (self.log and self.low <= 0)
            or (self.log and self.step)
            or (self.step is not None and self.step <= 0)
            or (whole and isinstance(self.step, float))
        ):
            raise ValueError(
                "expected low below high, with log above 0, not both log and step, step above 0 "
                "and whole where low and high are, received "
                f"low {self.low}, high {self.high}, log {self.log}, step {self.step}"
            )
        return self


@params.params_dataclass
class Space:
    """What a file under searches/ holds."""

    stage: Literal["train_head", "fine_tune"]
    trials: params.PositiveInt
    params: Annotated[
        dict[str, list[Any] | Range],
        Field(
            min_length=1,
            description="names of params, each with a list of values or with low and high",
        ),
    ]

    @model_validator(mode="before")
    @classmethod
    def _has_choices(cls, content: dict[str, Any]):
        for name, choices in dict(content.get("params") or {}).items():
            if not isinstance(choices, (list, dict)) or not choices:
                raise ValueError(
                    f"params: {name}: expected a list of values, or low and high, received "
                    f"{choices!r}"
                )
        return content


def read_space(path: Path) -> Space:
    """The space of a file; every value is tried on the checks of params.yaml.

    Raises:
        UserError: what is wrong with the file, or which of its values params.yaml would refuse.
    """
    space = params.check({"space": params.read(path)}, "space", Space, source=str(path))
    sections = SECTIONS[: SECTIONS.index(space.stage) + 1]
    for name, choices in space.params.items():
        if name.split(".")[0] not in sections:
            raise UserError(
                f"{path}, {name}: expected a param of {', '.join(sections)}, which alone act on "
                f"what {space.stage} makes of the same images"
            )
        if name.split(".")[-1] in CHANGES_THE_LOSS:
            raise UserError(
                f"{path}, {name}: expected params that leave the validation loss what it is, by "
                "which trials are compared, received one that is a part of it: less of it always "
                "looks better; compare its values by `dvc exp run -S` and validation accuracy"
            )
        values = [choices.low, choices.high] if isinstance(choices, Range) else choices
        for value in values:
            source = f"{path}: params.yaml with {name}={value}"
            check_params.check(with_values({name: value}), source)
            experiment.check_handed({name: value})
    return space


def suggest(trial, space: Space) -> dict[str, Any]:
    """The values of one trial."""
    values = {}
    for name, choices in space.params.items():
        if not isinstance(choices, Range):
            # Optuna keeps texts and numbers; JSON tells null and lists from them.
            texts = [json.dumps(choice) for choice in choices]
            values[name] = json.loads(trial.suggest_categorical(name, texts))
        elif isinstance(choices.low, int) and isinstance(choices.high, int):
            step = choices.step or 1
            values[name] = trial.suggest_int(
                name, choices.low, choices.high, step=step, log=choices.log
            )
        else:
            values[name] = trial.suggest_float(
                name, choices.low, choices.high, step=choices.step, log=choices.log
            )
    return values


def present_values(space: Space) -> dict[str, Any] | None:
    """What params.yaml has, as Optuna keeps it; None where it lies outside the space."""
    found = {}
    for name, choices in space.params.items():
        value: Any = params.read()
        for part in name.split("."):
            value = value[part]
        if isinstance(choices, Range):
            if not isinstance(value, (int, float)) or not choices.low <= value <= choices.high:
                return None
            found[name] = value
        elif value in choices:
            found[name] = json.dumps(choices[choices.index(value)])  # 1 as the 1.0 that is there
        else:
            return None
    return found


def run_experiment(
    name: str, stage: str, values: dict[str, Any], on_epoch: Callable[[int, float], bool]
) -> float | None:
    """Runs an experiment up to a stage.

    Args:
        name: of the experiment; one of that name is replaced.
        stage: 'train_head' or 'fine_tune'.
        values: `section.key` to value.
        on_epoch: gets the number of an epoch and its validation loss; True ends the experiment.

    Returns:
        The validation loss of the model that the stage keeps; None where it was ended. One that
        DVC takes from its cache prints no epochs: `on_epoch` then gets them at the end, and can't
        end it.

    Raises:
        UserError: params.yaml refuses these values together, or the experiment failed.
    """
    check_params.check(with_values(values), f"params.yaml of the trial {name}")
    current, seen = None, False
    with contextlib.closing(experiment.lines(name, stage, values)) as lines:
        for line in lines:
            if line.startswith("Running stage"):
                current = line.split("'")[1]
            found = EPOCH.search(line)
            if found and current == stage:
                print(f"  {name}: {line.strip()}", flush=True)
                seen = True
                if on_epoch(int(found[1]), float(found[2])):
                    return None
    section = with_values(values)[stage]
    losses = validation_losses(name, stage)
    if not seen and section.get("solver") != "lbfgs":
        for epoch, loss in enumerate(losses, start=1):
            on_epoch(epoch, loss)
    return kept_loss(losses, section)


def validation_losses(experiment: str, stage: str) -> list[float]:
    """Those of all epochs of an experiment's training."""
    import dvc.api

    text = dvc.api.read((paths.PLOTS / stage / "history.csv").as_posix(), rev=experiment)
    return [float(row["val_loss"]) for row in csv.DictReader(io.StringIO(text))]


def kept_loss(losses: Sequence[float], section: dict[str, Any]) -> float:
    """The validation loss of the model that training keeps, of those of all epochs.

    The best with early stopping, and by L-BFGS, whose rows are strengths of regularisation; with
    `averaged_epochs` the mean of those whose weights are averaged, of which the model itself was
    not measured; else the last.
    """
    if section.get("solver") == "lbfgs":
        return min(losses)
    if section["averaged_epochs"]:
        best = sorted(losses)[: section["averaged_epochs"]]
        return sum(best) / len(best)
    return min(losses) if section["early_stopping_patience"] else losses[-1]


def hold(name: str) -> TextIO:
    """The open lock of a search, which the system lets go of when this process ends.

    Raises:
        UserError: another process holds it. Its trial would be taken for one that was cut off.
    """
    import fcntl  # of POSIX, and search alone locks

    MEMORY.mkdir(exist_ok=True)
    file = (MEMORY / f"{name}.lock").open("w", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise UserError(
            f"the search {name} runs in another process; wait for its end, or end it: the same "
            "command then goes on"
        ) from None
    return file


def open_study(name: str, seed: int, epochs: int, space: str = ""):
    """What is known of a search, from .search/NAME.db; trials that were cut off are queued anew.

    Args:
        name: of the search.
        seed: of what is tried.
        epochs: of a trial.
        space: what the losses depend on, as a text.

    Raises:
        UserError: the search was begun in another space.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    MEMORY.mkdir(exist_ok=True)
    study = optuna.create_study(
        study_name=name,
        storage=f"sqlite:///{MEMORY / name}.db",
        load_if_exists=True,
        direction="minimize",
        pruner=optuna.pruners.MedianPruner(
            UNPRUNED_TRIALS,
            n_warmup_steps=math.ceil(UNPRUNED_PART * epochs),
            interval_steps=math.ceil((1 - UNPRUNED_PART) * epochs / LOOKS),
        ),
    )
    if study.user_attrs.get("space", space) != space:
        raise UserError(
            f"the search {name} was begun with other params, values, stage, data or code, and "
            f"losses of both can't be compared; give the file of the space another name, or remove "
            f"{MEMORY / name}.db"
        )
    study.set_user_attr("space", space)
    # With one seed for all starts each would draw what the first one drew.
    study.sampler = optuna.samplers.TPESampler(seed=seed + len(study.trials))
    for trial in study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        study.enqueue_trial(trial.params)
    return study


def finished_trials(study) -> int:
    """Trials that ran to their end or were ended early: not those that failed or were cut off."""
    from optuna.trial import TrialState

    return len(study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED)))


def listed_changes(space: Space) -> list[dict[str, Any]]:
    """No change, and each value that a list gives: what data and weights the trials may have."""
    return [{}] + [
        {name: choice}
        for name, choices in space.params.items()
        if not isinstance(choices, Range)
        for choice in choices
    ]


def described(space: Space) -> str:
    """What the losses of a search depend on: its space, the other params, data and code.

    Not how many trials there are to be, nor what acts after the stage, nor the values that
    params.yaml has now of what every trial sets.
    """
    known = {*ALWAYS_KNOWN, *SECTIONS[: SECTIONS.index(space.stage) + 1]}
    others = {
        name: value
        for name, value in compare.flat(params.read()).items()
        if (name.split(".")[0] in known or name in SETTINGS)
        and not any(f"{name}.".startswith(f"{key}.") for key in space.params)
    }
    code = hashlib.sha256()
    for path in sorted(Path("stages").rglob("*.py")):
        code.update(path.as_posix().encode() + path.read_bytes())
    values = {key: repr(choices) for key, choices in space.params.items()}
    data = sweep.data_state(map(with_values, listed_changes(space)))
    known_by = [space.stage, values, others, data, code.hexdigest()]
    return json.dumps(known_by, sort_keys=True, default=str)


def preset_text(name: str, study, space: Space) -> str:
    """The best trial as a preset, with where it is from."""
    best = study.best_trial
    nested: dict[str, Any] = {}
    for key, value in best.params.items():
        *parents, last = key.split(".")
        place = nested
        for parent in parents:
            place = place.setdefault(parent, {})
        is_range = isinstance(space.params[key], Range)
        place[last] = value if is_range else json.loads(value)
    count = finished_trials(study)
    return (
        f"# Found by `python -m tools.search` in the space {name}: the best of {count} trials\n"
        f"# by the validation loss of {space.stage}, {best.value:.4f}. Of many tries the best is\n"
        "# partly luck: run it with other seeds before it is believed.\n"
    ) + yaml.safe_dump(nested, sort_keys=False)


def main() -> None:
    """Runs the trials that are still to do, and shows the best."""
    parser = argparse.ArgumentParser(prog="tools.search", description=__doc__.split(":")[0])
    parser.add_argument("space", type=Path, help="a file under searches/")
    parser.add_argument("--trials", type=int, help="in all; default: what the file says")
    parser.add_argument("--preset", help="write the best to presets/PRESET.yaml")
    options = parser.parse_args()
    if options.trials is not None and options.trials < 1:
        parser.error(f"--trials: expected 1 or more, received {options.trials}")
    if options.preset is not None and not NAME.fullmatch(options.preset):
        raise UserError(
            f"--preset: expected a name of letters, digits, _ and -, received {options.preset!r}; "
            f"give the name alone, the file will be {PRESETS}/NAME.yaml"
        )
    preset = PRESETS / f"{options.preset}.yaml"
    if options.preset and preset.exists():
        raise UserError(f"{preset} exists; give another name, or remove it")
    name = options.space.stem
    if not NAME.fullmatch(name):
        raise UserError(
            f"{options.space}: expected a name of letters, digits, _ and -, which names the "
            "experiments, received another; rename the file"
        )
    space = read_space(options.space)
    revisions.check_history()
    try:
        import optuna
    except ModuleNotFoundError:
        raise UserError("Optuna is not installed; `make extra NAME=search` installs it") from None
    epochs = params.read()[space.stage]["epochs"]
    lock = hold(name)  # to the end of this process
    begun = experiment.state(listed_changes(space))
    study = open_study(name, params.load_seed(), epochs, described(space))
    if not study.trials and (present := present_values(space)):
        study.enqueue_trial(present)  # what there is now is what the others are compared with
    trials = options.trials or space.trials
    failures = 0
    while (done := finished_trials(study)) < trials:
        experiment.check_unchanged(begun, listed_changes(space))
        trial = study.ask()
        values = suggest(trial, space)
        print(f"trial {done + 1} of {trials}: {values}", flush=True)

        def on_epoch(epoch: int, loss: float, trial=trial) -> bool:
            trial.report(loss, epoch)
            return trial.should_prune()

        try:
            loss = run_experiment(f"{name}-{trial.number}", space.stage, values, on_epoch)
        except UserError as error:
            # Left as it is it would be taken for one that was cut off, and tried again.
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            failures += 1
            if failures == MOST_FAILURES_IN_A_ROW:
                raise UserError(f"{failures} trials in a row failed, the last: {error}") from None
            print(f"  failed: {error}", flush=True)
            continue
        failures = 0
        if loss is None:
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            print("  ended early", flush=True)
        else:
            study.tell(trial, loss)
            print(f"  validation loss {loss:.4f}, best {study.best_value:.4f}", flush=True)
    text = preset_text(name, study, space)
    print(text, end="")
    lock.close()
    if options.preset:
        preset.write_text(text, encoding="utf-8")
        print(f"written to {preset}; `make preset NAME={options.preset}` puts it into params.yaml")


if __name__ == "__main__":
    run(main)
