"""Build edits of the user's source: find the call behind a site, change one part of it, check the result.

A call is found by the end of the span that Python keeps for its instruction, which is unique since every
call ends in its own parenthesis. An edit is offered only if the edited text parses to the tree that
the same change of the tree gives; whatever is shared, computed or not unique is refused, and the
remedy is then shown without an edit.
"""

from __future__ import annotations

import ast
import codecs
import copy
import re
import tokenize
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from trainlint.fixes.edit import Edit, Fix, Location, Safety
from trainlint.fixes.patch import Patch
from trainlint.overlay import text_over

if TYPE_CHECKING:
    from trainlint.sites import Site


_NEWLINE: Final = re.compile(r"\r\n|\r|\n")
_FIRST_LINES: Final = re.compile(rb"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+$")


class SourceText:
    """One file: its text, its tree, and conversion between byte spans and character positions.

    `text` is the file as it is decoded, without its byte order mark, its newlines untouched: an edited
    text, `encoded`, has every other byte as it was.
    """

    def __init__(
        self, filename: str, text: str, *, encoding: str = "utf-8", marked: bool = False
    ) -> None:
        self.filename = filename
        self.text = text
        self.encoding = encoding
        self.marked = marked
        # `str.splitlines` also splits at form feeds and other separators that Python does not.
        self.lines = _NEWLINE.split(text)

    @classmethod
    def read(cls, filename: str) -> SourceText | None:
        """The file as Python would decode it, or what stands in for it, or None where that fails."""
        text = text_over(filename)
        if text is not None:
            return cls(filename, text)
        try:
            return cls.decoded(filename, Path(filename).read_bytes())
        except (OSError, ValueError):
            return None

    @classmethod
    def decoded(cls, filename: str, raw: bytes) -> SourceText | None:
        """The bytes of a file as Python would decode them, or None where that fails."""
        # `detect_encoding` itself would take a text whose lines end in a lone CR for one line.
        first = iter([*_FIRST_LINES.findall(raw[:4096])[:2], b""])
        try:
            encoding, _ = tokenize.detect_encoding(lambda: next(first))
            encoding = "utf-8" if encoding == "utf-8-sig" else encoding
            marked = raw.startswith(codecs.BOM_UTF8)
            text = raw[len(codecs.BOM_UTF8) * marked :].decode(encoding)
        except (SyntaxError, UnicodeDecodeError, LookupError, StopIteration):
            return None
        return cls(filename, text, encoding=encoding, marked=marked)

    def encoded(self, text: str) -> bytes:
        """Another text of this file as bytes, in its encoding and with its byte order mark.

        Raises `UnicodeEncodeError` for a text that the encoding cannot write.
        """
        return codecs.BOM_UTF8 * self.marked + text.encode(self.encoding)

    @cached_property
    def newline(self) -> str:
        """The newline that most lines of the file end in."""
        found = _NEWLINE.findall(self.text)
        return max(("\n", "\r\n", "\r"), key=found.count)

    @cached_property
    def tree(self) -> ast.Module | None:
        """The syntax tree, or None where the text does not parse."""
        try:
            return ast.parse(self.text)
        except (SyntaxError, ValueError):
            return None

    def location(self, row: int, byte_column: int) -> Location:
        """Location of a row from 1 and a byte column from 0."""
        line = self.lines[row - 1] if 0 < row <= len(self.lines) else ""
        return Location(row, len(line.encode()[:byte_column].decode(errors="ignore")) + 1)

    def edit(self, node: ast.expr, content: str) -> Edit:
        """Replace the text of an expression."""
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return Edit(
            self.filename,
            self.location(node.lineno, node.col_offset),
            self.location(node.end_lineno, node.end_col_offset),
            content,
        )

    def call_at(self, site: Site) -> ast.Call | None:
        """The call that the site's instruction executes."""
        span = site.span()
        if span is None or self.tree is None or site.filename != self.filename:
            return None
        _, end_row, _, end_column = span
        found = [
            node
            for node in ast.walk(self.tree)
            if isinstance(node, ast.Call)
            and (node.end_lineno, node.end_col_offset) == (end_row, end_column)
        ]
        return found[0] if len(found) == 1 else None

    def statement_of(self, node: ast.AST) -> ast.stmt | None:
        """The innermost statement that contains the node."""
        if self.tree is None:
            return None
        best: ast.stmt | None = None
        for statement in ast.walk(self.tree):
            if isinstance(statement, ast.stmt) and any(
                part is node for part in ast.walk(statement)
            ):
                best = statement
        return best


