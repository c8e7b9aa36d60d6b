"""The model of a file at other widths: which integers set its hidden sizes, and what they become.

Comes in: a file that was run, the model in it, what built that, and inputs. Goes out: the sizes to change,
named by the user or found by trying, and for each factor their values and the number of parameters.

An integer is a width if the model with twice of it still takes the same inputs and gives outputs of the
same shape, has parameters of the same names, and more of them, in two places at least: where a hidden
result is made and where it is used. So numbers of layers, classes, inputs, positions and words do not
count.
"""

from __future__ import annotations

import dataclasses
import math
import re
import sys
import time
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn

from trainlint.preserve import random_states
from trainlint.probe.batches import ProbeProblem
from trainlint.targets.loading import (
    LoadedFile,
    load_file,
    models_of,
    named_model,
    reason_of,
    unwrapped,
)
from trainlint.targets.resizing import Call, Path, Resized, Size, found, written
from trainlint.tree import map_tensors, tensors

if TYPE_CHECKING:
    import pathlib

    from trainlint.capture.inputs import Inputs

_SECONDS: Final = 30.0
_MOST: Final = 64
_DEEPEST: Final = 3
_LONGEST: Final = 16
# A run of the whole file for each: names that no width bears are not tried.
_MOST_RUNS: Final = 10
_NO_WIDTH: Final = re.compile(
    r"(^|_)(seed|epochs?|batch|batch_size|bs|steps?|lr|workers?|classes|vocab|patience|iters?|iterations)"
    r"($|_)|^(n|num)_(train|val|test|samples|data)|^[nkNK]$",
    re.IGNORECASE,
)
_NAMED_LIKE_ONE: Final = re.compile(
    r"hidden|width|dim|channel|unit|feature|embd|embed|model|ff|filters|size|neurons|planes",
    re.IGNORECASE,
)
# What splits a width without being one.
_DIVIDES: Final = re.compile(r"(^|_)(n|num)?_?(heads?|groups?|experts?)$|^nhead$", re.IGNORECASE)
_GRAINS: Final = (1, 2, 4, 8, 16, 32)
_CONVOLUTIONS: Final = (nn.modules.conv._ConvNd,)
_WHAT_TO_DO: Final = "give --width NAME: an integer argument of {owner} or a constant of the file"
# For what is put together in the file itself, from numbers.
_WRITE_ONE: Final = "write them as a constant of the file, HIDDEN = 64, used by its layers"


class WidthProblem(ProbeProblem):
    """Why there is no model of another width, and what to do."""


@dataclass(frozen=True)
class Origin:
    """A file that was run as it is, and the model of it that is asked for.

    `calls` built it, as far as they were seen. `inputs` are some of its training data.
    """

    path: pathlib.Path
    loaded: LoadedFile
    name: str
    model: nn.Module
    calls: Sequence[Call]
    inputs: Inputs
    dotted: str | None = None

    @property
    def owner(self) -> str:
        """What takes the arguments, in words."""
        return self.calls[0].owner.rpartition(":")[2] if self.calls else type(self.model).__name__


@dataclass(frozen=True)
class Rung:
    """The model at a factor of its width. `reason` says why it cannot be had."""

    factor: float
    sizes: Sequence[Size]
    parameters: int = 0
    reason: str | None = None


def another(
    origin: Origin, sizes: Sequence[Size], seed: int | None = None
) -> tuple[LoadedFile, nn.Module]:
    """(the file run with these sizes, its model). What the model raises passes through.

    The module's name in `sys.modules` then stands for the new run.
    """
    loaded = origin.loaded
    sys.modules.pop(loaded.module.__name__, None)
    with Resized(sizes, seed) as resized:
        again = load_file(origin.path, loaded.text, origin.dotted, resized.after)
        if again.stopped is not None and loaded.stopped is None:
            raise WidthProblem(again.stopped)
        make = next((each.make for each in models_of(again) if each.name == origin.name), None)
        model = None if make is None else make()
        return again, named_model(again, origin.name) if model is None else model


