"""Assertions on models: what they take, and what they say of a call that makes no sense."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import trainlint
from trainlint import testing
from trainlint.probe.constant import best_mixture
from trainlint.rule import Severity

torch.manual_seed(0)
X, Y = torch.randn(16, 8), torch.randint(3, (16,))
LOSS = nn.CrossEntropyLoss()


def mlp(*middle: nn.Module, width: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 32), *(middle or (nn.ReLU(),)), nn.Linear(32, width))


def mixing() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 3), nn.Softmax(dim=0))


@dataclass
class Answer:
    scores: Tensor
    loss: Tensor | None


class Reader(nn.Module):
    """As a model of transformers: arguments by keyword, the loss its own, where there are labels."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.layers = nn.Embedding(50, 16), mlp(nn.ReLU())
        self.middle = nn.Linear(16, 8)

    def forward(self, *, ids: Tensor, mask: Tensor, labels: Tensor | None = None) -> Answer:
        scores = self.layers(self.middle((self.table(ids) * mask[..., None]).mean(1)))
        return Answer(scores, None if labels is None else functional.cross_entropy(scores, labels))


IDS = torch.randint(50, (16, 6))
NAMED = {"ids": IDS, "mask": torch.ones(16, 6)}


# ---------------------------------------------------------------------- what they take


@pytest.mark.parametrize("inputs", [NAMED, {**NAMED, "labels": Y}, UserDict(NAMED)])
@pytest.mark.parametrize(
    "assertion",
    [
        testing.assert_clean,
        testing.assert_gradients_flow,
        testing.assert_no_dead_units,
        testing.assert_restores,
        testing.assert_same_in_eval,
        testing.assert_samples_independent,
    ],
)
def test_inputs_by_keyword(assertion: Callable[..., Any], inputs: Any) -> None:
    assertion(Reader, inputs)


def test_samples_by_keyword_are_learnt() -> None:
    known = testing.assert_learns(Reader, NAMED, Y, lambda out, y: LOSS(out.scores, y))
    own = testing.assert_learns(Reader, {**NAMED, "labels": Y})
    assert max(known, own) < 0.5
    with pytest.raises(ValueError, match=r"no loss: give one, or a model that returns its own"):
        testing.assert_learns(Reader, NAMED)


def unknown(scores: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy in other words."""
    return (torch.logsumexp(scores, 1) - scores.gather(1, y[:, None])[:, 0]).mean()


class Own(Reader):
    def forward(self, *, ids: Tensor, mask: Tensor, labels: Tensor | None = None) -> Answer:
        scores = super().forward(ids=ids, mask=mask).scores
        return Answer(scores, None if labels is None else unknown(scores, labels))


def test_a_loss_of_which_nothing_is_known() -> None:
    assert testing.assert_learns(mlp, X, Y, unknown) < 0.5
    assert testing.assert_learns(mlp, X, Y, unknown, constant_loss=1.1) < 0.5
    with pytest.raises(AssertionError, match=r"% of that of the best mixture of its outputs, "):
        testing.assert_learns(lambda: mlp(nn.Hardtanh(-1e-6, 1e-6)), X, Y, unknown)
    with pytest.raises(ValueError, match=r"is not known: give it as constant_loss"):
        testing.assert_learns(Own, {**NAMED, "labels": Y})
    assert testing.assert_learns(Own, {**NAMED, "labels": Y}, constant_loss=1.1) < 0.5


def test_the_best_mixture_is_no_better_than_the_best_constant() -> None:
    scores = torch.randn(16, 3, generator=torch.Generator().manual_seed(1)) * 3
    y = torch.arange(16) % 3
    entropy = float(torch.distributions.Categorical(torch.bincount(y) / 16).entropy())
    least = best_mixture(scores, 16, y, LOSS)
    assert least is not None
    assert entropy - 1e-5 < least < LOSS(scores, y)
    assert least == pytest.approx(entropy, rel=0.1)
    assert best_mixture(scores, 16, y, lambda out, y: out.no_such_part) is None


class Branches(nn.Module):
    """Layers that get no gradient, `stopped` and `unused`, and one whose gradient is 0, `first`."""

    def __init__(self) -> None:
        super().__init__()
        self.stopped, self.unused = nn.Linear(8, 32), nn.Linear(8, 8)
        self.first, self.second = nn.Linear(32, 32), nn.Linear(32, 32)
        self.out = nn.Linear(32, 3)
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = torch.relu(self.stopped(x))
        return self.out(x + self.second(torch.relu(self.first(x))))


def without(model: Any, *names: str) -> Any:
    for name in names:
        model.get_submodule(name).requires_grad_(False)
    return model


class Skipping(nn.Module):
    """A layer that is left out by chance in training, and one of which all samples take another."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.out = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x if self.training else x + self.one(x))


def test_each_trainable_parameter_gets_a_gradient() -> None:
    with pytest.raises(AssertionError) as raised:
        testing.assert_gradients_flow(Branches, X, targets=Y, loss=LOSS)
    lines = str(raised.value).splitlines()
    assert lines[0] == "no gradient comes to 4 parameters of Branches, 14% of what is trainable:"
    assert [line.split(" (")[0] for line in lines[1:3]] == [
        "  stopped.weight, stopped.bias", "  unused.weight, unused.bias",
    ]  # fmt: skip
    assert all("test_testing.py:" in line for line in lines[1:3])
    testing.assert_gradients_flow(
        Branches, X, unreached=["stopped", "unused.weight", "unused.bias"]
    )
    testing.assert_gradients_flow(without(Branches(), "stopped", "unused"), X, targets=Y, loss=LOSS)
    testing.assert_gradients_flow(Skipping, X)
    testing.assert_gradients_flow(lambda: nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 2)), X)
    with pytest.raises(ValueError, match="no parameter or module 'stoped'"):
        testing.assert_gradients_flow(mlp, X, unreached=["stoped"])


