"""What the exception that ended a loop says about it: which check of torch's failed, and on what.

An exception tells more than its text does: the frame that raised it still holds the arguments.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from trainlint.sites import Site, owner_of


@dataclass(frozen=True)
class Failure:
    """An incident's kind, place and facts."""

    kind: str
    site: Site | None
    facts: dict[str, Any] = field(default_factory=dict)


def failure_in(error: BaseException) -> Failure | None:
    """What the exception is a sign of, or None where it says nothing that we know."""
    text = str(error)
    if isinstance(error, IndexError) and "out of bounds" in text:
        return _classes(error)
    if isinstance(error, RuntimeError) and "should be between 0 and 1" in text:
        return _probabilities(error, of_targets="of target" in text)
    if isinstance(error, ValueError) and "more than 1 value per channel" in text:
        return _single_value(error)
    return None


def _classes(error: BaseException) -> Failure | None:
    given = _locals_of(error, "cross_entropy", "nll_loss")
    if given is None:
        return None
    scores, targets, ignored = given["input"], given["target"], given.get("ignore_index", -100)
    classes = scores.shape[1] if scores.dim() > 1 else scores.shape[0]
    flat = targets.detach().reshape(-1)
    flat = flat[flat != ignored]
    wrong = (flat < 0) | (flat >= classes)
    facts = {
        "loss": given["loss"],
        "classes": classes,
        "least": int(flat.min()),
        "largest": int(flat.max()),
        "outside": int(wrong.sum()),
        "targets": flat.numel(),
        "first": int(flat[wrong][0]) if bool(wrong.any()) else None,
        "others": [int(value) for value in flat[wrong].unique()[:4]],
    }
    return Failure("targets-refused", _site_of(error), facts)


def _probabilities(error: BaseException, *, of_targets: bool) -> Failure | None:
    given = _locals_of(error, "binary_cross_entropy")
    if given is None:
        return None
    values = given["target" if of_targets else "input"].detach()
    facts = {
        "loss": given["loss"],
        "least": float(values.min()),
        "largest": float(values.max()),
        "outside": int(((values < 0) | (values > 1)).sum()),
        "targets": values.numel(),
    }
    made_by = given["input"].grad_fn
    if not of_targets and made_by is not None:
        facts["made_by"] = made_by.name().removesuffix("0").removesuffix("Backward")
    kind = "targets-refused" if of_targets else "scores-refused"
    return Failure(kind, _site_of(error), facts)


def _single_value(error: BaseException) -> Failure | None:
    size, module = None, None
    for step in _steps(error):
        frame = step.tb_frame
        if frame.f_code.co_name == "_verify_batch_size":
            size = list(frame.f_locals.get("size", ()))
        elif isinstance(frame.f_locals.get("self"), torch.nn.Module):
            module = frame.f_locals["self"]
    if size is None:
        return None
    return Failure("batchnorm-single-value", _site_of(error), {"size": size, "module": module})


def _locals_of(error: BaseException, *names: str) -> dict[str, Any] | None:
    """The arguments of the innermost function of torch's with such a name."""
    found = None
    for step in _steps(error):
        code = step.tb_frame.f_code
        if code.co_name in names and owner_of(code.co_filename) == "torch":
            values = step.tb_frame.f_locals
            if all(isinstance(values.get(name), Tensor) for name in ("input", "target")):
                found = {**values, "loss": code.co_name}
    return found


def _site_of(error: BaseException) -> Site | None:
    """The innermost line outside of torch, of the project where there is one.

    A frame that goes on running, as the one around a `with` does, is elsewhere by now.
    """
    nearest: Site | None = None
    own: Site | None = None
    for step in _steps(error):
        owner = owner_of(step.tb_frame.f_code.co_filename)
        if owner == "torch":
            continue
        site = Site(step.tb_frame)
        site.row, site.instruction = step.tb_lineno, step.tb_lasti
        nearest = site
        own = site if owner == "project" else own
    if nearest is not None and own is not None:
        nearest.project = own
    return nearest


def _steps(error: BaseException) -> Iterator[TracebackType]:
    step = error.__traceback__
    while step is not None:
        yield step
        step = step.tb_next
