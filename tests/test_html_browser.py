"""The HTML report in a real browser: nothing is asked of the network, and all of it can be used.

Needs Playwright and a Chromium, and downloads neither; it is skipped where one of them is not installed.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from trainlint.fixes.edit import Safety
from trainlint.records import (
    ActivationSeries,
    Edit,
    Fix,
    GraphNode,
    Histogram,
    LayerSeries,
    Location,
    ModelGraph,
    ModelSeries,
    Report,
    ReportedFinding,
    Series,
    TargetResult,
)
from trainlint.report import rendered

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
BLOCKS = 60
LONG = "x = " + " + ".join(f"self.some_rather_long_name_{n}(x)" for n in range(12))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
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


def graph() -> ModelGraph:
    """540 operations: an input, 60 blocks of nine, all in a row, but for a way around each block."""
    nodes = [GraphNode("the input", "input", "")]
    edges = []
    for block in range(BLOCKS):
        for number in range(9):
            path = f"blocks.{block}.fc{number}"
            nodes.append(GraphNode(path, "Linear", path, "(2, 8) float32", 72, gradient=2.0**block))
            edges.append((len(nodes) - 2, len(nodes) - 1))
        edges.append((len(nodes) - 10, len(nodes) - 1))
    return ModelGraph(nodes, edges)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a report with 12 findings, a training of many layers and a large graph."""
    folder = tmp_path_factory.mktemp("page")
    source = folder / "net.py"
    source.write_text(f"def forward(self, x):\n    {LONG}\n    return x\n")
    place, end = Location(2, 5), Location(2, 6)
    edit = Edit(str(source), place, Location(2, 5 + len(LONG)), LONG.replace("x)", "x * 2)"))
    findings = [
        ReportedFinding(
            "ARC008", f"finding-{n}", ("error", "warning", "info")[n % 3], "certain", f"message {n}",
            "signal", "net.py::Net", f"blocks.{n}.fc0", str(source), place, end,
            {"gradients": [[f"fc{k}", 10.0 ** (k - 9)] for k in range(9)], "figure": n},
            fixes=[Fix(title, Safety.UNSAFE, [edit]) for title in ("change it", "or that")],
        )
        for n in range(12)
    ]  # fmt: skip
    steps = range(50)
    layers = [
        LayerSeries(
            f"blocks.{n}.fc0", "linear", 1.0, updates=[(step, 1e-3) for step in steps],
            gradients=[(step, 2.0**n) for step in steps],
        )
        for n in range(BLOCKS)
    ]  # fmt: skip
    values = [Histogram(0.0, 1.0, [5, 3, 1], 0.95, step=step) for step in (0, 20, 49)]
    activations = [ActivationSeries(f"relu[{n}]", "relu", "fc", values) for n in range(BLOCKS)]
    points = [(step, 1.0 / (1 + step)) for step in steps]
    series = Series(
        50, 50, "mse_loss", 1.0, [ModelSeries("Net", layers, activations)], points, points,
        [(step, value - 0.1, value + 0.1) for step, value in points],
    )  # fmt: skip
    result = TargetResult("net.py::Net", "ok", series=series, graph=graph())
    written = folder / "report.html"
    written.write_text(rendered(Report(findings, [result]), "html"), encoding="utf-8")
    assert written.stat().st_size < 1_000_000
    return written


@pytest.fixture(params=[1100, 390])
def view(browser: Any, file: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    """The page at a width; whatever it asks for, and every error of its script, fails the test."""
    width = request.param
    page = browser.new_page(viewport={"width": width, "height": 900})
    problems: list[str] = []
    requests: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda line: problems.append(line.text) if line.type == "error" else None)
    page.on("request", lambda asked: requests.append(asked.url))
    page.route(
        "**/*",
        lambda route: route.continue_() if route.request.url == file.as_uri() else route.abort(),
    )
    page.goto(file.as_uri())
    page.set_default_timeout(5000)
    yield page
    page.close()
    assert problems == []
    assert requests == [file.as_uri()]


def test_nothing_is_cut_off_and_everything_has_a_name(view: Any) -> None:
    width = view.viewport_size["width"]
    assert view.evaluate("document.documentElement.scrollWidth") <= width
    view.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    assert view.evaluate("document.documentElement.scrollWidth") <= width
    cut = """[...document.querySelectorAll('.code, .code .row, .code code')].filter((each) =>
        each.scrollWidth > each.clientWidth + 1 && getComputedStyle(each).display !== 'inline').length"""
    assert view.locator(".code ins").count() > 0
    assert view.evaluate(cut) == 0
    unnamed = """[...document.querySelectorAll('svg[role], button, input')].filter((each) =>
        !(each.getAttribute('aria-label') || each.textContent).trim()).length"""
    assert view.evaluate(unnamed) == 0
    # Words of pictures lie inside of them, and are large enough to be read.
    words = """[...document.querySelectorAll('svg.plot text')].filter((each) => {
        const frame = each.closest('svg').getBoundingClientRect(), own = each.getBoundingClientRect();
        const size = parseFloat(getComputedStyle(each).fontSize) * each.getScreenCTM().a;
        return own.width && (own.left < frame.left - 1 || own.right > frame.right + 1 || size < 9.5);
        }).map((each) => each.textContent)"""
    assert view.evaluate(words) == []
    # What scrolls sideways is reached by keys, and nothing else is a stop.
    stops = """[...document.querySelectorAll('.wide')].filter((each) =>
        (each.scrollWidth > each.clientWidth + 1) !== (each.getAttribute('role') === 'region')).length"""
    view.evaluate("dispatchEvent(new Event('resize'))")
    assert view.evaluate(stops) == 0