def apply(text: str, edits: Sequence[Edit]) -> str:
    """The text with the edits made. They must not overlap; all must be of one file."""
    lines = re.split(r"(\r\n|\r|\n)", text)
    starts = [0]
    for content, newline in zip(lines[::2], [*lines[1::2], ""], strict=True):
        starts.append(starts[-1] + len(content) + len(newline))

    def offset(place: Location) -> int:
        return starts[place.row - 1] + place.column - 1

    for edit in sorted(edits, key=lambda edit: offset(edit.location), reverse=True):
        text = text[: offset(edit.location)] + edit.content + text[offset(edit.end_location) :]
    return text


@dataclass(frozen=True)
class _Change:
    """An edit together with the change of the tree that it must amount to."""

    edit: Edit
    path: tuple[tuple[str, int | None], ...]
    replacement: ast.expr


class SourceEdits:
    """The fact that gives rules their edits: fixes at constructors and calls of the user's own files.

    `project` tells whether a file may be edited at all (the user's, not an installed package's).
    """

    def __init__(self, project: Callable[[str], bool] | None = None) -> None:
        self._project = project or (lambda _: True)
        self._texts: dict[str, SourceText | None] = {}

    def text(self, filename: str) -> SourceText | None:
        """The source of a file that may be edited, else None."""
        if filename not in self._texts:
            self._texts[filename] = SourceText.read(filename) if self._project(filename) else None
        return self._texts[filename]

    def argument(
        self,
        site: Site | None,
        position: int,
        name: str,
        value: Any,
        *,
        current: Any,
        title: str,
        safety: Safety,
        reason: str = "",
        patches: Sequence[Patch] = (),
        neighbour: tuple[Site | None, int, str] | None = None,
        built: int = 1,
        suits: int | None = None,
    ) -> Fix:
        """Set one argument of the call at `site`, which is `current` now.

        The call may be that of a larger layer or of the user's own class, with other arguments.
        `neighbour` is (site, position, name) of an argument in the same function that has the wanted
        value whenever that function runs; its expression is then written here. `built` is how many layers
        the call makes and `suits` for how many the value is right: unless for all, there is no edit.
        """
        if suits is not None and suits < built:
            why = f"the call makes {built} layers, and the value suits {suits} of them"
            return self._refused(title, why, reason, patches)
        del neighbour
        made = [(site, _set_argument(position, name, value, current))]
        return self._fix(made, title, safety, reason, patches)

    def callee(
        self,
        sites: Sequence[Site | None],
        old: str,
        new: str,
        *,
        title: str,
        safety: Safety = Safety.UNSAFE,
        reason: str = "",
        patches: Sequence[Patch] = (),
    ) -> Fix:
        """Call `new` for `old` at all these sites: `nn.Sigmoid()` to `nn.ReLU()`, `x.sigmoid()` too."""
        made = [(site, _rename_callee(old, new)) for site in sites]
        return self._fix(made, title, safety, reason, patches)

    def replaced_calls(
        self,
        changes: Sequence[tuple[Site | None, CallBuilder]],
        *,
        title: str,
        safety: Safety = Safety.UNSAFE,
        reason: str = "",
        patches: Sequence[Patch] = (),
    ) -> Fix:
        """Replace whole calls by what `build(call, its source text)` returns for each."""
        made = [(site, _rebuild(build)) for site, build in changes]
        return self._fix(made, title, safety, reason, patches)

    def replaced_expression(
        self,
        text: SourceText,
        node: ast.expr,
        content: str,
        *,
        title: str,
        safety: Safety = Safety.UNSAFE,
        reason: str = "",
        patches: Sequence[Patch] = (),
    ) -> Fix:
        """Replace one expression of a file, an assigned value for instance, by other source."""
        change = _change(text, node, node, content, ())
        if change is None or not _agrees(text, [change]):
            return self._refused(title, "the text there does not allow it", reason, patches)
        return Fix(title, safety, [change.edit], reason=reason, patches=list(patches))

    def removed(
        self,
        site: Site | None,
        *,
        title: str,
        safety: Safety = Safety.UNSAFE,
        reason: str = "",
        patches: Sequence[Patch] = (),
    ) -> Fix:
        """Take a call out.

        An operation gives way to what it is applied to; a layer is dropped at the end of a `Sequential`,
        else it becomes `nn.Identity()`, so that no key of the state moves.
        """
        del site, safety
        return self._refused(title, "not built yet", reason, patches)

    def before_statement(
        self,
        site: Site | None,
        line: str,
        *,
        title: str,
        safety: Safety = Safety.UNSAFE,
        reason: str = "",
        patches: Sequence[Patch] = (),
    ) -> Fix:
        """Put a line, or several, before the statement that holds the call at `site`.

        Give names of torch in full, `torch.nn.utils.clip_grad_norm_(...)`; they are spelled as in the file.
        """
        del site, line, safety
        return self._refused(title, "not built yet", reason, patches)

    def after_statement(
        self,
        site: Site | None,
        line: str,
        *,
        title: str,
        safety: Safety = Safety.UNSAFE,
        reason: str = "",
        patches: Sequence[Patch] = (),
    ) -> Fix:
        """Put a line, or several, behind the statement that holds the call at `site`."""
        del site, line, safety
        return self._refused(title, "not built yet", reason, patches)

    def moved_before(
        self,
        site: Site | None,
        other: Site | None,
        *,
        title: str,
        safety: Safety = Safety.UNSAFE,
        reason: str = "",
        patches: Sequence[Patch] = (),
    ) -> Fix:
        """Move the statement that holds the call at `site` to before the one that holds that at `other`."""
        del site, other, safety
        return self._refused(title, "not built yet", reason, patches)

    def initialised(
        self,
        site: Site | None,
        call: str,
        *,
        title: str,
        safety: Safety = Safety.UNSAFE,
        reason: str = "",
        patches: Sequence[Patch] = (),
    ) -> Fix:
        """Put a line behind the statement that constructs a layer at `site`.

        `call` is the line, with `{}` for the layer: `torch.nn.init.kaiming_normal_({}.weight)`. An element
        of a `Sequential` is `self.layers[1]`.
        """
        del site, call, safety
        return self._refused(title, "not built yet", reason, patches)

    def module_list(
        self,
        site: Site | None,
        *,
        title: str,
        safety: Safety = Safety.SAFE,
        reason: str = "",
        patches: Sequence[Patch] = (),
    ) -> Fix:
        """Wrap the plain list, kept as an attribute, that the layer made at `site` is put into."""
        del site, safety
        return self._refused(title, "not built yet", reason, patches)

    def normalised(
        self,
        site: Site | None,
        layer: str,
        size: tuple[int, str],
        uses: Sequence[Site | None],
        *,
        title: str,
        safety: Safety = Safety.UNSAFE,
        reason: str = "",
        patches: Sequence[Patch] = (),
    ) -> Fix:
        """Put a layer, `torch.nn.BatchNorm2d`, behind `self.a = Conv(...)`, which is made at `site`.

        Its size is that argument (position, name) of the constructor; `uses` are the calls of `self.a`.
        """
        del site, layer, size, uses, safety
        return self._refused(title, "not built yet", reason, patches)

    def residual(
        self,
        site: Site | None,
        *,
        title: str,
        safety: Safety = Safety.UNSAFE,
        reason: str = "",
        patches: Sequence[Patch] = (),
    ) -> Fix:
        """Add its input to what the call at `site` gives: `y = self.f(x)` to `y = x + self.f(x)`."""
        del site, safety
        return self._refused(title, "not built yet", reason, patches)

    def together(
        self,
        *fixes: Fix,
        title: str,
        safety: Safety | None = None,
        reason: str = "",
        patches: Sequence[Patch] | None = None,
    ) -> Fix:
        """One fix of several: all their edits or none. Patches and reasons are theirs unless given."""
        own = [patch for fix in fixes for patch in fix.patches] if patches is None else patches
        why = reason or "; ".join(dict.fromkeys(fix.reason for fix in fixes if fix.reason))
        without = next((fix for fix in fixes if not fix.edits), None)
        if without is not None:
            return self._refused(title, without.obstacle, why, own)
        worst = Safety.UNSAFE if any(f.safety == Safety.UNSAFE for f in fixes) else Safety.SAFE
        edits = list(dict.fromkeys(edit for fix in fixes for edit in fix.edits))
        for filename in {edit.filename for edit in edits}:
            text = self.text(filename)
            if text is None or not _parses(text, [e for e in edits if e.filename == filename]):
                return self._refused(title, "the edits meet in one place", why, own)
        return Fix(title, safety or worst, edits, reason=why, patches=list(own))

    def inserted_after(
        self,
        site: Site | None,
        line: Callable[[str], str],
        *,
        title: str,
        reason: str = "",
        patches: Sequence[Patch] = (),
    ) -> Fix:
        """Insert a line after `self.name = <call at site>`; `line("self.name")` gives its text."""
        text = None if site is None else self.text(site.filename)
        if text is None or site is None:
            return self._refused(title, self._unreadable(site), reason, patches)
        call = text.call_at(site)
        statement = None if call is None else text.statement_of(call)
        if (
            not isinstance(statement, ast.Assign)
            or statement.value is not call
            or len(statement.targets) != 1
            or not isinstance(statement.targets[0], (ast.Attribute, ast.Name))
        ):
            why = "the layer is not assigned to a name of its own"
            return self._refused(title, why, reason, patches)
        after = line(ast.unparse(statement.targets[0]))
        return self.beside(
            text, statement, after=after, title=title, reason=reason, patches=patches
        )

    def beside(
        self,
        text: SourceText,
        statement: ast.stmt,
        *,
        before: str = "",
        after: str = "",
        title: str,
        safety: Safety = Safety.UNSAFE,
        reason: str = "",
        patches: Sequence[Patch] = (),
    ) -> Fix:
        """Put `before` in front of a statement (`x = `, `return `), or the line `after` below it."""
        row, end_row = statement.lineno, statement.end_lineno or statement.lineno
        indent = text.lines[row - 1].encode()[: statement.col_offset].decode()
        last = text.lines[end_row - 1]
        behind = last.encode()[statement.end_col_offset or 0 :].strip()
        if indent.strip() or (after and behind and not behind.startswith(b"#")):
            # a one-line suite, or another statement behind it
            return self._refused(title, "the statement shares its line", reason, patches)
        if after:
            place, content = Location(end_row, len(last) + 1), f"{text.newline}{indent}{after}"
        else:
            place, content = text.location(row, statement.col_offset), before
        edit = Edit(text.filename, place, place, content)
        if not _parses(text, [edit]):
            return self._refused(title, "the text there does not allow it", reason, patches)
        return Fix(title, safety, [edit], reason=reason, patches=list(patches))

    def _refused(self, title: str, why: str, reason: str, patches: Sequence[Patch]) -> Fix:
        return Fix(title, obstacle=why, reason=reason, patches=list(patches))

    def _unreadable(self, site: Site | None) -> str:
        if site is None:
            return "no line of your files is known for it"
        return f"{site.filename} may not be edited"

    def _fix(
        self,
        changes: Sequence[tuple[Site | None, _Builder]],
        title: str,
        safety: Safety,
        reason: str,
        patches: Sequence[Patch],
    ) -> Fix:
        built: list[_Change] = []
        texts: list[SourceText] = []
        for site, build in changes:
            text = None if site is None else self.text(site.filename)
            if text is None or site is None:
                return self._refused(title, self._unreadable(site), reason, patches)
            call = text.call_at(site)
            change = None if call is None else build(text, call)
            if change is None:
                return self._refused(title, "it is decided elsewhere", reason, patches)
            built.append(change)
            texts.append(text)
        unique = {change.edit: (change, text) for change, text in zip(built, texts, strict=True)}
        for text in {id(text): text for text in texts}.values():
            own = [change for change, other in unique.values() if other is text]
            if not _agrees(text, own):
                return self._refused(title, "the text there does not allow it", reason, patches)
        return Fix(title, safety, list(unique), reason=reason, patches=list(patches))


