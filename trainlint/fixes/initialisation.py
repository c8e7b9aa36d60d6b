"""Edits and patches that give parameters other initial values: at the call that set them, or behind it.

Where a call of the user's filled a weight last, that call is changed. Where the layer's own constructor
did, a line is put behind it, or a loop over all such layers at the end of the model's `__init__`. What was
filled in another way, or scaled since, is shown without an edit. Imports no torch.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from trainlint.fixes.edit import Fix
from trainlint.fixes.patch import Patch
from trainlint.sites import INITIALIZATIONS, Site, construction_site, place_key

if TYPE_CHECKING:
    from trainlint.fixes.source import SourceEdits, SourceText
    from trainlint.graph import Graph

_AS_FILLED: Final = 0.1  # decades
# A loop over the layers is plainer than so many lines.
_MOST_LINES: Final = 3
_FILLS: Final = re.compile(
    r"(?:xavier|kaiming|glorot|he)_(?:uniform|normal)_|(?:trunc_)?normal_|uniform_|constant_|zeros_|ones_|"
    r"orthogonal_|eye_|dirac_|sparse_"
)
_METHODS: Final = frozenset({"normal_", "uniform_", "zero_", "fill_"})


@dataclass(frozen=True)
class Start:
    """What one parameter shall start from.

    `name` is its path in the model, `function` one of torch.nn.init, `options` its further arguments as
    source (`, gain=5 / 3`), `node` the operation of the layer it belongs to, if it belongs to one, and
    `reason` the formula. Where one line fills several, those that are not `decisive` go along with the
    others.
    """

    name: str
    tensor: Any
    node: Any
    function: str
    options: str = ""
    decisive: bool = True
    reason: str = ""

    @property
    def call(self) -> tuple[str, str]:
        """The function and its options."""
        return self.function, self.options

    @property
    def values(self) -> dict[str, Any]:
        """The options as values."""
        call: Any = ast.parse(f"f(w{self.options})", mode="eval").body
        return {k.arg: eval(ast.unparse(k.value), {"__builtins__": {}}) for k in call.keywords}


def as_code(name: str) -> str:
    """`self.layers[0].weight` for layers.0.weight, `model[0].weight` for 0.weight."""
    steps = [f"[{part}]" if part.isdigit() else f".{part}" for part in name.split(".")]
    return ("model" if steps[0].startswith("[") else "self") + "".join(steps)


def is_as_filled(tensor: Any) -> bool:
    """Whether the tensor has the deviation that its last known call gave it: nothing scaled it since."""
    from trainlint.theory.moments import declared

    given = declared(tensor)
    if given is None or not given[0] or tensor.is_meta or tensor.numel() < 2:
        return True
    present = float(tensor.detach().double().square().mean().sqrt())
    return present > 0 and abs(math.log10(present / math.sqrt(given[0]))) < _AS_FILLED


def initialised(
    graph: Graph, edits: SourceEdits, starts: Sequence[Start], *, title: str, reason: str = ""
) -> Fix:
    """The fix that gives these parameters these initial values."""
    patches = initial_patches(starts)

    def refused(why: str) -> Fix:
        return Fix(title, obstacle=why, reason=reason, patches=patches)

    changed = next((start for start in starts if not is_as_filled(start.tensor)), None)
    if changed is not None:
        # What changed them afterwards would change the new values as well.
        return refused(f"something changes {changed.name} after its initialisation")
    lines: dict[Any, tuple[Site, list[Start]]] = {}
    default: list[Start] = []
    for start in starts:
        filled = INITIALIZATIONS.of(start.tensor)
        made = None if start.node is None else graph.constructed(start.node)
        if filled is None and made is not None:
            return refused(f"{start.name} is copied or assigned, not filled by a call")
        if filled is None or (made is not None and filled[1].key == made.key):
            default.append(start)
        else:
            lines.setdefault(filled[1].key, (filled[1], []))[1].append(start)
    parts: list[Fix] = []
    for site, own in lines.values():
        part = _refilled(graph, edits, site, own, title)
        if not part.edits:
            return refused(part.obstacle)
        parts.append(part)
    if default:
        part = _added(graph, edits, default, title)
        if not part.edits:
            return refused(part.obstacle)
        parts.append(part)
    return edits.together(*parts, title=title, reason=reason, patches=patches)


def initial_patches(starts: Iterable[Start]) -> list[Patch]:
    """The same on a live model, a patch for each kind of call."""
    groups: dict[tuple[str, str], list[Start]] = {}
    for start in starts:
        groups.setdefault(start.call, []).append(start)
    return [
        Patch.initialise([s.name for s in own], own[0].function.rstrip("_"), **own[0].values)
        for own in groups.values()
    ]


# ---------------------------------------------------------------------- in place of the user's own call


def _refilled(
    graph: Graph, edits: SourceEdits, site: Site, own: Sequence[Start], title: str
) -> Fix:
    decisive = [start for start in own if start.decisive] or own
    calls = {start.call for start in decisive}
    if len(calls) > 1:
        return Fix(title, obstacle=f"line {site.row} fills layers that need different values")
    text = edits.text(site.filename)
    module = None if text is None or text.tree is None else init_module(text.tree)
    # `for p in self.parameters()` fills biases as well, which have no fan-in.
    flat = own[0].tensor.dim() > 1 and any(
        tensor.dim() < 2 and seen is not None and seen[1].key == site.key
        for tensor in graph.model.parameters()
        for seen in [INITIALIZATIONS.of(tensor)]
    )
    (call,) = calls
    rewrite = _rewriter(*call, module, only_matrices=flat)
    fix = edits.replaced_calls([(site, rewrite)], title=title)
    if fix.edits:
        return fix
    return Fix(title, obstacle=f"line {site.row} sets the values in another way than by one call")


def _rewriter(function: str, options: str, module: str | None, *, only_matrices: bool) -> Any:
    def rewrite(call: ast.Call, source: str) -> str | None:
        filled = _filled(call)
        if filled is None:
            return None
        target, own_prefix = filled
        prefix = own_prefix or module
        if prefix is None:
            return None
        new = f"{prefix}.{function}({target}{options})"
        if not only_matrices:
            return new
        if not re.fullmatch(r"[\w.]+", target):
            return None
        return f"{new} if {target}.dim() > 1 else {source}"

    return rewrite


def _filled(call: ast.Call) -> tuple[str, str] | None:
    """What a call fills, and how it names torch.nn.init, "" where it does not."""
    callee = call.func
    name = callee.attr if isinstance(callee, ast.Attribute) else getattr(callee, "id", "")
    given = [*call.args[:1], *(k.value for k in call.keywords if k.arg == "tensor")]
    if isinstance(callee, ast.Attribute):
        owner = ast.unparse(callee.value)
        if re.search(r"(^|\.)init$", owner) and _FILLS.fullmatch(name):
            return (ast.unparse(given[0]), owner) if len(given) == 1 else None
        if name not in _METHODS:
            return None
        target: ast.expr = callee.value
        while isinstance(target, ast.Attribute) and target.attr == "data":
            target = target.value
        return ast.unparse(target), ""
    if _FILLS.fullmatch(name) and len(given) == 1:
        return ast.unparse(given[0]), ""
    return None


def init_module(tree: ast.Module) -> str | None:
    """How this file can name torch.nn.init: `nn.init`, `torch.nn.init`, `init`; None where it cannot."""
    found: list[str] = []
    for node in tree.body:
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name in ("torch", "torch.nn", "torch.nn.init"):
                    name = alias.asname or alias.name.partition(".")[0]
                    rest = alias.name if alias.asname else alias.name.partition(".")[0]
                    found.append(name + "torch.nn.init".removeprefix(rest))
        elif isinstance(node, ast.ImportFrom) and node.module in ("torch", "torch.nn"):
            wanted = {"torch": ("nn", ".init"), "torch.nn": ("init", "")}[node.module]
            found += [(a.asname or a.name) + wanted[1] for a in node.names if a.name == wanted[0]]
    return min(found, key=len, default=None)


# ---------------------------------------------------------------------- behind the constructors


def _added(graph: Graph, edits: SourceEdits, starts: Sequence[Start], title: str) -> Fix:
    groups = _by_constructor(graph, starts)
    loop = _looped(graph, edits, starts, title)
    if loop.edits and (len(groups) > _MOST_LINES or any(len(own) > 1 for own in groups.values())):
        return loop
    parts: list[Fix] = []
    lines: list[tuple[str, str]] = []
    for key, own in groups.items():
        if key is None:
            parts += [_behind_assignment(graph, edits, start, title) for start in own]
            continue
        line = _over_container(graph, own)
        if line is not None:
            lines.append(line)
        else:
            parts.append(_behind_constructor(graph, edits, own, title))
    if lines:
        parts.append(_at_the_end(graph, edits, lines, title))
    refused = next((fix for fix in parts if not fix.edits), None)
    if refused is not None:
        return loop if loop.edits else refused
    return edits.together(*parts, title=title)


def _behind_constructor(graph: Graph, edits: SourceEdits, own: Sequence[Start], title: str) -> Fix:
    """A line behind the constructor, where it makes these layers only."""
    first, site = own[0], graph.constructed(own[0].node)
    attribute = first.name.rpartition(".")[2]
    row = 0 if site is None else site.row
    if len({(start.call, start.name.rpartition(".")[2]) for start in own}) > 1:
        return Fix(title, obstacle=f"line {row} makes layers that need different values")
    if len(graph.built_together(first.node)) != len(own):
        return Fix(title, obstacle=f"line {row} makes other layers as well")
    call = f"torch.nn.init.{first.function}({{}}.{attribute}{first.options})"
    return edits.initialised(site, call, title=title)


def _over_container(graph: Graph, own: Sequence[Start]) -> tuple[str, str] | None:
    """`for layer in self.layers:`, `init(layer.weight)` for all entries of one list of layers."""
    found = [re.fullmatch(r"(.*?)\.?(?<![^.])\d+\.(.+)", start.name) for start in own]
    if len(own) < 2 or len({start.call for start in own}) > 1 or not all(found):
        return None
    if len({match.groups() for match in found if match is not None}) > 1 or found[0] is None:
        return None
    container, rest = found[0].groups()
    entries = list(graph.model.get_submodule(container).children())
    if len(entries) != len(own) or not container or re.search(r"\.\d|^\d", rest):
        return None
    function, options = own[0].call
    return f"for layer in {as_code(container)}:", f"torch.nn.init.{function}(layer.{rest}{options})"


def _by_constructor(graph: Graph, starts: Sequence[Start]) -> dict[Any, list[Start]]:
    groups: dict[Any, list[Start]] = {}
    for start in starts:
        site = None if start.node is None else graph.constructed(start.node)
        groups.setdefault(place_key(site), []).append(start)
    return groups


def _behind_assignment(graph: Graph, edits: SourceEdits, start: Start, title: str) -> Fix:
    """A line behind `self.weight = nn.Parameter(...)`, the only assignment of a parameter by hand."""
    from trainlint.analysis.methods import own_methods

    owner, _, attribute = start.name.rpartition(".")
    holder = graph.model.get_submodule(owner)
    found = [
        (method.filename, statement)
        for method in own_methods(type(holder))
        if method is not None
        for statement in ast.walk(method.tree)
        if isinstance(statement, ast.Assign)
        and any(ast.unparse(target) == f"self.{attribute}" for target in statement.targets)
    ]
    text = edits.text(found[0][0]) if len(found) == 1 else None
    module = None if text is None or text.tree is None else init_module(text.tree)
    if text is None or module is None:
        return Fix(title, obstacle=f"no one line is known that sets {start.name}")
    statement = _same(text, found[0][1])
    if statement is None:
        return Fix(title, obstacle=f"no one line is known that sets {start.name}")
    line = f"{module}.{start.function}(self.{attribute}{start.options})"
    return edits.beside(text, statement, after=line, title=title)


def _same(text: SourceText, statement: ast.stmt) -> ast.stmt | None:
    """The statement of this text's own tree that stands at the same place."""
    return next(
        (
            node
            for node in ast.walk(text.tree or ast.Module([], []))
            if isinstance(node, ast.stmt)
            and type(node) is type(statement)
            and (node.lineno, node.col_offset) == (statement.lineno, statement.col_offset)
        ),
        None,
    )


