"""What the events of a training loop add up to: which model is trained by what, and how it goes.

Comes in: events (`hooks.py`). Goes out: a `Trace`. Holds no reference to a tensor of the loop beyond the
step that is recorded, and reads no number from the device before `trace()`, but for losses on the CPU.
"""

from __future__ import annotations

import contextlib
import math
import sys
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Final

import torch
from torch import Tensor, nn

from trainlint.data.facts import Data
from trainlint.generalization.curves import Generalization
from trainlint.observe.autograd import MARK, Sentinel, sequence, walk
from trainlint.observe.checkpoints import Checkpoints
from trainlint.observe.datasets import Datasets
from trainlint.observe.evaluations import Evaluations
from trainlint.observe.expressions import Expressions
from trainlint.observe.failures import failure_in
from trainlint.observe.keepers import keeper_of_graphs
from trainlint.observe.objectives import Objectives
from trainlint.observe.origin import Call, Origin, backward_origin_in, origin_in
from trainlint.observe.parameters import ParameterRecorder
from trainlint.observe.recorder import Recorder
from trainlint.observe.roots import (
    Forward,
    Idle,
    KnownLoader,
    KnownOptimizer,
    Root,
    dropout_in,
    is_sensitive,
    note_unused,
    unwrapped,
)
from trainlint.observe.sharding import has_others, here, is_spread
from trainlint.observe.trace import (
    ClipTrace,
    Incident,
    InputTrace,
    LoaderTrace,
    LossTrace,
    ModelTrace,
    OptimizerTrace,
    ParameterTrace,
    ScheduleTrace,
    SiteTrace,
    Trace,
)
from trainlint.sites import Site, calling_site, construction_site
from trainlint.tree import tensors

FIRST_STEPS: Final = 5
MOST_RECORDED: Final = 128
MOST_LOSSES: Final = 4096
MOST_SCHEDULES: Final = 64
MOST_LOADERS: Final = 64
# Forwards of one step beyond this are not looked into; nor are those of a loop without steps.
MOST_FORWARDS: Final = 128
# A `GradScaler` that has left out so many steps in a row, below a scale of 1, is not finding its scale.
MOST_SKIPPED: Final = 3
WINDOW: Final = 5
_SURE_AFTER: Final = 3
_MOST_WALKS: Final = 256
# What has come out alike in the first steps, is looked at in every so many recorded ones.
_LOOK_AGAIN: Final = 8
# What recording may cost, on average over all steps. The other two of the five parts in a hundred are for
# what is done at each step.
OVERHEAD: Final = 0.03
# Seconds of recording that no one will miss, beside what Python needs to start and to import torch.
FREE: Final = 1.0


