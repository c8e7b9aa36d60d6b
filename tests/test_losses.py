"""Losses: found in texts, in forwards and as objects; what stands before them, and what the pulse does."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path

import pytest
import torch
from conftest import Run  # noqa: TC002
from torch import nn
from torch.nn import functional as F  # noqa: N812

import trainlint
from trainlint.capture.inputs import Inputs
from trainlint.capture.tracer import capture
from trainlint.errors import UsageError
from trainlint.fixes.source import SourceText, apply
from trainlint.graph import Graph
from trainlint.loss.objective import given_loss, kind_of, objective_of
from trainlint.loss.source import loss_uses
from trainlint.loss.uses import Losses, Recipe, losses_of
from trainlint.measure.pulse import pulse
from trainlint.records import ReportedFinding

PRELUDE = """
import torch
import torch.nn as nn
import torch.nn.functional as F

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 3)
    def forward(self, x):
        return self.fc(x)
"""


def uses_in(body: str) -> list[tuple[object, ...]]:
    """(kind, names, element, steps) of each use whose argument could be traced, else (kind, None)."""
    text = SourceText("script.py", PRELUDE + textwrap.dedent(body))
    return [
        (use.kind, None)
        if use.scores is None
        else (
            use.kind,
            set(use.scores.models),
            use.scores.element,
            [step.name for step in use.scores.steps],
        )
        for use in loss_uses(text)
    ]


# ---------------------------------------------------------------------- texts

# What people write: (text, what it means).
SCRIPTS: dict[str, tuple[str, list[tuple[object, ...]]]] = {
    "module level": ("""
        model = Net()
        criterion = nn.CrossEntropyLoss()
        for x, y in loader:
            out = model(x)
            loss = criterion(out, y)
            loss.backward()
        """, [("cross_entropy", {"model", "Net"}, (), [])]),
    "passed to train()": ("""
        def train(dataloader, model, loss_fn, optimizer):
            for batch, (X, y) in enumerate(dataloader):
                pred = model(X)
                loss = loss_fn(pred, y)
        if __name__ == "__main__":
            model = Net().to("cpu")
            loss_fn = nn.NLLLoss()
            train(loader, model, loss_fn, None)
        """, [("nll_loss", {"model", "Net"}, (), [])]),
    "in main": ("""
        def main():
            net = Net()
            net = nn.DataParallel(net)
            crit = torch.nn.BCELoss(reduction="mean").cuda()
            loss = crit(net(x).squeeze(), y)
        """, [("binary_cross_entropy", {"Net"}, (), ["squeeze"])]),
    "functional": ("""
        net = Net()
        loss = F.nll_loss(F.log_softmax(net(x), dim=1), y)
        """, [("nll_loss", {"net", "Net"}, (), ["log_softmax"])]),
    "imported function": ("""
        from torch.nn.functional import cross_entropy
        net = Net()
        loss = cross_entropy(input=net(x), target=y)
        """, [("cross_entropy", {"net", "Net"}, (), [])]),
    "made where it is called": ("""
        net = Net()
        loss = nn.BCEWithLogitsLoss()(torch.sigmoid(net(x)).view(-1), y)
        """, [("binary_cross_entropy_with_logits", {"net", "Net"}, (), ["reshape", "sigmoid"])]),
    "a part of the output": ("""
        model = Net()
        recon, mu, logvar = model(x)
        loss = F.binary_cross_entropy(recon, x.view(-1, 784), reduction="sum")
        """, [("binary_cross_entropy", {"model", "Net"}, ("0",), [])]),
    "an attribute and a key": ("""
        model = Net()
        out = model(**batch)
        a = F.cross_entropy(out.logits, y)
        b = F.cross_entropy(out["aux"], y)
        """, [("cross_entropy", {"model", "Net"}, ("logits",), []),
              ("cross_entropy", {"model", "Net"}, ("aux",), [])]),
    "a Trainer": ("""
        class Trainer:
            def __init__(self, model, criterion=None):
                self.model = model
                self.criterion = nn.CrossEntropyLoss()
            def step(self, x, y):
                logits = self.model(x)
                return self.loss(logits, y)
            def loss(self, logits, y):
                return self.criterion(logits, y)
        Trainer(Net()).step(x, y)
        """, [("cross_entropy", {"Net"}, (), [])]),
    "training_step": ("""
        class Lit(Net):
            def training_step(self, batch, i):
                x, y = batch
                y_hat = self(x)
                return F.cross_entropy(y_hat, y)
        """, [("cross_entropy", {"Lit"}, (), [])]),
    "the user's own loss layer": ("""
        class Focal(nn.Module):
            def forward(self, inputs, targets):
                ce = F.cross_entropy(inputs, targets, reduction="none")
                return ce.mean()
        net = Net()
        focal = Focal()
        loss = focal(net(x), y)
        """, [("cross_entropy", {"net", "Net"}, (), [])]),
    "the user's own loss function": ("""
        def loss_function(recon_x, x):
            return F.mse_loss(recon_x, x)
        net = Net()
        loss = loss_function(net(x), x)
        """, [("mse_loss", {"net", "Net"}, (), [])]),
    "a model that is a parameter of nothing": ("""
        def train(model, loader):
            for x, y in loader:
                output = model(x)
                loss = F.cross_entropy(output, y)
        """, [("cross_entropy", set(), (), [])]),
    "an unknown function between": ("""
        net = Net()
        loss = F.cross_entropy(postprocess(net(x)), y)
        """, [("cross_entropy", None)]),
    "arithmetic between": ("""
        net = Net()
        loss = F.cross_entropy(net(x) / temperature, y)
        """, [("cross_entropy", None)]),
    "arithmetic with numbers": ("""
        net, eps = Net(), 1e-8
        loss = F.nll_loss(torch.log(1 - 2 * net(x) + eps), y)
        """, [("nll_loss", {"net", "Net"}, (), ["log", "add", "add", "neg", "mul"])]),
    "the difference of two outputs": ("""
        net = Net()
        loss = F.binary_cross_entropy_with_logits(net(a) - net(b), y)
        """, [("binary_cross_entropy_with_logits", None)]),
    "clamps by any name": ("""
        net = Net()
        out = torch.clamp(net(x).clip(0).clamp_max(6.0), min=-1, max=None)
        loss = F.mse_loss(F.relu6(nn.Softplus()(out)), y)
        """, [("mse_loss", {"net", "Net"}, (), ["relu6", "softplus", "clamp", "clamp", "clamp"])]),
    "a clamp to something computed": ("""
        net = Net()
        loss = F.mse_loss(net(x).clamp(min=y.min()), y)
        """, [("mse_loss", {"net", "Net"}, (), ["clamp"])]),
    "another method of the model": ("""
        net = Net()
        loss = F.cross_entropy(net.classify(x), y)
        """, [("cross_entropy", None)]),
    "two ways to get there": ("""
        net = Net()
        if args.soft:
            out = F.softmax(net(x), dim=1)
        else:
            out = net(x)
        loss = F.cross_entropy(out, y)
        """, [("cross_entropy", None)]),
    "each branch for itself": ("""
        model = Net()
        if phase == "train":
            outputs, aux = model(x)
            loss = F.cross_entropy(outputs, y)
        else:
            outputs = model(x)
            loss = F.cross_entropy(outputs, y)
        """, [("cross_entropy", {"model", "Net"}, ("0",), []),
              ("cross_entropy", {"model", "Net"}, (), [])]),
    "the nearest assignment": ("""
        model = Net()
        out = model(x)
        out = torch.softmax(out, 1)
        loss = F.cross_entropy(out, y)
        """, [("cross_entropy", {"model", "Net"}, (), ["softmax"])]),
    "a loss that depends": ("""
        model = Net()
        criterion = nn.CrossEntropyLoss() if args.ce else nn.BCELoss()
        loss = criterion(model(x), y)
        """, []),
    "a loss of their own by a known name": ("""
        class CrossEntropyLoss(nn.Module):
            def forward(self, a, b):
                return (a - b).sum()
        model = Net()
        loss = CrossEntropyLoss()(model(x), y)
        """, []),
    "a GAN": ("""
        netD, netG = Net(), Net()
        criterion = nn.BCELoss()
        fake = netG(z)
        a = criterion(netD(real).view(-1), ones)
        b = criterion(netD(fake.detach()).view(-1), zeros)
        """, [("binary_cross_entropy", {"netD", "Net"}, (), ["reshape"]),
              ("binary_cross_entropy", {"netD", "Net"}, (), ["reshape"])]),
    "accelerate": ("""
        model = Net()
        model, optimizer = accelerator.prepare(model, optimizer)
        loss = F.cross_entropy(model(x), y)
        """, [("cross_entropy", {"model", "Net"}, (), [])]),
    "a loop over nothing known": ("""
        for model in models:
            loss = F.cross_entropy(model(x), y)
        """, [("cross_entropy", set(), (), [])]),
}  # fmt: skip


@pytest.mark.parametrize(("body", "wanted"), SCRIPTS.values(), ids=list(SCRIPTS))
def test_what_a_script_applies_its_loss_to(body: str, wanted: list[tuple[object, ...]]) -> None:
    assert uses_in(body) == wanted


def test_a_use_knows_where_the_loss_was_made_and_whether_it_trains() -> None:
    text = SourceText("s.py", textwrap.dedent("""
        from torch import nn
        def train(model, x, y):
            criterion = nn.CrossEntropyLoss()
            loss = criterion(model(x), y)
            loss.backward()
        def validate(model, x, y):
            return nn.functional.cross_entropy(model(x), y)
        """))  # fmt: skip
    first, second = loss_uses(text)
    assert (first.site.row, first.call.row, first.trains) == (4, 5, True)
    assert (second.made, second.site.row, second.trains) == (None, 8, False)


def test_a_name_with_a_live_loss_is_known_by_it() -> None:
    text = SourceText("s.py", "criterion = build(cfg)\nloss = criterion(model(x), y)\n")
    assert [use.kind for use in loss_uses(text)] == []
    assert [use.kind for use in loss_uses(text, {"criterion": "nll_loss"})] == ["nll_loss"]


# What a script makes of a sigmoid before its loss, and the bounds of that.
RESCALED = {
    "2 * out": (0, 2),
    "out * 2 - 1": (-1, 1),
    "1 - out": (0, 1),
    "-out / 4": (-0.25, 0),
    "torch.clamp(out, 1e-7, max=1 - 1e-7)": (1e-7, 1 - 1e-7),
    "out.clamp(min=y.min())": None,
    "out.clamp(0.25, 0.75)": (0.25, 0.75),
    "(4 * out - 2).clamp(min=0)": (0, 2),
    "F.relu(out - 0.5)": (0, 0.5),
    "torch.clip(out, EPS, 1)": (0.125, 1),
    "F.gelu(10 * out - 5)": (-0.17, 5),
}


@pytest.mark.parametrize(("expression", "bounds"), RESCALED.items(), ids=list(RESCALED))
def test_the_bounds_of_what_a_script_makes_of_an_output(expression: str, bounds: object) -> None:
    body = f"EPS = 0.125\nnet = Net()\nout = net(x)\nloss = F.mse_loss({expression}, y)"
    uses = loss_uses(SourceText("script.py", PRELUDE + body))
    recipe = Recipe(uses=uses, names=frozenset({"net", "Net"}))
    losses = losses_of(graph_of(Head(torch.sigmoid), X), recipe)
    assert [losses.range(call) for call in losses.calls] == [bounds]


def test_a_text_that_calls_itself_in_circles_is_left_open() -> None:
    body = """
        def f(output):
            return g(output)
        def g(output):
            return f(output)
        a = b
        b = a
        loss = F.cross_entropy(f(a), y)
        """
    assert uses_in(body) == [("cross_entropy", None)]


# ---------------------------------------------------------------------- graphs


def graph_of(model: nn.Module, *args: torch.Tensor) -> Graph:
    recording = capture(model, args)
    assert recording.exception is None
    return Graph(recording.graph, recording.model)


def judged(model: nn.Module, loss: object, *args: torch.Tensor) -> Losses:
    graph = graph_of(model, *args)
    return losses_of(graph, Recipe(loss=loss, explicit=True), given_loss(loss, graph))  # type: ignore[arg-type]


class Head(nn.Module):
    """A linear layer and what a test puts behind it."""

    def __init__(self, after: object, classes: int = 3) -> None:
        super().__init__()
        self.fc = nn.Linear(4, classes)
        self.after = after

    def forward(self, x: torch.Tensor) -> object:
        return self.after(self.fc(x))  # type: ignore[operator]


X = torch.randn(8, 4)


def test_links_look_through_what_rearranges_and_stop_at_the_layer() -> None:
    model = Head(lambda z: torch.softmax(torch.relu(z), 1).unsqueeze(0).squeeze(0)[:, :2])
    losses = judged(model, nn.CrossEntropyLoss(), X)
    (call,) = losses.calls
    assert [link.name for link in losses.links(call)] == ["softmax", "relu", "linear"]


def test_steps_that_are_stacked_are_seen_as_one() -> None:
    model = Head(lambda z: torch.stack([torch.sigmoid(z), torch.sigmoid(z + 1)], 1))
    losses = judged(model, nn.BCELoss(), X)
    assert losses.links(losses.calls[0])[0].name == "sigmoid"


BOUNDS = {
    "linear": (lambda z: z, (-math.inf, math.inf)),
    "sigmoid": (torch.sigmoid, (0, 1)),
    "shifted tanh": (lambda z: (torch.tanh(z) + 1) / 2, (0, 1)),
    "one minus": (lambda z: 1 - torch.sigmoid(z), (0, 1)),
    "clamped": (lambda z: z.clamp(1e-7, 1 - 1e-7), (1e-7, 1 - 1e-7)),
    "exp of log": (lambda z: z.log_softmax(1).exp(), (0, 1)),
    "relu": (F.relu, (0, math.inf)),
    "mean of sigmoids": (lambda z: torch.sigmoid(z).mean(1), (0, 1)),
    "product": (lambda z: torch.sigmoid(z) * torch.sigmoid(-z), (0, 1)),
    "scaled": (lambda z: 3 * torch.tanh(z), (-3, 3)),
    "from below": (lambda z: z.clamp(min=0.5), (0.5, math.inf)),
}


@pytest.mark.parametrize(("after", "bounds"), BOUNDS.values(), ids=list(BOUNDS))
def test_the_bounds_of_an_output(after: object, bounds: tuple[float, float]) -> None:
    losses = judged(Head(after), nn.MSELoss(), X)
    assert losses.range(losses.calls[0]) == bounds


def test_the_bounds_of_an_unknown_operation_are_not_guessed() -> None:
    for after in (torch.erfinv, lambda z: z / z.norm(), lambda z: torch.sigmoid(z) / z.sum()):
        losses = judged(Head(after), nn.MSELoss(), X)
        assert losses.range(losses.calls[0]) is None


def test_a_loss_inside_of_the_forward() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 3)
            self.criterion = nn.CrossEntropyLoss()

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            loss: torch.Tensor = self.criterion(self.fc(x), y)
            return loss

    losses = losses_of(graph_of(Own(), X, torch.zeros(8, dtype=torch.long)), Recipe())
    assert [(call.kind, call.path) for call in losses.calls] == [("cross_entropy", None)]
    assert objective_of(losses) is None


def test_a_model_in_eval_mode_says_nothing_of_its_training() -> None:
    assert judged(Head(torch.sigmoid).eval(), nn.BCELoss(), X).calls == ()


# ---------------------------------------------------------------------- objects


def test_the_kind_of_a_loss() -> None:
    assert kind_of(nn.CrossEntropyLoss()) == "cross_entropy"
    assert kind_of(F.nll_loss) == "nll_loss"
    assert kind_of(nn.ReLU()) is None
    assert kind_of(lambda a, b: a) is None
    assert kind_of(3) is None


def test_a_function_that_ends_in_a_loss_is_known_by_it() -> None:
    graph = graph_of(Head(lambda z: z), X)
    given = given_loss(lambda out, y: F.binary_cross_entropy(torch.sigmoid(out), y), graph)
    assert (given.kind, [step.name for step in given.steps]) == (
        "binary_cross_entropy",
        ["sigmoid"],
    )
    assert given_loss(lambda out, y: (out - y).abs().mean(), graph).kind == ""


# ---------------------------------------------------------------------- the pulse


def measured(model: nn.Module, loss: object, targets: object = None) -> tuple[str, float]:
    graph = graph_of(model, X)
    recipe = Recipe(loss=loss, targets=targets, explicit=True)  # type: ignore[arg-type]
    losses = losses_of(graph, recipe, given_loss(loss, graph))  # type: ignore[arg-type]
    inputs = Inputs((X,), {}, "given", given=True)
    signal = pulse(model, inputs, graph, objective=objective_of(losses))
    return signal.objective, signal.value


def test_the_pulse_differentiates_the_loss_on_the_given_targets() -> None:
    torch.manual_seed(0)
    model = Head(lambda z: z)
    targets = torch.randint(0, 3, (8,))
    kind, value = measured(model, nn.CrossEntropyLoss(), targets)
    assert kind == "loss"
    assert value == pytest.approx(float(F.cross_entropy(model(X), targets).detach()))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("after", "loss"),
    [
        (lambda z: z, nn.CrossEntropyLoss()),
        (lambda z: z.log_softmax(1), nn.NLLLoss()),
        (torch.sigmoid, nn.BCELoss()),
        (lambda z: z, nn.BCEWithLogitsLoss()),
        (lambda z: z, nn.MSELoss()),
        (lambda z: z, lambda out, y: F.cross_entropy(out, y, label_smoothing=0.1)),
        (lambda z: z[..., None].expand(-1, -1, 5), nn.CrossEntropyLoss()),
    ],
)
def test_targets_are_made_up_for_the_usual_losses(after: object, loss: object) -> None:
    kind, value = measured(Head(after), loss)
    assert kind == "loss"
    assert math.isfinite(value)


def test_what_a_loss_refuses_is_projected() -> None:
    assert measured(Head(torch.tanh), nn.BCELoss())[0] == "projection"


# ---------------------------------------------------------------------- from end to end


def test_check_takes_a_loss_and_targets() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Softmax(dim=1))
    report = trainlint.check(model, X, loss=nn.CrossEntropyLoss(), targets=torch.zeros(8).long())
    assert "LOS001" in [finding.code for finding in report.findings]
    assert "LOS001" not in [finding.code for finding in trainlint.check(model, X).findings]


# The last activation, the loss, and how much ACT004 makes of it.
LAST_ACTIVATIONS = {
    "clamp at 0, binary": (lambda z: z.clamp(min=0), nn.BCEWithLogitsLoss(), "warning"),
    "softplus, binary": (F.softplus, nn.BCEWithLogitsLoss(), "warning"),
    "clamp to [0, 1], binary": (lambda z: z.clamp(0, 1), nn.BCEWithLogitsLoss(), "warning"),
    "relu in a sigmoid": (lambda z: torch.sigmoid(F.relu(z)), nn.BCELoss(), "warning"),
    "relu6": (F.relu6, nn.CrossEntropyLoss(), "warning"),
    "hardtanh": (F.hardtanh, nn.CrossEntropyLoss(), "warning"),
    "gelu": (F.gelu, nn.CrossEntropyLoss(), "info"),
    "tanh in a log_softmax": (lambda z: torch.tanh(z).log_softmax(1), nn.NLLLoss(), "warning"),
    "a wide clamp": (lambda z: z.clamp(-10, 10), nn.CrossEntropyLoss(), None),
    "a clamp from above": (lambda z: z.clamp(max=4), nn.CrossEntropyLoss(), None),
    "leaky": (F.leaky_relu, nn.CrossEntropyLoss(), None),
    "a scale behind": (lambda z: 10 * torch.tanh(z), nn.CrossEntropyLoss(), None),
    "pooled": (lambda z: F.relu(z).mean(1, keepdim=True), nn.BCEWithLogitsLoss(), None),
    "LOS003": (torch.sigmoid, nn.BCEWithLogitsLoss(), None),
    "LOS004": (F.relu, nn.BCELoss(), None),
    "positive values": (F.softplus, nn.MSELoss(), None),
}


@pytest.mark.parametrize(
    ("after", "loss", "wanted"), LAST_ACTIVATIONS.values(), ids=list(LAST_ACTIVATIONS)
)
def test_the_last_activation(after: object, loss: object, wanted: str | None) -> None:
    report = trainlint.check(Head(after), X, loss=loss, select=["ACT004"], stages=["static"])
    assert [finding.severity for finding in report.findings] == ([wanted] if wanted else [])


@pytest.mark.parametrize("value", ["self.fc(x).clip(0)", "torch.clamp(self.fc(x), min=0)"])
def test_a_clamp_is_taken_out_by_any_name(tmp_path: Path, value: str) -> None:
    text = PRELUDE.replace("return self.fc(x)", f"return {value}") + (
        "\ndef train(x, y):\n    F.cross_entropy(Net()(x), y).backward()\n"
    )
    path = tmp_path / "net.py"
    path.write_text(text)
    (finding,) = trainlint.check(path, select=["ACT004"], stages=["static"]).findings
    assert "return self.fc(x)\n" in apply(text, finding.fixes[0].edits)


def test_targets_out_of_reach_are_reported() -> None:
    model = nn.Sequential(nn.Linear(4, 1), nn.Sigmoid())
    near, far = torch.rand(8, 1), 10 * torch.rand(8, 1) + 5
    codes = [
        [f.code for f in trainlint.check(model, X, loss=nn.MSELoss(), targets=t).findings]
        for t in (near, far)
    ]
    assert ["ACT004" in found for found in codes] == [False, True]


LOADED = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
x = torch.randn(256, 4)
y = TARGETS
model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1), nn.LAST())
criterion = nn.MSELoss()
train_loader = DataLoader(TensorDataset(x, y), batch_size=32, shuffle=True)
"""
# The last activation, the loader's targets, and what is made of them.
LOADED_TARGETS = [
    ("ReLU", "x[:, :1]", "warning"),
    ("Sigmoid", "2 * x[:, :1]", "warning"),
    ("Sigmoid", "torch.rand(256, 1)", None),
    ("ReLU", "x[:, :1].exp()", None),
    ("ReLU", "torch.cat([x[:255, :1].abs() + 5, torch.tensor([[-3.0]])])", None),
    ("Tanh", "torch.tanh(x[:, :1]) * 1.01", None),
]


