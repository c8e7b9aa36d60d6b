"""Inputs for a model that was given none, found by trying.

A candidate is tried with one capture on meta tensors, which costs milliseconds. A model with a fault
never runs cleanly, so the search keeps the candidate with the fewest faults and stops as soon as those
that remain cannot depend on the input. Inputs on which the model only runs since a `view(-1, k)` makes
several rows of one sample count as refused: another size would suit.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn

from trainlint.analysis.layers import (
    WidthSource,
    doubtful_faults,
    expectation,
    suits_no_size,
    trace_axis,
    width_source,
)
from trainlint.analysis.rows import flat_width, folds, is_map
from trainlint.capture.candidates import IMAGE_SIDES, candidates
from trainlint.capture.inputs import BATCH, SEQUENCE, Inputs, forward_parameters
from trainlint.capture.tracer import Recording, capture
from trainlint.errors import InputError
from trainlint.graph import Graph

if TYPE_CHECKING:
    from torch.fx import Node


_SEARCH_SECONDS: Final = 20.0
_MOST_TRIES: Final = 120
_LARGEST_SIDE: Final = 640
_MOST_ADJUSTMENTS: Final = 3
_SAME_BUG: Final = 8


@dataclass(frozen=True)
class Found:
    """The best inputs that the search met, with their capture."""

    inputs: Inputs
    recording: Recording


def synthesize(model: nn.Module) -> Found:
    """Search for inputs on which the model runs, or on which the fewest operations fail.

    Raises `InputError` where every candidate was refused by the forward itself.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # the same inputs each time, and the user's generator as it was
        return _Search(model).run()