def _parses(text: SourceText, edits: Sequence[Edit]) -> bool:
    try:
        ast.parse(apply(text.text, edits))
    except SyntaxError:
        return False
    return True


CallBuilder = Callable[[ast.Call, str], str | None]
_Builder = Callable[[SourceText, ast.Call], "_Change | None"]


def _set_argument(position: int, name: str, value: Any, current: Any) -> _Builder:
    def build(text: SourceText, call: ast.Call) -> _Change | None:
        for index, keyword in enumerate(call.keywords):
            if keyword.arg == name:
                return _literal(text, call, keyword.value, (("keywords", index), ("value", None)))
        passed = call.args[: position + 1]
        if len(passed) <= position or any(isinstance(arg, ast.Starred) for arg in passed):
            return None
        return _literal(text, call, call.args[position], (("args", position),))

    def _literal(
        text: SourceText, call: ast.Call, node: ast.expr, within: tuple[tuple[str, int | None], ...]
    ) -> _Change | None:
        # A name's value is decided elsewhere, perhaps for others too.
        if not _is_constant_arithmetic(node) or _evaluated(node) != current:
            return None
        return _change(text, call, node, repr(value), within)

    return build


def _is_constant_arithmetic(node: ast.expr) -> bool:
    """`64`, or `16 * 5 * 5`."""
    return all(
        isinstance(part, (ast.BinOp, ast.operator, ast.Constant, ast.UnaryOp, ast.unaryop))
        for part in ast.walk(node)
    )


