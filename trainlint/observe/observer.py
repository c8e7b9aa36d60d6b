"""What the events of a training loop add up to: which model is trained by what, and how it goes.

Comes in: events (`hooks.py`). Goes out: a `Trace`. Holds no reference to a tensor of the loop beyond the
step that is recorded, and reads no number from the device before `trace()`, but for losses on the CPU.
"""

from __future__ import annotations

import math
import time
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor, nn

from trainlint.observe.origin import origin_in
from trainlint.observe.recorder import LARGEST_SAMPLE, LOSS_FUNCTIONS, Recorder
from trainlint.observe.trace import (
    ClipTrace,
    Incident,
    LossTrace,
    ModelTrace,
    OptimizerTrace,
    ParameterTrace,
    SiteTrace,
    Trace,
)
from trainlint.sites import Site, calling_site, construction_site
from trainlint.tree import tensors

FIRST_STEPS: Final = 5
MOST_RECORDED: Final = 128
MOST_LOSSES: Final = 4096
WINDOW: Final = 5
# A recorded step may cost so much more than a bare one, on average over all steps.
OVERHEAD: Final = 0.05
_WRAPPERS: Final = frozenset(
    {"DistributedDataParallel", "DataParallel", "FullyShardedDataParallel", "_FabricModule"}
)
# Their results differ between train and eval mode.
_SENSITIVE: Final = ("Dropout", "BatchNorm", "SyncBatch", "AlphaDropout", "FeatureAlpha")


class _Sentinel:
    """Lives as long as the autograd node whose metadata hold it."""

    __slots__ = ("__weakref__",)


@dataclass
class _Root:
    """A module that is called from outside of all others."""

    number: int
    module: weakref.ref[nn.Module]
    name: str
    site: Site | None
    paths: dict[int, str]
    names: dict[int, str]
    sensitive: bool
    layers: dict[str, Site | None]
    shapes: dict[str, tuple[int, int, bool]]
    # Names of parameters that an optimizer holds, and of others that had a gradient at a step.
    held: set[str] = field(default_factory=set)
    neglected: set[str] = field(default_factory=set)
    inputs: Any = None
    forwards: Counter[tuple[str, bool]] = field(default_factory=Counter)
    trained_in: Counter[bool] = field(default_factory=Counter)
    switched: dict[bool, Site | None] = field(default_factory=dict)
    # Forwards in a row, at one site, that no backward pass reached.
    idle: tuple[Any, int] = (None, 0)


@dataclass
class _Forward:
    """A forward that no backward pass has reached yet; `ends` number its outputs' autograd nodes."""

    root: _Root
    ends: frozenset[int]
    site: Site | None
    training: bool
    step: int


@dataclass
class _Optimizer:
    """An optimizer, and what it did."""

    held: weakref.ref[Any]
    kind: str
    site: Site | None
    groups: list[dict[str, Any]]
    steps: int = 0
    pending: int = 0
    backwards: Counter[int] = field(default_factory=Counter)
    rates: list[tuple[int, tuple[Any, ...]]] = field(default_factory=list)
    was_reset: bool = True
    closure: bool = False
    probes: tuple[weakref.ref[Tensor], ...] = ()

    def parameters(self) -> Iterator[Tensor]:
        optimizer = self.held()
        if optimizer is not None:
            for group in optimizer.param_groups:
                yield from group["params"]


