"""Downloads single files from any URL that fsspec opens: https://, s3://, gs://, …"""

import contextlib
import errno
import hashlib
import threading
import time
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from stages.common.images import BadImage
from stages.common.run import UserError

THREADS = 16  # downloads at a time: each mostly waits
WAITS = (1.0, 2.0, 4.0)  # seconds before each further attempt
CONNECT_SECONDS, SILENCE_SECONDS = 10, 60
MOST_FAILURES_IN_A_ROW = 3 * THREADS
PARTIAL = ".part"
ABANDONED_SECONDS = 24 * 3600  # another run may be downloading into a folder that both share
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE)
RETRIED_STATUSES = (408, 429)  # of those from 400 to 499; all others are final


class Downloader:
    """Keeps what it downloads in a folder, so that an interrupted run goes on where it stopped.

    A file gets its name only when it is complete. One that is kept is not asked for again, unless
    it is forgotten: where the content behind a URL changes, delete the folder.
    """

    def __init__(self, folder: Path):
        """`folder` is where downloads are kept; what a killed run left half done goes."""
        for partial in folder.glob(f"??/*{PARTIAL}"):
            with contextlib.suppress(FileNotFoundError):  # complete by now
                if time.time() - partial.stat().st_mtime > ABANDONED_SECONDS:
                    partial.unlink()
        self._folder = folder
        self._lock = threading.Lock()
        self._failures_in_a_row = 0
        self._hosts_in_a_row: set[str] = set()  # of these failures
        self._hosts_that_answered: set[str] = set()
        self._given_up: set[str] = set()

    def get(self, url: str) -> Path:
        """The local file with the content of the URL. Callable from several threads.

        Raises:
            BadImage: not_downloaded, with the last error; a file that is not there is not asked
                for again, anything else is.
            UserError: the scheme is unknown or needs a package, or nothing can be reached.
        """
        target, host = self._folder / _file_name(url), urlsplit(url).netloc
        if target.exists():
            return target
        if host in self._given_up:
            raise BadImage(
                "not_downloaded",
                f"{url}: not tried, after {MOST_FAILURES_IN_A_ROW} downloads in a row from {host} "
                "had failed",
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        for wait in (*WAITS, None):
            try:
                _copy(url, target)
            except UserError:
                raise
            except Exception as error:  # each file system has errors of its own
                if self._is_of_this_machine(error):
                    raise
                last = error
                if _is_final(error):
                    break
                if wait is not None:
                    time.sleep(wait)
            else:
                self._note_answer(host)
                return target
        detail = f"{url}: {type(last).__name__}: {last}"
        if _is_final(last):
            self._note_answer(host)  # that there is no such file
        else:
            self._note_failure(host, detail)
        raise BadImage("not_downloaded", detail)

    def forget(self, url: str) -> None:
        """Removes what the URL gave, if anything."""
        (self._folder / _file_name(url)).unlink(missing_ok=True)

    def _is_of_this_machine(self, error: Exception) -> bool:
        """Whether the folder can't be written to: no other URL would fare better."""
        if isinstance(error, PermissionError) and error.filename:
            return Path(error.filename).is_relative_to(self._folder)
        return isinstance(error, OSError) and error.errno in NO_ROOM

    def _note_answer(self, host: str) -> None:
        with self._lock:
            self._failures_in_a_row = 0
            self._hosts_in_a_row.clear()
            self._hosts_that_answered.add(host)

    def _note_failure(self, host: str, detail: str) -> None:
        """Gives up where one download after the other fails: a million would take days.

        One host alone is given up, and its other files with it, if another has answered.
        """
        with self._lock:
            self._failures_in_a_row += 1
            self._hosts_in_a_row.add(host)
            if self._failures_in_a_row < MOST_FAILURES_IN_A_ROW:
                return
            if self._hosts_in_a_row == {host} and self._hosts_that_answered - {host}:
                self._given_up.add(host)
                self._failures_in_a_row = 0
                self._hosts_in_a_row.clear()
                return
            raise UserError(
                f"{self._failures_in_a_row} downloads in a row failed, the last one of {detail}; "
                "connect this machine, or take the rows of a host that is gone out of the table, "
                "and run again: what was downloaded is kept"
            )


def is_url(path: str) -> bool:
    """Whether a path of a table is a URL and no local path."""
    return "://" in path


def _file_name(url: str) -> str:
    """Two levels, so that no folder holds a million files."""
    name = hashlib.sha256(url.encode()).hexdigest()
    return f"{name[:2]}/{name}"


def _copy(url: str, target: Path) -> None:
    import fsspec

    # Two rows may name the same URL, so that each thread writes a file of its own.
    partial = target.with_name(f"{target.name}.{uuid.uuid4().hex}{PARTIAL}")
    try:
        if url.startswith(("http://", "https://")):
            # Whole: `::` in it would part a chain of file systems.
            file_system, path = fsspec.filesystem("https", **_http_options()), url
        else:
            file_system, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise UserError(
            f"dataset.path: the table names {url}, which can't be opened: {error}; install the "
            f"package (of s3:// by `make extra NAME=s3`), or use one of the schemes that are "
            "there, such as https:// and file://"
        ) from None
    try:
        file_system.get_file(path, str(partial))
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def _http_options() -> dict[str, Any]:
    """Time limits on silence instead of on the whole, and the environment's proxies."""
    import aiohttp

    timeout = aiohttp.ClientTimeout(
        total=None, sock_connect=CONNECT_SECONDS, sock_read=SILENCE_SECONDS
    )
    return {"client_kwargs": {"timeout": timeout, "trust_env": True}}


def _is_final(error: Exception) -> bool:
    """Whether another attempt would end the same way."""
    status = getattr(error, "status", None)
    refused = isinstance(status, int) and 400 <= status < 500 and status not in RETRIED_STATUSES
    return refused or isinstance(error, FileNotFoundError | PermissionError)
