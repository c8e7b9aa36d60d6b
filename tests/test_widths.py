"""Which integers set the width of a file's model, what they become, and the file run with other ones."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import nn

from trainlint.fixes.source import SourceText
from trainlint.generalization.rebuilding import is_at_rest
from trainlint.generalization.widths import Origin, WidthProblem, another, rungs, widths_of
from trainlint.probe.stage import first_inputs
from trainlint.sites import recording
from trainlint.targets.loading import load_file, named_model, recipe_of
from trainlint.targets.resizing import Constructions, Size, changed

HEAD = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

"""
DATA = """
x, y = torch.randn(48, 20), torch.randint(0, 3, (48,))
train_loader = DataLoader(TensorDataset(x, y), batch_size=16)
criterion = nn.CrossEntropyLoss()
"""
NET = """
class Net(nn.Module):
    def __init__(self, inputs, hidden=64, classes=3, layers=2):
        super().__init__()
        sizes = [inputs] + layers * [hidden]
        self.body = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes, sizes[1:]))
        self.head = nn.Linear(hidden, classes)

    def forward(self, x):
        for layer in self.body:
            x = layer(x).relu()
        return self.head(x)
"""
Loaded = Callable[..., Origin]


@pytest.fixture
def origin(tmp_path: Path) -> Loaded:
    """Run a file and find what its model was built with."""

    def load(text: str, name: str = "model", data: str = DATA) -> Origin:
        path = tmp_path / "net_of_some_width.py"
        path.write_text(HEAD + textwrap.dedent(text) + data, encoding="utf-8")
        source = SourceText.read(str(path))
        assert source is not None
        constructions = Constructions()
        with recording(), constructions.recorded():
            loaded = load_file(path, source, None, constructions.after)
            model = named_model(loaded, name)
        inputs = first_inputs(model, recipe_of(loaded, model, name).setup)
        assert inputs is not None
        return Origin(path, loaded, name, model, constructions.of(model), inputs)

    return load


def found(origin: Origin, wanted: Sequence[str] = ()) -> dict[str, int]:
    return {size.name: size.was for size in widths_of(origin, wanted)}


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


# ---------------------------------------------------------------------- what is found


@pytest.mark.parametrize(
    ("text", "name", "widths"),
    [
        (NET + "model = Net(20, hidden=32)", "model", {"hidden": 32}),
        (NET + "model = Net(20)", "Net", {"hidden": 64}),
        (NET + "def build_model(units=8):\n    return Net(20, units)", "build_model", {"units": 8}),
        (NET + "def build(units=8):\n    return Net(20, units)\nmodel = build(12)", "model", {"units": 12}),
        (
            "H = 24\nSEED = 7\nmodel = nn.Sequential(nn.Linear(20, H), nn.Tanh(), nn.Linear(H, 3))",
            "model",
            {"H": 24},
        ),
        (
            "s = {'h': 24, 'n': 7}\nmodel = nn.Sequential(nn.Linear(20, s['h']), nn.Linear(s['h'], 3))",
            "model",
            {"s.h": 24},
        ),
    ],
    ids=["instance", "class", "factory", "made by a factory", "constant", "dict"],
)  # fmt: skip
def test_a_width_is_found(origin: Loaded, text: str, name: str, widths: dict[str, int]) -> None:
    assert found(origin(text, name)) == widths


def test_of_a_row_of_sizes_the_inner_ones_count(origin: Loaded) -> None:
    text = """
    class Row(nn.Module):
        def __init__(self, sizes):
            super().__init__()
            pairs = zip(sizes, sizes[1:])
            self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairs)

        def forward(self, x):
            for layer in self.layers:
                x = layer(x)
            return x

    model = Row((20, 64, 32, 3))
    """
    assert found(origin(text)) == {"sizes[1]": 64, "sizes[2]": 32}
    assert found(origin(text), ["sizes"]) == {"sizes[1]": 64, "sizes[2]": 32}


