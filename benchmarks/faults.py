"""Faults, injected at random into sound models' sources: one generator a rule.

A generator looks at a traced model (`Traced`: which expression of the source gave which tensors and
modules, by an instrumented run of its own) and yields `Candidate`s in random order: an edited source,
the codes that answer it, and a check that the fault is real, by numbers where they can show it. `inject`
returns the first candidate whose check passes. Nothing here uses trainlint.
"""

# ruff: noqa: E501, SIM102, C901 - spellings of faults are written as their authors would

from __future__ import annotations

import ast
import math
import random
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from benchmarks.sound_models import Sound

BATCH = 4
MARK = "\x01"  # stands in new text where a finding's line may be
TRIES = 14  # candidates that are tried before a pair counts as not applicable

# ---------------------------------------------------------------------- running a source


@dataclass
class Run:
    """A model that was built from a source, and what one forward gave."""

    model: nn.Module
    inputs: tuple[Any, ...]
    outputs: list[Tensor]


def namespace_of(source: str, seed: int = 0) -> dict[str, Any]:
    """Execute the source as a module that is not the main one."""
    torch.manual_seed(seed)
    random.seed(seed)
    names: dict[str, Any] = {"__name__": "sound"}
    exec(compile(source, "<sound>", "exec"), names)
    return names


def built(source: str, main: str) -> tuple[nn.Module, tuple[Any, ...]]:
    """The model and its inputs, with the same weights for the same constructors."""
    names = namespace_of(source)
    torch.manual_seed(0)
    return names[main](), tuple(names["example_inputs"])


def floats(value: Any) -> list[Tensor]:
    """The floating-point tensors of an output."""
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() else []
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (tuple, list)):
        return [tensor for part in value for tensor in floats(part)]
    return []


def forward(model: nn.Module, inputs: Sequence[Any], *, train: bool = False) -> list[Tensor]:
    """One forward with fixed random numbers."""
    model.train(train)
    torch.manual_seed(1)
    return floats(model(*inputs))


def run(source: str, main: str, *, train: bool = False) -> Run:
    model, inputs = built(source, main)
    return Run(model, inputs, forward(model, inputs, train=train))


def objective(outputs: Sequence[Tensor]) -> Tensor:
    """A random linear function of the outputs; its gradients show what reaches where."""
    generator = torch.Generator().manual_seed(5)
    total = torch.zeros(())
    for tensor in outputs:
        weights = torch.randn(tensor.shape, generator=generator)
        total = total + (tensor * weights).sum() / math.sqrt(tensor.numel())
    return total


def gradients(source: str, main: str, *, train: bool = True) -> dict[str, float | None]:
    """Norm of each parameter's gradient, None where none arrives."""
    done = run(source, main, train=train)
    value = objective(done.outputs)
    if value.requires_grad:
        value.backward()
    return {
        name: None if p.grad is None else float(p.grad.norm())
        for name, p in done.model.named_parameters()
    }


def never_learning(source: str, main: str, steps: int = 4) -> tuple[set[str], set[str]]:
    """Parameters whose gradient stays exactly zero, and weights whose rows stay equal, over a few steps."""
    model, inputs = built(source, main)
    still = {name for name, p in model.named_parameters() if p.requires_grad}
    twins = {
        name
        for name, p in model.named_parameters()
        if p.dim() > 1 and len(p) > 1 and torch.equal(p[0], p[1])
    }
    targets: list[Tensor] | None = None
    for _ in range(steps):
        outputs = forward(model, inputs, train=True)
        if targets is None:
            generator = torch.Generator().manual_seed(3)
            targets = [torch.randn(t.shape, generator=generator) for t in outputs]
        model.zero_grad()
        loss = sum(
            (((t - g) ** 2).mean() for t, g in zip(outputs, targets, strict=True)), torch.zeros(())
        )
        loss.backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            for name, p in model.named_parameters():
                if p.grad is None:
                    continue
                if float(p.grad.abs().max()) > 0:
                    still.discard(name)
                p -= 0.05 * p.grad / (p.grad.norm() + 1e-12)
                if name in twins and not torch.allclose(p[0], p[1], rtol=1e-5, atol=1e-8):
                    twins.discard(name)
    return still, twins


def shaken(value: Any, rows: Any, seed: int = 9) -> Any:
    """The input with other values in these places."""
    generator = torch.Generator().manual_seed(seed)
    changed: Tensor = value.clone()
    if value.is_floating_point():
        noise = torch.randn(value.shape, generator=generator)
        changed[rows] = value[rows] * 0.5 + noise[rows]
    else:
        other = torch.randint(0, int(value.max()) + 1, value.shape, generator=generator)
        changed[rows] = torch.where(
            other[rows] == value[rows], (value[rows] + 1) % (int(value.max()) + 1), other[rows]
        )
    return changed


def moved(before: Sequence[Tensor], after: Sequence[Tensor], rows: Any) -> bool:
    """Whether the outputs differ at these places."""
    return any(
        not torch.allclose(a[rows], b[rows], rtol=1e-4, atol=1e-7)
        for a, b in zip(before, after, strict=True)
    )


def mixes(source: str, main: str) -> bool:
    """Whether, in eval mode, sample 0's input changes the outputs of other samples."""
    model, inputs = built(source, main)
    others = tuple(shaken(value, 0) for value in inputs)
    with torch.no_grad():
        one, two = forward(model, inputs), forward(model, others)
    return all(t.shape[:1] == (BATCH,) for t in one) and moved(one, two, slice(1, None))


def leaks(source: str, main: str) -> bool:
    """Whether the last position of the last input changes earlier outputs."""
    model, inputs = built(source, main)
    later = shaken(inputs[-1], (slice(None), slice(-1, None)))
    with torch.no_grad():
        one, two = forward(model, inputs), forward(model, (*inputs[:-1], later))
    return moved(one, two, (slice(None), slice(0, -1)))


def constant(source: str, main: str) -> bool:
    """Whether all samples get the same outputs."""
    done = run(source, main)
    return all(torch.allclose(t, t[:1].expand_as(t), atol=1e-7) for t in done.outputs)


def unmoved_by(source: str, main: str, number: int, rows: Any) -> bool:
    """Whether this part of an input changes no output."""
    model, inputs = built(source, main)
    others = [shaken(value, rows) if n == number else value for n, value in enumerate(inputs)]
    with torch.no_grad():
        return not moved(forward(model, inputs), forward(model, others), slice(None))


def random_in_eval(source: str, main: str) -> bool:
    """Whether two passes in eval mode differ."""
    model, inputs = built(source, main)
    model.eval()
    with torch.no_grad():
        one = floats(model(*inputs))
        return any(not torch.equal(a, b) for a, b in zip(one, floats(model(*inputs)), strict=True))


def raises(source: str, main: str) -> bool:
    """Whether construction works and the forward is refused."""
    model, inputs = built(source, main)
    try:
        forward(model, inputs, train=True)
    except Exception:
        return True
    return False


def non_finite(source: str, main: str) -> bool:
    """Whether a NaN or an infinity is in the outputs or the gradients."""
    done = run(source, main, train=True)
    if any(not t.isfinite().all() for t in done.outputs):
        return True
    objective(done.outputs).backward()  # type: ignore[no-untyped-call]
    return any(p.grad is not None and not p.grad.isfinite().all() for p in done.model.parameters())


# ---------------------------------------------------------------------- a traced source


@dataclass
class Call:
    """One torch function that ran: its name, and the calls that made its tensor arguments."""

    name: str
    module: str
    sources: list[int]
    outputs: list[Tensor]
    site: int | None = None


AFFINE = {
    "linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d",
}  # fmt: skip
SMOOTH = {
    "relu", "relu6", "gelu", "silu", "leaky_relu", "tanh", "sigmoid", "elu", "hardswish", "mish",
    "relu_", "softplus", "softmax",
}  # fmt: skip
NORMS = {"batch_norm", "layer_norm", "group_norm", "instance_norm"}
TRANSPARENT = {
    "dropout", "flatten", "view", "reshape", "contiguous", "permute", "transpose", "squeeze",
    "unsqueeze", "dropout2d", "feature_dropout", "getitem", "__getitem__", "chunk", "split",
}  # fmt: skip


def entered(stack: list[str], path: str, *_: Any) -> None:
    """A hook that notes which module runs."""
    stack.append(path)


class _Watch(TorchFunctionMode):
    """Every torch function of a forward, in order, with who made its arguments."""

    def __init__(self, stack: list[str]) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.made: dict[int, int] = {}
        self.alive: list[Any] = []
        self.stack = stack

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", str(func))
        if name in ("__get__", "size", "dim", "numel"):
            return result
        given = floats([*args, *(kwargs or {}).values()])
        sources = [self.made[id(t)] for t in given if id(t) in self.made]
        outputs = floats(result)
        self.calls.append(Call(name, self.stack[-1] if self.stack else "", sources, outputs))
        self.alive.append((given, outputs))
        for tensor in outputs:
            self.made[id(tensor)] = len(self.calls) - 1
        return result


@dataclass
class Spot:
    """An expression of the source, with what it gave in an instrumented run."""

    number: int
    node: Any
    owner: str  # class
    function: str
    tensors: list[Tensor] = field(default_factory=list)
    modules: list[nn.Module] = field(default_factory=list)
    calls: list[int] = field(default_factory=list)

    @property
    def shapes(self) -> set[tuple[int, ...]]:
        return {tuple(t.shape) for t in self.tensors}


class _Instrument(ast.NodeTransformer):
    def __init__(self, numbers: dict[int, int]) -> None:
        self.numbers = numbers

    def visit(self, node: ast.AST) -> Any:
        number = self.numbers.get(id(node))
        self.generic_visit(node)
        if number is None:
            return node
        name = ast.copy_location(ast.Name("__seen__", ast.Load()), node)
        return ast.copy_location(ast.Call(name, [ast.Constant(number), node], []), node)


class Traced:
    """A sound model's source, its syntax tree, and what ran where."""

    def __init__(self, sound: Sound) -> None:
        self.sound = sound
        self.source = sound.source
        self.main = sound.main
        self.tree = ast.parse(self.source)
        self.offsets = [0]
        for line in self.source.splitlines(keepends=True):
            self.offsets.append(self.offsets[-1] + len(line))
        self.parents = {
            id(child): parent
            for parent in ast.walk(self.tree)
            for child in ast.iter_child_nodes(parent)
        }
        self.spots = self._spots()
        self._trace()

    def _spots(self) -> list[Spot]:
        spots = []
        for node in ast.walk(self.tree):
            if isinstance(node, (ast.Call, ast.BinOp)):
                owner, function = self.context(node)
                if function:
                    spots.append(Spot(len(spots), node, owner, function))
        return spots

    def _trace(self) -> None:
        numbers = {id(spot.node): spot.number for spot in self.spots}
        fresh = ast.parse(self.source)
        for old, new in zip(ast.walk(self.tree), ast.walk(fresh), strict=True):
            if id(old) in numbers:
                numbers[id(new)] = numbers.pop(id(old))
        tree = ast.fix_missing_locations(_Instrument(numbers).visit(fresh))
        running = [False]
        stack: list[str] = []
        watch = _Watch(stack)

        def seen(number: int, value: Any) -> Any:
            spot = self.spots[number]
            if isinstance(value, nn.Module):
                spot.modules.append(value)
            elif isinstance(value, Tensor) and running[0]:
                spot.tensors.append(value)
                spot.calls.append(watch.made.get(id(value), -1))
            return value

        names: dict[str, Any] = {"__name__": "sound", "__seen__": seen}
        torch.manual_seed(0)
        exec(compile(tree, "<sound>", "exec"), names)
        torch.manual_seed(0)
        self.model: nn.Module = names[self.main]().train()
        self.inputs: tuple[Any, ...] = tuple(names["example_inputs"])

        def left(*_: Any) -> None:
            stack.pop()

        for path, module in self.model.named_modules():
            module.register_forward_pre_hook(partial(entered, stack, path))
            module.register_forward_hook(left)
        running[0] = True
        with watch:
            self.outputs = floats(self.model(*self.inputs))
        self.calls = watch.calls
        self.final = {watch.made.get(id(t), -1) for t in self.outputs}
        self.paths = {id(module): path for path, module in self.model.named_modules()}
        self.users: dict[int, list[int]] = {}
        for number, call in enumerate(self.calls):
            for source in call.sources:
                self.users.setdefault(source, []).append(number)

    # ------------------------------------------------------------------ questions

    def context(self, node: Any) -> tuple[str, str]:
        """(class, function) around a node."""
        owner = function = ""
        inner = node
        while id(inner) in self.parents:
            inner = self.parents[id(inner)]
            if isinstance(inner, ast.FunctionDef) and not function:
                function = inner.name
            if isinstance(inner, ast.ClassDef) and not owner:
                owner = inner.name
        return owner, function

    def parent(self, node: Any) -> Any:
        return self.parents.get(id(node))

    def statement(self, node: Any) -> Any:
        while not isinstance(node, ast.stmt):
            node = self.parent(node)
        return node

    def class_of(self, name: str) -> ast.ClassDef:
        return next(
            n for n in ast.walk(self.tree) if isinstance(n, ast.ClassDef) and n.name == name
        )

    def init_of(self, name: str) -> ast.FunctionDef | None:
        for node in self.class_of(name).body:
            if isinstance(node, ast.FunctionDef) and node.name == "__init__":
                return node
        return None

    def text(self, node: Any) -> str:
        return self.source[self.start(node) : self.end(node)]

    def start(self, node: Any) -> int:
        return self.offsets[node.lineno - 1] + node.col_offset

    def end(self, node: Any) -> int:
        return self.offsets[node.end_lineno - 1] + node.end_col_offset

    def indent(self, statement: Any) -> str:
        line = self.source.splitlines()[statement.lineno - 1]
        return line[: len(line) - len(line.lstrip())]

    def hidden(self, *dims: int) -> list[Spot]:
        """Expressions of the forward that gave a batch of floating-point activations of one width."""
        found = []
        for spot in self.spots:
            if spot.function == "__init__" or not spot.tensors:
                continue
            if isinstance(self.parent(spot.node), (ast.Expr, ast.Starred)) or not spot.owner:
                continue
            fits = all(
                t.is_floating_point()
                and t.requires_grad
                and t.isfinite().all()
                and t.shape[:1] == (BATCH,)
                and t.dim() > 1
                for t in spot.tensors
            )
            if fits and (not dims or all(t.dim() in dims for t in spot.tensors)):
                found.append(spot)
        return found

    def constructors(self, *kinds: type[nn.Module]) -> list[Spot]:
        """`nn.X(...)` calls that made layers of the model which ran."""
        found = []
        for spot in self.spots:
            mine = [m for m in spot.modules if id(m) in self.paths and type(m) in kinds]
            if (
                mine
                and isinstance(spot.node, ast.Call)
                and re.match(r"(torch\.)?nn\.\w+\(", self.text(spot.node))
            ):
                found.append(spot)
        return found

    def path(self, spot: Spot) -> str:
        return next(self.paths[id(m)] for m in spot.modules if id(m) in self.paths)

    def width(self, spot: Spot) -> int | None:
        """The number of features or channels, where it is the same in every run of the expression."""
        widths = {t.shape[1] if t.dim() == 4 else t.shape[-1] for t in spot.tensors}
        return widths.pop() if len(widths) == 1 else None

    def behind(self, number: int, through: set[str]) -> Iterator[int]:
        """The nearest earlier calls that are none of these names."""
        for source in self.calls[number].sources:
            if self.calls[source].name in through:
                yield from self.behind(source, through)
            else:
                yield source

    def ahead(self, number: int, through: set[str]) -> Iterator[int]:
        for user in self.users.get(number, []):
            if self.calls[user].name in through:
                yield from self.ahead(user, through)
            else:
                yield user


