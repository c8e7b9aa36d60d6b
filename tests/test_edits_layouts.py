"""Edits in any layout of a file: newlines, indentation, encodings, marks, comments. Every other byte stays."""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from editing import Edit, check, run, site_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trainlint.fixes.edit import Fix, Safety
from trainlint.fixes.source import SourceEdits, SourceText, apply

NET = '''import torch
from torch import nn
from torch.nn import Sigmoid


class Net(nn.Module):
    """A net. {word}"""

    def __init__(self, width=4):
        super().__init__()
        word = '{word}'; self.norm = nn.BatchNorm1d(width){end}
        self.act = Sigmoid(){end}
        self.layers = [nn.Linear(3, 3)]  # {word}
        self.drop = nn.Dropout(){end}

    def forward(self, x):
        x = self.norm(x)
        if x is not None:
            x = torch.softmax(x + 1, 1) * 2  # {word}
        return self.act(x)


def train(net, optimizer, loss):
    """{word}"""
    for _ in range(1):
        loss.backward()  # {word}
        optimizer.step(){end}


net = Net()  # {word}
'''


def _argument(edits: SourceEdits, _: Any, path: Path) -> Fix:
    site = site_of(path, "nn.BatchNorm1d(width)")
    return edits.argument(site, 0, "num_features", 8, current=4, title="", safety=Safety.SAFE)


def _absent(edits: SourceEdits, _: Any, path: Path) -> Fix:
    site = site_of(path, "nn.Dropout()")
    return edits.argument(site, 0, "p", 0.2, current=0.5, title="", safety=Safety.SAFE)