def test_findings_are_filtered_and_searched(view: Any) -> None:
    shown = view.locator(".finding:visible")
    assert shown.count() == 12
    view.locator(".filter.warning").click()
    assert shown.count() == 8
    assert view.locator(".contents li:visible").count() == 8
    assert view.locator("#count").inner_text() == "8 of 12 findings shown"
    view.locator(".filter.warning").click()
    view.keyboard.press("/")
    view.keyboard.type("finding-7")
    assert shown.count() == 1
    view.keyboard.press("Escape")
    assert shown.count() == 12
    # Advice is folded; a link to it opens it.
    advice = view.locator(".finding.info").first
    assert not advice.locator(".message").is_visible()
    view.locator(".contents .info a").first.click()
    assert advice.locator(".message").is_visible()
    details = view.locator(".finding").first.locator("details.fix")
    assert not details.locator(".code").is_visible()
    details.locator("summary").click()
    assert details.locator(".code").is_visible()


def test_the_graph_opens_zooms_and_is_walked_by_keys(view: Any) -> None:
    nodes = view.locator(".graph .node")
    assert 2 < nodes.count() <= 80
    view.get_by_role("button", name="close all").click()
    assert nodes.count() == 2
    assert view.locator(".graph .node.accused.starved").count() == 1
    nodes.nth(1).focus()
    view.keyboard.press("Enter")
    assert nodes.count() == BLOCKS + 1
    # The first block has the focus now; down to the next, open it, and close it again.
    focused = "document.activeElement.getAttribute('aria-label')"
    assert view.evaluate(focused).startswith("blocks.0,")
    view.keyboard.press("ArrowDown")
    assert view.evaluate(focused).startswith("blocks.1,")
    view.keyboard.press("Enter")
    assert nodes.count() == BLOCKS + 9
    about = view.locator(".graph .about")
    # The whole of it has the focus: Shift moves the picture, an arrow alone goes to an operation.
    frame = view.locator(".graph svg")
    frame.focus()
    place = view.locator(".graph svg > g")
    before = place.get_attribute("transform")
    view.keyboard.press("Shift+ArrowLeft")
    assert place.get_attribute("transform") != before
    view.keyboard.press("ArrowDown")
    assert view.evaluate(focused).startswith("blocks.1.fc0,")
    assert "blocks.1.fc0: Linear" in about.inner_text()
    assert "finding-1" in about.inner_text()
    view.keyboard.press("Backspace")
    assert nodes.count() == BLOCKS + 1
    view.keyboard.press("ArrowUp")
    assert view.evaluate(focused).startswith("blocks.0,")
    view.get_by_role("button", name="open all").click()
    assert nodes.count() == 9 * BLOCKS + 1
    view.get_by_role("button", name="next fault").click()
    assert view.evaluate(focused).startswith("blocks.0.fc0,")
    inside = """(() => { const box = document.querySelector('.graph svg').getBoundingClientRect();
        const node = document.activeElement.getBoundingClientRect();
        return node.top >= box.top && node.bottom <= box.bottom && node.left >= box.left; })()"""
    assert view.evaluate(inside)
    before = place.get_attribute("transform")
    view.get_by_role("button", name="larger").click()
    assert place.get_attribute("transform") != before
    # The whole of it goes into the frame, in columns.
    view.get_by_role("button", name="whole").click()
    outside = """(() => { const box = document.querySelector('.graph svg').getBoundingClientRect();
        const places = [...document.querySelectorAll('.graph .node')].map((n) => n.getBoundingClientRect());
        const columns = new Set(places.map((place) => Math.round(place.left)));
        return [columns.size, places.filter((place) => place.left < box.left - 1 ||
          place.right > box.right + 1 || place.bottom > box.bottom + 1).length]; })()"""
    columns, lost = view.evaluate(outside)
    assert columns > 3
    assert lost == 0
    view.locator("summary", has_text="the layers as a table").click()
    assert view.locator("table:visible tbody tr").count() == 200


def test_the_theme_changes_and_paper_shows_everything_in_light(view: Any) -> None:
    colour = "getComputedStyle(document.body).backgroundColor"
    light = view.evaluate(colour)
    view.locator("#theme").click()
    assert view.evaluate(colour) != light
    view.emulate_media(media="print")
    view.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert view.evaluate(colour) == light
    assert view.locator("details:not([open])").count() == 0
    assert not view.locator("#search").is_visible()
    view.evaluate("dispatchEvent(new Event('afterprint'))")
    view.emulate_media(media="screen")
    assert view.evaluate(colour) != light
    assert view.locator("details:not([open])").count() > 0