# ---------------------------------------------------------------------- edits


@dataclass
class Edits:
    """Replacements in a source; marks in the new text become the lines that count as right."""

    traced: Traced
    changes: list[tuple[int, int, str]] = field(default_factory=list)

    def replace(self, node: Any, text: str) -> Edits:
        self.changes.append((self.traced.start(node), self.traced.end(node), MARK + text + MARK))
        return self

    def wrap(self, node: Any, before: str, after: str) -> Edits:
        start, end = self.traced.start(node), self.traced.end(node)
        return self.replace(node, before + self.traced.source[start:end] + after)

    def mark(self, node: Any) -> Edits:
        self.changes.append((self.traced.start(node),) * 2 + (MARK,))  # type: ignore[arg-type]
        return self

    def after(self, statement: Any, text: str, *, marked: bool = True) -> Edits:
        """New statements behind this one, at its indentation."""
        pad = self.traced.indent(statement)
        sign = MARK if marked else ""
        lines = "".join(f"\n{pad}{sign}{line}" for line in text.splitlines())
        end = self.traced.end(statement)
        self.changes.append((end, end, lines))
        return self

    def before(self, statement: Any, text: str) -> Edits:
        pad = self.traced.indent(statement)
        start = self.traced.start(statement)
        lines = "".join(f"{MARK}{line}\n{pad}" for line in text.splitlines())
        self.changes.append((start, start, lines))
        return self

    def at_end_of_init(self, owner: str, text: str) -> Edits:
        init = self.traced.init_of(owner)
        if init is None:
            raise Unfit("no __init__")
        return self.after(init.body[-1], text)

    def append(self, text: str) -> Edits:
        end = len(self.traced.source)
        self.changes.append((end, end, text))
        return self

    def done(self) -> tuple[str, set[int]]:
        """The new source and the marked lines."""
        text, source = "", self.traced.source
        place = 0
        for start, end, new in sorted(self.changes, key=lambda change: change[:2]):
            if start < place:
                raise Unfit("overlapping edits")
            text += source[place:start] + new
            place = end
        text += source[place:]
        lines = {text[: match.start()].count("\n") + 1 for match in re.finditer(MARK, text)}
        rows = set(lines)
        return text.replace(MARK, ""), rows


class Unfit(Exception):  # noqa: N818 - no error, an answer
    """This candidate cannot be made here."""


@dataclass
class Candidate:
    """A fault as it would be injected.

    `codes` are the answers that count; `also` are findings that the fault truly has as consequences,
    held neither for nor against. `real` checks the new source by numbers.
    """

    spelling: str
    edits: Edits
    real: Callable[[str], bool]
    codes: tuple[str, ...]
    also: tuple[str, ...] = ()


@dataclass(frozen=True)
class Injection:
    """A fault that is there, shown by numbers."""

    rule: str
    model: str
    spelling: str
    source: str
    lines: frozenset[int]
    codes: tuple[str, ...]
    also: tuple[str, ...]


Generator = Callable[[Traced, random.Random], Iterator[Candidate]]
GENERATORS: dict[str, Generator] = {}


def fault(code: str) -> Callable[[Generator], Generator]:
    def add(generator: Generator) -> Generator:
        GENERATORS[code] = generator
        return generator

    return add


def inject(rule: str, traced: Traced, seed: int) -> Injection | None:
    """The first candidate that is real, or None where the rule's fault does not fit this model."""
    rng = random.Random(f"{rule} {traced.sound.name} {seed}")
    tried = 0
    generator = GENERATORS[rule](traced, rng)
    while tried < TRIES:
        try:
            candidate = next(generator)
        except StopIteration:
            return None
        except Unfit:
            return None  # a generator that raised is over
        tried += 1
        try:
            source, lines = candidate.edits.done()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                if source == traced.source or not candidate.real(source):
                    continue
        except Exception:
            continue
        return Injection(
            rule, traced.sound.name, candidate.spelling, source, frozenset(lines),
            candidate.codes, candidate.also,
        )  # fmt: skip
    return None


def mixed(rng: random.Random, *parts: Iterator[Candidate]) -> Iterator[Candidate]:
    """Candidates of several spellings, in random order."""
    live = list(parts)
    while live:
        chosen = rng.choice(live)
        try:
            yield next(chosen)
        except (StopIteration, Unfit):
            live.remove(chosen)


def shuffled(rng: random.Random, items: Sequence[Any]) -> list[Any]:
    return rng.sample(list(items), len(items))


def rewritten(traced: Traced, spot: Spot, template: str, rng: random.Random) -> Edits:
    """`E` becomes the template's text, in place or as a statement after `x = E`."""
    node = spot.node
    statement = traced.statement(node)
    edits = Edits(traced)
    plain = (
        isinstance(statement, ast.Assign)
        and statement.value is node
        and len(statement.targets) == 1
        and isinstance(statement.targets[0], ast.Name)
    )
    if plain and (template.count("{}") > 1 or rng.random() < 0.5):
        name = statement.targets[0].id
        return edits.after(statement, f"{name} = {template.replace('{}', name)}")
    text = traced.text(node)
    if isinstance(node, ast.BinOp) or "\n" in text:
        text = f"({text})"
    if template.count("{}") > 1:
        raise Unfit("it would be computed twice")
    new = template.replace("{}", text)
    if isinstance(traced.parent(node), ast.BinOp):
        new = f"({new})"
    return edits.replace(node, new)


def with_layer(traced: Traced, spot: Spot, constructor: str, name: str, init: str = "") -> Edits:
    """A new layer of the spot's class, applied to its expression. `{c}` is the width."""
    width = traced.width(spot)
    if width is None or width > 512:
        raise Unfit("the width varies")
    inner = traced.text(spot.node)
    edits = Edits(traced).replace(spot.node, f"self.{name}({inner})")
    lines = f"self.{name} = {constructor.replace('{c}', str(width))}"
    if init:
        lines += "\n" + init
    return edits.at_end_of_init(spot.owner, lines)


def everywhere(
    traced: Traced,
    rng: random.Random,
    templates: Sequence[tuple[str, str]],
    spots: Sequence[Spot],
    real: Callable[[str], bool],
    codes: tuple[str, ...],
    also: tuple[str, ...] = (),
) -> Iterator[Candidate]:
    """Random expressions, each in a random spelling."""
    for spot in shuffled(rng, spots):
        label, template = rng.choice(templates)
        try:
            edits = rewritten(traced, spot, template, rng)
        except Unfit:
            continue
        yield Candidate(label, edits, real, codes, also)


def retraced(traced: Traced, source: str) -> Traced:
    sound = traced.sound
    return Traced(Sound(sound.name, sound.main, sound.task, source, sound.causal, sound.sequence))


def last_spots(traced: Traced) -> list[Spot]:
    """Expressions that are an output of the model, in its main class."""
    found = []
    for spot in traced.spots:
        if spot.owner != traced.main or spot.function == "__init__":
            continue
        statement = traced.statement(spot.node)
        direct = getattr(statement, "value", None) is spot.node
        if direct and spot.tensors and any(t is o for t in spot.tensors for o in traced.outputs):
            found.append(spot)
    return found


# ---------------------------------------------------------------------- ARC


def lines_of_module(traced: Traced, edits: Edits, path: str) -> None:
    """Where this module is constructed also counts as right."""
    for spot in traced.spots:
        if isinstance(spot.node, ast.Call) and any(
            traced.paths.get(id(m)) == path for m in spot.modules
        ):
            if re.match(r"(torch\.)?nn\.|[A-Z]", traced.text(spot.node)):
                edits.mark(spot.node)


def linear_pairs(traced: Traced) -> list[tuple[str, str]]:
    """Modules of full rank that feed another with nothing nonlinear between."""
    found = []
    for number, call in enumerate(traced.calls):
        if call.name not in AFFINE:
            continue
        for before in traced.behind(number, TRANSPARENT | NORMS):
            if traced.calls[before].name not in AFFINE:
                continue
            first, second = traced.calls[before].module, call.module
            one, two = traced.model.get_submodule(first), traced.model.get_submodule(second)
            if not all(isinstance(getattr(m, "weight", None), Tensor) for m in (one, two)):
                continue
            if getattr(one, "groups", 1) != 1 or getattr(two, "groups", 1) != 1:
                continue
            a, b = one.weight, two.weight
            if a.shape[0] >= min(a[0].numel(), b.shape[0]):  # type: ignore[index]
                found.append((first, second))
    return found


def activations(traced: Traced) -> list[tuple[Spot, int]]:
    """Expressions that apply an activation between two layers, with the call."""
    found = []
    for spot in traced.spots:
        if isinstance(spot.node, ast.Call) and len(spot.node.args) == 1 and spot.calls:
            numbers = set(spot.calls)
            if all(n >= 0 and traced.calls[n].name in SMOOTH for n in numbers) and spot.owner:
                inner = spot.node.func
                if isinstance(inner, ast.Attribute) and spot.function != "__init__":
                    found.append((spot, spot.calls[0]))
    return found


ACTIVATION_MODULES = (nn.ReLU, nn.GELU, nn.LeakyReLU, nn.Tanh, nn.SiLU, nn.ReLU6)


def removed_element(traced: Traced, node: Any) -> Edits:
    """An element of a list or argument list, with its comma."""
    rest = traced.source[traced.end(node) :]
    comma = re.match(r"\s*,[ \t]*\n?[ \t]*", rest)
    if comma is None:
        raise Unfit("not an element")
    edits = Edits(traced)
    edits.changes.append((traced.start(node), traced.end(node) + comma.end(), MARK))
    return edits


@fault("ARC001")
def stacked_linear(traced: Traced, rng: random.Random) -> Iterator[Candidate]:
    known = len(linear_pairs(traced))

    def real(source: str) -> bool:
        return len(linear_pairs(retraced(traced, source))) > known

    def neighbours(edits: Edits, number: int) -> Edits:
        for other in [
            *traced.behind(number, TRANSPARENT | NORMS),
            *traced.ahead(number, TRANSPARENT | NORMS),
        ]:
            lines_of_module(traced, edits, traced.calls[other].module)
        return edits

    def functional() -> Iterator[Candidate]:
        for spot, number in shuffled(rng, activations(traced)):
            edits = Edits(traced).replace(spot.node, traced.text(spot.node.args[0]))
            yield Candidate("activation call dropped", neighbours(edits, number), real, ("ARC001",))

    def modules() -> Iterator[Candidate]:
        for spot in shuffled(rng, traced.constructors(*ACTIVATION_MODULES)):
            path = traced.path(spot)
            numbers = [n for n, call in enumerate(traced.calls) if call.module == path]
            if not numbers or not isinstance(traced.parent(spot.node), (ast.Call, ast.List)):
                continue
            if rng.random() < 0.5:
                edits = Edits(traced).replace(spot.node, "nn.Identity()")
            else:
                edits = removed_element(traced, spot.node)
            yield Candidate(
                "activation module dropped", neighbours(edits, numbers[0]), real, ("ARC001",)
            )

    def doubled() -> Iterator[Candidate]:
        for spot in shuffled(rng, traced.constructors(nn.Linear)):
            node = spot.node
            if len(node.args) < 2 or traced.text(node.func).count(".") > 2:
                continue
            width = traced.text(node.args[1])
            edits = Edits(traced).wrap(node, "nn.Sequential(", f", nn.Linear({width}, {width}))")
            yield Candidate("a second Linear behind", edits, real, ("ARC001",))

    yield from mixed(rng, functional(), modules(), doubled())