def _evaluated(node: ast.expr) -> Any:
    try:
        return eval(compile(ast.Expression(node), "<argument>", "eval"), {"__builtins__": {}})
    except (ArithmeticError, TypeError, ValueError):
        return None


def _rename_callee(old: str, new: str) -> _Builder:
    def build(text: SourceText, call: ast.Call) -> _Change | None:
        callee = call.func
        source = ast.get_source_segment(text.text, callee)
        if source is None or not (source == old or source.endswith("." + old)):
            return None
        if isinstance(callee, ast.Name):
            return None  # imported by name: the new name may not be
        return _change(text, call, callee, source[: -len(old)] + new, (("func", None),))

    return build


def _rebuild(builder: CallBuilder) -> _Builder:
    def build(text: SourceText, call: ast.Call) -> _Change | None:
        source = ast.get_source_segment(text.text, call)
        content = None if source is None else builder(call, source)
        return None if content is None else _change(text, call, call, content, ())

    return build


def _change(
    text: SourceText,
    call: ast.expr,
    node: ast.expr,
    content: str,
    within: tuple[tuple[str, int | None], ...],
) -> _Change | None:
    try:
        replacement = ast.parse(content, mode="eval").body
    except SyntaxError:
        return None
    assert text.tree is not None
    path = _path_to(text.tree, call)
    return None if path is None else _Change(text.edit(node, content), path + within, replacement)


