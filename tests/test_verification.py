"""Fixes tried on copies: what is proved to help, what is not, and why."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import trainlint
from trainlint.config import Config
from trainlint.errors import UsageError
from trainlint.fixes.edit import Attempt, Fix
from trainlint.fixes.patch import Patch
from trainlint.generalization.trials import Copy
from trainlint.loss.uses import Recipe
from trainlint.probe.setup import Setup
from trainlint.registry import select_rules
from trainlint.rule import Settings
from trainlint.verification import repair
from trainlint.verification.changes import NO_TRAINING, Version
from trainlint.verification.judging import NOT_LOWER, STAYS
from trainlint.verification.live import LiveMaker, verified_live
from trainlint.verification.training import training
from trainlint.verification.verifying import Verified

LONG = Config(verify_seconds=3000.0, probe_seconds=600.0, timeout=600.0, jobs=2)
HE = Patch.initialise(["2.weight"], "kaiming_normal", nonlinearity="relu")


@pytest.fixture
def loader() -> DataLoader[Any]:
    torch.manual_seed(0)
    x = torch.randn(256, 8)
    y = (x[:, :2].sum(1) > 0).long() + (x[:, 2] > 0.5).long()
    return DataLoader(TensorDataset(x, y), batch_size=32, shuffle=True)


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3)
    )


def zeroed() -> nn.Sequential:
    model = network()
    with torch.no_grad():
        model[2].weight.zero_()
    return model


def sgd(model: nn.Module, lr: float = 0.1) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=lr)


def tried(
    model: nn.Module,
    rule: str,
    fixes: Sequence[Sequence[Patch]],
    *,
    config: Config = LONG,
    **given: Any,
) -> tuple[list[Fix], Verified]:
    """The fixes of a live model's one finding of this rule, replaced by these, and tried."""
    setup = Setup(given.get("loss"), given.get("optimizer"), given.get("train_loader"))
    report = trainlint.check(model, select=[rule], config=config, **given)
    known = list(report.findings)
    [finding] = report.findings
    own = [Fix(f"fix {number}", patches=list(each)) for number, each in enumerate(fixes)]
    report = msgspec.structs.replace(report, findings=[msgspec.structs.replace(finding, fixes=own)])
    settings = Settings(select_rules([rule]), {}, probe_steps=config.probe_steps)
    recipe = Recipe(loss=setup.loss, explicit=True, setup=setup)
    found = verified_live(report, known, model, None, recipe, settings, config)
    return found.report.findings[0].fixes, found


# ---------------------------------------------------------------------- live models


def test_what_clears_the_finding_and_lowers_the_loss_is_verified_and_comes_first(
    loader: DataLoader[Any],
) -> None:
    model = zeroed()
    nothing = Patch.initialise(["0.weight"], "kaiming_normal", nonlinearity="relu")
    tiny = Patch.initialise(["2.weight"], "normal", std=1e-8)

    fixes, found = tried(
        model,
        "zero-weights",
        [[nothing], [tiny], [HE]],
        loss=nn.CrossEntropyLoss(),
        optimizer=sgd(model),
        train_loader=loader,
    )

    assert [fix.title for fix in fixes] == ["fix 2", "fix 1", "fix 0"]
    proof, of_tiny, of_nothing = fixes[0].verified, fixes[1].attempt, fixes[2].attempt
    assert proof is not None
    assert of_tiny is not None
    assert of_nothing is not None
    assert (proof.cleared, proof.seeds, proof.steps, proof.parameters) == (True, 2, 50, 0)
    assert proof.before is not None
    assert proof.after is not None
    assert proof.gain is not None
    assert proof.error is not None
    assert proof.after < proof.before
    assert proof.gain > max(0.1, proof.error)
    assert (of_tiny.cleared, of_tiny.reason) == (True, NOT_LOWER)
    assert (of_nothing.cleared, of_nothing.reason) == (False, STAYS)
    [repaired] = found.combinations.values()
    assert [fix.title for fix in repaired.fixes] == ["fix 2"]
    assert repaired.repair.left == []


def test_a_live_model_and_its_training_are_as_before(loader: DataLoader[Any]) -> None:
    model = zeroed()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.random.get_rng_state()

    _, found = tried(
        model,
        "zero-weights",
        [[HE]],
        loss=nn.CrossEntropyLoss(),
        optimizer=optimizer,
        train_loader=loader,
        config=msgspec.structs.replace(LONG, probe_steps=5),
    )

    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), random)
    assert not optimizer.state
    assert all(p.grad is None for p in model.parameters())
    copy = found.model
    assert copy is not None
    assert copy is not model
    assert bool(copy.get_parameter("2.weight").any())