@dataclass
class _Objective:
    """A loss function at one place, its values and what the targets are like. On the device."""

    kind: str
    site: Site | None
    values: list[tuple[int, Any]] = field(default_factory=list)
    counts: Tensor | None = None
    sums: list[Tensor] | None = None
    is_plain: bool = True

    def look_at(self, scores: Tensor, targets: Tensor, kwargs: Mapping[str, Any]) -> None:
        """Add up what the best constant answer depends on."""
        self.is_plain = self.is_plain and not any(
            kwargs.get(option) is not None for option in ("weight", "pos_weight")
        )
        if kwargs.get("label_smoothing") or kwargs.get("reduction", "mean") != "mean":
            self.is_plain = False
        if self.kind in ("cross_entropy", "nll_loss") and not targets.is_floating_point():
            classes = scores.shape[1] if scores.dim() > 1 else scores.shape[0]
            flat = targets.reshape(-1)
            flat = flat[(flat >= 0) & (flat < classes)]
            counts = torch.bincount(flat, minlength=classes)
            self.counts = counts if self.counts is None else self.counts + counts
        elif self.kind == "mse_loss" and scores.shape == targets.shape:
            wide = targets.to(torch.float64 if targets.device.type == "cpu" else torch.float32)
            # One constant for each output: a constant answer may differ from output to output.
            count = torch.full_like(wide[0], len(wide)) if wide.dim() else torch.ones_like(wide)
            squares = wide.square()
            sums = [
                count,
                wide.sum(0) if wide.dim() else wide,
                squares.sum(0) if wide.dim() else squares,
            ]
            if self.sums is not None and self.sums[0].shape == sums[0].shape:
                sums = [a + b for a, b in zip(self.sums, sums, strict=True)]
            self.sums = sums

    def guess(self) -> float | None:
        """The loss of the best constant answer."""
        if not self.is_plain:
            return None
        if self.counts is not None:
            shares = self.counts.double() / self.counts.sum()
            return float(torch.special.entr(shares).sum())
        if self.sums is not None:
            count, total, squares = self.sums
            return float((squares / count - (total / count).square()).mean())
        return None

    def trace(self) -> LossTrace:
        return LossTrace(
            self.kind,
            self.site,
            [step for step, _ in self.values],
            [float(value) for _, value in self.values],
            self.guess(),
            None if self.counts is None else len(self.counts),
        )


@dataclass
class _ParameterStep:
    """Figures of all parameters in one recorded step, on the device: (parameters, 3)."""

    step: int
    names: list[tuple[int, str]]
    figures: Tensor
    has_gradient: list[bool]


