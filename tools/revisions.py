"""Files of a Git revision, or of the work tree, for tools that compare two."""

import json
import subprocess
from pathlib import Path
from typing import Any

from ruamel.yaml import YAMLError

from stages.common import params, paths, splits
from stages.common.run import UserError


def resolve(revision: str) -> str:
    """The full hash of a revision's commit; UserError where Git does not know it."""
    done = _git("rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
    if done.returncode:
        raise UserError(
            f"{revision!r} is no revision that this clone knows; give a branch, a tag or a commit "
            "(`git fetch` brings those of others; a shallow clone holds no history)"
        )
    return done.stdout.strip()


def check_history() -> None:
    """UserError where DVC can't keep an experiment: without a commit, and in a shallow clone."""
    if _git("rev-parse", "--verify", "--quiet", "HEAD").returncode:
        raise UserError(
            "experiments are kept beside a commit, and there is none here; `git init`, if need be, "
            "then `git add .` and `git commit`"
        )
    if _git("rev-parse", "--is-shallow-repository").stdout.strip() == "true":
        raise UserError(
            "this is a shallow clone, into which DVC can't bring the results of experiments; "
            "`git fetch --unshallow` completes it"
        )


def read(revision: str | None, path: str) -> str:
    """A file's text at a revision; None: in the work tree.

    Raises:
        UserError: there is no such file.
    """
    if revision is None:
        try:
            return Path(path).read_text(encoding="utf-8")
        except FileNotFoundError:
            raise UserError(f"{path} does not exist; `make repro` makes it") from None
    done = _git("show", f"{revision}:./{path}")
    if done.returncode or not done.stdout.strip():
        raise UserError(
            f"{path} is not in {revision[:7]}, or empty there: there is no baseline to compare "
            "with; commit the metrics of a run of that revision first"
        )
    return done.stdout


def read_json(revision: str | None, path: str) -> Any:
    """The content of a JSON file as `read` finds it; UserError where it is damaged, too."""
    try:
        return json.loads(read(revision, path))
    except json.JSONDecodeError as error:
        raise UserError(_damaged(revision, path, error)) from None


def read_params(revision: str | None) -> Any:
    """The content of params.yaml as `read` finds it; UserError where it is no YAML, too."""
    path = str(params.PARAMS_FILE)
    try:
        return params.parse(read(revision, path))
    except YAMLError as error:
        raise UserError(_damaged(revision, path, error)) from None


def read_result(revision: str | None, path: str) -> str | None:
    """A result's text, from Git or from DVC's cache or remote; None where it is in none of them.

    One that a fresh clone's work tree lacks is that of its commit.
    """
    try:
        return read(revision, path)
    except UserError:
        revision = revision or resolve("HEAD")
    import dvc.api
    from dvc.exceptions import DvcException
    from dvc_data.index import DataIndexDirError

    try:
        return dvc.api.read(path, repo=".", rev=revision)
    except (DvcException, DataIndexDirError, OSError):
        return None


def same_test_images(revision: str) -> bool:
    """Whether the work tree and a revision tested on the same images, by both files dvc.lock.

    They did with one table of splits, and with equal test images beside others to train on, where
    the source's own test split is kept.
    """
    locks = [_read_lock(side) for side in (None, revision)]
    tables = [_hash_in(lock, "split", "outs", splits.SPLITS_FILE) for lock in locks]
    if None in tables:
        raise UserError(f"dvc.lock has no {splits.SPLITS_FILE}; run `make repro`")
    pictures = [_hash_in(lock, "evaluate@head", "deps", paths.IMAGES / "test") for lock in locks]
    return tables[0] == tables[1] or pictures[0] == pictures[1] is not None


def stale() -> list[str]:
    """What makes the metrics in the work tree those of another run than params.yaml asks for.

    By dvc.lock: stages that ran with other params than there are now, and stages that read other
    files than the ones before them wrote last. Of code and data `dvc status` knows more, and takes
    longer; the page, which shows metrics and makes none, does not count.
    """
    lock = {name: stage for name, stage in _read_lock(None).items() if name != "report"}
    outs = (out for stage in lock.values() for out in stage.get("outs", []))
    written = {out["path"]: out.get("md5") for out in outs}
    found = []
    for name, stage in lock.items():
        ran = stage.get("params", {}).get(str(params.PARAMS_FILE), {})
        found += [f"{name} ran with another {key}" for key in ran if _param(key) != ran[key]]
        for dep in stage.get("deps", []):
            if written.get(dep["path"], dep.get("md5")) != dep.get("md5"):
                found.append(f"{name} read another {dep['path']}")
    return found


def _param(name: str) -> Any:
    """What params.yaml has under a name of keys joined by points; None where it lacks it."""
    value = read_params(None)
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _read_lock(revision: str | None) -> dict:
    """The stages of dvc.lock; UserError where it can't be read."""
    try:
        return params.parse(read(revision, "dvc.lock"))["stages"]
    except (YAMLError, KeyError, TypeError) as error:
        raise UserError(_damaged(revision, "dvc.lock", error)) from None


def _damaged(revision: str | None, path: str, error: Exception) -> str:
    where = "" if revision is None else f" of {revision}"
    line = " ".join(str(error).split())
    return f"{path}{where} can't be read ({line}); does it hold a merge conflict?"


def _hash_in(lock: dict, stage: str, kind: str, path: Path) -> str | None:
    """The hash of one of a stage's files in dvc.lock; None where it is not there."""
    for entry in lock.get(stage, {}).get(kind, []):
        if entry["path"] == path.as_posix():
            return entry["md5"]
    return None


def _git(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
