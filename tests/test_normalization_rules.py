"""Rules on normalisation: what each must not say, and whether what NRM005 and NRM007 claim is so.

The models stand as source in one folder, checked by one call. `LOUD` and `SILENT` are keyed by the
code that must, or must not, be among a model's findings, whatever its severity.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from trainlint_rules.normalization.bias_before_batchnorm import without_bias

import trainlint
from trainlint import Report
from trainlint.capture.tracer import capture
from trainlint.graph import Graph
from trainlint.rule import axis_after, ops

IMAGES, VECTORS, SERIES = "4, 3, 16, 16", "4, 8", "4, 12, 8"


class Case(NamedTuple):
    """What `__init__` makes, what `forward` does, the shape of x."""

    layers: str
    forward: str
    shape: str


LOUD: dict[str, dict[str, Case]] = {
    "NRM002": {
        "squashed": Case(
            "self.a = nn.Linear(8, 8); self.n = nn.BatchNorm1d(8); self.b = nn.Linear(8, 2)",
            "return self.b(self.n(torch.tanh(self.a(x))))",
            VECTORS,
        ),
        "pooled": Case(
            "self.a = nn.Conv2d(3, 8, 3); self.n = nn.BatchNorm2d(8); self.b = nn.Linear(8, 2)",
            "return self.b(self.n(F.max_pool2d(F.gelu(self.a(x)), 2)).mean((2, 3)))",
            IMAGES,
        ),
    },
    "NRM003": {
        "between_gru_and_head": Case(
            "self.g = nn.GRU(8, 8, batch_first=True); self.n = nn.BatchNorm1d(8); "
            "self.b = nn.Linear(8, 2)",
            "return self.b(self.n(self.g(x)[0].transpose(1, 2)).transpose(1, 2))",
            SERIES,
        ),
    },
    "NRM005": {
        "several_times": Case(
            "self.a = nn.Linear(8, 8); self.n = nn.BatchNorm1d(8)",
            "for _ in range(3): x = torch.tanh(self.n(self.a(x)))\n        return x * 2",
            VECTORS,
        ),
        "tokens": Case(
            "self.a = nn.Linear(8, 6); self.n = nn.BatchNorm1d(6)",
            "return torch.relu(self.n(self.a(x).transpose(1, 2)))",
            SERIES,
        ),
        "flattened_tokens": Case(
            "self.a = nn.Linear(8, 6); self.n = nn.BatchNorm1d(6)",
            "return torch.relu(self.n(self.a(x).reshape(-1, 6)))",
            SERIES,
        ),
        "shifted": Case(
            "self.a = nn.Linear(8, 6); self.n = nn.BatchNorm1d(6); self.s = nn.Parameter(torch.ones(6))",
            "return torch.relu(self.n(self.a(x) + self.s))",
            VECTORS,
        ),
        "transposed_convolution": Case(
            "self.a = nn.ConvTranspose2d(3, 8, 2, 2); self.n = nn.BatchNorm2d(8)",
            "return torch.relu(self.n(self.a(x)))",
            IMAGES,
        ),
    },
    "NRM006": {
        "vocabulary": Case(
            "self.e = nn.Embedding(50, 8); self.a = nn.Linear(8, 50); self.n = nn.LayerNorm(50)",
            "return self.n(self.a(self.e(x.argsort(-1))))",
            SERIES,
        ),
        "probabilities": Case(
            "self.a = nn.Linear(8, 40); self.n = nn.BatchNorm1d(40)",
            "return torch.softmax(self.n(self.a(x)), 1)",
            VECTORS,
        ),
        "layer_norm_on_logits": Case(
            "self.a = nn.Linear(8, 5); self.n = nn.LayerNorm(5)",
            "return self.n(self.a(x))",
            VECTORS,
        ),
        "pooled_map": Case(
            "self.a = nn.Conv2d(3, 4, 3); self.n = nn.BatchNorm2d(4)",
            "return self.n(self.a(x)).mean((2, 3))",
            IMAGES,
        ),
    },
    "NRM007": {
        "behind_activation_and_layer": Case(
            "self.a = nn.Linear(8, 8); self.b = nn.Linear(8, 8); self.n = nn.BatchNorm1d(8)",
            "return torch.relu(self.n(self.b(F.dropout(torch.relu(self.a(x)), 0.3, self.training))))",
            VECTORS,
        ),
    },
    "NRM008": {
        "behind_a_norm": Case(
            "self.n = nn.LayerNorm(8); self.a = nn.ModuleList(nn.Linear(8, 8) for _ in range(12)); "
            "self.b = nn.Linear(8, 8)",
            "x = x + self.b(x)\n        x = self.n(x)\n"
            "        for a in self.a: x = F.elu(a(x))\n        return x",
            VECTORS,
        ),
        "twelve": Case(
            "self.a = nn.ModuleList(nn.Linear(8, 8) for _ in range(12))",
            "for a in self.a: x = torch.relu(a(x))\n        return x",
            VECTORS,
        ),
    },
    "NRM009": {
        "two_places": Case(
            "self.a = nn.Linear(8, 8); self.n = nn.BatchNorm1d(8); self.b = nn.Linear(8, 8)",
            "x = self.n(F.layer_norm(self.a(x), (8,)))\n"
            "        return torch.tanh(self.n(x + self.b(x)))",
            VECTORS,
        ),
        "parallel": Case(
            "self.a = nn.Linear(8, 8); self.b = nn.Linear(8, 8); self.n = nn.BatchNorm1d(8)",
            "return torch.cat([self.n(self.a(x)), self.n(self.b(x))], 1)",
            VECTORS,
        ),
    },
    "OPT010": {
        "no_momentum": Case(
            "self.n = nn.BatchNorm1d(8, momentum=0)", "return self.n(x) * 2", VECTORS
        ),
        "no_eps": Case("self.n = nn.LayerNorm(8, 0.0)", "return self.n(x) * 2", VECTORS),
        "group_eps": Case("self.n = nn.GroupNorm(2, 8, 0.5)", "return self.n(x) * 2", VECTORS),
    },
}

SILENT: dict[str, dict[str, Case]] = {
    "NRM002": {
        "pre_activation": Case(
            "self.a = nn.Conv2d(3, 8, 3); self.n = nn.BatchNorm2d(8); self.b = nn.Conv2d(8, 8, 3)",
            "return self.b(torch.relu(self.n(torch.relu(self.a(x)))))",
            IMAGES,
        ),
        "first_of_a_branch": Case(
            "self.a = nn.Linear(8, 8); self.n = nn.BatchNorm1d(8); self.b = nn.Linear(8, 8)",
            "h = F.gelu(self.a(x))\n        return h + self.b(self.n(h))",
            VECTORS,
        ),
        "inputs": Case(
            "self.n = nn.BatchNorm1d(8); self.a = nn.Linear(8, 2)",
            "return self.a(self.n(torch.tanh(x)))",
            VECTORS,
        ),
    },
    "NRM003": {
        "table_of_positions": Case(
            "self.p = nn.Parameter(torch.zeros(12, 8)); self.n = nn.BatchNorm1d(8); "
            "self.t = nn.MultiheadAttention(8, 2, batch_first=True); self.b = nn.Linear(8, 2)",
            "x = x + self.p\n        x = x + self.t(x, x, x)[0]\n"
            "        return self.b(self.n(x.transpose(1, 2)).transpose(1, 2))",
            SERIES,
        ),
        "image_tokens": Case(
            "self.c = nn.Conv2d(3, 8, 4, 4); self.n = nn.BatchNorm1d(8); "
            "self.t = nn.MultiheadAttention(8, 2, batch_first=True); self.b = nn.Linear(8, 2)",
            "x = self.c(x).flatten(2).transpose(1, 2)\n        x = x + self.t(x, x, x)[0]\n"
            "        return self.b(self.n(x.flatten(0, 1)).view_as(x).mean(1))",
            IMAGES,
        ),
        "one_vector_a_sample": Case(
            "self.g = nn.GRU(8, 8, batch_first=True); self.n = nn.BatchNorm1d(8); "
            "self.b = nn.Linear(8, 2)",
            "return self.b(self.n(self.g(x)[1][-1]))",
            SERIES,
        ),
        "no_sequence_layer": Case(
            "self.a = nn.Linear(8, 8); self.n = nn.BatchNorm1d(8)",
            "return torch.relu(self.n(self.a(x).transpose(1, 2)))",
            SERIES,
        ),
    },
    "NRM005": {
        "normalised_only_once": Case(
            "self.a = nn.Linear(8, 8); self.n = nn.BatchNorm1d(8)",
            "return torch.tanh(self.a(torch.tanh(self.n(self.a(x)))))",
            VECTORS,
        ),
        "units_spread_over_space": Case(
            "self.a = nn.Linear(8, 4 * 9); self.n = nn.BatchNorm2d(4)",
            "return torch.relu(self.n(self.a(x).view(-1, 4, 3, 3)))",
            VECTORS,
        ),
        "positions_as_channels": Case(
            "self.a = nn.Linear(8, 12); self.n = nn.BatchNorm1d(12)",
            "return torch.relu(self.n(self.a(x)))",
            SERIES,
        ),
        "read_by_others": Case(
            "self.a = nn.Linear(8, 6); self.n = nn.BatchNorm1d(6)",
            "h = self.a(x)\n        return h + torch.relu(self.n(h))",
            VECTORS,
        ),
        "scaled_by_place": Case(
            "self.a = nn.Conv2d(3, 4, 1); self.n = nn.BatchNorm2d(4); "
            "self.m = nn.Parameter(torch.rand(16, 16))",
            "return torch.relu(self.n(self.a(x) * self.m))",
            IMAGES,
        ),
        "frozen_statistics": Case(
            "self.a = nn.Linear(8, 6); self.n = nn.BatchNorm1d(6)",
            "n = self.n\n        return torch.relu(F.batch_norm(self.a(x), n.running_mean, n.running_var))",
            VECTORS,
        ),
        "layer_norm": Case(
            "self.a = nn.Linear(8, 6); self.n = nn.LayerNorm(6)",
            "return torch.relu(self.n(self.a(x)))",
            VECTORS,
        ),
        "activation_between": Case(
            "self.a = nn.Linear(8, 6); self.n = nn.BatchNorm1d(6)",
            "return self.n(torch.relu(self.a(x)))",
            VECTORS,
        ),
    },
    "NRM006": {
        "features_of_tokens": Case(
            "self.a = nn.Linear(8, 6); self.n = nn.LayerNorm(6)", "return self.n(self.a(x))", SERIES
        ),
        "embedding": Case(
            "self.a = nn.Linear(8, 128); self.n = nn.BatchNorm1d(128)",
            "return self.n(self.a(x))",
            VECTORS,
        ),
        "feature_map": Case(
            "self.a = nn.Conv2d(3, 8, 3); self.n = nn.BatchNorm2d(8)",
            "return self.n(self.a(x))",
            IMAGES,
        ),
        "latent_with_a_decoder": Case(
            "self.a = nn.Linear(8, 2); self.n = nn.BatchNorm1d(2); self.b = nn.Linear(2, 8)",
            "z = self.n(self.a(x))\n        return self.b(z), z",
            VECTORS,
        ),
        "residual_stream": Case(
            "self.a = nn.Linear(8, 8); self.n = nn.LayerNorm(8)",
            "return self.n(x + torch.relu(self.a(x)))",
            VECTORS,
        ),
        "gate": Case(
            "self.a = nn.Conv2d(3, 1, 3, padding=1); self.n = nn.BatchNorm2d(1)",
            "return x * torch.sigmoid(self.n(self.a(x)))",
            IMAGES,
        ),
    },
    "NRM007": {
        "switched_off": Case(
            "self.d = nn.Dropout(0.0); self.n = nn.BatchNorm1d(8)",
            "return torch.relu(self.n(self.d(x)))",
            VECTORS,
        ),
        "behind": Case(
            "self.d = nn.Dropout(0.5); self.n = nn.BatchNorm1d(8); self.b = nn.Linear(8, 2)",
            "return self.b(self.d(torch.relu(self.n(x))))",
            VECTORS,
        ),
        "normalised_in_between": Case(
            "self.d = nn.Dropout(0.5); self.m = nn.LayerNorm(8); self.n = nn.BatchNorm1d(8)",
            "return torch.relu(self.n(self.m(self.d(x))))",
            VECTORS,
        ),
        "small_and_behind_a_layer": Case(
            "self.d = nn.Dropout(0.05); self.a = nn.Linear(8, 8); self.n = nn.BatchNorm1d(8)",
            "return torch.relu(self.n(self.a(self.d(x))))",
            VECTORS,
        ),
        "no_running_statistics": Case(
            "self.d = nn.Dropout(0.5); self.n = nn.BatchNorm1d(8, track_running_stats=False)",
            "return torch.relu(self.n(self.d(x)))",
            VECTORS,
        ),
    },
    "NRM008": {
        "residual_branch": Case(
            "self.a = nn.ModuleList(nn.Linear(8, 8) for _ in range(12)); self.b = nn.Linear(8, 8)",
            "h = self.b(x)\n        y = h\n        for a in self.a: y = torch.relu(a(y))\n"
            "        return torch.relu(h) + y",
            VECTORS,
        ),
        "unet": Case(
            "self.a = nn.ModuleList(nn.Conv2d(3, 3, 3, padding=1) for _ in range(12)); "
            "self.b = nn.ModuleList(nn.Conv2d(6, 3, 3, padding=1) for _ in range(12))",
            "k = []\n        for a in self.a: x = torch.relu(a(x)); k.append(x)\n"
            "        for b in self.b: x = torch.relu(b(torch.cat([x, k.pop()], 1)))\n        return x",
            IMAGES,
        ),
        "selu": Case(
            "self.a = nn.ModuleList(nn.Linear(8, 8) for _ in range(12))",
            "for a in self.a: x = F.selu(a(x))\n        return x",
            VECTORS,
        ),
        "one_layer_again_and_again": Case(
            "self.a = nn.Linear(8, 8)",
            "for _ in range(12): x = torch.tanh(self.a(x))\n        return x",
            VECTORS,
        ),
        "spectral_norm": Case(
            "self.a = nn.ModuleList(nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8)) "
            "for _ in range(12))",
            "for a in self.a: x = F.leaky_relu(a(x), 0.2)\n        return x",
            VECTORS,
        ),
        "pixel_norm": Case(
            "self.a = nn.ModuleList(nn.Linear(8, 8) for _ in range(12))",
            "for a in self.a: x = torch.relu(a(x)); x = x * torch.rsqrt((x * x).mean(1, True) + 1e-8)\n"
            "        return x",
            VECTORS,
        ),
    },
    "NRM009": {
        "written_twice_with_its_layer": Case(
            "self.a = nn.Linear(8, 8); self.n = nn.BatchNorm1d(8); self.b = nn.Linear(8, 8)",
            "u = torch.relu(self.n(self.a(x)))\n        v = torch.relu(self.n(self.a(-x)))\n"
            "        return self.b(u - v)",
            VECTORS,
        ),
        "twice_with_its_layer": Case(
            "self.a = nn.Linear(8, 8); self.n = nn.BatchNorm1d(8); self.b = nn.Linear(8, 8)",
            "f = lambda v: torch.relu(self.n(self.a(v)))\n        return f(x) - f(torch.relu(self.b(x)))",
            VECTORS,
        ),
        "before_its_layer": Case(
            "self.s = nn.Linear(8, 8); self.a = nn.Linear(8, 8); self.n = nn.BatchNorm1d(8)",
            "x = self.s(x)\n        for _ in range(3): x = self.a(torch.relu(self.n(x)))\n        return x",
            VECTORS,
        ),
        "no_running_statistics": Case(
            "self.a = nn.Linear(8, 8); self.b = nn.Linear(8, 8); "
            "self.n = nn.BatchNorm1d(8, track_running_stats=False)",
            "return torch.relu(self.n(self.b(torch.relu(self.n(self.a(x))))))",
            VECTORS,
        ),
    },
    "OPT010": {
        "one_minus": Case(
            "self.n = nn.BatchNorm1d(8, momentum=1 - 0.99)", "return self.n(x) * 2", VECTORS
        ),
        "average_of_all": Case(
            "self.n = nn.BatchNorm1d(8, momentum=None)", "return self.n(x) * 2", VECTORS
        ),
        "loaded_and_kept": Case(
            "self.n = nn.BatchNorm1d(8, momentum=0); nn.init.ones_(self.n.running_mean)",
            "return self.n(x) * 2",
            VECTORS,
        ),
        "berts": Case("self.n = nn.LayerNorm(8, eps=1e-12)", "return self.n(x) * 2", VECTORS),
    },
}  # fmt: skip


def flat(cases: dict[str, dict[str, Case]], kind: str) -> list[tuple[str, str]]:
    return [(code, f"{kind}_{code}_{name}".lower()) for code in cases for name in cases[code]]


@pytest.fixture(scope="session")
def codes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """The codes of all findings, by the file's name."""
    folder = tmp_path_factory.mktemp("normalization")
    for kind, cases in (("loud", LOUD), ("silent", SILENT)):
        for code, named in cases.items():
            for name, (layers, forward, shape) in named.items():
                text = (
                    "import torch\nimport torch.nn.functional as F\nfrom torch import nn\n\n"
                    "class Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
                    f"        {layers}\n\n    def forward(self, x):\n        {forward}\n\n"
                    f"example_inputs = torch.randn({shape})\n"
                )
                (folder / f"{kind}_{code}_{name}.py".lower()).write_text(text)
    return _codes(trainlint.check(folder))


