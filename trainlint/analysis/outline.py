"""The captured graph as plain data, for pictures: operations, their connections, what was measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainlint.records import GraphNode, ModelGraph

if TYPE_CHECKING:
    from torch.fx import Node

    from trainlint.graph import Graph
    from trainlint.measure.signal import Signal

_DIGITS = 4


def outline(graph: Graph, signal: Signal | None = None, model: str = "") -> ModelGraph:
    """Inputs and operations in order of execution; weights belong to the operation that uses them."""
    shown = [node for node in graph.nodes if node.op == "placeholder" or node.op not in _HIDDEN]
    numbers = {node: number for number, node in enumerate(shown)}
    edges = [
        (numbers[source], numbers[node])
        for node in shown
        for source in dict.fromkeys(node.all_input_nodes)
        if source in numbers
    ]
    return ModelGraph([_described(graph, node, signal) for node in shown], edges, model)


_HIDDEN = frozenset({"get_attr", "output", "placeholder"})


def _described(graph: Graph, node: Node, signal: Signal | None) -> GraphNode:
    operation = graph.operation(node)
    measured = None if signal is None else signal.sites.get(node)
    place = graph.place(node)
    site = None if place is None else place.project
    layer = graph.layer(node)
    return GraphNode(
        label=graph.label(node),
        operation=operation.name if layer is None else type(layer).__name__,
        module=operation.module,
        shape="" if operation.shape is None else str(operation.shape),
        parameters=sum(p.tensor.numel() for p in graph.parameters_of(node)),
        filename=None if site is None else site.filename,
        row=None if site is None else site.row,
        fault="" if operation.error is None else str(operation.error).partition("\n")[0],
        gradient=_figure(None if measured is None else measured.gradient),
        zero=_figure(None if measured is None else measured.zero),
        saturated=_figure(None if measured is None else measured.saturated),
        values=None if measured is None else measured.values,
    )


def _figure(value: float | None) -> float | None:
    return None if value is None or not abs(value) < float("inf") else float(f"{value:.{_DIGITS}g}")