class TrainingObserver:
    """Follows a training loop. Give it to `hooks.observed`; `trace()` says what it saw.

    `models` restricts it to these roots. `period` records each so many steps after the first five; 0
    adapts it, so that recording costs about 5% on average. `after_step` is called with the number of
    steps after each; what it raises goes into the loop.
    """

    def __init__(
        self,
        models: Iterable[nn.Module] | None = None,
        *,
        period: int = 0,
        after_step: Callable[[int], None] | None = None,
    ) -> None:
        self.after_step = after_step
        self._only = None if models is None else [weakref.ref(model) for model in models]
        self._period = period
        self._adaptive = period == 0
        self.recorder = Recorder(self._loss_call)
        self._roots: dict[int, _Root] = {}
        self._optimizers: dict[int, _Optimizer] = {}
        self._pending: deque[_Forward] = deque(maxlen=512)
        self._incidents: dict[tuple[str, Any], Incident] = {}
        self._losses: list[tuple[int, Any]] = []
        self._objectives: dict[Any, _Objective] = {}
        self._clips: dict[Any, tuple[Site | None, float, list[Any]]] = {}
        self._scaler: Any = None
        self._parameter_steps: list[_ParameterStep] = []
        self._parameters: dict[tuple[int, str], dict[int, tuple[float | None, ...]]] = {}
        self._recorded: list[int] = []
        self._before: dict[int, Tensor] = {}
        self.step = 0
        self._is_recording = False
        self._next = 0
        self._clock = time.perf_counter()
        self._costs: dict[bool, deque[float]] = {True: deque(maxlen=16), False: deque(maxlen=16)}
        self._compiled = False
        # Until the first NaN or infinity.
        self._is_sound = True
        self._graphs: deque[tuple[int, weakref.ref[_Sentinel], Site | None]] = deque(maxlen=256)

    # ------------------------------------------------------------------ forwards

    @property
    def wants_modules(self) -> bool:
        return self.recorder.is_inside

    def forward_begins(self, module: nn.Module, site: Site | None) -> None:
        root = self._root(module, site)
        if root is None or not torch.is_grad_enabled() or self._compiled:
            return
        if hasattr(module, "_orig_mod"):
            self._compiled = True  # a mode on the stack would make it compile again
            return
        if self.step >= self._next:
            self._is_recording = True
        if self._is_recording and self.recorder.enter():
            self.recorder.begin_forward(root.number, root.paths, root.names)
            self.recorder.enter_module(_unwrapped(module))

    def module_begins(self, module: nn.Module) -> None:
        self.recorder.enter_module(module)

    def module_ends(self) -> None:
        self.recorder.leave_module()

    def forward_ends(self, module: nn.Module, inputs: Any, output: Any, site: Site | None) -> None:
        self.recorder.end_forward()
        root = self._root(module, site)
        if root is None:
            return
        training = _unwrapped(module).training
        root.inputs = inputs if self._is_sound else None
        ends = frozenset(_sequence(t.grad_fn) for _, t in tensors(output) if t.grad_fn is not None)
        if not ends:
            self._evaluated(root, site, training)
            return
        if len(self._pending) == self._pending.maxlen:
            self._unused(self._pending.popleft())
        self._pending.append(_Forward(root, ends, site, training, self.step))

    def _evaluated(self, root: _Root, site: Site | None, training: bool) -> None:
        """A forward without a graph. One alone may be a look; several in a row at a place are a pass."""
        root.forwards["evaluation", training] += 1
        key = None if site is None else site.key
        root.idle = (key, root.idle[1] + 1 if root.idle[0] == key else 1)
        if training and root.sensitive and root.trained_in and root.idle[1] >= 2:
            self._incident("train-mode-evaluation", site, model=root.name)

    def _unused(self, forward: _Forward) -> None:
        forward.root.forwards["evaluation", forward.training] += 1

    def _root(self, module: nn.Module, site: Site | None) -> _Root | None:
        module = _unwrapped(module)
        known = self._roots.get(id(module))
        if known is not None and known.module() is module:
            return known
        if self._only is not None and all(ref() is not module for ref in self._only):
            return None
        root = _Root(
            len(self._roots),
            weakref.ref(module),
            type(module).__name__,
            site,
            {id(m): path for path, m in module.named_modules()},
            {id(p): name for name, p in module.named_parameters()},
            any(type(m).__name__.startswith(_SENSITIVE) for m in module.modules()),
            {path: construction_site(m) for path, m in module.named_modules()},
            {n: (p.numel(), p.dim(), p.requires_grad) for n, p in module.named_parameters()},
        )
        self._roots[id(module)] = root
        return root

    def switches(self, module: nn.Module, training: bool, site: Site | None) -> None:
        root = self._roots.get(id(_unwrapped(module)))
        if root is not None:
            root.switched[training] = site
            root.idle = (None, 0)

    # ------------------------------------------------------------------ backward passes

    def leaves_mode(self) -> None:
        self.recorder.leave()

    def backward_begins(self, losses: list[Tensor], site: Site | None) -> None:
        reached, parameters = _walk(losses, {end for f in self._pending for end in f.ends})
        waiting: deque[_Forward] = deque(maxlen=self._pending.maxlen)
        for forward in self._pending:
            if forward.ends & reached:
                self._trained(forward)
            elif self.step - forward.step < 2:
                waiting.append(forward)
            else:
                self._unused(forward)
        self._pending = waiting
        for loss in losses:
            if loss.grad_fn is None:
                self._incident("detached-loss", site, leaf=loss.is_leaf and loss.requires_grad)
            else:
                sentinel = _Sentinel()
                metadata: Any = loss.grad_fn.metadata
                metadata["trainlint"] = sentinel
                self._graphs.append((self.step, weakref.ref(sentinel), site))
        for optimizer in self._optimizers.values():
            held = {id(p) for p in optimizer.parameters()}
            if held & parameters:
                optimizer.pending += 1
                optimizer.was_reset = optimizer.was_reset or _is_reset(optimizer)
        if len(losses) == 1 and losses[0].numel() == 1:
            self._keep_loss(losses[0].detach(), site)

    def _trained(self, forward: _Forward) -> None:
        root = forward.root
        root.forwards["train", forward.training] += 1
        root.idle = (None, 0)
        if root.trained_in[True] and not forward.training and root.sensitive:
            where = root.switched.get(False) or forward.site
            self._incident("eval-mode-training", where, model=root.name)
        root.trained_in[forward.training] += 1

    def _keep_loss(self, loss: Tensor, site: Site | None) -> None:
        value: Any = float(loss) if loss.device.type == "cpu" else loss.clone()
        if self._is_sound and isinstance(value, float) and not math.isfinite(value):
            self._is_sound = False
            self._find_origin("nan" if math.isnan(value) else "inf", site)
        self._losses.append((self.step, value))
        if len(self._losses) > MOST_LOSSES:
            del self._losses[1::2]

    def _find_origin(self, value: str, site: Site | None) -> None:
        """The first operation that gave a NaN or an infinity, in this forward or in one like it."""
        root = next((f.root for f in reversed(self._pending)), None) or self._latest()
        facts: dict[str, Any] = {"value": value}
        module = None if root is None else root.module()
        if root is None or module is None:
            self._incident("non-finite-loss", site, **facts)
            return
        broken = [n for n, p in module.named_parameters() if not bool(p.detach().isfinite().all())]
        if broken:
            self._incident(
                "non-finite-weights", site, **facts, parameters=broken[:3], model=root.name
            )
            return
        given = [t for _, t in tensors(root.inputs) if t.is_floating_point()] if root.inputs else []
        if not all(bool(t.detach().isfinite().all()) for t in given):
            self._incident("non-finite-input", root.site, **facts, model=root.name)
            return
        found = None if root.inputs is None else origin_in(module, *root.inputs)
        if found is not None:
            self._incident("non-finite-result", found.site, value=found.value, operation=found.operation,
                           least=found.least, largest=found.largest, model=root.name)  # fmt: skip
        else:
            self._incident("non-finite-loss", site, **facts, model=root.name)

    def _latest(self) -> _Root | None:
        return next((r for r in reversed(self._roots.values()) if r.inputs is not None), None)

    def backward_ends(self, losses: list[Tensor], error: BaseException | None) -> None:
        if error is not None and "a second time" in str(error):
            self._incident("graph-used-twice", calling_site())

    # ------------------------------------------------------------------ steps

    def optimizer_made(self, optimizer: Any, site: Site | None) -> None:
        groups = [
            {key: _plain(value) for key, value in group.items() if key != "params"}
            for group in optimizer.param_groups
        ]
        self._optimizers[id(optimizer)] = _Optimizer(
            weakref.ref(optimizer), type(optimizer).__name__, site, groups
        )

    def _known(self, optimizer: Any) -> _Optimizer:
        known = self._optimizers.get(id(optimizer))
        if known is None or known.held() is not optimizer:
            self.optimizer_made(optimizer, None)
        return self._optimizers[id(optimizer)]

    def step_begins(self, optimizer: Any, closure: bool, site: Site | None) -> None:
        known = self._known(optimizer)
        known.closure = known.closure or closure
        if closure:
            return
        if known.steps and known.pending and not known.was_reset:
            self._incident("stale-gradient", site, optimizer=known.kind)
        parameters = list(known.parameters())
        if known.steps < FIRST_STEPS or self._is_recording:
            self._look_at(known, parameters, site)
        if self._is_recording:
            self._before = {id(p): _part(p) for p in parameters}

    def _look_at(self, known: _Optimizer, parameters: list[Tensor], site: Site | None) -> None:
        held = {id(p) for p in parameters}
        for root in self._roots.values():
            root.held.update(name for id_, name in root.names.items() if id_ in held)
            module = root.module()
            if root.held and module is not None:
                root.neglected.update(
                    name
                    for name, p in module.named_parameters()
                    if name not in root.held and p.requires_grad and p.grad is not None
                )
        if known.pending and self.step and self._are_zero(parameters):
            self._incident("zeroed-before-step", site, optimizer=known.kind)
        if parameters and all(p.grad is None for p in parameters):
            others = [
                root.name
                for root in self._roots.values()
                if root.trained_in and held.isdisjoint(root.names) and _has_gradients(root)
            ]
            self._incident("step-without-gradients", site, optimizer=known.kind, elsewhere=others,
                           made=_place(known.site))  # fmt: skip

    @staticmethod
    def _are_zero(parameters: list[Tensor]) -> bool:
        """Whether all gradients are there and exactly zero. Looked at on the CPU alone: it waits."""
        given = [p.grad for p in parameters if p.grad is not None and not p.grad.is_sparse]
        return bool(given) and all(g.device.type == "cpu" and not bool(g.any()) for g in given)

    def step_ends(self, optimizer: Any) -> None:
        known = self._known(optimizer)
        if self._is_recording:
            self._note_parameters(known)
        rates = tuple(_plain(group["lr"]) for group in optimizer.param_groups if "lr" in group)
        if not known.rates or known.rates[-1][1] != rates:
            known.rates.append((self.step, rates))
            if len(known.rates) > MOST_LOSSES:
                del known.rates[1::2]
        known.backwards[known.pending] += 1
        known.pending = 0
        known.steps += 1
        known.was_reset = known.closure
        if known.steps <= FIRST_STEPS or not known.probes:
            candidates = sorted(
                (p for p in known.parameters() if p.grad is not None), key=lambda p: p.numel()
            )
            known.probes = tuple(weakref.ref(p) for p in candidates[:2])
        if known.steps > self.step:
            self._iteration_ends()

    def _note_parameters(self, known: _Optimizer) -> None:
        """Gradient norm, weight norm and relative change of each parameter, on the device."""
        owners = {
            id_: (root.number, name)
            for root in self._roots.values()
            for id_, name in root.names.items()
        }
        chosen = [p for p in known.parameters() if id(p) in owners and id(p) in self._before]
        if not chosen:
            return
        rows = []
        for parameter in chosen:
            before = self._before[id(parameter)]
            gradient = parameter.grad
            missing = before.new_full((), -1.0)
            rows.append(torch.stack([
                missing if gradient is None or gradient.is_sparse
                else torch.linalg.vector_norm(gradient.detach(), dtype=torch.float32).to(before.device),
                torch.linalg.vector_norm(before),
                torch.linalg.vector_norm(_part(parameter) - before),
            ]))  # fmt: skip
        self._parameter_steps.append(
            _ParameterStep(
                self.step,
                [owners[id(p)] for p in chosen],
                torch.stack(rows),
                [p.grad is not None for p in chosen],
            )
        )

    def _iteration_ends(self) -> None:
        now = time.perf_counter()
        self._costs[self._is_recording].append(now - self._clock)
        self._clock = now
        if self._is_recording:
            self.recorder.leave()
            self.recorder.close(self.step)
            self._recorded.append(self.step)
            self._before = {}
            if len(self._recorded) % WINDOW == 0:
                self.recorder.close_window()
            if len(self._recorded) % 32 == 0:
                self._drain()
        else:
            self.recorder.discard()
        self._count_graphs()
        self.step += 1
        self._is_recording = False
        if self.step < FIRST_STEPS:
            self._next = self.step
        elif self.step > self._next:
            self._next = self.step - 1 + self._gap()

    def _count_graphs(self) -> None:
        """Graphs of eight earlier steps that are still alive are being collected somewhere."""
        if self.step % 8 == 7:
            old = [(step, site) for step, ref, site in self._graphs
                   if ref() is not None and step < self.step - 2]  # fmt: skip
            if len({step for step, _ in old}) >= 8:
                self._incident("graph-kept-alive", old[-1][1], graphs=len(old))

    def _gap(self) -> int:
        """Steps from one recorded step to the next."""
        if not self._adaptive:
            return self._period
        recorded, bare = self._costs[True], self._costs[False]
        if len(recorded) < 3 or len(bare) < 3:
            return 3
        extra = _low(recorded) / max(_low(bare), 1e-9) - 1
        # Some steps stay bare, to compare with. Odd: models that take turns are then each recorded.
        return min(1001, max(3, math.ceil(extra / OVERHEAD))) | 1

    def _drain(self) -> None:
        self.recorder.drain()
        for noted in self._parameter_steps:
            rows = noted.figures.tolist()
            for key, (gradient, weight, change) in zip(noted.names, rows, strict=True):
                update = change / weight if weight else None
                arrived = gradient if gradient >= 0 else None
                self._parameters.setdefault(key, {})[noted.step] = (arrived, weight, update)
        self._parameter_steps.clear()
        for objective in self._objectives.values():
            objective.values = [(step, float(value)) for step, value in objective.values]
            if len(objective.values) > MOST_LOSSES:
                del objective.values[1::2]
        if len(self._recorded) > MOST_RECORDED:
            self.recorder.keep_every_other()
            self._recorded = self._recorded[::2]
            for key, by_step in self._parameters.items():
                self._parameters[key] = {s: by_step[s] for s in sorted(by_step)[::2]}

    # ------------------------------------------------------------------ clipping, schedules, data

    def clips(self, parameters: list[Tensor], limit: float, norm: Any, site: Site | None) -> None:
        ids = {id(p) for p in parameters}
        for known in self._optimizers.values():
            held = {id(p) for p in known.parameters()}
            if known.steps and not known.pending and ids & held:
                self._incident("clipped-after-step", site, optimizer=known.kind)
        key = None if site is None else site.key
        _, _, norms = self._clips.setdefault(key, (site, limit, []))
        if norm is not None and len(norms) < MOST_LOSSES:
            norms.append(norm.detach() if isinstance(norm, Tensor) else norm)

    def scales(self, scaler: Any) -> None:
        self._scaler = weakref.ref(scaler)

    def schedules(self, scheduler: Any, site: Site | None) -> None:
        known = self._optimizers.get(id(getattr(scheduler, "optimizer", None)))
        if known is not None and known.steps == 0:
            self._incident("scheduled-before-step", site, scheduler=type(scheduler).__name__)

    def passes(self, loader: Any, site: Site | None) -> None:
        pass

    # ------------------------------------------------------------------ losses

    def _loss_call(
        self,
        name: str,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        result: Any,
        root: int | None,
    ) -> None:
        first = args[0] if args else kwargs.get("input")
        second = args[1] if len(args) > 1 else kwargs.get("target", kwargs.get("other"))
        if not isinstance(first, Tensor) or not isinstance(second, Tensor):
            return
        if name not in ("cross_entropy", "nll_loss") and root is None:
            self._broadcast(name, first, second)
        if name in LOSS_FUNCTIONS and isinstance(result, Tensor) and result.requires_grad:
            self._objective(name, first, second, kwargs, result)
        softened = {
            "cross_entropy": "SoftmaxBackward0",
            "binary_cross_entropy_with_logits": "SigmoidBackward0",
        }
        made_by = _maker(first)
        if softened.get(name) is not None and made_by == softened[name]:
            kind = "double-softmax" if name == "cross_entropy" else "double-sigmoid"
            self._incident(kind, calling_site())
        if name == "nll_loss" and made_by == "SoftmaxBackward0":
            self._incident("missing-log-softmax", calling_site())

    def _objective(
        self, name: str, scores: Tensor, targets: Tensor, kwargs: Mapping[str, Any], loss: Tensor
    ) -> None:
        site = calling_site()
        key = (name, None if site is None else site.key)
        known = self._objectives.get(key)
        if known is None:
            known = self._objectives[key] = _Objective(name, site)
        if loss.numel() == 1:
            known.values.append((self.step, loss.detach()))
        known.look_at(scores.detach(), targets.detach(), kwargs)

    def _broadcast(self, name: str, first: Tensor, second: Tensor) -> None:
        if first.requires_grad == second.requires_grad or {first.dim(), second.dim()} != {1, 2}:
            return
        table, line = (first, second) if first.dim() == 2 else (second, first)
        if table.shape[1] == 1 and table.shape[0] == line.shape[0] > 1:
            self._incident("broadcast-loss", calling_site(), operation=name,
                           shapes=[list(first.shape), list(second.shape)])  # fmt: skip

    # ------------------------------------------------------------------ the end

    def _incident(self, kind: str, site: Site | None, **facts: Any) -> None:
        key = (kind, None if site is None else site.key)
        before = self._incidents.get(key)
        if before is None:
            self._incidents[key] = Incident(kind, site, 1, self.step, facts)
        else:
            self._incidents[key] = Incident(kind, site, before.count + 1, before.step, before.facts)

    def trace(self) -> Trace:
        """What was seen. May be asked at any time; moves what is on the device to the host."""
        self._drain()
        return Trace(
            steps=self.step,
            recorded=list(self._recorded),
            models=[self._model(root) for root in self._roots.values()],
            optimizers=[
                OptimizerTrace(o.kind, o.site, o.steps, dict(o.backwards), o.groups,
                               [(step, tuple(map(float, rates))) for step, rates in o.rates])
                for o in self._optimizers.values()
            ],
            losses=[(step, float(value)) for step, value in self._losses],
            clips=[
                ClipTrace(site, limit, len(norms), [min(1.0, limit / (float(n) + 1e-6)) for n in norms])
                for site, limit, norms in self._clips.values()
            ],
            objectives=[objective.trace() for objective in self._objectives.values()],
            incidents=list(self._incidents.values()),
            notes=list(self._notes()),
        )  # fmt: skip

    def _notes(self) -> Iterator[str]:
        if self._compiled:
            yield "compiled code is not looked into: only losses, steps and gradients of parameters"
        if self.recorder.refused:
            yield "results were not recorded where another torch function mode was active"
        if self.recorder.problem is not None:
            yield f"recording stopped: {type(self.recorder.problem).__name__}: {self.recorder.problem}"

    def _model(self, root: _Root) -> ModelTrace:
        sites = []
        for key, record in self.recorder.sites.items():
            if record.root == root.number:
                steps, columns = self.recorder.series(key)
                means, squares = columns["mean"], columns["rms"]
                columns["std"] = [
                    None if m is None or r is None else math.sqrt(max(0.0, r * r - m * m))
                    for m, r in zip(means, squares, strict=True)
                ]
                dead = [float(share) for share in record.windows]
                sites.append(
                    SiteTrace(record.place, record.site, record.weight, steps, dead=dead, **columns)
                )
        return ModelTrace(
            root.name, root.site, bool(root.held), dict(root.forwards), sites,
            [self._parameter(root, name) for name in root.shapes], root.layers,
            sorted(root.neglected),
        )  # fmt: skip

    def _parameter(self, root: _Root, name: str) -> ParameterTrace:
        by_step = self._parameters.get((root.number, name), {})
        steps = sorted(by_step)
        gradient, weight, update = ([by_step[s][i] for s in steps] for i in range(3))
        return ParameterTrace(
            name, *root.shapes[name], name in root.held, steps,
            gradient, weight, update, sum(g is not None for g in gradient),
        )  # fmt: skip


