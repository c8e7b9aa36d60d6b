"""The stages of a check: what the graph shows stands, whatever becomes of a real pass."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import run_command, write_files

NETS = {
    # Its backward pass takes the process with it.
    "aborts.py": """
        import os

        import torch
        from torch import nn


        class Deadly(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                return x * 1

            @staticmethod
            def backward(ctx, gradient):
                os.abort()


        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(6))

            def forward(self, x):
                for layer in self.layers:
                    x = torch.sigmoid(layer(x))
                return Deadly.apply(self.layers[0](x))
    """,
    # Sixteen samples of this need 16 TB; on meta tensors it costs nothing.
    "vast.py": """
        import torch
        from torch import nn


        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.fc = nn.Linear(8, 1)

            def forward(self, x):
                return (self.fc(x) + torch.zeros(1 << 38)).sum(1)
    """,
    "sound.py": """
        from torch import nn


        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.fc = nn.Linear(8, 1)

            def forward(self, x):
                return self.fc(x)
    """,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stages")
    write_files(folder, NETS)
    return folder


def test_findings_of_the_graph_outlive_a_death_in_the_real_pass(folder: Path) -> None:
    result = run_command("check", "aborts.py", "--format", "json", cwd=folder)
    (target,) = result.report["targets"]
    assert result.status == 2
    assert target["status"] == "error"
    assert "in a real forward and backward pass; --static avoids it" in target["reason"]
    assert "ARC008" in [finding["code"] for finding in result.report["findings"]]


def test_static_runs_nothing_on_real_numbers(folder: Path) -> None:
    result = run_command("check", "aborts.py", "--static", "--format", "json", cwd=folder)
    (target,) = result.report["targets"]
    assert (result.status, target["status"], target["stages"]) == (1, "ok", ["static"])


def test_a_model_that_does_not_fit_in_memory_is_checked_by_its_graph(folder: Path) -> None:
    result = run_command("check", "vast.py", "sound.py", "--format", "json", cwd=folder)
    vast, sound = result.report["targets"]
    assert (vast["status"], vast["stages"]) == ("ok", ["static"])
    (note,) = vast["notes"]
    assert note.startswith("not measured on real numbers: it needs about")
    assert (sound["status"], sound["stages"], sound["notes"]) == ("ok", ["static", "signal"], [])
