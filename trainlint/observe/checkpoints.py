"""Losses of single samples at the validation passes of a watched loop: the fact `Generalization`.

Comes in: forwards and loss calls, as the observer sees them. Goes out: checkpoints, as the probe's meter
makes them. Those of validation samples need no pass of ours: the loop has just made it, and its own loss
function is called once more on what the model gave, without the mean. Those of training samples do: the
inputs and targets of some batches that were trained on are kept, and the model runs on them right behind
the first validation batch. There everything is as it has to be, by the loop's own doing: eval mode, no
gradients, the autocast of its validation. At the first pass, both run once more with a copy of the
weights from before the first step (up to 32 MiB), which tells data that differ from what was learnt by
heart.

Losses in train mode, of the batches as they are trained on, would need no pass of ours either, but they are
those of other weights with each step, and of dropout and batch statistics, which is a bias of either sign,
as large as the gaps that are looked for. So the pass is made, where it is safe: buffers are swapped for
copies, attributes, random states and what the classes' own functions write to are put back, and nothing is
printed. It is left out where it would be noticed or wait: models with hooks or that are compiled, wrapped,
spread over processes or in train mode, and where the loop records or changes what torch does.
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules import module as torch_module
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext
from torch.utils.data import IterableDataset

from trainlint.generalization.curves import Checkpoint, Generalization, Scores
from trainlint.generalization.scoring import ACCURACY, R_SQUARED
from trainlint.observe.hooks import unobserved
from trainlint.observe.quiet import quiet
from trainlint.observe.recorder import LOSS_FUNCTIONS
from trainlint.observe.roots import Forward, Root
from trainlint.observe.sharding import has_others
from trainlint.preserve import is_lazy, preserved
from trainlint.tree import map_tensors, tensors

MOST_SAMPLES: Final = 512
MOST_BYTES: Final = 1 << 26
MOST_CHECKPOINTS: Final = 16
# Validation samples of a pass that are looked at: more than are kept, since those of another pass may come
# in another order.
_MOST_LOOKED_AT: Final = 2048
_MOST_STREAMS: Final = 16
_MOST_ROOTS: Final = 8
# Fewer tell too little to be worth a pass.
_FEWEST: Final = 64
# Of the run's time, beside the seconds that are free.
SHARE: Final = 0.01
# Where the device does not say what a pass takes, samples are counted: one that is trained on costs three.
_FREE_SAMPLES: Final = 2 * MOST_SAMPLES
_MOST_COLUMNS: Final = 4096
# Of the 52 bits of a mark.
_LOOSE: Final = 16
# Samples that have to come back for it to be said how many there are.
_FEWEST_BACK: Final = 8
# Of the samples of a loader's pass, the share from which on it is the training data that it goes over.
_SHARED: Final = 0.5
_BEHIND: Final[Mapping[str, Callable[[Tensor], Tensor]]] = {
    "": lambda answer: answer,
    "log_softmax": partial(torch.log_softmax, dim=1),
    "softmax": partial(torch.softmax, dim=1),
    "sigmoid": torch.sigmoid,
    "transposed": partial(torch.transpose, dim0=1, dim1=-1),
}
_AXES: Final[Mapping[str, int]] = {"log_softmax": 2, "softmax": 2, "transposed": 3}
_HARMLESS: Final = ("torch", "accelerate", "transformers")


@dataclass(frozen=True)
class _Way:
    """From a model's output to what the loss function gets: a tensor in it, a function, another shape."""

    path: str
    behind: str = ""
    shape: torch.Size | None = None
    dtype: torch.dtype | None = None

    def of(self, output: Any) -> Tensor | None:
        """The same of another output, None where there is none."""
        answer = next((t for path, t in tensors(output) if path == self.path), None)
        if answer is None or self.shape is None:
            return answer
        tail = self.shape[1:]
        if answer.numel() % max(1, math.prod(tail)):
            return None
        return _BEHIND[self.behind](answer).reshape(-1, *tail).to(self.dtype)


def _way(leaves: Sequence[tuple[str, Tensor]], given: Tensor) -> _Way | None:
    """How the loss function's operand came out of the model's output, None where that is not plain."""
    for path, leaf in leaves:
        if not leaf.dim() or not given.dim() or leaf.numel() != given.numel():
            continue
        if not leaf.is_floating_point() or leaf.device != given.device:
            continue
        for behind, function in _BEHIND.items():
            if leaf.dim() < _AXES.get(behind, 1):
                continue
            made = function(leaf.detach()).reshape(given.shape).to(given.dtype)
            if torch.equal(made, given.detach()):
                return _Way(path, behind, given.shape, given.dtype)
    return None


