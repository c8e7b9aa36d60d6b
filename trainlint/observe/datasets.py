"""The data of a watched loop, read when it is over: the fact `Data`.

Comes in: which `DataLoader`s were passed over, for training and for validation. Goes out: what they give.
Of the last of either a copy is held, which has no worker processes, so that their data are still there when
the function that made them has returned. They are read in this process, unheard, and with all random
states as before. What is read only as it comes (`IterableDataset`), is not read a second time.
"""

from __future__ import annotations

import ast
import contextlib
import copy
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from torch.utils.data import IterableDataset

from trainlint.observe.hooks import unobserved
from trainlint.observe.quiet import quiet
from trainlint.sites import Site

if TYPE_CHECKING:
    from trainlint.data.facts import Data, SplitData

LEAST_SECONDS: Final = 1.0
MOST_SECONDS: Final = 6.0
SHARE: Final = 0.05
# By how much a single sample may outlast the time of all.
_PATIENCE: Final = 2.0
_ALONE: Final = {
    "num_workers": 0,
    "prefetch_factor": None,
    "timeout": 0,
    "persistent_workers": False,
    "pin_memory": False,
    "_iterator": None,
}


@dataclass(frozen=True)
class _Held:
    """A copy of a loader, and where the loader was made."""

    loader: Any
    site: Site | None


class Datasets:
    """The loaders that a loop trains on and validates on, as they were last passed over."""

    def __init__(self) -> None:
        self._passing: _Held | None = None
        self._train: _Held | None = None
        self._validation: _Held | None = None
        self.problem = ""

    def passes(self, loader: Any, site: Site | None) -> None:
        """A pass over this loader begins."""
        self._passing = None
        if isinstance(getattr(loader, "dataset", None), IterableDataset):
            return
        with contextlib.suppress(Exception):  # a class of the user's own may refuse to be copied
            held = copy.copy(loader)
            vars(held).update({name: value for name, value in _ALONE.items() if name in vars(held)})
            self._passing = _Held(held, site)

    def trained(self) -> None:
        """What the pass gave was trained on."""
        if self._passing is not None:
            self._train, self._passing = self._passing, None

    def evaluated(self) -> None:
        """What it gave was evaluated."""
        held, self._passing = self._passing, None
        if held is not None and not (self._train and _is_same(held.loader, self._train.loader)):
            self._validation = held

    def read(self, run: float, *, trainable: int, has_loss: bool) -> Data | None:
        """Read for a second, or 5 % of the `run`'s seconds. None where no loader was trained on.

        Nothing is raised, also where the data cannot be read: `problem` says why then.
        """
        train, validation = self._train, self._validation
        self.problem = ""
        if train is None:
            return None
        if validation is not None and _is_same(validation.loader, train.loader):
            validation = None  # evaluated before it was trained on
        from trainlint.data.describing import described
        from trainlint.probe.batches import ProbeProblem

        seconds = min(MOST_SECONDS, max(LEAST_SECONDS, SHARE * run))
        names = {
            "train_loader": _name(train.site) or "train_loader",
            "val_loader": (validation and _name(validation.site)) or "val_loader",
        }
        if len(set(names.values())) < len(names):  # made at one line
            names = {part: part for part in names}
        try:
            with unobserved(), quiet(), _ended_after(_PATIENCE * seconds):
                found = described(
                    train.loader,
                    None if validation is None else validation.loader,
                    names=names,
                    has_loss=has_loss,
                    trainable=trainable,
                    seconds=seconds,
                )
        except ProbeProblem as problem:
            self.problem = str(problem)
        except _TimeUp:
            self.problem = "reading a sample takes too long"
        except Exception as error:
            self.problem = f"{type(error).__name__}: {error}"
        else:
            return replace(
                found,
                train=replace(found.train, site=train.site),
                validation=_placed(found.validation, validation),
            )
        return None


def _is_same(first: Any, second: Any) -> bool:
    """Whether two loaders give the same samples."""
    indices = [getattr(getattr(x, "sampler", None), "indices", None) for x in (first, second)]
    return first.dataset is second.dataset and indices[0] is indices[1]


def _placed(split: SplitData | None, held: _Held | None) -> SplitData | None:
    return split if split is None or held is None else replace(split, site=held.site)


def _name(site: Site | None) -> str | None:
    """What a loader is called where it is made: `train_loader = DataLoader(...)`."""
    from trainlint.analysis.methods import source_of

    source = None if site is None else source_of(site.filename)
    if site is None or source is None or source.tree is None:
        return None
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Assign) and node.lineno <= site.row <= (node.end_lineno or 0):
            (target,) = node.targets[:1]
            made = isinstance(node.value, ast.Call) and len(node.targets) == 1
            return target.id if made and isinstance(target, ast.Name) else None
    return None


class _TimeUp(BaseException):
    """Ends the user's code from within. No `except Exception` catches it."""


@contextlib.contextmanager
def _ended_after(seconds: float) -> Iterator[None]:
    """End what runs within, where nobody else waits for the alarm."""
    alarm: Any = getattr(signal, "SIGALRM", None)
    if (
        alarm is None
        or threading.current_thread() is not threading.main_thread()
        or signal.getsignal(alarm) is not signal.SIG_DFL
        or signal.getitimer(signal.ITIMER_REAL)[0]
    ):
        yield
        return

    def end(*_: Any) -> None:
        raise _TimeUp

    signal.signal(alarm, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(alarm, signal.SIG_DFL)