class _Search:
    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._deadline = time.monotonic() + _SEARCH_SECONDS
        self._best: tuple[tuple[int, ...], Found] | None = None
        self._first_refusal: BaseException | None = None
        self._was_doubled = False
        self._tries = 0
        self._bugs = 0

    def run(self) -> Found:
        for number, inputs in enumerate(candidates(self._model)):
            found = self._adjusted(self._try(inputs))
            if found is not None and (self._is_settled(found) or self._is_refused_anyway(found)):
                return self._completed(found)
            if number == len(IMAGE_SIDES) and self._best is not None:
                resized = self._resized(self._best[1])
                is_refused = bool(doubtful_faults(_graph(resized.recording)))
                if resized.recording.exception is None and not is_refused:
                    return resized
            if self._bugs == self._tries >= _SAME_BUG:
                break
            if number >= _MOST_TRIES or time.monotonic() > self._deadline:
                break
        best = None if self._best is None else self._best[1]
        if best is None or best.recording.exception is not None:
            raise InputError(
                "no inputs found that its forward accepts",
                self._first_refusal,
                is_bug=self._bugs == self._tries > 0,
            )
        return self._completed(self._resized(best))

    def _try(self, inputs: Inputs) -> Found | None:
        """One capture; remembered if it is the best so far."""
        recording = capture(self._model, inputs.args, inputs.kwargs)
        error = recording.exception
        self._tries += 1
        self._bugs += error is not None and _is_bug(error)
        if error is not None and self._first_refusal is None:
            self._first_refusal = error
        found = Found(inputs, recording)
        graph = _graph(recording)
        doubtful = len(doubtful_faults(graph)) + len(_doubtful_folds(graph))
        score = (error is not None, doubtful, len(recording.faults))
        if self._best is None or score < self._best[0]:
            self._best = (score, found)
        return found if error is None else None

    def _is_settled(self, found: Found) -> bool:
        graph = _graph(found.recording)
        return not doubtful_faults(graph) and not _doubtful_folds(graph)

    def _is_refused_anyway(self, found: Found) -> bool:
        """Whether twice the size is refused as well, by operands twice as large; tried once.

        A skip connection between maps of different depths cannot be mended by any input.
        """
        args = found.inputs.args
        if self._was_doubled or len(args) != 1 or found.inputs.kwargs or not _is_map(args[0]):
            return False
        self._was_doubled = True
        shape = (*args[0].shape[:2], *(2 * side for side in args[0].shape[2:]))
        graph = _graph(found.recording)
        larger = _graph(capture(self._model, (torch.empty(shape),)))
        for node in doubtful_faults(graph):
            if _is_refused_alike(graph, node, larger):
                graph.operation(node).at_every_size = True
        return self._is_settled(found)

    def _completed(self, found: Found) -> Found:
        """Where a fault is left, see whether an optional argument of forward would have prevented it.

        A cross-attention without its context falls back on its own input, whose width is another.
        """
        wanted = [
            wants.expected
            for node in found.recording.faults
            if (wants := expectation(_graph(found.recording), node)) is not None
        ]
        if not wanted or time.monotonic() > self._deadline:
            return found
        for parameter in forward_parameters(self._model):
            if parameter.default is not None or parameter.name in found.inputs.kwargs:
                continue
            for shape in ((BATCH, SEQUENCE, wanted[0]), (BATCH, wanted[0])):
                kwargs = {**found.inputs.kwargs, parameter.name: torch.randn(shape)}
                better = self._try(replace(found.inputs, kwargs=kwargs))
                if better is not None and len(better.recording.faults) < len(
                    found.recording.faults
                ):
                    return better
        return found

    def _adjusted(self, found: Found | None) -> Found | None:
        """Where a layer takes the input itself and wants another width, give the input that width."""
        for _ in range(_MOST_ADJUSTMENTS):
            if found is None or found.inputs.kwargs or self._is_settled(found):
                return found
            shapes = _wanted_shapes(found)
            if shapes is None:
                return found
            args = tuple(
                value if shape is None else torch.randn(shape)
                for value, shape in zip(found.inputs.args, shapes, strict=True)
            )
            found = self._try(replace(found.inputs, args=args)) or found
            if found.inputs.args is not args:
                return found
        return found

    def _resized(self, found: Found) -> Found:
        """Try the input size at which the first layer behind a flatten would fit, or a `view(-1, k)`.

        Its `in_features` over the channels that arrive is the number of pixels that it wants; a map's
        side grows with the input's, so bisection finds the size if there is one.
        """
        if len(found.inputs.args) != 1 or found.inputs.kwargs:
            return found
        shape = tuple(found.inputs.args[0].shape)
        wanted = _wanted_map(found.recording)
        if wanted is None or len(shape) != 4:
            return found
        pixels, flat = wanted
        for rows, columns in _near_square_factors(pixels):
            height = self._side(shape, flat, rows, axis=-2)
            width = height if rows == columns else self._side(shape, flat, columns, axis=-1)
            if height is None or width is None:
                continue
            origin = f"{found.inputs.origin}, sized for {flat.label}"
            args = (torch.randn(*shape[:2], height, width),)
            better = self._try(replace(found.inputs, args=args, origin=origin))
            if better is not None and self._is_settled(better):
                return better
        return found

    def _side(self, shape: tuple[int, ...], flat: _Flat, wanted: int, axis: int) -> int | None:
        low, high = 1, _LARGEST_SIDE
        while low <= high and time.monotonic() < self._deadline:
            middle = (low + high) // 2
            # The other side need not fit now, only be large enough to come through.
            sides = [max(middle, shape[-2]), max(middle, shape[-1])]
            sides[axis] = middle
            recording = capture(self._model, (torch.empty(*shape[:2], *sides),))
            dims = flat.map_before(_graph(recording))
            if dims is None or dims[axis] < wanted:
                low = middle + 1
            elif dims[axis] > wanted:
                high = middle - 1
            else:
                return middle
        return None


def _graph(recording: Recording) -> Graph:
    return Graph(recording.graph, recording.model, faults=recording.faults, inputs_given=False)


def _is_bug(error: BaseException) -> bool:
    """Whether no input would mend it: a name that nothing has, or an attribute that the model lacks."""
    if isinstance(error, AttributeError):
        return isinstance(error.obj, nn.Module)
    return type(error) is NameError


