"""The model's graph in the HTML report: data for its drawing, and a table for those who do not see it.

Comes in: a captured graph and the findings on it. Goes out: a frame that `page/graph.js` fills.
"""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any, Final

import msgspec

from trainlint import ops
from trainlint.records import ActivationSeries, GraphNode, ModelGraph, ReportedFinding
from trainlint.report.html_findings import STARVED
from trainlint.report.html_parts import cells_of, table

_MOST_ROWS: Final = 200
_MOST_GRAPHS: Final = 6
# How far behind an activation its layer is looked for, over normalisations and rearrangements.
_NEAR: Final = 3


def places_of(finding: ReportedFinding, nodes: Sequence[GraphNode]) -> set[int]:
    """Which operations a finding is about; those of what comes of it only where its own are not known.

    What its evidence names, and what stands at its line; else what its module does.
    """
    own = _own_places(finding, nodes)
    return own or {place for each in finding.symptoms for place in _own_places(each, nodes)}


def _own_places(finding: ReportedFinding, nodes: Sequence[GraphNode]) -> set[int]:
    told = {
        place
        for key, value in finding.evidence.items()
        for text in (value if isinstance(value, (list, tuple)) else (value,))
        if isinstance(text, str)
        for place in _told(key, text, nodes)
    }
    here = _at_line(finding, nodes)
    module = {
        place
        for place, node in enumerate(nodes)
        if finding.module and node.module == finding.module
    }
    if here & told:
        return told
    # A line may make several layers: the module says which.
    return told | ((here & module) or here) or module


def _told(key: str, text: str, nodes: Sequence[GraphNode]) -> Iterator[int]:
    """The operations of `fc1` in evidence that names layers, and of `sigmoid (line 20)` in any."""
    label, _, row = text.partition(" (line ")
    if not row and key not in _NAMING:
        return
    for place, node in enumerate(nodes):
        if (node.label == label and row == f"{node.row})") if row else text and text == node.module:
            yield place


# Evidence that says which modules a finding is about.
_NAMING: Final = frozenset({"module", "modules", "layer", "layers"})


def graphs_of(shown: Sequence[ModelGraph], findings: Sequence[ReportedFinding]) -> Iterator[str]:
    """Each graph with those findings that are about it; only the first of many."""
    drawn = [each for each in shown if each.nodes]
    for each in drawn[:_MOST_GRAPHS]:
        own = [finding for finding in findings if _is_about(finding, each, drawn)]
        yield _graph(each, own, f" of {each.model}" if len(drawn) > 1 else "")
    if len(drawn) > _MOST_GRAPHS:
        yield f"<p class='soft'>and the graphs of {len(drawn) - _MOST_GRAPHS} more models</p>"


def _is_about(finding: ReportedFinding, shown: ModelGraph, graphs: Sequence[ModelGraph]) -> bool:
    """Modules of several models may have one name: then the graph in which the finding's line stands."""
    if len(graphs) == 1:
        return True
    at_its_line = [each for each in graphs if _at_line(finding, each.nodes)]
    return shown in at_its_line or not at_its_line


def _at_line(finding: ReportedFinding, nodes: Sequence[GraphNode]) -> set[int]:
    """The operations that stand where the finding does."""
    if finding.location is None or finding.filename is None:
        return set()
    file, row = os.path.realpath(finding.filename), finding.location.row
    return {
        place
        for place, node in enumerate(nodes)
        if node.row == row and node.filename and os.path.realpath(node.filename) == file
        if node.operation != "input"
    }


def _graph(shown: ModelGraph, findings: Sequence[ReportedFinding], of: str) -> str:
    """The frame with its data, and the table."""
    accused: dict[int, str] = {}
    for finding in findings:
        if finding.severity == "info":
            continue
        name = f"{finding.severity}: {finding.name} {finding.code}"
        for place in places_of(finding, shown.nodes):
            accused.setdefault(place, name)
    gradients = [node.gradient for node in shown.nodes if node.gradient]
    last = gradients[-1] if gradients else 0.0
    nodes = [_node(node, accused.get(place, ""), last) for place, node in enumerate(shown.nodes)]
    data = (
        msgspec.json.encode({"nodes": nodes, "edges": shown.edges}).decode().replace("</", "<\\/")
    )
    starved = sum("starved" in node for node in nodes)
    named = sum("accused" in node for node in nodes)
    told = [f"{len(nodes)} operations"]
    told += [f"{named} named by findings"] if named else []
    told += [f"{starved} with less than 1/100 of the last layer's gradient"] if starved else []
    tools = "".join(
        f'<button data-do="{what}"{extra}>{name}</button>'
        for what, name, extra in (
            ("in", "+", ' aria-label="larger"'), ("out", "−", ' aria-label="smaller"'),
            ("fit", "readable", ""), ("whole", "whole", ""), ("open", "open all", ""),
            ("close", "close all", ""), ("faults", "next fault", "" if named or starved else " hidden"),
            ("move", "move by touch", ' aria-pressed="false" class="touch"'),
        )
    )  # fmt: skip
    keys = "".join(
        f'<span class="mark {kind}">{name}</span>'
        for kind, name, there in (
            ("accused", "named by a finding", named), ("starved", "starved of gradient", starved),
            ("group", "a module: click or Enter opens it, Backspace closes it", _has_groups(shown)),
        )
        if there
    )  # fmt: skip
    of = escape(of)
    return f"""<h3>the graph{of}: {"; ".join(told)}</h3>
<div class="graph"><div class="tools">{tools}</div><div class="marks">{keys}</div>
<svg tabindex="0" role="group" aria-label="the model{of} as a graph; a table of it follows">
<defs>{_TIP}</defs></svg>
<div class="about" aria-live="polite">Arrow keys go from operation to operation, with Shift they move the
picture, + and − zoom; drag to move, Ctrl and the wheel zoom too.</div>
<script type="application/json">{data}</script></div>
{_table(shown, nodes)}"""


