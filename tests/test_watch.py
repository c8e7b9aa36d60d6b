"""`trainlint.watch`: what it says, that it changes nothing, and when it stops a training."""

from __future__ import annotations

import gc
import logging
import random
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_observe import LOOPS, batches, mlp, seams, seeded
from torch import Tensor, nn
from torch.nn import functional

import trainlint
from trainlint.errors import TrainingStopped, UsageError
from trainlint.observe.hooks import observed
from trainlint.observe.observer import TrainingObserver
from trainlint.observe.structure import StaticFindings
from trainlint.registry import all_rules
from trainlint.rule import Settings
from trainlint.running import run_script
from trainlint.sites import construction_sites

HERE = Path(__file__).name


def train(
    model: nn.Module,
    steps: int = 30,
    *,
    batch: Callable[[], tuple[Tensor, Tensor]] | None = None,
    loss: Callable[[Tensor, Tensor], Tensor] = functional.cross_entropy,
    rate: float = 1e-3,
) -> list[float]:
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    losses = []
    for _ in range(steps):
        x, y = next(batches(1, 64)) if batch is None else batch()
        optimizer.zero_grad()
        value = loss(model(x), y)
        value.backward()
        optimizer.step()
        losses.append(float(value.detach()))
    return losses


class Stack(nn.Module):
    def __init__(self, depth: int, f: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first = nn.Linear(8, 64)
        self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(depth))
        self.head = nn.Linear(64, 2)
        self.f = f

    def forward(self, x: Tensor) -> Tensor:
        x = self.f(self.first(x))
        for layer in self.layers:
            x = self.f(layer(x))
        return self.head(x)


def watched(loop: Callable[[], Any], **options: Any) -> trainlint.watch:
    with construction_sites(), trainlint.watch(**options) as w:
        loop()
    assert w.report().targets[0].status == "ok", w.report().targets[0].reason
    return w


def by_code(w: trainlint.watch) -> dict[str, Any]:
    return {finding.code: finding for finding in w.findings}


# ---------------------------------------------------------------------- nothing changes


@pytest.mark.parametrize("loop", LOOPS, ids=lambda loop: loop.__name__)
def test_a_loop_computes_the_same_also_where_its_graph_is_looked_at(loop: Any) -> None:
    bare = seeded(loop)
    with trainlint.watch() as w:
        seen = seeded(loop)
    assert seen == bare
    if loop.__name__ != "by_hand":  # which has no optimizer
        assert w._static is not None
        assert w._static.seconds > 0
        assert w._static.notes == []


class Bookkeeping(nn.Module):
    """Counts, prints, logs, fills lists around it, and draws random numbers of all kinds."""

    features: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Dropout(0.5))
        self.head = nn.utils.parametrizations.spectral_norm(nn.Linear(16, 2))
        self.hidden = [nn.BatchNorm1d(2)]
        self.calls, self.history = 0, []
        self.mean = torch.zeros(16)

    def forward(self, x: Tensor) -> Tensor:
        global CALLS
        CALLS += 1
        SHAPES.append(x.shape)
        self.calls += 1
        self.history.append(self.calls)
        print("called", self.calls)
        logging.getLogger("net").warning("called")
        x = self.body(x)
        self.mean.mul_(0.9).add_(x.detach().mean(0))
        return self.hidden[0](self.head(x + self.mean)) + random.random()


CALLS = 0
SHAPES: list[Any] = []


def test_the_forward_that_runs_once_more_is_not_noticed(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    def loop() -> Any:
        global CALLS
        CALLS = 0
        SHAPES.clear()
        torch.manual_seed(0)
        random.seed(0)
        model = Bookkeeping()
        features: list[Tensor] = []
        seen = 0

        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            nonlocal seen
            seen += 1
            features.append(output)

        model.head.register_forward_hook(hook)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        losses = []
        for x, y in batches(4):
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(x), y) + features[-1].square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        weights = [p.tolist() for p in model.parameters()]
        moments = [v.tolist() for s in optimizer.state.values() for v in s.values()]
        books = (seen, len(features), CALLS, list(SHAPES), model.calls, model.history)
        out = capsys.readouterr().out
        logged = len(caplog.records)
        caplog.clear()
        return (
            losses,
            weights,
            moments,
            books,
            out,
            logged,
            model.mean.tolist(),
            torch.rand(3).tolist(),
        )

    bare = loop()
    with trainlint.watch() as w:
        seen = loop()
    assert seen == bare
    assert w._static is not None
    assert w._static.notes == []