@pytest.mark.parametrize(("last", "targets", "wanted"), LOADED_TARGETS)
def test_a_loaders_targets_out_of_reach(
    tmp_path: Path, last: str, targets: str, wanted: str | None
) -> None:
    path = tmp_path / "net.py"
    path.write_text(LOADED.replace("LAST", last).replace("TARGETS", targets))
    report = trainlint.check(path, select=["ACT004"], stages=["static", "data"])
    assert [finding.severity for finding in report.findings] == ([wanted] if wanted else [])


def test_what_a_bounded_output_keeps_from_being_learnt_stands_below_it(tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    path.write_text(LOADED.replace("LAST", "Sigmoid").replace("TARGETS", "3 * x[:, :1]"))
    heads = {f.code: f for f in trainlint.check(path).findings if f.severity != "info"}
    assert list(heads) == ["ACT004"]
    assert "LOS009" in [symptom.code for symptom in heads["ACT004"].symptoms]


def test_a_loss_for_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="live model"):
        trainlint.check(tmp_path, loss=nn.MSELoss())


FIXES = {
    "layer": ("nn.Softmax(dim=1)", "softmax(self.fc(x))", "CrossEntropyLoss", "nn.Identity()"),
    "sigmoid layer": (
        "nn.Sigmoid()",
        "softmax(self.fc(x))",
        "BCEWithLogitsLoss",
        "nn.Identity()",
    ),
    "function": (
        "nn.Identity()",
        "F.softmax(self.fc(x), dim=1)",
        "CrossEntropyLoss",
        "return self.fc(x)",
    ),
    "method": (
        "nn.Identity()",
        "self.fc(x).sigmoid()",
        "BCEWithLogitsLoss",
        "return self.fc(x)",
    ),
    "loss": ("nn.Identity()", "self.fc(x)", "BCELoss", "criterion = nn.BCEWithLogitsLoss()"),
    "nll": ("nn.Identity()", "self.fc(x)", "NLLLoss", "criterion = nn.CrossEntropyLoss()"),
    "log": ("nn.Identity()", "torch.softmax(self.fc(x), 1)", "NLLLoss", "torch.log_softmax("),
}


