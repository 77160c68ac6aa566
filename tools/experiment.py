"""Runs one DVC experiment in a folder of its own, so that the work tree stays as it is."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from stages.common import params
from stages.common.run import UserError, end_when_told
from tools.sweep import bytes_of, data_state, dvc, tracked_files, untracked_data

LAST_LINES = 20  # of what a failed experiment said
# What decides its results, beside the data.
SOURCES = tuple(map(Path, ("params.yaml", "dvc.yaml", "stages", "requirements.txt")))


def state(values: Mapping[str, Sequence[Any]]) -> str:
    """A hash that is another one where code, params or data of experiments are others.

    Args:
        values: `section.key` to its values, where they are others than that of params.yaml.
    """
    return f"{bytes_of(tracked_files(SOURCES))} {data_state(values)}"


def check_unchanged(begun: str, values: Mapping[str, Sequence[Any]]) -> None:
    """UserError where `state` is no longer what it was: DVC would run what there is now."""
    if state(values) != begun:
        raise UserError(
            "code, params.yaml or data changed while experiments ran, so that the next one would "
            "not be comparable with those that are done; put back what changed and run the same "
            "command again, which goes on, or run it again as things are now"
        )


def check_override(key: str, value: Any) -> None:
    """UserError where Hydra's grammar, by which DVC takes values, can't say this one.

    Keys of a mapping can't be quoted there: class names beyond letters without accents, for one.
    """
    from dvc.utils.hydra import to_hydra_overrides
    from hydra.errors import HydraException

    try:
        (override,) = to_hydra_overrides([f"{key}={as_override(value)}"])
        understood = _as_json(override.value())
    except HydraException:
        understood = "nothing"
    if understood != _as_json(value):
        raise UserError(
            f"{key}: DVC can't be handed {value!r}, of which it understands {understood} (it takes "
            f"no quotation marks around keys); write it into {params.PARAMS_FILE}, commit that, "
            "and leave it out here"
        )


def lines(name: str, target: str, values: dict[str, Any]) -> Iterator[str]:
    """Runs an experiment; what DVC and the stages say, a line at a time.

    Closing the iterator (contextlib.closing) ends an experiment that is still running. The
    arguments are those of `start`.

    Raises:
        UserError: the experiment failed; with the last lines that it said.
    """
    process = start(name, target, values)
    last: deque[str] = deque(maxlen=LAST_LINES)
    try:
        for line in process.stdout:
            last.append(line)
            yield line
        if process.wait():
            raise UserError(f"the experiment {name} failed: {''.join(last).strip()}")
    finally:
        if process.poll() is None:
            end(process)


def start(name: str, target: str, values: dict[str, Any]) -> subprocess.Popen:
    """Starts an experiment; what DVC and the stages say can be read from its stdout, by lines.

    Args:
        name: of the experiment; one of that name is replaced.
        target: the stage to run up to.
        values: of params.yaml, `section.key` to value.
    """
    # DVC's own --force would run every stage again, whether anything changed or not.
    if name in dvc("exp", "list", "--name-only").split():
        dvc("exp", "remove", name)
    end_when_told()  # or an experiment, in a session of its own, would train on
    words = ["--temp", "--name", name]
    chosen = {key: [value] for key, value in values.items()}
    words += [word for path in untracked_data(chosen) for word in ("--copy-paths", path)]
    for key, value in values.items():
        check_override(key, value)
        words += ["-S", f"{key}={as_override(value)}"]
    return subprocess.Popen(
        [sys.executable, "-m", "dvc", "exp", "run", *words, target],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # so that the stage can be ended with it
        # A job in the background of a script ignores Ctrl-C, and so would all that it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def _as_json(value: Any) -> str:
    """A value as params are checked: a date as its text, a key that is a number as well."""
    return json.dumps(value, ensure_ascii=False, default=str)


def as_override(value: Any) -> str:
    """A value as `dvc exp run -S` reads it, by Hydra's grammar.

    It is JSON but for keys, which are unquoted, and backslashes, which count as they stand unless a
    quote follows.
    """
    if isinstance(value, str):
        escaped = re.sub(r'(\\*)"', r'\1\1\\"', value)
        return '"' + re.sub(r"(\\+)$", r"\1\1", escaped) + '"'
    if isinstance(value, dict):
        pairs = (f"{_escaped_key(str(key))}:{as_override(one)}" for key, one in value.items())
        return "{" + ",".join(pairs) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(as_override, value)) + "]"
    return _as_json(value)


def _escaped_key(key: str) -> str:
    """A key of a dictionary with what Hydra's grammar takes for its own escaped."""
    return re.sub(r"([\\()\[\]{}:=, \t])", r"\\\1", key)


def end(process: subprocess.Popen) -> None:
    """Ends DVC and its stage, first as Ctrl-C does, so that DVC lets go of its locks."""
    for number in (signal.SIGINT, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=30)
            return