def _codes(report: Report) -> dict[str, set[str]]:
    assert [t.target for t in report.targets if t.status != "ok"] == []
    codes: dict[str, set[str]] = {Path(t.target.split("::")[0]).stem: set() for t in report.targets}
    for finding in report.findings:
        codes[Path(finding.filename or "").stem] |= {
            finding.code,
            *(symptom.code for symptom in finding.symptoms),
        }
    return codes


@pytest.mark.parametrize(("code", "name"), flat(LOUD, "loud"))
def test_the_fault_is_named(codes: dict[str, set[str]], code: str, name: str) -> None:
    assert code in codes[name]


@pytest.mark.parametrize(("code", "name"), flat(SILENT, "silent"))
def test_what_only_looks_like_it_is_not(codes: dict[str, set[str]], code: str, name: str) -> None:
    assert code not in codes[name]


# ---------------------------------------------------------------------- what the rules claim


@pytest.mark.parametrize("name", LOUD["NRM005"])
def test_a_bias_that_is_named_gets_no_gradient(name: str) -> None:
    layers, forward, shape = LOUD["NRM005"][name]
    model, x = built(layers, forward), torch.randn(*map(int, shape.split(", ")), dtype=torch.double)
    (model(x) ** 2 * torch.randn_like(model(x))).sum().backward()
    weight, bias = model.a.weight.grad, model.a.bias.grad
    assert weight.norm() > 1e-3
    assert bias.norm() < 1e-9 * weight.norm()


