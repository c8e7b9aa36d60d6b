"""Pictures in the terminal: what they are drawn of, how they are drawn, and where they stand.

`UPDATE_SNAPSHOTS=1 pytest tests/test_plots.py` writes the files of `tests/snapshots` anew.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from conftest import check_snapshot
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import trainlint
from trainlint.observe.series import MOST_POINTS, series_of
from trainlint.observe.trace import EvaluationTrace, LossTrace, Trace
from trainlint.records import (
    Figure,
    LayerSeries,
    ModelSeries,
    Report,
    ReportedFinding,
    Series,
    TargetResult,
)
from trainlint.report.plots import (
    BLOCKS,
    PLAIN,
    Bar,
    Picture,
    Signs,
    as_shares,
    on_log_scale,
    pictures,
    profile,
    signs_for,
)
from trainlint.report.text import as_text, print_report

Points = list[tuple[int, Figure]]


def shown(drawn: Picture | list[Picture]) -> str:
    drawn = drawn if isinstance(drawn, list) else [drawn]
    return "".join(
        f"{one.title}\n" + "".join(f"{row.plain}\n" for row in one.rows) for one in drawn
    )


# ---------------------------------------------------------------------- drawing, whatever it is of

LABELS = st.text(max_size=40) | st.integers(0, 600).map(lambda n: f"blocks.{n}.mlp.fc1")
VALUES = (
    st.none()
    | st.floats(min_value=0)
    | st.sampled_from([0.0, math.inf, math.nan, 5e-324, sys.float_info.max])
)
BARS = st.lists(st.builds(Bar, LABELS, VALUES, st.booleans()), max_size=60)
FIGURES = st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from(["nan", "inf", "-inf"])
POINTS: st.SearchStrategy[Points] = st.lists(
    st.tuples(st.integers(0, 10**7), FIGURES), max_size=80
).map(lambda points: sorted(points, key=lambda point: point[0]))
WIDTHS = st.integers(1, 220)
SIGNS = st.sampled_from([BLOCKS, PLAIN])


def check_lines(rows: list[Any], width: int) -> None:
    for row in rows:
        assert cell_len(row.plain) <= width
        assert row.plain == row.plain.rstrip()
        assert "\n" not in row.plain


@given(BARS, WIDTHS, SIGNS, st.sampled_from([on_log_scale, as_shares]))
@settings(deadline=None, max_examples=200)
def test_bars_of_anything_fit_any_terminal(
    bars: list[Bar], width: int, signs: Signs, draw: Any
) -> None:
    rows = draw(bars, width, signs)
    check_lines(rows, width)
    assert len(rows) <= 17
    assert len(rows) >= min(len(bars), 8)


@given(POINTS, POINTS, st.none() | FIGURES, WIDTHS, SIGNS, st.lists(FIGURES, max_size=30))
@settings(deadline=None, max_examples=200)
def test_curves_of_anything_fit_any_terminal(
    train: Points,
    validation: Points,
    guess: Figure | None,
    width: int,
    signs: Signs,
    ends: list[Figure],
) -> None:
    bands = [
        (step, *sorted((value, end), key=float))
        for (step, value), end in zip(validation, ends, strict=False)
    ]
    series = Series(1, 1, "mse_loss", guess, [], train, validation, bands)
    drawn = list(pictures(series, width, signs))
    assert len(drawn) == bool(train or validation)
    for picture in drawn:
        check_lines(picture.rows, width)
        assert ("NaN" in picture.title) == any(
            isinstance(value, str) for _, value in (*train, *validation)
        )


@given(st.lists(st.floats(1e-30, 1e30), min_size=1, max_size=12), st.integers(60, 200), SIGNS)
@settings(deadline=None)
def test_bars_keep_their_order_and_grow_with_their_values(
    values: list[float], width: int, signs: Signs
) -> None:
    bars = [Bar(f"layer{number}", value) for number, value in enumerate(values)]
    rows = [row.plain.split() for row in on_log_scale(bars, width, signs)][: len(bars)]
    assert [row[0] for row in rows] == [bar.label for bar in bars]
    assert [float(row[-1]) for row in rows] == pytest.approx(values, rel=0.06)
    lengths = [len(row[1]) for row in rows]
    ordered = [length for _, length in sorted(zip(values, lengths, strict=True))]
    assert ordered == sorted(ordered)


@given(st.integers(17, 700), st.integers(60, 200))
@settings(deadline=None)
def test_of_many_layers_each_stands_in_one_line(count: int, width: int) -> None:
    """The groups' least and largest figures are those of the layers that they hold."""
    bars = [Bar(f"fc.{number}", 10.0 ** (number / 100)) for number in range(count)]
    lines = [row.plain for row in on_log_scale(bars, width)[:-1]]
    assert len(lines) <= 16
    following = 0
    for line in lines:
        label, figures = re.split(r" [▏▎▍▌▋▊▉█][▏▎▍▌▋▊▉█░]* +", line.strip())
        first, last = (int(number) for number in (label[3:].split(" to ") * 2)[:2])
        assert first == following
        following = last + 1
        least, largest = (float(figure) for figure in (figures.split(" to ") * 2)[:2])
        assert least == pytest.approx(10.0 ** (first / 100), rel=0.06)
        assert largest == pytest.approx(10.0 ** (last / 100), rel=0.06)
    assert following == count