# ---------------------------------------------------------------------- what another size does


@dataclass(frozen=True)
class _Look:
    """The shapes of a model's parameters, and of what it gives for the inputs."""

    shapes: Mapping[str, tuple[int, ...]]
    outputs: Sequence[tuple[str, tuple[int, ...]]]

    @property
    def parameters(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes.values())

    def changed(self, other: _Look) -> list[str]:
        """The parameters of another shape there."""
        return [name for name, shape in self.shapes.items() if other.shapes.get(name) != shape]


@dataclass
class _Trier:
    """Builds the model with other sizes and looks at it; the same sizes once."""

    origin: Origin
    call: Call | None
    on_meta: bool = True
    _known: dict[tuple[tuple[str, int], ...], _Look | str] = field(default_factory=dict)

    def base(self) -> _Look:
        """The model as it is. Raises `WidthProblem` where it cannot be built again alike."""
        live = _look(self.origin.model, self.origin.inputs, on_meta=False)
        if self.call is None:
            return live
        for self.on_meta in (True, False):
            look = self._tried(())
            if isinstance(look, _Look):
                if look.shapes == live.shapes:
                    return live
                raise WidthProblem(
                    f"{self.call.owner.rpartition(':')[2]}, called again, makes another model"
                )
        raise WidthProblem(str(look))

    def tried(self, sizes: Sequence[Size]) -> _Look | str:
        """The look, or why there is none."""
        key = tuple((size.name, size.value) for size in sizes)
        if key not in self._known:
            self._known[key] = self._tried(sizes)
        return self._known[key]

    def _tried(self, sizes: Sequence[Size]) -> _Look | str:
        try:
            with random_states():
                if self.call is None:
                    return _look(another(self.origin, sizes)[1], self.origin.inputs, on_meta=False)
                with torch.device("meta") if self.on_meta else nullcontext():
                    model = unwrapped(self.call.again(sizes))
                if not isinstance(model, nn.Module):
                    return "makes no module"
                return _look(model, self.origin.inputs, on_meta=self.on_meta)
        except WidthProblem as problem:
            return str(problem)
        except (Exception, SystemExit) as error:
            return reason_of(error)


@torch.no_grad()
def _look(model: nn.Module, inputs: Inputs, *, on_meta: bool) -> _Look:
    modes = [(module, module.training) for module in model.modules()]
    device = torch.device("meta") if on_meta else next((p.device for p in model.parameters()), None)
    args, kwargs = map_tensors(
        (inputs.args, dict(inputs.kwargs)), lambda _, t: t if device is None else t.to(device)
    )
    try:
        with random_states():
            output = model.eval()(*args, **kwargs)
    finally:
        for module, mode in modes:
            module.training = mode
    given = [(path, tuple(tensor.shape)) for path, tensor in tensors(output)]
    # Of a library's model with named results, keys and values of the attention are no output.
    scores = [(path, shape) for path, shape in given if path.endswith("logits")]
    return _Look(
        {name: tuple(parameter.shape) for name, parameter in model.named_parameters()},
        scores or given,
    )


def _refusal(base: _Look, look: _Look | str, fixed: Mapping[str, str]) -> str | None:
    """Why this change is none of width; None where it is one. `fixed` is what `_kinds` tells."""
    if isinstance(look, str):
        return f"raised {look}"
    if look.shapes.keys() != base.shapes.keys():
        return "changes the number of layers"
    if look.outputs != base.outputs:
        return "changes the output"
    names = base.changed(look)
    if not names:
        return "changes no layer"
    if look.parameters <= base.parameters:
        return "makes no more parameters"
    hidden = []
    for name in names:
        before, after = base.shapes[name], look.shapes[name]
        if len(before) != len(after):
            return "changes the kind of layers"
        axes = [axis for axis, size in enumerate(before) if after[axis] != size]
        if fixed.get(name) == "convolution" and max(axes) > 1:
            return "changes the size of kernels"
        if fixed.get(name) != "table" or axes != [0]:
            hidden.append(name)
    return None if len(hidden) > 1 else "changes one parameter alone: a table or positions"


