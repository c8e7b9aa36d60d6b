"""Tensors of which other processes hold a part. To ask for the whole would wait for them: not here.

Which steps are recorded is each process's own choice, so that a collective made for a figure would meet
none of the others', or one of the loop's. What lies here is looked at for what it can show; norms of a part
are no norms, and left out.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def here(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds: all of it, but for a DTensor's."""
    part: Any = getattr(tensor, "_local_tensor", None)
    return part if isinstance(part, Tensor) else tensor


def is_spread(tensor: Tensor) -> bool:
    """Whether other processes hold parts of it: a DTensor (FSDP2), or a parameter that FSDP flattened."""
    if isinstance(getattr(tensor, "_local_tensor", None), Tensor):
        return True
    return bool(getattr(tensor, "_fsdp_flattened", False)) and has_others()


def has_others() -> bool:
    """Whether other processes take part in what this one computes."""
    distributed = torch.distributed
    return (
        distributed.is_available()
        and distributed.is_initialized()
        and distributed.get_world_size() > 1
    )