class TrainingObserver:
    """Follows a training loop. Give it to `hooks.observed`; `trace()` says what it saw.

    `models` restricts it to these roots. `period` records each so many steps after the first five; 0
    adapts it, so that recording costs about 5% on average, and so many `free` seconds besides: short runs
    of small models would show too little else. `after_step` is called with the number of steps after each;
    what it raises goes into the loop. `before_training` is called once for each model, before the first
    step that trains it, with the arguments of its latest forward. Up to `measuring` seconds, and 1% of the
    run's time, go to losses of single samples at validation passes; by default half of `free`.
    """

    def __init__(
        self,
        models: Iterable[nn.Module] | None = None,
        *,
        period: int = 0,
        free: float = 0.0,
        after_step: Callable[[int], None] | None = None,
        before_training: Callable[[nn.Module, Any, Any], None] | None = None,
        measuring: float | None = None,
    ) -> None:
        self.after_step = after_step
        self._before_training = before_training
        self._awaited: KnownOptimizer | None = None
        self._only = None if models is None else [weakref.ref(unwrapped(model)) for model in models]
        self._period = period
        self._adaptive = period == 0
        self._free = free
        self.recorder = Recorder(self._loss_called)
        self._objectives = Objectives(
            self._incident, self.recorder.maker_of, self._latest_inputs, self._latest_loader
        )
        self._evaluations = Evaluations(self.recorder)
        self._checkpoints = Checkpoints(free / 2 if measuring is None else measuring)
        self._datasets = Datasets()
        self._loaders: list[KnownLoader] = []
        self._loader: int | None = None
        self._parameters = ParameterRecorder()
        self._roots: dict[int, Root] = {}
        self._known_owners: dict[int, tuple[int, str]] | None = None
        self._optimizers: dict[int, KnownOptimizer] = {}
        self._pending: deque[Forward] = deque(maxlen=512)
        self._incidents: dict[tuple[str, Any], Incident] = {}
        self._losses: list[tuple[int, Any]] = []
        self._clips: dict[Any, tuple[Site | None, float, list[Any], set[str]]] = {}
        self._schedules: dict[
            tuple[str, int, Any], tuple[Site | None, KnownOptimizer | None, int, int, int | None]
        ] = {}
        self._scaler: Any = None
        # The last losses that it scaled, and what they were before.
        self._scaled: list[tuple[weakref.ref[Tensor], Tensor]] = []
        self._recorded: list[int] = []
        self._walks: dict[Any, tuple[tuple[frozenset[int], frozenset[int]], int]] = {}
        self.step = 0
        self._is_recording = False
        self._next = 0
        self._forwards = 0
        # Of this thread alone: what others wait or work for, says nothing of what we cost.
        self._clock = time.thread_time()
        self._thinned = 1
        self._costs: dict[bool, deque[float]] = {True: deque(maxlen=16), False: deque(maxlen=16)}
        self._compiled = False
        # Until the first NaN or infinity.
        self._is_sound = True
        self._expressions = Expressions()
        # The number of the last forward's last node.
        self._ended = -1
        self.recorder.outside = self._outside
        self._backward_site: Site | None = None
        # The variable that keeps graphs alive, and where it gets them, once that was looked for.
        self._keeper: tuple[str, Site | None] | None = None
        # Whether other processes hold parts of parameters.
        self._is_spread = False
        self._graphs: deque[tuple[int, weakref.ref[Sentinel], Site | None]] = deque(maxlen=256)

    def pauses(self) -> None:
        """The loop is no longer watched."""
        self._checkpoints.pauses()

    def resumes(self) -> None:
        """It is watched again."""
        self._checkpoints.resumes()

    # ------------------------------------------------------------------ forwards

    @property
    def wants_modules(self) -> bool:
        return self.recorder.is_inside

    def forward_begins(self, module: nn.Module, site: Site | None) -> None:
        self._evaluations.leave()
        root = self._root(module, site)
        if root is None or not torch.is_grad_enabled():
            if root is not None and root.trained_in:
                self._checkpoints.evaluation_begins(root)
                self._datasets.evaluated()
            return
        self._checkpoints.training_begins(root, self.step)
        if self.step >= self._next:
            self._is_recording = True
        self._forwards += 1
        if self._is_recording and self._forwards <= MOST_FORWARDS and self.recorder.enter():
            root.random_state = torch.get_rng_state() if self._is_sound else None
            self.recorder.begin_forward(root.number, root.paths, root.names, root.made)
            self.recorder.enter_module(unwrapped(module))

    def module_begins(self, module: nn.Module) -> None:
        self.recorder.enter_module(module)

    def module_ends(self) -> None:
        self.recorder.leave_module()

    def enters_compiled(self) -> None:
        self._compiled = True
        self.recorder.leave()

    def forward_ends(self, module: nn.Module, inputs: Any, output: Any, site: Site | None) -> None:
        self.recorder.end_forward()
        if self._is_recording and torch.is_grad_enabled() and self._forwards <= MOST_FORWARDS:
            self.recorder.enter()  # compiled code may have ended it: the losses come next
        root = self._root(module, site)
        if root is None:
            return
        training = unwrapped(module).training
        root.inputs = inputs if self._is_sound else None
        root.autocast = _autocast()
        ends = frozenset(sequence(t.grad_fn) for _, t in tensors(output) if t.grad_fn is not None)
        given = next((weakref.ref(t) for _, t in tensors(inputs)), None)
        if not ends:
            self._evaluated(root, site, training, given)
            if root.trained_in and not self._compiled and not torch.is_grad_enabled():
                self._checkpoints.evaluated(root, module, inputs, output)
                loss = self._evaluations.forward(root.number, output, self.step, site)
                if loss is not None:
                    with self._aside():
                        self._checkpoints.validated_itself(loss, self.step)
            return
        self._evaluations.trained_forward(root.number, output)
        self._ended = max(ends)
        if self._is_recording:
            self._expressions.begin(ends)
        if len(self._pending) == self._pending.maxlen:
            self._unused(self._pending.popleft())
        known = None if given is None else given()
        samples = 0 if known is None or not known.dim() else len(known)
        forward = Forward(root, ends, site, training, self.step, given, root.is_asked, samples)
        self._pending.append(forward)
        if self._is_recording and not self._compiled:
            self._checkpoints.trains_on(root, inputs, output, forward)

    def _evaluated(
        self, root: Root, site: Site | None, training: bool, given: weakref.ref[Tensor] | None
    ) -> None:
        """A forward without a graph. One alone may be a look; several in a row at a place are a pass."""
        root.forwards["evaluation", training] += 1
        if not training or not root.sensitive or not root.trained_in or root.is_asked:
            return
        key = None if site is None else site.key
        if root.idle is None or root.idle.key != key:
            root.idle = Idle(key, site, self.step, given)
            return
        root.idle.goes_on(self.step, given)
        if root.idle.row == 2:
            self._incident("train-mode-evaluation", site, model=root.name)

    def _unused(self, forward: Forward) -> None:
        root = forward.root
        root.forwards["evaluation", forward.training] += 1
        if root.trained_in and not (forward.training and (forward.asked or not root.sensitive)):
            note_unused(root.unused, forward)

    def _unused_graphs(self) -> Iterator[Incident]:
        """Passes of forwards with a graph, at places where the model is never trained."""
        for root in self._roots.values():
            unused = {key: replace(idle) for key, idle in root.unused.items()}
            for forward in self._pending:
                if forward.root is root and root.trained_in and not (
                    forward.training and (forward.asked or not root.sensitive)
                ):  # fmt: skip
                    note_unused(unused, forward)
            for (key, training), idle in unused.items():
                if idle.passes and key not in root.trained_at:
                    kind = "train-mode-evaluation" if training else "unused-graph"
                    yield Incident(kind, idle.site, idle.passes, idle.first, {"model": root.name})

    def _root(self, module: nn.Module, site: Site | None) -> Root | None:
        module = unwrapped(module)
        known = self._roots.get(id(module))
        if known is not None and known.module() is module:
            return known
        if self._only is not None and all(ref() is not module for ref in self._only):
            return None
        root = Root(
            len(self._roots),
            weakref.ref(module),
            type(module).__name__,
            site,
            {id(m): path for path, m in module.named_modules()},
            {id(p): name for name, p in module.named_parameters()},
            any(is_sensitive(m) for m in module.modules()),
            {path: construction_site(m) for path, m in module.named_modules()},
            {n: (p.numel(), p.dim(), p.requires_grad) for n, p in module.named_parameters()},
            {
                path: construction_site(m)
                for path, m in module.named_modules()
                if type(m).__module__.startswith("torch.nn.")
            },
        )
        root.dropout = dropout_in(module)
        self._roots[id(module)] = root
        self._known_owners = None
        return root

    def switches(self, module: nn.Module, training: bool, site: Site | None) -> None:
        root = self._roots.get(id(unwrapped(module)))
        if root is not None:
            root.switched[training] = site
            root.is_asked = training
            root.idle = None
        self._evaluations.leave()
        self._checkpoints.switches()

    # ------------------------------------------------------------------ backward passes

    def leaves_mode(self) -> None:
        self.recorder.leave()

    def backward_begins(self, losses: list[Tensor], site: Site | None) -> None:
        self._backward_site = site
        self._evaluations.trains()
        self._checkpoints.backward_begins()
        self._datasets.trained()
        reached, stepped = self._made_of(losses, site)
        waiting: deque[Forward] = deque(maxlen=self._pending.maxlen)
        for place, forward in enumerate(self._pending):
            if place in reached:
                self._trained(forward)
            elif self.step - forward.step < 2:
                waiting.append(forward)
            else:
                self._unused(forward)
        self._pending = waiting
        self._checkpoints.backward_ends()
        for loss in losses:
            if loss.grad_fn is None:
                self._detached(loss, site)
            else:
                sentinel = Sentinel()
                metadata: Any = loss.grad_fn.metadata
                metadata[MARK] = sentinel
                self._graphs.append((self.step, weakref.ref(sentinel), site))
        for key, optimizer in self._optimizers.items():
            if key in stepped:
                optimizer.pending += 1
                optimizer.backward_at[_key(site)] = site
                optimizer.was_reset = optimizer.was_reset or _is_reset(optimizer)
        if len(losses) == 1 and losses[0].numel() == 1:
            self._keep_loss(losses[0], site)

    def _made_of(
        self, losses: list[Tensor], site: Site | None
    ) -> tuple[frozenset[int], frozenset[int]]:
        """Places of the pending forwards, and keys of the optimizers, that the losses reach.

        The walk through the graph is left out where the same line, behind forwards at the same lines,
        has come to the same result three times, but for every eighth recorded step.
        """
        key = (
            None if site is None else site.key,
            tuple((f.root.number, None if f.site is None else f.site.key) for f in self._pending),
        )
        known, times = self._walks.get(key, (None, 0))
        is_asked_again = self._is_recording and not len(self._recorded) % _LOOK_AGAIN
        if known is not None and times >= _SURE_AFTER and not is_asked_again:
            return known
        reached, parameters = walk(losses, {end for f in self._pending for end in f.ends})
        found = (
            frozenset(place for place, f in enumerate(self._pending) if f.ends & reached),
            frozenset(
                number
                for number, optimizer in self._optimizers.items()
                if any(id(p) in parameters for p in optimizer.parameters())
            ),
        )
        if len(self._walks) < _MOST_WALKS:
            self._walks[key] = (found, times + 1 if found == known else 1)
        return found

    def _trained(self, forward: Forward) -> None:
        root = forward.root
        self._checkpoints.trained(forward)
        root.forwards["train", forward.training] += 1
        root.idle = None
        root.is_asked = False
        root.modes[forward.training] += 1
        root.trained_in[forward.training] += 1
        root.trained_at[_key(forward.site)] = forward.site

    def _look_at_modes(self, known: KnownOptimizer, site: Site | None) -> None:
        """Whether all forwards behind a step ran in eval mode, though those of earlier steps did not."""
        for root in self._roots.values():
            if root.number not in known.roots or not root.modes:
                continue
            if root.modes[True]:
                root.steps_in_train_mode += 1
            elif root.steps_in_train_mode and root.sensitive:
                where = root.switched.get(False) or site
                self._incident("eval-mode-training", where, model=root.name,
                               trained=root.steps_in_train_mode)  # fmt: skip
            root.modes.clear()

    def _detached(self, loss: Tensor, site: Site | None) -> None:
        if loss.requires_grad and loss.numel() != 1:
            return
        ran = [root for root in self._roots.values() if root.forwards or root.trained_in]
        modules = [root.module() for root in ran]
        frozen = bool(modules) and not any(
            p.requires_grad for module in modules if module is not None for p in module.parameters()
        )
        graph = any(forward.step == self.step for forward in self._pending)
        self._incident("loss-without-graph", site, leaf=loss.requires_grad, graph=graph, frozen=frozen,
                       grad_mode=torch.is_grad_enabled())  # fmt: skip

    def _unscaled(self, loss: Tensor) -> Tensor:
        """The loss before a `GradScaler` multiplied it, where it was that one."""
        for scaled, before in self._scaled:
            if scaled() is loss:
                return before
        return loss

    def _keep_loss(self, loss: Tensor, site: Site | None) -> None:
        number = self._unscaled(loss).detach()
        value: Any = float(number) if number.device.type == "cpu" else number.clone()
        if self._is_sound and isinstance(value, float) and not math.isfinite(value):
            self._is_sound = False
            self._find_origin("nan" if math.isnan(value) else "inf", loss, site)
        self._losses.append((self.step, value))
        if len(self._losses) > MOST_LOSSES:
            del self._losses[1::2]

    def _find_origin(self, value: str, loss: Tensor, site: Site | None) -> None:
        """The first operation that gave a NaN or an infinity, in this forward or in one like it."""
        root = next((f.root for f in reversed(self._pending)), None) or self._latest()
        facts: dict[str, Any] = {"value": value}
        module = None if root is None else root.module()
        if root is None or module is None:
            self._incident("not-finite-loss", site, **facts)
            return
        broken = [
            n for n, p in module.named_parameters() if not bool(here(p.detach()).isfinite().all())
        ]
        if broken:
            self._incident(
                "not-finite-weights", site, **facts, parameters=broken[:3], model=root.name
            )
            return
        given = [t for _, t in tensors(root.inputs) if t.is_floating_point()] if root.inputs else []
        if not all(bool(t.detach().isfinite().all()) for t in given):
            self._incident("not-finite-input", root.site, **facts, model=root.name)
            return
        found, is_finite = self._run_again(module, root, origin_in) or (None, True)
        if is_finite:
            found = self._expressions.origin(backward=False)
            if found is None and not self._is_recording:
                with contextlib.suppress(RuntimeError):  # what was kept may have been written over
                    found = self._expressions.origin_in_graph(loss, self._ended)
                if found is not None and found.site is None:
                    found = replace(found, site=site)
        if found is not None:
            self._broke(found, root.name if not is_finite else None)
        else:
            kind = "not-finite-loss" if is_finite else "not-finite-output"
            self._incident(kind, site if is_finite else root.site, **facts, model=root.name)

    @staticmethod
    def _run_again(module: nn.Module, root: Root, search: Callable[[nn.Module, Call], Any]) -> Any:
        """What the search finds in a forward like the last. Of several processes, one alone would wait."""
        if root.inputs is None or has_others():
            return None
        args, kwargs = root.inputs
        return search(module, Call(args, kwargs, root.autocast, root.random_state))

    def _broke(self, origin: Origin, model: str | None) -> None:
        self._incident("not-finite-result", origin.site, value=origin.value, operation=origin.operation,
                       least=origin.least, largest=origin.largest, backward=origin.backward,
                       model=model)  # fmt: skip

    def _outside(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        if self._is_recording and self._is_sound:
            self._expressions.look_at(func, args, kwargs, result)

    def _look_at_gradients(self, known: KnownOptimizer, parameters: list[Tensor]) -> None:
        """The step is about to make weights NaN, for good: what the gradient is NaN of."""
        scaler = None if self._scaler is None else self._scaler()
        if not self._is_sound or (scaler is not None and scaler.is_enabled()):
            return  # a scaler looks for itself
        guard = None if known.guard is None else known.guard()
        few = parameters if known.steps < FIRST_STEPS else [] if guard is None else [guard]
        if not all(map(_has_finite_gradient, few)):
            self._find_gradient_origin(parameters)

    def _find_gradient_origin(self, parameters: list[Tensor]) -> None:
        self._is_sound = False
        broken = {id(p): p for p in parameters if not _has_finite_gradient(p)}
        origin = self._expressions.origin(backward=True)
        if origin is not None:
            self._broke(origin, None)
            return
        roots = [root for root in self._roots.values() if not broken.keys().isdisjoint(root.names)]
        for root in roots:
            module = root.module()
            if module is not None:
                origin = self._run_again(module, root, backward_origin_in)
                if origin is not None:
                    self._broke(origin, root.name)
                    return
        names = [root.names[key] for root in roots for key in broken if key in root.names]
        grads = [here(p.grad) for p in broken.values() if p.grad is not None]
        is_nan = any(bool(g.isnan().any()) for g in grads)
        self._incident("not-finite-gradient", self._backward_site, value="nan" if is_nan else "inf",
                       parameters=names[:3], model=roots[0].name if roots else None)  # fmt: skip

    def _latest(self) -> Root | None:
        return next((r for r in reversed(self._roots.values()) if r.inputs is not None), None)

    def backward_ends(self, losses: list[Tensor], error: BaseException | None) -> None:
        for known in self._optimizers.values():
            if known.pending and (known.steps < FIRST_STEPS or self._is_recording):
                known.arrived = _has_arrived(known)
        if error is not None and "a second time" in str(error):
            self._incident("graph-used-twice", calling_site())
        if self._awaited is not None:
            # In the closure of its first step, which has changed nothing so far.
            self._note_held(self._awaited)
            self._look_before(self._awaited)
            self._awaited = None

    def _look_before(self, known: KnownOptimizer) -> None:
        """Hand over the roots that this optimizer is about to train, each once, with their inputs."""
        if self._before_training is None or self._compiled or known.steps >= FIRST_STEPS:
            return
        for root in self._roots.values():
            module = root.module()
            if root.was_shown or root.number not in known.roots or not root.trained_in:
                continue
            if module is None or root.inputs is None or not root.trained_in[module.training]:
                continue
            root.was_shown = True
            started = time.thread_time()
            args, kwargs = root.inputs
            self._before_training(module, args, kwargs)
            self._clock += time.thread_time() - started

    # ------------------------------------------------------------------ steps

    def optimizer_made(self, optimizer: Any, site: Site | None) -> None:
        groups = [
            {key: _plain(value) for key, value in group.items() if key != "params"}
            for group in optimizer.param_groups
        ]
        self._optimizers[id(optimizer)] = KnownOptimizer(
            weakref.ref(optimizer), type(optimizer).__name__, site, groups
        )

    def _known(self, optimizer: Any) -> KnownOptimizer:
        known = self._optimizers.get(id(optimizer))
        if known is None or known.held() is not optimizer:
            self.optimizer_made(optimizer, None)
        return self._optimizers[id(optimizer)]

    def step_begins(self, optimizer: Any, closure: bool, site: Site | None) -> None:
        known = self._known(optimizer)
        known.closure = known.closure or closure
        known.stepped_at[_key(site)] = site
        if closure:
            if known.steps < FIRST_STEPS:
                self._note_held(known)
                self._awaited = known
            self._look_at_modes(known, site)
            return
        if known.steps and known.pending and not known.was_reset:
            self._incident("gradients-left", site, optimizer=known.kind)
        parameters = list(known.parameters())
        self._look_at_gradients(known, parameters)
        if known.steps < FIRST_STEPS or self._is_recording:
            self._look_at(known, parameters, site)
        self._look_before(known)
        self._look_at_modes(known, site)
        if self._is_recording:
            whole = [p for p in parameters if not is_spread(p)]
            self._is_spread = self._is_spread or len(whole) < len(parameters)
            scale = getattr(known.held(), "grad_scale", None)  # of a `GradScaler`, in fused code
            self._parameters.begin(whole, self._owners(), scale)

    def _look_at(self, known: KnownOptimizer, parameters: list[Tensor], site: Site | None) -> None:
        is_asked_again = not len(self._recorded) % _LOOK_AGAIN
        if known.steps < FIRST_STEPS or known.among != len(self._roots) or is_asked_again:
            self._note_held(known)
            self._note_neglected()
        are_gone = bool(parameters) and all(p.grad is None for p in parameters)
        if known.pending and known.arrived and (are_gone or self._are_zero(parameters)):
            self._incident("zeroed-before-step", site, optimizer=known.kind)
        elif are_gone:
            held = {id(p) for p in parameters}
            others = [
                root.name
                for root in self._roots.values()
                if root.trained_in and held.isdisjoint(root.names) and _has_gradients(root)
            ]
            self._incident("step-without-gradients", site, optimizer=known.kind, elsewhere=others,
                           made=_place(known.site))  # fmt: skip

    def _note_held(self, known: KnownOptimizer) -> None:
        """Which parameters of which roots it holds, and in which of its groups."""
        optimizer = known.held()
        if optimizer is None:
            return
        known.among = len(self._roots)
        groups = {
            id(p): i for i, group in enumerate(optimizer.param_groups) for p in group["params"]
        }
        for root in self._roots.values():
            for id_, name in root.names.items():
                if id_ in groups:
                    root.held.add(name)
                    known.roots.add(root.number)
                    root.groups[name] = (known, groups[id_])

    def _note_neglected(self) -> None:
        """Which parameters have a gradient that no optimizer is known to hold."""
        for root in self._roots.values():
            module = root.module()
            if root.held and module is not None:
                for name, p in module.named_parameters():
                    if name not in root.held and p.requires_grad and p.grad is not None:
                        root.neglected.setdefault(name, _few(p))

    @staticmethod
    def _are_zero(parameters: list[Tensor]) -> bool:
        """Whether all gradients are there and exactly zero. Looked at on the CPU alone: it waits."""
        given = [here(p.grad) for p in parameters if p.grad is not None and not p.grad.is_sparse]
        return bool(given) and all(g.is_cpu for g in given) and not _is_some_not_zero(given)

    def step_ends(self, optimizer: Any) -> None:
        known = self._known(optimizer)
        if known.unreached is None:
            known.unreached = {id(p): weakref.ref(p) for p in known.parameters()}
        if known.unreached:
            known.unreached = {
                key: ref
                for key, ref in known.unreached.items()
                if (p := ref()) is not None and p.grad is None
            }
        if self._is_recording:
            self._parameters.end(self.step)
        rates = tuple(
            _plain(group["lr"])
            for group in optimizer.param_groups
            if isinstance(group.get("lr"), (int, float, Tensor))
        )
        if not known.rates or known.rates[-1][1] != rates:
            known.rates.append((self.step, rates))
            if len(known.rates) > MOST_LOSSES:
                del known.rates[1::2]
        known.backwards[known.pending] += 1
        known.pending = 0
        known.arrived = False
        known.steps += 1
        known.was_reset = known.closure
        if known.steps <= FIRST_STEPS or not known.probes:
            candidates = sorted(
                (p for p in known.parameters() if p.grad is not None), key=lambda p: p.numel()
            )
            known.probes = tuple(weakref.ref(p) for p in candidates[:2])
            first = next((p for p in known.parameters() if p.grad is not None), None)
            known.guard = None if first is None else weakref.ref(_guard(first, candidates))
        if known.steps > self.step:
            self._iteration_ends()

    def _owners(self) -> dict[int, tuple[int, str]]:
        """The root and the name of each parameter, by `id`."""
        if self._known_owners is None:
            self._known_owners = {
                id_: (root.number, name)
                for root in self._roots.values()
                for id_, name in root.names.items()
            }
        return self._known_owners

    def _iteration_ends(self) -> None:
        now = time.thread_time()
        if self._is_recording and len(self._costs[False]) >= 3:
            self._free -= max(0.0, now - self._clock - _low(self._costs[False]))
        self._costs[self._is_recording].append(now - self._clock)
        self._clock = now
        if self._is_recording:
            self.recorder.leave()
            self.recorder.close(self.step)
            self._expressions.close(self.step)
            self._recorded.append(self.step)
            if len(self._recorded) % WINDOW == 0:
                self.recorder.close_window()
            if len(self._recorded) % 32 == 0:
                self._drain()
        else:
            self.recorder.discard()
        self._count_graphs()
        self.step += 1
        self._forwards = 0
        self._is_recording = False
        if self.step < FIRST_STEPS:
            self._next = self.step
        elif self.step > self._next:
            self._next = self.step - 1 + self._gap()

    def _count_graphs(self) -> None:
        """Graphs of eight earlier steps that are still alive are being collected somewhere."""
        if self.step % 8 == 7:
            alive = [graph for graph in self._graphs if graph[1]() is not None]
            self._graphs = deque(alive, maxlen=self._graphs.maxlen)
            old = [(step, site) for step, _, site in alive if step < self.step - 2]
            if len({step for step, _ in old}) >= 8:
                site = old[-1][1]
                if self._keeper is None:
                    self._keeper = ("", None)
                    with contextlib.suppress(Exception):  # any object of the loop's is looked into
                        self._keeper = keeper_of_graphs(sys._getframe(1), site) or self._keeper
                name, place = self._keeper
                self._incident("graphs-alive", place or site, graphs=len(old), keeper=name)

    def _gap(self) -> int:
        """Steps from one recorded step to the next."""
        if not self._adaptive:
            return self._period
        recorded, bare = self._costs[True], self._costs[False]
        if len(recorded) < 3 or len(bare) < 3 or self._free > 0:
            return 3
        extra = _low(recorded) / max(_low(bare), 1e-9) - 1
        # Some steps stay bare, to compare with. Odd: models that take turns are then each recorded. Once
        # every other is forgotten, more than are left are of no use.
        return min(1001, max(3, self._thinned * math.ceil(extra / OVERHEAD))) | 1

    def _drain(self) -> None:
        self.recorder.drain()
        late = self._expressions.drain()
        if late is not None and self._is_sound:
            self._is_sound = False
            self._broke(late[1], None)
        self._parameters.drain()
        self._objectives.drain()
        if len(self._recorded) > MOST_RECORDED:
            self.recorder.keep_every_other()
            self._recorded = self._recorded[::2]
            self._thinned *= 2
            self._parameters.keep_every_other()

    # ------------------------------------------------------------------ clipping, schedules, data

    def clips(self, parameters: list[Tensor], limit: float, norm: Any, site: Site | None) -> None:
        ids = {id(p) for p in parameters}
        owners = [
            known
            for known in self._optimizers.values()
            if any(id(p) in ids for p in known.parameters())
        ]
        # Gradients that no backward pass made are set by hand: when, nobody knows. And a limit that
        # is out of reach asks for the norm alone.
        if owners and limit < 1e4 and all(
            known.steps and not known.pending and any(known.backwards) for known in owners
        ):  # fmt: skip
            self._incident("clip-after-step", site, optimizer=owners[0].kind)
        for known in owners:
            if self._is_still_scaled(known):
                self._incident("clipped-while-scaled", site, optimizer=known.kind)
        key = None if site is None else site.key
        _, _, norms, kinds = self._clips.setdefault(key, (site, limit, [], set()))
        kinds.update(known.kind for known in owners)
        if isinstance(norm, Tensor) and is_spread(norm):
            return  # the norm of a part
        if norm is not None and len(norms) < MOST_LOSSES:
            norms.append(norm.detach() if isinstance(norm, Tensor) else norm)

    def scales(self, scaler: Any, outputs: Any, scaled: Any) -> None:
        if not scaler.is_enabled():
            return
        self._scaler = weakref.ref(scaler)
        pairs = zip(tensors(scaled), tensors(outputs), strict=True)
        self._scaled = [(weakref.ref(now), before.detach()) for (_, now), (_, before) in pairs]

    def scaler_steps(self, scaler: Any, optimizer: Any, site: Site | None) -> None:
        if not scaler.is_enabled():
            return
        known = self._known(optimizer)
        known.scaler_steps += 1
        known.scaler_site, known.scale = site, scaler._scale
        self._scaled.clear()
        if known.steps > known.steps_before:
            known.steps_before = known.steps
            if getattr(optimizer, "_step_supports_amp_scaling", False):
                self._look_within(known, scaler)  # its own code may have left the step out
            else:
                known.skipped_in_row = 0
            return
        # Its step was left out, for which the scaler has waited: it costs no more to ask.
        known.skipped_in_row += 1
        known.pending = 0
        if scaler.get_scale() < 1 and self._is_sound:
            if self._is_recording and known.skipped_in_row >= MOST_SKIPPED:
                self._find_gradient_origin(list(known.parameters()))
            self._next = self.step
        self._expressions.close(self.step)

    @staticmethod
    def _look_within(known: KnownOptimizer, scaler: Any) -> None:
        """Count on the device, without waiting, what the scaler told the optimizer's own code."""
        state = scaler._per_optimizer_states.get(id(known.held())) or {}
        flags = list(state.get("found_inf_per_device", {}).values())
        if flags:
            known.skipped_in_row = (known.skipped_in_row + 1) * (flags[0].detach() > 0)

    def _is_still_scaled(self, known: KnownOptimizer) -> bool:
        """Whether a `GradScaler` has multiplied the optimizer's gradients, and not yet divided them."""
        scaler = None if self._scaler is None else self._scaler()
        if scaler is None or not scaler.is_enabled() or not known.pending:
            return False
        state = scaler._per_optimizer_states.get(id(known.held()))
        return state is None or getattr(state["stage"], "name", "") == "READY"

    def schedules(self, scheduler: Any, site: Site | None) -> None:
        known = self._optimizers.get(id(getattr(scheduler, "optimizer", None)))
        # A scaler leaves out steps, the first ones most of all.
        if known is not None and known.steps == 0 and self._scaler is None:
            self._incident("scheduled-before-step", site, scheduler=type(scheduler).__name__)
        kind = type(scheduler).__name__
        length = getattr(scheduler, "total_steps", None) or getattr(scheduler, "T_max", None)
        key = (kind, id(known), None if site is None else site.key)
        before = self._schedules.get(key)
        if before is not None or len(self._schedules) < MOST_SCHEDULES:
            self._schedules[key] = (
                site,
                known,
                1 if before is None else before[2] + 1,
                self.step if known is None else known.steps,
                length if isinstance(length, int) else None,
            )

    def loader_made(self, loader: Any, site: Site | None) -> None:
        if len(self._loaders) < MOST_LOADERS:
            sampler = type(getattr(loader, "sampler", None)).__name__
            self._loaders.append(KnownLoader(weakref.ref(loader), site, sampler))

    def passes(self, loader: Any, site: Site | None) -> None:
        self._evaluations.passes(loader)
        self._checkpoints.passes(loader)
        numbers = (i for i, known in enumerate(self._loaders) if known.held() is loader)
        self._loader = next(numbers, None)
        if self._loader is None and len(self._loaders) < MOST_LOADERS:  # made before the watch
            self._loader = len(self._loaders)
            self.loader_made(loader, site)
        if self._loader is not None:
            self._datasets.passes(loader, self._loaders[self._loader].site)
            passes = self._loaders[self._loader].passes
            passes.append(self.step)
            if len(passes) > MOST_LOSSES:
                del passes[1::2]

    def _latest_loader(self) -> int | None:
        return self._loader

    def _loss_called(
        self, name: str, args: Any, kwargs: Any, result: Any, root: int | None
    ) -> None:
        if self._evaluations.is_listening:
            self._evaluations.look_at(self.step, name, args, kwargs, result)
            with self._aside():
                self._checkpoints.validated(name, args, kwargs, self.step)
        else:
            if root is None and self._is_recording:
                self._checkpoints.loss_called(name, args, kwargs, result)
            self._objectives.look_at(self.step, name, args, kwargs, result, root)

    @contextlib.contextmanager
    def _aside(self) -> Iterator[None]:
        """What is measured within is no part of a step's time, and of what is free."""
        started, spent = time.thread_time(), self._checkpoints.spent
        yield
        if self._checkpoints.spent > spent:
            self._clock += time.thread_time() - started
            self._free -= self._checkpoints.spent - spent

    def _latest_inputs(self) -> Any:
        root = self._latest()
        return None if root is None else root.inputs

    # ------------------------------------------------------------------ the end

    def _incident(self, kind: str, site: Site | None, **facts: Any) -> None:
        key = (kind, None if site is None else site.key)
        before = self._incidents.get(key)
        if before is None:
            self._incidents[key] = Incident(kind, site, 1, self.step, facts)
        else:
            self._incidents[key] = Incident(kind, site, before.count + 1, before.step, before.facts)

    def fails(self, error: BaseException) -> None:
        """The loop ended with this exception."""
        failure = failure_in(error)
        if failure is None:
            return
        facts = dict(failure.facts)
        module = facts.pop("module", None)
        paths = [
            root.paths[id(module)] for root in self._roots.values() if id(module) in root.paths
        ]
        self._incident(failure.kind, failure.site, **facts, module=paths[0] if paths else None)

    def data(self, seconds: float) -> Data | None:
        """Read what the loop has read, for so many `seconds` of a run, when it is over. Raises nothing."""
        held = {
            (root.number, name): root.shapes[name]
            for root in self._roots.values()
            for name in root.held
        }
        trainable = sum(elements for elements, _, asks in held.values() if asks)
        return self._datasets.read(
            seconds, trainable=trainable, has_loss=bool(self._objectives.trace())
        )

    def trace(self) -> Trace:
        """What was seen. May be asked at any time; moves what is on the device to the host."""
        self._drain()
        objectives = self._objectives.trace()
        return Trace(
            steps=self.step,
            recorded=list(self._recorded),
            models=[self._model(root) for root in self._roots.values()],
            optimizers=[
                OptimizerTrace(o.kind, o.site, o.steps, dict(o.backwards), o.groups,
                               [(step, tuple(map(float, rates))) for step, rates in o.rates],
                               list(o.stepped_at.values()), list(o.backward_at.values()),
                               "GradScaler" if o.scaler_steps else "closure" if o.closure else "")
                for o in self._optimizers.values()
            ],
            losses=[(step, float(value)) for step, value in self._losses],
            clips=[
                ClipTrace(site, limit, len(norms), [min(1.0, limit / (float(n) + 1e-6)) for n in norms],
                          sorted(kinds))
                for site, limit, norms, kinds in self._clips.values()
            ],
            schedules=[
                ScheduleTrace(kind, site, self._place_of(known), calls, steps, length)
                for (kind, _, _), (site, known, calls, steps, length) in self._schedules.items()
            ],
            objectives=objectives,
            evaluations=self._evaluations.trace(),
            incidents=[*self._incidents.values(), *self._unused_graphs(), *self._left_out()],
            notes=list(self._notes()),
            loaders=[
                LoaderTrace(known.site, known.sampler, list(known.passes))
                for known in self._loaders
            ],
            generalization=self._generalization(objectives),
            unmeasured=self._checkpoints.reason,
        )  # fmt: skip

    def _generalization(self, objectives: Sequence[LossTrace]) -> Generalization | None:
        """Training against validation error, in units of a constant answer's loss where that is known."""

        def guess(kind: str) -> float | None:
            known = [o for o in objectives if o.kind == kind and o.guess is not None]
            return known[0].guess if len(known) == 1 else None

        return self._checkpoints.generalization(guess)

    def _left_out(self) -> Iterator[Incident]:
        """Steps that a `GradScaler` left out, up to the last."""
        for known in self._optimizers.values():
            row = int(known.skipped_in_row)
            if row and known.scale is not None:
                facts = {
                    "optimizer": known.kind, "steps": known.scaler_steps, "scale": float(known.scale),
                }  # fmt: skip
                yield Incident("steps-left-out", known.scaler_site, row, known.steps, facts)

    def _place_of(self, known: KnownOptimizer | None) -> int | None:
        """The optimizer's place in the trace."""
        return next((i for i, o in enumerate(self._optimizers.values()) if o is known), None)

    @staticmethod
    def _is_reached(root: Root, name: str, known: KnownOptimizer | None) -> bool:
        if known is None or not known.unreached:
            return True
        return all(root.names.get(key) != name for key in known.unreached)

    def _neglected(self, root: Root) -> list[str]:
        """Without those that an optimizer holds, or held by now, and those that change by other hands."""
        module = root.module()
        now = {} if module is None else dict(module.named_parameters())
        held = {id(p) for known in self._optimizers.values() for p in known.parameters()}
        return sorted(
            name
            for name, before in root.neglected.items()
            if name not in root.held
            and (
                name not in now
                or (id(now[name]) not in held and torch.equal(_few(now[name]), before))
            )
        )

    def _notes(self) -> Iterator[str]:
        if self._datasets.problem:
            yield f"the data were not looked at: {self._datasets.problem}"
        if self._compiled:
            yield "compiled code is not looked into: only losses, steps and gradients of parameters"
            if not self.step:
                yield "no optimizer step was seen: those within compiled code cannot be"
        if self._is_spread:
            yield "other processes hold parts of the parameters: there are no figures of those"
        if self.recorder.refused:
            yield "results were not recorded where another torch function mode was active"
        if self.recorder.transformed:
            yield "results within transforms of torch.func (grad, vmap) were not recorded"
        if self.recorder.problem is not None:
            yield f"recording stopped: {type(self.recorder.problem).__name__}: {self.recorder.problem}"

    def _model(self, root: Root) -> ModelTrace:
        sites = []
        for record in self.recorder.sites.values():
            if record.root == root.number:
                steps, columns = self.recorder.series(record)
                means, squares = columns["mean"], columns["rms"]
                columns["std"] = [
                    None if m is None or r is None else math.sqrt(max(0.0, r * r - m * m))
                    for m, r in zip(means, squares, strict=True)
                ]
                dead, seen = record.dead()
                sites.append(
                    SiteTrace(record.place, record.site, record.weight, steps, dead=dead,
                              seen=seen, units=record.width, feeds=record.feeds,
                              values=dict(record.values), layer=record.layer,
                              histograms=record.histograms(), **columns)
                )  # fmt: skip
        forwards = root.forwards.copy()
        for forward in self._pending:  # no backward pass has come, so far
            if forward.root is root:
                forwards["evaluation", forward.training] += 1
        return ModelTrace(
            root.name, root.site, bool(root.held), dict(forwards), sites,
            [self._parameter(root, name) for name in root.shapes], root.layers,
            self._neglected(root), self._inputs_of(root), root.dropout,
            list(root.trained_at.values()),
        )  # fmt: skip

    def _inputs_of(self, root: Root) -> list[InputTrace]:
        found = [
            record.data.trace(record.place.path, record.place.operation)
            for record in self.recorder.sites.values()
            if record.root == root.number and record.data is not None
        ]
        return [data for data in found if data is not None]

    def _parameter(self, root: Root, name: str) -> ParameterTrace:
        steps, (gradient, weight, update) = self._parameters.series((root.number, name))
        known, group = root.groups.get(name, (None, 0))
        place = self._place_of(known)
        return ParameterTrace(
            name, *root.shapes[name], name in root.held, steps,
            gradient, weight, update, sum(g is not None for g in gradient),
            None if place is None else (place, group), self._is_reached(root, name, known),
        )  # fmt: skip


def _is_reset(optimizer: KnownOptimizer) -> bool:
    """Whether the gradients are gone, or zero, before a backward pass adds to them."""
    probes = [probe() for probe in optimizer.probes]
    return not probes or any(
        p is None or p.grad is None or (p.is_cpu and not bool(here(p.grad).any())) for p in probes
    )


def _has_arrived(optimizer: KnownOptimizer) -> bool:
    """Whether a parameter has a gradient; on the CPU, where it costs no waiting, one that is not zero."""
    probes = [
        here(g)
        for probe in optimizer.probes
        if (p := probe()) is not None and (g := p.grad) is not None
    ]
    if any(not g.is_cpu or (not g.is_sparse and bool(g.any())) for g in probes):
        return True
    given = [here(p.grad) for p in optimizer.parameters() if p.grad is not None]
    if any(not g.is_cpu or g.is_sparse for g in given):
        return True
    return _is_some_not_zero(given)


def _is_some_not_zero(gradients: Sequence[Tensor]) -> bool:
    """Whether there is anything but zeros. A row of each is looked at first, which is mostly enough."""
    rows = (gradient[(0,) * (gradient.dim() - 1)] for gradient in gradients if gradient.numel())
    return any(bool(row.any()) for row in rows) or any(bool(g.any()) for g in gradients)


def _guard(first: Tensor, others: list[Tensor]) -> Tensor:
    """The first parameter, or where that is large the smallest with a gradient."""
    return first if first.numel() <= 4096 or not others else others[0]


def _has_finite_gradient(parameter: Tensor) -> bool:
    """Or none, or one on a device, which is not waited for."""
    gradient = parameter.grad
    if gradient is None or gradient.device.type != "cpu" or gradient.is_sparse:
        return True
    gradient = here(gradient)
    return math.isfinite(abs(gradient.sum().item())) or bool(gradient.isfinite().all())


def _autocast() -> tuple[str, Any] | None:
    for device in ("cuda", "cpu"):
        if torch.is_autocast_enabled(device):
            return device, torch.get_autocast_dtype(device)
    return None


def _few(parameter: Tensor) -> Tensor:
    """Some elements of it, copied."""
    return here(parameter.detach()).reshape(-1)[:16].clone()


def _has_gradients(root: Root) -> bool:
    module = root.module()
    return module is not None and any(p.grad is not None for p in module.parameters())


def _plain(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def _key(site: Site | None) -> Any:
    return None if site is None else site.key


def _place(site: Site | None) -> str | None:
    return None if site is None else f"{site.filename}:{site.row}"


def _low(values: Iterable[float]) -> float:
    """The lower quartile: what a step costs where nothing else got in the way."""
    ordered = sorted(values)
    return ordered[len(ordered) // 4]