def test_a_fix_that_cannot_be_made_costs_itself_alone(loader: DataLoader[Any]) -> None:
    model = zeroed()
    fixes, _ = tried(
        model,
        "zero-weights",
        [[Patch.initialise(["9.weight"], "kaiming_normal")], [Patch("no-such-kind")], [HE]],
        loss=nn.CrossEntropyLoss(),
        optimizer=sgd(model),
        train_loader=loader,
    )

    assert fixes[0].verified is not None
    attempts = [fix.attempt for fix in fixes[1:]]
    assert [attempt.cleared for attempt in attempts if attempt is not None] == [None, None]
    assert "9" in attempts[0].reason  # type: ignore[union-attr]
    assert "no-such-kind" in attempts[1].reason  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        ({}, "criterion, optimizer, train_loader"),
        ({"loss": nn.CrossEntropyLoss()}, "optimizer, train_loader"),
    ],
)
def test_without_a_training_it_says_what_is_missing(given: dict[str, Any], missing: str) -> None:
    fixes, found = tried(zeroed(), "zero-weights", [[HE]], **given)

    assert fixes[0].verified is None
    assert fixes[0].attempt == Attempt(cleared=True, reason=f"{NO_TRAINING}{missing}")
    [repaired] = (
        found.combinations.values()
    )  # it clears its finding, and costs nothing that is known
    assert repaired.repair.before is None


def test_what_there_was_no_time_for_says_so(loader: DataLoader[Any]) -> None:
    model = zeroed()
    fixes, found = tried(
        model,
        "zero-weights",
        [[HE]],
        loss=nn.CrossEntropyLoss(),
        optimizer=sgd(model),
        train_loader=loader,
        config=msgspec.structs.replace(LONG, verify_seconds=0.5),
    )

    assert fixes[0].attempt == Attempt(reason="not tried: no time left (--verify-seconds 0.5)")
    assert not found.combinations


def test_a_frozen_layer_is_trained_again(loader: DataLoader[Any]) -> None:
    model = network()
    for parameter in model[:3].parameters():
        parameter.requires_grad_(False)
    names = [name for name, p in model.named_parameters() if not p.requires_grad]
    made = LiveMaker(
        model,
        None,
        Recipe(explicit=True, setup=Setup(nn.CrossEntropyLoss(), sgd, loader)),
        Settings(select_rules(["zero-weights"])),
    )

    version = Version(patches=[Patch.unfreeze(names)])
    losses = [
        training(made.copy(each), steps=50, seed=0, seconds=600.0) for each in (Version(), version)
    ]

    assert [each.reason for each in losses] == [None, None]
    before, after = (float(each.train.end or math.nan) for each in losses)
    assert losses[0].train.guess == losses[1].train.guess
    assert after < before - 0.1 * float(losses[0].train.guess or math.nan)


def test_static_checks_are_not_verified() -> None:
    with pytest.raises(UsageError, match="verified by training"):
        trainlint.check(zeroed(), stages=("static",), verify=True)


# ---------------------------------------------------------------------- one training


def test_the_same_seed_gives_the_same_batches_whatever_the_model_draws() -> None:
    torch.manual_seed(0)
    data = DataLoader(TensorDataset(torch.randn(64, 4), torch.randn(64, 1)), 16, shuffle=True)
    seen: list[list[float]] = []

    class Noting(nn.Module):
        def __init__(self, *, draws: bool) -> None:
            super().__init__()
            self.layer, self.draws = nn.Linear(4, 1), draws
            seen.append([])

        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                seen[-1].append(float(x[0, 0]))
                if self.draws:
                    torch.rand(3)
            return self.layer(x)

    for draws in (False, True):
        model = Noting(draws=draws)
        subject = Copy(model, sgd(model), Setup(nn.MSELoss(), None, data))
        assert training(subject, steps=9, seed=0, seconds=600.0).reason is None

    assert len(seen[0]) == 9
    assert seen[0] == seen[1]


def own_loop(model: nn.Module, data: DataLoader[Any], *, clears: bool, lr: float = 0.1) -> None:
    optimizer = sgd(model, lr)
    for _ in range(20):
        for x, y in data:
            if clears:
                optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()


@pytest.mark.parametrize("clears", [True, False])
def test_a_loop_of_the_users_own_is_read_as_it_runs(loader: DataLoader[Any], clears: bool) -> None:
    model = network()
    loop = partial(own_loop, model, loader, clears=clears)
    found = training(Copy(model, None, Setup(train=loop)), steps=20, seed=0, seconds=600.0)

    assert (found.reason, found.watched, found.steps) == (None, True, 20)
    assert len(found.series) == 20
    assert found.train.guess is not None


def test_what_a_loop_raises_is_its_reason(loader: DataLoader[Any]) -> None:
    def loop() -> None:
        raise ValueError("no such column")

    model = network()
    found = training(Copy(model, None, Setup(train=loop)), steps=5, seed=0, seconds=600.0)

    assert found.reason is not None
    assert "no such column" in found.reason
    assert found.train.end is None


# ---------------------------------------------------------------------- files

DATA = """
import os
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
x = torch.randn(256, 8)
y = (x[:, :2].sum(1) > 0).long() + (x[:, 2] > 0.5).long()
train_loader = DataLoader(TensorDataset(x, y), batch_size=32, shuffle=True)
"""
NET = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(8, 32)
        self.fc2 = nn.Linear(32, 32)
        self.fc3 = nn.Linear(32, 3)
        nn.init.zeros_(self.fc2.weight)

    def forward(self, x):
        return self.fc3(torch.relu(self.fc2(torch.relu(self.fc1(x)))))