def _looped(graph: Graph, edits: SourceEdits, starts: Sequence[Start], title: str) -> Fix:
    """`for module in self.modules(): if isinstance(module, nn.Linear): nn.init...` behind all else."""
    decisive = [start for start in starts if start.decisive] or list(starts)
    calls = {start.call for start in decisive}
    layers = [graph.layer(start.node) if start.node is not None else None for start in starts]
    if len(calls) > 1 or any(start.name.rpartition(".")[2] != "weight" for start in starts):
        return Fix(title, obstacle="the layers need different initial values")
    if any(layer is None or not _is_torchs(layer) for layer in layers):
        return Fix(title, obstacle="not all of them are layers of torch.nn")
    kinds = sorted({type(layer).__name__ for layer in layers})
    stranger = _stranger(graph, kinds, starts, decisive[0].call)
    if stranger:
        return Fix(title, obstacle=stranger)
    tested = ", ".join(f"torch.nn.{kind}" for kind in kinds)
    test = f"if isinstance(layer, {f'({tested})' if len(kinds) > 1 else tested}):"
    function, options = decisive[0].call
    call = f"torch.nn.init.{function}(layer.weight{options})"
    return _at_the_end(graph, edits, [("for layer in self.modules():", test, call)], title)


def _at_the_end(
    graph: Graph, edits: SourceEdits, blocks: Sequence[tuple[str, ...]], title: str
) -> Fix:
    """Blocks of lines, each deeper by one than the one before, behind the construction of the model."""
    place = _end_of_construction(graph, edits)
    module = None if place is None else init_module(place[0].tree or ast.Module([], []))
    if place is None or module is None or not module.endswith("nn.init"):
        return Fix(title, obstacle="no place is known behind the construction of the whole model")
    text, statement, root = place
    indent = text.lines[statement.lineno - 1].encode()[: statement.col_offset].decode()
    step = "\t" if "\t" in indent else "    "
    lines = [indent + step * depth + line for block in blocks for depth, line in enumerate(block)]
    code = "\n".join(lines).removeprefix(indent)
    code = code.replace("torch.nn.", module.removesuffix("init"))
    code = re.sub(r"\bin (self|model)\b", f"in {root}", code)
    return edits.beside(text, statement, after=code, title=title)


