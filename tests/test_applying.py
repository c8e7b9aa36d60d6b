"""Changes of a training, made on a copy: each does what it says, and to the copy alone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from trainlint.data.pool import pool_of
from trainlint.generalization.applying import Applied, applied, has_images, varied_trial
from trainlint.generalization.trials import Plan, copied, trial
from trainlint.generalization.variants import Variant
from trainlint.probe.batches import Batch, ProbeProblem
from trainlint.probe.setup import Setup

GROUP = {"lr": 0.01}


def net(*, dropout: float | None = None) -> nn.Sequential:
    torch.manual_seed(0)
    hidden = [nn.Linear(8, 32), nn.LayerNorm(32), nn.ReLU()]
    return nn.Sequential(
        *hidden, *([] if dropout is None else [nn.Dropout(dropout)]), nn.Linear(32, 2)
    )


def loader(samples: int = 64) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(samples, 8, generator=generator)
    return DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), batch_size=16, shuffle=True)


def changed(model: nn.Module, optimizer: Any, variant: Variant) -> Applied:
    return applied(copied(model, Setup(nn.CrossEntropyLoss()), optimizer), variant)


def trained(model: nn.Module, optimizer: Any, variant: Variant, steps: int = 20) -> nn.Module:
    subject = copied(model, Setup(nn.CrossEntropyLoss()), optimizer)
    pool = pool_of(loader(), "train_loader")
    varied_trial(subject, variant, pool, Plan(range(48), range(48, 64), steps, ends_only=True))
    return subject.model


def sizes(model: nn.Module) -> tuple[float, float]:
    """Of the weight matrices: the root of the sum of squares, and the sum of absolute values."""
    weights = [p.detach() for p in model.parameters() if p.dim() > 1]
    return (
        sum(float(w.square().sum()) for w in weights) ** 0.5,
        sum(float(w.abs().sum()) for w in weights),
    )


# ---------------------------------------------------------------------- penalties

OPTIMIZERS = [
    lambda model: torch.optim.SGD(model.parameters(), lr=0.1),
    lambda model: torch.optim.Adam(model.parameters(), lr=0.01),
    lambda model: torch.optim.AdamW(model.parameters(), lr=0.01),
    lambda model: torch.optim.RMSprop(model.parameters(), lr=0.01),
    lambda model: torch.optim.Rprop(model.parameters(), lr=0.01),
]
NAMES = ["SGD", "Adam", "AdamW", "RMSprop", "Rprop"]


@pytest.mark.parametrize("make", OPTIMIZERS, ids=NAMES)
def test_weights_under_l2_stay_smaller(make: Any) -> None:
    model = net()
    plain = trained(model, make(model), Variant())
    decayed = trained(model, make(model), Variant(l2=0.5))
    assert sizes(decayed)[0] < 0.95 * sizes(plain)[0]


@pytest.mark.parametrize("make", OPTIMIZERS[:3], ids=NAMES[:3])
def test_weights_under_l1_stay_smaller(make: Any) -> None:
    model = net()
    plain = trained(model, make(model), Variant())
    assert sizes(trained(model, make(model), Variant(l1=0.02)))[1] < 0.95 * sizes(plain)[1]


def test_decay_in_adam_is_that_of_adamw() -> None:
    model = net()
    weights = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": weights, "weight_decay": 0.3}, {"params": others, "weight_decay": 0.0}]
    by_hand = trained(model, torch.optim.AdamW(groups, **GROUP), Variant())
    ours = trained(model, torch.optim.Adam(model.parameters(), **GROUP), Variant(l2=0.3))
    for one, other in zip(by_hand.parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_decay_in_sgd_is_its_own_and_spares_norms_and_biases() -> None:
    model = net()
    change = changed(model, torch.optim.SGD(model.parameters(), lr=0.1), Variant(l2=0.3))
    assert change.before_step is None
    decays = {
        id(p): group["weight_decay"]
        for group in change.subject.optimizer.param_groups
        for p in group["params"]
    }
    for parameter in change.subject.model.parameters():
        assert decays[id(parameter)] == (0.3 if parameter.dim() > 1 else 0)


def test_a_decay_of_zero_takes_the_users_away() -> None:
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=5.0)
    plain, without = (trained(model, optimizer, v) for v in (Variant(), Variant(l2=0.0)))
    assert sizes(without)[0] > 1.05 * sizes(plain)[0]


def test_lbfgs_gets_the_gradient_of_the_penalty() -> None:
    model = net()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1)
    change = changed(model, optimizer, Variant(l2=0.5))
    for parameter in change.subject.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    assert change.before_step is not None
    change.before_step()
    for parameter in change.subject.model.parameters():
        expected = 0.5 * parameter if parameter.dim() > 1 else torch.zeros_like(parameter)
        torch.testing.assert_close(parameter.grad, expected.detach())
    trained(model, optimizer, Variant(l2=0.5), steps=2)


def test_an_elastic_net_is_both() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    both = trained(model, optimizer, Variant(l2=0.2, l1=0.01))
    for one in (Variant(l2=0.2), Variant(l1=0.01)):
        assert sizes(both)[1] < sizes(trained(model, optimizer, one))[1]


def test_an_optimizer_of_ones_own_without_weight_decay() -> None:
    class Plain:
        def __init__(self, parameters: Any) -> None:
            self.parameters = list(parameters)

        def zero_grad(self) -> None:
            for parameter in self.parameters:
                parameter.grad = None

        @torch.no_grad()
        def step(self) -> None:
            for parameter in self.parameters:
                parameter.sub_(parameter.grad, alpha=0.1)

    model = net()
    plain = trained(model, Plain(model.parameters()), Variant())
    assert sizes(trained(model, Plain(model.parameters()), Variant(l2=0.5)))[0] < sizes(plain)[0]


# ---------------------------------------------------------------------- dropout


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(8, 32), nn.Linear(32, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(functional.dropout(self.fc1(x).relu(), 0.1, self.training))


class Recurrent(nn.Module):
    """A cell by hand, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.Linear(2 + 16, 16), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[0], 16)
        for part in x.split(2, dim=1):
            h = torch.tanh(self.cell(torch.cat([part, h], 1)))
        return self.head(h)


