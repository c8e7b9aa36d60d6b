"""Losses that nothing is trained by: validation, between the steps of a training loop.

A pass over validation data is a row of forwards without a graph, at one step. The function mode that
sees loss functions is on from the end of such a forward to the beginning of the next, so that nothing
inside the model is slowed down; a model that returns its loss needs no mode. Of a long pass ever fewer
batches are looked at, and each then counts for more. Sums stay on the device until they are asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from torch import Tensor

from trainlint.observe.recorder import LOSS_FUNCTIONS, Recorder
from trainlint.observe.splits import Splits, Surroundings
from trainlint.observe.trace import EvaluationTrace
from trainlint.sites import Site, calling_site, place_key
from trainlint.tree import tensors

MOST_PASSES: Final = 1024
MOST_PLACES: Final = 32
# So many batches of a pass are all looked at; every second one of as many more, every fourth of twice as
# many, and so on.
EACH: Final = 16
# Forwards in a row at one place that no loss function followed, after which none is expected there.
_IN_VAIN: Final = 8


@dataclass
class _Pass:
    """The losses of one pass so far; a batch counts for those that were passed over, too."""

    step: int
    total: Any
    weight: int


@dataclass
class _Place:
    """The passes in which one loss function, or model, is evaluated on one set of data.

    `data` is the dataset of the `DataLoader` that is passed over, `around` what is seen without one.
    """

    kind: str
    site: Site | None
    data: int | None
    around: Surroundings
    passes: list[_Pass] = field(default_factory=list)


class Evaluations:
    """The losses of forwards without a graph, by place in the code and by data."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._is_listening = False
        self._places: dict[Any, _Place] = {}
        self._in_vain: dict[Any, int] = {}
        self._forward: Any = None
        self._weight = 1
        self._pass: tuple[Any, int] | None = None
        self._batches = 0
        self._data: int | None = None
        self._splits = Splits()
        self._around = Surroundings()
        # A pass over data began, and no forward without a graph nor a backward pass came yet.
        self._is_new = False
        self._trained_on: set[int] = set()
        self._scalars: dict[int, set[str]] = {}

    # ------------------------------------------------------------------ what the loop does

    def passes(self, loader: Any) -> None:
        """A pass over this `DataLoader` begins."""
        self.leave()
        self._data, self._around = id(getattr(loader, "dataset", loader)), Surroundings()
        self._is_new = True

    def trains(self) -> None:
        """A backward pass begins."""
        self.leave()
        if self._is_new and self._data is not None and len(self._trained_on) < MOST_PLACES:
            self._trained_on.add(self._data)
        self._is_new = False
        self._pass = None

    def trained_forward(self, root: int, output: Any) -> None:
        """A forward with a graph: what a model returns as its loss is a number with a gradient."""
        if root not in self._scalars:
            self._scalars[root] = {
                path for path, t in tensors(output) if t.dim() == 0 and t.grad_fn is not None
            }

    def forward(self, root: int, output: Any, step: int, site: Site | None) -> Tensor | None:
        """A forward without a graph has ended. Note its loss, which is returned, or look out for one."""
        self._is_new = False
        if self._data is None:
            self._around = self._splits.around()
        key = (root, place_key(site), self._data, self._around)
        if self._pass != (key, step):
            self._pass, self._batches = (key, step), 0
        number, self._batches = self._batches, self._batches + 1
        weight = 2 ** (number // EACH).bit_length()
        if number % weight:
            return None
        names = self._scalars.get(root)
        loss = next((t for path, t in tensors(output) if path in names), None) if names else None
        if loss is not None and loss.dim() == 0:
            self._add("", site, step, loss, weight)
            return loss
        if self._in_vain.get(key, 0) < _IN_VAIN and not self._recorder.is_on:
            self._is_listening = self._recorder.enter()
            self._forward, self._weight = key, weight
            if len(self._in_vain) > MOST_PASSES:
                self._in_vain.clear()
            self._in_vain[key] = self._in_vain.get(key, 0) + 1
        return None

    def leave(self) -> None:
        """The code behind such a forward ends here."""
        if self._is_listening:
            self._recorder.leave()
            self._is_listening = False

    @property
    def is_listening(self) -> bool:
        """Whether the function mode is on for what follows a forward without a graph."""
        return self._is_listening

    def look_at(
        self, step: int, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any
    ) -> None:
        """A loss function was called while `is_listening`. A sum is divided by what it is the sum of."""
        if name not in LOSS_FUNCTIONS or not isinstance(result, Tensor):
            return
        if result.requires_grad or result.numel() != 1:
            return
        self._in_vain[self._forward] = 0
        loss = result.detach()
        if kwargs.get("reduction") == "sum":
            loss = loss / _terms(name, args, kwargs)
        self._add(name, calling_site(), step, loss, self._weight)

    def _add(self, kind: str, site: Site | None, step: int, loss: Tensor, weight: int) -> None:
        value: Any = loss.detach()
        value = float(value) if value.device.type == "cpu" else value.float().reshape(())
        key = (kind, place_key(site), self._data, self._around)
        place = self._places.get(key)
        if place is None:
            if len(self._places) >= MOST_PLACES:
                return
            place = self._places[key] = _Place(kind, site, self._data, self._around)
        if place.passes and place.passes[-1].step == step:
            last = place.passes[-1]
            last.total, last.weight = last.total + weight * value, last.weight + weight
            return
        place.passes.append(_Pass(step, weight * value, weight))
        if len(place.passes) > MOST_PASSES:
            del place.passes[1::2]

    # ------------------------------------------------------------------ the end

    def _is_on_training_data(self, place: _Place) -> bool:
        if place.data is not None:
            return place.data in self._trained_on
        return place.around.is_training(
            other.around
            for other in self._places.values()
            if other.kind == place.kind and place_key(other.site) == place_key(place.site)
        )

    def trace(self) -> list[EvaluationTrace]:
        """What was seen at each place, fetched from the device."""
        return [
            EvaluationTrace(
                place.kind,
                place.site,
                [one.step for one in place.passes],
                [float(one.total) / one.weight for one in place.passes],
                self._is_on_training_data(place),
            )
            for place in self._places.values()
        ]


def _terms(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Over how many terms the mean of this loss goes: targets that are not ignored, else elements."""
    scores = args[0] if args else kwargs.get("input")
    targets = args[1] if len(args) > 1 else kwargs.get("target")
    if not isinstance(scores, Tensor) or not isinstance(targets, Tensor):
        return 1
    if name not in ("cross_entropy", "nll_loss"):
        return max(1, scores.numel())
    if targets.is_floating_point():
        return max(1, targets.numel() // (scores.shape[1] if scores.dim() > 1 else scores.numel()))
    return (targets != kwargs.get("ignore_index", -100)).sum().clamp(min=1)
