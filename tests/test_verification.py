"""Fixes tried on copies: what is proved to help, what is not, and why."""

from __future__ import annotations

from pathlib import Path

import trainlint
from trainlint.config import Config
from trainlint.fixes.edit import Fix
from trainlint.records import Report
from trainlint.verification import repair

DATA = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
x = torch.randn(256, 8)
y = (x[:, :2].sum(1) > 0).long() + (x[:, 2] > 0.5).long()
train_loader = DataLoader(TensorDataset(x, y), batch_size=32, shuffle=True)
"""
TRAINING = """
model = Net()
criterion = nn.CrossEntropyLoss()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
"""
ZEROS = """
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
WRONG_NORM = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(8, 32)
        self.norm = nn.BatchNorm1d(16)
        self.fc2 = nn.Linear(32, 3)

    def forward(self, x):
        return self.fc2(torch.relu(self.norm(self.fc1(x))))
"""
FEW = Config(jobs=2, select=("zero-weights", "norm-features-mismatch"))


def written(folder: Path, *parts: str) -> str:
    file = folder / "net.py"
    file.write_text("".join(parts))
    return str(file)


def fix_of(report: Report, name: str) -> Fix:
    [finding] = [finding for finding in report.findings if finding.name == name]
    return finding.fixes[0]


# ---------------------------------------------------------------------- files


def test_zeros_are_filled_and_the_loss_is_lower_with_each_seed(tmp_path: Path) -> None:
    report = trainlint.check(written(tmp_path, DATA, ZEROS, TRAINING), verify=True, config=FEW)

    proof = fix_of(report, "zero-weights").verified
    assert proof is not None
    assert proof.before is not None
    assert proof.after is not None
    assert proof.after < proof.before
    assert proof.cleared
    assert (proof.steps, proof.seeds, proof.parameters) == (50, 2, 0)
    assert proof.gain is not None
    assert proof.error is not None
    assert proof.gain > max(0.1, proof.error)


def test_what_could_not_run_has_no_loss_before_and_learns_now(tmp_path: Path) -> None:
    report = trainlint.check(written(tmp_path, DATA, WRONG_NORM, TRAINING), verify=True, config=FEW)

    proof = fix_of(report, "norm-features-mismatch").verified
    assert proof is not None
    assert proof.before is None
    assert proof.parameters == 32


def test_a_repair_gives_the_edited_text_and_leaves_the_file_alone(tmp_path: Path) -> None:
    target = written(tmp_path, DATA, ZEROS, TRAINING)
    before = Path(target).read_text()

    repaired = repair(target, config=FEW)

    [text] = repaired.texts.values()
    assert Path(target).read_text() == before
    assert text != before
    assert repaired.before is not None
    assert repaired.after is not None
    assert repaired.after < repaired.before
