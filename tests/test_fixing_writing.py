"""Files are written whole or not at all, and all but the edit stays as it was."""

from __future__ import annotations

import importlib.util
import os
import py_compile
import stat
from pathlib import Path
from typing import Any

import pytest

from trainlint.fixes.writing import NotWritable, Original, reason_to_spare, write_together

ENCODINGS = {
    "utf-8": "a = 'é'\n",
    "utf-8, no newline at the end": "a = 'é'",
    "mark": "\ufeffa = 'é'\n",
    "mark and declared": "\ufeff# coding: utf-8\na = 'é'\n",
    "latin-1": "# -*- coding: latin-1 -*-\na = 'é'\n",
    "cp1252": "#!/usr/bin/python\n# vim: set fileencoding=cp1252 :\na = '€'\n",
    "koi8-r": "# coding: koi8-r\na = 'привет'\n",
    "gbk": "# coding: gbk\na = '你好'\n",
    "crlf": "# coding: utf-8\r\na = 'é'\r\n\r\n",
    "cr": "# coding: latin-1\ra = 'é'\r",
    "mixed": "# é\r\na = 1\rb = 2\n",
}


def written(path: Path, old: str, new: str) -> None:
    original = Original.read(str(path))
    write_together([(original, original.source.text.replace(old, new))])


@pytest.mark.parametrize("name", ENCODINGS)
def test_the_bytes_beside_an_edit_stay(name: str, tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    encoding = name if name in ("latin-1", "cp1252", "koi8-r", "gbk") else "utf-8"
    encoding = "latin-1" if name == "cr" else encoding
    content = ENCODINGS[name].encode(encoding)
    path.write_bytes(content)
    written(path, "a =", "bc =")
    assert path.read_bytes() == content.replace(b"a =", b"bc =")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"# coding: no-such\n", "the encoding of net.py is not known"),
        (b"a = '\xff'\n", "the encoding of net.py is not known"),
        (b"# coding: utf-7\na = '+AOk-'\n# +AGE-\n", "its encoding, utf-7, does not give the same"),
    ],
)
def test_what_cannot_be_read_exactly_is_refused(
    content: bytes, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_bytes(content)
    with pytest.raises(NotWritable) as refusal:
        Original.read("net.py")
    assert reason in str(refusal.value)


def test_a_sign_that_the_encoding_lacks_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    path.write_bytes(b"# coding: latin-1\na = 1\n")
    with pytest.raises(NotWritable, match=r"its encoding, iso-8859-1, has no 'λ'"):
        written(path, "a =", "λ =")
    assert path.read_bytes() == b"# coding: latin-1\na = 1\n"


def test_links_modes_and_other_names_stay(tmp_path: Path) -> None:
    path, link, other = tmp_path / "net.py", tmp_path / "link.py", tmp_path / "other.py"
    path.write_text("a = 1\n")
    path.chmod(0o640)
    link.symlink_to(path)
    written(link, "a", "b")
    assert link.is_symlink()
    assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == ("b = 1\n", 0o640)
    os.link(path, other)
    written(path, "b = 1", "c")
    assert (other.read_text(), path.stat().st_nlink) == ("c\n", 2)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["link.py", "net.py", "other.py"]


def test_extended_attributes_stay(tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    path.write_text("a = 1\n")
    try:
        os.setxattr(path, "user.note", b"mine")
    except (AttributeError, OSError):
        pytest.skip("this file system keeps none")
    written(path, "a", "b")
    assert os.getxattr(path, "user.note") == b"mine"


def test_python_does_not_run_what_it_compiled_before(tmp_path: Path) -> None:
    path = tmp_path / "stale.py"
    path.write_text("value = 1\n")
    for value in (2, 3, 4):  # texts of one size, within one second
        compiled = Path(str(py_compile.compile(str(path))))
        before = path.stat().st_mtime
        written(path, str(value - 1), str(value))
        assert int(path.stat().st_mtime) > int(before)
        assert compiled.exists()
        spec = importlib.util.spec_from_file_location("stale", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        assert module.value == value


def test_what_changed_meanwhile_is_not_written(tmp_path: Path) -> None:
    one, two = tmp_path / "one.py", tmp_path / "two.py"
    for path in (one, two):
        path.write_text("a = 1\n")
    originals = [Original.read(str(path)) for path in (one, two)]
    two.write_text("mine\n")
    with pytest.raises(NotWritable, match=r"two\.py changed while it was checked"):
        write_together([(original, "b\n") for original in originals])
    assert (one.read_text(), two.read_text()) == ("a = 1\n", "mine\n")
    again = tmp_path / "new.py"
    again.write_text("a = 1\n")
    again.replace(two)  # the same bytes, but another file
    with pytest.raises(NotWritable, match="changed"):
        write_together([(originals[1], "b\n")])
    two.unlink()
    with pytest.raises(NotWritable, match="changed"):
        write_together([(originals[1], "b\n")])


@pytest.mark.parametrize("linked", [False, True])
@pytest.mark.parametrize(
    ("error", "number"),
    [(KeyboardInterrupt(), 3), (KeyboardInterrupt(), 4), (OSError(28, "No space left"), 3)],
)
def test_what_interrupts_finds_the_old_files(
    error: BaseException,
    number: int,
    linked: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    paths = [tmp_path / name for name in ("one.py", "two.py", "three.py")]
    for path in paths:
        path.write_text(f"{path.stem} = 1\n")
    if linked:
        os.link(paths[1], tmp_path / "other.py")
    names = sorted(each.name for each in tmp_path.iterdir())
    originals = [Original.read(str(path)) for path in paths]
    flush, calls = os.fsync, []

    def interrupted(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == number:  # each file is flushed, and the folder after it
            raise error
        flush(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", interrupted)
        with pytest.raises(NotWritable if isinstance(error, OSError) else KeyboardInterrupt):
            write_together([(original, "changed\n") for original in originals])
    assert [path.read_text() for path in paths] == ["one = 1\n", "two = 1\n", "three = 1\n"]
    assert sorted(each.name for each in tmp_path.iterdir()) == names


@pytest.mark.parametrize(
    ("content", "is_generated"),
    [
        ("# This file was automatically generated by x. Do not edit.\n", True),
        ("#!/usr/bin/python\n# -*- coding: utf-8 -*-\n# @generated\n", True),
        ('"""Autogenerated from net.proto."""\n', True),
        ("# Code generated by x; DO NOT EDIT.\n", True),
        ('"""A generator of images, which are generated by a GAN."""\n', False),
        ("import torch\n\n\nx = 'do not edit'\n", False),
        ("# Text is generated token by token.\n", False),
        ("", False),
    ],
)
def test_what_says_that_it_is_generated(content: str, is_generated: bool, tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    path.write_text(content)
    reason = reason_to_spare(str(path), [tmp_path])
    assert reason == ("says that it is generated" if is_generated else "")


def test_installed_packages_are_spared_wherever_they_lie(tmp_path: Path) -> None:
    import click

    assert reason_to_spare(click.__file__, [Path("/")]) == "belongs to an installed package"
    assert reason_to_spare(os.__file__, [Path("/")]) == "belongs to an installed package"


def attributes(path: Path) -> dict[str, Any]:
    status = path.stat()
    return {"mode": status.st_mode, "uid": status.st_uid, "gid": status.st_gid}


def test_owners_stay(tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    path.write_text("a = 1\n")
    if os.geteuid() == 0:
        os.chown(path, 12345, 12345)
    before = attributes(path)
    written(path, "a", "b")
    assert attributes(path) == before