def stepped(change: Applied) -> nn.Module:
    """After a first step, in which it is seen where to drop."""
    model = change.subject.model.train()
    functional.cross_entropy(model(torch.randn(4, 8)), torch.zeros(4, dtype=torch.long)).backward()
    if change.before_step is not None:
        change.before_step()
    return model


@pytest.mark.parametrize(
    ("model", "where"),
    [
        (net(), "before 3"),
        (net(dropout=0.1), "in its dropout layer"),
        (Functional(), "in its calls of dropout"),
        (Recurrent(), "before head"),
    ],
    ids=["hidden layers", "layers", "functional", "recurrent"],
)
def test_dropout_is_there_in_train_mode_alone(model: nn.Module, where: str) -> None:
    change = changed(model, torch.optim.SGD(model.parameters(), lr=0.1), Variant(dropout=0.9))
    theirs = stepped(change)
    x = torch.randn(64, 8)
    assert change.details == [where]
    assert not torch.equal(theirs(x), theirs(x))
    theirs.eval()
    torch.testing.assert_close(theirs(x), model.eval()(x))
    model.train()
    torch.manual_seed(0)
    first = model(x)
    torch.manual_seed(0)
    torch.testing.assert_close(model(x), first)


def test_so_much_of_the_hidden_values_is_dropped() -> None:
    model = nn.Sequential(nn.Linear(8, 4000), nn.Linear(4000, 2, bias=False))
    nn.init.zeros_(model[0].weight)
    nn.init.ones_(model[0].bias)
    nn.init.ones_(model[1].weight)
    theirs = stepped(changed(model, torch.optim.SGD(model.parameters(), 0.1), Variant(dropout=0.3)))
    assert float(theirs(torch.zeros(1, 8))[0, 0].detach()) == pytest.approx(4000, rel=0.1)
    (hidden,) = list(theirs[1]._forward_pre_hooks.values())
    dropped = hidden(theirs[1], (torch.ones(1, 4000),))
    assert float((dropped[0] == 0).float().mean()) == pytest.approx(0.3, abs=0.05)


def test_no_hidden_layer_to_drop() -> None:
    model = nn.Linear(8, 2)
    change = changed(model, torch.optim.SGD(model.parameters(), 0.1), Variant(dropout=0.5))
    with pytest.raises(ProbeProblem, match="no hidden layer"):
        stepped(change)


