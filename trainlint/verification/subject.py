"""What is trained to try a change: a model with its optimizer and setup, and data that stay the same.

In the process that trains.
"""

from __future__ import annotations

import ast
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from types import ModuleType
from typing import TYPE_CHECKING

from trainlint.generalization.laboratory import optimizer_for, setup_with_loss, stepping
from trainlint.generalization.trials import Copy
from trainlint.verification.training import seed_all

if TYPE_CHECKING:
    from torch import nn

    from trainlint.capture.inputs import Inputs
    from trainlint.fixes.patch import Patch
    from trainlint.fixes.source import SourceText
    from trainlint.loss.uses import Recipe
    from trainlint.probe.setup import Setup
    from trainlint.surgery.patching import Patched


def subject_of(
    model: nn.Module, recipe: Recipe, patches: Sequence[Patch] = (), seed: int = 0
) -> Copy:
    """The model itself, patched, with what its file trains it with, for a training of its own loop or ours.

    An optimizer that is a function of the model is made. Raises `ProbeProblem` where a patch is refused.
    """
    setup = recipe.setup
    if setup.train is None:
        setup = setup_with_loss(model, recipe)
        if setup.step is not None:
            model, setup = stepping(model, setup)
    return _changed(model, setup, patches, seed).subject


def found_rate(
    model: nn.Module, recipe: Recipe, patches: Sequence[Patch], seed: int = 0
) -> float | None:
    """The learning rate that a range test among the patches chooses. Raises `ProbeProblem`."""
    setup = recipe.setup if recipe.setup.train is not None else setup_with_loss(model, recipe)
    return _changed(model, setup, patches, seed).rate


def checked_subject(
    model: nn.Module, recipe: Recipe, patches: Sequence[Patch], inputs: Inputs | None
) -> tuple[nn.Module, Recipe]:
    """The model itself, patched, and the recipe for a check of it."""
    subject = _changed(model, recipe.setup, patches, 0, inputs).subject
    return subject.model, recipe_with(recipe, subject)


def _changed(
    model: nn.Module,
    setup: Setup,
    patches: Sequence[Patch],
    seed: int,
    inputs: Inputs | None = None,
) -> Patched:
    from trainlint.surgery.patching import Patched, patched

    known = setup.optimizer if setup.train is not None else optimizer_for(setup)
    optimizer = known(model) if callable(known) and setup.train is None else known
    subject = Copy(model, optimizer, setup)
    if not patches:
        return Patched(subject)
    return patched(subject, patches, inputs=inputs, seed=seed)


def recipe_with(recipe: Recipe, subject: Copy) -> Recipe:
    """The recipe with the setup of a changed copy; another loss counts for what reads the loss."""
    if subject.setup.loss is recipe.setup.loss or recipe.explicit:
        loss = subject.setup.loss if recipe.explicit else recipe.loss
        return replace(recipe, setup=subject.setup, loss=loss)
    return replace(recipe, setup=subject.setup, loss=subject.setup.loss, explicit=True, uses=())


def steadily(seed: int, text: SourceText) -> Callable[[ast.stmt, ModuleType], None]:
    """For `load_file`: each statement draws its random numbers afresh, by the seed and its own text.

    So the data come out the same whatever an edit makes the model draw before them.
    """
    seed_all(seed)
    body = [] if text.tree is None else text.tree.body
    counts: Counter[str] = Counter()
    keys: dict[tuple[int, int], int] = {}
    for statement, following in pairwise(body):
        written = ast.dump(following)
        counts[written] += 1
        place = (statement.lineno, statement.col_offset)
        keys[place] = zlib.crc32(f"{seed} {counts[written]} {written}".encode())

    def after(statement: ast.stmt, _: ModuleType) -> None:
        key = keys.get((statement.lineno, statement.col_offset))
        if key is not None:
            seed_all(key)

    return after