@dataclass(frozen=True)
class _Judge:
    """A loss function as the loop calls it in validation, to be called for single samples."""

    name: str
    options: Mapping[str, Any]

    def losses(self, answer: Tensor, target: Tensor, samples: int) -> Tensor:
        """One loss a sample; one for all where those are not told apart."""
        function = getattr(functional, self.name)
        values: Tensor = function(answer, target, **self.options).float()
        counted = torch.ones_like(values)
        if self.name in ("cross_entropy", "nll_loss") and not target.is_floating_point():
            counted = (target != self.options.get("ignore_index", -100)).float()
        if values.dim() == 0 or len(values) != samples:
            return (values.sum() / counted.sum()).reshape(1)
        return values.reshape(samples, -1).sum(1) / counted.reshape(samples, -1).sum(1)


def _judge(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> _Judge | None:
    """None for a loss that has no value for a single sample, or needs more than its target for it."""
    if name == "gaussian_nll_loss":
        return None
    try:
        bound = inspect.signature(getattr(functional, name)).bind(*args, **kwargs).arguments
    except (TypeError, ValueError):
        return None
    options = {key: value for key, value in bound.items() if key not in ("input", "target")}
    options = {k: v for k, v in options.items() if k not in ("size_average", "reduce")}
    weight = options.get("weight")
    if isinstance(weight, Tensor) and name not in ("cross_entropy", "nll_loss"):
        return None
    return _Judge(name, {**options, "reduction": "none"})


def _target(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    return args[1] if len(args) > 1 else kwargs.get("target")


def _marks(inputs: Any, target: Tensor | None, samples: int) -> Tensor | None:
    """A number for each sample by which it is known again, from what the model and the loss are given."""
    total: Tensor | None = None
    given = [t for _, t in tensors(inputs)] + ([] if target is None else [target])
    for number, tensor in enumerate(given):
        if tensor.dim() == 0 or len(tensor) != samples or tensor.is_complex() or tensor.is_sparse:
            continue
        flat = tensor.detach().reshape(samples, -1)
        flat = flat[:, :: -(-flat.shape[1] // _MOST_COLUMNS) or 1]
        wide = torch.float32 if tensor.device.type == "mps" else torch.float64
        places = torch.arange(1, flat.shape[1] + 1, device=tensor.device, dtype=wide)
        mark = flat.to(wide).nan_to_num(7.0) @ (places * (number + 1)).sin()
        total = mark if total is None else total + mark
    if total is None or total.dtype != torch.float64:
        return total
    # The last bits depend on how many samples are summed up at once.
    bits = total.view(torch.int64) + (1 << (_LOOSE - 1))
    return (bits >> _LOOSE << _LOOSE).view(torch.float64)


@dataclass
class _Tally:
    """The losses of samples, with what the metric is made of. On their device."""

    marks: list[Tensor] = field(default_factory=list)
    losses: list[Tensor] = field(default_factory=list)
    answers: list[Tensor] = field(default_factory=list)
    right: list[Tensor] = field(default_factory=list)
    squares: list[Tensor] = field(default_factory=list)
    targets: list[Tensor] = field(default_factory=list)
    samples: int = 0
    unit: str = "sample"

    def add(self, marks: Tensor, losses: Tensor, answer: Any, target: Any, kind: str) -> None:
        """A batch. Where there is one loss for all of it, there is one mark for it as well."""
        self.samples += len(marks)
        if not kind or len(losses) < len(marks):
            self.unit = "batch"
        self.marks.append(marks if len(marks) == len(losses) else marks.sum().reshape(1))
        self.losses.append(losses)
        if kind in ("cross_entropy", "nll_loss") and not target.is_floating_point():
            given = answer.argmax(1) if answer.dim() > 1 else answer.argmax().reshape(1)
            self.answers.append(given.reshape(-1))
            self.right.append((given == target).float().reshape(-1))
        elif kind == "mse_loss" and answer.shape == target.shape:
            self.squares.append((answer - target).float().square().reshape(-1))
            self.targets.append(target.float().reshape(-1))

    def metric(self) -> tuple[str, float | None]:
        """Its name and value."""
        if self.right:
            return ACCURACY, float(torch.cat(self.right).mean())
        if self.squares:
            spread = torch.cat(self.targets).var(unbiased=False)
            if spread > 0:
                return R_SQUARED, float(1 - torch.cat(self.squares).mean() / spread)
        return "", None

    def by_mark(self) -> dict[float, float]:
        """The loss of each sample, once; but for those of which all targets are ignored."""
        if not self.losses:
            return {}
        marks, losses = torch.cat(self.marks).tolist(), torch.cat(self.losses).tolist()
        known = dict(zip(marks, losses, strict=True))
        return {mark: loss for mark, loss in known.items() if not math.isnan(loss)}

    def scores(self, losses: Sequence[float]) -> Scores:
        """With these losses, of all that are here."""
        predicted: dict[int, int] = {}
        if self.answers:
            predicted = dict(sorted(Counter(torch.cat(self.answers).tolist()).items()))
        return Scores(tuple(losses), self.metric()[1], predicted)


@dataclass(eq=False)
class _Batch:
    """A batch that was trained on: copies of what the model and the loss were given."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    target: Tensor | None
    samples: int
    marks: Tensor
    bytes: int


@dataclass
class _Kept:
    """Batches that one model was trained on by one loss: each had the same chance to be among them."""

    batches: list[_Batch] = field(default_factory=list)
    offered: int = 0
    is_fixed: bool = False
    seconds: float = 0.0
    # Samples that were trained on after these were fixed, as far as they were looked at, and how many of
    # them were among these.
    later: int = 0
    back: Any = 0

    @property
    def samples(self) -> int:
        """How many they hold."""
        return sum(batch.samples for batch in self.batches)

    def size(self) -> float | None:
        """How many samples there are to be trained on: Lincoln and Petersen's estimate by recapture."""
        back = float(self.back)
        return None if back < _FEWEST_BACK else self.samples * self.later / back


@dataclass
class _Pass:
    """A validation pass: the scores of its samples, and those of the training samples at the time."""

    stream: _Stream
    number: int
    step: int
    validation: _Tally = field(default_factory=_Tally)
    train: _Tally | None = None


@dataclass
class _Stream:
    """The passes of one model over one set of data, with one loss function."""

    root: Root
    judge: _Judge | None
    is_loaded: bool
    # As the model was before it was trained, if there is a copy of it.
    first: _Pass | None = None
    passes: list[_Pass] = field(default_factory=list)
    count: int = 0
    stride: int = 1

    def at(self, step: int) -> _Pass:
        """The pass at this step, which may be a new one. The last one is always among those kept."""
        if self.passes and self.passes[-1].step == step:
            return self.passes[-1]
        if self.passes and (self.passes[-1].number % self.stride or not self.passes[-1].train):
            del self.passes[-1]
        self.passes.append(_Pass(self, self.count, step))
        self.count += 1
        if len(self.passes) > MOST_CHECKPOINTS:
            self.stride *= 2
            self.passes = [
                one for one in self.passes if one.number % self.stride == 0 or one.step == step
            ]
        return self.passes[-1]


@dataclass
class _Load:
    """A `DataLoader` that is trained on: how many samples and batches it has, and what of that came by."""

    samples: int | None
    batches: int | None
    begun: int = 0
    backwards: int = 0

    def epochs(self) -> float | None:
        """How often the samples were passed over."""
        if not self.begun or not self.batches:
            return None
        return self.begun - 1 + min(1.0, self.backwards / self.batches)


@dataclass
class _Latest:
    """The forward that has just ended, as long as its loss may follow."""

    root: Root
    inputs: Any
    leaves: list[tuple[str, Tensor]]
    forward: Forward | None
    losses: int = 0


class Checkpoints:
    """Follows the validation passes of a loop. `seconds` may be spent on it, and 1 % of the run's time.

    Nothing is ever raised; `reason` says why nothing could be measured where there was a validation pass.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._started = time.thread_time()
        self._paused: float | None = None
        self.spent = 0.0
        self.reason = ""
        self._is_off = seconds <= 0
        self._random = random.Random(0)
        self._kept: dict[tuple[int, str], _Kept] = {}
        self._offers: list[tuple[Forward, tuple[int, str], _Batch]] = []
        self._latest: _Latest | None = None
        self._ways: dict[tuple[int, str], _Way] = {}
        self._streams: dict[Any, _Stream] = {}
        self._begun = 0.0
        self._versions: list[int] | None = None
        self._looked_at: set[int] = set()
        # Seconds a sample takes in the loop's own evaluation.
        self._price: float | None = None
        self._samples_spent = 0
        self._samples_trained: Counter[int] = Counter()
        # Copies of weights and buffers from before the first step, by model.
        self._initial: dict[int, dict[str, Tensor]] = {}
        # What the latest loader passes over, and whether that may still go on; what was trained on.
        self._data: Any = None
        self._is_fresh = self._is_new = False
        self._loads: dict[Any, _Load] = {}
        self._trained_on: Any = None
        # The row of evaluations under way: model, loss, step, and the first sample's mark.
        self._row: tuple[int, str, int, float] | None = None
        self._forgotten = 0

    def pauses(self) -> None:
        """The watch is left: what the thread does now is no part of the run."""
        self._paused = time.thread_time()

    def resumes(self) -> None:
        """It is entered again."""
        if self._paused is not None:
            self._started += time.thread_time() - self._paused
        self._paused = None

    # ------------------------------------------------------------------ data

    def passes(self, loader: Any) -> None:
        """A pass over a `DataLoader` begins. Two may share a dataset, each with its own indices."""
        indices = getattr(getattr(loader, "sampler", None), "indices", None)
        self._data = (id(getattr(loader, "dataset", loader)), id(indices))
        self._is_fresh = self._is_new = True
        self._row = None
        if self._data not in self._loads and len(self._loads) < _MOST_STREAMS:
            self._loads[self._data] = _Load(*_sizes(loader))

    def switches(self) -> None:
        """A model's mode is set, as an evaluation mostly begins."""
        self._row = None

    # ------------------------------------------------------------------ what is trained on

    def training_begins(self, root: Root, step: int) -> None:
        """A forward with a graph begins: before the first step, the model is as it was made."""
        if self._is_off or step or root.number in self._initial or root.number >= _MOST_ROOTS:
            return
        self._initial[root.number] = {}
        module = root.module()
        if module is not None and not has_others():
            with self._unheard():
                self._initial[root.number] = _copy_of(module)

    def trains_on(self, root: Root, inputs: Any, output: Any, forward: Forward) -> None:
        """A forward with a graph has ended, in a step that is recorded."""
        self._latest = None
        if self._is_off or root.number >= _MOST_ROOTS:
            return
        leaves = [(path, t.detach()) for path, t in tensors(output)]
        self._latest = _Latest(root, inputs, leaves, forward)

    def loss_called(
        self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any
    ) -> None:
        """A loss function was called behind a forward with a graph."""
        latest = self._latest
        if latest is None or latest.forward is None or name not in LOSS_FUNCTIONS:
            return
        if not isinstance(result, Tensor) or not result.requires_grad:
            return
        latest.losses += 1
        with self._unheard():
            answer, target = args[0] if args else kwargs.get("input"), _target(args, kwargs)
            if isinstance(answer, Tensor) and isinstance(target, Tensor):
                way = self._way(latest, name, answer)
                if way is not None and latest.losses == 1:
                    self._offer(latest, name, target)
                elif way is not None:
                    self._offers = [o for o in self._offers if o[0] is not latest.forward]

    def backward_begins(self) -> None:
        """What the latest forward gave may be a loss of the model's own."""
        if self._is_new and self._data in self._loads:
            self._trained_on = self._data
            self._loads[self._data].begun += 1
            self._loads[self._data].backwards = 0
        if self._trained_on is not None:
            self._loads[self._trained_on].backwards += 1
        self._is_new = self._is_fresh = False
        self._row = None
        latest, self._latest = self._latest, None
        if latest is not None and latest.forward is not None and not latest.losses:
            scalars = [path for path, leaf in latest.leaves if leaf.dim() == 0]
            if scalars:
                with self._unheard():
                    self._offer(latest, "", None)

    def trained(self, forward: Forward) -> None:
        """A backward pass reached the forward: what was offered of it is training data."""
        self._samples_trained[forward.root.number] += forward.samples
        for _, key, batch in [offer for offer in self._offers if offer[0] is forward]:
            kept = self._kept.setdefault(key, _Kept())
            slots = max(1, min(MOST_SAMPLES // batch.samples, MOST_BYTES // max(1, batch.bytes)))
            if len(kept.batches) < slots:
                kept.batches.append(batch)
            else:
                kept.batches[self._random.randrange(len(kept.batches))] = batch

    def backward_ends(self) -> None:
        """What no backward pass has reached by now, is not trained on."""
        self._offers.clear()

    def _offer(self, latest: _Latest, name: str, target: Tensor | None) -> None:
        """Keep copies of a batch, if it is drawn: as in a reservoir, without order."""
        key = (latest.root.number, name)
        kept = self._kept.setdefault(key, _Kept())
        samples = _samples(latest)
        if samples is None:
            return
        if kept.is_fixed:
            if self._trained_on is None:
                self._count_back(kept, _marks(latest.inputs, target, samples))
            return
        kept.offered += 1
        slots = max(1, MOST_SAMPLES // samples)
        if kept.offered > slots and self._random.random() * kept.offered > slots:
            return
        args, kwargs = latest.inputs
        given = (args, dict(kwargs), target)
        size = sum(t.numel() * t.element_size() for _, t in tensors(given))
        every = max(-(-samples // MOST_SAMPLES), -(-size // MOST_BYTES))
        if every > 1 and (target is None or len(target) != samples):
            return
        held = map_tensors(given, lambda _, t: _copied(t, samples, every))
        marks = _marks(held[:2], held[2], -(-samples // every))
        if marks is not None:
            batch = _Batch(held[0], held[1], held[2], len(marks), marks, size // every)
            assert latest.forward is not None
            self._offers.append((latest.forward, key, batch))

    @staticmethod
    def _count_back(kept: _Kept, marks: Tensor | None) -> None:
        if marks is not None and marks.device == kept.batches[0].marks.device:
            kept.later += len(marks)
            kept.back = (
                kept.back + torch.isin(marks, torch.cat([b.marks for b in kept.batches])).sum()
            )

    # ------------------------------------------------------------------ validation passes

    def evaluation_begins(self, root: Root) -> None:
        """A forward without a graph begins, of a model that is trained."""
        self._latest = None
        self._is_new = False
        module = root.module()
        if self._is_off or module is None:
            return
        self._versions = None
        if root.number not in self._looked_at:
            self._versions = _versions(module)
        self._begun = time.thread_time()

    def evaluated(self, root: Root, module: nn.Module, inputs: Any, output: Any) -> None:
        """It has ended. `module` is what the loop called."""
        seconds = time.thread_time() - self._begun
        self._latest = None
        own = root.module()
        if self._is_off or own is None:
            return
        with self._unheard():
            if root.number not in self._looked_at:
                self._looked_at.add(root.number)
                reason = _why_not(own, module)
                if reason is None and self._versions != _versions(own):
                    reason = "its forward writes to its weights or buffers"
                if reason is not None:
                    self._give_up(reason)
                    return
            if own.training and root.sensitive:
                return
            leaves = [(path, t.detach()) for path, t in tensors(output)]
            self._latest = _Latest(root, inputs, leaves, None)
            samples = _samples(self._latest)
            if samples:
                price = seconds / samples
                self._price = price if self._price is None else min(self._price, price)

    def validated(
        self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], step: int
    ) -> None:
        """A loss function was called behind it."""
        latest = self._latest
        if latest is None or latest.forward is not None or name not in LOSS_FUNCTIONS:
            return
        answer, target = args[0] if args else kwargs.get("input"), _target(args, kwargs)
        if not isinstance(answer, Tensor) or not isinstance(target, Tensor) or self._is_off:
            return
        with self._unheard():
            way, judge = self._way(latest, name, answer), _judge(name, args, kwargs)
            is_by_class = name in ("cross_entropy", "nll_loss")
            if (
                way is not None
                and judge is not None
                and (is_by_class or answer.shape == target.shape)
            ):
                self._add(latest, judge, way, answer.detach(), target, step)

    def validated_itself(self, loss: Tensor, step: int) -> None:
        """The model has computed its loss of a batch without a graph."""
        latest = self._latest
        if latest is None or latest.forward is not None or self._is_off:
            return
        with self._unheard():
            path = next(path for path, leaf in latest.leaves if leaf.dim() == 0)
            self._add(latest, None, _Way(path), loss.detach(), None, step)

    def _add(
        self,
        latest: _Latest,
        judge: _Judge | None,
        way: _Way,
        answer: Tensor,
        target: Tensor | None,
        step: int,
    ) -> None:
        started = time.thread_time()
        samples = _samples(latest)
        marks = None if samples is None else _marks(latest.inputs, target, samples)
        one = None if marks is None else self._pass(latest, judge, step, marks)
        if one is not None and marks is not None:
            stream = one.stream
            if not one.validation.losses:
                one.train = self._training(latest, judge, way, target)
                if stream.count == 1 and one.train is not None:
                    self._look_back(stream, latest, judge, way)
            if one.train is not None and one.validation.samples < _MOST_LOOKED_AT:
                with quiet(), torch.no_grad():
                    _judged(one.validation, judge, marks, answer, target)
                if stream.count == 1 and stream.first is not None:
                    self._validate_first(stream.first, latest, way, marks, target)
        self.spent += time.thread_time() - started

    def _pass(
        self, latest: _Latest, judge: _Judge | None, step: int, marks: Tensor
    ) -> _Pass | None:
        """The pass that a batch belongs to. Data that no loader names are known by their first sample."""
        root, name = latest.root, "" if judge is None else judge.name
        data = self._data if self._is_fresh else None
        if data is not None and data in self._loads and self._loads[data].begun:
            return None
        row = self._row
        if data is None and (row is None or row[:3] != (root.number, name, step)):
            row = self._row = (root.number, name, step, float(marks[0]))
        key = (root.number, name, data, None if data is not None or row is None else row[3])
        stream = self._streams.get(key)
        if stream is not None and stream.passes[-1].step != step:
            self._initial[root.number] = {}  # its first pass is over
        if stream is None:
            if len(self._streams) >= _MOST_STREAMS:
                self._forget_one()
            stream = self._streams[key] = _Stream(root, judge, data is not None)
        return stream.at(step)

    def _forget_one(self) -> None:
        """Of sets that were passed over once, without a loader, the oldest."""
        self._forgotten += 1
        once = (key for key, s in self._streams.items() if s.count == 1 and not s.is_loaded)
        key = next(once, None) or next(iter(self._streams))
        del self._streams[key]

    # ------------------------------------------------------------------ passes of ours

    def _training(
        self, latest: _Latest, judge: _Judge | None, way: _Way, target: Tensor | None
    ) -> _Tally | None:
        """What the model makes of the training samples now; None where it may not be asked."""
        root = latest.root
        kept = self._kept.get((root.number, "" if judge is None else judge.name))
        module = root.module()
        if module is None or kept is None or not kept.batches:
            return None
        first = kept.batches[0].target
        if target is not None and (
            first is None or first.is_floating_point() != target.is_floating_point()
        ):
            self.reason = "training and validation have targets of different kinds"
            return None
        if not self._may_spend(kept) or not _is_plain_context():
            return None
        return self._scored(module, root, kept, judge, way, {})

    def _look_back(self, stream: _Stream, latest: _Latest, judge: _Judge | None, way: _Way) -> None:
        """At the first validation pass: what it would have been before the training."""
        root, module = latest.root, latest.root.module()
        kept = self._kept.get((root.number, "" if judge is None else judge.name))
        initial = self._initial.get(root.number)
        if not initial or module is None or kept is None or self._left() < 3 * kept.seconds:
            return
        train = self._scored(module, root, kept, judge, way, initial)
        if train is not None:
            stream.first = _Pass(stream, -1, 0, train=train)

    def _validate_first(
        self, first: _Pass, latest: _Latest, way: _Way, marks: Tensor, target: Tensor | None
    ) -> None:
        module, judge = latest.root.module(), first.stream.judge
        if module is None or not _is_plain_context():
            return
        args, kwargs = latest.inputs
        batch = _Batch(args, kwargs, target, len(marks), marks, 0)
        with _unnoticed(module, latest.root.autocast):
            _run(first.validation, module, batch, judge, way, self._initial[latest.root.number])

    def _scored(
        self,
        module: nn.Module,
        root: Root,
        kept: _Kept,
        judge: _Judge | None,
        way: _Way,
        weights: Mapping[str, Tensor],
    ) -> _Tally | None:
        """The training samples by the model, or with other weights in it."""
        started = time.thread_time()
        tally = _Tally()
        try:
            with _unnoticed(module, root.autocast):
                for batch in kept.batches:
                    _run(tally, module, batch, judge, way, weights)
        except Exception as error:
            self._give_up(
                f"the model raised {type(error).__name__} on inputs that it was trained on"
            )
            return None
        finally:
            kept.seconds = time.thread_time() - started
            self._samples_spent += kept.samples
        return tally

    def _left(self) -> float:
        """The seconds that may still be spent."""
        return self._seconds + SHARE * (time.thread_time() - self._started) - self.spent

    def _may_spend(self, kept: _Kept) -> bool:
        """Whether a pass is within what may be spent; the first one decides on how many samples."""
        left = self._left()
        if kept.is_fixed:
            is_little = kept.seconds <= left
        else:
            most = math.inf if not self._price else left / self._price
            chosen, samples = [], 0
            for batch in _distinct(kept.batches):
                if samples + batch.samples <= min(most, MOST_SAMPLES):
                    chosen.append(batch)
                    samples += batch.samples
            if samples < min(_FEWEST, kept.samples):
                return False
            is_little = True
            kept.batches, kept.is_fixed = chosen, True
        if kept.batches[0].marks.device.type != "cpu":
            samples = self._samples_spent + kept.samples
            return samples <= _FREE_SAMPLES + 3 * SHARE * self._samples_trained.total()
        return is_little

    # ------------------------------------------------------------------ the end

    def generalization(
        self,
        guess: Callable[[str], float | None],
    ) -> Generalization | None:
        """What was measured, fetched from the device; None where nothing was.

        `guess` gives the loss of a constant answer by the loss function's name. Of several sets of data
        that are no training data, the one that most passes were made over is the validation data.
        """
        found = [
            (stream, points)
            for stream in self._streams.values()
            if (points := self._points(stream))
        ]
        if not found or (self._forgotten and not any(s.count > 1 or s.is_loaded for s, _ in found)):
            return None
        stream, points = max(found, key=lambda pair: pair[0].count)
        name = "" if stream.judge is None else stream.judge.name
        load = self._loads.get(self._trained_on)
        last = next(one for one in reversed(stream.passes) if one.train is not None)
        return Generalization(
            points,
            loss=name,
            guess=guess(name),
            epochs=self._epochs(stream.root.number, name),
            samples=None if load is None else load.samples,
            metric=last.validation.metric()[0],
            unit=last.validation.unit,
            site=stream.root.site,
        )

    def _epochs(self, root: int, name: str) -> float | None:
        """How often each training sample was seen, by the loader or by how many came back."""
        load = self._loads.get(self._trained_on)
        if load is not None:
            return load.epochs()
        size = self._kept[root, name].size()
        return None if not size else self._samples_trained[root] / size

    def _points(self, stream: _Stream) -> tuple[Checkpoint, ...]:
        """The checkpoints of a stream: of the samples that all of its passes looked at."""
        passes = [
            (one, one.validation.by_mark(), one.train.by_mark())
            for one in [*([stream.first] if stream.first else []), *stream.passes]
            if one.train is not None
        ]
        passes = [p for p in passes if _are_finite(p[1]) and _are_finite(p[2])]
        if not passes:
            return ()
        _, validation, train = passes[-1]
        same = len(validation.keys() & train.keys())
        if same > (_SHARED * min(len(validation), len(train)) if stream.is_loaded else 0):
            return ()  # the training data once more
        common = [m for m in validation if all(m in other for _, other, _ in passes)]
        if len(common) < len(validation) / 2:
            passes, common = passes[-1:], list(validation)  # others each time
        common = common[:MOST_SAMPLES]
        kept = [m for m in train if all(m in other for *_, other in passes)]
        return tuple(
            Checkpoint(
                one.step,
                one.train.scores([train[mark] for mark in kept]),
                one.validation.scores([validation[mark] for mark in common]),
            )
            for one, validation, train in passes
            if one.train is not None
        )

    # ------------------------------------------------------------------

    def _way(self, latest: _Latest, name: str, answer: Tensor) -> _Way | None:
        """Compared on a device only until it is known: that waits for it."""
        key = (latest.root.number, name)
        known = self._ways.get(key)
        if known is None or answer.device.type == "cpu":
            found = _way(latest.leaves, answer)
            if found is None:
                return None
            known = self._ways.setdefault(key, found)
            if (found.path, found.behind) != (known.path, known.behind):
                return None
        return known if known.shape is not None and known.shape[1:] == answer.shape[1:] else None

    def _give_up(self, reason: str) -> None:
        self._is_off, self.reason = True, reason
        self._kept.clear()
        self._offers.clear()
        self._streams.clear()
        self._latest = None

    @contextlib.contextmanager
    def _unheard(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # ours: the loop shall not hear of it
            self._give_up(f"{type(error).__name__}: {error}")


def _judged(
    tally: _Tally, judge: _Judge | None, marks: Tensor, answer: Tensor, target: Tensor | None
) -> None:
    """Add the losses of a batch, which are the model's own where nobody else judges it."""
    if judge is None or target is None:
        tally.add(marks, answer.float().reshape(1), None, None, "")
    else:
        tally.add(marks, judge.losses(answer, target, len(marks)), answer, target, judge.name)


def _run(
    tally: _Tally,
    module: nn.Module,
    batch: _Batch,
    judge: _Judge | None,
    way: _Way,
    weights: Mapping[str, Tensor],
) -> None:
    """Add what the model makes of a batch, with copies of its buffers."""
    tensors_in_use = {name: buffer.clone() for name, buffer in module.named_buffers()}
    tensors_in_use |= {
        name: t.clone() if name in tensors_in_use else t for name, t in weights.items()
    }
    output = torch.func.functional_call(module, tensors_in_use, batch.args, batch.kwargs)
    answer = way.of(output)
    if answer is None:
        raise LookupError("no answer")
    _judged(tally, judge, batch.marks, answer, batch.target)


@contextlib.contextmanager
def _unnoticed(module: nn.Module, autocast: tuple[str, Any] | None) -> Iterator[None]:
    """What runs within leaves nothing behind. Function modes are on again: an observer runs without."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(unobserved(leaving=False))
        stack.enter_context(torch._C._EnableTorchFunction())
        stack.enter_context(quiet())
        stack.enter_context(preserved(module))
        stack.enter_context(torch.no_grad())
        for device in ("cuda", "cpu"):
            is_on = autocast is not None and autocast[0] == device
            if is_on or torch.is_autocast_enabled(device):
                kind = autocast[1] if autocast is not None and is_on else None
                stack.enter_context(
                    torch.autocast(device, kind, enabled=is_on, cache_enabled=False)
                )
        yield


def _is_plain_context() -> bool:
    """Whether nobody records or changes what torch does just now."""
    modes = _get_current_function_mode_stack()  # type: ignore[no-untyped-call]
    return (
        all(isinstance(mode, DeviceContext) for mode in modes)
        and not torch._C._len_torch_dispatch_stack()
        and not torch._C._autograd._profiler_enabled()
    )


def _why_not(module: nn.Module, called: nn.Module) -> str | None:
    """What makes it unsafe to run the model once more in the user's process, None if nothing does."""
    if called is not module:
        return f"the model is called through {type(called).__name__}"
    if has_others():
        return "its forward may wait for other processes"
    if torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks:
        return "forward hooks are registered for all modules"
    for part in module.modules():
        if isinstance(part, torch.jit.ScriptModule):
            return "it is compiled by torch.jit"
        if getattr(part, "_compiled_call_impl", None) is not None:
            return "it is compiled"
        if part._forward_hooks or part._forward_pre_hooks:
            return "it has forward hooks"
        own = vars(part).get("forward")
        if own is not None and not str(getattr(own, "__module__", "")).startswith(_HARMLESS):
            return "the forward of one of its modules was replaced"
    return None


def _copy_of(module: nn.Module) -> dict[str, Tensor]:
    """Its weights and buffers, if they are few; none where it looks at them in another way."""
    held = dict(itertools.chain(module.named_parameters(), module.named_buffers()))
    size = sum(0 if is_lazy(t) else t.numel() * t.element_size() for t in held.values())
    flat = any(isinstance(part, nn.RNNBase) for part in module.modules())
    if size > MOST_BYTES / 2 or any(is_lazy(t) or (flat and not t.is_cpu) for t in held.values()):
        return {}
    return {name: t.detach().clone() for name, t in held.items()}


def _sizes(loader: Any) -> tuple[int | None, int | None]:
    """How many samples and batches a pass has, as far as the loader tells."""
    if isinstance(getattr(loader, "dataset", None), IterableDataset):
        return None, None
    with contextlib.suppress(Exception):  # the user's own code, which may not know
        return len(loader.sampler), len(loader)
    return None, None


def _versions(module: nn.Module) -> list[int]:
    """How often each of its weights and buffers was written to."""
    return [
        -1 if tensor.is_inference() else tensor._version
        for tensor in (*module.parameters(), *module.buffers())
    ]


def _samples(latest: _Latest) -> int | None:
    """How many samples the model was given: the first axis of its first input with axes."""
    given = next((t for _, t in tensors(latest.inputs) if t.dim()), None)
    return None if given is None or not len(given) else len(given)


def _copied(tensor: Tensor, samples: int, every: int) -> Tensor:
    part = tensor.detach()
    if every > 1 and part.dim() and len(part) == samples:
        part = part[::every]
    return part.clone()


def _distinct(batches: Sequence[_Batch]) -> list[_Batch]:
    """Without those that are there once more: of a loop that trains on all data at each step."""
    found: list[_Batch] = []
    for batch in batches:
        if not any(torch.equal(batch.marks, other.marks) for other in found):
            found.append(batch)
    return found


def _are_finite(losses: Mapping[float, float]) -> bool:
    return bool(losses) and all(map(math.isfinite, losses.values()))