"""
TRAINING = """
model = Net()
criterion = nn.CrossEntropyLoss()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
"""


def written(folder: Path, *parts: str) -> str:
    file = folder / "net.py"
    file.write_text("".join(parts))
    return str(file)


def test_each_change_of_a_file_has_a_process_of_its_own(tmp_path: Path) -> None:
    from trainlint.files import Options, file_check
    from trainlint.verification.changes import Budget, Trial
    from trainlint.verification.files import made_in_children

    target = written(tmp_path, DATA, NET, TRAINING)
    text = Path(target).read_text()
    line = "nn.init.zeros_(self.fc2.weight)"
    texts = {
        "unchanged": text,
        "filled": text.replace(line, "nn.init.kaiming_normal_(self.fc2.weight)"),
        "exits": text.replace(line, "os._exit(3)"),
        "crashes": text.replace(line, "os.abort()"),
        "raises": text.replace(line, "self.fc2 = nn.Linear(16, 32)"),
        "does not parse": text.replace(line, "("),
    }
    check = file_check(target, asked=Options(select=["zero-weights"], config=LONG))
    budget = Budget(50, 600.0, time.monotonic() + 3000.0, 2, 3000.0)
    trials = [
        Trial(f"{target}::model", Version({target: each}), check=name != "unchanged")
        for name, each in texts.items()
    ]

    outcomes = dict(zip(texts, made_in_children(trials, check.jobs, budget), strict=True))

    unchanged, filled = outcomes["unchanged"], outcomes["filled"]
    assert unchanged.findings is None
    assert [len(each.trainings) for each in (unchanged, filled)] == [2, 2]
    assert not filled.findings
    # The data are the same, though the model draws before them in one and not in the other.
    assert [t.train.guess for t in unchanged.trainings] == [t.train.guess for t in filled.trainings]
    assert all(
        float(b.train.end or 0) < float(a.train.end or 0)
        for a, b in zip(unchanged.trainings, filled.trainings, strict=True)
    )
    assert "exit status 3" in str(outcomes["exits"].reason)
    assert "signal 6" in str(outcomes["crashes"].reason)
    assert [bool(t.reason) for t in outcomes["raises"].trainings] == [True, True]
    result = outcomes["does not parse"].result
    assert result is not None
    assert "does not parse" in str(result.reason)


def test_a_file_is_repaired_fix_by_fix_and_left_alone(tmp_path: Path) -> None:
    wrong = NET.replace(
        "        nn.init", "        self.norm = nn.BatchNorm1d(16)\n        nn.init"
    )
    wrong = wrong.replace("torch.relu(self.fc1(x))", "torch.relu(self.norm(self.fc1(x)))")
    target = written(tmp_path, DATA, wrong, TRAINING)
    before = Path(target).read_text()

    done = repair(target, select=["zero-weights", "norm-features-mismatch"], config=LONG)

    assert Path(target).read_text() == before
    assert [finding.name for finding in done.findings] == ["norm-features-mismatch", "zero-weights"]
    [text] = done.texts.values()
    assert "BatchNorm1d(32)" in text
    assert done.repair is not None
    assert done.repair.left == []
    assert done.before is None
    assert done.after is not None
    [error] = [f for f in done.report.findings if f.name == "norm-features-mismatch"]
    proof = error.fixes[0].verified
    assert proof is not None
    assert (proof.before, proof.parameters, proof.cleared) == (None, 32, True)


def test_a_rate_is_measured_and_written(tmp_path: Path) -> None:
    sound = NET.replace("        nn.init.zeros_(self.fc2.weight)\n", "")
    target = written(tmp_path, DATA, sound, TRAINING.replace("lr=0.1", "lr=1e-7"))

    done = repair(target, select=["learning-rate-too-low"], config=LONG)

    [finding] = done.report.findings
    [measured] = [fix for fix in finding.fixes if "from a range test" in fix.title]
    rate = measured.patches[0].values["value"]
    assert 1e-3 < rate < 10.0
    assert measured.title == f"lr={rate:g}, from a range test"
    assert measured.verified is not None
    assert measured.verified.cleared
    assert [edit.content for edit in measured.edits] == [f"{rate:g}"]
    [text] = done.texts.values()
    assert "lr=1e-7" not in text
    assert [fix.title for fix in done.fixes] == [finding.fixes[0].title]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--verify", "--static"], "--static"),
        (["--verify-seconds", "5"], "--verify-seconds is for --verify"),
    ],
)
def test_options_that_contradict_each_other_are_one_line(
    tmp_path: Path, options: list[str], text: str
) -> None:
    from click.testing import CliRunner

    from trainlint.cli import main

    done = CliRunner().invoke(main, ["check", written(tmp_path, NET), *options])

    assert done.exit_code == 2
    assert text in done.output
    assert "Traceback" not in done.output