@fault("ARC002")
def wrong_width(traced: Traced, rng: random.Random) -> Iterator[Candidate]:
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d, nn.LSTM, nn.GRU, nn.GRUCell)

    def own() -> Iterator[Candidate]:
        for spot in shuffled(rng, traced.constructors(*kinds)):
            if not spot.node.args or isinstance(spot.node.args[0], ast.Starred):
                continue
            text = traced.text(spot.node.args[0])
            new = rng.choice([f"{text} + 3", f"2 * ({text})", f"({text}) * 3 + 1"])
            edits = Edits(traced).replace(spot.node.args[0], new).mark(spot.node)
            yield Candidate("wrong inputs", edits, lambda s: raises(s, traced.main), ("ARC002",))

    def producers() -> Iterator[Candidate]:
        for spot in shuffled(rng, traced.constructors(nn.Linear, nn.Conv2d)):
            node = spot.node
            path = traced.path(spot)
            numbers = [
                n
                for n, call in enumerate(traced.calls)
                if call.module == path and call.name in AFFINE
            ]
            if len(node.args) < 2 or not numbers:
                continue
            ahead = [
                o for n in numbers for o in traced.ahead(n, TRANSPARENT | SMOOTH | {"max_pool2d"})
            ]
            names = {traced.calls[o].name for o in ahead}
            if not names or not names <= AFFINE | NORMS:
                continue
            edits = (
                Edits(traced).replace(node.args[1], f"{traced.text(node.args[1])} + 3").mark(node)
            )
            for other in ahead:
                lines_of_module(traced, edits, traced.calls[other].module)
            # A normalisation that gets the wrong number is NRM001: the same fault, met there first.
            codes = ("ARC002", "NRM001") if names & NORMS else ("ARC002",)
            yield Candidate(
                "wrong outputs",
                edits,
                lambda s: raises(s, traced.main),
                codes,
                ("ARC002", "NRM001"),
            )

    yield from mixed(rng, own(), producers())


@fault("ARC003")
def unregistered(traced: Traced, rng: random.Random) -> Iterator[Candidate]:
    count = len(list(traced.model.parameters()))

    def real(source: str) -> bool:
        done = run(source, traced.main, train=True)
        return 0 < len(list(done.model.parameters())) < count

    statements = [
        node
        for node in ast.walk(traced.tree)
        if isinstance(node, ast.Assign)
        and traced.context(node)[1] == "__init__"
        and isinstance(node.targets[0], ast.Attribute)
        and isinstance(node.value, ast.Call)
    ]
    for node in shuffled(rng, statements):
        text = traced.text(node.value)
        owner = traced.context(node)[0]
        name = node.targets[0].attr
        edits = Edits(traced).mark(node)
        inner = traced.text(node.value.args[0]) if len(node.value.args) == 1 else ""
        if text.startswith("nn.ModuleList("):
            new = "[]" if not inner else inner if inner.startswith("[") else f"list({inner})"
            if rng.random() < 0.3 and inner and "append" not in traced.source:
                new = f"tuple({inner})"
            yield Candidate("plain list", edits.replace(node.value, new), real, ("ARC003",))
        elif text.startswith("nn.ModuleDict("):
            yield Candidate("plain dict", edits.replace(node.value, inner), real, ("ARC003",))
        elif re.match(r"(torch\.)?nn\.|[A-Z]\w+\(", text):
            wrapped, key = rng.choice(
                [("[{}]", "[0]"), ("({},)", "[0]"), ('{"layer": {}}', '["layer"]')]
            )
            edits.replace(node.value, wrapped.replace("{}", text))
            uses = [
                use
                for use in ast.walk(traced.class_of(owner))
                if isinstance(use, ast.Attribute)
                and use.attr == name
                and isinstance(use.ctx, ast.Load)
            ]
            for use in uses:
                end = traced.end(use)
                edits.changes.append((end, end, key))
            yield Candidate(f"one layer in {wrapped}", edits, real, ("ARC003",))


@fault("ARC004")
def unused(traced: Traced, rng: random.Random) -> Iterator[Candidate]:
    known = {name for name, norm in gradients(traced.source, traced.main).items() if norm is None}

    def real(source: str) -> bool:
        found = {name for name, norm in gradients(source, traced.main).items() if norm is None}
        return len(found) > len(known)

    def added() -> Iterator[Candidate]:
        owners = sorted({spot.owner for spot in traced.hidden()})
        for owner in shuffled(rng, owners):
            layer = rng.choice([
                "self.aux = nn.Linear(16, 8)",
                "self.extra_conv = nn.Conv2d(8, 8, 3, padding=1)",
                "self.bn_old = nn.BatchNorm1d(12)",
                "self.proj = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))",
                "self.unused_embedding = nn.Embedding(10, 4)",
            ])  # fmt: skip
            yield Candidate("added", Edits(traced).at_end_of_init(owner, layer), real, ("ARC004",))

    def bypassed() -> Iterator[Candidate]:
        for spot in shuffled(rng, traced.hidden()):
            node = spot.node
            if not (isinstance(node, ast.Call) and len(node.args) == 1):
                continue
            if not traced.text(node.func).startswith("self.") or isinstance(
                node.args[0], ast.Starred
            ):
                continue
            path = traced.calls[spot.calls[0]].module if spot.calls[0] >= 0 else ""
            edits = Edits(traced)
            lines_of_module(traced, edits, path)
            if not edits.changes:
                continue
            edits.replace(node, traced.text(node.args[0]))
            yield Candidate("no longer called", edits, real, ("ARC004",), ("ARC001",))

    def confused() -> Iterator[Candidate]:
        calls = [s for s in traced.hidden() if isinstance(s.node, ast.Call) and s.calls[0] >= 0]
        calls = [s for s in calls if re.fullmatch(r"self\.\w+", traced.text(s.node.func))]
        for spot in shuffled(rng, calls):
            for other in shuffled(rng, calls):
                if other.owner != spot.owner or traced.text(other.node.func) == traced.text(
                    spot.node.func
                ):
                    continue
                edits = Edits(traced)
                lines_of_module(traced, edits, traced.calls[spot.calls[0]].module)
                edits.replace(spot.node.func, traced.text(other.node.func))
                # Where a BatchNorm takes the place of another, it is also reused: NRM009.
                yield Candidate(
                    "another called instead", edits, real, ("ARC004",), ("NRM009", "ARC001")
                )

    yield from mixed(rng, added(), bypassed(), confused())


@fault("ARC005")
def cut(traced: Traced, rng: random.Random) -> Iterator[Candidate]:
    before = gradients(traced.source, traced.main)

    def real(source: str) -> bool:
        after = gradients(source, traced.main)
        return any(after[name] is None for name, norm in before.items() if norm is not None)

    templates = [
        ("detach", "{}.detach()"),
        ("data", "{}.data"),
        ("clone detach", "{}.clone().detach()"),
        ("numpy", "torch.from_numpy({}.detach().numpy())"),
        ("tensor", "torch.tensor({}.tolist())"),
        ("numpy cpu", "torch.as_tensor({}.detach().cpu().numpy())"),
        ("threshold", "({} > 0).float()"),
        ("torch.detach", "torch.detach({})"),
    ]

    def blocks() -> Iterator[Candidate]:
        for spot in shuffled(rng, traced.hidden()):
            statement = traced.statement(spot.node)
            if not isinstance(statement, ast.Assign) or statement.value is not spot.node:
                continue
            if statement.lineno != statement.end_lineno:
                continue
            text = traced.text(statement)
            head = rng.choice(["with torch.no_grad():", "with torch.set_grad_enabled(False):"])
            pad = traced.indent(statement)
            edits = Edits(traced).replace(statement, f"{head}\n{pad}    {MARK}{text}")
            yield Candidate("no_grad block", edits, real, ("ARC005",))

    def decorated() -> Iterator[Candidate]:
        methods = [
            n
            for n in ast.walk(traced.tree)
            if isinstance(n, ast.FunctionDef) and n.name in ("forward", "encode", "embed")
        ]
        for node in shuffled(rng, methods):
            edits = Edits(traced).before(node, "@torch.no_grad()").mark(node)
            for inner in node.body:
                edits.mark(inner)
            yield Candidate("no_grad decorator", edits, real, ("ARC005",))

    everything = everywhere(traced, rng, templates, traced.hidden(), real, ("ARC005",))
    yield from mixed(rng, everything, blocks(), everything, everything, decorated())


@fault("ARC006")
def mixing(traced: Traced, rng: random.Random) -> Iterator[Candidate]:
    sound = not mixes(traced.source, traced.main)

    def real(source: str) -> bool:
        return sound and mixes(source, traced.main)

    spots = traced.hidden()
    flat = [s for s in spots if all(t.dim() == 2 for t in s.tensors)]
    rows = [s for s in spots if all(t.dim() == 3 for t in s.tensors)]
    maps = [s for s in spots if all(t.dim() == 4 for t in s.tensors)]
    parts = [
        everywhere(traced, rng, [
            ("t().reshape", "{}.t().reshape({}.shape)"),
            ("view transposed", "{}.view({}.size(1), -1).t()"),
            ("roll", "torch.roll({}, 1)"),
        ], flat, real, ("ARC006",)),
        everywhere(traced, rng, [
            ("transpose reshape", "{}.transpose(0, 1).reshape({}.shape)"),
            ("permute view", "{}.permute(1, 0, 2).contiguous().view({}.size(0), {}.size(1), -1)"),
            ("reshape transpose", "{}.reshape({}.size(1), {}.size(0), -1).transpose(0, 1)"),
        ], rows, real, ("ARC006",), ("ARC009",)),
        everywhere(traced, rng, [
            ("permute reshape", "{}.permute(1, 0, 2, 3).reshape({}.shape)"),
            ("transpose view", "{}.transpose(0, 1).contiguous().view_as({})"),
            ("channels to batch", "{}.reshape({}.size(1), {}.size(0), {}.size(2), {}.size(3)).transpose(0, 1)"),
        ], maps, real, ("ARC006",)),
    ]  # fmt: skip

    def batch_first() -> Iterator[Candidate]:
        for spot in shuffled(rng, traced.spots):
            if isinstance(spot.node, ast.Call):
                for word in spot.node.keywords:
                    if word.arg == "batch_first":
                        edits = Edits(traced).replace(word, "batch_first=False").mark(spot.node)
                        for other in traced.spots:  # the call is an honest place as well
                            if other.function == "forward" and isinstance(other.node, ast.Call):
                                made = [c for c in other.calls if c >= 0]
                                names = {traced.calls[c].name for c in made}
                                if names & {"lstm", "gru", "multi_head_attention_forward"}:
                                    edits.mark(other.node)
                        yield Candidate(
                            "batch_first dropped", edits, real, ("ARC006",), ("ARC009",)
                        )

    def flattening() -> Iterator[Candidate]:
        for spot in shuffled(rng, flat):
            text = traced.text(spot.node)
            match = re.fullmatch(
                r"(\w+)\.(?:view|reshape)\((\w+)\.(?:size\(0\)|shape\[0\]), -1\)", text
            )
            flatten = re.fullmatch(
                r"(?:torch\.flatten\((\w+), (?:start_dim=)?1\)|(\w+)\.flatten\(1\))", text
            )
            found = match or flatten
            if found:
                x = next(g for g in found.groups() if g)
                template = rng.choice([f"{x}.transpose(0, 1).reshape({x}.size(0), -1)",
                                       f"{x}.transpose(0, -1).reshape({x}.size(0), -1)"])  # fmt: skip
                edits = Edits(traced).replace(spot.node, template)
                yield Candidate("flatten of the transposed", edits, real, ("ARC006",))

    yield from mixed(rng, *parts, batch_first(), flattening())


@fault("ARC007")
def flatten(traced: Traced, rng: random.Random) -> Iterator[Candidate]:
    for spot in shuffled(rng, traced.hidden(3, 4)):
        if len(spot.shapes) != 1 or spot.owner != traced.main:
            continue
        shape = next(iter(spot.shapes))
        c, h, w = shape[1:] if len(shape) == 4 else (shape[2], shape[1], 1)
        if h * w < 8 or c * h * w > 70000:
            continue
        hidden = rng.choice([64, 128])
        share = c * h * w * hidden
        inner = traced.text(spot.node)
        edits = Edits(traced)
        if len(inner) > 60 or not isinstance(traced.statement(spot.node), ast.Assign):
            continue
        statement = traced.statement(spot.node)
        if statement.value is not spot.node or not isinstance(statement.targets[0], ast.Name):
            continue
        x = statement.targets[0].id
        axes = ":, None, None" if len(shape) == 4 else "None"
        edits.after(statement, f"{x} = {x} + self.context({x})[:, {axes}]")
        edits.mark(spot.node)
        layers = f"nn.Flatten(), nn.Linear({c} * {h} * {w}, {hidden}), nn.ReLU(), nn.Linear({hidden}, {c})"
        edits.at_end_of_init(spot.owner, f"self.context = nn.Sequential({layers})")

        def real(source: str, share: int = share) -> bool:
            done = run(source, traced.main)
            total = sum(p.numel() for p in done.model.parameters())
            # In a model of fewer weights, as LeNet is, the flatten costs next to nothing.
            return total > 100_000 and share > 0.6 * total

        yield Candidate("flatten to Linear", edits, real, ("ARC007",), ("INI005", "ARC009"))


