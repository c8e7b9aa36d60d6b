"""How a file spells torch: what its names mean, and how it would write another name."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from trainlint.fixes.changes import Change, Refused, Rewrite, checked, replaced
from trainlint.fixes.changes import expression as parsed
from trainlint.fixes.text import SourceText

_OWN_MODULE: Final = re.compile(r"^torch\.nn\.modules(\.\w+)?\.(?=[A-Z])")
_STARS: Final = ("torch.nn", "torch.nn.functional", "torch")
# How a module is usually imported, where its own name would be long.
_USUAL: Final[dict[str, tuple[str, str, str | None]]] = {
    "torch.nn.functional": ("torch.nn", "functional", "F"),
    "torch.nn.init": ("torch.nn", "init", None),
    "torch.nn": ("torch", "nn", None),
    "torch": ("", "torch", None),
}


@dataclass(frozen=True)
class Binding:
    """One place that gives a name a meaning. `imported` is the full name of what is imported there."""

    node: ast.AST
    imported: str | None = None


class Names:
    """The names of a file, coarse on purpose: one that is bound in two ways has no meaning."""

    def __init__(self, text: SourceText) -> None:
        self.text = text
        self.bindings: dict[str, list[Binding]] = {}
        for name, binding in _bindings(text):
            self.bindings.setdefault(name, []).append(binding)

    def imported(self, name: str) -> str | None:
        """The full name of what every binding of this name imports, `torch.nn`; else None."""
        found = {binding.imported for binding in self.bindings.get(name, ())}
        return found.pop() if len(found) == 1 else None

    def meaning(self, node: ast.expr) -> str | None:
        """`torch.nn.Sigmoid` for any spelling of it, None where that is not sure."""
        parts: list[str] = []
        while isinstance(node, ast.Attribute):
            parts.insert(0, node.attr)
            node = node.value
        if not isinstance(node, ast.Name):
            return None
        root = self.imported(node.id)
        if root is None and node.id not in self.bindings:
            stars = (b.imported for b in self.bindings.get("*", ()))
            found = [f"{s}.{node.id}" for s in stars if s in _STARS and _exists(f"{s}.{node.id}")]
            root = found[0] if found else None
        return None if root is None else _OWN_MODULE.sub("torch.nn.", ".".join([root, *parts]))

    def spelled(self, full: str, near: ast.AST) -> tuple[str, Change]:
        """How the file writes `torch.nn.ReLU` at a node, and the import that it needs. Raises `Refused`."""
        module, _, leaf = full.rpartition(".")
        prefixes = [full]
        while "." in prefixes[-1]:
            prefixes.append(prefixes[-1].rpartition(".")[0])
        reachable = [name for name in self.bindings if name != "*" and self._reaches(name, near)]
        for prefix in prefixes:
            for name in reachable:
                if self.imported(name) == prefix:
                    return name + full[len(prefix) :], Change(self.text)
        stars = [binding for binding in self.bindings.get("*", ()) if binding.imported == module]
        if stars and leaf not in self.bindings:
            return leaf, Change(self.text)
        return self._newly_imported(full)

    def _reaches(self, name: str, near: ast.AST) -> bool:
        """Whether an import of this name, at the top level of the file, precedes the node."""
        row = getattr(near, "lineno", sys.maxsize)
        body = self.text.tree.body if self.text.tree is not None else []
        return any(
            binding.node in body and binding.node.lineno < row for binding in self.bindings[name]
        )

    def _newly_imported(self, full: str) -> tuple[str, Change]:
        module, _, leaf = full.rpartition(".")
        name, alias, rest = leaf, None, ""
        if module in _USUAL and not leaf[:1].isupper():
            (module, name, alias), rest = _USUAL[module], f".{leaf}"
        bound = alias or name
        if bound in self.bindings:
            raise Refused(f"`{bound}` means something else in this file")
        return bound + rest, self._import(module, name, alias)

    def _import(self, module: str, name: str, alias: str | None) -> Change:
        shown = name if alias is None else f"{name} as {alias}"
        made = ast.alias(name, alias)
        block = self._first_imports()
        for node in block if module else ():
            if isinstance(node, ast.ImportFrom) and node.module == module and not node.level:
                last = node.names[-1]
                if last.name == "*":
                    continue
                end = self.text.span(last)[1]
                extended = Rewrite(node, shown, lambda copy: _extended(copy, made))
                return Change(self.text, ((end, end, f", {shown}"),), (extended,))
        if not block:
            raise Refused("the file has no imports to put another behind")
        from trainlint.fixes.statements import inserted

        line = f"from {module} import {shown}" if module else f"import {shown}"
        return inserted(self.text, block[-1], line, after=True, check=False)

    def _first_imports(self) -> list[ast.stmt]:
        """The first run of imports, of which the last may be followed by another."""
        assert self.text.tree is not None
        block: list[ast.stmt] = []
        for node in self.text.tree.body:
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                block.append(node)
            elif block:
                break
        return block

    def respelled(self, code: str, near: ast.AST) -> tuple[str, Change]:
        """Code whose names of torch are in full, in the file's spelling. Raises `Refused`."""
        needed = Change(self.text)
        try:
            tree = ast.parse(code)
        except SyntaxError as error:
            raise Refused("the text there does not allow it") from error
        lines = code.split("\n")
        inner = {node.value for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        chains = [
            node
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and node not in inner and _root(node) == "torch"
        ]
        for node in sorted(chains, key=lambda n: (n.lineno, n.col_offset), reverse=True):
            spelling, change = self.spelled(ast.unparse(node), near)
            needed += change
            row = lines[node.lineno - 1].encode()
            start, end = node.col_offset, node.end_col_offset
            lines[node.lineno - 1] = (row[:start] + spelling.encode() + row[end:]).decode()
        return "\n".join(lines), needed


def _extended(node: Any, alias: ast.alias) -> ast.AST:
    return ast.ImportFrom(module=node.module, names=[*node.names, alias], level=node.level)


def _root(node: ast.expr) -> str:
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def _bindings(text: SourceText) -> Iterator[tuple[str, Binding]]:
    for node in text.walk(ast.AST):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            yield node.id, Binding(node)
        elif isinstance(node, ast.arg):
            yield node.arg, Binding(node)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name, Binding(node)
        elif isinstance(node, (ast.ExceptHandler, ast.MatchAs, ast.MatchStar)):
            if node.name:
                yield node.name, Binding(node)
        elif isinstance(node, ast.MatchMapping) and node.rest:
            yield node.rest, Binding(node)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                whole = alias.name if alias.asname else alias.name.partition(".")[0]
                yield alias.asname or whole, Binding(node, whole)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            for alias in node.names:
                if alias.name == "*":
                    yield "*", Binding(node, module)
                else:
                    yield alias.asname or alias.name, Binding(node, f"{module}.{alias.name}")


def _exists(full: str) -> bool:
    """Whether torch has this name."""
    import torch

    value: Any = torch
    for part in full.split(".")[1:]:
        value = getattr(value, part, None)
        if value is None:
            return False
    return True


# ---------------------------------------------------------------------- another callee


def renamed(text: SourceText, call: ast.Call, old: str, new: str) -> Change:
    """`new` called in place of `old`, in whichever namespace the call has it. Raises `Refused`."""
    checked(text, call)
    callee = call.func
    meaning = text.names.meaning(callee)
    shown = text.source(callee)
    if meaning is None and isinstance(callee, ast.Attribute) and not old[:1].isupper():
        change = _renamed_method(text, call, callee, old, new)
        if change is not None:
            return change
    if meaning is not None and meaning.rpartition(".")[2] == old:
        return _respelled(text, callee, meaning, new)
    mention = _only_mention(text, old, call)
    if mention is None:
        raise Refused(f"the call is of `{shown}`, not of `{old}`")
    node, full = mention
    return _respelled(text, node, full, new)


def _respelled(text: SourceText, node: ast.expr, meaning: str, new: str) -> Change:
    """Another name of the same namespace, or of that which has it, in the style of the present one."""
    module = meaning.rpartition(".")[0]
    if not _exists(f"{module}.{new}"):
        module = next((m for m in ("torch", "torch.nn.functional") if _exists(f"{m}.{new}")), "")
        if not module or new[:1].isupper():
            raise Refused(f"torch has no `{module}.{new}`")
    elif isinstance(node, ast.Attribute):
        start, end = text.span(node)
        written = meaning.rpartition(".")[2]
        if text.text[end - len(written) : end] == written:  # not one that Python normalised
            return replaced(text, node, text.text[start : end - len(written)] + new)
    spelling, needed = text.names.spelled(f"{module}.{new}", node)
    return replaced(text, node, spelling, extra=needed)


def _renamed_method(
    text: SourceText, call: ast.Call, callee: ast.Attribute, old: str, new: str
) -> Change | None:
    """`x.relu()` for `x.sigmoid()`; `F.gelu(x)` where a tensor has no such method."""
    from torch import Tensor

    receiver = callee.value
    if callee.attr not in (old, f"{old}_") or not hasattr(Tensor, callee.attr):
        return None
    if isinstance(receiver, ast.Name) and receiver.id in ("self", "cls"):
        return None
    other = new + "_" * callee.attr.endswith("_")
    if hasattr(Tensor, other):
        checked(text, callee)
        end = text.span(callee)[1]
        start = end - len(callee.attr)
        if text.text[start:end] != callee.attr:
            raise Refused("the name is not written as Python reads it")
        rewrite = Rewrite(
            callee, other, lambda copy: ast.Attribute(value=copy.value, attr=other, ctx=copy.ctx)
        )
        change = Change(text, ((start, end, other),), (rewrite,))
        if not change.agrees():
            raise Refused("the text there does not allow it")
        return change
    if callee.attr != old or call.args or call.keywords:
        raise Refused(f"tensors have no `{other}`")
    module = next((m for m in ("torch.nn.functional", "torch") if _exists(f"{m}.{new}")), None)
    if module is None:
        raise Refused(f"torch has no `{new}`")
    spelling, needed = text.names.spelled(f"{module}.{new}", call)
    return replaced(text, call, f"{spelling}({text.source(receiver)})", extra=needed)


def _only_mention(text: SourceText, old: str, call: ast.Call) -> tuple[ast.expr, str] | None:
    """Where what is called by another name is handed over: `act=nn.Sigmoid`, if that is all there is."""
    if not isinstance(call.func, (ast.Name, ast.Attribute)):
        return None  # `getattr(nn, name)()`, `LAYERS[name]()`
    found: list[tuple[ast.expr, str]] = []
    for node in text.walk(ast.Name, ast.Attribute):
        assert isinstance(node, (ast.Name, ast.Attribute))
        parent = text.parents[node]
        is_called = isinstance(parent, ast.Call) and parent.func is node
        if is_called or isinstance(parent, ast.Attribute) or not isinstance(node.ctx, ast.Load):
            continue
        meaning = text.names.meaning(node)
        if meaning is not None and meaning.startswith("torch.") and _leaf(meaning) == old:
            found.append((node, meaning))
    if not found:
        return None
    shown = text.source(call.func)
    if len(found) > 1:
        rows = ", ".join(str(node.lineno) for node, _ in found)
        raise Refused(f"`{old}` is called as `{shown}`, and handed over in lines {rows}")
    if isinstance(text.parents[found[0][0]], ast.Dict):
        raise Refused(f"`{old}` is called as `{shown}`, looked up in a table")
    return found[0]


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def called(text: SourceText, call: ast.Call) -> str | None:
    """The full name of what a call calls, where the file's imports tell."""
    return text.names.meaning(call.func)


def identity(text: SourceText, node: ast.expr) -> Change:
    """`nn.Identity()` in place of a layer. Raises `Refused`."""
    spelling, needed = text.names.spelled("torch.nn.Identity", node)
    parsed(spelling)
    return replaced(text, node, f"{spelling}()", extra=needed)
