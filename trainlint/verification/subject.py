"""What is trained to try a change: a model with its optimizer and setup, and data that stay the same.

In the process that trains.
"""

from __future__ import annotations

import ast
import zlib
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from types import ModuleType
from typing import TYPE_CHECKING

from trainlint.generalization.laboratory import optimizer_for, setup_with_loss, stepping
from trainlint.generalization.trials import Copy
from trainlint.verification.training import seed_all

if TYPE_CHECKING:
    from torch import nn

    from trainlint.fixes.source import SourceText
    from trainlint.loss.uses import Recipe


def subject_of(model: nn.Module, recipe: Recipe) -> Copy:
    """The model itself with what its file trains it with; its optimizer is made where it is a function."""
    setup = recipe.setup
    if setup.train is not None:
        return Copy(model, setup.optimizer, setup)
    setup = setup_with_loss(model, recipe)
    if setup.step is not None:
        model, setup = stepping(model, setup)
    optimizer = optimizer_for(setup)
    return Copy(model, optimizer(model) if callable(optimizer) else optimizer, setup)


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
