"""Where a model's inputs come from: given with the file, given as text, or found by trying.

A candidate is tried with one capture on meta tensors, which costs milliseconds. A model with a fault
never runs cleanly, so the search keeps the candidate with the fewest faults and stops as soon as those
that remain cannot depend on the input. Inputs on which the model only runs since a `view(-1, k)` makes
several rows of one sample count as refused: another size would suit.
"""

from __future__ import annotations

import inspect
import itertools
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from trainlint.analysis.layers import (
    WidthSource,
    doubtful_faults,
    expectation,
    suits_no_size,
    trace_axis,
    width_source,
)
from trainlint.analysis.rows import flat_width, folds, is_map
from trainlint.capture.tracer import Recording, capture
from trainlint.errors import InputError
from trainlint.graph import Graph
from trainlint.targets.specs import parse_spec
from trainlint.tree import map_tensors, tensors

if TYPE_CHECKING:
    from torch.fx import Node

BATCH: Final = 2
_SEARCH_SECONDS: Final = 20.0
_MOST_TRIES: Final = 120
_IMAGE_SIDES: Final = (32, 224, 64, 28, 128, 256, 299, 96, 112, 384, 48, 16, 8, 40, 160, 192, 512)
_SIGNAL_LENGTHS: Final = (16, 128, 100, 1000, 16000, 28, 64, 50, 1024, 4000)
_VOLUME_SIDES: Final = (32, 96, 64, 16, 128, 48)
_SEQUENCE: Final = 16
_LARGEST_SIDE: Final = 640
_MOST_ADJUSTMENTS: Final = 3
_SAME_BUG: Final = 8