@given(BARS, st.integers(20, 200))
@settings(deadline=None)
def test_plain_signs_are_ascii(bars: list[Bar], width: int) -> None:
    bars = [Bar(bar.label.encode("ascii", "replace").decode(), bar.value) for bar in bars]
    for row in on_log_scale(bars, width, PLAIN):
        assert row.plain.isascii()


def test_what_is_no_number_is_called_by_its_name() -> None:
    bars = [
        Bar("a", math.nan), Bar("b", math.inf), Bar("c", 0.0), Bar("d", None), Bar("e", 1e-3),
    ]  # fmt: skip
    rows = {row.plain.split()[0]: row.plain.split()[1:] for row in on_log_scale(bars, 80)}
    assert rows["a"] == ["NaN"]
    assert rows["b"][1:] == ["inf"]
    assert rows["c"] == ["0"]
    assert rows["d"] == ["none"]
    assert rows["e"][-1] == "1.0e-03"


def test_a_group_says_what_is_no_number_as_well() -> None:
    bars = [Bar(str(n), math.nan if n == 3 else 1.0 + n) for n in range(32)]
    rows = [row.plain for row in on_log_scale(bars, 80)]
    assert rows[1].endswith("3.0e+00 to NaN")


@pytest.mark.parametrize(
    ("encoding", "signs"),
    [("utf-8", BLOCKS), ("UTF-16", BLOCKS), ("ascii", PLAIN), ("cp1252", PLAIN), (None, PLAIN)],
)
def test_signs_are_those_that_the_encoding_has(encoding: str | None, signs: Signs) -> None:
    assert signs_for(encoding) is signs


def test_an_ascii_terminal_gets_no_other_sign() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii", errors="replace")  # other signs of the report
    print_report(report(), Console(file=stream, width=90, color_system=None), plots=True)
    stream.flush()
    assert b"####" in raw.getvalue()


# ---------------------------------------------------------------------- typical ones


def layers(*gradients: Figure | None) -> list[LayerSeries]:
    return [
        LayerSeries(f"fc{number}", "linear", gradient=gradient)
        for number, gradient in enumerate(gradients, start=1)
    ]


def losses(count: int = 60, every: int = 10) -> Points:
    """A loss that falls, and shakes a little."""
    return [
        (every * n, round(2.3 * 0.95**n + 0.2 + 0.05 * math.cos(9 * n), 4)) for n in range(count)
    ]


RELUS = [
    LayerSeries("relu", "relu", dead=0.03, samples=640),
    LayerSeries("relu[1]", "relu", dead=0.81, samples=640),
]
VANISHING = layers(*(float(f"1e-{9 - number}") for number in range(8)))
VALIDATION: Points = [(step, 0.6 + abs(step - 240) / 600) for step in range(60, 600, 60)]


