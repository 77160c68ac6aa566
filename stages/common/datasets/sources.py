"""Files of a folder or of an archive, one after the other, by their names.

An archive is read member by member and never unpacked: no path of it is ever opened or created, so
none can leave the target, and no link of it is followed.
"""

import abc
import contextlib
import errno
import gzip
import lzma
import os
import re
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from stages.common.run import UserError

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
ARCHIVE_SUFFIXES = (".zip", *TAR_SUFFIXES)
ZIP_UTF8 = 0x800  # flag of a member
MOST_MEMBER_BYTES = 2**30  # a file is read as a whole; no image that can be used is larger


# What may be wrong with one file while others can be read, and what to say of it.
_OF_ONE_FILE = {
    errno.ENOENT: "is a link to a file that does not exist",
    errno.EACCES: "can't be read: permission denied",
    errno.EPERM: "can't be read: operation not permitted",
    errno.EIO: "can't be read: the disk fails there",
    errno.ESTALE: "can't be read: the file server no longer has it",
}


class Source(abc.ABC):
    """Where files come from. Names are relative, parted by `/`, and come sorted or as stored."""

    is_archive: bool

    def __init__(self, path: Path):
        """`path` is the archive, or the folder that names are relative to."""
        self.path = path
        # What `names` met:
        self.missing: dict[str, str] = {}  # names of what can't be read, and why
        self.links = 0  # left out of an archive
        self.folders: set[str] = set()  # names of folders, as far as an archive has them
        self.linked_folders: set[str] = set()  # names of links to folders

    @abc.abstractmethod
    def names(self) -> Iterator[str]:
        """The name of every file; links and devices in an archive are left out."""

    @abc.abstractmethod
    def files(self, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
        """Name and content of the files whose names are wanted."""


def open_source(path: Path) -> Source:
    """The folder or archive at `path`; UserError where it is neither."""
    if path.is_dir():
        return Folder(path)
    if not path.exists():
        raise UserError(
            f"dataset.path: {path} does not exist; put one folder of images for each class there, "
            f"or an archive of such folders ({', '.join(ARCHIVE_SUFFIXES)})"
        )
    name = path.name.lower()
    if name.endswith(".zip"):
        return Zip(path)
    if name.endswith(TAR_SUFFIXES):
        return Tar(path)
    raise UserError(
        f"dataset.path: expected a folder or an archive ({', '.join(ARCHIVE_SUFFIXES)}), "
        f"received {path}; a table of images needs dataset.name: image_table"
    )


class Folder(Source):
    """Files below a folder, sorted; links are followed, as they are the owner's own."""

    is_archive = False

    def names(self) -> Iterator[str]:
        """The name of every file."""
        yield from self._walk(self.path, "", ())

    def files(self, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
        """Name and content of the files whose names are wanted."""
        for name in self.names():
            if wanted(name):
                try:
                    content = self.read(name)
                except OSError as error:
                    if error.errno not in _OF_ONE_FILE:
                        raise
                    self.missing[name] = _OF_ONE_FILE[error.errno]
                    continue
                yield name, content

    def names_in(self, folder: str) -> Iterator[str]:
        """The name of every file of one folder, those of folders in it left out."""
        for path in sorted((self.path / folder).iterdir()):
            if path.is_file():
                yield f"{folder}/{path.name}"

    def read(self, name: str) -> bytes:
        """The content of a file; FileNotFoundError where it leads to none."""
        try:
            return (self.path / name).read_bytes()
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise FileNotFoundError(errno.ENOENT, "a link to itself", name) from None
            raise

    def _walk(self, folder: Path, prefix: str, above: tuple) -> Iterator[str]:
        status = folder.stat()
        identity = (status.st_dev, status.st_ino)
        if identity in above:
            return  # a link to a folder above it
        self.folders.add(prefix.rstrip("/") or ".")
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
        for entry in entries:
            if _is(entry.is_dir):
                if entry.is_symlink():
                    self.linked_folders.add(prefix + entry.name)
                yield from self._walk(
                    folder / entry.name, f"{prefix}{entry.name}/", (*above, identity)
                )
            elif _is(entry.is_file):
                yield prefix + entry.name
            elif entry.is_symlink() and not (folder / entry.name).exists():
                self.missing[prefix + entry.name] = _OF_ONE_FILE[errno.ENOENT]
                yield prefix + entry.name


def _is(kind: Callable[[], bool]) -> bool:
    """What a directory's entry is; a link that leads to itself is nothing."""
    try:
        return kind()
    except OSError as error:
        if error.errno == errno.ELOOP:
            return False
        raise


class Zip(Source):
    """Members of a .zip archive, in their order."""

    is_archive = True

    def names(self) -> Iterator[str]:
        """The name of every file; links are left out."""
        with _explained(self.path), zipfile.ZipFile(self.path) as archive:
            for member in self._members(archive):
                yield _safe_name(member.filename, self.path)

    def files(self, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
        """Name and content of the files whose names are wanted."""
        room = _Room(self.path)
        with _explained(self.path), zipfile.ZipFile(self.path) as archive:
            for member in self._members(archive):
                name = _safe_name(member.filename, self.path)
                if wanted(name):
                    if member.flag_bits & 1:
                        raise UserError(
                            f"dataset.path: {name} in {self.path} is encrypted; pack it anew "
                            "without a password"
                        )
                    room.take(name, member.file_size)
                    yield name, archive.read(member)

    def _members(self, archive: zipfile.ZipFile) -> Iterator[zipfile.ZipInfo]:
        self.links = 0
        for member in archive.infolist():
            _decode_name(member)
            if stat.S_ISLNK(member.external_attr >> 16):  # the upper half is Unix's mode
                self.links += 1
            elif member.is_dir():
                self.folders.add(_plain_name(member.filename))
            else:
                yield member


class Tar(Source):
    """Members of a .tar archive, compressed or not, in their order; read as a stream."""

    is_archive = True

    def names(self) -> Iterator[str]:
        """The name of every file; links and devices are left out."""
        with _explained(self.path), _open_tar(self.path) as archive:
            for member in self._members(archive):
                yield _safe_name(member.name, self.path)

    def files(self, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
        """Name and content of the files whose names are wanted."""
        room = _Room(self.path)
        with _explained(self.path), _open_tar(self.path) as archive:
            for member in self._members(archive):
                name = _safe_name(member.name, self.path)
                if wanted(name):
                    room.take(name, member.size)
                    yield name, archive.extractfile(member).read()

    def _members(self, archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
        self.links = 0
        while (member := archive.next()) is not None:
            if member.isfile():
                yield member
            elif member.isdir():
                self.folders.add(_plain_name(member.name))
            elif member.issym() or member.islnk():
                self.links += 1
            archive.members.clear()  # or the archive remembers every member that it read


class _Header(tarfile.TarInfo):
    """A header of a .tar archive that must be there and sound.

    tarfile takes a header that it can't read, and the end of the file, for the end of the archive,
    and whatever would have followed for nothing.
    """

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> "_Header":
        """The next header; ReadError where there is neither one nor the mark of the end."""
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:
            raise  # the block of zeros that ends an archive
        except tarfile.HeaderError as bad:
            raise tarfile.ReadError(f"{bad} at byte {archive.offset}, before its end") from None


@contextlib.contextmanager
def _open_tar(path: Path) -> Iterator[tarfile.TarFile]:
    """The archive as a stream, compressed or not, which is read to its end."""
    with path.open("rb") as file:
        # tarfile's own stream does not look at the checksum of gzip, which comes last.
        is_gzip = file.peek(2)[:2] == b"\x1f\x8b"
        opened = gzip.GzipFile(fileobj=file) if is_gzip else contextlib.nullcontext(file)
        mode = "r|" if is_gzip else "r|*"
        with opened as content:
            with tarfile.open(fileobj=content, mode=mode, tarinfo=_Header) as archive:
                yield archive
            while content.read(2**20):
                pass


class _Room:
    """Keeps an archive that unpacks to more than it seems from filling memory or disk."""

    def __init__(self, path: Path):
        self._path = path
        self._free = shutil.disk_usage(".").free

    def take(self, name: str, size: int) -> None:
        """Counts a file before it is read.

        Raises:
            UserError: it is larger than any image, or all so far exceed the free space.
        """
        self._free -= size
        if size > MOST_MEMBER_BYTES:
            raise UserError(
                f"dataset.path: {name} in {self._path} unpacks to {size} bytes, more than the "
                f"limit of {MOST_MEMBER_BYTES} for one image; remove it from the archive"
            )
        if self._free < 0:
            raise UserError(
                f"dataset.path: {self._path} unpacks to more bytes than are free on this disk; "
                "free some space, or use an archive that you trust"
            )


def _decode_name(member: zipfile.ZipInfo) -> None:
    """Reads a name as UTF-8 where it is some, if it says so or not: macOS leaves the flag out.

    All others are in code page 437, as zipfile takes them.
    """
    if not member.flag_bits & ZIP_UTF8:
        with contextlib.suppress(UnicodeError):
            member.filename = member.orig_filename.encode("cp437").decode()


def _plain_name(name: str) -> str:
    """The name with one `/` between its parts, none of them a lone dot."""
    # Packers keep what was typed: photos/./cats, photos//cats.
    return str(PurePosixPath(name.replace("\\", "/")))


def _safe_name(name: str, archive: Path) -> str:
    """The plain name of a file.

    Raises:
        UserError: the name points out of the archive: nobody who packs images means that.
    """
    name = _plain_name(name)
    if name.startswith("/") or ".." in name.split("/") or re.match(r"[A-Za-z]:/", name):
        raise UserError(
            f"dataset.path: {archive} holds {name!r}, which points to a place outside of the "
            "archive; do not trust it, or pack it anew from inside its folder"
        )
    return name


@contextlib.contextmanager
def _explained(path: Path):
    """Turns what the libraries raise on a damaged archive into one sentence."""
    try:
        yield
    except (
        *(zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, struct.error),
        *(OSError, EOFError, NotImplementedError, UnicodeDecodeError),
    ) as bad:
        # bz2 and gzip raise OSError without a number; zipfile seeks to places before the file.
        if isinstance(bad, OSError) and bad.errno not in (None, errno.EINVAL):
            raise
        raise UserError(
            f"dataset.path: the archive {path} is damaged or of a kind that can't be read: "
            f"{bad}; copy or pack it anew"
        ) from None