def stack(kind: str, depth: int, activation: str, dims: int) -> str:
    """A plain stack of layers of one width, on one line."""
    layer = "nn.Conv2d({c}, {c}, 3, padding=1)" if dims == 4 else "nn.Linear({c}, {c})"
    if kind == "unrolled":
        return "nn.Sequential(" + ", ".join([layer, activation] * depth) + ")"
    return f"nn.Sequential(*[m for _ in range({depth}) for m in ({layer}, {activation})])"


def slope(source: str, main: str) -> float:
    """How much smaller the gradient is at the first weights than at the last, in decades."""
    found = [g for name, g in gradients(source, main).items() if g and "bias" not in name]
    return math.log10(found[0] / found[-1]) if found else 0.0


def stacks(
    traced: Traced, rng: random.Random, depths: tuple[int, int], choices: Sequence[str], init: str
) -> Iterator[tuple[Spot, Edits, str]]:
    """Inserted plain stacks at random expressions of one width."""
    for spot in shuffled(rng, traced.hidden()):
        dims = {t.dim() for t in spot.tensors}
        if len(dims) != 1 or (traced.width(spot) or 0) < 8:
            continue
        if any(t.dim() == 4 and (t.shape[-1] > 20 or t.shape[-1] < 3) for t in spot.tensors):
            continue
        activation = rng.choice(list(choices))
        depth = rng.randint(*depths)
        kind = "unrolled" if depth < 6 and rng.random() < 0.5 else "loop"
        constructor = stack(kind, depth, activation, dims.pop())
        try:
            edits = with_layer(traced, spot, constructor, "trunk", init)
        except Unfit:
            continue
        yield spot, edits, f"{depth} × {activation}"


@fault("ARC008")
def saturating(traced: Traced, rng: random.Random) -> Iterator[Candidate]:
    before = slope(traced.source, traced.main)

    def real(source: str) -> bool:
        return slope(source, traced.main) < before - 1.3

    also = (
        "INI003",
        "GRD001",
        "INI005",
        "NRM008",
        "INI007",
        "ARC012",
        "GRD003",
        "ARC001",
        "ARC011",
    )

    def inserted() -> Iterator[Candidate]:
        for _, edits, label in stacks(
            traced, rng, (4, 9), ["nn.Sigmoid()", "nn.Hardsigmoid()"], ""
        ):
            yield Candidate(label, edits, real, ("ARC008",), also)

    def swapped() -> Iterator[Candidate]:
        edits = Edits(traced)
        if any(call.name in NORMS for call in traced.calls):
            return  # a normalisation before each sigmoid keeps it alive
        for spot in traced.constructors(*ACTIVATION_MODULES):
            edits.replace(spot.node, "nn.Sigmoid()")
        for spot, _ in activations(traced):
            text = traced.text(spot.node.func)
            if re.fullmatch(r"F\.\w+|torch\.(relu|tanh)", text):
                edits.replace(spot.node.func, rng.choice(["torch.sigmoid", "F.sigmoid"]))
        if len(edits.changes) >= 3:
            yield Candidate("all activations to sigmoid", edits, real, ("ARC008",), also)

    yield from mixed(rng, swapped(), inserted())


def with_next_token_loss(traced: Traced, edits: Edits) -> bool:
    """Let the model return the loss of predicting each next token, where it has one input of tokens."""
    if traced.sound.task != "tokens" or len(traced.inputs) != 1:
        return False
    forward_def = next(
        n
        for n in traced.class_of(traced.main).body
        if isinstance(n, ast.FunctionDef) and n.name == "forward"
    )
    name, returned = forward_def.args.args[1].arg, forward_def.body[-1]
    assert isinstance(returned, ast.Return)
    if any(
        isinstance(n, ast.Assign) and traced.text(n).startswith(f"{name} =")
        for n in forward_def.body
    ):
        start = traced.start(forward_def.body[0])
        edits.changes.append(
            (start, start, f"targets = {name}\n{traced.indent(forward_def.body[0])}")
        )
        name = "targets"
    pad, start = traced.indent(returned), traced.start(returned)
    edits.changes.append((start, start + len("return"), "logits ="))
    end = traced.end(returned)
    loss = f"F.cross_entropy(logits[:, :-1].flatten(0, 1), {name}[:, 1:].flatten())"
    edits.changes.append((end, end, f"\n{pad}loss = {loss}\n{pad}return loss"))
    return True


def lossy(real: Callable[[str], bool]) -> Callable[[str], bool]:
    """The check of a source whose loss is taken off again."""

    def check(source: str) -> bool:
        return real(re.sub(r"(\n +)loss = [^\n]+\n +return loss", r"\1return logits", source))

    return check


def mark_attention(traced: Traced, edits: Edits, changed: int) -> None:
    """Where a mask is made or used, and the attention itself, are honest places for a leak."""
    words = re.compile(r"mask|softmax|attention|att @|pad\(|transformer\(|super\(\).forward")
    for node in ast.walk(traced.tree):
        plain = isinstance(node, ast.stmt) and not isinstance(node, (ast.ClassDef, ast.FunctionDef))
        if plain and words.search(traced.text(node)) and traced.context(node)[1] != "__init__":
            if traced.start(node) != changed:
                edits.mark(node)


@fault("ARC009")
def leak(traced: Traced, rng: random.Random) -> Iterator[Candidate]:
    if not traced.sound.causal or leaks(traced.source, traced.main):
        return

    def real(source: str) -> bool:
        return leaks(source, traced.main)

    length = traced.inputs[-1].shape[1]
    rows = [s for s in traced.hidden(3) if all(t.shape[1] == length for t in s.tensors)]

    def masks() -> Iterator[Candidate]:
        for old, new in shuffled(rng, [
            ("is_causal=True", "is_causal=False"),
            ("torch.tril(torch.ones(block_size, block_size))", "torch.ones(block_size, block_size)"),
            ("torch.tril(torch.ones(block_size, block_size))", "torch.tril(torch.ones(block_size, block_size), 1)"),
            ("F.pad(x, (self.left, 0))", "F.pad(x, (self.left // 2, self.left - self.left // 2))"),
            ("F.pad(x, (self.left, 0))", "F.pad(x, (0, self.left))"),
            ("attn_mask=mask", "attn_mask=None"),
            ("tgt_mask=mask", "tgt_mask=None"),
            ("diagonal=1", "diagonal=2"),
            ("mask = torch.triu(", "mask = torch.tril("),
        ]):  # fmt: skip
            place = traced.source.find(old)
            if place >= 0:
                edits = Edits(traced)
                edits.changes.append((place, place + len(old), MARK + new))
                mark_attention(traced, edits, place)
                label = "with loss: " if with_next_token_loss(traced, edits) else ""
                if label:
                    yield Candidate(
                        f"{label}{old} → {new}",
                        edits,
                        lossy(real),
                        ("ARC009",),
                        ("ARC004", "ARC010"),
                    )

    some = everywhere(traced, rng, [
        ("mean over time", "{} + {}.mean(1, keepdim=True)"),
        ("centred over time", "{} - {}.mean(dim=1, keepdim=True)"),
        ("max over time", "{} + {}.amax(1, keepdim=True)"),
        ("roll", "torch.roll({}, -1, 1)"),
        ("flip", "{} + {}.flip(1)"),
        ("softmax over time", "{} * torch.softmax({}, dim=1)"),
    ], rows, real, ("ARC009",))  # fmt: skip

    def bidirectional() -> Iterator[Candidate]:
        for spot in traced.constructors(nn.LSTM, nn.GRU):
            hidden = traced.text(spot.node.args[1])
            text = traced.text(spot.node).replace(f", {hidden},", f", {hidden} // 2,", 1)
            edits = Edits(traced).replace(spot.node, text[:-1] + ", bidirectional=True)")
            for other in traced.spots:
                if "self.rnn" in traced.text(other.node) and other.function == "forward":
                    edits.mark(other.node)
            if with_next_token_loss(traced, edits):
                yield Candidate("with loss: bidirectional", edits, lossy(real), ("ARC009",))

    def told() -> Iterator[Candidate]:
        for candidate in some:
            if traced.sound.name in ("gpt", "llama", "transformer_nmt", "time_series_decoder"):
                yield candidate  # its masks say that it is a causal model
            elif with_next_token_loss(traced, candidate.edits):
                candidate.real = lossy(real)
                candidate.spelling = f"with loss: {candidate.spelling}"
                yield candidate

    yield from mixed(rng, masks(), told(), bidirectional())


@fault("ARC010")
def dead_branch(traced: Traced, rng: random.Random) -> Iterator[Candidate]:
    before = run(traced.source, traced.main)

    def same(source: str) -> bool:
        after = run(source, traced.main)
        return all(torch.equal(a, b) for a, b in zip(before.outputs, after.outputs, strict=True))

    def statements() -> Iterator[Any]:
        for spot in shuffled(rng, traced.hidden()):
            statement = traced.statement(spot.node)
            if isinstance(statement, ast.Assign) and statement.value is spot.node:
                if isinstance(statement.targets[0], ast.Name):
                    yield spot, statement, statement.targets[0].id

    def thrown() -> Iterator[Candidate]:
        for _, statement, x in statements():
            line = rng.choice([
                f"activated = F.relu({x})", f"normed = F.layer_norm({x}, {x}.shape[1:])",
                f"gate = torch.sigmoid({x}.mean(-1, keepdim=True))", f"h_old = torch.tanh({x} * 2)",
            ])  # fmt: skip
            yield Candidate(
                "computed, unused", Edits(traced).after(statement, line), same, ("ARC010",)
            )

    def branch() -> Iterator[Candidate]:
        for spot, statement, x in statements():
            width = traced.width(spot)
            if width is None or any(t.dim() == 4 for t in spot.tensors):
                continue
            edits = Edits(traced).after(statement, f"side = F.relu(self.side({x}))")
            edits.at_end_of_init(spot.owner, f"self.side = nn.Linear({width}, 8)")
            # A layer that ran for nothing may also be called an unused one.
            yield Candidate(
                "layer, result unused",
                edits,
                same,
                ("ARC010", "ARC004"),
                ("ARC010", "ARC004", "ARC005"),
            )

    def forgotten() -> Iterator[Candidate]:
        for spot, statement, _ in statements():
            edits = Edits(traced).replace(statement, traced.text(spot.node))
            text, _ = Edits(traced).replace(statement, "pass").done()

            def real(source: str, without: str = text) -> bool:
                one, two = run(source, traced.main), run(without, traced.main)
                return all(torch.equal(a, b) for a, b in zip(one.outputs, two.outputs, strict=True))

            yield Candidate(
                "assignment forgotten",
                edits,
                real,
                ("ARC010", "ARC004"),
                ("ARC001", "ARC004", "ARC005", "ARC010"),
            )

    yield from mixed(rng, thrown(), branch(), forgotten())


@fault("ARC011")
def no_influence(traced: Traced, rng: random.Random) -> Iterator[Candidate]:
    forward_def = next(
        n
        for n in traced.class_of(traced.main).body
        if isinstance(n, ast.FunctionDef) and n.name == "forward"
    )
    names = [a.arg for a in forward_def.args.args[1:]]

    def make(number: int, line: str, rows: Any, label: str) -> Candidate:
        edits = Edits(traced).before(forward_def.body[0], line).mark(forward_def)
        for node in ast.walk(traced.tree):
            if isinstance(node, ast.Assign) and traced.text(node).startswith("example_inputs"):
                edits.mark(node)

        def real(source: str) -> bool:
            return not unmoved_by(traced.source, traced.main, number, rows) and unmoved_by(
                source, traced.main, number, rows
            )

        # Where the only input is without influence as a whole, the outputs are constant: one fault.
        alone = len(names) == 1 and rows == slice(None)
        codes = ("ARC011", "ARC012") if alone else ("ARC011",)
        return Candidate(label, edits, real, codes, ("ARC012", "ARC009"))

    choices = []
    for number, (name, value) in enumerate(zip(names, traced.inputs, strict=True)):
        for other, (rival, second) in enumerate(zip(names, traced.inputs, strict=True)):
            if other != number and second.shape == value.shape and second.dtype == value.dtype:
                choices.append(
                    make(number, f"{name} = {rival}", slice(None), "overwritten by the other input")
                )
        if len(names) > 1:
            choices.append(
                make(number, f"{name} = torch.zeros_like({name})", slice(None), "zeroed input")
            )
        if value.is_floating_point() and value.dim() == 2 and value.shape[1] > 3:
            k = value.shape[1] - 2
            line = f"{name} = torch.cat([{name}[:, :{k}], torch.zeros_like({name}[:, {k}:])], 1)"
            choices.append(
                make(number, line, (slice(None), slice(k, None)), "last features zeroed")
            )
            line = f"{name} = {name} * (torch.arange({value.shape[1]}) > 1)"
            choices.append(make(number, line, (slice(None), slice(0, 2)), "first features masked"))
        if value.is_floating_point() and value.dim() == 3 and value.shape[-1] > 2:
            line = f"{name} = {name}[..., :1].expand_as({name})"
            choices.append(make(number, line, (..., slice(1, None)), "only the first feature"))
        if (
            value.is_floating_point()
            and value.dim() == 4
            and value.shape[1] > 1
            and value.shape[2] > 1
        ):
            line = f"{name} = {name}[:, :1].expand_as({name})"
            choices.append(
                make(number, line, (slice(None), slice(1, None)), "only the first channel")
            )
        if not value.is_floating_point() and value.dim() == 2:
            line = f"{name} = {name}[:, :1].expand_as({name})"
            choices.append(
                make(number, line, (slice(None), slice(1, None)), "only the first token")
            )
        if value.is_floating_point():
            line = f"{name} = torch.clamp({name}, 5.0, 6.0)"
            choices.append(make(number, line, slice(None), "clamped out of range"))
    yield from shuffled(rng, choices)