def _path_to(root: ast.AST, wanted: ast.AST) -> tuple[tuple[str, int | None], ...] | None:
    stack: list[tuple[ast.AST, tuple[tuple[str, int | None], ...]]] = [(root, ())]
    while stack:
        node, path = stack.pop()
        if node is wanted:
            return path
        for name, value in ast.iter_fields(node):
            if isinstance(value, ast.AST):
                stack.append((value, (*path, (name, None))))
            elif isinstance(value, list):
                stack += [
                    (part, (*path, (name, index)))
                    for index, part in enumerate(value)
                    if isinstance(part, ast.AST)
                ]
    return None


def _agrees(text: SourceText, changes: Sequence[_Change]) -> bool:
    """Whether the edited text parses to the tree with the same changes made."""
    try:
        edited = ast.parse(apply(text.text, [change.edit for change in changes]))
    except SyntaxError:
        return False
    expected = copy.deepcopy(text.tree)
    for change in changes:
        node: Any = expected
        for name, index in change.path[:-1]:
            node = getattr(node, name) if index is None else getattr(node, name)[index]
        name, index = change.path[-1]
        if index is None:
            setattr(node, name, change.replacement)
        else:
            getattr(node, name)[index] = change.replacement
    return expected is not None and ast.dump(edited) == ast.dump(expected)
