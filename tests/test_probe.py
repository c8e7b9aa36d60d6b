"""The probe of a check: what it finds to train with, what it trains, and that everything is as before."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import run_command, write_files
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import trainlint
from trainlint.config import Config
from trainlint.fixes.source import apply
from trainlint.probe.batches import ProbeProblem, batches, first_samples, size_of, split
from trainlint.probe.setup import setup_of

QUICK = Config(probe_steps=6)


def codes(report: trainlint.Report) -> set[str]:
    return {found.code for finding in report.findings for found in (finding, *finding.symptoms)}


def data(samples: int = 320, seed: int = 0) -> TensorDataset:
    x = torch.randn(samples, 8, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(x, (x[:, 0] > 0).long())


def loader(samples: int = 320, seed: int = 0, **options: Any) -> DataLoader[Any]:
    return DataLoader(data(samples, seed), batch_size=32, **options)


def net(outputs: int = 2) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, outputs))


# ---------------------------------------------------------------------- batches


@pytest.mark.parametrize(
    ("batch", "arguments", "has_target"),
    [
        ((torch.ones(2, 8), torch.ones(2)), 1, True),
        ([torch.ones(2, 8), torch.ones(2, 3), torch.ones(2)], 2, True),
        (torch.ones(2, 8), 1, True),
        ((torch.ones(2, 8),), 1, True),
        ({"input": torch.ones(2, 8), "label": torch.ones(2)}, 1, True),
    ],
)
def test_a_batch_is_arguments_and_a_target(batch: Any, arguments: int, has_target: bool) -> None:
    found = split(batch, net(), nn.CrossEntropyLoss(), "loader")
    assert len(found.args) + len(found.kwargs) == arguments
    assert (found.target is not None) == has_target


@pytest.mark.parametrize(
    ("batch", "reason"),
    [
        (None, "gives None: no tensors"),
        ((), "an empty tuple"),
        ("text", "a str: no tensors"),
        ({"x": torch.ones(2)}, "a dict without any of labels"),
    ],
)
def test_what_is_no_batch_is_named(batch: Any, reason: str) -> None:
    with pytest.raises(ProbeProblem, match=reason):
        split(batch, net(), nn.CrossEntropyLoss(), "loader")


def failing() -> Iterator[Any]:
    yield torch.ones(4, 8), torch.ones(4).long()
    raise KeyError("image 7")


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ([], "loader is empty"),
        (iter([1]), "loader is an iterator"),
        (failing, "loader raised KeyError: 'image 7' at .*test_probe.py"),
    ],
)
def test_a_loader_that_gives_nothing_is_named(given: Any, reason: str) -> None:
    with pytest.raises(ProbeProblem, match=reason):
        list(islice(batches(given, "loader"), 3))


def test_loaders_and_functions_are_read_pass_after_pass() -> None:
    for given in ([1, 2], lambda: iter([1, 2])):
        read = batches(given, "loader")
        assert [next(read) for _ in range(5)] == [1, 2, 1, 2, 1]


def test_the_first_samples_are_taken_of_all_that_has_as_many() -> None:
    value = (torch.arange(6).reshape(6, 1), {"y": torch.arange(6)}, torch.tensor(3.0))
    few = first_samples(value, 4)
    assert size_of(few) == 4
    assert few[1]["y"].tolist() == [0, 1, 2, 3]
    assert first_samples((torch.ones(2), torch.ones(3)), 1)[0].shape == (2,)


# ---------------------------------------------------------------------- what there is to train with


def test_the_optimizer_of_another_live_model_is_none_of_this_one() -> None:
    model, other = net(), net()
    its_own = torch.optim.SGD(other.parameters(), lr=0.1)
    namespace = {"model": model, "other": other, "optimizer": its_own}
    assert setup_of(namespace, model, None).optimizer is None
    assert setup_of(namespace, other, None).optimizer is its_own
    del namespace["other"]
    assert setup_of(namespace, model, None).optimizer is its_own


def test_an_optimizer_of_another_model_is_meant_for_the_one_that_the_losses_judge() -> None:
    model, other = net(), net()
    of_other = torch.optim.SGD(other.parameters(), lr=0.1)
    namespace = {"model": model, "other": other, "optimizer": of_other}
    assert setup_of(namespace, model, None, {"model"}).optimizer is of_other
    assert setup_of(namespace, model, None, {"model", "other"}).optimizer is None
    unclear = setup_of(namespace, model, None)
    assert unclear.why == "optimizer has the parameters of other, and none of this model"
    assert setup_of(namespace, other, None).why == ""


def test_a_loop_is_bound_where_all_its_arguments_are_known() -> None:
    seen: list[Any] = []

    def train(model: nn.Module, train_loader: Any, epochs: int, verbose: bool = False) -> None:
        seen.append((model, train_loader, epochs, verbose))

    model = net()
    assert setup_of({"train": train}, model, None).train is None
    bound = setup_of({"train": train, "train_loader": [1]}, model, None).train
    assert bound is not None
    bound()
    assert seen == [(model, [1], 1, False)]


def test_without_anything_to_train_with_there_is_no_probe() -> None:
    report = trainlint.check(net(), torch.randn(4, 8), loss=nn.CrossEntropyLoss())
    assert report.targets[0].stages == ["static", "signal"]
    assert report.targets[0].watched is None


# ---------------------------------------------------------------------- live models


def watched(**given: Any) -> trainlint.Report:
    given.setdefault("loss", nn.CrossEntropyLoss())
    return trainlint.check(net(), config=QUICK, **given)


def test_a_sound_training_is_clean_and_says_what_it_was() -> None:
    model = net()
    report = trainlint.check(
        model,
        loss=nn.CrossEntropyLoss(),
        optimizer=torch.optim.Adam(model.parameters(), 1e-3),
        train_loader=loader(shuffle=True),
        val_loader=loader(64, seed=1),
    )
    (target,) = report.targets
    assert (target.stages, target.notes, target.not_measurable) == (
        ["static", "data", "signal", "probe"], [], []
    )  # fmt: skip
    assert target.watched == "50 steps of Adam on train_loader"
    assert target.inputs == "(16, 8) float32, from train_loader"
    assert [f for f in report.findings if f.severity != "info"] == []


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize(
    ("given", "code"),
    [
        (lambda m: {"optimizer": torch.optim.SGD(net().parameters(), 0.1)}, "OPT001"),
        (lambda m: {"optimizer": torch.optim.SGD(m[0].parameters(), 0.1)}, "OPT001"),
        (lambda _: {"optimizer": lambda m: torch.optim.SGD(m.parameters(), 1e-8)}, "OPT003"),
        (lambda _: {"optimizer": lambda m: torch.optim.Adam(m.parameters(), 30.0)}, "OPT002"),
        (lambda _: {"loss": lambda out, y: nn.functional.mse_loss(out[:, :1], y.float())}, "LOS005"),
        (lambda _: {"loss": lambda out, y: nn.functional.cross_entropy(out.detach(), y)}, "LOS011"),
        (lambda _: {"loss": lambda out, y: nn.functional.cross_entropy(out, y + 5)}, "LOS007"),
        (lambda _: {"loss": lambda out, y: (out - out).mean() / 0}, "GRD003"),
    ],
)  # fmt: skip
def test_faults_of_what_is_given_are_found(
    given: Callable[[nn.Sequential], dict[str, Any]], code: str
) -> None:
    model = net()
    options = {"loss": nn.CrossEntropyLoss(), "train_loader": loader(), **given(model)}
    report = trainlint.check(model, **options)
    assert code in codes(report), str(report)


def test_an_optimizer_alone_is_judged_on_made_up_data() -> None:
    model = net()
    optimizer = torch.optim.Adam(model[0].parameters(), 50.0)
    report = trainlint.check(model, torch.randn(4, 8), optimizer=optimizer)
    assert report.targets[0].watched == "5 steps of Adam on made-up data"
    assert codes(report) & {"OPT001", "OPT002"} == {"OPT001"}


def test_nothing_is_said_of_learning_rates_that_are_ours() -> None:
    report = watched(train_loader=loader())
    assert report.targets[0].watched == ("6 steps of Adam on train_loader, an optimizer of ours")
    assert not codes(report) & {"OPT002", "OPT003"}


def test_a_certain_error_ends_the_probe() -> None:
    report = watched(optimizer=torch.optim.SGD(net().parameters(), 0.1), train_loader=loader(),
                     loss=nn.CrossEntropyLoss())  # fmt: skip
    assert report.targets[0].watched == "5 steps of SGD on train_loader"
    assert report.targets[0].notes == ["the probe ended early: an error was certain"]


def test_a_training_loop_that_the_probe_does_not_run_is_named(tmp_path: Path) -> None:
    data = "x = torch.randn(64, 8)\ntrain_loader = [(x, (x[:, 0] > 0).long())] * 4\n"
    made = (
        "model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))\n"
        "criterion = nn.CrossEntropyLoss()\noptimizer = torch.optim.SGD(model.parameters(), lr=0.1)\n"
    )
    loop = (
        "    for a, b in train_loader:\n        optimizer.zero_grad()\n"
        "        criterion(model(a), b).backward()\n        optimizer.step()\n"
    )
    head = "import torch\nfrom torch import nn\n"
    guard = "if __name__ == '__main__':\n    main({})\n"
    local = "".join(f"    {line}\n" for line in made.splitlines())
    folder = write_files(
        tmp_path,
        {
            "beside.py": head + data + made + "def main():\n" + loop + guard.format(""),
            "run.py": (head + data + made + "def main(model):\n" + loop + guard.format("model"))
            .replace("main(", "train("),
            "inside.py": head + data + "def main():\n" + local + loop + guard.format(""),
        },
    )  # fmt: skip

    def result(name: str, **options: Any) -> Any:
        [target] = trainlint.check(str(folder / name), **options).targets
        return target

    beside = result("beside.py")
    assert f"was not looked at: trainlint run {folder / 'beside.py'}" in beside.notes[-1]
    assert "in main(), line 9" in beside.notes[-1]
    assert result("beside.py", stages=["static"]).notes == []
    assert result("run.py").notes == []
    assert f"main() (line 5) trains one: trainlint run {folder / 'inside.py'}" in (
        result("inside.py").reason
    )


def test_a_probe_that_an_error_ended_says_nothing_of_what_would_come() -> None:
    x = torch.randn(128, 8)
    x[3, 2] = torch.nan
    data = TensorDataset(x, x[:, :1].nan_to_num())
    model = nn.Linear(8, 1)
    report = trainlint.check(
        model,
        x[:4].nan_to_num(),
        loss=nn.MSELoss(),
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        train_loader=DataLoader(data, batch_size=16),
        val_loader=DataLoader(data, batch_size=16),
    )
    found = {each.code for one in report.findings for each in (one, *one.symptoms)}
    assert "GRD003" in found
    assert not found & {"GEN002", "OPT003"}
    assert "GEN001 overfitting: the probe ended early" in report.targets[0].not_measurable


def test_targets_that_make_the_first_losses_infinite_are_described_in_figures() -> None:
    x = torch.randn(256, 4)
    data = TensorDataset(x, 2e5 + 2e4 * x[:, :1])
    model = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 1))
    report = trainlint.check(
        model,
        x[:4],
        loss=nn.MSELoss(),
        optimizer=torch.optim.SGD(model.parameters(), lr=10.0),
        train_loader=DataLoader(data, batch_size=32),
    )
    [finding] = [each for each in report.findings if each.code == "DAT007"]
    assert finding.evidence["first_loss"] is None
    assert "answering the mean gives" in finding.message
    assert "inf" not in finding.message


def test_zero_weights_explain_the_units_that_are_dead_by_them() -> None:
    model = nn.Sequential(
        nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2)
    )
    for layer in model[::2]:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    x = torch.randn(1024, 8)
    report = trainlint.check(
        model,
        x[:4],
        loss=nn.CrossEntropyLoss(),
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        train_loader=DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), batch_size=32),
    )
    [finding] = [each for each in report.findings if each.severity != "info"]
    assert finding.code == "INI001"
    assert [each.code for each in finding.symptoms].count("ACT001") == 2


def test_a_model_may_give_its_own_loss() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(8, 2)

        def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
            out = self.fc(x)
            return {"loss": nn.functional.cross_entropy(out, labels), "logits": out}

    rows = [{"x": x, "labels": y} for x, y in loader()]
    report = trainlint.check(Own(), train_loader=rows, config=QUICK)
    assert report.targets[0].watched == "6 steps of Adam on train_loader, an optimizer of ours"


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"train_loader": []}, "not probed: train_loader is empty"),
        (
            {"train_loader": failing},
            "the probe ended early: 1 of 6 steps: train_loader raised KeyError",
        ),
        ({"train_loader": [torch.ones(4, 8)] * 3, "loss": None}, "not probed: no loss"),
        ({"train_loader": loader(), "loss": lambda out, y: "low"}, "the loss is str, not a tensor"),
        ({"train_loader": loader(), "optimizer": lambda m: 3}, "makes int, not an optimizer"),
        (
            {"train_loader": loader(), "loss": lambda out, y: nn.functional.mse_loss(out, y[:5])},
            "the training raised RuntimeError",
        ),
    ],
)
def test_what_cannot_be_trained_is_one_note(given: dict[str, Any], reason: str) -> None:
    report = trainlint.check(net(), torch.randn(4, 8), config=QUICK,
                             **{"loss": nn.CrossEntropyLoss(), **given})  # fmt: skip
    (target,) = report.targets
    assert target.status == "ok"
    assert reason in "\n".join(target.notes)
    assert len(target.notes) == 1


def test_the_probe_can_be_left_out_and_be_short() -> None:
    none = trainlint.check(
        net(), loss=nn.CrossEntropyLoss(), train_loader=loader(), config=Config(probe_steps=0)
    )
    assert none.targets[0].stages == ["static", "data", "signal"]
    short = trainlint.check(
        net(), loss=nn.CrossEntropyLoss(), train_loader=loader(), config=Config(probe_seconds=1e-6)
    )
    assert "steps in 1e-06 s" in short.targets[0].notes[0]


def test_what_is_likely_must_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    from trainlint.probe.probing import Probe

    seeds: list[int] = []
    original = Probe.trace

    def trace(self: Probe, seed: int = 0, longer: int = 1) -> Any:
        seeds.append(seed)
        if seed:
            self.setup = type(self.setup)(
                self.setup.loss,
                lambda model: torch.optim.Adam(model.parameters(), 1e-2),
                self.setup.train_loader,
            )
        return original(self, seed, longer)

    def slow(model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), 1e-7)

    def check() -> set[str]:
        report = trainlint.check(
            net(), loss=nn.CrossEntropyLoss(), optimizer=slow, train_loader=loader(shuffle=True)
        )
        return codes(report)

    assert "OPT003" in check()
    monkeypatch.setattr(Probe, "trace", trace)
    assert "OPT003" not in check()
    assert seeds[0] == 0
    assert len(seeds) > 1


# ---------------------------------------------------------------------- 16 samples


def test_equal_samples_with_different_targets_cannot_be_told_apart() -> None:
    x = torch.zeros(64, 8)
    rows = list(DataLoader(TensorDataset(x, torch.arange(64) % 2), batch_size=16))
    report = watched(train_loader=rows, select=["LOS009"])
    assert report.targets[0].not_measurable == [
        "LOS009 cannot-memorise: equal samples have different targets"
    ]


@pytest.mark.parametrize("attempts", [0, 1, 3])
def test_time_that_is_up_between_two_attempts_is_said(
    monkeypatch: pytest.MonkeyPatch, attempts: int
) -> None:
    from trainlint.probe import memory

    original, made = memory._attempt, 0

    def attempt(*args: Any) -> Any:
        nonlocal made
        made += 1
        return original(*args[:-1], args[-1] if made <= attempts else 0.0)

    monkeypatch.setattr(memory, "_attempt", attempt)
    monkeypatch.setattr(memory, "HALF", 0.0)  # none is good enough
    clock = memory.time.monotonic
    monkeypatch.setattr(
        memory.time, "monotonic", lambda: clock() + (1e6 if made > attempts else 0.0)
    )
    rows = list(loader())
    report = watched(train_loader=rows, select=["LOS009"])
    assert report.targets[0].not_measurable == ["LOS009 cannot-memorise: not finished in 15 s"]


def test_few_samples_are_too_few() -> None:
    report = watched(train_loader=[(torch.randn(4, 8), torch.arange(4) % 2)], select=["LOS009"])
    assert report.targets[0].not_measurable == [
        "LOS009 cannot-memorise: a batch has 4 samples, of which at least 8 are needed"
    ]


# ---------------------------------------------------------------------- as before


def snapshot(
    model: nn.Module, optimizer: torch.optim.Optimizer, generator: torch.Generator
) -> dict[str, Any]:
    return {
        "values": {name: t.clone() for name, t in model.state_dict().items()},
        "gradients": {n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()},
        "modes": [m.training for m in model.modules()],
        "attributes": [sorted(vars(m)) for m in model.modules()],
        "hooks": [len(m._forward_hooks) + len(m._backward_hooks) for m in model.modules()],
        "state": {
            (i, key): value.clone() if isinstance(value, Tensor) else value
            for i, p in enumerate(model.parameters())
            for key, value in optimizer.state.get(p, {}).items()
        },
        "groups": [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups],
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "loader": generator.get_state(),
    }  # fmt: skip


def equal(one: Any, two: Any) -> bool:
    if isinstance(one, Tensor):
        return isinstance(two, Tensor) and torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(equal(one[k], two[k]) for k in one)
    return bool(one == two)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW, torch.optim.LBFGS])
def test_model_optimizer_and_random_states_are_as_before(kind: Any) -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2))
    model[1].eval()
    optimizer = kind(model.parameters(), lr=0.01)
    generator = torch.Generator().manual_seed(3)
    rows = loader(shuffle=True, generator=generator)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = model(torch.randn(32, 8)).square().mean()
        loss.backward()
        return loss

    for _ in range(2):
        optimizer.step(closure)
    before = snapshot(model, optimizer, generator)
    report = trainlint.check(
        model, loss=nn.CrossEntropyLoss(), optimizer=optimizer, train_loader=rows,
        val_loader=rows, config=QUICK,
    )  # fmt: skip
    assert report.targets[0].stages == ["static", "data", "signal", "probe"]
    after = snapshot(model, optimizer, generator)
    assert [key for key in before if not equal(before[key], after[key])] == []


# ---------------------------------------------------------------------- files

FILES = {
    "loop.py": """
        import torch
        from torch import nn

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.fc = nn.Linear(8, 1)

            def forward(self, x):
                return self.fc(x)

        def train(model):
            optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
            for step in range(1000):
                x = torch.randn(16, 8)
                loss = nn.functional.mse_loss(model(x), x.sum(1, keepdim=True))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                if step == AT:
                    SAVE
    """,
}


def loop_that(path: Path, at: int, save: str) -> Path:
    write_files(path, FILES)
    file = path / "loop.py"
    file.write_text(file.read_text().replace("AT", str(at)).replace("SAVE", save))
    return path


def test_the_users_loop_goes_on_without_its_checkpoints(tmp_path: Path) -> None:
    loop_that(tmp_path, 9, 'torch.save(model.state_dict(), "best.pt")')
    result = run_command("check", "loop.py", "--format", "json", cwd=tmp_path)
    (target,) = result.report["targets"]
    assert (target["watched"], target["notes"]) == ("50 steps of SGD in train()", [])
    assert [path.name for path in tmp_path.iterdir()] == ["loop.py"]


@pytest.mark.parametrize(
    "save",
    [
        'open("best.pt", "w").write("x")',
        'import os; os.remove("kept.txt")',
        'import pathlib; pathlib.Path("made").mkdir()',
    ],
)
def test_the_users_loop_writes_and_removes_nothing(tmp_path: Path, save: str) -> None:
    loop_that(tmp_path, 9, save)
    (tmp_path / "kept.txt").write_text("kept")
    result = run_command("check", "loop.py", "--format", "json", cwd=tmp_path)
    (target,) = result.report["targets"]
    assert target["watched"] == "10 steps of SGD in train()"
    assert "10 of 50 steps: it" in target["notes"][0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept.txt", "loop.py"]


def test_the_users_loop_ends_after_its_steps(tmp_path: Path) -> None:
    loop_that(tmp_path, -1, "pass")
    result = run_command(
        "check", "loop.py", "--probe-steps", "30", "--format", "json", cwd=tmp_path
    )
    (target,) = result.report["targets"]
    assert (target["watched"], target["notes"]) == ("30 steps of SGD in train()", [])


ENDINGS = {
    "kills.py": "import os; os.kill(os.getpid(), 9)",
    "exits.py": "import sys; sys.exit(4)",
    "hangs.py": "import time; time.sleep(60)",
}


@pytest.mark.parametrize("name", ENDINGS)
def test_a_training_that_ends_the_process_costs_nothing_else(tmp_path: Path, name: str) -> None:
    loop_that(tmp_path, 3, ENDINGS[name])
    result = run_command(
        "check", "loop.py", "--probe-seconds", "2", "--format", "json", cwd=tmp_path
    )
    (target,) = result.report["targets"]
    assert target["stages"][:2] == ["static", "signal"]
    if name == "kills.py":
        assert result.status == 2
        assert target["reason"].endswith("in the probe's training; --probe-steps 0 avoids it")
    else:
        reason = "it exits there" if name == "exits.py" else "--probe-seconds"
        assert (result.status, target["status"]) == (0, "ok")
        assert reason in target["notes"][0]


CLASSES = """
import torch
from torch import nn

