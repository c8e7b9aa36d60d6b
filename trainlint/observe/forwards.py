"""Forwards with a graph until a backward pass has come to them, and those that none ever comes to.

Linked by the numbers of autograd nodes, so that nothing is kept alive. What a loop does in the wrong
mode, or with a graph that nobody asks for, shows here.
"""

from __future__ import annotations

import weakref
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Final

import torch
from torch import Tensor

from trainlint.observe.autograd import walk
from trainlint.observe.incidents import Incidents
from trainlint.observe.optimizers import Optimizers
from trainlint.observe.pace import Pace
from trainlint.observe.roots import Forward, Idle, KnownOptimizer, Root, Roots, note_unused
from trainlint.observe.trace import Incident
from trainlint.sites import Site, place_key

_MOST_PENDING: Final = 512
_SURE_AFTER: Final = 3
_MOST_WALKS: Final = 256

Reached = tuple[frozenset[int], frozenset[int]]


class Forwards:
    """The forwards of a loop's models, and what became of them."""

    def __init__(
        self, roots: Roots, optimizers: Optimizers, pace: Pace, incidents: Incidents
    ) -> None:
        self._roots = roots
        self._optimizers = optimizers
        self._pace = pace
        self._incidents = incidents
        self._pending: deque[Forward] = deque(maxlen=_MOST_PENDING)
        self._walks: dict[Any, tuple[Reached, int]] = {}

    # ------------------------------------------------------------------ forwards

    def wait(self, forward: Forward) -> None:
        """A forward with a graph has ended."""
        if len(self._pending) == self._pending.maxlen:
            self._unused(self._pending.popleft())
        self._pending.append(forward)

    def evaluated(
        self, root: Root, site: Site | None, training: bool, given: weakref.ref[Tensor] | None
    ) -> None:
        """One without a graph. One alone may be a look; several in a row at a place are a pass."""
        root.forwards["evaluation", training] += 1
        if not training or not root.sensitive or not root.trained_in or root.is_asked:
            return
        key, step = place_key(site), self._pace.step
        if root.idle is None or root.idle.key != key:
            root.idle = Idle(key, site, step, given)
            return
        root.idle.goes_on(step, given)
        if root.idle.row == 2:
            self._incidents.note("train-mode-evaluation", site, model=root.name)

    def _unused(self, forward: Forward) -> None:
        forward.root.forwards["evaluation", forward.training] += 1
        if _is_idle(forward):
            note_unused(forward.root.unused, forward)

    # ------------------------------------------------------------------ backward passes

    def reached(
        self, losses: list[Tensor], site: Site | None
    ) -> tuple[list[Forward], list[KnownOptimizer]]:
        """The forwards that a backward pass from these losses reaches, and the optimizers.

        The forwards are trained by it. Others that wait since the step before the last, are given up.
        """
        places, stepped = self._made_of(losses, site)
        trained: list[Forward] = []
        waiting: deque[Forward] = deque(maxlen=_MOST_PENDING)
        for place, forward in enumerate(self._pending):
            if place in places:
                _train(forward)
                trained.append(forward)
            elif self._pace.step - forward.step < 2:
                waiting.append(forward)
            else:
                self._unused(forward)
        self._pending = waiting
        known = [known for key, known in self._optimizers.known.items() if key in stepped]
        return trained, known

    def _made_of(self, losses: list[Tensor], site: Site | None) -> Reached:
        """Places of the pending forwards, and keys of the optimizers, that the losses reach.

        The walk through the graph is left out where the same line, behind forwards at the same lines,
        has come to the same result three times, but for every eighth recorded step.
        """
        lines = tuple((f.root.number, place_key(f.site)) for f in self._pending)
        key = (place_key(site), lines)
        known, times = self._walks.get(key, (None, 0))
        is_asked_again = self._pace.is_recording and self._pace.is_asked_again
        if known is not None and times >= _SURE_AFTER and not is_asked_again:
            return known
        reached, parameters = walk(losses, {end for f in self._pending for end in f.ends})
        found = (
            frozenset(place for place, f in enumerate(self._pending) if f.ends & reached),
            frozenset(
                number
                for number, optimizer in self._optimizers.known.items()
                if any(id(p) in parameters for p in optimizer.parameters())
            ),
        )
        if len(self._walks) < _MOST_WALKS:
            self._walks[key] = (found, times + 1 if found == known else 1)
        return found

    def detached(self, loss: Tensor, site: Site | None) -> None:
        """A backward pass was asked of a loss that has no graph."""
        if loss.requires_grad and loss.numel() != 1:
            return
        ran = [root.module() for root in self._roots if root.forwards or root.trained_in]
        is_frozen = bool(ran) and not any(
            p.requires_grad for module in ran if module is not None for p in module.parameters()
        )
        has_graph = any(forward.step == self._pace.step for forward in self._pending)
        self._incidents.note(
            "loss-without-graph", site, leaf=loss.requires_grad, graph=has_graph, frozen=is_frozen,
            grad_mode=torch.is_grad_enabled(),
        )  # fmt: skip

    # ------------------------------------------------------------------ steps

    def look_at_modes(self, known: KnownOptimizer, site: Site | None) -> None:
        """Whether all forwards behind a step ran in eval mode, though those of earlier steps did not."""
        for root in self._roots:
            if root.number not in known.roots or not root.modes:
                continue
            if root.modes[True]:
                root.steps_in_train_mode += 1
            elif root.steps_in_train_mode and root.sensitive:
                self._incidents.note(
                    "eval-mode-training", root.switched.get(False) or site, model=root.name,
                    trained=root.steps_in_train_mode,
                )  # fmt: skip
            root.modes.clear()

    # ------------------------------------------------------------------ the end

    def latest(self) -> Root | None:
        """The model of the last forward that waits."""
        return self._pending[-1].root if self._pending else None

    def counts(self, root: Root) -> Counter[tuple[str, bool]]:
        """How often it was trained and evaluated, in which modes: no backward pass has come, so far."""
        counts = root.forwards.copy()
        for forward in self._of(root):
            counts["evaluation", forward.training] += 1
        return counts

    def unused_graphs(self) -> Iterator[Incident]:
        """Passes of forwards with a graph, at places where the model is never trained."""
        for root in self._roots:
            unused = {key: replace(idle) for key, idle in root.unused.items()}
            for forward in filter(_is_idle, self._of(root)):
                note_unused(unused, forward)
            for (key, training), idle in unused.items():
                if idle.passes and key not in root.trained_at:
                    kind = "train-mode-evaluation" if training else "unused-graph"
                    yield Incident(kind, idle.site, idle.passes, idle.first, {"model": root.name})

    def _of(self, root: Root) -> Sequence[Forward]:
        return [forward for forward in self._pending if forward.root is root]


def _train(forward: Forward) -> None:
    """A backward pass has come to it."""
    root = forward.root
    root.forwards["train", forward.training] += 1
    root.idle = None
    root.is_asked = False
    root.modes[forward.training] += 1
    root.trained_in[forward.training] += 1
    root.trained_at[place_key(forward.site)] = forward.site


def _is_idle(forward: Forward) -> bool:
    """Whether its model is trained, and nothing asked for its mode: what no backward pass reaches of it."""
    root = forward.root
    return bool(root.trained_in) and not (
        forward.training and (forward.asked or not root.sensitive)
    )
