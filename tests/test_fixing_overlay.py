"""Texts that stand in for files: the child checks and imports them, and the disk stays as it was."""

from __future__ import annotations

import importlib
import inspect
import linecache
import os
import py_compile
import sys
from typing import TYPE_CHECKING

from trainlint.api import check
from trainlint.files import Options, file_check
from trainlint.fixes.source import SourceText
from trainlint.overlay import overlaid

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

LAYERS = """\
from torch import nn


def block(width):
    return nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(width))
"""
NET = """\
import inspect

from layers import block

source = inspect.getsource(block)
assert "WIDTH" not in source or source.count("WIDTH") == 1, source
model = block(4)
"""


def test_a_module_is_imported_from_the_text_over_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "overlaid_module.py"
    path.write_text("value = 1\n")
    py_compile.compile(str(path))  # of equal size and time: it looks fresh for the text, too
    monkeypatch.syspath_prepend(str(tmp_path))
    with overlaid({str(path): "value = 2\ndef f():\n    return 'ü'"}):
        module = importlib.import_module("overlaid_module")
        assert module.value == 2
        assert inspect.getsource(module.f) == "def f():\n    return 'ü'\n"
        assert module.__loader__.get_data(str(path)).decode().startswith("value = 2")
        text = SourceText.read(os.path.relpath(path))
        assert text is not None
        assert text.text.startswith("value = 2")
    del sys.modules["overlaid_module"]
    assert linecache.getline(str(path), 1) == "value = 1\n"
    assert importlib.import_module("overlaid_module").value == 1
    del sys.modules["overlaid_module"]


def test_a_text_is_given_out_in_the_encoding_that_it_declares(tmp_path: Path) -> None:
    path = tmp_path / "latin.py"
    path.write_text("x = 1\n")
    with overlaid({str(path): "# coding: latin-1\nx = 'é'\n"}):
        loader = importlib.machinery.SourceFileLoader("latin", str(path))
        assert loader.get_data(str(path)) == b"# coding: latin-1\nx = '\xe9'\n"
        assert loader.get_source("latin") == "# coding: latin-1\nx = 'é'\n"


def test_files_are_checked_as_if_they_held_other_texts(tmp_path: Path) -> None:
    layers, net = tmp_path / "layers.py", tmp_path / "net.py"
    layers.write_text(LAYERS)
    net.write_text(NET)
    settings = {"stages": ("static",), "select": ["NRM001", "SUP"]}
    assert [f.code for f in check(str(net), **settings).findings] == ["NRM001"]
    checked = file_check(str(net), asked=Options(**settings))
    for path, old, new in (
        (net, "block(4)", "block(8)"),
        (layers, "(width))", "(8))"),
        (layers, "(width))", "(width * 2))  # WIDTH"),
    ):
        report = checked.report(overlay={str(path): path.read_text().replace(old, new)})
        assert [target.status for target in report.targets] == ["ok"], report.targets
        assert report.findings == []
        assert not any(target.notes for target in report.targets)
    silenced = LAYERS.replace("(width))", "(width))  # trainlint: ignore[NRM001]")
    assert checked.report(overlay={str(layers): silenced}).findings == []
    broken = checked.report(overlay={str(net): "x = (\n"})
    assert [target.status for target in broken.targets] == ["error"]
    assert (layers.read_text(), net.read_text()) == (LAYERS, NET)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["layers.py", "net.py"]