# (edit, what stands there, what stands there then): the latter twice, each a line of the file.
KINDS: dict[str, tuple[Edit, list[tuple[str, str]]]] = {
    "argument": (_argument, [("width=4", "width=8")]),
    "absent": (_absent, [("nn.Dropout()", "nn.Dropout(p=0.2)")]),
    "callee": (
        lambda e, _, p: e.callee([site_of(p, "Sigmoid()")], "Sigmoid", "ReLU", title=""),
        [("Sigmoid()", "nn.ReLU()")],
    ),
    "removed": (
        lambda e, _, p: e.removed(site_of(p, "torch.softmax(x + 1, 1)"), title=""),
        [("torch.softmax(x + 1, 1) * 2", "(x + 1) * 2")],
    ),
    "deleted": (
        lambda e, _, p: e.removed(site_of(p, "self.norm(x)"), title=""),
        [("{4}{4}x = self.norm(x)\n", "")],
    ),
    "before": (
        lambda e, _, p: e.before_statement(
            site_of(p, "loss.backward()"), "optimizer.zero_grad()", title=""
        ),
        [("loss.backward()", "optimizer.zero_grad()\n{4}{4}loss.backward()")],
    ),
    "after": (
        lambda e, _, p: e.after_statement(
            site_of(p, "loss.backward()"),
            "torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)",
            title="",
        ),
        [
            (
                "{4}{4}optimizer.step()",
                "{4}{4}nn.utils.clip_grad_norm_(net.parameters(), 1.0)\n{4}{4}optimizer.step()",
            )
        ],
    ),
    "moved": (
        lambda e, _, p: e.moved_before(
            site_of(p, "optimizer.step()"), site_of(p, "loss.backward()"), title=""
        ),
        [
            ("{4}{4}optimizer.step(){end}\n", ""),
            ("{4}{4}loss.backward()", "{4}{4}optimizer.step(){end}\n{4}{4}loss.backward()"),
        ],
    ),
    "initialised": (
        lambda e, _, p: e.initialised(
            site_of(p, "nn.BatchNorm1d(width)"), "torch.nn.init.ones_({}.weight)", title=""
        ),
        [("BatchNorm1d(width){end}", "BatchNorm1d(width); nn.init.ones_(self.norm.weight){end}")],
    ),
    "list": (
        lambda e, _, p: e.module_list(site_of(p, "nn.Linear(3, 3)"), title=""),
        [("[nn.Linear(3, 3)]", "nn.ModuleList([nn.Linear(3, 3)])")],
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """How a text is written down. `newlines` are taken in turn."""

    newlines: tuple[str, ...]
    indent: str
    encoding: str
    cookie: str
    word: str
    final: bool
    trailing: str
    marked: bool

    def text(self, source: str) -> str:
        """The source in this layout."""
        lines = [self.cookie] * bool(self.cookie) + source.replace("{word}", self.word).split("\n")
        lines = [
            re.sub("^(    )+", lambda m: self.indent * (len(m[0]) // 4), line) for line in lines
        ]
        lines = [line.replace("{end}", self.trailing) for line in lines]
        ends = [self.newlines[n % len(self.newlines)] for n in range(len(lines))]
        text = "".join(line + end for line, end in zip(lines, ends, strict=True))
        last = ends[-1]
        text = text.removesuffix(last)
        return text if self.final else text.rstrip("\r\n")

    def raw(self, text: str) -> bytes:
        """The bytes of a text in this layout."""
        return codecs.BOM_UTF8 * self.marked + text.encode(self.encoding)


ENCODINGS = [
    ("utf-8", "", "ü层😀 \u2028 \x1c\x0b"),
    ("utf-8", "# é ( [ '", "\x0c #("),
    ("latin-1", "# -*- coding: latin-1 -*-", "ü ÿ"),
    ("cp1252", "# vim: set fileencoding=cp1252 :", "€ ü"),
    ("koi8-r", "# coding: koi8-r", "слой"),
    ("gbk", "# coding=gbk", "层数"),
]


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    """Layouts with one kind of newline, or several."""
    encoding, cookie, word = draw(st.sampled_from(ENCODINGS))
    one = st.sampled_from([("\n",), ("\r\n",), ("\r",)])
    mixed = st.lists(st.sampled_from(["\n", "\r\n", "\r"]), min_size=2, max_size=5).map(tuple)
    newlines = draw(one | mixed)
    if newlines[0] == "\r" and "\n" in newlines[1:]:
        newlines = newlines[1:]  # a CR before a LF is one newline, not two
    return Layout(
        newlines=newlines,
        indent=draw(st.sampled_from(["    ", "  ", "\t", " \t"])),
        encoding=encoding,
        cookie=cookie,
        word=word,
        final=draw(st.booleans()),
        trailing=draw(st.sampled_from(["", " ", "\t", "  # ( '", " \x0c"])),
        marked=encoding == "utf-8" and draw(st.booleans()),
    )


@pytest.mark.parametrize("kind", KINDS)
@given(layout=layouts())
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_only_what_is_meant_changes(kind: str, layout: Layout, tmp_path: Path) -> None:
    edit, replacements = KINDS[kind]
    path = tmp_path / f"{kind}.py"
    text = layout.text(NET)
    path.write_bytes(layout.raw(text))
    fix = edit(SourceEdits(), run(path), path)
    assert fix.edits, fix.obstacle
    after = check(path, fix)
    wanted = NET
    for old, new in replacements:
        old, new = old.replace("{4}", "    "), new.replace("{4}", "    ")
        assert wanted.count(old) == 1
        wanted = wanted.replace(old, new)
    if len({*layout.newlines}) == 1:
        assert after == layout.text(wanted)
    else:
        # A CR, an empty line and its LF are one newline: empty lines come and go.
        pair = SourceText("", after), SourceText("", layout.text(wanted))
        assert list(filter(None, pair[0].lines)) == list(filter(None, pair[1].lines))
    path.write_bytes(layout.raw(after))
    if kind in ("before", "after", "initialised", "list", "argument", "moved"):  # a second time
        assert edit(SourceEdits(), run(path), path).edits == []


def test_bytes_that_do_not_come_back_are_not_edited(tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    path.write_bytes(b"# coding: utf-7\nx = +AGE-\nf = print\nf()\n")
    text = SourceText.read(str(path))
    assert text is not None
    assert not text.exact
    fix = SourceEdits().removed(site_of(path, "f()"), title="t")
    assert (fix.edits, fix.obstacle) == ([], "utf-7 cannot write the file back as it is")


def test_what_the_encoding_cannot_write_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    path.write_bytes(b"# coding: ascii\nf = print\nf()\n")
    edits = SourceEdits()
    fix = edits.after_statement(site_of(path, "f()"), "f('\xfc')", title="t")
    assert (fix.edits, fix.obstacle) == ([], "the text there does not allow it")
    assert edits.after_statement(site_of(path, "f()"), "f('u')", title="t").edits


@pytest.mark.parametrize(
    "raw",
    [
        b"\xff\xfea\0",
        b"# coding: nonsense\nx = 1\n",
        b"x = '\xff'\n",
        b"# coding: latin-1\n\xef\xbb\xbf",
    ],
)
def test_what_python_cannot_decode_is_no_text(raw: bytes, tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    path.write_bytes(raw)
    text = SourceText.read(str(path))
    try:
        compile(raw, "net.py", "exec")
    except (SyntaxError, ValueError):
        assert text is None or text.tree is None or text.text == raw.decode("latin-1")
    else:
        assert text is not None


@pytest.mark.parametrize(
    "header",
    [
        "# @generated by a tool",
        "# This file was automatically generated.",
        "#!/usr/bin/env python\n# Auto-generated: do not touch",
        "#   DO NOT EDIT",
    ],
)
def test_generated_files_are_not_edited(header: str, tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    path.write_text(f"{header}\nf = print\nf()\n")
    fix = SourceEdits().removed(site_of(path, "f()"), title="t")
    assert fix.obstacle == "the file says at its top that it is generated"
    path.write_text(f"x = '''\n{header} '''\nf = print\nf()\nf\n".replace("#", "it says"))
    assert SourceEdits().removed(site_of(path, "f()"), title="t").edits


def test_edits_that_overlap_are_not_made() -> None:
    text = SourceText("f.py", "abcdef")
    edits = [text_edit(text, 1, 3, "-"), text_edit(text, 2, 4, "+")]
    with pytest.raises(ValueError, match="overlap"):
        apply(text.text, edits)
    touching = [text_edit(text, 1, 3, "-"), text_edit(text, 3, 3, "1"), text_edit(text, 3, 3, "2")]
    assert apply(text.text, touching) == "a-12def"
    assert apply(text.text, [touching[0], touching[2], touching[1]]) == "a-21def"


def text_edit(text: SourceText, start: int, end: int, content: str) -> Any:
    from trainlint.fixes.edit import Edit as TextEdit

    return TextEdit(text.filename, text.place(start), text.place(end), content)