x = torch.randn(64, 4)
y = torch.randint(1, 4, (64,))
train_loader = [(x[i : i + 16], y[i : i + 16]) for i in range(0, 64, 16)]
model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3))
criterion = nn.CrossEntropyLoss()


def evaluate():
    for a, b in train_loader:
        LOSS
"""


@pytest.mark.parametrize(
    ("call", "codes_found", "note"),
    [
        ("print(criterion(model(a), b))", ["LOS007"], "Target 3 is out of bounds"),
        ("print(criterion(model(a), b[:5]))", ["LOS007"], "Target 3 is out of bounds"),
        ("pass", ["LOS007"], "Target 3 is out of bounds"),
    ],
)
def test_a_loss_that_raises_is_judged_by_what_it_raises(
    tmp_path: Path, call: str, codes_found: list[str], note: str
) -> None:
    (tmp_path / "net.py").write_text(CLASSES.replace("LOSS", call))
    result = run_command("check", "net.py", "--format", "json", cwd=tmp_path)
    (target,) = result.report["targets"]
    assert [finding["code"] for finding in result.report["findings"]] == codes_found
    assert note in target["notes"][0]


def test_a_model_beside_that_the_optimizer_has_instead_is_noted(tmp_path: Path) -> None:
    others = "teacher = nn.Linear(4, 3)\noptimizer = torch.optim.SGD(teacher.parameters(), 0.1)\n"
    text = CLASSES.replace("LOSS", "pass").replace("criterion", f"{others}criterion", 1)
    (tmp_path / "net.py").write_text(text)
    result = run_command("check", "net.py::model", "--format", "json", cwd=tmp_path)
    (target,) = result.report["targets"]
    assert target["notes"] == [
        "not probed: optimizer has the parameters of teacher, and none of this model"
    ]


FUNCTION = """\
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