@dataclass(frozen=True)
class Inputs:
    """Arguments for one forward, and where they came from, in words for the report.

    `given` is False for inputs that trainlint made up: a fault that could be their doing is then no
    fault of the model's.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    origin: str
    given: bool

    def describe(self) -> str:
        """`(2, 3, 32, 32) float32`, or several of them with the names of keyword arguments."""
        parts = [_describe(value) for value in self.args]
        parts += [f"{name}={_describe(value)}" for name, value in self.kwargs.items()]
        return ", ".join(parts) or "none"


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"({', '.join(map(str, value.shape))}) {str(value.dtype).removeprefix('torch.')}"
    return type(value).__name__ if not isinstance(value, (int, float, bool, str)) else repr(value)


# ---------------------------------------------------------------------- given


def from_value(value: Any, model: nn.Module, origin: str) -> Inputs:
    """Inputs from `example_inputs`: a tensor, a tuple or list of arguments, a dict, or a callable.

    A dict becomes keyword arguments if forward has arguments of these names, else one argument.
    """
    if callable(value) and not isinstance(value, Tensor):
        value = value()
    if isinstance(value, (tuple, list)) and not hasattr(value, "_fields"):
        return Inputs(tuple(value), {}, origin, given=True)
    if isinstance(value, dict) and all(isinstance(name, str) for name in value):
        names, takes_any = _argument_names(model)
        if takes_any or set(value) <= names:
            return Inputs((), dict(value), origin, given=True)
    return Inputs((value,), {}, origin, given=True)


def fits_signature(inputs: Inputs, model: nn.Module) -> bool:
    """Whether forward can be called with these arguments at all."""
    try:
        inspect.signature(model.forward).bind(*inputs.args, **inputs.kwargs)
    except TypeError:
        return False
    except ValueError:  # no signature to be had
        return True
    return True


def _argument_names(model: nn.Module) -> tuple[set[str], bool]:
    parameters = _forward_parameters(model)
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    return {parameter.name for parameter in parameters}, takes_any


def from_text(text: str, model: nn.Module | None = None) -> Inputs:
    """Inputs from `--inputs`: `2x3x32x32,2x16:long` is one float image batch and one of token ids.

    Sizes are separated by `x`, arguments by commas; a type may follow a colon. Integers are drawn
    below the size of the model's smallest embedding (below 10 without one). Raises `InputError`.
    """
    smallest = min(
        (layer.num_embeddings for layer in (model.modules() if model is not None else ())
         if isinstance(layer, nn.Embedding)),
        default=10,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    values = [
        _random(shape, getattr(torch, dtype), smallest, generator)
        for shape, dtype in parse_spec(text)
    ]
    return Inputs(tuple(values), {}, "given by --inputs", given=True)


def _random(
    shape: tuple[int, ...], dtype: torch.dtype, below: int, generator: torch.Generator
) -> Tensor:
    if dtype == torch.bool:
        return torch.rand(shape, generator=generator) < 0.5
    if dtype.is_floating_point or dtype.is_complex:
        return torch.randn(shape, generator=generator).to(dtype)
    return torch.randint(0, max(1, below), shape, generator=generator).to(dtype)


# ---------------------------------------------------------------------- the batch


def batch_size(inputs: Inputs) -> int | None:
    """The number of samples: the length of the first tensor's first axis, None without one.

    Scalars are passed over; a packed sequence holds as many samples as there are at its first step.
    """
    for value in (*inputs.args, *inputs.kwargs.values()):
        if isinstance(value, PackedSequence):
            return int(value.batch_sizes[0])
        for _, tensor in tensors(value):
            if tensor.dim():
                return tensor.shape[0]
    return None


def with_batch(inputs: Inputs, size: int) -> Inputs:
    """The same inputs with another number of samples.

    Fewer are the first of them. More are drawn alike where trainlint made the inputs up: floats from a
    normal distribution of the same mean and scale, ids from the same range. Of given inputs, and of
    masks and lengths, the samples are repeated instead, each next to itself, so that what is sorted
    stays sorted. A tensor without the batch on its first axis, or on its second as hidden states have
    it, is left alone.
    """
    return next(batch_variants(inputs, size))


def batch_variants(inputs: Inputs, size: int) -> Iterator[Inputs]:
    """The ways to read `with_batch`, the likeliest first.

    Two layers' hidden states for two samples have that length on both of their first axes.
    """
    before = batch_size(inputs)
    if not before or before == size:
        yield inputs
        return
    doubtful = False
    for as_states in (False, True):
        resize = _Resize(inputs, before, size, as_states)
        args, kwargs = resize.applied()
        if as_states and not doubtful:
            return
        doubtful = resize.doubtful
        yield replace(inputs, args=args, kwargs=kwargs)


def without_batch(inputs: Inputs) -> Inputs | None:
    """The first sample alone, without the batch's axis; None where the inputs do not show it."""
    before = batch_size(inputs)
    values = (*inputs.args, *inputs.kwargs.values())
    if not before or any(isinstance(value, PackedSequence) for value in values):
        return None

    def first(_: str, tensor: Tensor) -> Tensor:
        return tensor[0] if tensor.dim() and tensor.shape[0] == before else tensor

    args, kwargs = map_tensors((inputs.args, inputs.kwargs), first)
    return replace(inputs, args=args, kwargs=kwargs)