def training(**changes: Any) -> Series:
    values: dict[str, Any] = {
        "steps": 600, "recorded": 41, "loss": "cross_entropy", "guess": 2.3026, "train": losses(),
        "validation": VALIDATION, "models": [ModelSeries("Net", [*VANISHING, *RELUS])],
    }  # fmt: skip
    return Series(**{**values, **changes})


LONG = ModelSeries(
    "Long",
    [LayerSeries(f"blocks.{n}.fc", "linear", gradient=10.0 ** (n / 100 - 5)) for n in range(500)],
)
BROKEN = training(
    models=[ModelSeries("Net", layers("nan", "inf", 0.0, None, 0.25))],
    train=[*losses(30), *[(step, "nan") for step in range(300, 600, 10)]],
    validation=[(60, 1.5), (120, 900.0), (360, "inf")],
)
PAIR = training(
    models=[ModelSeries("Generator", layers(1e-3, 2e-3)), ModelSeries("Critic", layers(1.0, 2.0))],
    loss="backward",
    guess=None,
    validation=[],
)


@pytest.mark.parametrize("width", [60, 100, 200])
@pytest.mark.parametrize(
    ("name", "series", "signs"),
    [
        ("vanishing", training(), BLOCKS),
        ("vanishing_ascii", training(), PLAIN),
        ("long", training(models=[LONG], train=[], validation=[]), BLOCKS),
        ("broken", BROKEN, BLOCKS),
        ("pair", PAIR, BLOCKS),
    ],
)
def test_pictures_as_they_were(name: str, series: Series, signs: Signs, width: int) -> None:
    drawn = list(pictures(series, width, signs, accused=["gradients"]))
    check_snapshot(f"plots_{name}_{width}.txt", shown(drawn))


def marked(picture: Picture) -> list[str]:
    return [row.plain.split()[0] for row in picture.rows if row.plain.endswith("◂")]


def test_what_vanished_is_marked_where_there_is_a_finding_on_gradients() -> None:
    (drawn,) = pictures(training(), 100, kinds=["gradients"], accused=["gradients"])
    assert marked(drawn) == ["fc5", "fc4", "fc3", "fc2", "fc1"]
    assert "◂ more than 100 times" in drawn.title
    (drawn,) = pictures(training(), 100, kinds=["gradients"])
    assert marked(drawn) == []
    assert "◂" not in drawn.title


def test_what_exploded_is_marked_and_not_the_last_layers() -> None:
    model = ModelSeries("Net", layers(1e6, 1e4, 10.0, 1.0))
    series = training(models=[model])
    (drawn,) = pictures(series, 100, kinds=["gradients"], accused=["gradients"])
    assert marked(drawn) == ["fc2", "fc1"]


def test_layers_that_findings_name_and_those_without_any_gradient_are_marked() -> None:
    series = training(models=[ModelSeries("Net", layers(0.0, 0.2, 0.3))])
    (drawn,) = pictures(series, 100, kinds=["gradients"], named=["fc2"])
    assert marked(drawn) == ["fc2", "fc1"]


def test_mostly_dead_layers_are_marked_and_few_samples_are_said() -> None:
    (drawn,) = pictures(training(), 100, kinds=["dead"])
    assert marked(drawn) == ["relu[1]"]
    assert "samples" not in drawn.title.partition("every sample")[2]
    few = [LayerSeries("relu", "relu", dead=0.4, samples=40)]
    (drawn,) = pictures(training(models=[ModelSeries("Net", few)]), 100, kinds=["dead"])
    assert "windows of only 40 samples" in drawn.title


def test_gradients_of_weights_stand_in_where_results_were_not_recorded() -> None:
    compiled = [LayerSeries("fc1", "", weight_gradient=0.1), LayerSeries("fc2", "")]
    (drawn,) = pictures(training(models=[ModelSeries("Net", compiled)]), 100, kinds=["gradients"])
    assert "at each weight" in drawn.title
    assert [row.plain.split()[-1] for row in drawn.rows[:2]] == ["none", "1.0e-01"]


def test_a_flat_loss_looks_flat() -> None:
    train: Points = [(step, 2.3 + 0.005 * math.cos(step)) for step in range(100)]
    (drawn,) = pictures(training(train=train, validation=[]), 100, kinds=["losses"])
    lines = [row.plain.partition("│")[2].strip() for row in drawn.rows[:8]]
    assert sum(bool(line) for line in lines) <= 2


