"""Canonical names, writing in place, and the families that rules ask for."""

from __future__ import annotations

import operator

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from trainlint import ops
from trainlint.ops import canonical_name, writes_in_place


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (Tensor.__add__, "add"), (Tensor.__radd__, "add"), (Tensor.__iadd__, "add"),
        (Tensor.__rsub__, "sub"), (torch.rsub, "sub"), (Tensor.__truediv__, "div"),
        (Tensor.__rtruediv__, "div"), (Tensor.__itruediv__, "div"), (torch.true_divide, "div"),
        (Tensor.__floordiv__, "floor_divide"), (Tensor.__mod__, "remainder"),
        (Tensor.__matmul__, "matmul"), (Tensor.__rmatmul__, "matmul"), (torch.mm, "matmul"),
        (torch.bmm, "matmul"), (Tensor.__getitem__, "getitem"), (Tensor.__setitem__, "setitem"),
        (operator.getitem, "getitem"), (Tensor.__neg__, "neg"), (Tensor.__invert__, "invert"),
        (Tensor.__rpow__, "pow"), (Tensor.__ipow__, "pow"), (Tensor.__or__, "or"),
        (Tensor.__ror__, "or"), (Tensor.relu_, "relu"), (F.leaky_relu_, "leaky_relu"),
        (Tensor.view, "reshape"), (Tensor.T.__get__, "get_T"), (Tensor.data.__get__, "get_data"),
        (Tensor.data.__set__, "set_data"), (torch.special.expit, "sigmoid"),
        (torch.concatenate, "cat"), (torch.clip, "clamp"), (torch.swapaxes, "transpose"),
        (torch._softmax, "softmax"), (Tensor.index_put_, "index_put"), (Tensor.__iter__, "iter"),
    ],
)  # fmt: skip
def test_canonical_names(function: object, name: str) -> None:
    assert canonical_name(function) == name


@pytest.mark.parametrize(
    "function",
    [
        Tensor.add_, Tensor.relu_, Tensor.__iadd__, Tensor.__imul__, Tensor.__itruediv__,
        Tensor.__setitem__, Tensor.copy_, F.relu_, torch.nn.init.normal_, Tensor.masked_fill_,
        Tensor.__ior__, Tensor.__ifloordiv__,
    ],
)  # fmt: skip
def test_these_write_in_place(function: object) -> None:
    assert writes_in_place(function)


@pytest.mark.parametrize(
    "function",
    [
        Tensor.add, Tensor.__add__, Tensor.__radd__, Tensor.__getitem__, torch.relu, F.relu,
        Tensor.__invert__, Tensor.__iter__, Tensor.__int__, Tensor.__index__, Tensor.T.__get__,
    ],
)  # fmt: skip
def test_these_do_not(function: object) -> None:
    assert not writes_in_place(function)


def test_canonical_names_are_stable() -> None:
    """A canonical name is its own canonical name, so that no family can hold a name never given."""
    for family in FAMILIES:
        for name in family:
            assert ops.ALIASES.get(name, name) == name, name
            assert not name.endswith("_"), name
    assert not set(ops.ALIASES) & set(ops.ALIASES.values())


FAMILIES = [
    ops.WEIGHTED, ops.RECURRENT, ops.ATTENTION, ops.NORMALIZATIONS, ops.DROPOUTS,
    ops.REARRANGEMENTS, ops.PARTS, ops.SPATIAL, ops.MAX_POOLS, ops.ACTIVATIONS,
    ops.NON_DIFFERENTIABLE, frozenset(ops.MAX_SLOPE),
]  # fmt: skip


def test_an_activation_is_no_rearrangement() -> None:
    assert not ops.ACTIVATIONS & ops.REARRANGEMENTS
    assert not ops.WEIGHTED & ops.NORMALIZATIONS
    assert set(ops.MAX_SLOPE) <= ops.ACTIVATIONS


@pytest.mark.parametrize("name", [n for n in ops.MAX_SLOPE if n != "softmax"])
def test_the_largest_slopes_are_those_of_torch(name: str) -> None:
    x = torch.linspace(-8, 8, 100_001, dtype=torch.double, requires_grad=True)
    getattr(F, name)(x).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().max().item() == pytest.approx(ops.MAX_SLOPE[name], rel=1e-6)


def test_the_largest_slope_of_softmax_is_reached_by_two_equal_halves() -> None:
    p = torch.tensor([0.5, 0.5, 0.0], dtype=torch.double)
    jacobian = torch.diag(p) - torch.outer(p, p)
    assert torch.linalg.matrix_norm(jacobian, 2).item() == pytest.approx(ops.MAX_SLOPE["softmax"])
    logits = torch.randn(500, 5, dtype=torch.double) * 3
    for row in logits:
        p = row.softmax(0)
        norm = torch.linalg.matrix_norm(torch.diag(p) - torch.outer(p, p), 2)
        assert norm <= ops.MAX_SLOPE["softmax"] + 1e-12


@pytest.mark.parametrize("name", sorted(ops.REARRANGEMENTS - {"identity", "alias"}))
def test_rearrangements_exist_in_torch(name: str) -> None:
    bare = name.removeprefix("get_")
    assert hasattr(Tensor, bare) or hasattr(torch, bare), name