def _kinds(model: nn.Module) -> dict[str, str]:
    """Parameters of which some axes are no hidden sizes."""
    kinds = {}
    for name, module in model.named_modules():
        kind = "convolution" if isinstance(module, _CONVOLUTIONS) else ""
        kind = kind or ("table" if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) else "")
        if kind:
            kinds[f"{name}.weight".lstrip(".")] = kind
    return kinds


# ---------------------------------------------------------------------- integers that may be widths


def _integers(value: Any, path: Path, depth: int = _DEEPEST) -> Iterator[tuple[Path, int]]:
    """The positive integers in a value, with the way to each."""
    if isinstance(value, bool) or (isinstance(value, int) and value < 1):
        return
    if isinstance(value, int):
        yield path, int(value)
    elif depth:
        for part, inner in _parts(value):
            yield from _integers(inner, [*path, part], depth - 1)


def _parts(value: Any) -> Iterator[tuple[str | int, Any]]:
    if isinstance(value, (list, tuple)):
        yield from enumerate(value[:_LONGEST])
    elif isinstance(value, dict):
        yield from ((key, inner) for key, inner in value.items() if isinstance(key, str))
    elif _is_config(value):
        yield from ((key, inner) for key, inner in vars(value).items() if key[:1] != "_")


def _is_config(value: Any) -> bool:
    if isinstance(value, (type, Tensor, nn.Module, types.ModuleType)) or callable(value):
        return False
    return dataclasses.is_dataclass(value) or (
        isinstance(getattr(value, "__dict__", None), dict)
        and not hasattr(value, "__iter__")
        and not hasattr(value, "__len__")
    )


def _of_call(call: Call) -> list[Size]:
    """The integers among the arguments of a call."""
    return [
        Size(call.owner, path, value, value)
        for name, argument in call.arguments.items()
        for path, value in _integers(argument, [name])
    ][:_MOST]


def _of_file(loaded: LoadedFile) -> list[Size]:
    """The integers by names of the file that it assigns and uses; those named like a width first."""
    import ast

    assert loaded.text.tree is not None
    uses: dict[type, set[str]] = {ast.Store: set(), ast.Load: set()}
    for statement in loaded.text.tree.body:
        is_plain = isinstance(statement, (ast.Assign, ast.AnnAssign))
        for node in ast.walk(statement):
            if isinstance(node, ast.Name):
                if isinstance(node.ctx, ast.Load):
                    uses[ast.Load].add(node.id)
                elif is_plain:
                    uses[ast.Store].add(node.id)
    values = vars(loaded.module)
    sizes = [
        Size("", path, value, value)
        for name in sorted(uses[ast.Store] & uses[ast.Load] & values.keys())
        for path, value in _integers(values[name], [name])
    ]
    return sorted(sizes, key=lambda size: not _NAMED_LIKE_ONE.search(str(size.path[-1])))


# ---------------------------------------------------------------------- which are


def widths_of(
    origin: Origin, wanted: Sequence[str] = (), *, seconds: float = _SECONDS
) -> list[Size]:
    """The sizes that make this model wider together: those `wanted` by name, or those that are found.

    Raises `WidthProblem` with the reason and what to do.
    """
    if wanted:
        return _named(origin, wanted)
    deadline = time.monotonic() + seconds
    refused: list[str] = []
    for call in origin.calls:
        trier = _Trier(origin, call)
        sizes = _of_call(call)
        try:
            chosen = _chosen(trier, sizes, refused, deadline) if sizes else []
        except WidthProblem as problem:
            refused.append(str(problem))
            continue
        if chosen:
            return chosen
    constants = [size for size in _of_file(origin.loaded) if not _NO_WIDTH.search(size.name)]
    if constants:
        chosen = _chosen(_Trier(origin, None), constants[:_MOST_RUNS], refused, deadline)
        if chosen:
            return chosen
    tried = "; ".join(refused[:4])
    is_plain = isinstance(origin.model, nn.Sequential)
    raise WidthProblem(
        f"no integer was found that sets the hidden sizes of {origin.name}"
        f"{f' ({tried})' if tried else ''}: "
        + (_WRITE_ONE if is_plain else _WHAT_TO_DO.format(owner=origin.owner))
    )


