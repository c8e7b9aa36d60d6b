"""The optimizers of a training loop: what they hold, what their steps find, how often they step."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any, Final

import torch
from torch import Tensor

from trainlint.observe.gradients import are_zero, has_arrived, is_reset
from trainlint.observe.incidents import Incidents
from trainlint.observe.pace import FIRST_STEPS, Pace
from trainlint.observe.roots import KnownOptimizer, Root, Roots
from trainlint.observe.sharding import here
from trainlint.observe.trace import OptimizerTrace
from trainlint.sites import Site, place_key

MOST_RATES: Final = 4096
# A first parameter of no more elements is its own guard.
_SMALL: Final = 4096


class Optimizers:
    """All optimizers of a loop, by their `id`s."""

    def __init__(self, roots: Roots, pace: Pace, incidents: Incidents) -> None:
        self._roots = roots
        self._pace = pace
        self._incidents = incidents
        self.known: dict[int, KnownOptimizer] = {}

    def __iter__(self) -> Iterator[KnownOptimizer]:
        return iter(self.known.values())

    def made(self, optimizer: Any, site: Site | None) -> None:
        """One was constructed."""
        groups = [
            {key: _plain(value) for key, value in group.items() if key != "params"}
            for group in optimizer.param_groups
        ]
        self.known[id(optimizer)] = KnownOptimizer(
            weakref.ref(optimizer), type(optimizer).__name__, site, groups
        )

    def of(self, optimizer: Any) -> KnownOptimizer:
        """What is known of one, which may have been made before the watch."""
        known = self.known.get(id(optimizer))
        if known is None or known.held() is not optimizer:
            self.made(optimizer, None)
        return self.known[id(optimizer)]

    # ------------------------------------------------------------------ backward passes

    def backward_begins(self, reached: list[KnownOptimizer], site: Site | None) -> None:
        """One that reaches the parameters of these."""
        for known in reached:
            known.pending += 1
            known.backward_at[place_key(site)] = site
            known.was_reset = known.was_reset or is_reset(known)

    def backward_ends(self) -> None:
        """See whether it has left gradients, where the next step is looked at."""
        for known in self:
            if known.pending and self._is_looked_at(known):
                known.arrived = has_arrived(known)

    # ------------------------------------------------------------------ steps

    def _is_looked_at(self, known: KnownOptimizer) -> bool:
        return known.steps < FIRST_STEPS or self._pace.is_recording

    def step_begins(self, known: KnownOptimizer, site: Site | None) -> None:
        """A step without a closure, after backward passes."""
        if known.steps and known.pending and not known.was_reset:
            self._incidents.note("gradients-left", site, optimizer=known.kind)

    def look_at(self, known: KnownOptimizer, parameters: list[Tensor], site: Site | None) -> None:
        """Look for gradients that are gone, in the first steps and those that are recorded."""
        if not self._is_looked_at(known):
            return
        if (
            known.steps < FIRST_STEPS
            or known.among != len(self._roots)
            or self._pace.is_asked_again
        ):
            self.note_held(known)
            self._note_neglected()
        are_gone = bool(parameters) and all(p.grad is None for p in parameters)
        if known.pending and known.arrived and (are_gone or are_zero(parameters)):
            self._incidents.note("zeroed-before-step", site, optimizer=known.kind)
        elif are_gone:
            held = {id(p) for p in parameters}
            others = [
                root.name
                for root in self._roots
                if root.trained_in and held.isdisjoint(root.names) and _has_gradients(root)
            ]
            made = None if known.site is None else f"{known.site.filename}:{known.site.row}"
            self._incidents.note(
                "step-without-gradients", site, optimizer=known.kind, elsewhere=others, made=made
            )

    def note_held(self, known: KnownOptimizer) -> None:
        """Which parameters of which roots it holds, and in which of its groups."""
        optimizer = known.held()
        if optimizer is None:
            return
        known.among = len(self._roots)
        groups = {
            id(p): i for i, group in enumerate(optimizer.param_groups) for p in group["params"]
        }
        for root in self._roots:
            for id_, name in root.names.items():
                if id_ in groups:
                    root.held.add(name)
                    known.roots.add(root.number)
                    root.groups[name] = (known, groups[id_])

    def _note_neglected(self) -> None:
        """Which parameters have a gradient that no optimizer is known to hold."""
        for root in self._roots:
            module = root.module()
            if root.held and module is not None:
                for name, p in module.named_parameters():
                    if name not in root.held and p.requires_grad and p.grad is not None:
                        root.neglected.setdefault(name, _few(p))

    def step_ends(self, optimizer: Any, known: KnownOptimizer) -> None:
        """Count it, and note the learning rates that it had."""
        if known.unreached is None:
            known.unreached = {id(p): weakref.ref(p) for p in known.parameters()}
        if known.unreached:
            known.unreached = {
                key: ref
                for key, ref in known.unreached.items()
                if (p := ref()) is not None and p.grad is None
            }
        rates = tuple(
            _plain(group["lr"])
            for group in optimizer.param_groups
            if isinstance(group.get("lr"), (int, float, Tensor))
        )
        if not known.rates or known.rates[-1][1] != rates:
            known.rates.append((self._pace.step, rates))
            if len(known.rates) > MOST_RATES:
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

    # ------------------------------------------------------------------ the end

    def place_of(self, known: KnownOptimizer | None) -> int | None:
        """The optimizer's place in the trace."""
        return next((place for place, each in enumerate(self) if each is known), None)

    def neglected(self, root: Root) -> list[str]:
        """Parameters that get gradients and no optimizer's steps.

        Without those that an optimizer holds, or held by now, and those that change by other hands.
        """
        module = root.module()
        now = {} if module is None else dict(module.named_parameters())
        held = {id(p) for known in self for p in known.parameters()}
        return sorted(
            name
            for name, before in root.neglected.items()
            if name not in root.held
            and (
                name not in now
                or (id(now[name]) not in held and torch.equal(_few(now[name]), before))
            )
        )

    def trace(self) -> list[OptimizerTrace]:
        """What was seen of each."""
        return [
            OptimizerTrace(
                known.kind,
                known.site,
                known.steps,
                dict(known.backwards),
                known.groups,
                [(step, tuple(map(float, rates))) for step, rates in known.rates],
                list(known.stepped_at.values()),
                list(known.backward_at.values()),
                "GradScaler" if known.scaler_steps else "closure" if known.closure else "",
            )
            for known in self
        ]


def _guard(first: Tensor, others: list[Tensor]) -> Tensor:
    """The first parameter, or where that is large the smallest with a gradient."""
    return first if first.numel() <= _SMALL or not others else others[0]


def _few(parameter: Tensor) -> Tensor:
    """Some elements of it, copied."""
    return here(parameter.detach()).reshape(-1)[:16].clone()


def _has_gradients(root: Root) -> bool:
    module = root.module()
    return module is not None and any(p.grad is not None for p in module.parameters())


def _plain(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value
