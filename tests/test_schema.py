"""Real reports are as the published JSON Schema has them, and the schema has all that they hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from conftest import Run, report_validator
from jsonschema import Draft202012Validator
from torch import nn, optim, randn, tensor
from torch.utils.data import DataLoader, TensorDataset

import trainlint
from trainlint.report.schema import LEFT_OUT, described, schema

TRAINING = """\
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
x = torch.randn(96, 4)
y = (x.sum(1) > 0).long()
model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
criterion = nn.CrossEntropyLoss()
optimizer = torch.optim.SGD(model.parameters(), lr={rate})
train_loader = DataLoader(TensorDataset(x, y), batch_size=16, shuffle=True)
"""
LOOP = """
for _ in range(5):
    for xs, ys in train_loader:
        optimizer.zero_grad()
        criterion(model(xs), ys).backward()
        optimizer.step()
"""


def test_the_schema_is_one() -> None:
    Draft202012Validator.check_schema(schema())
    published = Path(__file__).parent.parent / "docs" / "reference" / "report.schema.json"
    assert json.loads(published.read_text(encoding="utf-8")) == schema()


def test_each_field_is_described_and_no_other() -> None:
    definitions = {
        name: set(definition["properties"])
        for name, definition in schema()["$defs"].items()
        if "properties" in definition
    }
    assert {name: set(texts) - {""} for name, texts in described().items()} == definitions


def test_all_fields_are_required_but_those_that_a_report_leaves_out() -> None:
    for name, definition in schema()["$defs"].items():
        if "properties" in definition:
            left_out = set(definition["properties"]) - set(definition["required"])
            assert left_out == LEFT_OUT.get(name, set())


def test_a_report_of_a_broken_model() -> None:
    report = trainlint.check(
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(4)), randn(2, 3, 8, 8)
    )
    assert report.findings[0].fixes
    report_validator().validate(json.loads(report.to_json()))


def test_a_report_of_a_trained_model_with_tried_fixes_and_its_graph() -> None:
    data = TensorDataset(randn(64, 4), (randn(64) > 0).long())
    model = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 2), nn.Softmax(1))
    report = trainlint.check(
        model,
        loss=nn.CrossEntropyLoss(),
        optimizer=lambda model: optim.SGD(model.parameters(), lr=0.1),
        train_loader=DataLoader(data, batch_size=16),
        verify=True,
        graphs=True,
    )
    found = json.loads(report.to_json())
    report_validator().validate(found)
    (target,) = found["targets"]
    assert target["series"]["train"]
    assert target["graph"]["nodes"]
    fixes = [fix for finding in found["findings"] for fix in finding["fixes"]]
    assert any(fix["verified"] or fix["attempt"] for fix in fixes)


def test_a_training_that_is_no_number() -> None:
    model = nn.Linear(4, 1)
    optimizer = optim.SGD(model.parameters(), lr=1e20)
    with trainlint.watch(model, every=1) as watched:
        for _ in range(30):
            optimizer.zero_grad()
            (model(tensor([[1.0, 2.0, 3.0, 4.0]])) ** 2).sum().backward()
            optimizer.step()
    text = watched.report().to_json()
    report_validator().validate(json.loads(text))
    assert '"nan"' in text or '"inf"' in text


def test_a_report_of_run_and_of_folds(trainlint: Run, write: Any) -> None:
    write({"train.py": TRAINING.format(rate=0.1) + LOOP})
    watched = trainlint("run", "--format", "json", "--output", "run.json", "train.py")
    assert watched.status == 0, watched.stderr
    written = json.loads((Path(write({})) / "run.json").read_text(encoding="utf-8"))
    report_validator().validate(written)
    assert written["targets"][0]["series"]["steps"] == 30
    folds = trainlint("check", "train.py", "--kfold", "2", "--format", "json", "--exit-zero")
    assert len(folds.report["targets"][0]["cross_validation"]["folds"]) == 2


def test_a_report_of_a_sweep_and_of_written_fixes(trainlint: Run, write: Any) -> None:
    write({
        "train.py": TRAINING.format(rate=0.1),
        "net.py": "from torch import nn\nmodel = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(4))\n",
    })  # fmt: skip
    swept = trainlint(
        "sweep", "train.py", "--over", "weight-decay", "--values", "0.01", "--kfold", "2",
        "--steps", "5", "--format", "json",
    )  # fmt: skip
    assert swept.status == 0, swept.stderr
    assert swept.report["sweep"]["points"][0]["standing"]
    fixed = trainlint("check", "net.py", "--static", "--fix", "--format", "json")
    assert [repair["status"] for repair in fixed.report["repairs"]] == ["applied"]


def test_what_is_no_report_is_refused() -> None:
    validator = report_validator()
    for wrong in (
        {},
        {"version": 2, "findings": [], "targets": []},
        {"version": 1, "findings": [], "targets": [{"target": "a", "status": "fine"}]},
        {"version": 1, "findings": [], "sweep": {}},
    ):
        assert not validator.is_valid(wrong)