def _chosen(
    trier: _Trier, sizes: Sequence[Size], refused: list[str], deadline: float
) -> list[Size]:
    base, kinds = trier.base(), _kinds(trier.origin.model)
    alone: list[tuple[int, Size]] = []
    for size in sizes:
        if _DIVIDES.search(size.name) or time.monotonic() > deadline:
            continue
        twice = size.at(2 * size.was)
        look = trier.tried([twice])
        reason = _refusal(base, look, kinds)
        if reason is None:
            assert isinstance(look, _Look)
            alone.append((len(base.changed(look)), size))
        else:
            refused.append(f"{twice.name}={twice.value} {reason}")
    if not alone:
        return _alike(trier, base, kinds, sizes, deadline)
    chosen: list[Size] = []
    # The one that most depends on comes first; what would multiply with it is left as it is.
    for _, size in sorted(alone, key=lambda pair: -pair[0]):
        if time.monotonic() > deadline and chosen:
            break
        look = trier.tried([one.at(2 * one.was) for one in [*chosen, size]])
        is_sound = _refusal(base, look, kinds) is None
        if is_sound and (not chosen or _most_grown(base, look) <= 2.0):
            chosen.append(size)
    return [size for size in sizes if size in chosen]


def _alike(
    trier: _Trier, base: _Look, kinds: Mapping[str, str], sizes: Sequence[Size], deadline: float
) -> list[Size]:
    """Several sizes that have to agree: those of equal value are tried together."""
    values = dict.fromkeys(size.was for size in sizes)
    for value in values:
        group = [size for size in sizes if size.was == value and not _DIVIDES.search(size.name)]
        if len(group) > 1 and time.monotonic() < deadline:
            look = trier.tried([size.at(2 * value) for size in group])
            if _refusal(base, look, kinds) is None:
                return group
    return []


def _most_grown(base: _Look, look: _Look | str) -> float:
    assert isinstance(look, _Look)
    return max(
        after / before
        for name, shape in base.shapes.items()
        for before, after in zip(shape, look.shapes[name], strict=True)
        if before
    )


_NAME: Final = re.compile(r"[A-Za-z_]\w*(\[\d+\]|\.[A-Za-z_]\w*)*")


def _named(origin: Origin, wanted: Sequence[str]) -> list[Size]:
    sizes: list[Size] = []
    for name in wanted:
        sizes += _resolved(origin, name)
    call = _call_for(origin, sizes)
    trier = _Trier(origin, call)
    base = trier.base()
    reasons = []
    for factor in (2.0, 0.5):
        other = [size.at(max(1, round(size.was * factor))) for size in sizes]
        look = trier.tried(other)
        if isinstance(look, _Look):
            if look.outputs != base.outputs:
                raise WidthProblem(f"{_listed(other)} changes the output of {origin.name}")
            if look.shapes.keys() != base.shapes.keys():
                raise WidthProblem(
                    f"{_listed(other)} changes the number of layers, not their width"
                )
            if not base.changed(look):
                raise WidthProblem(f"{_listed(other)} changes no layer of {origin.name}")
            return sizes
        reasons.append(f"{_listed(other)} raised {look}")
    raise WidthProblem(f"{origin.name} cannot be built with other sizes: {reasons[0]}")