def checked(path: Path) -> list[ReportedFinding]:
    return trainlint.check(path, select=["LOS"], stages=["static"]).findings


@pytest.mark.parametrize(("layer", "value", "loss", "wanted"), FIXES.values(), ids=list(FIXES))
def test_the_first_fix_mends_the_file(
    tmp_path: Path, layer: str, value: str, loss: str, wanted: str
) -> None:
    path = tmp_path / "net.py"
    value = value.replace("softmax(self", "self.softmax(self") if "(x))" in value[:19] else value
    text = (
        PRELUDE.replace("nn.Linear(4, 3)", f"nn.Linear(4, 3)\n        self.softmax = {layer}")
        .replace("return self.fc(x)", f"return {value}")
        + f"\ndef train(x, y):\n    net = Net()\n    criterion = nn.{loss}()\n"
        "    loss = criterion(net(x), y)\n    loss.backward()\n"
    )  # fmt: skip
    path.write_text(text)
    (finding,) = checked(path)
    fix = finding.fixes[0]
    assert fix.edits, fix
    mended = apply(text, fix.edits)
    assert wanted in mended
    path.write_text(mended)
    assert checked(path) == []


def test_a_module_level_value_counts_where_nothing_calls_it(trainlint: Run, write: Run) -> None:
    write({"net.py": PRELUDE.replace("self.fc(x)", "self.fc(x).softmax(1)").replace(
        "class", "loss_fn = nn.CrossEntropyLoss()\n\nclass", 1)})  # fmt: skip
    assert [
        f["name"]
        for f in trainlint("check", "net.py", "--static", "--format", "json").found("LOS001")
    ]


def test_of_two_models_each_gets_its_own_loss(trainlint: Run, write: Run) -> None:
    write({"gan.py": PRELUDE + """
class Critic(Net):
    def forward(self, x):
        return self.fc(x).sigmoid()

class Other(Net):
    def forward(self, x):
        return self.fc(x).sigmoid()

def train():
    critic, other = Critic(), Other()
    a = nn.BCELoss()(critic(x), y)
    b = nn.BCEWithLogitsLoss()(other(x), y)
"""})  # fmt: skip
    report = trainlint("check", "gan.py", "--static", "--format", "json")
    assert [f["target"] for f in report.found("LOS003")] == ["gan.py::Other"]
    assert report.found("LOS004") == []