# ---------------------------------------------------------------------- in the report


def finding(code: str, name: str, **changes: Any) -> ReportedFinding:
    values: dict[str, Any] = {
        "code": code, "name": name, "severity": "warning", "confidence": "likely",
        "message": name, "stage": "probe", "target": "train.py", "module": "", "filename": None,
        "location": None, "end_location": None,
    }  # fmt: skip
    return ReportedFinding(**{**values, **changes})


def target(series: Series | None) -> TargetResult:
    return TargetResult("train.py", "ok", watched="600 steps of SGD", series=series)


VANISHED = finding("GRD001", "vanishing-gradient")
DEAD = finding("ACT001", "dead-relu", evidence={"dead": 0.81, "model": "Net"})
STILL = finding("LOS008", "loss-never-moves")
FAST = finding("OPT002", "learning-rate-too-high")
OTHER = finding("GRD007", "stale-gradient")


def report(*findings: ReportedFinding, series: Series | None = None) -> Report:
    return Report(list(findings), [target(series or training())])


def parts(text: str) -> list[str]:
    """What stands in the report, in order: names of findings and of pictures."""
    names = {
        "GRD001": "GRD001", "ACT001": "ACT001", "LOS008": "LOS008", "OPT002": "OPT002",
        "GRD007": "GRD007", "norm of the gradient": "gradients", "units that are 0": "dead",
        "cross_entropy: ": "losses", "plots of": "all",
    }  # fmt: skip
    lines = [line for line in text.splitlines() if "explain" not in line]
    return [name for line in lines for key, name in names.items() if key in line]


def test_a_picture_stands_below_the_finding_that_needs_it() -> None:
    text = as_text(report(VANISHED, DEAD, STILL, OTHER))
    assert parts(text) == ["GRD001", "gradients", "ACT001", "dead", "LOS008", "losses", "GRD007"]


def test_a_picture_is_drawn_once() -> None:
    assert parts(as_text(report(STILL, FAST))) == ["LOS008", "losses", "OPT002"]


def test_all_of_them_at_the_end_or_none() -> None:
    everything = as_text(report(VANISHED, OTHER), plots=True)
    assert parts(everything) == ["GRD001", "GRD007", "all", "gradients", "dead", "losses"]
    assert parts(as_text(report(VANISHED, DEAD), plots=False)) == ["GRD001", "ACT001"]


def test_a_symptoms_picture_stands_below_its_cause() -> None:
    cause = finding("GRD007", "stale-gradient", symptoms=[STILL])
    assert parts(as_text(report(cause)))[:2] == ["GRD007", "losses"]


def test_figures_that_a_finding_carries_are_drawn_before_others() -> None:
    figures = [["conv1", 1e-6], ["conv2", 1e-3], ["head", 0.5], ["out", None]]
    own = msgspec.structs.replace(VANISHED, evidence={"gradients": figures})
    text = as_text(report(own))
    assert "norm of the gradient" not in text
    rows = [line.split() for line in text.splitlines() if line.startswith("    ")]
    assert [row[0] for row in rows[:4]] == ["out", "head", "conv2", "conv1"]
    assert rows[0][1] == "NaN"
    assert rows[3][-2:] == ["1.0e-06", "◂"]
    assert "gradients, measured" not in as_text(report(own), plots=False)


def test_what_was_not_watched_has_no_pictures_and_that_is_said() -> None:
    only_checked = Report([VANISHED], [TargetResult("net.py", "ok", inputs="(2, 3)")])
    assert parts(as_text(only_checked)) == ["GRD001"]
    assert "no plots of net.py: no training of it was watched" in as_text(only_checked, plots=True)


@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_whole_report_fits_the_terminal(width: int) -> None:
    full = report(VANISHED, DEAD, STILL, series=BROKEN)
    for plots in (None, True):
        for line in as_text(full, width, plots=plots).splitlines():
            assert cell_len(line.rstrip()) <= width


