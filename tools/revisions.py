"""Files of a Git revision, or of the work tree, for tools that compare two."""

import subprocess
from pathlib import Path

import yaml

from stages.common import splits
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
    done = _git("show", f"{revision}:{path}")
    if done.returncode or not done.stdout.strip():
        raise UserError(
            f"{path} is not in {revision[:7]}, or empty there: there is no baseline to compare "
            "with; commit the metrics of a run of that revision first"
        )
    return done.stdout


def read_result(revision: str | None, path: str) -> str | None:
    """A result's text, from Git or from DVC's cache or remote; None where it is in none of them."""
    try:
        return read(revision, path)
    except UserError:
        if revision is None:
            return None
    import dvc.api
    from dvc.exceptions import DvcException
    from dvc_data.index import DataIndexDirError

    try:
        return dvc.api.read(path, repo=".", rev=revision)
    except (DvcException, DataIndexDirError, OSError):
        return None


def split_of_lock(revision: str | None) -> str:
    """The hash of the table of splits that dvc.lock of a revision holds."""
    lock = yaml.safe_load(read(revision, "dvc.lock"))
    for output in lock.get("stages", {}).get("split", {}).get("outs", []):
        if output["path"] == splits.SPLITS_FILE.as_posix():
            return output["md5"]
    raise UserError(f"dvc.lock has no {splits.SPLITS_FILE}; run `make repro`")


def _git(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