class _Resize:
    """One change of the number of samples in all inputs.

    `as_states` takes a tensor whose first two axes are both that long for hidden states; `doubtful`
    tells whether there was one.
    """

    def __init__(self, inputs: Inputs, before: int, size: int, as_states: bool) -> None:
        self._inputs = inputs
        self._before = before
        self._as_states = as_states
        self._rows = torch.arange(size)
        if size > before:
            self._rows = (
                self._rows * before // size
            )  # 0 0 1 for two samples of which three are made
        self._generator = torch.Generator().manual_seed(0)
        self._is_first = True
        self.doubtful = False

    def applied(self) -> tuple[Any, Any]:
        """The arguments and keyword arguments with the new number of samples."""
        args = tuple(self._value(value) for value in self._inputs.args)
        return args, {name: self._value(value) for name, value in self._inputs.kwargs.items()}

    def _value(self, value: Any) -> Any:
        if not isinstance(value, PackedSequence):
            return map_tensors(value, self._tensor)
        self._is_first = False
        padded, lengths = pad_packed_sequence(value, batch_first=True)
        return pack_padded_sequence(
            padded.index_select(0, self._rows), lengths[self._rows],
            batch_first=True, enforce_sorted=value.sorted_indices is None,
        )  # fmt: skip

    def _tensor(self, _: str, tensor: Tensor) -> Tensor:
        axis = self._axis(tensor)
        self._is_first = self._is_first and not tensor.dim()
        if axis is None:
            return tensor
        count, before = len(self._rows), self._before
        if count < before:
            return tensor.narrow(axis, 0, count)
        if not self._inputs.given and axis == 0 and _can_be_drawn(tensor):
            return torch.cat((tensor, _drawn_like(tensor, count - before, self._generator)))
        return tensor.index_select(axis, self._rows.to(tensor.device))

    def _axis(self, tensor: Tensor) -> int | None:
        first = tensor.dim() > 0 and tensor.shape[0] == self._before
        second = tensor.dim() > 2 and tensor.shape[1] == self._before
        if first and second and not self._is_first:
            self.doubtful = True
            return 1 if self._as_states else 0
        if first:
            return 0
        return 1 if second else None


def _can_be_drawn(tensor: Tensor) -> bool:
    """Whether other values would do as well: neither a mask, nor lengths, nor on the meta device."""
    if tensor.dim() < 2 or tensor.dtype == torch.bool or tensor.is_complex() or tensor.is_meta:
        return False
    if not tensor.numel() or not tensor.is_floating_point():
        return bool(tensor.numel())
    is_mask = bool(((tensor == 0) | (tensor == 1)).all())
    return not is_mask and bool(tensor.isfinite().all())