@fault("ARC012")
def constant_output(traced: Traced, rng: random.Random) -> Iterator[Candidate]:
    sound = not constant(traced.source, traced.main)

    def real(source: str) -> bool:
        return sound and constant(source, traced.main)

    # Without any influence of the inputs the outputs are constant and the inputs are without influence:
    # ARC011 is the same fault. One sample's values for all, or their mean, is also batch mixing (ARC006).
    also = ("ARC011", "ARC006", "ARC005", "ARC004", "ARC010", "INI003", "GRD001", "INI007")
    yield from everywhere(traced, rng, [
        ("times zero", "{} * 0"),
        ("zeros_like", "torch.zeros_like({})"),
        ("mean of the batch", "{}.mean(0, keepdim=True).expand_as({})"),
        ("first of the batch", "{}[:1].expand_as({})"),
        ("dead relu", "F.relu({} - 100.0)"),
        ("saturated", "torch.sigmoid({} + 200.0)"),
        ("clamped", "{}.clamp(50.0, 60.0)"),
    ], traced.hidden(), real, ("ARC012", "ARC011"), also)  # fmt: skip


# ---------------------------------------------------------------------- INI


def access(traced: Traced, path: str) -> str:
    """`layer1.0.conv1` as an expression of the main class."""
    text, module = "self", traced.model
    for part in path.split("."):
        if isinstance(module, nn.ModuleDict):
            text += f'["{part}"]'
        else:
            text += f"[{part}]" if part.isdigit() else f".{part}"
        module = module.get_submodule(part)
    return text


WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d)


def filled(
    traced: Traced, rng: random.Random, lines: Sequence[tuple[str, str]]
) -> Iterator[tuple[str, Edits]]:
    """One layer's weight filled at the end of the main class's `__init__`."""
    layers = [path for path, m in traced.model.named_modules() if isinstance(m, WEIGHTED) and path]
    for path in shuffled(rng, layers):
        label, line = rng.choice(list(lines))
        text = line.replace("{}", access(traced, path))
        edits = Edits(traced).at_end_of_init(traced.main, text)
        lines_of_module(traced, edits, path)
        yield label, edits


@fault("INI001")
def zeros(traced: Traced, rng: random.Random) -> Iterator[Candidate]:
    known, _ = never_learning(traced.source, traced.main)

    def real(source: str) -> bool:
        return bool(never_learning(source, traced.main)[0] - known)

    one = filled(traced, rng, [
        ("zeros_", "nn.init.zeros_({}.weight)"),
        ("data.fill_", "{}.weight.data.fill_(0)"),
        ("data.zero_", "{}.weight.data.zero_()"),
        ("constant_", "nn.init.constant_({}.weight, 0.0)"),
        ("new Parameter", "{}.weight = nn.Parameter(torch.zeros_like({}.weight))"),
        ("no_grad copy_", "with torch.no_grad():\n    {}.weight.copy_(torch.zeros({}.weight.shape))"),
        ("normal_ std 0", "nn.init.normal_({}.weight, 0, 0)"),
        ("multiplied", "{}.weight.data *= 0"),
    ])  # fmt: skip

    def loops() -> Iterator[Candidate]:
        for kinds in shuffled(
            rng, ["nn.Linear", "(nn.Conv2d, nn.Linear)", "(nn.Conv1d, nn.Conv2d)"]
        ):
            text = (
                f"for m in self.modules():\n    if isinstance(m, {kinds}):\n"
                "        m.weight.data.zero_()\n        if m.bias is not None:\n            m.bias.data.zero_()"
            )
            edits = Edits(traced).at_end_of_init(traced.main, text)
            for path, module in traced.model.named_modules():
                if isinstance(module, WEIGHTED):
                    lines_of_module(traced, edits, path)
            yield Candidate(
                "loop over all", edits, real, ("INI001",), ("ARC012", "ARC011", "INI003")
            )

    singles = (
        Candidate(label, edits, real, ("INI001",), ("ARC012", "ARC011", "INI003"))
        for label, edits in one
    )
    yield from mixed(rng, singles, singles, loops())


@fault("INI002")
def symmetric(traced: Traced, rng: random.Random) -> Iterator[Candidate]:
    _, known = never_learning(traced.source, traced.main)

    def real(source: str) -> bool:
        return bool(never_learning(source, traced.main)[1] - known)

    also = ("INI003", "INI004", "INI007", "LOS010", "GRD002", "GRD001", "ARC012", "ARC011")
    # One such layer alone is no lasting fault: the next layer's weights tell its units apart.
    one = filled(traced, rng, [
        ("ones_", "nn.init.ones_({}.weight)"),
        ("constant_", "nn.init.constant_({}.weight, 0.1)"),
        ("fill_", "{}.weight.data.fill_(0.05)"),
        ("equal rows", "{}.weight.data = {}.weight.data[:1].expand_as({}.weight).clone()"),
        ("full", "{}.weight = nn.Parameter(torch.full({}.weight.shape, 0.02))"),
        ("copy_", "with torch.no_grad():\n    {}.weight.copy_({}.weight[0].clone().expand_as({}.weight))"),
    ])  # fmt: skip

    def loops() -> Iterator[Candidate]:
        kinds = ["nn.Linear", "(nn.Conv2d, nn.Linear)", "(nn.Conv1d, nn.Conv2d)"]
        lines = [
            "nn.init.constant_(m.weight, 0.1)", "m.weight.data.fill_(0.02)", "nn.init.ones_(m.weight)",
            "m.weight.data[:] = m.weight.data[:1].clone()", "m.weight = nn.Parameter(0.05 * torch.ones_like(m.weight))",
        ]  # fmt: skip
        for kind in shuffled(rng, kinds):
            line = rng.choice(lines)
            text = f"for m in self.modules():\n    if isinstance(m, {kind}):\n        {line}"
            edits = Edits(traced).at_end_of_init(traced.main, text)
            for path, module in traced.model.named_modules():
                if isinstance(module, WEIGHTED):
                    lines_of_module(traced, edits, path)
            yield Candidate(f"loop: {line}", edits, real, ("INI002",), also)

    def conditional() -> Iterator[Candidate]:
        for kind, line in shuffled(
            rng, [("Linear", "nn.init.constant_(p, 0.05)"), ("Conv", "p.data.fill_(0.03)")]
        ):
            text = f"for n, p in self.named_parameters():\n    if p.dim() > 1:\n        {line}"
            edits = Edits(traced).at_end_of_init(traced.main, text)
            for path, module in traced.model.named_modules():
                if isinstance(module, (*WEIGHTED, nn.Embedding, nn.LSTM, nn.GRU, nn.GRUCell)):
                    lines_of_module(traced, edits, path)
            yield Candidate(f"all matrices ({kind}): {line}", edits, real, ("INI002",), also)

    singles = (Candidate(label, edits, real, ("INI002",), also) for label, edits in one)
    yield from mixed(rng, singles, loops(), conditional())


def flow(traced: Traced) -> tuple[float, float]:
    """From the first layer to the last: decades that the gradient loses on its way back, and the signal gains."""
    layers = [
        c.outputs[0]
        for c in traced.calls
        if c.name in AFFINE and c.outputs and c.outputs[0].requires_grad
    ]
    ends = [layers[0], layers[-1]]
    slopes = torch.autograd.grad(
        objective(traced.outputs), ends, retain_graph=True, allow_unused=True
    )
    first, last = (1e-45 if g is None else max(float(g.norm()), 1e-45) for g in slopes)
    below, above = (max(float((t - t.mean(0)).square().mean().sqrt()), 1e-45) for t in ends)
    return math.log10(last / first), math.log10(above / below)


def spread(source: str, main: str) -> float:
    """How far the outputs of the samples lie apart."""
    done = run(source, main, train=False)
    return max(float((t - t.mean(0)).square().mean().sqrt()) for t in done.outputs)


def badly_scaled(
    traced: Traced, rng: random.Random, choices: Sequence[tuple[str, str]]
) -> Iterator[tuple[str, Edits]]:
    """All layers, or those of an inserted plain stack, filled with weights of a wrong scale."""

    def all_layers() -> Iterator[tuple[str, Edits]]:
        for label, line in shuffled(rng, choices):
            kinds = "(nn.Linear, nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d)"
            text = f"for m in self.modules():\n    if isinstance(m, {kinds}):\n        {line}"
            edits = Edits(traced).at_end_of_init(traced.main, text)
            for path, module in traced.model.named_modules():
                if isinstance(module, WEIGHTED):
                    lines_of_module(traced, edits, path)
            yield f"all layers: {label}", edits

    def inserted() -> Iterator[tuple[str, Edits]]:
        label, line = rng.choice(list(choices))
        init = f"for m in self.trunk:\n    if hasattr(m, 'weight'):\n        {line}"
        for _, edits, kind in stacks(
            traced, rng, (6, 12), ["nn.ReLU()", "nn.Tanh()", "nn.GELU()"], init
        ):
            yield f"stack {kind}: {label}", edits

    live = [all_layers(), inserted()]
    while live:
        chosen = rng.choice(live)
        try:
            yield next(chosen)
        except (StopIteration, Unfit):
            live.remove(chosen)


SMALL = [
    ("normal_ 0.001", "nn.init.normal_(m.weight, std=0.001)"),
    ("uniform_ 0.01", "nn.init.uniform_(m.weight, -0.003, 0.003)"),
    ("times 0.02", "m.weight.data.mul_(0.02)"),
    ("xavier gain 0.05", "nn.init.xavier_uniform_(m.weight, gain=0.05)"),
]
LARGE = [
    ("normal_ 1", "nn.init.normal_(m.weight)"),
    ("normal_ 2", "m.weight.data.normal_(0, 2.0)"),
    ("kaiming times 6", "nn.init.kaiming_normal_(m.weight)\n        m.weight.data *= 6"),
    ("uniform_", "nn.init.uniform_(m.weight, -2, 2)"),
]


@fault("INI003")
def shrinking(traced: Traced, rng: random.Random) -> Iterator[Candidate]:
    lost, gained = flow(traced)

    def real(source: str) -> bool:
        less, more = flow(retraced(traced, source))
        return less > max(lost, 0) + 2.5 and more < gained - 2.5

    also = ("GRD001", "ARC012", "INI005", "NRM008", "ARC011", "ARC001", "LOS010")
    for label, edits in badly_scaled(traced, rng, SMALL):
        yield Candidate(label, edits, real, ("INI003",), also)


@fault("INI004")
def exploding(traced: Traced, rng: random.Random) -> Iterator[Candidate]:
    lost, gained = flow(traced)

    def real(source: str) -> bool:
        less, more = flow(retraced(traced, source))
        return less < min(lost, 0) - 2.5 and more > gained + 2.5

    also = ("GRD002", "LOS010", "INI007", "INI005", "NRM008", "GRD003", "ARC001")
    for label, edits in badly_scaled(traced, rng, LARGE):
        yield Candidate(label, edits, real, ("INI004",), also)


@fault("INI005")
def mismatched(traced: Traced, rng: random.Random) -> Iterator[Candidate]:
    choices = [
        ("nn.ReLU()", "nn.init.xavier_uniform_(m.weight)"),
        ("nn.ReLU(inplace=True)", "nn.init.xavier_normal_(m.weight)"),
        (
            "nn.ReLU()",
            "nn.init.normal_(m.weight, 0, (2 / (m.weight.shape[0] + m.weight.shape[1])) ** 0.5)",
        ),
        ("nn.Tanh()", "nn.init.kaiming_normal_(m.weight, nonlinearity='relu')"),
        ("nn.Sigmoid()", "nn.init.kaiming_uniform_(m.weight)"),
    ]
    for _ in range(6):
        activation, line = rng.choice(choices)
        init = f"for m in self.trunk:\n    if hasattr(m, 'weight'):\n        {line}"
        for spot, edits, kind in stacks(traced, rng, (12, 20), [activation], init):
            if any(t.dim() == 4 for t in spot.tensors) and "shape[0]" in line:
                continue
            edits.mark(spot.node)
            yield Candidate(
                f"{kind}: {line}", edits, lambda s: run(s, traced.main) is not None, ("INI005",),
                ("INI003", "INI004", "GRD001", "NRM008", "ARC008", "ARC012", "INI007", "ARC001", "ARC011"),
            )  # fmt: skip