def _unwrapped(module: nn.Module) -> nn.Module:
    while True:
        inner = getattr(module, "_orig_mod", None)
        if inner is None and type(module).__name__ in _WRAPPERS:
            inner = module._modules.get("module") or module._modules.get("_original_module")
        if inner is None:
            return module
        module = inner


def _sequence(node: Any) -> int:
    return int(node._sequence_nr())


def _walk(
    losses: Iterable[Tensor], wanted: set[int], most: int = 20000
) -> tuple[set[int], set[int]]:
    """Which of the wanted nodes lie below the losses, and the `id`s of the parameters there."""
    seen: set[Any] = set()
    found: set[int] = set()
    parameters: set[int] = set()
    stack = [loss.grad_fn for loss in losses if loss.grad_fn is not None]
    while stack and len(seen) < most:
        node: Any = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if (number := _sequence(node)) in wanted:
            found.add(number)
        variable = getattr(node, "variable", None)
        if variable is not None:
            parameters.add(id(variable))
        stack.extend(below for below, _ in node.next_functions if below is not None)
    return found, parameters


def _is_reset(optimizer: _Optimizer) -> bool:
    """Whether the gradients are gone, or zero, before a backward pass adds to them."""
    probes = [probe() for probe in optimizer.probes]
    return not probes or any(
        p is None or p.grad is None or (p.device.type == "cpu" and not bool(p.grad.any()))
        for p in probes
    )


def _has_gradients(root: _Root) -> bool:
    module = root.module()
    return module is not None and any(p.grad is not None for p in module.parameters())


def _maker(tensor: Tensor) -> str:
    """The operation that made the values, behind rearrangements of them."""
    views = (
        "View",
        "Squeeze",
        "Unsqueeze",
        "Reshape",
        "Transpose",
        "Permute",
        "T",
        "ToCopy",
        "Clone",
    )
    node = tensor.grad_fn
    for _ in range(4):
        if (
            node is None
            or node.name().removesuffix("0").removesuffix("1").removesuffix("Backward") not in views
        ):
            break
        node = node.next_functions[0][0]
    return "" if node is None else node.name()


def _part(parameter: Tensor) -> Tensor:
    """At most 8192 elements of it, copied."""
    flat = parameter.detach().reshape(-1)
    stride = -(-flat.numel() // LARGEST_SAMPLE) | 1
    return flat[::stride].to(torch.float32, copy=True)


def _plain(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def _place(site: Site | None) -> str | None:
    return None if site is None else f"{site.filename}:{site.row}"


def _low(values: Iterable[float]) -> float:
    """The lower quartile: what a step costs where nothing else got in the way."""
    ordered = sorted(values)
    return ordered[len(ordered) // 4]