@pytest.mark.parametrize(
    "name", ["units_spread_over_space", "positions_as_channels", "scaled_by_place"]
)
def test_a_bias_that_is_let_be_gets_one(name: str) -> None:
    layers, forward, shape = SILENT["NRM005"][name]
    model, x = built(layers, forward), torch.randn(*map(int, shape.split(", ")), dtype=torch.double)
    (model(x) ** 2 * torch.randn_like(model(x))).sum().backward()
    assert model.a.bias.grad.norm() > 1e-3 * model.a.weight.grad.norm()


def built(layers: str, forward: str) -> nn.Module:
    scope: dict[str, type[nn.Module]] = {}
    text = (
        "import torch\nimport torch.nn.functional as F\nfrom torch import nn\n"
        "class Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        f"        {layers}\n    def forward(self, x):\n        {forward}\n"
    )
    exec(text, scope)
    torch.manual_seed(0)
    return scope["Net"]().double()


@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
@pytest.mark.parametrize("mean", [0.0, 1.0])
def test_eval_mode_shrinks_as_the_formula_says(p: float, mean: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Dropout(p), nn.BatchNorm1d(4, momentum=None))
    x = torch.randn(100_000, 4) + mean
    model(x)
    keep = 1 - p
    expected = (1 / ((mean**2 + 1) / keep - mean**2)) ** 0.5
    assert float(model.eval()(x).detach().std()) == pytest.approx(expected, rel=0.02)
    assert expected <= keep**0.5 + 1e-9


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("nn.Conv2d(3, 8, 3)", "nn.Conv2d(3, 8, 3, bias=False)"),
        ("nn.Conv2d(3, 8, 3, bias=True)", "nn.Conv2d(3, 8, 3, bias=False)"),
        ("nn.Conv2d(3, 8, 3, padding=1,)", "nn.Conv2d(3, 8, 3, padding=1, bias=False,)"),
        ("nn.Conv2d(\n  3,  # größe\n  8, 3\n)", "nn.Conv2d(\n  3,  # größe\n  8, 3, bias=False\n)"),
        ("nn.Conv2d(3, 8, kernel_size=(3, 1))", "nn.Conv2d(3, 8, kernel_size=(3, 1), bias=False)"),
        ("nn.Conv2d(3, 8, 3, bias=flag)", None),
        ("nn.Conv2d(*sizes)", None),
        ("nn.Conv2d(3, 8, 3, **more)", None),
        ("nn.Conv2d(3, 8, 3, 1, 1, 1, 1, True)", None),
        ("my_conv(3, 8)", None),
    ],
)  # fmt: skip
def test_bias_false_is_written_where_it_is_safe(before: str, after: str | None) -> None:
    call = ast.parse(before, mode="eval").body
    assert isinstance(call, ast.Call)
    assert without_bias(call, before, "Conv2d") == after