@fault("INI006")
def never_applied(traced: Traced, rng: random.Random) -> Iterator[Candidate]:
    before = {k: v.clone() for k, v in built(traced.source, traced.main)[0].state_dict().items()}

    def same(source: str) -> bool:
        after = built(source, traced.main)[0].state_dict()
        return before.keys() == after.keys() and all(
            torch.equal(before[k], after[k]) for k in before
        )

    init = traced.init_of(traced.main)
    assert init is not None
    body = (
        "for m in self.modules():\n            if isinstance(m, (nn.Linear, nn.Conv2d)):\n"
        "                nn.init.kaiming_normal_(m.weight)"
    )

    def methods() -> Iterator[Candidate]:
        for name in shuffled(
            rng,
            [
                "_initialize_weights",
                "init_weights",
                "_init_weights",
                "reset_parameters",
                "weight_init",
            ],
        ):
            if name in traced.source:
                continue
            end = traced.end(init.body[-1])
            edits = Edits(traced)
            edits.changes.append((end, end, f"\n\n    {MARK}def {name}(self):\n        {body}"))
            yield Candidate(f"{name} never called", edits, same, ("INI006",))

    def functions() -> Iterator[Candidate]:
        for name, kind in shuffled(
            rng, [("weights_init_normal", "nn.Conv3d"), ("init_fn", "nn.Bilinear")]
        ):
            first = next(n for n in traced.tree.body if isinstance(n, ast.ClassDef))
            text = f"def {name}(m):\n    if isinstance(m, {kind}):\n        nn.init.xavier_uniform_(m.weight)\n\n"
            edits = Edits(traced)
            start = traced.start(first)
            edits.changes.append((start, start, MARK + text + "\n"))
            edits.at_end_of_init(traced.main, f"self.apply({name})")
            yield Candidate(f"apply that matches no module ({kind})", edits, same, ("INI006",))

    def uncalled() -> Iterator[Candidate]:
        for node in ast.walk(traced.tree):
            if isinstance(node, ast.Expr) and "self.apply(" in traced.text(node):
                edits = Edits(traced).replace(node, "pass")
                for other in ast.walk(traced.tree):
                    if (
                        isinstance(other, ast.FunctionDef)
                        and "init" in other.name
                        and other.name != "__init__"
                    ):
                        if other.name in traced.text(node):
                            edits.mark(other)
                yield Candidate("its apply removed", edits, lambda s: not same(s), ("INI006",))

    yield from mixed(rng, methods(), functions(), uncalled())


@fault("INI007")
def saturated(traced: Traced, rng: random.Random) -> Iterator[Candidate]:
    limits = {"tanh": 2.0, "sigmoid": 4.0}

    def real(source: str) -> bool:
        model, inputs = built(source, traced.main)
        shares = []
        for name, module in model.named_modules():
            if name.endswith("squash.1"):
                limit = limits[type(module).__name__.lower()]
                module.register_forward_hook(
                    lambda _, args, __, limit=limit: shares.append(
                        (args[0].abs() > limit).float().mean()
                    )
                )
        forward(model, inputs, train=True)
        return bool(shares) and min(shares) > 0.65

    for spot in shuffled(rng, traced.hidden()):
        dims = {t.dim() for t in spot.tensors}
        if 4 in dims and dims != {4}:
            continue
        layer = "nn.Conv2d({a}, {b}, 1)" if 4 in dims else "nn.Linear({a}, {b})"
        one, two = (
            layer.replace("{a}", "{c}").replace("{b}", "64"),
            layer.replace("{a}", "64").replace("{b}", "{c}"),
        )
        activation = rng.choice(["nn.Tanh()", "nn.Sigmoid()"])
        init = rng.choice(["nn.init.normal_(self.squash[0].weight, 0, {s})", "self.squash[0].weight.data.normal_(std={s})",
                           "self.squash[0].weight.data *= 40 * {s}"])  # fmt: skip
        init = init.replace("{s}", str(rng.choice([2, 5, 20])))
        try:
            edits = with_layer(
                traced, spot, f"nn.Sequential({one}, {activation}, {two})", "squash", init
            )
        except Unfit:
            continue
        # The same weights may be named as too large: the cause of the saturation.
        yield Candidate(
            f"{activation} {init}",
            edits,
            real,
            ("INI007",),
            ("INI004", "GRD002", "LOS010", "ARC001"),
        )


# ---------------------------------------------------------------------- NRM

NORM_KINDS = (
    nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm2d,
)  # fmt: skip


@fault("NRM001")
def norm_width(traced: Traced, rng: random.Random) -> Iterator[Candidate]:
    def widths() -> Iterator[Candidate]:
        for spot in shuffled(rng, traced.constructors(*NORM_KINDS)):
            args = spot.node.args
            node = args[1] if "GroupNorm" in traced.text(spot.node) else args[0]
            text = traced.text(node)
            new = rng.choice([f"2 * {text}", f"{text} + 4", f"({text}) // 2"])
            edits = Edits(traced).replace(node, new).mark(spot.node)
            yield Candidate("wrong number", edits, lambda s: raises(s, traced.main), ("NRM001",))

    def ranks() -> Iterator[Candidate]:
        for spot in shuffled(rng, traced.constructors(nn.BatchNorm1d, nn.BatchNorm2d)):
            text = traced.text(spot.node)
            new = text.replace("BatchNorm1d", "BatchNorm@").replace("BatchNorm2d", "BatchNorm1d")
            new = new.replace("BatchNorm@", "BatchNorm2d")
            edits = Edits(traced).replace(spot.node, new)
            yield Candidate("wrong rank", edits, lambda s: raises(s, traced.main), ("NRM001",))

    def inserted() -> Iterator[Candidate]:
        for spot in shuffled(rng, traced.hidden()):
            dims = {t.dim() for t in spot.tensors}
            kind = {
                2: "nn.BatchNorm1d({c} + 2)",
                3: "nn.LayerNorm({c} // 2)",
                4: "nn.BatchNorm2d({c} * 2)",
            }
            if len(dims) == 1 and min(dims) in kind:
                try:
                    edits = with_layer(traced, spot, kind[dims.pop()], "new_norm")
                except Unfit:
                    continue
                yield Candidate(
                    "inserted",
                    edits,
                    lambda s: raises(s, traced.main),
                    ("NRM001",),
                    ("NRM006", "NRM009"),
                )

    yield from mixed(rng, widths(), ranks(), inserted())


def norm_after_activation(traced: Traced) -> int:
    """How many batch norms get an activation's result that a layer feeds."""
    return sum(
        traced.calls[act].name in SMOOTH
        and any(traced.calls[b].name in AFFINE for b in traced.behind(act, TRANSPARENT))
        for n, call in enumerate(traced.calls)
        if call.name == "batch_norm"
        for act in traced.behind(n, TRANSPARENT)
    )


@fault("NRM002")
def norm_behind(traced: Traced, rng: random.Random) -> Iterator[Candidate]:
    if traced.sound.name == "densenet":
        return
    known = norm_after_activation(traced)

    def real(source: str) -> bool:
        return norm_after_activation(retraced(traced, source)) > known

    def nested() -> Iterator[Candidate]:
        for spot, _ in shuffled(rng, activations(traced)):
            inner = spot.node.args[0]
            if (
                isinstance(inner, ast.Call)
                and len(inner.args) == 1
                and "bn" in traced.text(inner.func)
            ):
                act, bn = traced.text(spot.node.func), traced.text(inner.func)
                new = f"{bn}({act}({traced.text(inner.args[0])}))"
                edits = Edits(traced).replace(spot.node, new)
                for call in spot.calls:
                    for norm in traced.behind(call, set()):
                        lines_of_module(traced, edits, traced.calls[norm].module)
                yield Candidate("swapped calls", edits, real, ("NRM002",))

    def listed() -> Iterator[Candidate]:
        for spot in shuffled(rng, traced.constructors(nn.BatchNorm1d, nn.BatchNorm2d)):
            parent = traced.parent(spot.node)
            items = parent.elts if isinstance(parent, ast.List) else getattr(parent, "args", [])
            if spot.node not in items:
                continue
            place = items.index(spot.node) + 1
            if place < len(items) and re.match(
                r"nn\.(\w*ReLU\w*|GELU|SiLU|Tanh)\(", traced.text(items[place])
            ):
                edits = Edits(traced).replace(spot.node, traced.text(items[place]))
                edits.replace(items[place], traced.text(spot.node))
                yield Candidate("swapped modules", edits, real, ("NRM002",))

    def inserted() -> Iterator[Candidate]:
        for spot, number in shuffled(rng, activations(traced)):
            dims = {t.dim() for t in spot.tensors}
            kind = {2: "nn.BatchNorm1d({c})", 4: "nn.BatchNorm2d({c})"}
            if len(dims) == 1 and min(dims) in kind and number >= 0:
                try:
                    edits = with_layer(traced, spot, kind[dims.pop()], "bn_after")
                except Unfit:
                    continue
                yield Candidate("inserted", edits, real, ("NRM002",), ("NRM009", "NRM006"))

    yield from mixed(rng, nested(), listed(), inserted())


@fault("NRM003")
def norm_in_sequence(traced: Traced, rng: random.Random) -> Iterator[Candidate]:
    if not traced.sound.sequence or traced.sound.name in ("wavenet", "text_cnn"):
        return
    lengths = {value.shape[1] for value in traced.inputs if value.dim() > 1}
    spots = [s for s in traced.hidden(3) if all(t.shape[1] in lengths for t in s.tensors)]

    def real(source: str) -> bool:
        return any(c.name == "batch_norm" for c in retraced(traced, source).calls)

    for spot in shuffled(rng, spots):
        width = traced.width(spot)
        if width is None:
            continue
        text = traced.text(spot.node)
        label, new = rng.choice([
            ("transposed", f"self.seq_norm(({text}).transpose(1, 2)).transpose(1, 2)"),
            ("permuted", f"self.seq_norm(({text}).permute(0, 2, 1)).permute(0, 2, 1)"),
            ("flattened", f"self.seq_norm(({text}).flatten(0, 1)).view(-1, {spot.tensors[0].shape[1]}, {width})"),
        ])  # fmt: skip
        edits = Edits(traced).replace(spot.node, new)
        edits.at_end_of_init(spot.owner, f"self.seq_norm = nn.BatchNorm1d({width})")
        yield Candidate(label, edits, real, ("NRM003",), ("NRM006",))


@fault("NRM005")
def bias(traced: Traced, rng: random.Random) -> Iterator[Candidate]:
    def real(source: str, path: str) -> bool:
        found = gradients(source, traced.main)
        new = retraced(traced, source)
        numbers = [
            n for n, call in enumerate(new.calls) if call.module == path and call.name in AFFINE
        ]
        if not any(
            new.calls[a].name == "batch_norm" for n in numbers for a in new.ahead(n, TRANSPARENT)
        ):
            return False
        own, weight = found.get(f"{path}.bias"), found.get(f"{path}.weight")
        return own is not None and weight is not None and own < 1e-4 * weight

    for spot in shuffled(rng, traced.constructors(*WEIGHTED)):
        for word in spot.node.keywords:
            if word.arg == "bias" and traced.text(word.value) == "False":
                path = traced.path(spot)
                edits = Edits(traced)
                if rng.random() < 0.5:
                    edits.replace(word, "bias=True").mark(spot.node)
                else:
                    start = traced.source.rindex(",", 0, traced.start(word))
                    edits.changes.append((start, traced.end(word), ""))
                    edits.mark(spot.node)
                yield Candidate(
                    "bias=False dropped", edits, lambda s, path=path: real(s, path), ("NRM005",)
                )
    for spot in shuffled(rng, traced.hidden(2, 4)):
        flat = all(t.dim() == 2 for t in spot.tensors)
        layer = (
            "nn.Linear({c}, {c}), nn.BatchNorm1d({c})"
            if flat
            else "nn.Conv2d({c}, {c}, 3, padding=1), nn.BatchNorm2d({c})"
        )
        try:
            edits = with_layer(traced, spot, f"nn.Sequential({layer}, nn.ReLU())", "block_new")
        except Unfit:
            continue
        owned = [m for path, m in traced.model.named_modules() if type(m).__name__ == spot.owner]
        if len(owned) == 1:
            path = next(p for p, m in traced.model.named_modules() if m is owned[0])
            full = f"{path}.block_new.0".lstrip(".")
            yield Candidate(
                "inserted block",
                edits,
                lambda s, full=full: real(s, full),
                ("NRM005",),
                ("ARC001",),
            )


@fault("NRM006")
def norm_output(traced: Traced, rng: random.Random) -> Iterator[Candidate]:
    if traced.sound.task not in ("classes", "regression", "tokens"):
        return

    def real(source: str) -> bool:
        new = retraced(traced, source)
        return any(new.calls[n].name in NORMS for n in new.final if n >= 0)

    for spot in shuffled(rng, last_spots(traced)):
        flat = all(t.dim() == 2 for t in spot.tensors)
        layer = "nn.BatchNorm1d({c})" if flat and rng.random() < 0.6 else "nn.LayerNorm({c})"
        if "LayerNorm" in layer and traced.width(spot) == 1:
            layer = "nn.BatchNorm1d({c})"
        edits = with_layer(traced, spot, layer, "out_norm")
        yield Candidate(layer, edits, real, ("NRM006",), ("NRM003",))


def dropped_norms(traced: Traced) -> int:
    return sum(
        traced.calls[b].name == "dropout"
        for n, call in enumerate(traced.calls)
        if call.name == "batch_norm"
        for b in traced.behind(n, AFFINE | SMOOTH | {"flatten", "view"})
    )