def test_without_colours_where_they_are_not_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    def written() -> str:
        stream = io.StringIO()
        print_report(report(DEAD), Console(file=stream, width=90, force_terminal=True), plots=True)
        return stream.getvalue()

    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[36m" in written()
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[3" not in written()


# ---------------------------------------------------------------------- from a trace


def trace(**changes: Any) -> Trace:
    values: dict[str, Any] = {
        "steps": 100, "recorded": range(100), "models": [], "optimizers": [],
        "losses": [(step, 2.0 - step / 100) for step in range(100)],
    }  # fmt: skip
    return Trace(**{**values, **changes})


def objective(kind: str, values: list[float], steps: list[int]) -> LossTrace:
    return LossTrace(kind, None, steps, values)


def series(**changes: Any) -> Series:
    found = series_of(trace(**changes))
    assert found is not None
    return found


def test_no_series_where_nothing_was_trained() -> None:
    assert series_of(trace(steps=0, losses=[], recorded=[])) is None


def test_further_trainings_stand_beside_the_first_where_they_are_of_the_same_loss() -> None:
    longer = trace(steps=12, losses=[(step, 1.0) for step in range(12)])
    found = series_of(trace(), {8: longer, 9: trace(losses=[])})
    assert found is not None
    (repeat,) = found.repeats
    assert (repeat.seed, repeat.steps, len(repeat.train)) == (8, 12, 12)


@given(st.lists(st.tuples(st.integers(0, 5000), st.floats()), max_size=1000))
@settings(deadline=None)
def test_losses_are_thinned_and_nothing_that_is_not_finite_is_lost(
    points: list[tuple[int, float]],
) -> None:
    points.sort(key=lambda point: point[0])
    found = series(losses=points)
    assert len(found.train) <= MOST_POINTS
    steps = [step for step, _ in found.train]
    assert steps == sorted(set(steps))
    if points:
        assert (steps[0], steps[-1]) == (points[0][0], points[-1][0])
    bad = any(not math.isfinite(value) for _, value in points)
    # The mean of two that are huge is none, either.
    huge = any(abs(value) > 1e300 for _, value in points)
    assert huge or bad == any(isinstance(value, str) for _, value in found.train)
    assert msgspec.json.decode(msgspec.json.encode(found), type=Series) == found


def test_thinning_keeps_the_mean() -> None:
    found = series(losses=[(step, float(step % 2)) for step in range(4000)])
    inner = [value for _, value in found.train[1:-1]]
    assert all(value == pytest.approx(0.5, abs=0.03) for value in inner)


def test_the_loss_has_a_name_where_backward_was_called_on_it() -> None:
    exact = objective("cross_entropy", [2.0, 1.5], [0, 50])
    assert series(objectives=[exact]).loss == "cross_entropy"
    scaled = objective("cross_entropy", [0.02, 0.015], [0, 50])
    assert series(objectives=[scaled]).loss == "backward"
    assert series(objectives=[exact, objective("mse_loss", [1.0, 1.0], [0, 1])]).loss == "backward"


def test_training_and_validation_are_of_the_same_loss() -> None:
    """Where `backward` gets the loss multiplied, as under AMP, the loss function's own values count."""
    scaled = objective("cross_entropy", [0.02, 0.015], [0, 50])
    validation = EvaluationTrace("cross_entropy", None, [50, 100], [0.03, 0.02])
    found = series(objectives=[scaled], evaluations=[validation])
    assert (found.loss, found.train) == ("cross_entropy", [(0, 0.02), (50, 0.015)])
    assert found.validation == [(50, 0.03), (100, 0.02)]


def test_a_guess_goes_with_the_loss_that_it_is_of() -> None:
    guessed = LossTrace("cross_entropy", None, [0, 50], [2.0, 1.5], guess=1.1)
    assert series(objectives=[guessed]).guess == 1.1
    scaled = LossTrace("cross_entropy", None, [0, 50], [4.0, 3.0], guess=1.1)
    assert series(objectives=[scaled]).guess is None
    (drawn,) = pictures(training(guess=0.9), 100, kinds=["losses"])
    assert "┄ best constant answer" in drawn.title
    assert sum("┄┄" in row.plain for row in drawn.rows) == 1


def test_losses_of_one_step_are_averaged() -> None:
    assert series(losses=[(0, 1.0), (0, 3.0), (1, 2.0)]).train == [(0, 2.0), (1, 2.0)]


def test_the_training_data_evaluated_are_no_validation() -> None:
    again = EvaluationTrace("mse_loss", None, [10, 20, 30], [1.0, 1.0, 1.0], on_training_data=True)
    assert series(evaluations=[again]).validation == []
    test = EvaluationTrace("mse_loss", None, [20], [7.0])
    validation = EvaluationTrace("mse_loss", None, [10, 20], [2.0, 3.0])
    assert series(evaluations=[again, validation, test]).validation == [(10, 2.0), (20, 3.0)]


# ---------------------------------------------------------------------- from a real training


def batches(count: int, size: int = 64) -> Iterator[tuple[Tensor, Tensor]]:
    for _ in range(count):
        x = torch.randn(size, 16)
        yield x, (x[:, 0] > 0).long()


def watched(model: nn.Module, lr: float = 0.1, steps: int = 40) -> Series:
    torch.manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    with trainlint.watch(model, every=1) as w:
        for x, y in batches(steps):
            optimizer.zero_grad()
            functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    found = w.report().targets[0].series
    assert found is not None
    return found


def test_a_vanishing_gradient_falls_from_layer_to_layer() -> None:
    torch.manual_seed(0)
    hidden = [part for _ in range(6) for part in (nn.Linear(16, 16), nn.Sigmoid())]
    found = watched(nn.Sequential(*hidden, nn.Linear(16, 2)))
    (model,) = found.models
    assert [layer.name for layer in model.layers] == [str(number) for number in range(0, 13, 2)]
    gradients = [layer.gradient for layer in model.layers]
    assert all(isinstance(gradient, float) for gradient in gradients)
    assert gradients == sorted(gradients, key=float)  # type: ignore[arg-type]
    assert float(gradients[0] or 0) < 1e-4 * float(gradients[-1] or 0)
    (drawn,) = pictures(found, 100, kinds=["gradients"], accused=["gradients"])
    labels = [row.plain.strip().partition(")")[0] for row in drawn.rows[:-1]]
    assert labels[0] == "layer 12 (linear"
    assert labels[-1] == "layer 0 (linear"
    assert drawn.rows[len(labels) - 1].plain.endswith("◂")


def test_dead_units_and_weights_of_a_real_training() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2)
    )
    nn.init.constant_(model[2].bias, -9.0)  # type: ignore[arg-type]
    found = watched(model)
    by_name = {layer.name: layer for layer in found.models[0].layers}
    assert list(by_name) == ["0", "1.relu", "2", "3.relu", "4"]
    assert by_name["3.relu"].dead == 1.0
    assert by_name["1.relu"].dead == pytest.approx(0.0, abs=0.2)
    assert by_name["3.relu"].samples == 5 * 64
    assert by_name["0"].gradient == 0.0
    assert by_name["0"].weight_gradient == 0.0
    assert by_name["0"].update == 0.0
    assert float(by_name["4"].gradient or 0) > 0


