"""The HTML report: one page without a request, valid, escaped, and alive in a real browser.

The browser test needs Playwright and a Chromium; it is skipped where one of them is not installed.
"""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import trainlint
from trainlint.fixes.edit import Attempt, Fix
from trainlint.records import (
    GraphNode,
    LayerSeries,
    ModelGraph,
    ModelSeries,
    Report,
    ReportedFinding,
    Series,
    TargetResult,
)
from trainlint.report import rendered
from trainlint.report.svg import Curve, bars, curves

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
    assert "what this does to a training" in text


def test_the_graph_has_each_operation_and_marks_what_is_at_fault(report: Report, page: str) -> None:
    graph = report.targets[0].graph
    assert graph is not None
    assert [node.operation for node in graph.nodes[:3]] == ["input", "Linear", "Sigmoid"]
    assert len(graph.nodes) == 22
    assert graph.edges == [(place, place + 1) for place in range(21)]
    shown = json.loads(re.findall(r'<script type="application/json">(.*?)</script>', page)[0])
    assert len(shown["nodes"]) == 22
    starved = {node["label"] for node in shown["nodes"] if node["starved"]}
    assert any("body.0" in label for label in starved)
    assert "head" not in starved
    assert any(node["accused"] for node in shown["nodes"])


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
            LayerSeries("fc", "linear", 1.0, 1.0, 1e-3, None, None, [(0, 1e-2), (25, 1e-3), (49, 1e-3)]),
            LayerSeries("act", "relu", 1e-4, None, None, 0.75, 4096),
        ])],
        [(0, 2.3), (25, 1.0), (49, "nan")], [(0, 2.3), (49, 1.5)], [(0, 2.1, 2.5), (49, 1.2, 1.8)],
    )  # fmt: skip
    graph = ModelGraph(
        [GraphNode("</script>", "input", ""), GraphNode("fc", "Linear", "fc")], [(0, 1)]
    )
    target = TargetResult("<net>.py::Net", "ok", series=series, graph=graph, notes=["a < b"])
    return Report([finding], [target, TargetResult("x.py", "error", "it <exits>")])


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
    labels = re.findall(r'<svg class="plot"[^>]*aria-label="([^"]*)"', page)
    assert [label.partition(" over")[0] for label in labels] == [
        "by layer, output to input (logarithmic scale)",
        "loss (cross entropy)",
        "gradient norm by layer (logarithmic scale)",
        "update of a step",
        "share of dead units",
    ]
    assert 'class="band validation"' in page


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


# ---------------------------------------------------------------------- in a browser

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)


@pytest.fixture(scope="module")
def browser() -> Any:
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    with playwright.sync_playwright() as started:
        running = started.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        yield running
        running.close()


@pytest.mark.parametrize("width", [1100, 390])
def test_a_reader_filters_searches_and_opens_modules(
    browser: Any, tmp_path: Path, page: str, width: int
) -> None:
    file = tmp_path / "report.html"
    file.write_text(page, encoding="utf-8")
    view = browser.new_page(viewport={"width": width, "height": 900})
    problems: list[str] = []
    requests: list[str] = []
    view.on("pageerror", lambda error: problems.append(str(error)))
    view.on("console", lambda line: problems.append(line.text) if line.type == "error" else None)
    view.on("request", lambda request: requests.append(request.url))
    view.goto(file.as_uri())
    assert view.evaluate("document.documentElement.scrollWidth") <= width
    total = view.locator(".finding").count()
    assert view.locator(".finding:visible").count() == total > 0
    # Filter by severity, and back.
    button = view.locator(".filter").first
    hidden = view.locator(f".finding.{button.get_attribute('data-severity')}").count()
    button.click()
    assert view.locator(".finding:visible").count() == total - hidden
    button.click()
    # Search from the keyboard.
    view.keyboard.press("/")
    view.keyboard.type("no such words anywhere")
    assert view.locator(".finding:visible").count() == 0
    view.locator("#search").fill("")
    assert view.locator(".finding:visible").count() == total
    # The graph: closed, a group opened by the keyboard, and all of it.
    nodes = view.locator(".graph .node")
    view.get_by_text("close all").click()
    assert nodes.count() == 3
    assert view.locator(".graph .node.accused").count() >= 1
    nodes.nth(1).focus()
    view.keyboard.press("Enter")
    assert nodes.count() == 22
    nodes.nth(1).focus()
    assert "Linear" in view.locator(".graph .about").inner_text()
    before = view.locator(".graph svg > g").get_attribute("transform")
    view.get_by_role("button", name="+", exact=True).click()
    assert view.locator(".graph svg > g").get_attribute("transform") != before
    # The other theme.
    colour = "getComputedStyle(document.body).backgroundColor"
    light = view.evaluate(colour)
    view.locator("#theme").click()
    assert view.evaluate(colour) != light
    assert problems == []
    assert requests == [file.as_uri()]
    view.close()