def _drawn_like(tensor: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` more samples. What is never negative stays so."""
    shape = (count, *tensor.shape[1:])
    if not tensor.is_floating_point():
        low, high = int(tensor.min()), int(tensor.max())
        return torch.randint(low, high + 1, shape, generator=generator).to(tensor)
    known = tensor.detach().float()
    drawn = torch.randn(shape, generator=generator) * known.std(correction=0).cpu()
    drawn = drawn + known.mean().cpu()
    if bool((known >= 0).all()):
        drawn = drawn.clamp(float(known.min()), float(known.max()))
    return drawn.to(tensor)


# ---------------------------------------------------------------------- synthesised


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
        for number, (args, kwargs, origin) in enumerate(_candidates(self._model)):
            found = self._adjusted(self._try(args, kwargs, origin))
            if found is not None and (self._is_settled(found) or self._is_refused_anyway(found)):
                return self._completed(found)
            if number == len(_IMAGE_SIDES) and self._best is not None:
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

    def _try(self, args: tuple[Any, ...], kwargs: dict[str, Any], origin: str) -> Found | None:
        """One capture; remembered if it is the best so far."""
        recording = capture(self._model, args, kwargs)
        error = recording.exception
        self._tries += 1
        self._bugs += error is not None and _is_bug(error)
        if error is not None and self._first_refusal is None:
            self._first_refusal = error
        found = Found(Inputs(args, kwargs, origin, given=False), recording)
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
        for parameter in _forward_parameters(self._model):
            if parameter.default is not None or parameter.name in found.inputs.kwargs:
                continue
            for shape in ((BATCH, _SEQUENCE, wanted[0]), (BATCH, wanted[0])):
                kwargs = {**found.inputs.kwargs, parameter.name: torch.randn(shape)}
                better = self._try(found.inputs.args, kwargs, found.inputs.origin)
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
            found = self._try(args, {}, found.inputs.origin) or found
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
            better = self._try((torch.randn(*shape[:2], height, width),), {}, origin)
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


# ---------------------------------------------------------------------- candidates

Candidate = tuple[tuple[Any, ...], dict[str, Any], str]


def _candidates(model: nn.Module) -> Iterator[Candidate]:
    if hasattr(model, "config") and hasattr(model, "main_input_name"):
        yield from _hugging_face(model)
        return
    example = getattr(model, "example_input_array", None)
    if example is not None:
        given = from_value(example, model, "example_input_array of the model")
        yield given.args, given.kwargs, given.origin
    yield from _by_first_layers(model)


def _forward_parameters(model: nn.Module) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(model.forward).parameters.values())
    except (TypeError, ValueError):
        return []


def _required(model: nn.Module) -> list[inspect.Parameter]:
    named = [
        parameter
        for parameter in _forward_parameters(model)
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    required = [parameter for parameter in named if parameter.default is parameter.empty]
    return required or named[:1]


_LAYERS: Final = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
    nn.Linear, nn.Embedding, nn.EmbeddingBag, nn.RNNBase, nn.RNNCellBase, nn.LayerNorm,
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.MultiheadAttention, nn.GroupNorm,
)  # fmt: skip


def _first_layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return [
        (name, layer)
        for name, layer in model.named_modules()
        if isinstance(layer, _LAYERS) and not isinstance(layer, nn.modules.lazy.LazyModuleMixin)
    ]


@dataclass(frozen=True)
class _Ids:
    """Token ids of this shape, below `limit`."""

    shape: tuple[int, ...]
    limit: int


@dataclass(frozen=True, eq=False)
class _Value:
    """A Python value, or None."""

    value: Any


_Shape = tuple[int, ...] | _Ids | _Value


def _shapes_for(layer: nn.Module) -> list[_Shape]:
    """Input shapes that the layer takes, the most usual first."""
    n, t = BATCH, _SEQUENCE
    match layer:
        case nn.Conv2d() | nn.ConvTranspose2d():
            return [(n, layer.in_channels, side, side) for side in _IMAGE_SIDES]
        case nn.Conv1d() | nn.ConvTranspose1d():
            return [(n, layer.in_channels, length) for length in _SIGNAL_LENGTHS]
        case nn.Conv3d() | nn.ConvTranspose3d():
            return [(n, layer.in_channels, side, side, side) for side in _VOLUME_SIDES]
        case nn.Linear():
            return [(n, layer.in_features), (n, t, layer.in_features), *_images_of(layer)]
        case nn.LayerNorm():
            return [(n, t, *layer.normalized_shape), (n, *layer.normalized_shape)]
        case nn.RNNBase():
            return [(*((n, t) if layer.batch_first else (t, n)), layer.input_size)]
        case nn.RNNCellBase():
            width = layer.input_size
            return [(n, width), (n, t, width), (t, n, width)]
        case nn.MultiheadAttention():
            return [(*((n, t) if layer.batch_first else (t, n)), layer.embed_dim)]
        case nn.BatchNorm1d():
            return [(n, layer.num_features), (n, layer.num_features, t)]
        case nn.BatchNorm2d():
            return [(n, layer.num_features, side, side) for side in _IMAGE_SIDES[:3]]
        case nn.BatchNorm3d():
            return [(n, layer.num_features, side, side, side) for side in _VOLUME_SIDES[:3]]
        case nn.GroupNorm():
            return [(n, layer.num_channels, t, t), (n, layer.num_channels, t)]
        case nn.Embedding() | nn.EmbeddingBag():
            limit = layer.num_embeddings
            return [_Ids((n, t), limit), _Ids((n,), limit), _Ids((n, 256), limit)]
    return []


def _images_of(layer: nn.Linear) -> list[_Shape]:
    """An MLP that flattens its input: square images of one or three channels."""
    shapes: list[_Shape] = []
    for channels in (1, 3):
        side = math.isqrt(layer.in_features // channels)
        if side > 3 and side * side * channels == layer.in_features:
            shapes.append((BATCH, channels, side, side))
    return shapes


_ID_NAMES: Final = frozenset(
    "input_ids ids tokens token_ids src tgt text decoder_input_ids x_ids words idx indices seq users "
    "items user_ids item_ids user item labels target targets y t timesteps timestep".split()
)
_TIME_NAMES: Final = frozenset("t timestep timesteps time noise_labels sigma".split())
_STATE_NAMES: Final = frozenset("h h0 hx h_state state states prev_state init_state".split())
_LENGTH_NAMES: Final = frozenset("lens lengths length seq_len seq_lens x_lengths".split())
_TARGET_NAMES: Final = frozenset("y target targets labels label".split())
_SAME: Final = _Value("same as the first")
_USUAL: Final[tuple[_Shape, ...]] = (
    (BATCH, 3, 32, 32), (BATCH, 3, 224, 224), (BATCH, 1, 28, 28), _Ids((BATCH, _SEQUENCE), 100),
    (BATCH, _SEQUENCE, 64), (BATCH, _SEQUENCE), (BATCH, 1, 16000),
)  # fmt: skip


def _by_first_layers(model: nn.Module) -> Iterator[Candidate]:
    required = _required(model)
    layers = _first_layers(model)
    choices = [
        _choices(index, parameter, model, layers) for index, parameter in enumerate(required)
    ] or [list(_USUAL)]
    origin = "guessed"
    if layers:
        name, layer = layers[0]
        name = f"layer {name}" if name.isdigit() else name
        origin = f"inferred from {name or type(layer).__name__}"
    for shapes in _nearest_first(choices):
        values: list[Any] = []
        for shape in shapes:
            values.append(values[0].clone() if shape is _SAME else _made(shape))
        args = [
            value
            for value, parameter in itertools.zip_longest(values, required)
            if parameter is None or parameter.kind is not parameter.KEYWORD_ONLY
        ]
        kwargs = {
            parameter.name: value
            for value, parameter in zip(values, required, strict=False)
            if parameter.kind is parameter.KEYWORD_ONLY
        }
        yield tuple(args), kwargs, origin


def _nearest_first(choices: list[list[_Shape]]) -> Iterator[tuple[_Shape, ...]]:
    """All combinations, those of first choices first; the first argument varies the most."""
    if len(choices) == 1:
        yield from ((choice,) for choice in choices[0])
        return
    ranges = [range(min(len(some), 24 if i == 0 else 6)) for i, some in enumerate(choices)]
    for places in sorted(itertools.product(*ranges), key=sum):
        yield tuple(some[place] for some, place in zip(choices, places, strict=True))


def _made(shape: _Shape) -> Any:
    if isinstance(shape, _Value):
        return shape.value
    if isinstance(shape, _Ids):
        return torch.randint(0, max(2, min(shape.limit, 100)), shape.shape) % max(1, shape.limit)
    return torch.randn(shape)


def _choices(
    index: int,
    parameter: inspect.Parameter,
    model: nn.Module,
    layers: list[tuple[str, nn.Module]],
) -> list[_Shape]:
    """Shapes to try for one argument of forward, the likeliest first."""
    name = parameter.name.lower()
    by_name = _choices_by_name(index, name, parameter.annotation)
    if by_name is not None:
        return by_name
    embeddings = [
        layer for _, layer in layers if isinstance(layer, (nn.Embedding, nn.EmbeddingBag))
    ]
    shapes: list[_Shape] = []
    if index > 0 and ("hidden" in name or name in _STATE_NAMES):
        shapes += _states(model)
    if name in _TIME_NAMES:
        shapes += [_Ids((BATCH,), 100), (BATCH,)]
    if "mask" in name:
        shapes.append(_Value(None))
    if index == 0:
        shapes += _declared_image(model, layers)
    if name in _ID_NAMES and embeddings:
        shapes += _shapes_for(embeddings[min(index, len(embeddings) - 1)])
    if len(name) > 1:
        for path, layer in [
            (path, layer) for path, layer in layers if name in path or path.split(".")[0] in name
        ][:2]:
            shapes += _shapes_for(layer) if path else []
    if index == 0 and layers:
        shapes += _shapes_for(layers[0][1])
    if index > 0:
        shapes.append(_SAME)
    for _, layer in layers[:12]:
        shapes += _shapes_for(layer)[:4]
    if index == 0:
        shapes += [(BATCH, channels, side, side) for channels in (3, 1) for side in _IMAGE_SIDES]
        shapes += _USUAL
    return list(dict.fromkeys(shapes)) or list(_USUAL)


def _choices_by_name(index: int, name: str, annotation: Any) -> list[_Shape] | None:
    if name in _TARGET_NAMES and index > 0:
        return [_Ids((BATCH,), 10), _SAME, _Value(None)]
    if name in _LENGTH_NAMES:
        return [_Ids((BATCH,), 8)]
    if name == "edge_index":
        return [_Ids((2, 12), 8), _Ids((2, 12), BATCH)]
    if name in ("edge_attr", "edge_weight"):
        return [(12,), (12, 1)]
    plain = {int: 1, float: 1.0, bool: False, str: ""}
    if isinstance(annotation, type) and annotation in plain:
        return [_Value(plain[annotation])]
    return None


def _states(model: nn.Module) -> list[_Shape]:
    """A first state for the model's recurrent layer: (layers, batch, hidden), two of them for an LSTM."""
    for layer in model.modules():
        if isinstance(layer, nn.RNNBase):
            directions = 2 if layer.bidirectional else 1
            batch = (layer.num_layers * directions, BATCH)
            hidden = (*batch, layer.proj_size or layer.hidden_size)
            if isinstance(layer, nn.LSTM):
                cell = torch.zeros(*batch, layer.hidden_size)
                return [_Value((torch.zeros(hidden), cell)), _Value(None)]
            return [hidden, _Value(None)]
        if isinstance(layer, nn.RNNCellBase):
            state = (BATCH, layer.hidden_size)
            if isinstance(layer, nn.LSTMCell):
                return [_Value((torch.zeros(state), torch.zeros(state))), _Value(None)]
            return [state, _Value(None)]
    return []


def _declared_image(model: nn.Module, layers: list[tuple[str, nn.Module]]) -> list[_Shape]:
    """The image size that the model itself names."""
    convolution = next((layer for _, layer in layers if isinstance(layer, nn.Conv2d)), None)
    if convolution is None:
        return []
    for attribute in ("in_size", "img_size", "image_size", "input_size"):
        size = getattr(model, attribute, None)
        sides = (size, size) if isinstance(size, int) else size
        if (
            isinstance(sides, (tuple, list))
            and len(sides) >= 2
            and all(isinstance(side, int) for side in sides[-2:])
        ):
            return [(BATCH, convolution.in_channels, *sides[-2:]), (BATCH, 3, *sides[-2:])]
    return []


# ---------------------------------------------------------------------- Hugging Face models


def _hugging_face(model: Any) -> Iterator[Candidate]:
    """By argument name and configuration: such models name their inputs alike."""
    names = {parameter.name for parameter in _forward_parameters(model)}
    origin = "inferred from the model's config"
    maker = _HuggingFaceInputs(model.config)
    main = model.main_input_name if isinstance(model.main_input_name, str) else ""
    required = [
        parameter.name
        for parameter in _forward_parameters(model)
        if parameter.name == main or parameter.default is parameter.empty
    ]
    base = {name: value for name in required if (value := maker.make(name)) is not None}
    if not base:
        usual = ("input_ids", "pixel_values", "input_values", "input_features")
        first = next((name for name in usual if name in names), None)
        base = {first: maker.make(first)} if first else {}
    if getattr(model.config, "is_encoder_decoder", False) and "decoder_input_ids" in names:
        base["decoder_input_ids"] = maker.make("decoder_input_ids")
    yield (), base, origin
    for extra in ("pixel_values", "input_features", "input_values", "bbox", "attention_mask"):
        if "input_ids" in names and extra in names:
            yield (
                (),
                {**base, "input_ids": maker.make("input_ids"), extra: maker.make(extra)},
                origin,
            )
    for name in ("pixel_values", "input_values", "input_features"):
        if name in base:
            for value in maker.alternatives(name):
                yield (), {**base, name: value}, origin
    try:
        dummy = model.dummy_inputs
    except Exception:  # many families define it and cannot make it
        return
    if isinstance(dummy, dict):
        yield (), {name: value for name, value in dummy.items() if name in names}, origin


class _HuggingFaceInputs:
    _VOCABULARY = 50

    def __init__(self, config: Any) -> None:
        self._config = config
        self._vision = getattr(config, "vision_config", None) or config

    def _setting(self, *names: str, default: Any = None, config: Any = None) -> Any:
        """The first of these settings in the config or its sub-configs."""
        queue, seen = [config or self._config], set()
        while queue:
            current = queue.pop(0)
            if id(current) in seen:
                continue
            seen.add(id(current))
            for name in names:
                value = getattr(current, name, None)
                if value is not None:
                    return value
            queue += [part for part in vars(current).values() if hasattr(part, "model_type")]
        return default

    def _image(self) -> tuple[int, int]:
        side = self._setting("image_size", default=64, config=self._vision)
        side = side[0] if isinstance(side, (list, tuple)) else side
        channels = self._setting("num_channels", "in_channels", "in_chans", config=self._vision)
        return (
            channels if isinstance(channels, int) else 3,
            side if isinstance(side, int) else 64,
        )

    def make(self, name: str) -> Any:
        channels, side = self._image()
        mel = self._setting("num_mel_bins", "input_feat_per_channel", "feature_size", default=80)
        match name:
            case "input_ids" | "decoder_input_ids":
                limit = self._setting("vocab_size", default=self._VOCABULARY)
                limit = limit if isinstance(limit, int) else self._VOCABULARY
                return torch.randint(3, max(4, min(limit, self._VOCABULARY)), (BATCH, _SEQUENCE))
            case "attention_mask":
                return torch.ones(BATCH, _SEQUENCE, dtype=torch.long)
            case "pixel_values":
                return torch.randn(BATCH, channels, side, side)
            case "pixel_values_videos":
                frames = self._setting("num_frames", default=4)
                return torch.randn(BATCH, frames, channels, side, side)
            case "input_values":
                length = self._setting("max_length")
                if isinstance(length, int) and isinstance(self._setting("num_mel_bins"), int):
                    return torch.randn(BATCH, length, mel)
                return torch.randn(BATCH, 4000)
            case "input_features":
                positions = self._setting("max_source_positions")
                if isinstance(positions, int) and positions <= 3000:
                    return torch.randn(BATCH, mel, 2 * positions)
                return torch.randn(BATCH, 64, self._setting("feature_projection_input_dim") or mel)
            case "bbox":
                return torch.randint(0, 50, (BATCH, _SEQUENCE, 4)).sort(-1).values
            case "past_values":
                return self._time_series()
            case "input_points":
                return torch.rand(BATCH, 1, 2, 2)
        return None

    def _time_series(self) -> Tensor:
        length = self._setting("context_length", default=16)
        length += max(self._setting("lags_sequence", default=[0]) or [0])
        width = self._setting("num_input_channels", "input_size", default=1)
        return torch.randn(BATCH, length, *((width,) if width > 1 else ()))

    def alternatives(self, name: str) -> Iterator[Tensor]:
        channels, side = self._image()
        mel = self._setting("num_mel_bins", default=80)
        if name == "pixel_values":
            for other in (32, 64, 128, 224):
                yield torch.randn(BATCH, channels, other, other)
            yield torch.randn(BATCH, self._setting("num_frames", default=4), channels, side, side)
        elif name == "input_values":
            yield torch.randn(BATCH, 16000)
            yield torch.randn(BATCH, 1, 4000)
        else:
            yield torch.randn(BATCH, 128, mel)
            yield torch.randn(BATCH, mel, 3000)
