"""What a check says of a graph, a watched training says, too: the static rules' bad examples, trained."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import trainlint
from trainlint.capture.search import synthesize
from trainlint.examples import Example, examples_of
from trainlint.observe.structure import static_rules
from trainlint.registry import all_rules
from trainlint.sites import construction_sites
from trainlint.tree import tensors

BAD = [e for e in examples_of(static_rules(all_rules())) if e.kind == "bad" and not e.is_script]
# Their models, or the loss behind them, refuse what they get: no step is made.
REFUSED = {"ARC002", "ARC013", "ARC014", "DAT009", "DAT010", "NRM001"}


def made(example: Example, folder: Path) -> tuple[nn.Module, Any]:
    """The example's model and inputs."""
    path = folder / example.filename
    path.write_text(example.text, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = vars(module).get("model") or module.Net()
    given = vars(module).get("example_inputs", vars(module).get("x", vars(module).get("images")))
    inputs = (given,) if given is not None else synthesize(model).inputs.args
    if any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in model.modules()):
        inputs = tuple(torch.cat([each] * 4) for each in inputs)
    return model, inputs


def train(model: nn.Module, inputs: tuple[Tensor, ...], steps: int = 3) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for _ in range(steps):
        (_, scores), *_rest = tensors(model(*inputs))
        targets = torch.arange(len(inputs[0])) % scores.shape[1]
        loss = functional.cross_entropy(scores, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.mark.parametrize("example", BAD, ids=lambda e: f"{e.rule.code}-{e.number}")
def test_a_static_rule_speaks_of_a_model_that_is_trained(example: Example, tmp_path: Path) -> None:
    torch.manual_seed(0)
    with construction_sites():
        model, inputs = made(example, tmp_path)
        with trainlint.watch(select=[example.rule.code]) as watch:
            if example.rule.code in REFUSED:
                with pytest.raises((RuntimeError, ValueError)):
                    train(model, inputs)
                return
            train(model, inputs)
    assert [finding.code for finding in watch.report().findings] == [example.rule.code]


class Rectified(nn.Module):
    """Scores that are rectified, in an output with other parts."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 6)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": torch.relu(self.fc(x)), "mask": x > 0}


def judged(output: dict[str, Tensor], how: str) -> Tensor:
    logits = output["logits"]
    if how == "scaled":
        return functional.cross_entropy(10 * logits, torch.arange(4))
    if how == "moved":
        return functional.cross_entropy(logits.view(-1, 3), torch.arange(8) % 3)
    return functional.cross_entropy(logits, torch.arange(4))


@pytest.mark.parametrize(
    ("how", "codes"), [("plain", ["ACT004"]), ("moved", ["ACT004"]), ("scaled", [])]
)
def test_the_loss_is_that_which_the_output_gets(how: str, codes: list[str]) -> None:
    model = Rectified()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with trainlint.watch(select=["ACT004"]) as watch:
        for _ in range(3):
            loss = judged(model(torch.randn(4, 8)), how)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert [finding.code for finding in watch.report().findings] == codes
