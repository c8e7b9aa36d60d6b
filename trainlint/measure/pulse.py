"""One forward and backward pass on real weights, measured: the pulse.

Comes in: a model, its inputs and the captured graph. Goes out: a `Signal`, whose sites are the nodes of
that graph. An operation of the real run and a node are the same if they are the n-th operation of that
name in the same module. The model, its gradients and the random states are as before afterwards.
"""

from __future__ import annotations

import contextlib
import gc
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, NoReturn

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.overrides import TorchFunctionMode

from trainlint import ops
from trainlint.capture.batches import batch_size, with_batch
from trainlint.capture.inputs import Inputs
from trainlint.capture.tracer import active, is_wrapped, module_calls, single_node_functions
from trainlint.engine import FactUnavailable
from trainlint.graph import Graph, product
from trainlint.measure.histograms import COUNTED, counted, histogram_of
from trainlint.measure.memory import available_memory
from trainlint.measure.signal import NonFinite, Signal, SiteSignal
from trainlint.preserve import preserved, unchanged_weights
from trainlint.tree import map_tensors, tensors

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

MOST_SAMPLES: Final = 16
_FEWEST_SAMPLES: Final = 2
_LARGEST_SAMPLE: Final = 8192
# A core does some 3e10 floating-point operations a second: a few seconds, and the most that we ask for.
_COMFORTABLE_WORK: Final = 1e11
_MOST_WORK: Final = 1e12
_MOST_SECONDS: Final = 40.0
_BACKWARD: Final = 3  # forward and backward cost about three forwards
RECORDED: Final = (
    ops.WEIGHTED
    | ops.RECURRENT
    | ops.ATTENTION
    | ops.NORMALIZATIONS
    | ops.ACTIVATIONS
    | {"matmul", "einsum", "embedding", "add", "autograd_function"}
)
# |z| beyond which the slope is below 7% of its largest: σ'(4) = 0.018 of 0.25, tanh'(2) = 0.071 of 1.
_FLAT_BEYOND: Final = {"sigmoid": 4.0, "tanh": 2.0}
# They put -inf where the softmax behind them shall see nothing.
_MASKS: Final = frozenset("masked_fill where full full_like new_full triu tril fill add".split())
# What models return besides their answer; gradients would reach the first layers through these directly.
_BY_PRODUCTS: Final = ("past_key_values", "hidden_states", "attentions", "cache")

Objective = Callable[[Any], Tensor | None]


def pulse(
    model: nn.Module,
    inputs: Inputs,
    graph: Graph,
    *,
    objective: Objective | None = None,
    seed: int = 0,
) -> Signal:
    """Measure one forward and backward pass in train mode.

    `objective` maps the model's output to a scalar; without it, or where it gives None, the output's own
    `loss` is taken, else a random projection of the outputs. `seed` draws the projection, dropout, and
    the samples behind the first. Raises `FactUnavailable` where the model has no values, is too large, or
    does not run.
    """
    if any(parameter.is_meta for parameter in model.parameters()):
        raise FactUnavailable("its weights have no values, they are on the meta device")
    samples = affordable_batch(model, inputs, graph)
    deadline = time.monotonic() + _MOST_SECONDS
    try:
        return _measured(model, inputs, graph, samples, objective, seed, deadline)
    except _Refused as refusal:
        before = batch_size(inputs) or 0
        if samples == before:
            raise FactUnavailable(str(refusal)) from None
    try:  # samples of our own making were refused; the capture has seen these pass
        return _measured(model, inputs, graph, before, objective, seed, deadline)
    except _Refused as refusal:
        raise FactUnavailable(str(refusal)) from None


class _Refused(Exception):  # noqa: N818 (the model's answer)
    """The model raised on these samples."""


class _TooSlow(Exception):  # noqa: N818 (a decision, not an error)
    """The time is up."""


