"""`trainlint sweep`: the curve over widths and penalties, its picture, and what cannot be swept."""

from __future__ import annotations

import json
import math
import textwrap
from pathlib import Path

import msgspec
import pytest
from conftest import run_command

import trainlint
from trainlint.engine import Facts, run_rules
from trainlint.errors import TrainlintError, UsageError
from trainlint.generalization.swept import Sweep, Swept
from trainlint.records import SweepReport
from trainlint.registry import find_rule
from trainlint.report.plots import PLAIN
from trainlint.report.sweeping import as_text, curve, verdict

SMALL = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Net(nn.Module):
    def __init__(self, hidden=8):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, hidden), nn.ReLU(), nn.Linear(hidden, 2))
        {extra}

    def forward(self, x):
        return self.body(x)


x = torch.randn(60, 4)
y = (x.sum(1) > 0).long()
train_loader = DataLoader(TensorDataset(x, y), batch_size=10, shuffle=True)
model = Net()
criterion = nn.CrossEntropyLoss()
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.03)
"""


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sweep") / "small.py"
    path.write_text(SMALL.replace("{extra}", ""), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def swept(small: Path) -> SweepReport:
    return trainlint.sweep(small, kfold=2, steps=20, values=[0.25, 4])


def curve_of(
    validation: list[list[float]], here: int = 0, over: str = "width", train: float = 0.1
) -> Sweep:
    """A sweep with these losses, by value and fold."""
    points = [
        Swept(2.0**place, {"hidden": 2**place}, 10 * 2**place, [train] * len(losses), losses)
        for place, losses in enumerate(validation)
    ]
    return Sweep("net.py", over, points, here, len(validation[0]), 100, 5.0, 80, loss="MSELoss")


# ---------------------------------------------------------------------- a sweep of widths


def test_each_width_is_trained_on_each_fold_as_long(swept: SweepReport) -> None:
    found = swept.sweep
    assert [point.value for point in found.points] == [0.25, 1.0, 4.0]
    assert [point.sizes for point in found.points] == [{"hidden": n} for n in (2, 8, 32)]
    assert [point.parameters for point in found.points] == [2 * 5 + 6, 8 * 5 + 18, 32 * 5 + 66]
    assert all(len(point.train) == len(point.validation) == 2 for point in found.points)
    assert found.points[found.here].value == 1.0
    assert (found.steps, found.folds, found.samples, found.metric) == (20, 2, 60, "accuracy")
    assert found.epochs == round(20 / 3, 2)
    assert found.widths == ["hidden"]


def test_the_same_seed_gives_the_same_figures(small: Path, swept: SweepReport) -> None:
    again = trainlint.sweep(small, kfold=2, steps=20, values=[4], width=["hidden"])
    assert again.sweep.points[-1].validation == swept.sweep.points[-1].validation


def test_the_data_say_what_follows_from_them(swept: SweepReport) -> None:
    data = json.loads(swept.to_json())
    assert data["version"] == 1
    found = data["sweep"]
    assert found["best"] == swept.sweep.best
    assert found["chosen"] == swept.sweep.chosen
    standing = found["points"][found["best"]]["standing"]
    assert standing["above"] == 0.0
    least = min(sum(point["validation"]) / 2 for point in found["points"])
    assert math.isclose(standing["validation"], least)


def test_penalties_and_dropout_stand_beside_the_model_as_it_is(small: Path) -> None:
    decay = trainlint.sweep(small, kfold=2, steps=5, over="weight-decay", values=[0, 1]).sweep
    assert [point.value for point in decay.points] == [0.0, 0.03, 1.0]
    assert decay.here == 1
    dropout = trainlint.sweep(small, kfold=2, steps=5, over="dropout", values=[0.5]).sweep
    assert [point.value for point in dropout.points] == [0.0, 0.5]
    assert dropout.points[0].train != dropout.points[1].train


def test_time_that_is_up_leaves_values_out_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "slow.py"
    slow = SMALL.replace("{extra}", "").replace(
        "        return", "        time.sleep(0.02)\n        return"
    )
    path.write_text("import time\n" + slow, encoding="utf-8")
    try:
        found = trainlint.sweep(path, kfold=2, steps=10**5, seconds=6)
        said = [point.reason or "" for point in found.sweep.points]
    except TrainlintError as error:  # before the first training began
        said = [str(error)]
    assert said
    assert all("the time was up" in reason for reason in said)


# ---------------------------------------------------------------------- the command


def test_the_picture_is_readable_at_80_columns_without_colour(small: Path) -> None:
    done = run_command(
        "sweep", small, "--kfold", "2", "--steps", "10", "--values", "1,2",
        cwd=small.parent, env={"COLUMNS": "80"},
    )  # fmt: skip
    assert done.status == 0, done.stderr
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert "\x1b" not in done.stdout
    for text in ("▲ this model", "×2  hidden=16", "best:", "±"):
        assert text in done.stdout
    assert "params" in done.stdout


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--values", "a"], "--values a: numbers, separated by commas"),
        (["--values", "0"], "--values 0: width lies between"),
        (["--values", "nan"], "--values nan: width lies between"),
        (["--over", "dropout", "--values", "1"], "--values 1: dropout lies between 0 and 0.95"),
        (["--over", "l1", "--width", "hidden"], "--width names what sets the width"),
        (["--kfold", "1"], "--kfold 1: two folds at least"),
        (["--steps", "3", "--epochs", "1"], "give --steps or --epochs, not both"),
        (["--steps", "0"], "--steps and --epochs are positive"),
        (["--seconds", "-1"], "--seconds -1: a positive time"),
        (["--output", "/no/such/folder/x"], "cannot write /no/such/folder/x"),
        (
            ["--width", "nothing"],
            "--width nothing: neither an argument of Net nor a name of the file",
        ),
    ],
)
def test_options_that_make_no_sense_get_one_line(
    small: Path, options: list[str], said: str
) -> None:
    done = run_command("sweep", small, *options, cwd=small.parent)
    assert done.status == 2
    assert done.stderr.startswith(f"trainlint: error: {said}")
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (SMALL.replace("train_loader", "batches_for_training"), "train_loader"),
        (SMALL.replace("hidden=8", "hidden=8, x=print('built')").replace("{extra}", "1 / 0"), "division"),
        ("x = 1\n", "no model found"),
        ("x = (\n", "does not parse"),
    ],
    ids=["no loader", "a constructor that raises", "no model", "a syntax error"],
)  # fmt: skip
def test_a_file_that_cannot_be_swept_gets_one_line(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "bad.py"
    path.write_text(textwrap.dedent(text).replace("{extra}", ""), encoding="utf-8")
    done = run_command("sweep", path, cwd=tmp_path)
    assert done.status == 2
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert "Traceback" not in done.stderr


def test_what_is_no_file_is_said() -> None:
    with pytest.raises(UsageError, match="nowhere"):
        trainlint.sweep("nowhere.py")
    with pytest.raises(UsageError, match="not a live model"):
        trainlint.sweep(len)  # type: ignore[arg-type]


# ---------------------------------------------------------------------- what follows from figures


def test_the_simplest_within_one_standard_error_is_chosen() -> None:
    found = curve_of(
        [[0.9, 1.0, 1.1], [0.5, 0.6, 0.7], [0.45, 0.55, 0.65], [0.7, 0.8, 0.9]], here=3
    )
    assert found.best == 2
    assert found.chosen == 1  # 0.6 is no more than 0.55 + 0.0577
    assert msgspec.structs.replace(found, over="l1").chosen == 2
    standing = found.standing(3)
    assert math.isclose(standing.validation_error, 0.1 / 3**0.5)
    assert math.isclose(standing.above, 0.25)
    assert standing.above_error < 1e-9  # the folds differ, not the difference


def judged(found: Sweep) -> list[str]:
    outcome = run_rules([find_rule("GEN008")], Facts({"Sweep": found}), target="net.py")
    assert not outcome.failures
    return [finding.reported.message for finding in outcome.findings]


def test_off_the_optimum_means_beyond_both_errors() -> None:
    far = [[0.9, 0.8, 1.0], [0.5, 0.4, 0.6]]
    [message] = judged(curve_of(far))
    assert "validation loss is 0.9 at ×1 (hidden=1) and 0.5 at ×2 (hidden=2)" in message
    assert judged(curve_of(far, here=1)) == []
    assert judged(curve_of([[0.55, 0.45, 0.65], [0.5, 0.4, 0.6]])) == []  # within the best's error
    assert judged(curve_of([[1.5, 0.5, 0.5], [0.5, 0.5, 0.5]])) == []  # one fold alone
    assert judged(curve_of([[0.505, 0.504, 0.506], [0.5, 0.5, 0.5]])) == []  # of no account
    assert judged(curve_of([losses[:2] for losses in far])) == []  # too few folds
    assert judged(msgspec.structs.replace(curve_of(far), over="dropout")) == []


def test_values_without_figures_have_a_reason_and_no_place() -> None:
    found = curve_of([[0.9, 1.0], [0.5, 0.6]])
    lost = Swept(8.0, {"hidden": 8}, reason="not run: the time was up")
    found = msgspec.structs.replace(found, points=[*found.points, lost])
    assert found.measured == [0, 1]
    assert "not run: the time was up" in as_text(SweepReport(found), 80)
    nothing = msgspec.structs.replace(found, points=[lost], here=0)
    assert next(verdict(nothing)).startswith("nothing could be measured")
    assert "nothing could be measured" in as_text(SweepReport(nothing), 80)


@pytest.mark.parametrize(
    "losses", [[[0.5, 0.5]], [[1e-9, 2e-9], [3e4, 2e5]], [[-1.0, -2.0], [0.0, 1.0]]]
)
@pytest.mark.parametrize("width", [30, 80, 200])
def test_any_figures_can_be_drawn(losses: list[list[float]], width: int) -> None:
    found = curve_of(losses)
    for row in curve(found, max(width, 80)):
        assert row.cell_len <= max(width, 80)
    text = as_text(SweepReport(found), width)
    assert "best:" in text
    assert all(
        row.plain.isascii() or "±" in row.plain or "×" in row.plain
        for row in curve(found, 80, PLAIN)
    )