# ---------------------------------------------------------------------- axes


class Rearranged(nn.Module):
    def __init__(self, steps: str) -> None:
        super().__init__()
        self.steps = steps

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = eval(self.steps, {"x": torch.relu(x), "torch": torch})
        return torch.sigmoid(result)


@pytest.mark.parametrize(
    ("steps", "axis"),
    [
        ("x.transpose(1, 2)", 1),
        ("x.permute(2, 0, 1)", 0),
        ("x.permute((0, 2, 1)).contiguous()", 1),
        ("x.reshape(-1, 5)", 1),
        ("x.flatten(0, 1).unsqueeze(1)", 2),
        ("x.mT", 1),
        ("x[:, None].squeeze(1)", None),  # indexing is not followed
        ("x.reshape(2, -1)", None),
        ("x.reshape(2, 15, 1)", None),
        ("(x + 1).view(6, 1, 5)", 2),
    ],
)
def test_an_axis_is_followed_through_rearrangements(steps: str, axis: int | None) -> None:
    recording = capture(Rearranged(steps), (torch.randn(2, 3, 5),), {})
    graph = Graph(recording.graph, recording.model)
    (sigmoid,) = graph.calls("sigmoid")
    source, passed = graph.producer(sigmoid, ops.REARRANGEMENTS | {"getitem"})
    assert source is not None
    assert graph.name(source) == "relu"
    assert axis_after(graph, source, 2, passed) == axis