def test_gradients_are_the_medians_of_those_that_were_recorded() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 2))
    norms = []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with trainlint.watch(model, every=1) as w:
        for x, y in batches(7):
            optimizer.zero_grad()
            functional.cross_entropy(model(x), y).backward()
            norms.append(float(model[0].weight.grad.norm()))  # type: ignore[union-attr]
            optimizer.step()
    found = series_of(w.trace)
    assert found is not None
    first = found.models[0].layers[0]
    assert float(first.weight_gradient or 0) == pytest.approx(sorted(norms)[3], rel=1e-3)


SCRIPT = """\
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
def data(n):
    x = torch.randn(n, 16)
    return TensorDataset(x, (x[:, 0] > 0).long())
hidden = [part for _ in range(7) for part in (nn.Linear(16, 16), nn.Sigmoid())]
model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), *hidden, nn.Linear(16, 2))
nn.init.constant_(model[0].bias, -9.0)
criterion = nn.CrossEntropyLoss()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
train, val = DataLoader(data(512), 64, shuffle=True), DataLoader(data(128), 64)
for epoch in range(8):
    model.train()
    for x, y in train:
        optimizer.zero_grad()
        criterion(model(x), y).backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        print(sum(criterion(model(x), y).item() for x, y in val) / len(val))
"""