RATE = 1e-7
x = torch.randn(256, 8)
model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2))
criterion = nn.CrossEntropyLoss()

def optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=RATE)

train_loader = DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), 32, shuffle=True)
"""


def test_an_optimizer_that_a_function_makes_has_its_line_and_its_edit(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(FUNCTION)
    result = run_command("check", "net.py", "--format=json", "--select=OPT003", cwd=tmp_path)
    (found,) = result.found("OPT003")
    assert found["location"]["row"] == 11
    assert [edit["location"]["row"] for edit in found["fixes"][0]["edits"]] == [5]


def test_an_optimizer_of_a_model_made_before_is_moved_behind_the_one_that_is_trained(
    tmp_path: Path,
) -> None:
    later = "model = make()\n"
    text = FUNCTION.replace("model = nn", "make = lambda: nn").replace(
        "def optimizer(model):\n    return ", f"{later}optimizer = "
    )
    (tmp_path / "net.py").write_text(f"{text}{later}")
    report = trainlint.check(tmp_path / "net.py", select=["OPT001"], stages=("probe",))
    (fix,) = report.findings[0].fixes
    assert fix.safety == "safe"
    mended = apply((tmp_path / "net.py").read_text(), fix.edits)
    assert mended.endswith(f"{later}optimizer = torch.optim.Adam(model.parameters(), lr=RATE)\n")


@pytest.mark.parametrize(
    ("layers", "given", "shape", "source"),
    [
        ("nn.Flatten(), nn.Linear(64, 2)", "x", "(16, 1, 8, 8)", "from train_loader"),
        ("nn.Linear(64, 2)", "x.flatten(1)", "(2, 64)", "inferred from layer 0"),
    ],
)
def test_the_inputs_are_those_that_the_users_loop_reads_if_the_model_runs_on_them(
    layers: str, given: str, shape: str, source: str, tmp_path: Path
) -> None:
    body = f"    for x, y in train_loader:\n        loss = criterion(model({given}), y)\n"
    text = FUNCTION.replace("randn(256, 8)", "randn(256, 1, 8, 8)")
    text = text.replace("nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2)", layers)
    text = text.replace("x[:, 0] > 0", "x[:, 0, 0, 0] > 0")
    text += f"made = optimizer(model)\n\n\ndef train(model):\n{body}"
    text += "        made.zero_grad()\n        loss.backward()\n        made.step()\n"
    (tmp_path / "net.py").write_text(text)
    (target,) = trainlint.check(tmp_path / "net.py", stages=("signal", "probe")).targets
    assert target.watched is not None
    assert target.watched.endswith("in train()")
    assert (target.inputs or "").startswith(shape)
    assert source in (target.inputs or "")
