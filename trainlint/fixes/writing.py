"""Read the files that fixes change, say which are not ours to edit, and write what was tried.

A file is written whole or not at all, and several of one fix together or none. Encoding, byte order mark,
newlines, mode, owner and links stay as they were. Imports no torch.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from trainlint.fixes.source import SourceText
from trainlint.sites import is_installed

_ROOT_MARKS: Final = (".git", "pyproject.toml", "setup.py", "setup.cfg")
# In the comments and the docstring at the top of a file.
_GENERATED: Final = re.compile(
    r"@generated\b|\b(auto-?generated|automatically generated|generated (by|from|file|code)|"
    r"code generated|do not (edit|modify))\b",
    re.IGNORECASE,
)
_HEADER_ROWS: Final = 20


class NotWritable(Exception):  # noqa: N818 (it is an answer, not an error)
    """The file is not edited; the text says why."""


@dataclass(frozen=True)
class Original:
    """A file as it was read, by its real path."""

    path: str
    content: bytes
    source: SourceText
    status: os.stat_result

    @classmethod
    def read(cls, filename: str) -> Original:
        """The file behind the name, through links. Raises `NotWritable` where it cannot be read exactly."""
        path = os.path.realpath(filename)
        try:
            status = Path(path).stat()
            content = Path(path).read_bytes()
        except OSError as error:
            raise NotWritable(f"{_name(path)} cannot be read: {error.strerror}") from None
        source = SourceText.decoded(path, content)
        if source is None:
            raise NotWritable(f"the encoding of {_name(path)} is not known")
        if source.encoded(source.text) != content:
            raise NotWritable(
                f"{_name(path)}: its encoding, {source.encoding}, does not give the same bytes back"
            )
        return cls(path, content, source, status)

    def encoded(self, text: str) -> bytes:
        """The file's bytes with another text. Raises `NotWritable` for signs that its encoding lacks."""
        try:
            return self.source.encoded(text)
        except UnicodeEncodeError as error:
            sign = error.object[error.start]
            raise NotWritable(
                f"{_name(self.path)}: its encoding, {self.source.encoding}, has no {sign!r}"
            ) from None

    def is_as_it_was(self) -> bool:
        """Whether the file still is what was read."""
        try:
            status = Path(self.path).stat()
            return (
                _identity(status) == _identity(self.status)
                and Path(self.path).read_bytes() == self.content
            )
        except OSError:
            return False


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def reason_to_spare(filename: str, roots: Sequence[Path]) -> str:
    """Why a file is not edited, whatever the fix, or "". `roots` are the folders of the project."""
    path = Path(os.path.realpath(filename))
    if path.suffix == ".ipynb" or filename.startswith("<"):
        return "is a notebook's, whose fixes are only shown"
    if is_installed(str(path)):
        return "belongs to an installed package"
    if not any(path.is_relative_to(root) for root in roots):
        return "lies outside of the project"
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            return "is no regular file"
        # By the mode as well: a superuser may write what was protected on purpose.
        if not mode & 0o222 or not os.access(path, os.W_OK):
            return "is read-only"
        if not path.parent.stat().st_mode & 0o222 or not os.access(path.parent, os.W_OK):
            return "lies in a folder that is read-only"
        if _is_generated(path.read_bytes()):
            return "says that it is generated"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return ""


def _is_generated(content: bytes) -> bool:
    """By what stands above its first statement."""
    rows = content[:8192].decode("latin-1").splitlines()[:_HEADER_ROWS]
    return any(
        _GENERATED.search(row) for row in rows if row.lstrip("\ufeffï»¿ ").startswith("#")
    ) or bool(_GENERATED.search(_docstring("\n".join(rows))))


def _docstring(header: str) -> str:
    found = re.match(r'(?:\s*#[^\n]*\n|\s)*[rR]?("""|\'\'\')(.*?)(\1|\Z)', header, re.DOTALL)
    return found[2] if found else ""


def root_of(path: Path) -> Path:
    """The folder of the project that the file is part of; its own where nothing marks one."""
    folder = Path(os.path.realpath(path)).parent
    marked = (
        each
        for each in (folder, *folder.parents)
        if any((each / name).exists() for name in _ROOT_MARKS)
    )
    return next(marked, folder)


def write_together(changes: Sequence[tuple[Original, str]]) -> None:
    """Write all of these texts, or none. Raises `NotWritable`, with the file's name, for the latter.

    What interrupts it, Ctrl-C too, finds the old files.
    """
    contents = [(original, original.encoded(text)) for original, text in changes]
    for original, _ in contents:
        if not original.is_as_it_was():
            raise NotWritable(f"{_name(original.path)} changed while it was checked")
    started: list[Original] = []
    try:
        for original, content in contents:
            started.append(original)
            _write(original, content)
    except BaseException as error:
        for original in started:
            with contextlib.suppress(OSError):
                if Path(original.path).read_bytes() != original.content:
                    _write(original, original.content, checked=False)
        if isinstance(error, OSError):
            name = _name(started[-1].path)
            raise NotWritable(f"{name} cannot be written: {error.strerror}") from None
        raise


def _name(path: str) -> str:
    """As the user would type it here."""
    near = os.path.relpath(path)
    return path if near.startswith(os.pardir) else near


def _write(original: Original, content: bytes, *, checked: bool = True) -> None:
    path = Path(original.path)
    if original.status.st_nlink > 1:
        with path.open("r+b") as stream:  # another name of it must stay one
            stream.write(content)
            stream.truncate()
            stream.flush()
            os.fsync(stream.fileno())
        _set_time(path, original)
        return
    descriptor, temporary = tempfile.mkstemp(".tmp", f".{path.name}.", path.parent)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            _copy_attributes(path, temporary, original.status)
            os.fsync(stream.fileno())
        _set_time(Path(temporary), original)
        if checked and not original.is_as_it_was():
            raise NotWritable(f"{_name(original.path)} changed while it was checked")
        Path(temporary).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
        raise
    _flush_folder(path.parent)


def _copy_attributes(path: Path, temporary: str, status: os.stat_result) -> None:
    """Owner, extended attributes, which hold access lists, and mode. Owners need not be ours to give."""
    if hasattr(os, "chown"):
        with contextlib.suppress(OSError):
            os.chown(temporary, status.st_uid, status.st_gid)
    if hasattr(os, "listxattr"):
        with contextlib.suppress(OSError):
            for name in os.listxattr(path):
                with contextlib.suppress(OSError):
                    os.setxattr(temporary, name, os.getxattr(path, name))
    Path(temporary).chmod(stat.S_IMODE(status.st_mode))


def _set_time(path: Path, original: Original) -> None:
    """A later second than it had: Python takes a module compiled from the old text for fresh otherwise."""
    now, before = time.time(), int(original.status.st_mtime)
    if int(now) <= before:
        os.utime(path, (now, before + 1))


def _flush_folder(folder: Path) -> None:
    with contextlib.suppress(OSError, AttributeError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