def test_the_state_between_backward_and_step_is_untouched() -> None:
    """Gradients, versions, buffers and modes as the optimizer finds them, also of graphs that live on."""
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 2))
    static = StaticFindings(Settings(all_rules()), "training")
    x, y = next(batches(1))
    first = functional.cross_entropy(model(x), y)
    second = functional.cross_entropy(model(x + 1), y)
    first.backward()

    def state() -> Any:
        tensors = [*model.parameters(), *model.buffers()]
        return (
            [(id(t), t._version, t.tolist(), t.grad_fn) for t in tensors],
            [(id(t.grad), t.grad._version, t.grad.tolist()) for t in model.parameters()],
            [m.training for m in model.modules()],
            [list(vars(m)) for m in model.modules()],
        )

    before = state()
    static.look_at(model, (x,), {})
    assert state() == before
    assert static.notes == []
    second.backward()


def test_nothing_of_the_model_is_held() -> None:
    static = StaticFindings(Settings(all_rules()), "training")
    model = Stack(8, torch.sigmoid)
    x = torch.randn(4, 8)
    static.look_at(model, (x,), {})
    assert [f.reported.code for f in static.findings if f.reported.severity == "error"] == [
        "ARC008"
    ]
    held = [weakref.ref(model), weakref.ref(x), weakref.ref(model.first.weight)]
    del model, x
    gc.collect()
    assert [ref() for ref in held] == [None] * 3


