"""Build edits of the user's source: find the call behind a site, change one part of it, check the result.

A call is found by the end of the span that Python keeps for its instruction, which is unique since every
call ends in its own parenthesis. An edit is offered only if the edited text parses to the tree that
the same change of the tree gives; whatever is shared, computed or not unique is refused: the remedy is
then shown without an edit, and its `obstacle` says what stands in the way.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Required, TypedDict, TypeVar, Unpack

from trainlint.fixes import arguments, blocks, constructions, sequences, spelling, statements
from trainlint.fixes.changes import Change, Refused, checked, merged, replaced
from trainlint.fixes.edit import Edit, Fix, Location, Safety
from trainlint.fixes.literals import short
from trainlint.fixes.patch import Patch
from trainlint.fixes.text import SourceText, apply

if TYPE_CHECKING:
    from trainlint.sites import Site

__all__ = ["CallBuilder", "SourceEdits", "SourceText", "apply"]

CallBuilder = Callable[[ast.Call, str], str | None]


class Described(TypedDict, total=False):
    """What a fix is besides its edits: unsafe unless said otherwise."""

    title: Required[str]
    safety: Safety
    reason: str
    patches: Sequence[Patch]


class SourceEdits:
    """The fact that gives rules their edits: fixes at constructors and calls of the user's own files.

    `project` tells whether a file may be edited at all (the user's, not an installed package's). Each
    method that makes a fix also takes what a fix is besides its edits, as `described`: a `title`, and a
    `safety` (unsafe, unless said otherwise), a `reason` and `patches`.
    """

    def __init__(self, project: Callable[[str], bool] | None = None) -> None:
        self._project = project or (lambda _: True)
        self._texts: dict[str, SourceText | None] = {}
        self._made: dict[tuple[Edit, ...], list[Change]] = {}

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
        neighbour: tuple[Site | None, int, str] | None = None,
        built: int = 1,
        suits: int | None = None,
        factors: Sequence[int] = (),
        **described: Unpack[Described],
    ) -> Fix:
        """Set one argument of the call at `site`, which is `current` now.

        The call may be that of a larger layer or of the user's own class, with other arguments.
        `neighbour` is (site, position, name) of an argument in the same function that has the wanted
        value whenever that function runs; its expression is then written here. `built` is how many layers
        the call makes and `suits` for how many the value is right: unless for all, there is no edit.
        Of a value that is written as a product only those of its `factors` change that differ.
        """

        def build() -> Iterable[Change]:
            if suits is not None and suits < built:
                raise Refused(f"the call makes {built} layers, and the value suits {suits} of them")
            text, call = self._call(site)
            wanted = arguments.Wanted(position, name, value, current, tuple(factors))
            if neighbour is not None:
                other_text, other = self._call(neighbour[0])
                if other_text is text:
                    place = arguments.Wanted(neighbour[1], neighbour[2], value, value)
                    change = arguments.as_neighbour(text, call, wanted, other, place)
                    if change is not None:
                        return [change]
            if value is None:
                raise Refused(f"the call makes {built} layers that need different values")
            return [arguments.set_argument(text, call, wanted)]

        return self._fix(build, **described)

    def callee(
        self, sites: Sequence[Site | None], old: str, new: str, **described: Unpack[Described]
    ) -> Fix:
        """Call `new` for `old` at all these sites: `nn.Sigmoid()` to `nn.ReLU()`, `x.sigmoid()` too."""

        def build() -> Iterable[Change]:
            for site in sites:
                yield spelling.renamed(*self._call(site), old, new)

        return self._fix(build, **described)

    def replaced_calls(
        self, changes: Sequence[tuple[Site | None, CallBuilder]], **described: Unpack[Described]
    ) -> Fix:
        """Replace whole calls by what `build(call, its source text)` returns for each.

        Names of torch in full, `torch.nn.Identity()`, are spelled as in the file.
        """

        def build() -> Iterable[Change]:
            for site, make in changes:
                text, call = self._call(site)
                content = make(call, text.source(call))
                if content is None:
                    raise Refused(f"`{short(text, call)}` is written in another way")
                yield replaced(text, call, content)

        return self._fix(build, **described)

    def replaced_expression(
        self, text: SourceText, node: ast.expr, content: str, **described: Unpack[Described]
    ) -> Fix:
        """Replace one expression of a file, an assigned value for instance, by other source."""
        return self._fix(
            lambda: [replaced(self._editable(text), _own(text, node), content)], **described
        )

    def removed(self, site: Site | None, **described: Unpack[Described]) -> Fix:
        """Take a call out.

        An operation gives way to what it is applied to; a layer is dropped at the end of a `Sequential`,
        else it becomes `nn.Identity()`, so that no key of the state moves.
        """
        return self._fix(lambda: [constructions.removed(*self._call(site))], **described)

    def before_statement(self, site: Site | None, line: str, **described: Unpack[Described]) -> Fix:
        """Put a line, or several, before the statement that holds the call at `site`.

        Give names of torch in full, `torch.nn.utils.clip_grad_norm_(...)`; they are spelled as in the file.
        """
        return self._fix(lambda: [self._beside(site, line, after=False)], **described)

    def after_statement(self, site: Site | None, line: str, **described: Unpack[Described]) -> Fix:
        """Put a line, or several, behind the statement that holds the call at `site`."""
        return self._fix(lambda: [self._beside(site, line, after=True)], **described)

    def moved_before(
        self, site: Site | None, other: Site | None, **described: Unpack[Described]
    ) -> Fix:
        """Move the statement that holds the call at `site` to before the one that holds that at `other`."""

        def build() -> Iterable[Change]:
            text, call = self._call(site)
            other_text, other_call = self._call(other)
            if other_text is not text:
                raise Refused("the two stand in different files")
            statement = statements.statement_at(text, call)
            return [
                statements.moved_before(text, statement, statements.statement_at(text, other_call))
            ]

        return self._fix(build, **described)

    def initialised(self, site: Site | None, call: str, **described: Unpack[Described]) -> Fix:
        """Put a line behind the statement that constructs a layer at `site`.

        `call` is the line, with `{}` for the layer: `torch.nn.init.kaiming_normal_({}.weight)`. An element
        of a `Sequential` is `self.layers[1]`.
        """
        return self._fix(lambda: [constructions.initialised(*self._call(site), call)], **described)

    def behind(self, site: Site | None, layer: str, **described: Unpack[Described]) -> Fix:
        """Put a layer, `torch.nn.ReLU()`, behind the one made at `site`: in its `Sequential` or list."""
        return self._fix(lambda: [sequences.behind(*self._call(site), layer)], **described)

    def module_list(self, site: Site | None, **described: Unpack[Described]) -> Fix:
        """Wrap the plain list, kept as an attribute, that the layer made at `site` is put into."""
        described.setdefault("safety", Safety.SAFE)
        return self._fix(lambda: [constructions.module_list(*self._call(site))], **described)

    def normalised(
        self,
        site: Site | None,
        layer: str,
        size: tuple[int, str],
        uses: Sequence[Site | None],
        **described: Unpack[Described],
    ) -> Fix:
        """Put a layer, `torch.nn.BatchNorm2d`, behind `self.a = Conv(...)`, which is made at `site`.

        Its size is that argument (position, name) of the constructor; `uses` are the calls of `self.a`.
        """

        def build() -> Iterable[Change]:
            text, call = self._call(site)
            calls = [self._call(use) for use in uses]
            if any(other is not text for other, _ in calls):
                raise Refused("the layer is made and called in different files")
            wanted = arguments.Wanted(*size, None, None)
            own = [use for _, use in calls]
            return [constructions.normalised(text, call, layer, wanted, own)]

        return self._fix(build, **described)

    def residual(self, site: Site | None, **described: Unpack[Described]) -> Fix:
        """Add its input to what the call at `site` gives: `y = self.f(x)` to `y = x + self.f(x)`."""
        return self._fix(lambda: [constructions.residual(*self._call(site))], **described)

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
        worst = Safety.UNSAFE if any(f.safety == Safety.UNSAFE for f in fixes) else Safety.SAFE

        def build() -> Iterable[Change]:
            for fix in fixes:
                if not fix.edits:
                    raise Refused(fix.obstacle or "a part of it has no edit")
                yield from self._made[tuple(fix.edits)]

        if all(not fix.edits or tuple(fix.edits) in self._made for fix in fixes):
            return self._fix(build, title=title, safety=safety or worst, reason=why, patches=own)
        edits = list(dict.fromkeys(edit for fix in fixes for edit in fix.edits))
        obstacle = next((fix.obstacle for fix in fixes if not fix.edits), self._clash(edits))
        if obstacle:
            return Fix(title, obstacle=obstacle, reason=why, patches=list(own))
        return Fix(title, safety or worst, edits, reason=why, patches=list(own))

    def _clash(self, edits: Sequence[Edit]) -> str:
        """Why edits that were not all made here cannot be made together, or nothing."""
        for filename in {edit.filename for edit in edits}:
            text = self.text(filename)
            try:
                own = [edit for edit in edits if edit.filename == filename]
                ast.parse(apply("" if text is None else text.text, own))
            except (SyntaxError, ValueError, IndexError):
                return "the edits meet in one place"
        return ""

    def beside(
        self,
        text: SourceText,
        statement: ast.stmt,
        *,
        before: str = "",
        after: str = "",
        **described: Unpack[Described],
    ) -> Fix:
        """Put `before` in front of a statement (`x = `, `return `, lines), or lines `after` below it."""

        def build() -> Iterable[Change]:
            own = _own(self._editable(text), statement)
            if "\n" not in before and "\r" not in before and not after:
                return [statements.prefixed(text, own, before)]
            code = statements.dedented(text, own, after or before.rstrip())
            return [statements.inserted(text, own, code, after=bool(after))]

        return self._fix(build, **described)

    def enclosed(
        self,
        text: SourceText,
        statement: ast.stmt,
        *,
        before: str,
        after: str,
        **described: Unpack[Described],
    ) -> Fix:
        """Put one line in front of a statement and one below it."""

        def build() -> Iterable[Change]:
            own = _own(self._editable(text), statement)
            return [statements.enclosed(text, own, before, after)]

        return self._fix(build, **described)

    def moved(
        self,
        text: SourceText,
        statement: ast.stmt,
        other: ast.stmt,
        *,
        after: bool = False,
        **described: Unpack[Described],
    ) -> Fix:
        """Move a statement to before another of its file, or to behind it, at that one's indentation."""

        def build() -> Iterable[Change]:
            own = _own(self._editable(text), statement), _own(text, other)
            return [statements.moved(text, *own, after=after)]

        return self._fix(build, **described)

    def deleted(self, text: SourceText, statement: ast.stmt, **described: Unpack[Described]) -> Fix:
        """Take a statement out, with its line."""

        def build() -> Iterable[Change]:
            return [statements.deleted(text, _own(self._editable(text), statement))]

        return self._fix(build, **described)

    def without_context(
        self, filename: str, start: Location, **described: Unpack[Described]
    ) -> Fix:
        """Take away the `with` or the decorator whose expression begins at a place, not what it holds."""

        def build() -> Iterable[Change]:
            text = self.text(filename)
            if text is None:
                raise Refused("the file cannot be read")
            return [blocks.without_context(self._editable(text), start)]

        return self._fix(build, **described)

    # ------------------------------------------------------------------ what stands at a site

    def receiver(self, site: Site | None) -> str | None:
        """`optimizer` for the call `optimizer.step()`, None for one that is no method's."""
        try:
            text, call = self._call(site)
        except Refused:
            return None
        callee = call.func
        return text.source(callee.value) if isinstance(callee, ast.Attribute) else None

    def assigned(self, site: Site | None) -> str | None:
        """`self.layers[1]` or `optimizer`: what a thing that is made at a site is kept as, or None."""
        try:
            return constructions.target_of(*self._call(site))[0]
        except Refused:
            return None

    def _beside(self, site: Site | None, line: str, *, after: bool) -> Change:
        text, call = self._call(site)
        statement = statements.statement_at(text, call)
        if "{}" in line:
            line = line.replace("{}", self.receiver(site) or "")
        code, needed = text.names.respelled(statements.dedented(text, statement, line), statement)
        change = statements.inserted(text, statement, code, after=after) + needed
        if needed.splices and not change.agrees():
            raise Refused("the text there does not allow it")
        return change

    def _call(self, site: Site | None) -> tuple[SourceText, ast.Call]:
        """The call at a site and its text, if that may be edited. Raises `Refused`."""
        if site is None:
            raise Refused("no line of your files is known for it")
        text = self.text(site.filename)
        if text is None:
            raise Refused(self._unreadable(site))
        self._editable(text)
        if site.code is not None and not text.holds(site.code, site.row):
            raise Refused("the file has changed since it was run")
        call = text.call_at(site)
        if call is None:
            raise Refused(f"line {site.row} has no call that could be told apart")
        checked(text, call)
        return text, call

    def _editable(self, text: SourceText) -> SourceText:
        if text.obstacle:
            raise Refused(text.obstacle)
        return text

    def _unreadable(self, site: Site) -> str:
        name = site.filename
        if name.startswith("<") or "ipykernel" in name:
            return "it was made in a notebook or by `exec`, which is no file"
        if not self._project(name):
            return "it lies in an installed package"
        return "the file cannot be read"

    def _fix(
        self,
        build: Callable[[], Iterable[Change]],
        *,
        title: str,
        safety: Safety = Safety.UNSAFE,
        reason: str = "",
        patches: Sequence[Patch] = (),
    ) -> Fix:
        try:
            changes = [statements.tidied(change) for change in merged(list(build()))]
        except Refused as refusal:
            return Fix(title, obstacle=str(refusal), reason=reason, patches=list(patches))
        edits = [edit for change in changes for edit in change.edits]
        self._made[tuple(edits)] = changes
        if any(change.unsafe for change in changes):
            safety = Safety.UNSAFE
        return Fix(title, safety, edits, reason=reason, patches=list(patches))


_Node = TypeVar("_Node", bound=ast.AST)


def _own(text: SourceText, node: _Node) -> _Node:
    own = text.own(node)
    if own is None:
        raise Refused("the file has changed since it was read")
    return own