@fault("NRM007")
def dropout_before_norm(traced: Traced, rng: random.Random) -> Iterator[Candidate]:
    known = dropped_norms(traced)

    def real(source: str) -> bool:
        return dropped_norms(retraced(traced, source)) > known

    def calls() -> Iterator[Candidate]:
        for spot in shuffled(rng, traced.hidden()):
            if spot.calls[0] >= 0 and traced.calls[spot.calls[0]].name == "batch_norm":
                inner = spot.node.args[0]
                text = traced.text(inner)
                new = rng.choice(
                    [
                        f"F.dropout({text}, 0.3, self.training)",
                        f"F.dropout({text}, p=0.5, training=self.training)",
                    ]
                )
                edits = Edits(traced).replace(inner, new)
                lines_of_module(traced, edits, traced.calls[spot.calls[0]].module)
                yield Candidate("dropout call", edits, real, ("NRM007",))

    def modules() -> Iterator[Candidate]:
        for spot in shuffled(rng, traced.constructors(nn.BatchNorm1d, nn.BatchNorm2d)):
            if isinstance(traced.parent(spot.node), (ast.List, ast.Call)):
                edits = Edits(traced).replace(
                    spot.node, f"nn.Dropout(0.25), {traced.text(spot.node)}"
                )
                yield Candidate("dropout module", edits, real, ("NRM007",))

    def inserted() -> Iterator[Candidate]:
        for spot in shuffled(rng, traced.hidden(2, 4)):
            flat = all(t.dim() == 2 for t in spot.tensors)
            norm = "nn.BatchNorm1d({c})" if flat else "nn.BatchNorm2d({c})"
            try:
                edits = with_layer(
                    traced, spot, f"nn.Sequential(nn.Dropout(0.4), {norm})", "regular"
                )
            except Unfit:
                continue
            yield Candidate("inserted", edits, real, ("NRM007",), ("NRM002", "NRM006"))

    yield from mixed(rng, calls(), modules(), inserted())


@fault("NRM008")
def unnormalized(traced: Traced, rng: random.Random) -> Iterator[Candidate]:
    for _, edits, label in stacks(
        traced, rng, (16, 30), ["nn.ReLU()", "nn.LeakyReLU(0.1)", "nn.ELU()"], ""
    ):
        for (
            path,
            module,
        ) in traced.model.named_modules():  # the series may begin before what was added
            if isinstance(module, WEIGHTED):
                lines_of_module(traced, edits, path)
        yield Candidate(
            label, edits, lambda s: run(s, traced.main) is not None, ("NRM008",),
            ("INI003", "INI004", "INI005", "GRD001", "ARC012", "ARC001", "ARC011"),
        )  # fmt: skip


@fault("NRM009")
def reused_norm(traced: Traced, rng: random.Random) -> Iterator[Candidate]:
    def differ(one: Tensor, two: Tensor) -> bool:
        if one.shape[1] != two.shape[1]:
            return False
        dims = [d for d in range(one.dim()) if d != 1]
        gap = (one.mean(dims) - two.mean(dims)).abs() / (one.std(dims) + two.std(dims) + 1e-6)
        scale = (one.std(dims) + 1e-6).log() - (two.std(dims) + 1e-6).log()
        return float(gap.max()) > 0.3 or float(scale.abs().max()) > 0.2

    def inserted() -> Iterator[Candidate]:
        spots = traced.hidden(2, 4)
        for one in shuffled(rng, spots):
            for two in shuffled(rng, spots):
                if one.owner != two.owner or traced.width(one) != traced.width(two) or one is two:
                    continue
                if one.tensors[0].dim() != two.tensors[0].dim() or not differ(
                    one.tensors[0], two.tensors[0]
                ):
                    continue
                kind = "nn.BatchNorm1d" if one.tensors[0].dim() == 2 else "nn.BatchNorm2d"
                try:
                    edits = with_layer(traced, one, kind + "({c})", "shared_bn")
                except Unfit:
                    continue
                edits.replace(two.node, f"self.shared_bn({traced.text(two.node)})")
                yield Candidate("inserted twice", edits, lambda s: run(s, traced.main, train=True) is not None,
                                ("NRM009",), ("NRM002", "NRM006", "ARC001"))  # fmt: skip

    def confused() -> Iterator[Candidate]:
        calls = [
            s
            for s in traced.hidden()
            if s.calls[0] >= 0 and traced.calls[s.calls[0]].name == "batch_norm"
        ]
        calls = [
            s
            for s in calls
            if isinstance(s.node, ast.Call) and re.fullmatch(r"self\.\w+", traced.text(s.node.func))
        ]
        for one in shuffled(rng, calls):
            for two in shuffled(rng, calls):
                if one.owner == two.owner and traced.text(one.node.func) != traced.text(
                    two.node.func
                ):
                    edits = Edits(traced).replace(two.node.func, traced.text(one.node.func))
                    lines_of_module(traced, edits, traced.calls[one.calls[0]].module)
                    yield Candidate("the other's name", edits, lambda s: run(s, traced.main, train=True) is not None,
                                    ("NRM009",), ("ARC004",))  # fmt: skip

    yield from mixed(rng, inserted(), confused())


# ---------------------------------------------------------------------- ACT, REG, GRD, GEN


@fault("ACT003")
def softmax_axis(traced: Traced, rng: random.Random) -> Iterator[Candidate]:
    def over_batch(source: str) -> bool:
        calls = retraced(traced, source).calls
        return any(
            "softmax" in c.name
            and c.outputs
            and torch.allclose(c.outputs[0].sum(0), torch.ones(()), atol=1e-4)
            for c in calls
        )

    # A softmax over the batch is also a mixing of samples, and in a causal model may look like a leak.
    also = ("ARC006", "ARC012", "ARC009", "ACT005", "ARC008", "INI003", "GRD001", "ARC011")

    def existing() -> Iterator[Candidate]:
        for spot in shuffled(rng, traced.spots):
            text = traced.text(spot.node)
            if isinstance(spot.node, ast.Call) and re.match(
                r"(F\.softmax|nn\.Softmax|torch\.softmax)\(", text
            ):
                edits = Edits(traced).replace(spot.node, re.sub(r"dim=-?1", "dim=0", text))
                for other in traced.spots:
                    if any(c >= 0 and "softmax" in traced.calls[c].name for c in other.calls):
                        edits.mark(other.node)
                yield Candidate("dim=0 in what was there", edits, over_batch, ("ACT003",), also)

    explicit = everywhere(traced, rng, [
        ("softmax(0)", "{}.softmax(0)"),
        ("F.softmax dim=0", "F.softmax({}, dim=0)"),
        ("torch.softmax 0", "torch.softmax({}, 0)"),
        ("nn.Softmax(0)", "nn.Softmax(0)({})"),
        ("nn.Softmax(dim=0)", "nn.Softmax(dim=0)({})"),
        ("negative", "F.softmax({}, dim=-{}.dim())"),
        ("log_softmax", "F.log_softmax({}, 0)"),
    ][:6], traced.hidden(), over_batch, ("ACT003",), also)  # fmt: skip
    implicit = everywhere(traced, rng, [
        ("F.softmax, no dim", "F.softmax({})"),
        ("nn.Softmax(), no dim", "nn.Softmax()({})"),
    ], traced.hidden(), lambda s: run(s, traced.main) is not None, ("ACT003",), also)  # fmt: skip

    def layers() -> Iterator[Candidate]:
        for spot in shuffled(rng, traced.hidden()):
            kind = rng.choice(["nn.Softmax(dim=0)", "nn.Softmax()", "nn.Softmax(0)"])
            try:
                edits = with_layer(traced, spot, kind, "soft")
            except Unfit:
                continue
            real = over_batch if "0" in kind else (lambda s: run(s, traced.main) is not None)
            yield Candidate(f"layer {kind}", edits, real, ("ACT003",), also)

    yield from mixed(rng, explicit, implicit, layers(), existing())


@fault("ACT005")
def softmax_hidden(traced: Traced, rng: random.Random) -> Iterator[Candidate]:
    def real(source: str) -> bool:
        new = retraced(traced, source)
        return any(
            call.name == "softmax"
            and any(new.calls[b].name in AFFINE for b in new.behind(n, TRANSPARENT | NORMS))
            and any(
                new.calls[a].name in AFFINE
                for a in new.ahead(n, TRANSPARENT | NORMS | {"max_pool2d"})
            )
            for n, call in enumerate(new.calls)
        )

    also = ("ARC008", "INI003", "GRD001", "ARC012")
    if traced.sound.name in ("seq2seq", "squeeze_excite"):
        return  # inside of attention scores and gates it may be meant

    def calls() -> Iterator[Candidate]:
        for spot, _ in shuffled(rng, activations(traced)):
            axis = "1" if all(t.dim() in (2, 4) for t in spot.tensors) else "-1"
            new = (
                rng.choice(["F.softmax({}, dim=%s)", "torch.softmax({}, %s)", "({}).softmax(%s)"])
                % axis
            )
            edits = Edits(traced).replace(
                spot.node, new.replace("{}", traced.text(spot.node.args[0]))
            )
            yield Candidate("for an activation call", edits, real, ("ACT005",), also)

    def modules() -> Iterator[Candidate]:
        for spot in shuffled(rng, traced.constructors(*ACTIVATION_MODULES)):
            path = traced.path(spot)
            dims = {c.outputs[0].dim() for c in traced.calls if c.module == path and c.outputs}
            edits = Edits(traced).replace(spot.node, f"nn.Softmax(dim={-1 if 3 in dims else 1})")
            for other in traced.spots:
                if any(c >= 0 and traced.calls[c].module == path for c in other.calls):
                    edits.mark(other.node)
            yield Candidate("for an activation module", edits, real, ("ACT005",), also)

    yield from mixed(rng, calls(), modules())


@fault("REG001")
def keep_probability(traced: Traced, rng: random.Random) -> Iterator[Candidate]:
    def real(source: str) -> bool:
        return run(source, traced.main, train=True) is not None

    p = rng.choice(["0.8", "0.9", "0.75", "0.95"])

    def existing() -> Iterator[Candidate]:
        for spot in shuffled(rng, traced.constructors(nn.Dropout, nn.Dropout2d)):
            kind = traced.text(spot.node.func)
            new = rng.choice([f"{kind}({p})", f"{kind}(p={p})", f"{kind}(1 - 0.1)"])
            yield Candidate("constructor", Edits(traced).replace(spot.node, new), real, ("REG001",))

    calls = everywhere(traced, rng, [
        ("F.dropout", f"F.dropout({{}}, {p}, self.training)"),
        ("F.dropout p=", f"F.dropout({{}}, p={p}, training=self.training)"),
        ("torch.dropout", f"torch.dropout({{}}, {p}, self.training)"),
    ], traced.hidden(), real, ("REG001",), ("NRM007", "REG003"))  # fmt: skip

    def layers() -> Iterator[Candidate]:
        for spot in shuffled(rng, traced.hidden()):
            try:
                edits = with_layer(traced, spot, f"nn.Dropout({p})", "keep")
            except Unfit:
                continue
            yield Candidate("layer", edits, real, ("REG001",), ("NRM007", "REG003"))

    yield from mixed(rng, existing(), calls, layers())


@fault("REG002")
def always_on(traced: Traced, rng: random.Random) -> Iterator[Candidate]:
    sound = not random_in_eval(traced.source, traced.main)

    def real(source: str) -> bool:
        return sound and random_in_eval(source, traced.main)

    yield from everywhere(traced, rng, [
        ("F.dropout(x)", "F.dropout({})"),
        ("F.dropout(x, p)", "F.dropout({}, 0.3)"),
        ("F.dropout(x, p=)", "F.dropout({}, p=0.2)"),
        ("positional True", "F.dropout({}, 0.5, True)"),
        ("training=True", "F.dropout({}, p=0.1, training=True)"),
        ("torch.dropout", "torch.dropout({}, 0.5, True)"),
        ("torch.nn.functional", "torch.nn.functional.dropout({}, 0.25)"),
        ("alpha_dropout", "F.alpha_dropout({}, 0.1, training=True)"),
        ("module made in forward", "nn.Dropout(0.4)({})"),
    ], traced.hidden(), real, ("REG002",), ("GEN009", "NRM007", "REG003"))  # fmt: skip


@fault("REG003")
def dropout_output(traced: Traced, rng: random.Random) -> Iterator[Candidate]:
    if traced.sound.task == "other":
        return

    def real(source: str) -> bool:
        new = retraced(traced, source)
        return any(new.calls[n].name in ("dropout", "feature_dropout") for n in new.final if n >= 0)

    for spot in shuffled(rng, last_spots(traced)):
        choice = rng.randrange(3)
        if choice == 0:
            yield Candidate(
                "layer", with_layer(traced, spot, "nn.Dropout(0.5)", "last_drop"), real, ("REG003",)
            )
        else:
            template = [
                "F.dropout({}, 0.3, self.training)",
                "F.dropout({}, p=0.5, training=self.training)",
            ][choice - 1]
            yield Candidate("call", rewritten(traced, spot, template, rng), real, ("REG003",))


@fault("GRD001")
def vanishing(traced: Traced, rng: random.Random) -> Iterator[Candidate]:
    before, wide = slope(traced.source, traced.main), spread(traced.source, traced.main)

    def real(source: str) -> bool:
        return slope(source, traced.main) < before - 3 and spread(source, traced.main) < wide / 300

    # One fault: INI003 and ARC008 name its cause.
    codes, also = (
        ("GRD001", "INI003", "ARC008"),
        ("ARC012", "NRM008", "INI005", "ARC011", "INI007", "ARC001"),
    )
    for _, edits, label in stacks(
        traced, rng, (12, 20), ["nn.Sigmoid()", "nn.Tanh()", "nn.ReLU()"], ""
    ):
        yield Candidate(label, edits, real, codes, also)


