"""The HTML report: one page without a request, well-formed, escaped, with everything that was measured."""

from __future__ import annotations

import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from torch import nn

import trainlint
from trainlint.fixes.edit import Attempt, Fix, Safety
from trainlint.generalization.swept import Sweep, Swept
from trainlint.records import (
    ActivationSeries,
    CrossValidation,
    Edit,
    Figure,
    FoldResult,
    GraphNode,
    Histogram,
    LayerSeries,
    Location,
    ModelGraph,
    ModelSeries,
    Repeat,
    Report,
    ReportedFinding,
    Series,
    Spread,
    SweepReport,
    TargetResult,
)
from trainlint.report import html_sweep, rendered
from trainlint.report.html_graph import places_of
from trainlint.report.svg import Curve, bars, curves, intervals, pairs
from trainlint.report.svg_grids import grid, histogram

VOID = {"meta", "input", "br", "img", "link", "hr"}


class Outline(HTMLParser):
    """Tags opened and closed in order; attributes; text by tag."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.attributes: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self.stack[-1] if self.stack else "", data))


class Stack(nn.Module):
    """Ten sigmoids in series."""

    def __init__(self, depth: int = 10) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(layer for _ in range(depth) for layer in (nn.Linear(16, 16), nn.Sigmoid()))
        )
        self.head = nn.Linear(16, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.body(x))
        return out


@pytest.fixture(scope="module")
def report() -> Report:
    torch.manual_seed(0)
    return trainlint.check(Stack(), torch.randn(8, 16), graphs=True)


@pytest.fixture(scope="module")
def page(report: Report) -> str:
    return rendered(report, "html")


def test_the_page_is_well_formed_and_asks_for_nothing(page: str) -> None:
    outline = Outline(page)
    assert outline.stack == []
    ids = Counter(values["id"] for _, values in outline.attributes if "id" in values)
    assert max(ids.values()) == 1
    for _, values in outline.attributes:
        assert not {"src", "srcset", "action"} & values.keys()
        assert str(values.get("href", "#")).startswith("#")
    assert "@import" not in page
    assert "url(http" not in page
    policies = [v["content"] for tag, v in outline.attributes if v.get("http-equiv")]
    assert policies
    assert str(policies[0]).startswith("default-src 'none'")


def test_it_holds_the_findings_their_fixes_and_their_lesson(report: Report, page: str) -> None:
    text = " ".join(text for _, text in Outline(page).texts)
    assert report.findings
    for finding in report.findings:
        assert finding.message in text
        assert all(fix.title.removeprefix("or ") in text for fix in finding.fixes)
    assert "why this hurts a training" in text


def finding_of(**values: object) -> ReportedFinding:
    shown: dict[str, Any] = {
        "code": "INI001", "name": "a-fault", "severity": "error", "confidence": "certain",
        "message": "wrong", "stage": "probe", "target": "net.py", "module": "", "filename": None,
        "location": None, "end_location": None, **values,
    }  # fmt: skip
    return ReportedFinding(**shown)


def test_no_more_is_promised_of_a_fix_than_is_known() -> None:
    edit = Edit("net.py", Location(1, 1), Location(1, 2), "x")
    symptoms = [finding_of(name=name) for name in ("one", "two")]
    proof = Attempt(before=2.0, after=1.0, cleared=True, steps=50, seeds=2)

    def afterwards(*fixes: Fix) -> list[str]:
        page = rendered(Report([finding_of(symptoms=symptoms, fixes=list(fixes))], []), "html")
        return re.findall(r"<strong>afterwards</strong> ([^<]*)", page)

    unless = "one and two, unless another fault causes them too."
    assert afterwards(Fix("f", Safety.SAFE, [edit])) == [
        f"The finding should go, and with it {unless}"
    ]
    verified = Fix("f", Safety.SAFE, [edit], verified=proof)
    assert afterwards(verified) == [f"It is no longer reported. With it should go {unless}"]
    assert afterwards(Fix("trainlint check --kfold 5")) == []


def test_safety_is_explained_once_and_advice_is_folded() -> None:
    edit = Edit("net.py", Location(1, 1), Location(1, 2), "x")
    fixes = [Fix("f", Safety.SAFE, [edit]), Fix("or, for few samples, k folds")]
    advice = finding_of(severity="info", fixes=fixes)
    page = rendered(Report([finding_of(fixes=fixes), advice], []), "html")
    assert page.count("<em>unsafe</em>: ") == 1
    assert "<strong>or:</strong> for few samples" in page
    error, info = page.split('<li class="finding ')[1:]
    assert "<details><summary>" not in error.partition("what to change")[0]
    assert info.partition("</summary>")[0].count("<h2>") == 1
    assert "wrong" not in info.partition("</summary>")[0]


def test_a_training_that_goes_to_nan_says_so_wherever_it_is_drawn() -> None:
    lost: list[tuple[int, Figure]] = [(0, 2.0), (1, "inf"), (2, "nan"), (3, "nan")]
    layers = [
        LayerSeries(name, "linear", "nan", updates=lost, gradients=lost) for name in ("fc", "out")
    ]
    spreads = [
        Histogram(0.0, 1.0, [3, 1], 0.5), Histogram(0.0, 0.0, [], 0.9, step=2, not_finite=0.1),
        Histogram(0.0, 0.0, [], step=3, not_finite=1.0),
    ]  # fmt: skip
    values = [ActivationSeries("relu", "relu", "fc", spreads)]
    series = Series(4, 4, "mse_loss", None, [ModelSeries("Net", layers, values)], lost)
    page = rendered(Report([], [TargetResult("net.py", "ok", series=series)]), "html")
    assert Outline(page).stack == []
    assert page.count('<path class="lost"') == 2  # losses, updates
    assert "NaN or infinite from step 1 on</text>" in page
    assert page.count("NaN ◂</text>") == len(layers)
    labels = re.findall(r'<svg class="small"[^>]*aria-label="([^"]*)"', page)
    assert labels == [
        "fc → relu step 0: 50% zeros",
        "fc → relu step 2: 10% NaN or infinite; of the rest 100% zeros",
        "fc → relu step 3: all NaN or infinite",
    ]
    many = [LayerSeries(f"fc{n}", "linear", "nan", gradients=lost) for n in range(60)]
    series = Series(4, 4, "mse_loss", None, [ModelSeries("Net", many)], lost)
    page = rendered(Report([], [TargetResult("net.py", "ok", series=series)]), "html")
    assert page.count("2 at first, NaN at the end</title>") == len(many)
    assert 'class="v8"' in page


def test_adam_and_a_starved_layer_are_explained_beside_the_updates() -> None:
    def layers(update: float) -> list[LayerSeries]:
        return [
            LayerSeries(name, "linear", gradient, update=update, updates=[(0, update), (1, update)])
            for name, gradient in (("fc", 1e-6), ("out", 1.0))
        ]

    def page(optimizer: str, layers: list[LayerSeries]) -> str:
        series = Series(2, 2, "l", None, [ModelSeries("N", layers)], optimizers=[optimizer])
        return rendered(Report([], [TargetResult("net.py", "ok", series=series)]), "html")

    assert "AdamW divides by the size of the gradient" in page("AdamW", layers(1e-3))
    assert "divides by the size" not in page("SGD", layers(1e-3))
    assert "divides by the size" not in page("AdamW", layers(1e-3)[1:])
    assert "divides by the size" not in page("AdamW", layers(1e-7))  # the gradient is below ε


def test_the_graph_marks_the_place_of_a_finding_and_the_chain_that_it_names() -> None:
    names = ["input", "Linear", "sigmoid", "Linear", "sigmoid", "Linear"]
    nodes = [
        GraphNode(module or operation, operation, module, filename="/there/net.py", row=row)
        for operation, module, row in zip(
            names, ["", "fc1", "", "fc2", "", "out"], [30, 3, 10, 4, 11, 4], strict=True
        )
    ]

    def marked(**values: object) -> set[int]:
        return places_of(finding_of(filename="/there/net.py", **values), nodes)

    chain = ["sigmoid (line 10)", "sigmoid (line 11)"]
    assert marked(module="fc1", location=Location(10, 5), evidence={"chain": chain}) == {2, 4}
    assert marked(module="fc2", location=Location(4, 5)) == {3}  # of two layers on a line
    assert marked(module="out") == {5}
    assert marked(location=Location(20, 1), evidence={"layer": "fc1", "operation": "fc2"}) == {1}
    symptoms = [finding_of(module="out")]
    assert marked(symptoms=symptoms) == {5}
    assert marked(module="fc1", symptoms=symptoms) == {1}


def test_it_says_by_which_factor_the_gradient_shrinks_from_layer_to_layer(
    report: Report, page: str
) -> None:
    (profile,) = [
        value
        for each in (report.findings[0], *report.findings[0].symptoms)
        for name, value in each.evidence.items()
        if name == "gradients"
    ]
    whole = profile[0][1] / profile[-1][1]
    said = re.findall(r"about ×([\d.e-]+) is left: over (\d+) layers", page)
    assert said
    factor, layers = float(said[0][0]), int(said[0][1])
    assert layers == len(profile) - 1
    assert factor**layers == pytest.approx(whole, rel=0.5)


def test_the_graph_has_each_operation_and_marks_what_is_at_fault(report: Report, page: str) -> None:
    graph = report.targets[0].graph
    assert graph is not None
    assert [node.operation for node in graph.nodes[:3]] == ["input", "Linear", "Sigmoid"]
    assert len(graph.nodes) == 22
    assert graph.edges == [(place, place + 1) for place in range(21)]
    shown = json.loads(re.findall(r'<script type="application/json">(.*?)</script>', page)[0])
    assert len(shown["nodes"]) == 22
    starved = {node["label"] for node in shown["nodes"] if "starved" in node}
    assert any("body.0" in label for label in starved)
    assert "head" not in starved
    assert any("accused" in node for node in shown["nodes"])
    table = page[page.index("the layers as a table") :]
    assert table.count("<tr>") == 1 + sum(
        node.parameters > 0 or bool({"accused", "starved"} & data.keys())
        for node, data in zip(graph.nodes, shown["nodes"], strict=True)
    )


def test_each_layer_has_its_histogram_behind_its_activation(report: Report, page: str) -> None:
    graph = report.targets[0].graph
    assert graph is not None
    values = [node.values for node in graph.nodes if node.operation == "Sigmoid"]
    assert all(v is not None and (v.low, v.high) == (0, 1) and sum(v.counts) for v in values)
    last = values[-1]
    assert last is not None
    assert last.spread is not None
    assert last.spread < 1e-3 * 0.5  # ten sigmoids tell no two samples apart
    titles = re.findall(r"<h4>([^<]*)</h4>", page)
    assert len(titles) == 11
    assert all("→ sigmoid" in title for title in titles[:10])
    assert titles[10] == "head"
    assert page.count('<div class="card marked">') >= 1


def test_without_being_asked_there_is_no_graph() -> None:
    plain = trainlint.check(nn.Linear(4, 2), torch.randn(3, 4), stages=("static",))
    assert plain.targets[0].graph is None
    assert "graph" not in json.loads(plain.to_json())["targets"][0]
    assert '<div class="graph">' not in rendered(plain, "html")


def made_up() -> Report:
    finding = ReportedFinding(
        code="INI001", name="zero-weights", severity="error", confidence="certain",
        message="</script><script>alert(1)</script> & <b>", stage="probe", target="<net>.py::Net",
        module="fc", filename=None, location=None, end_location=None,
        evidence={"share": 0.5, "by_layer": [["a", 1.0], ["b", 1e-5], ["c", None]]},
        fixes=[
            Fix("draw <them>", verified=Attempt(before=2.3, after=0.41, gain=0.8, error=0.01, steps=50,
                                                seeds=2, cleared=True)),
            Fix("or leave it", attempt=Attempt(reason="not tried: no time left")),
        ],
    )  # fmt: skip
    series = Series(
        50, 50, "cross_entropy", 2.3,
        [ModelSeries("Net", [
            LayerSeries("fc", "linear", 1.0, 1.0, 1e-3, None, None, [(0, 1e-2), (25, 1e-3), (49, 1e-3)],
                        [(0, 2.0), (25, 1.0), (49, 0.5)]),
            LayerSeries("act", "relu", 1e-4, None, None, 0.75, 4096),
        ], [
            ActivationSeries("relu", "relu", "fc", [
                Histogram(0.0, 2.0, [3, 2, 1], 0.5), Histogram(0.0, 4.0, [1, 1], 0.95, step=49)]),
        ])],
        [(0, 2.3), (25, 1.0), (49, "nan")], [(0, 2.3), (49, 1.5)], [(0, 2.1, 2.5), (49, 1.2, 1.8)],
    )  # fmt: skip
    graph = ModelGraph(
        [GraphNode("</script>", "input", ""), GraphNode("fc", "Linear", "fc")], [(0, 1)]
    )
    target = TargetResult("<net>.py::Net", "ok", series=series, graph=graph, notes=["a < b"])
    return Report([finding], [target, TargetResult("x.py", "error", "it <exits>")])


def test_several_graphs_on_a_page_have_ids_of_their_own(report: Report) -> None:
    page = rendered(Report(report.findings, [*report.targets, *report.targets]), "html")
    ids = Counter(values["id"] for _, values in Outline(page).attributes if "id" in values)
    assert page.count('<div class="graph">') == 2
    assert max(ids.values()) == 1


def test_nothing_of_the_user_becomes_markup() -> None:
    page = rendered(made_up(), "html")
    outline = Outline(page)
    assert outline.stack == []
    assert [tag for tag, _ in outline.attributes].count("script") == 2  # the data, and our own
    assert "alert(1)" not in "".join(text for tag, text in outline.texts if tag == "script")
    text = "".join(text for _, text in outline.texts)
    assert "verified: training loss after 50 steps 2.3 → 0.41" in text
    assert "not tried: no time left" in text
    assert "x.py" in text
    assert "it <exits>" in text


def test_what_was_measured_is_drawn() -> None:
    page = rendered(made_up(), "html")
    labels = re.findall(r'<svg class="plot[^"]*"[^>]*aria-label="([^":]*)', page)
    assert [label.partition(" over")[0] for label in labels] == [
        "by layer by layer, output to input, logarithmic scale",
        "loss (cross entropy)",
        "gradient norm by layer, logarithmic scale",
        "update of a step",
        "share of dead units",
    ]
    assert 'class="band validation"' in page
    assert 'class="usual"' in page
    small = re.findall(r'<svg class="small"[^>]*aria-label="([^"]*)"', page)
    assert small == ["fc → relu step 0: 50% zeros", "fc → relu step 49: 95% zeros"]
    assert page.count('class="zeros marked"') == 1
    assert page.count('<circle class="ring') == 1


def many_layers(number: int) -> Report:
    """A training of a model with that many layers, of which the gradient loses a half each."""
    steps = range(0, 200, 2)
    layers = [
        LayerSeries(
            f"blocks.{n}.fc", "linear", 2.0**n, 1.0, 1e-3,
            updates=[(step, 1e-3 if step else 0.5) for step in steps],
            gradients=[(step, 2.0**n) for step in steps],
        )
        for n in range(number)
    ]  # fmt: skip
    activations = [
        ActivationSeries(
            f"relu[{n}]", "relu", layer.name, [Histogram(0.0, 1.0, [5, 3, 1], 0.5 if n else 0.97)]
        )
        for n, layer in enumerate(layers)
    ]
    series = Series(200, 100, "mse_loss", None, [ModelSeries("Net", layers, activations)])
    return Report([], [TargetResult("net.py::Net", "ok", series=series)])


def test_a_hundred_layers_are_a_map_and_the_page_stays_small() -> None:
    page = rendered(many_layers(150), "html")
    assert Outline(page).stack == []
    maps = re.findall(r'<svg class="plot map ([\w-]+)"', page)
    assert maps == ["heat", "heat", "two-sided"]
    assert page.count('<svg class="small"') == 1  # the layer of which nearly all is zero
    assert "97% zeros" in page
    assert len(page) < 500_000


def test_the_sweeps_curve_has_bands_and_the_marks_of_three_models() -> None:
    points = [
        Swept(value, {"hidden": int(8 * value)}, 100, [train] * 2, [validation, validation + 0.1])
        for value, train, validation in (
            (0.5, 0.5, 0.7),
            (1, 0.3, 0.5),
            (2, 0.1, 0.4),
            (4, 0.01, 0.9),
        )
    ]
    points.append(Swept(8, {"hidden": 64}, reason="out of <memory>"))
    sweep = Sweep("net.py", "width", points, here=1, folds=2, steps=50, epochs=3.0, samples=80)
    page = html_sweep.render(SweepReport(sweep))
    outline = Outline(page)
    assert outline.stack == []
    text = " ".join(text for _, text in outline.texts)
    marks = re.findall(r'<g class="mark( main)?">.*?>([^<]+)</text></g>', page)
    assert marks == [("", "this model"), (" main", "best, smallest within one error")]
    assert page.count('class="band ') == 2
    assert "out of <memory>" in text
    assert page.count("<tr") == 1 + len(points)


def test_a_cross_validation_has_its_curves_with_bands_and_each_fold() -> None:
    folds = [
        FoldResult(n, None, 80, 20, 50, 0.2, 0.01, 0.5 + n / 10, 0.05, sticks_out=n == 3)
        for n in (1, 2, 3)
    ]
    spread = Spread(0.7, 0.05, 0.08)
    measured = CrossValidation(
        "net.py::net", "KFold", "no reason", 100, "train_loader", "Adam", "mse_loss",
        [*folds, FoldResult(4, "<no>")],
        Spread(0.2, 0.01, 0.02), spread, spread, guess=1.0, steps=50,
        train=[(0, 1.0), (50, 0.2)], validation=[(0, 1.1), (50, 0.7)],
        train_bands=[(0, 0.9, 1.1), (50, 0.1, 0.3)], validation_bands=[(0, 1.0, 1.2), (50, 0.6, 0.8)],
    )  # fmt: skip
    page = rendered(Report([], [TargetResult("net.py", "ok", cross_validation=measured)]), "html")
    assert Outline(page).stack == []
    assert page.count('class="band ') == 2
    assert page.count('class="disc marked"') == 1
    assert "no result: &lt;no&gt;" in page


def test_bars_and_curves_stay_inside_of_their_frame() -> None:
    drawn = bars(
        "x", [("a" * 60, 1e-30, False), ("b", 1e30, True), ("c", 0.0, False), ("d", None, False)]
    )
    pattern = r'<rect class="bar\b[^>]*? x="([\d.]+)" y="[\d.]+" width="([\d.]+)"'
    ends = [float(x) + float(width) for x, width in re.findall(pattern, drawn)]
    assert len(ends) == 4
    assert max(ends) <= 600
    assert "not measured" in drawn
    drawn = curves("x", "steps", [Curve("l", [(0, 1.0), (1, float("nan")), (9, 1e9)], "train")])
    points = re.findall(r"([\d.]+),([\d.]+)", drawn)
    assert len(points) == 2
    assert all(0 <= float(x) <= 600 and 0 <= float(y) <= 260 for x, y in points)
    assert curves("x", "steps", []) == ""


def test_the_command_writes_it(tmp_path: Path) -> None:
    from click.testing import CliRunner

    from trainlint.cli import main

    target = tmp_path / "net.py"
    target.write_text(
        "from torch import nn\nmodel = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))\n"
    )
    out = tmp_path / "report.html"
    done = CliRunner().invoke(main, ["check", str(target), "--static", "--output", f"html:{out}"])
    assert done.exit_code == 0, done.output
    written = out.read_text(encoding="utf-8")
    assert written.startswith("<!doctype html>")
    assert '<div class="graph">' in written


def test_other_pictures_stay_inside_of_their_frame_too() -> None:
    drawn = pairs("x", [("a", 1e-9, 1e9, True), ("b", None, 1.0, False), ("c", 0.0, None, False)])
    assert all(0 <= float(x) <= 600 for x in re.findall(r'cx="([\d.-]+)"', drawn))
    assert drawn.count("<circle") == 3
    drawn = intervals("x", [("a", -1.0, 0.5, False), ("b", None, 0.0, False)])
    assert all(0 <= float(x) <= 600 for x in re.findall(r'x[12]="([\d.-]+)"', drawn))
    assert intervals("x", [("b", None, 0.0, False)]) == ""
    assert "no figures" not in histogram("x", Histogram(0.0, 0.0, [], 1.0), "relu", is_marked=True)
    drawn = histogram("x", Histogram(0.0, 1.0, [9, 0, 1], 0.0, 0.9), "sigmoid", is_marked=True)
    assert drawn.count('class="bin flat"') == 1
    drawn = grid("x", [("a", [0, 0, None, 7], "t"), ("b", [None] * 4, "u")], ("l", "r"), "heat")
    assert re.findall(r'class="v(\d)"', drawn) == ["0", "7"]


def test_each_graph_of_several_marks_what_is_said_of_it_alone() -> None:
    def graph(model: str, row: int) -> ModelGraph:
        node = GraphNode("fc", "Linear", "fc", filename="/there/net.py", row=row)
        return ModelGraph([GraphNode("x", "input", ""), node], [(0, 1)], model)

    finding = finding_of(filename="/there/net.py", location=Location(7, 1), module="fc")
    target = TargetResult(
        "net.py", "ok", graph=graph("Generator", 3), more_graphs=[graph("Critic", 7)]
    )
    page = rendered(Report([finding], [target]), "html")
    shown = [
        json.loads(data)
        for data in re.findall(r'<script type="application/json">(.*?)</script>', page)
    ]
    assert ["accused" in each["nodes"][1] for each in shown] == [False, True]
    assert re.findall(r"<h3>the graph( of \w+)", page) == [" of Generator", " of Critic"]
    many = msgspec.structs.replace(target, more_graphs=[graph("Critic", 7)] * 9)
    assert "and the graphs of 4 more models" in rendered(Report([], [many]), "html")


def test_a_target_that_failed_says_why_and_what_it_printed() -> None:
    failed = TargetResult("net.py", "error", "ValueError: <no data>", output="reading <b>\n")
    page = rendered(Report([], [failed, TargetResult("other.py", "ok")]), "html")
    assert "Nothing was found. 1 of 2 targets could not be checked." in page
    assert "error: ValueError: &lt;no data&gt;" in page
    assert "<pre>reading &lt;b&gt;</pre>" in page


def test_what_the_pictures_of_layers_show_stands_in_a_table_and_in_their_names() -> None:
    layers = [LayerSeries(f"fc{n}", "linear", 0.5, 0.25, 1e-3, 0.75) for n in range(2)]
    series = Series(2, 2, "loss", None, [ModelSeries("Net", layers)], [(0, 2.0), (9, 1.0)])
    page = rendered(Report([], [TargetResult("net.py", "ok", series=series)]), "html")
    row = "<td>fc1</td><td>linear</td><td>0.5</td><td>0.25</td><td>0.001</td><td>75%</td>"
    assert row in page
    labels = re.findall(r'<svg class="plot[^"]*"[^>]*aria-label="([^"]*)"', page)
    assert "train 2 at first, 1 at the end" in labels[0]
    assert labels[1].endswith(": fc1 0.5; fc0 0.5")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_words_stand_out_from_what_is_behind_them(theme: str, page: str) -> None:
    """WCAG 2.2, 1.4.3: a contrast of at least 4.5 for text; 1.4.11: 3 for the parts of pictures."""
    blocks = {
        "light": page.partition(":root {")[2],
        "dark": page.partition('[data-theme="dark"] {')[2],
    }
    colours = dict(re.findall(r"--([\w-]+): #(\w{6})", blocks[theme].partition("}")[0]))

    def luminance(name: str) -> float:
        parts = [int(colours[name][place : place + 2], 16) / 255 for place in (0, 2, 4)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast(one: str, other: str) -> float:
        low, high = sorted((luminance(one), luminance(other)))
        return (high + 0.05) / (low + 0.05)

    severities = ("error", "warning", "info")
    backs = ("paper", "panel", "error-back", "warning-back", "good-back")
    words = [(ink, back) for ink in ("ink", "soft") for back in backs]
    words += [(name, back) for name in severities for back in ("paper", "panel", f"{name}-back")]
    words += [(name, back) for name in ("accent", "good") for back in ("paper", "panel")]
    parts = ("train", "validation", "bar", "l2", "l3", "l4", "l5", "cold", "hot", "heat")
    assert [pair for pair in words if contrast(*pair) < 4.5] == []
    assert [name for name in parts if contrast(name, "paper") < 3] == []


def test_trainings_with_other_seeds_are_thin_lines_in_the_same_picture() -> None:
    again = Repeat(8, 400, [(0, 2.0), (399, 1.9)])
    series = Series(50, 50, "loss", None, [], [(0, 2.0), (49, 2.1)], repeats=[again])
    page = rendered(Report([], [TargetResult("net.py", "ok", series=series)]), "html")
    assert page.count('class="line train"') == page.count('class="line train again"') == 1
    assert "train, seed 8" in page
    assert "thin: the same with another seed, up to 400 steps" in page


def test_losses_of_made_up_data_are_called_so(tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    path.write_text(
        "import torch\nfrom torch import nn\n"
        "model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))\n"
        "criterion = nn.CrossEntropyLoss()\noptimizer = torch.optim.SGD(model.parameters(), lr=0.1)\n"
    )
    report = trainlint.check(path)
    (target,) = report.targets
    assert target.series is not None
    assert target.series.made_up
    assert f"over {target.series.steps} optimizer steps on made-up data" in rendered(report, "html")
