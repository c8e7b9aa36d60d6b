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
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn

from trainlint.generalization.curves import Generalization
from trainlint.observe.losses import (
    Judge,
    Tally,
    Way,
    add_judged,
    judge_of,
    marks_of,
    target_of,
    way_to,
)
from trainlint.observe.passes import (
    MOST_SAMPLES,
    Batch,
    Kept,
    Latest,
    Load,
    Pass,
    Stream,
    add_run,
    batch_of,
    distinct,
    points_of,
    samples_of,
    sizes_of,
)
from trainlint.observe.quiet import quiet
from trainlint.observe.recorder import LOSS_FUNCTIONS
from trainlint.observe.rerunning import (
    copy_of,
    is_plain_context,
    unnoticed,
    versions_of,
    why_not,
)
from trainlint.observe.roots import Forward, Root
from trainlint.observe.sharding import has_others
from trainlint.tree import tensors

# Validation samples of a pass that are looked at: more than are kept, since those of another pass may come
# in another order.
_MOST_LOOKED_AT: Final = 2048
# Where a loader tells how many training samples there are, so many show whether they come back.
_ENOUGH: Final = 8192
_MOST_STREAMS: Final = 16
_MOST_ROOTS: Final = 8
# Fewer tell too little to be worth a pass.
_FEWEST: Final = 64
# Of the run's time, beside the seconds that are free.
SHARE: Final = 0.01
# Where the device does not say what a pass takes, samples are counted: one that is trained on costs three.
_FREE_SAMPLES: Final = 2 * MOST_SAMPLES


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
        self._kept: dict[tuple[int, str], Kept] = {}
        self._offers: list[tuple[Forward, tuple[int, str], Batch]] = []
        self._latest: Latest | None = None
        self._ways: dict[tuple[int, str], Way] = {}
        self._streams: dict[Any, Stream] = {}
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
        self._loads: dict[Any, Load] = {}
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
            self._loads[self._data] = Load(*sizes_of(loader))

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
                self._initial[root.number] = copy_of(module)

    def trains_on(self, root: Root, inputs: Any, output: Any, forward: Forward) -> None:
        """A forward with a graph has ended, in a step that is recorded."""
        self._latest = None
        if self._is_off or root.number >= _MOST_ROOTS:
            return
        leaves = [(path, t.detach()) for path, t in tensors(output)]
        self._latest = Latest(root, inputs, leaves, forward)

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
            answer, target = args[0] if args else kwargs.get("input"), target_of(args, kwargs)
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
            self._kept.setdefault(key, Kept()).put(batch, self._random)

    def backward_ends(self) -> None:
        """What no backward pass has reached by now, is not trained on."""
        self._offers.clear()

    def _offer(self, latest: Latest, name: str, target: Tensor | None) -> None:
        """Keep copies of a batch, if it is drawn: as in a reservoir, without order."""
        key = (latest.root.number, name)
        kept = self._kept.setdefault(key, Kept())
        samples = samples_of(latest)
        if samples is None:
            return
        if kept.is_fixed:
            if self._trained_on is None or kept.later < _ENOUGH:
                kept.count_back(marks_of(latest.inputs, target, samples))
            return
        batch = batch_of(latest, target, samples) if kept.draws(samples, self._random) else None
        if batch is not None:
            assert latest.forward is not None
            self._offers.append((latest.forward, key, batch))

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
            self._versions = versions_of(module)
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
                reason = why_not(own, module)
                if reason is None and self._versions != versions_of(own):
                    reason = "its forward writes to its weights or buffers"
                if reason is not None:
                    self._give_up(reason)
                    return
            if own.training and root.sensitive:
                return
            leaves = [(path, t.detach()) for path, t in tensors(output)]
            self._latest = Latest(root, inputs, leaves, None)
            samples = samples_of(self._latest)
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
        answer, target = args[0] if args else kwargs.get("input"), target_of(args, kwargs)
        if not isinstance(answer, Tensor) or not isinstance(target, Tensor) or self._is_off:
            return
        with self._unheard():
            way, judge = self._way(latest, name, answer), judge_of(name, args, kwargs)
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
            self._add(latest, None, Way(path), loss.detach(), None, step)

    def _add(
        self,
        latest: Latest,
        judge: Judge | None,
        way: Way,
        answer: Tensor,
        target: Tensor | None,
        step: int,
    ) -> None:
        started = time.thread_time()
        samples = samples_of(latest)
        marks = None if samples is None else marks_of(latest.inputs, target, samples)
        one = None if marks is None else self._pass(latest, judge, step, marks)
        if one is not None and marks is not None:
            stream = one.stream
            if not one.validation.losses:
                one.train = self._training(latest, judge, way, target)
                if stream.count == 1 and one.train is not None:
                    self._look_back(stream, latest, judge, way)
            if one.train is not None and one.validation.samples < _MOST_LOOKED_AT:
                with quiet(), torch.no_grad():
                    add_judged(one.validation, judge, marks, answer, target)
                if stream.count == 1 and stream.first is not None:
                    self._validate_first(stream.first, latest, way, marks, target)
        self.spent += time.thread_time() - started

    def _pass(self, latest: Latest, judge: Judge | None, step: int, marks: Tensor) -> Pass | None:
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
            stream = self._streams[key] = Stream(root, judge, data is not None)
        return stream.at(step)

    def _forget_one(self) -> None:
        """Of sets that were passed over once, without a loader, the oldest."""
        self._forgotten += 1
        once = (key for key, s in self._streams.items() if s.count == 1 and not s.is_loaded)
        key = next(once, None) or next(iter(self._streams))
        del self._streams[key]

    # ------------------------------------------------------------------ passes of ours

    def _training(
        self, latest: Latest, judge: Judge | None, way: Way, target: Tensor | None
    ) -> Tally | None:
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
        if not self._may_spend(kept) or not is_plain_context():
            return None
        return self._scored(module, root, kept, judge, way, {})

    def _look_back(self, stream: Stream, latest: Latest, judge: Judge | None, way: Way) -> None:
        """At the first validation pass: what it would have been before the training."""
        root, module = latest.root, latest.root.module()
        kept = self._kept.get((root.number, "" if judge is None else judge.name))
        initial = self._initial.get(root.number)
        if not initial or module is None or kept is None or self._left() < 3 * kept.seconds:
            return
        train = self._scored(module, root, kept, judge, way, initial)
        if train is not None:
            stream.first = Pass(stream, -1, 0, train=train)

    def _validate_first(
        self, first: Pass, latest: Latest, way: Way, marks: Tensor, target: Tensor | None
    ) -> None:
        module, judge = latest.root.module(), first.stream.judge
        if module is None or not is_plain_context():
            return
        args, kwargs = latest.inputs
        batch = Batch(args, kwargs, target, len(marks), marks, 0)
        with unnoticed(module, latest.root.autocast):
            add_run(first.validation, module, batch, judge, way, self._initial[latest.root.number])

    def _scored(
        self,
        module: nn.Module,
        root: Root,
        kept: Kept,
        judge: Judge | None,
        way: Way,
        weights: Mapping[str, Tensor],
    ) -> Tally | None:
        """The training samples by the model, or with other weights in it."""
        started = time.thread_time()
        tally = Tally()
        try:
            with unnoticed(module, root.autocast):
                for batch in kept.batches:
                    add_run(tally, module, batch, judge, way, weights)
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

    def _may_spend(self, kept: Kept) -> bool:
        """Whether a pass is within what may be spent; the first one decides on how many samples."""
        left = self._left()
        if kept.is_fixed:
            is_little = kept.seconds <= left
        else:
            most = math.inf if not self._price else left / self._price
            chosen, samples = [], 0
            for batch in distinct(kept.batches):
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
            (stream, points) for stream in self._streams.values() if (points := points_of(stream))
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
            altered=self._kept[stream.root.number, name].never_return(
                None if load is None else load.samples
            ),
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

    # ------------------------------------------------------------------

    def _way(self, latest: Latest, name: str, answer: Tensor) -> Way | None:
        """Compared on a device only until it is known: that waits for it."""
        key = (latest.root.number, name)
        known = self._ways.get(key)
        if known is None or answer.device.type == "cpu":
            found = way_to(latest.leaves, answer)
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