@fault("GRD002")
def growing(traced: Traced, rng: random.Random) -> Iterator[Candidate]:
    before = spread(traced.source, traced.main)

    def real(source: str) -> bool:
        return spread(source, traced.main) > 1e4 * before

    codes, also = ("GRD002", "INI004"), ("LOS010", "INI007", "NRM008", "INI005", "GRD003", "ARC001")
    for _, line in shuffled(rng, LARGE):
        init = f"for m in self.trunk:\n    if hasattr(m, 'weight'):\n        {line}"
        for _, edits, label in stacks(traced, rng, (6, 12), ["nn.ReLU()", "nn.LeakyReLU()"], init):
            yield Candidate(f"{label} {line[:40]}", edits, real, codes, also)


@fault("GRD003")
def not_finite(traced: Traced, rng: random.Random) -> Iterator[Candidate]:
    sound = not non_finite(traced.source, traced.main)

    def real(source: str) -> bool:
        return sound and non_finite(source, traced.main)

    yield from everywhere(traced, rng, [
        ("log(relu)", "torch.log(F.relu({}))"),
        ("sqrt", "torch.sqrt({})"),
        ("power", "{}.pow(0.5)"),
        ("sqrt of relu, backward", "torch.sqrt(F.relu({}))"),
        ("overflow", "torch.exp({} * 400)"),
        ("acos", "torch.acos({} * 3)"),
        ("divide by zero", "{} / ({} > 1e6).sum()"),
        ("log(1 - x)", "torch.log(1 - {} * 50)"),
        ("norm of zeros", "{} / torch.linalg.vector_norm({} * 0, dim=-1, keepdim=True)"),
        ("variance of one", "{} * {}.unsqueeze(0).std(0)"),
    ], traced.hidden(), real, ("GRD003",), ("ARC012", "ARC005", "ARC011", "INI004", "GRD002"))  # fmt: skip


@fault("GEN009")
def noisy_eval(traced: Traced, rng: random.Random) -> Iterator[Candidate]:
    sound = not random_in_eval(traced.source, traced.main)

    def real(source: str) -> bool:
        return sound and random_in_eval(source, traced.main)

    noise = everywhere(traced, rng, [
        ("randn_like", "{} + 0.1 * torch.randn_like({})"),
        ("randn", "{} + torch.randn({}.shape) * 0.05"),
        ("bernoulli", "{} * torch.bernoulli(torch.full_like({}, 0.9))"),
        ("rand mask", "{} * (torch.rand({}.shape) > 0.2)"),
        ("normal", "torch.normal({}, 0.1)"),
        ("rrelu", "F.rrelu({}, training=True)"),
        ("uniform_", "{} + torch.empty_like({}).uniform_(-0.1, 0.1)"),
        ("randperm", "{}[:, torch.randperm({}.size(1))]"),
        ("gumbel", "F.gumbel_softmax({}, dim=-1)"),
    ], traced.hidden(), real, ("GEN009", "REG002"), ("ARC009",))  # fmt: skip

    def sampling() -> Iterator[Candidate]:
        place = traced.source.find("        if not self.training:\n            return mu\n")
        if place >= 0:
            edits = Edits(traced)
            edits.changes.append(
                (place, place + len("        if not self.training:\n            return mu\n"), "")
            )
            for spot in traced.spots:
                if "randn_like" in traced.text(spot.node):
                    edits.mark(spot.node)
            yield Candidate("the VAE samples in eval", edits, real, ("GEN009",))

    yield from mixed(rng, noise, noise, sampling())


# ---------------------------------------------------------------------- LOS: a loss around the model

SHAPES = {"classes": 2, "tokens": 3, "pixels": 4}


def with_loss(
    traced: Traced, rng: random.Random, expression: str, target: str, head: str = ""
) -> tuple[str, Edits]:
    """The model's loss, in its forward or in a training script. `{o}` is the output, `{t}` the target.

    `head` is one more line for the model's `__init__`.
    """
    edits = Edits(traced)
    forward_def = next(
        n
        for n in traced.class_of(traced.main).body
        if isinstance(n, ast.FunctionDef) and n.name == "forward"
    )
    given = next(
        n
        for n in traced.tree.body
        if isinstance(n, ast.Assign) and traced.text(n).startswith("example_inputs")
    )
    if head:
        edits.at_end_of_init(traced.main, head)
    style = rng.choice(["forward", "script", "criterion"])
    values = "example_inputs"
    if style == "script":
        text = (
            f"\n\ntargets = {target}\nmodel = {traced.main}()\n"
            "optimizer = torch.optim.SGD(model.parameters(), lr=0.1)\n"
            f"for epoch in range(2):\n    optimizer.zero_grad()\n    output = model(*{values})\n"
            f"    {MARK}loss = {expression.replace('{o}', 'output').replace('{t}', 'targets')}\n"
            "    loss.backward()\n    optimizer.step()\n"
        )
        edits.append(text)
        return style, edits
    returned = forward_def.body[-1]
    if not isinstance(returned, ast.Return) or returned.value is None:
        raise Unfit("no single return")
    last = forward_def.args.args[-1]
    end = traced.end(last)
    edits.changes.append((end, end, ", targets"))
    inner = traced.text(returned.value)
    loss = expression
    if style == "criterion":
        named = re.match(r"F\.(\w+)\(", expression)
        table = {
            "cross_entropy": "nn.CrossEntropyLoss()", "nll_loss": "nn.NLLLoss()", "mse_loss": "nn.MSELoss()",
            "binary_cross_entropy": "nn.BCELoss()", "binary_cross_entropy_with_logits": "nn.BCEWithLogitsLoss()",
        }  # fmt: skip
        if named is None or named[1] not in table:
            raise Unfit("no module for it")
        edits.at_end_of_init(traced.main, f"self.criterion = {table[named[1]]}")
        loss = expression.replace(named[0], "self.criterion(", 1)
    pad = traced.indent(returned)
    loss = loss.replace("{o}", "output").replace("{t}", "targets")
    edits.replace(returned, f"output = {inner}\n{pad}{MARK}loss = {loss}\n{pad}return loss")
    edits.changes.append(
        (traced.end(given), traced.end(given), f"\nexample_inputs = (*example_inputs, {target})")
    )
    return style, edits


def target_of(traced: Traced, kind: str) -> str:
    """An expression that makes fitting targets for the model's first output."""
    shape = tuple(traced.outputs[0].shape)
    if kind == "classes":
        classes = shape[1] if traced.sound.task != "tokens" else shape[-1]
        where = (shape[0], *shape[2:]) if traced.sound.task != "tokens" else shape[:-1]
        return f"torch.randint(0, {classes}, {where})"
    return f"torch.rand({shape}).round()" if kind == "binary" else f"torch.randn({shape})"


def scored(traced: Traced) -> str:
    """The output with its classes at axis 1, as the losses want it."""
    return "{o}.transpose(1, 2)" if traced.sound.task == "tokens" else "{o}"


def losses(
    traced: Traced,
    rng: random.Random,
    kind: str,
    expressions: Sequence[str],
    codes: tuple[str, ...],
    also: tuple[str, ...] = (),
) -> Iterator[Candidate]:
    if len(traced.outputs) != 1:
        return
    if kind == "classes" and (
        traced.sound.task not in SHAPES or traced.outputs[0].dim() != SHAPES[traced.sound.task]
    ):
        return
    if kind == "binary" and traced.sound.task not in ("regression", "classes", "pixels"):
        return
    for expression in shuffled(rng, expressions):
        if "NC" in expression and traced.sound.task != "classes":
            continue
        text = expression.replace("{o}", scored(traced)) if kind == "classes" else expression
        text = text.replace("NC", str(traced.outputs[0].shape[-1]))
        try:
            style, edits = with_loss(traced, rng, text, target_of(traced, kind))
        except Unfit:
            continue

        def parses(source: str) -> bool:
            ast.parse(source)
            return True

        yield Candidate(f"{style}: {expression}", edits, parses, codes, also)


SOUND_LOSSES = {
    "classes": ["F.cross_entropy({o}, {t})", "F.nll_loss(F.log_softmax({o}, dim=1), {t})"],
    "binary": [
        "F.binary_cross_entropy_with_logits({o}, {t})", "F.binary_cross_entropy(torch.sigmoid({o}), {t})",
    ],
    "values": ["F.mse_loss({o}, {t})", "F.smooth_l1_loss({o}, {t})"],
}  # fmt: skip


def sound_with_loss(traced: Traced, seed: int) -> Iterator[tuple[str, str]]:
    """The same models with a loss that is right: (label, source)."""
    rng = random.Random(f"sound {traced.sound.name} {seed}")
    kinds = {
        "classes": ["classes"],
        "tokens": ["classes"],
        "pixels": ["classes"],
        "regression": ["binary", "values"],
    }
    for kind in kinds.get(traced.sound.task, []):
        for candidate in losses(traced, rng, kind, SOUND_LOSSES[kind], ()):
            yield candidate.spelling, candidate.edits.done()[0]


@fault("LOS001")
def double_softmax(traced: Traced, rng: random.Random) -> Iterator[Candidate]:
    yield from losses(traced, rng, "classes", [
        "F.cross_entropy(F.softmax({o}, dim=1), {t})",
        "F.cross_entropy(torch.softmax({o}, 1), {t})",
        "F.cross_entropy({o}.softmax(dim=1), {t})",
        "F.cross_entropy(F.log_softmax({o}, dim=1), {t})",
        "F.cross_entropy(nn.Softmax(dim=1)({o}), {t})",
    ], ("LOS001",), ("LOS010",))  # fmt: skip


@fault("LOS002")
def no_log_softmax(traced: Traced, rng: random.Random) -> Iterator[Candidate]:
    yield from losses(traced, rng, "classes", [
        "F.nll_loss({o}, {t})",
        "F.nll_loss(F.softmax({o}, dim=1), {t})",
        "F.nll_loss(torch.sigmoid({o}), {t})",
        "F.kl_div({o}, F.one_hot({t}, NC).float(), reduction='batchmean')",
        "F.kl_div(F.softmax({o}, 1), F.one_hot({t}, NC).float(), reduction='batchmean')",
    ], ("LOS002",), ("LOS010",))  # fmt: skip


@fault("LOS003")
def double_sigmoid(traced: Traced, rng: random.Random) -> Iterator[Candidate]:
    yield from losses(traced, rng, "binary", [
        "F.binary_cross_entropy_with_logits(torch.sigmoid({o}), {t})",
        "F.binary_cross_entropy_with_logits({o}.sigmoid(), {t})",
        "F.binary_cross_entropy_with_logits(F.sigmoid({o}), {t})",
        "F.binary_cross_entropy_with_logits(nn.Sigmoid()({o}), {t})",
    ], ("LOS003",), ("LOS010",))  # fmt: skip


@fault("LOS004")
def raw_bce(traced: Traced, rng: random.Random) -> Iterator[Candidate]:
    yield from losses(traced, rng, "binary", [
        "F.binary_cross_entropy({o}, {t})",
        "F.binary_cross_entropy(F.relu({o}), {t})",
        "F.binary_cross_entropy(torch.tanh({o}), {t})",
        "F.binary_cross_entropy({o} * 2, {t})",
    ], ("LOS004",), ("LOS010", "GRD003", "ACT004"))  # fmt: skip


@fault("ACT004")
def relu_on_logits(traced: Traced, rng: random.Random) -> Iterator[Candidate]:
    yield from losses(traced, rng, "classes", [
        "F.cross_entropy(F.relu({o}), {t})",
        "F.cross_entropy(torch.relu({o}), {t})",
        "F.cross_entropy({o}.clamp(min=0), {t})",
        "F.cross_entropy(torch.tanh({o}), {t})",
        "F.cross_entropy(nn.ReLU()({o}), {t})",
        "F.nll_loss(F.log_softmax(F.relu({o}), dim=1), {t})",
        "F.cross_entropy(torch.sigmoid({o}), {t})",
    ], ("ACT004",), ("LOS010", "LOS001"))  # fmt: skip


@fault("LOS010")
def loss_off(traced: Traced, rng: random.Random) -> Iterator[Candidate]:
    if traced.sound.task not in SHAPES or len(traced.outputs) != 1:
        return
    heads = [path for path, m in traced.model.named_modules() if isinstance(m, WEIGHTED)]
    final = {traced.calls[n].module for n in traced.final if n >= 0} & set(heads)
    path = next(iter(final), heads[-1])
    for line in shuffled(rng, [
        "{}.weight.data *= 60", "nn.init.normal_({}.weight, std=3.0)", "nn.init.uniform_({}.weight, -5, 5)",
        "{}.weight.data.normal_(0, 10)",
    ]):  # fmt: skip
        text = line.replace("{}", access(traced, path))
        expression = "F.cross_entropy({o}, {t})".replace("{o}", scored(traced))
        try:
            style, edits = with_loss(traced, rng, expression, target_of(traced, "classes"), text)
        except Unfit:
            continue
        lines_of_module(traced, edits, path)
        plain, _ = Edits(traced).at_end_of_init(traced.main, text).done()

        def real(source: str, plain: str = plain) -> bool:
            ast.parse(source)
            out = run(plain, traced.main).outputs[0]
            scores = out.transpose(1, 2) if traced.sound.task == "tokens" else out
            classes = scores.shape[1]
            torch.manual_seed(2)
            target = torch.randint(0, classes, (scores.shape[0], *scores.shape[2:]))
            return float(nn.functional.cross_entropy(scores, target)) > 3 * math.log(classes)

        yield Candidate(
            f"{style}: {line}", edits, real, ("LOS010", "INI004"), ("INI004", "LOS010", "GRD002")
        )