def _measured(
    model: nn.Module,
    inputs: Inputs,
    graph: Graph,
    samples: int,
    objective: Objective | None,
    seed: int,
    deadline: float,
    *,
    whole: bool = False,
) -> Signal:
    parameters = {
        name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad
    }
    batch = on_device_of(model, with_batch(inputs, samples))
    recorder = _Recorder(model, graph, samples, deadline)
    with (
        preserved(model),
        unchanged_weights(model),
        without_collections(),
        warnings.catch_warnings(),
        torch.enable_grad(),
    ):
        warnings.simplefilter("ignore")
        seed_generators(seed)
        model.train()
        try:
            with recorder.recording():
                output = model(*batch.args, **batch.kwargs)
                kind, value = objective_of(output, objective, seed)
            gradients = _gradients(value, list(parameters.values()), whole=whole)
            signal = recorder.signal(
                dict(zip(parameters, gradients, strict=True)), kind, value, given=inputs.given
            )
            if not _is_finite(signal):
                origin = _origin(model, batch, graph, objective, seed, deadline)
                signal = recorder.with_origin(signal, origin)
            return signal
        except _TooSlow:
            raise FactUnavailable(f"it takes more than {_MOST_SECONDS:g} s") from None
        except (FactUnavailable, _Refused):
            raise
        except Exception as error:
            if whole or "checkpoint is incompatible with .grad()" not in str(error):
                _explain(error)
        finally:
            recorder.hooks.remove()
    return _measured(model, inputs, graph, samples, objective, seed, deadline, whole=True)


@contextlib.contextmanager
def without_collections() -> Iterator[None]:
    """Let Python's collector rest: in a deep model it doubles the time of a pass."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _explain(error: Exception) -> NoReturn:
    from trainlint.capture.tracer import site_of

    message = str(error).strip().partition("\n")[0]
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        raise FactUnavailable("it does not fit in memory") from None
    site = site_of(error)
    place = f" at {site.filename}:{site.row}" if site is not None else ""
    raise _Refused(f"a real pass raised {type(error).__name__}: {message}{place}") from None


# ---------------------------------------------------------------------- how much


def affordable_batch(model: nn.Module, inputs: Inputs, graph: Graph) -> int:
    """How many samples to take: 16, or as many as time and memory allow. Raises `FactUnavailable`."""
    before = batch_size(inputs)
    if not before:
        return 0
    most = min(before, MOST_SAMPLES) if inputs.given else MOST_SAMPLES
    work = work_of(graph) / before * _BACKWARD
    samples = most if work * most <= _COMFORTABLE_WORK else int(_COMFORTABLE_WORK / work)
    samples = min(most, max(_FEWEST_SAMPLES, samples))
    if work * samples > _MOST_WORK:
        raise FactUnavailable(
            f"a pass over {samples} samples needs {work * samples:.1g} operations, too many here"
        )
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    results = sum(_bytes_of(graph, node) for node in graph.calls_in_order)
    needed = 2 * weights + 2 * results * samples // before  # a copy and the gradients of each
    available = available_memory()
    if available is not None and needed > available:
        raise FactUnavailable(
            f"it needs about {needed / 2**30:.1f} GiB and {available / 2**30:.1f} GiB are free"
        )
    return samples


def work_of(graph: Graph) -> float:
    """Floating-point operations of one forward, counted at linear maps, convolutions and products."""
    total = 0.0
    for node in graph.calls_in_order:
        name, shape = graph.name(node), graph.shape(node)
        if name in ops.WEIGHTED:
            weight = graph.argument(node, "weight")
            dims = graph.shape(weight) if isinstance(weight, Node) else None
            if shape is not None and dims:
                total += 2.0 * product(shape) * product(dims[1:])
        elif name in ("matmul", "scaled_dot_product_attention", "einsum"):
            first = graph.shape(node.all_input_nodes[0]) if node.all_input_nodes else None
            if shape and first:
                total += 2.0 * product(shape) * first[-1]
        elif name in ops.RECURRENT:
            layer = graph.operation(node).owner
            size = sum(p.numel() for p in layer.parameters()) if layer is not None else 0
            data = graph.data(node)
            dims = graph.shape(data) if data is not None else None
            if dims:
                total += 2.0 * size * product(dims[:-1])
    return total


def _bytes_of(graph: Graph, node: Node) -> int:
    shape = graph.operation(node).shape
    return product(shape.dims) * shape.dtype.itemsize if shape is not None else 0


def on_device_of(model: nn.Module, inputs: Inputs) -> Inputs:
    """The inputs as copies on the device of the model's parameters."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))

    def placed(_: str, tensor: Tensor) -> Tensor:
        # A copy: the forward may write into its input.
        moved = tensor.detach().to(device, copy=True)
        return moved.requires_grad_(True) if tensor.requires_grad and tensor.is_leaf else moved

    args, kwargs = map_tensors((inputs.args, inputs.kwargs), placed)
    return replace(inputs, args=args, kwargs=kwargs)