def _has_groups(shown: ModelGraph) -> bool:
    """Whether a module has several operations."""
    paths = Counter(
        node.module[:end]
        for node in shown.nodes
        if node.module
        for end in (*(m.start() for m in re.finditer(r"\.", node.module)), len(node.module))
    )
    return max(paths.values(), default=0) > 1


_TIP: Final = (
    '<marker viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
    'orient="auto"><path d="M0 0L8 4L0 8z" fill="currentColor"/></marker>'
)


def _node(node: GraphNode, named: str, last: float) -> dict[str, Any]:
    """What the drawing needs; what is empty is left out."""
    place = "" if node.filename is None else f"{node.filename}:{node.row}"
    data = {
        "label": node.label, "operation": node.operation, "module": node.module, "shape": node.shape,
        "parameters": node.parameters, "place": place,
        "fault": node.fault, "zero": node.zero, "saturated": node.saturated, "accused": named,
        "starved": bool(node.gradient is not None and last and node.gradient * STARVED < last),
    }  # fmt: skip
    shown = {name: value for name, value in data.items() if value}
    return shown if node.gradient is None else {**shown, "gradient": node.gradient}


def _table(shown: ModelGraph, nodes: Sequence[dict[str, Any]]) -> str:
    """Layers and whatever is marked, in words."""
    pairs = [
        (node, data)
        for node, data in zip(shown.nodes, nodes, strict=True)
        if node.parameters or {"accused", "starved", "fault"} & data.keys()
    ]
    rows = []
    for node, data in pairs[:_MOST_ROWS]:
        marks = [data.get("accused", ""), "starved" if "starved" in data else "", node.fault]
        cells = [
            node.label, node.operation, node.shape,
            f"{node.parameters:,}" if node.parameters else "",
            "" if node.gradient is None else f"{node.gradient:.2g}",
            "; ".join(mark for mark in marks if mark),
        ]  # fmt: skip
        rows.append(f"<tr>{cells_of(cells)}</tr>")
    if not rows:
        return ""
    heads = ("operation", "kind", "result", "parameters", "gradient", "marks")
    more = (
        f"<p class='soft'>and {len(pairs) - _MOST_ROWS} more</p>" if len(pairs) > _MOST_ROWS else ""
    )
    return f"<details><summary>the layers as a table</summary>{table(heads, rows)}{more}</details>"


# ---------------------------------------------------------------------- what the layers give


def values_of(shown: ModelGraph) -> list[ActivationSeries]:
    """How results of one pass are spread: activations', and layers' that have none right behind them."""
    sources: dict[int, list[int]] = defaultdict(list)
    for source, place in shown.edges:
        sources[place].append(source)
    layers: dict[int, int] = {}
    for place, node in enumerate(shown.nodes):
        if node.values is not None and _is_activation(node):
            behind = _layer_behind(shown, sources, place)
            if behind is not None:
                layers[place] = behind
    hidden = set(layers.values())
    return [
        ActivationSeries(
            f"{node.module}.{node.label}"
            if node.module and node.label == node.operation
            else node.label,
            node.operation.lower(),
            shown.nodes[layers[place]].label if place in layers else "",
            [node.values],
        )
        for place, node in enumerate(shown.nodes)
        if node.values is not None and place not in hidden
    ]


def _is_activation(node: GraphNode) -> bool:
    return not node.parameters and _plain(node.operation) in _ACTIVATIONS


def _plain(name: str) -> str:
    """`LeakyReLU` and `leaky_relu` alike."""
    return name.lower().replace("_", "")


_ACTIVATIONS: Final = frozenset(map(_plain, ops.ACTIVATIONS))


def _layer_behind(shown: ModelGraph, sources: dict[int, list[int]], place: int) -> int | None:
    for _ in range(_NEAR):
        if len(sources[place]) != 1:
            return None
        (place,) = sources[place]
        node = shown.nodes[place]
        if node.values is not None:
            return None if _is_activation(node) else place
    return None