def test_a_loss_without_targets_is_used() -> None:
    twice = nn.Sequential(mlp(), nn.Softmax(1))
    testing.assert_clean(twice, X, ignore="ACT,INI")
    with pytest.raises(AssertionError, match="LOS001"):
        testing.assert_clean(twice, X, loss=LOSS)


# ---------------------------------------------------------------------- misuse


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"stages": ["singal"]}, "stage must be one of static, .*, not 'singal'; did you mean signal"),
        ({"stages": []}, "no stage, so that nothing would be checked; there are static, data"),
        ({"ignore": "NRM0O5"}, "unknown rule 'NRM0O5'"),
        ({"select": ["NRM", "batch-mixin"]}, "unknown rule 'batch-mixin'; did you mean batch-mixing"),
        ({"fail_on": "erorr"}, "fail_on must be one of error, warning, info, .*; did you mean error"),
        ({"fail_on": "never"}, "fail_on must be one of error, warning, info, not 'never'"),
        ({"loss": "cross_entropy"}, "the loss is str 'cross_entropy': give a function of"),
    ],
)  # fmt: skip
def test_words_that_nobody_knows(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        testing.assert_clean(mixing, X, **options)


def test_words_are_the_same_everywhere() -> None:
    report = trainlint.check(mixing, X, stages="static,signal", ignore="NRM005")
    assert [finding.code for finding in report.findings] == ["ACT003"]
    assert trainlint.check(mixing, X, ignore="ACT003, ARC").findings == []
    with pytest.raises(ValueError, match="did you mean signal"):
        trainlint.check(mixing, X, stages=["singal"])
    with pytest.raises(ValueError, match="no stage"):
        trainlint.watch(stages=())
    with pytest.raises(ValueError, match="unknown rule 'NRM0O5'"):
        trainlint.watch(ignore="NRM0O5")
    with pytest.raises(ValueError, match=f"{', '.join(Severity)}, never, not 'all'"):
        report.exit_status("all")
    with pytest.raises(ValueError, match="over must be one of width"):
        trainlint.sweep("net.py", over="widht")


class Block(nn.Module):
    def __init__(self, width: int, depth: int) -> None:
        super().__init__()


class Weighted(nn.Module):
    def __init__(self, weight: Tensor) -> None:
        super().__init__()


@pytest.mark.parametrize(
    ("call", "kind", "said"),
    [
        (lambda: testing.assert_learns(mlp, X, Y[:12], LOSS), ValueError,
         r"must count the same samples: 16 in inputs, 12 in targets"),
        (lambda: testing.assert_learns(mlp, {"x": X[:4]}, Y[:4], LOSS), ValueError,
         r"at least 8 samples are needed, on the first axis of all: 4"),
        (lambda: testing.assert_learns(mlp().requires_grad_(False), X, Y, LOSS), AssertionError,
         r"Sequential cannot learn: nothing is trainable"),
        (lambda: testing.assert_learns(mlp, X[:, :5], Y, LOSS), AssertionError,
         r"Sequential does not run on \(16, 5\) float32: [^\n]*\n\n1\. \[error\] layer-input-mismatch"),
        (lambda: testing.assert_no_dead_units(mlp, X[:, :5]), AssertionError, r"layer-input-mismatch"),
        (lambda: testing.assert_restores(mlp, X[:, :5]), AssertionError, r"layer-input-mismatch"),
        (lambda: testing.assert_learns(mlp, X, Y + 5, LOSS), ValueError,
         r"the loss raised IndexError: Target \d is out of bounds.*, on targets \(16,\) int64 from 5 to 7"),
        (lambda: testing.assert_learns(mlp, X, Y, Weighted), ValueError,
         r"the loss is a class, Weighted, which needs arguments \(weight\): give an instance"),
        (lambda: testing.assert_learns(mlp, X, Y, lambda out, y: -out.softmax(1).mean()), ValueError,
         r"a share of which means nothing"),
        *((lambda each=each: each(Block, X), ValueError,
           r"Block needs arguments \(width, depth\): give an instance, or a function that makes one")
          for each in (testing.assert_clean, testing.assert_restores, testing.assert_gradients_flow)),
    ],
)  # fmt: skip
def test_misuse_is_named(call: Callable[[], Any], kind: type[Exception], said: str) -> None:
    with pytest.raises(kind, match=said):
        call()


def test_a_loss_that_is_a_class_is_made_an_instance() -> None:
    assert testing.assert_learns(mlp, X, Y, nn.CrossEntropyLoss) < 0.5
    testing.assert_gradients_flow(mlp, X, targets=Y, loss=nn.CrossEntropyLoss)
