"""Texts that stand in for files, so that an edit is tried before the file is touched. Imports no torch.

While texts are laid over their files, `SourceText.read`, `import`, `linecache` and `inspect.getsource` see
them in place of what is on the disk, and no compiled module of the disk is run for them. Processes that are
started afresh meanwhile, and code that opens the file itself, see the disk.
"""

from __future__ import annotations

import contextlib
import io
import linecache
import os
import tokenize
from collections.abc import Iterator, Mapping
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType
from typing import Final

from trainlint.sites import replaced

_TEXTS: Final[dict[str, str]] = {}


def text_over(filename: str) -> str | None:
    """The text that stands in for the file now, or None."""
    return _TEXTS.get(os.path.realpath(filename)) if _TEXTS else None


def version_of(filename: str) -> float | str | None:
    """What differs whenever the text of the file does; None where there is no such file."""
    text = text_over(filename)
    if text is not None:
        return text
    try:
        return Path(filename).stat().st_mtime
    except OSError:
        return None


@contextlib.contextmanager
def overlaid(texts: Mapping[str, str]) -> Iterator[None]:
    """Lay these texts, by file name, over their files. Not to be nested."""
    _TEXTS.update({os.path.realpath(name): text for name, text in texts.items()})
    cached = {name: entry for name in _TEXTS if (entry := linecache.cache.pop(name, None))}
    for name in _TEXTS:
        _show_lines(name)
    try:
        with contextlib.ExitStack() as stack:
            if _TEXTS:
                stack.enter_context(replaced(SourceFileLoader, "get_code", _code))
                stack.enter_context(replaced(SourceFileLoader, "get_data", _data))
            yield
    finally:
        for name in _TEXTS:
            linecache.cache.pop(name, None)
        linecache.cache.update(cached)
        _TEXTS.clear()


def _show_lines(filename: str) -> None:
    """To `linecache`, and so to tracebacks and `inspect`."""
    text = text_over(filename) or ""
    end = "" if text.endswith(("\n", "\r")) else "\n"
    lines = io.StringIO(text + end, newline=None).readlines()
    # An entry without a time is never compared with the file.
    linecache.cache[filename] = (len(text), None, lines, filename)


_CODE_OF_FILE: Final = SourceFileLoader.get_code
_DATA_OF_FILE: Final = SourceFileLoader.get_data


def _code(self: SourceFileLoader, fullname: str) -> CodeType | None:
    path = self.get_filename(fullname)
    text = text_over(path)
    if text is None:
        return _CODE_OF_FILE(self, fullname)
    # A compiled module of the old text may look fresh, by size and time: it is not asked for.
    _show_lines(path)
    code: CodeType = self.source_to_code(text, path)
    return code


def _data(self: SourceFileLoader, path: str) -> bytes:
    text = text_over(path)
    return _DATA_OF_FILE(self, path) if text is None else _encoded(text)


def _encoded(text: str) -> bytes:
    """In the encoding that its first lines declare, as whoever reads bytes will decode them."""
    lines = iter(text.encode(errors="replace").splitlines(keepends=True)[:2])
    encoding, _ = tokenize.detect_encoding(lambda: next(lines, b""))
    return text.encode(encoding, errors="replace")