def test_what_cannot_be_captured_is_a_note() -> None:
    class Once(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(8, 2)

        def forward(self, parts: Any) -> Tensor:
            return self.fc(next(parts))

    def loop() -> None:
        model = Once()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for x, y in batches(6):
            optimizer.zero_grad()
            functional.cross_entropy(model(iter([x])), y).backward()
            optimizer.step()

    w = watched(loop)
    assert any("StopIteration" in note for note in w.report().targets[0].notes)
    assert w.trace.steps == 6


def test_the_graph_is_looked_at_once_a_model_and_before_anything_changes() -> None:
    seen: list[tuple[nn.Module, list[Any]]] = []

    def note(model: nn.Module, args: Any, kwargs: Any, _: Any) -> None:
        seen.append((model, [p.detach().clone() for p in model.parameters()]))

    one, two = mlp(), mlp()
    initial = [[p.detach().clone() for p in model.parameters()] for model in (one, two)]

    def loop() -> None:
        first = torch.optim.Adam(one.parameters())
        second = torch.optim.LBFGS(two.parameters(), max_iter=3)
        x, y = next(batches(1))

        def closure() -> Tensor:
            second.zero_grad()
            loss = functional.cross_entropy(two(x), y)
            loss.backward()
            return loss

        for _ in range(4):
            functional.cross_entropy(one(x), y).backward()
            first.step()
            second.step(closure)

    observer = TrainingObserver(before_training=note)
    with observed(observer) as problem:
        loop()
    assert problem() is None
    assert [model for model, _ in seen] == [one, two]
    for (_, found), weights in zip(seen, initial, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(found, weights, strict=True))


def test_the_static_stage_can_be_left_out() -> None:
    w = watched(lambda: train(Stack(8, torch.sigmoid)), stages=("probe",))
    assert {finding.stage for finding in w.findings} == {"probe"}
    assert "GRD001" in by_code(w)
    with pytest.raises(UsageError, match="signal"):
        trainlint.watch(stages=("signal",))


# ---------------------------------------------------------------------- causes, measured


def test_a_vanishing_gradient_stands_under_the_sigmoids_that_cause_it() -> None:
    w = watched(lambda: train(Stack(8, torch.sigmoid)))
    finding = by_code(w)["ARC008"]
    assert w.findings[0] == finding
    assert finding.severity == "error"
    symptom = next(s for s in finding.symptoms if s.code == "GRD001")
    assert symptom.stage == "probe"
    assert symptom.evidence["gradient_decades"] < -5
    assert f"measured in training: {symptom.evidence['measured']}" in finding.message
    assert symptom.evidence["measured"].endswith("at first")
    assert finding.location is not None
    line = Path(finding.filename).read_text(encoding="utf-8").splitlines()[finding.location.row - 1]
    assert line == "        x = self.f(self.first(x))"


def test_the_measured_figure_is_that_of_the_run() -> None:
    figures: list[float] = []

    class Noting(Stack):
        def forward(self, x: Tensor) -> Tensor:
            first = self.first(x)
            x = self.f(first)
            for layer in self.layers:
                x = self.f(layer(x))
            scores = self.head(x)
            if self.training and first.requires_grad and not first.is_meta:
                first.retain_grad()
                scores.retain_grad()
                self.kept = (first, scores)
            return scores

    def loop() -> None:
        model = Noting(5, torch.sigmoid)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        for x, y in batches(25, 64):
            optimizer.zero_grad()
            functional.cross_entropy(model(x), y).backward()
            figures.append(float(model.kept[0].grad.norm() / model.kept[1].grad.norm()))
            optimizer.step()

    w = watched(loop, every=1)
    symptom = next(s for f in w.findings for s in (f, *f.symptoms) if s.code == "GRD001")
    shares = sorted(figures)
    said = float(symptom.evidence["measured"].split()[1])
    assert shares[0] <= said * 1.2
    assert said <= shares[-1] * 1.2


@pytest.mark.parametrize(("f", "depth"), [(torch.relu, 20), (torch.tanh, 40)], ids=["relu", "tanh"])
def test_deep_default_initialisation_is_the_cause(f: Any, depth: int) -> None:
    finding = by_code(watched(lambda: train(Stack(depth, f))))["INI003"]
    assert {"GRD001", "INI005"} <= {symptom.code for symptom in finding.symptoms}
    assert finding.severity == "error"
    assert "measured in training: gradient" in finding.message


def residual(depth: int, *, zero: bool) -> nn.Module:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.one, self.two = nn.LayerNorm(64), nn.Linear(64, 64), nn.Linear(64, 64)
            if zero:
                nn.init.zeros_(self.two.weight)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.two(torch.relu(self.one(self.norm(x))))

    return nn.Sequential(
        nn.Linear(8, 64), *(Block() for _ in range(depth)), nn.LayerNorm(64), nn.Linear(64, 2)
    )


SOUND: dict[str, Callable[[], nn.Module]] = {
    "residual": lambda: residual(8, zero=False),
    "zero_init": lambda: residual(8, zero=True),
    "sigmoid_once": lambda: Stack(0, torch.sigmoid),
    "tanh_shallow": lambda: Stack(3, torch.tanh),
    "batch_norm": lambda: nn.Sequential(
        *(
            layer
            for n in range(12)
            for layer in (nn.Linear(64 if n else 8, 64), nn.BatchNorm1d(64), nn.ReLU())
        ),
        nn.Linear(64, 2),
    ),
}


@pytest.mark.parametrize("name", SOUND)
def test_sound_depth_is_no_finding(name: str) -> None:
    w = watched(lambda: train(SOUND[name](), 40))
    assert [(f.code, f.message) for f in w.findings if f.severity != "info"] == []


class Cell(nn.Module):
    """An RNN written out; its matrix stretches by `scale`."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.inputs, self.state, self.head = nn.Linear(4, 32), nn.Linear(32, 32), nn.Linear(32, 1)
        nn.init.orthogonal_(self.state.weight, gain=scale)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(len(x), 32)
        for t in range(x.shape[1]):
            h = torch.relu(self.inputs(x[:, t]) + self.state(h))
        return self.head(h)


class Fused(nn.Module):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self.rnn = nn.RNN(4, 32, batch_first=True)
        self.head = nn.Linear(32, 1)
        nn.init.orthogonal_(self.rnn.weight_hh_l0, gain=scale)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


def sequence() -> tuple[Tensor, Tensor]:
    x = torch.randn(32, 30, 4)
    return x, x[:, -1, :1]


@pytest.mark.parametrize(("build", "name"), [(Cell, "inputs"), (Fused, "rnn")])
def test_an_exploding_rnn_is_found_at_its_layer(build: Any, name: str) -> None:
    w = watched(lambda: train(build(3.0), batch=sequence, loss=functional.mse_loss))
    everything = [s for f in w.findings for s in (f, *f.symptoms)]
    finding = next(f for f in everything if f.code == "GRD002")
    assert finding.severity == "error"
    assert w.findings[0].severity == "error"
    assert Path(finding.filename).name == HERE
    text = Path(finding.filename).read_text(encoding="utf-8").splitlines()
    assert f"self.{name}" in text[finding.location.row - 1]


@pytest.mark.parametrize("build", [Cell, Fused])
def test_an_rnn_that_keeps_its_scale_is_none(build: Any) -> None:
    w = watched(lambda: train(build(1.0), 60, batch=sequence, loss=functional.mse_loss))
    assert [(f.code, f.message) for f in w.findings if f.severity != "info"] == []


def test_targets_far_from_zero_are_no_explosion() -> None:
    def far() -> tuple[Tensor, Tensor]:
        x, y = sequence()
        return x, 1000 + 100 * y

    w = watched(lambda: train(Fused(1.0), batch=far, loss=functional.mse_loss))
    everything = [s for f in w.findings for s in (f, *f.symptoms)]
    assert "GRD002" not in {finding.code for finding in everything}


def test_branches_that_take_turns_are_not_unused() -> None:
    class Turns(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.count = nn.Linear(8, 2), nn.Linear(8, 2), 0

        def forward(self, x: Tensor) -> Tensor:
            self.count += 1
            return self.one(x) if self.count % 2 else self.two(x)

    w = watched(lambda: train(Turns(), rate=1e-2), every=1)
    assert [f.message for f in w.findings if f.code in ("ARC004", "GRD004")] == []


# ---------------------------------------------------------------------- stopping


def hopeless(steps: int) -> int:
    """An optimizer that holds another model's parameters."""
    model, other = mlp(), mlp()
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    done = 0
    for x, y in batches(steps):
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        done += 1
    return done


def test_a_hopeless_training_is_stopped_if_asked_for() -> None:
    w = trainlint.watch(on="error")
    before = seams()
    with pytest.raises(trainlint.TrainingStopped) as caught, w:
        hopeless(100)
    assert isinstance(caught.value, TrainingStopped)
    assert caught.value.finding.severity == "error"
    assert caught.value.steps in (5, 20, 50)
    assert caught.value.finding.code in str(caught.value)
    assert w.trace.steps == caught.value.steps
    assert w.findings[0].code == caught.value.finding.code
    assert seams() == before


def test_nothing_is_raised_unless_asked_for() -> None:
    with trainlint.watch() as w:
        assert hopeless(30) == 30
    assert w.findings[0].severity == "error"


@pytest.mark.parametrize("on", ["error", "warning"])
def test_a_sound_training_is_not_stopped(on: Any) -> None:
    bare = seeded(lambda: train(mlp(outputs=2), 120))
    with trainlint.watch(on=on) as w:
        assert seeded(lambda: train(mlp(outputs=2), 120)) == bare
    assert w.trace.steps == 120


def test_warnings_stop_only_where_asked_for() -> None:
    def piling_up() -> int:
        model = mlp(outputs=2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        for x, y in batches(60):
            functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        return 60

    with trainlint.watch() as w:
        piling_up()
    worst = w.findings[0]
    assert (worst.code, worst.confidence) == ("GRD007", "certain")
    with pytest.raises(TrainingStopped), trainlint.watch(on="warning"):
        piling_up()
    if worst.severity == "warning":
        with trainlint.watch(on="error"):
            assert piling_up() == 60


def test_other_values_are_refused() -> None:
    with pytest.raises(UsageError, match="info"):
        trainlint.watch(on="info")  # type: ignore[arg-type]


# ---------------------------------------------------------------------- ways to use it


def test_what_was_seen_can_be_asked_for_at_any_time() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with trainlint.watch(model, optimizer, every=1) as w:
        assert w.trace.steps == 0
        for number, (x, y) in enumerate(batches(4)):
            optimizer.zero_grad()
            functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            assert w.trace.steps == number + 1
            assert w.report().targets[0].status == "ok"
            assert w.findings == []
    assert w.trace.recorded == [0, 1, 2, 3]


def test_a_watch_can_be_entered_again() -> None:
    model = mlp(outputs=2)
    w = trainlint.watch(model)
    before = seams()
    with w:
        train(model, 3)
    assert seams() == before
    train(model, 5)
    with w, w:
        train(model, 4)
    assert seams() == before
    assert w.trace.steps == 4  # of the optimizer with most of them
    assert sum(optimizer.steps for optimizer in w.trace.optimizers) == 7


def test_a_watch_in_a_watch() -> None:
    bare = seeded(lambda: train(mlp(outputs=2), 8))
    before = seams()
    with trainlint.watch() as outer:
        with trainlint.watch(every=1) as inner:
            assert seeded(lambda: train(mlp(outputs=2), 8)) == bare
        train(mlp(outputs=2), 2)
    assert seams() == before
    assert inner.trace.steps == 8
    assert inner.report().targets[0].status == "ok"
    assert sum(optimizer.steps for optimizer in outer.trace.optimizers) == 10
    assert [f.message for w in (outer, inner) for f in w.findings if f.severity != "info"] == []


def test_a_watch_in_a_thread() -> None:
    seen: list[trainlint.watch] = []

    def run() -> None:
        torch.manual_seed(0)
        with trainlint.watch() as w:
            train(mlp(outputs=2), 6)
        seen.append(w)

    before = seams()
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seams() == before
    assert seen[0].trace.steps == 6
    assert seen[0].report().targets[0].status == "ok"


def test_a_watch_of_one_model_says_nothing_of_others() -> None:
    model = mlp(outputs=2)
    with trainlint.watch(model) as w:
        train(Stack(8, torch.sigmoid))
        train(model, 6)
    assert [m.name for m in w.trace.models] == ["Sequential"]
    assert "ARC008" not in by_code(w)


# ---------------------------------------------------------------------- scripts

SCRIPT = """\
import torch
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(
    nn.Linear(8, 64), nn.Sigmoid(),
    nn.Linear(64, 64), nn.Sigmoid(),
    nn.Linear(64, 64), nn.Sigmoid(),
    nn.Linear(64, 64), nn.Sigmoid(),
    nn.Linear(64, 64), nn.Sigmoid(),
    nn.Linear(64, 64), nn.Sigmoid(),
    nn.Linear(64, 64), nn.Sigmoid(),
    nn.Linear(64, 64), nn.Sigmoid(),
    nn.Linear(64, 2),
)
optimizer = torch.optim.Adam(model.parameters())
for _ in range(25):
    x = torch.randn(64, 8)
    loss = nn.functional.cross_entropy(model(x), (x[:, 0] > 0).long())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(loss.item())
"""


@pytest.mark.parametrize("static", [True, False])
def test_a_script_is_joined_to_its_graph(
    static: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT, encoding="utf-8")
    done = run_script(str(script), static=static)
    assert done.status == 0
    out = capfd.readouterr().out
    with trainlint.watch(stages=("probe",)):
        exec(compile(SCRIPT, str(script), "exec"), {"__name__": "__main__"})
    assert capfd.readouterr().out == out
    codes = {finding.code: finding for finding in done.report.findings}
    assert ("ARC008" in codes) is static
    assert ("GRD001" in codes) is not static
    if static:
        assert "measured in training: gradient" in codes["ARC008"].message
        assert codes["ARC008"].filename == str(script)
        assert "GRD001" in [symptom.code for symptom in codes["ARC008"].symptoms]
        # Who filled the weights is known in a run as it is in a check, and so is what it takes to edit it.
        first = codes["ARC008"].fixes[0]
        assert "He initialisation" in first.title
        assert any("kaiming_normal_" in edit.content for edit in first.edits), first.obstacle
