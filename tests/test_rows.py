"""Rows and samples: what counts as a changed batch, what does not, and what is said of it."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest
import torch

import trainlint
from trainlint.fixes.source import apply

torch.set_num_threads(1)

CNN = """
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 32, 3)
            self.fc = nn.Linear({width}, 10)
        def forward(self, x):
            x = F.max_pool2d(torch.relu(self.conv(x)), 2)
            return self.fc(x.{flat})
    """


TYPO = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(3, 2)
    def forward(self, x):
        return self.fc(x)
"""


def checked(folder: Path, code: str, *rules: str) -> trainlint.Report:
    path = folder / "net.py"
    head = "import torch, torch.nn as nn, torch.nn.functional as F\n"
    path.write_text(head + textwrap.dedent(code))
    return trainlint.check(str(path), select=list(rules or ("ARC013", "ARC014")))


def said(report: trainlint.Report) -> list[tuple[str, str]]:
    return [(finding.code, finding.severity) for finding in report.findings]


def cnn(width: object, flat: str, inputs: str = "") -> str:
    code = textwrap.dedent(CNN.format(width=width, flat=flat))
    return code + (f"example_inputs = {inputs}\n" if inputs else "")


@pytest.mark.parametrize(
    ("side", "width", "severity"),
    [
        (32, "32 * 5 * 5", "error"),  # nine rows a sample
        (32, "32 * 3 * 15", "error"),  # five, each of them all rows of some channels
        (32, 2 * 32 * 15 * 15, "warning"),  # two samples a row: siamese pairs are written so
        (32, 15 * 15, "error"),  # one channel a row
        (12, 32 * 4 * 5, "error"),  # 5 rows of 4 samples; with one sample more it is refused
    ],
)
def test_rows_that_are_no_samples(tmp_path: Path, side: int, width: object, severity: str) -> None:
    report = checked(
        tmp_path, cnn(width, f"view(-1, {width})", f"torch.randn(4, 1, {side}, {side})")
    )
    assert said(report) == [("ARC014", severity)]


@pytest.mark.parametrize(
    "flat",
    [
        "flatten(1)",
        "view(-1, 32 * 15 * 15)",
        "view(x.shape[0], -1)",
        "view(x.shape[0] * 9, 32 * 5 * 5)",  # who names the number of rows means it
    ],
)
def test_rows_that_are_samples(tmp_path: Path, flat: str) -> None:
    width = 32 * 5 * 5 if "9" in flat else 32 * 15 * 15
    assert said(checked(tmp_path, cnn(width, flat, "torch.randn(4, 1, 32, 32)"))) == []


def test_rows_that_come_together_again(tmp_path: Path) -> None:
    code = cnn(800, "view(-1, 800)).view(x.shape[0], -1", "torch.randn(4, 1, 32, 32)")
    assert said(checked(tmp_path, code)) == []


@pytest.mark.parametrize("width", ["32 * 11 * 11", 32 * 9 * 9])
def test_the_search_prefers_a_size_that_keeps_the_samples(tmp_path: Path, width: object) -> None:
    report = checked(tmp_path, cnn(width, f"view(-1, {width})"))
    assert said(report) == []
    assert report.targets[0].status == "ok"
    assert f"sized for its view(-1, {eval(str(width))})" in str(report.targets[0].inputs)


def test_the_search_sizes_inputs_for_a_linear_layer_without_a_module(tmp_path: Path) -> None:
    code = """
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv = nn.Conv2d(1, 6, 3)
                self.weight = nn.Parameter(torch.randn(10, 6 * 9 * 9))
            def forward(self, x):
                return F.linear(F.max_pool2d(self.conv(x), 2).flatten(1), self.weight)
        """
    report = checked(tmp_path, code)
    assert "sized for its linear layer" in str(report.targets[0].inputs)


def test_rows_across_channels_want_the_axes_moved(tmp_path: Path) -> None:
    code = """
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv = nn.Conv1d(4, 64, 3)
                self.fc = nn.Linear(64, 5)
            def forward(self, x):
                return self.fc(self.conv(x).view(-1, 64))
        example_inputs = torch.randn(8, 4, 100)
        """
    [finding] = checked(tmp_path, code).findings
    assert "x.permute(0, 2, 1)" in finding.fixes[0].title
    assert said(checked(tmp_path, code.replace(".view(", ".permute(0, 2, 1).reshape("))) == []


def test_a_view_that_fits_no_size_is_an_error_without_inputs(tmp_path: Path) -> None:
    assert [code for code, _ in said(checked(tmp_path, cnn(300, "view(-1, 300)")))] in (
        ["ARC013"], ["ARC014"],
    )  # fmt: skip