# ---------------------------------------------------------------------- the objective


def objective_of(output: Any, objective: Objective | None, seed: int) -> tuple[str, Tensor]:
    """What to differentiate: (`loss` or `projection`, the scalar). Raises `FactUnavailable`."""
    value = None if objective is None else objective(output)
    if value is not None:
        return "loss", value
    loss = output.get("loss") if isinstance(output, dict) else getattr(output, "loss", None)
    if loss is None and isinstance(output, Tensor) and output.dim() == 0:
        loss = output
    if isinstance(loss, Tensor) and loss.numel() == 1 and loss.requires_grad:
        return "loss", loss.reshape(())
    generator = torch.Generator().manual_seed(seed)
    terms = []
    for name, tensor in tensors(output):
        if not tensor.requires_grad or any(word in name for word in _BY_PRODUCTS):
            continue
        real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
        cotangent = torch.randn(real.shape, generator=generator).to(real.device, real.dtype)
        terms.append((real * cotangent).sum())
    if not terms:
        raise FactUnavailable("none of its outputs depends on a trainable parameter")
    return "projection", torch.stack([term.float() for term in terms]).sum()


def seed_generators(seed: int) -> None:
    """As `torch.manual_seed`, which takes down the stack for each kind of device that is not there."""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(seed)


def _gradients(value: Tensor, parameters: Sequence[Tensor], *, whole: bool) -> list[Tensor | None]:
    """Gradients of the value; `whole` runs a backward pass of its own, as reentrant checkpoints want."""
    if not parameters or not value.requires_grad:
        raise FactUnavailable("no trainable parameter takes part")
    if not whole:
        return list(torch.autograd.grad(value, parameters, allow_unused=True))
    if any(getattr(parameter, "_post_accumulate_grad_hooks", None) for parameter in parameters):
        raise FactUnavailable("its checkpoints need a backward pass that would set off its hooks")
    for parameter in parameters:
        parameter.grad = None  # `unchanged_weights` puts it back
    value.backward()  # type: ignore[no-untyped-call]
    return [parameter.grad for parameter in parameters]


# ---------------------------------------------------------------------- recording


@dataclass(slots=True)
class _Record:
    """Samples of one operation's result, and of its input where saturation is asked; its gradient."""

    node: Node
    name: str
    sample: Tensor
    flat_beyond: float
    before: Tensor | None
    gradient: Tensor | None = None