TRANSFORMER = """
from dataclasses import dataclass

@dataclass(frozen=True)
class Config:
    positions: int = 20
    dim: int = 24
    heads: int = 4
    times: int = 4
    depth: int = 2

class Encoder(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.enter = nn.Linear(1, config.dim)
        self.positions = nn.Embedding(config.positions, config.dim)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(config.dim, config.heads, config.times * config.dim)
            for _ in range(config.depth)
        )
        self.head = nn.Linear(config.dim, 3)

    def forward(self, x):
        x = self.enter(x.unsqueeze(-1)) + self.positions(torch.arange(x.shape[1], device=x.device))
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean(1))

model = Encoder(Config())
"""


def test_a_config_s_width_stays_divisible_and_nothing_multiplies_with_it(origin: Loaded) -> None:
    it = origin(TRANSFORMER)
    sizes = widths_of(it)
    assert {size.name: size.was for size in sizes} == {"config.dim": 24}
    made = rungs(it, sizes, [0.25, 0.5, 1.0, 2.0])
    assert [rung.reason for rung in made] == [None] * 4
    assert [rung.sizes[0].value for rung in made] == [8, 12, 24, 48]
    assert made[2].parameters == parameters(it.model)


def test_kernels_groups_channels_in_and_classes_are_no_widths(origin: Loaded) -> None:
    text = """
    class Signal(nn.Module):
        def __init__(self, channels=1, width=16, kernel=3, groups=8, classes=3):
            super().__init__()
            self.first = nn.Conv1d(channels, width, kernel)
            self.norm = nn.GroupNorm(groups, width)
            self.second = nn.Conv1d(width, width, kernel)
            self.head = nn.Linear(width, classes)

        def forward(self, x):
            x = self.second(self.norm(self.first(x.unsqueeze(1))).relu())
            return self.head(x.mean(-1))

    model = Signal()
    """
    it = origin(text)
    assert found(it) == {"width": 16}
    assert [rung.sizes[0].value for rung in rungs(it, widths_of(it), [0.25, 0.5])] == [8, 8]


def test_words_and_positions_are_no_widths(origin: Loaded) -> None:
    text = """
    class Text(nn.Module):
        def __init__(self, words=50, length=12, dim=16):
            super().__init__()
            self.words = nn.Embedding(words, dim)
            self.places = nn.Parameter(torch.zeros(length, dim))
            self.head = nn.Linear(dim, 3)

        def forward(self, x):
            return self.head((self.words(x) + self.places[: x.shape[1]]).mean(1))

    model = Text()
    """
    data = """
x, y = torch.randint(0, 50, (48, 6)), torch.randint(0, 3, (48,))
train_loader = DataLoader(TensorDataset(x, y), batch_size=16)
criterion = nn.CrossEntropyLoss()
"""
    assert found(origin(text, data=data)) == {"dim": 16}


def test_sizes_that_have_to_agree_are_changed_together(origin: Loaded) -> None:
    text = """
    class Pair(nn.Module):
        def __init__(self, inputs=20, left=16, right=16):
            super().__init__()
            self.left, self.right = nn.Linear(inputs, left), nn.Linear(inputs, right)
            self.head = nn.Linear(left, 3)

        def forward(self, x):
            return self.head(self.left(x) * self.right(x))

    model = Pair()
    """
    assert found(origin(text)) == {"left": 16, "right": 16}


# ---------------------------------------------------------------------- what the user names


def test_what_is_named_is_taken(origin: Loaded) -> None:
    text = NET.replace("hidden=64", "hidden=64, unused=5") + "WIDTH = 8\nmodel = Net(20, WIDTH)"
    assert found(origin(text), ["hidden"]) == {"hidden": 8}
    assert found(origin(text), ["WIDTH"]) == {"WIDTH": 8}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("hiden", "neither an argument of Net nor a name of the file; there are: inputs, hidden"),
        ("layers", "changes the number of layers"),
        ("classes", "changes the output of model"),
        ("inputs", "cannot be built with other sizes: inputs=40 raised RuntimeError"),
        ("criterion", "no positive integer"),
        ("2hidden", "not a name such as"),
        ("options", "names several: options.a, options.b"),
    ],
)
def test_what_cannot_be_the_width_is_said(origin: Loaded, name: str, said: str) -> None:
    it = origin(NET + "options = {'a': 1, 'b': 2}\nmodel = Net(20)")
    with pytest.raises(WidthProblem) as problem:
        widths_of(it, [name])
    assert said in str(problem.value)