def run(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    (folder / "train.py").write_text(SCRIPT, encoding="utf-8")
    return subprocess.run(
        [sys.executable, "-m", "trainlint", "run", *options, "train.py"],
        cwd=folder, capture_output=True, text=True, timeout=180, check=False, encoding="utf-8",
        env={**os.environ, "COLUMNS": "100", "PYTHONIOENCODING": "utf-8"},
    )  # fmt: skip


def test_a_script_with_a_vanishing_gradient_dead_units_and_a_validation_loop(
    tmp_path: Path,
) -> None:
    done = run(tmp_path, "--every=1", "--plots")
    assert done.returncode == 0
    text = done.stderr
    gradients, _, rest = text.partition("plots of train.py")[2].partition("units that are 0")
    dead, _, curves = rest.partition("cross_entropy: ")
    labels = [line.split()[1] for line in gradients.splitlines() if "(linear)" in line]
    assert labels == [str(number) for number in (16, 14, 12, 10, 8, 6, 4, 2, 0)]
    assert any("100% ◂" in line for line in dead.splitlines())
    assert "● validation" in curves
    assert curves.partition("│")[2].count("●") == 8


def test_no_plots_draws_none(tmp_path: Path) -> None:
    text = run(tmp_path, "--every=1", "--no-plots").stderr
    assert "64 steps of SGD" in text
    assert "█" not in text


def test_the_series_in_the_json_of_a_run(tmp_path: Path) -> None:
    done = run(tmp_path, "--every=1", "--format=json")
    (found,) = json.loads(done.stderr)["targets"]
    read = msgspec.convert(found["series"], Series)
    assert list(found["series"]) == [
        "steps",
        "recorded",
        "loss",
        "guess",
        "models",
        "train",
        "validation",
        "bands",
        "optimizers",
        "repeats",
        "made_up",
    ]
    printed = [float(line) for line in done.stdout.splitlines()]
    assert [step for step, _ in read.validation] == [8 * epoch for epoch in range(1, 9)]
    assert [float(value) for _, value in read.validation] == pytest.approx(printed, rel=1e-3)
    assert len(read.train) == read.steps == 64
    assert {layer.operation for layer in read.models[0].layers} == {"linear", "relu"}


def test_check_takes_the_option_too(tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    path.write_text("from torch import nn\nmodel = nn.Linear(3, 2)\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "trainlint", "check", "--plots", "net.py"],
        cwd=tmp_path, capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    assert done.returncode == 0
    assert "no plots of net.py" in done.stdout


PROBED = """\
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
criterion = nn.CrossEntropyLoss()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
x = torch.randn(64, 8)
train_loader = DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), batch_size=16)
"""


def test_the_probe_of_a_check_has_pictures_as_well(tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    path.write_text(PROBED, encoding="utf-8")
    checked = trainlint.check(path)
    found = checked.targets[0].series
    assert found is not None
    assert [layer.name for layer in found.models[0].layers] == ["0", "1.relu", "2"]
    assert len(found.train) == found.steps > 10
    assert "cross_entropy: " in as_text(checked, plots=True)


def test_training_and_validation_from_within() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 16)
    loader = DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), batch_size=16)
    model = nn.Linear(16, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with trainlint.watch(model) as w:
        for _ in range(3):
            for inputs, labels in batches(10):
                optimizer.zero_grad()
                functional.cross_entropy(model(inputs), labels).backward()
                optimizer.step()
            model.eval()
            with torch.no_grad():
                for inputs, labels in loader:
                    functional.cross_entropy(model(inputs), labels)
    text = as_text(w.report(), plots=True)
    assert "● validation" in text
    assert str(w.report()) == as_text(w.report())


def test_a_profile_keeps_what_its_finding_says() -> None:
    drawn = profile("spreads", [("a", 1e-9), ("b", 1.0)], 80, BLOCKS)
    assert drawn.title == "spreads, measured; output to input, log scale"
    assert marked(drawn) == []