def test_the_edit_flattens_and_widens(tmp_path: Path) -> None:
    code = cnn("32 * 7 * 7", "view(-1, 32 * 7 * 7)", "torch.randn(3, 1, 32, 32)")
    report = checked(tmp_path, code)
    [finding] = report.findings
    assert finding.code == "ARC013"
    assert "32·15·15 = 7200 features" in finding.message
    path = tmp_path / "net.py"
    path.write_text(apply(path.read_text(), finding.fixes[0].edits))
    assert "nn.Linear(7200, 10)" in path.read_text()
    assert "x.flatten(1)" in path.read_text()
    assert said(trainlint.check(str(path))) == []


@pytest.mark.parametrize(
    ("index", "codes"),
    [("h[:, -1]", ["ARC014"]), ("h[-1]", []), ("h[:, -1:]", []), ("out[:, -1]", []),
     ("out[-1]", ["ARC014"]), ("h.mean(0)", []), ("torch.cat((h[-2], h[-1]), 1)[:, :16]", [])],
)  # fmt: skip
def test_one_sample_for_all(tmp_path: Path, index: str, codes: list[str]) -> None:
    code = f"""
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.rnn = nn.GRU(8, 16, num_layers=2, batch_first=True)
                self.fc = nn.Linear(16, 3)
            def forward(self, x):
                out, h = self.rnn(x)
                return self.fc({index})
        example_inputs = torch.randn(5, 7, 8)
        """
    assert [finding.code for finding in checked(tmp_path, code).findings] == codes


def test_stacked_views_are_no_samples(tmp_path: Path) -> None:
    code = """
        class Triplet(nn.Module):
            def __init__(self):
                super().__init__()
                self.net = nn.Linear(8, 4)
            def forward(self, x):
                return self.net(x[0]), self.net(x[1]), self.net(x[2])
        example_inputs = torch.randn(3, 6, 8)
        """
    assert said(checked(tmp_path, code)) == []


@pytest.mark.parametrize(
    ("loss", "severity"), [("F.cross_entropy(net(x), y)", "error"), ("0", "warning")]
)
def test_rows_of_pixels(tmp_path: Path, loss: str, severity: str) -> None:
    code = f"""
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.fc = nn.Linear(28, 10)
            def forward(self, x):
                return self.fc(x.view(-1, 28))
        net = Net()
        def train(loader):
            for x, y in loader:
                loss = {loss}
        example_inputs = torch.randn(4, 1, 28, 28)
        """
    assert said(checked(tmp_path, code)) == [("ARC014", severity)]


# ---------------------------------------------------------------------- what fits instead


@pytest.mark.parametrize(
    ("layers", "forward", "fix"),
    [
        ("self.a = nn.Linear(8, 16); self.b = nn.Linear(8, 24)", "self.a(x) + self.b(x)",
         "as many units in a (16) as in b (24)"),
        ("self.a = nn.Linear(8, 16); self.b = nn.Linear(16, 24)", "(lambda y: y + self.b(y))(self.a(x))",
         "nn.Linear(16, 24) on the shortcut"),
    ],
)  # fmt: skip
def test_what_a_sum_needs_without_inputs(
    tmp_path: Path, layers: str, forward: str, fix: str
) -> None:
    code = f"""
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                {layers}
            def forward(self, x):
                return {forward}
        """
    [finding] = checked(tmp_path, code).findings
    assert (finding.code, finding.fixes[0].title) == ("ARC013", fix)


def test_a_convolution_with_a_stride_for_a_shortcut(tmp_path: Path) -> None:
    code = """
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.stem = nn.Conv2d(3, 16, 3, padding=1)
                self.down = nn.Conv2d(16, 32, 3, stride=2, padding=1)
            def forward(self, x):
                x = self.stem(x)
                return x + self.down(x)
        """
    [finding] = checked(tmp_path, code).findings
    assert finding.fixes[0].title == "nn.Conv2d(16, 32, 1, stride=2) on the shortcut"


def test_the_skip_that_a_unet_needs(tmp_path: Path) -> None:
    source = Path(__file__).parent.parent / "fixtures/broken/unet_wrong_skip.py"
    [finding] = trainlint.check(str(source), select=["ARC013"]).findings
    assert "concatenate (2, 16, 32, 32), as down1.3 returns" in finding.fixes[0].title
    assert not finding.message.endswith(".")


# ---------------------------------------------------------------------- faults that no input mends


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("class Net(nn.Module):\n    def foward(self, x): return x",
         "class Net (line 2) has no forward; is foward (line 3) meant?"),
        ("class Net(nn.Module):\n    def __init__(self): super().__init__()",
         "class Net (line 2) has no forward"),
        (TYPO, "has no attribute 'fc' (did you mean fc1?) at"),
    ],
)  # fmt: skip
def test_what_is_no_matter_of_inputs(tmp_path: Path, code: str, reason: str) -> None:
    report = checked(tmp_path, code)
    assert reason in str(report.targets[0].reason)
    assert "example_inputs" not in str(report.targets[0].reason)


def test_a_notebook_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "net.ipynb"
    path.write_text('{"cells": [], "metadata": null, "nbformat": 4}')
    assert "notebooks are not read" in str(trainlint.check(str(path)).targets[0].reason)