def test_a_model_without_such_an_integer_says_what_to_do(origin: Loaded) -> None:
    it = origin("model = nn.Sequential(nn.Linear(20, 8), nn.Tanh(), nn.Linear(8, 3))")
    with pytest.raises(WidthProblem, match=r"write them as a constant of the file, HIDDEN = 64"):
        widths_of(it)


def test_a_constructor_that_knows_one_width_only_is_quoted(origin: Loaded) -> None:
    text = NET.replace("        sizes =", "        assert hidden == 64, 'just 64'\n        sizes =")
    with pytest.raises(WidthProblem, match="hidden=128 raised AssertionError: just 64"):
        widths_of(origin(text + "model = Net(20)"))


def test_a_width_that_cannot_be_built_has_a_reason(origin: Loaded) -> None:
    text = NET.replace(
        "        sizes =", "        assert hidden < 100, 'too wide'\n        sizes ="
    )
    it = origin(text + "model = Net(20, 32)")
    made = rungs(it, widths_of(it), [0.5, 2.0, 4.0])
    assert [rung.reason is None for rung in made] == [True, True, False]
    assert "too wide" in str(made[2].reason)


# ---------------------------------------------------------------------- the file run again


def test_the_file_is_run_with_other_sizes_and_its_optimizer_fits(origin: Loaded) -> None:
    text = NET + "model = Net(20, 32)\noptimizer = torch.optim.Adam(model.parameters(), lr=0.5)"
    it = origin(text)
    [size] = widths_of(it)
    loaded, model = another(it, [size.at(8)])
    held = vars(loaded.module)["optimizer"].param_groups[0]
    assert model.head.in_features == 8
    assert [id(p) for p in held["params"]] == [id(p) for p in model.parameters()]
    assert held["lr"] == 0.5
    assert it.model.head.in_features == 32


def test_a_class_of_another_module_is_as_before(origin: Loaded, tmp_path: Path) -> None:
    (tmp_path / "nets_elsewhere.py").write_text(HEAD + NET, encoding="utf-8")
    it = origin("from nets_elsewhere import Net\nmodel = Net(20, 32)")
    kind = type(it.model)
    before = kind.__init__
    [size] = widths_of(it)
    _, model = another(it, [size.at(16)])
    assert model.head.in_features == 16
    assert kind.__init__ is before


def test_weights_are_those_of_the_seed_and_data_stay(origin: Loaded) -> None:
    it = origin(NET + "torch.manual_seed(3)\nmodel = Net(20, 32)")
    [size] = widths_of(it)
    made = [another(it, [size], seed) for seed in (1, 1, 2)]
    weights = [model.head.weight for _, model in made]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    data = [vars(loaded.module)["x"] for loaded, _ in made]
    assert torch.equal(data[0], data[2])


def test_sizes_are_changed_in_copies_of_what_holds_them() -> None:
    inner = {"sizes": [8, 16], "n": 3}
    values = {"config": inner, "other": 5}
    sizes = [
        Size("", ["config", "sizes", 1], 16, 64),
        Size("", ["other"], 6, 7),
        Size("", ["no"], 1, 2),
    ]
    assert changed(values, sizes) == {"config": {"sizes": [8, 64], "n": 3}, "other": 5}
    assert inner == {"sizes": [8, 16], "n": 3}


# ---------------------------------------------------------------------- how long to train


def test_a_training_is_at_rest_when_its_second_half_brought_little() -> None:
    falling = {step: 2.0 * 0.99**step for step in (0, 10, 50, 100, 200)}
    assert not is_at_rest(falling)
    assert is_at_rest({**falling, 400: 2.0 * 0.99**400, 800: 2.0 * 0.99**800})
    assert is_at_rest({0: 1.0, 10: float("nan")})
    assert not is_at_rest({0: 1.0, 100: 0.999, 200: 0.7})
