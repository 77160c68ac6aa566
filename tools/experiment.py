"""Runs one DVC experiment in a folder of its own, so that the work tree stays as it is."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from stages.common import params
from stages.common.report.evidence import SOURCES
from stages.common.run import UserError
from tools.check_params import with_values
from tools.sweep import bytes_of, data_of, data_state, dvc, tracked_files, untracked_data

LAST_LINES = 20  # of what a failed experiment said


def state(changes: Iterable[dict[str, Any]]) -> str:
    """A hash that is another one where code, params or data of experiments are others.

    Args:
        changes: of each experiment `section.key` to what it sets.
    """
    data = data_state(map(with_values, changes))
    return f"{bytes_of(tracked_files(SOURCES))} {data}"


def check_unchanged(begun: str, changes: Iterable[dict[str, Any]]) -> None:
    """UserError where `state` is no longer what it was: DVC would run what there is now."""
    if state(changes) != begun:
        raise UserError(
            "code, params.yaml or data changed while experiments ran, so that the next one would "
            "not be comparable with those that are done; put back what changed and run the same "
            "command again, which goes on"
        )


def check_handed(values: dict[str, Any]) -> None:
    """UserError where DVC would make something else of values than what they are.

    It takes them by Hydra's grammar, where keys of a mapping can't be quoted (class names beyond
    letters without accents, for one), puts a mapping's keys beside those that are there, and reads
    `${…}` as a reference.

    Args:
        values: of params.yaml, `section.key` to value.
    """
    from dvc.exceptions import DvcException
    from dvc.utils.hydra import apply_overrides
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    for key, value in values.items():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / params.PARAMS_FILE.name
            shutil.copyfile(params.PARAMS_FILE, path)
            try:
                apply_overrides(path, [f"{key}={as_override(value)}"])
                understood = params.read(path)
            except (DvcException, HydraException, OmegaConfBaseException):
                understood = None
        if _as_json(understood) != _as_json(with_values({key: value})):
            raise UserError(
                f"{key}: DVC can't be handed {value!r} (its grammar knows no quotation marks "
                "around keys, adds a mapping to the one that is there, and takes ${…} for a "
                f"reference); write it into {params.PARAMS_FILE}, commit that, and leave it out "
                "here"
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
    check_handed(values)
    # DVC's own --force would run every stage again, whether anything changed or not.
    if name in dvc("exp", "list", "--name-only").split():
        dvc("exp", "remove", name)
    words = ["--temp", "--name", name]
    copies = untracked_data(data_of([with_values(values)]))
    words += [word for path in copies for word in ("--copy-paths", path)]
    for key, value in values.items():
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
