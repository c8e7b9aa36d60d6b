"""Which steps of a training loop are recorded: as many as cost little beside the loop's own time."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterable
from typing import Final

FIRST_STEPS: Final = 5
MOST_RECORDED: Final = 128
# Forwards of one step beyond this are not looked into; nor are those of a loop without steps.
MOST_FORWARDS: Final = 128
# What recording may cost, on average over all steps. The other two of the five parts in a hundred are for
# what is done at each step.
OVERHEAD: Final = 0.03
# Seconds of recording that no one will miss, beside what Python needs to start and to import torch.
FREE: Final = 1.0
# What has come out alike in the first steps, is looked at in every so many recorded ones.
_LOOK_AGAIN: Final = 8
# So many steps of either kind tell what one costs.
_FEWEST: Final = 3


class Pace:
    """Counts the steps of a loop, and says whether the one under way is recorded.

    Each `period` steps after the first five; 0 adapts it, so that recording costs about 5% on average,
    and so many `free` seconds besides.
    """

    def __init__(self, period: int, free: float) -> None:
        self._period = period
        self._free = free
        self.step = 0
        self.is_recording = False
        # Those that were, with every other one forgotten each time that they become too many.
        self.recorded: list[int] = []
        self._thinned = 1
        self._next = 0
        self._forwards = 0
        # Of this thread alone: what others wait or work for, says nothing of what we cost.
        self._clock = time.thread_time()
        self._costs: dict[bool, deque[float]] = {True: deque(maxlen=16), False: deque(maxlen=16)}

    def forward_begins(self) -> None:
        """A forward that may be trained on: the step's recording begins with the first, if it is due."""
        if self.step >= self._next:
            self.is_recording = True
        self._forwards += 1

    @property
    def is_looking_in(self) -> bool:
        """Whether the latest forward is recorded."""
        return self.is_recording and self._forwards <= MOST_FORWARDS

    @property
    def is_asked_again(self) -> bool:
        """Whether what has come out alike so far is to be looked at again, if this step is recorded."""
        return not len(self.recorded) % _LOOK_AGAIN

    def step_ends(self) -> None:
        """Take the time of the step: what is done from here on, counts for the next."""
        now = time.thread_time()
        if self.is_recording:
            if len(self._costs[False]) >= _FEWEST:
                self._free -= max(0.0, now - self._clock - _low(self._costs[False]))
            self.recorded.append(self.step)
        self._costs[self.is_recording].append(now - self._clock)
        self._clock = now

    def next_begins(self) -> None:
        """Go on to the next step."""
        self.step += 1
        self._forwards = 0
        self.is_recording = False
        if self.step < FIRST_STEPS:
            self._next = self.step
        elif self.step > self._next:
            self._next = self.step - 1 + self._gap()

    def record_at_once(self) -> None:
        """The next forward is recorded, whatever that costs."""
        self._next = self.step

    def leave_out(self, seconds: float, *, free: float = 0.0) -> None:
        """What took so many seconds is no part of the step; `free` of them are taken of what is free."""
        self._clock += seconds
        self._free -= free

    def keep_every_other(self) -> bool:
        """Forget every other recorded step, if they are too many. Tells whether they were."""
        is_too_much = len(self.recorded) > MOST_RECORDED
        if is_too_much:
            self.recorded = self.recorded[::2]
            self._thinned *= 2
        return is_too_much

    def _gap(self) -> int:
        """Steps from one recorded step to the next."""
        if self._period:
            return self._period
        recorded, bare = self._costs[True], self._costs[False]
        if len(recorded) < _FEWEST or len(bare) < _FEWEST or self._free > 0:
            return 3
        extra = _low(recorded) / max(_low(bare), 1e-9) - 1
        # Some steps stay bare, to compare with. Odd: models that take turns are then each recorded. Once
        # every other is forgotten, more than are left are of no use.
        return min(1001, max(3, self._thinned * math.ceil(extra / OVERHEAD))) | 1


def _low(values: Iterable[float]) -> float:
    """The lower quartile: what a step costs where nothing else got in the way."""
    ordered = sorted(values)
    return ordered[len(ordered) // 4]