def _is_map(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() > 2 and value.is_floating_point()


def _is_refused_alike(graph: Graph, node: Node, larger: Graph) -> bool:
    """Whether the same cat or sum fails there with every map twice as long and wide."""
    place = graph.position(node)
    if graph.name(node) not in ("cat", "add", "sub", "mul") or place >= len(larger.nodes):
        return False
    other = larger.nodes[place]
    pairs = list(zip(node.all_input_nodes, other.all_input_nodes, strict=False))
    if other not in larger.faults or graph.name(other) != graph.name(node) or len(pairs) < 2:
        return False
    for here, there in pairs:
        small, large = graph.shape(here) or (), larger.shape(there) or ()
        if len(small) < 3 or large != (*small[:2], *(2 * side for side in small[2:])):
            return False
    return True


def _wanted_shapes(found: Found) -> list[tuple[int, ...] | None] | None:
    """For each argument the shape that the first layer behind it wants, None where it is content."""
    graph = _graph(found.recording)
    args = found.inputs.args
    places = {f"input_{index}": index for index in range(len(args))}
    shapes: list[tuple[int, ...] | None] = [None] * len(args)

    def resize(source: WidthSource, size: int) -> None:
        place = places.get(str(source.node.target)) if source.node is not None else None
        if place is None or shapes[place] is not None or source.axis == 0 or size < 1:
            return
        if args[place].is_floating_point():
            dims = list(args[place].shape)
            dims[source.axis] = size
            shapes[place] = tuple(dims)

    for node in found.recording.faults:
        source, wants = width_source(graph, node), expectation(graph, node)
        if wants is None or wants.expected == wants.received or source.node is None:
            continue
        if source.kind == "input":
            resize(source, wants.expected)
        elif source.kind == "cat":
            free = [
                traced
                for part in source.node.all_input_nodes
                if len(graph.shape(part) or ()) > source.axis
                and (traced := trace_axis(graph, part, source.axis)).kind == "input"
            ]
            for traced in free:  # the parts that are inputs share what is too much or too little
                dims = graph.shape(traced.node) if traced.node is not None else None
                if dims is not None:
                    surplus = wants.received - wants.expected
                    resize(traced, dims[traced.axis] - surplus // len(free))
        elif source.kind == "flatten":
            image = graph.data(source.node)
            place = places.get(str(image.target)) if image is not None else None
            if place is not None and args[place].is_floating_point():
                shapes[place] = (BATCH, wants.expected)  # a vector, which the flatten leaves alone
    return shapes if any(shapes) else None


@dataclass(frozen=True)
class _Flat:
    """Where a map becomes a vector: before the linear layer `module`, or at the reshape `number`."""

    label: str
    module: str = ""
    number: int | None = None

    def map_before(self, graph: Graph) -> tuple[int, ...] | None:
        """The map's shape in another capture of the model."""
        if self.number is not None:
            node = next(itertools.islice(graph.calls("reshape"), self.number, None), None)
            data = None if node is None else graph.data(node)
            dims = None if data is None else graph.shape(data)
            return dims if dims is not None and len(dims) == 4 else None
        for node in graph.calls("linear"):
            if graph.operation(node).module == self.module:
                source = width_source(graph, node)
                return source.dims if source.kind == "flatten" and len(source.dims) == 4 else None
        return None


def _wanted_map(recording: Recording) -> tuple[int, _Flat] | None:
    """(pixels that the first layer behind a flatten wants, which layer it is)."""
    graph = _graph(recording)
    refused = {*recording.faults, *_doubtful_folds(graph)}
    for number, node in enumerate(graph.calls("reshape")):
        wanted, data = flat_width(graph, node), graph.data(node)
        dims = None if data is None else graph.shape(data)
        if node in refused and wanted and data is not None and dims and len(dims) == 4:
            if is_map(graph, data) and wanted[1] % dims[1] == 0:
                return wanted[1] // dims[1], _Flat(f"its view(-1, {wanted[1]})", number=number)
            return None
    for node in recording.faults:
        wants, source = expectation(graph, node), width_source(graph, node)
        if wants is not None and source.kind == "flatten" and len(source.dims) == 4:
            if wants.expected % source.dims[1] == 0:
                module = graph.operation(node).module
                return wants.expected // source.dims[1], _Flat(module or "its linear layer", module)
            return None
    return None


def _doubtful_folds(graph: Graph) -> list[Node]:
    """The reshapes that make several rows of one sample at this input size, and fit at another."""
    return [
        fold.node
        for fold in folds(graph, BATCH)
        if (data := graph.data(fold.node)) is not None
        and not suits_no_size(graph, data, fold.width)
    ]


def _near_square_factors(pixels: int) -> Iterator[tuple[int, int]]:
    """Pairs (rows, columns) of this product, the most nearly square first, up to 1 : 4."""
    for rows in range(math.isqrt(pixels), 0, -1):
        if pixels % rows == 0 and pixels // rows <= 4 * rows:
            yield rows, pixels // rows
            if rows * rows != pixels:
                yield pixels // rows, rows