def test_channels_are_dropped_where_all_layers_are_convolutions() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 64, 3, padding=1), nn.Conv2d(64, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    change = changed(model, torch.optim.SGD(model.parameters(), 0.1), Variant(dropout=0.5))
    theirs = change.subject.model.train()
    theirs(torch.randn(4, 1, 8, 8)).sum().backward()
    assert change.before_step is not None
    change.before_step()
    assert change.details == ["before 1"]
    seen = []
    theirs[1].register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    theirs(torch.randn(4, 1, 8, 8))
    whole = (seen[0] == 0).all(dim=(2, 3))
    assert 0.3 < float(whole.float().mean()) < 0.7
    assert float((seen[0] == 0).float().mean()) == pytest.approx(float(whole.float().mean()))


# ---------------------------------------------------------------------- inputs


def prepared(variant: Variant, batch: Batch) -> Batch:
    model = nn.Linear(2, 2)
    change = changed(model, torch.optim.SGD(model.parameters(), 0.1), variant)
    assert change.prepared is not None
    return change.prepared(batch)


def test_noise_is_in_units_of_each_column() -> None:
    table = torch.randn(4000, 3) * torch.tensor([1.0, 100.0, 0.0])
    target = torch.zeros(4000)
    noisy = prepared(Variant(noise=0.5), Batch((table,), {}, target))
    deviation = (noisy.args[0] - table).std(dim=0)
    torch.testing.assert_close(deviation, torch.tensor([0.5, 50.0, 0.0]), rtol=0.1, atol=1e-6)
    assert noisy.target is target


def test_images_are_shifted_each_by_its_own_pixels() -> None:
    image = torch.arange(64.0).reshape(1, 1, 8, 8).repeat(256, 1, 1, 1)
    found = prepared(Variant(augment="shift"), Batch((image,), {}, torch.zeros(256))).args[0]
    assert found.shape == image.shape
    inner = found[:, 0, 1:-1, 1:-1] - image[:, 0, 1:-1, 1:-1]
    assert {int(v) for v in inner.unique()} == {d + r for d in (-8, 0, 8) for r in (-1, 0, 1)}
    assert bool((inner == inner[:, :1, :1]).all())


def test_half_of_the_images_are_flipped() -> None:
    image = torch.randn(400, 3, 8, 8)
    found = prepared(Variant(augment="flip"), Batch((image,), {}, torch.zeros(400))).args[0]
    flipped = (found == image.flip(-1)).flatten(1).all(1)
    assert bool((flipped | (found == image).flatten(1).all(1)).all())
    assert 0.4 < float(flipped.float().mean()) < 0.6


@pytest.mark.parametrize(
    ("inputs", "target"),
    [
        (torch.randn(4, 64), torch.zeros(4)),
        (torch.randn(4, 1, 8, 8), torch.zeros(4, 8, 8)),
        (torch.randn(4, 16, 8, 8), torch.zeros(4)),
    ],
    ids=["table", "a label a pixel", "maps"],
)
def test_what_is_no_image_with_a_label(inputs: Tensor, target: Tensor) -> None:
    batch = Batch((inputs,), {}, target)
    assert not has_images(batch)
    with pytest.raises(ProbeProblem, match="no images"):
        prepared(Variant(augment="shift"), batch)


@pytest.mark.parametrize(
    ("variant", "reason"),
    [
        (Variant(width=0.5), "built anew"),
        (Variant(augment="mirror"), "shift, flip"),
    ],
)
def test_what_cannot_be_done_is_said(variant: Variant, reason: str) -> None:
    model = net()
    with pytest.raises(ProbeProblem, match=reason):
        changed(model, torch.optim.SGD(model.parameters(), 0.1), variant)


def test_token_ids_get_no_noise() -> None:
    with pytest.raises(ProbeProblem, match="no real numbers"):
        prepared(Variant(noise=0.1), Batch((torch.ones(4, 3, dtype=torch.long),), {}, None))


# ---------------------------------------------------------------------- the user's own


def test_nothing_of_the_users_changes() -> None:
    model = net(dropout=0.1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    before = copy.deepcopy(model.state_dict())
    groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    trained(model, optimizer, Variant(l2=0.5, l1=0.01, dropout=0.5, noise=0.1))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model[3].p == 0.1
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert not optimizer.state
    assert groups == [
        {k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups
    ]


def test_without_a_change_it_is_the_plain_training() -> None:
    model = net(dropout=0.2)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    pool, plan = pool_of(loader(), "train_loader"), Plan(range(48), range(48, 64), 10)
    setup = Setup(nn.CrossEntropyLoss())
    plain = trial(copied(model, setup, optimizer), pool, plan)
    same = varied_trial(copied(model, setup, optimizer), Variant(), pool, plan)
    assert plain.last.validation.losses == same.last.validation.losses