def _is_torchs(layer: Any) -> bool:
    return type(layer).__module__.startswith("torch.nn.modules.")


def _stranger(
    graph: Graph, kinds: Sequence[str], starts: Sequence[Start], call: tuple[str, str]
) -> str:
    """Why a loop over all layers of these kinds would do harm; "" where it would not."""
    from trainlint.theory.prescriptions import suits

    wanted = {start.name for start in starts}
    uses = {
        id(graph.operation(weight).tensor): node
        for node in graph.calls_in_order
        if graph.is_weighted(node)
        for weight in [graph.argument(node, "weight")]
    }
    for name, module in graph.model.named_modules():
        weight = getattr(module, "weight", None)
        own_name = f"{name}.weight".removeprefix(".")
        if type(module).__name__ not in kinds or weight is None or own_name in wanted:
            continue
        if not weight.requires_grad or not is_as_filled(weight):
            return f"{name} is a {type(module).__name__} as well, with values of its own"
        filled, made = INITIALIZATIONS.of(weight), construction_site(module)
        if filled is not None and (made is None or filled[1].key != made.key):
            return f"{name} is a {type(module).__name__} as well, which line {filled[1].row} fills"
        node = uses.get(id(weight))
        suited = None if node is None else suits(graph, node)
        if suited is not None and suited.activation and (suited.function, suited.options) != call:
            return f"{name} is a {type(module).__name__} as well, and needs other values"
    return ""


def _end_of_construction(
    graph: Graph, edits: SourceEdits
) -> tuple[SourceText, ast.stmt, str] | None:
    """The last statement of the model's own `__init__`, or the one that makes a model without."""
    from trainlint.analysis.methods import own_methods

    init = next(
        (m for m in own_methods(type(graph.model)) if m is not None and m.name == "__init__"), None
    )
    if init is not None:
        text = edits.text(init.filename)
        statement = None if text is None else _same(text, init.tree.body[-1])
        if text is None or statement is None or isinstance(statement, (ast.Return, ast.Raise)):
            return None
        return text, statement, "self"
    site = construction_site(graph.model)
    text = None if site is None else edits.text(site.filename)
    call = None if text is None or site is None else text.call_at(site)
    statement = None if text is None or call is None else text.statement_of(call)
    if text is None or not isinstance(statement, ast.Assign) or len(statement.targets) != 1:
        return None
    # A model that a method makes is part of a larger one.
    target = statement.targets[0]
    return (text, statement, target.id) if isinstance(target, ast.Name) else None
