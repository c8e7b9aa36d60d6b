"""From loaders to the fact `Data`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from trainlint.data.facts import Data, SplitData
from trainlint.data.pool import Pool, pool_of
from trainlint.preserve import random_states
from trainlint.probe.batches import same_draws

if TYPE_CHECKING:
    from torch import nn

    from trainlint.probe.setup import Setup

MOST: Final = 4096


def data_of(model: nn.Module, setup: Setup) -> Data:
    """What the loaders of a setup give. Raises `ProbeProblem` where the training data cannot be read.

    The model is only asked for its signature. Random states and the loaders' generators are as before.
    """
    names = setup.names
    with random_states(), same_draws(setup.train_loader, setup.val_loader):
        train = _split(pool_of(setup.train_loader, names.get("train_loader", "train_loader")))
        validation = None
        if setup.val_loader is not None:
            validation = _split(pool_of(setup.val_loader, names.get("val_loader", "val_loader")))
    return Data(
        train, validation, trainable=sum(p.numel() for p in model.parameters() if p.requires_grad)
    )


def _split(pool: Pool, site: Any = None) -> SplitData:
    return SplitData(
        pool.name,
        site,
        pool.size if pool.whole else None,
        pool.size,
        pool.batch_size,
        pool.shuffles,
        None,
        (),
        None,
    )