def _resolved(origin: Origin, name: str) -> list[Size]:
    """What the user calls so: an argument, or a name of the file. Raises `WidthProblem`."""
    if not _NAME.fullmatch(name):
        raise WidthProblem(f"--width {name}: not a name such as hidden, sizes[1] or config.hidden")
    path: Path = [
        int(index) if index else part
        for part, index in re.findall(r"([A-Za-z_]\w*)|\[(\d+)\]", name)
    ]
    places: list[tuple[str, Mapping[str, Any]]] = [(c.owner, c.arguments) for c in origin.calls]
    places.append(("", vars(origin.loaded.module)))
    for owner, values in places:
        for way in (path, ["kwargs", *path]):
            try:
                value = found(values, way)
            except (LookupError, AttributeError, TypeError):
                continue
            inner = list(_integers(value, way, 1))
            if isinstance(value, int) and inner:
                return [Size(owner, way, int(value), int(value))]
            if isinstance(value, (list, tuple)) and inner and len(inner) == len(value):
                return _hidden_of(origin, [Size(owner, p, v, v) for p, v in inner])
            if inner:
                known = ", ".join(written(p) for p, _ in inner)
                raise WidthProblem(f"--width {name} names several: {known}")
            raise WidthProblem(f"--width {name}: it is {value!r:.40}, no positive integer")
    known = ", ".join(_known(origin))
    raise WidthProblem(
        f"--width {name}: neither an argument of {origin.owner} nor a name of the file"
        f"{f'; there are: {known}' if known else ''}"
    )


def _known(origin: Origin) -> list[str]:
    sizes = [size for call in origin.calls for size in _of_call(call)]
    sizes += [size for size in _of_file(origin.loaded) if not _NO_WIDTH.search(size.name)]
    return list(dict.fromkeys(size.name for size in sizes))[:12]


def _hidden_of(origin: Origin, sizes: list[Size]) -> list[Size]:
    """Of a row of sizes those that can be changed one by one: inputs and classes may stand among them."""
    trier = _Trier(origin, _call_for(origin, sizes))
    base, kinds = trier.base(), _kinds(origin.model)
    able = [s for s in sizes if _refusal(base, trier.tried([s.at(2 * s.was)]), kinds) is None]
    return able or sizes


def _call_for(origin: Origin, sizes: Sequence[Size]) -> Call | None:
    """The call that takes all of these; None where only a run of the file does."""
    owners = {size.owner for size in sizes}
    return next((call for call in origin.calls if owners == {call.owner}), None)


def _listed(sizes: Sequence[Size]) -> str:
    return ", ".join(f"{size.name}={size.value}" for size in sizes)


# ---------------------------------------------------------------------- other widths


def rungs(origin: Origin, sizes: Sequence[Size], factors: Sequence[float]) -> list[Rung]:
    """The model at each factor of its width. Sizes that have to be divisible stay so."""
    call = _call_for(origin, sizes)
    trier = _Trier(origin, call)
    base = trier.base()
    # What splits a width is among the other integers, as a number of heads is.
    others = (
        []
        if call is None
        else [s.was for s in _of_call(call) if s.path not in [w.path for w in sizes]]
    )
    grains = list(
        dict.fromkeys([*_GRAINS[:1], *sorted(g for g in others if 1 < g <= 64), *_GRAINS[1:]])
    )
    return [_rung(trier, base, sizes, factor, grains) for factor in factors]


def _rung(
    trier: _Trier, base: _Look, sizes: Sequence[Size], factor: float, grains: Sequence[int]
) -> Rung:
    first: tuple[list[Size], str] | None = None
    for grain in grains:
        there = [size.at(_near(size.was * factor, grain)) for size in sizes]
        look = base if factor == 1 else trier.tried(there)
        if isinstance(look, _Look) and look.outputs == base.outputs:
            return Rung(factor, there, look.parameters)
        reason = look if isinstance(look, str) else "another shape of output"
        first = first or (there, f"{_listed(there)}: {reason}")
        if trier.call is None:
            break  # each try is a run of the file
    assert first is not None
    return Rung(factor, first[0], reason=first[1])


def _near(value: float, grain: int) -> int:
    """The multiple of the grain next to a value."""
    return max(1, round(value / grain)) * grain