class _Recorder(TorchFunctionMode):
    """Takes samples of results as they are made, and norms of gradients as they arrive; no sync."""

    def __init__(self, model: nn.Module, graph: Graph, batch: int, deadline: float) -> None:
        super().__init__()
        self._model = model
        self._batch = batch
        self._deadline = deadline
        self._stack: list[tuple[str, nn.Module]] = []
        self._silent = 0
        self._counts: dict[tuple[str, str], int] = defaultdict(int)
        self._nodes = _nodes_by_key(graph)
        self.records: list[_Record] = []
        self.hooks = _Hooks()

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        with (
            module_calls(self._model, self._stack),
            single_node_functions(),
            active(self),
            self,
        ):
            yield

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name = _names.get(func)
        if name is None:
            name = _name_if_recorded(func)
        if not name or self._silent:
            return func(*args, **kwargs)
        beyond = _FLAT_BEYOND.get(name)
        before = None
        if beyond is not None and args and isinstance(args[0], Tensor):
            before = self._sampled(args[0])
        result = func(*args, **kwargs)
        self._note(name, result, beyond or 0.0, before)
        return result

    def custom_function(self, _: Any, apply: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """One operation, as in the capture."""
        if any(callable(value) and not isinstance(value, Tensor) for value in args):
            return apply(*args, **kwargs)  # a checkpoint, or reversible layers: their body is shown
        self._silent += 1
        try:
            result = apply(*args, **kwargs)
        finally:
            self._silent -= 1
        if not self._silent:
            self._note("autograd_function", result, 0.0, None)
        return result

    def _note(self, name: str, result: Any, beyond: float, before: Tensor | None) -> None:
        if time.monotonic() > self._deadline:
            raise _TooSlow
        path = self._stack[-1][0] if self._stack else ""
        key = (path, name)
        node = self._nodes.get((path, name, self._counts[key]))
        self._counts[key] += 1
        tensor = result if isinstance(result, Tensor) else _first_tensor(result)
        if node is None or tensor is None or tensor.is_meta or is_wrapped(tensor):
            return
        if not (tensor.is_floating_point() or tensor.is_complex()):
            return
        record = _Record(node, name, self._sampled(tensor), beyond, before)
        self.records.append(record)
        if tensor.requires_grad:
            self.hooks.add(tensor, _take_norm(record, self._deadline))

    def _sampled(self, tensor: Tensor) -> Tensor:
        """At most 8192 elements, one row a sample of the batch where that is the first axis."""
        with torch._C.DisableTorchFunction():
            flat = tensor.detach()
            if flat.is_complex():
                flat = torch.view_as_real(flat.resolve_conj())
            rows = self._batch if flat.dim() > 1 and flat.shape[0] == self._batch else 1
            flat = flat.reshape(rows, -1)
            step = -(-flat.numel() // _LARGEST_SAMPLE) or 1
            if step > 1:
                # An odd step does not keep hitting the same channel or position.
                flat = flat[:, :: step | 1]
            return flat.to(torch.float32, copy=True)

    # ------------------------------------------------------------------ afterwards

    def signal(
        self, gradients: dict[str, Tensor | None], kind: str, value: Tensor, *, given: bool
    ) -> Signal:
        """Compute what was sampled, all sites of one shape together, and read it out at once."""
        sites: dict[Node, SiteSignal] = {}
        groups: dict[tuple[int, ...], list[_Record]] = defaultdict(list)
        for record in self.records:
            groups[tuple(record.sample.shape)].append(record)
        for group in groups.values():
            for record, figures in zip(group, _statistics(group), strict=True):
                sites[record.node] = figures
        with_gradient = [name for name, gradient in gradients.items() if gradient is not None]
        norms = _norms([g for g in gradients.values() if g is not None])
        return Signal(
            batch=self._batch,
            objective=kind,
            value=float(value.detach()),
            given=given,
            sites=sites,
            gradients={
                **dict.fromkeys(gradients),
                **dict(zip(with_gradient, norms, strict=True)),
            },
        )

    @staticmethod
    def with_origin(signal: Signal, origin: NonFinite | None) -> Signal:
        return replace(signal, non_finite=origin)


_names: dict[Any, str] = {}


def _name_if_recorded(func: Any) -> str:
    name = ops.canonical_name(func)
    name = name if name in RECORDED else ""
    with contextlib.suppress(TypeError):
        _names[func] = name
    return name


def _nodes_by_key(graph: Graph) -> dict[tuple[str, str, int], Node]:
    counts: dict[tuple[str, str], int] = defaultdict(int)
    found: dict[tuple[str, str, int], Node] = {}
    for node in graph.calls_in_order:
        name = graph.name(node)
        if name in RECORDED:
            path = graph.operation(node).module
            found[path, name, counts[path, name]] = node
            counts[path, name] += 1
    return found


def _first_tensor(value: Any) -> Tensor | None:
    return next((tensor for _, tensor in tensors(value)), None)


def _wide(tensor: Tensor) -> torch.dtype | None:
    """Squares of a vanishing gradient of 1e-20 underflow in single precision."""
    if tensor.device.type != "cpu":
        return None
    return torch.complex128 if tensor.is_complex() else torch.float64


class _Hooks:
    """Hooks on results. What is written in place is the model's own tensor: its hook would stay."""

    def __init__(self) -> None:
        self._handles: list[RemovableHandle] = []

    def add(self, tensor: Tensor, hook: Callable[[Any], None]) -> None:
        self._handles.append(tensor.register_hook(hook))  # type: ignore[no-untyped-call]

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()


def _take_norm(record: _Record, deadline: float) -> Callable[[Tensor | None], None]:
    def hook(gradient: Tensor | None) -> None:
        if time.monotonic() > deadline:
            raise _TooSlow
        if gradient is None:  # a custom function that does not materialise zeros
            return
        norm = torch.linalg.vector_norm(gradient.detach(), dtype=_wide(gradient)).abs()
        # A result that is used twice by a custom function may come by twice.
        record.gradient = norm if record.gradient is None else torch.hypot(record.gradient, norm)

    return hook


def _statistics(group: list[_Record]) -> list[SiteSignal]:
    """Figures of sites whose samples have one shape (rows, elements)."""
    stacked = torch.stack([record.sample for record in group])
    every = (1, 2)
    mean = stacked.mean(every)
    square = stacked.square().mean(every)
    spread = (stacked - stacked.mean(1, keepdim=True)).square().mean(every).sqrt()
    columns = [
        mean,
        (square - mean.square()).clamp_min(0).sqrt(),
        square.sqrt(),
        spread,
        (stacked == 0).float().mean(every),
        _saturated(group, stacked.device),
    ]
    gradients = iter(_read([r.gradient for r in group if r.gradient is not None]))
    rows = torch.stack(columns, dim=1).tolist()
    spreads = _spreads(group, stacked)
    return [
        SiteSignal(
            row[0], row[1], row[2], row[3], row[4],
            saturated=None if row[5] < 0 else row[5],
            gradient=None if record.gradient is None else next(gradients),
            values=None if spread is None else histogram_of(spread),
        )
        for record, row, spread in zip(group, rows, spreads, strict=True)
    ]  # fmt: skip


def _spreads(group: list[_Record], stacked: Tensor) -> list[list[float] | None]:
    """Rows of `counted` for layers and activations, None for others."""
    places = [place for place, record in enumerate(group) if record.name in COUNTED]
    if not places:
        return [None] * len(group)
    chosen = stacked if len(places) == len(group) else stacked[places]
    rows = iter(counted(chosen, [group[place].name for place in places]).tolist())
    return [next(rows) if record.name in COUNTED else None for record in group]


def _saturated(group: list[_Record], device: torch.device) -> Tensor:
    """Share of the inputs in the flat part, -1 where the operation has none."""
    shares = torch.full((len(group),), -1.0, device=device)
    for place, record in enumerate(group):
        if record.before is not None:
            shares[place] = (record.before.abs() > record.flat_beyond).float().mean()
    return shares


def _norms(gradients: list[Tensor]) -> list[float]:
    dense = [g.coalesce().values() if g.is_sparse else g for g in gradients]
    return _read([torch.linalg.vector_norm(gradient, dtype=_wide(gradient)) for gradient in dense])


def _read(norms: list[Tensor]) -> list[float]:
    """The numbers, fetched at once."""
    if not norms:
        return []
    home = norms[0].device
    return [float(norm) for norm in torch.stack([norm.abs().to(home) for norm in norms]).tolist()]


# ---------------------------------------------------------------------- NaN and infinity


def _is_finite(signal: Signal) -> bool:
    values = [signal.value, *(g for g in signal.gradients.values() if g is not None)]
    return all(value - value == 0 for value in values)  # inf - inf and nan - nan are nan


def _origin(
    model: nn.Module,
    batch: Inputs,
    graph: Graph,
    objective: Objective | None,
    seed: int,
    deadline: float,
) -> NonFinite | None:
    """Run again with every result looked at, and find the operation that made the first bad value."""
    seed_generators(seed)
    finder = _Finder(model, graph, deadline)
    try:
        with finder.recording():
            output = model(*batch.args, **batch.kwargs)
            _, value = objective_of(output, objective, seed)
        if finder.found is not None:
            return finder.found
        if finder.infinities and not bool(value.isfinite()):
            return finder.infinities[0]
        with contextlib.suppress(RuntimeError):
            _gradients(value, [p for p in model.parameters() if p.requires_grad], whole=False)
    finally:
        finder.hooks.remove()
    return finder.found or next(iter(finder.infinities), None)


class _Finder(TorchFunctionMode):
    """Finds the first operation, forward or backward, that makes a NaN, or an infinity that stays."""

    def __init__(self, model: nn.Module, graph: Graph, deadline: float) -> None:
        super().__init__()
        self._model = model
        self._deadline = deadline
        self._stack: list[tuple[str, nn.Module]] = []
        self._counts: dict[tuple[str, str], int] = defaultdict(int)
        self._nodes: dict[tuple[str, str, int], Node] = {}
        counts: dict[tuple[str, str], int] = defaultdict(int)
        for node in graph.calls_in_order:
            key = (graph.operation(node).module, graph.name(node))
            self._nodes[(*key, counts[key])] = node
            counts[key] += 1
        self._graph = graph
        self.found: NonFinite | None = None
        self.infinities: list[NonFinite] = []
        self.hooks = _Hooks()

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        with module_calls(self._model, self._stack), self:
            yield

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        sources = [t for _, t in tensors((args, kwargs)) if t.is_floating_point()]
        ranges = None
        if self.found is None and sources and ops.canonical_name(func) != "output":
            with torch._C.DisableTorchFunction():
                clean = not any(bool(t.isnan().any()) for t in sources if t.numel())
                bounded = clean and not any(bool(t.isinf().any()) for t in sources if t.numel())
                if clean:
                    ranges = _range(sources)
        else:
            clean = bounded = False
        result = func(*args, **kwargs)
        made = [t for _, t in tensors(result) if t.is_floating_point() and t.numel()]
        if not made:
            return result
        if time.monotonic() > self._deadline:
            raise _TooSlow
        name = ops.canonical_name(func)
        path = self._stack[-1][0] if self._stack else ""
        node = self._nodes.get((path, name, self._counts[path, name]))
        self._counts[path, name] += 1
        if node is None or not clean:
            return result
        with torch._C.DisableTorchFunction():
            if any(bool(t.isnan().any()) for t in made):
                cause = None if bounded else self._infinity_before(node)
                self.found = cause or NonFinite(node, "nan", backward=False, inputs=ranges)
            elif (
                bounded
                and name not in _MASKS
                and not self._graph.is_constant(node)
                and any(bool(t.isinf().any()) for t in made)
            ):
                self.infinities.append(NonFinite(node, "inf", backward=False, inputs=ranges))
            for tensor in sources:
                if tensor.requires_grad and self.found is None:
                    self._watch(tensor, made, node, ranges)
        return result

    def _infinity_before(self, node: Node) -> NonFinite | None:
        """The operation that made the infinity of which this one makes a NaN."""
        before: set[Node] = set()
        stack = [node]
        while stack:
            for source in stack.pop().all_input_nodes:
                if source not in before:
                    before.add(source)
                    stack.append(source)
        return next((made for made in self.infinities if made.node in before), None)

    def _watch(
        self, tensor: Tensor, results: list[Tensor], node: Node, ranges: tuple[float, float] | None
    ) -> None:
        """Blame the operation if its result's gradient is finite and its operand's is not."""
        arrived: list[bool] = []
        for result in results:
            if result.requires_grad:
                self.hooks.add(
                    result, lambda g: arrived.append(g is None or bool(g.isfinite().all()))
                )

        def judge(gradient: Tensor | None) -> None:
            if gradient is None:
                return
            reached = self.found is None and arrived and all(arrived)
            if reached and not bool(gradient.isfinite().all()):
                value = "nan" if bool(gradient.isnan().any()) else "inf"
                self.found = NonFinite(node, value, backward=True, inputs=ranges)

        self.hooks.add(tensor, judge)


def _range(sources: Sequence[Tensor]) -> tuple[float, float] | None:
    flat = [t.detach() for t in sources if t.numel() and not t.is_complex()]
    if not flat:
        return None
    return min(float(t.min()) for t in flat), max(float(t.max()) for t in flat)
